//! The rights as documents and files in `deploy/rights` name them.

use std::{collections::BTreeSet, fs::Permissions, os::unix::fs::PermissionsExt, path::Path, process::Command};

use yaml_rust2::{Yaml, YamlLoader};

use super::*;

/// The kind and the name by default.
fn default_name(on: On) -> (&'static str, &'static str) {
    match on {
        On::Tasks => ("topic", "tasks"),
        On::Results => ("topic", "results"),
        On::Dead => ("topic", "tasks.dead"),
        On::Starts => ("topic", "tasks.starts"),
        On::Group => ("group", "workers"),
    }
}

/// The rights of a program by the names of the default topics and group.
fn documented(who: Who) -> BTreeSet<(String, String)> {
    let of_program = Right::needed().filter(|right| right.who == who);
    let named = |right: Right| {
        let (kind, name) = default_name(right.on);
        (format!("{kind} {name}"), format!("{:?}", right.operation))
    };
    of_program.map(named).collect()
}

/// What the gateway needs to create the topics and to set the group.
fn preparing() -> BTreeSet<(String, String)> {
    let topics = ["topic tasks", "topic results", "topic tasks.dead", "topic tasks.starts"].into_iter();
    let all = topics.flat_map(|name| ["Create", "Describe", "AlterConfigs"].map(|it| (name, it)));
    all.chain([("group workers", "AlterConfigs")]).map(|(name, it)| (name.to_owned(), it.to_owned())).collect()
}

#[test]
fn documents_name_the_rights_that_the_programs_need() {
    let text = include_str!("../../../docs/kafka.md");
    for on in [On::Tasks, On::Results, On::Dead, On::Starts, On::Group] {
        let of = |who| {
            let rights = Right::needed().filter(|right| right.who == who && right.on == on);
            let rights: Vec<_> = rights.map(|right| format!("{:?}", right.operation)).collect();
            if rights.is_empty() { "none".to_owned() } else { rights.join(", ") }
        };
        let name = default_name(on);
        let row = format!("| {} `{}` | {} | {} | {} |", name.0, name.1, of(ToGateway), of(ToWorker), of(ToOperator));
        assert!(text.contains(&row), "{row}");
    }
}

#[test]
fn users_for_strimzi_have_the_rights_that_the_programs_need() {
    let text = include_str!("../../../deploy/rights/strimzi.yaml");
    let users = YamlLoader::load_from_str(text).expect("YAML");
    assert_eq!(users.len(), 3);
    for (user, who) in users.iter().zip([ToGateway, ToWorker, ToOperator]) {
        let word = |value: &Yaml| value.as_str().expect("a text").to_owned();
        let mut found = BTreeSet::new();
        for acl in user["spec"]["authorization"]["acls"].as_vec().expect("ACLs") {
            let name = format!("{} {}", word(&acl["resource"]["type"]), word(&acl["resource"]["name"]));
            let operations = acl["operations"].as_vec().expect("operations");
            found.extend(operations.iter().map(|operation| (name.clone(), word(operation))));
        }
        let expected: BTreeSet<_> = match who {
            ToGateway => documented(who).union(&preparing()).cloned().collect(),
            ToWorker | ToOperator => documented(who),
        };
        assert_eq!(found, expected, "{who:?}");
    }
}

/// Only on Apache Kafka: the embedded broker has no ACLs.
#[test]
fn script_grants_what_a_fleet_needs_to_prepare_an_empty_kafka() {
    if !broker::is_apache() {
        return;
    }
    let scene = Scene::new("rights-script");
    let tool = new_folder("rights").join("kafka-acls.sh");
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let text = format!("#!/usr/bin/env bash\nexec '{}' run acls \"$@\"\n", root.join("scripts/kafka").display());
    std::fs::write(&tool, text).expect("written");
    std::fs::set_permissions(&tool, Permissions::from_mode(0o755)).expect("a program");
    let address = scene.rig.broker().address();
    let mut script = Command::new("bash");
    script.arg(root.join("deploy/rights/kafka-acls")).env("KAFKA_ACLS", &tool);
    let principals = ["User:gateway", "User:worker", "User:operator"];
    script.arg("--prepare").args(principals).args(["--bootstrap-server", address]);
    let output = script.output().expect("bash runs");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let gateway: BTreeSet<_> = documented(ToGateway).union(&preparing()).cloned().collect();
    assert_eq!((acls(&scene.rig, ToGateway), acls(&scene.rig, ToWorker)), (gateway, documented(ToWorker)));
    assert_eq!(acls(&scene.rig, ToOperator), documented(ToOperator));
    let default = |launch: Launch| {
        launch.env("TASKS_TOPIC", "tasks").env("RESULTS_TOPIC", "results").env("WORKER_GROUP", "workers")
    };
    let gateway = Gateway::start(default(scene.by(ToGateway, scene.rig.gateway())));
    let worker = started(&default(scene.worker(&scene.rig, "w")));
    assert_eq!(gateway.analyze("all is well").status, 200);
    for program in [&gateway.program, &worker] {
        let warned = program.lines_with("WARN");
        assert!(warned.is_empty(), "{warned:?}");
    }
}
