//! The load generator: each persistent connection sends its next request when the previous response is complete. All
//! connections share one thread with epoll(7), so that the load takes little processor time.

use std::{
    collections::HashSet,
    io::{ErrorKind, Read, Write},
    net::TcpStream,
    time::{Duration, Instant},
};

use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags, EpollTimeout};
use serde::Deserialize;

use crate::text::Text;

/// The outcome of one run.
pub struct Figures {
    pub requests_per_second: f64,
    /// Latencies of all correct responses, sorted.
    pub latencies: Vec<Duration>,
    /// Broken connections, and responses that were not 200 or not correct.
    pub errors: Vec<String>,
}

impl Figures {
    /// The latency at this quantile, from 0 to 1.
    pub fn quantile(&self, share: f64) -> Duration {
        quantile(&self.latencies, share)
    }
}

/// The value of a sorted list at this quantile, from 0 to 1.
pub fn quantile(sorted: &[Duration], share: f64) -> Duration {
    let last = sorted.len().checked_sub(1).expect("at least one value");
    sorted[((last as f64) * share).round() as usize]
}

/// The members of a result that the bench can check.
#[derive(Deserialize)]
struct Answer {
    task_id: String,
    success: bool,
    chars: usize,
    words: usize,
}

struct Connection {
    stream: TcpStream,
    text: Text,
    request: Vec<u8>,
    written: usize,
    response: Vec<u8>,
    begun: Instant,
}

/// Keeps this many connections busy for `warm_up` and then for `span`; only responses during `span` count.
pub fn run(address: &str, connections: usize, warm_up: Duration, span: Duration) -> Figures {
    let epoll = Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC).expect("epoll");
    let mut number = 0;
    let mut open: Vec<Connection> = (0..connections).map(|_| Connection::open(address)).collect();
    for (index, connection) in open.iter_mut().enumerate() {
        // Edge-triggered: `advance` reads and writes until the socket would block.
        let flags = EpollFlags::EPOLLIN | EpollFlags::EPOLLOUT | EpollFlags::EPOLLRDHUP | EpollFlags::EPOLLET;
        epoll.add(&connection.stream, EpollEvent::new(flags, index as u64)).expect("epoll takes a socket");
        connection.next(address, &mut number);
    }
    let begin = Instant::now() + warm_up;
    let end = begin + span;
    let mut figures = Figures { requests_per_second: 0.0, latencies: Vec::new(), errors: Vec::new() };
    let mut ids = HashSet::new();
    let mut alive = connections;
    let mut events = vec![EpollEvent::empty(); connections.max(16)];
    while Instant::now() < end && alive > 0 {
        let ready = epoll.wait(&mut events, EpollTimeout::from(50_u8)).unwrap_or(0);
        for event in &events[..ready] {
            let connection = &mut open[event.data() as usize];
            match connection.advance(address, &mut number) {
                Ok(answers) => {
                    for (latency, id) in answers {
                        let now = Instant::now();
                        match id {
                            Ok(id) if !ids.insert(id.clone()) => {
                                figures.errors.push(format!("{id} answered two requests"))
                            }
                            Ok(_) if now >= begin && now < end => figures.latencies.push(latency),
                            Ok(_) => {}
                            Err(fault) => figures.errors.push(fault),
                        }
                    }
                }
                Err(error) => {
                    figures.errors.push(format!("connection lost: {error}"));
                    let _ = epoll.delete(&connection.stream);
                    alive -= 1;
                }
            }
        }
    }
    figures.latencies.sort_unstable();
    figures.requests_per_second = figures.latencies.len() as f64 / span.as_secs_f64();
    figures
}

impl Connection {
    fn open(address: &str) -> Connection {
        let stream = TcpStream::connect(address).expect("the gateway takes connections");
        stream.set_nodelay(true).expect("a TCP socket");
        stream.set_nonblocking(true).expect("a socket");
        let (text, begun) = (Text::number(0), Instant::now());
        Connection { stream, text, request: Vec::new(), written: 0, response: Vec::with_capacity(4096), begun }
    }

    /// Prepares the next request and writes as much of it as the socket takes.
    fn next(&mut self, address: &str, number: &mut u64) {
        *number += 1;
        self.text = Text::number(*number);
        self.request.clear();
        let body = serde_json::json!({ "text": self.text.text }).to_string();
        write!(
            self.request,
            "POST /analyze HTTP/1.1\r\nHost: {address}\r\nContent-Type: application/json\r\n\
             Content-Length: {}\r\n\r\n{body}",
            body.len()
        )
        .expect("memory takes it");
        self.written = 0;
        self.begun = Instant::now();
        // The read of the response reports an error again.
        let _ = self.write();
    }

    fn write(&mut self) -> std::io::Result<()> {
        while self.written < self.request.len() {
            match self.stream.write(&self.request[self.written..]) {
                Ok(written) => self.written += written,
                Err(error) if error.kind() == ErrorKind::WouldBlock => break,
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    /// Writes and reads until the socket would block. Returns the completed responses: latency, and the task id or the
    /// fault.
    fn advance(&mut self, address: &str, number: &mut u64) -> std::io::Result<Vec<(Duration, Result<String, String>)>> {
        self.write()?;
        let mut answers = Vec::new();
        let mut buffer = [0; 8192];
        loop {
            match self.stream.read(&mut buffer) {
                Ok(0) => return Err(ErrorKind::UnexpectedEof.into()),
                Ok(read) => self.response.extend(&buffer[..read]),
                Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(answers),
                Err(error) => return Err(error),
            }
            if let Some((status, body, length)) = whole_response(&self.response) {
                let latency = self.begun.elapsed();
                answers.push((latency, self.check(status, body)));
                self.response.drain(..length);
                self.next(address, number);
            }
        }
    }

    fn check(&self, status: u16, body: &[u8]) -> Result<String, String> {
        let wrong = || format!("{status} {} for {:?}", String::from_utf8_lossy(body), self.text.text);
        let answer: Answer = serde_json::from_slice(body).map_err(|_| wrong())?;
        let right = status == 200 && answer.success && self.text.is_counted(answer.chars, answer.words);
        if right { Ok(answer.task_id) } else { Err(wrong()) }
    }
}

/// Status, body and length in bytes of the response at the start of `bytes`; `None` while it is incomplete.
fn whole_response(bytes: &[u8]) -> Option<(u16, &[u8], usize)> {
    let head = bytes.windows(4).position(|window| window == b"\r\n\r\n")? + 4;
    let text = std::str::from_utf8(&bytes[..head]).ok()?;
    let status = text.get(9..12)?.parse().ok()?;
    let length = text.lines().find_map(|line| {
        let (name, value) = line.split_once(':')?;
        name.eq_ignore_ascii_case("content-length").then(|| value.trim().parse::<usize>().ok())?
    })?;
    let end = head + length;
    (bytes.len() >= end).then(|| (status, &bytes[head..end], end))
}
