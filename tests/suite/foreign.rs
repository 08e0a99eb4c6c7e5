//! kcat (librdkafka) as a client of the broker: see [`has_program`].

use std::{
    collections::BTreeMap,
    io::Write,
    process::{Command, Stdio},
};

use crate::support::{Rig, admin, audit, has_program};

/// True if there is kcat; else the test says that it is not run.
fn has_kcat() -> bool {
    has_program(Command::new("kcat").arg("-V"), "REQUIRE_KCAT")
}

/// Runs kcat with this standard input and returns its output.
fn kcat(broker: &str, arguments: &[&str], input: &str) -> String {
    let mut command = Command::new("kcat");
    command.args(["-b", broker]).args(arguments).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().expect("kcat starts");
    child.stdin.take().expect("a pipe").write_all(input.as_bytes()).expect("kcat reads");
    let output = child.wait_with_output().expect("kcat ends");
    let (out, err) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success(), "kcat {arguments:?}: {out}{err}");
    out.into_owned()
}

#[test]
fn kcat_produces_and_consumes() {
    if !has_kcat() {
        return;
    }
    let rig = Rig::shared("foreign-kcat");
    let broker = rig.broker().address();
    let topic = rig.tasks();
    admin::create_topic(broker, &topic, 2, &[]);
    let metadata = kcat(broker, &["-L", "-t", &topic], "");
    assert!(metadata.contains(&format!("topic \"{topic}\" with 2 partitions")), "{metadata}");

    let lines: BTreeMap<String, String> =
        (0..1000).map(|number| (format!("key-{number}"), format!("value of {number}"))).collect();
    let input: String = lines.iter().map(|(key, value)| format!("{key}:{value}\n")).collect();
    // With idempotence the broker checks sequence numbers.
    let produce = ["-P", "-t", &topic, "-K", ":", "-X", "enable.idempotence=true"];
    kcat(broker, &produce, &input);
    let written = audit::read(broker, &topic);
    assert_eq!(written.len(), 1000);
    assert!(written.iter().all(|record| lines[&record.key()].as_bytes() == record.value));

    let consume = ["-C", "-t", &topic, "-o", "beginning", "-e", "-q", "-f", "%k:%s:%p:%o\n"];
    let read = kcat(broker, &consume, "");
    let places: BTreeMap<(i32, i64), (&str, &str)> = read
        .lines()
        .map(|line| {
            let parts: Vec<&str> = line.split(':').collect();
            ((parts[2].parse().expect("a partition"), parts[3].parse().expect("an offset")), (parts[0], parts[1]))
        })
        .collect();
    assert_eq!(places.len(), 1000);
    for record in &written {
        let (key, value) = places[&(record.partition, record.offset)];
        assert_eq!((record.key().as_str(), &record.value[..]), (key, value.as_bytes()));
    }

    let ends = audit::end_offsets(broker, &topic);
    for partition in [0, 1] {
        let asked = format!("{topic}:{partition}:-1");
        let told = kcat(broker, &["-Q", "-t", &asked], "");
        let line = format!("{topic} [{partition}] offset {}", ends[&partition]);
        assert!(told.contains(&line), "{line} is not in {told}");
    }
}

#[test]
fn kcat_gets_the_error_of_a_missing_topic() {
    if !has_kcat() {
        return;
    }
    let rig = Rig::shared("foreign-none");
    let topic = rig.tasks();
    let arguments = ["-L", "-t", topic.as_str(), "-X", "allow.auto.create.topics=false"];
    let metadata = kcat(rig.broker().address(), &arguments, "");
    assert!(metadata.contains("Unknown topic or partition"), "{metadata}");
}
