//! Properties that hold for any bytes from a caller. Called by the fuzz targets (`fuzz/`) and by tests with random
//! bytes; not part of the program.

use super::chunked::{ChunkFault, Chunked};
use super::head::{self, Body, LARGEST_HEAD};

/// Checks that a head has one reading or is refused, for any bytes before and after its end.
///
/// # Panics
/// The property does not hold.
pub(crate) fn head(bytes: &[u8]) {
    let Ok(Some((head, length))) = head::parse(bytes) else { return };
    assert!(length <= bytes.len().min(LARGEST_HEAD), "{length}");
    let own = &bytes[..length];
    assert!(own.ends_with(b"\r\n\r\n"), "the end of the head is unclear");
    for end in [0, length / 3, length / 2, length - 2, length - 1] {
        assert!(matches!(head::parse(&own[..end]), Ok(None)), "the first {end} bytes are accepted");
    }
    let (again, same) = head::parse(&[own, b"\r\nx\n"].concat()).expect("as before").expect("as before");
    assert_eq!((same, again.body), (length, head.body), "following bytes change the reading");
    // Lines by LF, and lines by CRLF, as two readers could count them.
    let of_lf = own.iter().filter(|byte| **byte == b'\n').count();
    assert_eq!(of_lf, own.windows(2).filter(|pair| pair == b"\r\n").count(), "a line ends in two ways");
    let framings = own.split(|byte| *byte == b'\n').filter(|line| {
        let name = line.split(|byte| *byte == b':').next().unwrap_or_default().trim_ascii();
        name.eq_ignore_ascii_case(b"content-length") || name.eq_ignore_ascii_case(b"transfer-encoding")
    });
    let framings = framings.count();
    assert!(framings <= 1, "{framings} fields define the end of the body");
    assert!(framings == 1 || head.body == Body::Length(0), "no field defines the end of the body");
}

/// Checks that a chunked body has the same content, end and fault for every size of the pieces.
///
/// # Panics
/// The property does not hold.
pub(crate) fn chunks(bytes: &[u8]) {
    let whole = decode(bytes, bytes.len().max(1));
    for piece in [1, 2, 3, 7, 64] {
        assert_eq!(decode(bytes, piece), whole, "in pieces of {piece}");
    }
    if let Ok((content, rest, true)) = &whole {
        assert!(content.len() + rest < bytes.len(), "a body ends with a line of its own coding");
        let body = &bytes[..bytes.len() - rest];
        assert_eq!(decode(body, body.len()), Ok((content.clone(), 0, true)), "following bytes change the reading");
        let begun = decode(&body[..body.len() - 1], body.len());
        assert!(begun.is_ok_and(|(_, _, done)| !done), "the body is complete before its end");
    }
}

/// Returns the content, the number of bytes after the body, and whether the body is complete.
fn decode(bytes: &[u8], piece: usize) -> Result<(Vec<u8>, usize, bool), ChunkFault> {
    let (mut chunked, mut content, mut used) = (Chunked::new(), Vec::new(), 0);
    for piece in bytes.chunks(piece) {
        if chunked.is_done() {
            break;
        }
        used += chunked.decode(piece, |bytes| content.extend_from_slice(bytes))?;
    }
    Ok((content, bytes.len() - used, chunked.is_done()))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use proptest::sample::select;

    const HEAD: [&[u8]; 16] = [
        b"GET / HTTP/1.1\r\n",
        b"POST /analyze HTTP/1.0\r\n",
        b"Host: x\r\n",
        b"Content-Length: 5\r\n",
        b"content-length:\t7 \r\n",
        b"Transfer-Encoding: chunked\r\n",
        b"Connection: close\r\n",
        b"X: y\r\n",
        b" folded\r\n",
        b"\r\n",
        b"\r\n\r\n",
        b"\n",
        b"\r",
        b"\0",
        b":",
        b"\xff",
    ];
    const CHUNKS: [&[u8]; 14] = [
        b"5\r\nhello\r\n",
        b"0\r\n\r\n",
        b"00\r\n",
        b"a;x=y\r\n0123456789\r\n",
        b"1\r\nx\r\n",
        b"X: y\r\n",
        b"\r\n",
        b"\n",
        b"\r",
        b";",
        b"f",
        b" ",
        b"\0",
        b"\xff",
    ];

    fn drawn(pieces: &'static [&'static [u8]]) -> impl Strategy<Value = Vec<u8>> {
        proptest::collection::vec(select(pieces), 0..12).prop_map(|pieces| pieces.concat())
    }

    proptest! {
        #[test]
        fn random_heads_have_one_reading(bytes in drawn(&HEAD)) {
            super::head(&bytes);
        }

        #[test]
        fn random_bodies_are_the_same_for_every_size_of_the_pieces(bytes in drawn(&CHUNKS)) {
            super::chunks(&bytes);
        }
    }
}
