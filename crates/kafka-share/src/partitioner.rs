//! Chooses the partition of a record like Kafka's own producers (`BuiltInPartitioner`), so that a key has the same
//! partition with both.
//!
//! Pure. Called by the producer.

/// Returns the partition, counted from 0, among `count` partitions. A record without a key gets a random one.
pub fn partition(key: Option<&[u8]>, count: i32) -> i32 {
    match key {
        Some(key) => (murmur2(key) & i32::MAX) % count.max(1),
        None => fastrand::i32(0..count.max(1)),
    }
}

/// `org.apache.kafka.common.utils.Utils.murmur2`.
fn murmur2(data: &[u8]) -> i32 {
    const MIX: u32 = 0x5bd1_e995;
    const SEED: u32 = 0x9747_b28c;
    // Java's length is an int; keys are far below 2^31 bytes.
    let mut hash = SEED ^ data.len() as u32;
    let (words, tail) = data.as_chunks::<4>();
    for word in words {
        let mut mixed = u32::from_le_bytes(*word).wrapping_mul(MIX);
        mixed ^= mixed >> 24;
        hash = hash.wrapping_mul(MIX) ^ mixed.wrapping_mul(MIX);
    }
    if !tail.is_empty() {
        for (index, byte) in tail.iter().enumerate() {
            hash ^= u32::from(*byte) << (8 * index);
        }
        hash = hash.wrapping_mul(MIX);
    }
    hash ^= hash >> 13;
    hash = hash.wrapping_mul(MIX);
    (hash ^ (hash >> 15)).cast_signed()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hash_equals_javas() {
        // The values of Kafka's own UtilsTest.
        for (text, hash) in [
            ("21", -973_932_308),
            ("foobar", -790_332_482),
            ("a-little-bit-long-string", -985_981_536),
            ("a-little-bit-longer-string", -1_486_304_829),
            ("lkjh234lh9fiuh90y23oiuhsafujhadof229phr9h19h89h8", -58_897_971),
            ("abc", 479_470_107),
        ] {
            assert_eq!(murmur2(text.as_bytes()), hash, "{text}");
        }
    }

    #[test]
    fn key_always_gets_the_same_partition_and_no_key_gets_any() {
        // toPositive(-973932308) = 1173551340
        assert_eq!(partition(Some(b"21"), 7), 1_173_551_340 % 7);
        assert_eq!(partition(Some(b"21"), 1), 0);
        for _ in 0..100 {
            assert!((0..3).contains(&partition(None, 3)));
        }
    }
}
