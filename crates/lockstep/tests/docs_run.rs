//! Runs the pages of `docs/` as a reader would: files are written as they are shown, commands are typed into a shell in
//! order, with the real binary first on the path, and what they print is compared with the page.
//!
//! On a page
//! - a fenced block with a file's name, such as ```` ```toml cluster.toml ````, is that file, written when it is reached;
//! - a block ```` ```console ```` holds commands, each after `$ `, and after each what it prints, standard error
//!   included. A command goes on in the next line after a `\` at the end of one.
//! - A command that fails is followed by `$ echo $?`, so that a page shows how it ends.
//! - A page ends the processes that it starts.
//!
//! What differs from run to run is compared by its kind only, see [`Steady`]. Where that is not enough, `[..]` on a page
//! stands for anything within a line.
//!
//! `UPDATE_EXPECT=1 cargo test -p lockstep --test docs_run` writes into the pages what commands print now.

#![allow(clippy::unwrap_used, reason = "a test fails by it")]

mod common;

use common::wait_for;
use rustix::process::{Pid, Signal, kill_process_group, test_kill_process_group};
use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::fs::{self, File};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

/// Pages that tell of things which no page can show by running them.
const WITHOUT_COMMANDS: [&str; 15] = [
    "api.md",
    "backup.md",
    "benchmarks.md",
    "deploy.md",
    "etcd-keys.md",
    "etcd.md",
    "guarantee.md",
    "handlers.md",
    "migrate.md",
    "protocol.md",
    "recover.md",
    "rehearse.md",
    "relations/README.md",
    "servers.md",
    "update.md",
];
/// Directories of which the same is true: `cli_errors` looks after errors, and decisions are history.
const DIRECTORIES_WITHOUT: [&str; 2] = ["adr", "errors"];
/// The page that starts servers and agents, in a test of its own.
const TUTORIAL: &str = "tutorial.md";
/// What the shell prints when a command has ended, before its exit code.
const END: &str = "--- this command has ended with";

/// A command of a page.
struct Typed {
    /// As the shell reads it.
    text: String,
    /// What the page says that it prints: these lines of the page.
    expected: std::ops::Range<usize>,
}

/// A page, in the order in which things are done.
struct Page {
    lines: Vec<String>,
    /// A script that writes the files and runs the commands.
    script: String,
    typed: Vec<Typed>,
}

impl Page {
    fn read(path: &Path) -> Self {
        let text = fs::read_to_string(path).unwrap();
        let lines: Vec<String> = text.lines().map(str::to_owned).collect();
        // `$?` is what the reader's command left, not what printing it did.
        let mut script = format!("ended() {{ code=$?; printf '\\n{END} %s\\n' $code; return $code; }}\n");
        let mut typed = Vec::new();
        let mut at = 0;
        while at < lines.len() {
            let Some(info) = lines[at].strip_prefix("```") else {
                at += 1;
                continue;
            };
            let end = (at + 1..lines.len()).find(|&line| lines[line] == "```");
            let end =
                end.unwrap_or_else(|| panic!("{}: the block of line {} has no end", path.display(), at + 1));
            match info.split_whitespace().collect::<Vec<_>>()[..] {
                ["console"] => typed.extend(commands(&lines, at + 1..end, &mut script)),
                [_, file] => {
                    let body = lines[at + 1..end].join("\n");
                    assert!(!body.contains("END OF FILE"), "{}: {file}", path.display());
                    // Behind `$?`, which the file does not change for a reader either.
                    writeln!(
                        script,
                        "(code=$?; cat > '{file}' << 'END OF FILE'\n{body}\nEND OF FILE\nexit $code)"
                    )
                    .unwrap();
                }
                _ => {}
            }
            at = end + 1;
        }
        Self { lines, script, typed }
    }
}

/// The commands of a block.
fn commands(lines: &[String], block: std::ops::Range<usize>, script: &mut String) -> Vec<Typed> {
    let mut typed: Vec<Typed> = Vec::new();
    let mut at = block.start;
    while at < block.end {
        let first = lines[at].strip_prefix("$ ");
        let mut text = first.unwrap_or_else(|| panic!("output before any command: {}", lines[at])).to_owned();
        while text.ends_with('\\') {
            at += 1;
            text = format!("{text}\n{}", lines[at]);
        }
        at += 1;
        let output = (at..block.end).find(|&line| lines[line].starts_with("$ ")).unwrap_or(block.end);
        writeln!(script, "{text}\nended").unwrap();
        typed.push(Typed { text, expected: at..output });
        at = output;
    }
    typed
}

/// Runs a page's script in a directory of its own; gives what each command printed, and its exit code.
fn run(page: &Page, name: &str) -> Vec<(Vec<String>, i32)> {
    let temporary = tempfile::tempdir().unwrap();
    let (dir, aside) = (temporary.path().join("reader"), temporary.path().join("aside"));
    fs::create_dir(&dir).unwrap();
    fs::create_dir(&aside).unwrap();
    fs::write(aside.join("script"), &page.script).unwrap();
    let output = File::create(aside.join("output")).unwrap();
    let binary = PathBuf::from(env!("CARGO_BIN_EXE_lockstep"));
    let path = format!("{}:{}", binary.parent().unwrap().display(), std::env::var("PATH").unwrap());
    let mut shell = Command::new("sh")
        .arg(aside.join("script"))
        .current_dir(&dir)
        .env("PATH", path)
        .env("NO_COLOR", "1")
        .env_remove("LOCKSTEP_ADDR")
        .env_remove("RUST_LOG")
        .stdin(Stdio::null())
        .stdout(output.try_clone().unwrap())
        .stderr(output)
        // With all that it starts and leaves behind, to be ended with it.
        .process_group(0)
        .spawn()
        .unwrap();
    let group = Pid::from_child(&shell);
    let ended = Ended { group, output: aside.join("output") };
    wait_for(&format!("{name} to end"), || shell.try_wait().unwrap().is_some());
    wait_for(&format!("what {name} has started to end, by the page's own commands"), || {
        test_kill_process_group(group).is_err()
    });
    drop(ended);
    let said = said(&aside.join("output"));
    let mut results = Vec::new();
    let mut printed: Vec<String> = Vec::new();
    for line in said.lines() {
        let Some(code) = line.strip_prefix(END) else {
            printed.push(line.trim_end().to_owned());
            continue;
        };
        // The mark begins with a line feed, for output that does not end with one.
        if printed.last().is_some_and(String::is_empty) {
            printed.pop();
        }
        results.push((std::mem::take(&mut printed), code.trim().parse().unwrap()));
    }
    assert_eq!(results.len(), page.typed.len(), "{name} stopped early:\n{said}");
    results
}

fn said(output: &Path) -> String {
    String::from_utf8_lossy(&fs::read(output).unwrap()).into_owned()
}

/// Ends the processes of a page, whatever happens, and tells how far it came when something has.
struct Ended {
    group: Pid,
    output: PathBuf,
}

impl Drop for Ended {
    fn drop(&mut self) {
        // There may be none any more.
        let _ = kill_process_group(self.group, Signal::KILL);
        if std::thread::panicking() {
            eprintln!("{}", said(&self.output));
        }
    }
}

/// Output without what differs from run to run:
/// - times (`12 ms`, `1.2 s`, dates), revisions and tokens are compared by their kind only;
/// - transitions and plan hashes are numbered in the order in which the page meets them: what is the same is shown so;
/// - what `run` tells of one phase is compared as a set: who answers first is chance, and so is who does before a no.
#[derive(Default)]
struct Steady {
    transitions: BTreeMap<String, usize>,
    hashes: BTreeMap<String, usize>,
}

impl Steady {
    fn lines(&mut self, lines: &[String]) -> Vec<String> {
        let mut steady: Vec<String> = Vec::new();
        let mut phases: BTreeMap<&str, (usize, Vec<String>)> = BTreeMap::new();
        for line in lines {
            let line = self.line(line);
            let phase = ["check", "prepare", "commit", "undo", "release"].into_iter().find(|phase| {
                line.strip_prefix(phase).is_some_and(|rest| rest.starts_with("  "))
                    && line.ends_with("  TIME")
            });
            let Some(phase) = phase else {
                steady.push(line);
                continue;
            };
            let cells = line.split("  ").filter(|cell| !cell.is_empty() && ![phase, "TIME"].contains(cell));
            let known = phases.entry(phase).or_insert_with(|| {
                steady.push(String::new());
                (steady.len() - 1, Vec::new())
            });
            known.1.extend(cells.map(|cell| cell.trim().to_owned()));
        }
        for (phase, (place, mut cells)) in phases {
            if cells.iter().any(|cell| is_no(cell)) {
                cells.retain(|cell| is_no(cell));
            }
            cells.sort();
            steady[place] = format!("{phase}  {}", cells.join("  "));
        }
        steady
    }

    fn line(&mut self, line: &str) -> String {
        let mut words: Vec<String> = line.split(' ').map(str::to_owned).collect();
        let mut changed = false;
        for at in 0..words.len() {
            let before = at.checked_sub(1).map(|before| words[before].as_str()).unwrap_or_default();
            let word = words[at].trim_end_matches([',', ';', ':']);
            let rest = words[at][word.len()..].to_owned();
            let is_number = |text: &str| {
                !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit() || byte == b'.')
            };
            let is_hash = word.len() == 8 && word.bytes().all(|byte| byte.is_ascii_hexdigit());
            let is_date = word.len() >= 20 && word.ends_with('Z') && word.as_bytes()[10] == b'T';
            let kind = if matches!(word, "ms" | "s") && is_number(before) {
                words[at - 1].clear();
                Some("TIME".to_owned())
            } else if is_date {
                Some("DATE".to_owned())
            } else if before == "plan" && is_hash {
                let count = self.hashes.len() + 1;
                Some(format!("HASH-{}", self.hashes.entry(word.to_owned()).or_insert(count)))
            } else if matches!(before, "revision" | "token") && is_number(word) {
                Some("NUMBER".to_owned())
            } else if word.strip_prefix('t').is_some_and(is_number) {
                let count = self.transitions.len() + 1;
                Some(format!("TRANSITION-{}", self.transitions.entry(word.to_owned()).or_insert(count)))
            } else {
                None
            };
            if let Some(kind) = kind {
                words[at] = kind + &rest;
                changed = true;
            }
        }
        if !changed {
            return line.to_owned();
        }
        // What stands in columns moves with the width of what has been replaced.
        let mut text = words.join(" ");
        while text.contains("   ") {
            text = text.replace("   ", "  ");
        }
        text.trim().to_owned()
    }
}

/// Whether it is somebody's no, as `run` shows it.
fn is_no(cell: &str) -> bool {
    cell.ends_with(" no") || cell.contains(" no (")
}

/// Whether a line is as the page has it, `[..]` standing for anything.
fn matches(expected: &str, line: &str) -> bool {
    let mut parts = expected.split("[..]");
    let first = parts.next().unwrap_or_default();
    let Some(mut rest) = line.strip_prefix(first) else { return false };
    let mut last = None;
    for part in parts {
        let Some(found) = rest.find(part) else { return false };
        (rest, last) = (&rest[found + part.len()..], Some(part));
    }
    last.map_or(rest.is_empty(), |last| last.is_empty() || line.ends_with(last))
}

/// Runs a page and compares, or rewrites the page.
fn check(name: &str) {
    let path = docs().join(name);
    let page = Page::read(&path);
    assert!(!page.typed.is_empty(), "{name} has no commands: show some, or name it in WITHOUT_COMMANDS");
    let results = run(&page, name);
    let (mut on_page, mut in_run) = (Steady::default(), Steady::default());
    let mut differences = String::new();
    let mut rewritten = Vec::new();
    let mut kept = 0;
    for (place, (typed, (printed, code))) in page.typed.iter().zip(&results).enumerate() {
        let Typed { text, expected } = typed;
        let shown = &page.lines[expected.clone()];
        let is_shown = page.typed.get(place + 1).is_some_and(|next| next.text == "echo $?");
        assert!(
            *code == 0 || is_shown,
            "{name}: $ {text}\nends with {code}, and no `$ echo $?` follows:\n{}",
            printed.join("\n")
        );
        let (expects, is) = (on_page.lines(shown), in_run.lines(printed));
        if expects.len() == is.len() && expects.iter().zip(&is).all(|(expects, is)| matches(expects, is)) {
            continue;
        }
        let (before, now) = (shown.join("\n"), printed.join("\n"));
        writeln!(differences, "$ {text}\n--- on the page\n{before}\n--- printed\n{now}\n").unwrap();
        rewritten.extend_from_slice(&page.lines[kept..expected.start]);
        rewritten.extend_from_slice(printed);
        kept = expected.end;
    }
    if differences.is_empty() {
        return;
    }
    let is_update = std::env::var_os("UPDATE_EXPECT").is_some();
    assert!(is_update, "{name} (UPDATE_EXPECT=1 writes what is printed into the page):\n{differences}");
    rewritten.extend_from_slice(&page.lines[kept..]);
    fs::write(path, rewritten.join("\n") + "\n").unwrap();
}

fn docs() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../docs")
}

/// All pages below `docs()/DIR`, by their place in `docs()`.
fn pages(dir: &str) -> Vec<String> {
    let mut pages = Vec::new();
    for entry in fs::read_dir(docs().join(dir)).unwrap() {
        let entry = entry.unwrap();
        let name = format!("{dir}{}", entry.file_name().to_str().unwrap());
        if entry.path().is_dir() {
            pages.extend(self::pages(&format!("{name}/")));
        } else if name.ends_with(".md") {
            pages.push(name);
        }
    }
    pages
}

#[test]
fn the_tutorial_goes_as_it_says() {
    check(TUTORIAL);
}

#[test]
fn each_page_prints_what_it_shows() {
    let mut pages = pages("");
    pages.sort();
    for name in WITHOUT_COMMANDS {
        assert!(
            pages.iter().any(|page| page == name),
            "{name} is not there: take it out of WITHOUT_COMMANDS"
        );
    }
    let is_run = |page: &&String| {
        let is_below = |dir: &str| page.strip_prefix(dir).is_some_and(|rest| rest.starts_with('/'));
        !WITHOUT_COMMANDS.contains(&page.as_str()) && !DIRECTORIES_WITHOUT.into_iter().any(is_below)
    };
    for page in pages.iter().filter(is_run).filter(|page| *page != TUTORIAL) {
        check(page);
    }
}

#[test]
fn what_differs_from_run_to_run_is_no_difference() {
    let steady = |text: &str| Steady::default().lines(&text.lines().map(str::to_owned).collect::<Vec<_>>());
    let told = [
        "plan f80133c3  db: pg-a primary -> offline   gap: db",
        "check     pg-a yes  app-1 yes                                  17 ms",
        "commit    pg-a offline                                         1.4 s",
        "release   app-1                                                 0 ms",
        "commit    pg-b primary                                        472 ms",
        "committed t13  677 ms",
        "t13: token 7; since revision 12, 2026-11-25T14:39:00Z",
    ];
    let again = [
        "plan 11111111  db: pg-a primary -> offline   gap: db",
        "check     app-1 yes  pg-a yes                                  2.0 s",
        "commit    pg-a offline  pg-b primary                            4 ms",
        "release   app-1                                                12 ms",
        "committed t99  1 ms",
        "t99: token 8; since revision 4, 2027-01-01T00:00:00Z",
    ];
    assert_eq!(steady(&told.join("\n")), steady(&again.join("\n")));
    let voted = |cells: &str| steady(&format!("check     {cells}     1 ms"));
    assert_eq!(voted("ops-1 no (busy)  pg-a yes"), voted("ops-1 no (busy)"));
    for (one, other) in [
        ("check     pg-a yes    1 ms", "check     pg-a no    1 ms"),
        ("committed t13  1 ms", "aborted t13  1 ms"),
        ("t1 t2 t1", "t1 t2 t2"),
        ("plan f80133c3  db: pg-a", "plan f80133c3  db: pg-b"),
        ("plan f80133c3\nplan f80133c3", "plan f80133c3\nplan 11111111"),
        ("5 members", "6 members"),
    ] {
        assert_ne!(steady(one), steady(other));
    }
    for (expected, line, is_alike) in
        [("a[..]c", "abbc", true), ("a[..]c", "abbcd", false), ("[..]", "", true), ("a", "ab", false)]
    {
        assert_eq!(matches(expected, line), is_alike, "{expected} {line}");
    }
}
