//! A headless Chromium, driven by the DevTools protocol over a pipe (`--remote-debugging-pipe`): messages of JSON that
//! end with a zero byte. Chromium ends when the pipe is closed.

use std::{
    io::{BufRead, BufReader, Write},
    process::{Child, ChildStdin, Command, Stdio},
    thread::JoinHandle,
    time::{Duration, Instant},
};

use crossbeam_channel::{Receiver, bounded};
use serde_json::{Value, json};

use super::{START, has_program, janitor, new_folder};

/// Whether Chromium is installed: see [`has_program`].
pub fn has_chromium() -> bool {
    has_program(Command::new("chromium").arg("--version"), "REQUIRE_CHROMIUM")
}

/// A browser with one page; dropping it ends the browser.
pub struct Browser {
    child: Child,
    /// `None` once the pipe is closed.
    requests: Option<ChildStdin>,
    messages: Receiver<Value>,
    reader: Option<JoinHandle<()>>,
    /// The number of the last request.
    last: u64,
    /// The session of the page; empty before there is one.
    session: String,
    events: Vec<Value>,
}

impl Browser {
    /// Opens the page at `url`.
    pub fn open(url: &str) -> Browser {
        let folder = new_folder("chromium");
        let mut child = Command::new("sh")
            // The protocol's pipes are descriptors 3 and 4. The sandbox needs rights that containers lack.
            .args(["-c", "exec \"$@\" 3<&0 4>&1 1>&2", "sh", "chromium", "--headless=new", "--no-sandbox"])
            .args(["--disable-gpu", "--disable-dev-shm-usage", "--remote-debugging-pipe"])
            .arg(format!("--user-data-dir={}", folder.display()))
            .env("HOME", &folder)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .expect("sh starts");
        janitor::process_started(child.id());
        let output = BufReader::new(child.stdout.take().expect("a pipe"));
        // When it is full, the reader waits; requests take the messages out.
        let (sender, messages) = bounded(1024);
        let reader = std::thread::spawn(move || {
            let parsed = output.split(0).map_while(Result::ok).map_while(|it| serde_json::from_slice(&it).ok());
            parsed.take_while(|message| sender.send(Value::clone(message)).is_ok()).for_each(drop);
        });
        let requests = child.stdin.take();
        let (last, session, events) = (0, String::new(), Vec::new());
        let mut this = Browser { child, requests, messages, reader: Some(reader), last, session, events };
        let target = this.call("Target.createTarget", json!({ "url": "about:blank" }))["targetId"].clone();
        let attached = this.call("Target.attachToTarget", json!({ "targetId": target, "flatten": true }));
        attached["sessionId"].as_str().expect("a session").clone_into(&mut this.session);
        for domain in ["Log", "Runtime"] {
            this.call(&format!("{domain}.enable"), json!({}));
        }
        this.call("Page.navigate", json!({ "url": url }));
        this
    }

    /// Calls a method of the protocol and returns its result.
    pub fn call(&mut self, method: &str, parameters: Value) -> Value {
        self.last += 1;
        let mut request = json!({ "id": self.last, "method": method, "params": parameters });
        if !self.session.is_empty() {
            request["sessionId"] = self.session.as_str().into();
        }
        let bytes = [request.to_string().as_bytes(), b"\0"].concat();
        let pipe = self.requests.as_mut().expect("an open pipe");
        pipe.write_all(&bytes).expect("Chromium takes requests");
        let deadline = Instant::now() + START;
        loop {
            let message = self.messages.recv_deadline(deadline);
            let mut message = message.unwrap_or_else(|error| panic!("Chromium does not answer to {method}: {error}"));
            if message["id"] == self.last {
                assert_eq!(message["error"], Value::Null, "{method} {message}");
                return message["result"].take();
            }
            self.events.push(message);
        }
    }

    /// The value of an expression on the page; `null` while the page has none.
    pub fn evaluate(&mut self, expression: &str) -> Value {
        let parameters = json!({ "expression": expression, "awaitPromise": true, "returnByValue": true });
        self.call("Runtime.evaluate", parameters)["result"]["value"].take()
    }

    /// The exceptions of the page, and its console's errors: violations of its policy, too.
    pub fn errors(&mut self) -> Vec<Value> {
        self.evaluate("0");
        let is_error = |event: &&Value| {
            event["method"] == "Runtime.exceptionThrown" || event["params"]["entry"]["level"] == "error"
        };
        self.events.iter().filter(is_error).cloned().collect()
    }
}

impl Drop for Browser {
    fn drop(&mut self) {
        self.requests = None;
        let deadline = Instant::now() + Duration::from_secs(5);
        while matches!(self.child.try_wait(), Ok(None)) {
            if Instant::now() >= deadline {
                let _ = self.child.kill();
            }
            // The reader must not wait for room.
            self.messages.try_iter().for_each(drop);
            std::thread::sleep(Duration::from_millis(10));
        }
        janitor::process_ended(self.child.id());
        if let Some(reader) = self.reader.take() {
            let _ = reader.join();
        }
    }
}
