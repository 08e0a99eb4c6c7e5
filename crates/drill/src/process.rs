//! One program that the drill has started: signals to it, its output, its end.
//!
//! A thread reads what the program prints, keeps it in a file, and tells what matters of it: readiness, the receipt, the end. The owner alone sends
//! signals and takes the exit status, so that no signal can reach a stranger who got the number later. In a process
//! group of its own, so that a Ctrl-C for the drill is none for the program. Owned by the native fleet.

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

/// What a program's reader tells its owner.
#[derive(Debug)]
pub(super) struct Happening {
    pub(super) process: String,
    pub(super) pid: u32,
    pub(super) what: Happened,
}

/// See [`Happening`].
#[derive(Debug)]
pub(super) enum Happened {
    /// A worker says that it takes tasks.
    Ready,
    /// Its output has ended, and so it has.
    Ended { at: Instant, receipt: Option<Value> },
}

/// Where the reader tells what it sees.
#[derive(Clone, Debug)]
pub(super) struct Ears {
    pub(super) owner: Sender<Happening>,
    pub(super) died: Stop,
}

/// A program that runs, or has ended and was not asked for its status yet.
#[derive(Debug)]
pub(super) struct Process {
    child: Child,
    reader: Thread,
    pub(super) frozen: bool,
}

impl Process {
    /// Starts it.
    ///
    /// # Errors
    /// The program or its log file, and what is wrong with it.
    pub(super) fn start(launch: &Launch, ears: &Ears) -> Result<Self, String> {
        let (mut child, log) = launch.start(|command, _log| {
            command.stdout(Stdio::piped()).process_group(0);
            Ok(())
        })?;
        let output = child.stdout.take().ok_or_else(|| "a program without an output".to_owned())?;
        let mut reader =
            OutputReader { name: launch.name.clone(), pid: child.id(), log, ears: ears.clone(), receipt: None };
        let name: String = format!("out-{}", launch.name).chars().take(threads::NAME_LIMIT).collect();
        let reader = threads::spawn(&name, ears.died.clone(), move || reader.run(BufReader::new(output)));
        Ok(Self { child, reader, frozen: false })
    }

    pub(super) fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Sends a signal. One that has ended and was not waited for takes it without an effect.
    pub(super) fn signal(&self, signal: Signal) {
        let Ok(pid) = i32::try_from(self.child.id()) else { return };
        // Nobody else waits for our child, so its number is its own until `wait`.
        if let Err(error) = kill(Pid::from_raw(pid), signal) {
            log::error!("{signal} cannot be sent to process {pid}: {error}");
        }
    }

    /// Takes the status of one that has ended: its code, or the signal that ended it.
    pub(super) fn wait(mut self) -> (Option<i32>, Option<i32>) {
        let status = self.child.wait();
        // How the thread ended was logged there.
        let _ = self.reader.join();
        status.map_or((None, None), |status| (status.code(), status.signal()))
    }
}

/// The thread that reads a program's output.
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
            // Sent, or given up after a second: it takes tasks in either case.
            self.tell(Happened::Ready);
        }
    }

    fn tell(&self, what: Happened) {
        // The receiver is gone only when the drill ends.
        let _ = self.ears.owner.send(Happening { process: self.name.clone(), pid: self.pid, what });
    }
}
