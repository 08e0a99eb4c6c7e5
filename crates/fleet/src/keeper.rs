//! The keeper of a program, a process that starts it, waits for its end, and writes how it ended into the state.
//!
//! A program runs while the lock on its pid file is held. Keeper and program share that lock, because the open file is
//! the program's stdin. So the lock outlives a killed keeper and ends with the program; only the exit code is then
//! unknown. The pid in a locked file always belongs to the program. Called by `fleet keep`; the commands call
//! [`running`].

use std::fs::File;
use std::io::Write;
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Child, ExitStatus};
use std::time::{Duration, Instant, SystemTime};

use nix::sys::signal::Signal;
use nix::unistd::Pid;
use program::launch::Launch;
use program::stop::Stop;

use crate::failure::{Failure, refused};
use crate::lock::{self, Kind};
use crate::state::{self, End, Program, Store, Wanted};

/// How long a keeper waits for the lock of a former process, or while commands test the lock.
const LOCK: Duration = Duration::from_secs(5);
/// How long a locked pid file may be empty. A keeper empties it and then waits for the state, for at most its limit.
const NUMBER: Duration = state::LIMIT.saturating_add(Duration::from_secs(5));

fn pid_file(run: &Path, name: &str) -> PathBuf {
    run.join(format!("{name}.pid"))
}

pub(crate) fn log_file(run: &Path, name: &str) -> PathBuf {
    run.join(format!("{name}.log"))
}

/// The process of this program; `None` when it does not run.
///
/// # Errors
/// The pid file cannot be read, or has no number.
pub(crate) fn running(run: &Path, name: &str) -> Result<Option<Pid>, Failure> {
    let (path, begin) = (pid_file(run, name), Instant::now());
    while lock::is_held(&path)? {
        let text = std::fs::read_to_string(&path).map_err(Failure::of(&path))?;
        // Never -1 (all processes) or 0 (the own process group).
        if let Some(pid) = text.trim().parse().ok().filter(|pid| *pid > 1) {
            return Ok(Some(Pid::from_raw(pid)));
        }
        // The program is just starting or exiting.
        if begin.elapsed() > NUMBER {
            let path = path.display();
            return refused(format!("{name} runs, but {path} has no pid; end it by hand (fuser {path})"));
        }
        Stop::new().sleep(Duration::from_millis(5))?;
    }
    Ok(None)
}

/// Starts a program and returns after its exit.
///
/// # Errors
/// The program was not started: it already runs, or a file cannot be used.
pub(crate) fn keep(run: &Path, name: &str, program: &Path) -> Result<(), Failure> {
    let (path, store) = (pid_file(run, name), Store::new(run));
    let file = lock::take(&path, Kind::Exclusive, LOCK, &Stop::new(), || ())?;
    file.set_len(0).map_err(Failure::of(&path))?;
    let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default().as_secs_f64();
    let launch = Launch {
        name: name.to_owned(),
        program: program.to_owned(),
        environment: Vec::new(),
        log: log_file(run, name),
    };
    let (mut child, _log) = launch
        .start(|command, log| {
            command.stdin(file.try_clone()?).stdout(log.try_clone()?);
            Ok(())
        })
        .map_err(Failure::Refused)?;
    let program = Program { wanted: Wanted::Running, since, keeper: std::process::id(), end: None };
    if let Err(failure) = announce(&file, &path, &child, &store, name, program) {
        // A program that no command can find must not run.
        let _ = child.kill();
        let _ = child.wait();
        return Err(failure);
    }
    let status = child.wait().map_err(Failure::of(&path))?;
    // From here on another process may get the pid. The lock ends after the last line.
    file.set_len(0).map_err(Failure::of(&path))?;
    store.change(|state| {
        if let Some(program) = state.programs.get_mut(name) {
            program.end = end_of(status);
        }
    })
}

fn announce(
    mut file: &File,
    path: &Path,
    child: &Child,
    store: &Store,
    name: &str,
    program: Program,
) -> Result<(), Failure> {
    writeln!(file, "{}", child.id()).map_err(Failure::of(path))?;
    store.change(|state| drop(state.programs.insert(name.to_owned(), program)))
}

fn end_of(status: ExitStatus) -> Option<End> {
    let signal = |number| Signal::try_from(number).map_or_else(|_| format!("signal {number}"), |it| it.to_string());
    status.code().map(End::Code).or_else(|| status.signal().map(|number| End::Signal(signal(number))))
}

#[cfg(test)]
mod tests {
    use std::process::Command;

    use nix::sys::signal::kill;

    use super::*;
    use crate::tests::Folder;

    const LIMIT: Duration = Duration::from_secs(20);

    fn within_limit<T>(what: &str, look: impl Fn() -> Option<T>) -> T {
        let begin = Instant::now();
        loop {
            if let Some(seen) = look() {
                return seen;
            }
            assert!(begin.elapsed() < LIMIT, "{what}");
            Stop::new().sleep(Duration::from_millis(2)).expect("not stopped");
        }
    }

    /// Waits until the lock is free: a process that another test forks shares it until its `exec`.
    fn ended(run: &Path, name: &str) {
        within_limit("it runs", || running(run, name).expect("readable").is_none().then_some(()));
    }

    #[test]
    fn a_program_counts_as_running_until_its_end_is_in_the_state() {
        let folder = Folder::new();
        let (run, store) = (&folder.path, Store::new(&folder.path));
        store.create().expect("a folder of our own");
        let program = folder.script("echo \"argument: $0\"; exec sleep 100");
        std::thread::scope(|scope| {
            let keeper = scope.spawn(|| keep(run, "worker_1", &program));
            let pid = within_limit("it does not start", || running(run, "worker_1").expect("readable"));
            within_limit("it is not in the state", || store.read().expect("readable").wanted("worker_1"));
            let log = || std::fs::read_to_string(log_file(run, "worker_1")).expect("a log");
            within_limit("it prints nothing", || log().starts_with("argument: ").then_some(()));
            kill(pid, Signal::SIGKILL).expect("it runs");
            keeper.join().expect("no panic").expect("it was kept");
        });
        ended(run, "worker_1");
        let end = store.read().expect("readable").programs.remove("worker_1").expect("known").end;
        assert_eq!(end, Some(End::Signal("SIGKILL".to_owned())));
    }

    #[test]
    fn a_program_is_found_after_its_keeper_was_killed() {
        let folder = Folder::new();
        let path = pid_file(&folder.path, "gateway");
        let mut file = lock::take(&path, Kind::Exclusive, LOCK, &Stop::new(), || ()).expect("free");
        let stdin = file.try_clone().expect("open");
        let mut child = Command::new("sleep").arg("100").stdin(stdin).spawn().expect("sleep");
        writeln!(file, "{}", child.id()).expect("writable");
        drop(file);
        let pid = running(&folder.path, "gateway").expect("readable").map(Pid::as_raw);
        assert_eq!(pid, Some(i32::try_from(child.id()).expect("a process number")));
        child.kill().expect("it runs");
        child.wait().expect("ours");
        ended(&folder.path, "gateway");
    }

    #[test]
    fn a_program_that_cannot_be_recorded_is_killed() {
        let folder = Folder::new();
        let program = folder.script("exec sleep 100");
        let failure = keep(&folder.path, "worker_1", &program).expect_err("there is no state");
        assert!(matches!(failure, Failure::NothingRuns), "{failure}");
        ended(&folder.path, "worker_1");
        let failure = keep(&folder.path, "worker_1", Path::new("/nowhere/worker")).expect_err("no such file");
        assert!(failure.to_string().contains("/nowhere/worker does not start: No such file"), "{failure}");
    }
}
