//! A small blocking HTTP/1.1 client that can also send invalid or partial requests and pipeline.

use std::{
    io::{self, BufRead, BufReader, Read, Write},
    net::TcpStream,
    time::Duration,
};

use serde_json::Value;

/// Longer than a gateway may take for any response.
const PATIENCE: Duration = Duration::from_secs(60);

/// A persistent connection.
pub struct Http {
    address: String,
    stream: BufReader<TcpStream>,
}

/// A complete response.
#[derive(Debug)]
pub struct Response {
    pub status: u16,
    pub headers: Vec<(String, String)>,
    pub body: Vec<u8>,
}

impl Response {
    /// The first header of this name, whatever its case.
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.iter().find(|(key, _)| key.eq_ignore_ascii_case(name)).map(|(_, value)| value.as_str())
    }

    /// The body as JSON.
    pub fn json(&self) -> Value {
        serde_json::from_slice(&self.body).unwrap_or_else(|error| panic!("{self:?}: no JSON: {error}"))
    }

    /// The body as text.
    pub fn text(&self) -> String {
        String::from_utf8(self.body.clone()).expect("a body in UTF-8")
    }

    /// The task id that a result, a 202 or a problem document names.
    pub fn task_id(&self) -> String {
        self.json()["task_id"].as_str().unwrap_or_else(|| panic!("{} names no task", self.text())).to_owned()
    }

    /// Asserts that this is an RFC 9457 problem document with this status; returns the document.
    pub fn assert_problem(&self, status: u16) -> Value {
        assert_eq!(self.status, status, "{}", String::from_utf8_lossy(&self.body));
        assert_eq!(self.header("content-type"), Some("application/problem+json"));
        let problem = self.json();
        assert_eq!(problem["status"], status);
        for member in ["type", "title", "detail"] {
            assert!(problem[member].as_str().is_some_and(|text| !text.is_empty()), "no {member} in {problem}");
        }
        problem
    }
}

impl Http {
    /// Connects to `host:port`.
    pub fn connect(address: &str) -> io::Result<Http> {
        let stream = TcpStream::connect(address)?;
        stream.set_nodelay(true)?;
        stream.set_read_timeout(Some(PATIENCE))?;
        stream.set_write_timeout(Some(PATIENCE))?;
        Ok(Http { address: address.to_owned(), stream: BufReader::new(stream) })
    }

    /// Sends a request and reads the response.
    pub fn request(&mut self, method: &str, path: &str, headers: &[(&str, &str)], body: &[u8]) -> io::Result<Response> {
        self.send(method, path, headers, body)?;
        self.receive(method)
    }

    /// `GET`
    pub fn get(&mut self, path: &str) -> io::Result<Response> {
        self.request("GET", path, &[], b"")
    }

    /// `POST` with a JSON body.
    pub fn post(&mut self, path: &str, body: &Value) -> io::Result<Response> {
        self.request("POST", path, &[("Content-Type", "application/json")], body.to_string().as_bytes())
    }

    /// Sends a request without waiting for the response.
    pub fn send(&mut self, method: &str, path: &str, headers: &[(&str, &str)], body: &[u8]) -> io::Result<()> {
        let mut bytes = format!("{method} {path} HTTP/1.1\r\nHost: {}\r\n", self.address).into_bytes();
        for (name, value) in headers {
            bytes.extend(format!("{name}: {value}\r\n").bytes());
        }
        if !body.is_empty() || method == "POST" {
            bytes.extend(format!("Content-Length: {}\r\n", body.len()).bytes());
        }
        bytes.extend(b"\r\n");
        bytes.extend(body);
        self.send_raw(&bytes)
    }

    /// Sends exactly these bytes.
    pub fn send_raw(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.stream.get_mut().write_all(bytes)
    }

    /// Limits how long a read waits for the response.
    pub fn set_patience(&mut self, limit: Duration) -> io::Result<()> {
        self.stream.get_mut().set_read_timeout(Some(limit))
    }

    /// Reads the final response to a request with this method; skips 1xx responses.
    pub fn receive(&mut self, method: &str) -> io::Result<Response> {
        loop {
            let response = self.receive_any(method)?;
            if response.status >= 200 {
                return Ok(response);
            }
        }
    }

    fn receive_any(&mut self, method: &str) -> io::Result<Response> {
        let first = self.line()?;
        let status = first.strip_prefix("HTTP/1.").and_then(|rest| rest.get(2..5)).and_then(|code| code.parse().ok());
        let status: u16 = status.ok_or_else(|| malformed(&first))?;
        let mut headers = Vec::new();
        loop {
            let line = self.line()?;
            if line.is_empty() {
                break;
            }
            let (name, value) = line.split_once(':').ok_or_else(|| malformed(&line))?;
            headers.push((name.to_owned(), value.trim().to_owned()));
        }
        let mut response = Response { status, headers, body: Vec::new() };
        if method == "HEAD" || status < 200 || status == 204 || status == 304 {
            return Ok(response);
        }
        if response.header("transfer-encoding").is_some_and(|value| value.eq_ignore_ascii_case("chunked")) {
            response.body = self.chunks()?;
        } else if let Some(length) = response.header("content-length") {
            let length: usize = length.parse().map_err(|_| malformed(length))?;
            response.body = self.exactly(length)?;
        } else {
            self.stream.read_to_end(&mut response.body)?;
        }
        Ok(response)
    }

    fn chunks(&mut self) -> io::Result<Vec<u8>> {
        let mut body = Vec::new();
        loop {
            let line = self.line()?;
            let length = line.split(';').next().unwrap_or_default().trim();
            let length = usize::from_str_radix(length, 16).map_err(|_| malformed(&line))?;
            body.extend(self.exactly(length)?);
            let end = self.line()?;
            if !end.is_empty() {
                return Err(malformed(&end));
            }
            if length == 0 {
                return Ok(body);
            }
        }
    }

    fn exactly(&mut self, length: usize) -> io::Result<Vec<u8>> {
        let mut bytes = vec![0; length];
        self.stream.read_exact(&mut bytes)?;
        Ok(bytes)
    }

    fn line(&mut self) -> io::Result<String> {
        let mut line = String::new();
        if self.stream.read_line(&mut line)? == 0 {
            return Err(io::Error::new(io::ErrorKind::UnexpectedEof, "the connection was closed"));
        }
        Ok(line.trim_end_matches(['\r', '\n']).to_owned())
    }
}

fn malformed(what: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, format!("not an HTTP response: {what:?}"))
}
