//! `lockstep events` and `--watch`: what has happened and what happens, over lost connections and servers.

#![allow(clippy::unwrap_used, reason = "a test fails by it")]

mod common;

use common::{Cluster, Process, lockstep, wait_for};
use expect_test::expect;
use lockstep::api::feed::{Feed, Page};
use lockstep::api::{ServerInfo, router};
use lockstep::server::handle::{Handle, View};
use lockstep::store::{self, Entry};
use lockstep_core::cluster;
use lockstep_core::id::{Index, Reign};
use lockstep_core::record::{Body, Record};
use lockstep_core::time::WallTime;
use serde_json::Value;
use std::net::{SocketAddr, TcpListener};
use std::sync::Arc;
use tokio::sync::{mpsc, watch};

const SPEC: &str = "cluster = \"shop\"\n[groups.db]\nselect = { role = \"db\" }\nhandler = \"sh\"\n\
    [groups.cron]\nselect = { role = \"cron\" }\n";

fn start() -> Cluster {
    let mut cluster = Cluster::start();
    std::fs::write(cluster.dir.join("db@a.state"), "offline\n").unwrap();
    cluster.start_agent("a", "role=db");
    cluster.start_agent("b", "role=cron");
    cluster.apply(SPEC);
    wait_for("every member's state", || {
        let members = cluster.items("/v1/members");
        members.len() == 2 && members.iter().all(|member| member["actual"] == "offline")
    });
    cluster
}

fn values(text: &str) -> Vec<Value> {
    text.lines()
        .filter(|line| line.starts_with('{'))
        .map(|line| serde_json::from_str(line).unwrap())
        .collect()
}

/// The revisions of the records among them.
fn revisions(events: &[Value]) -> Vec<u64> {
    events.iter().filter_map(|event| event["revision"].as_u64()).collect()
}

/// A command that stays, against the cluster's server.
fn stay(cluster: &Cluster, name: &str, args: &[&str]) -> Process {
    let address = cluster.address.to_string();
    Process::start(&cluster.dir, name, &[&["--addr", &address], args].concat())
}

#[test]
fn what_has_happened() {
    let cluster = start();
    let first = cluster.run(&["db=online"], "r1");
    assert_eq!(cluster.outcome(&first), "committed");
    let second = cluster.run(&["cron=online"], "r2");
    assert_eq!(cluster.outcome(&second), "committed");
    let (exit, out, err) = cluster.lockstep(&["events", "-o", "json"]);
    assert_eq!((exit, err.as_str()), (0, ""));
    let events = values(&out);
    assert_eq!(events.len(), out.lines().count(), "an object a line");
    let head = cluster.get("/v1/members")["revision"].as_u64().unwrap();
    assert!(revisions(&events).into_iter().eq(1..=head), "{:?} of {head}", revisions(&events));
    let (_, out, _) = cluster.lockstep(&["events", "--output=json", "--since", "3"]);
    assert_eq!(values(&out), events[3..]);
    let (exit, out, err) = cluster.lockstep(&["events", "--since", &head.to_string()]);
    assert_eq!((exit, out.as_str(), err.as_str()), (0, "", ""));
    // Steps say whose they are, and all of a transition says which groups it moves.
    let (_, out, _) = cluster.lockstep(&["events", "-o", "json", "--transition", &first]);
    let of_first = values(&out);
    let kinds: Vec<&str> = of_first.iter().map(|event| event["kind"].as_str().unwrap()).collect();
    assert_eq!(kinds, ["request", "begin", "decision", "step", "outcome"]);
    assert!(of_first.iter().all(|event| event["groups"] == serde_json::json!(["db"])), "{of_first:#?}");
    let (_, out, _) =
        cluster.lockstep(&["events", "--group", "cron", "--host", "b", "--transition", &second]);
    let told: Vec<&str> = out.lines().map(|line| line.splitn(4, ' ').last().unwrap().trim()).collect();
    assert!(
        told.len() == 1 && told[0].ends_with(&format!("{second} cron@b to online confirmed")),
        "{told:?}"
    );
    let (exit, _, err) = cluster.lockstep(&["events", "--since", "99999999"]);
    assert_eq!(exit, 1);
    assert!(err.starts_with("error: since is 99999999, and nothing after revision "), "{err}");
}

#[test]
fn following_goes_on_where_it_was_after_the_server_was_killed() {
    let mut cluster = start();
    let since = cluster.get("/v1/members")["revision"].as_u64().unwrap();
    let all = stay(&cluster, "all", &["events", "--follow", "-o", "json", "--since", &since.to_string()]);
    // From now on; nothing that it shows has happened when the connection is lost.
    let new = stay(&cluster, "new", &["events", "--follow", "-o", "json", "--group", "db"]);
    let streams = |cluster: &Cluster| cluster.server.said().matches("a stream of events begins").count();
    wait_for("both to be connected", || streams(&cluster) == 2);
    let first = cluster.run(&["cron=online"], "r1");
    assert_eq!(cluster.outcome(&first), "committed");
    let has = |process: &Process, kind: &str, id: &str| {
        values(&process.said()).iter().any(|event| event["kind"] == kind && event["transition"] == id)
    };
    wait_for("the first outcome", || has(&all, "outcome", &first));
    cluster.restart_server();
    wait_for("everybody to be back", || cluster.joined("a") >= 2 && streams(&cluster) == 4);
    cluster.block("db@a", "prepare");
    let second = cluster.run(&["db=online"], "r2");
    cluster.wait_blocked("db@a", "prepare");
    wait_for("a vote while nothing is decided", || has(&all, "vote", &second) && has(&all, "phase", &second));
    cluster.unblock("db@a", "prepare");
    assert_eq!(cluster.outcome(&second), "committed");
    for process in [&all, &new] {
        wait_for("the second outcome", || has(process, "outcome", &second));
        assert!(process.said().contains("resuming: "), "{}", process.said());
    }
    let events = values(&all.said());
    let last = revisions(&events).last().copied().unwrap();
    assert!(revisions(&events).into_iter().eq(since + 1..=last), "none missing, none twice: {events:#?}");
    for event in &events {
        assert_eq!(event["provisional"] == true, event["revision"].is_null(), "{event}");
    }
    let kinds: Vec<String> = values(&new.said())
        .iter()
        .filter(|event| event["provisional"] == false)
        .map(|event| event["kind"].to_string())
        .collect();
    assert_eq!(kinds, ["\"request\"", "\"begin\"", "\"decision\"", "\"step\"", "\"outcome\""]);
}

#[test]
fn watching_shows_what_has_changed_and_nothing_else() {
    let mut cluster = start();
    let status = stay(&cluster, "status", &["status", "--watch"]);
    let members = stay(&cluster, "members", &["member", "list", "--watch", "-o", "json"]);
    let groups = stay(&cluster, "groups", &["group", "list", "-w", "-o", "yaml"]);
    for process in [&status, &members, &groups] {
        wait_for("the first document", || process.said().contains("cron"));
    }
    let first = cluster.run(&["db=online"], "r1");
    assert_eq!(cluster.outcome(&first), "committed");
    let words = |line: &str| line.split_whitespace().collect::<Vec<_>>().join(" ");
    let is_online =
        |process: &Process| process.said().lines().any(|line| words(line) == "db serves a online");
    wait_for("the new state", || is_online(&status));
    let documents = |process: &Process| -> Vec<Value> {
        let said = process.said();
        let json: String =
            said.lines().filter(|line| !line.contains(": ") || line.starts_with(' ')).collect();
        serde_json::Deserializer::from_str(&json).into_iter().map_while(Result::ok).collect()
    };
    wait_for("the members' new states", || {
        documents(&members).last().is_some_and(|list| {
            let items = list["items"].as_array().unwrap();
            items.iter().any(|member| member["actual"] == "online" && member["transition"].is_null())
        })
    });
    cluster.restart_server();
    wait_for("the agent to be back", || cluster.joined("a") >= 2);
    let second = cluster.run(&["db=offline"], "r2");
    assert_eq!(cluster.outcome(&second), "committed");
    wait_for("the state after the restart", || {
        let said = status.said();
        said.rfind("a offline")
            .is_some_and(|offline| said.rfind("a online").is_some_and(|online| online < offline))
    });
    wait_for("the groups after the restart", || groups.said().matches("---\n").count() >= 3);
    let said = groups.said();
    let documents: Vec<&str> = said.split("---\n").skip(1).collect();
    for pair in documents.windows(2) {
        let of = |document: &str| document.split("revision:").next().unwrap().to_owned();
        assert_ne!(of(pair[0]), of(pair[1]), "only what differs is shown");
    }
}

/// The other server of the two is in no event: it is asked again from time to time.
#[test]
fn watching_looks_again_when_nothing_happens() {
    let cluster = start();
    let other = TcpListener::bind("127.0.0.1:0").unwrap();
    let addresses = format!("http://{},http://{}", cluster.address, other.local_addr().unwrap());
    let status = Process::start(&cluster.dir, "status", &["--addr", &addresses, "status", "--watch"]);
    // It hangs up on whoever asks.
    let hangs_up = std::thread::spawn(move || drop(other.accept()));
    wait_for("the server that hangs up", || status.said().contains("does not answer"));
    hangs_up.join().unwrap();
    wait_for("the server that is gone", || status.said().contains("Connection refused"));
}

/// A server whose journal has lost its first two records of four.
async fn compacted() -> SocketAddr {
    let mut cluster = cluster::Cluster::default();
    let mut entries = Vec::new();
    for index in (1..=4).map(Index) {
        let record = Record {
            at: WallTime(0),
            body: Body::Reign { server: format!("s{index}"), lease_ms: None, cluster: None },
        };
        cluster.apply(index, &record);
        let payload = serde_json::to_vec(&record).unwrap();
        entries.push(Entry { index, reign: Reign(index.0), payload });
    }
    let read = move |from: Index| -> Page {
        let floor = Index(3);
        let page = entries.iter().filter(|entry| entry.index >= from).cloned().collect();
        let page = if from < floor { Err(store::Error::Compacted { floor }) } else { Ok(page) };
        Box::pin(std::future::ready(page))
    };
    let (publish, view) = watch::channel(View { cluster: Arc::new(cluster), ..View::default() });
    let (commands, _) = mpsc::channel(1);
    let info = ServerInfo { name: "s4".to_owned(), url: String::new(), is_shared: false, version: "0.0.0" };
    let silence = watch::Sender::new(None).subscribe();
    let router = router(Handle::new(commands, view.clone(), silence), Feed::reading(read, view), info);
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        let _publish = publish;
        axum::serve(listener, router).await
    });
    address
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_not_kept_any_more() {
    let address = compacted().await;
    let dir = tempfile::tempdir().unwrap();
    let mut told = String::new();
    for args in [
        &["events"][..],
        &["events", "--since", "1"],
        &["events", "--since", "2"],
        &["events", "--since", "0", "--follow"],
    ] {
        let dir = dir.path().to_owned();
        let asked = tokio::task::spawn_blocking(move || lockstep(&dir, Some(address), args));
        let (exit, out, err) = asked.await.unwrap();
        let err: String = err.lines().map(|line| format!("! {line}\n")).collect();
        told.push_str(&format!("{}\nexit {exit}\n{out}{err}", args.join(" ")));
    }
    expect![[r#"
        events
        exit 0
               3  1970-01-01T00:00:00.000Z  s3 is the active server
               4  1970-01-01T00:00:00.000Z  s4 is the active server
        ! earlier events are not kept: these begin after revision 2
        events --since 1
        exit 1
        ! error: what followed revision 1 is not kept any more; what follows 2 is
        ! help: read the lists again and go on from their revision, or ask since=2
        events --since 2
        exit 0
               3  1970-01-01T00:00:00.000Z  s3 is the active server
               4  1970-01-01T00:00:00.000Z  s4 is the active server
        events --since 0 --follow
        exit 1
        ! error: what followed revision 0 is not kept any more; what follows 2 is
        ! help: read the lists again and go on from their revision, or ask since=2
    "#]]
    .assert_eq(&told);
}
