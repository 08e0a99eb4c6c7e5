//! The steps after the load: unknown outcomes, probe of the healed fleet, its stop, audit.

use std::ops::Range;

use super::*;

impl Run<'_> {
    /// Waits until all outcomes are known or no more become known, and until late effects of the faults are over. A
    /// fleet of the drill's own is then probed and stopped.
    pub(super) fn settle(&mut self, owned: bool) -> Result<(), End> {
        if self.side.as_ref().is_some_and(|side| side.director.is_some()) {
            self.wait_for(Phase::Healed, HEAL_WAIT, "not all processes are ready")?;
        }
        let patience = if self.outage { MISSING_WAIT } else { UNKNOWN_WAIT } + 2 * self.plan().longest_work();
        let (mut open, mut moved) = (self.account.open(), self.now());
        while self.account.open() > 0 && self.now() < moved + patience {
            self.account.close_unaccepted(self.tasks_read);
            if self.account.open() < open {
                (open, moved) = (self.account.open(), self.now());
            }
            if !owned && self.kafka_read && self.history.nobody_works() && self.now() > moved + UNKNOWN_WAIT {
                break;
            }
            self.step()?;
        }
        // Locks that were held at the last fault run out here, so that the ledger has the runs that follow.
        while self.disturbed.is_some_and(|disturbed| self.now() < disturbed + LOCK_WAIT) {
            self.step()?;
        }
        let deadline = self.now() + SHOWN_WAIT;
        while self.kafka_read && self.now() < deadline && !self.history.is_settled(self.now()) {
            self.step()?;
        }
        if owned {
            self.probe()?;
            self.stop_fleet()?;
        }
        Ok(())
    }

    /// After the healing, every request must be served, and finished tasks must have the same results as before.
    fn probe(&mut self) -> Result<(), End> {
        self.write(Fact::Healed);
        self.display.phase = "probing";
        let gateways = self.place.gateways.len();
        let options = LoadOptions {
            rate: None,
            length: None,
            callers: 2 * gateways,
            first: AFTERWARDS,
            most: PROBES * gateways as u64,
            ..self.load_options(Arc::default())
        };
        let probes = Load::start(&options, &self.texts, &self.teller, &self.died);
        let deadline = self.now() + PROBE_WAIT;
        while !probes.is_done() {
            if self.now() >= deadline {
                probes.stop.trigger();
                probes.hurry.trigger();
            }
            self.step()?;
        }
        join(probes.threads);
        let now = self.now().as_secs_f64();
        let tasks = some_answered(self.ledger.lines(), now - READ_BACK_OF..now, READ_BACK);
        while self.asking {
            self.step()?;
        }
        let names: Vec<String> = self.gateways().into_iter().map(|(name, _)| name).collect();
        let asked = self.side.as_ref().and_then(|side| side.lookups.clone());
        let question = Question::ReadBack { tasks, gateways: [names.clone(), names].concat() };
        self.asking = asked.is_some_and(|ask| ask.send(question).is_ok());
        let deadline = self.now() + PROBE_WAIT;
        while self.asking && self.now() < deadline {
            self.step()?;
        }
        self.drain();
        Ok(())
    }

    /// Stops workers, then gateways; the judge judges these stops too.
    pub(super) fn stop_fleet(&mut self) -> Result<(), End> {
        self.command(Command::StopWorkers);
        self.wait_for(Phase::WorkersStopped, self.place.drain_timeout + STOP_WAIT, "the workers have not stopped")?;
        let deadline = self.now() + SHOWN_WAIT;
        let shown = |run: &Self| run.views.values().all(|view| view.active.is_empty() && view.stopping.is_empty());
        while self.now() < deadline && !shown(self) {
            self.step()?;
        }
        self.command(Command::StopGateways);
        self.wait_for(Phase::GatewaysStopped, self.place.gateway_grace + STOP_WAIT, "the gateways have not stopped")
    }

    fn wait_for(&mut self, phase: Phase, limit: Duration, otherwise: &str) -> Result<(), End> {
        let deadline = self.now() + limit;
        while self.phase != Some(phase) {
            if self.now() >= deadline {
                let at = self.now();
                self.display.console.at(at, &format!("{otherwise} after {} s; going on to the audit", limit.as_secs()));
                return Ok(());
            }
            self.step()?;
        }
        Ok(())
    }

    /// Writes the lag and the records of the topics into the ledger. Returns whether all could be read.
    pub(super) fn audit(&mut self, audit: &mut Audit, cluster: &Cluster) -> Result<bool, End> {
        let at = self.now();
        self.display.phase = "audit";
        self.display.console.at(at, "reading the topics");
        let stop = self.signals.second.clone();
        let mut outcome = Ok(());
        match audit.lag(cluster, &stop) {
            Ok(tasks) => self.write(Fact::Lag { tasks }),
            Err(error) => outcome = Err(error.to_string()),
        }
        let ledger = &mut self.ledger;
        let read = audit.read(cluster, &stop, &mut |line| ledger.write(line));
        outcome = outcome.and(read.map_err(|error| error.to_string()));
        if stop.is_triggered() {
            return Err(End::Forced);
        }
        if let Err(why) = &outcome {
            let at = self.now();
            self.display.console.at(at, &format!("the topics cannot be audited: {}", escape(why)));
        }
        Ok(outcome.is_ok())
    }

    pub(super) fn judge(&mut self, audited: bool) -> Verdict {
        let ending = Ending {
            cut_short: self.cut_short,
            audited,
            nobody_works: !self.config.owns_processes() && self.history.nobody_works(),
        };
        self.write(Fact::End(ending));
        judge::judge(self.ledger.lines(), self.ledger.path())
    }
}

/// At most `most` of the tasks that were answered in this time, spread over it.
pub(super) fn some_answered(lines: &[Line], during: Range<f64>, most: usize) -> Vec<(u64, String)> {
    let answered = |line: &Line| match &line.fact {
        Fact::Answered { number, answer, .. } | Fact::Fetched { number, answer, .. }
            if during.contains(&line.at) && answer.outcome == Kind::Answered =>
        {
            Some((*number, answer.task_id.clone()?))
        }
        _ => None,
    };
    let recent: Vec<_> = lines.iter().filter_map(answered).collect();
    let every = recent.len().div_ceil(most).max(1);
    recent.into_iter().step_by(every).collect()
}

#[cfg(test)]
mod tests {
    use super::super::super::fact::Answer;
    use super::*;

    #[test]
    fn recent_answered_tasks_are_sampled_evenly() {
        let line = |number: u64| {
            let answer = Answer { task_id: Some(number.to_string()), ..Answer::of(Kind::Answered) };
            let fetched = Fact::Fetched { number, gateway: String::new(), answer: answer.clone() };
            let fact = if number == 6 { fetched } else { Fact::Answered { number, took_ms: 1.0, answer } };
            Line { at: number as f64, fact }
        };
        let refused = Fact::Answered { number: 9, took_ms: 1.0, answer: Answer::of(Kind::Refused) };
        let lines: Vec<Line> = (0..10).map(line).chain([Line { at: 9.5, fact: refused }]).collect();
        let numbers = |during, most| -> Vec<u64> {
            some_answered(&lines, during, most).into_iter().map(|(number, _)| number).collect()
        };
        assert_eq!(numbers(0.0..10.0, 100), (0..10).collect::<Vec<_>>());
        assert_eq!(numbers(4.0..10.0, 3), [4, 6, 8]);
        assert_eq!(numbers(4.0..6.0, 3), [4, 5]);
        assert!(numbers(11.0..12.0, 3).is_empty());
    }
}
