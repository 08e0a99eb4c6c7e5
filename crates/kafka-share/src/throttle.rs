//! Quotas (KIP-219): the broker answers a throttled client at once, and then reads nothing from its connection for the
//! time in the response. Such a connection is muted, not dead.
//!
//! Reads that time from responses and remembers which brokers throttle, for one log line. Called by
//! [`connection`](super::connection), for every response.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use kafka_protocol::messages::ApiKey;
use parking_lot::Mutex;

use super::address::BrokerAddress;

/// A response is not awaited for longer: a wait must have a limit, and only a quota far below the size of a request
/// causes such a time.
pub(super) const LONGEST: Duration = Duration::from_secs(60);
/// A broker that throttles again within this time is not logged again.
const QUIET: Duration = Duration::from_secs(60);

/// Returns the time for which the broker reads nothing from the connection after this response. The versions that this
/// client sends have it in their first field, Produce in its last one.
pub(super) fn time_of(api_key: i16, body: &[u8]) -> Duration {
    let field = match ApiKey::try_from(api_key) {
        Ok(ApiKey::Produce) => body.last_chunk::<4>(),
        // Answered once for each connection, or without such a field.
        Ok(ApiKey::ApiVersions | ApiKey::SaslHandshake | ApiKey::SaslAuthenticate) => None,
        _ => body.first_chunk::<4>(),
    };
    let time_ms = field.map_or(0, |field| u64::try_from(i32::from_be_bytes(*field)).unwrap_or(0));
    Duration::from_millis(time_ms)
}

/// The brokers that throttle this client, shared by all its connections.
#[derive(Clone, Debug, Default)]
pub(super) struct Throttles(Arc<Mutex<HashMap<BrokerAddress, Instant>>>);

impl Throttles {
    /// Notes that the broker throttles this client from now on for this time. Returns whether that begins now: it had
    /// not throttled for a minute.
    pub(super) fn begins(&self, broker: &BrokerAddress, time: Duration, now: Instant) -> bool {
        let begins = !self.has(broker, now);
        self.0.lock().insert(broker.clone(), now + time);
        begins
    }

    /// Whether the broker has throttled this client within the last minute.
    pub(super) fn has(&self, broker: &BrokerAddress, now: Instant) -> bool {
        self.0.lock().get(broker).is_some_and(|until| now.saturating_duration_since(*until) <= QUIET)
    }
}

#[cfg(test)]
mod tests {
    use bytes::BytesMut;
    use kafka_protocol::messages::{
        CreateTopicsResponse, DescribeConfigsResponse, DescribeShareGroupOffsetsResponse, FetchResponse,
        FindCoordinatorResponse, IncrementalAlterConfigsResponse, InitProducerIdResponse, ListOffsetsResponse,
        MetadataResponse, ProduceResponse, ShareAcknowledgeResponse, ShareFetchResponse, ShareGroupHeartbeatResponse,
    };
    use kafka_protocol::protocol::Encodable;

    use super::*;

    fn read(key: ApiKey, version: i16, response: &impl Encodable) -> u128 {
        let mut body = BytesMut::new();
        response.encode(&mut body, version).expect("encodable");
        time_of(key as i16, &body).as_millis()
    }

    #[test]
    fn throttle_time_is_read_in_the_versions_that_this_client_sends() {
        let times = [
            read(ApiKey::Produce, 8, &ProduceResponse::default().with_throttle_time_ms(7)),
            read(ApiKey::Fetch, 11, &FetchResponse::default().with_throttle_time_ms(7)),
            read(ApiKey::ListOffsets, 7, &ListOffsetsResponse::default().with_throttle_time_ms(7)),
            read(ApiKey::Metadata, 12, &MetadataResponse::default().with_throttle_time_ms(7)),
            read(ApiKey::FindCoordinator, 3, &FindCoordinatorResponse::default().with_throttle_time_ms(7)),
            read(ApiKey::InitProducerId, 3, &InitProducerIdResponse::default().with_throttle_time_ms(7)),
            read(ApiKey::CreateTopics, 7, &CreateTopicsResponse::default().with_throttle_time_ms(7)),
            read(ApiKey::DescribeConfigs, 4, &DescribeConfigsResponse::default().with_throttle_time_ms(7)),
            read(
                ApiKey::IncrementalAlterConfigs,
                1,
                &IncrementalAlterConfigsResponse::default().with_throttle_time_ms(7),
            ),
            read(
                ApiKey::DescribeShareGroupOffsets,
                0,
                &DescribeShareGroupOffsetsResponse::default().with_throttle_time_ms(7),
            ),
            read(ApiKey::ShareGroupHeartbeat, 1, &ShareGroupHeartbeatResponse::default().with_throttle_time_ms(7)),
            // The codec knows version 1, which begins like version 2.
            read(ApiKey::ShareFetch, 1, &ShareFetchResponse::default().with_throttle_time_ms(7)),
            read(ApiKey::ShareAcknowledge, 1, &ShareAcknowledgeResponse::default().with_throttle_time_ms(7)),
        ];
        assert_eq!(times, [7; 13]);
    }

    #[test]
    fn throttle_time_is_not_negative() {
        assert_eq!(time_of(ApiKey::Fetch as i16, &(-7i32).to_be_bytes()), Duration::ZERO);
        assert_eq!(time_of(ApiKey::Fetch as i16, &[0, 0, 7]), Duration::ZERO);
    }

    #[test]
    fn throttling_begins_once_until_it_has_ended_for_a_minute() {
        let throttles = Throttles::default();
        let broker: BrokerAddress = "kafka-1:9092".parse().expect("an address");
        let (begin, second) = (Instant::now(), Duration::from_secs(1));
        assert!(throttles.begins(&broker, second, begin));
        assert!(!throttles.begins(&broker, second, begin + 30 * second));
        assert!(throttles.begins(&broker, second, begin + 92 * second));
    }
}
