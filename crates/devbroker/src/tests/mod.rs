//! Secured listeners, as a client of rustls sees them: one thread, blocking, no code of the project's own client.

mod faults;
mod sasl;
mod support;
mod tls;
