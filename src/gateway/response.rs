//! Responses about tasks: their results, and that they were accepted.

use crate::http::response::{Response, problem_members};
use crate::task::{ResultPeek, TaskResult};
use serde_json::{Map, Value, json};
use std::time::Duration;

impl Response {
    /// The response to a caller that waited for this result, from its record's value: 200, or 500 with the members of
    /// result and problem when the task failed for good.
    pub(crate) fn result(peek: &ResultPeek, value: &[u8]) -> Self {
        if peek.success {
            return Self::stored_result(peek, value);
        }
        let body = TaskResult::body_for_http(value);
        let mut members = problem_members(500, peek.error.as_deref().unwrap_or("the task failed"));
        if let Ok(own) = serde_json::from_slice::<Map<String, Value>>(&body) {
            // Members of the result do not replace those of the problem.
            own.into_iter().for_each(|(name, value)| {
                members.entry(name).or_insert(value);
            });
        }
        Self::problem_of(500, members).ran(run_of(peek))
    }

    /// The response to `GET /tasks/{id}`: 200, even if the task failed.
    pub(crate) fn stored_result(peek: &ResultPeek, value: &[u8]) -> Self {
        Self::bytes(200, "application/json", TaskResult::body_for_http(value).into_owned()).ran(run_of(peek))
    }

    /// 202: Kafka has the task.
    pub(crate) fn accepted(task_id: &str) -> Self {
        // The id is a UUID made by a gateway, so no part of the request gets into the header.
        Self::json(202, &json!({ "task_id": task_id, "state": "pending" }))
            .with("Location", format!("/tasks/{task_id}"))
    }
}

/// The time of the handler, if the result has it.
fn run_of(peek: &ResultPeek) -> Option<Duration> {
    peek.seconds.and_then(|seconds| Duration::try_from_secs_f64(seconds).ok())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::http::response::Afterwards;

    fn result(value: &[u8]) -> Response {
        Response::result(&ResultPeek::decode(value).unwrap(), value)
    }

    fn text(response: &Response) -> String {
        String::from_utf8(response.encode(false, Afterwards::Stays)).unwrap()
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
        let text = text(&response);
        let body: Value = serde_json::from_str(text.split_once("\r\n\r\n").unwrap().1).unwrap();
        assert_eq!((response.status(), &body["detail"], &body["status"]), (500, &json!("no luck"), &json!(500)));
        assert_eq!(
            (&body["success"], &body["task_id"], &body["type"]),
            (&json!(false), &json!("t"), &json!("about:blank"))
        );
        assert_eq!(Response::stored_result(&ResultPeek::decode(stored).unwrap(), stored).status(), 200);
    }

    #[test]
    fn response_with_a_result_has_the_times_that_are_known() {
        let timing = |seconds: &str, took: Option<u64>| {
            let stored = format!(r#"{{"task_id":"t","success":false{seconds},"type":"result"}}"#);
            let response = result(stored.as_bytes());
            let response = match took {
                Some(took) => response.took(Duration::from_millis(took)),
                None => response,
            };
            let text = text(&response);
            text.split_once("Server-Timing: ").map(|(_, rest)| rest.split("\r\n").next().unwrap().to_owned())
        };
        let run = r#","seconds":0.0125"#;
        assert_eq!(timing(run, Some(20)).as_deref(), Some("queue;dur=7.500, run;dur=12.500"));
        assert_eq!(timing(run, None).as_deref(), Some("run;dur=12.500"));
        assert_eq!(timing(run, Some(10)).as_deref(), Some("run;dur=12.500"), "the clocks disagree");
        assert_eq!(timing("", Some(20)), None, "a result of another program");
        assert_eq!(timing(r#","seconds":-1"#, Some(20)), None);
    }
}
