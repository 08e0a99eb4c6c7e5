//! P8, P8b, P8c: a worker is killed, is frozen, or is killed by its task; its tasks run elsewhere.

use std::time::{Duration, Instant};

use kafka_protocol::protocol::StrBytes;
use nix::sys::signal::Signal;
use serde_json::{Value, json};

use crate::support::{
    Gateway, Rig, SOON, admin, eventually,
    program::{Launch, Program},
    started,
};

#[test]
fn the_task_of_a_killed_worker_starts_elsewhere_within_half_a_second() {
    let rig = Rig::quiet("p8-kill");
    let gateway = rig.start_gateway();
    // With quick heartbeats the gateway shows the running task early enough for the kill to interrupt it.
    let start = |id: &str| started(&rig.worker(id).env("HEARTBEAT_INTERVAL", "50ms"));
    let mut workers: Vec<Program> = ["w0", "w1", "w2"].map(start).into();
    let work = Duration::from_secs(1);
    for round in 0..5 {
        let caller = gateway.call(&format!("round {round}"), work);
        let victim = gateway.wait_until_running(&caller.task, SOON);
        let place = workers.iter().position(|worker| worker.name() == victim).expect("a worker of this test");
        let killed = workers[place].kill();
        let (answer, answered) = caller.join();
        assert_eq!(answer.status, 200, "{}", answer.text());
        assert_ne!(answer.json()["processed_by"], *victim);
        // The second run takes the whole time of the task again.
        let hop = (answered - killed).checked_sub(work).expect("the killed worker ran the task");
        assert!(hop < Duration::from_millis(500), "round {round}: started elsewhere after {hop:?}");
        assert_eq!(rig.audit().runs(&answer.task_id()), 1, "the killed run has no result");
        workers[place] = start(&victim);
    }
}

/// The group keeps a killed member and its assignment for 45 s.
#[test]
fn other_workers_serve_the_partitions_of_a_killed_worker_at_once() {
    let rig = Rig::quiet("p8-partitions");
    let gateway = Gateway::start(rig.gateway().env("TASKS_PARTITIONS", 4));
    let mut workers: Vec<Program> = ["w0", "w1"].map(|id| rig.start_worker(id)).into();
    assert_eq!(gateway.analyze("all is well").status, 200);
    workers[0].kill();
    let begin = Instant::now();
    // The task ids spread the tasks over all partitions.
    for number in 0..16 {
        let answer = gateway.analyze(&format!("text {number}"));
        assert_eq!(answer.status, 200, "{}", answer.text());
    }
    let took = begin.elapsed();
    assert!(took < 16 * Duration::from_millis(500), "16 tasks took {took:?}");
}

/// The accept of a finished task does not wait for the end of a fetch that was sent ahead.
#[test]
fn a_kill_between_two_tasks_runs_no_task_again() {
    let rig = Rig::quiet("p8-between");
    let gateway = rig.start_gateway();
    let (mut tasks, mut accepted_after) = (Vec::new(), Vec::new());
    for round in 0..6 {
        let mut worker = rig.start_worker("between");
        // After several short tasks the worker fetches ahead.
        for number in 0..10 {
            let answer = gateway.analyze(&format!("round {round}, text {number}"));
            assert_eq!(answer.status, 200, "{}", answer.text());
            tasks.push(answer.task_id());
        }
        let answered = Instant::now();
        let lag = || admin::share_lag(rig.broker().address(), &rig.group(), &rig.tasks());
        eventually(SOON, "the last task is accepted", || lag() == Some(0));
        accepted_after.push(answered.elapsed());
        worker.kill();
    }
    // The fastest round counts, because a busy machine may pause. A parked fetch ends after 100 ms.
    assert!(accepted_after.iter().min() < Some(&Duration::from_millis(50)), "{accepted_after:?}");
    let _heir = rig.start_worker("heir");
    let last = gateway.analyze("the last one");
    assert_eq!(last.json()["processed_by"], "heir");
    tasks.push(last.task_id());
    rig.audit().assert_each_ran_once(&tasks);
}

#[test]
fn the_task_of_a_frozen_worker_starts_elsewhere_when_its_lock_ends() {
    let rig = Rig::shared("p8b");
    let gateway = Gateway::start(rig.gateway().env("ANSWER_TIMEOUT", "60s"));
    let mut workers = vec![rig.start_worker("w0")];
    let work = Duration::from_secs(5);
    let caller = gateway.call("hangs", work);
    assert_eq!(gateway.wait_until_running(&caller.task, SOON), "w0");
    workers.push(rig.start_worker("w1"));
    let frozen = workers[0].signal(Signal::SIGSTOP);
    eventually(SOON, "the gateway shows the worker as not responsive", || {
        gateway.fleet()["workers"]["w0"]["is_responsive"] == false
    });
    let (answer, answered) = caller.join();
    assert_eq!((answer.status, &answer.json()["processed_by"]), (200, &json!("w1")), "{}", answer.text());
    let hop = (answered - frozen).checked_sub(work).expect("the frozen worker ran the task");
    assert!(hop < Duration::from_secs(20), "started elsewhere after {hop:?}");

    // After the thaw the worker takes tasks again, and its late result does not replace the first one.
    workers[0].signal(Signal::SIGCONT);
    eventually(SOON, "the worker is responsive again", || gateway.fleet()["workers"]["w0"]["is_responsive"] == true);
    let task = answer.task_id();
    eventually(SOON, "the late result is written", || rig.audit().runs(&task) == 2);
    workers.pop().expect("two workers").kill();
    let next = gateway.analyze("after the sleep");
    assert_eq!((next.status, &next.json()["processed_by"]), (200, &json!("w0")));
    let first = gateway.get(&format!("/tasks/{task}")).json();
    assert_eq!(first["processed_by"], "w1", "the first result stays");
    workers[0].ends_at(Signal::SIGTERM, 0);
    let audit = rig.audit();
    assert_eq!(audit.ran_again()[task.as_str()], ["w1", "w0"]);
}

/// Restarts a worker after each exit until `done`; returns all its processes.
fn supervise(launch: &Launch, mut done: impl FnMut() -> bool) -> Vec<Program> {
    let deadline = Instant::now() + Duration::from_secs(120);
    let mut processes = vec![launch.start()];
    while !done() {
        assert!(Instant::now() < deadline, "not done after {} starts", processes.len());
        if processes.last_mut().is_some_and(|process| !process.is_running()) {
            processes.last_mut().expect("at least one").wait(SOON);
            processes.push(launch.start());
        }
        std::thread::sleep(Duration::from_millis(5));
    }
    processes
}

fn starts_of(task: &str, processes: &[Program]) -> usize {
    processes.iter().map(|process| process.lines_with(&format!("handler started {task} ")).len()).sum()
}

#[test]
fn a_task_that_kills_its_worker_is_dead_lettered_after_five_starts() {
    let rig = Rig::shared("p8c-abort");
    let gateway = Gateway::start(rig.gateway().env("ANSWER_TIMEOUT", "120s"));
    // A worker fetches the tasks right before and after the killer together with it.
    let before: Vec<String> = (0..10).map(|number| gateway.submit(&format!("good {number}"), Duration::ZERO)).collect();
    let caller = gateway.call("abort", Duration::ZERO);
    let after: Vec<String> = (0..10).map(|number| gateway.submit(&format!("good {number}"), Duration::ZERO)).collect();
    let processes = supervise(&rig.obedient_worker("mortal"), || caller.is_finished());
    let (answer, _) = caller.join();
    let problem = answer.assert_problem(500);
    let task = problem["task_id"].as_str().expect("the problem names its task");
    assert_eq!(starts_of(task, &processes), 5, "MAX_DELIVERIES starts");
    assert_eq!(problem["success"], false, "the problem document lacks the result's members: {problem}");
    assert!(problem["error"].as_str().is_some_and(|error| !error.is_empty()));

    for neighbour in before.iter().chain(&after) {
        assert_eq!(gateway.wait_for_result(neighbour, SOON)["obeyed"], true, "a neighbour was blamed");
    }
    eventually(SOON, "the task is dead-lettered", || rig.audit().dead.len() == 1);
    let audit = rig.audit();
    assert_eq!(audit.dead[0].key(), task);
    assert_eq!(audit.dead[0].json()["text"], "abort", "the dead letter has the task's value");
    assert_eq!(audit.result(task)["success"], false);
    let headers = &rig.dead_letters()[0].headers;
    let header = |name| headers[&StrBytes::from_static_str(name)].as_deref().unwrap_or_default();
    assert!(!header("lastcall-reason").is_empty() && !header("lastcall-deliveries").is_empty(), "{headers:?}");
    assert_eq!([header("lastcall-worker"), header("lastcall-original-offset")], [&b"mortal"[..], b"10"]);
    let asked = gateway.get(&format!("/tasks/{task}"));
    assert_eq!((asked.status, &asked.json()["success"]), (200, &json!(false)));
    assert_eq!(gateway.post("/analyze", &json!({ "text": "the fleet goes on" })).status, 200);
}

#[test]
fn a_task_whose_worker_is_killed_five_times_is_dead_lettered() {
    let rig = Rig::shared("p8c-kill");
    let gateway = rig.start_gateway();
    let task = gateway.submit("unlucky", Duration::from_secs(60));
    for round in 1..=5 {
        let mut worker = rig.start_worker(&format!("w{round}"));
        // A killed worker counts as responsive for WORKER_TIMEOUT, so the condition names the new worker.
        eventually(SOON, &format!("w{round} runs the task"), || {
            gateway.fleet()["workers"][format!("w{round}")]["current_task"] == task
        });
        worker.kill();
    }
    let _worker = rig.start_worker("w6");
    let result = gateway.wait_for_result(&task, SOON);
    assert_eq!(result["success"], false);
    // Error result and dead letter go to two topics, in any order.
    eventually(SOON, "the task is dead-lettered", || rig.audit().dead.len() == 1);
    let audit = rig.audit();
    let dead: Vec<String> = audit.dead.iter().map(|record| record.key()).collect();
    assert_eq!(dead, std::slice::from_ref(&task));
    let starts: Vec<&Value> = audit.starts.iter().filter(|start| start["task_id"] == *task).collect();
    assert_eq!(starts.len(), 4, "each start but the first has a record: {starts:?}");
    assert_eq!(gateway.analyze("the fleet goes on").status, 200);
}

#[test]
fn a_handler_that_panics_does_not_kill_its_worker() {
    let rig = Rig::shared("p8c-panic");
    let gateway = Gateway::start(rig.gateway().env("ANSWER_TIMEOUT", "60s"));
    let mut worker = started(&rig.obedient_worker("calm"));
    let answer = gateway.analyze("panic");
    let problem = answer.assert_problem(500);
    let task = problem["task_id"].as_str().expect("a task id");
    assert_eq!(worker.lines_with(&format!("handler started {task} ")).len(), 5);
    // Error result and dead letter go to two topics, in any order.
    eventually(SOON, "the task is dead-lettered", || rig.audit().dead.len() == 1);
    assert_eq!(gateway.analyze("good").json()["obeyed"], true);
    worker.ends_at(Signal::SIGTERM, 0);
}

#[test]
fn a_final_failure_is_answered_and_not_retried() {
    let rig = Rig::shared("p8c-final");
    let gateway = rig.start_gateway();
    let worker = started(&rig.obedient_worker("honest"));
    let answer = gateway.analyze("fail the moon is \"full\"");
    let problem = answer.assert_problem(500);
    assert_eq!((&problem["success"], &problem["error"]), (&json!(false), &json!("the moon is \"full\"")));
    assert_eq!(problem["processed_by"], "honest");
    let task = answer.task_id();
    assert_eq!(worker.lines_with(&format!("handler started {task} ")).len(), 1);
    let asked = gateway.get(&format!("/tasks/{task}"));
    let stored = asked.json();
    assert_eq!((asked.status, &stored["success"], &stored["error"]), (200, &json!(false), &problem["error"]));
    assert!(stored.get("title").is_none() && stored.get("type").is_none(), "{stored}");
}

#[test]
fn a_retryable_failure_is_retried_with_pauses_until_max_deliveries() {
    let rig = Rig::shared("p8c-retry");
    let gateway = Gateway::start(rig.gateway().env("ANSWER_TIMEOUT", "60s"));
    let worker = started(&rig.obedient_worker("patient").env("MAX_DELIVERIES", 3));
    let answer = gateway.analyze("retry not yet");
    let problem = answer.assert_problem(500);
    assert!(problem["error"].as_str().is_some_and(|error| error.contains("not yet")), "{problem}");
    let starts = worker.lines_with(&format!("handler started {} ", answer.task_id()));
    assert_eq!(starts.len(), 3);
    assert!(
        starts.windows(2).all(|pair| pair[1].at - pair[0].at >= Duration::from_millis(10)),
        "no pause between two starts"
    );
    // Error result and dead letter go to two topics, in any order.
    eventually(SOON, "the task is dead-lettered", || rig.audit().dead.len() == 1);
}

#[test]
fn many_poison_tasks_do_not_stop_the_others() {
    let rig = Rig::shared("p8c-many");
    let gateway = rig.start_gateway();
    let _worker = started(&rig.obedient_worker("busy"));
    let mut poison = Vec::new();
    let mut good = Vec::new();
    for number in 0..20 {
        poison.push(gateway.submit("panic", Duration::ZERO));
        good.push(gateway.submit(&format!("good {number}"), Duration::ZERO));
    }
    for task in &good {
        assert_eq!(gateway.wait_for_result(task, Duration::from_secs(30))["obeyed"], true);
    }
    for task in &poison {
        assert_eq!(gateway.wait_for_result(task, Duration::from_secs(60))["success"], false);
    }
    eventually(SOON, "the poison tasks are dead-lettered", || rig.audit().dead.len() == poison.len());
    let audit = rig.audit();
    assert!(good.iter().all(|task| audit.runs(task) == 1));
}
