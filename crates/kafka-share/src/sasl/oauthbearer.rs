//! OAUTHBEARER (RFC 7628, KIP-255): one message with the token, and the broker's reason if it refuses the token.
//!
//! Pure. It does not fetch, refresh or read tokens. Called by [`Exchange`](super::Exchange).

use zeroize::Zeroizing;

use super::{SaslFault, Secret, shown};

/// Separates the fields of the client's messages (`kvsep` in RFC 7628, section 3.1), and acknowledges a refusal.
const SEPARATOR: &[u8] = b"\x01";

/// An exchange whose token has been sent.
#[derive(Default)]
pub(super) struct OauthBearer {
    refusal: Option<String>,
}

/// The message with the token: no channel binding, no authorization identity, and neither host nor port, which Kafka
/// does not read.
pub(super) fn first_message(secret: &Secret) -> Result<Zeroizing<Vec<u8>>, SaslFault> {
    let token = secret.bytes();
    if token.is_empty() {
        return Err(SaslFault::Empty("token"));
    }
    if !is_b64token(token) {
        return Err(SaslFault::NotAToken);
    }
    // One allocation: growing would leave copies of the token in freed memory.
    let parts: [&[u8]; 6] = [b"n,,", SEPARATOR, b"auth=Bearer ", token, SEPARATOR, SEPARATOR];
    Ok(Zeroizing::new(parts.concat()))
}

/// RFC 6750, section 2.1.
fn is_b64token(token: &[u8]) -> bool {
    let padding = token.iter().rev().take_while(|byte| **byte == b'=').count();
    let text = &token[..token.len() - padding];
    !text.is_empty() && text.iter().all(|byte| byte.is_ascii_alphanumeric() || b"-._~+/".contains(byte))
}

impl OauthBearer {
    /// An empty message is success. Any other is the broker's reason, which the client has to acknowledge before the
    /// broker fails the exchange (RFC 7628, section 3.2.3).
    pub(super) fn step(&mut self, challenge: &[u8]) -> Result<Option<Zeroizing<Vec<u8>>>, SaslFault> {
        if let Some(refusal) = &self.refusal {
            return Err(SaslFault::Refused(refusal.clone()));
        }
        if challenge.is_empty() {
            return Ok(None);
        }
        self.refusal = Some(shown(status(challenge).unwrap_or(challenge)));
        Ok(Some(Zeroizing::new(SEPARATOR.to_vec())))
    }

    pub(super) fn refusal(&self) -> Option<&str> {
        self.refusal.as_deref()
    }
}

/// Finds `"status":"..."` in the broker's JSON. Returns `None` for a status with escapes and for anything unexpected:
/// then the whole text is shown.
fn status(json: &[u8]) -> Option<&[u8]> {
    let json = str::from_utf8(json).ok()?;
    let (_, rest) = json.split_once("\"status\"")?;
    let rest = rest.trim_start().strip_prefix(':')?.trim_start().strip_prefix('"')?;
    let (status, _) = rest.split_once('"')?;
    (!status.is_empty() && !status.contains('\\')).then_some(status.as_bytes())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn secret(token: &str) -> Secret {
        Secret::from(token.as_bytes().to_vec())
    }

    /// The token of RFC 7628, section 4.1.
    const TOKEN: &str = "vF9dft4qmTc2Nvb3RlckBhbHRhdmlzdGEuY29tCg==";

    #[test]
    fn message_has_the_form_of_rfc_7628() {
        let message = first_message(&secret(TOKEN)).expect("a token");
        // Section 4.1 without its authorization identity, host and port.
        let expected = format!("n,,\x01auth=Bearer {TOKEN}\x01\x01");
        assert_eq!(message.as_slice(), expected.as_bytes());
    }

    #[test]
    fn only_bearer_tokens_are_taken() {
        for token in ["a", "a=", "a==", "aZ09-._~+/", "eyJhbGciOiJub25lIn0.eyJzdWIiOiJhIn0."] {
            assert!(first_message(&secret(token)).is_ok(), "{token}");
        }
        assert_eq!(first_message(&secret("")).err(), Some(SaslFault::Empty("token")));
        assert_eq!(first_message(&secret("\n")).err(), Some(SaslFault::Empty("token")));
        for token in ["=", "a=b", "a b", " a", "a\n\n", "a\x01auth=Bearer b", "a\0", "a,b", "a\"", "é", "Bearer a"] {
            assert_eq!(first_message(&secret(token)).err(), Some(SaslFault::NotAToken), "{token:?}");
        }
    }

    #[test]
    fn empty_message_is_success() {
        let mut bearer = OauthBearer::default();
        assert_eq!(bearer.step(b""), Ok(None));
        assert_eq!(bearer.refusal(), None);
    }

    #[test]
    fn refusal_is_acknowledged_and_fails_whatever_comes_next() {
        // The message of RFC 7628, section 4.3.
        let json = br#"{"status":"invalid_token","scope":"example_scope",
            "openid-configuration":"https://example.com/.well-known/openid-configuration"}"#;
        for next in [&b""[..], b"{}", json] {
            let mut bearer = OauthBearer::default();
            assert_eq!(bearer.step(json), Ok(Some(Zeroizing::new(vec![1]))));
            assert_eq!(bearer.refusal(), Some("invalid_token"));
            assert_eq!(bearer.step(next), Err(SaslFault::Refused("invalid_token".to_owned())));
        }
    }

    #[test]
    fn status_is_taken_out_and_anything_unexpected_is_shown_whole() {
        for (message, expected) in [
            (r#"{ "scope" : "x", "status" : "insufficient_scope" }"#, "insufficient_scope"),
            (r#"{"status":""}"#, r#"{"status":""}"#),
            (r#"{"status":7}"#, r#"{"status":7}"#),
            (r#"{"status":"open"#, r#"{"status":"open"#),
            (r#"{"status":"a\"b"}"#, r#"{"status":"a\\"b"}"#),
            ("\"status\"", "\"status\""),
            ("no JSON\n\x1b[31m", "no JSON\\n\\u{1b}[31m"),
        ] {
            let mut bearer = OauthBearer::default();
            assert!(bearer.step(message.as_bytes()).is_ok_and(|next| next.is_some()), "{message}");
            assert_eq!(bearer.refusal(), Some(expected));
        }
    }
}
