use expect_test::{Expect, expect};
use miette::{GraphicalReportHandler, GraphicalTheme};

use super::*;
use crate::handler::{Program, User};
use lockstep_core::message::Phase;
use std::collections::BTreeSet;

const PASSWD: &str = "root:x:0:0:root:/root:/bin/sh\n# remark\nbroken:x\n\
                      postgres:x:113:118::/var/lib/postgresql:/bin/sh\n200:x:201:202::/:/bin/sh\n";

fn parse(text: &str) -> Result<AgentConfig, ConfigError> {
    AgentConfig::parse(Path::new("/etc/lockstep/agent.toml"), text, PASSWD)
}

fn rendered(error: &ConfigError) -> String {
    // Expectations lose the indentation that all lines share; the first line has none.
    let mut shown = "refused:\n".to_owned();
    let handler = GraphicalReportHandler::new_themed(GraphicalTheme::unicode_nocolor()).with_width(100);
    handler.render_report(&mut shown, error).unwrap();
    // No blanks at line ends: editors and review tools take them away.
    shown.lines().map(|line| format!("{}\n", line.trim_end())).collect()
}

fn one(keys: &str) -> Handler {
    let text = format!("[handlers.h]\nexec = [\"/bin/true\"]\n{keys}\n");
    parse(&text).unwrap().handlers.remove(&name("h")).unwrap()
}

#[test]
fn the_example_of_the_module() {
    let text = "[labels]\nrole = \"db\"\nzone = \"\"\n\n[handlers.pg]\n\
        exec = [\"/usr/lib/lockstep/handlers/postgresql\", \";$(x)\"]\nuser = \"postgres\"\n\
        env = { PGDATA = \"/srv/pg\" }\nphases = [\"status\", \"check\"]\n\
        timeout_ms = { default = 4_000, commit = 0xffff }\nstatus_ms = 1000\n";
    let config = parse(text).unwrap();
    assert_eq!(config.labels["role"], "db");
    let pg = &config.handlers[&name("pg")];
    assert_eq!(
        pg.program,
        Program {
            path: PathBuf::from("/usr/lib/lockstep/handlers/postgresql"),
            args: vec![";$(x)".to_owned()],
            user: Some(User { name: "postgres".to_owned(), uid: 113, gid: 118 }),
            env: BTreeMap::from([("PGDATA".to_owned(), "/srv/pg".to_owned())]),
        }
    );
    assert_eq!(pg.rules.phases, BTreeSet::from([Phase::Check, Phase::Status]));
    assert_eq!(pg.rules.timeout_ms[&Phase::Commit], 0xffff);
    assert_eq!(pg.rules.timeout_ms[&Phase::Undo], 4_000);
    assert_eq!(pg.rules.status_ms, 1_000);
}

fn name(name: &str) -> HandlerName {
    HandlerName::new(name).unwrap()
}

#[test]
fn defaults() {
    assert_eq!(parse("").unwrap(), AgentConfig::default());
    let rules = one("").rules;
    assert_eq!(rules, default_rules());
    assert_eq!(rules.phases.len(), Phase::ALL.len());
    assert_eq!(rules.timeout_ms[&Phase::Check], 5_000);
    assert_eq!(rules.timeout_ms[&Phase::Commit], 30_000);
    assert_eq!(rules.timeout_ms[&Phase::Undo], 30_000);
    assert_eq!(rules.status_ms, 2_000);

    // Naming one phase changes that phase; naming the default changes all the others.
    assert_eq!(one("timeout_ms = { check = 1 }").rules.timeout_ms[&Phase::Commit], 30_000);
    assert_eq!(one("timeout_ms = { default = 3600000 }").rules.timeout_ms[&Phase::Commit], 3_600_000);
    assert_eq!(one("phases = []").rules.phases, BTreeSet::new());
}

#[test]
fn the_watchdog_of_the_guard() {
    let read = |keys: &str| parse(&format!("[guard]\n{keys}\n")).unwrap().watchdog;
    assert_eq!(read(""), None);
    let device = PathBuf::from("/dev/watchdog1");
    let keys = "watchdog = \"/dev/watchdog1\"";
    assert_eq!(read(keys), Some(WatchdogConfig { device: device.clone(), timeout_ms: None }));
    let keys = format!("{keys}\nwatchdog_timeout_ms = 2000");
    assert_eq!(read(&keys), Some(WatchdogConfig { device, timeout_ms: Some(2_000) }));
}

#[test]
fn a_relative_program_starts_at_the_file() {
    let config = parse("[handlers.h]\nexec = [\"./handlers/pg\"]\n").unwrap();
    assert_eq!(config.handlers[&name("h")].program.path, Path::new("/etc/lockstep/./handlers/pg"));
}

#[test]
fn users_by_name_then_by_number() {
    for (user, uid, gid) in [("\"root\"", 0, 0), ("113", 113, 118), ("\"113\"", 113, 118), ("200", 201, 202)]
    {
        let found = one(&format!("user = {user}")).program.user.unwrap();
        assert_eq!((found.uid, found.gid), (uid, gid), "{user}");
    }
}

#[test]
fn a_file_that_is_not_there_too_large_or_not_text() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("agent.toml");
    assert!(matches!(AgentConfig::load(&path), Err(ConfigError::Read { .. })));
    std::fs::write(&path, "#".repeat(CONFIG_BYTES_MAX as usize + 1)).unwrap();
    assert!(matches!(AgentConfig::load(&path), Err(ConfigError::Read { .. })));
    std::fs::write(&path, b"# \xff\n").unwrap();
    assert!(matches!(AgentConfig::load(&path), Err(ConfigError::Read { .. })));
    std::fs::write(&path, "[handlers.h]\nexec = [\"bin/h\"]\n").unwrap();
    let config = AgentConfig::load(&path).unwrap();
    assert_eq!(config.handlers[&name("h")].program.path, dir.path().join("bin/h"));
}

#[test]
fn hostile_files_are_refused_without_harm() {
    let long = "n".repeat(100_000);
    for text in [
        format!("[handlers.{long}]\nexec = [\"/bin/true\"]"),
        format!("a = {}", "[".repeat(100_000)),
        format!("a{} = 1", ".b".repeat(100_000)),
        "\0".to_owned(),
        "[handlers.\"../a\"]\nexec = [\"/bin/true\"]".to_owned(),
        "[handlers.\"a\u{202e}b\"]\nexec = [\"/bin/true\"]".to_owned(),
        "[handlers.\";$(x)\"]\nexec = [\"/bin/true\"]".to_owned(),
        "[handlers.\"a\\nb\"]\nexec = [\"/bin/true\"]".to_owned(),
    ] {
        rendered(&parse(&text).expect_err("a hostile file"));
    }
}

#[test]
fn bad_configurations() {
    // Whole files end in a newline; the others are keys of a handler that is otherwise good.
    let table: Vec<(&str, Expect)> = vec![
        (
            "[guard]\nwatchdog = \"watchdog\"\n",
            expect![[r#"
            refused:
              × `watchdog` must be a device
               ╭─[/etc/lockstep/agent.toml:2:12]
             1 │ [guard]
             2 │ watchdog = "watchdog"
               ·            ─────┬────
               ·                 ╰── this path
               ╰────
              help: write an absolute path, such as "/dev/watchdog"
        "#]],
        ),
        (
            "[guard]\nwatchdog_timeout_ms = 2000\n",
            expect![[r#"
            refused:
              × a timeout without a `watchdog`
               ╭─[/etc/lockstep/agent.toml:1:2]
             1 │ [guard]
               ·  ──┬──
               ·    ╰── here
             2 │ watchdog_timeout_ms = 2000
               ╰────
              help: add watchdog = "/dev/watchdog", or remove watchdog_timeout_ms
        "#]],
        ),
        (
            "[guard]\nwatchdog_timeout_ms = 999\n",
            expect![[r#"
            refused:
              × `watchdog_timeout_ms` is out of range
               ╭─[/etc/lockstep/agent.toml:2:23]
             1 │ [guard]
             2 │ watchdog_timeout_ms = 999
               ·                       ─┬─
               ·                        ╰── this number
               ╰────
              help: 1000 to 600000, in milliseconds
        "#]],
        ),
        (
            "[guard]\ndog = true\n",
            expect![[r#"
            refused:
              × unknown key
               ╭─[/etc/lockstep/agent.toml:2:1]
             1 │ [guard]
             2 │ dog = true
               · ─┬─
               ·  ╰── not known here
               ╰────
              help: [guard] has watchdog and watchdog_timeout_ms
        "#]],
        ),
        (
            "[handlers.pg\n",
            expect![[r#"
                refused:
                  × not valid TOML
                   ╭─[/etc/lockstep/agent.toml:1:13]
                 1 │ [handlers.pg
                   ·             ▲
                   ·             ╰── unclosed table, expected `]`
                   ╰────
                  help: quote strings, and write each table and key once: [handlers.NAME], then exec = ["/path"]
            "#]],
        ),
        (
            "[labels]\na = \"1\"\na = \"2\"\n",
            expect![[r#"
                refused:
                  × not valid TOML
                   ╭─[/etc/lockstep/agent.toml:3:1]
                 2 │ a = "1"
                 3 │ a = "2"
                   · ┬
                   · ╰── duplicate key
                   ╰────
                  help: quote strings, and write each table and key once: [handlers.NAME], then exec = ["/path"]
            "#]],
        ),
        (
            "[handler.pg]\nexec = [\"/bin/true\"]\n",
            expect![[r#"
                refused:
                  × unknown key
                   ╭─[/etc/lockstep/agent.toml:1:2]
                 1 │ [handler.pg]
                   ·  ───┬───
                   ·     ╰── not known here
                 2 │ exec = ["/bin/true"]
                   ╰────
                  help: agent.toml has [labels], [handlers.NAME] and [guard]
            "#]],
        ),
        (
            "handlers = 3\n",
            expect![[r#"
                refused:
                  × `handlers` must be a table
                   ╭─[/etc/lockstep/agent.toml:1:12]
                 1 │ handlers = 3
                   ·            ┬
                   ·            ╰── integer here
                   ╰────
                  help: write a table: [name] on its own line, or { key = value }
            "#]],
        ),
        (
            "[handlers]\npg = \"/bin/true\"\n",
            expect![[r#"
                refused:
                  × a handler must be a table
                   ╭─[/etc/lockstep/agent.toml:2:6]
                 1 │ [handlers]
                 2 │ pg = "/bin/true"
                   ·      ─────┬─────
                   ·           ╰── string here
                   ╰────
                  help: write a table: [name] on its own line, or { key = value }
            "#]],
        ),
        (
            "[handlers.none]\nexec = [\"/bin/true\"]\n",
            expect![[r#"
                refused:
                  × `none` is a reserved name
                   ╭─[/etc/lockstep/agent.toml:1:11]
                 1 │ [handlers.none]
                   ·           ──┬─
                   ·             ╰── a handler of this name
                 2 │ exec = ["/bin/true"]
                   ╰────
                  help: every agent has `none`: it runs nothing and says yes. Choose another name, here and in the
                        group's `handler`
            "#]],
        ),
        (
            "[handlers.\"\"]\nexec = [\"/bin/true\"]\n",
            expect![[r#"
                refused:
                  × not a valid handler name
                   ╭─[/etc/lockstep/agent.toml:1:11]
                 1 │ [handlers.""]
                   ·           ─┬
                   ·            ╰── this name
                 2 │ exec = ["/bin/true"]
                   ╰────
                  help: 1 to 63 of A-Z a-z 0-9 _ -, a letter or digit first
            "#]],
        ),
        (
            "[handlers.pg]\nuser = \"root\"\n",
            expect![[r#"
                refused:
                  × handler `pg` has no `exec`
                   ╭─[/etc/lockstep/agent.toml:1:11]
                 1 │ [handlers.pg]
                   ·           ─┬
                   ·            ╰── this handler
                 2 │ user = "root"
                   ╰────
                  help: add exec = ["/path/to/program", "argument"]; the phase is added as the last argument
            "#]],
        ),
        (
            "[handlers.pg]\nexec = []\n",
            expect![[r#"
                refused:
                  × `exec` is empty
                   ╭─[/etc/lockstep/agent.toml:2:8]
                 1 │ [handlers.pg]
                 2 │ exec = []
                   ·        ─┬
                   ·         ╰── no program
                   ╰────
                  help: write exec = ["/path/to/program", "argument"]; no shell reads it
            "#]],
        ),
        (
            "[handlers.pg]\nexec = \"/bin/true\"\n",
            expect![[r#"
                refused:
                  × `exec` must be an array
                   ╭─[/etc/lockstep/agent.toml:2:8]
                 1 │ [handlers.pg]
                 2 │ exec = "/bin/true"
                   ·        ─────┬─────
                   ·             ╰── string here
                   ╰────
                  help: write exec = ["/path/to/program", "argument"]; no shell reads it
            "#]],
        ),
        (
            "[handlers.pg]\nexec = [\"/bin/true\", 5]\n",
            expect![[r#"
                refused:
                  × an argument of `exec` must be a string
                   ╭─[/etc/lockstep/agent.toml:2:22]
                 1 │ [handlers.pg]
                 2 │ exec = ["/bin/true", 5]
                   ·                      ┬
                   ·                      ╰── integer here
                   ╰────
                  help: put it in quotes
            "#]],
        ),
        (
            "[handlers.pg]\nexec = [\"true\"]\n",
            expect![[r#"
                refused:
                  × the program of `exec` must be a path
                   ╭─[/etc/lockstep/agent.toml:2:9]
                 1 │ [handlers.pg]
                 2 │ exec = ["true"]
                   ·         ───┬──
                   ·            ╰── a bare name, or nothing
                   ╰────
                  help: no search path is used: write the absolute path, or one with a slash, which starts at the
                        directory of this file
            "#]],
        ),
        (
            "[handlers.pg]\nexec = [\"\"]\n",
            expect![[r#"
                refused:
                  × the program of `exec` must be a path
                   ╭─[/etc/lockstep/agent.toml:2:9]
                 1 │ [handlers.pg]
                 2 │ exec = [""]
                   ·         ─┬
                   ·          ╰── a bare name, or nothing
                   ╰────
                  help: no search path is used: write the absolute path, or one with a slash, which starts at the
                        directory of this file
            "#]],
        ),
        (
            "[handlers.pg]\nexec = [\"/bin/true\", \"a\\u0000b\"]\n",
            expect![[r#"
                refused:
                  × a NUL character
                   ╭─[/etc/lockstep/agent.toml:2:22]
                 1 │ [handlers.pg]
                 2 │ exec = ["/bin/true", "a\u0000b"]
                   ·                      ─────┬────
                   ·                           ╰── in this text
                   ╰────
                  help: no program can be given one; remove it
            "#]],
        ),
        (
            "[handlers.pg]\nsystemd = \"postgresql.service\"\n",
            expect![[r#"
                refused:
                  × `systemd` handlers do not exist yet
                   ╭─[/etc/lockstep/agent.toml:2:1]
                 1 │ [handlers.pg]
                 2 │ systemd = "postgresql.service"
                   · ───┬───
                   ·    ╰── this kind of handler
                   ╰────
                  help: this version knows `exec` handlers and the built-in `none`; write exec = ["/path/to/
                        program"] with a program that does the same
            "#]],
        ),
        (
            "[labels]\n\"a b\" = \"c\"\n",
            expect![[r#"
                refused:
                  × not a valid label name
                   ╭─[/etc/lockstep/agent.toml:2:1]
                 1 │ [labels]
                 2 │ "a b" = "c"
                   · ──┬──
                   ·   ╰── this name
                   ╰────
                  help: 1 to 63 of A-Z a-z 0-9 . _ -, a letter or digit first
            "#]],
        ),
        (
            "[labels]\nconnections = 100\n",
            expect![[r#"
                refused:
                  × a label's value must be a string
                   ╭─[/etc/lockstep/agent.toml:2:15]
                 1 │ [labels]
                 2 │ connections = 100
                   ·               ─┬─
                   ·                ╰── integer here
                   ╰────
                  help: put it in quotes
            "#]],
        ),
        (
            "[handlers.fence]\nexec = [\"/bin/true\"]\nphases = [\"check\"]\n",
            expect![[r#"
                refused:
                  × the handler `fence` is called for other hosts, with the phase fence alone
                   ╭─[/etc/lockstep/agent.toml:3:10]
                 2 │ exec = ["/bin/true"]
                 3 │ phases = ["check"]
                   ·          ────┬────
                   ·              ╰── would never be called
                   ╰────
                  help: add "fence", or give this handler another name
            "#]],
        ),
        (
            "[labels]\nrole = \"d\\u0007b\"\n",
            expect![[r#"
                refused:
                  × not a valid label value
                   ╭─[/etc/lockstep/agent.toml:2:8]
                 1 │ [labels]
                 2 │ role = "d\u0007b"
                   ·        ─────┬────
                   ·             ╰── this value
                   ╰────
                  help: at most 255 bytes, no control characters
            "#]],
        ),
        (
            "timeout = 5",
            expect![[r#"
                refused:
                  × unknown key
                   ╭─[/etc/lockstep/agent.toml:3:1]
                 2 │ exec = ["/bin/true"]
                 3 │ timeout = 5
                   · ───┬───
                   ·    ╰── not known here
                   ╰────
                  help: a handler has exec, user, env, phases, timeout_ms, status_ms and checks_tokens
            "#]],
        ),
        (
            "user = \"nobody-here\"",
            expect![[r#"
                refused:
                  × no such user on this host
                   ╭─[/etc/lockstep/agent.toml:3:8]
                 2 │ exec = ["/bin/true"]
                 3 │ user = "nobody-here"
                   ·        ──────┬──────
                   ·              ╰── not in /etc/passwd
                   ╰────
                  help: name a user that /etc/passwd lists, or leave `user` out to run as the agent's own user;
                        users of a directory service are not looked up
            "#]],
        ),
        (
            "user = -1",
            expect![[r#"
                refused:
                  × no such user on this host
                   ╭─[/etc/lockstep/agent.toml:3:8]
                 2 │ exec = ["/bin/true"]
                 3 │ user = -1
                   ·        ─┬
                   ·         ╰── not in /etc/passwd
                   ╰────
                  help: name a user that /etc/passwd lists, or leave `user` out to run as the agent's own user;
                        users of a directory service are not looked up
            "#]],
        ),
        (
            "user = true",
            expect![[r#"
                refused:
                  × `user` has the wrong type
                   ╭─[/etc/lockstep/agent.toml:3:8]
                 2 │ exec = ["/bin/true"]
                 3 │ user = true
                   ·        ──┬─
                   ·          ╰── boolean here
                   ╰────
                  help: it takes a user's name or number
            "#]],
        ),
        (
            "env = { PGPORT = 5432 }",
            expect![[r#"
                refused:
                  × a variable's value must be a string
                   ╭─[/etc/lockstep/agent.toml:3:18]
                 2 │ exec = ["/bin/true"]
                 3 │ env = { PGPORT = 5432 }
                   ·                  ──┬─
                   ·                    ╰── integer here
                   ╰────
                  help: put it in quotes
            "#]],
        ),
        (
            "env = { LOCKSTEP_TOKEN = \"7\" }",
            expect![[r#"
                refused:
                  × `LOCKSTEP_` variables are reserved
                   ╭─[/etc/lockstep/agent.toml:3:9]
                 2 │ exec = ["/bin/true"]
                 3 │ env = { LOCKSTEP_TOKEN = "7" }
                   ·         ───────┬──────
                   ·                ╰── this name
                   ╰────
                  help: these are set by each call; choose another name
            "#]],
        ),
        (
            "env = { \"A=B\" = \"7\" }",
            expect![[r#"
                refused:
                  × not a variable's name
                   ╭─[/etc/lockstep/agent.toml:3:9]
                 2 │ exec = ["/bin/true"]
                 3 │ env = { "A=B" = "7" }
                   ·         ──┬──
                   ·           ╰── this name
                   ╰────
                  help: a variable's name is not empty and has no `=` or NUL
            "#]],
        ),
        (
            "phases = [\"check\", \"comit\"]",
            expect![[r#"
                refused:
                  × no such phase
                   ╭─[/etc/lockstep/agent.toml:3:20]
                 2 │ exec = ["/bin/true"]
                 3 │ phases = ["check", "comit"]
                   ·                    ───┬───
                   ·                       ╰── not a phase
                   ╰────
                  help: phases are check, prepare, commit, undo, cancel, hold, release, status, notice, fence,
                        stop
            "#]],
        ),
        (
            "phases = [\"check\", \"check\"]",
            expect![[r#"
                refused:
                  × `check` is there twice
                   ╭─[/etc/lockstep/agent.toml:3:20]
                 2 │ exec = ["/bin/true"]
                 3 │ phases = ["check", "check"]
                   ·                    ───┬───
                   ·                       ╰── again
                   ╰────
                  help: remove one
            "#]],
        ),
        (
            "phases = \"all\"",
            expect![[r#"
                refused:
                  × `phases` must be an array
                   ╭─[/etc/lockstep/agent.toml:3:10]
                 2 │ exec = ["/bin/true"]
                 3 │ phases = "all"
                   ·          ──┬──
                   ·            ╰── string here
                   ╰────
                  help: write phases = ["check", "commit", "status"], or leave it out for all of them
            "#]],
        ),
        (
            "timeout_ms = 5000",
            expect![[r#"
                refused:
                  × `timeout_ms` must be a table
                   ╭─[/etc/lockstep/agent.toml:3:14]
                 2 │ exec = ["/bin/true"]
                 3 │ timeout_ms = 5000
                   ·              ──┬─
                   ·                ╰── integer here
                   ╰────
                  help: write a table: [name] on its own line, or { key = value }
            "#]],
        ),
        (
            "timeout_ms = { check = 0 }",
            expect![[r#"
                refused:
                  × `timeout_ms` is out of range
                   ╭─[/etc/lockstep/agent.toml:3:24]
                 2 │ exec = ["/bin/true"]
                 3 │ timeout_ms = { check = 0 }
                   ·                        ┬
                   ·                        ╰── this number
                   ╰────
                  help: 1 to 3600000, in milliseconds
            "#]],
        ),
        (
            "timeout_ms = { check = -5 }",
            expect![[r#"
                refused:
                  × `timeout_ms` is out of range
                   ╭─[/etc/lockstep/agent.toml:3:24]
                 2 │ exec = ["/bin/true"]
                 3 │ timeout_ms = { check = -5 }
                   ·                        ─┬
                   ·                         ╰── this number
                   ╰────
                  help: 1 to 3600000, in milliseconds
            "#]],
        ),
        (
            "timeout_ms = { check = 3600001 }",
            expect![[r#"
                refused:
                  × `timeout_ms` is out of range
                   ╭─[/etc/lockstep/agent.toml:3:24]
                 2 │ exec = ["/bin/true"]
                 3 │ timeout_ms = { check = 3600001 }
                   ·                        ───┬───
                   ·                           ╰── this number
                   ╰────
                  help: 1 to 3600000, in milliseconds
            "#]],
        ),
        (
            "timeout_ms = { check = 99999999999999999999999 }",
            expect![[r#"
                refused:
                  × `timeout_ms` is out of range
                   ╭─[/etc/lockstep/agent.toml:3:24]
                 2 │ exec = ["/bin/true"]
                 3 │ timeout_ms = { check = 99999999999999999999999 }
                   ·                        ───────────┬───────────
                   ·                                   ╰── this number
                   ╰────
                  help: 1 to 3600000, in milliseconds
            "#]],
        ),
        (
            "timeout_ms = { check = 1.5 }",
            expect![[r#"
                refused:
                  × `timeout_ms` has the wrong type
                   ╭─[/etc/lockstep/agent.toml:3:24]
                 2 │ exec = ["/bin/true"]
                 3 │ timeout_ms = { check = 1.5 }
                   ·                        ─┬─
                   ·                         ╰── float here
                   ╰────
                  help: it takes a whole number of milliseconds
            "#]],
        ),
        (
            "timeout_ms = { chek = 5 }",
            expect![[r#"
                refused:
                  × no such phase
                   ╭─[/etc/lockstep/agent.toml:3:16]
                 2 │ exec = ["/bin/true"]
                 3 │ timeout_ms = { chek = 5 }
                   ·                ──┬─
                   ·                  ╰── not a phase
                   ╰────
                  help: phases are check, prepare, commit, undo, cancel, hold, release, status, notice, fence,
                        stop
            "#]],
        ),
        (
            "status_ms = 99",
            expect![[r#"
                refused:
                  × `status_ms` is out of range
                   ╭─[/etc/lockstep/agent.toml:3:13]
                 2 │ exec = ["/bin/true"]
                 3 │ status_ms = 99
                   ·             ─┬
                   ·              ╰── this number
                   ╰────
                  help: 100 to 3600000, in milliseconds
            "#]],
        ),
        (
            "status_ms = \"2s\"",
            expect![[r#"
                refused:
                  × `status_ms` has the wrong type
                   ╭─[/etc/lockstep/agent.toml:3:13]
                 2 │ exec = ["/bin/true"]
                 3 │ status_ms = "2s"
                   ·             ──┬─
                   ·               ╰── string here
                   ╰────
                  help: it takes a whole number of milliseconds
            "#]],
        ),
    ];
    for (text, expected) in table {
        let text = if text.ends_with('\n') {
            text.to_owned()
        } else {
            format!("[handlers.pg]\nexec = [\"/bin/true\"]\n{text}\n")
        };
        expected.assert_eq(&rendered(&parse(&text).expect_err("a bad file")));
    }
}
