//! The Kafka of a fleet: the program `devbroker`, a real Kafka by `scripts/kafka`, or a Kafka outside the fleet. Called
//! by the commands.

use std::net::TcpStream;
use std::path::Path;
use std::process::{Command, Output, Stdio};
use std::time::{Duration, Instant, SystemTime};

use nix::unistd::Pid;

use crate::failure::{Failure, refused};
use crate::options::Verb;
use crate::programs::{APACHE, Condition, DEVBROKER, Fleet, POLL};
use crate::ready::{READY, refuse_port_in_use};
use crate::say;
use crate::settings::Kafka;
use crate::state::{Program, Wanted};

/// How much earlier a script may end than this process sees the signal that both got.
const SIGNAL: Duration = Duration::from_millis(500);
const SCRIPT: &str = "scripts/kafka";
const ELSEWHERE: &str =
    "choose another port: KAFKA_PORT=19092 make up; or a running Kafka: KAFKA_BOOTSTRAP_SERVERS=host:port make up";

impl Fleet {
    /// Runs `scripts/kafka` for the fleet's folder. The script limits all its waits.
    fn script(&self, subcommand: &str, more: &[&str]) -> Result<Output, Failure> {
        let mut command = Command::new(SCRIPT);
        command.args([subcommand, "--data"]).arg(self.config.run.join(APACHE)).args(more).stdin(Stdio::null());
        command.stderr(if subcommand == "pid" { Stdio::null() } else { Stdio::inherit() });
        command.output().map_err(Failure::of(Path::new(SCRIPT)))
    }

    /// The process of the real Kafka, if it runs.
    pub(crate) fn apache(&self) -> Result<Option<Pid>, Failure> {
        if !self.config.run.join(APACHE).exists() {
            return Ok(None);
        }
        let output = self.script("pid", &[])?;
        let pid = String::from_utf8_lossy(&output.stdout).trim().parse().ok();
        Ok(pid.filter(|pid| output.status.success() && *pid > 1).map(Pid::from_raw))
    }

    pub(crate) fn start_apache(&self) -> Result<(), Failure> {
        let port = self.settings.or("KAFKA_PORT", "9092");
        if !self.script("start", &["--port", port])?.status.success() {
            // A Ctrl-C ends the script, too, perhaps before this process has seen its own signal.
            self.stop.sleep(SIGNAL)?;
            return refused(format!("Kafka did not start; {ELSEWHERE}"));
        }
        let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default().as_secs_f64();
        let kafka = Program { wanted: Wanted::Running, since, keeper: 0, end: None };
        self.store.change(|state| drop(state.programs.insert(APACHE.to_owned(), kafka)))
    }

    /// `more`: `--kill` for SIGKILL.
    pub(crate) fn stop_apache(&self, more: &[&str]) -> Result<(), Failure> {
        let stopped = self.script("stop", more)?.status.success();
        if stopped { Ok(()) } else { refused("Kafka did not stop") }
    }

    pub(crate) fn describe_apache(&self) -> Result<String, Failure> {
        Ok(String::from_utf8_lossy(&self.script("status", &[])?.stdout).into_owned())
    }

    /// The program of the fleet's Kafka; `None`: a Kafka outside the fleet.
    pub(crate) fn kafka_program(&self) -> Result<Option<&'static str>, Failure> {
        Ok(match self.settings.kafka()? {
            Kafka::Own => None,
            Kafka::Embedded => Some(DEVBROKER),
            Kafka::Apache => Some(APACHE),
        })
    }

    /// The condition of Kafka. A Kafka outside the fleet counts as running.
    pub(crate) fn kafka_condition(&self) -> Result<Condition, Failure> {
        self.kafka_program()?.map_or(Ok(Condition::Running), |name| self.condition(name))
    }

    /// The program of Kafka, if the verb is allowed for it.
    pub(crate) fn kafka_for(&self, verb: Verb) -> Result<&'static str, Failure> {
        let address = self.settings.kafka_address();
        match self.kafka_program()? {
            None => refused(format!("the Kafka at {address} does not belong to this fleet, which does not act on it")),
            Some(DEVBROKER) if matches!(verb, Verb::Stop | Verb::Kill) => refused(
                "the embedded broker is not stopped, because it would lose its data; for a Kafka that keeps data: make down && KAFKA=apache make up",
            ),
            Some(name) => Ok(name),
        }
    }

    /// Starts Kafka if it does not run, and waits until it answers.
    pub(crate) fn start_kafka(&mut self) -> Result<(), Failure> {
        let address = self.settings.kafka_address();
        let Some(name) = self.kafka_program()? else {
            say(format!("using the Kafka at {address}"));
            return Ok(());
        };
        if self.settings.or("KAFKA_SECURITY_PROTOCOL", "PLAINTEXT") != "PLAINTEXT" {
            let problem = "KAFKA_SECURITY_PROTOCOL: set; expected only with KAFKA_BOOTSTRAP_SERVERS";
            return Err(Failure::Setting(problem.to_owned()));
        }
        if !self.runs(name)? {
            refuse_port_in_use(&address, ELSEWHERE)?;
            self.launch(name)?;
        }
        let begin = Instant::now();
        while TcpStream::connect(&address).is_err() {
            self.check_alive(name)?;
            if begin.elapsed() > READY {
                return refused(format!("Kafka does not answer at {address} after {} s", READY.as_secs()));
            }
            self.stop.sleep(POLL)?;
        }
        say(if name == APACHE {
            format!("Kafka runs at {address}")
        } else {
            format!("the embedded broker runs at {address}")
        });
        Ok(())
    }
}
