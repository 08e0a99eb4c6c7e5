//! Callers: so many requests a second, each answer checked. The clock of a request starts when it was due, not when a
//! thread got round to sending it, so that a stall cannot hide the requests that waited behind it.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering::Relaxed},
    },
    thread::JoinHandle,
    time::{Duration, Instant},
};

use serde_json::{Value, json};

use super::http::Http;

/// How one request went.
#[derive(Clone, Debug)]
pub struct Shot {
    /// When it was due.
    pub due: Instant,
    /// From then to the answer.
    pub latency: Duration,
    /// The status, or why there was no answer.
    pub outcome: Result<u16, String>,
    /// The task that the answer names.
    pub task_id: Option<String>,
    /// What is wrong with the answer, if anything.
    pub fault: Option<String>,
}

/// What the callers ask for.
#[derive(Clone, Debug)]
pub struct Plan {
    /// Gateways, asked in turn.
    pub addresses: Vec<String>,
    pub per_second: u32,
    /// How long a handler shall take besides.
    pub work: Option<Duration>,
}

/// Callers at work, until [`Load::finish`].
pub struct Load {
    stop: Arc<AtomicBool>,
    told: Arc<Told>,
    threads: Vec<JoinHandle<Vec<Shot>>>,
}

/// What callers were told so far.
#[derive(Default)]
struct Told {
    answered: AtomicU64,
    unknown: AtomicU64,
}

impl Load {
    /// Starts enough callers for answers that take up to two seconds.
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

    /// How many requests have been answered with 200 so far.
    pub fn answered(&self) -> u64 {
        self.told.answered.load(Relaxed)
    }

    /// How many were told that it is not known whether there is a task, and which one it would be.
    pub fn unknown(&self) -> u64 {
        self.told.unknown.load(Relaxed)
    }

    /// No more requests; waits for the answers to those that are under way.
    pub fn finish(self) -> Vec<Shot> {
        self.stop.store(true, Relaxed);
        let shots = self.threads.into_iter().flat_map(|thread| thread.join().expect("a caller does not panic"));
        let mut shots: Vec<Shot> = shots.collect();
        shots.sort_by_key(|shot| shot.due);
        shots
    }
}

/// The ids of the tasks that these requests brought about.
pub fn task_ids(shots: &[Shot]) -> Vec<String> {
    shots.iter().filter_map(|shot| shot.task_id.clone()).collect()
}

/// Asserts that each request was answered 200 and right.
pub fn assert_all_answered(shots: &[Shot]) {
    let bad: Vec<_> = shots.iter().filter(|shot| shot.outcome != Ok(200) || shot.fault.is_some()).collect();
    assert!(bad.is_empty(), "{} of {} requests went wrong, the first: {:?}", bad.len(), shots.len(), bad[0]);
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
        if let Some(work) = plan.work {
            body["work_ms"] = json!(u64::try_from(work.as_millis()).expect("a short time"));
        }
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
                Shot { due, latency, outcome: Ok(answer.status), task_id, fault }
            }
            Err(error) => Shot { due, latency, outcome: Err(error.to_string()), task_id: None, fault: None },
        });
    }
    shots
}

/// What is wrong with the result for a text of ASCII words with single spaces between them.
pub fn fault(result: &Value, text: &str) -> Option<String> {
    let words = text.split(' ').count();
    let right = result["success"] == true
        && result["chars"] == text.len()
        && result["words"] == words
        && result["task_id"].as_str().is_some_and(|id| !id.is_empty());
    (!right).then(|| format!("{result} is not the result for {text:?}"))
}
