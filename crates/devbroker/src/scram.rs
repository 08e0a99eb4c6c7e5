//! SCRAM (RFC 5802, RFC 7677), the server's side: accounts, challenge, the client's proof, the server's signature.
//!
//! Knows no requests and no connections. Called by [`authentication`](super::authentication).

use std::num::NonZeroU32;
use std::sync::OnceLock;

use base64::Engine;
use base64::engine::general_purpose::STANDARD as BASE64;
use ring::{digest, hmac, pbkdf2};
use uuid::Uuid;

/// The hash function of a mechanism.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Hash {
    Sha256,
    Sha512,
}

impl Hash {
    fn digest(self) -> &'static digest::Algorithm {
        if self == Self::Sha256 { &digest::SHA256 } else { &digest::SHA512 }
    }

    fn keyed(self) -> hmac::Algorithm {
        if self == Self::Sha256 { hmac::HMAC_SHA256 } else { hmac::HMAC_SHA512 }
    }

    fn stretched(self) -> pbkdf2::Algorithm {
        if self == Self::Sha256 { pbkdf2::PBKDF2_HMAC_SHA256 } else { pbkdf2::PBKDF2_HMAC_SHA512 }
    }

    fn sign(self, key: &[u8], text: &[u8]) -> Vec<u8> {
        hmac::sign(&hmac::Key::new(self.keyed(), key), text).as_ref().to_vec()
    }
}

/// One user's account with one mechanism.
pub(super) struct Credential {
    hash: Hash,
    password: String,
    salt: Vec<u8>,
    iterations: NonZeroU32,
    /// StoredKey and ServerKey, computed for the first proof: a client may refuse a large iteration count before.
    keys: OnceLock<(Vec<u8>, Vec<u8>)>,
}

impl Credential {
    /// Makes an account with a new salt.
    pub fn new(hash: Hash, password: &str, iterations: NonZeroU32) -> Self {
        let salt = Uuid::new_v4().as_bytes().to_vec();
        Self { hash, password: password.to_owned(), salt, iterations, keys: OnceLock::new() }
    }

    fn keys(&self) -> &(Vec<u8>, Vec<u8>) {
        self.keys.get_or_init(|| {
            let mut salted = vec![0; self.hash.digest().output_len()];
            let password = self.password.as_bytes();
            pbkdf2::derive(self.hash.stretched(), self.iterations, &self.salt, password, &mut salted);
            let client = self.hash.sign(&salted, b"Client Key");
            let stored = digest::digest(self.hash.digest(), &client).as_ref().to_vec();
            (stored, self.hash.sign(&salted, b"Server Key"))
        })
    }
}

/// A client's first message and the server's answer.
#[derive(Debug)]
pub(super) struct Challenge {
    /// The client's `gs2-header`, which its proof repeats.
    header: String,
    /// `client-first-message-bare`
    bare: String,
    user: String,
    nonce: String,
    /// `server-first-message`
    text: String,
}

impl Challenge {
    /// Answers a client's first message. `None`: the message is malformed, or the user has no account.
    pub fn new<'a>(first: &str, account: impl FnOnce(&str) -> Option<&'a Credential>) -> Option<Self> {
        Self::with_nonce(first, &Uuid::new_v4().simple().to_string(), account)
    }

    fn with_nonce<'a>(first: &str, nonce: &str, account: impl FnOnce(&str) -> Option<&'a Credential>) -> Option<Self> {
        // No channel binding is offered, so the flag is `n`.
        let (acts_for, bare) = first.strip_prefix("n,")?.split_once(',')?;
        let mut attributes = bare.split(',');
        let user = attributes.next()?.strip_prefix("n=")?;
        if !acts_for.is_empty() && acts_for.strip_prefix("a=") != Some(user) {
            return None;
        }
        let user = user.replace("=2C", ",").replace("=3D", "=");
        let client_nonce = attributes.next()?.strip_prefix("r=").filter(|nonce| !nonce.is_empty())?;
        let nonce = format!("{client_nonce}{nonce}");
        let account = account(&user)?;
        let text = format!("r={nonce},s={},i={}", BASE64.encode(&account.salt), account.iterations);
        Some(Self { header: format!("n,{acts_for},"), bare: bare.to_owned(), user, nonce, text })
    }

    /// The user as the client named it.
    pub fn user(&self) -> &str {
        &self.user
    }

    /// The server's first message.
    pub fn text(&self) -> &str {
        &self.text
    }

    /// Checks the client's proof. Returns the server's last message; `None` if the proof is wrong.
    pub fn verify(&self, last: &str, account: &Credential) -> Option<String> {
        let (unproven, proof) = last.rsplit_once(",p=")?;
        let mut attributes = unproven.split(',');
        let header = BASE64.decode(attributes.next()?.strip_prefix("c=")?).ok()?;
        let nonce = attributes.next()?.strip_prefix("r=")?;
        if header != self.header.as_bytes() || nonce != self.nonce {
            return None;
        }
        let (stored, server) = account.keys();
        let signed = format!("{},{},{unproven}", self.bare, self.text);
        let mut client = account.hash.sign(stored, signed.as_bytes());
        let proof = BASE64.decode(proof).ok().filter(|proof| proof.len() == client.len())?;
        client.iter_mut().zip(proof).for_each(|(byte, proof)| *byte ^= proof);
        if digest::digest(account.hash.digest(), &client).as_ref() != stored.as_slice() {
            return None;
        }
        Some(format!("v={}", BASE64.encode(account.hash.sign(server, signed.as_bytes()))))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The exchange of RFC 7677, 3.
    fn example() -> (Credential, Challenge) {
        let mut account = Credential::new(Hash::Sha256, "pencil", NonZeroU32::new(4096).expect("not zero"));
        account.salt = BASE64.decode("W22ZaJ0SNY7soEsUEjb6gQ==").expect("a salt");
        let first = "n,,n=user,r=rOprNGfwEbeRWgbNEkqO";
        let challenge = Challenge::with_nonce(first, "%hvYDpWUa2RaTCAfuxFIlj)hNlF$k0", |user| {
            assert_eq!(user, "user");
            Some(&account)
        });
        let challenge = challenge.expect("an answer");
        (account, challenge)
    }

    #[test]
    fn server_gives_the_messages_of_the_rfc() {
        let (account, challenge) = example();
        let text = "r=rOprNGfwEbeRWgbNEkqO%hvYDpWUa2RaTCAfuxFIlj)hNlF$k0,s=W22ZaJ0SNY7soEsUEjb6gQ==,i=4096";
        assert_eq!(challenge.text(), text);
        let last = "c=biws,r=rOprNGfwEbeRWgbNEkqO%hvYDpWUa2RaTCAfuxFIlj)hNlF$k0,\
                    p=dHzbZapWIk4jUhN+Ute9ytag9zjfMHgsqmmiz7AndVQ=";
        let verdict = challenge.verify(last, &account).expect("the proof is right");
        assert_eq!(verdict, "v=6rriTRBi23WpRR/wtup+mMhUZUn/dB5nLTJRsjl95G4=");
    }

    #[test]
    fn proof_binds_header_nonce_and_key() {
        let (account, challenge) = example();
        let nonce = "rOprNGfwEbeRWgbNEkqO%hvYDpWUa2RaTCAfuxFIlj)hNlF$k0";
        let proof = "dHzbZapWIk4jUhN+Ute9ytag9zjfMHgsqmmiz7AndVQ=";
        let wrong = [
            format!("c=eSws,r={nonce},p={proof}"),
            format!("c=biws,r={nonce}0,p={proof}"),
            format!("c=biws,r={nonce},p=eHzbZapWIk4jUhN+Ute9ytag9zjfMHgsqmmiz7AndVQ="),
            format!("c=biws,r={nonce},p="),
            format!("c=biws,r={nonce}"),
        ];
        for last in wrong {
            assert_eq!(challenge.verify(&last, &account), None, "{last}");
        }
    }

    #[test]
    fn right_proof_of_another_nonce_or_channel_binding_is_refused() {
        let (account, challenge) = example();
        let mut salted = [0; 32];
        pbkdf2::derive(account.hash.stretched(), account.iterations, &account.salt, b"pencil", &mut salted);
        let key = account.hash.sign(&salted, b"Client Key");
        let verdict = |unproven: &str| {
            let signed = format!("{},{},{unproven}", challenge.bare, challenge.text);
            let signature = account.hash.sign(&account.keys().0, signed.as_bytes());
            let proof: Vec<u8> = key.iter().zip(signature).map(|(key, signature)| key ^ signature).collect();
            challenge.verify(&format!("{unproven},p={}", BASE64.encode(proof)), &account)
        };
        let nonce = &challenge.nonce;
        assert!(verdict(&format!("c=biws,r={nonce}")).is_some());
        assert_eq!(verdict(&format!("c=biws,r={nonce}0")), None);
        assert_eq!(verdict(&format!("c=eSws,r={nonce}")), None);
    }

    #[test]
    fn commas_and_equals_signs_of_a_name_arrive_and_malformed_names_do_not() {
        let account = Credential::new(Hash::Sha512, "secret", NonZeroU32::MIN);
        let challenge = |first| Challenge::with_nonce(first, "server", |_| Some(&account));
        assert_eq!(challenge("n,,n=a=2Cb=3Dc,r=client").expect("an answer").user(), "a,b=c");
        assert_eq!(challenge("n,a=me,n=me,r=client").expect("an answer").user(), "me");
        for first in ["n,,n=me,r=", "n,,n=me", "y,,n=me,r=client", "n,a=you,n=me,r=client", "n,,r=client,n=me", ""] {
            assert!(challenge(first).is_none(), "{first}");
        }
    }
}
