//! The reply to one request, with the faults that apply to it.
//!
//! Called by `server`, for every request; [`dispatch`] makes the response of a request without faults, and
//! [`authentication`](super::authentication) that of SASL.

use std::time::{Duration, Instant};

use bytes::{Bytes, BytesMut};
use kafka_protocol::messages::ApiKey;

use super::asked::Asked;
use super::authentication::{Admission, Authentication, FAILURE_DELAY, ILLEGAL_SASL_STATE};
use super::core::{Core, Order};
use super::damage::damaged;
use super::dispatch;
use super::faults::{Action, Due, Kind};
use super::node::Condition;
use super::refusals;
use super::state::{Caller, Refusal};
use super::throttle::throttled;
use kafka_share::ErrorCode;

/// A connection's next step.
pub(super) enum Reply {
    /// Write these bytes in this manner.
    Answer(Bytes, Manner),
    /// Read the next request.
    Nothing,
    /// Close the connection, as Kafka closes one.
    Close,
    /// Break the connection off, as the end of a process does: TLS says no goodbye.
    Cut,
    /// Neither answer nor read until the node ends.
    Deaf,
    /// Send a fatal TLS alert and close the connection.
    Alert,
    /// Do this, then read nothing for this long.
    Throttled(Box<Reply>, Duration),
}

/// How a response is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Manner {
    Whole,
    /// Two times in one piece.
    Twice,
    /// Byte by byte.
    Trickling,
    /// This many bytes of it. Then neither answer nor read until the node ends.
    Truncated(usize),
}

impl Core {
    /// Answers one request of a connection. Afterwards the connection is closed if its authentication has failed.
    pub fn answer(&self, caller: Caller, frame: Bytes, login: &mut Authentication) -> Reply {
        let node = caller.node;
        if !self.pass(node) {
            return Reply::Cut;
        }
        let Some(asked) = Asked::read(frame) else { return Reply::Close };
        match login.admit(&asked, Instant::now()) {
            Admission::Serve => {}
            Admission::Close => return Reply::Close,
            Admission::Illegal => {
                self.linger(node, FAILURE_DELAY);
                return reply(&asked, refused(&asked, ILLEGAL_SASL_STATE));
            }
        }
        let caller = Caller { client: &asked.client, ..caller };
        let scope = || self.state.lock().scope(&caller, &asked);
        let due = self.faults.due(asked.key as i16, &asked.client, node, scope);
        let reply = match due.is_empty() {
            true => reply(&asked, self.done(&caller, &asked, login)),
            false => self.spoiled(caller, &asked, &due, login),
        };
        if self.pass(node) { reply } else { Reply::Cut }
    }

    fn done(&self, caller: &Caller, asked: &Asked, login: &mut Authentication) -> Option<BytesMut> {
        match asked.key {
            ApiKey::SaslHandshake | ApiKey::SaslAuthenticate => login.answer(self, caller.node, asked),
            _ => dispatch::answer(self, caller, asked),
        }
    }

    /// Answers a request to which faults apply.
    fn spoiled(&self, mut caller: Caller, asked: &Asked, due: &[Due], login: &mut Authentication) -> Reply {
        let kind = Kind::of_api_key(asked.key as i16);
        let says = |code| refused(asked, code);
        for fault in due {
            match fault.action {
                Action::Refuse(code) if fault.is_whole() => return reply(asked, says(code)),
                Action::Refuse(code) => caller.refusals.push(refusal(fault, code, false)),
                Action::CutBefore => return Reply::Cut,
                Action::Deafen => return Reply::Deaf,
                Action::Alert => return Reply::Alert,
                Action::RefuseAcknowledgements(code) => caller.refusals.push(refusal(fault, code, true)),
                Action::Delay(time) => self.linger(caller.node, time),
                Action::Freeze(after) => self.stand_still(caller.node, after),
                Action::Restart(after) => {
                    self.order(Order::Restart(after));
                    return Reply::Cut;
                }
                Action::MoveLeaders => self.change(|state, now| state.move_leaders(caller.node, now)),
                Action::MoveCoordinators => self.change(|state, _| state.move_coordinators(caller.node)),
                Action::Late(_)
                | Action::Misreport(_)
                | Action::CutAfter
                | Action::AnswerTwice
                | Action::Trickle
                | Action::Truncate(_)
                | Action::Throttle(_)
                | Action::Damage => {}
            }
        }
        let throttle =
            due.iter().find_map(|fault| if let Action::Throttle(time) = fault.action { Some(time) } else { None });
        let throttle = kind.zip(throttle);
        let body = self.done(&caller, asked, login);
        let body = match throttle {
            Some((kind, time)) => body.and_then(|body| throttled(kind, asked, body, time)),
            None => body,
        };
        let damages = kind.filter(|_| due.iter().any(|fault| fault.action == Action::Damage));
        let body = match damages {
            Some(kind) => body.and_then(|body| damaged(kind, asked, body)),
            None => body,
        };
        let mut answer = reply(asked, body);
        for fault in due {
            match (fault.action, &mut answer) {
                (Action::Late(time), _) => self.linger(caller.node, time),
                (Action::CutAfter, _) => return Reply::Cut,
                (Action::Misreport(code), _) => answer = reply(asked, says(code)),
                (Action::AnswerTwice, Reply::Answer(_, manner)) => *manner = Manner::Twice,
                (Action::Trickle, Reply::Answer(_, manner)) => *manner = Manner::Trickling,
                (Action::Truncate(count), Reply::Answer(_, manner)) => *manner = Manner::Truncated(count),
                _ => {}
            }
        }
        match throttle {
            Some((_, time)) => Reply::Throttled(Box::new(answer), time),
            None => answer,
        }
    }

    fn stand_still(&self, node: i32, time: Duration) {
        self.change(|state, now| state.node_ids().for_each(|id| state.silence(id, Condition::Frozen, now)));
        if !self.order(Order::Thaw(time)) {
            self.change(|state, now| state.node_ids().for_each(|id| state.resume(id, now)));
        }
        self.pass(node);
    }
}

fn reply(asked: &Asked, body: Option<BytesMut>) -> Reply {
    match body.and_then(|body| asked.answer(&body)) {
        None => Reply::Close,
        Some(_) if asked.wants_no_answer() => Reply::Nothing,
        Some(frame) => Reply::Answer(frame, Manner::Whole),
    }
}

/// The body of a response with nothing but this code; `None` for requests without a [`Kind`].
fn refused(asked: &Asked, code: ErrorCode) -> Option<BytesMut> {
    refusals::body(Kind::of_api_key(asked.key as i16)?, asked.version, asked.body.clone(), code)
}

fn refusal(due: &Due, code: ErrorCode, acknowledgements: bool) -> Refusal {
    Refusal { topic: due.topic.clone(), partition: due.partition, acknowledgements, code }
}
