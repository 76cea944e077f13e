//! What is known of the agents without asking the database: standing, who owns them, when they were last heard.
//!
//! Everything here can be forgotten and read again, but for the last second of heartbeats. A cached state is only
//! ever replaced by one with a higher version, so that a slow read cannot undo a commit.

mod missing;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicI64, Ordering};

use chrono::{DateTime, Utc};
use dashmap::DashMap;
use otonix_sdk::api::agents::Agent;
use otonix_sdk::api::events::Standing;
use otonix_sdk::standing::{AgentStatus, SurvivalTier};
use parking_lot::Mutex;
use uuid::Uuid;

use missing::Missing;

use crate::store::agents::{AgentState, states_of};
use crate::store::{Db, StoreError};

/// Agents remembered. Beyond it, those without beats waiting are forgotten.
const MAX_SLOTS: usize = 2_000_000;

/// One agent.
#[derive(Debug)]
pub struct Slot {
    state: Mutex<AgentState>,
    /// When it was last heard here, microseconds; 0 for never.
    heard: AtomicI64,
    /// Heard since the last write.
    dirty: AtomicBool,
}

impl Slot {
    fn new(state: AgentState) -> Self {
        Self { state: Mutex::new(state), heard: AtomicI64::new(0), dirty: AtomicBool::new(false) }
    }

    /// The agent as last committed.
    pub fn state(&self) -> AgentState {
        *self.state.lock()
    }

    /// When it was last heard here.
    pub fn heard(&self) -> Option<DateTime<Utc>> {
        DateTime::from_timestamp_micros(self.heard.load(Ordering::Relaxed))
            .filter(|at| at.timestamp_micros() > 0)
    }
}

/// A state as it is told to its agent.
pub fn standing_of(state: &AgentState) -> Standing {
    Standing {
        survival_tier: state.tier,
        status: state.status,
        credits: state.credits,
        funded: state.funded,
        grace_until: state.grace_until.filter(|_| !state.funded),
        heartbeat_interval: state.interval,
        killed: state.killed,
    }
}

/// All agents that were asked for since the start.
#[derive(Debug, Default)]
pub struct Fleet {
    slots: Arc<Slots>,
    missing: Arc<Missing>,
    dirty: Mutex<Vec<Arc<Slot>>>,
}

#[derive(Debug, Default)]
struct Slots(DashMap<Uuid, Arc<Slot>>);

impl Slots {
    /// Takes over newer states; tells how many tiers changed by it.
    fn remember(&self, states: &[AgentState]) -> u64 {
        let mut tiers = 0;
        if self.0.len() >= MAX_SLOTS {
            self.0.retain(|_, slot| slot.dirty.load(Ordering::Relaxed));
        }
        for state in states {
            let slot = self.0.entry(state.id.uuid()).or_insert_with(|| Arc::new(Slot::new(*state)));
            let mut known = slot.state.lock();
            if state.version >= known.version {
                let status = known.status;
                tiers += u64::from(known.tier != state.tier);
                *known = *state;
                // Heard, but not yet written.
                if status == AgentStatus::Active
                    && state.status == AgentStatus::Inactive
                    && slot.dirty.load(Ordering::Relaxed)
                {
                    known.status = status;
                }
            }
        }
        tiers
    }
}

impl Fleet {
    /// An agent, from memory or the database.
    ///
    /// # Errors
    /// [`StoreError`] when the database refuses or is away.
    pub async fn slot(&self, db: &Db, id: Uuid) -> Result<Option<Arc<Slot>>, StoreError> {
        if let Some(slot) = self.cached(id) {
            return Ok(Some(slot));
        }
        self.missing.read(&self.slots, db, id).await?;
        Ok(self.cached(id))
    }

    /// The agent if it is in memory.
    pub fn cached(&self, id: Uuid) -> Option<Arc<Slot>> {
        self.slots.0.get(&id).map(|slot| Arc::clone(&slot))
    }

    /// Takes over what was committed here; tells how many tiers changed by it.
    pub fn apply(&self, states: &[AgentState]) -> u64 {
        self.slots.remember(states)
    }

    /// Reads agents again that another replica changed, as far as they are in memory.
    ///
    /// # Errors
    /// [`StoreError`] when the database refuses or is away.
    pub async fn refresh(&self, db: &Db, ids: &[Uuid]) -> Result<Vec<AgentState>, StoreError> {
        let mut found = Vec::new();
        let known: Vec<Uuid> = ids.iter().copied().filter(|id| self.slots.0.contains_key(id)).collect();
        for chunk in known.chunks(1000) {
            let chunk = chunk.to_vec();
            found.extend(db.read(move |conn| Box::pin(async move { states_of(conn, &chunk).await })).await?);
        }
        self.slots.remember(&found);
        Ok(found)
    }

    /// Every agent in memory.
    pub fn known(&self) -> Vec<Uuid> {
        self.slots.0.iter().map(|slot| *slot.key()).collect()
    }

    /// How many agents are in memory.
    pub fn len(&self) -> usize {
        self.slots.0.len()
    }

    /// Whether no agent is in memory.
    pub fn is_empty(&self) -> bool {
        self.slots.0.is_empty()
    }

    /// Notes a heartbeat. The next flush writes it.
    pub fn hear(&self, slot: &Arc<Slot>, at: DateTime<Utc>) -> AgentState {
        slot.heard.store(at.timestamp_micros(), Ordering::Relaxed);
        if !slot.dirty.swap(true, Ordering::AcqRel) {
            self.dirty.lock().push(Arc::clone(slot));
        }
        let mut state = slot.state.lock();
        if state.status == AgentStatus::Inactive && state.tier != SurvivalTier::Terminated {
            state.status = AgentStatus::Active;
        }
        *state
    }

    /// The beats since the last call.
    pub fn take_beats(&self) -> Vec<(Uuid, DateTime<Utc>)> {
        let dirty = std::mem::take(&mut *self.dirty.lock());
        dirty
            .into_iter()
            .filter_map(|slot| {
                slot.dirty.store(false, Ordering::Release);
                Some((slot.state.lock().id.uuid(), slot.heard()?))
            })
            .collect()
    }

    /// Puts beats back whose write failed.
    pub fn return_beats(&self, beats: &[(Uuid, DateTime<Utc>)]) {
        for (id, _) in beats {
            if let Some(slot) = self.cached(*id)
                && !slot.dirty.swap(true, Ordering::AcqRel)
            {
                self.dirty.lock().push(slot);
            }
        }
    }

    /// Forgets that agents were heard: what they said before does not make them active again.
    pub fn unhear(&self, ids: impl Iterator<Item = Uuid>) {
        for slot in ids.filter_map(|id| self.cached(id)) {
            slot.heard.store(0, Ordering::Relaxed);
            slot.dirty.store(false, Ordering::Release);
        }
    }

    /// Adds to a row what has not been written yet.
    pub fn overlay(&self, agent: &mut Agent) {
        let Some(slot) = self.slots.0.get(&agent.id.uuid()) else { return };
        let Some(heard) = slot.heard() else { return };
        if agent.last_heartbeat.is_none_or(|last| heard > last) {
            agent.last_heartbeat = Some(heard);
        }
        if slot.dirty.load(Ordering::Relaxed)
            && agent.status == AgentStatus::Inactive
            && agent.survival_tier != SurvivalTier::Terminated
        {
            agent.status = AgentStatus::Active;
        }
    }
}
