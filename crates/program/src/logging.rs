//! The log: on stdout, one line per event, with UTC time (RFC 3339), level and message.
//!
//! Sets up the logger of crate `log`; what is said is up to the callers. The thread `log` writes the lines, so that a
//! full pipe behind stdout blocks no thread that logs. [`init`] is called once by each binary, [`close`] at the end of
//! the process, [`escape`] by everything that logs a string from outside.

mod lines;

use std::convert::Infallible;
use std::fmt::{self, Display};
use std::io::{self, Write};
use std::time::{Duration, Instant};

use lines::Lines;
use log::LevelFilter;
use parking_lot::Mutex;
use simplelog::{ConfigBuilder, LevelPadding, WriteLogger};

use crate::stop::Stop;
use crate::threads::{self, Thread};

/// How long the end of a process waits for its last lines where stdout does not take them: an idle worker still ends
/// within a second.
pub const LAST_LINES: Duration = Duration::from_millis(500);
/// The same where a watchdog ends the process, whose time is over.
pub const LATE_LINES: Duration = Duration::from_millis(50);

static LINES: Lines = Lines::new();
/// The thread `log`, from [`init`] to [`close`].
static THREAD: Mutex<Option<Thread>> = Mutex::new(None);

/// Starts the log on stdout. Only the first call of a process decides where lines go; later ones change the level.
pub fn init(level: LevelFilter) {
    init_to(level, io::stdout());
}

/// The same on this output.
pub fn init_to(level: LevelFilter, mut output: impl Write + Send + 'static) {
    let pen = Pen { lines: &LINES, line: Vec::new() };
    // The writer takes everything; the filter is the global one, so that a later call can change it.
    if log::set_boxed_logger(WriteLogger::new(LevelFilter::Trace, format(), pen)).is_ok() {
        let thread = threads::spawn("log", Stop::new(), move || -> Result<(), Infallible> {
            LINES.write_to(&mut output);
            Ok(())
        });
        *THREAD.lock() = Some(thread);
    } else {
        log::debug!("The log had been started before");
    }
    log::set_max_level(level);
}

/// Ends the log: what was logged so far is written, then `last`, and nothing afterwards. Gives up after `limit`, when
/// stdout does not take it; a second call does nothing. [`ExitCode`](crate::exit::ExitCode) calls it when `main`
/// returns one.
pub fn close(last: Option<String>, limit: Duration) {
    if !LINES.close(last.map(|line| (line + "\n").into_bytes())) {
        return;
    }
    let thread = THREAD.lock().take();
    match thread {
        // A thread that still waits for stdout ends with the process.
        Some(thread) => drop(thread.join_deadline(Instant::now() + limit)),
        // The program has a log of its own, or none.
        None => LINES.write_to(&mut io::stdout()),
    }
}

/// Puts the pieces together in which the formatter writes a line.
struct Pen {
    lines: &'static Lines,
    line: Vec<u8>,
}

impl Write for Pen {
    fn write(&mut self, piece: &[u8]) -> io::Result<usize> {
        self.line.extend_from_slice(piece);
        if self.line.ends_with(b"\n") {
            self.lines.add(std::mem::take(&mut self.line));
        }
        Ok(piece.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Time, level, message; neither thread nor target, which are for the authors and not for who runs the programs.
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

/// A string from outside, made safe for a line of the log: control characters, backslashes and whatever else could fake a line
/// or confuse a terminal are escaped as in Rust source. Letters of all languages and quotes stay, and no quotes are added.
#[must_use]
pub fn escape(text: &str) -> Escaped<'_> {
    Escaped(text)
}

/// See [`escape`].
#[derive(Clone, Copy, Debug)]
pub struct Escaped<'a>(&'a str);

impl Display for Escaped<'_> {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        // Piece by piece, since the standard library's escape takes the quotes along.
        self.0.split_inclusive(QUOTES).try_for_each(|piece| {
            let front = piece.strip_suffix(QUOTES).unwrap_or(piece);
            write!(formatter, "{}{}", front.escape_debug(), &piece[front.len()..])
        })
    }
}

const QUOTES: [char; 2] = ['"', '\''];

#[cfg(test)]
mod tests {
    use log::{Level, Log, Record};

    use super::*;

    fn line(level: Level, message: &'static str) -> String {
        let lines: &'static Lines = Box::leak(Box::default());
        let logger = WriteLogger::new(LevelFilter::Trace, format(), Pen { lines, line: Vec::new() });
        logger.log(&Record::builder().level(level).target("lastcall::x").args(format_args!("{message}")).build());
        let mut output = Vec::new();
        lines.close(None);
        lines.write_to(&mut output);
        String::from_utf8(output).expect("lines are UTF-8")
    }

    #[test]
    fn a_line_is_time_level_message() {
        let line = line(Level::Warn, "👋 Worker a gracefully shut down");
        let (time, rest) = line.split_once(' ').expect("a time comes first");
        assert!(time.ends_with('Z') && time.contains('T'), "{time} is RFC 3339 in UTC");
        assert_eq!(rest, "[WARN] 👋 Worker a gracefully shut down\n");
    }

    #[test]
    fn every_level_has_the_time() {
        for level in [Level::Error, Level::Info, Level::Trace] {
            assert!(line(level, "x").starts_with("20"), "{level}");
        }
    }

    #[test]
    fn strings_from_outside_cannot_fake_lines() {
        assert_eq!(escape("a\n2024 [INFO] b\u{1b}[31m\u{202e}").to_string(), "a\\n2024 [INFO] b\\u{1b}[31m\\u{202e}");
        assert_eq!(escape("слово 🛑").to_string(), "слово 🛑");
        assert_eq!(escape("it's \"ok\"\n").to_string(), "it's \"ok\"\\n");
        assert_eq!(escape("").to_string(), "");
    }
}
