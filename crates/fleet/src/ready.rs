//! Readiness of the gateway and the workers, as the gateway responds, and the wait for it. Called by the commands.

use std::collections::BTreeMap;
use std::io::ErrorKind;
use std::net::TcpListener;
use std::time::{Duration, Instant};

use lastcall::healthcheck::reachable;
use program::http::{Client, Response};
use serde::Deserialize;

use crate::failure::{Failure, refused};
use crate::keeper;
use crate::programs::{Condition, Fleet, GATEWAY};
use crate::state::Wanted;
use crate::{complain, say, show};

/// How long a program may take until it is ready.
pub(crate) const READY: Duration = Duration::from_secs(90);
const RESPONSE: Duration = Duration::from_secs(5);
/// Time between two requests to the gateway, and between two checks that gateway and Kafka run.
const ASK: Duration = Duration::from_millis(50);
const LOOK: Duration = Duration::from_secs(1);
/// Seconds by which the keeper's reading of the clock may be later. A worker takes 50 ms until it takes tasks.
const CLOCK: f64 = 0.01;

/// A worker as the gateway lists it.
#[derive(Clone, Debug, PartialEq, Deserialize)]
pub(crate) struct Heard {
    pub(crate) status: String,
    pub(crate) current_task: Option<String>,
    pub(crate) seconds_since_update: u64,
    pub(crate) is_responsive: bool,
    started_at: f64,
}

#[derive(Debug, Default, Deserialize)]
struct View {
    workers: BTreeMap<String, Heard>,
}

impl Heard {
    /// Whether the process that was started at `since`, and not a former process, takes tasks, or was asked not to.
    fn is_ready(&self, since: f64) -> bool {
        let is_up = ["worker_started", "worker_quiet"].contains(&self.status.as_str());
        is_up && self.is_responsive && self.started_at >= since - CLOCK
    }
}

/// Refuses to start a program at an address that is in use.
pub(crate) fn refuse_port_in_use(address: &str, elsewhere: &str) -> Result<(), Failure> {
    match TcpListener::bind(address) {
        Ok(_) => Ok(()),
        Err(error) if error.kind() == ErrorKind::AddrInUse => {
            refused(format!("{address} is in use by another program; {elsewhere}"))
        }
        Err(error) => refused(format!("cannot listen on {address} ({error}); {elsewhere}")),
    }
}

impl Fleet {
    pub(crate) fn get(&self, path: &str) -> Option<Response> {
        let address = reachable(self.settings.address().ok()?);
        Client::new(address, self.stop.clone()).get(path, RESPONSE).ok()
    }

    /// Whether the gateway responds to this path with 200.
    pub(crate) fn is_well(&self, path: &str) -> bool {
        self.get(path).is_some_and(|response| response.status == 200)
    }

    /// The workers that the gateway lists.
    pub(crate) fn heard(&self) -> BTreeMap<String, Heard> {
        let address = self.settings.operators_address().ok().map(reachable);
        let ask = |address| Client::new(address, self.stop.clone()).get("/workers/status", RESPONSE).ok();
        let response = address.and_then(ask);
        let view = response.and_then(|response| serde_json::from_slice::<View>(&response.body).ok());
        view.unwrap_or_default().workers
    }

    /// Whether a command has stopped or killed the gateway. `false` for a gateway that has exited by itself.
    pub(crate) fn gateway_was_stopped(&self) -> Result<bool, Failure> {
        let wanted = self.store.read()?.wanted(GATEWAY);
        Ok(matches!(wanted, None | Some(Wanted::Stopped | Wanted::Killed)) && !self.runs(GATEWAY)?)
    }

    /// Why readiness cannot be known now: gateway or Kafka does not run.
    fn away(&self) -> Result<Option<String>, Failure> {
        if self.gateway_was_stopped()? {
            return Ok(Some("the gateway does not run".to_owned()));
        }
        let kafka = self.kafka_condition()?;
        Ok((kafka != Condition::Running).then(|| format!("Kafka is {kafka}")))
    }

    /// Fails if a program should run and does not, and prints the last lines of its log.
    pub(crate) fn check_alive(&self, name: &str) -> Result<(), Failure> {
        // A command that stops or starts the program writes that down first, perhaps between the two looks.
        let stopped =
            || self.store.read().map(|state| matches!(state.wanted(name), Some(Wanted::Stopped | Wanted::Killed)));
        if stopped()? || self.runs(name)? || stopped()? {
            return Ok(());
        }
        let log = keeper::log_file(&self.config.run, name);
        for line in show::last_lines(&log, 3) {
            complain(line);
        }
        refused(format!("{name} has exited; see {}", log.display()))
    }

    /// Waits until the gateway is ready, and until it lists the present processes of these workers as ready. Skips
    /// frozen workers. `false`: readiness cannot be known now.
    ///
    /// # Errors
    /// A program has exited, or is not ready after [`READY`].
    pub(crate) fn wait_until_ready(&self, workers: &[String]) -> Result<bool, Failure> {
        let mut looked = None::<Instant>;
        let begin = Instant::now();
        let names = std::iter::once(GATEWAY).chain(workers.iter().map(String::as_str));
        for name in names {
            loop {
                if looked.is_none_or(|looked| looked.elapsed() > LOOK) {
                    if let Some(away) = self.away()? {
                        let longer = if looked.is_some() { " any longer" } else { "" };
                        let names = if workers.is_empty() { GATEWAY.to_owned() } else { workers.join(" ") };
                        say(format!("not waiting{longer} for {names} to be ready: {away}"));
                        return Ok(false);
                    }
                    looked = Some(Instant::now());
                }
                if self.is_ready(name)? {
                    break;
                }
                self.check_alive(name)?;
                if begin.elapsed() > READY {
                    let seconds = READY.as_secs();
                    return refused(format!("{name} is not ready after {seconds} s; see make logs"));
                }
                self.stop.sleep(ASK)?;
            }
        }
        Ok(true)
    }

    fn is_ready(&self, name: &str) -> Result<bool, Failure> {
        if name == GATEWAY {
            return Ok(self.is_well("/readyz"));
        }
        let state = self.store.read()?;
        let since = state.programs.get(name).map_or(0.0, |program| program.since);
        Ok(self.condition(name)? == Condition::Frozen
            || self.heard().get(name).is_some_and(|worker| worker.is_ready(since)))
    }

    /// Waits until a program is ready, and prints the time since `begin`.
    pub(crate) fn say_when_ready(&self, begin: Instant, name: &str, is: &str, since: &str) -> Result<(), Failure> {
        let (subject, workers) = if name == GATEWAY { ("the gateway", vec![]) } else { (name, vec![name.to_owned()]) };
        if self.wait_until_ready(&workers)? {
            say(format!("{subject} {is}, {} ms after its {since}", begin.elapsed().as_millis()));
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_worker_is_ready_when_the_gateway_lists_its_present_process() {
        let json = r#"{"total_workers":1,"workers":{"worker_1":{"status":"worker_started","current_task":null,
            "last_update":9,"seconds_since_update":0,"is_responsive":true,"current_tasks":[],"started_at":100.5}}}"#;
        let heard = serde_json::from_str::<View>(json).expect("the gateway's JSON").workers.remove("worker_1");
        let heard = heard.expect("it is listed");
        assert!(heard.is_ready(100.49) && heard.is_ready(100.505), "clocks are read twice");
        assert!(!heard.is_ready(100.55), "a former process");
        assert!(!Heard { is_responsive: false, ..heard.clone() }.is_ready(100.0));
        assert!(
            Heard { status: "worker_quiet".to_owned(), ..heard.clone() }.is_ready(100.0),
            "up does not wait for it"
        );
        assert!(!Heard { status: "shutdown_started".to_owned(), ..heard }.is_ready(100.0));
    }

    #[test]
    fn a_port_in_use_is_named_with_a_way_out() {
        let taken = TcpListener::bind("127.0.0.1:0").expect("a port");
        let address = taken.local_addr().expect("an address").to_string();
        let failure = refuse_port_in_use(&address, "take another").expect_err("taken").to_string();
        assert_eq!(failure, format!("{address} is in use by another program; take another"));
        drop(taken);
        refuse_port_in_use(&address, "").expect("free again");
    }
}
