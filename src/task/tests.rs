//! Tests of each record as JSON, and of values that are not records.

use proptest::prelude::*;
use serde_json::json;
use uuid::Uuid;

use super::*;

fn text(bytes: &[u8]) -> &str {
    std::str::from_utf8(bytes).expect("JSON is UTF-8")
}

fn object(value: Value) -> Map<String, Value> {
    let Value::Object(members) = value else { panic!("an object") };
    members
}

#[test]
fn task_is_encoded_as_this_json() {
    let mut task =
        Task { task_id: "a-1".to_owned(), text: "ёж \"x\"\n".to_owned(), timestamp: 1703123456.25, work_ms: None };
    let json = r#"{"task_id":"a-1","text":"ёж \"x\"\n","timestamp":1703123456.25}"#;
    assert_eq!(text(&task.encode()), json);
    assert_eq!(Task::decode(None, Some(json.as_bytes())), Ok(task.clone()));
    task.work_ms = Some(250);
    let json = r#"{"task_id":"a-1","text":"ёж \"x\"\n","timestamp":1703123456.25,"work_ms":250}"#;
    assert_eq!(text(&task.encode()), json);
    assert_eq!(Task::decode(None, Some(json.as_bytes())), Ok(task));
}

#[test]
fn task_needs_only_an_id_and_a_text() {
    for json in [
        r#"{"task_id":"a","text":""}"#,
        r#" { "text" : "" , "task_id" : "a" } "#,
        r#"{"task_id":"a","text":"","work_ms":null,"of_a_later_version":{"deep":[1,{"er":null}]}}"#,
        r#"{"task_id":"\u0061","text":"","timestamp":0}"#,
    ] {
        let expected = Task { task_id: "a".to_owned(), text: String::new(), timestamp: 0.0, work_ms: None };
        assert_eq!(Task::decode(Some(b"other"), Some(json.as_bytes())), Ok(expected), "{json}");
    }
}

#[test]
fn record_that_is_not_a_task_is_reported_with_its_fault_and_id() {
    let long = "x".repeat(ID_LIMIT + 1);
    let of_long = format!(r#"{{"task_id":"{long}","text":"t"}}"#);
    let nested = format!(r#"{{"task_id":"a","text":"t","deep":{}"#, "[".repeat(1_000));
    let id_rule = "task_id is not 1 to 100 printable ASCII characters";
    // Key, value, beginning of the reason, and id.
    type Case<'a> = (Option<&'a [u8]>, Option<&'a [u8]>, &'a str, Option<&'a str>);
    let cases: &[Case<'_>] = &[
        (None, None, "the value is null", None),
        (Some(b"k"), None, "the value is null", Some("k")),
        (Some(b"k"), Some(b""), "the value is not JSON: EOF", Some("k")),
        (Some(b"k"), Some(b"not json"), "the value is not JSON: ", Some("k")),
        (Some(b"k"), Some(br#"{"task_id":"a","text":"t"#), "the value is not JSON: EOF", Some("k")),
        (Some(b"k"), Some(br#"{"task_id":"a","text":"t"} x"#), "the value is not JSON: trailing", Some("k")),
        (Some(b"k"), Some(nested.as_bytes()), "the value is not JSON: recursion limit", Some("k")),
        (Some(b"k"), Some(b"{\"task_id\":\"a\",\"text\":\"\xff\"}"), "the value is not UTF-8", Some("k")),
        (Some(b"\xff"), Some(b"\xff"), "the value is not UTF-8", None),
        (Some(b"k"), Some(br#"{"task_id":"a","text":"\ud800"}"#), "the value is not JSON: ", Some("k")),
        (Some(b"k"), Some(b"null"), "the value is not a JSON object", Some("k")),
        (Some(b"k"), Some(br#"["a","t"]"#), "the value is not a JSON object", Some("k")),
        (Some(b"k"), Some(b"{}"), "task_id is missing", Some("k")),
        (None, Some(br#"{"text":"t"}"#), "task_id is missing", None),
        (Some(b"k"), Some(br#"{"text":"t"}"#), "task_id is missing", Some("k")),
        (Some(b"k"), Some(br#"{"task_id":7,"text":"t"}"#), "task_id is not a string", Some("k")),
        (Some(b"k"), Some(br#"{"task_id":null,"text":"t"}"#), "task_id is not a string", Some("k")),
        (Some(b"k"), Some(br#"{"task_id":"","text":"t"}"#), id_rule, Some("k")),
        (Some(b"k"), Some(br#"{"task_id":"a\nb","text":"t"}"#), id_rule, Some("k")),
        (Some(b"k"), Some("{\"task_id\":\"ё\",\"text\":\"t\"}".as_bytes()), id_rule, Some("k")),
        (Some("ё".as_bytes()), Some(of_long.as_bytes()), id_rule, None),
        (Some(b"k"), Some(br#"{"task_id":"a"}"#), "text is missing", Some("a")),
        (Some(b"k"), Some(br#"{"task_id":"a","text":null}"#), "text is not a string", Some("a")),
        (None, Some(br#"{"task_id":"a","text":["secret"]}"#), "text is not a string", Some("a")),
        (None, Some(br#"{"task_id":"a","text":"t","timestamp":"secret"}"#), "timestamp is not a number", Some("a")),
        (None, Some(br#"{"task_id":"a","text":"t","work_ms":-1}"#), "work_ms is not a whole number", Some("a")),
        (None, Some(br#"{"task_id":"a","text":"t","work_ms":1.5}"#), "work_ms is not a whole number", Some("a")),
        (None, Some(br#"{"task_id":"a","text":"t","work_ms":"secret"}"#), "work_ms is not a whole number", Some("a")),
        (None, Some(br#"{"task_id":"a","text":"t","text":"secret"}"#), "a member occurs twice", Some("a")),
    ];
    for (key, value, reason, id) in cases {
        let shown = value.map(String::from_utf8_lossy);
        let bad = Task::decode(*key, *value).expect_err("no task");
        assert!(bad.reason.starts_with(reason), "{shown:?}: {}", bad.reason);
        assert!(!bad.reason.contains("secret"), "{shown:?}: {}", bad.reason);
        assert_eq!(bad.task_id.as_deref(), *id, "{shown:?}");
    }
}

#[test]
fn ids_are_printable_ascii() {
    let longest = "x".repeat(ID_LIMIT);
    for id in ["a", " ", "~", "0190163d-8694-739b-aea5-966c26f8ad91", &longest] {
        assert!(is_task_id(id), "{id:?}");
    }
    let longer = "x".repeat(ID_LIMIT + 1);
    for id in ["", "\t", "a\u{7f}", "ё", "🛑", &longer] {
        assert!(!is_task_id(id), "{id:?}");
    }
}

fn result(error: Option<&str>, output: Value) -> TaskResult {
    TaskResult {
        task_id: "a".to_owned(),
        success: error.is_none(),
        error: error.map(str::to_owned),
        output: object(output),
        processed_by: "worker_1".to_owned(),
        seconds: 0.000_123_456_7,
    }
}

#[test]
fn result_is_encoded_as_this_json() {
    let done = result(None, json!({"chars": 3, "top_words": [["the", 3]]}));
    let json = r#"{"task_id":"a","success":true,"chars":3,"top_words":[["the",3]],"processed_by":"worker_1","seconds":0.000123,"type":"result"}"#;
    assert_eq!(text(&done.encode()), json);
    let failed = result(Some("no \"luck\""), json!({}));
    let json = r#"{"task_id":"a","success":false,"error":"no \"luck\"","processed_by":"worker_1","seconds":0.000123,"type":"result"}"#;
    assert_eq!(text(&failed.encode()), json);
}

#[test]
fn handler_cannot_replace_members_of_the_worker() {
    let output = json!({"type": "x", "task_id": "b", "success": false, "error": "e", "processed_by": "me", "seconds": 9, "mine": 1});
    let json =
        r#"{"task_id":"a","success":true,"mine":1,"processed_by":"worker_1","seconds":0.000123,"type":"result"}"#;
    assert_eq!(text(&result(None, output).encode()), json);
}

#[test]
fn result_peek_is_decoded_from_a_result() {
    for original in [result(None, json!({"chars": 3, "deep": {"success": false}})), result(Some("why"), json!({}))] {
        let peek = ResultPeek::decode(&original.encode()).expect("a result");
        assert_eq!((peek.task_id, peek.success, peek.error), (original.task_id, original.success, original.error));
    }
    for bad in ["[]", "{}", r#"["a", true, null]"#, r#"{"task_id":"a"}"#] {
        assert_eq!(ResultPeek::decode(bad.as_bytes()), None, "{bad}");
    }
}

#[test]
fn callers_get_a_result_without_its_type() {
    for (value, body) in [
        // As this program writes it, and as others may.
        (r#"{"task_id":"a","seconds":0.1,"type":"result"}"#, r#"{"task_id":"a","seconds":0.1}"#),
        (r#"{"type":"result","task_id":"a"}"#, r#"{"task_id":"a"}"#),
        (r#"{"task_id":"a", "type": "result" }"#, r#"{"task_id":"a"}"#),
        (r#"{"task_id":"a","type":"result"} "#, r#"{"task_id":"a"}"#),
        (r#"{"type":"result"}"#, "{}"),
        // Only the type of the result itself is removed.
        (r#"{"a":{"type":"result"},"type":"result"}"#, r#"{"a":{"type":"result"}}"#),
        (r#"{"a":"x,\"type\":\"result\"}","type":"result"}"#, r#"{"a":"x,\"type\":\"result\"}"}"#),
        (r#"{"a":",\"type\":\"result\"}"}"#, r#"{"a":",\"type\":\"result\"}"}"#),
        // A value that is not an object stays unchanged.
        ("not json", "not json"),
    ] {
        assert_eq!(text(&TaskResult::body_for_http(value.as_bytes())), body, "{value}");
    }
}

fn status() -> WorkerStatus {
    WorkerStatus {
        worker_id: "worker_1".to_owned(),
        status: WorkerState::ShutdownStarted,
        timestamp: 12.5,
        current_task: Some("a".to_owned()),
        current_tasks: vec!["a".to_owned(), "b".to_owned()],
        current_task_seconds: Vec::new(),
        instance: Uuid::from_u128(1),
        started_at: 2.5,
        stop_deadline: None,
        holding_back: false,
        receipt: None,
    }
}

#[test]
fn status_record_is_encoded_as_this_json() {
    let json = r#"{"type":"worker_status","worker_id":"worker_1","status":"shutdown_started","timestamp":12.5,"current_task":"a","current_tasks":["a","b"],"instance":"00000000-0000-0000-0000-000000000001","started_at":2.5}"#;
    assert_eq!(text(&status().encode()), json);
    assert_eq!(ResultsRecord::decode(Some(json.as_bytes())), ResultsRecord::Status(Box::new(status())));
    let receipt = Receipt {
        worker_id: "worker_1".to_owned(),
        signal: "SIGTERM".to_owned(),
        outcome: "drained".to_owned(),
        phases_ms: object(json!({"waiting": 7, "closing": 2})),
        tasks_finished: 1,
        tasks_returned: 2,
        tasks_abandoned: vec!["a".to_owned()],
        exit_code: 3,
    };
    let json = r#"{"worker_id":"worker_1","signal":"SIGTERM","outcome":"drained","phases_ms":{"waiting":7,"closing":2},"tasks_finished":1,"tasks_returned":2,"tasks_abandoned":["a"],"exit_code":3}"#;
    assert_eq!(receipt.to_line(), json);
    let last = WorkerStatus {
        status: WorkerState::ShutdownCompleted,
        current_task: None,
        current_tasks: Vec::new(),
        current_task_seconds: Vec::new(),
        stop_deadline: Some(20.5),
        holding_back: true,
        receipt: Some(receipt),
        ..status()
    };
    let json = format!(
        r#"{{"type":"worker_status","worker_id":"worker_1","status":"shutdown_completed","timestamp":12.5,"current_task":null,"current_tasks":[],"instance":"00000000-0000-0000-0000-000000000001","started_at":2.5,"stop_deadline":20.5,"holding_back":true,"receipt":{json}}}"#
    );
    assert_eq!(text(&last.encode()), json);
    assert_eq!(ResultsRecord::decode(Some(json.as_bytes())), ResultsRecord::Status(Box::new(last)));
}

#[test]
fn status_record_needs_only_the_members_of_the_first_version() {
    let json = br#"{"type":"worker_status","worker_id":"w","status":"worker_started","timestamp":1,"current_task":null,"later":1}"#;
    let ResultsRecord::Status(status) = ResultsRecord::decode(Some(json)) else { panic!("a status") };
    assert_eq!((status.status, status.timestamp, status.instance), (WorkerState::Started, 1.0, Uuid::nil()));
    let receipt = br#"{"type":"worker_status","worker_id":"w","status":"shutdown_completed","timestamp":1,"receipt":{"exit_code":3}}"#;
    let ResultsRecord::Status(status) = ResultsRecord::decode(Some(receipt)) else { panic!("a status") };
    assert_eq!(status.receipt.map(|receipt| receipt.exit_code), Some(3));
}

#[test]
fn claim_is_encoded_as_this_json() {
    let claim = Claim { task_id: "a".to_owned(), text_hash: "ff".to_owned(), gateway: "g".to_owned(), timestamp: 1.5 };
    let json = r#"{"type":"claim","task_id":"a","text_hash":"ff","gateway":"g","timestamp":1.5}"#;
    assert_eq!(text(&claim.encode()), json);
    assert_eq!(ResultsRecord::decode(Some(json.as_bytes())), ResultsRecord::Claim(claim));
}

#[test]
fn records_of_results_are_distinguished_by_type() {
    let peek = ResultPeek { task_id: "a".to_owned(), success: false, error: Some("why".to_owned()), seconds: None };
    let json = br#"{"task_id":"a","success":false,"error":"why","more":[1],"type":"result"}"#;
    assert_eq!(ResultsRecord::decode(Some(json)), ResultsRecord::Result(peek.clone()));
    assert_eq!(ResultsRecord::decode_kind(KIND_RESULT.as_bytes(), json), ResultsRecord::Result(peek));
    assert_eq!(ResultsRecord::decode(Some(br#"{"type":"weather","task_id":"a"}"#)), ResultsRecord::Other);
    assert_eq!(ResultsRecord::decode_kind(b"\xff", json), ResultsRecord::Other);
}

#[test]
fn records_of_results_that_cannot_be_read_are_bad() {
    let cases: &[(Option<&[u8]>, &str)] = &[
        (None, "null"),
        (Some(b""), "not a JSON object with a type"),
        (Some(b"\xff"), "not a JSON object with a type"),
        (Some(b"{}"), "not a JSON object with a type"),
        (Some(br#"["result"]"#), "not a JSON object with a type"),
        (Some(br#"{"type":7}"#), "not a JSON object with a type"),
        (Some(br#"{"type":"result"}"#), "no task_id or no success"),
        (Some(br#"{"type":"result","task_id":"","success":true}"#), "100 printable"),
        (Some(br#"{"type":"result","task_id":"a","success":"yes"}"#), "no success"),
        (Some(br#"{"type":"worker_status","worker_id":"w"}"#), "lacks a member"),
        (Some(br#"{"type":"worker_status","worker_id":"w","status":"asleep","timestamp":1}"#), "of a wrong type"),
        (
            Some(br#"{"type":"worker_status","worker_id":"a\nb","status":"worker_started","timestamp":1}"#),
            "100 printable",
        ),
        (Some(br#"{"type":"claim","task_id":"a"}"#), "lacks a member"),
    ];
    for (value, part) in cases {
        let ResultsRecord::Bad(reason) = ResultsRecord::decode(*value) else { panic!("{part}: not bad") };
        assert!(reason.contains(part), "{part}: {reason}");
    }
}

#[test]
fn stopped_start_is_encoded_as_this_json() {
    let stopped = TaskStopped { task_id: "a".to_owned(), worker_id: "w".to_owned() };
    let json = r#"{"type":"task_stopped","task_id":"a","worker_id":"w"}"#;
    assert_eq!(text(&stopped.encode()), json);
    assert_eq!(StartsRecord::decode(json.as_bytes()), Some(StartsRecord::Stopped(stopped)));
}

#[test]
fn starts_are_encoded_as_this_json() {
    let started = TaskStarted { task_id: "a".to_owned(), delivery: 2, worker_id: "w".to_owned() };
    let json = r#"{"type":"task_started","task_id":"a","delivery":2,"worker_id":"w"}"#;
    assert_eq!(text(&started.encode()), json);
    assert_eq!(StartsRecord::decode(json.as_bytes()), Some(StartsRecord::Started(started)));
    let failed =
        TaskFailed { task_id: "a".to_owned(), delivery: 2, worker_id: "w".to_owned(), error: "why".to_owned() };
    let json = r#"{"type":"task_failed","task_id":"a","delivery":2,"worker_id":"w","error":"why"}"#;
    assert_eq!(text(&failed.encode()), json);
    assert_eq!(StartsRecord::decode(json.as_bytes()), Some(StartsRecord::Failed(failed)));
    assert_eq!(StartsRecord::decode(br#"{"type":"task_paused","task_id":"a"}"#), None);
    assert_eq!(StartsRecord::decode(b"\xff"), None);
}

#[test]
fn the_clock_is_after_2020() {
    assert!(unix_now() > 1_577_836_800.0);
}

proptest! {
    #[test]
    fn encoded_task_is_decoded_to_the_same_task(id in "[ -~]{1,100}", words in any::<String>(), eighths in any::<u32>(), work in any::<Option<u64>>()) {
        let task = Task { task_id: id, text: words, timestamp: f64::from(eighths) / 8.0, work_ms: work };
        prop_assert_eq!(Task::decode(None, Some(&task.encode())), Ok(task));
    }

    #[test]
    fn decoding_any_bytes_does_not_panic(key in any::<Option<Vec<u8>>>(), value in any::<Option<Vec<u8>>>()) {
        let _ = ResultsRecord::decode(value.as_deref());
        let _ = value.as_deref().map(StartsRecord::decode);
        if let Err(bad) = Task::decode(key.as_deref(), value.as_deref()) {
            prop_assert!(bad.task_id.is_none_or(|id| is_task_id(&id)));
        }
    }

    /// The fast and the slow way to the body agree.
    #[test]
    fn body_is_the_result_without_its_type(error in any::<Option<String>>(), name in any::<String>(), member in any::<String>()) {
        let result = result(error.as_deref(), json!({ name: member, "last": {"type": "result"} }));
        let value = result.encode();
        let mut members: Map<String, Value> = serde_json::from_slice(&value).expect("JSON");
        members.shift_remove("type");
        let body: Map<String, Value> = serde_json::from_slice(&TaskResult::body_for_http(&value)).expect("JSON");
        prop_assert_eq!(body, members);
    }
}

#[test]
fn result_gets_the_first_header_of_each_carried_name_unless_it_is_long() {
    let header = |name: &str, value: &str| (name.to_owned(), Some(Bytes::copy_from_slice(value.as_bytes())));
    let long = "x".repeat(LONGEST_CARRIED + 1);
    let headers = [
        header("tracestate", &long[1..]),
        header("other", "o"),
        header("traceparent", "first"),
        header("traceparent", "second"),
    ];
    let of = |headers: &[(String, Option<Bytes>)]| {
        let carried = carried(headers).into_iter();
        carried.map(|(name, value)| (name.into_owned(), value)).collect::<Vec<_>>()
    };
    assert_eq!(of(&headers), [header("traceparent", "first"), header("tracestate", &long[1..])]);
    assert_eq!(of(&[header("traceparent", &long), ("tracestate".to_owned(), None)]), [("tracestate".to_owned(), None)]);
    assert!(of(&[]).is_empty());
}
