//! The agent's connection: dials one server after the other, for ever.

use super::{Heard, random, read_order};
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

type Socket = WebSocketStream<MaybeTlsStream<TcpStream>>;

/// Reports that wait for the socket. More than this in one go means that the server no longer reads.
const REPORTS_MAX: usize = 1024;
/// The largest message: a context of some ten thousand members.
const MESSAGE_BYTES_MAX: usize = 16 << 20;
/// A server that says nothing for so long is gone: it answers a renewal every third of a lease.
const SILENCE_MAX: Duration = Duration::from_secs(10);
/// A connection that does not stand by then is given up.
const CONNECT_MAX: Duration = Duration::from_secs(5);
/// The pause between two attempts: doubled each time, from the first to the last of these, and up to a half
/// longer by chance, so that a thousand agents do not come back in one instant.
const PAUSE_MS: (u64, u64) = (50, 2000);

/// Keeps a connection, and tells of each that stands and of its end.
pub(super) async fn keep(servers: Vec<String>, inputs: mpsc::Sender<Heard>) {
    let mut pause_ms = PAUSE_MS.0;
    // Said once until there is a connection again: an agent that waits in silence looks like one that works.
    let mut is_told = false;
    loop {
        let mut why = String::new();
        let mut has_connected = false;
        for server in &servers {
            match timeout(CONNECT_MAX, dial(server)).await {
                Ok(Ok(socket)) => {
                    info!(%server, "connected");
                    has_connected = true;
                    let began = Instant::now();
                    use_link(socket, &inputs).await;
                    // One that refuses us answers at once: it is asked again ever more seldom.
                    if began.elapsed() >= Duration::from_millis(PAUSE_MS.1) {
                        pause_ms = PAUSE_MS.0;
                    }
                    if inputs.send(Heard::Engine(AgentInput::Disconnected)).await.is_err() {
                        return;
                    }
                }
                Ok(Err(error)) => {
                    debug!(%server, %error, "cannot connect");
                    why = error.to_string();
                }
                Err(_) => {
                    debug!(%server, "cannot connect in time");
                    "it does not answer in time".clone_into(&mut why);
                }
            }
        }
        if has_connected {
            is_told = false;
        } else if !is_told {
            is_told = true;
            warn!(servers = servers.join(","), reason = why, "no server answers: trying on");
        }
        let chance = u64::from_str_radix(&random()[..4], 16).expect("hexadecimal") % (pause_ms / 2 + 1);
        sleep(Duration::from_millis(pause_ms + chance)).await;
        pause_ms = (pause_ms * 2).min(PAUSE_MS.1);
    }
}

async fn dial(server: &str) -> Result<Socket, Error> {
    let url = format!("{}/v1/agent", server.replacen("http://", "ws://", 1));
    let config = WebSocketConfig::default()
        .read_buffer_size(4096)
        .write_buffer_size(4096)
        .max_message_size(Some(MESSAGE_BYTES_MAX))
        .max_frame_size(Some(MESSAGE_BYTES_MAX));
    let (socket, _) = connect_async_with_config(url, Some(config), true).await?;
    Ok(socket)
}

/// Carries reports out and orders in, until either side ends it.
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
                let mut sent = socket.feed(message(&report)).await;
                while let Ok(report) = reports.try_recv() {
                    sent = sent.and(socket.feed(message(&report)).await);
                }
                if sent.and(socket.flush().await).is_err() {
                    break;
                }
            }
            received = timeout(SILENCE_MAX, socket.next()) => {
                let text = match received {
                    Ok(Some(Ok(Message::Text(text)))) => text,
                    Ok(Some(Ok(Message::Ping(_) | Message::Pong(_)))) => continue,
                    Ok(Some(Ok(Message::Binary(_) | Message::Close(_) | Message::Frame(_)) | Err(_)) | None) => break,
                    Err(_) => {
                        warn!("the server has gone silent");
                        break;
                    }
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
