//! The texts that are printed during the load: the fleet as a table, the counts, and the latencies of the last
//! interval.
//!
//! Pure: values in, text out. Called by `display`.

use std::time::Duration;

use serde_json::Value;

use program::logging::escape;

/// Characters of a task id in the table, from its end: the ends differ between tasks of the same moment.
const SHORT: usize = 12;

/// `GET /workers/status` as aligned lines.
pub(super) fn table(status: &Value) -> Vec<String> {
    let header = ["worker", "status", "current task", "updated", "responsive"].map(str::to_owned);
    let workers = status.get("workers").and_then(Value::as_object);
    let rows = workers.into_iter().flatten().map(|(id, worker)| {
        let text = |name: &str| worker.get(name).and_then(Value::as_str);
        let age = worker.get("seconds_since_update").and_then(Value::as_i64);
        let responsive = worker.get("is_responsive").and_then(Value::as_bool);
        [
            escape(id).to_string(),
            escape(text("status").unwrap_or("?")).to_string(),
            escape(text("current_task").map_or("-", short)).to_string(),
            age.map_or("?".to_owned(), |age| format!("{age} s ago")),
            if responsive == Some(true) { "yes".to_owned() } else { "no".to_owned() },
        ]
    });
    align(std::iter::once(header).chain(rows).collect())
}

/// The fleet in a few words, from the same response.
pub(super) fn fleet(status: &Value) -> String {
    let count = |name: &str| status.get(name).and_then(Value::as_u64).unwrap_or_default();
    format!("workers {} active, {} draining", count("active_workers"), count("shutting_down_workers"))
}

fn short(id: &str) -> &str {
    let skipped = id.chars().count().saturating_sub(SHORT);
    id.char_indices().nth(skipped).and_then(|(start, _)| id.get(start..)).unwrap_or(id)
}

fn align<const N: usize>(rows: Vec<[String; N]>) -> Vec<String> {
    let width = |column: usize| {
        rows.iter().filter_map(|row| row.get(column)).map(|cell| cell.chars().count()).max().unwrap_or_default()
    };
    let widths: Vec<usize> = (0..N).map(width).collect();
    let line = |row: &[String; N]| {
        let cells = row.iter().zip(&widths).map(|(cell, width)| format!("{cell:width$}"));
        cells.collect::<Vec<_>>().join("  ").trim_end().to_owned()
    };
    rows.iter().map(line).collect()
}

/// The counts of one moment.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Counts {
    pub(super) sent: u64,
    pub(super) waiting: u64,
    pub(super) answered: u64,
    pub(super) refused: u64,
    pub(super) unknown: u64,
    pub(super) failed: u64,
    pub(super) late: u64,
}

/// The counts on one line.
pub(super) fn counts(counts: Counts) -> String {
    let Counts { sent, waiting, answered, refused, unknown, failed, late } = counts;
    format!(
        "sent {sent}  waiting {waiting}  answered {answered}  refused {refused}  unknown {unknown}  failed {failed}  \
         late {late}"
    )
}

/// Answers per second of the interval, and their latencies.
pub(super) fn speed(interval: Duration, latencies: &mut [Duration]) -> String {
    let rate = latencies.len() as f64 / interval.as_secs_f64().max(0.001);
    latencies.sort_unstable();
    let shown = |percent| percentile(latencies, percent).map_or("-".to_owned(), milliseconds);
    format!("{rate:.1}/s  p50 {}  p99 {}", shown(50), shown(99))
}

/// The nearest-rank percentile of sorted values.
fn percentile(sorted: &[Duration], percent: usize) -> Option<Duration> {
    let rank = (sorted.len() * percent).div_ceil(100);
    sorted.get(rank.max(1) - 1).copied()
}

fn milliseconds(duration: Duration) -> String {
    format!("{:.1} ms", duration.as_secs_f64() * 1e3)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn table_is_aligned() {
        let status = json!({"total_workers": 2, "workers": {
            "a": {"status": "worker_started", "current_task": null, "seconds_since_update": 0, "is_responsive": true},
            "worker_10": {"status": "shutdown_started", "current_task": "0190163d-8694-739b-aea5-966c26f8ad91",
                "seconds_since_update": 12, "is_responsive": false},
        }});
        assert_eq!(
            table(&status),
            [
                "worker     status            current task  updated   responsive",
                "a          worker_started    -             0 s ago   yes",
                "worker_10  shutdown_started  966c26f8ad91  12 s ago  no",
            ]
        );
        assert_eq!(table(&Value::Null).len(), 1);
    }

    #[test]
    fn percentiles_are_measured_values() {
        let values: Vec<Duration> = (1..=200).map(Duration::from_millis).collect();
        assert_eq!(percentile(&values, 50), Some(Duration::from_millis(100)));
        assert_eq!(percentile(&values, 99), Some(Duration::from_millis(198)));
        assert_eq!(percentile(&[Duration::ZERO], 99), Some(Duration::ZERO));
        assert_eq!(percentile(&[], 50), None);
    }

    #[test]
    fn counts_and_speed_take_one_line_each() {
        let line = counts(Counts { sent: 3, answered: 2, unknown: 1, ..Counts::default() });
        assert_eq!(line, "sent 3  waiting 0  answered 2  refused 0  unknown 1  failed 0  late 0");
        let latencies = &mut [Duration::from_millis(3), Duration::from_millis(1)];
        assert_eq!(speed(Duration::from_secs(2), latencies), "1.0/s  p50 1.0 ms  p99 3.0 ms");
        assert_eq!(speed(Duration::ZERO, &mut []), "0.0/s  p50 -  p99 -");
    }
}
