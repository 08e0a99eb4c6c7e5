//! Requests of operators and their programs: health, probes, metrics, the fleet, and the page for people at `/`.
//!
//! Answered at once from memory; none waits for Kafka.

use super::routes::Service;
use crate::gateway::metrics::{CONTENT_TYPE, Gauges};
use crate::gateway::response::Response;
use serde_json::{Value, json};

/// One file without outside resources.
const PAGE: &str = include_str!("page.html");

impl Service {
    /// `GET /workers/status`.
    pub(super) fn fleet(&self) -> Response {
        Response::json(200, &json!(self.tasks.fleet()))
    }

    /// `GET /health`: the state at this moment.
    pub(super) fn health(&self) -> Response {
        let (connected, ready) = (self.state.is_kafka_connected(), self.tasks.is_producer_ready());
        let (status, word) = match (self.state.is_draining(), connected && ready) {
            (true, _) => (200, "draining"),
            (false, true) => (200, "ok"),
            (false, false) => (503, "degraded"),
        };
        let value = json!({
            "status": word,
            "kafka_connected": connected,
            "producer_ready": ready,
            "active_workers": self.tasks.active_workers(),
        });
        let response = Response::json(status, &value);
        if status == 503 { response.with("Retry-After", "1".to_owned()) } else { response }
    }

    /// `GET /livez`: 503 means that only a restart helps.
    pub(super) fn live(&self, query: &str) -> Response {
        checks(&self.tasks.liveness(), query)
    }

    /// `GET /readyz`: 503 means that another gateway serves better.
    pub(super) fn ready(&self, query: &str) -> Response {
        let readiness = [
            ("prepared", self.state.is_prepared()),
            ("kafka", self.state.is_kafka_near()),
            ("rights", self.tasks.has_rights()),
            ("read_back", self.state.has_read_enough()),
            ("accepting", !self.state.is_draining()),
        ];
        checks(&readiness, query)
    }

    /// `GET /metrics`.
    pub(super) fn metrics(&self) -> Response {
        self.state.metrics.set(Gauges { connections: self.load.open(), ..self.tasks.gauges() });
        Response::bytes(200, CONTENT_TYPE, self.state.metrics.encode().into_bytes())
    }
}

/// `GET /`.
pub(super) fn page() -> Response {
    Response::bytes(200, "text/html; charset=utf-8", PAGE.as_bytes().to_vec()).with(
        "Content-Security-Policy",
        "default-src 'none'; connect-src 'self'; style-src 'unsafe-inline'; script-src 'unsafe-inline'; \
         base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
            .to_owned(),
    )
}

/// 200 when all checks pass, else 503; `?verbose` lists them.
fn checks(checks: &[(&'static str, bool)], query: &str) -> Response {
    let good = checks.iter().all(|(_, good)| *good);
    let (status, word) = if good { (200, "ok") } else { (503, "failed") };
    let verbose = query.split('&').any(|part| part == "verbose" || part.starts_with("verbose="));
    let mut value = json!({ "status": word });
    if verbose {
        let word = |good: bool| Value::from(if good { "ok" } else { "failed" });
        value["checks"] = checks.iter().map(|(name, good)| ((*name).to_owned(), word(*good))).collect();
    }
    Response::json(status, &value)
}
