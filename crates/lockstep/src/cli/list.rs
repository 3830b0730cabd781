//! `lockstep host|group|transition|relation list|show`.

use super::client::Client;
use super::explain;
use super::output::{Form, clean, table, yaml};
use super::status::state;
use super::{Exit, Failure};
use crate::api::object::{Group, Host, List, Member, Relation, Transition};
use clap::Subcommand;
use lockstep_core::id::{GroupName, HostName, TransitionId};
use serde::Serialize;
use std::collections::BTreeMap;

/// What may be done with hosts.
#[derive(Debug, Subcommand)]
pub enum HostVerb {
    /// List all of them
    List,
    /// Show one of them, with its members
    Show {
        /// Its name
        name: HostName,
    },
}

/// What may be done with groups.
#[derive(Debug, Subcommand)]
pub enum GroupVerb {
    /// List all of them
    List,
    /// Show one of them, with its members
    Show {
        /// Its name
        name: GroupName,
    },
}

/// What may be done with transitions.
#[derive(Debug, Subcommand)]
pub enum TransitionVerb {
    /// List all of them
    List,
    /// Show one of them: its plan, votes, steps and outcome
    Show {
        /// Its name, such as t42
        id: TransitionId,
    },
}

/// What may be done with relations.
#[derive(Debug, Subcommand)]
pub enum RelationVerb {
    /// List all of them
    List,
    /// Show those from one group to another
    Show {
        /// The group that depends, or is told
        from: GroupName,
        /// The group it depends on, or is told of
        to: GroupName,
    },
}

/// An object with its members.
#[derive(Serialize)]
struct WithMembers<'a, T> {
    #[serde(flatten)]
    object: &'a T,
    in_detail: Vec<Member>,
}

/// Hosts.
pub async fn hosts(client: &Client, verb: HostVerb, form: Form) -> Result<Exit, Failure> {
    let hosts: List<Host> = client.get("/v1/hosts").await?;
    match verb {
        HostVerb::List => form.print(&hosts, || {
            let rows = hosts.items.iter().map(|host| {
                let address = host.address.clone().unwrap_or_default();
                vec![host.name.clone(), host.liveness.clone(), address, labels(&host.labels)]
            });
            table(&["HOST", "LIVENESS", "ADDRESS", "LABELS"], &rows.collect::<Vec<_>>())
        })?,
        HostVerb::Show { name } => {
            let host = hosts.items.iter().find(|host| host.name == name.as_str());
            let host = host.ok_or_else(|| missing("host", name.as_str()))?;
            show(client, host, |member| member.host == host.name, form).await?;
        }
    }
    Ok(Exit::Done)
}

/// Groups.
pub async fn groups(client: &Client, verb: GroupVerb, form: Form) -> Result<Exit, Failure> {
    let groups: List<Group> = client.get("/v1/groups").await?;
    match verb {
        GroupVerb::List => form.print(&groups, || {
            let rows = groups.items.iter().map(|group| {
                let serves = if group.serves { "serves" } else { "does not serve" };
                vec![
                    group.name.clone(),
                    serves.to_owned(),
                    group.members.to_string(),
                    group.lifecycle.clone(),
                    group.handler.clone(),
                ]
            });
            table(&["GROUP", "", "MEMBERS", "LIFECYCLE", "HANDLER"], &rows.collect::<Vec<_>>())
        })?,
        GroupVerb::Show { name } => {
            let group = groups.items.iter().find(|group| group.name == name.as_str());
            let group = group.ok_or_else(|| missing("group", name.as_str()))?;
            show(client, group, |member| member.group == group.name, form).await?;
        }
    }
    Ok(Exit::Done)
}

/// Transitions.
pub async fn transitions(client: &Client, verb: TransitionVerb, form: Form) -> Result<Exit, Failure> {
    match verb {
        TransitionVerb::List => {
            let transitions: List<Transition> = client.get("/v1/transitions").await?;
            form.print(&transitions, || {
                let rows = transitions.items.iter().map(|transition| {
                    let text = |field: &Option<String>| field.clone().unwrap_or_default();
                    let stands = transition.outcome.as_ref().or(transition.phase.as_ref());
                    vec![
                        text(&transition.id),
                        stands.cloned().unwrap_or_default(),
                        text(&transition.cause),
                        text(&transition.requested_at),
                        transition.targets.join(" "),
                        text(&transition.reason),
                    ]
                });
                let head = ["TRANSITION", "STANDS", "CAUSE", "REQUESTED", "TARGETS", "REASON"];
                table(&head, &rows.collect::<Vec<_>>())
            })?;
        }
        TransitionVerb::Show { id } => {
            let transition: Transition = client.get(&format!("/v1/transitions/{id}")).await?;
            form.print(&transition, || fields(&transition))?;
        }
    }
    Ok(Exit::Done)
}

/// Relations.
pub async fn relations(client: &Client, verb: RelationVerb, form: Form) -> Result<Exit, Failure> {
    let mut relations: List<Relation> = client.get("/v1/relations").await?;
    if let RelationVerb::Show { from, to } = verb {
        relations.items.retain(|relation| relation.from == from.as_str() && relation.to == to.as_str());
        if relations.items.is_empty() {
            return Err(missing("relation", &format!("from {from} to {to}")));
        }
    }
    form.print(&relations, || {
        let rows = relations.items.iter().map(|relation| {
            let ask = relation.ask.clone().unwrap_or_default();
            let Relation { from, to, kind, origin, .. } = relation.clone();
            vec![from, kind, to, ask, origin, explain::terms(relation)]
        });
        table(&["FROM", "KIND", "TO", "ASK", "ORIGIN", "TERMS"], &rows.collect::<Vec<_>>())
    })?;
    Ok(Exit::Done)
}

async fn show<T: Serialize>(
    client: &Client,
    object: &T,
    is_wanted: impl Fn(&Member) -> bool,
    form: Form,
) -> Result<(), Failure> {
    let members: List<Member> = client.get("/v1/members").await?;
    let in_detail: Vec<Member> = members.items.into_iter().filter(|member| is_wanted(member)).collect();
    let shown = WithMembers { object, in_detail };
    form.print(&shown, || {
        let rows = shown.in_detail.iter().map(|member| {
            let facts: Vec<_> = member.facts.iter().map(|(key, value)| format!("{key}={value}")).collect();
            vec![member.id(), state(member), member.transition.clone().unwrap_or_default(), facts.join(" ")]
        });
        let members = table(&["MEMBER", "STATE", "TRANSITION", "FACTS"], &rows.collect::<Vec<_>>());
        format!("{}\n{members}", fields(object))
    })
}

/// An object field by field.
fn fields(object: &impl Serialize) -> String {
    let text = yaml(&serde_json::to_value(object).expect("what we print is plain data"));
    text.lines().map(|line| clean(line) + "\n").collect()
}

fn labels(labels: &BTreeMap<String, String>) -> String {
    labels.iter().map(|(key, value)| format!("{key}={value}")).collect::<Vec<_>>().join(" ")
}

fn missing(what: &str, name: &str) -> Failure {
    Failure::helped(
        format!("there is no {what} {name}"),
        format!("`lockstep {what} list` shows what there is"),
    )
}
