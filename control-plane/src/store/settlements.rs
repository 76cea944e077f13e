//! The queue of the key that settles: what it signed, by the account's numbers, before anything was sent.

use chrono::{DateTime, Utc};
use sqlx::FromRow;
use uuid::Uuid;

use crate::store::receipts::hash;
use crate::store::writer::Tx;
use crate::store::{Conn, StoreError, on};

/// A signed transaction of the settling key.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Settlement {
    /// The chain's id.
    pub chain: i64,
    /// The key's address.
    pub signer: String,
    /// The account's number of it.
    pub account_nonce: i64,
    /// 0 for the first; more when a dearer one took its place.
    pub attempt: i64,
    /// The payment it settles.
    pub payment: Uuid,
    /// Its hash.
    pub tx_hash: [u8; 32],
    /// As it is sent.
    pub raw: Vec<u8>,
    /// Wei of a unit of gas at most.
    pub max_fee: i64,
    /// Wei of a unit for whoever makes the block.
    pub priority_fee: i64,
    /// When it was signed.
    pub created_at: DateTime<Utc>,
}

#[derive(FromRow)]
struct SettlementRead {
    chain: i64,
    signer: String,
    account_nonce: i64,
    attempt: i64,
    payment_id: Uuid,
    tx_hash: Vec<u8>,
    raw: Vec<u8>,
    max_fee: i64,
    priority_fee: i64,
    created_at: DateTime<Utc>,
}

impl TryFrom<SettlementRead> for Settlement {
    type Error = StoreError;

    fn try_from(row: SettlementRead) -> Result<Self, StoreError> {
        Ok(Self {
            chain: row.chain,
            signer: row.signer,
            account_nonce: row.account_nonce,
            attempt: row.attempt,
            payment: row.payment_id,
            tx_hash: hash("settlements", "tx_hash", row.tx_hash)?,
            raw: row.raw,
            max_fee: row.max_fee,
            priority_fee: row.priority_fee,
            created_at: row.created_at,
        })
    }
}

/// Writes a signed transaction, before it is sent.
///
/// # Errors
/// [`StoreError::Taken`] when there is one with this number and attempt.
pub async fn insert(tx: &mut Tx, row: &Settlement) -> Result<(), StoreError> {
    const SQL: &str = "INSERT INTO settlements (chain, signer, account_nonce, attempt, payment_id, tx_hash, raw, \
        max_fee, priority_fee, created_at) VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10)";
    on!(&mut tx.conn, |c| sqlx::query(SQL)
        .bind(row.chain)
        .bind(&row.signer)
        .bind(row.account_nonce)
        .bind(row.attempt)
        .bind(row.payment)
        .bind(row.tx_hash.to_vec())
        .bind(&row.raw)
        .bind(row.max_fee)
        .bind(row.priority_fee)
        .bind(row.created_at)
        .execute(c)
        .await?
        .rows_affected());
    Ok(())
}

/// The highest number given out, if any; `None` when the lease is not held (any more). Nobody else can take the lease
/// before this transaction ends.
///
/// # Errors
/// [`StoreError`] when the database refuses or is away.
pub async fn last_nonce(
    tx: &mut Tx,
    (lease, holder, epoch): (&str, Uuid, i64),
    chain: i64,
    signer: &str,
) -> Result<Option<Option<i64>>, StoreError> {
    const PG: &str = "SELECT (SELECT MAX(account_nonce) FROM settlements WHERE chain = $4 AND signer = $5) \
        FROM leases WHERE name = $1 AND holder = $2 AND epoch = $3 FOR SHARE";
    const LITE: &str = "SELECT (SELECT MAX(account_nonce) FROM settlements WHERE chain = $4 AND signer = $5) \
        FROM leases WHERE name = $1 AND holder = $2 AND epoch = $3";
    let sql = if tx.conn.is_postgres() { PG } else { LITE };
    Ok(on!(&mut tx.conn, |c| sqlx::query_scalar(sql)
        .bind(lease)
        .bind(holder)
        .bind(epoch)
        .bind(chain)
        .bind(signer)
        .fetch_optional(c)
        .await?))
}

/// The first claim under way whose account number is beyond one.
///
/// # Errors
/// [`StoreError`] when the database refuses or is away.
pub async fn first_open_after(
    conn: &mut Conn,
    chain: i64,
    signer: String,
    nonce: i64,
) -> Result<Option<Uuid>, StoreError> {
    const SQL: &str = "SELECT s.payment_id FROM settlements s JOIN payments p ON p.id = s.payment_id \
        WHERE s.chain = $1 AND s.signer = $2 AND s.account_nonce > $3 AND p.status IN ('claimed', 'sent') \
        ORDER BY s.account_nonce LIMIT 1";
    Ok(on!(conn, |c| sqlx::query_scalar(SQL).bind(chain).bind(signer).bind(nonce).fetch_optional(c).await?))
}

/// Everything signed for a payment.
///
/// # Errors
/// [`StoreError`] when the database refuses or is away.
pub async fn of_payment(conn: &mut Conn, payment: Uuid) -> Result<Vec<Settlement>, StoreError> {
    const SQL: &str = "SELECT chain, signer, account_nonce, attempt, payment_id, tx_hash, raw, max_fee, \
        priority_fee, created_at FROM settlements WHERE payment_id = $1 ORDER BY account_nonce, attempt";
    let rows: Vec<SettlementRead> = on!(conn, |c| sqlx::query_as(SQL).bind(payment).fetch_all(c).await?);
    rows.into_iter().map(Settlement::try_from).collect()
}

/// The last that was signed with each account number, from one on, in order.
///
/// # Errors
/// [`StoreError`] when the database refuses or is away.
pub async fn from_nonce(
    conn: &mut Conn,
    chain: i64,
    signer: String,
    nonce: i64,
    limit: i64,
) -> Result<Vec<Settlement>, StoreError> {
    const SQL: &str = "SELECT chain, signer, account_nonce, attempt, payment_id, tx_hash, raw, max_fee, \
        priority_fee, created_at FROM settlements s WHERE chain = $1 AND signer = $2 AND account_nonce >= $3 \
        AND attempt = (SELECT MAX(l.attempt) FROM settlements l WHERE l.chain = s.chain AND l.signer = s.signer \
        AND l.account_nonce = s.account_nonce) ORDER BY account_nonce LIMIT $4";
    let rows: Vec<SettlementRead> = on!(conn, |c| sqlx::query_as(SQL)
        .bind(chain)
        .bind(signer)
        .bind(nonce)
        .bind(limit)
        .fetch_all(c)
        .await?);
    rows.into_iter().map(Settlement::try_from).collect()
}
