//! The server: one task owns the engine (`driver`); sessions with agents (`session`) and the public API
//! ([`crate::api`]) send it inputs and carry out its outputs, over connections that `serve` bounds.

mod driver;
pub mod handle;
mod saver;
mod serve;
mod session;

use crate::api::feed::Feed;
use crate::api::guard::guarded;
use crate::api::{self, ServerInfo};
use crate::cli::option::ServerOptions;
use crate::store::{self, Candidate, Embedded, Snapshot, Store};
use axum::Router;
use axum::routing::get;
use driver::{COMMANDS_MAX, Driver};
use handle::{Handle, View};
use lockstep_core::cluster::Cluster;
use lockstep_core::engine::Engine;
use lockstep_core::id::Index;
use lockstep_core::record::Record;
use lockstep_core::snapshot::{self, Unreadable};
use lockstep_core::time::{Now, Time, WallTime};
use saver::Saver;
use serve::{Limits, Room};
use session::Sessions;
pub(crate) use session::read as read_report;
use std::io::{self, Write};
use std::net::SocketAddr;
use std::time::{Duration, Instant, SystemTime};
use tokio::net::TcpListener;
use tokio::sync::{mpsc, watch};
use tracing::info;

/// How long the store keeps a reign alive without a sign of life; the embedded one needs none.
const REIGN_TTL: Duration = Duration::from_secs(3);

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
    /// A store that this build does not have.
    #[error("this build has no store for {url}; leave --store out to keep the journal in --data")]
    NoSuchStore {
        /// What was asked for.
        url: String,
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

/// A server that is bound and whose engine runs.
pub struct Server {
    /// Where it listens.
    pub address: SocketAddr,
    /// A way to its engine.
    pub handle: Handle,
    listener: TcpListener,
    router: Router,
    limits: Limits,
    driver: tokio::task::JoinHandle<Result<(), ServerError>>,
}

impl Server {
    /// Opens the journal, replays it and binds.
    ///
    /// # Errors
    /// If the journal cannot be used or the address not be bound.
    pub async fn start(options: &ServerOptions) -> Result<Self, ServerError> {
        if !options.listen.ip().is_loopback() && !options.insecure {
            return Err(ServerError::Plain { listen: options.listen });
        }
        let data = match (&options.store, &options.data) {
            (Some(url), _) => return Err(ServerError::NoSuchStore { url: url.clone() }),
            (None, Some(data)) => data,
            (None, None) => unreachable!("the command line asks for one of the two"),
        };
        let store = Embedded::open(data).await?;
        let name = options.name.as_ref().map_or("server", |name| name.as_str()).to_owned();
        let url = format!("http://{}", options.listen);
        let reign = store.campaign(&Candidate { name: name.clone(), url }, REIGN_TTL).await?;
        let Replayed { cluster, journal_bytes, snapshot_bytes } = replay(&store).await?;
        info!(revision = %cluster.revision, %reign, "journal replayed");
        let clock = Clock::start();
        let engine = Engine::new(cluster, &name, clock.now());

        let failed = |source| ServerError::Listen { listen: options.listen, source };
        let listener = serve::listen(options.listen).map_err(failed)?;
        let address = listener.local_addr().map_err(failed)?;
        let (commands, asked) = mpsc::channel(COMMANDS_MAX);
        let (publish, view) = watch::channel(View::default());
        let handle = Handle::new(commands, view);
        let limits = Limits::of_process();
        let (sessions, said) = Sessions::new(limits.sessions);
        let feed = Feed::new(store.clone(), handle.watch());
        let saver = Saver::new(store.clone(), reign, journal_bytes, snapshot_bytes);
        let driver = Driver::new(engine, store, reign, saver, clock, sessions.clone(), publish);
        let driver = tokio::spawn(driver.drive(asked, said));
        let info = ServerInfo { name, version: env!("CARGO_PKG_VERSION") };
        let agents = Router::new().route("/v1/agent", get(session::accept)).with_state(sessions);
        let router = guarded(api::router(handle.clone(), feed, info).merge(agents), address);
        Ok(Self { address, handle, listener, router, limits, driver })
    }

    /// Serves until it is told to stop, or the journal fails.
    ///
    /// # Errors
    /// The fault that stopped it. Nothing was acknowledged that is not durable.
    pub async fn serve(self) -> Result<(), ServerError> {
        let Self { listener, router, limits, driver, .. } = self;
        let room = Room::new(limits);
        tokio::select! {
            () = serve::serve(listener, router, &room) => unreachable!("it accepts for ever"),
            stopped = driver => {
                stopped.expect("a bug in the engine ends the process; its reign ends with it")?;
                room.emptied().await;
                Ok(())
            }
        }
    }
}

/// Runs a server until it is told to stop, its journal fails or the process ends.
///
/// # Errors
/// If it cannot start, or cannot write its journal any more.
pub async fn run(options: ServerOptions) -> Result<(), ServerError> {
    let server = Server::start(&options).await?;
    // Whoever started it may read no more of it; it serves all the same.
    let _ = writeln!(io::stdout(), "listening on http://{}", server.address);
    server.serve().await
}

/// What a store says.
#[derive(Debug, Default)]
pub(crate) struct Replayed {
    /// The cluster.
    pub(crate) cluster: Cluster,
    /// How large its snapshot was; 0 when there is none.
    snapshot_bytes: u64,
    /// How many bytes of records followed it.
    journal_bytes: u64,
}

/// Reads the snapshot, and the records after it.
///
/// # Errors
/// If the store fails, or holds what this version cannot read.
pub(crate) async fn replay<S: Store>(store: &S) -> Result<Replayed, ServerError> {
    let mut replayed = Replayed::default();
    if let Some(Snapshot { index, bytes, .. }) = store.load_snapshot().await? {
        let cluster = snapshot::decode(&bytes).map_err(|source| ServerError::Snapshot { index, source })?;
        assert_eq!(cluster.revision, index, "a snapshot is saved under its own revision");
        replayed = Replayed { cluster, snapshot_bytes: bytes.len() as u64, journal_bytes: 0 };
    }
    let cluster = &mut replayed.cluster;
    loop {
        let entries = store.read(Index(cluster.revision.0 + 1)).await?;
        if entries.is_empty() {
            return Ok(replayed);
        }
        for entry in entries {
            replayed.journal_bytes += entry.payload.len() as u64;
            let index = entry.index;
            let record: Record = serde_json::from_slice(&entry.payload)
                .map_err(|source| ServerError::Record { index, source })?;
            cluster.apply(index, &record);
        }
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
