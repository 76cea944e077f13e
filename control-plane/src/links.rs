//! The open sessions of this replica, and how they are woken.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

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
    /// Its opening is committed.
    welcomed: AtomicBool,
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

    /// Its opening is committed: from now on another session of the agent supersedes it.
    pub fn welcome(&self) {
        self.welcomed.store(true, Ordering::Release);
    }

    fn is_welcomed(&self) -> bool {
        self.welcomed.load(Ordering::Acquire)
    }

    fn tell(&self, write: impl FnOnce(&mut Mail)) {
        write(&mut self.mail.lock());
        self.woken.notify_one();
    }
}

/// All sessions of this replica: of each agent the one that is open, and those that are being opened or ending.
#[derive(Debug, Default)]
pub struct Links {
    by_agent: DashMap<Uuid, Vec<Arc<Link>>>,
}

impl Links {
    /// Announces a session before its opening is committed, so that nothing committed meanwhile is missed.
    pub fn open(&self, agent: Uuid, session: Uuid, key: KeyId) -> Arc<Link> {
        let welcomed = AtomicBool::new(false);
        let link = Arc::new(Link { session, key, welcomed, mail: Mutex::default(), woken: Notify::new() });
        self.by_agent.entry(agent).or_insert_with(|| Vec::with_capacity(1)).push(Arc::clone(&link));
        link
    }

    /// Forgets a session that has ended.
    pub fn close(&self, agent: Uuid, session: Uuid) {
        if let Some(mut links) = self.by_agent.get_mut(&agent) {
            links.retain(|link| link.session != session);
        }
        self.by_agent.remove_if(&agent, |_, links| links.is_empty());
    }

    fn each(&self, agent: Uuid, tell: impl Fn(&Arc<Link>)) {
        if let Some(links) = self.by_agent.get(&agent) {
            links.iter().for_each(tell);
        }
    }

    fn all(&self, tell: impl Fn(&Arc<Link>)) {
        for links in self.by_agent.iter() {
            links.iter().for_each(&tell);
        }
    }

    /// An agent has a new command.
    pub fn command(&self, agent: Uuid) {
        self.each(agent, |link| link.tell(|mail| mail.commands = true));
    }

    /// An agent's state changed; `session` is the one whose events are taken now.
    pub fn changed(&self, agent: Uuid, session: Option<Uuid>, killed: bool) {
        self.each(agent, |link| {
            let superseded = session.is_some_and(|session| session != link.session) && link.is_welcomed();
            link.tell(|mail| match (killed, superseded) {
                (true, _) => mail.leave = Some(Leave::Killed),
                (false, true) => mail.leave = Some(Leave::Superseded),
                (false, false) => mail.standing = true,
            });
        });
    }

    /// A key was revoked.
    pub fn revoked(&self, key: KeyId) {
        self.all(|link| {
            if link.key == key {
                link.tell(|mail| mail.leave = Some(Leave::Revoked));
            }
        });
    }

    /// Ends all of them.
    pub fn leave_all(&self) {
        self.all(|link| link.tell(|mail| mail.leave = Some(Leave::ShuttingDown)));
    }

    /// Agents with a session here.
    pub fn agents(&self) -> Vec<Uuid> {
        self.by_agent.iter().map(|links| *links.key()).collect()
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
