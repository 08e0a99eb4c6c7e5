//! The table that the bench prints, and what went wrong.

use std::{fmt, time::Duration};

/// One figure beside those that it is to be held against.
pub struct Row {
    name: String,
    value: f64,
    unit: &'static str,
    go: f64,
    to_reach: f64,
    higher_is_better: bool,
}

impl Row {
    /// A figure that is the better the lower it is.
    pub fn lower(name: &str, value: f64, unit: &'static str, go: f64, to_reach: f64) -> Row {
        Row { name: name.to_owned(), value, unit, go, to_reach, higher_is_better: false }
    }

    /// A figure that is the better the higher it is.
    pub fn higher(name: &str, value: f64, unit: &'static str, go: f64, to_reach: f64) -> Row {
        Row { name: name.to_owned(), value, unit, go, to_reach, higher_is_better: true }
    }

    /// How many times as good as the other one: above 1 is better.
    fn ratio(&self, other: f64) -> f64 {
        if self.higher_is_better { self.value / other } else { other / self.value }
    }
}

/// Everything that was measured.
#[derive(Default)]
pub struct Report {
    rows: Vec<Row>,
    notes: Vec<String>,
    /// Wrong or missing answers: with any, the figures mean nothing.
    pub faults: Vec<String>,
}

impl Report {
    /// One more figure.
    pub fn add(&mut self, row: Row) {
        self.rows.push(row);
    }

    /// Something that stands below the table; printed at once, too.
    pub fn note(&mut self, note: String) {
        eprintln!("{note}");
        self.notes.push(note);
    }

    /// Takes down the faults of one measurement.
    pub fn check(&mut self, what: &str, faults: &[String]) {
        if let Some(first) = faults.first() {
            let fault = format!("{what}: {} faults, the first: {first}", faults.len());
            eprintln!("{fault}");
            self.faults.push(fault);
        }
    }
}

impl fmt::Display for Report {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(out, "| figure | measured | Go + franz-go | to reach | times as good as Go | as the goal |")?;
        writeln!(out, "|---|---|---|---|---|---|")?;
        for row in &self.rows {
            let figure = |value: f64| format!("{} {}", round(value), row.unit);
            let (measured, go, to_reach) = (figure(row.value), figure(row.go), figure(row.to_reach));
            let (than_go, than_goal) = (row.ratio(row.go), row.ratio(row.to_reach));
            writeln!(out, "| {} | **{measured}** | {go} | {to_reach} | {than_go:.2} | {than_goal:.2} |", row.name)?;
        }
        writeln!(out)?;
        for note in &self.notes {
            writeln!(out, "- {note}")?;
        }
        for fault in &self.faults {
            writeln!(out, "- FAULT: {fault}")?;
        }
        Ok(())
    }
}

/// Two or three digits that mean something.
fn round(value: f64) -> String {
    match value {
        value if value >= 100.0 => format!("{value:.0}"),
        value if value >= 10.0 => format!("{value:.1}"),
        value => format!("{value:.2}"),
    }
}

/// In milliseconds.
pub fn ms(time: Duration) -> f64 {
    time.as_secs_f64() * 1e3
}

/// So many in so long.
pub fn per_second(count: f64, time: Duration) -> f64 {
    count / time.as_secs_f64().max(1e-3)
}
