//! The broker behind its connections: state, waits, time and faults.
//!
//! Touches no socket. Called by `server` and `answer`.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant, SystemTime};

use crossbeam_channel::Sender;
use kafka_protocol::messages::{
    FetchRequest, FetchResponse, ProduceRequest, ProduceResponse, ShareAcknowledgeResponse, ShareFetchResponse,
};
use parking_lot::{Condvar, Mutex, MutexGuard};

use super::faults::Faults;
use super::node::Condition;
use super::produce::ALL;
use super::security::Secured;
use super::settings::milliseconds;
use super::share_partition::Said;
use super::share_wire::{Acknowledge, Fetch, Statements};
use super::state::{Caller, State};
use kafka_share::{ErrorCode, records};
use program::stop::Stop;

/// Longest interval of the timer.
const TICK: Duration = Duration::from_millis(50);

/// An effect of a fault beyond the current request.
#[derive(Clone, Copy, Debug)]
pub(super) enum Order {
    /// Kill all nodes, and start them again after this time.
    Restart(Duration),
    /// End the freeze of all nodes after this time.
    Thaw(Duration),
}

/// State and faults of a broker, shared by all its connections.
pub(super) struct Core {
    pub state: Mutex<State>,
    /// Notified after every change that a request may wait for.
    pub changed: Condvar,
    pub faults: Faults,
    /// How connections are secured from now on.
    security: Mutex<Arc<Secured>>,
    orders: Sender<Order>,
    /// Number of connections so far.
    connections: AtomicU64,
}

impl Core {
    pub fn new(state: State, orders: Sender<Order>) -> Self {
        let (changed, faults, security) = (Condvar::new(), Faults::default(), Mutex::default());
        Self { state: Mutex::new(state), changed, faults, security, orders, connections: AtomicU64::new(0) }
    }

    /// Returns how connections are secured now.
    pub fn security(&self) -> Arc<Secured> {
        Arc::clone(&self.security.lock())
    }

    /// Secures later connections like this.
    pub fn set_security(&self, security: Secured) {
        *self.security.lock() = Arc::new(security);
    }

    /// Returns a new connection number.
    pub fn next_connection(&self) -> u64 {
        self.connections.fetch_add(1, Ordering::Relaxed) + 1
    }

    /// Passes an order on. Returns false if it is dropped: too many orders wait, or the broker ends.
    pub fn order(&self, order: Order) -> bool {
        self.orders.try_send(order).is_ok()
    }

    /// Changes the state and wakes every waiting request.
    pub fn change<T>(&self, change: impl FnOnce(&mut State, Instant) -> T) -> T {
        let mut state = self.state.lock();
        let changed = change(&mut state, Instant::now());
        drop(state);
        self.changed.notify_all();
        changed
    }

    /// Waits while the node is frozen or cut off; returns `false` if it is down.
    pub fn pass(&self, node: i32) -> bool {
        let mut state = self.state.lock();
        while matches!(state.condition(node), Condition::Frozen | Condition::Cut) {
            self.changed.wait(&mut state);
        }
        state.condition(node) == Condition::Running
    }

    /// Waits until the node is down.
    pub fn outlast(&self, node: i32) {
        let mut state = self.state.lock();
        while state.condition(node) != Condition::Down {
            self.changed.wait(&mut state);
        }
    }

    /// Waits while the node is frozen; returns whether it is down. A node that is cut off continues to work; only its
    /// responses wait.
    fn moving(&self, state: &mut MutexGuard<'_, State>, node: i32) -> bool {
        while state.condition(node) == Condition::Frozen {
            self.changed.wait(state);
        }
        state.condition(node) == Condition::Down
    }

    /// Waits for this long, or until the node ends.
    pub fn linger(&self, node: i32, time: Duration) {
        let until = Instant::now() + time;
        let mut state = self.state.lock();
        while state.condition(node) != Condition::Down && !self.changed.wait_until(&mut state, until).timed_out() {}
    }

    /// Produce. With `acks=all` waits for all in-sync replicas, at most for the request's timeout. After that the
    /// response is error 7, although the records are in the log.
    pub fn produce(&self, caller: &Caller, version: i16, request: &ProduceRequest) -> ProduceResponse {
        let now = Instant::now();
        let deadline = now + milliseconds(request.timeout_ms.into());
        let mut state = self.state.lock();
        if self.moving(&mut state, caller.node) {
            return ProduceResponse::default();
        }
        let mut answer = state.produce(caller, version, request, now, now_ms());
        self.changed.notify_all();
        if request.acks != ALL {
            return answer;
        }
        let names = request.topic_data.iter().map(|topic| state.produced_topic(topic, version).unwrap_or_default());
        let names: Vec<String> = names.collect();
        for (name, topic) in names.iter().zip(&mut answer.responses) {
            for partition in topic.partition_responses.iter_mut().filter(|partition| partition.error_code == 0) {
                while state.is_unreplicated(name, partition.index) && Instant::now() < deadline {
                    self.changed.wait_until(&mut state, deadline);
                    if self.moving(&mut state, caller.node) {
                        return answer;
                    }
                }
                if state.is_unreplicated(name, partition.index) {
                    partition.error_code = ErrorCode::REQUEST_TIMED_OUT.0;
                }
            }
        }
        answer
    }

    /// Fetch: waits for the requested bytes, at most for the requested time.
    pub fn fetch(&self, caller: &Caller, version: i16, request: &FetchRequest) -> FetchResponse {
        let deadline = Instant::now() + milliseconds(request.max_wait_ms.into());
        let least = usize::try_from(request.min_bytes).unwrap_or(0);
        let mut state = self.state.lock();
        loop {
            if self.moving(&mut state, caller.node) {
                return FetchResponse::default();
            }
            let found = state.fetch(caller, version, request, Instant::now());
            if found.urgent || found.bytes >= least || Instant::now() >= deadline {
                return found.response;
            }
            self.changed.wait_until(&mut state, deadline);
        }
    }

    /// ShareFetch: waits for records, at most for the requested time. Appended records and expired locks wake it;
    /// released records are found only at the end.
    pub fn share_fetch(&self, caller: &Caller, fetch: &Fetch) -> ShareFetchResponse {
        let deadline = Instant::now() + milliseconds(fetch.request.max_wait_ms.into());
        let mut state = self.state.lock();
        if self.moving(&mut state, caller.node) {
            return ShareFetchResponse::default();
        }
        let mut parked = match state.take_share_fetch(caller, fetch, Instant::now()) {
            Ok(parked) => parked,
            Err(answer) => return answer,
        };
        if changes_state(&fetch.statements()) {
            self.await_share_state(&mut state, caller.node);
        }
        let mut signal = None;
        loop {
            let over = Instant::now() >= deadline;
            let current = state.share_fetch_signal(&parked);
            let looks = over || signal != Some(current);
            if (looks && state.try_share_fetch(caller, &mut parked, Instant::now())) || over {
                return state.finish_share_fetch(parked);
            }
            signal = Some(current);
            self.changed.wait_until(&mut state, deadline);
            if self.moving(&mut state, caller.node) {
                return ShareFetchResponse::default();
            }
        }
    }

    /// ShareAcknowledge. Also returns the lock duration of the group in milliseconds.
    pub fn share_acknowledge(&self, caller: &Caller, acknowledge: &Acknowledge) -> (ShareAcknowledgeResponse, i32) {
        let mut state = self.state.lock();
        if self.moving(&mut state, caller.node) {
            return (ShareAcknowledgeResponse::default(), 0);
        }
        let answer = state.share_acknowledge(caller, acknowledge, Instant::now());
        if changes_state(&acknowledge.statements()) {
            self.await_share_state(&mut state, caller.node);
        }
        let group = acknowledge.request.group_id.as_ref().map_or("", |group| group.as_str());
        (answer, state.lock_ms(group))
    }

    /// Waits until every node that is not fenced has written the share state. Renewals and fetches never wait for it
    /// (measured on Kafka 4.4).
    fn await_share_state(&self, state: &mut MutexGuard<'_, State>, node: i32) {
        while !self.moving(state, node) && state.is_share_state_held_up() {
            self.changed.wait(state);
        }
    }

    /// Handles the end of a connection. A node that is frozen or cut off notices it later.
    pub fn disconnected(&self, caller: &Caller) {
        if self.pass(caller.node) {
            self.end_sessions_of(caller.connection);
        }
    }

    /// Ends the sessions of a closed connection, and with them a parked ShareFetch.
    pub fn end_sessions_of(&self, connection: u64) {
        self.change(|state, _| state.end_sessions_of(connection));
    }

    /// Runs the timer until stopped: fences nodes, expires locks and silent members, drops old records. `close_idle`
    /// closes idle connections.
    pub fn keep_time(&self, stop: &Stop, close_idle: impl Fn(Instant)) {
        let mut clean_at = Instant::now();
        let mut pause = TICK;
        while stop.sleep(pause).is_ok() {
            let (mut state, now) = (self.state.lock(), Instant::now());
            let controlled = state.control(now);
            if now >= clean_at {
                clean_at = now + state.settings.duration("log.retention.check.interval.ms");
                state.apply_retention(now_ms());
            }
            let (any, next) = state.expire(now);
            drop(state);
            close_idle(now);
            if any || controlled {
                self.changed.notify_all();
            }
            let until_next = next.map_or(TICK, |next| next.saturating_duration_since(Instant::now()));
            pause = until_next.clamp(Duration::from_millis(1), TICK);
        }
    }
}

/// Whether a request contains any acknowledgement other than a renewal.
fn changes_state(said: &Statements) -> bool {
    said.iter().any(|(_, said)| said.as_ref().is_ok_and(|said| said.iter().any(|(_, said)| *said != Said::Renew)))
}

/// The current time in milliseconds since 1970.
pub(super) fn now_ms() -> i64 {
    records::milliseconds(SystemTime::now())
}
