//! Agents and clients that say what they should not, to the real server. It stays up, says what is wrong, and nothing
//! that they are not entitled to change is changed.

#![allow(clippy::unwrap_used, reason = "a test fails by it")]

mod common;

use common::{Cluster, STUCK, http, read_all, wait_for};
use serde_json::{Value, json};
use std::io::{Read, Write};
use std::net::{Shutdown, SocketAddr, TcpStream};
use std::time::{Duration, Instant};
use tokio_tungstenite::tungstenite::protocol::frame::FrameHeader;
use tokio_tungstenite::tungstenite::protocol::frame::coding::{Data, OpCode};
use tokio_tungstenite::tungstenite::{Message, WebSocket};

/// The end of a session, as the other side sees it.
struct Agent {
    socket: WebSocket<TcpStream>,
}

impl Agent {
    fn dial(address: SocketAddr) -> Self {
        let stream = TcpStream::connect(address).unwrap();
        stream.set_read_timeout(Some(STUCK)).unwrap();
        let url = format!("ws://{address}/v1/agent");
        let (socket, _) = tokio_tungstenite::tungstenite::client(url, stream).unwrap();
        Self { socket }
    }

    fn join(address: SocketAddr, hello: &Value) -> Self {
        let mut agent = Self::dial(address);
        agent.say(hello);
        assert_eq!(agent.hear()["order"], "welcome");
        agent
    }

    fn say(&mut self, report: &Value) {
        self.socket.send(Message::text(report.to_string())).unwrap();
    }

    /// The next order; null when the session is over.
    fn hear(&mut self) -> Value {
        loop {
            match self.socket.read() {
                Ok(Message::Text(text)) => return serde_json::from_str(text.as_str()).unwrap(),
                Ok(Message::Ping(_) | Message::Pong(_)) => {}
                Ok(Message::Close(_) | Message::Binary(_) | Message::Frame(_)) => return Value::Null,
                Err(error) => {
                    assert!(!format!("{error:?}").contains("WouldBlock"), "the session is not closed");
                    return Value::Null;
                }
            }
        }
    }

    /// Says something for which the session has to end; gives what was said of it.
    fn refused(mut self, message: Message) -> String {
        // It may be closed before all has been sent.
        let _ = self.socket.send(message);
        let mut refusal = String::new();
        loop {
            let order = self.hear();
            match order["order"].as_str() {
                Some("refused") => refusal = order["message"].as_str().unwrap().to_owned(),
                Some(_) => panic!("{order}"),
                None => return refusal,
            }
        }
    }
}

/// The agents of these tests renew no lease.
const PATIENT: &str = "cluster = \"shop\"\nlease_ms = 60000\n";

fn hello(host: &str) -> Value {
    json!({ "report": "hello", "protocol": 1, "host": host, "agent": format!("agent-{host}"), "run": "r", "reign": 0,
        "token": 0, "noticed": 0, "labels": { "role": "db" } })
}

fn with(mut value: Value, key: &str, other: Value) -> Value {
    value[key] = other;
    value
}

/// The server is there, and shows what it showed.
#[track_caller]
fn check_same(cluster: &mut Cluster, before: &[Value]) {
    assert!(cluster.server.is_running(), "{}", cluster.server.said());
    assert_eq!(all(cluster), before);
}

fn all(cluster: &Cluster) -> Vec<Value> {
    ["/v1/hosts", "/v1/members", "/v1/transitions"].map(|path| cluster.get(path)["items"].clone()).to_vec()
}

#[test]
fn a_session_begins_with_a_hello_that_is_right() {
    let mut cluster = Cluster::start();
    cluster.apply(PATIENT);
    let _known = Agent::join(cluster.address, &hello("known"));
    let before = all(&cluster);
    assert_eq!(before[0][0]["name"], "known");
    let text = |value: Value| Message::text(value.to_string());
    let at = |host: &str| text(hello(host));
    let label = |key: &str, value: &str| text(with(hello("h"), "labels", json!({ key: value })));
    let twice = |of: &str| {
        let extra = format!("{{{of}");
        Message::text(hello("h").to_string().replacen('{', &extra, 1))
    };
    let cases: Vec<(&str, Message, &str)> = vec![
        ("a renewal", text(json!({ "report": "renew", "sent": 1 })), "the first message must be a hello"),
        ("no report", text(json!({ "report": "hi" })), "unknown variant `hi`"),
        ("no JSON", Message::text("hello"), "expected value"),
        ("nothing", Message::text(""), "EOF while parsing"),
        ("an array", Message::text(r#"["hello",1,"h","a","r",null,{},0,0,[],0]"#), "expected an object"),
        ("bytes", Message::binary(hello("h").to_string().into_bytes()), "messages are text"),
        ("a long name", at(&"x".repeat(60_000)), ""),
        ("a very long name", at(&"x".repeat(100_000)), "at most 65536"),
        ("NUL", at("a\0b"), ""),
        ("right to left", at("a\u{202e}b"), ""),
        ("a path", at("../../etc"), ""),
        ("a shell", at(";$(reboot)"), ""),
        ("no name", at(""), ""),
        ("a tag", at("<script>"), ""),
        ("an identity", text(with(hello("h"), "agent", json!("../x"))), ""),
        ("protocol 2", text(with(hello("h"), "protocol", json!(2))), "it speaks protocol 2"),
        ("protocol 2^63", text(with(hello("h"), "protocol", json!(1_u64 << 63))), "invalid value"),
        ("protocol -1", text(with(hello("h"), "protocol", json!(-1))), "invalid value"),
        ("a future token", text(with(hello("h"), "token", json!(u64::MAX))), "it has seen token"),
        ("a future reign", text(with(hello("h"), "reign", json!(1_000_000))), "reign 1000000"),
        ("a label's escape", label("a", "\u{1b}[2J"), "a label is not plain text"),
        ("a label's key", label("a\nb", "c"), "a label is not plain text"),
        ("a label's length", label("a", &"x".repeat(300)), "a label is not plain text"),
        ("an address's escape", text(with(hello("h"), "address", json!("\u{1b}[2J"))), "the address: "),
        ("a key twice", twice(r#""host":"g","#), "the key \"host\" is there twice"),
        ("a label twice", twice(r#""labels":{"role":"a","role":"b"},"#), "the key \"role\" is there twice"),
        ("depth", Message::text("[".repeat(10_000)), "recursion limit"),
        ("depth in it", twice(&format!(r#""x":{},"#, "[".repeat(10_000))), "recursion limit"),
        ("2 MiB", Message::text(" ".repeat(2 << 20)), ""),
        (
            "a stolen name",
            text(with(hello("known"), "agent", json!("other"))),
            "another agent has joined as known",
        ),
        ("too many labels", text(with(hello("h"), "labels", json!(labels(2000)))), "at most 65536"),
    ];
    for (what, message, refusal) in cases {
        let said = Agent::dial(cluster.address).refused(message);
        assert!(said.contains(refusal), "{what}: {said:?}");
        assert!(said.len() < 1000 && !said.contains(['\u{1b}', '\u{202e}', '\0']), "{what}: {said:?}");
        check_same(&mut cluster, &before);
    }
}

fn labels(count: usize) -> serde_json::Map<String, Value> {
    (0..count).map(|label| (format!("label-{label}"), json!("x".repeat(40)))).collect()
}

#[test]
fn what_a_later_version_adds_is_left_aside() {
    let cluster = Cluster::start();
    let newer = with(hello("newer"), "colour", json!({ "a": 1 }));
    let _agent = Agent::join(cluster.address, &newer);
    assert_eq!(cluster.liveness("newer"), "alive");
}

#[test]
fn a_connection_may_end_at_every_byte() {
    let mut cluster = Cluster::start();
    let before = all(&cluster);
    let text = hello("cut").to_string().into_bytes();
    let mut frame = Vec::new();
    let header =
        FrameHeader { opcode: OpCode::Data(Data::Text), mask: Some([1, 2, 3, 4]), ..FrameHeader::default() };
    header.format(text.len() as u64, &mut frame).unwrap();
    frame.extend(text.iter().enumerate().map(|(at, byte)| byte ^ [1, 2, 3, 4][at % 4]));
    for end in 0..frame.len() {
        let mut agent = Agent::dial(cluster.address);
        agent.socket.get_mut().write_all(&frame[..end]).unwrap();
        // Half of them say goodbye as TCP has it, half are gone.
        if end % 2 == 0 {
            agent.socket.get_mut().shutdown(Shutdown::Both).unwrap();
        }
    }
    check_same(&mut cluster, &before);
    // The same frame whole is a hello.
    let mut agent = Agent::dial(cluster.address);
    agent.socket.get_mut().write_all(&frame).unwrap();
    assert_eq!(agent.hear()["order"], "welcome");
}

/// Two hosts in one group that moves, the agents played by the test.
fn pair(cluster: &Cluster) -> [Agent; 2] {
    cluster.apply(&format!(
        "{PATIENT}[groups.db]\nselect = {{ role = \"db\" }}\nhandler = \"sh\"\n\
         deadlines_ms = {{ check = 40000, prepare = 40000, commit = 60000 }}\n"
    ));
    let agents = ["a", "b"].map(|host| {
        let mut agent = Agent::join(cluster.address, &hello(host));
        agent.say(&json!({ "report": "state", "member": format!("db@{host}"), "state": "offline" }));
        agent
    });
    wait_for("the states to be known", || {
        ["a", "b"].iter().all(|host| cluster.member("db", host)["actual"] == "offline")
    });
    agents
}

/// The next call; renewals and notices are of no interest.
fn call(agent: &mut Agent) -> Value {
    loop {
        let order = agent.hear();
        assert_ne!(order, Value::Null, "the session is over");
        if order["order"] == "call" {
            return order;
        }
    }
}

fn done(call: &Value, answer: &str) -> Value {
    let mut done = json!({ "report": "done", "answer": answer });
    for key in ["member", "phase", "transition", "step", "attempt", "plan"] {
        if call[key] != Value::Null {
            done[key] = call[key].clone();
        }
    }
    done
}

#[test]
fn an_agent_speaks_for_itself_alone() {
    let mut cluster = Cluster::start();
    let [mut a, mut b] = pair(&cluster);
    let id = cluster.run(&["db=online"], "once");
    let (check_a, check_b) = (call(&mut a), call(&mut b));
    assert_eq!((&check_a["phase"], &check_b["phase"]), (&json!("check"), &json!("check")));
    let before = all(&cluster);
    let number = check_a["transition"].clone();
    let lies = [
        // Of another host's member.
        done(&check_b, "yes"),
        done(&check_b, "no"),
        json!({ "report": "state", "member": "db@b", "state": "online" }),
        json!({ "report": "hold-ended", "transition": number, "member": "db@b" }),
        // Of what there is not.
        json!({ "report": "state", "member": "db@nowhere", "state": "online" }),
        json!({ "report": "state", "member": "nothing@a", "state": "online" }),
        json!({ "report": "hold-ended", "transition": 999_999, "member": "db@a" }),
        json!({ "report": "hold-ended", "transition": u64::MAX, "member": "db@a" }),
        with(done(&check_a, "yes"), "transition", json!(999_999)),
        with(done(&check_a, "no"), "transition", json!(u64::MAX)),
        with(done(&check_a, "yes"), "member", json!("db@nowhere")),
        with(done(&check_a, "yes"), "member", json!("nothing@a")),
        json!({ "report": "noticed", "index": u64::MAX }),
        // Of what has not been asked.
        with(done(&check_a, "yes"), "plan", json!("0000")),
        with(done(&check_a, "yes"), "phase", json!("prepare")),
        with(done(&check_a, "yes"), "phase", json!("hold")),
        with(done(&check_a, "yes"), "phase", json!("release")),
        with(done(&check_a, "yes"), "phase", json!("cancel")),
        with(done(&check_a, "yes"), "phase", json!("stop")),
        with(done(&check_a, "yes"), "phase", json!("fence")),
        with(with(done(&check_a, "yes"), "phase", json!("commit")), "step", json!(0)),
        with(with(done(&check_a, "yes"), "phase", json!("commit")), "step", json!(u32::MAX)),
        with(with(done(&check_a, "no"), "phase", json!("undo")), "step", json!(u32::MAX)),
    ];
    for lie in &lies {
        a.say(lie);
    }
    settle(&mut a);
    check_same(&mut cluster, &before);
    assert_eq!(cluster.transition(&id)["phase"], "check", "nobody has voted");

    // A real vote counts once, however often it is said.
    for _ in 0..3 {
        a.say(&done(&check_a, "yes"));
    }
    settle(&mut a);
    wait_for("the vote", || votes(&cluster, &id).len() == 1);
    assert_eq!(cluster.transition(&id)["phase"], "check", "{}", cluster.transition(&id));
    // And it may not be taken back once it is counted, nor given for a step that is not its own.
    b.say(&done(&check_b, "yes"));
    let (prepare_a, prepare_b) = (call(&mut a), call(&mut b));
    assert_eq!(prepare_a["phase"], "prepare");
    a.say(&done(&check_a, "yes"));
    a.say(&done(&prepare_a, "yes"));
    b.say(&done(&prepare_b, "yes"));
    let (commit_a, commit_b) = (call(&mut a), call(&mut b));
    assert_eq!((&commit_a["phase"], &commit_b["phase"]), (&json!("commit"), &json!("commit")));
    // a: its own step under b's number, and b's step; votes of phases that are over.
    for lie in [
        with(done(&commit_a, "yes"), "step", commit_b["step"].clone()),
        done(&commit_b, "yes"),
        with(done(&commit_a, "yes"), "step", json!(u32::MAX)),
        with(done(&commit_a, "yes"), "phase", json!("undo")),
        done(&check_a, "no"),
        done(&prepare_a, "no"),
    ] {
        a.say(&lie);
    }
    settle(&mut a);
    let transition = cluster.transition(&id);
    assert_eq!(
        (&transition["decision"], &transition["outcome"]),
        (&json!("commit"), &Value::Null),
        "{transition}"
    );
    for host in ["a", "b"] {
        assert_eq!(cluster.member("db", host)["actual"], "offline", "{host}");
    }
    a.say(&done(&commit_a, "yes"));
    settle(&mut a);
    assert_eq!(cluster.transition(&id)["outcome"], Value::Null);
    // More than findings may have: the session ends, and the step is not done.
    let giant = with(done(&commit_b, "yes"), "findings", json!({ "out": { "x": "x".repeat(500_000) } }));
    let said = b.refused(Message::text(giant.to_string()));
    assert!(said.contains("at most 65536"), "{said}");
    assert_eq!(cluster.transition(&id)["outcome"], Value::Null);
    let mut b = Agent::join(cluster.address, &with(hello("b"), "open", json!([number])));
    let commit_b = call(&mut b);
    b.say(&done(&commit_b, "yes"));
    assert_eq!(cluster.outcome(&id), "committed");
    assert!(cluster.server.is_running());
}

fn votes(cluster: &Cluster, id: &str) -> Vec<Value> {
    let votes = cluster.transition(id)["votes"].clone();
    votes.as_array().unwrap().iter().filter(|vote| vote["answer"] != Value::Null).cloned().collect()
}

/// Waits until all that was said before has been heard: a renewal is answered in its turn.
fn settle(agent: &mut Agent) {
    let sent = 4711;
    agent.say(&json!({ "report": "renew", "sent": sent }));
    while agent.hear() != json!({ "order": "renewed", "sent": sent }) {}
}

#[test]
fn an_agent_that_never_stops_talking_keeps_nobody_waiting() {
    let mut cluster = Cluster::start();
    let [mut a, _b] = pair(&cluster);
    let flood = json!({ "report": "state", "member": "db@b", "state": "online",
        "facts": { "x": "x".repeat(50_000) } });
    let flood = Message::text(flood.to_string());
    let stop = std::sync::atomic::AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            while !stop.load(std::sync::atomic::Ordering::Relaxed) {
                a.socket.send(flood.clone()).unwrap();
            }
        });
        for round in 0..20 {
            let began = Instant::now();
            let hold_ms = 1000 + round;
            let group = format!("[groups.db]\nselect = {{ role = \"db\" }}\nhold_ms = {hold_ms}\n");
            cluster.apply(&format!("cluster = \"shop\"\n{group}"));
            assert!(began.elapsed() < Duration::from_secs(20));
        }
        stop.store(true, std::sync::atomic::Ordering::Relaxed);
    });
    assert!(cluster.server.is_running());
}

#[test]
fn sockets_that_say_nothing_are_closed_and_keep_nobody_out() {
    use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
    let Rlimit { maximum, .. } = getrlimit(Resource::Nofile);
    setrlimit(Resource::Nofile, Rlimit { current: maximum, maximum }).unwrap();
    let mut cluster = Cluster::start();
    let idle: Vec<_> = (0..1000).map(|_| TcpStream::connect(cluster.address).unwrap()).collect();
    let mut slow = TcpStream::connect(cluster.address).unwrap();
    slow.write_all(b"GET /livez HTTP/1.1\r\nhost: localhost\r\nx: ").unwrap();
    // An upgrade, and then nothing.
    let mut mute = Agent::dial(cluster.address);
    // A body that never comes: its time is longer, and it keeps nobody out either.
    let mut body = TcpStream::connect(cluster.address).unwrap();
    body.write_all(b"POST /v1/plans HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\ncontent-length: 99\r\n\r\n{")
        .unwrap();
    let began = Instant::now();
    assert_eq!(http(cluster.address, "GET", "/livez", None).unwrap().0, 200);
    let _agent = Agent::join(cluster.address, &hello("a"));
    assert!(began.elapsed() < Duration::from_secs(5), "{:?}", began.elapsed());
    assert_eq!(mute.hear(), Value::Null, "it is closed after its time");
    // Byte by byte does not help.
    wait_for("the slow one to be closed", || slow.write_all(b"x").is_err());
    body.write_all(b" ").unwrap();
    for mut idle in idle {
        assert_eq!(read_all(&mut idle), "");
    }
    assert!(cluster.server.is_running());
    // With requests one after the other, a connection lives on.
    let mut stream = TcpStream::connect(cluster.address).unwrap();
    for _ in 0..3 {
        stream.write_all(b"GET /livez HTTP/1.1\r\nhost: localhost\r\n\r\n").unwrap();
        let mut answer = [0; 8 << 10];
        let length = stream.read(&mut answer).unwrap();
        assert!(answer[..length].starts_with(b"HTTP/1.1 200 OK"));
    }
}

#[test]
fn requests_that_are_not_http_are_refused() {
    let mut cluster = Cluster::start();
    let ask = |text: &[u8]| {
        let mut stream = TcpStream::connect(cluster.address).unwrap();
        // It may be closed before all has been sent.
        let _ = stream.write_all(text);
        let answer = read_all(&mut stream);
        answer.split("\r\n").next().unwrap().to_owned()
    };
    let headers =
        |text: &str| format!("GET /livez HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n{text}\r\n");
    let many: String = (0..500).map(|header| format!("x{header}: y\r\n")).collect();
    for (what, text, status) in [
        ("all is well", headers(""), "200"),
        ("a large header", headers(&format!("x: {}\r\n", "x".repeat(40_000))), "431"),
        ("many headers", headers(&many), "431"),
        ("a long path", headers("").replace("livez", &"x".repeat(40_000)), "431"),
        ("no HTTP", "hello\r\n\r\n".to_owned(), "400"),
        ("HTTP/2", "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".to_owned(), ""),
        ("TLS", "\x16\x03\x01\x02\r\n\r\n".to_owned(), "400"),
        ("two lengths", headers("content-length: 1\r\ncontent-length: 2\r\n"), "400"),
        ("a chunk lie", headers("transfer-encoding: chunked\r\ncontent-length: 2\r\n"), ""),
        ("no upgrade", headers("").replace("/livez", "/v1/agent"), "400"),
        ("NUL in a header", headers("x: \0\r\n"), "400"),
    ] {
        let answer = ask(text.as_bytes());
        assert!(answer.contains(status), "{what}: {answer}");
    }
    assert!(cluster.server.is_running());
}
