//! Callers that send a number of requests per second and check each response. The latency of a request counts from the
//! time when it was due, not from when a thread sent it, so that a stall cannot hide the requests that it delayed.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering::Relaxed},
    },
    thread::JoinHandle,
    time::{Duration, Instant},
};

use serde_json::{Value, json};

use super::{eventually, http::Http};

/// The outcome of one request.
#[derive(Clone, Debug)]
pub struct Shot {
    /// When the request was due.
    pub due: Instant,
    /// When it was sent: later than `due` if the caller still waited for another response.
    pub sent: Instant,
    /// From `due` to the response.
    pub latency: Duration,
    /// The status, or why there was no response.
    pub outcome: Result<u16, String>,
    /// The task that the response names.
    pub task_id: Option<String>,
    /// Why a response with status 200 is wrong.
    pub fault: Option<String>,
}

/// The requests of a [`Load`].
#[derive(Clone, Debug)]
pub struct Plan {
    /// Addresses of gateways; the callers are spread over them.
    pub addresses: Vec<String>,
    pub per_second: u32,
    /// The `work_ms` of each request; with 0 requests have none.
    pub work_ms: u64,
}

/// Callers that send requests until [`Load::finish`].
pub struct Load {
    stop: Arc<AtomicBool>,
    told: Arc<Told>,
    threads: Vec<JoinHandle<Vec<Shot>>>,
}

/// Counts of responses so far.
#[derive(Default)]
struct Told {
    answered: AtomicU64,
    unknown: AtomicU64,
}

impl Load {
    /// Starts enough callers for responses that take up to two seconds, at most 128.
    pub fn start(plan: Plan) -> Load {
        let stop = Arc::new(AtomicBool::new(false));
        let told = Arc::new(Told::default());
        let callers = (plan.per_second * 2).clamp(2, 128);
        let period = Duration::from_secs(1) / plan.per_second;
        let begin = Instant::now();
        let threads = (0..callers)
            .map(|caller| {
                let (plan, stop, told) = (plan.clone(), stop.clone(), told.clone());
                let body = move || call(&plan, caller, callers, begin, period, &stop, &told);
                std::thread::Builder::new().name(format!("caller-{caller}")).spawn(body).expect("a thread starts")
            })
            .collect();
        Load { stop, told, threads }
    }

    /// Number of correct responses with 200 so far.
    pub fn answered(&self) -> u64 {
        self.told.answered.load(Relaxed)
    }

    /// Waits until callers get this many more correct responses; fails the test after `limit`.
    pub fn wait_for(&self, more: u64, limit: Duration) {
        let before = self.answered();
        eventually(limit, &format!("callers get {more} results"), || self.answered() >= before + more);
    }

    /// Number of responses so far with 503 and a task id: it is unknown whether Kafka has the task.
    pub fn unknown(&self) -> u64 {
        self.told.unknown.load(Relaxed)
    }

    /// Stops the callers and waits for the responses to their last requests.
    pub fn finish(self) -> Vec<Shot> {
        self.stop.store(true, Relaxed);
        let shots = self.threads.into_iter().flat_map(|thread| thread.join().expect("a caller does not panic"));
        let mut shots: Vec<Shot> = shots.collect();
        shots.sort_by_key(|shot| shot.due);
        shots
    }
}

/// The ids of the tasks that the responses name.
pub fn task_ids(shots: &[Shot]) -> Vec<String> {
    shots.iter().filter_map(|shot| shot.task_id.clone()).collect()
}

/// Asserts that each response was 200 with a correct result.
pub fn assert_all_answered(shots: &[Shot]) {
    let bad: Vec<_> = shots.iter().filter(|shot| shot.outcome != Ok(200) || shot.fault.is_some()).collect();
    assert!(bad.is_empty(), "{} of {} requests failed, the first: {:?}", bad.len(), shots.len(), bad[0]);
}

fn call(
    plan: &Plan,
    caller: u32,
    callers: u32,
    begin: Instant,
    period: Duration,
    stop: &AtomicBool,
    told: &Told,
) -> Vec<Shot> {
    let address = &plan.addresses[caller as usize % plan.addresses.len()];
    let mut connection = None;
    let mut shots = Vec::new();
    for number in (caller..).step_by(callers as usize) {
        let due = begin + period * number;
        std::thread::sleep(due.saturating_duration_since(Instant::now()));
        if stop.load(Relaxed) {
            break;
        }
        let text = format!("request {number} says hello to worker and says goodbye");
        let mut body = json!({ "text": text });
        if plan.work_ms > 0 {
            body["work_ms"] = json!(plan.work_ms);
        }
        let sent = Instant::now();
        let answer = match connection.take() {
            Some(open) => Ok(open),
            None => Http::connect(address),
        };
        let answer = answer.and_then(|mut http: Http| Ok((http.post("/analyze", &body)?, http)));
        let latency = due.elapsed();
        shots.push(match answer {
            Ok((answer, http)) => {
                let closing = answer.header("connection").is_some_and(|value| value.eq_ignore_ascii_case("close"));
                connection = (!closing).then_some(http);
                let value: Value = serde_json::from_slice(&answer.body).unwrap_or_default();
                let fault = if answer.status == 200 { fault(&value, &text) } else { None };
                let task_id = value["task_id"].as_str().map(str::to_owned);
                told.answered.fetch_add(u64::from(answer.status == 200 && fault.is_none()), Relaxed);
                told.unknown.fetch_add(u64::from(answer.status == 503 && task_id.is_some()), Relaxed);
                Shot { due, sent, latency, outcome: Ok(answer.status), task_id, fault }
            }
            Err(error) => Shot { due, sent, latency, outcome: Err(error.to_string()), task_id: None, fault: None },
        });
    }
    shots
}

/// Returns why the result is wrong for a text of ASCII words with single spaces, or `None`.
pub fn fault(result: &Value, text: &str) -> Option<String> {
    let words = text.split(' ').count();
    let right = result["success"] == true
        && result["chars"] == text.len()
        && result["words"] == words
        && result["task_id"].as_str().is_some_and(|id| !id.is_empty());
    (!right).then(|| format!("{result} is not the result for {text:?}"))
}
