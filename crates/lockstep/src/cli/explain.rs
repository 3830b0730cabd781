//! `lockstep explain`: why groups are related, and why a transition went as it did. How groups are related can be told
//! from files too, for reviews.

use super::client::Client;
use super::output::{Form, clean};
use super::{Exit, Failure, offline as files, run};
use crate::api::object::{Group, Host, List, Member, Participant, Relation, Relations, Transition};
use crate::spec_file;
use clap::Args;
use lockstep_core::id::{GroupName, TransitionId};
use serde::Serialize;
use serde_json::Value;
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::path::PathBuf;

/// `lockstep explain`.
#[derive(Debug, Args)]
pub struct ExplainArgs {
    /// A transition such as t42, or the first of two groups
    #[arg(value_name = "TRANSITION|GROUP")]
    first: String,
    /// The other group
    #[arg(value_name = "GROUP")]
    second: Option<GroupName>,
    /// Ask no server: the cluster is declared in this file
    #[arg(short, long, value_name = "FILE", requires = "state", requires = "second")]
    file: Option<PathBuf>,
    /// The state that it is in, without a server
    #[arg(long, value_name = "FILE", requires = "file")]
    state: Option<PathBuf>,
}

impl ExplainArgs {
    /// Whether it is to be answered from files.
    pub fn is_offline(&self) -> bool {
        self.file.is_some()
    }
}

/// Why something is as it is.
#[derive(Debug, Serialize)]
struct Explanation {
    /// A line each.
    because: Vec<String>,
}

/// Explains from files how two groups are related.
pub fn offline(args: &ExplainArgs, form: Form) -> Result<Exit, Failure> {
    let (Some(file), Some(state), Some(second)) = (&args.file, &args.state, &args.second) else {
        return Err(Failure::error("without a server -f, --state and two groups are needed"));
    };
    let (written, spec) = spec_file::load(file)?;
    let (cluster, _) = files::load(state, written, &spec)?;
    let first = group(&args.first)?;
    let mut groups: Parts =
        spec.groups.keys().map(|name| (name.as_str(), BTreeSet::from([name.as_str()]))).collect();
    groups.extend(
        spec.composites
            .iter()
            .map(|(name, leaves)| (name.as_str(), leaves.iter().map(GroupName::as_str).collect())),
    );
    show(between(&Relations::of(&cluster), &groups, &first, second)?, form)
}

/// Explains.
pub async fn explain(client: &Client, args: ExplainArgs, form: Form) -> Result<Exit, Failure> {
    let because = match args.second {
        Some(second) => {
            let first = group(&args.first)?;
            let groups: List<Group> = client.get("/v1/groups").await?;
            let groups = groups.items.iter().map(|group| {
                let itself = group.groups.is_empty().then_some(&group.name);
                (group.name.as_str(), group.groups.iter().chain(itself).map(String::as_str).collect())
            });
            let relations: Relations = client.get("/v1/relations").await?;
            between(&relations, &groups.collect(), &first, &second)?
        }
        None => {
            let usage = "name a transition (t42), or two groups";
            let id: TransitionId = args.first.parse().map_err(|error| Failure::helped(error, usage))?;
            let transition: Transition = client.get(&format!("/v1/transitions/{id}")).await?;
            let relations: Relations = client.get("/v1/relations").await?;
            let mut lines = of_transition(&transition, &relations.items);
            let hosts: List<Host> = client.get("/v1/hosts").await?;
            let members: List<Member> = client.get("/v1/members").await?;
            lines.extend(unheard(&transition, &hosts.items, &members.items));
            lines
        }
    };
    show(because, form)
}

fn show(because: Vec<String>, form: Form) -> Result<Exit, Failure> {
    let explanation = Explanation { because };
    form.print(&explanation, || {
        explanation.because.iter().map(|line| format!("{}\n", clean(line))).collect()
    })?;
    Ok(Exit::Done)
}

fn group(text: &str) -> Result<GroupName, Failure> {
    text.parse().map_err(|error: lockstep_core::id::NameError| Failure::error(error.to_string()))
}

/// Those who took part and of whom nobody knows where they are now, a line each.
fn unheard(transition: &Transition, hosts: &[Host], members: &[Member]) -> Vec<String> {
    let participants = transition.plan.iter().flat_map(|plan| &plan.participants);
    let took_part: BTreeSet<_> = participants.map(|who| (who.group.as_str(), who.host.as_str())).collect();
    let took_part = |member: &&Member| took_part.contains(&(member.group.as_str(), member.host.as_str()));
    let unheard = members.iter().filter(took_part).filter(|member| member.is_last_known());
    let lines = unheard.filter_map(|member| {
        let host = hosts.iter().find(|host| host.name == member.host)?;
        let since = host.since.as_ref().map(|since| format!(" since {since}")).unwrap_or_default();
        let actual = member.actual.as_ref()?;
        let Host { name, liveness, .. } = host;
        Some(format!("{} is {actual} as last known: host {name} is {liveness}{since}", member.id()))
    });
    lines.collect()
}

/// The groups of members that each group is made of: itself, or those of a group of groups.
type Parts<'a> = BTreeMap<&'a str, BTreeSet<&'a str>>;

/// What relates two groups, directly or through others along `requires`; of a group of groups, whatever relates one
/// of them.
fn between(
    relations: &Relations,
    groups: &Parts,
    first: &GroupName,
    second: &GroupName,
) -> Result<Vec<String>, Failure> {
    let parts = |name: &GroupName| {
        groups.get(name.as_str()).ok_or_else(|| {
            // That nothing relates a group which does not exist is true, and helps nobody.
            let help = "`lockstep group list` shows what there is";
            Failure::helped(format!("there is no group {name}"), help)
        })
    };
    let (ours, theirs) = (parts(first)?, parts(second)?);
    let ends = [(first, ours, second, theirs), (second, theirs, first, ours)];
    let mut lines = Vec::new();
    for (name, _, whole, parts) in ends {
        if name != whole && parts.contains(name.as_str()) {
            lines.push(format!("{name} is one of the groups of {whole}"));
        }
    }
    let direct = |relations: &[Relation]| -> Vec<String> {
        let leads = |relation: &&Relation, from: &BTreeSet<&str>, to: &BTreeSet<&str>| {
            from.contains(&*relation.from) && to.contains(&*relation.to)
        };
        let all = ends.iter().flat_map(|(_, from, _, to)| {
            relations.iter().filter(move |relation| leads(relation, from, to)).map(why)
        });
        all.collect()
    };
    lines.extend(direct(&relations.items));
    for (from, sources, to, targets) in ends {
        let path = chain(&relations.items, sources, targets);
        if path.len() > 1 {
            lines.push(format!("{from} is told of {to}, since requires leads there:"));
            lines.extend(path.into_iter().map(|relation| format!("  {}", why(relation))));
        }
    }
    lines.extend(direct(&relations.absent));
    if lines.is_empty() {
        lines.push(format!("nothing relates {first} and {second}"));
    }
    Ok(lines)
}

/// The shortest way from some groups to others along `requires`.
fn chain<'a>(
    relations: &'a [Relation],
    from: &BTreeSet<&'a str>,
    to: &BTreeSet<&'a str>,
) -> Vec<&'a Relation> {
    let mut came: BTreeMap<&str, &Relation> = BTreeMap::new();
    let mut queue: VecDeque<&str> = from.iter().copied().collect();
    let mut end = None;
    while let Some(at) = queue.pop_front() {
        if to.contains(at) && !from.contains(at) {
            end = Some(at);
            break;
        }
        for relation in relations.iter().filter(|relation| relation.from == at && relation.kind == "requires")
        {
            if !from.contains(&*relation.to) && !came.contains_key(&*relation.to) {
                came.insert(&relation.to, relation);
                queue.push_back(&relation.to);
            }
        }
    }
    let mut path = Vec::new();
    while let Some(relation) = end.and_then(|at| came.get(at)) {
        path.push(*relation);
        end = Some(&relation.from);
    }
    path.reverse();
    path
}

/// One relation in words: what it is, which rule made it, since when; or what keeps it from existing.
pub fn why(relation: &Relation) -> String {
    let Relation { from, to, kind, capability, since, .. } = relation;
    let rule = match capability {
        Some(capability) => format!("{from} consumes {capability}, which {to} provides"),
        None => "it is declared".to_owned(),
    };
    let asked = relation.ask.iter().map(|ask| format!("ask {ask}"));
    let terms: Vec<_> = asked.chain([terms(relation)]).filter(|terms| !terms.is_empty()).collect();
    let terms = if terms.is_empty() { String::new() } else { format!(" ({})", terms.join(", ")) };
    if !relation.unmet.is_empty() {
        let unmet: Vec<_> =
            relation.unmet.iter().map(|(id, now)| format!("{id} is {}", shown(now))).collect();
        return format!(
            "{from} {kind} {to}{terms}: {rule}, and does not exist now, since {}",
            unmet.join(", ")
        );
    }
    // What is read from files has no history.
    let since = relation.since_at.as_ref().map(|at| format!("; since revision {since}, {at}"));
    format!("{from} {kind} {to}{terms}: {rule}{}", since.unwrap_or_default())
}

/// What a relation says beside its kind, in one line.
pub fn terms(relation: &Relation) -> String {
    let mut terms = Vec::new();
    if !relation.on.is_empty() {
        terms.push(format!("also asked on {}", relation.on.join(" ")));
    }
    if let Some(need) = &relation.need {
        terms.push(format!("need {} of {}", shown(need), relation.among.join(" ")));
    }
    terms.extend(relation.scope.iter().map(|label| format!("where {label} is equal")));
    terms.extend(relation.when.iter().map(|(id, value)| format!("while {id} = {}", shown(value))));
    terms.extend(relation.cascade.then(|| "cascade".to_owned()));
    terms.extend(relation.moving.then(|| "moving".to_owned()));
    terms.join(", ")
}

fn shown(value: &Value) -> String {
    value.as_str().map_or_else(|| value.to_string(), str::to_owned)
}

/// A transition in words: who took part and why, what was voted, what was decided and what came of it.
fn of_transition(transition: &Transition, relations: &[Relation]) -> Vec<String> {
    let mut lines = Vec::new();
    let id = transition.id.as_deref().unwrap_or("nothing");
    let asked = transition.targets.join(" ");
    let reason = transition.reason.as_ref().map(|reason| format!(", because {reason:?}")).unwrap_or_default();
    lines.push(match (transition.automatic, &transition.reason) {
        // The reason names what was seen, and how that is known.
        (true, Some(reason)) => format!("{id}: the server itself runs {asked}, because {reason}"),
        (true, None) => format!("{id}: the server itself runs {asked}"),
        (false, _) => format!("{id}: {} asked for {asked}{reason}", transition.principal),
    });
    if transition.override_freeze {
        lines.push("freezes and closed windows were not to be in the way".to_owned());
    }
    if !transition.overrides.is_empty() {
        lines.push(format!("no answer was needed of {}", transition.overrides.join(" ")));
    }
    if transition.token.is_none() {
        lines.extend(transition.cause.as_ref().map(|cause| format!("it was never begun: {cause}")));
    }
    let Some(plan) = &transition.plan else {
        lines.extend(run::why(transition));
        return lines;
    };
    let moves = |group: &str| plan.steps.iter().any(|step| step.group == group);
    for who in &plan.participants {
        // Whoever is asked, or moves, is told by that.
        let is_asked = |other: &Participant| {
            other.role != "observer" && (&other.group, &other.host) == (&who.group, &who.host)
        };
        if who.role == "observer" && plan.participants.iter().any(is_asked) {
            continue;
        }
        let member = format!("{}@{}", who.group, who.host);
        let related = plan.relations.iter().filter(|known| known.from == who.group && moves(&known.to));
        let related: Vec<_> =
            related.map(|known| format!("{} {} {}", known.from, known.kind, known.to)).collect();
        let why = match (who.role.as_str(), related.is_empty()) {
            ("actor", _) => {
                let named = transition.targets.iter().any(|target| target.starts_with(&format!("{member}=")));
                let whole = transition.targets.iter().any(|target| {
                    let group = target.split(['=', '.']).next().unwrap_or_default();
                    group == who.group
                });
                let repair = format!("repair {}", who.group);
                match (named, whole) {
                    (_, false) if transition.targets.contains(&repair) => {
                        format!("{} is repaired", who.group)
                    }
                    (true, _) => "it was asked for".to_owned(),
                    (false, true) => format!("{} was asked for", who.group),
                    (false, false) => "it makes room, takes over, or is pulled along".to_owned(),
                }
            }
            (_, false) => related.join(", "),
            (_, true) if moves(&who.group) => format!("members of {} learn of each other's moves", who.group),
            (_, true) => match plan.relations.iter().find(|known| known.from == who.group) {
                Some(known) => format!("{} {} {}, and requires leads on", known.from, known.kind, known.to),
                None => "it is related".to_owned(),
            },
        };
        let edges = relations.iter().filter(|known| known.from == who.group && moves(&known.to));
        let terms: Vec<_> = edges.map(terms).filter(|terms| !terms.is_empty()).collect();
        let terms = if terms.is_empty() || who.role == "actor" {
            String::new()
        } else {
            format!(" ({})", terms.join("; "))
        };
        lines.push(format!("{member} is {}: {why}{terms}", who.role));
    }
    lines.extend(plan.frozen.iter().map(|group| format!("{group} was frozen")));
    lines.extend(plan.gaps.iter().map(|gap| format!("{gap} stops serving inside its own move")));
    if let Some(decision) = &transition.decision {
        let cause = transition.cause.as_ref().map(|cause| format!(": {cause}")).unwrap_or_default();
        lines.push(format!("decided: {decision}{cause}"));
    }
    lines.extend(transition.outcome.as_ref().map(|outcome| format!("outcome: {outcome}")));
    lines.extend(run::why(transition));
    lines
}
