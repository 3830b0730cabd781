//! `lockstep plan -f cluster.toml --state state.json`, with the real binary: what is planned, and how bad files are
//! refused.

#![allow(clippy::unwrap_used, reason = "a test fails by it")]

use expect_test::{Expect, expect};
use std::fmt::Write as _;
use std::path::Path;
use std::process::Command;

fn lockstep(dir: &Path, args: &[&str]) -> String {
    let output = Command::new(env!("CARGO_BIN_EXE_lockstep"))
        .args(args)
        .current_dir(dir)
        .env("NO_COLOR", "1")
        .env_remove("LOCKSTEP_ADDR")
        .output()
        .unwrap();
    let mut text = format!("exit {}\n", output.status.code().unwrap());
    text.push_str(&String::from_utf8(output.stdout).unwrap());
    for line in String::from_utf8(output.stderr).unwrap().lines() {
        // miette leaves blanks at the ends of lines, editors do not.
        writeln!(text, "{}", format!("! {line}").trim_end()).unwrap();
    }
    text
}

fn plan_files(cluster: &[u8], state: &[u8], args: &[&str]) -> String {
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join("cluster.toml"), cluster).unwrap();
    std::fs::write(dir.path().join("state.json"), state).unwrap();
    let args: Vec<&str> =
        ["plan", "-f", "cluster.toml", "--state", "state.json"].iter().chain(args).copied().collect();
    lockstep(dir.path(), &args)
}

/// Plans with `members` written as `group host state`; a host's label `role` is its group.
fn plan(cluster: &str, members: &str, args: &[&str]) -> String {
    let members: Vec<Vec<&str>> =
        members.split(',').map(|member| member.split_whitespace().collect()).collect();
    let hosts: Vec<_> = members
        .iter()
        .map(|member| {
            let liveness = member.get(4).copied().unwrap_or("alive");
            serde_json::json!({"name": member[1], "labels": {"role": member[0]}, "liveness": liveness})
        })
        .collect();
    let members: Vec<_> = members
        .iter()
        .map(|member| {
            let score: i64 = member.get(3).map_or(0, |score| score.parse().unwrap());
            serde_json::json!({"group": member[0], "host": member[1], "state": member[2], "score": score})
        })
        .collect();
    let state = serde_json::json!({"hosts": hosts, "members": members}).to_string();
    plan_files(format!("cluster = \"shop\"\n{cluster}").as_bytes(), state.as_bytes(), args)
}

#[track_caller]
fn check(text: &str, expected: &Expect) {
    expected.assert_eq(text);
}

const SHOP: &str = r#"
[groups.db]
select = { role = "db" }
lifecycle = "primary-standby"
provides = ["sql"]

[groups.pool]
select = { role = "pool" }

[groups.app]
select = { role = "app" }
consumes = ["sql"]

[groups.mon]
select = { role = "mon" }

[[relations]]
from = "pool"
to = "db"
ask = "hold"

[[relations]]
from = "mon"
to = "app"
ask = "vote"
"#;
const SHOP_UP: &str = "db pg-a primary, db pg-b standby, pool p1 online, pool p2 online, app a1 online, \
                       app a2 online, mon m1 online";
const SHOP_DOWN: &str = "db pg-a offline, db pg-b offline, pool p1 offline, app a1 offline, app a2 offline, \
                         mon m1 offline";

#[test]
fn what_a_group_requires_comes_up_first_and_goes_down_last() {
    check(
        &plan(SHOP, SHOP_DOWN, &["app=up", "db=up"]),
        &expect![[r#"
            exit 0
            plan 85bba3ac  app: a1 offline -> online, a2 offline -> online
                           db: pg-a offline -> standby -> primary, pg-b offline -> standby
                           tells: mon (1) pool (1)

            STEP  MEMBER   MOVE                AFTER
            0     app@a1   offline -> online   2-4
            1     app@a2   offline -> online   2-4
            2     db@pg-a  offline -> standby
            3     db@pg-a  standby -> primary  2
            4     db@pg-b  offline -> standby  3
        "#]],
    );
    check(
        &plan(SHOP, SHOP_UP, &["app=down", "db=down"]),
        &expect![[r#"
            exit 0
            plan f0d914c9  app: a1 online -> offline, a2 online -> offline
                           db: pg-a primary -> offline, pg-b standby -> offline
                           holds: pool@p1 pool@p2   asks: mon@m1

            STEP  MEMBER   MOVE                AFTER
            0     app@a1   online -> offline
            1     app@a2   online -> offline
            2     db@pg-a  primary -> offline  0 1
            3     db@pg-b  standby -> offline  0 1
        "#]],
    );
    check(
        &plan(SHOP, SHOP_UP, &["db=down"]),
        &expect![[r#"
        exit 3
        ! rejected: would-break-requires
        ! app requires db, which would stop serving while app serves
        ! help: take app down in the same request: app=down
    "#]],
    );
    check(
        &plan(SHOP, SHOP_DOWN, &["app=online"]),
        &expect![[r#"
        exit 3
        ! rejected: requirement-down
        ! app requires db, which does not serve
        ! help: bring db up first, or in the same request: db=up
    "#]],
    );
    check(
        &plan(SHOP, SHOP_UP, &["app@a1=offline"]),
        &expect![[r#"
            exit 0
            plan 5d73f9e2  app: a1 online -> offline   asks: mon@m1   tells: app (1)

            STEP  MEMBER  MOVE               AFTER
            0     app@a1  online -> offline
        "#]],
    );
}

#[test]
fn a_switchover_as_programs_read_it() {
    check(
        &plan(SHOP, SHOP_UP, &["db@pg-b=primary", "-o", "json"]),
        &expect![[r#"
            exit 0
            {
              "hash": "4aa931398f84c72d813133c21a85f300",
              "steps": [
                {
                  "id": 0,
                  "group": "db",
                  "host": "pg-a",
                  "from": "primary",
                  "to": "offline",
                  "after": []
                },
                {
                  "id": 1,
                  "group": "db",
                  "host": "pg-a",
                  "from": "offline",
                  "to": "standby",
                  "after": [
                    0,
                    2
                  ]
                },
                {
                  "id": 2,
                  "group": "db",
                  "host": "pg-b",
                  "from": "standby",
                  "to": "primary",
                  "after": [
                    0
                  ]
                }
              ],
              "participants": [
                {
                  "group": "app",
                  "host": "a1",
                  "role": "observer"
                },
                {
                  "group": "app",
                  "host": "a2",
                  "role": "observer"
                },
                {
                  "group": "db",
                  "host": "pg-a",
                  "role": "actor"
                },
                {
                  "group": "db",
                  "host": "pg-b",
                  "role": "actor"
                },
                {
                  "group": "pool",
                  "host": "p1",
                  "role": "holder"
                },
                {
                  "group": "pool",
                  "host": "p1",
                  "role": "observer"
                },
                {
                  "group": "pool",
                  "host": "p2",
                  "role": "holder"
                },
                {
                  "group": "pool",
                  "host": "p2",
                  "role": "observer"
                }
              ],
              "relations": [
                {
                  "from": "app",
                  "to": "db",
                  "kind": "requires",
                  "origin": "capability"
                },
                {
                  "from": "pool",
                  "to": "db",
                  "kind": "watches",
                  "origin": "declared"
                }
              ],
              "gaps": [
                "db"
              ]
            }
        "#]],
    );
}

#[test]
fn a_rejection_as_programs_read_it() {
    check(
        &plan(SHOP, SHOP_UP, &["db=down", "-o", "json"]),
        &expect![[r#"
        exit 3
        {
          "rejection": {
            "code": "would-break-requires",
            "message": "app requires db, which would stop serving while app serves",
            "help": "take app down in the same request: app=down"
          }
        }
    "#]],
    );
}

#[test]
fn large_plans_go_through_barriers() {
    let text = plan(SHOP, SHOP_UP, &["app=down", "db=down", "-o", "json"]);
    let plan: serde_json::Value = serde_json::from_str(text.split_once('\n').unwrap().1).unwrap();
    assert_eq!(plan["barriers"], serde_json::json!([{"id": 10000, "after": [0, 1]}]));
    assert_eq!(plan["steps"][2]["after"], serde_json::json!([10000]));
}

#[test]
fn nothing_to_do_is_an_empty_plan() {
    check(
        &plan(SHOP, SHOP_UP, &["app=online"]),
        &expect![[r#"
            exit 0
            plan 984cd5af  nothing to do
        "#]],
    );
    let text = plan(SHOP, SHOP_UP, &["app=online", "db=up", "-o", "json"]);
    let plan: serde_json::Value = serde_json::from_str(text.split_once('\n').unwrap().1).unwrap();
    assert_eq!(plan["steps"], serde_json::json!([]));
    assert_eq!(plan["participants"], serde_json::json!([]));
    assert_eq!(plan["gaps"], serde_json::json!([]));
    assert!(plan.get("barriers").is_none());
}

const CACHE: &str = r#"
[groups.c]
select = { role = "c" }
lifecycle = "cache"

[groups.web]
select = { role = "web" }

[[relations]]
from = "web"
to = "c"
kind = "after"

[lifecycles.cache]
states = ["offline", "replica", "primary"]
serving = ["primary"]
limits = { primary = { min = 1, max = 1 } }
edges = [["offline", "replica"], ["replica", "primary"], ["primary", "replica"], ["replica", "offline"]]
"#;

#[test]
fn a_lifecycle_of_ones_own() {
    let up = "c c1 primary, c c2 replica, c c3 offline, web w1 online";
    // Who is displaced takes the nearest state with room; `max` forces it to leave first, which is a gap.
    check(
        &plan(CACHE, up, &["c@c2=primary"]),
        &expect![[r#"
            exit 0
            plan 2e5bf4dd  c: c1 primary -> replica, c2 replica -> primary   gap: c   tells: c (1) web (1)

            STEP  MEMBER  MOVE                AFTER
            0     c@c1    primary -> replica
            1     c@c2    replica -> primary  0
        "#]],
    );
    check(
        &plan(CACHE, up, &["c@c3=primary"]),
        &expect![[r#"
            exit 0
            plan 025906d3  c: c1 primary -> replica, c3 offline -> replica -> primary   gap: c   tells: c (1) web (1)

            STEP  MEMBER  MOVE                AFTER
            0     c@c1    primary -> replica
            1     c@c3    offline -> replica
            2     c@c3    replica -> primary  0 1
        "#]],
    );
    // `min` holds at the end, unless the whole group is named.
    check(
        &plan(CACHE, up, &["c@c1=offline"]),
        &expect![[r#"
        exit 3
        ! rejected: limit-broken
        ! 0 members of c would be primary, at least 1 must be
        ! help: name the whole group (c=STATE) if that is meant
    "#]],
    );
    check(
        &plan(CACHE, up, &["c=down"]),
        &expect![[r#"
            exit 0
            plan ec56942d  c: c1 primary -> replica -> offline, c2 replica -> offline   tells: c (1) web (1)

            STEP  MEMBER  MOVE                AFTER
            0     c@c1    primary -> replica
            1     c@c1    replica -> offline  0
            2     c@c2    replica -> offline
        "#]],
    );
    // `after` orders, and demands nothing.
    check(
        &plan(CACHE, up, &["web=down", "c=down"]),
        &expect![[r#"
            exit 0
            plan 9dd3490e  c: c1 primary -> replica -> offline, c2 replica -> offline
                           web: w1 online -> offline
                           tells: c (1)

            STEP  MEMBER  MOVE                AFTER
            0     c@c1    primary -> replica  3
            1     c@c1    replica -> offline  0 3
            2     c@c2    replica -> offline  3
            3     web@w1  online -> offline
        "#]],
    );
    check(
        &plan(CACHE, "c c1 offline, web w1 offline", &["web=up"]),
        &expect![[r#"
            exit 0
            plan 7d638339  web: w1 offline -> online

            STEP  MEMBER  MOVE               AFTER
            0     web@w1  offline -> online
        "#]],
    );
}

#[test]
fn who_is_promoted_is_chosen_by_score_then_by_name() {
    check(
        &plan(SHOP, "db pg-a offline 3, db pg-b offline 7, db pg-c offline 7", &["db=up"]),
        &expect![[r#"
            exit 0
            plan 23f9b1ec  db: pg-a offline -> standby, pg-b offline -> standby -> primary, pg-c offline -> standby

            STEP  MEMBER   MOVE                AFTER
            0     db@pg-a  offline -> standby  2
            1     db@pg-b  offline -> standby
            2     db@pg-b  standby -> primary  1
            3     db@pg-c  offline -> standby  2
        "#]],
    );
    // A member that is there already stays.
    check(
        &plan(SHOP, "db pg-a primary 0, db pg-b standby 9, db pg-c offline 0", &["db=up"]),
        &expect![[r#"
            exit 0
            plan c38b70c4  db: pg-c offline -> standby   tells: db (2)

            STEP  MEMBER   MOVE                AFTER
            0     db@pg-c  offline -> standby
        "#]],
    );
}

const WEB: &str = r#"
[groups.web]
select = { role = "web" }
limits = { online = { min = "majority", max = 3 } }
"#;

#[test]
fn limits_hold() {
    let four = "web w1 online, web w2 online, web w3 online, web w4 offline";
    check(
        &plan(WEB, four, &["web@w1=offline"]),
        &expect![[r#"
        exit 3
        ! rejected: limit-broken
        ! 2 members of web would be online, at least 3 must be
        ! help: name the whole group (web=STATE) if that is meant
    "#]],
    );
    check(
        &plan(WEB, four, &["web=online"]),
        &expect![[r#"
        exit 3
        ! rejected: limit-broken
        ! 4 members of web would be online, at most 3 may be
        ! help: ask for fewer, or raise max in [groups.web.limits.online]
    "#]],
    );
    check(
        &plan(WEB, four, &["web=up"]),
        &expect![[r#"
            exit 0
            plan 984cd5af  nothing to do
        "#]],
    );
    check(
        &plan(WEB, four, &["web=down"]),
        &expect![[r#"
            exit 0
            plan 2c4e253d  web: w1 online -> offline, w2 online -> offline, w3 online -> offline   tells: web (1)

            STEP  MEMBER  MOVE               AFTER
            0     web@w1  online -> offline
            1     web@w2  online -> offline
            2     web@w3  online -> offline
        "#]],
    );
    // At `max`: w1 leaves before w4 enters.
    check(
        &plan(WEB, four, &["web@w1=offline", "web@w4=online"]),
        &expect![[r#"
            exit 0
            plan 4caa5aec  web: w1 online -> offline, w4 offline -> online   gap: web   tells: web (2)

            STEP  MEMBER  MOVE               AFTER
            0     web@w1  online -> offline
            1     web@w4  offline -> online  0
        "#]],
    );
    // With room, entering comes first, so that the group serves throughout.
    let two = "web w1 online, web w2 online, web w3 offline";
    check(
        &plan(WEB, two, &["web@w1=offline", "web@w3=online"]),
        &expect![[r#"
            exit 0
            plan 115ea39b  web: w1 online -> offline, w3 offline -> online   tells: web (1)

            STEP  MEMBER  MOVE               AFTER
            0     web@w1  online -> offline  1
            1     web@w3  offline -> online
        "#]],
    );
    // Asked for one more than fits: somebody who was not named makes room.
    check(
        &plan(WEB, four, &["web@w4=online"]),
        &expect![[r#"
            exit 0
            plan 2ee69a75  web: w3 online -> offline, w4 offline -> online   gap: web   tells: web (2)

            STEP  MEMBER  MOVE               AFTER
            0     web@w3  online -> offline
            1     web@w4  offline -> online  0
        "#]],
    );
    check(
        &plan(WEB, four, &["web@w4=online", "web@w4=offline"]),
        &expect![[r#"
        exit 3
        ! rejected: limit-broken
        ! web@w4 is asked to be both online and offline
        ! help: name each member once
    "#]],
    );
}

#[test]
fn what_is_lost_counts_where_it_may_be_and_cannot_be_moved() {
    check(
        &plan(SHOP, "db pg-a primary 0 lost, db pg-b standby", &["db@pg-b=primary"]),
        &expect![[r#"
            exit 3
            ! rejected: host-lost
            ! db@pg-a may still be primary, where at most 1 may be: host pg-a is lost
            ! help: bring it back: its next status settles where it is; or make sure that the host has stopped, and say so: lockstep fence pg-a --confirm --reason TEXT; if it is gone for good: lockstep host forget pg-a --stopped
        "#]],
    );
    check(
        &plan(SHOP, "db pg-a primary, db pg-b standby 0 lost", &["db@pg-b=primary"]),
        &expect![[r#"
            exit 3
            ! rejected: host-lost
            ! db@pg-b would have to move, and host pg-b is lost
            ! help: bring the host back, ask for less, or go on without lost hosts: --exclude-lost
        "#]],
    );
    check(
        &plan(SHOP, "db pg-a offline 0 suspect", &["db=up"]),
        &expect![[r#"
            exit 0
            plan 260a388e  db: pg-a offline -> standby -> primary

            STEP  MEMBER   MOVE                AFTER
            0     db@pg-a  offline -> standby
            1     db@pg-a  standby -> primary  0
        "#]],
    );
}

#[test]
fn a_place_that_another_gets_is_in_the_plan() {
    let state = serde_json::json!({
        "hosts": [{"name": "pg-a", "labels": {"role": "db"}}, {"name": "pg-b", "labels": {"role": "db"}}],
        "members": [
            {"group": "db", "host": "pg-a", "state": "offline", "goal": "primary"},
            {"group": "db", "host": "pg-b", "state": "standby"},
        ],
    });
    let cluster = format!("cluster = \"shop\"\n{SHOP}");
    check(
        &plan_files(cluster.as_bytes(), state.to_string().as_bytes(), &["db@pg-b=primary"]),
        &expect![[r#"
        exit 0
        plan 36c2e2b8  db: pg-a stays and is to be standby, pg-b standby -> primary   tells: db (1)

        STEP  MEMBER   MOVE                AFTER
        0     db@pg-b  standby -> primary
    "#]],
    );
}

#[test]
fn targets_that_name_nothing() {
    for (target, expected) in [
        (
            "nope=online",
            expect![[r#"
            exit 3
            ! rejected: unknown-group
            ! there is no group nope
            ! help: there are: app, db, mon and pool
        "#]],
        ),
        (
            "db@nope=primary",
            expect![[r#"
            exit 3
            ! rejected: unknown-host
            ! there is no host nope
            ! help: `lockstep host list` shows those that have joined
        "#]],
        ),
        (
            "db@a1=primary",
            expect![[r#"
            exit 3
            ! rejected: unknown-member
            ! host a1 is not in group db
            ! help: a group's members are the hosts whose labels match its `select`
        "#]],
        ),
        (
            "db=sideways",
            expect![[r#"
            exit 3
            ! rejected: unknown-state
            ! group db has no state sideways
            ! help: its states are offline, standby and primary
        "#]],
        ),
        (
            "db.live=green",
            expect![[r#"
            exit 3
            ! rejected: unknown-setting
            ! group db has no setting live
            ! help: declare it under [groups.db.settings]
        "#]],
        ),
        (
            "drain pg-a",
            expect![[r#"
                exit 0
                plan 05085acb  drains pg-a
                               db: pg-a primary -> offline, pg-b standby -> primary
                               gap: db   holds: pool@p1 pool@p2   tells: app (2)

                STEP  MEMBER   MOVE                AFTER
                0     db@pg-a  primary -> offline
                1     db@pg-b  standby -> primary  0
            "#]],
        ),
    ] {
        check(&plan(SHOP, SHOP_UP, &[target]), &expected);
    }
    for (args, expected) in [
        (
            &["db"][..],
            expect![[r#"
                exit 2
                ! error: invalid value 'db' for '<TARGET>...': target "db" is none of GROUP=STATE, GROUP@HOST=STATE, GROUP=up, GROUP=down, GROUP.KEY=VALUE, "drain HOST", "repair GROUP"
                !
                ! For more information, try '--help'.
            "#]],
        ),
        (
            &["db@=x"],
            expect![[r#"
            exit 2
            ! error: invalid value 'db@=x' for '<TARGET>...': target "db@=x": host name "" is empty
            !
            ! For more information, try '--help'.
        "#]],
        ),
        (
            &["db@pg-a=primary", "db@pg-a=standby"],
            expect![[r#"
            exit 3
            ! rejected: limit-broken
            ! db@pg-a is asked to be both primary and standby
            ! help: name each member once
        "#]],
        ),
        (
            &["db=a;$(x)"],
            expect![[r#"
            exit 2
            ! error: invalid value 'db=a;$(x)' for '<TARGET>...': target "db=a;$(x)": state name "a;$(x)" may contain letters, digits, '-' and '_' only
            !
            ! For more information, try '--help'.
        "#]],
        ),
        (
            &[],
            expect![[r#"
            exit 2
            ! error: the following required arguments were not provided:
            !   <TARGET>...
            !
            ! Usage: lockstep plan --file <FILE> --state <FILE> <TARGET>...
            !
            ! For more information, try '--help'.
        "#]],
        ),
        (
            &["db=up", "--stat", "x"],
            expect![[r#"
            exit 2
            ! error: unexpected argument '--stat' found
            !
            !   tip: a similar argument exists: '--state'
            !
            ! Usage: lockstep plan --file <FILE> --state <FILE> <TARGET>...
            !
            ! For more information, try '--help'.
        "#]],
        ),
    ] {
        check(&plan(SHOP, SHOP_UP, args), &expected);
    }
}

#[test]
fn a_bad_cluster_is_refused_with_its_place() {
    let group = "cluster = \"c\"\n[groups.db]\n";
    let table: Vec<(Vec<u8>, Expect)> = vec![
        (b"".to_vec(), expect![[r#"
            exit 3
            ! spec-invalid
            !
            !   × missing field `cluster`
            !   help: `cluster`, [groups.NAME], [[relations]] and [lifecycles.NAME] make a spec; see the page of
            !         spec-invalid
        "#]]),
        (b"cluster = \"c".to_vec(), expect![[r#"
            exit 3
            ! spec-invalid
            !
            !   × not valid TOML: invalid basic string, expected `"`
            !    ╭─[cluster.toml:1:13]
            !  1 │ cluster = "c
            !    ╰────
            !   help: quote strings, and write each table and key once
        "#]]),
        (b"\xef\xbb\xbfcluster = \"c\"".to_vec(), expect![[r#"
            exit 3
            ! spec-invalid
            !
            !   × it starts with a byte order mark; save it as UTF-8 without one
            !   help: save the file as UTF-8 text
        "#]]),
        (b"cluster = \"c\xff\"".to_vec(), expect![[r#"
            exit 3
            ! spec-invalid
            !
            !   × not UTF-8: bad byte at 12
            !    ╭─[cluster.toml:1:13]
            !  1 │ cluster = "c
            !    ╰────
            !   help: save the file as UTF-8 text
        "#]]),
        (b"cluster = \"\"".to_vec(), expect![[r#"
            exit 3
            ! spec-invalid
            !
            !   × cluster: the cluster has no name
            !    ╭─[cluster.toml:1:11]
            !  1 │ cluster = ""
            !    ·           ─┬
            !    ·            ╰── here
            !    ╰────
            !   help: give it one, such as "shop"
        "#]]),
        (b"cluster = \"c\"\ncluster = \"d\"".to_vec(), expect![[r#"
            exit 3
            ! spec-invalid
            !
            !   × not valid TOML: duplicate key
            !    ╭─[cluster.toml:2:1]
            !  1 │ cluster = "c"
            !  2 │ cluster = "d"
            !    · ───┬───
            !    ·    ╰── here
            !    ╰────
            !   help: quote strings, and write each table and key once
        "#]]),
        (b"cluster = \"c\"\nlease_ms = 0".to_vec(), expect![[r#"
            exit 3
            ! spec-invalid
            !
            !   × lease_ms: a lease of 0 ms
            !    ╭─[cluster.toml:2:12]
            !  1 │ cluster = "c"
            !  2 │ lease_ms = 0
            !    ·            ┬
            !    ·            ╰── here
            !    ╰────
            !   help: a lease is between 300 ms and 10 minutes; 3000 is a good start
        "#]]),
        (b"cluster = \"c\"\nlease_ms = -1".to_vec(), expect![[r#"
            exit 3
            ! spec-invalid
            !
            !   × invalid value: integer `-1`, expected u64
            !    ╭─[cluster.toml:2:12]
            !  1 │ cluster = "c"
            !  2 │ lease_ms = -1
            !    ·            ─┬
            !    ·             ╰── here
            !    ╰────
            !   help: `cluster`, [groups.NAME], [[relations]] and [lifecycles.NAME] make a spec; see the page of
            !         spec-invalid
        "#]]),
        (b"cluster = \"c\"\n[groups.\"a b\"]".to_vec(), expect![[r#"
            exit 3
            ! spec-invalid
            !
            !   × group name "a b" may contain letters, digits, '-' and '_' only
            !    ╭─[cluster.toml:2:9]
            !  1 │ cluster = "c"
            !  2 │ [groups."a b"]
            !    ·         ──┬──
            !    ·           ╰── here
            !    ╰────
            !   help: `cluster`, [groups.NAME], [[relations]] and [lifecycles.NAME] make a spec; see the page of
            !         spec-invalid
        "#]]),
        (format!("{group}handlr = \"pg\"").into_bytes(), expect![[r#"
            exit 3
            ! spec-invalid
            !
            !   × unknown field `handlr`, expected one of `select`, `groups`, `lifecycle`, `limits`, `settings`,
            !   │ `provides`, `consumes`, `handler`, `parallel`, `on_failure`, `recover`, `deadlines_ms`,
            !   │ `hold_ms`, `retries`, `windows`
            !    ╭─[cluster.toml:3:1]
            !  2 │ [groups.db]
            !  3 │ handlr = "pg"
            !    · ───┬──
            !    ·    ╰── here
            !    ╰────
            !   help: `cluster`, [groups.NAME], [[relations]] and [lifecycles.NAME] make a spec; see the page of
            !         spec-invalid
        "#]]),
        (format!("{group}lifecycle = \"raft\"").into_bytes(), expect![[r#"
            exit 3
            ! spec-invalid
            !
            !   × groups.db.lifecycle: there is no lifecycle raft
            !    ╭─[cluster.toml:3:13]
            !  2 │ [groups.db]
            !  3 │ lifecycle = "raft"
            !    ·             ───┬──
            !    ·                ╰── here
            !    ╰────
            !   help: there are service and primary-standby
        "#]]),
        (format!("{group}hold_ms = 0").into_bytes(), expect![[r#"
            exit 3
            ! spec-invalid
            !
            !   × groups.db.hold_ms: 0 ms
            !    ╭─[cluster.toml:3:11]
            !  2 │ [groups.db]
            !  3 │ hold_ms = 0
            !    ·           ┬
            !    ·           ╰── here
            !    ╰────
            !   help: between 1 and 86400000 (a day)
        "#]]),
        (format!("{group}hold_ms = 9223372036854775808").into_bytes(), expect![[r#"
            exit 3
            ! spec-invalid
            !
            !   × groups.db.hold_ms: 9223372036854775808 ms
            !    ╭─[cluster.toml:3:11]
            !  2 │ [groups.db]
            !  3 │ hold_ms = 9223372036854775808
            !    ·           ─────────┬─────────
            !    ·                    ╰── here
            !    ╰────
            !   help: between 1 and 86400000 (a day)
        "#]]),
        (format!("{group}hold_ms = nan").into_bytes(), expect![[r#"
            exit 3
            ! spec-invalid
            !
            !   × invalid type: floating point `NaN`, expected u64
            !    ╭─[cluster.toml:3:11]
            !  2 │ [groups.db]
            !  3 │ hold_ms = nan
            !    ·           ─┬─
            !    ·            ╰── here
            !    ╰────
            !   help: `cluster`, [groups.NAME], [[relations]] and [lifecycles.NAME] make a spec; see the page of
            !         spec-invalid
        "#]]),
        (format!("{group}limits = {{ online = {{ min = 2, max = 1 }} }}").into_bytes(), expect![[r#"
            exit 3
            ! spec-invalid
            !
            !   × groups.db.limits.online: min 2 is more than max 1
            !    ╭─[cluster.toml:3:12]
            !  2 │ [groups.db]
            !  3 │ limits = { online = { min = 2, max = 1 } }
            !    ·            ───┬──
            !    ·               ╰── here
            !    ╰────
            !   help: lower min or raise max
        "#]]),
        (format!("{group}limits = {{ primary = {{ max = 1 }} }}").into_bytes(), expect![[r#"
            exit 3
            ! spec-invalid
            !
            !   × groups.db.limits.primary: primary is not a state of lifecycle service
            !    ╭─[cluster.toml:3:12]
            !  2 │ [groups.db]
            !  3 │ limits = { primary = { max = 1 } }
            !    ·            ───┬───
            !    ·               ╰── here
            !    ╰────
            !   help: its states are offline and online
        "#]]),
        (format!("{group}settings = {{ live = [1] }}").into_bytes(), expect![[r#"
            exit 3
            ! spec-invalid
            !
            !   × a setting is true, false, a whole number of 64 bits, or text
            !    ╭─[cluster.toml:3:21]
            !  2 │ [groups.db]
            !  3 │ settings = { live = [1] }
            !    ·                     ─┬─
            !    ·                      ╰── here
            !    ╰────
            !   help: `cluster`, [groups.NAME], [[relations]] and [lifecycles.NAME] make a spec; see the page of
            !         spec-invalid
        "#]]),
        (format!("{group}select = {{ n = \">many\" }}").into_bytes(), expect![[r#"
            exit 3
            ! spec-invalid
            !
            !   × groups.db.select.n: ">many" compares with no number
            !    ╭─[cluster.toml:3:16]
            !  2 │ [groups.db]
            !  3 │ select = { n = ">many" }
            !    ·                ───┬───
            !    ·                   ╰── here
            !    ╰────
            !   help: compare with a whole number, such as ">100"
        "#]]),
        (format!("{group}[[relations]]\nfrom = \"db\"\nto = \"web\"").into_bytes(), expect![[r#"
            exit 3
            ! spec-invalid
            !
            !   × relations.0.to: there is no group web
            !    ╭─[cluster.toml:5:6]
            !  4 │ from = "db"
            !  5 │ to = "web"
            !    ·      ──┬──
            !    ·        ╰── here
            !    ╰────
            !   help: the groups are db
        "#]]),
        (format!("{group}[[relations]]\nfrom = \"db\"\nto = \"db\"").into_bytes(), expect![[r#"
            exit 3
            ! spec-invalid
            !
            !   × relations.0.to: db is related to itself
            !    ╭─[cluster.toml:5:6]
            !  4 │ from = "db"
            !  5 │ to = "db"
            !    ·      ──┬─
            !    ·        ╰── here
            !    ╰────
            !   help: members of one group learn of each other's moves without a relation
        "#]]),
        (
            format!("{group}consumes = [\"b\"]\nprovides = [\"a\"]\n[groups.web]\nconsumes = [\"a\"]\nprovides = [\"b\"]")
                .into_bytes(),
            expect![[r#"
                exit 3
                ! cycle
                !
                !   × relations: db -> web -> db go in a circle
                !   help: requires and after must not lead back to where they start: remove one of these
            "#]],
        ),
    ];
    for (cluster, expected) in table {
        check(&plan_files(&cluster, b"{\"hosts\":[]}", &["db=up"]), &expected);
    }
    let text = plan_files(b"cluster = \"\"", b"{}", &["db=up", "-o", "json"]);
    check(
        &text,
        &expect![[r#"
        exit 3
        {
          "rejection": {
            "code": "spec-invalid",
            "message": "cluster: the cluster has no name",
            "help": "give it one, such as \"shop\""
          }
        }
    "#]],
    );
}

#[test]
fn a_bad_state_is_refused_with_its_place() {
    let cluster =
        b"cluster = \"c\"\n[groups.db]\nselect = { role = \"db\" }\nsettings = { live = \"blue\", n = 1 }\n";
    let host = r#"{"name":"h1","labels":{"role":"db"}},{"name":"h2"}"#;
    let members = |members: &str| format!("{{\"hosts\":[{host}],\n \"members\":[{members}]}}");
    let settings = |settings: &str| format!("{{\"hosts\":[{host}],\n \"settings\":{settings}}}");
    let deep = format!("{{\"hosts\":{}", "[".repeat(100_000));
    let table: Vec<(String, Expect)> = vec![
        (
            String::new(),
            expect![[r#"
                exit 3
                ! state-invalid
                !
                !   × not valid JSON: EOF while parsing a value
                !   help: write one JSON object, and each key once
            "#]],
        ),
        (
            "{".to_owned(),
            expect![[r#"
            exit 3
            ! state-invalid
            !
            !   × not valid JSON: EOF while parsing an object
            !    ╭─[state.json:1:1]
            !  1 │ {
            !    · ┬
            !    · ╰── here
            !    ╰────
            !   help: write one JSON object, and each key once
        "#]],
        ),
        (
            "{}".to_owned(),
            expect![[r#"
                exit 3
                ! state-invalid
                !
                !   × missing field `hosts`
                !    ╭─[state.json:1:2]
                !  1 │ {}
                !    ·  ┬
                !    ·  ╰── here
                !    ╰────
                !   help: a state has `hosts`, `members`, `settings` and `freezes`; see the page of state-invalid
            "#]],
        ),
        (
            "[]".to_owned(),
            expect![[r#"
                exit 3
                ! state-invalid
                !
                !   × expected an object, in braces
                !    ╭─[state.json:1:1]
                !  1 │ []
                !    · ┬
                !    · ╰── here
                !    ╰────
                !   help: a state has `hosts`, `members`, `settings` and `freezes`; see the page of state-invalid
            "#]],
        ),
        (
            "{\"hosts\":[],\"hosts\":[]}".to_owned(),
            expect![[r#"
            exit 3
            ! state-invalid
            !
            !   × not valid JSON: the key "hosts" is there twice
            !    ╭─[state.json:1:23]
            !  1 │ {"hosts":[],"hosts":[]}
            !    ·                       ┬
            !    ·                       ╰── here
            !    ╰────
            !   help: write one JSON object, and each key once
        "#]],
        ),
        (
            "{\"hosts\":[],\"host\":[]}".to_owned(),
            expect![[r#"
                exit 3
                ! state-invalid
                !
                !   × unknown field `host`, expected one of `hosts`, `members`, `settings`, `freezes`
                !    ╭─[state.json:1:18]
                !  1 │ {"hosts":[],"host":[]}
                !    ·                  ┬
                !    ·                  ╰── here
                !    ╰────
                !   help: a state has `hosts`, `members`, `settings` and `freezes`; see the page of state-invalid
            "#]],
        ),
        (
            "{\"hosts\":[]} x".to_owned(),
            expect![[r#"
            exit 3
            ! state-invalid
            !
            !   × not valid JSON: trailing characters
            !    ╭─[state.json:1:14]
            !  1 │ {"hosts":[]} x
            !    ·              ┬
            !    ·              ╰── here
            !    ╰────
            !   help: write one JSON object, and each key once
        "#]],
        ),
        (
            "{\"hosts\":[{\"name\":\"../h\"}]}".to_owned(),
            expect![[r#"
                exit 3
                ! state-invalid
                !
                !   × host name "../h" must start with a letter or a digit
                !    ╭─[state.json:1:25]
                !  1 │ {"hosts":[{"name":"../h"}]}
                !    ·                         ┬
                !    ·                         ╰── here
                !    ╰────
                !   help: a state has `hosts`, `members`, `settings` and `freezes`; see the page of state-invalid
            "#]],
        ),
        (
            "{\"hosts\":[{\"name\":\"h\"},{\"name\":\"h\"}]}".to_owned(),
            expect![[r#"
            exit 3
            ! state-invalid
            !
            !   × host h is there twice
            !    ╭─[state.json:1:32]
            !  1 │ {"hosts":[{"name":"h"},{"name":"h"}]}
            !    ·                                ─┬─
            !    ·                                 ╰── here
            !    ╰────
            !   help: list each host once
        "#]],
        ),
        (
            "{\"hosts\":[{\"name\":\"h\",\"liveness\":\"dead\"}]}".to_owned(),
            expect![[r#"
                exit 3
                ! state-invalid
                !
                !   × unknown variant `dead`, expected one of `alive`, `suspect`, `lost`, `left`, `fenced`
                !    ╭─[state.json:1:39]
                !  1 │ {"hosts":[{"name":"h","liveness":"dead"}]}
                !    ·                                       ┬
                !    ·                                       ╰── here
                !    ╰────
                !   help: a state has `hosts`, `members`, `settings` and `freezes`; see the page of state-invalid
            "#]],
        ),
        (
            "{\"hosts\":[{\"name\":\"h\",\"labels\":{\"a\":\"b\\u0000\"}}]}".to_owned(),
            expect![[r#"
            exit 3
            ! state-invalid
            !
            !   × the text has control characters
            !    ╭─[state.json:1:37]
            !  1 │ {"hosts":[{"name":"h","labels":{"a":"b\u0000"}}]}
            !    ·                                     ────┬────
            !    ·                                         ╰── here
            !    ╰────
            !   help: use plain text of at most 255 bytes
        "#]],
        ),
        (
            members(r#"{"group":"web","host":"h1"}"#),
            expect![[r#"
            exit 3
            ! unknown-group
            !
            !   × there is no group web
            !    ╭─[state.json:2:22]
            !  1 │ {"hosts":[{"name":"h1","labels":{"role":"db"}},{"name":"h2"}],
            !  2 │  "members":[{"group":"web","host":"h1"}]}
            !    ·                      ──┬──
            !    ·                        ╰── here
            !    ╰────
            !   help: the groups are db
        "#]],
        ),
        (
            members(r#"{"group":"db","host":"h9"}"#),
            expect![[r#"
            exit 3
            ! unknown-host
            !
            !   × there is no host h9
            !    ╭─[state.json:2:34]
            !  1 │ {"hosts":[{"name":"h1","labels":{"role":"db"}},{"name":"h2"}],
            !  2 │  "members":[{"group":"db","host":"h9"}]}
            !    ·                                  ──┬─
            !    ·                                    ╰── here
            !    ╰────
            !   help: list it under `hosts`
        "#]],
        ),
        (
            members(r#"{"group":"db","host":"h2"}"#),
            expect![[r#"
            exit 3
            ! unknown-member
            !
            !   × host h2 is not in group db: its labels do not match
            !    ╭─[state.json:2:34]
            !  1 │ {"hosts":[{"name":"h1","labels":{"role":"db"}},{"name":"h2"}],
            !  2 │  "members":[{"group":"db","host":"h2"}]}
            !    ·                                  ──┬─
            !    ·                                    ╰── here
            !    ╰────
            !   help: see `select` of [groups.db], and the host's `labels`
        "#]],
        ),
        (
            members(r#"{"group":"db","host":"h1","state":"primary"}"#),
            expect![[r#"
            exit 3
            ! unknown-state
            !
            !   × group db has no state primary
            !    ╭─[state.json:2:47]
            !  1 │ {"hosts":[{"name":"h1","labels":{"role":"db"}},{"name":"h2"}],
            !  2 │  "members":[{"group":"db","host":"h1","state":"primary"}]}
            !    ·                                               ────┬────
            !    ·                                                   ╰── here
            !    ╰────
            !   help: its states are offline, online
        "#]],
        ),
        (
            members(r#"{"group":"db","host":"h1","state":null}"#),
            expect![[r#"
                exit 3
                ! state-invalid
                !
                !   × invalid type: null, expected a string
                !    ╭─[state.json:2:50]
                !  1 │ {"hosts":[{"name":"h1","labels":{"role":"db"}},{"name":"h2"}],
                !  2 │  "members":[{"group":"db","host":"h1","state":null}]}
                !    ·                                                  ┬
                !    ·                                                  ╰── here
                !    ╰────
                !   help: a state has `hosts`, `members`, `settings` and `freezes`; see the page of state-invalid
            "#]],
        ),
        (
            members(r#"{"group":"db","host":"h1","goal":"primary"}"#),
            expect![[r#"
            exit 3
            ! unknown-state
            !
            !   × group db has no state primary
            !    ╭─[state.json:2:46]
            !  1 │ {"hosts":[{"name":"h1","labels":{"role":"db"}},{"name":"h2"}],
            !  2 │  "members":[{"group":"db","host":"h1","goal":"primary"}]}
            !    ·                                              ────┬────
            !    ·                                                  ╰── here
            !    ╰────
            !   help: its states are offline, online
        "#]],
        ),
        (
            members(r#"{"group":"db","host":"h1","state":"online","unknown":true}"#),
            expect![[r#"
            exit 3
            ! state-invalid
            !
            !   × the state of db@h1 is given, and not known
            !    ╭─[state.json:2:66]
            !  1 │ {"hosts":[{"name":"h1","labels":{"role":"db"}},{"name":"h2"}],
            !  2 │  "members":[{"group":"db","host":"h1","state":"online","unknown":true}]}
            !    ·                                                                  ──┬─
            !    ·                                                                    ╰── here
            !    ╰────
            !   help: leave one of both keys out
        "#]],
        ),
        (
            members(r#"{"group":"db","host":"h1","leaving":true}"#),
            expect![[r#"
            exit 3
            ! unknown-member
            !
            !   × host h1 is in group db: its labels match
            !    ╭─[state.json:2:49]
            !  1 │ {"hosts":[{"name":"h1","labels":{"role":"db"}},{"name":"h2"}],
            !  2 │  "members":[{"group":"db","host":"h1","leaving":true}]}
            !    ·                                                 ──┬─
            !    ·                                                   ╰── here
            !    ╰────
            !   help: leave this key out
        "#]],
        ),
        (
            members(r#"{"group":"db","host":"h1","score":1.5}"#),
            expect![[r#"
                exit 3
                ! state-invalid
                !
                !   × invalid type: floating point `1.5`, expected i64
                !    ╭─[state.json:2:49]
                !  1 │ {"hosts":[{"name":"h1","labels":{"role":"db"}},{"name":"h2"}],
                !  2 │  "members":[{"group":"db","host":"h1","score":1.5}]}
                !    ·                                                 ┬
                !    ·                                                 ╰── here
                !    ╰────
                !   help: a state has `hosts`, `members`, `settings` and `freezes`; see the page of state-invalid
            "#]],
        ),
        (
            members(r#"{"group":"db","host":"h1","score":9223372036854775808}"#),
            expect![[r#"
                exit 3
                ! state-invalid
                !
                !   × invalid value: integer `9223372036854775808`, expected i64
                !    ╭─[state.json:2:65]
                !  1 │ {"hosts":[{"name":"h1","labels":{"role":"db"}},{"name":"h2"}],
                !  2 │  "members":[{"group":"db","host":"h1","score":9223372036854775808}]}
                !    ·                                                                 ┬
                !    ·                                                                 ╰── here
                !    ╰────
                !   help: a state has `hosts`, `members`, `settings` and `freezes`; see the page of state-invalid
            "#]],
        ),
        (
            members(r#"{"group":"db","host":"h1"}, {"group":"db","host":"h1"}"#),
            expect![[r#"
            exit 3
            ! state-invalid
            !
            !   × member db@h1 is there twice
            !    ╭─[state.json:2:41]
            !  1 │ {"hosts":[{"name":"h1","labels":{"role":"db"}},{"name":"h2"}],
            !  2 │  "members":[{"group":"db","host":"h1"}, {"group":"db","host":"h1"}]}
            !    ·                                         ─────────────┬────────────
            !    ·                                                      ╰── here
            !    ╰────
            !   help: list each member once
        "#]],
        ),
        (
            settings(r#"{"web":{}}"#),
            expect![[r#"
            exit 3
            ! unknown-group
            !
            !   × there is no group web
            !    ╭─[state.json:2:20]
            !  1 │ {"hosts":[{"name":"h1","labels":{"role":"db"}},{"name":"h2"}],
            !  2 │  "settings":{"web":{}}}
            !    ·                    ─┬
            !    ·                     ╰── here
            !    ╰────
            !   help: the groups are db
        "#]],
        ),
        (
            settings(r#"{"db":{"colour":"red"}}"#),
            expect![[r#"
            exit 3
            ! unknown-setting
            !
            !   × group db has no setting colour
            !    ╭─[state.json:2:29]
            !  1 │ {"hosts":[{"name":"h1","labels":{"role":"db"}},{"name":"h2"}],
            !  2 │  "settings":{"db":{"colour":"red"}}}
            !    ·                             ──┬──
            !    ·                               ╰── here
            !    ╰────
            !   help: declare it under [groups.db.settings]
        "#]],
        ),
        (
            settings(r#"{"db":{"live":7}}"#),
            expect![[r#"
            exit 3
            ! state-invalid
            !
            !   × db.live is declared as blue, which is another kind of value
            !    ╭─[state.json:2:27]
            !  1 │ {"hosts":[{"name":"h1","labels":{"role":"db"}},{"name":"h2"}],
            !  2 │  "settings":{"db":{"live":7}}}
            !    ·                           ┬
            !    ·                           ╰── here
            !    ╰────
            !   help: give a value of the kind that the spec declares
        "#]],
        ),
        (
            r#"{"hosts":[],"freezes":[{"reason":"all"},{"groups":["db","bd"],"reason":"some"}]}"#.to_owned(),
            expect![[r#"
                exit 3
                ! unknown-group
                !
                !   × there is no group bd
                !    ╭─[state.json:1:51]
                !  1 │ {"hosts":[],"freezes":[{"reason":"all"},{"groups":["db","bd"],"reason":"some"}]}
                !    ·                                                   ─────┬─────
                !    ·                                                        ╰── here
                !    ╰────
                !   help: the groups are db
            "#]],
        ),
        (
            r#"{"hosts":[],"freezes":[{"reason":"a\u0007"}]}"#.to_owned(),
            expect![[r#"
                exit 3
                ! state-invalid
                !
                !   × the text has control characters
                !    ╭─[state.json:1:34]
                !  1 │ {"hosts":[],"freezes":[{"reason":"a\u0007"}]}
                !    ·                                  ────┬────
                !    ·                                      ╰── here
                !    ╰────
                !   help: use plain text of at most 1000 bytes
            "#]],
        ),
        (
            r#"{"hosts":[],"freezes":[{"groups":["db"]}]}"#.to_owned(),
            expect![[r#"
            exit 3
            ! state-invalid
            !
            !   × missing field `reason`
            !    ╭─[state.json:1:40]
            !  1 │ {"hosts":[],"freezes":[{"groups":["db"]}]}
            !    ·                                        ┬
            !    ·                                        ╰── here
            !    ╰────
            !   help: a state has `hosts`, `members`, `settings` and `freezes`; see the page of state-invalid
        "#]],
        ),
        (
            settings(r#"{"db":{"n":1.5}}"#),
            expect![[r#"
                exit 3
                ! state-invalid
                !
                !   × a setting is true, false, a whole number of 64 bits, or text
                !    ╭─[state.json:2:27]
                !  1 │ {"hosts":[{"name":"h1","labels":{"role":"db"}},{"name":"h2"}],
                !  2 │  "settings":{"db":{"n":1.5}}}
                !    ·                           ┬
                !    ·                           ╰── here
                !    ╰────
                !   help: a state has `hosts`, `members`, `settings` and `freezes`; see the page of state-invalid
            "#]],
        ),
        (
            deep,
            expect![[r#"
            exit 3
            ! state-invalid
            !
            !   × not valid JSON: recursion limit exceeded
            !    ╭─[state.json, in line 1:1:61]
            !  1 │ [[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[
            !    ·                                                             ┬
            !    ·                                                             ╰── here
            !    ╰────
            !   help: write one JSON object, and each key once
        "#]],
        ),
        (
            "{\"\u{1b}[2J\u{85}\u{2066}\": 1}".to_owned(),
            expect![[r#"
            exit 3
            ! state-invalid
            !
            !   × not valid JSON: control character (\u0000-\u001F) found while parsing a string
            !    ╭─[state.json:1:3]
            !  1 │ {"?[2J??�": 1}
            !    ·   ┬
            !    ·   ╰── here
            !    ╰────
            !   help: write one JSON object, and each key once
        "#]],
        ),
    ];
    for (state, expected) in table {
        check(&plan_files(cluster, state.as_bytes(), &["db=up"]), &expected);
    }
    check(
        &plan_files(cluster, b"{\"hosts\":[]}\xff", &["db=up"]),
        &expect![[r#"
        exit 3
        ! state-invalid
        !
        !   × not UTF-8: bad byte at 12
        !    ╭─[state.json:1:13]
        !  1 │ {"hosts":[]}
        !    ╰────
        !   help: save the file as UTF-8 text
    "#]],
    );
    let text =
        plan_files(cluster, members(r#"{"group":"web","host":"h1"}"#).as_bytes(), &["db=up", "-o", "json"]);
    check(
        &text,
        &expect![[r#"
        exit 3
        {
          "rejection": {
            "code": "unknown-group",
            "message": "there is no group web",
            "help": "the groups are db"
          }
        }
    "#]],
    );
}

#[test]
fn files_that_cannot_be_read() {
    let dir = tempfile::tempdir().unwrap();
    let args = ["plan", "-f", "cluster.toml", "--state", "state.json", "db=up"];
    check(
        &lockstep(dir.path(), &args),
        &expect![[r#"
        exit 1
        !   × cannot read cluster.toml
        !   ╰─▶ No such file or directory (os error 2)
    "#]],
    );
    let large = vec![b'#'; 16 * 1024 * 1024 + 1];
    check(
        &plan_files(&large, b"{}", &["db=up"]),
        &expect![[r#"
            exit 3
            ! too-large
            !
            !   × the file has more than 16777216 bytes
            !   help: split the cluster; or is it another file?
        "#]],
    );
}

#[test]
fn a_reader_that_leaves_early_is_no_panic() {
    let dir = tempfile::tempdir().unwrap();
    let members: Vec<String> = (0..4000).map(|host| format!("db h{host} offline")).collect();
    let spec = "cluster = \"c\"\n[groups.db]\nselect = { role = \"db\" }\n";
    std::fs::write(dir.path().join("cluster.toml"), spec).unwrap();
    let hosts: Vec<_> = (0..members.len())
        .map(|host| serde_json::json!({"name": format!("h{host}"), "labels": {"role": "db"}}))
        .collect();
    std::fs::write(dir.path().join("state.json"), serde_json::json!({"hosts": hosts}).to_string()).unwrap();
    let mut child = Command::new(env!("CARGO_BIN_EXE_lockstep"))
        .args(["plan", "-f", "cluster.toml", "--state", "state.json", "db=up", "-o", "json"])
        .current_dir(dir.path())
        .stdout(std::process::Stdio::piped())
        .stderr(std::process::Stdio::piped())
        .spawn()
        .unwrap();
    drop(child.stdout.take());
    let output = child.wait_with_output().unwrap();
    assert_eq!(String::from_utf8_lossy(&output.stderr), "");
    assert_eq!(output.status.code(), Some(0));
}

#[test]
fn groups_of_groups_and_relations_that_a_setting_keeps_away_are_explained() {
    let cluster = r#"
cluster = "shop"
[groups.site]
groups = ["db", "pool"]
[groups.front]
groups = ["app", "edge"]
[groups.db]
select = { role = "db" }
[groups.pool]
select = { role = "pool" }
[groups.app]
select = { role = "app" }
[groups.edge]
select = { role = "edge" }
settings = { live = "blue" }
[[relations]]
from = "app"
to = "pool"
kind = "requires"
[[relations]]
from = "pool"
to = "db"
kind = "requires"
[[relations]]
from = "edge"
to = "db"
when = { "edge.live" = "green" }
"#;
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join("cluster.toml"), cluster).unwrap();
    std::fs::write(dir.path().join("state.json"), r#"{"hosts":[]}"#).unwrap();
    let explain = |first: &str, second: &str| {
        lockstep(dir.path(), &["explain", "-f", "cluster.toml", "--state", "state.json", first, second])
    };
    let absent = "edge watches db (while edge.live = green): it is declared, and does not exist now, since edge.live is blue\n";
    check(
        &explain("front", "site"),
        &expect![[r#"
        exit 0
        app requires pool: it is declared
        edge watches db (while edge.live = green): it is declared, and does not exist now, since edge.live is blue
    "#]],
    );
    check(
        &explain("site", "app"),
        &expect![[r#"
        exit 0
        app requires pool: it is declared
    "#]],
    );
    check(
        &explain("site", "db"),
        &expect![[r#"
        exit 0
        db is one of the groups of site
        pool requires db: it is declared
    "#]],
    );
    assert_eq!(explain("edge", "db"), format!("exit 0\n{absent}"));
    assert_eq!(explain("edge", "pool"), "exit 0\nnothing relates edge and pool\n");
}

/// `cargo xtask test` runs it in a build without the feature; all others are run with it.
#[cfg(not(feature = "etcd"))]
#[test]
fn a_build_without_etcd_says_so() {
    let dir = tempfile::tempdir().unwrap();
    let store = "etcd://127.0.0.1:2379/shop";
    let help = "build it with `cargo xtask dist`";
    let server = ["server", "--store", store, "--name", "s1", "--listen", "127.0.0.1:0"];
    let migrate = ["migrate", "--from", store, "--to", "data"];
    for args in [&server[..], &migrate] {
        let said = lockstep(dir.path(), args);
        assert!(said.starts_with("exit 1\n"), "{said}");
        let why = format!("{store} cannot be used: this program was built without etcd");
        assert!(said.contains(&why), "{said}");
        assert!(said.contains(help), "{said}");
    }
    assert_eq!(lockstep(dir.path(), &["--version"]), version("without"));
}

#[cfg(feature = "etcd")]
#[test]
fn a_build_with_etcd_says_so() {
    assert_eq!(lockstep(Path::new("."), &["--version"]), version("with"));
}

fn version(with: &str) -> String {
    format!("exit 0\nlockstep {} {with} etcd\n", env!("CARGO_PKG_VERSION"))
}
