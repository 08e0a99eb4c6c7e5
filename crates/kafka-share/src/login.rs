//! The login of a client's connections by SASL (KIP-43, KIP-152), and its renewal (KIP-368).
//!
//! Takes the broker's answers and says what to send next; [`connection`](super::connection) sends it, and
//! [`sasl`](super::sasl) knows the mechanisms. All connections of a client share a [`Login`]: after a refusal only one
//! of them tries again, after a pause, so that a wrong password does not lock the account.

use std::fmt;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use kafka_protocol::messages::{SaslAuthenticateResponse, SaslHandshakeResponse};
use parking_lot::Mutex;
use zeroize::Zeroizing;

use super::error::ErrorCode;
use super::sasl::{Exchange, Mechanism, SaltedKeys, Secret};
use super::stamp::Stamp;

/// Pauses after refused logins: the first, and the longest after doubling.
const PAUSES: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(30));
/// A login is renewed after this share of its lifetime, and up to a tenth of the lifetime earlier, so that the
/// connections of a fleet do not renew together.
const RENEWED_AFTER: f64 = 0.8;
const JITTER: f64 = 0.1;

/// How a client proves its identity, on all its connections.
pub struct Login {
    mechanism: Mechanism,
    username: String,
    secret: PathBuf,
    keys: SaltedKeys,
    refusal: Mutex<Option<Refusal>>,
}

/// The last refused login.
struct Refusal {
    detail: String,
    /// The file with the refused secret.
    stamp: Option<Stamp>,
    pause: Duration,
    /// Until then no connection tries again, unless the file changes.
    until: Instant,
}

/// Why a login failed.
#[derive(Debug)]
pub(super) struct LoginFault {
    pub detail: String,
    /// Whether every repetition fails until a person changes something.
    pub is_final: bool,
}

impl fmt::Debug for Login {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_struct("Login").field("mechanism", &self.mechanism).finish_non_exhaustive()
    }
}

impl Login {
    /// `secret`: the file with the password, or with OAUTHBEARER's token, read at each login. `username`: unused by
    /// OAUTHBEARER.
    pub fn new(mechanism: Mechanism, username: impl Into<String>, secret: PathBuf) -> Self {
        let username = username.into();
        Self { mechanism, username, secret, keys: SaltedKeys::default(), refusal: Mutex::default() }
    }

    /// Refuses to try while a refusal is fresh. Afterwards the caller may try, and the others wait for its outcome.
    fn ask_for_turn(&self, now: Instant) -> Result<(), LoginFault> {
        let stamp = Stamp::of(&self.secret);
        let mut refusal = self.refusal.lock();
        let Some(last) = refusal.as_mut() else { return Ok(()) };
        if now < last.until && last.stamp == stamp {
            return Err(LoginFault { detail: last.detail.clone(), is_final: true });
        }
        last.until = now + last.pause;
        last.stamp = stamp;
        Ok(())
    }

    fn refused(&self, detail: &str, now: Instant) {
        let stamp = Stamp::of(&self.secret);
        let mut refusal = self.refusal.lock();
        let pause = refusal.as_ref().map_or(PAUSES.0, |last| (last.pause * 2).min(PAUSES.1));
        *refusal = Some(Refusal { detail: detail.to_owned(), stamp, pause, until: now + pause });
    }

    fn succeeded(&self) {
        *self.refusal.lock() = None;
    }

    /// Names the user and the mechanism.
    fn of_user(&self) -> String {
        match self.mechanism {
            Mechanism::OauthBearer => "the token".to_owned(),
            mechanism => format!("user {:?} by {}", self.username, mechanism.name()),
        }
    }
}

/// One login on one connection.
pub(super) struct Attempt {
    login: Arc<Login>,
    exchange: Exchange,
    first: Option<Zeroizing<Vec<u8>>>,
}

impl fmt::Debug for Attempt {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_struct("Attempt").finish_non_exhaustive()
    }
}

/// What follows an answer.
pub(super) enum Next {
    /// Another message to the broker.
    Send(Zeroizing<Vec<u8>>),
    /// The login has succeeded; it has to be renewed after this time.
    Done(Option<Duration>),
}

impl Attempt {
    /// Reads the secret and begins.
    ///
    /// # Errors
    /// The file cannot be read; the mechanism does not take the user or the secret; the last login was refused.
    pub fn begin(login: &Arc<Login>, now: Instant) -> Result<Self, LoginFault> {
        login.ask_for_turn(now)?;
        let text = std::fs::read(&login.secret).map_err(|error| {
            // The path is not shown: the option may have the secret itself.
            let detail = format!("the file with the secret of {} cannot be read ({error})", login.of_user());
            LoginFault { detail, is_final: false }
        })?;
        let begun = Exchange::begin(login.mechanism, &login.username, &Secret::from(text), &login.keys);
        let (exchange, first) = begun.map_err(|fault| LoginFault {
            detail: format!("cannot log in {}: {fault}", login.of_user()),
            is_final: true,
        })?;
        Ok(Self { login: Arc::clone(login), exchange, first: Some(first) })
    }

    /// The name of the mechanism, for SaslHandshake.
    pub fn mechanism(&self) -> &'static str {
        self.login.mechanism.name()
    }

    /// Takes the answer to SaslHandshake; returns the first message.
    ///
    /// # Errors
    /// The broker does not offer the mechanism, or no login at all.
    pub fn offered(&mut self, response: &SaslHandshakeResponse) -> Result<Zeroizing<Vec<u8>>, LoginFault> {
        let offered: Vec<&str> = response.mechanisms.iter().map(|name| name.as_str()).collect();
        let detail = match ErrorCode(response.error_code) {
            ErrorCode::NONE => return Ok(self.first.take().unwrap_or_default()),
            ErrorCode::UNSUPPORTED_SASL_MECHANISM => format!(
                "it does not offer {}; set KAFKA_SASL_MECHANISM to one of: {}",
                self.mechanism(),
                offered.join(", ").escape_debug()
            ),
            ErrorCode::ILLEGAL_SASL_STATE => {
                "its listener has no logins; set KAFKA_SECURITY_PROTOCOL to PLAINTEXT or SSL, as the listener has it"
                    .to_owned()
            }
            code => format!("SaslHandshake: {code}"),
        };
        Err(LoginFault { detail, is_final: true })
    }

    /// Takes an answer to SaslAuthenticate.
    ///
    /// # Errors
    /// The broker refused the login; or its answer breaks the mechanism, for example by a wrong signature.
    pub fn answered(&mut self, response: &SaslAuthenticateResponse, now: Instant) -> Result<Next, LoginFault> {
        let code = ErrorCode(response.error_code);
        if code != ErrorCode::NONE {
            let message = response.error_message.as_ref().map_or("", |text| text.as_str());
            let reason = self.exchange.refusal().map_or_else(|| message.escape_debug().to_string(), str::to_owned);
            let detail = format!("it refused {}: {reason} ({code})", self.login.of_user());
            self.login.refused(&detail, now);
            return Err(LoginFault { detail, is_final: true });
        }
        match self.exchange.step(&response.auth_bytes) {
            Ok(Some(message)) => Ok(Next::Send(message)),
            Ok(None) => {
                self.login.succeeded();
                let lifetime = u64::try_from(response.session_lifetime_ms).ok().filter(|length| *length > 0);
                Ok(Next::Done(lifetime.map(|length| renewed_after(Duration::from_millis(length)))))
            }
            Err(fault) => {
                let detail = format!("cannot log in {}: {fault}", self.login.of_user());
                self.login.refused(&detail, now);
                Err(LoginFault { detail, is_final: true })
            }
        }
    }
}

fn renewed_after(lifetime: Duration) -> Duration {
    lifetime.mul_f64(RENEWED_AFTER - JITTER * fastrand::f64())
}

#[cfg(test)]
mod tests;
