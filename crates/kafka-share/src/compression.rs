//! Codecs of record batches as Kafka's Java client writes them: gzip, snappy in xerial's blocks, LZ4 frames, zstd.
//!
//! Handles bytes only; [`records`](super::records) handles batches. Unpacking takes a limit, so a small batch cannot
//! take all memory. Called by `records` to read what other producers compressed, and by the embedded broker for
//! `compression.type`.

use std::io::{self, Read, Write};

use bytes::Bytes;
use flate2::read::MultiGzDecoder;
use flate2::write::GzEncoder;
use lz4_flex::frame::{BlockMode, BlockSize, FrameDecoder as Lz4Decoder, FrameEncoder as Lz4Encoder, FrameInfo};
use ruzstd::decoding::StreamingDecoder;
use ruzstd::encoding::{CompressionLevel, compress_to_vec};

/// Bits of a batch's attributes that name its codec.
pub const CODEC_BITS: i16 = 0b111;

/// How the records of a batch are compressed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Codec {
    /// `gzip`
    Gzip,
    /// `snappy`
    Snappy,
    /// `lz4`
    Lz4,
    /// `zstd`
    Zstd,
}

/// Why compressed bytes were not unpacked.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum UnpackError {
    /// The codec cannot read the bytes.
    #[error("malformed: {0}")]
    Malformed(String),
    /// The unpacked bytes exceed the limit.
    #[error("longer than {0} bytes when unpacked")]
    TooLong(usize),
}

impl From<io::Error> for UnpackError {
    fn from(error: io::Error) -> Self {
        Self::Malformed(error.to_string())
    }
}

/// The first bytes of xerial's stream: magic, version 1, compatible with version 1.
const XERIAL: &[u8; 16] = b"\x82SNAPPY\0\0\0\0\x01\0\0\0\x01";
/// Bytes of one block of xerial's stream before compression, as its writer's default.
const XERIAL_BLOCK: usize = 32 * 1024;

impl Codec {
    /// All codecs, in the order of their bits.
    pub const ALL: [Self; 4] = [Self::Gzip, Self::Snappy, Self::Lz4, Self::Zstd];

    /// Returns the codec named in a batch's attributes; `Ok(None)` for a batch without compression.
    ///
    /// # Errors
    /// The bits of an unknown codec.
    pub fn of_attributes(attributes: i16) -> Result<Option<Self>, i16> {
        match attributes & CODEC_BITS {
            0 => Ok(None),
            bits => Self::ALL.into_iter().find(|codec| codec.bits() == bits).map(Some).ok_or(bits),
        }
    }

    /// Its bits in a batch's attributes.
    pub fn bits(self) -> i16 {
        match self {
            Self::Gzip => 1,
            Self::Snappy => 2,
            Self::Lz4 => 3,
            Self::Zstd => 4,
        }
    }

    /// Its name as a value of `compression.type`.
    pub fn name(self) -> &'static str {
        match self {
            Self::Gzip => "gzip",
            Self::Snappy => "snappy",
            Self::Lz4 => "lz4",
            Self::Zstd => "zstd",
        }
    }

    /// Compresses the bytes at the codec's default level; zstd at its fastest, the only level of `ruzstd`.
    ///
    /// # Errors
    /// The codec refuses the bytes; no codec refuses bytes in memory.
    pub fn pack(self, plain: &[u8]) -> io::Result<Vec<u8>> {
        match self {
            Self::Gzip => {
                let mut encoder = GzEncoder::new(Vec::new(), flate2::Compression::default());
                encoder.write_all(plain)?;
                encoder.finish()
            }
            Self::Snappy => pack_xerial(plain),
            Self::Lz4 => {
                // Java reads independent blocks only.
                let info = FrameInfo::new().block_mode(BlockMode::Independent).block_size(BlockSize::Max64KB);
                let mut encoder = Lz4Encoder::with_frame_info(info, Vec::new());
                encoder.write_all(plain)?;
                encoder.finish().map_err(io::Error::other)
            }
            Self::Zstd => Ok(compress_to_vec(plain, CompressionLevel::Fastest)),
        }
    }

    /// Unpacks the bytes, to at most `most` bytes.
    ///
    /// # Errors
    /// [`UnpackError`]
    pub fn unpack(self, packed: &[u8], most: usize) -> Result<Bytes, UnpackError> {
        match self {
            Self::Gzip => read_all(MultiGzDecoder::new(packed), most),
            Self::Snappy => unpack_snappy(packed, most),
            Self::Lz4 => read_all(Lz4Decoder::new(packed), most),
            Self::Zstd => unpack_zstd(packed, most),
        }
    }
}

fn read_all(reader: impl Read, most: usize) -> Result<Bytes, UnpackError> {
    let mut plain = Vec::new();
    let limit = u64::try_from(most).unwrap_or(u64::MAX).saturating_add(1);
    reader.take(limit).read_to_end(&mut plain)?;
    if plain.len() > most { Err(UnpackError::TooLong(most)) } else { Ok(plain.into()) }
}

/// Unpacks one zstd frame. A frame names its window: how far back it refers, and so how many bytes its decoder keeps.
/// Java names up to 128 MiB at high levels, even for short content. Content within the limit refers back at most as far
/// as the limit, so a larger window is lowered.
fn unpack_zstd(packed: &[u8], most: usize) -> Result<Bytes, UnpackError> {
    /// Position of the window in a frame without the flag of a single segment in the byte before (RFC 8878, 3.1.1.1).
    const WINDOW: usize = 5;
    const SINGLE_SEGMENT: u8 = 1 << 5;
    // A window is 1 KiB times two to the power of the upper five bits.
    let exponent = most.div_ceil(1024).max(1).next_power_of_two().ilog2();
    let least = u8::try_from(exponent << 3).unwrap_or(u8::MAX);
    let head = packed.get(..=WINDOW).ok_or_else(|| UnpackError::Malformed("cut".into()))?;
    let window = [if head[WINDOW - 1] & SINGLE_SEGMENT == 0 { head[WINDOW].min(least) } else { head[WINDOW] }];
    let bytes = packed[..WINDOW].chain(&window[..]).chain(&packed[WINDOW + 1..]);
    let decoder = StreamingDecoder::new_with_max_window_size(bytes, 1024 << exponent);
    read_all(decoder.map_err(io::Error::other)?, most)
}

fn pack_xerial(plain: &[u8]) -> io::Result<Vec<u8>> {
    let mut packed = XERIAL.to_vec();
    let mut encoder = snap::raw::Encoder::new();
    for block in plain.chunks(XERIAL_BLOCK) {
        let block = encoder.compress_vec(block)?;
        packed.extend_from_slice(&u32::try_from(block.len()).map_err(io::Error::other)?.to_be_bytes());
        packed.extend_from_slice(&block);
    }
    Ok(packed)
}

/// Unpacks xerial's stream of blocks, which Java writes, or one raw block, which other clients may write and Java
/// reads, too.
fn unpack_snappy(packed: &[u8], most: usize) -> Result<Bytes, UnpackError> {
    let mut plain = Vec::new();
    let Some(mut rest) = packed.strip_prefix(XERIAL) else {
        unpack_block(packed, &mut plain, most)?;
        return Ok(plain.into());
    };
    while let Some((length, after)) = rest.split_first_chunk::<4>() {
        let length = usize::try_from(u32::from_be_bytes(*length)).unwrap_or(usize::MAX);
        let (block, after) = after.split_at_checked(length).ok_or_else(|| UnpackError::Malformed("cut".into()))?;
        unpack_block(block, &mut plain, most)?;
        rest = after;
    }
    if rest.is_empty() { Ok(plain.into()) } else { Err(UnpackError::Malformed("cut".into())) }
}

fn unpack_block(block: &[u8], plain: &mut Vec<u8>, most: usize) -> Result<(), UnpackError> {
    let malformed = |error: snap::Error| UnpackError::Malformed(error.to_string());
    let begin = plain.len();
    let end = begin.saturating_add(snap::raw::decompress_len(block).map_err(malformed)?);
    if end > most {
        return Err(UnpackError::TooLong(most));
    }
    plain.resize(end, 0);
    snap::raw::Decoder::new().decompress(block, &mut plain[begin..]).map_err(malformed)?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const MOST: usize = 1 << 20;

    #[test]
    fn each_codec_unpacks_its_own_output() {
        let plain: Vec<u8> = (0..200_000_u32).flat_map(|number| (number / 7 % 1000).to_be_bytes()).collect();
        for codec in Codec::ALL {
            for plain in [&plain[..], b"", b"x"] {
                let packed = codec.pack(plain).expect("packed");
                assert_eq!(codec.unpack(&packed, MOST).as_deref(), Ok(plain), "{codec:?}");
                assert!(plain.len() < 100 || packed.len() < plain.len() / 2, "{codec:?}: {} bytes", packed.len());
            }
            assert_eq!(Codec::of_attributes(codec.bits() | 1 << 3), Ok(Some(codec)));
        }
        assert_eq!((Codec::of_attributes(1 << 4), Codec::of_attributes(7)), (Ok(None), Err(7)));
    }

    #[test]
    fn bytes_that_unpack_to_more_than_the_limit_are_refused() {
        let plain = vec![0; MOST + 1];
        for codec in Codec::ALL {
            let packed = codec.pack(&plain).expect("packed");
            assert!(packed.len() < MOST / 20, "{codec:?}: {} bytes", packed.len());
            assert_eq!(codec.unpack(&packed, MOST), Err(UnpackError::TooLong(MOST)), "{codec:?}");
            assert_eq!(codec.unpack(&packed, MOST + 1).expect("within the limit").len(), MOST + 1, "{codec:?}");
        }
    }

    /// `zstd -22 --ultra --long=27` of 5 bytes on a pipe: the frame asks for a window of 128 MiB.
    #[test]
    fn zstd_frame_with_large_window_is_unpacked_within_limit() {
        let packed = b"\x28\xb5\x2f\xfd\x00\x88\x29\x00\x00hello";
        assert_eq!(Codec::Zstd.unpack(packed, MOST).as_deref(), Ok(&b"hello"[..]));
        assert_eq!(Codec::Zstd.unpack(packed, 4), Err(UnpackError::TooLong(4)));
    }

    #[test]
    fn raw_snappy_block_is_unpacked() {
        let packed = snap::raw::Encoder::new().compress_vec(b"hello").expect("packed");
        assert_eq!(Codec::Snappy.unpack(&packed, 5).as_deref(), Ok(&b"hello"[..]));
        assert_eq!(Codec::Snappy.unpack(&packed, 4), Err(UnpackError::TooLong(4)));
    }

    #[test]
    fn truncated_input_is_an_error_or_a_prefix() {
        let plain = b"some bytes of some length, some bytes";
        for codec in Codec::ALL {
            let packed = codec.pack(plain).expect("packed");
            for length in 1..packed.len() {
                // LZ4's end mark and xerial's next block can be missing without an error.
                if let Ok(unpacked) = codec.unpack(&packed[..length], MOST) {
                    assert!(plain.starts_with(&unpacked), "{codec:?} cut at {length}: {unpacked:?}");
                    assert!(matches!(codec, Codec::Lz4 | Codec::Snappy), "{codec:?} cut at {length}");
                }
            }
        }
    }

    proptest! {
        #[test]
        fn no_input_makes_a_codec_panic(
            plain in prop::collection::vec(any::<u8>(), 0..300),
            changes in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 0..6),
        ) {
            for codec in Codec::ALL {
                let mut packed = codec.pack(&plain).expect("packed");
                for (at, byte) in &changes {
                    let at = at.index(packed.len());
                    packed[at] = *byte;
                }
                let unpacked = codec.unpack(&packed, MOST);
                prop_assert!(!changes.is_empty() || unpacked.as_deref() == Ok(&plain[..]));
                let _ = codec.unpack(&plain, MOST);
            }
        }
    }
}
