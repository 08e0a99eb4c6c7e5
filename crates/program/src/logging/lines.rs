//! The bounded queue between the logging threads and the thread `log`, which writes to stdout.
//!
//! A write to a full pipe blocks until the pipe's reader continues. A thread that logs therefore only adds its line
//! here, which never blocks. A full queue drops its oldest line and counts it; a line with the count comes before the
//! next line. Called by [`logging`](super).

use std::collections::VecDeque;
use std::io::Write;

use parking_lot::{Condvar, Mutex};

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
    waiting: VecDeque<Vec<u8>>,
    /// Lines dropped since the last written line.
    dropped: u64,
    closed: bool,
}

impl Lines {
    /// Makes an empty queue.
    pub(super) const fn new() -> Self {
        let state = State { waiting: VecDeque::new(), dropped: 0, closed: false };
        Self { state: Mutex::new(state), changed: Condvar::new() }
    }

    /// Adds a line with its line end; drops the line after [`close`](Self::close).
    pub(super) fn add(&self, line: Vec<u8>) {
        let mut state = self.state.lock();
        if state.closed {
            return;
        }
        if state.waiting.len() >= MOST {
            state.waiting.pop_front();
            state.dropped += 1;
        }
        state.waiting.push_back(line);
        self.changed.notify_one();
    }

    /// Adds `last` and refuses later lines. Returns false if the queue was closed before; `last` is dropped then.
    pub(super) fn close(&self, last: Option<Vec<u8>>) -> bool {
        let mut state = self.state.lock();
        let first = !std::mem::replace(&mut state.closed, true);
        if first {
            state.waiting.extend(last);
        }
        self.changed.notify_one();
        first
    }

    /// Writes lines until the queue is closed and empty. A line that stdout refuses is lost, since there is no place to
    /// report it.
    pub(super) fn write_to(&self, output: &mut impl Write) {
        while let Some((dropped, line)) = self.next() {
            if dropped > 0 {
                let time = String::from_utf8_lossy(line.split(|byte| *byte == b' ').next().unwrap_or_default());
                let told =
                    format!("{time} [WARN] {dropped} line(s) of the log were dropped: stdout did not take them\n");
                let _ = output.write_all(told.as_bytes());
            }
            let _ = output.write_all(&line).and_then(|()| output.flush());
        }
    }

    /// Waits for a line; returns it with the number of lines dropped before it.
    fn next(&self) -> Option<(u64, Vec<u8>)> {
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
    use super::*;

    fn written(lines: &Lines) -> String {
        let mut output = Vec::new();
        lines.write_to(&mut output);
        String::from_utf8(output).expect("text")
    }

    #[test]
    fn full_queue_drops_the_oldest_lines_and_writes_their_number() {
        let lines = Lines::new();
        (0..MOST + 3).for_each(|number| lines.add(format!("time{number} [INFO] text\n").into_bytes()));
        assert!(lines.close(Some(b"receipt\n".to_vec())));
        let text = written(&lines);
        let told = "time3 [WARN] 3 line(s) of the log were dropped: stdout did not take them\ntime3 [INFO] text\n";
        assert!(text.starts_with(told), "{}", &text[..200]);
        assert!(text.ends_with(&format!("time{} [INFO] text\nreceipt\n", MOST + 2)));
        assert_eq!(text.lines().count(), 1 + MOST + 1);
    }

    #[test]
    fn no_line_follows_the_last_line() {
        let lines = Lines::new();
        lines.add(b"first\n".to_vec());
        assert!(lines.close(Some(b"last\n".to_vec())));
        lines.add(b"late\n".to_vec());
        assert!(!lines.close(Some(b"another last\n".to_vec())));
        assert_eq!(written(&lines), "first\nlast\n");
    }

    #[test]
    fn lines_are_written_as_they_come() {
        let lines = Lines::new();
        let (reader, mut writer) = std::io::pipe().expect("a pipe");
        std::thread::scope(|scope| {
            scope.spawn(|| lines.write_to(&mut writer));
            let mut reader = std::io::BufReader::new(reader);
            for text in ["one\n", "two\n"] {
                lines.add(text.as_bytes().to_vec());
                let mut line = String::new();
                std::io::BufRead::read_line(&mut reader, &mut line).expect("readable");
                assert_eq!(line, text);
            }
            lines.close(None);
        });
    }
}
