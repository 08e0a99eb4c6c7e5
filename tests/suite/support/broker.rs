//! The broker that a test runs against: embedded, or with `KAFKA=apache` a real Kafka that `scripts/kafka` runs.

use std::{
    path::{Path, PathBuf},
    process::Command,
    sync::{
        OnceLock,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use devbroker::{self, Action, Denial, Fault, Kind, Operation, Resource, Settings};
use kafka_protocol::{
    messages::{
        AlterClientQuotasRequest, CreateAclsRequest, DescribeAclsRequest,
        alter_client_quotas_request::{EntityData, EntryData, OpData},
        create_acls_request::AclCreation,
    },
    protocol::StrBytes,
};
use nix::sys::signal::Signal;

use super::{ANY_PORT, SOON, eventually, janitor, signal_process, wire::Wire};

/// True if the tests run against a real Kafka.
pub fn is_apache() -> bool {
    match std::env::var("KAFKA").as_deref() {
        Err(_) | Ok("" | "embedded") => false,
        Ok("apache") => true,
        Ok(other) => panic!("KAFKA is {other:?}; expected embedded or apache"),
    }
}

/// A quota of Kafka (KIP-13, KIP-124).
#[derive(Clone, Copy, Debug)]
pub enum Quota {
    Produced,
    Consumed,
    Processed,
}

impl Quota {
    fn key(self) -> &'static str {
        match self {
            Quota::Produced => "producer_byte_rate",
            Quota::Consumed => "consumer_byte_rate",
            Quota::Processed => "request_percentage",
        }
    }
}

/// The kinds of requests of working programs.
const EVERY_KIND: [Kind; 7] = [
    Kind::Produce,
    Kind::Fetch,
    Kind::ListOffsets,
    Kind::Metadata,
    Kind::ShareGroupHeartbeat,
    Kind::ShareFetch,
    Kind::ShareAcknowledge,
];

/// A broker; its data survive [`Broker::kill`] and [`Broker::stop`] until it is dropped.
pub enum Broker {
    Embedded { broker: devbroker::Broker, address: String },
    Apache(Apache),
}

/// A process of Apache Kafka.
pub struct Apache {
    data: PathBuf,
    address: String,
    settings: Vec<String>,
    java_options: &'static str,
}

/// Only the quick compiler: a test's broker runs for seconds, and the optimising one needs too much of the processors.
const SHORT_LIVED: &str = "-XX:TieredStopAtLevel=1";

/// Bytes of a batch that exceeds the quota of [`Broker::throttle`].
pub const THROTTLED_BATCH: usize = 12_500;

impl Broker {
    /// The broker of this run, for tests that do not stop, freeze or configure it.
    pub fn shared() -> &'static Broker {
        static SHARED: OnceLock<Broker> = OnceLock::new();
        SHARED.get_or_init(|| Broker::new(&[]))
    }

    /// A new broker. `arguments` are those of `scripts/kafka start`: `--set KEY=VALUE`, `--feature NAME=LEVEL`, and,
    /// before the settings, `--version V`.
    pub fn new(arguments: &[&str]) -> Broker {
        if is_apache() { Broker::Apache(Apache::start(arguments, SHORT_LIVED)) } else { Broker::embedded(1, arguments) }
    }

    /// An Apache Kafka with the optimising compiler and a heap of 1 GB, for benches.
    pub fn optimised() -> Broker {
        Broker::Apache(Apache::start(&["--heap", "1g"], ""))
    }

    /// An embedded broker with this many nodes, also with `KAFKA=apache`. `arguments` are those of [`Broker::new`] and
    /// `--emulate NAME=MILLISECONDS`.
    pub fn embedded(nodes: usize, arguments: &[&str]) -> Broker {
        let mut settings = Settings::new(vec![ANY_PORT; nodes]);
        for pair in arguments.chunks(2) {
            let (name, value) = pair[1].split_once('=').unwrap_or(("", pair[1]));
            match pair[0] {
                "--set" => settings.set(name, value).expect("a setting that the broker has"),
                "--feature" => settings.share_version = value.parse().expect("a level"),
                "--emulate" => {
                    emulate(&mut settings, name, Duration::from_millis(value.parse().expect("milliseconds")));
                }
                "--version" => {
                    let (version, _patch) = pair[1].rsplit_once('.').expect("a version such as 4.2.0");
                    settings.pose = version.parse().expect("a version to pose as");
                }
                other => panic!("the embedded broker has no option {other}"),
            }
        }
        let broker = devbroker::Broker::start(settings).expect("a free address");
        Broker::Embedded { address: broker.address().to_string(), broker }
    }

    /// The embedded broker, to inject faults; panics with Apache Kafka.
    pub fn faulty(&self) -> &devbroker::Broker {
        match self {
            Broker::Embedded { broker, .. } => broker,
            Broker::Apache(_) => panic!("only the embedded broker injects faults"),
        }
    }

    /// `host:port`
    pub fn address(&self) -> &str {
        match self {
            Broker::Embedded { address, .. } => address,
            Broker::Apache(apache) => &apache.address,
        }
    }

    /// Starts the broker again on its port after [`Broker::stop`] or [`Broker::kill`]; returns when it answers.
    pub fn start(&self) {
        match self {
            Broker::Embedded { broker, .. } => {
                broker.nodes().revive().expect("a broker starts again on its port");
                eventually(SOON, "the broker has read its state", || !broker.is_loading());
            }
            Broker::Apache(apache) => apache.start_again(),
        }
    }

    /// Denies an operation on a resource to every client, in a [`Rig::with_rights`](super::Rig::with_rights).
    pub fn deny(&self, operation: Operation, resource: Resource) {
        match self {
            Broker::Embedded { broker, .. } => broker.deny(Denial::new(operation, resource)),
            Broker::Apache(apache) => apache.deny(operation, resource),
        }
    }

    /// Throttles the requests of this kind that [`Wire`] sends by about two seconds each: [`THROTTLED_BATCH`] bytes
    /// exceed a quota of 1000 bytes per second, measured over ten seconds. Apache Kafka throttles only Produce, Fetch
    /// and ShareFetch.
    pub fn throttle(&self, kind: Kind) {
        match self {
            Broker::Embedded { broker, .. } => {
                let fault = Fault::new(Action::Throttle(Duration::from_secs(2))).at(kind);
                broker.inject(fault.every(1, u32::MAX));
            }
            Broker::Apache(apache) => apache.set_quota(Some("wire"), Self::quota(kind), Some(1000.0)),
        }
    }

    /// Ends [`Self::throttle`].
    pub fn unthrottle(&self, kind: Kind) {
        match self {
            Broker::Embedded { broker, .. } => broker.heal(),
            Broker::Apache(apache) => apache.set_quota(Some("wire"), Self::quota(kind), None),
        }
    }

    /// Sets a quota of every client that has none of its own; `None` removes it. The embedded broker throttles every
    /// request that such a quota concerns.
    pub fn set_quota(&self, quota: Quota, limit: Option<f64>) {
        match self {
            Broker::Apache(apache) => apache.set_quota(None, quota.key(), limit),
            Broker::Embedded { broker, .. } if limit.is_none() => broker.heal(),
            Broker::Embedded { broker, .. } => {
                let (kinds, time) = match quota {
                    Quota::Produced => (&[Kind::Produce][..], Duration::from_secs(6)),
                    Quota::Consumed => (&[Kind::Fetch, Kind::ShareFetch][..], Duration::from_secs(6)),
                    Quota::Processed => (&EVERY_KIND[..], Duration::from_secs(1)),
                };
                for kind in kinds {
                    broker.inject(Fault::new(Action::Throttle(time)).at(*kind).every(1, u32::MAX));
                }
            }
        }
    }

    fn quota(kind: Kind) -> &'static str {
        if kind == Kind::Produce { "producer_byte_rate" } else { "consumer_byte_rate" }
    }

    /// Sends SIGTERM and waits for the exit.
    pub fn stop(&self) {
        match self {
            Broker::Embedded { broker, .. } => broker.nodes().stop(),
            Broker::Apache(apache) => apache.stop(false),
        }
    }

    /// Sends SIGKILL and waits for the exit.
    pub fn kill(&self) {
        match self {
            Broker::Embedded { broker, .. } => broker.nodes().kill(),
            Broker::Apache(apache) => apache.stop(true),
        }
    }

    /// Sends SIGSTOP: connections stay open and the kernel accepts new ones, but the broker does not answer.
    pub fn freeze(&self) {
        match self {
            Broker::Embedded { broker, .. } => broker.nodes().freeze(),
            Broker::Apache(apache) => apache.freeze(true),
        }
    }

    /// SIGCONT
    pub fn thaw(&self) {
        match self {
            Broker::Embedded { broker, .. } => broker.nodes().thaw(),
            Broker::Apache(apache) => apache.freeze(false),
        }
    }

    /// The process id; the embedded broker runs in the test process.
    pub fn process(&self) -> u32 {
        match self {
            Broker::Embedded { .. } => std::process::id(),
            Broker::Apache(apache) => apache.process(),
        }
    }
}

/// Sets how long the broker emulates a delay of Apache Kafka.
fn emulate(settings: &mut Settings, what: &str, length: Duration) {
    match what {
        "fenced" => settings.fenced = length,
        "loading" => settings.loading = length,
        "share-state-delay" => settings.share_state_delay = length,
        other => panic!("the embedded broker does not emulate {other}"),
    }
}

/// The path of the next broker's folder.
fn new_folder() -> PathBuf {
    static COUNT: AtomicUsize = AtomicUsize::new(0);
    janitor::folder().join(format!("kafka-{}", COUNT.fetch_add(1, Ordering::Relaxed)))
}

impl Apache {
    /// Starts a cluster; the ids of its nodes count from 1.
    pub(super) fn start_cluster(nodes: usize, arguments: &[&str]) -> Vec<Apache> {
        let folder = new_folder();
        let of_node = |node: usize| folder.join(node.to_string());
        (1..=nodes).for_each(|node| janitor::broker_starts(&of_node(node)));
        let number = nodes.to_string();
        let start = ["start", "--port", "auto", "--nodes", &number, "--data"];
        let addresses = run(script().env("KAFKA_JAVA_OPTS", SHORT_LIVED).args(start).arg(&folder).args(arguments));
        let settings: Vec<String> = arguments.iter().map(ToString::to_string).collect();
        let node = |(node, address): (usize, &str)| Apache {
            data: of_node(node),
            address: address.to_owned(),
            settings: settings.clone(),
            java_options: SHORT_LIVED,
        };
        (1..).zip(addresses.split(',')).map(node).collect()
    }

    pub(super) fn address(&self) -> &str {
        &self.address
    }

    pub(super) fn start_again(&self) {
        let address = self.script_start(&[]);
        assert_eq!(address, self.address, "a broker starts again on its port");
    }

    pub(super) fn stop(&self, kill: bool) {
        self.script(if kill { &["stop", "--kill"] } else { &["stop"] }, &[]);
    }

    pub(super) fn freeze(&self, frozen: bool) {
        signal_process(self.process(), if frozen { Signal::SIGSTOP } else { Signal::SIGCONT });
    }

    fn start(arguments: &[&str], java_options: &'static str) -> Apache {
        let data = new_folder();
        janitor::broker_starts(&data);
        let settings = arguments.iter().map(ToString::to_string).collect();
        let mut apache = Apache { data, address: String::new(), settings, java_options };
        apache.address = apache.script_start(&["--port", "auto"]);
        apache
    }

    /// Allows all operations and denies this one: Kafka denies what no ACL allows as soon as a resource has any ACL.
    fn deny(&self, operation: Operation, resource: Resource) {
        // Kafka's numbers of operations, permissions and patterns.
        const ALL: i8 = 2;
        const DENY: i8 = 2;
        const ALLOW: i8 = 3;
        const LITERAL: i8 = 3;
        let (resource_type, name) = resource.type_and_name();
        let name = StrBytes::from_string(name.to_owned());
        let acl = |operation: i8, permission: i8| {
            AclCreation::default()
                .with_resource_type(resource_type)
                .with_resource_name(name.clone())
                .with_resource_pattern_type(LITERAL)
                .with_principal(StrBytes::from_static_str("User:ANONYMOUS"))
                .with_host(StrBytes::from_static_str("*"))
                .with_operation(operation)
                .with_permission_type(permission)
        };
        let mut wire = Wire::connect(&self.address);
        let request = CreateAclsRequest::default().with_creations(vec![acl(ALL, ALLOW), acl(operation as i8, DENY)]);
        let answer = wire.call(3, &request);
        assert!(answer.results.iter().all(|result| result.error_code == 0), "{answer:?}");
        let filter = DescribeAclsRequest::default()
            .with_resource_type_filter(resource_type)
            .with_resource_name_filter(Some(name.clone()))
            .with_pattern_type_filter(LITERAL)
            .with_principal_filter(None)
            .with_host_filter(None)
            .with_operation(operation as i8)
            .with_permission_type(DENY);
        eventually(SOON, "the broker knows the ACL", || {
            let answer = wire.call(3, &filter);
            // 31: the ACL denies Describe on the cluster, which this request needs itself.
            !answer.resources.is_empty() || answer.error_code == 31
        });
    }

    /// Sets a quota of one client, or of those without their own.
    fn set_quota(&self, client: Option<&'static str>, quota: &'static str, limit: Option<f64>) {
        let text = StrBytes::from_static_str;
        let entity = EntityData::default().with_entity_type(text("client-id")).with_entity_name(client.map(text));
        let removes = limit.is_none();
        let limit = OpData::default().with_key(text(quota)).with_value(limit.unwrap_or(0.0)).with_remove(removes);
        let entry = EntryData::default().with_entity(vec![entity]).with_ops(vec![limit]);
        let request = AlterClientQuotasRequest::default().with_entries(vec![entry]);
        let answer = Wire::connect(&self.address).call(1, &request);
        assert_eq!(answer.entries[0].error_code, 0, "{answer:?}");
    }

    fn process(&self) -> u32 {
        let text = std::fs::read_to_string(self.data.join("pid")).expect("a broker that runs has a pid file");
        text.trim().parse().expect("a process number")
    }

    fn script_start(&self, arguments: &[&str]) -> String {
        let settings: Vec<&str> = self.settings.iter().map(String::as_str).chain(arguments.iter().copied()).collect();
        self.script(&["start"], &settings)
    }

    fn script(&self, command: &[&str], arguments: &[&str]) -> String {
        run(script()
            .env("KAFKA_JAVA_OPTS", self.java_options)
            .args(command)
            .arg("--data")
            .arg(&self.data)
            .args(arguments))
    }
}

impl Drop for Apache {
    fn drop(&mut self) {
        // SIGKILL ends a frozen broker as well.
        let _ = script().args(["stop", "--kill", "--data"]).arg(&self.data).output();
        if !std::thread::panicking() {
            let _ = std::fs::remove_dir_all(&self.data);
        }
    }
}

fn script() -> Command {
    Command::new(Path::new(env!("CARGO_MANIFEST_DIR")).join("scripts/kafka"))
}

fn run(command: &mut Command) -> String {
    let output = command.output().expect("scripts/kafka starts");
    let (out, err) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success(), "{command:?} failed:\n{out}{err}");
    out.trim().to_owned()
}
