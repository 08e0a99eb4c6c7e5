//! The last stops of workers, by their receipts: pure state. Filled from the status records, in any order.

use crate::task::Receipt;
use serde::Serialize;
use std::time::{SystemTime, UNIX_EPOCH};
use uuid::Uuid;

/// At most this many stops are listed.
const MOST: usize = 50;

/// One completed stop.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub(super) struct WorkerStop {
    /// When it was completed, in Unix seconds by Kafka or by the gateway's arrival.
    at: f64,
    instance: Uuid,
    #[serde(flatten)]
    receipt: Receipt,
}

/// The stops, the newest first.
#[derive(Debug, Default)]
pub(super) struct Stops(Vec<WorkerStop>);

impl Stops {
    /// Adds the stop of a process, once.
    pub(super) fn add(&mut self, instance: Uuid, receipt: &Receipt, at: SystemTime) {
        if self.0.iter().any(|stop| stop.instance == instance) {
            return;
        }
        let at = at.duration_since(UNIX_EPOCH).unwrap_or_default().as_secs_f64();
        let index = self.0.partition_point(|stop| stop.at > at);
        self.0.insert(index, WorkerStop { at, instance, receipt: receipt.clone() });
        self.0.truncate(MOST);
    }

    pub(super) fn list(&self) -> &[WorkerStop] {
        &self.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    #[test]
    fn newest_stops_come_first_in_any_order_of_reading() {
        let mut stops = Stops::default();
        let receipt = Receipt { outcome: "drained".to_owned(), ..Receipt::default() };
        let add = |stops: &mut Stops, number: u128| {
            let at = UNIX_EPOCH + Duration::from_secs(u64::try_from(number).expect("small"));
            stops.add(Uuid::from_u128(number), &receipt, at);
        };
        [5, 60, 7, 5].into_iter().for_each(|number| add(&mut stops, number));
        let order = |stops: &Stops| stops.list().iter().map(|stop| stop.at as u64).collect::<Vec<_>>();
        assert_eq!(order(&stops), [60, 7, 5]);
        (100..200).for_each(|number| add(&mut stops, number));
        assert_eq!((stops.list().len(), order(&stops)[0], order(&stops)[MOST - 1]), (MOST, 199, 150));
    }
}
