//! `lockstep apply`: declares the cluster. It moves nothing: it says what changes, what differs from what is
//! declared, and which run would change that.

use super::client::{Client, ClientError};
use super::finding::{Finding, findings};
use super::output::{Form, clean};
use super::{Exit, Failure};
use crate::api::object::{self, Applied, Group, Host, List, Member};
use crate::spec_file;
use clap::Args;
use lockstep_core::relation::{Relation, Relations};
use lockstep_core::request::check_same_cluster;
use lockstep_core::spec::{Spec, SpecFile};
use serde::Serialize;
use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;

/// `lockstep apply`.
#[derive(Debug, Args)]
pub struct ApplyArgs {
    /// The declared cluster: TOML, or JSON when the name ends in .json
    #[arg(short, long, value_name = "FILE")]
    file: PathBuf,
    /// Check it and show what would change, without declaring it
    #[arg(long)]
    dry_run: bool,
}

#[derive(Debug, Serialize)]
struct Report {
    /// The revision from which on it is in force; null for a dry run.
    revision: Option<u64>,
    /// What changes in what is declared, and who joins and leaves by that.
    changes: Vec<String>,
    /// What differs from what is declared, and which run would change that.
    differs: Vec<Finding>,
}

/// Declares the cluster, or shows what that would do.
pub async fn apply(client: &Client, args: &ApplyArgs, form: Form) -> Result<Exit, Failure> {
    let (written, spec) = spec_file::load(&args.file)?;
    let before: Option<SpecFile> = match client.get("/v1/spec").await {
        Ok(before) => Some(before),
        Err(ClientError::Refused(problem)) if problem.status == 404 => None,
        Err(error) => return Err(error.into()),
    };
    let hosts: List<Host> = client.get("/v1/hosts").await?;
    let members: List<Member> = client.get("/v1/members").await?;
    let mut changes = declared(before.as_ref(), &written, &spec);
    changes.extend(membership(&spec, &hosts.items, &members.items));
    let report = if args.dry_run {
        before.iter().try_for_each(|before| check_same_cluster(before, &written))?;
        Report { revision: None, changes, differs: Vec::new() }
    } else {
        let applied: Applied = client.put("/v1/spec", &written).await?;
        let groups: List<Group> = client.get("/v1/groups").await?;
        let members: List<Member> = client.get("/v1/members").await?;
        let relations: object::Relations = client.get("/v1/relations").await?;
        let differs = findings(&hosts.items, &groups.items, &members.items, &relations.items);
        Report { revision: Some(applied.revision), changes, differs }
    };
    form.print(&report, || shown(&report))?;
    Ok(Exit::Done)
}

fn shown(report: &Report) -> String {
    let mut text = match report.revision {
        Some(revision) => format!("applied at revision {revision}\n"),
        None => "dry run: nothing was applied\n".to_owned(),
    };
    if report.changes.is_empty() {
        text.push_str("  nothing changes\n");
    }
    report.changes.iter().for_each(|change| text.push_str(&format!("  {}\n", clean(change))));
    for finding in &report.differs {
        text.push_str(&format!("{}\n  next: {}\n", clean(&finding.problem), clean(&finding.next)));
    }
    text
}

/// What changes in what is declared, a line each.
fn declared(before: Option<&SpecFile>, after: &SpecFile, spec: &Spec) -> Vec<String> {
    let mut lines = Vec::new();
    let none = BTreeMap::new();
    let groups_before = before.map_or(&none, |file| &file.groups);
    if let Some(before) = before {
        if before.lease_ms != after.lease_ms {
            let shown = |lease_ms: Option<u64>| lease_ms.map_or("default".to_owned(), |ms| ms.to_string());
            lines.push(format!("~ lease_ms: {} -> {}", shown(before.lease_ms), shown(after.lease_ms)));
        }
        if before.lifecycles != after.lifecycles {
            lines.push("~ lifecycles".to_owned());
        }
    }
    let names: BTreeSet<_> = groups_before.keys().chain(after.groups.keys()).collect();
    for name in names {
        match (groups_before.get(name), after.groups.get(name)) {
            (None, Some(_)) => lines.push(format!("+ group {name}")),
            (Some(_), None) => lines.push(format!("- group {name}")),
            (Some(was), Some(is)) if was != is => {
                lines.push(format!("~ group {name}: {}", changed_keys(was, is).join(", ")));
            }
            (Some(_), Some(_)) | (None, None) => {}
        }
    }
    let before = before.and_then(|before| before.check().ok()).unwrap_or_default();
    let relations = |spec| Relations::declared(spec).iter().cloned().collect::<BTreeSet<_>>();
    let (was, is) = (relations(&before), relations(spec));
    let line = |sign: char, relation: &Relation| {
        format!("{sign} relation {} {} {}", relation.from, relation.kind, relation.to)
    };
    lines.extend(was.difference(&is).map(|relation| line('-', relation)));
    lines.extend(is.difference(&was).map(|relation| line('+', relation)));
    lines
}

fn changed_keys(was: &impl Serialize, is: &impl Serialize) -> Vec<String> {
    let was = serde_json::to_value(was).expect("a spec is plain data");
    let is = serde_json::to_value(is).expect("a spec is plain data");
    let fields = [&was, &is].into_iter().filter_map(serde_json::Value::as_object);
    let keys: BTreeSet<&String> = fields.flat_map(serde_json::Map::keys).collect();
    keys.into_iter().filter(|key| was.get(*key) != is.get(*key)).cloned().collect()
}

/// Who joins and who leaves a group by its new labels.
fn membership(spec: &Spec, hosts: &[Host], members: &[Member]) -> Vec<String> {
    let now: BTreeSet<(&str, &str)> = members
        .iter()
        .filter(|member| !member.leaving)
        .map(|member| (member.group.as_str(), member.host.as_str()))
        .collect();
    let mut then = BTreeSet::new();
    for host in hosts {
        let groups = spec.groups.iter().filter(|(_, group)| group.selects(&host.labels));
        then.extend(groups.map(|(name, _)| (name.as_str(), host.name.as_str())));
    }
    let joins = then.difference(&now).map(|(group, host)| format!("+ member {group}@{host}"));
    let leaves = now.difference(&then).map(|(group, host)| format!("- member {group}@{host}"));
    joins.chain(leaves).collect()
}
