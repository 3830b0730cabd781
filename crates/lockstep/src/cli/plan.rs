//! `lockstep plan`: what a run would do. With a server, or from files without one.

use super::client::Client;
use super::output::{Form, clean, note, table};
use super::{Exit, Failure, offline as files};
use crate::api::body::PlanBody;
use crate::api::object::{Group, List, Plan, Step};
use crate::spec_file;
use clap::Args;
use lockstep_core::cluster::Cluster;
use lockstep_core::id::GroupName;
use lockstep_core::plan::Scores;
use lockstep_core::request::{Request, Target};
use serde_json::{Map, Value};
use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;

/// How much of a hash is shown; `--plan` takes it.
const HASH_SHOWN: usize = 8;
/// Members that are named one by one; more are counted.
const NAMED_MAX: usize = 8;
/// Plans of more steps are shown without their order; JSON has it.
const ORDER_SHOWN_MAX: usize = 60;

/// `lockstep plan`.
#[derive(Debug, Args)]
pub struct PlanArgs {
    /// GROUP=STATE, GROUP@HOST=STATE, GROUP=up, GROUP=down, GROUP.KEY=VALUE or, quoted, "drain HOST" or "repair GROUP"
    #[arg(required = true, value_name = "TARGET")]
    targets: Vec<Target>,
    /// Ask no server: the cluster is declared in this file
    #[arg(short, long, value_name = "FILE", requires = "state")]
    file: Option<PathBuf>,
    /// The state that it is in, without a server
    #[arg(long, value_name = "FILE", requires = "file")]
    state: Option<PathBuf>,
    /// Leave out members of lost hosts, instead of refusing
    #[arg(long)]
    exclude_lost: bool,
    /// Plan although it is frozen
    #[arg(long)]
    override_freeze: bool,
}

impl PlanArgs {
    /// Whether it is to be answered from files.
    pub fn is_offline(&self) -> bool {
        self.file.is_some()
    }

    /// What is asked for.
    pub fn request(&self) -> Request {
        Request {
            targets: self.targets.clone(),
            exclude_lost: self.exclude_lost,
            override_freeze: self.override_freeze,
            ..Request::default()
        }
    }

    /// The same, as a server is asked.
    pub fn body(&self) -> PlanBody {
        let targets = self.targets.iter().map(ToString::to_string).collect();
        PlanBody { targets, exclude_lost: self.exclude_lost, override_freeze: self.override_freeze }
    }

    /// The cluster that the files describe.
    pub fn load(&self) -> Result<(Cluster, Scores), Failure> {
        let (Some(file), Some(state)) = (&self.file, &self.state) else {
            return Err(Failure::error("without a server both -f and --state are needed"));
        };
        let (written, spec) = spec_file::load(file)?;
        Ok(files::load(state, written, &spec)?)
    }
}

/// Plans from files.
pub fn offline(args: &PlanArgs, form: Form) -> Result<Exit, Failure> {
    let (cluster, scores) = args.load()?;
    let plan = lockstep_core::plan::plan_request(&cluster, &args.request(), &scores)?;
    let exit = show(&Plan::of(&plan), form)?;
    for target in &args.targets {
        let groups = cluster.groups_of(target);
        if let Some(name) = whole_group(target)
            && !groups.iter().any(|group| cluster.members_of(group).next().is_some())
        {
            note_memberless(name);
        }
    }
    Ok(exit)
}

/// Plans with a server.
pub async fn online(client: &Client, args: &PlanArgs, form: Form) -> Result<Exit, Failure> {
    let plan = client.post("/v1/plans", &args.body()).await?.body;
    let exit = show(&plan, form)?;
    note_where_nobody_is(client, &args.targets, Some(&plan)).await;
    Ok(exit)
}

/// The group that a target moves all members of.
fn whole_group(target: &Target) -> Option<&GroupName> {
    match target {
        Target::Group(group, _) | Target::Up(group) | Target::Down(group) => Some(group),
        Target::Member(..) | Target::Setting(..) | Target::Drain(_) | Target::Repair(_) => None,
    }
}

/// Nothing is to be done there, which is as planned and rarely as meant.
fn note_memberless(group: &GroupName) {
    note(&format!("note: {group} has no members, so nothing moves there: lockstep group show {group}"));
}

/// Says which of the groups that are asked to move have no members.
pub async fn note_where_nobody_is(client: &Client, targets: &[Target], plan: Option<&Plan>) {
    let moves = |group: &GroupName| {
        plan.is_some_and(|plan| plan.steps.iter().any(|step| step.group == group.as_str()))
    };
    let idle: Vec<_> = targets.iter().filter_map(whole_group).filter(|group| !moves(group)).collect();
    if idle.is_empty() {
        return;
    }
    // What was asked for is answered; without this list only the note is missing.
    let Ok(groups) = client.get::<List<Group>>("/v1/groups").await else { return };
    let is_empty =
        |name: &GroupName| groups.items.iter().any(|group| group.name == name.as_str() && group.members == 0);
    idle.into_iter().filter(|name| is_empty(name)).for_each(note_memberless);
}

fn show(plan: &Plan, form: Form) -> Result<Exit, Failure> {
    form.print(plan, || {
        let mut text = summary(plan);
        if !plan.steps.is_empty() && plan.steps.len() <= ORDER_SHOWN_MAX {
            text.push('\n');
            text.push_str(&order(plan));
        }
        text
    })?;
    Ok(Exit::Done)
}

/// The plan in a few lines: who goes where, what stops meanwhile, who holds, who votes and who is told.
pub fn summary(plan: &Plan) -> String {
    let hash: String = plan.hash.chars().take(HASH_SHOWN).collect();
    let head = format!("plan {}  ", clean(&hash));
    let mut lines = moves(plan);
    let settings =
        plan.settings.iter().map(|(id, value)| format!("{} = {}", clean(id), clean(&shown(value))));
    let drains = plan.drains.iter().map(|host| format!("drains {}", clean(host)));
    lines.splice(0..0, settings.chain(drains));
    if lines.is_empty() {
        return format!("{head}nothing to do\n");
    }
    let extras = extras(plan);
    if !extras.is_empty() {
        match lines.as_mut_slice() {
            // One group and its circumstances fit a line.
            [only] => *only = format!("{only}   {extras}"),
            _ => lines.push(extras),
        }
    }
    let indent = " ".repeat(head.chars().count());
    let lines = lines.iter().enumerate();
    lines.map(|(place, line)| format!("{}{line}\n", if place == 0 { &head } else { &indent })).collect()
}

/// A line for each group: `db: pg-a primary -> offline -> standby, pg-b standby -> primary`.
fn moves(plan: &Plan) -> Vec<String> {
    let mut chains: BTreeMap<&str, BTreeMap<&str, String>> = BTreeMap::new();
    for Step { group, host, from, to, set, .. } in &plan.steps {
        let hosts = chains.entry(group).or_default();
        if from == to {
            hosts.insert(host, taken(set));
            continue;
        }
        let chain = hosts.entry(host).or_insert_with(|| clean(from));
        chain.push_str(" -> ");
        chain.push_str(&clean(to));
    }
    for (member, goal) in &plan.goals {
        let (group, host) = member.split_once('@').unwrap_or((member, ""));
        let stays = format!("stays and is to be {}", clean(goal));
        chains.entry(group).or_default().entry(host).or_insert(stays);
    }
    let line = |(group, hosts): (&&str, &BTreeMap<&str, String>)| {
        let mut alike: BTreeMap<&str, Vec<&str>> = BTreeMap::new();
        for (host, chain) in hosts {
            alike.entry(chain).or_default().push(host);
        }
        let moves: Vec<String> = if hosts.len() <= NAMED_MAX {
            hosts.iter().map(|(host, chain)| format!("{} {chain}", clean(host))).collect()
        } else {
            alike.iter().map(|(chain, hosts)| format!("{} members {chain}", hosts.len())).collect()
        };
        format!("{}: {}", clean(group), moves.join(", "))
    };
    chains.iter().map(line).collect()
}

/// The settings that a step takes: `takes live = green`.
pub fn taken(set: &Map<String, Value>) -> String {
    let taken: Vec<_> =
        set.iter().map(|(key, value)| format!("{} = {}", clean(key), clean(&shown(value)))).collect();
    format!("takes {}", taken.join(", "))
}

fn shown(value: &Value) -> String {
    value.as_str().map_or_else(|| value.to_string(), str::to_owned)
}

fn extras(plan: &Plan) -> String {
    let with_role = |role: &str| -> BTreeSet<(&str, &str)> {
        let with_role = plan.participants.iter().filter(|participant| participant.role == role);
        with_role.map(|participant| (participant.group.as_str(), participant.host.as_str())).collect()
    };
    let (holders, voters) = (with_role("holder"), with_role("voter"));
    let mut told = with_role("observer");
    // Who is asked, or moves, is told by that.
    for others in [&holders, &voters, &with_role("actor")] {
        told = told.difference(others).copied().collect();
    }
    let mut extras = Vec::new();
    if !plan.frozen.is_empty() {
        let frozen: Vec<_> = plan.frozen.iter().map(|group| clean(group)).collect();
        extras.push(format!("although frozen: {}", frozen.join(" ")));
    }
    if !plan.gaps.is_empty() {
        let gaps: Vec<_> = plan.gaps.iter().map(|gap| clean(gap)).collect();
        extras.push(format!("gap: {}", gaps.join(" ")));
    }
    for (what, members) in [("holds", &holders), ("asks", &voters)] {
        if !members.is_empty() {
            extras.push(format!(
                "{what}: {}",
                if members.len() <= NAMED_MAX { named(members) } else { counted(members) }
            ));
        }
    }
    if !told.is_empty() {
        extras.push(format!("tells: {}", counted(&told)));
    }
    extras.join("   ")
}

fn named(members: &BTreeSet<(&str, &str)>) -> String {
    let names: Vec<_> = members.iter().map(|(group, host)| clean(&format!("{group}@{host}"))).collect();
    names.join(" ")
}

fn counted(members: &BTreeSet<(&str, &str)>) -> String {
    let mut counts: BTreeMap<&str, usize> = BTreeMap::new();
    members.iter().for_each(|(group, _)| *counts.entry(group).or_default() += 1);
    let counts: Vec<_> = counts.iter().map(|(group, count)| format!("{} ({count})", clean(group))).collect();
    counts.join(" ")
}

/// The steps, each with the steps that come directly before it.
fn order(plan: &Plan) -> String {
    let barriers: BTreeMap<u32, &[u32]> =
        plan.barriers.iter().map(|barrier| (barrier.id, &barrier.after[..])).collect();
    let rows = plan.steps.iter().map(|step| {
        let before: BTreeSet<u32> = step
            .after
            .iter()
            .flat_map(|id| barriers.get(id).copied().unwrap_or(std::slice::from_ref(id)))
            .copied()
            .collect();
        vec![
            step.id.to_string(),
            format!("{}@{}", step.group, step.host),
            if step.from == step.to { taken(&step.set) } else { format!("{} -> {}", step.from, step.to) },
            ranges(&before),
        ]
    });
    table(&["STEP", "MEMBER", "MOVE", "AFTER"], &rows.collect::<Vec<_>>())
}

/// `0-3 7`.
fn ranges(ids: &BTreeSet<u32>) -> String {
    let mut runs: Vec<(u32, u32)> = Vec::new();
    for &id in ids {
        match runs.last_mut() {
            Some((_, last)) if *last + 1 == id => *last = id,
            _ => runs.push((id, id)),
        }
    }
    let shown = |&(first, last): &(u32, u32)| match last - first {
        0 => first.to_string(),
        1 => format!("{first} {last}"),
        _ => format!("{first}-{last}"),
    };
    runs.iter().map(shown).collect::<Vec<_>>().join(" ")
}
