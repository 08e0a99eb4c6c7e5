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
        let tasks = self.account.to_ask();
        if !tasks.is_empty() && side.lookups.as_ref().is_some_and(|ask| ask.try_send(Question::Tasks(tasks)).is_ok()) {
            (self.asking, self.asked) = (true, now);
        }
    }

    pub(super) fn write(&mut self, fact: Fact) {
        let at = self.clock.now();
        self.ledger.write(Line { at, fact });
    }

    pub(super) fn gateway(&self, index: usize) -> String {
        if self.config.owns_processes() {
            return format!("gateway_{}", index + 1);
        }
        self.place.gateways.get(index).map(GatewayAddress::to_string).unwrap_or_default()
    }

    pub(super) fn take(&mut self, event: Event) {
        let now = self.now();
        match event {
            Event::Submitted { number, gateway, at } => {
                self.account.submitted += 1;
                let Special { repeats, asynchronous, poison, .. } = self.texts.special(number);
                let (gateway, work_ms) = (self.gateway(gateway), self.texts.work_ms(number));
                let fact = Fact::Submitted { number, gateway, work_ms, repeats, asynchronous, poison };
                self.ledger.write(Line { at: self.clock.at(at), fact });
            }
            Event::Late { at } => self.ledger.write(Line { at: self.clock.at(at), fact: Fact::Late }),
            Event::Posted { number, answer, took, at } => {
                self.account.told += 1;
                self.account.note(number, &answer, now);
                if answer.outcome == super::super::fact::Kind::Answered {
                    self.display.answered(now, took);
                }
                let fact = Fact::Answered { number, took_ms: took.as_secs_f64() * 1e3, answer };
                self.ledger.write(Line { at: self.clock.at(at), fact });
            }
            Event::Found { number, gateway, answer } => {
                self.account.note(number, &answer, now);
                let gateway = self.gateway(gateway);
                self.write(Fact::Fetched { number, gateway, answer });
            }
            Event::ReadBack { number, gateway, task_id, response } => {
                let status = response.as_ref().map(|response| response.status);
                let mark = response.as_ref().map(|response| outcome::mark(&response.body));
                let (gateway, is_result) = (self.gateway(gateway), response.as_ref().is_some_and(outcome::is_result));
                self.write(Fact::ReadBack { number, gateway, task_id, status, mark, is_result });
            }
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
        let at = Duration::try_from_secs_f64(line.at).unwrap_or_default();
        self.display.note(&line.fact);
        match &line.fact {
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
                    self.disturbed = Some(self.now());
                }
                self.outage |= is_broker;
            }
            Fact::Exited { process, .. } => {
                self.history.ended(process);
                self.forget_view(process);
            }
            Fact::Started { process, .. } => self.forget_view(process),
            _ => {}
        }
        self.ledger.write(line);
    }

    /// Forgets the view of a former process: the first view of a new process is written to the ledger even if it is
    /// equal.
    fn forget_view(&mut self, process: &str) {
        let gateway = (0..self.views.len()).find(|index| self.gateway(*index) == process);
        if let Some(view) = gateway.and_then(|index| self.views.get_mut(index)) {
            *view = None;
        }
    }

    pub(super) fn take_read(
        &mut self,
        answered: Option<Instant>,
        statuses: &[lastcall::task::WorkerStatus],
        now: Duration,
    ) {
        self.kafka_read = true;
        if std::mem::take(&mut self.kafka_away) {
            self.display.console.at(now, "Kafka answers again");
        }
        let outage = answered.and_then(|answered| self.history.read(Duration::from_secs_f64(self.clock.at(answered))));
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

    pub(super) fn take_view(&mut self, gateway: usize, view: Result<Value, String>) {
        let name = self.gateway(gateway);
        let Some(known) = self.views.get_mut(gateway) else { return };
        let Ok(view) = view else {
            *known = None;
            return;
        };
        let listed = |shutting_down: bool| {
            let workers = view.get("workers").and_then(Value::as_object).into_iter().flatten();
            let ids = workers.filter(|(_, worker)| {
                worker.get("is_responsive") == Some(&Value::Bool(true))
                    && (worker.get("status").and_then(Value::as_str) == Some("shutdown_started")) == shutting_down
            });
            ids.map(|(id, _)| id.clone()).collect::<Vec<_>>()
        };
        let (active, stopping) = (listed(false), listed(true));
        // Only a changed view goes to the ledger.
        let new = known.as_ref().is_none_or(|known| (&known.active, &known.stopping) != (&active, &stopping));
        *known = Some(View { told: view, active: active.clone(), stopping: stopping.clone() });
        if new {
            self.write(Fact::Fleet { gateway: name, active, stopping });
        }
    }
}
