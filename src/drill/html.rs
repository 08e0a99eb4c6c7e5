//! The run as one page for a browser: the verdict on top, below it a timeline of every process, task and action.
//!
//! Pure: a ledger and its verdict in, a document out. The page needs nothing but itself, and its own policy forbids it to load or
//! send anything. The verdict is plain HTML; the timeline is drawn by the script in `timeline.html` from the data of `timeline`.

use std::fmt::Write;

use super::fact::Line;
use super::judgement::{Conclusion, Finding, Row, State, Verdict};
use super::paper;
use super::timeline::{self, LIMITS};

/// The page without what is of the run: `@@title@@`, `@@verdict@@` and `@@data@@` stand for that.
const PAGE: &str = include_str!("timeline.html");
/// Findings of one promise, ids and ledger lines of one finding that are written out.
const FINDINGS: usize = 50;
const IDS: usize = 20;
const LINES: usize = 20;

/// The document. `lines` is the ledger in the order of its lines.
pub(super) fn document(lines: &[Line], verdict: &Verdict) -> String {
    let title = escape(&format!("drill {}: {}", verdict.plan, conclusion(verdict).0));
    let shown = promises(lines, verdict);
    // Inside of a script nothing but its end is markup, and in JSON every `<` stands in a string.
    let data =
        serde_json::to_string(&timeline::draw(lines, verdict, LIMITS)).unwrap_or_default().replace('<', "\\u003c");
    let mut page = String::with_capacity(PAGE.len() + title.len() + shown.len() + data.len());
    let mut rest = PAGE;
    // From one place to the next, so that nothing is put into what came from outside.
    for (place, text) in [("@@title@@", &title), ("@@verdict@@", &shown), ("@@data@@", &data)] {
        if let Some((before, after)) = rest.split_once(place) {
            page.push_str(before);
            page.push_str(text);
            rest = after;
        }
    }
    page.push_str(rest);
    page
}

/// In a word, and the class of its colour.
fn conclusion(verdict: &Verdict) -> (&'static str, &'static str) {
    match verdict.conclusion {
        Conclusion::Held => ("held", "held"),
        Conclusion::Broken => ("BROKEN", "broken"),
        Conclusion::Undecided(_) => ("undecided", "untested"),
        Conclusion::CouldNotRun(_) => ("could not run", "untested"),
    }
}

/// The verdict as a table, with what broke below it.
fn promises(lines: &[Line], verdict: &Verdict) -> String {
    let mut html = String::new();
    let put = |html: &mut String, text: std::fmt::Arguments<'_>| {
        // A String takes all that it is given.
        let _ = html.write_fmt(text);
    };
    put(&mut html, format_args!("<h1>drill {}</h1>\n", escape(&verdict.plan)));
    put(&mut html, format_args!("<p class=\"last {}\">{}</p>\n", conclusion(verdict).1, escape(&paper::last(verdict))));
    let totals = &verdict.totals;
    put(
        &mut html,
        format_args!(
            "<p>Seed {}; {}; {:.1} s; answers p50 {:.1} ms, p99 {:.1} ms, worst {:.1} ms.{}{}</p>\n",
            verdict.seed,
            escape(&verdict.target),
            totals.seconds,
            totals.p50_ms,
            totals.p99_ms,
            totals.worst_ms,
            if totals.undecided > 0 { format!(" {} undecided.", totals.undecided) } else { String::new() },
            if verdict.ledger.is_empty() { String::new() } else { format!(" Ledger: {}", escape(&verdict.ledger)) },
        ),
    );
    if !verdict.rows.is_empty() {
        html.push_str(
            "<table><thead><tr><th></th><th>promise</th><th>bound</th><th>worst</th><th class=\"count\">count</th><th></th>\
             <th>note</th></tr></thead><tbody>\n",
        );
        for row in &verdict.rows {
            promise(&mut html, row);
        }
        html.push_str("</tbody></table>\n");
    }
    if !verdict.faults.is_empty() {
        let told: Vec<String> = verdict.faults.iter().map(|fault| escape(&paper::fault(fault))).collect();
        put(&mut html, format_args!("<p>Faults, seen of planned: {}.</p>\n", told.join(", ")));
    }
    for row in verdict.rows.iter().filter(|row| !row.findings.is_empty()) {
        put(&mut html, format_args!("<h2>{} {}</h2>\n<ul>\n", escape(row.promise), escape(row.name)));
        for finding in row.findings.iter().take(FINDINGS) {
            told(&mut html, finding, lines);
        }
        if row.findings.len() > FINDINGS {
            put(&mut html, format_args!("<li>and {} more</li>\n", row.findings.len() - FINDINGS));
        }
        html.push_str("</ul>\n");
    }
    html
}

fn promise(html: &mut String, row: &Row) {
    let class = match row.state {
        State::Held => "held",
        State::Broken => "broken",
        State::Untested => "untested",
    };
    let cells =
        [row.promise, row.name, &row.bound, &row.worst].map(|text| format!("<td>{}</td>", escape(text))).concat();
    let count = row.count;
    let (state, note) = (paper::state(row.state), escape(&row.note));
    let cells = format!("{cells}<td class=\"count\">{count}</td><td class=\"state\">{state}</td><td>{note}</td>");
    let _ = writeln!(html, "<tr class=\"{class}\">{cells}</tr>");
}

fn told(html: &mut String, finding: &Finding, ledger: &[Line]) {
    let _ = write!(html, "<li>{}", escape(&finding.what));
    for id in finding.ids.iter().take(IDS) {
        let id = escape(id);
        let _ = write!(html, " <button type=\"button\" data-task=\"{id}\">{id}</button>");
    }
    if finding.ids.len() > IDS {
        let _ = write!(html, " and {} more", finding.ids.len() - IDS);
    }
    if !finding.lines.is_empty() {
        let numbers: Vec<String> = finding.lines.iter().take(LINES).map(ToString::to_string).collect();
        let more = finding.lines.len().saturating_sub(LINES);
        let more = if more > 0 { format!(" and {more} more") } else { String::new() };
        let name = if finding.lines.len() == 1 { "line" } else { "lines" };
        let _ = write!(html, "<details><summary>ledger {name} {}{more}</summary><pre>", numbers.join(", "));
        for number in finding.lines.iter().take(LINES) {
            let line = number.checked_sub(1).and_then(|index| ledger.get(index));
            let text = line.and_then(|line| serde_json::to_string(line).ok()).unwrap_or("is not there".to_owned());
            let _ = writeln!(html, "{number}: {}", escape(&text));
        }
        html.push_str("</pre></details>");
    }
    html.push_str("</li>\n");
}

/// Text for an element or a quoted attribute.
fn escape(text: &str) -> String {
    let mut escaped = String::with_capacity(text.len());
    for character in text.chars() {
        match character {
            '&' => escaped.push_str("&amp;"),
            '<' => escaped.push_str("&lt;"),
            '>' => escaped.push_str("&gt;"),
            '"' => escaped.push_str("&quot;"),
            '\'' => escaped.push_str("&#39;"),
            '\0' => escaped.push('\u{fffd}'),
            _ => escaped.push(character),
        }
    }
    escaped
}

#[cfg(test)]
mod tests {
    use serde_json::Value;

    use super::super::fact::Fact;
    use super::super::sample;
    use super::*;

    fn data(page: &str) -> Value {
        let (_, after) = page.split_once("id=\"data\">").expect("the data");
        let (data, _) = after.split_once("</script>").expect("its end");
        serde_json::from_str(data).expect("JSON")
    }

    #[test]
    fn the_page_has_the_verdict_and_the_data() {
        let page = document(&sample::ledger(1_100), &sample::broken());
        assert!(page.contains("<title>drill steady: BROKEN</title>"));
        assert!(page.contains("verdict: BROKEN: no task is lost (2)"));
        assert!(
            page.contains("<tr class=\"broken\"><td>P1</td>") && page.contains("<tr class=\"untested\"><td>P5</td>")
        );
        assert!(page.contains("kill-worker 4/4 (3 busy)"));
        assert!(page.contains("<summary>ledger lines 12, 40</summary><pre>12: {&quot;at&quot;:"));
        assert_eq!(data(&page)["lanes"].as_array().map(Vec::len), Some(6));
        assert!(!page.contains("@@"));
    }

    #[test]
    fn the_page_needs_nothing_from_outside() {
        let page = document(&sample::ledger(10), &sample::held());
        for foreign in ["http:", "https:", "src=", "href=", "@import", "url(", "fetch("] {
            assert!(!page.contains(foreign), "{foreign}");
        }
        assert!(page.contains("Content-Security-Policy"));
    }

    #[test]
    fn hostile_text_stays_text() {
        let hostile = "</script><script>alert(1)</script><!-- @@data@@ \u{2028}\" onload='x'";
        let mut lines = sample::ledger(20);
        for line in &mut lines {
            match &mut line.fact {
                Fact::Accepted { task_id, .. } => *task_id = hostile.to_owned(),
                Fact::RunEnded { worker, .. } => *worker = hostile.to_owned(),
                Fact::Ordered { what, .. } => *what = hostile.to_owned(),
                _ => {}
            }
        }
        let mut verdict = sample::broken();
        verdict.plan = hostile.to_owned();
        verdict.rows[0].note = hostile.to_owned();
        verdict.rows[0].findings[0].ids = vec![hostile.to_owned()];
        let page = document(&lines, &verdict);
        let (markup, _) = page.split_once("id=\"data\">").expect("the data");
        assert!(!page.contains("<script>alert") && !page.contains("<!-- @@") && !markup.contains("\" onload"));
        assert_eq!(page.matches("</script>").count(), PAGE.matches("</script>").count());
        let data = data(&page);
        assert!(data["tasks"].as_array().is_some_and(|tasks| tasks.iter().any(|task| task == hostile)));
    }

    #[test]
    fn ten_thousand_findings_do_not_fill_the_page() {
        let mut verdict = sample::broken();
        verdict.rows[0].findings = sample::findings(10_000, 3);
        let page = document(&sample::ledger(1_000), &verdict);
        assert!(page.contains("<li>and 9950 more</li>"));
        assert!(page.len() < 3_000_000, "{} bytes", page.len());
    }

    #[test]
    fn an_empty_run_has_a_page() {
        let conclusion = Conclusion::CouldNotRun("no gateway".to_owned());
        let page = document(&[], &Verdict { conclusion, rows: Vec::new(), faults: Vec::new(), ..sample::held() });
        assert!(page.contains("COULD NOT RUN") && data(&page)["end"] == 0);
    }
}
