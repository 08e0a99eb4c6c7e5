//! The right that each request needs, and the error code without the right.

use devbroker::{Operation, Resource};
use kafka_protocol::messages::{
    AlterShareGroupOffsetsRequest, DeleteRecordsRequest, DeleteTopicsRequest, DescribeConfigsRequest,
    ShareGroupDescribeRequest,
    alter_share_group_offsets_request::{AlterShareGroupOffsetsRequestPartition, AlterShareGroupOffsetsRequestTopic},
    delete_records_request::{DeleteRecordsPartition, DeleteRecordsTopic},
    delete_topics_request::DeleteTopicState,
    describe_configs_request::DescribeConfigsResource,
};

use super::*;

/// A topic with two records, a group, and a member that holds both records.
struct Scene {
    place: Place,
    group: String,
    member: Member,
}

/// A request, and a function that sends it and returns the first error code in the response.
type Probe = (&'static str, fn(&mut Scene) -> i16);

impl Scene {
    fn beside(rig: &Rig) -> Scene {
        let mut place = Place::on(Rig::beside(rig, "is-right"), &[]);
        place.produce(2);
        let group = place.group(&[]);
        let (id, mut member) = (group.id.clone(), group.open("holder"));
        assert_eq!(member.eventually(2), [(0, 1, 1)]);
        Scene { place, group: id, member }
    }

    fn topic(&self) -> TopicName {
        topic_name(&self.place.topic)
    }

    /// Sends all requests; returns the names of those that fail with this code.
    fn refused(&mut self, code: i16) -> Vec<&'static str> {
        PROBES.iter().filter(|(_, probe)| probe(self) == code).map(|(name, _)| *name).collect()
    }

    fn open(&mut self, name: &'static str) -> Member {
        let wire = Wire::connect(self.place.rig.broker().address());
        Member { wire, group: self.group.clone(), name, epoch: 0, partition: self.member.partition }
    }
}

fn first(codes: impl IntoIterator<Item = i16>) -> i16 {
    codes.into_iter().find(|code| *code != 0).unwrap_or(0)
}

fn metadata(scene: &mut Scene, by_id: bool) -> i16 {
    let id = scene.member.partition.topic_id;
    let topic = MetadataRequestTopic::default().with_name((!by_id).then(|| scene.topic()));
    let topic = if by_id { topic.with_topic_id(id) } else { topic };
    scene.place.wire.call(12, &MetadataRequest::default().with_topics(Some(vec![topic]))).topics[0].error_code
}

fn describe_configs(wire: &mut Wire, of: admin::Of, name: &str) -> i16 {
    let resource = DescribeConfigsResource::default().with_resource_type(of as i8).with_resource_name(text(name));
    let resource = resource.with_configuration_keys(None);
    wire.call(4, &DescribeConfigsRequest::default().with_resources(vec![resource])).results[0].error_code
}

fn list_offsets(scene: &mut Scene) -> i16 {
    let partition = ListOffsetsPartition::default().with_current_leader_epoch(-1).with_timestamp(-1);
    let topic = ListOffsetsTopic::default().with_name(scene.topic()).with_partitions(vec![partition]);
    let answer = scene.place.wire.call(7, &ListOffsetsRequest::default().with_topics(vec![topic]));
    answer.topics[0].partitions[0].error_code
}

fn delete_records(scene: &mut Scene) -> i16 {
    let topic = DeleteRecordsTopic::default()
        .with_name(scene.topic())
        .with_partitions(vec![DeleteRecordsPartition::default().with_offset(0)]);
    let request = DeleteRecordsRequest::default().with_topics(vec![topic]).with_timeout_ms(5000);
    scene.place.wire.call(2, &request).topics[0].partitions[0].error_code
}

fn delete_topic(scene: &mut Scene) -> i16 {
    let topic = DeleteTopicState::default().with_name(Some(scene.topic()));
    let request = DeleteTopicsRequest::default().with_topics(vec![topic]).with_timeout_ms(5000);
    scene.place.wire.call(6, &request).responses[0].error_code
}

fn find_coordinator(scene: &mut Scene) -> i16 {
    let request = FindCoordinatorRequest::default().with_coordinator_keys(vec![text(&scene.group)]);
    scene.place.wire.call(4, &request).coordinators[0].error_code
}

fn share_fetch(scene: &mut Scene) -> i16 {
    let said = scene.open("late").fetch(1, 0, &[]);
    first([said.error, said.fetch_error])
}

fn share_fetch_on_session(scene: &mut Scene) -> i16 {
    let said = scene.member.fetch(1, 0, &[]);
    first([said.error, said.fetch_error])
}

fn share_fetch_that_acknowledges(scene: &mut Scene) -> i16 {
    let said = scene.member.fetch(1, 0, &[(0, Accept)]);
    first([said.error, said.acknowledge_error])
}

fn share_acknowledge(scene: &mut Scene) -> i16 {
    let (error, partition) = scene.member.acknowledge(&[(1, Accept)]);
    first([error, partition])
}

fn share_offsets(scene: &mut Scene) -> i16 {
    let topics =
        DescribeShareGroupOffsetsRequestTopic::default().with_topic_name(scene.topic()).with_partitions(vec![0]);
    let group = DescribeShareGroupOffsetsRequestGroup::default().with_group_id(GroupId(text(&scene.group)));
    let request = DescribeShareGroupOffsetsRequest::default().with_groups(vec![group.with_topics(Some(vec![topics]))]);
    let group = &scene.place.wire.call(0, &request).groups[0];
    let partitions = group.topics.iter().flat_map(|topic| &topic.partitions).map(|partition| partition.error_code);
    first([group.error_code].into_iter().chain(partitions))
}

fn describe_group(scene: &mut Scene) -> i16 {
    let request = ShareGroupDescribeRequest::default().with_group_ids(vec![GroupId(text(&scene.group))]);
    scene.place.wire.call(1, &request).groups[0].error_code
}

/// Works only for a group without members.
fn alter_share_offsets(scene: &mut Scene) -> i16 {
    let partition = AlterShareGroupOffsetsRequestPartition::default().with_start_offset(0);
    let topic =
        AlterShareGroupOffsetsRequestTopic::default().with_topic_name(scene.topic()).with_partitions(vec![partition]);
    let request = AlterShareGroupOffsetsRequest::default().with_group_id(GroupId(text(&scene.group)));
    let answer = scene.place.wire.call(0, &request.with_topics(vec![topic]));
    let partitions = answer.responses.iter().flat_map(|topic| &topic.partitions).map(|partition| partition.error_code);
    first([answer.error_code].into_iter().chain(partitions))
}

/// Every request that needs a right to a topic or to a group; destructive requests come last.
const PROBES: &[Probe] = &[
    ("Produce", |scene| produce(&mut scene.place.wire, &scene.place.topic, plain(1)).0),
    ("Fetch", |scene| fetch(&mut scene.place.wire, &scene.place.topic, 0, 0, 1000).0),
    ("ListOffsets", list_offsets),
    ("Metadata by name", |scene| metadata(scene, false)),
    ("Metadata by id", |scene| metadata(scene, true)),
    ("DescribeConfigs of the topic", |scene| {
        describe_configs(&mut scene.place.wire, admin::Of::Topic, &scene.place.topic)
    }),
    ("IncrementalAlterConfigs of the topic", |scene| {
        alter(&mut scene.place.wire, admin::Of::Topic, &scene.place.topic, "retention.ms", Some("60000"))
    }),
    ("DeleteRecords", delete_records),
    ("FindCoordinator", find_coordinator),
    ("ShareGroupHeartbeat", |scene| scene.place.beat(&scene.group, "second", 0).0),
    ("ShareFetch that opens", share_fetch),
    ("ShareFetch", share_fetch_on_session),
    ("ShareFetch that acknowledges", share_fetch_that_acknowledges),
    ("ShareAcknowledge", share_acknowledge),
    ("ShareGroupDescribe", describe_group),
    ("DescribeShareGroupOffsets", share_offsets),
    ("DescribeConfigs of the group", |scene| describe_configs(&mut scene.place.wire, admin::Of::Group, &scene.group)),
    ("IncrementalAlterConfigs of the group", |scene| {
        alter(&mut scene.place.wire, admin::Of::Group, &scene.group, "share.heartbeat.interval.ms", Some("6000"))
    }),
    ("ShareGroupHeartbeat that leaves", |scene| {
        first(["first", "second"].map(|member| scene.place.beat(&scene.group, member, -1).0))
    }),
    ("AlterShareGroupOffsets", alter_share_offsets),
    ("DeleteTopics", delete_topic),
];

use Operation::{AlterConfigs, Create, Delete, Describe, DescribeConfigs, IdempotentWrite, Read, Write};

#[test]
fn requests_without_a_right_to_the_topic_are_answered_29() {
    let rig = Rig::with_rights("is-rights");
    for (operation, refused) in [
        (
            Read,
            &[
                "Fetch",
                "ShareFetch that opens",
                "ShareFetch",
                "ShareFetch that acknowledges",
                "ShareAcknowledge",
                "AlterShareGroupOffsets",
            ][..],
        ),
        (Write, &["Produce"]),
        (Create, &[]),
        // DeleteTopics needs the right to the cluster or to the topic.
        (Delete, &["DeleteRecords"]),
        (
            Describe,
            &[
                "ListOffsets",
                "Metadata by name",
                "Metadata by id",
                "ShareGroupHeartbeat",
                "ShareGroupDescribe",
                "DescribeShareGroupOffsets",
            ],
        ),
        (DescribeConfigs, &["DescribeConfigs of the topic"]),
        (AlterConfigs, &["IncrementalAlterConfigs of the topic"]),
    ] {
        let mut scene = Scene::beside(&rig);
        rig.broker().deny(operation, Resource::Topic(&scene.place.topic));
        assert_eq!(scene.refused(29), refused, "{operation:?}");
        let mut other = Scene::beside(&rig);
        rig.broker().deny(operation, Resource::Group(&other.place.topic));
        assert_eq!(other.refused(29), [""; 0], "{operation:?} of another topic, or of a group of its name");
    }
}

#[test]
fn requests_without_a_right_to_the_group_are_answered_30() {
    let rig = Rig::with_rights("is-rights");
    for (operation, refused) in [
        (
            Read,
            &[
                "ShareGroupHeartbeat",
                "ShareFetch that opens",
                "ShareFetch",
                "ShareFetch that acknowledges",
                "ShareAcknowledge",
                "ShareGroupHeartbeat that leaves",
                "AlterShareGroupOffsets",
            ][..],
        ),
        (Write, &[]),
        (Delete, &[]),
        (Describe, &["FindCoordinator", "ShareGroupDescribe", "DescribeShareGroupOffsets"]),
        (DescribeConfigs, &["DescribeConfigs of the group"]),
        (AlterConfigs, &["IncrementalAlterConfigs of the group"]),
    ] {
        let mut scene = Scene::beside(&rig);
        rig.broker().deny(operation, Resource::Group(&scene.group));
        assert_eq!(scene.refused(30), refused, "{operation:?}");
    }
}

/// The error codes of CreateTopics, of Metadata that creates a topic, of DeleteTopics and of InitProducerId.
fn asked_of_cluster(scene: &mut Scene, new: &str) -> (i16, i16, i16, i16) {
    let topic = CreatableTopic::default().with_name(topic_name(new)).with_num_partitions(1).with_replication_factor(1);
    let create = CreateTopicsRequest::default().with_topics(vec![topic]).with_timeout_ms(5000).with_validate_only(true);
    let created = scene.place.wire.call(7, &create).topics[0].error_code;
    let topic = MetadataRequestTopic::default().with_name(Some(topic_name(new)));
    let request = MetadataRequest::default().with_topics(Some(vec![topic])).with_allow_auto_topic_creation(true);
    let auto = scene.place.wire.call(12, &request).topics[0].error_code;
    let producer = InitProducerIdRequest::default().with_transactional_id(None);
    let producer = scene.place.wire.call(3, &producer).error_code;
    (created, auto, delete_topic(scene), producer)
}

#[test]
fn right_to_the_cluster_or_to_the_topic_is_enough() {
    let rig = Rig::with_rights("is-rights");
    let broker = rig.broker();
    let mut scene = Scene::beside(&rig);
    eventually(SOON, "the broker has producer ids", || {
        let producer = InitProducerIdRequest::default().with_transactional_id(None);
        scene.place.wire.call(3, &producer).error_code == 0
    });
    assert_eq!(asked_of_cluster(&mut scene, "is-new-1"), (0, 3, 0, 0));
    for operation in [Create, Delete, IdempotentWrite] {
        broker.deny(operation, Resource::Cluster);
    }
    let mut scene = Scene::beside(&rig);
    assert_eq!(asked_of_cluster(&mut scene, "is-new-2"), (0, 3, 0, 0), "the right to the topic is left");
    let mut scene = Scene::beside(&rig);
    broker.deny(Create, Resource::Topic("is-new-3"));
    broker.deny(Delete, Resource::Topic(&scene.place.topic));
    assert_eq!(asked_of_cluster(&mut scene, "is-new-3"), (29, 29, 29, 0), "no right is left");
    broker.deny(Write, Resource::Topic("*"));
    let producer = InitProducerIdRequest::default().with_transactional_id(None);
    assert_eq!(scene.place.wire.call(3, &producer).error_code, 31, "no topic may be written to");
    let topic = scene.place.topic.clone();
    assert_eq!(produce(&mut scene.place.wire, &topic, plain(1)).0, 29);
}

#[test]
fn settings_of_the_broker_need_a_right_to_the_cluster() {
    let rig = Rig::with_rights("is-rights");
    let mut wire = Wire::connect(rig.broker().address());
    let mut ask = || {
        let resource = DescribeConfigsResource::default().with_resource_type(4).with_resource_name(text("1"));
        let resource = resource.with_configuration_keys(None);
        wire.call(4, &DescribeConfigsRequest::default().with_resources(vec![resource])).results[0].error_code
    };
    assert_eq!(ask(), 0);
    rig.broker().deny(DescribeConfigs, Resource::Cluster);
    assert_eq!(ask(), 31);
}
