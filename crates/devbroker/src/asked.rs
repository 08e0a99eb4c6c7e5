//! A request whose header has been read, and which requests there are, in which versions.
//!
//! A request that is not in [`REQUESTS`] closes the connection, as in Kafka. Read by [`answer`](super::answer).

use bytes::{Bytes, BytesMut};
use kafka_protocol::messages::{ApiKey, ProduceRequest, RequestHeader, ResponseHeader};
use kafka_protocol::protocol::{Decodable, Encodable};

use kafka_share::share_lag;

/// Every request with its versions: those of Kafka 4.4 that the codec crate knows, and those that this crate adds.
/// Kafka 4.2 and 4.3 have all of them.
pub(super) const REQUESTS: &[(ApiKey, i16, i16)] = &[
    // Kafka lists version 0 for the sake of old clients, and takes 3 and later.
    (ApiKey::Produce, 0, 13),
    (ApiKey::Fetch, 4, 18),
    (ApiKey::ListOffsets, 1, 10),
    (ApiKey::Metadata, 0, 13),
    // kafkang refuses a broker that does not list these two. It never sends them; a client that does loses its
    // connection.
    (ApiKey::OffsetCommit, 2, 8),
    (ApiKey::OffsetFetch, 1, 7),
    (ApiKey::FindCoordinator, 0, 6),
    // Version 0 is listed as Kafka lists it; the bare tokens that follow it close the connection.
    (ApiKey::SaslHandshake, 0, 1),
    (ApiKey::ApiVersions, 0, 4),
    (ApiKey::CreateTopics, 2, 7),
    (ApiKey::DeleteTopics, 1, 6),
    (ApiKey::CreatePartitions, 0, 3),
    (ApiKey::DeleteRecords, 0, 2),
    (ApiKey::InitProducerId, 0, 5),
    // Later versions of these two are for transactions that begin with a Produce (KIP-890), and for brokers.
    (ApiKey::AddPartitionsToTxn, 0, 3),
    (ApiKey::EndTxn, 0, 4),
    (ApiKey::DescribeConfigs, 1, 4),
    (ApiKey::SaslAuthenticate, 0, 2),
    (ApiKey::IncrementalAlterConfigs, 0, 1),
    (ApiKey::ShareGroupHeartbeat, 1, 1),
    (ApiKey::ShareGroupDescribe, 1, 1),
    (ApiKey::ShareFetch, 1, 2),
    (ApiKey::ShareAcknowledge, 1, 2),
    (ApiKey::DescribeShareGroupOffsets, 0, 1),
    (ApiKey::AlterShareGroupOffsets, 0, 0),
];

/// A request whose header has been read.
pub(super) struct Asked {
    pub key: ApiKey,
    pub version: i16,
    pub correlation: i32,
    pub client: String,
    pub body: Bytes,
    /// ApiVersions in an unknown version: the response in version 0 reports that (KIP-511).
    pub too_new: bool,
}

impl Asked {
    /// Reads the header of a request. `None`: the request is unknown.
    pub fn read(mut frame: Bytes) -> Option<Self> {
        let key = i16::from_be_bytes(*frame.first_chunk::<2>()?);
        let version = i16::from_be_bytes(*frame.get(2..)?.first_chunk::<2>()?);
        let (key, least, most) = REQUESTS.iter().copied().find(|request| request.0 as i16 == key)?;
        let known = (least..=most).contains(&version) && key.valid_versions_with_share().contains(&version);
        if !known && key != ApiKey::ApiVersions {
            return None;
        }
        if !known {
            let correlation = i32::from_be_bytes(*frame.get(4..)?.first_chunk::<4>()?);
            let body = Bytes::new();
            return Some(Self { key, version: 0, correlation, client: String::new(), body, too_new: true });
        }
        let header = RequestHeader::decode(&mut frame, key.request_header_version(version)).ok()?;
        let client = header.client_id.map(|id| id.to_string()).unwrap_or_default();
        Some(Self { key, version, correlation: header.correlation_id, client, body: frame, too_new: false })
    }

    /// Makes the whole response with this body.
    pub fn answer(&self, body: &BytesMut) -> Option<Bytes> {
        let mut frame = BytesMut::with_capacity(body.len() + 16);
        frame.extend_from_slice(&[0; 4]);
        let header = ResponseHeader::default().with_correlation_id(self.correlation);
        header.encode(&mut frame, self.key.response_header_version(self.version)).ok()?;
        frame.extend_from_slice(body);
        let length = i32::try_from(frame.len() - 4).ok()?;
        frame[..4].copy_from_slice(&length.to_be_bytes());
        Some(frame.freeze())
    }

    /// Whether the client expects no response: a Produce with acks=0.
    pub fn wants_no_answer(&self) -> bool {
        let produce =
            (self.key == ApiKey::Produce).then(|| ProduceRequest::decode(&mut self.body.clone(), self.version));
        produce.is_some_and(|produce| produce.is_ok_and(|produce| produce.acks == 0))
    }
}

/// The codec crate's versions, with version 2 of both share requests (`share_wire`) and version 1 of [`share_lag`].
pub(super) trait ShareVersions {
    fn valid_versions_with_share(&self) -> std::ops::RangeInclusive<i16>;
}

impl ShareVersions for ApiKey {
    fn valid_versions_with_share(&self) -> std::ops::RangeInclusive<i16> {
        let versions = self.valid_versions();
        let most = match self {
            Self::ShareFetch | Self::ShareAcknowledge => 2,
            Self::DescribeShareGroupOffsets => share_lag::WIRE_VERSION,
            _ => versions.max,
        };
        versions.min..=most
    }
}
