//! `lockstep explain`: why groups are related, and why a transition went as it did. How groups are related can be told
//! from files too, for reviews.

use super::client::Client;
use super::output::{Form, clean};
use super::{Exit, Failure, offline as files, run};
use crate::api::object::{Group, List, Participant, Relation, Transition};
use crate::spec_file;
use clap::Args;
use lockstep_core::id::{GroupName, TransitionId};
use serde::Serialize;
use serde_json::Value;
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
    let relations = Relation::all_of(&cluster);
    let first = group(&args.first)?;
    let groups: Vec<&str> = spec.groups.keys().chain(spec.composites.keys()).map(GroupName::as_str).collect();
    known(&groups, [&first, second])?;
    show(between(&relations, &first, second), form)
}

/// Explains.
pub async fn explain(client: &Client, args: ExplainArgs, form: Form) -> Result<Exit, Failure> {
    let because = match args.second {
        Some(second) => {
            let first = group(&args.first)?;
            let groups: List<Group> = client.get("/v1/groups").await?;
            let groups: Vec<&str> = groups.items.iter().map(|group| group.name.as_str()).collect();
            known(&groups, [&first, &second])?;
            let relations: List<Relation> = client.get("/v1/relations").await?;
            between(&relations.items, &first, &second)
        }
        None => {
            let usage = "name a transition (t42), or two groups";
            let id: TransitionId = args.first.parse().map_err(|error| Failure::helped(error, usage))?;
            let transition: Transition = client.get(&format!("/v1/transitions/{id}")).await?;
            let relations: List<Relation> = client.get("/v1/relations").await?;
            of_transition(&transition, &relations.items)
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

/// That nothing relates a group which does not exist is true, and helps nobody.
fn known(groups: &[&str], asked: [&GroupName; 2]) -> Result<(), Failure> {
    match asked.into_iter().find(|asked| !groups.contains(&asked.as_str())) {
        Some(unknown) => {
            let help = "`lockstep group list` shows what there is";
            Err(Failure::helped(format!("there is no group {unknown}"), help))
        }
        None => Ok(()),
    }
}

/// What relates two groups, directly or through others along `requires`.
fn between(relations: &[Relation], first: &GroupName, second: &GroupName) -> Vec<String> {
    let ends = [(first.as_str(), second.as_str()), (second.as_str(), first.as_str())];
    let direct = ends.iter().flat_map(|(from, to)| {
        relations.iter().filter(move |relation| relation.from == *from && relation.to == *to)
    });
    let mut lines: Vec<String> = direct.map(why).collect();
    for (from, to) in ends {
        let path = chain(relations, from, to);
        if path.len() > 1 {
            lines.push(format!("{from} is told of {to}, since requires leads there:"));
            lines.extend(path.into_iter().map(|relation| format!("  {}", why(relation))));
        }
    }
    if lines.is_empty() {
        lines.push(format!("nothing relates {first} and {second}"));
    }
    lines
}

/// The shortest way from one group to another along `requires`.
fn chain<'a>(relations: &'a [Relation], from: &'a str, to: &'a str) -> Vec<&'a Relation> {
    let mut came: std::collections::BTreeMap<&str, &Relation> = std::collections::BTreeMap::new();
    let mut queue = std::collections::VecDeque::from([from]);
    while let Some(at) = queue.pop_front() {
        for relation in relations.iter().filter(|relation| relation.from == at && relation.kind == "requires")
        {
            if relation.to != from && !came.contains_key(relation.to.as_str()) {
                came.insert(&relation.to, relation);
                queue.push_back(&relation.to);
            }
        }
    }
    let mut path = Vec::new();
    let mut at = to;
    while let Some(relation) = came.get(at) {
        path.push(*relation);
        at = &relation.from;
    }
    path.reverse();
    path
}

/// One relation in words: what it is, which rule made it, since when.
fn why(relation: &Relation) -> String {
    let Relation { from, to, kind, capability, since, .. } = relation;
    let rule = match capability {
        Some(capability) => format!("{from} consumes {capability}, which {to} provides"),
        None => "it is declared".to_owned(),
    };
    let asked = relation.ask.iter().map(|ask| format!("ask {ask}"));
    let terms: Vec<_> = asked.chain([terms(relation)]).filter(|terms| !terms.is_empty()).collect();
    let terms = if terms.is_empty() { String::new() } else { format!(" ({})", terms.join(", ")) };
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
    lines.push(format!("{id}: {} asked for {asked}{reason}", transition.principal));
    let Some(plan) = &transition.plan else {
        lines.extend(transition.cause.as_ref().map(|cause| format!("it was never begun: {cause}")));
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
                match (named, whole) {
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
    lines.extend(plan.gaps.iter().map(|gap| format!("{gap} stops serving inside its own move")));
    if let Some(decision) = &transition.decision {
        let cause = transition.cause.as_ref().map(|cause| format!(": {cause}")).unwrap_or_default();
        lines.push(format!("decided: {decision}{cause}"));
    }
    lines.extend(transition.outcome.as_ref().map(|outcome| format!("outcome: {outcome}")));
    lines.extend(run::why(transition));
    lines
}
