//! Runs the program that prints a login's secret, such as a token of a cloud's identity service.
//!
//! Each run has a thread, since it may take seconds and a connection's thread has locks to renew. Logins that begin
//! during a run share its result. Called by [`login`](super::login).

use std::io::{self, ErrorKind, Read};
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, Sender, bounded};
use nix::sys::signal::{Signal, killpg};
use nix::unistd::Pid;
use parking_lot::Mutex;
use program::stop::Stop;
use program::threads::{self, Thread};
use zeroize::Zeroizing;

use super::sasl::Secret;

/// The longest run.
const LIMIT: Duration = Duration::from_secs(10);
/// How often a run looks whether it shall stop.
const LOOK: Duration = Duration::from_millis(20);
/// Most bytes of a secret.
const MOST: usize = 64 << 10;

/// What a run printed, or why there is none.
pub(super) type Told = Result<Arc<Secret>, String>;

/// A program and its present run. Dropping it ends the run.
pub(super) struct TokenCommand {
    command: String,
    shared: Arc<Mutex<Shared>>,
    stop: Stop,
}

#[derive(Default)]
struct Shared {
    is_running: bool,
    /// Logins that wait for the run's end. Each channel takes one result, so sending never waits.
    waiting: Vec<Sender<Told>>,
    thread: Option<Thread>,
}

impl TokenCommand {
    /// `command`: a line for `sh -c`.
    pub fn new(command: String) -> Self {
        Self { command, shared: Arc::default(), stop: Stop::new() }
    }

    /// Joins the present run or starts one; its result comes on the channel. A run takes at most 10 s.
    pub fn ask(&self) -> Receiver<Told> {
        let (told, result) = bounded(1);
        let mut shared = self.shared.lock();
        shared.waiting.push(told);
        if std::mem::replace(&mut shared.is_running, true) {
            return result;
        }
        // Ends the run also if its thread dies or cannot start.
        let mut run_ends = RunEnds(Some(Arc::clone(&self.shared)));
        let (command, stop) = (self.command.clone(), self.stop.clone());
        let thread = threads::spawn("token", Stop::new(), move || -> io::Result<()> {
            let told = run(&command, LIMIT, &stop);
            for sender in run_ends.waiting() {
                // The login may have ended with its connection.
                let _ = sender.try_send(told.clone());
            }
            Ok(())
        });
        let ended = shared.thread.replace(thread);
        drop(shared);
        if let Some(ended) = ended {
            // It has told its result; a failure was logged.
            let _ = ended.join();
        }
        result
    }
}

/// `None` once the run has ended: the logins that wait then are those of the next run.
struct RunEnds(Option<Arc<Mutex<Shared>>>);

impl RunEnds {
    /// Ends the run, once: later logins start another one.
    fn waiting(&mut self) -> Vec<Sender<Told>> {
        let Some(shared) = self.0.take() else { return Vec::new() };
        let mut shared = shared.lock();
        shared.is_running = false;
        std::mem::take(&mut shared.waiting)
    }
}

impl Drop for RunEnds {
    fn drop(&mut self) {
        // Logins that still wait learn that nothing comes.
        drop(self.waiting());
    }
}

impl Drop for TokenCommand {
    fn drop(&mut self) {
        self.stop.trigger();
        let thread = self.shared.lock().thread.take();
        if let Some(thread) = thread {
            let _ = thread.join();
        }
    }
}

/// Runs the command to its end and returns what it printed.
fn run(command: &str, limit: Duration, stop: &Stop) -> Told {
    let deadline = Instant::now() + limit;
    let (mut output, its_end) = UnixStream::pair().map_err(|error| format!("no socket for its output: {error}"))?;
    let mut shell = Command::new("sh");
    shell.args(["-c", command]).stdin(Stdio::null()).stdout(OwnedFd::from(its_end)).process_group(0);
    let mut child = shell.spawn().map_err(|error| format!("sh does not start: {error}"))?;
    // Its copy of the child's end would keep the output open.
    drop(shell);
    let printed = match read(&mut output, deadline, stop) {
        Ok(printed) => printed,
        Err(problem) => return Err(kill(&mut child, &problem)),
    };
    loop {
        match child.try_wait() {
            Ok(Some(status)) if status.success() => return Ok(Arc::new(Secret::from(printed))),
            Ok(Some(status)) => return Err(format!("it ended with {status}")),
            Ok(None) if Instant::now() < deadline && stop.sleep(LOOK).is_ok() => {}
            Ok(None) => return Err(kill(&mut child, &format!("it did not end within {} s", limit.as_secs()))),
            Err(error) => return Err(kill(&mut child, &format!("its end is not known: {error}"))),
        }
    }
}

fn read(output: &mut UnixStream, deadline: Instant, stop: &Stop) -> Result<Vec<u8>, String> {
    // All at once: growing would leave copies.
    let mut printed = Zeroizing::new(Vec::with_capacity(MOST));
    let mut part = Zeroizing::new([0; 4096]);
    loop {
        if Instant::now() >= deadline || stop.is_triggered() {
            return Err(format!("it did not end within {} s", LIMIT.as_secs()));
        }
        let read = output.set_read_timeout(Some(LOOK)).and_then(|()| output.read(&mut part[..]));
        match read {
            Ok(0) => return Ok(std::mem::take(&mut *printed)),
            Ok(count) if printed.len() + count > MOST => return Err(format!("it printed more than {MOST} bytes")),
            Ok(count) => printed.extend_from_slice(&part[..count]),
            Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::Interrupted) => {}
            Err(error) => return Err(format!("its output cannot be read: {error}")),
        }
    }
}

/// Kills the command with the processes of its group, and says what happened.
fn kill(child: &mut Child, problem: &str) -> String {
    // The shell was not reaped, so its pid is still the id of its group.
    let group = i32::try_from(child.id()).map(Pid::from_raw);
    let killed = group.is_ok_and(|group| killpg(group, Signal::SIGKILL).is_ok()) && child.wait().is_ok();
    format!("{problem}; {}", if killed { "it was killed" } else { "it cannot be killed" })
}

#[cfg(test)]
mod tests {
    use super::super::certificates::Folder;
    use super::*;

    const SOON: Duration = Duration::from_secs(20);

    /// Its thread may be slow to end, and a login may start the next run meanwhile.
    #[test]
    fn run_that_has_told_its_result_leaves_the_logins_of_the_next_run_alone() {
        let shared = Arc::<Mutex<Shared>>::default();
        let mut first = RunEnds(Some(Arc::clone(&shared)));
        assert!(first.waiting().is_empty());
        let (told, result) = bounded::<Told>(1);
        *shared.lock() = Shared { is_running: true, waiting: vec![told], thread: None };
        drop(first);
        assert!(shared.lock().is_running);
        assert_eq!(result.try_recv().err(), Some(crossbeam_channel::TryRecvError::Empty), "it still waits");
        drop(RunEnds(Some(Arc::clone(&shared))));
        assert_eq!(result.try_recv().err(), Some(crossbeam_channel::TryRecvError::Disconnected), "its run has died");
    }

    fn printed(told: Told) -> Vec<u8> {
        told.expect("a secret").bytes().to_vec()
    }

    #[test]
    fn command_gives_what_it_prints() {
        assert_eq!(printed(run("printf 'a.b.c\n'", SOON, &Stop::new())), b"a.b.c");
    }

    #[test]
    fn failed_command_is_explained_without_its_output() {
        for (command, problem) in [
            ("echo hunter2; exit 3", "it ended with exit status: 3"),
            ("yes hunter2 | head -c 100000", "it printed more than 65536 bytes; it was killed"),
        ] {
            assert_eq!(run(command, SOON, &Stop::new()).expect_err("it failed"), problem);
        }
    }

    #[test]
    fn command_past_its_limit_is_killed_with_its_group() {
        let folder = Folder::new();
        let pid = folder.path().join("pid");
        let command = format!("sleep 1000 & echo $! > '{}'; wait", pid.display());
        let told = run(&command, Duration::from_millis(500), &Stop::new());
        assert!(told.expect_err("too late").contains("it was killed"));
        let sleeper: i32 = std::fs::read_to_string(pid).expect("written").trim().parse().expect("a number");
        let deadline = Instant::now() + SOON;
        // A killed process without a parent is gone once init has reaped it.
        while nix::sys::signal::kill(Pid::from_raw(sleeper), None).is_ok() && !is_zombie(sleeper) {
            assert!(Instant::now() < deadline, "process {sleeper} still runs");
        }
    }

    fn is_zombie(process: i32) -> bool {
        let stat = std::fs::read_to_string(format!("/proc/{process}/stat")).unwrap_or_default();
        stat.rsplit(')').next().is_some_and(|rest| rest.trim_start().starts_with('Z'))
    }

    #[test]
    fn process_that_keeps_the_output_open_is_killed_too() {
        let folder = Folder::new();
        let pid = folder.path().join("pid");
        let command = format!("sleep 1000 & echo $! > '{}'; echo token", pid.display());
        let told = run(&command, Duration::from_millis(500), &Stop::new());
        assert!(told.expect_err("its output has no end").contains("it was killed"));
    }

    #[test]
    fn command_that_has_closed_its_output_still_has_to_end() {
        let told = run("echo token; exec >&-; sleep 1000", Duration::from_millis(200), &Stop::new());
        assert!(told.expect_err("too late").contains("did not end"));
    }

    #[test]
    fn logins_that_begin_together_share_one_run() {
        let folder = Folder::new();
        let runs = folder.path().join("runs");
        // The first run waits for the test.
        let gate = folder.path().join("gate");
        let script = format!(
            "echo run >> '{0}'; until [ -e '{1}' ]; do sleep 0.01; done; echo token",
            runs.display(),
            gate.display()
        );
        let command = TokenCommand::new(script);
        let (first, second) = (command.ask(), command.ask());
        folder.write("gate", "");
        for told in [first, second] {
            assert_eq!(printed(told.recv_timeout(SOON).expect("told")), b"token");
        }
        assert_eq!(printed(command.ask().recv_timeout(SOON).expect("told")), b"token");
        assert_eq!(std::fs::read_to_string(runs).expect("written"), "run\nrun\n");
    }

    /// Its thread died, or could not start.
    #[test]
    fn run_without_a_result_ends_for_its_logins_and_for_later_ones() {
        let (told, result) = bounded(1);
        let shared = Arc::new(Mutex::new(Shared { is_running: true, waiting: vec![told], thread: None }));
        drop(RunEnds(Some(Arc::clone(&shared))));
        assert!(result.recv_timeout(SOON).is_err_and(|error| error.is_disconnected()));
        assert!(!shared.lock().is_running);
    }

    #[test]
    fn dropping_ends_a_run() {
        let command = TokenCommand::new("sleep 1000".to_owned());
        let told = command.ask();
        let since = Instant::now();
        drop(command);
        assert!(told.recv_timeout(SOON).expect("told").is_err());
        assert!(since.elapsed() < SOON);
    }
}
