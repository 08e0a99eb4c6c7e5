//! Text for a terminal: how many columns it takes, wrapped to those that there are.
//!
//! A character that some terminal shows two columns wide counts as two, so that a line is rather too short than too long. Pure;
//! called by `paper` with text in which control characters are escaped.

/// Columns of a text.
pub(super) fn width(text: &str) -> usize {
    text.chars().map(columns).sum()
}

fn columns(character: char) -> usize {
    match character {
        // Letters of the alphabets, punctuation, arrows, mathematics; lines and blocks.
        '\0'..'\u{1100}' | '\u{2000}'..'\u{2300}' | '\u{2500}'..'\u{25a0}' | '\u{fe00}'..='\u{fe0f}' => 1,
        _ => 2,
    }
}

/// The text in lines of so many columns, those after the first indented. A word that is wider stands on a line of its own, whole:
/// an id or a path is there to be copied.
pub(super) fn wrap(text: &str, room: usize, indent: usize) -> Vec<String> {
    let mut lines = Vec::new();
    let mut line = String::new();
    let mut used = 0;
    for word in text.split(' ') {
        let wide = width(word);
        if used > 0 && used + 1 + wide > room {
            lines.push(std::mem::replace(&mut line, " ".repeat(indent)));
            used = indent;
        } else if used > 0 {
            line.push(' ');
            used += 1;
        }
        line.push_str(word);
        used += wide;
    }
    lines.push(line);
    lines
}

/// The text with spaces behind it up to so many columns.
pub(super) fn pad(text: &str, room: usize) -> String {
    format!("{text}{}", " ".repeat(room.saturating_sub(width(text))))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn emoji_and_ideographs_take_two_columns() {
        assert_eq!(width("worker_1"), 8);
        assert_eq!(width("🛑 a"), 4);
        assert_eq!(width("日本"), 4);
        assert_eq!(width("█·…"), 3);
    }

    #[test]
    fn wrapped_text_loses_nothing() {
        assert_eq!(wrap("one two three", 7, 2), ["one two", "  three"]);
        assert_eq!(wrap("a 0123456789 b", 5, 1), ["a", " 0123456789", " b"]);
        assert_eq!(wrap("", 5, 1), [""]);
    }
}
