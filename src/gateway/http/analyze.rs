//! The body and the headers of `POST /analyze`: reads the task, or names the fault. Pure.

use crate::gateway::tasks::Wanted;
use crate::http::Refusal;
use crate::http::head::Head;
use crate::task::{Headers, LONGEST_CARRIED};
use crate::trace;
use bytes::Bytes;
use serde::Deserialize;
use serde_json::Value;
use std::borrow::Cow;

/// Longest `work_ms`.
const LONGEST_WORK_MS: u64 = 120_000;
/// Longest idempotency key.
const LONGEST_KEY: usize = 255;

fn refuse<T>(status: u16, detail: impl Into<String>) -> Result<T, Refusal> {
    Err(Refusal::new(status, detail))
}

/// Reads the body.
pub(super) fn parse(body: &[u8], work_allowed: bool) -> Result<Wanted, Refusal> {
    #[derive(Deserialize)]
    struct Body {
        text: String,
        work_ms: Option<Value>,
    }
    // Some systems write a byte order mark; it may be ignored (RFC 8259 section 8.1).
    let body = body.strip_prefix(b"\xef\xbb\xbf").unwrap_or(body);
    // serde also accepts an array of the members' values.
    let is_object = body.trim_ascii_start().first() == Some(&b'{');
    let Some(Body { text, work_ms }) = serde_json::from_slice(body).ok().filter(|_| is_object) else {
        return Err(diagnose(body));
    };
    if text.trim().is_empty() {
        return refuse(400, "\"text\" is empty or only white space; it must hold something to analyse");
    }
    let work_ms = match work_ms {
        None => None,
        Some(_) if !work_allowed => {
            return refuse(
                400,
                "\"work_ms\" is for demonstrations and not allowed here (start the gateway with ALLOW_WORK_MS=1)",
            );
        }
        Some(value) => match value.as_u64().filter(|milliseconds| *milliseconds <= LONGEST_WORK_MS) {
            Some(milliseconds) => Some(milliseconds),
            None => {
                return refuse(400, format!("\"work_ms\" must be a whole number from 0 to {LONGEST_WORK_MS}"));
            }
        },
    };
    Ok(Wanted { text, work_ms, headers: Headers::new() })
}

/// Names the fault of a body, without quoting it.
fn diagnose(body: &[u8]) -> Refusal {
    let detail = if std::str::from_utf8(body).is_err() {
        "the body is not UTF-8; it must be JSON in UTF-8: {\"text\": \"…\"}".to_owned()
    } else {
        match serde_json::from_slice::<Value>(body) {
            Err(error) => format!(
                "the body is not JSON (line {}, column {}); it must be {{\"text\": \"…\"}}",
                error.line(),
                error.column()
            ),
            Ok(Value::Object(members)) if !members.contains_key("text") => {
                "\"text\" is missing; the body must be {\"text\": \"…\"}".to_owned()
            }
            Ok(Value::Object(members)) if !members["text"].is_string() => "\"text\" must be a string".to_owned(),
            Ok(Value::Object(_)) => "a member occurs twice in the body".to_owned(),
            Ok(_) => "the body is not a JSON object; it must be {\"text\": \"…\"}".to_owned(),
        }
    };
    Refusal { status: 400, detail }
}

/// Checks the Content-Type: `application/json` or `application/…+json`, with or without parameters.
pub(super) fn check_type(content_type: Option<&str>) -> Result<(), Refusal> {
    let essence = content_type.unwrap_or_default().split(';').next().unwrap_or_default().trim().to_ascii_lowercase();
    let json = essence == "application/json" || (essence.starts_with("application/") && essence.ends_with("+json"));
    if json { Ok(()) } else { refuse(415, "the Content-Type must be application/json") }
}

/// The key in an Idempotency-Key: 1 to 255 printable ASCII characters, in quotes (a string of RFC 8941, as the field's
/// draft requires; its parameters are ignored) or, as most clients send it, without.
pub(super) fn key_of(field: &str) -> Result<String, Refusal> {
    let key = match field.strip_prefix('"') {
        None => Some(field.to_owned()),
        Some(rest) => unquoted(rest).filter(|(_, rest)| rest.is_empty() || is_parameters(rest)).map(|(key, _)| key),
    };
    let printable = |key: &String| key.bytes().all(|byte| (0x20..=0x7e).contains(&byte));
    match key.filter(|key| printable(key) && (1..=LONGEST_KEY).contains(&key.len())) {
        Some(key) => Ok(key),
        None => refuse(
            400,
            format!(
                "the Idempotency-Key must be 1 to {LONGEST_KEY} printable ASCII characters, with quotes around them or without"
            ),
        ),
    }
}

/// The text before the closing quote, and what follows it. In the text a backslash escapes only a quote or a backslash;
/// `None`: it is not well-formed.
fn unquoted(text: &str) -> Option<(String, &str)> {
    let (mut plain, mut characters) = (String::new(), text.chars());
    loop {
        match characters.next()? {
            '"' => return Some((plain, characters.as_str())),
            '\\' => plain.push(characters.next().filter(|next| matches!(next, '"' | '\\'))?),
            character => plain.push(character),
        }
    }
}

/// Whether this begins like parameters (RFC 8941 section 3.1.2): a semicolon, spaces, and the first letter of a name.
fn is_parameters(text: &str) -> bool {
    let name = text.strip_prefix(';').map(|rest| rest.trim_start_matches(' '));
    let is_printable = text.bytes().all(|byte| (0x20..=0x7e).contains(&byte));
    is_printable && name.is_some_and(|name| name.starts_with(|first: char| first.is_ascii_lowercase() || first == '*'))
}

/// The trace context of a request as headers of a record. None without a well-formed traceparent; a tracestate that is
/// not well-formed is left out (W3C Trace Context, section 4.3).
pub(super) fn trace_of(head: &Head) -> Headers {
    let Ok(Some(parent)) = head.field(trace::PARENT) else { return Headers::new() };
    if parent.len() > LONGEST_CARRIED || trace::trace_id(parent.as_bytes()).is_none() {
        return Headers::new();
    }
    let state = trace::state(head.lines(trace::STATE), LONGEST_CARRIED);
    let parent = (Cow::Borrowed(trace::PARENT), Some(Bytes::copy_from_slice(parent.as_bytes())));
    let state = state.map(|state| (Cow::Borrowed(trace::STATE), Some(Bytes::from(state))));
    std::iter::once(parent).chain(state).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_is_taken_unchanged() {
        let wanted = parse(r#"{"text": " Привет \u0000", "more": 1}"#.as_bytes(), false).unwrap();
        assert_eq!(wanted, Wanted { text: " Привет \0".to_owned(), work_ms: None, headers: Headers::new() });
        assert_eq!(parse("\u{feff}{\"text\": \"a\"}".as_bytes(), false).unwrap().text, "a");
    }

    #[test]
    fn faults_of_the_body_are_named() {
        let deep = format!("{}1{}", "[".repeat(10_000), "]".repeat(10_000));
        let table: [(&[u8], bool, &str); 19] = [
            (b"", false, "not JSON"),
            (b"{", false, "not JSON (line 1"),
            (deep.as_bytes(), false, "not JSON (line 1"),
            (b"{\"text\": \"\\ud800\"}", false, "not JSON (line 1"),
            (b"[]", false, "not a JSON object"),
            (b"[\"text\", null]", false, "not a JSON object"),
            (b"\"text\"", false, "not a JSON object"),
            (b"{}", false, "\"text\" is missing"),
            (b"{\"text\": 5}", false, "must be a string"),
            (b"{\"text\": null}", false, "must be a string"),
            (b"{\"text\": \"\"}", false, "empty"),
            (b"{\"text\": \" \\n\\t\\u00a0\\u2003\"}", false, "empty"),
            (b"{\"text\": \"\xff\"}", false, "not UTF-8"),
            (b"{\"text\": \"a\", \"text\": \"b\"}", false, "twice"),
            (b"{\"text\": \"a\", \"work_ms\": 1}", false, "ALLOW_WORK_MS"),
            (b"{\"text\": \"a\", \"work_ms\": 120001}", true, "from 0 to 120000"),
            (b"{\"text\": \"a\", \"work_ms\": \"5\"}", true, "whole number"),
            (b"{\"text\": \"a\", \"work_ms\": -1}", true, "whole number"),
            (b"{\"text\": \"a\", \"work_ms\": 0.5}", true, "whole number"),
        ];
        for (body, allowed, expected) in table {
            let refusal = parse(body, allowed).unwrap_err();
            assert_eq!(refusal.status, 400);
            assert!(refusal.detail.contains(expected), "{:?}: {}", String::from_utf8_lossy(body), refusal.detail);
        }
        assert_eq!(parse(b"{\"text\":\"a\",\"work_ms\":120000}", true).unwrap().work_ms, Some(120_000));
    }

    #[test]
    fn body_is_json_by_its_content_type() {
        for good in ["application/json", "Application/JSON; charset=utf-8", "application/vnd.api+json"] {
            assert!(check_type(Some(good)).is_ok(), "{good}");
        }
        for bad in
            ["", "json", "text/plain", "application/x-www-form-urlencoded", "application/jsonx", "text/json+json"]
        {
            assert_eq!(check_type(Some(bad)).unwrap_err().status, 415, "{bad:?}");
        }
        assert_eq!(check_type(None).unwrap_err().status, 415);
    }

    #[test]
    fn idempotency_key_follows_its_grammar() {
        for (field, key) in [
            ("order-1", "order-1"),
            (r#""order-1""#, "order-1"),
            (r#""a \"b\" \\c""#, r#"a "b" \c"#),
            (r"a\b", r"a\b"),
            (r#"5" nails"#, r#"5" nails"#),
            (r#""order-1";a=1"#, "order-1"),
            (r#""a;b";  *a; b="c""#, "a;b"),
            ("order-1;a=1", "order-1;a=1"),
            (&"k".repeat(255), &"k".repeat(255)),
        ] {
            assert_eq!(key_of(field), Ok(key.to_owned()), "{field}");
        }
        for bad in [
            "",
            "ключ",
            "tab\t",
            &"k".repeat(256),
            "\"",
            "\"\"",
            r#""a"#,
            r#""a"b""#,
            r#""a\b""#,
            r#""a\""#,
            r#"""; a=1"#,
            r#""a" ;b=1"#,
            r#""a";"#,
            r#""a";B=1"#,
            "\"a\";b=\t",
            r#""a", "b""#,
        ] {
            assert_eq!(key_of(bad).unwrap_err().status, 400, "{bad}");
        }
    }
}
