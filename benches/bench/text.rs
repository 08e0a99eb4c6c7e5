//! Texts of 200 bytes whose characters and words are counted while they are built, without the measured program.

/// Words in two alphabets; each is one word by UAX #29.
const WORDS: [&str; 12] =
    ["the", "cat", "sat", "under", "старый", "мост", "тихо", "Straße", "niño", "water", "evening", "река"];

/// Length of each text in bytes.
const BYTES: usize = 200;

/// A text with its numbers of characters and words.
pub struct Text {
    pub text: String,
    chars: usize,
    words: usize,
}

impl Text {
    /// Builds the text of this number; the number is in the text, so that texts differ.
    pub fn number(number: u64) -> Text {
        let mut text = Text { text: String::with_capacity(BYTES), chars: 0, words: 0 };
        text.push(&format!("n{number}"));
        let mut pick = number;
        loop {
            pick = pick.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            let word = WORDS[(pick >> 33) as usize % WORDS.len()];
            // Leaves room for a last word of at least one letter.
            if text.text.len() + word.len() + 3 > BYTES {
                break;
            }
            text.push(word);
        }
        text.push(&"z".repeat(BYTES - text.text.len() - 1));
        debug_assert_eq!(text.text.len(), BYTES);
        text
    }

    /// True if the text has these numbers of characters and words.
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
