//! The outcome of one task: its starts and results, and how they are matched.

/// One start of a task, and its end if it has a result.
#[derive(Clone, Debug)]
pub(crate) struct Run<'a> {
    pub(crate) worker: &'a str,
    pub(crate) began: f64,
    pub(crate) delivery: Option<i16>,
    pub(crate) end: Option<RunEnd<'a>>,
    /// When its handler ended, if the journal shows it; the result may never have reached Kafka.
    pub(crate) handled: Option<f64>,
    pub(crate) lines: Vec<usize>,
}

#[derive(Clone, Debug)]
pub(crate) struct RunEnd<'a> {
    pub(crate) at: f64,
    pub(crate) digest: &'a str,
    pub(crate) fault: Option<&'a str>,
    pub(crate) success: bool,
    /// Seconds that the handler took, as the result says.
    pub(crate) seconds: f64,
}

/// One run with its task, and the requested extra time if it is known.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Held<'e, 'a> {
    pub(crate) id: &'a str,
    pub(crate) story: &'e Story<'a>,
    pub(crate) run: &'e Run<'a>,
    pub(crate) work: f64,
}

impl<'a> Run<'a> {
    /// A run that is known from this line only.
    pub(super) fn unfinished(worker: &'a str, began: f64, line: usize) -> Self {
        Self { worker, began, delivery: None, end: None, handled: None, lines: vec![line] }
    }
}

#[derive(Debug, Default)]
pub(crate) struct Story<'a> {
    pub(crate) number: Option<u64>,
    /// Its records on `tasks`, and the partition of the first.
    pub(crate) accepted: Vec<(usize, f64)>,
    pub(crate) partition: Option<i32>,
    /// In the order of their starts.
    pub(crate) runs: Vec<Run<'a>>,
    pub(crate) dead: Vec<usize>,
    /// Error results of workers that dead-lettered it, with their lines: no handler ran.
    pub(crate) given_up: Vec<(usize, RunEnd<'a>)>,
}

impl<'a> Story<'a> {
    pub(crate) fn has_result(&self) -> bool {
        self.results().next().is_some()
    }

    /// All its results on the topic.
    pub(crate) fn results(&self) -> impl Iterator<Item = &RunEnd<'a>> {
        self.runs.iter().filter_map(|run| run.end.as_ref()).chain(self.given_up.iter().map(|(_, end)| end))
    }

    /// Adds a run in the order of starts.
    pub(super) fn add(&mut self, run: Run<'a>) {
        self.runs.push(run);
        self.runs.sort_by(|one, other| one.began.total_cmp(&other.began));
    }

    /// All ledger lines about the task.
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

/// Starts and results of a task, matched when all lines were read.
#[derive(Debug, Default)]
pub(super) struct Pieces<'a> {
    pub(super) begans: Vec<(usize, f64, &'a str, i16)>,
    pub(super) restarts: Vec<(usize, f64, &'a str, i16)>,
    pub(super) ends: Vec<(usize, &'a str, RunEnd<'a>)>,
    /// Ends of handlers: time, worker, delivery.
    pub(super) handled: Vec<(f64, &'a str, i16)>,
}

impl<'a> Pieces<'a> {
    /// Matches starts with results. Returns the runs, and the results that no run produced.
    pub(super) fn runs(self, sees_starts: bool) -> (Vec<Run<'a>>, Vec<(usize, RunEnd<'a>)>) {
        /// The drill reads a start at most this long after it happened, even after its result.
        const SOON: f64 = 3.0;
        /// Difference of two clocks of one machine, one of which counts milliseconds.
        const ROUNDING: f64 = 0.05;
        let run = |(line, began, worker, delivery)| Run {
            worker,
            began,
            delivery: Some(delivery),
            end: None,
            handled: None,
            lines: vec![line],
        };
        let mut runs: Vec<Run<'a>> = self.begans.into_iter().map(run).collect();
        for (at, worker, delivery) in self.handled {
            // The last start before it: a worker may have started the same delivery in an earlier process.
            let of = |run: &&mut Run<'a>| run.worker == worker && run.delivery == Some(delivery) && run.began <= at;
            if let Some(run) = runs.iter_mut().filter(of).max_by(|one, other| one.began.total_cmp(&other.began)) {
                run.handled = Some(at);
            }
        }
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
                // A start that is not in the journal did not happen.
                None if sees_starts => {}
                None => runs.push(run(restart)),
            }
        }
        let mut ends = self.ends;
        ends.sort_by(|(.., one), (.., other)| one.at.total_cmp(&other.at));
        let mut given_up = Vec::new();
        for (line, worker, end) in ends {
            // A handler takes some time; the error result of a dead-lettered task takes none.
            if !end.success && end.seconds == 0.0 {
                given_up.push((line, end));
                continue;
            }
            let began = end.at - end.seconds;
            // A journal that is read late dates a start after its result. No other run of this worker can have this
            // result.
            let open =
                runs.iter_mut().filter(|run| run.worker == worker && run.end.is_none() && run.began <= end.at + SOON);
            match open.min_by(|one, other| (one.began - began).abs().total_cmp(&(other.began - began).abs())) {
                Some(known) => {
                    known.lines.push(line);
                    known.began = known.began.min(began);
                    known.end = Some(end);
                }
                None => runs.push(Run { end: Some(end), ..Run::unfinished(worker, began, line) }),
            }
        }
        runs.sort_by(|one, other| one.began.total_cmp(&other.began));
        (runs, given_up)
    }
}
