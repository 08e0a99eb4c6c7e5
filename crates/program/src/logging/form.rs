//! The form of the log's lines: text or JSON, with priorities when the journal reads them.
//!
//! Turns the line that the formatter writes (time, level in brackets, message) into the line that stdout gets. Called
//! by the thread `log`.

use std::fs::File;
use std::os::fd::AsFd;
use std::os::unix::fs::MetadataExt;

use log::Level;
use serde_json::Value;

/// The format of the log's lines.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum LogFormat {
    /// Time (RFC 3339, UTC), level in brackets, message.
    #[default]
    Text,
    /// A JSON object (RFC 8259) with the texts `timestamp`, `level` and `message`, the last as in `Text`.
    Json,
}

/// How each line is written.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Form {
    pub(super) format: LogFormat,
    /// Whether each line begins with its priority in angle brackets: sd-daemon(3).
    pub(super) has_priorities: bool,
}

impl Form {
    /// Returns the line that the output gets for `line`, both with their line ends.
    pub(super) fn shape(self, level: Level, line: Vec<u8>) -> Vec<u8> {
        let mut shaped = if self.has_priorities { priority(level).as_bytes().to_vec() } else { Vec::new() };
        match self.format {
            LogFormat::Text if shaped.is_empty() => return line,
            LogFormat::Text => shaped.extend(line),
            LogFormat::Json => shaped.extend(json(level, &String::from_utf8_lossy(&line)).into_bytes()),
        }
        shaped
    }
}

fn json(level: Level, line: &str) -> String {
    let (time, rest) = line.trim_end_matches('\n').split_once(' ').unwrap_or_default();
    let message = rest.split_once(' ').unwrap_or_default().1;
    let [time, level, message] =
        [time, &level.as_str().to_ascii_lowercase(), message].map(|text| Value::from(text).to_string());
    format!("{{\"timestamp\":{time},\"level\":{level},\"message\":{message}}}\n")
}

/// The priority of syslog(3) for a level, as sd-daemon(3) writes it; it has no trace.
fn priority(level: Level) -> &'static str {
    match level {
        Level::Error => "<3>",
        Level::Warn => "<4>",
        Level::Info => "<6>",
        Level::Debug | Level::Trace => "<7>",
    }
}

/// Whether `output` is the stream to the journal that `JOURNAL_STREAM` names by its device and inode:
/// systemd.exec(5). A redirected output is another file, whatever the variable says.
pub(super) fn is_journal(output: impl AsFd, journal_stream: Option<&str>) -> bool {
    let Some(stream) = journal_stream else { return false };
    let file = output.as_fd().try_clone_to_owned().map(File::from);
    let file = file.and_then(|file| file.metadata());
    file.is_ok_and(|file| stream == format!("{}:{}", file.dev(), file.ino()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::net::UnixStream;

    fn shape(format: LogFormat, has_priorities: bool, level: Level, line: &str) -> String {
        let shaped = Form { format, has_priorities }.shape(level, line.as_bytes().to_vec());
        String::from_utf8(shaped).expect("text")
    }

    #[test]
    fn text_is_written_as_it_is() {
        let line = "2026-01-01T00:00:00Z [INFO] a\nb\n";
        assert_eq!(shape(LogFormat::Text, false, Level::Info, line), line);
    }

    #[test]
    fn json_has_the_message_of_the_text_in_one_line() {
        let message = "🛑 \"a\" [b] \\n\nc\u{1b}";
        let line = format!("2026-01-01T00:00:00.5Z [WARN] {message}\n");
        let shaped = shape(LogFormat::Json, false, Level::Warn, &line);
        assert!(shaped.starts_with(r#"{"timestamp":"2026-01-01T00:00:00.5Z","level":"warn","message":"#), "{shaped}");
        assert_eq!((shaped.lines().count(), shaped.ends_with("}\n")), (1, true), "{shaped}");
        let value: Value = serde_json::from_str(&shaped).expect("JSON");
        assert_eq!(value["message"], message);
    }

    #[test]
    fn empty_message_is_an_empty_text() {
        let shaped = shape(LogFormat::Json, false, Level::Info, "2026-01-01T00:00:00Z [INFO] \n");
        assert!(shaped.ends_with(",\"message\":\"\"}\n"), "{shaped}");
    }

    #[test]
    fn journal_gets_the_priority_of_each_level() {
        for (level, begin) in [
            (Level::Error, "<3>"),
            (Level::Warn, "<4>"),
            (Level::Info, "<6>"),
            (Level::Debug, "<7>"),
            (Level::Trace, "<7>"),
        ] {
            assert_eq!(shape(LogFormat::Text, true, level, "t [L] m\n"), format!("{begin}t [L] m\n"));
            assert!(shape(LogFormat::Json, true, level, "t [L] m\n").starts_with(&format!("{begin}{{")));
        }
    }

    #[test]
    fn output_is_the_journal_if_device_and_inode_agree() {
        let (ours, other) = UnixStream::pair().expect("sockets");
        let of = |stream: &UnixStream| {
            let file = File::from(stream.as_fd().try_clone_to_owned().expect("a descriptor"));
            let file = file.metadata().expect("metadata");
            format!("{}:{}", file.dev(), file.ino())
        };
        assert!(is_journal(&ours, Some(&of(&ours))));
        assert!(!is_journal(&ours, Some(&of(&other))), "another socket");
        for wrong in [None, Some(""), Some(":"), Some("8:1"), Some("nonsense")] {
            assert!(!is_journal(&ours, wrong), "{wrong:?}");
        }
    }
}
