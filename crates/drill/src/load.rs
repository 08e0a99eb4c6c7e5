//! The load: senders that post and wait for their answers, and a thread that keeps the pace, unless each sender keeps its own.
//!
//! The pace does not wait for anybody: a request that finds no sender free is told as late and is not sent. In a closed loop every sender posts
//! again when it has its answer. Outcomes go to the run. Nothing is repeated: a request whose outcome is unknown is found out otherwise.

use std::convert::Infallible;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, Sender, bounded};
use serde_json::json;

use program::stop::Stop;
use program::threads::{self, Thread};

use super::event::Event;
use super::fact::{Answer, Kind};
use super::http::Client;
use super::outcome;
use super::place::GatewayAddress;
use super::texts::Texts;

/// What the gateway may take beside the task's own time: far over its `ANSWER_TIMEOUT`, after which it answers in any case.
const PATIENCE: Duration = Duration::from_secs(60);
/// The senders' head start: a request without a waiting sender would be late.
const HEAD_START: Duration = Duration::from_millis(50);
/// In a closed loop a sender that was turned away waits so long.
const TURNED_AWAY: Duration = Duration::from_millis(100);
/// How often a paused sender looks whether it may go on.
const LOOK: Duration = Duration::from_millis(20);

/// What is to be sent.
#[derive(Clone, Debug)]
pub(super) struct LoadOptions {
    pub(super) gateways: Vec<GatewayAddress>,
    /// Requests per second; `None`: a closed loop.
    pub(super) rate: Option<u32>,
    /// How long; until it is stopped when `None`.
    pub(super) length: Option<Duration>,
    /// Senders.
    pub(super) callers: usize,
    /// No requests while it is set.
    pub(super) paused: Arc<AtomicBool>,
    /// The number of the first request.
    pub(super) first: u64,
    /// No more requests than these.
    pub(super) most: u64,
}

/// The load's threads; see the module documentation.
#[derive(Debug)]
pub(super) struct Load {
    pub(super) threads: Vec<Thread>,
    made: Arc<Made>,
    /// Ends the pace; the senders end with their last answer.
    pub(super) stop: Stop,
    /// Ends the waiting for answers.
    pub(super) hurry: Stop,
}

impl Load {
    /// Starts it. `on_death` is triggered when a thread dies.
    pub(super) fn start(options: &LoadOptions, texts: &Texts, events: &Sender<Event>, on_death: &Stop) -> Self {
        let (stop, hurry, made) = (Stop::new(), Stop::new(), Arc::new(Made::default()));
        // Without room: a number is handed over only to a sender that waits for it.
        let (numbers, taken) = bounded(0);
        let mut threads = Vec::new();
        for index in 0..options.callers {
            let clients = options.gateways.iter().map(|gateway| Client::new(gateway.clone(), hurry.clone())).collect();
            let sender = LoadSender { clients, texts: texts.clone(), events: events.clone() };
            let taken = taken.clone();
            threads.push(threads::spawn(&format!("send-{index}"), on_death.clone(), move || sender.run(&taken)));
        }
        let pace =
            Pace { options: options.clone(), made: Arc::clone(&made), stop: stop.clone(), events: events.clone() };
        threads.push(threads::spawn("pace", on_death.clone(), move || {
            match pace.options.rate {
                Some(rate) => pace.keep(rate, &numbers),
                None => pace.follow(&numbers),
            }
            Ok::<(), Infallible>(())
        }));
        Self { threads, made, stop, hurry }
    }

    /// Requests that found no sender free and were not sent.
    pub(super) fn late(&self) -> u64 {
        self.made.late.load(Ordering::Relaxed)
    }

    /// Whether no more requests are made; the pace is the last of the threads.
    pub(super) fn has_ended(&self) -> bool {
        self.threads.last().is_none_or(Thread::is_finished)
    }

    /// Whether every request has its outcome.
    pub(super) fn is_done(&self) -> bool {
        self.threads.iter().all(Thread::is_finished)
    }
}

/// How many requests there were.
#[derive(Debug, Default)]
struct Made {
    late: AtomicU64,
}

struct Pace {
    options: LoadOptions,
    made: Arc<Made>,
    stop: Stop,
    events: Sender<Event>,
}

impl Pace {
    /// So many per second, whoever is free.
    fn keep(&self, rate: u32, numbers: &Sender<u64>) {
        let begin = Instant::now() + HEAD_START;
        let mut number = self.options.first;
        for slot in 0_u64.. {
            let offset = Duration::from_secs_f64(slot as f64 / f64::from(rate));
            if let Some(length) = self.options.length.filter(|length| offset >= *length) {
                // As long as it was asked for, and not only to its last request: actions are planned until then. A stop is an end, too.
                let _ = self.stop.sleep((begin + length).saturating_duration_since(Instant::now()));
                break;
            }
            let wait = (begin + offset).saturating_duration_since(Instant::now());
            if self.stop.sleep(wait).is_err() {
                break;
            }
            if self.options.paused.load(Ordering::Relaxed) {
                continue;
            }
            if numbers.try_send(number).is_err() {
                self.made.late.fetch_add(1, Ordering::Relaxed);
                if self.events.send(Event::Late { at: Instant::now() }).is_err() {
                    break;
                }
            }
            number += 1;
        }
    }

    /// As fast as senders are free.
    fn follow(&self, numbers: &Sender<u64>) {
        let end = self.options.length.map(|length| Instant::now() + length);
        let (mut number, beyond) = (self.options.first, self.options.first.saturating_add(self.options.most));
        while number < beyond && !self.stop.is_triggered() && end.is_none_or(|end| Instant::now() < end) {
            if self.options.paused.load(Ordering::Relaxed) {
                // A stop is looked at above.
                let _ = self.stop.sleep(LOOK);
            } else if numbers.send_timeout(number, LOOK).is_ok() {
                number += 1;
            }
        }
    }
}

struct LoadSender {
    clients: Vec<Client>,
    texts: Texts,
    events: Sender<Event>,
}

impl LoadSender {
    fn run(mut self, numbers: &Receiver<u64>) -> Result<(), Infallible> {
        for number in numbers {
            let gateway = (number % self.clients.len().max(1) as u64) as usize;
            let Some(client) = self.clients.get_mut(gateway) else { break };
            let (text, work_ms) = (self.texts.text(number), self.texts.work_ms(number));
            let special = self.texts.special(number);
            let mut headers = String::new();
            if special.keyed {
                headers = format!("Idempotency-Key: {}\r\n", self.texts.key(number));
            }
            if special.asynchronous {
                headers.push_str("Prefer: respond-async\r\n");
            }
            let body = match work_ms {
                Some(work_ms) => json!({ "text": text, "work_ms": work_ms }),
                None => json!({ "text": text }),
            };
            let began = Instant::now();
            if self.events.send(Event::Submitted { number, gateway, at: began }).is_err() {
                break;
            }
            let patience = PATIENCE + Duration::from_millis(work_ms.unwrap_or_default());
            let reply = client.post("/analyze", &headers, &body.to_string(), patience);
            let at = Instant::now();
            let answer: Answer = outcome::of_post(&self.texts, number, reply);
            let turned_away = answer.outcome == Kind::Refused;
            if self.events.send(Event::Posted { number, answer, took: at - began, at }).is_err() {
                break;
            }
            if turned_away {
                client.rest(TURNED_AWAY);
            }
        }
        Ok(())
    }
}
