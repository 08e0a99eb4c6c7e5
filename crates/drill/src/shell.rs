//! Runs a command to its end, with a time limit.
//!
//! The output goes to unlinked files, not to pipes, because a process that the command leaves behind may keep them
//! open. Called by the [command fleet](super::command) and by [`broker`](super::broker).

use std::fs::{File, OpenOptions};
use std::io::{self, Read, Seek, SeekFrom};
use std::os::unix::process::CommandExt;
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, killpg};
use nix::unistd::Pid;

use program::options::values::show_duration;
use program::stop::Stop;

/// How often the end of a command is checked.
const LOOK: Duration = Duration::from_millis(10);
/// Maximum number of bytes that are read from the end of an output.
const MOST: u64 = 64 << 10;
/// Variables of the drill that a command does not inherit.
const OWN: [&str; 5] = ["WORKER", "WORKERS", "GATEWAY", "FOR", "RATE"];

/// Runs `sh -c command` and returns its stdout.
///
/// # Errors
/// As [`run`].
pub(super) fn sh(command: &str, variables: &[(&str, String)], limit: Duration) -> Result<String, String> {
    let mut shell = Command::new("sh");
    for name in OWN {
        shell.env_remove(name);
    }
    run(shell.args(["-c", command]).envs(variables.iter().map(|(name, value)| (name, value))), limit)
}

/// Runs a command and returns its stdout.
///
/// # Errors
/// The last line that a failed command printed, or its exit status. A command that passes `limit` is killed, with the
/// processes of its group.
pub(super) fn run(command: &mut Command, limit: Duration) -> Result<String, String> {
    let files = file().and_then(|out| Ok((out, file()?)));
    let (mut out, mut errors) = files.map_err(|error| format!("no file for the output of a command: {error}"))?;
    // Ctrl-C reaches only the drill, which undoes what it has begun.
    command.stdin(Stdio::null()).process_group(0);
    let spawned = out.try_clone().and_then(|out| {
        let errors = errors.try_clone()?;
        command.stdout(out).stderr(errors).spawn()
    });
    let name = command.get_program().to_string_lossy();
    let mut child = spawned.map_err(|error| format!("{name} does not start: {error}"))?;
    let (deadline, pause) = (Instant::now() + limit, Stop::new());
    let mut ended = child.try_wait();
    while let Ok(None) = ended
        && Instant::now() < deadline
    {
        // `pause` is never triggered.
        let _ = pause.sleep(LOOK);
        ended = child.try_wait();
    }
    let mut last = || last_line(&mut errors).or_else(|| last_line(&mut out));
    match ended.map_err(|error| format!("the end of the command is not known: {error}"))? {
        Some(status) if status.success() => {
            tail(&mut out).map_err(|error| format!("its output cannot be read: {error}"))
        }
        Some(status) => Err(last().unwrap_or_else(|| format!("the command ended with {status}"))),
        None => {
            // The shell was not reaped, so its pid is still the id of its group.
            let killed =
                i32::try_from(child.id()).is_ok_and(|group| killpg(Pid::from_raw(group), Signal::SIGKILL).is_ok());
            let how = if killed && child.wait().is_ok() { "it was killed" } else { "it cannot be killed" };
            let last = last().map(|line| format!("; its last line: {line}")).unwrap_or_default();
            Err(format!("the command did not end within {}; {how}{last}", show_duration(limit)))
        }
    }
}

/// A temporary file that is already unlinked.
fn file() -> io::Result<File> {
    static NUMBER: AtomicU64 = AtomicU64::new(0);
    let name = format!("lastcall-drill-{}-{}", std::process::id(), NUMBER.fetch_add(1, Ordering::Relaxed));
    let path = std::env::temp_dir().join(name);
    let file = OpenOptions::new().read(true).append(true).create_new(true).open(&path)?;
    std::fs::remove_file(&path)?;
    Ok(file)
}

fn tail(file: &mut File) -> io::Result<String> {
    let length = file.metadata()?.len();
    file.seek(SeekFrom::Start(length.saturating_sub(MOST)))?;
    let mut bytes = Vec::new();
    file.take(MOST).read_to_end(&mut bytes)?;
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}

fn last_line(file: &mut File) -> Option<String> {
    let text = tail(file).ok()?;
    text.lines().rev().find(|line| !line.trim().is_empty()).map(|line| line.trim().to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIMIT: Duration = Duration::from_secs(20);

    #[test]
    fn a_command_gets_its_variables_and_returns_its_output() {
        let said = sh("echo \"$WORKER of $WORKERS\"; echo note >&2", &[("WORKER", "w 1".to_owned())], LIMIT);
        assert_eq!(said, Ok("w 1 of \n".to_owned()));
    }

    #[test]
    fn a_failed_command_returns_its_last_line() {
        assert_eq!(
            sh("echo no; echo 'no such worker' >&2; echo >&2; exit 1", &[], LIMIT),
            Err("no such worker".to_owned())
        );
        assert_eq!(sh("echo only here; false", &[], LIMIT), Err("only here".to_owned()));
        assert_eq!(sh("exit 3", &[], LIMIT), Err("the command ended with exit status: 3".to_owned()));
    }

    #[test]
    fn a_command_past_its_limit_is_killed_with_its_process_group() {
        let begin = Instant::now();
        // Long enough for a busy machine to start the shell, which prints its line first.
        let said = sh("echo waiting; sleep 1000 & wait", &[], Duration::from_secs(2));
        let expected = "the command did not end within 2s; it was killed; its last line: waiting";
        assert_eq!(said, Err(expected.to_owned()));
        assert!(begin.elapsed() < LIMIT);
    }

    #[test]
    fn a_command_ends_without_waiting_for_a_process_that_it_leaves_behind() {
        let begin = Instant::now();
        let process = sh("sleep 1000 & echo $!", &[], LIMIT).expect("a number");
        assert!(begin.elapsed() < LIMIT);
        nix::sys::signal::kill(Pid::from_raw(process.trim().parse().expect("a number")), Signal::SIGKILL)
            .expect("it runs");
    }
}
