//! The steps of a replay and of a drop.
//!
//! A replay claims the letter, resets the task's starts, produces the task, and marks the letter as replayed; Kafka has
//! acknowledged each step before the next. A process that ends in between leaves a claim, which expires. The next replay
//! finds the task of that claim on the tasks topic, and then only adds the mark. Nor is a task replayed that is older
//! than another with its id, unless the operator names the letter by its position.

use std::borrow::Cow;
use std::io::Write;
use std::time::{Duration, Instant, SystemTime};

use bytes::Bytes;
use program::logging::escape;

use super::letters::{CLAIM_LIFE, Letter, LetterState, Letters};
use super::show::rfc3339;
use super::topic::{DeadTopic, Search};
use super::{Chosen, DeadConfig, DeadError};
use crate::task::dead::{LETTER_HEADERS, LetterId, Mark, MarkKind, REPLAY_HEADER};
use crate::task::{Task, TaskReplayed};

const FASTER: &str = "another operator was faster; try again";
pub(super) const NOT_FOUND: &str = "there is no such letter";
/// The task is in Kafka this long before its claim expires, and another operator may send it.
const MARGIN: Duration = Duration::from_secs(1);

/// What happened to a letter.
enum Outcome {
    Done(String),
    NotDone(String),
}

/// A letter that an operator has chosen.
struct Choice {
    /// As the operator names it.
    name: String,
    /// `None`: there is no such letter.
    letter: Option<LetterId>,
    /// Whether the operator has named this very letter, not its task.
    is_position: bool,
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
    topic.check_rights()?;
    let choices = choose(topic.letters(), chosen);
    let letters = choices.iter().filter_map(|choice| topic.letters().get(choice.letter?));
    let mut search = topic.search(&letters.filter(|letter| letter.is_open()).collect::<Vec<_>>());
    for_each(topic, choices, out, |topic, id, is_position| {
        replay(topic, &mut search, &config.operator, id, is_position)
    })
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
    let choices = choose(topic.letters(), chosen);
    for_each(topic, choices, out, |topic, id, _| drop_letter(topic, &config.operator, id))
}

fn choose(letters: &Letters, chosen: &Chosen) -> Vec<Choice> {
    match chosen {
        Chosen::Ids(ids) => {
            let choice = |id: &String| {
                let found = find(letters, id);
                let is_position = found.is_some_and(|letter| letter.task_id.as_ref() != Some(id));
                Choice { name: id.clone(), letter: found.map(|letter| letter.id), is_position }
            };
            ids.iter().map(choice).collect()
        }
        Chosen::Reason(reason) => {
            let wanted = letters.by_age().into_iter().filter(|letter| letter.is_open() && letter.has_reason(reason));
            let choice = |letter: &Letter| Choice {
                name: letter.task_id.clone().unwrap_or_else(|| letter.id.to_string()),
                letter: Some(letter.id),
                is_position: false,
            };
            wanted.map(choice).collect()
        }
    }
}

fn for_each(
    topic: &mut DeadTopic,
    choices: Vec<Choice>,
    out: &mut impl Write,
    mut act: impl FnMut(&mut DeadTopic, LetterId, bool) -> Result<Outcome, DeadError>,
) -> Result<bool, DeadError> {
    let mut all = true;
    for Choice { name, letter, is_position } in choices {
        let outcome = match letter {
            Some(id) => act(topic, id, is_position),
            None => Ok(Outcome::NotDone(NOT_FOUND.to_owned())),
        };
        let (line, error) = match outcome {
            Ok(Outcome::Done(line)) => (line, None),
            Ok(Outcome::NotDone(line)) => {
                all = false;
                (line, None)
            }
            // Another letter's record may be smaller, or have what this one lacks.
            Err(DeadError::Refused(why)) => {
                all = false;
                (format!("Kafka refuses the task: {why}; drop it"), None)
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

/// Why this letter is not replayed for its task's id or its reason; an operator may name it by its position.
fn doubt(topic: &mut DeadTopic, search: &Search, letter: &Letter) -> Result<Option<String>, DeadError> {
    let instead = format!("drop the letter, or replay it by its position {}", letter.id);
    if let Some(newer) = topic.letters().newer(letter) {
        return Ok(Some(format!("the letter {} of this task is newer; {instead}", newer.id)));
    }
    if let Some(at) = search.sightings.newer(letter) {
        let (tasks, at) = (topic.tasks(), rfc3339(at));
        return Ok(Some(format!("a newer task with this id is on {tasks} since {at}; {instead}")));
    }
    let Some(claim) = letter.claims.first() else { return Ok(None) };
    let since = topic.kept_since()?;
    let why = || {
        let (began, tasks, since) = (rfc3339(claim.at), topic.tasks(), rfc3339(since));
        format!("whether its replay of {began} ran is not known: {tasks} has only records since {since}; {instead}")
    };
    Ok((claim.at < since).then(why))
}

fn replay(
    topic: &mut DeadTopic,
    search: &mut Search,
    operator: &str,
    id: LetterId,
    is_position: bool,
) -> Result<Outcome, DeadError> {
    let known = topic.letters().get(id);
    let searched = known.map_or(0, |letter| letter.claims.len());
    if known.is_some_and(Letter::is_open) && (!is_position || searched > 0) {
        topic.read_on(search)?;
        // The claims whose tasks were found.
        topic.read_to_end()?;
    }
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
    if let Some(replay) = search.sightings.produced(&letter) {
        topic.mark(&mark(MarkKind::Replayed, replay), key)?;
        return Ok(Outcome::Done(format!("replay {replay} had produced the task and was not finished; finished now")));
    }
    if !is_position && let Some(doubt) = doubt(topic, search, &letter)? {
        return Ok(Outcome::NotDone(doubt));
    }
    let began = Instant::now();
    let replay = topic.letters().next_replay(&letter, now);
    let offset = topic.mark(&mark(MarkKind::Claim, replay), key.clone())?;
    match topic.letters().get(id) {
        Some(held) if !held.is_held_by(offset) => {
            let other = obstacle(held, now).unwrap_or_else(|| FASTER.to_owned());
            return Ok(Outcome::NotDone(other));
        }
        // The task of another claim was not searched for.
        Some(held) if held.claims.len() > searched + 1 => {
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
    let produced = topic.produce(&reset, (key.clone(), value), headers, began + CLAIM_LIFE - MARGIN);
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
    Ok(dropped(topic.letters().get(id), now))
}

/// The outcome of a drop, from the letter as read after its mark.
fn dropped(letter: Option<&Letter>, now: SystemTime) -> Outcome {
    match letter {
        Some(letter) if letter.state(now) == LetterState::Dropped => Outcome::Done("dropped".to_owned()),
        Some(letter) => Outcome::NotDone(obstacle(letter, now).unwrap_or_else(|| FASTER.to_owned())),
        None => Outcome::NotDone(NOT_FOUND.to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::dead::letters::tests::{letter, mark, read, time};

    #[test]
    fn drop_that_the_log_has_after_a_claim_that_holds_is_not_done() {
        let id = LetterId { partition: 0, offset: 0 };
        let letters = read(&[letter(0, 100), mark(MarkKind::Claim, 1, 110, 0), mark(MarkKind::Dropped, 2, 124, 0)]);
        // By this host's clock the claim has expired.
        assert!(matches!(dropped(letters.get(id), time(125)), Outcome::NotDone(why) if why == FASTER));
        let letters = read(&[letter(0, 100), mark(MarkKind::Dropped, 1, 110, 0)]);
        assert!(matches!(dropped(letters.get(id), time(110)), Outcome::Done(_)));
    }
}
