//! `lockstep freeze` and `lockstep thaw`: keeping planned change away from groups, or from everything.

use super::client::{Answer, Client};
use super::option::span;
use super::output::{Form, clean, note, table};
use super::{Exit, Failure};
use crate::api::body::{FreezeBody, ThawBody};
use crate::api::object::{Freeze, List};
use clap::Args;
use lockstep_core::freeze::FREEZE_MAX_MS;
use lockstep_core::id::GroupName;
use lockstep_core::time::WallTime;
use std::time::Duration;

/// `lockstep freeze`.
#[derive(Debug, Args)]
pub struct FreezeArgs {
    /// The groups; the whole cluster when none is named
    #[arg(value_name = "GROUP")]
    groups: Vec<GroupName>,
    /// Why, for those whom it keeps waiting
    #[arg(long, value_name = "TEXT")]
    reason: String,
    /// Ends by itself after this time, such as 2h or 3d
    #[arg(long = "for", value_name = "TIME", value_parser = freeze_span, conflicts_with = "until")]
    lasts: Option<Duration>,
    /// Ends by itself at this moment, such as 2026-01-31T09:05:00Z
    #[arg(long, value_name = "RFC3339")]
    until: Option<WallTime>,
}

/// `lockstep thaw`.
#[derive(Debug, Args)]
pub struct ThawArgs {
    /// The groups; all that is frozen when none is named
    #[arg(value_name = "GROUP")]
    groups: Vec<GroupName>,
}

fn freeze_span(text: &str) -> Result<Duration, String> {
    span(text, 1..=FREEZE_MAX_MS)
}

/// Freezes.
pub async fn freeze(client: &Client, args: FreezeArgs, form: Form) -> Result<Exit, Failure> {
    let body = FreezeBody {
        groups: args.groups.iter().map(ToString::to_string).collect(),
        reason: args.reason,
        for_ms: args.lasts.map(|lasts| lasts.as_millis() as u64),
        until: args.until.map(|until| until.to_string()),
    };
    let frozen: Answer<List<Freeze>> = client.post("/v1/freezes", &body).await?;
    form.print(&frozen.body, || freezes(&frozen.body.items))?;
    Ok(Exit::Done)
}

/// Thaws, and shows what is frozen still.
pub async fn thaw(client: &Client, args: ThawArgs, form: Form) -> Result<Exit, Failure> {
    let body = ThawBody { groups: args.groups.iter().map(ToString::to_string).collect() };
    let frozen: Answer<List<Freeze>> = client.post("/v1/freezes/thaw", &body).await?;
    form.print(&frozen.body, || freezes(&frozen.body.items))?;
    if !args.groups.is_empty() && frozen.body.items.iter().any(|freeze| freeze.groups.is_empty()) {
        note("the whole cluster is frozen still, and they with it");
        note("help: `lockstep thaw` ends all freezes");
    }
    Ok(Exit::Done)
}

/// What is frozen, by whom, until when and why.
pub fn freezes(freezes: &[Freeze]) -> String {
    if freezes.is_empty() {
        return "nothing is frozen\n".to_owned();
    }
    let rows = freezes.iter().map(|freeze| {
        let until = freeze.until.clone().unwrap_or_else(|| "thawed".to_owned());
        let what = if freeze.groups.is_empty() { "everything".to_owned() } else { freeze.groups.join(" ") };
        vec![what, until, freeze.principal.clone(), clean(&freeze.reason)]
    });
    table(&["FROZEN", "UNTIL", "BY", "REASON"], &rows.collect::<Vec<_>>())
}
