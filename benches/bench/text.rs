//! Texts of 200 bytes whose figures are known from how they are put together, not from the program that is measured.

/// Words in several alphabets, each one word by any rule.
const WORDS: [&str; 12] =
    ["the", "cat", "sat", "under", "старый", "мост", "тихо", "Straße", "niño", "water", "evening", "река"];

/// The length of every text in bytes.
const BYTES: usize = 200;

/// A text, its characters and its words.
pub struct Text {
    pub text: String,
    chars: usize,
    words: usize,
}

impl Text {
    /// The text of this number; the number stands in it, so that no two are the same.
    pub fn number(number: u64) -> Text {
        let mut text = Text { text: String::with_capacity(BYTES), chars: 0, words: 0 };
        text.push(&format!("n{number}"));
        let mut pick = number;
        loop {
            pick = pick.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            let word = WORDS[(pick >> 33) as usize % WORDS.len()];
            // Room for a last word of at least one letter that fills up.
            if text.text.len() + word.len() + 3 > BYTES {
                break;
            }
            text.push(word);
        }
        text.push(&"z".repeat(BYTES - text.text.len() - 1));
        debug_assert_eq!(text.text.len(), BYTES);
        text
    }

    /// Are these its figures?
    pub fn is_counted(&self, chars: usize, words: usize) -> bool {
        (chars, words) == (self.chars, self.words)
    }

    fn push(&mut self, word: &str) {
        if !self.text.is_empty() {
            self.text.push(' ');
            self.chars += 1;
        }
        self.text.push_str(word);
        self.chars += word.chars().count();
        self.words += 1;
    }
}
