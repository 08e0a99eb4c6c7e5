//! One line of the ledger: something that was seen, and the second of the run in which it was.
//!
//! The ledger is all that the judge gets, so a fact says what was seen and nothing of what it means. Lines of the topics are
//! written after the load has ended, with the time that the broker gave their records; so the file is not in the order of time.
//! Plain data; written by the run and by the audit, read by the judge and the timeline.

use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::fleet::Pauses;

/// A fact and its time.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(super) struct Line {
    /// Seconds since the run began.
    pub(super) at: f64,
    #[serde(flatten)]
    pub(super) fact: Fact,
}

/// What can be seen. `process` is the name that the drill knows a program by: `worker_1`, `gateway_1`, `broker`; `worker` is the id that a
/// worker says it has. On a fleet that the drill started both are the same.
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
        /// It repeats the text and the Idempotency-Key of this request.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        repeats: Option<u64>,
        /// It prefers to be answered before its task is done.
        #[serde(default, skip_serializing_if = "is_false")]
        asynchronous: bool,
        /// Its handler fails each time.
        #[serde(default, skip_serializing_if = "is_false")]
        poison: bool,
    },
    /// A request found no free caller and was not sent.
    Late,
    /// What became of it.
    Answered { number: u64, took_ms: f64, answer: Answer },
    /// What `GET /tasks/{id}` said of it later.
    Fetched { number: u64, gateway: String, answer: Answer },
    /// What `GET /tasks/{id}` said of a task that is done, once everything was well again.
    ReadBack {
        number: u64,
        gateway: String,
        task_id: String,
        #[serde(default, skip_serializing_if = "Option::is_none")]
        status: Option<u16>,
        /// A mark of the whole body; without one there was no answer.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        mark: Option<String>,
        /// Whether the body is a result, and not that the task is pending.
        #[serde(default)]
        is_result: bool,
    },
    /// What `/readyz` of a gateway said right after its SIGTERM; no status: no answer.
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
    /// It was carried out, or it was not.
    Carried { action: u32, done: bool, detail: String },
    /// A program was started.
    Started { process: String, pid: u32 },
    /// It says, or another one says of it, that it is ready.
    Ready { process: String },
    /// A signal was sent to it: `SIGTERM`, `SIGKILL`, `SIGSTOP`, `SIGCONT`. An embedded broker is treated alike; from `cut` to `mended` nothing
    /// arrives at a node of it, nor from it.
    Signalled {
        process: String,
        signal: String,
        #[serde(default, skip_serializing_if = "Option::is_none")]
        action: Option<u32>,
        /// By a shell command that ended then: at some time until then.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        until: Option<f64>,
    },
    /// It ended: with a code, or by a signal. The receipt is the last line of its stdout.
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
    /// What a node of a broker with several led when an action began that takes it away: all of it, or the one partition that is moved.
    Led {
        action: u32,
        process: String,
        #[serde(flatten)]
        led: Led,
    },
    /// The journal says that a handler has begun this task.
    RunBegan { worker: String, task_id: String, delivery: i16 },
    /// What a gateway says of the fleet: ids of workers.
    Fleet { gateway: String, active: Vec<String>, stopping: Vec<String> },
    /// Kafka did not answer the drill's own reader between `at` and `until`.
    KafkaAway { until: f64 },
    /// The load has ended.
    LoadEnded,
    /// Everything that was done to the fleet is over and every process runs: what is sent from here on is to be served at once.
    Healed,
    /// A record of `tasks`; `number` when it is of this run.
    Accepted {
        #[serde(default, skip_serializing_if = "Option::is_none")]
        number: Option<u64>,
        task_id: String,
        partition: i32,
        offset: i64,
    },
    /// A result on `results`. `at` is when Kafka had it, `seconds` what the handler took.
    RunEnded {
        task_id: String,
        worker: String,
        seconds: f64,
        success: bool,
        /// Tells whether two results say the same.
        digest: String,
        /// What is wrong with it; for tasks of this run.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        fault: Option<String>,
        partition: i32,
        offset: i64,
    },
    /// A status on `results`: a notification, or a heartbeat that repeats it.
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
    /// A record of `tasks.starts`: a task is started that was delivered before.
    Restarted { task_id: String, worker: String, delivery: i16, offset: i64 },
    /// A record of `tasks.dead`.
    Dead { task_id: Option<String>, offset: i64 },
    /// What the two readers of a topic, which share no code, do not agree about.
    Disagreed { topic: String, detail: String },
    /// Tasks that the worker group has not finished at the end.
    Lag { tasks: i64 },
    /// The last line.
    End(Ending),
}

/// What can be said at the end of a run.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub(super) struct Ending {
    /// A signal ended the load before its time.
    pub(super) cut_short: bool,
    /// The topics were read to their ends.
    #[serde(default)]
    pub(super) audited: bool,
    /// No worker was left that could do what waits in Kafka.
    #[serde(default)]
    pub(super) nobody_works: bool,
}

/// What the whole run is about.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub(super) struct Begin {
    /// Unix seconds.
    pub(super) unix: f64,
    pub(super) version: String,
    pub(super) plan: String,
    pub(super) seed: u64,
    /// `native, embedded broker` and the like.
    pub(super) target: String,
    /// The drill started the processes itself and sees them die; otherwise it knows them by what they say.
    pub(super) owns_processes: bool,
    /// The broker is the drill's own: nothing happens to it but what the plan says.
    #[serde(default)]
    pub(super) owns_broker: bool,
    /// The workers have a handler that is not ours: how long a task takes is known from its result only.
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
    /// How long a lock lasts.
    pub(super) lock_ms: u64,
    /// Nodes of the broker, where it is the drill's own.
    #[serde(default)]
    pub(super) brokers: u32,
    #[serde(flatten)]
    pub(super) pauses: Pauses,
}

/// What a node leads: partitions of the tasks, and whether the results.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Led {
    pub(super) tasks: Vec<i32>,
    pub(super) results: bool,
}

fn is_false(value: &bool) -> bool {
    !value
}

/// What a gateway answered, or that it did not.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(super) struct Answer {
    pub(super) outcome: Kind,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) status: Option<u16>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) task_id: Option<String>,
    /// Who did the task.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) worker: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) digest: Option<String>,
    /// What is wrong, or what is known of a task whose outcome is not.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) why: Option<String>,
    /// It says when to try again.
    #[serde(default, skip_serializing_if = "is_false")]
    pub(super) retry_after: bool,
}

impl Answer {
    /// One of which nothing else is known.
    pub(super) fn of(outcome: Kind) -> Self {
        Self { outcome, status: None, task_id: None, worker: None, digest: None, why: None, retry_after: false }
    }
}

/// The outcomes of a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum Kind {
    /// The result came, and it is right.
    Answered,
    /// A result came, and it is not that of the text.
    Wrong,
    /// The task failed for good.
    Failed,
    /// Turned away: there is no task.
    Refused,
    /// Kafka has the task for sure; its result is yet to come.
    Accepted,
    /// There may be a task.
    Unknown,
}
