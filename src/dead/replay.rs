//! The steps of a replay and of a drop.
//!
//! A replay claims the letter, resets the task's starts, produces the task, and marks the letter as replayed; Kafka has
//! acknowledged each step before the next. A process that ends in between leaves a claim, which expires. The next replay
//! then searches the tasks topic for the task first, and only adds the mark if it is there.

use std::borrow::Cow;
use std::io::Write;
use std::time::{Duration, Instant, SystemTime};

use bytes::Bytes;
use program::logging::escape;

use super::letters::{CLAIM_LIFE, Letter, LetterState, Letters};
use super::topic::DeadTopic;
use super::{Chosen, DeadConfig, DeadError};
use crate::task::dead::{LETTER_HEADERS, LetterId, Mark, MarkKind, REPLAY_HEADER};
use crate::task::{Task, TaskReplayed};

pub(super) const NOT_FOUND: &str = "there is no such letter";
/// The task is sent within this time after its claim was begun; after [`CLAIM_LIFE`] another operator may send it.
const SEND_WITHIN: Duration = Duration::from_secs(10);

/// What happened to a letter.
enum Outcome {
    Done(String),
    NotDone(String),
}

/// The newest open letter of the task with this id, or else its newest letter; or the letter at this position.
pub(super) fn find<'l>(letters: &'l Letters, id: &str) -> Option<&'l Letter> {
    let of_task = letters.by_age().into_iter().filter(|letter| letter.task_id.as_deref() == Some(id));
    let newest = of_task.max_by_key(|letter| (letter.is_open(), letter.at, letter.id));
    newest.or_else(|| letters.get(id.parse().ok()?))
}

/// Replays the chosen letters, one line each. Returns whether all were replayed.
///
/// # Errors
/// Kafka failed; the lines say which letters were replayed.
pub(super) fn replay_all(
    topic: &mut DeadTopic,
    config: &DeadConfig,
    chosen: &Chosen,
    out: &mut impl Write,
) -> Result<bool, DeadError> {
    for_each(topic, chosen, out, |topic, id| replay(topic, &config.operator, id))
}

/// Drops the chosen letters, one line each. Returns whether all were dropped.
///
/// # Errors
/// Kafka failed; the lines say which letters were dropped.
pub(super) fn drop_all(
    topic: &mut DeadTopic,
    config: &DeadConfig,
    chosen: &Chosen,
    out: &mut impl Write,
) -> Result<bool, DeadError> {
    for_each(topic, chosen, out, |topic, id| drop_letter(topic, &config.operator, id))
}

fn for_each(
    topic: &mut DeadTopic,
    chosen: &Chosen,
    out: &mut impl Write,
    mut act: impl FnMut(&mut DeadTopic, LetterId) -> Result<Outcome, DeadError>,
) -> Result<bool, DeadError> {
    let named: Vec<(String, Option<LetterId>)> = match chosen {
        Chosen::Ids(ids) => ids.iter().map(|id| (id.clone(), find(topic.letters(), id).map(|it| it.id))).collect(),
        Chosen::Reason(reason) => {
            let letters = topic.letters().by_age().into_iter();
            let wanted = letters.filter(|letter| letter.is_open() && letter.has_reason(reason));
            wanted.map(|it| (it.task_id.clone().unwrap_or_else(|| it.id.to_string()), Some(it.id))).collect()
        }
    };
    let mut all = true;
    for (name, id) in named {
        let outcome = match id {
            Some(id) => act(topic, id),
            None => Ok(Outcome::NotDone(NOT_FOUND.to_owned())),
        };
        let (line, error) = match outcome {
            Ok(Outcome::Done(line)) => (line, None),
            Ok(Outcome::NotDone(line)) => {
                all = false;
                (line, None)
            }
            Err(error) => (format!("not done: {error}"), Some(error)),
        };
        // Fails without a reader, for example after `| head`; the letters are handled nevertheless.
        let _ = writeln!(out, "{}: {}", escape(&name), escape(&line));
        let _ = out.flush();
        if let Some(error) = error {
            return Err(error);
        }
    }
    Ok(all)
}

/// Why nothing can be done about a letter now, from its state.
fn obstacle(letter: &Letter, now: SystemTime) -> Option<String> {
    let operator = letter.marked.as_ref().map_or("", |(operator, _)| operator);
    match letter.state(now) {
        LetterState::Open | LetterState::Unfinished => None,
        LetterState::Replaying => {
            Some(format!("{operator} is replaying it; if it stays so, try again in {} s", CLAIM_LIFE.as_secs()))
        }
        LetterState::Replayed => Some(format!("{operator} has replayed it already")),
        LetterState::Dropped => Some(format!("{operator} has dropped it already")),
    }
}

fn replay(topic: &mut DeadTopic, operator: &str, id: LetterId) -> Result<Outcome, DeadError> {
    let now = SystemTime::now();
    let Some(letter) = topic.letters().get(id).cloned() else { return Ok(Outcome::NotDone(NOT_FOUND.to_owned())) };
    if let Some(obstacle) = obstacle(&letter, now) {
        return Ok(Outcome::NotDone(obstacle));
    }
    let Some(record) = topic.record(id)? else {
        return Ok(Outcome::NotDone("Kafka has deleted the letter".to_owned()));
    };
    let task_id = match Task::decode(record.key.as_deref(), record.value.as_deref()) {
        Ok(task) => task.task_id,
        Err(bad) => {
            let text = format!("it cannot be replayed, since it is no task that a worker takes: {bad}; drop it");
            return Ok(Outcome::NotDone(text));
        }
    };
    let mark = |kind, replay| Mark { kind, letter: id, replay, operator: operator.to_owned() };
    // Copies, since the record shares its memory with the whole response.
    let (key, value) = (record.key.clone(), record.value.clone());
    if let Some(replay) = topic.produced(&letter)? {
        topic.mark(&mark(MarkKind::Replayed, replay), key)?;
        return Ok(Outcome::Done(format!("replay {replay} had produced the task and was not finished; finished now")));
    }
    let began = Instant::now();
    let replay = topic.letters().next_replay(&letter, now);
    let offset = topic.mark(&mark(MarkKind::Claim, replay), key.clone())?;
    match topic.letters().get(id) {
        Some(held) if !held.is_held_by(offset) => {
            let other = obstacle(held, now).unwrap_or_else(|| "another operator was faster; try again".to_owned());
            return Ok(Outcome::NotDone(other));
        }
        // The task of another claim was not searched for.
        Some(held) if held.claims.len() > letter.claims.len() + 1 => {
            return Ok(Outcome::NotDone(format!("another replay ended unfinished; {}", unfinished())));
        }
        _ => {}
    }
    let kept = |name: &str| name != REPLAY_HEADER && !LETTER_HEADERS.contains(&name);
    let headers = record.headers.into_iter().filter(|(name, _)| kept(name));
    let headers = headers.map(|(name, value)| (Cow::Owned(name), value));
    let number = (Cow::Borrowed(REPLAY_HEADER), Some(Bytes::from(replay.to_string())));
    let headers = headers.chain([number]).collect();
    let reset = TaskReplayed { task_id, replay };
    let produced = topic.produce(&reset, (key.clone(), value), headers, began + SEND_WITHIN);
    let marked = produced.and_then(|_| topic.mark(&mark(MarkKind::Replayed, replay), key));
    match marked {
        Ok(_) => Ok(Outcome::Done(format!("replayed, as number {replay}"))),
        Err(DeadError::Kafka(why)) => Err(DeadError::Kafka(format!("{why}; {}", unfinished()))),
        Err(error) => Err(error),
    }
}

fn unfinished() -> String {
    format!("replay unfinished, try again in {} s", CLAIM_LIFE.as_secs())
}

fn drop_letter(topic: &mut DeadTopic, operator: &str, id: LetterId) -> Result<Outcome, DeadError> {
    let now = SystemTime::now();
    let Some(letter) = topic.letters().get(id).cloned() else { return Ok(Outcome::NotDone(NOT_FOUND.to_owned())) };
    if let Some(obstacle) = obstacle(&letter, now) {
        return Ok(Outcome::NotDone(obstacle));
    }
    let key = topic.record(id)?.and_then(|record| record.key);
    topic.mark(&Mark { kind: MarkKind::Dropped, letter: id, replay: 0, operator: operator.to_owned() }, key)?;
    let left = topic.letters().get(id);
    match left.filter(|letter| letter.state(now) != LetterState::Dropped).and_then(|letter| obstacle(letter, now)) {
        None => Ok(Outcome::Done("dropped".to_owned())),
        Some(other) => Ok(Outcome::NotDone(other)),
    }
}
