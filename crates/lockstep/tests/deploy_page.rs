//! `docs/deploy.md` is right as long as what it shows works: its certificates, its three members of etcd and its three
//! servers, started by the lines that its units have, on addresses of the loopback network instead of its hosts'; and
//! what it says to do when a majority of etcd is gone for good.

#![cfg(feature = "etcd")]
#![allow(clippy::unwrap_used, reason = "a test fails by it")]

mod common;

use common::etcd::Member;
use common::{Process, wait_for};
use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use tempfile::TempDir;

const PAGE: &str = include_str!("../../../docs/deploy.md");
const SPEC: &str = "cluster = \"shop\"\n[groups.db]\nselect = { role = \"db\" }\nhandler = \"none\"\n";

/// The page's hosts, in a directory of their own.
struct Hosts {
    dir: TempDir,
    members: BTreeMap<u32, Member>,
    servers: BTreeMap<u32, Process>,
}

/// The body of a fenced block.
fn block(name: &str) -> String {
    let begin = PAGE.find(&format!(" {name}\n")).unwrap_or_else(|| panic!("the page has no {name}"));
    let body = &PAGE[begin + name.len() + 2..];
    body[..body.find("```").unwrap()].to_owned()
}

/// What a unit starts, without the program.
fn exec_start(unit: &str) -> Vec<String> {
    let unit = block(unit).replace("\\\n", " ");
    let line = unit.lines().find_map(|line| line.strip_prefix("ExecStart=")).unwrap();
    line.split_whitespace().skip(1).map(str::to_owned).collect()
}

/// A command line of the page that begins so.
fn command(beginning: &str) -> Vec<String> {
    let mut lines = PAGE.lines().map(str::trim);
    let line = lines.find(|line| line.starts_with(beginning)).unwrap_or_else(|| panic!("{beginning}"));
    line.split_whitespace().skip(1).map(str::to_owned).collect()
}

impl Hosts {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let etc = dir.path().join("etc");
        fs::create_dir(&etc).unwrap();
        fs::write(dir.path().join("cluster.toml"), SPEC).unwrap();
        let script = etc.join("certificates.sh");
        fs::write(&script, Self::here(dir.path(), &block("certificates.sh"))).unwrap();
        let made = Command::new("sh").arg(&script).current_dir(&etc).status();
        assert!(made.expect("the tests need a shell").success(), "the tests need the Debian package openssl");
        Self { dir, members: BTreeMap::new(), servers: BTreeMap::new() }
    }

    fn path(&self) -> PathBuf {
        self.dir.path().to_owned()
    }

    /// The page's addresses and directories, as they are here.
    fn here(dir: &Path, text: &str) -> String {
        let dir = dir.to_str().unwrap();
        text.replace("10.0.0.", "127.93.17.")
            .replace("/etc/lockstep", &format!("{dir}/etc"))
            .replace("/var/lib", &format!("{dir}/lib"))
            .replace("/var/tmp", &format!("{dir}/tmp"))
    }

    /// The line of host 1, as it is on another one.
    fn of(&self, number: u32, arg: &str, shared: &[&str]) -> String {
        let arg = Self::here(self.dir.path(), arg);
        if shared.iter().any(|known| arg.contains(known)) {
            return arg;
        }
        let lib = format!("{}/lib", self.dir.path().display());
        arg.replace("127.93.17.1", &format!("127.93.17.{number}"))
            .replace("m1", &format!("m{number}"))
            .replace("s1", &format!("s{number}"))
            .replace(&lib, &format!("{lib}{number}"))
    }

    fn start_member(&mut self, number: u32, without: &[&str], more: &[&str]) {
        let mut args: Vec<String> =
            exec_start("lockstep-etcd.service").iter().map(|arg| self.of(number, arg, &["m2="])).collect();
        for flag in without {
            let at = args.iter().position(|arg| arg == flag).unwrap();
            args.drain(at..at + 2);
        }
        let log = self.path().join(format!("etcd-{number}-{}.log", more.len()));
        args.extend(more.iter().map(|arg| (*arg).to_owned()));
        self.members.insert(number, Member::start(log, args));
    }

    fn start_server(&mut self, number: u32) {
        let args: Vec<String> = exec_start("lockstep.service")
            .iter()
            .map(|arg| self.of(number, arg, &["etcds://", "lockstep.pem", "lockstep.key"]))
            .collect();
        let args: Vec<&str> = args.iter().map(String::as_str).collect();
        let server = Process::start(self.dir.path(), &format!("server-{number}"), &args);
        self.servers.insert(number, server);
    }

    /// What `lockstep` prints, with those arguments of the page.
    fn lockstep(&self, args: &[String]) -> (bool, String) {
        let etc = self.path().join("etc");
        let files =
            [("--etcd-ca", "ca.pem"), ("--etcd-cert", "lockstep.pem"), ("--etcd-key", "lockstep.key")];
        let mut args: Vec<String> = args.iter().map(|arg| Self::here(self.dir.path(), arg)).collect();
        for (flag, file) in files {
            if let Some(at) = args.iter().position(|arg| arg == flag) {
                args[at + 1] = etc.join(file).to_str().unwrap().to_owned();
            }
        }
        let output = Command::new(env!("CARGO_BIN_EXE_lockstep"))
            .args(args)
            .env(
                "LOCKSTEP_ADDR",
                Self::here(self.dir.path(), "http://10.0.0.1:7420,http://10.0.0.2:7420,http://10.0.0.3:7420"),
            )
            .current_dir(self.dir.path())
            .output()
            .unwrap();
        let said = [output.stdout, output.stderr].concat();
        (output.status.success(), String::from_utf8(said).unwrap())
    }

    fn typed(&self, beginning: &str) {
        let (is_done, said) = self.lockstep(&command(beginning));
        assert!(is_done, "{beginning}: {said}");
    }

    fn until(&self, what: &str, args: &[&str], shows: impl Fn(&str) -> bool) -> String {
        let args: Vec<String> = args.iter().map(|arg| (*arg).to_owned()).collect();
        let mut last = String::new();
        wait_for(what, || {
            let (is_done, said) = self.lockstep(&args);
            last = said;
            is_done && shows(&last)
        });
        last
    }
}

#[test]
fn three_servers_as_the_page_has_them_outlive_one_and_the_loss_of_a_majority() {
    let mut hosts = Hosts::new();
    fs::create_dir(hosts.path().join("tmp")).unwrap();
    for number in 1..=3 {
        fs::create_dir_all(hosts.path().join(format!("lib{number}/etcd"))).unwrap();
        hosts.start_member(number, &[], &[]);
    }
    (1..=3).for_each(|number| hosts.start_server(number));
    hosts.until("a cluster", &["apply", "-f", "cluster.toml"], |_| true);

    // One host dies: its member of etcd and its server.
    hosts.members.remove(&1);
    hosts.servers.remove(&1);
    hosts.until("the others to go on", &["freeze", "--reason", "one is dead", "--for", "1h"], |_| true);
    // A member that is left alone keeps what it knew to be acknowledged: all but the last writes, as the page says.
    for _ in 0..3 {
        hosts.until("more writes", &["freeze", "db", "--reason", "and more", "--for", "1h"], |_| true);
    }

    // Another one dies, and both have lost their disks.
    hosts.servers.clear();
    hosts.members.remove(&2);
    hosts.members.remove(&3);
    hosts.start_member(3, &["--initial-cluster-state"], &["--force-new-cluster"]);
    let one = command("lockstep migrate --from etcds://10.0.0.1:2379/shop");
    let one: Vec<String> = one.iter().map(|arg| arg.replace("10.0.0.1:2379", "10.0.0.3:2379")).collect();
    wait_for("the journal to be copied", || hosts.lockstep(&one).0);
    hosts.typed("lockstep backup --data /var/tmp/shop-journal");
    hosts.typed("lockstep restore --data /var/tmp/shop-restored /var/tmp/shop.backup");
    hosts.members.clear();

    for number in 1..=3 {
        fs::remove_dir_all(hosts.path().join(format!("lib{number}/etcd"))).unwrap();
        fs::create_dir_all(hosts.path().join(format!("lib{number}/etcd"))).unwrap();
        hosts.start_member(number, &["--initial-cluster-token"], &["--initial-cluster-token", "another"]);
    }
    wait_for("the journal to be in the new etcd", || {
        hosts.lockstep(&command("lockstep migrate --from /var/tmp/shop-restored")).0
    });
    (1..=3).for_each(|number| hosts.start_server(number));
    hosts.until("what was declared", &["group", "list"], |said| said.contains("db"));
    hosts.until("what was frozen", &["status", "-o", "json"], |said| said.contains("one is dead"));
}

#[test]
fn the_units_start_what_there_is() {
    for unit in ["lockstep.service", "lockstep-agent.service"] {
        let args = exec_start(unit);
        let output =
            Command::new(env!("CARGO_BIN_EXE_lockstep")).args([&args[0], "--help"]).output().unwrap();
        let help = String::from_utf8(output.stdout).unwrap();
        for flag in args.iter().filter(|arg| arg.starts_with("--")) {
            assert!(help.contains(flag.as_str()), "{unit}: {flag} is no flag of {}", args[0]);
        }
    }
}
