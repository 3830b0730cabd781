//! What a request meets before its handler: which server may answer it, and from when on.
//!
//! Readers are answered by every server. What changes anything, and agents, are sent to the active one; so no handler
//! has to know what its server is.

use super::problem::{HttpCode, Problem};
use crate::server::handle::{Handle, Role};
use crate::server::role::not_active;
use crate::store::{self, Candidate, Store};
use axum::Router;
use axum::extract::{Query, Request, State};
use axum::http::{HeaderValue, Method, StatusCode, Uri, header};
use axum::middleware::{self, Next};
use axum::response::{IntoResponse, Response};
use futures_util::future::BoxFuture;
use lockstep_core::id::Index;
use lockstep_core::request::{Code, Rejection};
use schemars::JsonSchema;
use serde::Deserialize;
use std::sync::Arc;
use std::time::Duration;
use tokio::time::timeout;

/// How long a consistent read waits for this server to have read the journal so far. Too low: a standby that has a lot to
/// read refuses. Too high: a reader waits for one that cannot reach the store, instead of asking another one.
const CONSISTENT_MAX: Duration = Duration::from_secs(5);
/// What each server answers for itself, whatever it is at the moment.
const OWN: [&str; 3] = ["/v1/server", "/v1/server/stop", "/v1/openapi.json"];

type Head = BoxFuture<'static, Result<Index, store::Error>>;

/// What the gate looks at; cheap to clone.
#[derive(Clone)]
pub struct Gate {
    handle: Handle,
    head: Arc<dyn Fn() -> Head + Send + Sync>,
}

impl std::fmt::Debug for Gate {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Gate").field("handle", &self.handle).finish_non_exhaustive()
    }
}

/// How fresh an answer has to be.
#[derive(Debug, Default, Deserialize, JsonSchema)]
pub(super) struct Fresh {
    /// Whether all that was acknowledged by any server before this was asked has to be in the answer.
    #[serde(default)]
    consistent: bool,
}

/// The routes behind the gate.
pub fn gated(router: Router, gate: Gate) -> Router {
    router.layer(middleware::from_fn_with_state(gate, pass))
}

async fn pass(State(gate): State<Gate>, request: Request, next: Next) -> Result<Response, Problem> {
    let (method, uri) = (request.method(), request.uri());
    let is_own = !uri.path().starts_with("/v1/") || OWN.contains(&uri.path());
    if !is_own {
        let is_read = matches!(*method, Method::GET | Method::HEAD) && uri.path() != "/v1/agent";
        match gate.handle.role() {
            Role::Active => {}
            Role::Standby { active: _ } if is_read => {}
            Role::Standby { active: Some(active) } => return Ok(elsewhere(&active, uri)),
            Role::Standby { active: None } => return Err(not_active().into()),
            Role::Starting => return Err(gate.handle.starting().into()),
        }
        if is_read && is_consistent(uri)? {
            gate.catch_up().await?;
        }
    }
    Ok(next.run(request).await)
}

/// The same, of the active server. Whoever follows it sends the same method and body again.
fn elsewhere(active: &Candidate, uri: &Uri) -> Response {
    let path = uri.path_and_query().map_or("/", |path| path.as_str());
    match HeaderValue::try_from(format!("{}{path}", active.url)) {
        Ok(location) => {
            let headers =
                [(header::LOCATION, location), (header::CACHE_CONTROL, HeaderValue::from_static("no-store"))];
            (StatusCode::TEMPORARY_REDIRECT, headers).into_response()
        }
        // It says of itself what is no address.
        Err(_) => Problem::from(not_active()).into_response(),
    }
}

fn is_consistent(uri: &Uri) -> Result<bool, Problem> {
    // Most are asked without.
    if uri.query().is_none() {
        return Ok(false);
    }
    let bad = "consistent is true or false";
    let fresh = Query::<Fresh>::try_from_uri(uri);
    fresh
        .map(|Query(fresh)| fresh.consistent)
        .map_err(|rejection| Problem::http(HttpCode::BadRequest, rejection.body_text(), bad))
}

impl Gate {
    /// Before a server that may read `store`.
    pub fn new(handle: Handle, store: impl Store) -> Self {
        let head = move || -> Head {
            let store = store.clone();
            Box::pin(async move { store.head().await })
        };
        Self { handle, head: Arc::new(head) }
    }

    /// Waits until readers are shown all that the store has now. A server that does not know yet that it is deposed asks
    /// the store too, so it shows nothing outdated.
    async fn catch_up(&self) -> Result<(), Problem> {
        let caught_up = timeout(CONSISTENT_MAX, async {
            let head = (self.head)().await?;
            // It ends with the server.
            _ = self.handle.watch().wait_for(|view| view.cluster.revision >= head).await;
            Ok::<_, store::Error>(())
        });
        let why = match caught_up.await {
            Ok(Ok(())) => return Ok(()),
            Ok(Err(error)) => error.to_string(),
            Err(_) => format!("this server has not read the journal to its end in {CONSISTENT_MAX:?}"),
        };
        let help = "ask another server, or without consistent=true for what this one knows";
        Err(Rejection::new(Code::StoreUnavailable, why, help).into())
    }
}
