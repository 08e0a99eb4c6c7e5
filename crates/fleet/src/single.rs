//! Commands for single programs: a worker, the gateway, Kafka. Commands for different programs run at the same time.
//! Called by `programs`.

use std::fs::File;
use std::time::Instant;

use nix::sys::signal::Signal;

use crate::failure::{Failure, refused};
use crate::options::{Target, Verb};
use crate::programs::{APACHE, Condition, DEVBROKER, Fleet, GATEWAY, in_order};
use crate::say;
use crate::state::Wanted;

impl Verb {
    /// Whether it fits a program in this condition.
    fn fits(self, condition: Condition) -> bool {
        match self {
            Self::Stop | Self::Kill | Self::Restart => condition != Condition::Stopped,
            Self::Start => condition == Condition::Stopped,
            Self::Freeze | Self::Quiet | Self::Resume => condition == Condition::Running,
            Self::Thaw => condition == Condition::Frozen,
        }
    }

    /// The message if no worker fits.
    fn none(self) -> &'static str {
        match self {
            Self::Start => "no worker is stopped or killed; start more workers with: make scale-up WORKERS=n",
            Self::Freeze => "every running worker is already frozen",
            Self::Thaw => "no worker is frozen",
            _ => "no worker runs; start workers with: make scale-up",
        }
    }
}

impl Fleet {
    /// Acts on a program. Without `WORKER`, quiets, resumes or restarts all workers one after another, or with `ALL`
    /// kills all.
    pub(crate) fn act(&mut self, verb: Verb, target: Target) -> Result<(), Failure> {
        let mut begin = Instant::now();
        let named = self.config.worker.clone().filter(|_| target == Target::Worker);
        // The lock comes before the look at the worker, which another command may be about to stop or start.
        let mut held = named.as_ref().map(|name| self.hold_known(name, verb)).transpose()?.flatten();
        let names = match target {
            Target::Gateway => vec![GATEWAY.to_owned()],
            Target::Kafka => vec![self.kafka_for(verb)?.to_owned()],
            Target::Worker => self.candidates(verb, named.as_deref())?,
        };
        let all = match verb {
            Verb::Restart | Verb::Quiet | Verb::Resume => true,
            Verb::Kill => self.config.all,
            _ => false,
        };
        let many = target == Target::Worker && all;
        let chosen = if many { names.len() } else { 1 };
        for name in names.iter().take(chosen) {
            // A thaw takes no lock, because a command that holds the lock may wait for this thaw.
            if verb != Verb::Thaw && named.is_none() {
                held = Some(self.hold(name)?);
            }
            let condition = self.condition(name)?;
            if verb.fits(condition) {
                self.act_on(verb, name, begin)?;
            } else if many {
                say(format!("{name} is {condition}"));
            } else if target == Target::Worker {
                return refused(format!("another command has changed {name} meanwhile"));
            } else {
                let what = if target == Target::Gateway { "the gateway" } else { "Kafka" };
                return refused(format!("{what} is {condition}"));
            }
            begin = Instant::now();
        }
        drop(held);
        Ok(())
    }

    /// Locks a program that the state knows. Other names are no programs, and must not become names of lock files.
    fn hold_known(&self, name: &str, verb: Verb) -> Result<Option<File>, Failure> {
        let known = self.store.read()?.programs.contains_key(name);
        if known && verb != Verb::Thaw { self.hold(name).map(Some) } else { Ok(None) }
    }

    /// The workers that fit, at least one.
    fn candidates(&self, verb: Verb, named: Option<&str>) -> Result<Vec<String>, Failure> {
        let mut fitting = Vec::new();
        let running = self.workers()?;
        for name in in_order(self.store.read()?.programs.into_keys().chain(running.clone())) {
            if verb.fits(self.condition(&name)?) {
                fitting.push(name);
            }
        }
        let Some(name) = named else { return if fitting.is_empty() { refused(verb.none()) } else { Ok(fitting) } };
        if fitting.iter().any(|fitting| fitting == name) {
            return Ok(vec![name.to_owned()]);
        }
        if running.iter().any(|running| running == name) {
            return refused(format!("{name} is already {}", self.condition(name)?));
        }
        let (state, are) = if verb == Verb::Start { ("was stopped or killed", fitting) } else { ("runs", running) };
        refused(format!("no worker '{name}' {state}; there are: {}", are.join(" ")))
    }

    fn act_on(&mut self, verb: Verb, name: &str, begin: Instant) -> Result<(), Failure> {
        match verb {
            Verb::Stop => self.stop_programs(&[name.to_owned()]),
            Verb::Kill => {
                self.kill(name)?;
                say(format!("killed {name} (SIGKILL); it stays dead until {}", how_to(Verb::Start, name)));
                Ok(())
            }
            Verb::Start | Verb::Restart if Some(name) == self.kafka_program()? => self.start_kafka(),
            Verb::Start => {
                if name == GATEWAY {
                    self.refuse_http_port_in_use()?;
                }
                self.launch(name)?;
                self.say_when_ready(begin, name, "is ready", "start")
            }
            Verb::Restart => {
                self.stop_programs(&[name.to_owned()])?;
                self.launch(name)?;
                self.say_when_ready(begin, name, "is ready again", "SIGTERM")
            }
            Verb::Freeze => {
                // The state first, so that later commands know that the program must be thawed.
                self.want(name, Wanted::Frozen)?;
                self.signal(name, Signal::SIGSTOP)?;
                say(format!("froze {name}; thaw it with: {}", how_to(Verb::Thaw, name)));
                Ok(())
            }
            Verb::Quiet => {
                self.signal(name, Signal::SIGUSR1)?;
                say(format!("quieted {name} (SIGUSR1): it takes no new tasks until make resume; see make status"));
                Ok(())
            }
            Verb::Resume => {
                self.signal(name, Signal::SIGUSR2)?;
                say(format!("resumed {name} (SIGUSR2)"));
                Ok(())
            }
            Verb::Thaw => {
                self.thaw(name)?;
                say(format!("thawed {name}"));
                Ok(())
            }
        }
    }

    pub(crate) fn thaw(&self, name: &str) -> Result<(), Failure> {
        // First the signal: a state that cannot be written must not keep the program frozen.
        self.signal(name, Signal::SIGCONT)?;
        self.want(name, Wanted::Running)
    }
}

/// The command that starts or thaws this program.
pub(crate) fn how_to(verb: Verb, name: &str) -> String {
    let target = match name {
        GATEWAY => "gateway",
        DEVBROKER | APACHE => "kafka",
        _ if verb == Verb::Start => return "make scale-up".to_owned(),
        _ => "worker",
    };
    let this = std::env::args().next().unwrap_or_else(|| "fleet".to_owned());
    format!("{this} {}-{target}", if verb == Verb::Start { "start" } else { "thaw" })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_verb_fits_only_some_conditions_of_a_program() {
        let fits = |condition| [Verb::Stop, Verb::Start, Verb::Freeze, Verb::Thaw].map(|verb| verb.fits(condition));
        assert_eq!(fits(Condition::Running), [true, false, true, false]);
        assert_eq!(fits(Condition::Frozen), [true, false, false, true]);
        assert_eq!(fits(Condition::Stopped), [false, true, false, false]);
    }
}
