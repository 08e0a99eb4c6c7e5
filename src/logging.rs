//! The log: on stdout, one line per event, with UTC time (RFC 3339), level and message.
//!
//! Sets up the logger of crate `log`; what is said is up to the callers. A full pipe behind stdout blocks whoever logs, so no hot
//! path logs, and no lock is held around a log line. Called once by each binary; [`escape`] by everything that logs a string
//! from outside.

use std::fmt::{self, Display};
use std::io::{self, LineWriter};

use log::LevelFilter;
use simplelog::{ConfigBuilder, LevelPadding, WriteLogger};

/// Starts the log. Only the first call of a process has an effect on where lines go; later ones change the level.
pub fn init(level: LevelFilter) {
    // A line is written whole, in one piece and at its end: nothing is left in a buffer when the process exits at once.
    let stdout = LineWriter::new(io::stdout());
    // The writer takes everything; the filter is the global one, so that a later call can change it.
    if log::set_boxed_logger(WriteLogger::new(LevelFilter::Trace, format(), stdout)).is_err() {
        log::debug!("The log had been started before");
    }
    log::set_max_level(level);
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
        // The HTTP library reports every connection that breaks as an error of its own.
        .add_filter_ignore_str("tiny_http")
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
    use std::io::Write;
    use std::sync::Arc;

    use log::{Level, Log, Record};
    use parking_lot::Mutex;

    use super::*;

    #[derive(Clone, Default)]
    struct Sink(Arc<Mutex<Vec<u8>>>);

    impl Write for Sink {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0.lock().write(bytes)
        }
        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    fn line(level: Level, message: &str) -> String {
        let sink = Sink::default();
        let logger = WriteLogger::new(LevelFilter::Trace, format(), LineWriter::new(sink.clone()));
        logger.log(&Record::builder().level(level).target("lastcall::x").args(format_args!("{message}")).build());
        // Not flushed, and the logger is still there: whatever a line consists of has to be written already.
        String::from_utf8(sink.0.lock().clone()).expect("lines are UTF-8")
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
