//! Tests of the book's methods: their effects, and the callers that they return.

use super::*;
use crate::gateway::tasks::key::digest;
use crate::task::Headers;
use bytes::Bytes;
use proptest::prelude::*;
use std::time::{Duration, UNIX_EPOCH};

const WAITS: Preferences = Preferences { asynchronous: false, wait: None };
const RESPOND_ASYNC: Preferences = Preferences { asynchronous: true, wait: None };
const LONG: Duration = Duration::from_secs(60);

fn key(number: u128) -> TaskKey {
    TaskKey::from_number(number)
}

fn at(offset: i64) -> Position {
    Position { partition: 0, offset }
}

fn now() -> Moment {
    Moment { instant: Instant::now(), time: UNIX_EPOCH + Duration::from_secs(1_000_000) }
}

fn book(change: impl FnOnce(&mut GatewayConfig)) -> TaskBook<u32> {
    let mut config = GatewayConfig::default();
    change(&mut config);
    TaskBook::new(&config, Instant::now())
}

fn request(text: &str, asynchronous: bool) -> KeyedRequest {
    let wanted = Wanted { text: text.to_owned(), work_ms: None, headers: Headers::new() };
    KeyedRequest { wanted, digest: digest(text), preferences: Preferences { asynchronous, wait: None } }
}

fn claim(text: &str, gateway: u128, now: Moment) -> Claim {
    Claim { digest: digest(text), gateway: Uuid::from_u128(gateway), at: now.time, heard: now.time }
}

/// A record of five bytes.
fn record() -> Record {
    Record { value: Bytes::from_static(b"value"), headers: Headers::new() }
}

fn replies(waiters: Vec<Waiter<u32>>) -> Vec<u32> {
    waiters.into_iter().map(|waiter| waiter.reply).collect()
}

/// Passes a task of five bytes to the producer, which sends it.
fn send(book: &mut TaskBook<u32>, number: u128) {
    book.producing_task(key(number), record());
    assert!(book.sending(key(number), 5, Instant::now()).is_ok());
}

#[test]
fn task_is_kept_and_counted_until_its_result() {
    let (mut book, now) = (book(|_| {}), now());
    book.accept(key(1), 1, WAITS, now.instant).expect("room");
    book.accept(key(2), 2, RESPOND_ASYNC, now.instant).expect("room");
    for number in [1, 2] {
        send(&mut book, number);
    }
    assert_eq!((book.counts().unacknowledged_bytes, book.counts().callers), (10, 2));
    assert!(replies(book.task_acknowledged(key(1), 5, at(1), now.time)).is_empty(), "it waits for the result");
    assert_eq!(replies(book.task_acknowledged(key(2), 5, at(2), now.time)), [2], "it waited only for that");
    assert_eq!((book.counts().unacknowledged_bytes, book.counts().pending), (0, 2));
    assert!(book.kept(key(2)).is_some() && book.known(key(2)) == Known::Pending);
    let (is_news, callers) = book.done(key(1), at(7), now.time);
    assert!(is_news && replies(callers) == [1]);
    assert!(book.kept(key(1)).is_none() && book.known(key(1)) == Known::Done(at(7)));
    let (is_news, callers) = book.done(key(1), at(8), now.time);
    assert!(!is_news && callers.is_empty());
    assert_eq!(book.counts().duplicate_results, 1);
    assert!(book.settled(key(2)).is_empty());
    assert!(book.kept(key(2)).is_none() && book.known(key(2)) == Known::Nothing, "both or neither");
}

#[test]
fn task_whose_callers_have_left_is_not_sent_and_is_forgotten() {
    let (mut book, now) = (book(|_| {}), now());
    let ticket = book.accept(key(1), 1, WAITS, now.instant).expect("room");
    book.producing_task(key(1), record());
    assert_eq!(book.take(ticket.number).expect("it waits").progress, Progress::Queued);
    assert!(book.sending(key(1), 5, now.instant).is_err_and(|callers| callers.is_empty()));
    assert!(book.kept(key(1)).is_none() && book.counts().unacknowledged_bytes == 0);
}

#[test]
fn refused_task_returns_its_callers() {
    let (mut book, now) = (book(|_| {}), now());
    book.accept(key(1), 1, WAITS, now.instant).expect("room");
    send(&mut book, 1);
    // A record of the same task that is produced again changes only the bytes.
    book.producing(5);
    book.settled_record(5);
    assert!(book.kept(key(1)).is_some() && book.counts().callers == 1);
    assert_eq!(replies(book.given_up(key(1), 5)), [1]);
    assert!(book.kept(key(1)).is_none() && book.counts().unacknowledged_bytes == 0);
    assert_eq!(book.known(key(1)), Known::Nothing);
}

fn poll(book: &mut TaskBook<u32>, reply: u32, now: Moment) -> Ticket {
    book.poll(Poll { key: key(1), id: "1".to_owned(), reply, wait: LONG }, now.instant).expect("it is pending")
}

#[test]
fn caller_of_a_key_whose_task_was_forgotten_does_not_join_its_polls() {
    let (mut book, now) = (book(|_| {}), now());
    book.in_kafka(key(1), at(1), now.time);
    poll(&mut book, 1, now);
    assert_eq!(replies(book.settled(key(1))), [1]);
    let Keyed::Claims(ticket) = book.accept_keyed(key(1), 2, request("a", true), now) else {
        panic!("its task is unknown");
    };
    assert_eq!(book.take(ticket.number).expect("it waits").progress, Progress::Queued, "Kafka does not have it");
}

#[test]
fn callers_of_a_task_that_was_read_outlast_the_failure_of_its_producer() {
    let (mut book, now) = (book(|_| {}), now());
    book.accept(key(1), 1, WAITS, now.instant).expect("room");
    book.accept(key(2), 2, WAITS, now.instant).expect("room");
    send(&mut book, 1);
    send(&mut book, 2);
    book.in_kafka(key(1), at(1), now.time);
    poll(&mut book, 3, now);
    assert!(book.given_up(key(1), 5).is_empty(), "its answer was lost, the task was not");
    assert_eq!(replies(book.given_up(key(2), 5)), [2]);
    assert_eq!((book.counts().unacknowledged_bytes, book.kept(key(1)).is_some()), (0, true));
    assert_eq!(replies(book.done(key(1), at(7), now.time).1), [1, 3]);
}

#[test]
fn first_of_two_callers_with_a_key_claims_and_both_get_the_result() {
    let (mut book, now) = (book(|_| {}), now());
    assert!(matches!(book.accept_keyed(key(1), 1, request("a", false), now), Keyed::Claims(_)));
    assert!(matches!(book.accept_keyed(key(1), 2, request("a", false), now), Keyed::Waits(_)));
    assert_eq!(book.accept_keyed(key(1), 3, request("b", false), now), Keyed::Conflict(3));
    let own = Uuid::from_u128(1);
    let ClaimRead::Produce(wanted) = book.claim_read(key(1), claim("a", 1, now), own, now.instant) else {
        panic!("the claim is this gateway's");
    };
    assert_eq!(wanted.text, "a");
    send(&mut book, 1);
    assert!(book.task_acknowledged(key(1), 5, at(1), now.time).is_empty());
    assert!(matches!(book.accept_keyed(key(1), 4, request("a", false), now), Keyed::Waits(_)), "it is pending");
    assert_eq!(book.accept_keyed(key(1), 5, request("a", true), now), Keyed::Accepted(5));
    assert_eq!(replies(book.done(key(1), at(7), now.time).1), [1, 2, 4]);
    assert_eq!(book.accept_keyed(key(1), 6, request("a", false), now), Keyed::Fetch(6, at(7)));
    assert_eq!(book.accept_keyed(key(1), 7, request("b", false), now), Keyed::Conflict(7), "hours later, too");
}

#[test]
fn key_of_another_gateway_is_claimed_again_when_it_brings_no_task() {
    let (mut book, now) = (book(|_| {}), now());
    let own = Uuid::from_u128(1);
    assert!(matches!(book.claim_read(key(1), claim("a", 2, now), own, now.instant), ClaimRead::Nothing));
    let Keyed::Waits(ticket) = book.accept_keyed(key(1), 1, request("a", false), now) else {
        panic!("another gateway has claimed it");
    };
    assert!(book.overdue_claims(now.instant).is_empty());
    let later = now.instant + Duration::from_secs(5);
    assert_eq!(book.overdue_claims(later), [(key(1), digest("a"))]);
    assert_eq!(
        book.take(ticket.number).expect("it waits").progress,
        Progress::Sent,
        "it is unknown whether Kafka has it"
    );
    let again = Claim { at: now.time + Duration::from_secs(5), ..claim("a", 1, now) };
    assert!(matches!(book.claim_read(key(1), again, own, later), ClaimRead::Nothing), "it was promised to no caller");
}

fn loss() -> LostTask {
    LostTask { key: key(1), position: at(5), record_key: None, record: record() }
}

fn claim_of(gateway: Uuid, at: SystemTime) -> Claim {
    Claim { digest: Uuid::nil(), gateway, at, heard: at }
}

#[test]
fn first_gateway_to_claim_a_loss_produces_the_task() {
    let now = now();
    let gateways = [1, 2, 3].map(Uuid::from_u128);
    let mut books = [(); 3].map(|()| book(|_| {}));
    let mut claimed = Vec::new();
    for (book, own) in books.iter_mut().zip(gateways) {
        book.in_kafka(key(1), at(5), now.time);
        claimed.extend(book.lose(loss(), own, now.instant));
    }
    assert!(claimed.len() == 3 && claimed.iter().all(|it| *it == claimed[0]));
    // In the order of the log, a second apart.
    let claims = [(1, 1), (2, 0), (3, 2)]
        .map(|(second, gateway)| claim_of(gateways[gateway], now.time + Duration::from_secs(second)));
    let mut produced = Vec::new();
    for (book, own) in books.iter_mut().zip(gateways) {
        for claim in claims {
            if let ClaimRead::ProduceAgain(again, _) = book.claim_read(claimed[0], claim, own, now.instant) {
                produced.push((own, again));
            }
        }
    }
    assert_eq!(produced, [(gateways[1], loss())]);
    // Before Kafka has acknowledged that, the task is found once more.
    books[1].lose(loss(), gateways[1], now.instant);
    let later = claim_of(gateways[1], now.time + Duration::from_secs(4));
    assert!(matches!(books[1].claim_read(claimed[0], later, gateways[1], now.instant), ClaimRead::Nothing));
}

#[test]
fn task_that_is_no_longer_lost_is_not_produced() {
    let (now, own) = (now(), Uuid::from_u128(1));
    for settle in [
        |book: &mut TaskBook<u32>, now: Moment| drop(book.done(key(1), at(9), now.time)),
        |book: &mut TaskBook<u32>, now: Moment| drop(book.in_kafka(key(1), at(9), now.time)),
        |book: &mut TaskBook<u32>, now: Moment| {
            assert_eq!(book.forget_late_losses(now.instant), MOST_LOST - 1);
            assert_eq!(book.forget_late_losses(now.instant + CLAIM_LIFE), MOST_LOST, "its claim is lost, too");
        },
    ] {
        let mut book = book(|_| {});
        book.in_kafka(key(1), at(5), now.time);
        let claimed = book.lose(loss(), own, now.instant).expect("it is to be claimed");
        settle(&mut book, now);
        assert!(matches!(book.claim_read(claimed, claim_of(own, now.time), own, now.instant), ClaimRead::Nothing));
    }
}

#[test]
fn task_is_sent_again_only_in_time_and_while_it_is_lost() {
    let (mut book, now) = (book(|_| {}), now());
    book.in_kafka(key(1), at(5), now.time);
    let lost = Loss { position: at(5), replay: 0, send_until: now.instant + SEND_WITHIN };
    book.producing(15);
    assert!(book.sending_again(key(1), lost, 5, now.instant));
    assert!(!book.sending_again(key(1), lost, 5, now.instant + SEND_WITHIN), "another gateway may send it");
    book.in_kafka(key(1), at(9), now.time);
    assert!(!book.sending_again(key(1), lost, 5, now.instant), "another gateway was faster");
    assert_eq!(book.counts().unacknowledged_bytes, 5, "the first record is on its way");
}

#[test]
fn gateway_at_max_pending_leaves_a_loss_to_the_gateway_that_claimed_it() {
    let (mut book, now) = (book(|config| config.max_pending = 2), now());
    let [own, other] = [1, 2].map(Uuid::from_u128);
    book.in_kafka(key(1), at(5), now.time);
    let claimed = book.lose(loss(), own, now.instant).expect("it is to be claimed");
    book.claim_read(claimed, claim_of(other, now.time), own, now.instant);
    let later = now.instant + LONG;
    assert!(book.lose(loss(), own, later).is_some(), "that claim has brought no task so far");
    book.in_kafka(key(2), at(6), now.time);
    assert!(book.lose(loss(), own, later).is_none(), "at MAX_PENDING its new record is not read");
}

#[test]
fn losses_do_not_count_as_keys() {
    let (mut book, now) = (book(|config| config.max_keys = 1), now());
    for number in 0..5 {
        book.claim_read(key(number), claim_of(Uuid::nil(), now.time), Uuid::nil(), now.instant);
    }
    assert!(matches!(book.accept_keyed(key(9), 1, request("a", false), now), Keyed::Claims(_)));
}

#[test]
fn result_of_a_key_is_not_displaced_in_either_order_of_reading() {
    for result_first in [false, true] {
        let (mut book, now) = (book(|config| config.max_results = 1), now());
        if result_first {
            book.done(key(1), at(1), now.time);
        }
        book.claim_read(key(1), claim("a", 2, now), Uuid::nil(), now.instant);
        book.done(key(1), at(1), now.time);
        for number in 2..5 {
            book.done(key(number), at(number as i64), now.time);
        }
        book.forget_old(now.time + LONG);
        assert_eq!((book.known(key(1)), book.counts().results), (Known::Done(at(1)), 2), "{result_first}");
        let known = [2, 3].map(|number| (book.known(key(number)), book.may_be_pushed_out(key(number), None)));
        assert_eq!(known, [(Known::Nothing, true); 2]);
    }
}

#[test]
fn claim_of_another_gateway_with_another_text_returns_the_callers() {
    let (mut book, now) = (book(|_| {}), now());
    assert!(matches!(book.accept_keyed(key(1), 1, request("a", false), now), Keyed::Claims(_)));
    let read = book.claim_read(key(1), claim("b", 2, now), Uuid::from_u128(1), now.instant);
    let ClaimRead::Conflict(callers) = read else { panic!("the other claim came first") };
    assert_eq!(replies(callers), [1]);
}

#[test]
fn refusal_names_the_exceeded_limit() {
    let now = now();
    let detail = |refused: Refused| refused.detail;
    let mut few_callers = book(|config| config.max_waiting = 1);
    few_callers.accept(key(1), 1, WAITS, now.instant).expect("room");
    let (reply, refused) = few_callers.accept(key(2), 2, WAITS, now.instant).expect_err("no room");
    assert!(reply == 2 && detail(refused).contains("MAX_WAITING"));
    let mut few_tasks = book(|config| config.max_pending = 1);
    few_tasks.in_kafka(key(1), at(1), now.time);
    let (_, refused) = few_tasks.accept(key(2), 2, WAITS, now.instant).expect_err("no room");
    assert!(detail(refused).contains("MAX_PENDING=1"));
    assert!(
        matches!(few_tasks.accept_keyed(key(1), 1, request("a", false), now), Keyed::Waits(_)),
        "another caller of a task that is there"
    );
    let mut few_keys = book(|config| config.max_keys = 1);
    few_keys.claim_read(key(1), claim("a", 2, now), Uuid::nil(), now.instant);
    let Keyed::Refused(_, refused) = few_keys.accept_keyed(key(2), 2, request("b", false), now) else {
        panic!("no room for another key");
    };
    assert!(detail(refused).contains("MAX_KEYS"));
    let mut full = book(|_| {});
    let text = "t".repeat(33 * 1024 * 1024);
    assert!(matches!(full.accept_keyed(key(1), 1, request(&text, false), now), Keyed::Claims(_)));
    let (_, refused) = full.accept(key(2), 2, WAITS, now.instant).expect_err("texts that wait for their claims count");
    assert!(detail(refused).contains("Kafka does not take tasks"));
    full.close();
    let (_, refused) = book_closed().accept(key(1), 1, WAITS, now.instant).expect_err("closed");
    assert!(detail(refused).contains("shutting down"));
}

fn book_closed() -> TaskBook<u32> {
    let mut book = book(|_| {});
    book.close();
    book
}

#[test]
fn old_results_and_claims_are_forgotten_and_pending_tasks_are_not() {
    let (mut book, now) = (book(|config| config.common.result_retention = LONG), now());
    book.claim_read(key(1), claim("a", 2, now), Uuid::nil(), now.instant);
    book.claim_read(key(2), claim("b", 2, now), Uuid::nil(), now.instant);
    book.in_kafka(key(1), at(1), now.time);
    book.done(key(2), at(2), now.time);
    let later = Moment { time: now.time + LONG + Duration::from_millis(1), ..now };
    book.forget_old(later.time);
    assert_eq!((book.known(key(1)), book.known(key(2))), (Known::Pending, Known::Nothing));
    let is_conflict = |keyed: &Keyed<u32>| matches!(keyed, Keyed::Conflict(_));
    assert!(is_conflict(&book.accept_keyed(key(1), 1, request("z", true), later)), "its task is pending");
    assert!(!is_conflict(&book.accept_keyed(key(2), 2, request("z", true), later)), "its key may be used again");
}

proptest! {
    /// After any sequence of events: once every record is settled and all callers have left, the book is empty.
    #[test]
    fn book_is_empty_after_all_records_are_settled_and_all_callers_have_left(steps in proptest::collection::vec((0u8..10, 0u128..6), 1..120)) {
        let (mut book, now) = (book(|_| {}), now());
        let own = Uuid::from_u128(1);
        let (mut entered, mut left, mut tickets) = (0u32, Vec::new(), Vec::new());
        // Passed to the producer and not settled: at most one record of each key.
        let mut with_producer = std::collections::HashSet::new();
        for (offset, (step, number)) in (1i64..).zip(steps) {
            let key = key(number);
            match step {
                // Keys below three are idempotency keys.
                0 | 1 if number < 3 => {
                    entered += 1;
                    match book.accept_keyed(key, entered, request("a", step == 1), now) {
                        Keyed::Waits(ticket) | Keyed::Claims(ticket) => tickets.push(ticket),
                        Keyed::Accepted(reply) | Keyed::Fetch(reply, _) => left.push(reply),
                        Keyed::Refused(..) | Keyed::Conflict(_) => prop_assert!(false, "there is room, and only one text"),
                    }
                }
                0 | 1 if !with_producer.contains(&key) && book.known(key) == Known::Nothing => {
                    entered += 1;
                    let preferences = Preferences { asynchronous: step == 1, wait: None };
                    tickets.push(book.accept(key, entered, preferences, now.instant).expect("room"));
                    book.producing_task(key, record());
                    with_producer.insert(key);
                }
                2 => {
                    let read = book.claim_read(key, claim("a", 1, now), own, now.instant);
                    if let ClaimRead::Produce(_) = read {
                        book.producing_task(key, record());
                        with_producer.insert(key);
                    }
                }
                3 if with_producer.contains(&key) => {
                    if let Err(callers) = book.sending(key, 5, now.instant) {
                        with_producer.remove(&key);
                        left.extend(replies(callers));
                    }
                }
                4 | 5 if with_producer.remove(&key) => left.extend(replies(match step {
                    4 => book.task_acknowledged(key, 5, at(offset), now.time),
                    _ => book.given_up(key, 5),
                })),
                6 => left.extend(replies(book.in_kafka(key, at(offset), now.time))),
                7 => left.extend(replies(book.done(key, at(offset), now.time).1)),
                8 => {
                    if let Some(ticket) = tickets.pop() {
                        left.extend(book.take(ticket.number).map(|it| it.waiter.reply));
                    }
                }
                9 => left.extend(replies(book.settled(key))),
                _ => {}
            }
        }
        for key in with_producer {
            left.extend(replies(book.given_up(key, 5)));
        }
        left.extend(book.close().into_iter().map(|it| it.waiter.reply));
        book.overdue_claims(now.instant);
        left.sort_unstable();
        prop_assert_eq!(left, (1..=entered).collect::<Vec<_>>(), "each caller left exactly once");
        for number in 0..6 {
            prop_assert!(book.settled(key(number)).is_empty());
        }
        let counts = book.counts();
        prop_assert_eq!((counts.callers, counts.unacknowledged_bytes, counts.pending), (0, 0, 0));
        prop_assert!((0..6).all(|number| book.kept(key(number)).is_none()));
        prop_assert_eq!(book.keyed.bytes(), 0);
    }
}

#[test]
fn key_of_a_known_result_refuses_another_text_until_the_result_is_old() {
    let (mut book, now) = (book(|_| {}), now());
    let retention = GatewayConfig::default().common.result_retention;
    assert!(matches!(book.accept_keyed(key(1), 1, request("a", false), now), Keyed::Claims(_)));
    book.claim_read(key(1), claim("a", 1, now), Uuid::from_u128(1), now.instant);
    book.done(key(1), at(7), now.time + LONG);
    // A claim of another key, made later, must not keep this one.
    book.claim_read(key(2), claim("b", 1, Moment { time: now.time + 2 * LONG, ..now }), Uuid::nil(), now.instant);
    let mut conflict = |seconds_after: Duration| {
        let later = Moment { time: now.time + seconds_after, ..now };
        book.forget_old(later.time);
        let decided = book.accept_keyed(key(1), 2, request("b", true), later);
        (decided == Keyed::Conflict(2), book.claims.count())
    };
    assert_eq!(conflict(retention + Duration::from_secs(1)), (true, 2), "the claim is old, the result is not");
    assert_eq!(conflict(retention + LONG), (true, 2));
    assert_eq!(conflict(retention + LONG + Duration::from_secs(1)), (false, 1));
}
