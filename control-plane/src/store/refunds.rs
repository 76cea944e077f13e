//! Money that arrived, bought nothing, and is owed back.

use chrono::{DateTime, Utc};
use otonix_sdk::api::payments::Refund;
use otonix_sdk::ids::{AgentId, RefundId};
use otonix_sdk::money::MicroUsd;
use sqlx::FromRow;
use uuid::Uuid;

use crate::store::writer::Tx;
use crate::store::{StoreError, on};

/// A refund as it is written.
#[derive(Debug, Clone)]
pub struct NewRefund {
    /// Why it is due.
    pub reason: String,
    /// Micro-USDC, positive.
    pub amount: i64,
    /// Who paid.
    pub payer: String,
    /// The chain's id.
    pub chain: i64,
    /// The payment.
    pub tx_hash: [u8; 32],
    /// The sale, or nil.
    pub sale: Uuid,
    /// Whom it was meant for, or nil.
    pub agent: Uuid,
    /// Whose agent that is, or nil.
    pub owner: Uuid,
}

#[derive(FromRow)]
pub(super) struct RefundRead {
    pub(super) id: Uuid,
    status: String,
    reason: String,
    amount: i64,
    payer: String,
    tx_hash: Vec<u8>,
    agent_id: Uuid,
    note: Option<String>,
    refund_tx: Option<String>,
    pub(super) created_at: DateTime<Utc>,
    resolved_at: Option<DateTime<Utc>>,
}

pub(super) const COLUMNS: &str =
    "id, status, reason, amount, payer, tx_hash, agent_id, note, refund_tx, created_at, resolved_at";

impl From<RefundRead> for Refund {
    fn from(row: RefundRead) -> Self {
        Self {
            id: RefundId::from(row.id),
            status: row.status,
            reason: row.reason,
            amount: MicroUsd::from_micros(row.amount),
            currency: "USDC".to_owned(),
            payer: row.payer,
            tx_hash: format!("0x{}", hex::encode(row.tx_hash)),
            agent_id: Some(row.agent_id).filter(|id| !id.is_nil()).map(AgentId::from),
            note: row.note,
            refund_tx_hash: row.refund_tx,
            created_at: row.created_at,
            resolved_at: row.resolved_at,
        }
    }
}

/// Notes a refund as due; gives back its id.
///
/// # Errors
/// [`StoreError`] when the database refuses or is away.
pub async fn insert(tx: &mut Tx, refund: &NewRefund) -> Result<Uuid, StoreError> {
    const SQL: &str = "INSERT INTO refunds (id, status, reason, amount, payer, chain, tx_hash, sale_id, agent_id, \
        owner_id, created_at) VALUES ($1, 'due', $2, $3, $4, $5, $6, $7, $8, $9, $10)";
    let at = tx.at;
    let id = otonix_sdk::clock::new_id();
    on!(&mut tx.conn, |c| sqlx::query(SQL)
        .bind(id)
        .bind(&refund.reason)
        .bind(refund.amount)
        .bind(&refund.payer)
        .bind(refund.chain)
        .bind(refund.tx_hash.to_vec())
        .bind(refund.sale)
        .bind(refund.agent)
        .bind(refund.owner)
        .bind(at)
        .execute(c)
        .await?
        .rows_affected());
    Ok(id)
}

/// Ends a refund that is due; `None` when there is none such, or it has ended.
///
/// # Errors
/// [`StoreError`] when the database refuses or is away.
pub async fn resolve(
    tx: &mut Tx,
    id: Uuid,
    status: &str,
    note: Option<&str>,
    refund_tx: Option<&str>,
) -> Result<Option<Refund>, StoreError> {
    const SQL: &str = "UPDATE refunds SET status = $2, note = $3, refund_tx = $4, resolved_at = $5 WHERE id = $1 \
        AND status = 'due' RETURNING id, status, reason, amount, payer, tx_hash, agent_id, note, refund_tx, \
        created_at, resolved_at";
    let at = tx.at;
    let row: Option<RefundRead> = on!(&mut tx.conn, |c| sqlx::query_as(SQL)
        .bind(id)
        .bind(status)
        .bind(note)
        .bind(refund_tx)
        .bind(at)
        .fetch_optional(c)
        .await?);
    Ok(row.map(Refund::from))
}

/// Whether there is such a refund, ended or not.
///
/// # Errors
/// [`StoreError`] when the database refuses or is away.
pub async fn exists(tx: &mut Tx, id: Uuid) -> Result<bool, StoreError> {
    const SQL: &str = "SELECT 1 FROM refunds WHERE id = $1";
    Ok(on!(&mut tx.conn, |c| sqlx::query(SQL).bind(id).fetch_all(c).await?.len()) == 1)
}

const GONE: &str = "the payment left the chain";

/// Ends what is still due of a sale whose payment left the chain; gives back how much that was.
///
/// # Errors
/// [`StoreError`] when the database refuses or is away.
pub async fn drop_of_sale(tx: &mut Tx, sale: Uuid) -> Result<i64, StoreError> {
    const SQL: &str = "UPDATE refunds SET status = 'dismissed', note = $3, resolved_at = $2 \
        WHERE sale_id = $1 AND status = 'due' RETURNING amount";
    let at = tx.at;
    let gone: Vec<i64> =
        on!(&mut tx.conn, |c| sqlx::query_scalar(SQL).bind(sale).bind(at).bind(GONE).fetch_all(c).await?);
    Ok(gone.into_iter().sum())
}

/// Owes again what [`drop_of_sale`] ended; gives back how much that is.
///
/// # Errors
/// [`StoreError`] when the database refuses or is away.
pub async fn restore_of_sale(tx: &mut Tx, sale: Uuid) -> Result<i64, StoreError> {
    const SQL: &str = "UPDATE refunds SET status = 'due', note = NULL, resolved_at = NULL \
        WHERE sale_id = $1 AND status = 'dismissed' AND note = $2 RETURNING amount";
    let again: Vec<i64> =
        on!(&mut tx.conn, |c| sqlx::query_scalar(SQL).bind(sale).bind(GONE).fetch_all(c).await?);
    Ok(again.into_iter().sum())
}
