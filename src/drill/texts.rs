//! The texts of the load: Russian and English sentences, put together by a seed, each text with a mark of its own.
//!
//! How long a task shall take besides is drawn with its text. The mark is the first word of a text and says which request of which run it belongs to, so that a task is found on the topic
//! when its caller never learned its id. Pure; called by the senders and by the readers of the topics.

use std::sync::Arc;

use fastrand::Rng;
use serde_json::Value;

use super::expect;
use super::plan::TaskPlan;

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

/// The texts of one run.
#[derive(Clone, Debug)]
pub(super) struct Texts {
    run: String,
    seed: u64,
    sentences: Arc<[String]>,
    tasks: Arc<[TaskPlan]>,
    checked: Checked,
}

impl Texts {
    /// `run` tells this run from every other one on the same topics; `seed` decides what the texts say. Without `sentences` those that are
    /// built in; without `tasks` nobody is told how long a task shall take.
    pub(super) fn new(run: u32, seed: u64, sentences: &[String], tasks: &[TaskPlan], checked: Checked) -> Self {
        let sentences = if sentences.is_empty() { SENTENCES.map(str::to_owned).to_vec() } else { sentences.to_vec() };
        Self { run: format!("drill-{run:08x}-"), seed, sentences: sentences.into(), tasks: tasks.into(), checked }
    }

    /// A generator for each request: whoever sends it, and in whatever order, it is the same.
    fn rng(&self, number: u64) -> Rng {
        Rng::with_seed(self.seed ^ number.wrapping_mul(0x9e37_79b9_7f4a_7c15))
    }

    /// The text of a request.
    pub(super) fn text(&self, number: u64) -> String {
        let mut rng = self.rng(number);
        let mut text = format!("{}{number}", self.run);
        for _ in 0..rng.usize(1..=5) {
            text.push(' ');
            text.push_str(rng.choice(self.sentences.iter()).map_or("", String::as_str));
        }
        text
    }

    /// How long the task of a request shall take besides, in milliseconds.
    pub(super) fn work_ms(&self, number: u64) -> Option<u64> {
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
        Texts::new(run, seed, &[], &[], Checked::Analysis)
    }

    #[test]
    fn kinds_of_tasks_come_in_their_shares() {
        let kind = |share, ms| TaskPlan { share, work: Duration::from_millis(ms) };
        let texts = Texts::new(7, 42, &[], &[kind(3, 5), kind(0, 7), kind(1, 1000)], Checked::Any);
        let long = (0..4000).filter(|number| texts.work_ms(*number) == Some(1000)).count();
        assert!((900..=1100).contains(&long), "{long}");
        assert!((0..4000).all(|number| matches!(texts.work_ms(number), Some(5 | 1000))));
        assert_eq!(super::Texts::new(7, 42, &[], &[], Checked::Any).work_ms(1), None);
    }

    #[test]
    fn sentences_of_ones_own_are_taken() {
        let own = Texts::new(7, 42, &["only this".to_owned()], &[], Checked::Any);
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
        assert_eq!(own.number(&own.text(12)), Some(12));
        assert_eq!(texts(8, 42).number(&own.text(12)), None);
        assert_eq!(own.number("the cat and the hat"), None);
    }
}
