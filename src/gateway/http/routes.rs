//! Routes each request to its response. Called by the connections' threads; a request that has to wait is passed on
//! with its reply.

use super::analyze;
use super::ops;
use super::prefer;
use super::unanswered::{Counted, Unanswered};
use crate::gateway::metrics::ANALYZE;
use crate::gateway::state::State;
use crate::gateway::tasks::{SubmitOptions, Tasks};
use crate::http::Refusal;
use crate::http::head::Head;
use crate::http::load::Load;
use crate::http::reply::{Parted, Parting, Preferences, Reply, Ticket};
use crate::http::response::Response;
use crate::http::service::{self, Facts};
use crate::task::is_task_id;
use std::sync::Arc;
use tiny_http::Method;

/// For whom an address serves.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Audience {
    /// `HTTP_ADDR` without `ADMIN_ADDR`.
    Everyone,
    /// `HTTP_ADDR` beside `ADMIN_ADDR`.
    Callers,
    /// `ADMIN_ADDR`.
    Operators,
}

/// The parts that answer requests.
#[derive(Debug)]
pub(crate) struct Service {
    audience: Audience,
    pub(super) state: Arc<State>,
    pub(super) tasks: Arc<Tasks>,
    /// The seats of callers' connections.
    pub(crate) load: Arc<Load>,
    /// Complete requests without a response.
    pub(crate) unanswered: Arc<Unanswered>,
}

/// The resources.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Resource<'a> {
    Analyze,
    Task(&'a str),
    Fleet,
    Health,
    Live,
    Ready,
    Metrics,
    Description,
    Dead,
    Overview,
    Page,
}

/// The paths of all resources but [`Resource::Task`].
const FIXED: [(&str, Resource<'static>); 10] = [
    (ANALYZE, Resource::Analyze),
    ("/workers/status", Resource::Fleet),
    ("/health", Resource::Health),
    ("/livez", Resource::Live),
    ("/readyz", Resource::Ready),
    ("/metrics", Resource::Metrics),
    ("/openapi.json", Resource::Description),
    ("/dead", Resource::Dead),
    ("/overview", Resource::Overview),
    ("/", Resource::Page),
];

impl Resource<'_> {
    /// The path, without what callers choose.
    fn route(self) -> &'static str {
        FIXED.iter().find(|(_, fixed)| *fixed == self).map_or("/tasks/{id}", |(path, _)| path)
    }

    /// Whether an address for this audience serves it. Health and probes are for both.
    fn is_for(self, audience: Audience) -> bool {
        match self {
            Self::Analyze | Self::Task(_) => audience != Audience::Operators,
            Self::Fleet | Self::Metrics | Self::Dead | Self::Overview | Self::Page => audience != Audience::Callers,
            Self::Health | Self::Live | Self::Ready | Self::Description => true,
        }
    }

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
    let task = || path.strip_prefix("/tasks/").filter(|id| !id.is_empty()).map(Resource::Task);
    let fixed = FIXED.iter().find(|(own, _)| *own == path);
    (fixed.map(|(_, fixed)| *fixed).or_else(task), query)
}

fn path_of(target: &str) -> &str {
    // Schemes are case-insensitive (RFC 3986 section 3.1).
    match target.split_at_checked("http://".len()) {
        Some((scheme, rest)) if scheme.eq_ignore_ascii_case("http://") => {
            rest.find(['/', '?']).map_or("/", |at| &rest[at..])
        }
        _ => target,
    }
}

impl Service {
    pub(in crate::gateway) fn new(audience: Audience, state: Arc<State>, tasks: Arc<Tasks>, load: Load) -> Self {
        Self { audience, state, tasks, load: Arc::new(load), unanswered: Arc::default() }
    }

    /// The same gateway for operators.
    pub(in crate::gateway) fn for_operators(&self) -> Self {
        let Self { audience: _, state, tasks, load, unanswered } = self;
        Self {
            audience: Audience::Operators,
            state: Arc::clone(state),
            tasks: Arc::clone(tasks),
            load: Arc::clone(load),
            unanswered: Arc::clone(unanswered),
        }
    }

    /// The resource of a request, if this address serves it, and the request's query.
    fn resource<'a>(&self, target: &'a str) -> (Option<Resource<'a>>, &'a str) {
        let (resource, query) = resource(target);
        (resource.filter(|it| it.is_for(self.audience)), query)
    }

    /// Starts the drain: no new task is accepted, and a stop waits for the present requests.
    pub(crate) fn start_draining(&self) {
        // In this order, so that every request that counts as later is refused.
        self.state.start_draining();
        self.unanswered.draw_line();
        self.tasks.end_polls();
    }

    /// The response to a request that is answered at once.
    fn response(&self, resource: Option<Resource<'_>>, query: &str) -> Response {
        match resource {
            Some(Resource::Fleet) => ops::fleet(&self.tasks),
            Some(Resource::Health) => ops::health(&self.state, &self.tasks),
            Some(Resource::Live) => ops::live(&self.tasks, query),
            Some(Resource::Ready) => ops::ready(&self.state, &self.tasks, query),
            Some(Resource::Metrics) => ops::metrics(&self.state, &self.tasks, &self.load),
            Some(Resource::Description) => ops::description(),
            Some(Resource::Dead) => ops::dead(&self.state),
            Some(Resource::Overview) => ops::overview(&self.state, &self.tasks),
            Some(Resource::Page) => ops::page(),
            Some(Resource::Analyze | Resource::Task(_)) | None => {
                let detail = match self.audience {
                    Audience::Everyone => {
                        "this path does not exist; POST /analyze takes texts, GET / shows the workers"
                    }
                    Audience::Callers => "this path does not exist here; POST /analyze takes texts",
                    Audience::Operators => "this path does not exist here; GET / shows the workers",
                };
                Response::problem(404, detail, None)
            }
        }
    }

    fn analyze(&self, reply: Reply, head: &Head, body: &[u8]) -> Option<Ticket> {
        let allowed = self.state.config.common.allow_work_ms;
        match self.options(head).and_then(|options| Ok((analyze::parse(body, allowed)?, options))) {
            Ok((mut wanted, options)) => {
                wanted.headers = analyze::trace_of(head);
                self.tasks.submit(reply, wanted, &options)
            }
            Err(refusal) => {
                reply.give(Response::problem(refusal.status, &refusal.detail, None));
                None
            }
        }
    }

    fn options(&self, head: &Head) -> Result<SubmitOptions, Refusal> {
        analyze::check_type(head.field("Content-Type")?)?;
        let idempotency_key = head.field("Idempotency-Key")?.map(analyze::key_of).transpose()?;
        Ok(SubmitOptions { preferences: self.preferences(head), idempotency_key })
    }

    fn preferences(&self, head: &Head) -> Preferences {
        prefer::preferences(head.lines("Prefer"), self.state.config.answer_timeout)
    }

    fn task(&self, reply: Reply, head: &Head, id: &str) -> Option<Ticket> {
        match percent_decoded(id).filter(|id| is_task_id(id)) {
            Some(id) => self.tasks.ask(reply, id, self.preferences(head).wait),
            None => {
                reply.give(Response::problem(404, "a task id is 1 to 100 printable ASCII characters", None));
                None
            }
        }
    }
}

impl service::Service for Service {
    type Counted = Counted;

    fn begin(&self) -> Counted {
        self.unanswered.enter()
    }

    fn wants_body(&self, head: &Head) -> bool {
        let (resource, _) = self.resource(&head.target);
        resource == Some(Resource::Analyze) && head.method == Method::Post
    }

    fn take(&self, head: &Head, body: &[u8], reply: Reply) -> Option<Ticket> {
        let (resource, query) = self.resource(&head.target);
        if let Some(allowed) = resource.filter(|it| !it.allows(&head.method)).map(Resource::allowed) {
            let response = Response::problem(405, &format!("this path takes {allowed}"), None);
            reply.give(response.with("Allow", allowed.to_owned()));
            return None;
        }
        match resource {
            Some(Resource::Analyze) => self.analyze(reply, head, body),
            Some(Resource::Task(id)) => self.task(reply, head, id),
            _ => {
                reply.give(self.response(resource, query));
                None
            }
        }
    }

    fn part(&self, ticket: Ticket, parting: Parting) -> Parted {
        self.tasks.part(ticket, parting)
    }

    fn route(&self, head: &Head) -> Option<&'static str> {
        self.resource(&head.target).0.map(Resource::route)
    }

    fn responds(&self, facts: Facts, status: u16) {
        self.state.metrics.responded(facts.route, facts.method, status, facts.at.elapsed());
    }

    fn is_stopping(&self) -> bool {
        self.state.is_draining()
    }
}

/// Whether only operators are served this path, with or without a query.
pub(crate) fn is_for_operators(path: &str) -> bool {
    resource(path).0.is_some_and(|it| !it.is_for(Audience::Callers))
}

/// Decodes percent-encoding (`%41` is `A`); `None` if it is not well-formed.
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
    fn target_is_a_path_with_an_optional_query_or_a_whole_url() {
        assert_eq!(resource("/readyz?verbose"), (Some(Resource::Ready), "verbose"));
        assert_eq!(resource("http://host:80/tasks/a%20b?x"), (Some(Resource::Task("a%20b")), "x"));
        assert_eq!(resource("http://host"), (Some(Resource::Page), ""));
        assert_eq!(resource("HTTP://host/livez"), (Some(Resource::Live), ""));
        assert_eq!(resource("/?a"), (Some(Resource::Page), "a"));
        for nothing in ["", "*", "//", "/tasks", "/tasks/", "/analyze/", "/ANALYZE", "https://host/"] {
            assert_eq!(resource(nothing).0, None, "{nothing}");
        }
    }

    #[test]
    fn description_has_every_resource_with_its_methods() {
        let description: serde_json::Value = serde_json::from_str(ops::DESCRIPTION).expect("JSON");
        assert_eq!(description["info"]["version"], env!("CARGO_PKG_VERSION"));
        let paths = description["paths"].as_object().expect("an object");
        let all = || FIXED.iter().map(|(_, fixed)| *fixed).chain([Resource::Task("")]);
        for resource in all() {
            assert!(paths.contains_key(resource.route()), "{resource:?} is not described");
        }
        assert_eq!(paths.len(), all().count());
        for (path, item) in paths {
            let (Some(found), _) = resource(path) else { panic!("{path} is no resource") };
            let methods = item.as_object().expect("an object").iter().filter(|(name, _)| *name != "parameters");
            let names: Vec<String> = methods.clone().map(|(method, _)| method.to_ascii_uppercase()).collect();
            assert_eq!(names.join(", "), found.allowed(), "{path}");
            let tags = [(Audience::Callers, "callers"), (Audience::Operators, "operators")];
            let tags = tags.into_iter().filter(|(audience, _)| found.is_for(*audience)).map(|(_, tag)| tag);
            let tags: serde_json::Value = tags.collect();
            for (method, operation) in methods {
                assert_eq!(operation["tags"], tags, "{method} {path}");
            }
        }
    }

    #[test]
    fn task_id_is_percent_decoded() {
        assert_eq!(percent_decoded("a%20b%41"), Some("a bA".to_owned()));
        for bad in ["%", "%4", "%zz", "%+1", "%ff"] {
            assert_eq!(percent_decoded(bad), None, "{bad}");
        }
    }
}
