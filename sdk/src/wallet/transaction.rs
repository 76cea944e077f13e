//! Transactions that a wallet signs (EIP-1559), each shape by its own method: a transfer of USDC, and the carrying
//! out of another's signed authorization.

use alloy::consensus::{SignableTransaction as _, TxEip1559};
use alloy::eips::eip2718::Encodable2718 as _;
use alloy::primitives::{Address, Bytes, TxKind, U256};
use alloy::signers::SignerSync as _;

use super::{EvmAddress, Wallet};
use crate::chain::Hash;
use crate::chain::usdc::{self, TransferAuthorization};

/// What a transaction may cost, and its place among those of its account.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Gas {
    /// The chain that it is for; it is valid on no other.
    pub chain_id: u64,
    /// The account's number of it: of several with one number at most one is ever carried out.
    pub nonce: u64,
    /// Units of gas at most.
    pub limit: u64,
    /// Wei of a unit at most, all in all.
    pub max_fee: u128,
    /// Wei of a unit for whoever makes the block.
    pub priority_fee: u128,
}

/// A signed transaction: the bytes that are sent, and the hash by which the chain knows it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Signed {
    /// As it is sent.
    pub raw: Vec<u8>,
    /// Its hash.
    pub hash: Hash,
}

impl Wallet {
    /// Signs a transfer of `value` base units of `asset`; with `order`, its calldata ends with that hash.
    pub fn sign_transfer(
        &self,
        gas: &Gas,
        asset: EvmAddress,
        to: EvmAddress,
        value: u128,
        order: Option<[u8; 32]>,
    ) -> Signed {
        self.sign_call(gas, asset, usdc::transfer(to, value, order))
    }

    /// Signs the carrying out of an authorization that its payer signed. It moves the payer's money, none of this
    /// wallet's but the gas. A contract's signature goes as bytes whatever its length.
    pub fn sign_settlement(
        &self,
        gas: &Gas,
        asset: EvmAddress,
        authorization: &TransferAuthorization,
        signature: &[u8],
        by_contract: bool,
    ) -> Signed {
        let call = if by_contract {
            usdc::transfer_with_contract_signature(authorization, signature)
        } else {
            usdc::transfer_with_authorization(authorization, signature)
        };
        self.sign_call(gas, asset, call)
    }

    fn sign_call(&self, gas: &Gas, to: EvmAddress, input: Vec<u8>) -> Signed {
        let tx = TxEip1559 {
            chain_id: gas.chain_id,
            nonce: gas.nonce,
            gas_limit: gas.limit,
            max_fee_per_gas: gas.max_fee,
            max_priority_fee_per_gas: gas.priority_fee.min(gas.max_fee),
            to: TxKind::Call(Address::new(to.bytes())),
            value: U256::ZERO,
            access_list: Default::default(),
            input: Bytes::from(input),
        };
        let signature = self
            .signer()
            .sign_hash_sync(&tx.signature_hash())
            .expect("a key in range signs every 32-byte hash");
        let signed = tx.into_signed(signature);
        Signed { raw: signed.encoded_2718(), hash: Hash(signed.hash().0) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use alloy::consensus::TxEnvelope;
    use alloy::eips::eip2718::Decodable2718 as _;

    const GAS: Gas =
        Gas { chain_id: 8453, nonce: 7, limit: 120_000, max_fee: 2_000_000_000, priority_fee: 1_000_000 };

    fn account(byte: u8) -> EvmAddress {
        EvmAddress::from_bytes([byte; 20])
    }

    #[test]
    fn a_signed_transfer_reads_back_as_what_was_asked_for() {
        let wallet = Wallet::generate();
        let signed = wallet.sign_transfer(&GAS, account(1), account(2), 1_500_000, Some([9; 32]));
        let read = TxEnvelope::decode_2718(&mut signed.raw.as_slice()).expect("decodes");
        let TxEnvelope::Eip1559(tx) = &read else { panic!("another kind: {read:?}") };
        assert_eq!(tx.hash().0, signed.hash.0);
        let signer = tx.signature().recover_address_from_prehash(&tx.signature_hash()).expect("a signer");
        assert_eq!(signer.into_array(), wallet.address().bytes());
        let tx = tx.tx();
        assert_eq!((tx.chain_id, tx.nonce, tx.gas_limit), (8453, 7, 120_000));
        assert_eq!((tx.max_fee_per_gas, tx.max_priority_fee_per_gas), (2_000_000_000, 1_000_000));
        assert_eq!(tx.value, U256::ZERO);
        assert_eq!(tx.to.to().map(|to| to.into_array()), Some([1; 20]));
        let call = usdc::read_transfer(&tx.input).expect("a transfer");
        assert_eq!((call.to, call.value, call.order), (account(2), 1_500_000, Some([9; 32])));
    }

    #[test]
    fn the_same_transaction_has_the_same_bytes() {
        let wallet = Wallet::generate();
        let sign = |nonce| wallet.sign_transfer(&Gas { nonce, ..GAS }, account(1), account(2), 5, None);
        assert_eq!(sign(1), sign(1));
        assert_ne!(sign(1).hash, sign(2).hash);
    }
}
