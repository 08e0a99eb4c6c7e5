//! The programs of a fleet: start, signals, end. `single` and `whole` choose the programs. Called by the commands.

use std::fmt;
use std::fs::File;
use std::io::Read;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use program::stop::Stop;

use crate::failure::{Failure, refused};
use crate::keeper;
use crate::lock::{self, Kind};
use crate::options::{FleetCommand, FleetConfig};
use crate::settings::Settings;
use crate::state::{State, Store, Wanted};
use crate::{complain, say};

pub(crate) const GATEWAY: &str = "gateway";
pub(crate) const DEVBROKER: &str = "devbroker";
/// The real Kafka, which runs under `scripts/kafka` and has no keeper.
pub(crate) const APACHE: &str = "kafka";
/// Time between two checks of a program that exits or starts.
pub(crate) const POLL: Duration = Duration::from_millis(10);
/// How long a command waits for its turn: a restart of a thousand workers takes this long.
const TURN: Duration = Duration::from_mins(30);
/// Limit from the start of a keeper to the start of its program.
const LAUNCH: Duration = Duration::from_secs(15);
const AFTER_SIGKILL: Duration = Duration::from_secs(5);

/// The condition of a program.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Condition {
    Running,
    Frozen,
    Stopped,
}

impl fmt::Display for Condition {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(match self {
            Self::Running => "running",
            Self::Frozen => "frozen",
            Self::Stopped => "stopped",
        })
    }
}

/// A fleet during a command.
#[derive(Debug)]
pub(crate) struct Fleet {
    pub(crate) config: FleetConfig,
    pub(crate) store: Store,
    /// Settings of the command line and the environment, and for the rest those of `up`.
    pub(crate) settings: Settings,
    /// Ends all waits.
    pub(crate) stop: Stop,
    /// The file of this process. Read once: after a rebuild the operating system names it "... (deleted)".
    exe: PathBuf,
    /// Programs that did not exit within their grace period.
    pub(crate) killed: Vec<String>,
    /// This command's lock on the fleet.
    _turn: Option<File>,
}

impl Fleet {
    /// Waits for the command's turn, and reads the state. `None`: `down` finds nothing to stop.
    ///
    /// # Errors
    /// Nothing runs, the folder cannot be used, a setting cannot be read, or the state is damaged, which `down` reports
    /// and takes as empty. `logs` needs no state.
    pub(crate) fn open(config: FleetConfig, stop: Stop) -> Result<Option<Self>, Failure> {
        let (run, command) = (&config.run, config.command);
        match command {
            FleetCommand::Up => std::fs::create_dir_all(run).map_err(Failure::of(run))?,
            _ if run.exists() => {}
            FleetCommand::Down => {
                say("nothing runs");
                return Ok(None);
            }
            _ => return Err(Failure::NothingRuns),
        }
        let turn = match command {
            FleetCommand::Up | FleetCommand::Down | FleetCommand::ScaleDown | FleetCommand::ScaleUp => {
                Some(Kind::Exclusive)
            }
            FleetCommand::Status
            | FleetCommand::Health
            | FleetCommand::Logs
            | FleetCommand::TestShutdown
            | FleetCommand::Workers => None,
            // A thaw may end the wait of another command.
            FleetCommand::ThawWorker | FleetCommand::ThawKafka | FleetCommand::Keep => None,
            _ => Some(Kind::Shared),
        };
        let waiting = || say("waiting for another make up, down, scale or restart to end");
        let turn = turn.map(|kind| lock::take(&run.join("lock"), kind, TURN, &stop, waiting)).transpose()?;
        let store = Store::new(run);
        let state = match store.read() {
            Err(Failure::NothingRuns) if matches!(command, FleetCommand::Up | FleetCommand::Down) => State::default(),
            Err(Failure::NothingRuns | Failure::Damaged { .. }) if command == FleetCommand::Logs => State::default(),
            Err(damaged @ Failure::Damaged { .. }) if command == FleetCommand::Down => {
                complain(damaged);
                State::default()
            }
            state => state?,
        };
        let settings = config.given.clone().over(&state.settings);
        settings.grace("30s")?;
        let exe = std::env::current_exe().map_err(Failure::of(Path::new("fleet")))?;
        Ok(Some(Self { config, store, settings, stop, exe, killed: Vec::new(), _turn: turn }))
    }

    /// Does the command.
    ///
    /// # Errors
    /// The reason why it was not done, or the programs that had to be killed.
    pub(crate) fn obey(mut self) -> Result<(), Failure> {
        match self.config.command {
            FleetCommand::Up => self.up()?,
            FleetCommand::Down => self.down()?,
            FleetCommand::ScaleDown => self.scale(1)?,
            FleetCommand::ScaleUp => self.scale(3)?,
            FleetCommand::Status => self.status()?,
            FleetCommand::Health => self.health()?,
            FleetCommand::Logs => self.logs()?,
            FleetCommand::TestShutdown => self.test_shutdown()?,
            FleetCommand::Workers => self.list_workers()?,
            command => {
                if let Some((verb, target)) = command.parts() {
                    self.act(verb, target)?;
                }
            }
        }
        if self.killed.is_empty() {
            return Ok(());
        }
        refused(format!("these programs had to be killed: {}", self.killed.join(" ")))
    }

    /// Locks a program against other commands until the file is dropped.
    pub(crate) fn hold(&self, name: &str) -> Result<File, Failure> {
        let waiting = || say(format!("waiting until another command is done with {name}"));
        lock::take(&self.config.run.join(format!("{name}.lock")), Kind::Exclusive, TURN, &self.stop, waiting)
    }

    pub(crate) fn running(&self, name: &str) -> Result<Option<Pid>, Failure> {
        if name == APACHE { self.apache() } else { keeper::running(&self.config.run, name) }
    }

    pub(crate) fn runs(&self, name: &str) -> Result<bool, Failure> {
        Ok(self.running(name)?.is_some())
    }

    /// The workers that run, ordered by number.
    pub(crate) fn workers(&self) -> Result<Vec<String>, Failure> {
        let run = &self.config.run;
        let entries = std::fs::read_dir(run).map_err(Failure::of(run))?;
        let names = entries.flatten().filter_map(|entry| entry.file_name().into_string().ok());
        let names = names.filter_map(|name| name.strip_suffix(".pid").map(str::to_owned));
        let mut running = Vec::new();
        for name in in_order(names) {
            if self.runs(&name)? {
                running.push(name);
            }
        }
        Ok(running)
    }

    pub(crate) fn condition(&self, name: &str) -> Result<Condition, Failure> {
        Ok(match (self.runs(name)?, self.state_or_empty().wanted(name)) {
            (false, _) => Condition::Stopped,
            (true, Some(Wanted::Frozen)) => Condition::Frozen,
            (true, _) => Condition::Running,
        })
    }

    /// The file of a program in the folder of this program.
    pub(crate) fn program(&self, program: &str) -> Result<PathBuf, Failure> {
        let path = self.exe.with_file_name(program);
        if path.is_file() {
            return Ok(path);
        }
        refused(format!("{} does not exist; run make build", path.display()))
    }

    /// Starts a program under its keeper, and returns when its pid is in the state.
    pub(crate) fn launch(&mut self, name: &str) -> Result<(), Failure> {
        if name == APACHE {
            return self.start_apache();
        }
        let kafka = self.settings.kafka_address();
        let (program, own) = match name {
            GATEWAY => (GATEWAY, ("HTTP_ADDR", self.settings.address()?.to_string())),
            DEVBROKER => (DEVBROKER, ("DEVBROKER_ADDR", kafka.clone())),
            _ => ("worker", ("WORKER_ID", name.to_owned())),
        };
        let this = self.program("fleet")?;
        let mut command = Command::new(&this);
        command.arg("--stack-run").arg(&self.config.run).args(["keep", name]).arg(self.program(program)?);
        // Two programs must not share one file.
        command.env_remove("HEALTH_FILE").envs(self.settings.iter()).env("KAFKA_BOOTSTRAP_SERVERS", kafka).envs([own]);
        // Ctrl-C would end the keeper before it could catch signals.
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::null()).process_group(0);
        let mut keeper = command.spawn().map_err(Failure::of(&this))?;
        let begin = Instant::now();
        loop {
            // Checked before the state, because a program may exit as soon as its start is in the state.
            let ended = keeper.try_wait().map_err(Failure::of(&this))?.is_some();
            if self.store.read()?.programs.get(name).is_some_and(|program| program.keeper == keeper.id()) {
                return Ok(());
            }
            if ended || begin.elapsed() > LAUNCH {
                let mut problem = format!("its keeper has not reported it for {} s", LAUNCH.as_secs());
                if let (true, Some(mut out)) = (ended, keeper.stdout.take()) {
                    problem.clear();
                    out.read_to_string(&mut problem).map_err(Failure::of(&this))?;
                }
                return refused(format!("{name} was not started: {}", problem.trim_end()));
            }
            // A stop that is never triggered: an interruption must not hide a started program.
            Stop::new().sleep(Duration::from_millis(2))?;
        }
    }

    /// Sends a signal, if the program runs.
    pub(crate) fn signal(&self, name: &str, signal: Signal) -> Result<(), Failure> {
        let Some(pid) = self.running(name)? else { return Ok(()) };
        match kill(pid, signal) {
            // `ESRCH`: it has exited just now.
            Ok(()) | Err(Errno::ESRCH) => Ok(()),
            Err(error) => refused(format!("{name} (process {pid}) cannot get {signal}: {error}")),
        }
    }

    /// Writes the wanted condition of a program into the state.
    pub(crate) fn want(&self, name: &str, wanted: Wanted) -> Result<(), Failure> {
        let change = |state: &mut State| {
            // A thaw does not overrule a command that stops the program meanwhile.
            if let Some(program) = state.programs.get_mut(name)
                && (wanted != Wanted::Running || program.wanted == Wanted::Frozen)
            {
                program.wanted = wanted;
            }
        };
        match self.store.change(change) {
            // A full disk and a damaged or missing state do not keep a fleet from stopping: `up` stops what it started.
            Err(failure) if matches!(self.config.command, FleetCommand::Up | FleetCommand::Down) => {
                if matches!(failure, Failure::File { .. }) {
                    complain(failure);
                }
                Ok(())
            }
            changed => changed,
        }
    }

    /// Stops these programs together, each within its grace period.
    pub(crate) fn stop_programs(&mut self, names: &[String]) -> Result<(), Failure> {
        // Before the first signal: a value that cannot be read must not leave programs that stop and are not watched.
        let graces = names.iter().map(|name| self.grace(name)).collect::<Result<Vec<_>, _>>()?;
        let begin = Instant::now();
        names.iter().try_for_each(|name| self.tell_to_stop(name))?;
        names.iter().zip(graces).try_for_each(|(name, grace)| self.wait_for_end(name, grace, begin))
    }

    fn grace(&self, name: &str) -> Result<Duration, Failure> {
        match name {
            GATEWAY => self.settings.grace("30s"),
            DEVBROKER => Ok(Duration::from_secs(10)),
            // `scripts/kafka stop` waits by itself.
            APACHE => Ok(Duration::ZERO),
            _ => self.settings.grace("45s"),
        }
    }

    /// Sends SIGTERM, and SIGCONT because a frozen program sees SIGTERM only after it.
    fn tell_to_stop(&self, name: &str) -> Result<(), Failure> {
        self.want(name, Wanted::Stopped)?;
        self.signal(name, Signal::SIGTERM)?;
        self.signal(name, Signal::SIGCONT)?;
        if self.config.twice && matches!(self.config.command, FleetCommand::StopWorker | FleetCommand::StopGateway) {
            self.stop.sleep(Duration::from_millis(300))?;
            self.signal(name, Signal::SIGTERM)?;
        }
        Ok(())
    }

    /// Waits for the grace period, as an orchestrator does, and then sends SIGKILL.
    fn wait_for_end(&mut self, name: &str, grace: Duration, begin: Instant) -> Result<(), Failure> {
        if name == APACHE {
            self.stop_apache(&[])?;
        }
        if !self.ends(name, grace.saturating_sub(begin.elapsed()))? {
            let log = keeper::log_file(&self.config.run, name);
            let (seconds, log) = (grace.as_secs(), log.display());
            complain(format!("{name} still runs {seconds} s after SIGTERM; sending SIGKILL; see {log}"));
            self.killed.push(name.to_owned());
            self.kill(name)?;
        }
        say(format!("stopped {name}{}", self.end_of(&self.state_or_empty(), name)));
        Ok(())
    }

    /// Whether a program exits within this time.
    fn ends(&self, name: &str, limit: Duration) -> Result<bool, Failure> {
        let begin = Instant::now();
        while self.runs(name)? {
            if begin.elapsed() >= limit {
                return Ok(false);
            }
            self.stop.sleep(POLL)?;
        }
        Ok(true)
    }

    pub(crate) fn kill(&mut self, name: &str) -> Result<(), Failure> {
        self.want(name, Wanted::Killed)?;
        if name == APACHE {
            return self.stop_apache(&["--kill"]);
        }
        self.signal(name, Signal::SIGKILL)?;
        if self.ends(name, AFTER_SIGKILL)? { Ok(()) } else { refused(format!("{name} still runs after SIGKILL")) }
    }

    /// The state, or an empty one if it cannot be read.
    pub(crate) fn state_or_empty(&self) -> State {
        self.store.read().unwrap_or_default()
    }
}

/// The number of a worker of this fleet; `None` for all other names.
pub(crate) fn number(name: &str) -> Option<u32> {
    name.strip_prefix("worker_")?.parse().ok()
}

/// The names of workers among these names, ordered by number.
pub(crate) fn in_order(names: impl IntoIterator<Item = String>) -> Vec<String> {
    let mut workers: Vec<_> = names.into_iter().filter_map(|name| Some((number(&name)?, name))).collect();
    workers.sort();
    workers.dedup();
    workers.into_iter().map(|(_, name)| name).collect()
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;
    use std::ffi::OsString;

    use program::options::{Environment, Parsed};

    use super::*;
    use crate::state::Program;
    use crate::tests::Folder;

    #[test]
    fn workers_are_ordered_by_number() {
        let names = ["worker_10", "gateway", "worker_9", "worker_x", "worker_1"].map(str::to_owned);
        assert_eq!(in_order(names), ["worker_1", "worker_9", "worker_10"]);
    }

    /// A fleet with one worker, as this command has it.
    fn fleet(folder: &Folder, command: &str) -> Result<Option<Fleet>, Failure> {
        let worker = Program { wanted: Wanted::Running, since: 0.0, keeper: 1, end: None };
        let store = Store::new(&folder.path);
        store.create()?;
        store.change(|state| drop(state.programs.insert("worker_1".to_owned(), worker)))?;
        let args = ["fleet".into(), command.into(), "--stack-run".into(), folder.path.clone().into_os_string()];
        let environment = Environment { variables: BTreeMap::new(), host_name: OsString::new() };
        let Ok(Parsed::Run(config)) = FleetConfig::parse(args, &environment) else { panic!("a configuration") };
        Fleet::open(config, Stop::new())
    }

    #[test]
    fn a_state_that_cannot_be_written_does_not_keep_up_and_down_from_stopping() {
        for (command, goes_on) in [("up", true), ("down", true), ("stop-worker", false)] {
            let folder = Folder::new();
            let fleet = fleet(&folder, command).expect("a fleet").expect("a state");
            std::fs::create_dir(folder.path.join("fleet.json.new")).expect("in its way");
            assert_eq!(fleet.want("worker_1", Wanted::Stopped).is_ok(), goes_on, "{command}");
        }
    }

    #[test]
    fn a_remembered_setting_that_cannot_be_read_is_found_before_anything_is_done() {
        let folder = Folder::new();
        drop(fleet(&folder, "status").expect("a fleet"));
        Store::new(&folder.path).change(|state| state.settings.set("STOP_GRACE_PERIOD", "soon")).expect("writable");
        let failure = fleet(&folder, "stop-worker").expect_err("no duration");
        assert!(matches!(&failure, Failure::Setting(text) if text.starts_with("STOP_GRACE_PERIOD: value \"soon\"")));
    }
}
