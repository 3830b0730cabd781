//! `lockstep rehearse -f cluster.toml --state state.json`, with the real binary: the table, the data, the exit codes,
//! and what is refused.

#![allow(clippy::unwrap_used, reason = "a test fails by it")]

use expect_test::{Expect, expect};
use serde_json::{Value, json};
use std::process::Command;

const SHOP: &str = r#"
[groups.db]
select = { role = "db" }
lifecycle = "primary-standby"
handler = "pg"
provides = ["sql"]

[groups.pool]
select = { role = "pool" }
handler = "pgbouncer"
consumes = ["sql"]

[[relations]]
from = "pool"
to = "db"
ask = "hold"
"#;
const SHOP_UP: &str = "db pg-a primary, db pg-b standby, pool p1 online";

/// Rehearses with `members` written as `group host state [liveness]`; a host's label `role` is its group.
fn rehearse(cluster: &str, members: &str, args: &[&str]) -> (i32, String, String) {
    let members: Vec<Vec<&str>> =
        members.split(',').map(|member| member.split_whitespace().collect()).collect();
    let liveness = |member: &[&str]| member.get(3).copied().unwrap_or("alive").to_owned();
    let hosts = members.iter().map(
        |member| json!({"name": member[1], "labels": {"role": member[0]}, "liveness": liveness(member)}),
    );
    let states =
        members.iter().map(|member| json!({"group": member[0], "host": member[1], "state": member[2]}));
    let state = json!({"hosts": hosts.collect::<Vec<_>>(), "members": states.collect::<Vec<_>>()});
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join("cluster.toml"), format!("cluster = \"shop\"\n{cluster}")).unwrap();
    std::fs::write(dir.path().join("state.json"), state.to_string()).unwrap();
    let output = Command::new(env!("CARGO_BIN_EXE_lockstep"))
        .args(["rehearse", "-f", "cluster.toml", "--state", "state.json"])
        .args(args)
        .current_dir(dir.path())
        .env("NO_COLOR", "1")
        .env_remove("LOCKSTEP_ADDR")
        .output()
        .unwrap();
    let text = |bytes| String::from_utf8(bytes).unwrap();
    (output.status.code().unwrap(), text(output.stdout), text(output.stderr))
}

#[track_caller]
fn check(cluster: &str, members: &str, args: &[&str], expected: &Expect) {
    let (exit, out, err) = rehearse(cluster, members, args);
    let err: String = err.lines().map(|line| format!("{}\n", format!("! {line}").trim_end())).collect();
    expected.assert_eq(&format!("exit {exit}\n{out}{err}"));
}

#[test]
fn a_switchover_as_people_read_it() {
    check(
        SHOP,
        SHOP_UP,
        &["db@pg-b=primary"],
        &expect![[r#"
            exit 6
            plan 54520e1d  db: pg-a primary -> offline -> standby, pg-b standby -> primary   gap: db   holds: pool@p1
            without a fault: committed

              FAULT                     AT                                                                                   OUTCOME                                         LEFT ELSEWHERE                                                       HELD            TAKES
            ! host-lost-after-vote      prepare db@pg-b                                                                      degraded (undo), breaks min 1 of db primary: 0  itself in doubt; db@pg-a offline, not primary                        5.0 s pool@p1   60.0 s
            ! host-lost-in-step         commit primary -> offline db@pg-a                                                    degraded (undo), breaks min 1 of db primary: 0  itself in doubt: offline, not primary                                5.0 s pool@p1   60.0 s
            ! host-lost-before-step     commit standby -> primary db@pg-b                                                    degraded (undo), breaks min 1 of db primary: 0  itself in doubt; db@pg-a offline, not primary                        5.0 s pool@p1   60.0 s
            ! host-lost-before-step     commit primary -> offline db@pg-a                                                    degraded (undo)                                 itself in doubt                                                      5.0 s pool@p1   60.0 s
            ! host-lost-in-step         commit standby -> primary db@pg-b                                                    degraded (undo)                                 itself in doubt: primary, not standby; db@pg-a offline, not primary  5.0 s pool@p1   60.0 s
            ! host-lost-after-step      commit primary -> offline db@pg-a                                                    degraded (exclude)                              itself in doubt: offline, not standby                                                2 min 0 s
            ! host-lost-before-step     commit offline -> standby db@pg-a                                                    degraded (exclude)                              itself in doubt: offline, not standby                                                2 min 0 s
            ! host-lost-in-step         commit offline -> standby db@pg-a                                                    degraded (exclude)                              itself in doubt                                                                      2 min 0 s
              step-fails                commit offline -> standby db@pg-a                                                    committed (exclude)                             itself offline, not standby                                                          700 ms
              step-hangs                commit offline -> standby db@pg-a                                                    committed (exclude)                             itself offline, not standby                                                          60.0 s
              step-hangs                commit primary -> offline db@pg-a, commit standby -> primary db@pg-b                 undone                                                                                                               5.0 s pool@p1   60.0 s
              step-fails                commit primary -> offline db@pg-a, commit standby -> primary db@pg-b                 undone                                                                                                               700 ms pool@p1  700 ms
              host-lost-after-vote      hold pool@p1                                                                         aborted (hold-too-short)                                                                                             5.0 s itself    5.0 s
              host-lost-after-vote      check db@pg-a db@pg-b, prepare db@pg-a                                               aborted (hold-too-short)                                                                                             2.5 s pool@p1   2.5 s
              host-lost-before-vote     prepare db@pg-a db@pg-b                                                              aborted (hold-too-short)                                                                                             2.5 s pool@p1   2.5 s
              vote-missing              prepare db@pg-a db@pg-b                                                              aborted (hold-too-short)                                                                                             2.5 s pool@p1   5.0 s
              server-lost-before-write  write 3 decision                                                                     aborted (new-reign)                                                                                                  2.0 s pool@p1   2.0 s
              host-lost-before-vote     check db@pg-a db@pg-b, check pool@p1                                                 aborted (vote-missing)                                                                                                               3.1 s
              vote-no                   check db@pg-a db@pg-b, check pool@p1, hold pool@p1, and 1 more                       aborted (vote-no)
              vote-missing              check db@pg-a db@pg-b, check pool@p1                                                 aborted (vote-missing)                                                                                                               5.0 s
              host-lost-after-vote      check pool@p1                                                                        aborted (hold-too-short)                                                                                                             5.0 s
              server-lost-after-write   write 2 begin                                                                        aborted (new-reign)                                                                                                                  2.0 s
              host-lost-before-vote     hold pool@p1                                                                         aborted (hold-too-short)                                                                                                             5.0 s
              vote-missing              hold pool@p1                                                                         aborted (hold-too-short)                                                                                                             5.0 s
              host-lost-before-release  release pool@p1                                                                      committed                                                                                                            5.0 s itself    5.0 s
              server-lost-after-write   write 3 decision, write 4 step, write 5 step                                         committed                                                                                                            2.0 s pool@p1   2.0 s
              server-lost-before-write  write 4 step, write 5 step                                                           committed                                                                                                            2.0 s pool@p1   2.0 s
              server-lost-before-write  write 1 request, write 2 begin, write 6 step+outcome                                 committed                                                                                                                            2.0 s
              server-lost-after-write   write 1 request, write 6 step+outcome                                                committed                                                                                                                            2.0 s
              order-lost                check db@pg-a db@pg-b, check pool@p1, commit offline -> standby db@pg-a, and 7 more  committed
              report-lost               check db@pg-a db@pg-b, check pool@p1, commit offline -> standby db@pg-a, and 6 more  committed
              host-lost-after-step      commit offline -> standby db@pg-a, commit standby -> primary db@pg-b                 committed

            79 cases: 25 aborted, 42 committed, 4 undone, 8 degraded; 3 break a limit; worst hold 5.0 s at pool@p1
        "#]],
    );
}

#[test]
fn a_switchover_as_programs_read_it() {
    let (exit, out, err) = rehearse(SHOP, SHOP_UP, &["db@pg-b=primary", "-o", "json"]);
    assert_eq!((exit, err.as_str()), (6, ""));
    let rehearsal: Value = serde_json::from_str(&out).unwrap();
    let cases = rehearsal["cases"].as_array().unwrap();
    let summary = &rehearsal["summary"];
    assert_eq!(summary["cases"], cases.len());
    let ends = ["aborted", "committed", "undone", "degraded", "unfinished"];
    let ends: u64 = ends.iter().map(|end| summary[*end].as_u64().unwrap()).sum();
    assert_eq!(ends, cases.len() as u64, "nothing is drawn together, and each case ends somehow");
    expect![[r#"
        {
          "aborted": 25,
          "cases": 79,
          "committed": 42,
          "degraded": 8,
          "limit_broken": 3,
          "undone": 4,
          "unfinished": 0,
          "worst_hold": {
            "group": "pool",
            "host": "p1",
            "ms": 5000
          }
        }
        {
          "broken": [],
          "cause": null,
          "elsewhere": [],
          "fault": null,
          "group": null,
          "held": [
            {
              "group": "pool",
              "host": "p1",
              "ms": 0
            }
          ],
          "host": null,
          "message": null,
          "outcome": "committed",
          "phase": null,
          "reason": null,
          "step": null,
          "took_ms": 0,
          "write": null
        }
    "#]]
    .assert_eq(&format!("{summary:#}\n{:#}\n", rehearsal["clean"]));
    let shown = |fault: &str, key: &str, value: &str| {
        let case = cases.iter().find(|case| case["fault"] == fault && case[key] == value);
        format!("{:#}\n", case.unwrap())
    };
    expect![[r#"
        {
          "broken": [
            {
              "allowed": 1,
              "count": 0,
              "group": "db",
              "limit": "min",
              "state": "primary"
            }
          ],
          "cause": "undo",
          "elsewhere": [
            {
              "actual": "offline",
              "group": "db",
              "host": "pg-a",
              "in_doubt": false,
              "planned": "primary"
            },
            {
              "actual": "standby",
              "group": "db",
              "host": "pg-b",
              "in_doubt": true,
              "planned": "standby"
            }
          ],
          "fault": "host-lost-before-step",
          "group": "db",
          "held": [
            {
              "group": "pool",
              "host": "p1",
              "ms": 5000
            }
          ],
          "host": "pg-b",
          "message": null,
          "outcome": "degraded",
          "phase": "commit",
          "reason": "it did not end in time",
          "step": 2,
          "took_ms": 60000,
          "write": null
        }
    "#]]
    .assert_eq(&shown("host-lost-before-step", "host", "pg-b"));
    let (_, yaml, _) = rehearse(SHOP, SHOP_UP, &["db@pg-b=primary", "-o", "yaml"]);
    assert!(yaml.contains("\n  - broken:\n") || yaml.contains("\n  - broken: []\n"), "{yaml}");
}

#[test]
fn all_cases_have_a_line_each_when_that_is_asked_for() {
    let (exit, out, _) = rehearse(SHOP, SHOP_UP, &["db@pg-b=primary", "--all"]);
    assert_eq!(exit, 6);
    let lines: Vec<&str> = out.lines().collect();
    let cases = lines.last().unwrap().split(' ').next().unwrap().parse::<usize>().unwrap();
    let head = lines.iter().position(|line| line.starts_with("  FAULT")).unwrap();
    // The last two lines are the summary's.
    assert_eq!(lines.len() - head - 3, cases);
}

#[test]
fn a_large_plan_is_a_short_table() {
    let members: Vec<_> = (0..20).map(|number| format!("web w{number:02} online")).collect();
    let web = "[groups.web]\nselect = { role = \"web\" }\nhandler = \"h\"\n";
    check(
        web,
        &members.join(","),
        &["web=offline"],
        &expect![[r#"
            exit 6
            plan c03a865b  web: 20 members online -> offline
            without a fault: committed

              FAULT                     AT                                                                                 OUTCOME                 LEFT ELSEWHERE                        HELD  TAKES
            ! host-lost-after-vote      prepare web@w19                                                                    degraded (undo)         itself in doubt                             60.0 s
            ! host-lost-before-step     commit online -> offline web (20)                                                  degraded (undo)         itself in doubt                             60.0 s
            ! host-lost-in-step         commit online -> offline web (20)                                                  degraded (undo)         itself in doubt: offline, not online        60.0 s
              step-fails                commit online -> offline web (20)                                                  undone                                                              700 ms
              step-hangs                commit online -> offline web (20)                                                  undone                                                              60.0 s
              host-lost-before-vote     check web (20), prepare web (20)                                                   aborted (vote-missing)                                              3.1 s
              vote-no                   check web (20), prepare web (20)                                                   aborted (vote-no)
              vote-missing              check web (20), prepare web (20)                                                   aborted (vote-missing)                                              5.0 s
              host-lost-after-vote      check web (20), prepare web (19)                                                   aborted (vote-missing)                                              3.1 s
              server-lost-after-write   write 2 begin                                                                      aborted (new-reign)                                                 2.0 s
              server-lost-before-write  write 3 decision                                                                   aborted (new-reign)                                                 2.0 s
              server-lost-before-write  write 1 request, write 2 begin, write 4 step+outcome                               committed                                                           2.0 s
              server-lost-after-write   write 1 request, write 3 decision, write 4 step+outcome                            committed                                                           2.0 s
              order-lost                check web (20), commit online -> offline web (20), outcome (20 hosts), and 1 more  committed
              report-lost               check web (20), commit online -> offline web (20), prepare web (20)                committed
              host-lost-after-step      commit online -> offline web (20)                                                  committed

            408 cases: 161 aborted, 166 committed, 40 undone, 41 degraded; nobody holds
        "#]],
    );
}

#[test]
fn how_it_ends() {
    // Whoever is lost in the middle of a step is in doubt: a plan that takes steps has a case that ends degraded.
    let web = "[groups.web]\nselect = { role = \"web\" }\n";
    let (exit, out, _) = rehearse(web, "web w1 online", &["web=offline"]);
    assert_eq!(exit, 6, "{out}");
    // With nothing to do nothing goes wrong.
    check(
        web,
        "web w1 online",
        &["web=online"],
        &expect![[r#"
        exit 0
        plan 984cd5af  nothing to do
    "#]],
    );
    // Left out, who fails is missed.
    let two = "[groups.web]\nselect = { role = \"web\" }\nhandler = \"h\"\non_failure = \"exclude\"\n\
               limits = { online = { min = 2 } }\n";
    let (exit, out, _) = rehearse(two, "web w1 offline, web w2 offline", &["web=online"]);
    assert_eq!(exit, 6);
    assert!(out.contains("! step-fails  "), "{out}");
    // A holder whose host is away is asked in vain.
    let members = "db pg-a primary, db pg-b standby, pool p1 online lost";
    let (exit, out, _) = rehearse(SHOP, members, &["db@pg-b=primary"]);
    assert_eq!(exit, 4, "{out}");
    assert!(out.contains("without a fault: aborted (vote-missing)"), "{out}");
}

#[test]
fn what_plan_refuses_is_refused() {
    check(
        SHOP,
        SHOP_UP,
        &["db=down"],
        &expect![[r#"
        exit 3
        ! rejected: would-break-requires
        ! pool requires db, which would stop serving while pool serves
        ! help: take pool down in the same request: pool=down
    "#]],
    );
    check(
        SHOP,
        SHOP_UP,
        &["db@nowhere=primary", "-o", "json"],
        &expect![[r#"
        exit 3
        {
          "rejection": {
            "code": "unknown-host",
            "message": "there is no host nowhere",
            "help": "`lockstep host list` shows those that have joined"
          }
        }
    "#]],
    );
    check(
        SHOP,
        SHOP_UP,
        &["db"],
        &expect![[r#"
            exit 2
            ! error: invalid value 'db' for '<TARGET>...': target "db" is none of GROUP=STATE, GROUP@HOST=STATE, GROUP=up, GROUP=down, GROUP.KEY=VALUE, "drain HOST", "repair GROUP"
            !
            ! For more information, try '--help'.
        "#]],
    );
    let (exit, _, err) = rehearse("[groups.db]\nhold_ms = 0\n", "x h y", &["db=up"]);
    assert!(exit == 3 && err.contains("groups.db.hold_ms: 0 ms"), "{err}");
    let members: Vec<_> = (0..1001).map(|number| format!("web w{number} online")).collect();
    let web = "[groups.web]\nselect = { role = \"web\" }\n";
    check(
        web,
        &members.join(","),
        &["web=offline"],
        &expect![[r#"
            exit 3
            ! rejected: too-large
            ! the plan asks 1001 members, at most 500 are rehearsed
            ! help: rehearse the same change for fewer members: what goes wrong at one goes wrong at the others
        "#]],
    );
}
