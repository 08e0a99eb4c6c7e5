//! The HTTP front: from a listening socket to whole requests and their responses.
//!
//! `tiny_http` gives the vocabulary and writes responses. Its server and its parser are not used: they have no limit for
//! a head, none for a time, and keep the socket to themselves, so that one request of 24 bytes can hold a thread for
//! good. Connections have a thread each; every wait for a caller has an end.
//!
//! | file | noun |
//! |---|---|
//! | `listener` | the listening socket, the watch of the own port |
//! | `accept` | taking connections, and their threads |
//! | `load` | the connections' seats: how many, which are idle |
//! | `connection` | one connection: request, response, request |
//! | `outgoing` | its writing half: a response, written by the thread that has it |
//! | `head` | the head of a request, strictly |
//! | `chunked` | the chunked coding of a body |
//! | `refusal` | why a request is refused |
//! | `unanswered` | requests that a stop waits for |
//! | `service` | what a connection needs to have its requests answered |
//! | `routes` | which request gets which response |
//! | `analyze` | what `POST /analyze` may ask for |
//! | `ops` | health, probes, figures, the fleet, the page |
//! | `fuzzing` | what must hold of any bytes |

pub(super) mod accept;
mod analyze;
mod chunked;
mod connection;
#[cfg(test)]
mod fuzzing;
mod head;
pub(super) mod listener;
pub(super) mod load;
mod ops;
mod outgoing;
mod refusal;
pub(super) mod routes;
mod service;
mod unanswered;

use refusal::Refusal;
