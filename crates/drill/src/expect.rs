//! The expected result of a text, computed a second time in the simplest way.
//!
//! It follows the description of results in `docs/http.md` and shares no code with [`analysis`](lastcall::analysis),
//! whose faults it must find. Called for every result.

use std::collections::BTreeMap;

use serde_json::{Value, json};
use unicode_segmentation::UnicodeSegmentation;

/// The first fault of the result of a text; `None`: no fault. Other members are not checked.
pub(super) fn fault(text: &str, result: &Value) -> Option<String> {
    let wrong = |name: &str, expected: &Value| {
        let got = result.get(name).unwrap_or(&Value::Null);
        (got != expected).then(|| format!("{name} is {got}, expected {expected}"))
    };
    expected(text).into_iter().find_map(|(name, value)| wrong(name, &value))
}

fn expected(text: &str) -> [(&'static str, Value); 7] {
    let words: Vec<String> = text.unicode_words().map(str::to_lowercase).collect();
    let letters: Vec<char> = text.chars().filter(|letter| letter.is_alphabetic()).collect();
    let lowered = letters.iter().flat_map(|letter| letter.to_lowercase()).filter(|letter| letter.is_alphabetic());
    let word_counts = count(words.iter().cloned());
    [
        ("success", json!(true)),
        ("chars", json!(text.chars().count())),
        ("words", json!(words.len())),
        ("unique_words", json!(word_counts.len())),
        ("letters", json!(letters.len())),
        ("top_words", top(word_counts)),
        ("top_letters", top(count(lowered.map(String::from)))),
    ]
}

fn count(items: impl Iterator<Item = String>) -> BTreeMap<String, u64> {
    let mut counts = BTreeMap::new();
    for item in items {
        *counts.entry(item).or_default() += 1;
    }
    counts
}

/// The three most frequent items. Ties stay in code point order: UTF-8 sorts like code points, and the sort is stable.
fn top(counts: BTreeMap<String, u64>) -> Value {
    let mut counts: Vec<(String, u64)> = counts.into_iter().collect();
    counts.sort_by_key(|(_, count)| std::cmp::Reverse(*count));
    counts.truncate(3);
    json!(counts)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_correct_result_has_no_fault_and_a_wrong_one_is_named() {
        let mut result = json!({"task_id": "x", "success": true, "chars": 19, "words": 5, "unique_words": 4, "letters": 15,
            "top_words": [["the", 2], ["and", 1], ["cat", 1]], "top_letters": [["t", 4], ["a", 3], ["h", 3]],
            "processed_by": "worker_1", "seconds": 0.000041});
        assert_eq!(fault("the cat and the hat", &result), None);
        result["letters"] = json!(16);
        assert_eq!(fault("the cat and the hat", &result).as_deref(), Some("letters is 16, expected 15"));
        assert_eq!(fault("x", &json!({})).as_deref(), Some("success is null, expected true"));
    }

    #[test]
    fn russian_letters_are_counted_in_lower_case() {
        let result = json!({"success": true, "chars": 15, "words": 3, "unique_words": 2, "letters": 12,
            "top_words": [["мама", 2], ["мыла", 1]], "top_letters": [["м", 5], ["а", 5], ["л", 1]]});
        let mut sorted = result.clone();
        assert!(fault("Мама мыла, мама", &result).is_some());
        sorted["top_letters"] = json!([["а", 5], ["м", 5], ["л", 1]]);
        assert_eq!(fault("Мама мыла, мама", &sorted), None);
    }
}
