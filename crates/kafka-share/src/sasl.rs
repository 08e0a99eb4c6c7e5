//! The client's side of SASL: PLAIN, SCRAM and OAUTHBEARER, each as a step machine from the broker's message to the
//! client's next message.
//!
//! Pure, except that SCRAM's nonce comes from the operating system. It sends nothing: the connection carries the
//! messages in SaslHandshake and SaslAuthenticate requests (KIP-43, KIP-152) and reads the error codes of their
//! responses. It also reads no files: the caller passes the secret. Called by the connection; `fuzzing` has the
//! properties that hold for any messages of a broker.

#[cfg(test)]
mod fuzzing;
mod oauthbearer;
mod scram;
#[cfg(test)]
mod tests;

use std::fmt;

use zeroize::Zeroizing;

use oauthbearer::OauthBearer;
pub use scram::SaltedKeys;
use scram::{Hash, Scram};

/// Longest text of a broker that is shown, in characters.
const LONGEST_SHOWN: usize = 200;

/// Kafka's `sasl.mechanism`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mechanism {
    /// User name and password as they are (RFC 4616). Only TLS hides them from the network.
    Plain,
    /// Proof of the password, and the broker's proof in return (RFC 5802, RFC 7677).
    ScramSha256,
    /// Likewise, with SHA-512.
    ScramSha512,
    /// A token that another program has fetched (RFC 7628, KIP-255). Only TLS hides it from the network.
    OauthBearer,
}

impl Mechanism {
    /// All mechanisms of this client.
    pub const ALL: [Self; 4] = [Self::Plain, Self::ScramSha256, Self::ScramSha512, Self::OauthBearer];

    /// The name in SaslHandshake and in Kafka's own configuration.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Plain => "PLAIN",
            Self::ScramSha256 => "SCRAM-SHA-256",
            Self::ScramSha512 => "SCRAM-SHA-512",
            Self::OauthBearer => "OAUTHBEARER",
        }
    }
}

/// A password, or OAUTHBEARER's token. `Debug` hides it, and dropping it overwrites its memory.
pub struct Secret(Zeroizing<Vec<u8>>);

impl Secret {
    pub(super) fn bytes(&self) -> &[u8] {
        &self.0
    }
}

impl From<Vec<u8>> for Secret {
    /// Takes the content of a file. One line break at the end (`\n` or `\r\n`) is removed, since editors and `echo`
    /// append it; a second one is part of the secret.
    fn from(mut bytes: Vec<u8>) -> Self {
        let end = bytes.strip_suffix(b"\n").map(|line| line.strip_suffix(b"\r").unwrap_or(line).len());
        bytes.truncate(end.unwrap_or(bytes.len()));
        Self(Zeroizing::new(bytes))
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("Secret(hidden)")
    }
}

/// Why an exchange failed. The text never contains a secret; text of the broker is escaped and bounded.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SaslFault {
    /// The mechanism needs the user name, password or token.
    #[error("the {0} is empty")]
    Empty(&'static str),
    /// PLAIN carries UTF-8 only (RFC 4616).
    #[error("the password is not UTF-8, which PLAIN needs")]
    NotUtf8,
    /// PLAIN separates its fields by NUL.
    #[error("the {0} has a NUL character, which PLAIN cannot carry")]
    Nul(&'static str),
    /// SCRAM prepares such a user name or password by SASLprep (RFC 4013), which is not built.
    #[error(
        "the {0} has control characters or characters outside ASCII; SCRAM needs SASLprep for these, which this \
         client does not have"
    )]
    NotPrintableAscii(&'static str),
    /// The token has characters that RFC 6750 (section 2.1, `b64token`) does not allow.
    #[error(
        "the token is not a bearer token (RFC 6750): only letters, digits, \"-._~+/\" and then \"=\" are allowed, \
         without spaces and line breaks"
    )]
    NotAToken,
    /// The operating system gives no random bytes for a nonce.
    #[error("the operating system gives no random numbers")]
    NoRandomNumbers,
    /// The broker's message does not fit the mechanism.
    #[error("the broker's SASL message is malformed: {0}")]
    Malformed(&'static str),
    /// The broker asks for a number of iterations that is unsafe or takes too long.
    #[error(
        "the broker asks for {0} iterations of SCRAM; this client takes {least} to {most}",
        least = scram::ITERATIONS.start(),
        most = scram::ITERATIONS.end()
    )]
    Iterations(u64),
    /// The peer could not prove that it knows the user's password.
    #[error("the broker's SCRAM signature is wrong: it does not know the password, so it may be an impostor")]
    ServerSignature,
    /// The broker refuses the login, with this reason.
    #[error("the broker refuses the login: {0}")]
    Refused(String),
    /// The exchange has succeeded or failed before; it takes no further message.
    #[error("the SASL exchange has already ended")]
    Ended,
}

/// One login: messages of the broker in, messages of the client out.
pub struct Exchange {
    machine: Machine,
    ended: bool,
}

enum Machine {
    Plain,
    Scram(Box<Scram>),
    OauthBearer(OauthBearer),
}

impl Exchange {
    /// Begins an exchange. Returns it with the first message to the broker. OAUTHBEARER has no user name and ignores
    /// it; `keys` is for SCRAM.
    ///
    /// # Errors
    /// The user name or secret is empty or cannot be used with this mechanism, or the system has no random numbers.
    pub fn begin(
        mechanism: Mechanism,
        username: &str,
        secret: &Secret,
        keys: &SaltedKeys,
    ) -> Result<(Self, Zeroizing<Vec<u8>>), SaslFault> {
        let begin_scram = |hash| {
            let (scram, message) = Scram::begin(hash, username, secret, keys, scram::random_nonce()?)?;
            Ok((Machine::Scram(Box::new(scram)), message))
        };
        let (machine, message) = match mechanism {
            Mechanism::Plain => (Machine::Plain, plain(username, secret)?),
            Mechanism::ScramSha256 => begin_scram(Hash::Sha256)?,
            Mechanism::ScramSha512 => begin_scram(Hash::Sha512)?,
            Mechanism::OauthBearer => {
                (Machine::OauthBearer(OauthBearer::default()), oauthbearer::first_message(secret)?)
            }
        };
        Ok((Self { machine, ended: false }, message))
    }

    /// Takes the broker's message. Returns the next message, or `None` when the exchange has succeeded. A broker that
    /// reports success earlier has not proved itself.
    ///
    /// SCRAM computes keys for up to a second if the broker asks for many iterations, and cannot be interrupted then.
    ///
    /// # Errors
    /// The message is malformed, the broker refuses the login or fails to prove itself, or the exchange has ended.
    pub fn step(&mut self, challenge: &[u8]) -> Result<Option<Zeroizing<Vec<u8>>>, SaslFault> {
        if self.ended {
            return Err(SaslFault::Ended);
        }
        let result = match &mut self.machine {
            Machine::Plain if challenge.is_empty() => Ok(None),
            Machine::Plain => Err(SaslFault::Malformed("PLAIN has no challenge, but the message is not empty")),
            Machine::Scram(scram) => scram.step(challenge),
            Machine::OauthBearer(bearer) => bearer.step(challenge),
        };
        self.ended = !matches!(result, Ok(Some(_)));
        result
    }

    /// The reason that the broker gave for refusing a token. It comes before the error code of SaslAuthenticate, whose
    /// own message may say less.
    pub fn refusal(&self) -> Option<&str> {
        match &self.machine {
            Machine::OauthBearer(bearer) => bearer.refusal(),
            Machine::Plain | Machine::Scram(_) => None,
        }
    }
}

/// PLAIN's only message (RFC 4616), without an authorization identity.
fn plain(username: &str, secret: &Secret) -> Result<Zeroizing<Vec<u8>>, SaslFault> {
    let password = secret.bytes();
    for (name, bytes) in [("user name", username.as_bytes()), ("password", password)] {
        if bytes.is_empty() {
            return Err(SaslFault::Empty(name));
        }
        if bytes.contains(&0) {
            return Err(SaslFault::Nul(name));
        }
    }
    if str::from_utf8(password).is_err() {
        return Err(SaslFault::NotUtf8);
    }
    // With its full size from the start: growing would leave copies of the password in freed memory.
    let mut message = Zeroizing::new(Vec::with_capacity(username.len() + password.len() + 2));
    message.push(0);
    message.extend_from_slice(username.as_bytes());
    message.push(0);
    message.extend_from_slice(password);
    Ok(message)
}

/// Returns a broker's text for display: control characters escaped, at most [`LONGEST_SHOWN`] characters.
fn shown(text: &[u8]) -> String {
    let text = String::from_utf8_lossy(&text[..text.len().min(4 * LONGEST_SHOWN)]);
    let mut shown = String::new();
    let mut length = 0;
    for character in text.chars() {
        // Quotes stay as they are: a JSON text would become illegible.
        let piece = match character {
            '"' | '\'' => character.to_string(),
            _ => character.escape_debug().to_string(),
        };
        length += piece.chars().count();
        if length > LONGEST_SHOWN {
            break;
        }
        shown.push_str(&piece);
    }
    shown
}
