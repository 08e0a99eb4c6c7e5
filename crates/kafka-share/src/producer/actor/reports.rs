//! Applies reports on the producer's thread: responses settle records, failures make them wait.

use std::sync::Arc;
use std::time::Instant;

use kafka_protocol::messages::ProduceResponse;

use super::Actor;
use crate::error::{ErrorCode, KafkaError, Result, Retry};
use crate::producer::lane::{Identity, Verdict};
use crate::producer::leader::Leader;
use crate::producer::report::{Asked, Done, Report};
use crate::producer::{Delivery, DeliveryError, LaneKey, Message, ProducerEvents};

impl<T: Send + 'static, E: ProducerEvents<T>> Actor<T, E> {
    /// Applies a report.
    ///
    /// # Errors
    /// `Interrupted`, or a request that cannot be encoded: the producer ends.
    pub(super) fn handle(&mut self, report: Report) -> Result<()> {
        let now = Instant::now();
        match report {
            Report::Asked(asked) => self.learn(asked, now),
            Report::Opened(done, outcome) => {
                let node = done.node;
                self.job_done(done);
                match outcome {
                    Ok(ends) => {
                        self.leader_works(node, now);
                        for (key, end) in ends {
                            match (end, self.lanes.get_mut(&key)) {
                                (Ok(end), Some(slot)) => slot.lane.set_search_from(end),
                                (Err(error), _) => self.lane_failed(&key, &error, now),
                                (Ok(_), None) => {}
                            }
                        }
                        Ok(())
                    }
                    Err(error) => self.leader_failed(node, error, now),
                }
            }
            Report::Produced(done, outcome) => {
                let (node, keys) = (done.node, self.job_done(done));
                match outcome {
                    Ok(response) => {
                        self.leader_works(node, now);
                        self.apply(response, &keys, now);
                        Ok(())
                    }
                    Err(error) => {
                        // The batches may have arrived: they go out again unchanged, on a new connection.
                        for key in &keys {
                            if let Some(slot) = self.lanes.get_mut(key) {
                                slot.lane.unanswered();
                            }
                        }
                        self.leader_failed(node, error, now)
                    }
                }
            }
            Report::LookedUp(done, key, outcome) => {
                self.job_done(done);
                self.clear_doubt(done.node, &key, outcome, now)
            }
        }
    }

    /// Marks the leader free; returns the lanes of its job.
    fn job_done(&mut self, done: Done) -> Vec<LaneKey> {
        let Some(leader) = self.leaders.get_mut(&done.node) else { return Vec::new() };
        leader.reported(done.reads_at);
        let keys = std::mem::take(&mut leader.out);
        for key in &keys {
            if let Some(slot) = self.lanes.get_mut(key) {
                slot.asked = false;
            }
        }
        keys
    }

    /// Applies what the cluster reported about each topic.
    fn learn(&mut self, asked: Asked, now: Instant) -> Result<()> {
        if let Some(asker) = &mut self.asker {
            asker.reported();
        }
        self.identity = self.identity.or(asked.identity);
        asked.missed.iter().for_each(|name| self.topics.want(name));
        asked.granted.iter().for_each(|name| self.denials.over(name));
        for (name, leaders) in asked.topics {
            match leaders {
                Ok(leaders) => {
                    let (placed, missing) = self.topics.learnt(&name, leaders, now);
                    if let Some(missing) = missing {
                        log::info!("{}: topic {name} is available again after {missing:.1?}", self.links.name);
                    }
                    placed.into_iter().for_each(|(key, message)| self.push(key, message));
                }
                Err(error) => {
                    let denied = self.denials.note(&error, &name, now);
                    let told = self.topics.failed(&name, &error, now) && denied.is_none();
                    if let Some(denied) = denied {
                        let waiting = self.topics.take_waiting_for(&name);
                        self.fail(waiting, &denied);
                    }
                    if told {
                        log::warn!("{}: topic {name} is not available ({error}); its records wait", self.links.name);
                    }
                }
            }
        }
        self.keep_a_leader(asked.node, now);
        match asked.failed {
            None => {
                self.cluster_trouble.over(now);
            }
            Some(KafkaError::Interrupted) => return Err(KafkaError::Interrupted),
            Some(error) => {
                if let Some(denied) = self.denials.note(&error, "", now) {
                    let waiting = self.topics.take_waiting();
                    self.fail(waiting, &denied);
                }
                // If a leader is unavailable, the log shows that already.
                if self.cluster_trouble.failed(&error, now) && !self.leaders.values().any(|one| one.trouble.lasts()) {
                    log::warn!("{}: Kafka does not name the leaders ({error}); retrying", self.links.name);
                }
            }
        }
        Ok(())
    }

    /// Applies a response partition by partition: one can fail while another succeeds.
    fn apply(&mut self, response: ProduceResponse, keys: &[LaneKey], now: Instant) {
        let mut deliveries = Vec::new();
        let mut failed = Vec::new();
        let mut silent: Vec<&LaneKey> = keys.iter().collect();
        for topic in &response.responses {
            for answer in &topic.partition_responses {
                let key = silent.iter().position(|key| *key.0 == **topic.name && key.1 == answer.index);
                let Some(key) = key.map(|at| silent.swap_remove(at)) else { continue };
                let Some(slot) = self.lanes.get_mut(key) else { continue };
                let message = answer.error_message.as_ref().map(|message| message.as_str());
                let applied = slot.lane.answered(ErrorCode(answer.error_code), answer.base_offset, message);
                deliveries.extend(applied.deliveries);
                match applied.verdict {
                    Verdict::Settled => {
                        if let Some(time) = slot.trouble.over(now) {
                            let (name, (topic, partition)) = (&self.links.name, key);
                            log::info!("{name}: {topic}-{partition} takes records again after {time:.1?}");
                        }
                        self.denials.over(&key.0);
                    }
                    // The next job looks the batch up.
                    Verdict::InDoubt(code) => log::debug!("{}: {}-{}: {code}", self.links.name, key.0, key.1),
                    Verdict::Again(code) | Verdict::Denied(code) => {
                        failed.push((key.clone(), KafkaError::broker("Produce", code, message)));
                    }
                }
            }
        }
        for key in silent {
            // The broker sent nothing about this partition.
            if let Some(slot) = self.lanes.get_mut(key) {
                slot.lane.unanswered();
            }
            let nothing = Some("no answer for a partition");
            failed.push((key.clone(), KafkaError::broker("Produce", ErrorCode::UNKNOWN_SERVER_ERROR, nothing)));
        }
        self.settle(deliveries);
        for (key, error) in failed {
            self.lane_failed(&key, &error, now);
        }
    }

    /// Settles a batch after the search of the log: found means delivered, otherwise it is sent again under a new id.
    fn clear_doubt(
        &mut self,
        node: i32,
        key: &LaneKey,
        outcome: Result<(Identity, Result<Option<i64>>)>,
        now: Instant,
    ) -> Result<()> {
        let Some(slot) = self.lanes.get_mut(key) else { return Ok(()) };
        let (name, (topic, partition)) = (&self.links.name, key);
        let deliveries = match outcome {
            Err(KafkaError::Interrupted) | Ok((_, Err(KafkaError::Interrupted))) => {
                return Err(KafkaError::Interrupted);
            }
            Ok((fresh, Ok(Some(offset)))) => {
                log::warn!("{name}: {topic}-{partition}: a batch in doubt is at offset {offset}; new producer id");
                slot.lane.found(offset, fresh)
            }
            Ok((fresh, Ok(None))) => {
                log::warn!("{name}: {topic}-{partition}: a batch in doubt is not in the log; new producer id");
                slot.lane.not_found(fresh);
                Vec::new()
            }
            Ok((fresh, Err(error))) if error.retry() == Retry::Never => {
                log::error!("{name}: {topic}-{partition}: cannot find out whether a batch was written ({error})");
                slot.lane.not_told(fresh)
            }
            Ok((_, Err(error))) if error.retry() == Retry::Reconnect => return self.leader_failed(node, error, now),
            Ok((_, Err(error))) | Err(error) => {
                self.lane_failed(key, &error, now);
                return Ok(());
            }
        };
        self.settle(deliveries);
        Ok(())
    }

    // ---- troubles ----

    fn leader_works(&mut self, node: i32, now: Instant) {
        let Some(leader) = self.leaders.get_mut(&node) else { return };
        leader.connected = true;
        if let Some(time) = leader.trouble.over(now) {
            log::info!("{}: broker {node} answers again after {time:.1?}", self.links.name);
        }
    }

    /// Marks the leader's connection as lost: its records wait, and its partitions' leaders are looked up again. A
    /// fault of the client itself ends the producer.
    fn leader_failed(&mut self, node: i32, error: KafkaError, now: Instant) -> Result<()> {
        if matches!(error, KafkaError::Interrupted | KafkaError::Unencodable { .. }) {
            return Err(error);
        }
        let Some(leader) = self.leaders.get_mut(&node) else { return Ok(()) };
        leader.connected = false;
        if leader.trouble.failed(&error, now) {
            log::warn!("{}: broker {node} does not answer ({error}); its records wait", self.links.name);
        }
        let led: Vec<Arc<str>> = self.led_by(node).map(|(topic, _)| Arc::clone(topic)).collect();
        led.iter().for_each(|topic| self.topics.want(topic));
        if led.is_empty() {
            self.look_for_leader = true;
        }
        Ok(())
    }

    /// Keeps a connection even without records. Drops a leader that leads no partition and does not answer.
    fn keep_a_leader(&mut self, node: Option<i32>, now: Instant) {
        let of_no_use = |(id, leader): (&i32, &Leader)| {
            leader.trouble.lasts() && leader.out.is_empty() && node != Some(*id) && self.led_by(*id).next().is_none()
        };
        let gone: Vec<i32> = self.leaders.iter().filter(|one| of_no_use(*one)).map(|(id, _)| *id).collect();
        for leader in gone.iter().filter_map(|id| self.leaders.remove(id)).collect::<Vec<_>>() {
            self.ending.extend(leader.end(now).err());
        }
        self.ending.retain(|thread| !thread.is_finished());
        if self.leaders.is_empty()
            && let Some(node) = node
        {
            self.leaders.insert(node, Leader::new(node, &self.links));
        }
    }

    fn led_by(&self, node: i32) -> impl Iterator<Item = &LaneKey> {
        self.lanes.keys().filter(move |key| self.topics.leader(key) == Some(node))
    }

    /// Lets a partition's records wait after a failure, or fails them if Kafka refuses them for good.
    pub(super) fn lane_failed(&mut self, key: &LaneKey, error: &KafkaError, now: Instant) {
        if error.retry() == Retry::RefreshMetadata {
            self.topics.want(&key.0);
        }
        let Some(slot) = self.lanes.get_mut(key) else { return };
        if let Some(denied) = self.denials.note(error, &key.0, now) {
            let deliveries = slot.lane.deny(&denied);
            self.settle(deliveries);
        } else if slot.trouble.failed(error, now) {
            let (name, (topic, partition)) = (&self.links.name, key);
            log::warn!("{name}: {topic}-{partition} takes no records ({error}); they wait");
        }
    }

    pub(super) fn fail(&mut self, messages: Vec<Message<T>>, error: &DeliveryError) {
        let failed = messages.into_iter().map(|Message { token, .. }| Delivery { token, outcome: Err(error.clone()) });
        self.settle(failed.collect());
    }
}
