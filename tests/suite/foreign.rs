//! kcat (librdkafka) as a client of the broker. Without kcat the tests pass without running, unless `REQUIRE_KCAT=1`.

use std::{
    collections::BTreeMap,
    io::Write,
    process::{Command, Stdio},
};

use crate::support::{Rig, admin, audit};

/// Runs kcat with this standard input and returns its output; `None` if kcat is missing and not required.
fn kcat(broker: &str, arguments: &[&str], input: &str) -> Option<String> {
    let mut command = Command::new("kcat");
    command.args(["-b", broker]).args(arguments).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = match command.spawn() {
        Ok(child) => child,
        Err(error) if std::env::var_os("REQUIRE_KCAT").is_none() => {
            eprintln!("NOT RUN: kcat does not start ({error})");
            return None;
        }
        Err(error) => panic!("kcat does not start: {error}"),
    };
    child.stdin.take().expect("a pipe").write_all(input.as_bytes()).expect("kcat reads");
    let output = child.wait_with_output().expect("kcat ends");
    let (out, err) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success(), "kcat {arguments:?}: {out}{err}");
    Some(out.into_owned())
}

#[test]
fn kcat_produces_and_consumes() {
    let rig = Rig::shared("foreign-kcat");
    let broker = rig.broker().address();
    let topic = rig.tasks();
    admin::create_topic(broker, &topic, 2, &[]);
    let Some(metadata) = kcat(broker, &["-L", "-t", &topic], "") else { return };
    assert!(metadata.contains(&format!("topic \"{topic}\" with 2 partitions")), "{metadata}");

    let lines: BTreeMap<String, String> =
        (0..1000).map(|number| (format!("key-{number}"), format!("value of {number}"))).collect();
    let input: String = lines.iter().map(|(key, value)| format!("{key}:{value}\n")).collect();
    // With idempotence the broker checks sequence numbers.
    let produce = ["-P", "-t", &topic, "-K", ":", "-X", "enable.idempotence=true"];
    kcat(broker, &produce, &input).expect("kcat is there");
    let written = audit::read(broker, &topic);
    assert_eq!(written.len(), 1000);
    assert!(written.iter().all(|record| lines[&record.key()].as_bytes() == record.value));

    let consume = ["-C", "-t", &topic, "-o", "beginning", "-e", "-q", "-f", "%k:%s:%p:%o\n"];
    let read = kcat(broker, &consume, "").expect("kcat is there");
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
        let told = kcat(broker, &["-Q", "-t", &asked], "").expect("kcat is there");
        let line = format!("{topic} [{partition}] offset {}", ends[&partition]);
        assert!(told.contains(&line), "{line} is not in {told}");
    }
}

#[test]
fn kcat_gets_the_error_of_a_missing_topic() {
    let rig = Rig::shared("foreign-none");
    let topic = rig.tasks();
    let arguments = ["-L", "-t", topic.as_str(), "-X", "allow.auto.create.topics=false"];
    let Some(metadata) = kcat(rig.broker().address(), &arguments, "") else { return };
    assert!(metadata.contains("Unknown topic or partition"), "{metadata}");
}
