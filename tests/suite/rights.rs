//! Least rights: what each program needs, what it says at a start without one of them, and what it does when it loses
//! one.
//!
//! On Apache Kafka each program is a user with exactly the rights of [`NEEDED`]. The embedded broker has no users: it
//! denies a right to a program's client ids.

mod documents;
mod operator;

use std::{
    collections::BTreeSet,
    time::{Duration, Instant},
};

use devbroker::{Denial, Operation, Resource};
use kafka_protocol::{
    messages::{
        CreateAclsRequest, DeleteAclsRequest, DescribeAclsRequest, create_acls_request::AclCreation,
        delete_acls_request::DeleteAclsFilter,
    },
    protocol::StrBytes,
};
use nix::sys::signal::Signal;
use serde_json::json;

use crate::{
    queue::prepared,
    support::{
        Gateway, Rig, SOON, START,
        admin::{Of, create_topic, set},
        broker::{self, Broker},
        eventually,
        http::Http,
        new_folder,
        program::{Launch, Program},
        started,
        wire::Wire,
    },
};

/// A program, which on Apache Kafka is a user.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Who {
    Gateway,
    Worker,
    /// The program `dead`.
    Operator,
}
use Who::{Gateway as ToGateway, Operator as ToOperator, Worker as ToWorker};

/// What a right is to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum On {
    Tasks,
    Results,
    Dead,
    Starts,
    Group,
}

use Operation::{AlterConfigs, Create, Describe, DescribeConfigs, Read, Write};

/// The rights that suffice; docs/kafka.md and deploy/rights have the same.
const NEEDED: [(Who, On, &[Operation]); 12] = [
    (ToGateway, On::Tasks, &[Read, Write, DescribeConfigs]),
    (ToGateway, On::Results, &[Read, Write, DescribeConfigs]),
    (ToGateway, On::Dead, &[Read]),
    (ToGateway, On::Group, &[Describe, DescribeConfigs]),
    (ToWorker, On::Tasks, &[Read, Write, DescribeConfigs]),
    (ToWorker, On::Results, &[Write, DescribeConfigs]),
    (ToWorker, On::Dead, &[Write, DescribeConfigs]),
    (ToWorker, On::Starts, &[Read, Write, DescribeConfigs]),
    (ToWorker, On::Group, &[Read, DescribeConfigs]),
    (ToOperator, On::Tasks, &[Read, Write]),
    (ToOperator, On::Dead, &[Read, Write]),
    (ToOperator, On::Starts, &[Write]),
];

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Right {
    who: Who,
    on: On,
    operation: Operation,
}

impl Right {
    const fn new(who: Who, on: On, operation: Operation) -> Right {
        Right { who, on, operation }
    }

    fn needed() -> impl Iterator<Item = Right> {
        let each = |(who, on, all): (Who, On, &'static [Operation])| all.iter().map(move |it| Right::new(who, on, *it));
        NEEDED.into_iter().flat_map(each)
    }

    fn name(self, rig: &Rig) -> String {
        let tasks = rig.tasks();
        match self.on {
            On::Tasks => tasks,
            On::Results => rig.results(),
            On::Dead => format!("{tasks}.dead"),
            On::Starts => format!("{tasks}.starts"),
            On::Group => rig.group(),
        }
    }

    fn resource(self, name: &str) -> Resource<'_> {
        if self.on == On::Group { Resource::Group(name) } else { Resource::Topic(name) }
    }

    /// As [`acls`] has it.
    fn acl(self, rig: &Rig) -> (String, String) {
        let kind = if self.on == On::Group { "group" } else { "topic" };
        (format!("{kind} {}", self.name(rig)), format!("{:?}", self.operation))
    }

    /// Whether a program starts without it.
    fn is_optional_at_start(self) -> bool {
        let (who, on) = (self.who, self.on);
        [(ToGateway, On::Dead, Read), (ToWorker, On::Tasks, Write), (ToWorker, On::Starts, Read)].contains(&(
            who,
            on,
            self.operation,
        ))
    }
}

/// The listener with logins, counted from the broker's port.
const LOGIN_PORT: u16 = 2;
const PASSWORD: &str = "staple-7291-battery";

/// A broker that checks rights. Its plain listener is for the test, which has every right.
struct Scene {
    rig: Rig,
    password: String,
}

impl Scene {
    fn new(name: &str) -> Scene {
        let password = new_folder("rights").join("password");
        std::fs::write(&password, PASSWORD).expect("written");
        let settings = [
            "listeners=PLAINTEXT://127.0.0.1:{port},CONTROLLER://127.0.0.1:{port+1},LOGIN://127.0.0.1:{port+2}"
                .to_owned(),
            "advertised.listeners=PLAINTEXT://127.0.0.1:{port},LOGIN://127.0.0.1:{port+2}".to_owned(),
            "listener.security.protocol.map=CONTROLLER:PLAINTEXT,PLAINTEXT:PLAINTEXT,LOGIN:SASL_PLAINTEXT".to_owned(),
            "inter.broker.listener.name=PLAINTEXT".to_owned(),
            "listener.name.login.sasl.enabled.mechanisms=PLAIN".to_owned(),
            format!(
                "listener.name.login.plain.sasl.jaas.config=org.apache.kafka.common.security.plain.PlainLoginModule \
                 required user_gateway=\"{PASSWORD}\" user_worker=\"{PASSWORD}\" user_operator=\"{PASSWORD}\";"
            ),
            "authorizer.class.name=org.apache.kafka.metadata.authorizer.StandardAuthorizer".to_owned(),
            "super.users=User:ANONYMOUS".to_owned(),
        ];
        let arguments: Vec<&str> = settings.iter().flat_map(|setting| ["--set", setting]).collect();
        let rig = Rig::with_own_broker(name, if broker::is_apache() { &arguments } else { &[] });
        Scene { rig, password: password.display().to_string() }
    }

    /// Has a program log in as its user.
    fn by(&self, who: Who, launch: Launch) -> Launch {
        let Broker::Apache(_) = self.rig.broker() else { return launch };
        let (host, port) = self.rig.broker().address().rsplit_once(':').expect("host:port");
        launch
            .env("KAFKA_BOOTSTRAP_SERVERS", format!("{host}:{}", port.parse::<u16>().expect("a port") + LOGIN_PORT))
            .env("KAFKA_SECURITY_PROTOCOL", "SASL_PLAINTEXT")
            .env("KAFKA_SASL_MECHANISM", "PLAIN")
            .env("KAFKA_SASL_USERNAME", user(who))
            .env("KAFKA_SASL_PASSWORD_FILE", &self.password)
    }

    /// Other topics and another group, prepared; each program has its rights there, but not `without`.
    fn granted(&self, name: &str, without: Option<Right>) -> Rig {
        let rig = Rig::beside(&self.rig, name);
        prepared(&rig);
        grant(&rig, without);
        rig
    }

    fn gateway(&self, rig: &Rig) -> Gateway {
        Gateway::start(self.by(ToGateway, rig.gateway()))
    }

    fn worker(&self, rig: &Rig, id: &str) -> Launch {
        self.by(ToWorker, rig.obedient_worker(id).env("MAX_DELIVERIES", 2))
    }
}

fn user(who: Who) -> &'static str {
    match who {
        ToGateway => "gateway",
        ToWorker => "worker",
        ToOperator => "operator",
    }
}

/// Kafka's numbers of permissions and patterns.
const ALLOW: i8 = 3;
const LITERAL: i8 = 3;

/// Kafka's number for any kind of resource, pattern or operation.
const ANY: i8 = 1;

/// The ACLs of a user, as the kind and name of a resource, and an operation.
fn acls(rig: &Rig, who: Who) -> BTreeSet<(String, String)> {
    let request = DescribeAclsRequest::default()
        .with_resource_type_filter(ANY)
        .with_resource_name_filter(None)
        .with_pattern_type_filter(ANY)
        .with_principal_filter(Some(StrBytes::from_string(format!("User:{}", user(who)))))
        .with_host_filter(None)
        .with_operation(ANY)
        .with_permission_type(ALLOW);
    let operations = [AlterConfigs, Create, Describe, DescribeConfigs, Read, Write];
    let mut found = BTreeSet::new();
    for resource in Wire::connect(rig.broker().address()).call(3, &request).resources {
        let kind = if resource.resource_type == 2 { "topic" } else { "group" };
        for acl in resource.acls {
            let operation = operations.iter().find(|it| **it as i8 == acl.operation).expect("a known operation");
            found.insert((format!("{kind} {}", resource.resource_name.as_str()), format!("{operation:?}")));
        }
    }
    found
}

/// Gives all programs their rights, but not `without`.
fn grant(rig: &Rig, without: Option<Right>) {
    match rig.broker() {
        Broker::Embedded { .. } => without.into_iter().for_each(|right| take(rig, right)),
        Broker::Apache(_) => {
            give(rig, &Right::needed().filter(|right| Some(*right) != without).collect::<Vec<_>>());
        }
    }
}

fn give(rig: &Rig, rights: &[Right]) {
    match rig.broker() {
        Broker::Embedded { broker, .. } => broker.allow_all(),
        Broker::Apache(_) => {
            let acl = |right: &Right| {
                let name = right.name(rig);
                AclCreation::default()
                    .with_resource_type(right.resource(&name).type_and_name().0)
                    .with_resource_name(StrBytes::from_string(name))
                    .with_resource_pattern_type(LITERAL)
                    .with_principal(StrBytes::from_string(format!("User:{}", user(right.who))))
                    .with_host(StrBytes::from_static_str("*"))
                    .with_operation(right.operation as i8)
                    .with_permission_type(ALLOW)
            };
            let request = CreateAclsRequest::default().with_creations(rights.iter().map(acl).collect());
            let answer = Wire::connect(rig.broker().address()).call(3, &request);
            assert!(answer.results.iter().all(|result| result.error_code == 0), "{answer:?}");
            let acls = rights.iter().map(|right| (right.who, right.acl(rig)));
            let acls: Vec<_> = acls.collect();
            eventually(SOON, "the broker knows the ACLs", || {
                acls.iter().all(|(who, acl)| self::acls(rig, *who).contains(acl))
            });
        }
    }
}

fn take(rig: &Rig, right: Right) {
    let name = right.name(rig);
    match rig.broker() {
        Broker::Embedded { broker, .. } => {
            let denial = Denial::new(right.operation, right.resource(&name));
            let program = if right.who == ToOperator { "dead" } else { user(right.who) };
            broker.deny(denial.of_client(&format!("lastcall-{program}")));
        }
        Broker::Apache(_) => {
            let filter = DeleteAclsFilter::default()
                .with_resource_type_filter(right.resource(&name).type_and_name().0)
                .with_resource_name_filter(Some(StrBytes::from_string(name)))
                .with_pattern_type_filter(LITERAL)
                .with_principal_filter(Some(StrBytes::from_string(format!("User:{}", user(right.who)))))
                .with_host_filter(None)
                .with_operation(right.operation as i8)
                .with_permission_type(ALLOW);
            let request = DeleteAclsRequest::default().with_filters(vec![filter]);
            let answer = Wire::connect(rig.broker().address()).call(3, &request);
            assert_eq!(answer.filter_results[0].matching_acls.len(), 1, "{answer:?}");
            eventually(SOON, "the broker has dropped the ACL", || !acls(rig, right.who).contains(&right.acl(rig)));
        }
    }
}

#[test]
fn missing_right_is_named_at_the_start_and_ends_it_after_half_a_minute() {
    let scene = Scene::new("rights-start");
    let begun = |right: Right| {
        let rig = scene.granted("without", Some(right));
        let launch = match right.who {
            ToGateway => scene.by(ToGateway, rig.gateway()),
            ToWorker | ToOperator => scene.worker(&rig, "w"),
        };
        let program = match (right.is_optional_at_start(), right.who) {
            (false, _) => launch.start(),
            (true, ToGateway) => Gateway::start(launch).program,
            (true, ToWorker | ToOperator) => started(&launch),
        };
        (right, rig, program, Instant::now())
    };
    // All of them at once, since each takes half a minute.
    let programs: Vec<_> = Right::needed().filter(|right| right.who != ToOperator).map(begun).collect();
    for (right, rig, mut program, since) in programs {
        let (name, operation) = (right.name(&rig), right.operation);
        let kind = if right.on == On::Group { "group" } else { "topic" };
        // Read and Write include Describe, and without that Kafka hides a topic or a group.
        let names = |text: &str| {
            let is_named = |it: &str| text.contains(&format!("the right {it} on the {kind}"));
            text.contains(&format!("{kind} \"{name}\""))
                && (is_named(&format!("{operation:?}")) || is_named("Describe"))
        };
        if right.is_optional_at_start() {
            assert!(program.lines().iter().any(|line| names(&line.text)), "{right:?}: {}", program.stderr());
            program.ends_at(Signal::SIGTERM, 0);
            continue;
        }
        let exit = program.wait(START + Duration::from_secs(30));
        assert_eq!(exit.code, Some(2), "{right:?}: {}", program.stderr());
        assert!(since.elapsed() > Duration::from_secs(25), "{right:?}: it gave up after {:?}", since.elapsed());
        let told: Vec<_> = program.lines().into_iter().filter(|line| names(&line.text)).collect();
        let has = |text: &str| told.iter().filter(|line| line.text.contains(text)).count();
        assert!(has("refuses (") >= 1 && has("cannot ") == 1, "{right:?}: {}", program.stderr());
    }
}

/// A handler has taken the task, and waits until it may write the result.
#[test]
fn quiet_worker_releases_a_task_that_waits_for_a_right() {
    let scene = Scene::new("rights-quiet");
    let rig = scene.granted("quiet", None);
    let gateway = scene.gateway(&rig);
    let mut worker = started(&scene.worker(&rig, "w").env("METRICS_ADDR", "127.0.0.1:0"));
    let metrics = worker.address_after("metrics are served on ");
    let holds = |tasks: usize| {
        let response = Http::connect(&metrics).and_then(|mut http| http.get("/metrics")).expect("a response");
        response.text().contains(&format!("lastcall_tasks_held{{state=\"ready\"}} {tasks}\n"))
    };
    let right = Right::new(ToWorker, On::Results, Write);
    take(&rig, right);
    worker.wait_for_line("refuses", START);
    let task = gateway.submit("waits", Duration::ZERO);
    eventually(SOON, "the worker holds the task", || holds(1));
    worker.signal(Signal::SIGUSR1);
    worker.wait_for_line("💤", SOON);
    assert!(holds(0));
    give(&rig, &[right]);
    worker.signal(Signal::SIGUSR2);
    assert_eq!(gateway.wait_for_result(&task, START)["processed_by"], "w");
    worker.wait_for_line(&format!("starts task {task} at its delivery 2"), SOON);
}

#[test]
fn right_that_is_granted_in_time_is_enough_for_a_start() {
    let scene = Scene::new("rights-late");
    let [read, join] = [On::Tasks, On::Group].map(|on| Right::new(ToWorker, on, Read));
    let seen = Right::new(ToGateway, On::Group, Describe);
    let rig = scene.granted("late", Some(seen));
    [read, join].into_iter().for_each(|right| take(&rig, right));
    let (gateway, worker) = (Gateway::launch(scene.by(ToGateway, rig.gateway())), scene.worker(&rig, "w").start());
    gateway.program.wait_for_line("Kafka refuses (", SOON);
    worker.wait_for_line("Kafka refuses (", SOON);
    give(&rig, &[read, join, seen]);
    worker.wait_for_line("answers again after", SOON);
    eventually(SOON, "the gateway is ready", || gateway.get("/readyz").status == 200);
    assert_eq!(gateway.analyze("all is well").status, 200);
}

#[test]
fn settings_of_an_operator_are_enough_and_one_warning_names_the_others() {
    let scene = Scene::new("rights-operator");
    let rig = Rig::beside(&scene.rig, "operator");
    let (address, group) = (rig.broker().address(), rig.group());
    let topic = |on| Right::new(ToWorker, on, Read).name(&rig);
    for on in [On::Tasks, On::Results, On::Dead] {
        create_topic(address, &topic(on), 1, &[]);
    }
    for (key, value) in [("share.auto.offset.reset", "earliest"), ("share.delivery.count.limit", "10")] {
        set(address, Of::Group, &group, key, value);
    }
    grant(&rig, None);
    let starts = topic(On::Starts);
    if let Broker::Embedded { broker, .. } = rig.broker() {
        broker.deny(Denial::new(AlterConfigs, Resource::Group(&group)));
        for resource in [Resource::Cluster, Resource::Topic(&starts)] {
            broker.deny(Denial::new(Create, resource).of_client("lastcall"));
        }
    }
    let worker = scene.worker(&rig, "w").start();
    worker.wait_for_line(&format!("topic \"{starts}\": the right Create on the topic is missing"), SOON);
    // Five attempts take 1.5 s; no condition shows them.
    std::thread::sleep(Duration::from_millis(1500));
    create_topic(address, &starts, 1, &[]);
    worker.wait_for_line("worker_started notification", START);
    let warned = worker.lines_with(&format!("group {group} keeps "));
    assert_eq!(warned.len(), 1, "{}", worker.stderr());
    let line = &warned[0].text;
    assert!(line.contains("share.record.lock.duration.ms=30000 instead of 15000"), "{line}");
    assert!(!line.contains("share.auto.offset.reset"), "it is right: {line}");
    assert_eq!(scene.gateway(&rig).analyze("all is well").status, 200);
}

/// A running fleet whose rights are taken away.
struct Fleet {
    gateway: Gateway,
    worker: Program,
    health: std::path::PathBuf,
}

impl Fleet {
    fn start(scene: &Scene, rig: &Rig) -> Fleet {
        let health = new_folder("rights").join("health");
        let worker = started(&scene.worker(rig, "w").env("HEALTH_FILE", health.display()));
        Fleet { gateway: scene.gateway(rig), worker, health }
    }

    fn is_ready(&self, who: Who) -> bool {
        match who {
            ToGateway => self.gateway.get("/readyz").status == 200,
            ToWorker | ToOperator => std::fs::read_to_string(&self.health).is_ok_and(|text| text == "running\n"),
        }
    }

    fn program(&self, who: Who) -> &Program {
        match who {
            ToGateway => &self.gateway.program,
            ToWorker | ToOperator => &self.worker,
        }
    }

    /// Needs every right: posts, once with a key; the task of a killed worker; a dead letter.
    fn works(&mut self, scene: &Scene, rig: &Rig) {
        assert_eq!(self.gateway.analyze("all is well").status, 200);
        let keyed = self.gateway.analyze_with(&[("Idempotency-Key", "k")], &json!({"text": "all is well"}));
        assert_eq!(keyed.status, 200, "{}", keyed.text());
        let task = self.gateway.submit("sleep 1000", Duration::ZERO);
        self.gateway.wait_until_running(&task, SOON);
        self.worker.kill();
        self.worker = started(&scene.worker(rig, "w").env("HEALTH_FILE", self.health.display()));
        self.gateway.wait_for_result(&task, SOON);
        let poison = self.gateway.submit("retry without success", Duration::ZERO);
        assert_eq!(self.gateway.wait_for_result(&poison, SOON)["success"], false);
        eventually(SOON, "the dead letter is written", || !rig.dead_letters().is_empty());
        for who in [ToGateway, ToWorker] {
            let refused = self.program(who).lines_with("refuses");
            assert!(refused.is_empty(), "{refused:?}");
        }
    }
}

#[test]
fn right_that_is_lost_while_running_is_named_and_nothing_is_lost() {
    let scene = Scene::new("rights-lost");
    let rig = scene.granted("lost", None);
    let mut fleet = Fleet::start(&scene, &rig);
    fleet.works(&scene, &rig);
    for (who, on, operation) in [
        (ToGateway, On::Tasks, Read),
        (ToGateway, On::Tasks, Write),
        (ToGateway, On::Results, Read),
        (ToGateway, On::Results, Write),
        (ToWorker, On::Tasks, Read),
        (ToWorker, On::Results, Write),
        (ToWorker, On::Group, Read),
    ] {
        let right = Right::new(who, on, operation);
        eventually(SOON, "the fleet is ready", || [ToGateway, ToWorker].into_iter().all(|who| fleet.is_ready(who)));
        let before = fleet.program(who).lines_with("refuses").len();
        let task = fleet.gateway.submit("sleep 2000", Duration::ZERO);
        fleet.gateway.wait_until_running(&task, SOON);
        take(&rig, right);
        if operation == Write && who == ToGateway {
            // Noticed when it is needed.
            let refused = fleet.gateway.analyze_with(&[("Idempotency-Key", &format!("{on:?}"))], &json!({"text": "?"}));
            assert_eq!(refused.status, 503, "{right:?}: {}", refused.text());
        }
        eventually(START, &format!("it is not ready without {right:?}"), || !fleet.is_ready(who));
        let name = right.name(&rig);
        let is_named = |text: &str| text.contains(&name) && text.contains(&format!("{operation:?} on"));
        let told = || fleet.program(who).lines_with("refuses").split_off(before);
        eventually(SOON, &format!("a line names {right:?}"), || told().iter().any(|line| is_named(&line.text)));
        assert!(told().len() <= 3, "{right:?}: {:?}", told());
        give(&rig, &[right]);
        fleet.gateway.wait_for_result(&task, START + Duration::from_secs(15));
        eventually(START, &format!("it is ready again with {right:?}"), || fleet.is_ready(who));
        assert_eq!(fleet.gateway.analyze("all is well").status, 200, "{right:?}");
    }
    // The stop of a worker that may neither acknowledge nor leave its group.
    let task = fleet.gateway.submit("sleep 2000", Duration::ZERO);
    fleet.gateway.wait_until_running(&task, SOON);
    take(&rig, Right::new(ToWorker, On::Group, Read));
    eventually(SOON, "it is not ready", || !fleet.is_ready(ToWorker));
    let exit = fleet.worker.ends_at(Signal::SIGTERM, 0);
    assert!(exit.elapsed < Duration::from_secs(5), "{exit:?}");
    fleet.gateway.wait_for_result(&task, SOON);
}
