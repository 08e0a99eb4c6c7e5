//! The steps before the load: threads, director, first line of the ledger.

use super::*;

impl Run<'_> {
    /// Begins the audit. `None`: Kafka cannot be read, and the run only checks responses.
    pub(super) fn begin_audit(&mut self, cluster: &Cluster) -> Option<Audit> {
        let begun = if self.kafka_read {
            Audit::begin(&self.place, cluster, self.teller.clock, &self.texts).map_err(|error| error.to_string())
        } else {
            Err("it does not answer".to_owned())
        };
        let why = match begun {
            Ok(audit) => return Some(audit),
            Err(why) => why,
        };
        let brokers: Vec<String> = self.place.bootstrap.iter().map(ToString::to_string).collect();
        let place = brokers.join(", ");
        let line = format!("drill: Kafka cannot be read at {place} ({}); the topics will not be audited", escape(&why));
        self.display.console.line(&line);
        None
    }

    pub(super) fn start_side(&mut self) -> Result<(), End> {
        let options = self.place.client_options("drill").map_err(|fault| End::Cannot(fault.to_string()))?;
        let interrupter = options.interrupter.clone();
        let cluster = Cluster::new(options);
        let hurry = Stop::new();
        let mut threads = Vec::new();
        let (events, texts) = (self.teller.facts.clone(), self.texts.clone());
        let (reading, topic) = (cluster.clone(), self.place.tasks_topic.clone());
        threads.push(threads::spawn("tasks", self.died.clone(), move || {
            topics::read_tasks(reading, &topic, &texts, &events)
        }));
        let events = self.teller.facts.clone();
        let (reading, topic) = (cluster.clone(), self.place.results_topic.clone());
        threads
            .push(threads::spawn("results", self.died.clone(), move || topics::read_results(reading, &topic, &events)));
        let mut ask = |name: &str, gateways: Vec<(String, GatewayAddress)>| {
            // Capacity 1; a question that finds the channel full is asked at the next tick.
            let (questions, asked) = bounded(1);
            let client = |(name, gateway)| (name, Client::new(gateway, hurry.clone()));
            let clients = gateways.into_iter().map(client).collect();
            let asker = Asker { clients, texts: self.texts.clone(), teller: self.teller.clone() };
            threads.push(threads::spawn(name, self.died.clone(), move || asker.run(&asked)));
            Some(questions)
        };
        let gateways = self.gateways();
        let names = gateways.iter().map(|(name, _)| name.clone());
        let operators = names.zip(self.place.operators().iter().cloned()).collect();
        let (fleet, lookups) = (ask("fleet", operators), ask("lookups", gateways));
        self.side = Some(Side { threads, fleet, lookups, director: None, hurry, interrupter, cluster });
        Ok(())
    }

    pub(super) fn start_director(
        &mut self,
        fleet: Box<dyn Fleet>,
        happenings: Receiver<Happening>,
        paused: Arc<AtomicBool>,
    ) -> Result<(), End> {
        let mut schedule = schedule::schedule(self.plan(), self.plan().length, self.config.seed);
        let mut impossible: Vec<(What, String)> = What::all()
            .filter(|(what, _)| schedule.iter().any(|planned| planned.what == *what))
            .filter_map(|(what, name)| Some((what, format!("{name}: {}", fleet.can(what).err()?))))
            .collect();
        schedule.retain(|planned| fleet.can(planned.what).is_ok());
        // A running fleet is taken as it is. A fleet of the drill's own should fit the plan, except for actions that
        // only some brokers support.
        let owned = self.config.owns_processes() && impossible.iter().any(|(what, _)| !what.is_left_out());
        if (owned || schedule.is_empty())
            && let Some((_, why)) = impossible.pop()
        {
            return Err(End::Cannot(why));
        }
        for (_, why) in impossible {
            self.display.console.line(&format!("drill: left out: {why}"));
        }
        self.display.planned = Some(schedule.len() as u64);
        let (commands, obeyed) = bounded(4);
        let teller = self.teller.clone();
        let director = Director { fleet, schedule: schedule.into(), teller, commands: obeyed, happenings, paused };
        let thread = threads::spawn("director", self.died.clone(), move || director.run());
        if let Some(side) = &mut self.side {
            side.threads.push(thread);
            side.director = Some(commands);
        }
        Ok(())
    }

    /// Sends short tasks to a cluster that has just started, until each is answered soon: the first requests of a cold
    /// node take up to 2 s. These tasks belong to no request of the ledger, so that their times are not judged.
    pub(super) fn warm_up(&mut self) -> Result<(), End> {
        if !self.config.owns_broker() || self.place.bootstrap.len() == 1 {
            return Ok(());
        }
        let special = Shares { keyed: 0, asynchronous: 0, poison: 0 };
        let plain = LoadPlan { tasks: Vec::new(), special, ..self.plan().load.clone() };
        let texts = Texts::new(fastrand::u32(..), self.config.seed, &plain, self.config.answers);
        // The channel has room for every fact of a round.
        let (facts, told) = bounded(EVENTS);
        let teller = Teller { clock: self.teller.clock, facts };
        let options = LoadOptions {
            rate: None,
            length: None,
            callers: 2 * self.place.gateways.len(),
            most: WARM_UP_ROUND,
            ..self.load_options(Arc::default())
        };
        self.display.phase = "warming up";
        let deadline = self.now() + WARM_UP_WAIT;
        let mut is_cold = true;
        while is_cold && self.now() < deadline && !self.signals.first.is_triggered() {
            let round = Load::start(&options, &texts, &teller, &self.died);
            while !round.is_done() {
                if self.now() >= deadline || self.signals.first.is_triggered() {
                    round.stop.trigger();
                    round.hurry.trigger();
                }
                self.step()?;
            }
            join(round.threads);
            let is_slow = |event: Event| match event {
                Event::Fact(Line { fact: Fact::Answered { took_ms, answer, .. }, .. }) => {
                    answer.outcome != Kind::Answered || took_ms >= WARM_MS
                }
                _ => false,
            };
            is_cold = told.try_iter().any(is_slow);
        }
        self.display.phase = "load";
        Ok(())
    }

    pub(super) fn load_options(&self, paused: Arc<AtomicBool>) -> LoadOptions {
        LoadOptions {
            gateways: self.gateways(),
            rate: self.plan().load.rate,
            length: self.config.length(),
            callers: self.plan().load.callers,
            paused,
            first: 0,
            most: u64::MAX,
        }
    }

    pub(super) fn begin(&mut self, target: &str, owned: bool) {
        let names = self.place.gateways.iter().map(GatewayAddress::to_string).collect::<Vec<_>>().join(", ");
        let rate = match self.plan().load.rate {
            Some(rate) => format!("{rate} tasks per second"),
            None => format!("{} callers in a closed loop", self.plan().load.callers),
        };
        let length =
            self.config.length().map_or("until Ctrl-C".to_owned(), |length| format!("for {} s", length.as_secs_f64()));
        let faults = self.display.planned.map(|planned| format!(", {planned} actions")).unwrap_or_default();
        self.display.console.line(&format!("drill: {rate} to {names}, {length}{faults}; seed {}", self.config.seed));
        let one_reader = !self.place.has_witness();
        if one_reader {
            self.display.console.line(&format!("drill: {ONE_READER}: the other cannot read a secured Kafka"));
        }
        let brokers = if self.config.owns_broker() { self.place.bootstrap.len() as u32 } else { 0 };
        let begin = Begin {
            unix: self.teller.clock.unix(),
            version: env!("CARGO_PKG_VERSION").to_owned(),
            plan: self.plan().name.clone(),
            seed: self.config.seed,
            target: target.to_owned(),
            owns_processes: owned,
            owns_broker: self.config.owns_broker(),
            own_handler: self.config.answers == Checked::Any,
            tests: self.plan().tests.clone(),
            drain_timeout_ms: milliseconds(self.place.drain_timeout),
            gateway_grace_ms: milliseconds(self.place.gateway_grace),
            worker_timeout_ms: milliseconds(self.place.worker_timeout),
            concurrency: self.place.concurrency,
            max_deliveries: self.place.max_deliveries,
            lock_ms: milliseconds(self.place.lock),
            brokers,
            pauses: self.place.pauses,
            one_reader,
        };
        self.ledger.write(Line { at: 0.0, fact: Fact::Begin(begin) });
        self.display.begin(self.now());
    }

    pub(super) fn wait_for_kafka(&mut self) -> Result<(), End> {
        let deadline = self.now() + KAFKA_WAIT;
        while !self.kafka_read && self.now() < deadline && !self.signals.first.is_triggered() {
            self.step()?;
        }
        Ok(())
    }
}
