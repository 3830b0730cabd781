//! Connections, and what goes wrong with them.

use super::{End, Way, World};
use crate::agent::AgentInput;
use crate::engine::SessionId;
use crate::message::Report;

/// How long an agent waits before it connects again to a server that closed its connection, in milliseconds.
const RECONNECT_MS: u64 = 100;

impl World {
    /// From now on nothing gets through to or from an agent; what is sent waits.
    pub fn cut(&mut self, name: &str) {
        self.cut_way(name, Way::ToServer);
        self.cut_way(name, Way::ToAgent);
    }

    /// The same in one direction only.
    pub fn cut_way(&mut self, name: &str, way: Way) {
        self.process(name).cut.insert(way);
    }

    /// Everything gets through again.
    pub fn heal(&mut self, name: &str) {
        self.process(name).cut.clear();
    }

    /// Drops the messages on the way to and from an agent, and its connection with them; both ends learn of it.
    pub fn break_link(&mut self, name: &str) {
        let Some(session) = self.process(name).session else { return };
        self.hang_up(name);
        if let Some(link) = self.links.get_mut(&session) {
            link.to_server.clear();
        }
        self.process(name).connect_at = self.time;
    }

    /// Closes an agent's end of its connection. The server learns of it after what was sent before.
    pub fn hang_up(&mut self, name: &str) {
        let at = self.time.plus(RECONNECT_MS);
        let process = self.process(name);
        let Some(session) = process.session.take() else { return };
        process.connect_at = at;
        let link = self.links.get_mut(&session).expect("an agent's session has a link");
        link.agent_is_there = false;
        link.to_agent.clear();
        self.drop_links();
        self.tell_agent(name, AgentInput::Disconnected);
    }

    /// Loses the message that is next on its way.
    pub fn lose(&mut self, session: SessionId, way: Way) {
        let Some(link) = self.links.get_mut(&session) else { return };
        match way {
            Way::ToServer => drop(link.to_server.pop_front()),
            Way::ToAgent => drop(link.to_agent.pop_front()),
        }
    }

    /// Lets the message that is next on its way arrive twice.
    pub fn duplicate(&mut self, session: SessionId, way: Way) {
        let Some(link) = self.links.get_mut(&session) else { return };
        match way {
            Way::ToServer => link.to_server.extend(link.to_server.front().cloned()),
            Way::ToAgent => link.to_agent.extend(link.to_agent.front().cloned()),
        }
    }

    /// Lets all other messages of a connection overtake the one that is next on its way.
    pub fn reorder(&mut self, session: SessionId, way: Way) {
        let Some(link) = self.links.get_mut(&session) else { return };
        match way {
            Way::ToServer if link.to_server.len() > 1 => link.to_server.rotate_left(1),
            Way::ToAgent if link.to_agent.len() > 1 => link.to_agent.rotate_left(1),
            Way::ToServer | Way::ToAgent => {}
        }
    }

    /// Says something in an agent's name that it would not say.
    pub fn forge(&mut self, name: &str, report: Report) {
        let session = self.process(name).session;
        if let Some(link) = session.and_then(|session| self.links.get_mut(&session)) {
            link.to_server.push_back(report);
        }
    }

    /// Forgets connections that nobody is at any more.
    pub(super) fn drop_links(&mut self) {
        self.links.retain(|_, link| link.agent_is_there || link.server_end != End::Gone);
    }
}
