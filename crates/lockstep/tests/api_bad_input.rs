//! The public API against bad input: a clear error, nothing lost, nothing half-applied. The router is the real one,
//! the engine behind it a few lines that keep a journal in memory.

#![allow(clippy::unwrap_used, reason = "a test fails by it")]

use axum::Router;
use axum::body::{Body, Bytes};
use axum::http::{Method, Request as HttpRequest, StatusCode, header};
use expect_test::expect;
use lockstep::api::feed::{Feed, Page};
use lockstep::api::guard::guarded;
use lockstep::api::{ServerInfo, router};
use lockstep::server::handle::{Command, Handle, Role, View};
use lockstep::store::{self, Entry};
use lockstep_core::cluster::Cluster;
use lockstep_core::engine::HostAsk;
use lockstep_core::id::{AgentId, HostName, Index, Reign, TransitionId};
use lockstep_core::message::{Decision, Outcome};
use lockstep_core::plan::plan;
use lockstep_core::record::{Body as RecordBody, Cause, Evidence, HostChange, Liveness, Record};
use lockstep_core::request::{Code, Rejection, Request};
use lockstep_core::spec::SpecFile;
use lockstep_core::time::WallTime;
use serde_json::{Value, json};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use tokio::sync::{mpsc, watch};
use tower::ServiceExt;

/// A journal in memory, of which the first two records are gone.
struct Engine {
    cluster: Cluster,
    entries: Arc<Mutex<Vec<Entry>>>,
    view: watch::Sender<View>,
}

const FLOOR: Index = Index(3);

fn feed(entries: Arc<Mutex<Vec<Entry>>>, view: watch::Receiver<View>) -> Feed {
    let read = move |from| -> Page {
        let entries = entries.lock().unwrap();
        let page = entries.iter().filter(|entry| entry.index >= from).cloned().collect();
        let page = if from < FLOOR { Err(store::Error::Compacted { floor: FLOOR }) } else { Ok(page) };
        Box::pin(std::future::ready(page))
    };
    Feed::reading(read, view)
}

impl Engine {
    fn add(&mut self, body: RecordBody) -> Index {
        let index = Index(self.cluster.revision.0 + 1);
        let record = Record { at: WallTime(1_767_225_600_000), body };
        self.cluster.apply(index, &record);
        let payload = serde_json::to_vec(&record).unwrap();
        self.entries.lock().unwrap().push(Entry { index, reign: Reign(1), payload });
        index
    }

    fn publish(&self) {
        let cluster = Arc::new(self.cluster.clone());
        self.view.send_modify(|view| view.cluster = cluster);
    }

    fn perform(&mut self, command: Command) {
        match command {
            Command::Plan { request, reply } => {
                let _ = reply.send(plan(&self.cluster, &request.targets, &BTreeMap::new()));
            }
            Command::Run { request, reply } => {
                let _ = reply.send(self.run(request));
            }
            Command::Abort { transition, reply } => {
                let cause = Cause { code: "operator".to_owned(), message: "enough".to_owned(), member: None };
                let (decision, cause, votes) = (Decision::Abort, Some(cause), Vec::new());
                self.add(RecordBody::Decision {
                    transition,
                    decision,
                    cause,
                    votes: votes.into(),
                    plan: None,
                });
                self.add(RecordBody::Outcome {
                    transition,
                    outcome: Outcome::Aborted,
                    left: BTreeMap::new(),
                    untold: Default::default(),
                });
                self.publish();
                let _ = reply.send(Ok(()));
            }
            Command::Host { host, ask, reply } => {
                let change = match ask {
                    HostAsk::Label { labels } => HostChange::Labelled { labels },
                    HostAsk::Forget { .. } => HostChange::Forgotten,
                    HostAsk::Undrain => HostChange::Undrained,
                    HostAsk::Fence | HostAsk::Fenced { .. } => {
                        HostChange::Liveness { liveness: Liveness::Fenced }
                    }
                };
                let index = self.add(RecordBody::Host { host, change });
                self.publish();
                let _ = reply.send(Ok(index));
            }
            Command::Resolve { member, state, principal, reason, reply } => {
                let by = Evidence::Person { principal, reason };
                let index = self.add(RecordBody::Evidence { members: [(member, state)].into(), by });
                self.publish();
                let _ = reply.send(Ok(index));
            }
            Command::Away { reply, .. } => {
                let _ = reply.send(Ok((0, BTreeSet::new())));
            }
            Command::Freeze { groups, end: _, reason, principal, reply } => {
                let index = self.add(RecordBody::Freeze { groups, until: None, reason, principal });
                self.publish();
                let _ = reply.send(Ok(index));
            }
            Command::Thaw { groups, principal, reply } => {
                let freezes = self.cluster.freezes.keys().copied().collect();
                let principal = Some(principal);
                let index = self.add(RecordBody::Thaw { freezes, groups, principal });
                self.publish();
                let _ = reply.send(Ok(index));
            }
            // What would follow is the driver's.
            Command::StepDown { reply } | Command::Stop { reply } => _ = reply.send(Ok(())),
            Command::Apply { spec, principal, reply } => {
                let index = self.add(RecordBody::Spec { spec: Arc::new(spec), principal });
                self.publish();
                let _ = reply.send(Ok(index));
            }
        }
    }

    fn run(&mut self, request: Request) -> Result<Option<TransitionId>, Rejection> {
        if let Some(id) = self.cluster.requests.get(request.request_id.as_str()) {
            let is_same = *self.cluster.transitions[id].request == request;
            let conflict =
                || Rejection::new(Code::RequestConflict, "it asks for something else", "choose another id");
            return if is_same { Ok(Some(*id)) } else { Err(conflict()) };
        }
        if plan(&self.cluster, &request.targets, &BTreeMap::new())?.is_empty() {
            return Ok(None);
        }
        let index = self.add(RecordBody::Request { request: Arc::new(request) });
        self.publish();
        Ok(Some(TransitionId(index.0)))
    }
}

/// The API over an engine, which counts the commands that reach it.
struct Bench {
    router: Router,
    commands: Arc<AtomicUsize>,
    view: watch::Receiver<View>,
}

fn info() -> ServerInfo {
    ServerInfo { name: "s1".to_owned(), url: String::new(), is_shared: false, version: "0.0.0" }
}

/// A store that answers.
fn never_silent() -> watch::Receiver<Option<store::Silence>> {
    watch::Sender::new(None).subscribe()
}

impl Bench {
    fn new() -> Self {
        let (view, seen) = watch::channel(View { role: Role::Active, ..View::default() });
        let entries = Arc::default();
        let feed = feed(Arc::clone(&entries), seen.clone());
        let mut engine = Engine { cluster: Cluster::default(), entries, view };
        engine.add(RecordBody::Reign { server: "s1".to_owned(), lease_ms: None, cluster: None });
        let spec: SpecFile = serde_json::from_value(json!({
            "cluster": "c", "groups": {"db": {"select": {"role": "db"}, "settings": {"live": "blue"}}}
        }))
        .unwrap();
        engine.add(RecordBody::Spec { spec: Arc::new(spec), principal: "test".to_owned() });
        let labels = BTreeMap::from([("role".to_owned(), "db".to_owned())]);
        let joined = HostChange::Joined { agent: AgentId::new("a").unwrap(), address: None, labels };
        engine.add(RecordBody::Host { host: HostName::new("h1").unwrap(), change: joined });
        let actual = Some("offline".parse().unwrap());
        engine.add(RecordBody::Report { member: "db@h1".parse().unwrap(), actual });
        engine.publish();
        let (sender, mut receiver) = mpsc::channel(8);
        let commands = Arc::new(AtomicUsize::new(0));
        let count = commands.clone();
        tokio::spawn(async move {
            while let Some(command) = receiver.recv().await {
                count.fetch_add(1, Ordering::SeqCst);
                engine.perform(command);
            }
        });
        Self {
            router: router(Handle::new(sender, seen.clone(), never_silent()), feed, info()),
            commands,
            view: seen,
        }
    }

    async fn send(&self, request: HttpRequest<Body>) -> (StatusCode, axum::http::HeaderMap, Bytes) {
        let response = self.router.clone().oneshot(request).await.unwrap();
        let (head, body) = response.into_parts();
        (head.status, head.headers, axum::body::to_bytes(body, usize::MAX).await.unwrap())
    }

    async fn post(&self, path: &str, body: &Value) -> (StatusCode, Value) {
        let (status, _, body) = self.send(request(Method::POST, path, body.to_string())).await;
        (status, serde_json::from_slice(&body).unwrap())
    }

    async fn get(&self, path: &str) -> (StatusCode, Value) {
        let (status, _, body) = self.send(request(Method::GET, path, "")).await;
        (status, serde_json::from_slice(&body).unwrap())
    }

    /// Sends what must be refused, and tells how it was: always a problem object, and short.
    async fn refusal(&self, request: HttpRequest<Body>) -> String {
        let (status, headers, body) = self.send(request).await;
        let text = String::from_utf8(body.to_vec()).unwrap();
        assert_eq!(headers[header::CONTENT_TYPE], "application/problem+json", "{text}");
        assert!(text.len() < 2000, "{text}");
        let problem: Value = serde_json::from_str(&text).unwrap();
        assert_eq!(problem["status"], status.as_u16());
        assert!(!problem["help"].as_str().unwrap().is_empty());
        let detail = problem["detail"].as_str().unwrap();
        assert!(!detail.contains(char::is_control), "{detail:?}");
        format!("{} {}: {}", status.as_u16(), problem["code"].as_str().unwrap(), detail)
    }
}

fn request(method: Method, path: &str, body: impl Into<Body>) -> HttpRequest<Body> {
    HttpRequest::builder()
        .method(method)
        .uri(path)
        .header(header::CONTENT_TYPE, "application/json")
        .body(body.into())
        .unwrap()
}

fn long(text: &str, times: usize) -> String {
    text.repeat(times)
}

#[tokio::test]
async fn bad_requests_for_transitions() {
    let bench = Bench::new();
    let targets = |target: &str| json!({ "targets": [target] }).to_string().into_bytes();
    let with = |key: &str, value: Value| {
        let mut body = json!({ "targets": ["db=online"] });
        body[key] = value;
        body.to_string().into_bytes()
    };
    let table: Vec<(&str, Vec<u8>)> = vec![
        ("empty", b"".to_vec()),
        ("white space", b" \n".to_vec()),
        ("cut", br#"{"targets":["db=online"#.to_vec()),
        ("two values", br#"{"targets":["db=online"]} {}"#.to_vec()),
        ("mark", b"\xef\xbb\xbf{\"targets\":[\"db=online\"]}".to_vec()),
        ("utf-8", b"{\"targets\":[\"db=on\xffline\"]}".to_vec()),
        ("utf-16", b"\xff\xfe{\0}\0".to_vec()),
        ("null", b"null".to_vec()),
        ("array", br#"[["db=online"]]"#.to_vec()),
        ("string", br#""db=online""#.to_vec()),
        ("deep", long("[", 100_000).into_bytes()),
        ("deep inside", format!("{{\"targets\":{}", long("[", 500_000)).into_bytes()),
        ("10 MB", format!("{{\"targets\":[\"{}\"]}}", long("x", 10_000_000)).into_bytes()),
        ("no targets", b"{}".to_vec()),
        ("empty targets", br#"{"targets":[]}"#.to_vec()),
        ("targets a string", br#"{"targets":"db=online"}"#.to_vec()),
        ("target a number", br#"{"targets":[1]}"#.to_vec()),
        ("unknown field", with("plan-hash", json!("x"))),
        ("unknown field long", json!({ long("x", 100_000): 1 }).to_string().into_bytes()),
        ("unknown field escapes", json!({ "\u{1b}[2J\u{202e}": 1 }).to_string().into_bytes()),
        ("doubled", br#"{"targets":["db=online"],"targets":["db=offline"]}"#.to_vec()),
        ("doubled, escaped", br#"{"targets":["db=online"],"\u0074argets":["db=offline"]}"#.to_vec()),
        ("target without =", targets("db")),
        ("target empty", targets("")),
        ("target ../", targets("../../etc=online")),
        ("target ;$(x)", targets("db;$(x)=online")),
        ("target <script>", targets("<script>=online")),
        ("target newline", targets("db=online\n")),
        ("target NUL", targets("db=on\0line")),
        ("target turned", targets("db=\u{202e}enilno")),
        ("target long", targets(&format!("db={}", long("x", 100_000)))),
        ("unknown group", targets("nope=online")),
        ("unknown host", targets("db@h9=online")),
        ("unknown state", targets("db=sideways")),
        ("unknown setting", targets("db.colour=red")),
        ("setting with control", targets("db.live=a\u{7}")),
        ("member twice", json!({"targets": ["db@h1=online", "db@h1=offline"]}).to_string().into_bytes()),
        ("request id empty", with("request_id", json!(""))),
        ("request id long", with("request_id", json!(long("x", 129)))),
        ("request id newline", with("request_id", json!("a\nb"))),
        ("request id NUL", with("request_id", json!("a\0b"))),
        ("request id a number", with("request_id", json!(7))),
        ("override, no reason", with("overrides", json!(["db@h1"]))),
        ("override no member", with("overrides", json!(["db"]))),
        ("freeze, no reason", with("override_freeze", json!(true))),
        (
            "freeze, blank reason",
            json!({"targets": ["db=online"], "override_freeze": true, "reason": " "})
                .to_string()
                .into_bytes(),
        ),
        ("override_freeze text", with("override_freeze", json!("yes"))),
        ("reason long", with("reason", json!(long("x", 1001)))),
        ("reason turned", with("reason", json!(format!("{}\u{202e}x", long("y", 300))))),
        ("reason escapes", with("reason", json!("\u{1b}[2J"))),
        ("plan hash empty", with("plan_hash", json!(""))),
        ("plan hash long", with("plan_hash", json!(long("0", 1000)))),
        ("on_failure", with("on_failure", json!("explode"))),
        ("deadline 0", with("deadline_ms", json!(0))),
        ("deadline -1", with("deadline_ms", json!(-1))),
        ("deadline -0", br#"{"targets":["db=online"],"deadline_ms":-0}"#.to_vec()),
        ("deadline 1.5", with("deadline_ms", json!(1.5))),
        ("deadline NaN", br#"{"targets":["db=online"],"deadline_ms":NaN}"#.to_vec()),
        ("deadline 1e999", br#"{"targets":["db=online"],"deadline_ms":1e999}"#.to_vec()),
        ("deadline 2^63", with("deadline_ms", json!(1_u64 << 63))),
        ("deadline u64 max", with("deadline_ms", json!(u64::MAX))),
        ("deadline u64 max + 1", br#"{"targets":["db=online"],"deadline_ms":18446744073709551616}"#.to_vec()),
    ];
    let before = bench.view.borrow().cluster.revision;
    let mut told = String::new();
    for (what, body) in table {
        let refusal = bench.refusal(request(Method::POST, "/v1/transitions", body)).await;
        told.push_str(&format!("{what:<22} {refusal}\n"));
    }
    expect![[r#"
        empty                  400 bad-request: the body: EOF while parsing a value at line 1 column 0
        white space            400 bad-request: the body: EOF while parsing a value at line 2 column 0
        cut                    400 bad-request: the body: EOF while parsing a string at line 1 column 22
        two values             400 bad-request: the body: trailing characters at line 1 column 27
        mark                   400 bad-request: the body: it starts with a byte order mark; save it as UTF-8 without one
        utf-8                  400 bad-request: the body: not UTF-8: bad byte at 18
        utf-16                 400 bad-request: the body: not UTF-8: bad byte at 0
        null                   400 bad-request: the body: expected an object, in braces
        array                  400 bad-request: the body: expected an object, in braces
        string                 400 bad-request: the body: expected an object, in braces
        deep                   400 bad-request: the body: recursion limit exceeded at line 1 column 128
        deep inside            400 bad-request: the body: recursion limit exceeded at line 1 column 138
        10 MB                  413 too-large: the body has more than 1048576 bytes
        no targets             400 bad-request: the body: missing field `targets` at line 1 column 2
        empty targets          400 bad-request: no targets
        targets a string       400 bad-request: the body: invalid type: string "db=online", expected a sequence at line 1 column 22
        target a number        400 bad-request: the body: invalid type: integer `1`, expected a string at line 1 column 13
        unknown field          400 bad-request: the body: unknown field `plan-hash`, expected one of `targets`, `request_id`, `reason`, `plan_hash`, `on_failure`, `deadline_ms`, `overrides`, `exclude_lost`, `override_freeze` at line 1 column 12
        unknown field long     400 bad-request: the body: unknown field `xxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxx ... `, `exclude_lost`, `override_freeze` at line 1 column 100003
        unknown field escapes  400 bad-request: the body: unknown field `\u{1b}[2J\u{202e}`, expected one of `targets`, `request_id`, `reason`, `plan_hash`, `on_failure`, `deadline_ms`, `overrides`, `exclude_lost`, `override_freeze` at line 1 column 15
        doubled                400 bad-request: the body: the key "targets" is there twice at line 1 column 50
        doubled, escaped       400 bad-request: the body: the key "targets" is there twice at line 1 column 55
        target without =       400 bad-request: target "db" is none of GROUP=STATE, GROUP@HOST=STATE, GROUP=up, GROUP=down, GROUP.KEY=VALUE, "drain HOST", "repair GROUP"
        target empty           400 bad-request: target "" is none of GROUP=STATE, GROUP@HOST=STATE, GROUP=up, GROUP=down, GROUP.KEY=VALUE, "drain HOST", "repair GROUP"
        target ../             400 bad-request: target "../../etc=online": group name "" is empty
        target ;$(x)           400 bad-request: target "db;$(x)=online": group name "db;$(x)" may contain letters, digits, '-' and '_' only
        target <script>        400 bad-request: target "<script>=online": group name "<script>" must start with a letter or a digit
        target newline         400 bad-request: target "db=online\n": state name "online\n" may contain letters, digits, '-' and '_' only
        target NUL             400 bad-request: target "db=on\0line": state name "on\0line" may contain letters, digits, '-' and '_' only
        target turned          400 bad-request: target "db=\u{202e}enilno": state name "\u{202e}enilno" must start with a letter or a digit
        target long            400 bad-request: target "db=xxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxx": state name "xxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxx" is longer than 63 characters
        unknown group          422 unknown-group: there is no group nope
        unknown host           422 unknown-host: there is no host h9
        unknown state          422 unknown-state: group db has no state sideways
        unknown setting        422 unknown-setting: group db has no setting colour
        setting with control   400 bad-request: target "db.live=a\u{7}": the text has control characters
        member twice           422 limit-broken: db@h1 is asked to be both online and offline
        request id empty       400 bad-request: request_id is empty
        request id long        400 bad-request: request_id has 129 bytes
        request id newline     400 bad-request: request_id: the text has control characters
        request id NUL         400 bad-request: request_id: the text has control characters
        request id a number    400 bad-request: the body: invalid type: integer `7`, expected a string at line 1 column 15
        override, no reason    400 bad-request: overrides without a reason
        override no member     400 bad-request: overrides without a reason
        freeze, no reason      400 bad-request: overrides without a reason
        freeze, blank reason   400 bad-request: overrides without a reason
        override_freeze text   400 bad-request: the body: invalid type: string "yes", expected a boolean at line 1 column 24
        reason long            400 bad-request: reason has 1001 bytes
        reason turned          400 bad-request: reason: the text has marks that turn its direction
        reason escapes         400 bad-request: reason: the text has control characters
        plan hash empty        400 bad-request: plan_hash is empty
        plan hash long         400 bad-request: plan_hash has 1000 bytes
        on_failure             400 bad-request: the body: unknown variant `explode`, expected `undo` or `exclude` at line 1 column 23
        deadline 0             400 bad-request: deadline_ms is 0
        deadline -1            400 bad-request: the body: invalid value: integer `-1`, expected u64 at line 1 column 17
        deadline -0            400 bad-request: the body: invalid type: floating point `-0.0`, expected u64 at line 1 column 41
        deadline 1.5           400 bad-request: the body: invalid type: floating point `1.5`, expected u64 at line 1 column 18
        deadline NaN           400 bad-request: the body: expected value at line 1 column 40
        deadline 1e999         400 bad-request: the body: number out of range at line 1 column 44
        deadline 2^63          400 bad-request: deadline_ms is 9223372036854775808
        deadline u64 max       400 bad-request: deadline_ms is 18446744073709551615
        deadline u64 max + 1   400 bad-request: the body: invalid type: floating point `1.8446744073709552e+19`, expected u64 at line 1 column 59
    "#]].assert_eq(&told);
    assert_eq!(bench.view.borrow().cluster.revision, before, "nothing was recorded");
    // Names that are not there and members named twice are the engine's to judge; nothing else came so far.
    assert_eq!(bench.commands.load(Ordering::SeqCst), 5);
}

#[tokio::test]
async fn bad_specs() {
    let bench = Bench::new();
    let relations = |count: usize| {
        let mut groups = serde_json::Map::new();
        for group in 0..=1000 {
            groups.insert(format!("g{group}"), json!({}));
        }
        let pairs = (0..1000).flat_map(|from| (from + 1..=1000).map(move |to| (from, to)));
        let relation = |(from, to)| json!({"from": format!("g{from}"), "to": format!("g{to}")});
        let relations: Vec<_> = pairs.take(count).map(relation).collect();
        json!({"cluster": "c", "groups": groups, "relations": relations}).to_string().into_bytes()
    };
    // A million derived edges from a few lines: a thousand capabilities, each with a consumer in each of a thousand.
    let explosion = || {
        let capabilities: Vec<_> = (0..1000).map(|number| format!("c{number}")).collect();
        let mut groups = serde_json::Map::new();
        for (number, capability) in capabilities.iter().enumerate() {
            groups.insert(format!("p{number}"), json!({ "provides": [capability] }));
            groups.insert(format!("u{number}"), json!({ "consumes": capabilities }));
        }
        json!({"cluster": "c", "groups": groups}).to_string().into_bytes()
    };
    let group = |group: Value| json!({"cluster": "c", "groups": {"db": group}}).to_string().into_bytes();
    let relation = |to: &str| {
        json!({"cluster": "c", "groups": {"a": {}, "b": {}}, "relations": [
            {"from": "a", "to": "b", "kind": "requires"}, {"from": "b", "to": to, "kind": "after"}]})
        .to_string()
        .into_bytes()
    };
    let table: Vec<(&str, Vec<u8>)> = vec![
        ("empty", b"".to_vec()),
        ("array", b"[]".to_vec()),
        ("no cluster", b"{}".to_vec()),
        ("unknown field", br#"{"cluster":"c","group":{}}"#.to_vec()),
        ("doubled group", br#"{"cluster":"c","groups":{"db":{},"db":{}}}"#.to_vec()),
        ("deep", format!("{{\"groups\":{}", long("{\"a\":", 1_000_000)).into_bytes()),
        ("too large", vec![b' '; 16 * 1024 * 1024 + 1]),
        ("cluster turned", json!({"cluster": "\u{202e}c"}).to_string().into_bytes()),
        ("cluster long", json!({"cluster": long("c", 100_000)}).to_string().into_bytes()),
        ("group <script>", br#"{"cluster":"c","groups":{"<script>":{}}}"#.to_vec()),
        ("group long", json!({"cluster": "c", "groups": {long("g", 100_000): {}}}).to_string().into_bytes()),
        ("lease 0", br#"{"cluster":"c","lease_ms":0}"#.to_vec()),
        ("lease huge", br#"{"cluster":"c","lease_ms":18446744073709551615}"#.to_vec()),
        ("hold 0", group(json!({"hold_ms": 0}))),
        ("hold negative", group(json!({"hold_ms": -5}))),
        ("hold huge", group(json!({"hold_ms": u64::MAX}))),
        ("setting 2^63", group(json!({"settings": {"n": 1_u64 << 63}}))),
        ("setting NUL", group(json!({"settings": {"n": "a\0"}}))),
        ("select a number", group(json!({"select": {"n": 1}}))),
        ("limit", group(json!({"limits": {"online": {"max": "101%"}}}))),
        ("dangling", relation("c")),
        ("self", relation("b")),
        ("cycle", relation("a")),
        ("100,001 declared", relations(100_001)),
        ("1,000,000 derived", explosion()),
    ];
    let before = bench.view.borrow().cluster.spec_file.clone();
    let mut told = String::new();
    for (what, body) in table {
        let refusal = bench.refusal(request(Method::PUT, "/v1/spec", body)).await;
        told.push_str(&format!("{what:<18} {refusal}\n"));
    }
    expect![[r#"
        empty              400 bad-request: the body: EOF while parsing a value at line 1 column 0
        array              422 spec-invalid: expected an object, in braces
        no cluster         422 spec-invalid: missing field `cluster` at line 1 column 2
        unknown field      422 spec-invalid: unknown field `group`, expected one of `cluster`, `lease_ms`, `groups`, `relations`, `lifecycles` at line 1 column 22
        doubled group      400 bad-request: the body: the key "db" is there twice at line 1 column 41
        deep               400 bad-request: the body: recursion limit exceeded at line 1 column 641
        too large          413 too-large: the body has more than 16777216 bytes
        cluster turned     422 spec-invalid: cluster: the text has marks that turn its direction
        cluster long       422 spec-invalid: cluster: the text is longer than 255 bytes
        group <script>     422 spec-invalid: group name "<script>" must start with a letter or a digit at line 1 column 35
        group long         422 spec-invalid: group name "gggggggggggggggggggggggggggggggggggggggg" is longer than 63 characters at line 1 column 100027
        lease 0            422 spec-invalid: lease_ms: a lease of 0 ms
        lease huge         422 spec-invalid: lease_ms: a lease of 18446744073709551615 ms
        hold 0             422 spec-invalid: groups.db.hold_ms: 0 ms
        hold negative      422 spec-invalid: invalid value: integer `-5`, expected u64 at line 1 column 43
        hold huge          422 spec-invalid: groups.db.hold_ms: 18446744073709551615 ms
        setting 2^63       422 spec-invalid: a setting is true, false, a whole number of 64 bits, or text at line 1 column 67
        setting NUL        422 spec-invalid: groups.db.settings.n: the text has control characters
        select a number    422 spec-invalid: a label is selected by a text such as "db" or ">100", or by a list of texts at line 1 column 47
        limit              422 spec-invalid: invalid value: string "101%", expected a number from 0 on, a percentage such as "50%", "majority" or "all" at line 1 column 63
        dangling           422 spec-invalid: relations.1.to: there is no group c
        self               422 spec-invalid: relations.1.to: b is related to itself
        cycle              422 cycle: relations: a -> b -> a go in a circle
        100,001 declared   422 spec-invalid: relations: more than 100000 relations, declared and derived
        1,000,000 derived  422 spec-invalid: relations: more than 100000 relations, declared and derived
    "#]].assert_eq(&told);
    assert_eq!(bench.view.borrow().cluster.spec_file, before);
    assert_eq!(bench.commands.load(Ordering::SeqCst), 0);
}

#[tokio::test]
async fn bad_paths_methods_and_types() {
    let bench = Bench::new();
    let mut told = String::new();
    let long_path = format!("/v1/{}", long("x", 60_000));
    for (method, path) in [
        (Method::GET, "/"),
        (Method::GET, "/v1"),
        (Method::GET, "/v1/hosts/"),
        (Method::GET, "/v1/../v1/hosts"),
        (Method::GET, "/v1/%2e%2e/hosts"),
        (Method::GET, "/v1/nothing%00%0a"),
        (Method::GET, &long_path),
        (Method::DELETE, "/v1/hosts"),
        (Method::PATCH, "/v1/spec"),
        (Method::GET, "/v1/plans"),
        (Method::GET, "/v1/transitions/t1/abort"),
        (Method::GET, "/v1/transitions/t9"),
        (Method::GET, "/v1/transitions/t18446744073709551615"),
        (Method::GET, "/v1/transitions/t18446744073709551616"),
        (Method::GET, "/v1/transitions/-1"),
        (Method::GET, "/v1/transitions/..%2f..%2fhosts"),
        (Method::GET, "/v1/transitions/%ff"),
        (Method::GET, "/v1/transitions/%0a%00"),
        (Method::GET, "/v1/transitions/t1?wait_ms=-1"),
        (Method::GET, "/v1/transitions/t1?wait_ms=18446744073709551616"),
        (Method::GET, "/v1/transitions/t1?wait_ms=1&wait_ms=2"),
        (Method::GET, "/v1/transitions/t1?wait=1"),
        (Method::POST, "/v1/transitions/t9/abort"),
        (Method::POST, "/v1/transitions/x/abort"),
        (Method::POST, "/v1/openapi.json"),
        (Method::POST, "/v1/events"),
        (Method::GET, "/v1/events?since=-1"),
        (Method::GET, "/v1/events?since="),
        (Method::GET, "/v1/events?since=1.5"),
        (Method::GET, "/v1/events?since=18446744073709551616"),
        (Method::GET, "/v1/events?since=1&since=2"),
        (Method::GET, "/v1/events?from=1"),
        (Method::GET, "/v1/events?follow=maybe"),
        (Method::GET, "/v1/events?since=0"),
        (Method::GET, "/v1/events?since=1&follow=false"),
    ] {
        let shown: String = path.chars().take(50).collect();
        let refusal = bench.refusal(request(method.clone(), path, "")).await;
        told.push_str(&format!("{method} {shown}\n    {refusal}\n"));
    }
    for kind in [
        "text/plain",
        "application/x-www-form-urlencoded",
        "application/jsonx",
        "",
        "\u{e9}",
        "application/toml",
    ] {
        let body = HttpRequest::builder().method(Method::POST).uri("/v1/plans");
        let body = body.header(header::CONTENT_TYPE, kind.as_bytes()).body(Body::from("{}")).unwrap();
        told.push_str(&format!("{kind:?}\n    {}\n", bench.refusal(body).await));
    }
    let untyped =
        HttpRequest::builder().method(Method::POST).uri("/v1/plans").body(Body::from("{}")).unwrap();
    told.push_str(&format!("no type\n    {}\n", bench.refusal(untyped).await));
    expect![[r#"
        GET /
            404 not-found: there is nothing at /
        GET /v1
            404 not-found: there is nothing at /v1
        GET /v1/hosts/
            404 not-found: there is nothing at /v1/hosts/
        GET /v1/../v1/hosts
            404 not-found: there is nothing at /v1/../v1/hosts
        GET /v1/%2e%2e/hosts
            404 not-found: there is nothing at /v1/%2e%2e/hosts
        GET /v1/nothing%00%0a
            404 not-found: there is nothing at /v1/nothing%00%0a
        GET /v1/xxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxx
            404 not-found: there is nothing at /v1/xxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxx
        DELETE /v1/hosts
            405 method-not-allowed: /v1/hosts takes no DELETE
        PATCH /v1/spec
            405 method-not-allowed: /v1/spec takes no PATCH
        GET /v1/plans
            405 method-not-allowed: /v1/plans takes no GET
        GET /v1/transitions/t1/abort
            405 method-not-allowed: /v1/transitions/t1/abort takes no GET
        GET /v1/transitions/t9
            404 not-found: there is no transition t9
        GET /v1/transitions/t18446744073709551615
            404 not-found: there is no transition t18446744073709551615
        GET /v1/transitions/t18446744073709551616
            400 bad-request: "t18446744073709551616" is no transition; they are called t1, t42, ...
        GET /v1/transitions/-1
            400 bad-request: "-1" is no transition; they are called t1, t42, ...
        GET /v1/transitions/..%2f..%2fhosts
            400 bad-request: "../../hosts" is no transition; they are called t1, t42, ...
        GET /v1/transitions/%ff
            400 bad-request: Invalid URL: Invalid UTF-8 in `id`
        GET /v1/transitions/%0a%00
            400 bad-request: "\n\0" is no transition; they are called t1, t42, ...
        GET /v1/transitions/t1?wait_ms=-1
            400 bad-request: Failed to deserialize query string: wait_ms: invalid digit found in string
        GET /v1/transitions/t1?wait_ms=18446744073709551616
            400 bad-request: Failed to deserialize query string: wait_ms: number too large to fit in target type
        GET /v1/transitions/t1?wait_ms=1&wait_ms=2
            400 bad-request: Failed to deserialize query string: duplicate field `wait_ms`
        GET /v1/transitions/t1?wait=1
            400 bad-request: Failed to deserialize query string: wait: unknown field `wait`, expected one of `wait_ms`, `after`, `until`, `consistent`
        POST /v1/transitions/t9/abort
            404 not-found: there is no transition t9
        POST /v1/transitions/x/abort
            400 bad-request: "x" is no transition; they are called t1, t42, ...
        POST /v1/openapi.json
            405 method-not-allowed: /v1/openapi.json takes no POST
        POST /v1/events
            405 method-not-allowed: /v1/events takes no POST
        GET /v1/events?since=-1
            400 bad-request: Failed to deserialize query string: since: invalid digit found in string
        GET /v1/events?since=
            400 bad-request: Failed to deserialize query string: since: cannot parse integer from empty string
        GET /v1/events?since=1.5
            400 bad-request: Failed to deserialize query string: since: invalid digit found in string
        GET /v1/events?since=18446744073709551616
            400 bad-request: Failed to deserialize query string: since: number too large to fit in target type
        GET /v1/events?since=1&since=2
            400 bad-request: Failed to deserialize query string: duplicate field `since`
        GET /v1/events?from=1
            400 bad-request: Failed to deserialize query string: from: unknown field `from`, expected `since` or `follow`
        GET /v1/events?follow=maybe
            400 bad-request: Failed to deserialize query string: follow: provided string was not `true` or `false`
        GET /v1/events?since=0
            410 compacted: what followed revision 0 is not kept any more; what follows 2 is
        GET /v1/events?since=1&follow=false
            410 compacted: what followed revision 1 is not kept any more; what follows 2 is
        "text/plain"
            415 wrong-content-type: the content type is text/plain
        "application/x-www-form-urlencoded"
            415 wrong-content-type: the content type is application/x-www-form-urlencoded
        "application/jsonx"
            415 wrong-content-type: the content type is application/jsonx
        ""
            415 wrong-content-type: the content type is 
        "é"
            415 wrong-content-type: the content type is (not ASCII)
        "application/toml"
            415 wrong-content-type: the content type is application/toml
        no type
            415 wrong-content-type: the content type is none
    "#]].assert_eq(&told);
    let (status, headers, _) = bench.send(request(Method::DELETE, "/v1/transitions", "")).await;
    assert_eq!(status, StatusCode::METHOD_NOT_ALLOWED);
    assert_eq!(headers[header::ALLOW], "GET,HEAD,POST");
    assert_eq!(bench.commands.load(Ordering::SeqCst), 0);
}

#[tokio::test(start_paused = true)]
async fn events_are_asked_since_what_there_was() {
    let bench = Bench::new();
    let mut told = String::new();
    let mut ask = async |query: &str, last: &str| {
        let request = HttpRequest::builder().uri(format!("/v1/events{query}"));
        let request = request.header("last-event-id", last.as_bytes()).body(Body::empty()).unwrap();
        let (status, headers, body) = bench.send(request).await;
        let kind = headers[header::CONTENT_TYPE].to_str().unwrap().to_owned();
        let body = String::from_utf8(body.to_vec()).unwrap();
        told.push_str(&format!("{query} {last:?}\n{} {kind}\n{}\n", status.as_u16(), body.trim_end()));
    };
    ask("?since=5", "").await;
    ask("?since=18446744073709551615", "").await;
    ask("?since=1", "").await;
    for last in ["x", "-1", "3, 4", "\u{e9}", "18446744073709551616", "99"] {
        ask("?since=2", last).await;
    }
    // A browser that comes again says in the header how far it had come.
    ask("?since=0&follow=false", "3").await;
    ask("?since=2&follow=false", "").await;
    ask("?follow=false", "").await;
    expect![[r#"
        ?since=5 ""
        400 application/problem+json
        {"status":400,"title":"Bad Request","code":"bad-request","detail":"since is 5, and nothing after revision 4 has happened","help":"ask since a revision that this cluster has given out"}
        ?since=18446744073709551615 ""
        400 application/problem+json
        {"status":400,"title":"Bad Request","code":"bad-request","detail":"since is 18446744073709551615, and nothing after revision 4 has happened","help":"ask since a revision that this cluster has given out"}
        ?since=1 ""
        410 application/problem+json
        {"status":410,"title":"Gone","code":"compacted","detail":"what followed revision 1 is not kept any more; what follows 2 is","help":"read the lists again and go on from their revision, or ask since=2","kept_since":2}
        ?since=2 "x"
        400 application/problem+json
        {"status":400,"title":"Bad Request","code":"bad-request","detail":"the Last-Event-ID is none that was given out","help":"since is a whole number from 0 on, follow is true or false; Last-Event-ID is the id of an event"}
        ?since=2 "-1"
        400 application/problem+json
        {"status":400,"title":"Bad Request","code":"bad-request","detail":"the Last-Event-ID is none that was given out","help":"since is a whole number from 0 on, follow is true or false; Last-Event-ID is the id of an event"}
        ?since=2 "3, 4"
        400 application/problem+json
        {"status":400,"title":"Bad Request","code":"bad-request","detail":"the Last-Event-ID is none that was given out","help":"since is a whole number from 0 on, follow is true or false; Last-Event-ID is the id of an event"}
        ?since=2 "é"
        400 application/problem+json
        {"status":400,"title":"Bad Request","code":"bad-request","detail":"the Last-Event-ID is none that was given out","help":"since is a whole number from 0 on, follow is true or false; Last-Event-ID is the id of an event"}
        ?since=2 "18446744073709551616"
        400 application/problem+json
        {"status":400,"title":"Bad Request","code":"bad-request","detail":"the Last-Event-ID is none that was given out","help":"since is a whole number from 0 on, follow is true or false; Last-Event-ID is the id of an event"}
        ?since=2 "99"
        400 application/problem+json
        {"status":400,"title":"Bad Request","code":"bad-request","detail":"since is 99, and nothing after revision 4 has happened","help":"ask since a revision that this cluster has given out"}
        ?since=0&follow=false "3"
        200 text/event-stream
        id: 3

        id: 4
        data: {"revision":4,"at":"2026-01-01T00:00:00.000Z","provisional":false,"kind":"report","member":"db@h1","actual":"offline"}
        ?since=2&follow=false ""
        200 text/event-stream
        id: 2

        id: 3
        data: {"revision":3,"at":"2026-01-01T00:00:00.000Z","provisional":false,"kind":"host-joined","host":"h1","address":null,"labels":{"role":"db"}}

        id: 4
        data: {"revision":4,"at":"2026-01-01T00:00:00.000Z","provisional":false,"kind":"report","member":"db@h1","actual":"offline"}
        ?follow=false ""
        200 text/event-stream
        id: 4
    "#]].assert_eq(&told);
}

#[tokio::test]
async fn pages_from_elsewhere_are_kept_out() {
    let bench = Bench::new();
    let listen = |listen: &str| Bench {
        router: guarded(bench.router.clone(), listen.parse().unwrap()),
        commands: bench.commands.clone(),
        view: bench.view.clone(),
    };
    let loopback = listen("127.0.0.1:7420");
    let asked = |path: &str, hosts: &[&str], origin: Option<&str>| {
        let post = path == "/v1/plans";
        let method = if post { Method::POST } else { Method::GET };
        let mut asked = request(method, path, if post { r#"{"targets":["db=online"]}"# } else { "" });
        for host in hosts {
            asked.headers_mut().append(header::HOST, host.parse().unwrap());
        }
        if let Some(origin) = origin {
            asked.headers_mut().insert(header::ORIGIN, origin.parse().unwrap());
        }
        asked
    };
    for host in [
        "127.0.0.1:7420",
        "127.0.0.1",
        "localhost:7420",
        "LocalHost",
        "127.8.8.8:1",
        "[::1]:7420",
        "localhost:8080",
    ] {
        for path in ["/v1/hosts", "/v1/plans"] {
            assert_eq!(loopback.send(asked(path, &[host], None)).await.0, StatusCode::OK, "{host}");
            let own = format!("http://{host}");
            assert_eq!(loopback.send(asked(path, &[host], Some(&own))).await.0, StatusCode::OK, "{host}");
        }
    }
    // What is no browser need not say.
    assert_eq!(loopback.send(asked("/v1/plans", &[], None)).await.0, StatusCode::OK);
    let before = bench.commands.load(Ordering::SeqCst);
    let mut told = String::new();
    for (path, hosts, origin) in [
        ("/v1/hosts", &["rebound.example:7420"][..], None),
        ("/v1/plans", &["rebound.example:7420"], Some("http://rebound.example:7420")),
        ("/v1/nothing", &["rebound.example"], None),
        ("http://rebound.example/v1/hosts", &["localhost"], None),
        ("/v1/hosts", &["10.0.0.1:7420"], None),
        ("/v1/hosts", &["localhost.rebound.example"], None),
        ("/v1/hosts", &["127.0.0.1.rebound.example"], None),
        ("/v1/hosts", &["127.0.0.1", "rebound.example"], None),
        ("/v1/hosts", &["a b"], None),
        ("/v1/hosts", &[""], None),
        ("/v1/plans", &["localhost:7420"], Some("http://elsewhere.example")),
        ("/v1/plans", &["localhost:7420"], Some("http://localhost:3000")),
        ("/v1/plans", &["localhost:7420"], Some("http://localhost:7420.elsewhere.example")),
        ("/v1/plans", &["localhost:7420"], Some("null")),
        ("/v1/plans", &["localhost:7420"], Some("")),
        ("/v1/plans", &[], Some("http://elsewhere.example")),
        ("/v1/events", &["localhost:7420"], Some("http://elsewhere.example")),
    ] {
        let refusal = loopback.refusal(asked(path, hosts, origin)).await;
        told.push_str(&format!("{path} {hosts:?} {}\n    {refusal}\n", origin.unwrap_or("-")));
    }
    expect![[r#"
        /v1/hosts ["rebound.example:7420"] -
            421 wrong-host: this server is not called rebound.example:7420
        /v1/plans ["rebound.example:7420"] http://rebound.example:7420
            421 wrong-host: this server is not called rebound.example:7420
        /v1/nothing ["rebound.example"] -
            421 wrong-host: this server is not called rebound.example
        http://rebound.example/v1/hosts ["localhost"] -
            421 wrong-host: this server is not called rebound.example
        /v1/hosts ["10.0.0.1:7420"] -
            421 wrong-host: this server is not called 10.0.0.1:7420
        /v1/hosts ["localhost.rebound.example"] -
            421 wrong-host: this server is not called localhost.rebound.example
        /v1/hosts ["127.0.0.1.rebound.example"] -
            421 wrong-host: this server is not called 127.0.0.1.rebound.example
        /v1/hosts ["127.0.0.1", "rebound.example"] -
            421 wrong-host: the Host header cannot be read, or is there twice
        /v1/hosts ["a b"] -
            421 wrong-host: the Host header cannot be read, or is there twice
        /v1/hosts [""] -
            421 wrong-host: the Host header cannot be read, or is there twice
        /v1/plans ["localhost:7420"] http://elsewhere.example
            403 wrong-origin: a page of http://elsewhere.example asks
        /v1/plans ["localhost:7420"] http://localhost:3000
            403 wrong-origin: a page of http://localhost:3000 asks
        /v1/plans ["localhost:7420"] http://localhost:7420.elsewhere.example
            403 wrong-origin: a page of http://localhost:7420.elsewhere.example asks
        /v1/plans ["localhost:7420"] null
            403 wrong-origin: a page of null asks
        /v1/plans ["localhost:7420"] 
            403 wrong-origin: a page of  asks
        /v1/plans [] http://elsewhere.example
            403 wrong-origin: a page of http://elsewhere.example asks
        /v1/events ["localhost:7420"] http://elsewhere.example
            403 wrong-origin: a page of http://elsewhere.example asks
    "#]]
    .assert_eq(&told);
    assert_eq!(bench.commands.load(Ordering::SeqCst), before, "none of it reached the engine");
    // Elsewhere a server has names that it does not know, and pages have no business there either.
    let public = listen("10.0.0.1:7420");
    assert_eq!(public.send(asked("/v1/plans", &["manager:7420"], None)).await.0, StatusCode::OK);
    let refusal =
        public.refusal(asked("/v1/plans", &["manager:7420"], Some("http://elsewhere.example"))).await;
    expect!["403 wrong-origin: a page of http://elsewhere.example asks"].assert_eq(&refusal);
}

#[tokio::test(start_paused = true)]
async fn bodies_that_break_or_never_end() {
    let bench = Bench::new();
    let broken = futures_util::stream::iter([
        Ok(Bytes::from_static(b"{\"targets\":")),
        Err(std::io::Error::other("the connection was reset")),
    ]);
    let refusal = bench.refusal(request(Method::POST, "/v1/plans", Body::from_stream(broken))).await;
    expect!["400 bad-request: the body cannot be read: the connection was reset"].assert_eq(&refusal);
    let endless = futures_util::stream::pending::<Result<Bytes, std::io::Error>>();
    let refusal = bench.refusal(request(Method::POST, "/v1/plans", Body::from_stream(endless))).await;
    expect!["408 too-slow: the body did not arrive within 30 s"].assert_eq(&refusal);
    let flood =
        futures_util::stream::repeat_with(|| Ok::<_, std::io::Error>(Bytes::from(vec![b' '; 1 << 16])));
    let refusal = bench.refusal(request(Method::POST, "/v1/plans", Body::from_stream(flood))).await;
    expect!["413 too-large: the body has more than 1048576 bytes"].assert_eq(&refusal);
}

#[tokio::test]
async fn what_the_engine_refuses_has_its_own_status() {
    let bench = Bench::new();
    let body = |reason: &str| json!({"targets": ["db=online"], "request_id": "r1", "reason": reason});
    let (status, first) = bench.post("/v1/transitions", &body("one")).await;
    assert_eq!((status, first["id"].as_str()), (StatusCode::ACCEPTED, Some("t5")));
    let (status, again) = bench.post("/v1/transitions", &body("one")).await;
    assert_eq!((status, &again), (StatusCode::ACCEPTED, &first));
    let refusal = bench.refusal(request(Method::POST, "/v1/transitions", body("two").to_string())).await;
    expect!["409 request-conflict: it asks for something else"].assert_eq(&refusal);

    // Nobody takes commands out: the queue is full.
    let (sender, receiver) = mpsc::channel(1);
    let (view, seen) = watch::channel(View { role: Role::Active, ..View::default() });
    let (reply, _answer) = tokio::sync::oneshot::channel();
    sender.try_send(Command::Plan { request: Request::default(), reply }).unwrap();
    let full = Bench {
        router: router(
            Handle::new(sender, seen.clone(), never_silent()),
            feed(Arc::default(), seen.clone()),
            info(),
        ),
        commands: Arc::default(),
        view: seen,
    };
    let plans = || request(Method::POST, "/v1/plans", r#"{"targets":["db=online"]}"#);
    expect!["429 busy: the server has more to do than it can queue"].assert_eq(&full.refusal(plans()).await);
    let (_, headers, _) = full.send(plans()).await;
    assert_eq!(headers[header::RETRY_AFTER], "1");
    expect!["503 not-active: the server is not ready: its reign has not begun, or is over"]
        .assert_eq(&full.refusal(request(Method::GET, "/readyz", "")).await);

    // The engine is gone.
    drop((receiver, view));
    let (status, _) = full.get("/readyz").await;
    assert_eq!(status, StatusCode::SERVICE_UNAVAILABLE);
    let (status, _) = full.get("/livez").await;
    assert_eq!(status, StatusCode::OK);
}

#[tokio::test]
async fn freezes_are_asked_for_with_a_reason_and_one_end() {
    let bench = Bench::new();
    let before = bench.view.borrow().cluster.revision;
    let mut told = String::new();
    for (path, body) in [
        ("", ""),
        ("", "{}"),
        ("", r#"{"reason":""}"#),
        ("", r#"{"reason":" \t "}"#),
        ("", r#"{"reason":"a\nb"}"#),
        ("", r#"{"reason":"why","groups":"db"}"#),
        ("", r#"{"reason":"why","groups":["<script>"]}"#),
        ("", r#"{"reason":"why","group":["db"]}"#),
        ("", r#"{"reason":"why","for_ms":0}"#),
        ("", r#"{"reason":"why","for_ms":18446744073709551615}"#),
        ("", r#"{"reason":"why","for_ms":1.5}"#),
        ("", r#"{"reason":"why","until":"tomorrow"}"#),
        ("", r#"{"reason":"why","until":"2026-02-30T00:00:00Z"}"#),
        ("", r#"{"reason":"why","until":1767225600}"#),
        ("", r#"{"reason":"why","until":"2026-02-28T00:00:00Z","for_ms":1}"#),
        ("/thaw", "[]"),
        ("/thaw", r#"{"groups":["../db"]}"#),
        ("/thaw", r#"{"reason":"why"}"#),
    ] {
        let path = format!("/v1/freezes{path}");
        told.push_str(&format!("{}\n", bench.refusal(request(Method::POST, &path, body)).await));
    }
    told.push_str(&format!("{}\n", bench.refusal(request(Method::DELETE, "/v1/freezes", "")).await));
    expect![[r#"
        400 bad-request: the body: EOF while parsing a value at line 1 column 0
        400 bad-request: the body: missing field `reason` at line 1 column 2
        400 bad-request: reason is empty
        400 bad-request: reason is empty
        400 bad-request: reason: the text has control characters
        400 bad-request: the body: invalid type: string "db", expected a sequence at line 1 column 29
        400 bad-request: groups: group name "<script>" must start with a letter or a digit
        400 bad-request: the body: unknown field `group`, expected one of `groups`, `reason`, `for_ms`, `until` at line 1 column 23
        400 bad-request: for_ms is 0
        400 bad-request: for_ms is 18446744073709551615
        400 bad-request: the body: invalid type: floating point `1.5`, expected u64 at line 1 column 28
        400 bad-request: until: write a date, a time and an offset, such as 2026-01-31T09:05:00Z
        400 bad-request: until: there is no such day
        400 bad-request: the body: invalid type: integer `1767225600`, expected a string at line 1 column 34
        400 bad-request: both for_ms and until
        400 bad-request: the body: expected an object, in braces
        400 bad-request: groups: group name "../db" must start with a letter or a digit
        400 bad-request: the body: unknown field `reason`, expected `groups` at line 1 column 9
        405 method-not-allowed: /v1/freezes takes no DELETE
    "#]].assert_eq(&told);
    assert_eq!(bench.view.borrow().cluster.revision, before, "nothing was recorded");
    let body = json!({ "reason": "the audit", "groups": ["db"], "until": "2026-02-28T01:00:00+01:00" });
    let (status, frozen) = bench.post("/v1/freezes", &body).await;
    assert_eq!((status, &frozen["items"][0]["groups"]), (StatusCode::OK, &json!(["db"])));
    let (_, groups) = bench.get("/v1/groups").await;
    assert_eq!(groups["items"][0]["frozen"], true);
    let (status, frozen) = bench.post("/v1/freezes/thaw", &json!({})).await;
    assert_eq!((status, &frozen["items"]), (StatusCode::OK, &json!([])));
}

#[tokio::test]
async fn rehearsals_are_asked_for_like_plans() {
    let bench = Bench::new();
    let before = bench.view.borrow().cluster.revision;
    let mut told = String::new();
    for body in [
        "",
        "[]",
        r#"{"targets":[]}"#,
        r#"{"targets":["db"]}"#,
        r#"{"targets":["db=online"],"on_failure":"undo"}"#,
        r#"{"targets":["db=online"],"targets":["db=offline"]}"#,
        r#"{"targets":["nothing=online"]}"#,
        r#"{"targets":["db@h9=online"]}"#,
    ] {
        told.push_str(&format!("{}\n", bench.refusal(request(Method::POST, "/v1/rehearsals", body)).await));
    }
    told.push_str(&format!("{}\n", bench.refusal(request(Method::GET, "/v1/rehearsals", "")).await));
    expect![[r#"
        400 bad-request: the body: EOF while parsing a value at line 1 column 0
        400 bad-request: the body: expected an object, in braces
        400 bad-request: no targets
        400 bad-request: target "db" is none of GROUP=STATE, GROUP@HOST=STATE, GROUP=up, GROUP=down, GROUP.KEY=VALUE, "drain HOST", "repair GROUP"
        400 bad-request: the body: unknown field `on_failure`, expected one of `targets`, `exclude_lost`, `override_freeze` at line 1 column 37
        400 bad-request: the body: the key "targets" is there twice at line 1 column 50
        422 unknown-group: there is no group nothing
        422 unknown-host: there is no host h9
        405 method-not-allowed: /v1/rehearsals takes no GET
    "#]].assert_eq(&told);
    let (status, rehearsal) = bench.post("/v1/rehearsals", &json!({"targets": ["db=online"]})).await;
    assert_eq!((status, &rehearsal["clean"]["outcome"]), (StatusCode::OK, &json!("committed")));
    assert_eq!(rehearsal["summary"]["cases"], rehearsal["cases"].as_array().unwrap().len());
    let (_, plan) = bench.post("/v1/plans", &json!({"targets": ["db=online"]})).await;
    assert_eq!(rehearsal["plan"], plan, "what is rehearsed is what is planned");
    let (status, nothing) = bench.post("/v1/rehearsals", &json!({"targets": ["db=offline"]})).await;
    assert_eq!((status, &nothing["cases"]), (StatusCode::OK, &json!([])));
    assert_eq!(bench.view.borrow().cluster.revision, before, "nothing was recorded");
    assert_eq!(bench.commands.load(Ordering::SeqCst), 1, "only the plan went to the engine");
}

#[tokio::test]
async fn what_a_person_says_has_a_reason_and_names_something() {
    let bench = Bench::new();
    let before = bench.view.borrow().cluster.revision;
    let (fence, resolve) = ("/v1/hosts/h1/fence", "/v1/members/db@h1/resolve");
    let mut told = String::new();
    for (path, body) in [
        (fence, r#"{"confirm":true}"#),
        (fence, r#"{"reason":"I looked"}"#),
        (fence, r#"{"confirm":true,"reason":""}"#),
        (fence, r#"{"confirm":true,"reason":"a\nb"}"#),
        (fence, r#"{"confirm":"yes"}"#),
        (fence, r#"{"confirm":true,"reason":"x","force":true}"#),
        ("/v1/hosts/..;x/fence", "{}"),
        (resolve, ""),
        (resolve, r#"{"state":"offline"}"#),
        (resolve, r#"{"state":"offline","reason":""}"#),
        (resolve, r#"{"state":"<script>","reason":"x"}"#),
        ("/v1/members/db/resolve", r#"{"state":"offline","reason":"x"}"#),
        ("/v1/members/db@/resolve", r#"{"state":"offline","reason":"x"}"#),
        ("/v1/server/away", ""),
        ("/v1/server/away", r#"{"lease_ms":-1}"#),
        ("/v1/server/away", r#"{"lease_ms":"60s"}"#),
        ("/v1/server/stop", r#"{"now":true}"#),
    ] {
        let refusal = bench.refusal(request(Method::POST, path, body)).await;
        told.push_str(&format!("{path} {refusal}\n"));
    }
    expect![[r#"
        /v1/hosts/h1/fence 400 bad-request: confirm without a reason
        /v1/hosts/h1/fence 400 bad-request: a reason without confirm
        /v1/hosts/h1/fence 400 bad-request: reason is empty
        /v1/hosts/h1/fence 400 bad-request: reason: the text has control characters
        /v1/hosts/h1/fence 400 bad-request: the body: invalid type: string "yes", expected a boolean at line 1 column 16
        /v1/hosts/h1/fence 400 bad-request: the body: unknown field `force`, expected `confirm` or `reason` at line 1 column 36
        /v1/hosts/..;x/fence 400 bad-request: host name "..;x" must start with a letter or a digit
        /v1/members/db@h1/resolve 400 bad-request: the body: EOF while parsing a value at line 1 column 0
        /v1/members/db@h1/resolve 400 bad-request: the body: missing field `reason` at line 1 column 19
        /v1/members/db@h1/resolve 400 bad-request: reason is empty
        /v1/members/db@h1/resolve 400 bad-request: state: state name "<script>" must start with a letter or a digit
        /v1/members/db/resolve 400 bad-request: member name "db" is not of the form GROUP@HOST
        /v1/members/db@/resolve 400 bad-request: host name "" is empty
        /v1/server/away 400 bad-request: the body: EOF while parsing a value at line 1 column 0
        /v1/server/away 400 bad-request: the body: invalid value: integer `-1`, expected u64 at line 1 column 14
        /v1/server/away 400 bad-request: the body: invalid type: string "60s", expected u64 at line 1 column 17
        /v1/server/stop 400 bad-request: the body: unknown field `now`, there are no fields at line 1 column 6
    "#]].assert_eq(&told);
    assert_eq!(bench.view.borrow().cluster.revision, before, "nothing was recorded");
    assert_eq!(bench.commands.load(Ordering::SeqCst), 0, "nothing reached the engine");
    let place = json!({ "state": "online", "reason": "I looked" });
    let (status, member) = bench.post(resolve, &place).await;
    let evidence = json!("local says so, \"I looked\"");
    assert_eq!(
        (status, &member["actual"], &member["evidence"]),
        (StatusCode::OK, &json!("online"), &evidence)
    );
    let (status, host) = bench.post(fence, &json!({ "confirm": true, "reason": "unplugged" })).await;
    assert_eq!((status, &host["liveness"]), (StatusCode::OK, &json!("fenced")));
    let (status, stopping) = bench.post("/v1/server/stop", &json!({})).await;
    assert_eq!((status, stopping), (StatusCode::OK, json!({ "status": "stopping" })));
}

#[tokio::test]
async fn what_is_good_is_answered_as_the_design_says() {
    let bench = Bench::new();
    let (_, nothing) = bench.post("/v1/transitions", &json!({"targets": ["db=offline"]})).await;
    assert_eq!((&nothing["id"], &nothing["outcome"]), (&Value::Null, &json!("committed")));
    assert_eq!(nothing["request_id"].as_str().unwrap().len(), 32);
    let sent = request(Method::POST, "/v1/transitions", r#"{"targets":["db=online"],"request_id":"r1"}"#);
    let (status, headers, body) = bench.send(sent).await;
    assert_eq!(
        (status, &headers[header::LOCATION]),
        (StatusCode::ACCEPTED, &"/v1/transitions/t5".parse().unwrap())
    );
    let text: Value = serde_json::from_slice(&body).unwrap();
    expect![[r#"
        {
          "automatic": false,
          "blocked_by": null,
          "cause": null,
          "decided_at": null,
          "decision": null,
          "ended_at": null,
          "excluded": [],
          "holds": [],
          "id": "t5",
          "left": [],
          "member": null,
          "message": null,
          "outcome": null,
          "phase": "queued",
          "plan": null,
          "principal": "local",
          "reason": null,
          "request_id": "r1",
          "requested_at": "2026-01-01T00:00:00.000Z",
          "revision": 5,
          "steps": [],
          "targets": [
            "db=online"
          ],
          "token": null,
          "undo": null,
          "votes": []
        }"#]]
    .assert_eq(&serde_json::to_string_pretty(&text).unwrap());
    for (path, expected) in [
        (
            "/v1/hosts",
            expect![[
                r#"{"items":[{"address":null,"drained":false,"heard":false,"labels":{"role":"db"},"liveness":"alive","name":"h1","since":"2026-01-01T00:00:00.000Z"}],"revision":5}"#
            ]],
        ),
        (
            "/v1/members",
            expect![[
                r#"{"items":[{"actual":"offline","consumes":[],"evidence":null,"facts":{},"goal":"offline","group":"db","guarded":[],"host":"h1","leaving":false,"liveness":"alive","mark":null,"provides":[],"reason":null,"returns_to":null,"score":null,"settings":{"live":"blue"},"transition":null}],"revision":5}"#
            ]],
        ),
        ("/v1/relations", expect![[r#"{"items":[],"revision":5}"#]]),
        ("/version", expect![[r#"{"protocol":1,"server":"s1","version":"0.0.0"}"#]]),
        ("/readyz", expect![[r#"{"role":"active","status":"ready"}"#]]),
    ] {
        expected.assert_eq(&bench.get(path).await.1.to_string());
    }
    let (status, aborted) = bench.post("/v1/transitions/t5/abort", &json!({})).await;
    assert_eq!((status, &aborted["cause"]), (StatusCode::OK, &json!("operator")));
    let (_, list) = bench.get("/v1/transitions").await;
    assert_eq!((&list["revision"], &list["items"][0]["outcome"]), (&json!(7), &json!("aborted")));
    let (_, spec) = bench.get("/v1/spec").await;
    let (status, applied) = {
        let (status, _, body) = bench.send(request(Method::PUT, "/v1/spec", spec.to_string())).await;
        (status, serde_json::from_slice::<Value>(&body).unwrap())
    };
    assert_eq!((status, applied), (StatusCode::OK, json!({"revision": 8})));
    let toml = HttpRequest::builder().method(Method::PUT).uri("/v1/spec");
    let toml =
        toml.header(header::CONTENT_TYPE, "application/toml").body(Body::from("cluster = 'd'\n")).unwrap();
    assert_eq!(bench.send(toml).await.0, StatusCode::OK);
    assert_eq!(bench.get("/v1/spec").await.1["cluster"], "d");
}

#[tokio::test(start_paused = true)]
async fn a_long_poll_answers_when_something_changes() {
    let bench = Bench::new();
    let (_, first) = bench.post("/v1/transitions", &json!({"targets": ["db=online"]})).await;
    let (_, headers, _) = bench.send(request(Method::GET, "/v1/transitions/t5", "")).await;
    let tag = headers[header::ETAG].clone();
    let poll = |tag: axum::http::HeaderValue| {
        let poll = HttpRequest::builder().uri("/v1/transitions/t5?wait_ms=99999999");
        bench.router.clone().oneshot(poll.header(header::IF_NONE_MATCH, tag).body(Body::empty()).unwrap())
    };
    // Nothing changes: the answer comes when the time is up, and no later than the most that it may be.
    let start = tokio::time::Instant::now();
    let unchanged = poll(tag.clone()).await.unwrap();
    assert_eq!((unchanged.status(), &unchanged.headers()[header::ETAG]), (StatusCode::OK, &tag));
    assert_eq!(start.elapsed().as_secs(), 30);
    // Seen up to an earlier revision: at once.
    let start = tokio::time::Instant::now();
    bench.get("/v1/transitions/t5?wait_ms=30000&after=4").await;
    assert_eq!(start.elapsed().as_secs(), 0);
    // It changes while somebody waits.
    let revision = first["revision"].as_u64().unwrap();
    let waiting = tokio::spawn(poll(tag));
    let (_, aborted) = bench.post("/v1/transitions/t5/abort", &json!({})).await;
    let answer = axum::body::to_bytes(waiting.await.unwrap().unwrap().into_body(), usize::MAX).await.unwrap();
    assert_eq!(serde_json::from_slice::<Value>(&answer).unwrap(), aborted);
    assert!(aborted["revision"].as_u64().unwrap() > revision);
    // It has ended: nothing more will come.
    let start = tokio::time::Instant::now();
    bench.get("/v1/transitions/t5?wait_ms=30000&after=99").await;
    assert_eq!(start.elapsed().as_secs(), 0);
}
