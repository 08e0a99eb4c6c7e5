//! Requests of operators and their programs: health, probes, metrics, the fleet, and the page for people at `/`.
//!
//! Answered at once from memory; none waits for Kafka.

use crate::gateway::state::State;
use crate::gateway::tasks::Tasks;
use crate::http::load::Load;
use crate::http::response::Response;
use crate::metrics::{CONTENT_TYPE, Now};
use serde_json::{Map, Value, json};
use std::time::Duration;
use uuid::Uuid;

/// One file without outside resources. `NONCE` stands for the nonce of a response (CSP Level 3, section 2.3.1).
const PAGE: &str = include_str!("page.html");
/// The description of the paths: OpenAPI 3.1.
pub(super) const DESCRIPTION: &str = include_str!("openapi.json");

/// `GET /workers/status`.
pub(super) fn fleet(tasks: &Tasks) -> Response {
    Response::json(200, &json!(tasks.fleet()))
}

/// `GET /health`: the state at this moment.
pub(super) fn health(state: &State, tasks: &Tasks) -> Response {
    let (connected, ready) = (state.is_kafka_connected(), tasks.is_producer_ready());
    let (status, word) = match (state.is_draining(), connected && ready) {
        (true, _) => (200, "draining"),
        (false, true) => (200, "ok"),
        (false, false) => (503, "degraded"),
    };
    let value = json!({
        "status": word,
        "kafka_connected": connected,
        "producer_ready": ready,
        "active_workers": tasks.active_workers(),
    });
    let response = Response::json(status, &value);
    if status == 503 { response.retry_soon() } else { response }
}

/// `GET /dead`: the open dead letters, without the texts of their tasks.
pub(super) fn dead(state: &State) -> Response {
    match state.dead.to_json(state.now()) {
        Ok(letters) => Response::json(200, &letters),
        Err(missing) => Response::unavailable(&missing, None),
    }
}

/// `GET /livez`: 503 means that only a restart helps.
pub(super) fn live(tasks: &Tasks, query: &str) -> Response {
    checks(&tasks.liveness(), query)
}

/// `GET /readyz`: 503 means that another gateway serves better.
pub(super) fn ready(state: &State, tasks: &Tasks, query: &str) -> Response {
    let readiness = [
        ("prepared", state.is_prepared()),
        ("kafka", state.is_kafka_near()),
        ("rights", tasks.has_rights()),
        ("read_back", state.has_read_enough()),
        ("accepting", !state.is_draining()),
    ];
    checks(&readiness, query)
}

/// `GET /metrics`.
pub(super) fn metrics(state: &State, tasks: &Tasks, load: &Load) -> Response {
    let mut now = Now::new();
    tasks.measure(&mut now);
    now.gauge("http_connections", "Open connections of callers", load.open());
    Response::bytes(200, CONTENT_TYPE, state.metrics.text(&now).into_bytes())
}

/// `GET /openapi.json`.
pub(super) fn description() -> Response {
    Response::bytes(200, "application/json", DESCRIPTION.as_bytes().to_vec())
}

/// `GET /overview`: what the page shows.
pub(super) fn overview(state: &State, tasks: &Tasks) -> Response {
    let (queue, rounded) = (tasks.queue(), |time: Duration| (time.as_secs_f64() * 10.0).round() / 10.0);
    let value = json!({
        "gateway": {
            "version": env!("CARGO_PKG_VERSION"),
            "instance": state.instance,
            "draining": state.is_draining(),
            "drain_seconds_left": state.drain_left().map(|left| left.as_secs()),
            "callers_waiting": tasks.callers(),
        },
        "kafka": {
            "connected": state.is_kafka_connected(),
            "producer_ready": tasks.is_producer_ready(),
            "refused": state.refusals.first(),
        },
        "queue": {
            "pending": queue.pending,
            "running": queue.running,
            "oldest_seconds": rounded(queue.oldest),
        },
        "history": tasks.history(),
        "stops": tasks.stops(),
        "dead_letters": state.dead.counts().map(|counts| {
            counts.into_iter().map(|(class, count)| (class.name().to_owned(), count.into())).collect::<Map<_, _>>()
        }),
        "fleet": tasks.fleet(),
    });
    Response::json(200, &value)
}

/// `GET /`. Each response has a fresh nonce, so a browser runs only the script and the style of this file.
pub(super) fn page() -> Response {
    let nonce = Uuid::new_v4().simple().to_string();
    let policy = format!(
        "default-src 'none'; script-src 'nonce-{nonce}'; style-src 'nonce-{nonce}'; connect-src 'self'; \
         base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    );
    Response::bytes(200, "text/html; charset=utf-8", PAGE.replace("NONCE", &nonce).into_bytes())
        .with("Content-Security-Policy", policy)
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::http::response::Afterwards;

    #[test]
    fn page_forbids_caches_once() {
        let page = page().encode(true, Afterwards::Stays);
        assert_eq!(String::from_utf8_lossy(&page).matches("Cache-Control: no-store\r\n").count(), 1);
    }
}
