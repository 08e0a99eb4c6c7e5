//! One TCP connection to one broker: sends requests, receives their responses in order.
//!
//! Knows frames, headers, correlation ids and deadlines (<https://kafka.apache.org/protocol#protocol_common>). It knows
//! nothing of the requests' meaning, and never opens a second connection. Receiving can be resumed: when a deadline
//! passes, the partial frame stays in the buffer. The caller then waits again or drops the connection.
//! [`Connection::call`] sends, receives and closes at its deadline, which begins when the broker can read the request:
//! later for a throttled client (KIP-219).
//!
//! TLS is `transport`'s. A [`login`](super::login) needs no call either: requests that are sent
//! before its end wait here, and receiving goes on with it. It is renewed (KIP-368) before a request when no response
//! is owed: Kafka takes nothing else between its steps.

use std::collections::VecDeque;
use std::io::ErrorKind;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::{Buf, BufMut, Bytes, BytesMut};
use kafka_protocol::messages::{RequestHeader, ResponseHeader};
use kafka_protocol::protocol::{Decodable, Encodable, HeaderVersion, Request, StrBytes};

use super::address::BrokerAddress;
use super::bounded;
use super::client_options::ClientOptions;
use super::dial::dial;
use super::error::{ErrorCode, KafkaError, Result};
use super::interrupt::{Interrupter, Registration};
use super::login::Attempt;
use super::share_lag;
use super::statistics::Statistics;
use super::throttle::{self, Throttles};
use super::tls::{self, Tls};
use super::transport::Transport;
use authentication::Authentication;

mod api_versions;
mod authentication;

pub use api_versions::ApiVersions;

/// Largest response taken, in bytes. Far above every fetch of this client, far below "HTTP" read as a length.
const FRAME_CAP: usize = 256 << 20;
/// Size of the read buffer at rest, and its smallest growth: memory follows the bytes that arrived, not a length field.
const READ_STEP: usize = 16 << 10;
const READ_STEP_MAX: usize = 1 << 20;
/// A larger write buffer is freed after its request.
const WRITE_BUFFER_KEPT: usize = 256 << 10;

/// A request without its response.
#[derive(Debug)]
struct Outstanding {
    correlation: i32,
    api_key: i16,
    request: &'static str,
    /// Whether the response's header has tagged fields (response header version 1).
    flexible: bool,
    sent: Instant,
}

/// One connection. Dropping it closes it.
#[derive(Debug)]
pub struct Connection {
    broker: BrokerAddress,
    transport: Transport,
    tls: Option<Arc<Tls>>,
    authentication: Option<Authentication>,
    interrupter: Interrupter,
    client_id: StrBytes,
    next_correlation: i32,
    outstanding: VecDeque<Outstanding>,
    outgoing: BytesMut,
    incoming: BytesMut,
    write_timeout: Duration,
    /// The broker reads nothing before this time.
    muted_until: Instant,
    throttles: Throttles,
    statistics: Statistics,
    broken: bool,
    // Leaves the registry when the connection is dropped.
    _registration: Registration,
}

impl Connection {
    /// Connects to `broker`, trying the addresses of its name until the connect timeout is used up. Does not wait for
    /// the handshake of TLS and the login: requests can be sent, and [`receive`](Self::receive) goes on with both. So a
    /// broker that is frozen in the middle of them is a broker that owes a response.
    ///
    /// # Errors
    /// `Io` with the last failure: the name has no address, or none of its addresses takes a connection. `Security`: no
    /// certificate can have the broker's name; there is no login to try. `Interrupted`.
    pub fn open(broker: &BrokerAddress, options: &ClientOptions) -> Result<Self> {
        options.interrupter.check()?;
        // Before connecting: after a refused login most attempts end here.
        let login = options.login.as_ref().map(|login| Attempt::begin(login, broker, Instant::now())).transpose();
        let attempt = login.map_err(|fault| KafkaError::Security {
            broker: broker.clone(),
            detail: fault.detail,
            is_final: fault.is_final,
        })?;
        let session = options.tls.as_ref().map(|tls| tls.session(&broker.host)).transpose().map_err(|error| {
            KafkaError::Security { broker: broker.clone(), detail: error.to_string(), is_final: true }
        })?;
        let (socket, registration) = dial(broker, options).map_err(|source| match options.interrupter.check() {
            Ok(()) => KafkaError::Io { action: "cannot connect to", broker: broker.clone(), source },
            Err(interrupted) => interrupted,
        })?;
        options.statistics.connected();
        let mut connection = Self {
            broker: broker.clone(),
            transport: Transport::new(socket, session),
            tls: options.tls.clone(),
            authentication: options.login.clone().map(Authentication::new),
            interrupter: options.interrupter.clone(),
            client_id: StrBytes::from_string(options.client_id.clone()),
            next_correlation: 0,
            outstanding: VecDeque::new(),
            outgoing: BytesMut::new(),
            incoming: BytesMut::new(),
            write_timeout: options.request_timeout,
            muted_until: Instant::now(),
            throttles: options.throttles.clone(),
            statistics: options.statistics.clone(),
            broken: false,
            _registration: registration,
        };
        if let Some(attempt) = attempt {
            connection.log_in(attempt)?;
        }
        Ok(connection)
    }

    /// The broker as it was addressed.
    pub fn broker(&self) -> &BrokerAddress {
        &self.broker
    }

    /// Whether an error has closed the connection. Every later call fails.
    pub fn is_broken(&self) -> bool {
        self.broken
    }

    /// The broker throttles this client, and reads nothing from the connection before this time (KIP-219).
    #[must_use]
    pub fn muted_until(&self) -> Instant {
        self.muted_until
    }

    /// How long the broker still reads nothing, at most a minute. Waiting for a response begins afterwards.
    #[must_use]
    pub fn muted_for(&self) -> Duration {
        self.muted_until.saturating_duration_since(Instant::now()).min(throttle::LONGEST)
    }

    /// Sends `request` and waits for its response; closes the connection on any error and when `timeout` passes after
    /// the broker can read the request.
    pub fn call<R: Request>(&mut self, version: i16, request: &R, timeout: Duration) -> Result<R::Response> {
        let deadline = Instant::now() + self.muted_for() + timeout;
        let correlation = self.send(version, request)?;
        let Some(mut body) = self.receive(correlation, deadline.saturating_duration_since(Instant::now()))? else {
            self.close();
            return Err(self.late(name_of::<R>(), timeout));
        };
        self.decode::<R>(&mut body, version)
    }

    /// As [`call`](Self::call), with encoded bodies and flexible headers: for versions that the codec does not know.
    pub fn call_body(&mut self, api_key: i16, version: i16, body: &[u8], timeout: Duration) -> Result<Bytes> {
        let deadline = Instant::now() + self.muted_for() + timeout;
        let correlation = self.send_body(api_key, version, true, body)?;
        let answer = self.receive(correlation, deadline.saturating_duration_since(Instant::now()))?;
        answer.ok_or_else(|| {
            self.close();
            self.late(name_of_key(api_key), timeout)
        })
    }

    /// Decodes the body of the response to a request of type `R`; closes the connection if that fails.
    pub fn decode<R: Request>(&mut self, body: &mut Bytes, version: i16) -> Result<R::Response> {
        let flexible = R::Response::header_version(version) > 0;
        bounded::decode(body, version, flexible)
            .map_err(|error| self.malformed(format!("answer to {}: {error}", name_of::<R>())))
    }

    /// Sends `request` and returns the correlation id to receive its response with. Responses come in the order of the
    /// requests.
    pub fn send<R: Request>(&mut self, version: i16, request: &R) -> Result<i32> {
        self.prepare_to_send()?;
        let (frame, asked) = self.frame_of(version, request)?;
        self.send_frame(frame, asked)
    }

    /// Sends an encoded body: for versions that the codec does not know.
    pub fn send_body(&mut self, api_key: i16, version: i16, flexible_header: bool, body: &[u8]) -> Result<i32> {
        self.prepare_to_send()?;
        let header_version = if flexible_header { 2 } else { 1 };
        let encode = |frame: &mut BytesMut| {
            frame.put_slice(body);
            Ok::<(), std::convert::Infallible>(())
        };
        let name = name_of_key(api_key);
        let (frame, asked) = self.encode_frame(api_key, version, header_version, flexible_header, name, encode)?;
        self.send_frame(frame, asked)
    }

    fn prepare_to_send(&mut self) -> Result<()> {
        self.usable()?;
        self.renew()
    }

    fn frame_of<R: Request>(&mut self, version: i16, request: &R) -> Result<(BytesMut, Outstanding)> {
        let header_version = R::header_version(version);
        let flexible = R::Response::header_version(version) > 0;
        self.encode_frame(R::KEY, version, header_version, flexible, name_of::<R>(), |frame| {
            request.encode(frame, version)
        })
    }

    fn encode_frame<E: std::fmt::Display>(
        &mut self,
        api_key: i16,
        version: i16,
        header_version: i16,
        flexible: bool,
        request: &'static str,
        encode_body: impl FnOnce(&mut BytesMut) -> std::result::Result<(), E>,
    ) -> Result<(BytesMut, Outstanding)> {
        let correlation = self.next_correlation;
        let header = RequestHeader::default()
            .with_request_api_key(api_key)
            .with_request_api_version(version)
            .with_correlation_id(correlation)
            .with_client_id(Some(self.client_id.clone()));
        let mut frame = std::mem::take(&mut self.outgoing);
        frame.clear();
        frame.put_i32(0);
        let encoded = header.encode(&mut frame, header_version).map_err(|error| error.to_string());
        encoded
            .and_then(|()| encode_body(&mut frame).map_err(|error| error.to_string()))
            .and_then(|()| i32::try_from(frame.len() - 4).map_err(|error| error.to_string()))
            .map(|length| frame[..4].copy_from_slice(&length.to_be_bytes()))
            .map_err(|detail| KafkaError::Unencodable { request, detail })?;
        self.next_correlation = self.next_correlation.wrapping_add(1);
        Ok((frame, Outstanding { correlation, api_key, request, flexible, sent: Instant::now() }))
    }

    fn send_frame(&mut self, frame: BytesMut, asked: Outstanding) -> Result<i32> {
        if !self.hold(&frame) {
            self.write(&frame)?;
        }
        if frame.capacity() <= WRITE_BUFFER_KEPT {
            self.outgoing = frame;
        }
        let correlation = asked.correlation;
        self.outstanding.push_back(asked);
        Ok(correlation)
    }

    /// Writes the whole frame or breaks the connection: half a frame cannot be taken back, and is not finished later.
    /// Share sessions lose nothing by that. Their requests are small, so a write blocks only with hundreds of kB
    /// unread, and TCP_USER_TIMEOUT ends such a connection soon after.
    fn write(&mut self, frame: &[u8]) -> Result<()> {
        let written = self.transport.write(frame, Instant::now() + self.muted_for() + self.write_timeout);
        written.map_err(|error| self.failed("cannot write to", error))
    }

    /// Waits up to `wait` (at least a millisecond) for the response with this correlation id and returns its body,
    /// without the header. `None`: the response is incomplete; the connection is good and the next call continues.
    ///
    /// The body shares the memory of the whole frame; copy what you keep for long.
    pub fn receive(&mut self, correlation: i32, wait: Duration) -> Result<Option<Bytes>> {
        self.usable()?;
        let deadline = Instant::now() + wait;
        loop {
            if !self.await_secret(deadline)? {
                return Ok(None);
            }
            match self.take_frame()? {
                Some(frame) if self.is_logging_in() => self.go_on_with_login(frame)?,
                Some(frame) => return self.oldest(frame, correlation).map(Some),
                None if !self.fill(deadline)? => return Ok(None),
                None => {}
            }
        }
    }

    /// Cuts one whole frame, without its length field, from the front of the buffer.
    fn take_frame(&mut self) -> Result<Option<Bytes>> {
        let Some(length) = self.incoming.first_chunk::<4>().map(|bytes| i32::from_be_bytes(*bytes)) else {
            return Ok(None);
        };
        let Some(length) = usize::try_from(length).ok().filter(|&length| (4..=FRAME_CAP).contains(&length)) else {
            // An alert of TLS (RFC 8446, section 5.1).
            if self.tls.is_none() && self.incoming.starts_with(&[0x15, 3]) {
                self.close();
                let detail = "it speaks TLS; set KAFKA_SECURITY_PROTOCOL to SSL or SASL_SSL, as this listener has it";
                return Err(KafkaError::Security {
                    broker: self.broker.clone(),
                    detail: detail.to_owned(),
                    is_final: true,
                });
            }
            let text = self.incoming[..4].escape_ascii().to_string();
            return Err(self.malformed(format!("a frame of {length} bytes (it begins \"{text}\")")));
        };
        if self.incoming.len() < 4 + length {
            return Ok(None);
        }
        self.incoming.advance(4);
        Ok(Some(self.incoming.split_to(length).freeze()))
    }

    /// Reads once. `false`: the deadline passed first.
    fn fill(&mut self, deadline: Instant) -> Result<bool> {
        let held = self.incoming.len();
        // Doubles within bounds: a large response takes few reads, a false length reserves no memory.
        self.incoming.resize(held + held.clamp(READ_STEP, READ_STEP_MAX), 0);
        let read = self.transport.read(&mut self.incoming[held..], deadline);
        let count = read.as_ref().map_or(0, |count| count.unwrap_or(0));
        self.incoming.truncate(held + count);
        match read {
            Ok(None) => Ok(false),
            Ok(Some(0)) => Err(self.closed()),
            Ok(Some(_)) => Ok(true),
            Err(error) => Err(self.failed("cannot read from", error)),
        }
    }

    /// Takes the response to the oldest unanswered request, which must be the awaited one.
    fn oldest(&mut self, frame: Bytes, awaited: i32) -> Result<Bytes> {
        match self.outstanding.pop_front() {
            Some(oldest) if oldest.correlation == awaited => self.open_frame(frame, oldest),
            Some(oldest) => {
                let Outstanding { correlation, request, .. } = oldest;
                Err(self.malformed(format!("answer to {request} {correlation}, but {awaited} is awaited")))
            }
            None => Err(self.malformed("an answer that nothing was asked for".into())),
        }
    }

    /// Checks the header of a response and returns the bytes after it.
    fn open_frame(&mut self, mut frame: Bytes, expected: Outstanding) -> Result<Bytes> {
        let Outstanding { correlation, api_key, request, flexible, sent } = expected;
        let came = frame.first_chunk::<4>().map(|bytes| i32::from_be_bytes(*bytes));
        if came != Some(correlation) {
            let detail = format!("correlation id {came:?} in answer to {request} {correlation}");
            return Err(self.malformed(detail));
        }
        ResponseHeader::decode(&mut frame, i16::from(flexible))
            .map_err(|error| self.malformed(format!("header of the answer to {request}: {error}")))?;
        self.note_throttle(throttle::time_of(api_key, &frame));
        self.statistics.answered(api_key, sent.elapsed());
        Ok(frame)
    }

    /// Whether the broker has throttled this client, on any connection, within the last minute.
    #[must_use]
    pub fn is_throttled(&self) -> bool {
        self.throttles.has(&self.broker, Instant::now())
    }

    fn note_throttle(&mut self, time: Duration) {
        let now = Instant::now();
        if time.is_zero() {
            return;
        }
        self.muted_until = now + time;
        if self.throttles.begins(&self.broker, time, now) {
            log::info!("a quota of Kafka: broker {} throttles this client, now for {time:.1?}", self.broker);
        }
    }

    /// Returns whether the broker has kept an idle connection open. A frozen broker looks alive.
    pub fn is_alive(&mut self) -> bool {
        if self.broken {
            return false;
        }
        let alive = self.transport.is_alive();
        if !alive {
            self.close();
        }
        alive
    }

    /// Closes the connection; the outcome of unanswered requests stays unknown.
    pub fn close(&mut self) {
        self.count_loss(true);
        self.broken = true;
        self.transport.close();
    }

    /// The error of a response that has not come for this long. A broker is not to blame for a login that waits for its
    /// secret.
    pub(super) fn late(&self, request: &'static str, waited: Duration) -> KafkaError {
        let broker = self.broker.clone();
        if self.is_awaiting_secret() {
            let detail = format!("the command for the login's secret has not ended within {waited:?}");
            return KafkaError::Security { broker, detail, is_final: false };
        }
        KafkaError::Timeout { request, broker, waited }
    }

    /// Counts the end of a connection that had work. The interrupter ends all of them with the program.
    fn count_loss(&self, had_work: bool) {
        if had_work && !self.broken && !self.interrupter.is_interrupted() {
            self.statistics.lost();
        }
    }

    fn usable(&self) -> Result<()> {
        self.interrupter.check()?;
        if self.broken { Err(KafkaError::Closed { broker: self.broker.clone() }) } else { Ok(()) }
    }

    fn closed(&mut self) -> KafkaError {
        self.close();
        // The interrupter shuts sockets down, which reads as if the broker had closed the connection.
        if self.interrupter.is_interrupted() {
            return KafkaError::Interrupted;
        }
        let broker = self.broker.clone();
        if self.transport.is_handshaking() {
            // A broker that stops does this, too.
            let detail = "it closed the connection in the handshake of TLS; is this a listener for SSL or SASL_SSL?";
            return KafkaError::Security { broker, detail: detail.to_owned(), is_final: false };
        }
        KafkaError::Closed { broker }
    }

    fn failed(&mut self, action: &'static str, source: std::io::Error) -> KafkaError {
        let was_cut = matches!(source.kind(), ErrorKind::ConnectionReset | ErrorKind::BrokenPipe);
        match (self.closed(), &self.tls, tls::session_error(&source)) {
            (KafkaError::Interrupted, _, _) => KafkaError::Interrupted,
            // A plain listener may also reset a connection in the handshake.
            (error @ KafkaError::Security { .. }, _, None) if was_cut => error,
            (_, Some(tls), Some(error)) => {
                let (detail, is_final) = tls.describe(error, &self.broker.host);
                KafkaError::Security { broker: self.broker.clone(), detail, is_final }
            }
            _ => KafkaError::Io { action, broker: self.broker.clone(), source },
        }
    }

    pub(super) fn malformed(&mut self, detail: String) -> KafkaError {
        self.close();
        KafkaError::Malformed { broker: self.broker.clone(), detail }
    }
}

impl Drop for Connection {
    fn drop(&mut self) {
        self.count_loss(!self.outstanding.is_empty());
    }
}

/// Names requests whose body the caller encodes.
fn name_of_key(api_key: i16) -> &'static str {
    match api_key {
        ApiVersions::SHARE_GROUP_HEARTBEAT => "ShareGroupHeartbeat",
        ApiVersions::SHARE_FETCH => "ShareFetch",
        ApiVersions::SHARE_ACKNOWLEDGE => "ShareAcknowledge",
        share_lag::DESCRIBE_SHARE_GROUP_OFFSETS => "DescribeShareGroupOffsets",
        _ => "request",
    }
}

fn name_of<R>() -> &'static str {
    let path = std::any::type_name::<R>();
    let name = path.rsplit("::").next().unwrap_or(path);
    name.strip_suffix("Request").unwrap_or(name)
}

#[cfg(test)]
mod tests;
