//! The output of a drill: lines on stdout and, on a terminal, a progress bar below them.
//!
//! `display` makes the progress and decides when to print it, `paper` makes the verdict. The bar is on stderr and is
//! removed while a line is written, also a line of the log. Called by `display`, by the run at its ends, and by the log.

use std::io::{self, IsTerminal, Write};
use std::time::Duration;

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

use program::logging::escape;

use super::judgement::Verdict;
use super::paper;

/// Templates of a bar with an end, and of a bar until a signal.
const BOUNDED: &str = "{prefix} [{bar:30}] {pos}/{len} s  {msg}";
const ENDLESS: &str = "{prefix} {pos} s  {msg}";

/// A writer to stdout, above the bar.
#[derive(Clone, Debug)]
pub(super) struct Above(ProgressBar);

impl Above {
    /// Moves the cursor from the right edge to the left: an echoed `^C` at the edge would shift the bar by a row.
    fn leave_edge(&self) {
        if !self.0.is_hidden() {
            // A terminal that went away has no cursor.
            let _ = io::stderr().write_all(b"\r");
        }
    }
}

impl Write for Above {
    fn write(&mut self, text: &[u8]) -> io::Result<usize> {
        let written = self.0.suspend(|| {
            let mut stdout = io::stdout().lock();
            stdout.write_all(text)?;
            stdout.flush()
        });
        self.leave_edge();
        written.map(|()| text.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Stdout, with the bar if there is one.
#[derive(Debug)]
pub(super) struct Console {
    bar: ProgressBar,
    closed: bool,
}

impl Console {
    /// A console without a bar.
    pub(super) fn new() -> Self {
        Self { bar: ProgressBar::hidden(), closed: false }
    }

    /// A writer for the lines of others.
    pub(super) fn above(&self) -> Above {
        Above(self.bar.clone())
    }

    /// Shows the bar if stdout and stderr are a terminal that can draw it, and returns whether they are. `length`: of
    /// the load; `None` without an end.
    pub(super) fn begin_bar(&mut self, title: &str, length: Option<Duration>) -> bool {
        let can_draw = std::env::var_os("TERM").is_some_and(|term| !term.is_empty() && term != "dumb");
        let draws = can_draw && io::stdout().is_terminal() && io::stderr().is_terminal();
        if draws {
            self.draw_on(ProgressDrawTarget::stderr(), title, length);
        }
        draws
    }

    fn draw_on(&mut self, target: ProgressDrawTarget, title: &str, length: Option<Duration>) {
        let template = if length.is_some() { BOUNDED } else { ENDLESS };
        let style = ProgressStyle::with_template(template).unwrap_or_else(|_| ProgressStyle::default_bar());
        self.bar.set_style(style.progress_chars("█·"));
        self.bar.set_prefix(escape(title).to_string());
        self.bar.set_length(length.unwrap_or_default().as_secs());
        self.bar.set_draw_target(target);
    }

    /// Moves the bar to this second of the load. The first line of the text is beside the bar, the others below it.
    pub(super) fn update_bar(&mut self, elapsed: Duration, text: String) {
        self.bar.set_position(elapsed.as_secs());
        self.bar.set_message(text);
        self.above().leave_edge();
    }

    /// Removes the bar for good.
    pub(super) fn end_bar(&mut self) {
        self.bar.finish_and_clear();
        self.bar.set_draw_target(ProgressDrawTarget::hidden());
    }

    pub(super) fn line(&mut self, text: &str) {
        let written = self.above().write_all(format!("{text}\n").as_bytes());
        // A closed pipe has no reader. A terminal that went away sends SIGHUP, which ends the load in order.
        self.closed |= written.is_err_and(|error| error.kind() == io::ErrorKind::BrokenPipe);
    }

    /// Prints a line with a time of the run.
    pub(super) fn at(&mut self, at: Duration, text: &str) {
        self.line(&format!("{:6.1} s  {text}", at.as_secs_f64()));
    }

    /// Prints to stderr why the drill ends.
    pub(super) fn error(&mut self, why: &str) {
        self.end_bar();
        // The exit code shows the error, too.
        let _ = writeln!(io::stderr(), "drill: {why}");
    }

    /// Prints the verdict; its last line sums it up.
    pub(super) fn verdict(&mut self, verdict: &Verdict) {
        self.end_bar();
        for line in paper::lines(verdict) {
            self.line(&line);
        }
    }

    /// Whether stdout is a pipe that its reader has closed.
    pub(super) fn is_closed(&self) -> bool {
        self.closed
    }

    #[cfg(test)]
    pub(super) fn bar_text(&self) -> String {
        self.bar.message()
    }
}

#[cfg(test)]
mod tests {
    use indicatif::TermLike;

    use super::*;

    /// A terminal that went away.
    #[derive(Debug)]
    struct Gone;

    macro_rules! fails {
        ($($name:ident($($kind:ty)?))*) => {
            $(fn $name(&self, $(_: $kind)?) -> io::Result<()> {
                Err(io::Error::from_raw_os_error(5))
            })*
        };
    }

    impl TermLike for Gone {
        fn width(&self) -> u16 {
            80
        }
        fails! { move_cursor_up(usize) move_cursor_down(usize) move_cursor_right(usize) move_cursor_left(usize) }
        fails! { write_line(&str) write_str(&str) clear_line() flush() }
    }

    #[test]
    fn terminal_that_went_away_neither_panics_nor_ends_the_drill() {
        let mut console = Console::new();
        console.draw_on(ProgressDrawTarget::term_like(Box::new(Gone)), "drill", Some(Duration::from_secs(60)));
        for second in 0..3 {
            console.update_bar(Duration::from_secs(second), format!("load\n{second}"));
            console.line("a line of the test");
        }
        console.end_bar();
        assert!(!console.is_closed());
    }
}
