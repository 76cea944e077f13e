//! Chance that can be repeated, and the numbers that a run is given.

use std::time::Duration;

/// The number that an environment variable holds.
pub fn number(name: &str, default: u64) -> u64 {
    let text = std::env::var_os(name).map(|text| text.to_string_lossy().into_owned());
    text.map_or(default, |text| text.parse().unwrap_or_else(|_| panic!("{name} must be a whole number")))
}

/// Chance.
#[derive(Debug, Clone)]
pub struct Random(u64);

impl Random {
    /// Seeded by `SEED`, or by itself; each use of a name has its own sequence.
    pub fn new(what: &str) -> Self {
        let own = otonix_sdk::clock::new_id().as_u64_pair().1 >> 16;
        let seed = number("SEED", own);
        eprintln!("{what}: SEED={seed}");
        let name = what.bytes().fold(0_u64, |sum, byte| sum.wrapping_mul(31).wrapping_add(u64::from(byte)));
        Self(seed ^ name)
    }

    /// Chance of its own for another thread.
    pub fn split(&mut self) -> Self {
        Self(self.next())
    }

    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        z ^ (z >> 31)
    }

    /// From 0 to below a bound.
    pub fn below(&mut self, bound: u64) -> u64 {
        self.next() % bound.max(1)
    }

    /// True so many times in a hundred.
    pub fn percent(&mut self, percent: u64) -> bool {
        self.below(100) < percent
    }

    /// So many milliseconds, the upper end not included.
    pub fn millis(&mut self, from: u64, to: u64) -> Duration {
        Duration::from_millis(from + self.below(to - from))
    }
}
