//! The kinds of faults: which servers each is made with, and what it is made to.

use crate::network::{Layout, Place};
use crate::random::Random;
use crate::workload::{self, FENCED, LEASED};
use crate::world::{EXCUSED, HOSTS, PROXIED};

/// Targets that are more than one process or host: every process, every network, every member of etcd.
pub(super) const ALL: &str = "all";
pub(super) const NET: &str = "net";
pub(super) const ETCD: &str = "etcd";

/// Writes down the kinds of faults in one place: each one's variant, its name, and the servers that it is made with.
macro_rules! kinds {
    ($($kind:ident = $name:literal, [$($layout:ident),+];)+) => {
        /// What may be done.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
        pub(crate) enum Kind {
            $($kind,)+
        }

        impl Kind {
            pub(crate) const ALL: [Self; [$(Self::$kind),+].len()] = [$(Self::$kind),+];

            pub(crate) fn name(self) -> &'static str {
                match self {
                    $(Self::$kind => $name,)+
                }
            }

            /// Whether it is made with these servers. What is done to the disk of one server's store has no place where
            /// etcd has the disks; and what is done to one of several servers depends on whether it is the active one.
            pub(crate) fn is_for(self, layout: Layout) -> bool {
                match self {
                    $(Self::$kind => [$(Layout::$layout),+].contains(&layout),)+
                }
            }
        }
    };
}

kinds! {
    // The slowest one to bite, which is made first.
    SlowSubscriber = "slow-subscriber", [One, Three];
    ServerKilled = "server-killed", [One];
    ServerStopped = "server-stopped", [One];
    ServerKilledInTransition = "server-killed-in-transition", [One];
    ServerDiskFull = "server-disk-full", [One];
    ServerSyncFails = "server-sync-fails", [One];
    ServerKilledInSync = "server-killed-in-sync", [One];
    ServerPowerCut = "server-power-cut", [One];
    ServerClockForward = "server-clock-forward", [One, Three];
    ServerClockBack = "server-clock-back", [One, Three];
    AllKilled = "all-killed", [One, Three];
    AgentKilled = "agent-killed", [One, Three];
    AgentStopped = "agent-stopped", [One, Three];
    AgentDiskFull = "agent-disk-full", [One, Three];
    AgentSyncFails = "agent-sync-fails", [One, Three];
    AgentKilledInSync = "agent-killed-in-sync", [One, Three];
    AgentClockForward = "agent-clock-forward", [One, Three];
    AgentClockBack = "agent-clock-back", [One, Three];
    AgentRestored = "agent-restored", [One, Three];
    AgentDoubled = "agent-doubled", [One, Three];
    HandlerKilled = "handler-killed", [One, Three];
    HandlerStopped = "handler-stopped", [One, Three];
    SoftwareKilled = "software-killed", [One, Three];
    GuardKilled = "guard-killed", [One, Three];
    HostKilled = "host-killed", [One, Three];
    HostStopped = "host-stopped", [One, Three];
    HostFenced = "host-fenced", [One, Three];
    CutFull = "cut-full", [One, Three];
    CutOut = "cut-out", [One, Three];
    CutIn = "cut-in", [One, Three];
    CutPartial = "cut-partial", [One, Three];
    LinkFlaps = "link-flaps", [One, Three];
    ConnectionReset = "connection-reset", [One, Three];
    Delay = "delay", [One, Three];
    Jitter = "jitter", [One, Three];
    Overtaken = "overtaken", [One, Three];
    ActiveKilled = "active-killed", [Three];
    ActiveStopped = "active-stopped", [Three];
    ActiveKilledInTransition = "active-killed-in-transition", [Three];
    StandbyKilled = "standby-killed", [Three];
    StandbyStopped = "standby-stopped", [Three];
    SteppedDown = "stepped-down", [Three];
    ServerLosesEtcd = "server-loses-etcd", [Three];
    CutServerMember = "cut-server-etcd", [Three];
    CutMemberMember = "cut-etcd-etcd", [Three];
    CutAgentServer = "cut-agent-server", [Three];
    MinorityCutOff = "minority-cut-off", [Three];
    EtcdLeaderKilled = "etcd-leader-killed", [Three];
    EtcdMemberStopped = "etcd-member-stopped", [Three];
    EtcdMemberReplaced = "etcd-member-replaced", [Three];
    EtcdNoMajority = "etcd-no-majority", [Three];
    EtcdCompacted = "etcd-compacted", [Three];
}

impl Kind {
    /// Whether it is made to the active server, or to another one.
    pub(super) fn is_of_roles(self) -> bool {
        let of_roles = [
            Self::ActiveKilled,
            Self::ActiveStopped,
            Self::ActiveKilledInTransition,
            Self::StandbyKilled,
            Self::StandbyStopped,
            Self::SteppedDown,
            Self::ServerLosesEtcd,
            Self::MinorityCutOff,
        ];
        of_roles.contains(&self)
    }

    /// Whether it is made to all that runs of a host.
    pub(super) fn is_of_host(self) -> bool {
        [Self::HostKilled, Self::HostStopped, Self::HostFenced].contains(&self)
    }

    /// What it is made to, where `active` is the active server. Two faults of one target would undo each other; those of a host's network and of its
    /// processes lie on top of each other gladly.
    pub(super) fn target(self, random: &mut Random, spared: &str, active: &str) -> String {
        let standbys = || -> Vec<&'static str> {
            Layout::Three.servers().iter().map(|(name, _)| *name).filter(|name| *name != active).collect()
        };
        let others: Vec<&str> = HOSTS.into_iter().filter(|host| *host != spared).collect();
        let proxied: Vec<&str> = PROXIED.into_iter().filter(|host| *host != spared).collect();
        match self {
            Self::ServerKilled
            | Self::ServerStopped
            | Self::ServerKilledInTransition
            | Self::ServerDiskFull
            | Self::ServerSyncFails
            | Self::ServerKilledInSync
            | Self::ServerPowerCut => "server".to_owned(),
            Self::AllKilled => ALL.to_owned(),
            // The active one has something to say, by which its clock is seen.
            Self::ServerClockForward | Self::ServerClockBack => format!("{active}/clock"),
            Self::ActiveKilled | Self::ActiveStopped | Self::ActiveKilledInTransition | Self::SteppedDown => {
                active.to_owned()
            }
            Self::StandbyKilled | Self::StandbyStopped => random.pick(&standbys()).to_owned(),
            Self::ServerLosesEtcd => format!("{active}/net"),
            Self::CutServerMember => format!("{}/net", some(random, Layout::Three.servers())),
            Self::CutMemberMember => "etcd/net".to_owned(),
            // What is cut off by address must not dial through the proxy.
            Self::CutAgentServer => {
                let direct: Vec<&str> = others.into_iter().filter(|host| !PROXIED.contains(host)).collect();
                format!("{}/net", random.pick(&direct))
            }
            Self::MinorityCutOff => NET.to_owned(),
            Self::EtcdLeaderKilled
            | Self::EtcdMemberStopped
            | Self::EtcdMemberReplaced
            | Self::EtcdNoMajority => ETCD.to_owned(),
            Self::EtcdCompacted => "etcd/history".to_owned(),
            Self::AgentKilled
            | Self::AgentStopped
            | Self::AgentDiskFull
            | Self::AgentSyncFails
            | Self::AgentKilledInSync => random.pick(&others).to_owned(),
            // While it is being replaced nothing else may happen to the agent: nobody guards if both are dead.
            Self::GuardKilled | Self::HostKilled | Self::HostStopped => one_of(random, LEASED, spared),
            Self::HostFenced => one_of(random, FENCED, spared),
            // Every host may have a clock that jumps, also the one that nothing else is done to.
            Self::AgentClockForward | Self::AgentClockBack => format!("{}/clock", random.pick(&HOSTS)),
            Self::AgentRestored | Self::AgentDoubled => EXCUSED.to_owned(),
            Self::HandlerKilled | Self::HandlerStopped | Self::SoftwareKilled => {
                format!("{}/handler", random.pick(&others))
            }
            Self::CutFull | Self::CutOut | Self::CutIn | Self::LinkFlaps | Self::ConnectionReset => {
                format!("{}/net", random.pick(&others))
            }
            Self::CutPartial => NET.to_owned(),
            Self::Delay | Self::Jitter | Self::Overtaken => format!("{}/proxy", random.pick(&proxied)),
            Self::SlowSubscriber => "subscriber".to_owned(),
        }
    }
}

/// One of the hosts of a group.
fn one_of(random: &mut Random, group: &str, spared: &str) -> String {
    let hosts = workload::group(group).hosts.iter().copied();
    random.pick(&hosts.filter(|host| *host != spared).collect::<Vec<_>>()).to_owned()
}

/// The name of one of them.
pub(super) fn some(random: &mut Random, of: &[Place]) -> &'static str {
    let names: Vec<&'static str> = of.iter().map(|(name, _)| *name).collect();
    let place = random.within(0, names.len() as u64 - 1);
    names[usize::try_from(place).expect("it is small")]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_kind_has_its_own_name_and_a_target() {
        let names: std::collections::BTreeSet<_> = Kind::ALL.iter().map(|kind| kind.name()).collect();
        assert_eq!(names.len(), Kind::ALL.len());
        for kind in Kind::ALL {
            let target = kind.target(&mut Random::new(1), "h1", "s1");
            assert!(!target.starts_with("h1") || target.ends_with("/clock"), "{kind:?} {target}");
        }
    }
}
