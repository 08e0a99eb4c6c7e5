//! The log on stdout: one line per event, with UTC time (RFC 3339), level and message, as text or JSON.
//!
//! Sets up the logger of crate `log`. The thread `log` writes the lines, so a full pipe behind stdout blocks no thread
//! that logs. Each binary calls [`init`] once and [`close`] at its end. Code that logs a string from outside calls
//! [`escape`].

mod form;
mod lines;

use std::convert::Infallible;
use std::fmt::{self, Display};
use std::io::{self, Write};
use std::time::{Duration, Instant};

pub use form::LogFormat;
use form::{Form, is_journal};
use lines::Lines;
use log::{Level, LevelFilter, Log, Metadata, Record};
use parking_lot::Mutex;
use simplelog::{ConfigBuilder, LevelPadding, WriteLogger};

use crate::stop::Stop;
use crate::threads::{self, Thread};

/// How long a process waits at its end for its last lines if stdout blocks; an idle worker still ends within a second.
pub const LAST_LINES: Duration = Duration::from_millis(500);
/// The same when a watchdog ends the process, whose time is up.
pub const LATE_LINES: Duration = Duration::from_millis(50);

static LINES: Lines = Lines::new();
/// The thread `log`, from [`init`] to [`close`].
static THREAD: Mutex<Option<Thread>> = Mutex::new(None);

/// Starts the log on stdout. The first call of a process fixes format and output; later calls change only the level.
/// If stdout is the journal of systemd, each line begins with its priority (sd-daemon(3)), which the journal removes.
pub fn init(level: LevelFilter, format: LogFormat) {
    let stream = std::env::var("JOURNAL_STREAM").ok();
    let has_priorities = is_journal(io::stdout(), stream.as_deref());
    start(level, Form { format, has_priorities }, io::stdout());
}

/// Starts the log as text on this output; further calls are those of [`init`].
pub fn init_to(level: LevelFilter, output: impl Write + Send + 'static) {
    start(level, Form::default(), output);
}

fn start(level: LevelFilter, form: Form, mut output: impl Write + Send + 'static) {
    if log::set_boxed_logger(Box::new(Logger { lines: &LINES, config: format() })).is_ok() {
        let thread = threads::spawn("log", Stop::new(), move || -> Result<(), Infallible> {
            LINES.write_to(&mut output, form);
            Ok(())
        });
        *THREAD.lock() = Some(thread);
    } else {
        log::debug!("The log had been started before");
    }
    log::set_max_level(level);
}

/// Ends the log: writes the lines logged so far, then `last` as it is, and drops later lines. Gives up after `limit` if
/// stdout blocks. A second call does nothing. [`ExitCode`](crate::exit::ExitCode) calls it when `main` returns a code.
pub fn close(last: Option<String>, limit: Duration) {
    if !LINES.close(last.map(|line| line + "\n")) {
        return;
    }
    let thread = THREAD.lock().take();
    match thread {
        // A thread that still waits for stdout ends with the process.
        Some(thread) => drop(thread.join_deadline(Instant::now() + limit)),
        // The program uses its own logger, or none.
        None => LINES.write_to(&mut io::stdout(), Form::default()),
    }
}

/// Formats each record, and adds it to the lines.
struct Logger {
    lines: &'static Lines,
    config: simplelog::Config,
}

impl Log for Logger {
    /// Passes every record; the global filter can be changed later.
    fn enabled(&self, _: &Metadata<'_>) -> bool {
        true
    }

    fn log(&self, record: &Record<'_>) {
        let pen = Pen { lines: self.lines, level: record.level(), line: Vec::new() };
        WriteLogger::new(LevelFilter::Trace, self.config.clone(), pen).log(record);
    }

    fn flush(&self) {}
}

/// Assembles the pieces in which the formatter writes one record; its drop adds the line.
struct Pen {
    lines: &'static Lines,
    level: Level,
    line: Vec<u8>,
}

impl Write for Pen {
    fn write(&mut self, piece: &[u8]) -> io::Result<usize> {
        self.line.extend_from_slice(piece);
        Ok(piece.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Drop for Pen {
    fn drop(&mut self) {
        self.lines.add(self.level, std::mem::take(&mut self.line));
    }
}

/// Time, level, message; no thread and no target, which mean nothing to operators.
fn format() -> simplelog::Config {
    ConfigBuilder::new()
        .set_time_format_rfc3339()
        .set_time_level(LevelFilter::Error)
        .set_level_padding(LevelPadding::Off)
        .set_thread_level(LevelFilter::Off)
        .set_target_level(LevelFilter::Off)
        .set_location_level(LevelFilter::Off)
        .build()
}

/// Escapes a string from outside, as in Rust source, so that it cannot fake a log line or confuse a terminal. It
/// escapes control characters and backslashes; letters of all languages and quotes stay. No quotes are added.
#[must_use]
pub fn escape(text: &str) -> Escaped<'_> {
    Escaped(text)
}

/// Text that escapes itself when displayed; see [`escape`].
#[derive(Clone, Copy, Debug)]
pub struct Escaped<'a>(&'a str);

impl Display for Escaped<'_> {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        // The standard library's escape would also escape quotes, so the text goes through it piece by piece.
        self.0.split_inclusive(QUOTES).try_for_each(|piece| {
            let front = piece.strip_suffix(QUOTES).unwrap_or(piece);
            write!(formatter, "{}{}", front.escape_debug(), &piece[front.len()..])
        })
    }
}

const QUOTES: [char; 2] = ['"', '\''];

#[cfg(test)]
mod tests {
    use super::*;

    fn line(level: Level, message: &'static str, format: LogFormat) -> String {
        let lines: &'static Lines = Box::leak(Box::default());
        let logger = Logger { lines, config: super::format() };
        logger.log(&Record::builder().level(level).target("lastcall::x").args(format_args!("{message}")).build());
        let mut output = Vec::new();
        lines.close(None);
        lines.write_to(&mut output, Form { format, has_priorities: false });
        String::from_utf8(output).expect("lines are UTF-8")
    }

    #[test]
    fn line_has_time_level_and_message() {
        let line = line(Level::Warn, "👋 Worker a gracefully shut down", LogFormat::Text);
        let (time, rest) = line.split_once(' ').expect("a time comes first");
        assert!(time.ends_with('Z') && time.contains('T'), "{time} is RFC 3339 in UTC");
        assert_eq!(rest, "[WARN] 👋 Worker a gracefully shut down\n");
    }

    #[test]
    fn every_level_has_a_time() {
        for level in [Level::Error, Level::Info, Level::Trace] {
            assert!(line(level, "x", LogFormat::Text).starts_with("20"), "{level}");
        }
    }

    #[test]
    fn record_of_several_pieces_and_lines_is_one_json_object() {
        let line = line(Level::Error, "a\nb\n", LogFormat::Json);
        let text = line.strip_suffix('\n').expect("a line");
        let value: serde_json::Value = serde_json::from_str(text).expect("one object");
        assert_eq!((&value["level"], &value["message"]), (&"error".into(), &"a\nb".into()), "{value}");
    }

    #[test]
    fn strings_from_outside_cannot_fake_lines() {
        assert_eq!(escape("a\n2024 [INFO] b\u{1b}[31m\u{202e}").to_string(), "a\\n2024 [INFO] b\\u{1b}[31m\\u{202e}");
        assert_eq!(escape("слово 🛑").to_string(), "слово 🛑");
        assert_eq!(escape("it's \"ok\"\n").to_string(), "it's \"ok\"\\n");
        assert_eq!(escape("").to_string(), "");
    }
}
