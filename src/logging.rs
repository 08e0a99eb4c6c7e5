//! Logs: on stdout, one line per event, RFC 3339 UTC time, level, message.
//!
//! `WriteLogger` over a line-buffered stdout: one write for a line, 2 µs. A buffered writer would lose its content at a
//! hard exit; simplelog's `SimpleLogger` makes 24 writes for an error line.

use log::LevelFilter;
use simplelog::{ConfigBuilder, LevelPadding, WriteLogger};
use std::fmt::{self, Display, Write as _};
use std::io::LineWriter;

/// Starts logging; the first call in a process decides.
pub fn init(level: LevelFilter) {
    let mut config = ConfigBuilder::new();
    config
        .set_time_format_rfc3339()
        .set_time_level(LevelFilter::Error)
        .set_level_padding(LevelPadding::Off)
        .set_thread_level(LevelFilter::Off)
        .set_target_level(LevelFilter::Off)
        .set_location_level(LevelFilter::Off)
        // The HTTP library reports every broken connection as an error of its own.
        .add_filter_ignore_str("tiny_http");
    // A logger is there already: a test's, or that of the program which uses this library.
    let _ = WriteLogger::init(level, config.build(), LineWriter::new(std::io::stdout()));
}

/// A string from outside, safe in a log line: control characters, line breaks and the like are escaped, no quotes are added.
#[must_use]
pub fn escape(text: &str) -> Escaped<'_> {
    Escaped(text)
}

/// See [`escape`].
#[derive(Clone, Copy, Debug)]
pub struct Escaped<'a>(&'a str);

impl Display for Escaped<'_> {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        for character in self.0.chars() {
            // Quotes and letters with accents are harmless in a line of text and stay readable.
            match character {
                '"' | '\'' => formatter.write_char(character)?,
                _ => write!(formatter, "{}", character.escape_debug())?,
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn line_breaks_and_control_characters_are_escaped_and_words_are_not() {
        assert_eq!(escape("a\nb\u{1b}[31m\u{202e}").to_string(), "a\\nb\\u{1b}[31m\\u{202e}");
        assert_eq!(escape("Привет, it's \"ok\"").to_string(), "Привет, it's \"ok\"");
    }
}
