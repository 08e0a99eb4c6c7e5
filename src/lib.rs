//! `lastcall` runs tasks for callers over HTTP on a fleet of workers that can be stopped at any moment without losing one.

pub mod analysis;
pub mod backoff;
pub mod config;
pub mod exit;
pub mod handler;
pub mod kafka;
pub mod logging;
pub mod queue;
pub mod signals;
pub mod stop;
pub mod task;
pub mod threads;
pub mod worker;
