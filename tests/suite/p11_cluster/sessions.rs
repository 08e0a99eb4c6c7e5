//! P11 at one broker: share sessions whose connections say nothing any more, hang, or are replaced.

use super::*;

// ---- connections that die without a word ----

/// The worker waited for the answer for ever, and called itself healthy.
#[test]
fn a_connection_that_says_nothing_any_more_is_replaced_and_no_lock_is_lost() {
    let scene = Scene::short_locks("p11-deaf", &["a", "b"]);
    let task = scene.gateway.submit("held meanwhile", Duration::from_secs(5));
    let holder = scene.gateway.wait_until_running(&task, SOON);
    // It renews the lock every second, and fetches nothing.
    let deaf = Fault::new(Action::Deafen).of_client(&format!("lastcall-worker-{holder}")).at(Kind::ShareAcknowledge);
    let bites = scene.broker().inject(deaf);
    eventually(SOON, "its session's connection is deaf", || bites.count() > 0);
    scene.gateway.wait_for_result(&task, SOON);
    wait(2 * LOCK);
    assert_eq!(scene.rig.audit().runs(&task), 1, "the locks were taken over");
    for round in 0..20 {
        assert_eq!(scene.gateway.analyze(&format!("round {round}")).status, 200);
    }
}

/// An acknowledgement that a connection swallowed is said again on the next one, within the lock.
#[test]
fn what_a_deaf_connection_has_swallowed_is_said_again() {
    let scene = Scene::short_locks("p11-swallowed", &["only"]);
    scene.gateway.analyze("before");
    let deaf = Fault::new(Action::Deafen).of_client("lastcall-worker").at(Kind::ShareFetch);
    let bites = scene.broker().inject(deaf);
    let tasks = [1, 2].map(|number| scene.gateway.submit(&format!("task {number}"), Duration::from_millis(1)));
    for task in &tasks {
        scene.gateway.wait_for_result(task, SOON);
    }
    assert_eq!(bites.count(), 1);
    wait(2 * LOCK);
    scene.rig.audit().assert_each_ran_once(&tasks);
}

/// A path that holds everything up for less than a lock, and then delivers it in whatever order: the task runs once.
#[test]
fn a_path_that_stalls_for_less_than_a_lock_costs_nothing() {
    let scene = Scene::new("p11-stall", 1, &["a", "b"]);
    let task = scene.gateway.submit("held meanwhile", Duration::from_secs(16));
    scene.gateway.wait_until_running(&task, SOON);
    scene.broker().nodes().freeze();
    wait(Duration::from_secs(12));
    scene.broker().nodes().thaw();
    scene.gateway.wait_for_result(&task, SOON);
    wait(Duration::from_secs(1));
    assert_eq!((scene.rig.audit().runs(&task), scene.starts(&task)), (1, 0));
}

/// P8b: a worker that is cut off does not call itself live, its task starts elsewhere, and it works again by itself.
#[test]
fn a_worker_that_is_cut_off_says_so_and_works_again_when_it_can() {
    let scene = Scene::short_locks("p11-cut", &["a", "b"]);
    let task = scene.gateway.submit("held meanwhile", Duration::from_secs(4));
    let holder = scene.gateway.wait_until_running(&task, SOON);
    let place = scene.workers.iter().position(|worker| worker.name() == holder).expect("one of ours");
    let (cut, heir) = (&scene.workers[place], &scene.workers[1 - place]);
    scene.cut_off(&holder);
    heir.wait_for_line(&format!("starts task {task}"), SOON);
    cut.wait_for_line("is not live: no leader of the tasks has answered", SOON);
    scene.broker().heal();
    let healed = Instant::now();
    cut.wait_for_line("is live again", Duration::from_secs(25));
    eventually(Duration::from_secs(25), "it takes tasks again", || {
        let answers = (0..4).map(|number| scene.gateway.analyze(&format!("text {number}")));
        answers.into_iter().any(|answer| answer.json()["processed_by"] == holder.as_str())
    });
    assert!(healed.elapsed() < Duration::from_secs(25));
}

// ---- stops and kills right after a replacement ----

/// A worker that leaves right after it has replaced a connection takes no task along.
#[test]
fn a_stop_or_a_kill_right_after_a_replacement_hides_no_task() {
    for signal in [Signal::SIGTERM, Signal::SIGKILL] {
        let mut scene = Scene::short_locks("p11-leave", &["leaves"]);
        let deaf = Fault::new(Action::Deafen).of_client("lastcall-worker").at(Kind::ShareFetch);
        let bites = scene.broker().inject(deaf);
        eventually(SOON, "its connection is deaf", || bites.count() == 1);
        scene.workers[0].wait_for_line("a leader of the tasks, does not answer", SOON);
        scene.workers.push(started(&scene.rig.worker("stays")));
        scene.workers[0].signal(signal);
        let begun = Instant::now();
        let task = scene.gateway.submit("right after", Duration::from_millis(1));
        scene.gateway.wait_for_result(&task, SOON);
        // P8 allows a lock for a record that was fetched within 100 ms after a connection was lost and replaced.
        let limit = if signal == Signal::SIGTERM { Duration::from_secs(1) } else { LOCK + Duration::from_secs(1) };
        assert!(begun.elapsed() < limit, "{signal}: {:?}", begun.elapsed());
        scene.workers[0].wait(SOON);
    }
}

// ---- several tasks at once ----

/// A group of renewals that is refused for lost locks is halved; it was sent again as a whole, as fast as it was refused.
#[test]
fn a_worker_that_hung_with_several_tasks_floods_nobody_and_works_on() {
    let mut scene = Scene::short_locks("p11-group", &[]);
    let start = |scene: &mut Scene, id: &str| {
        let worker = started(&scene.rig.worker(id).env("WORKER_CONCURRENCY", 3));
        scene.workers.push(worker);
    };
    start(&mut scene, "hung");
    let tasks = [1, 2, 3].map(|number| scene.gateway.submit(&format!("task {number}"), Duration::from_secs(8)));
    scene.wait_until_runs("hung", 3);
    start(&mut scene, "heir");
    scene.workers[0].signal(Signal::SIGSTOP);
    for task in &tasks {
        scene.workers[1].wait_for_line(&format!("starts task {task}"), SOON);
    }
    let acknowledged = count(&scene, Kind::ShareAcknowledge);
    scene.workers[0].signal(Signal::SIGCONT);
    scene.workers[0].wait_for_lines("lost the lock of task", 3, SOON);
    wait(Duration::from_secs(1));
    assert!(acknowledged.count() < 100, "{} acknowledgements in a second", acknowledged.count());
    for task in &tasks {
        scene.gateway.wait_for_result(task, SOON);
    }
    let mut both = BTreeSet::new();
    eventually(SOON, "both work on", || {
        both.insert(scene.gateway.analyze("and after").json()["processed_by"].to_string());
        both.len() == 2
    });
}

/// While an accept hangs, other records are fetched and run, and what hangs is done once.
#[test]
fn an_accept_that_hangs_stops_nothing_else() {
    let scene = Scene::short_locks("p11-hang", &["only"]);
    let first = scene.gateway.submit("its accept rides on a fetch that hangs", Duration::from_secs(2));
    scene.gateway.wait_until_running(&first, SOON);
    // Nothing is fetched while it runs.
    let hang = Fault::new(Action::Delay(Duration::from_secs(4))).at(Kind::ShareFetch).of_client("lastcall-worker");
    let bites = scene.broker().inject(hang);
    eventually(SOON, "a fetch hangs", || bites.count() == 1);
    let begun = Instant::now();
    let acknowledged = count(&scene, Kind::ShareAcknowledge);
    let mut tasks = vec![first];
    assert_eq!(scene.gateway.analyze("on the connection that has taken over").status, 200);
    assert!(begun.elapsed() < LOCK / 3, "answered only when it had hung for {:?}", begun.elapsed());
    while begun.elapsed() < Duration::from_secs(5) {
        tasks.push(scene.gateway.submit("meanwhile", Duration::from_millis(1)));
        wait(Duration::from_millis(250));
    }
    for task in &tasks {
        scene.gateway.wait_for_result(task, Duration::from_secs(2));
    }
    assert!(acknowledged.count() < 100, "{} acknowledgements in five seconds", acknowledged.count());
    wait(LOCK + Duration::from_secs(1));
    scene.rig.audit().assert_each_ran_once(&tasks);
}

/// A result that hangs, as one does whose leader was killed, keeps no other task from its start.
#[test]
fn a_result_that_hangs_keeps_no_task_waiting() {
    let mut scene = Scene::short_locks("p11-result", &[]);
    scene.workers.push(started(&scene.rig.worker("only").env("LOG_LEVEL", "debug")));
    let first = scene.gateway.submit("its result hangs", Duration::from_millis(500));
    scene.workers[0].wait_for_line(&format!("starts task {first}"), SOON);
    let hang = Fault::new(Action::Delay(Duration::from_secs(4))).at(Kind::Produce).of_client("lastcall-worker");
    let bites = scene.broker().inject(hang.of_topic(&scene.rig.results()));
    scene.workers[0].wait_for_line(&format!("has run task {first}"), SOON);
    eventually(SOON, "a result or a heartbeat hangs, and what comes after it waits", || bites.count() == 1);
    let second = scene.gateway.submit("meanwhile", Duration::from_millis(1));
    scene.workers[0].wait_for_line(&format!("starts task {second}"), Duration::from_secs(1));
    for task in [&first, &second] {
        scene.gateway.wait_for_result(task, SOON);
        assert_eq!(scene.rig.audit().runs(task), 1);
    }
}

/// A session that is opened on a second connection, and on a third because that hangs as well, stays with the third: what
/// the second one does late is undone, and no lock is lost.
#[test]
fn a_session_that_is_opened_late_takes_no_lock_away() {
    let rig = Rig::with_faults_and("p11-late", 1, &[]);
    let gateway = Gateway::start(rig.gateway());
    let workers = vec![started(&rig.worker("holder").env("WORKER_CONCURRENCY", 2))];
    let mut scene = Scene { rig, gateway, workers };
    let tasks = [14, 2].map(|seconds| scene.gateway.submit("held meanwhile", Duration::from_secs(seconds)));
    scene.wait_until_runs("holder", 2);
    // The fetch with the accept of the second task, and the epoch 0 of the connection that takes over: two thirds of a
    // lock later there is a third one, and then the second one has its answer.
    let hang =
        Fault::new(Action::Delay(Duration::from_secs(11))).at(Kind::ShareFetch).of_client("lastcall-worker-holder");
    let bites = scene.broker().inject(hang.every(1, 2));
    scene.workers.push(started(&scene.rig.worker("heir")));
    for task in &tasks {
        scene.gateway.wait_for_result(task, Duration::from_secs(20));
    }
    wait(Duration::from_secs(1));
    assert_eq!(bites.count(), 2);
    for task in &tasks {
        assert_eq!((scene.rig.audit().runs(task), scene.starts(task)), (1, 0));
    }
}
