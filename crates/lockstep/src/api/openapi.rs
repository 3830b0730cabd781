//! The routes and their description, OpenAPI 3.1, from one list: what is served is described, and what is described is
//! served.

use super::Shared;
use super::problem::{HttpCode, Problem, status};
use axum::Router;
use axum::handler::Handler;
use axum::http::StatusCode;
use axum::routing;
use lockstep_core::request::Code;
use schemars::JsonSchema;
use schemars::generate::{SchemaGenerator, SchemaSettings};
use serde_json::{Map, Value, json};
use std::collections::BTreeMap;

/// The routes so far.
pub(super) struct Routes {
    router: Router<Shared>,
    paths: BTreeMap<&'static str, Map<String, Value>>,
    schemas: Schemas,
}

/// The schemas so far.
struct Schemas {
    /// Of what is answered: a field that may be null is there all the same.
    answered: SchemaGenerator,
    /// Of what is sent: what has a default may be left out.
    sent: SchemaGenerator,
}

/// What is said of one operation.
pub(super) struct Operation<'a> {
    schemas: &'a mut Schemas,
    summary: &'static str,
    parameters: Vec<Value>,
    body: Option<Value>,
    answers: Map<String, Value>,
}

/// Methods of [`Routes`], each of which serves a path and describes it.
macro_rules! verbs {
    ($($verb:ident),*) => {$(
        pub(super) fn $verb<T: 'static>(
            mut self,
            path: &'static str,
            handler: impl Handler<T, Shared>,
            summary: &'static str,
            describe: impl FnOnce(Operation) -> Operation,
        ) -> Self {
            self.router = self.router.route(path, routing::$verb(handler));
            self.describe(stringify!($verb), path, summary, describe)
        }
    )*};
}

impl Routes {
    pub(super) fn new() -> Self {
        let settings = || {
            SchemaSettings::draft2020_12().with(|settings| {
                settings.definitions_path = "/components/schemas".into();
                settings.meta_schema = None;
            })
        };
        let mut answered = settings().for_serialize().into_generator();
        answered.subschema_for::<Problem>();
        let sent = settings().for_deserialize().into_generator();
        Self { router: Router::new(), paths: BTreeMap::new(), schemas: Schemas { answered, sent } }
    }

    verbs!(get, post, put);

    /// Describes what is served, or is served elsewhere.
    pub(super) fn describe(
        mut self,
        method: &'static str,
        path: &'static str,
        summary: &'static str,
        describe: impl FnOnce(Operation) -> Operation,
    ) -> Self {
        let names = path.split('/').filter_map(|part| part.strip_prefix('{')?.strip_suffix('}'));
        let parameter = |name: &str| json!({ "name": name, "in": "path", "required": true, "schema": { "type": "string" } });
        let operation = Operation {
            schemas: &mut self.schemas,
            summary,
            parameters: names.map(parameter).collect(),
            body: None,
            answers: Map::new(),
        };
        // Whatever is asked, it may be asked by the wrong page or under the wrong name.
        let operation = operation.refuses(&[StatusCode::FORBIDDEN, StatusCode::MISDIRECTED_REQUEST]);
        let mut operation = describe(operation);
        let is_read = method == "get" && path != "/v1/agent";
        if !is_read && path != "/v1/server/stop" {
            let text = "This server stands by; `Location` is the same of the active one.";
            operation = operation.answers_any(StatusCode::TEMPORARY_REDIRECT, text, json!({}));
        }
        let described = operation.described();
        let before = self.paths.entry(path).or_default().insert(method.to_owned(), described);
        assert!(before.is_none(), "{method} {path} is described once");
        self
    }

    /// The router, and the description of all that it serves.
    pub(super) fn finish(mut self, version: &str) -> (Router<Shared>, Value) {
        let mut schemas = self.schemas.sent.take_definitions(true);
        // Nothing is both sent and answered.
        schemas.extend(self.schemas.answered.take_definitions(true));
        let responses: Map<String, Value> = codes_by_status()
            .into_iter()
            .map(|(status, codes)| (problem_name(status), problem(status, &codes)))
            .collect();
        let document = json!({
            "openapi": "3.1.0",
            "info": {
                "title": "Lockstep",
                "version": version,
                "description": "Moves groups of servers from one state to another together. Readers ignore fields \
                                and kinds of events that they do not know.",
                "license": { "name": "Apache-2.0", "identifier": "Apache-2.0" },
            },
            "paths": self.paths,
            "components": { "schemas": schemas, "responses": responses },
        });
        (self.router, document)
    }
}

impl Operation<'_> {
    /// What may be asked in the query: the fields of `T`.
    pub(super) fn query<T: JsonSchema>(mut self) -> Self {
        let schema = self.schemas.sent.root_schema_for::<T>();
        let fields = schema.get("properties").and_then(Value::as_object).expect("a query has fields");
        for (name, field) in fields {
            let mut field = field.clone();
            let description = field.as_object_mut().and_then(|field| field.remove("description"));
            let definitions = schema.get("$defs").cloned();
            debug_assert!(definitions.is_none(), "a query's fields are plain");
            self.parameters
                .push(json!({ "name": name, "in": "query", "description": description, "schema": field }));
        }
        self
    }

    /// A header that may be sent.
    pub(super) fn header(mut self, name: &str, description: &str) -> Self {
        self.parameters.push(json!({
            "name": name, "in": "header", "description": description, "schema": { "type": "string" },
        }));
        self
    }

    /// The body, as JSON, and what it may be refused for.
    pub(super) fn takes<T: JsonSchema>(self, is_required: bool) -> Self {
        let schema = self.schemas.sent.subschema_for::<T>().to_value();
        self.takes_any(is_required, json!({ "application/json": { "schema": schema } }))
    }

    /// The body, by media type.
    pub(super) fn takes_any(mut self, is_required: bool, content: Value) -> Self {
        self.body = Some(json!({ "required": is_required, "content": content }));
        self.refuses(&[
            StatusCode::BAD_REQUEST,
            StatusCode::REQUEST_TIMEOUT,
            StatusCode::PAYLOAD_TOO_LARGE,
            StatusCode::UNSUPPORTED_MEDIA_TYPE,
        ])
    }

    /// An answer in JSON.
    pub(super) fn answers<T: JsonSchema>(self, status: StatusCode, description: &str) -> Self {
        let schema = self.schemas.answered.subschema_for::<T>().to_value();
        self.answers_any(status, description, json!({ "application/json": { "schema": schema } }))
    }

    /// An answer, by media type.
    pub(super) fn answers_any(mut self, status: StatusCode, description: &str, content: Value) -> Self {
        let answer = json!({ "description": description, "content": content });
        self.answers.insert(status.as_str().to_owned(), answer);
        self
    }

    /// A stream of server-sent events whose data is `T`.
    pub(super) fn streams<T: JsonSchema>(self, description: &str) -> Self {
        let schema = self.schemas.answered.subschema_for::<T>().to_value();
        let content =
            json!({ "text/event-stream": { "schema": { "type": "string" }, "x-event-data": schema } });
        self.answers_any(StatusCode::OK, description, content)
    }

    /// Problem objects that may be answered.
    pub(super) fn refuses(mut self, statuses: &[StatusCode]) -> Self {
        for status in statuses {
            let reference = format!("#/components/responses/{}", problem_name(*status));
            self.answers.insert(status.as_str().to_owned(), json!({ "$ref": reference }));
        }
        self
    }

    fn described(self) -> Value {
        let mut described = json!({ "summary": self.summary, "responses": self.answers });
        if !self.parameters.is_empty() {
            described["parameters"] = self.parameters.into();
        }
        if let Some(body) = self.body {
            described["requestBody"] = body;
        }
        described
    }
}

/// Every code that a problem object may have.
fn codes_by_status() -> BTreeMap<StatusCode, Vec<&'static str>> {
    let mut codes: BTreeMap<StatusCode, Vec<&'static str>> = BTreeMap::new();
    let of_http = HttpCode::ALL.map(|code| (code.status(), code.as_str()));
    let of_body = (StatusCode::PAYLOAD_TOO_LARGE, Code::TooLarge.as_str());
    let of_rejection = Code::ALL.map(|code| (status(code), code.as_str()));
    for (status, code) in of_http.into_iter().chain([of_body]).chain(of_rejection) {
        codes.entry(status).or_default().push(code);
    }
    codes
}

fn problem_name(status: StatusCode) -> String {
    format!("Problem{}", status.as_u16())
}

fn problem(status: StatusCode, codes: &[&str]) -> Value {
    let schema = json!({
        "$ref": "#/components/schemas/Problem",
        "properties": { "status": { "const": status.as_u16() }, "code": { "enum": codes } },
    });
    json!({
        "description": status.canonical_reason().unwrap_or_default(),
        "content": { "application/problem+json": { "schema": schema } },
    })
}
