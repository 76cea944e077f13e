//! What moved on the chain, each transfer used once.

use chrono::{DateTime, Utc};
use sqlx::FromRow;
use uuid::Uuid;

use crate::store::writer::Tx;
use crate::store::{Conn, StoreError, on};

/// A transfer on the chain and what it was used for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Receipt {
    /// The chain's id.
    pub chain: i64,
    /// The transaction.
    pub tx_hash: [u8; 32],
    /// The log's place within its transaction.
    pub log_index: i64,
    /// order, exact, deposit, withdrawal, refund_due, unmatched.
    pub kind: String,
    /// granted, final, reversed.
    pub status: String,
    /// The block it was seen in.
    pub block_number: i64,
    /// That block's hash.
    pub block_hash: [u8; 32],
    /// That block's time, seconds since 1970.
    pub block_time: i64,
    /// Who paid.
    pub from: String,
    /// Who was paid.
    pub to: String,
    /// Micro-USDC.
    pub amount: i64,
    /// Whose account it went to, or nil.
    pub agent: Uuid,
    /// The sale that it paid, or nil.
    pub sale: Uuid,
    /// Since when it is not where it was seen.
    pub missing_since: Option<DateTime<Utc>>,
}

#[derive(FromRow)]
struct ReceiptRead {
    chain: i64,
    tx_hash: Vec<u8>,
    log_index: i64,
    kind: String,
    status: String,
    block_number: i64,
    block_hash: Vec<u8>,
    block_time: i64,
    from_address: String,
    to_address: String,
    amount: i64,
    agent_id: Uuid,
    sale_id: Uuid,
    missing_since: Option<DateTime<Utc>>,
}

/// A hash out of a column.
///
/// # Errors
/// [`StoreError::Corrupt`] when it has not 32 bytes.
pub(super) fn hash(
    table: &'static str,
    column: &'static str,
    bytes: Vec<u8>,
) -> Result<[u8; 32], StoreError> {
    bytes.try_into().map_err(|_| StoreError::Corrupt { table, column })
}

impl TryFrom<ReceiptRead> for Receipt {
    type Error = StoreError;

    fn try_from(row: ReceiptRead) -> Result<Self, StoreError> {
        Ok(Self {
            chain: row.chain,
            tx_hash: hash("receipts", "tx_hash", row.tx_hash)?,
            log_index: row.log_index,
            kind: row.kind,
            status: row.status,
            block_number: row.block_number,
            block_hash: hash("receipts", "block_hash", row.block_hash)?,
            block_time: row.block_time,
            from: row.from_address,
            to: row.to_address,
            amount: row.amount,
            agent: row.agent_id,
            sale: row.sale_id,
            missing_since: row.missing_since,
        })
    }
}

macro_rules! insert_receipt {
    ($before:literal, $after:literal) => {
        concat!(
            "INSERT INTO receipts (chain, tx_hash, log_index, kind, status, block_number, block_hash, block_time, ",
            "from_address, to_address, amount, agent_id, sale_id, created_at) ",
            $before,
            "$1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14",
            $after,
            " ON CONFLICT (chain, tx_hash, log_index) DO NOTHING"
        )
    };
}
pub(super) use insert_receipt;

/// The values of [`insert_receipt!`], in its order.
macro_rules! bound_receipt {
    ($query:expr, $row:expr, $at:expr) => {
        $query
            .bind($row.chain)
            .bind($row.tx_hash.to_vec())
            .bind($row.log_index)
            .bind(&$row.kind)
            .bind(&$row.status)
            .bind($row.block_number)
            .bind($row.block_hash.to_vec())
            .bind($row.block_time)
            .bind(&$row.from)
            .bind(&$row.to)
            .bind($row.amount)
            .bind($row.agent)
            .bind($row.sale)
            .bind($at)
    };
}
pub(super) use bound_receipt;

/// Takes a transfer for a use; `false` when it was used before.
///
/// # Errors
/// [`StoreError`] when the database refuses or is away.
pub async fn insert(tx: &mut Tx, row: &Receipt) -> Result<bool, StoreError> {
    const SQL: &str = insert_receipt!("VALUES (", ")");
    let at = tx.at;
    let done =
        on!(&mut tx.conn, |c| bound_receipt!(sqlx::query(SQL), row, at).execute(c).await?.rows_affected());
    Ok(done == 1)
}

/// Gives a transfer that was unmatched its use; `false` when it is not unmatched (any more).
///
/// # Errors
/// [`StoreError`] when the database refuses or is away.
pub async fn match_up(tx: &mut Tx, row: &Receipt) -> Result<bool, StoreError> {
    const SQL: &str = "UPDATE receipts SET kind = $4, agent_id = $5, sale_id = $6 WHERE chain = $1 AND tx_hash = $2 \
        AND log_index = $3 AND kind = 'unmatched' AND status <> 'reversed'";
    let done = on!(&mut tx.conn, |c| sqlx::query(SQL)
        .bind(row.chain)
        .bind(row.tx_hash.to_vec())
        .bind(row.log_index)
        .bind(&row.kind)
        .bind(row.agent)
        .bind(row.sale)
        .execute(c)
        .await?
        .rows_affected());
    Ok(done == 1)
}

/// What the transfers of a transaction were used for.
///
/// # Errors
/// [`StoreError`] when the database refuses or is away.
pub async fn of_transaction(
    conn: &mut Conn,
    chain: i64,
    tx_hash: [u8; 32],
) -> Result<Vec<Receipt>, StoreError> {
    const SQL: &str = "SELECT chain, tx_hash, log_index, kind, status, block_number, block_hash, block_time, \
        from_address, to_address, amount, agent_id, sale_id, missing_since FROM receipts \
        WHERE chain = $1 AND tx_hash = $2 ORDER BY log_index";
    let rows: Vec<ReceiptRead> =
        on!(conn, |c| sqlx::query_as(SQL).bind(chain).bind(tx_hash.to_vec()).fetch_all(c).await?);
    rows.into_iter().map(Receipt::try_from).collect()
}

/// The transfer that paid a sale.
///
/// # Errors
/// [`StoreError`] when the database refuses or is away.
pub async fn of_sale(conn: &mut Conn, sale: Uuid) -> Result<Option<Receipt>, StoreError> {
    const SQL: &str = "SELECT chain, tx_hash, log_index, kind, status, block_number, block_hash, block_time, \
        from_address, to_address, amount, agent_id, sale_id, missing_since FROM receipts WHERE sale_id = $1";
    let row: Option<ReceiptRead> = on!(conn, |c| sqlx::query_as(SQL).bind(sale).fetch_optional(c).await?);
    row.map(Receipt::try_from).transpose()
}

/// Every transfer that was booked.
///
/// # Errors
/// [`StoreError`] when the database refuses or is away.
pub async fn all(conn: &mut Conn, chain: i64) -> Result<Vec<Receipt>, StoreError> {
    const SQL: &str = "SELECT chain, tx_hash, log_index, kind, status, block_number, block_hash, block_time, \
        from_address, to_address, amount, agent_id, sale_id, missing_since FROM receipts WHERE chain = $1 \
        ORDER BY block_number";
    let rows: Vec<ReceiptRead> = on!(conn, |c| sqlx::query_as(SQL).bind(chain).fetch_all(c).await?);
    rows.into_iter().map(Receipt::try_from).collect()
}

/// Notes where a receipt stands: its block, its status, since when it is missing.
///
/// # Errors
/// [`StoreError`] when the database refuses or is away.
pub async fn note(tx: &mut Tx, row: &Receipt, was: &str) -> Result<bool, StoreError> {
    const SQL: &str = "UPDATE receipts SET status = $4, block_number = $5, block_hash = $6, block_time = $7, \
        missing_since = $8 WHERE chain = $1 AND tx_hash = $2 AND log_index = $3 AND status = $9";
    let done = on!(&mut tx.conn, |c| sqlx::query(SQL)
        .bind(row.chain)
        .bind(row.tx_hash.to_vec())
        .bind(row.log_index)
        .bind(&row.status)
        .bind(row.block_number)
        .bind(row.block_hash.to_vec())
        .bind(row.block_time)
        .bind(row.missing_since)
        .bind(was)
        .execute(c)
        .await?
        .rows_affected());
    Ok(done == 1)
}

/// Notes that a payment which is not where it was seen came by another transaction; `false` when it was noted before.
///
/// # Errors
/// [`StoreError`] when the database refuses or is away.
pub async fn rehome(tx: &mut Tx, was: &Receipt, now: &Receipt) -> Result<bool, StoreError> {
    const SQL: &str = "UPDATE receipts SET tx_hash = $5, log_index = $6, block_number = $7, block_hash = $8, \
        block_time = $9, missing_since = NULL WHERE chain = $1 AND tx_hash = $2 AND log_index = $3 AND status = $4";
    let done = on!(&mut tx.conn, |c| sqlx::query(SQL)
        .bind(was.chain)
        .bind(was.tx_hash.to_vec())
        .bind(was.log_index)
        .bind(&was.status)
        .bind(now.tx_hash.to_vec())
        .bind(now.log_index)
        .bind(now.block_number)
        .bind(now.block_hash.to_vec())
        .bind(now.block_time)
        .execute(c)
        .await?
        .rows_affected());
    Ok(done == 1)
}

/// Forgets an unmatched transfer, in the transaction that books it otherwise.
///
/// # Errors
/// [`StoreError`] when the database refuses or is away.
pub async fn unbook(tx: &mut Tx, row: &Receipt) -> Result<bool, StoreError> {
    const SQL: &str = "DELETE FROM receipts WHERE chain = $1 AND tx_hash = $2 AND log_index = $3 \
        AND kind = 'unmatched' AND status = $4";
    let done = on!(&mut tx.conn, |c| sqlx::query(SQL)
        .bind(row.chain)
        .bind(row.tx_hash.to_vec())
        .bind(row.log_index)
        .bind(&row.status)
        .execute(c)
        .await?
        .rows_affected());
    Ok(done == 1)
}

/// Notes another use of a transfer that was taken in this transaction.
///
/// # Errors
/// [`StoreError`] when the database refuses or is away.
pub async fn set_kind(tx: &mut Tx, row: &Receipt) -> Result<(), StoreError> {
    const SQL: &str = "UPDATE receipts SET kind = $4 WHERE chain = $1 AND tx_hash = $2 AND log_index = $3";
    on!(&mut tx.conn, |c| sqlx::query(SQL)
        .bind(row.chain)
        .bind(row.tx_hash.to_vec())
        .bind(row.log_index)
        .bind(&row.kind)
        .execute(c)
        .await?
        .rows_affected());
    Ok(())
}

/// Notes to whom the money of a sale went in the end, and what its use is then.
///
/// # Errors
/// [`StoreError`] when the database refuses or is away.
pub async fn reassign(
    tx: &mut Tx,
    sale: Uuid,
    kind: Option<&'static str>,
    agent: Uuid,
) -> Result<(), StoreError> {
    const SQL: &str = "UPDATE receipts SET kind = COALESCE($2, kind), agent_id = $3 WHERE sale_id = $1";
    on!(&mut tx.conn, |c| sqlx::query(SQL)
        .bind(sale)
        .bind(kind)
        .bind(agent)
        .execute(c)
        .await?
        .rows_affected());
    Ok(())
}

/// A block that has receipts which may still leave the chain.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Seen {
    /// Its height.
    pub number: i64,
    /// Its hash, as it was seen.
    pub hash: [u8; 32],
    /// Whether some of its receipts are missing or reversed.
    pub troubled: bool,
}

/// Blocks whose receipts may still leave the chain, newest first.
///
/// # Errors
/// [`StoreError`] when the database refuses or is away.
pub async fn open_blocks(conn: &mut Conn, chain: i64, limit: i64) -> Result<Vec<Seen>, StoreError> {
    const SQL: &str = "SELECT block_number, block_hash, CAST(MAX(CASE WHEN status = 'reversed' OR missing_since \
        IS NOT NULL THEN 1 ELSE 0 END) AS BIGINT) FROM receipts WHERE status <> 'final' AND chain = $1 \
        GROUP BY block_number, block_hash ORDER BY block_number DESC LIMIT $2";
    let rows: Vec<(i64, Vec<u8>, i64)> =
        on!(conn, |c| sqlx::query_as(SQL).bind(chain).bind(limit).fetch_all(c).await?);
    rows.into_iter()
        .map(|(number, bytes, troubled)| {
            Ok(Seen { number, hash: hash("receipts", "block_hash", bytes)?, troubled: troubled != 0 })
        })
        .collect()
}

/// The receipts of a block that may still leave the chain.
///
/// # Errors
/// [`StoreError`] when the database refuses or is away.
pub async fn in_block(conn: &mut Conn, chain: i64, block: &Seen) -> Result<Vec<Receipt>, StoreError> {
    const SQL: &str = "SELECT chain, tx_hash, log_index, kind, status, block_number, block_hash, block_time, \
        from_address, to_address, amount, agent_id, sale_id, missing_since FROM receipts \
        WHERE status <> 'final' AND chain = $1 AND block_number = $2 AND block_hash = $3";
    let rows: Vec<ReceiptRead> = on!(conn, |c| sqlx::query_as(SQL)
        .bind(chain)
        .bind(block.number)
        .bind(block.hash.to_vec())
        .fetch_all(c)
        .await?);
    rows.into_iter().map(Receipt::try_from).collect()
}

/// Notes that the receipts of blocks can leave the chain no more.
///
/// # Errors
/// [`StoreError`] when the database refuses or is away.
pub async fn close_blocks(tx: &mut Tx, chain: i64, blocks: &[Seen]) -> Result<(), StoreError> {
    const PG: &str = "UPDATE receipts SET status = 'final' FROM UNNEST($2::bigint[], $3::bytea[]) AS b (number, hash) \
        WHERE status = 'granted' AND missing_since IS NULL AND chain = $1 AND block_number = b.number \
        AND block_hash = b.hash";
    const LITE: &str = "UPDATE receipts SET status = 'final' WHERE status = 'granted' AND missing_since IS NULL \
        AND chain = $1 AND block_number = $2 AND block_hash = $3";
    match &mut tx.conn {
        Conn::Postgres(c) => {
            sqlx::query(PG)
                .bind(chain)
                .bind(blocks.iter().map(|block| block.number).collect::<Vec<_>>())
                .bind(blocks.iter().map(|block| block.hash.to_vec()).collect::<Vec<_>>())
                .execute(c)
                .await?;
        }
        Conn::Sqlite(c) => {
            for block in blocks {
                sqlx::query(LITE)
                    .bind(chain)
                    .bind(block.number)
                    .bind(block.hash.to_vec())
                    .execute(&mut *c)
                    .await?;
            }
        }
        Conn::SqlitePooled(_) | Conn::PostgresPooled(_) => {}
    }
    Ok(())
}
