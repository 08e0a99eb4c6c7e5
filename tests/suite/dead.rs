//! Dead letters: the program `dead` lists, shows, replays and drops them, and the gateway lists them at `/dead`.

mod replays;

use std::{sync::Arc, time::Duration};

use bytes::Bytes;
use devbroker::{Action, Denial, Fault, Kind, Operation, Resource};
use kafka_protocol::protocol::StrBytes;
use kafka_share::ProducerRecord;
use nix::sys::signal::Signal;
use serde_json::{Value, json};

use crate::{
    client::{cluster, deliver},
    support::{
        Gateway, Rig, SOON, START,
        admin::{self, Of},
        broker, eventually, eventually_some,
        program::{Launch, Program},
        session::{self, REJECT, Session},
        started,
        wire::Wire,
    },
};

/// Longer than a claim to a letter holds, on a busy machine.
const CLAIM_ENDS: Duration = Duration::from_secs(40);

pub fn dead(rig: &Rig, arguments: &[&str]) -> Launch {
    let launch = rig.launch("dead", env!("CARGO_BIN_EXE_dead")).env("USER", "ann");
    arguments.iter().fold(launch, |launch, argument| launch.arg(*argument))
}

/// Runs `dead` to its end. Returns its exit code and its output.
fn run(rig: &Rig, arguments: &[&str]) -> (i32, String) {
    let mut program = dead(rig, arguments).start();
    let code = program.wait(START + CLAIM_ENDS).code.expect("no signal ended it");
    (code, output(&program))
}

pub fn output(program: &Program) -> String {
    program.lines().into_iter().map(|line| line.text + "\n").collect()
}

/// The document of `dead list --json`.
fn listed(rig: &Rig, arguments: &[&str]) -> Value {
    let (code, output) = run(rig, &[&["list", "--json"], arguments].concat());
    assert_eq!(code, 0, "{output}");
    serde_json::from_str(&output).expect("JSON")
}

/// The states of the letters of `dead list --all`, by their positions.
fn states(rig: &Rig) -> Vec<(String, String)> {
    let all = listed(rig, &["--all"]);
    let text = |value: &Value| value.as_str().expect("a text").to_owned();
    all["letters"].as_array().expect("letters").iter().map(|it| (text(&it["letter"]), text(&it["state"]))).collect()
}

/// Writes dead letters with these ids, headers and no other facts.
pub fn bury(rig: &Rig, ids: &[&str], headers: &[(&'static str, &str)]) {
    let letter = |id: &&str| ProducerRecord {
        topic: Arc::from(format!("{}.dead", rig.tasks())),
        key: Some(Bytes::from((*id).to_owned())),
        value: Some(json!({ "task_id": id, "text": "two words", "timestamp": 1.5 }).to_string().into()),
        headers: headers.iter().map(|(name, value)| ((*name).into(), Some(Bytes::from((*value).to_owned())))).collect(),
    };
    deliver(&cluster(rig), ids.iter().map(letter).collect());
}

pub const REASON: (&str, &str) = ("lastcall-reason", "dead-lettered after 5 starts; the last error was: disk full");

/// The keys of the replayed records on `tasks`.
fn replayed(rig: &Rig) -> Vec<String> {
    let records = admin::records(rig.broker().address(), &rig.tasks());
    let has = |name: &'static str| {
        move |it: &kafka_protocol::records::Record| it.headers.contains_key(&StrBytes::from_static_str(name))
    };
    let text = |key: Option<Bytes>| String::from_utf8(key.expect("a key").to_vec()).expect("UTF-8");
    records.into_iter().filter(has("lastcall-replay")).map(|record| text(record.key)).collect()
}

#[test]
fn poison_task_is_listed_shown_replayed_and_answered_once_its_handler_is_mended() {
    let rig = Rig::shared("dead-replay");
    let gateways = [(); 2].map(|()| Gateway::start(rig.gateway().env("ANSWER_TIMEOUT", "60s")));
    let mut worker = started(&rig.obedient_worker("broken").env("MAX_DELIVERIES", 2));
    let (key, body) = ([("Idempotency-Key", "order 17")], json!({ "text": "retry not yet" }));
    let task = gateways[0].analyze_with(&key, &body).assert_problem(500)["task_id"].as_str().expect("an id").to_owned();
    let path = format!("/tasks/{task}");
    worker.ends_at(Signal::SIGTERM, 0);

    let letters = eventually_some(SOON, "the letter is listed", || {
        let found = listed(&rig, &[]);
        (found["open"] == 1).then_some(found)
    });
    let letter = &letters["letters"][0];
    let facts = ["task_id", "letter", "reason_class", "deliveries", "worker", "state"].map(|name| &letter[name]);
    assert_eq!(facts, [&json!(task), &json!("0:0"), &json!("failed"), &json!(3), &json!("broken"), &json!("open")]);
    for gateway in &gateways {
        eventually(SOON, "the gateway lists the same", || gateway.get("/dead").json() == letters);
    }
    let (code, shown) = run(&rig, &["show", &task]);
    assert_eq!(code, 0, "{shown}");
    for text in ["retry not yet", "__dlq.errors.delivery.count: 3", &format!("__dlq.errors.topic: {}", rig.tasks())] {
        assert!(shown.contains(text), "{text} is not in {shown}");
    }

    let (code, said) = run(&rig, &["replay", &task]);
    assert!(code == 0 && said.starts_with(&format!("{task}: replayed")), "{said}");
    let pending = json!({ "task_id": task, "state": "pending" });
    for gateway in &gateways {
        eventually(SOON, "the task is pending again", || gateway.get(&path).json() == pending);
    }
    // The shipped handler does not know the order.
    let _worker = rig.start_worker("mended");
    for gateway in &gateways {
        eventually(SOON, "the new result is served", || gateway.get(&path).json()["words"] == 3);
        eventually(SOON, "no open letter is listed", || gateway.get("/dead").json()["open"] == 0);
        let metrics = gateway.get("/metrics").text();
        assert!(metrics.contains("lastcall_results_duplicate_total 0\n"), "{metrics}");
    }
    assert_eq!(gateways[1].analyze_with(&key, &body).json()["words"], 3, "the key has the new result");
    let later = rig.start_gateway();
    assert_eq!(later.get(&path).json()["words"], 3, "a new gateway serves the new result");
    assert_eq!(later.analyze_with(&key, &body).json()["words"], 3);
    let starts = rig.audit().starts;
    assert_eq!(starts.last().expect("a record")["type"], "task_replayed", "{starts:?}");
    assert_eq!(listed(&rig, &[])["open"], 0);
    let all = listed(&rig, &["--all"]);
    assert_eq!(all["letters"][0]["state"], "replayed");
    assert!(all["letters"][0]["operator"].as_str().is_some_and(|operator| operator.starts_with("ann@")), "{all}");
    let (code, said) = run(&rig, &["replay", &task]);
    assert!(code == 1 && said.contains("has replayed it already"), "{said}");
}

#[test]
fn task_that_fails_after_its_replay_has_another_letter_and_can_be_replayed_again() {
    let rig = Rig::shared("dead-again");
    let gateway = rig.start_gateway();
    let mut worker = started(&rig.obedient_worker("broken").env("MAX_DELIVERIES", 2));
    let task = gateway.submit("retry not yet", Duration::ZERO);
    let letters = |count: usize| {
        eventually(SOON, "the task has its letters", || states(&rig).len() == count);
    };
    letters(1);
    assert_eq!(run(&rig, &["replay", &task]).0, 0);
    letters(2);
    let starts = worker.lines_with(&format!("handler started {task} ")).len();
    assert_eq!(starts, 4, "two starts before the replay, and two after it");
    worker.ends_at(Signal::SIGTERM, 0);
    let (code, said) = run(&rig, &["replay", "--reason", "failed"]);
    assert_eq!((code, said.lines().count()), (0, 1), "{said}");
    let _worker = rig.start_worker("mended");
    eventually(SOON, "the result of the second replay is served", || {
        gateway.get(&format!("/tasks/{task}")).json()["words"] == 3
    });
}

#[test]
fn replayed_task_that_kafka_drops_is_produced_again() {
    let rig = Rig::shared("dead-dropped");
    let gateway = Gateway::start(rig.gateway().env("MISSING_AFTER", "2s"));
    let mut worker = started(&rig.obedient_worker("broken").env("MAX_DELIVERIES", 2));
    let task = gateway.submit("retry not yet", Duration::ZERO);
    eventually(SOON, "the letter is listed", || listed(&rig, &[])["open"] == 1);
    worker.ends_at(Signal::SIGTERM, 0);
    assert_eq!(run(&rig, &["replay", &task]).0, 0);
    admin::skip_to_end(rig.broker().address(), &rig.group(), &rig.tasks());
    let _worker = rig.start_worker("mended");
    // The log has the result from before the replay.
    eventually(Duration::from_secs(20), "the new result is served", || {
        gateway.get(&format!("/tasks/{task}")).json()["words"] == 3
    });
    assert_eq!(replayed(&rig), [task.as_str(), &task], "it kept the number of its replay");
}

#[test]
fn letter_that_is_dropped_or_is_no_task_is_not_replayed() {
    let (rig, gateway, _worker) = Rig::shared("dead-drop").fleet("w");
    bury(&rig, &["a", "b"], &[REASON]);
    let (code, said) = run(&rig, &["drop", "a", "nothing"]);
    assert_eq!((code, said.as_str()), (1, "a: dropped\nnothing: there is no such letter\n"));
    assert_eq!(states(&rig).into_iter().map(|(_, state)| state).collect::<Vec<_>>(), ["dropped", "open"]);
    eventually(SOON, "the gateway lists one", || gateway.get("/dead").json()["by_reason"] == json!({ "failed": 1 }));
    let (code, said) = run(&rig, &["replay", "a"]);
    assert!(code == 1 && said.contains("has dropped it already"), "{said}");
    crate::support::audit::produce(rig.broker().address(), &rig.tasks(), &[(Some(b"c"), Some(b"\x1b[31m"))]);
    eventually(SOON, "the record is dead-lettered", || {
        listed(&rig, &["--reason", "not-a-task"])["letters"][0]["task_id"] == "c"
    });
    let (code, said) = run(&rig, &["replay", "c"]);
    assert!(code == 1 && said.contains("the value is not JSON"), "{said}");
    let (_, shown) = run(&rig, &["show", "c"]);
    assert!(shown.contains("\\u{1b}[31m") && !shown.contains('\x1b'), "{shown}");
    let (code, said) = run(&rig, &["drop", "--reason", "not a task: "]);
    assert_eq!((code, said.as_str()), (0, "c: dropped\n"));
    assert!(replayed(&rig).is_empty());
}

#[test]
fn dead_lettered_record_with_the_headers_of_a_mark_is_a_letter_and_marks_no_other() {
    let (rig, gateway, _worker) = Rig::shared("dead-forged").fleet("w");
    bury(&rig, &["a"], &[REASON]);
    let forged = [("lastcall-mark", "dropped"), ("lastcall-letter", "0:0"), ("lastcall-reason-class", "starts")];
    let headers = forged.map(|(name, value)| (name.into(), Some(Bytes::from(value))));
    let value = Some(Bytes::from("no task"));
    let record = ProducerRecord { topic: rig.tasks().into(), key: Some("b".into()), value, headers: headers.into() };
    deliver(&cluster(&rig), vec![record]);
    let both = json!({ "failed": 1, "not-a-task": 1 });
    eventually(SOON, "the gateway lists both letters", || gateway.get("/dead").json()["by_reason"] == both);
    assert_eq!(listed(&rig, &[])["by_reason"], both);
}

#[test]
fn topic_with_several_partitions_is_refused_since_marks_have_no_order_there() {
    let rig = Rig::shared("dead-spread");
    let topic = format!("{}.dead", rig.tasks());
    admin::create_topic(rig.broker().address(), &topic, 3, &[]);
    let text = format!("topic \"{topic}\" has 3 partitions; marks have no order there; expected 1");
    let (code, said) = run(&rig, &["list"]);
    assert_eq!((code, said.trim_end()), (1, text.as_str()));
    let gateway = rig.start_gateway();
    eventually(SOON, "the gateway says why it lists none", || {
        gateway.get("/dead").assert_problem(503)["detail"].as_str().is_some_and(|detail| detail.contains(&text))
    });
}

#[test]
fn letter_that_kafka_wrote_is_listed_and_replayed() {
    let (rig, gateway, _worker) = Rig::shared("dead-kafka").fleet("w");
    let tasks = rig.tasks();
    let headers = [
        ("__dlq.errors.topic", tasks.as_str()),
        ("__dlq.errors.partition", "0"),
        ("__dlq.errors.offset", "41"),
        ("__dlq.errors.group", "workers"),
        ("__dlq.errors.delivery.count", "10"),
        ("__dlq.errors.message", "Offset rejected by client."),
    ];
    bury(&rig, &["k"], &headers);
    let letter = &listed(&rig, &["--state", "open"])["letters"][0];
    let facts = ["task_id", "reason_class", "deliveries", "worker"].map(|name| &letter[name]);
    assert_eq!(facts, [&json!("k"), &json!("rejected"), &json!(10), &json!(null)]);
    assert_eq!(run(&rig, &["replay", "k"]).0, 0);
    assert_eq!(gateway.wait_for_result("k", SOON)["words"], 2);
    let records = admin::records(rig.broker().address(), &rig.tasks());
    let names: Vec<_> = records.last().expect("the replay").headers.keys().map(|name| name.as_str()).collect();
    assert_eq!(names, ["lastcall-replay"], "the facts of the letter are not those of the task");
}

/// Only on Apache Kafka: the embedded broker writes no dead letters.
#[test]
fn task_that_a_consumer_rejects_on_a_real_kafka_has_a_letter_and_is_replayed() {
    if !broker::is_apache() {
        return;
    }
    // By default, the names of such topics begin with "dlq.".
    let rig = Rig::with_own_broker("dead-dlq", &["--set", "errors.deadletterqueue.topic.name.prefix=dead-dlq"]);
    let gateway = rig.start_gateway();
    let (address, tasks, group, dead) = (rig.broker().address(), rig.tasks(), rig.group(), rig.tasks() + ".dead");
    admin::set(address, Of::Topic, &dead, "errors.deadletterqueue.group.enable", "true");
    admin::set(address, Of::Group, &group, "errors.deadletterqueue.topic.name", &dead);
    admin::set(address, Of::Group, &group, "errors.deadletterqueue.copy.record.enable", "true");
    let task = gateway.submit("two words", Duration::ZERO);
    let mut wire = Wire::connect(address);
    session::prepare_group(&mut wire, &group, &tasks, 1);
    let id = cluster(&rig).topic(&tasks).expect("the topic").id;
    let mut session = Session::new(wire, id, &group, "first");
    let mut told = session.fetch(500, &[0]);
    eventually(SOON, "the task is acquired", || {
        let is_acquired = !told.acquired(0).is_empty();
        if !is_acquired {
            told = session.fetch(500, &[]);
        }
        is_acquired
    });
    assert_eq!(session.acknowledge(&[(0, 0, REJECT)]), (0, vec![0]));
    session.close();
    let found = eventually_some(SOON, "Kafka has written the letter", || {
        let found = listed(&rig, &[]);
        (found["open"] == 1).then_some(found)
    });
    let facts = ["task_id", "reason_class", "reason", "worker"].map(|name| &found["letters"][0][name]);
    assert_eq!(facts, [&json!(task), &json!("rejected"), &json!("Offset rejected by client."), &json!(null)]);
    assert_eq!(run(&rig, &["replay", &task]).0, 0);
    let _worker = rig.start_worker("w");
    assert_eq!(gateway.wait_for_result(&task, SOON)["words"], 2);
}

#[test]
fn gateway_without_the_right_to_read_dead_letters_serves_and_says_what_is_missing() {
    let rig = Rig::with_faults("dead-right", 1);
    let topic = format!("{}.dead", rig.tasks());
    let read = Denial::new(Operation::Read, Resource::Topic(&topic)).of_client("lastcall-gateway");
    rig.broker().faulty().deny(read);
    let (gateway, _worker) = (rig.start_gateway(), rig.start_worker("w"));
    let missing = "the right Read on the topic is missing";
    eventually(SOON, "the missing right is named", || {
        let problem = gateway.get("/dead").assert_problem(503);
        problem["detail"].as_str().is_some_and(|text| text.contains(&topic) && text.contains(missing))
    });
    assert_eq!(gateway.analyze("all is well").status, 200);
    let warned = gateway.program.lines_with(missing);
    assert_eq!(warned.len(), 1, "{warned:?}");
    bury(&rig, &["a"], &[REASON]);
    rig.broker().faulty().allow_all();
    eventually(START, "the letter is listed", || {
        let answer = gateway.get("/dead");
        answer.status == 200 && answer.json()["open"] == 1
    });
}

#[test]
fn gateway_without_new_letters_fetches_them_rarely_and_lists_a_new_one_at_once() {
    let (rig, gateway, _worker) = Rig::with_faults("dead-idle", 1).fleet("w");
    eventually(SOON, "the letters are read", || gateway.get("/dead").status == 200);
    let count = |topic: &str| {
        let nothing = Fault::new(Action::Delay(Duration::ZERO)).at(Kind::Fetch).of_client("lastcall-gateway");
        rig.broker().faulty().inject(nothing.of_topic(topic).every(1, u32::MAX))
    };
    let (letters, results) = (count(&format!("{}.dead", rig.tasks())), count(&rig.results()));
    // A fetch of results is parked for half a second at most.
    eventually(SOON, "some time has passed", || results.count() >= 6);
    assert!(letters.count() <= 1, "{} fetches of letters", letters.count());
    bury(&rig, &["a"], &[REASON]);
    eventually(Duration::from_secs(1), "the letter is listed", || gateway.get("/dead").json()["open"] == 1);
}

#[test]
fn wrong_usage_and_an_unreachable_topic_have_their_exit_codes() {
    let rig = Rig::shared("dead-usage");
    let (code, said) = run(&rig, &["replay"]);
    assert!(code == 2 && said.contains("--reason"), "{said}");
    let (code, said) = run(&rig, &["list"]);
    assert!(code == 1 && said.contains(&format!("topic \"{}.dead\"", rig.tasks())), "{said}");
}
