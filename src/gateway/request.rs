//! What a request says of itself, and its body: where it ends, whether it is there, whether it may be read.
//!
//! The HTTP library is lenient where requests are ambiguous, and behind a proxy an ambiguous end of a body is how one caller's
//! bytes become another's request (request smuggling, RFC 9112 section 11.2). So everything that is not plain is refused here, and
//! the connection ends with it. Called by the connections' threads only: reading a body blocks.

use super::analyze::{LARGEST_BODY, Refusal, too_large};
use std::io::{self, Read};
use std::time::{Duration, Instant};
use tiny_http::{HTTPVersion, Header, Headers, Request};

/// The library reads bodies up to this size itself, before it hands the request over.
const HELD_BODY: usize = 1024;
/// A body must be there within this.
const BODY_LIMIT: Duration = Duration::from_secs(10);
/// So much of a body that is too large is read away, so that its sender gets to reading the answer.
const READ_AWAY: usize = 1024 * 1024;

/// How the body of a request ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Body {
    /// There is none.
    Absent,
    /// All of it is in memory.
    Held,
    /// It has this length and is still on its way.
    Coming(usize),
    /// It says itself when it ends, and is still on its way.
    Chunked,
    /// Nobody can say where it ends: nothing after it may be read.
    Ambiguous(&'static str),
}

impl Body {
    /// Whether the connection's next request begins where we would look for it without reading the body.
    pub(super) fn is_read(self) -> bool {
        matches!(self, Self::Absent | Self::Held)
    }
}

/// A header's value; of several the first.
pub(super) fn header<'a>(request: &'a Request, name: &'static str) -> Option<&'a str> {
    request.headers().get(name).map(|value| value.as_str())
}

/// How the body of this request ends (RFC 9112 section 6.3, and stricter).
pub(super) fn body(request: &Request) -> Body {
    body_of(request.headers())
}

fn body_of(headers: &Headers) -> Body {
    let value = |name| headers.get(name).map(|value| value.as_str());
    match (value("Transfer-Encoding"), value("Content-Length")) {
        (None, None) => Body::Absent,
        (Some(_), Some(_)) => Body::Ambiguous("Transfer-Encoding and Content-Length cannot stand together"),
        (Some(_), None) if is_repeated(headers, "Transfer-Encoding") => {
            Body::Ambiguous("Transfer-Encoding stands twice")
        }
        (Some(encoding), None) if !encoding.trim().eq_ignore_ascii_case("chunked") => {
            Body::Ambiguous("the only Transfer-Encoding taken is chunked")
        }
        // The library gives the raw connection as the body of such a request.
        (Some(_), None) if says_connection(headers, "upgrade") => Body::Ambiguous("a chunked body cannot be upgraded"),
        (Some(_), None) => Body::Chunked,
        (None, Some(_)) if is_repeated(headers, "Content-Length") => Body::Ambiguous("Content-Length stands twice"),
        (None, Some(length)) => match plain_number(length.trim()) {
            None => Body::Ambiguous("Content-Length is not a number"),
            Some(0) => Body::Absent,
            Some(length) if length <= HELD_BODY && value("Expect").is_none() => Body::Held,
            Some(length) => Body::Coming(length),
        },
    }
}

/// Digits only: a sign or a blank reads differently elsewhere.
fn plain_number(text: &str) -> Option<usize> {
    let digits = !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
    text.parse().ok().filter(|_| digits)
}

/// The library shows the first header of a name only, so the first one is taken away in a copy.
fn is_repeated(headers: &Headers, name: &str) -> bool {
    let mut headers = headers.clone();
    let (Some(first), Ok(other)) = (headers.get_header_mut(name), Header::from_bytes("X", "")) else { return false };
    *first = other;
    headers.get(name).is_some()
}

/// Whether the Connection header names this option.
fn says_connection(headers: &Headers, option: &str) -> bool {
    let options = headers.get("Connection").map(|value| value.as_str()).unwrap_or_default();
    // As the library does: anywhere in the value.
    options.to_ascii_lowercase().contains(option)
}

/// What the answer says of the connection (RFC 9112 section 9.3).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Afterwards {
    /// It stays open, which HTTP/1.1 need not say.
    Stays,
    /// It stays open, which HTTP/1.0 must say.
    StaysAsAsked,
    /// This is its last answer.
    Closes,
}

/// What becomes of the connection after this request, as far as it is up to the caller. The library decides alike.
pub(super) fn afterwards(request: &Request) -> Afterwards {
    let old = *request.http_version() < HTTPVersion(1, 1);
    let says = |option| says_connection(request.headers(), option);
    if says("close") || says("upgrade") {
        Afterwards::Closes
    } else if !old {
        Afterwards::Stays
    } else if says("keep-alive") {
        Afterwards::StaysAsAsked
    } else {
        Afterwards::Closes
    }
}

/// A body that was read, or why not; and whether the connection can be read on.
pub(super) struct ReadBody {
    pub(super) content: Result<Vec<u8>, Refusal>,
    pub(super) to_its_end: bool,
}

/// Reads the body of a request that is not ambiguous.
///
/// A caller that stops sending in the middle holds its own connection's thread, and no other: there is no way to take the socket
/// from the library. One that sends, however slowly, is given up at [`BODY_LIMIT`].
pub(super) fn read(request: &mut Request, body: Body) -> ReadBody {
    let refuse = |refusal| ReadBody { content: Err(refusal), to_its_end: false };
    match body {
        Body::Absent => ReadBody { content: Ok(Vec::new()), to_its_end: true },
        Body::Ambiguous(fault) => refuse(Refusal { status: 400, detail: fault.to_owned() }),
        // Answered at once: it may be as large as its sender likes, or may wait for our 100 (Continue).
        Body::Coming(length) if length > LARGEST_BODY => refuse(too_large()),
        Body::Held => read_from(request.as_reader(), Some(HELD_BODY)),
        Body::Coming(length) => read_from(&mut request.as_reader().take(length as u64), Some(length)),
        Body::Chunked => read_from(request.as_reader(), None),
    }
}

fn read_from(reader: &mut dyn Read, length: Option<usize>) -> ReadBody {
    let deadline = Instant::now() + BODY_LIMIT;
    let mut content = Vec::with_capacity(length.unwrap_or(4096));
    let mut chunk = [0; 8192];
    let mut total = 0;
    let refuse = |status, detail: &str| ReadBody {
        content: Err(Refusal { status, detail: detail.to_owned() }),
        to_its_end: false,
    };
    loop {
        match reader.read(&mut chunk) {
            Ok(0) if total > LARGEST_BODY => return ReadBody { content: Err(too_large()), to_its_end: true },
            Ok(0) => return ReadBody { content: Ok(content), to_its_end: true },
            Ok(count) => {
                total += count;
                if total <= LARGEST_BODY {
                    content.extend_from_slice(&chunk[..count]);
                } else if total > LARGEST_BODY + READ_AWAY {
                    return ReadBody { content: Err(too_large()), to_its_end: false };
                }
            }
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(_) => return refuse(400, "the body ended early, or its chunks are not well-formed"),
        }
        if Instant::now() >= deadline {
            return refuse(408, &format!("the body did not come within {} s", BODY_LIMIT.as_secs()));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tiny_http::TestRequest;

    fn request(headers: &[(&str, &str)]) -> Request {
        let mut request = TestRequest::new().with_path("/analyze");
        for (name, value) in headers {
            request = request.with_header(Header::from_bytes(name.as_bytes(), value.as_bytes()).expect("a header"));
        }
        request.into()
    }

    #[test]
    fn the_end_of_a_body_is_known_or_the_request_is_refused() {
        let chunked = ("Transfer-Encoding", "chunked");
        type Row<'a> = (&'a [(&'a str, &'a str)], Option<Body>);
        let table: [Row<'_>; 14] = [
            (&[], Some(Body::Absent)),
            (&[("Content-Length", "0")], Some(Body::Absent)),
            (&[("Content-Length", "5")], Some(Body::Held)),
            (&[("Content-Length", "1024")], Some(Body::Held)),
            (&[("Content-Length", "1025")], Some(Body::Coming(1025))),
            (&[("Content-Length", "5"), ("Expect", "100-continue")], Some(Body::Coming(5))),
            (&[chunked], Some(Body::Chunked)),
            (&[("Transfer-Encoding", "Chunked")], Some(Body::Chunked)),
            (&[("Content-Length", "+5")], None),
            (&[("Content-Length", "5, 5")], None),
            (&[("Content-Length", "5"), ("Content-Length", "6")], None),
            (&[("content-length", "5"), ("Content-Length", "5")], None),
            (&[chunked, ("Content-Length", "x")], None),
            (&[chunked, ("Connection", "Upgrade")], None),
        ];
        for (headers, expected) in table {
            let found = classify(headers);
            match expected {
                Some(expected) => assert_eq!(found, expected, "{headers:?}"),
                None => assert!(matches!(found, Body::Ambiguous(_)), "{headers:?}: {found:?}"),
            }
        }
        for coding in ["gzip", "gzip, chunked", "chunked, chunked", ""] {
            assert!(matches!(classify(&[("Transfer-Encoding", coding)]), Body::Ambiguous(_)), "{coding:?}");
        }
    }

    /// The library refuses some of these before we see them; what it lets through has to be refused here.
    fn classify(headers: &[(&str, &str)]) -> Body {
        let header = |(name, value): &(&str, &str)| Header::from_bytes(*name, *value).expect("a header");
        body_of(&headers.iter().map(header).collect::<Vec<_>>().into())
    }

    #[test]
    fn what_becomes_of_the_connection_is_the_callers_to_say() {
        assert_eq!(afterwards(&request(&[])), Afterwards::Stays);
        assert_eq!(afterwards(&request(&[("Connection", "Close")])), Afterwards::Closes);
        assert_eq!(afterwards(&request(&[("Connection", "Upgrade, HTTP2-Settings")])), Afterwards::Closes);
        let old = |headers: &[(&str, &str)]| {
            let mut request = TestRequest::new().with_http_version(HTTPVersion(1, 0));
            for (name, value) in headers {
                request = request.with_header(Header::from_bytes(name.as_bytes(), value.as_bytes()).expect("a header"));
            }
            afterwards(&request.into())
        };
        assert_eq!(old(&[]), Afterwards::Closes);
        assert_eq!(old(&[("Connection", "Keep-Alive")]), Afterwards::StaysAsAsked);
    }

    #[test]
    fn a_body_is_read_up_to_the_limit_and_no_further() {
        let read = |length: usize| read_from(&mut io::repeat(b'x').take(length as u64), None);
        assert_eq!(read(LARGEST_BODY).content.expect("it fits").len(), LARGEST_BODY);
        let larger = read(LARGEST_BODY + 1);
        assert_eq!((larger.content.expect_err("too large").status, larger.to_its_end), (413, true));
        let endless = read_from(&mut io::repeat(b'x'), None);
        assert_eq!((endless.content.expect_err("too large").status, endless.to_its_end), (413, false));
    }
}
