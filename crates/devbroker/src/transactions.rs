//! Transactions of producers (KIP-98): InitProducerId, AddPartitionsToTxn, EndTxn, and the check whether a batch
//! belongs to an open transaction.
//!
//! The request that ends a transaction writes its markers; Kafka writes them after its response, and returns 51
//! (CONCURRENT_TRANSACTIONS) until then. A transaction has no time limit and holds no offsets of groups. The
//! [`log`](super::log) of a partition has its open and aborted transactions. Called by the dispatcher and by `produce`.

use std::collections::BTreeSet;
use std::time::Instant;

use kafka_protocol::messages::add_partitions_to_txn_response::{
    AddPartitionsToTxnPartitionResult, AddPartitionsToTxnTopicResult,
};
use kafka_protocol::messages::{
    AddPartitionsToTxnRequest, AddPartitionsToTxnResponse, EndTxnRequest, EndTxnResponse, InitProducerIdRequest,
    InitProducerIdResponse, ProducerId,
};

use super::batch::Batch;
use super::state::{Caller, State, Transaction};
use kafka_share::ErrorCode;

/// Kafka's INVALID_TXN_STATE: no transaction is open, or not with this partition.
const INVALID_STATE: ErrorCode = ErrorCode(48);
/// Kafka's INVALID_PRODUCER_ID_MAPPING: the transactional id is unknown, or has another producer id.
const INVALID_MAPPING: ErrorCode = ErrorCode(49);
/// Kafka's INVALID_TRANSACTION_TIMEOUT.
const INVALID_TIMEOUT: ErrorCode = ErrorCode(50);
/// Kafka's TRANSACTIONAL_ID_AUTHORIZATION_FAILED, also for a transactional batch without a transactional id.
const NO_TRANSACTIONAL_ID: ErrorCode = ErrorCode(53);
/// Kafka's OPERATION_NOT_ATTEMPTED: another partition of the request failed.
const NOT_ATTEMPTED: ErrorCode = ErrorCode(55);
/// Kafka's PRODUCER_FENCED: the epoch is not the current one.
const FENCED: ErrorCode = ErrorCode(90);
/// Kafka's default of `transaction.max.timeout.ms`.
const MOST_TIMEOUT_MS: i32 = 900_000;

impl State {
    /// InitProducerId. With a transactional id it returns a new epoch and aborts an open transaction of the old one.
    pub fn init_producer_id(
        &mut self,
        caller: &Caller,
        request: &InitProducerIdRequest,
        now: Instant,
        now_ms: i64,
    ) -> InitProducerIdResponse {
        let answer = InitProducerIdResponse::default();
        let given = match &request.transactional_id {
            None => self.check_idempotent(caller).map(|()| (self.new_producer_id(), 0)),
            Some(id) => self.init_transactions(caller, id.as_str(), request, now, now_ms),
        };
        match given {
            Ok((id, epoch)) => answer.with_producer_id(ProducerId(id)).with_producer_epoch(epoch),
            Err(code) => answer.with_error_code(code.0).with_producer_id(ProducerId(-1)).with_producer_epoch(-1),
        }
    }

    fn new_producer_id(&mut self) -> i64 {
        let id = self.next_producer_id;
        self.next_producer_id += 1;
        id
    }

    fn init_transactions(
        &mut self,
        caller: &Caller,
        id: &str,
        request: &InitProducerIdRequest,
        now: Instant,
        now_ms: i64,
    ) -> Result<(i64, i16), ErrorCode> {
        if id.is_empty() {
            return Err(ErrorCode::INVALID_REQUEST);
        }
        if !(1..=MOST_TIMEOUT_MS).contains(&request.transaction_timeout_ms) {
            return Err(INVALID_TIMEOUT);
        }
        self.check_coordinator(id, caller.node, now)?;
        let known = self.transactions.get(id).map(|known| (known.producer_id, known.epoch, known.open.is_empty()));
        let told = (request.producer_id.0, request.producer_epoch);
        let given = match known {
            Some((producer_id, epoch, _)) if told.0 >= 0 && told != (producer_id, epoch) => return Err(FENCED),
            // The abort's marker uses one epoch, the producer gets the next.
            Some((_, epoch, false)) if epoch < i16::MAX - 1 => {
                self.end(id, false, epoch + 1, now_ms);
                (self.transactions[id].producer_id, epoch + 2)
            }
            Some((producer_id, epoch, true)) if epoch < i16::MAX - 1 => (producer_id, epoch + 1),
            Some((_, epoch, _)) => {
                self.end(id, false, epoch, now_ms);
                (self.new_producer_id(), 0)
            }
            None => (self.new_producer_id(), 0),
        };
        let fresh = Transaction { producer_id: given.0, epoch: given.1, open: BTreeSet::new(), committed: None };
        self.transactions.insert(id.to_owned(), fresh);
        Ok(given)
    }

    /// AddPartitionsToTxn: adds all partitions of the request to the transaction, or none.
    pub fn add_partitions(
        &mut self,
        caller: &Caller,
        request: &AddPartitionsToTxnRequest,
        now: Instant,
    ) -> AddPartitionsToTxnResponse {
        let id = request.v3_and_below_transactional_id.as_str();
        let topics = &request.v3_and_below_topics;
        let exists = |topic: &str, index: i32| {
            let count = self.topics.get(topic).map_or(0, |topic| topic.partitions.len());
            usize::try_from(index).is_ok_and(|index| index < count)
        };
        let wanted: Vec<(String, i32)> = topics
            .iter()
            .flat_map(|topic| topic.partitions.iter().map(|index| (topic.name.as_str().to_owned(), *index)))
            .collect();
        let missing: BTreeSet<(String, i32)> =
            wanted.iter().filter(|(topic, index)| !exists(topic, *index)).cloned().collect();
        let (producer, epoch) = (request.v3_and_below_producer_id.0, request.v3_and_below_producer_epoch);
        let added = if missing.is_empty() {
            self.check_coordinator(id, caller.node, now).and_then(|()| {
                self.transaction(id, producer, epoch)?.open.extend(wanted);
                Ok(())
            })
        } else {
            Err(NOT_ATTEMPTED)
        };
        let code = added.err().map_or(0, |code| code.0);
        let results = topics.iter().map(|topic| {
            let partitions = topic.partitions.iter().map(|index| {
                let is_missing = missing.contains(&(topic.name.as_str().to_owned(), *index));
                let code = if is_missing { ErrorCode::UNKNOWN_TOPIC_OR_PARTITION.0 } else { code };
                AddPartitionsToTxnPartitionResult::default()
                    .with_partition_index(*index)
                    .with_partition_error_code(code)
            });
            let partitions = partitions.collect();
            AddPartitionsToTxnTopicResult::default().with_name(topic.name.clone()).with_results_by_partition(partitions)
        });
        AddPartitionsToTxnResponse::default().with_results_by_topic_v3_and_below(results.collect())
    }

    /// EndTxn: writes a marker into each partition of the transaction. A repeated EndTxn has no effect.
    pub fn end_transaction(
        &mut self,
        caller: &Caller,
        request: &EndTxnRequest,
        now: Instant,
        now_ms: i64,
    ) -> EndTxnResponse {
        let id = request.transactional_id.as_str();
        let ended = self.check_coordinator(id, caller.node, now).and_then(|()| {
            let transaction = self.transaction(id, request.producer_id.0, request.producer_epoch)?;
            if !transaction.open.is_empty() {
                self.end(id, request.committed, request.producer_epoch, now_ms);
                return Ok(());
            }
            if transaction.committed == Some(request.committed) { Ok(()) } else { Err(INVALID_STATE) }
        });
        EndTxnResponse::default().with_error_code(ended.err().map_or(0, |code| code.0))
    }

    fn end(&mut self, id: &str, committed: bool, epoch: i16, now_ms: i64) {
        let Some(transaction) = self.transactions.get_mut(id) else { return };
        transaction.committed = Some(committed);
        for (topic, index) in std::mem::take(&mut transaction.open) {
            let partitions = self.topics.get_mut(&topic).map(|topic| &mut topic.partitions);
            let partition = usize::try_from(index).ok().and_then(|index| partitions?.get_mut(index));
            // A topic may have been deleted meanwhile.
            if let Some(partition) = partition {
                let marker = Batch::marker(transaction.producer_id, epoch, committed, now_ms);
                partition.log.end_transaction(&marker, partition.epoch, committed);
            }
        }
        self.replicate();
    }

    /// Returns the transactional id's state, if it belongs to this producer and epoch.
    fn transaction(&mut self, id: &str, producer_id: i64, epoch: i16) -> Result<&mut Transaction, ErrorCode> {
        let known = self.transactions.get_mut(id).filter(|known| known.producer_id == producer_id);
        let known = known.ok_or(INVALID_MAPPING)?;
        if known.epoch == epoch { Ok(known) } else { Err(FENCED) }
    }

    /// Checks whether this batch of a Produce request may be appended, as far as transactions are concerned.
    ///
    /// # Errors
    /// 48, 49, 53, or 47 for another epoch, like Kafka's responses to a producer.
    pub fn check_transaction(
        &mut self,
        id: Option<&str>,
        batch: &Batch,
        topic: &str,
        index: i32,
    ) -> Result<(), ErrorCode> {
        let Some(mark) = batch.mark() else { return Ok(()) };
        if !batch.is_transactional() {
            let partitions = self.topics.get(topic).map(|topic| &topic.partitions);
            let partition = partitions.zip(usize::try_from(index).ok()).and_then(|(all, index)| all.get(index));
            let inside = partition.is_some_and(|partition| partition.log.has_open(mark.producer_id));
            return if inside { Err(INVALID_STATE) } else { Ok(()) };
        }
        let transaction = self.transaction(id.ok_or(NO_TRANSACTIONAL_ID)?, mark.producer_id, mark.epoch);
        let transaction =
            transaction.map_err(|code| if code == FENCED { ErrorCode::INVALID_PRODUCER_EPOCH } else { code })?;
        if transaction.open.contains(&(topic.to_owned(), index)) { Ok(()) } else { Err(INVALID_STATE) }
    }
}
