//! The public HTTP API under `/v1`: what readers see, and the way in for what operators ask.
//!
//! It shows acknowledged records only, and never changes anything itself: every write is a command to the engine.
//! Every error is a problem object with a code.

pub mod body;
pub mod clock;
pub mod object;
pub mod problem;
pub mod rehearsal;

use crate::server::handle::{Handle, View};
use axum::Router;
use axum::extract::rejection::PathRejection;
use axum::extract::{Path, Query, Request as HttpRequest, State};
use axum::http::{HeaderMap, HeaderValue, StatusCode, Uri, header};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use body::{PlanBody, RunBody};
use lockstep_core::backup;
use lockstep_core::cluster;
use lockstep_core::id::TransitionId;
use lockstep_core::message::PROTOCOL;
use lockstep_core::rehearse;
use lockstep_core::request::{Code, Rejection};
use object::{Applied, Group, Host, List, Member, Plan, Relation, Transition, Version};
use problem::{HttpCode, Problem};
use rehearsal::Rehearsal;
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
/// Who asks, until there are credentials.
const PRINCIPAL: &str = "local";

/// What a server tells of itself.
#[derive(Debug, Clone)]
pub struct ServerInfo {
    /// The server's name.
    pub name: String,
    /// The program's version.
    pub version: &'static str,
}

#[derive(Debug, Clone)]
struct Shared {
    handle: Handle,
    info: ServerInfo,
    rehearsals: Arc<Semaphore>,
}

/// The routes, without the agents' own. The server adds that one and serves.
pub fn router(handle: Handle, info: ServerInfo) -> Router {
    Router::new()
        .route("/v1/hosts", get(async |State(shared): Shares| list(&shared, Host::all)))
        .route("/v1/groups", get(async |State(shared): Shares| list(&shared, Group::all)))
        .route("/v1/members", get(async |State(shared): Shares| list(&shared, Member::all)))
        .route("/v1/relations", get(async |State(shared): Shares| list(&shared, Relation::all)))
        .route("/v1/transitions", get(async |State(shared): Shares| list(&shared, Transition::all)).post(run))
        .route("/v1/transitions/{id}", get(transition))
        .route("/v1/transitions/{id}/abort", post(abort))
        .route("/v1/plans", post(plan))
        .route("/v1/rehearsals", post(rehearse_now))
        .route("/v1/spec", get(spec).put(apply))
        .route("/v1/backup", get(whole))
        .route("/livez", get(async || json(StatusCode::OK, &serde_json::json!({ "status": "alive" }))))
        .route("/readyz", get(ready))
        .route("/version", get(version))
        .fallback(not_found)
        .method_not_allowed_fallback(method_not_allowed)
        .with_state(Shared { handle, info, rehearsals: Arc::new(Semaphore::new(REHEARSALS_MAX)) })
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
        "the lists are /v1/hosts, /v1/groups, /v1/members, /v1/relations and /v1/transitions",
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
    let plan = shared.handle.plan(body::targets(&body.targets)?).await?;
    Ok(json(StatusCode::OK, &Plan::of(&plan)))
}

/// From the newest snapshot, on a thread of its own: the engine's driver hears nothing of it.
async fn rehearse_now(State(shared): Shares, request: HttpRequest) -> Result<Response, Problem> {
    let body: PlanBody = body::read(request).await?;
    let targets = body::targets(&body.targets)?;
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
        let rehearsal = rehearse::rehearse(&cluster, &targets, &scores)?;
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
    (transition, object::phase(view, id, transition), provisional).hash(&mut hasher);
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

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct Wait {
    /// How long to wait for a change, in milliseconds.
    #[serde(default)]
    wait_ms: u64,
    /// The revision that the asker has seen.
    after: Option<u64>,
    /// Nothing short of this is news.
    until: Option<Until>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
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

/// Ready once this server's reign is recorded, and while the engine runs.
async fn ready(State(shared): Shares) -> Result<Response, Problem> {
    let watch = shared.handle.watch();
    let reigns = watch.borrow().cluster.reign.0 > 0;
    if reigns && watch.has_changed().is_ok() {
        return Ok(json(StatusCode::OK, &serde_json::json!({ "status": "ready" })));
    }
    let message = "the server is not ready: its reign has not begun, or is over";
    Err(Rejection::new(Code::NotActive, message, "try again later").into())
}

async fn version(State(shared): Shares) -> Response {
    let ServerInfo { name, version } = &shared.info;
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
        let handle = Handle::new(commands, view);
        let info = ServerInfo { name: "s1".to_owned(), version: "0.0.0" };
        let rehearsals = Arc::new(Semaphore::new(REHEARSALS_MAX));
        let taken = rehearsals.clone().try_acquire_many_owned(REHEARSALS_MAX as u32).unwrap();
        let shared = Shared { handle, info, rehearsals };
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
