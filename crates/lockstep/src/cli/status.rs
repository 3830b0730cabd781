//! `lockstep status`: one screen. Groups with their members, open transitions, what is wrong and what to do next.

use super::client::{Client, ClientError};
use super::finding::{Finding, findings, is_down, unguarded};
use super::freeze::freezes;
use super::list::frozen;
use super::offline::exported;
use super::output::{Form, clean, note, table};
use super::servers::{Said, is_denied, nobody_is_active};
use super::watch::{self, AtRevision};
use super::{Exit, Failure};
use crate::api::object::{
    Freeze, Group, Host, List, Member, Refused, Relation, Relations, Server, Transition,
};
use serde::Serialize;
use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;
use tokio::time::sleep;

/// Members of a group that are shown one by one; more are counted by state.
const NAMED_MAX: usize = 8;
/// Findings that are shown; more are counted, `-o json` has all.
const FINDINGS_SHOWN_MAX: usize = 20;

/// A member that has just started is guarded within that time: the server records at most once a second whether it is.
/// Too low: it is said to be wrong.
const GUARDED_WITHIN: Duration = Duration::from_millis(1500);
/// How often the lists are read to be of one revision.
const EXPORT_TRIES_MAX: usize = 20;

#[derive(Debug, Serialize)]
struct Status {
    revision: u64,
    hosts: Vec<Host>,
    groups: Vec<Group>,
    members: Vec<Member>,
    open: Vec<Transition>,
    freezes: Vec<Freeze>,
    wrong: Vec<Finding>,
    /// The servers whose addresses were given, where they share a store.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    servers: Vec<Known>,
}

/// A server, as far as it is known.
#[derive(Debug, Serialize)]
struct Known {
    address: String,
    /// What it says of itself; none: it does not answer.
    says: Option<Server>,
}

impl AtRevision for Status {
    fn revision(&self) -> u64 {
        self.revision
    }
}

/// Prints it.
pub async fn status(client: &Client, watch: bool, form: Form) -> Result<Exit, Failure> {
    watch::show(client, watch, form, read, screen).await
}

/// Prints the state as planning without a server takes it.
pub async fn export(client: &Client) -> Result<Exit, Failure> {
    for _ in 0..EXPORT_TRIES_MAX {
        let hosts: List<Host> = client.get("/v1/hosts").await?;
        let groups: List<Group> = client.get("/v1/groups").await?;
        let members: List<Member> = client.get("/v1/members").await?;
        let freezes: List<Freeze> = client.get("/v1/freezes").await?;
        if [groups.revision, members.revision, freezes.revision] != [hosts.revision; 3] {
            continue;
        }
        let state = exported(&hosts.items, &groups.items, &members.items, &freezes.items)
            .map_err(|error| Failure::error(format!("what the server answers cannot be read: {error}")))?;
        let moving: BTreeSet<_> =
            members.items.iter().filter_map(|member| member.transition.as_deref()).collect();
        for id in moving {
            note(&format!("note: {} is under way: what it moves is where it was last seen", clean(id)));
        }
        Form::Json.print(&state, String::new)?;
        return Ok(Exit::Done);
    }
    Err(Failure::helped("the cluster changes faster than it can be read", "try again when less goes on"))
}

async fn read(client: &Client) -> Result<Status, ClientError> {
    let hosts: List<Host> = client.get("/v1/hosts").await?;
    let groups: List<Group> = client.get("/v1/groups").await?;
    let members: List<Member> = client.get("/v1/members").await?;
    let transitions: List<Transition> = client.get("/v1/transitions").await?;
    let freezes: List<Freeze> = client.get("/v1/freezes").await?;
    let mut open = transitions.items;
    open.retain(|transition| transition.outcome.is_none());
    let relations: Relations = client.get("/v1/relations").await?;
    let read_by = client.answered_last().to_owned();
    let each = client.each_server().await;
    let mut wrong = of_servers(&each, &read_by);
    wrong.extend(findings(&hosts.items, &groups.items, &members.items, &relations.items));
    wrong.extend(still_unguarded(client, &groups.items, &members.items, &relations.items).await?);
    // What has happened between the first list and the last is read again.
    let revision = hosts.revision;
    let (hosts, groups, members, freezes) = (hosts.items, groups.items, members.items, freezes.items);
    let servers = servers(each);
    Ok(Status { revision, hosts, groups, members, open, freezes, wrong, servers })
}

/// What is not guarded and does not become so in a moment.
async fn still_unguarded(
    client: &Client,
    groups: &[Group],
    members: &[Member],
    relations: &[Relation],
) -> Result<Vec<Finding>, ClientError> {
    let mut found = unguarded(groups, members, relations);
    if !found.is_empty() {
        sleep(GUARDED_WITHIN).await;
        let members: List<Member> = client.get("/v1/members").await?;
        let still = unguarded(groups, &members.items, relations);
        found.retain(|id, _| still.contains_key(id));
    }
    Ok(found.into_values().collect())
}

/// What the servers say of themselves; nobody where one has its store to itself.
fn servers(each: Vec<Said>) -> Vec<Known> {
    let known =
        each.into_iter().map(|(address, says)| Known { address: address.to_owned(), says: says.ok() });
    let known: Vec<_> = known.collect();
    let is_shared = known.iter().any(|known| known.says.as_ref().is_some_and(|says| says.shared));
    if is_shared { known } else { Vec::new() }
}

/// What is wrong with the servers themselves.
fn of_servers(each: &[Said], read_by: &str) -> Vec<Finding> {
    let mut found = Vec::new();
    let is_shared = each.iter().any(|(_, says)| says.as_ref().is_ok_and(|server| server.shared));
    if is_shared && nobody_is_active(each) {
        let reader = each.iter().find(|(address, _)| *address == read_by);
        let reader = reader.and_then(|(_, says)| says.as_ref().ok()).map_or(read_by, |server| &server.name);
        let problem = format!("no server is active: what is shown was last read by {reader}");
        let next = "see whether the servers reach etcd: their logs, docs/etcd.md".to_owned();
        found.push(Finding { problem, next, run: None });
    }
    found.extend(strangers(each, read_by));
    for (address, says) in each {
        let refused = says.iter().flat_map(|server| &server.refused);
        found.extend(refused.map(|Refused { host, message, help, since }| Finding {
            problem: format!("the agent of host {host} is refused since {since}: {message}"),
            next: help.clone(),
            run: None,
        }));
        let (problem, next) = match says {
            Ok(Server { waits_for: None, .. }) => continue,
            Ok(Server { name, waits_for: Some(why), .. }) => (
                format!("the server {name} waits for its store: {why}"),
                "see whether it reaches etcd: docs/etcd.md",
            ),
            Err(error) => (
                format!("the server at {address} does not answer: {}", error.why()),
                "see whether it runs, and whether that is where it listens",
            ),
        };
        found.push(Finding { problem, next: next.to_owned(), run: None });
    }
    found
}

/// Servers of another cluster than the one that is shown.
fn strangers(each: &[Said], read_by: &str) -> Vec<Finding> {
    let known = each.iter().filter_map(|(address, says)| {
        let Server { name, cluster, .. } = says.as_ref().ok()?;
        Some((*address, name, cluster.as_ref()?))
    });
    let known: Vec<_> = known.collect();
    let Some((shown, shown_name, own)) = known.iter().find(|(address, ..)| *address == read_by) else {
        return Vec::new();
    };
    let others = known.iter().filter(|(.., cluster)| cluster != own);
    let finding = |(address, name, _): &(&str, &String, &String)| Finding {
        problem: format!("{shown_name} at {shown} and {name} at {address} are servers of different clusters"),
        next: format!(
            "mend the addresses that were given, or the --store or --data of one of the two: what is shown is of {shown_name}"
        ),
        run: None,
    };
    others.map(finding).collect()
}

fn server(known: &Known, says: &[&Server]) -> String {
    match &known.says {
        Some(Server { name, role, revision, active, .. }) => {
            let active = active.as_ref().filter(|active| active.name != *name && !is_denied(active, says));
            let active = active.map(|active| format!(" of {}", clean(&active.name))).unwrap_or_default();
            format!("{} {}{active} at revision {revision}", clean(name), clean(role))
        }
        None => format!("{} does not answer", clean(&known.address)),
    }
}

fn screen(status: &Status) -> String {
    let mut liveness: BTreeMap<String, usize> = BTreeMap::new();
    status.hosts.iter().for_each(|host| *liveness.entry(host.stands()).or_default() += 1);
    let drained = status.hosts.iter().filter(|host| host.drained).map(|host| clean(&host.name));
    let drained: Vec<_> = drained.collect();
    let liveness: Vec<_> = liveness.iter().map(|(name, count)| format!("{count} {}", clean(name))).collect();
    let hosts = if liveness.is_empty() { "none".to_owned() } else { liveness.join(", ") };
    let mut text = format!("revision {}   hosts: {hosts}\n", status.revision);
    if !drained.is_empty() {
        // Somebody has meant it, and may have forgotten it.
        text.push_str(&format!("drained: {} (lockstep undrain HOST)\n", drained.join(", ")));
    }
    if !status.servers.is_empty() {
        let says: Vec<&Server> = status.servers.iter().filter_map(|known| known.says.as_ref()).collect();
        let servers: Vec<_> = status.servers.iter().map(|known| server(known, &says)).collect();
        text.push_str(&format!("servers: {}\n", servers.join(", ")));
    }
    if status.groups.is_empty() {
        text.push_str("\nno groups: declare them with lockstep apply -f cluster.toml\n");
    } else {
        text.push('\n');
        text.push_str(&groups(status));
        text.push_str(last_known(&status.members));
    }
    if !status.open.is_empty() {
        let rows: Vec<Vec<String>> = status.open.iter().map(transition_row).collect();
        text.push('\n');
        text.push_str(&table(&["TRANSITION", "PHASE", "TARGETS", "REASON"], &rows));
    }
    if !status.freezes.is_empty() {
        text.push('\n');
        text.push_str(&freezes(&status.freezes));
    }
    if status.wrong.is_empty() {
        text.push_str("\nnothing is wrong\n");
        return text;
    }
    text.push_str("\nwrong:\n");
    for finding in status.wrong.iter().take(FINDINGS_SHOWN_MAX) {
        text.push_str(&format!("  {}\n    next: {}\n", clean(&finding.problem), clean(&finding.next)));
    }
    if let Some(more @ 1..) = status.wrong.len().checked_sub(FINDINGS_SHOWN_MAX) {
        text.push_str(&format!("  and {more} more: lockstep status -o json\n"));
    }
    text
}

fn transition_row(transition: &Transition) -> Vec<String> {
    vec![
        transition.id.clone().unwrap_or_default(),
        transition.stands(),
        transition.targets.join(" "),
        transition.reason.clone().unwrap_or_default(),
    ]
}

fn groups(status: &Status) -> String {
    let rows = status.groups.iter().map(|group| {
        let members: Vec<&Member> =
            status.members.iter().filter(|member| member.group == group.name).collect();
        let serves = match group.serves {
            true => "serves",
            // Nobody has asked it to.
            false if is_down(group, &members) => "is down",
            false => "does not serve",
        };
        let members = if group.groups.is_empty() {
            of_group(&members)
        } else {
            format!("of {}", group.groups.join(", "))
        };
        vec![group.name.clone(), format!("{serves}{}", frozen(group)), members]
    });
    table(&["GROUP", "", "MEMBERS"], &rows.collect::<Vec<_>>())
}

fn of_group(members: &[&Member]) -> String {
    if members.len() <= NAMED_MAX {
        let named: Vec<_> =
            members.iter().map(|member| format!("{} {}", member.host, state(member))).collect();
        return if named.is_empty() { "none".to_owned() } else { named.join(", ") };
    }
    let mut counts: BTreeMap<String, usize> = BTreeMap::new();
    members.iter().for_each(|member| *counts.entry(state(member)).or_default() += 1);
    let counts: Vec<_> = counts.iter().map(|(state, count)| format!("{count} {state}")).collect();
    counts.join(", ")
}

/// What `?` behind a state means, where there is one.
fn last_known(members: &[Member]) -> &'static str {
    if members.iter().any(Member::is_last_known) {
        "?: where it was last known to be; its host is not heard\n"
    } else {
        ""
    }
}

/// `standby`, `standby? -> primary (pending)`.
pub fn state(member: &Member) -> String {
    let actual = member.actual.as_deref().unwrap_or("unknown");
    let mut text = format!("{actual}{}", if member.is_last_known() { "?" } else { "" });
    if let Some(goal) = member.goal.as_deref().filter(|goal| *goal != actual) {
        text = format!("{text} -> {goal}");
    }
    let marks = member.mark.as_deref().into_iter().chain(member.leaving.then_some("leaving"));
    let marks: Vec<_> = marks.collect();
    if marks.is_empty() { text } else { format!("{text} ({})", marks.join(", ")) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::api::object::ServerName;
    use expect_test::expect;

    const URLS: [&str; 3] = ["http://h1", "http://h2", "http://h3"];

    fn named(place: usize) -> ServerName {
        ServerName { name: format!("s{place}"), url: URLS[place - 1].to_owned() }
    }

    fn stands_by(place: usize, of: Option<usize>) -> Result<Server, ClientError> {
        let ServerName { name, url } = named(place);
        let (role, active) = ("standby".to_owned(), of.map(named));
        let (waits_for, cluster, refused) = Default::default();
        Ok(Server { name, url, role, revision: 7, shared: true, active, waits_for, cluster, refused })
    }

    fn active(place: usize) -> Result<Server, ClientError> {
        stands_by(place, Some(place)).map(|server| Server { role: "active".to_owned(), ..server })
    }

    fn silent() -> Result<Server, ClientError> {
        Err(ClientError::Away("Connection refused".to_owned()))
    }

    fn shown(each: impl IntoIterator<Item = Result<Server, ClientError>>) -> String {
        let each: Vec<Said> = URLS.into_iter().zip(each).collect();
        let wrong = of_servers(&each, URLS[1]);
        let (hosts, groups, members, open, freezes) = Default::default();
        let servers = servers(each);
        screen(&Status { revision: 7, hosts, groups, members, open, freezes, wrong, servers })
    }

    #[test]
    fn that_no_server_is_active_is_wrong() {
        expect![[r#"
            revision 7   hosts: none
            servers: s1 standby at revision 7, s2 standby at revision 7, s3 standby at revision 7

            no groups: declare them with lockstep apply -f cluster.toml

            wrong:
              no server is active: what is shown was last read by s2
                next: see whether the servers reach etcd: their logs, docs/etcd.md
        "#]]
        .assert_eq(&shown([stands_by(1, None), stands_by(2, Some(1)), stands_by(3, Some(1))]));
        let is_said = |each: Vec<_>| shown(each).contains("no server is active");
        assert!(is_said(vec![silent(), stands_by(2, Some(1))]), "its address is known, and nobody is there");
        assert!(is_said(vec![stands_by(1, None)]));
        assert!(!is_said(vec![stands_by(1, Some(3)), stands_by(2, None)]), "the third was not asked");
        let fine = shown([active(1), stands_by(2, Some(1)), stands_by(3, Some(1))]);
        assert!(fine.contains("s2 standby of s1 at") && fine.ends_with("nothing is wrong\n"), "{fine}");
    }

    #[test]
    fn that_a_server_does_not_answer_is_wrong() {
        expect![[r#"
            revision 7   hosts: none
            servers: s1 active at revision 7, http://h2 does not answer

            no groups: declare them with lockstep apply -f cluster.toml

            wrong:
              the server at http://h2 does not answer: Connection refused
                next: see whether it runs, and whether that is where it listens
        "#]]
        .assert_eq(&shown([active(1), silent()]));
        let waits = Some("etcd does not answer: Connection refused".to_owned());
        let waits = stands_by(2, Some(1)).map(|server| Server { waits_for: waits, ..server });
        let said = shown([active(1), waits]);
        assert!(said.contains("the server s2 waits for its store: etcd does not answer: Conn"), "{said}");
        let alone = active(1).map(|server| Server { shared: false, ..server });
        let said = shown([alone, silent()]);
        assert!(said.contains("the server at http://h2 does not answer"), "{said}");
    }

    #[test]
    fn hosts_that_have_not_come_to_this_server_are_told_apart() {
        let host = |(name, liveness, heard): (&str, &str, Option<bool>)| Host {
            name: name.to_owned(),
            liveness: liveness.to_owned(),
            since: None,
            labels: BTreeMap::new(),
            address: None,
            drained: false,
            heard,
        };
        let (yes, no) = (Some(true), Some(false));
        let hosts = [("a", "alive", no), ("b", "alive", yes), ("c", "alive", None), ("d", "lost", no)];
        let hosts = hosts.map(host).to_vec();
        let (groups, members, open, freezes, wrong, servers) = Default::default();
        let text = screen(&Status { revision: 7, hosts, groups, members, open, freezes, wrong, servers });
        assert!(text.starts_with("revision 7   hosts: 2 alive, 1 alive (not heard yet), 1 lost\n"), "{text}");
    }

    #[test]
    fn that_servers_are_of_different_clusters_is_wrong() {
        let of = |place: usize, cluster: Option<&str>| {
            active(place).map(|server| Server {
                cluster: cluster.map(str::to_owned),
                shared: false,
                ..server
            })
        };
        expect![[r#"
            revision 7   hosts: none

            no groups: declare them with lockstep apply -f cluster.toml

            wrong:
              s2 at http://h2 and s3 at http://h3 are servers of different clusters
                next: mend the addresses that were given, or the --store or --data of one of the two: what is shown is of s2
        "#]]
        .assert_eq(&shown([of(1, Some("x")), of(2, Some("x")), of(3, Some("y"))]));
        let fine = shown([of(1, None), of(2, Some("x")), of(3, None)]);
        assert!(fine.ends_with("nothing is wrong\n"), "an older version says none: {fine}");
    }

    #[test]
    fn that_an_agent_is_refused_is_wrong() {
        let refused = Refused {
            host: "a".to_owned(),
            message: "it belongs to another cluster".to_owned(),
            help: "give it the servers of that one".to_owned(),
            since: "2026-01-05T06:00:00.000Z".to_owned(),
        };
        let alone = active(1).map(|server| Server { shared: false, refused: vec![refused], ..server });
        expect![[r#"
            revision 7   hosts: none

            no groups: declare them with lockstep apply -f cluster.toml

            wrong:
              the agent of host a is refused since 2026-01-05T06:00:00.000Z: it belongs to another cluster
                next: give it the servers of that one
        "#]]
        .assert_eq(&shown([alone]));
    }
}
