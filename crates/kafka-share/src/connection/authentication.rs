//! The login of one connection, driven by receiving: first after connecting, later as a renewal.
//!
//! [`login`](crate::login) says what to send. Called by [`Connection`].

use std::sync::Arc;
use std::time::Instant;

use bytes::{BufMut, Bytes, BytesMut};
use kafka_protocol::messages::{SaslAuthenticateRequest, SaslHandshakeRequest};
use kafka_protocol::protocol::{Request, StrBytes};
use zeroize::Zeroize;

use super::{Connection, Outstanding, name_of};
use crate::error::{KafkaError, Result};
use crate::login::{Attempt, Login, LoginFault, Next};

/// The login of one connection.
#[derive(Debug)]
pub(super) struct Authentication {
    login: Arc<Login>,
    /// The login that is going on, and its unanswered request.
    attempt: Option<(Attempt, Outstanding)>,
    /// Requests that wait for its end.
    held: BytesMut,
    renew_at: Option<Instant>,
}

/// Versions of the requests of a login: the first with SaslAuthenticate, and the newest of that.
const SASL_HANDSHAKE_VERSION: i16 = 1;
const SASL_AUTHENTICATE_VERSION: i16 = 2;

impl Authentication {
    pub(super) fn new(login: Arc<Login>) -> Self {
        Self { login, attempt: None, held: BytesMut::new(), renew_at: None }
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

    /// Begins a login, if this client has one.
    pub(super) fn log_in(&mut self) -> Result<()> {
        let Some(login) = self.authentication.as_ref().map(|it| Arc::clone(&it.login)) else { return Ok(()) };
        let attempt = Attempt::begin(&login, Instant::now()).map_err(|fault| self.insecure(fault))?;
        let name = StrBytes::from_static_str(attempt.mechanism());
        let request = SaslHandshakeRequest::default().with_mechanism(name);
        self.ask_for_login(attempt, SASL_HANDSHAKE_VERSION, &request)
    }

    fn ask_for_login<R: Request>(&mut self, attempt: Attempt, version: i16, request: &R) -> Result<()> {
        let (mut frame, asked) = self.frame_of(version, request)?;
        let written = self.write(&frame);
        // It may have a password.
        frame.zeroize();
        written?;
        if let Some(authentication) = &mut self.authentication {
            authentication.attempt = Some((attempt, asked));
        }
        Ok(())
    }

    /// Takes the answer to a request of the login and sends the next one, or what waits for the end of the login.
    pub(super) fn go_on_with_login(&mut self, frame: Bytes) -> Result<()> {
        let attempt = self.authentication.as_mut().and_then(|it| it.attempt.take());
        let Some((mut attempt, asked)) = attempt else { return Ok(()) };
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
            Next::Done(renewed_after) => {
                let Some(authentication) = &mut self.authentication else { return Ok(()) };
                authentication.renew_at = renewed_after.map(|after| Instant::now() + after);
                let held = std::mem::take(&mut authentication.held);
                self.write(&held)
            }
        }
    }

    /// Whether a login has to be renewed before the next request.
    pub(super) fn must_renew(&self) -> bool {
        let renew_at = self.authentication.as_ref().and_then(|it| it.renew_at);
        self.outstanding.is_empty() && !self.is_logging_in() && renew_at.is_some_and(|at| Instant::now() >= at)
    }

    fn insecure(&mut self, fault: LoginFault) -> KafkaError {
        self.close();
        KafkaError::Security { broker: self.broker.clone(), detail: fault.detail, is_final: fault.is_final }
    }
}

#[cfg(test)]
mod tests;
