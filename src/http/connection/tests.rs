//! Tests of connections with many kinds of callers, over real sockets.

use super::*;
use crate::http::load::Load;
use parking_lot::Mutex;
use program::stop::Stop;
use program::threads::{self, Thread};
use std::convert::Infallible;
use std::net::{Ipv4Addr, TcpListener};
use std::sync::atomic::{AtomicBool, Ordering};

/// Short limits for tests; a wait may take a second longer.
const SHORT: Limits = Limits {
    idle: Duration::from_millis(300),
    head: Duration::from_millis(300),
    body: Duration::from_millis(300),
    linger: Duration::from_millis(300),
};

/// Answers with the request; answers `/later` when the test gives the response.
#[derive(Debug, Default)]
struct Echo {
    statuses: Mutex<Vec<u16>>,
    open: Arc<Mutex<usize>>,
    stopping: AtomicBool,
    /// A caller of `/later` may wait for a second time.
    is_patient: AtomicBool,
    later: Mutex<Option<Reply>>,
    partings: Mutex<Vec<Parting>>,
}

struct Open(Arc<Mutex<usize>>);

impl Drop for Open {
    fn drop(&mut self) {
        *self.0.lock() -= 1;
    }
}

/// How long a caller of `/later` waits.
const PATIENCE: Duration = Duration::from_millis(600);

impl Service for Echo {
    type Counted = Open;

    fn begin(&self) -> Open {
        *self.open.lock() += 1;
        Open(Arc::clone(&self.open))
    }

    fn wants_body(&self, head: &Head) -> bool {
        head.method == Method::Post
    }

    fn take(&self, head: &Head, body: &[u8], reply: Reply) -> Option<Ticket> {
        if head.target == "/later" {
            *self.later.lock() = Some(reply);
            return Some(Ticket { number: 0, until: Instant::now() + PATIENCE });
        }
        let text = format!("{} {} {}", head.method, head.target, String::from_utf8_lossy(body));
        reply.give(Response::bytes(200, "text/plain", text.into_bytes()));
        None
    }

    fn part(&self, ticket: Ticket, parting: Parting) -> Parted {
        if ticket.number == 0 && parting == Parting::Late && self.is_patient.load(Ordering::Relaxed) {
            self.partings.lock().push(parting);
            return Parted::Waits(Ticket { number: 1, until: Instant::now() + PATIENCE });
        }
        let Some(reply) = self.later.lock().take() else { return Parted::Elsewhere };
        self.partings.lock().push(parting);
        match parting {
            Parting::Left => reply.withdraw(),
            _ => reply.give(Response::problem(504, "too late", None)),
        }
        Parted::Given
    }

    fn route(&self, _: &Head) -> Option<&'static str> {
        None
    }

    fn responds(&self, _: Facts, status: u16) {
        self.statuses.lock().push(status);
    }

    fn is_stopping(&self) -> bool {
        self.stopping.load(Ordering::Relaxed)
    }
}

/// A caller, and the thread that serves its connection.
struct Served {
    caller: TcpStream,
    echo: Arc<Echo>,
    load: Arc<Load>,
    thread: Thread,
}

fn serve(limits: Limits) -> Served {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("a free port");
    let caller = TcpStream::connect(listener.local_addr().expect("an address")).expect("it listens");
    caller.set_read_timeout(Some(Duration::from_secs(10))).expect("a socket");
    let socket = Arc::new(listener.accept().expect("a connection").0);
    socket.set_write_timeout(Some(Duration::from_secs(10))).expect("a socket");
    let (echo, load) = (Arc::<Echo>::default(), Arc::new(Load::new(8)));
    let seat = load.seat(&socket, &Stop::new()).expect("no stop");
    let connection = Connection { limits, ..Connection::new(socket, seat, Arc::clone(&echo)) };
    let thread = threads::spawn("served", Stop::new(), move || -> Result<(), Infallible> {
        connection.serve();
        Ok(())
    });
    Served { caller, echo, load, thread }
}

impl Served {
    fn send(&mut self, text: &str) {
        self.caller.write_all(text.as_bytes()).expect("it is read");
    }

    /// The reply of a request for `/later`.
    fn later(&self) -> Reply {
        let until = Instant::now() + Duration::from_secs(10);
        loop {
            if let Some(reply) = self.echo.later.lock().take() {
                return reply;
            }
            assert!(Instant::now() < until, "the request did not arrive");
            std::thread::yield_now();
        }
    }

    /// Everything until the connection's end, after the caller closes its sending side.
    fn rest_after_leaving(self) -> String {
        self.caller.shutdown(Shutdown::Write).expect("a socket");
        self.rest()
    }

    /// Everything until the connection's end.
    fn rest(mut self) -> String {
        let mut text = String::new();
        self.caller.read_to_string(&mut text).expect("text, and an end that is no reset");
        // A lingering connection waits for this.
        drop(self.caller);
        self.thread.join().expect("no panic");
        assert_eq!((self.load.open(), *self.echo.open.lock()), (0, 0));
        text
    }
}

/// The responses to this text from a caller that sends nothing more and waits.
fn all(text: &str) -> String {
    let mut served = serve(LIMITS);
    served.send(text);
    served.rest_after_leaving()
}

fn statuses(text: &str) -> Vec<&str> {
    let begins = text.split("HTTP/1.1 ").skip(1).filter_map(|response| response.split(' ').next());
    begins.filter(|begin| begin.parse::<u16>().is_ok()).collect()
}

#[test]
fn pipelined_requests_are_answered_in_order() {
    let text = all(
        "POST /a HTTP/1.1\r\nHost: x\r\nContent-Length: 3\r\n\r\none\r\n\r\nGET /b HTTP/1.1\r\nHost: x\r\n\r\n\
         POST /c HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n2;x=y\r\ntw\r\n1\r\no\r\n0\r\nX-Sum: 2\r\n\r\n\
         HEAD /d HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n",
    );
    assert_eq!(statuses(&text), ["200"; 4], "{text}");
    let places: Vec<_> = ["POST /a one", "GET /b ", "POST /c two"].iter().map(|it| text.find(it)).collect();
    assert!(places.iter().all(Option::is_some) && places.is_sorted(), "{text}");
    assert!(!text.contains("HEAD /d") && text.contains("Connection: close\r\n"), "{text}");
}

#[test]
fn ambiguous_request_ends_the_connection() {
    let next = "GET / HTTP/1.1\r\nHost: x\r\n\r\n";
    for (bad, status) in [
        ("POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\na", "400"),
        ("POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n1\na\r\n0\r\n\r\n", "400"),
        ("GET / HTTP/1.1\r\n\r\n", "400"),
        ("GET / HTTP/1.1\r\nHost: x\r\nExpect: more\r\n\r\n", "417"),
    ] {
        let text = all(&format!("{bad}{next}"));
        assert!(statuses(&text) == [status] && text.contains("Connection: close\r\n"), "{bad:?}: {text}");
    }
}

#[test]
fn body_that_ends_early_is_refused() {
    for body in ["Content-Length: 10\r\n\r\nhello", "Transfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n"] {
        let text = all(&format!("POST / HTTP/1.1\r\nHost: x\r\n{body}"));
        assert!(statuses(&text) == ["400"] && text.contains("the body ended early"), "{text}");
    }
    assert_eq!(all("GET / HTTP/1.1\r\nHost: x\r\n"), "", "the caller has left within the head");
}

#[test]
fn body_that_is_too_large_is_refused_before_it_arrives_and_dropped_afterwards() {
    let large = "a".repeat(LARGEST_BODY + 1);
    let mut served = serve(LIMITS);
    served.send(&format!("POST / HTTP/1.1\r\nHost: x\r\nContent-Length: {}\r\n\r\n", large.len()));
    let mut begin = [0; 12];
    served.caller.read_exact(&mut begin).expect("a response");
    assert_eq!(&begin, b"HTTP/1.1 413");
    // A stop does not wait for the rest of the body.
    let until = Instant::now() + Duration::from_secs(10);
    while *served.echo.open.lock() > 0 {
        assert!(Instant::now() < until, "it is still counted");
        std::thread::yield_now();
    }
    served.send(&large);
    assert!(served.rest().contains("Connection: close\r\n"));
    let chunks = format!("4000\r\n{}\r\n", "a".repeat(0x4000)).repeat(5);
    let text = all(&format!("POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n{chunks}"));
    assert_eq!(statuses(&text), ["413"]);
}

#[test]
fn caller_that_expects_100_continue_gets_it_or_a_last_response() {
    let mut served = serve(LIMITS);
    served
        .send("POST /a HTTP/1.1\r\nHost: x\r\nContent-Length: 2\r\nExpect: 100-continue\r\nConnection: close\r\n\r\n");
    let mut word = [0; 25];
    served.caller.read_exact(&mut word).expect("100 Continue");
    assert_eq!(&word, b"HTTP/1.1 100 Continue\r\n\r\n");
    served.send("hi");
    assert_eq!(statuses(&served.rest()), ["200"]);
    let text = all("POST /a HTTP/1.1\r\nHost: x\r\nContent-Length: 99999\r\nExpect: 100-continue\r\n\r\n");
    assert_eq!(statuses(&text), ["413"]);
}

#[test]
fn unwanted_body_is_not_awaited() {
    let text = all("GET /a HTTP/1.1\r\nHost: x\r\nContent-Length: 2\r\n\r\nhiGET /b HTTP/1.1\r\nHost: x\r\n\r\n");
    assert_eq!(statuses(&text), ["200", "200"], "it has arrived already");
    let mut served = serve(SHORT);
    served.send("GET /a HTTP/1.1\r\nHost: x\r\nContent-Length: 9000000000000000000\r\n\r\nhi");
    let text = served.rest();
    assert!(statuses(&text) == ["200"] && text.contains("Connection: close\r\n"), "{text}");
}

#[test]
fn http_1_0_connection_stays_only_on_request() {
    let text = all("GET /a HTTP/1.0\r\nConnection: keep-alive\r\n\r\nGET /b HTTP/1.0\r\n\r\nGET /c HTTP/1.0\r\n\r\n");
    assert_eq!(statuses(&text), ["200", "200"]);
    assert!(text.contains("Connection: keep-alive\r\n") && text.contains("Connection: close\r\n"), "{text}");
}

#[test]
fn caller_is_bounded_in_time() {
    assert_eq!(serve(SHORT).rest(), "", "an idle connection ends without a response");
    for begin in ["G", "GET / HTTP/1.1\r\nHost: x\r\n"] {
        let mut served = serve(SHORT);
        served.send(begin);
        assert_eq!(statuses(&served.rest()), ["408"], "{begin:?}");
    }
    for body in ["Content-Length: 5\r\n\r\nhell", "Transfer-Encoding: chunked\r\n\r\n5;"] {
        let mut served = serve(SHORT);
        served.send(&format!("POST / HTTP/1.1\r\nHost: x\r\n{body}"));
        assert_eq!(statuses(&served.rest()), ["408"], "{body:?}");
    }
    // A byte now and then gains no time.
    for begin in ["GET / HTTP/1.1\r\nHost: x\r\nA: ", "POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 999\r\n\r\n"] {
        let mut served = serve(SHORT);
        served.send(begin);
        let until = Instant::now() + Duration::from_secs(10);
        served.caller.set_read_timeout(Some(TENTH / 4)).expect("a socket");
        while served.caller.peek(&mut [0]).is_err() {
            assert!(Instant::now() < until, "{begin:?} may take any time");
            served.send("a");
        }
        served.caller.set_read_timeout(Some(Duration::from_secs(10))).expect("a socket");
        assert_eq!(statuses(&served.rest()), ["408"], "{begin:?}");
    }
}

#[test]
fn stop_ends_a_connection_with_its_next_response() {
    let mut served = serve(LIMITS);
    served.send("GET /a HTTP/1.1\r\nHost: x\r\n\r\n");
    let mut begin = [0; 12];
    served.caller.read_exact(&mut begin).expect("a response");
    served.echo.stopping.store(true, Ordering::Relaxed);
    served.send("GET /b HTTP/1.1\r\nHost: x\r\n\r\nGET /c HTTP/1.1\r\nHost: x\r\n\r\n");
    let text = served.rest();
    assert!(text.contains("GET /b") && !text.contains("GET /c") && text.contains("Connection: close\r\n"), "{text}");
}

// ---- replies that come later ----

const LATER: &str = "GET /later HTTP/1.1\r\nHost: x\r\n\r\n";

fn text_of(bytes: usize) -> Response {
    Response::bytes(200, "text/plain", vec![b'a'; bytes])
}

#[test]
fn response_from_another_thread_is_written_and_the_next_request_is_served() {
    let mut served = serve(LIMITS);
    for _ in 0..3 {
        served.send(LATER);
        served.later().give(text_of(3));
        let mut response = String::new();
        while !response.ends_with("aaa") {
            let mut byte = [0];
            served.caller.read_exact(&mut byte).expect("a response");
            response.push(byte[0].into());
        }
        assert_eq!(statuses(&response), ["200"]);
    }
    // Sent before the response is given.
    served.send(LATER);
    let reply = served.later();
    served.send("GET /b HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n");
    reply.give(text_of(3));
    let text = served.rest();
    assert_eq!(statuses(&text), ["200", "200"], "{text}");
    assert!(text.find("aaa") < text.find("GET /b") && text.ends_with("GET /b "), "{text}");
}

#[test]
fn caller_that_leaves_is_noticed_before_its_response() {
    let mut served = serve(LIMITS);
    served.send(LATER);
    let until = Instant::now() + Duration::from_secs(10);
    while served.echo.later.lock().is_none() {
        assert!(Instant::now() < until, "the request did not arrive");
    }
    let echo = Arc::clone(&served.echo);
    assert_eq!(served.rest_after_leaving(), "", "nothing is written");
    assert_eq!(*echo.partings.lock(), [Parting::Left]);
    assert!(echo.statuses.lock().is_empty());
}

#[test]
fn caller_whose_ticket_is_extended_is_watched_and_answered_at_the_new_time() {
    for leaves in [false, true] {
        let mut served = serve(LIMITS);
        served.echo.is_patient.store(true, Ordering::Relaxed);
        let began = Instant::now();
        served.send(LATER);
        while served.echo.partings.lock().is_empty() {
            assert!(began.elapsed() < Duration::from_secs(10), "the first time does not end");
            std::thread::yield_now();
        }
        let echo = Arc::clone(&served.echo);
        let last = if leaves {
            assert_eq!(served.rest_after_leaving(), "");
            Parting::Left
        } else {
            let mut begin = [0; 12];
            served.caller.read_exact(&mut begin).expect("a response");
            assert_eq!(&begin, b"HTTP/1.1 504");
            assert!(began.elapsed() >= 2 * PATIENCE, "{:?}", began.elapsed());
            Parting::Late
        };
        assert_eq!(*echo.partings.lock(), [Parting::Late, last]);
    }
}

#[test]
fn caller_that_waits_too_long_gets_504_and_may_send_another_request() {
    let mut served = serve(LIMITS);
    served.send(LATER);
    let mut begin = [0; 12];
    served.caller.read_exact(&mut begin).expect("a response");
    assert_eq!(&begin, b"HTTP/1.1 504");
    served.send("GET /b HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n");
    let echo = Arc::clone(&served.echo);
    assert!(served.rest().ends_with("GET /b "));
    assert_eq!(*echo.partings.lock(), [Parting::Late]);
}

#[test]
fn slow_reader_does_not_block_the_thread_with_the_response() {
    const LARGE: usize = 32 * 1024 * 1024;
    let mut served = serve(LIMITS);
    served.send("GET /later HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n");
    // This returns although the caller reads nothing: a blocking send would time out, and text would be missing.
    served.later().give(text_of(LARGE));
    let text = served.rest();
    assert_eq!(text.len() - text.find("\r\n\r\n").expect("a head"), LARGE + 4);
}

#[test]
fn late_response_of_a_stopping_gateway_ends_the_connection() {
    let mut served = serve(LIMITS);
    served.send(LATER);
    let reply = served.later();
    served.echo.stopping.store(true, Ordering::Relaxed);
    reply.give(text_of(3));
    assert!(served.rest().contains("Connection: close\r\n"));
}

#[test]
fn dropped_reply_answers_500() {
    let mut served = serve(LIMITS);
    served.send("GET /later HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n");
    drop(served.later());
    assert_eq!(statuses(&served.rest()), ["500"]);
}
