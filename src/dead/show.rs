//! Letters as tables and as JSON, on stdout. Texts from outside are escaped, so they cannot control a terminal.

use std::fmt::Write as _;
use std::io::Write;
use std::time::{SystemTime, UNIX_EPOCH};

use bytes::Bytes;
use kafka_share::ReadRecord;
use program::logging::escape;
use serde_json::{Value, json};

use super::letters::{Letter, Letters};

/// Characters of a reason in a table.
const REASON: usize = 100;

/// Lists letters.
pub(super) fn list(out: &mut impl Write, letters: &Letters, shown: Vec<&Letter>, json: bool, now: SystemTime) {
    if json {
        print(out, &format!("{:#}", letters.to_json(shown, now)));
        return;
    }
    if shown.is_empty() {
        print(out, "no such letters");
        return;
    }
    let heads = ["TIME", "LETTER", "STATE", "CLASS", "DELIVERIES", "WORKER", "TASK", "REASON"];
    let rows: Vec<[String; 8]> = shown.into_iter().map(|letter| row(letter, now)).collect();
    let widths: Vec<usize> = (0..heads.len())
        .map(|column| {
            rows.iter().map(|row| row[column].chars().count()).chain([heads[column].len()]).max().unwrap_or(0)
        })
        .collect();
    let line = |cells: &[String]| {
        let mut line = String::new();
        for (cell, width) in cells.iter().zip(&widths) {
            let _ = write!(line, "{cell:width$}  ");
        }
        line.trim_end().to_owned()
    };
    print(out, &line(&heads.map(str::to_owned)));
    for row in &rows {
        print(out, &line(row));
    }
}

fn row(letter: &Letter, now: SystemTime) -> [String; 8] {
    let shown = |text: Option<&str>| text.map_or_else(|| "-".to_owned(), |text| escape(text).to_string());
    let reason: String = escape(&letter.head.reason).to_string();
    let cut: String = reason.chars().take(REASON).collect();
    let more = if cut.len() < reason.len() { "…" } else { "" };
    [
        rfc3339(letter.at),
        letter.id.to_string(),
        letter.state(now).name().to_owned(),
        letter.head.class.name().to_owned(),
        letter.head.deliveries.map_or_else(|| "-".to_owned(), |count| count.to_string()),
        shown(letter.head.worker.as_deref()),
        shown(letter.task_id.as_deref()),
        format!("{cut}{more}"),
    ]
}

/// Shows a letter; `record` is `None` if Kafka has deleted it.
pub(super) fn letter(out: &mut impl Write, letter: &Letter, record: Option<&ReadRecord>, json: bool, now: SystemTime) {
    let empty = Vec::new();
    let headers = record.map_or(&empty, |record| &record.headers);
    let (key, value) = record.map_or((None, None), |record| (record.key.as_ref(), record.value.as_ref()));
    if json {
        let mut shown = letter.to_json(now);
        let header = |(name, value): &(String, Option<Bytes>)| with(json!({ "name": name }), "value", value.as_ref());
        shown["headers"] = headers.iter().map(header).collect();
        print(out, &format!("{:#}", with(with(shown, "key", key), "value", value)));
        return;
    }
    let row = row(letter, now);
    let names = ["time", "letter", "state", "class", "deliveries", "worker", "task"];
    for (name, value) in names.iter().zip(&row) {
        print(out, &format!("{name}: {value}"));
    }
    if let Some((operator, at)) = &letter.marked {
        print(out, &format!("marked: by {} at {}", escape(operator), rfc3339(*at)));
    }
    print(out, &format!("key: {}", key.map_or_else(|| "none".to_owned(), |key| readable(key))));
    for (name, value) in headers {
        let value = value.as_ref().map_or_else(|| "none".to_owned(), |value| readable(value));
        print(out, &format!("header {}: {value}", escape(name)));
    }
    match value {
        Some(value) => print(out, &format!("value ({} bytes): {}", value.len(), readable(value))),
        None => print(out, "value: none"),
    }
}

/// Adds bytes to an object: as text, or as `NAME_hex` if they are not UTF-8.
fn with(mut object: Value, name: &str, bytes: Option<&Bytes>) -> Value {
    match bytes.map(|bytes| std::str::from_utf8(bytes)) {
        None => object[name] = Value::Null,
        Some(Ok(text)) => object[name] = text.into(),
        Some(Err(_)) => {
            let hex = bytes.into_iter().flatten().fold(String::new(), |mut hex, byte| {
                let _ = write!(hex, "{byte:02x}");
                hex
            });
            object[format!("{name}_hex")] = hex.into();
        }
    }
    object
}

/// Bytes for a terminal.
fn readable(bytes: &[u8]) -> String {
    match std::str::from_utf8(bytes) {
        Ok(text) => escape(text).to_string(),
        Err(_) => bytes.escape_ascii().to_string(),
    }
}

fn print(out: &mut impl Write, line: &str) {
    // Fails without a reader, for example after `| head`.
    let _ = writeln!(out, "{line}");
}

/// A time in UTC to the second (RFC 3339). The date is counted in years that begin in March, so that a leap day is the
/// last day of its year.
pub(super) fn rfc3339(at: SystemTime) -> String {
    let seconds = at.duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
    // Days since 0000-03-01; an era of the Gregorian calendar has 400 years and 146097 days.
    let days = seconds / 86_400 + 719_468;
    let (era, day) = (days / 146_097, days % 146_097);
    let year = (day - day / 1_460 + day / 36_524 - day / 146_096) / 365;
    let day = day - (365 * year + year / 4 - year / 100);
    let month = (5 * day + 2) / 153;
    let day = day - (153 * month + 2) / 5 + 1;
    let (month, next) = if month < 10 { (month + 3, 0) } else { (month - 9, 1) };
    let year = era * 400 + year + next;
    let (hour, minute, second) = (seconds / 3_600 % 24, seconds / 60 % 60, seconds % 60);
    format!("{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}Z")
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    #[test]
    fn times_are_in_utc() {
        let table = [
            (0, "1970-01-01T00:00:00Z"),
            (951_782_399, "2000-02-28T23:59:59Z"),
            (951_782_400, "2000-02-29T00:00:00Z"),
            (951_868_800, "2000-03-01T00:00:00Z"),
            (1_703_123_456, "2023-12-21T01:50:56Z"),
            (4_107_542_400, "2100-03-01T00:00:00Z"),
        ];
        for (seconds, text) in table {
            assert_eq!(rfc3339(UNIX_EPOCH + Duration::from_secs(seconds)), text);
        }
    }

    #[test]
    fn bytes_are_shown_without_control_characters() {
        assert_eq!(readable("a\u{1b}[31m\nслово".as_bytes()), "a\\u{1b}[31m\\nслово");
        assert_eq!(readable(b"\xff\x1b"), "\\xff\\x1b");
        assert_eq!(with(json!({}), "value", Some(&Bytes::from_static(b"\xff\x1b"))), json!({ "value_hex": "ff1b" }));
        assert_eq!(with(json!({}), "value", None), json!({ "value": null }));
    }
}
