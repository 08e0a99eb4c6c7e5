//! Shared parts of the tests and benches: brokers, programs, callers, audits. It uses little of the product's code
//! (ports, the records codec of sessions), so that a defect there cannot hide itself.

pub mod admin;
pub mod audit;
pub mod broker;
pub mod browser;
pub mod certificates;
pub mod cluster;
pub mod http;
mod janitor;
pub mod load;
pub mod program;
pub mod secured;
pub mod session;
pub mod transactions;
pub mod turn;
pub mod wire;

use std::{
    collections::BTreeMap,
    io::Write,
    net::{IpAddr, Ipv4Addr, SocketAddr},
    path::PathBuf,
    process::{Command, Stdio},
    sync::{
        Arc, OnceLock,
        atomic::{AtomicUsize, Ordering::Relaxed},
    },
    thread::JoinHandle,
    time::{Duration, Instant},
};

use ::program::reserved_port::ReservedPort;
use devbroker::{Action, Bites, Fault, Kind};
use kafka_protocol::records::Record;
use nix::{sys::signal::Signal, unistd::Pid};
use serde_json::{Value, json};

use audit::Audit;
use broker::Broker;
use http::{Http, Response};
use load::{Load, Plan};
use program::{Launch, Program};
use turn::Turn;

/// Time limit for the start of a program on a busy machine; not a promise.
pub const START: Duration = Duration::from_secs(20);

/// Time limit for a condition that has no promised bound.
pub const SOON: Duration = Duration::from_secs(10);

/// Address for a program that shall choose a free port; the program logs the port.
pub const ANY_PORT: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), 0);

/// Arguments of an embedded broker that allows record locks of at most 3 s; the programs accept the broker's maximum.
pub const SHORT_LOCKS: [&str; 6] = [
    "--set",
    "group.share.min.record.lock.duration.ms=1000",
    "--set",
    "group.share.record.lock.duration.ms=3000",
    "--set",
    "group.share.max.record.lock.duration.ms=3000",
];

enum Kafka {
    Shared(&'static Broker),
    Own(Arc<Broker>),
}

/// A test's own topics and worker group on a broker, and the programs that use them.
pub struct Rig {
    kafka: Kafka,
    prefix: String,
    // Last field, so that it is dropped last: the broker has stopped when the next test gets its turn.
    _turn: Option<Turn>,
}

impl Rig {
    /// For most tests: they run in parallel on one broker.
    pub fn shared(name: &str) -> Rig {
        let turn = Turn::shared();
        Rig::new(name, Kafka::Shared(Broker::shared()), Some(turn))
    }

    /// For tests of a bound of at most a second, and for tests that use the whole machine: three run in parallel.
    pub fn quiet(name: &str) -> Rig {
        let turn = Turn::quiet();
        Rig::new(name, Kafka::Shared(Broker::shared()), Some(turn))
    }

    /// For tests that stop, freeze or configure the broker. `arguments` are those of [`Broker::new`].
    pub fn with_own_broker(name: &str, arguments: &[&str]) -> Rig {
        let turn = Turn::with_broker();
        Rig::new(name, Kafka::Own(Arc::new(Broker::new(arguments))), Some(turn))
    }

    /// Like [`Rig::with_own_broker`], for tests that measure a bound of a second.
    pub fn quiet_with_own_broker(name: &str, arguments: &[&str]) -> Rig {
        let turn = Turn::quiet();
        Rig::new(name, Kafka::Own(Arc::new(Broker::new(arguments))), Some(turn))
    }

    /// Like [`Rig::with_own_broker`], for tests that use [`Broker::deny`].
    pub fn with_rights(name: &str) -> Rig {
        let authorizer = [
            "--set",
            "authorizer.class.name=org.apache.kafka.metadata.authorizer.StandardAuthorizer",
            "--set",
            "allow.everyone.if.no.acl.found=true",
        ];
        // The embedded broker checks rights without a setting.
        Rig::with_own_broker(name, if broker::is_apache() { &authorizer } else { &[] })
    }

    /// Like [`Rig::with_own_broker`], for tests that wait for the end of a record lock. Returns a lock's duration, too.
    pub fn with_short_locks(name: &str) -> (Rig, Duration) {
        if broker::is_apache() {
            // Apache Kafka accepts no maximum under 30 s, so locks last the 15 s that the programs set.
            return (Rig::with_own_broker(name, &[]), Duration::from_secs(15));
        }
        (Rig::with_own_broker(name, &SHORT_LOCKS), Duration::from_secs(3))
    }

    /// For tests that inject faults: always an embedded broker, with this many nodes.
    pub fn with_faults(name: &str, nodes: usize) -> Rig {
        Rig::with_faults_and(name, nodes, &[])
    }

    /// Like [`Rig::with_faults`], with arguments for [`Broker::embedded`].
    pub fn with_faults_and(name: &str, nodes: usize, arguments: &[&str]) -> Rig {
        let turn = Turn::shared();
        Rig::new(name, Kafka::Own(Arc::new(Broker::embedded(nodes, arguments))), Some(turn))
    }

    /// Like [`Rig::with_faults`], for tests that measure a bound of a second.
    pub fn quiet_with_faults(name: &str, nodes: usize) -> Rig {
        let turn = Turn::quiet();
        Rig::new(name, Kafka::Own(Arc::new(Broker::embedded(nodes, &[]))), Some(turn))
    }

    /// For benches: an Apache Kafka of their own, with the optimising compiler.
    pub fn for_bench(name: &str) -> Rig {
        let turn = Turn::quiet();
        Rig::new(name, Kafka::Own(Arc::new(Broker::optimised())), Some(turn))
    }

    /// Other topics and another group on the broker of `other`; shares the turn of `other`.
    pub fn beside(other: &Rig, name: &str) -> Rig {
        let kafka = match &other.kafka {
            Kafka::Shared(broker) => Kafka::Shared(broker),
            Kafka::Own(broker) => Kafka::Own(Arc::clone(broker)),
        };
        Rig::new(name, kafka, None)
    }

    fn new(name: &str, kafka: Kafka, turn: Option<Turn>) -> Rig {
        static COUNT: AtomicUsize = AtomicUsize::new(0);
        let prefix = format!("{name}-{}", COUNT.fetch_add(1, Relaxed));
        Rig { kafka, prefix, _turn: turn }
    }

    pub fn broker(&self) -> &Broker {
        match &self.kafka {
            Kafka::Shared(broker) => broker,
            Kafka::Own(broker) => broker,
        }
    }

    /// The tasks topic of this test.
    pub fn tasks(&self) -> String {
        format!("{}-tasks", self.prefix)
    }

    /// The results topic of this test.
    pub fn results(&self) -> String {
        format!("{}-results", self.prefix)
    }

    /// The share group of this test.
    pub fn group(&self) -> String {
        format!("{}-workers", self.prefix)
    }

    /// Any program, with the environment variables that worker and gateway share.
    pub fn launch(&self, name: &str, binary: impl Into<PathBuf>) -> Launch {
        Launch::new(name, binary.into())
            .env("KAFKA_BOOTSTRAP_SERVERS", self.broker().address())
            .env("TASKS_TOPIC", self.tasks())
            .env("RESULTS_TOPIC", self.results())
            .env("WORKER_GROUP", self.group())
            .env("ALLOW_WORK_MS", 1)
    }

    /// The shipped worker.
    pub fn worker(&self, id: &str) -> Launch {
        self.launch(id, env!("CARGO_BIN_EXE_worker")).env("WORKER_ID", id)
    }

    /// A worker with a handler that does what the text of the task says: see `tests/handlers/obedient.rs`.
    pub fn obedient_worker(&self, id: &str) -> Launch {
        self.launch(id, built("obedient")).env("WORKER_ID", id)
    }

    /// The gateway on any free port; [`Gateway::address`] has the port.
    pub fn gateway(&self) -> Launch {
        self.gateway_at(ANY_PORT)
    }

    /// The gateway on this address.
    pub fn gateway_at(&self, address: SocketAddr) -> Launch {
        self.launch("gateway", env!("CARGO_BIN_EXE_gateway")).env("HTTP_ADDR", address)
    }

    /// Starts a shipped worker and waits until it takes tasks.
    pub fn start_worker(&self, id: &str) -> Program {
        started(&self.worker(id))
    }

    /// Starts a gateway and waits until it is ready.
    pub fn start_gateway(&self) -> Gateway {
        Gateway::start(self.gateway())
    }

    /// Counts requests of this kind from now on, of clients whose id contains `client`. Only in a [`Rig::with_faults`].
    pub fn count(&self, kind: Kind, client: &str) -> Bites {
        let nothing = Fault::new(Action::Delay(Duration::ZERO)).at(kind).of_client(client);
        self.broker().faulty().inject(nothing.every(1, u32::MAX))
    }

    /// Starts a gateway, then a shipped worker; both are ready.
    pub fn fleet(self, worker: &str) -> (Rig, Gateway, Program) {
        self.fleet_with(worker, &[])
    }

    /// Like [`Rig::fleet`], with environment variables for the gateway.
    pub fn fleet_with(self, worker: &str, gateway: &[(&str, &str)]) -> (Rig, Gateway, Program) {
        let launch = gateway.iter().fold(self.gateway(), |launch, (name, value)| launch.env(name, value));
        let (gateway, worker) = (Gateway::start(launch), self.start_worker(worker));
        (self, gateway, worker)
    }

    /// The records on `tasks.dead`, with their headers.
    pub fn dead_letters(&self) -> Vec<Record> {
        admin::records(self.broker().address(), &format!("{}.dead", self.tasks()))
    }

    /// Reads the topics of this test.
    pub fn audit(&self) -> Audit {
        Audit::read(self.broker().address(), &self.tasks(), &self.results())
    }
}

/// Starts a worker and waits for the line about its `worker_started` notification: then it takes tasks.
pub fn started(launch: &Launch) -> Program {
    let worker = launch.start();
    worker.wait_for_line("worker_started notification", START);
    worker
}

/// A gateway and its address.
pub struct Gateway {
    pub program: Program,
    pub address: String,
}

impl Gateway {
    /// Starts a gateway and waits until `/readyz` is 200.
    pub fn start(launch: Launch) -> Gateway {
        let gateway = Gateway::launch(launch);
        eventually(START, "the gateway is ready", || {
            gateway.try_get("/readyz").is_some_and(|answer| answer.status == 200)
        });
        gateway
    }

    /// Starts a gateway and waits until it logs its address.
    pub fn launch(launch: Launch) -> Gateway {
        let program = launch.start();
        let address = program.address_after("Gateway started on ");
        Gateway { program, address }
    }

    /// Opens a connection.
    pub fn connect(&self) -> Http {
        Http::connect(&self.address).expect("the gateway takes connections")
    }

    /// Sends one request on a new connection.
    pub fn get(&self, path: &str) -> Response {
        self.connect().get(path).expect("the gateway answers")
    }

    /// Like [`Gateway::get`]; `None` if the connection fails.
    pub fn try_get(&self, path: &str) -> Option<Response> {
        Http::connect(&self.address).and_then(|mut http| http.get(path)).ok()
    }

    /// Sends one request with a JSON body on a new connection.
    pub fn post(&self, path: &str, body: &Value) -> Response {
        self.connect().post(path, body).expect("the gateway answers")
    }

    /// Analyses a text and waits for the response.
    pub fn analyze(&self, text: &str) -> Response {
        self.post("/analyze", &json!({ "text": text }))
    }

    /// Posts a task with headers beside `Content-Type`.
    pub fn analyze_with(&self, headers: &[(&str, &str)], body: &Value) -> Response {
        let headers: Vec<_> = [("Content-Type", "application/json")].iter().chain(headers).copied().collect();
        let answer = self.connect().request("POST", "/analyze", &headers, body.to_string().as_bytes());
        answer.expect("the gateway answers")
    }

    /// Submits a task that keeps a handler busy for the duration `work`; returns the task's id.
    pub fn submit(&self, text: &str, work: Duration) -> String {
        let body = json!({ "text": text, "work_ms": u64::try_from(work.as_millis()).expect("a short time") });
        let answer = self.analyze_with(&[("Prefer", "respond-async")], &body);
        assert_eq!(answer.status, 202, "{}", answer.text());
        answer.task_id()
    }

    /// Starts a caller that waits for its response. Submits the task asynchronously first, so that its id is known, and
    /// then waits for it under the same `Idempotency-Key`.
    pub fn call(&self, text: &str, work: Duration) -> Caller {
        static COUNT: AtomicUsize = AtomicUsize::new(0);
        let key = format!("{text} {}", COUNT.fetch_add(1, Relaxed));
        let work_ms = u64::try_from(work.as_millis()).expect("a short time");
        let body = json!({ "text": text, "work_ms": work_ms }).to_string().into_bytes();
        let post = |asynchronous: bool| {
            let mut http = self.connect();
            let (key, body) = (key.clone(), body.clone());
            move || {
                let mut headers = vec![("Content-Type", "application/json"), ("Idempotency-Key", key.as_str())];
                headers.extend(asynchronous.then_some(("Prefer", "respond-async")));
                http.request("POST", "/analyze", &headers, &body).expect("the gateway answers")
            }
        };
        let accepted = post(true)();
        assert_eq!(accepted.status, 202, "{}", accepted.text());
        let mut wait = post(false);
        let waiting = std::thread::Builder::new().name("caller".to_owned()).spawn(move || (wait(), Instant::now()));
        Caller { task: accepted.task_id(), waiting: waiting.expect("a thread starts") }
    }

    /// Starts callers of this gateway: see [`Plan`].
    pub fn load(&self, per_second: u32, work_ms: u64) -> Load {
        Load::start(Plan { addresses: vec![self.address.clone()], per_second, work_ms })
    }

    /// Waits for the result of a task.
    pub fn wait_for_result(&self, task: &str, limit: Duration) -> Value {
        eventually_some(limit, &format!("the result of {task}"), || {
            let answer = self.get(&format!("/tasks/{task}"));
            let value = answer.json();
            (answer.status == 200 && value.get("success").is_some()).then_some(value)
        })
    }

    /// Waits until the status of a responsive worker names this task; returns the worker's id.
    pub fn wait_until_running(&self, task: &str, limit: Duration) -> String {
        eventually_some(limit, &format!("task {task} runs somewhere"), || {
            let status = self.get("/workers/status").json();
            let workers = status["workers"].as_object().expect("an object of workers");
            let runs =
                workers.iter().find(|(_, worker)| worker["current_task"] == task && worker["is_responsive"] == true);
            runs.map(|(id, _)| id.clone())
        })
    }

    /// Waits until the status of this worker names this many tasks.
    pub fn wait_until_busy(&self, worker: &str, tasks: usize) {
        eventually(SOON, &format!("{worker} runs {tasks} tasks"), || {
            self.fleet()["workers"][worker]["current_tasks"].as_array().is_some_and(|all| all.len() == tasks)
        });
    }

    /// `/workers/status`
    pub fn fleet(&self) -> Value {
        let answer = self.get("/workers/status");
        assert_eq!(answer.status, 200, "{}", answer.text());
        answer.json()
    }
}

/// A caller that waits for its response: see [`Gateway::call`].
pub struct Caller {
    pub task: String,
    waiting: JoinHandle<(Response, Instant)>,
}

impl Caller {
    /// True if the response has come.
    pub fn is_finished(&self) -> bool {
        self.waiting.is_finished()
    }

    /// The response, and when it came.
    pub fn join(self) -> (Response, Instant) {
        self.waiting.join().expect("a caller does not panic")
    }
}

/// True if this command of a foreign program succeeds. If not, the test that asks says that it is not run; with the
/// environment variable `required` it fails.
pub fn has_program(command: &mut Command, required: &str) -> bool {
    let output = command.output();
    let succeeds = output.as_ref().is_ok_and(|output| output.status.success());
    assert!(succeeds || std::env::var_os(required).is_none(), "{required} is set, but {command:?} fails: {output:?}");
    if !succeeds {
        // Cargo hides what a passing test writes with `eprintln`.
        let line = format!("NOT RUN: {}: {command:?} fails\n", std::thread::current().name().unwrap_or_default());
        std::io::stderr().write_all(line.as_bytes()).expect("stderr takes a line");
    }
    succeeds
}

/// Reserves a port on the loopback: while it is held, only a program that is given its number listens there.
pub fn reserved_port() -> ReservedPort {
    ReservedPort::any().expect("a free port")
}

/// Sends a signal to a process that the tests started; after SIGSTOP, waits until all its threads have stopped.
pub fn signal_process(process: u32, signal: Signal) {
    let number = Pid::from_raw(i32::try_from(process).expect("a process number"));
    nix::sys::signal::kill(number, signal).expect("the process is there");
    if signal == Signal::SIGSTOP {
        // Threads on other processors run until each has seen the signal.
        eventually(SOON, "every thread has stopped", || has_stopped(process));
    }
}

/// Reads the third field of each thread's `stat`: proc_pid_stat(5).
fn has_stopped(process: u32) -> bool {
    let threads = std::fs::read_dir(format!("/proc/{process}/task")).expect("a process that runs");
    threads.flatten().all(|thread| {
        let stat = std::fs::read_to_string(thread.path().join("stat")).unwrap_or_default();
        // A thread that has ended has no file.
        stat.is_empty() || stat.rsplit_once(") ").is_some_and(|(_, fields)| fields.starts_with('T'))
    })
}

/// Waits until `condition` holds; fails the test after `limit`.
pub fn eventually(limit: Duration, what: &str, mut condition: impl FnMut() -> bool) {
    eventually_some(limit, what, || condition().then_some(()));
}

/// Waits until `probe` returns a value; fails the test after `limit`.
pub fn eventually_some<T>(limit: Duration, what: &str, mut probe: impl FnMut() -> Option<T>) -> T {
    let deadline = Instant::now() + limit;
    loop {
        if let Some(value) = probe() {
            return value;
        }
        assert!(Instant::now() < deadline, "not within {limit:?}: {what}");
        std::thread::sleep(Duration::from_millis(10));
    }
}

/// Creates a folder for a test; the janitor removes it at the end of the run.
pub fn new_folder(name: &str) -> PathBuf {
    static COUNT: AtomicUsize = AtomicUsize::new(0);
    let folder = janitor::folder().join(format!("{name}-{}", COUNT.fetch_add(1, Relaxed)));
    std::fs::create_dir_all(&folder).expect("a folder");
    folder
}

/// Builds the programs and examples of this workspace once, in the profile of the tests, and returns the path of one.
/// Cargo names only the programs of this package to a test (`CARGO_BIN_EXE_`), and no examples.
pub fn built(name: &str) -> PathBuf {
    static BUILT: OnceLock<BTreeMap<String, PathBuf>> = OnceLock::new();
    let built = BUILT.get_or_init(|| {
        let mut command = Command::new(env!("CARGO"));
        command.args(["build", "--quiet", "--locked", "--bins", "--examples", "--message-format=json"]);
        command.args(["--manifest-path", concat!(env!("CARGO_MANIFEST_DIR"), "/Cargo.toml")]);
        if !cfg!(debug_assertions) {
            command.arg("--release");
        }
        let output = command.stderr(Stdio::inherit()).output().expect("cargo starts");
        assert!(output.status.success(), "the programs do not build");
        let text = String::from_utf8(output.stdout).expect("cargo writes text");
        let artifacts = text.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok());
        let executable =
            |it: Value| Some((it["target"]["name"].as_str()?.to_owned(), PathBuf::from(it["executable"].as_str()?)));
        artifacts.filter_map(executable).collect()
    });
    built.get(name).unwrap_or_else(|| panic!("there is no program {name}")).clone()
}
