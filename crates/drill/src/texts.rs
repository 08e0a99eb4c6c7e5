//! The texts of the load: Russian and English sentences, put together by a seed, each text with a mark of its own.
//!
//! How long a task shall take besides is drawn with its text. The mark is the first word of a text and says which request of which run it belongs to, so that a task is found on the topic
//! when its caller never learned its id. Pure; called by the senders and by the readers of the topics.

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

/// What results are held against.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum Checked {
    /// The analysis that ships, computed a second time.
    #[default]
    Analysis,
    /// Nothing: workers with a handler of their own. That a task has one result is checked all the same.
    Any,
}

/// Requests from this number on are sent when the load is over: plain ones, of no work.
pub(super) const AFTERWARDS: u64 = 1 << 40;
/// A repeated request comes so many requests after the first one of its key: often while its task still runs.
const REPEATED_AFTER: u64 = 10;

/// What is special about a request.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Special {
    /// It has an Idempotency-Key.
    pub(super) keyed: bool,
    /// It repeats the text and the key of this request.
    pub(super) repeats: Option<u64>,
    /// `Prefer: respond-async`
    pub(super) asynchronous: bool,
    /// Its handler fails each time.
    pub(super) poison: bool,
}

/// The texts of one run.
#[derive(Clone, Debug)]
pub(super) struct Texts {
    run: String,
    seed: u64,
    sentences: Arc<[String]>,
    tasks: Arc<[TaskPlan]>,
    shares: Shares,
    checked: Checked,
}

impl Texts {
    /// `run` tells this run from every other one on the same topics; `seed` decides what the texts say. Without `sentences` those that are
    /// built in; without `tasks` nobody is told how long a task shall take.
    pub(super) fn new(run: u32, seed: u64, load: &LoadPlan, checked: Checked) -> Self {
        let sentences = if load.texts.is_empty() { SENTENCES.map(str::to_owned).to_vec() } else { load.texts.clone() };
        Self {
            run: format!("drill-{run:08x}-"),
            seed,
            sentences: sentences.into(),
            tasks: load.tasks.clone().into(),
            shares: load.special,
            checked,
        }
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

    /// Whether a request repeats the one before it; that one is none that repeats another.
    fn repeats(&self, number: u64) -> bool {
        let keyed = |number: u64| (1000 - self.shares.keyed..1000).contains(&self.draw(number));
        let plain = |before: u64| self.draw(before) >= self.shares.asynchronous + self.shares.poison && !keyed(before);
        keyed(number) && number.checked_sub(REPEATED_AFTER).is_some_and(plain)
    }

    /// 0 to 999; apart from what the text and its work are drawn with.
    fn draw(&self, number: u64) -> u32 {
        self.rng(number ^ (1 << 50)).u32(0..1000)
    }

    /// The key of a request that has one.
    pub(super) fn key(&self, number: u64) -> String {
        format!("{}{}", self.run, self.special(number).repeats.unwrap_or(number))
    }

    /// The requests whose task has the text of this one: itself, and the one that repeats it.
    pub(super) fn sharing(&self, number: u64) -> impl Iterator<Item = u64> {
        [number]
            .into_iter()
            .chain((number < AFTERWARDS && self.repeats(number + REPEATED_AFTER)).then_some(number + REPEATED_AFTER))
    }

    /// A generator for each request: whoever sends it, and in whatever order, it is the same.
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
            text.push_str(rng.choice(self.sentences.iter()).map_or("", String::as_str));
        }
        text
    }

    /// How long the task of a request shall take besides, in milliseconds.
    pub(super) fn work_ms(&self, number: u64) -> Option<u64> {
        let special = self.special(number);
        if number >= AFTERWARDS || special.poison {
            return None;
        }
        let number = special.repeats.unwrap_or(number);
        let sum: u64 = self.tasks.iter().map(|task| u64::from(task.share)).sum();
        // Drawn apart from the text, so that another plan leaves the texts as they are.
        let mut draw = (sum > 0).then(|| self.rng(number ^ u64::MAX).u64(0..sum))?;
        let kind = self.tasks.iter().find(|task| {
            let found = draw < u64::from(task.share);
            draw = draw.saturating_sub(task.share.into());
            found
        });
        kind.and_then(|kind| u64::try_from(kind.work.as_millis()).ok())
    }

    /// What is wrong with the result of a request.
    pub(super) fn fault(&self, number: u64, result: &Value) -> Option<String> {
        match self.checked {
            Checked::Analysis => expect::fault(&self.text(number), result),
            Checked::Any => None,
        }
    }

    /// The request that a text belongs to; `None` for what is not of this run.
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
    fn some_requests_repeat_one_before_them_some_are_asynchronous_and_some_poison() {
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
        let poison = (0..).zip(&all).find(|(_, it)| it.poison).expect("one").0;
        assert!(texts.text(poison).split(' ').nth(1) == Some("poison"), "{}", texts.text(poison));
        assert_eq!(texts.special(AFTERWARDS), Special::default());
    }

    #[test]
    fn kinds_of_tasks_come_in_their_shares() {
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
    fn sentences_of_ones_own_are_taken() {
        let sentences = vec!["only this".to_owned()];
        let own = Texts::new(7, 42, &LoadPlan { texts: sentences, ..LoadPlan::default() }, Checked::Any);
        assert!(own.text(3).ends_with(" only this"), "{}", own.text(3));
    }

    #[test]
    fn the_same_seed_gives_the_same_texts() {
        let (one, same, other) = (texts(7, 42), texts(7, 42), texts(7, 43));
        assert!((0..50).all(|number| one.text(number) == same.text(number)));
        assert!((0..50).any(|number| one.text(number) != other.text(number)));
        assert!((0..50).any(|number| !one.text(number).is_ascii()));
    }

    #[test]
    fn a_text_tells_its_request_and_only_to_its_own_run() {
        let own = texts(7, 42);
        assert_eq!(own.number(&own.text(12)), Some(own.special(12).repeats.unwrap_or(12)));
        assert_eq!(texts(8, 42).number(&own.text(12)), None);
        assert_eq!(own.number("the cat and the hat"), None);
    }
}
