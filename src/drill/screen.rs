//! The live view: a frame that fits the terminal, drawn over the one before.
//!
//! Pure but for the terminal's size: a snapshot in, lines out. A frame has no control characters but colours, which take no room;
//! what comes from outside is escaped. When the room is short the workers go first that need no look, and the events take what is left.

use std::fmt::Write;
use std::io::IsTerminal;
use std::time::Duration;

use crate::logging::escape;

use super::columns::{cut, pad, width};
use super::report::Counts;

/// Events that keep their place when there are many workers.
const EVENTS: usize = 4;
/// The widest progress bar.
const BAR: usize = 40;
/// Characters of a task id: those at its end differ between tasks of the same moment.
const SHORT: usize = 12;

const PLAIN: &str = "";
const BOLD: &str = "\u{1b}[1m";
const RED: &str = "\u{1b}[31m";
const YELLOW: &str = "\u{1b}[33m";
const DIM: &str = "\u{1b}[2m";
const RESET: &str = "\u{1b}[0m";

/// A worker at this moment.
#[derive(Clone, Debug, Default)]
pub(super) struct WorkerView {
    pub(super) id: String,
    /// `started`, `draining`, `silent`, `gone`, `killed`, `frozen`.
    pub(super) state: String,
    pub(super) task: Option<String>,
    pub(super) drain_left: Option<Duration>,
}

/// All that is shown.
#[derive(Clone, Debug, Default)]
pub(super) struct Snapshot {
    pub(super) title: String,
    pub(super) elapsed: Duration,
    /// `None`: until a signal.
    pub(super) length: Option<Duration>,
    /// `load`, `waiting`, `audit`.
    pub(super) phase: String,
    pub(super) counts: Counts,
    /// Answers per second.
    pub(super) rate: f64,
    pub(super) p50: Option<Duration>,
    pub(super) p99: Option<Duration>,
    pub(super) workers: Vec<WorkerView>,
    pub(super) faults_done: u64,
    pub(super) faults_planned: Option<u64>,
    /// The newest last.
    pub(super) events: Vec<String>,
}

/// A line made of pieces, each with its colour.
#[derive(Default)]
struct Painted(Vec<(&'static str, String)>);

impl Painted {
    fn plain(text: String) -> Self {
        Self(vec![(PLAIN, text)])
    }

    fn with(mut self, colour: &'static str, text: String) -> Self {
        self.0.push((colour, text));
        self
    }

    /// Cut to the room; the colours are set after that, so none of them is cut.
    fn fit(&self, room: usize) -> String {
        let whole: usize = self.0.iter().map(|(_, text)| width(text)).sum();
        let mut left = room;
        let mut line = String::new();
        for (colour, text) in &self.0 {
            // Only the piece that the edge falls into is cut, so what stands behind it is left out.
            let piece = if whole > room && width(text) >= left { cut(&format!("{text} "), left) } else { text.clone() };
            left = left.saturating_sub(width(&piece));
            match *colour {
                PLAIN => line.push_str(&piece),
                colour if !piece.is_empty() => line.extend([colour, &piece, RESET]),
                _ => {}
            }
            if left == 0 {
                break;
            }
        }
        line
    }
}

/// A frame of at most so many columns and rows.
pub(super) fn frame(snapshot: &Snapshot, columns: usize, rows: usize) -> Vec<String> {
    let mut lines = vec![head(snapshot, columns)];
    lines.extend(figures(snapshot, columns));
    // A heading each; the events have at least their few, if there are as many.
    let events = EVENTS.min(snapshot.events.len());
    let fleet_room = rows.saturating_sub(lines.len() + events + usize::from(events > 0));
    lines.extend(fleet(&snapshot.workers, fleet_room, columns));
    let room = rows.saturating_sub(lines.len() + 1);
    if room > 0 && events > 0 {
        lines.push(Painted::default().with(DIM, "events".to_owned()));
        let skipped = snapshot.events.len().saturating_sub(room);
        let newest = snapshot.events.iter().skip(skipped);
        lines.extend(newest.map(|event| Painted::plain(format!("  {}", escape(event)))));
    }
    lines.iter().take(rows).map(|line| line.fit(columns)).collect()
}

/// The title, how far it is, and what is done at the moment.
fn head(snapshot: &Snapshot, columns: usize) -> Painted {
    let title = escape(&snapshot.title).to_string();
    let elapsed = snapshot.elapsed.as_secs_f64();
    let Some(length) = snapshot.length.map(|length| length.as_secs_f64()) else {
        return Painted::default()
            .with(BOLD, title)
            .with(PLAIN, format!("  {elapsed:.0} s  {}", escape(&snapshot.phase)));
    };
    let behind = format!("  {elapsed:.0} of {length:.0} s  {}", escape(&snapshot.phase));
    let room = columns.saturating_sub(width(&title) + width(&behind) + 4).min(BAR);
    let share = if length > 0.0 { (elapsed / length).clamp(0.0, 1.0) } else { 1.0 };
    let full = (share * room as f64) as usize;
    // Too little to tell anything.
    let bar = if room < 5 { String::new() } else { format!("  [{}{}]", "█".repeat(full), "·".repeat(room - full)) };
    Painted::default().with(BOLD, title).with(PLAIN, bar + &behind)
}

/// The counts and how fast it goes, on as many lines as they need.
fn figures(snapshot: &Snapshot, columns: usize) -> Vec<Painted> {
    let Counts { sent, waiting, answered, refused, unknown, failed, late } = snapshot.counts;
    let time =
        |time: Option<Duration>| time.map_or("-".to_owned(), |time| format!("{:.1} ms", time.as_secs_f64() * 1e3));
    let planned = snapshot.faults_planned.map(|planned| format!("/{planned}")).unwrap_or_default();
    let mut pieces = vec![
        (PLAIN, format!("{:.1}/s", snapshot.rate)),
        (PLAIN, format!("p50 {}", time(snapshot.p50))),
        (PLAIN, format!("p99 {}", time(snapshot.p99))),
        (PLAIN, format!("faults {}{planned}", snapshot.faults_done)),
    ];
    let counts = [("sent", sent), ("answered", answered), ("waiting", waiting)];
    pieces.extend(counts.map(|(name, count)| (PLAIN, format!("{name} {count}"))));
    // Nothing to tell while there are none.
    let doubts =
        [(YELLOW, "refused", refused), (YELLOW, "unknown", unknown), (RED, "failed", failed), (YELLOW, "late", late)];
    let doubts = doubts.into_iter().filter(|(.., count)| *count > 0);
    pieces.extend(doubts.map(|(colour, name, count)| (colour, format!("{name} {count}"))));
    let mut lines = Vec::new();
    let (mut line, mut used) = (Painted::default(), 0);
    for (colour, piece) in pieces {
        let wide = width(&piece);
        if used > 0 && used + 2 + wide > columns {
            lines.push(std::mem::take(&mut line));
            used = 0;
        }
        if used > 0 {
            line = line.with(PLAIN, "  ".to_owned());
            used += 2;
        }
        line = line.with(colour, piece);
        used += wide;
    }
    lines.push(line);
    lines
}

/// The workers as a table of at most so many lines.
fn fleet(workers: &[WorkerView], room: usize, columns: usize) -> Vec<Painted> {
    let Some(room) = room.checked_sub(1) else { return Vec::new() };
    let shown = if workers.len() > room { room.saturating_sub(1) } else { workers.len() };
    let mut chosen: Vec<(usize, &WorkerView)> = workers.iter().enumerate().collect();
    // Those that are just being stopped, killed or frozen, when not all can be shown; then in the order that they came in.
    chosen.sort_by_key(|(_, worker)| ["started", "gone"].contains(&worker.state.as_str()));
    chosen.truncate(shown);
    chosen.sort_by_key(|(index, _)| *index);
    // A long name must not push out what its worker does.
    let ids: Vec<String> =
        chosen.iter().map(|(_, worker)| cut(&escape(&worker.id).to_string(), (columns / 3).max(10))).collect();
    let widest = ids.iter().map(|id| width(id)).max().unwrap_or_default().max(6);
    let header = format!("{}  {:8}  {:SHORT$}  drain", pad("worker", widest), "state", "task");
    let mut lines = vec![Painted::default().with(DIM, header)];
    if workers.is_empty() {
        lines = vec![Painted::default().with(DIM, "no worker is known".to_owned())];
    }
    for ((_, worker), id) in chosen.into_iter().zip(&ids) {
        let colour = match worker.state.as_str() {
            "draining" => YELLOW,
            "silent" | "killed" | "frozen" => RED,
            "gone" => DIM,
            _ => PLAIN,
        };
        let task = worker.task.as_deref().map_or("-".to_owned(), |task| escape(short(task)).to_string());
        let left = worker.drain_left.map(|left| format!("{:.1} s left", left.as_secs_f64())).unwrap_or_default();
        let state = pad(&escape(&worker.state).to_string(), 8);
        let line = Painted::plain(format!("{}  ", pad(id, widest))).with(colour, state);
        lines.push(line.with(PLAIN, format!("  {}  {left}", pad(&task, SHORT)).trim_end().to_owned()));
    }
    if shown < workers.len() && lines.len() <= room {
        lines.push(Painted::default().with(DIM, format!("and {} more", workers.len() - shown)));
    }
    lines
}

fn short(id: &str) -> &str {
    let skipped = id.chars().count().saturating_sub(SHORT);
    id.char_indices().nth(skipped).and_then(|(start, _)| id.get(start..)).unwrap_or(id)
}

/// The bytes that draw a frame over the one before, which had so many rows (0: there was none, and the cursor is where a line begins).
/// The cursor stays behind the frame's last line, so that a frame as high as the terminal does not move it; whoever prints
/// something else ends that line first.
pub(super) fn paint(previous_rows: usize, frame: &[String]) -> String {
    let mut bytes = String::from("\r");
    if previous_rows > 1 {
        // A String takes all that it is given.
        let _ = write!(bytes, "\u{1b}[{}A", previous_rows - 1);
    }
    for (index, line) in frame.iter().enumerate() {
        // Cleared before it is written: after a line that fills the terminal its last column would be cleared with the rest.
        let _ = write!(bytes, "{}\u{1b}[2K{line}", if index > 0 { "\r\n" } else { "" });
    }
    if previous_rows > frame.len() {
        // What is left of a higher frame. With nothing to draw the first line is cleared, too.
        let rest = previous_rows - frame.len().max(1);
        bytes.push_str(if frame.is_empty() { "\u{1b}[2K" } else { "" });
        bytes.push_str(&"\r\n\u{1b}[2K".repeat(rest));
        if rest > 0 {
            let _ = write!(bytes, "\u{1b}[{rest}A");
        }
    }
    bytes
}

/// Columns and rows of the terminal; `None` when stdout is none, or does not say.
pub(super) fn terminal_size() -> Option<(usize, usize)> {
    let stdout = std::io::stdout();
    if !stdout.is_terminal() {
        return None;
    }
    let size = rustix::termios::tcgetwinsize(stdout).ok()?;
    (size.ws_col > 0 && size.ws_row > 0).then_some((size.ws_col.into(), size.ws_row.into()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn worker(id: &str, state: &str) -> WorkerView {
        WorkerView { id: id.to_owned(), state: state.to_owned(), ..WorkerView::default() }
    }

    fn snapshot() -> Snapshot {
        Snapshot {
            title: "drill steady".to_owned(),
            elapsed: Duration::from_secs(15),
            length: Some(Duration::from_secs(60)),
            phase: "load".to_owned(),
            counts: Counts { sent: 640, waiting: 3, answered: 635, refused: 2, ..Counts::default() },
            rate: 40.0,
            p50: Some(Duration::from_micros(4200)),
            p99: None,
            workers: vec![
                worker("worker_1", "started"),
                WorkerView {
                    task: Some("0190163d-8694-739b-aea5-966c26f8ad91".to_owned()),
                    drain_left: Some(Duration::from_millis(28_400)),
                    ..worker("worker_2", "draining")
                },
                worker("worker_3", "killed"),
            ],
            faults_done: 1,
            faults_planned: Some(8),
            events: (1..=30).map(|number| format!("🛑 event {number}")).collect(),
        }
    }

    /// A line as it is seen.
    fn seen(line: &str) -> String {
        let mut pieces = line.split('\u{1b}');
        let first = pieces.next().unwrap_or_default().to_owned();
        pieces.fold(first, |line, piece| line + piece.split_once('m').expect("a colour").1)
    }

    #[test]
    fn a_frame_shows_how_far_it_is_and_who_drains() {
        let frame: Vec<String> = frame(&snapshot(), 80, 12).iter().map(|line| seen(line)).collect();
        assert_eq!(
            frame,
            [
                "drill steady  [██████████······························]  15 of 60 s  load",
                "40.0/s  p50 4.2 ms  p99 -  faults 1/8  sent 640  answered 635  waiting 3",
                "refused 2",
                "worker    state     task          drain",
                "worker_1  started   -",
                "worker_2  draining  966c26f8ad91  28.4 s left",
                "worker_3  killed    -",
                "events",
                "  🛑 event 27",
                "  🛑 event 28",
                "  🛑 event 29",
                "  🛑 event 30",
            ]
        );
    }

    #[test]
    fn every_frame_fits_its_terminal() {
        let mut snapshot = snapshot();
        snapshot.workers.extend((4..300).map(|number| worker(&format!("worker_日本_{number}"), "started")));
        snapshot.workers.push(worker(&"w".repeat(200), "frozen"));
        snapshot.title = "drill \u{1b}[2J\n🛑".to_owned();
        snapshot.events.push("🛑".repeat(100));
        for columns in (0..100).chain([200, 1000]) {
            for rows in 0..45 {
                let frame = frame(&snapshot, columns, rows);
                assert!(frame.len() <= rows);
                for line in &frame {
                    let line = seen(line);
                    assert!(width(&line) <= columns, "{columns} columns: {line}");
                    assert!(!line.chars().any(char::is_control));
                }
            }
        }
        // The few that need a look are shown when not all can be.
        let frame = frame(&snapshot, 80, 16).join("\n");
        assert!(frame.contains("draining") && frame.contains("killed") && frame.contains("frozen"), "{frame}");
        assert!(frame.contains(" more") && frame.contains("events"));
    }

    #[test]
    fn a_small_terminal_gets_the_figures_and_the_fleet() {
        let frame = frame(&snapshot(), 40, 10);
        assert_eq!(frame.len(), 10);
        assert!(frame.iter().any(|line| line.contains("worker")));
        assert!(frame.last().is_some_and(|line| line.contains("event 30")));
    }

    #[test]
    fn without_workers_and_events_there_is_still_a_frame() {
        let snapshot = Snapshot { length: None, ..Snapshot::default() };
        let frame = frame(&snapshot, 80, 24);
        assert!(frame.iter().any(|line| line.contains("no worker is known")) && frame.len() < 6, "{frame:?}");
    }

    /// What a terminal shows after these bytes: the lines, and the row that the cursor is in.
    fn show(screen: &mut Vec<String>, row: &mut usize, bytes: &str) {
        let mut rest = bytes;
        while let Some(character) = rest.chars().next() {
            if screen.len() <= *row {
                screen.resize(*row + 1, String::new());
            }
            rest = &rest[character.len_utf8()..];
            match character {
                '\r' => {}
                '\n' => *row += 1,
                '\u{1b}' => {
                    let end = rest.find(|character: char| character.is_ascii_alphabetic()).expect("its end");
                    match &rest[1..=end] {
                        "2K" => screen[*row].clear(),
                        up => *row -= up.trim_end_matches('A').parse::<usize>().expect("up"),
                    }
                    rest = &rest[end + 1..];
                }
                _ => screen[*row].push(character),
            }
        }
    }

    #[test]
    fn a_frame_is_drawn_over_the_one_before() {
        let lines = |lines: &[&str]| lines.iter().map(|line| (*line).to_owned()).collect::<Vec<_>>();
        let (mut screen, mut row) = (lines(&["above"]), 1);
        let mut before = 0;
        for frame in [lines(&["a", "b", "c"]), lines(&["d"]), lines(&["e", "f"]), lines(&["e", "f"]), Vec::new()] {
            show(&mut screen, &mut row, &paint(before, &frame));
            let mut expected = lines(&["above"]);
            expected.extend(frame.iter().cloned());
            let filled: Vec<String> = screen.iter().filter(|line| !line.is_empty()).cloned().collect();
            assert_eq!(filled, expected);
            assert_eq!(row, frame.len().max(1));
            before = frame.len();
        }
    }

    #[test]
    fn a_pipe_has_no_size() {
        let size = terminal_size();
        assert!(std::io::stdout().is_terminal() || size.is_none(), "{size:?}");
    }
}
