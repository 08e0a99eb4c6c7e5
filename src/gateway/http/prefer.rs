//! The field Prefer of a request (RFC 7240): `respond-async` and `wait`. Pure.
//!
//! A preference never makes a request fail: what is not well-formed, unknown or repeated is ignored (section 2).

use crate::http::reply::Preferences;
use std::time::Duration;

/// The preferences in these lines of the field. `wait` is at most `longest`; of several the first counts.
pub(super) fn preferences<'l>(lines: impl Iterator<Item = &'l [u8]>, longest: Duration) -> Preferences {
    let mut asynchronous = false;
    let mut first_wait = None;
    for line in lines.filter_map(|line| std::str::from_utf8(line).ok()) {
        for preference in split(line, ',') {
            // Parameters follow the first semicolon; these two preferences have none.
            let (name, value) = parts(split(preference, ';').next().unwrap_or_default());
            if name.eq_ignore_ascii_case("respond-async") {
                asynchronous |= value.is_empty() || value == "\"\"";
            } else if name.eq_ignore_ascii_case("wait") {
                first_wait.get_or_insert_with(|| seconds(value));
            }
        }
    }
    Preferences { asynchronous, wait: first_wait.flatten().map(|wait| wait.min(longest)) }
}

/// Name and value of a preference; without a value this is empty.
fn parts(preference: &str) -> (&str, &str) {
    let (name, value) = preference.split_once('=').unwrap_or((preference, ""));
    (name.trim_matches([' ', '\t']), value.trim_matches([' ', '\t']))
}

/// A number of seconds (RFC 9110 section 5.6.7, delta-seconds); one that is too large for a number is the largest.
fn seconds(text: &str) -> Option<Duration> {
    let is_number = !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
    is_number.then(|| Duration::from_secs(text.parse().unwrap_or(u64::MAX)))
}

/// The parts of a text between separators, which do not count within quotes (RFC 9110 section 5.6.4).
fn split(text: &str, separator: char) -> impl Iterator<Item = &str> {
    let (mut quoted, mut escaped) = (false, false);
    text.split(move |character| {
        let is_plain = !std::mem::take(&mut escaped);
        match character {
            '"' if is_plain => quoted = !quoted,
            '\\' if is_plain && quoted => escaped = true,
            _ => {}
        }
        character == separator && !quoted
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const LONGEST: Duration = Duration::from_secs(10);

    fn of(lines: &[&str]) -> (bool, Option<u64>) {
        let Preferences { asynchronous, wait } = preferences(lines.iter().map(|line| line.as_bytes()), LONGEST);
        (asynchronous, wait.map(|wait| wait.as_secs()))
    }

    #[test]
    fn preferences_are_read_from_all_lines_in_any_case() {
        assert_eq!(of(&["Respond-Async; foo, WAIT = 5"]), (true, Some(5)));
        assert_eq!(of(&["foo", "wait=0;a=\"b;c\"", " respond-async=\"\""]), (true, Some(0)));
        assert_eq!(of(&[]), (false, None));
    }

    #[test]
    fn longer_wait_is_the_longest_and_the_first_of_several_counts() {
        for (text, wait) in [("wait=9, wait=3", 9), ("wait=11", 10), ("wait=99999999999999999999999", 10)] {
            assert_eq!(of(&[text]), (false, Some(wait)), "{text}");
        }
        assert_eq!(of(&["wait=x", "wait=3"]), (false, None), "the first is not a number");
    }

    #[test]
    fn malformed_and_unknown_preferences_are_ignored() {
        for bad in [
            "",
            ",;=,",
            "wait",
            "wait=",
            "wait=-1",
            "wait=+1",
            "wait=1.5",
            "wait=1s",
            "wait=\"5\"",
            "waits=5",
            "respond-asynchronously",
            "respond-async=yes",
            "foo=\"a, wait=5, respond-async\"",
            "foo=\"\\\", wait=5\"",
            "foo=\"wait=5, respond-async",
        ] {
            assert_eq!(of(&[bad]), (false, None), "{bad}");
        }
        assert_eq!(preferences([&b"\xff, wait=5"[..]].into_iter(), LONGEST), Preferences::default());
    }
}
