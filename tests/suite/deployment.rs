//! Compares the compose file, the images, the edge, the systemd units and the Kubernetes manifests with the programs:
//! grace periods against the parsed configuration, stop signals, users, limits and probes.

use lastcall::config::{Environment, GatewayConfig, Parsed, WorkerConfig};
use lastcall::logging::LogFormat;
use std::collections::BTreeMap;
use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::time::Duration;
use yaml_rust2::{Yaml, YamlLoader};

fn file(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join(path)
}

fn read(path: impl AsRef<Path>) -> String {
    let path = path.as_ref();
    std::fs::read_to_string(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

fn yaml(path: impl AsRef<Path>) -> Vec<Yaml> {
    YamlLoader::load_from_str(&read(path)).expect("YAML")
}

/// Parses an environment as the worker does; panics with the worker's error if the grace period does not fit.
fn worker(variables: &BTreeMap<String, String>) -> WorkerConfig {
    let parsed = WorkerConfig::parse([OsString::from("worker")], &environment(variables));
    match parsed.unwrap_or_else(|error| panic!("{error}")) {
        Parsed::Run(config) => config,
        Parsed::Show(text) => panic!("{text}"),
    }
}

fn gateway(variables: &BTreeMap<String, String>) -> GatewayConfig {
    let parsed = GatewayConfig::parse([OsString::from("gateway")], &environment(variables));
    match parsed.unwrap_or_else(|error| panic!("{error}")) {
        Parsed::Run(config) => config,
        Parsed::Show(text) => panic!("{text}"),
    }
}

fn environment(variables: &BTreeMap<String, String>) -> Environment {
    let variables = variables.iter().map(|(name, value)| (name.into(), value.into())).collect();
    Environment { variables, host_name: "host".into() }
}

fn seconds(text: &str) -> Duration {
    let number = text.trim_end_matches('s').parse().unwrap_or_else(|_| panic!("{text} is not a number of seconds"));
    Duration::from_secs(number)
}

/// Replaces `${NAME:-default}` by its default.
fn without_variables(text: &str) -> String {
    match text.strip_prefix("${").and_then(|rest| rest.strip_suffix('}')) {
        Some(inner) => inner.split_once(":-").map_or("", |(_, default)| default).to_owned(),
        None => text.to_owned(),
    }
}

// ---- compose ----

fn service(name: &str) -> Yaml {
    yaml(file("docker-compose.yml"))[0]["services"][name].clone()
}

/// A member of a service, or of the mapping that it merges (`<<`).
fn member(service: &Yaml, name: &str) -> Yaml {
    if service[name].is_badvalue() { service["<<"][name].clone() } else { service[name].clone() }
}

fn variables_of_service(service: &Yaml) -> BTreeMap<String, String> {
    let members = service["environment"].as_hash().expect("an environment");
    let pairs = members.iter().map(|(name, value)| {
        (name.as_str().expect("a name").to_owned(), without_variables(value.as_str().expect("a text")))
    });
    pairs.collect()
}

#[test]
fn compose_grace_periods_match_the_programs() {
    let of_worker = service("worker");
    let config = worker(&variables_of_service(&of_worker));
    assert_eq!(seconds(of_worker["stop_grace_period"].as_str().expect("set")), config.stop_grace_period);
    assert_eq!(config.stop_grace_period, Duration::from_secs(45));
    let of_gateway = service("gateway");
    let config = gateway(&variables_of_service(&of_gateway));
    assert_eq!(seconds(of_gateway["stop_grace_period"].as_str().expect("set")), config.stop_grace_period);
    assert_eq!(config.stop_grace_period, Duration::from_secs(30));
}

#[test]
fn compose_runs_the_programs_with_least_privilege_and_limits() {
    assert_eq!(service("worker")["deploy"]["replicas"].as_i64(), Some(3));
    for name in ["worker", "gateway"] {
        let service = service(name);
        assert_eq!(member(&service, "stop_signal").as_str(), Some("SIGTERM"), "{name}");
        assert_eq!(member(&service, "read_only").as_bool(), Some(true), "{name}");
        assert_eq!(member(&service, "cap_drop")[0].as_str(), Some("ALL"), "{name}");
        assert_eq!(member(&service, "security_opt")[0].as_str(), Some("no-new-privileges:true"), "{name}");
        for limit in ["mem_limit", "pids_limit", "restart"] {
            assert!(!member(&service, limit).is_badvalue(), "{name} has {limit}");
        }
        // Docker does not restart a container with `unless-stopped` after it got SIGUSR1 or SIGUSR2 by its API.
        assert_eq!(
            member(&service, "restart").as_str(),
            Some(if name == "worker" { "always" } else { "unless-stopped" })
        );
        let check = &service["healthcheck"]["test"];
        assert_eq!(
            [check[0].as_str(), check[1].as_str(), check[2].as_str()],
            [Some("CMD"), Some(name), Some(if name == "worker" { "--healthcheck=ready" } else { "--healthcheck" })]
        );
    }
}

/// Compose stops in the reverse order of `depends_on`.
#[test]
fn compose_stops_gateway_then_workers_then_kafka() {
    let depends =
        |name: &str, on: &str| service(name)["depends_on"].as_vec().expect("a list").contains(&Yaml::String(on.into()));
    assert!(depends("gateway", "worker") && depends("gateway", "kafka") && depends("worker", "kafka"));
}

#[test]
fn compose_limits_every_log_and_checks_health_at_most_every_five_seconds() {
    for name in ["kafka", "worker", "gateway", "edge", "drill"] {
        let service = service(name);
        let options = member(&service, "logging")["options"].clone();
        assert_eq!((options["max-size"].as_str(), options["max-file"].as_str()), (Some("10m"), Some("3")), "{name}");
        let interval = service["healthcheck"]["interval"].as_str();
        assert!(interval.is_none_or(|interval| seconds(interval) >= Duration::from_secs(5)), "{name}");
    }
}

#[test]
fn two_checkouts_share_no_project_and_no_image_and_every_port_can_be_set() {
    assert!(yaml(file("docker-compose.yml"))[0]["name"].is_badvalue(), "compose names the project after the folder");
    for name in ["worker", "gateway", "drill"] {
        let image = member(&service(name), "image").as_str().expect("an image").to_owned();
        assert!(image.ends_with(":${COMPOSE_PROJECT_NAME:-lastcall}"), "{name}: {image}");
    }
    for name in ["kafka", "gateway", "edge"] {
        let port = service(name)["ports"][0].as_str().expect("a port").to_owned();
        assert!(port.contains(":-"), "{name}: {port}");
    }
}

#[test]
fn images_hold_only_their_programs_and_run_without_shell_and_root() {
    let dockerfile = read(file("Dockerfile"));
    let stages = dockerfile.split("\nFROM ").collect::<Vec<_>>();
    let [.., base, drill, services] = &stages[..] else { panic!("the Dockerfile lacks a stage") };
    assert!(services.starts_with("base AS services") && drill.starts_with("base AS drill"));
    let programs = |stage: &str| {
        let words = stage.split_whitespace().filter_map(|word| word.strip_prefix("/build/target/dist/"));
        words.collect::<Vec<_>>().join(" ")
    };
    assert_eq!([programs(base), programs(drill), programs(services)], ["", "drill", "dead gateway worker"]);
    assert!(services.contains("\nCMD [\"gateway\"]\n") && drill.contains("\nCMD [\"drill\", \"watch\"]\n"));
    assert!(base.contains("\nSTOPSIGNAL SIGTERM\n"));
    let user = base.lines().find_map(|line| line.strip_prefix("USER ")).expect("a user");
    assert!(user.split(':').all(|number| number.parse::<u32>().is_ok_and(|number| number > 0)), "{user}");
    for (name, value) in [
        ("version", env!("CARGO_PKG_VERSION").to_owned()),
        ("licenses", env!("CARGO_PKG_LICENSE").to_owned()),
        ("description", format!("{:?}", env!("CARGO_PKG_DESCRIPTION"))),
    ] {
        assert!(base.contains(&format!("org.opencontainers.image.{name}={value}")), "{name} differs from Cargo.toml");
    }
}

// ---- the edge ----

/// `tests/stack docker` sends the requests.
#[test]
fn the_edge_passes_only_submissions_and_look_ups() {
    let config = read(file("deploy/edge/haproxy.cfg"));
    let rules = config.lines().map(str::trim).filter(|line| line.starts_with("http-request deny deny_status 404"));
    let allowed = "unless { method POST } { path /analyze } or { method GET } { path_reg ^/tasks/[^/]+$ }";
    assert_eq!(rules.collect::<Vec<_>>(), [format!("http-request deny deny_status 404 {allowed}")]);
}

// ---- systemd ----

/// The settings of a unit's sections, in their order.
fn unit(name: &str) -> Vec<(String, String)> {
    let text = read(file("deploy/systemd").join(name));
    let settings = text.lines().filter(|line| !line.starts_with(['#', '[']) && !line.is_empty());
    let pairs = settings.map(|line| line.split_once('=').unwrap_or_else(|| panic!("{name}: {line}")));
    pairs.map(|(key, value)| (key.to_owned(), value.to_owned())).collect()
}

fn setting<'a>(unit: &'a [(String, String)], key: &str) -> &'a str {
    unit.iter().find(|(name, _)| name == key).map_or_else(|| panic!("the unit lacks {key}"), |(_, value)| value)
}

fn variables_of_unit(unit: &[(String, String)]) -> BTreeMap<String, String> {
    let words = setting(unit, "Environment").split(' ').map(|word| word.split_once('=').expect("NAME=value"));
    words.map(|(name, value)| (name.to_owned(), value.to_owned())).collect()
}

#[test]
fn systemd_grace_periods_match_the_programs() {
    let of_worker = unit("lastcall-worker@.service");
    let config = worker(&variables_of_unit(&of_worker));
    assert_eq!(seconds(setting(&of_worker, "TimeoutStopSec")), config.stop_grace_period);
    let of_gateway = unit("lastcall-gateway.service");
    let config = gateway(&variables_of_unit(&of_gateway));
    assert_eq!(seconds(setting(&of_gateway, "TimeoutStopSec")), config.stop_grace_period);
}

#[test]
fn systemd_units_use_notify_and_know_the_exit_codes() {
    for (name, successes) in [("lastcall-worker@.service", "3 4"), ("lastcall-gateway.service", "4")] {
        let unit = unit(name);
        assert_eq!(setting(&unit, "Type"), "notify");
        // Any signal ends a program with exit code 0, but only `systemctl stop` shall keep it stopped.
        assert_eq!(setting(&unit, "Restart"), "always");
        assert_eq!(setting(&unit, "KillMode"), "mixed");
        assert_eq!(setting(&unit, "SuccessExitStatus"), successes);
        assert_eq!(setting(&unit, "RestartPreventExitStatus"), "2");
        // Longer than several missed rounds, and longer than the worker waits for brokers that do not answer.
        assert!(seconds(setting(&unit, "WatchdogSec")) >= Duration::from_secs(30));
        assert!(seconds(setting(&unit, "TimeoutStartSec")) > lastcall::supervisor::EXTENSION);
        // By default stdout is the journal, which takes the priority from each line's begin.
        let journal = ["StandardOutput", "SyslogLevelPrefix"];
        assert!(unit.iter().all(|(key, _)| !journal.contains(&key.as_str())), "{name}");
    }
}

// ---- Kubernetes ----

/// The files in this folder and below.
fn files_below(folder: &Path) -> Vec<PathBuf> {
    let entries = std::fs::read_dir(folder).expect("a folder").map(|entry| entry.expect("readable").path());
    entries.flat_map(|path| if path.is_dir() { files_below(&path) } else { vec![path] }).collect()
}

/// All objects of this kind, from all manifests, also those of components.
fn objects(kind: &str) -> Vec<Yaml> {
    let mut files = files_below(&file("deploy/kubernetes"));
    files.sort();
    let manifests = files.into_iter().filter(|path| path.extension().is_some_and(|extension| extension == "yaml"));
    manifests.flat_map(yaml).filter(|object| object["kind"].as_str() == Some(kind)).collect()
}

fn deployment(name: &str) -> (Yaml, Yaml) {
    let all = objects("Deployment");
    let found = all.iter().find(|object| object["metadata"]["name"].as_str().is_some_and(|full| full.ends_with(name)));
    let pod = found.unwrap_or_else(|| panic!("a deployment {name}"))["spec"]["template"]["spec"].clone();
    let container = pod["containers"][0].clone();
    (pod, container)
}

/// The variables with a value in the manifest, without references to other objects.
fn variables_of_container(container: &Yaml) -> BTreeMap<String, String> {
    let entries = container["env"].as_vec().expect("variables");
    let pairs = entries.iter().filter_map(|entry| Some((entry["name"].as_str()?, entry["value"].as_str()?)));
    pairs.map(|(name, value)| (name.to_owned(), value.to_owned())).collect()
}

/// The program's part of the grace period, which counts from the deletion of the pod and includes the hook.
fn time_for_the_program(pod: &Yaml, container: &Yaml) -> Duration {
    let grace = pod["terminationGracePeriodSeconds"].as_i64().expect("a grace period");
    let hook = container["lifecycle"]["preStop"]["sleep"]["seconds"].as_i64().unwrap_or(0);
    Duration::from_secs(u64::try_from(grace - hook).expect("the hook leaves time"))
}

#[test]
fn kubernetes_grace_periods_fit_the_programs() {
    let (pod, container) = deployment("worker");
    assert_eq!(pod["terminationGracePeriodSeconds"].as_i64(), Some(45));
    assert!(worker(&variables_of_container(&container)).stop_grace_period <= time_for_the_program(&pod, &container));
    let (pod, container) = deployment("gateway");
    assert_eq!(pod["terminationGracePeriodSeconds"].as_i64(), Some(30));
    assert!(gateway(&variables_of_container(&container)).stop_grace_period <= time_for_the_program(&pod, &container));
}

#[test]
fn kubernetes_runs_the_programs_with_least_privilege_and_limits() {
    for name in ["worker", "gateway"] {
        let (_, container) = deployment(name);
        let security = &container["securityContext"];
        assert_eq!(security["readOnlyRootFilesystem"].as_bool(), Some(true), "{name}");
        assert_eq!(security["allowPrivilegeEscalation"].as_bool(), Some(false), "{name}");
        assert_eq!(security["capabilities"]["drop"][0].as_str(), Some("ALL"), "{name}");
        assert!(!container["resources"]["limits"]["memory"].is_badvalue(), "{name}");
        assert!(!container["livenessProbe"].is_badvalue(), "{name}");
        assert_eq!(objects("PodDisruptionBudget").len(), 2);
    }
}

/// Options that all pods read.
fn settings() -> BTreeMap<String, String> {
    let settings = objects("ConfigMap")[0]["data"].clone();
    let pairs = settings.as_hash().expect("options").iter();
    pairs
        .map(|(name, value)| (name.as_str().expect("a name").to_owned(), value.as_str().expect("a text").to_owned()))
        .collect()
}

#[test]
fn kubernetes_settings_are_read_and_pods_log_json() {
    assert_eq!(worker(&settings()).common.log_format, LogFormat::Json);
    assert_eq!(gateway(&settings()).common.log_format, LogFormat::Json);
    for (name, value) in settings() {
        let read = [worker(&settings()).common.effective, gateway(&settings()).common.effective];
        assert!(read.iter().all(|effective| effective.get(&name) == Some(&value)), "{name}");
    }
}

#[test]
fn kubernetes_spreads_the_pods_of_each_version_on_their_own() {
    for name in ["worker", "gateway"] {
        let (pod, _) = deployment(name);
        let spread = &pod["topologySpreadConstraints"][0];
        assert_eq!(spread["matchLabelKeys"][0].as_str(), Some("pod-template-hash"), "{name}");
    }
}

/// The ports and protocols of a policy's rules for `ingress` or `egress`. Each rule is for any address, that for
/// operators for any pod.
fn rules(policy: &Yaml, direction: &str) -> Vec<(String, String)> {
    let rules = policy["spec"][direction].as_vec().expect("rules");
    for rule in rules {
        let is_admin = rule["ports"][0]["port"].as_str() == Some("admin");
        assert_eq!(rule["from"].is_badvalue(), !is_admin, "only operators are inside");
        assert!(rule["to"].is_badvalue(), "any address");
    }
    let ports = rules.iter().flat_map(|rule| rule["ports"].as_vec().expect("ports").clone());
    let text =
        |port: &Yaml| port.as_i64().map_or_else(|| port.as_str().expect("a name").to_owned(), |it| it.to_string());
    ports.map(|port| (text(&port["port"]), port["protocol"].as_str().expect("a protocol").to_owned())).collect()
}

fn pair(port: &str, protocol: &str) -> (String, String) {
    (port.to_owned(), protocol.to_owned())
}

/// The base has none: it cannot know where Kafka is, and a cluster may not enforce policies.
#[test]
fn network_policies_of_the_component_admit_callers_kafka_and_dns_only() {
    let base = read(file("deploy/kubernetes/kustomization.yaml"));
    assert!(!base.contains("network-policy") && !base.contains("\ncomponents"), "{base}");
    let policies = objects("NetworkPolicy");
    let policy = |name: &str| {
        let found = policies.iter().find(|policy| policy["metadata"]["name"].as_str() == Some(name));
        found.unwrap_or_else(|| panic!("a policy {name}"))
    };
    let label = "app.kubernetes.io/name";
    let label_of = |name: &str| {
        let deployments = objects("Deployment");
        let labels = deployments
            .iter()
            .map(|it| it["spec"]["template"]["metadata"]["labels"][label].as_str().map(str::to_owned));
        labels.flatten().find(|label| label.ends_with(name)).expect("a pod with a label")
    };
    let (gateway, worker) = (label_of("gateway"), label_of("worker"));
    for name in [&gateway, &worker] {
        let spec = &policy(name)["spec"];
        assert_eq!(spec["podSelector"]["matchLabels"][label].as_str(), Some(name.as_str()));
        assert_eq!(spec["policyTypes"], Yaml::Array(vec![Yaml::String("Ingress".to_owned())]));
    }
    assert_eq!(rules(policy(&gateway), "ingress"), [pair("http", "TCP"), pair("admin", "TCP")]);
    assert_eq!(rules(policy(&worker), "ingress"), [pair("metrics", "TCP")]);
    let ports = deployment("gateway").1["ports"].as_vec().expect("ports").clone();
    let names: Vec<_> = ports.iter().filter_map(|port| port["name"].as_str()).collect();
    assert_eq!(names, ["http", "admin"]);

    let spec = &policy("lastcall-egress")["spec"];
    let selected = &spec["podSelector"]["matchExpressions"][0];
    assert_eq!((selected["key"].as_str(), selected["operator"].as_str()), (Some(label), Some("In")));
    assert_eq!(selected["values"], Yaml::Array([gateway, worker].map(Yaml::String).to_vec()));
    assert_eq!(spec["policyTypes"], Yaml::Array(vec![Yaml::String("Egress".to_owned())]));
    let servers = &settings()["KAFKA_BOOTSTRAP_SERVERS"];
    let (_, port) = servers.rsplit_once(':').expect("a port");
    assert_eq!(rules(policy("lastcall-egress"), "egress"), [pair(port, "TCP"), pair("53", "UDP"), pair("53", "TCP")]);
}
