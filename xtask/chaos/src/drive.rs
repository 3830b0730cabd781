//! One run, from the first process to the verdict.

use crate::clock::Stamp;
use crate::command::{self, run_args};
use crate::etcd::{self, Observed};
use crate::fault::{Active, Kind, Striker};
use crate::history::{Evidence, Struck, host_of, number, text};
use crate::member::{Defect, Line};
use crate::network::{self, Layout, layout};
use crate::random::Random;
use crate::reader::{self, Shared};
use crate::report::{self, Totals};
use crate::workload::{self, GROUPS, LEASED};
use crate::world::{EXCUSED, HOSTS, PROXIED, World};
use crate::{
    BROKEN, CANNOT_RUN, INVALID, Options, check, host,
    http::{self, Ask},
    journal, member,
};
use lockstep_core::cluster::Cluster;
use serde_json::{Value, json};
use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io;
use std::path::Path;
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

/// Inside the sandbox; nothing is here but what it makes.
const DIR: &str = "/run/chaos";
/// How many faults lie on top of each other.
const ACTIVE_MAX: usize = 3;
/// In which everything has to have resolved, first with one host gone, then with all.
const RESOLVE: Duration = Duration::from_secs(120);
/// How much longer a run may take for kinds that have not bitten yet.
const EXTRA: Duration = Duration::from_secs(90);
/// In a run of a few minutes a fault lasts for no longer.
const LONGEST_MS: (u64, u64) = (5000, 30_000);
/// How often everything that is known so far is judged.
const JUDGE_EVERY: Duration = Duration::from_secs(20);
const OPERATORS: u64 = 3;
/// How long what is made to happen in every run may take.
const SCENE: Duration = Duration::from_secs(15);
/// The group of which a member comes back above its goal. More of it may serve at once: two are not too many.
const RETURNING: &str = "pool";
/// How long nothing has been wrong before clocks jump, and how long they stay there.
const QUIET: Duration = Duration::from_secs(7);
const JUMP: Duration = Duration::from_secs(3);

/// Runs it and says how it went.
pub(crate) fn run(options: &Options) -> ExitCode {
    let seed = options.seed.unwrap_or_else(|| Stamp::now().0 % 1_000_000);
    network::set_layout(options.servers);
    let servers = layout().servers().len();
    println!("chaos: seed {seed}, {} minutes, servers: {servers}", options.minutes);
    let began = Instant::now();
    match drive(options, seed) {
        Ok((evidence, totals)) => finish(options, seed, &evidence, &totals, began.elapsed()),
        Err(error) => {
            eprintln!("chaos: {error}");
            keep(options, seed, None);
            ExitCode::from(CANNOT_RUN)
        }
    }
}

fn finish(options: &Options, seed: u64, evidence: &Evidence, totals: &Totals, took: Duration) -> ExitCode {
    let broken = report::print(evidence, totals, took);
    if let Some(defect) = options.defect {
        let was_found = broken.contains_key(defect.found_by());
        let found = if was_found { "found" } else { "NOT FOUND" };
        println!("chaos: what was done wrong on purpose was {found} by {}", defect.found_by());
        return ExitCode::from(if was_found { 0 } else { BROKEN });
    }
    if !broken.is_empty() {
        let broken: usize = broken.values().sum();
        println!(
            "chaos: {broken} VIOLATIONS; again with: cargo xtask chaos --servers {} --minutes {} --seed {seed}",
            layout().servers().len(),
            options.minutes
        );
        keep(options, seed, Some(evidence));
        return ExitCode::from(BROKEN);
    }
    let lacking = report::lacking(evidence, totals, options.minutes);
    if lacking.is_empty() {
        println!("chaos: nothing is broken");
        return ExitCode::SUCCESS;
    }
    println!("chaos: NOT VALID: {}", lacking.join("; "));
    keep(options, seed, Some(evidence));
    ExitCode::from(INVALID)
}

/// Copies what there is out of the sandbox.
fn keep(options: &Options, seed: u64, evidence: Option<&Evidence>) {
    let to = options.keep.join(format!("seed-{seed}"));
    let kept = (|| {
        // An earlier run of this seed.
        let _ = fs::remove_dir_all(&to);
        fs::create_dir_all(&to)?;
        if let Some(evidence) = evidence {
            report::write(evidence, &to)?;
        }
        for entry in fs::read_dir(DIR)? {
            let path = entry?.path();
            if path.extension().is_none_or(|extension| extension != "img")
                && let Err(error) = run_args(&["cp", "-a", &path.to_string_lossy(), &to.to_string_lossy()])
            {
                eprintln!("chaos: {error}");
            }
        }
        io::Result::Ok(())
    })();
    match kept {
        Ok(()) => println!("chaos: logs, data and all that was seen are in {}", to.display()),
        Err(error) => eprintln!("chaos: cannot keep everything in {}: {error}", to.display()),
    }
}

fn drive(options: &Options, seed: u64) -> io::Result<(Evidence, Totals)> {
    // Over what is there: in this sandbox only.
    command::run("mount -t tmpfs tmpfs /run")?;
    fs::create_dir_all(DIR)?;
    if let Some(defect) = options.defect
        && !defect.is_for(layout())
    {
        return Err(io::Error::other("this defect needs other servers: see --servers"));
    }
    let mut random = Random::new(seed);
    let spared = (*random.pick(&HOSTS[..4])).to_owned();
    let history = Shared::default();
    let lockstep = fs::canonicalize(&options.lockstep)?;
    let mut world =
        World::make(Path::new(DIR), &lockstep, &history, options.defect, options.etcd_default_timing)?;
    let observed = Observed::default();
    if layout() == Layout::Three {
        start_etcd(&mut world)?;
        etcd::observe(&observed);
    }
    start_cluster(&mut world)?;
    reader::start(&history, options.defect);
    watch_stalls(&history);
    let (active, bitten) = Default::default();
    let defect = options.defect;
    let mut chaos = Chaos { world, history, observed, random, spared, active, bitten, defect };
    let began = Instant::now();
    chaos.fail_over()?;
    let stop = Arc::new(AtomicBool::new(false));
    let operators: Vec<_> = (0..OPERATORS)
        .map(|number| workload::start(&chaos.history, seed * 10 + number, stop.clone()))
        .collect();
    let was_made = chaos.make_faults(options, began);
    stop.store(true, Ordering::Relaxed);
    for operator in operators {
        operator.join().map_err(|_| io::Error::other("an operator panicked"))?;
    }
    was_made?;
    chaos.resolve()?;
    chaos.judge_at_the_end()
}

fn start_etcd(world: &mut World) -> io::Result<()> {
    for (member, _) in layout().members() {
        world.start(member)?;
    }
    wait("etcd to have a leader", world, etcd::is_whole)
}

/// Brings everything else up, and an image of one agent's disk aside.
fn start_cluster(world: &mut World) -> io::Result<()> {
    for (server, _) in layout().servers() {
        world.start(server)?;
    }
    wait("a server to be the active one", world, || World::active().is_some())?;
    wait("all servers to be ready", world, || {
        let is_ready = |server| http::ask_one(server, Ask::get("/readyz", Duration::from_secs(1)));
        layout().servers().iter().all(|server| is_ready(*server).is_some_and(|it| it.status == 200))
    })?;
    let spec = workload::spec();
    if let Some((status, answer)) = http::ask("PUT", "/v1/spec", Some(&spec))
        && status != 200
    {
        return Err(io::Error::other(format!("the spec is refused: {answer}")));
    }
    for host in HOSTS {
        world.start(host)?;
    }
    let count: usize = GROUPS.iter().map(|group| group.hosts.len()).sum();
    wait("all members to be known", world, || {
        let list = http::get("/v1/members").unwrap_or_default();
        let items = list["items"].as_array().cloned().unwrap_or_default();
        items.len() == count && items.iter().all(|item| item["goal"].is_string())
    })?;
    world.kill(EXCUSED);
    World::copy(&world.agent_data(EXCUSED), &world.dir.join(format!("{EXCUSED}.image")))?;
    world.start(EXCUSED)
}

fn wait(what: &str, world: &mut World, mut is_so: impl FnMut() -> bool) -> io::Result<()> {
    let began = Instant::now();
    while !is_so() {
        if began.elapsed() > Duration::from_secs(60) {
            return Err(io::Error::other(format!("waited for {what} in vain")));
        }
        world.tend()?;
        std::thread::sleep(Duration::from_millis(50));
    }
    Ok(())
}

/// Notes when this program does not run: the machine has too much to do, and so has all that is tried here.
fn watch_stalls(history: &Shared) {
    let history = history.clone();
    std::thread::spawn(move || {
        loop {
            let before = Stamp::now();
            std::thread::sleep(Duration::from_millis(100));
            let ms = Stamp::now().ms_since(before).saturating_sub(100);
            if ms > 300 {
                history.lock().stalls.push((before, ms));
            }
        }
    });
}

struct Chaos {
    world: World,
    history: Shared,
    observed: Observed,
    random: Random,
    spared: String,
    active: Vec<Active>,
    /// How often each kind was made, and has bitten.
    bitten: BTreeMap<Kind, (u64, u64)>,
    defect: Option<Defect>,
}

impl Chaos {
    /// Before anything else is wrong, so that it is in every run: an agent dies on whose host somebody serves by its lease,
    /// whose renewals pass the proxy, and another one takes that place.
    fn fail_over(&mut self) -> io::Result<()> {
        let hosts = workload::group(LEASED).hosts.iter();
        let mut proxied = hosts.filter(|host| PROXIED.contains(host) && **host != self.spared);
        let host = *proxied.next().expect("there are two such hosts");
        member::set_calm(&self.world.software(), true)?;
        self.ask(&json!({ "targets": [format!("{LEASED}@{host}=primary")], "request_id": "first" }));
        let is_guarded = || {
            items("/v1/members").iter().any(|member| {
                let names = (text(member, "group"), text(member, "host"), text(member, "actual"));
                let guarded = member["guarded"].as_array();
                names == (LEASED, host, "primary")
                    && guarded.is_some_and(|states| states.contains(&"primary".into()))
            })
        };
        if self.tend_until(is_guarded)? {
            let from = self.kill_agent(host);
            let history = self.history.clone();
            let has_ended = || {
                let history = history.lock();
                history.events.values().any(|event| event.text("by") == "lease" && event.at >= from)
            };
            self.tend_until(has_ended)?;
            self.bring_back(host)?;
        }
        member::set_calm(&self.world.software(), false)
    }

    /// All of a host dies, and somebody who has seen that says so. What was to run there is moved elsewhere; and then it
    /// boots, and starts its software as it was.
    fn come_back_above_goal(&mut self) -> io::Result<()> {
        let group = workload::group(RETURNING);
        let mut hosts = group.hosts.iter().filter(|host| **host != EXCUSED && **host != self.spared);
        let host = *hosts.next().expect("there are two such hosts");
        let member = format!("{RETURNING}@{host}");
        http::ask("POST", &format!("/v1/hosts/{host}/undrain"), Some(&json!({})));
        self.ask(&json!({ "targets": [format!("{member}=online")], "request_id": "stays" }));
        let is_shown = |state: &str| {
            items("/v1/members").iter().any(|member| {
                (text(member, "group"), text(member, "host")) == (RETURNING, host)
                    && member["transition"].is_null()
                    && (&member["actual"], &member["goal"]) == (&state.into(), &state.into())
            })
        };
        self.tend_until(|| is_shown("online"))?;
        self.kill_agent(host);
        host::end(host)?;
        let (path, word) =
            (format!("/v1/hosts/{host}/fence"), json!({ "confirm": true, "reason": "it is off" }));
        self.tend_until(|| http::ask("POST", &path, Some(&word)).is_some_and(|(status, _)| status == 200))?;
        self.ask(&json!({ "targets": [format!("{member}=offline")], "request_id": "goes" }));
        self.tend_until(|| is_shown("offline"))?;
        member::boot(&self.world.software(), &member, "online")?;
        self.bring_back(host)
    }

    /// An operator's request.
    fn ask(&self, body: &Value) {
        if let Some((202, answer)) = http::ask("POST", "/v1/transitions", Some(body)) {
            self.history.lock().transition(&answer, "request");
        }
    }

    /// From when on it may be dead.
    fn kill_agent(&mut self, host: &str) -> Stamp {
        let (kind, from) = (Kind::AgentKilled.name(), Stamp::now());
        self.world.kill(host);
        let (target, to) = (host.to_owned(), None);
        self.history.lock().struck.push(Struck { kind, target, from, to, has_bitten: true, turns: 1 });
        from
    }

    /// Starts again what was killed outside of the faults.
    fn bring_back(&mut self, name: &str) -> io::Result<()> {
        self.world.start(name)?;
        let mut history = self.history.lock();
        for struck in history.struck.iter_mut().filter(|it| it.target == name && it.to.is_none()) {
            struck.to = Some(Stamp::now());
        }
        Ok(())
    }

    /// Waits until something is so; says whether it is in time. Where it is not, checks and figures tell what that means.
    fn tend_until(&mut self, mut is_so: impl FnMut() -> bool) -> io::Result<bool> {
        let began = Instant::now();
        while !is_so() {
            if began.elapsed() > SCENE {
                return Ok(false);
            }
            self.tend_for(Duration::from_millis(50))?;
        }
        Ok(true)
    }

    fn make_faults(&mut self, options: &Options, began: Instant) -> io::Result<()> {
        let lasts = Duration::from_secs_f64(options.minutes * 60.0);
        let mut judged = Instant::now();
        let is_wanted =
            |kind: &Kind| options.only.is_empty() || options.only.iter().any(|only| only == kind.name());
        let kinds = Kind::ALL.into_iter().filter(|kind| kind.is_for(layout()));
        let mut kinds: Vec<Kind> = kinds.filter(is_wanted).collect();
        if kinds.is_empty() {
            return Err(io::Error::other("none of these kinds of faults can be made with these servers"));
        }
        for kind in &kinds {
            self.bitten.insert(*kind, (0, 0));
        }
        // The slowest one comes first.
        self.random.shuffle(&mut kinds[1..]);
        let mut striker = Striker {
            random: Random::new(self.random.next()),
            spared: self.spared.clone(),
            history: self.history.clone(),
            defect: options.defect,
            longest_ms: if options.minutes > 5.0 { LONGEST_MS.1 } else { LONGEST_MS.0 },
        };
        let mut next = Instant::now() + Duration::from_secs(2);
        loop {
            self.world.tend()?;
            self.mend(|active| active.until <= Instant::now())?;
            let have_all_bitten = self.bitten.values().all(|(_, bites)| *bites > 0);
            if began.elapsed() > lasts && (have_all_bitten || began.elapsed() > lasts + EXTRA) {
                return Ok(());
            }
            if judged.elapsed() > JUDGE_EVERY {
                judged = Instant::now();
                if options.defect.is_none() && self.is_broken()? {
                    return Ok(());
                }
            }
            if Instant::now() >= next && self.active.len() < ACTIVE_MAX {
                self.strike(&mut striker, &kinds)?;
                next = Instant::now() + Duration::from_millis(self.random.within(200, 1800));
            }
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    /// Makes one more fault: mostly of a kind that has not bitten yet, if there is one.
    fn strike(&mut self, striker: &mut Striker, kinds: &[Kind]) -> io::Result<()> {
        let mut kinds: Vec<Kind> = kinds.to_vec();
        let slowest = kinds[0];
        self.random.shuffle(&mut kinds);
        if self.random.percent(75) {
            kinds.sort_by_key(|kind| {
                let (made, bites) = self.bitten[kind];
                (bites > 0, *kind != slowest, if bites > 0 { 0 } else { made })
            });
        }
        let active_server = match layout() {
            Layout::One => Some("server"),
            Layout::Three => World::active(),
        };
        for kind in kinds {
            if self.active.iter().any(|active| active.kind == kind) {
                continue;
            }
            let Some(active) = striker.strike(&mut self.world, kind, active_server, &self.active)? else {
                // Something else is at its target.
                continue;
            };
            self.bitten.entry(kind).or_default().0 += 1;
            self.active.push(active);
            return Ok(());
        }
        Ok(())
    }

    fn mend(&mut self, is_due: impl Fn(&Active) -> bool) -> io::Result<()> {
        let (due, rest): (Vec<_>, Vec<_>) = self.active.drain(..).partition(is_due);
        self.active = rest;
        for active in due {
            let (kind, from, target) = (active.kind, active.from, active.target.clone());
            let (has_bitten, turns) = active.mend(&mut self.world)?;
            self.bitten.entry(kind).or_default().1 += u64::from(has_bitten);
            let mut history = self.history.lock();
            let made = history.struck.iter_mut();
            let struck = made
                .rev()
                .find(|struck| struck.kind == kind.name() && struck.from == from && struck.target == target);
            let struck = struck.expect("each fault that is made is in the history");
            (struck.to, struck.has_bitten, struck.turns) = (Some(Stamp::now()), has_bitten, turns);
        }
        Ok(())
    }

    /// Whether anything is broken by what is known so far.
    fn is_broken(&self) -> io::Result<bool> {
        let evidence = self.gather(false)?;
        Ok(check::all().any(|(_, check)| !check(&evidence).broken.is_empty()))
    }

    /// Everything is mended but for one host; then that too. Each time all has to resolve.
    fn resolve(&mut self) -> io::Result<()> {
        self.mend(|_| true)?;
        let broken = HOSTS
            .into_iter()
            .rev()
            .find(|host| *host != self.spared && *host != EXCUSED)
            .expect("there are five");
        // With several servers one of them stays away too, and so does a member of etcd.
        let mut away = vec![broken];
        if layout() == Layout::Three {
            away.extend([self.random.pick(&["s1", "s2", "s3"]), self.random.pick(&["e1", "e2", "e3"])]);
        }
        for name in World::all() {
            match away.contains(&name) {
                true => _ = self.world.kill(name),
                false => self.world.want(name, true),
            }
        }
        member::set_calm(&self.world.software(), true)?;
        let healed = Stamp::now();
        {
            let mut history = self.history.lock();
            history.healed = Some(healed);
            for name in &away {
                let kind = if *name == broken { "agent-killed" } else { "stays-away" };
                let (target, from) = ((*name).to_owned(), healed);
                history.struck.push(Struck { kind, target, from, to: None, has_bitten: true, turns: 1 });
            }
        }
        let others: Vec<&str> = HOSTS.into_iter().filter(|host| *host != broken).collect();
        let mut resolved = self.wait_resolved(&others, "with one host gone");
        for name in &away {
            self.world.start(name)?;
        }
        for struck in self.history.lock().struck.iter_mut().filter(|struck| struck.to.is_none()) {
            struck.to = Some(Stamp::now());
        }
        if resolved.is_ok() {
            resolved = self.wait_resolved(&HOSTS, "with all hosts");
        }
        if resolved.is_ok() {
            self.come_back_above_goal()?;
            resolved = self.wait_resolved(&HOSTS, "after one came back above its goal");
        }
        if resolved.is_ok() {
            self.jump_in_quiet()?;
        }
        // And it goes on: each group can be moved, or it is said why not.
        for (number, target) in
            ["web=down", "db=down", "batch=down", "pool=up", "audit=up"].into_iter().enumerate()
        {
            self.ask(&json!({ "targets": [target], "request_id": format!("last-{number}") }));
        }
        if resolved.is_ok() {
            resolved = self.wait_resolved(&HOSTS, "after the last requests");
        }
        self.history.lock().resolved = Some(resolved);
        Ok(())
    }

    /// All wall clocks jump, forward and two hours back, while nothing else is wrong: nobody may notice.
    fn jump_in_quiet(&mut self) -> io::Result<()> {
        self.tend_for(QUIET)?;
        for (kind, seconds) in [(Kind::ServerClockForward, 3600), (Kind::ServerClockBack, -3600)] {
            let from = Stamp::now();
            for name in World::clocked() {
                self.world.set_clock(name, seconds)?;
            }
            self.tend_for(JUMP)?;
            let (kind, target) = (kind.name(), "all/clock".to_owned());
            let to = Some(Stamp::now());
            self.history.lock().struck.push(Struck { kind, target, from, to, has_bitten: true, turns: 1 });
        }
        Ok(())
    }

    fn tend_for(&mut self, time: Duration) -> io::Result<()> {
        let began = Instant::now();
        while began.elapsed() < time {
            self.world.tend()?;
            std::thread::sleep(Duration::from_millis(50));
        }
        Ok(())
    }

    /// Waits until every transition has an outcome and these hosts and their members are as they are to be.
    fn wait_resolved(&mut self, hosts: &[&str], when: &str) -> Result<Stamp, String> {
        let began = Instant::now();
        loop {
            self.world.tend().map_err(|error| error.to_string())?;
            match unresolved(hosts) {
                None => return Ok(Stamp::now()),
                Some(why) if began.elapsed() > RESOLVE => return Err(format!("{when}: {why}")),
                Some(_) => std::thread::sleep(Duration::from_millis(200)),
            }
        }
    }

    /// What all have seen and what is on disks, so far. What was seen is taken first: what it rests on is on disk.
    fn gather(&self, is_final: bool) -> io::Result<Evidence> {
        let mut history = self.history.lock().clone();
        let (calls, runs) = member::read(&self.world.software())?;
        history.struck.extend(fenced(&calls));
        let mut limited = Vec::new();
        for group in GROUPS {
            limited.extend(group.limited.map(|state| (group.name.to_owned(), state.to_owned())));
        }
        Ok(Evidence {
            history,
            calls,
            runs,
            is_final,
            spared: self.spared.clone(),
            excused: EXCUSED.to_owned(),
            limited,
            leased: LEASED.to_owned(),
            etcd: (layout() == Layout::Three).then(|| self.observed.lock().clone()),
            ..Evidence::default()
        })
    }

    fn judge_at_the_end(mut self) -> io::Result<(Evidence, Totals)> {
        // Reports and notices may be under way for some time yet, and so may readers.
        let began = Instant::now();
        let (mut members, mut hosts, mut settings) = (Vec::new(), Vec::new(), BTreeMap::new());
        while began.elapsed() < Duration::from_secs(20) {
            self.world.tend()?;
            std::thread::sleep(Duration::from_secs(1));
            reader::look_at_transitions(&self.history);
            (members, hosts) = (items("/v1/members"), items("/v1/hosts"));
            settings = items("/v1/groups")
                .iter()
                .map(|group| (text(group, "name").to_owned(), texts(&group["settings"])))
                .collect();
            let mut evidence = self.gather(true)?;
            evidence.members.clone_from(&members);
            evidence.hosts.clone_from(&hosts);
            evidence.taken = self.taken()?;
            if check::all().all(|(_, check)| check(&evidence).broken.is_empty()) && self.has_read_all() {
                break;
            }
        }
        // All of it once more, from the first event that is kept: it has to be the same.
        let since = self.history.lock().events.keys().next().map_or(0, |first| first.saturating_sub(1));
        let shared = self.history.clone();
        for server in layout().servers() {
            let read = http::events(*server, since, false, |id, data| shared.lock().event(id, data));
            if !matches!(read, Ok(200 | 410)) {
                let why = format!("the events of {} cannot be read again: {read:?}", server.0);
                self.history.lock().broken.push((1, why));
            }
        }
        for name in World::clocked() {
            self.world.kill(name);
        }
        let stored = self.read_store();
        let mut evidence = self.gather(true)?;
        (evidence.members, evidence.hosts, evidence.settings) = (members, hosts, settings);
        evidence.taken = self.taken()?;
        match stored {
            Ok(cluster) => evidence.store = Some(cluster),
            Err(why) => {
                evidence.history.broken.push((22, format!("the server's journal cannot be read: {why}")))
            }
        }
        for host in HOSTS {
            match journal::agent(&self.world.agent_data(host)) {
                Ok(records) => _ = evidence.journals.insert(host.to_owned(), records),
                Err(why) => {
                    evidence.history.broken.push((22, format!("{host}'s journal cannot be read: {why}")))
                }
            }
        }
        let totals = Totals {
            bitten: self.bitten.iter().map(|(kind, counts)| (kind.name(), *counts)).collect(),
            ended: self.world.ended(),
        };
        Ok((evidence, totals))
    }

    /// What the store holds, now that nobody writes to it any more.
    fn read_store(&self) -> Result<Cluster, String> {
        if layout() == Layout::One {
            return journal::server(&self.world.server_data());
        }
        // The observer reads what was written last, too.
        let began = Instant::now();
        loop {
            let stored = etcd::journal();
            let has_seen = self.observed.lock().cluster.revision;
            match stored {
                Ok((cluster, _)) if cluster.revision == has_seen => break,
                Ok(_) | Err(_) if began.elapsed() < Duration::from_secs(10) => {
                    std::thread::sleep(Duration::from_millis(100));
                }
                Ok((cluster, _)) => {
                    return Err(format!("it ends at {}, and {has_seen} was there", cluster.revision));
                }
                Err(why) => return Err(why),
            }
        }
        let seen = self.observed.lock().clone();
        let last = self.history.lock().accepted.iter().filter_map(|it| number(&it.transition)).max();
        match (self.defect, last) {
            (Some(Defect::UnfencedWrite), _) if !etcd::write_unfenced(&seen) => {
                return Err("nothing can be written to etcd".to_owned());
            }
            (Some(Defect::LostWrites), Some(last)) => {
                let from = seen.batches.range(..=last).next_back().map_or(1, |(first, _)| *first);
                if !etcd::lose_from(from) {
                    return Err("nothing can be deleted in etcd".to_owned());
                }
            }
            (Some(_), _) | (None, _) => {}
        }
        let (cluster, batches) = etcd::journal()?;
        let mut history = self.history.lock();
        for (first, batch) in &batches {
            if seen.batches.get(first) != Some(batch) {
                let why = format!("what was {:?} is {batch:?} at the end", seen.batches.get(first));
                history.broken.push((11, why));
            }
        }
        if cluster.revision == seen.cluster.revision && cluster != seen.cluster {
            let why = "the snapshot and what follows it do not come to what all records come to";
            history.broken.push((11, why.to_owned()));
        }
        Ok(cluster)
    }

    /// Whether every transition that is known is known whole.
    fn has_read_all(&self) -> bool {
        let history = self.history.lock();
        let ended: BTreeSet<&str> = history
            .told
            .iter()
            .filter(|told| told.what == "outcome")
            .map(|told| told.transition.as_str())
            .collect();
        ended.iter().all(|id| history.transitions.contains_key(*id))
    }

    /// The settings that each member's software has taken.
    fn taken(&self) -> io::Result<BTreeMap<String, BTreeMap<String, String>>> {
        let mut taken = BTreeMap::new();
        for entry in fs::read_dir(self.world.software())? {
            let path = entry?.path();
            if path.extension().is_some_and(|extension| extension == "settings") {
                let member = path.file_stem().unwrap_or_default().to_string_lossy().into_owned();
                taken.insert(member, serde_json::from_slice(&fs::read(path)?)?);
            }
        }
        Ok(taken)
    }
}

/// Handlers that make sure of a host do to it what a fault does, whenever a repair has asked for that.
fn fenced(calls: &[Line]) -> impl Iterator<Item = Struck> {
    let fences = calls.iter().filter(|line| line.phase == member::FENCE);
    fences.map(|line| Struck {
        kind: Kind::HostFenced.name(),
        target: host_of(&line.member).to_owned(),
        from: line.at,
        to: Some(line.at),
        has_bitten: line.code == Some(0),
        turns: 1,
    })
}

fn items(path: &str) -> Vec<Value> {
    http::get(path).and_then(|list| list["items"].as_array().cloned()).unwrap_or_default()
}

fn texts(object: &Value) -> BTreeMap<String, String> {
    let fields = object.as_object().into_iter().flatten();
    fields.map(|(key, value)| (key.clone(), value.to_string())).collect()
}

/// What has not resolved yet.
fn unresolved(hosts: &[&str]) -> Option<String> {
    let Some(list) = http::get("/v1/transitions") else {
        return Some("the server does not answer".to_owned());
    };
    let open = list["items"].as_array().into_iter().flatten().find(|item| item["outcome"].is_null());
    if let Some(open) = open {
        return Some(format!(
            "{} is in {}, asked for {}",
            text(open, "id"),
            text(open, "phase"),
            open["targets"]
        ));
    }
    let away = items("/v1/hosts")
        .into_iter()
        .find(|host| hosts.contains(&text(host, "name")) && host["liveness"] != "alive");
    if let Some(away) = away {
        return Some(format!("{} is {}", text(&away, "name"), text(&away, "liveness")));
    }
    let members = items("/v1/members");
    // What could not be brought to its goal stays so, and is marked: an operator has to act. What is on its way, or
    // whose state nobody knows, is not resolved.
    let is_open = |member: &&Value| {
        hosts.contains(&text(member, "host")) && (member["mark"] == "pending" || member["actual"].is_null())
    };
    let open = members.iter().find(is_open);
    open.map(|member| {
        format!("{}@{} is {}: {member}", text(member, "group"), text(member, "host"), member["mark"])
    })
}
