//! The login of a client's connections by SASL (KIP-43, KIP-152), and its renewal (KIP-368).
//!
//! Takes the broker's answers and says what to send next; [`connection`](super::connection) sends it, and
//! [`sasl`](super::sasl) knows the mechanisms. All connections of a client share a [`Login`]: after a refusal by a broker
//! only one of them tries again there, after a pause, so that a wrong password does not lock the account.

use std::collections::HashMap;
use std::fmt;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, bounded, select};
use kafka_protocol::messages::{SaslAuthenticateResponse, SaslHandshakeResponse};
use parking_lot::Mutex;
use zeroize::Zeroizing;

use super::address::BrokerAddress;
use super::error::ErrorCode;
use super::interrupt::Interrupter;
use super::sasl::{Exchange, Mechanism, SaltedKeys, SaslFault, Secret};
use super::stamp::Stamp;
use super::token_command::{TokenCommand, Told};

/// Pauses after refused logins: the first, and the longest after doubling.
const PAUSES: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(30));
/// A login is renewed after this share of its lifetime, and up to a tenth of the lifetime earlier, so that the
/// connections of a fleet do not renew together.
const RENEWED_AFTER: f64 = 0.8;
const JITTER: f64 = 0.1;
/// After this share of its lifetime requests wait for a renewal whose secret is on its way: they would be late.
const ENDS_AFTER: f64 = 0.9;
/// Kafka refuses an earlier renewal.
const EARLIEST_RENEWAL: Duration = Duration::from_secs(1);
/// A secret is used within this time.
const FRESH: Duration = Duration::from_secs(15);

/// How a client proves its identity, on all its connections.
pub struct Login {
    mechanism: Mechanism,
    username: String,
    source: Source,
    keys: SaltedKeys,
    /// By broker: passwords are replaced at one broker after the other.
    failures: Mutex<HashMap<BrokerAddress, Failure>>,
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

/// The last failed login at a broker.
struct Failure {
    fault: LoginFault,
    at: Instant,
    /// The file with the secret that was tried.
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
        Self { mechanism, username: username.into(), source, keys: SaltedKeys::default(), failures: Mutex::default() }
    }

    fn stamp(&self) -> Option<Stamp> {
        match &self.source {
            Source::File(path) => Stamp::of(path),
            Source::Command(_) => None,
        }
    }

    /// Refuses to try while a failure is fresh. Afterwards the caller may try, and the others wait for its outcome.
    fn ask_for_turn(&self, broker: &BrokerAddress, stamp: Option<Stamp>, now: Instant) -> Result<(), LoginFault> {
        let mut failures = self.failures.lock();
        let Some(last) = failures.get_mut(broker) else { return Ok(()) };
        if now < last.until && last.stamp == stamp {
            return Err(last.fault.clone());
        }
        last.until = now + last.pause;
        last.stamp = stamp;
        Ok(())
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

    /// Whether a refused secret stays refused until a person changes it. Another program writes and renews tokens.
    fn is_final(&self) -> bool {
        self.mechanism != Mechanism::OauthBearer
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
    broker: BrokerAddress,
    began: Instant,
    stamp: Option<Stamp>,
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
        let due = now + lifetime.mul_f64(RENEWED_AFTER - JITTER * fastrand::f64()).max(EARLIEST_RENEWAL);
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
    pub fn begin(login: &Arc<Login>, broker: &BrokerAddress, now: Instant) -> Result<Self, LoginFault> {
        let stamp = login.stamp();
        login.ask_for_turn(broker, stamp, now)?;
        let (login, broker, secret) = (Arc::clone(login), broker.clone(), login.secret());
        Ok(Self { login, broker, began: now, stamp, secret, exchange: None, first: None })
    }

    /// Whether the secret is young enough to be used.
    pub fn is_fresh(&self, now: Instant) -> bool {
        now.saturating_duration_since(self.began) < FRESH
    }

    /// Notes a failure. Logins that began before the last one and fail, too, do not lengthen the pause.
    fn failed(&self, detail: String, is_final: bool, now: Instant) -> LoginFault {
        let fault = LoginFault { detail, is_final };
        let mut failures = self.login.failures.lock();
        let last = failures.get(&self.broker);
        let pause = match last {
            None => PAUSES.0,
            Some(last) if last.at > self.began => last.pause,
            Some(last) => (last.pause * 2).min(PAUSES.1),
        };
        let failure = Failure { fault: fault.clone(), at: now, stamp: self.stamp, pause, until: now + pause };
        failures.insert(self.broker.clone(), failure);
        fault
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
            self.failed(detail, false, now)
        })?;
        let begun = Exchange::begin(login.mechanism, &login.username, &secret, &login.keys);
        let (exchange, first) = begun.map_err(|fault| {
            // A file is empty for a moment while it is written.
            let is_final = login.is_final() && !matches!(fault, SaslFault::Empty(_));
            self.failed(format!("cannot log in {}: {fault}", login.of_user()), is_final, now)
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
        let code = ErrorCode(response.error_code);
        let Some(mut exchange) = self.exchange.take() else {
            return Err(LoginFault { detail: "it answered a login that has not begun".to_owned(), is_final: false });
        };
        let user = self.login.of_user();
        if code != ErrorCode::NONE {
            let message = response.error_message.as_ref().map_or("", |text| text.as_str());
            let reason = exchange.refusal().map_or_else(|| message.escape_debug().to_string(), str::to_owned);
            return Err(self.failed(format!("it refused {user}: {reason} ({code})"), self.login.is_final(), now));
        }
        match exchange.step(&response.auth_bytes) {
            Ok(Some(message)) => {
                self.exchange = Some(exchange);
                Ok(Next::Send(message))
            }
            Ok(None) => {
                self.login.failures.lock().remove(&self.broker);
                let lifetime = u64::try_from(response.session_lifetime_ms).ok().filter(|length| *length > 0);
                Ok(Next::Done(lifetime.map(|length| Renewal::of(Duration::from_millis(length), now))))
            }
            Err(fault) => Err(self.failed(format!("cannot log in {user}: {fault}"), self.login.is_final(), now)),
        }
    }
}

#[cfg(test)]
mod tests;
