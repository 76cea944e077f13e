//! The open sessions of this replica, and how they are woken.

use std::sync::Arc;

use dashmap::DashMap;
use otonix_sdk::ids::KeyId;
use parking_lot::Mutex;
use tokio::sync::Notify;
use uuid::Uuid;

/// Why a session ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Leave {
    /// A newer session took over.
    Superseded,
    /// Its key was revoked.
    Revoked,
    /// The agent was killed.
    Killed,
    /// The server stops.
    ShuttingDown,
}

impl Leave {
    /// The word on the wire.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Superseded => "superseded",
            Self::Revoked => "revoked",
            Self::Killed => "killed",
            Self::ShuttingDown => "shutting_down",
        }
    }
}

#[derive(Debug, Default)]
struct Mail {
    leave: Option<Leave>,
    commands: bool,
    standing: bool,
}

/// One open session.
#[derive(Debug)]
pub struct Link {
    /// Its own name.
    pub session: Uuid,
    /// The key that opened it.
    pub key: KeyId,
    mail: Mutex<Mail>,
    woken: Notify,
}

/// What woke a session.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Woken {
    pub leave: Option<Leave>,
    pub commands: bool,
    pub standing: bool,
}

impl Link {
    /// Waits until there is something to do.
    pub async fn wait(&self) -> Woken {
        loop {
            let mail = std::mem::take(&mut *self.mail.lock());
            let woken = Woken { leave: mail.leave, commands: mail.commands, standing: mail.standing };
            if woken != Woken::default() {
                return woken;
            }
            self.woken.notified().await;
        }
    }

    fn tell(&self, write: impl FnOnce(&mut Mail)) {
        write(&mut self.mail.lock());
        self.woken.notify_one();
    }
}

/// All open sessions of this replica, one an agent.
#[derive(Debug, Default)]
pub struct Links {
    by_agent: DashMap<Uuid, Arc<Link>>,
}

impl Links {
    /// Opens a session; one that was open for the agent here ends.
    pub fn open(&self, agent: Uuid, session: Uuid, key: KeyId) -> Arc<Link> {
        let link = Arc::new(Link { session, key, mail: Mutex::default(), woken: Notify::new() });
        if let Some(old) = self.by_agent.insert(agent, Arc::clone(&link)) {
            old.tell(|mail| mail.leave = Some(Leave::Superseded));
        }
        link
    }

    /// Forgets a session that has ended.
    pub fn close(&self, agent: Uuid, session: Uuid) {
        self.by_agent.remove_if(&agent, |_, link| link.session == session);
    }

    /// An agent has a new command.
    pub fn command(&self, agent: Uuid) {
        if let Some(link) = self.by_agent.get(&agent) {
            link.tell(|mail| mail.commands = true);
        }
    }

    /// An agent's state changed; `session` is the one whose events are taken now.
    pub fn changed(&self, agent: Uuid, session: Option<Uuid>, killed: bool) {
        let Some(link) = self.by_agent.get(&agent) else { return };
        if killed {
            link.tell(|mail| mail.leave = Some(Leave::Killed));
        } else if session.is_some_and(|session| session != link.session) {
            link.tell(|mail| mail.leave = Some(Leave::Superseded));
        } else {
            link.tell(|mail| mail.standing = true);
        }
    }

    /// A key was revoked.
    pub fn revoked(&self, key: KeyId) {
        for link in self.by_agent.iter() {
            if link.key == key {
                link.tell(|mail| mail.leave = Some(Leave::Revoked));
            }
        }
    }

    /// Ends all of them.
    pub fn leave_all(&self) {
        for link in self.by_agent.iter() {
            link.tell(|mail| mail.leave = Some(Leave::ShuttingDown));
        }
    }

    /// Agents with a session here.
    pub fn agents(&self) -> Vec<Uuid> {
        self.by_agent.iter().map(|link| *link.key()).collect()
    }

    /// How many sessions are open.
    pub fn len(&self) -> usize {
        self.by_agent.len()
    }

    /// Whether none is open.
    pub fn is_empty(&self) -> bool {
        self.by_agent.is_empty()
    }
}
