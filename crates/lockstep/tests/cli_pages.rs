//! What packagers ship beside the binary: completions and manual pages.

#![allow(clippy::unwrap_used, reason = "a test fails by it")]

mod common;

use common::lockstep;
use std::collections::BTreeSet;
use std::io::Write;
use std::process::{Command, Stdio};

/// Every command, and every verb of one, as `--help` names them: `run`, `host-list`.
fn commands() -> BTreeSet<String> {
    let dir = tempfile::tempdir().unwrap();
    let listed = |args: &[&str]| -> Vec<String> {
        let (exit, help, _) = lockstep(dir.path(), None, args);
        assert_eq!(exit, 0, "{args:?}");
        let Some((_, listed)) = help.split_once("\nCommands:\n") else { return Vec::new() };
        let lines = listed.lines().take_while(|line| !line.is_empty());
        let names = lines.filter(|line| line.starts_with("  ") && !line.starts_with("   "));
        names
            .map(|line| line.split_whitespace().next().unwrap().to_owned())
            .filter(|name| name != "help")
            .collect()
    };
    let mut commands = BTreeSet::new();
    for command in listed(&["--help"]) {
        for verb in listed(&[&command, "--help"]) {
            commands.insert(format!("{command}-{verb}"));
        }
        commands.insert(command);
    }
    assert!(commands.contains("events") && commands.contains("member-list"), "{commands:?}");
    commands
}

#[test]
fn each_shell_completes_each_command() {
    let dir = tempfile::tempdir().unwrap();
    for shell in ["bash", "zsh", "fish", "elvish", "powershell"] {
        let (exit, script, err) = lockstep(dir.path(), None, &["completions", shell]);
        assert_eq!((exit, err.as_str()), (0, ""), "{shell}");
        for command in commands() {
            let word = command.rsplit('-').next().unwrap();
            assert!(script.contains(word), "{shell} completes {command}");
        }
    }
    assert_eq!(lockstep(dir.path(), None, &["completions", "cmd"]).0, 2);
    // What bash makes of it: `lockstep ho` and the key for completion.
    let (_, script, _) = lockstep(dir.path(), None, &["completions", "bash"]);
    let ask =
        "COMP_WORDS=(lockstep ho); COMP_CWORD=1; _lockstep lockstep ho lockstep; echo \"${COMPREPLY[@]}\"\n";
    let mut bash = Command::new("bash")
        .args(["--norc", "-s"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    bash.stdin.take().unwrap().write_all(format!("{script}\n{ask}").as_bytes()).unwrap();
    let completed = String::from_utf8(bash.wait_with_output().unwrap().stdout).unwrap();
    assert_eq!(completed.trim(), "host");
}

#[test]
fn each_command_has_a_manual_page() {
    let dir = tempfile::tempdir().unwrap();
    let (exit, page, err) = lockstep(dir.path(), None, &["man"]);
    assert_eq!((exit, err.as_str()), (0, ""));
    assert!(page.contains(".TH lockstep 1") && page.contains("Exit codes: 0 done"), "{page}");
    let (exit, out, err) = lockstep(dir.path(), None, &["man", "share/man1"]);
    assert_eq!((exit, out.as_str(), err.as_str()), (0, "", ""));
    let pages = dir.path().join("share/man1");
    let written: BTreeSet<String> = std::fs::read_dir(&pages)
        .unwrap()
        .map(|page| page.unwrap().file_name().into_string().unwrap())
        .collect();
    let mut expected: BTreeSet<String> =
        commands().iter().map(|command| format!("lockstep-{command}.1")).collect();
    expected.insert("lockstep.1".to_owned());
    assert_eq!(written, expected);
    for name in &written {
        let page = std::fs::read_to_string(pages.join(name)).unwrap();
        let title = format!(".TH {} 1", name.strip_suffix(".1").unwrap());
        assert!(page.contains(&title), "{name}: {page}");
    }
    std::fs::write(dir.path().join("file"), "").unwrap();
    let (exit, _, err) = lockstep(dir.path(), None, &["man", "file"]);
    assert_eq!(exit, 1);
    assert!(err.starts_with("error: cannot write to file: "), "{err}");
}

#[test]
fn usage_does_not_change_with_the_environment() {
    let dir = tempfile::tempdir().unwrap();
    let address = "127.0.0.1:1".parse().unwrap();
    for args in [&["fence"][..], &["resolve"], &["run"], &["host", "forget"]] {
        let (exit, _, said) = lockstep(dir.path(), Some(address), args);
        assert_eq!(exit, 2);
        assert_eq!(said, lockstep(dir.path(), None, args).2);
        assert!(!said.contains("--addr"), "{said}");
    }
    // The variable is looked at all the same.
    let (exit, _, said) = lockstep(dir.path(), Some(address), &["status"]);
    assert!(exit == 1 && said.contains("http://127.0.0.1:1"), "{said}");
    let output =
        Command::new(env!("CARGO_BIN_EXE_lockstep")).arg("status").env("LOCKSTEP_ADDR", "a b").output();
    let output = output.unwrap();
    let said = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(2), "{said}");
    assert!(said.contains("invalid value 'a b' of LOCKSTEP_ADDR: write http://HOST:PORT"), "{said}");
}
