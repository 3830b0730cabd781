//! A proxy between some agents and the servers: it delays what is said, by the same time or by chance, and lets what
//! an old connection said arrive after what a new one did. It also reads what passes, and notes what is judged.

use crate::clock::Stamp;
use crate::history::{Heard, Wire};
use crate::random::Random;
use crate::reader::Shared;
use serde_json::Value;
use std::io::{Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

/// What is done to the connections of one host.
#[derive(Debug, Default)]
pub(crate) struct Knobs {
    /// Milliseconds for everything.
    pub(crate) delay_ms: AtomicU64,
    /// Up to so many more, by chance.
    pub(crate) jitter_ms: AtomicU64,
    /// How many pieces were delayed.
    pub(crate) delayed: AtomicU64,
    /// How many pieces of a connection came to the server after a newer connection's first one.
    pub(crate) overtaken: AtomicU64,
    /// The newest connection.
    newest: AtomicU64,
    /// Ends of connections towards the agent, to be closed at will.
    agents: Mutex<Vec<TcpStream>>,
}

impl Knobs {
    /// Closes all connections towards the agent, and towards the server only once all has arrived there.
    pub(crate) fn close_agents(&self) {
        for stream in self.agents.lock().expect("nobody panics with it").drain(..) {
            // It may be closed already.
            let _ = stream.shutdown(Shutdown::Both);
        }
    }
}

/// A server as it is, and as the agent of one host is to see it.
#[derive(Debug, Clone)]
pub(crate) struct Way {
    pub(crate) server: SocketAddr,
    pub(crate) seen: String,
}

/// Listens for the agent of one host, in place of each server.
pub(crate) fn start(host: &str, ways: &[Way], history: &Shared) -> std::io::Result<Arc<Knobs>> {
    let knobs = Arc::new(Knobs::default());
    for way in ways {
        let listener = TcpListener::bind(&way.seen)?;
        let (host, history, shared) = (host.to_owned(), history.clone(), knobs.clone());
        let (server, ways) = (way.server, ways.to_vec());
        std::thread::spawn(move || {
            for agent in listener.incoming().flatten() {
                let (host, history, knobs) = (host.clone(), history.clone(), shared.clone());
                let ways = ways.clone();
                std::thread::spawn(move || connect(agent, server, ways, host, history, &knobs));
            }
        });
    }
    Ok(knobs)
}

/// Whoever is sent on to another server goes there through the proxy, too.
fn sent_on(head: &[u8], ways: &[Way]) -> Option<Vec<u8>> {
    let head = std::str::from_utf8(head).ok().filter(|head| head.starts_with("HTTP/1.1 307"))?;
    let turn = |head: String, way: &Way| {
        head.replace(&format!("http://{}/", way.server), &format!("http://{}/", way.seen))
    };
    Some(ways.iter().fold(head.to_owned(), turn).into_bytes())
}

fn connect(
    agent: TcpStream,
    server: SocketAddr,
    ways: Vec<Way>,
    host: String,
    history: Shared,
    knobs: &Arc<Knobs>,
) {
    let connection = knobs.newest.fetch_add(1, Ordering::SeqCst) + 1;
    let Ok(server) = TcpStream::connect_timeout(&server, Duration::from_secs(2)) else { return };
    let (Ok(agent_too), Ok(server_too), Ok(kept)) =
        (agent.try_clone(), server.try_clone(), agent.try_clone())
    else {
        return;
    };
    knobs.agents.lock().expect("nobody panics with it").push(kept);
    // Small messages at once, as agents and servers send them.
    let _ = agent.set_nodelay(true);
    let _ = server.set_nodelay(true);
    let tap = |is_from_agent| Tap {
        host: host.clone(),
        connection,
        history: history.clone(),
        is_from_agent,
        ways: ways.clone(),
        bytes: Vec::new(),
        is_upgraded: false,
    };
    let (up, down) = (tap(true), tap(false));
    let (up_knobs, down_knobs) = (knobs.clone(), knobs.clone());
    std::thread::spawn(move || pass(agent, server_too, up, up_knobs, connection));
    pass(server, agent_too, down, down_knobs, connection);
}

/// Passes on what comes, each piece when its time has come.
fn pass(mut from: TcpStream, to: TcpStream, mut tap: Tap, knobs: Arc<Knobs>, connection: u64) {
    let (pieces, due): (Sender<(Instant, Vec<u8>)>, Receiver<_>) = channel();
    let is_from_agent = tap.is_from_agent;
    let late = knobs.clone();
    let writer = std::thread::spawn(move || write(to, &due, &late, connection, is_from_agent));
    let mut random = Random::new(Stamp::now().0);
    let mut last = Instant::now();
    let mut buffer = [0; 16 * 1024];
    while let Ok(len @ 1..) = from.read(&mut buffer) {
        let turned =
            (!is_from_agent && !tap.is_upgraded).then(|| sent_on(&buffer[..len], &tap.ways)).flatten();
        tap.take(&buffer[..len]);
        let jitter = knobs.jitter_ms.load(Ordering::Relaxed);
        let delay = knobs.delay_ms.load(Ordering::Relaxed) + random.within(0, jitter);
        if delay > 0 {
            knobs.delayed.fetch_add(1, Ordering::Relaxed);
        }
        // Within a connection nothing overtakes.
        last = last.max(Instant::now() + Duration::from_millis(delay));
        if pieces.send((last, turned.unwrap_or_else(|| buffer[..len].to_vec()))).is_err() {
            break;
        }
    }
    drop(pieces);
    // It ends by itself.
    let _ = writer.join();
}

fn write(
    mut to: TcpStream,
    due: &Receiver<(Instant, Vec<u8>)>,
    knobs: &Knobs,
    connection: u64,
    is_from_agent: bool,
) {
    while let Ok((at, piece)) = due.recv() {
        std::thread::sleep(at.saturating_duration_since(Instant::now()));
        if is_from_agent && knobs.newest.load(Ordering::SeqCst) > connection {
            knobs.overtaken.fetch_add(1, Ordering::Relaxed);
        }
        if to.write_all(&piece).is_err() {
            break;
        }
    }
    let _ = to.shutdown(Shutdown::Both);
}

/// Reads WebSocket frames as they pass.
struct Tap {
    host: String,
    connection: u64,
    history: Shared,
    is_from_agent: bool,
    ways: Vec<Way>,
    bytes: Vec<u8>,
    /// Whether the HTTP head is over.
    is_upgraded: bool,
}

impl Tap {
    fn take(&mut self, bytes: &[u8]) {
        self.bytes.extend_from_slice(bytes);
        if !self.is_upgraded {
            let Some(end) = self.bytes.windows(4).position(|window| window == b"\r\n\r\n") else { return };
            self.bytes.drain(..end + 4);
            self.is_upgraded = true;
        }
        while let Some((text, len)) = frame(&self.bytes) {
            self.bytes.drain(..len);
            let what = serde_json::from_slice(&text).ok().and_then(|message| wire(&message));
            if let Some(what) = what {
                let heard =
                    Heard { host: self.host.clone(), connection: self.connection, at: Stamp::now(), what };
                self.history.lock().wire.push(heard);
            }
        }
    }
}

/// The payload of the first frame, and its length in bytes; none: it is not whole. (RFC 6455, 5.2)
fn frame(bytes: &[u8]) -> Option<(Vec<u8>, usize)> {
    let second = *bytes.get(1)?;
    let (len, mut at) = match second & 0x7f {
        126 => (u64::from(u16::from_be_bytes(bytes.get(2..4)?.try_into().ok()?)), 4),
        127 => (u64::from_be_bytes(bytes.get(2..10)?.try_into().ok()?), 10),
        len => (u64::from(len), 2),
    };
    let mask = (second & 0x80 != 0).then(|| bytes.get(at..at + 4));
    let mask: Option<[u8; 4]> = match mask {
        Some(mask) => {
            at += 4;
            Some(mask?.try_into().ok()?)
        }
        None => None,
    };
    let end = at + usize::try_from(len).ok()?;
    let mut payload = bytes.get(at..end)?.to_vec();
    if let Some(mask) = mask {
        payload.iter_mut().zip(mask.iter().cycle()).for_each(|(byte, mask)| *byte ^= mask);
    }
    Some((payload, end))
}

fn wire(message: &Value) -> Option<Wire> {
    let number = |field: &str| message[field].as_u64();
    match (message["report"].as_str(), message["order"].as_str()) {
        (Some("hello"), _) => {
            let open = message["open"].as_array().into_iter().flatten().filter_map(Value::as_u64);
            Some(Wire::Hello { open: open.collect() })
        }
        (_, Some("outcome")) => Some(Wire::Outcome { transition: number("transition")? }),
        (_, Some("call")) => {
            let phase = message["phase"].as_str()?.to_owned();
            Some(Wire::Call { transition: number("transition"), phase })
        }
        (_, Some("notice")) => Some(Wire::Notice { index: number("index")?, previous: number("previous")? }),
        (_, Some("renewed")) => {
            Some(Wire::Renewed { sent_ms: number("sent")?, lease_ms: number("lease_ms") })
        }
        (_, Some("welcome")) => Some(Wire::Welcome { lease_ms: number("lease_ms")? }),
        (_, Some("gap")) => Some(Wire::Gap { index: number("index")? }),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_is_sent_on_is_sent_through_the_proxy() {
        let way = |server: &str, seen: &str| Way { server: server.parse().unwrap(), seen: seen.to_owned() };
        let ways = [way("10.0.0.1:1", "10.0.0.9:11"), way("10.0.0.2:1", "10.0.0.9:12")];
        let head = |to: &str| format!("HTTP/1.1 307 T\r\nlocation: http://{to}/v1/agent\r\n\r\n");
        assert_eq!(sent_on(head("10.0.0.2:1").as_bytes(), &ways), Some(head("10.0.0.9:12").into_bytes()));
        assert_eq!(sent_on(b"HTTP/1.1 101 Switching Protocols\r\n", &ways), None);
    }

    #[test]
    fn frames_are_read_masked_or_not_and_only_when_whole() {
        let plain = b"\x81\x05Hello";
        let masked = b"\x81\x85\x37\xfa\x21\x3d\x7f\x9f\x4d\x51\x58";
        for bytes in [&plain[..], &masked[..]] {
            assert_eq!(frame(bytes), Some((b"Hello".to_vec(), bytes.len())));
            assert_eq!(frame(&bytes[..bytes.len() - 1]), None);
        }
    }
}
