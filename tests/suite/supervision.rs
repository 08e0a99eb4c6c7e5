//! Messages to service managers and health checks: sd_notify(3) on the test's own socket, `--healthcheck`, the health
//! file.

use crate::support::{
    Gateway, Rig, SOON, START, eventually,
    program::{Launch, Program},
    reserved_port,
};
use nix::sys::signal::Signal;
use parking_lot::Mutex;
use std::{
    os::unix::net::UnixDatagram,
    path::PathBuf,
    sync::Arc,
    thread::JoinHandle,
    time::{Duration, Instant},
};

/// A service manager that records each message with its time of arrival.
struct Manager {
    path: PathBuf,
    said: Arc<Mutex<Vec<(Instant, String)>>>,
    reader: Option<JoinHandle<()>>,
}

impl Manager {
    fn new(name: &str) -> Manager {
        let path = std::env::temp_dir().join(format!("lastcall-notify-{}-{name}", std::process::id()));
        let socket = UnixDatagram::bind(&path).expect("a socket");
        let said = Arc::new(Mutex::new(Vec::new()));
        let told = Arc::clone(&said);
        let reader = std::thread::spawn(move || {
            let mut buffer = [0; 4096];
            while let Ok(length) = socket.recv(&mut buffer) {
                let text = String::from_utf8_lossy(&buffer[..length]).into_owned();
                if text == "END" {
                    return;
                }
                let now = Instant::now();
                told.lock().extend(text.lines().map(|line| (now, line.to_owned())));
            }
        });
        Manager { path, said, reader: Some(reader) }
    }

    fn supervise(&self, launch: Launch) -> Launch {
        launch.env("NOTIFY_SOCKET", self.path.display())
    }

    /// The first line that starts with `begin`, and when it came.
    fn first(&self, begin: &str) -> Option<(Instant, String)> {
        self.said.lock().iter().find(|(_, line)| line.starts_with(begin)).cloned()
    }

    fn wait_for(&self, begin: &str, limit: Duration) -> (Instant, String) {
        eventually(limit, begin, || self.first(begin).is_some());
        self.first(begin).expect("the line came")
    }

    fn count(&self, line: &str, since: Instant) -> usize {
        self.said.lock().iter().filter(|(at, said)| *at >= since && said == line).count()
    }
}

impl Drop for Manager {
    fn drop(&mut self) {
        let end = UnixDatagram::unbound().expect("a socket");
        if end.send_to(b"END", &self.path).is_ok()
            && let Some(reader) = self.reader.take()
        {
            reader.join().expect("the reader does not panic");
        }
        std::fs::remove_file(&self.path).expect("the socket is removed");
    }
}

/// Runs `launch --healthcheck`; returns the exit code and the output.
fn health(launch: &Launch) -> (Option<i32>, String) {
    let mut check = launch.clone().arg("--healthcheck").start();
    let exit = check.wait(SOON);
    (exit.code, check.lines().iter().map(|line| line.text.clone()).collect::<Vec<_>>().join("\n"))
}

#[test]
fn a_worker_sends_ready_when_it_takes_tasks_and_watchdog_messages_afterwards() {
    let rig = Rig::shared("ready");
    let manager = Manager::new("ready");
    let mut worker = manager.supervise(rig.worker("supervised")).start();
    let (ready, _) = manager.wait_for("READY=1", START);
    worker.wait_for_line("📡 Worker supervised sent worker_started notification", START);
    eventually(SOON, "three watchdog messages", || manager.count("WATCHDOG=1", ready) >= 3);
    assert!(manager.first("STATUS=takes tasks").is_some());
    let quiet = worker.signal(Signal::SIGUSR1);
    manager.wait_for("STATUS=quiet: takes no new tasks", SOON);
    eventually(SOON, "the quiet worker sends watchdog messages", || manager.count("WATCHDOG=1", quiet) >= 3);
    assert_eq!(manager.count("READY=1", ready), 1);
    worker.ends_at(Signal::SIGTERM, 0);
    let (stopping, _) = manager.wait_for("STOPPING=1", SOON);
    assert!(stopping > ready);
    assert_eq!(manager.count("STOPPING=1", ready), 1);
}

#[test]
fn a_worker_without_kafka_extends_its_start_timeout_is_not_ready_and_stops_with_code_0() {
    let rig = Rig::shared("no-kafka");
    let manager = Manager::new("no-kafka");
    let port = reserved_port();
    let mut worker = manager.supervise(rig.worker("waiting")).env("KAFKA_BOOTSTRAP_SERVERS", port.address()).start();
    let (first, _) = manager.wait_for("EXTEND_TIMEOUT_USEC=10000000", START);
    eventually(SOON, "the worker extends the timeout three times", || {
        manager.count("EXTEND_TIMEOUT_USEC=10000000", first) >= 3
    });
    assert!(manager.first("STATUS=waiting for Kafka").is_some());
    assert!(manager.first("READY=1").is_none());
    let exit = worker.ends_at(Signal::SIGTERM, 0);
    assert!(exit.elapsed < Duration::from_secs(5), "{exit:?}");
    assert!(worker.lines_with("worker_started").is_empty());
}

#[test]
fn a_draining_worker_reports_its_task_and_extends_its_stop_timeout() {
    let rig = Rig::shared("draining");
    let gateway = rig.start_gateway();
    let manager = Manager::new("draining");
    let mut worker = manager.supervise(rig.worker("draining")).start();
    manager.wait_for("READY=1", START);
    let task = gateway.submit("long", Duration::from_secs(8));
    eventually(SOON, "the worker runs the task", || manager.first(&format!("STATUS=works on task {task}")).is_some());
    let signalled = worker.signal(Signal::SIGTERM);
    let (_, status) = manager.wait_for(&format!("STATUS=draining task {task}, "), SOON);
    let left: u64 = status
        .trim_end_matches(" s left")
        .rsplit(' ')
        .next()
        .and_then(|number| number.parse().ok())
        .unwrap_or_else(|| panic!("{status}"));
    assert!((25..=30).contains(&left), "{status}");
    assert_eq!(worker.wait(2 * SOON).code, Some(0));
    assert!(manager.count("STOPPING=1", signalled) == 1);
    // Three belong to the steps of the stop; the others come once per second.
    assert!(manager.count("EXTEND_TIMEOUT_USEC=10000000", signalled) >= 5, "too few extensions");
    assert!(manager.count("WATCHDOG=1", signalled) >= 5, "too few watchdog messages");
}

#[test]
fn a_worker_whose_task_exceeds_task_timeout_is_not_live() {
    let rig = Rig::shared("overdue");
    let gateway = rig.start_gateway();
    let manager = Manager::new("overdue");
    // The handler ignores its abandonment.
    let launch = manager.supervise(rig.obedient_worker("stuck")).env("TASK_TIMEOUT", "500ms");
    let mut worker = launch.start();
    manager.wait_for("READY=1", START);
    gateway.submit("sleep 60000", Duration::ZERO);
    worker.wait_for_line("Worker stuck is not live", SOON);
    let heartbeats = || rig.audit().statuses_of("stuck").count();
    let three_heartbeats = || {
        let before = heartbeats();
        eventually(SOON, "three heartbeats", || heartbeats() >= before + 3);
    };
    // A watchdog message may still be on its way.
    three_heartbeats();
    let silent = Instant::now();
    three_heartbeats();
    assert_eq!(manager.count("WATCHDOG=1", silent), 0);
    worker.kill();
}

#[test]
fn a_gateway_sends_ready_when_it_serves_and_stopping_when_it_stops() {
    let rig = Rig::shared("gateway-ready");
    let manager = Manager::new("gateway");
    let port = reserved_port();
    let address = port.address();
    let launch = manager.supervise(rig.gateway_at(address));
    assert_eq!(health(&launch).0, Some(1), "healthy before the start");
    let mut gateway = launch.start();
    let (ready, _) = manager.wait_for("READY=1", START);
    assert_eq!(health(&launch), (Some(0), format!("ready: {address}")));
    eventually(SOON, "two watchdog messages", || manager.count("WATCHDOG=1", ready) >= 2);
    gateway.ends_at(Signal::SIGTERM, 0);
    manager.wait_for("STOPPING=1", SOON);
    assert_eq!(manager.count("STOPPING=1", ready), 1);
}

#[test]
fn a_gateway_without_kafka_is_not_ready_fails_its_health_check_and_stops_within_a_second() {
    let rig = Rig::quiet("gateway-no-kafka");
    let manager = Manager::new("gateway-no-kafka");
    let (port, nowhere) = (reserved_port(), reserved_port());
    let address = port.address();
    let launch = manager.supervise(rig.gateway_at(address)).env("KAFKA_BOOTSTRAP_SERVERS", nowhere.address());
    let mut gateway = Gateway::launch(launch.clone());
    manager.wait_for("EXTEND_TIMEOUT_USEC=10000000", START);
    eventually(SOON, "the gateway listens", || health(&launch).1.contains("answers 503"));
    assert_eq!(health(&launch), (Some(1), format!("not ready: GET /readyz at {address} answers 503")));
    assert!(manager.first("READY=1").is_none());
    gateway.analyze("without a broker").assert_problem(503);
    let exit = gateway.program.ends_at(Signal::SIGTERM, 0);
    assert!(exit.elapsed < Duration::from_secs(1), "{exit:?}");
}

#[test]
fn the_health_check_of_a_worker_reads_its_health_file() {
    let rig = Rig::shared("health-file");
    let file = std::env::temp_dir().join(format!("lastcall-health-{}", std::process::id()));
    let launch = rig.worker("healthy").env("HEALTH_FILE", file.display());
    assert_eq!(health(&launch).0, Some(1), "healthy before the start");
    let mut worker = launch.start();
    eventually(START, "the worker is live", || health(&launch).1.starts_with("live: running, refreshed "));
    worker.signal(Signal::SIGUSR1);
    eventually(SOON, "a quiet worker is live", || health(&launch).1.starts_with("live: quiet, refreshed "));
    assert_eq!(health(&launch).0, Some(0));
    let mut ready = launch.clone().arg("--healthcheck=ready").start();
    assert_eq!(ready.wait(SOON).code, Some(1), "a quiet worker is not ready");
    worker.signal(Signal::SIGUSR2);
    eventually(SOON, "the worker takes tasks", || health(&launch).1.starts_with("live: running, refreshed "));
    // A frozen worker does not refresh its file: ten seconds later it counts as not live.
    worker.signal(Signal::SIGSTOP);
    eventually(Duration::from_secs(20), "the worker is not live", || health(&launch).0 == Some(1));
    worker.signal(Signal::SIGCONT);
    eventually(SOON, "the worker is live again", || health(&launch).0 == Some(0));
    worker.ends_at(Signal::SIGTERM, 0);
    assert!(!file.exists(), "the worker left its file");
}

#[test]
fn health_check_without_health_file_and_worker_with_an_unwritable_one_exit_2() {
    let rig = Rig::shared("health-faults");
    let (code, line) = health(&rig.worker("unset"));
    assert_eq!(code, Some(2));
    assert!(line.starts_with("HEALTH_FILE: not set; expected the file"), "{line}");
    let mut worker: Program = rig.worker("wrong").env("HEALTH_FILE", "/nowhere/health").start();
    assert_eq!(worker.wait(SOON).code, Some(2));
    let fault = "HEALTH_FILE: value \"/nowhere/health\" cannot be written";
    assert!(worker.stderr().starts_with(fault), "not reported like an invalid option: {:?}", worker.lines());
}
