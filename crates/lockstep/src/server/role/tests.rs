use super::super::Server;
use super::double::{Link, Shared};
use crate::cli::option::{EtcdOptions, ServerOptions};
use crate::server::handle::{Handle, Role};
use axum::body::Body as HttpBody;
use axum::http::{Method, Request, StatusCode, header};
use axum::response::Response;
use lockstep_core::id::Index;
use lockstep_core::record::{Body, HostChange};
use lockstep_core::request::{Code, Request as Asked};
use lockstep_core::snapshot;
use serde_json::Value;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use std::time::Duration;
use tokio::time::Instant;
use tower::ServiceExt;

const SPEC: &str = r#"{"cluster":"c","groups":{"a":{"select":{"role":"a"}}}}"#;

async fn start(store: &Shared, name: &str) -> Server {
    start_at(store, name, &format!("http://{name}:1")).await
}

async fn start_at(store: &Shared, name: &str, url: &str) -> Server {
    let options = ServerOptions {
        data: None,
        listen: SocketAddr::from(([127, 0, 0, 1], 0)),
        store: Some("double".to_owned()),
        etcd: EtcdOptions::default(),
        name: Some(name.parse().unwrap()),
        advertise: Some(url.to_owned()),
        insecure: false,
    };
    Server::on(store.clone(), &options, true).await.unwrap()
}

/// Two servers, of which the first is the active one.
async fn two() -> ([Shared; 2], [Server; 2]) {
    let stores = Shared::new();
    let stores = [stores.clone(), stores.another()];
    let first = start(&stores[0], "s1").await;
    becomes(&first, &Role::Active).await;
    let second = start(&stores[1], "s2").await;
    becomes(&second, &standby("s1")).await;
    (stores, [first, second])
}

fn standby(active: &str) -> Role {
    let (name, url) = (active.to_owned(), format!("http://{active}:1"));
    Role::Standby { active: Some(crate::store::Candidate { name, url }) }
}

const ALONE: Role = Role::Standby { active: None };

async fn becomes(server: &Server, role: &Role) {
    let mut view = server.handle.watch();
    let is_so = async { _ = view.wait_for(|view| view.role == *role).await.unwrap() };
    let end = tokio::time::timeout(Duration::from_secs(60), is_so).await;
    assert!(end.is_ok(), "{:?} instead of {role:?}", server.handle.role());
}

/// Both have read all that there is.
async fn same(stores: &[Shared; 2], servers: &[Server; 2]) {
    let head = stores[0].last();
    for server in servers {
        server.handle.watch().wait_for(|view| view.cluster.revision >= head).await.unwrap();
    }
}

async fn ask(server: &Server, method: Method, path: &str, body: &str) -> Response {
    let request = Request::builder().method(method).uri(path).header(header::HOST, "localhost");
    let request = request.header(header::CONTENT_TYPE, "application/json");
    server.router.clone().oneshot(request.body(HttpBody::from(body.to_owned())).unwrap()).await.unwrap()
}

async fn get(server: &Server, path: &str) -> (StatusCode, Value) {
    let answer = ask(server, Method::GET, path, "").await;
    let status = answer.status();
    let body = axum::body::to_bytes(answer.into_body(), usize::MAX).await.unwrap();
    (status, serde_json::from_slice(&body).unwrap_or_default())
}

/// Declares another cluster each time.
async fn apply(handle: &Handle, lease_ms: u64) -> Result<Index, Code> {
    let spec = format!(r#"{{"cluster":"c","lease_ms":{lease_ms},"groups":{{}}}}"#);
    let applied = handle.apply(serde_json::from_str(&spec).unwrap(), "ann".to_owned()).await;
    applied.map_err(|rejection| rejection.code)
}

/// A host whose member of group a is offline.
fn with_a_host(store: &Shared) {
    let host: lockstep_core::id::HostName = "h".parse().unwrap();
    let labels = [("role".to_owned(), "a".to_owned())].into();
    let change = HostChange::Joined { agent: "agent".parse().unwrap(), address: None, labels };
    store.write(Body::Spec {
        spec: Arc::new(serde_json::from_str(SPEC).unwrap()),
        principal: "ann".to_owned(),
    });
    store.write(Body::Host { host, change });
    store.write(Body::Report { member: "a@h".parse().unwrap(), actual: Some("offline".parse().unwrap()) });
}

fn online(request_id: &str) -> Asked {
    Asked {
        request_id: request_id.to_owned(),
        principal: "ann".to_owned(),
        targets: vec!["a=online".parse().unwrap()],
        ..Asked::default()
    }
}

#[tokio::test(start_paused = true)]
async fn a_standby_answers_readers_and_sends_everything_else_to_the_active_server() {
    let (stores, [first, second]) = two().await;
    apply(&first.handle, 1000).await.unwrap();
    let (_, document) = get(&first, "/v1/openapi.json").await;
    let (mut sent_on, mut answered) = (0, 0);
    for (path, operations) in document["paths"].as_object().unwrap() {
        let path = path.replace("{id}", "t1").replace("{name}", "h").replace("{member}", "g@h");
        for (method, operation) in operations.as_object().unwrap() {
            let is_sent_on = operation["responses"].get("307").is_some();
            if path == "/v1/events" || path == "/v1/server/stop" {
                assert!(!is_sent_on, "{path}");
                continue;
            }
            let method: Method = method.to_uppercase().parse().unwrap();
            let answer = ask(&second, method.clone(), &format!("{path}?a=b%20c"), "{}").await;
            if is_sent_on {
                assert_eq!(answer.status(), StatusCode::TEMPORARY_REDIRECT, "{method} {path}");
                assert_eq!(answer.headers()[header::LOCATION], format!("http://s1:1{path}?a=b%20c"));
                sent_on += 1;
            } else {
                assert_eq!(method, Method::GET);
                let of_active = ask(&first, method, &path, "").await.status();
                assert_ne!(answer.status(), StatusCode::TEMPORARY_REDIRECT, "{path}");
                assert!(of_active == answer.status() || path.contains("t1"), "{path}");
                answered += 1;
            }
        }
    }
    assert!(sent_on > 10 && answered > 10, "{sent_on} {answered}");
    same(&stores, &[first, second]).await;
}

#[tokio::test(start_paused = true)]
async fn while_nobody_is_active_it_says_so_and_reads_go_on() {
    let (stores, [first, second]) = two().await;
    apply(&first.handle, 1000).await.unwrap();
    // The first is stopped, and its reign ends. The second cannot begin one.
    first.roles.abort();
    let hears = Link { is_cut: true, ..Link::default() };
    second.handle.watch().wait_for(|view| view.cluster.revision >= Index(2)).await.unwrap();
    stores[1].set(hears);
    stores[0].expire();
    // Who it was before may still be, as far as it can know.
    becomes(&second, &standby("s1")).await;
    assert_eq!(get(&second, "/v1/spec").await.1["lease_ms"], 1000);
    let (status, problem) = get(&second, "/v1/spec?consistent=true").await;
    assert_eq!((status, &problem["code"]), (StatusCode::SERVICE_UNAVAILABLE, &"store-unavailable".into()));
    stores[1].set(Link::default());
    becomes(&second, &Role::Active).await;
    assert_eq!(apply(&second.handle, 2000).await, Ok(stores[0].last()));
}

#[tokio::test(start_paused = true)]
async fn who_cannot_say_who_is_active_asks_for_another_try() {
    let store = Shared::new();
    store.set(Link { is_slow: true, ..Link::default() });
    let server = start(&store, "s1").await;
    let (status, problem) = get(&server, "/v1/hosts").await;
    assert_eq!((status, &problem["code"]), (StatusCode::SERVICE_UNAVAILABLE, &"not-active".into()));
    assert_eq!(get(&server, "/readyz").await.0, StatusCode::SERVICE_UNAVAILABLE);
    assert_eq!(get(&server, "/v1/server").await.1["role"], "starting");
    assert_eq!(get(&server, "/livez").await.0, StatusCode::OK);
    store.set(Link::default());
    becomes(&server, &Role::Active).await;
    server.handle.step_down().await.unwrap();
    becomes(&server, &ALONE).await;
    let answer = ask(&server, Method::PUT, "/v1/spec", SPEC).await;
    assert_eq!(answer.status(), StatusCode::SERVICE_UNAVAILABLE);
    assert_eq!(answer.headers()[header::RETRY_AFTER], "1");
    assert_eq!(ask(&server, Method::GET, "/v1/agent", "").await.status(), StatusCode::SERVICE_UNAVAILABLE);
    let (status, health) = get(&server, "/readyz").await;
    assert_eq!((status, &health["role"]), (StatusCode::OK, &"standby".into()));
}

#[tokio::test(start_paused = true)]
async fn a_consistent_read_shows_all_that_was_acknowledged_before_or_nothing() {
    let (stores, [first, second]) = two().await;
    stores[1].set(Link { is_slow: true, ..Link::default() });
    let revision = apply(&first.handle, 1000).await.unwrap();
    assert_eq!(get(&second, "/v1/spec").await.0, StatusCode::NOT_FOUND, "it has not read so far");
    assert_eq!(get(&second, "/v1/spec?consistent=true").await.0, StatusCode::SERVICE_UNAVAILABLE);
    assert_eq!(get(&second, "/v1/spec?consistent=maybe").await.0, StatusCode::BAD_REQUEST);
    let reads = async {
        let (status, hosts) = get(&second, "/v1/hosts?consistent=true").await;
        assert_eq!(status, StatusCode::OK);
        assert!(hosts["revision"].as_u64().unwrap() >= revision.0, "{hosts}");
    };
    let catches_up = async {
        tokio::time::sleep(Duration::from_secs(1)).await;
        stores[1].set(Link::default());
    };
    tokio::join!(reads, catches_up);
    // An active server that does not know that it is deposed shows nothing outdated either.
    stores[0].set(Link { is_cut: true, ..Link::default() });
    stores[0].expire();
    becomes(&second, &Role::Active).await;
    apply(&second.handle, 2000).await.unwrap();
    assert_eq!(first.handle.role(), Role::Active);
    assert_eq!(get(&first, "/v1/spec?consistent=true").await.0, StatusCode::SERVICE_UNAVAILABLE);
    stores[0].set(Link::default());
    assert_eq!(get(&first, "/v1/spec?consistent=true").await.1["lease_ms"], 2000);
}

#[tokio::test(start_paused = true)]
async fn who_steps_down_finishes_its_write_and_lets_others_go_first() {
    let (stores, [first, second]) = two().await;
    let begun = Instant::now();
    let (applied, stepped) = tokio::join!(apply(&first.handle, 1000), first.handle.step_down());
    assert_eq!((applied, stepped), (Ok(Index(2)), Ok(())), "what came before is done");
    becomes(&second, &Role::Active).await;
    becomes(&first, &standby("s2")).await;
    assert!(begun.elapsed() < Duration::from_secs(1), "{:?}", begun.elapsed());
    apply(&second.handle, 2000).await.unwrap();
    // The other way round, and with nobody else there.
    second.handle.step_down().await.unwrap();
    becomes(&first, &Role::Active).await;
    second.roles.abort();
    let begun = Instant::now();
    first.handle.step_down().await.unwrap();
    becomes(&first, &ALONE).await;
    becomes(&first, &Role::Active).await;
    assert!(begun.elapsed() >= super::HEAD_START, "{:?}", begun.elapsed());
    assert_eq!(stores[0].written(|body| matches!(body, Body::Reign { .. })).len(), 4);
}

#[tokio::test(start_paused = true)]
async fn who_cannot_reach_the_store_does_not_step_down() {
    let (stores, [first, _second]) = two().await;
    first.handle.watch().wait_for(|view| view.cluster.revision >= Index(1)).await.unwrap();
    stores[0].set(Link { is_cut: true, ..Link::default() });
    let refused = first.handle.step_down().await.unwrap_err();
    assert_eq!(refused.code, Code::StoreUnavailable);
    assert_eq!(first.handle.role(), Role::Active);
    // It goes on as soon as it can.
    let (applied, ()) = tokio::join!(apply(&first.handle, 1000), async {
        tokio::time::sleep(Duration::from_secs(1)).await;
        stores[0].set(Link::default());
    });
    assert_eq!(applied, Ok(Index(2)));
}

#[tokio::test(start_paused = true)]
async fn what_was_in_flight_when_a_server_is_deposed_is_answered_and_carried_out_once() {
    let stores = Shared::new();
    with_a_host(&stores);
    let stores = [stores.clone(), stores.another()];
    let first = start(&stores[0], "s1").await;
    becomes(&first, &Role::Active).await;
    first.handle.watch().wait_for(|view| view.cluster.reign.0 > 0).await.unwrap();
    let second = start(&stores[1], "s2").await;
    becomes(&second, &standby("s1")).await;

    // The write is done, the answer is lost, and then the store is.
    stores[0].set(Link { is_deaf: true, ..Link::default() });
    let handle = first.handle.clone();
    let asked = tokio::spawn(async move { handle.run(online("once")).await });
    let is_request = |body: &Body| matches!(body, Body::Request { .. });
    stores[1].heads_changed(|store| store.written(is_request).len() == 1).await;
    stores[0].set(Link { is_cut: true, ..Link::default() });
    stores[0].expire();
    becomes(&second, &Role::Active).await;
    assert_eq!(first.handle.role(), Role::Active, "it does not know yet");
    assert!(!asked.is_finished(), "nor does it say what it cannot know");
    // More is asked of it meanwhile.
    let handle = first.handle.clone();
    let more = tokio::spawn(async move { handle.run(online("more")).await });
    stores[0].set(Link { is_cut: true, is_over: true, ..Link::default() });
    for refused in [asked.await.unwrap(), more.await.unwrap()] {
        assert_eq!(refused.unwrap_err().code, Code::NotActive);
    }
    let written = stores[0].written(is_request);
    let id = second.handle.run(online("once")).await.unwrap().unwrap();
    assert_eq!((written, stores[0].written(is_request)), (vec![Index(id.0)], vec![Index(id.0)]));

    stores[0].set(Link::default());
    becomes(&first, &standby("s2")).await;
    same(&stores, &[first, second]).await;
}

#[tokio::test(start_paused = true)]
async fn readers_of_one_server_never_go_back() {
    let (stores, [first, second]) = two().await;
    let revisions = Arc::new(Mutex::new(Vec::new()));
    for server in [&first, &second] {
        let (mut view, revisions) = (server.handle.watch(), revisions.clone());
        tokio::spawn(async move {
            let mut last = Index(0);
            while view.changed().await.is_ok() {
                let revision = view.borrow_and_update().cluster.revision;
                assert!(revision >= last, "{revision} after {last}");
                last = revision;
                revisions.lock().unwrap().push(revision);
            }
        });
    }
    for round in 0..20_usize {
        let (active, other) = if round % 2 == 0 { (&first, &second) } else { (&second, &first) };
        becomes(active, &Role::Active).await;
        apply(&active.handle, 1000 + round as u64).await.unwrap();
        if round % 3 == 0 {
            // The other one has not read what is gone by now.
            let slow = &stores[(round + 1) % 2];
            slow.set(Link { is_slow: true, ..Link::default() });
            apply(&active.handle, 2000 + round as u64).await.unwrap();
            let head = stores[0].last();
            active.handle.watch().wait_for(|view| view.cluster.revision == head).await.unwrap();
            stores[0].compact_all(snapshot::encode(&active.handle.view().cluster), head);
            slow.set(Link::default());
        }
        if round % 5 == 0 {
            let link = &stores[round % 2];
            link.set(Link { is_cut: true, is_over: true, ..Link::default() });
            stores[0].expire();
            becomes(other, &Role::Active).await;
            link.set(Link::default());
        } else {
            active.handle.step_down().await.unwrap();
        }
        becomes(other, &Role::Active).await;
    }
    let (first_view, head) = (first.handle.clone(), stores[0].last());
    same(&stores, &[first, second]).await;
    assert!(first_view.view().cluster.revision >= head);
    let revisions = revisions.lock().unwrap();
    assert!(revisions.len() > 40 && revisions.iter().all(|revision| *revision <= stores[0].last()));
}

#[tokio::test(start_paused = true)]
async fn an_active_server_whose_store_is_away_for_a_moment_reigns_on() {
    let (stores, [first, second]) = two().await;
    stores[0].set(Link { is_cut: true, ..Link::default() });
    let asked = apply(&first.handle, 1000);
    let mends = async {
        tokio::time::sleep(Duration::from_secs(1)).await;
        stores[0].set(Link::default());
    };
    let (applied, ()) = tokio::join!(asked, mends);
    assert_eq!(applied, Ok(Index(2)));
    assert_eq!((first.handle.role(), second.handle.role()), (Role::Active, standby("s1")));
}

#[tokio::test(start_paused = true)]
async fn damage_stops_a_server_in_either_role() {
    let (stores, [_first, second]) = two().await;
    stores[1].set(Link { is_damaged: true, ..Link::default() });
    stores[0].write(Body::Lease { lease_ms: 3000 });
    let stopped = second.roles.await.unwrap();
    assert!(stopped.is_err(), "{stopped:?}");
}

#[tokio::test(start_paused = true)]
async fn a_standby_stops_when_it_is_told_to_and_an_active_server_resigns_first() {
    let (stores, [first, second]) = two().await;
    second.handle.stop().await.unwrap();
    second.roles.await.unwrap().unwrap();
    let third = start(&stores[1], "s3").await;
    becomes(&third, &standby("s1")).await;
    let begun = Instant::now();
    first.handle.stop().await.unwrap();
    first.roles.await.unwrap().unwrap();
    becomes(&third, &Role::Active).await;
    assert!(begun.elapsed() < Duration::from_secs(1), "{:?}", begun.elapsed());
}

/// Its write has no answer when it is told to stop, and its reign ends before there is one.
#[tokio::test(start_paused = true)]
async fn who_is_told_to_stop_stops_also_when_it_is_deposed_meanwhile() {
    for is_told in [false, true] {
        let (stores, [first, second]) = two().await;
        first.handle.watch().wait_for(|view| view.cluster.revision >= Index(1)).await.unwrap();
        stores[0].set(Link { is_cut: true, ..Link::default() });
        let handle = first.handle.clone();
        let written = tokio::spawn(async move { apply(&handle, 1000).await });
        let handle = first.handle.clone();
        let stopped = tokio::spawn(async move { handle.stop().await });
        tokio::time::sleep(Duration::from_millis(500)).await;
        assert!(!stopped.is_finished(), "it waits for what is being written");
        stores[0].expire();
        // By its own clock, or by the answer to its write.
        stores[0].set(Link { is_over: !is_told, is_cut: !is_told, ..Link::default() });
        stopped.await.unwrap().unwrap();
        assert_eq!(written.await.unwrap(), Err(Code::NotActive));
        first.roles.await.unwrap().unwrap();
        becomes(&second, &Role::Active).await;
    }
}

#[tokio::test]
async fn a_server_on_a_disk_of_its_own_has_nobody_to_step_down_to() {
    let data = tempfile::tempdir().unwrap();
    let options = ServerOptions {
        data: Some(data.path().to_owned()),
        listen: SocketAddr::from(([127, 0, 0, 1], 0)),
        store: None,
        etcd: EtcdOptions::default(),
        name: None,
        advertise: None,
        insecure: false,
    };
    let server = Server::start(&options).await.unwrap();
    let answer = ask(&server, Method::POST, "/v1/server/step-down", "").await;
    assert_eq!(answer.status(), StatusCode::UNPROCESSABLE_ENTITY);
    assert_eq!(server.handle.role(), Role::Active);
    assert_eq!(get(&server, "/v1/spec?consistent=true").await.0, StatusCode::NOT_FOUND);
}

#[tokio::test(start_paused = true)]
async fn one_that_does_not_know_that_it_is_deposed_refuses_nothing() {
    let (stores, [first, second]) = two().await;
    stores[0].set(Link { is_cut: true, ..Link::default() });
    stores[0].expire();
    becomes(&second, &Role::Active).await;
    with_a_host(&stores[1]);
    // It has not heard of the group, nor of who reigns.
    let mut asked = std::pin::pin!(first.handle.run(online("once")));
    let early = tokio::time::timeout(Duration::from_secs(60), &mut asked).await;
    assert!(early.is_err(), "{early:?}");
    stores[0].set(Link { is_cut: true, is_over: true, ..Link::default() });
    assert_eq!(asked.await.unwrap_err().code, Code::NotActive);
}

#[tokio::test(start_paused = true)]
async fn servers_whose_writes_come_to_nothing_take_reigns_ever_more_rarely_and_go_on_afterwards() {
    let (stores, servers) = two().await;
    for store in &stores {
        store.set(Link { is_vain: true, ..Link::default() });
    }
    let before = stores[0].reigns();
    let _ = apply(&servers[0].handle, 1000).await;
    tokio::time::sleep(Duration::from_secs(300)).await;
    let taken = stores[0].reigns() - before;
    assert!((20..=50).contains(&taken), "{taken} reigns in 300 s");
    let ended = Instant::now();
    for store in &stores {
        store.set(Link::default());
    }
    let active = |server: &Server| matches!(server.handle.role(), Role::Active);
    while !servers.iter().any(active) {
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    assert!(ended.elapsed() <= Duration::from_secs(16), "{:?}", ended.elapsed());
    let active = servers.iter().find(|server| active(server)).unwrap();
    apply(&active.handle, 2000).await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn who_stands_by_under_the_active_servers_name_takes_it_for_another_one_once_its_reign_lasts() {
    let store = Shared::new();
    let first = start(&store, "s1").await;
    becomes(&first, &Role::Active).await;
    let second = start_at(&store.another(), "s1", "http://elsewhere:1").await;
    becomes(&second, &ALONE).await;
    let begun = Instant::now();
    becomes(&second, &standby("s1")).await;
    assert!(begun.elapsed() > Duration::from_secs(8), "it may be its own from before: {:?}", begun.elapsed());
    // Nobody is sent from an address to the same one.
    let third = start_at(&store.another(), "s3", "http://s1:1").await;
    tokio::time::sleep(Duration::from_secs(60)).await;
    assert_eq!(third.handle.role(), ALONE);
}
