//! The ledger: every fact of a run as a line of JSON, in a file during the run, and in memory for the judge.
//!
//! Lines count from 1. Only the run writes it; `drill judge` reads it again.

use std::fs::File;
use std::io::{self, BufRead, BufReader, BufWriter, Write};
use std::path::{Path, PathBuf};

use super::fact::Line;

/// The lines of a run, and the file if there is one.
#[derive(Debug, Default)]
pub(super) struct Ledger {
    lines: Vec<Line>,
    file: Option<(PathBuf, BufWriter<File>)>,
    /// The first error of the file, after which nothing is written.
    broken: Option<io::Error>,
}

impl Ledger {
    /// Creates a ledger in this file, or in memory only. Replaces the file, and creates its folder.
    ///
    /// # Errors
    /// The file or its folder cannot be created.
    pub(super) fn create(path: Option<&Path>) -> io::Result<Self> {
        let Some(path) = path else { return Ok(Self::default()) };
        if let Some(folder) = path.parent() {
            std::fs::create_dir_all(folder).map_err(|error| match error.kind() {
                io::ErrorKind::AlreadyExists => io::Error::new(
                    io::ErrorKind::NotADirectory,
                    format!("{} is a file, not a folder", folder.display()),
                ),
                _ => error,
            })?;
        }
        let file = Some((path.to_owned(), BufWriter::new(File::create(path)?)));
        Ok(Self { file, ..Self::default() })
    }

    /// Reads a ledger from a file.
    ///
    /// # Errors
    /// The file cannot be read, or a line is not a ledger line; the message has its number.
    pub(super) fn read(path: &Path) -> io::Result<Self> {
        let mut lines = Vec::new();
        for (index, line) in BufReader::new(File::open(path)?).lines().enumerate() {
            let line = serde_json::from_str(&line?)
                .map_err(|error| io::Error::new(io::ErrorKind::InvalidData, format!("line {}: {error}", index + 1)))?;
            lines.push(line);
        }
        Ok(Self { lines, ..Self::default() })
    }

    pub(super) fn write(&mut self, line: Line) {
        if let (Some((_, file)), None) = (&mut self.file, &self.broken) {
            let written = serde_json::to_writer(&mut *file, &line).map_err(io::Error::from);
            self.broken = written.and_then(|()| file.write_all(b"\n")).err();
        }
        self.lines.push(line);
    }

    /// Flushes the file.
    ///
    /// # Errors
    /// The file could not be written, now or earlier.
    pub(super) fn flush(&mut self) -> io::Result<()> {
        if let Some(error) = self.broken.take() {
            return Err(error);
        }
        self.file.as_mut().map_or(Ok(()), |(_, file)| file.flush())
    }

    pub(super) fn lines(&self) -> &[Line] {
        &self.lines
    }

    /// The path of the file; empty without a file.
    pub(super) fn path(&self) -> String {
        self.file.as_ref().map(|(path, _)| path.display().to_string()).unwrap_or_default()
    }
}

#[cfg(test)]
mod tests {
    use super::super::fact::Fact;
    use super::*;

    #[test]
    fn written_lines_are_read_again() {
        let path = std::env::temp_dir().join(format!("lastcall-ledger-{}", std::process::id()));
        let written = [
            Line { at: 0.5, fact: Fact::LoadEnded },
            Line {
                at: 1.25,
                fact: Fact::Signalled {
                    process: "worker_1".to_owned(),
                    signal: "SIGTERM".to_owned(),
                    action: None,
                    until: None,
                },
            },
        ];
        let mut ledger = Ledger::create(Some(&path)).expect("a file");
        written.iter().cloned().for_each(|line| ledger.write(line));
        ledger.flush().expect("written");
        let text = std::fs::read_to_string(&path).expect("a file");
        assert_eq!(text.lines().next(), Some("{\"at\":0.5,\"fact\":\"load_ended\"}"));
        assert_eq!(Ledger::read(&path).expect("a ledger").lines(), written);
        std::fs::write(&path, "{\"at\":1,\"fact\":\"load_ended\"}\n{\"at\":1}\n").expect("written");
        let error = Ledger::read(&path).expect_err("no ledger").to_string();
        assert!(error.starts_with("line 2: "), "{error}");
        std::fs::remove_file(&path).expect("removed");
    }

    #[test]
    fn file_in_place_of_the_folder_is_named() {
        let file = std::env::temp_dir().join(format!("lastcall-no-folder-{}", std::process::id()));
        std::fs::write(&file, "").expect("written");
        let error = Ledger::create(Some(&file.join("ledger.jsonl"))).expect_err("no folder").to_string();
        assert_eq!(error, format!("{} is a file, not a folder", file.display()));
        std::fs::remove_file(&file).expect("removed");
    }

    #[test]
    fn failed_write_is_an_error() {
        // Every write to it fails.
        let mut ledger = Ledger::create(Some(Path::new("/dev/full"))).expect("it opens");
        ledger.write(Line { at: 0.0, fact: Fact::LoadEnded });
        assert!(ledger.flush().is_err());
        assert_eq!(ledger.lines().len(), 1);
    }
}
