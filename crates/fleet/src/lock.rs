//! Locks on files, by flock(2): the operating system releases them with the last process that has them open.
//!
//! A wait has a limit, and a stop ends it. Called by the commands, the state and the keepers.

use std::fs::{File, OpenOptions, TryLockError};
use std::path::Path;
use std::time::{Duration, Instant};

use program::stop::Stop;

use crate::failure::{Failure, refused};

const POLL: Duration = Duration::from_millis(10);

/// Whether other processes may hold the lock at the same time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    Shared,
    Exclusive,
}

/// Opens the file and locks it; `waiting` is called once if another process holds the lock.
///
/// # Errors
/// The file cannot be opened, the lock was not free for `limit`, or `stop` was triggered.
pub(crate) fn take(
    path: &Path,
    kind: Kind,
    limit: Duration,
    stop: &Stop,
    waiting: impl FnOnce(),
) -> Result<File, Failure> {
    let mut open = OpenOptions::new();
    let file = open.read(true).write(true).create(true).truncate(false).open(path).map_err(Failure::of(path))?;
    let (begin, mut waiting) = (Instant::now(), Some(waiting));
    loop {
        let taken = if kind == Kind::Shared { file.try_lock_shared() } else { file.try_lock() };
        match taken {
            Ok(()) => return Ok(file),
            Err(TryLockError::Error(error)) => return Err(Failure::of(path)(error)),
            Err(TryLockError::WouldBlock) if begin.elapsed() >= limit => {
                let name = path.display();
                return refused(format!("another process has held {name} for more than {} s", limit.as_secs()));
            }
            Err(TryLockError::WouldBlock) => {}
        }
        if let Some(waiting) = waiting.take() {
            waiting();
        }
        stop.sleep(POLL)?;
    }
}

/// Whether a process holds the lock on this file.
///
/// # Errors
/// The file exists and cannot be opened.
pub(crate) fn is_held(path: &Path) -> Result<bool, Failure> {
    let file = match File::open(path) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(false),
        file => file.map_err(Failure::of(path))?,
    };
    match file.try_lock_shared() {
        Ok(()) => Ok(false),
        Err(TryLockError::WouldBlock) => Ok(true),
        Err(TryLockError::Error(error)) => Err(Failure::of(path)(error)),
    }
}
