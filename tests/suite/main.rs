//! Tests of the promises: with the real programs as processes, real signals and a broker that speaks Kafka's protocol.
//!
//! All tests are in one binary, so that one broker serves the whole run. Each module `p..` tests one promise; each
//! other module tests one part. A test takes a [`support::Rig`] first: it gives the test its own topics and group, and
//! limits which tests run in parallel. Tests measure from outside; a bound in a test is the promised bound.

#![allow(
    clippy::disallowed_methods,
    clippy::disallowed_macros,
    reason = "a test has no stop flag to wait for, and cargo shows its stdout"
)]

mod bad_input;
mod client;
mod compression;
mod conformance;
mod dead;
mod deployment;
mod devbroker;
mod drill;
mod drill_run;
mod faults;
mod foreign;
mod gateway;
mod hazards;
mod http;
mod idle;
mod leaders;
mod limits;
mod logs;
mod membership;
mod metrics;
mod nodes;
mod outbox;
mod p01_nothing_is_lost;
mod p02_nothing_runs_twice;
mod p03_idle_stop;
mod p04_busy_stop;
mod p05_drain_timeout;
mod p06_second_signal;
mod p07_broker_away;
mod p08_crash;
mod p09_gateway_stop;
mod p10_gateway_restart;
mod p11_cluster;
mod page;
mod prefer;
mod producer;
mod queue;
mod quiet;
mod quotas;
mod rig;
mod rights;
mod schedules;
mod secured;
mod supervision;
#[allow(dead_code, reason = "shared with the benches, which use the rest")]
mod support;
mod trace;
mod transactions;
mod unreplicated;
mod versions;
mod worker;
