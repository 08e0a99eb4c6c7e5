//! The state of a fleet: a JSON file in its folder.
//!
//! Readers need no lock, because a change replaces the file in one step. A change holds the lock `state.lock` only
//! while it reads and writes. The state does not have the programs that run: see [`keeper`](crate::keeper). Called by
//! the commands and the keepers.

use std::collections::BTreeMap;
use std::fmt;
use std::fs::File;
use std::io::{ErrorKind, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use program::stop::Stop;
use serde::{Deserialize, Serialize};

use crate::failure::Failure;
use crate::lock::{self, Kind};
use crate::settings::Settings;

/// How long a change waits for others. It takes milliseconds.
pub(crate) const LIMIT: Duration = Duration::from_secs(10);

/// The content of the file.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub(crate) struct State {
    /// Settings of `up`.
    pub(crate) settings: Settings,
    pub(crate) programs: BTreeMap<String, Program>,
}

/// A program that was started and not removed by scaling.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct Program {
    /// Condition that the last command wanted.
    pub(crate) wanted: Wanted,
    /// Unix seconds of its start.
    pub(crate) since: f64,
    /// Pid of its keeper.
    pub(crate) keeper: u32,
    /// How it ended, if its keeper saw the end.
    pub(crate) end: Option<End>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Wanted {
    Running,
    Frozen,
    Stopped,
    Killed,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum End {
    Code(i32),
    Signal(String),
}

impl fmt::Display for End {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Code(code) => write!(formatter, "exit code {code}"),
            Self::Signal(name) => write!(formatter, "ended by {name}"),
        }
    }
}

impl State {
    /// The condition that the last command for this program wanted.
    pub(crate) fn wanted(&self, name: &str) -> Option<Wanted> {
        self.programs.get(name).map(|program| program.wanted)
    }
}

/// The state file.
#[derive(Clone, Debug)]
pub(crate) struct Store {
    path: PathBuf,
}

impl Store {
    pub(crate) fn new(run: &Path) -> Self {
        Self { path: run.join("fleet.json") }
    }

    /// Reads the state.
    ///
    /// # Errors
    /// [`Failure::NothingRuns`] if there is no state; the file cannot be read, or is damaged.
    pub(crate) fn read(&self) -> Result<State, Failure> {
        let text = match std::fs::read(&self.path) {
            Err(error) if error.kind() == ErrorKind::NotFound => return Err(Failure::NothingRuns),
            text => text.map_err(Failure::of(&self.path))?,
        };
        serde_json::from_slice(&text)
            .map_err(|error| Failure::Damaged { path: self.path.clone(), problem: error.to_string() })
    }

    /// Writes an empty state if there is none.
    ///
    /// # Errors
    /// The file cannot be written, or is damaged.
    pub(crate) fn create(&self) -> Result<(), Failure> {
        match self.read() {
            Err(Failure::NothingRuns) => self.write(&State::default()),
            read => read.map(drop),
        }
    }

    /// Changes the state.
    ///
    /// # Errors
    /// There is no state, it cannot be read or written, or it is damaged. The file is then unchanged.
    pub(crate) fn change<T>(&self, change: impl FnOnce(&mut State) -> T) -> Result<T, Failure> {
        let _held = self.lock()?;
        let mut state = self.read()?;
        let value = change(&mut state);
        self.write(&state)?;
        Ok(value)
    }

    /// The lock of a change, held until the file is dropped.
    fn lock(&self) -> Result<File, Failure> {
        lock::take(&self.path.with_file_name("state.lock"), Kind::Exclusive, LIMIT, &Stop::new(), || ())
    }

    fn write(&self, state: &State) -> Result<(), Failure> {
        let new = self.path.with_added_extension("new");
        let text = serde_json::to_vec_pretty(state).map_err(|error| Failure::of(&self.path)(error.into()))?;
        // Only for this user: the programs' options may have the command that prints a token.
        let file = File::options().write(true).create(true).truncate(true).mode(0o600).open(&new);
        let written = file.and_then(|mut file| file.write_all(&text));
        written.and_then(|()| std::fs::rename(&new, &self.path)).map_err(|error| {
            // A half-written file is useless, but harmless if it stays.
            let _ = std::fs::remove_file(&new);
            Failure::of(&self.path)(error)
        })
    }

    /// Removes the file.
    ///
    /// # Errors
    /// The file is there and cannot be removed, or another process is changing it for more than [`LIMIT`].
    pub(crate) fn remove(&self) -> Result<(), Failure> {
        let _held = match self.lock() {
            // A full disk has no room for the lock, and the file goes all the same.
            Err(Failure::File { .. }) => None,
            held => Some(held?),
        };
        match std::fs::remove_file(&self.path) {
            Err(error) if error.kind() != ErrorKind::NotFound => Err(Failure::of(&self.path)(error)),
            _ => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tests::Folder;

    fn worker(wanted: Wanted, end: Option<End>) -> Program {
        Program { wanted, since: 1_700_000_000.25, keeper: 7, end }
    }

    #[test]
    fn a_state_is_read_as_written() {
        let folder = Folder::new();
        let store = Store::new(&folder.path);
        assert!(matches!(store.read(), Err(Failure::NothingRuns)));
        assert!(matches!(store.change(|_| ()), Err(Failure::NothingRuns)), "a late keeper makes no fleet");
        store.create().expect("a folder of our own");
        let programs = [
            ("worker_1", worker(Wanted::Running, None)),
            ("worker_2", worker(Wanted::Stopped, Some(End::Code(3)))),
            ("worker_3", worker(Wanted::Killed, Some(End::Signal("SIGKILL".to_owned())))),
        ];
        let programs: BTreeMap<_, _> = programs.map(|(name, program)| (name.to_owned(), program)).into();
        store.change(|state| state.programs.clone_from(&programs)).expect("writable");
        store.create().expect("there is one");
        assert_eq!(store.read().expect("readable").programs, programs);
        store.remove().expect("it is there");
        store.remove().expect("it is gone already");
        assert!(matches!(store.read(), Err(Failure::NothingRuns)));
    }

    #[test]
    fn concurrent_changes_are_all_kept() {
        let folder = Folder::new();
        let store = Store::new(&folder.path);
        store.create().expect("a folder of our own");
        std::thread::scope(|scope| {
            for name in ["a", "b", "c", "d"] {
                let store = &store;
                scope.spawn(move || {
                    for number in 0..10 {
                        let change = |state: &mut State| state.settings.set(&format!("{name}{number}"), name);
                        store.change(change).expect("writable");
                    }
                });
            }
        });
        assert_eq!(store.read().expect("readable").settings.iter().count(), 40);
    }

    #[test]
    fn a_damaged_file_is_named_and_not_replaced() {
        let folder = Folder::new();
        let store = Store::new(&folder.path);
        for damaged in ["", "{", "[]", "{\"settings\":{},\"programs\":{\"gateway\":{\"wanted\":\"happy\"}}}"] {
            std::fs::write(&store.path, damaged).expect("writable");
            for failure in [store.create(), store.change(|_| ())] {
                let failure = failure.expect_err("damaged").to_string();
                assert!(failure.contains("fleet.json is damaged (") && failure.contains("make down"), "{failure}");
            }
            assert_eq!(std::fs::read_to_string(&store.path).expect("readable"), damaged);
        }
    }

    #[test]
    fn a_failed_write_leaves_the_state_unchanged() {
        let folder = Folder::new();
        let store = Store::new(&folder.path);
        store.create().expect("a folder of our own");
        std::fs::create_dir(folder.path.join("fleet.json.new")).expect("in its way");
        let failure = store.change(|state| state.settings.set("KAFKA", "apache")).expect_err("in its way");
        assert!(failure.to_string().contains("fleet.json cannot be used"), "{failure}");
        assert_eq!(store.read().expect("readable"), State::default());
    }
}
