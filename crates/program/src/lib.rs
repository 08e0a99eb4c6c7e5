//! What every program here needs to start, to work in threads, to stop, and to say so.
//!
//! It knows nothing of Kafka or tasks. Used by every other crate of this workspace but `model`.
//!
//! | module | what it is |
//! |---|---|
//! | [`options`] | command line and environment, read into values with all faults reported |
//! | [`signals`], [`stop`] | what a signal sets, and what every thread waits on |
//! | [`threads`] | named threads that are joined, and whose death is noticed |
//! | [`backoff`] | pauses between attempts |
//! | [`logging`], [`exit`] | lines on stdout, and the code at the end |
//! | [`launch`] | how a program is started that another one watches |
//! | [`http`] | a caller of a gateway |
//! | [`reserved_port`] | a TCP port that is held without listening on it |

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
