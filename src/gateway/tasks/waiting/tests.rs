//! Tests of the table: when a reply leaves, and for how long it waits.

use super::*;

const PATIENCE: Duration = Duration::from_secs(10);
const WAITS: Preferences = Preferences { asynchronous: false, wait: None };
const RESPOND_ASYNC: Preferences = Preferences { asynchronous: true, wait: None };

fn key(number: u128) -> TaskKey {
    TaskKey::from_number(number)
}

fn table(most: usize) -> Waiting<u32> {
    Waiting::new(most, PATIENCE)
}

fn park(waiting: &mut Waiting<u32>, number: u128, reply: u32) -> Ticket {
    waiting.park(key(number), reply, WAITS, Progress::Queued, Instant::now())
}

fn replies(waiters: Vec<Waiter<u32>>) -> Vec<u32> {
    waiters.into_iter().map(|waiter| waiter.reply).collect()
}

#[test]
fn waiter_leaves_with_the_first_event_and_only_once() {
    let mut waiting = table(8);
    let ticket = park(&mut waiting, 1, 1);
    assert_eq!(replies(waiting.complete(key(1))), [1]);
    assert!(waiting.complete(key(1)).is_empty() && waiting.take(ticket.number).is_none());
    assert_eq!(waiting.callers(), 0);
}

#[test]
fn progress_of_a_task_follows_its_way_to_kafka() {
    let mut waiting = table(8);
    let tickets = [1, 2, 3].map(|number| park(&mut waiting, number, number as u32));
    assert!(waiting.sending(key(2)) && waiting.sending(key(3)));
    assert!(waiting.acknowledged(key(3)).is_empty(), "it waits for the result");
    let progress = tickets.map(|ticket| waiting.take(ticket.number).expect("it waits").progress);
    assert_eq!(progress, [Progress::Queued, Progress::Sent, Progress::Acknowledged]);
    assert!(!waiting.sending(key(1)), "a task whose callers all left unsent is withdrawn");
}

#[test]
fn caller_waits_for_its_patience_and_question_for_three_seconds() {
    let (mut waiting, now) = (table(8), Instant::now());
    assert_eq!(waiting.park(key(1), 1, WAITS, Progress::Queued, now).until, now + PATIENCE);
    let asked = waiting.ask(key(2), "2".to_owned(), (2, None), now).expect("room");
    let looked_up = waiting.look_up(key(3), "3".to_owned(), (3, WAITS), QUESTION_PATIENCE, now).expect("room");
    assert_eq!([asked.until, looked_up.until], [now + Duration::from_secs(3); 2]);
}

#[test]
fn asynchronous_caller_leaves_with_the_acknowledgement() {
    let mut waiting = table(8);
    waiting.park(key(1), 1, RESPOND_ASYNC, Progress::Queued, Instant::now());
    park(&mut waiting, 1, 2);
    assert_eq!(replies(waiting.acknowledged(key(1))), [1]);
    assert_eq!(waiting.callers(), 1);
    assert_eq!(replies(waiting.complete(key(1))), [2]);
}

#[test]
fn question_for_an_unknown_task_waits_for_three_passes() {
    let (mut waiting, now) = (table(8), Instant::now());
    let ask = |waiting: &mut Waiting<u32>, number: u32| {
        waiting.ask(key(number.into()), number.to_string(), (number, None), now).expect("room")
    };
    ask(&mut waiting, 1);
    assert!(waiting.passed(1).is_empty());
    let left = ask(&mut waiting, 2);
    let last = ask(&mut waiting, 3);
    assert!(waiting.passed(2).is_empty() && waiting.passed(2).is_empty(), "no leader answers");
    assert_eq!(waiting.passed(3), [(0, key(1))]);
    assert!(waiting.take(left.number).is_some());
    assert_eq!(waiting.passed(4), [(last.number, key(3))]);
    assert!(waiting.passed(9).is_empty() && waiting.unknown.is_empty());
    assert!(waiting.waits(last.number), "the caller of `passed` answers it");
}

#[test]
fn result_that_is_not_found_becomes_a_question_for_an_unknown_task() {
    let (mut waiting, now) = (table(8), Instant::now());
    let ticket = waiting.look_up(key(1), "1".to_owned(), (1, WAITS), PATIENCE, now).expect("room");
    waiting.not_found(ticket.number);
    waiting.not_found(ticket.number);
    assert!(waiting.passed(2).is_empty());
    assert_eq!(waiting.passed(3), [(ticket.number, key(1))]);
    let leaving = waiting.take(ticket.number).expect("it waits");
    assert_eq!(leaving.waiter.wish, Wish::Existence("1".to_owned()));
    waiting.not_found(ticket.number);
    assert!(waiting.unknown.is_empty(), "it has left");
}

#[test]
fn each_kind_has_its_own_room_and_a_closed_table_has_none() {
    let (mut waiting, now) = (table(2), Instant::now());
    for number in 0..2 {
        assert_eq!(waiting.room(), Ok(()));
        park(&mut waiting, number, 0);
    }
    assert_eq!(waiting.room(), Err(Full::Table(2)));
    for number in 0..MOST_LOOK_UPS {
        waiting.look_up(key(number as u128), String::new(), (0, WAITS), PATIENCE, now).expect("room");
    }
    for number in 0..MOST_UNKNOWN {
        waiting.ask(key(number as u128), String::new(), (0, None), now).expect("room");
    }
    let full = waiting.look_up(key(0), String::new(), (7, WAITS), PATIENCE, now).expect_err("no room");
    assert_eq!(full, (7, Full::Table(MOST_LOOK_UPS)));
    let full = waiting.ask(key(0), String::new(), (7, None), now).expect_err("no room");
    assert_eq!(full, (7, Full::Table(MOST_UNKNOWN)));
    assert_eq!(waiting.complete(key(0)).len(), 1, "the callers of a task, not those of its stored result");
    assert_eq!(waiting.room(), Ok(()));
    assert_eq!(waiting.close().len(), 1 + MOST_LOOK_UPS + MOST_UNKNOWN);
    assert_eq!(waiting.room(), Err(Full::Closed));
    assert_eq!(waiting.ask(key(0), String::new(), (7, None), now).expect_err("closed"), (7, Full::Closed));
}

/// Every seventh ticket.
fn nth(tickets: &[Ticket], number: u128) -> Option<&Ticket> {
    tickets.get(number as usize * 7)
}

proptest::proptest! {
    #[test]
    fn waiters_leave_exactly_once(steps in proptest::collection::vec((0u8..13, 0u128..5), 1..200)) {
        let now = Instant::now();
        let mut waiting = table(usize::MAX);
        let (mut entered, mut left, mut tickets) = (0u32, Vec::new(), Vec::new());
        for (step, number) in steps {
            let before = entered;
            match step {
                0 | 1 => {
                    let preferences = Preferences { asynchronous: step == 1, wait: None };
                    tickets.push(waiting.park(key(number), entered, preferences, Progress::Queued, now));
                    entered += 1;
                }
                2 => {
                    let (key, id) = (key(number), number.to_string());
                    tickets.push(waiting.look_up(key, id, (entered, WAITS), PATIENCE, now).expect("room"));
                    entered += 1;
                }
                3 => {
                    tickets.push(waiting.ask(key(number), number.to_string(), (entered, None), now).expect("room"));
                    entered += 1;
                }
                4 => { waiting.sending(key(number)); }
                5 => left.extend(replies(waiting.acknowledged(key(number)))),
                6 => left.extend(replies(waiting.complete(key(number)))),
                7 => { waiting.passed(waiting.passes + 1); }
                8 => {
                    let wait = Duration::from_secs(5);
                    let poll = Poll { key: key(number), id: number.to_string(), reply: entered, wait };
                    match waiting.poll(poll, now) {
                        Ok(ticket) => tickets.push(ticket),
                        Err((reply, _)) => {
                            proptest::prop_assert!(waiting.polls_ended);
                            left.push(reply);
                        }
                    }
                    entered += 1;
                }
                9 => { nth(&tickets, number).map(|ticket| waiting.poll_on(ticket.number, now)); }
                10 => if let Some(ticket) = nth(&tickets, number)
                    && let Late::Leaves(leaving) = waiting.late(ticket.number, ticket.until)
                {
                    left.push(leaving.waiter.reply);
                },
                11 if number == 0 => left.extend(waiting.end_polls().into_iter().map(|it| it.waiter.reply)),
                11 => waiting.not_found(nth(&tickets, number).map_or(0, |ticket| ticket.number)),
                _ => {
                    let taken = nth(&tickets, number).and_then(|ticket| waiting.take(ticket.number));
                    left.extend(taken.map(|it| it.waiter.reply));
                }
            }
            proptest::prop_assert!(tickets.len() <= entered as usize && entered - before <= 1);
            proptest::prop_assert_eq!(waiting.waiters.len() + left.len(), entered as usize);
        }
        left.extend(waiting.close().into_iter().map(|it| it.waiter.reply));
        left.sort_unstable();
        proptest::prop_assert_eq!(left, (0..entered).collect::<Vec<_>>());
        proptest::prop_assert!(waiting.tasks.is_empty() && waiting.unknown.is_empty() && waiting.callers == 0);
    }
}

fn wait(asynchronous: bool, seconds: u64) -> Preferences {
    Preferences { asynchronous, wait: Some(Duration::from_secs(seconds)) }
}

fn poll(waiting: &mut Waiting<u32>, number: u32, seconds: u64, now: Instant) -> Result<Ticket, u32> {
    let (key, id, wait) = (key(number.into()), number.to_string(), Duration::from_secs(seconds));
    waiting.poll(Poll { key, id, reply: number, wait }, now).map_err(|(reply, _)| reply)
}

/// The reply that leaves at the end of its ticket's time, with its task's progress; or until when it waits.
fn late(waiting: &mut Waiting<u32>, ticket: Ticket) -> Result<(u32, Progress), Instant> {
    match waiting.late(ticket.number, ticket.until) {
        Late::Leaves(leaving) => Ok((leaving.waiter.reply, leaving.progress)),
        Late::Waits(ticket) => Err(ticket.until),
        Late::Gone => panic!("it waits"),
    }
}

#[test]
fn preferred_wait_shortens_the_patience_and_never_lengthens_it() {
    let (mut waiting, now) = (table(8), Instant::now());
    for (preferences, seconds) in [(wait(false, 2), 2), (wait(true, 3), 3), (wait(false, 60), 10), (wait(true, 0), 10)]
    {
        let ticket = waiting.park(key(1), 1, preferences, Progress::Queued, now);
        assert_eq!(ticket.until - now, Duration::from_secs(seconds), "{preferences:?}");
    }
    assert_eq!(waiting.acknowledged(key(1)).len(), 1, "respond-async with wait=0 waits only for that");
}

#[test]
fn caller_whose_preferred_wait_is_over_waits_for_the_acknowledgement() {
    let (mut waiting, now) = (table(8), Instant::now());
    let park = |waiting: &mut Waiting<u32>, reply| waiting.park(key(1), reply, wait(false, 2), Progress::Queued, now);
    let (first, second) = (park(&mut waiting, 1), park(&mut waiting, 2));
    assert_eq!(late(&mut waiting, first), Err(now + PATIENCE));
    assert_eq!(replies(waiting.acknowledged(key(1))), [1], "the other still waits for the result");
    assert_eq!(late(&mut waiting, second), Ok((2, Progress::Acknowledged)));
    let third = park(&mut waiting, 3);
    assert_eq!(late(&mut waiting, third), Err(now + PATIENCE));
    let last = Ticket { until: now + PATIENCE, ..third };
    assert_eq!(late(&mut waiting, last), Ok((3, Progress::Queued)), "the patience is over, too");
    assert!(matches!(waiting.late(last.number, last.until), Late::Gone) && waiting.callers() == 0);
}

#[test]
fn poll_takes_a_place_until_the_result_its_time_or_the_drain() {
    let (mut waiting, now) = (table(3), Instant::now());
    let first = poll(&mut waiting, 1, 5, now).expect("room");
    assert_eq!((first.until - now, waiting.callers()), (Duration::from_secs(5), 1));
    assert!(waiting.acknowledged(key(1)).is_empty(), "it waits for the result");
    assert_eq!(replies(waiting.complete(key(1))), [1]);
    let second = poll(&mut waiting, 2, 5, now).expect("room");
    assert_eq!(late(&mut waiting, second), Ok((2, Progress::Acknowledged)));
    let left = poll(&mut waiting, 3, 5, now).expect("room");
    assert!(waiting.take(left.number).is_some() && waiting.callers() == 0, "its caller has left");
    for number in 4..=5 {
        poll(&mut waiting, number, 5, now).expect("room");
    }
    let stays = park(&mut waiting, 6, 6);
    assert_eq!(poll(&mut waiting, 7, 5, now), Err(7), "the table is full");
    let mut ended: Vec<u32> = waiting.end_polls().into_iter().map(|leaving| leaving.waiter.reply).collect();
    ended.sort_unstable();
    assert_eq!((ended, waiting.callers(), waiting.waits(stays.number)), (vec![4, 5], 1, true));
    assert_eq!(poll(&mut waiting, 7, 5, now), Err(7), "no poll begins during a drain");
}

#[test]
fn question_whose_task_is_pending_becomes_a_poll_for_the_rest_of_its_wait() {
    let (mut waiting, now) = (table(8), Instant::now());
    let ask = |waiting: &mut Waiting<u32>, number: u32, seconds: Option<u64>| {
        let wait = seconds.map(Duration::from_secs);
        waiting.ask(key(number.into()), number.to_string(), (number, wait), now).expect("room")
    };
    let (long, short, none) =
        (ask(&mut waiting, 1, Some(8)), ask(&mut waiting, 2, Some(1)), ask(&mut waiting, 3, None));
    assert_eq!([long, short, none].map(|ticket| (ticket.until - now).as_secs()), [3, 1, 3]);
    assert_eq!(late(&mut waiting, short), Err(now + QUESTION_PATIENCE), "it is not known whether the task exists");
    assert!(waiting.poll_on(long.number, now) && !waiting.poll_on(none.number, now));
    assert!(!waiting.poll_on(short.number, short.until), "its wait is over");
    assert_eq!((waiting.callers(), waiting.unknown.len()), (1, 2));
    assert_eq!(waiting.take(short.number).expect("it waits").waiter.preferences.wait, Some(Duration::from_secs(1)));
    assert_eq!(late(&mut waiting, long), Err(now + Duration::from_secs(8)));
    assert_eq!(replies(waiting.complete(key(1))), [1]);
    let stored = waiting.look_up(key(4), "4".to_owned(), (4, wait(false, 10)), PATIENCE, now).expect("room");
    assert!(waiting.poll_on(stored.number, now));
    assert_eq!(late(&mut waiting, stored), Ok((4, Progress::Acknowledged)));
    assert!(waiting.end_polls().is_empty() && !waiting.poll_on(none.number, now));
}

#[test]
fn question_that_may_not_become_a_poll_drops_its_preferred_wait() {
    let (mut full, mut draining, now) = (table(0), table(8), Instant::now());
    draining.end_polls();
    for waiting in [&mut full, &mut draining] {
        for (seconds, kept) in [(0, Some(Duration::ZERO)), (8, None)] {
            let caller = (1, Some(Duration::from_secs(seconds)));
            let ticket = waiting.ask(key(1), "1".to_owned(), caller, now).expect("room");
            assert!(!waiting.poll_on(ticket.number, now));
            let leaving = waiting.take(ticket.number).expect("it waits");
            assert_eq!(leaving.waiter.preferences.wait, kept, "a wait that is over was applied");
        }
    }
}

#[test]
fn asynchronous_caller_of_a_stored_result_waits_for_its_preferred_time() {
    let (mut waiting, now) = (table(8), Instant::now());
    for (preferences, seconds) in [(wait(true, 1), 1), (wait(true, 9), 9), (wait(false, 9), 3), (WAITS, 3)] {
        let caller = (1, preferences);
        let ticket = waiting.look_up(key(1), "1".to_owned(), caller, QUESTION_PATIENCE, now).expect("room");
        assert_eq!(ticket.until - now, Duration::from_secs(seconds), "{preferences:?}");
        assert_eq!(late(&mut waiting, ticket), Ok((1, Progress::Acknowledged)));
    }
}
