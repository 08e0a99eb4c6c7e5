//! Share sessions that the broker throttles (KIP-219).

use super::*;

/// The worker took a throttled connection for a dead one, and fetched on a second one, past the quota.
#[test]
fn throttled_worker_fetches_nothing_meanwhile() {
    // A worker replaces a connection whose request is unanswered for half a second if it carries accepts, else for a
    // third of the lock.
    for (locks, works) in [(&[][..], true), (&SHORT_LOCKS[..], false)] {
        let rig = Rig::with_faults_and("fault-muted", 1, locks);
        let gateway = rig.start_gateway();
        let worker = started(&rig.worker("w").env("WORKER_CONCURRENCY", 2));
        let lengths = if works { &[2000, 2600][..] } else { &[] };
        let submit = |length: &u64| gateway.submit(&format!("for {length} ms"), Duration::from_millis(*length));
        let mut tasks: Vec<String> = lengths.iter().map(submit).collect();
        gateway.wait_until_busy("w", tasks.len());
        let broker = rig.broker().faulty();
        let throttle = Fault::new(Action::Throttle(Duration::from_secs(3))).at(Kind::ShareFetch);
        let throttled = broker.inject(throttle.of_client("lastcall-worker"));
        eventually(SOON, "a fetch is throttled", || throttled.count() == 1);
        // Meanwhile the worker reads the response, which has no records; no condition shows it from outside.
        std::thread::sleep(Duration::from_millis(200));
        let begun = Instant::now();
        tasks.push(gateway.submit("meanwhile", Duration::from_millis(1)));
        for task in &tasks {
            gateway.wait_for_result(task, SOON);
        }
        let took = begun.elapsed();
        let warnings = worker.lines_with("does not answer");
        assert!(warnings.is_empty(), "after {took:?}: {warnings:?}");
        assert!(took > Duration::from_secs(2), "results {took:?} after the throttled fetch");
        rig.audit().assert_each_ran_once(&tasks);
    }
}

/// The throttle time is longer than a lock, on every connection: each renewal is the first request on its own.
#[test]
fn throttled_worker_renews_the_lock_of_its_task_in_time() {
    let rig = Rig::with_faults_and("fault-muted-lock", 1, &SHORT_LOCKS);
    let gateway = rig.start_gateway();
    let workers = ["a", "b"].map(|id| rig.start_worker(id));
    let task = gateway.submit("held meanwhile", Duration::from_secs(8));
    let holder = gateway.wait_until_running(&task, SOON);
    let client = format!("lastcall-worker-{holder}");
    for kind in [Kind::ShareFetch, Kind::ShareAcknowledge] {
        throttle(&rig, kind, &client, Duration::from_secs(6));
    }
    gateway.wait_for_result(&task, SOON);
    rig.audit().assert_each_ran_once([&task]);
    for words in ["lost the lock", "at its delivery", "does not answer"] {
        assert!(workers.iter().all(|worker| worker.lines_with(words).is_empty()), "{words}");
    }
}

/// The worker closed the throttled connection, which had opened the session, when another one was refused or cut.
#[test]
fn failure_beside_a_throttled_connection_costs_no_lock() {
    let refuse = Action::Refuse(ErrorCode::GROUP_AUTHORIZATION_FAILED);
    // A cut ends before the throttle time, since it would end the throttled connection, too.
    for (fault, until) in [(refuse, Duration::from_secs(10)), (Action::CutBefore, Duration::from_millis(7_800))] {
        let rig = Rig::with_faults("fault-muted-beside", 1);
        let gateway = rig.start_gateway();
        // A worker with a free handler fetches.
        let workers = ["a", "b"].map(|id| started(&rig.worker(id).env("WORKER_CONCURRENCY", 2)));
        let task = gateway.submit("held meanwhile", Duration::from_secs(13));
        let holder = gateway.wait_until_running(&task, SOON);
        let client = format!("lastcall-worker-{holder}");
        let broker = rig.broker().faulty();
        let throttle = Fault::new(Action::Throttle(Duration::from_secs(8))).at(Kind::ShareFetch).of_client(&client);
        let muted = broker.inject(throttle);
        eventually(SOON, "a fetch is throttled", || muted.count() == 1);
        let begun = Instant::now();
        // Its first renewal comes after 5 s.
        let failing = [Kind::ShareAcknowledge, Kind::ShareFetch]
            .map(|kind| broker.inject(Fault::new(fault).at(kind).of_client(&client).every(1, u32::MAX)));
        eventually(SOON, "the session fails", || failing.iter().all(|bites| bites.count() > 0));
        std::thread::sleep(until.saturating_sub(begun.elapsed()));
        broker.heal();
        gateway.wait_for_result(&task, SOON);
        rig.audit().assert_each_ran_once([&task]);
        let again = workers.iter().flat_map(|worker| worker.lines_with("at its delivery"));
        assert_eq!(again.count(), 0, "it started again");
    }
}

/// As long as no worker or gateway may wait for anything.
const LONG: Duration = Duration::from_secs(20);

/// Throttles each request of this kind from these clients.
fn throttle(rig: &Rig, kind: Kind, client: &str, time: Duration) -> Bites {
    rig.broker().faulty().inject(Fault::new(Action::Throttle(time)).at(kind).of_client(client).every(1, u32::MAX))
}

/// Throttles every request that a worker sends while it works, and waits until its connections are muted.
fn mute_worker(rig: &Rig, id: &str) {
    let client = format!("lastcall-worker-{id}");
    let kinds = [Kind::ShareFetch, Kind::ShareGroupHeartbeat, Kind::Produce];
    let throttled = kinds.map(|kind| throttle(rig, kind, &client, LONG));
    throttle(rig, Kind::ShareAcknowledge, &client, LONG);
    eventually(SOON, "each kind of request is throttled", || throttled.iter().all(|bites| bites.count() > 0));
}

fn assert_stopped_in_order(worker: &Program, id: &str) {
    worker.assert_lines_in_order(&[
        &format!("📡 Worker {id} sent shutdown_started notification"),
        &format!("✅ Worker {id} consumer closed"),
        &format!("📡 Worker {id} sent shutdown_completed notification"),
        &format!("👋 Worker {id} gracefully shut down"),
    ]);
    for words in ["does not answer", "could not", "has not ended", "may run again"] {
        assert_eq!(worker.lines_with(words).len(), 0, "{words}");
    }
}

/// The stop waited for the end of the mute, or for the limit of each step: its records and its leave were not read.
#[test]
fn idle_worker_stops_within_a_second_while_throttled() {
    let rig = Rig::quiet_with_faults("fault-muted-idle", 1);
    let mut worker = rig.start_worker("w");
    mute_worker(&rig, "w");
    let exit = worker.ends_at(Signal::SIGTERM, 0);
    assert!(exit.elapsed < Duration::from_secs(1), "{exit:?}");
    assert_stopped_in_order(&worker, "w");
}

/// The broker read the accept only after the stop, when the lock of the task had ended.
#[test]
fn busy_worker_finishes_its_task_and_stops_while_throttled() {
    let rig = Rig::quiet_with_faults("fault-muted-busy", 1);
    let gateway = rig.start_gateway();
    let mut worker = started(&rig.worker("w").env("WORKER_CONCURRENCY", 2));
    let work = Duration::from_secs(3);
    let caller = gateway.call("one two three", work);
    gateway.wait_until_busy("w", 1);
    mute_worker(&rig, "w");
    let exit = worker.ends_at(Signal::SIGTERM, 0);
    assert!(exit.elapsed < work + Duration::from_secs(1), "{exit:?}");
    let (answer, answered) = caller.join();
    assert_eq!(answer.status, 200, "{}", answer.text());
    assert!(exit.at < answered + Duration::from_secs(1), "exit {:?} after the response", exit.at - answered);
    assert_stopped_in_order(&worker, "w");
    let (broker, group, tasks) = (rig.broker().address(), rig.group(), rig.tasks());
    assert_eq!(admin::share_lag(broker, &group, &tasks), Some(0), "the task was not accepted");
    rig.audit().assert_each_ran_once([&answer.task_id()]);
}

#[test]
fn drain_timeout_of_a_throttled_worker_releases_its_task() {
    let rig = Rig::quiet_with_faults("fault-muted-drain", 1);
    let gateway = rig.start_gateway();
    let mut worker = started(&rig.worker("w").env("WORKER_CONCURRENCY", 2).env("DRAIN_TIMEOUT", "2s"));
    let task = gateway.submit("longer than the drain", Duration::from_secs(5));
    gateway.wait_until_busy("w", 1);
    mute_worker(&rig, "w");
    let other = rig.start_worker("other");
    let exit = worker.ends_at(Signal::SIGTERM, 3);
    assert!(exit.elapsed < Duration::from_secs(3), "{exit:?}");
    assert_eq!(gateway.wait_until_running(&task, Duration::from_secs(2)), "other");
    gateway.wait_for_result(&task, SOON);
    for (program, words) in [(&worker, "does not answer"), (&worker, "could not"), (&other, "does not answer")] {
        assert_eq!(program.lines_with(words).len(), 0, "{}: {words}", program.name());
    }
}

/// Heartbeats and fetches that were not read counted as the silence of their broker.
#[test]
fn throttled_worker_stays_live_and_in_its_group() {
    let rig = Rig::with_faults_and("fault-muted-live", 1, &SHORT_LOCKS);
    let gateway = rig.start_gateway();
    let worker = rig.start_worker("w");
    let beats = throttle(&rig, Kind::ShareGroupHeartbeat, "lastcall-worker", LONG);
    let muted = Duration::from_secs(9);
    let fetch = Fault::new(Action::Throttle(muted)).at(Kind::ShareFetch).of_client("lastcall-worker");
    let fetch = rig.broker().faulty().inject(fetch);
    eventually(SOON, "a fetch is throttled", || fetch.count() == 1);
    let begun = Instant::now();
    // Longer than a worker that hears nothing counts as live.
    eventually(muted + SOON, "the fetch is no longer throttled", || begun.elapsed() > muted);
    let task = gateway.submit("afterwards", Duration::ZERO);
    gateway.wait_for_result(&task, SOON);
    for words in ["does not answer", "is not live"] {
        assert_eq!(worker.lines_with(words).len(), 0, "{words}");
    }
    assert_eq!(worker.lines_with("throttles this client").len(), 1);
    // At once, and then every 5 s on another connection.
    assert!((2..=4).contains(&beats.count()), "{} heartbeats", beats.count());
}

/// A fetch that was not read within 5 s counted as the silence of its broker; then all workers counted as silent.
#[test]
fn throttled_gateway_answers_late_and_stays_ready() {
    let rig = Rig::quiet_with_faults("fault-muted-gateway", 1);
    let gateway = Gateway::start(rig.gateway().env("ANSWER_TIMEOUT", "20s").env("READY_WITHOUT_KAFKA", "1s"));
    let _worker = rig.start_worker("w");
    gateway.analyze("before");
    let muted = Duration::from_secs(8);
    let fetch = Fault::new(Action::Throttle(muted)).at(Kind::Fetch).of_client("lastcall-gateway");
    let throttled = rig.broker().faulty().inject(fetch.of_topic(&rig.results()));
    eventually(SOON, "a fetch is throttled", || throttled.count() == 1);
    let begun = Instant::now();
    let answer = std::thread::scope(|scope| {
        let caller = scope.spawn(|| gateway.analyze("meanwhile"));
        while !caller.is_finished() {
            let ready = gateway.get("/readyz");
            assert_eq!(ready.status, 200, "after {:?}: {}", begun.elapsed(), ready.text());
            std::thread::sleep(Duration::from_millis(100));
        }
        caller.join().expect("a caller does not panic")
    });
    let took = begun.elapsed();
    assert_eq!(answer.status, 200, "{}", answer.text());
    assert!((muted - Duration::from_secs(1)..muted + Duration::from_secs(2)).contains(&took), "{took:?}");
    for words in ["does not answer", "silent"] {
        assert_eq!(gateway.program.lines_with(words).len(), 0, "{words}");
    }
}

#[test]
fn gateway_stops_within_a_second_while_throttled() {
    let rig = Rig::quiet_with_faults("fault-muted-gateway-stop", 1);
    let (mut gateway, _worker) = (rig.start_gateway(), rig.start_worker("w"));
    let throttled = [Kind::Produce, Kind::Fetch].map(|kind| throttle(&rig, kind, "lastcall-gateway", LONG));
    gateway.submit("last before the mute", Duration::ZERO);
    eventually(SOON, "each kind of request is throttled", || throttled.iter().all(|bites| bites.count() > 0));
    let exit = gateway.program.ends_at(Signal::SIGTERM, 0);
    assert!(exit.elapsed < Duration::from_secs(1), "{exit:?}");
    for words in ["does not answer", "has not ended"] {
        assert_eq!(gateway.program.lines_with(words).len(), 0, "{words}");
    }
}
