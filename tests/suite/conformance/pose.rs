//! Settings and versions that Kafka 4.2 and 4.3 lack. With `KAFKA=apache`, `scripts/kafka` downloads these versions.

use std::collections::BTreeSet;

use kafka_protocol::messages::ApiVersionsRequest;

use super::*;
use crate::support::broker::Broker;

/// Settings of topics or of share groups that the rig's broker lacks and the newest version has.
fn missing(rig: &Rig, of: admin::Of, name: &str) -> Vec<String> {
    // Without a second turn: two tests with two turns each could wait for each other.
    let newest = Broker::shared().address();
    let there = format!("{name}-newest");
    let keys = |broker: &str, name: &str| -> BTreeSet<String> {
        let keys = admin::configs(broker, of, name).into_keys();
        let groups = ["consumer.", "streams."];
        keys.filter(|key| !groups.iter().any(|prefix| key.starts_with(prefix))).collect()
    };
    if matches!(of, admin::Of::Topic) {
        admin::create_topic(newest, &there, 1, &[]);
    }
    let (old, new) = (keys(rig.broker().address(), name), keys(newest, &there));
    assert!(old.is_subset(&new), "{old:?}");
    new.difference(&old).cloned().collect()
}

/// The finalized and the highest supported level of `share.version`, and the newest versions of the share requests.
fn told(broker: &str) -> (i16, i16, Vec<(i16, i16)>) {
    let request = ApiVersionsRequest::default().with_client_software_name(text("wire"));
    let request = request.with_client_software_version(text("1"));
    let mut wire = Wire::connect(broker);
    assert!(wire.call(3, &request).supported_features.iter().all(|feature| feature.min_version > 0));
    let answer = wire.call(4, &request);
    let name = text("share.version");
    let most = answer.supported_features.iter().find(|feature| feature.name == name).expect("share groups");
    let level = answer.finalized_features.iter().find(|feature| feature.name == name).expect("share groups");
    let share = answer.api_keys.iter().filter(|api| [76, 77, 78, 79, 90, 91].contains(&api.api_key));
    let share = share.map(|api| (api.api_key, api.max_version)).collect();
    (level.max_version_level, most.max_version, share)
}

const OF_TOPICS: [&str; 4] = [
    "errors.deadletterqueue.group.enable",
    "max.decompressed.message.bytes",
    "remote.copy.lag.bytes",
    "remote.copy.lag.ms",
];

#[test]
fn kafka_4_2_has_fewer_settings() {
    let mut place = Place::on(Rig::with_own_broker("is-4-2", &["--version", "4.2.0"]), &[]);
    let group = place.rig.group();
    let of_groups = [
        "errors.deadletterqueue.copy.record.enable",
        "errors.deadletterqueue.topic.name",
        "share.assignment.interval.ms",
        "share.delivery.count.limit",
        "share.partition.max.record.locks",
        "share.renew.acknowledge.enable",
    ];
    assert_eq!(missing(&place.rig, admin::Of::Group, &group), of_groups);
    assert_eq!(missing(&place.rig, admin::Of::Topic, &place.topic), OF_TOPICS);
    for (key, code) in [("share.delivery.count.limit", 40), ("share.heartbeat.interval.ms", 0)] {
        assert_eq!(alter(&mut place.wire, admin::Of::Group, &group, key, Some("6000")), code, "{key}");
    }
    let share = vec![(76, 1), (77, 1), (78, 2), (79, 2), (90, 1), (91, 0)];
    assert_eq!(told(place.rig.broker().address()), (1, 1, share.clone()));
    assert_eq!(told(Broker::shared().address()), (2, 2, share));
}

#[test]
fn kafka_4_2_assigns_at_the_next_heartbeat() {
    let mut place = Place::on(Rig::with_own_broker("is-4-2", &["--version", "4.2.0"]), &[]);
    let id = place.rig.group();
    eventually(SOON, "the group has a coordinator", || {
        let request = FindCoordinatorRequest::default().with_key(text(&id));
        place.wire.call(3, &request).error_code == 0
    });
    eventually(SOON, "the partition is assigned", || place.beat(&id, "first", 0).2 == Some(1));
    assert_eq!(place.beat(&id, "second", 0).2, Some(1));
}

#[test]
fn kafka_4_3_has_no_dead_letters() {
    let place = Place::on(Rig::with_own_broker("is-4-3", &["--version", "4.3.1"]), &[]);
    let of_groups = ["errors.deadletterqueue.copy.record.enable", "errors.deadletterqueue.topic.name"];
    assert_eq!(missing(&place.rig, admin::Of::Group, &place.rig.group()), of_groups);
    assert_eq!(missing(&place.rig, admin::Of::Topic, &place.topic), OF_TOPICS);
    assert_eq!(told(place.rig.broker().address()).1, 1);
}
