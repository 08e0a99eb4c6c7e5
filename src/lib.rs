//! `lastcall` runs tasks for callers over HTTP on a fleet of workers that can be stopped at any moment without losing one.

pub mod kafka;
