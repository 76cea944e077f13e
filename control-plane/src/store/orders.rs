//! Sales that were paid, and the answers that repeats of their payments get.

use chrono::{DateTime, Utc};
use otonix_sdk::api::payments::Order;
use otonix_sdk::api::records::Transaction;
use otonix_sdk::ids::{AgentId, SaleId};
use otonix_sdk::money::MicroUsd;
use serde_json::Value;
use sqlx::FromRow;
use sqlx::types::Json;
use uuid::Uuid;

use crate::store::receipts::hash;
use crate::store::transactions::{self, Reporter};
use crate::store::writer::Tx;
use crate::store::{Conn, StoreError, on};

/// A sale as it is written.
#[derive(Debug, Clone)]
pub struct NewSale {
    /// The sale.
    pub id: Uuid,
    /// SHA-256 of the order's id.
    pub order_hash: [u8; 32],
    /// The order's id.
    pub order_id: String,
    /// `exact` or `otonix-order`.
    pub scheme: &'static str,
    /// Method and path.
    pub resource: String,
    /// What the order was for.
    pub binding: [u8; 32],
    /// What was sold.
    pub goods: Value,
    /// pending, delivered, credited or refund_due.
    pub status: &'static str,
    /// Micro-USDC.
    pub price: i64,
    /// Micro-USDC that arrived.
    pub amount: i64,
    /// The chain's id.
    pub chain: i64,
    /// Who paid.
    pub payer: String,
    /// Who was paid.
    pub pay_to: String,
    /// The transaction.
    pub tx_hash: [u8; 32],
    /// Whom it is for, or nil.
    pub agent: Uuid,
    /// Whose agent that is, or nil.
    pub owner: Uuid,
    /// HTTP status of the answer; 0 while pending.
    pub answer_status: u16,
    /// The answer, JSON; empty while pending.
    pub answer: String,
}

/// A sale and its answer, as a repeat needs it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Sold {
    /// The sale.
    pub id: Uuid,
    /// The order's id.
    pub order_id: String,
    /// What the order was for.
    pub binding: [u8; 32],
    /// The transaction that paid it.
    pub tx_hash: [u8; 32],
    /// Who paid.
    pub payer: String,
    /// HTTP status of the answer; 0 while pending.
    pub status: u16,
    /// The answer, JSON; empty while pending.
    pub answer: String,
}

#[derive(FromRow)]
struct SoldRead {
    id: Uuid,
    order_id: String,
    binding: Vec<u8>,
    tx_hash: Vec<u8>,
    payer: String,
    answer_status: i64,
    answer: String,
}

/// The values of an order's row, in the order of its columns below.
macro_rules! bound {
    ($query:expr, $sale:expr, $at:expr) => {
        $query
            .bind($sale.id)
            .bind($sale.order_hash.to_vec())
            .bind(&$sale.order_id)
            .bind($sale.scheme)
            .bind(&$sale.resource)
            .bind($sale.binding.to_vec())
            .bind(Json(&$sale.goods))
            .bind($sale.status)
            .bind($sale.price)
            .bind($sale.amount)
            .bind($sale.chain)
            .bind(&$sale.payer)
            .bind(&$sale.pay_to)
            .bind($sale.tx_hash.to_vec())
            .bind($sale.agent)
            .bind($sale.owner)
            .bind(i64::from($sale.answer_status))
            .bind(&$sale.answer)
            .bind($at)
    };
}

/// Writes a sale, and the line of money that people read; `false` when its order was paid before, and then the
/// transaction must not be kept.
///
/// # Errors
/// [`StoreError`] when the database refuses or is away.
pub async fn insert(
    tx: &mut Tx,
    sale: &NewSale,
    line: Option<(Transaction, Reporter)>,
) -> Result<bool, StoreError> {
    const SQL: &str = "INSERT INTO orders (id, order_hash, order_id, scheme, resource, binding, goods, status, price, \
        amount, chain, payer, pay_to, tx_hash, agent_id, owner_id, answer_status, answer, created_at) \
        VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14, $15, $16, $17, $18, $19) \
        ON CONFLICT (order_hash) DO NOTHING";
    // One way to the database instead of two: somebody waits.
    const WITH_LINE: &str = concat!(
        "WITH line AS (",
        transactions::insert_line!(""),
        ") INSERT INTO orders (id, order_hash, order_id, scheme, resource, binding, goods, status, price, ",
        "amount, chain, payer, pay_to, tx_hash, agent_id, owner_id, answer_status, answer, created_at) ",
        "VALUES ($15, $16, $17, $18, $19, $20, $21, $22, $23, $24, $25, $26, $27, $28, $29, $30, $31, $32, $33) ",
        "ON CONFLICT (order_hash) DO NOTHING"
    );
    let at = tx.at;
    if let (Conn::Postgres(c), Some((line, reporter))) = (&mut tx.conn, &line) {
        let query = transactions::bound_line!(WITH_LINE, line, reporter);
        return Ok(bound!(query, sale, at).execute(c).await?.rows_affected() == 1);
    }
    let done = on!(&mut tx.conn, |c| bound!(sqlx::query(SQL), sale, at).execute(c).await?.rows_affected());
    if done == 1
        && let Some((line, reporter)) = line
    {
        transactions::insert(tx, &line, reporter).await?;
    }
    Ok(done == 1)
}

/// The sale of an order.
///
/// # Errors
/// [`StoreError`] when the database refuses or is away.
pub async fn sold(conn: &mut Conn, order_hash: [u8; 32]) -> Result<Option<Sold>, StoreError> {
    const SQL: &str = "SELECT id, order_id, binding, tx_hash, payer, answer_status, answer FROM orders \
        WHERE order_hash = $1";
    let row: Option<SoldRead> =
        on!(conn, |c| sqlx::query_as(SQL).bind(order_hash.to_vec()).fetch_optional(c).await?);
    row.map(Sold::try_from).transpose()
}

/// A sale by its own id.
///
/// # Errors
/// [`StoreError`] when the database refuses or is away.
pub async fn sold_by_id(conn: &mut Conn, id: Uuid) -> Result<Option<Sold>, StoreError> {
    const SQL: &str = "SELECT id, order_id, binding, tx_hash, payer, answer_status, answer FROM orders \
        WHERE id = $1";
    let row: Option<SoldRead> = on!(conn, |c| sqlx::query_as(SQL).bind(id).fetch_optional(c).await?);
    row.map(Sold::try_from).transpose()
}

impl TryFrom<SoldRead> for Sold {
    type Error = StoreError;

    fn try_from(row: SoldRead) -> Result<Self, StoreError> {
        Ok(Self {
            id: row.id,
            order_id: row.order_id,
            binding: hash("orders", "binding", row.binding)?,
            tx_hash: hash("orders", "tx_hash", row.tx_hash)?,
            payer: row.payer,
            status: u16::try_from(row.answer_status)
                .map_err(|_| StoreError::Corrupt { table: "orders", column: "answer_status" })?,
            answer: row.answer,
        })
    }
}

/// Ends a sale that waits for its goods: what became of it, and the answer for good. `false` when it does not wait.
///
/// # Errors
/// [`StoreError`] when the database refuses or is away.
pub async fn finish(
    tx: &mut Tx,
    id: Uuid,
    status: &'static str,
    answer_status: u16,
    answer: &str,
) -> Result<bool, StoreError> {
    // One that was taken back meanwhile stays so; its answer is kept all the same.
    const SQL: &str = "UPDATE orders SET status = CASE WHEN status = 'reversed' THEN status ELSE $2 END, \
        answer_status = $3, answer = $4 WHERE id = $1";
    let done = on!(&mut tx.conn, |c| sqlx::query(SQL)
        .bind(id)
        .bind(status)
        .bind(i64::from(answer_status))
        .bind(answer)
        .execute(c)
        .await?
        .rows_affected());
    Ok(done == 1)
}

/// A sale, whole.
///
/// # Errors
/// [`StoreError`] when the database refuses or is away.
pub async fn order(conn: &mut Conn, id: Uuid) -> Result<Option<Order>, StoreError> {
    const SQL: &str = "SELECT id, order_id, status, scheme, resource, price, amount, chain, payer, pay_to, tx_hash, \
        agent_id, created_at FROM orders WHERE id = $1";
    let row: Option<OrderRead> = on!(conn, |c| sqlx::query_as(SQL).bind(id).fetch_optional(c).await?);
    Ok(row.map(Order::from))
}

/// Notes what became of a sale.
///
/// # Errors
/// [`StoreError`] when the database refuses or is away.
pub async fn mark(tx: &mut Tx, id: Uuid, status: &'static str) -> Result<(), StoreError> {
    const SQL: &str = "UPDATE orders SET status = $2 WHERE id = $1";
    on!(&mut tx.conn, |c| sqlx::query(SQL).bind(id).bind(status).execute(c).await?.rows_affected());
    Ok(())
}

/// Notes by which transaction a sale is paid now; refunds of it name that one too.
///
/// # Errors
/// [`StoreError`] when the database refuses or is away.
pub async fn set_transaction(tx: &mut Tx, id: Uuid, tx_hash: [u8; 32]) -> Result<(), StoreError> {
    for sql in
        ["UPDATE orders SET tx_hash = $2 WHERE id = $1", "UPDATE refunds SET tx_hash = $2 WHERE sale_id = $1"]
    {
        let hash = tx_hash.to_vec();
        on!(&mut tx.conn, |c| sqlx::query(sql).bind(id).bind(hash).execute(c).await?.rows_affected());
    }
    Ok(())
}

#[derive(FromRow)]
pub(super) struct OrderRead {
    pub(super) id: Uuid,
    order_id: String,
    status: String,
    scheme: String,
    resource: String,
    price: i64,
    amount: i64,
    chain: i64,
    payer: String,
    pay_to: String,
    tx_hash: Vec<u8>,
    agent_id: Uuid,
    pub(super) created_at: DateTime<Utc>,
}

pub(super) const COLUMNS: &str = "id, order_id, status, scheme, resource, price, amount, chain, payer, pay_to, \
    tx_hash, agent_id, created_at";

impl From<OrderRead> for Order {
    fn from(row: OrderRead) -> Self {
        Self {
            id: SaleId::from(row.id),
            order_id: row.order_id,
            status: row.status,
            scheme: row.scheme,
            resource: row.resource,
            price: MicroUsd::from_micros(row.price),
            amount: MicroUsd::from_micros(row.amount),
            currency: "USDC".to_owned(),
            network: format!("eip155:{}", row.chain),
            payer: row.payer,
            pay_to: row.pay_to,
            tx_hash: format!("0x{}", hex::encode(row.tx_hash)),
            agent_id: Some(row.agent_id).filter(|id| !id.is_nil()).map(AgentId::from),
            settled_at: row.created_at,
            created_at: row.created_at,
        }
    }
}

/// Who paid a sale, and how.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Payer {
    /// The sale.
    pub sale: Uuid,
    /// What has become of it.
    pub status: String,
    /// Who paid.
    pub address: String,
    /// The chain's id.
    pub chain: i64,
    /// The transaction.
    pub tx_hash: [u8; 32],
    /// Micro-USDC that arrived.
    pub amount: i64,
    /// Whom it is for, or nil.
    pub agent: Uuid,
    /// Whose agent that is, or nil.
    pub owner: Uuid,
    /// The answer's status; 0 while pending.
    pub answer_status: i64,
}

#[derive(FromRow)]
struct PayerRead {
    id: Uuid,
    status: String,
    payer: String,
    chain: i64,
    tx_hash: Vec<u8>,
    amount: i64,
    agent_id: Uuid,
    owner_id: Uuid,
    answer_status: i64,
}

/// Who paid a sale.
///
/// # Errors
/// [`StoreError`] when the database refuses or is away.
pub async fn payer(conn: &mut Conn, id: Uuid) -> Result<Option<Payer>, StoreError> {
    const SQL: &str = "SELECT id, status, payer, chain, tx_hash, amount, agent_id, owner_id, answer_status \
        FROM orders WHERE id = $1";
    let row: Option<PayerRead> = on!(conn, |c| sqlx::query_as(SQL).bind(id).fetch_optional(c).await?);
    let Some(row) = row else { return Ok(None) };
    Ok(Some(Payer {
        sale: row.id,
        status: row.status,
        address: row.payer,
        chain: row.chain,
        tx_hash: hash("orders", "tx_hash", row.tx_hash)?,
        amount: row.amount,
        agent: row.agent_id,
        owner: row.owner_id,
        answer_status: row.answer_status,
    }))
}
