//! One program that the drill has started: signals to it, its output, its end.
//!
//! A thread reads what the program prints, keeps it in a file, and tells what matters of it: starts of tasks, readiness, the end. The owner alone sends
//! signals and takes the exit status, so that no signal can reach a stranger who got the number later. In a process
//! group of its own, so that a Ctrl-C for the drill is none for the program. Owned by the native fleet.

use std::collections::BTreeMap;
use std::fs::{File, OpenOptions};
use std::io::{self, BufRead, BufReader, Write};
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use crossbeam_channel::Sender;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use parking_lot::Mutex;
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

use crate::stop::Stop;
use crate::task::Receipt;
use crate::threads::{self, Thread};

use super::clock::Clock;
use super::event::Event;
use super::fact::{Fact, Line};

/// How to start a program.
#[derive(Clone, Debug)]
pub(super) struct Launch {
    pub(super) name: String,
    pub(super) program: PathBuf,
    pub(super) environment: Vec<(String, String)>,
    /// Where its output goes, behind what is there.
    pub(super) log: PathBuf,
}

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
    Ended { at: Instant, receipt: Option<Box<Receipt>> },
}

/// Where the reader tells what it sees.
#[derive(Clone, Debug)]
pub(super) struct Ears {
    pub(super) clock: Clock,
    /// Facts for the ledger. Full: the reader waits, and in the end the program that prints.
    pub(super) facts: Sender<Event>,
    pub(super) owner: Sender<Happening>,
    pub(super) died: Stop,
}

/// The tasks that a worker has in hand, with their starts, as its log tells.
type InHand = Arc<Mutex<BTreeMap<String, Instant>>>;

/// A program that runs, or has ended and was not asked for its status yet.
#[derive(Debug)]
pub(super) struct Process {
    child: Child,
    reader: Thread,
    in_hand: InHand,
    pub(super) frozen: bool,
}

impl Process {
    /// Starts it.
    ///
    /// # Errors
    /// The program or its log file, and what is wrong with it.
    pub(super) fn start(launch: &Launch, ears: &Ears) -> Result<Self, String> {
        let open = |path: &Path| OpenOptions::new().create(true).append(true).open(path);
        let files = open(&launch.log).and_then(|log| Ok((log.try_clone()?, log)));
        let (log, errors) = files.map_err(|error| format!("{}: {error}", launch.log.display()))?;
        let mut child = Command::new(&launch.program)
            .envs(launch.environment.iter().map(|(name, value)| (name, value)))
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(errors)
            .process_group(0)
            .spawn()
            .map_err(|error| format!("{} does not start: {error}", launch.program.display()))?;
        let output = child.stdout.take().ok_or_else(|| "a program without an output".to_owned())?;
        let in_hand = InHand::default();
        let mut reader = OutputReader {
            name: launch.name.clone(),
            pid: child.id(),
            log,
            ears: ears.clone(),
            in_hand: Arc::clone(&in_hand),
            receipt: None,
        };
        let name: String = format!("out-{}", launch.name).chars().take(threads::NAME_LIMIT).collect();
        let reader = threads::spawn(&name, ears.died.clone(), move || reader.run(BufReader::new(output)));
        Ok(Self { child, reader, in_hand, frozen: false })
    }

    pub(super) fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Since when it has had the task in hand that it started first; `None`: it has none.
    pub(super) fn busy_since(&self) -> Option<Instant> {
        self.in_hand.lock().values().min().copied()
    }

    /// The tasks that it has in hand.
    pub(super) fn tasks(&self) -> Vec<String> {
        self.in_hand.lock().keys().cloned().collect()
    }

    /// When the task that it started last was started, of those that it has had for `least`; `None`: it has no such.
    pub(super) fn long_since(&self, least: Duration) -> Option<Instant> {
        self.in_hand.lock().values().filter(|since| since.elapsed() >= least).max().copied()
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
    in_hand: InHand,
    receipt: Option<Box<Receipt>>,
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
        } else if let Some(began) = TaskLine::read(line, " starts task ", " at its delivery ") {
            self.in_hand.lock().insert(began.task_id.to_owned(), Instant::now());
            let fact = Fact::RunBegan {
                worker: began.worker.to_owned(),
                task_id: began.task_id.to_owned(),
                delivery: began.rest.parse().unwrap_or_default(),
            };
            // Nobody listens any more: the drill is at its end.
            let _ = self.ears.facts.send(Event::Fact(Line { at: self.logged_at(line), fact }));
        } else if let Some(ended) = TaskLine::read(line, " has run task ", " for ") {
            self.in_hand.lock().remove(ended.task_id);
        } else if line.contains(" worker_started notification") {
            // Sent, or given up after a second: it takes tasks in either case.
            self.tell(Happened::Ready);
        }
    }

    /// When a line was written, as it says itself: on a busy machine it is read later, when its task may be done.
    fn logged_at(&self, line: &str) -> f64 {
        let clock = &self.ears.clock;
        let logged = line.split(' ').next().and_then(|time| OffsetDateTime::parse(time, &Rfc3339).ok());
        let at = logged.map(|time| clock.of_unix(time.unix_timestamp_nanos() as f64 / 1e9));
        at.map_or_else(|| clock.now(), |at| at.min(clock.now()))
    }

    fn tell(&self, what: Happened) {
        // As above.
        let _ = self.ears.owner.send(Happening { process: self.name.clone(), pid: self.pid, what });
    }
}

/// A line of a worker's log about a task: `… Worker ID VERB TASK PREPOSITION REST`.
struct TaskLine<'a> {
    worker: &'a str,
    task_id: &'a str,
    rest: &'a str,
}

impl<'a> TaskLine<'a> {
    fn read(line: &'a str, verb: &str, preposition: &str) -> Option<Self> {
        let (front, rest) = line.split_once(verb)?;
        let (_, worker) = front.split_once(" Worker ")?;
        let (task_id, rest) = rest.rsplit_once(preposition)?;
        Some(Self { worker, task_id, rest: rest.trim() })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_start_has_the_time_of_its_line_however_late_it_is_read() {
        let (facts, told) = crossbeam_channel::bounded(9);
        let (owner, _happenings) = crossbeam_channel::bounded(9);
        let clock = Clock::start();
        let mut reader = OutputReader {
            name: "worker_1".to_owned(),
            pid: 7,
            log: File::open("/dev/null").expect("it is there"),
            ears: Ears { clock, facts, owner, died: Stop::new() },
            in_hand: InHand::default(),
            receipt: None,
        };
        let time = OffsetDateTime::from_unix_timestamp(clock.unix() as i64 - 60).expect("a time");
        let logged = time.format(&Rfc3339).expect("a text");
        for line in [
            &format!("{logged} [DEBUG] Worker w starts task t at its delivery 1"),
            " Worker w starts task u at its delivery 1",
        ] {
            reader.take(line);
        }
        let told: Vec<f64> = told
            .try_iter()
            .map(|event| match event {
                Event::Fact(line) => line.at,
                other => panic!("{other:?}"),
            })
            .collect();
        assert!(
            matches!(told[..], [first, second] if (-61.0..=-60.0).contains(&first) && (0.0..5.0).contains(&second)),
            "{told:?}"
        );
    }

    #[test]
    fn starts_and_ends_of_tasks_are_read_from_the_log() {
        let line = "2026-01-01T00:00:00Z [DEBUG] Worker worker_1 starts task 0193-ab at its delivery 2";
        let began = TaskLine::read(line, " starts task ", " at its delivery ").expect("a start");
        assert_eq!((began.worker, began.task_id, began.rest), ("worker_1", "0193-ab", "2"));
        let line = "2026-01-01T00:00:00Z [DEBUG] Worker w has run task for all for 12 us";
        let ended = TaskLine::read(line, " has run task ", " for ").expect("an end");
        assert_eq!(ended.task_id, "for all");
        assert!(TaskLine::read("Worker w started", " starts task ", " at its delivery ").is_none());
    }
}
