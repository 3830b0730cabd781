//! The description of the API against what a running server really answers.

#![allow(clippy::unwrap_used, reason = "a test fails by it")]

mod common;

use common::{Cluster, read_all, wait_for};
use jsonschema::Validator;
use lockstep::api::problem::HttpCode;
use lockstep_core::request::Code;
use serde_json::{Value, json};
use std::collections::BTreeSet;
use std::io::Write;
use std::net::TcpStream;
use std::time::SystemTime;

const SPEC: &str = "cluster = \"shop\"\n[groups.db]\nselect = { role = \"db\" }\nlifecycle = \"primary-standby\"\n\
    provides = [\"sql\"]\nhandler = \"sh\"\nsettings = { live = \"blue\", epoch = 41, open = true }\n\
    [groups.app]\nselect = { role = [\"app\", \"web\"] }\nconsumes = [\"sql\"]\nlimits = { online = { min = \"majority\" } }\n\
    [[relations]]\nfrom = \"app\"\nto = \"db\"\nask = \"hold\"\n";

/// The description, and which of its operations have been seen to answer as it says.
struct Described {
    document: Value,
    seen: BTreeSet<(String, String)>,
}

struct Answer {
    status: u16,
    kind: String,
    body: String,
}

impl Answer {
    fn json(&self) -> Value {
        serde_json::from_str(&self.body).unwrap()
    }
}

fn ask(cluster: &Cluster, method: &str, path: &str, kind: &str, body: &str) -> Answer {
    let mut stream = TcpStream::connect(cluster.address).unwrap();
    let (host, length) = (cluster.address, body.len());
    let head = format!("{method} {path} HTTP/1.0\r\nhost: {host}\r\ncontent-type: {kind}\r\n");
    write!(stream, "{head}content-length: {length}\r\n\r\n{body}").unwrap();
    let answer = read_all(&mut stream);
    let (head, body) = answer.split_once("\r\n\r\n").unwrap();
    let kind = head.lines().find_map(|line| line.strip_prefix("content-type: ")).unwrap();
    let status = head.split(' ').nth(1).unwrap().parse().unwrap();
    Answer { status, kind: kind.to_owned(), body: body.to_owned() }
}

impl Described {
    fn of(cluster: &Cluster) -> Self {
        Self { document: cluster.get("/v1/openapi.json"), seen: BTreeSet::new() }
    }

    /// A schema in the document, whose references stay within it.
    fn validator(&self, schema: &Value) -> Validator {
        let mut root = schema.clone();
        root["$schema"] = json!("https://json-schema.org/draft/2020-12/schema");
        root["components"] = self.document["components"].clone();
        jsonschema::validator_for(&root).unwrap()
    }

    fn check(&self, schema: &Value, value: &Value, what: &str) {
        let validator = self.validator(schema);
        let errors: Vec<_> =
            validator.iter_errors(value).map(|error| format!("{}: {error}", error.instance_path())).collect();
        assert!(errors.is_empty(), "{what}: {errors:#?}\n{value:#}");
    }

    /// What is described of an answer of this kind.
    fn schema(&self, method: &str, template: &str, answer: &Answer) -> Value {
        let what = format!("{method} {template} {} {}", answer.status, answer.kind);
        let operation = &self.document["paths"][template][method.to_lowercase()];
        let mut described = &operation["responses"][answer.status.to_string()];
        if let Some(reference) = described["$ref"].as_str() {
            described = self.document.pointer(reference.strip_prefix('#').unwrap()).unwrap();
        }
        let content = described["content"].as_object().unwrap_or_else(|| panic!("{what} is not described"));
        content.get(&answer.kind).unwrap_or_else(|| panic!("{what} is not described")).clone()
    }

    /// Asks, and checks both what is sent and what is answered.
    fn ask(&mut self, cluster: &Cluster, method: &str, template: &str, path: &str, body: &Value) -> Value {
        let text = if body.is_null() { String::new() } else { body.to_string() };
        let answer = ask(cluster, method, path, "application/json", &text);
        let (schema, what) = (self.schema(method, template, &answer), format!("{method} {path}"));
        self.check(&schema["schema"], &answer.json(), &what);
        if answer.status < 300 {
            self.seen.insert((template.to_owned(), method.to_lowercase()));
            if !body.is_null() {
                let sent = &self.document["paths"][template][method.to_lowercase()]["requestBody"];
                self.check(
                    &sent["content"]["application/json"]["schema"],
                    body,
                    &format!("the body of {what}"),
                );
            }
        }
        answer.json()
    }

    /// What must be refused; gives the code.
    fn refused(&mut self, cluster: &Cluster, method: &str, path: &str, body: &Value) -> String {
        let problem = self.ask(cluster, method, path, path, body);
        problem["code"].as_str().unwrap().to_owned()
    }
}

#[test]
fn what_a_server_answers_is_as_described() {
    let mut cluster = Cluster::start();
    let mut described = Described::of(&cluster);
    let get = |described: &mut Described, cluster: &Cluster, path: &str| {
        described.ask(cluster, "GET", path, path, &Value::Null)
    };
    assert_eq!(described.refused(&cluster, "GET", "/v1/spec", &Value::Null), "not-found");
    for (host, state) in [("a", "primary"), ("b", "standby")] {
        std::fs::write(cluster.dir.join(format!("db@{host}.state")), format!("{state}\n")).unwrap();
        cluster.start_agent(host, "role=db");
    }
    cluster.start_agent("c", "role=app");
    cluster.apply(SPEC);
    wait_for("every member's state", || {
        let members = cluster.items("/v1/members");
        members.len() == 3 && members.iter().all(|member| member["actual"].is_string())
    });
    let targets = json!({ "targets": ["db@b=primary"] });
    described.ask(&cluster, "POST", "/v1/plans", "/v1/plans", &targets);
    described.ask(&cluster, "POST", "/v1/rehearsals", "/v1/rehearsals", &targets);

    // One that commits, with votes, a holder and steps; one that is aborted; one with nothing to do.
    let run = json!({
        "targets": ["app=online", "db@b=primary"], "request_id": "r1", "reason": "why not",
        "on_failure": "undo", "deadline_ms": 60_000,
    });
    cluster.block("db@b", "prepare");
    let first = described.ask(&cluster, "POST", "/v1/transitions", "/v1/transitions", &run);
    let first = first["id"].as_str().unwrap().to_owned();
    cluster.wait_blocked("db@b", "prepare");
    for path in ["/v1/hosts", "/v1/groups", "/v1/members", "/v1/relations", "/v1/transitions"] {
        let list = get(&mut described, &cluster, path);
        assert!(!list["items"].as_array().unwrap().is_empty(), "{path}");
    }
    let one = "/v1/transitions/{id}";
    let shown = described.ask(&cluster, "GET", one, &format!("/v1/transitions/{first}"), &Value::Null);
    assert!(shown["votes"].as_array().unwrap().iter().any(|vote| vote["provisional"] == true), "{shown:#}");
    cluster.unblock("db@b", "prepare");
    assert_eq!(cluster.outcome(&first), "committed");
    let shown = described.ask(&cluster, "GET", one, &format!("/v1/transitions/{first}"), &Value::Null);
    assert!(!shown["steps"].as_array().unwrap().is_empty());
    cluster.block("db@a", "check");
    let second = cluster.run(&["db@a=primary"], "r2");
    let abort = "/v1/transitions/{id}/abort";
    described.ask(&cluster, "POST", abort, &format!("/v1/transitions/{second}/abort"), &json!({}));
    cluster.unblock("db@a", "check");
    let nothing = json!({ "targets": ["db@b=primary"] });
    assert!(described.ask(&cluster, "POST", "/v1/transitions", "/v1/transitions", &nothing)["id"].is_null());

    let drain = json!({ "targets": ["drain c", "app=down"], "exclude_lost": true, "overrides": [] });
    let drain = described.ask(&cluster, "POST", "/v1/transitions", "/v1/transitions", &drain);
    cluster.outcome(drain["id"].as_str().unwrap_or_else(|| panic!("{drain:#}")));
    described.ask(&cluster, "POST", "/v1/hosts/{name}/undrain", "/v1/hosts/c/undrain", &json!({}));
    let labels = json!({ "labels": { "zone": "a", "rack": null } });
    let labelled = described.ask(&cluster, "POST", "/v1/hosts/{name}/labels", "/v1/hosts/c/labels", &labels);
    assert_eq!(labelled["labels"]["zone"], "a");
    // Forgotten it is only once its lease has run out.
    described.ask(&cluster, "POST", "/v1/hosts/{name}/forget", "/v1/hosts/c/forget", &json!({}));
    cluster.start_agent("z", "role=none");
    wait_for("one more host", || cluster.joined("z") == 1);
    cluster.agents.get_mut("z").unwrap().kill();
    wait_for("its lease to end", || cluster.liveness("z") == "lost");
    described.ask(&cluster, "POST", "/v1/hosts/{name}/forget", "/v1/hosts/z/forget", &json!({}));
    assert!(cluster.items("/v1/hosts").iter().all(|host| host["name"] != "z"));

    let freeze = json!({ "groups": ["db"], "reason": "the audit", "for_ms": 3_600_000 });
    described.ask(&cluster, "POST", "/v1/freezes", "/v1/freezes", &freeze);
    let freeze = json!({ "reason": "everything", "until": null });
    let frozen = described.ask(&cluster, "POST", "/v1/freezes", "/v1/freezes", &freeze);
    assert_eq!(frozen, get(&mut described, &cluster, "/v1/freezes"));
    let run = json!({ "targets": ["db@a=primary"], "reason": "all the same", "override_freeze": true });
    assert_eq!(
        described.refused(&cluster, "POST", "/v1/plans", &json!({ "targets": ["db@a=primary"] })),
        "frozen"
    );
    let anyway = json!({ "targets": ["db@a=primary"], "override_freeze": true });
    let plan = described.ask(&cluster, "POST", "/v1/plans", "/v1/plans", &anyway);
    assert_eq!(plan["frozen"], json!(["db"]));
    let run = described.ask(&cluster, "POST", "/v1/transitions", "/v1/transitions", &run);
    let run = run["id"].as_str().unwrap().to_owned();
    cluster.outcome(&run);
    described.ask(&cluster, "GET", one, &format!("/v1/transitions/{run}"), &Value::Null);
    let thaw = json!({ "groups": ["db"] });
    let frozen = described.ask(&cluster, "POST", "/v1/freezes/thaw", "/v1/freezes/thaw", &thaw);
    assert_eq!(frozen["items"].as_array().unwrap().len(), 1);
    described.ask(&cluster, "POST", "/v1/freezes/thaw", "/v1/freezes/thaw", &json!({}));

    let mut spec = get(&mut described, &cluster, "/v1/spec");
    described.ask(&cluster, "PUT", "/v1/spec", "/v1/spec", &spec);
    // It opens in three days, for a minute.
    let days = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap().as_secs() / 86_400;
    let day = ["thu", "fri", "sat", "sun", "mon", "tue", "wed"][(days as usize + 3) % 7];
    spec["groups"]["db"]["windows"] = json!([format!("{day} 12:00-12:01")]);
    described.ask(&cluster, "PUT", "/v1/spec", "/v1/spec", &spec);
    for path in ["/v1/openapi.json", "/livez", "/readyz", "/version", "/v1/server"] {
        get(&mut described, &cluster, path);
    }

    let stream = ask(&cluster, "GET", "/v1/events?since=0&follow=false", "", "");
    let schema = described.schema("GET", "/v1/events", &stream);
    let events: Vec<Value> = stream
        .body
        .lines()
        .filter_map(|line| line.strip_prefix("data: "))
        .map(|data| serde_json::from_str(data).unwrap())
        .collect();
    let validator = described.validator(&schema["x-event-data"]);
    for event in &events {
        assert!(validator.is_valid(event), "{event:#}");
    }
    let kinds: BTreeSet<&str> = events.iter().map(|event| event["kind"].as_str().unwrap()).collect();
    for kind in [
        "reign",
        "spec",
        "host-joined",
        "request",
        "begin",
        "decision",
        "step",
        "outcome",
        "report",
        "freeze",
        "thaw",
    ] {
        assert!(kinds.contains(kind), "{kind} of {kinds:?}");
    }
    let revisions: Vec<u64> = events.iter().map(|event| event["revision"].as_u64().unwrap()).collect();
    assert!(revisions.iter().copied().eq(1..=revisions.len() as u64), "{revisions:?}");
    let of_no_kind = json!({ "revision": 1, "at": "", "provisional": false, "kind": "gossip" });
    assert!(!validator.is_valid(&of_no_kind), "the schema says what an event is");
    described.seen.insert(("/v1/events".to_owned(), "get".to_owned()));

    for (method, path, body, code) in [
        ("POST", "/v1/transitions", json!({ "targets": [] }), "bad-request"),
        ("POST", "/v1/transitions", json!({ "targets": ["db=sideways"] }), "unknown-state"),
        ("POST", "/v1/transitions", json!({ "targets": ["db@b=primary"] }), "window-closed"),
        ("POST", "/v1/freezes", json!({ "groups": ["nobody"], "reason": "why" }), "unknown-group"),
        ("POST", "/v1/freezes/thaw", json!({ "groups": ["nobody"] }), "unknown-group"),
        ("POST", "/v1/transitions", json!({ "targets": ["db=up"], "request_id": "r1" }), "request-conflict"),
        ("POST", "/v1/plans", json!({ "targets": ["nothing=up"] }), "unknown-group"),
        ("POST", "/v1/plans", json!({ "targets": ["x".repeat(2 << 20)] }), "too-large"),
        ("PUT", "/v1/spec", json!({ "cluster": "c", "groups": { "g": { "hold_ms": 0 } } }), "spec-invalid"),
        ("GET", "/v1/transitions/{id}", Value::Null, "bad-request"),
        ("POST", "/v1/server/away", json!({ "lease_ms": 1 }), "not-allowed"),
        ("POST", "/v1/server/step-down", json!({}), "not-allowed"),
    ] {
        assert_eq!(described.refused(&cluster, method, path, &body), code, "{method} {path}");
    }

    // Of a host that is lost a person says what it cannot.
    cluster.agents.get_mut("b").unwrap().kill();
    wait_for("another lease to end", || cluster.liveness("b") == "lost");
    let place = json!({ "state": "standby", "reason": "I looked" });
    let resolve = "/v1/members/{member}/resolve";
    let resolved = described.ask(&cluster, "POST", resolve, "/v1/members/db@b/resolve", &place);
    assert_eq!(
        (&resolved["actual"], &resolved["evidence"]),
        (&json!("standby"), &json!("local says so, \"I looked\""))
    );
    let fence = "/v1/hosts/{name}/fence";
    let nobody = described.ask(&cluster, "POST", fence, "/v1/hosts/b/fence", &json!({}));
    assert_eq!(nobody["code"], "no-candidate");
    let confirm = json!({ "confirm": true, "reason": "unplugged" });
    let fenced = described.ask(&cluster, "POST", fence, "/v1/hosts/b/fence", &confirm);
    assert!(fenced["liveness"] == "fenced" && fenced["since"].is_string(), "{fenced}");
    assert_eq!(cluster.member("db", "b")["actual"], "offline");
    let away = json!({ "lease_ms": 20_000 });
    let away = described.ask(&cluster, "POST", "/v1/server/away", "/v1/server/away", &away);
    assert_eq!((&away["told"], &away["missing"]), (&json!(2), &json!(0)), "{away}");
    described.ask(&cluster, "POST", "/v1/server/stop", "/v1/server/stop", &json!({}));
    assert_eq!(cluster.server.exit(), Some(0));

    let paths = described.document["paths"].as_object().unwrap().iter();
    let all: BTreeSet<(String, String)> = paths
        .flat_map(|(path, operations)| {
            operations.as_object().unwrap().keys().map(|method| (path.clone(), method.clone()))
        })
        .collect();
    // An agent's session and a backup are no JSON answers; docs/protocol.md and docs/backup.md describe them. Nobody takes
    // over from a server on a disk of its own.
    let unseen: Vec<_> = all.difference(&described.seen).map(|(path, _)| path.as_str()).collect();
    assert_eq!(unseen, ["/v1/agent", "/v1/backup", "/v1/server/step-down"]);
}

#[test]
fn the_description_is_sound_and_knows_every_code() {
    let cluster = Cluster::start();
    let described = Described::of(&cluster);
    let document = &described.document;
    assert_eq!(document["openapi"], "3.1.0");
    let responses = document["components"]["responses"].as_object().unwrap();
    let codes: BTreeSet<&str> = responses
        .values()
        .flat_map(|response| {
            let schema = &response["content"]["application/problem+json"]["schema"];
            schema["properties"]["code"]["enum"].as_array().unwrap()
        })
        .map(|code| code.as_str().unwrap())
        .collect();
    let of_http = HttpCode::ALL.map(HttpCode::as_str);
    let expected: BTreeSet<&str> = Code::ALL.map(Code::as_str).into_iter().chain(of_http).collect();
    assert_eq!(codes, expected);
    for (name, schema) in document["components"]["schemas"].as_object().unwrap() {
        described.validator(schema);
        assert!(schema["description"].is_string(), "{name} is not described");
    }
    // Every reference leads somewhere.
    let text = document.to_string();
    for reference in text.split("\"$ref\":\"#").skip(1) {
        let pointer = reference.split('"').next().unwrap();
        assert!(document.pointer(pointer).is_some(), "{pointer}");
    }
}
