//! Quiet workers start nothing: after SIGUSR1 a worker takes no task until SIGUSR2.

use super::super::evidence::{Evidence, Life, MOMENT};
use super::super::judgement::Row;
use super::{Tally, shown};

/// The name of the row.
pub(super) const NAME: &str = "quiet workers start no task";
/// A worker that becomes quiet may still start what it has fetched, if all of it takes less than 100 ms, and a task
/// whose start it is writing to Kafka.
const SETTLED: f64 = 1.0;

/// The row, if a worker was quiet.
pub(super) fn row(evidence: &Evidence<'_>) -> Option<Row> {
    let mut tally = Tally::new("-", NAME, "0 started");
    for life in evidence.workers.values().flatten() {
        for (from, until) in &life.quiet {
            let until = until.min(life.works_until()).min(evidence.end);
            judge(evidence, life, (*from, until), &mut tally);
        }
    }
    (tally.count > 0).then(|| tally.counted())
}

fn judge(evidence: &Evidence<'_>, life: &Life<'_>, (from, until): (f64, f64), tally: &mut Tally) {
    // Without its notification nothing shows that the worker was quiet; another row says that the action had no effect.
    let Some((_, said)) = said_quiet(evidence, life, from, until) else { return };
    tally.count += 1;
    let (begin, end) = (said + SETTLED, until - MOMENT);
    for held in evidence.runs_during(life.process, begin, end) {
        let began = held.run.began;
        if began < begin || began > end || began < life.from {
            continue;
        }
        let what = format!("{} started a task {} after it had become quiet", life.process, shown(began - said));
        tally.broken(what, vec![held.id.to_owned(), life.process.to_owned()], held.story.lines());
    }
}

/// The first `worker_quiet` of this process between these times: its line and its time.
pub(super) fn said_quiet(evidence: &Evidence<'_>, life: &Life<'_>, from: f64, until: f64) -> Option<(usize, f64)> {
    let notices = evidence.notices.get(life.process).map(Vec::as_slice).unwrap_or_default();
    let said = notices.iter().find(|it| it.status == "worker_quiet" && it.at >= from - MOMENT && it.at <= until);
    said.map(|notice| (notice.line, notice.at))
}
