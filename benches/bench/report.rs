//! The report of the bench: figures, notes and faults.

use std::{fmt, time::Duration};

/// One figure.
struct Row {
    name: String,
    value: f64,
    unit: &'static str,
}

/// All figures of a run.
#[derive(Default)]
pub struct Report {
    rows: Vec<Row>,
    notes: Vec<String>,
    /// Wrong or missing responses; with a fault the figures are invalid.
    pub faults: Vec<String>,
}

impl Report {
    /// Adds a figure.
    pub fn add(&mut self, name: impl Into<String>, value: f64, unit: &'static str) {
        self.rows.push(Row { name: name.into(), value, unit });
    }

    /// Adds a line below the table and prints it at once.
    pub fn note(&mut self, note: String) {
        eprintln!("{note}");
        self.notes.push(note);
    }

    /// Adds the faults of one measurement, if there are any.
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
        writeln!(out, "| figure | measured |")?;
        writeln!(out, "|---|---|")?;
        for Row { name, value, unit } in &self.rows {
            writeln!(out, "| {name} | {} {unit} |", round(*value))?;
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

/// Rounds to about three significant digits.
fn round(value: f64) -> String {
    match value {
        value if value >= 100.0 => format!("{value:.0}"),
        value if value >= 10.0 => format!("{value:.1}"),
        value => format!("{value:.2}"),
    }
}

/// Milliseconds of a duration.
pub fn ms(time: Duration) -> f64 {
    time.as_secs_f64() * 1e3
}

/// Rate of `count` events in `time`.
pub fn per_second(count: f64, time: Duration) -> f64 {
    count / time.as_secs_f64().max(1e-3)
}
