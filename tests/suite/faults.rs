//! Faults at chosen requests, on the embedded broker: rare events of a real cluster, each with the promise that holds.

mod throttle;

use std::{
    collections::BTreeSet,
    time::{Duration, Instant},
};

use devbroker::{Action, Bites, Fault, Kind};
use kafka_share::ErrorCode;
use nix::sys::signal::Signal;

use crate::support::{
    Gateway, Rig, SHORT_LOCKS, SOON, admin,
    audit::Audit,
    eventually,
    load::{Shot, assert_all_answered, task_ids},
    program::{Exit, Program},
    started,
};

const NOT_LEADER: ErrorCode = ErrorCode::NOT_LEADER_OR_FOLLOWER;
const LOST_LOCK: ErrorCode = ErrorCode::INVALID_RECORD_STATE;

/// A gateway and workers on their own broker.
struct Fleet {
    rig: Rig,
    gateway: Gateway,
    workers: Vec<Program>,
}

impl Fleet {
    fn new(name: &str, nodes: usize) -> Fleet {
        Fleet::of(Rig::with_faults(name, nodes), &["a", "b"])
    }

    fn of(rig: Rig, workers: &[&str]) -> Fleet {
        // Longer than a lock, so that a caller still waits when a broken session's record is delivered again.
        let gateway = Gateway::start(rig.gateway().env("ANSWER_TIMEOUT", "25s"));
        let workers = workers.iter().map(|id| rig.start_worker(id)).collect();
        Fleet { rig, gateway, workers }
    }

    /// Workers with two handlers: they fetch for the second while the first runs a task, so their sessions stay in use.
    fn of_two_handlers(name: &str, workers: &[&str]) -> Fleet {
        let rig = Rig::with_faults(name, 1);
        let gateway = rig.start_gateway();
        let start = |id: &&str| started(&rig.worker(id).env("WORKER_CONCURRENCY", 2));
        let workers = workers.iter().map(start).collect();
        Fleet { rig, gateway, workers }
    }

    fn inject(&self, fault: Fault) -> Bites {
        self.rig.broker().faulty().inject(fault)
    }

    /// Runs a load until `done` and 20 results more; returns its outcomes.
    fn loaded_until(&self, what: &str, mut done: impl FnMut() -> bool) -> Vec<Shot> {
        let load = self.gateway.load(50, 5);
        load.wait_for(20, SOON);
        eventually(Duration::from_secs(20), what, &mut done);
        load.wait_for(20, Duration::from_secs(20));
        load.finish()
    }

    /// Asserts that each request got its result, that each task ran once, and that the workers run.
    fn assert_unharmed(&mut self, shots: &[Shot]) {
        assert_all_answered(shots);
        self.rig.audit().assert_each_ran_once(&task_ids(shots));
        assert!(self.workers.iter_mut().all(Program::is_running));
    }

    /// Like [`Self::assert_nothing_lost_in`] with two runs.
    fn assert_nothing_lost(&mut self, shots: &[Shot]) {
        self.assert_nothing_lost_in(2, shots);
    }

    /// Asserts that each request got its result, that each task ran one to `runs` times, and that the workers run.
    fn assert_nothing_lost_in(&mut self, runs: usize, shots: &[Shot]) {
        assert_all_answered(shots);
        let audit = self.rig.audit();
        assert_eq!(audit.lost(), [""; 0]);
        assert!(audit.results.values().all(|results| results.len() <= runs), "{:?}", audit.ran_again());
        assert!(self.workers.iter_mut().all(Program::is_running));
    }
}

/// Asserts that each task runs once although the fault takes effect this many times.
fn is_harmless(name: &str, fault: Fault, times: u32) {
    let mut fleet = Fleet::new(name, 1);
    let bites = fleet.inject(fault);
    let shots = fleet.loaded_until("the fault takes effect", || bites.count() >= times);
    fleet.assert_unharmed(&shots);
}

#[test]
fn a_produce_whose_response_is_lost_is_written_once() {
    is_harmless("fault-answer", Fault::new(Action::CutAfter).at(Kind::Produce).every(7, 6), 6);
}

#[test]
fn a_produce_that_is_lost_is_repeated() {
    is_harmless("fault-request", Fault::new(Action::CutBefore).at(Kind::Produce).every(7, 6), 6);
}

#[test]
fn a_produce_that_is_written_but_reported_as_refused_is_written_once() {
    is_harmless("fault-misreport", Fault::new(Action::Misreport(ErrorCode(7))).at(Kind::Produce).every(7, 6), 6);
}

#[test]
fn throttled_produce_runs_no_task_twice() {
    let throttle = Action::Throttle(Duration::from_millis(300));
    is_harmless("fault-throttle", Fault::new(throttle).at(Kind::Produce).every(7, 6), 6);
}

/// A throttled ShareFetch locks records without returning them: they come again at the end of their locks.
#[test]
fn throttled_share_fetch_runs_no_task_twice() {
    let mut fleet = Fleet::of(Rig::with_faults_and("fault-throttle", 1, &SHORT_LOCKS), &["a", "b"]);
    let throttle = Action::Throttle(Duration::from_millis(300));
    let bites = fleet.inject(Fault::new(throttle).at(Kind::ShareFetch).after(20).every(30, 4));
    let shots = fleet.loaded_until("the faults take effect", || bites.count() == 4);
    fleet.assert_unharmed(&shots);
}

#[test]
fn a_refused_produce_refreshes_the_leaders() {
    let mut fleet = Fleet::new("fault-stale", 1);
    let bites = fleet.inject(Fault::new(Action::Refuse(NOT_LEADER)).at(Kind::Produce).every(5, 10));
    let requests = fleet.rig.count(Kind::Metadata, "");
    let shots = fleet.loaded_until("the faults take effect", || bites.count() >= 10);
    fleet.assert_unharmed(&shots);
    assert!(requests.count() >= 10, "only {} Metadata requests", requests.count());
}

#[test]
fn a_refused_fetch_refreshes_the_leaders() {
    let mut fleet = Fleet::new("fault-fetch", 1);
    let refused = || Fault::new(Action::Refuse(NOT_LEADER)).at(Kind::Fetch);
    // Single refusals, then a series: records that are written meanwhile are read afterwards.
    let bites = [refused().every(5, 10), refused().after(30).every(1, 10)].map(|fault| fleet.inject(fault));
    let requests = fleet.rig.count(Kind::Metadata, "");
    let shots = fleet.loaded_until("the faults take effect", || bites.iter().all(|bites| bites.count() >= 10));
    fleet.assert_unharmed(&shots);
    assert!(requests.count() >= 10, "only {} Metadata requests", requests.count());
}

#[test]
fn a_duplicate_fetch_response_is_not_taken_for_the_next_response() {
    is_harmless("fault-twice", Fault::new(Action::AnswerTwice).at(Kind::Fetch).every(5, 5), 5);
}

/// The duplicate response arrives where the response to the next request is expected, and that request was lost.
#[test]
fn a_duplicate_produce_response_does_not_acknowledge_a_lost_request() {
    for client in ["gateway", "worker"] {
        let mut fleet = Fleet::new("fault-double", 1);
        let produce = |action| Fault::new(action).at(Kind::Produce).of_client(client);
        let bites = [produce(Action::AnswerTwice).every(6, 6), produce(Action::CutBefore).after(1).every(6, 6)];
        let bites = bites.map(|fault| fleet.inject(fault));
        let shots = fleet.loaded_until("the faults take effect", || bites.iter().all(|bites| bites.count() == 6));
        fleet.assert_unharmed(&shots);
    }
}

#[test]
fn a_coordinator_that_moves_is_found_again() {
    let rig = Rig::with_faults("fault-coordinator", 2);
    let group = rig.group();
    rig.broker().faulty().move_coordinator(&group, 1);
    let mut fleet = Fleet::of(rig, &["a", "b"]);
    fleet.rig.broker().faulty().move_coordinator(&group, 2);
    // Waits until the new coordinator has accepted each worker: refused heartbeats alone would not fail the load.
    for worker in &fleet.workers {
        worker.wait_for_line("the share group's coordinator does not answer", SOON);
        worker.wait_for_line("the share group's coordinator answers again", Duration::from_secs(5));
    }
    let shots = fleet.loaded_until("no condition", || true);
    fleet.assert_unharmed(&shots);
    // A worker that joins and leaves now uses the new coordinator without a warning.
    let mut late = fleet.rig.start_worker("late");
    late.ends_at(Signal::SIGTERM, 0);
    assert!(late.lines_with("WARN").is_empty(), "{:?}", late.lines_with("WARN"));
}

#[test]
fn moves_of_leaders_lose_no_task() {
    let mut fleet = Fleet::new("fault-leaders", 2);
    let (tasks, results) = (fleet.rig.tasks(), fleet.rig.results());
    // Twice, so that the leaders end on different nodes: both nodes must serve.
    let mut node = 1;
    let mut moves_in_all = 0;
    for wanted in [4, 1] {
        let broker = fleet.rig.broker().faulty();
        let mut moved_at = Instant::now();
        let mut moves = 0;
        let shots = fleet.loaded_until("leaders have moved", || {
            if moved_at.elapsed() > Duration::from_millis(700) {
                node = 3 - node;
                assert!(broker.move_leader(&tasks, 0, node) && broker.move_leader(&results, 0, 3 - node));
                (moved_at, moves) = (Instant::now(), moves + 1);
            }
            moves == wanted
        });
        moves_in_all += wanted;
        // A finished task without an accept may run again, but not on the worker that finished it.
        fleet.assert_nothing_lost_in(1 + moves_in_all, &shots);
        let audit = fleet.rig.audit();
        let twice_by_one = |results: &&Vec<&str>| results.iter().collect::<BTreeSet<_>>().len() < results.len();
        assert_eq!(audit.ran_again().values().filter(twice_by_one).count(), 0, "{:?}", audit.ran_again());
    }
}

#[test]
fn a_lost_share_session_is_opened_again() {
    // With one worker too, because a second worker could hide the failure of the first.
    for (code, workers) in [(122, &["a"][..]), (123, &["a"]), (122, &["a", "b"]), (123, &["a", "b"])] {
        let mut fleet = Fleet::of(Rig::with_faults("fault-session", 1), workers);
        let bites =
            fleet.inject(Fault::new(Action::Refuse(ErrorCode(code))).at(Kind::ShareFetch).after(20).every(30, 4));
        let shots = fleet.loaded_until("the faults take effect", || bites.count() == 4);
        fleet.assert_nothing_lost(&shots);
    }
}

/// Number of start records of a task: a worker writes one before it starts a redelivered record.
fn starts_again(audit: &Audit, task: &str) -> usize {
    audit.starts.iter().filter(|start| start["task_id"] == task).count()
}

/// P2: a task that runs while its worker loses its share session is started again at most once.
#[test]
fn a_session_cut_during_a_task_causes_at_most_one_second_run() {
    let mut fleet = Fleet::of_two_handlers("fault-cut", &["a", "b"]);
    let task = fleet.gateway.submit("long", Duration::from_secs(3));
    let runner = fleet.gateway.wait_until_running(&task, SOON);
    let cut = Fault::new(Action::CutBefore).at(Kind::ShareFetch).of_client(&format!("worker-{runner}"));
    let bites = fleet.inject(cut.every(3, 3));
    eventually(SOON, "the faults take effect", || bites.count() == 3);
    fleet.gateway.wait_for_result(&task, SOON);
    let audit = fleet.rig.audit();
    assert!(starts_again(&audit, &task) <= 1, "{:?} after {runner}", audit.starts);
    assert!(audit.runs(&task) <= 2, "{:?} after {runner}", audit.ran_again());
    assert!(fleet.workers.iter_mut().all(Program::is_running));
}

/// The only worker acquires the record again, does not start the task again, and accepts it.
#[test]
fn a_session_cut_of_the_only_worker_causes_no_second_run() {
    for action in [Action::CutBefore, Action::CutAfter] {
        let mut fleet = Fleet::of_two_handlers("fault-cut-alone", &["a"]);
        let task = fleet.gateway.submit("long", Duration::from_secs(3));
        fleet.gateway.wait_until_running(&task, SOON);
        let bites = fleet.inject(Fault::new(action).at(Kind::ShareFetch).of_client("worker").every(2, 3));
        eventually(SOON, "the faults take effect", || bites.count() == 3);
        fleet.gateway.wait_for_result(&task, SOON);
        assert_eq!(fleet.gateway.analyze("the next").status, 200);
        fleet.workers[0].ends_at(Signal::SIGTERM, 0);
        let _heir = fleet.rig.start_worker("heir");
        assert_eq!(fleet.gateway.analyze("the last").json()["processed_by"], "heir");
        let audit = fleet.rig.audit();
        assert_eq!((audit.runs(&task), starts_again(&audit, &task)), (1, 0), "{action:?}");
    }
}

#[test]
fn a_refused_accept_loses_no_task() {
    let mut fleet = Fleet::new("fault-accept", 1);
    // The fault refuses only the acknowledgements of a share fetch.
    let bites = [Kind::ShareFetch, Kind::ShareAcknowledge].map(|kind| {
        fleet.inject(Fault::new(Action::RefuseAcknowledgements(LOST_LOCK)).at(kind).after(10).every(20, 3))
    });
    let shots = fleet.loaded_until("the faults take effect", || bites.iter().map(Bites::count).sum::<u32>() >= 3);
    fleet.assert_nothing_lost(&shots);
}

/// The lock ends while the handler runs: another worker runs the task as well, and its caller gets one result.
#[test]
fn an_expired_lock_causes_one_second_run_and_keeps_the_first_result() {
    let rig = Rig::with_faults_and("fault-lock", 1, &SHORT_LOCKS);
    let gateway = Gateway::start(rig.gateway().env("ANSWER_TIMEOUT", "25s"));
    // The handler of these workers ignores its abandonment.
    let workers = ["a", "b"].map(|id| started(&rig.obedient_worker(id))).into();
    let mut fleet = Fleet { rig, gateway, workers };
    for kind in [Kind::ShareFetch, Kind::ShareAcknowledge] {
        // Refuses every renewal; the worker sends one per second.
        fleet.inject(Fault::new(Action::RefuseAcknowledgements(LOST_LOCK)).at(kind).every(1, 10_000));
    }
    let task = fleet.gateway.submit("sleep 5000", Duration::ZERO);
    let result = fleet.gateway.wait_for_result(&task, Duration::from_secs(20));
    fleet.rig.broker().faulty().heal();
    assert_eq!(result["success"], true);
    let again = |fleet: &Fleet| fleet.rig.audit().runs(&task);
    eventually(Duration::from_secs(20), "the second run ends as well", || again(&fleet) == 2);
    assert_eq!(fleet.gateway.get(&format!("/tasks/{task}")).json(), result, "the first result stays");
    assert!(fleet.workers.iter_mut().all(Program::is_running));
}

#[test]
fn a_full_broker_disk_gives_503_and_loses_no_accepted_task() {
    let (rig, gateway, _worker) = Rig::with_faults("fault-full", 1).fleet_with("w", &[("ANSWER_TIMEOUT", "2s")]);
    let before = gateway.analyze("room enough");
    assert_eq!(before.status, 200);
    let full = Fault::new(Action::Refuse(ErrorCode::KAFKA_STORAGE_ERROR)).at(Kind::Produce).of_client("gateway");
    rig.broker().faulty().inject(full.every(1, 10_000));
    let refused = gateway.analyze("no room");
    refused.assert_problem(503);
    rig.broker().faulty().heal();
    // The outcome was unknown to the caller, and the gateway has kept retrying.
    gateway.wait_for_result(&refused.task_id(), SOON);
    eventually(SOON, "there is room again", || gateway.analyze("room again").status == 200);
    let audit = rig.audit();
    assert_eq!((audit.lost(), audit.runs(&before.task_id())), (vec![], 1));
}

/// The requests of a stop, in their order.
#[derive(Clone, Copy, Debug)]
enum Phase {
    Announce,
    Release,
    Leave,
    Complete,
}

impl Phase {
    const ALL: [Phase; 4] = [Phase::Announce, Phase::Release, Phase::Leave, Phase::Complete];

    /// The fault at the request of this phase.
    fn fault(self, action: Action) -> Fault {
        let fault = Fault::new(action).of_client("worker");
        match self {
            Phase::Announce => fault.at(Kind::Produce),
            Phase::Release => fault.at(Kind::ShareAcknowledge),
            Phase::Leave => fault.at(Kind::ShareGroupHeartbeat),
            Phase::Complete => fault.at(Kind::Produce).after(1),
        }
    }
}

/// Stops an idle worker with this fault; returns its exit, how often the fault took effect, and the worker.
fn stopped_with(name: &str, phase: Phase, action: Action) -> (Exit, u32, Program) {
    let rig = Rig::with_faults(name, 1);
    // Without heartbeats, which the fault could hit instead of a notification.
    let mut worker = started(&rig.worker("stops").env("HEARTBEAT_INTERVAL", "1m"));
    let bites = rig.broker().faulty().inject(phase.fault(action));
    worker.signal(Signal::SIGTERM);
    let exit = worker.wait(Duration::from_secs(20));
    (exit, bites.count(), worker)
}

#[test]
fn an_idle_worker_stops_in_time_if_the_broker_freezes_in_any_phase() {
    for phase in Phase::ALL {
        let action = Action::Freeze(Duration::from_secs(8));
        let (exit, bites, worker) = stopped_with("fault-freeze", phase, action);
        assert_eq!((exit.code, bites), (Some(0), 1), "{phase:?}");
        assert!(exit.elapsed < Duration::from_secs(5), "{phase:?}: {exit:?}");
        assert!(!worker.lines_with("WARN").is_empty(), "{phase:?}: no warning names the failed step");
        assert_eq!(worker.receipt()["outcome"], "drained", "{phase:?}");
    }
}

#[test]
fn an_idle_worker_stops_in_time_if_its_connection_breaks_in_any_phase() {
    for phase in Phase::ALL {
        for action in [Action::CutBefore, Action::CutAfter] {
            let (exit, bites, worker) = stopped_with("fault-break", phase, action);
            assert_eq!((exit.code, bites), (Some(0), 1), "{phase:?} {action:?}");
            assert!(exit.elapsed < Duration::from_secs(5), "{phase:?} {action:?}: {exit:?}");
            assert_eq!(worker.receipt()["exit_code"], 0, "{phase:?} {action:?}");
            // Requests of the session end with its connection; the worker repeats all others.
            if !matches!(phase, Phase::Release) {
                let undone = worker.lines_with("could not");
                assert!(undone.is_empty(), "{phase:?} {action:?}: {undone:?}");
            }
        }
    }
}

/// Requests of a busy worker during its stop.
#[derive(Clone, Copy, Debug)]
enum Duty {
    Result,
    /// The accept on the closing session: the worker cannot find out whether it took effect.
    Accept,
    /// A renewal: the worker opens the session again and acquires the record again; the first attempt breaks as well.
    Renewal,
}

impl Duty {
    fn work(self) -> Duration {
        // Renewals come every 5 s.
        if matches!(self, Duty::Renewal) { Duration::from_secs(7) } else { Duration::from_millis(1500) }
    }

    fn faults(self, action: Action) -> Vec<Fault> {
        let fault = |kind| Fault::new(action).at(kind).of_client("worker");
        match self {
            Duty::Result => vec![fault(Kind::Produce).every(1, 2)],
            Duty::Accept => vec![fault(Kind::ShareAcknowledge)],
            Duty::Renewal => vec![fault(Kind::ShareAcknowledge), fault(Kind::ShareFetch)],
        }
    }
}

/// P4: the task runs at most as often as listed, whichever request of the stop breaks.
#[test]
fn a_stopping_worker_finishes_its_task_if_a_connection_breaks() {
    for (duty, most_runs) in [(Duty::Result, 1), (Duty::Accept, 2), (Duty::Renewal, 1)] {
        for action in [Action::CutBefore, Action::CutAfter] {
            let rig = Rig::with_faults("fault-busy", 1);
            let gateway = rig.start_gateway();
            // Without heartbeats, which the fault could hit instead of the result.
            let launch = rig.worker("busy").env("HEARTBEAT_INTERVAL", "1m").env("LOG_LEVEL", "debug");
            let mut worker = started(&launch);
            let task = gateway.submit("work", duty.work());
            worker.wait_for_line(&format!("starts task {task} at its delivery 1"), SOON);
            worker.signal(Signal::SIGTERM);
            worker.wait_for_line(&format!("waiting for current task {task}"), SOON);
            let bites: Vec<Bites> =
                duty.faults(action).into_iter().map(|fault| rig.broker().faulty().inject(fault)).collect();
            let exit = worker.wait(SOON);
            assert_eq!(exit.code, Some(0), "{duty:?} {action:?}: {:?}", worker.lines_with("WARN"));
            assert!(bites.iter().all(|bites| bites.count() > 0), "{duty:?} {action:?}: {bites:?}");
            rig.broker().faulty().heal();
            let _heir = rig.start_worker("heir");
            let last = gateway.analyze("the heir works");
            assert_eq!(last.json()["processed_by"], "heir");
            gateway.wait_for_result(&task, SOON);
            assert!((1..=most_runs).contains(&rig.audit().runs(&task)), "{duty:?} {action:?}");
        }
    }
}

/// P4: the worker releases a task at the drain deadline if Kafka has not acknowledged its result.
#[test]
fn a_task_whose_result_cannot_be_written_is_released_and_runs_elsewhere() {
    let rig = Rig::with_faults("fault-unwritten", 1);
    let gateway = rig.start_gateway();
    let mut worker = started(&rig.worker("busy").env("DRAIN_TIMEOUT", "6s"));
    let task = gateway.submit("work", Duration::from_millis(4500));
    gateway.wait_until_running(&task, SOON);
    let refused = Fault::new(Action::Refuse(ErrorCode::KAFKA_STORAGE_ERROR)).at(Kind::Produce).of_client("worker");
    rig.broker().faulty().inject(refused.every(1, u32::MAX));
    worker.signal(Signal::SIGTERM);
    let exit = worker.wait(SOON);
    assert_eq!(worker.receipt()["tasks_abandoned"], serde_json::json!([task]), "{exit:?}");
    rig.broker().faulty().heal();
    let _heir = rig.start_worker("heir");
    assert_eq!(gateway.wait_for_result(&task, SOON)["processed_by"], "heir");
    assert_eq!(rig.audit().runs(&task), 1);
}

#[test]
fn a_worker_pauses_between_attempts_to_open_a_refused_session() {
    let fleet = Fleet::of(Rig::with_faults("fault-pause", 1), &["only"]);
    let refusal = Action::Refuse(ErrorCode::SHARE_SESSION_NOT_FOUND);
    let bites = fleet.inject(Fault::new(refusal).at(Kind::ShareFetch).every(1, u32::MAX));
    let begin = Instant::now();
    eventually(SOON, "the worker has tried twenty times", || bites.count() >= 20);
    assert!(begin.elapsed() > Duration::from_millis(800), "twenty requests in {:?}", begin.elapsed());
    fleet.rig.broker().faulty().heal();
    assert_eq!(fleet.gateway.analyze("it works again").status, 200);
}
