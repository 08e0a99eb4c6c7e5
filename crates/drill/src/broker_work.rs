//! An action on the nodes of the drill's broker: from the order until the broker responds and every replica is in sync.
//!
//! It runs on a thread of its own, which reports the outcome. One action at a time, so that a cluster never misses more
//! than one node. Called by the native fleet.

use std::convert::Infallible;
use std::time::{Duration, Instant};

use program::stop::Stop;
use program::threads::{self, Thread};

use super::broker::Broker;
use super::fact::Fact;
use super::fleet::Teller;
use super::leaders::Leaders;
use super::plan::What;
use super::schedule::Planned;

/// How often the thread polls the state of the cluster.
const ASK: Duration = Duration::from_millis(200);
/// How long a cluster may take until all replicas are in sync, or until a leader is elected.
const SETTLED: Duration = Duration::from_secs(60);

/// An action under way.
pub(super) struct BrokerWork {
    thread: Thread,
    /// The node comes back at once.
    back: Stop,
    /// The drill ends: a stopped node is not started again.
    over: Stop,
}

impl BrokerWork {
    /// Begins an action. `died` is triggered if the thread fails.
    pub(super) fn begin(
        broker: Broker,
        leaders: Leaders,
        teller: Teller,
        died: Stop,
        number: u32,
        planned: Planned,
    ) -> Self {
        let (back, over) = (Stop::new(), Stop::new());
        let job = Job { broker, leaders, teller, number, planned, back: back.clone(), over: over.clone() };
        let thread = threads::spawn("broker", died, move || {
            let outcome = job.run();
            let (action, done) = (job.number, outcome.is_ok());
            job.teller.tell(Fact::Carried { action, done, detail: outcome.unwrap_or_else(|problem| problem) });
            Ok::<(), Infallible>(())
        });
        Self { thread, back, over }
    }

    pub(super) fn has_ended(&self) -> bool {
        self.thread.is_finished()
    }

    /// Brings the node back before its time.
    pub(super) fn hurry(&self) {
        self.back.trigger();
    }

    /// Waits for the end of the action. `over`: the drill ends.
    pub(super) fn join(self, over: bool) {
        if over {
            self.over.trigger();
            self.back.trigger();
        }
        // The thread logs its own failure.
        let _ = self.thread.join();
    }
}

/// The thread's state.
struct Job {
    broker: Broker,
    leaders: Leaders,
    teller: Teller,
    number: u32,
    planned: Planned,
    back: Stop,
    over: Stop,
}

impl Job {
    fn run(&self) -> Result<String, String> {
        match self.planned.what {
            What::MoveLeader => return self.move_leader(),
            What::RollBrokers => {
                for node in 1..=self.broker.nodes() {
                    self.restart(node)?;
                    self.wait_in_sync()?;
                }
            }
            What::FreezeBroker | What::CutBroker => self.silence(self.node())?,
            _ => self.restart(self.node())?,
        }
        self.wait_in_sync()?;
        Ok(format!("{}: the broker responds again", self.planned.what))
    }

    fn node(&self) -> u32 {
        drawn_node(&self.planned, self.broker.nodes())
    }

    /// Reports what a node leads, while the cluster still knows it.
    fn tell_led(&self, node: u32) -> Result<(), String> {
        if self.broker.nodes() > 1 {
            let led = self.leaders.of(node as i32)?;
            self.teller.tell(Fact::Led { action: self.number, process: self.broker.process(node), led });
        }
        Ok(())
    }

    /// Reports a signal. Called before it is sent, so that its effects follow it in the ledger.
    fn tell_signal(&self, node: u32, signal: &str) {
        let (process, action) = (self.broker.process(node), Some(self.number));
        self.teller.tell(Fact::Signalled { process, signal: signal.to_owned(), action, until: None });
    }

    /// Stops or kills a node, waits as long as planned, and starts it again.
    fn restart(&self, node: u32) -> Result<(), String> {
        let kill = self.planned.what == What::KillBroker;
        let process = || self.broker.process(node);
        self.tell_led(node)?;
        self.tell_signal(node, if kill { "SIGKILL" } else { "SIGTERM" });
        self.broker.stop(node, kill)?;
        self.teller.tell(Fact::Exited { process: process(), pid: 0, code: None, signal: None, receipt: None });
        // Ends early if the node must come back at once.
        let _ = self.back.sleep(self.planned.length.unwrap_or_default());
        if self.over.is_triggered() {
            return Ok(());
        }
        self.teller.tell(Fact::Started { process: process(), pid: 0 });
        self.broker.start(node)?;
        self.teller.tell(Fact::Ready { process: process() });
        Ok(())
    }

    fn silence(&self, node: u32) -> Result<(), String> {
        let cut = self.planned.what == What::CutBroker;
        self.tell_led(node)?;
        self.tell_signal(node, if cut { "cut" } else { "SIGSTOP" });
        self.broker.silence(node, cut)?;
        let _ = self.back.sleep(self.planned.length.unwrap_or_default());
        let outcome = self.broker.thaw(node);
        // Reported after the thaw: until then the node may have been silent.
        self.tell_signal(node, if cut { "mended" } else { "SIGCONT" });
        outcome
    }

    fn move_leader(&self) -> Result<String, String> {
        let planned = self.leaders.draw_move(self.planned.draw)?;
        let process = self.broker.process(planned.from as u32);
        let led = self.leaders.led_by_move(&planned);
        self.teller.tell(Fact::Led { action: self.number, process, led });
        self.wait_until(|| self.broker.move_leader(&planned, &self.leaders), "the leader has not moved")?;
        let (from, to) = (self.broker.process(planned.from as u32), self.broker.process(planned.to as u32));
        Ok(format!("{}-{} from {from} to {to}", planned.topic, planned.partition))
    }

    fn wait_in_sync(&self) -> Result<(), String> {
        if self.broker.nodes() == 1 {
            return Ok(());
        }
        self.wait_until(|| self.leaders.are_in_sync(), "not every replica is in sync")
    }

    fn wait_until(&self, is_so: impl Fn() -> Result<bool, String>, otherwise: &str) -> Result<(), String> {
        let deadline = Instant::now() + SETTLED;
        let mut why = String::new();
        while !self.over.is_triggered() {
            match is_so() {
                Ok(true) => return Ok(()),
                Ok(false) => why.clear(),
                Err(problem) => why = format!(": {problem}"),
            }
            if Instant::now() >= deadline {
                return Err(format!("{otherwise} after {} s{why}", SETTLED.as_secs()));
            }
            // The loop condition checks `over`.
            let _ = self.over.sleep(ASK);
        }
        Ok(())
    }
}

/// The node that an action hits: the planned or a random one. The broker reports a node that does not exist.
pub(super) fn drawn_node(planned: &Planned, nodes: u32) -> u32 {
    planned.node.unwrap_or_else(|| (planned.draw % u64::from(nodes.max(1))) as u32 + 1)
}
