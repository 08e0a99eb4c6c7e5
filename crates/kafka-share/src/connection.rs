//! One TCP connection to one broker: sends requests, receives their responses in order.
//!
//! Knows frames, headers, correlation ids and deadlines (<https://kafka.apache.org/protocol#protocol_common>). It knows
//! nothing of the requests' meaning, and never opens a second connection. Receiving can be resumed: when a deadline
//! passes, the partial frame stays in the buffer. The caller then waits again or drops the connection.
//! [`Connection::call`] sends, receives and closes at its deadline. TLS and SASL, which are not built yet, belong
//! between connecting and the first request.

use std::collections::VecDeque;
use std::io::{ErrorKind, Read, Write};
use std::net::{Shutdown, TcpStream};
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::{Buf, BufMut, Bytes, BytesMut};
use kafka_protocol::messages::{ApiVersionsRequest, ApiVersionsResponse, RequestHeader, ResponseHeader};
use kafka_protocol::protocol::{Decodable, Encodable, HeaderVersion, Request, StrBytes};

use super::address::BrokerAddress;
use super::bounded;
use super::client_options::ClientOptions;
use super::dial::dial;
use super::error::{ErrorCode, KafkaError, Result};
use super::interrupt::{Interrupter, Registration};
use super::share_lag;

/// Largest response taken, in bytes. Far above every fetch of this client, far below "HTTP" read as a length.
const FRAME_CAP: usize = 256 << 20;
/// Size of the read buffer at rest, and its smallest growth: memory follows the bytes that arrived, not a length field.
const READ_STEP: usize = 16 << 10;
const READ_STEP_MAX: usize = 1 << 20;
/// Shortest wait that the operating system accepts; zero would mean no limit.
const SHORTEST_WAIT: Duration = Duration::from_millis(1);
/// A larger write buffer is freed after its request.
const WRITE_BUFFER_KEPT: usize = 256 << 10;

/// A request without its response.
#[derive(Debug)]
struct Outstanding {
    correlation: i32,
    request: &'static str,
    /// Whether the response's header has tagged fields (response header version 1).
    flexible: bool,
}

/// One connection. Dropping it closes it.
#[derive(Debug)]
pub struct Connection {
    broker: BrokerAddress,
    socket: Arc<TcpStream>,
    interrupter: Interrupter,
    client_id: StrBytes,
    next_correlation: i32,
    outstanding: VecDeque<Outstanding>,
    outgoing: BytesMut,
    incoming: BytesMut,
    write_timeout: Duration,
    broken: bool,
    // Leaves the registry when the connection is dropped.
    _registration: Registration,
}

impl Connection {
    /// Connects to `broker`, trying the addresses of its name until the connect timeout is used up.
    ///
    /// # Errors
    /// `Io` with the last failure: the name has no address, or none of its addresses takes a connection. `Interrupted`.
    pub fn open(broker: &BrokerAddress, options: &ClientOptions) -> Result<Self> {
        options.interrupter.check()?;
        let (socket, registration) = dial(broker, options).map_err(|source| match options.interrupter.check() {
            Ok(()) => KafkaError::Io { action: "cannot connect to", broker: broker.clone(), source },
            Err(interrupted) => interrupted,
        })?;
        Ok(Self {
            broker: broker.clone(),
            socket,
            interrupter: options.interrupter.clone(),
            client_id: StrBytes::from_string(options.client_id.clone()),
            next_correlation: 0,
            outstanding: VecDeque::new(),
            outgoing: BytesMut::new(),
            incoming: BytesMut::new(),
            write_timeout: options.request_timeout,
            broken: false,
            _registration: registration,
        })
    }

    /// The broker as it was addressed.
    pub fn broker(&self) -> &BrokerAddress {
        &self.broker
    }

    /// Whether an error has closed the connection. Every later call fails.
    pub fn is_broken(&self) -> bool {
        self.broken
    }

    /// Sends `request` and waits for its response; closes the connection on any error and when `timeout` passes.
    pub fn call<R: Request>(&mut self, version: i16, request: &R, timeout: Duration) -> Result<R::Response> {
        let deadline = Instant::now() + timeout;
        let correlation = self.send(version, request)?;
        let Some(mut body) = self.receive(correlation, deadline.saturating_duration_since(Instant::now()))? else {
            self.close();
            return Err(KafkaError::Timeout { request: name_of::<R>(), broker: self.broker.clone(), waited: timeout });
        };
        self.decode::<R>(&mut body, version)
    }

    /// As [`call`](Self::call), with encoded bodies and flexible headers: for versions that the codec does not know.
    pub fn call_body(&mut self, api_key: i16, version: i16, body: &[u8], timeout: Duration) -> Result<Bytes> {
        let deadline = Instant::now() + timeout;
        let correlation = self.send_body(api_key, version, true, body)?;
        let answer = self.receive(correlation, deadline.saturating_duration_since(Instant::now()))?;
        answer.ok_or_else(|| {
            self.close();
            KafkaError::Timeout { request: name_of_key(api_key), broker: self.broker.clone(), waited: timeout }
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
        let header_version = R::header_version(version);
        let flexible = R::Response::header_version(version) > 0;
        self.send_frame(R::KEY, version, header_version, flexible, name_of::<R>(), |frame| {
            request.encode(frame, version)
        })
    }

    /// Sends an encoded body: for versions that the codec does not know.
    pub fn send_body(&mut self, api_key: i16, version: i16, flexible_header: bool, body: &[u8]) -> Result<i32> {
        let header_version = if flexible_header { 2 } else { 1 };
        self.send_frame(api_key, version, header_version, flexible_header, name_of_key(api_key), |frame| {
            frame.put_slice(body);
            Ok::<(), std::convert::Infallible>(())
        })
    }

    fn send_frame<E: std::fmt::Display>(
        &mut self,
        api_key: i16,
        version: i16,
        header_version: i16,
        flexible: bool,
        request: &'static str,
        encode_body: impl FnOnce(&mut BytesMut) -> std::result::Result<(), E>,
    ) -> Result<i32> {
        self.usable()?;
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
        self.write(&frame)?;
        if frame.capacity() <= WRITE_BUFFER_KEPT {
            self.outgoing = frame;
        }
        self.next_correlation = self.next_correlation.wrapping_add(1);
        self.outstanding.push_back(Outstanding { correlation, request, flexible });
        Ok(correlation)
    }

    /// Writes the whole frame or breaks the connection: half a frame cannot be taken back, and is not finished later.
    /// Share sessions lose nothing by that. Their requests are small, so a write blocks only with hundreds of kB
    /// unread, and TCP_USER_TIMEOUT ends such a connection soon after.
    fn write(&mut self, mut frame: &[u8]) -> Result<()> {
        let deadline = Instant::now() + self.write_timeout;
        while !frame.is_empty() {
            let left = deadline.saturating_duration_since(Instant::now());
            let written = if left.is_zero() {
                Err(ErrorKind::TimedOut.into())
            } else {
                // A socket on which no deadline can be set also fails the write, which reports it.
                let _ = self.socket.set_write_timeout(Some(left.max(SHORTEST_WAIT)));
                (&*self.socket).write(frame)
            };
            match written {
                Ok(count) => frame = &frame[count..],
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                // The deadline is checked at the head of the loop.
                Err(error) if error.kind() == ErrorKind::WouldBlock => {}
                Err(error) => return Err(self.failed("cannot write to", error)),
            }
        }
        Ok(())
    }

    /// Waits up to `wait` (at least a millisecond) for the response with this correlation id and returns its body,
    /// without the header. `None`: the response is incomplete; the connection is good and the next call continues.
    ///
    /// The body shares the memory of the whole frame; copy what you keep for long.
    pub fn receive(&mut self, correlation: i32, wait: Duration) -> Result<Option<Bytes>> {
        self.usable()?;
        let deadline = Instant::now() + wait;
        loop {
            if let Some(frame) = self.take_frame()? {
                return self.open_frame(frame, correlation).map(Some);
            }
            if !self.fill(deadline)? {
                return Ok(None);
            }
        }
    }

    /// Cuts one whole frame, without its length field, from the front of the buffer.
    fn take_frame(&mut self) -> Result<Option<Bytes>> {
        let Some(length) = self.incoming.first_chunk::<4>().map(|bytes| i32::from_be_bytes(*bytes)) else {
            return Ok(None);
        };
        let Some(length) = usize::try_from(length).ok().filter(|&length| (4..=FRAME_CAP).contains(&length)) else {
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
        let step = held.clamp(READ_STEP, READ_STEP_MAX);
        let mut first = true;
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            // Even a wait of zero reads once.
            if left.is_zero() && !first {
                return Ok(false);
            }
            first = false;
            let timeout = self.socket.set_read_timeout(Some(left.max(SHORTEST_WAIT)));
            self.incoming.resize(held + step, 0);
            let read = timeout.and_then(|()| (&*self.socket).read(&mut self.incoming[held..]));
            self.incoming.truncate(held + *read.as_ref().unwrap_or(&0));
            match read {
                Ok(0) => return Err(self.closed()),
                Ok(_) => return Ok(true),
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                // A passed read deadline surfaces as WouldBlock. TimedOut is the kernel's report of a dead path. The
                // kernel reports it once: the next read would look as if the broker had closed the connection.
                Err(error) if error.kind() == ErrorKind::WouldBlock => {}
                Err(error) => return Err(self.failed("cannot read from", error)),
            }
        }
    }

    /// Checks the header of a response and returns the bytes after it.
    fn open_frame(&mut self, mut frame: Bytes, correlation: i32) -> Result<Bytes> {
        let Some(expected) = self.outstanding.pop_front() else {
            return Err(self.malformed("an answer that nothing was asked for".into()));
        };
        let came = frame.first_chunk::<4>().map(|bytes| i32::from_be_bytes(*bytes));
        if came != Some(expected.correlation) || correlation != expected.correlation {
            return Err(self.malformed(format!(
                "correlation id {came:?} in answer to {} {}, {correlation} wanted",
                expected.request, expected.correlation
            )));
        }
        ResponseHeader::decode(&mut frame, i16::from(expected.flexible))
            .map_err(|error| self.malformed(format!("header of the answer to {}: {error}", expected.request)))?;
        Ok(frame)
    }

    /// Asks for the requests that the broker speaks (ApiVersions v3, KIP-511) and its cluster's features (KIP-584).
    pub fn api_versions(&mut self, timeout: Duration) -> Result<ApiVersions> {
        const VERSION: i16 = 3;
        let request = ApiVersionsRequest::default()
            .with_client_software_name(StrBytes::from_static_str(env!("CARGO_PKG_NAME")))
            .with_client_software_version(StrBytes::from_static_str(env!("CARGO_PKG_VERSION")));
        let correlation = self.send(VERSION, &request)?;
        let Some(mut body) = self.receive(correlation, timeout)? else {
            self.close();
            return Err(KafkaError::Timeout { request: "ApiVersions", broker: self.broker.clone(), waited: timeout });
        };
        // A broker older than 2.4 answers in version 0, which begins with the same field.
        if body.first_chunk::<2>() == Some(&ErrorCode::UNSUPPORTED_VERSION.0.to_be_bytes()) {
            return Err(KafkaError::broker("ApiVersions", ErrorCode::UNSUPPORTED_VERSION, None));
        }
        let response = self.decode::<ApiVersionsRequest>(&mut body, VERSION)?;
        ErrorCode(response.error_code).check("ApiVersions", None)?;
        Ok(ApiVersions(response))
    }

    /// Returns whether the broker has kept an idle connection open. A frozen broker looks alive.
    pub fn is_alive(&mut self) -> bool {
        if self.broken {
            return false;
        }
        let peeked = self.socket.set_read_timeout(Some(SHORTEST_WAIT)).and_then(|()| self.socket.peek(&mut [0]));
        let alive = match peeked {
            Ok(count) => count > 0,
            Err(error) => matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::Interrupted),
        };
        if !alive {
            self.close();
        }
        alive
    }

    /// Closes the connection; the outcome of unanswered requests stays unknown.
    pub fn close(&mut self) {
        self.broken = true;
        // Fails only if the peer has closed already.
        let _ = self.socket.shutdown(Shutdown::Both);
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
        KafkaError::Closed { broker: self.broker.clone() }
    }

    fn failed(&mut self, action: &'static str, source: std::io::Error) -> KafkaError {
        match self.closed() {
            KafkaError::Interrupted => KafkaError::Interrupted,
            _ => KafkaError::Io { action, broker: self.broker.clone(), source },
        }
    }

    pub(super) fn malformed(&mut self, detail: String) -> KafkaError {
        self.close();
        KafkaError::Malformed { broker: self.broker.clone(), detail }
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

/// A broker's description of itself (KIP-35, KIP-584).
#[derive(Clone, Debug)]
pub struct ApiVersions(ApiVersionsResponse);

impl ApiVersions {
    /// API key of ShareGroupHeartbeat (KIP-932).
    pub const SHARE_GROUP_HEARTBEAT: i16 = 76;
    /// API key of ShareFetch (KIP-932).
    pub const SHARE_FETCH: i16 = 78;
    /// API key of ShareAcknowledge (KIP-932).
    pub const SHARE_ACKNOWLEDGE: i16 = 79;

    /// Whether the broker speaks this version of the request.
    pub fn supports(&self, api_key: i16, version: i16) -> bool {
        let mut keys = self.0.api_keys.iter();
        keys.any(|api| api.api_key == api_key && (api.min_version..=api.max_version).contains(&version))
    }

    /// The level of a feature that the cluster has switched on; `None` if it is off.
    pub fn feature_level(&self, name: &str) -> Option<i16> {
        let mut features = self.0.finalized_features.iter();
        features.find(|feature| feature.name.as_str() == name).map(|feature| feature.max_version_level)
    }
}

#[cfg(test)]
mod tests;
