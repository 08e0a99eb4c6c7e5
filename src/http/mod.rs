//! The HTTP server of gateways and workers: from a listening socket to whole requests and their responses.
//!
//! `tiny_http` provides types and writes responses. Its server and parser are not used: they limit neither the size of
//! a head nor its time, and keep the socket to themselves, so a request of 24 bytes can hold a thread forever. Here
//! each connection has a thread, and every wait for a caller has a limit. It knows nothing of tasks.
//!
//! | file | noun |
//! |---|---|
//! | `listener` | the listening socket, the watch of a program's own ports |
//! | `accept` | accepting connections, and their threads |
//! | `load` | the connections' seats: how many, which are idle |
//! | `connection` | one connection: request, response, request |
//! | `outgoing` | its writing half: a response, written by the thread that has it |
//! | `head` | the head of a request, strictly |
//! | `chunked` | the chunked coding of a body |
//! | `refusal` | why a request is refused |
//! | `service` | what a connection needs to have its requests answered: the programs implement it |
//! | `reply` | how a response reaches its caller |
//! | `response` | responses as bytes, problem documents |
//! | `fuzzing` | properties that hold for any bytes |

pub(crate) mod accept;
mod chunked;
mod connection;
#[cfg(test)]
mod fuzzing;
pub(crate) mod head;
pub(crate) mod listener;
pub(crate) mod load;
mod outgoing;
mod refusal;
pub(crate) mod reply;
pub(crate) mod response;
pub(crate) mod service;

pub(crate) use refusal::Refusal;
