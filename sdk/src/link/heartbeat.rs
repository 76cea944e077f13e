//! When the next heartbeat is due, and what it says.

use std::time::Duration;

use otonix_proto::v1 as pb;
use serde::Serialize;
use tokio::time::Instant;

use crate::link::Vitals;

/// The rhythm of one session's heartbeats.
#[derive(Debug)]
pub(crate) struct Rhythm {
    next: Instant,
    last: Option<Instant>,
    interval: Duration,
}

impl Rhythm {
    /// The first beat comes after a while, so that a fleet's beats spread.
    pub(crate) fn new(interval_secs: u32, first_after: Duration) -> Self {
        let interval = Duration::from_secs(u64::from(interval_secs.max(1)));
        Self { next: Instant::now() + first_after.min(interval), last: None, interval }
    }

    /// Waits until a beat is due. May be dropped and asked again.
    pub(crate) async fn due(&self) {
        tokio::time::sleep_until(self.next).await;
    }

    /// A beat was sent.
    pub(crate) fn beaten(&mut self) {
        let now = Instant::now();
        self.last = Some(now);
        // Kept to the grid, so that a late beat does not shift the later ones; a long stop starts anew.
        self.next += self.interval;
        if self.next <= now {
            self.next = now + self.interval;
        }
    }

    /// The server set another interval.
    pub(crate) fn set(&mut self, interval_secs: u32) {
        let interval = Duration::from_secs(u64::from(interval_secs.max(1)));
        if interval == self.interval {
            return;
        }
        self.interval = interval;
        let from = self.last.unwrap_or_else(Instant::now);
        self.next = (from + interval).min(self.next.max(Instant::now()));
    }
}

fn finite(load: f64) -> f64 {
    if load.is_finite() { load.max(0.0) } else { 0.0 }
}

/// A heartbeat of the session.
pub(crate) fn frame(vitals: &Vitals) -> pb::Up {
    let beat = pb::Heartbeat {
        load: finite(vitals.load),
        memory_used: vitals.memory_used,
        memory_total: vitals.memory_total,
        disk_used: vitals.disk_used,
        disk_total: vitals.disk_total,
        agent_process: vitals.agent_process.clone(),
    };
    pb::Up { msg: Some(pb::up::Msg::Heartbeat(beat)) }
}

/// A heartbeat over REST.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Beat {
    load: f64,
    memory_used: u64,
    memory_total: u64,
    disk_used: u64,
    disk_total: u64,
    agent_process: String,
}

impl Beat {
    pub(crate) fn of(vitals: &Vitals) -> Self {
        Self {
            load: finite(vitals.load),
            memory_used: vitals.memory_used,
            memory_total: vitals.memory_total,
            disk_used: vitals.disk_used,
            disk_total: vitals.disk_total,
            agent_process: vitals.agent_process.clone(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn beats_keep_to_their_grid_and_follow_the_interval() {
        let start = Instant::now();
        let at = || start.elapsed().as_secs();
        let mut rhythm = Rhythm::new(60, Duration::from_secs(7));
        rhythm.due().await;
        assert_eq!(at(), 7);
        tokio::time::advance(Duration::from_secs(5)).await;
        rhythm.beaten();
        rhythm.due().await;
        assert_eq!(at(), 67);
        rhythm.beaten();
        rhythm.set(10);
        rhythm.due().await;
        assert_eq!(at(), 77);
        tokio::time::advance(Duration::from_secs(300)).await;
        rhythm.beaten();
        rhythm.due().await;
        assert_eq!(at(), 387);
        rhythm.beaten();
        rhythm.set(3600);
        rhythm.due().await;
        assert_eq!(at(), 397);
    }

    #[test]
    fn a_load_that_is_no_number_is_nothing() {
        let vitals = Vitals { load: f64::NAN, ..Vitals::default() };
        assert!(matches!(frame(&vitals).msg, Some(pb::up::Msg::Heartbeat(beat)) if beat.load == 0.0));
    }
}
