//! The broker as its connections see it: state, waiting, time, and the faults that are due.
//!
//! Nothing here touches a socket. Called by `server`, for every request and every connection that ends.

use std::time::{Duration, Instant};

use bytes::{Bytes, BytesMut};
use crossbeam_channel::Sender;
use kafka_protocol::messages::{FetchRequest, FetchResponse, ShareFetchResponse};
use parking_lot::{Condvar, Mutex, MutexGuard};

use super::dispatch::{self, Asked, now_ms};
use super::faults::{Action, Faults, Kind};
use super::refusals;
use super::settings::milliseconds;
use super::share_wire::Fetch;
use super::state::{Caller, State};
use super::throttle::throttled;
use crate::stop::Stop;

/// The timer looks at least so often.
const TICK: Duration = Duration::from_millis(50);
/// After a thaw requests that wait in sockets come first, then locks run out, as seen with Kafka.
const THAW_GRACE: Duration = Duration::from_millis(50);

/// What a connection does next.
pub(super) enum Reply {
    /// Writes these bytes, so many times.
    Answer(Bytes, usize),
    /// Reads on.
    Nothing,
    /// Hangs up.
    Close,
    /// Does this, and then reads nothing for this long.
    Throttled(Box<Reply>, Duration),
}

/// What a fault orders beyond the request that it bites.
#[derive(Clone, Copy, Debug)]
pub(super) enum Order {
    /// Ends the broker and starts it again after so long.
    Restart { after: Duration, forget: bool },
    /// Ends a freeze after so long.
    Thaw { after: Duration },
}

/// See the module documentation.
pub(super) struct Core {
    pub state: Mutex<State>,
    /// Something changed that somebody may wait for.
    pub changed: Condvar,
    pub faults: Faults,
    orders: Sender<Order>,
}

impl Core {
    pub fn new(state: State, orders: Sender<Order>) -> Self {
        Self { state: Mutex::new(state), changed: Condvar::new(), faults: Faults::new(), orders }
    }

    /// One request of a connection.
    pub fn answer(&self, caller: Caller, frame: Bytes) -> Reply {
        if !self.pass() {
            return Reply::Close;
        }
        let Some(asked) = Asked::read(frame) else { return Reply::Close };
        let caller = Caller { client: &asked.client, ..caller };
        let due = self.faults.due(asked.key as i16, &asked.client);
        let reply =
            if due.is_empty() { reply(&asked, self.done(&caller, &asked)) } else { self.spoiled(caller, &asked, &due) };
        if self.pass() { reply } else { Reply::Close }
    }

    fn done(&self, caller: &Caller, asked: &Asked) -> Option<BytesMut> {
        dispatch::answer(self, caller, asked)
    }

    /// The same with faults.
    fn spoiled(&self, mut caller: Caller, asked: &Asked, due: &[Action]) -> Reply {
        let kind = Kind::of_api_key(asked.key as i16);
        let says = |code| kind.and_then(|kind| refusals::body(kind, asked.version, asked.body.clone(), code));
        for action in due {
            match *action {
                Action::Refuse(code) => return reply(asked, says(code)),
                Action::CutBefore => return Reply::Close,
                Action::RefuseAcknowledgements(code) => caller.refuses = Some(code),
                Action::Delay(time) => self.linger(time),
                Action::Freeze(time) => {
                    self.freeze();
                    self.order(Order::Thaw { after: time });
                    self.pass();
                }
                Action::Restart(after) => {
                    self.order(Order::Restart { after, forget: false });
                    return Reply::Close;
                }
                Action::Forget(after) => {
                    self.order(Order::Restart { after, forget: true });
                    return Reply::Close;
                }
                Action::MoveLeaders => self.move_leaders(caller.node),
                Action::MoveCoordinators => self.move_coordinators(caller.node),
                Action::Misreport(_) | Action::CutAfter | Action::AnswerTwice | Action::Throttle(_) => {}
            }
        }
        let throttle =
            due.iter().find_map(|action| if let Action::Throttle(time) = action { Some(*time) } else { None });
        let body = self.done(&caller, asked);
        let body = match (kind, throttle) {
            (Some(kind), Some(time)) => body.and_then(|body| throttled(kind, asked, body, time)),
            _ => body,
        };
        let mut answer = reply(asked, body);
        for action in due {
            match (*action, &mut answer) {
                (Action::CutAfter, _) => return Reply::Close,
                (Action::Misreport(code), _) => answer = reply(asked, says(code)),
                (Action::AnswerTwice, Reply::Answer(_, times)) => *times = 2,
                _ => {}
            }
        }
        match throttle {
            Some(time) => Reply::Throttled(Box::new(answer), time),
            None => answer,
        }
    }

    fn order(&self, order: Order) {
        // Full or gone: there are orders enough, or nobody to carry them out any more.
        let _ = self.orders.try_send(order);
    }

    /// Waits while the broker is frozen; `false` when it is over.
    fn pass(&self) -> bool {
        !self.moving(&mut self.state.lock())
    }

    /// Waits while frozen; whether the broker has stopped.
    fn moving(&self, state: &mut MutexGuard<'_, State>) -> bool {
        while state.frozen && !state.stopped {
            self.changed.wait(state);
        }
        state.stopped
    }

    /// Waits for this long, or until the broker ends.
    pub fn linger(&self, time: Duration) {
        let until = Instant::now() + time;
        let mut state = self.state.lock();
        while !state.stopped && !self.changed.wait_until(&mut state, until).timed_out() {}
    }

    /// Fetch: waits for as many bytes as were asked for, but no longer than was asked for.
    pub fn fetch(&self, caller: &Caller, version: i16, request: &FetchRequest) -> FetchResponse {
        let deadline = Instant::now() + milliseconds(request.max_wait_ms.into());
        let least = usize::try_from(request.min_bytes).unwrap_or(0);
        let mut state = self.state.lock();
        loop {
            if self.moving(&mut state) {
                return FetchResponse::default();
            }
            let found = state.fetch(caller, version, request, Instant::now());
            if found.urgent || found.bytes >= least || Instant::now() >= deadline {
                return found.response;
            }
            self.changed.wait_until(&mut state, deadline);
        }
    }

    /// ShareFetch: waits until it has records, or no longer than was asked for. Records appended and locks run out wake it; records given
    /// back are found at the end.
    pub fn share_fetch(&self, caller: &Caller, fetch: &Fetch) -> ShareFetchResponse {
        let deadline = Instant::now() + milliseconds(fetch.request.max_wait_ms.into());
        let mut state = self.state.lock();
        let mut parked = match state.take_share_fetch(caller, fetch, Instant::now()) {
            Ok(parked) => parked,
            Err(answer) => return answer,
        };
        let mut signal = None;
        loop {
            let over = Instant::now() >= deadline;
            let current = state.share_fetch_signal(&parked.key);
            let looks = over || signal != Some(current);
            if (looks && state.try_share_fetch(caller, &mut parked, Instant::now())) || over {
                return state.finish_share_fetch(parked);
            }
            signal = Some(current);
            self.changed.wait_until(&mut state, deadline);
            if self.moving(&mut state) {
                return ShareFetchResponse::default();
            }
        }
    }

    /// A connection has ended.
    pub fn disconnected(&self, connection: u64) {
        let mut state = self.state.lock();
        if !state.stopped {
            state.end_sessions_of(connection);
        }
        drop(state);
        // A ShareFetch of the connection may be parked.
        self.changed.notify_all();
    }

    /// From now on nothing moves.
    pub fn freeze(&self) {
        self.state.lock().frozen = true;
    }

    /// It moves again.
    pub fn thaw(&self) {
        self.state.lock().frozen = false;
        self.changed.notify_all();
    }

    /// Every waiting request ends without an answer.
    pub fn end(&self) {
        self.state.lock().stopped = true;
        self.changed.notify_all();
    }

    fn move_leaders(&self, from: i32) {
        let mut state = self.state.lock();
        let topics = state.topics.iter();
        let led: Vec<(String, i32)> = topics
            .flat_map(|(name, topic)| {
                let led = (0..).zip(&topic.partitions).filter(|(_, partition)| partition.leader == from);
                led.map(|(index, _)| (name.clone(), index))
            })
            .collect();
        let to = next_node(&state, from);
        for (topic, index) in led {
            state.move_leader(&topic, index, to);
        }
        drop(state);
        self.changed.notify_all();
    }

    fn move_coordinators(&self, from: i32) {
        let mut state = self.state.lock();
        let to = next_node(&state, from);
        let groups: Vec<String> = state.groups.keys().filter(|id| state.coordinator(id) == from).cloned().collect();
        for group in groups {
            state.coordinators.insert(group, to);
        }
    }

    /// Lets time pass until stopped: locks run out, silent members go, old records are dropped, idle connections are closed by
    /// `close_idle`.
    pub fn keep_time(&self, stop: &Stop, close_idle: impl Fn(Instant)) {
        let mut clean_at = Instant::now();
        let mut was_frozen = false;
        let mut pause = TICK;
        while stop.sleep(pause).is_ok() {
            let (mut state, now) = (self.state.lock(), Instant::now());
            if state.frozen {
                was_frozen = true;
                continue;
            }
            if std::mem::take(&mut was_frozen) {
                pause = THAW_GRACE;
                continue;
            }
            if now >= clean_at {
                clean_at = now + state.settings.duration("log.retention.check.interval.ms");
                state.apply_retention(now_ms());
            }
            let (any, next) = state.expire(now);
            drop(state);
            close_idle(now);
            if any {
                self.changed.notify_all();
            }
            let until_next = next.map_or(TICK, |next| next.saturating_duration_since(Instant::now()));
            pause = until_next.clamp(Duration::from_millis(1), TICK);
        }
    }
}

fn reply(asked: &Asked, body: Option<BytesMut>) -> Reply {
    match body.and_then(|body| asked.answer(&body)) {
        None => Reply::Close,
        Some(_) if asked.wants_no_answer() => Reply::Nothing,
        Some(frame) => Reply::Answer(frame, 1),
    }
}

fn next_node(state: &State, node: i32) -> i32 {
    if state.node(node + 1).is_some() { node + 1 } else { 1 }
}
