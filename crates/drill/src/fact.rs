//! One line of the ledger: a fact, and the second of the run at which it was seen.
//!
//! The judge gets nothing but the ledger, so a fact has what was seen and no conclusion. The audit writes the records
//! of the topics after the load, with the broker's times: the file is not in the order of time. Plain data, which the
//! run and the audit write, and the judge and the timeline read.

use serde::{Deserialize, Serialize};
use serde_json::Value;

/// A fact and its time.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(super) struct Line {
    /// Seconds since the run began.
    pub(super) at: f64,
    #[serde(flatten)]
    pub(super) fact: Fact,
}

/// What was seen. `process` is the drill's name of a program: `worker_1`, `gateway_1`, `broker`; `worker` is the
/// worker's own id. On a fleet that the drill started both are the same.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "fact", rename_all = "snake_case")]
pub(super) enum Fact {
    /// The first line.
    Begin(Begin),
    /// A request is about to be sent.
    Submitted {
        number: u64,
        gateway: String,
        #[serde(default, skip_serializing_if = "Option::is_none")]
        work_ms: Option<u64>,
        /// The request whose text and Idempotency-Key this request repeats.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        repeats: Option<u64>,
        /// Sent with `Prefer: respond-async`.
        #[serde(default, skip_serializing_if = "is_false")]
        asynchronous: bool,
        /// Its handler fails each time.
        #[serde(default, skip_serializing_if = "is_false")]
        poison: bool,
    },
    /// A request found no free caller and was not sent.
    Late,
    /// The answer to a request, or its absence.
    Answered { number: u64, took_ms: f64, answer: Answer },
    /// A later answer of `GET /tasks/{id}` for the task of a request.
    Fetched { number: u64, gateway: String, answer: Answer },
    /// The answer of `GET /tasks/{id}` for a finished task: of a restarted gateway, or after all faults.
    ReadBack {
        number: u64,
        gateway: String,
        task_id: String,
        #[serde(default, skip_serializing_if = "Option::is_none")]
        status: Option<u16>,
        /// A hash of the whole body; `None` without an answer.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        mark: Option<String>,
        /// Whether the body is a result; otherwise the task is pending.
        #[serde(default)]
        is_result: bool,
    },
    /// The status of `/readyz` right after a gateway's SIGTERM; `None` without an answer.
    ReadyAsked {
        gateway: String,
        #[serde(default, skip_serializing_if = "Option::is_none")]
        status: Option<u16>,
    },
    /// An action of the plan begins; `action` numbers them.
    Ordered {
        action: u32,
        what: String,
        #[serde(default, skip_serializing_if = "Option::is_none")]
        target: Option<String>,
        detail: String,
    },
    /// An action was carried out, or was not.
    Carried { action: u32, done: bool, detail: String },
    /// A program was started.
    Started { process: String, pid: u32 },
    /// The program is ready, by its own report or by that of another program.
    Ready { process: String },
    /// A signal was sent: `SIGTERM`, `SIGKILL`, `SIGSTOP`, `SIGCONT`; actions on an embedded broker use the same names.
    /// From `cut` to `mended` its node receives and sends nothing.
    Signalled {
        process: String,
        signal: String,
        #[serde(default, skip_serializing_if = "Option::is_none")]
        action: Option<u32>,
        /// The end of the shell command that sent it: the signal came at some time until then.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        until: Option<f64>,
    },
    /// A program ended, with an exit code or by a signal. The receipt is the last line of its stdout.
    Exited {
        process: String,
        pid: u32,
        #[serde(default, skip_serializing_if = "Option::is_none")]
        code: Option<i32>,
        #[serde(default, skip_serializing_if = "Option::is_none")]
        signal: Option<i32>,
        #[serde(default, skip_serializing_if = "Option::is_none")]
        receipt: Option<Value>,
    },
    /// What a node of a cluster led when an action on it began; for a leader that moves, the one partition.
    Led {
        action: u32,
        process: String,
        #[serde(flatten)]
        led: Led,
    },
    /// A handler began a task, as its journal shows.
    RunBegan { worker: String, task_id: String, delivery: i16 },
    /// A handler ended a task, as its journal shows; the result may not have reached Kafka.
    HandlerEnded { worker: String, task_id: String, delivery: i16 },
    /// The fleet as a gateway shows it: ids of workers.
    Fleet { gateway: String, active: Vec<String>, stopping: Vec<String> },
    /// Kafka did not answer the drill's own reader between `at` and `until`.
    KafkaAway { until: f64 },
    /// The load has ended.
    LoadEnded,
    /// All faults are over and every process runs: later requests must be answered at once.
    Healed,
    /// A record of `tasks`; `number` is the request if it is of this run.
    Accepted {
        #[serde(default, skip_serializing_if = "Option::is_none")]
        number: Option<u64>,
        task_id: String,
        partition: i32,
        offset: i64,
    },
    /// A result on `results`. `at` is Kafka's time, `seconds` the handler's.
    RunEnded {
        task_id: String,
        worker: String,
        seconds: f64,
        success: bool,
        /// Equal for results with equal content.
        digest: String,
        /// What is wrong with it, for tasks of this run.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        fault: Option<String>,
        partition: i32,
        offset: i64,
    },
    /// A status record on `results`: a notification, or a heartbeat that repeats it.
    Notified {
        worker: String,
        instance: String,
        status: String,
        #[serde(default, skip_serializing_if = "Vec::is_empty")]
        current_tasks: Vec<String>,
        #[serde(default, skip_serializing_if = "Option::is_none")]
        receipt: Option<Value>,
        offset: i64,
    },
    /// A record of `tasks.starts`: a worker starts a task that was delivered before.
    Restarted { task_id: String, worker: String, delivery: i16, offset: i64 },
    /// A record of `tasks.dead`.
    Dead { task_id: Option<String>, offset: i64 },
    /// A difference between the two readers of a topic, which share no code.
    Disagreed { topic: String, detail: String },
    /// The number of tasks that the worker group has not finished at the end.
    Lag { tasks: i64 },
    /// The last line.
    End(Ending),
}

/// The end of a run.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub(super) struct Ending {
    /// A signal ended the load before its time.
    pub(super) cut_short: bool,
    /// The topics were read to their ends.
    #[serde(default)]
    pub(super) audited: bool,
    /// No worker was left that could run the tasks in Kafka.
    #[serde(default)]
    pub(super) nobody_works: bool,
}

/// The settings of a run.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub(super) struct Begin {
    /// Unix seconds.
    pub(super) unix: f64,
    pub(super) version: String,
    pub(super) plan: String,
    pub(super) seed: u64,
    /// `native, embedded broker` and the like.
    pub(super) target: String,
    /// The drill started the processes and sees them exit; otherwise it has only status records and commands.
    pub(super) owns_processes: bool,
    /// The drill started the broker, so that only actions make it unavailable.
    #[serde(default)]
    pub(super) owns_broker: bool,
    /// The workers have a handler of their own: only the result shows how long a task takes.
    #[serde(default)]
    pub(super) own_handler: bool,
    /// Promises that the plan puts to the test.
    #[serde(default)]
    pub(super) tests: Vec<String>,
    pub(super) drain_timeout_ms: u64,
    pub(super) gateway_grace_ms: u64,
    pub(super) worker_timeout_ms: u64,
    /// Tasks that one worker runs at once.
    pub(super) concurrency: u32,
    /// `MAX_DELIVERIES` of the workers.
    pub(super) max_deliveries: u32,
    /// How long a record lock lasts.
    pub(super) lock_ms: u64,
    /// Nodes of the broker, if the drill started it.
    #[serde(default)]
    pub(super) brokers: u32,
    #[serde(flatten)]
    pub(super) pauses: Pauses,
    /// Only the project's own client reads the records, because the witness cannot read a secured Kafka.
    #[serde(default, skip_serializing_if = "is_false")]
    pub(super) one_reader: bool,
}

/// What the drill says of a run with one reader.
pub(super) const ONE_READER: &str = "the records are read by one client";

/// The partitions of the tasks topic that a node leads, and whether it leads the results.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Led {
    pub(super) tasks: Vec<i32>,
    pub(super) results: bool,
}

fn is_false(value: &bool) -> bool {
    !value
}

/// The answer of a gateway, or its absence.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(super) struct Answer {
    pub(super) outcome: Kind,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) status: Option<u16>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) task_id: Option<String>,
    /// The worker that ran the task.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) worker: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) digest: Option<String>,
    /// What is wrong, or what is known of a task with an unknown outcome.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) why: Option<String>,
    /// It has a `Retry-After`.
    #[serde(default, skip_serializing_if = "is_false")]
    pub(super) retry_after: bool,
}

impl Answer {
    /// An answer with this outcome and nothing else.
    pub(super) fn of(outcome: Kind) -> Self {
        Self { outcome, status: None, task_id: None, worker: None, digest: None, why: None, retry_after: false }
    }
}

/// The outcomes of a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum Kind {
    /// The right result came.
    Answered,
    /// A result came that does not belong to the text.
    Wrong,
    /// The task failed for good.
    Failed,
    /// Refused: there is no task.
    Refused,
    /// Kafka has the task; its result is yet to come.
    Accepted,
    /// There may be a task.
    Unknown,
}

/// The broker's own times when it loses a node, in milliseconds; 0 if unknown.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Pauses {
    /// How long a node may be silent before the others take over its partitions.
    pub fail_over_ms: u64,
    /// How long a partition may then be without its share state, also after an orderly stop, and after the only node is
    /// back.
    pub state_read_ms: u64,
    /// How long records wait for a stopping node, until it leaves the in-sync replicas.
    pub in_sync_ms: u64,
}
