//! Applies an answer: settles acknowledgements, notes refused partitions, enters records and hands them out.

use super::{FIRST_WAIT, Intake, Job, MAX_WAIT};
use crate::worker::in_flight::{ChannelId, Delivered, RecordKey, TaskNames, Verdict};
use crate::worker::leaders;
use kafka_share::error::{ErrorCode, KafkaError};
use kafka_share::share_session::{AcquiredRecord, Answer, Asked, Settlement};
use kafka_share::share_wire::{Acknowledgement, SharePartition};
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Instant, SystemTime};

impl Intake {
    /// Applies the answer that came on connection `id`.
    pub(super) fn take_answer(&mut self, id: ChannelId, answer: Answer) -> Result<(), KafkaError> {
        let now = Instant::now();
        self.links.control.heard();
        let is_current = self.current.as_ref().is_some_and(|channel| channel.id == id);
        if is_current && self.silent_since.take().is_some() {
            self.links.leaders.set_silent(self.node, false);
        }
        if answer.asked == Asked::Fetch && is_current {
            self.links.queue.answered(self.node, answer.acquired.len(), now);
        }
        let muted_until = self.current.as_ref().filter(|_| is_current).map(|channel| channel.session.muted_until());
        if let Some(muted_until) = muted_until.filter(|_| answer.asked == Asked::Fetch)
            && self.throttled.fetched(muted_until > now && answer.acquired.is_empty(), muted_until)
        {
            log::warn!(
                "a quota of Kafka throttles each fetch from broker {}; a task that it hides counts as delivered: raise \
                 this client's quota (docs/kafka.md, Quotas)",
                self.node
            );
        }
        if let Some(error) = answer.refused {
            return self.refused(id, is_current, error);
        }
        if let Some(lock) = answer.lock {
            self.links.in_flight.set_lock_length(lock);
        }
        if answer.asked == Asked::Open {
            self.opened(is_current, now);
        }
        for settlement in answer.settlements {
            self.take_settlement(id, settlement, (answer.sent_at, now));
        }
        for (partition, offset, said) in answer.unowned {
            self.unowned.entry(partition).or_default().insert(offset, said);
        }
        for (partition, code) in &answer.partition_errors {
            let error = KafkaError::broker("ShareFetch", *code, None);
            if self.arrivals.refused(*partition, &error, now) {
                self.links.leaders.look_up();
            }
        }
        if answer.asked == Asked::Fetch {
            let refused = |partition| answer.partition_errors.iter().any(|(refused, _)| refused == partition);
            for partition in answer.partitions.iter().filter(|partition| !refused(*partition)) {
                let brought = answer.acquired.iter().any(|record| record.partition == *partition);
                self.arrivals.fetched(*partition, brought, now);
            }
            self.patience = if answer.acquired.is_empty() { (self.patience * 2).min(MAX_WAIT) } else { FIRST_WAIT };
            self.take_records(is_current, answer.acquired, (answer.sent_at, answer.sent_wall), now);
        }
        Ok(())
    }

    /// The session is open on this connection.
    fn opened(&mut self, is_current: bool, now: Instant) {
        if !is_current {
            // Its epoch 0 may have taken the session from the current connection.
            self.open_again = true;
            return;
        }
        let Some(channel) = &mut self.current else { return };
        channel.open = true;
        if std::mem::take(&mut self.was_lost) {
            self.arrivals.hold_still(now);
            self.links.leaders.look_up();
        }
        self.outage.over();
        self.connect.reset();
        self.connect_at = now;
        // Sent once; later messages find it full.
        let _ = self.links.ready.try_send(());
    }

    /// Applies the answer to one group of acknowledgements. If one offset of several caused the refusal, the group is
    /// halved until only that offset remains. Acknowledgements that the broker could not store are sent again.
    fn take_settlement(&mut self, id: ChannelId, settlement: Settlement, times: (Instant, Instant)) {
        let Settlement { partition, offsets, error } = settlement;
        let verdict = Verdict::of(error);
        let of_one = matches!(error, Some(ErrorCode::INVALID_RECORD_STATE | ErrorCode::INVALID_REQUEST));
        if of_one && offsets.len() > 1 {
            let (left, right) = offsets.split_at(offsets.len() / 2);
            for half in [left, right] {
                self.halves.push_back(BTreeMap::from([(partition, half.iter().copied().collect())]));
            }
            return;
        }
        match verdict {
            Verdict::Applied if offsets.iter().any(|(_, said)| *said != Acknowledgement::Renew) => self.again.reset(),
            Verdict::Applied => {}
            Verdict::Again => self.acknowledge_at = times.1 + self.again.pause(),
            Verdict::Lost if !of_one => self.links.leaders.look_up(),
            Verdict::Lost => {}
        }
        if verdict == Verdict::Again {
            self.say_again(partition, &offsets);
        }
        let lost = self.links.in_flight.settled((self.node, id), partition, &offsets, verdict, times);
        if let Some(code) = error {
            self.say_lost(&lost, &format!("acknowledgement answered {code}"));
        }
    }

    /// Queues acknowledgements of offsets without a task again, since the account does not hold them.
    fn say_again(&mut self, partition: SharePartition, offsets: &[(i64, Acknowledgement)]) {
        let unowned = offsets.iter().filter(|(offset, said)| {
            *said != Acknowledgement::Renew && !self.links.in_flight.holds(RecordKey { partition, offset: *offset })
        });
        let unowned: Vec<(i64, Acknowledgement)> = unowned.copied().collect();
        if !unowned.is_empty() {
            self.unowned.entry(partition).or_default().extend(unowned);
        }
    }

    fn say_lost(&self, lost: &TaskNames, why: &str) {
        leaders::say_lost(&self.links.worker_id, lost, why);
    }

    fn take_records(
        &mut self,
        is_current: bool,
        records: Vec<AcquiredRecord>,
        (sent_at, sent_wall): (Instant, SystemTime),
        now: Instant,
    ) {
        if records.is_empty() {
            return;
        }
        let led = self.links.leaders.of_node(self.node);
        // Rule 10: a record may start only if the current connection brought it in an answer to a recent request.
        let young = now.saturating_duration_since(sent_at) < self.links.in_flight.lock_length() / 3;
        let starts = is_current && young && self.links.control.takes();
        let mut jobs = Vec::with_capacity(records.len());
        for record in records {
            let key = RecordKey { partition: record.partition, offset: record.offset };
            let mark = mark(&record);
            if !led.contains_key(&key.partition) && self.is_held_at_the_leader(key) {
                continue;
            }
            // Other records that a search finds belong to members that search for them.
            let is_foreign = self.arrivals.goes_back(&key.partition, record.delivery_count)
                && !self.links.in_flight.knows(key, &mark);
            let led_since = led.get(&key.partition).map(|leader| leader.since);
            let last_delivery = self.links.queue.is_last(record.delivery_count);
            let startable = starts && !is_foreign && led_since.is_some_and(|since| since <= sent_at);
            let delivered = Delivered {
                key,
                mark,
                node: self.node,
                sent_at,
                // At its last delivery a handler only copies the record, which is right even without the lock.
                startable: startable || last_delivery,
                delivery_count: record.delivery_count,
                last_delivery,
            };
            if self.links.in_flight.deliver(delivered, now) {
                jobs.push(Job { key, record, sent_at, sent_wall });
            }
        }
        self.links.queue.hand_out(jobs);
    }

    /// For a record from a broker that is not the known leader: whether another broker leads the partition and holds
    /// its lock. Looks up the leader first (rule 11).
    fn is_held_at_the_leader(&self, key: RecordKey) -> bool {
        if !self.links.in_flight.is_held_elsewhere(key, self.node) {
            return false;
        }
        // If no broker answers, the known leader stands.
        let links = &self.links;
        if let Ok(lost) = leaders::look(&links.cluster, &links.topic, &links.leaders, &links.in_flight) {
            self.say_lost(&lost, leaders::MOVED);
        }
        self.links.leaders.of(key.partition).is_none_or(|leader| leader.node != Some(self.node))
    }
}

/// The mark of a record: its key as text, at most 100 bytes, or its offset.
fn mark(record: &AcquiredRecord) -> Arc<str> {
    match &record.key {
        Some(key) if !key.is_empty() => String::from_utf8_lossy(&key[..key.len().min(100)]).into(),
        _ => format!("offset {}", record.offset).into(),
    }
}
