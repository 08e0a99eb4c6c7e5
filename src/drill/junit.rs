//! The verdict as JUnit XML, as CI systems read it: one test for each promise.
//!
//! Pure: a verdict in, a document out. A promise without an occasion is a skipped test; a run that cannot be judged is an error of
//! a test of its own, so that it is never shown green.

use std::fmt::Write;

use super::judgement::{Conclusion, Finding, Row, State, Verdict};
use super::paper;

/// Findings of one promise that are written out.
const FINDINGS: usize = 100;

/// The document.
pub(super) fn document(verdict: &Verdict) -> String {
    let count = |state| verdict.rows.iter().filter(|row| row.state == state).count();
    let why = match &verdict.conclusion {
        Conclusion::Held | Conclusion::Broken => None,
        Conclusion::Undecided(why) => Some(("undecided", why)),
        Conclusion::CouldNotRun(why) => Some(("could not run", why)),
    };
    let mut xml = String::from("<?xml version=\"1.0\" encoding=\"UTF-8\"?>\n");
    let counts = format!(
        "tests=\"{}\" failures=\"{}\" errors=\"{}\" skipped=\"{}\" time=\"{:.3}\"",
        verdict.rows.len() + usize::from(why.is_some()),
        count(State::Broken),
        usize::from(why.is_some()),
        count(State::Untested),
        verdict.totals.seconds,
    );
    put(&mut xml, format_args!("<testsuites {counts}>\n"));
    let name = escape(&format!("drill {}", verdict.plan));
    put(&mut xml, format_args!("  <testsuite name=\"{name}\" {counts}>\n    <properties>\n"));
    for (name, value) in
        [("seed", verdict.seed.to_string()), ("target", verdict.target.clone()), ("plan", verdict.plan.clone())]
    {
        put(&mut xml, format_args!("      <property name=\"{name}\" value=\"{}\"/>\n", escape(&value)));
    }
    xml.push_str("    </properties>\n");
    for row in &verdict.rows {
        test(&mut xml, &name, row);
    }
    if let Some((kind, why)) = why {
        let (kind, why) = (escape(kind), escape(why));
        put(&mut xml, format_args!("    <testcase classname=\"{name}\" name=\"the run can be judged\">\n"));
        put(&mut xml, format_args!("      <error type=\"{kind}\" message=\"{kind}: {why}\"/>\n    </testcase>\n"));
    }
    put(&mut xml, format_args!("    <system-out>{}</system-out>\n", escape(&paper::last(verdict))));
    xml.push_str("  </testsuite>\n</testsuites>\n");
    xml
}

fn test(xml: &mut String, suite: &str, row: &Row) {
    let name = escape(&format!("{} {}", row.promise, row.name));
    put(xml, format_args!("    <testcase classname=\"{suite}\" name=\"{name}\">\n"));
    match row.state {
        State::Held => {}
        State::Untested => xml.push_str("      <skipped message=\"there was no occasion\"/>\n"),
        State::Broken => {
            let first = row.findings.first().map(|finding| format!(": {}", finding.what)).unwrap_or_default();
            let message = escape(&format!("{} findings{first}", row.findings.len()));
            put(xml, format_args!("      <failure type=\"broken\" message=\"{message}\">"));
            for finding in row.findings.iter().take(FINDINGS) {
                put(xml, format_args!("{}\n", escape(&told(finding))));
            }
            if row.findings.len() > FINDINGS {
                put(xml, format_args!("and {} more\n", row.findings.len() - FINDINGS));
            }
            xml.push_str("</failure>\n");
        }
    }
    let note = if row.note.is_empty() { String::new() } else { format!("; {}", row.note) };
    let figures = format!("bound {}, worst {}, {} times{note}", row.bound, row.worst, row.count);
    put(xml, format_args!("      <system-out>{}</system-out>\n    </testcase>\n", escape(&figures)));
}

/// A finding on one line, with all that it names.
fn told(finding: &Finding) -> String {
    let mut text = finding.what.clone();
    if !finding.ids.is_empty() {
        text = format!("{text}; {}", finding.ids.join(", "));
    }
    if !finding.lines.is_empty() {
        let lines: Vec<String> = finding.lines.iter().map(ToString::to_string).collect();
        text = format!("{text}; ledger lines {}", lines.join(", "));
    }
    text
}

fn put(xml: &mut String, text: std::fmt::Arguments<'_>) {
    // A String takes all that it is given.
    let _ = xml.write_fmt(text);
}

/// Text for an element or an attribute. What XML 1.0 does not allow at all is replaced; line breaks and tabs are written so that
/// an attribute keeps them.
fn escape(text: &str) -> String {
    let mut escaped = String::with_capacity(text.len());
    for character in text.chars() {
        match character {
            '&' => escaped.push_str("&amp;"),
            '<' => escaped.push_str("&lt;"),
            '>' => escaped.push_str("&gt;"),
            '"' => escaped.push_str("&quot;"),
            '\'' => escaped.push_str("&apos;"),
            '\t' | '\n' | '\r' => put(&mut escaped, format_args!("&#{};", u32::from(character))),
            '\0'..' ' | '\u{fffe}' | '\u{ffff}' => escaped.push('\u{fffd}'),
            _ => escaped.push(character),
        }
    }
    escaped
}

#[cfg(test)]
mod tests {
    use super::super::sample;
    use super::*;

    /// Reads it as strictly as this needs: every element is closed by its own name, attributes are quoted, and what is no markup has
    /// none of its characters. Returns the elements' names and attributes in their order.
    fn read(xml: &str) -> Vec<(String, String)> {
        let mut rest = xml.strip_prefix("<?xml version=\"1.0\" encoding=\"UTF-8\"?>\n").expect("a declaration");
        let (mut open, mut seen) = (Vec::new(), Vec::new());
        while let Some((text, markup)) = rest.split_once('<') {
            assert!(open.is_empty() == text.trim().is_empty() || !open.is_empty(), "text outside: {text}");
            check(text);
            let (tag, after) = markup.split_once('>').expect("a tag ends");
            rest = after;
            if let Some(name) = tag.strip_prefix('/') {
                assert_eq!(open.pop().as_deref(), Some(name));
                continue;
            }
            let is_empty = tag.ends_with('/');
            let tag = tag.trim_end_matches('/');
            let (name, attributes) = tag.split_once(' ').unwrap_or((tag, ""));
            assert!(name.chars().all(|character| character.is_ascii_lowercase() || character == '-'), "{name}");
            let mut pieces = attributes.split('"');
            while let Some(piece) = pieces.next() {
                if piece.is_empty() {
                    break;
                }
                assert!(piece.trim().ends_with('='), "{attributes}");
                check(pieces.next().expect("a value"));
            }
            seen.push((name.to_owned(), attributes.to_owned()));
            if !is_empty {
                open.push(name.to_owned());
            }
        }
        assert!(open.is_empty() && rest.trim().is_empty(), "{open:?} {rest}");
        seen
    }

    fn check(text: &str) {
        for piece in text.split('&').skip(1) {
            let (name, _) = piece.split_once(';').expect("a reference ends");
            assert!(["amp", "lt", "gt", "quot", "apos", "#9", "#10", "#13"].contains(&name), "{name}");
        }
        assert!(
            !text.chars().any(|character| character.is_ascii_control() && character != '\n' && character != '\u{7f}')
        );
    }

    fn count(elements: &[(String, String)], name: &str) -> usize {
        elements.iter().filter(|(element, _)| element == name).count()
    }

    #[test]
    fn a_promise_is_a_test() {
        let verdict = sample::held();
        let elements = read(&document(&verdict));
        assert_eq!(count(&elements, "testcase"), verdict.rows.len());
        assert_eq!((count(&elements, "failure"), count(&elements, "error")), (0, 0));
        let untested = verdict.rows.iter().filter(|row| row.state == State::Untested).count();
        assert_eq!(count(&elements, "skipped"), untested);
        let (_, suite) = elements.iter().find(|(name, _)| name == "testsuite").expect("a suite");
        assert!(suite.starts_with("name=\"drill steady\" ") && suite.ends_with("time=\"60.200\""), "{suite}");
        for property in ["name=\"seed\" value=\"42\"", "name=\"plan\" value=\"steady\"", "name=\"target\""] {
            assert!(elements.iter().any(|(name, value)| name == "property" && value.starts_with(property)));
        }
    }

    #[test]
    fn what_broke_is_a_failure_and_what_cannot_be_judged_is_an_error() {
        let mut verdict = sample::broken();
        let elements = read(&document(&verdict));
        assert_eq!(count(&elements, "failure"), 2);
        verdict.rows[0].findings = sample::findings(10_000, 1);
        let xml = document(&verdict);
        assert!(xml.contains("message=\"10000 findings: ") && xml.contains("and 9900 more"));
        read(&xml);
        for conclusion in [Conclusion::Undecided("a < b".to_owned()), Conclusion::CouldNotRun("a < b".to_owned())] {
            let xml = document(&Verdict { conclusion, rows: Vec::new(), ..sample::held() });
            let elements = read(&xml);
            assert_eq!((count(&elements, "testcase"), count(&elements, "error")), (1, 1));
            assert!(xml.contains("a &lt; b\"/>") && xml.contains("tests=\"1\" failures=\"0\" errors=\"1\""));
        }
    }

    #[test]
    fn hostile_text_does_no_harm() {
        let mut verdict = sample::broken();
        verdict.plan = "a\"><x/>&\n\0".to_owned();
        verdict.rows[0].findings[0].ids = vec!["]]></failure><evil a='\u{1b}\u{ffff}'>".to_owned()];
        let xml = document(&verdict);
        assert!(!xml.contains("<evil") && !xml.contains("<x/>") && !xml.contains("]]>"));
        read(&xml);
    }
}
