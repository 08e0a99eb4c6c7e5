//! Responses: status, headers and body, as the bytes of one HTTP/1.1 response.
//!
//! Errors are problem documents (RFC 9457). No part of a request is copied into a header.

use crate::task::{ResultPeek, TaskResult};
use serde_json::{Map, Value, json};
use std::io::Cursor;
use std::time::Duration;
use tiny_http::{HTTPVersion, Header, StatusCode};

const JSON: &str = "application/json";
const PROBLEM: &str = "application/problem+json";
/// The Retry-After of a refused request, unless a better value is known.
const RETRY_AFTER: Duration = Duration::from_secs(1);

/// The state of the connection after a response (RFC 9112 section 9.3).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Afterwards {
    /// It stays open, the default of HTTP/1.1.
    Stays,
    /// It stays open, which a response to HTTP/1.0 must state.
    StaysAsAsked,
    /// This is its last response.
    Closes,
}

/// One response.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Response {
    status: u16,
    content_type: &'static str,
    headers: Vec<(&'static str, String)>,
    body: Vec<u8>,
}

impl Response {
    /// A JSON value.
    pub(super) fn json(status: u16, value: &Value) -> Self {
        Self::bytes(status, JSON, value.to_string().into_bytes())
    }

    /// A body of any type.
    pub(super) fn bytes(status: u16, content_type: &'static str, body: Vec<u8>) -> Self {
        Self { status, content_type, headers: Vec::new(), body }
    }

    /// A problem document, with `task_id` if given.
    pub(super) fn problem(status: u16, detail: &str, task_id: Option<&str>) -> Self {
        let mut members = problem_members(status, detail);
        if let Some(task_id) = task_id {
            members.insert("task_id".to_owned(), task_id.into());
        }
        Self::bytes(status, PROBLEM, Value::Object(members).to_string().into_bytes())
    }

    /// 503 with a Retry-After of a second.
    pub(super) fn unavailable(detail: &str, task_id: Option<&str>) -> Self {
        Self::unavailable_for(detail, task_id, RETRY_AFTER)
    }

    /// 503 with this Retry-After, in whole seconds, at least 1.
    pub(super) fn unavailable_for(detail: &str, task_id: Option<&str>, retry_after: Duration) -> Self {
        Self::problem(503, detail, task_id).with("Retry-After", retry_after.as_secs().max(1).to_string())
    }

    /// The response to a caller that waited for this result, from its record's value: 200, or 500 with the members of
    /// result and problem when the task failed for good.
    pub(super) fn result(peek: &ResultPeek, value: &[u8]) -> Self {
        let body = TaskResult::body_for_http(value);
        if peek.success {
            return Self::bytes(200, JSON, body.into_owned());
        }
        let mut members = problem_members(500, peek.error.as_deref().unwrap_or("the task failed"));
        if let Ok(own) = serde_json::from_slice::<Map<String, Value>>(&body) {
            // Members of the result do not replace those of the problem.
            own.into_iter().for_each(|(name, value)| {
                members.entry(name).or_insert(value);
            });
        }
        Self::bytes(500, PROBLEM, Value::Object(members).to_string().into_bytes())
    }

    /// The response to `GET /tasks/{id}`: 200, even if the task failed.
    pub(super) fn stored_result(value: &[u8]) -> Self {
        Self::bytes(200, JSON, TaskResult::body_for_http(value).into_owned())
    }

    /// 202: Kafka has the task.
    pub(super) fn accepted(task_id: &str) -> Self {
        // The id is a UUID made by a gateway, so no part of the request gets into the header.
        Self::json(202, &json!({ "task_id": task_id, "state": "pending" }))
            .with("Location", format!("/tasks/{task_id}"))
    }

    /// Adds a header.
    pub(super) fn with(mut self, name: &'static str, value: String) -> Self {
        self.headers.push((name, value));
        self
    }

    /// HTTP status.
    pub(super) fn status(&self) -> u16 {
        self.status
    }

    /// The bytes of the response. `head_only`: without its body, for HEAD.
    pub(super) fn encode(&self, head_only: bool, afterwards: Afterwards) -> Vec<u8> {
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
        // The library writes this header only in its own server; here it comes first.
        let connection: &[u8] = match afterwards {
            Afterwards::Stays => b"",
            Afterwards::StaysAsAsked => b"Connection: keep-alive\r\n",
            Afterwards::Closes => b"Connection: close\r\n",
        };
        let begin = bytes.windows(2).position(|it| it == b"\r\n").map_or(0, |end| end + 2);
        bytes.splice(begin..begin, connection.iter().copied());
        bytes
    }
}

fn problem_members(status: u16, detail: &str) -> Map<String, Value> {
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

    fn result(value: &[u8]) -> Response {
        Response::result(&ResultPeek::decode(value).unwrap(), value)
    }

    fn text(response: &Response) -> String {
        String::from_utf8(response.encode(false, Afterwards::Stays)).unwrap()
    }

    #[test]
    fn problem_has_the_members_of_the_rfc() {
        let response = Response::unavailable_for("no room", Some("t-1"), Duration::from_secs(2));
        let text = text(&response);
        assert!(text.starts_with("HTTP/1.1 503 Service Unavailable\r\n"), "{text}");
        assert!(text.contains("Content-Type: application/problem+json\r\n") && text.contains("Retry-After: 2\r\n"));
        let body: Value = serde_json::from_str(text.split("\r\n\r\n").nth(1).unwrap()).unwrap();
        let expected = json!({"type": "about:blank", "title": "Service Unavailable", "status": 503, "detail": "no room", "task_id": "t-1"});
        assert_eq!(body, expected);
    }

    #[test]
    fn result_is_returned_without_its_type() {
        let stored = br#"{"task_id":"t","success":true,"chars":3,"processed_by":"w","seconds":0.1,"type":"result"}"#;
        let text = text(&result(stored));
        assert!(text.starts_with("HTTP/1.1 200 OK\r\n"), "{text}");
        assert!(
            text.ends_with(r#"{"task_id":"t","success":true,"chars":3,"processed_by":"w","seconds":0.1}"#),
            "{text}"
        );
    }

    #[test]
    fn failed_task_is_a_problem_with_the_members_of_the_result() {
        let stored =
            br#"{"task_id":"t","success":false,"error":"no luck","status":"ok","seconds":0.1,"type":"result"}"#;
        let response = result(stored);
        let body: Value = serde_json::from_slice(&response.body).unwrap();
        assert_eq!((response.status, &body["detail"], &body["status"]), (500, &json!("no luck"), &json!(500)));
        assert_eq!(
            (&body["success"], &body["task_id"], &body["type"]),
            (&json!(false), &json!("t"), &json!("about:blank"))
        );
        assert_eq!(Response::stored_result(stored).status, 200);
    }

    #[test]
    fn response_to_head_has_a_length_and_no_body_and_the_last_response_closes() {
        let response = Response::json(200, &json!({"a": 1}));
        let head = String::from_utf8(response.encode(true, Afterwards::Closes)).unwrap();
        assert!(head.contains("Content-Length: 7\r\n") && head.contains("Connection: close\r\n"), "{head}");
        assert!(head.ends_with("\r\n\r\n"));
    }
}
