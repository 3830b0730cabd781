//! Sessions with agents: a WebSocket each, one JSON object a message. A session carries and checks the form of what
//! is said; what it means is the engine's.

use crate::handler::printable;
use crate::json;
use axum::extract::State;
use axum::extract::ws::{CloseFrame, Message, WebSocket, WebSocketUpgrade, close_code};
use axum::response::{IntoResponse, Response};
use lockstep_core::engine::SessionId;
use lockstep_core::message::{Done, Order, Report};
use lockstep_core::spec::text_problem;
use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;
use tokio::sync::{Semaphore, mpsc};
use tokio::time::timeout;
use tracing::{debug, warn};

/// What agents have said and the engine has not heard yet: one message of each.
const SAID_MAX: usize = 16_384;
/// Orders that wait for one agent's socket. One that falls so far behind is cut off; it comes back and catches up.
const ORDERS_MAX: usize = 4096;
/// The largest report: 16 KiB each of `out` and `facts`, some thousand `pids`, a reason; or a hundred long labels.
/// Too high: what many agents say at once adds up in memory and in the journal.
const REPORT_BYTES_MAX: usize = 64 << 10;
/// The largest message that is read at all. One between the two is answered with what is wrong with it.
const MESSAGE_BYTES_MAX: usize = 1 << 20;
/// A connection that has not introduced itself by then is closed.
const HELLO_MAX: Duration = Duration::from_secs(5);
/// An agent that says nothing for so long is cut off: it renews its lease far more often.
const SILENCE_MAX: Duration = Duration::from_secs(60);
/// A socket that takes nothing for so long is dead.
const WRITE_MAX: Duration = Duration::from_secs(10);

/// What comes from agents.
pub(super) enum Said {
    Report(SessionId, Box<Report>),
    Closed(SessionId),
}

/// What goes to an agent.
enum Outgoing {
    Order(Box<Order>),
    Close,
}

/// All sessions; cheap to clone.
#[derive(Clone)]
pub(super) struct Sessions {
    said: mpsc::Sender<Said>,
    open: Arc<Mutex<HashMap<SessionId, mpsc::Sender<Outgoing>>>>,
    next: Arc<AtomicU64>,
    room: Arc<Semaphore>,
}

impl Sessions {
    /// At most `sessions_max` at once, those that have not introduced themselves included.
    pub(super) fn new(sessions_max: usize) -> (Self, mpsc::Receiver<Said>) {
        let (said, heard) = mpsc::channel(SAID_MAX);
        let room = Arc::new(Semaphore::new(sessions_max));
        (Self { said, open: Arc::default(), next: Arc::default(), room }, heard)
    }

    pub(super) fn send(&self, session: SessionId, order: Order) {
        self.put(session, Outgoing::Order(Box::new(order)));
    }

    /// Closes a session once what was sent before has gone out.
    pub(super) fn close(&self, session: SessionId) {
        self.put(session, Outgoing::Close);
    }

    pub(super) fn forget(&self, session: SessionId) {
        self.map().remove(&session);
    }

    fn put(&self, session: SessionId, outgoing: Outgoing) {
        let mut open = self.map();
        if open.get(&session).is_some_and(|queue| queue.try_send(outgoing).is_err()) {
            // Its queue is full or its task gone: dropping the queue ends the session.
            open.remove(&session);
        }
    }

    fn map(&self) -> std::sync::MutexGuard<'_, HashMap<SessionId, mpsc::Sender<Outgoing>>> {
        // Nothing under this lock can panic half-way.
        self.open.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// `GET /v1/agent`.
pub(super) async fn accept(State(sessions): State<Sessions>, upgrade: WebSocketUpgrade) -> Response {
    let Ok(place) = sessions.room.clone().try_acquire_owned() else {
        let busy = (axum::http::StatusCode::SERVICE_UNAVAILABLE, "too many agents\n");
        return busy.into_response();
    };
    upgrade
        .read_buffer_size(4096)
        .write_buffer_size(4096)
        .max_message_size(MESSAGE_BYTES_MAX)
        .max_frame_size(MESSAGE_BYTES_MAX)
        .on_upgrade(async move |socket| {
            serve(socket, sessions).await;
            drop(place);
        })
}

async fn serve(mut socket: WebSocket, sessions: Sessions) {
    let Ok(Some(first)) = timeout(HELLO_MAX, receive(&mut socket)).await else {
        return;
    };
    let report = match first {
        Ok(report @ Report::Hello(_)) => report,
        Ok(_) => return refuse(&mut socket, "the first message must be a hello").await,
        Err(problem) => return refuse(&mut socket, &problem).await,
    };
    let id = SessionId(sessions.next.fetch_add(1, Ordering::Relaxed));
    let (queue, mut orders) = mpsc::channel(ORDERS_MAX);
    sessions.map().insert(id, queue);
    if sessions.said.send(Said::Report(id, Box::new(report))).await.is_ok() {
        carry(&mut socket, id, &sessions, &mut orders).await;
        // The server is gone when nobody hears this.
        let _ = sessions.said.send(Said::Closed(id)).await;
    }
    sessions.forget(id);
}

async fn carry(
    socket: &mut WebSocket,
    id: SessionId,
    sessions: &Sessions,
    orders: &mut mpsc::Receiver<Outgoing>,
) {
    loop {
        tokio::select! {
            outgoing = orders.recv() => {
                let Some(outgoing) = outgoing else { return };
                if !matches!(timeout(WRITE_MAX, write(socket, outgoing, orders)).await, Ok(Ok(()))) {
                    return;
                }
            }
            received = timeout(SILENCE_MAX, receive(socket)) => match received {
                Ok(Some(Ok(report))) => {
                    if sessions.said.send(Said::Report(id, Box::new(report))).await.is_err() {
                        return;
                    }
                }
                Ok(Some(Err(problem))) => {
                    warn!(session = id.0, %problem, "an agent said something that cannot be read");
                    return refuse(socket, &problem).await;
                }
                Ok(None) => return,
                Err(_) => return debug!(session = id.0, "an agent has gone silent"),
            },
        }
    }
}

/// Writes an order and all that wait behind it, then flushes once.
async fn write(
    socket: &mut WebSocket,
    first: Outgoing,
    orders: &mut mpsc::Receiver<Outgoing>,
) -> Result<(), axum::Error> {
    use futures_util::SinkExt;
    let mut next = Some(first);
    while let Some(outgoing) = next {
        match outgoing {
            Outgoing::Order(order) => {
                let text = serde_json::to_string(&order).expect("orders are plain data");
                socket.feed(Message::text(text)).await?;
            }
            Outgoing::Close => {
                socket.flush().await?;
                socket.send(Message::Close(None)).await?;
                return Err(axum::Error::new("closed by the engine"));
            }
        }
        next = orders.try_recv().ok();
    }
    socket.flush().await
}

/// The next report; none when the connection is over.
async fn receive(socket: &mut WebSocket) -> Option<Result<Report, String>> {
    loop {
        match socket.recv().await?.ok()? {
            Message::Text(text) => {
                return Some(read(text.as_str()));
            }
            Message::Binary(_) => return Some(Err("messages are text".to_owned())),
            Message::Ping(_) | Message::Pong(_) => {}
            Message::Close(_) => return None,
        }
    }
}

/// Reads a report. What people will be shown of it is plain text from here on.
fn read(text: &str) -> Result<Report, String> {
    if text.len() > REPORT_BYTES_MAX {
        return Err(format!("a message of {} bytes; at most {REPORT_BYTES_MAX} are taken", text.len()));
    }
    let mut report: Report = json::parse_object(text).map_err(|error| error.to_string())?;
    match &mut report {
        Report::Hello(hello) => {
            if let Some(problem) = hello.address.as_deref().and_then(text_problem) {
                return Err(format!("the address: {problem}"));
            }
        }
        Report::Done(Done { reason, .. }) | Report::State { reason, .. } => {
            *reason = reason.as_deref().map(printable);
        }
        Report::Renew { .. } | Report::HoldEnded { .. } | Report::Noticed { .. } | Report::Goodbye => {}
    }
    Ok(report)
}

async fn refuse(socket: &mut WebSocket, problem: &str) {
    // A close frame has room for 123 bytes.
    let reason: String = problem.chars().take(30).collect();
    let frame = CloseFrame { code: close_code::POLICY, reason: reason.into() };
    let order = serde_json::to_string(&Order::Refused { message: problem.to_owned() })
        .expect("orders are plain data");
    let _ = timeout(Duration::from_secs(1), async {
        socket.send(Message::text(order)).await?;
        socket.send(Message::Close(Some(frame))).await
    })
    .await;
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reports_are_objects_of_plain_text_with_each_key_once() {
        let hello = r#"{"report":"hello","protocol":1,"host":"h","agent":"a","run":"r","reign":0,"token":0,
            "noticed":0,"address":"ADDRESS","labels":{LABELS}}"#;
        let hello = |address: &str, labels: &str| hello.replace("ADDRESS", address).replace("LABELS", labels);
        read(&hello("10.0.0.1", r#""a":"1""#)).unwrap();
        let done = r#"{"report":"done","member":"g@h","phase":"check","attempt":1,"answer":"no","findings":{"out":OUT}}"#;
        read(&done.replace("OUT", r#"{"a":{"a":1}}"#)).unwrap();
        for (bad, message) in [
            (hello("10.0.0.1", r#""a":"1","a":"1""#), "the key \"a\" is there twice"),
            (done.replace("OUT", r#"{"a":{"b":1,"b":2}}"#), "the key \"b\" is there twice"),
            (hello("\\u001b[2J", ""), "the address: "),
            (hello("\\u202e", ""), "the address: "),
            (r#"["goodbye"]"#.to_owned(), "expected an object"),
            (r#"{"report":"goodbye","report":"goodbye"}"#.to_owned(), "the key \"report\" is there twice"),
            (done.replace("OUT", &format!(r#"{{"a":"{}"}}"#, "x".repeat(REPORT_BYTES_MAX))), "a message of "),
        ] {
            let said = read(&bad).unwrap_err();
            assert!(said.starts_with(message), "{said}");
        }
        let reason = r#"{"report":"state","member":"g@h","state":null,"reason":"\u001b[2J\u202egone"}"#;
        let Ok(Report::State { reason, .. }) = read(reason) else { panic!("it is a state") };
        assert_eq!(reason.as_deref(), Some("\\u{1b}[2J\\u{202e}gone"));
    }
}
