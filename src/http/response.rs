//! Responses: status, headers and body, as the bytes of one HTTP/1.1 response.
//!
//! Errors are problem documents (RFC 9457). No part of a request is copied into a header.

use super::reply::Preferences;
use serde_json::{Map, Value};
use std::fmt::{self, Display, Write};
use std::io::Cursor;
use std::time::Duration;
use tiny_http::{HTTPVersion, Header, StatusCode};

const JSON: &str = "application/json";
const PROBLEM: &str = "application/problem+json";
/// The earliest return of a refused caller, unless a better time is known.
const RETRY_AFTER: Duration = Duration::from_secs(1);
/// The Retry-After is spread over half of the earliest time, and over these seconds.
const SPREAD_SECONDS: u64 = 2;

/// The state of the connection after a response (RFC 9112 section 9.3).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Afterwards {
    /// It stays open, the default of HTTP/1.1.
    Stays,
    /// It stays open, which a response to HTTP/1.0 must state.
    StaysAsAsked,
    /// This is its last response.
    Closes,
}

/// One response.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Response {
    status: u16,
    content_type: &'static str,
    headers: Vec<(&'static str, String)>,
    timing: Option<Timing>,
    body: Vec<u8>,
}

/// The durations of a task, for Server-Timing (<https://www.w3.org/TR/server-timing/>).
#[derive(Clone, Copy, Debug, PartialEq)]
struct Timing {
    /// From the request that brought the task to its result, without `run`.
    queue: Option<Duration>,
    /// In the handler.
    run: Duration,
}

impl Response {
    /// A JSON value.
    pub(crate) fn json(status: u16, value: &Value) -> Self {
        Self::bytes(status, JSON, value.to_string().into_bytes())
    }

    /// A body of any type.
    pub(crate) fn bytes(status: u16, content_type: &'static str, body: Vec<u8>) -> Self {
        Self { status, content_type, headers: Vec::new(), timing: None, body }
    }

    /// A problem document with these members.
    pub(crate) fn problem_of(status: u16, members: Map<String, Value>) -> Self {
        Self::bytes(status, PROBLEM, Value::Object(members).to_string().into_bytes())
    }

    /// A problem document, with `task_id` if given.
    pub(crate) fn problem(status: u16, detail: &str, task_id: Option<&str>) -> Self {
        let mut members = problem_members(status, detail);
        if let Some(task_id) = task_id {
            members.insert("task_id".to_owned(), task_id.into());
        }
        Self::problem_of(status, members)
    }

    /// 503 with a Retry-After of a few seconds.
    pub(crate) fn unavailable(detail: &str, task_id: Option<&str>) -> Self {
        Self::unavailable_for(detail, task_id, RETRY_AFTER)
    }

    /// 503 with a Retry-After of at least this time, spread so that refused callers do not return together.
    pub(crate) fn unavailable_for(detail: &str, task_id: Option<&str>, earliest: Duration) -> Self {
        Self::problem(503, detail, task_id).retry_after(earliest)
    }

    /// Adds a Retry-After of at least this time.
    fn retry_after(self, earliest: Duration) -> Self {
        self.with("Retry-After", spread(earliest, fastrand::f64()).to_string())
    }

    /// Adds a Retry-After of a few seconds.
    pub(crate) fn retry_soon(self) -> Self {
        self.retry_after(RETRY_AFTER)
    }

    /// Adds the time of the handler, if it is known.
    pub(crate) fn ran(mut self, run: Option<Duration>) -> Self {
        self.timing = run.map(|run| Timing { queue: None, run });
        self
    }

    /// Adds the time in the queue to a response with a result; `took`: from the request that brought its task to the
    /// result.
    pub(crate) fn took(mut self, took: Duration) -> Self {
        if let Some(timing) = &mut self.timing {
            timing.queue = took.checked_sub(timing.run);
        }
        self
    }

    /// Names the preferences that this response applies (RFC 7240 section 3): `respond-async` by 202, `wait` by each
    /// response to which a caller may have waited for a result.
    pub(crate) fn applying(self, Preferences { asynchronous, wait }: Preferences) -> Self {
        let asynchronous = asynchronous && self.status == 202;
        // A limit below a second is not none.
        let seconds = |wait: Duration| wait.as_secs() + u64::from(wait.subsec_nanos() != 0);
        let wait = wait.filter(|_| matches!(self.status, 200 | 202 | 500 | 504)).map(seconds);
        let applied = match (asynchronous, wait) {
            (false, None) => return self,
            (true, None) => "respond-async".to_owned(),
            (false, Some(wait)) => format!("wait={wait}"),
            (true, Some(wait)) => format!("respond-async, wait={wait}"),
        };
        self.with("Preference-Applied", applied)
    }

    /// Adds a header.
    pub(crate) fn with(mut self, name: &'static str, value: String) -> Self {
        self.headers.push((name, value));
        self
    }

    /// HTTP status.
    pub(crate) fn status(&self) -> u16 {
        self.status
    }

    /// The bytes of the response. `head_only`: without its body, for HEAD.
    pub(crate) fn encode(&self, head_only: bool, afterwards: Afterwards) -> Vec<u8> {
        let own = self.headers.iter().map(|(name, value)| (*name, value.as_str()));
        // Responses are snapshots, so caches must not keep them.
        let fixed = [("Server", "lastcall"), ("Content-Type", self.content_type), ("Cache-Control", "no-store")];
        let mut response = tiny_http::Response::empty(self.status)
            .with_data(Cursor::new(self.body.as_slice()), Some(self.body.len()))
            // The length is known, and simpler to read than chunks.
            .with_chunked_threshold(usize::MAX);
        for (name, value) in fixed.into_iter().chain(own) {
            // The gateway's own names and values are well-formed; a missing header is better than no response.
            if let Ok(header) = Header::from_bytes(name, value) {
                response.add_header(header);
            }
        }
        let mut bytes = Vec::with_capacity(512 + self.body.len());
        // Writing into a vector does not fail.
        let _ = response.raw_print(&mut bytes, HTTPVersion(1, 1), None, head_only, None);
        // The library writes Connection only in its own server; here these two come first.
        let mut first = match afterwards {
            Afterwards::Stays => String::new(),
            Afterwards::StaysAsAsked => "Connection: keep-alive\r\n".to_owned(),
            Afterwards::Closes => "Connection: close\r\n".to_owned(),
        };
        if let Some(timing) = self.timing {
            // Writing into a string does not fail.
            let _ = write!(first, "Server-Timing: {timing}\r\n");
        }
        let begin = bytes.windows(2).position(|it| it == b"\r\n").map_or(0, |end| end + 2);
        bytes.splice(begin..begin, first.into_bytes());
        bytes
    }
}

impl Display for Timing {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let milliseconds = |duration: Duration| duration.as_secs_f64() * 1e3;
        if let Some(queue) = self.queue {
            write!(formatter, "queue;dur={:.3}, ", milliseconds(queue))?;
        }
        write!(formatter, "run;dur={:.3}", milliseconds(self.run))
    }
}

/// A Retry-After in whole seconds: from `earliest`, at least 1, to half as much again and [`SPREAD_SECONDS`]. `draw` is
/// between 0 and 1 (exclusive).
fn spread(earliest: Duration, draw: f64) -> u64 {
    let earliest = earliest.as_secs().max(1);
    let seconds = earliest / 2 + SPREAD_SECONDS;
    // Below 1, so that each of the seconds from the earliest to the latest is as likely as another.
    earliest + ((seconds + 1) as f64 * draw) as u64
}

/// The members of a problem document.
pub(crate) fn problem_members(status: u16, detail: &str) -> Map<String, Value> {
    let mut members = Map::new();
    members.insert("type".to_owned(), "about:blank".into());
    members.insert("title".to_owned(), StatusCode(status).default_reason_phrase().into());
    members.insert("status".to_owned(), status.into());
    members.insert("detail".to_owned(), detail.into());
    members
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn text(response: &Response) -> String {
        String::from_utf8(response.encode(false, Afterwards::Stays)).unwrap()
    }

    #[test]
    fn problem_has_the_members_of_the_rfc() {
        let response = Response::unavailable_for("no room", Some("t-1"), Duration::from_secs(2));
        let text = text(&response);
        assert!(text.starts_with("HTTP/1.1 503 Service Unavailable\r\n"), "{text}");
        assert!(text.contains("Content-Type: application/problem+json\r\n") && text.contains("\r\nRetry-After: "));
        let body: Value = serde_json::from_str(text.split("\r\n\r\n").nth(1).unwrap()).unwrap();
        let expected = json!({"type": "about:blank", "title": "Service Unavailable", "status": 503, "detail": "no room", "task_id": "t-1"});
        assert_eq!(body, expected);
    }

    #[test]
    fn retry_after_is_spread_over_the_documented_seconds() {
        let drawn = |earliest: f64| {
            let steps = (0..1000).map(|step| spread(Duration::from_secs_f64(earliest), f64::from(step) / 1000.0));
            let drawn: std::collections::BTreeSet<u64> = steps.collect();
            (drawn.first().copied(), drawn.last().copied(), drawn.len())
        };
        for earliest in [0.0, 0.3, 1.0, 1.9] {
            assert_eq!(drawn(earliest), (Some(1), Some(3), 3), "{earliest}");
        }
        assert_eq!(drawn(5.0), (Some(5), Some(9), 5));
        assert_eq!(drawn(60.0), (Some(60), Some(92), 33));
    }

    #[test]
    fn response_names_the_preferences_that_it_applies() {
        let applied = |status, asynchronous, wait: Option<u64>| {
            let wait = wait.map(Duration::from_secs);
            let response = Response::json(status, &json!({})).applying(Preferences { asynchronous, wait });
            let header = response.headers.into_iter().find(|(name, _)| *name == "Preference-Applied");
            header.map(|(_, value)| value)
        };
        assert_eq!(applied(202, true, None).as_deref(), Some("respond-async"));
        assert_eq!(applied(202, true, Some(5)).as_deref(), Some("respond-async, wait=5"));
        for status in [200, 500, 504] {
            assert_eq!(applied(status, true, Some(5)).as_deref(), Some("wait=5"), "{status}");
            assert_eq!(applied(status, true, None), None, "{status}");
        }
        for status in [400, 404, 422, 503] {
            assert_eq!(applied(status, true, Some(5)), None, "{status}");
        }
        assert_eq!(applied(202, false, None), None);
        for (milliseconds, seconds) in [(0, 0), (1, 1), (500, 1), (1000, 1), (1001, 2)] {
            let preferences = Preferences { asynchronous: false, wait: Some(Duration::from_millis(milliseconds)) };
            let response = text(&Response::json(200, &json!({})).applying(preferences));
            assert!(response.contains(&format!("\r\nPreference-Applied: wait={seconds}\r\n")), "{response}");
        }
    }

    #[test]
    fn response_to_head_has_a_length_and_no_body_and_the_last_response_closes() {
        let response = Response::json(200, &json!({"a": 1}));
        let head = String::from_utf8(response.encode(true, Afterwards::Closes)).unwrap();
        assert!(head.contains("Content-Length: 7\r\n") && head.contains("Connection: close\r\n"), "{head}");
        assert!(head.ends_with("\r\n\r\n"));
    }
}
