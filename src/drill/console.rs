//! What people read: lines on stdout, or a frame that is drawn again and again where stdout is a terminal.
//!
//! While there is a frame, lines that tell of a moment are among its events. Nobody reading any more is no error: the console notes it, and the run ends.
//! Owned by what shows the run.

use std::collections::VecDeque;
use std::io::Write;
use std::time::Duration;

use super::judgement::Verdict;
use super::paper;
use super::screen::{self, Snapshot};

/// The width of what is no terminal.
const WIDTH: usize = 120;
/// Events that are kept for the frame: no terminal has more rows.
const EVENTS: usize = 200;

/// See the module documentation.
#[derive(Debug, Default)]
pub(super) struct Console {
    closed: bool,
    frame: Option<Frame>,
}

/// What is drawn.
#[derive(Debug, Default)]
struct Frame {
    events: VecDeque<String>,
    /// Rows of what was drawn last; 0: nothing yet.
    rows: usize,
}

impl Console {
    /// From now on there is a frame, if stdout is a terminal that can draw one; whether it is.
    pub(super) fn begin_frame(&mut self) -> bool {
        let draws = std::env::var_os("TERM").is_some_and(|term| !term.is_empty() && term != "dumb");
        if draws && screen::terminal_size().is_some() {
            self.frame = Some(Frame::default());
        }
        self.frame.is_some()
    }

    /// The frame stays as it is; lines come below it.
    pub(super) fn end_frame(&mut self) {
        if self.frame.take().is_some_and(|frame| frame.rows > 0) {
            self.write("\n");
        }
    }

    /// Draws this, with the events so far.
    pub(super) fn draw(&mut self, mut snapshot: Snapshot) {
        // One that is no terminal any more is drawn on no more.
        let (Some(frame), Some((columns, rows))) = (&mut self.frame, screen::terminal_size()) else { return };
        snapshot.events = frame.events.iter().cloned().collect();
        let lines = screen::frame(&snapshot, columns, rows);
        let bytes = screen::paint(frame.rows.min(rows), &lines);
        frame.rows = lines.len();
        self.write(&bytes);
    }

    /// A line.
    pub(super) fn line(&mut self, text: &str) {
        match &mut self.frame {
            Some(frame) => {
                if frame.events.len() == EVENTS {
                    frame.events.pop_front();
                }
                frame.events.push_back(text.to_owned());
            }
            None => self.write(&format!("{text}\n")),
        }
    }

    /// A line about something that happened just now.
    pub(super) fn at(&mut self, at: Duration, text: &str) {
        self.line(&format!("{:6.1} s  {text}", at.as_secs_f64()));
    }

    /// Why it cannot go on, for stderr.
    pub(super) fn error(&mut self, why: &str) {
        self.end_frame();
        // Nobody reads it: the exit code tells.
        let _ = writeln!(std::io::stderr(), "drill: {why}");
    }

    /// The verdict, whose last line sums it up.
    pub(super) fn verdict(&mut self, verdict: &Verdict) {
        self.end_frame();
        let width = screen::terminal_size().map_or(WIDTH, |(columns, _)| columns);
        for line in paper::lines(verdict, width) {
            self.line(&line);
        }
    }

    /// Nobody reads any more.
    pub(super) fn is_closed(&self) -> bool {
        self.closed
    }

    fn write(&mut self, text: &str) {
        let mut stdout = std::io::stdout().lock();
        if stdout.write_all(text.as_bytes()).and_then(|()| stdout.flush()).is_err() {
            self.closed = true;
        }
    }
}
