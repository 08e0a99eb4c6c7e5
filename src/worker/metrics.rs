//! The worker's metrics, and the address that serves them (`METRICS_ADDR`).
//!
//! Counted by handlers; sizes come from the account when they are requested. docs/metrics.md lists them;
//! [`crate::metrics`] has those that the gateway has, too.

use super::in_flight::InFlight;
use crate::http::accept::accept;
use crate::http::head::Head;
use crate::http::listener;
use crate::http::load::Load;
use crate::http::reply::{Parted, Parting, Reply, Ticket};
use crate::http::response::Response;
use crate::http::service::{Facts, Service};
use crate::metrics::{CONTENT_TYPE, Counted, Now};
use crate::task::dead::ReasonClass;
use kafka_share::statistics::Statistics;
use program::stop::Stop;
use program::threads::{self, Thread};
use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::histogram::{Histogram, exponential_buckets};
use std::convert::Infallible;
use std::io;
use std::net::SocketAddr;
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};
use tiny_http::Method;

/// Connections at once: a few programs that collect metrics.
const CONNECTIONS: usize = 16;
/// How long to wait for the thread of a closed address.
const JOIN: Duration = Duration::from_millis(300);
const PATH: &str = "/metrics";

/// How a handler ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Ended {
    /// With an output.
    Succeeded,
    /// With an error for its caller.
    Failed,
    /// With an error or a panic after which the task is tried again.
    Retried,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Outcome {
    outcome: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Reason {
    reason: &'static str,
}

/// Counters and histograms; encoded only on request.
#[derive(Debug)]
pub(super) struct Metrics {
    counted: Counted,
    runs: Family<Outcome, Counter>,
    durations: Histogram,
    redelivered: Counter,
    dead_lettered: Family<Reason, Counter>,
    in_flight: OnceLock<Arc<InFlight>>,
}

impl Metrics {
    pub(super) fn new(statistics: Statistics) -> Self {
        let mut counted = Counted::new(statistics);
        let metrics = Self {
            runs: counted.add("task_runs", "Runs of the handler, by outcome", Family::default()),
            durations: counted.seconds(
                "task_run_duration",
                "Time of one run of the handler",
                Histogram::new(exponential_buckets(0.001, 2.0, 16)),
            ),
            redelivered: counted
                .counter("tasks_redelivered", "Tasks taken that Kafka had delivered before, to any worker"),
            dead_lettered: counted.add(
                "tasks_dead_lettered",
                "Records that this worker gave up for good, by the class of the reason",
                Family::default(),
            ),
            in_flight: OnceLock::new(),
            counted,
        };
        for ended in [Ended::Succeeded, Ended::Failed, Ended::Retried] {
            drop(metrics.runs(ended));
        }
        // A count that begins with its first increase would not show that increase.
        for class in ReasonClass::ALL {
            drop(metrics.dead_lettered.get_or_create(&Reason { reason: class.name() }));
        }
        metrics
    }

    /// Shows the records of this account from now on.
    pub(super) fn watch(&self, in_flight: &Arc<InFlight>) {
        // Set once, at the start.
        let _ = self.in_flight.set(Arc::clone(in_flight));
    }

    /// Counts a run of the handler.
    pub(super) fn ran(&self, ended: Ended, took: Duration) {
        self.runs(ended).inc();
        self.durations.observe(took.as_secs_f64());
    }

    pub(super) fn redelivered(&self) {
        self.redelivered.inc();
    }

    /// Counts a dead letter with this reason.
    pub(super) fn dead_lettered(&self, reason: &str) {
        let reason = ReasonClass::of_reason(reason).name();
        self.dead_lettered.get_or_create(&Reason { reason }).inc();
    }

    fn runs(&self, ended: Ended) -> impl std::ops::Deref<Target = Counter> {
        let outcome = match ended {
            Ended::Succeeded => "succeeded",
            Ended::Failed => "failed",
            Ended::Retried => "retried",
        };
        self.runs.get_or_create(&Outcome { outcome })
    }

    fn text(&self) -> String {
        let mut now = Now::new();
        if let Some(in_flight) = self.in_flight.get() {
            let counts = in_flight.counts();
            let states = [
                ("ready", counts.ready),
                ("running", counts.vetting + counts.running),
                ("publishing", counts.publishing),
                ("resting", counts.resting),
            ];
            now.by(("tasks_held", "state"), "Tasks that this worker has a lock for, by state", states);
            let (finished, returned) = in_flight.totals();
            now.counter("tasks_finished", "Tasks whose result is in Kafka", finished);
            now.counter("tasks_returned", "Tasks released unstarted", returned);
        }
        self.counted.text(&now)
    }
}

/// The address of the metrics. Dropping it closes the address.
#[derive(Debug)]
pub(super) struct Server {
    address: SocketAddr,
    end: Stop,
    thread: Option<Thread>,
}

impl Server {
    /// Takes the address and serves until dropped.
    ///
    /// # Errors
    /// The address is in use, or the process may not bind it.
    pub(super) fn start(address: SocketAddr, metrics: Arc<Metrics>) -> io::Result<Self> {
        let listener = listener::listen(address)?;
        let address = listener.local_addr()?;
        let (end, ends) = (Stop::new(), Stop::new());
        let thread = {
            let (end, load) = (end.clone(), Arc::new(Load::new(CONNECTIONS)));
            // Its death does not end the worker: tasks matter more than figures.
            threads::spawn("metrics", ends, move || -> Result<(), Infallible> {
                accept(&listener, &Arc::new(Page(metrics)), &load, &end);
                Ok(())
            })
        };
        log::info!("metrics are served on {address}");
        Ok(Self { address, end, thread: Some(thread) })
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.end.trigger();
        listener::wake(self.address);
        if let Some(thread) = self.thread.take() {
            // A thread that does not end in time ends with the process; it logs its own error.
            let _ = thread.join_deadline(Instant::now() + JOIN);
        }
    }
}

/// The only page of the address.
#[derive(Debug)]
struct Page(Arc<Metrics>);

impl Service for Page {
    type Counted = ();

    fn begin(&self) {}

    fn wants_body(&self, _: &Head) -> bool {
        false
    }

    fn take(&self, head: &Head, _: &[u8], reply: Reply) -> Option<Ticket> {
        let path = head.target.split('?').next().unwrap_or_default();
        reply.give(match (path == PATH, &head.method) {
            (false, _) => Response::problem(404, "this path does not exist here; GET /metrics has the metrics", None),
            (true, Method::Get | Method::Head) => Response::bytes(200, CONTENT_TYPE, self.0.text().into_bytes()),
            (true, _) => {
                Response::problem(405, "this path takes GET, HEAD", None).with("Allow", "GET, HEAD".to_owned())
            }
        });
        None
    }

    fn part(&self, _: Ticket, _: Parting) -> Parted {
        Parted::Elsewhere
    }

    fn route(&self, _: &Head) -> Option<&'static str> {
        None
    }

    fn responds(&self, _: Facts, _: u16) {}

    fn is_stopping(&self) -> bool {
        false
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use program::http::Client;
    use std::net::{Ipv4Addr, TcpListener};

    const SOON: Duration = Duration::from_secs(20);

    #[test]
    fn address_serves_only_the_metrics_and_is_free_afterwards() {
        let metrics = Arc::new(Metrics::new(Statistics::default()));
        metrics.ran(Ended::Failed, Duration::from_millis(5));
        metrics.watch(&Arc::new(InFlight::new(Duration::ZERO)));
        let server = Server::start(SocketAddr::from((Ipv4Addr::LOCALHOST, 0)), metrics).expect("a free port");
        let mut client = Client::new(server.address, Stop::new());
        assert_eq!(client.get("/", SOON).expect("a response").status, 404);
        let response = client.get(PATH, SOON).expect("a response");
        let text = String::from_utf8(response.body).expect("text");
        for line in [
            "lastcall_task_runs_total{outcome=\"failed\"} 1",
            "lastcall_task_runs_total{outcome=\"succeeded\"} 0",
            "lastcall_tasks_held{state=\"running\"} 0",
        ] {
            assert!(text.lines().any(|it| it == line), "{line} in {text}");
        }
        let address = server.address;
        drop(server);
        assert!(TcpListener::bind(address).is_ok(), "the port is free");
    }
}
