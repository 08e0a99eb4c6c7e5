//! Tests of the options: command line and environment in, configuration or faults out.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::os::unix::ffi::OsStringExt;

use clap::CommandFactory;

use super::options::{GatewayOptions, WorkerOptions};
use super::parse::variables_of;
use super::*;
use program::exit::ExitCode;

mod effective;
mod security;

fn environment(variables: &[(&str, &str)]) -> Environment {
    let variables = variables.iter().map(|(name, value)| (name.into(), value.into())).collect();
    Environment { variables, host_name: "host-1".into() }
}

fn line(args: &[&str]) -> Vec<OsString> {
    std::iter::once("program").chain(args.iter().copied()).map(OsString::from).collect()
}

fn worker(args: &[&str], variables: &[(&str, &str)]) -> Result<Parsed<WorkerConfig>, ConfigError> {
    WorkerConfig::parse(line(args), &environment(variables))
}

fn gateway(args: &[&str], variables: &[(&str, &str)]) -> Result<Parsed<GatewayConfig>, ConfigError> {
    GatewayConfig::parse(line(args), &environment(variables))
}

fn running<C: std::fmt::Debug>(parsed: Result<Parsed<C>, ConfigError>) -> C {
    match parsed {
        Ok(Parsed::Run(config)) => config,
        other => panic!("expected a configuration, got {other:?}"),
    }
}

/// The configuration without its text for the log.
fn values_of_worker(args: &[&str], variables: &[(&str, &str)]) -> WorkerConfig {
    let mut config = running(worker(args, variables));
    config.common.effective = Effective::default();
    config
}

fn values_of_gateway(args: &[&str], variables: &[(&str, &str)]) -> GatewayConfig {
    let mut config = running(gateway(args, variables));
    config.common.effective = Effective::default();
    config
}

fn shown<C: std::fmt::Debug>(parsed: Result<Parsed<C>, ConfigError>) -> String {
    match parsed {
        Ok(Parsed::Show(text)) => text,
        other => panic!("expected a text, got {other:?}"),
    }
}

#[test]
fn configuration_without_options_is_the_default() {
    let named = WorkerConfig { worker_id: "host-1".to_owned(), ..WorkerConfig::default() };
    assert_eq!(values_of_worker(&[], &[]), named);
    assert_eq!(values_of_gateway(&[], &[]), GatewayConfig::default());
}

#[test]
fn worker_options_reach_their_fields() {
    let variables = [
        ("KAFKA_BOOTSTRAP_SERVERS", "kafka-1:19092,[::1]:9"),
        ("TASKS_TOPIC", "t"),
        ("RESULTS_TOPIC", "r"),
        ("TASKS_PARTITIONS", "3"),
        ("REPLICATION_FACTOR", "2"),
        ("WORKER_GROUP", "g"),
        ("RESULT_RETENTION", "1h"),
        ("ALLOW_WORK_MS", "1"),
        ("LOG_LEVEL", "debug"),
        ("LOG_FORMAT", "json"),
        ("WORKER_ID", "w"),
        ("WORKER_CONCURRENCY", "4"),
        ("DRAIN_TIMEOUT", "2s"),
        ("STOP_GRACE_PERIOD", "7s"),
        ("TASK_TIMEOUT", "1m"),
        ("HEARTBEAT_INTERVAL", "500ms"),
        ("MAX_DELIVERIES", "7"),
        ("METRICS_ADDR", "127.0.0.1:9091"),
        ("HEALTH_FILE", "/run/w"),
    ];
    let expected = WorkerConfig {
        common: Common {
            bootstrap: vec![BrokerAddress::new("kafka-1", 19092), BrokerAddress::new("::1", 9)],
            tasks_topic: "t".to_owned(),
            results_topic: "r".to_owned(),
            tasks_partitions: 3,
            replication_factor: Some(2),
            worker_group: "g".to_owned(),
            result_retention: Duration::from_hours(1),
            allow_work_ms: true,
            log_level: LevelFilter::Debug,
            log_format: LogFormat::Json,
            security: Security::default(),
            effective: Effective::default(),
        },
        worker_id: "w".to_owned(),
        concurrency: 4,
        drain_timeout: Duration::from_secs(2),
        stop_grace_period: Duration::from_secs(7),
        task_timeout: Duration::from_mins(1),
        heartbeat_interval: Duration::from_millis(500),
        max_deliveries: 7,
        metrics_addr: Some("127.0.0.1:9091".parse().expect("an address")),
        health_file: Some("/run/w".into()),
        healthcheck: None,
    };
    assert_eq!(values_of_worker(&[], &variables), expected);
    let flags = variables.map(|(name, value)| format!("--{}={value}", name.to_lowercase().replace('_', "-")));
    assert_eq!(values_of_worker(&flags.each_ref().map(String::as_str), &[]), expected);
}

#[test]
fn gateway_options_reach_their_fields() {
    let expected = GatewayConfig {
        common: Common::default(),
        http_addr: "[::]:80".parse().expect("an address"),
        admin_addr: Some("127.0.0.1:81".parse().expect("an address")),
        answer_timeout: Duration::from_secs(1),
        stop_grace_period: Duration::from_secs(10),
        missing_after: Duration::from_secs(90),
        worker_timeout: Duration::from_secs(2),
        max_waiting: 8,
        max_pending: 9,
        max_keys: 10,
        max_results: 12,
        ready_without_kafka: Duration::from_secs(11),
        healthcheck: None,
    };
    let variables = [
        ("HTTP_ADDR", "[::]:80"),
        ("ADMIN_ADDR", "127.0.0.1:81"),
        ("ANSWER_TIMEOUT", "1s"),
        ("STOP_GRACE_PERIOD", "10s"),
        ("MISSING_AFTER", "90s"),
        ("WORKER_TIMEOUT", "2s"),
        ("MAX_WAITING", "8"),
        ("MAX_PENDING", "9"),
        ("MAX_KEYS", "10"),
        ("MAX_RESULTS", "12"),
        ("READY_WITHOUT_KAFKA", "11s"),
    ];
    assert_eq!(values_of_gateway(&[], &variables), expected);
}

#[test]
fn flag_overrides_its_variable_and_last_flag_overrides_the_first() {
    let config = running(worker(&["--worker-id", "flag"], &[("WORKER_ID", "variable")]));
    assert_eq!(config.worker_id, "flag");
    assert_eq!(running(worker(&["--worker-id", "a", "--worker-id=b"], &[])).worker_id, "b");
}

#[test]
fn empty_variable_counts_as_unset() {
    let names: Vec<_> = variables_of(&WorkerOptions::command());
    let empty: Vec<_> = names.iter().map(|name| (name.as_str(), "")).collect();
    assert_eq!(running(worker(&[], &empty)), running(worker(&[], &[])));
}

#[test]
fn empty_flag_is_a_fault() {
    let faults = worker(&["--worker-id="], &[]).expect_err("an empty name").faults;
    assert_eq!(faults, ["WORKER_ID: value \"\" is not usable; expected 1 to 100 printable ASCII characters"]);
}

#[test]
fn switch_needs_no_value() {
    assert!(running(worker(&["--allow-work-ms", "--worker-id", "a"], &[])).common.allow_work_ms);
    assert!(!running(worker(&["--allow-work-ms", "0"], &[("ALLOW_WORK_MS", "1")])).common.allow_work_ms);
}

#[test]
fn wrong_value_is_one_line_with_the_expected_value() {
    for (name, value, rest) in [
        (
            "KAFKA_BOOTSTRAP_SERVERS",
            "kafka",
            "has the item \"kafka\": no port; expected host:port, for example 127.0.0.1:9092",
        ),
        ("TASKS_TOPIC", "a b", "is no topic name; expected 1 to 242 of a-z, A-Z, 0-9, \".\", \"_\" and \"-\""),
        (
            "RESULTS_TOPIC",
            "..",
            "is no topic name; expected 1 to 249 of a-z, A-Z, 0-9, \".\", \"_\" and \"-\", and neither \".\" nor \"..\"",
        ),
        (
            "TASKS_TOPIC",
            "__share_group_state",
            "begins like the topics of Kafka itself; expected a name without \"__\" in front",
        ),
        ("RESULTS_TOPIC", "tasks", "is the same as the topic tasks to Kafka; expected another name"),
        ("RESULTS_TOPIC", "tasks_dead", "is the same as the topic tasks.dead to Kafka; expected another name"),
        ("TASKS_PARTITIONS", "0", "is out of range; expected a whole number from 1 to 10000"),
        ("REPLICATION_FACTOR", "many", "is not a whole number; expected a whole number from 1 to 32767"),
        ("WORKER_GROUP", "группа", "is not usable; expected 1 to 249 printable ASCII characters"),
        ("MAX_DELIVERIES", "1", "is out of range; expected a whole number from 2 to 7"),
        ("MAX_DELIVERIES", "8", "is out of range; expected a whole number from 2 to 7"),
        (
            "KAFKA_SECURITY_PROTOCOL",
            "TLS",
            "is no security protocol; expected PLAINTEXT, SSL, SASL_PLAINTEXT or SASL_SSL",
        ),
        (
            "KAFKA_SASL_MECHANISM",
            "MD5",
            "is no SASL mechanism; expected PLAIN, SCRAM-SHA-256, SCRAM-SHA-512 or OAUTHBEARER",
        ),
        ("WORKER_ID", "a\nb", "is not usable; expected 1 to 100 printable ASCII characters"),
        ("WORKER_CONCURRENCY", "0", "is out of range; expected a whole number from 1 to 1024"),
        ("DRAIN_TIMEOUT", "30", "has no unit; expected a whole number with ms, s, m or h, for example 30s"),
        (
            "STOP_GRACE_PERIOD",
            "34s",
            "is too short: DRAIN_TIMEOUT 30s + 5s to leave = 35s; expected at least 35s, or a shorter DRAIN_TIMEOUT",
        ),
        ("TASK_TIMEOUT", "0s", "is out of range; expected 1ms to 168h"),
        ("RESULT_RETENTION", "1.5h", "is not a duration; expected a whole number with ms, s, m or h, for example 30s"),
        ("ALLOW_WORK_MS", "yes", "is no switch; expected 0 or 1"),
        ("HEARTBEAT_INTERVAL", "1ms", "is out of range; expected 10ms to 1m"),
        ("LOG_LEVEL", "loud", "is no level; expected off, error, warn, info, debug or trace"),
        ("LOG_FORMAT", "xml", "is no format; expected text or json"),
    ] {
        let faults = worker(&[], &[(name, value)]).expect_err(name).faults;
        assert_eq!(faults, [format!("{name}: value \"{}\" {rest}", value.escape_debug())]);
    }
}

#[test]
fn wrong_value_of_the_gateway_is_one_line() {
    for (name, value, rest) in [
        (
            "HTTP_ADDR",
            "localhost:8080",
            "is no address to listen on; expected an IP address with a port, for example 127.0.0.1:8080 or [::]:8080",
        ),
        ("ANSWER_TIMEOUT", "10", "has no unit; expected a whole number with ms, s, m or h, for example 30s"),
        ("MAX_WAITING", "0", "is out of range; expected a whole number from 1 to 100000"),
        ("MAX_PENDING", "-1", "is not a whole number; expected a whole number from 1 to 10000000"),
        ("MAX_RESULTS", "0", "is out of range; expected a whole number from 1 to 100000000"),
        ("MAX_KEYS", "many", "is not a whole number; expected a whole number from 1 to 10000000"),
        ("MISSING_AFTER", "999ms", "is out of range; expected 1s to 30m"),
        ("MISSING_AFTER", "31m", "is out of range; expected 1s to 30m"),
        ("WORKER_TIMEOUT", "5sec", "is not a duration; expected a whole number with ms, s, m or h, for example 30s"),
        (
            "STOP_GRACE_PERIOD",
            "9999ms",
            "is too short: the gateway answers callers until 6s before its end and needs 4s before that; expected at least 10s",
        ),
    ] {
        let faults = gateway(&[], &[(name, value)]).expect_err(name).faults;
        assert_eq!(faults, [format!("{name}: value \"{value}\" {rest}")]);
    }
}

#[test]
fn all_faults_are_reported_together() {
    let variables =
        [("DRAIN_TIMEOUT", "30"), ("WORKER_CONCURRENCY", "many"), ("TASKS_TOPIC", "a/b"), ("LOG_LEVEL", "x")];
    let error = worker(&["--max-deliveries", "99"], &variables).expect_err("five faults");
    let names: Vec<_> = error.faults.iter().filter_map(|fault| fault.split(':').next()).collect();
    assert_eq!(names, ["TASKS_TOPIC", "LOG_LEVEL", "WORKER_CONCURRENCY", "MAX_DELIVERIES", "DRAIN_TIMEOUT"]);
    assert_eq!(error.to_string().lines().count(), 5);
}

#[test]
fn unreadable_value_is_not_used_in_further_checks() {
    let faults = worker(&[], &[("DRAIN_TIMEOUT", "x"), ("STOP_GRACE_PERIOD", "1s")]).expect_err("one fault").faults;
    assert_eq!(faults.len(), 1, "{faults:?}");
}

#[test]
fn value_cannot_add_a_line() {
    let faults = worker(&["--worker-group", "a\nLOG_LEVEL: value"], &[]).expect_err("a line break").faults;
    assert!(faults.iter().all(|fault| fault.lines().count() == 1), "{faults:?}");
}

#[test]
fn a_variable_that_is_not_utf_8_is_a_fault() {
    let mut environment = environment(&[]);
    environment.variables.insert("WORKER_ID".into(), OsString::from_vec(vec![0xff]));
    let faults = WorkerConfig::parse(line(&[]), &environment).expect_err("not UTF-8").faults;
    assert_eq!(faults, ["WORKER_ID: value is not UTF-8; expected text"]);
}

#[test]
fn machine_without_a_usable_name_needs_a_worker_id() {
    let mut environment = environment(&[]);
    environment.host_name = OsString::new();
    let faults = WorkerConfig::parse(line(&[]), &environment).expect_err("no name").faults;
    assert!(faults[0].starts_with("WORKER_ID: value \"\" "), "{faults:?}");
    assert!(WorkerConfig::parse(line(&["--worker-id", "a"]), &environment).is_ok());
}

#[test]
fn options_of_the_other_program_are_unknown_flags_and_ignored_variables() {
    let faults = worker(&["--http-addr", "127.0.0.1:1"], &[]).expect_err("the gateway's").faults;
    assert_eq!(faults.len(), 1);
    assert!(faults[0].starts_with("unexpected argument '--http-addr' found"), "{faults:?}");
    assert!(worker(&[], &[("HTTP_ADDR", "nonsense")]).is_ok());
    assert!(gateway(&[], &[("WORKER_CONCURRENCY", "nonsense")]).is_ok());
}

#[test]
fn wrong_command_line_is_one_line_with_a_tip() {
    let faults = worker(&["--worker-idd", "a"], &[]).expect_err("a slip").faults;
    assert_eq!(
        faults,
        ["unexpected argument '--worker-idd' found; a similar argument exists: '--worker-id'; see --help"]
    );
    let faults = worker(&["--worker-id"], &[]).expect_err("no value").faults;
    assert_eq!(faults, ["a value is required for '--worker-id <NAME>' but none was supplied; see --help"]);
    let faults = worker(&["now"], &[]).expect_err("a word").faults;
    assert_eq!(faults, ["unexpected argument 'now' found; see --help"]);
}

#[test]
fn wrong_command_line_does_not_hide_an_earlier_fault() {
    let mut environment = environment(&[]);
    environment.variables.insert("WORKER_ID".into(), OsString::from_vec(vec![0xff]));
    let faults = WorkerConfig::parse(line(&["--nonsense"]), &environment).expect_err("two faults").faults;
    assert_eq!(faults.len(), 2, "{faults:?}");
}

#[test]
fn health_check_is_only_a_flag() {
    use crate::config::HealthCheck;
    assert_eq!(running(worker(&["--healthcheck"], &[])).healthcheck, Some(HealthCheck::Live));
    assert_eq!(running(worker(&["--healthcheck=ready"], &[])).healthcheck, Some(HealthCheck::Ready));
    assert_eq!(running(gateway(&["--healthcheck"], &[])).healthcheck, Some(HealthCheck::Ready));
    assert_eq!(running(gateway(&["--healthcheck=live"], &[])).healthcheck, Some(HealthCheck::Live));
    let path = HealthCheck::Path("/health".to_owned());
    assert_eq!(running(gateway(&["--healthcheck=/health"], &[])).healthcheck, Some(path));
    assert_eq!(running(worker(&[], &[("HEALTHCHECK", "live")])).healthcheck, None);
    let fault = worker(&["--healthcheck=well"], &[]).expect_err("no such check").to_string();
    assert_eq!(fault, "HEALTHCHECK: value \"well\" is no health check; expected live or ready");
    let fault = gateway(&["--healthcheck=/a b"], &[]).expect_err("no path").to_string();
    assert!(fault.ends_with("expected live or ready, or a path, for example /health"), "{fault}");
    assert!(worker(&["--healthcheck=/health"], &[]).is_err(), "a worker has no HTTP");
}

/// They do not run the program.
const ONLY_FLAGS: [&str; 4] = ["help", "version", "healthcheck", "check_config"];

#[test]
fn options_are_flags_and_variables_of_the_same_name() {
    for command in [WorkerOptions::command(), GatewayOptions::command()] {
        for arg in command.get_arguments().filter(|arg| !ONLY_FLAGS.contains(&arg.get_id().as_str())) {
            let flag = arg.get_long().expect("every option has a flag");
            let variable = arg.get_env().expect("every option has a variable").to_string_lossy();
            assert_eq!(variable, flag.to_uppercase().replace('-', "_"));
        }
    }
}

#[test]
fn help_lists_options_with_variable_default_and_meaning() {
    for (command, help) in [
        (WorkerOptions::command(), shown(worker(&["--help"], &[]))),
        (GatewayOptions::command(), shown(gateway(&["--help"], &[("KAFKA_SASL_USERNAME", "hunter1")]))),
    ] {
        for arg in command.get_arguments() {
            let flag = format!("--{}", arg.get_long().expect("every option has a flag"));
            assert!(help.contains(&flag), "{flag}");
        }
        for variable in variables_of(&command) {
            assert!(help.contains(&format!("[env: {variable}]")), "{variable}");
        }
        let options = command.get_arguments().filter(|arg| arg.get_env().is_some()).count();
        let optional = ["KAFKA_SASL", "KAFKA_SSL"].map(|prefix| help.matches(&format!("[env: {prefix}")).count());
        assert_eq!(help.matches("[default: ").count() + optional.iter().sum::<usize>(), options, "{help}");
        assert!(!help.contains("hunter"), "help never shows set values");
        assert!(help.contains("Example:"));
    }
}

#[test]
fn help_lists_the_exit_codes() {
    let help = shown(worker(&["--help"], &[]));
    // Only the drill finds a broken promise.
    for code in ExitCode::ALL.into_iter().filter(|code| *code != ExitCode::Broken) {
        assert!(help.contains(&format!("  {}  {}\n", code.number(), code.meaning())), "{code}");
    }
}

#[test]
fn help_is_shown_even_when_variables_are_wrong() {
    shown(worker(&["--help"], &[("DRAIN_TIMEOUT", "x")]));
}

#[test]
fn version_names_program_and_version() {
    assert_eq!(shown(worker(&["--version"], &[])), concat!("worker ", env!("CARGO_PKG_VERSION"), "\n"));
    assert_eq!(shown(gateway(&["-V"], &[])), concat!("gateway ", env!("CARGO_PKG_VERSION"), "\n"));
}

/// The table by the code: programs and default of each variable. Other defaults are in the help, in brackets.
fn options_of_code() -> BTreeMap<String, (String, String)> {
    let mut found = BTreeMap::<String, Vec<(&str, String)>>::new();
    for (program, command) in [("gateway", GatewayOptions::command()), ("worker", WorkerOptions::command())] {
        for arg in command.get_arguments() {
            let Some(variable) = arg.get_env() else { continue };
            let help = arg.get_help().map(ToString::to_string).unwrap_or_default();
            let told = help.split_once("[default: ").and_then(|(_, rest)| rest.strip_suffix(']'));
            let values = arg.get_default_values().first();
            let value = values.map(|value| format!("`{}`", value.to_string_lossy()));
            let default = value.or(told.map(str::to_owned)).unwrap_or_default();
            found.entry(variable.to_string_lossy().into_owned()).or_default().push((program, default));
        }
    }
    let row = |programs: Vec<(&str, String)>| match programs.as_slice() {
        [(program, default)] => ((*program).to_owned(), default.clone()),
        [(_, first), (_, second)] if first == second => ("both".to_owned(), first.clone()),
        many => {
            let each: Vec<_> = many.iter().map(|(program, default)| format!("{default} {program}")).collect();
            ("both".to_owned(), each.join(", "))
        }
    };
    found.into_iter().map(|(name, programs)| (name, row(programs))).collect()
}

/// The table of docs/options.md: `| variable | for | default | meaning |`.
fn options_of_page() -> BTreeMap<String, (String, String)> {
    let page = include_str!("../../docs/options.md");
    let rows = page.lines().filter_map(|line| {
        let cells: Vec<_> = line.strip_prefix("| `")?.split('|').map(str::trim).collect();
        let (&[name, programs, default, meaning, ""], true) = (cells.as_slice(), line.ends_with('|')) else {
            return None;
        };
        assert!(!meaning.is_empty(), "{name} has no meaning");
        let name =
            name.strip_suffix('`').filter(|name| name.bytes().all(|byte| byte.is_ascii_uppercase() || byte == b'_'))?;
        Some((name.to_owned(), (programs.to_owned(), default.to_owned())))
    });
    rows.collect()
}

#[test]
fn options_page_has_each_option_with_its_programs_and_default() {
    assert_eq!(options_of_page(), options_of_code());
}
