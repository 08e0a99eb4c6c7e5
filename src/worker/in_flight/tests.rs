//! Tests of the account.

use super::*;
use crate::trace;
use bytes::Bytes;
use kafka_share::share_wire::{Acknowledgements, SharePartition};
use uuid::Uuid;

const PARTITION: SharePartition = SharePartition { topic_id: Uuid::nil(), partition: 0 };
const LOCK: Duration = Duration::from_secs(15);
const NODE: i32 = 1;
const OTHER: i32 = 2;
const HOUR: Duration = Duration::from_secs(3600);

/// The time this many milliseconds after `now`.
fn after(now: Instant, milliseconds: u64) -> Instant {
    now + Duration::from_millis(milliseconds)
}

fn key(offset: i64) -> RecordKey {
    RecordKey { partition: PARTITION, offset }
}

fn from(node: i32, offset: i64, at: Instant, startable: bool) -> Delivered {
    let mark = offset.to_string().into();
    Delivered { key: key(offset), mark, node, sent_at: at, startable, delivery_count: 1, last_delivery: false }
}

fn deliver(in_flight: &InFlight, offset: i64, at: Instant) -> bool {
    in_flight.deliver(from(NODE, offset, at, true), at)
}

/// An account with records 1 to `count`, all ready, and a connection.
fn holding(count: i64, now: Instant) -> (InFlight, ChannelId) {
    let in_flight = InFlight::new(LOCK);
    for offset in 1..=count {
        assert!(deliver(&in_flight, offset, now));
    }
    let channel = in_flight.new_channel();
    (in_flight, channel)
}

fn claim(in_flight: &InFlight, offset: i64, vetting: bool, now: Instant) -> Option<Run> {
    match in_flight.claim((key(offset), 1), None, vetting, now) {
        Claim::Yours(run) => Some(run),
        Claim::Gone => None,
    }
}

fn run(in_flight: &InFlight, offset: i64, now: Instant) -> Run {
    claim(in_flight, offset, false, now).expect("the record is ready")
}

fn finish(in_flight: &InFlight, offset: i64, now: Instant) {
    let run = run(in_flight, offset, now);
    assert!(in_flight.publish(key(offset), &run, 1, None));
    in_flight.published(key(offset));
}

fn list(acknowledgements: Acknowledgements) -> Vec<(i64, Acknowledgement)> {
    acknowledgements.into_values().flatten().collect()
}

fn due(in_flight: &InFlight, channel: ChannelId) -> Vec<(i64, Acknowledgement)> {
    list(in_flight.take_due(NODE, channel))
}

fn renewals(in_flight: &InFlight, settled: bool, at: Instant) -> Vec<i64> {
    list(in_flight.renewals(NODE, settled, at)).into_iter().map(|(offset, _)| offset).collect()
}

/// Applies an answer to acknowledgements that were sent to [`NODE`] at `at`; returns the lost tasks.
fn told(
    in_flight: &InFlight,
    channel: ChannelId,
    said: &[(i64, Acknowledgement)],
    verdict: Verdict,
    at: Instant,
) -> Vec<String> {
    let lost = in_flight.settled((NODE, channel), PARTITION, said, verdict, (at, after(at, 1)));
    names(lost)
}

fn names(tasks: TaskNames) -> Vec<String> {
    tasks.iter().map(ToString::to_string).collect()
}

use Acknowledgement::{Accept, Release, Renew};

#[test]
fn task_goes_from_ready_to_accepted() {
    let now = Instant::now();
    let (in_flight, channel) = holding(1, now);
    let run = run(&in_flight, 1, now);
    assert_eq!(in_flight.counts().busy(), 1);
    assert!(in_flight.publish(key(1), &run, 2, Some(Duration::from_millis(3))));
    in_flight.published(key(1));
    assert!(due(&in_flight, channel).is_empty(), "only one of two records is acknowledged");
    in_flight.published(key(1));
    assert_eq!(due(&in_flight, channel), [(1, Accept)]);
    assert!(due(&in_flight, channel).is_empty(), "sent once");
    assert!(told(&in_flight, channel, &[(1, Accept)], Verdict::Applied, after(now, 1)).is_empty());
    assert_eq!((in_flight.counts(), in_flight.totals()), (Counts::default(), (1, 0)));
    assert_eq!(in_flight.take_durations(), [Duration::from_millis(3)]);
}

#[test]
fn only_unstarted_records_can_be_taken_back() {
    let now = Instant::now();
    let (in_flight, channel) = holding(2, now);
    let run = run(&in_flight, 1, now);
    assert!(!in_flight.take_back(key(1), 1) && in_flight.take_back(key(2), 1) && !in_flight.take_back(key(2), 1));
    assert!(claim(&in_flight, 2, false, now).is_none());
    assert_eq!(due(&in_flight, channel), [(2, Release)]);
    assert!(in_flight.publish(key(1), &run, 1, None));
}

#[test]
fn abandoned_task_is_released_and_its_outcome_is_dropped() {
    let now = Instant::now();
    let (in_flight, channel) = holding(3, now);
    let runs = [run(&in_flight, 1, now), run(&in_flight, 2, now)];
    assert!(in_flight.publish(key(2), &runs[1], 1, None));
    in_flight.abandon_running();
    assert!(runs[0].abandoned.is_triggered() && !runs[1].abandoned.is_triggered());
    assert!(!in_flight.publish(key(1), &runs[0], 1, None));
    assert_eq!(names(in_flight.abandoned()), ["1"], "a publishing task stays, a ready record is only released");
    in_flight.published(key(2));
    assert_eq!(due(&in_flight, channel), [(1, Release), (2, Accept), (3, Release)]);
}

#[test]
fn task_without_an_acknowledged_result_is_released_at_the_end() {
    let now = Instant::now();
    let (in_flight, channel) = holding(1, now);
    let run = run(&in_flight, 1, now);
    in_flight.publish(key(1), &run, 1, None);
    in_flight.abandon_publishing();
    in_flight.published(key(1));
    assert_eq!(due(&in_flight, channel), [(1, Release)], "a late answer changes nothing");
    assert_eq!(names(in_flight.abandoned()), ["1"]);
}

#[test]
fn handler_starts_no_task_whose_lock_is_about_to_end() {
    let now = Instant::now();
    let (in_flight, channel) = holding(3, now);
    let late = now + LOCK - LOCK / LEAST_LOCK_LEFT + Duration::from_millis(1);
    let vetted = claim(&in_flight, 3, true, now).expect("the record is ready");
    assert!(claim(&in_flight, 1, false, late).is_none());
    assert_eq!(due(&in_flight, channel), [(1, Release)], "the lock is still held: released");
    assert!(claim(&in_flight, 2, false, now + LOCK).is_none());
    assert!(due(&in_flight, channel).is_empty(), "the lock has ended: nothing to release");
    assert!(!in_flight.start(key(3), &vetted, late), "also after vetting");
    assert_eq!(due(&in_flight, channel), [(3, Release)]);
}

#[test]
fn renewal_takes_younger_locks_along() {
    let now = Instant::now();
    let (in_flight, channel) = holding(2, now);
    run(&in_flight, 1, now);
    let vetted = claim(&in_flight, 2, true, now);
    assert!(vetted.is_some());
    assert!(renewals(&in_flight, false, after(now, 4_000)).is_empty(), "not due yet");
    deliver(&in_flight, 3, after(now, 1_000));
    deliver(&in_flight, 4, after(now, 2_000));
    assert_eq!(renewals(&in_flight, false, after(now, 5_000)), [1, 2, 3], "4 has used up less than a quarter");
    told(&in_flight, channel, &[(1, Renew), (2, Renew), (3, Renew)], Verdict::Applied, after(now, 5_000));
    assert!(renewals(&in_flight, false, after(now, 6_000)).is_empty());
    assert_eq!(renewals(&in_flight, false, after(now, 7_000)), [4]);
}

#[test]
fn overdue_task_is_released_and_never_attached_to_its_handler_again() {
    let now = Instant::now();
    let (in_flight, channel) = holding(1, now);
    let hung = run(&in_flight, 1, now);
    assert!(in_flight.take_overdue(HOUR, after(now, 1)).is_empty());
    assert_eq!(names(in_flight.take_overdue(Duration::from_secs(1), after(now, 1_001))), ["1"]);
    assert!(in_flight.take_overdue(Duration::from_secs(1), after(now, 2_000)).is_empty(), "reported once");
    assert!(hung.abandoned.is_triggered() && in_flight.has_overdue());
    assert_eq!(in_flight.counts().busy(), 1, "the thread is in use");
    assert_eq!(in_flight.running().len(), 1, "the fleet page shows the task");
    assert_eq!(due(&in_flight, channel), [(1, Release)]);
    // It is delivered again, and a second handler runs it.
    assert!(deliver(&in_flight, 1, after(now, 3_000)));
    let second = run(&in_flight, 1, after(now, 3_000));
    assert!(!in_flight.publish(key(1), &hung, 1, None), "its outcome is dropped");
    assert!(!in_flight.has_overdue());
    assert!(in_flight.publish(key(1), &second, 1, None));
}

#[test]
fn answer_to_an_earlier_request_does_not_change_a_later_delivery() {
    let now = Instant::now();
    let (in_flight, channel) = holding(1, now);
    in_flight.take_back(key(1), 1);
    assert_eq!(due(&in_flight, channel), [(1, Release)]);
    assert!(deliver(&in_flight, 1, after(now, 5)), "the broker delivered it again: it is to be started");
    told(&in_flight, channel, &[(1, Release)], Verdict::Applied, now);
    assert!(claim(&in_flight, 1, false, after(now, 6)).is_some(), "the answer is about the older delivery");
}

#[test]
fn records_that_may_not_be_started_are_released_unless_they_run() {
    let now = Instant::now();
    let (in_flight, channel) = holding(1, now);
    run(&in_flight, 1, now);
    assert!(!in_flight.deliver(from(NODE, 1, after(now, 10), false), after(now, 11)));
    assert!(!in_flight.deliver(from(NODE, 2, after(now, 10), false), after(now, 11)));
    assert_eq!(renewals(&in_flight, false, after(now, 12)), [1], "at once");
    assert_eq!(due(&in_flight, channel), [(2, Release)]);
}

#[test]
fn doubt_renews_running_tasks_and_releases_unstarted_ones() {
    let now = Instant::now();
    let (in_flight, channel) = holding(4, now);
    run(&in_flight, 1, now);
    finish(&in_flight, 2, now);
    let vetted = claim(&in_flight, 4, true, now).expect("the record is ready");
    in_flight.doubt(NODE);
    assert_eq!(renewals(&in_flight, false, now), [1]);
    assert_eq!(due(&in_flight, channel), [(2, Accept), (3, Release), (4, Release)]);
    told(&in_flight, channel, &[(1, Renew), (3, Renew)], Verdict::Applied, after(now, 1));
    assert!(claim(&in_flight, 3, false, after(now, 2)).is_none(), "a renewal permits no start (rule 15)");
    assert!(!in_flight.start(key(4), &vetted, after(now, 2)));
    assert!(renewals(&in_flight, false, after(now, 2)).is_empty());
}

#[test]
fn code_from_another_node_changes_nothing() {
    let now = Instant::now();
    let (in_flight, channel) = holding(1, now);
    run(&in_flight, 1, now);
    let lost = in_flight.settled((OTHER, channel), PARTITION, &[(1, Renew)], Verdict::Lost, (now, now));
    assert!(lost.is_empty() && in_flight.holds_at(NODE));
}

#[test]
fn applied_renewal_makes_an_unanswered_acknowledgement_due_again() {
    let now = Instant::now();
    let (in_flight, old) = holding(2, now);
    finish(&in_flight, 1, now);
    in_flight.take_back(key(2), 1);
    assert_eq!(due(&in_flight, old), [(1, Accept), (2, Release)]);
    let new = in_flight.new_channel();
    in_flight.doubt(NODE);
    assert!(due(&in_flight, new).is_empty(), "they are out");
    assert_eq!(renewals(&in_flight, true, after(now, 1)), [1, 2]);
    told(&in_flight, new, &[(1, Renew), (2, Renew)], Verdict::Applied, after(now, 1));
    assert_eq!(due(&in_flight, new), [(1, Accept), (2, Release)]);
    told(&in_flight, old, &[(1, Accept)], Verdict::Lost, now);
    assert!(in_flight.asks_on(new), "the answer to the older request does not settle the newer one");
}

#[test]
fn refused_renewal_loses_no_lock_while_an_accept_is_out_elsewhere() {
    let now = Instant::now();
    let (in_flight, old) = holding(1, now);
    finish(&in_flight, 1, now);
    assert_eq!(due(&in_flight, old), [(1, Accept)]);
    let new = in_flight.new_channel();
    in_flight.doubt(NODE);
    assert!(told(&in_flight, new, &[(1, Renew)], Verdict::Lost, after(now, 1)).is_empty());
    assert!(in_flight.holds_at(NODE));
    assert!(
        renewals(&in_flight, true, after(now, 6_000)).is_empty(),
        "renewed again when the other connection has ended"
    );
    // The old connection ends without an answer; a renewal that was sent before that still proves nothing.
    in_flight.unanswered(old, after(now, 5));
    assert!(told(&in_flight, new, &[(1, Renew)], Verdict::Lost, after(now, 3)).is_empty());
    assert_eq!(renewals(&in_flight, true, after(now, 6)), [1], "renewed again");
    assert_eq!(told(&in_flight, new, &[(1, Renew)], Verdict::Lost, after(now, 6)), ["1"], "now the lock is lost");
}

#[test]
fn acknowledgement_that_the_broker_could_not_store_is_sent_again() {
    let now = Instant::now();
    let (in_flight, channel) = holding(1, now);
    finish(&in_flight, 1, now);
    assert_eq!(due(&in_flight, channel), [(1, Accept)]);
    assert_eq!(Verdict::of(Some(kafka_share::ErrorCode(15))), Verdict::Again);
    told(&in_flight, channel, &[(1, Accept)], Verdict::Again, after(now, 1));
    assert_eq!(due(&in_flight, channel), [(1, Accept)]);
}

#[test]
fn new_leader_ends_the_locks_of_its_partition_and_the_same_leader_is_asked() {
    let now = Instant::now();
    let (in_flight, channel) = holding(3, now);
    run(&in_flight, 1, now);
    finish(&in_flight, 2, now);
    in_flight.leader_changed(PARTITION, NODE);
    assert_eq!(renewals(&in_flight, false, now), [1], "a later epoch of the same node");
    assert_eq!(due(&in_flight, channel), [(2, Accept), (3, Release)]);
    let mut lost = names(in_flight.leader_changed(PARTITION, OTHER));
    lost.sort();
    assert_eq!(lost, ["1", "2"]);
    assert!(!in_flight.holds_at(NODE));
    assert_eq!(in_flight.sought(PARTITION, true), 2);
    // The new leader delivers both again: neither starts, and the accept of the finished task is due at once.
    for offset in [1, 2] {
        assert!(!in_flight.deliver(from(OTHER, offset, after(now, 5), true), after(now, 6)));
    }
    assert_eq!(in_flight.sought(PARTITION, true), 0);
    assert_eq!(list(in_flight.take_due(OTHER, channel)), [(2, Accept)]);
}

#[test]
fn failed_search_abandons_the_run_and_remembers_finished_tasks() {
    let now = Instant::now();
    let (in_flight, channel) = holding(2, now);
    let run = run(&in_flight, 1, now);
    finish(&in_flight, 2, now);
    in_flight.leader_changed(PARTITION, OTHER);
    in_flight.end_search(PARTITION);
    assert_eq!(in_flight.sought(PARTITION, true), 0);
    assert!(run.abandoned.is_triggered());
    assert!(in_flight.publish(key(1), &run, 1, None), "its result still counts");
    in_flight.published(key(1));
    assert_eq!((in_flight.counts(), in_flight.totals()), (Counts::default(), (2, 0)));
    for offset in [1, 2] {
        assert!(!deliver(&in_flight, offset, after(now, 9)), "the account knows it");
    }
    assert_eq!(due(&in_flight, channel), [(1, Accept), (2, Accept)]);
}

#[test]
fn finished_task_that_was_not_accepted_is_accepted_at_every_delivery() {
    let now = Instant::now();
    let (in_flight, channel) = holding(2, now);
    finish(&in_flight, 1, now);
    finish(&in_flight, 2, now);
    for round in 1..4 {
        let at = after(now, round * 10);
        assert_eq!(due(&in_flight, channel), [(1, Accept), (2, Accept)]);
        assert_eq!(told(&in_flight, channel, &[(1, Accept), (2, Accept)], Verdict::Lost, at), ["1", "2"]);
        for offset in [1, 2] {
            assert!(!deliver(&in_flight, offset, after(at, 5)));
        }
    }
    assert_eq!(due(&in_flight, channel).len(), 2);
    told(&in_flight, channel, &[(1, Accept)], Verdict::Applied, after(now, 100));
    assert_eq!(in_flight.totals(), (2, 0), "finished once each");
    assert!(deliver(&in_flight, 1, after(now, 200)), "accepted: a record at this offset now is another task");
}

#[test]
fn record_at_its_last_delivery_stays_for_a_handler() {
    let now = Instant::now();
    let (in_flight, channel) = holding(0, now);
    let last = Delivered { last_delivery: true, ..from(NODE, 1, now, true) };
    assert!(in_flight.deliver(last, now));
    in_flight.doubt(NODE);
    assert!(due(&in_flight, channel).is_empty(), "the broker would drop it");
    assert!(claim(&in_flight, 1, true, now).is_some());
}

/// The id in the value counts, not the key: the note of a stopped start carries that id.
#[test]
fn task_is_named_by_its_value_and_its_trace_and_recognized_by_its_key() {
    let now = Instant::now();
    let (in_flight, _) = holding(1, now);
    let parent = Bytes::from_static(b"00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01");
    let headers = [("traceparent", Some(parent))];
    let named = Some(trace::named("the task", &headers));
    let name = "the task (trace 4bf92f3577b34da6a3ce929d0e0e4736)";
    assert!(matches!(in_flight.claim((key(1), 1), named, false, now), Claim::Yours(_)));
    assert_eq!(names(in_flight.started()), [name]);
    assert!(!deliver(&in_flight, 1, after(now, 1)), "the same record: attached");
    in_flight.abandon_running();
    assert_eq!(names(in_flight.abandoned()), [name]);
    let other = Delivered { mark: "another".into(), ..from(NODE, 1, now, true) };
    assert!(in_flight.deliver(other, after(now, 2)), "the log was truncated, and another task has this offset");
}

#[test]
fn failed_task_rests_before_it_is_released() {
    let now = Instant::now();
    let (in_flight, channel) = holding(2, now);
    for offset in [1, 2] {
        let run = run(&in_flight, offset, now);
        in_flight.rest(key(offset), &run, after(now, 1_000 * offset as u64), None);
    }
    in_flight.end_rests(now);
    assert!(due(&in_flight, channel).is_empty());
    in_flight.end_rests(after(now, 1_000));
    assert_eq!(due(&in_flight, channel), [(1, Release)]);
    in_flight.take_back_resting();
    assert_eq!(due(&in_flight, channel), [(2, Release)], "a stop does not wait");
}

#[test]
fn running_lists_the_longest_task_first() {
    let now = Instant::now();
    let (in_flight, _) = holding(3, now);
    for (offset, later) in [(3, 0), (1, 20), (2, 10)] {
        run(&in_flight, offset, after(now, later));
    }
    let ids: Vec<String> = in_flight.running().iter().map(|task| task.task.to_string()).collect();
    assert_eq!(ids, ["3", "2", "1"]);
}

proptest::proptest! {
    /// After any sequence of events the counts equal the entries, an accept is due only for a published task, and each
    /// due acknowledgement is owed by a locked entry.
    #[test]
    fn counts_and_due_acknowledgements_match_the_entries(steps in proptest::collection::vec((0u8..18, 0i64..6), 1..300)) {
        let begun = Instant::now();
        let in_flight = InFlight::new(LOCK);
        let channels = [in_flight.new_channel(), in_flight.new_channel()];
        let mut runs: HashMap<i64, Run> = HashMap::new();
        let mut published = std::collections::BTreeSet::new();
        for (number, (step, offset)) in steps.into_iter().enumerate() {
            let now = after(begun, number as u64);
            let (key, node) = (key(offset), if offset % 2 == 0 { NODE } else { OTHER });
            let channel = channels[usize::from(step % 2 == 0)];
            match step {
                0 | 1 => { in_flight.deliver(from(node, offset, now, true), now); }
                2 => { in_flight.deliver(from(NODE, offset, now, false), now); }
                3 | 4 => { runs.extend(claim(&in_flight, offset, step == 3, now).map(|run| (offset, run))); }
                5 => { if let Some(run) = runs.get(&offset) { in_flight.start(key, run, now); } }
                6 => { if let Some(run) = runs.get(&offset) { in_flight.publish(key, run, 1, None); } }
                7 => {
                    let publishing = matches!(in_flight.table.lock().entries.get(&key).map(|entry| entry.state.clone()), Some(State::Publishing(_)));
                    in_flight.published(key);
                    if publishing { published.insert(offset); }
                }
                8 => { in_flight.take_back(key, 1); }
                9 => { if let Some(run) = runs.get(&offset) { in_flight.rest(key, run, now, None); } in_flight.end_rests(now); }
                10 => { in_flight.doubt(node); }
                11 => { in_flight.leader_changed(PARTITION, node); }
                12 => { if let Some(run) = runs.get(&offset) { in_flight.decline(key, run); } in_flight.end_search(PARTITION); }
                13 => { in_flight.unanswered(channel, now); }
                14 => { in_flight.take_overdue(Duration::from_millis(5), now); }
                _ => {
                    let said = list(in_flight.take_due(node, channel));
                    for (offset, acknowledgement) in &said {
                        if *acknowledgement == Accept {
                            proptest::prop_assert!(published.contains(offset), "accepted unpublished {offset}");
                        }
                    }
                    let verdict = [Verdict::Applied, Verdict::Again, Verdict::Lost][number % 3];
                    in_flight.settled((node, channel), PARTITION, &said, verdict, (now, now));
                }
            }
            let table = in_flight.table.lock();
            let counts = table.counts;
            let total = counts.in_work() + counts.done + counts.resting + counts.returned;
            proptest::prop_assert_eq!(total, table.entries.len());
            proptest::prop_assert_eq!(table.sought, table.entries.values().filter(|entry| entry.is_sought()).count());
            for (key, said) in &table.due {
                let owed = table.entries.get(key).and_then(Entry::owed);
                proptest::prop_assert_eq!(owed, Some(*said));
            }
        }
    }
}
