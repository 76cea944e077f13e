//! The questions that payments ask: where a transaction is, how deep a block, what became of a payer's nonce.

use std::time::Duration;

use otonix_sdk::chain::usdc::{self, TransferAuthorization};
use otonix_sdk::chain::{At, Block, ChainError, EvmAddress, Hash, Log, LogFilter, Receipt};
use tokio::time::Instant;

use super::{Chain, FRESH, Mined, SETTLE_GAS, Seen, Trouble};
use crate::treasury::Depth;

/// Where the chain knows no finality, a block so deep is final.
const DEEP: u64 = 2_000;
/// Blocks of one question for logs.
const LOG_CHUNK: u64 = 2_000;

impl Chain {
    /// Where a transaction is. A block that the chain has no more is no block.
    ///
    /// # Errors
    /// [`Trouble`].
    pub async fn seen(&self, hash: Hash) -> Result<Seen, Trouble> {
        let Some(tx) = self.rpc.transaction(hash).await? else { return Ok(Seen::Unknown) };
        match self.mined(hash).await? {
            Some(mined) => Ok(Seen::Mined(Box::new((tx, mined)))),
            None => Ok(Seen::Waiting),
        }
    }

    /// What became of a transaction, when it is in a block that the chain has now.
    ///
    /// # Errors
    /// [`Trouble`].
    pub async fn mined(&self, hash: Hash) -> Result<Option<Mined>, Trouble> {
        let Some(receipt) = self.rpc.receipt(hash).await? else { return Ok(None) };
        let Some(block) = self.block_of(&receipt).await? else { return Ok(None) };
        Ok(Some(Mined { receipt, block }))
    }

    async fn block_of(&self, receipt: &Receipt) -> Result<Option<Block>, Trouble> {
        let block = self.rpc.block(At::Number(receipt.block_number)).await?;
        let Some(block) = block.filter(|block| block.hash == receipt.block_hash) else { return Ok(None) };
        let mut state = self.state.lock();
        // A block with a payment in it may be newer than the head that was asked for last.
        if state.head.is_some_and(|(head, _)| head.number < block.number) {
            state.head = Some((block, Instant::now()));
        }
        Ok(Some(block))
    }

    /// Whether a block is as deep as is needed.
    ///
    /// # Errors
    /// [`Trouble`].
    pub async fn is_deep(&self, block: u64, depth: Depth) -> Result<bool, Trouble> {
        match depth {
            Depth::Blocks(1) => Ok(true),
            Depth::Blocks(blocks) => {
                let deep = |head: Block| head.number.saturating_add(1) >= block.saturating_add(blocks);
                let head = self.head(FRESH).await?;
                Ok(deep(head))
            }
            Depth::Finalized => Ok(self.finalized().await? >= block),
        }
    }

    /// The newest block that can never leave the chain; where the node knows none, one that is deep enough.
    ///
    /// # Errors
    /// [`Trouble`].
    pub async fn finalized(&self) -> Result<u64, Trouble> {
        match self.rpc.block(At::Finalized).await {
            Ok(Some(block)) => Ok(block.number),
            Ok(None) | Err(ChainError::Rpc { .. }) => Ok(self.head(FRESH).await?.number.saturating_sub(DEEP)),
            Err(error) => Err(error.into()),
        }
    }

    /// The newest block that is as deep below a head as is needed; `None` while there is none.
    ///
    /// # Errors
    /// [`Trouble`].
    pub async fn deep_block(&self, depth: Depth, head: Block) -> Result<Option<Block>, Trouble> {
        let number = match depth {
            Depth::Blocks(1) => return Ok(Some(head)),
            Depth::Blocks(blocks) => head.number.saturating_add(1).checked_sub(blocks),
            Depth::Finalized => Some(self.finalized().await?.min(head.number)),
        };
        match number {
            Some(number) => Ok(self.rpc.block(At::Number(number)).await?),
            None => Ok(None),
        }
    }

    /// Looks whether a signed payment would be carried out now; `Ok(Err)` with the node's words when not.
    ///
    /// # Errors
    /// [`Trouble`].
    pub async fn simulate(
        &self,
        authorization: &TransferAuthorization,
        signature: &[u8],
        by_contract: bool,
    ) -> Result<Result<(), String>, Trouble> {
        let data = settlement_call(authorization, signature, by_contract);
        match self.rpc.call(None, self.asset, &data, Some(SETTLE_GAS), At::Latest).await {
            Ok(_) => Ok(Ok(())),
            // Any other refusal says something of the node, nothing of the payment.
            Err(error) if error.is_revert() => Ok(Err(error.to_string())),
            Err(error) => Err(error.into()),
        }
    }

    /// Whether a payer's nonce was used (or cancelled) by now.
    ///
    /// # Errors
    /// [`Trouble`].
    pub async fn is_used(&self, from: EvmAddress, nonce: [u8; 32]) -> Result<bool, Trouble> {
        Ok(self.rpc.authorization_state(self.asset, from, nonce, At::Latest).await?)
    }

    /// Whether it was by a block: a node that does not know that block yet gives no answer.
    ///
    /// # Errors
    /// [`Trouble`].
    pub async fn is_used_by(&self, from: EvmAddress, nonce: [u8; 32], block: u64) -> Result<bool, Trouble> {
        Ok(self.rpc.authorization_state(self.asset, from, nonce, At::Number(block)).await?)
    }

    /// The transaction that used a payer's nonce, looked for from a block on.
    ///
    /// # Errors
    /// [`Trouble`].
    pub async fn use_of(
        &self,
        from: EvmAddress,
        nonce: [u8; 32],
        from_block: u64,
    ) -> Result<Option<Mined>, Trouble> {
        let filter = |blocks| usdc::authorization_used(self.asset, from, nonce, blocks);
        match self.newest_log(from_block, filter).await? {
            Some(log) => self.mined(log.tx_hash).await,
            None => Ok(None),
        }
    }

    /// The block in which a payer cancelled a nonce, looked for from a block on.
    ///
    /// # Errors
    /// [`Trouble`].
    pub async fn cancel_of(
        &self,
        from: EvmAddress,
        nonce: [u8; 32],
        from_block: u64,
    ) -> Result<Option<u64>, Trouble> {
        let filter = |blocks| usdc::authorization_cancelled(self.asset, from, nonce, blocks);
        Ok(self.newest_log(from_block, filter).await?.map(|log| log.block_number))
    }

    async fn newest_log(
        &self,
        from_block: u64,
        filter: impl Fn(std::ops::RangeInclusive<u64>) -> LogFilter,
    ) -> Result<Option<Log>, Trouble> {
        let head = self.head(Duration::ZERO).await?.number;
        let mut end = head;
        loop {
            let start = end.saturating_sub(LOG_CHUNK - 1).max(from_block.min(head));
            if let Some(log) = self.rpc.logs(&filter(start..=end)).await?.pop() {
                return Ok(Some(log));
            }
            if start <= from_block || start == 0 {
                return Ok(None);
            }
            end = start - 1;
        }
    }

    /// Transfers of the token from or to an account in some blocks.
    ///
    /// # Errors
    /// [`Trouble`].
    pub async fn transfers(
        &self,
        from: Option<EvmAddress>,
        to: Option<EvmAddress>,
        blocks: std::ops::RangeInclusive<u64>,
    ) -> Result<Vec<Log>, Trouble> {
        let (mut start, last) = blocks.into_inner();
        let mut found = Vec::new();
        while start <= last {
            let end = last.min(start.saturating_add(LOG_CHUNK - 1));
            found.extend(self.rpc.logs(&usdc::transfers(self.asset, from, to, start..=end)).await?);
            start = end + 1;
        }
        Ok(found)
    }

    /// Whether the signer is a contract.
    ///
    /// # Errors
    /// [`Trouble`].
    pub async fn is_contract(&self, address: EvmAddress) -> Result<bool, Trouble> {
        Ok(!self.rpc.code(address).await?.is_empty())
    }
}

/// The call that carries out a signed payment.
pub fn settlement_call(
    authorization: &TransferAuthorization,
    signature: &[u8],
    by_contract: bool,
) -> Vec<u8> {
    if by_contract {
        usdc::transfer_with_contract_signature(authorization, signature)
    } else {
        usdc::transfer_with_authorization(authorization, signature)
    }
}
