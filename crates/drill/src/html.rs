//! The run as one page for a browser: the verdict, and the timeline of every process, task and action.
//!
//! Pure: a ledger and its verdict in, a document out. The page is self-contained, and its own policy forbids it to load
//! or send anything. The verdict is plain HTML; the script in `timeline.html` draws the data of `timeline`. Called by
//! `output`.

use super::fact::Line;
use super::judgement::{Conclusion, Finding, Row, Totals, Verdict};
use super::paper;
use super::timeline::{self, FINDINGS, LINES, TASKS};

/// The template of the page, with the places `@@title@@`, `@@verdict@@` and `@@data@@`.
const PAGE: &str = include_str!("timeline.html");

/// The document. `lines`: the ledger in the order of its lines.
pub(super) fn document(lines: &[Line], verdict: &Verdict) -> String {
    // In a script only its end tag is markup, and in JSON every `<` is part of a string.
    let data = serde_json::to_string(&timeline::draw(lines, verdict, TASKS)).unwrap_or_default();
    let data = data.replace('<', "\\u003c");
    let title = escape(&format!("drill {}: {}", verdict.plan, conclusion(verdict)));
    let mut page = String::new();
    let mut rest = PAGE;
    // Each place is searched in the template only, never in text of the run.
    for (place, text) in [("@@title@@", title), ("@@verdict@@", promises(lines, verdict)), ("@@data@@", data)] {
        if let Some((before, after)) = rest.split_once(place) {
            page.extend([before, &text]);
            rest = after;
        }
    }
    page + rest
}

/// The conclusion as a class of the page.
fn conclusion(verdict: &Verdict) -> &'static str {
    match verdict.conclusion {
        Conclusion::Held => "held",
        Conclusion::Broken => "broken",
        Conclusion::Undecided(_) | Conclusion::CouldNotRun(_) => "undecided",
    }
}

/// The verdict as a table, with the findings below it.
fn promises(lines: &[Line], verdict: &Verdict) -> String {
    let Totals { seconds, p50_ms, p99_ms, worst_ms, undecided, .. } = verdict.totals;
    let (class, seed) = (conclusion(verdict), verdict.seed);
    let [plan, last, target] = [&verdict.plan, &paper::last(verdict), &verdict.target].map(|text| escape(text));
    let mut html = format!("<h1>drill {plan}</h1>\n<p class=\"last {class}\">{last}</p>\n<p>Seed {seed}; {target}; ");
    html += &format!("{seconds:.1} s; answers p50 {p50_ms:.1} ms, p99 {p99_ms:.1} ms, worst {worst_ms:.1} ms; ");
    html += &format!("{undecided} undecided.</p>\n");
    if !verdict.rows.is_empty() {
        let names = ["", "promise", "bound", "worst", "count", "", "note"].map(|name| format!("<th>{name}</th>"));
        let rows: String = verdict.rows.iter().map(promise).collect();
        html += &format!("<table><thead><tr>{}</tr></thead><tbody>\n{rows}</tbody></table>\n", names.concat());
    }
    let faults: Vec<String> = verdict.faults.iter().map(|fault| escape(&paper::fault(fault))).collect();
    if !faults.is_empty() {
        html += &format!("<p>Faults, seen of planned: {}.</p>\n", faults.join(", "));
    }
    if !verdict.ledger.is_empty() {
        html += &format!("<p>Ledger: {}</p>\n", escape(&verdict.ledger));
    }
    for row in verdict.rows.iter().filter(|row| !row.findings.is_empty()) {
        let findings: String = row.findings.iter().take(FINDINGS).map(|finding| told(finding, lines)).collect();
        let more = more(row.findings.len(), FINDINGS);
        html += &format!("<h2>{} {}</h2>\n<ul>\n{findings}</ul>\n<p>{more}</p>\n", row.promise, escape(row.name));
    }
    html
}

fn promise(row: &Row) -> String {
    let state = paper::state(row.state);
    let class = state.to_lowercase();
    let [name, bound, worst, note] = [row.name, &row.bound, &row.worst, &row.note].map(escape);
    // A narrow screen shows the names beside the figures.
    format!(
        "<tr class=\"{class}\"><td>{}</td><td>{name}</td><td data-name=\"bound\">{bound}</td>\
         <td data-name=\"worst\">{worst}</td><td data-name=\"count\" class=\"count\">{}</td>\
         <td class=\"state\">{state}</td><td>{note}</td></tr>\n",
        row.promise, row.count
    )
}

/// A finding with its tasks and its folded ledger lines.
fn told(finding: &Finding, ledger: &[Line]) -> String {
    let button = |id| format!(" <button type=\"button\" data-task=\"{id}\">{id}</button>");
    let ids: String = finding.ids.iter().take(LINES).map(|id| button(escape(id))).collect();
    let line = |number: &usize| {
        let line = number.checked_sub(1).and_then(|index| ledger.get(index));
        let text = line.and_then(|line| serde_json::to_string(line).ok());
        format!("{number}: {}\n", escape(text.as_deref().unwrap_or("is not there")))
    };
    let lines: String = finding.lines.iter().take(LINES).map(line).collect();
    let numbers: Vec<String> = finding.lines.iter().take(LINES).map(ToString::to_string).collect();
    format!(
        "<li>{}{ids}{}<details><summary>Lines of the ledger: {}{}</summary><pre>{lines}</pre></details></li>\n",
        escape(&finding.what),
        more(finding.ids.len(), LINES),
        numbers.join(", "),
        more(finding.lines.len(), LINES)
    )
}

fn more(count: usize, shown: usize) -> String {
    if count > shown { format!(" and {} more", count - shown) } else { String::new() }
}

/// Text for an element or a quoted attribute.
fn escape(text: &str) -> String {
    [("&", "&amp;"), ("<", "&lt;"), (">", "&gt;"), ("\"", "&quot;"), ("'", "&#39;"), ("\0", "\u{fffd}")]
        .iter()
        .fold(text.to_owned(), |text, (plain, escaped)| text.replace(plain, escaped))
}

#[cfg(test)]
mod tests {
    use serde_json::Value;

    use super::super::fact::Fact;
    use super::super::judge::recorded::{Recorded, findings};
    use super::*;

    fn data(page: &str) -> Value {
        let (_, after) = page.split_once("id=\"data\">").expect("the data");
        serde_json::from_str(after.split_once("</script>").expect("its end").0).expect("JSON")
    }

    #[test]
    fn page_has_the_verdict_the_findings_and_the_data_and_needs_nothing_else() {
        let lossy = Recorded::lossy();
        let page = document(&lossy.lines, &lossy.judged());
        for part in [
            "<title>drill recorded: broken</title>",
            "verdict: BROKEN: no task is lost (2)",
            "<tr class=\"broken\"><td>P1</td>",
            "kill-worker 2/2 (2 busy)",
            "<summary>Lines of the ledger: 1144, 1145, 2767</summary><pre>1144: {&quot;at&quot;:",
            "Content-Security-Policy",
        ] {
            assert!(page.contains(part), "{part}");
        }
        for foreign in ["http:", "https:", "src=", "href=", "@import", "url(", "fetch(", "@@", "innerHTML"] {
            assert!(!page.contains(foreign), "{foreign}");
        }
        assert_eq!(data(&page)["lanes"].as_array().map(Vec::len), Some(10));
    }

    #[test]
    fn hostile_text_stays_text() {
        let hostile = "</script><script>alert(1)</script><!-- @@data@@ \u{2028}\" onload='x'";
        let mut lossy = Recorded::lossy();
        let mut verdict = lossy.judged();
        for line in &mut lossy.lines {
            match &mut line.fact {
                Fact::Accepted { task_id, .. } | Fact::RunEnded { task_id, .. } => *task_id = hostile.to_owned(),
                Fact::RunBegan { worker, .. } => *worker = hostile.to_owned(),
                Fact::Ordered { what, .. } => *what = hostile.to_owned(),
                _ => {}
            }
        }
        (verdict.plan, verdict.rows[0].note) = (hostile.to_owned(), hostile.to_owned());
        verdict.rows[0].findings[0].ids = vec![hostile.to_owned()];
        let page = document(&lossy.lines, &verdict);
        let (markup, _) = page.split_once("id=\"data\">").expect("the data");
        assert!(!page.contains("<script>alert") && !page.contains("<!-- @@") && !markup.contains("\" onload"));
        assert_eq!(page.matches("</script>").count(), PAGE.matches("</script>").count());
        let data = data(&page);
        let lanes = data["lanes"].as_array().expect("lanes");
        let named =
            |lane: &Value| lane["items"].as_array().is_some_and(|all| all.iter().any(|item| item["task"] == hostile));
        assert!(lanes.iter().any(named) && lanes.iter().any(|lane| lane["name"] == hostile), "{data}");
    }

    #[test]
    fn page_is_bounded_and_exists_for_a_run_that_could_not_begin() {
        let lossy = Recorded::lossy();
        let mut verdict = lossy.judged();
        verdict.rows[0].findings = findings(10_000, 3);
        let page = document(&lossy.lines, &verdict);
        assert!(page.contains(" and 9950 more") && page.len() < 1_000_000, "{} bytes", page.len());
        let conclusion = Conclusion::CouldNotRun("no gateway".to_owned());
        let page = document(&[], &Verdict { conclusion, rows: Vec::new(), faults: Vec::new(), ..verdict });
        assert!(page.contains("COULD NOT RUN") && data(&page)["end"] == 0.0);
    }
}
