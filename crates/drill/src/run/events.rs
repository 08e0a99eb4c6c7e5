//! Events of a run: facts, status records, views of gateways; and the questions to gateways.

use super::*;

impl Run<'_> {
    pub(super) fn ask(&mut self, now: Duration) {
        let Some(side) = &self.side else { return };
        if now >= self.fleet_asked + FLEET_EVERY
            && side.fleet.as_ref().is_some_and(|fleet| fleet.try_send(Question::Fleet).is_ok())
        {
            self.fleet_asked = now;
        }
        if self.asking || now < self.asked + ASK_EVERY {
            return;
        }
        let question = self.due_restart(now).or_else(|| {
            let tasks = self.account.to_ask();
            (!tasks.is_empty()).then_some(Question::Tasks(tasks))
        });
        let lookups = self.side.as_ref().and_then(|side| side.lookups.as_ref());
        if question.is_some_and(|question| lookups.is_some_and(|ask| ask.try_send(question).is_ok())) {
            (self.asking, self.asked) = (true, now);
        }
    }

    /// The question for earlier results to a gateway that was started long enough ago.
    fn due_restart(&mut self, now: Duration) -> Option<Question> {
        let is_due = |(_, (_, due)): &(&String, &(f64, Duration))| *due <= now;
        let (gateway, (started, _)) = self.restarted.iter().find(is_due).map(|(name, at)| (name.clone(), *at))?;
        self.restarted.remove(&gateway);
        // Results of before its start: it cannot be a moment late to read them.
        let tasks = settle::some_answered(self.ledger.lines(), now.as_secs_f64() - READ_BACK_OF..started, KNOWN);
        (!tasks.is_empty()).then(|| Question::ReadBack { tasks, gateways: vec![gateway] })
    }

    /// Notes that a gateway was started, or became ready, during the load: its start is the first of the two.
    fn note_start(&mut self, process: &str, at: f64) {
        if self.load.is_some() && self.gateways().iter().any(|(name, _)| name == process) {
            let due = Duration::try_from_secs_f64(at).unwrap_or_default() + KNOWN_WITHIN;
            self.restarted.entry(process.to_owned()).or_insert((at, due)).1 = due;
        }
    }

    pub(super) fn write(&mut self, fact: Fact) {
        let at = self.teller.clock.now();
        self.ledger.write(Line { at, fact });
    }

    /// The gateways by their names in the ledger.
    pub(super) fn gateways(&self) -> Vec<(String, GatewayAddress)> {
        let owned = self.config.owns_processes();
        let name = |number, address: &GatewayAddress| {
            if owned { format!("gateway_{number}") } else { address.to_string() }
        };
        (1..).zip(&self.place.gateways).map(|(number, address)| (name(number, address), address.clone())).collect()
    }

    pub(super) fn take(&mut self, event: Event) {
        let now = self.now();
        match event {
            Event::AskedAll => self.asking = false,
            Event::Fleet { gateway, view } => self.take_view(gateway, view),
            Event::Tasks(tasks) => {
                self.tasks_read = now;
                for (number, task_id) in tasks {
                    for number in self.texts.sharing(number) {
                        self.account.learn(number, &task_id);
                    }
                }
            }
            Event::Read { answered, statuses } => self.take_read(answered, &statuses, now),
            Event::Away(why) => {
                self.kafka_away = true;
                self.history.lost_kafka(now);
                self.display.console.at(now, &format!("Kafka does not answer ({}); retrying", escape(&why)));
            }
            Event::Fact(line) => self.take_fact(line),
            Event::Phase(phase) => self.phase = Some(phase),
        }
    }

    fn take_fact(&mut self, line: Line) {
        let (now, at) = (self.now(), Duration::try_from_secs_f64(line.at).unwrap_or_default());
        self.display.note(&line.fact);
        match &line.fact {
            Fact::Submitted { .. } => self.account.submitted += 1,
            Fact::Late => self.account.late += 1,
            Fact::Answered { number, took_ms, answer } => {
                self.account.told += 1;
                self.account.note(*number, answer, now);
                if answer.outcome == Kind::Answered {
                    self.display.answered(now, Duration::from_secs_f64(took_ms / 1e3));
                }
            }
            Fact::Fetched { number, answer, .. } => self.account.note(*number, answer, now),
            Fact::Ordered { what, target, detail, .. } => {
                let target = target.as_deref().map(|target| format!(" {}", escape(target))).unwrap_or_default();
                self.display.console.at(at, &format!("⚡ {what}{target} {detail}"));
            }
            Fact::Carried { done: false, detail, .. } => {
                self.display.console.at(at, &format!("⚡ not done: {}", escape(detail)));
            }
            Fact::Signalled { signal, process, .. } => {
                let is_broker = process.starts_with("broker");
                if signal != "SIGTERM" || is_broker {
                    self.disturbed = Some(now);
                }
                self.outage |= is_broker;
            }
            Fact::Exited { process, .. } => {
                self.history.ended(process);
                self.views.remove(process);
                self.restarted.remove(process);
            }
            Fact::Started { process, .. } => {
                // The first view of a new process is written to the ledger even if it is equal.
                self.views.remove(process);
                self.restarted.remove(process);
                self.note_start(process, line.at);
            }
            Fact::Ready { process } => self.note_start(process, line.at),
            _ => {}
        }
        self.ledger.write(line);
    }

    fn take_read(&mut self, answered: Option<Instant>, statuses: &[lastcall::task::WorkerStatus], now: Duration) {
        self.kafka_read = true;
        if std::mem::take(&mut self.kafka_away) {
            self.display.console.at(now, "Kafka answers again");
        }
        let outage =
            answered.and_then(|answered| self.history.read(Duration::from_secs_f64(self.teller.clock.at(answered))));
        if let Some((since, until)) = outage {
            (self.outage, self.disturbed) = (true, Some(now));
            self.account.postpone(now);
            let fact = Fact::KafkaAway { until: until.as_secs_f64() };
            self.ledger.write(Line { at: since.as_secs_f64(), fact });
        }
        for status in statuses {
            for line in self.history.hear(status, now) {
                self.display.console.at(now, &line);
            }
        }
    }

    fn take_view(&mut self, gateway: String, view: Option<Value>) {
        let Some(told) = view else {
            self.views.remove(&gateway);
            return;
        };
        let listed = |status: &str| {
            let workers = told.get("workers").and_then(Value::as_object).into_iter().flatten();
            let ids = workers.filter(|(_, worker)| {
                worker.get("is_responsive") == Some(&Value::Bool(true))
                    && worker.get("status").and_then(Value::as_str) == Some(status)
            });
            ids.map(|(id, _)| id.clone()).collect::<Vec<_>>()
        };
        let (active, stopping) = (listed("worker_started"), listed("shutdown_started"));
        let view = View { active: active.clone(), stopping: stopping.clone(), told };
        let known = self.views.insert(gateway.clone(), view);
        // Only a changed view goes to the ledger.
        if known.is_none_or(|known| (&known.active, &known.stopping) != (&active, &stopping)) {
            self.write(Fact::Fleet { gateway, active, stopping });
        }
    }
}
