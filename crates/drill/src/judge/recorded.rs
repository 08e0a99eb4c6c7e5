//! Two ledgers of real runs, and the changes that the tables of mutations make to them. The tests of the pages use
//! them, too.
//!
//! The plans beside this file made them on the embedded broker. Short ids keep the files small:
//! `drill run crates/drill/src/judge/recorded.toml --seed 1`, then
//! `perl -pe 's/[0-9a-f]{8}-[0-9a-f-]{27}/$m{$&} \/\/= "t".++$n/ge' .drill/ledger.jsonl |
//! gzip -9n >crates/drill/src/judge/recorded.jsonl.gz`

use std::io::Read;
use std::sync::LazyLock;

use flate2::read::GzDecoder;
use serde_json::{Value, json};

use super::super::fact::{Answer, Fact, Kind, Line};
use super::super::judgement::{Finding, Row, State, Verdict};
use super::super::texts::AFTERWARDS;
use super::{is_finished, judge};

static RECORDED: LazyLock<Vec<Line>> = LazyLock::new(|| read(include_bytes!("recorded.jsonl.gz")));
static OF_CLUSTER: LazyLock<Vec<Line>> = LazyLock::new(|| read(include_bytes!("recorded_cluster.jsonl.gz")));

/// Changes the facts that match; a run has at least one.
macro_rules! alter {
    ($it:expr, $line:ident: $pattern:pat $(if $guard:expr)? => $change:expr) => {
        $it.change(|$line| match &mut $line.fact {
            $pattern $(if $guard)? => {
                $change;
                true
            }
            _ => false,
        })
    };
}
pub(super) use alter;

fn read(compressed: &[u8]) -> Vec<Line> {
    let mut text = String::new();
    GzDecoder::new(compressed).read_to_string(&mut text).expect("a compressed text");
    text.lines().map(|line| serde_json::from_str(line).expect("a line of a ledger")).collect()
}

#[derive(Clone)]
pub(crate) struct Recorded {
    pub(crate) lines: Vec<Line>,
}

/// A plain short task from a time without actions; times are seconds of the run.
#[derive(Clone, Debug)]
pub(crate) struct Calm {
    pub(super) number: u64,
    pub(crate) id: String,
    pub(super) worker: String,
    pub(super) gateway: String,
    pub(super) accepted: f64,
    pub(super) began: f64,
    pub(super) answered: f64,
}

/// A signal of an action, and the exit that followed.
#[derive(Clone, Debug)]
pub(super) struct Done {
    pub(super) process: String,
    pub(super) at: f64,
    pub(super) exit: f64,
}

pub(super) fn task_of(fact: &Fact) -> Option<&str> {
    match fact {
        Fact::Accepted { task_id, .. }
        | Fact::RunBegan { task_id, .. }
        | Fact::HandlerEnded { task_id, .. }
        | Fact::RunEnded { task_id, .. }
        | Fact::Restarted { task_id, .. }
        | Fact::ReadBack { task_id, .. } => Some(task_id),
        Fact::Dead { task_id, .. } => task_id.as_deref(),
        _ => None,
    }
}

pub(super) fn refused(status: u16) -> Answer {
    let (why, retry_after) = (Some(format!("{status} no")), true);
    Answer { status: Some(status), why, retry_after, ..Answer::of(Kind::Refused) }
}

impl Recorded {
    pub(crate) fn new() -> Self {
        Self { lines: RECORDED.clone() }
    }

    /// The ledger of a run with a broker of three nodes.
    pub(super) fn of_cluster() -> Self {
        Self { lines: OF_CLUSTER.clone() }
    }

    /// The run without the results of two tasks, `t296` and `t297`.
    pub(crate) fn lossy() -> Self {
        let mut it = Self::new();
        for task in it.calm().into_iter().skip(4).take(2) {
            it.forget_runs(&task.id);
            it.answer(task.number, &Answer { task_id: Some(task.id), status: Some(504), ..Answer::of(Kind::Accepted) });
        }
        it
    }

    pub(super) fn load(&self) -> f64 {
        let first = |line: &Line| matches!(line.fact, Fact::Submitted { .. });
        self.lines.iter().find(|line| first(line)).expect("a request").at
    }

    pub(super) fn put(&mut self, at: f64, fact: Fact) {
        // Before the ledger's last line.
        self.lines.insert(self.lines.len() - 1, Line { at, fact });
    }

    pub(super) fn remove(&mut self, is: impl Fn(&Line) -> bool) {
        let before = self.lines.len();
        self.lines.retain(|line| !is(line));
        assert!(self.lines.len() < before, "nothing was removed");
    }

    /// Applies `change` to every line; it returns whether it changed the line, and must change at least one.
    pub(super) fn change(&mut self, change: impl FnMut(&mut Line) -> bool) {
        assert!(self.lines.iter_mut().map(change).filter(|changed| *changed).count() > 0, "nothing was changed");
    }

    /// All calm tasks, in the order of their requests.
    pub(super) fn calm(&self) -> Vec<Calm> {
        let (from, until) = (self.load() + 25.3, self.load() + 28.4);
        let calm = |line: &Line| match &line.fact {
            Fact::Submitted {
                number,
                gateway,
                work_ms: Some(5),
                repeats: None,
                asynchronous: false,
                poison: false,
            } if (from..until).contains(&line.at) && *number < AFTERWARDS => self.calm_task(*number, gateway),
            _ => None,
        };
        self.lines.iter().filter_map(calm).collect()
    }

    fn calm_task(&self, number: u64, gateway: &str) -> Option<Calm> {
        let about = |wanted: &dyn Fn(&Fact) -> bool| self.lines.iter().find(|line| wanted(&line.fact));
        let answered = about(&|fact| matches!(fact, Fact::Answered { number: of, .. } if *of == number))?;
        let Fact::Answered {
            answer: Answer { outcome: Kind::Answered, task_id: Some(id), worker: Some(worker), .. },
            ..
        } = &answered.fact
        else {
            return None;
        };
        let is = |fact: &Fact| task_of(fact) == Some(id);
        let accepted = about(&|fact| is(fact) && matches!(fact, Fact::Accepted { .. }))?.at;
        let began = about(&|fact| is(fact) && matches!(fact, Fact::RunBegan { .. }))?.at;
        let (id, worker, gateway) = (id.clone(), worker.clone(), gateway.to_owned());
        Some(Calm { number, id, worker, gateway, accepted, began, answered: answered.at })
    }

    pub(crate) fn task(&self) -> Calm {
        self.calm().into_iter().nth(3).expect("a calm task")
    }

    /// The signals of all actions of one kind, in order.
    pub(super) fn done(&self, what: &str) -> Vec<Done> {
        let orders = self.lines.iter().filter_map(|line| match &line.fact {
            Fact::Ordered { action, what: done, .. } if done == what => Some(*action),
            _ => None,
        });
        let orders: Vec<u32> = orders.collect();
        let signals = self.lines.iter().filter_map(|line| match &line.fact {
            Fact::Signalled { process, action: Some(action), signal, .. }
                if orders.contains(action) && signal != "SIGCONT" =>
            {
                Some((process.clone(), line.at))
            }
            _ => None,
        });
        signals.map(|(process, at)| Done { exit: self.exit_after(&process, at), process, at }).collect()
    }

    pub(super) fn first(&self, what: &str) -> Done {
        self.done(what).into_iter().next().unwrap_or_else(|| panic!("no {what}"))
    }

    pub(super) fn idle_stop(&self) -> Done {
        self.done("stop-worker").into_iter().nth(1).expect("the second stop is that of an idle worker")
    }

    /// The stop of a worker that abandoned its task at its deadline.
    pub(super) fn deadline(&self) -> Done {
        self.done("stop-worker").into_iter().next().expect("the first stop is that of a worker with a long task")
    }

    fn exit_after(&self, process: &str, at: f64) -> f64 {
        let ends =
            self.lines.iter().filter(|line| matches!(&line.fact, Fact::Exited { process: of, .. } if of == process));
        ends.map(|line| line.at).filter(|end| *end >= at).fold(f64::INFINITY, f64::min)
    }

    pub(super) fn exit(&mut self, of: &Done, mut change: impl FnMut(&mut Line)) {
        alter!(self, line: Fact::Exited { process, .. }
            if *process == of.process && line.at == of.exit => change(line));
    }

    /// Delays the exit of a gateway, and its next start.
    pub(super) fn linger(&mut self, of: &Done, by: f64) {
        alter!(self, line: Fact::Exited { process, .. } | Fact::Started { process, .. }
            if *process == of.process && (of.exit..of.exit + 2.0).contains(&line.at) => line.at += by);
    }

    /// Changes the receipt of a stop, on the output and on the topic.
    pub(super) fn receipt(&mut self, of: &Done, mut change: impl FnMut(&mut Value)) {
        self.change(|line| match &mut line.fact {
            Fact::Exited { process, receipt: Some(receipt), .. } if *process == of.process && line.at == of.exit => {
                change(receipt);
                true
            }
            Fact::Notified { worker, receipt: Some(receipt), .. }
                if *worker == of.process && (of.at - 0.01..of.exit + 0.5).contains(&line.at) =>
            {
                change(receipt);
                true
            }
            _ => false,
        });
    }

    /// Makes a stop take longer, also in its receipt.
    pub(super) fn later(&mut self, of: &Done, by: f64) {
        self.exit(of, |line| line.at += by);
        let after = Done { exit: of.exit + by, ..of.clone() };
        self.receipt(&after, |receipt| {
            for name in ["total", "drain"] {
                let took = receipt["phases_ms"][name].as_f64().expect("a phase");
                receipt["phases_ms"][name] = json!(took + by * 1e3);
            }
        });
        let (process, other) = (of.process.clone(), self.other(&of.process));
        let during = |at: f64| (of.exit - 0.05..of.exit + by + 2.0).contains(&at);
        let begun = self.lines.iter().filter_map(|line| match &line.fact {
            Fact::RunBegan { worker, task_id, .. } if *worker == process && line.at > of.exit && during(line.at) => {
                Some(task_id.clone())
            }
            _ => None,
        });
        let begun: Vec<String> = begun.collect();
        self.change(|line| {
            let (at, moves) = (line.at, during(line.at));
            match &mut line.fact {
                // The next process of the name starts later, and the last status record comes later.
                Fact::Started { process: name, .. } | Fact::Ready { process: name } if moves && *name == process => {
                    line.at = at + by;
                }
                Fact::Notified { worker, status, .. }
                    if moves && *worker == process && status == "shutdown_completed" =>
                {
                    line.at = at + by;
                }
                // Another worker runs the tasks of the next process meanwhile.
                Fact::RunBegan { worker, task_id, .. } | Fact::RunEnded { worker, task_id, .. }
                    if at > of.exit && *worker == process && begun.contains(task_id) =>
                {
                    worker.clone_from(&other);
                }
                _ => return false,
            }
            true
        });
    }

    pub(super) fn answer(&mut self, number: u64, with: &Answer) {
        alter!(self, line: Fact::Answered { number: of, answer, .. } if *of == number => *answer = with.clone());
    }

    /// Removes every trace of a task except its acceptance.
    pub(super) fn forget_runs(&mut self, id: &str) {
        self.remove(|line| task_of(&line.fact) == Some(id) && !matches!(line.fact, Fact::Accepted { .. }));
    }

    /// Makes a request refused, without a task.
    pub(super) fn turn_away(&mut self, task: &Calm, status: u16) {
        self.answer(task.number, &refused(status));
        self.remove(|line| task_of(&line.fact) == Some(&task.id));
    }

    pub(super) fn run(&mut self, id: &str, worker: &str, at: f64) {
        let ended = self
            .lines
            .iter()
            .find(|line| matches!(&line.fact, Fact::RunEnded { task_id, success: true, .. } if task_id == id));
        let mut fact = ended.expect("it has a result").fact.clone();
        if let Fact::RunEnded { worker: by, offset, .. } = &mut fact {
            (*by, *offset) = (worker.to_owned(), *offset + 1_000_000);
        }
        self.put(at, Fact::RunBegan { worker: worker.to_owned(), task_id: id.to_owned(), delivery: 2 });
        self.put(at + 0.007, fact);
    }

    pub(super) fn other(&self, but: &str) -> String {
        (1..=4).map(|number| format!("worker_{number}")).find(|name| name != but).expect("another one")
    }

    /// Delays the start of a task's run, its result and its answer.
    pub(super) fn delay(&mut self, id: &str, number: u64, from: f64, by: f64) {
        self.change(|line| {
            let run = task_of(&line.fact) == Some(id)
                && !matches!(line.fact, Fact::Accepted { .. } | Fact::ReadBack { .. } | Fact::Dead { .. });
            let answer = matches!(&line.fact, Fact::Answered { number: of, .. } if *of == number);
            let moves = (run || answer) && line.at >= from;
            if moves {
                line.at += by;
            }
            moves
        });
    }

    pub(crate) fn judged(&self) -> Verdict {
        assert!(is_finished(&self.lines));
        judge(&self.lines, String::new())
    }
}

/// `count` findings with `ids` tasks each.
pub(crate) fn findings(count: usize, ids: usize) -> Vec<Finding> {
    let finding = |number| Finding {
        what: "was accepted and has no result".to_owned(),
        ids: (0..ids).map(|beside| format!("t{}", number + beside)).collect(),
        lines: vec![number],
    };
    (1..=count).map(finding).collect()
}

pub(super) fn broken(verdict: &Verdict) -> Vec<&Row> {
    verdict.rows.iter().filter(|row| row.state == State::Broken).collect()
}
