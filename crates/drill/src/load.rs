//! The load: sender threads that post tasks and wait for the responses, and a `pace` thread that hands out requests.
//!
//! With a rate, a request that finds no free sender is counted as late and not sent. Without a rate (closed loop),
//! every sender posts again after each response. No request is repeated: the run looks up unknown outcomes by other
//! means. Started by the run, which gets the outcomes.

use std::convert::Infallible;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, Sender, bounded};
use serde_json::json;

use program::stop::Stop;
use program::threads::{self, Thread};

use super::fact::{Fact, Kind};
use super::fleet::Teller;
use super::http::Client;
use super::outcome;
use super::place::GatewayAddress;
use super::texts::{Special, Texts};

/// Limit of a response beside the task's own time; far over `ANSWER_TIMEOUT`, after which the gateway always responds.
const PATIENCE: Duration = Duration::from_secs(60);
/// Head start of the senders: a request without a waiting sender would be late.
const HEAD_START: Duration = Duration::from_millis(50);
/// Pause of a sender after a refusal.
const TURNED_AWAY: Duration = Duration::from_millis(100);
/// How often the closed loop checks the pause and the end.
const LOOK: Duration = Duration::from_millis(20);

/// Settings of the load.
#[derive(Clone, Debug)]
pub(super) struct LoadOptions {
    /// The gateways by their names in the ledger.
    pub(super) gateways: Vec<(String, GatewayAddress)>,
    /// Requests per second; `None`: a closed loop.
    pub(super) rate: Option<u32>,
    /// Length; `None`: until a stop.
    pub(super) length: Option<Duration>,
    /// Number of senders.
    pub(super) callers: usize,
    /// The load sends no requests while this is set.
    pub(super) paused: Arc<AtomicBool>,
    /// The number of the first request.
    pub(super) first: u64,
    /// Maximum number of requests.
    pub(super) most: u64,
}

/// The threads of the load.
#[derive(Debug)]
pub(super) struct Load {
    pub(super) threads: Vec<Thread>,
    /// Ends the pace; each sender ends after its last response.
    pub(super) stop: Stop,
    /// Ends the wait for responses.
    pub(super) hurry: Stop,
}

impl Load {
    /// Starts the threads. `on_death` is triggered if a thread panics or fails.
    pub(super) fn start(options: &LoadOptions, texts: &Texts, teller: &Teller, on_death: &Stop) -> Self {
        let (stop, hurry) = (Stop::new(), Stop::new());
        // Capacity 0: a number goes only to a sender that waits.
        let (numbers, taken) = bounded(0);
        let mut threads = Vec::new();
        for index in 0..options.callers {
            let client = |gateway: &GatewayAddress| Client::new(gateway.clone(), hurry.clone());
            let clients = options.gateways.iter().map(|(name, gateway)| (name.clone(), client(gateway))).collect();
            let sender = LoadSender { clients, texts: texts.clone(), teller: teller.clone() };
            let taken = taken.clone();
            threads.push(threads::spawn(&format!("send-{index}"), on_death.clone(), move || sender.run(&taken)));
        }
        let pace = Pace { options: options.clone(), stop: stop.clone(), teller: teller.clone() };
        threads.push(threads::spawn("pace", on_death.clone(), move || {
            match pace.options.rate {
                Some(rate) => pace.keep(rate, &numbers),
                None => pace.follow(&numbers),
            }
            Ok::<(), Infallible>(())
        }));
        Self { threads, stop, hurry }
    }

    /// Whether no more requests are made: the pace, which is the last of the threads, has ended.
    pub(super) fn has_ended(&self) -> bool {
        self.threads.last().is_none_or(Thread::is_finished)
    }

    /// Whether every request has its outcome.
    pub(super) fn is_done(&self) -> bool {
        self.threads.iter().all(Thread::is_finished)
    }
}

struct Pace {
    options: LoadOptions,
    stop: Stop,
    teller: Teller,
}

impl Pace {
    /// Hands out `rate` numbers per second, even if no sender is free.
    fn keep(&self, rate: u32, numbers: &Sender<u64>) {
        let begin = Instant::now() + HEAD_START;
        let mut number = self.options.first;
        for slot in 0_u64.. {
            let offset = Duration::from_secs_f64(slot as f64 / f64::from(rate));
            if let Some(length) = self.options.length.filter(|length| offset >= *length) {
                // The load lasts its full length, not only to its last request: actions are planned until then.
                // A stop ends this wait too.
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
            if numbers.try_send(number).is_err() && !self.teller.tell(Fact::Late) {
                break;
            }
            number += 1;
        }
    }

    /// Hands out numbers as fast as senders become free.
    fn follow(&self, numbers: &Sender<u64>) {
        let end = self.options.length.map(|length| Instant::now() + length);
        let (mut number, beyond) = (self.options.first, self.options.first.saturating_add(self.options.most));
        while number < beyond && !self.stop.is_triggered() && end.is_none_or(|end| Instant::now() < end) {
            if self.options.paused.load(Ordering::Relaxed) {
                // The loop condition checks the stop.
                let _ = self.stop.sleep(LOOK);
            } else if numbers.send_timeout(number, LOOK).is_ok() {
                number += 1;
            }
        }
    }
}

struct LoadSender {
    clients: Vec<(String, Client)>,
    texts: Texts,
    teller: Teller,
}

impl LoadSender {
    fn run(mut self, numbers: &Receiver<u64>) -> Result<(), Infallible> {
        for number in numbers {
            let index = (number % self.clients.len().max(1) as u64) as usize;
            let Some((gateway, client)) = self.clients.get_mut(index) else { break };
            let (text, work_ms) = (self.texts.text(number), self.texts.work_ms(number));
            let Special { keyed, repeats, asynchronous, poison } = self.texts.special(number);
            let mut headers = String::new();
            if keyed {
                headers = format!("Idempotency-Key: {}\r\n", self.texts.key(number));
            }
            if asynchronous {
                headers.push_str("Prefer: respond-async\r\n");
            }
            let body = match work_ms {
                Some(work_ms) => json!({ "text": text, "work_ms": work_ms }),
                None => json!({ "text": text }),
            };
            let began = Instant::now();
            let submitted =
                Fact::Submitted { number, gateway: gateway.clone(), work_ms, repeats, asynchronous, poison };
            if !self.teller.tell_at(self.teller.clock.at(began), submitted) {
                break;
            }
            let patience = PATIENCE + Duration::from_millis(work_ms.unwrap_or_default());
            let reply = client.post("/analyze", &headers, &body.to_string(), patience);
            let at = Instant::now();
            let answer = outcome::of_post(&self.texts, number, reply);
            let turned_away = answer.outcome == Kind::Refused;
            let took_ms = (at - began).as_secs_f64() * 1e3;
            if !self.teller.tell_at(self.teller.clock.at(at), Fact::Answered { number, took_ms, answer }) {
                break;
            }
            if turned_away {
                client.rest(TURNED_AWAY);
            }
        }
        Ok(())
    }
}
