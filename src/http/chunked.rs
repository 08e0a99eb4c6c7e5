//! The chunked transfer coding of a body (RFC 9112 section 7.1), decoded piece by piece.
//!
//! Pure: bytes go in, content comes out. Sizes, extensions and trailers are bounded, so an endless one is a fault.
//! Lines end only with CR LF: if a proxy found another end, the rest of a body would become another caller's request.
//! Extensions and trailers are dropped. Called by [`connection`](super::connection).

/// At most this many hexadecimal digits in a chunk's size.
const MOST_DIGITS: u8 = 16;
/// At most this many bytes in all extensions of one body.
const MOST_EXTENSION: usize = 1024;
/// At most this many bytes in the trailers of one body.
const MOST_TRAILER: usize = 8 * 1024;

/// The state of the decoder.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    /// In a size, of which this many digits were read.
    Size(u8),
    Extension,
    /// After the CR of the size's line.
    SizeEnd,
    Data,
    /// After the data of a chunk, and after the CR that follows them.
    DataEnd,
    DataEndLf,
    /// At the beginning of a line of the trailer, within it, and after its CR.
    Trailer,
    TrailerField,
    TrailerFieldEnd,
    /// After the CR of the empty line.
    End,
    Done,
}

/// The fault of a body, as the end of a sentence about it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum ChunkFault {
    #[error("a chunk's size is not 1 to 16 hexadecimal digits")]
    Size,
    #[error("the extensions of its chunks are over {MOST_EXTENSION} bytes")]
    LongExtension,
    #[error("a line of its chunks does not end with CR LF")]
    LineEnd,
    #[error("its trailer is over {MOST_TRAILER} bytes")]
    LongTrailer,
    #[error("its trailer has a line that is not a field")]
    TrailerField,
}

/// A decoder of one body.
#[derive(Debug)]
pub(super) struct Chunked {
    state: State,
    /// The size that is being read, then the bytes left in the chunk.
    left: u64,
    extension: usize,
    trailer: usize,
    /// Whether the present line of the trailer has had its colon.
    named: bool,
}

impl Chunked {
    pub(super) fn new() -> Self {
        Self { state: State::Size(0), left: 0, extension: 0, trailer: 0, named: false }
    }

    /// Whether the body is complete.
    pub(super) fn is_done(&self) -> bool {
        self.state == State::Done
    }

    /// Decodes these bytes and passes the content to `content`. Returns how many of them belong to the body.
    ///
    /// # Errors
    /// The body is not well-formed, so its end is unknown.
    pub(super) fn decode(&mut self, bytes: &[u8], mut content: impl FnMut(&[u8])) -> Result<usize, ChunkFault> {
        let mut at = 0;
        while at < bytes.len() && self.state != State::Done {
            if self.state == State::Data {
                let length = usize::try_from(self.left).map_or(bytes.len() - at, |left| left.min(bytes.len() - at));
                content(&bytes[at..at + length]);
                at += length;
                self.left -= length as u64;
                if self.left == 0 {
                    self.state = State::DataEnd;
                }
                continue;
            }
            self.state = self.step(bytes[at])?;
            at += 1;
        }
        Ok(at)
    }

    fn step(&mut self, byte: u8) -> Result<State, ChunkFault> {
        match (self.state, byte) {
            (State::Size(digits), _) if byte.is_ascii_hexdigit() => {
                if digits == MOST_DIGITS {
                    return Err(ChunkFault::Size);
                }
                let digit = char::from(byte).to_digit(16).unwrap_or_default();
                // Sixteen digits fit into 64 bits.
                self.left = self.left << 4 | u64::from(digit);
                Ok(State::Size(digits + 1))
            }
            (State::Size(0), _) => Err(ChunkFault::Size),
            (State::Size(_) | State::Extension, b'\r') => Ok(State::SizeEnd),
            (State::Size(_), b';') => Ok(State::Extension),
            (State::Size(_), _) => Err(ChunkFault::Size),
            (State::Extension, b'\n') => Err(ChunkFault::LineEnd),
            (State::Extension, _) => {
                self.extension += 1;
                if self.extension > MOST_EXTENSION { Err(ChunkFault::LongExtension) } else { Ok(State::Extension) }
            }
            (State::SizeEnd, b'\n') if self.left == 0 => Ok(State::Trailer),
            (State::SizeEnd, b'\n') => Ok(State::Data),
            (State::DataEnd, b'\r') => Ok(State::DataEndLf),
            (State::DataEndLf, b'\n') => Ok(State::Size(0)),
            (State::Trailer, b'\r') => Ok(State::End),
            (State::Trailer | State::TrailerField, _) => self.trailer_byte(byte),
            (State::TrailerFieldEnd, b'\n') => Ok(State::Trailer),
            (State::End, b'\n') => Ok(State::Done),
            (_, _) => Err(ChunkFault::LineEnd),
        }
    }

    fn trailer_byte(&mut self, byte: u8) -> Result<State, ChunkFault> {
        self.trailer += 1;
        if self.trailer > MOST_TRAILER {
            return Err(ChunkFault::LongTrailer);
        }
        if self.state == State::Trailer {
            self.named = false;
        }
        match byte {
            b'\n' => Err(ChunkFault::LineEnd),
            b'\r' if self.named => Ok(State::TrailerFieldEnd),
            b':' if self.state == State::TrailerField => {
                self.named = true;
                Ok(State::TrailerField)
            }
            _ if self.named || is_token(byte) => Ok(State::TrailerField),
            _ => Err(ChunkFault::TrailerField),
        }
    }
}

/// Whether a field's name may contain this byte (RFC 9110 section 5.6.2).
pub(super) fn is_token(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&byte)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Decodes in pieces. Returns the content, the bytes left after the body, and whether it is complete.
    fn decode(body: &[u8], piece: usize) -> Result<(Vec<u8>, usize, bool), ChunkFault> {
        let (mut chunked, mut content, mut used) = (Chunked::new(), Vec::new(), 0);
        for piece in body.chunks(piece) {
            if chunked.is_done() {
                break;
            }
            used += chunked.decode(piece, |bytes| content.extend_from_slice(bytes))?;
        }
        Ok((content, body.len() - used, chunked.is_done()))
    }

    #[test]
    fn content_is_the_same_for_every_size_of_the_pieces() {
        let body = b"5;a=b;c=\"d\"\r\nhello\r\n00A\r\n0123456789\r\n0\r\nX-Sum: 1\r\nY:\r\n\r\nGET /";
        for piece in 1..=body.len() {
            let (content, rest, done) = decode(body, piece).expect("well-formed");
            assert_eq!((content.as_slice(), rest, done), (&b"hello0123456789"[..], 5, true), "{piece}");
        }
    }

    #[test]
    fn incomplete_body_is_not_done() {
        for body in ["", "5", "5\r\nhel", "5\r\nhello\r\n", "0\r\n", "0\r\nA: b\r\n", "0\r\n\r"] {
            assert!(!decode(body.as_bytes(), 3).expect("well-formed so far").2, "{body:?}");
        }
    }

    #[test]
    fn ambiguous_body_is_a_fault() {
        let table: [(&str, ChunkFault); 22] = [
            ("\r\n", ChunkFault::Size),
            ("+5\r\nhello", ChunkFault::Size),
            ("-0\r\n", ChunkFault::Size),
            (" 5\r\nhello", ChunkFault::Size),
            ("5 \r\nhello", ChunkFault::Size),
            ("0x5\r\nhello", ChunkFault::Size),
            ("g\r\n", ChunkFault::Size),
            (";a\r\n", ChunkFault::Size),
            ("00000000000000005\r\nhello", ChunkFault::Size),
            ("5\nhello", ChunkFault::Size),
            ("5\rhello", ChunkFault::LineEnd),
            ("5;a\nhello", ChunkFault::LineEnd),
            ("5;a\rb\r\nhello", ChunkFault::LineEnd),
            ("5\r\nhello\n", ChunkFault::LineEnd),
            ("5\r\nhello5\r\n", ChunkFault::LineEnd),
            ("5\r\nhello\rx", ChunkFault::LineEnd),
            ("0\r\n\n", ChunkFault::LineEnd),
            ("0\r\n\rx", ChunkFault::LineEnd),
            ("0\r\nA: b\n", ChunkFault::LineEnd),
            ("0\r\nA: b\rc", ChunkFault::LineEnd),
            ("0\r\n A: b\r\n", ChunkFault::TrailerField),
            ("0\r\nno colon\r\n", ChunkFault::TrailerField),
        ];
        for (body, fault) in table {
            assert_eq!(decode(body.as_bytes(), 1), Err(fault), "{body:?}");
            assert_eq!(decode(body.as_bytes(), 64), Err(fault), "{body:?}");
        }
    }

    #[test]
    fn sizes_extensions_and_trailers_are_bounded() {
        let endless = |begin: &str, more: &str| decode((begin.to_owned() + &more.repeat(64 * 1024)).as_bytes(), 4096);
        assert_eq!(endless("", "1"), Err(ChunkFault::Size));
        assert_eq!(endless("1;", "x"), Err(ChunkFault::LongExtension));
        assert_eq!(endless("", "1;x\r\na\r\n"), Err(ChunkFault::LongExtension), "over all chunks");
        assert_eq!(endless("0\r\nA: ", "x"), Err(ChunkFault::LongTrailer));
        assert_eq!(endless("0\r\n", "A: b\r\n"), Err(ChunkFault::LongTrailer));
    }

    proptest::proptest! {
        #[test]
        fn encoded_body_is_decoded_to_its_content(chunks in proptest::collection::vec(proptest::collection::vec(0u8.., 1..300), 0..8), piece in 1usize..400) {
            let mut body = Vec::new();
            for chunk in &chunks {
                body.extend_from_slice(format!("{:x}\r\n", chunk.len()).as_bytes());
                body.extend_from_slice(chunk);
                body.extend_from_slice(b"\r\n");
            }
            body.extend_from_slice(b"0\r\n\r\n");
            proptest::prop_assert_eq!(decode(&body, piece), Ok((chunks.concat(), 0, true)));
        }
    }
}
