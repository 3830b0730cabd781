//! HTTP as far as it is needed: one request a connection, with a bound on all of it. Where there are several servers, each
//! request begins at another one, follows whom it is sent on to, and goes on to the next one where nothing comes of it:
//! all that is asked for here may be asked for twice.

use crate::clock::Stamp;
use crate::network::{Layout, Place, SERVER_PORT, layout};
use serde_json::Value;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

const CONNECT_PATIENCE: Duration = Duration::from_secs(1);

/// How long a client waits: longer than any pause of a server that is alive; where it may ask another one, for less.
fn patience() -> Duration {
    match layout() {
        Layout::One => Duration::from_secs(8),
        Layout::Three => Duration::from_secs(3),
    }
}

/// What somebody is asked.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Ask<'a> {
    method: &'a str,
    path: &'a str,
    body: Option<&'a Value>,
    /// How long all of it may take.
    patience: Duration,
}

impl<'a> Ask<'a> {
    pub(crate) fn get(path: &'a str, patience: Duration) -> Self {
        Self { method: "GET", path, body: None, patience }
    }

    pub(crate) fn post(path: &'a str, body: &'a Value, patience: Duration) -> Self {
        Self { method: "POST", path, body: Some(body), patience }
    }
}

/// What somebody answered.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Answer {
    /// The server that did.
    pub(crate) server: &'static str,
    /// When it was asked.
    pub(crate) begun: Stamp,
    pub(crate) status: u16,
    pub(crate) body: Value,
    /// Whom it sends us on to.
    location: Option<String>,
}

/// The next one to begin at.
static NEXT: AtomicUsize = AtomicUsize::new(0);

/// A server to ask, another one each time.
pub(crate) fn some_server() -> Place {
    let servers = layout().servers();
    servers[NEXT.fetch_add(1, Ordering::Relaxed) % servers.len()]
}

pub(crate) fn address_of(server: Place) -> SocketAddr {
    format!("{}:{SERVER_PORT}", server.1).parse().expect("it is an address")
}

/// Opens a connection and sends a request.
fn send(to: SocketAddr, ask: Ask<'_>) -> std::io::Result<TcpStream> {
    let Ask { method, path, body, patience } = ask;
    let body = body.map(Value::to_string).unwrap_or_default();
    // Of the first version, so that answers come in one piece.
    let request = format!(
        "{method} {path} HTTP/1.0\r\nhost: {to}\r\nconnection: close\r\n\
         content-type: application/json\r\ncontent-length: {}\r\n\r\n{body}",
        body.len()
    );
    let mut stream = TcpStream::connect_timeout(&to, CONNECT_PATIENCE.min(patience))?;
    stream.set_read_timeout(Some(patience))?;
    stream.set_write_timeout(Some(patience))?;
    stream.write_all(request.as_bytes())?;
    Ok(stream)
}

/// Status, head and body of an answer; none when there is no whole one.
pub(crate) fn exchange(to: SocketAddr, ask: Ask<'_>) -> Option<(u16, String, Value)> {
    let mut answer = Vec::new();
    send(to, ask).and_then(|mut stream| stream.read_to_end(&mut answer)).ok()?;
    let answer = String::from_utf8(answer).ok()?;
    let (head, body) = answer.split_once("\r\n\r\n")?;
    let status = head.split(' ').nth(1)?.parse().ok()?;
    // Half an answer is none, and whoever sends us on says nothing else.
    let body = if status == 307 { Value::Null } else { serde_json::from_str(body).ok()? };
    Some((status, head.to_owned(), body))
}

/// Asks one server, and nobody else.
pub(crate) fn ask_one(server: Place, ask: Ask<'_>) -> Option<Answer> {
    let begun = Stamp::now();
    let (status, head, body) = exchange(address_of(server), ask)?;
    let location = head.lines().find_map(|line| line.strip_prefix("location: ")).map(str::to_owned);
    Some(Answer { server: server.0, begun, status, body, location })
}

/// Asks one server, and whom it sends us on to.
pub(crate) fn ask_through(server: Place, ask: Ask<'_>) -> Option<Answer> {
    let answer = ask_one(server, ask)?;
    let Some(location) = answer.location.as_deref().filter(|_| answer.status == 307) else {
        return Some(answer);
    };
    let is_meant = |place: &&Place| location.starts_with(&format!("http://{}/", address_of(**place)));
    let meant = layout().servers().iter().find(is_meant)?;
    ask_one(*meant, ask)
}

/// Asks one server after the other until one has something to say, and whoever is sent on goes there.
pub(crate) fn ask_any(method: &str, path: &str, body: Option<&Value>) -> Option<Answer> {
    let ask = Ask { method, path, body, patience: patience() };
    let servers = layout().servers();
    let first = NEXT.fetch_add(1, Ordering::Relaxed);
    let mut last = None;
    for turn in 0..servers.len() {
        let answer = ask_through(servers[(first + turn) % servers.len()], ask);
        match answer {
            Some(answer) if answer.status == 503 || answer.status == 307 => last = Some(answer),
            Some(answer) => return Some(answer),
            None => {}
        }
    }
    last
}

/// The status and the body; none when there is no whole answer.
pub(crate) fn ask(method: &str, path: &str, body: Option<&Value>) -> Option<(u16, Value)> {
    ask_any(method, path, body).map(|answer| (answer.status, answer.body))
}

/// A list or an object, when a server gives it. It shows all that anybody was shown before.
pub(crate) fn get(path: &str) -> Option<Value> {
    let path = match layout() {
        Layout::One => path.to_owned(),
        Layout::Three => format!("{path}?consistent=true"),
    };
    ask("GET", &path, None).filter(|(status, _)| *status == 200).map(|(_, body)| body)
}

/// What one server gives, as far as it knows, or all that there is.
pub(crate) fn get_from(server: Place, path: &str, is_consistent: bool) -> Option<Answer> {
    let path = if is_consistent { format!("{path}?consistent=true") } else { path.to_owned() };
    ask_one(server, Ask::get(&path, patience())).filter(|answer| answer.status == 200)
}

/// Reads a server's events after a revision, those so far or also those to come, until the stream ends; `take` gets each
/// one's id and data. Gives the status.
pub(crate) fn events(
    server: Place,
    since: u64,
    follow: bool,
    mut take: impl FnMut(u64, &str),
) -> std::io::Result<u16> {
    let path = format!("/v1/events?since={since}&follow={follow}");
    let stream = send(address_of(server), Ask::get(&path, patience()))?;
    // A comment comes every 15 seconds.
    stream.set_read_timeout(Some(Duration::from_secs(20)))?;
    let mut lines = BufReader::new(stream).lines();
    let head = lines.next().transpose()?.unwrap_or_default();
    let status = head.split(' ').nth(1).and_then(|word| word.parse().ok()).unwrap_or(0);
    let mut id: Option<u64> = None;
    for line in lines {
        let line = line?;
        if let Some(value) = line.strip_prefix("id:") {
            id = value.trim().parse().ok();
        } else if let Some(data) = line.strip_prefix("data:") {
            // What is provisional has no id.
            id.into_iter().for_each(|id| take(id, data.trim()));
        } else if line.is_empty() {
            id = None;
        }
    }
    Ok(status)
}
