//! What is done to the nodes of the drill's broker, on a thread of its own: from the order until the broker answers again and every replica is in sync.
//!
//! One action at a time, so that a cluster never misses more than one node. Called by the native fleet, which looks for the outcome.

use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, bounded};

use program::stop::Stop;
use program::threads::{self, Thread};

use super::broker::Broker;
use super::fact::Fact;
use super::fleet::Teller;
use super::leaders::Leaders;
use super::plan::What;
use super::schedule::Planned;

/// How often the outcome, and the state of the cluster, is looked at.
const LOOK: Duration = Duration::from_millis(20);
const ASK: Duration = Duration::from_millis(200);
/// How long a cluster may take until all replicas are in sync, or a leader is elected.
const SETTLED: Duration = Duration::from_secs(60);

/// An action under way.
pub(super) struct BrokerWork {
    pub(super) number: u32,
    /// When it is looked at next.
    pub(super) look: Instant,
    thread: Thread,
    outcome: Receiver<Result<String, String>>,
    /// The node comes back now, however long it should have been away.
    back: Stop,
    /// The broker is needed no more: a stopped node stays away.
    over: Stop,
}

impl BrokerWork {
    /// Begins an action. `died` is told if the thread does not come to its end.
    pub(super) fn begin(
        broker: Broker,
        leaders: Leaders,
        teller: Teller,
        died: Stop,
        number: u32,
        planned: Planned,
    ) -> Self {
        let (report, outcome) = bounded(1);
        let (back, over) = (Stop::new(), Stop::new());
        let job = Job { broker, leaders, teller, number, planned, back: back.clone(), over: over.clone() };
        let thread = threads::spawn("broker", died, move || report.send(job.run()).map_err(|error| error.to_string()));
        Self { number, look: Instant::now() + LOOK, thread, outcome, back, over }
    }

    /// What came of it, once it has ended.
    pub(super) fn outcome(&mut self) -> Option<Result<String, String>> {
        self.look = Instant::now() + LOOK;
        self.outcome.try_recv().ok()
    }

    /// Ends an absence before its time.
    pub(super) fn hurry(&self) {
        self.back.trigger();
    }

    /// Waits for its end. `over`: the broker is needed no more.
    pub(super) fn join(self, over: bool) {
        if over {
            self.over.trigger();
            self.back.trigger();
        }
        // How it ended was logged there.
        let _ = self.thread.join();
    }
}

/// The thread's.
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
        Ok(format!("{}: it answers again", self.planned.what))
    }

    fn node(&self) -> u32 {
        drawn_node(&self.planned, self.broker.nodes())
    }

    /// Tells what a node leads, while that can still be asked for.
    fn tell_led(&self, node: u32) -> Result<(), String> {
        if self.broker.nodes() > 1 {
            let led = self.leaders.of(node as i32)?;
            self.teller.tell(Fact::Led { action: self.number, process: self.broker.process(node), led });
        }
        Ok(())
    }

    /// Told before it is sent, so that what it does is seen to follow.
    fn tell_signal(&self, node: u32, signal: &str) {
        let (process, action) = (self.broker.process(node), Some(self.number));
        self.teller.tell(Fact::Signalled { process, signal: signal.to_owned(), action, until: None });
    }

    /// Stops or kills a node, leaves it so for a while, and starts it again.
    fn restart(&self, node: u32) -> Result<(), String> {
        let kill = self.planned.what == What::KillBroker;
        let process = || self.broker.process(node);
        self.tell_led(node)?;
        self.tell_signal(node, if kill { "SIGKILL" } else { "SIGTERM" });
        self.broker.stop(node, kill)?;
        self.teller.tell(Fact::Exited { process: process(), pid: 0, code: None, signal: None, receipt: None });
        // Both ways of ending it are an end.
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
        // Told afterwards: until then it may have been silent.
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
            // Whether it is over is looked at above.
            let _ = self.over.sleep(ASK);
        }
        Ok(())
    }
}

/// The node that an action concerns; of one that does not exist the broker says so.
pub(super) fn drawn_node(planned: &Planned, nodes: u32) -> u32 {
    planned.node.unwrap_or_else(|| (planned.draw % u64::from(nodes.max(1))) as u32 + 1)
}
