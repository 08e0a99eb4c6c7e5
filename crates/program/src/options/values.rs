//! Parses option values. An error text follows `NAME: value "…"` and says what is expected.

use std::fmt::Display;
use std::fs::File;
use std::net::SocketAddr;
use std::ops::RangeInclusive;
use std::path::PathBuf;
use std::str::FromStr;
use std::time::Duration;

use log::LevelFilter;

use crate::logging::{LogFormat, escape};

/// A value, or the end of an error text.
pub type Read<T> = Result<T, String>;

/// Units of durations in milliseconds, the largest first.
const UNITS: [(&str, u64); 4] = [("h", 3_600_000), ("m", 60_000), ("s", 1_000), ("ms", 1)];
/// Kafka's limit for topic names.
pub const TOPIC_LIMIT: usize = 249;

/// Reads a whole number within limits.
pub fn number<T>(text: &str, limits: &RangeInclusive<T>) -> Read<T>
where
    T: FromStr + PartialOrd + Display,
{
    let expected = format!("expected a whole number from {} to {}", limits.start(), limits.end());
    if text.is_empty() || !text.bytes().all(|byte| byte.is_ascii_digit()) {
        return Err(format!("is not a whole number; {expected}"));
    }
    // Digits that do not fit the type are out of range, too.
    let number = text.parse().ok().filter(|number| limits.contains(number));
    number.ok_or_else(|| format!("is out of range; {expected}"))
}

/// Reads a duration within limits: a whole number with its unit.
pub fn duration(text: &str, limits: &RangeInclusive<Duration>) -> Read<Duration> {
    let digits = text.bytes().take_while(u8::is_ascii_digit).count();
    let (number, unit) = text.split_at(digits);
    let expected = "expected a whole number with ms, s, m or h, for example 30s";
    let problem = match (number, unit) {
        ("", _) => "is not a duration",
        (_, "") => "has no unit",
        _ => "is not a duration",
    };
    let unit = UNITS.iter().find(|(name, _)| *name == unit && digits > 0);
    let (_, unit) = unit.ok_or_else(|| format!("{problem}; {expected}"))?;
    let milliseconds = number.parse::<u64>().ok().and_then(|number| number.checked_mul(*unit));
    let duration = milliseconds.map(Duration::from_millis).filter(|duration| limits.contains(duration));
    duration.ok_or_else(|| {
        format!("is out of range; expected {} to {}", show_duration(*limits.start()), show_duration(*limits.end()))
    })
}

/// Shows a duration in the largest unit that leaves a whole number.
pub fn show_duration(duration: Duration) -> String {
    let milliseconds = duration.as_millis();
    let unit = UNITS.iter().find(|(_, unit)| milliseconds != 0 && milliseconds.is_multiple_of(u128::from(*unit)));
    match unit {
        Some((name, unit)) => format!("{}{name}", milliseconds / u128::from(*unit)),
        None => "0s".to_owned(),
    }
}

/// Reads a switch.
pub fn switch(text: &str) -> Read<bool> {
    match text {
        "0" | "false" => Ok(false),
        "1" | "true" => Ok(true),
        _ => Err("is no switch; expected 0 or 1".to_owned()),
    }
}

/// Reads a topic name by Kafka's own rule (`org.apache.kafka.common.internals.Topic.validate`). `limit` is below
/// Kafka's if the names of other topics are derived from this one. Names with two underscores in front are refused:
/// they belong to Kafka's own topics, which may not exist yet.
pub fn topic(text: &str, limit: usize) -> Read<String> {
    let legal = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'_' | b'-');
    let expected = format!("expected 1 to {limit} of a-z, A-Z, 0-9, \".\", \"_\" and \"-\"");
    match text {
        "." | ".." => Err(format!("is no topic name; {expected}, and neither \".\" nor \"..\"")),
        _ if !text.bytes().all(legal) => Err(format!("is no topic name; {expected}")),
        _ if !(1..=limit).contains(&text.len()) => Err(format!("has {} characters; {expected}", text.len())),
        _ if text.starts_with("__") => {
            Err("begins like the topics of Kafka itself; expected a name without \"__\" in front".to_owned())
        }
        _ => Ok(text.to_owned()),
    }
}

/// Reads a name for logs and headers.
pub fn printable(text: &str, limit: usize) -> Read<String> {
    if (1..=limit).contains(&text.len()) && text.bytes().all(|byte| matches!(byte, b' '..=b'~')) {
        Ok(text.to_owned())
    } else {
        Err(format!("is not usable; expected 1 to {limit} printable ASCII characters"))
    }
}

/// Reads a comma-separated list; spaces around its items are ignored.
pub fn list<T, E: Display>(text: &str, item: impl Fn(&str) -> Result<T, E>) -> Read<Vec<T>> {
    let read = |text: &str| {
        let text = text.trim();
        item(text).map_err(|error| format!("has the item \"{}\": {error}", escape(text)))
    };
    text.split(',').map(read).collect()
}

/// Reads an address to listen on.
pub fn listen_address(text: &str) -> Read<SocketAddr> {
    text.parse().map_err(|_| {
        "is no address to listen on; expected an IP address with a port, for example 127.0.0.1:8080 or [::]:8080"
            .to_owned()
    })
}

/// Reads a log level.
pub fn log_level(text: &str) -> Read<LevelFilter> {
    text.parse().map_err(|_| "is no level; expected off, error, warn, info, debug or trace".to_owned())
}

/// Reads a format of the log.
pub fn log_format(text: &str) -> Read<LogFormat> {
    match text {
        "text" => Ok(LogFormat::Text),
        "json" => Ok(LogFormat::Json),
        _ => Err("is no format; expected text or json".to_owned()),
    }
}

/// Reads the path of an existing, readable file.
pub fn readable_file(text: &str) -> Read<PathBuf> {
    let path = PathBuf::from(text);
    let kind = File::open(&path).and_then(|file| file.metadata());
    match kind {
        Ok(metadata) if metadata.is_file() => Ok(path),
        Ok(_) => Err("is no file; expected the path of a readable file".to_owned()),
        Err(error) => Err(format!("cannot be read ({error}); expected the path of a readable file")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ALL: RangeInclusive<Duration> = Duration::ZERO..=Duration::from_hours(24);

    #[test]
    fn durations_are_whole_numbers_with_a_unit() {
        for (text, milliseconds) in [("0s", 0), ("250ms", 250), ("30s", 30_000), ("10m", 600_000), ("24h", 86_400_000)]
        {
            assert_eq!(duration(text, &ALL), Ok(Duration::from_millis(milliseconds)), "{text}");
        }
        for (text, problem) in [
            ("30", "has no unit"),
            ("", "is not a duration"),
            ("s", "is not a duration"),
            ("-1s", "is not a duration"),
            ("+1s", "is not a duration"),
            ("1.5s", "is not a duration"),
            ("1 s", "is not a duration"),
            (" 1s", "is not a duration"),
            ("1s ", "is not a duration"),
            ("1S", "is not a duration"),
            ("1m30s", "is not a duration"),
            ("1d", "is not a duration"),
            ("1sec", "is not a duration"),
            ("٣s", "is not a duration"),
            ("25h", "is out of range"),
            ("99999999999999999999h", "is out of range"),
            ("18446744073709551615h", "is out of range"),
        ] {
            let told = duration(text, &ALL).expect_err(text);
            assert!(told.starts_with(problem) && told.contains("; expected "), "{text:?} {told}");
        }
    }

    #[test]
    fn shown_duration_reads_back() {
        for (milliseconds, text) in
            [(0, "0s"), (1, "1ms"), (1_500, "1500ms"), (90_000, "90s"), (600_000, "10m"), (7_200_000, "2h")]
        {
            let value = Duration::from_millis(milliseconds);
            assert_eq!(show_duration(value), text);
            assert_eq!(duration(text, &ALL), Ok(value));
        }
    }

    #[test]
    fn numbers_have_limits() {
        assert_eq!(number("7", &(2..=7)), Ok(7));
        for text in ["", "x", "-1", "+3", "3.0", " 3", "0x3"] {
            let told = number(text, &(2..=7)).expect_err(text);
            assert_eq!(told, "is not a whole number; expected a whole number from 2 to 7");
        }
        for text in ["1", "8", "99999999999999999999999"] {
            let told = number(text, &(2..=7)).expect_err(text);
            assert_eq!(told, "is out of range; expected a whole number from 2 to 7");
        }
    }

    #[test]
    fn topic_names_follow_the_rule_of_kafka() {
        let longest = "a".repeat(TOPIC_LIMIT);
        for text in ["tasks", "a", "A.b_c-9", "...", &longest] {
            assert_eq!(topic(text, TOPIC_LIMIT), Ok(text.to_owned()));
        }
        let longer = "a".repeat(TOPIC_LIMIT + 1);
        for text in ["", ".", "..", "a b", "a/b", "a,b", "задачи", "a\n", &longer] {
            assert!(topic(text, TOPIC_LIMIT).is_err(), "{text:?}");
        }
    }

    #[test]
    fn list_names_its_invalid_item() {
        let numbers = |text| list(text, |item| number(item, &(1..=9)));
        assert_eq!(numbers("1, 2"), Ok(vec![1, 2]));
        assert!(numbers("1,b").expect_err("no number").starts_with("has the item \"b\": is not a whole number"));
        assert!(numbers("1,").expect_err("an empty item").starts_with("has the item \"\""));
    }

    #[test]
    fn switches_levels_and_addresses_are_read() {
        assert_eq!((switch("0"), switch("1"), switch("true")), (Ok(false), Ok(true), Ok(true)));
        assert!(switch("yes").is_err() && switch("").is_err());
        assert_eq!((log_level("debug"), log_level("WARN")), (Ok(LevelFilter::Debug), Ok(LevelFilter::Warn)));
        assert!(log_level("verbose").is_err());
        assert_eq!((log_format("text"), log_format("json")), (Ok(LogFormat::Text), Ok(LogFormat::Json)));
        assert!(log_format("JSON").is_err());
        assert!(listen_address("[::]:8080").is_ok() && listen_address("127.0.0.1:0").is_ok());
        assert!(
            listen_address("localhost:8080").is_err()
                && listen_address("8080").is_err()
                && listen_address(":8080").is_err()
        );
    }

    #[test]
    fn names_are_printable_ascii_within_a_limit() {
        let longest = "x".repeat(100);
        for text in ["worker 1", "~", &longest] {
            assert_eq!(printable(text, 100), Ok(text.to_owned()));
        }
        let longer = "x".repeat(101);
        for text in ["", "работник", "a\nb", "a\u{7f}", &longer] {
            assert!(printable(text, 100).is_err(), "{text:?}");
        }
    }

    #[test]
    fn missing_file_and_directory_are_refused() {
        assert!(readable_file(concat!(env!("CARGO_MANIFEST_DIR"), "/Cargo.toml")).is_ok());
        assert!(readable_file(env!("CARGO_MANIFEST_DIR")).expect_err("a directory").starts_with("is no file"));
        assert!(readable_file("/does/not/exist").expect_err("nothing").starts_with("cannot be read"));
    }
}
