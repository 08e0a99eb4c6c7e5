//! A gateway's lifetime: it starts, serves, drains, ends.
//!
//! The gateway takes the port first, then serves HTTP, then connects to Kafka. A stopping gateway accepts no new tasks,
//! gives all waiting callers their responses, and ends. It answers requests until its end, and closes each connection
//! with its next response. Idle connections end with the process: closing one could cut off a request on its way.

use super::http::routes::{Audience, Service};
use super::state::{ANSWERS_END, State};
use super::tasks::{Backend, Tasks};
use crate::config::GatewayConfig;
use crate::http::load::Load;
use crate::http::{accept, listener};
use crate::supervisor::{self, Supervisor};
use crossbeam_channel::{bounded, select, tick};
use kafka_share::cluster::Cluster;
use kafka_share::interrupt::Interrupter;
use program::exit::{self, ExitCode};
use program::logging::escape;
use program::signals::Signals;
use program::stop::Stop;
use program::threads::{self, Thread};
use std::convert::Infallible;
use std::net::{SocketAddr, TcpListener};
use std::sync::Arc;
use std::time::{Duration, Instant};

/// The process ends at least this long before the end of the grace period.
const EXIT_MARGIN: Duration = Duration::from_secs(5);
/// The process ends at most this long after a fatal error.
const FATAL_END: Duration = Duration::from_secs(3);
/// How often a drain checks whether all requests are answered.
const LOOK: Duration = Duration::from_millis(5);
/// How long a stop waits for the last responses to be written.
const LAST_RESPONSES: Duration = Duration::from_millis(500);
/// The same for callers that came during the stop.
const LATER_RESPONSES: Duration = Duration::from_millis(100);
/// How long the producer may still try records after their callers were told that the outcome is unknown.
const LAST_PRODUCE: Duration = Duration::from_millis(200);
/// Connections of operators at once: a few browsers, a few programs that collect metrics.
const OPERATORS: usize = 64;
/// How long to wait for threads without work to end.
const JOIN: Duration = Duration::from_millis(300);

/// A running gateway.
pub(super) struct Gateway {
    state: Arc<State>,
    tasks: Arc<Tasks>,
    service: Arc<Service>,
    /// The addresses that it listens on: that of callers first.
    addresses: Vec<SocketAddr>,
    interrupter: Interrupter,
    /// Triggered when a thread ends that must not end.
    fatal: Stop,
    /// Triggered with `fatal` when the cluster can never be used.
    unusable: Stop,
    /// Ends the serving threads.
    end: Stop,
    supervisor: Supervisor,
    threads: Vec<Thread>,
}

/// Takes the port and starts the threads.
///
/// # Errors
/// The port cannot be taken; this is logged.
pub(super) fn start(config: GatewayConfig) -> Result<Gateway, ExitCode> {
    let (listener, address) = listen("HTTP_ADDR", config.http_addr)?;
    let admin = config.admin_addr.map(|address| listen("ADMIN_ADDR", address)).transpose()?;
    let grace = config.stop_grace_period;
    let interrupter = Interrupter::default();
    let mut options = config.common.client_options("lastcall-gateway", &interrupter).map_err(|fault| {
        log::error!("{}", escape(&fault.to_string()));
        ExitCode::Usage
    })?;
    let load = Load::new(accept::most_connections(config.max_waiting));
    let state = Arc::new(State::new(config));
    options.statistics = state.statistics.clone();
    let (tasks, asked) = Tasks::new(Arc::clone(&state));
    let audience = if admin.is_some() { Audience::Callers } else { Audience::Everyone };
    let service = Arc::new(Service::new(audience, Arc::clone(&state), Arc::clone(&tasks), load));
    let mut gateway = Gateway {
        state,
        tasks,
        service,
        addresses: vec![address],
        interrupter,
        fatal: Stop::new(),
        unusable: Stop::new(),
        end: Stop::new(),
        supervisor: Supervisor::default(),
        threads: Vec::new(),
    };
    let service = Arc::clone(&gateway.service);
    gateway.accept("accept", listener, &service, Arc::clone(&service.load));
    if let Some((listener, address)) = admin {
        log::info!("operators are served on {address}");
        let load = Arc::new(Load::new(OPERATORS));
        gateway.addresses.push(address);
        gateway.accept("accept-admin", listener, &Arc::new(service.for_operators()), load);
    }
    // Not the address for operators: callers do not need it.
    let end = gateway.end.clone();
    gateway.spawn("port-watch", move || listener::watch(address, &service.load, &end));
    let (tasks, end) = (Arc::clone(&gateway.tasks), gateway.end.clone());
    gateway.spawn("upkeep", move || -> Result<(), Infallible> {
        tasks.keep_up(&end);
        Ok(())
    });
    let backend = Backend {
        tasks: Arc::clone(&gateway.tasks),
        cluster: Cluster::new(options),
        asked,
        end: gateway.end.clone(),
        fatal: gateway.fatal.clone(),
        unusable: gateway.unusable.clone(),
    };
    gateway.spawn("kafka", move || -> Result<(), Infallible> {
        backend.run();
        Ok(())
    });
    log::info!("🚀 Gateway started on {address}; stops within {} s", grace.as_secs());
    Ok(gateway)
}

/// Takes an address; also returns it with the port that the system chose for port 0.
fn listen(option: &str, address: SocketAddr) -> Result<(TcpListener, SocketAddr), ExitCode> {
    let listener = listener::listen(address).map_err(|error| {
        log::error!("cannot listen on {option} {address}: {error}");
        ExitCode::Fatal
    })?;
    let address = listener.local_addr().unwrap_or(address);
    Ok((listener, address))
}

impl Gateway {
    fn accept(&mut self, name: &str, listener: TcpListener, service: &Arc<Service>, load: Arc<Load>) {
        let (service, end) = (Arc::clone(service), self.end.clone());
        self.spawn(name, move || -> Result<(), Infallible> {
            accept::accept(&listener, &service, &load, &end);
            Ok(())
        });
    }

    fn spawn<E: std::fmt::Display + Send + 'static>(
        &mut self,
        name: &str,
        body: impl FnOnce() -> Result<(), E> + Send + 'static,
    ) {
        let thread = threads::spawn(name, self.fatal.clone(), body);
        self.threads.push(thread);
    }
}

/// Waits for a signal or a dead thread, then ends the gateway.
pub(super) fn run_until_stopped(mut gateway: Gateway, signals: &Signals) -> ExitCode {
    let round = tick(supervisor::INTERVAL);
    let mut ready = false;
    loop {
        tell_supervisor(&mut gateway, &mut ready);
        select! {
            recv(signals.first.triggered()) -> _ => return drain(gateway, signals),
            recv(gateway.fatal.triggered()) -> _ => return fail(gateway),
            recv(signals.quiet.signalled()) -> _ => {
                log::info!("{} is ignored: only a worker can be quiet", signals.quiet.name().unwrap_or_default());
            }
            recv(round) -> _ => {}
        }
    }
}

/// Reports to the supervisor while the gateway serves. It reports readiness once; later `/readyz` has the state.
fn tell_supervisor(gateway: &mut Gateway, ready: &mut bool) {
    let state = &gateway.state;
    let can_serve = state.is_prepared() && state.is_kafka_connected() && state.has_read_enough();
    let status = if can_serve { "serves" } else { "waiting for Kafka" };
    if !*ready && can_serve {
        *ready = true;
        gateway.supervisor.ready(status);
    } else if !*ready {
        gateway.supervisor.starting(status);
    } else if gateway.tasks.liveness().iter().all(|(_, alive)| *alive) {
        gateway.supervisor.alive(status);
    }
}

/// Ends the gateway after a thread died, or because the cluster cannot be used.
fn fail(gateway: Gateway) -> ExitCode {
    let unusable = gateway.unusable.is_triggered();
    let code = if unusable { ExitCode::Usage } else { ExitCode::Fatal };
    let disarm = arm_watchdog(Instant::now() + FATAL_END, code);
    if !unusable {
        log::error!("the gateway ends: a thread that must not end has ended (its own log line has the reason)");
    }
    gateway.service.start_draining();
    respond_to_the_rest(&gateway);
    end(gateway);
    drop(disarm);
    code
}

fn drain(mut gateway: Gateway, signals: &Signals) -> ExitCode {
    let began = Instant::now();
    let grace = gateway.state.config.stop_grace_period;
    // First of all, so that the process ends in time even if a later line blocks.
    let exit_at = began + grace.saturating_sub(EXIT_MARGIN);
    let disarm = arm_watchdog(exit_at, ExitCode::Fatal);
    gateway.service.start_draining();
    let waiting = gateway.tasks.callers();
    log::info!("🛑 Gateway received {}, initiating graceful shutdown; {waiting} caller(s) wait", signals.name());
    let until = began + grace.saturating_sub(ANSWERS_END);
    let forced = match wait_until_answered(&mut gateway, signals, until) {
        Waited::Answered | Waited::Late => false,
        Waited::Forced => true,
        Waited::Failed => return fail(gateway),
    };
    let left = respond_to_the_rest(&gateway);
    let code = if forced && left > 0 { ExitCode::Forced } else { ExitCode::Drained };
    // All callers have their responses, so a thread that ends late does not change the exit code.
    let disarm = (arm_watchdog(exit_at, code), drop(disarm)).0;
    end(gateway);
    log::info!("👋 Gateway gracefully shut down after {:.3} s", began.elapsed().as_secs_f64());
    drop(disarm);
    code
}

/// Why a drain stops waiting for callers.
enum Waited {
    Answered,
    Late,
    Forced,
    Failed,
}

fn wait_until_answered(gateway: &mut Gateway, signals: &Signals, until: Instant) -> Waited {
    let (look, round, over) = (tick(LOOK), tick(supervisor::INTERVAL), crossbeam_channel::at(until));
    gateway.supervisor.stopping("stops");
    // One thread waits for one condition, for seconds at most: a tick is simpler than a signal from every connection.
    while gateway.service.unanswered.before() > 0 {
        select! {
            recv(look) -> _ => {}
            recv(round) -> _ => {
                let callers = gateway.service.unanswered.before();
                let left = until.saturating_duration_since(Instant::now());
                gateway.supervisor.stopping(&format!("answering {callers} caller(s), {} s left", left.as_secs()));
            }
            recv(over) -> _ => {
                log::warn!("the time for results is over; the waiting callers get 503 with their task ids");
                return Waited::Late;
            }
            recv(signals.second.triggered()) -> _ => {
                log::warn!("🛑 Gateway received a second signal; the waiting callers get 503 with their task ids");
                return Waited::Forced;
            }
            recv(gateway.fatal.triggered()) -> _ => return Waited::Failed,
        }
    }
    Waited::Answered
}

/// Gives all waiting callers their responses, and waits until these are written. Returns the number of callers.
fn respond_to_the_rest(gateway: &Gateway) -> usize {
    let count = gateway.tasks.close();
    let unanswered = &gateway.service.unanswered;
    wait_while(LAST_RESPONSES, || unanswered.before() > 0);
    // Later requests get responses as well, but steady traffic always leaves some waiting.
    wait_while(LATER_RESPONSES, || unanswered.count() > 0);
    count
}

/// Polls the condition every [`LOOK`] until it is false, for at most `most`.
fn wait_while(most: Duration, condition: impl Fn() -> bool) {
    let (deadline, look) = (crossbeam_channel::at(Instant::now() + most), tick(LOOK));
    while condition() {
        select! {
            recv(look) -> _ => {}
            recv(deadline) -> _ => break,
        }
    }
}

/// Ends the threads: waits [`LAST_PRODUCE`] for Kafka's acknowledgements, then closes the sockets.
fn end(gateway: Gateway) {
    gateway.tasks.close_producer(Instant::now() + LAST_PRODUCE);
    gateway.end.trigger();
    gateway.interrupter.interrupt();
    gateway.addresses.iter().for_each(|address| listener::wake(*address));
    let deadline = Instant::now() + JOIN;
    for thread in gateway.threads {
        if let Err(thread) = thread.join_deadline(deadline) {
            log::debug!("thread {} ends with the process", thread.name());
        }
    }
}

/// Ends the process at `exit_at`, unless the returned guard is dropped before.
fn arm_watchdog(exit_at: Instant, code: ExitCode) -> crossbeam_channel::Sender<Infallible> {
    let (disarm, disarmed) = bounded::<Infallible>(0);
    let watchdog = threads::spawn("watchdog", Stop::new(), move || -> Result<(), Infallible> {
        if disarmed.recv_deadline(exit_at) == Err(crossbeam_channel::RecvTimeoutError::Timeout) {
            exit::terminate(code);
        }
        Ok(())
    });
    // The thread ends with the guard, or it ends the process within the grace period, so it need not be joined.
    drop(watchdog);
    disarm
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::GatewayConfig;
    use program::http::Client;
    use std::net::Ipv4Addr;

    const SOON: Duration = Duration::from_secs(20);

    /// A gateway that finds no Kafka.
    fn gateway() -> Gateway {
        let http_addr = SocketAddr::from((Ipv4Addr::LOCALHOST, 0));
        let mut config = GatewayConfig { http_addr, ..GatewayConfig::default() };
        config.common.bootstrap = vec!["127.0.0.1:1".parse().expect("an address")];
        start(config).expect("a free port")
    }

    #[test]
    fn gateway_without_kafka_serves_and_stops_at_once() {
        let (gateway, signals) = (gateway(), Signals::manual());
        let address = gateway.addresses[0];
        let mut client = Client::new(address, Stop::new());
        let status = |path| client.get(path, SOON).expect("a response").status;
        assert_eq!(["/livez", "/readyz", "/health", "/metrics"].map(status), [200, 503, 503, 200]);
        signals.deliver("SIGTERM");
        let began = Instant::now();
        assert_eq!(run_until_stopped(gateway, &signals), ExitCode::Drained);
        assert!(began.elapsed() < SOON, "{:?}", began.elapsed());
        assert!(TcpListener::bind(address).is_ok(), "the port is free");
    }

    #[test]
    fn address_for_operators_has_what_callers_do_not_see() {
        let any = SocketAddr::from((Ipv4Addr::LOCALHOST, 0));
        let mut config = GatewayConfig { http_addr: any, admin_addr: Some(any), ..GatewayConfig::default() };
        config.common.bootstrap = vec!["127.0.0.1:1".parse().expect("an address")];
        let (gateway, signals) = (start(config).expect("free ports"), Signals::manual());
        let paths = ["/", "/workers/status", "/metrics", "/health", "/livez", "/readyz", "/tasks/1", "/nothing"];
        let addresses = gateway.addresses.clone();
        let statuses = |address| {
            let mut client = Client::new(address, Stop::new());
            paths.map(|path| client.get(path, SOON).expect("a response").status)
        };
        assert_eq!(statuses(addresses[0]), [404, 404, 404, 503, 200, 503, 503, 404]);
        assert_eq!(statuses(addresses[1]), [200, 200, 200, 503, 200, 503, 404, 404]);
        signals.deliver("SIGTERM");
        assert_eq!(run_until_stopped(gateway, &signals), ExitCode::Drained);
        assert!(addresses.iter().all(|address| TcpListener::bind(address).is_ok()), "the ports are free");
    }

    #[test]
    fn dead_thread_ends_the_gateway_with_the_exit_code_of_its_cause() {
        for (unusable, code) in [(false, ExitCode::Fatal), (true, ExitCode::Usage)] {
            let gateway = gateway();
            if unusable {
                gateway.unusable.trigger();
            }
            gateway.fatal.trigger();
            assert_eq!(run_until_stopped(gateway, &Signals::manual()), code);
        }
    }

    #[test]
    fn stop_waits_for_earlier_requests_until_a_second_signal() {
        let (gateway, signals) = (gateway(), Signals::manual());
        let (service, state) = (Arc::clone(&gateway.service), Arc::clone(&gateway.state));
        let request = service.unanswered.enter();
        signals.deliver("SIGTERM");
        let began = Instant::now();
        std::thread::scope(|scope| {
            let stopped = scope.spawn(|| run_until_stopped(gateway, &signals));
            while !state.is_draining() {
                assert!(began.elapsed() < SOON, "the stop does not begin");
                std::thread::yield_now();
            }
            let later = service.unanswered.enter();
            assert!(!stopped.is_finished(), "a request is not answered");
            signals.deliver("SIGTERM");
            // No caller waited for a task, so none was left without its result.
            assert_eq!(stopped.join().expect("no panic"), ExitCode::Drained);
            drop(later);
        });
        drop(request);
        assert!(began.elapsed() < SOON, "{:?}", began.elapsed());
    }
}
