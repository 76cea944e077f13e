//! The record of money: claims of its reporters, and the server's own rows.

use chrono::{DateTime, Utc};
use otonix_sdk::api::attached::Attached;
use otonix_sdk::api::records::Transaction;
use otonix_sdk::ids::{AgentId, TransactionId};
use otonix_sdk::money::MicroUsd;
use sqlx::FromRow;
use sqlx::types::Json;
use uuid::Uuid;

use crate::store::writer::Tx;
use crate::store::{StoreError, on};

#[derive(FromRow)]
pub(super) struct TransactionRead {
    pub(super) id: Uuid,
    #[sqlx(rename = "type")]
    kind: String,
    amount: i64,
    currency: String,
    description: Option<String>,
    status: String,
    from_address: Option<String>,
    to_address: Option<String>,
    tx_hash: Option<String>,
    metadata: Option<Json<Attached>>,
    agent_id: Option<Uuid>,
    pub(super) created_at: DateTime<Utc>,
}

pub(super) const COLUMNS: &str = "id, type, amount, currency, description, status, from_address, to_address, \
    tx_hash, metadata, agent_id, created_at";

impl From<TransactionRead> for Transaction {
    fn from(row: TransactionRead) -> Self {
        Self {
            id: TransactionId::from(row.id),
            kind: row.kind,
            amount: MicroUsd::from_micros(row.amount),
            currency: row.currency,
            description: row.description,
            status: row.status,
            from_address: row.from_address,
            to_address: row.to_address,
            tx_hash: row.tx_hash,
            metadata: row.metadata.map(|metadata| metadata.0),
            agent_id: row.agent_id.map(AgentId::from),
            created_at: row.created_at,
        }
    }
}

/// Who a row belongs to.
#[derive(Debug, Clone, Copy)]
pub struct Reporter {
    /// The nil UUID for nobody.
    pub owner: Uuid,
    /// Written by the server itself, beside a ledger transfer.
    pub by_server: bool,
}

macro_rules! insert_line {
    ($rest:literal) => {
        concat!(
            "INSERT INTO transactions (id, type, amount, currency, description, status, from_address, to_address, ",
            "tx_hash, metadata, agent_id, owner_id, by_server, created_at) ",
            "VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14)",
            $rest
        )
    };
}
pub(super) use insert_line;

/// The values of [`insert_line!`], in its order.
macro_rules! bound_line {
    ($sql:expr, $row:expr, $reporter:expr) => {
        sqlx::query($sql)
            .bind($row.id.uuid())
            .bind(&$row.kind)
            .bind($row.amount.micros())
            .bind(&$row.currency)
            .bind(&$row.description)
            .bind(&$row.status)
            .bind(&$row.from_address)
            .bind(&$row.to_address)
            .bind(&$row.tx_hash)
            .bind($row.metadata.as_ref().map(Json))
            .bind($row.agent_id.map(AgentId::uuid))
            .bind($reporter.owner)
            .bind($reporter.by_server)
            .bind($row.created_at)
    };
}
pub(super) use bound_line;

/// Inserts a row.
///
/// # Errors
/// [`StoreError::Taken`] when this reporter has named the hash before.
pub async fn insert(tx: &mut Tx, row: &Transaction, reporter: Reporter) -> Result<(), StoreError> {
    const SQL: &str = insert_line!("");
    on!(&mut tx.conn, |c| bound_line!(SQL, row, reporter).execute(c).await?.rows_affected());
    Ok(())
}
