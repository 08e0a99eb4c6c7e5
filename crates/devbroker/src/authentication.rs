//! SASL of one connection: which requests are due, and the exchange of each authentication (KIP-43, KIP-152, KIP-368).
//!
//! The broker's side, after Kafka's `SaslServerAuthenticator`, `KafkaChannel` and `SocketServer`. It shares no code with
//! the client, so it checks the client; [`scram`](super::scram) computes. Called by [`answer`](super::answer) for each
//! request.

use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::{Bytes, BytesMut};
use kafka_protocol::messages::{
    ApiKey, SaslAuthenticateRequest, SaslAuthenticateResponse, SaslHandshakeRequest, SaslHandshakeResponse,
};
use kafka_protocol::protocol::{Decodable, Encodable, StrBytes};

use super::asked::Asked;
use super::core::Core;
use super::scram::Challenge;
use super::security::{Accounts, SaslMechanism};
use kafka_share::ErrorCode;

const UNSUPPORTED_SASL_MECHANISM: ErrorCode = ErrorCode(33);
pub(super) const ILLEGAL_SASL_STATE: ErrorCode = ErrorCode(34);
const SASL_AUTHENTICATION_FAILED: ErrorCode = ErrorCode(58);

/// How late Kafka tells a client that its authentication failed (`connection.failed.authentication.delay.ms`).
pub(super) const FAILURE_DELAY: Duration = Duration::from_millis(100);
/// The shortest time between the beginnings of two re-authentications (Kafka's `KafkaChannel`).
const LEAST_INTERVAL: Duration = Duration::from_secs(1);
/// What Kafka answers to a token that it does not accept (RFC 7628, 3.2.2).
const INVALID_TOKEN: &str = "{\"status\":\"invalid_token\"}";

/// What becomes of a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Admission {
    /// It is answered.
    Serve,
    /// It gets error 34, and the connection is closed.
    Illegal,
    /// The connection is closed.
    Close,
}

/// The authentication of one connection.
pub(super) struct Authentication {
    stage: Stage,
    /// Mechanism and user of the last authentication, which a later one cannot change.
    identity: Option<(SaslMechanism, String)>,
    /// When the session's lifetime ends, if it has one.
    expires: Option<Instant>,
    /// When the last re-authentication began.
    renewed: Option<Instant>,
}

enum Stage {
    /// A SaslHandshake is due; before it ApiVersions, once.
    New { told_versions: bool },
    /// A SaslAuthenticate is due.
    Exchange(Box<Exchange>),
    /// Any request is due: the client is authenticated, or the listener has no SASL.
    Open,
    /// Nothing: the connection is closed after the current response.
    Failed,
}

/// One authentication, from its SaslHandshake to its last SaslAuthenticate.
struct Exchange {
    mechanism: SaslMechanism,
    accounts: Arc<Accounts>,
    step: Step,
}

enum Step {
    /// The client's first message is due.
    First,
    /// SCRAM: the client's proof is due.
    Proof(Challenge),
    /// OAUTHBEARER: the token was refused; the client's assent is due.
    Refused,
    /// The client changed its mechanism: its next request closes the connection.
    OtherMechanism,
}

enum Progress {
    /// The client has to answer this.
    More(Vec<u8>),
    /// This user is authenticated; the bytes end the exchange.
    Done(Vec<u8>, String),
}

/// The reason of a failure. Kafka hides (`None`) those that would tell a stranger who has an account.
type Failure = Option<&'static str>;

impl Authentication {
    /// Makes that of a new connection, to a listener with or without SASL.
    pub fn new(sasl: bool) -> Self {
        let stage = if sasl { Stage::New { told_versions: false } } else { Stage::Open };
        Self { stage, identity: None, expires: None, renewed: None }
    }

    /// Whether the connection has to be closed.
    pub fn has_failed(&self) -> bool {
        matches!(self.stage, Stage::Failed)
    }

    /// Decides whether a request is due. After the lifetime only a SaslHandshake is: a silent connection stays open
    /// (measured with Kafka 4.4).
    pub fn admit(&mut self, asked: &Asked, now: Instant) -> Admission {
        let may_renew = self.may_renew(now);
        match (&mut self.stage, asked.key) {
            (Stage::New { told_versions }, ApiKey::ApiVersions) if !*told_versions => {
                *told_versions = !asked.too_new;
                Admission::Serve
            }
            (Stage::New { .. }, ApiKey::SaslHandshake) | (Stage::Exchange(_), ApiKey::SaslAuthenticate) => {
                Admission::Serve
            }
            (Stage::New { .. } | Stage::Failed, _) => Admission::Close,
            (Stage::Exchange(_), _) => {
                self.stage = Stage::Failed;
                Admission::Illegal
            }
            (Stage::Open, ApiKey::SaslHandshake) if may_renew => Admission::Serve,
            (Stage::Open, _) if self.expires.is_some_and(|expires| now > expires) => Admission::Close,
            (Stage::Open, _) => Admission::Serve,
        }
    }

    /// Answers a SaslHandshake or SaslAuthenticate. `None`: it cannot be decoded, or Kafka answers nothing.
    pub fn answer(&mut self, core: &Core, node: i32, asked: &Asked) -> Option<BytesMut> {
        let (mut request, version, now) = (asked.body.clone(), asked.version, Instant::now());
        let mut body = BytesMut::new();
        if asked.key == ApiKey::SaslHandshake {
            let request = SaslHandshakeRequest::decode(&mut request, version).ok()?;
            let accounts = core.security().sasl.clone().unwrap_or_default();
            self.begin(accounts, &request.mechanism, now).encode(&mut body, version).ok()?;
        } else {
            let request = SaslAuthenticateRequest::decode(&mut request, version).ok()?;
            self.go_on(&request.auth_bytes, now)?.encode(&mut body, version).ok()?;
        }
        if self.has_failed() {
            core.linger(node, FAILURE_DELAY);
        }
        Some(body)
    }

    fn begin(&mut self, accounts: Arc<Accounts>, name: &str, now: Instant) -> SaslHandshakeResponse {
        let response = SaslHandshakeResponse::default();
        match self.stage {
            Stage::New { .. } => {}
            Stage::Open if self.may_renew(now) => self.renewed = Some(now),
            // Kafka does not close the connection.
            _ => return response.with_error_code(ILLEGAL_SASL_STATE.0),
        }
        let names = accounts.mechanisms().iter().map(|mechanism| StrBytes::from_static_str(mechanism.name()));
        let response = response.with_mechanisms(names.collect());
        let Some(mechanism) = accounts.mechanisms().iter().copied().find(|mechanism| mechanism.name() == name) else {
            self.stage = Stage::Failed;
            return response.with_error_code(UNSUPPORTED_SASL_MECHANISM.0);
        };
        let changed = self.identity.as_ref().is_some_and(|(before, _)| *before != mechanism);
        let step = if changed { Step::OtherMechanism } else { Step::First };
        self.stage = Stage::Exchange(Box::new(Exchange { mechanism, accounts, step }));
        response
    }

    fn go_on(&mut self, token: &[u8], now: Instant) -> Option<SaslAuthenticateResponse> {
        let response = SaslAuthenticateResponse::default();
        let Stage::Exchange(exchange) = &mut self.stage else {
            let text = "SaslAuthenticate request received after successful authentication";
            return Some(told(response, ILLEGAL_SASL_STATE, text));
        };
        if matches!(exchange.step, Step::OtherMechanism) {
            return None;
        }
        let again = self.identity.as_ref();
        let failure = match exchange.proceed(token) {
            Ok(Progress::More(bytes)) => return Some(response.with_auth_bytes(Bytes::from(bytes))),
            Ok(Progress::Done(bytes, user)) if again.is_none_or(|(_, before)| *before == user) => {
                let lifetime = exchange.accounts.lifetime();
                self.identity = Some((exchange.mechanism, user));
                self.expires = lifetime.map(|lifetime| now + lifetime);
                self.stage = Stage::Open;
                let lifetime = lifetime.map_or(0, |lifetime| i64::try_from(lifetime.as_millis()).unwrap_or(i64::MAX));
                return Some(response.with_auth_bytes(Bytes::from(bytes)).with_session_lifetime_ms(lifetime));
            }
            Ok(Progress::Done(_, user)) => {
                let before = again.map_or("", |(_, before)| before);
                format!("Cannot change principals during re-authentication from User.{before}: User.{user}")
            }
            Err(Some(text)) => text.to_owned(),
            Err(None) => {
                let kind = if again.is_some() { "re-authentication" } else { "authentication" };
                let name = exchange.mechanism.name();
                format!("Authentication failed during {kind} due to invalid credentials with SASL mechanism {name}")
            }
        };
        self.stage = Stage::Failed;
        Some(told(response, SASL_AUTHENTICATION_FAILED, &failure))
    }

    fn may_renew(&self, now: Instant) -> bool {
        self.expires.is_some() && self.renewed.is_none_or(|renewed| now.duration_since(renewed) >= LEAST_INTERVAL)
    }
}

impl Exchange {
    /// Evaluates the client's next message.
    fn proceed(&mut self, token: &[u8]) -> Result<Progress, Failure> {
        let text = std::str::from_utf8(token).map_err(|_| None)?;
        match (self.mechanism, &self.step) {
            (SaslMechanism::Plain, _) => plain(&self.accounts, text).map(|user| Progress::Done(Vec::new(), user)),
            (SaslMechanism::OauthBearer, Step::Refused) if text == "\x01" => Err(Some(INVALID_TOKEN)),
            (SaslMechanism::OauthBearer, _) => {
                if self.accounts.accepts(bearer_token(text).ok_or(None)?) {
                    // Kafka reads the name from the token.
                    return Ok(Progress::Done(Vec::new(), String::new()));
                }
                self.step = Step::Refused;
                Ok(Progress::More(INVALID_TOKEN.into()))
            }
            (SaslMechanism::ScramSha256 | SaslMechanism::ScramSha512, Step::Proof(challenge)) => {
                let credential = self.accounts.credential(self.mechanism, challenge.user()).ok_or(None)?;
                let verdict = challenge.verify(text, credential).ok_or(None)?;
                Ok(Progress::Done(verdict.into(), challenge.user().to_owned()))
            }
            (SaslMechanism::ScramSha256 | SaslMechanism::ScramSha512, _) => {
                let challenge = Challenge::new(text, |user| self.accounts.credential(self.mechanism, user));
                let challenge = challenge.ok_or(None)?;
                let first = challenge.text().into();
                self.step = Step::Proof(challenge);
                Ok(Progress::More(first))
            }
        }
    }
}

/// PLAIN (RFC 4616): returns the user.
fn plain(accounts: &Accounts, text: &str) -> Result<String, Failure> {
    let mut parts = text.splitn(3, '\0');
    let (Some(acts_for), Some(user), Some(password)) = (parts.next(), parts.next(), parts.next()) else {
        return Err(None);
    };
    if user.is_empty() || password.is_empty() {
        return Err(None);
    }
    if accounts.password(user) != Some(password) {
        return Err(Some("Authentication failed: Invalid username or password"));
    }
    if !acts_for.is_empty() && acts_for != user {
        return Err(Some(
            "Authentication failed: Client requested an authorization id that is different from username",
        ));
    }
    Ok(user.to_owned())
}

/// OAUTHBEARER (RFC 7628, 3.1): finds the token in the client's first message.
fn bearer_token(text: &str) -> Option<&str> {
    let (header, pairs) = text.split_once('\x01')?;
    let acts_for = header.strip_prefix("n,")?.strip_suffix(',')?;
    let pairs = pairs.strip_suffix("\x01\x01").filter(|_| acts_for.is_empty() || acts_for.starts_with("a="))?;
    let (scheme, token) = pairs.split('\x01').find_map(|pair| pair.strip_prefix("auth="))?.split_once(' ')?;
    scheme.eq_ignore_ascii_case("bearer").then_some(token)
}

fn told(response: SaslAuthenticateResponse, code: ErrorCode, text: &str) -> SaslAuthenticateResponse {
    response.with_error_code(code.0).with_error_message(Some(StrBytes::from_string(text.to_owned())))
}
