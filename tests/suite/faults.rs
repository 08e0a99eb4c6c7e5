//! Faults at a chosen request, on the embedded broker: what a real one shows once a month, each with the promise that must hold.

mod throttle;

use std::{
    collections::BTreeSet,
    time::{Duration, Instant},
};

use devbroker::{Action, Bites, Fault, Kind};
use kafka_share::ErrorCode;
use nix::sys::signal::Signal;

use crate::support::{
    Gateway, Rig, SHORT_LOCKS, SOON,
    audit::Audit,
    eventually,
    load::{Load, Plan, Shot, assert_all_answered, task_ids},
    program::{Exit, Program},
};

const NOT_LEADER: ErrorCode = ErrorCode::NOT_LEADER_OR_FOLLOWER;
const LOST_LOCK: ErrorCode = ErrorCode::INVALID_RECORD_STATE;

/// A fleet of two workers on a broker of its own.
struct Fleet {
    rig: Rig,
    gateway: Gateway,
    workers: Vec<Program>,
}

impl Fleet {
    fn new(name: &str, nodes: usize) -> Fleet {
        Fleet::of(Rig::with_faults(name, nodes), &["a", "b"])
    }

    /// These workers and nobody else.
    fn of(rig: Rig, workers: &[&str]) -> Fleet {
        // Longer than a lock: what a broken session keeps locked is answered, too.
        let gateway = Gateway::start(rig.gateway().env("ANSWER_TIMEOUT", "25s"));
        let workers = workers.iter().map(|id| rig.start_worker(id)).collect();
        Fleet { rig, gateway, workers }
    }

    /// Workers that fetch for a second handler while the first one works: their sessions are in use all the time.
    fn of_two_handlers(name: &str, workers: &[&str]) -> Fleet {
        let rig = Rig::with_faults(name, 1);
        let gateway = rig.start_gateway();
        let start = |id: &&str| crate::support::started(&rig.worker(id).env("WORKER_CONCURRENCY", 2));
        let workers = workers.iter().map(start).collect();
        Fleet { rig, gateway, workers }
    }

    fn inject(&self, fault: Fault) -> Bites {
        self.rig.broker().faulty().inject(fault)
    }

    /// Counts requests of this kind from now on, and does nothing to them.
    fn count(&self, kind: Kind) -> Bites {
        self.inject(Fault::new(Action::Delay(Duration::ZERO)).at(kind).every(1, u32::MAX))
    }

    /// Load until `done`, and a little longer; what its callers got.
    fn loaded_until(&self, what: &str, mut done: impl FnMut() -> bool) -> Vec<Shot> {
        let addresses = vec![self.gateway.address.clone()];
        let load = Load::start(Plan { addresses, per_second: 50, work: Some(Duration::from_millis(5)) });
        eventually(SOON, "answers come", || load.answered() > 20);
        eventually(Duration::from_secs(20), what, &mut done);
        let before = load.answered();
        eventually(Duration::from_secs(20), "answers go on", || load.answered() > before + 20);
        load.finish()
    }

    /// Everybody was answered, each task ran once, nobody died.
    fn assert_unharmed(&mut self, shots: &[Shot]) {
        assert_all_answered(shots);
        self.rig.audit().assert_each_ran_once(&task_ids(shots));
        assert!(self.workers.iter_mut().all(Program::is_running));
    }

    /// Everybody was answered and nothing is lost; a task may have run twice.
    fn assert_nothing_lost(&mut self, shots: &[Shot]) {
        self.assert_nothing_lost_in(2, shots);
    }

    /// Everybody was answered and nothing is lost; a task may have run as often as `runs` says.
    fn assert_nothing_lost_in(&mut self, runs: usize, shots: &[Shot]) {
        assert_all_answered(shots);
        let audit = self.rig.audit();
        assert_eq!(audit.lost(), [""; 0]);
        assert!(audit.results.values().all(|results| results.len() <= runs), "{:?}", audit.ran_again());
        assert!(self.workers.iter_mut().all(Program::is_running));
    }
}

/// A fault that is none to those who know how to repeat: each task runs once all the same.
fn is_harmless(name: &str, fault: Fault, bites_wanted: u32) {
    let mut fleet = Fleet::new(name, 1);
    let bites = fleet.inject(fault);
    let shots = fleet.loaded_until("it has bitten", || bites.count() >= bites_wanted);
    fleet.assert_unharmed(&shots);
}

#[test]
fn a_produce_whose_answer_is_lost_is_in_the_log_once() {
    is_harmless("fault-answer", Fault::new(Action::CutAfter).at(Kind::Produce).every(7, 6), 6);
}

#[test]
fn a_produce_that_is_lost_is_repeated() {
    is_harmless("fault-request", Fault::new(Action::CutBefore).at(Kind::Produce).every(7, 6), 6);
}

#[test]
fn a_produce_that_was_taken_and_called_refused_is_in_the_log_once() {
    is_harmless("fault-misreport", Fault::new(Action::Misreport(ErrorCode(7))).at(Kind::Produce).every(7, 6), 6);
}

#[test]
fn throttled_produce_costs_nothing() {
    let throttle = Action::Throttle(Duration::from_millis(300));
    is_harmless("fault-throttle", Fault::new(throttle).at(Kind::Produce).every(7, 6), 6);
}

/// What a throttled ShareFetch has acquired is locked and never told: it comes back with the end of its lock.
#[test]
fn throttled_share_fetch_costs_time_and_no_second_run() {
    let mut fleet = Fleet::of(Rig::with_faults_and("fault-throttle", 1, &SHORT_LOCKS), &["a", "b"]);
    let throttle = Action::Throttle(Duration::from_millis(300));
    let bites = fleet.inject(Fault::new(throttle).at(Kind::ShareFetch).after(20).every(30, 4));
    let shots = fleet.loaded_until("it has bitten", || bites.count() == 4);
    fleet.assert_unharmed(&shots);
}

#[test]
fn a_stale_view_of_the_leaders_is_mended() {
    let mut fleet = Fleet::new("fault-stale", 1);
    let bites = fleet.inject(Fault::new(Action::Refuse(NOT_LEADER)).at(Kind::Produce).every(5, 10));
    let questions = fleet.count(Kind::Metadata);
    let shots = fleet.loaded_until("it has bitten", || bites.count() >= 10);
    fleet.assert_unharmed(&shots);
    assert!(questions.count() >= 10, "who is told so asks again who leads, {} times", questions.count());
}

#[test]
fn a_fetch_from_who_does_not_lead_is_repeated() {
    let mut fleet = Fleet::new("fault-fetch", 1);
    let refused = || Fault::new(Action::Refuse(NOT_LEADER)).at(Kind::Fetch);
    // Now and then, and for a while: what is written meanwhile is read all the same.
    let bites = [refused().every(5, 10), refused().after(30).every(1, 10)].map(|fault| fleet.inject(fault));
    let questions = fleet.count(Kind::Metadata);
    let shots = fleet.loaded_until("it has bitten", || bites.iter().all(|bites| bites.count() >= 10));
    fleet.assert_unharmed(&shots);
    assert!(questions.count() >= 10, "who is told so asks again who leads, {} times", questions.count());
}

#[test]
fn an_answer_that_comes_twice_is_not_taken_for_another() {
    is_harmless("fault-twice", Fault::new(Action::AnswerTwice).at(Kind::Fetch).every(5, 5), 5);
}

/// The first answer's double stands where the next one's answer is looked for, and that one never reached the log.
#[test]
fn a_produce_that_is_lost_is_not_taken_for_the_one_before_that_was_answered_twice() {
    for client in ["gateway", "worker"] {
        let mut fleet = Fleet::new("fault-double", 1);
        let produce = |action| Fault::new(action).at(Kind::Produce).of_client(client);
        let bites = [produce(Action::AnswerTwice).every(6, 6), produce(Action::CutBefore).after(1).every(6, 6)];
        let bites = bites.map(|fault| fleet.inject(fault));
        let shots = fleet.loaded_until("it has bitten", || bites.iter().all(|bites| bites.count() == 6));
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
    // Each worker is told by the old one to go elsewhere, and is a member there: refused heartbeats alone would not show.
    for worker in &fleet.workers {
        worker.wait_for_line("the share group's coordinator does not answer", SOON);
        worker.wait_for_line("the share group's coordinator answers again", Duration::from_secs(5));
    }
    let shots = fleet.loaded_until("nothing more", || true);
    fleet.assert_unharmed(&shots);
    // Who joins now finds the new one as well, and who leaves tells it.
    let mut late = fleet.rig.start_worker("late");
    late.signal(Signal::SIGTERM);
    assert_eq!(late.wait(SOON).code, Some(0));
    assert!(late.lines_with("WARN").is_empty(), "{:?}", late.lines_with("WARN"));
}

#[test]
fn leaders_that_move_lose_nothing() {
    let mut fleet = Fleet::new("fault-leaders", 2);
    let (tasks, results) = (fleet.rig.tasks(), fleet.rig.results());
    // Twice, with the leaders on other nodes in the end: answers must come from both.
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
        // As after a broker's restart, what was done and not yet accepted may run again; the worker that did it knows, the others do not.
        fleet.assert_nothing_lost_in(1 + moves_in_all, &shots);
        let audit = fleet.rig.audit();
        let twice_by_one = |results: &&Vec<&str>| results.iter().collect::<BTreeSet<_>>().len() < results.len();
        assert_eq!(audit.ran_again().values().filter(twice_by_one).count(), 0, "{:?}", audit.ran_again());
    }
}

#[test]
fn a_share_session_that_is_gone_is_opened_again() {
    // Alone, a worker cannot hide behind another one that is well.
    for (code, workers) in [(122, &["a"][..]), (123, &["a"]), (122, &["a", "b"]), (123, &["a", "b"])] {
        let mut fleet = Fleet::of(Rig::with_faults("fault-session", 1), workers);
        let bites =
            fleet.inject(Fault::new(Action::Refuse(ErrorCode(code))).at(Kind::ShareFetch).after(20).every(30, 4));
        let shots = fleet.loaded_until("it has bitten", || bites.count() == 4);
        fleet.assert_nothing_lost(&shots);
    }
}

/// How often a task was started that had been delivered before; two starts in one worker have one result.
fn starts_again(audit: &Audit, task: &str) -> usize {
    audit.starts.iter().filter(|start| start["task_id"] == task).count()
}

/// P2: a task that runs while its session breaks is started once more at the most.
#[test]
fn a_session_cut_under_a_running_task_costs_no_more_than_one_run_more() {
    let mut fleet = Fleet::of_two_handlers("fault-cut", &["a", "b"]);
    let task = fleet.gateway.submit("long", Duration::from_secs(3));
    let runner = fleet.gateway.wait_until_running(&task, SOON);
    let cut = Fault::new(Action::CutBefore).at(Kind::ShareFetch).of_client(&format!("worker-{runner}"));
    let bites = fleet.inject(cut.every(3, 3));
    eventually(SOON, "it has bitten", || bites.count() == 3);
    fleet.gateway.wait_for_result(&task, SOON);
    let audit = fleet.rig.audit();
    assert!(starts_again(&audit, &task) <= 1, "{:?} after {runner}", audit.starts);
    assert!(audit.runs(&task) <= 2, "{:?} after {runner}", audit.ran_again());
    assert!(fleet.workers.iter_mut().all(Program::is_running));
}

/// The same where nobody else can take it: its worker gets the lock back, does not start the task again, and accepts it.
#[test]
fn a_session_cut_under_the_only_worker_costs_nothing() {
    for action in [Action::CutBefore, Action::CutAfter] {
        let mut fleet = Fleet::of_two_handlers("fault-cut-alone", &["a"]);
        let task = fleet.gateway.submit("long", Duration::from_secs(3));
        fleet.gateway.wait_until_running(&task, SOON);
        let bites = fleet.inject(Fault::new(action).at(Kind::ShareFetch).of_client("worker").every(2, 3));
        eventually(SOON, "it has bitten", || bites.count() == 3);
        fleet.gateway.wait_for_result(&task, SOON);
        assert_eq!(fleet.gateway.analyze("the next").status, 200);
        fleet.workers[0].signal(Signal::SIGTERM);
        assert_eq!(fleet.workers[0].wait(SOON).code, Some(0));
        let _heir = fleet.rig.start_worker("heir");
        assert_eq!(fleet.gateway.analyze("the last").json()["processed_by"], "heir");
        let audit = fleet.rig.audit();
        assert_eq!((audit.runs(&task), starts_again(&audit, &task)), (1, 0), "{action:?}");
    }
}

#[test]
fn an_accept_that_is_refused_costs_no_answer() {
    let mut fleet = Fleet::new("fault-accept", 1);
    // Of a share fetch only what it acknowledges is refused.
    let bites = [Kind::ShareFetch, Kind::ShareAcknowledge].map(|kind| {
        fleet.inject(Fault::new(Action::RefuseAcknowledgements(LOST_LOCK)).at(kind).after(10).every(20, 3))
    });
    let shots = fleet.loaded_until("it has bitten", || bites.iter().map(Bites::count).sum::<u32>() >= 3);
    fleet.assert_nothing_lost(&shots);
}

/// The lock runs out under the handler: somebody else runs the task as well, and its caller has one answer.
#[test]
fn a_lock_that_runs_out_under_its_handler_costs_one_run_more_and_no_answer() {
    let rig = Rig::with_faults_and("fault-lock", 1, &SHORT_LOCKS);
    let gateway = Gateway::start(rig.gateway().env("ANSWER_TIMEOUT", "25s"));
    // Their handler does not listen when it is told to end.
    let workers = ["a", "b"].map(|id| crate::support::started(&rig.obedient_worker(id))).into();
    let mut fleet = Fleet { rig, gateway, workers };
    for kind in [Kind::ShareFetch, Kind::ShareAcknowledge] {
        // Renewals come every second: none of them is taken.
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
fn a_full_store_is_told_and_costs_nothing_that_was_accepted() {
    let rig = Rig::with_faults("fault-full", 1);
    let gateway = Gateway::start(rig.gateway().env("ANSWER_TIMEOUT", "2s"));
    let _worker = rig.start_worker("w");
    let before = gateway.analyze("room enough");
    assert_eq!(before.status, 200);
    let full = Fault::new(Action::Refuse(ErrorCode::KAFKA_STORAGE_ERROR)).at(Kind::Produce).of_client("gateway");
    rig.broker().faulty().inject(full.every(1, 10_000));
    let refused = gateway.analyze("no room");
    refused.assert_problem(503);
    rig.broker().faulty().heal();
    // Its caller was told that the outcome is unknown, and to ask: the gateway goes on trying.
    gateway.wait_for_result(&refused.task_id(), SOON);
    eventually(SOON, "there is room again", || gateway.analyze("room again").status == 200);
    let audit = rig.audit();
    assert_eq!((audit.lost(), audit.runs(&before.task_id())), (vec![], 1));
}

/// The requests that a stop is made of, in their order.
#[derive(Clone, Copy, Debug)]
enum Phase {
    Announce,
    GiveBack,
    Leave,
    Complete,
}

impl Phase {
    const ALL: [Phase; 4] = [Phase::Announce, Phase::GiveBack, Phase::Leave, Phase::Complete];

    /// A fault at the request of this phase.
    fn fault(self, action: Action) -> Fault {
        let fault = Fault::new(action).of_client("worker");
        match self {
            Phase::Announce => fault.at(Kind::Produce),
            Phase::GiveBack => fault.at(Kind::ShareAcknowledge),
            Phase::Leave => fault.at(Kind::ShareGroupHeartbeat),
            Phase::Complete => fault.at(Kind::Produce).after(1),
        }
    }
}

/// An idle worker, a fault from the moment of its signal on, and how it ended.
fn stopped_with(name: &str, phase: Phase, action: Action) -> (Exit, u32, Program) {
    let rig = Rig::with_faults(name, 1);
    // No heartbeat on the topic may be taken for a notification.
    let mut worker = crate::support::started(&rig.worker("stops").env("HEARTBEAT_INTERVAL", "1m"));
    let bites = rig.broker().faulty().inject(phase.fault(action));
    worker.signal(Signal::SIGTERM);
    let exit = worker.wait(Duration::from_secs(20));
    (exit, bites.count(), worker)
}

#[test]
fn an_idle_worker_stops_though_the_broker_freezes_in_any_phase() {
    for phase in Phase::ALL {
        let action = Action::Freeze(Duration::from_secs(8));
        let (exit, bites, worker) = stopped_with("fault-freeze", phase, action);
        assert_eq!((exit.code, bites), (Some(0), 1), "{phase:?}");
        assert!(exit.elapsed < Duration::from_secs(5), "{phase:?}: {exit:?}");
        assert!(!worker.lines_with("WARN").is_empty(), "{phase:?}: it says what it could not do");
        assert_eq!(worker.receipt()["outcome"], "drained", "{phase:?}");
    }
}

#[test]
fn an_idle_worker_stops_though_its_connection_breaks_in_any_phase() {
    for phase in Phase::ALL {
        for action in [Action::CutBefore, Action::CutAfter] {
            let (exit, bites, worker) = stopped_with("fault-break", phase, action);
            assert_eq!((exit.code, bites), (Some(0), 1), "{phase:?} {action:?}");
            assert!(exit.elapsed < Duration::from_secs(5), "{phase:?} {action:?}: {exit:?}");
            assert_eq!(worker.receipt()["exit_code"], 0, "{phase:?} {action:?}");
            // What goes over a session ends with it; everything else is done again.
            if !matches!(phase, Phase::GiveBack) {
                let undone = worker.lines_with("could not");
                assert!(undone.is_empty(), "{phase:?} {action:?}: {undone:?}");
            }
        }
    }
}

/// What a busy worker has to do with Kafka while it stops, and how often its task may run when that breaks.
#[derive(Clone, Copy, Debug)]
enum Duty {
    Result,
    /// On the closing session: whether the broker had it is not known, and there is no session left to ask.
    Accept,
    /// The session is opened again, and the lock found again; the first try to open it breaks as well.
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

/// P4: the result first, then the accept; whatever request of these breaks, the task is done once or, at most, done again.
#[test]
fn a_busy_worker_keeps_its_task_though_a_connection_breaks_while_it_stops() {
    for (duty, most_runs) in [(Duty::Result, 1), (Duty::Accept, 2), (Duty::Renewal, 1)] {
        for action in [Action::CutBefore, Action::CutAfter] {
            let rig = Rig::with_faults("fault-busy", 1);
            let gateway = rig.start_gateway();
            // No heartbeat on the topic may be taken for the result.
            let launch = rig.worker("busy").env("HEARTBEAT_INTERVAL", "1m").env("LOG_LEVEL", "debug");
            let mut worker = crate::support::started(&launch);
            let task = gateway.submit("work", duty.work());
            // Without heartbeats nobody else tells that it runs.
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

/// P4: what is done and not in Kafka is not accepted: the deadline gives it back, and somebody else does it.
#[test]
fn a_task_whose_result_cannot_be_written_is_given_back() {
    let rig = Rig::with_faults("fault-unwritten", 1);
    let gateway = rig.start_gateway();
    let mut worker = crate::support::started(&rig.worker("busy").env("DRAIN_TIMEOUT", "6s"));
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

/// A broker that refuses every new session is asked with a pause, and longer and longer ones.
#[test]
fn sessions_that_are_refused_again_and_again_are_not_asked_for_without_a_pause() {
    let fleet = Fleet::of(Rig::with_faults("fault-pause", 1), &["only"]);
    let refusal = Action::Refuse(ErrorCode::SHARE_SESSION_NOT_FOUND);
    let bites = fleet.inject(Fault::new(refusal).at(Kind::ShareFetch).every(1, u32::MAX));
    let begin = Instant::now();
    eventually(SOON, "two seconds have passed", || begin.elapsed() > Duration::from_secs(2));
    assert!((1..50).contains(&bites.count()), "{} requests in two seconds", bites.count());
    fleet.rig.broker().faulty().heal();
    assert_eq!(fleet.gateway.analyze("it works again").status, 200);
}
