//! A process that the drill has started: signals, output, exit status.
//!
//! A thread copies the output of the process into a file, and reports readiness, receipt and end. Only the owner sends
//! signals and takes the exit status, so that no signal can reach another process that got the same pid later. The
//! process has its own process group, so that Ctrl-C for the drill does not reach it. Owned by the native fleet.

use std::fs::File;
use std::io::{self, BufRead, BufReader, Write};
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::process::{Child, Stdio};
use std::time::Instant;

use crossbeam_channel::Sender;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;

pub(super) use program::launch::Launch;
use program::stop::Stop;
use program::threads::{self, Thread};

/// A message from the thread to the owner.
#[derive(Debug)]
pub(super) struct Happening {
    pub(super) process: String,
    pub(super) pid: u32,
    pub(super) what: Happened,
}

/// An event of a process.
#[derive(Debug)]
pub(super) enum Happened {
    /// A worker takes tasks.
    Ready,
    /// The output has ended because the process has exited.
    Ended { at: Instant, receipt: Option<Value> },
}

/// Where the thread reports.
#[derive(Clone, Debug)]
pub(super) struct Ears {
    pub(super) owner: Sender<Happening>,
    pub(super) died: Stop,
}

/// A process that runs, or has exited and was not waited for.
#[derive(Debug)]
pub(super) struct Process {
    child: Child,
    reader: Thread,
    pub(super) frozen: bool,
}

impl Process {
    /// Starts the process.
    ///
    /// # Errors
    /// The program or its log file, with the reason.
    pub(super) fn start(launch: &Launch, ears: &Ears) -> Result<Self, String> {
        let (mut child, log) = launch.start(|command, _log| {
            command.stdout(Stdio::piped()).process_group(0);
            Ok(())
        })?;
        let output = child.stdout.take().ok_or_else(|| "the program has no stdout".to_owned())?;
        let mut reader =
            OutputReader { name: launch.name.clone(), pid: child.id(), log, ears: ears.clone(), receipt: None };
        let name = threads::fitted(&format!("out-{}", launch.name), "");
        let reader = threads::spawn(&name, ears.died.clone(), move || reader.run(BufReader::new(output)));
        Ok(Self { child, reader, frozen: false })
    }

    pub(super) fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Sends a signal, which has no effect after the exit.
    pub(super) fn signal(&self, signal: Signal) {
        let Ok(pid) = i32::try_from(self.child.id()) else { return };
        // Only `wait` reaps the child, so until then no other process can get its pid.
        if let Err(error) = kill(Pid::from_raw(pid), signal) {
            log::error!("{signal} cannot be sent to process {pid}: {error}");
        }
    }

    /// Waits for the exit; returns the exit code, or the signal that ended the process.
    pub(super) fn wait(mut self) -> (Option<i32>, Option<i32>) {
        let status = self.child.wait();
        // The thread logs its own failure.
        let _ = self.reader.join();
        status.map_or((None, None), |status| (status.code(), status.signal()))
    }
}

/// The thread that reads the output of a process.
struct OutputReader {
    name: String,
    pid: u32,
    log: File,
    ears: Ears,
    receipt: Option<Value>,
}

impl OutputReader {
    fn run(&mut self, mut output: impl BufRead) -> io::Result<()> {
        let mut line = Vec::new();
        loop {
            line.clear();
            if output.read_until(b'\n', &mut line)? == 0 {
                break;
            }
            self.log.write_all(&line)?;
            self.take(String::from_utf8_lossy(&line).trim_end());
        }
        let at = Instant::now();
        let receipt = self.receipt.take();
        self.tell(Happened::Ended { at, receipt });
        Ok(())
    }

    fn take(&mut self, line: &str) {
        if line.starts_with("{\"worker_id\"") {
            self.receipt = serde_json::from_str(line).ok();
        } else if line.contains(" worker_started notification") {
            // Also "could not send its worker_started notification": the worker takes tasks in either case.
            self.tell(Happened::Ready);
        }
    }

    fn tell(&self, what: Happened) {
        // The receiver is dropped only at the end of the drill.
        let _ = self.ears.owner.send(Happening { process: self.name.clone(), pid: self.pid, what });
    }
}
