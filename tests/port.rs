//! Ports for programs that cannot choose one themselves, or that come back on the one they had. Included with `#[path]`;
//! nothing but the standard library.
//!
//! They lie below the range from which the kernel serves whoever asks for any port. A port of that range may be given
//! to somebody else while its program starts, or is dead for a moment; who then waits for the program meets another.
#![allow(clippy::allow_attributes, dead_code, reason = "each test program uses a part of it")]

use std::fs;
use std::hash::{BuildHasher as _, Hasher as _, RandomState};
use std::net::TcpListener;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU64, Ordering};

const LOWEST: u64 = 10_000;

/// A free port on loopback that nobody gets by chance; each only once in a process.
///
/// # Panics
/// When none is free.
pub fn lasting() -> u16 {
    static FIRST: OnceLock<u64> = OnceLock::new();
    static TAKEN: AtomicU64 = AtomicU64::new(0);
    let end = fs::read_to_string("/proc/sys/net/ipv4/ip_local_port_range")
        .ok()
        .and_then(|range| range.split_whitespace().next()?.parse().ok())
        .filter(|end| *end > LOWEST)
        .unwrap_or(32_768);
    let first = *FIRST.get_or_init(|| RandomState::new().build_hasher().finish());
    for _ in LOWEST..end {
        let step = TAKEN.fetch_add(1, Ordering::Relaxed);
        let port = LOWEST + first.wrapping_add(step) % (end - LOWEST);
        let Ok(port) = u16::try_from(port) else { continue };
        if TcpListener::bind(("127.0.0.1", port)).is_ok() {
            return port;
        }
    }
    panic!("no port is free between {LOWEST} and {end}");
}

/// The same as an address to listen on.
pub fn address() -> String {
    format!("127.0.0.1:{}", lasting())
}
