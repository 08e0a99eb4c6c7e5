//! The sweep: scenarios that must hold, and twins that the search must catch.
//!
//! Every search is exhaustive. The scenarios are split into tests of similar duration, which run in parallel.
//! `long.txt` has the scenarios that take too long for a test.

use model::{Fault, Report, Scenario, Search, Twin};

/// Number of rules in the README.
const RULES: u8 = 24;

const STOPS_AND_OUTAGES: &[&str] = &[
    "none 1 3 --sym",
    "ro 1 2 --sym",
    "term 1 3 --sym",
    "term+term 1 2 --sym",
    "term+ro 1 2 --sym",
    "quiet 1 3 --sym",
    "quiet+quiet 1 2 --sym --produce",
    "coord+quiet 1 2 --sym",
    "quiet+term 1 2 --sym --produce",
    "quiet+kill 1 2 --sym",
    "visit 1 2 --produce",
    "visit+term 2 2 --same-leader --alone",
    "visit+kill 2 2 --same-leader --conc 2",
    "coord 1 2 --sym --conc 2 --produce",
    "coord+coord 1 2 --sym",
    "coord+term 1 2 --sym",
    "coord+pfail 1 2 --sym",
    "kill 1 3 --sym",
    "kill+term 1 2 --sym",
    "kill+login 1 1 --sym --produce --calm",
    "kill+login 1 2 --sym --calm",
];

const REPLACED_AND_LOST_CONNECTIONS: &[&str] = &[
    "login 1 2 --sym --produce",
    "login 1 2 --sym --produce --calm",
    "login 1 2 --sym --conc 2",
    "term+login 1 2 --sym --produce",
    "quiet+login 1 2 --sym",
    "visit+login 1 2",
    "rst 1 2 --sym",
    "rst+term 1 1 --sym",
    "cut 2 2 --alone --slots 2",
];

const SILENT_CONNECTIONS: &[&str] = &[
    "hole 1 2 --sym --produce",
    "hole 1 2 --sym --once",
    "hole 1 3 --sym --deaf",
    "hole+term 1 1 --sym --produce --strict",
    "hole+coord 1 1 --sym --once",
    "cut 1 1",
];

const LEADERS: &[&str] = &[
    "move 2 2 --alone --once",
    "move+move 2 2 --alone",
    "move+move+move 1 1 --alone --slots 2",
    "move+term 1 1 --sym",
    "move+coord 1 1 --sym",
    "move+coord 1 2 --alone --once --slots 2",
    "move+kill 1 1 --sym",
    "quiet+move 1 2 --alone",
    "quiet+move 1 1 --sym",
];

const BROKERS: &[&str] = &[
    "crash 1 1 --sym",
    "crash 2 2 --alone --once",
    "crash+coord 1 1 --alone --once",
    "quiet+crash 1 1 --alone",
    "crash+term 1 1 --alone --slots 2",
    "freeze 1 1 --alone",
    "freeze 1 1 --sym --rf1 --slots 2",
    "freeze 2 2 --alone --slots 2",
    "freeze 2 2 --alone --slots 2 --noback",
];

/// Twins, and the properties that each breaks first.
const TWINS: &[(&str, &[&str])] = &[
    ("none 1 1 --rules accept_early", &["I2"]),
    ("coord+pfail 1 2 --sym --rules lost_121", &["record hidden"]),
    ("move+coord 1 1 --alone --once --slots 2 --rules lost_121", &["I3"]),
    ("login 1 2 --sym --rules close_first", &["I3"]),
    ("visit 1 2 --rules forget_ready", &["record hidden"]),
    ("visit+kill 2 2 --same-leader --conc 2 --rules forget_held", &["killed worker hides"]),
    ("move 2 2 --alone --rules global_recovery", &["I1", "I4"]),
    ("crash 2 2 --alone --rules drop_ready", &["I1", "I4"]),
    ("login 1 2 --sym --produce --rules no_read_old", &["record hidden"]),
    ("coord 1 2 --sym --rules no_takeover", &["lock ran out"]),
    ("hole 1 2 --sym --deaf --rules no_takeover", &["I4"]),
    ("hole 1 2 --sym --once --rules no_takeover", &["I3"]),
    ("hole 1 3 --sym --deaf --rules wait_old_forever", &["I1"]),
    ("hole 1 2 --sym --deaf --rules no_probe", &["I1"]),
    ("coord 1 2 --sym --rules start_unlocked", &["a record starts"]),
    ("coord 1 2 --sym --rules start_unlocked+rel_on_fetch", &["a record starts"]),
    ("term+login 1 2 --sym --produce --rules drain_close_early", &["I6"]),
    ("login 1 2 --sym --produce --rules redelivery_ignored", &["record hidden"]),
    ("coord+login 1 2 --sym --rules stale_codes", &["record hidden"]),
    ("coord+pfail 1 2 --sym --rules codes_at_reading", &["record hidden"]),
    ("coord+pfail 1 2 --sym --rules transient_lost", &["record hidden"]),
    ("move+move 1 1 --sym --slots 2 --rules epoch_void", &["record hidden"]),
    ("move+move 1 1 --sym --slots 2 --rules stale_delivery", &["record hidden"]),
    ("cut 1 1 --rules close_unanswered_open", &["I3"]),
    ("cut 1 1 --rules stolen_close", &["I3"]),
    ("visit+term 2 2 --same-leader --alone --rules drain_relies_on_close", &["lock ran out"]),
    ("quiet 1 1 --alone --rules quiet_starts", &["a quiet worker"]),
    ("quiet 1 1 --alone --rules quiet_keeps_ready", &["quiet worker holds"]),
    ("quiet 1 1 --alone --rules quiet_silent", &["lock ran out"]),
    ("freeze 2 2 --alone --slots 2 --noback --rules no_meta_watch", &["I1", "I4"]),
    ("freeze 2 2 --alone --slots 2 --noback --rules serial", &["I1", "I4"]),
    ("move 1 1 --alone --once --rules forget_done", &["I3"]),
    ("move 1 2 --alone --once --rules start_from_old_leader", &["a record starts"]),
];

/// Twins that break nothing by themselves, each in a scenario meant for it. If a change makes one break a property, it
/// has used up slack of the protocol.
const HARMLESS_TWINS: &[&str] = &[
    "coord 1 2 --sym --rules late_takeover",
    "coord 1 2 --sym --rules rel_on_fetch",
    "coord 1 2 --sym --conc 2 --produce --rules acks_during_hang",
];

/// Known and accepted limits of the protocol, and one that shows why rule 7 needs three connections.
const KNOWN_LIMITS: &[(&str, &[&str])] = &[
    ("kill+login 1 1 --sym --produce", &["killed worker hides"]),
    ("move+move 1 1 --alone --once", &["I3"]),
    ("coord 1 3 --alone --conc 2 --slots 2 --produce", &["lock ran out"]),
];

fn search(line: &str) -> Report {
    let scenario: Scenario = line.parse().unwrap_or_else(|error| panic!("{line}: {error}"));
    Search::run(&scenario).1
}

fn assert_unbroken(lines: &[&str]) {
    for line in lines {
        let report = search(line);
        assert_eq!(report.findings(), [], "{line}; cargo run -p model --release -- {line}");
        assert!(report.complete, "{line}: more states than the search may visit");
    }
}

fn assert_broken(lines: &[(&str, &[&str])]) {
    for (line, expected) in lines {
        let found = search(line).findings();
        for property in *expected {
            assert!(found.iter().any(|(text, _)| text.starts_with(property)), "{line}: {property} in {found:?}");
        }
        assert!(
            found.iter().all(|(text, _)| expected.iter().any(|property| text.starts_with(property))),
            "{line}: nothing but {expected:?} in {found:?}"
        );
    }
}

#[test]
fn stops_and_outages_break_nothing() {
    assert_unbroken(STOPS_AND_OUTAGES);
}

#[test]
fn replaced_and_lost_connections_break_nothing() {
    assert_unbroken(REPLACED_AND_LOST_CONNECTIONS);
}

#[test]
fn silent_connections_break_nothing() {
    assert_unbroken(SILENT_CONNECTIONS);
}

#[test]
fn leader_moves_break_nothing() {
    assert_unbroken(LEADERS);
}

#[test]
fn crashed_and_frozen_brokers_break_nothing() {
    assert_unbroken(BROKERS);
}

#[test]
fn broken_twins_are_caught() {
    assert_broken(TWINS);
}

#[test]
fn harmless_twins_break_nothing() {
    assert_unbroken(HARMLESS_TWINS);
}

#[test]
fn known_limits_still_exist() {
    assert_broken(KNOWN_LIMITS);
}

#[test]
fn scenario_with_unknown_words_is_refused() {
    for line in ["", "flood", "none 3", "none 1 4", "none 1 1 1", "none --rules honest", "none --slots", "none --fast"]
    {
        assert!(line.parse::<Scenario>().is_err(), "'{line}'");
    }
}

#[test]
fn readme_has_every_rule_and_every_fault() {
    let readme = include_str!("../README.md");
    for rule in 1..=RULES {
        assert!(readme.contains(&format!("\n{rule}. ")), "rule {rule}");
    }
    for fault in Fault::ALL {
        assert!(readme.contains(&format!("`{}`", fault.name())), "{fault:?}");
    }
    let rules = Twin::ALL.iter().flat_map(|twin| twin.rules());
    assert!(rules.copied().all(|rule| (1..=RULES).contains(&rule)));
}

#[test]
fn sweep_has_every_fault_and_every_twin() {
    let scenarios = [STOPS_AND_OUTAGES, REPLACED_AND_LOST_CONNECTIONS, SILENT_CONNECTIONS, LEADERS, BROKERS].concat();
    let faults: Vec<&str> =
        scenarios.iter().flat_map(|line| line.split(' ').next()).flat_map(|it| it.split('+')).collect();
    for fault in Fault::ALL {
        assert!(faults.contains(&fault.name()), "{fault:?} is in no scenario");
    }
    let twins = TWINS.iter().map(|(line, _)| *line).chain(HARMLESS_TWINS.iter().copied());
    let twins: Vec<&str> = twins.flat_map(|line| line.rsplit(' ').next()).collect();
    for twin in Twin::ALL {
        assert!(twins.contains(&twin.name()), "{twin:?} is in no scenario by itself");
    }
}
