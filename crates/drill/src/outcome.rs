//! The outcome of a request: turns a response, or its absence, into one of six outcomes.
//!
//! Pure. [`Texts`] checks the content of a result; the other outcomes follow from the promises of the gateway for each
//! status. Called by the senders (`POST /analyze`) and by the asker (`GET /tasks/{id}`).

use serde_json::Value;

use super::fact::{Answer, Kind};
use super::http::{Failure, Response};
use super::texts::Texts;

/// The outcome of posting the text of request `number`.
pub(super) fn of_post(texts: &Texts, number: u64, answer: Result<Response, Failure>) -> Answer {
    let response = match answer {
        Ok(response) => response,
        Err(Failure::NotSent(why)) => {
            return Answer { why: Some(format!("nothing sent: {why}")), ..Answer::of(Kind::Refused) };
        }
        Err(Failure::Cut(why)) => return Answer { why: Some(why), ..Answer::of(Kind::Unknown) },
    };
    let body = json(&response);
    let task_id = text_of(&body, "task_id");
    let status = response.status;
    let why = text_of(&body, "detail").map(|detail| format!("{status} {detail}")).or_else(|| Some(status.to_string()));
    let retry_after = response.retry_after;
    let said = |outcome, task_id| Answer { task_id, status: Some(status), why, retry_after, ..Answer::of(outcome) };
    let asynchronous = texts.special(number).asynchronous;
    match (status, task_id) {
        (200, task_id) if asynchronous => {
            Answer { why: Some("200 instead of 202 to respond-async".to_owned()), ..said(Kind::Wrong, task_id) }
        }
        (202, task_id) if !asynchronous => {
            Answer { why: Some("202 without respond-async".to_owned()), ..said(Kind::Wrong, task_id) }
        }
        (200 | 500, task_id) if body.get("success").is_some() => {
            Answer { status: Some(status), ..of_result(texts, number, task_id.unwrap_or_default(), &body) }
        }
        (200, task_id) => Answer { why: Some("the response has no result".to_owned()), ..said(Kind::Wrong, task_id) },
        // A gateway sends 202 and 504 only after Kafka has acknowledged the task.
        (202 | 504, task_id @ Some(_)) => said(Kind::Accepted, task_id),
        (status, None) if status == 503 || (400..500).contains(&status) => said(Kind::Refused, None),
        (_, task_id) => said(Kind::Unknown, task_id),
    }
}

/// The outcome of a lookup of a task; `None` while there is no result.
pub(super) fn of_lookup(texts: &Texts, number: u64, task_id: &str, response: &Response) -> Option<Answer> {
    let body = json(response);
    is_result(response).then(|| Answer { status: Some(200), ..of_result(texts, number, task_id.to_owned(), &body) })
}

fn of_result(texts: &Texts, number: u64, task_id: String, body: &Value) -> Answer {
    let worker = text_of(body, "processed_by");
    let answer = |outcome, why| Answer {
        task_id: Some(task_id.clone()).filter(|id| !id.is_empty()),
        worker,
        digest: Some(digest(body)),
        why,
        ..Answer::of(outcome)
    };
    if body.get("success") == Some(&Value::Bool(false)) {
        return answer(Kind::Failed, text_of(body, "error"));
    }
    if body.get("task_id").and_then(Value::as_str) != Some(task_id.as_str()) || task_id.is_empty() {
        return answer(Kind::Wrong, Some("the result is of another task".to_owned()));
    }
    match texts.fault(number, body) {
        None => answer(Kind::Answered, None),
        Some(fault) => answer(Kind::Wrong, Some(fault)),
    }
}

/// A checksum of a whole body.
pub(super) fn mark(body: &[u8]) -> String {
    format!("{:08x}", crc32c::crc32c(body))
}

/// Whether the body of a lookup is a result.
pub(super) fn is_result(response: &Response) -> bool {
    response.status == 200 && json(response).get("success").is_some()
}

/// A checksum of the content of a result, independent of the worker and of the time that the task took.
pub(super) fn digest(result: &Value) -> String {
    /// Members that differ between runs of a task, or that only problem documents and records have.
    const ASIDE: [&str; 7] = ["processed_by", "seconds", "type", "title", "status", "detail", "instance"];
    let members = result.as_object().into_iter().flatten().filter(|(name, _)| !ASIDE.contains(&name.as_str()));
    let said: std::collections::BTreeMap<&String, &Value> = members.collect();
    format!("{:08x}", crc32c::crc32c(format!("{said:?}").as_bytes()))
}

fn json(response: &Response) -> Value {
    serde_json::from_slice(&response.body).unwrap_or(Value::Null)
}

fn text_of(body: &Value, name: &str) -> Option<String> {
    body.get(name).and_then(Value::as_str).map(str::to_owned)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::super::plan::{LoadPlan, Shares};
    use super::super::texts::Checked;
    use super::*;

    fn texts() -> Texts {
        let special = Shares { keyed: 0, asynchronous: 0, poison: 0 };
        Texts::new(7, 42, &LoadPlan { special, ..LoadPlan::default() }, Checked::Analysis)
    }

    fn post(status: u16, body: &Value) -> Answer {
        of_post(&texts(), 1, Ok(Response { status, retry_after: status == 503, body: body.to_string().into_bytes() }))
    }

    /// The correct result of request 1, made by the code under test.
    fn result() -> Value {
        let mut result =
            serde_json::Map::from_iter([("task_id".to_owned(), json!("t")), ("success".to_owned(), json!(true))]);
        result.extend(lastcall::analysis::TextCounts::of(&texts().text(1)).into_members());
        result.extend([("processed_by".to_owned(), json!("w")), ("seconds".to_owned(), json!(0.1))]);
        Value::Object(result)
    }

    #[test]
    fn results_are_answered_wrong_or_failed() {
        let answer = post(200, &result());
        assert_eq!(
            (answer.outcome, answer.task_id.as_deref(), answer.worker.as_deref()),
            (Kind::Answered, Some("t"), Some("w"))
        );
        let mut wrong = result();
        wrong["words"] = json!(0);
        let answer = post(200, &wrong);
        assert_eq!(answer.outcome, Kind::Wrong);
        assert!(answer.why.is_some_and(|why| why.starts_with("words is 0, expected ")));
        assert_eq!(post(200, &json!({})).outcome, Kind::Wrong);
        let failed = post(500, &json!({"task_id": "t", "status": 500, "success": false, "error": "no luck"}));
        assert_eq!((failed.outcome, failed.why.as_deref()), (Kind::Failed, Some("no luck")));
    }

    #[test]
    fn a_refusal_cannot_have_left_a_task() {
        let refused = post(503, &json!({"detail": "full"}));
        assert_eq!((refused.outcome, refused.why.as_deref()), (Kind::Refused, Some("503 full")));
        assert!(refused.retry_after);
        assert_eq!(post(400, &json!({})).outcome, Kind::Refused);
        assert_eq!(of_post(&texts(), 1, Err(Failure::NotSent("refused".to_owned()))).outcome, Kind::Refused);
    }

    #[test]
    fn other_responses_need_a_lookup() {
        for (answer, outcome, task_id) in [
            (post(504, &json!({"task_id": "t", "detail": "late"})), Kind::Accepted, Some("t")),
            (post(503, &json!({"task_id": "t", "detail": "x"})), Kind::Unknown, Some("t")),
            (post(502, &json!({"detail": "proxy"})), Kind::Unknown, None),
            (of_post(&texts(), 1, Err(Failure::Cut("reset".to_owned()))), Kind::Unknown, None),
        ] {
            assert_eq!((answer.outcome, answer.task_id.as_deref()), (outcome, task_id), "{answer:?}");
        }
    }

    #[test]
    fn a_lookup_has_an_outcome_only_with_a_result() {
        let answer =
            |status, body: &Value| Response { status, retry_after: false, body: body.to_string().into_bytes() };
        let found = |id, response: &Response| of_lookup(&texts(), 1, id, response).map(|answer| answer.outcome);
        assert_eq!(found("t", &answer(200, &result())), Some(Kind::Answered));
        assert_eq!(found("u", &answer(200, &result())), Some(Kind::Wrong));
        assert_eq!(found("t", &answer(200, &json!({"task_id": "t", "state": "pending"}))), None);
        assert_eq!(found("t", &answer(404, &json!({}))), None);
    }

    #[test]
    fn a_digest_depends_on_the_content_and_not_on_the_worker() {
        let mut other = result();
        other["processed_by"] = json!("v");
        other["seconds"] = json!(9);
        other["type"] = json!("result");
        assert_eq!(digest(&other), digest(&result()));
        other["words"] = json!(0);
        assert_ne!(digest(&other), digest(&result()));
    }
}
