//! Actions of a native fleet: choice of the process, first step, later steps.

use super::*;

impl Native {
    /// The process that an action hits; `Err`: why there is none now.
    pub(super) fn choose(&self, planned: &Planned) -> Result<String, String> {
        let spared = |name: &String| self.hits.are_enough(self.starts.tasks(name));
        let mut all = self.sound(planned.what.has_worker());
        if planned.what == What::QuietWorker {
            let is_quiet =
                |name: &String| self.slots.get(name).is_some_and(|slot| slot.due.iter().any(|it| it.1 == Due::Resume));
            all.retain(|name| !is_quiet(name));
        }
        if !matches!(planned.who, Who::Named(_)) {
            all.retain(|name| !spared(name));
        }
        let busy_since = |name: &String| self.starts.busy_since(name);
        let long_since = |name: &String| self.starts.long_since(name, LONG);
        let wanted: Vec<String> = match &planned.who {
            Who::Named(wanted) => all.iter().filter(|name| *name == wanted).cloned().collect(),
            Who::Busy => {
                let busy = |name: &&String| busy_since(name).is_some_and(|since| since.elapsed() >= BUSY);
                all.iter().filter(busy).cloned().collect()
            }
            // The worker with the youngest long task, which outlasts a drain if the plan has such tasks.
            Who::Long => {
                let newest = all.iter().filter_map(|name| Some((long_since(name)?, name))).max();
                let fresh = self.plan.outlasts_drain().unwrap_or(Duration::MAX);
                let newest = newest.filter(|(since, _)| since.elapsed() <= fresh);
                newest.map(|(_, name)| name.clone()).into_iter().collect()
            }
            Who::Idle => all.iter().filter(|name| busy_since(name).is_none()).cloned().collect(),
            Who::Any | Who::All => all.clone(),
        };
        let index = (planned.draw % wanted.len().max(1) as u64) as usize;
        wanted.get(index).cloned().ok_or_else(|| match &planned.who {
            Who::Named(name) => format!("{name} is not running normally"),
            Who::Busy | Who::Long if !all.is_empty() => "no worker has a suitable task in flight".to_owned(),
            Who::Idle if !all.is_empty() => "no worker is idle".to_owned(),
            _ => "every process is stopped, stopping, frozen, starting, or has a task that was interrupted twice"
                .to_owned(),
        })
    }

    pub(super) fn ordered(&self, number: u32, planned: &Planned, target: Option<&str>, detail: String) {
        let (what, target) = (planned.what.to_string(), target.map(str::to_owned));
        self.teller.tell(Fact::Ordered { action: number, what, target, detail });
    }

    pub(super) fn carried(&self, number: u32, done: bool, detail: impl Into<String>) {
        self.teller.tell(Fact::Carried { action: number, done, detail: detail.into() });
    }

    /// Sends a signal to a process, and notes the later steps.
    pub(super) fn order_one(&mut self, number: u32, planned: &Planned) -> Attempt {
        self.starts.read(&self.teller);
        let name = match self.choose(planned) {
            Ok(name) => name,
            Err(why) => return Attempt::NotNow(why),
        };
        let length = planned.length;
        let lasting = length.map(|length| format!("for {:.1} s", length.as_secs_f64())).unwrap_or_default();
        self.ordered(number, planned, Some(&name), lasting);
        if planned.what == What::QuietWorker {
            self.signal(&name, Signal::SIGUSR1, Some(number));
            if let Some(slot) = self.slots.get_mut(&name) {
                slot.due.push((Instant::now() + length.unwrap_or_default(), Due::Resume));
            }
            // Done at once: another action may stop the worker while it is quiet.
            self.carried(number, true, format!("{name} is asked to be quiet"));
            return Attempt::Begun;
        }
        let (signal, after) = match planned.what {
            What::FreezeWorker => (Signal::SIGSTOP, After::Stay),
            What::KillWorker | What::KillGateway => (Signal::SIGKILL, length.map_or(After::Stay, After::Start)),
            What::StopWorker | What::StopGateway => (Signal::SIGTERM, length.map_or(After::Stay, After::Start)),
            _ => (Signal::SIGTERM, After::Start(Duration::ZERO)),
        };
        self.signal(&name, signal, Some(number));
        self.hits.add(self.starts.tasks(&name));
        let Some(slot) = self.slots.get_mut(&name) else { return Attempt::Begun };
        slot.action = Some(number);
        slot.after = after;
        match planned.what {
            What::FreezeWorker => slot.due.push((Instant::now() + length.unwrap_or_default(), Due::Thaw)),
            What::SecondSignal => slot.due.push((Instant::now() + SECOND_SIGNAL, Due::SecondSignal)),
            _ => {}
        }
        Attempt::Begun
    }

    pub(super) fn order_all(&mut self, number: u32, planned: &Planned) -> Attempt {
        let all = self.sound(true);
        if all.is_empty() {
            return Attempt::NotNow("no worker is running normally".to_owned());
        }
        if planned.what == What::KillWorker {
            self.ordered(number, planned, None, format!("all {}", all.len()));
            for name in &all {
                self.signal(name, Signal::SIGKILL, Some(number));
                if let Some(slot) = self.slots.get_mut(name) {
                    slot.after = planned.length.map_or(After::Stay, After::Start);
                }
            }
            self.carried(number, true, format!("killed {}", all.join(", ")));
            return Attempt::Begun;
        }
        if !self.rolling.is_empty() || self.rolled.is_some() {
            return Attempt::NotInTurn("the workers are being restarted already".to_owned());
        }
        self.ordered(number, planned, None, format!("all {}, one after another", all.len()));
        self.rolling = all.into_iter().map(|name| (name, number)).collect();
        self.roll();
        Attempt::Begun
    }

    /// Restarts the next worker of a rolling restart, unless one is under way.
    pub(super) fn roll(&mut self) {
        let under_way = |name: &String| {
            self.slots
                .get(name)
                .is_some_and(|slot| (slot.process.is_some() && (!slot.ready || slot.stopping)) || !slot.due.is_empty())
        };
        if self.rolled.as_ref().is_some_and(under_way) {
            return;
        }
        self.rolled = None;
        while let Some((name, number)) = self.rolling.pop_front() {
            let last = self.rolling.is_empty();
            if self.sound(true).contains(&name) {
                self.signal(&name, Signal::SIGTERM, Some(number));
                if let Some(slot) = self.slots.get_mut(&name) {
                    slot.after = After::Start(Duration::ZERO);
                }
                self.rolled = Some(name);
            }
            if last {
                self.carried(number, true, "the last worker is being restarted");
            }
            if self.rolled.is_some() {
                return;
            }
        }
    }

    pub(super) fn start_one(&mut self, number: u32, planned: &Planned) -> Attempt {
        let empty = |slot: &Slot| slot.is_worker && slot.process.is_none() && slot.due.is_empty();
        let wanted = |name: &String| !matches!(&planned.who, Who::Named(wanted) if wanted != name);
        let found = self.slots.iter().find(|(name, slot)| empty(slot) && wanted(name));
        let Some(name) = found.map(|(name, _)| name.clone()) else {
            return Attempt::NotNow("no suitable worker is stopped for good".to_owned());
        };
        self.ordered(number, planned, Some(&name), String::new());
        let outcome = self.fill(&name);
        self.carried(number, outcome.is_ok(), outcome.err().unwrap_or_else(|| format!("started {name}")));
        Attempt::Begun
    }

    pub(super) fn scale(&mut self, number: u32, planned: &Planned) -> Attempt {
        // Workers that will start again by themselves count.
        let counts = |slot: &Slot| {
            slot.is_worker
                && (slot.process.is_some() && (!slot.stopping || slot.after != After::Stay)
                    || slot.due.iter().any(|(_, due)| *due == Due::Start))
        };
        let running: Vec<String> =
            self.slots.iter().filter(|(_, slot)| counts(slot)).map(|(name, _)| name.clone()).collect();
        let (now, wanted) = (running.len(), planned.to as usize);
        self.ordered(number, planned, None, format!("from {now} to {wanted}"));
        for name in running.iter().skip(wanted) {
            // A stopping worker gets no second signal, which would force it.
            if self.slots.get(name).is_some_and(|slot| !slot.stopping) {
                self.signal(name, Signal::SIGTERM, Some(number));
            }
            if let Some(slot) = self.slots.get_mut(name) {
                (slot.after, slot.stopping) = (After::Stay, true);
                slot.due.retain(|(_, due)| *due == Due::Thaw);
            }
        }
        let mut problem = None;
        let missing =
            (1..).filter(|number| !running.contains(&format!("worker_{number}"))).take(wanted.saturating_sub(now));
        for number in missing {
            let name = format!("worker_{number}");
            let outcome = match self.slots.get_mut(&name) {
                // It is stopping; it starts again after its exit.
                Some(slot) if slot.process.is_some() => {
                    slot.after = After::Start(Duration::ZERO);
                    Ok(())
                }
                Some(_) => self.fill(&name),
                None => self.add_worker(number),
            };
            problem = problem.or(outcome.err());
        }
        self.carried(number, problem.is_none(), problem.unwrap_or_else(|| format!("{wanted} workers")));
        Attempt::Begun
    }

    pub(super) fn order_broker(&mut self, number: u32, planned: &Planned) -> Attempt {
        match self.broker_work.take_if(|work| work.has_ended()) {
            Some(ended) => ended.join(false),
            None if self.broker_work.is_some() => {
                return Attempt::NotInTurn("another action on the broker is under way".to_owned());
            }
            None => {}
        }
        let process = self.broker.process(drawn_node(planned, self.broker.nodes()));
        let target = (!matches!(planned.what, What::RollBrokers | What::MoveLeader)).then_some(process.as_str());
        let detail = planned.length.map(|length| format!("for {:.1} s", length.as_secs_f64())).unwrap_or_default();
        self.ordered(number, planned, target, detail);
        let (broker, leaders, teller) = (self.broker.clone(), self.leaders.clone(), self.teller.clone());
        let died = self.ears.died.clone();
        self.broker_work = Some(BrokerWork::begin(broker, leaders, teller, died, number, planned.clone()));
        Attempt::Begun
    }

    pub(super) fn order_fault(&mut self, number: u32, planned: &Planned) -> Attempt {
        let Some(fault) = planned.fault else { return Attempt::NotNow("the action has no fault".to_owned()) };
        let (action, request, client) = fault;
        self.ordered(number, planned, None, format!("{action:?} at {request:?} of a {client}"));
        match self.broker.fault(fault) {
            Some(bites) => self.faults.push((Instant::now(), number, bites)),
            None => self.carried(number, false, "only the embedded broker has faults on demand"),
        }
        Attempt::Begun
    }

    /// Reports faults that took effect, and faults that have waited too long for their request.
    pub(super) fn look_after_faults(&mut self) {
        for (since, number, bites) in std::mem::take(&mut self.faults) {
            if bites.count() > 0 {
                self.carried(number, true, "the fault took effect");
            } else if since.elapsed() >= FAULT_WAIT || self.healing {
                self.carried(number, self.cut_short, "no such request came");
            } else {
                self.faults.push((since, number, bites));
            }
        }
    }
}
