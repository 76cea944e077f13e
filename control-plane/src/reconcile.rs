//! The books beside the chain: everything that moved to or from the treasury is booked once, and nothing else is.

use std::collections::BTreeMap;

use anyhow::Context as _;
use otonix_sdk::chain::{Log, usdc};
use otonix_sdk::money::MicroUsd;

use crate::config::Settings;
use crate::service::payments::{Payments, goods};
use crate::store::receipts::Receipt;
use crate::store::{Db, cursors, receipts};
use crate::worker::deposits::cursor_name;

/// What the comparison found.
#[derive(Debug, Default)]
pub struct Reconciled {
    /// What was booked, by its use: how many and how much.
    pub by_kind: BTreeMap<String, (u64, MicroUsd)>,
    /// Transfers that are on the chain and not due to be booked yet.
    pub waiting: (u64, MicroUsd),
    /// What is wrong, in words.
    pub differences: Vec<String>,
}

/// One transfer, as both sides know it.
type Key = (String, String, String, i64);

/// Compares; `None` when no chain is configured.
///
/// # Errors
/// When the database or the chain cannot be read.
pub async fn reconcile(settings: &Settings, db: &Db) -> anyhow::Result<Option<Reconciled>> {
    let Some(configured) = settings.payments.clone() else { return Ok(None) };
    let start_block = configured.start_block;
    let parts = Payments::new(configured, [0; 32])?;
    let chain = i64::try_from(parts.settings.chain_id).unwrap_or(i64::MAX);
    let name = cursor_name(&parts);
    let start = format!("start:{name}");
    let (cursor, first) = db
        .read(move |conn| {
            Box::pin(async move { Ok((cursors::read(conn, name).await?, cursors::read(conn, start).await?)) })
        })
        .await?;
    let booked = db.read(move |conn| Box::pin(async move { receipts::all(conn, chain).await })).await?;
    let head = parts.chain.head(std::time::Duration::ZERO).await.context("the chain cannot be asked")?;
    let first = start_block.or(first.and_then(|block| u64::try_from(block).ok())).unwrap_or(0);
    let treasury = Some(parts.settings.treasury);
    let mut logs = parts.chain.transfers(None, treasury, first..=head.number).await?;
    logs.extend(parts.chain.transfers(treasury, None, first..=head.number).await?);
    logs.sort_by_key(|log| (log.block_number, log.log_index));
    logs.dedup_by_key(|log| (log.block_number, log.log_index));
    Ok(Some(compare(&logs, &booked, cursor.unwrap_or(-1), first)))
}

fn compare(logs: &[Log], booked: &[Receipt], cursor: i64, first: u64) -> Reconciled {
    let mut found = Reconciled::default();
    let mut open: BTreeMap<Key, Vec<&Receipt>> = BTreeMap::new();
    for row in booked {
        let kind = if row.status == "reversed" { "reversed" } else { row.kind.as_str() };
        let sum = found.by_kind.entry(kind.to_owned()).or_default();
        *sum = (sum.0 + 1, sum.1.saturating_add(MicroUsd::from_micros(row.amount)));
        let key = (hex::encode(row.tx_hash), row.from.clone(), row.to.clone(), row.amount);
        open.entry(key).or_default().push(row);
    }
    for log in logs {
        let Some(moved) = usdc::read_transfer_log(log) else { continue };
        let amount = goods::micros(moved.value).unwrap_or(MicroUsd::from_micros(i64::MAX));
        let key =
            (hex::encode(moved.tx_hash.0), moved.from.to_string(), moved.to.to_string(), amount.micros());
        match open.get_mut(&key).and_then(Vec::pop) {
            Some(row) if row.status == "reversed" => found
                .differences
                .push(format!("{} USDC in {} were taken back, and are on the chain", amount, moved.tx_hash)),
            Some(_) => {}
            None if i64::try_from(moved.block_number).is_ok_and(|block| block <= cursor) => {
                found.differences.push(format!(
                    "{amount} USDC from {} to {} in {} are booked nowhere",
                    moved.from, moved.to, moved.tx_hash
                ));
            }
            None => found.waiting = (found.waiting.0 + 1, found.waiting.1.saturating_add(amount)),
        }
    }
    let left = open.into_values().flatten();
    let before = |row: &Receipt| u64::try_from(row.block_number).is_ok_and(|block| block < first);
    for row in left.filter(|row| row.status != "reversed" && !before(row)) {
        found.differences.push(format!(
            "{} USDC in 0x{} are booked as {} and are not on the chain",
            MicroUsd::from_micros(row.amount),
            hex::encode(row.tx_hash),
            row.kind
        ));
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;
    use otonix_sdk::chain::{EvmAddress, Hash};

    fn log(tx: u8, block: u64, value: u128) -> Log {
        let mut from = [0; 32];
        from[31] = 1;
        let mut to = [0; 32];
        to[31] = 2;
        let mut data = vec![0; 16];
        data.extend(value.to_be_bytes());
        Log {
            address: EvmAddress::from_bytes([9; 20]),
            topics: vec![usdc::TRANSFER_TOPIC, Hash(from), Hash(to)],
            data,
            block_number: block,
            block_hash: Hash([0; 32]),
            tx_hash: Hash([tx; 32]),
            log_index: u64::from(tx),
        }
    }

    fn row(tx: u8, amount: i64, status: &str) -> Receipt {
        let address = |last: u8| {
            let mut bytes = [0; 20];
            bytes[19] = last;
            EvmAddress::from_bytes(bytes).to_string()
        };
        Receipt {
            chain: 1,
            tx_hash: [tx; 32],
            log_index: 0,
            kind: "order".to_owned(),
            status: status.to_owned(),
            block_number: 5,
            block_hash: [0; 32],
            block_time: 0,
            from: address(1),
            to: address(2),
            amount,
            agent: uuid::Uuid::nil(),
            sale: uuid::Uuid::nil(),
            missing_since: None,
        }
    }

    #[test]
    fn each_transfer_is_booked_once_or_named() {
        let booked = [row(1, 10, "granted")];
        assert!(compare(&[log(1, 5, 10)], &booked, 9, 0).differences.is_empty());
        for (logs, booked, cursor, word) in [
            (vec![log(1, 5, 10), log(2, 6, 7)], vec![row(1, 10, "granted")], 9, "booked nowhere"),
            (vec![], vec![row(1, 10, "granted")], 9, "not on the chain"),
            (vec![log(1, 5, 11)], vec![row(1, 10, "granted")], 9, "not on the chain"),
            (vec![log(1, 5, 10)], vec![row(1, 10, "reversed")], 9, "taken back"),
        ] {
            let found = compare(&logs, &booked, cursor, 0);
            assert!(found.differences.iter().any(|text| text.contains(word)), "{word}: {found:?}");
        }
        let later = compare(&[log(2, 6, 7)], &[], 5, 0);
        assert_eq!((later.differences.len(), later.waiting.0), (0, 1));
        assert!(compare(&[], &[row(1, 10, "reversed")], 9, 0).differences.is_empty());
    }
}
