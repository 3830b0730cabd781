//! The public HTTP API under `/v1`: what readers see, and the way in for what operators ask.
//!
//! It shows acknowledged records only, and never changes anything itself: every write is a command to the engine.
//! Every error is a problem object with a code.

pub mod body;
pub mod event;
pub mod feed;
pub mod gate;
pub mod guard;
pub mod object;
mod openapi;
pub mod problem;
pub mod rehearsal;

use crate::server::handle::{Handle, Role, View};
use axum::Router;
use axum::body::Bytes;
use axum::extract::rejection::PathRejection;
use axum::extract::{Path, Query, Request as HttpRequest, State};
use axum::http::{HeaderMap, HeaderValue, StatusCode, Uri, header};
use axum::response::sse::{KeepAlive, Sse};
use axum::response::{IntoResponse, Response};
use body::{
    AwayBody, EmptyBody, FenceBody, ForgetBody, FreezeBody, LabelBody, PlanBody, ResolveBody, RunBody,
    ThawBody,
};
use event::Event;
use feed::Feed;
use gate::Fresh;
use lockstep_core::backup;
use lockstep_core::cluster;
use lockstep_core::engine::HostAsk;
use lockstep_core::id::{HostName, MemberId, TransitionId};
use lockstep_core::message::PROTOCOL;
use lockstep_core::rehearse;
use lockstep_core::request::{Code, Rejection};
use object::{
    Applied, Away, Freeze, Group, Health, Host, List, Member, Plan, Refused, Relations, Server, ServerName,
    Transition, Version,
};
use openapi::Routes;
use problem::{HttpCode, Problem};
use rehearsal::Rehearsal;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use std::hash::{DefaultHasher, Hash, Hasher};
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::Semaphore;

/// The longest that a long poll waits, in milliseconds. Too low: chatter. Too high: proxies in between give up
/// first.
pub const WAIT_MAX_MS: u64 = 30_000;
/// How long an answer waits for the snapshot that shows what it answers. Snapshots come every 50 ms.
const SNAPSHOT_WAIT_MAX: Duration = Duration::from_secs(5);
/// The most rehearsals at once; more are answered `busy`. Each may keep a processor at work for most of a minute, and
/// a machine may have no more than two.
pub const REHEARSALS_MAX: usize = 1;
/// How long whoever wants a host fenced waits for the answer: two handlers may use up their time, and a bit. The fencing
/// goes on after that.
pub const FENCE_WAIT_MAX: Duration = Duration::from_secs(150);
/// The most hosts that an answer names that may not know of a longer lease.
const MISSING_HOSTS_MAX: usize = 100;
/// Who asks, until there are credentials.
const PRINCIPAL: &str = "local";

/// What a server tells of itself.
#[derive(Debug, Clone)]
pub struct ServerInfo {
    /// The server's name.
    pub name: String,
    /// Where operators and agents reach it.
    pub url: String,
    /// Whether it shares its store with others.
    pub is_shared: bool,
    /// The program's version.
    pub version: &'static str,
}

#[derive(Debug, Clone)]
struct Shared {
    handle: Handle,
    feed: Feed,
    info: ServerInfo,
    /// The description of the API, written out.
    document: Bytes,
    rehearsals: Arc<Semaphore>,
}

/// The routes, without the agents' own. The server adds that one and serves.
pub fn router(handle: Handle, feed: Feed, info: ServerInfo) -> Router {
    let (router, document) = routes().finish(info.version);
    let document = Bytes::from(serde_json::to_vec(&document).expect("it is plain data"));
    let rehearsals = Arc::new(Semaphore::new(REHEARSALS_MAX));
    router.fallback(not_found).method_not_allowed_fallback(method_not_allowed).with_state(Shared {
        handle,
        feed,
        info,
        document,
        rehearsals,
    })
}

fn routes() -> Routes {
    const OK: StatusCode = StatusCode::OK;
    const BAD: StatusCode = StatusCode::BAD_REQUEST;
    const MISSING: StatusCode = StatusCode::NOT_FOUND;
    const BUSY: StatusCode = StatusCode::TOO_MANY_REQUESTS;
    const AWAY: StatusCode = StatusCode::SERVICE_UNAVAILABLE;
    const REJECTED: StatusCode = StatusCode::UNPROCESSABLE_ENTITY;
    let every = "All of them, at one revision.";
    Routes::new()
        .get("/v1/hosts", async |State(shared): Shares| list(&shared, Host::all), "Hosts", |says| {
            says.query::<Fresh>().answers::<List<Host>>(OK, every)
        })
        .post("/v1/hosts/{name}/undrain", undrain, "Let a drained host take members again", |says| {
            says.takes::<EmptyBody>(false).answers::<Host>(OK, "It does.").refuses(&[REJECTED, BUSY, AWAY])
        })
        .post("/v1/hosts/{name}/labels", label, "Set labels of a host, or take them away again", |says| {
            says.takes::<LabelBody>(true).answers::<Host>(OK, "It has them.").refuses(&[REJECTED, BUSY, AWAY])
        })
        .post("/v1/hosts/{name}/forget", forget, "Forget a host that is gone for good", |says| {
            says.takes::<ForgetBody>(false).answers::<Applied>(OK, "Its name is free.").refuses(&[
                REJECTED, BUSY, AWAY,
            ])
        })
        .post("/v1/hosts/{name}/fence", fence, "Make sure that a host has stopped, or say that it has", |says| {
            says.takes::<FenceBody>(false)
                .answers::<Host>(OK, "It has, unless it came back meanwhile: its liveness tells.")
                .refuses(&[REJECTED, BUSY, AWAY])
        })
        .get("/v1/groups", async |State(shared): Shares| list(&shared, Group::all), "Groups", |says| {
            says.query::<Fresh>().answers::<List<Group>>(OK, every)
        })
        .get("/v1/members", async |State(shared): Shares| list(&shared, Member::all), "Members", |says| {
            says.query::<Fresh>().answers::<List<Member>>(OK, every)
        })
        .post("/v1/members/{member}/resolve", resolve, "Say where a member is that cannot tell", |says| {
            says.takes::<ResolveBody>(true)
                .answers::<Member>(OK, "It counts as being there.")
                .refuses(&[REJECTED, BUSY, AWAY])
        })
        .get(
            "/v1/relations",
            async |State(shared): Shares| json(OK, &Relations::of(&shared.handle.view().cluster)),
            "Relations between groups",
            |says| says.query::<Fresh>().answers::<Relations>(OK, every),
        )
        .get(
            "/v1/transitions",
            async |State(shared): Shares| list(&shared, Transition::all),
            "Transitions",
            |says| {
                let text = "All that are kept, oldest first, without plan, votes and steps.";
                says.query::<Fresh>().answers::<List<Transition>>(OK, text)
            },
        )
        .post("/v1/transitions", run, "Plan, record and run a transition", |says| {
            says.takes::<RunBody>(true)
                .answers::<Transition>(StatusCode::ACCEPTED, "It is recorded, now or by the same request before.")
                .answers::<Transition>(OK, "There was nothing to do: it has no id.")
                .refuses(&[StatusCode::CONFLICT, REJECTED, BUSY, AWAY])
        })
        .get("/v1/transitions/{id}", transition, "One transition, whole", |says| {
            says.query::<Wait>()
                .header("If-None-Match", "With `wait_ms`: the `ETag` of what the asker has seen.")
                .answers::<Transition>(OK, "As it is now.")
                .refuses(&[BAD, MISSING])
        })
        .post("/v1/transitions/{id}/abort", abort, "Abort a transition that is not decided yet", |says| {
            says.takes::<EmptyBody>(false)
                .answers::<Transition>(OK, "It is aborted, now or before.")
                .refuses(&[MISSING, REJECTED, BUSY, AWAY])
        })
        .post("/v1/plans", plan, "What a run would do", |says| {
            says.takes::<PlanBody>(true).answers::<Plan>(OK, "The plan.").refuses(&[REJECTED, BUSY, AWAY])
        })
        .post("/v1/rehearsals", rehearse_now, "What a run would leave behind, for every single fault", |says| {
            says.takes::<PlanBody>(true).answers::<Rehearsal>(OK, "Every case.").refuses(&[REJECTED, BUSY, AWAY])
        })
        .get("/v1/freezes", async |State(shared): Shares| list(&shared, Freeze::all), "Freezes", |says| {
            says.query::<Fresh>().answers::<List<Freeze>>(OK, every)
        })
        .post("/v1/freezes", freeze, "Keep planned transitions from moving groups, or anything", |says| {
            says.takes::<FreezeBody>(true)
                .answers::<List<Freeze>>(OK, "It is frozen: all that is, at one revision.")
                .refuses(&[REJECTED, BUSY, AWAY])
        })
        .post("/v1/freezes/thaw", thaw, "End freezes", |says| {
            says.takes::<ThawBody>(false)
                .answers::<List<Freeze>>(OK, "It is thawed: all that is frozen still.")
                .refuses(&[REJECTED, BUSY, AWAY])
        })
        .get("/v1/spec", spec, "The declared cluster", |says| {
            says.query::<Fresh>().answers_any(OK, "As it was declared.", serde_json::json!({ "application/json": spec_schema() }))
                .refuses(&[MISSING])
        })
        .put("/v1/spec", apply, "Declare the cluster", |says| {
            let content = serde_json::json!({
                "application/json": spec_schema(),
                "application/toml": { "schema": { "type": "string" } },
            });
            says.takes_any(true, content)
                .answers::<Applied>(OK, "It is in force.")
                .refuses(&[REJECTED, BUSY, AWAY])
        })
        .get("/v1/backup", whole, "A backup of the whole cluster", |says| {
            let schema = serde_json::json!({ "schema": { "type": "string" } });
            says.query::<Fresh>().answers_any(OK, "A backup file.", serde_json::json!({ "application/octet-stream": schema }))
        })
        .post("/v1/server/away", away, "Tell the hosts of a longer lease before the server goes away", |says| {
            says.takes::<AwayBody>(true)
                .answers::<Away>(OK, "How many hosts go by it.")
                .refuses(&[REJECTED, BUSY, AWAY])
        })
        .get("/v1/server", server, "What this server is, and which one is active", |says| {
            says.answers::<Server>(OK, "As far as it knows.")
        })
        .post("/v1/server/step-down", step_down, "Let another server take over", |says| {
            says.takes::<EmptyBody>(false)
                .answers::<Health>(OK, "It reigns no more, and lets the others go first.")
                .refuses(&[REJECTED, BUSY, AWAY])
        })
        .post("/v1/server/stop", stop, "Stop the server", |says| {
            says.takes::<EmptyBody>(false)
                .answers::<Health>(OK, "It stops once this is answered.")
                .refuses(&[BUSY, AWAY])
        })
        .get("/v1/events", events, "What happens, as server-sent events", |says| {
            says.query::<Since>()
                .header("Last-Event-ID", "Like `since`, and before it: the `id` of the last event that was read.")
                .streams::<Event>(
                    "Records have their revision as `id` and are events of the default type; what is provisional has \
                     no `id` and is of the type `provisional`. Comments keep the connection alive, and say why it ends.",
                )
                .refuses(&[BAD, StatusCode::GONE, BUSY, AWAY])
        })
        .get("/v1/openapi.json", described, "This description", |says| {
            let schema = serde_json::json!({ "schema": { "type": "object" } });
            says.answers_any(OK, "OpenAPI 3.1.", serde_json::json!({ "application/json": schema }))
        })
        .describe("get", "/v1/agent", "An agent's session; docs/protocol.md is its specification", |says| {
            says.answers_any(
                StatusCode::SWITCHING_PROTOCOLS,
                "A WebSocket, one JSON object a message.",
                serde_json::json!({}),
            )
        })
        .get("/livez", async || health("alive"), "Whether the process lives", |says| {
            says.answers::<Health>(OK, "It does.")
        })
        .get("/readyz", ready, "Whether the server can be asked", |says| {
            says.answers::<Health>(OK, "It can.").refuses(&[AWAY])
        })
        .get("/version", version, "What runs", |says| says.answers::<Version>(OK, "This does."))
}

/// A spec is what `cluster.toml` has; what checks it is core.
fn spec_schema() -> serde_json::Value {
    let schema = serde_json::json!({
        "type": "object",
        "required": ["cluster"],
        "properties": {
            "cluster": { "type": "string" },
            "lease_ms": { "type": "integer" },
            "groups": { "type": "object", "additionalProperties": { "type": "object" } },
            "relations": { "type": "array", "items": { "type": "object" } },
            "lifecycles": { "type": "object", "additionalProperties": { "type": "object" } },
        },
    });
    serde_json::json!({ "schema": schema })
}

type Shares = State<Shared>;

fn json<T: Serialize>(status: StatusCode, value: &T) -> Response {
    let body = serde_json::to_vec(value).expect("the API's objects are plain data");
    let headers = [(header::CONTENT_TYPE, "application/json"), (header::CACHE_CONTROL, "no-store")];
    (status, headers, body).into_response()
}

async fn not_found(uri: Uri) -> Problem {
    let path: String = uri.path().chars().take(80).collect();
    Problem::http(
        HttpCode::NotFound,
        format!("there is nothing at {path}"),
        "the lists are /v1/hosts, /v1/groups, /v1/members, /v1/relations, /v1/transitions and /v1/freezes",
    )
}

async fn method_not_allowed(request: HttpRequest) -> Problem {
    let path: String = request.uri().path().chars().take(80).collect();
    let method: String = request.method().as_str().chars().take(20).collect();
    let help = "the Allow header says what may be done to it";
    Problem::http(HttpCode::MethodNotAllowed, format!("{path} takes no {method}"), help)
}

fn list<T: Serialize>(shared: &Shared, items: fn(&View) -> Vec<T>) -> Response {
    let view = shared.handle.view();
    json(StatusCode::OK, &List { revision: view.cluster.revision.0, items: items(&view) })
}

async fn plan(State(shared): Shares, request: HttpRequest) -> Result<Response, Problem> {
    let body: PlanBody = body::read(request).await?;
    let plan = shared.handle.plan(body.request()?).await?;
    Ok(json(StatusCode::OK, &Plan::of(&plan)))
}

/// From the newest snapshot, on a thread of its own: the engine's driver hears nothing of it.
async fn rehearse_now(State(shared): Shares, request: HttpRequest) -> Result<Response, Problem> {
    let body: PlanBody = body::read(request).await?;
    let asked = body.request()?;
    // It stays taken until the work is done, also when whoever asked has gone.
    let Ok(place) = shared.rehearsals.clone().try_acquire_owned() else {
        let help =
            "try again later, or rehearse from files: lockstep rehearse -f cluster.toml --state state.json";
        return Err(Rejection::new(Code::Busy, "another rehearsal is under way", help).into());
    };
    let View { cluster, reported, .. } = shared.handle.view();
    let work = tokio::task::spawn_blocking(move || {
        let _place = place;
        let scores =
            reported.iter().filter_map(|(member, said)| Some((member.clone(), said.score?))).collect();
        let rehearsal = rehearse::rehearse(&cluster, &asked, &scores)?;
        Ok(json(StatusCode::OK, &Rehearsal::of(&rehearsal)))
    });
    work.await.expect("it is neither cancelled nor does it panic")
}

async fn run(State(shared): Shares, request: HttpRequest) -> Result<Response, Problem> {
    let body: RunBody = body::read(request).await?;
    let request = body.request(PRINCIPAL)?;
    let Some(id) = shared.handle.run(request.clone()).await? else {
        return Ok(json(StatusCode::OK, &Transition::nothing(&request)));
    };
    let view = wait_for(&shared.handle, |view| view.cluster.transition(&id).is_some()).await?;
    let mut response = show(&view, id, StatusCode::ACCEPTED)?;
    let location = HeaderValue::try_from(format!("/v1/transitions/{id}")).expect("ids are plain text");
    response.headers_mut().insert(header::LOCATION, location);
    Ok(response)
}

/// The first snapshot that shows what was just acknowledged, so that whoever was told of it can read it.
async fn wait_for(handle: &Handle, is_there: impl FnMut(&View) -> bool) -> Result<View, Problem> {
    let mut watch = handle.watch();
    match tokio::time::timeout(SNAPSHOT_WAIT_MAX, watch.wait_for(is_there)).await {
        Ok(Ok(view)) => Ok(view.clone()),
        Ok(Err(_)) | Err(_) => {
            let message = "it is recorded, and the server cannot show it yet";
            let help = "ask again with the same request id: it is carried out once";
            Err(Rejection::new(Code::StoreUnavailable, message, help).into())
        }
    }
}

fn show(view: &View, id: TransitionId, status: StatusCode) -> Result<Response, Problem> {
    let transition = view.cluster.transition(&id).ok_or_else(|| unknown(id))?;
    let mut response = json(status, &Transition::of(view, id, transition));
    response.headers_mut().insert(header::ETAG, etag(view, id, transition));
    Ok(response)
}

/// What the object is, without the revision that it was read at: a hash over all that it is made of.
fn etag(view: &View, id: TransitionId, transition: &cluster::Transition) -> HeaderValue {
    let provisional = if transition.decision.is_none() { view.votes.get(&id) } else { None };
    let mut hasher = DefaultHasher::new();
    (transition, object::phase(view, id, transition), view.blockers.get(&id), provisional).hash(&mut hasher);
    HeaderValue::try_from(format!("\"{:016x}\"", hasher.finish())).expect("hexadecimal is plain text")
}

fn unknown(id: TransitionId) -> Problem {
    let help = "`lockstep transition list` shows those that are kept";
    Problem::http(HttpCode::NotFound, format!("there is no transition {id}"), help)
}

fn transition_id(path: Result<Path<String>, PathRejection>) -> Result<TransitionId, Problem> {
    let bad = |detail| Problem::http(HttpCode::BadRequest, detail, "transitions are called t1, t42, ...");
    let Path(text) = path.map_err(|rejection| bad(rejection.body_text()))?;
    text.parse().map_err(bad)
}

#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
struct Wait {
    /// How long to wait for a change, in milliseconds.
    #[serde(default)]
    wait_ms: u64,
    /// The revision that the asker has seen.
    after: Option<u64>,
    /// Nothing short of this is news.
    until: Option<Until>,
    /// Whether all that was acknowledged by any server before this was asked has to be in the answer.
    #[serde(default)]
    #[expect(dead_code, reason = "the gate reads it")]
    consistent: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
#[schemars(inline)]
enum Until {
    Outcome,
}

/// One transition; with `wait_ms`, as soon as it differs from what the asker has seen: the `ETag` in
/// `If-None-Match`, or, less exactly, anything up to the revision in `after`; with `until=outcome`, as soon as it has
/// ended. A transition that has ended is answered at once.
async fn transition(
    State(shared): Shares,
    path: Result<Path<String>, PathRejection>,
    uri: Uri,
    headers: HeaderMap,
) -> Result<Response, Problem> {
    let id = transition_id(path)?;
    let Query(wait) = Query::<Wait>::try_from_uri(&uri).map_err(|rejection| {
        let help = "wait_ms and after are whole numbers from 0 on, until is outcome";
        Problem::http(HttpCode::BadRequest, rejection.body_text(), help)
    })?;
    let mut watch = shared.handle.watch();
    let mut view = watch.borrow_and_update().clone();
    if wait.wait_ms > 0 {
        let tag_of = |view: &View| {
            let transition = view.cluster.transition(&id)?;
            Some(etag(view, id, transition))
        };
        let is_patient = wait.until == Some(Until::Outcome);
        let now = if is_patient { None } else { tag_of(&view) };
        let seen = match (headers.get(header::IF_NONE_MATCH), wait.after) {
            _ if is_patient => None,
            (Some(tag), _) => Some(tag.clone()),
            (None, Some(revision)) if revision < view.cluster.revision.0 => None,
            (None, _) => now.clone(),
        };
        let has_ended =
            |view: &View| view.cluster.transition(&id).is_none_or(|known| known.outcome.is_some());
        let wait = Duration::from_millis(wait.wait_ms.min(WAIT_MAX_MS));
        let changed = async {
            let mut now = now;
            while !has_ended(&view) && now == seen && watch.changed().await.is_ok() {
                view = watch.borrow_and_update().clone();
                now = if is_patient { seen.clone() } else { tag_of(&view) };
            }
        };
        // When the time is up it is answered as it is.
        let _ = tokio::time::timeout(wait, changed).await;
    }
    show(&view, id, StatusCode::OK)
}

async fn abort(
    State(shared): Shares,
    path: Result<Path<String>, PathRejection>,
    request: HttpRequest,
) -> Result<Response, Problem> {
    let id = transition_id(path)?;
    body::read_empty(request).await?;
    if shared.handle.view().cluster.transition(&id).is_none() {
        return Err(unknown(id));
    }
    shared.handle.abort(id).await?;
    let is_decided =
        |view: &View| view.cluster.transition(&id).is_none_or(|transition| transition.decision.is_some());
    let view = wait_for(&shared.handle, is_decided).await?;
    show(&view, id, StatusCode::OK)
}

async fn undrain(
    State(shared): Shares,
    path: Result<Path<String>, PathRejection>,
    request: HttpRequest,
) -> Result<Response, Problem> {
    let name = host_name(path)?;
    body::read_empty(request).await?;
    show_host(&shared, name, HostAsk::Undrain).await
}

async fn label(
    State(shared): Shares,
    path: Result<Path<String>, PathRejection>,
    request: HttpRequest,
) -> Result<Response, Problem> {
    let name = host_name(path)?;
    let body: LabelBody = body::read(request).await?;
    show_host(&shared, name, HostAsk::Label { labels: body.checked()? }).await
}

async fn forget(
    State(shared): Shares,
    path: Result<Path<String>, PathRejection>,
    request: HttpRequest,
) -> Result<Response, Problem> {
    let name = host_name(path)?;
    let ForgetBody { stopped } = body::read_or_default(request).await?;
    let revision = shared.handle.ask_of_host(name, HostAsk::Forget { is_stopped: stopped }).await?;
    wait_for(&shared.handle, |view| view.cluster.revision >= revision).await?;
    Ok(json(StatusCode::OK, &Applied { revision: revision.0 }))
}

/// With a handler it takes as long as that does.
async fn fence(
    State(shared): Shares,
    path: Result<Path<String>, PathRejection>,
    request: HttpRequest,
) -> Result<Response, Problem> {
    let name = host_name(path)?;
    let body: FenceBody = body::read_or_default(request).await?;
    let fenced = show_host(&shared, name.clone(), body.ask(PRINCIPAL)?);
    tokio::time::timeout(FENCE_WAIT_MAX, fenced).await.unwrap_or_else(|_| {
        let message = format!("host {name} is still being fenced after {} s", FENCE_WAIT_MAX.as_secs());
        let help =
            "it goes on: `lockstep host list` shows when it is fenced, the server's log what is in the way";
        Err(Rejection::new(Code::Busy, message, help).into())
    })
}

async fn resolve(
    State(shared): Shares,
    path: Result<Path<String>, PathRejection>,
    request: HttpRequest,
) -> Result<Response, Problem> {
    let bad = |detail| Problem::http(HttpCode::BadRequest, detail, "name a member: GROUP@HOST");
    let Path(text) = path.map_err(|rejection| bad(rejection.body_text()))?;
    let id: MemberId = text.parse().map_err(|error: lockstep_core::id::NameError| bad(error.to_string()))?;
    let body: ResolveBody = body::read(request).await?;
    let (state, reason) = body.checked()?;
    let revision = shared.handle.resolve(id.clone(), state, PRINCIPAL.to_owned(), reason).await?;
    let view = wait_for(&shared.handle, |view| view.cluster.revision >= revision).await?;
    // One that was leaving is gone once it is known to be down.
    let member = view.cluster.members.get(&id).map(|member| Member::of(&view, &id, member));
    Ok(json(StatusCode::OK, &member))
}

async fn away(State(shared): Shares, request: HttpRequest) -> Result<Response, Problem> {
    let AwayBody { lease_ms } = body::read(request).await?;
    let (told, missing) = shared.handle.away(lease_ms, PRINCIPAL.to_owned()).await?;
    let missing_hosts = object::strings(missing.iter().take(MISSING_HOSTS_MAX));
    let away = Away { lease_ms, told: told as u64, missing: missing.len() as u64, missing_hosts };
    Ok(json(StatusCode::OK, &away))
}

/// What each server says of itself.
async fn server(State(shared): Shares) -> Response {
    let view = shared.handle.view();
    let refused = Refused::all(&view);
    let View { role, cluster, .. } = view;
    let ServerInfo { name, url, is_shared, .. } = shared.info;
    let itself = ServerName { name: name.clone(), url: url.clone() };
    let (role, active) = match role {
        Role::Starting => ("starting", None),
        Role::Standby { active } => {
            ("standby", active.map(|active| ServerName { name: active.name, url: active.url }))
        }
        Role::Active => ("active", Some(itself)),
    };
    let (role, revision, waits_for) = (role.to_owned(), cluster.revision.0, shared.handle.waits_for());
    let cluster = cluster.id.as_ref().map(ToString::to_string);
    let server = Server { name, url, role, revision, shared: is_shared, active, waits_for, cluster, refused };
    json(StatusCode::OK, &server)
}

async fn step_down(State(shared): Shares, request: HttpRequest) -> Result<Response, Problem> {
    body::read_empty(request).await?;
    shared.handle.step_down().await?;
    Ok(health("stepped-down"))
}

async fn stop(State(shared): Shares, request: HttpRequest) -> Result<Response, Problem> {
    body::read_empty(request).await?;
    shared.handle.stop().await?;
    Ok(health("stopping"))
}

fn host_name(path: Result<Path<String>, PathRejection>) -> Result<HostName, Problem> {
    let bad = |detail| Problem::http(HttpCode::BadRequest, detail, "name a host: GET /v1/hosts lists them");
    let Path(text) = path.map_err(|rejection| bad(rejection.body_text()))?;
    text.parse().map_err(|error: lockstep_core::id::NameError| bad(error.to_string()))
}

async fn show_host(shared: &Shared, name: HostName, ask: HostAsk) -> Result<Response, Problem> {
    let revision = shared.handle.ask_of_host(name.clone(), ask).await?;
    let view = wait_for(&shared.handle, |view| view.cluster.revision >= revision).await?;
    let host = view.cluster.hosts.get(&name).map(|host| Host::of(&view, &name, host));
    Ok(json(StatusCode::OK, &host))
}

async fn freeze(State(shared): Shares, request: HttpRequest) -> Result<Response, Problem> {
    let body: FreezeBody = body::read(request).await?;
    let (groups, end, reason) = body.checked()?;
    let revision = shared.handle.freeze(groups, end, reason, PRINCIPAL.to_owned()).await?;
    wait_for(&shared.handle, |view| view.cluster.revision >= revision).await?;
    Ok(list(&shared, Freeze::all))
}

async fn thaw(State(shared): Shares, request: HttpRequest) -> Result<Response, Problem> {
    let ThawBody { groups } = body::read_or_default(request).await?;
    let revision = shared.handle.thaw(body::groups(&groups)?, PRINCIPAL.to_owned()).await?;
    wait_for(&shared.handle, |view| view.cluster.revision >= revision).await?;
    Ok(list(&shared, Freeze::all))
}

async fn spec(State(shared): Shares) -> Result<Response, Problem> {
    let view = shared.handle.view();
    match &view.cluster.spec_file {
        Some(file) => Ok(json(StatusCode::OK, file.as_ref())),
        None => {
            let help = "declare it: lockstep apply -f cluster.toml";
            Err(Problem::http(HttpCode::NotFound, "no cluster has been declared yet", help))
        }
    }
}

async fn apply(State(shared): Shares, request: HttpRequest) -> Result<Response, Problem> {
    let spec = body::read_spec(request).await?;
    let revision = shared.handle.apply(spec, PRINCIPAL.to_owned()).await?;
    wait_for(&shared.handle, |view| view.cluster.revision >= revision).await?;
    Ok(json(StatusCode::OK, &Applied { revision: revision.0 }))
}

/// All that is acknowledged, as one file: readers' cluster is of one revision, so the file is.
async fn whole(State(shared): Shares) -> Response {
    let cluster = shared.handle.view().cluster;
    let work = tokio::task::spawn_blocking(move || backup::seal(&cluster));
    let bytes = work.await.expect("it is neither cancelled nor does it panic");
    let headers = [(header::CONTENT_TYPE, "application/octet-stream"), (header::CACHE_CONTROL, "no-store")];
    (StatusCode::OK, headers, bytes).into_response()
}

/// Ready once this server answers readers, and the active one once its reign is recorded; while it runs.
async fn ready(State(shared): Shares) -> Result<Response, Problem> {
    let watch = shared.handle.watch();
    let role = match (shared.handle.role(), watch.borrow().cluster.reign.0 > 0) {
        (Role::Standby { .. }, _) => Some("standby"),
        (Role::Active, true) => Some("active"),
        (Role::Active, false) => None,
        (Role::Starting, _) => return Err(shared.handle.starting().into()),
    };
    if let Some(role) = role.filter(|_| watch.has_changed().is_ok()) {
        let (status, role) = ("ready".to_owned(), Some(role.to_owned()));
        return Ok(json(StatusCode::OK, &Health { status, role }));
    }
    let message = "the server is not ready: its reign has not begun, or is over";
    Err(Rejection::new(Code::NotActive, message, "try again later").into())
}

fn health(status: &str) -> Response {
    json(StatusCode::OK, &Health { status: status.to_owned(), role: None })
}

async fn described(State(shared): Shares) -> Response {
    ([(header::CONTENT_TYPE, "application/json")], shared.document).into_response()
}

#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
struct Since {
    /// The revision that the asker has seen; the newest when it is not given.
    since: Option<u64>,
    /// Whether to go on with what happens later; otherwise the stream ends with what has happened so far.
    #[serde(default = "yes")]
    follow: bool,
}

fn yes() -> bool {
    true
}

/// What has happened since a revision, and what happens. A browser that has lost its connection asks again under the
/// same address and says in a header how far it had come: that is newer than the address.
async fn events(State(shared): Shares, uri: Uri, headers: HeaderMap) -> Result<Response, Problem> {
    let help =
        "since is a whole number from 0 on, follow is true or false; Last-Event-ID is the id of an event";
    let bad = |detail: String| Problem::http(HttpCode::BadRequest, detail, help);
    let Query(Since { since, follow }) =
        Query::try_from_uri(&uri).map_err(|rejection| bad(rejection.body_text()))?;
    let last = headers.get("last-event-id").filter(|last| !last.is_empty());
    let last: Option<u64> = match last.map(|last| last.to_str().ok().and_then(|last| last.parse().ok())) {
        Some(None) => return Err(bad("the Last-Event-ID is none that was given out".to_owned())),
        Some(Some(last)) => Some(last),
        None => None,
    };
    let stream = shared.feed.subscribe(last.or(since), follow).await?;
    let heartbeat = KeepAlive::new().interval(feed::HEARTBEAT).text(feed::KEEPALIVE);
    Ok(Sse::new(stream).keep_alive(heartbeat).into_response())
}

async fn version(State(shared): Shares) -> Response {
    let ServerInfo { name, version, .. } = &shared.info;
    json(
        StatusCode::OK,
        &Version { version: (*version).to_owned(), server: name.clone(), protocol: PROTOCOL },
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use axum::body::Body;
    use tokio::sync::{mpsc, watch};

    #[tokio::test]
    async fn rehearsals_have_few_places() {
        let (commands, _asked) = mpsc::channel(1);
        let (_publish, view) = watch::channel(View::default());
        let handle = Handle::new(commands, view, watch::Sender::new(None).subscribe());
        let info =
            ServerInfo { name: "s1".to_owned(), url: String::new(), is_shared: false, version: "0.0.0" };
        let feed = Feed::reading(|_| unreachable!("nobody asks for events"), handle.watch());
        let rehearsals = Arc::new(Semaphore::new(REHEARSALS_MAX));
        let taken = rehearsals.clone().try_acquire_many_owned(REHEARSALS_MAX as u32).unwrap();
        let shared = Shared { handle, feed, info, document: Bytes::new(), rehearsals };
        let ask = async || {
            let request = HttpRequest::builder().header(header::CONTENT_TYPE, "application/json");
            let request = request.body(Body::from(r#"{"targets":["db=up"]}"#)).unwrap();
            rehearse_now(State(shared.clone()), request).await.unwrap_err()
        };
        let busy = ask().await;
        assert_eq!((busy.status, busy.code.as_str()), (429, "busy"));
        assert_eq!(busy.into_response().headers()[header::RETRY_AFTER], "1");
        drop(taken);
        assert_eq!(ask().await.code, "unknown-group", "a place is free again");
        assert_eq!(ask().await.code, "unknown-group", "and each gives it back");
    }
}
