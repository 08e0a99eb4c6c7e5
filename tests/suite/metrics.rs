//! The metrics of both programs: their names against docs/metrics.md, and a real Prometheus that collects them and fires
//! the alerts of deploy/prometheus.

use std::{
    collections::BTreeMap,
    fs,
    path::Path,
    process::Command,
    time::{Duration, Instant},
};

use nix::sys::signal::Signal;
use serde_json::Value;

use crate::support::{
    Gateway, Rig, SOON, audit, eventually, eventually_some, has_program,
    http::Http,
    new_folder,
    program::{Launch, Program},
    reserved_port, started,
};

/// A fleet with all its metrics: the gateway, its address for operators, the worker, and the address of its metrics.
fn fleet(rig: &Rig) -> (Gateway, String, Program, String) {
    let gateway = Gateway::start(rig.gateway().env("ADMIN_ADDR", "127.0.0.1:0").env("ALLOW_WORK_MS", 1));
    let admin = gateway.program.address_after("operators are served on ");
    let worker = started(&rig.worker("w").env("METRICS_ADDR", "127.0.0.1:0").env("DRAIN_TIMEOUT", "1s"));
    let metrics = worker.address_after("metrics are served on ");
    (gateway, admin, worker, metrics)
}

fn get(address: &str, path: &str) -> String {
    Http::connect(address).and_then(|mut http| http.get(path)).expect("a response").text()
}

/// Name and type of each metric of a program.
fn metrics(text: &str) -> BTreeMap<String, String> {
    let types = text.lines().filter_map(|line| line.strip_prefix("# TYPE ")?.split_once(' '));
    types.map(|(name, of)| (name.to_owned(), of.to_owned())).collect()
}

#[test]
fn page_of_metrics_lists_each_metric_with_its_type_and_program() {
    let rig = Rig::shared("metrics-page");
    let (_gateway, admin, _worker, worker) = fleet(&rig);
    // The gateway asks Kafka for the lag every few seconds.
    eventually(SOON, "the lag is known", || get(&admin, "/metrics").contains("lastcall_group_lag{partition=\"0\"} 0"));
    let [of_gateway, of_worker] = [&admin, &worker].map(|address| metrics(&get(address, "/metrics")));
    let both = |name: &str| of_gateway.contains_key(name) && of_worker.contains_key(name);
    let mut code = of_gateway.clone();
    code.extend(of_worker.clone());
    let page = fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/metrics.md")).expect("the page");
    let rows = page.lines().filter_map(|line| {
        let cells: Vec<&str> = line.strip_prefix("| `")?.split(" | ").collect();
        let [name, of_type, of, _] = cells[..] else { return None };
        let name = name.trim_end_matches('`');
        let expected = match (both(name), of_worker.contains_key(name)) {
            (true, _) => &["both"][..],
            (false, true) => &["worker"],
            (false, false) => &["gateway", "fleet"],
        };
        assert!(expected.contains(&of), "{name} is of {expected:?}, and the page says {of}");
        Some((name.to_owned(), of_type.to_owned()))
    });
    assert_eq!(rows.collect::<BTreeMap<_, _>>(), code);
}

/// A Prometheus that collects the metrics of these addresses every second, with the alerts of deploy/prometheus made
/// fast.
struct Prometheus {
    address: String,
    _program: Program,
}

impl Prometheus {
    fn start(targets: &[&str]) -> Self {
        let folder = new_folder("prometheus");
        let rules = Path::new(env!("CARGO_MANIFEST_DIR")).join("deploy/prometheus/alerts.yaml");
        let rules = fs::read_to_string(rules).expect("the rules");
        let (mut fast, mut shortened) = (String::new(), 0);
        for line in rules.lines() {
            let line = if line.trim_start().starts_with("for: ") { "        for: 1s" } else { line };
            shortened += usize::from(line.contains("[10m]"));
            fast += &line.replace("[10m]", "[8s]").replace("> 600", "> 2");
            fast.push('\n');
        }
        assert!(shortened >= 2, "the rules have other times");
        fs::write(folder.join("alerts.yaml"), fast).expect("a file");
        let config = format!(
            "global: {{scrape_interval: 1s, evaluation_interval: 1s}}\nrule_files: [alerts.yaml]\n\
             scrape_configs:\n  - job_name: lastcall\n    static_configs: [{{targets: {targets:?}}}]\n"
        );
        fs::write(folder.join("prometheus.yaml"), config).expect("a file");
        let port = reserved_port();
        let address = port.address().to_string();
        let program = Launch::new("prometheus", "prometheus")
            .arg(format!("--config.file={}", folder.join("prometheus.yaml").display()))
            .arg(format!("--storage.tsdb.path={}", folder.join("data").display()))
            .arg(format!("--web.listen-address={address}"))
            .start();
        let this = Self { address, _program: program };
        eventually(SOON, "Prometheus is ready", || {
            Http::connect(&this.address).and_then(|mut http| http.get("/-/ready")).is_ok_and(|it| it.status == 200)
        });
        drop(port);
        this
    }

    /// The values of an expression now.
    fn ask(&self, expression: &str) -> Vec<f64> {
        let query: String = expression.bytes().map(|byte| format!("%{byte:02X}")).collect();
        let text = get(&self.address, &format!("/api/v1/query?query={query}"));
        let answer: Value = serde_json::from_str(&text).expect("JSON");
        assert_eq!(answer["status"], "success", "{answer}");
        let values = answer["data"]["result"].as_array().expect("a list").iter();
        values.map(|it| it["value"][1].as_str().and_then(|text| text.parse().ok()).expect("a number")).collect()
    }

    /// Waits until this alert has fired.
    fn wait_for_alert(&self, name: &str) {
        let fired = format!("max_over_time(ALERTS{{alertname=\"{name}\",alertstate=\"firing\"}}[5m])");
        eventually(Duration::from_secs(40), &format!("{name} fires"), || !self.ask(&fired).is_empty());
    }
}

#[test]
fn real_prometheus_collects_both_programs_and_fires_the_alerts() {
    if !has_program(Command::new("prometheus").arg("--version"), "REQUIRE_PROMETHEUS") {
        return;
    }
    let rig = Rig::shared("metrics-alerts");
    let (gateway, admin, mut worker, metrics) = fleet(&rig);
    let prometheus = Prometheus::start(&[&admin, &metrics]);
    eventually(SOON, "both programs are collected", || prometheus.ask("up == 1").len() == 2);
    assert_eq!(gateway.analyze("a b").status, 200);
    let counted = ["lastcall_task_runs_total{outcome=\"succeeded\"}", "lastcall_results_total{outcome=\"succeeded\"}"];
    for name in counted {
        eventually(SOON, name, || prometheus.ask(name) == [1.0]);
    }
    let route = "lastcall_http_requests_total{route=\"/analyze\",method=\"POST\",code=\"200\"}";
    eventually(SOON, "the request is counted by its route", || prometheus.ask(route) == [1.0]);
    assert!(prometheus.ask("ALERTS{alertstate=\"firing\"}").is_empty(), "a calm fleet");

    let broker = rig.broker().address();
    audit::produce(broker, &rig.tasks(), &[(Some(b"k"), Some(b"not a task"))]);
    prometheus.wait_for_alert("LastcallDeadLetters");
    assert_eq!(prometheus.ask("lastcall_dead_letters{reason=\"not-a-task\"}"), [1.0]);
    assert_eq!(prometheus.ask("lastcall_tasks_dead_lettered_total{reason=\"not-a-task\"}"), [1.0]);

    // The drain timeout passes, and no other worker is there.
    let task = gateway.submit("too long", Duration::from_secs(100));
    gateway_runs(&admin, &task);
    worker.ends_at(Signal::SIGTERM, 3);
    let stops = "lastcall_worker_stops_total{outcome=\"abandoned\",signal=\"SIGTERM\"}";
    eventually(SOON, "the stop is counted", || prometheus.ask(stops) == [1.0]);
    let began = Instant::now();
    for alert in ["LastcallTasksAbandoned", "LastcallNoWorker", "LastcallQueueStuck"] {
        prometheus.wait_for_alert(alert);
    }
    assert!(began.elapsed() < Duration::from_secs(120));
    assert!(prometheus.ask("lastcall_tasks_oldest_pending_age_seconds").iter().all(|age| *age > 0.0));
}

/// Waits until a worker runs the task.
fn gateway_runs(admin: &str, task: &str) {
    eventually_some(SOON, "the task runs", || {
        let fleet: Value = serde_json::from_str(&get(admin, "/workers/status")).expect("JSON");
        (fleet["workers"]["w"]["current_task"] == task).then_some(())
    });
}

/// The rules for `promtool`, with the times that they have.
#[test]
fn alert_rules_pass_their_own_tests() {
    if !has_program(Command::new("promtool").arg("--version"), "REQUIRE_PROMETHEUS") {
        return;
    }
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("deploy/prometheus");
    for arguments in [["check", "config", "prometheus.yaml"], ["test", "rules", "alerts-test.yaml"]] {
        let output = Command::new("promtool").args(arguments).current_dir(&folder).output().expect("promtool runs");
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stdout));
    }
}

/// Each metric that the rules and the dashboard name is there.
#[test]
fn rules_and_dashboard_name_only_metrics_of_the_page() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let read = |path: &str| fs::read_to_string(root.join(path)).expect(path);
    let page = read("docs/metrics.md");
    let dashboard = read("deploy/prometheus/dashboard.json");
    let panels: Value = serde_json::from_str(&dashboard).expect("JSON");
    assert!(panels["panels"].as_array().is_some_and(|panels| panels.len() > 10));
    let mut found = 0;
    for text in [read("deploy/prometheus/alerts.yaml"), dashboard] {
        let names = text.split(|it: char| !it.is_ascii_alphanumeric() && it != '_');
        for name in names.filter(|name| name.starts_with("lastcall_")) {
            let base = ["_total", "_bucket"].iter().find_map(|suffix| name.strip_suffix(suffix)).unwrap_or(name);
            assert!(page.contains(&format!("| `{base}` |")), "{name} is no metric");
            found += 1;
        }
    }
    assert!(found > 20);
}
