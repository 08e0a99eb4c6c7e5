//! The page for people at `/`: one file, nothing from outside.

use super::answer::Answer;

const PAGE: &str = include_str!("page.html");

/// The page.
pub(super) fn answer() -> Answer {
    Answer::bytes(200, "text/html; charset=utf-8", PAGE.as_bytes().to_vec()).with(
        "Content-Security-Policy",
        "default-src 'none'; connect-src 'self'; style-src 'unsafe-inline'; script-src 'unsafe-inline'".to_owned(),
    )
}
