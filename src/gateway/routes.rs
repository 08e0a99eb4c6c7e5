//! Which request gets which answer. Called by the connections' threads, one request at a time each; what cannot be
//! answered at once waits with its reply.

use super::analyze;
use super::answer::Answer;
use super::desk::Desk;
use super::http::Refusal;
use super::http::connection;
use super::http::head::Head;
use super::lookup::Questions;
use super::metrics;
use super::page;
use super::parting;
use super::reply::{Parting, Reply, Ticket};
use super::submit::{Submitter, Terms};
use super::unanswered::Counted;
use crate::task::is_task_id;
use serde_json::{Value, json};
use std::sync::Arc;
use tiny_http::Method;

/// Everything that requests are answered with.
#[derive(Debug)]
pub(super) struct Service {
    pub(super) desk: Arc<Desk>,
    pub(super) submitter: Arc<Submitter>,
    pub(super) questions: Questions,
}

/// What a path stands for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Resource<'a> {
    Analyze,
    Task(&'a str),
    Fleet,
    Health,
    Live,
    Ready,
    Metrics,
    Page,
}

impl Resource<'_> {
    fn allowed(self) -> &'static str {
        match self {
            Self::Analyze => "POST",
            _ => "GET, HEAD",
        }
    }

    fn allows(self, method: &Method) -> bool {
        match self {
            Self::Analyze => *method == Method::Post,
            _ => matches!(method, Method::Get | Method::Head),
        }
    }
}

/// The resource of a request's target (RFC 9112 section 3.2: a path, or a whole URL), and its query.
fn resource(target: &str) -> (Option<Resource<'_>>, &str) {
    let (path, query) = path_of(target).split_once('?').unwrap_or((path_of(target), ""));
    let resource = match path {
        "/analyze" => Some(Resource::Analyze),
        "/workers/status" => Some(Resource::Fleet),
        "/health" => Some(Resource::Health),
        "/livez" => Some(Resource::Live),
        "/readyz" => Some(Resource::Ready),
        "/metrics" => Some(Resource::Metrics),
        "/" => Some(Resource::Page),
        _ => path.strip_prefix("/tasks/").filter(|id| !id.is_empty()).map(Resource::Task),
    };
    (resource, query)
}

fn path_of(target: &str) -> &str {
    match target.strip_prefix("http://") {
        Some(rest) => rest.find(['/', '?']).map_or("/", |at| &rest[at..]),
        None => target,
    }
}

impl Service {
    /// What is answered at once.
    fn answer(&self, resource: Option<Resource<'_>>, query: &str) -> Answer {
        match resource {
            Some(Resource::Fleet) => {
                let view = self.desk.state().fleet.view(self.desk.now());
                Answer::json(200, &json!(view))
            }
            Some(Resource::Health) => self.health(),
            Some(Resource::Live) => checks(&self.submitter.liveness(), query),
            Some(Resource::Ready) => checks(&self.readiness(), query),
            Some(Resource::Metrics) => Answer::bytes(200, metrics::CONTENT_TYPE, self.metrics().into_bytes()),
            Some(Resource::Page) => page::answer(),
            Some(Resource::Analyze | Resource::Task(_)) | None => {
                let detail = "there is nothing here; POST /analyze takes texts, GET / shows the workers";
                Answer::problem(404, detail, None)
            }
        }
    }

    fn analyze(&self, reply: Reply, head: &Head, body: &[u8]) -> Option<Ticket> {
        let wanted =
            terms_of(head).and_then(|terms| Ok((analyze::parse(body, self.desk.config.common.allow_work_ms)?, terms)));
        match wanted {
            Ok((wanted, terms)) => self.submitter.submit(reply, wanted, &terms),
            Err(refusal) => {
                reply.give(Answer::problem(refusal.status, &refusal.detail, None));
                None
            }
        }
    }

    fn task(&self, reply: Reply, id: &str) -> Option<Ticket> {
        match percent_decoded(id).filter(|id| is_task_id(id)) {
            Some(id) => self.questions.ask(reply, id),
            None => {
                reply.give(Answer::problem(404, "a task id is 1 to 100 printable ASCII characters", None));
                None
            }
        }
    }

    fn health(&self) -> Answer {
        let (connected, ready) = (self.desk.is_kafka_connected(), self.submitter.is_producer_ready());
        let (status, word) = match (self.desk.is_draining(), connected && ready) {
            (true, _) => (200, "draining"),
            (false, true) => (200, "ok"),
            (false, false) => (503, "degraded"),
        };
        let active = self.desk.state().fleet.active(self.desk.now());
        let value = json!({
            "status": word, "kafka_connected": connected, "producer_ready": ready, "active_workers": active,
        });
        let answer = Answer::json(status, &value);
        if status == 503 { answer.with("Retry-After", "1".to_owned()) } else { answer }
    }

    fn readiness(&self) -> [(&'static str, bool); 5] {
        [
            ("prepared", self.desk.is_prepared()),
            ("kafka", self.desk.is_kafka_near()),
            ("rights", self.submitter.has_rights()),
            ("read_back", self.desk.has_read_enough()),
            ("accepting", !self.desk.is_draining()),
        ]
    }

    fn metrics(&self) -> String {
        {
            let (connections, connected) = (self.desk.load.open(), self.desk.is_kafka_connected());
            let state = self.desk.state();
            self.desk.metrics.look(&state, self.desk.now(), connections, connected);
        }
        self.desk.metrics.encode()
    }
}

impl connection::Service for Service {
    type Counted = Counted;

    fn begin(&self) -> Counted {
        self.desk.count_unanswered()
    }

    fn wants_body(&self, head: &Head) -> bool {
        let (resource, _) = resource(&head.target);
        resource == Some(Resource::Analyze) && head.method == Method::Post
    }

    fn take(&self, head: &Head, body: &[u8], reply: Reply) -> Option<Ticket> {
        let (resource, query) = resource(&head.target);
        if let Some(allowed) = resource.filter(|it| !it.allows(&head.method)).map(Resource::allowed) {
            let answer = Answer::problem(405, &format!("this path takes {allowed}"), None);
            reply.give(answer.with("Allow", allowed.to_owned()));
            return None;
        }
        match resource {
            Some(Resource::Analyze) => self.analyze(reply, head, body),
            Some(Resource::Task(id)) => self.task(reply, id),
            _ => {
                reply.give(self.answer(resource, query));
                None
            }
        }
    }

    fn part(&self, ticket: Ticket, parting: Parting) -> bool {
        parting::part(&self.desk, ticket.number, parting)
    }

    fn responds(&self, status: u16) {
        self.desk.metrics.answered(status);
    }

    fn is_stopping(&self) -> bool {
        self.desk.is_draining()
    }
}

/// 200 when all checks pass, else 503; `?verbose` lists them.
fn checks(checks: &[(&'static str, bool)], query: &str) -> Answer {
    let good = checks.iter().all(|(_, good)| *good);
    let (status, word) = if good { (200, "ok") } else { (503, "failed") };
    let verbose = query.split('&').any(|part| part == "verbose" || part.starts_with("verbose="));
    let mut value = json!({ "status": word });
    if verbose {
        let word = |good: bool| Value::from(if good { "ok" } else { "failed" });
        value["checks"] = checks.iter().map(|(name, good)| ((*name).to_owned(), word(*good))).collect();
    }
    Answer::json(status, &value)
}

fn terms_of(head: &Head) -> Result<Terms, Refusal> {
    analyze::check_type(head.field("Content-Type")?)?;
    let idempotency_key = head.field("Idempotency-Key")?.map(analyze::key_of).transpose()?;
    Ok(Terms { asynchronous: analyze::prefers_async(head.list("Prefer")), idempotency_key })
}

/// `%41` is `A`; `None` when it is not well-formed.
fn percent_decoded(text: &str) -> Option<String> {
    if !text.contains('%') {
        return Some(text.to_owned());
    }
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.bytes();
    while let Some(byte) = rest.next() {
        if byte == b'%' {
            let digits = [rest.next()?, rest.next()?];
            if !digits.iter().all(u8::is_ascii_hexdigit) {
                return None;
            }
            bytes.push(u8::from_str_radix(std::str::from_utf8(&digits).ok()?, 16).ok()?);
        } else {
            bytes.push(byte);
        }
    }
    String::from_utf8(bytes).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn targets_are_paths_with_or_without_a_query_or_whole_urls() {
        assert_eq!(resource("/readyz?verbose"), (Some(Resource::Ready), "verbose"));
        assert_eq!(resource("http://host:80/tasks/a%20b?x"), (Some(Resource::Task("a%20b")), "x"));
        assert_eq!(resource("http://host"), (Some(Resource::Page), ""));
        assert_eq!(resource("/?a"), (Some(Resource::Page), "a"));
        for nothing in ["", "*", "//", "/tasks", "/tasks/", "/analyze/", "/ANALYZE", "https://host/"] {
            assert_eq!(resource(nothing).0, None, "{nothing}");
        }
    }

    #[test]
    fn ids_are_decoded() {
        assert_eq!(percent_decoded("a%20b%41"), Some("a bA".to_owned()));
        for bad in ["%", "%4", "%zz", "%+1", "%ff"] {
            assert_eq!(percent_decoded(bad), None, "{bad}");
        }
    }
}
