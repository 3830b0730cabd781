//! A server that says what it should not, to the real agent. The agent stays up and dials again, starts nothing under
//! a lower token or twice, and never runs what agent.toml does not name.

#![allow(clippy::unwrap_used, reason = "a test fails by it")]

mod common;

use common::{Process, STUCK, calls, host, wait_for};
use serde_json::{Value, json};
use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::time::{Duration, Instant};
use tempfile::TempDir;
use tokio_tungstenite::tungstenite::{Message, WebSocket};

/// A server played by the test, and an agent that dials it.
struct Stage {
    listener: TcpListener,
    agent: Process,
    host: Option<TempDir>,
}

impl Drop for Stage {
    fn drop(&mut self) {
        if std::thread::panicking()
            && let Some(host) = self.host.take()
        {
            eprintln!("logs and data are kept in {}", host.keep().display());
        }
    }
}

impl Stage {
    fn start() -> Self {
        let host = host();
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let server = format!("http://{}", listener.local_addr().unwrap());
        let args = ["agent", "--server", &server, "--name", "a", "--data", "data", "--config", "agent.toml"];
        let agent = Process::start(host.path(), "agent", &args);
        Self { listener, agent, host: Some(host) }
    }

    fn dir(&self) -> &std::path::Path {
        self.host.as_ref().unwrap().path()
    }

    /// The agent's next connection.
    fn connection(&self) -> TcpStream {
        let (stream, _) = self.listener.accept().unwrap();
        stream.set_read_timeout(Some(STUCK)).unwrap();
        stream
    }

    /// The agent's next session, and what it begins with.
    fn session(&self) -> (Session, Value) {
        let mut session = Session(tokio_tungstenite::tungstenite::accept(self.connection()).unwrap());
        let hello = session.hear();
        assert_eq!(hello["report"], "hello");
        (session, hello)
    }

    /// A session that stands, with members of group db under these handlers, on hosts of their names.
    fn welcome(&self, reign: u64, members: &Value) -> Session {
        let (mut session, _) = self.session();
        session.say(&json!({ "order": "welcome", "reign": reign, "lease_ms": 3000, "members": members }));
        session
    }
}

struct Session(WebSocket<TcpStream>);

impl Session {
    fn say(&mut self, order: &Value) {
        self.0.send(Message::text(order.to_string())).unwrap();
    }

    /// The next report; null when the session is over.
    fn hear(&mut self) -> Value {
        loop {
            match self.0.read() {
                Ok(Message::Text(text)) => return serde_json::from_str(text.as_str()).unwrap(),
                Ok(Message::Ping(_) | Message::Pong(_)) => {}
                Ok(Message::Close(_) | Message::Binary(_) | Message::Frame(_)) => return Value::Null,
                Err(error) => {
                    assert!(!format!("{error:?}").contains("WouldBlock"), "the agent is silent");
                    return Value::Null;
                }
            }
        }
    }

    /// The next answer to a call; states and renewals are of no interest.
    fn done(&mut self) -> Value {
        loop {
            let report = self.hear();
            assert_ne!(report, Value::Null, "the session is over");
            if report["report"] == "done" {
                return report;
            }
        }
    }

    /// Says something for which the session has to end.
    fn ends_by(mut self, message: Message) {
        // It may be closed before all has been sent.
        let _ = self.0.send(message);
        while self.hear() != Value::Null {}
    }
}

fn member(host: &str, handler: &str) -> Value {
    json!({ "member": format!("db@{host}"), "handler": handler, "lowest": "offline" })
}

fn call(phase: &str, transition: u64, token: u64, step: u32) -> Value {
    json!({ "order": "call", "member": "db@a", "phase": phase, "role": "actor", "transition": transition, "step": step,
        "attempt": 1, "token": token, "from": "offline", "to": "online", "decision": "commit", "within_ms": 30_000 })
}

fn with(mut value: Value, key: &str, other: Value) -> Value {
    value[key] = other;
    value
}

#[test]
fn nonsense_ends_a_session_and_not_the_agent() {
    let mut stage = Stage::start();
    let (session, first) = stage.session();
    session.ends_by(Message::text("hello"));
    let text = |value: Value| Message::text(value.to_string());
    let welcome = |reign: u64| json!({ "order": "welcome", "reign": reign, "lease_ms": 3000, "members": [] });
    let mut pause = Duration::ZERO;
    for message in [
        Message::binary(welcome(1).to_string().into_bytes()),
        text(json!({ "order": 7 })),
        text(json!({ "order": "refused", "message": "go away\u{1b}[2J" })),
        text(with(welcome(1), "members", json!([member("a", "../../bin/sh")]))),
        Message::text("[".repeat(100_000)),
        Message::text(" ".repeat(20 << 20)),
        text(with(welcome(1), "reign", json!(-1))),
    ] {
        let began = Instant::now();
        let (session, hello) = stage.session();
        pause = began.elapsed();
        assert_eq!(hello, first, "the same agent in the same run");
        session.ends_by(message);
        assert!(stage.agent.is_running(), "{}", stage.agent.said());
    }
    assert!(pause >= Duration::from_secs(1), "it asks ever more seldom: {pause:?}");
    // No WebSocket at all.
    for answer in ["HTTP/1.1 500 Internal Server Error\r\ncontent-length: 0\r\n\r\n", "\0\u{1}\u{2}", ""] {
        let mut stream = stage.connection();
        let _ = stream.read(&mut [0; 4096]).unwrap();
        stream.write_all(answer.as_bytes()).unwrap();
    }
    assert!(stage.agent.is_running());
    assert!(!stage.agent.said().contains("joined as"));
    let _session = stage.welcome(5, &json!([]));
    wait_for("the session", || stage.agent.said().contains("joined as a\n"));
}

#[test]
fn an_agent_that_finds_no_server_says_so_once() {
    let host = host();
    // Nobody else is given this port as long as it is held, and nobody listens on it.
    let held = tokio::net::TcpSocket::new_v4().unwrap();
    held.bind("127.0.0.1:0".parse().unwrap()).unwrap();
    let server = format!("http://{}", held.local_addr().unwrap());
    let args = ["agent", "--server", &server, "--name", "a", "--data", "data", "--config", "agent.toml"];
    let agent = Process::start(host.path(), "agent", &args);
    wait_for("several attempts", || agent.said().matches("cannot connect").count() >= 3);
    assert_eq!(agent.said().matches("no server answers: trying on").count(), 1, "{}", agent.said());
}

#[test]
fn a_server_that_is_out_of_date_is_left() {
    let stage = Stage::start();
    let mut session = stage.welcome(7, &json!([member("a", "sh")]));
    while session.hear()["report"] != "state" {}
    drop(session);
    let (mut session, hello) = stage.session();
    assert_eq!(hello["reign"], 7);
    session.say(&json!({ "order": "welcome", "reign": 6, "lease_ms": 3000, "members": [] }));
    while session.hear() != Value::Null {}
    assert_eq!(stage.agent.said().matches("joined as a\n").count(), 1);
}

#[test]
fn only_what_agent_toml_names_is_run_and_only_under_the_highest_token() {
    let mut stage = Stage::start();
    let members = json!([member("a", "sh"), member("x", "reboot"), member("y", "none")]);
    let mut session = stage.welcome(1, &members);
    // Handlers and members that this host does not have.
    let nowhere = [
        (7, "db@x", "agent.toml on this host has no handler reboot"),
        (8, "db@z", "db@z is not a member here"),
    ];
    for (step, member, reason) in nowhere {
        session.say(&with(call("commit", 10, 10, step), "member", json!(member)));
        let done = session.done();
        assert_eq!(done["answer"], "no");
        assert!(done["reason"].as_str().unwrap().contains(reason), "{done}");
    }
    // One order, however often it is given, is one run.
    std::fs::write(stage.dir().join("db@a.commit.wait"), "").unwrap();
    for _ in 0..3 {
        session.say(&call("commit", 10, 10, 0));
    }
    wait_for("the step to begin", || stage.dir().join("db@a.commit.waits").exists());
    session.say(&call("commit", 10, 10, 0));
    std::fs::remove_file(stage.dir().join("db@a.commit.wait")).unwrap();
    let done = session.done();
    assert_eq!((&done["answer"], &done["step"]), (&json!("yes"), &json!(0)), "{done}");
    // Whoever asks again gets the same answer, as often as it has asked.
    session.say(&call("commit", 10, 10, 0));
    session.say(&with(call("commit", 10, 10, 0), "attempt", json!(u32::MAX)));
    let last = with(done.clone(), "attempt", json!(u32::MAX));
    let mut answer = session.done();
    while answer != last {
        assert_eq!(answer, done);
        answer = session.done();
    }
    assert_eq!(calls(stage.dir(), "db@a", "begin").len(), 1);

    // A lower token, from a server that was deposed.
    session.say(&call("commit", 11, 9, 0));
    let refused = session.done();
    assert_eq!((&refused["answer"], &refused["refused"]), (&json!("no"), &json!(10)), "{refused}");
    // A transition that has ended.
    session.say(&json!({ "order": "outcome", "transition": 10, "outcome": "committed" }));
    for phase in ["commit", "prepare"] {
        session.say(&with(call(phase, 10, 12, 1), "attempt", json!(2)));
        let done = session.done();
        assert_eq!(
            (&done["answer"], &done["reason"]),
            (&json!("no"), &json!("the transition has ended here"))
        );
    }
    // What no environment can hold, and times without an end.
    let context = json!({ "settings": { "live": "a\u{0}b" }, "members": [] });
    session.say(&with(call("check", 20, 20, 0), "context", context));
    let done = session.done();
    assert_eq!(done["answer"], "no", "{done}");
    assert_eq!(calls(stage.dir(), "db@a", "begin").len(), 1, "nothing more was run");
    session.say(&with(
        with(call("hold", 21, 21, 0), "within_ms", json!(u64::MAX)),
        "hold_ms",
        json!(u64::MAX),
    ));
    assert_eq!(session.done()["answer"], "yes");
    session.say(&with(call("commit", 22, 22, 0), "within_ms", json!(0)));
    assert_eq!(session.done()["answer"], "no", "it is too late for that");
    let quoting = json!({ "live": "$(touch ended); `touch ended`" });
    session.say(&with(call("check", 23, 23, 0), "context", json!({ "settings": quoting, "members": [] })));
    assert_eq!(session.done()["answer"], "yes");
    let begun: Vec<_> = calls(stage.dir(), "db@a", "begin");
    let phases: Vec<_> = begun.iter().map(|line| line.split(' ').nth(1).unwrap()).collect();
    assert_eq!(phases, ["commit", "hold", "check"]);
    assert!(!stage.dir().join("ended").exists());

    // The same server without an end, in its next session: a lease of no length and of too much.
    drop(session);
    for lease_ms in [0, u64::MAX] {
        let (mut session, hello) = stage.session();
        assert_eq!(hello["token"], 23, "it keeps the highest token");
        session.say(&json!({ "order": "welcome", "reign": 1, "lease_ms": lease_ms, "members": members }));
        let mut heard = session.hear();
        while heard["report"] != "state" && heard != Value::Null {
            heard = session.hear();
        }
        // With a lease of no length it may leave before it has said more.
        assert!(lease_ms == 0 || heard != Value::Null, "it stays");
    }
    assert!(stage.agent.is_running(), "{}", stage.agent.said());
}

#[test]
fn what_a_later_server_adds_is_left_aside() {
    let stage = Stage::start();
    let mut session = stage.welcome(1, &json!([member("a", "sh")]));
    for _ in 0..3 {
        session.say(&json!({ "order": "shutdown", "within_ms": 1, "member": "db@a" }));
    }
    session.say(&with(call("check", 10, 10, 0), "a_new_field", json!({ "deep": [1] })));
    assert_eq!(session.done()["answer"], "yes");
    let said = stage.agent.said();
    assert_eq!(said.matches("the server is of a newer version").count(), 1, "{said}");
    assert_eq!(said.matches("joined as a\n").count(), 1, "{said}");
}

#[test]
fn a_handler_of_which_no_note_can_be_made_is_not_started_unless_clients_wait() {
    let stage = Stage::start();
    let mut session = stage.welcome(1, &json!([member("a", "sh")]));
    while session.hear()["report"] != "state" {}
    // As on a full disk: no file can be made there.
    let running = stage.dir().join("data").join("running");
    wait_for("the directory to be gone", || std::fs::remove_dir(&running).is_ok());
    std::fs::write(&running, "").unwrap();
    session.say(&call("commit", 10, 10, 0));
    let done = session.done();
    assert_eq!(done["answer"], "no");
    assert!(done["reason"].as_str().unwrap().starts_with("the agent cannot note"), "{done}");
    session.say(&with(call("release", 11, 11, 0), "step", Value::Null));
    assert_eq!(session.done()["answer"], "yes");
    let begun: Vec<_> = calls(stage.dir(), "db@a", "begin");
    assert!(begun.len() == 1 && begun[0].starts_with("begin release"), "{begun:?}");
}

#[test]
fn a_flood_of_orders_is_heard_to_its_end() {
    let mut stage = Stage::start();
    let mut session = stage.welcome(1, &json!([member("a", "sh")]));
    for round in 0..20_000_u64 {
        session.say(&json!({ "order": "outcome", "transition": round, "outcome": "aborted" }));
    }
    session.say(&call("commit", 30_000, 30_000, 0));
    assert_eq!(session.done()["answer"], "yes");
    assert!(stage.agent.is_running());
}
