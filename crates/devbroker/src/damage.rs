//! Damages the records or the signature of a response, for an injected fault. Called by [`core`](super::core).

use bytes::{Bytes, BytesMut};
use kafka_protocol::messages::{FetchResponse, SaslAuthenticateResponse, ShareFetchResponse};
use kafka_protocol::protocol::{Decodable, Encodable};

use super::asked::Asked;
use super::faults::Kind;

/// Gives the first batch of each partition in a Fetch or ShareFetch response a wrong checksum, and the last message of
/// SCRAM a wrong signature. Other responses stay unchanged.
pub(super) fn damaged(kind: Kind, asked: &Asked, body: BytesMut) -> Option<BytesMut> {
    let mut changed = BytesMut::new();
    match kind {
        Kind::Fetch => {
            let mut answer = FetchResponse::decode(&mut body.freeze(), asked.version).ok()?;
            let partitions = answer.responses.iter_mut().flat_map(|topic| &mut topic.partitions);
            partitions.for_each(|partition| flip(&mut partition.records));
            answer.encode(&mut changed, asked.version).ok()?;
        }
        Kind::ShareFetch => {
            // Version 2, which the codec does not know, has the same response.
            let mut answer = ShareFetchResponse::decode(&mut body.freeze(), 1).ok()?;
            let partitions = answer.responses.iter_mut().flat_map(|topic| &mut topic.partitions);
            partitions.for_each(|partition| flip(&mut partition.records));
            answer.encode(&mut changed, 1).ok()?;
        }
        Kind::SaslAuthenticate => {
            let mut answer = SaslAuthenticateResponse::decode(&mut body.freeze(), asked.version).ok()?;
            if answer.auth_bytes.starts_with(b"v=") {
                let mut bytes = BytesMut::from(&answer.auth_bytes[..]);
                // Still base64.
                bytes[2] = if bytes[2] == b'A' { b'B' } else { b'A' };
                answer.auth_bytes = bytes.freeze();
            }
            answer.encode(&mut changed, asked.version).ok()?;
        }
        _ => return Some(body),
    }
    Some(changed)
}

fn flip(records: &mut Option<Bytes>) {
    /// Position of the last byte of a batch's checksum.
    const CHECKSUM: usize = 20;
    if let Some(whole) = records.take_if(|records| records.len() > CHECKSUM) {
        let mut bytes = BytesMut::from(&whole[..]);
        bytes[CHECKSUM] ^= 1;
        *records = Some(bytes.freeze());
    }
}
