//! The promises of the project, shown with the real programs as processes, real signals and a real Kafka broker.
//!
//! One test binary, so that one broker serves the whole run. Modules `p..` hold one promise each, the others what a part
//! does beyond the promises. A test takes a [`support::Rig`] first: it gives topics and a group of its own, and decides
//! what else may run meanwhile. Everything is measured from outside; a bound in a test is the bound that was promised.

mod client;
mod gateway;
mod rig;
mod support;
mod worker;
