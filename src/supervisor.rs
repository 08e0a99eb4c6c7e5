//! Reports of a process to its supervisor: the service manager by its protocol, a container's health check by a file.
//!
//! It decides nothing and starts no thread. Main of either program owns one [`Supervisor`] and calls it every
//! [`INTERVAL`]. If the working loop of a process hangs, main reports nothing, and the supervisor acts. Without a
//! supervisor (no `NOTIFY_SOCKET`, no health file) every call is a few instructions.
//!
//! The protocol is that of sd_notify(3); systemd.service(5) defines the messages.

use program::logging::escape;
use sd_notify::NotifyState;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// How often main reports.
pub const INTERVAL: Duration = Duration::from_secs(1);
/// Content of the health file while the process takes work.
pub(crate) const RUNNING: &str = "running";
/// Its content while an obstacle keeps the process from its work.
const NOT_READY: &str = "not ready";
/// Its content while the process takes no work because it was asked to.
const QUIET: &str = "quiet";
/// The extension that each report requests from the service manager: long enough for a few missed rounds.
pub const EXTENSION: Duration = Duration::from_secs(10);

/// See the module documentation.
#[derive(Debug, Default)]
pub struct Supervisor {
    health_file: Option<PathBuf>,
    status: String,
    is_ready: bool,
    stopping: bool,
    complained: bool,
    obstacle: Option<Obstacle>,
}

/// Returns every round the obstacle that keeps a live process from its work, if any.
pub(crate) struct Obstacle(Box<dyn Fn() -> Option<String> + Send>);

impl Obstacle {
    /// `ask` must not block; the service manager shows its text.
    pub(crate) fn new(ask: impl Fn() -> Option<String> + Send + 'static) -> Self {
        Self(Box::new(ask))
    }
}

impl std::fmt::Debug for Obstacle {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.write_str("Obstacle")
    }
}

impl Supervisor {
    /// `health_file`: its age shows a health check that this process is live; written at once.
    ///
    /// # Errors
    /// The file cannot be written; the text for the user names the path and what would be right.
    pub fn new(health_file: Option<&Path>) -> Result<Self, String> {
        if let Some(path) = health_file {
            replace(path, "starting").map_err(|error| unwritable(path, &error))?;
        }
        let mut supervisor = Self::default();
        supervisor.health_file = health_file.map(Path::to_path_buf);
        Ok(supervisor)
    }

    /// Reports that the process starts and needs more time: an unreachable Kafka does not fail a start.
    pub fn starting(&mut self, status: &str) {
        self.refresh("starting");
        self.tell(&[extension()], status);
    }

    /// Reports once that the process can take work.
    pub fn ready(&mut self, status: &str) {
        self.report(RUNNING, None, status);
    }

    /// Reports that the process works, or the obstacle that keeps it from working.
    pub fn alive(&mut self, status: &str) {
        let obstacle = self.obstacle();
        self.report(if obstacle.is_none() { RUNNING } else { NOT_READY }, obstacle, status);
    }

    /// Reports that the process lives and takes no work, because it was asked to: it is not ready. For the service
    /// manager, its start is complete.
    pub(crate) fn quiet(&mut self, status: &str) {
        let obstacle = self.obstacle();
        self.report(QUIET, obstacle, status);
    }

    fn obstacle(&self) -> Option<String> {
        self.obstacle.as_ref().and_then(|obstacle| (obstacle.0)())
    }

    /// Reports a live process: `word` in the health file, and the obstacle or else the status to the service manager.
    fn report(&mut self, word: &str, obstacle: Option<String>, status: &str) {
        self.refresh(word);
        let status = obstacle.as_deref().unwrap_or(status);
        if std::mem::replace(&mut self.is_ready, true) {
            self.tell(&[NotifyState::Watchdog], status);
        } else {
            self.tell(&[NotifyState::Ready, NotifyState::Watchdog], status);
        }
    }

    /// While `obstacle` returns a text, the process is live and not ready.
    pub(crate) fn watch(&mut self, obstacle: Obstacle) {
        self.obstacle = Some(obstacle);
    }

    /// Reports that the process stops, and requests more time.
    pub fn stopping(&mut self, status: &str) {
        self.refresh("draining");
        if self.stopping {
            self.tell(&[NotifyState::Watchdog, extension()], status);
        } else {
            self.stopping = true;
            self.tell(&[NotifyState::Stopping, NotifyState::Watchdog, extension()], status);
        }
    }

    fn refresh(&mut self, word: &str) {
        let Some(path) = &self.health_file else { return };
        if let Err(error) = replace(path, word) {
            self.complain("write HEALTH_FILE", &error);
        }
    }

    /// Sends `messages`, and the status if it has changed.
    fn tell(&mut self, messages: &[NotifyState<'_>], status: &str) {
        let mut messages = messages.to_vec();
        if self.status != status {
            status.clone_into(&mut self.status);
            messages.push(NotifyState::Status(status));
        }
        if let Err(error) = sd_notify::notify(&messages) {
            self.complain("reach the service manager", &error);
        }
    }

    /// Logs only the first failure: a line every second would fill the log.
    fn complain(&mut self, what: &str, error: &std::io::Error) {
        if !self.complained {
            self.complained = true;
            log::warn!("cannot {what}: {error}");
        }
    }
}

impl Drop for Supervisor {
    /// Removes the health file after an orderly end.
    fn drop(&mut self) {
        if let Some(path) = &self.health_file {
            // A failure means that the file is gone, or belongs to another user.
            let _ = std::fs::remove_file(path);
        }
    }
}

/// Checks whether the health file could be written. Leaves the file alone: it may be that of a running process.
///
/// # Errors
/// As [`Supervisor::new`].
pub(crate) fn check_health_file(path: &Path) -> Result<(), String> {
    // A name of its own, so that the check replaces no file and two checks do not meet.
    let probe = path.with_added_extension(format!("check-{}", std::process::id()));
    let written = std::fs::File::create_new(&probe).and_then(|_file| std::fs::remove_file(&probe));
    let is_folder = path.is_dir().then(|| std::io::ErrorKind::IsADirectory.into());
    written.and(is_folder.map_or(Ok(()), Err)).map_err(|error| unwritable(path, &error))
}

fn unwritable(path: &Path, error: &std::io::Error) -> String {
    format!(
        "HEALTH_FILE: value \"{}\" cannot be written ({error}); expected a file in a folder that exists and is this \
         user's to write",
        escape(&path.to_string_lossy())
    )
}

/// Writes the word into a new file and renames it, so that a health check never reads an empty file.
fn replace(path: &Path, word: &str) -> std::io::Result<()> {
    let new = path.with_added_extension("new");
    std::fs::write(&new, format!("{word}\n"))?;
    std::fs::rename(&new, path)
}

fn extension() -> NotifyState<'static> {
    NotifyState::ExtendTimeoutUsec(u32::try_from(EXTENSION.as_micros()).unwrap_or(u32::MAX))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn folder() -> PathBuf {
        let folder = std::env::temp_dir().join(format!("lastcall-supervisor-{}", uuid::Uuid::new_v4()));
        std::fs::create_dir(&folder).expect("a new folder");
        folder
    }

    #[test]
    fn health_file_shows_the_state_and_is_removed_at_the_end() {
        let folder = folder();
        let path = folder.join("health");
        let mut supervisor = Supervisor::new(Some(&path)).expect("writable");
        let content = || std::fs::read_to_string(&path).expect("it is there");
        assert_eq!(content(), "starting\n");
        supervisor.ready("takes tasks");
        assert_eq!(content(), "running\n");
        supervisor.quiet("is quiet");
        assert_eq!(content(), "quiet\n");
        supervisor.stopping("drains");
        assert_eq!(content(), "draining\n");
        drop(supervisor);
        assert!(!path.exists());
        std::fs::remove_dir(&folder).expect("empty again");
    }

    #[test]
    fn health_file_is_never_read_incomplete() {
        let folder = folder();
        let path = folder.join("health");
        let mut supervisor = Supervisor::new(Some(&path)).expect("writable");
        let stop = program::stop::Stop::new();
        let (until, watched) = (stop.clone(), path.clone());
        let reader = program::threads::spawn("reader", program::stop::Stop::new(), move || {
            while !until.is_triggered() {
                let word = std::fs::read_to_string(&watched).map_err(|error| error.to_string())?;
                if !word.ends_with('\n') {
                    return Err(format!("{word:?}"));
                }
            }
            Ok(())
        });
        (0..1_000).for_each(|_| supervisor.refresh(RUNNING));
        stop.trigger();
        assert_eq!(reader.join(), Ok(()));
        drop(supervisor);
        std::fs::remove_dir(&folder).expect("empty again");
    }

    #[test]
    fn health_file_that_cannot_be_written_is_named_in_the_fault() {
        let fault = Supervisor::new(Some(Path::new("/nowhere/at/all"))).expect_err("no such folder");
        assert!(fault.starts_with("HEALTH_FILE: value \"/nowhere/at/all\" cannot be written (No such file"), "{fault}");
        assert!(fault.contains("expected a file in a folder that exists"), "{fault}");
    }

    #[test]
    fn check_of_the_health_file_changes_no_other_file() {
        let folder = folder();
        let path = folder.join("health");
        let taken = folder.join(format!("health.check-{}", std::process::id()));
        for file in [folder.join("health.check"), path.clone(), taken.clone()] {
            std::fs::write(file, "of another program").expect("written");
        }
        let fault = check_health_file(&path).expect_err("the name of the probe is taken");
        assert!(fault.contains("File exists"), "{fault}");
        std::fs::remove_file(&taken).expect("it is still there");
        assert_eq!(check_health_file(&path), Ok(()));
        for file in [folder.join("health.check"), path] {
            assert_eq!(std::fs::read_to_string(&file).expect("unchanged"), "of another program");
            std::fs::remove_file(file).expect("there");
        }
        std::fs::remove_dir(&folder).expect("empty again");
    }

    #[test]
    fn status_of_a_live_process_is_its_obstacle_also_while_it_is_quiet() {
        let folder = folder();
        let path = folder.join("health");
        let mut supervisor = Supervisor::new(Some(&path)).expect("writable");
        supervisor.watch(Obstacle::new(|| Some("Kafka refuses Write on topic results".to_owned())));
        for (call, word) in
            [(Supervisor::alive as fn(&mut Supervisor, &str), "not ready\n"), (Supervisor::quiet, "quiet\n")]
        {
            call(&mut supervisor, "calm");
            assert_eq!(supervisor.status, "Kafka refuses Write on topic results");
            assert_eq!(std::fs::read_to_string(&path).expect("it is there"), word);
        }
        drop(supervisor);
        std::fs::remove_dir(&folder).expect("empty again");
    }

    #[test]
    fn calls_without_a_supervisor_do_nothing() {
        let mut supervisor = Supervisor::new(None).expect("nothing to write");
        supervisor.starting("starts");
        supervisor.ready("is ready");
        supervisor.alive("is idle");
        supervisor.stopping("stops");
        assert!(!supervisor.complained);
    }
}
