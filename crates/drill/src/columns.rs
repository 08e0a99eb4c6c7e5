//! Text for a terminal: its width in columns, wrapping and padding.
//!
//! A character that some terminals show two columns wide counts as two, so a line is never too long. Pure; `paper`
//! calls it with text whose control characters are escaped.

/// The width of a text in columns.
pub(super) fn width(text: &str) -> usize {
    text.chars().map(columns).sum()
}

fn columns(character: char) -> usize {
    match character {
        // Alphabetic letters, punctuation, arrows, mathematics; lines and blocks.
        '\0'..'\u{1100}' | '\u{2000}'..'\u{2300}' | '\u{2500}'..'\u{25a0}' | '\u{fe00}'..='\u{fe0f}' => 1,
        _ => 2,
    }
}

/// The text in lines of at most `room` columns, indented after the first. A longer word gets its own line uncut,
/// because ids and paths are copied.
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

/// The text, padded with spaces to `room` columns.
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
