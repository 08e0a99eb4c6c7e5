//! Start of a native fleet: gateways and workers with their environments.

use super::*;

impl Native {
    /// Starts all processes and waits until they are ready.
    ///
    /// # Errors
    /// The process that did not start, with the last line of its log.
    pub(crate) fn start(
        config: &RunConfig,
        target: &NativeTarget,
        broker: Broker,
        teller: Teller,
        ears: Ears,
        happenings: &crossbeam_channel::Receiver<Happening>,
        signal: &Stop,
    ) -> Result<Self, String> {
        let plan = config.plan.clone();
        let place = Place {
            bootstrap: broker.addresses(),
            drain_timeout: plan.fleet.drain_timeout,
            concurrency: plan.fleet.concurrency,
            pauses: broker.pauses(),
            ..target.place.clone()
        };
        let leaders = Leaders {
            cluster: Cluster::new(place.client_options("drill-nodes").map_err(|fault| fault.to_string())?),
            tasks_topic: place.tasks_topic.clone(),
            results_topic: place.results_topic.clone(),
        };
        let mut native = Self {
            partitions: drawn(&plan.fleet.partitions, config.seed),
            plan,
            worker: target.worker.clone(),
            gateway: target.gateway.clone(),
            folder: config.folder.clone(),
            hits: Hits::new(place.max_deliveries),
            place,
            broker,
            ears,
            teller,
            starts: Starts::create(&config.folder)?,
            read: Instant::now(),
            slots: BTreeMap::new(),
            ports: Vec::new(),
            rolling: VecDeque::new(),
            rolled: None,
            leaders,
            broker_work: None,
            faults: Vec::new(),
            healing: false,
            cut_short: false,
        };
        for node in 1..=native.broker.nodes().max(1) {
            native.teller.tell(Fact::Started { process: native.broker.process(node), pid: 0 });
            native.teller.tell(Fact::Ready { process: native.broker.process(node) });
        }
        for number in 1..=native.plan.fleet.gateways {
            native.add_gateway(number)?;
        }
        for number in 1..=native.plan.fleet.workers {
            native.add_worker(number)?;
        }
        native.wait_until_ready(happenings, signal)?;
        Ok(native)
    }

    pub(super) fn wait_until_ready(
        &mut self,
        happenings: &crossbeam_channel::Receiver<Happening>,
        signal: &Stop,
    ) -> Result<(), String> {
        let deadline = Instant::now() + START;
        let mut clients: Vec<Client> =
            self.place.gateways.iter().map(|gateway| Client::new(gateway.clone(), signal.clone())).collect();
        loop {
            while let Ok(happening) = happenings.recv_timeout(LOOK) {
                let ended = matches!(happening.what, Happened::Ended { .. }).then(|| happening.process.clone());
                self.happened(happening);
                if let Some(name) = ended {
                    return Err(format!("{name} exited during its start: {}", self.last_words(&name)));
                }
            }
            clients.retain_mut(|client| {
                !client.get("/readyz", Duration::from_secs(1)).is_ok_and(|answer| answer.status == 200)
            });
            if clients.is_empty() && self.slots.values().all(|slot| slot.ready || !slot.is_worker) {
                for slot in self.slots.values_mut() {
                    slot.ready = true;
                }
                return Ok(());
            }
            if signal.is_triggered() {
                return Err("ended by a signal before the fleet was ready".to_owned());
            }
            if Instant::now() >= deadline {
                let waiting = self.slots.iter().find(|(_, slot)| !slot.ready).map_or("a gateway", |(name, _)| name);
                return Err(format!(
                    "{waiting} is not ready after {}: {}",
                    show_duration(START),
                    self.last_words(waiting)
                ));
            }
        }
    }

    /// The last line of a program's log.
    pub(super) fn last_words(&self, name: &str) -> String {
        let Some(slot) = self.slots.get(name) else { return "no log".to_owned() };
        let log = std::fs::read_to_string(&slot.launch.log).unwrap_or_default();
        let last = log.lines().rev().find(|line| !line.trim().is_empty()).unwrap_or("nothing logged");
        format!("{last} ({})", slot.launch.log.display())
    }

    pub(super) fn add(&mut self, name: String, launch: Launch, is_worker: bool) -> Result<(), String> {
        let slot = Slot {
            launch,
            is_worker,
            process: None,
            ready: false,
            stopping: false,
            after: After::Stay,
            due: Vec::new(),
            action: None,
        };
        self.slots.insert(name.clone(), slot);
        self.fill(&name)
    }

    pub(super) fn add_worker(&mut self, number: u32) -> Result<(), String> {
        let name = format!("worker_{number}");
        let drain_timeout = self.place.drain_timeout;
        let own = [
            ("WORKER_ID", name.clone()),
            ("WORKER_CONCURRENCY", self.place.concurrency.to_string()),
            ("DRAIN_TIMEOUT", show_duration(drain_timeout)),
            ("STOP_GRACE_PERIOD", show_duration(drain_timeout + GRACE_BEYOND_DRAIN)),
            ("HEARTBEAT_INTERVAL", show_duration(HEARTBEAT)),
            ("MAX_DELIVERIES", self.place.max_deliveries.to_string()),
            (JOURNAL, self.starts.path().to_string_lossy().into_owned()),
        ];
        let launch = self.launch(&name, &self.worker, &own);
        self.add(name, launch, true)
    }

    fn add_gateway(&mut self, number: u32) -> Result<(), String> {
        let port = ReservedPort::any().map_err(|error| format!("no port for a gateway: {error}"))?;
        let address = GatewayAddress(port.address().into());
        let name = format!("gateway_{number}");
        let own = [
            ("HTTP_ADDR", address.0.to_string()),
            ("STOP_GRACE_PERIOD", show_duration(self.place.gateway_grace)),
            ("WORKER_TIMEOUT", show_duration(self.place.worker_timeout)),
        ];
        let launch = self.launch(&name, &self.gateway, &own);
        self.ports.push(port);
        self.place.gateways.push(address);
        self.add(name, launch, false)
    }

    fn launch(&self, name: &str, program: &Path, own: &[(&str, String)]) -> Launch {
        let brokers: Vec<String> = self.place.bootstrap.iter().map(BrokerAddress::to_string).collect();
        let common = [
            ("KAFKA_BOOTSTRAP_SERVERS", brokers.join(",")),
            ("TASKS_TOPIC", self.place.tasks_topic.clone()),
            ("RESULTS_TOPIC", self.place.results_topic.clone()),
            ("WORKER_GROUP", self.place.group.clone()),
            ("TASKS_PARTITIONS", self.partitions.to_string()),
            ("ALLOW_WORK_MS", "1".to_owned()),
            ("LOG_LEVEL", "info".to_owned()),
        ];
        let security = self.place.security.variables();
        let all = common.iter().chain(&security).chain(own);
        let environment = all.map(|(name, value)| ((*name).to_owned(), value.clone())).collect();
        let log = self.folder.join(format!("{name}.log"));
        Launch { name: name.to_owned(), program: program.to_owned(), environment, log }
    }

    /// Starts the process of an empty slot.
    pub(super) fn fill(&mut self, name: &str) -> Result<(), String> {
        let Some(slot) = self.slots.get_mut(name).filter(|slot| slot.process.is_none()) else { return Ok(()) };
        self.starts.forget(name, &self.teller);
        let process = Process::start(&slot.launch, &self.ears)?;
        self.teller.tell(Fact::Started { process: name.to_owned(), pid: process.pid() });
        // Only workers report that they are ready; a gateway counts as ready from its start.
        slot.ready = !slot.is_worker;
        (slot.stopping, slot.after, slot.process) = (false, After::Stay, Some(process));
        slot.due.clear();
        Ok(())
    }
}
