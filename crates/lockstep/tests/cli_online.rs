//! The command line against a running server, both the real binary: what operators see, and how commands end.

#![allow(clippy::unwrap_used, reason = "a test fails by it")]

mod common;

use common::wait_for;
use expect_test::{Expect, expect};
use rustix::process::{Pid, Signal};
use serde_json::Value;
use std::io::{BufRead, BufReader, Read};
use std::path::Path;
use std::process::{Child, Command, Stdio};

/// `lockstep dev`: a server, agents and pretended software.
struct Dev {
    _child: Running,
    address: String,
    data: tempfile::TempDir,
    /// Kept open: it goes on to tell of every change.
    _told: BufReader<std::process::ChildStdout>,
}

/// A process that ends with the test.
struct Running(Child);

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

impl Dev {
    fn start() -> Self {
        let data = tempfile::tempdir().unwrap();
        let spawned = Command::new(env!("CARGO_BIN_EXE_lockstep"))
            .args(["dev", "--listen", "127.0.0.1:0", "--data"])
            .arg(data.path())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let mut child = Running(spawned);
        let mut told = BufReader::new(child.0.stdout.take().unwrap());
        let mut address = String::new();
        // It shows the members once each has said in which state it is.
        loop {
            let mut line = String::new();
            assert!(told.read_line(&mut line).unwrap() > 0, "it ended");
            if let Some(place) = line.strip_prefix("listening on ") {
                address = place.trim().to_owned();
            }
            if line.starts_with("app:") {
                return Self { _child: child, address, data, _told: told };
            }
        }
    }

    fn command(&self, args: &[&str]) -> (i32, String, String) {
        lockstep(&self.address, self.data.path(), args)
    }

    /// The exit code, standard output, and standard error with a mark, without what differs from run to run.
    fn told(&self, args: &[&str]) -> String {
        let (exit, out, err) = self.command(args);
        let err: String = err.lines().map(|line| format!("! {line}\n")).collect();
        format!("exit {exit}\n{}", steady(&format!("{out}{err}")))
    }
}

fn lockstep(address: &str, dir: &Path, args: &[&str]) -> (i32, String, String) {
    let output = Command::new(env!("CARGO_BIN_EXE_lockstep"))
        .args(args)
        .current_dir(dir)
        .env("NO_COLOR", "1")
        .env("LOCKSTEP_ADDR", address)
        .output()
        .unwrap();
    let text = |bytes: Vec<u8>| String::from_utf8(bytes).unwrap();
    (output.status.code().unwrap(), text(output.stdout), text(output.stderr))
}

/// Without the revision and the plan's hash, which rest on the order in which hosts have joined, and when they did.
fn steady(text: &str) -> String {
    let line = |line: &str| {
        if line.starts_with("since: \"20") {
            return "since: ...\n".to_owned();
        }
        for (before, length) in [("revision ", None), ("plan ", Some(8))] {
            if let Some(rest) = line.strip_prefix(before) {
                let end = length.or_else(|| rest.find(|c: char| !c.is_ascii_digit())).unwrap_or(rest.len());
                return format!("{before}...{}\n", &rest[end..]);
            }
        }
        format!("{}\n", line.trim_end())
    };
    text.lines().map(line).collect()
}

#[track_caller]
fn check(text: &str, expected: &Expect) {
    expected.assert_eq(text);
}

#[test]
fn a_day_at_the_terminal() {
    let dev = Dev::start();
    check(
        &dev.told(&["status"]),
        &expect![[r#"
        exit 0
        revision ...   hosts: 5 alive

        GROUP          MEMBERS
        app    serves  app-1 online, app-2 online
        db     serves  pg-a primary, pg-b standby, pg-c standby

        nothing is wrong
    "#]],
    );
    check(
        &dev.told(&["plan", "db@pg-b=primary"]),
        &expect![[r#"
        exit 0
        plan ...  db: pg-a primary -> offline -> standby, pg-b standby -> primary   gap: db   holds: app@app-1 app@app-2   tells: db (1)

        STEP  MEMBER   MOVE                AFTER
        0     db@pg-a  primary -> offline
        1     db@pg-a  offline -> standby  0 2
        2     db@pg-b  standby -> primary  0
    "#]],
    );
    let (exit, out, err) = dev.command(&["run", "db@pg-b=primary", "--reason", "kernel update"]);
    assert_eq!(exit, 0, "{err}");
    assert!(out.starts_with("committed t"), "{out}");
    // Which lines the steps fall into depends on when they were seen; these are there in any case, in this order.
    let labels: Vec<&str> = err.lines().filter_map(|line| line.split(' ').next()).collect();
    assert_eq!(labels[..4], ["plan", "check", "prepare", "decided"], "{err}");
    assert!(err.contains("pg-b primary") && err.contains("\nrelease   app-1  app-2 "), "{err}");
    check(
        &dev.told(&["run", "db@pg-b=primary"]),
        &expect![[r#"
        exit 0
        nothing to do
    "#]],
    );
    check(
        &dev.told(&["run", "db=down"]),
        &expect![[r#"
        exit 3
        ! rejected: would-break-requires
        ! app requires db, which would stop serving while app serves
        ! help: take app down in the same request: app=down
    "#]],
    );
    let (exit, _, err) = dev.command(&["run", "db@pg-a=primary", "--plan", "deadbeef"]);
    assert_eq!(exit, 3);
    assert!(err.starts_with("rejected: plan-changed\n"), "{err}");
    check(
        &dev.told(&["abort", "t999999"]),
        &expect![[r#"
        exit 1
        ! error: there is no transition t999999
        ! help: `lockstep transition list` shows those that are kept
    "#]],
    );
    check(
        &dev.told(&["relation", "list"]),
        &expect![[r#"
            exit 0
            FROM  KIND      TO  ASK   ORIGIN      TERMS
            app   requires  db        capability
            app   watches   db  hold  declared
        "#]],
    );
    check(
        &dev.told(&["host", "show", "pg-a", "--output", "yaml"]),
        &expect![[r#"
            exit 0
            address: "127.0.0.1"
            drained: false
            heard: true
            in_detail:
              - actual: standby
                consumes: []
                evidence: null
                facts: {}
                goal: standby
                group: db
                guarded: []
                host: pg-a
                leaving: false
                liveness: alive
                mark: null
                provides: []
                reason: null
                returns_to: null
                score: null
                settings: {}
                transition: null
            labels:
              role: db
            liveness: alive
            name: pg-a
            since: ...
        "#]],
    );

    let (exit, out, _) = dev.command(&["run", "-o", "json", "db@pg-a=primary", "--request-id", "r1"]);
    let first: Value = serde_json::from_str(&out).unwrap();
    assert_eq!((exit, first["outcome"].as_str()), (0, Some("committed")));
    let (exit, out, _) = dev.command(&["run", "db@pg-a=primary", "--request-id", "r1", "--output=json"]);
    let again: Value = serde_json::from_str(&out).unwrap();
    assert_eq!((exit, &again["id"]), (0, &first["id"]), "the same request, not a new one");
    let (exit, _, err) = dev.command(&["run", "db@pg-b=primary", "--request-id", "r1"]);
    assert_eq!(exit, 3);
    assert!(err.starts_with("rejected: request-conflict\n"), "{err}");
    let (exit, out, _) = dev.command(&["run", "db=down", "-o", "json"]);
    let rejection: Value = serde_json::from_str(&out).unwrap();
    assert_eq!((exit, rejection["rejection"]["code"].as_str()), (3, Some("would-break-requires")));

    std::fs::write(dev.data.path().join("state/app-2.refuses"), "").unwrap();
    let (exit, out, err) = dev.command(&["run", "db@pg-b=primary"]);
    assert_eq!(exit, 4, "{err}");
    assert!(out.starts_with("aborted t"), "{out}");
    let end = "app@app-2 said no in check: the file app-2.refuses is there\naborted: vote-no\n\
               help: mend what the member names, then run it again\n";
    assert!(err.ends_with(end), "{err}");
    let refused = out.split_whitespace().nth(1).unwrap().to_owned();
    let why = dev.told(&["explain", &refused]);
    assert!(why.contains("\napp@app-2 said no in check: the file app-2.refuses is there\n"), "{why}");

    let run = ["run", "db@pg-b=primary", "--override", "app@app-2"];
    let (exit, _, err) = dev.command(&run);
    assert!(exit == 2 && err.contains("--reason <TEXT>"), "{err}");
    let (exit, out, err) = dev.command(&[&run[..], &["--reason", "app-2 is being replaced"]].concat());
    assert_eq!(exit, 0, "{err}");
    let end = "app@app-2 said no in check: the file app-2.refuses is there; overridden\n";
    assert!(err.ends_with(end), "{err}");
    let id = out.split_whitespace().nth(1).unwrap().to_owned();
    assert!(dev.told(&["explain", &id]).contains("; overridden"), "explain says the same");
    let (_, out, _) = dev.command(&["transition", "show", &id, "-o", "json"]);
    let shown: Value = serde_json::from_str(&out).unwrap();
    assert_eq!(shown["overrides"], serde_json::json!(["app@app-2"]), "the record has it");
    assert_eq!(shown["reason"], "app-2 is being replaced", "and why");
    check(
        &dev.told(&["explain", "app", "bd"]),
        &expect![[r#"
        exit 1
        ! error: there is no group bd
        ! help: `lockstep group list` shows what there is
    "#]],
    );
}

#[test]
fn what_is_frozen_stays_until_it_is_thawed_or_overridden() {
    let dev = Dev::start();
    assert_eq!(dev.command(&["freeze", "db"]).0, 2, "nobody freezes without saying why");
    assert_eq!(
        dev.command(&["freeze", "--reason", "r", "--for", "1h", "--until", "2026-01-01T00:00:00Z"]).0,
        2
    );
    assert_eq!(dev.command(&["freeze", "--reason", "r", "--until", "tomorrow"]).0, 2);
    let steps: [&[&str]; 12] = [
        &["freeze", "bd", "--reason", "the audit"],
        &["freeze", "--reason", "the audit", "--until", "2026-01-01T00:00:00Z"],
        &["freeze", "db", "--reason", "the audit"],
        &["status"],
        &["group", "list"],
        &["plan", "db@pg-b=primary"],
        &["plan", "db@pg-b=primary", "--override-freeze"],
        &["run", "db@pg-b=primary"],
        &["freeze", "--reason", "nobody touches anything"],
        &["thaw", "app"],
        &["thaw", "db"],
        &["run", "drain app-1", "--reason", "it smokes"],
    ];
    let told: String =
        steps.iter().map(|step| format!("$ {}\n{}\n", step.join(" "), dev.told(step))).collect();
    // When it is, this year.
    let told: Vec<_> = told.lines().map(|line| line.split(", and it is ").next().unwrap()).collect();
    check(
        &told.join("\n"),
        &expect![[r#"
            $ freeze bd --reason the audit
            exit 3
            ! rejected: unknown-group
            ! there is no group bd
            ! help: `lockstep group list` shows what there is

            $ freeze --reason the audit --until 2026-01-01T00:00:00Z
            exit 3
            ! rejected: not-allowed
            ! a freeze until 2026-01-01T00:00:00.000Z
            ! help: name a moment within a year from now, or no end

            $ freeze db --reason the audit
            exit 0
            FROZEN  UNTIL   BY     REASON
            db      thawed  local  the audit

            $ status
            exit 0
            revision ...   hosts: 5 alive

            GROUP                  MEMBERS
            app    serves          app-1 online, app-2 online
            db     serves, frozen  pg-a primary, pg-b standby, pg-c standby

            FROZEN  UNTIL   BY     REASON
            db      thawed  local  the audit

            nothing is wrong

            $ group list
            exit 0
            GROUP                  MEMBERS  LIFECYCLE        HANDLER
            app    serves          2        service          demo
            db     serves, frozen  3        primary-standby  demo

            $ plan db@pg-b=primary
            exit 3
            ! rejected: frozen
            ! db is frozen by local: the audit
            ! help: wait until it is over, or end it: lockstep thaw db; to go ahead all the same: --override-freeze, with a --reason

            $ plan db@pg-b=primary --override-freeze
            exit 0
            plan ...  db: pg-a primary -> offline -> standby, pg-b standby -> primary   although frozen: db   gap: db   holds: app@app-1 app@app-2   tells: db (1)

            STEP  MEMBER   MOVE                AFTER
            0     db@pg-a  primary -> offline
            1     db@pg-a  offline -> standby  0 2
            2     db@pg-b  standby -> primary  0

            $ run db@pg-b=primary
            exit 3
            ! rejected: frozen
            ! db is frozen by local: the audit
            ! help: wait until it is over, or end it: lockstep thaw db; to go ahead all the same: --override-freeze, with a --reason

            $ freeze --reason nobody touches anything
            exit 0
            FROZEN      UNTIL   BY     REASON
            db          thawed  local  the audit
            everything  thawed  local  nobody touches anything

            $ thaw app
            exit 3
            ! rejected: frozen
            ! nothing was frozen by the name of app: the whole cluster is frozen by local: nobody touches anything
            ! help: `lockstep thaw` without a name ends all freezes; to go ahead in spite of them: --override-freeze, with a --reason

            $ thaw db
            exit 0
            FROZEN      UNTIL   BY     REASON
            everything  thawed  local  nobody touches anything
            ! the whole cluster is frozen still, and they with it
            ! help: `lockstep thaw` ends all freezes

            $ run drain app-1 --reason it smokes
            exit 3
            ! rejected: frozen
            ! the whole cluster is frozen by local: nobody touches anything
            ! help: wait until it is over, or end it: lockstep thaw; to go ahead all the same: --override-freeze, with a --reason
        "#]],
    );

    let (exit, _, err) = dev.command(&["run", "drain app-1", "--override-freeze"]);
    assert!(exit == 2 && err.contains("--reason <TEXT>"), "{err}");
    let run = ["run", "drain app-1", "--override-freeze", "--reason", "it smokes"];
    let (exit, out, err) = dev.command(&run);
    assert_eq!(exit, 0, "{err}");
    assert!(err.starts_with("plan ") && err.contains("although frozen: app"), "{err}");
    let id = out.split_whitespace().nth(1).unwrap();
    let why = dev.told(&["explain", id]);
    assert!(why.contains("\nfreezes and closed windows were not to be in the way\n"), "{why}");
    assert!(why.contains("\napp was frozen\n"), "{why}");
    let (_, out, _) = dev.command(&["transition", "show", id, "-o", "json"]);
    let shown: Value = serde_json::from_str(&out).unwrap();
    assert_eq!((&shown["override_freeze"], &shown["reason"]), (&true.into(), &"it smokes".into()));
    let (_, out, _) = dev.command(&["group", "show", "app", "-o", "json"]);
    assert_eq!(serde_json::from_str::<Value>(&out).unwrap()["frozen"], true);

    let (exit, out, _) =
        dev.command(&["freeze", "app", "--reason", "a short while", "--for", "2h", "-o", "json"]);
    let frozen: Value = serde_json::from_str(&out).unwrap();
    let until = frozen["items"].as_array().unwrap().iter().find_map(|freeze| freeze["until"].as_str());
    assert!(exit == 0 && until.is_some(), "{out}");
    check(
        &dev.told(&["thaw"]),
        &expect![[r#"
        exit 0
        nothing is frozen
    "#]],
    );
    assert_eq!(dev.command(&["run", "db@pg-b=primary"]).0, 0);
    let (_, events, _) = dev.command(&["events", "--since", "0"]);
    let asked = "requested by local: drain app-1, overriding freezes: it smokes";
    assert!(events.contains(asked) && events.contains("local freezes db: the audit"), "{events}");
    let (_, events, _) = dev.command(&["events", "--since", "0", "--group", "app"]);
    for told in ["freezes everything: nobody touches anything", "thaws all of what was frozen at "] {
        assert!(events.contains(told), "{told:?} in\n{events}");
    }
    assert!(!events.contains("freezes db"), "{events}");

    // One that ends by itself.
    dev.command(&["freeze", "db", "--reason", "a moment", "--for", "1ms"]);
    let over = "the time is over of all of what was frozen at ";
    wait_for("the freeze to end", || dev.command(&["events", "--since", "0"]).1.contains(over));
    assert_eq!(dev.command(&["plan", "db@pg-a=primary"]).0, 0);
}

#[test]
fn what_a_run_would_leave_behind() {
    let dev = Dev::start();
    let (exit, out, err) = dev.command(&["rehearse", "db@pg-b=primary"]);
    assert_eq!((exit, err.as_str()), (6, ""), "{out}");
    assert!(out.contains("\nwithout a fault: committed\n"), "{out}");
    assert!(out.contains("! host-lost-before-step  "), "{out}");
    let (exit, out, _) = dev.command(&["rehearse", "db@pg-b=primary", "-o", "json"]);
    let rehearsal: Value = serde_json::from_str(&out).unwrap();
    assert_eq!(exit, 6);
    let (_, plan, _) = dev.command(&["plan", "db@pg-b=primary", "-o", "json"]);
    assert_eq!(rehearsal["plan"], serde_json::from_str::<Value>(&plan).unwrap());
    let faults: std::collections::BTreeSet<_> =
        rehearsal["cases"].as_array().unwrap().iter().map(|case| case["fault"].as_str().unwrap()).collect();
    assert_eq!(faults.len(), 14, "{faults:?}");
    check(
        &dev.told(&["rehearse", "db=down"]),
        &expect![[r#"
        exit 3
        ! rejected: would-break-requires
        ! app requires db, which would stop serving while app serves
        ! help: take app down in the same request: app=down
    "#]],
    );
    let (exit, out, _) = dev.command(&["transition", "list", "-o", "json"]);
    let list: Value = serde_json::from_str(&out).unwrap();
    assert_eq!((exit, &list["items"]), (0, &Value::Array(Vec::new())), "nothing has happened");
    // And it is as was rehearsed.
    assert_eq!(dev.command(&["run", "db@pg-b=primary"]).0, 0);
}

#[test]
fn a_spec_is_declared_and_said_to_differ() {
    let dev = Dev::start();
    let spec = "cluster = \"dev\"\n[groups.web]\nselect = { role = \"app\" }\nlimits = { online = { min = 2 } }\n\
                [groups.cron]\nselect = { role = \"cron\" }\n";
    std::fs::write(dev.data.path().join("shop.toml"), spec).unwrap();
    std::fs::write(dev.data.path().join("bad.toml"), "cluster = \"shop\"\n[groups.web]\nhold_ms = 0\n")
        .unwrap();
    check(
        &dev.told(&["apply", "-f", "bad.toml"]),
        &expect![[r#"
        exit 3
        ! spec-invalid
        !
        !   × groups.web.hold_ms: 0 ms
        !    ╭─[bad.toml:3:11]
        !  2 │ [groups.web]
        !  3 │ hold_ms = 0
        !    ·           ┬
        !    ·           ╰── here
        !    ╰────
        !   help: between 1 and 86400000 (a day)
    "#]],
    );
    check(
        &dev.told(&["apply", "-f", "shop.toml", "--dry-run"]),
        &expect![[r#"
            exit 0
            dry run: nothing was applied
              - group app
              + group cron
              - group db
              + group web
              - relation app requires db
              - relation app watches db
              + member web@app-1
              + member web@app-2
              - member app@app-1
              - member app@app-2
              - member db@pg-a
              - member db@pg-b
              - member db@pg-c
        "#]],
    );
    let (exit, _, _) = dev.command(&["group", "show", "web"]);
    assert_eq!(exit, 1, "a dry run declares nothing");
    let (exit, out, err) = dev.command(&["apply", "-f", "shop.toml"]);
    assert_eq!((exit, err.as_str()), (0, ""));
    assert!(out.starts_with("applied at revision "), "{out}");
    let (exit, _, _) = dev.command(&["group", "show", "web"]);
    assert_eq!(exit, 0);
    std::fs::write(dev.data.path().join("other.toml"), "cluster = \"shop\"\n").unwrap();
    let refused = dev.told(&["apply", "-f", "other.toml"]);
    check(
        &refused,
        &expect![[r#"
            exit 3
            ! rejected: not-allowed
            ! this server has cluster "dev", and this declares cluster "shop"
            ! help: see whether it is the right server (--addr, LOCKSTEP_ADDR); a cluster keeps its name: to change this one write cluster = "dev"
        "#]],
    );
    assert_eq!(dev.told(&["apply", "-f", "other.toml", "--dry-run"]), refused);
    let (exit, _, _) = dev.command(&["group", "show", "web"]);
    assert_eq!(exit, 0, "nothing has changed");
}

#[test]
fn a_host_is_drained_together_with_what_else_is_asked_for() {
    let dev = Dev::start();
    let (exit, out, err) = dev.command(&["drain", "pg-a", "app@app-2=offline", "-o", "json"]);
    let drained: Value = serde_json::from_str(&out).unwrap_or_else(|error| panic!("{error}: {err}"));
    assert_eq!((exit, &drained["outcome"]), (0, &"committed".into()), "{err}");
    assert_eq!(drained["targets"], serde_json::json!(["drain pg-a", "app@app-2=offline"]));
    let steps = drained["plan"]["steps"].as_array().unwrap();
    let moved: std::collections::BTreeSet<_> =
        steps.iter().map(|step| step["host"].as_str().unwrap()).collect();
    assert_eq!(moved, ["app-2", "pg-a", "pg-b"].into(), "in one transition");
    assert_eq!(dev.told(&["undrain", "pg-a"]), "exit 0\npg-a takes members again\n");
    assert_eq!(dev.told(&["undrain", "pg-a"]), "exit 0\npg-a was not drained: nothing changes\n");
    let (exit, _, err) = dev.command(&["undrain", "pg-x"]);
    assert_eq!((exit, err.lines().next()), (3, Some("rejected: unknown-host")));
}

#[test]
fn whoever_moves_a_group_without_members_is_told() {
    let dev = Dev::start();
    let spec = "cluster = \"dev\"\n[groups.app]\nselect = { role = \"app\" }\nhandler = \"demo\"\n\
                [groups.cron]\nselect = { role = \"cron\" }\n[groups.jobs]\ngroups = [\"cron\"]\n";
    std::fs::write(dev.data.path().join("cluster.toml"), spec).unwrap();
    assert_eq!(dev.command(&["apply", "-f", "cluster.toml"]).0, 0);
    let note = |group| {
        format!("! note: {group} has no members, so nothing moves there: lockstep group show {group}\n")
    };
    let nothing = format!("exit 0\nnothing to do\n{}", note("cron"));
    assert_eq!(dev.told(&["run", "cron=up"]), nothing);
    assert_eq!(dev.told(&["run", "jobs=up", "app=up"]), nothing.replace("cron", "jobs"));
    let (exit, _, err) = dev.command(&["run", "app=down", "cron=down"]);
    assert!(exit == 0 && err.ends_with(&note("cron")[2..]), "{err}");
    let planned = format!("exit 0\nplan ...  nothing to do\n{}", note("cron"));
    assert_eq!(dev.told(&["plan", "cron=online"]), planned);
    std::fs::write(dev.data.path().join("state.json"), r#"{"hosts":[{"name":"h"}]}"#).unwrap();
    let offline = ["plan", "-f", "cluster.toml", "--state", "state.json", "cron=online"];
    assert_eq!(dev.told(&offline), planned, "and from files");
}

#[test]
fn without_a_server() {
    let dir = tempfile::tempdir().unwrap();
    // A port that was free a moment ago, and to which nobody listens.
    let address = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().to_string();
    let (exit, out, err) = lockstep(&address, dir.path(), &["status"]);
    assert_eq!((exit, out.as_str()), (1, ""));
    let expected = format!("error: no server answers: http://{address}: Connection refused (os error 111)\n");
    assert!(err.starts_with(&expected), "{err}");
    let (exit, _, err) = lockstep(&address, dir.path(), &["run", "db=up", "--wait", "100ms"]);
    assert_eq!(exit, 1);
    assert!(err.contains("no server answers"), "{err}");
}

#[test]
fn a_look_leaves_nothing_behind() {
    for signal in [Signal::INT, Signal::TERM] {
        let temporary = tempfile::tempdir().unwrap();
        let spawned = Command::new(env!("CARGO_BIN_EXE_lockstep"))
            .args(["dev", "--listen", "127.0.0.1:0"])
            .env("TMPDIR", temporary.path())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let mut child = Running(spawned);
        let mut told = BufReader::new(child.0.stdout.take().unwrap()).lines().map_while(Result::ok);
        // By then everything runs that writes there.
        assert!(told.any(|line| line.starts_with("app:")), "it ended");
        let count = || std::fs::read_dir(temporary.path()).unwrap().count();
        assert_eq!(count(), 1);
        rustix::process::kill_process(Pid::from_child(&child.0), signal).unwrap();
        assert!(child.0.wait().unwrap().success());
        let mut said = String::new();
        child.0.stderr.take().unwrap().read_to_string(&mut said).unwrap();
        assert_eq!((count(), said.as_str()), (0, ""));
    }
}
