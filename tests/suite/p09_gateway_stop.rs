//! P9: a stopping gateway answers every waiting caller and accepts no new task.

use std::{
    io,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    thread::JoinHandle,
    time::{Duration, Instant},
};

use nix::sys::signal::Signal;
use serde_json::json;

use crate::support::{
    Gateway, Rig, SOON, eventually,
    http::{Http, Response},
    program::Program,
    started,
};

struct Caller {
    answer: io::Result<Response>,
    at: Instant,
}

/// Starts this many callers, each on its own connection with a task that takes the duration `work`.
fn callers(gateway: &Gateway, count: usize, work: Duration) -> Vec<JoinHandle<Caller>> {
    (0..count)
        .map(|number| {
            let mut http = gateway.connect();
            let work_ms = u64::try_from(work.as_millis()).expect("short");
            let body = json!({ "text": format!("caller {number}"), "work_ms": work_ms });
            std::thread::Builder::new()
                .name(format!("caller-{number}"))
                .stack_size(256 * 1024)
                .spawn(move || {
                    let answer = http.post("/analyze", &body);
                    Caller { answer, at: Instant::now() }
                })
                .expect("a thread starts")
        })
        .collect()
}

fn join(callers: Vec<JoinHandle<Caller>>) -> Vec<Caller> {
    callers.into_iter().map(|caller| caller.join().expect("a caller does not panic")).collect()
}

fn wait_for_tasks(rig: &Rig, count: usize) {
    eventually(SOON, "all tasks are on the topic", || rig.audit().tasks.len() == count);
}

fn workers(rig: &Rig, count: usize) -> Vec<Program> {
    (0..count).map(|number| started(&rig.worker(&format!("w{number}")).env("WORKER_CONCURRENCY", 10))).collect()
}

#[test]
fn two_hundred_waiting_callers_get_their_results_during_the_drain() {
    let rig = Rig::shared("p9-200");
    let mut gateway = Gateway::start(rig.gateway().env("ANSWER_TIMEOUT", "30s"));
    let callers = callers(&gateway, 200, Duration::from_millis(300));
    wait_for_tasks(&rig, 200);
    // No worker runs yet, so all 200 callers wait while the test reads /readyz and /health.
    gateway.program.signal(Signal::SIGTERM);
    eventually(Duration::from_millis(500), "readyz turns 503", || {
        gateway.try_get("/readyz").is_some_and(|answer| answer.status == 503)
    });
    let refused = gateway.analyze("too late");
    let problem = refused.assert_problem(503);
    assert!(refused.header("retry-after").is_some_and(|value| value.parse::<u32>().is_ok()), "{refused:?}");
    assert!(problem.get("task_id").is_none(), "the refused task has an id");
    let health = gateway.get("/health");
    assert_eq!((health.status, &health.json()["status"]), (200, &json!("draining")));
    let _workers = workers(&rig, 2);
    let exit = gateway.program.wait(Duration::from_secs(30));
    let callers = join(callers);
    for caller in &callers {
        let answer = caller.answer.as_ref().expect("every caller is answered");
        assert_eq!(answer.status, 200, "{}", answer.text());
    }
    let last = callers.iter().map(|caller| caller.at).max().expect("200 callers");
    assert_eq!(exit.code, Some(0));
    assert!(
        exit.at.saturating_duration_since(last) < Duration::from_secs(1),
        "the exit came late after the last response"
    );
    let audit = rig.audit();
    assert_eq!(audit.tasks.len(), 200, "no new task was accepted");
    audit.assert_each_ran_once([]);
}

#[test]
fn callers_without_a_result_at_the_drain_deadline_get_503_with_their_task_id() {
    let rig = Rig::shared("p9-late");
    let launch = rig.gateway().env("STOP_GRACE_PERIOD", "10s").env("ANSWER_TIMEOUT", "60s");
    let mut gateway = Gateway::start(launch);
    let callers = callers(&gateway, 50, Duration::from_secs(1));
    wait_for_tasks(&rig, 50);
    let signalled = gateway.program.signal(Signal::SIGTERM);
    let exit = gateway.program.wait(Duration::from_secs(20));
    assert_eq!(exit.code, Some(0));
    // STOP_GRACE_PERIOD - 5 s
    assert!(exit.elapsed < Duration::from_secs(5), "{exit:?}");
    let mut tasks = Vec::new();
    for caller in join(callers) {
        let answer = caller.answer.expect("every caller is answered");
        answer.assert_problem(503);
        tasks.push(answer.task_id());
        // The deadline is STOP_GRACE_PERIOD - 6 s.
        let waited = caller.at - signalled;
        assert!(waited >= Duration::from_millis(3_900), "503 came {waited:?} after the signal, before the deadline");
    }
    let _workers = workers(&rig, 1);
    let other = rig.start_gateway();
    for task in &tasks {
        assert_eq!(other.wait_for_result(task, Duration::from_secs(30))["success"], true);
    }
    rig.audit().assert_each_ran_once(&tasks);
}

#[test]
fn answer_timeout_continues_during_the_drain() {
    let rig = Rig::shared("p9-timeout");
    let mut gateway = Gateway::start(rig.gateway().env("ANSWER_TIMEOUT", "2s"));
    let callers = callers(&gateway, 5, Duration::ZERO);
    wait_for_tasks(&rig, 5);
    let exit = gateway.program.ends_at(Signal::SIGTERM, 0);
    assert!(exit.elapsed < Duration::from_secs(3), "{exit:?}");
    for caller in join(callers) {
        let answer = caller.answer.expect("every caller is answered");
        answer.assert_problem(504);
        assert!(!answer.task_id().is_empty());
    }
}

#[test]
fn callers_that_look_up_tasks_get_503_from_a_stopping_gateway_while_kafka_is_frozen() {
    let (rig, mut gateway, _worker) = Rig::quiet_with_own_broker("p9-frozen", &[]).fleet("w");
    let task = gateway.analyze("done").task_id();
    let mut callers: Vec<Http> = (0..200).map(|_| gateway.connect()).collect();
    rig.broker().freeze();
    // Known and unknown ids in turn; the gateway has not noticed the freeze yet.
    for (number, http) in callers.iter_mut().enumerate() {
        let id = if number % 2 == 0 { &task } else { "never-heard-of" };
        http.send("GET", &format!("/tasks/{id}"), &[], b"").expect("the request is sent");
    }
    eventually(SOON, "the gateway has accepted all 200 connections", || {
        gateway.get("/metrics").text().contains("lastcall_http_connections 201\n")
    });
    let exit = gateway.program.ends_at(Signal::SIGTERM, 0);
    // The gateway waits 3 s for Kafka's answer to a look-up.
    assert!(exit.elapsed < Duration::from_secs(5), "{exit:?}");
    for http in &mut callers {
        let answer = http.receive("GET").expect("every caller is answered");
        let problem = answer.assert_problem(503);
        assert!(problem["task_id"] == task.as_str() || problem["task_id"] == "never-heard-of", "{problem}");
        assert!(answer.header("retry-after").is_some(), "{answer:?}");
    }
}

#[test]
fn look_ups_get_503_at_once_while_kafka_is_known_to_be_unreachable() {
    let (rig, gateway, _worker) = Rig::quiet_with_own_broker("p9-away", &[]).fleet("w");
    let task = gateway.analyze("done").task_id();
    rig.broker().freeze();
    eventually(SOON, "the gateway has noticed the freeze", || gateway.get("/health").status == 503);
    let began = Instant::now();
    for _ in 0..20 {
        for id in [&task, "never-heard-of"] {
            gateway.get(&format!("/tasks/{id}")).assert_problem(503);
        }
    }
    assert!(began.elapsed() < Duration::from_secs(1), "{:?}", began.elapsed());
}

#[test]
fn a_gateway_without_waiting_callers_stops_at_once_at_each_signal() {
    let rig = Rig::quiet("p9-signals");
    for (signal, idle_connections) in
        [(Signal::SIGTERM, 0), (Signal::SIGTERM, 100), (Signal::SIGINT, 0), (Signal::SIGHUP, 0)]
    {
        let mut gateway = rig.start_gateway();
        let mut open: Vec<Http> = (0..idle_connections).map(|_| gateway.connect()).collect();
        for http in &mut open {
            assert_eq!(http.get("/livez").expect("a response").status, 200);
        }
        let exit = gateway.program.ends_at(signal, 0);
        assert!(exit.elapsed < Duration::from_secs(1), "{signal}, {idle_connections} connections: {exit:?}");
        assert_eq!(gateway.program.stderr(), "");
    }
}

#[test]
fn a_second_signal_answers_the_waiting_callers_at_once() {
    let rig = Rig::quiet("p9-second");
    let mut gateway = rig.start_gateway();
    let callers = callers(&gateway, 20, Duration::ZERO);
    wait_for_tasks(&rig, 20);
    gateway.program.signal(Signal::SIGTERM);
    eventually(SOON, "the gateway drains", || gateway.try_get("/readyz").is_some_and(|answer| answer.status == 503));
    let exit = gateway.program.ends_at(Signal::SIGTERM, 4);
    assert!(exit.elapsed < Duration::from_secs(1), "{exit:?}");
    for caller in join(callers) {
        let answer = caller.answer.expect("every caller is answered");
        answer.assert_problem(503);
        assert!(!answer.task_id().is_empty());
    }
}

#[test]
fn a_second_signal_without_waiting_callers_changes_nothing() {
    let rig = Rig::quiet("p9-second-idle");
    let mut gateway = rig.start_gateway();
    gateway.program.signal(Signal::SIGTERM);
    gateway.program.ends_at(Signal::SIGINT, 0);
}

/// In a drill of an hour a gateway without waiting callers took eight seconds to stop, because callers kept looking up
/// tasks.
#[test]
fn continuous_look_ups_do_not_delay_the_exit() {
    let rig = Rig::quiet("p9-asked");
    let mut gateway = rig.start_gateway();
    let asked = Arc::new(AtomicUsize::new(0));
    let askers: Vec<JoinHandle<()>> = (0..8)
        .map(|number| {
            let (address, asked) = (gateway.address.clone(), Arc::clone(&asked));
            // The gateway searches for unknown tasks before it answers. The loop ends with the gateway.
            let ask = move || {
                while let Ok(mut http) = Http::connect(&address) {
                    let path = format!("/tasks/unknown-{number}");
                    if http.request("GET", &path, &[], b"").is_ok() {
                        asked.fetch_add(1, Ordering::Relaxed);
                    }
                }
            };
            std::thread::Builder::new().name(format!("asker-{number}")).spawn(ask).expect("a thread starts")
        })
        .collect();
    eventually(SOON, "the look-ups are answered", || asked.load(Ordering::Relaxed) > 50);
    let exit = gateway.program.ends_at(Signal::SIGTERM, 0);
    askers.into_iter().for_each(|asker| asker.join().expect("an asker does not panic"));
    assert!(exit.elapsed < Duration::from_secs(1), "{exit:?}");
}
