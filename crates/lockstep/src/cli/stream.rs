//! The event stream as the command line reads it: over lost connections and servers, without a gap.

use super::client::{Client, ClientError, Incoming};
use super::output::{Colour, clean, note, painted};
use crate::api::feed::{HEARTBEAT, KEEPALIVE};
use std::time::Duration;
use tokio::time::{Instant, timeout_at};

/// A stream on which nothing has been said for so long is lost: the server says something every [`HEARTBEAT`].
const SILENCE_MAX: Duration = Duration::from_secs(3 * HEARTBEAT.as_secs());
/// The pause before asking again, when no server answers.
const PAUSE: Duration = Duration::from_millis(250);
/// The longest line that is read. An event is as large as what it tells of; this is far above all that a server takes
/// in.
const LINE_BYTES_MAX: usize = 64 << 20;

/// What happens since a revision.
#[derive(Debug)]
pub struct Events<'a> {
    client: &'a Client,
    /// How far it has come; none while that is "now".
    since: Option<u64>,
    follow: bool,
    connection: Option<Connection>,
    /// Whether it has been connected, so that a server that goes away is one that comes back.
    was_connected: bool,
    /// Whether the user knows that no server answers.
    is_told: bool,
    /// The last comment that is no heartbeat: why the stream ends.
    comment: Option<String>,
}

#[derive(Debug)]
struct Connection {
    incoming: Incoming,
    reader: Reader,
    /// When something was last said on it.
    heard: Instant,
}

impl<'a> Events<'a> {
    /// What has happened since a revision, the newest when there is none; with `follow` for ever.
    pub fn since(client: &'a Client, since: Option<u64>, follow: bool) -> Self {
        let (connection, comment) = (None, None);
        Self { client, since, follow, connection, was_connected: false, is_told: false, comment }
    }

    /// The next event, as the server wrote it; none when all that was asked for has been read.
    ///
    /// # Errors
    /// If no server answers at first, or one refuses: `compacted`, when what comes next is not kept any more.
    pub async fn next(&mut self) -> Result<Option<String>, ClientError> {
        loop {
            let Some(Connection { incoming, reader, heard }) = &mut self.connection else {
                self.connect().await?;
                continue;
            };
            if let Some(said) = reader.next() {
                match said {
                    Said::Event { id, data } => {
                        self.since = id.or(self.since);
                        if let Some(data) = data {
                            return Ok(Some(data));
                        }
                    }
                    Said::Comment(comment) => self.comment = Some(comment),
                }
                continue;
            }
            // Whoever asks for an event may give up before one comes: silence counts from what was heard.
            let lost = match timeout_at(*heard + SILENCE_MAX, incoming.chunk()).await {
                Ok(Ok(Some(bytes))) if reader.take(bytes.as_ref()) => {
                    *heard = Instant::now();
                    continue;
                }
                Ok(Ok(Some(_))) => "it sends a line without an end".to_owned(),
                Ok(Ok(None)) => match self.comment.take() {
                    Some(why) => why,
                    None if !self.follow => return Ok(None),
                    None => "the server has closed the stream".to_owned(),
                },
                Ok(Err(why)) => format!("the connection is lost: {why}"),
                Err(_) => "the server says nothing any more".to_owned(),
            };
            self.connection = None;
            self.tell(&lost);
        }
    }

    async fn connect(&mut self) -> Result<(), ClientError> {
        let since = self.since.map(|since| format!("since={since}&")).unwrap_or_default();
        let path = format!("/v1/events?{since}follow={}", self.follow);
        match self.client.stream(&path).await {
            Ok(incoming) => {
                let (reader, heard) = (Reader::default(), Instant::now());
                self.connection = Some(Connection { incoming, reader, heard });
                self.was_connected = true;
                self.is_told = false;
                self.comment = None;
                Ok(())
            }
            Err(ClientError::Away(why) | ClientError::NotActive(why)) if self.was_connected => {
                self.tell(&why);
                tokio::time::sleep(PAUSE).await;
                Ok(())
            }
            // Whoever had a place has given it up with the connection; somebody may have taken it.
            Err(ClientError::Refused(problem)) if self.was_connected && problem.code == "busy" => {
                self.tell(&problem.detail);
                tokio::time::sleep(PAUSE).await;
                Ok(())
            }
            Err(error) => Err(error),
        }
    }

    fn tell(&mut self, why: &str) {
        if !self.is_told {
            note(&format!("{} {}", painted("resuming:", Colour::Yellow), clean(why)));
            self.is_told = true;
        }
    }
}

/// What a server says on a stream.
#[derive(Debug, PartialEq, Eq)]
enum Said {
    /// An event; one without data only says where to resume.
    Event { id: Option<u64>, data: Option<String> },
    /// Something for whoever reads along.
    Comment(String),
}

/// Cuts a stream of server-sent events into what is said. Of the fields of the format it knows those that our servers
/// send.
#[derive(Debug, Default)]
struct Reader {
    bytes: Vec<u8>,
    /// Up to where there is no line feed in them.
    searched: usize,
    id: Option<u64>,
    data: Option<String>,
}

impl Reader {
    /// Takes in what has come; tells whether that may be.
    fn take(&mut self, bytes: &[u8]) -> bool {
        self.bytes.extend_from_slice(bytes);
        self.bytes.len() <= LINE_BYTES_MAX || self.bytes.contains(&b'\n')
    }

    fn next(&mut self) -> Option<Said> {
        loop {
            let Some(end) = self.bytes[self.searched..].iter().position(|byte| *byte == b'\n') else {
                self.searched = self.bytes.len();
                return None;
            };
            let line: Vec<u8> = self.bytes.drain(..=self.searched + end).collect();
            self.searched = 0;
            let line = String::from_utf8_lossy(&line);
            let line = line.trim_end_matches(['\n', '\r']);
            if line.is_empty() {
                let (id, data) = (self.id.take(), self.data.take());
                if id.is_some() || data.is_some() {
                    return Some(Said::Event { id, data });
                }
                continue;
            }
            let (field, value) = line.split_once(':').unwrap_or((line, ""));
            let value = value.strip_prefix(' ').unwrap_or(value);
            match field {
                "" if value == KEEPALIVE => {}
                "" => return Some(Said::Comment(value.to_owned())),
                "id" => self.id = value.parse().ok(),
                "data" => match &mut self.data {
                    Some(data) => {
                        data.push('\n');
                        data.push_str(value);
                    }
                    None => self.data = Some(value.to_owned()),
                },
                _ => {}
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_stream_is_read_however_it_is_cut() {
        let text = "id: 7\n\n: still here\n\nid: 8\ndata: {\"a\":1}\n\nevent: provisional\r\ndata:{}\r\n\r\nretry: 3\n\n\
                    data: a\ndata: b\nunknown\n\n: too slow; resume\n\ndata: cut";
        let event = |id, data: Option<&str>| Said::Event { id, data: data.map(str::to_owned) };
        let expected = [
            event(Some(7), None),
            event(Some(8), Some("{\"a\":1}")),
            event(None, Some("{}")),
            event(None, Some("a\nb")),
            Said::Comment("too slow; resume".to_owned()),
        ];
        for size in 1..text.len() {
            let mut reader = Reader::default();
            let mut said = Vec::new();
            for piece in text.as_bytes().chunks(size) {
                assert!(reader.take(piece));
                said.extend(std::iter::from_fn(|| reader.next()));
            }
            assert_eq!(said, expected, "in pieces of {size}");
        }
    }

    #[test]
    fn a_line_has_an_end() {
        let mut reader = Reader::default();
        assert!(reader.take(&vec![b'x'; LINE_BYTES_MAX]));
        assert!(!reader.take(b"x"));
    }
}
