//! What the fleet counts, without locks: totals, latencies, and how long an outage lasted.

use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering::Relaxed};
use std::time::{Duration, Instant};

/// Sub-buckets of each power of two: a reading is off by at most 1/32.
const SUB: u64 = 32;
const BUCKETS: usize = 64 * SUB as usize;

/// Latencies in microseconds, in buckets that grow with the value.
pub struct Histogram(Vec<AtomicU64>);

impl Histogram {
    fn new() -> Self {
        Self((0..BUCKETS).map(|_| AtomicU64::new(0)).collect())
    }

    /// Counts one latency.
    pub fn add(&self, latency: Duration) {
        let micros = u64::try_from(latency.as_micros()).unwrap_or(u64::MAX);
        if let Some(bucket) = self.0.get(bucket_of(micros)) {
            bucket.fetch_add(1, Relaxed);
        }
    }

    /// Forgets everything.
    pub fn clear(&self) {
        self.0.iter().for_each(|bucket| bucket.store(0, Relaxed));
    }

    /// The latency that `share` of all are not above, in milliseconds.
    pub fn quantile_ms(&self, share: f64) -> Option<f64> {
        let counts: Vec<u64> = self.0.iter().map(|bucket| bucket.load(Relaxed)).collect();
        let total: u64 = counts.iter().sum();
        let wanted = ((total as f64 * share).ceil() as u64).max(1);
        let mut seen = 0;
        let bucket = counts.iter().position(|count| {
            seen += count;
            seen >= wanted
        });
        Some(upper_end(bucket?) as f64 / 1000.0)
    }
}

fn bucket_of(micros: u64) -> usize {
    let index = match micros.checked_ilog2() {
        Some(log) if micros >= SUB => {
            let shift = u64::from(log) - u64::from(SUB.ilog2());
            shift * SUB + (micros >> shift)
        }
        _ => micros,
    };
    usize::try_from(index).unwrap_or(usize::MAX)
}

fn upper_end(bucket: usize) -> u64 {
    let bucket = bucket as u64;
    if bucket < 2 * SUB {
        return bucket;
    }
    let shift = bucket / SUB - 1;
    ((bucket % SUB + SUB + 1) << shift) - 1
}

/// Everything counted.
pub struct Stats {
    start: Instant,
    fleet: usize,
    connected: AtomicUsize,
    /// Connections that were refused or broke.
    pub broken: AtomicU64,
    /// Events or requests sent, and those that were acknowledged.
    pub sent: AtomicU64,
    pub acked: AtomicU64,
    /// Events refused for good, or requests answered by an error.
    pub refused: AtomicU64,
    /// The first refusal seen, for people.
    pub first_refusal: std::sync::OnceLock<String>,
    pub latency: Histogram,
    // Microseconds since the start plus one; 0: not now.
    lost_at: AtomicU64,
    first_back_at: AtomicU64,
    outage: AtomicU64,
    return_time: AtomicU64,
}

impl Stats {
    pub fn new(fleet: usize) -> Self {
        Self {
            start: Instant::now(),
            fleet,
            connected: AtomicUsize::new(0),
            broken: AtomicU64::new(0),
            sent: AtomicU64::new(0),
            acked: AtomicU64::new(0),
            refused: AtomicU64::new(0),
            first_refusal: std::sync::OnceLock::new(),
            latency: Histogram::new(),
            lost_at: AtomicU64::new(0),
            first_back_at: AtomicU64::new(0),
            outage: AtomicU64::new(0),
            return_time: AtomicU64::new(0),
        }
    }

    fn now(&self) -> u64 {
        u64::try_from(self.start.elapsed().as_micros()).unwrap_or(u64::MAX - 1) + 1
    }

    pub fn connected(&self) -> usize {
        self.connected.load(Relaxed)
    }

    /// One more is connected.
    pub fn welcomed(&self) {
        let now = self.now();
        let lost_at = self.lost_at.load(Relaxed);
        if lost_at != 0 {
            self.first_back_at.compare_exchange(0, now, Relaxed, Relaxed).ok();
        }
        if self.connected.fetch_add(1, Relaxed) + 1 == self.fleet && lost_at != 0 {
            self.outage.fetch_max(now - lost_at, Relaxed);
            self.return_time.fetch_max(now - self.first_back_at.load(Relaxed), Relaxed);
            self.lost_at.store(0, Relaxed);
            self.first_back_at.store(0, Relaxed);
        }
    }

    /// One less is connected.
    pub fn lost(&self) {
        if self.connected.fetch_sub(1, Relaxed) == self.fleet {
            self.lost_at.compare_exchange(0, self.now(), Relaxed, Relaxed).ok();
        }
    }

    /// Notes a refusal; the first one's text is kept.
    pub fn refuse(&self, why: impl FnOnce() -> String) {
        self.refused.fetch_add(1, Relaxed);
        self.first_refusal.get_or_init(why);
    }

    /// The longest time from the first lost connection until all were back; `None`: no outage has ended.
    pub fn outage_secs(&self) -> Option<f64> {
        seconds(&self.outage)
    }

    /// The longest time from the first returned connection until all were back.
    pub fn return_secs(&self) -> Option<f64> {
        seconds(&self.return_time)
    }
}

fn seconds(micros: &AtomicU64) -> Option<f64> {
    let micros = micros.load(Relaxed);
    (micros != 0).then(|| micros as f64 / 1e6)
}
