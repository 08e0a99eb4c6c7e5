//! What the gateway serves over HTTP, for the server in [`crate::http`].
//!
//! | file | noun |
//! |---|---|
//! | `routes` | which request gets which response |
//! | `analyze` | the body and headers of `POST /analyze` |
//! | `prefer` | the preferences of a request |
//! | `ops` | health, probes, metrics, the fleet, the page |
//! | `unanswered` | requests that a stop waits for |

mod analyze;
mod ops;
mod prefer;
pub(crate) mod routes;
mod unanswered;
