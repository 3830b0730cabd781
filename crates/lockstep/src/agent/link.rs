//! The agent's connection: dials one server after the other, for ever. One that stands by sends it to the active one.

use super::{Heard, is_loopback, random, read_order};
use futures_util::{SinkExt, StreamExt};
use lockstep_core::agent::AgentInput;
use lockstep_core::message::Report;
use std::time::{Duration, Instant};
use tokio::net::TcpStream;
use tokio::sync::mpsc;
use tokio::time::{sleep, timeout};
use tokio_tungstenite::tungstenite::protocol::WebSocketConfig;
use tokio_tungstenite::tungstenite::{Error, Message};
use tokio_tungstenite::{MaybeTlsStream, WebSocketStream, connect_async_with_config};
use tracing::{debug, info, warn};

/// Where a server takes agents.
const PATH: &str = "/v1/agent";

type Socket = WebSocketStream<MaybeTlsStream<TcpStream>>;

/// Reports that wait for the socket. More than this in one go means that the server no longer reads.
const REPORTS_MAX: usize = 1024;
/// The largest message: a context of some ten thousand members.
const MESSAGE_BYTES_MAX: usize = 16 << 20;
/// A connection that does not stand by then is given up; the shorter time counts where another server may be dialled
/// instead, which has to happen while the lease lasts.
const CONNECT_MAX: Duration = Duration::from_secs(5);
const CONNECT_ONE_OF_MANY_MAX: Duration = Duration::from_secs(2);
/// A socket that takes nothing for so long is dead.
const WRITE_MAX: Duration = Duration::from_secs(2);
/// The pause between two rounds over all servers: doubled each time, from the first to the last of these, and up to a
/// half longer by chance, so that a thousand agents do not come back in one instant.
const PAUSE_MS: (u64, u64) = (50, 2000);
/// One of several servers takes over within a few seconds, and leases do not last much longer than that: for so long after
/// a session the pause does not grow above this. Too low: ten thousand agents keep the servers that stand by busy. Too
/// high: an agent comes late to the one that has taken over.
const TAKE_OVER: Duration = Duration::from_secs(10);
const TAKE_OVER_PAUSE_MS: u64 = 250;
/// How often one dial is sent on. Servers that send agents to each other are about to learn better.
const SENT_ON_MAX: usize = 3;

/// The servers, as an agent dials them.
pub(super) struct Servers {
    /// Their addresses.
    pub(super) urls: Vec<String>,
    /// Whether all of them are on this machine, and the agent is to stay on it.
    pub(super) is_local: bool,
}

/// Keeps a connection, and tells of each that stands and of its end.
pub(super) async fn keep(servers: Servers, inputs: mpsc::Sender<Heard>) {
    let Servers { urls, is_local } = servers;
    let connect_max = if urls.len() > 1 { CONNECT_ONE_OF_MANY_MAX } else { CONNECT_MAX };
    let mut pause_ms = PAUSE_MS.0;
    // Said once until there is a connection again: an agent that waits in silence looks like one that works.
    let mut is_told = false;
    let mut last_session: Option<Instant> = None;
    let mut left: Option<String> = None;
    'rounds: loop {
        let mut why = String::new();
        let mut has_connected = false;
        // Whose session ended last is dialled last: one that has lost its power answers nobody, and the lease runs.
        let (last, first): (Vec<_>, Vec<_>) = urls.iter().partition(|url| Some(*url) == left.as_ref());
        for url in first.into_iter().chain(last) {
            match timeout(connect_max, dial(url, is_local)).await {
                Ok(Ok((socket, server))) => {
                    info!(%server, "connected");
                    (has_connected, is_told) = (true, false);
                    let began = Instant::now();
                    use_link(socket, &inputs).await;
                    if inputs.send(Heard::Engine(AgentInput::Disconnected)).await.is_err() {
                        return;
                    }
                    // One that refuses us answers at once: it is asked again ever more seldom.
                    if began.elapsed() >= Duration::from_millis(PAUSE_MS.1) {
                        pause_ms = PAUSE_MS.0;
                        last_session = Some(Instant::now());
                        left = Some(server);
                        if urls.len() > 1 {
                            continue 'rounds;
                        }
                    }
                }
                Ok(Err(error)) => {
                    debug!(server = %url, %error, "cannot connect");
                    why = error;
                }
                Err(_) => {
                    debug!(server = %url, "cannot connect in time");
                    "it does not answer in time".clone_into(&mut why);
                }
            }
        }
        if !has_connected && !is_told {
            is_told = true;
            warn!(servers = urls.join(","), reason = why, "no server answers: trying on");
        }
        let may_take_over = urls.len() > 1 && last_session.is_some_and(|last| last.elapsed() < TAKE_OVER);
        let pause_max_ms = if may_take_over { TAKE_OVER_PAUSE_MS } else { PAUSE_MS.1 };
        let chance = u64::from_str_radix(&random()[..4], 16).expect("hexadecimal") % (pause_ms / 2 + 1);
        sleep(Duration::from_millis(pause_ms + chance)).await;
        pause_ms = (pause_ms * 2).min(pause_max_ms);
    }
}

/// Connects to a server, or to the active one that it sends us to; tells which.
async fn dial(url: &str, is_local: bool) -> Result<(Socket, String), String> {
    let mut server = url.to_owned();
    for _ in 0..SENT_ON_MAX {
        let answer = match connect(&server).await {
            Ok(socket) => return Ok((socket, server)),
            Err(Error::Http(answer)) => answer,
            Err(error) => return Err(error.to_string()),
        };
        let location = answer.headers().get("location").filter(|_| answer.status().is_redirection());
        let location = location.and_then(|location| location.to_str().ok());
        let Some(active) = location.and_then(|location| location.strip_suffix(PATH)) else {
            return Err(format!("{server} answers {}", answer.status()));
        };
        if !active.starts_with("http://") || (is_local && !is_loopback(active)) {
            return Err(format!("{server} sends us to {active}, which this agent may not dial"));
        }
        active.clone_into(&mut server);
    }
    Err(format!("the servers send us to one another, last to {server}"))
}

async fn connect(server: &str) -> Result<Socket, Error> {
    let url = format!("{}{PATH}", server.replacen("http://", "ws://", 1));
    let config = WebSocketConfig::default()
        .read_buffer_size(4096)
        .write_buffer_size(4096)
        .max_message_size(Some(MESSAGE_BYTES_MAX))
        .max_frame_size(Some(MESSAGE_BYTES_MAX));
    let (socket, _) = connect_async_with_config(url, Some(config), true).await?;
    Ok(socket)
}

/// Carries reports out and orders in, until either side ends it. How long a server may be silent depends on the lease,
/// and is for the engine to say.
async fn use_link(mut socket: Socket, inputs: &mpsc::Sender<Heard>) {
    let (link, mut reports) = mpsc::channel(REPORTS_MAX);
    if inputs.send(Heard::Connected(link)).await.is_err() {
        return;
    }
    let mut is_newer = false;
    loop {
        tokio::select! {
            report = reports.recv() => {
                // The agent has dropped its end: it wants no more of this server.
                let Some(report) = report else { break };
                let sending = async {
                    socket.feed(message(&report)).await?;
                    while let Ok(report) = reports.try_recv() {
                        socket.feed(message(&report)).await?;
                    }
                    socket.flush().await
                };
                if !matches!(timeout(WRITE_MAX, sending).await, Ok(Ok(()))) {
                    break;
                }
            }
            received = socket.next() => {
                let text = match received {
                    Some(Ok(Message::Text(text))) => text,
                    Some(Ok(Message::Ping(_) | Message::Pong(_))) => continue,
                    Some(Ok(Message::Binary(_) | Message::Close(_) | Message::Frame(_)) | Err(_)) | None => break,
                };
                match read_order(&text) {
                    Ok(Some(order)) => {
                        if inputs.send(Heard::Engine(AgentInput::Order(order))).await.is_err() {
                            break;
                        }
                    }
                    // One server says it again and again: once is enough to be told.
                    Ok(None) if !is_newer => {
                        is_newer = true;
                        warn!("the server is of a newer version: orders of a kind that this agent lacks are left aside");
                    }
                    Ok(None) => {}
                    Err(error) => {
                        warn!(%error, "the server sent an order that cannot be read: is it of a newer version?");
                        break;
                    }
                }
            }
        }
    }
    let _ = timeout(Duration::from_millis(200), socket.close(None)).await;
}

fn message(report: &Report) -> Message {
    Message::text(serde_json::to_string(report).expect("reports are plain data"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use axum::Router;
    use axum::http::{StatusCode, header};
    use axum::routing::get;
    use std::sync::{Arc, Mutex};
    use tokio::net::TcpListener;

    async fn bind() -> (TcpListener, String) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        (listener, url)
    }

    /// A server that answers every agent like this.
    async fn standby(status: StatusCode, active: &str) -> String {
        let (listener, url) = bind().await;
        let answer = (status, [(header::LOCATION, format!("{active}{PATH}"))]);
        let router = Router::new().route(PATH, get(async move || answer));
        tokio::spawn(async { axum::serve(listener, router).await });
        url
    }

    #[tokio::test]
    async fn a_server_that_stands_by_sends_agents_to_the_active_one() {
        let (listener, active) = bind().await;
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                tokio::spawn(tokio_tungstenite::accept_async(stream));
            }
        });
        let outdated = standby(StatusCode::TEMPORARY_REDIRECT, &active).await;
        let server = standby(StatusCode::TEMPORARY_REDIRECT, &outdated).await;
        assert_eq!(dial(&server, true).await.unwrap().1, active);
        let alone = standby(StatusCode::SERVICE_UNAVAILABLE, "").await;
        let keeps = standby(StatusCode::TEMPORARY_REDIRECT, "http://192.0.2.1:1").await;
        let refused = bind().await.1;
        for (server, why) in [(alone, "503"), (keeps, "may not dial"), (refused, "refused")] {
            let error = dial(&server, true).await.unwrap_err();
            assert!(error.contains(why), "{error}");
        }
        let (a, b) = (bind().await, bind().await);
        for (listener, other) in [(a.0, b.1), (b.0, a.1.clone())] {
            let answer = (StatusCode::TEMPORARY_REDIRECT, [(header::LOCATION, format!("{other}{PATH}"))]);
            let router = Router::new().route(PATH, get(async move || answer));
            tokio::spawn(async { axum::serve(listener, router).await });
        }
        let error = dial(&a.1, true).await.unwrap_err();
        assert!(error.contains("to one another"), "{error}");
    }

    #[tokio::test]
    async fn the_next_server_is_dialled_at_once() {
        let (listener, active) = bind().await;
        let alone = standby(StatusCode::SERVICE_UNAVAILABLE, "").await;
        let gone = bind().await.1;
        let (inputs, mut heard) = mpsc::channel(8);
        let began = Instant::now();
        tokio::spawn(keep(Servers { urls: vec![gone, alone, active], is_local: true }, inputs));
        let (stream, _) = listener.accept().await.unwrap();
        let _socket = tokio_tungstenite::accept_async(stream).await.unwrap();
        assert!(matches!(heard.recv().await, Some(Heard::Connected(_))));
        assert!(began.elapsed() < CONNECT_ONE_OF_MANY_MAX, "{:?}", began.elapsed());
    }

    /// The agent was sent to a server, or has dialled it, which loses its power: it answers nobody any more.
    #[tokio::test]
    async fn a_server_that_has_gone_is_dialled_last() {
        for is_first in [false, true] {
            let ((gone, gone_url), (next, next_url)) = (bind().await, bind().await);
            let active = Arc::new(Mutex::new(gone_url.clone()));
            let (listener, url) = bind().await;
            let sends = active.clone();
            let answer = async move || {
                let location = format!("{}{PATH}", sends.lock().unwrap());
                (StatusCode::TEMPORARY_REDIRECT, [(header::LOCATION, location)])
            };
            let router = Router::new().route(PATH, get(answer));
            tokio::spawn(async { axum::serve(listener, router).await });
            let mut urls = vec![url, gone_url];
            if is_first {
                urls.reverse();
            }
            let (inputs, mut heard) = mpsc::channel(8);
            tokio::spawn(keep(Servers { urls, is_local: true }, inputs));
            let socket = tokio_tungstenite::accept_async(gone.accept().await.unwrap().0).await.unwrap();
            let link = heard.recv().await;
            assert!(matches!(link, Some(Heard::Connected(_))));
            sleep(Duration::from_millis(PAUSE_MS.1)).await;
            *active.lock().unwrap() = next_url;
            let left = Instant::now();
            // The agent has heard nothing for too long: it drops its end. Whoever dials the same one again is not answered.
            drop(link);
            let _next = tokio_tungstenite::accept_async(next.accept().await.unwrap().0).await.unwrap();
            assert!(left.elapsed() < CONNECT_ONE_OF_MANY_MAX, "{is_first} {:?}", left.elapsed());
            drop((socket, gone));
        }
    }
}
