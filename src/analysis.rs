//! The shipped handler: counts the characters, words and letters of a text.
//!
//! A [`Handler`] without state or I/O. It runs thousands of times per second, so ASCII words need no allocation each.

use std::borrow::Cow;
use std::cmp::Reverse;
use std::collections::HashMap;
use std::time::Duration;

use serde_json::{Map, Value};
use unicode_segmentation::UnicodeSegmentation;

use crate::handler::{Context, Handler, HandlerError};
use crate::task::Task;

/// The longest `work_ms` of a task.
pub const LONGEST_WORK: Duration = Duration::from_mins(2);
/// The top lists have at most this many entries.
const TOP: usize = 3;

/// The handler of the `worker` program.
#[derive(Clone, Copy, Debug, Default)]
pub struct Analysis {
    /// Whether tasks may have the member `work_ms`; otherwise a task with it fails.
    pub allow_work_ms: bool,
}

impl Handler for Analysis {
    fn handle(&self, task: &Task, context: &Context) -> Result<Map<String, Value>, HandlerError> {
        if let Some(work) = self.work(task)? {
            // An abandoned task ends at once; its outcome is dropped.
            context.abandoned.sleep(work).map_err(|stopped| HandlerError::Retry(stopped.to_string()))?;
        }
        Ok(TextCounts::of(&task.text).into_members())
    }
}

impl Analysis {
    /// How much longer the task asks its handler to take.
    fn work(self, task: &Task) -> Result<Option<Duration>, HandlerError> {
        match task.work_ms.map(Duration::from_millis) {
            Some(_) if !self.allow_work_ms => {
                Err(HandlerError::Final("work_ms is not allowed here (ALLOW_WORK_MS is 0)".to_owned()))
            }
            Some(work) if work > LONGEST_WORK => {
                Err(HandlerError::Final(format!("work_ms is over {}", LONGEST_WORK.as_millis())))
            }
            work => Ok(work),
        }
    }
}

/// The counts of a text.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TextCounts {
    /// Unicode scalar values.
    pub chars: u64,
    /// Words: segments by the word boundaries of UAX #29 that have a letter or a digit.
    pub words: u64,
    /// Different words, in lower case.
    pub unique_words: u64,
    /// Alphabetic characters.
    pub letters: u64,
    /// The most frequent words in lower case, at most three; equal counts in code point order.
    pub top_words: Vec<(String, u64)>,
    /// The most frequent letters in lower case, likewise.
    pub top_letters: Vec<(char, u64)>,
}

impl TextCounts {
    /// Counts a text.
    pub fn of(text: &str) -> Self {
        let (letters, top_letters) = count_letters(text);
        let lowered;
        let words = if text.is_ascii() {
            // In ASCII, lower-casing moves no word boundary, so the words can be slices of one lower-cased copy.
            lowered = text.to_ascii_lowercase();
            Words::count(lowered.unicode_words().map(Cow::Borrowed))
        } else {
            // Otherwise it can move a boundary, and depends on neighbours (final sigma): split first, then lower-case.
            Words::count(text.unicode_words().map(|word| Cow::Owned(word.to_lowercase())))
        };
        let chars = length(text.chars().count());
        Self { chars, words: words.all, unique_words: words.unique, letters, top_words: words.top, top_letters }
    }

    /// The members of the result, in their order.
    pub fn into_members(self) -> Map<String, Value> {
        let mut members = Map::new();
        let mut put = |name: &str, value: Value| members.insert(name.to_owned(), value);
        put("chars", self.chars.into());
        put("words", self.words.into());
        put("unique_words", self.unique_words.into());
        put("letters", self.letters.into());
        put("top_words", pairs(self.top_words));
        put("top_letters", pairs(self.top_letters));
        members
    }
}

/// The counts of words.
struct Words {
    all: u64,
    unique: u64,
    top: Vec<(String, u64)>,
}

impl Words {
    fn count<'a>(lowered: impl Iterator<Item = Cow<'a, str>>) -> Self {
        let mut seen = HashMap::<Cow<'a, str>, u64>::new();
        for word in lowered {
            *seen.entry(word).or_default() += 1;
        }
        let (all, unique) = (seen.values().sum(), length(seen.len()));
        let top = top(seen).into_iter().map(|(word, count)| (word.into_owned(), count)).collect();
        Self { all, unique, top }
    }
}

/// Counts the letters, and finds the most frequent ones.
fn count_letters(text: &str) -> (u64, Vec<(char, u64)>) {
    let mut letters = 0;
    // An array for ASCII letters, which are nearly all letters of most texts.
    let mut ascii = [0_u64; 26];
    let mut others = HashMap::<char, u64>::new();
    for character in text.chars().filter(|character| character.is_alphabetic()) {
        letters += 1;
        // One letter may become several characters ("İ" an "i" with a combining dot): the alphabetic ones count.
        for lowered in character.to_lowercase().filter(|lowered| lowered.is_alphabetic()) {
            match lowered {
                'a'..='z' => ascii[lowered as usize - 'a' as usize] += 1,
                _ => *others.entry(lowered).or_default() += 1,
            }
        }
    }
    let of_ascii = ('a'..='z').zip(ascii).filter(|(_, count)| *count > 0);
    (letters, top(of_ascii.chain(others)))
}

/// The most frequent entries, at most [`TOP`], equally frequent ones in the order of their keys.
fn top<K: Ord>(counts: impl IntoIterator<Item = (K, u64)>) -> Vec<(K, u64)> {
    let mut best = Vec::<(Reverse<u64>, K)>::with_capacity(TOP + 1);
    for (key, count) in counts {
        let entry = (Reverse(count), key);
        // Most entries are not better than the last of the best: skip the search.
        if best.len() == TOP && best.last().is_some_and(|last| *last <= entry) {
            continue;
        }
        let place = best.partition_point(|better| *better < entry);
        best.insert(place, entry);
        best.truncate(TOP);
    }
    best.into_iter().map(|(Reverse(count), key)| (key, count)).collect()
}

/// `[["the", 3], …]`
fn pairs<K: ToString>(entries: Vec<(K, u64)>) -> Value {
    entries.into_iter().map(|(key, count)| Value::from(vec![key.to_string().into(), Value::from(count)])).collect()
}

/// A length as it goes into JSON; `usize` has at most 64 bits.
fn length(length: usize) -> u64 {
    length as u64
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;
    use std::time::Instant;

    use proptest::prelude::*;
    use serde_json::json;

    use super::*;

    fn task(text: &str, work_ms: Option<u64>) -> Task {
        Task { task_id: "t".to_owned(), text: text.to_owned(), timestamp: 0.0, work_ms }
    }

    fn analyse(text: &str) -> Value {
        Analysis::default().handle(&task(text, None), &Context::new()).expect("plain analysis never fails").into()
    }

    #[test]
    fn english() {
        let expected = json!({
            "chars": 67, "words": 14, "unique_words": 11, "letters": 42,
            "top_words": [["the", 3], ["fox", 2], ["3.14", 1]],
            "top_letters": [["e", 5], ["t", 5], ["h", 4]],
        });
        assert_eq!(analyse("The quick fox can't jump: the dog, the FOX. Pi is 3.14 -- so there!"), expected);
    }

    #[test]
    fn example_of_the_readme_is_correct() {
        let readme = include_str!("../README.md");
        let block = readme.split("```").find_map(|block| block.strip_prefix("json\n")).expect("an example of a result");
        let Value::Object(example) = serde_json::from_str(block).expect("JSON") else { panic!("an object") };
        let Value::Object(counted) = analyse("the cat and the hat") else { panic!("an object") };
        for (name, value) in &counted {
            assert_eq!(example.get(name), Some(value), "{name}");
        }
        assert!(readme.contains(r#"-d '{"text": "the cat and the hat"}'"#));
    }

    #[test]
    fn russian() {
        let expected = json!({
            "chars": 47, "words": 10, "unique_words": 7, "letters": 32,
            "top_words": [["мама", 2], ["мыла", 2], ["ёлка", 2]],
            "top_letters": [["а", 10], ["м", 8], ["л", 4]],
        });
        assert_eq!(analyse("Мама мыла раму. Мама, ёлка, ЁЛКА и Мыла: 5 рам!"), expected);
    }

    #[test]
    fn emoji_are_characters_but_not_words() {
        let expected = json!({
            "chars": 14, "words": 2, "unique_words": 1, "letters": 4,
            "top_words": [["ok", 2]], "top_letters": [["k", 2], ["o", 2]],
        });
        assert_eq!(analyse("ok 👩\u{200d}👩\u{200d}👧 🇩🇪 OK"), expected);
    }

    #[test]
    fn texts_without_words_have_no_top_lists() {
        let nothing = json!({
            "chars": 0, "words": 0, "unique_words": 0, "letters": 0, "top_words": [], "top_letters": [],
        });
        assert_eq!(analyse(""), nothing);
        let mut blank = nothing;
        blank["chars"] = json!(6);
        assert_eq!(analyse(" \t\n.,!"), blank);
    }

    #[test]
    fn members_are_in_the_documented_order() {
        let Value::Object(members) = analyse("a") else { panic!("an object") };
        let names: Vec<_> = members.keys().map(String::as_str).collect();
        assert_eq!(names, ["chars", "words", "unique_words", "letters", "top_words", "top_letters"]);
    }

    #[test]
    fn letters_without_a_single_lower_case_form_are_counted() {
        let counts = TextCounts::of("İΣς ß ﬁ 漢字 ١");
        // Seven letters; the dotted I counts as an i, and the final sigma is a separate letter.
        assert_eq!(counts.letters, 7);
        assert_eq!(counts.top_letters, [('i', 1), ('ß', 1), ('ς', 1)]);
        assert_eq!(TextCounts::of("ΟΔΟΣ").top_words, [("οδος".to_owned(), 1)]);
        // A digit makes a word, without being a letter.
        assert_eq!(TextCounts::of("١").words, 1);
    }

    #[test]
    fn largest_text_takes_no_quadratic_time() {
        for text in ["the quick brown fox ".repeat(3277), "съешь ещё этих ".repeat(2427)] {
            assert!(text.len() > 64_000 && text.len() < 66_000);
            let started = Instant::now();
            let counts = TextCounts::of(&text);
            // A bound against quadratic time, which would take minutes; not a measurement.
            assert!(started.elapsed() < Duration::from_secs(5));
            assert_eq!(counts.words, length(text.split(' ').count()) - 1);
            assert_eq!(counts.chars, length(text.chars().count()));
        }
    }

    #[test]
    fn work_ms_is_taken_only_if_allowed() {
        let (allowing, context) = (Analysis { allow_work_ms: true }, Context::new());
        let started = Instant::now();
        assert!(allowing.handle(&task("a", Some(30)), &context).is_ok());
        assert!(started.elapsed() >= Duration::from_millis(30));
        let refused = Analysis::default().handle(&task("a", Some(30)), &context);
        assert!(matches!(refused, Err(HandlerError::Final(_))));
        let endless = allowing.handle(&task("a", Some(120_001)), &context);
        assert!(matches!(endless, Err(HandlerError::Final(_))));
    }

    #[test]
    fn work_ends_when_the_task_is_abandoned() {
        let context = Context::new();
        context.abandoned.trigger();
        let started = Instant::now();
        let outcome = Analysis { allow_work_ms: true }.handle(&task("a", Some(60_000)), &context);
        assert!(matches!(outcome, Err(HandlerError::Retry(_))));
        assert!(started.elapsed() < Duration::from_secs(5));
    }

    #[test]
    fn draining_does_not_shorten_work() {
        let context = Context::new();
        context.draining.trigger();
        let started = Instant::now();
        assert!(Analysis { allow_work_ms: true }.handle(&task("a", Some(20)), &context).is_ok());
        assert!(started.elapsed() >= Duration::from_millis(20));
    }

    /// The definitions, without regard to speed; boundaries come from the full algorithm.
    fn by_definition(text: &str) -> TextCounts {
        fn tally<K: Ord + Clone>(items: &[K]) -> Vec<(K, u64)> {
            let mut seen = BTreeMap::<&K, u64>::new();
            items.iter().for_each(|item| *seen.entry(item).or_default() += 1);
            let mut entries: Vec<_> = seen.into_iter().map(|(key, count)| (key.clone(), count)).collect();
            // Stable: equal counts stay in the order of their keys.
            entries.sort_by_key(|(_, count)| Reverse(*count));
            entries
        }
        let words: Vec<_> = text
            .split_word_bounds()
            .filter(|segment| segment.chars().any(char::is_alphanumeric))
            .map(str::to_lowercase)
            .collect();
        let letters: Vec<_> = text
            .chars()
            .filter(|c| c.is_alphabetic())
            .flat_map(char::to_lowercase)
            .filter(|c| c.is_alphabetic())
            .collect();
        let (by_word, by_letter) = (tally(&words), tally(&letters));
        TextCounts {
            chars: length(text.chars().count()),
            words: length(words.len()),
            unique_words: length(by_word.len()),
            letters: length(text.chars().filter(|c| c.is_alphabetic()).count()),
            top_words: by_word.into_iter().take(TOP).collect(),
            top_letters: by_letter.into_iter().take(TOP).collect(),
        }
    }

    proptest! {
        #[test]
        fn any_text_counts_as_defined(text in any::<String>()) {
            prop_assert_eq!(TextCounts::of(&text), by_definition(&text));
        }

        #[test]
        fn ascii_counts_as_defined(text in "[ -~\t\r\n]{0,200}") {
            prop_assert_eq!(TextCounts::of(&text), by_definition(&text));
        }

        /// Few letters and every mark that joins words: many boundaries and equal words.
        #[test]
        fn marks_between_words_count_as_defined(text in "[aAbB12_'.,:;\" \r\n-]{0,60}") {
            prop_assert_eq!(TextCounts::of(&text), by_definition(&text));
        }

        #[test]
        fn mixed_scripts_count_as_defined(text in "[a-cA-CáÁёЁжЖσςΣİıſK0-9١ '.\u{301}\u{200d}👧🇩漢かカ]{0,80}") {
            prop_assert_eq!(TextCounts::of(&text), by_definition(&text));
        }
    }
}
