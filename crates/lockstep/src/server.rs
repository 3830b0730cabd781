//! The server: one task owns the engine (`driver`); sessions with agents (`session`) and the public API
//! ([`crate::api`]) send it inputs and carry out its outputs, over connections that `serve` bounds.

mod driver;
pub mod handle;
mod saver;
mod serve;
mod session;

use crate::api::{self, ServerInfo};
use crate::cli::option::ServerOptions;
use crate::store::{self, Embedded, Snapshot, Store};
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
use serve::Limits;
use session::Sessions;
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
        let reign = store.campaign(&name, REIGN_TTL).await?;
        let Replayed { cluster, journal_bytes, snapshot_bytes } = replay(&store).await?;
        info!(revision = %cluster.revision, %reign, "journal replayed");
        let clock = Clock::start();
        let engine = Engine::new(cluster, &name, clock.now());

        let failed = |source| ServerError::Listen { listen: options.listen, source };
        let listener = TcpListener::bind(options.listen).await.map_err(failed)?;
        let address = listener.local_addr().map_err(failed)?;
        let (commands, asked) = mpsc::channel(COMMANDS_MAX);
        let (publish, view) = watch::channel(View::default());
        let handle = Handle::new(commands, view);
        let limits = Limits::of_process();
        let (sessions, said) = Sessions::new(limits.sessions);
        let saver = Saver::new(store.clone(), reign, journal_bytes, snapshot_bytes);
        let driver = Driver::new(engine, store, reign, saver, clock, sessions.clone(), publish);
        let driver = tokio::spawn(driver.drive(asked, said));
        let info = ServerInfo { name, version: env!("CARGO_PKG_VERSION") };
        let agents = Router::new().route("/v1/agent", get(session::accept)).with_state(sessions);
        let router = api::router(handle.clone(), info).merge(agents);
        Ok(Self { address, handle, listener, router, limits, driver })
    }

    /// Serves until the journal fails.
    ///
    /// # Errors
    /// The fault that stopped it. Nothing was acknowledged that is not durable.
    pub async fn serve(self) -> Result<(), ServerError> {
        tokio::select! {
            () = serve::serve(self.listener, self.router, self.limits) => unreachable!("it accepts for ever"),
            stopped = self.driver => stopped.expect("a bug in the engine ends the process; its reign ends with it"),
        }
    }
}

/// Runs a server until its journal fails or the process ends.
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
