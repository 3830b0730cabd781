//! HTTP as far as it is needed: one request a connection, with a bound on all of it.

use crate::network::{SERVER, SERVER_PORT};
use serde_json::Value;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

/// How long a client waits: longer than any pause of a server that is alive.
const PATIENCE: Duration = Duration::from_secs(8);
const CONNECT_PATIENCE: Duration = Duration::from_secs(1);

pub(crate) fn server() -> SocketAddr {
    format!("{SERVER}:{SERVER_PORT}").parse().expect("it is an address")
}

/// Opens a connection and sends a request.
pub(crate) fn send(method: &str, path: &str, body: Option<&Value>) -> std::io::Result<TcpStream> {
    let body = body.map(Value::to_string).unwrap_or_default();
    let request = format!(
        "{method} {path} HTTP/1.1\r\nhost: {SERVER}:{SERVER_PORT}\r\nconnection: close\r\n\
         content-type: application/json\r\ncontent-length: {}\r\n\r\n{body}",
        body.len()
    );
    let mut stream = TcpStream::connect_timeout(&server(), CONNECT_PATIENCE)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.set_write_timeout(Some(PATIENCE))?;
    stream.write_all(request.as_bytes())?;
    Ok(stream)
}

/// The status and the body; none when there is no whole answer.
pub(crate) fn ask(method: &str, path: &str, body: Option<&Value>) -> Option<(u16, Value)> {
    let mut answer = Vec::new();
    send(method, path, body).and_then(|mut stream| stream.read_to_end(&mut answer)).ok()?;
    let answer = String::from_utf8(answer).ok()?;
    let (head, body) = answer.split_once("\r\n\r\n")?;
    let status = head.split(' ').nth(1)?.parse().ok()?;
    // Half an answer is none.
    Some((status, serde_json::from_str(body).ok()?))
}

/// A list or an object, when the server gives it.
pub(crate) fn get(path: &str) -> Option<Value> {
    ask("GET", path, None).filter(|(status, _)| *status == 200).map(|(_, body)| body)
}

/// Reads the events after a revision, those so far or also those to come, until the stream ends; `take` gets each one's
/// id and data. Gives the status.
pub(crate) fn events(since: u64, follow: bool, mut take: impl FnMut(u64, &str)) -> std::io::Result<u16> {
    let stream = send("GET", &format!("/v1/events?since={since}&follow={follow}"), None)?;
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
