//! Start of a native fleet: gateways and workers with their environments.

use super::*;

impl Native {
    /// Starts all processes and waits until they are ready.
    ///
    /// # Errors
    /// The process that did not start, with the last line of its log.
    pub(crate) fn start(
        options: NativeOptions,
        broker: Broker,
        teller: Teller,
        ears: Ears,
        happenings: &crossbeam_channel::Receiver<Happening>,
        signal: &Stop,
    ) -> Result<Self, String> {
        let starts = Starts::create(&options.folder)?;
        let leaders = Leaders {
            cluster: Cluster::new(ClientOptions::new(broker.addresses(), "drill-nodes")),
            tasks_topic: options.tasks_topic.clone(),
            results_topic: options.results_topic.clone(),
        };
        let mut native = Self {
            options,
            broker,
            ears,
            teller,
            starts,
            read: Instant::now(),
            slots: BTreeMap::new(),
            gateways: Vec::new(),
            ports: Vec::new(),
            hits: Hits::new(MAX_DELIVERIES),
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
        for number in 1..=native.options.plan.gateways {
            let port = ReservedPort::any().map_err(|error| format!("no port for a gateway: {error}"))?;
            let address = GatewayAddress(port.address().into());
            native.ports.push(port);
            native.gateways.push(address.clone());
            let name = format!("gateway_{number}");
            let launch = native.gateway_launch(&name, &address);
            native.add(name, launch, false)?;
        }
        for number in 1..=native.options.plan.workers {
            native.add_worker(number)?;
        }
        native.wait_until_ready(happenings, signal)?;
        Ok(native)
    }

    /// Addresses and settings of the fleet.
    pub(crate) fn place(&self) -> Place {
        Place {
            gateways: self.gateways.clone(),
            bootstrap: self.broker.addresses(),
            tasks_topic: self.options.tasks_topic.clone(),
            results_topic: self.options.results_topic.clone(),
            group: self.options.group.clone(),
            drain_timeout: self.options.plan.drain_timeout,
            gateway_grace: GATEWAY_GRACE,
            worker_timeout: WORKER_TIMEOUT,
            concurrency: self.options.plan.concurrency,
            max_deliveries: MAX_DELIVERIES,
            lock: LOCK,
            pauses: self.broker.pauses(),
        }
    }

    pub(super) fn wait_until_ready(
        &mut self,
        happenings: &crossbeam_channel::Receiver<Happening>,
        signal: &Stop,
    ) -> Result<(), String> {
        let deadline = Instant::now() + START;
        let mut clients: Vec<Client> =
            self.gateways.iter().map(|gateway| Client::new(gateway.clone(), signal.clone())).collect();
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
        let plan = &self.options.plan;
        let grace = plan.drain_timeout + GRACE_BEYOND_DRAIN;
        let mut environment = self.environment();
        environment.extend([
            ("WORKER_ID".to_owned(), name.clone()),
            ("WORKER_GROUP".to_owned(), self.options.group.clone()),
            ("WORKER_CONCURRENCY".to_owned(), plan.concurrency.to_string()),
            ("DRAIN_TIMEOUT".to_owned(), show_duration(plan.drain_timeout)),
            ("STOP_GRACE_PERIOD".to_owned(), show_duration(grace)),
            ("HEARTBEAT_INTERVAL".to_owned(), show_duration(HEARTBEAT)),
            ("MAX_DELIVERIES".to_owned(), MAX_DELIVERIES.to_string()),
            ("LOG_LEVEL".to_owned(), "info".to_owned()),
            (JOURNAL.to_owned(), self.starts.path().to_string_lossy().into_owned()),
        ]);
        let launch = self.launch(&name, self.options.worker.clone(), environment);
        self.add(name, launch, true)
    }

    pub(super) fn gateway_launch(&self, name: &str, address: &GatewayAddress) -> Launch {
        let mut environment = self.environment();
        environment.extend([
            ("HTTP_ADDR".to_owned(), address.0.to_string()),
            ("WORKER_GROUP".to_owned(), self.options.group.clone()),
            ("STOP_GRACE_PERIOD".to_owned(), show_duration(GATEWAY_GRACE)),
            ("WORKER_TIMEOUT".to_owned(), show_duration(WORKER_TIMEOUT)),
            ("LOG_LEVEL".to_owned(), "info".to_owned()),
        ]);
        self.launch(name, self.options.gateway.clone(), environment)
    }

    pub(super) fn environment(&self) -> Vec<(String, String)> {
        let brokers: Vec<String> = self.broker.addresses().iter().map(BrokerAddress::to_string).collect();
        vec![
            ("KAFKA_BOOTSTRAP_SERVERS".to_owned(), brokers.join(",")),
            ("TASKS_TOPIC".to_owned(), self.options.tasks_topic.clone()),
            ("RESULTS_TOPIC".to_owned(), self.options.results_topic.clone()),
            ("TASKS_PARTITIONS".to_owned(), self.options.partitions.to_string()),
            ("ALLOW_WORK_MS".to_owned(), "1".to_owned()),
        ]
    }

    pub(super) fn launch(&self, name: &str, program: PathBuf, environment: Vec<(String, String)>) -> Launch {
        Launch { name: name.to_owned(), program, environment, log: self.options.folder.join(format!("{name}.log")) }
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
