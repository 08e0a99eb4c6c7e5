//! Measures the figures of docs/deploy.md with an Apache Kafka, one gateway and three workers on this machine, and
//! checks every response.
//!
//! Run it with `make bench` or `cargo bench`; `--quick` makes short runs that only show that it works. It prints a
//! Markdown table.

#![allow(
    clippy::disallowed_methods,
    clippy::disallowed_macros,
    reason = "a bench has no stop flag to wait for, and prints its figures"
)]

mod load;
mod report;
#[path = "../../tests/suite/support/mod.rs"]
#[allow(dead_code, reason = "shared with the tests, which use the rest")]
mod support;
mod text;
mod usage;

use std::{
    collections::BTreeMap,
    process::ExitCode,
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

use nix::sys::signal::Signal;
use serde_json::json;

use report::{Report, ms, per_second};
use support::{
    Gateway, Rig, SOON, admin, audit, eventually,
    program::{Launch, Program},
};
use text::Text;

/// Times and counts; `--quick` reduces them.
struct Size {
    warm_up: Duration,
    span: Duration,
    waiting_tasks: u64,
    restart_rounds: u32,
    kills: u32,
    idle: Duration,
}

const FULL: Size = Size {
    warm_up: Duration::from_secs(5),
    span: Duration::from_secs(15),
    waiting_tasks: 50_000,
    restart_rounds: 3,
    kills: 7,
    idle: Duration::from_secs(15),
};

const QUICK: Size = Size {
    warm_up: Duration::from_secs(1),
    span: Duration::from_secs(3),
    waiting_tasks: 5_000,
    restart_rounds: 1,
    kills: 2,
    idle: Duration::from_secs(3),
};

fn main() -> ExitCode {
    // `cargo bench` adds `--bench`.
    let arguments: Vec<String> = std::env::args().skip(1).filter(|argument| argument != "--bench").collect();
    let (size, only) = match arguments.iter().map(String::as_str).collect::<Vec<_>>()[..] {
        [] => (FULL, None),
        ["--quick"] => (QUICK, None),
        [only @ ("http" | "drain" | "restart" | "kill" | "idle")] => (FULL, Some(only.to_owned())),
        ["--quick", only @ ("http" | "drain" | "restart" | "kill" | "idle")] => (QUICK, Some(only.to_owned())),
        _ => {
            eprintln!("usage: bench [--quick] [http | drain | restart | kill | idle]");
            return ExitCode::from(2);
        }
    };
    let wanted = |name: &str| only.as_deref().is_none_or(|only| only == name);
    let rig = Rig::for_bench("bench");
    let mut report = Report::default();
    if wanted("idle") {
        measure_idle_memory(&rig, &size, &mut report);
    }
    if wanted("http") {
        measure_requests(&rig, &size, &mut report);
    }
    if wanted("restart") {
        measure_rolling_restart(&rig, &size, &mut report);
    }
    if wanted("kill") {
        measure_kill(&rig, &size, &mut report);
    }
    if wanted("drain") {
        let rig = Rig::beside(&rig, "drain");
        measure_drain(&rig, &size, &mut report);
    }
    println!("{report}");
    if report.faults.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

/// A ready gateway and three ready workers.
struct Stack {
    gateway: Gateway,
    workers: Vec<Program>,
}

impl Stack {
    fn start(rig: &Rig) -> Stack {
        let gateway = rig.start_gateway();
        let workers: Vec<Launch> = (1..=3).map(|number| rig.worker(&format!("worker_{number}"))).collect();
        let workers = workers.iter().map(support::started).collect();
        eventually(SOON, "the gateway sees three workers", || gateway.fleet()["active_workers"] == 3);
        Stack { gateway, workers }
    }

    /// Stops the gateway first, because without workers it would wait for the results of its callers.
    fn stop(mut self) {
        self.gateway.program.signal(Signal::SIGTERM);
        self.gateway.program.wait(SOON);
        for worker in &mut self.workers {
            worker.signal(Signal::SIGTERM);
            worker.wait(SOON);
        }
    }

    fn worker_processes(&self) -> Vec<u32> {
        self.workers.iter().map(Program::id).collect()
    }
}

fn measure_idle_memory(rig: &Rig, size: &Size, report: &mut Report) {
    let stack = Stack::start(rig);
    std::thread::sleep(size.idle);
    let mb = |bytes: u64| bytes as f64 / 1e6;
    let gateway = mb(stack.gateway.program.resident_bytes());
    let worker = stack.workers.iter().map(|worker| mb(worker.resident_bytes())).fold(0.0, f64::max);
    report.add("idle memory, gateway", gateway, "MB");
    report.add("idle memory, worker", worker, "MB");
    stack.stop();
}

fn measure_requests(rig: &Rig, size: &Size, report: &mut Report) {
    let stack = Stack::start(rig);
    for connections in [1, 16, 64, 256] {
        let parties = [
            ("broker", vec![rig.broker().process()]),
            ("gateway", vec![stack.gateway.program.id()]),
            ("workers", stack.worker_processes()),
            ("load", vec![std::process::id()]),
        ];
        let before: Vec<Duration> = parties.iter().map(|(_, processes)| usage::processor_times(processes)).collect();
        let began = Instant::now();
        let figures = load::run(&stack.gateway.address, connections, size.warm_up, size.span);
        let took = began.elapsed().as_secs_f64();
        let shares = parties.iter().zip(before).map(|((name, processes), before)| {
            format!("{name} {:.2}", (usage::processor_times(processes) - before).as_secs_f64() / took)
        });
        let shares = shares.collect::<Vec<_>>().join(", ");
        let name = format!("POST /analyze, {connections} connection{}", if connections == 1 { "" } else { "s" });
        report.check(&name, &figures.errors);
        if figures.latencies.is_empty() {
            report.check(&name, &["no response within the measured time".to_owned()]);
            continue;
        }
        let p50 = ms(figures.quantile(0.5));
        let p99 = ms(figures.quantile(0.99));
        let rate = figures.requests_per_second;
        report.note(format!(
            "{name}: {rate:.0}/s, p50 {p50:.2} ms, p99 {p99:.2} ms, max {:.1} ms, {} responses, {} errors; \
             processors: {shares}",
            ms(figures.quantile(1.0)),
            figures.latencies.len(),
            figures.errors.len(),
        ));
        if connections == 1 {
            report.add(format!("{name}, p50"), p50, "ms");
        } else {
            report.add(&name, rate, "/s");
        }
        if connections == 256 {
            report.add(format!("{name}, p99"), p99, "ms");
        }
    }
    stack.stop();
}

/// Stops and replaces the workers one after another under load.
fn measure_rolling_restart(rig: &Rig, size: &Size, report: &mut Report) {
    let mut stack = Stack::start(rig);
    let load = stack.gateway.load(100, 20);
    load.wait_for(200, SOON);
    let begin = Instant::now();
    for _ in 0..size.restart_rounds {
        for (index, worker) in stack.workers.iter_mut().enumerate() {
            worker.signal(Signal::SIGTERM);
            worker.wait(SOON);
            *worker = rig.start_worker(&format!("worker_{}", index + 1));
            load.wait_for(100, SOON);
        }
    }
    let end = Instant::now();
    let shots = load.finish();
    let bad = shots.iter().filter(|shot| shot.outcome != Ok(200) || shot.fault.is_some());
    report.check("rolling restart", &bad.map(|shot| format!("{shot:?}")).collect::<Vec<_>>());
    let during = shots.iter().filter(|shot| shot.due >= begin && shot.due < end);
    let mut latencies: Vec<Duration> = during.map(|shot| shot.latency).collect();
    latencies.sort_unstable();
    let p99 = ms(load::quantile(&latencies, 0.99));
    let (p50, max) = (ms(load::quantile(&latencies, 0.5)), ms(load::quantile(&latencies, 1.0)));
    report.note(format!(
        "rolling restart under 100/s of 20 ms tasks: {} restarts in {:.1} s, {} requests, p50 {p50:.1} ms, \
         p99 {p99:.1} ms, max {max:.1} ms",
        size.restart_rounds * 3,
        (end - begin).as_secs_f64(),
        latencies.len(),
    ));
    report.add("rolling restart under 100/s of 20 ms tasks, p99", p99, "ms");
    stack.stop();
}

/// Measures from the `kill -9` of a worker that runs a task until the task starts elsewhere: from the kill to the
/// response, less the duration of the task.
fn measure_kill(rig: &Rig, size: &Size, report: &mut Report) {
    let mut stack = Stack::start(rig);
    // Longer than a heartbeat interval, so that the fleet view names the worker.
    let work = Duration::from_secs(3);
    let mut hops = Vec::new();
    for round in 0..size.kills {
        let caller = stack.gateway.call(&format!("round {round}"), work);
        let victim = stack.gateway.wait_until_running(&caller.task, SOON);
        let worker = stack.workers.iter_mut().find(|worker| worker.name() == victim).expect("a worker of this bench");
        let killed = worker.kill();
        *worker = rig.start_worker(&victim);
        let (answer, at) = caller.join();
        // Less than the duration of the task: the killed worker did not run it.
        match (at - killed).checked_sub(work) {
            Some(hop) if answer.status == 200 => hops.push(hop),
            hop => report.check("kill -9", &[format!("{hop:?} {}", answer.text())]),
        }
    }
    hops.sort_unstable();
    if !hops.is_empty() {
        let (p50, max) = (ms(load::quantile(&hops, 0.5)), ms(load::quantile(&hops, 1.0)));
        report.note(format!("kill -9 to restart elsewhere: {} kills, p50 {p50:.0} ms, max {max:.0} ms", hops.len()));
        report.add("kill -9, task restarted elsewhere (worst)", max / 1000.0, "s");
    }
    stack.stop();
}

/// Measures how fast three workers finish tasks that were on the topic before. The times are the broker's timestamps of
/// the results.
fn measure_drain(rig: &Rig, size: &Size, report: &mut Report) {
    // A worker creates the topics and the group with their settings.
    let mut first = rig.start_worker("first");
    first.signal(Signal::SIGTERM);
    first.wait(SOON);
    let texts: BTreeMap<String, Text> =
        (0..size.waiting_tasks).map(|it| (format!("waiting-{it}"), Text::number(it))).collect();
    put_tasks(rig, &texts);
    let begin = SystemTime::now().duration_since(UNIX_EPOCH).expect("a clock after 1970");
    let mut workers: Vec<Program> = (1..=3).map(|number| rig.worker(&format!("worker_{number}")).start()).collect();
    let processes: Vec<u32> = workers.iter().map(Program::id).collect();
    let broker_before = usage::processor_time(rig.broker().process());
    eventually(Duration::from_secs(300), "all results are there", || {
        let records: i64 = audit::end_offsets(rig.broker().address(), &rig.results()).values().sum();
        u64::try_from(records).is_ok_and(|records| records >= size.waiting_tasks)
    });
    let broker = (usage::processor_time(rig.broker().process()) - broker_before).as_secs_f64();
    let programs = usage::processor_times(&processes).as_secs_f64();
    for worker in &mut workers {
        worker.signal(Signal::SIGTERM);
        worker.wait(SOON);
    }
    check_drained(rig, &texts, report);
    let times = result_times(rig);
    let (first, last) = (times[0], times[times.len() - 1]);
    let (all, flowing) = (last.saturating_sub(begin), last - first);
    let count = times.len() as f64;
    report.note(format!(
        "drain of {count} waiting tasks: {:.0}/s from the first result to the last ({:.2} s), \
         {:.0}/s from the start of the workers ({:.2} s); processor seconds: workers {programs:.2}, broker {broker:.2}",
        per_second(count, flowing),
        flowing.as_secs_f64(),
        per_second(count, all),
        all.as_secs_f64(),
    ));
    report.add("waiting tasks drained", per_second(count, flowing), "/s");
    report.add("the same, from the start of the workers", per_second(count, all), "/s");
}

/// Produces the tasks in batches of at most 32 kB, as the gateway does.
fn put_tasks(rig: &Rig, texts: &BTreeMap<String, Text>) {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).expect("a clock after 1970").as_secs_f64();
    let records: Vec<(&String, String)> = texts
        .iter()
        .map(|(id, text)| (id, json!({ "task_id": id, "text": text.text, "timestamp": now }).to_string()))
        .collect();
    let mut producer = audit::Producer::new(rig.broker().address(), &rig.tasks());
    for batch in records.chunks(90) {
        let batch: Vec<_> = batch.iter().map(|(id, value)| (Some(id.as_bytes()), Some(value.as_bytes()))).collect();
        producer.send(&batch);
    }
}

fn check_drained(rig: &Rig, texts: &BTreeMap<String, Text>, report: &mut Report) {
    let audit = rig.audit();
    let mut faults: Vec<String> = audit.ran_again().iter().map(|(id, by)| format!("{id} ran again: {by:?}")).collect();
    for (id, text) in texts {
        let count =
            |member: &str, result: &serde_json::Value| result[member].as_u64().and_then(|it| usize::try_from(it).ok());
        let right = audit.results.get(id).and_then(|results| results.first()).is_some_and(|result| {
            let (chars, words) = (count("chars", result), count("words", result));
            chars.zip(words).is_some_and(|(chars, words)| text.is_counted(chars, words))
        });
        if !right {
            faults.push(format!("{id}: {:?}", audit.results.get(id)));
        }
    }
    report.check("drain", &faults);
}

/// The broker's timestamps of all results, sorted, as time since 1970; the broker uses this machine's clock.
fn result_times(rig: &Rig) -> Vec<Duration> {
    let records = admin::records(rig.broker().address(), &rig.results());
    let results = records
        .iter()
        .filter(|record| record.value.as_deref().is_some_and(|value| value.ends_with(br#""type":"result"}"#)));
    let mut times: Vec<Duration> =
        results.map(|record| Duration::from_millis(u64::try_from(record.timestamp).expect("since 1970"))).collect();
    times.sort_unstable();
    assert!(!times.is_empty(), "no results");
    times
}
