//! `lockstep fence`, `lockstep resolve` and `lockstep server stop`: what people do when hosts, members or the server
//! itself are away.

use super::client::{Answer, Client, ClientError};
use super::option::{ServerOptions, shown, span};
use super::output::{Form, clean, note};
use super::{Exit, Failure};
use crate::api::FENCE_WAIT_MAX;
use crate::api::body::{AwayBody, FenceBody, ResolveBody};
use crate::api::object::{Away, Health, Host, Member, Server, ServerName};
use clap::{Args, Subcommand};
use lockstep_core::engine::AWAY_MS;
use lockstep_core::id::{HostName, MemberId, StateName};
use std::time::Duration;
use tokio::time::{sleep, timeout};

/// How much longer than the server the command line waits for its answer to a longer lease: a lease, of an hour at most
/// but of seconds mostly.
const AWAY_WAIT_MAX: Duration = Duration::from_secs(60);

/// How long it is waited for another server to take over from one that has stepped down. It takes a moment, if there is
/// one.
const STEP_DOWN_MAX: Duration = Duration::from_secs(2);
/// How often that is looked for.
const LOOK_PAUSE: Duration = Duration::from_millis(20);

/// `lockstep server`.
#[derive(Debug, Args)]
#[command(args_conflicts_with_subcommands = true, subcommand_negates_reqs = true)]
pub struct ServerArgs {
    #[command(flatten)]
    pub(super) options: ServerOptions,
    #[command(subcommand)]
    pub(super) verb: Option<ServerVerb>,
}

/// What may be done with a server that runs.
#[derive(Debug, Subcommand)]
pub enum ServerVerb {
    /// Stop it; members run on, and no transition goes ahead until it is back
    Stop {
        /// First tell the hosts of a longer lease, so that nothing moves or stops for so long
        #[arg(long, value_name = "TIME", value_parser = away)]
        away: Option<Duration>,
    },
    /// Let another server take over from the active one
    StepDown,
}

/// `lockstep fence`.
#[derive(Debug, Args)]
#[command(
    after_help = "Without --confirm the handler called fence runs on another host, and this waits for its end. \
                        Exit codes: 0 the host has stopped, 1 it came back meanwhile, 3 nobody could make sure"
)]
pub struct FenceArgs {
    /// The host
    #[arg(value_name = "HOST")]
    host: HostName,
    /// You have made sure that nothing of it runs, and that nothing starts by itself
    #[arg(long, requires = "reason")]
    confirm: bool,
    /// How you know, for the record
    #[arg(long, value_name = "TEXT", requires = "confirm")]
    reason: Option<String>,
}

/// `lockstep resolve`.
#[derive(Debug, Args)]
pub struct ResolveArgs {
    /// The member and the state that it is in, such as db@pg-a=offline
    #[arg(value_name = "MEMBER=STATE", value_parser = member_in_state)]
    place: (MemberId, StateName),
    /// How you know, for the record
    #[arg(long, value_name = "TEXT")]
    reason: String,
}

fn member_in_state(text: &str) -> Result<(MemberId, StateName), String> {
    let (member, state) = text.split_once('=').ok_or("write GROUP@HOST=STATE")?;
    let named = |error: lockstep_core::id::NameError| error.to_string();
    Ok((member.parse().map_err(named)?, state.parse().map_err(named)?))
}

/// Makes sure that a host has stopped.
pub async fn fence(client: &Client, args: FenceArgs, form: Form) -> Result<Exit, Failure> {
    let FenceArgs { host, confirm, reason } = args;
    let body = FenceBody { confirm, reason };
    let path = format!("/v1/hosts/{host}/fence");
    let fenced: Answer<Host> = client.post_patiently(&path, &body, FENCE_WAIT_MAX).await?;
    let liveness = &fenced.body.liveness;
    form.print(&fenced.body, || format!("{host} is {liveness}\n"))?;
    if liveness == "fenced" {
        return Ok(Exit::Done);
    }
    note(&format!("{host} came back while it was being fenced: what it says of its members counts"));
    Ok(Exit::Error)
}

/// Says where a member is.
pub async fn resolve(client: &Client, args: ResolveArgs, form: Form) -> Result<Exit, Failure> {
    let ((id, state), reason) = (args.place, args.reason);
    let body = ResolveBody { state: state.to_string(), reason };
    // One that was leaving is none any more.
    let resolved: Answer<Option<Member>> = client.post(&format!("/v1/members/{id}/resolve"), &body).await?;
    form.print(&resolved.body, || format!("{id} counts as {state}\n"))?;
    Ok(Exit::Done)
}

/// What may be done with a server that runs.
pub async fn server(client: &Client, verb: ServerVerb, form: Form) -> Result<Exit, Failure> {
    match verb {
        ServerVerb::Stop { away } => {
            if let Some(away) = away {
                tell(client, away).await?;
            }
            let server: Server = client.get("/v1/server").await?;
            let address = client.answered_last().to_owned();
            let stopped: Answer<Health> = client.post("/v1/server/stop", &serde_json::json!({})).await?;
            // The next one is asked to where this one has ended meanwhile.
            let name = (client.answered_last() == address).then_some(server.name.as_str());
            let name = clean(name.unwrap_or("the server"));
            form.print(&stopped.body, || format!("{name} at {} stops\n", clean(client.answered_last())))?;
            Ok(Exit::Done)
        }
        ServerVerb::StepDown => {
            let before: Server = client.get("/v1/server").await?;
            let before = before.active.map(|active| active.name);
            let _: Answer<Health> = client.post("/v1/server/step-down", &serde_json::json!({})).await?;
            let now = another(client, before.as_deref()).await;
            form.print(&now, || match &now {
                Some(now) => format!("{} is the active server now\n", clean(&now.name)),
                None => "it is not the active server any more\n".to_owned(),
            })?;
            if now.is_none() {
                note("no other server has taken over yet: this one does in a moment, if none does");
            }
            Ok(Exit::Done)
        }
    }
}

/// The active server, as soon as it is another one.
async fn another(client: &Client, before: Option<&str>) -> Option<ServerName> {
    let find = async {
        loop {
            let known: Result<Server, ClientError> = client.get("/v1/server").await;
            let active = known.ok().and_then(|known| known.active);
            if let Some(active) = active.filter(|active| Some(active.name.as_str()) != before) {
                return active;
            }
            sleep(LOOK_PAUSE).await;
        }
    };
    timeout(STEP_DOWN_MAX, find).await.ok()
}

/// How long a server may say that it is going to be away.
fn away(text: &str) -> Result<Duration, String> {
    span(text, AWAY_MS)
}

/// Tells the hosts of a longer lease. The server is not stopped while one of them may not know it.
async fn tell(client: &Client, away: Duration) -> Result<(), Failure> {
    let body = AwayBody { lease_ms: u64::try_from(away.as_millis()).unwrap_or(u64::MAX) };
    let told: Answer<Away> = client.post_patiently("/v1/server/away", &body, AWAY_WAIT_MAX).await?;
    let Away { told, missing, missing_hosts, .. } = told.body;
    let hosts = |count: u64| if count == 1 { "1 host".to_owned() } else { format!("{count} hosts") };
    let go = if told == 1 { "goes" } else { "go" };
    note(&format!("{} {go} by a lease of {}", hosts(told), shown(away)));
    if missing > 0 {
        let mut named: Vec<_> = missing_hosts.iter().map(|host| clean(host)).collect();
        if missing > missing_hosts.len() as u64 {
            named.push("...".to_owned());
        }
        let named = named.join(", ");
        return Err(Failure::helped(
            format!("{} of those connected may not know of it ({named}): the server goes on", hosts(missing)),
            "ask again: a host that does not answer is lost within its lease; or stop without --away",
        ));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_member_is_somewhere() {
        let (member, state) = member_in_state("db@pg-a=offline").unwrap();
        assert_eq!((member.to_string().as_str(), state.as_str()), ("db@pg-a", "offline"));
        for bad in ["", "db@pg-a", "db=offline", "db@pg-a=", "db@=offline"] {
            member_in_state(bad).unwrap_err();
        }
    }
}
