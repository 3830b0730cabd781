//! The server: a task that stands by or reigns (`role`). While it stands by it follows the journal (`follow`); while it
//! reigns it owns the engine (`driver`), and sessions with agents (`session`) and the public API ([`crate::api`]) send it
//! inputs and carry out its outputs, over connections that `serve` bounds. Readers are served in either role.

mod driver;
mod follow;
pub mod handle;
pub(crate) mod role;
mod saver;
mod serve;
mod session;

use crate::api::feed::Feed;
use crate::api::gate::{Gate, gated};
use crate::api::guard::guarded;
use crate::api::{self, ServerInfo};
use crate::cli::option::ServerOptions;
use crate::store::{self, Candidate, Embedded, Etcd, Store};
use axum::Router;
use axum::routing::get;
use driver::COMMANDS_MAX;
pub(crate) use follow::Replayed;
use handle::{Handle, View};
use lockstep_core::id::Index;
use lockstep_core::snapshot::Unreadable;
use lockstep_core::time::{Now, Time, WallTime};
use role::Roles;
use serve::{Limits, Room};
use session::Sessions;
pub(crate) use session::read as read_report;
use std::io::{self, Write};
use std::net::SocketAddr;
use std::time::{Duration, Instant, SystemTime};
use tokio::net::TcpListener;
use tokio::sync::{mpsc, watch};
use tokio::time::timeout;
use tracing::{info, warn};

/// How long a server that a signal tells to stop may take to finish its write and to give its reign up. Too low: a store
/// that is slow costs the others the rest of the reign. Too high: whoever stops it loses patience and kills it.
const STOP_MAX: Duration = Duration::from_secs(5);

/// Why a server could not start, or had to stop.
#[derive(Debug, thiserror::Error)]
pub enum ServerError {
    /// The journal.
    #[error(transparent)]
    Store(#[from] store::Error),
    /// A record in the journal that this version cannot read.
    #[error("record {index} of the journal cannot be read; was it written by a newer version?")]
    Record {
        /// Which.
        index: Index,
        /// What is wrong with it.
        source: serde_json::Error,
    },
    /// A snapshot that this version cannot read.
    #[error("the snapshot of revision {index} cannot be read")]
    Snapshot {
        /// Up to which record.
        index: Index,
        /// What is wrong with it.
        source: Unreadable,
    },
    /// Another server has taken over.
    #[error("another server has become the active one; this one has stopped and may be started again")]
    Deposed,
    /// Plain to other machines.
    #[error(
        "{listen} can be reached from other machines, and the server would be plain; add --insecure if that is meant"
    )]
    Plain {
        /// The address.
        listen: SocketAddr,
    },
    /// An address that others would be sent to, and that is none.
    #[error(
        "the other servers send operators and agents to this one, and {listen} is no address to send them to; add --advertise http://HOST:PORT"
    )]
    Nowhere {
        /// Where it listens.
        listen: SocketAddr,
    },
    /// The listening socket.
    #[error("cannot listen on {listen}")]
    Listen {
        /// The address.
        listen: SocketAddr,
        /// The system's answer.
        source: io::Error,
    },
}

/// A server that is bound.
pub struct Server {
    /// Where it listens.
    pub address: SocketAddr,
    /// A way to its engine.
    pub handle: Handle,
    listener: TcpListener,
    router: Router,
    limits: Limits,
    roles: tokio::task::JoinHandle<Result<(), ServerError>>,
}

impl Server {
    /// Opens the journal and binds. On a store of its own it is the active server by then; a shared one it asks when it
    /// is bound.
    ///
    /// # Errors
    /// If the journal cannot be used or the address not be bound.
    pub async fn start(options: &ServerOptions) -> Result<Self, ServerError> {
        if !options.listen.ip().is_loopback() && !options.insecure {
            return Err(ServerError::Plain { listen: options.listen });
        }
        match (&options.store, &options.data) {
            (Some(url), _) => {
                let store = Etcd::at(url, &options.etcd)?;
                info!(etcd = store.place(), "the journal is in etcd");
                Self::on(store, options, true).await
            }
            (None, Some(data)) => Self::on(Embedded::open(data).await?, options, false).await,
            (None, None) => unreachable!("the command line asks for one of the two"),
        }
    }

    /// On a store that is open, and that other servers may use if it is shared.
    async fn on<S: Store>(store: S, options: &ServerOptions, is_shared: bool) -> Result<Self, ServerError> {
        let (commands, asked) = mpsc::channel(COMMANDS_MAX);
        let (publish, view) = watch::channel(View::default());
        let handle = Handle::new(commands, view, store.silence());
        let limits = Limits::of_process();
        let (sessions, said) = Sessions::new(limits.sessions);
        let name = options.name.as_ref().map_or("server", |name| name.as_str()).to_owned();
        let mut roles = Roles {
            store: store.clone(),
            candidate: Candidate { name: name.clone(), url: String::new() },
            is_shared,
            clock: Clock::start(),
            sessions: sessions.clone(),
            publish,
            asked,
            said,
            replayed: Replayed::default(),
        };
        // On a store of its own nobody waits for it, and what is wrong with that ends it before it says that it listens.
        let begun = if is_shared { None } else { Some(roles.begin().await?) };

        let failed = |source| ServerError::Listen { listen: options.listen, source };
        let listener = serve::listen(options.listen).map_err(failed)?;
        let address = listener.local_addr().map_err(failed)?;
        if is_shared && address.ip().is_unspecified() && options.advertise.is_none() {
            return Err(ServerError::Nowhere { listen: address });
        }
        let url = options.advertise.clone().unwrap_or_else(|| format!("http://{address}"));
        roles.candidate.url.clone_from(&url);
        let info = ServerInfo { name, url, is_shared, version: env!("CARGO_PKG_VERSION") };
        let gate = Gate::new(handle.clone(), store.clone());
        let feed = Feed::new(store, handle.watch());
        let agents = Router::new().route("/v1/agent", get(session::accept)).with_state(sessions);
        let router = gated(api::router(handle.clone(), feed, info).merge(agents), gate);
        let router = guarded(router, address);
        let roles = tokio::spawn(roles.run(begun));
        Ok(Self { address, handle, listener, router, limits, roles })
    }

    /// Serves until it is told to stop, or the journal fails.
    ///
    /// # Errors
    /// The fault that stopped it. Nothing was acknowledged that is not durable.
    pub async fn serve(self) -> Result<(), ServerError> {
        let Self { listener, router, limits, roles, .. } = self;
        let room = Room::new(limits);
        tokio::select! {
            () = serve::serve(listener, router, &room) => unreachable!("it accepts for ever"),
            stopped = roles => {
                stopped.expect("a bug in the engine ends the process; its reign ends with it")?;
                room.emptied().await;
                Ok(())
            }
        }
    }
}

/// Runs a server until it is told to stop, by an operator or by `told`, or its journal fails. On a shared store it gives
/// its reign up first, so that another server takes over at once.
///
/// # Errors
/// If it cannot start, or cannot write its journal any more.
pub async fn run(options: ServerOptions, told: impl Future<Output = ()>) -> Result<(), ServerError> {
    let mut told = std::pin::pin!(told);
    let server = tokio::select! {
        server = Server::start(&options) => server?,
        () = &mut told => return Ok(()),
    };
    // Whoever started it may read no more of it; it serves all the same.
    let _ = writeln!(io::stdout(), "listening on http://{}", server.address);
    let handle = server.handle.clone();
    let stops = async {
        told.await;
        match timeout(STOP_MAX, handle.stop()).await {
            // It has ended, and its clients read their last answers.
            Ok(Ok(())) => std::future::pending().await,
            Ok(Err(why)) => warn!(%why, "stopping without a farewell"),
            Err(_) => warn!("stopping without a farewell: it would take too long"),
        }
    };
    tokio::select! {
        done = server.serve() => done,
        () = stops => Ok(()),
    }
}

/// The clocks that core is told the time by.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Clock {
    start: Instant,
}

impl Clock {
    fn start() -> Self {
        Self { start: Instant::now() }
    }

    pub(crate) fn now(&self) -> Now {
        let time =
            Time(u64::try_from(self.start.elapsed().as_millis()).expect("a process does not live that long"));
        let wall = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default().as_millis();
        Now { time, wall: WallTime(u64::try_from(wall).unwrap_or(u64::MAX)) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use axum::body::Body;
    use axum::http::{Method, Request, StatusCode, header};
    use axum::response::Response;
    use serde_json::Value;
    use std::collections::BTreeSet;
    use tower::ServiceExt;

    async fn start() -> (Server, tempfile::TempDir) {
        let data = tempfile::tempdir().unwrap();
        let options = ServerOptions {
            data: Some(data.path().to_owned()),
            listen: SocketAddr::from(([127, 0, 0, 1], 0)),
            store: None,
            etcd: crate::cli::option::EtcdOptions::default(),
            name: None,
            advertise: None,
            insecure: false,
        };
        (Server::start(&options).await.unwrap(), data)
    }

    async fn ask(server: &Server, method: Method, path: &str, origin: Option<&str>) -> Response {
        let request = Request::builder().method(method).uri(path).header(header::HOST, "localhost");
        let request =
            origin.into_iter().fold(request, |request, origin| request.header(header::ORIGIN, origin));
        server.router.clone().oneshot(request.body(Body::empty()).unwrap()).await.unwrap()
    }

    /// The router cannot be asked for its routes, but it writes them out for those who debug.
    fn routes(router: &Router) -> BTreeSet<String> {
        let written = format!("{router:?}");
        written
            .split('"')
            .skip(1)
            .step_by(2)
            .filter(|text| text.starts_with('/'))
            .map(str::to_owned)
            .collect()
    }

    #[tokio::test]
    async fn what_is_served_is_described_and_the_other_way_round() {
        let (server, _data) = start().await;
        let answer = ask(&server, Method::GET, "/v1/openapi.json", None).await;
        let answer = axum::body::to_bytes(answer.into_body(), usize::MAX).await.unwrap();
        let document: Value = serde_json::from_slice(&answer).unwrap();
        let paths = document["paths"].as_object().unwrap();
        let described: BTreeSet<String> = paths.keys().cloned().collect();
        let mut served = routes(&server.router);
        // Where nothing is, the router has routes of its own.
        assert!(served.remove("/") && served.remove("/{*__private__axum_fallback}"), "{served:?}");
        assert_eq!(ask(&server, Method::GET, "/", None).await.status(), StatusCode::NOT_FOUND);
        assert_eq!(served, described);
        for (path, operations) in paths {
            let answer = ask(
                &server,
                Method::PATCH,
                &path.replace("{id}", "t1").replace("{name}", "h").replace("{member}", "g@h"),
                None,
            )
            .await;
            assert_eq!(answer.status(), StatusCode::METHOD_NOT_ALLOWED, "{path}");
            let allowed = answer.headers()[header::ALLOW].to_str().unwrap().to_lowercase();
            let allowed: BTreeSet<&str> = allowed.split(',').filter(|method| *method != "head").collect();
            let described: BTreeSet<&str> =
                operations.as_object().unwrap().keys().map(String::as_str).collect();
            assert_eq!(allowed, described, "{path}");
        }
    }

    #[tokio::test]
    async fn a_page_cannot_pretend_to_be_an_agent() {
        let (server, _data) = start().await;
        for origin in ["http://elsewhere.example", "null"] {
            let answer = ask(&server, Method::GET, "/v1/agent", Some(origin)).await;
            assert_eq!(answer.status(), StatusCode::FORBIDDEN, "{origin}");
        }
        assert_eq!(ask(&server, Method::GET, "/v1/agent", None).await.status(), StatusCode::BAD_REQUEST);
    }
}
