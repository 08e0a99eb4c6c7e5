//! What the tests are built from: a broker, the programs, a caller, an auditor. Nothing here knows the product's code.

pub mod admin;
pub mod audit;
pub mod broker;
pub mod cluster;
pub mod http;
mod janitor;
pub mod load;
pub mod program;
pub mod session;
pub mod transactions;
pub mod turn;
pub mod wire;

use std::{
    collections::BTreeMap,
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
use nix::{sys::signal::Signal, unistd::Pid};
use serde_json::{Value, json};

use audit::Audit;
use broker::Broker;
use http::{Http, Response};
use program::{Launch, Program};
use turn::Turn;

/// How long a program may take to start on a busy machine; no promise, only the end of the patience.
pub const START: Duration = Duration::from_secs(20);

/// How long a condition that is sure to come is waited for; no promise either.
pub const SOON: Duration = Duration::from_secs(10);

/// A program that is to listen here takes a free port, and says which one.
pub const ANY_PORT: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), 0);

/// Arguments of an embedded broker that allows locks of 3 s at most: the programs take what the broker lets stand.
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

/// Topics and a worker group of a test's own on a broker, and the programs that use them.
pub struct Rig {
    kafka: Kafka,
    prefix: String,
    // Last: the others are gone when the next test gets its turn.
    _turn: Option<Turn>,
}

impl Rig {
    /// For most tests: others run beside them, on the same broker.
    pub fn shared(name: &str) -> Rig {
        let turn = Turn::shared();
        Rig::new(name, Kafka::Shared(Broker::shared()), Some(turn))
    }

    /// For tests of a bound of a second or less, and for those that use the whole machine: two more of them run meanwhile at most.
    pub fn quiet(name: &str) -> Rig {
        let turn = Turn::quiet();
        Rig::new(name, Kafka::Shared(Broker::shared()), Some(turn))
    }

    /// For tests that stop, freeze or configure the broker: one of their own. `arguments` go to `scripts/kafka start`.
    pub fn with_own_broker(name: &str, arguments: &[&str]) -> Rig {
        let turn = Turn::with_broker();
        Rig::new(name, Kafka::Own(Arc::new(Broker::new(arguments))), Some(turn))
    }

    /// The same for those of them that measure a bound of a second.
    pub fn quiet_with_own_broker(name: &str) -> Rig {
        let turn = Turn::quiet();
        Rig::new(name, Kafka::Own(Arc::new(Broker::new(&[]))), Some(turn))
    }

    /// The same as [`Rig::with_own_broker`] for tests that take rights away: see [`Broker::deny`].
    pub fn with_rights(name: &str) -> Rig {
        let authorizer = [
            "--set",
            "authorizer.class.name=org.apache.kafka.metadata.authorizer.StandardAuthorizer",
            "--set",
            "allow.everyone.if.no.acl.found=true",
        ];
        // The embedded broker needs no setting for it.
        Rig::with_own_broker(name, if broker::is_apache() { &authorizer } else { &[] })
    }

    /// The same for tests that wait for the end of a lock, and how long one lasts: as short as the broker lets it be.
    pub fn with_short_locks(name: &str) -> (Rig, Duration) {
        if broker::is_apache() {
            // A real one takes no maximum under 30 s, and so the 15 s that the programs ask for.
            return (Rig::with_own_broker(name, &[]), Duration::from_secs(15));
        }
        (Rig::with_own_broker(name, &SHORT_LOCKS), Duration::from_secs(3))
    }

    /// For tests of faults on demand: an embedded broker of their own with so many nodes, whatever the others run against.
    pub fn with_faults(name: &str, nodes: usize) -> Rig {
        Rig::with_faults_and(name, nodes, &[])
    }

    /// The same with these arguments.
    pub fn with_faults_and(name: &str, nodes: usize, arguments: &[&str]) -> Rig {
        let turn = Turn::shared();
        Rig::new(name, Kafka::Own(Arc::new(Broker::embedded(nodes, arguments))), Some(turn))
    }

    /// For figures: a real broker of its own as it runs in earnest.
    pub fn for_bench(name: &str) -> Rig {
        let turn = Turn::quiet();
        Rig::new(name, Kafka::Own(Arc::new(Broker::optimised())), Some(turn))
    }

    /// Other topics and another group on the broker of `other`, in its turn.
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

    /// The broker.
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

    /// Any program, with the environment that both have in common.
    pub fn launch(&self, name: &str, binary: impl Into<PathBuf>) -> Launch {
        Launch::new(name, binary.into())
            .env("KAFKA_BOOTSTRAP_SERVERS", self.broker().address())
            .env("TASKS_TOPIC", self.tasks())
            .env("RESULTS_TOPIC", self.results())
            .env("WORKER_GROUP", self.group())
            .env("ALLOW_WORK_MS", 1)
    }

    /// The worker as it ships.
    pub fn worker(&self, id: &str) -> Launch {
        self.launch(id, env!("CARGO_BIN_EXE_worker")).env("WORKER_ID", id)
    }

    /// The worker whose handler does what the text of the task says: see `tests/handlers/obedient.rs`.
    pub fn obedient_worker(&self, id: &str) -> Launch {
        self.launch(id, built("obedient")).env("WORKER_ID", id)
    }

    /// The gateway on any free port: [`Gateway`] finds out which one it got.
    pub fn gateway(&self) -> Launch {
        self.gateway_at(ANY_PORT)
    }

    /// The gateway on this address.
    pub fn gateway_at(&self, address: SocketAddr) -> Launch {
        self.launch("gateway", env!("CARGO_BIN_EXE_gateway")).env("HTTP_ADDR", address)
    }

    /// Starts a worker as it ships and waits until it takes tasks.
    pub fn start_worker(&self, id: &str) -> Program {
        started(&self.worker(id))
    }

    /// Starts a gateway and waits until it is ready.
    pub fn start_gateway(&self) -> Gateway {
        Gateway::start(self.gateway())
    }

    /// What stands on the topics now.
    pub fn audit(&self) -> Audit {
        Audit::read(self.broker().address(), &self.tasks(), &self.results())
    }
}

/// Starts a worker and waits until it takes tasks: then it has told Kafka so, or given up to tell it within a second.
pub fn started(launch: &Launch) -> Program {
    let worker = launch.start();
    worker.wait_for_line("worker_started notification", START);
    worker
}

/// A gateway and where it listens.
pub struct Gateway {
    pub program: Program,
    pub address: String,
}

impl Gateway {
    /// Starts it, and waits until `/readyz` is 200.
    pub fn start(launch: Launch) -> Gateway {
        let gateway = Gateway::launch(launch);
        eventually(START, "the gateway is ready", || {
            gateway.try_get("/readyz").is_some_and(|answer| answer.status == 200)
        });
        gateway
    }

    /// Starts it, and waits until it says where it listens.
    pub fn launch(launch: Launch) -> Gateway {
        let program = launch.start();
        let address = program.address_after("Gateway started on ");
        Gateway { program, address }
    }

    /// A connection to it.
    pub fn connect(&self) -> Http {
        Http::connect(&self.address).expect("the gateway takes connections")
    }

    /// One request on a connection of its own.
    pub fn get(&self, path: &str) -> Response {
        self.connect().get(path).expect("the gateway answers")
    }

    /// The same where nobody may listen.
    pub fn try_get(&self, path: &str) -> Option<Response> {
        Http::connect(&self.address).and_then(|mut http| http.get(path)).ok()
    }

    /// One request with a JSON body on a connection of its own.
    pub fn post(&self, path: &str, body: &Value) -> Response {
        self.connect().post(path, body).expect("the gateway answers")
    }

    /// Analyses a text and waits for the answer.
    pub fn analyze(&self, text: &str) -> Response {
        self.post("/analyze", &json!({ "text": text }))
    }

    /// One request for a task, with headers beside its type.
    pub fn analyze_with(&self, headers: &[(&str, &str)], body: &Value) -> Response {
        let headers: Vec<_> = [("Content-Type", "application/json")].iter().chain(headers).copied().collect();
        let answer = self.connect().request("POST", "/analyze", &headers, body.to_string().as_bytes());
        answer.expect("the gateway answers")
    }

    /// Has a task accepted that keeps a handler busy for so long, and gives its id.
    pub fn submit(&self, text: &str, work: Duration) -> String {
        let body = json!({ "text": text, "work_ms": u64::try_from(work.as_millis()).expect("a short time") });
        let answer = self.analyze_with(&[("Prefer", "respond-async")], &body);
        assert_eq!(answer.status, 202, "{}", answer.text());
        answer.task_id()
    }

    /// A caller that waits for its answer, though its task's id is known already: the task is accepted first, and then
    /// waited for under the same key.
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

    /// Waits for the result of a task.
    pub fn wait_for_result(&self, task: &str, limit: Duration) -> Value {
        eventually_some(limit, &format!("the result of {task}"), || {
            let answer = self.get(&format!("/tasks/{task}"));
            let value = answer.json();
            (answer.status == 200 && value.get("success").is_some()).then_some(value)
        })
    }

    /// Waits until a worker says that it has this task in hand.
    pub fn wait_until_running(&self, task: &str, limit: Duration) -> String {
        eventually_some(limit, &format!("task {task} runs somewhere"), || {
            let status = self.get("/workers/status").json();
            let workers = status["workers"].as_object().expect("an object of workers");
            let runs =
                workers.iter().find(|(_, worker)| worker["current_task"] == task && worker["is_responsive"] == true);
            runs.map(|(id, _)| id.clone())
        })
    }

    /// `/workers/status`
    pub fn fleet(&self) -> Value {
        let answer = self.get("/workers/status");
        assert_eq!(answer.status, 200, "{}", answer.text());
        answer.json()
    }
}

/// Somebody who waits for an answer: see [`Gateway::call`].
pub struct Caller {
    pub task: String,
    waiting: JoinHandle<(Response, Instant)>,
}

impl Caller {
    /// The answer, and when it came.
    pub fn join(self) -> (Response, Instant) {
        self.waiting.join().expect("a caller does not panic")
    }
}

/// A port of the loopback on which nothing listens for as long as it is held, but what is told to.
pub fn reserved_port() -> ReservedPort {
    ReservedPort::any().expect("a free port")
}

/// Sends a signal to a process that this one started. After a SIGSTOP no thread of it runs any more.
pub fn signal_process(process: u32, signal: Signal) {
    let number = Pid::from_raw(i32::try_from(process).expect("a process number"));
    nix::sys::signal::kill(number, signal).expect("the process is there");
    if signal == Signal::SIGSTOP {
        // Threads on other processors run on until each has seen it.
        eventually(SOON, "every thread has stopped", || has_stopped(process));
    }
}

/// By the third field of `stat`: proc_pid_stat(5).
fn has_stopped(process: u32) -> bool {
    let threads = std::fs::read_dir(format!("/proc/{process}/task")).expect("a process that runs");
    threads.flatten().all(|thread| {
        let stat = std::fs::read_to_string(thread.path().join("stat")).unwrap_or_default();
        // One that has ended meanwhile has no file.
        stat.is_empty() || stat.rsplit_once(") ").is_some_and(|(_, fields)| fields.starts_with('T'))
    })
}

/// Waits until `condition` holds; fails the test when `limit` passes first.
pub fn eventually(limit: Duration, what: &str, mut condition: impl FnMut() -> bool) {
    eventually_some(limit, what, || condition().then_some(()));
}

/// Waits until `probe` gives something, and returns it.
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

/// A new folder for a test; it is removed with everything else at the end of the run.
pub fn new_folder(name: &str) -> PathBuf {
    static COUNT: AtomicUsize = AtomicUsize::new(0);
    let folder = janitor::folder().join(format!("{name}-{}", COUNT.fetch_add(1, Relaxed)));
    std::fs::create_dir_all(&folder).expect("a folder");
    folder
}

/// A program or an example of this workspace by its name, built in the profile of the tests: `cargo test` names only the programs of this
/// package to a test, and no examples.
///
/// # Panics
/// They do not build, or there is none of this name.
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
