//! What daemons say of their agents' processes: the evidence for healing. Soft state.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use parking_lot::Mutex;
use tokio::time::Instant;
use uuid::Uuid;

/// Heartbeats in a row that must say the same before anything is done.
const EVIDENCE: u32 = 2;
/// Rest between two attempts on one agent.
const COOLDOWN: Duration = Duration::from_secs(300);
/// Agents with trouble that are remembered.
const MAX_PATIENTS: usize = 100_000;

#[derive(Debug)]
struct Patient {
    sick_beats: u32,
    treated: Option<Instant>,
    treatments: u32,
}

/// Agents whose processes do not get on.
#[derive(Debug, Default)]
pub struct Health {
    patients: Mutex<HashMap<Uuid, Patient>>,
    /// Recoveries that are not written down yet.
    recovered: AtomicU64,
}

impl Health {
    /// A heartbeat said how the agent's process is; tells whether a treated one is well again.
    pub fn hear(&self, agent: Uuid, process: &str) -> bool {
        let mut patients = self.patients.lock();
        if process != "stalled" {
            let was_treated = patients.remove(&agent).is_some_and(|patient| patient.treated.is_some());
            let recovered = was_treated && process == "running";
            self.recovered.fetch_add(u64::from(recovered), Ordering::Relaxed);
            return recovered;
        }
        if patients.len() < MAX_PATIENTS || patients.contains_key(&agent) {
            let patient =
                patients.entry(agent).or_insert(Patient { sick_beats: 0, treated: None, treatments: 0 });
            patient.sick_beats = patient.sick_beats.saturating_add(1);
        }
        false
    }

    /// Takes the recoveries that are not written down yet.
    pub fn take_recovered(&self) -> u64 {
        self.recovered.swap(0, Ordering::Relaxed)
    }

    /// Gives back recoveries that could not be written down.
    pub fn keep_recovered(&self, count: u64) {
        self.recovered.fetch_add(count, Ordering::Relaxed);
    }

    /// The agents to treat now, and how often each was treated in vain: at most `most` at once, counting those whose
    /// treatment has not ended.
    pub fn to_treat(&self, most: usize) -> Vec<(Uuid, u32)> {
        let now = Instant::now();
        let mut patients = self.patients.lock();
        let resting = |patient: &Patient| patient.treated.is_some_and(|at| now.duration_since(at) < COOLDOWN);
        let busy = patients.values().filter(|patient| resting(patient)).count();
        let mut chosen = Vec::new();
        for (agent, patient) in patients.iter_mut() {
            if busy + chosen.len() >= most {
                break;
            }
            if patient.sick_beats >= EVIDENCE && !resting(patient) {
                patient.treated = Some(now);
                chosen.push((*agent, patient.treatments));
                patient.treatments = patient.treatments.saturating_add(1);
            }
        }
        chosen
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn two_stalled_beats_are_treated_once_until_the_rest_is_over() {
        let health = Health::default();
        let agent = Uuid::from_u128(1);
        health.hear(agent, "stalled");
        assert!(health.to_treat(5).is_empty());
        health.hear(agent, "stalled");
        assert_eq!(health.to_treat(5), [(agent, 0)]);
        assert!(health.to_treat(5).is_empty());
        tokio::time::advance(COOLDOWN).await;
        assert_eq!(health.to_treat(5), [(agent, 1)]);
        assert!(health.hear(agent, "running"));
        assert!(!health.hear(agent, "running"));
        assert_eq!((health.take_recovered(), health.take_recovered()), (1, 0));
    }

    #[tokio::test(start_paused = true)]
    async fn never_more_than_allowed_are_treated_at_once() {
        let health = Health::default();
        for n in 0..10 {
            health.hear(Uuid::from_u128(n), "stalled");
            health.hear(Uuid::from_u128(n), "stalled");
        }
        assert_eq!(health.to_treat(3).len(), 3);
        assert!(health.to_treat(3).is_empty());
    }
}
