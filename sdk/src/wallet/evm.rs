//! The key itself, addresses, and signatures over texts (EIP-191). The only file of the wallet that knows alloy.

use std::fmt;
use std::str::FromStr;

use alloy::primitives::{Address, B256};
use alloy::signers::local::PrivateKeySigner;
use alloy::signers::{Signature, SignerSync as _};
use chrono::{DateTime, Utc};
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use zeroize::{Zeroize as _, Zeroizing};

use crate::api::agents::WalletProof;
use crate::limits::WALLET_PROOF_MAX_AGE_SECS;
use crate::x402::eip3009::{Domain, Transfer};
use crate::x402::payload::order_message;

/// How far in the future a proof may be signed, for clocks that differ, seconds.
const MAX_FUTURE_SECS: i64 = 60;
const SIGNATURE_BYTES: usize = 65;

/// The text is not an address.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum BadAddress {
    /// Not `0x` and 40 hex digits.
    #[error("must be 0x and 40 hex digits")]
    Malformed,
    /// Mixed case that is not its EIP-55 checksum: most likely a typing error.
    #[error("has a wrong checksum (EIP-55)")]
    Checksum,
}

/// The text is not a private key.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("not a private key: 32 bytes in hex, in the range of the curve")]
pub struct BadKey;

/// Why a wallet proof does not hold.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum BadProof {
    /// The address itself is none.
    #[error("the address {0}")]
    Address(#[from] BadAddress),
    /// Not `0x` and 65 bytes in hex with a recovery id of 27 or 28.
    #[error("the signature must be 0x and 65 bytes in hex")]
    Malformed,
    /// The other of the two forms that every signature has; refused so that each proof has one text.
    #[error("the signature must have a low s")]
    HighS,
    /// Signed too long ago.
    #[error("the proof is older than {WALLET_PROOF_MAX_AGE_SECS} seconds")]
    Expired,
    /// Signed later than now.
    #[error("the proof is from the future")]
    Future,
    /// Signed by another wallet, or over another text.
    #[error("the signature is not by this wallet over this name and address of the service")]
    OtherSigner,
}

/// An EVM address; printed and sent with its EIP-55 checksum.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct EvmAddress(Address);

impl EvmAddress {
    /// The address of 20 bytes.
    pub const fn from_bytes(bytes: [u8; 20]) -> Self {
        Self(Address::new(bytes))
    }

    /// The 20 bytes.
    pub fn bytes(&self) -> [u8; 20] {
        self.0.into_array()
    }
}

impl fmt::Display for EvmAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0.to_checksum(None))
    }
}

impl fmt::Debug for EvmAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl FromStr for EvmAddress {
    type Err = BadAddress;

    fn from_str(text: &str) -> Result<Self, BadAddress> {
        parse_address(text)
    }
}

impl Serialize for EvmAddress {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for EvmAddress {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(serde::de::Error::custom)
    }
}

/// Reads an address in lower, upper or checksummed case.
///
/// # Errors
/// [`BadAddress`] when it is none, or is written in mixed case that is not its checksum.
pub fn parse_address(text: &str) -> Result<EvmAddress, BadAddress> {
    let digits = text.strip_prefix("0x").or_else(|| text.strip_prefix("0X")).ok_or(BadAddress::Malformed)?;
    let mut bytes = [0; 20];
    hex::decode_to_slice(digits, &mut bytes).map_err(|_| BadAddress::Malformed)?;
    let address = EvmAddress(Address::from(bytes));
    let has = |is: fn(&u8) -> bool| digits.as_bytes().iter().any(is);
    let mixed = has(u8::is_ascii_lowercase) && has(u8::is_ascii_uppercase);
    if mixed && address.to_string().get(2..) != Some(digits) {
        return Err(BadAddress::Checksum);
    }
    Ok(address)
}

/// A private key and its address. The key is wiped when dropped, never printed, never serialised.
pub struct Wallet {
    signer: PrivateKeySigner,
}

impl Wallet {
    /// A wallet with a new random key.
    pub fn generate() -> Self {
        Self { signer: PrivateKeySigner::random() }
    }

    /// A wallet of a key in hex, with or without `0x`.
    ///
    /// # Errors
    /// [`BadKey`] when it is none.
    pub fn from_hex(key: &str) -> Result<Self, BadKey> {
        let key = key.trim();
        let mut bytes = Zeroizing::new([0; 32]);
        hex::decode_to_slice(key.strip_prefix("0x").unwrap_or(key), bytes.as_mut()).map_err(|_| BadKey)?;
        Self::from_bytes(&bytes)
    }

    /// The key in hex. Only for handing a wallet over to whom it belongs: a registration without an address.
    pub fn private_key_hex(&self) -> Zeroizing<String> {
        let mut text = Zeroizing::new(String::with_capacity(66));
        text.push_str("0x");
        let digits = Zeroizing::new(hex::encode(*self.key_bytes()));
        text.push_str(&digits);
        text
    }

    /// The address.
    pub const fn address(&self) -> EvmAddress {
        EvmAddress(self.signer.address())
    }

    /// Signs that this wallet belongs to an agent's name at a control plane.
    pub fn wallet_proof(&self, name: &str, public_url: &str, unix_time: i64) -> WalletProof {
        let address = self.address().to_string();
        let text = WalletProof::message(&address, name, trimmed(public_url), unix_time);
        let signature =
            self.signer.sign_message_sync(text.as_bytes()).expect("a key in range signs every 32-byte hash");
        WalletProof { signature: format!("0x{}", hex::encode(signature.as_bytes())), unix_time }
    }

    /// Signs a payment: the transfer of exactly this amount of this token to this payee.
    pub fn sign_authorization(&self, domain: &Domain, transfer: &Transfer) -> [u8; SIGNATURE_BYTES] {
        let digest = B256::from(transfer.digest(domain));
        self.signer.sign_hash_sync(&digest).expect("a key in range signs every 32-byte hash").as_bytes()
    }

    /// Signs that this wallet's transfer pays an order.
    pub fn sign_order_proof(&self, order_id: &str, tx_hash: &str, chain_id: u64) -> String {
        let text = order_message(order_id, tx_hash, chain_id);
        let signature =
            self.signer.sign_message_sync(text.as_bytes()).expect("a key in range signs every 32-byte hash");
        format!("0x{}", hex::encode(signature.as_bytes()))
    }

    pub(super) const fn signer(&self) -> &PrivateKeySigner {
        &self.signer
    }

    pub(super) fn from_bytes(key: &[u8; 32]) -> Result<Self, BadKey> {
        let mut scalar = B256::from(*key);
        let signer = PrivateKeySigner::from_bytes(&scalar).map_err(|_| BadKey);
        scalar.0.zeroize();
        signer.map(|signer| Self { signer })
    }

    pub(super) fn key_bytes(&self) -> Zeroizing<[u8; 32]> {
        let mut scalar = self.signer.to_bytes();
        let bytes = Zeroizing::new(scalar.0);
        scalar.0.zeroize();
        bytes
    }
}

impl fmt::Debug for Wallet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Wallet").field("address", &self.address()).finish_non_exhaustive()
    }
}

/// A slash at the end of the service's address is no part of what is signed.
fn trimmed(public_url: &str) -> &str {
    public_url.trim_end_matches('/')
}

/// Checks that the holder of `address` signed for `name` at `public_url` within the last ten minutes.
/// The signed text may spell the address as sent or with its checksum.
///
/// # Errors
/// [`BadProof`] saying what does not hold.
pub fn verify_wallet_proof(
    address: &str,
    name: &str,
    public_url: &str,
    proof: &WalletProof,
    now: DateTime<Utc>,
) -> Result<(), BadProof> {
    let wallet = parse_address(address)?;
    let age = now.timestamp().saturating_sub(proof.unix_time);
    if age > WALLET_PROOF_MAX_AGE_SECS {
        return Err(BadProof::Expired);
    }
    if age < -MAX_FUTURE_SECS {
        return Err(BadProof::Future);
    }
    let signature = read_signature(&proof.signature)?;
    let signed = |spelled: &str| {
        let text = WalletProof::message(spelled, name, trimmed(public_url), proof.unix_time);
        signature.recover_address_from_msg(text.as_bytes()).is_ok_and(|signer| signer == wallet.0)
    };
    let checksummed = wallet.to_string();
    if signed(&checksummed) || (address != checksummed && signed(address)) {
        Ok(())
    } else {
        Err(BadProof::OtherSigner)
    }
}

fn read_signature(text: &str) -> Result<Signature, BadProof> {
    let digits = text.strip_prefix("0x").ok_or(BadProof::Malformed)?;
    let mut bytes = [0; SIGNATURE_BYTES];
    hex::decode_to_slice(digits, &mut bytes).map_err(|_| BadProof::Malformed)?;
    // 0 and 1 are what hardware wallets write for 27 and 28.
    if !matches!(bytes.last(), Some(0 | 1 | 27 | 28)) {
        return Err(BadProof::Malformed);
    }
    let signature = Signature::from_raw_array(&bytes).map_err(|_| BadProof::Malformed)?;
    if signature.normalize_s().is_some() {
        return Err(BadProof::HighS);
    }
    Ok(signature)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The first account of the development mnemonic that every Ethereum tool ships.
    const KEY: &str = "0xac0974bec39a17e36ba4a6b4d238ff944bacb478cbed5efcae784d7bf4f2ff80";
    const ADDRESS: &str = "0xf39Fd6e51aad88F6F4ce6aB8827279cffFb92266";
    const URL: &str = "https://app.example";

    fn wallet() -> Wallet {
        Wallet::from_hex(KEY).expect("a well-known key")
    }

    fn at(seconds: i64) -> DateTime<Utc> {
        DateTime::from_timestamp(seconds, 0).expect("in range")
    }

    #[test]
    fn a_known_key_has_its_known_address() {
        assert_eq!(wallet().address().to_string(), ADDRESS);
        assert_eq!(wallet().private_key_hex().as_str(), KEY);
        assert!(Wallet::from_hex(KEY.trim_start_matches("0x")).is_ok());
        for bad in [
            "",
            "0x",
            "0x12",
            &KEY[..64],
            &format!("{KEY}00"),
            &format!("0x{}", "00".repeat(32)),
            &format!("0x{}", "ff".repeat(32)),
        ] {
            assert!(Wallet::from_hex(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn a_new_wallet_is_unlike_the_last_and_shows_no_key() {
        let (one, other) = (Wallet::generate(), Wallet::generate());
        assert_ne!(one.address(), other.address());
        let shown = format!("{one:?}").to_lowercase();
        let key = one.private_key_hex();
        assert!(!shown.contains(&key[2..]), "{shown}");
        assert!(shown.contains(&one.address().to_string().to_lowercase()));
    }

    #[test]
    fn an_address_is_read_in_any_case_but_a_wrong_checksum() {
        let upper = format!("0x{}", ADDRESS[2..].to_uppercase());
        for text in [ADDRESS, &ADDRESS.to_lowercase(), &upper, &upper.replace("0x", "0X")] {
            assert_eq!(parse_address(text).map(|a| a.to_string()), Ok(ADDRESS.to_owned()), "{text}");
        }
        assert_eq!(parse_address(&ADDRESS.replace('F', "f")), Err(BadAddress::Checksum));
        for text in [
            "",
            "0x",
            &ADDRESS[2..],
            &ADDRESS[..41],
            &format!("{ADDRESS}0"),
            &ADDRESS.replace('9', "g"),
            " 0x",
        ] {
            assert_eq!(parse_address(text), Err(BadAddress::Malformed), "{text}");
        }
    }

    #[test]
    fn an_address_is_json_text() {
        let address = parse_address(ADDRESS).expect("an address");
        let json = serde_json::to_string(&address).expect("text");
        assert_eq!(json, format!("\"{ADDRESS}\""));
        assert_eq!(serde_json::from_str::<EvmAddress>(&json).ok(), Some(address));
    }

    #[test]
    fn a_proof_holds_for_its_own_text_and_time_only() {
        let proof = wallet().wallet_proof("alice", URL, 1_000_000);
        let verify = |address: &str, name: &str, url: &str, now| {
            verify_wallet_proof(address, name, url, &proof, at(now))
        };
        let lower = ADDRESS.to_lowercase();
        for now in [1_000_000, 1_000_600, 999_940] {
            assert_eq!(verify(ADDRESS, "alice", URL, now), Ok(()), "{now}");
            assert_eq!(verify(&lower, "alice", "https://app.example/", now), Ok(()), "{now}");
        }
        assert_eq!(verify(ADDRESS, "alice", URL, 1_000_601), Err(BadProof::Expired));
        assert_eq!(verify(ADDRESS, "alice", URL, 999_939), Err(BadProof::Future));
        assert_eq!(verify(ADDRESS, "bob", URL, 1_000_000), Err(BadProof::OtherSigner));
        assert_eq!(verify(ADDRESS, "alice", "https://other.example", 1_000_000), Err(BadProof::OtherSigner));
        let other = Wallet::generate().address().to_string();
        assert_eq!(verify(&other, "alice", URL, 1_000_000), Err(BadProof::OtherSigner));
        assert_eq!(verify("0x", "alice", URL, 1_000_000), Err(BadProof::Address(BadAddress::Malformed)));
        let moved = WalletProof { unix_time: 1_000_001, ..proof.clone() };
        assert_eq!(
            verify_wallet_proof(ADDRESS, "alice", URL, &moved, at(1_000_000)),
            Err(BadProof::OtherSigner)
        );
    }

    #[test]
    fn a_text_signed_over_the_address_in_lower_case_is_taken() {
        let lower = ADDRESS.to_lowercase();
        let text = WalletProof::message(&lower, "alice", URL, 5);
        let signature = wallet().signer.sign_message_sync(text.as_bytes()).expect("signs");
        let proof =
            WalletProof { signature: format!("0x{}", hex::encode(signature.as_bytes())), unix_time: 5 };
        assert_eq!(verify_wallet_proof(&lower, "alice", URL, &proof, at(5)), Ok(()));
    }

    #[test]
    fn only_the_low_form_of_a_signature_is_taken() {
        let proof = wallet().wallet_proof("alice", URL, 5);
        let low = read_signature(&proof.signature).expect("our own signature");
        let order = alloy::primitives::U256::from_str_radix(
            "fffffffffffffffffffffffffffffffebaaedce6af48a03bbfd25e8cd0364141",
            16,
        )
        .expect("the order of the curve");
        let high = Signature::new(low.r(), order - low.s(), !low.v());
        let with = |signature: String| {
            verify_wallet_proof(ADDRESS, "alice", URL, &WalletProof { signature, unix_time: 5 }, at(5))
        };
        assert_eq!(with(format!("0x{}", hex::encode(high.as_bytes()))), Err(BadProof::HighS));
        let zero_based = format!("0x{}", hex::encode(low.as_rsy()));
        assert_eq!(with(zero_based.clone()), Ok(()));
        for bad in ["", "0x", &zero_based[2..], &zero_based[..130], &format!("{}25", &zero_based[..130])] {
            assert_eq!(with(bad.to_owned()), Err(BadProof::Malformed), "{bad}");
        }
    }
}
