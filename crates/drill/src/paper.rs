//! The verdict for people: a table of the promises, the faults, the load, the findings, and one line that sums it up.
//!
//! Pure: a verdict in, lines out. Nothing is cut or wrapped, so ids stay whole and scripts can search each line; the
//! table takes about 100 columns. Findings, ids and lines beyond a limit are counted. Scripts read the last line.

use program::logging::escape;

use super::judgement::{Conclusion, Fault, Finding, Row, State, Totals, Verdict};

/// Most findings of one promise, and most ids and ledger lines of one finding.
const FINDINGS: usize = 10;
const IDS: usize = 5;
const LINES: usize = 10;
/// The rows whose numbers are in the last line.
const LOST: &str = "no task is lost";
const DUPLICATES: &str = "no task runs twice";

/// The verdict in lines.
pub(super) fn lines(verdict: &Verdict) -> Vec<String> {
    let Verdict { plan, seed, target, totals, rows, faults, ledger, .. } = verdict;
    let mut lines = vec![format!("drill {}: seed {seed}, {}", escape(plan), escape(target))];
    lines.extend(table(rows));
    if !faults.is_empty() {
        let told: Vec<String> = faults.iter().map(fault).collect();
        lines.push(format!("faults: {}", told.join(", ")));
    }
    lines.push(load(totals));
    lines.extend(rows.iter().filter(|row| row.state == State::Broken).flat_map(broken));
    if !ledger.is_empty() {
        lines.push(format!("ledger: {}", escape(ledger)));
    }
    lines.push(last(verdict));
    lines
}

/// The state of a promise as text; `BROKEN` is in capitals.
pub(super) fn state(state: State) -> &'static str {
    match state {
        State::Held => "held",
        State::Broken => "BROKEN",
        State::Untested => "untested",
    }
}

/// The rows as a table. A line ends in the count and the state of its row; the note is on a line of its own.
fn table(rows: &[Row]) -> Vec<String> {
    let header = ["", "promise", "bound", "worst", "count", "", ""].map(str::to_owned);
    let cells = rows.iter().map(|row| {
        let worst = if row.worst.is_empty() { "-" } else { &row.worst };
        let count = row.count.to_string();
        [row.promise, row.name, &row.bound, worst, &count, state(row.state), &row.note]
            .map(|cell| escape(cell).to_string())
    });
    let cells: Vec<[String; 7]> = (!rows.is_empty()).then_some(header).into_iter().chain(cells).collect();
    let mut widths = [0; 7];
    for row in &cells {
        for (widest, cell) in widths.iter_mut().zip(row) {
            *widest = cell.chars().count().max(*widest);
        }
    }
    let [p, n, b, w, c, ..] = widths;
    let told = |[promise, name, bound, worst, count, state, note]: &[String; 7]| {
        let line = format!("{promise:p$}  {name:n$}  {bound:b$}  {worst:w$}  {count:>c$}  {state}");
        let note = (!note.is_empty()).then(|| format!("{:p$}    {note}", ""));
        [Some(line.trim_end().to_owned()), note]
    };
    cells.iter().flat_map(told).flatten().collect()
}

/// `kill-worker 4/4 (3 busy)`: took effect, planned.
pub(super) fn fault(fault: &Fault) -> String {
    let busy = if fault.busy > 0 { format!(" ({} busy)", fault.busy) } else { String::new() };
    format!("{} {}/{}{busy}", escape(&fault.action), fault.bitten, fault.planned)
}

fn load(totals: &Totals) -> String {
    let Totals { seconds, sent, answered, undecided, p50_ms, p99_ms, worst_ms, .. } = totals;
    let undecided = if *undecided > 0 { format!(", {undecided} undecided") } else { String::new() };
    let latency = if *answered > 0 {
        format!("; answers p50 {p50_ms:.1} ms, p99 {p99_ms:.1} ms, worst {worst_ms:.1} ms")
    } else {
        String::new()
    };
    format!("load: {sent} sent, {answered} answered{undecided}{} in {seconds:.1} s{latency}", beside(totals))
}

fn broken(row: &Row) -> Vec<String> {
    let mut lines = vec![format!("{} {} {}:", state(row.state), row.promise, row.name)];
    lines.extend(row.findings.iter().take(FINDINGS).map(|finding| format!("  {}", told(finding))));
    lines.extend(more(row.findings.len(), FINDINGS).map(|more| format!("  {more}")));
    lines
}

/// A finding on one line, with its ids and ledger lines.
fn told(finding: &Finding) -> String {
    let mut text = escape(&finding.what).to_string();
    let ids = finding.ids.iter().map(|id| escape(id).to_string());
    let lines = finding.lines.iter().map(ToString::to_string);
    for (name, items, shown) in [
        ("", ids.collect::<Vec<_>>(), IDS),
        (if finding.lines.len() == 1 { "ledger line " } else { "ledger lines " }, lines.collect(), LINES),
    ] {
        if !items.is_empty() {
            let mut some: Vec<String> = items.iter().take(shown).cloned().collect();
            some.extend(more(items.len(), shown));
            text = format!("{text}; {name}{}", some.join(", "));
        }
    }
    text
}

fn more(count: usize, shown: usize) -> Option<String> {
    (count > shown).then(|| format!("and {} more", count - shown))
}

fn beside(totals: &Totals) -> String {
    [(totals.refused, "refused"), (totals.late, "late")]
        .into_iter()
        .filter(|(count, _)| *count > 0)
        .map(|(count, name)| format!(", {count} {name}"))
        .collect()
}

/// The last line, for people and scripts.
pub(super) fn last(verdict: &Verdict) -> String {
    let Totals { sent, answered, .. } = verdict.totals;
    let beside = beside(&verdict.totals);
    let cut = if verdict.cut_short { "cut short by a signal; " } else { "" };
    let row = |name: &str| verdict.rows.iter().find(|row| row.name == name);
    match &verdict.conclusion {
        Conclusion::Held => {
            let lost = row(LOST).map_or(0, |row| row.findings.len());
            let duplicates = match row(DUPLICATES).map_or(0, |row| row.count) {
                0 => "0 duplicate runs".to_owned(),
                1 => "1 duplicate run, explained".to_owned(),
                count => format!("{count} duplicate runs, explained"),
            };
            format!("verdict: HELD: {cut}{sent} sent, {answered} answered, {lost} lost, 0 wrong, {duplicates}{beside}")
        }
        Conclusion::Broken => {
            let broken = verdict.rows.iter().filter(|row| row.state == State::Broken);
            let names: Vec<String> = broken.map(|row| format!("{} ({})", row.name, row.findings.len())).collect();
            format!("verdict: BROKEN: {cut}{} ({sent} sent, {answered} answered{beside})", names.join(", "))
        }
        Conclusion::Undecided(why) => {
            format!("verdict: UNDECIDED: {cut}{} ({sent} sent, {answered} answered{beside})", escape(why))
        }
        Conclusion::CouldNotRun(why) => {
            format!("verdict: COULD NOT RUN: {cut}{} ({sent} sent, {answered} answered{beside})", escape(why))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::judge::recorded::{Recorded, findings};
    use super::*;

    fn held() -> Verdict {
        Recorded::new().judged()
    }

    fn broken() -> Verdict {
        Recorded::lossy().judged()
    }

    #[test]
    fn each_row_ends_in_its_count_and_state_with_its_note_below() {
        let verdict = held();
        let lines = lines(&verdict);
        for row in &verdict.rows {
            let (name, end) = (format!("  {}  ", row.name), format!("{}  {}", row.count, state(row.state)));
            let at = lines.iter().position(|line| line.contains(&name) && line.ends_with(&end)).expect(row.name);
            assert!(lines[at].starts_with(row.promise) && lines[at].chars().count() <= 100, "{}", lines[at]);
            assert!(row.note.is_empty() || lines[at + 1].trim_start() == row.note, "{}", lines[at + 1]);
        }
        assert!(lines.iter().any(|line| line.contains("kill-worker 2/2 (2 busy)")));
    }

    #[test]
    fn last_line_has_its_exact_form() {
        let mut verdict = held();
        verdict.totals = Totals { sent: 160, answered: 160, ..Totals::default() };
        verdict.rows.iter_mut().find(|row| row.name == DUPLICATES).expect("the row").count = 3;
        let line = "verdict: HELD: 160 sent, 160 answered, 0 lost, 0 wrong, ";
        assert_eq!(last(&verdict), format!("{line}3 duplicate runs, explained"));
        verdict.rows.iter_mut().find(|row| row.name == DUPLICATES).expect("the row").count = 0;
        assert_eq!(last(&verdict), format!("{line}0 duplicate runs"));
        (verdict.totals.refused, verdict.totals.late) = (5, 2);
        assert_eq!(last(&verdict), format!("{line}0 duplicate runs, 5 refused, 2 late"));
        verdict.cut_short = true;
        assert!(last(&verdict).starts_with("verdict: HELD: cut short by a signal; 160 sent, "));
        verdict.conclusion = Conclusion::Undecided("Kafka\ncould not be read".to_owned());
        verdict.cut_short = false;
        let sums = "(160 sent, 160 answered, 5 refused, 2 late)";
        assert_eq!(last(&verdict), format!("verdict: UNDECIDED: Kafka\\ncould not be read {sums}"));
        verdict.conclusion = Conclusion::CouldNotRun("no gateway".to_owned());
        assert_eq!(last(&verdict), format!("verdict: COULD NOT RUN: no gateway {sums}"));
        let mut verdict = Verdict { totals: verdict.totals, ..broken() };
        (verdict.rows[1].state, verdict.rows[1].findings) = (State::Broken, findings(1, 1));
        let broken = "verdict: BROKEN: no task is lost (2), every result can be fetched (1) ";
        assert_eq!(last(&verdict), format!("{broken}{sums}"));
    }

    #[test]
    fn findings_have_ids_and_lines_and_the_rest_is_counted() {
        let mut verdict = broken();
        let lines_of = |verdict: &Verdict| lines(verdict).join("\n");
        assert!(lines_of(&verdict).contains("ledger lines 1144, 1145, 2767"), "{}", lines_of(&verdict));
        verdict.rows[0].findings = findings(10_000, 7);
        let text = lines_of(&verdict);
        assert!(text.contains("\n  and 9990 more") && text.contains(", and 2 more; "), "{text}");
        assert!(lines(&verdict).len() < 60);
    }

    #[test]
    fn text_from_outside_cannot_fake_a_line() {
        let mut verdict = broken();
        verdict.rows[0].findings[0].ids = vec!["a\nverdict: HELD: \u{1b}[2J".to_owned()];
        verdict.plan = "p\r\n".to_owned();
        let lines = lines(&verdict);
        assert!(lines.iter().all(|line| line.chars().all(|character| !character.is_control())), "{lines:#?}");
        assert_eq!(lines.iter().filter(|line| line.starts_with("verdict:")).count(), 1);
    }

    #[test]
    fn empty_verdict_has_its_last_line() {
        let verdict = Verdict { rows: Vec::new(), faults: Vec::new(), ledger: String::new(), ..held() };
        assert_eq!(lines(&verdict).len(), 3);
        assert_eq!(lines(&verdict).last(), Some(&last(&verdict)));
    }
}
