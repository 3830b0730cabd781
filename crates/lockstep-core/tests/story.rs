//! Stories: scripts under `tests/data` that are played in [`World`], with what has to come of them.
//!
//! A story is a list of commands, each followed by `----` and its output. `UPDATE_EXPECT=1 cargo test` rewrites
//! the outputs: read the diff. A command lets everything happen afterwards that needs no time, unless its line
//! ends with `...`.

#![allow(clippy::unwrap_used, reason = "these are tests")]

use lockstep_core::cluster::Cluster;
use lockstep_core::engine::HostAsk;
use lockstep_core::freeze::FreezeEnd;
use lockstep_core::id::{HostName, Index, MemberId, TransitionId};
use lockstep_core::message::{Report, Role};
use lockstep_core::plan;
use lockstep_core::record::{Liveness, Record};
use lockstep_core::request::{Request, Target};
use lockstep_core::snapshot;
use lockstep_core::time::WallTime;
use lockstep_core::vote::Answer;
use lockstep_core::world::{Script, ServerId, Way, World, journal_lines};
use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write;

#[test]
fn stories() {
    let mut paths: Vec<_> = std::fs::read_dir(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/data"))
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .filter(|path| path.extension().is_some_and(|extension| extension == "txt"))
        .collect();
    paths.sort();
    assert!(!paths.is_empty(), "the stories are where they should be");
    for path in paths {
        let text = std::fs::read_to_string(&path).unwrap();
        let (played, world) = play(&text);
        assert_eq!(played, play(&text).0, "the same story twice");
        snapshots_stand_in(world.journal());
        expect_test::expect_file![path].assert_eq(&played);
    }
}

/// A snapshot taken after any record says what the records up to it say: whoever loads it goes on as they would.
fn snapshots_stand_in(journal: &[Record]) {
    let (mut told, mut loaded) = (Cluster::default(), Cluster::default());
    for (record, index) in journal.iter().zip((1..).map(Index)) {
        told.apply(index, record);
        loaded.apply(index, record);
        assert_eq!(loaded, told, "after {index}");
        loaded = snapshot::decode(&snapshot::encode(&told)).unwrap();
        assert_eq!(loaded, told, "a snapshot at {index}");
    }
}

fn play(text: &str) -> (String, World) {
    let mut world = World::new();
    let mut played = String::new();
    let mut lines = text.lines().peekable();
    while let Some(line) = lines.next() {
        writeln!(played, "{line}").unwrap();
        if line.is_empty() || line.starts_with('#') {
            continue;
        }
        let mut body = String::new();
        for line in lines.by_ref().take_while(|line| *line != "----") {
            writeln!(played, "{line}").unwrap();
            writeln!(body, "{line}").unwrap();
        }
        while lines.next_if(|line| !line.is_empty()).is_some() {}
        writeln!(played, "----").unwrap();
        for line in obey(&mut world, line, &body) {
            writeln!(played, "{line}").unwrap();
        }
    }
    (played, world)
}

fn obey(world: &mut World, line: &str, body: &str) -> Vec<String> {
    let (line, is_quiet) = match line.strip_suffix("...") {
        Some(line) => (line.trim_end(), true),
        None => (line, false),
    };
    let words: Vec<&str> = line.split_whitespace().collect();
    let mut shown = Vec::new();
    match words.as_slice() {
        ["setup", members @ ..] => {
            setup(world, body, members);
            return shown;
        }
        ["spec"] => match serde_json::from_str(body) {
            Ok(spec) => drop(world.apply(spec)),
            Err(error) => shown.push(format!("bad story: {error}")),
        },
        ["join", name, rest @ ..] => {
            let mut labels = BTreeMap::new();
            let (mut host, mut address) = (*name, None);
            for (key, value) in rest.iter().map(|word| word.split_once('=').unwrap()) {
                match key {
                    "as" => host = value,
                    "address" => address = Some(value.to_owned()),
                    key => drop(labels.insert(key.to_owned(), value.to_owned())),
                }
            }
            world.join(name, &HostName::new(host).unwrap(), labels, address);
        }
        ["label", name, labels @ ..] => {
            let labels = labels.iter().map(|word| word.split_once('=').unwrap());
            world.label(name, labels.map(|(key, value)| (key.to_owned(), value.to_owned())).collect());
        }
        ["software", member, state] => world.set_software(&member.parse().unwrap(), &state.parse().unwrap()),
        ["handler", member, phase, ..] => {
            let rest = line.split_once(&format!(" {phase} ")).unwrap().1;
            world.script(
                &member.parse().unwrap(),
                phase.parse().unwrap(),
                rest.split(';').map(script).collect(),
            );
        }
        ["run", rest @ ..] => {
            world.run(request(rest));
        }
        ["set-labels", host, labels @ ..] => {
            let labels = labels.iter().map(|word| match word.split_once('=') {
                Some((label, value)) => (label.to_owned(), Some(value.to_owned())),
                None => (word.trim_end_matches('-').to_owned(), None),
            });
            let ask = HostAsk::Label { labels: labels.collect() };
            world.ask_of_host(HostName::new(host).unwrap(), ask);
        }
        ["forget", host, rest @ ..] => {
            let ask = HostAsk::Forget { is_stopped: rest == ["stopped"] };
            world.ask_of_host(HostName::new(host).unwrap(), ask);
        }
        ["fence", host] => drop(world.ask_of_host(HostName::new(host).unwrap(), HostAsk::Fence)),
        ["fenced", host] => {
            let (principal, reason) = ("operator".to_owned(), "pulled the plug".to_owned());
            world.ask_of_host(HostName::new(host).unwrap(), HostAsk::Fenced { principal, reason });
        }
        ["resolve", member] => {
            let (member, state) = member.split_once('=').unwrap();
            world.resolve(member.parse().unwrap(), state.parse().unwrap());
        }
        ["away", ms] => drop(world.go_away(ms.parse().unwrap())),
        ["end-guard", name] => world.end_guard(name),
        ["kill-guard", name] => world.kill_guard(name),
        ["fencer", name] => world.set_fence(name),
        ["power-off", host] => world.power_off(&HostName::new(host).unwrap()),
        ["scores", scores @ ..] => {
            let scores = scores.iter().map(|word| word.split_once('=').unwrap());
            world.know_scores(&scores.map(|(id, n)| (id.parse().unwrap(), n.parse().unwrap())).collect());
        }
        ["undrain", host] => drop(world.ask_of_host(HostName::new(host).unwrap(), HostAsk::Undrain)),
        // Of which groups, until when, and after that why.
        ["freeze", rest @ ..] => {
            let why = rest.iter().position(|word| *word == "because").unwrap();
            let mut end = FreezeEnd::Never;
            let mut groups = BTreeSet::new();
            for word in &rest[..why] {
                match word.split_once('=') {
                    Some(("for", ms)) => end = FreezeEnd::After(ms.parse().unwrap()),
                    Some(("until", at)) => end = FreezeEnd::At(at.parse().unwrap()),
                    Some(_) | None => _ = groups.insert(word.parse().unwrap()),
                }
            }
            world.freeze(groups, end, rest[why + 1..].join(" "));
        }
        ["thaw", groups @ ..] => {
            world.thaw(groups.iter().map(|group| group.parse().unwrap()).collect());
        }
        // Sets the servers' wall clock.
        ["clock", at] => {
            let at: WallTime = at.parse().unwrap();
            world.jump_wall_clock(i64::try_from(at.0).unwrap() - i64::try_from(world.wall().0).unwrap());
        }
        ["abort", id] => drop(world.abort(named(world, id))),
        ["deliver"] => world.deliver(),
        ["step", count, "messages"] => {
            (0..count.parse().unwrap()).for_each(|_| _ = world.step());
            return world.take_trace();
        }
        // Until something is written that begins like this.
        ["until", ..] => {
            let until = line.strip_prefix("until ").unwrap();
            while world.step() {
                let trace = world.take_trace();
                let is_there = trace.iter().any(|line| line.contains(until));
                shown.extend(trace);
                if is_there {
                    return shown;
                }
            }
            shown.push(format!("never: {until}"));
        }
        ["advance", ms] => world.advance(ms.parse().unwrap()),
        ["kill", "server", rest @ ..] => world.kill_server(rest == ["keep-in-flight"]),
        ["start", "server"] => world.start_server(),
        ["kill", "agent", name, rest @ ..] => world.kill_agent(name, rest == ["keep-in-flight"]),
        ["start", "agent", name] => world.start_agent(name),
        ["copy", "agent", name, copy] => world.copy_agent(name, copy, world.agent_journal(name).to_vec()),
        ["pause", "server"] => world.pause_server(),
        ["resume", "server", number] => world.resume_server(ServerId(number.parse().unwrap())),
        ["kill", "agent-only", name] => world.kill_agent_only(name, false),
        ["pause", "agent", name] => world.pause(name),
        ["resume", "agent", name] => world.resume(name),
        ["cut", name] => world.cut(name),
        ["cut", name, "to-server"] => world.cut_way(name, Way::ToServer),
        ["cut", name, "to-agent"] => world.cut_way(name, Way::ToAgent),
        ["heal", name] => world.heal(name),
        ["break", name] => world.break_link(name),
        ["goodbye", name] => world.forge(name, Report::Goodbye),
        ["forge", name] => world.forge(name, serde_json::from_str(body).unwrap()),
        ["status"] => return status(world),
        ["show", id] => return show(world, named(world, id)),
        ["journal"] => return journal_lines(world.journal()),
        ["agent-journal", name] => {
            return world
                .agent_journal(name)
                .iter()
                .map(|record| serde_json::to_string(record).unwrap())
                .collect();
        }
        ["plan", targets @ ..] => return show_plan(world, targets),
        ["relations"] => return relations(world),
        _ => shown.push(format!("bad story: {line:?}")),
    }
    if !is_quiet {
        world.deliver();
    }
    shown.extend(world.take_trace());
    shown
}

/// A primary, its standby and a pooler that holds; members of a group have its name as a label.
const SHOP: &str = r#"{"cluster":"shop","groups":{
    "db":{"select":{"db":"y"},"lifecycle":"primary-standby","handler":"sim","retries":0},
    "pool":{"select":{"pool":"y"},"handler":"sim"}},
    "relations":[{"from":"pool","to":"db","kind":"requires","ask":"hold"}]}"#;

/// Starts the server, applies a spec ([`SHOP`] when none is given) and joins hosts whose software is in the
/// states that are named, all without a word.
fn setup(world: &mut World, spec: &str, members: &[&str]) {
    world.start_server();
    world.apply(serde_json::from_str(if spec.is_empty() { SHOP } else { spec }).expect("a good spec"));
    let mut hosts: BTreeMap<HostName, BTreeMap<String, String>> = BTreeMap::new();
    for (member, state) in members.iter().map(|word| word.split_once('=').unwrap()) {
        let id: MemberId = member.parse().unwrap();
        world.set_software(&id, &state.parse().unwrap());
        hosts.entry(id.host).or_default().insert(id.group.to_string(), "y".to_owned());
    }
    for (host, labels) in hosts {
        world.join(host.as_str(), &host, labels, None);
        world.deliver();
    }
    let rejected = world.take_trace().into_iter().find(|line| line.starts_with("rejected"));
    assert_eq!(rejected, None);
}

/// `yes`, `no REASON`, `again`, `hang`, `out {json}`, `state S`, `takes MS`, `partial REASON` (a no after its effect).
fn script(text: &str) -> Script {
    let text = text.trim();
    let (word, rest) = text.split_once(' ').unwrap_or((text, ""));
    let base = Script::default();
    let no = Script { answer: Answer::No, reason: Some(rest.to_owned()), has_effect: false, ..base.clone() };
    match word {
        "yes" => base,
        "no" => no,
        "partial" => Script { has_effect: true, ..no },
        "again" => Script { answer: Answer::Again, has_effect: false, reason: Some(rest.to_owned()), ..base },
        "hang" => Script { takes_ms: u64::MAX, has_effect: false, ..base },
        "out" => Script { out: serde_json::from_str(rest).unwrap(), ..base },
        "state" => Script { state: Some(rest.parse().unwrap()), ..base },
        "takes" => Script { takes_ms: rest.parse().unwrap(), ..base },
        _ => panic!("no answer {text:?}"),
    }
}

fn request(words: &[&str]) -> Request {
    let mut request = Request {
        request_id: format!("r-{}", words.join(" ")),
        principal: "operator".to_owned(),
        targets: Vec::new(),
        ..Request::default()
    };
    for word in words {
        if let Some(id) = word.strip_prefix("id=") {
            request.request_id = id.to_owned();
        } else if let Some(policy) = word.strip_prefix("on-failure=") {
            request.on_failure = Some(serde_json::from_value(policy.into()).unwrap());
        } else if let Some(ms) = word.strip_prefix("deadline=") {
            request.deadline_ms = Some(ms.parse().unwrap());
        } else if let Some(member) = word.strip_prefix("override=") {
            request.overrides.insert(member.parse().unwrap());
        } else if *word == "override-freeze" {
            request.override_freeze = true;
        } else if *word == "exclude-lost" {
            request.exclude_lost = true;
        } else if let Some(hash) = word.strip_prefix("hash=") {
            request.plan_hash = Some(hash.to_owned());
        } else if let Some((target, count)) = word.split_once('*') {
            request.targets.extend(vec![target.parse::<Target>().unwrap(); count.parse().unwrap()]);
        } else {
            request.targets.push(word.replace('_', " ").parse().unwrap());
        }
    }
    request
}

/// A transition by its id, or `last`.
fn named(world: &World, id: &str) -> TransitionId {
    let newest = || *world.server().unwrap().acknowledged().transitions.keys().next_back().unwrap();
    if id == "last" { newest() } else { id.parse().unwrap() }
}

fn status(world: &World) -> Vec<String> {
    let Some(server) = world.server() else { return vec!["no server".to_owned()] };
    let cluster = server.acknowledged();
    let name = |state: &Option<lockstep_core::id::StateName>| {
        state.as_ref().map_or("?".to_owned(), ToString::to_string)
    };
    let mut lines = Vec::new();
    for (host, known) in &cluster.hosts {
        if known.liveness != Liveness::Alive {
            lines.push(format!("{host} {}", known.liveness));
        }
        if known.is_drained {
            lines.push(format!("{host} drained"));
        }
    }
    for (index, freeze) in &cluster.freezes {
        let until = freeze.until.map(|until| format!(" until {until}")).unwrap_or_default();
        lines.push(format!("freeze {index} of {:?}{until}: {}", freeze.groups, freeze.reason));
    }
    for (group, settings) in &cluster.settings {
        let settings: Vec<_> = settings.iter().map(|(key, value)| format!("{key}={value}")).collect();
        lines.push(format!("{group} {}", settings.join(" ")));
    }
    for (id, member) in &cluster.members {
        let mut line = format!("{id} {}", name(&member.actual));
        if member.goal != member.actual {
            write!(line, " goal {}", name(&member.goal)).unwrap();
        }
        if let Some(transition) = member.transition {
            write!(line, " in {transition}").unwrap();
        }
        if member.mark != lockstep_core::cluster::Mark::None {
            write!(line, " {:?}", member.mark).unwrap();
        }
        if member.leaving {
            line.push_str(" leaving");
        }
        if let Some(state) = &member.returns_to {
            write!(line, " returns to {state}").unwrap();
        }
        let in_force = cluster.settings.get(&id.group);
        for (key, value) in member.settings.iter().flat_map(|settings| settings.iter()) {
            if in_force.and_then(|settings| settings.get(key)) != Some(value) {
                write!(line, " has {key}={value}").unwrap();
            }
        }
        let real = world.software().get(id).cloned();
        if real.is_some() && real != member.actual {
            write!(line, " (really {})", name(&real)).unwrap();
        }
        lines.push(line);
    }
    for host in cluster.hosts.keys() {
        let open =
            world.agent(host.as_str()).map(|agent| agent.state().open.keys().copied().collect::<Vec<_>>());
        if let Some(open) = open.filter(|open| !open.is_empty()) {
            lines.push(format!("{host} waits for {open:?}"));
        }
    }
    for (group, rejection) in server.waits() {
        lines.push(format!("{group} waits: {}: {}", rejection.code, rejection.message));
    }
    lines.extend(world.promises().iter().map(|(member, phase)| format!("{member} is left in {phase}")));
    lines
}

fn show(world: &World, id: TransitionId) -> Vec<String> {
    let Some(server) = world.server() else { return vec!["no server".to_owned()] };
    let Some(transition) = server.acknowledged().transitions.get(&id) else {
        return vec!["unknown".to_owned()];
    };
    let mut lines = vec![format!(
        "{id} decision {:?} outcome {:?} token {:?}",
        transition.decision, transition.outcome, transition.current_token
    )];
    lines.extend(transition.cause.iter().map(|cause| format!("{}: {}", cause.code, cause.message)));
    for vote in transition.votes.iter() {
        lines.push(format!(
            "{:?} {} {:?} as {} in {}",
            vote.round, vote.member, vote.answer, vote.role, vote.run
        ));
    }
    for (member, left) in &transition.left {
        lines.push(format!("{member}: {}; {}", left.problem, left.next));
    }
    lines
}

fn relations(world: &World) -> Vec<String> {
    let Some(server) = world.server() else { return vec!["no server".to_owned()] };
    let relations = &server.acknowledged().relations;
    let edges = relations.iter().flat_map(|relation| relation.to.iter().map(move |to| (relation, to)));
    let shown = edges.map(|(relation, to)| {
        let since = relations.since(relation, to).map_or("?".to_owned(), |since| since.revision.to_string());
        format!(
            "{} {} {to} need {} {:?} since {since}",
            relation.from, relation.kind, relation.need, relation.origin
        )
    });
    shown.collect()
}

fn show_plan(world: &World, targets: &[&str]) -> Vec<String> {
    let Some(server) = world.server() else { return vec!["no server".to_owned()] };
    let plan = match plan::plan_request(server.acknowledged(), &request(targets), server.scores()) {
        Ok(plan) => plan,
        Err(rejection) => {
            return vec![format!("rejected {}: {}; {}", rejection.code, rejection.message, rejection.help)];
        }
    };
    let mut lines = Vec::new();
    for step in &plan.steps {
        let after: Vec<_> = step.after.iter().map(ToString::to_string).collect();
        let mark = if plan.no_return.contains(&step.id) { " no-return" } else { "" };
        let set: String = step.set.iter().map(|(key, value)| format!(" {key}={value}")).collect();
        lines.push(format!(
            "{} {} {} -> {}{set} after [{}]{mark}",
            step.id,
            step.member,
            step.from,
            step.to,
            after.join(" ")
        ));
    }
    lines.extend(
        plan.barriers.iter().map(|barrier| format!("{} barrier after {:?}", barrier.id, barrier.after)),
    );
    let role = |role: Role| plan.with_role(role).map(MemberId::to_string).collect::<Vec<_>>().join(" ");
    for each in [Role::Actor, Role::Voter, Role::Holder, Role::Observer] {
        if !role(each).is_empty() {
            lines.push(format!("{each}s: {}", role(each)));
        }
    }
    if !plan.gaps.is_empty() {
        lines.push(format!("gaps: {:?}", plan.gaps));
    }
    if !plan.settings.is_empty() {
        lines.push(format!("settings: {:?}, before {:?}", plan.settings, plan.settings_before));
    }
    if !plan.frozen.is_empty() {
        lines.push(format!("frozen {:?}", plan.frozen));
    }
    lines.push(format!("exclusive {:?} shared {:?}", plan.exclusive, plan.shared));
    lines
}
