//! The head of a request: its line and fields, and their meaning for the body and the connection (RFC 9112).
//!
//! Pure: bytes go in, a [`Head`] comes out. `httparse` splits the bytes. This module refuses what `httparse` accepts
//! but two readers could read in two ways. Otherwise, behind a proxy, bytes of one caller could become another's
//! request (request smuggling, RFC 9112 section 11.2). After a refusal the connection reads no further request. Called
//! by [`connection`](super::connection).

use super::Refusal;
use tiny_http::Method;

/// The largest head, in bytes.
pub(crate) const LARGEST_HEAD: usize = 16 * 1024;
/// The most fields of a head.
const MOST_FIELDS: usize = 100;

/// How the body of a request ends (RFC 9112 section 6.3).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Body {
    /// After this many bytes; zero: there is none.
    Length(u64),
    /// After its last chunk.
    Chunked,
}

/// A well-formed head.
#[derive(Debug)]
pub(crate) struct Head {
    pub(crate) method: Method,
    /// As received: a path with its query, or a whole URL.
    pub(crate) target: String,
    pub(crate) body: Body,
    /// Whether the caller waits for 100 (Continue) before it sends the body.
    pub(crate) expects_continue: bool,
    /// Whether the connection persists after the response.
    pub(crate) persists: bool,
    /// HTTP/1.0, whose connections end unless both sides ask to keep them.
    pub(crate) is_old: bool,
    fields: Vec<(Box<str>, Box<[u8]>)>,
}

impl Head {
    /// The value of a field that may occur once; `None` if it is missing.
    ///
    /// # Errors
    /// The field occurs twice, or is not ASCII.
    pub(crate) fn field(&self, name: &str) -> Result<Option<&str>, Refusal> {
        let mut values = self.lines(name);
        match (values.next(), values.next()) {
            (None, _) => Ok(None),
            (Some(_), Some(_)) => Err(Refusal::new(400, format!("the field {name} occurs twice"))),
            (Some(value), None) => match std::str::from_utf8(value) {
                Ok(text) if text.is_ascii() => Ok(Some(text)),
                _ => Err(Refusal::new(400, format!("the field {name} has characters that are not ASCII"))),
            },
        }
    }

    /// The members of a list field, from all its lines, without those that are not UTF-8 (RFC 9110 section 5.6.1).
    pub(crate) fn list(&self, name: &str) -> impl Iterator<Item = &str> {
        let lines = self.lines(name).filter_map(|value| std::str::from_utf8(value).ok());
        lines
            .flat_map(|line| line.split(','))
            .map(|member| member.trim_matches([' ', '\t']))
            .filter(|it| !it.is_empty())
    }

    /// The values of all lines of a field.
    pub(crate) fn lines(&self, name: &str) -> impl Iterator<Item = &[u8]> {
        self.fields.iter().filter(move |(own, _)| own.eq_ignore_ascii_case(name)).map(|(_, value)| value.as_ref())
    }

    fn says(&self, name: &str, member: &str) -> bool {
        self.list(name).any(|own| own.eq_ignore_ascii_case(member))
    }

    fn read_body(&self) -> Result<Body, Refusal> {
        let refuse = |detail: &str| Err(Refusal::new(400, detail));
        let (mut lengths, mut codings) = (self.lines("Content-Length"), self.lines("Transfer-Encoding"));
        match (lengths.next(), codings.next()) {
            (None, None) => Ok(Body::Length(0)),
            (Some(_), Some(_)) => refuse("a request cannot have both Transfer-Encoding and Content-Length"),
            (None, Some(_)) if self.is_old => refuse("HTTP/1.0 has no Transfer-Encoding"),
            (None, Some(_)) if codings.next().is_some() => refuse("Transfer-Encoding occurs twice"),
            (None, Some(coding)) if coding.eq_ignore_ascii_case(b"chunked") => Ok(Body::Chunked),
            (None, Some(_)) => Err(Refusal::new(501, "the only accepted Transfer-Encoding is chunked")),
            (Some(_), None) if lengths.next().is_some() => refuse("Content-Length occurs twice"),
            (Some(length), None) => match plain_number(length) {
                Some(length) => Ok(Body::Length(length)),
                None => refuse("Content-Length is not a number"),
            },
        }
    }

    /// Checks Host (RFC 9112 section 3.2): exactly one in HTTP/1.1, at most one in HTTP/1.0.
    fn check_host(&self) -> Result<(), Refusal> {
        let mut hosts = self.lines("Host");
        match (hosts.next(), hosts.next()) {
            (None, _) if !self.is_old => Err(Refusal::new(400, "the field Host is missing")),
            (Some(_), Some(_)) => Err(Refusal::new(400, "the field Host occurs twice")),
            (Some(host), None) if !host.iter().all(|byte| byte.is_ascii_graphic() && !b"/?#@\\,".contains(byte)) => {
                Err(Refusal::new(400, "the field Host is not a host with or without a port"))
            }
            _ => Ok(()),
        }
    }

    /// Returns whether the caller waits for 100 (Continue) (RFC 9110 section 10.1.1).
    fn read_expectation(&self) -> Result<bool, Refusal> {
        match self.list("Expect").find(|it| !it.eq_ignore_ascii_case("100-continue")) {
            Some(_) => Err(Refusal::new(417, "the only accepted Expect is 100-continue")),
            None => Ok(!self.is_old && self.body != Body::Length(0) && self.says("Expect", "100-continue")),
        }
    }
}

/// Parses digits only: other readers treat a sign or a blank differently.
fn plain_number(text: &[u8]) -> Option<u64> {
    let digits = !text.is_empty() && text.iter().all(u8::is_ascii_digit);
    std::str::from_utf8(text).ok().filter(|_| digits)?.parse().ok()
}

/// Reads the head at the beginning of these bytes and returns its length; `None` while it is incomplete.
///
/// # Errors
/// The head is too large, not well-formed, or ambiguous.
pub(crate) fn parse(bytes: &[u8]) -> Result<Option<(Head, usize)>, Refusal> {
    let mut fields = [httparse::EMPTY_HEADER; MOST_FIELDS];
    let mut request = httparse::Request::new(&mut fields);
    let length = match request.parse(bytes) {
        Ok(httparse::Status::Complete(length)) => length,
        Ok(httparse::Status::Partial) if bytes.len() >= LARGEST_HEAD => return Err(too_large()),
        Ok(httparse::Status::Partial) => return Ok(None),
        Err(httparse::Error::TooManyHeaders) => {
            return Err(Refusal::new(431, format!("the head has more than {MOST_FIELDS} fields")));
        }
        Err(httparse::Error::Version) => {
            return Err(Refusal::new(505, "the gateway supports only HTTP/1.1 and HTTP/1.0"));
        }
        Err(error) => return Err(Refusal::new(400, format!("the head of the request is not well-formed: {error}"))),
    };
    if length > LARGEST_HEAD {
        return Err(too_large());
    }
    // The parser accepts a bare LF as the end of a line, other readers do not.
    if bytes[..length].iter().enumerate().any(|(at, byte)| *byte == b'\n' && (at == 0 || bytes[at - 1] != b'\r')) {
        return Err(Refusal::new(400, "a line of the head does not end with CR LF"));
    }
    let (Some(method), Some(target), Some(minor)) = (request.method, request.path, request.version) else {
        return Err(Refusal::new(400, "the request line is incomplete"));
    };
    // Callers never send a fragment. A proxy that passed one on would have checked another path.
    if target.contains('#') || !target.is_ascii() {
        return Err(Refusal::new(400, "the target of the request has characters that a URL cannot have"));
    }
    let Ok(method) = method.parse() else {
        return Err(Refusal::new(400, "the method of the request is not a token"));
    };
    let fields = request.headers.iter().map(|field| (field.name.into(), field.value.into())).collect();
    let mut head = Head {
        method,
        target: target.to_owned(),
        body: Body::Length(0),
        expects_continue: false,
        persists: false,
        is_old: minor == 0,
        fields,
    };
    head.check_host()?;
    head.body = head.read_body()?;
    head.expects_continue = head.read_expectation()?;
    // RFC 9112 section 9.3: `close` overrides `keep-alive`.
    head.persists = !head.says("Connection", "close") && (!head.is_old || head.says("Connection", "keep-alive"));
    Ok(Some((head, length)))
}

fn too_large() -> Refusal {
    Refusal::new(431, format!("the head of the request is larger than {LARGEST_HEAD} bytes"))
}

#[cfg(test)]
mod tests {
    //! The requests of docs/http.md are not repeated here; `tests/suite/http.rs` sends each of them.

    use super::*;

    fn whole(text: &str) -> Head {
        let (head, length) = parse(text.as_bytes()).expect("well-formed").expect("whole");
        assert_eq!(length, text.len());
        head
    }

    fn with(fields: &str) -> Head {
        whole(&format!("POST /analyze HTTP/1.1\r\nHost: x\r\n{fields}\r\n"))
    }

    fn status(text: &str) -> u16 {
        parse(text.as_bytes()).expect_err(text).status
    }

    #[test]
    fn head_is_complete_at_its_empty_line_and_not_before() {
        let text = "GET /tasks/a?b HTTP/1.1\r\nHost: x:80\r\nX-Name: J\u{f6}rg\tb\r\n\r\n";
        for end in 0..text.len() {
            if text.is_char_boundary(end) {
                assert!(parse(&text.as_bytes()[..end]).expect("well-formed so far").is_none(), "{end}");
            }
        }
        let (head, length) = parse(format!("{text}GET /").as_bytes()).expect("well-formed").expect("whole");
        assert_eq!((length, head.method, head.target.as_str()), (text.len(), Method::Get, "/tasks/a?b"));
        assert_eq!(head.body, Body::Length(0));
        assert!(head.persists && !head.is_old && !head.expects_continue);
    }

    #[test]
    fn fields_decide_where_the_body_ends() {
        let table: [(&str, Body); 5] = [
            ("", Body::Length(0)),
            ("Content-Length: 0\r\n", Body::Length(0)),
            ("content-length:  5\t\r\n", Body::Length(5)),
            ("Transfer-Encoding: Chunked\r\n", Body::Chunked),
            // A server may ignore an offered protocol (RFC 9110 section 7.8).
            ("Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nContent-Length: 30\r\n", Body::Length(30)),
        ];
        for (fields, body) in table {
            assert_eq!(with(fields).body, body, "{fields:?}");
        }
        for (expected, field) in [(400, "Content-Length"), (501, "Transfer-Encoding")] {
            let empty = format!("POST / HTTP/1.1\r\nHost: x\r\n{field}:\r\n\r\n");
            assert_eq!(status(&empty), expected, "{field}");
        }
    }

    #[test]
    fn head_has_a_size_limit() {
        let begin = "GET / HTTP/1.1\r\nHost: x\r\nA: ";
        let filled = |length: usize| format!("{begin}{}\r\n\r\n", "b".repeat(length - begin.len() - 4));
        assert_eq!(whole(&filled(LARGEST_HEAD)).target, "/");
        assert_eq!(status(&filled(LARGEST_HEAD + 1)), 431);
        assert_eq!(status(&format!("{begin}{}", "b".repeat(LARGEST_HEAD))), 431, "it does not end");
        assert_eq!(status(&format!("GET /{}", "b".repeat(LARGEST_HEAD))), 431);
        assert_eq!(status(&format!("GET / HTTP/1.1\r\nHost: x\r\n{}\r\n", "A: b\r\n".repeat(MOST_FIELDS))), 431);
    }

    #[test]
    fn caller_decides_whether_the_connection_persists() {
        let persists = |version: &str, connection: &str| {
            whole(&format!("GET / HTTP/{version}\r\nHost: x\r\nConnection: {connection}\r\n\r\n")).persists
        };
        assert!(persists("1.1", "") && persists("1.1", "Upgrade, HTTP2-Settings") && persists("1.1", "close-not"));
        assert!(!persists("1.1", "Keep-Alive, Close") && !persists("1.0", "") && persists("1.0", "Keep-Alive"));
        assert!(!with("Connection: keep-alive\r\nConnection: close\r\n").persists);
        assert!(!whole("GET / HTTP/1.0\r\n\r\n").persists);
    }

    #[test]
    fn caller_that_waits_for_100_continue_is_recognized() {
        assert!(with("Content-Length: 5\r\nExpect: 100-Continue\r\n").expects_continue);
        assert!(!with("Expect: 100-continue\r\n").expects_continue, "there is no body");
        let old = "POST / HTTP/1.0\r\nContent-Length: 5\r\nExpect: 100-continue\r\n\r\n";
        assert!(!whole(old).expects_continue);
    }

    #[test]
    fn field_occurs_once_and_list_has_several_lines() {
        let head = with("Prefer: wait=5, a;b\r\nIdempotency-Key: k\r\nprefer: respond-async\r\nX-Name: J\u{f6}rg\r\n");
        assert_eq!(head.field("idempotency-key").expect("once"), Some("k"));
        assert_eq!(head.field("Content-Type").expect("never"), None);
        assert_eq!(head.field("Prefer").expect_err("twice").status, 400);
        assert_eq!(head.field("X-Name").expect_err("not ASCII").status, 400);
        assert_eq!(head.list("Prefer").collect::<Vec<_>>(), ["wait=5", "a;b", "respond-async"]);
    }
}
