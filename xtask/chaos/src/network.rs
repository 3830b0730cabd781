//! A network namespace for each server, for each member of etcd and for each host, joined by a bridge; and the rules that
//! cut them off.

use crate::command::{run, run_args};
use std::io;
use std::sync::OnceLock;

/// Where the driver, its clients and its proxy are.
pub(crate) const DRIVER: &str = "10.77.0.254";
pub(crate) const SERVER_PORT: u16 = 7420;

/// Who is somewhere, and its address.
pub(crate) type Place = (&'static str, &'static str);

const ONE_SERVER: [Place; 1] = [("server", "10.77.0.1")];
const THREE_SERVERS: [Place; 3] = [("s1", "10.77.0.1"), ("s2", "10.77.0.2"), ("s3", "10.77.0.3")];
const MEMBERS: [Place; 3] = [("e1", "10.77.0.101"), ("e2", "10.77.0.102"), ("e3", "10.77.0.103")];

/// Which servers there are in a run.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum Layout {
    /// With the embedded store, on a disk of its own.
    #[value(name = "1")]
    One,
    /// With their store in an etcd of three members.
    #[value(name = "3")]
    Three,
}

static LAYOUT: OnceLock<Layout> = OnceLock::new();

/// Said once, before anything else is done.
pub(crate) fn set_layout(layout: Layout) {
    LAYOUT.set(layout).expect("a run has one layout");
}

pub(crate) fn layout() -> Layout {
    LAYOUT.get().copied().unwrap_or(Layout::One)
}

impl Layout {
    pub(crate) fn servers(self) -> &'static [Place] {
        match self {
            Self::One => &ONE_SERVER,
            Self::Three => &THREE_SERVERS,
        }
    }

    pub(crate) fn members(self) -> &'static [Place] {
        match self {
            Self::One => &[],
            Self::Three => &MEMBERS,
        }
    }

    pub(crate) fn is_server(self, name: &str) -> bool {
        self.servers().iter().any(|(known, _)| *known == name)
    }

    /// The address of a server or a member of etcd.
    pub(crate) fn address(self, name: &str) -> &'static str {
        let mut places = self.servers().iter().chain(self.members());
        places.find(|(known, _)| *known == name).map(|(_, address)| *address).expect("it is one of them")
    }
}

/// Which packets of a host a rule is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Way {
    /// Those that it sends, and those that it is sent.
    Both,
    /// Those that it sends.
    Out,
    /// Those that it is sent.
    In,
}

/// Makes the bridge and a namespace for each name, with an address.
pub(crate) fn make(places: &[(String, String)]) -> io::Result<()> {
    run("ip link set lo up")?;
    run("ip link add bridge0 type bridge")?;
    run(&format!("ip addr add {DRIVER}/24 dev bridge0"))?;
    run("ip link set bridge0 up")?;
    std::fs::create_dir_all("/run/netns")?;
    for (place, address) in places {
        run(&format!("ip netns add {place}"))?;
        run(&format!("ip link add to-{place} type veth peer name eth0 netns {place}"))?;
        run(&format!("ip link set to-{place} master bridge0 up"))?;
        run(&format!("ip -n {place} addr add {address}/24 dev eth0"))?;
        run(&format!("ip -n {place} link set eth0 up"))?;
        run(&format!("ip -n {place} link set lo up"))?;
        run(&format!("ip netns exec {place} nft add table inet chaos"))?;
        for (chain, hook) in [("in", "input"), ("out", "output")] {
            let hook = format!("{{ type filter hook {hook} priority 0 ; }}");
            run_args(&["ip", "netns", "exec", place, "nft", "add", "chain", "inet", "chaos", chain, &hook])?;
        }
    }
    // What a subscriber does not read has to be felt by the server soon.
    for (server, _) in layout().servers() {
        let room = "net.ipv4.tcp_wmem=4096 16384 65536";
        run_args(&["ip", "netns", "exec", server, "sysctl", "-q", "-w", room])?;
    }
    Ok(())
}

/// Drops a place's packets that way.
pub(crate) fn cut(place: &str, way: Way) -> io::Result<()> {
    let chains: &[&str] = match way {
        Way::Both => &["in", "out"],
        Way::Out => &["out"],
        Way::In => &["in"],
    };
    for chain in chains {
        run(&format!("ip netns exec {place} nft add rule inet chaos {chain} counter drop"))?;
    }
    Ok(())
}

/// Drops all that a place sends to others, and is sent by them.
pub(crate) fn cut_between(place: &str, others: &[&str]) -> io::Result<()> {
    let addresses: Vec<&str> = others.iter().map(|other| layout().address(other)).collect();
    let addresses = format!("{{ {} }}", addresses.join(", "));
    for (chain, end) in [("in", "saddr"), ("out", "daddr")] {
        let rule = ["inet", "chaos", chain, "ip", end, &addresses, "counter", "drop"];
        run_args(&[&["ip", "netns", "exec", place, "nft", "add", "rule"], &rule[..]].concat())?;
    }
    Ok(())
}

/// Answers what a place sends over TCP with a reset.
pub(crate) fn reset(place: &str) -> io::Result<()> {
    run(&format!(
        "ip netns exec {place} nft add rule inet chaos out meta l4proto tcp counter reject with tcp reset"
    ))?;
    Ok(())
}

/// Takes all rules away again; tells how many packets they have hit.
pub(crate) fn heal(place: &str) -> io::Result<u64> {
    let rules = run(&format!("ip netns exec {place} nft list table inet chaos"))?;
    run(&format!("ip netns exec {place} nft flush table inet chaos"))?;
    let counts = rules.split("counter packets ").skip(1);
    Ok(counts.filter_map(|rest| rest.split(' ').next()?.parse::<u64>().ok()).sum())
}
