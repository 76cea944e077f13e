//! How many connections are open, in all and per address.

use std::collections::HashMap;
use std::net::{IpAddr, Ipv6Addr};
use std::sync::Arc;
use std::sync::atomic::Ordering;

use parking_lot::Mutex;
use tokio::sync::Notify;

use super::{Limits, Stats};

/// Counts connections and turns away those beyond the limits.
pub(crate) struct Gate {
    stats: Arc<Stats>,
    max: u64,
    max_per_ip: u32,
    exempt: Vec<(IpAddr, u8)>,
    per_ip: Mutex<HashMap<IpAddr, u32>>,
    empty: Notify,
}

/// The right to one connection; given back when dropped.
pub(crate) struct Permit {
    gate: Arc<Gate>,
    counted: Option<IpAddr>,
}

impl Gate {
    pub(crate) fn new(limits: &Limits, stats: Arc<Stats>) -> Arc<Self> {
        Arc::new(Self {
            stats,
            max: limits.max_connections as u64,
            max_per_ip: u32::try_from(limits.max_connections_per_ip).unwrap_or(u32::MAX),
            exempt: limits.exempt_networks.clone(),
            per_ip: Mutex::default(),
            empty: Notify::new(),
        })
    }

    /// A permit for a connection from an address, unless there are too many.
    pub(crate) fn enter(self: &Arc<Self>, ip: IpAddr) -> Option<Permit> {
        if self.stats.open.fetch_add(1, Ordering::SeqCst) >= self.max {
            self.leave();
            return None;
        }
        let mut permit = Permit { gate: Arc::clone(self), counted: None };
        let ip = ip.to_canonical();
        if !ip.is_loopback() && !self.exempt.iter().any(|net| contains(*net, ip)) {
            let key = network(ip);
            let mut per_ip = self.per_ip.lock();
            let open = per_ip.entry(key).or_insert(0);
            if *open >= self.max_per_ip {
                return None;
            }
            *open += 1;
            permit.counted = Some(key);
        }
        Some(permit)
    }

    /// Waits until no connection is open.
    pub(crate) async fn empty(&self) {
        loop {
            let empty = self.empty.notified();
            if self.stats.open.load(Ordering::SeqCst) == 0 {
                return;
            }
            empty.await;
        }
    }

    fn leave(&self) {
        if self.stats.open.fetch_sub(1, Ordering::SeqCst) == 1 {
            self.empty.notify_waiters();
        }
    }
}

impl Drop for Permit {
    fn drop(&mut self) {
        if let Some(ip) = self.counted {
            let mut per_ip = self.gate.per_ip.lock();
            if let Some(open) = per_ip.get_mut(&ip) {
                *open -= 1;
                if *open == 0 {
                    per_ip.remove(&ip);
                }
            }
        }
        self.gate.leave();
    }
}

/// What counts as one address: IPv6 users have a /64 each.
fn network(ip: IpAddr) -> IpAddr {
    match ip {
        IpAddr::V4(_) => ip,
        IpAddr::V6(v6) => IpAddr::V6(Ipv6Addr::from_bits(v6.to_bits() & (u128::MAX << 64))),
    }
}

fn contains((net, prefix): (IpAddr, u8), ip: IpAddr) -> bool {
    match (net, ip) {
        (IpAddr::V4(net), IpAddr::V4(ip)) => {
            let mask = u32::MAX.checked_shl(32 - u32::from(prefix.min(32))).unwrap_or(0);
            net.to_bits() & mask == ip.to_bits() & mask
        }
        (IpAddr::V6(net), IpAddr::V6(ip)) => {
            let mask = u128::MAX.checked_shl(128 - u32::from(prefix.min(128))).unwrap_or(0);
            net.to_bits() & mask == ip.to_bits() & mask
        }
        (IpAddr::V4(_), IpAddr::V6(_)) | (IpAddr::V6(_), IpAddr::V4(_)) => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ip(text: &str) -> IpAddr {
        text.parse().expect("an address")
    }

    fn gate(max: usize, per_ip: usize, exempt: Vec<(IpAddr, u8)>) -> Arc<Gate> {
        let limits = Limits {
            max_connections: max,
            max_connections_per_ip: per_ip,
            exempt_networks: exempt,
            ..Limits::default()
        };
        Gate::new(&limits, Arc::default())
    }

    #[test]
    fn an_address_gets_its_share_back_when_its_connections_end() {
        let gate = gate(100, 2, Vec::new());
        let first = gate.enter(ip("192.0.2.1")).expect("first");
        let _second = gate.enter(ip("192.0.2.1")).expect("second");
        assert!(gate.enter(ip("192.0.2.1")).is_none());
        assert!(gate.enter(ip("::ffff:192.0.2.1")).is_none(), "the same address in other clothes");
        assert!(gate.enter(ip("192.0.2.2")).is_some());
        drop(first);
        assert!(gate.enter(ip("192.0.2.1")).is_some());
        assert_eq!(gate.stats.open.load(Ordering::SeqCst), 1);
    }

    #[test]
    fn loopback_and_trusted_networks_count_only_in_all() {
        let gate = gate(4, 1, vec![(ip("10.0.0.0"), 8), (ip("2001:db8::"), 32)]);
        let held: Vec<_> =
            ["127.0.0.1", "127.0.0.1", "10.1.2.3", "2001:db8::1"].map(|a| gate.enter(ip(a))).into();
        assert!(held.iter().all(Option::is_some));
        assert!(gate.enter(ip("127.0.0.1")).is_none());
    }

    #[test]
    fn one_ipv6_network_is_one_address() {
        let gate = gate(100, 1, Vec::new());
        let _held = gate.enter(ip("2001:db8:0:1::1")).expect("first");
        assert!(gate.enter(ip("2001:db8:0:1::2")).is_none());
        assert!(gate.enter(ip("2001:db8:0:2::1")).is_some());
    }

    #[test]
    fn networks_contain_what_shares_their_prefix() {
        assert!(contains((ip("10.0.0.0"), 8), ip("10.255.0.1")));
        assert!(!contains((ip("10.0.0.0"), 8), ip("11.0.0.1")));
        assert!(contains((ip("0.0.0.0"), 0), ip("11.0.0.1")));
        assert!(contains((ip("10.0.0.1"), 32), ip("10.0.0.1")));
        assert!(!contains((ip("10.0.0.1"), 32), ip("10.0.0.2")));
        assert!(!contains((ip("10.0.0.0"), 8), ip("::1")));
    }
}
