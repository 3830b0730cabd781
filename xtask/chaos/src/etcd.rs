//! etcd as somebody sees it who has nothing to do with Lockstep: over its own HTTP gateway, key by key. One thread writes
//! down who reigned since which revision, each batch of the journal and the revision that it was written at, and who led
//! etcd. The names of keys and the form of values are those of `docs/etcd-keys.md`, read here by other code.

use crate::http::{self, Ask};
use crate::network::{Place, layout};
use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use lockstep_core::cluster::Cluster;
use lockstep_core::id::Index;
use lockstep_core::record::{Body, Record};
use lockstep_core::snapshot;
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

/// Below which all keys are.
pub(crate) const PREFIX: &str = "/chaos/";
const CLIENT_PORT: u16 = 2379;
const PATIENCE: Duration = Duration::from_secs(2);
/// The same for what a member says of itself, which it does at once or not at all.
const STATUS_PATIENCE: Duration = Duration::from_millis(500);
/// How often it is looked at: two reigns do not begin in so short a time.
const PAUSE: Duration = Duration::from_millis(100);
/// How many batches one request reads.
const PAGE_LEN: u64 = 64;
/// Each value ends with a checksum of so many bytes, and a batch begins with a head of so many.
const SUM_LEN: usize = 4;
const HEAD_LEN: usize = 32;

/// A batch of the journal, without its records.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Batch {
    pub(crate) first: u64,
    pub(crate) count: u64,
    pub(crate) reign: u64,
    /// The revision of etcd that it was written at, and how often its key was written.
    pub(crate) written_at: u64,
    pub(crate) times: u64,
    /// The server whose reign it begins.
    pub(crate) begins: Option<String>,
}

/// What was seen of etcd.
#[derive(Debug, Clone, Default)]
pub(crate) struct Seen {
    pub(crate) batches: BTreeMap<u64, Batch>,
    /// By reign, the revision that it began at, and whose it is.
    pub(crate) reigns: BTreeMap<u64, (u64, String)>,
    /// By term, who led.
    pub(crate) leaders: BTreeMap<u64, String>,
    /// What all records come to.
    pub(crate) cluster: Cluster,
    /// What cannot be read.
    pub(crate) broken: Vec<String>,
}

/// The same, written by a thread.
#[derive(Debug, Clone, Default)]
pub(crate) struct Observed(Arc<Mutex<Seen>>);

impl Observed {
    pub(crate) fn lock(&self) -> MutexGuard<'_, Seen> {
        self.0.lock().expect("nobody panics with it in hand")
    }
}

fn address_of(member: Place) -> SocketAddr {
    format!("{}:{CLIENT_PORT}", member.1).parse().expect("it is an address")
}

/// How clients and members reach a member.
pub(crate) fn client_url(member: Place) -> String {
    format!("http://{}:{CLIENT_PORT}", member.1)
}

pub(crate) fn peer_url(member: Place) -> String {
    format!("http://{}:2380", member.1)
}

/// What servers are told of the store.
pub(crate) fn store_url() -> String {
    let members: Vec<String> =
        layout().members().iter().map(|(_, address)| format!("{address}:{CLIENT_PORT}")).collect();
    format!("etcd://{}{}", members.join(","), PREFIX.trim_end_matches('/'))
}

/// What one member answers.
fn ask_one(member: Place, what: &str, body: &Value, patience: Duration) -> Option<Value> {
    let (status, _, answer) =
        http::exchange(address_of(member), Ask::post(&format!("/v3/{what}"), body, patience))?;
    (status == 200).then_some(answer)
}

/// The member that has answered last.
static CURRENT: AtomicUsize = AtomicUsize::new(0);

/// What a member answers: the same one as before, as long as it does.
fn ask(what: &str, body: &Value) -> Option<Value> {
    let members = layout().members();
    let first = CURRENT.load(Ordering::Relaxed);
    (first..first + members.len()).find_map(|turn| {
        let answer = ask_one(members[turn % members.len()], what, body, PATIENCE)?;
        CURRENT.store(turn % members.len(), Ordering::Relaxed);
        Some(answer)
    })
}

/// The gateway writes 64 bits as text, and leaves zeros out.
fn number(object: &Value, field: &str) -> u64 {
    object[field].as_str().and_then(|text| text.parse().ok()).unwrap_or(0)
}

fn encode(text: &str) -> String {
    BASE64_STANDARD.encode(text)
}

/// A key's value without its checksum.
fn value(found: &Value) -> Option<Vec<u8>> {
    let mut value = BASE64_STANDARD.decode(found["value"].as_str()?).ok()?;
    value.truncate(value.len().checked_sub(SUM_LEN)?);
    Some(value)
}

fn range(body: &Value) -> Option<Vec<Value>> {
    let answer = ask("kv/range", body)?;
    Some(answer["kvs"].as_array().cloned().unwrap_or_default())
}

fn get(name: &str) -> Option<Option<Value>> {
    range(&json!({ "key": encode(&format!("{PREFIX}{name}")) })).map(|found| found.into_iter().next())
}

/// Whether all members take part.
pub(crate) fn is_whole() -> bool {
    layout().members().iter().all(|member| leader_by(*member).is_some())
}

/// The term and the leader, as a member knows them.
fn leader_by(member: Place) -> Option<(u64, u64, u64)> {
    let status = ask_one(member, "maintenance/status", &json!({}), STATUS_PATIENCE)?;
    let (term, leader) = (number(&status, "raftTerm"), number(&status, "leader"));
    (leader != 0).then(|| (term, leader, number(&status["header"], "member_id")))
}

/// The member that leads, and its term.
pub(crate) fn leader() -> Option<(&'static str, u64)> {
    layout().members().iter().find_map(|member| {
        let (term, leader, own) = leader_by(*member)?;
        (leader == own).then_some((member.0, term))
    })
}

/// Lets etcd forget all that was before now; says whether it did.
pub(crate) fn compact() -> bool {
    let Some(newest) = ask("maintenance/status", &json!({})) else { return false };
    let revision = number(&newest["header"], "revision");
    ask("kv/compaction", &json!({ "revision": revision.to_string(), "physical": true })).is_some()
}

/// Removes a member, which has ended; says whether it is gone.
pub(crate) fn remove(member: Place) -> bool {
    let Some(list) = ask("cluster/member/list", &json!({})) else { return false };
    let peer = peer_url(member);
    let has_url = |known: &&Value| {
        known["peerURLs"].as_array().is_some_and(|urls| urls.contains(&Value::from(peer.clone())))
    };
    let Some(known) = list["members"].as_array().into_iter().flatten().find(has_url) else { return true };
    let id = known["ID"].clone();
    others(member)
        .any(|other| ask_one(other, "cluster/member/remove", &json!({ "ID": id }), PATIENCE).is_some())
}

/// Adds a member that has nothing yet; says whether it is one now.
pub(crate) fn add(member: Place) -> bool {
    let body = json!({ "peerURLs": [peer_url(member)] });
    others(member).any(|other| ask_one(other, "cluster/member/add", &body, PATIENCE).is_some())
}

fn others(member: Place) -> impl Iterator<Item = Place> {
    layout().members().iter().copied().filter(move |other| *other != member)
}

/// Starts to look; it ends with the process.
pub(crate) fn observe(observed: &Observed) {
    let shared = observed.clone();
    std::thread::spawn(move || {
        loop {
            if let Some((name, term)) = leader() {
                shared.lock().leaders.insert(term, name.to_owned());
            }
            std::thread::sleep(PAUSE);
        }
    });
    let observed = observed.clone();
    std::thread::spawn(move || {
        let mut next = 1;
        loop {
            look(&observed, &mut next);
            std::thread::sleep(PAUSE);
        }
    });
}

/// Looks once, at all that is new; says whether etcd answered.
fn look(observed: &Observed, next: &mut u64) -> bool {
    let Some(leader) = get("leader") else { return false };
    if let Some((reign, at, name)) = leader.as_ref().and_then(reigning) {
        observed.lock().reigns.entry(reign).or_insert((at, name));
    }
    loop {
        let Some(page) = page(*next) else { return false };
        let is_last = (page.len() as u64) < PAGE_LEN;
        for found in page {
            match read(&found) {
                Ok((batch, records)) => {
                    let mut seen = observed.lock();
                    if batch.first > *next {
                        seen.broken.push(format!("after {next} comes the batch of {}", batch.first));
                    }
                    records.iter().for_each(|(index, record)| seen.cluster.apply(*index, record));
                    *next = batch.first + batch.count;
                    seen.batches.insert(batch.first, batch);
                }
                Err(why) => {
                    observed.lock().broken.push(why);
                    return true;
                }
            }
        }
        if is_last {
            return true;
        }
    }
}

/// Whose reign the key says it is, and since which revision.
fn reigning(found: &Value) -> Option<(u64, u64, String)> {
    let leader: Value = serde_json::from_slice(&value(found)?).ok()?;
    Some((leader["reign"].as_u64()?, number(found, "mod_revision"), leader["name"].as_str()?.to_owned()))
}

/// Batches that begin with this index or a later one.
fn page(next: u64) -> Option<Vec<Value>> {
    range(&json!({
        "key": encode(&format!("{PREFIX}j/{next:020}")),
        "range_end": encode(&format!("{PREFIX}j0")),
        "limit": PAGE_LEN.to_string(),
    }))
}

type Records = Vec<(Index, Record)>;

/// A batch, with its records.
fn read(found: &Value) -> Result<(Batch, Records), String> {
    let damaged = || format!("no batch: {found}");
    let bytes = value(found).ok_or_else(damaged)?;
    let (head, body) = bytes.split_at_checked(HEAD_LEN).ok_or_else(damaged)?;
    let wide = |at: usize| u64::from_le_bytes(head[at..at + 8].try_into().expect("eight bytes"));
    let narrow = |at: usize| u32::from_le_bytes(head[at..at + 4].try_into().expect("four bytes"));
    let (reign, first, count, chunks) = (wide(0), wide(8), u64::from(narrow(16)), narrow(20));
    let chunked = (0..chunks).map(|chunk| {
        let found = get(&format!("c/{first:020}/{chunk:06}")).flatten().and_then(|found| value(&found));
        found.ok_or_else(|| format!("chunk {chunk} of batch {first} is missing"))
    });
    let body = if chunks == 0 { body.to_vec() } else { chunked.collect::<Result<Vec<_>, _>>()?.concat() };
    let mut records = Vec::new();
    let mut rest = body.as_slice();
    while let Some((len, behind)) = rest.split_first_chunk::<4>() {
        let len = u32::from_le_bytes(*len) as usize;
        let (payload, behind) = behind.split_at_checked(len).ok_or_else(damaged)?;
        let record: Record = serde_json::from_slice(payload).map_err(|error| error.to_string())?;
        records.push((Index(first + records.len() as u64), record));
        rest = behind;
    }
    if records.len() as u64 != count {
        return Err(damaged());
    }
    let begins = records.first().and_then(|(_, record)| {
        if let Body::Reign { server, .. } = &record.body { Some(server.clone()) } else { None }
    });
    let (written_at, times) = (number(found, "mod_revision"), number(found, "version"));
    Ok((Batch { first, count, reign, written_at, times, begins }, records))
}

/// All that etcd keeps now, as a server that starts reads it: the cluster that it comes to, and each batch.
pub(crate) fn journal() -> Result<(Cluster, BTreeMap<u64, Batch>), String> {
    let mut cluster = snapshot()?;
    let mut batches = BTreeMap::new();
    let mut next = 1;
    loop {
        let page = page(next).ok_or("etcd does not answer")?;
        for found in &page {
            let (batch, records) = read(found)?;
            next = batch.first + batch.count;
            for (index, record) in &records {
                // The snapshot has what is up to it.
                if *index <= cluster.revision {
                    continue;
                }
                if index.0 != cluster.revision.0 + 1 {
                    return Err(format!("after {} comes {index}", cluster.revision));
                }
                cluster.apply(*index, record);
            }
            batches.insert(batch.first, batch);
        }
        if (page.len() as u64) < PAGE_LEN {
            return Ok((cluster, batches));
        }
    }
}

fn snapshot() -> Result<Cluster, String> {
    let current = get("snap/current").ok_or("etcd does not answer")?;
    let Some(current) = current else { return Ok(Cluster::default()) };
    let current: Value = value(&current)
        .and_then(|bytes| serde_json::from_slice(&bytes).ok())
        .ok_or("the snapshot that counts is not named")?;
    let (number, len) = (current["number"].as_u64().unwrap_or(0), current["bytes"].as_u64().unwrap_or(0));
    let mut bytes = Vec::new();
    while (bytes.len() as u64) < len {
        let chunk = bytes.len() / (960 << 10);
        let found = get(&format!("snap/{number:020}/{chunk:06}")).flatten().and_then(|found| value(&found));
        bytes.extend(found.ok_or_else(|| format!("chunk {chunk} of snapshot {number} is missing"))?);
    }
    snapshot::decode(&bytes).map_err(|error| error.to_string())
}

/// A defect on purpose: the newest batch is written once more, under the reign before, by somebody who asks for no fence.
pub(crate) fn write_unfenced(seen: &Seen) -> bool {
    let Some(batch) = seen.batches.values().next_back() else { return false };
    let Some(found) = page(batch.first).and_then(|page| page.into_iter().next()) else { return false };
    let Some(mut bytes) = found["value"].as_str().and_then(|text| BASE64_STANDARD.decode(text).ok()) else {
        return false;
    };
    bytes[..8].copy_from_slice(&(batch.reign - 1).to_le_bytes());
    let put = json!({ "key": found["key"], "value": BASE64_STANDARD.encode(bytes) });
    ask("kv/put", &put).is_some()
}

/// A defect on purpose: all batches from an index on are gone.
pub(crate) fn lose_from(index: u64) -> bool {
    let from = json!({
        "key": encode(&format!("{PREFIX}j/{index:020}")),
        "range_end": encode(&format!("{PREFIX}j0")),
    });
    ask("kv/deleterange", &from).is_some()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_batch_is_read_with_its_records_and_one_that_lacks_some_is_refused() {
        let payloads = [
            br#"{"at":1,"record":"reign","server":"s2"}"#.as_slice(),
            br#"{"at":2,"record":"reign","server":"s3"}"#.as_slice(),
        ];
        let found = |count: u32| {
            let mut bytes = Vec::new();
            bytes.extend(9_u64.to_le_bytes());
            bytes.extend(7_u64.to_le_bytes());
            [count, 0, 0, 0].iter().for_each(|number| bytes.extend(number.to_le_bytes()));
            for payload in payloads {
                bytes.extend(u32::try_from(payload.len()).unwrap().to_le_bytes());
                bytes.extend(payload);
            }
            bytes.extend([0; SUM_LEN]);
            json!({ "value": BASE64_STANDARD.encode(bytes), "mod_revision": "40", "version": "1" })
        };
        let (batch, records) = read(&found(2)).unwrap();
        let begins = Some("s2".to_owned());
        assert_eq!(batch, Batch { first: 7, count: 2, reign: 9, written_at: 40, times: 1, begins });
        assert_eq!(records.iter().map(|(index, _)| index.0).collect::<Vec<_>>(), [7, 8]);
        assert!(read(&found(3)).is_err());
    }
}
