//! An executable model of the worker's protocol on share groups: brokers, connections, sessions, record locks, intakes
//! and the account. A breadth-first search visits every reachable state of a fault scenario and checks the properties
//! in it.
//!
//! The model shares no code with the worker, whose code follows this design: a rule changes here first. The crate's
//! README has the rules and the limits of the model. Called by `tests/sweep.rs`, and by the binary, which searches one
//! scenario.
//!
//! ```
//! let scenario: model::Scenario = "login 1 1 --sym --calm".parse()?;
//! let (_, report) = model::Search::run(&scenario);
//! assert!(report.complete && report.violations.is_empty() && report.unreachable.is_empty());
//! # Ok::<(), String>(())
//! ```

mod account;
mod broker;
mod clock;
mod connection;
mod entry;
mod fault;
mod faults;
mod fingerprint;
mod ids;
mod intake;
mod property;
mod records;
mod result;
mod scenario;
mod search;
mod state;
mod step;
mod steps;
mod trace;
mod twin;
mod violation;
mod worker;

pub use fault::Fault;
pub use property::Goal;
pub use scenario::Scenario;
pub use search::{Report, Search, Unreachable};
pub use twin::Twin;
pub use violation::Violation;
