//! SCRAM (RFC 5802) with SHA-256 (RFC 7677) and SHA-512, without channel binding: the client proves that it knows the
//! password, then the broker does.
//!
//! Pure, except for [`random_nonce`]. It has no SASLprep, so it refuses user names and passwords outside printable
//! ASCII. Passwords and salted passwords are overwritten when dropped; the HMAC states inside `ring` are not, since it
//! offers no way. Called by [`Exchange`](super::Exchange).

use std::collections::VecDeque;
use std::fmt;
use std::num::NonZeroU32;
use std::ops::RangeInclusive;
use std::sync::Arc;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use parking_lot::Mutex;
use ring::rand::{SecureRandom, SystemRandom};
use ring::{digest, hmac, pbkdf2};
use zeroize::Zeroizing;

use super::{SaslFault, Secret, shown};

/// Iterations that a broker may ask for. RFC 7677 (section 4) and Kafka's `ScramMechanism` want at least 4096. In a
/// release build 4096 take 1 ms with SHA-256 and 2 ms with SHA-512, and a million 0.3 s and 0.8 s.
pub(super) const ITERATIONS: RangeInclusive<u64> = 4096..=1_000_000;

/// Random bytes of a nonce: 32 characters of base64, without padding.
const NONCE_BYTES: usize = 24;

/// Salted passwords that are kept. All brokers of a cluster have the same salt for a user, so that one is enough,
/// and two during a rotation.
const KEPT_KEYS: usize = 4;

/// The first message's beginning: no channel binding, no authorization identity.
const GS2_HEADER: &str = "n,,";

/// The hash function of a mechanism.
#[derive(Clone, Copy)]
pub(super) enum Hash {
    Sha256,
    Sha512,
}

impl Hash {
    fn hmac(self) -> hmac::Algorithm {
        match self {
            Self::Sha256 => hmac::HMAC_SHA256,
            Self::Sha512 => hmac::HMAC_SHA512,
        }
    }

    fn pbkdf2(self) -> pbkdf2::Algorithm {
        match self {
            Self::Sha256 => pbkdf2::PBKDF2_HMAC_SHA256,
            Self::Sha512 => pbkdf2::PBKDF2_HMAC_SHA512,
        }
    }

    fn digest(self) -> &'static digest::Algorithm {
        self.hmac().digest_algorithm()
    }
}

/// Salted passwords of the last logins, so that a further login of the same user computes no PBKDF2. Clones share
/// them. Dropping them overwrites their memory.
#[derive(Clone, Default)]
pub struct SaltedKeys(Arc<Mutex<Cache>>);

#[derive(Default)]
struct Cache {
    entries: VecDeque<Salted>,
    #[cfg(test)]
    computed: usize,
}

struct Salted {
    /// HMAC of iterations and salt under the password, by the mechanism's hash function. It identifies all four
    /// without keeping the password.
    origin: Zeroizing<Vec<u8>>,
    password: Zeroizing<Vec<u8>>,
}

impl SaltedKeys {
    /// RFC 5802's `SaltedPassword`. Logins that begin together wait for one computation: the lock is held meanwhile.
    fn salted_password(&self, hash: Hash, password: &[u8], salt: &[u8], iterations: NonZeroU32) -> Zeroizing<Vec<u8>> {
        let key = hmac::Key::new(hash.hmac(), password);
        let origin = [&iterations.get().to_be_bytes(), salt].concat();
        let mut cache = self.0.lock();
        if let Some(known) = cache.entries.iter().find(|known| hmac::verify(&key, &origin, &known.origin).is_ok()) {
            return known.password.clone();
        }
        let mut salted = Zeroizing::new(vec![0; hash.digest().output_len()]);
        pbkdf2::derive(hash.pbkdf2(), iterations, salt, password, &mut salted);
        if cache.entries.len() >= KEPT_KEYS {
            cache.entries.pop_front();
        }
        let origin = Zeroizing::new(hmac::sign(&key, &origin).as_ref().to_vec());
        cache.entries.push_back(Salted { origin, password: salted.clone() });
        #[cfg(test)]
        {
            cache.computed += 1;
        }
        salted
    }
}

impl fmt::Debug for SaltedKeys {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("SaltedKeys(hidden)")
    }
}

/// An exchange after its first message.
pub(super) struct Scram {
    hash: Hash,
    password: Zeroizing<Vec<u8>>,
    keys: SaltedKeys,
    nonce: String,
    state: State,
}

enum State {
    /// The client's first message without its header is sent.
    First { bare: String },
    /// The proof is sent. The broker's signature has to cover `signed`.
    Proof { server_key: hmac::Key, signed: String },
}

impl Scram {
    /// Begins an exchange with a nonce of printable characters without commas.
    pub(super) fn begin(
        hash: Hash,
        username: &str,
        secret: &Secret,
        keys: &SaltedKeys,
        nonce: String,
    ) -> Result<(Self, Zeroizing<Vec<u8>>), SaslFault> {
        for (name, bytes) in [("user name", username.as_bytes()), ("password", secret.bytes())] {
            if bytes.is_empty() {
                return Err(SaslFault::Empty(name));
            }
            // SASLprep leaves printable ASCII as it is, refuses control characters and rewrites much of the rest.
            if !bytes.iter().all(|byte| matches!(byte, b' '..=b'~')) {
                return Err(SaslFault::NotPrintableAscii(name));
            }
        }
        let bare = format!("n={},r={nonce}", username.replace('=', "=3D").replace(',', "=2C"));
        let message = Zeroizing::new(format!("{GS2_HEADER}{bare}").into_bytes());
        let password = Zeroizing::new(secret.bytes().to_vec());
        Ok((Self { hash, password, keys: keys.clone(), nonce, state: State::First { bare } }, message))
    }

    pub(super) fn step(&mut self, challenge: &[u8]) -> Result<Option<Zeroizing<Vec<u8>>>, SaslFault> {
        let challenge = str::from_utf8(challenge).map_err(|_| SaslFault::Malformed("it is not UTF-8"))?;
        if challenge.split(',').any(|attribute| attribute.starts_with("m=")) {
            return Err(SaslFault::Malformed("it has a mandatory extension (m=), and this client knows none"));
        }
        if let Some(error) = challenge.strip_prefix("e=") {
            return Err(SaslFault::Refused(shown(error.as_bytes())));
        }
        match &self.state {
            State::First { bare } => {
                let bare = bare.clone();
                self.prove(&bare, challenge).map(Some)
            }
            State::Proof { server_key, signed } => verify(challenge, server_key, signed).map(|()| None),
        }
    }

    /// Answers the server's first message with the proof.
    fn prove(&mut self, bare: &str, server_first: &str) -> Result<Zeroizing<Vec<u8>>, SaslFault> {
        let ServerFirst { nonce, salt, iterations } = ServerFirst::parse(server_first, &self.nonce)?;
        let without_proof = format!("c={},r={nonce}", BASE64.encode(GS2_HEADER));
        let signed = format!("{bare},{server_first},{without_proof}");

        let salted = self.keys.salted_password(self.hash, &self.password, &salt, iterations);
        let salted = hmac::Key::new(self.hash.hmac(), &salted);
        let client_key = hmac::sign(&salted, b"Client Key");
        let stored_key = digest::digest(self.hash.digest(), client_key.as_ref());
        let signature = hmac::sign(&hmac::Key::new(self.hash.hmac(), stored_key.as_ref()), signed.as_bytes());
        let proof: Vec<u8> = client_key.as_ref().iter().zip(signature.as_ref()).map(|(key, sign)| key ^ sign).collect();

        let server_key = hmac::Key::new(self.hash.hmac(), hmac::sign(&salted, b"Server Key").as_ref());
        self.state = State::Proof { server_key, signed };
        Ok(Zeroizing::new(format!("{without_proof},p={}", BASE64.encode(proof)).into_bytes()))
    }
}

/// `server-first-message` of RFC 5802, section 7. Optional extensions after the iterations are ignored, as it says.
struct ServerFirst<'a> {
    nonce: &'a str,
    salt: Vec<u8>,
    iterations: NonZeroU32,
}

impl<'a> ServerFirst<'a> {
    fn parse(text: &'a str, own_nonce: &str) -> Result<Self, SaslFault> {
        let mut attributes = text.split(',');
        let mut next = |name| attributes.next().and_then(|attribute| attribute.strip_prefix(name));
        let nonce = next("r=").ok_or(SaslFault::Malformed("its nonce (r=) is missing"))?;
        let salt = next("s=").ok_or(SaslFault::Malformed("its salt (s=) is missing"))?;
        let iterations = next("i=").ok_or(SaslFault::Malformed("its number of iterations (i=) is missing"))?;

        // Without a part of its own the broker's answer could be the replay of an earlier one.
        let own = nonce.strip_prefix(own_nonce).filter(|own| !own.is_empty());
        if !own.is_some_and(|own| own.bytes().all(|byte| byte.is_ascii_graphic())) {
            return Err(SaslFault::Malformed("its nonce is not the client's with a part of the broker's"));
        }
        let salt = BASE64.decode(salt).ok().filter(|salt| !salt.is_empty());
        let salt = salt.ok_or(SaslFault::Malformed("its salt is empty or not base64"))?;
        let number = Some(iterations).filter(|text| text.bytes().all(|byte| byte.is_ascii_digit()));
        let number: u64 = number
            .and_then(|text| text.parse().ok())
            .ok_or(SaslFault::Malformed("its number of iterations is not a number"))?;
        let iterations = Some(number).filter(|number| ITERATIONS.contains(number));
        let iterations = iterations.and_then(|number| NonZeroU32::new(u32::try_from(number).ok()?));
        Ok(Self { nonce, salt, iterations: iterations.ok_or(SaslFault::Iterations(number))? })
    }
}

/// Verifies the broker's signature, in constant time.
fn verify(server_final: &str, server_key: &hmac::Key, signed: &str) -> Result<(), SaslFault> {
    let signature = server_final.split(',').next().and_then(|attribute| attribute.strip_prefix("v="));
    let signature = signature.ok_or(SaslFault::Malformed("its signature (v=) is missing"))?;
    let signature = BASE64.decode(signature).map_err(|_| SaslFault::Malformed("its signature is not base64"))?;
    hmac::verify(server_key, signed.as_bytes(), &signature).map_err(|_| SaslFault::ServerSignature)
}

/// Returns a nonce of 32 printable characters.
pub(super) fn random_nonce() -> Result<String, SaslFault> {
    let mut bytes = [0; NONCE_BYTES];
    SystemRandom::new().fill(&mut bytes).map_err(|_| SaslFault::NoRandomNumbers)?;
    Ok(BASE64.encode(bytes))
}

#[cfg(test)]
mod tests;
