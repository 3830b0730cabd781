//! Connections: how many there may be, and how long a client may take to say what it wants. `axum::serve` bounds
//! neither, so that a thousand sockets that say nothing would cost a thousand tasks and files for ever.

use axum::Router;
use hyper::server::conn::http1;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use std::io::{self, ErrorKind};
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;
use tokio::net::{TcpListener, TcpSocket, TcpStream};
use tokio::sync::Semaphore;
use tokio::time::sleep;
use tracing::{debug, warn};

/// The most connections that are not an agent's session: operators, scripts, long polls, and agents for the instant
/// in which they introduce themselves. More wait in the kernel's queue. Too low: a few hundred `run`s that wait
/// keep everybody else out. Too high: their buffers, some 20 KiB each, add up.
const CONNECTIONS_MAX: usize = 4096;
/// The most agents at once. Each holds a socket and two small buffers.
const SESSIONS_MAX: usize = 12_000;
/// How many may have connected and wait to be accepted. The system caps it, most at this. Too low: of agents that all
/// come back in one instant, some are not heard by the kernel, and dial again a second later, or three.
const BACKLOG: u32 = 4096;
/// How long a client may take from connecting, or from its last answer, to the end of its next request's headers.
/// Too low: slow links fail. Too high: sockets that say nothing keep the places of those that would.
const HEADERS_TIME_MAX: Duration = Duration::from_secs(10);
/// The most bytes of request line and headers. Ours have a few hundred; browsers and proxies add some thousands.
const HEADERS_BYTES_MAX: usize = 16 << 10;
/// A connection's buffer: headers, and bodies piece by piece. The smallest with room for the headers.
const BUFFER_BYTES_MAX: usize = 32 << 10;
/// What has been sent and is not taken for so long is given up, with its connection, in milliseconds. Too low: a
/// short break of the network costs connections. Too high: a client that does not read holds an answer in memory.
const UNTAKEN_MAX_MS: u32 = 30_000;
/// How long a server that stops waits for connections to end by themselves: who has asked reads the answer meanwhile.
const LAST_MAX: Duration = Duration::from_secs(1);
/// The pause after a connection could not be accepted: most likely there is no file left, and a while helps.
const ACCEPT_PAUSE: Duration = Duration::from_millis(500);

/// What connections may take of this process.
#[derive(Debug, Clone, Copy)]
pub(super) struct Limits {
    pub(super) connections: usize,
    pub(super) sessions: usize,
    headers_time: Duration,
}

impl Limits {
    /// Raises the process's limit of open files as far as it may, and stays so far below it that the journal
    /// always finds a file: a server that cannot write its journal stops.
    pub(super) fn of_process() -> Self {
        let Rlimit { maximum, .. } = getrlimit(Resource::Nofile);
        // Refused, the limit stays as it is.
        let _ = setrlimit(Resource::Nofile, Rlimit { current: maximum, maximum });
        let files = getrlimit(Resource::Nofile).current.unwrap_or(u64::MAX);
        let limits = Self::for_files(usize::try_from(files).unwrap_or(usize::MAX));
        if limits.sessions < SESSIONS_MAX {
            let Self { connections, sessions, .. } = limits;
            warn!(files, connections, sessions, "the limit of open files is low: fewer may connect");
        }
        limits
    }

    fn for_files(files: usize) -> Self {
        Self {
            connections: CONNECTIONS_MAX.min(files / 4),
            sessions: SESSIONS_MAX.min(files / 8 * 5),
            headers_time: HEADERS_TIME_MAX,
        }
    }
}

/// Binds. A port that a killed server had can be bound again at once.
///
/// Errors: the address cannot be had.
pub(super) fn listen(address: SocketAddr) -> io::Result<TcpListener> {
    let socket = if address.is_ipv4() { TcpSocket::new_v4() } else { TcpSocket::new_v6() }?;
    socket.set_reuseaddr(true)?;
    socket.bind(address)?;
    socket.listen(BACKLOG)
}

/// The places of connections that are not an agent's session.
pub(super) struct Room {
    limits: Limits,
    places: Arc<Semaphore>,
}

impl Room {
    pub(super) fn new(limits: Limits) -> Self {
        Self { limits, places: Arc::new(Semaphore::new(limits.connections)) }
    }

    /// Waits until nobody is connected any more, or for long enough. Nobody is accepted meanwhile.
    pub(super) async fn emptied(&self) {
        let all = u32::try_from(self.limits.connections).unwrap_or(u32::MAX);
        let _ = tokio::time::timeout(LAST_MAX, self.places.acquire_many(all)).await;
    }
}

/// Serves for ever.
pub(super) async fn serve(listener: TcpListener, router: Router, room: &Room) {
    let Room { limits, places } = room;
    let mut http = http1::Builder::new();
    http.timer(TokioTimer::new())
        .header_read_timeout(limits.headers_time)
        .max_header_size(HEADERS_BYTES_MAX)
        .max_buf_size(BUFFER_BYTES_MAX);
    loop {
        let place = places.clone().acquire_owned().await.expect("it is never closed");
        let stream = match listener.accept().await {
            Ok((stream, _)) => stream,
            // Gone before it was accepted.
            Err(error) if is_of_peer(error.kind()) => continue,
            Err(error) => {
                warn!(%error, "cannot accept a connection");
                sleep(ACCEPT_PAUSE).await;
                continue;
            }
        };
        tune(&stream);
        let service = TowerToHyperService::new(router.clone());
        let connection = http.serve_connection(TokioIo::new(stream), service).with_upgrades();
        tokio::spawn(async move {
            // This ends when an agent's session begins: sessions have places of their own.
            if let Err(error) = connection.await {
                debug!(%error, "a connection ended");
            }
            drop(place);
        });
    }
}

fn is_of_peer(kind: ErrorKind) -> bool {
    matches!(kind, ErrorKind::ConnectionAborted | ErrorKind::ConnectionReset | ErrorKind::ConnectionRefused)
}

/// A socket that refuses this is still a socket.
fn tune(stream: &TcpStream) {
    // Orders and votes are small, and somebody waits for each.
    let _ = stream.set_nodelay(true);
    let _ = rustix::net::sockopt::set_tcp_user_timeout(stream, UNTAKEN_MAX_MS);
}

#[cfg(test)]
mod tests {
    use super::*;
    use axum::routing::get;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    const STUCK: Duration = Duration::from_secs(60);
    const ASK: &[u8] = b"GET / HTTP/1.1\r\nhost: a\r\n\r\n";

    async fn start(connections: usize, headers_time: Duration) -> SocketAddr {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let router = Router::new().route("/", get(async || "here"));
        let room = Room::new(Limits { connections, sessions: 1, headers_time });
        tokio::spawn(async move { serve(listener, router, &room).await });
        address
    }

    #[tokio::test]
    async fn who_is_connected_when_the_server_stops_has_a_moment_to_read_the_answer() {
        let room = Room::new(Limits { connections: 2, sessions: 1, headers_time: STUCK });
        let place = room.places.clone().acquire_owned().await.unwrap();
        let gone = tokio::spawn(async move {
            tokio::task::yield_now().await;
            drop(place);
        });
        room.emptied().await;
        assert!(gone.is_finished());
        // One that stays keeps nobody.
        let _place = room.places.clone().acquire_owned().await.unwrap();
        room.emptied().await;
    }

    /// All that comes until the server closes.
    async fn rest(stream: &mut TcpStream) -> String {
        let mut bytes = Vec::new();
        // A server that closes on what it has not read resets the connection.
        let _ = tokio::time::timeout(STUCK, stream.read_to_end(&mut bytes)).await.expect("it closes");
        String::from_utf8(bytes).unwrap()
    }

    #[tokio::test]
    async fn what_is_too_many_waits_for_a_place() {
        let address = start(2, Duration::from_millis(300)).await;
        let idle = [TcpStream::connect(address).await.unwrap(), TcpStream::connect(address).await.unwrap()];
        let mut third = TcpStream::connect(address).await.unwrap();
        third.write_all(ASK).await.unwrap();
        // The idle ones are closed after their time, and so is this one after its answer.
        assert!(rest(&mut third).await.ends_with("here"));
        for mut idle in idle {
            assert_eq!(rest(&mut idle).await, "");
        }
    }

    #[tokio::test]
    async fn headers_have_a_time_however_they_come() {
        let address = start(2, Duration::from_millis(300)).await;
        let mut slow = TcpStream::connect(address).await.unwrap();
        let mut at = 0;
        let trickle = async {
            loop {
                let byte = if at < ASK.len() - 4 { ASK[at] } else { b'x' };
                if slow.write_all(&[byte]).await.is_err() {
                    return;
                }
                at += 1;
                sleep(Duration::from_millis(20)).await;
            }
        };
        tokio::time::timeout(STUCK, trickle).await.expect("it is closed");
    }

    #[tokio::test]
    async fn headers_have_a_size() {
        let address = start(2, STUCK).await;
        let mut large = TcpStream::connect(address).await.unwrap();
        let text = format!("GET / HTTP/1.1\r\nhost: a\r\nx: {}\r\n\r\n", "x".repeat(HEADERS_BYTES_MAX));
        large.write_all(text.as_bytes()).await.unwrap();
        assert!(rest(&mut large).await.starts_with("HTTP/1.1 431 "));
    }

    #[test]
    fn files_are_left_for_the_journal() {
        for (files, connections, sessions) in [(1024, 256, 640), (20_000, 4096, 12_000), (8, 2, 5)] {
            let limits = Limits::for_files(files);
            assert_eq!((limits.connections, limits.sessions), (connections, sessions));
        }
    }
}
