//! Tests of what the programs show of their configuration: the line in the log, and `--check-config`.

use std::path::PathBuf;

use super::*;

/// A readable file for the options that name one.
const HERE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/Cargo.toml");

fn line_of_worker(variables: &[(&str, &str)]) -> String {
    running(worker(&[], variables)).common.effective.to_string()
}

/// The table of the parser is the source, so a new option is in the line by itself.
#[test]
fn line_has_every_option_that_has_a_default() {
    let parsed = [running(worker(&[], &[])).common.effective, running(gateway(&[], &[])).common.effective];
    for (command, effective) in [WorkerOptions::command(), GatewayOptions::command()].iter().zip(parsed) {
        let mut count = 0;
        for arg in command.get_arguments() {
            let (Some(variable), Some(default)) = (arg.get_env(), arg.get_default_values().first()) else { continue };
            let (variable, default) = (variable.to_string_lossy(), default.to_string_lossy());
            assert_eq!(effective.get(&variable), Some(&*default), "{variable}");
            assert!(effective.to_string().contains(&format!("{variable}={default}")), "{effective}");
            count += 1;
        }
        assert!(count > 15, "{count} options of {}", command.get_name());
    }
}

/// A new option about a secret has to be marked by `hide_env_values`.
#[test]
fn options_about_secrets_are_marked() {
    for command in [WorkerOptions::command(), GatewayOptions::command()] {
        for arg in command.get_arguments() {
            let Some(variable) = arg.get_env().map(|name| name.to_string_lossy()) else { continue };
            let is_secret =
                ["USERNAME", "PASSWORD", "TOKEN", "SECRET", "KEY_FILE"].iter().any(|it| variable.contains(it));
            assert_eq!(arg.is_hide_env_values_set(), is_secret, "{variable}");
        }
    }
}

#[test]
fn values_of_secrets_are_hidden() {
    let (protocol, command) = (("KAFKA_SECURITY_PROTOCOL", "SASL_PLAINTEXT"), "echo hunter2");
    let password =
        [("KAFKA_SASL_MECHANISM", "PLAIN"), ("KAFKA_SASL_USERNAME", "hunter1"), ("KAFKA_SASL_PASSWORD_FILE", HERE)];
    let token = [("KAFKA_SASL_MECHANISM", "OAUTHBEARER"), ("KAFKA_SASL_TOKEN_COMMAND", command)];
    for options in [&password[..], &token] {
        let line = line_of_worker(&[&[protocol], options].concat());
        for (name, value) in &options[1..] {
            assert!(line.contains(&format!("{name}=[hidden]")) && !line.contains(value), "{line}");
        }
    }
}

#[test]
fn value_with_spaces_is_quoted_and_cannot_add_a_pair() {
    let line = line_of_worker(&[("WORKER_ID", "a LOG_LEVEL=\"off\" b")]);
    assert!(line.contains(r#"WORKER_ID="a LOG_LEVEL=\"off\" b""#), "{line}");
}

#[test]
fn line_has_defaults_the_host_name_and_no_option_without_a_value() {
    let line = line_of_worker(&[("LOG_LEVEL", "debug")]);
    assert!(line.starts_with("KAFKA_BOOTSTRAP_SERVERS=127.0.0.1:9092 TASKS_TOPIC=tasks "), "{line}");
    for pair in ["LOG_LEVEL=debug", "DRAIN_TIMEOUT=30s", "WORKER_ID=host-1"] {
        assert!(line.split(' ').any(|it| it == pair), "{pair} in {line}");
    }
    for name in ["REPLICATION_FACTOR", "HEALTH_FILE", "KAFKA_SASL", "KAFKA_SSL", "CHECK", "HTTP_ADDR"] {
        assert!(!line.contains(name), "{name} in {line}");
    }
}

#[test]
fn flag_overrides_its_variable_in_the_line() {
    let config = running(worker(&["--worker-id", "flag"], &[("WORKER_ID", "variable")]));
    assert_eq!(config.common.effective.get("WORKER_ID"), Some("flag"));
}

/// Variables that look like an option are neither read nor reported.
#[test]
fn variable_that_is_in_no_table_is_ignored() {
    let similar =
        [("WORKER_IDD", "a"), ("LASTCALL_WORKER_ID", "b"), ("DRAINTIMEOUT", "nonsense"), ("CHECK_CONFIG", "1")];
    assert_eq!(values_of_worker(&[], &similar), values_of_worker(&[], &[]));
}

#[test]
fn check_shows_a_valid_configuration_one_option_a_line() {
    let text = shown(worker(&["--check-config"], &[("DRAIN_TIMEOUT", "20s")]));
    let mut lines = text.lines();
    assert_eq!(lines.next(), Some("the configuration is valid"));
    assert_eq!(lines.next(), Some("KAFKA_BOOTSTRAP_SERVERS=127.0.0.1:9092"));
    assert!(lines.any(|line| line == "DRAIN_TIMEOUT=20s"), "{text}");
    assert!(shown(gateway(&["--check-config"], &[])).contains("\nHTTP_ADDR=127.0.0.1:8080\n"));
}

/// An empty folder of this test.
fn folder() -> PathBuf {
    let folder = std::env::temp_dir().join(format!("lastcall-check-{}", uuid::Uuid::new_v4()));
    std::fs::create_dir(&folder).expect("a new folder");
    folder
}

#[test]
fn check_reports_all_faults_also_those_of_files() {
    let variables = [
        ("DRAIN_TIMEOUT", "30"),
        ("KAFKA_SECURITY_PROTOCOL", "SSL"),
        ("KAFKA_SSL_CA_FILE", HERE),
        ("KAFKA_SSL_CERTIFICATE_FILE", HERE),
        ("KAFKA_SSL_KEY_FILE", HERE),
        ("HEALTH_FILE", "/nowhere/health"),
    ];
    let faults = worker(&["--check-config"], &variables).expect_err("five faults").faults;
    for begin in [
        "DRAIN_TIMEOUT: value \"30\" has no unit",
        "HEALTH_FILE: value \"/nowhere/health\" cannot be written (No such",
        &format!("KAFKA_SSL_CA_FILE: value \"{HERE}\" has no certificate"),
        &format!("KAFKA_SSL_CERTIFICATE_FILE: value \"{HERE}\" has no certificate"),
        "KAFKA_SSL_KEY_FILE: value [hidden] has no key",
    ] {
        assert_eq!(faults.iter().filter(|fault| fault.starts_with(begin)).count(), 1, "{begin}: {faults:?}");
    }
    assert_eq!(faults.len(), 5, "{faults:?}");
    let faults = worker(&["--check-config"], &[("HEALTH_FILE", env!("CARGO_MANIFEST_DIR"))]).expect_err("a folder");
    assert!(faults.faults[0].contains("cannot be written (is a directory)"), "{faults}");
}

#[test]
fn check_leaves_the_health_file_of_a_running_worker_alone() {
    let folder = folder();
    let file = folder.join("health");
    std::fs::write(&file, "running\n").expect("a new file");
    shown(worker(&["--check-config"], &[("HEALTH_FILE", &file.to_string_lossy())]));
    assert_eq!(std::fs::read_to_string(&file).expect("it is there"), "running\n");
    std::fs::remove_file(&file).expect("ours");
    std::fs::remove_dir(&folder).expect("no other file is left");
}
