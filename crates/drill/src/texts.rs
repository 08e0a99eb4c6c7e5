//! The texts of the load: Russian and English sentences, combined by a seed, with a mark.
//!
//! The mark is the first word of a text and names the run and the request. So the drill finds a task on the topic even
//! if its caller never learned its id. The seed also draws the extra time of a task and what is special about a
//! request. Pure; called by the senders and by the readers of the topics.

use std::sync::Arc;

use fastrand::Rng;
use serde_json::Value;

use super::expect;
use super::plan::{LoadPlan, Shares, TaskPlan};
use lastcall::journal::POISON;

const SENTENCES: [&str; 24] = [
    "The quick brown fox jumps over the lazy dog.",
    "A worker that stops finishes what it has in hand, and gives back the rest.",
    "It was the best of times, it was the worst of times.",
    "All happy families are alike; each unhappy family is unhappy in its own way.",
    "Don't count the 3.14 chickens before they're hatched!",
    "To be, or not to be: that is the question.",
    "She sells sea shells by the sea shore, and the shells she sells are sea shells.",
    "In 2024 the fleet had 12 workers; by noon it had 7.",
    "Café, naïve and Übermut are words, too.",
    "Who waits for an answer gets one answer, not two.",
    "The cat and the hat and the bat sat on the mat.",
    "Nothing is lost, nothing is lost, nothing at all is lost.",
    "Мама мыла раму, а папа читал газету.",
    "Съешь же ещё этих мягких французских булок, да выпей чаю.",
    "Все счастливые семьи похожи друг на друга.",
    "Ёжик в тумане искал ёлку, но нашёл только туман.",
    "Очередь держит задачу, пока работник не ответит.",
    "Тише едешь — дальше будешь, говорит старая пословица.",
    "Москва, Берлин и Париж: 3 города, 3 языка.",
    "Работник остановлен, но ни одна задача не потеряна.",
    "Буря мглою небо кроет, вихри снежные крутя.",
    "Не откладывай на завтра то, что можно сделать сегодня.",
    "Kafka хранит tasks и results, а worker их читает.",
    "Один, два, три, четыре, пять — вышел зайчик погулять.",
];

/// How results are checked.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum Checked {
    /// Against the shipped analysis, computed a second time.
    #[default]
    Analysis,
    /// No check of the content, for workers with another handler.
    Any,
}

/// Requests from this number on are sent after the load: plain requests without extra time.
pub(super) const AFTERWARDS: u64 = 1 << 40;
/// A repeated request comes this many requests after the first request of its key, often while the task still runs.
const REPEATED_AFTER: u64 = 10;

/// What is special about a request.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Special {
    /// The request has an Idempotency-Key.
    pub(super) keyed: bool,
    /// The request repeats text and key of the request with this number.
    pub(super) repeats: Option<u64>,
    /// `Prefer: respond-async`
    pub(super) asynchronous: bool,
    /// The handler fails at each start.
    pub(super) poison: bool,
}

/// The texts of one run.
#[derive(Clone, Debug)]
pub(super) struct Texts {
    run: String,
    seed: u64,
    tasks: Arc<[TaskPlan]>,
    shares: Shares,
    checked: Checked,
}

impl Texts {
    /// `run` distinguishes this run from others on the same topics. `seed` draws texts, extra times and special
    /// requests.
    pub(super) fn new(run: u32, seed: u64, load: &LoadPlan, checked: Checked) -> Self {
        Self { run: format!("drill-{run:08x}-"), seed, tasks: load.tasks.clone().into(), shares: load.special, checked }
    }

    /// What is special about a request.
    pub(super) fn special(&self, number: u64) -> Special {
        if number >= AFTERWARDS {
            return Special::default();
        }
        let repeats = number.checked_sub(REPEATED_AFTER).filter(|_| self.repeats(number));
        if repeats.is_some() {
            return Special { keyed: true, repeats, ..Special::default() };
        }
        let Shares { asynchronous, poison, .. } = self.shares;
        let draw = self.draw(number);
        Special {
            keyed: self.repeats(number + REPEATED_AFTER),
            repeats: None,
            asynchronous: draw < asynchronous,
            poison: (asynchronous..asynchronous + poison).contains(&draw),
        }
    }

    /// Whether a request repeats the request [`REPEATED_AFTER`] before it, which must not be a repetition itself.
    fn repeats(&self, number: u64) -> bool {
        let keyed = |number: u64| (1000 - self.shares.keyed..1000).contains(&self.draw(number));
        let plain = |before: u64| self.draw(before) >= self.shares.asynchronous + self.shares.poison && !keyed(before);
        keyed(number) && number.checked_sub(REPEATED_AFTER).is_some_and(plain)
    }

    /// A random number from 0 to 999, drawn apart from the text and its extra time.
    fn draw(&self, number: u64) -> u32 {
        self.rng(number ^ (1 << 50)).u32(0..1000)
    }

    /// The Idempotency-Key of a keyed request.
    pub(super) fn key(&self, number: u64) -> String {
        format!("{}{}", self.run, self.special(number).repeats.unwrap_or(number))
    }

    /// The requests with the text of this request: itself and the request that repeats it.
    pub(super) fn sharing(&self, number: u64) -> impl Iterator<Item = u64> {
        [number]
            .into_iter()
            .chain((number < AFTERWARDS && self.repeats(number + REPEATED_AFTER)).then_some(number + REPEATED_AFTER))
    }

    /// The generator of a request, independent of the sender and the order of requests.
    fn rng(&self, number: u64) -> Rng {
        Rng::with_seed(self.seed ^ number.wrapping_mul(0x9e37_79b9_7f4a_7c15))
    }

    /// The text of a request.
    pub(super) fn text(&self, number: u64) -> String {
        let special = self.special(number);
        let number = special.repeats.unwrap_or(number);
        let mut rng = self.rng(number);
        let mut text = format!("{}{number}", self.run);
        if special.poison {
            text.push(' ');
            text.push_str(POISON);
        }
        for _ in 0..rng.usize(1..=5) {
            text.push(' ');
            text.push_str(rng.choice(SENTENCES).unwrap_or_default());
        }
        text
    }

    /// Extra time of the task of a request, in milliseconds.
    pub(super) fn work_ms(&self, number: u64) -> Option<u64> {
        let special = self.special(number);
        if number >= AFTERWARDS || special.poison {
            return None;
        }
        let number = special.repeats.unwrap_or(number);
        let sum: u64 = self.tasks.iter().map(|task| u64::from(task.share)).sum();
        // Drawn apart from the text, so that another plan has the same texts.
        let mut draw = (sum > 0).then(|| self.rng(number ^ u64::MAX).u64(0..sum))?;
        let kind = self.tasks.iter().find(|task| {
            let found = draw < u64::from(task.share);
            draw = draw.saturating_sub(task.share.into());
            found
        });
        kind.and_then(|kind| u64::try_from(kind.work.as_millis()).ok())
    }

    /// The fault of a result of a request, if it has one.
    pub(super) fn fault(&self, number: u64, result: &Value) -> Option<String> {
        match self.checked {
            Checked::Analysis => expect::fault(&self.text(number), result),
            Checked::Any => None,
        }
    }

    /// The request of a text; `None`: the text is not of this run.
    pub(super) fn number(&self, text: &str) -> Option<u64> {
        text.strip_prefix(&self.run)?.split(' ').next()?.parse().ok()
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    fn texts(run: u32, seed: u64) -> Texts {
        Texts::new(run, seed, &LoadPlan::default(), Checked::Analysis)
    }

    #[test]
    fn special_requests_come_in_their_shares() {
        let special = Shares { keyed: 50, asynchronous: 50, poison: 2 };
        let texts = Texts::new(7, 42, &LoadPlan { special, ..LoadPlan::default() }, Checked::Analysis);
        let all: Vec<Special> = (0..20_000).map(|number| texts.special(number)).collect();
        let count = |is: fn(&Special) -> bool| all.iter().filter(|special| is(special)).count();
        assert!((800..1050).contains(&count(|it| it.repeats.is_some())), "{}", count(|it| it.repeats.is_some()));
        assert!((850..1100).contains(&count(|it| it.asynchronous)) && (15..70).contains(&count(|it| it.poison)));
        for (number, first) in (0..).zip(&all).filter_map(|(number, it)| Some((number, it.repeats?))) {
            let special = all[usize::try_from(first).expect("small")];
            assert!(special.keyed && special.repeats.is_none() && !special.poison && !special.asynchronous);
            assert_eq!((texts.text(number), texts.key(number)), (texts.text(first), texts.key(first)));
            assert_eq!(texts.work_ms(number), texts.work_ms(first));
            assert_eq!(texts.sharing(first).collect::<Vec<_>>(), [first, number]);
        }
        let poison = (0..).zip(&all).find(|(_, it)| it.poison).expect("a poison task").0;
        assert!(texts.text(poison).split(' ').nth(1) == Some("poison"), "{}", texts.text(poison));
        assert_eq!(texts.special(AFTERWARDS), Special::default());
    }

    #[test]
    fn extra_times_come_in_their_shares() {
        let kind = |share, ms| TaskPlan { share, work: Duration::from_millis(ms) };
        let tasks = vec![kind(3, 5), kind(0, 7), kind(1, 1000)];
        let none = Shares { keyed: 0, asynchronous: 0, poison: 0 };
        let texts = Texts::new(7, 42, &LoadPlan { tasks, special: none, ..LoadPlan::default() }, Checked::Any);
        let long = (0..4000).filter(|number| texts.work_ms(*number) == Some(1000)).count();
        assert!((900..=1100).contains(&long), "{long}");
        assert!((0..4000).all(|number| matches!(texts.work_ms(number), Some(5 | 1000))));
        assert_eq!(self::texts(7, 42).work_ms(1), None);
    }

    #[test]
    fn the_same_seed_gives_the_same_texts_in_both_languages() {
        let (one, same, other) = (texts(7, 42), texts(7, 42), texts(7, 43));
        assert!((0..50).all(|number| one.text(number) == same.text(number)));
        assert!((0..50).any(|number| one.text(number) != other.text(number)));
        assert!((0..50).any(|number| !one.text(number).is_ascii()));
    }

    #[test]
    fn a_text_names_its_request_only_to_its_own_run() {
        let own = texts(7, 42);
        assert_eq!(own.number(&own.text(12)), Some(own.special(12).repeats.unwrap_or(12)));
        assert_eq!(texts(8, 42).number(&own.text(12)), None);
        assert_eq!(own.number("the cat and the hat"), None);
    }
}
