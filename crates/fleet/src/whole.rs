//! Commands for the whole fleet: up, down, scaling. They run while no other command changes the fleet. Called by
//! `programs`.

use program::stop::Stop;

use crate::failure::{Failure, refused};
use crate::programs::{APACHE, Condition, DEVBROKER, Fleet, GATEWAY};
use crate::ready::refuse_port_in_use;
use crate::state::State;
use crate::{complain, print, say};

impl Fleet {
    fn anything_runs(&self) -> Result<bool, Failure> {
        Ok(self.runs(GATEWAY)? || !self.workers()?.is_empty() || self.runs(DEVBROKER)? || self.runs(APACHE)?)
    }

    pub(crate) fn up(&mut self) -> Result<(), Failure> {
        let fresh = !self.anything_runs()?;
        if !fresh {
            self.refuse_to_move()?;
        }
        self.refuse_http_port_in_use()?;
        self.store.create()?;
        let wanted = self.config.workers.unwrap_or(3);
        match self.start_all(wanted) {
            Err(failure) if fresh => {
                complain("stopping the programs that were started");
                // A new stop, because the interruption that may have led here must not end this.
                self.stop = Stop::new();
                self.stop_all()?;
                self.store.remove()?;
                return match failure {
                    Failure::Interrupted(_) => refused("interrupted; nothing runs now"),
                    failure => Err(failure),
                };
            }
            started => started?,
        }
        self.store.change(|state| state.settings.clone_from(&self.settings))?;
        let (address, workers, kafka) =
            (self.settings.address()?, self.workers()?.len(), self.settings.kafka_address());
        print(&format!("ready: http://{address} (native; gateway, {workers} workers, Kafka {kafka})\n"));
        print(&format!(
            "  curl -s http://{address}/analyze -H 'Content-Type: application/json' -d '{{\"text\": \"the cat and the hat\"}}'\n"
        ));
        if self.runs(DEVBROKER)? {
            print(
                "note: the embedded broker keeps everything in memory, for trying out and testing only; for a real Kafka: KAFKA=apache make up\n",
            );
        }
        Ok(())
    }

    /// Refuses an `up` with other addresses than the running fleet has.
    fn refuse_to_move(&self) -> Result<(), Failure> {
        let Ok(State { settings: remembered, .. }) = self.store.read() else {
            return refused("a fleet runs, but its state is missing; stop it first: make down");
        };
        let defaults = [
            ("HTTP_ADDR", "127.0.0.1:8080"),
            ("KAFKA", "embedded"),
            ("KAFKA_PORT", "9092"),
            ("KAFKA_BOOTSTRAP_SERVERS", "of its own"),
        ];
        for (name, default) in defaults {
            let has = remembered.or(name, default);
            if let Some(given) = self.config.given.get(name).filter(|given| *given != has) {
                return refused(format!("the running fleet has {name} {has}, not {given}; stop it first: make down"));
            }
        }
        Ok(())
    }

    pub(crate) fn refuse_http_port_in_use(&self) -> Result<(), Failure> {
        if self.runs(GATEWAY)? {
            return Ok(());
        }
        let elsewhere = "choose another address: HTTP_ADDR=127.0.0.1:8081 make up";
        refuse_port_in_use(&self.settings.address()?.to_string(), elsewhere)
    }

    /// Thaws all programs, and starts Kafka, the gateway and the first workers if they do not run.
    fn start_all(&mut self, workers: usize) -> Result<(), Failure> {
        for program in [GATEWAY, "worker", DEVBROKER] {
            self.program(program)?;
        }
        self.thaw_all()?;
        self.start_kafka()?;
        let workers: Vec<_> = (1..=workers).map(worker).collect();
        for name in std::iter::once(GATEWAY).chain(workers.iter().map(String::as_str)) {
            // An interruption takes effect between two starts.
            self.stop.check()?;
            if !self.runs(name)? {
                self.launch(name)?;
            }
        }
        self.wait_until_ready(&workers)?;
        Ok(())
    }

    pub(crate) fn down(&mut self) -> Result<(), Failure> {
        if matches!(self.store.read(), Err(Failure::NothingRuns)) && !self.anything_runs()? {
            say("nothing runs");
            return Ok(());
        }
        self.stop_all()?;
        self.store.remove()
    }

    /// Thaws all frozen programs.
    fn thaw_all(&self) -> Result<(), Failure> {
        for name in self.state_or_empty().programs.keys() {
            if self.condition(name)? == Condition::Frozen {
                self.thaw(name)?;
            }
        }
        Ok(())
    }

    /// Stops the gateway first, because its callers wait for workers, and Kafka last, because the others report to it.
    fn stop_all(&mut self) -> Result<(), Failure> {
        self.thaw_all()?;
        for names in [vec![GATEWAY.to_owned()], self.workers()?, vec![DEVBROKER.to_owned()], vec![APACHE.to_owned()]] {
            if let [name] = names.as_slice()
                && !self.runs(name)?
            {
                continue;
            }
            self.stop_programs(&names)?;
        }
        Ok(())
    }

    /// Stops the workers with the highest numbers, or starts workers with the lowest free numbers.
    pub(crate) fn scale(&mut self, default: usize) -> Result<(), Failure> {
        let wanted = self.config.workers.unwrap_or(default);
        let running = self.workers()?;
        let (stop, start) = scaling(&running, wanted);
        // Not those that run after the starts: a worker that has died by then would be missing, and not reported.
        let expected: Vec<_> = running.into_iter().filter(|name| !stop.contains(name)).chain(start.clone()).collect();
        self.stop_programs(&stop)?;
        self.store.change(|state| stop.iter().for_each(|name| drop(state.programs.remove(name))))?;
        for name in &start {
            self.stop.check()?;
            self.launch(name)?;
        }
        self.wait_until_ready(&expected)?;
        say(format!("{wanted} worker(s) run"));
        Ok(())
    }
}

fn worker(number: usize) -> String {
    format!("worker_{number}")
}

/// The workers to stop and to start so that `wanted` run; `running` is ordered by number.
fn scaling(running: &[String], wanted: usize) -> (Vec<String>, Vec<String>) {
    let stop = running.iter().skip(wanted).cloned().collect();
    let free = (1..).map(worker).filter(|name| !running.contains(name));
    (stop, free.take(wanted.saturating_sub(running.len())).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn scaling_stops_the_highest_and_starts_the_lowest_free_numbers() {
        let running = |numbers: &[usize]| numbers.iter().map(|number| worker(*number)).collect::<Vec<_>>();
        for (before, wanted, stop, start) in [
            (&[1, 2, 3][..], 1, &[2, 3][..], &[][..]),
            (&[2, 9, 10], 2, &[10], &[]),
            (&[2], 3, &[], &[1, 3]),
            (&[], 2, &[], &[1, 2]),
            (&[1, 2], 2, &[], &[]),
        ] {
            assert_eq!(scaling(&running(before), wanted), (running(stop), running(start)), "{before:?} to {wanted}");
        }
    }
}
