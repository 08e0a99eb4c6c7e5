//! The login of a client's connections by SASL (KIP-43, KIP-152), and its renewal (KIP-368).
//!
//! Takes the broker's answers and says what to send next; [`connection`](super::connection) sends it, and
//! [`sasl`](super::sasl) knows the mechanisms. All connections of a client share a [`Login`]: after a refusal only one
//! of them tries again, after a pause, so that a wrong password does not lock the account.

use std::fmt;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, bounded, select};
use kafka_protocol::messages::{SaslAuthenticateResponse, SaslHandshakeResponse};
use parking_lot::Mutex;
use zeroize::Zeroizing;

use super::error::ErrorCode;
use super::interrupt::Interrupter;
use super::sasl::{Exchange, Mechanism, SaltedKeys, Secret};
use super::stamp::Stamp;
use super::token_command::{TokenCommand, Told};

/// Pauses after refused logins: the first, and the longest after doubling.
const PAUSES: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(30));
/// A login is renewed after this share of its lifetime, and up to a tenth of the lifetime earlier, so that the
/// connections of a fleet do not renew together.
const RENEWED_AFTER: f64 = 0.8;
const JITTER: f64 = 0.1;
/// After this share of its lifetime nothing but its renewal is sent: another request would be late.
const ENDS_AFTER: f64 = 0.9;

/// How a client proves its identity, on all its connections.
pub struct Login {
    mechanism: Mechanism,
    username: String,
    source: Source,
    keys: SaltedKeys,
    refusal: Mutex<Option<Refusal>>,
}

/// Where the password, or OAUTHBEARER's token, comes from at each login.
#[derive(Clone, PartialEq, Eq)]
pub enum SecretSource {
    /// A file.
    File(PathBuf),
    /// A line for `sh -c` that prints it within 10 s.
    Command(String),
}

enum Source {
    File(PathBuf),
    Command(TokenCommand),
}

/// The last failed login.
struct Refusal {
    fault: LoginFault,
    /// The file with the refused secret.
    stamp: Option<Stamp>,
    pause: Duration,
    /// Until then no connection tries again, unless the file changes.
    until: Instant,
}

/// Why a login failed.
#[derive(Clone, Debug)]
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
    /// `username`: unused by OAUTHBEARER.
    pub fn new(mechanism: Mechanism, username: impl Into<String>, source: SecretSource) -> Self {
        let source = match source {
            SecretSource::File(path) => Source::File(path),
            SecretSource::Command(command) => Source::Command(TokenCommand::new(command)),
        };
        Self { mechanism, username: username.into(), source, keys: SaltedKeys::default(), refusal: Mutex::default() }
    }

    fn stamp(&self) -> Option<Stamp> {
        match &self.source {
            Source::File(path) => Stamp::of(path),
            Source::Command(_) => None,
        }
    }

    /// Refuses to try while a failure is fresh. Afterwards the caller may try, and the others wait for its outcome.
    fn ask_for_turn(&self, now: Instant) -> Result<(), LoginFault> {
        let stamp = self.stamp();
        let mut refusal = self.refusal.lock();
        let Some(last) = refusal.as_mut() else { return Ok(()) };
        if now < last.until && last.stamp == stamp {
            return Err(last.fault.clone());
        }
        last.until = now + last.pause;
        last.stamp = stamp;
        Ok(())
    }

    fn failed(&self, detail: String, is_final: bool, now: Instant) -> LoginFault {
        let fault = LoginFault { detail, is_final };
        let stamp = self.stamp();
        let mut refusal = self.refusal.lock();
        let pause = refusal.as_ref().map_or(PAUSES.0, |last| (last.pause * 2).min(PAUSES.1));
        *refusal = Some(Refusal { fault: fault.clone(), stamp, pause, until: now + pause });
        fault
    }

    fn succeeded(&self) {
        *self.refusal.lock() = None;
    }

    /// Reads the file, or has the command run. The secret comes on the channel.
    fn secret(&self) -> Receiver<Told> {
        match &self.source {
            Source::Command(command) => command.ask(),
            Source::File(path) => {
                let read = std::fs::read(path).map(|text| Arc::new(Secret::from(text)));
                let (told, secret) = bounded(1);
                // The path is not shown: the option may have the secret itself. A channel for one result has room.
                let _ = told.try_send(read.map_err(|error| format!("its file cannot be read ({error})")));
                secret
            }
        }
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
    secret: Receiver<Told>,
    /// Begins with the secret.
    exchange: Option<Exchange>,
    first: Option<Zeroizing<Vec<u8>>>,
}

impl fmt::Debug for Attempt {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_struct("Attempt").finish_non_exhaustive()
    }
}

/// When a login that does not last has to be renewed.
#[derive(Clone, Copy, Debug)]
pub(super) struct Renewal {
    /// From then on.
    pub due: Instant,
    /// By then: later requests have to wait for it.
    pub end: Instant,
}

impl Renewal {
    fn of(lifetime: Duration, now: Instant) -> Self {
        let due = now + lifetime.mul_f64(RENEWED_AFTER - JITTER * fastrand::f64());
        Self { due, end: now + lifetime.mul_f64(ENDS_AFTER) }
    }
}

/// What follows an answer.
pub(super) enum Next {
    /// Another message to the broker.
    Send(Zeroizing<Vec<u8>>),
    /// The login has succeeded.
    Done(Option<Renewal>),
}

impl Attempt {
    /// Asks for the secret.
    ///
    /// # Errors
    /// The last login failed a moment ago.
    pub fn begin(login: &Arc<Login>, now: Instant) -> Result<Self, LoginFault> {
        login.ask_for_turn(now)?;
        Ok(Self { login: Arc::clone(login), secret: login.secret(), exchange: None, first: None })
    }

    /// Waits at most `wait` for the secret. `true`: it is there, and the login can begin.
    ///
    /// # Errors
    /// There is no secret; the mechanism does not take the user or the secret.
    pub fn is_ready(&mut self, wait: Duration, interrupter: &Interrupter) -> Result<bool, LoginFault> {
        if self.exchange.is_some() {
            return Ok(true);
        }
        let told = select! {
            recv(self.secret) -> told => told.unwrap_or_else(|_| Err("nothing gave it".to_owned())),
            recv(interrupter.triggered()) -> _ => return Ok(false),
            default(wait) => return Ok(false),
        };
        let (login, now) = (&self.login, Instant::now());
        let secret = told.map_err(|problem| {
            let detail = format!("there is no secret for {}: {problem}", login.of_user());
            login.failed(detail, false, now)
        })?;
        let begun = Exchange::begin(login.mechanism, &login.username, &secret, &login.keys);
        let (exchange, first) = begun.map_err(|fault| LoginFault {
            detail: format!("cannot log in {}: {fault}", login.of_user()),
            is_final: true,
        })?;
        (self.exchange, self.first) = (Some(exchange), Some(first));
        Ok(true)
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
        let (login, code) = (&self.login, ErrorCode(response.error_code));
        let Some(exchange) = &mut self.exchange else {
            return Err(LoginFault { detail: "it answered a login that has not begun".to_owned(), is_final: false });
        };
        if code != ErrorCode::NONE {
            let message = response.error_message.as_ref().map_or("", |text| text.as_str());
            let reason = exchange.refusal().map_or_else(|| message.escape_debug().to_string(), str::to_owned);
            return Err(login.failed(format!("it refused {}: {reason} ({code})", login.of_user()), true, now));
        }
        match exchange.step(&response.auth_bytes) {
            Ok(Some(message)) => Ok(Next::Send(message)),
            Ok(None) => {
                login.succeeded();
                let lifetime = u64::try_from(response.session_lifetime_ms).ok().filter(|length| *length > 0);
                Ok(Next::Done(lifetime.map(|length| Renewal::of(Duration::from_millis(length), now))))
            }
            Err(fault) => Err(login.failed(format!("cannot log in {}: {fault}", login.of_user()), true, now)),
        }
    }
}

#[cfg(test)]
mod tests;
