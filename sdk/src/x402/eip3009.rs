//! The signed shapes on an EVM chain: EIP-3009 authorizations (EIP-712), order proofs (EIP-191), and the calldata of
//! a transfer that names its order. Digests, recovery and calldata only; keys stay in the wallet.

use alloy::primitives::{B256, Signature, U256};
use alloy::sol;
use alloy::sol_types::{Eip712Domain, SolCall as _, SolStruct as _};
use sha2::{Digest as _, Sha256};

use super::base_units;
use super::payload::Authorization;
use crate::wallet::{EvmAddress, parse_address};

sol! {
    struct TransferWithAuthorization {
        address from;
        address to;
        uint256 value;
        uint256 validAfter;
        uint256 validBefore;
        bytes32 nonce;
    }

    function transfer(address to, uint256 value) external returns (bool);
}

/// r, s and v of a signature by a plain key.
pub const SIGNATURE_BYTES: usize = 65;

/// Why a signature is not one of a plain key.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum BadSignature {
    /// Not `0x` and 65 bytes in hex with a recovery id of 27, 28, 0 or 1, or no point of the curve.
    #[error("must be 0x and 65 bytes in hex")]
    Malformed,
    /// The other of the two forms that every signature has; the token refuses it.
    #[error("must have a low s")]
    HighS,
}

/// A token's EIP-712 domain.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Domain {
    /// The token's `name()`.
    pub name: String,
    /// The token's `version()`.
    pub version: String,
    /// The chain.
    pub chain_id: u64,
    /// The token's contract.
    pub asset: EvmAddress,
}

/// An authorization as numbers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Transfer {
    /// Who pays.
    pub from: EvmAddress,
    /// Who is paid.
    pub to: EvmAddress,
    /// Base units.
    pub value: u128,
    /// Not valid until after this Unix time, seconds.
    pub valid_after: u64,
    /// Not valid at or after this Unix time, seconds.
    pub valid_before: u64,
    /// Used once per payer.
    pub nonce: [u8; 32],
}

/// A `transfer(to, value)` in calldata, with what follows its arguments.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TransferCall {
    /// Who is paid.
    pub to: EvmAddress,
    /// Base units.
    pub value: u128,
    /// Bytes after the arguments; 32 of them name an order.
    pub suffix: Vec<u8>,
}

impl Domain {
    /// The domain separator, as the token's `DOMAIN_SEPARATOR()` must answer.
    pub fn separator(&self) -> [u8; 32] {
        self.eip712().separator().0
    }

    fn eip712(&self) -> Eip712Domain {
        Eip712Domain::new(
            Some(self.name.clone().into()),
            Some(self.version.clone().into()),
            Some(U256::from(self.chain_id)),
            Some(self.asset.bytes().into()),
            None,
        )
    }
}

impl Transfer {
    /// Reads an authorization as it was sent; `None` when a field is none of its kind, or beyond any amount or time
    /// that can be meant (`u128` base units, `u64` seconds).
    pub fn read(sent: &Authorization) -> Option<Self> {
        Some(Self {
            from: parse_address(&sent.from).ok()?,
            to: parse_address(&sent.to).ok()?,
            value: base_units(&sent.value)?,
            valid_after: base_units(&sent.valid_after)?.try_into().ok()?,
            valid_before: base_units(&sent.valid_before)?.try_into().ok()?,
            nonce: read_word(&sent.nonce)?,
        })
    }

    /// As it is sent.
    pub fn authorization(&self) -> Authorization {
        Authorization {
            from: self.from.to_string(),
            to: self.to.to_string(),
            value: self.value.to_string(),
            valid_after: self.valid_after.to_string(),
            valid_before: self.valid_before.to_string(),
            nonce: write_hex(&self.nonce),
        }
    }

    /// What is signed.
    pub fn digest(&self, domain: &Domain) -> [u8; 32] {
        digest_of(&self.typed(U256::from(self.value)), domain)
    }

    fn typed(&self, value: U256) -> TransferWithAuthorization {
        TransferWithAuthorization {
            from: self.from.bytes().into(),
            to: self.to.bytes().into(),
            value,
            validAfter: U256::from(self.valid_after),
            validBefore: U256::from(self.valid_before),
            nonce: B256::from(self.nonce),
        }
    }
}

fn digest_of(typed: &TransferWithAuthorization, domain: &Domain) -> [u8; 32] {
    typed.eip712_signing_hash(&domain.eip712()).0
}

/// Reads a signature of a plain key.
///
/// # Errors
/// [`BadSignature`] when it is none, or has a high s.
pub fn read_signature(text: &str) -> Result<[u8; SIGNATURE_BYTES], BadSignature> {
    let digits = text.strip_prefix("0x").ok_or(BadSignature::Malformed)?;
    let mut bytes = [0; SIGNATURE_BYTES];
    hex::decode_to_slice(digits, &mut bytes).map_err(|_| BadSignature::Malformed)?;
    parse(&bytes).map(|_| bytes)
}

fn parse(bytes: &[u8; SIGNATURE_BYTES]) -> Result<Signature, BadSignature> {
    if !matches!(bytes.last(), Some(0 | 1 | 27 | 28)) {
        return Err(BadSignature::Malformed);
    }
    let signature = Signature::from_raw_array(bytes).map_err(|_| BadSignature::Malformed)?;
    if signature.normalize_s().is_some() { Err(BadSignature::HighS) } else { Ok(signature) }
}

/// Who signed a digest.
///
/// # Errors
/// [`BadSignature`] when nobody can have.
pub fn recover(digest: &[u8; 32], signature: &[u8; SIGNATURE_BYTES]) -> Result<EvmAddress, BadSignature> {
    let signer = parse(signature)?.recover_address_from_prehash(&B256::from(*digest));
    signer.map(|signer| EvmAddress::from_bytes(signer.into_array())).map_err(|_| BadSignature::Malformed)
}

/// Who signed a text (EIP-191).
///
/// # Errors
/// [`BadSignature`] when nobody can have.
pub fn recover_text(text: &str, signature: &str) -> Result<EvmAddress, BadSignature> {
    let signer = parse(&read_signature(signature)?)?.recover_address_from_msg(text.as_bytes());
    signer.map(|signer| EvmAddress::from_bytes(signer.into_array())).map_err(|_| BadSignature::Malformed)
}

/// v (27 or 28), r and s, as `transferWithAuthorization` takes them.
pub fn split(signature: &[u8; SIGNATURE_BYTES]) -> (u8, [u8; 32], [u8; 32]) {
    let (mut r, mut s) = ([0; 32], [0; 32]);
    let (first, rest) = signature.split_at(32);
    let (second, last) = rest.split_at(32);
    r.copy_from_slice(first);
    s.copy_from_slice(second);
    let v = last.first().copied().unwrap_or_default();
    (if v < 27 { v + 27 } else { v }, r, s)
}

/// What a transfer's calldata carries to name an order: SHA-256 of its id.
pub fn order_tag(order_id: &str) -> [u8; 32] {
    Sha256::digest(order_id.as_bytes()).into()
}

/// Calldata of `transfer(to, value)`, followed by what names the order. The token ignores what follows.
pub fn order_calldata(to: EvmAddress, value: u128, order_id: &str) -> Vec<u8> {
    let mut data = transferCall { to: to.bytes().into(), value: U256::from(value) }.abi_encode();
    data.extend_from_slice(&order_tag(order_id));
    data
}

/// Reads calldata that begins with `transfer(to, value)`; `None` when it does not, or when the value is beyond `u128`.
pub fn read_transfer(data: &[u8]) -> Option<TransferCall> {
    const ARGUMENTS: usize = 4 + 32 + 32;
    let (call, suffix) = data.split_at_checked(ARGUMENTS)?;
    let call = transferCall::abi_decode_validate(call).ok()?;
    Some(TransferCall {
        to: EvmAddress::from_bytes(call.to.into_array()),
        value: u128::try_from(call.value).ok()?,
        suffix: suffix.to_vec(),
    })
}

/// Reads `0x` and 32 bytes in hex: a hash or a nonce.
pub fn read_word(text: &str) -> Option<[u8; 32]> {
    let mut bytes = [0; 32];
    hex::decode_to_slice(text.strip_prefix("0x")?, &mut bytes).ok()?;
    Some(bytes)
}

/// Bytes as `0x` and hex.
pub fn write_hex(bytes: &[u8]) -> String {
    format!("0x{}", hex::encode(bytes))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const PAYER: &str = "0x90F79bf6EB2c4f870365E785982E1f101E93b906";
    const PAYEE: &str = "0x3C44CdDdB6a900fa2b585dd299e03d12FA4293BC";

    /// Value, nonce byte; digest and signature on Base, and on Base Sepolia (domain `USDC`). Made with viem.
    const VECTORS: [(U256, u8, [&str; 4]); 3] = [
        (
            U256::from_limbs([10_000, 0, 0, 0]),
            0x11,
            [
                "690123c7cfad21de7a597b0e0718282d6653bcb784ee6491a74c8cf71ba42586",
                "0x0224c1bba061371d6b3997cc71c6dd9c0e7285dbc229beb45abecd3e5024e7b472854f19a596d633a0fc8903509c1782908b972347c482b711750466d3e3e2b61c",
                "dda41e3e02417046bdcf46c0013318894491e57a637b039151ec875a044ef35b",
                "0xbde704f0f88396545ed128e79e021e97adec9f9370108c35c1b8dd3c3fcb880234d32130021e06666abdecc353676879b90dd775298917e982918a4c77640e511b",
            ],
        ),
        (
            U256::from_limbs([1, 0, 0, 0]),
            0,
            [
                "8a021554507a3611ff9dd315cc0a481c8b13e4363f0d28cf1a9b11f3b3d98ba0",
                "0xbaab983c1747c5f0b444c38bfcbeb3a1bfe0009ef18c0ae71ffb77e8bbb918e45fdf0154c52ac6aae567335621767cb9163c867c4d7d71db9accfa6641f3c4fb1c",
                "cb634ffef9593dba6f35bdc45cf48c92ebbe54abc85f872f0fb4f77347a73561",
                "0x81603ce3b17e9271261a4c0d569bbff92b209183045d90b101704576f6264876600ec822c57cc69e563426e4d69b778aec9bc004e0b83815e69ee93b76235d751c",
            ],
        ),
        (
            U256::MAX,
            0xff,
            [
                "22682d9e91b4f1af5d50def2561392b407114f7055c2c66dfccb665db8489a00",
                "0x6c5bf8be6ca81dd0962476d95b08036b76f9ebb062c608d9ad63ac72c9a5fff17d4010516002a72ff5fa2372e189ea5441de6f73742a1222cddd1e584c7855581b",
                "fa4b4e5bce01cb2e26069c9547dbc80f8b18dfaae96d095143a319b929153623",
                "0x9cd24ee9747412239c1fc95f0c6602c7261926de98fcbe211b0f44ba54c1b9c744a671d9d97875a764029b9c58b2021901a198baefccbe1f90e9066dc1c02e4e1c",
            ],
        ),
    ];

    fn address(text: &str) -> EvmAddress {
        parse_address(text).expect("an address")
    }

    fn base() -> Domain {
        Domain {
            name: "USD Coin".to_owned(),
            version: "2".to_owned(),
            chain_id: 8453,
            asset: address("0x833589fCD6eDb6E08f4c7C32D4f71b54bdA02913"),
        }
    }

    fn sepolia() -> Domain {
        Domain {
            name: "USDC".to_owned(),
            version: "2".to_owned(),
            chain_id: 84532,
            asset: address("0x036CbD53842c5426634e7929541eC2318f3dCF7e"),
        }
    }

    fn transfer(value: u128, nonce: u8) -> Transfer {
        Transfer {
            from: address(PAYER),
            to: address(PAYEE),
            value,
            valid_after: 0,
            valid_before: 1_900_000_000,
            nonce: [nonce; 32],
        }
    }

    #[test]
    fn digests_and_signatures_are_those_of_other_software() {
        assert_eq!(
            hex::encode(base().separator()),
            "02fa7265e7c5d81118673727957699e4d68f74cd74b7db77da710fe8a2c7834f"
        );
        for (value, nonce, expected) in VECTORS {
            for (domain, [digest, signature]) in
                [(base(), [expected[0], expected[1]]), (sepolia(), [expected[2], expected[3]])]
            {
                let found = digest_of(&transfer(0, nonce).typed(value), &domain);
                assert_eq!(hex::encode(found), digest);
                if let Ok(small) = u128::try_from(value) {
                    assert_eq!(transfer(small, nonce).digest(&domain), found);
                }
                let signature = read_signature(signature).expect("a signature");
                assert_eq!(recover(&found, &signature), Ok(address(PAYER)));
                let (v, r, s) = split(&signature);
                assert_eq!([&r[..], &s[..], &[v]].concat(), signature);
            }
        }
    }

    #[test]
    fn an_authorization_reads_back_and_nonsense_does_not() {
        let sent = transfer(10_000, 7).authorization();
        assert_eq!(Transfer::read(&sent), Some(transfer(10_000, 7)));
        type Change = fn(&mut Authorization);
        let changes: [Change; 7] = [
            |a| a.from = "0x".to_owned(),
            |a| a.to.push('0'),
            |a| a.value = "1.5".to_owned(),
            |a| a.value = "-1".to_owned(),
            |a| a.valid_before = "99999999999999999999999".to_owned(),
            |a| a.valid_after = String::new(),
            |a| a.nonce.truncate(64),
        ];
        for change in changes {
            let mut bad = sent.clone();
            change(&mut bad);
            assert_eq!(Transfer::read(&bad), None, "{bad:?}");
        }
    }

    #[test]
    fn a_high_s_and_a_strange_recovery_id_are_refused() {
        let low = Signature::from_raw_array(&read_signature(VECTORS[0].2[1]).expect("a signature"));
        let low = low.expect("a signature");
        let order = "fffffffffffffffffffffffffffffffebaaedce6af48a03bbfd25e8cd0364141";
        let order = U256::from_str_radix(order, 16).expect("the order of the curve");
        let high = Signature::new(low.r(), order - low.s(), !low.v());
        assert_eq!(read_signature(&write_hex(&high.as_bytes())), Err(BadSignature::HighS));
        let mut strange = low.as_bytes();
        strange[64] = 29;
        for bad in ["", "0x", "0x00", &write_hex(&strange), &VECTORS[0].2[1][2..]] {
            assert_eq!(read_signature(bad), Err(BadSignature::Malformed), "{bad}");
        }
        let mut zero_based = low.as_bytes();
        zero_based[64] -= 27;
        assert_eq!(split(&zero_based), split(&low.as_bytes()));
    }

    #[test]
    fn calldata_names_its_order() {
        let data = order_calldata(address(PAYEE), 10_000, "order-1");
        assert_eq!(data.len(), 4 + 32 + 32 + 32);
        assert_eq!(hex::encode(&data[..4]), "a9059cbb");
        let call = read_transfer(&data).expect("a transfer");
        assert_eq!((call.to, call.value), (address(PAYEE), 10_000));
        assert_eq!(call.suffix, order_tag("order-1"));
        assert_eq!(read_transfer(&data[..68]).map(|call| call.suffix.len()), Some(0));
        assert_eq!(read_transfer(&data[..67]), None);
        assert_eq!(read_transfer(&[&[0x23, 0xb8, 0x72, 0xdd], &data[4..]].concat()), None);
        let mut dirty = data.clone();
        dirty[4] = 1;
        assert_eq!(read_transfer(&dirty), None);
    }

    proptest! {
        #[test]
        fn no_calldata_and_no_signature_panics(data in prop::collection::vec(any::<u8>(), 0..140), text in ".{0,140}") {
            let _ = read_transfer(&data);
            let _ = read_signature(&text);
            let _ = recover_text(&text, &write_hex(&data));
        }
    }
}
