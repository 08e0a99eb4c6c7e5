//! Settings of the programs of a fleet: variables and their texts. Called by the options, the state and all commands.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::time::Duration;

use program::options::values::{self, Read};
use program::options::{Environment, positive};
use serde::{Deserialize, Serialize};

use crate::failure::Failure;

/// Texts of variables by name.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Settings(BTreeMap<String, String>);

/// The Kafka that a fleet uses.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kafka {
    /// The program `devbroker`.
    Embedded,
    /// A real Kafka, by `scripts/kafka`.
    Apache,
    /// A Kafka that does not belong to the fleet.
    Own,
}

/// Reads `KAFKA`.
pub(crate) fn kafka_kind(text: &str) -> Read<Kafka> {
    match text {
        "embedded" => Ok(Kafka::Embedded),
        "apache" => Ok(Kafka::Apache),
        _ => {
            Err("is no Kafka; expected embedded or apache; for a running Kafka: KAFKA_BOOTSTRAP_SERVERS=host:port"
                .into())
        }
    }
}

impl Settings {
    /// The variables of gateway and worker in an environment, except `WORKER_ID` and `HEALTH_FILE`, which differ for
    /// each worker.
    pub(crate) fn of_programs(environment: &Environment) -> Self {
        let names =
            lastcall::config::variables().into_iter().filter(|name| name != "WORKER_ID" && name != "HEALTH_FILE");
        let value = |name: &String| environment.variables.get(name.as_ref() as &std::ffi::OsStr)?.to_str();
        let given = names.filter_map(|name| Some((value(&name)?.to_owned(), name)));
        Self(given.filter(|(value, _)| !value.is_empty()).map(|(value, name)| (name, value)).collect())
    }

    pub(crate) fn set(&mut self, name: &str, text: &str) {
        self.0.insert(name.to_owned(), text.to_owned());
    }

    /// The text of a variable, if it is set.
    pub fn get(&self, name: &str) -> Option<&str> {
        self.0.get(name).map(String::as_str)
    }

    pub(crate) fn or<'a>(&'a self, name: &str, default: &'a str) -> &'a str {
        self.get(name).unwrap_or(default)
    }

    /// These settings, and those of `others` that are missing here.
    pub(crate) fn over(mut self, others: &Self) -> Self {
        for (name, text) in &others.0 {
            self.0.entry(name.clone()).or_insert_with(|| text.clone());
        }
        self
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = (&String, &String)> {
        self.0.iter()
    }

    fn read<T>(&self, name: &str, default: &str, read: impl FnOnce(&str) -> Read<T>) -> Result<T, Failure> {
        let text = self.or(name, default);
        read(text).map_err(|problem| Failure::Setting(format!("{name}: value \"{text}\" {problem}")))
    }

    pub(crate) fn address(&self) -> Result<SocketAddr, Failure> {
        self.read("HTTP_ADDR", "127.0.0.1:8080", values::listen_address)
    }

    /// The address that shows the fleet.
    pub(crate) fn operators_address(&self) -> Result<SocketAddr, Failure> {
        self.read("ADMIN_ADDR", self.or("HTTP_ADDR", "127.0.0.1:8080"), values::listen_address)
    }

    pub(crate) fn kafka(&self) -> Result<Kafka, Failure> {
        if self.get("KAFKA_BOOTSTRAP_SERVERS").is_some() {
            return Ok(Kafka::Own);
        }
        self.read("KAFKA", "embedded", kafka_kind)
    }

    /// Addresses at which the programs reach Kafka.
    pub(crate) fn kafka_address(&self) -> String {
        let own = self.get("KAFKA_BOOTSTRAP_SERVERS").map(str::to_owned);
        own.unwrap_or_else(|| format!("127.0.0.1:{}", self.or("KAFKA_PORT", "9092")))
    }

    /// `STOP_GRACE_PERIOD`: time between SIGTERM and SIGKILL.
    pub(crate) fn grace(&self, default: &str) -> Result<Duration, Failure> {
        self.read("STOP_GRACE_PERIOD", default, positive)
    }
}
