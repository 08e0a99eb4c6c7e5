//! The bounded queue between the logging threads and the thread `log`, which writes to stdout.
//!
//! A write to a full pipe blocks until the pipe's reader continues. A thread that logs therefore only adds its line
//! here, which never blocks. A full queue drops its oldest line and counts it; a line with the count comes before the
//! next line. Called by [`logging`](super).

use std::collections::VecDeque;
use std::io::Write;

use log::Level;
use parking_lot::{Condvar, Mutex};

use super::form::Form;

/// Most lines that wait for stdout.
const MOST: usize = 1024;

/// The queue.
#[derive(Debug, Default)]
pub(super) struct Lines {
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Debug, Default)]
struct State {
    waiting: VecDeque<Line>,
    /// Lines dropped since the last written line.
    dropped: u64,
    closed: bool,
}

/// A line with its line end.
#[derive(Debug)]
pub(super) enum Line {
    /// Time, level in brackets, message.
    Event(Level, Vec<u8>),
    /// Written as it is in every format: the receipt.
    Plain(String),
}

impl Lines {
    /// Makes an empty queue.
    pub(super) const fn new() -> Self {
        let state = State { waiting: VecDeque::new(), dropped: 0, closed: false };
        Self { state: Mutex::new(state), changed: Condvar::new() }
    }

    /// Adds the line of an event; drops it after [`close`](Self::close).
    pub(super) fn add(&self, level: Level, line: Vec<u8>) {
        let mut state = self.state.lock();
        if state.closed {
            return;
        }
        if state.waiting.len() >= MOST {
            state.waiting.pop_front();
            state.dropped += 1;
        }
        state.waiting.push_back(Line::Event(level, line));
        self.changed.notify_one();
    }

    /// Adds `last` and refuses later lines. Returns false if the queue was closed before; `last` is dropped then.
    pub(super) fn close(&self, last: Option<String>) -> bool {
        let mut state = self.state.lock();
        let first = !std::mem::replace(&mut state.closed, true);
        if first {
            state.waiting.extend(last.map(Line::Plain));
        }
        self.changed.notify_one();
        first
    }

    /// Writes lines until the queue is closed and empty. A line that stdout refuses is lost, since there is no place to
    /// report it.
    pub(super) fn write_to(&self, output: &mut impl Write, form: Form) {
        while let Some((dropped, line)) = self.next() {
            let bytes = match line {
                Line::Event(level, line) => {
                    if dropped > 0 {
                        let time = line.split(|byte| *byte == b' ').next().unwrap_or_default();
                        let time = String::from_utf8_lossy(time);
                        let told = format!(
                            "{time} [WARN] {dropped} line(s) of the log were dropped: stdout did not take them\n"
                        );
                        let _ = output.write_all(&form.shape(Level::Warn, told.into_bytes()));
                    }
                    form.shape(level, line)
                }
                Line::Plain(line) => line.into_bytes(),
            };
            let _ = output.write_all(&bytes).and_then(|()| output.flush());
        }
    }

    /// Waits for a line; returns it with the number of lines dropped before it. Events stand between dropped lines and
    /// a plain line, which comes last and drops none.
    fn next(&self) -> Option<(u64, Line)> {
        let mut state = self.state.lock();
        loop {
            if let Some(line) = state.waiting.pop_front() {
                return Some((std::mem::take(&mut state.dropped), line));
            }
            if state.closed {
                return None;
            }
            self.changed.wait(&mut state);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::form::LogFormat;
    use super::*;

    fn written(lines: &Lines, form: Form) -> String {
        let mut output = Vec::new();
        lines.write_to(&mut output, form);
        String::from_utf8(output).expect("text")
    }

    fn overfull() -> Lines {
        let lines = Lines::new();
        for number in 0..MOST + 3 {
            lines.add(Level::Info, format!("time{number} [INFO] text\n").into_bytes());
        }
        assert!(lines.close(Some("receipt\n".to_owned())));
        lines
    }

    #[test]
    fn full_queue_drops_the_oldest_lines_and_writes_their_number() {
        let text = written(&overfull(), Form::default());
        let told = "time3 [WARN] 3 line(s) of the log were dropped: stdout did not take them\ntime3 [INFO] text\n";
        assert!(text.starts_with(told), "{}", &text[..200]);
        assert!(text.ends_with(&format!("time{} [INFO] text\nreceipt\n", MOST + 2)));
        assert_eq!(text.lines().count(), 1 + MOST + 1);
    }

    #[test]
    fn number_of_dropped_lines_has_the_form_of_all_events_and_the_last_line_has_none() {
        let text = written(&overfull(), Form { format: LogFormat::Json, has_priorities: true });
        let first = "<4>{\"timestamp\":\"time3\",\"level\":\"warn\",\"message\":\"3 line(s) of the log were dropped: stdout did not take them\"}\n<6>{";
        assert!(text.starts_with(first), "{}", &text[..200]);
        assert!(text.ends_with("\"message\":\"text\"}\nreceipt\n"));
    }

    #[test]
    fn no_line_follows_the_last_line() {
        let lines = Lines::new();
        lines.add(Level::Info, b"first\n".to_vec());
        assert!(lines.close(Some("last\n".to_owned())));
        lines.add(Level::Info, b"late\n".to_vec());
        assert!(!lines.close(Some("another last\n".to_owned())));
        assert_eq!(written(&lines, Form::default()), "first\nlast\n");
    }

    #[test]
    fn lines_are_written_as_they_come() {
        let lines = Lines::new();
        let (reader, mut writer) = std::io::pipe().expect("a pipe");
        std::thread::scope(|scope| {
            scope.spawn(|| lines.write_to(&mut writer, Form::default()));
            let mut reader = std::io::BufReader::new(reader);
            for text in ["one\n", "two\n"] {
                lines.add(Level::Info, text.as_bytes().to_vec());
                let mut line = String::new();
                std::io::BufRead::read_line(&mut reader, &mut line).expect("readable");
                assert_eq!(line, text);
            }
            lines.close(None);
        });
    }
}
