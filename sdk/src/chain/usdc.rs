//! USDC as a contract (Circle's FiatToken 2.2): its calls and its logs.
//!
//! Calls are written and read by hand, since they are few and fixed; each selector is checked against its signature.

use super::{EvmAddress, Hash, Log, LogFilter};
pub use crate::x402::eip3009::Transfer as TransferAuthorization;

const TRANSFER: [u8; 4] = [0xa9, 0x05, 0x9c, 0xbb];
pub(super) const BALANCE_OF: [u8; 4] = [0x70, 0xa0, 0x82, 0x31];
pub(super) const AUTHORIZATION_STATE: [u8; 4] = [0xe9, 0x4a, 0x01, 0x02];
pub(super) const NAME: [u8; 4] = [0x06, 0xfd, 0xde, 0x03];
pub(super) const VERSION: [u8; 4] = [0x54, 0xfd, 0x4d, 0x50];
pub(super) const DECIMALS: [u8; 4] = [0x31, 0x3c, 0xe5, 0x67];
pub(super) const DOMAIN_SEPARATOR: [u8; 4] = [0x36, 0x44, 0xe5, 0x15];
/// `transferWithAuthorization` with v, r and s.
const TRANSFER_WITH_VRS: [u8; 4] = [0xe3, 0xee, 0x16, 0x0e];
/// `transferWithAuthorization` with the signature as bytes: contracts' own signatures.
const TRANSFER_WITH_BYTES: [u8; 4] = [0xcf, 0x09, 0x29, 0x95];
/// ERC-1271.
pub(super) const IS_VALID_SIGNATURE: [u8; 4] = [0x16, 0x26, 0xba, 0x7e];

/// `Transfer(address indexed from, address indexed to, uint256 value)`.
pub const TRANSFER_TOPIC: Hash = Hash([
    0xdd, 0xf2, 0x52, 0xad, 0x1b, 0xe2, 0xc8, 0x9b, 0x69, 0xc2, 0xb0, 0x68, 0xfc, 0x37, 0x8d, 0xaa, 0x95,
    0x2b, 0xa7, 0xf1, 0x63, 0xc4, 0xa1, 0x16, 0x28, 0xf5, 0x5a, 0x4d, 0xf5, 0x23, 0xb3, 0xef,
]);
/// `AuthorizationUsed(address indexed authorizer, bytes32 indexed nonce)`.
pub const AUTHORIZATION_USED_TOPIC: Hash = Hash([
    0x98, 0xde, 0x50, 0x35, 0x28, 0xee, 0x59, 0xb5, 0x75, 0xef, 0x0c, 0x0a, 0x25, 0x76, 0xa8, 0x24, 0x97,
    0xbf, 0xc0, 0x29, 0xa5, 0x68, 0x5b, 0x20, 0x9e, 0x9e, 0xc3, 0x33, 0x47, 0x9b, 0x10, 0xa5,
]);

/// `AuthorizationCanceled(address indexed authorizer, bytes32 indexed nonce)`.
pub const AUTHORIZATION_CANCELLED_TOPIC: Hash = Hash([
    0x1c, 0xdd, 0x46, 0xff, 0x24, 0x27, 0x16, 0xcd, 0xaa, 0x72, 0xd1, 0x59, 0xd3, 0x39, 0xa4, 0x85, 0xb3,
    0x43, 0x83, 0x98, 0x34, 0x8d, 0x68, 0xf0, 0x9d, 0x7c, 0x8c, 0x0a, 0x59, 0x35, 0x3d, 0x81,
]);

/// A `transfer` call.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TransferCall {
    /// Who is paid.
    pub to: EvmAddress,
    /// Base units.
    pub value: u128,
    /// The 32 bytes after the arguments, when there are any: SHA-256 of the order that this pays.
    pub order: Option<[u8; 32]>,
}

/// A `Transfer` log.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TransferLog {
    /// Who paid.
    pub from: EvmAddress,
    /// Who was paid.
    pub to: EvmAddress,
    /// Base units.
    pub value: u128,
    /// The block.
    pub block_number: u64,
    /// The block's hash.
    pub block_hash: Hash,
    /// The transaction.
    pub tx_hash: Hash,
    /// Its place in the block.
    pub log_index: u64,
}

pub(super) fn word(address: EvmAddress) -> [u8; 32] {
    let mut word = [0; 32];
    word[12..].copy_from_slice(&address.bytes());
    word
}

pub(super) fn number(value: u128) -> [u8; 32] {
    let mut word = [0; 32];
    word[16..].copy_from_slice(&value.to_be_bytes());
    word
}

pub(super) fn call(selector: [u8; 4], words: &[[u8; 32]]) -> Vec<u8> {
    selector.iter().copied().chain(words.iter().flatten().copied()).collect()
}

/// Bytes as the last argument of a call: their length, and themselves filled up to whole words.
pub(super) fn tail(bytes: &[u8]) -> Vec<u8> {
    let mut tail = number(bytes.len() as u128).to_vec();
    tail.extend_from_slice(bytes);
    tail.resize(32 + bytes.len().next_multiple_of(32), 0);
    tail
}

/// The call `transfer(to, value)`; with `order`, these 32 bytes follow the arguments, which the token ignores.
pub fn transfer(to: EvmAddress, value: u128, order: Option<[u8; 32]>) -> Vec<u8> {
    let mut data = call(TRANSFER, &[word(to), number(value)]);
    data.extend(order.into_iter().flatten());
    data
}

/// Reads a `transfer` call; `None` when it is another one.
pub fn read_transfer(input: &[u8]) -> Option<TransferCall> {
    let (selector, rest) = input.split_at_checked(4)?;
    let (to, rest) = rest.split_at_checked(32)?;
    let (value, rest) = rest.split_at_checked(32)?;
    if selector != TRANSFER {
        return None;
    }
    let order = rest.get(..32).and_then(|order| order.try_into().ok());
    Some(TransferCall { to: address_in(to)?, value: number_in(value)?, order })
}

/// The call that carries out an authorization. A signature of 65 bytes goes as v, r and s, others as bytes.
pub fn transfer_with_authorization(a: &TransferAuthorization, signature: &[u8]) -> Vec<u8> {
    let mut words = vec![
        word(a.from),
        word(a.to),
        number(a.value),
        number(u128::from(a.valid_after)),
        number(u128::from(a.valid_before)),
        a.nonce,
    ];
    if let Ok(signature) = <&[u8; 65]>::try_from(signature) {
        let (rs, v) = signature.split_at(64);
        let v = v.first().copied().unwrap_or(0);
        let v = if v < 27 { v + 27 } else { v };
        words.push(number(u128::from(v)));
        let mut data = call(TRANSFER_WITH_VRS, &words);
        data.extend_from_slice(rs);
        return data;
    }
    words.push(number(7 * 32));
    let mut data = call(TRANSFER_WITH_BYTES, &words);
    data.extend(tail(signature));
    data
}

/// The same with the signature as bytes whatever its length: for a payer that is a contract.
pub fn transfer_with_contract_signature(a: &TransferAuthorization, signature: &[u8]) -> Vec<u8> {
    let words = [
        word(a.from),
        word(a.to),
        number(a.value),
        number(u128::from(a.valid_after)),
        number(u128::from(a.valid_before)),
        a.nonce,
        number(7 * 32),
    ];
    let mut data = call(TRANSFER_WITH_BYTES, &words);
    data.extend(tail(signature));
    data
}

fn address_in(word: &[u8]) -> Option<EvmAddress> {
    let (zeros, address) = word.split_at_checked(12)?;
    let address = <[u8; 20]>::try_from(address).ok()?;
    zeros.iter().all(|byte| *byte == 0).then(|| EvmAddress::from_bytes(address))
}

pub(super) fn number_in(word: &[u8]) -> Option<u128> {
    let (zeros, value) = word.split_at_checked(16)?;
    let value = <[u8; 16]>::try_from(value).ok()?;
    zeros.iter().all(|byte| *byte == 0).then(|| u128::from_be_bytes(value))
}

/// Reads a `Transfer` log of a token; `None` when it is another one.
pub fn read_transfer_log(log: &Log) -> Option<TransferLog> {
    let [topic, from, to] = log.topics.as_slice() else { return None };
    if *topic != TRANSFER_TOPIC || log.data.len() != 32 {
        return None;
    }
    Some(TransferLog {
        from: address_in(&from.0)?,
        to: address_in(&to.0)?,
        value: number_in(&log.data)?,
        block_number: log.block_number,
        block_hash: log.block_hash,
        tx_hash: log.tx_hash,
        log_index: log.log_index,
    })
}

/// Reads an `AuthorizationUsed` log: the payer and the nonce.
pub fn read_authorization_used(log: &Log) -> Option<(EvmAddress, [u8; 32])> {
    match log.topics.as_slice() {
        [topic, from, nonce] if *topic == AUTHORIZATION_USED_TOPIC => Some((address_in(&from.0)?, nonce.0)),
        _ => None,
    }
}

/// Asks for the transfers of a token in some blocks: from an account, or to one.
pub fn transfers(
    asset: EvmAddress,
    from: Option<EvmAddress>,
    to: Option<EvmAddress>,
    blocks: std::ops::RangeInclusive<u64>,
) -> LogFilter {
    let topic = |address: Option<EvmAddress>| address.map(|address| Hash(word(address)));
    LogFilter {
        address: asset,
        topics: vec![Some(TRANSFER_TOPIC), topic(from), topic(to)],
        from: *blocks.start(),
        to: *blocks.end(),
    }
}

/// Asks for the use of one authorization.
pub fn authorization_used(
    asset: EvmAddress,
    from: EvmAddress,
    nonce: [u8; 32],
    blocks: std::ops::RangeInclusive<u64>,
) -> LogFilter {
    about_authorization(AUTHORIZATION_USED_TOPIC, asset, from, nonce, blocks)
}

/// Asks for the end of one authorization by its payer, unused.
pub fn authorization_cancelled(
    asset: EvmAddress,
    from: EvmAddress,
    nonce: [u8; 32],
    blocks: std::ops::RangeInclusive<u64>,
) -> LogFilter {
    about_authorization(AUTHORIZATION_CANCELLED_TOPIC, asset, from, nonce, blocks)
}

fn about_authorization(
    topic: Hash,
    asset: EvmAddress,
    from: EvmAddress,
    nonce: [u8; 32],
    blocks: std::ops::RangeInclusive<u64>,
) -> LogFilter {
    LogFilter {
        address: asset,
        topics: vec![Some(topic), Some(Hash(word(from))), Some(Hash(nonce))],
        from: *blocks.start(),
        to: *blocks.end(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use sha3::{Digest as _, Keccak256};

    fn account(byte: u8) -> EvmAddress {
        EvmAddress::from_bytes([byte; 20])
    }

    #[test]
    fn every_selector_and_topic_is_that_of_its_signature() {
        for (selector, signature) in [
            (TRANSFER, "transfer(address,uint256)"),
            (BALANCE_OF, "balanceOf(address)"),
            (AUTHORIZATION_STATE, "authorizationState(address,bytes32)"),
            (NAME, "name()"),
            (VERSION, "version()"),
            (DECIMALS, "decimals()"),
            (DOMAIN_SEPARATOR, "DOMAIN_SEPARATOR()"),
            (
                TRANSFER_WITH_VRS,
                "transferWithAuthorization(address,address,uint256,uint256,uint256,bytes32,uint8,bytes32,bytes32)",
            ),
            (
                TRANSFER_WITH_BYTES,
                "transferWithAuthorization(address,address,uint256,uint256,uint256,bytes32,bytes)",
            ),
            (IS_VALID_SIGNATURE, "isValidSignature(bytes32,bytes)"),
        ] {
            assert_eq!(Keccak256::digest(signature)[..4], selector, "{signature}");
        }
        for (topic, signature) in [
            (TRANSFER_TOPIC, "Transfer(address,address,uint256)"),
            (AUTHORIZATION_USED_TOPIC, "AuthorizationUsed(address,bytes32)"),
            (AUTHORIZATION_CANCELLED_TOPIC, "AuthorizationCanceled(address,bytes32)"),
        ] {
            assert_eq!(Keccak256::digest(signature)[..], topic.0, "{signature}");
        }
    }

    #[test]
    fn a_transfer_names_its_order_in_what_follows_the_arguments() {
        let plain = transfer(account(2), 5, None);
        assert_eq!(plain.len(), 4 + 64);
        assert_eq!(read_transfer(&plain).and_then(|call| call.order), None);
        let named = transfer(account(2), 5, Some([7; 32]));
        let read = read_transfer(&named).expect("a transfer");
        assert_eq!((read.to, read.value, read.order), (account(2), 5, Some([7; 32])));
        assert_eq!(read_transfer(&named[..99]).and_then(|call| call.order), None);
        assert_eq!(read_transfer(&plain[..67]), None);
        let mut other = plain.clone();
        other[0] ^= 1;
        assert_eq!(read_transfer(&other), None);
        let mut dirty = plain;
        dirty[4] = 1;
        assert_eq!(read_transfer(&dirty), None);
    }

    #[test]
    fn logs_of_other_shapes_are_not_transfers() {
        let log = Log {
            address: account(1),
            topics: vec![TRANSFER_TOPIC, Hash(word(account(2))), Hash(word(account(3)))],
            data: number(1_000_000).to_vec(),
            block_number: 1,
            block_hash: Hash([1; 32]),
            tx_hash: Hash([2; 32]),
            log_index: 4,
        };
        let read = read_transfer_log(&log).expect("a transfer");
        assert_eq!((read.from, read.to, read.value, read.log_index), (account(2), account(3), 1_000_000, 4));
        let huge = Log { data: vec![0xff; 32], ..log.clone() };
        let short = Log { data: vec![0; 31], ..log.clone() };
        let nft = Log { topics: [log.topics.clone(), vec![Hash([0; 32])]].concat(), ..log.clone() };
        for other in [huge, short, nft] {
            assert_eq!(read_transfer_log(&other), None, "{other:?}");
        }
    }

    #[test]
    fn a_signature_of_65_bytes_goes_as_its_parts_and_others_as_bytes() {
        let authorization = TransferAuthorization {
            from: account(1),
            to: account(2),
            value: 3,
            valid_after: 4,
            valid_before: 5,
            nonce: [6; 32],
        };
        let mut signature = [9; 65];
        signature[64] = 0;
        let parts = transfer_with_authorization(&authorization, &signature);
        assert_eq!(parts.len(), 4 + 9 * 32);
        assert_eq!(parts[4 + 6 * 32 + 31], 27);
        let bytes = transfer_with_authorization(&authorization, &[9; 70]);
        assert_eq!(bytes.len(), 4 + 7 * 32 + 32 + 96);
        let same = transfer_with_contract_signature(&authorization, &signature);
        assert_eq!(same.len(), 4 + 7 * 32 + 32 + 96);
    }
}
