//! What became of one task: its starts, its results, and how a start and its result are put together.
//!
//! Pure; part of the [evidence](super).

/// One start of a task, and its end if it has a result.
#[derive(Clone, Debug)]
pub(crate) struct Run<'a> {
    pub(crate) worker: &'a str,
    pub(crate) began: f64,
    pub(crate) delivery: Option<i16>,
    pub(crate) end: Option<RunEnd<'a>>,
    pub(crate) lines: Vec<usize>,
}

/// A result.
#[derive(Clone, Debug)]
pub(crate) struct RunEnd<'a> {
    pub(crate) at: f64,
    pub(crate) digest: &'a str,
    pub(crate) fault: Option<&'a str>,
    pub(crate) success: bool,
    /// What the handler took, as it says.
    pub(crate) seconds: f64,
}

/// One run, of which task, and what that takes besides as far as it is known.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Held<'e, 'a> {
    pub(crate) id: &'a str,
    pub(crate) story: &'e Story<'a>,
    pub(crate) run: &'e Run<'a>,
    pub(crate) work: f64,
}

impl<'a> Run<'a> {
    /// One of which nothing but this line is known.
    pub(super) fn unfinished(worker: &'a str, began: f64, line: usize) -> Self {
        Self { worker, began, delivery: None, end: None, lines: vec![line] }
    }
}

/// One task.
#[derive(Debug, Default)]
pub(crate) struct Story<'a> {
    pub(crate) number: Option<u64>,
    /// Its records on `tasks`, and the partition of the first.
    pub(crate) accepted: Vec<(usize, f64)>,
    pub(crate) partition: Option<i32>,
    /// In the order of their starts.
    pub(crate) runs: Vec<Run<'a>>,
    pub(crate) dead: Vec<usize>,
    /// Results of those who gave it up, with their lines: no handler ran for them.
    pub(crate) given_up: Vec<(usize, RunEnd<'a>)>,
}

impl<'a> Story<'a> {
    pub(crate) fn has_result(&self) -> bool {
        self.results().next().is_some()
    }

    /// What stands on the topic of its results.
    pub(crate) fn results(&self) -> impl Iterator<Item = &RunEnd<'a>> {
        self.runs.iter().filter_map(|run| run.end.as_ref()).chain(self.given_up.iter().map(|(_, end)| end))
    }

    /// One more, in its place.
    pub(super) fn add(&mut self, run: Run<'a>) {
        self.runs.push(run);
        self.runs.sort_by(|one, other| one.began.total_cmp(&other.began));
    }

    /// Every line about it.
    pub(crate) fn lines(&self) -> Vec<usize> {
        let accepted = self.accepted.iter().map(|(line, _)| *line);
        let mut lines: Vec<usize> =
            accepted.chain(self.runs.iter().flat_map(|run| run.lines.iter().copied())).collect();
        lines.extend(&self.dead);
        lines.extend(self.given_up.iter().map(|(line, _)| *line));
        lines.sort_unstable();
        lines
    }
}

/// The parts of a run that are put together when all lines were seen.
#[derive(Debug, Default)]
pub(super) struct Pieces<'a> {
    pub(super) begans: Vec<(usize, f64, &'a str, i16)>,
    pub(super) restarts: Vec<(usize, f64, &'a str, i16)>,
    pub(super) ends: Vec<(usize, &'a str, RunEnd<'a>)>,
}

impl<'a> Pieces<'a> {
    /// Puts starts and ends together; and what was said of the task without a run of it.
    pub(super) fn runs(self, sees_starts: bool) -> (Vec<Run<'a>>, Vec<(usize, RunEnd<'a>)>) {
        /// A start is read in the log so much after it happened at most, and after its result.
        const SOON: f64 = 3.0;
        /// Clocks of the same machine, one of which counts milliseconds.
        const ROUNDING: f64 = 0.05;
        let run = |(line, began, worker, delivery)| Run {
            worker,
            began,
            delivery: Some(delivery),
            end: None,
            lines: vec![line],
        };
        let mut runs: Vec<Run<'a>> = self.begans.into_iter().map(run).collect();
        for restart in self.restarts {
            let (line, at, worker, delivery) = restart;
            let known = runs.iter_mut().find(|run| {
                run.worker == worker
                    && run.delivery == Some(delivery)
                    && (-ROUNDING..SOON).contains(&(run.began - at))
                    && run.lines.len() == 1
            });
            match known {
                Some(known) => known.lines.push(line),
                // With the journal at hand a start that is not in it did not happen.
                None if sees_starts => {}
                None => runs.push(run(restart)),
            }
        }
        let mut ends = self.ends;
        ends.sort_by(|(.., one), (.., other)| one.at.total_cmp(&other.at));
        let mut given_up = Vec::new();
        for (line, worker, end) in ends {
            // A handler takes some time; who gives a task up takes none.
            if !end.success && end.seconds == 0.0 {
                given_up.push((line, end));
                continue;
            }
            let began = end.at - end.seconds;
            // A log that is read late dates a start later than its end; no other run can have said this.
            let open =
                runs.iter_mut().filter(|run| run.worker == worker && run.end.is_none() && run.began <= end.at + SOON);
            match open.min_by(|one, other| (one.began - began).abs().total_cmp(&(other.began - began).abs())) {
                Some(known) => {
                    known.lines.push(line);
                    known.began = known.began.min(began);
                    known.end = Some(end);
                }
                None => runs.push(Run { worker, began, delivery: None, end: Some(end), lines: vec![line] }),
            }
        }
        runs.sort_by(|one, other| one.began.total_cmp(&other.began));
        (runs, given_up)
    }
}
