//! What happens by itself, and what people do, when agents, hosts and the server fail: with real processes as the
//! software, and the real guard.

#![allow(clippy::unwrap_used, reason = "a test fails by it")]

mod common;

use common::{Cluster, wait_for};
use rustix::process::{Pid, Signal, kill_process};
use serde_json::{Value, json};
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::time::{Duration, Instant};

/// The leases of tests that wait for their end: short, and long enough for a machine with other things to do.
const LEASE_MS: u64 = 1500;

/// A handler whose software is a process, in `ME.pid`; as long as it runs it is in the state in `ME.state`. Whoever
/// becomes primary looks for another one, and notes it in `both`: the witness, who knows nothing of Lockstep.
const HANDLER: &str = r#"#!/bin/sh
me="$DIR/$LOCKSTEP_MEMBER"
runs() {
    pid= && read -r pid 2> /dev/null < "$1.pid" && read -r _ _ life _ 2> /dev/null < "/proc/$pid/stat" && [ "$life" != Z ]
}
case "$1" in
status)
    state=offline
    if runs "$me"; then
        read -r state < "$me.state"
        printf '{"state":"%s","pids":[%s]}\n' "$state" "$pid"
    else
        echo '{"state":"offline","pids":[]}'
    fi
    ;;
commit | undo | stop)
    [ "$1" = stop ] && [ -e "$DIR/stop-hangs" ] && exec sleep 600
    if [ "$LOCKSTEP_TO" = offline ]; then
        while runs "$me"; do kill -9 "$pid" 2> /dev/null; sleep 0.01; done
        exit 0
    fi
    if [ "$LOCKSTEP_TO" = primary ]; then
        for other in "$DIR"/db@*.pid; do
            other="${other%.pid}"
            [ "$other" = "$me" ] && continue
            runs "$other" && read -r state < "$other.state" && [ "$state" = primary ] && echo "$other" >> "$DIR/both"
        done
    fi
    echo "$LOCKSTEP_TO" > "$me.state"
    if ! runs "$me"; then
        setsid sleep 600 > /dev/null 2>&1 < /dev/null &
        echo $! > "$me.pid"
    fi
    ;;
esac
exit 0
"#;

/// Pulls the plug of another host: a fence handler as `docs/recover.md` has it.
const FENCE: &str = r#"#!/bin/sh
echo "$LOCKSTEP_HOST for $LOCKSTEP_MEMBER" >> "$DIR/fenced"
[ -e "$DIR/switch-is-dead" ] && { echo "the switch does not answer" >&2; exit 1; }
read -r pid < "$DIR/db@$LOCKSTEP_HOST.pid" && kill -9 "$pid"
exit 0
"#;

/// Two hosts with a database each, of which one is primary.
struct Lab {
    cluster: Cluster,
}

impl Lab {
    fn start(recover: &str, lease_ms: u64) -> Self {
        let cluster = Cluster::start();
        let lab = Self { cluster };
        lab.script("database", HANDLER);
        lab.config("[handlers.db]\nexec = [\"./database\"]\nenv = { DIR = DIRECTORY }\nstatus_ms = 100\n");
        lab.begin(recover, lease_ms)
    }

    fn begin(mut self, recover: &str, lease_ms: u64) -> Self {
        self.cluster.apply(&format!(
            "cluster = \"c\"\nlease_ms = {lease_ms}\n[groups.db]\nselect = {{ role = \"db\" }}\n\
             lifecycle = \"primary-standby\"\nhandler = \"db\"\nrecover = \"{recover}\"\n"
        ));
        for host in ["a", "b"] {
            self.cluster.start_agent(host, "role=db");
        }
        wait_for("both to be adopted", || ["a", "b"].iter().all(|host| self.is(host, "offline")));
        let id = self.cluster.run(&["db@a=primary", "db@b=standby"], "begin");
        assert_eq!(self.cluster.outcome(&id), "committed");
        if recover == "lease" {
            wait_for("both to be guarded", || {
                ["a", "b"].iter().all(|host| self.cluster.member("db", host)["guarded"] == json!(["primary"]))
            });
        }
        self
    }

    fn script(&self, name: &str, text: &str) {
        let path = self.cluster.dir.join(name);
        fs::write(&path, text).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
    }

    /// Agents that are started from now on have this configuration.
    fn config(&self, text: &str) {
        let dir = format!("{:?}", self.cluster.dir.to_str().unwrap());
        fs::write(self.cluster.dir.join("agent.toml"), text.replace("DIRECTORY", &dir)).unwrap();
    }

    /// Whether the server knows a member to be where it should be, and nothing drives it.
    fn is(&self, host: &str, state: &str) -> bool {
        let member = self.cluster.member("db", host);
        member["actual"] == state && member["goal"] == state && member["transition"] == Value::Null
    }

    #[track_caller]
    fn wait(&self, host: &str, state: &str) {
        wait_for(&format!("db@{host} to be {state}"), || self.is(host, state));
    }

    /// The process behind a member.
    fn software(&self, host: &str) -> i32 {
        pid_in(&self.cluster.dir.join(format!("db@{host}.pid"))).unwrap()
    }

    fn repairs(&self) -> Vec<Value> {
        let transitions = self.cluster.items("/v1/transitions").into_iter();
        transitions.filter(|transition| transition["automatic"] == true).collect()
    }

    fn kill_agent(&mut self, host: &str) {
        self.cluster.agents.get_mut(host).unwrap().kill();
    }

    #[track_caller]
    fn never_two_primaries(&self) {
        let both = fs::read_to_string(self.cluster.dir.join("both")).unwrap_or_default();
        assert_eq!(both, "", "these were primary while another one became it");
    }

    /// What the command line says, standard error after standard output.
    fn says(&self, args: &[&str]) -> (i32, String) {
        let (exit, out, err) = self.cluster.lockstep(args);
        (exit, out + &err)
    }
}

impl Drop for Lab {
    fn drop(&mut self) {
        // Guards outlive their agents, and software both.
        for agent in self.cluster.agents.values_mut() {
            agent.kill();
        }
        for entry in fs::read_dir(&self.cluster.dir).unwrap().flatten() {
            let path = entry.path();
            let is_pid = path.extension().is_some_and(|extension| extension == "pid");
            let noted = if is_pid { path } else { path.join("guard.lock") };
            for pid in pid_in(&noted).into_iter().filter(|pid| lives(*pid)) {
                let _ = kill_process(Pid::from_raw(pid).unwrap(), Signal::KILL);
            }
        }
    }
}

fn pid_in(path: &Path) -> Option<i32> {
    fs::read_to_string(path).ok()?.trim().parse().ok()
}

fn lives(pid: i32) -> bool {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    stat.rsplit_once(") ").is_some_and(|(_, rest)| !rest.starts_with(['Z', 'X']))
}

/// A killed agent cannot stop its member. The guard does, when the lease ends, and the other one takes over.
#[test]
fn a_killed_agent_s_member_is_killed_by_the_guard_and_replaced() {
    let mut lab = Lab::start("lease", LEASE_MS);
    let software = lab.software("a");
    lab.kill_agent("a");
    assert!(lives(software), "it runs on until the lease ends");
    lab.wait("b", "primary");
    assert!(!lives(software));
    let host = &lab.cluster.items("/v1/hosts")[0];
    assert!(host["liveness"] == "lost" && host["since"].is_string(), "{host}");
    let member = lab.cluster.member("db", "a");
    assert_eq!((&member["actual"], &member["evidence"]), (&json!("offline"), &json!("its lease has ended")));
    let (exit, status) = lab.says(&["status"]);
    assert_eq!(exit, 0);
    for line in ["host a is lost since 20", "db@a counts as offline, should be standby: its lease has ended"]
    {
        assert!(status.contains(line), "{line}: {status}");
    }
    let id = lab.repairs()[0]["id"].as_str().unwrap().to_owned();
    let (exit, why) = lab.says(&["explain", &id]);
    assert_eq!(exit, 0);
    for line in [
        &format!(
            "{id}: the server itself runs repair db, because host a is lost, and db@a is offline: its lease has ended"
        ),
        "db@b is actor: db is repaired",
    ] {
        assert!(why.lines().any(|said| said == line), "{line}: {why}");
    }
    let (_, events) = lab.says(&["events", "--host", "a"]);
    assert!(events.contains("db@a offline surely: the lease has ended"), "{events}");
    // It comes back below its goal, and is brought up by itself.
    lab.cluster.start_agent("a", "role=db");
    lab.wait("a", "standby");
    assert_eq!(lab.cluster.member("db", "a")["evidence"], Value::Null);
    lab.never_two_primaries();
}

/// There is no server, the stop of a member hangs, and its guard is killed, before the lease ends or after: another one
/// takes its place without being asked for, and does what is due.
#[test]
fn a_guard_that_is_killed_has_another_in_its_place() {
    for is_late in [false, true] {
        let mut lab = Lab::start("lease", 3000);
        let software = lab.software("a");
        lab.cluster.touch("stop-hangs");
        let lock = lab.cluster.dir.join("data-a/guard.lock");
        let guard = pid_in(&lock).unwrap();
        let tell = |signal| kill_process(Pid::from_raw(guard).unwrap(), signal).unwrap();
        lab.cluster.server.kill();
        if is_late {
            tell(Signal::STOP);
            let ended = Instant::now() + Duration::from_millis(3000);
            wait_for("the lease to end", || Instant::now() > ended);
        }
        assert!(lives(software));
        tell(Signal::KILL);
        wait_for("another guard", || pid_in(&lock).is_some_and(|pid| pid != guard && lives(pid)));
        wait_for("db@a to be killed", || !lives(software));
    }
}

/// An agent that is stopped and goes on after its lease has ended finds its member down, and keeps it down until it is
/// brought back.
#[test]
fn an_agent_that_wakes_up_late_comes_back_as_a_lower_one() {
    let lab = Lab::start("lease", LEASE_MS);
    let software = lab.software("a");
    lab.cluster.agents["a"].signal(Signal::STOP);
    lab.wait("b", "primary");
    assert!(!lives(software));
    assert_eq!(lab.cluster.liveness("a"), "lost");
    lab.cluster.agents["a"].signal(Signal::CONT);
    lab.wait("a", "standby");
    assert!(lab.is("b", "primary"));
    assert_eq!(lab.repairs().len(), 2, "{:#?}", lab.repairs());
    lab.never_two_primaries();
}

/// A server that is back within the lease has moved nothing and stopped nothing.
#[test]
fn a_server_that_is_back_in_time_is_not_missed() {
    let mut lab = Lab::start("lease", 6000);
    let software = ["a", "b"].map(|host| lab.software(host));
    lab.cluster.restart_server();
    wait_for("both to be back", || ["a", "b"].iter().all(|host| lab.cluster.joined(host) == 2));
    wait_for("both to be heard", || ["a", "b"].iter().all(|host| lab.cluster.liveness(host) == "alive"));
    assert_eq!(["a", "b"].map(|host| lab.software(host)), software);
    assert!(software.into_iter().all(lives));
    assert!(lab.is("a", "primary") && lab.is("b", "standby") && lab.repairs().is_empty());
}

/// Without a guard, repair waits for somebody who knows: it says for whom, and what to do.
#[test]
fn a_person_who_knows_that_a_host_has_stopped_lets_others_take_over() {
    let mut lab = Lab::start("fence", LEASE_MS);
    let software = lab.software("a");
    let confirm = ["fence", "a", "--confirm", "--reason", "I pulled the plug"];
    let (exit, said) = lab.says(&confirm);
    assert!(exit == 3 && said.contains("host a is alive, and its agent is connected"), "{said}");
    lab.kill_agent("a");
    let waits = || lab.cluster.items("/v1/groups")[0]["waits"].clone();
    wait_for("the group to wait", || waits()["code"] == "host-lost");
    let (_, status) = lab.says(&["status"]);
    let since = lab.cluster.items("/v1/hosts")[0]["since"].as_str().unwrap().to_owned();
    let line = format!(
        "db waits to be repaired: db@a may still be primary, where at most 1 may be: host a is lost (host a: since {since})"
    );
    assert!(
        status.contains(&line) && status.contains("lockstep fence a --confirm --reason TEXT"),
        "{status}"
    );
    assert_eq!((&waits()["host"], &waits()["since"]), (&json!("a"), &json!(since)));
    // It runs on, and nobody hears it.
    assert!(status.contains("  a primary?, b standby\n?: where it was last known to be"), "{status}");
    assert_eq!(lab.cluster.member("db", "a")["liveness"], "lost");
    let begin = lab.cluster.items("/v1/transitions")[0]["id"].as_str().unwrap().to_owned();
    let (_, why) = lab.says(&["explain", &begin]);
    assert!(why.contains(&format!("db@a is primary as last known: host a is lost since {since}\n")), "{why}");
    let (exit, said) = lab.says(&["repair", "db"]);
    assert!(exit == 3 && said.contains("db@a may still be primary"), "{said}");
    // Nobody has a handler for it.
    let (exit, said) = lab.says(&["fence", "a"]);
    assert!(exit == 3 && said.contains("no other living host has a handler called fence"), "{said}");
    assert!(lives(software) && lab.repairs().is_empty());
    kill_process(Pid::from_raw(software).unwrap(), Signal::KILL).unwrap();
    let (exit, said) = lab.says(&confirm);
    assert_eq!((exit, said.as_str()), (0, "a is fenced\n"));
    lab.wait("b", "primary");
    let (_, events) = lab.says(&["events", "--host", "a"]);
    assert!(events.contains("db@a offline surely: local says so: I pulled the plug"), "{events}");
    assert_eq!(waits(), Value::Null);
    lab.never_two_primaries();
    lab.cluster.start_agent("a", "role=db");
    lab.wait("a", "standby");
}

/// A person may speak of one member, and not of the whole host.
#[test]
fn a_person_who_knows_where_a_member_is_lets_others_take_over() {
    let mut lab = Lab::start("fence", LEASE_MS);
    let resolve = ["resolve", "db@a=offline", "--reason", "its disk is on my desk"];
    let (exit, said) = lab.says(&resolve);
    assert!(exit == 3 && said.contains("db@a is not in doubt: its own host says where it is"), "{said}");
    let software = lab.software("a");
    lab.kill_agent("a");
    wait_for("the host to be lost", || lab.cluster.liveness("a") == "lost");
    kill_process(Pid::from_raw(software).unwrap(), Signal::KILL).unwrap();
    let (exit, said) = lab.says(&resolve);
    assert_eq!((exit, said.as_str()), (0, "db@a counts as offline\n"));
    lab.wait("b", "primary");
    assert_eq!(lab.cluster.liveness("a"), "lost", "nothing was said of the host");
    let why = "host a is lost, and db@a is offline: local says so, \"its disk is on my desk\"";
    assert_eq!(lab.repairs()[0]["reason"], why);
    lab.never_two_primaries();
}

/// A host that can pull the plug of others is asked to, by repair and by people.
#[test]
fn a_fence_handler_on_another_host_makes_sure() {
    let mut lab = Lab::start("fence", LEASE_MS);
    lab.script("plug", FENCE);
    lab.config("[handlers.fence]\nexec = [\"./plug\"]\nenv = { DIR = DIRECTORY }\n");
    lab.cluster.start_agent("c", "role=power");
    wait_for("the third host", || lab.cluster.liveness("c") == "alive");
    let software = lab.software("a");
    lab.kill_agent("a");
    lab.wait("b", "primary");
    assert!(!lives(software));
    assert_eq!(lab.cluster.liveness("a"), "fenced");
    assert_eq!(lab.cluster.member("db", "a")["evidence"], "fenced from c");
    let fenced = || fs::read_to_string(lab.cluster.dir.join("fenced")).unwrap();
    assert_eq!(fenced(), "a for db@a\n");
    // Asked for, it is done to a living host too; and the answer says why not, when it cannot be.
    lab.cluster.touch("switch-is-dead");
    let (exit, said) = lab.says(&["fence", "b"]);
    assert!(exit == 3 && said.contains("nobody could make sure that host b has stopped"), "{said}");
    assert!(
        lab.cluster.server.said().contains("host b could not be fenced from c: the switch does not answer")
    );
    lab.cluster.remove("switch-is-dead");
    lab.cluster.agents["b"].signal(Signal::STOP);
    let (exit, said) = lab.says(&["fence", "b"]);
    assert_eq!((exit, said.as_str()), (0, "b is fenced\n"), "{}", fenced());
    lab.never_two_primaries();
}

/// A server that says for how long it is going to be away is not missed for so long, however short the lease is.
#[test]
fn a_server_that_goes_away_on_purpose_is_waited_for() {
    let mut lab = Lab::start("lease", LEASE_MS);
    let software = ["a", "b"].map(|host| lab.software(host));
    let (exit, said) = lab.says(&["server", "stop", "--away", "20s"]);
    let stops = format!("server at http://{} stops\n2 hosts go by a lease of 20.0 s\n", lab.cluster.address);
    assert_eq!((exit, said), (0, stops));
    assert_eq!(lab.cluster.server.exit(), Some(0));
    let stopped = Instant::now();
    wait_for("two leases to pass", || stopped.elapsed() > Duration::from_millis(2 * LEASE_MS));
    assert!(software.into_iter().all(lives));
    lab.cluster.restart_server();
    wait_for("both to be back", || ["a", "b"].iter().all(|host| lab.cluster.joined(host) == 2));
    wait_for("both to be guarded again", || {
        ["a", "b"].iter().all(|host| lab.cluster.member("db", host)["guarded"] == json!(["primary"]))
    });
    assert_eq!(["a", "b"].map(|host| lab.software(host)), software);
    assert!(lab.is("a", "primary") && lab.is("b", "standby") && lab.repairs().is_empty());
    let (_, events) = lab.says(&["events"]);
    assert!(events.contains("local takes the server away: a lease of 20000 ms until it is back"), "{events}");
    let (exit, said) = lab.says(&["server", "step-down"]);
    assert!(exit == 3 && said.contains("there is nobody to step down to"), "{said}");
}

/// A host that stands still may not have heard of the longer lease: the server stays, and says whom it waits for.
#[test]
fn a_server_does_not_go_away_while_a_host_may_not_know() {
    let lab = Lab::start("fence", 3000);
    lab.cluster.agents["b"].signal(Signal::STOP);
    let (exit, said) = lab.says(&["server", "stop", "--away", "20s"]);
    lab.cluster.agents["b"].signal(Signal::CONT);
    assert_eq!(exit, 1, "{said}");
    assert!(said.contains("1 host goes by a lease of 20.0 s\n"), "{said}");
    assert!(said.contains("1 host of those connected may not know of it (b): the server goes on"), "{said}");
    wait_for("the host to be back", || lab.cluster.joined("b") == 2);
    let (exit, said) = lab.says(&["server", "stop", "--away", "20s"]);
    assert!(exit == 0 && said.contains("2 hosts go by a lease of 20.0 s"), "{said}");
}

/// Only a lease ends members: those of other groups run on without a server, and after it.
#[test]
fn members_that_run_by_no_lease_run_on_while_the_server_is_away() {
    for recover in ["off", "fence"] {
        let mut lab = Lab::start(recover, LEASE_MS);
        let software = ["a", "b"].map(|host| lab.software(host));
        lab.cluster.server.kill();
        let killed = Instant::now();
        wait_for("two leases to pass", || killed.elapsed() > Duration::from_millis(2 * LEASE_MS));
        assert!(software.into_iter().all(lives), "{recover}");
        lab.cluster.restart_server();
        wait_for("both to be back", || ["a", "b"].iter().all(|host| lab.cluster.joined(host) == 2));
        assert_eq!(["a", "b"].map(|host| lab.software(host)), software, "{recover}");
        assert!(lab.is("a", "primary") && lab.is("b", "standby") && lab.repairs().is_empty(), "{recover}");
    }
}

/// A group that repairs nothing by itself is left as it is, and the operator is told what to run.
#[test]
fn a_group_that_is_not_to_recover_is_left_to_people() {
    let lab = Lab::start("off", LEASE_MS);
    kill_process(Pid::from_raw(lab.software("a")).unwrap(), Signal::KILL).unwrap();
    wait_for("the loss to be known", || lab.cluster.member("db", "a")["actual"] == "offline");
    let known = Instant::now();
    wait_for("a lease to pass", || known.elapsed() > Duration::from_millis(LEASE_MS));
    assert_eq!(lab.repairs(), Vec::<Value>::new());
    let (_, status) = lab.says(&["status"]);
    assert!(
        status.contains("db@a is offline, should be primary\n    next: lockstep run db@a=primary"),
        "{status}"
    );
    let (exit, said) = lab.says(&["repair", "db"]);
    assert_eq!(exit, 0, "{said}");
    wait_for("somebody to be primary", || ["a", "b"].iter().any(|host| lab.is(host, "primary")));
}

/// A server that is told to stop tells whoever has asked, and is there again as before.
#[test]
fn a_server_stops_when_it_is_asked_to() {
    let mut cluster = Cluster::start();
    cluster.apply("cluster = \"c\"\n[groups.db]\n");
    let (exit, said, _) = cluster.lockstep(&["server", "stop", "-o", "json"]);
    assert_eq!((exit, serde_json::from_str::<Value>(&said).unwrap()), (0, json!({ "status": "stopping" })));
    assert_eq!(cluster.server.exit(), Some(0));
    let (exit, _, said) = cluster.lockstep(&["server", "stop"]);
    assert!(exit == 1 && said.contains("no server answers"), "{said}");
    cluster.restart_server();
    assert_eq!(cluster.items("/v1/groups")[0]["name"], "db");
    // What is meant for one that runs needs nothing else, and one that is started needs its directory.
    let (exit, _, said) = cluster.lockstep(&["server"]);
    assert!(exit == 2 && said.contains("--data"), "{said}");
}
