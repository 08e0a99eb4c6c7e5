//! The project's programs as child processes: their output lines with times, their exit codes, their receipts.

use std::{
    collections::BTreeMap,
    fs::File,
    io::{BufRead, BufReader, Read, Write},
    net::SocketAddr,
    os::{
        fd::AsRawFd,
        unix::{
            fs::{MetadataExt, OpenOptionsExt},
            process::ExitStatusExt,
        },
    },
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread::JoinHandle,
    time::{Duration, Instant},
};

use nix::sys::signal::Signal;
use parking_lot::{Condvar, Mutex};
use serde_json::Value;

use super::{SOON, START, janitor, signal_process};

/// How to start a program. Its environment has the variables set here, `PATH` and `RUST_BACKTRACE`.
#[derive(Clone)]
pub struct Launch {
    name: String,
    binary: PathBuf,
    arguments: Vec<String>,
    environment: BTreeMap<String, String>,
    in_journal: bool,
}

impl Launch {
    /// `name` appears in messages only.
    pub fn new(name: impl Into<String>, binary: impl AsRef<Path>) -> Launch {
        Launch {
            name: name.into(),
            binary: binary.as_ref().to_owned(),
            arguments: Vec::new(),
            environment: BTreeMap::new(),
            in_journal: false,
        }
    }

    /// Names the program's stdout in `JOURNAL_STREAM`, as systemd does: systemd.exec(5).
    pub fn in_journal(mut self) -> Launch {
        self.in_journal = true;
        self
    }

    /// Adds an argument.
    pub fn arg(mut self, argument: impl Into<String>) -> Launch {
        self.arguments.push(argument.into());
        self
    }

    /// Sets an environment variable; the last value counts.
    pub fn env(mut self, name: &str, value: impl ToString) -> Launch {
        self.environment.insert(name.to_owned(), value.to_string());
        self
    }

    /// Starts the process without waiting.
    pub fn start(&self) -> Program {
        let (stdout, input) = std::io::pipe().expect("a pipe");
        let stream = self.in_journal.then(|| {
            let file = std::fs::metadata(format!("/proc/self/fd/{}", input.as_raw_fd())).expect("metadata of a pipe");
            ("JOURNAL_STREAM", format!("{}:{}", file.dev(), file.ino()))
        });
        let mut child = Command::new(&self.binary)
            .args(&self.arguments)
            .env_clear()
            .envs(std::env::var_os("PATH").map(|path| ("PATH", path)))
            .env("RUST_BACKTRACE", "1")
            .envs(&self.environment)
            .envs(stream)
            .stdin(Stdio::null())
            .stdout(input)
            .stderr(Stdio::piped())
            .spawn()
            .unwrap_or_else(|error| panic!("{} does not start: {error}", self.binary.display()));
        janitor::process_started(child.id());
        let output = Arc::new(Output::default());
        let readers = vec![
            read_lines(stdout, Stream::Stdout, &output),
            read_lines(child.stderr.take().expect("a pipe"), Stream::Stderr, &output),
        ];
        let now = Instant::now();
        Program { name: self.name.clone(), child, exit: None, output, readers, started: now, signalled: None }
    }
}

/// The stream of a line.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stream {
    Stdout,
    Stderr,
}

/// A line that a program wrote, and when the test read it.
#[derive(Clone, Debug)]
pub struct Line {
    pub at: Instant,
    pub stream: Stream,
    pub text: String,
}

#[derive(Default)]
struct Output {
    lines: Mutex<Vec<Line>>,
    grew: Condvar,
    /// Set while the standard output is not read.
    muted: AtomicBool,
}

impl Output {
    fn await_turn(&self, stream: Stream) {
        while stream == Stream::Stdout && self.muted.load(Ordering::SeqCst) {
            std::thread::sleep(Duration::from_millis(5));
        }
    }
}

/// How a program ended.
#[derive(Clone, Copy, Debug)]
pub struct Exit {
    /// `None` if a signal ended it.
    pub code: Option<i32>,
    pub signal: Option<i32>,
    /// Since the last [`Program::signal`], else since the start.
    pub elapsed: Duration,
    pub at: Instant,
}

/// A running program; dropping it kills it. If the test fails, the drop prints the program's output.
pub struct Program {
    name: String,
    child: Child,
    exit: Option<Exit>,
    output: Arc<Output>,
    readers: Vec<JoinHandle<()>>,
    started: Instant,
    signalled: Option<Instant>,
}

impl Program {
    /// The name given to [`Launch::new`].
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The process id.
    pub fn id(&self) -> u32 {
        self.child.id()
    }

    /// Sends a signal; [`Exit::elapsed`] counts from the last one.
    pub fn signal(&mut self, signal: Signal) -> Instant {
        assert!(self.exit.is_none(), "{} has ended already", self.name);
        let now = Instant::now();
        signal_process(self.id(), signal);
        self.signalled = Some(now);
        now
    }

    /// Sends a signal and waits for the exit with this code.
    pub fn ends_at(&mut self, signal: Signal, code: i32) -> Exit {
        self.signal(signal);
        let exit = self.wait(SOON);
        assert_eq!(exit.code, Some(code), "{} at {signal}", self.name);
        exit
    }

    /// Sends SIGKILL and waits for the exit.
    pub fn kill(&mut self) -> Instant {
        let now = self.signal(Signal::SIGKILL);
        self.wait(SOON);
        now
    }

    /// Waits for the exit; fails the test after `limit`.
    pub fn wait(&mut self, limit: Duration) -> Exit {
        if let Some(exit) = self.exit {
            return exit;
        }
        let deadline = Instant::now() + limit;
        loop {
            if let Some(status) = self.child.try_wait().expect("a child can be waited for") {
                let at = Instant::now();
                janitor::process_ended(self.child.id());
                self.unmute();
                // Both pipes end with the process: after the join all output is read.
                for reader in self.readers.drain(..) {
                    reader.join().expect("a reader does not panic");
                }
                let since = self.signalled.unwrap_or(self.started);
                let exit = Exit { code: status.code(), signal: status.signal(), elapsed: at - since, at };
                self.exit = Some(exit);
                return exit;
            }
            let waited = self.signalled.unwrap_or(self.started).elapsed();
            assert!(Instant::now() < deadline, "{} still runs after {waited:?}", self.name);
            std::thread::sleep(Duration::from_millis(1));
        }
    }

    /// Stops reading the standard output and fills the pipe, so that writes of the program block.
    pub fn mute(&self) {
        /// The value on Linux.
        const O_NONBLOCK: i32 = 0o4000;
        self.output.muted.store(true, Ordering::SeqCst);
        let path = format!("/proc/{}/fd/1", self.id());
        let pipe = File::options().write(true).custom_flags(O_NONBLOCK).open(path);
        let mut pipe = pipe.expect("a pipe can be opened again");
        // A read that is under way empties the pipe once more, so it is filled three times.
        for _ in 0..3 {
            std::thread::sleep(Duration::from_millis(20));
            for piece in [[b'\n'; 4096].as_slice(), b"\n"] {
                while pipe.write(piece).is_ok_and(|written| written > 0) {}
            }
        }
    }

    /// Reads the standard output again.
    pub fn unmute(&self) {
        self.output.muted.store(false, Ordering::SeqCst);
    }

    /// True while the process runs.
    pub fn is_running(&mut self) -> bool {
        self.exit.is_none() && self.child.try_wait().expect("a child can be waited for").is_none()
    }

    /// Waits for a line that contains `text`, or finds an earlier one; fails the test after `limit`.
    pub fn wait_for_line(&self, text: &str, limit: Duration) -> Line {
        self.wait_for_lines(text, 1, limit)
    }

    /// Waits until `count` lines contain `text`; returns the last of them.
    pub fn wait_for_lines(&self, text: &str, count: usize, limit: Duration) -> Line {
        assert!(count > 0, "count must be at least 1");
        let deadline = Instant::now() + limit;
        let mut lines = self.output.lines.lock();
        loop {
            if let Some(line) = lines.iter().filter(|line| line.text.contains(text)).nth(count - 1) {
                return line.clone();
            }
            if self.output.grew.wait_until(&mut lines, deadline).timed_out() {
                drop(lines);
                panic!("{} did not write {text:?} ({count} times) within {limit:?}", self.name);
            }
        }
    }

    /// Waits for a line that contains `text` and returns the address after it.
    pub fn address_after(&self, text: &str) -> String {
        let line = self.wait_for_line(text, START).text;
        let (_, rest) = line.split_once(text).expect("the line has it");
        let address = rest.split([';', ' ']).next().unwrap_or_default();
        let address: SocketAddr = address.parse().unwrap_or_else(|error| panic!("{line}: {error}"));
        address.to_string()
    }

    /// All lines so far.
    pub fn lines(&self) -> Vec<Line> {
        self.output.lines.lock().clone()
    }

    /// The lines so far that contain `text`.
    pub fn lines_with(&self, text: &str) -> Vec<Line> {
        self.lines().into_iter().filter(|line| line.text.contains(text)).collect()
    }

    /// The standard error output so far, as one text.
    pub fn stderr(&self) -> String {
        let lines = self.lines().into_iter().filter(|line| line.stream == Stream::Stderr);
        lines.map(|line| line.text + "\n").collect()
    }

    /// The receipt: the last line on the standard output of an ended program.
    pub fn receipt(&self) -> Value {
        assert!(self.exit.is_some(), "{} still runs: wait for it first", self.name);
        let lines = self.lines();
        let last = lines.iter().rev().find(|line| line.stream == Stream::Stdout);
        let last = last.unwrap_or_else(|| panic!("{} wrote nothing", self.name));
        serde_json::from_str(&last.text)
            .unwrap_or_else(|error| panic!("{}: the last line {:?} is no receipt: {error}", self.name, last.text))
    }

    /// Asserts that each text is in exactly one line, and that these lines are in this order.
    pub fn assert_lines_in_order(&self, texts: &[&str]) {
        let lines = self.lines();
        let mut before = None;
        for text in texts {
            let found: Vec<usize> =
                lines.iter().enumerate().filter(|(_, line)| line.text.contains(text)).map(|(index, _)| index).collect();
            assert_eq!(found.len(), 1, "{}: {text:?} is on lines {found:?}, not on exactly one", self.name);
            assert!(before < Some(found[0]), "{}: {text:?} is too early, on line {}", self.name, found[0]);
            before = Some(found[0]);
        }
    }

    /// Resident memory in bytes: `VmRSS` of proc_pid_status(5).
    pub fn resident_bytes(&self) -> u64 {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.id())).expect("the process runs");
        let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).expect("a process has memory");
        let kib: u64 = line.trim().trim_end_matches(" kB").parse().expect("a number of kB");
        kib * 1024
    }
}

impl Drop for Program {
    fn drop(&mut self) {
        if self.exit.is_none() {
            let _ = self.child.kill();
            let _ = self.child.wait();
            janitor::process_ended(self.child.id());
            self.unmute();
            for reader in self.readers.drain(..) {
                let _ = reader.join();
            }
        }
        if std::thread::panicking() {
            eprintln!("---- output of {} (process {}, exit {:?}):", self.name, self.child.id(), self.exit);
            for line in self.output.lines.lock().iter() {
                let at = line.at.saturating_duration_since(self.started).as_secs_f64();
                eprintln!("{at:9.3} {:?} {}", line.stream, line.text);
            }
        }
    }
}

fn read_lines(from: impl Read + Send + 'static, stream: Stream, output: &Arc<Output>) -> JoinHandle<()> {
    let output = output.clone();
    std::thread::Builder::new()
        .name("test-output".to_owned())
        .spawn(move || {
            let mut from = BufReader::new(from);
            let mut line = Vec::new();
            output.await_turn(stream);
            // Reads bytes, because invalid UTF-8 must not stop the reading.
            while from.read_until(b'\n', &mut line).is_ok_and(|read| read > 0) {
                let at = Instant::now();
                let text = String::from_utf8_lossy(line.strip_suffix(b"\n").unwrap_or(&line)).into_owned();
                line.clear();
                output.lines.lock().push(Line { at, stream, text });
                output.grew.notify_all();
                output.await_turn(stream);
            }
        })
        .expect("a thread starts")
}
