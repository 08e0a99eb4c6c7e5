//! The trace context of a request or record (<https://www.w3.org/TR/trace-context/>): which values are well-formed.
//!
//! The programs record no spans of their own. They pass both headers on unchanged, and put the trace id into their log
//! lines. Pure; called by the gateway's `http` for requests and by both programs for log lines.

use bytes::Bytes;
use program::logging::escape;
use std::fmt::{self, Display};
use std::sync::Arc;

/// The header with the ids of trace and span, of requests and of records.
pub(crate) const PARENT: &str = "traceparent";
/// The header with the vendors' own members.
pub(crate) const STATE: &str = "tracestate";
/// Most members of a tracestate (section 3.3.1.1).
const MOST_MEMBERS: usize = 32;
/// Longest key, and longest value, of a member (sections 3.3.1.3.1 and 3.3.1.3.2).
const LONGEST_PART: usize = 256;

/// The trace id of a traceparent (section 3.2): 32 digits; `None` if the traceparent is not well-formed.
pub(crate) fn trace_id(traceparent: &[u8]) -> Option<&str> {
    let text = std::str::from_utf8(traceparent).ok()?;
    let mut parts = text.splitn(5, '-');
    let mut hex = |length: usize| {
        let is_digit = |byte: u8| matches!(byte, b'0'..=b'9' | b'a'..=b'f');
        parts.next().filter(|part| part.len() == length && part.bytes().all(is_digit))
    };
    let (version, trace, span, _flags) = (hex(2)?, hex(32)?, hex(16)?, hex(2)?);
    let is_nonzero = |id: &str| id.bytes().any(|digit| digit != b'0');
    // Later versions may add further parts.
    let is_known = version != "ff" && (version != "00" || parts.next().is_none());
    (is_known && is_nonzero(trace) && is_nonzero(span)).then_some(trace)
}

/// The tracestate of these header lines, with as many members from the left as fit into `most` bytes; `None` if a
/// member is not well-formed, a key occurs twice, or there is no member.
pub(crate) fn state<'l>(lines: impl Iterator<Item = &'l [u8]>, most: usize) -> Option<String> {
    let (mut keys, mut whole) = (Vec::new(), String::new());
    let mut is_full = false;
    for line in lines {
        for member in std::str::from_utf8(line).ok()?.split(',') {
            let member = member.trim_matches([' ', '\t']);
            if member.is_empty() {
                continue;
            }
            let (key, value) = member.split_once('=')?;
            if !is_key(key) || !is_value(value) || keys.contains(&key) || keys.len() == MOST_MEMBERS {
                return None;
            }
            keys.push(key);
            // Members at the right are dropped first (section 3.3.1.5).
            is_full |= whole.len() + usize::from(!whole.is_empty()) + member.len() > most;
            if !is_full {
                if !whole.is_empty() {
                    whole.push(',');
                }
                whole.push_str(member);
            }
        }
    }
    (!whole.is_empty()).then_some(whole)
}

fn is_key(key: &str) -> bool {
    let is_alphanumeric = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit();
    (1..=LONGEST_PART).contains(&key.len())
        && key.bytes().next().is_some_and(is_alphanumeric)
        && key.bytes().all(|byte| is_alphanumeric(byte) || b"_-*/@".contains(&byte))
}

fn is_value(value: &str) -> bool {
    (1..=LONGEST_PART).contains(&value.len())
        && value.bytes().all(|byte| matches!(byte, b' '..=b'~') && byte != b'=' && byte != b',')
}

/// A task's id for the log, escaped, with the trace id of its record's headers: `ID`, or `ID (trace 4bf9...)`.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Named<'t> {
    task_id: &'t str,
    trace_id: Option<&'t str>,
}

/// The name of the task with this id, from its record's headers.
pub(crate) fn named<'t, N: AsRef<str>>(task_id: &'t str, headers: &'t [(N, Option<Bytes>)]) -> Named<'t> {
    let parent = headers.iter().find(|(name, _)| name.as_ref() == PARENT);
    Named { task_id, trace_id: parent.and_then(|(_, value)| trace_id(value.as_deref()?)) }
}

/// A task's id that outlasts its record, and its trace for the log.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct TaskName {
    pub(crate) id: Arc<str>,
    trace_id: Option<Arc<str>>,
}

impl TaskName {
    /// Takes this name over.
    pub(crate) fn set(&mut self, named: Named<'_>) {
        if *self.id != *named.task_id {
            self.id = named.task_id.into();
        }
        self.trace_id = named.trace_id.map(Arc::from);
    }
}

impl From<Arc<str>> for TaskName {
    fn from(id: Arc<str>) -> Self {
        Self { id, trace_id: None }
    }
}

impl Display for TaskName {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        Named { task_id: &self.id, trace_id: self.trace_id.as_deref() }.fmt(formatter)
    }
}

impl Display for Named<'_> {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        escape(self.task_id).fmt(formatter)?;
        match self.trace_id {
            Some(trace_id) => write!(formatter, " (trace {trace_id})"),
            None => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PARENT_00: &str = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";
    const TRACE: &str = "4bf92f3577b34da6a3ce929d0e0e4736";

    #[test]
    fn traceparent_of_any_version_names_its_trace() {
        for good in [PARENT_00, &PARENT_00.replacen("00", "cc", 1), &format!("{}-x", PARENT_00.replacen("00", "cc", 1))]
        {
            assert_eq!(trace_id(good.as_bytes()), Some(TRACE), "{good}");
        }
    }

    #[test]
    fn malformed_traceparent_names_no_trace() {
        let bad = [
            String::new(),
            TRACE.to_owned(),
            PARENT_00.replacen("00", "ff", 1),
            PARENT_00.to_uppercase(),
            format!("{PARENT_00}-x"),
            format!("{PARENT_00}-"),
            format!(" {PARENT_00}"),
            PARENT_00[..54].to_owned(),
            PARENT_00.replacen("00", "0", 1),
            PARENT_00.replace(TRACE, &"0".repeat(32)),
            PARENT_00.replace("00f067aa0ba902b7", &"0".repeat(16)),
            PARENT_00.replace("4bf9", "4bg9"),
        ];
        for bad in bad {
            assert_eq!(trace_id(bad.as_bytes()), None, "{bad}");
        }
        assert_eq!(trace_id(b"\xff"), None);
    }

    fn of(lines: &[&str]) -> Option<String> {
        state(lines.iter().map(|line| line.as_bytes()), 512)
    }

    #[test]
    fn tracestate_is_joined_from_its_lines_or_dropped_as_a_whole() {
        assert_eq!(
            of(&["rojo=00f0 7,congo=t61", "", "a1@v_-*/=x"]).as_deref(),
            Some("rojo=00f0 7,congo=t61,a1@v_-*/=x")
        );
        assert_eq!(of(&[" a=1 ,, b=2\t"]).as_deref(), Some("a=1,b=2"));
        let many = |count: usize| (0..count).map(|number| format!("k{number}=v")).collect::<Vec<_>>().join(",");
        assert_eq!(of(&[&many(32)]), Some(many(32)));
        let long = format!("{}=v", "k".repeat(257));
        for bad in ["", ",", "a", "=1", "a=", "A=1", "_a=1", "a=1,a=2", "a=1=2", "a=\u{e9}", &long, &many(33)] {
            assert_eq!(of(&[bad]), None, "{bad}");
        }
    }

    #[test]
    fn long_tracestate_loses_members_at_its_right() {
        let members = ["a", "b", "c"].map(|key| format!("{key}={}", "v".repeat(200)));
        assert_eq!(of(&[&members.join(",")]), Some(members[..2].join(",")));
    }

    #[test]
    fn log_name_of_a_task_has_its_trace_only_if_its_record_has_one() {
        let header = |value: &'static str| [("traceparent", Some(Bytes::from_static(value.as_bytes())))];
        assert_eq!(named("a\n", &header(PARENT_00)).to_string(), format!("a\\n (trace {TRACE})"));
        assert_eq!(named("a", &header("x\n")).to_string(), "a");
        assert_eq!(named::<&str>("a", &[]).to_string(), "a");
        let mut name = TaskName::from(Arc::from("key\n"));
        assert_eq!(name.to_string(), "key\\n");
        name.set(named("a", &header(PARENT_00)));
        assert_eq!((name.to_string(), &*name.id), (format!("a (trace {TRACE})"), "a"));
        name.set(named("a", &header("x")));
        assert_eq!(name.to_string(), "a");
    }
}
