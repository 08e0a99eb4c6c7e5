//! What people and programs read of a fleet: status, health, workers and logs.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::fs::File;
use std::io::{Read, Seek, SeekFrom};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use lastcall::healthcheck::reachable;

use crate::failure::{Failure, refused};
use crate::keeper;
use crate::options::Verb;
use crate::print;
use crate::programs::{APACHE, Fleet, GATEWAY, number};
use crate::single::how_to;
use crate::state::{State, Wanted};

/// Bytes of a log that are read for its last lines.
const TAIL: u64 = 64 << 10;
const LINES: usize = 40;
const FOLLOW: Duration = Duration::from_millis(200);

impl Fleet {
    /// How a program ended, such as `: drained, exit code 0`. The outcome is from the receipt, the last line of a
    /// worker. It counts if its exit code is that of the process, or if that is unknown because the keeper was killed.
    pub(crate) fn end_of(&self, state: &State, name: &str) -> String {
        let end = state.programs.get(name).and_then(|program| program.end.as_ref()).map(ToString::to_string);
        let last = last_lines(&keeper::log_file(&self.config.run, name), 1).pop().unwrap_or_default();
        describe(end.as_deref(), &last)
    }

    pub(crate) fn status(&mut self) -> Result<(), Failure> {
        let (address, kafka) = (self.settings.address()?, self.settings.kafka_address());
        let mut text = format!("mode: native    gateway: http://{address}    Kafka: {kafka}\n\n");
        let state = self.store.read()?;
        let mut programs: Vec<_> = state.programs.iter().collect();
        programs.sort_by_key(|(name, _)| number(name));
        for (name, program) in programs {
            if name == APACHE {
                text += &self.describe_apache()?;
                continue;
            }
            let condition = match (self.running(name)?, program.wanted) {
                (Some(pid), Wanted::Frozen) => format!("process {pid}, frozen"),
                (Some(pid), _) => format!("process {pid}"),
                (None, Wanted::Killed) => "killed".to_owned(),
                (None, Wanted::Stopped) => format!("stopped{}", self.end_of(&state, name)),
                (None, _) => {
                    let log = keeper::log_file(&self.config.run, name);
                    format!("has ended by itself{}, see {}", self.end_of(&state, name), log.display())
                }
            };
            _ = writeln!(text, "{name}: {condition}");
        }
        text.push('\n');
        if self.gateway_was_stopped()? {
            _ = writeln!(text, "the gateway does not run; it starts with: {}", how_to(Verb::Start, GATEWAY));
        } else if !self.is_well("/livez") {
            print(&text);
            return refused(format!("the gateway at {address} does not answer"));
        } else {
            let mut heard: Vec<_> = self.heard().into_iter().collect();
            heard.sort_by_key(|(id, _)| number(id));
            if heard.is_empty() {
                text += "the gateway has not heard of any worker yet\n";
            } else {
                _ = writeln!(
                    text,
                    "{:<24} {:<20} {:<38} {:>8}  RESPONSIVE",
                    "WORKER", "STATUS", "CURRENT TASK", "AGE (S)"
                );
            }
            for (id, worker) in heard {
                let task = worker.current_task.as_deref().unwrap_or("-");
                let (status, age, responsive) = (worker.status, worker.seconds_since_update, worker.is_responsive);
                _ = writeln!(text, "{id:<24} {status:<20} {task:<38} {age:>8}  {responsive}");
            }
        }
        print(&text);
        Ok(())
    }

    pub(crate) fn health(&mut self) -> Result<(), Failure> {
        let response = self.get("/health");
        if let Some(response) = &response {
            print(&format!("{}\n", String::from_utf8_lossy(&response.body).trim_end()));
        }
        if response.is_some_and(|response| response.status == 200) {
            return Ok(());
        }
        refused(format!("the gateway is not healthy, or does not answer at {}", self.settings.address()?))
    }

    pub(crate) fn list_workers(&mut self) -> Result<(), Failure> {
        let mut text = String::new();
        for name in self.workers()? {
            if let (Some(pid), condition) = (self.running(&name)?, self.condition(&name)?) {
                _ = writeln!(text, "{name}\t{name}\t{pid}\t{condition}");
            }
        }
        print(&text);
        Ok(())
    }

    /// Replaces this process by `drill watch`, which gets the signals and decides the exit code.
    pub(crate) fn test_shutdown(&mut self) -> Result<(), Failure> {
        let drill = self.program("drill")?;
        let mut command = Command::new(&drill);
        command.arg("watch").envs(self.settings.iter());
        command
            .env("GATEWAY_URL", format!("http://{}", reachable(self.settings.address()?)))
            .env("KAFKA_BOOTSTRAP_SERVERS", self.settings.kafka_address());
        Err(Failure::of(&drill)(command.exec()))
    }

    /// Prints logs until a signal, or until nothing reads stdout any more.
    pub(crate) fn logs(&mut self) -> Result<(), Failure> {
        let mut logs: BTreeMap<PathBuf, Log> = BTreeMap::new();
        let mut first = true;
        loop {
            let run = &self.config.run;
            let entries = std::fs::read_dir(run).map_err(Failure::of(run))?;
            let mut paths: Vec<_> = entries.flatten().map(|entry| entry.path()).collect();
            paths.retain(|path| path.extension().is_some_and(|extension| extension == "log"));
            paths.sort();
            if paths.is_empty() {
                return refused(format!("no logs in {}; run make up", run.display()));
            }
            for path in paths {
                if !logs.contains_key(&path) {
                    // A log that appears later is printed from its first line.
                    logs.insert(path.clone(), Log::open(&path, first).map_err(Failure::of(&path))?);
                }
                if logs.get_mut(&path).is_some_and(|log| !log.print_new_lines()) {
                    return Ok(());
                }
            }
            if !self.config.follow || self.stop.sleep(FOLLOW).is_err() {
                return Ok(());
            }
            first = false;
        }
    }
}

/// A log that is followed.
struct Log {
    label: String,
    file: File,
    /// An incomplete last line.
    rest: Vec<u8>,
}

impl Log {
    fn open(path: &Path, at_its_end: bool) -> std::io::Result<Self> {
        let name = path.file_stem().unwrap_or_default().to_string_lossy().into_owned();
        let mut file = File::open(path)?;
        let mut rest = Vec::new();
        if at_its_end {
            let length = file.metadata()?.len();
            file.seek(SeekFrom::Start(length.saturating_sub(TAIL)))?;
            file.read_to_end(&mut rest)?;
            rest = tail(&rest, LINES).to_vec();
        }
        Ok(Self { label: format!("{name:<10} | "), file, rest })
    }

    /// Prints the new lines; `false`: nothing reads stdout any more.
    fn print_new_lines(&mut self) -> bool {
        // An error does not stop the other logs.
        let _ = self.file.read_to_end(&mut self.rest);
        let Some(end) = self.rest.iter().rposition(|byte| *byte == b'\n') else { return true };
        let lines: Vec<u8> = self.rest.drain(..=end).collect();
        let lines = String::from_utf8_lossy(&lines);
        print(&lines.lines().fold(String::new(), |text, line| text + &self.label + line + "\n"))
    }
}

/// The last lines of a text; an end without a line break counts as a line.
fn tail(text: &[u8], lines: usize) -> &[u8] {
    let body = text.strip_suffix(b"\n").unwrap_or(text);
    let breaks = body.iter().enumerate().rev().filter(|(_, byte)| **byte == b'\n');
    let begin = breaks.map(|(at, _)| at + 1).nth(lines.saturating_sub(1)).unwrap_or(0);
    text.get(begin..).unwrap_or_default()
}

/// The last lines of a log; none if it cannot be read.
pub(crate) fn last_lines(path: &Path, lines: usize) -> Vec<String> {
    let mut text = Vec::new();
    let read = File::open(path).and_then(|mut file| {
        file.seek(SeekFrom::Start(file.metadata()?.len().saturating_sub(TAIL)))?;
        file.read_to_end(&mut text)
    });
    let text = if read.is_ok() { String::from_utf8_lossy(tail(&text, lines)).into_owned() } else { String::new() };
    text.lines().map(str::to_owned).collect()
}

/// How a program ended, from the end that its keeper saw and from its last line.
fn describe(end: Option<&str>, last_line: &str) -> String {
    let receipt = serde_json::from_str::<serde_json::Value>(last_line).unwrap_or_default();
    let stated = receipt["exit_code"].as_i64().map(|code| format!("exit code {code}"));
    match (end, stated, receipt["outcome"].as_str()) {
        (end, Some(stated), Some(outcome)) if end.is_none_or(|end| end == stated) => format!(": {outcome}, {stated}"),
        (Some(end), _, _) => format!(": {end}"),
        (None, _, _) => String::new(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_end_has_the_outcome_of_the_receipt_if_the_exit_codes_agree() {
        let receipt = r#"{"worker_id":"worker_1","outcome":"drained","exit_code":0}"#;
        assert_eq!(describe(Some("exit code 0"), receipt), ": drained, exit code 0");
        assert_eq!(describe(None, receipt), ": drained, exit code 0", "its keeper was killed");
        assert_eq!(
            describe(Some("ended by SIGKILL"), receipt),
            ": ended by SIGKILL",
            "the receipt of a former process"
        );
        assert_eq!(describe(Some("exit code 1"), "some line"), ": exit code 1");
        assert_eq!(describe(None, "some line"), "");
    }

    #[test]
    fn the_tail_of_a_text_is_its_last_lines() {
        assert_eq!(tail(b"a\nb\nc\n", 2), b"b\nc\n");
        assert_eq!(tail(b"a\nb\nc", 1), b"c");
        assert_eq!(tail(b"a\n", 40), b"a\n");
        assert_eq!(tail(b"", 1), b"");
    }
}
