//! Verdicts and ledgers like those of a run, for the tests of modules that show them.

use serde_json::json;

use super::fact::{Answer, Begin, Ending, Fact, Kind, Line};
use super::judgement::{Conclusion, Fault, Finding, Row, State, Totals, Verdict};

fn row(promise: &'static str, name: &'static str, bound: &str, worst: &str, count: u64, note: &str) -> Row {
    let state = if count == 0 && worst.is_empty() { State::Untested } else { State::Held };
    let (bound, worst, note) = (bound.to_owned(), worst.to_owned(), note.to_owned());
    Row { promise, name, bound, worst, count, note, state, findings: Vec::new() }
}

pub(crate) fn held() -> Verdict {
    let fault = |action: &str, planned, busy| Fault { action: action.to_owned(), planned, bitten: planned, busy };
    Verdict {
        conclusion: Conclusion::Held,
        cut_short: false,
        plan: "steady".to_owned(),
        seed: 42,
        target: "native, embedded broker".to_owned(),
        totals: Totals {
            seconds: 60.2,
            sent: 160,
            answered: 160,
            p50_ms: 4.2,
            p99_ms: 312.9,
            worst_ms: 741.0,
            ..Totals::default()
        },
        rows: vec![
            row("P1", "no task is lost", "0", "0", 160, ""),
            row("-", "every answer is right", "0", "0", 160, ""),
            row("P2", "no task runs twice", "0", "0", 3, "3 explained: 2 kill, 1 broker"),
            row("P3", "idle worker stops", "< 1 s", "0.12 s", 2, ""),
            row("P4", "busy worker finishes and stops", "its task + 1 s", "0.08 s", 3, ""),
            row("P5", "drain ends at its timeout", "31 s", "", 0, "no task was as long"),
            row("P6", "second signal ends a worker", "< 1 s", "0.03 s", 1, ""),
            row("P7", "stops while Kafka is unavailable", "5 s", "", 0, ""),
            row("P8", "tasks of a killed worker start elsewhere", "< 0.5 s", "0.21 s", 4, ""),
            row("P8b", "tasks of a hung worker start elsewhere", "< 20 s", "15.2 s", 1, ""),
            row("P8c", "poison task is dead-lettered", "5 starts", "", 0, ""),
            row("P9", "gateway answers its callers and stops", "25 s", "0.4 s", 1, ""),
            row("P10", "restarted gateway knows the fleet", "3 s", "0.9 s", 1, ""),
        ],
        faults: vec![fault("kill-worker", 4, 3), fault("restart-worker", 3, 2), fault("freeze-worker", 1, 1)],
        ledger: "target/drill/steady-42.jsonl".to_owned(),
    }
}

/// Two promises broken.
pub(crate) fn broken() -> Verdict {
    let mut verdict = held();
    verdict.conclusion = Conclusion::Broken;
    verdict.totals.answered = 158;
    let finding = |what: &str, id: &str, lines: &[usize]| Finding {
        what: what.to_owned(),
        ids: vec![id.to_owned()],
        lines: lines.to_vec(),
    };
    let findings = [
        (
            0,
            vec![
                finding("accepted, and there is no result", &id(7), &[12, 40]),
                finding("accepted, and there is no result", &id(9), &[14]),
            ],
        ),
        (8, vec![finding("started elsewhere after 1.31 s", &id(90), &[512, 530, 533])]),
    ];
    for (index, findings) in findings {
        if let Some(row) = verdict.rows.get_mut(index) {
            row.worst = if index == 0 { "2".to_owned() } else { "1.31 s".to_owned() };
            (row.state, row.findings) = (State::Broken, findings);
        }
    }
    verdict
}

/// `count` findings with `ids` tasks each.
pub(crate) fn findings(count: u64, ids: u64) -> Vec<Finding> {
    let finding = |number| Finding {
        what: "accepted, and there is no result".to_owned(),
        ids: (0..ids).map(|beside| id(number + beside)).collect(),
        lines: vec![number as usize + 1],
    };
    (0..count).map(finding).collect()
}

/// The task id of a request, with the length and form of a real id.
pub(crate) fn id(number: u64) -> String {
    let spread = number.wrapping_mul(0x9e37_79b9_7f4a_7c15);
    format!(
        "0190163d-{:04x}-7{:03x}-8{:03x}-{:012x}",
        number >> 8,
        spread >> 52,
        spread >> 40 & 0xfff,
        spread & 0xffff_ffff_ffff
    )
}

/// A ledger of `tasks` tasks at 40 per second, with three workers. Every minute one is killed, one restarted and one
/// frozen. As in a real ledger, the records of the topics come last.
pub(crate) fn ledger(tasks: u64) -> Vec<Line> {
    let mut lines = Vec::new();
    let mut topics = Vec::new();
    let mut put = |at: f64, fact: Fact| lines.push(Line { at, fact });
    put(
        0.0,
        Fact::Begin(Begin {
            plan: "steady".to_owned(),
            seed: 42,
            target: "native, embedded broker".to_owned(),
            owns_processes: true,
            max_deliveries: 5,
            lock_ms: 15_000,
            worker_timeout_ms: 5_000,
            concurrency: 1,
            ..Begin::default()
        }),
    );
    let processes = ["broker", "gateway_1", "worker_1", "worker_2", "worker_3"];
    for (process, pid) in processes.into_iter().zip(100..) {
        put(0.01, Fact::Started { process: process.to_owned(), pid });
        put(0.2, Fact::Ready { process: process.to_owned() });
    }
    let length = tasks as f64 / 40.0 + 1.0;
    for number in 0..tasks {
        let (at, task_id) = (1.0 + number as f64 / 40.0, id(number));
        let worker = format!("worker_{}", 1 + number % 3);
        put(at, submitted(number, "gateway_1", None));
        let seconds = 0.01 + (number % 7) as f64 * 0.004;
        if number % 10 == 0 {
            put(at + 0.002, Fact::RunBegan { worker: worker.clone(), task_id: task_id.clone(), delivery: 1 });
        }
        let accepted =
            Fact::Accepted { number: Some(number), task_id: task_id.clone(), partition: 0, offset: number as i64 };
        topics.push(Line { at: at + 0.001, fact: accepted });
        if number == 7 || number == 9 {
            continue;
        }
        let answer = Answer {
            outcome: Kind::Answered,
            status: Some(200),
            task_id: Some(task_id.clone()),
            worker: Some(worker.clone()),
            digest: Some(format!("{number:08x}")),
            ..Answer::of(Kind::Answered)
        };
        put(at + seconds + 0.004, Fact::Answered { number, took_ms: seconds * 1e3 + 4.0, answer });
        topics.push(Line {
            at: at + 0.003 + seconds,
            fact: Fact::RunEnded {
                task_id,
                worker,
                seconds,
                success: true,
                digest: format!("{number:08x}"),
                fault: None,
                partition: 0,
                offset: number as i64,
            },
        });
    }
    let mut action = 0;
    let mut minute = 5.0;
    while minute + 20.0 < length {
        faults(&mut put, minute, &mut action);
        minute += 60.0;
    }
    put(length, Fact::LoadEnded);
    for line in topics {
        put(line.at, line.fact);
    }
    put(length + 0.1, Fact::KafkaAway { until: length + 0.4 });
    put(length + 1.0, Fact::End(Ending::default()));
    lines
}

fn faults(put: &mut impl FnMut(f64, Fact), minute: f64, action: &mut u32) {
    for (what, target, signal, after) in [
        ("kill-worker", "worker_1", "SIGKILL", 0.0),
        ("restart-worker", "worker_2", "SIGTERM", 6.0),
        ("freeze-worker", "worker_3", "SIGSTOP", 10.0),
    ] {
        *action += 1;
        let (at, process) = (minute + after, target.to_owned());
        let (action, detail) = (*action, String::new());
        put(at, Fact::Ordered { action, what: what.to_owned(), target: Some(process.clone()), detail: detail.clone() });
        put(
            at + 0.01,
            Fact::Signalled { process: process.clone(), signal: signal.to_owned(), action: Some(action), until: None },
        );
        let pid = 101;
        if signal == "SIGSTOP" {
            put(at + 5.0, Fact::Signalled { process, signal: "SIGCONT".to_owned(), action: Some(action), until: None });
        } else {
            let drain = if signal == "SIGTERM" { 2.5 } else { 0.02 };
            let receipt = (signal == "SIGTERM").then(|| json!({ "worker_id": process, "outcome": "drained" }));
            let (code, signal) = if receipt.is_some() { (Some(0), None) } else { (None, Some(9)) };
            put(at + drain, Fact::Exited { process: process.clone(), pid, code, signal, receipt });
            put(at + drain + 1.0, Fact::Started { process: process.clone(), pid: pid + 1 });
            put(at + drain + 1.2, Fact::Ready { process });
        }
        put(at + 5.0, Fact::Carried { action, done: true, detail });
    }
}

/// A plain request.
pub(crate) fn submitted(number: u64, gateway: &str, work_ms: Option<u64>) -> Fact {
    Fact::Submitted { number, gateway: gateway.to_owned(), work_ms, repeats: None, asynchronous: false, poison: false }
}

/// A status record, which a ledger of a fleet of others has instead of processes.
pub(crate) fn notified(worker: &str, instance: &str, at: f64, status: &str) -> Line {
    Line {
        at,
        fact: Fact::Notified {
            worker: worker.to_owned(),
            instance: instance.to_owned(),
            status: status.to_owned(),
            current_tasks: Vec::new(),
            receipt: None,
            offset: 0,
        },
    }
}
