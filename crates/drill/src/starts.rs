//! Starts and ends of tasks, read from the workers' journal during the run.
//!
//! Every start and end becomes a fact. The tasks in flight are kept for actions that need a busy or an idle worker.
//! Owned by the native fleet, which reads the journal before it acts and before it reports an exit.

use std::collections::{BTreeMap, HashMap};
use std::fs::{self, File};
use std::io::{self, Read};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use lastcall::journal::JournalLine;
use lastcall::task::unix_now;

use super::fact::Fact;
use super::fleet::Teller;

/// The journal and the tasks in flight.
#[derive(Debug)]
pub(super) struct Starts {
    path: PathBuf,
    file: File,
    /// An incomplete last line.
    rest: Vec<u8>,
    /// Tasks in flight by worker, with their starts.
    in_flight: HashMap<String, BTreeMap<String, Instant>>,
}

impl Starts {
    /// Creates the journal in this folder.
    ///
    /// # Errors
    /// The file cannot be created; the message names it.
    pub(super) fn create(folder: &Path) -> Result<Self, String> {
        let path = folder.join("journal.jsonl");
        let made = std::path::absolute(&path).and_then(|path| {
            fs::write(&path, "")?;
            Ok((File::open(&path)?, path))
        });
        let (file, path) = made.map_err(|error| format!("{}: {error}", path.display()))?;
        Ok(Self { path, file, rest: Vec::new(), in_flight: HashMap::new() })
    }

    /// Path of the journal.
    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// Reads the lines that are new.
    pub(super) fn read(&mut self, teller: &Teller) {
        if let Err(error) = self.file.read_to_end(&mut self.rest) {
            log::error!("{}: {error}", self.path.display());
        }
        let Some(end) = self.rest.iter().rposition(|byte| *byte == b'\n') else { return };
        let whole: Vec<u8> = self.rest.drain(..=end).collect();
        for line in whole.split(|byte| *byte == b'\n').filter(|line| !line.is_empty()) {
            match serde_json::from_slice(line).map_err(io::Error::from) {
                Ok(line) => self.take(line, teller),
                Err(error) => log::error!("{}: {error}", self.path.display()),
            }
        }
    }

    fn take(&mut self, line: JournalLine, teller: &Teller) {
        let JournalLine { at, worker, task_id, delivery, ended, .. } = line;
        let tasks = self.in_flight.entry(worker.clone()).or_default();
        if ended {
            tasks.remove(&task_id);
        } else {
            let ago = Duration::try_from_secs_f64(unix_now() - at).unwrap_or_default();
            tasks.insert(task_id.clone(), Instant::now().checked_sub(ago).unwrap_or_else(Instant::now));
        }
        let delivery = i16::try_from(delivery).unwrap_or(i16::MAX);
        let fact = if ended {
            Fact::HandlerEnded { worker, task_id, delivery }
        } else {
            Fact::RunBegan { worker, task_id, delivery }
        };
        teller.tell_at(teller.clock.of_unix(at), fact);
    }

    /// Clears the tasks in flight of a worker that has exited or is about to start.
    pub(super) fn forget(&mut self, worker: &str, teller: &Teller) {
        // Reads the lines of the former process first.
        self.read(teller);
        self.in_flight.remove(worker);
    }

    /// The tasks in flight of a worker.
    pub(super) fn tasks(&self, worker: &str) -> impl Iterator<Item = &String> {
        self.in_flight.get(worker).into_iter().flat_map(BTreeMap::keys)
    }

    /// Start of the oldest task in flight; `None`: the worker is idle.
    pub(super) fn busy_since(&self, worker: &str) -> Option<Instant> {
        self.in_flight.get(worker)?.values().min().copied()
    }

    /// Start of the youngest task that has been in flight for at least `least`; `None`: there is none.
    pub(super) fn long_since(&self, worker: &str, least: Duration) -> Option<Instant> {
        self.in_flight.get(worker)?.values().filter(|since| since.elapsed() >= least).max().copied()
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::super::clock::Clock;
    use super::super::event::Event;
    use super::*;

    #[test]
    fn starts_and_ends_become_facts_with_their_times_and_ends_leave_a_worker_idle() {
        let folder = std::env::temp_dir().join(format!("lastcall-starts-{}", std::process::id()));
        fs::create_dir_all(&folder).expect("a folder");
        let mut starts = Starts::create(&folder).expect("a journal");
        let (facts, told) = crossbeam_channel::bounded(9);
        let teller = Teller { clock: Clock::start(), facts };
        let mut journal = fs::OpenOptions::new().append(true).open(starts.path()).expect("it is there");
        let line = |task_id: &str, ago: f64, ended| {
            let (at, task_id) = (unix_now() - ago, task_id.to_owned());
            let line = JournalLine { at, pid: 7, worker: "w".to_owned(), task_id, delivery: 2, ended };
            serde_json::to_string(&line).expect("JSON") + "\n"
        };
        let last = line("c", 0.0, false);
        let (front, back) = last.split_at(9);
        write!(journal, "{}{}{front}", line("a", 60.0, false), line("b", 1.0, false)).expect("written");
        starts.read(&teller);
        assert_eq!(starts.tasks("w").collect::<Vec<_>>(), ["a", "b"], "an incomplete line is not read");
        assert!(starts.long_since("w", Duration::from_secs(5)) == starts.busy_since("w"));
        write!(journal, "{back}{}{}", line("a", 0.0, true), line("b", 0.0, true)).expect("written");
        starts.read(&teller);
        assert_eq!(starts.tasks("w").collect::<Vec<_>>(), ["c"]);
        starts.forget("w", &teller);
        assert_eq!(starts.busy_since("w"), None);
        fs::remove_dir_all(&folder).expect("removed");
        let told = told.try_iter().map(|event| match event {
            Event::Fact(line) => (line.at, line.fact),
            other => panic!("{other:?}"),
        });
        let told: Vec<(f64, Fact)> = told.collect();
        assert!((-61.0..-59.0).contains(&told[0].0) && told.len() == 5, "{told:?}");
        let (worker, task_id, delivery) = ("w".to_owned(), "a".to_owned(), 2);
        let began = Fact::RunBegan { worker: worker.clone(), task_id: task_id.clone(), delivery };
        let ended = told.iter().find(|(_, fact)| matches!(fact, Fact::HandlerEnded { .. }));
        assert_eq!(
            (&told[0].1, ended.map(|(_, fact)| fact)),
            (&began, Some(&Fact::HandlerEnded { worker, task_id, delivery }))
        );
    }
}
