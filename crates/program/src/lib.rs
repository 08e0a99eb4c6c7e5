//! Common parts of all programs: options, signals, threads, stopping, log and exit codes.
//!
//! Knows nothing of Kafka or tasks. Used by every other crate of this workspace except `model`.
//!
//! | module | holds |
//! |---|---|
//! | [`options`] | typed values from command line and environment; all faults are reported |
//! | [`signals`], [`stop`] | the stop requests that signals trigger and threads wait on |
//! | [`threads`] | named threads that are joined; a thread's failure triggers a stop |
//! | [`backoff`] | pauses between attempts |
//! | [`logging`], [`exit`] | log lines on stdout, and exit codes |
//! | [`launch`] | how a program is started under another program |
//! | [`http`] | a client for the gateway's HTTP |
//! | [`reserved_port`] | TCP ports that are held without listening |

pub mod backoff;
pub mod exit;
pub mod http;
pub mod launch;
pub mod logging;
pub mod options;
pub mod reserved_port;
pub mod signals;
pub mod stop;
pub mod threads;
