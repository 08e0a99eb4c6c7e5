//! The HTTP side: the listener, the dispatcher, the threads that read large bodies and those that write answers.
//!
//! One dispatcher takes every request in the order in which the library hands them over and never waits: what needs waiting
//! (a body that is not there yet, a result that must be fetched, a socket that must be written) belongs to other threads.
//!
//! What the library (`tiny_http`) does not do for us, and what we do about it, stands in ARCHITECTURE.md under "HTTP".

use super::analyze::{self, LARGEST_BODY, Refusal};
use super::answer::Answer;
use super::connections::Ticket;
use super::desk::{Desk, Exchange, Written};
use super::index::{Known, TaskKey};
use super::lookup::{Question, Questions};
use super::metrics;
use super::page;
use super::submit::{Submitter, Terms};
use crate::stop::Stop;
use crate::task::{is_task_id, unix_now};
use crossbeam_channel::{Receiver, Sender, TrySendError};
use serde_json::{Value, json};
use socket2::{Domain, Protocol, Socket, Type};
use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::Arc;
use std::time::{Duration, Instant};
use tiny_http::{ConfigListenAddr, ListenAddr, Method, Request, Server, ServerConfig};

/// Connections that the kernel holds for us until they are taken.
const BACKLOG: i32 = 1024;
/// An answer that cannot be written for so long is given up: the caller does not read.
const SEND_TIMEOUT: Duration = Duration::from_secs(2);
/// A caller that acknowledges nothing for so long is gone (tcp(7), TCP_USER_TIMEOUT).
const PEER_TIMEOUT: Duration = Duration::from_secs(10);
/// Threads that the library keeps for connections. Fewer than this, and its pool strands connections that come in a burst.
const CONNECTION_THREADS: usize = 256;
/// The library reads bodies up to this size itself, before it hands the request over.
const BUFFERED_BODY: usize = 1024;
/// How often the dispatcher looks whether the gateway ends.
const TICK: Duration = Duration::from_millis(100);
/// A body must be there within this.
const BODY_LIMIT: Duration = Duration::from_secs(10);
/// A task that is younger may be unknown here and known to the gateway that took it; clocks may differ a little.
const UNREAD: Duration = Duration::from_secs(2);
/// How often the own port is tried, and how long an answer may take.
const WATCH_INTERVAL: Duration = Duration::from_secs(5);
const WATCH_TIMEOUT: Duration = Duration::from_secs(5);
/// So many failures in a row mean that the listener is deaf.
const WATCH_FAILURES: u32 = 3;

/// The listening socket. What is set here, accepted sockets inherit on Linux.
///
/// # Errors
/// The address is in use, or not ours to bind.
pub(super) fn listen(address: SocketAddr) -> io::Result<TcpListener> {
    let socket = Socket::new(Domain::for_address(address), Type::STREAM, Some(Protocol::TCP))?;
    socket.set_reuse_address(true)?;
    // Without it an answer over one segment on a kept connection waits 40 ms for the caller's acknowledgement (Nagle).
    socket.set_tcp_nodelay(true)?;
    socket.set_write_timeout(Some(SEND_TIMEOUT))?;
    socket.set_tcp_user_timeout(Some(PEER_TIMEOUT))?;
    socket.set_keepalive(true)?;
    socket.bind(&address.into())?;
    socket.listen(BACKLOG)?;
    Ok(socket.into())
}

/// Starts the library on our listener. Never drop what this returns while somebody may still be answered: dropping it leaves
/// queued requests unanswered.
///
/// # Errors
/// The library could not start its threads.
pub(super) fn serve(listener: TcpListener, address: SocketAddr) -> Result<Server, String> {
    let config = ServerConfig {
        addr: ConfigListenAddr::from_socket_addrs(address).map_err(|error| error.to_string())?,
        ssl: None,
        min_threads: Some(CONNECTION_THREADS),
        max_threads: None,
    };
    Server::from_listener(listener, ListenAddr::from(address), config).map_err(|error| error.to_string())
}

/// A request whose body is still to be read.
#[derive(Debug)]
pub(super) struct LargeBody {
    exchange: Exchange,
    terms: Terms,
    since: Instant,
}

/// The dispatcher and what it hands work to.
pub(super) struct Dispatcher {
    pub(super) desk: Arc<Desk>,
    pub(super) submitter: Arc<Submitter>,
    pub(super) questions: Questions,
    /// Few and bounded. Full: see [`Dispatcher::hand_over`].
    pub(super) bodies: Sender<LargeBody>,
}

impl Dispatcher {
    /// Takes requests until `stop`, then those that are there already.
    ///
    /// # Errors
    /// The library can accept no more connections (file descriptors ran out, for example); it does not recover from that.
    pub(super) fn run(self, server: &Server, stop: &Stop) -> Result<(), String> {
        loop {
            match server.recv_timeout(TICK) {
                Ok(Ok(Some(request))) => self.take(request),
                Ok(Ok(None)) if stop.is_triggered() => return Ok(()),
                Ok(Ok(None)) => {}
                // Something that is no HTTP; the library has answered 400.
                Ok(Err(error)) => log::debug!("a request could not be read: {error:?}"),
                Err(error) => return Err(format!("no more connections can be accepted: {error}")),
            }
        }
    }

    fn take(&self, request: Request) {
        let address = request.remote_addr().copied().unwrap_or_else(|| SocketAddr::from(([0, 0, 0, 0], 0)));
        let ticket = self.desk.state().connections.enter(address);
        let exchange = Exchange { request, ticket };
        let path = path_of(exchange.request.url()).to_owned();
        let is_get = matches!(exchange.request.method(), Method::Get | Method::Head);
        match path.as_str() {
            "/analyze" if *exchange.request.method() == Method::Post => self.analyze(exchange),
            "/analyze" => self.refuse_method(exchange, "POST"),
            _ if !is_get && is_known(&path) => self.refuse_method(exchange, "GET, HEAD"),
            "/workers/status" => {
                let view = self.desk.state().fleet.view(unix_now());
                self.reply(exchange, Answer::json(200, &json!(view)));
            }
            "/health" => self.reply(exchange, self.health()),
            "/livez" => self.checks(exchange, &[("threads", self.desk.is_alive())]),
            "/readyz" => self.checks(exchange, &self.readiness()),
            "/metrics" => {
                let text = self.metrics();
                self.reply(exchange, Answer::bytes(200, metrics::CONTENT_TYPE, text.into_bytes()));
            }
            "/" => self.reply(exchange, page::answer()),
            path => match path.strip_prefix("/tasks/") {
                Some(id) if !id.is_empty() => self.task(exchange, id),
                _ => self
                    .reply(exchange, Answer::problem(404, "there is nothing here; see the README for the API", None)),
            },
        }
    }

    /// Answers a request that has no body, or one that the library has read already. A request with a body still on its way
    /// goes to the body threads, because letting go of it waits for the body.
    fn reply(&self, exchange: Exchange, answer: Answer) {
        self.desk.answer(exchange, answer);
    }

    fn refuse_method(&self, exchange: Exchange, allowed: &str) {
        let answer =
            Answer::problem(405, &format!("this path takes {allowed}"), None).with("Allow", allowed.to_owned());
        if body_is_here(&exchange.request) {
            self.reply(exchange, answer);
        } else {
            // The body threads read it away and answer 405 all the same.
            self.hand_over(LargeBody { exchange, terms: Terms::default(), since: Instant::now() });
        }
    }

    // ---- POST /analyze ----

    fn analyze(&self, mut exchange: Exchange) {
        if !body_is_here(&exchange.request) {
            // Its body must be read away before it can be refused; the body thread finds the same fault.
            let terms = terms_of(&exchange.request).unwrap_or_default();
            return self.hand_over(LargeBody { exchange, terms, since: Instant::now() });
        }
        let terms = match terms_of(&exchange.request) {
            Ok(terms) => terms,
            Err(refusal) => return self.refuse(exchange, &refusal),
        };
        let mut body = Vec::with_capacity(exchange.request.body_length().unwrap_or(0));
        // From memory: it neither waits nor fails.
        let _ = exchange.request.as_reader().read_to_end(&mut body);
        self.submit(exchange, &body, &terms);
    }

    fn submit(&self, exchange: Exchange, body: &[u8], terms: &Terms) {
        match analyze::parse(body, self.desk.config.common.allow_work_ms) {
            Ok(wanted) => self.submitter.submit(exchange, wanted, terms),
            Err(refusal) => self.refuse(exchange, &refusal),
        }
    }

    fn refuse(&self, exchange: Exchange, refusal: &Refusal) {
        self.desk.answer(exchange, Answer::problem(refusal.status, &refusal.detail, None));
    }

    /// Gives a request with a body on its way to a body thread. When all of them are busy with slow bodies and the queue is
    /// full, the request is let go of without an answer: answering would wait for its body, and so would dropping it.
    fn hand_over(&self, body: LargeBody) {
        let refused = match self.bodies.try_send(body) {
            Ok(()) => return,
            Err(TrySendError::Full(body) | TrySendError::Disconnected(body)) => body,
        };
        self.desk.metrics.abandoned_body();
        let LargeBody { exchange: Exchange { request, ticket }, .. } = refused;
        self.forget(ticket);
        std::mem::forget(request);
    }

    fn forget(&self, ticket: Ticket) {
        self.desk.state().connections.leave(ticket);
    }

    /// A body thread: reads bodies until the dispatcher is gone.
    pub(super) fn read_bodies(&self, bodies: &Receiver<LargeBody>) {
        while let Ok(LargeBody { mut exchange, terms, since }) = bodies.recv() {
            if *exchange.request.method() != Method::Post || path_of(exchange.request.url()) != "/analyze" {
                let allowed = if path_of(exchange.request.url()) == "/analyze" { "POST" } else { "GET, HEAD" };
                let detail = format!("this path takes {allowed}");
                self.reply(exchange, Answer::problem(405, &detail, None).with("Allow", allowed.to_owned()));
                continue;
            }
            if let Err(refusal) = terms_of(&exchange.request) {
                self.refuse(exchange, &refusal);
                continue;
            }
            match read_body(&mut exchange.request, since + BODY_LIMIT) {
                Ok(body) => self.submit(exchange, &body, &terms),
                Err(refusal) => self.refuse(exchange, &refusal),
            }
        }
    }

    // ---- GET ----

    fn task(&self, exchange: Exchange, id: &str) {
        let Some(id) = percent_decoded(id).filter(|id| is_task_id(id)) else {
            let detail = "a task id is 1 to 100 printable ASCII characters";
            return self.reply(exchange, Answer::problem(404, detail, None));
        };
        let key = TaskKey::from_id(&id);
        let known = self.desk.state().index.known(key);
        match known {
            Known::Done(place) => {
                self.questions.ask(&self.desk, Question { exchange, key, place, stored: true });
            }
            Known::Pending => self.reply(exchange, Answer::json(200, &json!({ "task_id": id, "state": "pending" }))),
            Known::Nothing if self.desk.is_read_back() && !is_just_made(&id) => {
                let detail = "this task is not known, or its result is older than RESULT_RETENTION";
                self.reply(exchange, Answer::problem(404, detail, Some(&id)));
            }
            Known::Nothing => {
                let detail = "the gateway has not read far enough to know this task; try again";
                self.reply(exchange, Answer::unavailable(detail, Some(&id), Duration::from_secs(1)));
            }
        }
    }

    fn health(&self) -> Answer {
        let (connected, ready) = (self.desk.is_kafka_connected(), self.submitter.is_producer_ready());
        let (status, word) = match (self.desk.is_draining(), connected && ready) {
            (true, _) => (200, "draining"),
            (false, true) => (200, "ok"),
            (false, false) => (503, "degraded"),
        };
        let active = self.desk.state().fleet.active(unix_now());
        let value = json!({
            "status": word, "kafka_connected": connected, "producer_ready": ready, "active_workers": active,
        });
        Answer::json(status, &value)
    }

    fn readiness(&self) -> [(&'static str, bool); 4] {
        [
            ("prepared", self.desk.is_prepared()),
            ("kafka", self.desk.is_kafka_connected()),
            ("read_back", self.desk.is_read_back()),
            ("accepting", !self.desk.is_draining()),
        ]
    }

    /// 200 when all checks pass, else 503; `?verbose` lists them.
    fn checks(&self, exchange: Exchange, checks: &[(&'static str, bool)]) {
        let good = checks.iter().all(|(_, good)| *good);
        let (status, word) = if good { (200, "ok") } else { (503, "failed") };
        let verbose =
            exchange.request.url().split_once('?').is_some_and(|(_, query)| {
                query.split('&').any(|part| part == "verbose" || part.starts_with("verbose="))
            });
        let mut value = json!({ "status": word });
        if verbose {
            let word = |good: bool| Value::from(if good { "ok" } else { "failed" });
            value["checks"] = checks.iter().map(|(name, good)| ((*name).to_owned(), word(*good))).collect();
        }
        self.reply(exchange, Answer::json(status, &value));
    }

    fn metrics(&self) -> String {
        {
            let state = self.desk.state();
            self.desk.metrics.look(&state, unix_now(), self.desk.is_kafka_connected());
        }
        self.desk.metrics.encode()
    }
}

/// An answering thread: writes until all who answer are gone.
pub(super) fn write_answers(answers: &Receiver<Vec<Written>>, desk: &Desk) {
    while let Ok(batch) = answers.recv() {
        for (request, answer) in batch {
            let head = *request.method() == Method::Head;
            let close = desk.is_draining() || wants_close(&request);
            let response = answer.encode(head, close);
            let mut writer = request.into_writer();
            // The caller has gone, or does not read: its task is in Kafka, its answer can be asked for.
            let _ = writer.write_all(&response).and_then(|()| writer.flush());
        }
    }
}

/// Tries the own port as a caller would, until stopped: the library's accepting thread can end without telling.
///
/// # Errors
/// The port did not answer [`WATCH_FAILURES`] times in a row.
pub(super) fn watch_port(address: SocketAddr, stop: &Stop) -> Result<(), String> {
    let address = reachable(address);
    let mut failures = 0;
    while stop.sleep(WATCH_INTERVAL).is_ok() {
        match knock(address) {
            Ok(()) => failures = 0,
            Err(error) => {
                failures += 1;
                log::warn!("our own port {address} does not answer ({error}), {failures} of {WATCH_FAILURES}");
                if failures >= WATCH_FAILURES {
                    return Err(format!("the HTTP port {address} is deaf"));
                }
            }
        }
    }
    Ok(())
}

/// One `GET /livez`; any HTTP answer is a sign of life.
fn knock(address: SocketAddr) -> io::Result<()> {
    let mut stream = TcpStream::connect_timeout(&address, WATCH_TIMEOUT)?;
    stream.set_read_timeout(Some(WATCH_TIMEOUT))?;
    stream.set_write_timeout(Some(WATCH_TIMEOUT))?;
    stream.write_all(b"GET /livez HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")?;
    let mut begin = [0; 7];
    stream.read_exact(&mut begin)?;
    if &begin == b"HTTP/1." { Ok(()) } else { Err(io::Error::other("no HTTP")) }
}

/// Where a listener on all addresses is reached from here.
fn reachable(mut address: SocketAddr) -> SocketAddr {
    if address.ip().is_unspecified() {
        address.set_ip(if address.is_ipv4() { [127, 0, 0, 1].into() } else { std::net::Ipv6Addr::LOCALHOST.into() });
    }
    address
}

/// Whether the id says that it was made within the last moments (UUIDv7, RFC 9562): another gateway may have accepted the task
/// before this one has read of it.
fn is_just_made(id: &str) -> bool {
    let made = uuid::Uuid::try_parse(id).ok().and_then(|id| id.get_timestamp()).map(|made| made.to_unix());
    made.is_some_and(|(seconds, nanoseconds)| {
        (unix_now() - (seconds as f64 + f64::from(nanoseconds) / 1e9)).abs() < UNREAD.as_secs_f64()
    })
}

fn path_of(url: &str) -> &str {
    url.split(['?', '#']).next().unwrap_or_default()
}

fn is_known(path: &str) -> bool {
    matches!(path, "/" | "/workers/status" | "/health" | "/livez" | "/readyz" | "/metrics")
        || path.starts_with("/tasks/")
}

fn header<'a>(request: &'a Request, name: &'static str) -> Option<&'a str> {
    request.headers().get(name).map(|value| value.as_str())
}

/// Whether the body, if any, has been read by the library.
fn body_is_here(request: &Request) -> bool {
    let chunked = header(request, "Transfer-Encoding").is_some();
    !chunked && header(request, "Expect").is_none() && request.body_length().unwrap_or(0) <= BUFFERED_BODY
}

fn terms_of(request: &Request) -> Result<Terms, Refusal> {
    analyze::check_type(header(request, "Content-Type"))?;
    if request.body_length().is_some_and(|length| length > LARGEST_BODY) {
        return Err(analyze::too_large());
    }
    let idempotency_key = header(request, "Idempotency-Key");
    if let Some(key) = idempotency_key {
        analyze::check_key(key)?;
    }
    Ok(Terms {
        asynchronous: analyze::prefers_async(header(request, "Prefer")),
        idempotency_key: idempotency_key.map(str::to_owned),
    })
}

fn read_body(request: &mut Request, deadline: Instant) -> Result<Vec<u8>, Refusal> {
    let slow = || Refusal { status: 408, detail: format!("the body did not come within {} s", BODY_LIMIT.as_secs()) };
    let mut body = Vec::with_capacity(request.body_length().unwrap_or(4096).min(LARGEST_BODY));
    let mut chunk = [0; 8192];
    let reader = request.as_reader();
    loop {
        if Instant::now() >= deadline {
            return Err(slow());
        }
        match reader.read(&mut chunk) {
            Ok(0) => return Ok(body),
            Ok(count) if body.len() + count > LARGEST_BODY => return Err(analyze::too_large()),
            Ok(count) => body.extend_from_slice(&chunk[..count]),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(_) => return Err(Refusal { status: 400, detail: "the body ended early".to_owned() }),
        }
    }
}

/// Whether the connection ends with this answer, as the request says or its version means.
fn wants_close(request: &Request) -> bool {
    let connection = header(request, "Connection").unwrap_or_default().to_ascii_lowercase();
    let old = request.http_version() < &tiny_http::HTTPVersion(1, 1);
    connection.contains("close") || (old && !connection.contains("keep-alive"))
}

/// `%41` is `A`; `None` when it is not well-formed.
fn percent_decoded(text: &str) -> Option<String> {
    if !text.contains('%') {
        return Some(text.to_owned());
    }
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.bytes();
    while let Some(byte) = rest.next() {
        if byte == b'%' {
            let digits = [rest.next()?, rest.next()?];
            bytes.push(u8::from_str_radix(std::str::from_utf8(&digits).ok()?, 16).ok()?);
        } else {
            bytes.push(byte);
        }
    }
    String::from_utf8(bytes).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn accepted_sockets_inherit_what_the_listener_was_given() {
        let listener = listen(SocketAddr::from(([127, 0, 0, 1], 0))).unwrap();
        let _near = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let (accepted, _) = listener.accept().unwrap();
        assert!(accepted.nodelay().unwrap());
        assert_eq!(accepted.write_timeout().unwrap(), Some(SEND_TIMEOUT));
        assert_eq!(accepted.read_timeout().unwrap(), None, "a kept connection may be idle");
    }

    #[test]
    fn a_port_in_use_is_an_error() {
        let listener = listen(SocketAddr::from(([127, 0, 0, 1], 0))).unwrap();
        assert_eq!(listen(listener.local_addr().unwrap()).unwrap_err().kind(), io::ErrorKind::AddrInUse);
    }

    #[test]
    fn a_deaf_port_is_found_out_and_a_living_one_is_not() {
        let deaf = listen(SocketAddr::from(([127, 0, 0, 1], 0))).unwrap();
        let address = deaf.local_addr().unwrap();
        std::thread::scope(|scope| {
            scope.spawn(|| {
                let (mut stream, _) = deaf.accept().unwrap();
                stream.read_exact(&mut [0; 16]).unwrap();
                stream.write_all(b"HTTP/1.1 503 Service Unavailable\r\n\r\n").unwrap();
            });
            assert!(knock(address).is_ok());
        });
        drop(deaf);
        assert!(knock(address).is_err(), "nobody listens any more");
    }

    #[test]
    fn a_young_id_is_told_from_an_old_one_and_from_a_strangers() {
        assert!(is_just_made(&uuid::Uuid::now_v7().to_string()));
        for other in ["018f2f6e-7b1c-7c5a-9d3e-0123456789ab", "8da3950e-10b2-5b1f-badf-8f1856406764", "task-1"] {
            assert!(!is_just_made(other), "{other}");
        }
    }

    #[test]
    fn paths_are_decoded() {
        assert_eq!(percent_decoded("a%20b%41"), Some("a bA".to_owned()));
        for bad in ["%", "%4", "%zz", "%ff"] {
            assert_eq!(percent_decoded(bad), None, "{bad}");
        }
        assert_eq!(path_of("/readyz?verbose"), "/readyz");
    }
}
