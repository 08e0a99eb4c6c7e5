//! Made-up ledgers: a healthy run of a fleet, and changes to break it.
//!
//! The healthy run has three workers, two gateways, and ten requests of 10 ms per second from second 1 to 11. It tests
//! most of the promises once. Its lines need no order of time.

use serde_json::{Map, json};

use lastcall::task::Receipt;

use super::super::fact::{Answer, Begin, Ending, Fact, Kind, Line};
use super::super::judgement::{Row, State, Verdict};
use super::super::texts::AFTERWARDS;
use super::judge;

/// Requests of the healthy run that were in flight at a kill and at a stop.
pub(super) const KILLED: u64 = 500;
pub(super) const BUSY: u64 = 501;
/// When the topics of the healthy run are read.
pub(super) const AUDIT: f64 = 21.0;

/// A ledger under construction.
#[derive(Clone)]
pub(super) struct Sample {
    pub(super) lines: Vec<Line>,
    offset: i64,
}

/// The task id of a request, a UUIDv7 as in a real run.
pub(super) fn id(number: u64) -> String {
    format!("0190163d-8694-739b-8ea5-{number:012x}")
}

fn digest(number: u64) -> String {
    format!("{number:08x}")
}

/// The receipt of a worker that drained after a SIGTERM.
pub(super) fn drained(worker: &str, took: f64) -> Receipt {
    let mut phases_ms = Map::new();
    for name in ["drain", "total"] {
        phases_ms.insert(name.to_owned(), json!((took * 1e3) as u64));
    }
    Receipt {
        worker_id: worker.to_owned(),
        signal: "SIGTERM".to_owned(),
        outcome: "drained".to_owned(),
        phases_ms,
        ..Receipt::default()
    }
}

/// The receipt of a worker that abandoned these tasks at its deadline.
pub(super) fn abandoned(worker: &str, took: f64, tasks: &[u64]) -> Receipt {
    let tasks_abandoned = tasks.iter().map(|number| id(*number)).collect();
    Receipt { outcome: "abandoned".to_owned(), exit_code: 3, tasks_abandoned, ..drained(worker, took) }
}

/// The receipt of a worker that abandoned these tasks at a second signal.
pub(super) fn forced(worker: &str, took: f64, tasks: &[u64]) -> Receipt {
    Receipt { outcome: "forced".to_owned(), exit_code: 4, ..abandoned(worker, took, tasks) }
}

impl Sample {
    /// Only the first line.
    pub(super) fn empty(owns_processes: bool) -> Self {
        let begin = Begin {
            plan: "test".to_owned(),
            target: "native, embedded broker".to_owned(),
            owns_processes,
            owns_broker: owns_processes,
            max_deliveries: 5,
            lock_ms: 15_000,
            drain_timeout_ms: 6000,
            gateway_grace_ms: 30_000,
            worker_timeout_ms: 5000,
            concurrency: 1,
            ..Begin::default()
        };
        Self { lines: vec![Line { at: 0.0, fact: Fact::Begin(begin) }], offset: 0 }
    }

    /// A fleet that starts, works and stops, without actions.
    pub(super) fn calm() -> Self {
        let mut sample = Self::empty(true);
        for process in ["broker", "gateway_1", "gateway_2", "worker_1", "worker_2", "worker_3"] {
            sample.start(process, 0.1);
        }
        for number in 0..100 {
            let worker = format!("worker_{}", 1 + number % 3);
            sample.task(number, &worker, 1.0 + number as f64 / 10.0, 10);
        }
        for gateway in ["gateway_1", "gateway_2"] {
            sample.view(gateway, 0.5, &["worker_1", "worker_2", "worker_3"]);
        }
        sample.put(11.0, Fact::LoadEnded);
        sample.put(19.0, Fact::Healed);
        for number in 0..4 {
            sample.task(AFTERWARDS + number, "worker_3", 19.1 + number as f64 / 10.0, 0);
        }
        for worker in ["worker_1", "worker_2", "worker_3"] {
            sample.stop(worker, 20.0, 0.05);
        }
        for gateway in ["gateway_1", "gateway_2"] {
            sample.view(gateway, 20.1, &[]);
            sample.signal(gateway, 20.2, "SIGTERM").exit(gateway, 20.22, Some(0), None, None);
        }
        sample.put(AUDIT, Fact::Lag { tasks: 0 });
        sample.put(AUDIT + 1.0, Fact::End(Ending { audited: true, ..Ending::default() }));
        sample
    }

    /// The calm run with a broker of three nodes, where an outage costs no locks of later runs.
    pub(super) fn of_cluster() -> Self {
        let mut sample = Self::calm();
        sample.change(|line| {
            if let Fact::Begin(begin) = &mut line.fact {
                begin.brokers = 3;
            }
        });
        sample
    }

    /// The calm run with restarts of an idle worker, a busy worker and a gateway, and a kill.
    pub(super) fn healthy() -> Self {
        let mut sample = Self::calm();
        sample.order(1, "restart-worker", "worker_1", 5.03).stop("worker_1", 5.03, 0.04).start("worker_1", 5.08);
        // In flight at the signal, and finished.
        sample.order(2, "restart-worker", "worker_2", 7.05).drop_tasks_of("worker_2", 7.0, 7.7);
        sample.task(BUSY, "worker_2", 6.98, 500);
        let receipt = Receipt { tasks_finished: 1, ..drained("worker_2", 0.46) };
        sample.stop_with("worker_2", 7.05, 0.46, &receipt).start("worker_2", 7.52);
        sample.order(3, "kill-worker", "worker_3", 9.0).drop_tasks_of("worker_3", 8.9, 9.5);
        sample.submit(KILLED, 8.98, 50).accept(KILLED, 8.981).begin(KILLED, "worker_3", 8.99, 1);
        sample.kill("worker_3", 9.0).start("worker_3", 9.3);
        sample.begin(KILLED, "worker_1", 9.005, 2).result(KILLED, "worker_1", 9.06, 0.05);
        sample.answer(KILLED, "worker_1", 9.065);
        sample.order(4, "restart-gateway", "gateway_1", 16.4);
        sample.signal("gateway_1", 16.4, "SIGTERM").exit("gateway_1", 16.42, Some(0), None, None);
        sample.start("gateway_1", 16.5).view("gateway_1", 16.7, &["worker_1", "worker_2", "worker_3"]);
        sample
    }

    /// The calm run of a fleet that others started: status records and results only.
    pub(super) fn hearsay() -> Self {
        let mut sample = Self::empty(false);
        for worker in ["worker_1", "worker_2", "worker_3"] {
            sample.beats(worker, 1, 0.3, 20.9);
        }
        for number in 0..100 {
            let worker = format!("worker_{}", 1 + number % 3);
            sample.task(number, &worker, 1.0 + number as f64 / 10.0, 10);
        }
        sample.remove(|fact| matches!(fact, Fact::RunBegan { .. }));
        sample.view("gateway_1", 0.5, &["worker_1", "worker_2", "worker_3"]);
        sample.put(11.0, Fact::LoadEnded);
        sample.put(AUDIT, Fact::Lag { tasks: 0 });
        sample.put(AUDIT + 1.0, Fact::End(Ending { audited: true, ..Ending::default() }));
        sample
    }

    pub(super) fn put(&mut self, at: f64, fact: Fact) -> &mut Self {
        self.lines.push(Line { at, fact });
        self
    }

    /// Adds a record; Kafka dates records in whole milliseconds.
    fn record(&mut self, at: f64, fact: impl FnOnce(i64) -> Fact) -> &mut Self {
        self.offset += 1;
        let fact = fact(self.offset);
        self.put((at * 1e3).floor() / 1e3, fact)
    }

    pub(super) fn remove(&mut self, is: impl Fn(&Fact) -> bool) -> &mut Self {
        self.lines.retain(|line| !is(&line.fact));
        self
    }

    pub(super) fn change(&mut self, mut change: impl FnMut(&mut Line)) -> &mut Self {
        self.lines.iter_mut().for_each(&mut change);
        self
    }

    /// Removes this worker's tasks that started in this interval.
    pub(super) fn drop_tasks_of(&mut self, worker: &str, from: f64, until: f64) -> &mut Self {
        let began = |line: &Line| match &line.fact {
            Fact::RunBegan { worker: by, task_id, .. } if by == worker && (from..until).contains(&line.at) => {
                Some(task_id.clone())
            }
            _ => None,
        };
        let ids: Vec<String> = self.lines.iter().filter_map(began).collect();
        let numbers: Vec<u64> = (0..1000).filter(|number| ids.contains(&id(*number))).collect();
        self.remove(|fact| match fact {
            Fact::Submitted { number, .. } | Fact::Answered { number, .. } => numbers.contains(number),
            Fact::Accepted { task_id, .. } | Fact::RunBegan { task_id, .. } | Fact::RunEnded { task_id, .. } => {
                ids.contains(task_id)
            }
            _ => false,
        })
    }

    pub(super) fn start(&mut self, process: &str, at: f64) -> &mut Self {
        self.put(at, Fact::Started { process: process.to_owned(), pid: 7 });
        self.put(at + 0.1, Fact::Ready { process: process.to_owned() });
        if process.starts_with("worker") {
            self.say(process, at as u64, at + 0.1, "worker_started", None);
        }
        self
    }

    pub(super) fn order(&mut self, action: u32, what: &str, target: &str, at: f64) -> &mut Self {
        let (what, target) = (what.to_owned(), Some(target.to_owned()));
        self.put(at - 0.001, Fact::Ordered { action, what, target, detail: String::new() });
        self.put(at + 0.5, Fact::Carried { action, done: true, detail: String::new() })
    }

    /// Adds a signal, of the action on this process that was ordered at this time, if there is one.
    pub(super) fn signal(&mut self, process: &str, at: f64, signal: &str) -> &mut Self {
        let action = self.lines.iter().rev().find_map(|line| match &line.fact {
            Fact::Ordered { action, target, .. }
                if target.as_deref() == Some(process) && (line.at - at).abs() < 0.01 =>
            {
                Some(*action)
            }
            _ => None,
        });
        self.put(at, Fact::Signalled { process: process.to_owned(), signal: signal.to_owned(), action, until: None })
    }

    pub(super) fn exit(
        &mut self,
        process: &str,
        at: f64,
        code: Option<i32>,
        signal: Option<i32>,
        receipt: Option<Receipt>,
    ) -> &mut Self {
        let receipt = receipt.map(|receipt| json!(receipt));
        self.put(at, Fact::Exited { process: process.to_owned(), pid: 7, code, signal, receipt })
    }

    pub(super) fn kill(&mut self, process: &str, at: f64) -> &mut Self {
        self.signal(process, at, "SIGKILL").exit(process, at + 0.002, None, Some(9), None)
    }

    pub(super) fn freeze(&mut self, process: &str, from: f64, until: f64) -> &mut Self {
        self.signal(process, from, "SIGSTOP").signal(process, until, "SIGCONT")
    }

    pub(super) fn stop(&mut self, worker: &str, at: f64, took: f64) -> &mut Self {
        self.stop_with(worker, at, took, &drained(worker, took))
    }

    pub(super) fn stop_with(&mut self, worker: &str, at: f64, took: f64, receipt: &Receipt) -> &mut Self {
        self.signal(worker, at, "SIGTERM");
        self.say(worker, 0, at + 0.002, "shutdown_started", None);
        self.say(worker, 0, at + took - 0.002, "shutdown_completed", Some(receipt.clone()));
        self.exit(worker, at + took, Some(receipt.exit_code.into()), None, Some(receipt.clone()))
    }

    pub(super) fn say(
        &mut self,
        worker: &str,
        instance: u64,
        at: f64,
        status: &str,
        receipt: Option<Receipt>,
    ) -> &mut Self {
        let (worker, instance, status) = (worker.to_owned(), instance.to_string(), status.to_owned());
        self.record(at, |offset| Fact::Notified {
            worker,
            instance,
            status,
            current_tasks: Vec::new(),
            receipt: receipt.map(|receipt| json!(receipt)),
            offset,
        })
    }

    /// A heartbeat a second.
    pub(super) fn beats(&mut self, worker: &str, instance: u64, from: f64, until: f64) -> &mut Self {
        let mut at = from;
        while at < until {
            self.say(worker, instance, at, "worker_started", None);
            at += 1.0;
        }
        self
    }

    pub(super) fn view(&mut self, gateway: &str, at: f64, active: &[&str]) -> &mut Self {
        let active = active.iter().map(|id| (*id).to_owned()).collect();
        self.put(at, Fact::Fleet { gateway: gateway.to_owned(), active, stopping: Vec::new() })
    }

    pub(super) fn submit(&mut self, number: u64, at: f64, work_ms: u64) -> &mut Self {
        let gateway = format!("gateway_{}", 1 + number % 2);
        let (work_ms, repeats, asynchronous, poison) = (Some(work_ms), None, false, false);
        self.put(at, Fact::Submitted { number, gateway, work_ms, repeats, asynchronous, poison })
    }

    pub(super) fn accept(&mut self, number: u64, at: f64) -> &mut Self {
        self.record(at, |offset| Fact::Accepted { number: Some(number), task_id: id(number), partition: 0, offset })
    }

    pub(super) fn begin(&mut self, number: u64, worker: &str, at: f64, delivery: i16) -> &mut Self {
        self.put(at, Fact::RunBegan { worker: worker.to_owned(), task_id: id(number), delivery })
    }

    pub(super) fn result(&mut self, number: u64, worker: &str, at: f64, seconds: f64) -> &mut Self {
        let worker = worker.to_owned();
        self.record(at, |offset| Fact::RunEnded {
            task_id: id(number),
            worker,
            seconds,
            success: true,
            digest: digest(number),
            fault: None,
            partition: 0,
            offset,
        })
    }

    pub(super) fn answer(&mut self, number: u64, worker: &str, at: f64) -> &mut Self {
        let answer = Answer {
            status: Some(200),
            task_id: Some(id(number)),
            worker: Some(worker.to_owned()),
            digest: Some(digest(number)),
            ..Answer::of(Kind::Answered)
        };
        self.put(at, Fact::Answered { number, took_ms: 10.0, answer })
    }

    /// Adds a request that is answered correctly.
    pub(super) fn task(&mut self, number: u64, worker: &str, at: f64, work_ms: u64) -> &mut Self {
        let seconds = work_ms as f64 / 1e3;
        self.submit(number, at, work_ms).accept(number, at + 0.001).begin(number, worker, at + 0.002, 1);
        self.result(number, worker, at + 0.004 + seconds, seconds).answer(number, worker, at + 0.006 + seconds)
    }

    pub(super) fn answered(&mut self, number: u64, with: &Answer) -> &mut Self {
        self.change(|line| match &mut line.fact {
            Fact::Answered { number: of, answer, .. } if *of == number => *answer = with.clone(),
            _ => {}
        })
    }

    pub(super) fn ordered(&self) -> Vec<Line> {
        let mut lines = self.lines.clone();
        lines.sort_by(|one, other| one.at.total_cmp(&other.at));
        lines
    }

    /// The number of the first matching line, counted from 1.
    pub(super) fn line(&self, is: impl Fn(&Fact) -> bool) -> usize {
        self.ordered().iter().position(|line| is(&line.fact)).expect("there is such a line") + 1
    }

    pub(super) fn judged(&self) -> Verdict {
        judge(&self.ordered(), String::new())
    }

    /// The names of the broken rows, without the fleet page: the changes to a sample do not update its views.
    pub(super) fn broken(&self) -> Vec<&'static str> {
        let verdict = self.judged();
        let broken = verdict.rows.iter().filter(|row| row.state == State::Broken).map(|row| row.name);
        broken.filter(|name| *name != super::gateways::PAGE).collect()
    }

    pub(super) fn row(&self, name: &str) -> Row {
        self.judged().rows.into_iter().find(|row| row.name == name).expect("a row of this name")
    }
}
