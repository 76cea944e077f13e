//! Ids of orders: everything an order binds, authenticated, so that nothing is stored for who does not pay.

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use hmac::{Hmac, Mac as _};
use otonix_sdk::chain::EvmAddress;
use sha2::{Digest as _, Sha256};

const VERSION: u8 = 1;
const BODY: usize = 1 + 8 + 4 + 8 + 8 + 12 + 8 + 8 + 20 + 20 + 32;
const MAC: usize = 32;

/// What an order binds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Order {
    /// When it was given out, seconds since 1970.
    pub created: u64,
    /// How long it may be paid, seconds.
    pub ttl: u32,
    /// The chain's newest block then.
    pub head: u64,
    /// That block's time.
    pub head_time: u64,
    /// Makes each order another one.
    pub salt: [u8; 12],
    /// Micro-USDC.
    pub price: u64,
    /// The chain.
    pub chain: u64,
    /// The token.
    pub asset: EvmAddress,
    /// Whom to pay.
    pub treasury: EvmAddress,
    /// Principal, method, path with query and body: see [`binding`].
    pub binding: [u8; 32],
}

impl Order {
    /// Until when a block may have the payment in it, seconds since 1970. A chain whose clock runs ahead counts by it.
    pub fn until(&self) -> u64 {
        self.created.max(self.head_time).saturating_add(u64::from(self.ttl))
    }

    /// The id.
    pub fn id(&self, key: &[u8; 32]) -> String {
        let mut bytes = Vec::with_capacity(BODY + MAC);
        bytes.push(VERSION);
        bytes.extend(self.created.to_be_bytes());
        bytes.extend(self.ttl.to_be_bytes());
        bytes.extend(self.head.to_be_bytes());
        bytes.extend(self.head_time.to_be_bytes());
        bytes.extend(self.salt);
        bytes.extend(self.price.to_be_bytes());
        bytes.extend(self.chain.to_be_bytes());
        bytes.extend(self.asset.bytes());
        bytes.extend(self.treasury.bytes());
        bytes.extend(self.binding);
        let tag = mac(key, &bytes).finalize().into_bytes();
        bytes.extend(tag);
        URL_SAFE_NO_PAD.encode(bytes)
    }

    /// Reads an id; `None` when this server (or a replica of it) did not give it out.
    pub fn read(key: &[u8; 32], id: &str) -> Option<Self> {
        if id.len() > 512 {
            return None;
        }
        let bytes = URL_SAFE_NO_PAD.decode(id).ok()?;
        let (body, tag) = bytes.split_at_checked(BODY)?;
        mac(key, body).verify_slice(tag).ok()?;
        let mut reader = Reader(body);
        if reader.take::<1>()? != [VERSION] {
            return None;
        }
        Some(Self {
            created: u64::from_be_bytes(reader.take()?),
            ttl: u32::from_be_bytes(reader.take()?),
            head: u64::from_be_bytes(reader.take()?),
            head_time: u64::from_be_bytes(reader.take()?),
            salt: reader.take()?,
            price: u64::from_be_bytes(reader.take()?),
            chain: u64::from_be_bytes(reader.take()?),
            asset: EvmAddress::from_bytes(reader.take()?),
            treasury: EvmAddress::from_bytes(reader.take()?),
            binding: reader.take()?,
        })
    }
}

struct Reader<'b>(&'b [u8]);

impl Reader<'_> {
    fn take<const N: usize>(&mut self) -> Option<[u8; N]> {
        let (part, rest) = self.0.split_at_checked(N)?;
        self.0 = rest;
        part.try_into().ok()
    }
}

fn mac(key: &[u8; 32], bytes: &[u8]) -> Hmac<Sha256> {
    let mut mac = Hmac::<Sha256>::new_from_slice(key).expect("HMAC takes keys of any length");
    mac.update(bytes);
    mac
}

/// What a request is: whose, which route with its query, which body.
pub fn binding(principal: &str, method: &str, path_and_query: &str, body: &[u8]) -> [u8; 32] {
    let mut hash = Sha256::new();
    for part in [principal.as_bytes(), method.as_bytes(), path_and_query.as_bytes(), &Sha256::digest(body)] {
        hash.update((part.len() as u64).to_be_bytes());
        hash.update(part);
    }
    hash.finalize().into()
}

/// SHA-256 of an order's id: what a transfer's calldata carries.
pub fn hash_of(id: &str) -> [u8; 32] {
    Sha256::digest(id.as_bytes()).into()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn order() -> Order {
        Order {
            created: 1_800_000_000,
            ttl: 900,
            head: 77,
            head_time: 1_799_999_999,
            salt: [3; 12],
            price: 1_500_000,
            chain: 8453,
            asset: EvmAddress::from_bytes([4; 20]),
            treasury: EvmAddress::from_bytes([5; 20]),
            binding: binding("", "POST", "/api/agents/x/topup", b"{}"),
        }
    }

    #[test]
    fn an_id_reads_back_with_its_own_key_only() {
        let id = order().id(&[1; 32]);
        assert!(id.len() <= 512, "{}", id.len());
        assert_eq!(Order::read(&[1; 32], &id), Some(order()));
        assert_eq!(Order::read(&[2; 32], &id), None);
    }

    #[test]
    fn no_character_of_an_id_may_change() {
        let id = order().id(&[1; 32]);
        for at in 0..id.len() {
            let mut changed = id.clone().into_bytes();
            changed[at] = if changed[at] == b'A' { b'B' } else { b'A' };
            let changed = String::from_utf8(changed).expect("ASCII");
            assert_eq!(Order::read(&[1; 32], &changed), None, "{at}");
        }
        for bad in ["", "A", &id[1..], &format!("{id}A"), &"A".repeat(600)] {
            assert_eq!(Order::read(&[1; 32], bad), None, "{bad}");
        }
    }

    #[test]
    fn a_binding_tells_every_part_apart() {
        let parts = [
            ("", "POST", "/a", &b""[..]),
            ("k", "POST", "/a", b""),
            ("", "PUT", "/a", b""),
            ("", "POST", "/a?x", b""),
            ("", "POST", "/a", b" "),
            ("POST", "", "/a", b""),
        ];
        let all: std::collections::HashSet<_> = parts.map(|(p, m, t, b)| binding(p, m, t, b)).into();
        assert_eq!(all.len(), parts.len());
    }

    #[test]
    fn a_chain_that_runs_ahead_gives_its_own_time() {
        assert_eq!(order().until(), 1_800_000_900);
        assert_eq!(Order { head_time: 1_800_005_000, ..order() }.until(), 1_800_005_900);
    }
}
