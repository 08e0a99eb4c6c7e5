//! The files of a run: the verdict as JSON for programs, and the page with the timeline for people.
//!
//! The run calls it with its verdict.

use std::path::{Path, PathBuf};

use super::fact::Line;
use super::html;
use super::judgement::Verdict;

/// The paths of the files; `None` for a file that is not written.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Outputs {
    /// `LEDGER`
    pub ledger: Option<PathBuf>,
    /// `JSON`
    pub json: Option<PathBuf>,
    /// `HTML`
    pub html: Option<PathBuf>,
}

/// Writes the files that have a path.
///
/// # Errors
/// The first file that cannot be written; the others are written nevertheless.
pub(super) fn write(outputs: &Outputs, lines: &[Line], verdict: &Verdict) -> Result<(), String> {
    let mut outcome = Ok(());
    let mut save = |path: &Option<PathBuf>, document: &dyn Fn() -> String| {
        if let Some(path) = path {
            let saved = save_file(path, &document());
            if outcome.is_ok() {
                outcome = saved;
            }
        }
    };
    // Numbers and strings have a JSON form.
    save(&outputs.json, &|| serde_json::to_string_pretty(verdict).unwrap_or_default() + "\n");
    save(&outputs.html, &|| html::document(lines, verdict));
    outcome
}

fn save_file(path: &Path, document: &str) -> Result<(), String> {
    std::fs::write(path, document).map_err(|error| format!("{}: {error}", path.display()))
}
