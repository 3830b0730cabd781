//! The project's own commands: `cargo xtask verify | fix | test | dist | bench | mutants | chaos | soak`.
//!
//! Every command says what it runs, stops at the first failure, and ends with that command's own words.

use std::env;
use std::fs;
use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Command, ExitCode, Stdio};

const HELP: &str = "\
cargo xtask COMMAND

  verify           formatting, lints, documentation and dependencies; changes nothing
  fix              formats, and applies what the lints can mend
  test [ARGS]      installs what the tests need (as root, on Debian), then runs all of them; ARGS go to the runner
  dist             installs what a build takes (as root, on Debian), and builds target/dist/lockstep, which has the store in etcd
  bench [--json F] measures, each figure beside its floor in the same run
  bench etcd       measures the store in etcd beside the embedded one; --only transition or succession, --rounds N, --json F
  mutants [SEEDS]  lets the simulator look for each deliberate fault, in 3000 seeds unless SEEDS says otherwise
  chaos [ARGS]     real processes under faults (as root): --servers 1|3 --minutes M --seed N, --defect WHAT to see a check fail; --help has all
  soak [RUNS]      every case of each scenario with real software, 10 times unless RUNS says otherwise, and every bug that one must see
";

/// What is built beside the default: the store in etcd.
const FEATURES: [&str; 2] = ["--features", "lockstep/etcd"];

/// What building that takes: a file of each Debian package, and the package.
const BUILD_PACKAGES: [(&str, &str); 2] =
    [("protoc", "protobuf-compiler"), ("/usr/include/google/protobuf/descriptor.proto", "libprotobuf-dev")];

/// The members of etcd that tests and benchmarks start.
const ETCD: (&str, &str) = ("etcd", "etcd-server");

/// What the tests run beside Rust: a program of each Debian package, and the package.
const PACKAGES: [(&str, &str); 8] = [
    ETCD,
    ("openssl", "openssl"),
    ("python3", "python3"),
    ("redis-server", "redis-server"),
    ("haproxy", "haproxy"),
    ("nginx", "nginx"),
    ("/usr/lib/postgresql/15/bin/postgres", "postgresql-15"),
    ("pgbouncer", "pgbouncer"),
];

/// What chaos makes faults with.
const CHAOS_PACKAGES: [(&str, &str); 7] = [
    ETCD,
    ("python3", "python3"),
    ("ip", "iproute2"),
    ("nft", "nftables"),
    ("sysctl", "procps"),
    ("strace", "strace"),
    ("faketime", "faketime"),
];

/// What it does as one of the tests: with one server, and with three.
const CHAOS_TESTS: [&[&str]; 2] = [&["--minutes", "1"], &["--servers", "3", "--minutes", "1"]];

/// What `mutants` found, a line for each.
const MUTANTS: &str = "target/mutants.txt";

/// Real software moved by Lockstep, with a witness: the program, and which cases belong to the tests. `soak` runs all.
const SCENARIOS: [(&str, &[&str]); 7] = [
    ("scenarios/redis-switchover/run", &["--all"]),
    ("scenarios/blue-green/run", &["--all"]),
    ("scenarios/config-flip/run", &["--all"]),
    // Neither its script, which shows what is to be improved on, nor a standby that lags: its handler's tests have that.
    (
        "scenarios/postgres-switchover/run",
        &["--case=lockstep", "--case=transaction", "--case=kill-agent", "--case=kill-server"],
    ),
    // Of those that lose a primary, what a minute has room for.
    ("scenarios/postgres-failover/run", &["--case=host", "--case=agent", "--case=stopped"]),
    ("scenarios/redis-failover/run", &["--case=stopped", "--case=frozen"]),
    ("scenarios/dependency/run", &["--all"]),
];

/// Bugs in handlers that scenarios have to see: the program, and which of them belong to the tests; none, or, of an empty list,
/// all. `soak` shows them all.
const DOUBTS: [(&str, Option<&[&str]>); 5] = [
    ("scenarios/redis-switchover/doubt", None),
    ("scenarios/blue-green/doubt", None),
    ("scenarios/postgres-switchover/doubt", None),
    // Without `never rewinds`: it ends by a time-out.
    (
        "scenarios/postgres-failover/doubt",
        Some(&["--only=misleads the guard and looks at nobody else", "--only=names no process"]),
    ),
    ("scenarios/redis-failover/doubt", Some(&[])),
];

/// Why a command stopped.
struct Stopped(String);

type Done = Result<(), Stopped>;

fn main() -> ExitCode {
    let args: Vec<String> = env::args().skip(1).collect();
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("xtask is in the workspace");
    if let Err(error) = env::set_current_dir(root) {
        eprintln!("xtask: cannot go to {}: {error}", root.display());
        return ExitCode::FAILURE;
    }
    // Chaos has more to say of itself.
    let wants_help = args.iter().any(|arg| matches!(arg.as_str(), "--help" | "-h" | "help"));
    if wants_help && args.first().is_none_or(|command| command != "chaos") {
        print!("{HELP}");
        return ExitCode::SUCCESS;
    }
    let done = match args.first().map(String::as_str) {
        Some("verify") => verify(),
        Some("fix") => fix(),
        Some("test") => test(&args[1..]),
        Some("dist") => dist(),
        Some("bench") => bench(&args[1..]),
        Some("mutants") => mutants(args.get(1).map_or("3000", String::as_str)),
        Some("chaos") => chaos(&args[1..].iter().map(String::as_str).collect::<Vec<_>>()),
        Some("soak") => soak(args.get(1).map_or("10", String::as_str)),
        Some(_) | None => Err(Stopped(HELP.to_owned())),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(Stopped(why)) => {
            eprintln!("xtask: {why}");
            ExitCode::FAILURE
        }
    }
}

fn verify() -> Done {
    cargo(&["fmt", "--all", "--check"])?;
    lint()?;
    run(
        "cargo",
        &with_features(&["doc", "--workspace", "--no-deps", "--locked", "--quiet"], &[]),
        &[("RUSTDOCFLAGS", "-D warnings")],
    )?;
    if !is_there("cargo-deny") {
        eprintln!("xtask: cargo-deny is not installed: licences and sources were not checked");
        return Ok(());
    }
    cargo(&["deny", "check", "licenses", "bans", "sources"])
}

fn fix() -> Done {
    cargo(&["fmt", "--all"])?;
    let clippy = ["clippy", "--workspace", "--all-targets", "--fix", "--allow-dirty", "--allow-staged"];
    cargo(&with_features(&clippy, &[]))
}

fn lint() -> Done {
    let clippy = ["clippy", "--workspace", "--all-targets", "--locked"];
    cargo(&with_features(&clippy, &["--", "-D", "warnings"]))
}

/// A command of cargo's with all that is built, and arguments after that.
fn with_features<'a>(command: &[&'a str], after: &[&'a str]) -> Vec<&'a str> {
    [command, &FEATURES, after].concat()
}

/// All tests, in one build. The runner comes last, so that its closing line is the last one.
fn test(args: &[String]) -> Done {
    install(&[&BUILD_PACKAGES[..], &PACKAGES].concat())?;
    cargo(&["fmt", "--all", "--check"])?;
    lint()?;
    // A build without the features is promised too. What it says of itself is the one thing that only it does.
    cargo(&["test", "--locked", "--package", "lockstep", "--test", "cli_offline", "without_etcd"])?;
    // What the runner will run, so that there is one build; the program itself is part of it.
    cargo(&with_features(&["test", "--workspace", "--locked", "--no-run"], &[]))?;
    run("python3", &["-m", "unittest", "discover", "--quiet", "handlers/tests"], &[])?;
    for (scenario, cases) in SCENARIOS {
        run(scenario, &[cases, &["--runs", "1", "--lockstep", "target/debug/lockstep"][..]].concat(), &[])?;
    }
    for (doubt, bugs) in DOUBTS {
        if let Some(bugs) = bugs {
            run(doubt, &[bugs, &["--lockstep", "target/debug/lockstep"][..]].concat(), &[])?;
        }
    }
    if is_root() && has_namespaces() {
        CHAOS_TESTS.into_iter().try_for_each(chaos)?;
    } else {
        eprintln!("xtask: chaos on real processes needs root and namespaces of its own: IT WAS NOT MADE");
    }
    let args: Vec<&str> = args.iter().map(String::as_str).collect();
    if is_there("cargo-nextest") {
        return cargo(&with_features(
            &["nextest", "run", "--workspace", "--locked", "--no-fail-fast"],
            &args,
        ));
    }
    eprintln!("xtask: cargo-nextest is not installed: using cargo's own runner");
    cargo(&with_features(&["test", "--workspace", "--locked", "--no-fail-fast"], &args))
}

/// What is shipped.
fn dist() -> Done {
    install(&BUILD_PACKAGES)?;
    cargo(&with_features(&["build", "--profile", "dist", "--locked", "--package", "lockstep"], &[]))
}

/// With `etcd` first, the stores side by side; with `--release`, a build that takes half the time and is a twentieth slower.
fn bench(args: &[String]) -> Done {
    const RELEASE: &str = "--release";
    let (release, args): (Vec<&str>, Vec<&str>) =
        args.iter().map(String::as_str).partition(|arg| *arg == RELEASE);
    let profile: &[&str] = if release.is_empty() { &[] } else { &["--profile", "release"] };
    let is_etcd = args.first() == Some(&"etcd");
    if is_etcd {
        install(&[&BUILD_PACKAGES[..], &[ETCD]].concat())?;
    }
    let features: &[&str] = if is_etcd { &FEATURES } else { &[] };
    let bench = ["bench", "--locked", "--package", "lockstep", "--bench", "lockstep"];
    cargo(&[&bench[..], profile, features, &["--"], &args].concat())
}

/// A checker that was never seen to fail counts as absent: each deliberate fault has to be caught.
fn mutants(seeds: &str) -> Done {
    let build =
        ["build", "--release", "--locked", "--package", "lockstep-sim", "--target-dir", "target/mutants"];
    run("cargo", &build, &[("RUSTFLAGS", "--cfg lockstep_mutants")])?;
    let hunt = Command::new("target/mutants/release/lockstep-sim")
        .args(["mutants", "--seeds", seeds])
        .stdout(Stdio::piped())
        .spawn();
    let mut hunt = hunt.map_err(|error| Stopped(format!("cannot run the simulator: {error}")))?;
    let mut lines = String::new();
    for line in BufReader::new(hunt.stdout.take().expect("it is piped")).lines().map_while(Result::ok) {
        println!("{line}");
        lines.push_str(&line);
        lines.push('\n');
    }
    let ended = hunt.wait().map_err(|error| Stopped(format!("cannot wait for the simulator: {error}")))?;
    fs::write(MUTANTS, &lines).map_err(|error| Stopped(format!("cannot write {MUTANTS}: {error}")))?;
    if ended.success() {
        Ok(())
    } else {
        Err(Stopped("a mutant survived: close the hole in the checks".to_owned()))
    }
}

/// Faults on real processes, in a sandbox of its own. The builds that are tried are the ones that the tests use.
fn chaos(args: &[&str]) -> Done {
    install(&[&BUILD_PACKAGES[..], &CHAOS_PACKAGES].concat())?;
    let build = ["build", "--locked", "--package", "lockstep", "--package", "lockstep-chaos"];
    cargo(&with_features(&build, &[]))?;
    run("target/debug/lockstep-chaos", args, &[])
}

fn soak(runs: &str) -> Done {
    install(&[&BUILD_PACKAGES[..], &PACKAGES].concat())?;
    cargo(&with_features(&["build", "--release", "--locked", "--package", "lockstep"], &[]))?;
    for (scenario, _) in SCENARIOS {
        run(scenario, &["--all", "--runs", runs, "--lockstep", "target/release/lockstep"], &[])?;
    }
    for (doubt, _) in DOUBTS {
        run(doubt, &["--lockstep", "target/release/lockstep"], &[])?;
    }
    Ok(())
}

/// Installs Debian packages that are needed and that this machine lacks.
fn install(packages: &[(&str, &'static str)]) -> Done {
    let missing: Vec<&str> =
        packages.iter().filter(|(program, _)| !is_there(program)).map(|(_, package)| *package).collect();
    if missing.is_empty() {
        return Ok(());
    }
    let wanted = missing.join(" ");
    if !is_root() || !is_there("apt-get") {
        return Err(Stopped(format!("{wanted} is missing; on Debian: sudo apt-get install {wanted}")));
    }
    let quiet = [("DEBIAN_FRONTEND", "noninteractive")];
    run("apt-get", &["update", "--quiet"], &quiet)?;
    run(
        "apt-get",
        &[&["install", "--yes", "--quiet", "--no-install-recommends"], &missing[..]].concat(),
        &quiet,
    )
}

/// Whether this machine lets root make networks and mounts of its own: not inside a chroot, and not in every container.
fn has_namespaces() -> bool {
    let own = ["--mount", "--net", "--pid", "--fork", "true"];
    let probe = Command::new("unshare").args(own).stderr(Stdio::null()).status();
    probe.is_ok_and(|status| status.success())
}

fn is_root() -> bool {
    Command::new("id").arg("-u").output().is_ok_and(|id| id.stdout == b"0\n")
}

/// Whether a program is on the path. Servers are in sbin, which an ordinary user's path may lack.
fn is_there(program: &str) -> bool {
    let path = env::var_os("PATH").unwrap_or_default();
    let sbin = ["/usr/sbin", "/sbin"].map(Into::into);
    env::split_paths(&path).chain(sbin).any(|dir| dir.join(program).is_file())
}

fn cargo(args: &[&str]) -> Done {
    run("cargo", args, &[])
}

fn run(program: &str, args: &[&str], vars: &[(&str, &str)]) -> Done {
    let shown = format!("{program} {}", args.join(" "));
    eprintln!("$ {shown}");
    match Command::new(program).args(args).envs(vars.iter().copied()).status() {
        Ok(status) if status.success() => Ok(()),
        Ok(status) => Err(Stopped(format!("`{shown}` failed: {status}"))),
        Err(error) => Err(Stopped(format!("cannot run `{shown}`: {error}"))),
    }
}
