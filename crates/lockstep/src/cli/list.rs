//! `lockstep host|group|member|transition|relation list|show`.

use super::client::{Answer, Client};
use super::explain;
use super::output::{Form, clean, table, yaml};
use super::status::state;
use super::watch::{self, AtRevision};
use super::{Exit, Failure};
use crate::api::body::{ForgetBody, LabelBody};
use crate::api::object::{Applied, Group, Host, List, Member, Relation, Relations, Transition};
use clap::{Args, Subcommand};
use lockstep_core::id::{GroupName, HostName, MemberId, TransitionId};
use serde::Serialize;
use serde::de::DeserializeOwned;
use std::collections::BTreeMap;

/// `list`.
#[derive(Debug, Args)]
pub struct ListArgs {
    /// Show it again whenever something has changed
    #[arg(short, long)]
    watch: bool,
}

/// What may be done with hosts.
#[derive(Debug, Subcommand)]
pub enum HostVerb {
    /// List all of them
    List(ListArgs),
    /// Show one of them, with its members
    Show {
        /// Its name
        name: HostName,
    },
    /// Set labels over those of its configuration
    Label {
        /// Its name
        name: HostName,
        /// KEY=VALUE sets one, KEY- takes one away again
        #[arg(required = true, value_name = "KEY=VALUE|KEY-", value_parser = set_label)]
        labels: Vec<(String, Option<String>)>,
    },
    /// Forget one that is gone for good; its name is free for another agent
    Forget {
        /// Its name
        name: HostName,
        /// You have made sure that nothing of it runs
        #[arg(long)]
        stopped: bool,
    },
}

/// `KEY=VALUE`, or `KEY-`.
fn set_label(text: &str) -> Result<(String, Option<String>), String> {
    let (label, value) = match text.split_once('=') {
        Some((label, value)) => (label, Some(value)),
        None => (text.strip_suffix('-').ok_or("write KEY=VALUE, or KEY- to take one away")?, None),
    };
    if label.is_empty() {
        return Err("the label has no name: write KEY=VALUE".to_owned());
    }
    Ok((label.to_owned(), value.map(str::to_owned)))
}

/// What may be done with groups.
#[derive(Debug, Subcommand)]
pub enum GroupVerb {
    /// List all of them
    List(ListArgs),
    /// Show one of them, with its members
    Show {
        /// Its name
        name: GroupName,
    },
}

/// What may be done with members.
#[derive(Debug, Subcommand)]
pub enum MemberVerb {
    /// List all of them
    List(ListArgs),
    /// Show one of them: its state, settings and facts
    Show {
        /// Its name, such as db@pg-a
        id: MemberId,
    },
}

/// What may be done with transitions.
#[derive(Debug, Subcommand)]
pub enum TransitionVerb {
    /// List all of them
    List(ListArgs),
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
    List(ListArgs),
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

impl<T: Serialize> AtRevision for List<T> {
    fn revision(&self) -> u64 {
        self.revision
    }
}

/// Prints a list, which the API has at `path`.
async fn list<T: Serialize + DeserializeOwned>(
    client: &Client,
    path: &str,
    args: &ListArgs,
    form: Form,
    table: impl Fn(&[T]) -> String,
) -> Result<Exit, Failure> {
    let read = async |client: &Client| client.get::<List<T>>(path).await;
    watch::show(client, args.watch, form, read, |list| table(&list.items)).await
}

/// Hosts.
pub async fn hosts(client: &Client, verb: HostVerb, form: Form) -> Result<Exit, Failure> {
    match verb {
        HostVerb::List(args) => {
            list(client, "/v1/hosts", &args, form, |hosts: &[Host]| {
                let rows = hosts.iter().map(|host| {
                    let address = host.address.clone().unwrap_or_default();
                    let drained = if host.drained { ", drained" } else { "" };
                    let since = host.since.as_ref().filter(|_| host.liveness != "alive");
                    let since = since.map(|since| format!(" since {since}")).unwrap_or_default();
                    let liveness = format!("{}{since}{drained}", host.stands());
                    vec![host.name.clone(), liveness, address, labels(&host.labels)]
                });
                table(&["HOST", "LIVENESS", "ADDRESS", "LABELS"], &rows.collect::<Vec<_>>())
            })
            .await
        }
        HostVerb::Show { name } => {
            let hosts: List<Host> = client.get("/v1/hosts").await?;
            let host = hosts.items.iter().find(|host| host.name == name.as_str());
            let host = host.ok_or_else(|| missing("host", name.as_str()))?;
            show(client, host, |member| member.host == host.name, form).await
        }
        HostVerb::Label { name, labels: set } => {
            let body = LabelBody { labels: set.into_iter().collect() };
            let labelled: Answer<Host> = client.post(&format!("/v1/hosts/{name}/labels"), &body).await?;
            form.print(&labelled.body, || format!("{name} has {}\n", labels(&labelled.body.labels)))?;
            Ok(Exit::Done)
        }
        HostVerb::Forget { name, stopped } => {
            let body = ForgetBody { stopped };
            let forgotten: Answer<Applied> = client.post(&format!("/v1/hosts/{name}/forget"), &body).await?;
            form.print(&forgotten.body, || format!("{name} is forgotten: its name is free\n"))?;
            Ok(Exit::Done)
        }
    }
}

/// Groups.
pub async fn groups(client: &Client, verb: GroupVerb, form: Form) -> Result<Exit, Failure> {
    match verb {
        GroupVerb::List(args) => {
            list(client, "/v1/groups", &args, form, |groups: &[Group]| {
                let rows = groups.iter().map(|group| {
                    let serves = if group.serves { "serves" } else { "does not serve" };
                    vec![
                        group.name.clone(),
                        format!("{serves}{}", frozen(group)),
                        group.members.to_string(),
                        group.lifecycle.clone(),
                        group.handler.clone(),
                    ]
                });
                table(&["GROUP", "", "MEMBERS", "LIFECYCLE", "HANDLER"], &rows.collect::<Vec<_>>())
            })
            .await
        }
        GroupVerb::Show { name } => {
            let groups: List<Group> = client.get("/v1/groups").await?;
            let group = groups.items.iter().find(|group| group.name == name.as_str());
            let group = group.ok_or_else(|| missing("group", name.as_str()))?;
            show(client, group, |member| member.group == group.name, form).await
        }
    }
}

/// Members.
pub async fn members(client: &Client, verb: MemberVerb, form: Form) -> Result<Exit, Failure> {
    match verb {
        MemberVerb::List(args) => list(client, "/v1/members", &args, form, members_table).await,
        MemberVerb::Show { id } => {
            let members: List<Member> = client.get("/v1/members").await?;
            let member = members.items.iter().find(|member| member.id() == id.to_string());
            let member = member.ok_or_else(|| missing("member", &id.to_string()))?;
            form.print(member, || fields(member))?;
            Ok(Exit::Done)
        }
    }
}

/// Transitions.
pub async fn transitions(client: &Client, verb: TransitionVerb, form: Form) -> Result<Exit, Failure> {
    match verb {
        TransitionVerb::List(args) => {
            list(client, "/v1/transitions", &args, form, |transitions: &[Transition]| {
                let rows = transitions.iter().map(|transition| {
                    let text = |field: &Option<String>| field.clone().unwrap_or_default();
                    vec![
                        text(&transition.id),
                        transition.stands(),
                        text(&transition.cause),
                        text(&transition.requested_at),
                        transition.targets.join(" "),
                        text(&transition.reason),
                    ]
                });
                let head = ["TRANSITION", "STANDS", "CAUSE", "REQUESTED", "TARGETS", "REASON"];
                table(&head, &rows.collect::<Vec<_>>())
            })
            .await
        }
        TransitionVerb::Show { id } => {
            let transition: Transition = client.get(&format!("/v1/transitions/{id}")).await?;
            form.print(&transition, || fields(&transition))?;
            Ok(Exit::Done)
        }
    }
}

/// Relations.
pub async fn relations(client: &Client, verb: RelationVerb, form: Form) -> Result<Exit, Failure> {
    match verb {
        RelationVerb::List(args) => {
            let read = async |client: &Client| client.get::<Relations>("/v1/relations").await;
            watch::show(client, args.watch, form, read, relations_table).await
        }
        RelationVerb::Show { from, to } => {
            let mut relations: Relations = client.get("/v1/relations").await?;
            let is_wanted =
                |relation: &Relation| relation.from == from.as_str() && relation.to == to.as_str();
            relations.items.retain(is_wanted);
            relations.absent.retain(is_wanted);
            if relations.items.is_empty() && relations.absent.is_empty() {
                return Err(missing("relation", &format!("from {from} to {to}")));
            }
            form.print(&relations, || relations_table(&relations))?;
            Ok(Exit::Done)
        }
    }
}

impl AtRevision for Relations {
    fn revision(&self) -> u64 {
        self.revision
    }
}

fn relations_table(relations: &Relations) -> String {
    let rows = relations.items.iter().map(|relation| {
        let ask = relation.ask.clone().unwrap_or_default();
        let Relation { from, to, kind, origin, .. } = relation.clone();
        vec![from, kind, to, ask, origin, explain::terms(relation)]
    });
    let mut text = table(&["FROM", "KIND", "TO", "ASK", "ORIGIN", "TERMS"], &rows.collect::<Vec<_>>());
    if !relations.absent.is_empty() {
        text.push('\n');
    }
    relations.absent.iter().for_each(|absent| text.push_str(&(clean(&explain::why(absent)) + "\n")));
    text
}

fn members_table(members: &[Member]) -> String {
    let rows = members.iter().map(|member| {
        let facts: Vec<_> = member.facts.iter().map(|(key, value)| format!("{key}={value}")).collect();
        vec![member.id(), state(member), member.transition.clone().unwrap_or_default(), facts.join(" ")]
    });
    table(&["MEMBER", "STATE", "TRANSITION", "FACTS"], &rows.collect::<Vec<_>>())
}

async fn show<T: Serialize>(
    client: &Client,
    object: &T,
    is_wanted: impl Fn(&Member) -> bool,
    form: Form,
) -> Result<Exit, Failure> {
    let members: List<Member> = client.get("/v1/members").await?;
    let in_detail: Vec<Member> = members.items.into_iter().filter(|member| is_wanted(member)).collect();
    let shown = WithMembers { object, in_detail };
    form.print(&shown, || format!("{}\n{}", fields(object), members_table(&shown.in_detail)))?;
    Ok(Exit::Done)
}

/// An object field by field.
fn fields(object: &impl Serialize) -> String {
    let text = yaml(&serde_json::to_value(object).expect("what we print is plain data"));
    text.lines().map(|line| clean(line) + "\n").collect()
}

/// What is added to how a group stands.
pub fn frozen(group: &Group) -> &'static str {
    if group.frozen { ", frozen" } else { "" }
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
