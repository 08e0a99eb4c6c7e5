//! The login of one connection, driven by receiving: first after connecting, later as a renewal.
//!
//! [`login`](crate::login) says what to send. Called by [`Connection`].

use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::{BufMut, Bytes, BytesMut};
use kafka_protocol::messages::{SaslAuthenticateRequest, SaslHandshakeRequest};
use kafka_protocol::protocol::{Request, StrBytes};
use zeroize::Zeroize;

use super::{Connection, Outstanding, name_of};
use crate::error::{KafkaError, Result};
use crate::login::{Attempt, Login, LoginFault, Next, Renewal};

/// The login of one connection.
#[derive(Debug)]
pub(super) struct Authentication {
    login: Arc<Login>,
    /// The login that is going on.
    attempt: Option<(Attempt, Stage)>,
    /// Requests that wait for its end.
    held: BytesMut,
    renewal: Option<Renewal>,
    /// The next login while it waits for its secret. Requests do not wait for it before the end of the present one.
    next: Option<Attempt>,
    /// The log has a line that the renewal fails.
    is_warned: bool,
}

#[derive(Debug)]
enum Stage {
    AwaitsSecret,
    /// A request of the login is unanswered.
    Asked(Outstanding),
}

/// Pause before a renewal is tried again that failed before it had begun.
const RENEWAL_PAUSE: Duration = Duration::from_secs(1);

/// Versions of the requests of a login: the first with SaslAuthenticate, and the newest of that.
const SASL_HANDSHAKE_VERSION: i16 = 1;
const SASL_AUTHENTICATE_VERSION: i16 = 2;

impl Authentication {
    pub(super) fn new(login: Arc<Login>) -> Self {
        Self { login, attempt: None, held: BytesMut::new(), renewal: None, next: None, is_warned: false }
    }
}

impl Connection {
    pub(super) fn is_logging_in(&self) -> bool {
        self.authentication.as_ref().is_some_and(|it| it.attempt.is_some())
    }

    /// Keeps a request until the end of the login; `false`: no login is going on.
    pub(super) fn hold(&mut self, frame: &[u8]) -> bool {
        match &mut self.authentication {
            Some(Authentication { attempt: Some(_), held, .. }) => {
                held.put_slice(frame);
                true
            }
            _ => false,
        }
    }

    /// Whether the login waits for its secret.
    pub(super) fn is_awaiting_secret(&self) -> bool {
        let stage = self.authentication.as_ref().and_then(|it| it.attempt.as_ref()).map(|(_, stage)| stage);
        matches!(stage, Some(Stage::AwaitsSecret))
    }

    /// Begins the first login.
    pub(super) fn log_in(&mut self, attempt: Attempt) -> Result<()> {
        self.go_on(attempt, Duration::ZERO).map(drop)
    }

    /// Waits until `deadline` for the secret of the login, if that is missing. `false`: the deadline passed first.
    pub(super) fn await_secret(&mut self, deadline: Instant) -> Result<bool> {
        let awaiting = |it: &mut Authentication| it.attempt.take_if(|(_, stage)| matches!(stage, Stage::AwaitsSecret));
        let Some((attempt, _)) = self.authentication.as_mut().and_then(awaiting) else { return Ok(true) };
        self.go_on(attempt, deadline.saturating_duration_since(Instant::now()))
    }

    /// Sends SaslHandshake once the secret is there.
    fn go_on(&mut self, mut attempt: Attempt, wait: Duration) -> Result<bool> {
        match attempt.is_ready(wait, &self.interrupter) {
            Ok(true) => {
                let name = StrBytes::from_static_str(attempt.mechanism());
                let request = SaslHandshakeRequest::default().with_mechanism(name);
                self.ask_for_login(attempt, SASL_HANDSHAKE_VERSION, &request).map(|()| true)
            }
            Ok(false) => {
                self.set_attempt(attempt, Stage::AwaitsSecret);
                self.interrupter.check().map(|()| false)
            }
            Err(fault) => Err(self.insecure(fault)),
        }
    }

    fn set_attempt(&mut self, attempt: Attempt, stage: Stage) {
        if let Some(authentication) = &mut self.authentication {
            authentication.attempt = Some((attempt, stage));
        }
    }

    fn ask_for_login<R: Request>(&mut self, attempt: Attempt, version: i16, request: &R) -> Result<()> {
        let (mut frame, asked) = self.frame_of(version, request)?;
        let written = self.write(&frame);
        // It may have a password.
        frame.zeroize();
        written?;
        self.set_attempt(attempt, Stage::Asked(asked));
        Ok(())
    }

    /// Takes the answer to a request of the login and sends the next one, or what waits for the end of the login.
    pub(super) fn go_on_with_login(&mut self, frame: Bytes) -> Result<()> {
        let attempt = self.authentication.as_mut().and_then(|it| it.attempt.take());
        let Some((mut attempt, Stage::Asked(asked))) = attempt else {
            return Err(self.malformed("an answer before a login was asked for".to_owned()));
        };
        let is_handshake = asked.request == name_of::<SaslHandshakeRequest>();
        let mut body = self.open_frame(frame, asked)?;
        let next = if is_handshake {
            let response = self.decode::<SaslHandshakeRequest>(&mut body, SASL_HANDSHAKE_VERSION)?;
            attempt.offered(&response).map(Next::Send)
        } else {
            let response = self.decode::<SaslAuthenticateRequest>(&mut body, SASL_AUTHENTICATE_VERSION)?;
            attempt.answered(&response, Instant::now())
        };
        match next.map_err(|fault| self.insecure(fault))? {
            Next::Send(message) => {
                // The copy in the request is freed unerased: the codec takes nothing else.
                let request = SaslAuthenticateRequest::default().with_auth_bytes(Bytes::copy_from_slice(&message));
                self.ask_for_login(attempt, SASL_AUTHENTICATE_VERSION, &request)
            }
            Next::Done(renewal) => {
                let Some(authentication) = &mut self.authentication else { return Ok(()) };
                authentication.renewal = renewal;
                authentication.is_warned = false;
                let held = std::mem::take(&mut authentication.held);
                self.write(&held)
            }
        }
    }

    /// Renews the login if it is time, the secret is there, and no response is owed. At the end of the login the next
    /// request waits for the secret. A renewal that cannot begin is tried again, and holds no request back.
    pub(super) fn renew(&mut self) -> Result<()> {
        // The broker judges the login when it reads the request.
        let (now, is_free) = (Instant::now() + self.muted_for(), self.outstanding.is_empty());
        let Some(it) = &mut self.authentication else { return Ok(()) };
        let Some(renewal) = it.renewal.filter(|renewal| it.attempt.is_none() && now >= renewal.due) else {
            return Ok(());
        };
        // After hours without a request the secret of the last one is old.
        let next = it.next.take().filter(|next| next.is_fresh(now));
        let begun = next.map_or_else(|| Attempt::begin(&it.login, &self.broker, now), Ok);
        let ready = begun.and_then(|mut next| Ok((next.is_ready(Duration::ZERO, &self.interrupter)?, next)));
        match ready {
            Ok((is_ready, next)) if is_free && (is_ready || now >= renewal.end) => {
                self.go_on(next, Duration::ZERO).map(drop)
            }
            Ok((_, next)) => {
                it.next = Some(next);
                Ok(())
            }
            Err(fault) => {
                it.renewal = Some(Renewal { due: now + RENEWAL_PAUSE, ..renewal });
                if !std::mem::replace(&mut it.is_warned, true) {
                    let LoginFault { detail, .. } = fault;
                    log::warn!("{}: the login is not renewed, but lasts for now: {detail}; retrying", self.broker);
                }
                Ok(())
            }
        }
    }

    fn insecure(&mut self, fault: LoginFault) -> KafkaError {
        self.close();
        KafkaError::Security { broker: self.broker.clone(), detail: fault.detail, is_final: fault.is_final }
    }
}

#[cfg(test)]
mod tests;
