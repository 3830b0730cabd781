//! Sessions with agents: a WebSocket each, one JSON object a message. A session carries and checks the form of what
//! is said; what it means is the engine's.

mod line;

use crate::handler::printable;
use crate::json;
use axum::body::Body;
use axum::extract::{Request, State};
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use futures_util::{SinkExt, StreamExt};
use hyper_util::rt::TokioIo;
use line::Line;
use lockstep_core::engine::SessionId;
use lockstep_core::message::{Done, Order, Report};
use lockstep_core::spec::text_problem;
use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;
use tokio::sync::{Semaphore, mpsc};
use tokio::time::{Instant, sleep, timeout, timeout_at};
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::handshake::server::create_response_with_body;
use tokio_tungstenite::tungstenite::protocol::frame::coding::CloseCode;
use tokio_tungstenite::tungstenite::protocol::{CloseFrame, Message, Role, WebSocketConfig};
use tracing::{debug, warn};

/// What agents have said and the engine has not heard yet: one message of each.
const SAID_MAX: usize = 16_384;
/// The largest report: 16 KiB each of `out` and `facts`, some thousand `pids`, a reason; or a hundred long labels.
/// Too high: what many agents say at once adds up in memory and in the journal.
const REPORT_BYTES_MAX: usize = 64 << 10;
/// The largest message that is read at all. One between the two is answered with what is wrong with it.
const MESSAGE_BYTES_MAX: usize = 1 << 20;
/// What is read from a socket at once, in bytes, and what each session keeps for it, in which most have nothing to say:
/// it was two fifths of a session's memory when it was 4096. Renewals and most answers have less; a longer message
/// gets the room that it needs. Too low: a long one is read in many pieces. Too high: ten thousand times as much.
const READ_BYTES: usize = 1024;
/// A connection that has not introduced itself by then is closed.
const HELLO_MAX: Duration = Duration::from_secs(5);
/// An agent that says nothing for so long is cut off: it renews its lease far more often.
const SILENCE_MAX: Duration = Duration::from_secs(60);
/// A socket that takes nothing for so long is dead.
const WRITE_MAX: Duration = Duration::from_secs(10);

/// The last that is said to an agent has to be taken by then.
const LAST_MAX: Duration = Duration::from_secs(1);

/// What comes from agents.
pub(super) enum Said {
    Report(SessionId, Box<Report>),
    Closed(SessionId),
}

/// All sessions; cheap to clone.
#[derive(Clone)]
pub(super) struct Sessions {
    said: mpsc::Sender<Said>,
    open: Arc<Mutex<HashMap<SessionId, Open>>>,
    next: Arc<AtomicU64>,
    room: Arc<Semaphore>,
}

/// The driver's end of a session. Orders go out from here, without a turn of the session's own task; that one is
/// told when the socket takes no more for now. Dropping this ends the session.
struct Open {
    line: Line,
    stuck: mpsc::Sender<()>,
}

impl Sessions {
    /// At most `sessions_max` at once, those that have not introduced themselves included.
    pub(super) fn new(sessions_max: usize) -> (Self, mpsc::Receiver<Said>) {
        let (said, heard) = mpsc::channel(SAID_MAX);
        let room = Arc::new(Semaphore::new(sessions_max));
        (Self { said, open: Arc::default(), next: Arc::default(), room }, heard)
    }

    pub(super) fn send(&self, session: SessionId, order: &Order) {
        let text = serde_json::to_vec(order).expect("orders are plain data");
        let mut open = self.map();
        let Some(Open { line, stuck }) = open.get(&session) else { return };
        match line.send(&text) {
            Ok(true) => {}
            // Told once is enough.
            Ok(false) => _ = stuck.try_send(()),
            Err(error) => {
                debug!(session = session.0, %error, "an agent is cut off");
                open.remove(&session);
            }
        }
    }

    /// Closes a session once what was sent before has gone out.
    pub(super) fn close(&self, session: SessionId) {
        self.map().remove(&session);
    }

    /// Closes all of them.
    pub(super) fn close_all(&self) {
        self.map().clear();
    }

    fn map(&self) -> std::sync::MutexGuard<'_, HashMap<SessionId, Open>> {
        // Nothing under this lock can panic half-way.
        self.open.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

type Socket = WebSocketStream<Line>;

/// `GET /v1/agent`.
pub(super) async fn accept(State(sessions): State<Sessions>, mut request: Request) -> Response {
    let Ok(place) = sessions.room.clone().try_acquire_owned() else {
        return (StatusCode::SERVICE_UNAVAILABLE, "too many agents\n").into_response();
    };
    let response = match create_response_with_body(&request, Body::empty) {
        Ok(response) => response,
        Err(error) => return (StatusCode::BAD_REQUEST, format!("{error}\n")).into_response(),
    };
    let upgrade = hyper::upgrade::on(&mut request);
    tokio::spawn(async move {
        if let Ok(stream) = upgrade.await {
            serve(Line::new(TokioIo::new(stream)), sessions).await;
        }
        drop(place);
    });
    response
}

async fn serve(line: Line, sessions: Sessions) {
    let config = WebSocketConfig::default()
        .read_buffer_size(READ_BYTES)
        .write_buffer_size(0)
        .max_message_size(Some(MESSAGE_BYTES_MAX))
        .max_frame_size(Some(MESSAGE_BYTES_MAX));
    let mut socket = Socket::from_raw_socket(line.clone(), Role::Server, Some(config)).await;
    let Ok(Some(first)) = timeout(HELLO_MAX, receive(&mut socket)).await else {
        return;
    };
    let report = match first {
        Ok(report @ Report::Hello(_)) => report,
        Ok(_) => return refuse(&mut socket, "the first message must be a hello").await,
        Err(problem) => return refuse(&mut socket, &problem).await,
    };
    let id = SessionId(sessions.next.fetch_add(1, Ordering::Relaxed));
    let (stuck, mut is_stuck) = mpsc::channel(1);
    sessions.map().insert(id, Open { line: line.clone(), stuck });
    if sessions.said.send(Said::Report(id, Box::new(report))).await.is_ok() {
        carry(&mut socket, &line, id, &sessions, &mut is_stuck).await;
        // The server is gone when nobody hears this.
        let _ = sessions.said.send(Said::Closed(id)).await;
    }
    sessions.close(id);
}

/// Hears the agent, also while its socket takes what it is told only slowly: its renewals are behind nothing that it
/// has yet to read, and a host that is lost because it reads slowly would be lost for nothing.
async fn carry(
    socket: &mut Socket,
    line: &Line,
    id: SessionId,
    sessions: &Sessions,
    is_stuck: &mut mpsc::Receiver<()>,
) {
    let mut heard = Instant::now();
    // When the socket last took something, while something waits for it.
    let mut took: Option<Instant> = None;
    let mut silence = std::pin::pin!(sleep(SILENCE_MAX));
    loop {
        tokio::select! {
            biased;
            stuck = is_stuck.recv() => match stuck {
                Some(()) => _ = took.get_or_insert_with(Instant::now),
                None => {
                    let _ = timeout(LAST_MAX, socket.close(None)).await;
                    return;
                }
            },
            given = timeout_at(took.unwrap_or(heard) + WRITE_MAX, line.give()), if took.is_some() => match given {
                Ok(Ok(is_all)) => took = (!is_all).then(Instant::now),
                Ok(Err(_)) => return,
                Err(_) => return debug!(session = id.0, "an agent takes nothing"),
            },
            received = receive(socket) => match received {
                Some(Ok(report)) => {
                    heard = Instant::now();
                    if sessions.said.send(Said::Report(id, Box::new(report))).await.is_err() {
                        return;
                    }
                }
                Some(Err(problem)) => {
                    warn!(session = id.0, %problem, "an agent said something that cannot be read");
                    return refuse(socket, &problem).await;
                }
                None => return,
            },
            () = &mut silence => {
                let end = heard + SILENCE_MAX;
                if end <= Instant::now() {
                    return debug!(session = id.0, "an agent has gone silent");
                }
                silence.as_mut().reset(end);
            }
        }
    }
}

/// The next report; none when the connection is over.
async fn receive(socket: &mut Socket) -> Option<Result<Report, String>> {
    loop {
        match socket.next().await?.ok()? {
            Message::Text(text) => {
                return Some(read(text.as_str()));
            }
            Message::Binary(_) => return Some(Err("messages are text".to_owned())),
            Message::Ping(_) | Message::Pong(_) | Message::Frame(_) => {}
            Message::Close(_) => return None,
        }
    }
}

/// Reads a report. What people will be shown of it is plain text from here on.
pub(crate) fn read(text: &str) -> Result<Report, String> {
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
        Report::Renew { .. }
        | Report::HoldEnded { .. }
        | Report::Guarded { .. }
        | Report::Noticed { .. }
        | Report::Goodbye => {}
    }
    Ok(report)
}

async fn refuse(socket: &mut Socket, problem: &str) {
    // A close frame has room for 123 bytes.
    let reason: String = problem.chars().take(30).collect();
    let frame = CloseFrame { code: CloseCode::Policy, reason: reason.into() };
    let order = serde_json::to_string(&Order::Refused { message: problem.to_owned() })
        .expect("orders are plain data");
    let _ = timeout(LAST_MAX, async {
        socket.send(Message::text(order)).await?;
        socket.close(Some(frame)).await
    })
    .await;
}

#[cfg(test)]
mod tests {
    use super::*;
    use axum::Router;
    use axum::routing::get;
    use tokio_tungstenite::MaybeTlsStream;

    const HELLO: &str =
        r#"{"report":"hello","protocol":1,"host":"h","agent":"a","run":"r","reign":0,"token":0,"noticed":0}"#;

    type Agent = WebSocketStream<MaybeTlsStream<tokio::net::TcpStream>>;

    /// A session that stands, and both ends of it.
    async fn start() -> (Agent, Sessions, mpsc::Receiver<Said>, SessionId) {
        let (sessions, mut said) = Sessions::new(1);
        let router = Router::new().route("/", get(accept)).with_state(sessions.clone());
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("ws://{}/", listener.local_addr().unwrap());
        tokio::spawn(async { axum::serve(listener, router).await });
        let (mut agent, _) = tokio_tungstenite::connect_async(url).await.unwrap();
        agent.send(Message::text(HELLO)).await.unwrap();
        let Some(Said::Report(id, _)) = said.recv().await else { panic!("it says hello") };
        (agent, sessions, said, id)
    }

    fn order(len: usize) -> Order {
        Order::Refused { message: "x".repeat(len) }
    }

    #[tokio::test]
    async fn what_the_socket_does_not_take_at_once_follows_in_order() {
        let (mut agent, sessions, _said, id) = start().await;
        let lens = [1, 100, 200, 70_000, 8 << 20, 3, 1 << 20];
        lens.iter().for_each(|len| sessions.send(id, &order(*len)));
        for len in lens {
            let Message::Text(text) = agent.next().await.unwrap().unwrap() else { panic!("an order") };
            let got: Order = serde_json::from_str(&text).unwrap();
            assert!(got == order(len), "{} bytes instead of {len}", text.len());
        }
        sessions.close(id);
        assert!(matches!(agent.next().await, Some(Ok(Message::Close(_)))));
    }

    #[tokio::test]
    async fn who_reads_slowly_is_heard() {
        let (mut agent, sessions, mut said, id) = start().await;
        sessions.send(id, &order(12 << 20));
        agent.send(Message::text(r#"{"report":"renew","sent":1}"#)).await.unwrap();
        assert!(matches!(said.recv().await, Some(Said::Report(from, _)) if from == id));
        let Message::Text(text) = agent.next().await.unwrap().unwrap() else { panic!("an order") };
        assert!(text.len() > 12 << 20);
    }

    #[tokio::test]
    async fn an_agent_that_takes_nothing_is_cut_off() {
        let (_agent, sessions, mut said, id) = start().await;
        // What the kernel takes on both sides comes on top of what may wait here.
        (0..64).for_each(|_| sessions.send(id, &order(1 << 20)));
        assert!(sessions.map().is_empty());
        tokio::time::pause();
        assert!(matches!(said.recv().await, Some(Said::Closed(closed)) if closed == id));
    }

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
