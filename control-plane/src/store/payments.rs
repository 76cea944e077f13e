//! Claims of signed payments: each payer's nonce is taken once, before anything is done for it.

use chrono::{DateTime, Utc};
use serde_json::Value;
use sqlx::FromRow;
use sqlx::types::Json;
use uuid::Uuid;

use crate::store::idempotency::Idem;
use crate::store::receipts::{self, Receipt, hash};
use crate::store::settlements::{self, Settlement};
use crate::store::writer::Tx;
use crate::store::{Conn, StoreError, on};

/// A signed payment that was taken.
#[derive(Debug, Clone, PartialEq)]
pub struct Payment {
    /// The claim.
    pub id: Uuid,
    /// The chain's id.
    pub chain: i64,
    /// The token, with its checksum.
    pub asset: String,
    /// Who pays, with its checksum.
    pub from: String,
    /// The payer's nonce.
    pub nonce: [u8; 32],
    /// claimed, sent, done, failed.
    pub status: String,
    /// 1 or 2.
    pub version: i64,
    /// SHA-256 of the order's id.
    pub order_hash: [u8; 32],
    /// The order's id.
    pub order_id: String,
    /// What the payment is for.
    pub binding: [u8; 32],
    /// Method and path.
    pub resource: String,
    /// The request's idempotency key, if it has one.
    pub idem: Option<Idem>,
    /// What is sold.
    pub goods: Value,
    /// What must not be kept beyond the end, JSON.
    pub private: Option<String>,
    /// What no two open claims may be for.
    pub subject: Option<String>,
    /// Whom it is for, or nil.
    pub agent: Uuid,
    /// Micro-USDC.
    pub price: i64,
    /// Micro-USDC that are signed for.
    pub amount: i64,
    /// Who is paid.
    pub pay_to: String,
    /// Valid after, seconds since 1970.
    pub valid_after: i64,
    /// Valid before, seconds since 1970.
    pub valid_before: i64,
    /// As it was sent.
    pub signature: Vec<u8>,
    /// Whether the payer is a contract.
    pub by_contract: bool,
    /// What a facilitator is sent, JSON.
    pub facilitator_body: Option<String>,
    /// From which block on its use is looked for.
    pub from_block: i64,
    /// Why it failed.
    pub failure: Option<String>,
    /// When it was taken.
    pub created_at: DateTime<Utc>,
}

#[derive(FromRow)]
struct PaymentRead {
    id: Uuid,
    chain: i64,
    asset: String,
    from_address: String,
    nonce: Vec<u8>,
    status: String,
    x402_version: i64,
    order_hash: Vec<u8>,
    order_id: String,
    binding: Vec<u8>,
    resource: String,
    idem_scope: Option<Vec<u8>>,
    idem_fingerprint: Option<Vec<u8>>,
    goods: Json<Value>,
    private: Option<String>,
    subject: Option<String>,
    agent_id: Uuid,
    price: i64,
    amount: i64,
    pay_to: String,
    valid_after: i64,
    valid_before: i64,
    signature: Vec<u8>,
    by_contract: bool,
    facilitator_body: Option<String>,
    from_block: i64,
    failure: Option<String>,
    created_at: DateTime<Utc>,
}

impl TryFrom<PaymentRead> for Payment {
    type Error = StoreError;

    fn try_from(row: PaymentRead) -> Result<Self, StoreError> {
        let idem = match (row.idem_scope, row.idem_fingerprint) {
            (Some(scope), Some(fingerprint)) => Some(Idem {
                scope: hash("payments", "idem_scope", scope)?,
                fingerprint: hash("payments", "idem_fingerprint", fingerprint)?,
            }),
            _ => None,
        };
        Ok(Self {
            id: row.id,
            chain: row.chain,
            asset: row.asset,
            from: row.from_address,
            nonce: hash("payments", "nonce", row.nonce)?,
            status: row.status,
            version: row.x402_version,
            order_hash: hash("payments", "order_hash", row.order_hash)?,
            order_id: row.order_id,
            binding: hash("payments", "binding", row.binding)?,
            resource: row.resource,
            idem,
            goods: row.goods.0,
            private: row.private,
            subject: row.subject,
            agent: row.agent_id,
            price: row.price,
            amount: row.amount,
            pay_to: row.pay_to,
            valid_after: row.valid_after,
            valid_before: row.valid_before,
            signature: row.signature,
            by_contract: row.by_contract,
            facilitator_body: row.facilitator_body,
            from_block: row.from_block,
            failure: row.failure,
            created_at: row.created_at,
        })
    }
}

macro_rules! select {
    ($rest:literal) => {
        concat!(
            "SELECT id, chain, asset, from_address, nonce, status, x402_version, order_hash, order_id, binding, ",
            "resource, idem_scope, idem_fingerprint, goods, private, subject, agent_id, price, amount, pay_to, valid_after, ",
            "valid_before, signature, by_contract, facilitator_body, from_block, failure, created_at ",
            "FROM payments ",
            $rest
        )
    };
}

macro_rules! insert {
    ($before:literal, $after:literal) => {
        concat!(
            "INSERT INTO payments (id, chain, asset, from_address, nonce, x402_version, order_hash, order_id, binding, ",
            "resource, idem_scope, idem_fingerprint, goods, agent_id, price, amount, pay_to, valid_after, ",
            "valid_before, signature, by_contract, facilitator_body, from_block, created_at, status, private, ",
            "subject) ",
            $before,
            "$1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14, $15, $16, $17, $18, ",
            "$19, $20, $21, $22, $23, $24, $25, $26, $27",
            $after,
            " ON CONFLICT DO NOTHING"
        )
    };
}

/// The values of [`insert!`], in its order.
macro_rules! bound {
    ($sql:expr, $payment:expr) => {
        sqlx::query($sql)
            .bind($payment.id)
            .bind($payment.chain)
            .bind(&$payment.asset)
            .bind(&$payment.from)
            .bind($payment.nonce.to_vec())
            .bind($payment.version)
            .bind($payment.order_hash.to_vec())
            .bind(&$payment.order_id)
            .bind($payment.binding.to_vec())
            .bind(&$payment.resource)
            .bind($payment.idem.map(|idem| idem.scope.to_vec()))
            .bind($payment.idem.map(|idem| idem.fingerprint.to_vec()))
            .bind(Json(&$payment.goods))
            .bind($payment.agent)
            .bind($payment.price)
            .bind($payment.amount)
            .bind(&$payment.pay_to)
            .bind($payment.valid_after)
            .bind($payment.valid_before)
            .bind(&$payment.signature)
            .bind($payment.by_contract)
            .bind(&$payment.facilitator_body)
            .bind($payment.from_block)
            .bind($payment.created_at)
            .bind(&$payment.status)
            .bind(&$payment.private)
            .bind(&$payment.subject)
    };
}

/// Takes a payment; `false` when its nonce, its order or its idempotency key was taken before, or another payment for
/// the same subject is under way.
///
/// # Errors
/// [`StoreError`] when the database refuses or is away.
pub async fn claim(tx: &mut Tx, payment: &Payment) -> Result<bool, StoreError> {
    const SQL: &str = insert!("VALUES (", ")");
    let done = on!(&mut tx.conn, |c| bound!(SQL, payment).execute(c).await?.rows_affected());
    Ok(done == 1)
}

/// The same, with what was signed to carry it out, as long as the lease is held and no account number was given out
/// after `last`; `false` also when one was.
///
/// # Errors
/// [`StoreError`] when the database refuses or is away.
pub async fn claim_signed(
    tx: &mut Tx,
    payment: &Payment,
    signed: &Settlement,
    (lease, holder, epoch): (&str, Uuid, i64),
    last: Option<i64>,
) -> Result<bool, StoreError> {
    // All in one statement: somebody waits.
    const PG: &str = concat!(
        "WITH held AS (SELECT 1 FROM leases WHERE name = $36 AND holder = $37 AND epoch = $38 FOR SHARE), \
        claimed AS (",
        insert!(
            "SELECT ",
            " FROM held WHERE (SELECT MAX(account_nonce) FROM settlements WHERE chain = $2 AND signer = $28) \
             IS NOT DISTINCT FROM $39"
        ),
        " RETURNING id) INSERT INTO settlements (chain, signer, account_nonce, attempt, payment_id, tx_hash, raw, \
        max_fee, priority_fee, created_at) SELECT $2, $28, $29, $30, claimed.id, $31, $32, $33, $34, $35 FROM claimed"
    );
    let Conn::Postgres(c) = &mut tx.conn else {
        let known =
            settlements::last_nonce(tx, (lease, holder, epoch), payment.chain, &signed.signer).await?;
        let done = known == Some(last) && claim(tx, payment).await?;
        if done {
            settlements::insert(tx, signed).await?;
        }
        return Ok(done);
    };
    let done = bound!(PG, payment)
        .bind(&signed.signer)
        .bind(signed.account_nonce)
        .bind(signed.attempt)
        .bind(signed.tx_hash.to_vec())
        .bind(&signed.raw)
        .bind(signed.max_fee)
        .bind(signed.priority_fee)
        .bind(signed.created_at)
        .bind(lease)
        .bind(holder)
        .bind(epoch)
        .bind(last)
        .execute(c)
        .await?;
    Ok(done.rows_affected() == 1)
}

/// The claim of a payer's nonce.
///
/// # Errors
/// [`StoreError`] when the database refuses or is away.
pub async fn by_nonce(
    conn: &mut Conn,
    chain: i64,
    asset: &str,
    from: &str,
    nonce: [u8; 32],
) -> Result<Option<Payment>, StoreError> {
    const SQL: &str = select!("WHERE chain = $1 AND asset = $2 AND from_address = $3 AND nonce = $4");
    let row: Option<PaymentRead> = on!(conn, |c| sqlx::query_as(SQL)
        .bind(chain)
        .bind(asset)
        .bind(from)
        .bind(nonce.to_vec())
        .fetch_optional(c)
        .await?);
    row.map(Payment::try_from).transpose()
}

/// A claim.
///
/// # Errors
/// [`StoreError`] when the database refuses or is away.
pub async fn by_id(conn: &mut Conn, id: Uuid) -> Result<Option<Payment>, StoreError> {
    const SQL: &str = select!("WHERE id = $1");
    let row: Option<PaymentRead> = on!(conn, |c| sqlx::query_as(SQL).bind(id).fetch_optional(c).await?);
    row.map(Payment::try_from).transpose()
}

/// The claim that is under way for an idempotency key.
///
/// # Errors
/// [`StoreError`] when the database refuses or is away.
pub async fn open_of_idem(conn: &mut Conn, scope: [u8; 32]) -> Result<Option<Payment>, StoreError> {
    const SQL: &str = select!("WHERE idem_scope = $1 AND status IN ('claimed', 'sent')");
    let row: Option<PaymentRead> =
        on!(conn, |c| sqlx::query_as(SQL).bind(scope.to_vec()).fetch_optional(c).await?);
    row.map(Payment::try_from).transpose()
}

/// Where a list of claims was left: the last row's time and id.
pub type Place = (DateTime<Utc>, Uuid);

/// Open claims in a state, oldest first, after a place.
///
/// # Errors
/// [`StoreError`] when the database refuses or is away.
pub async fn in_status(
    conn: &mut Conn,
    chain: i64,
    status: &'static str,
    after: Option<Place>,
    limit: i64,
) -> Result<Vec<Payment>, StoreError> {
    const SQL: &str = select!(
        "WHERE status IN ('claimed', 'sent') AND chain = $1 AND status = $2 AND (created_at, id) > ($3, $4) \
         ORDER BY created_at, id LIMIT $5"
    );
    let (at, id) = after.unwrap_or_default();
    let rows: Vec<PaymentRead> = on!(conn, |c| sqlx::query_as(SQL)
        .bind(chain)
        .bind(status)
        .bind(at)
        .bind(id)
        .bind(limit)
        .fetch_all(c)
        .await?);
    rows.into_iter().map(Payment::try_from).collect()
}

/// Claims that were given up and that the chain may still turn, oldest first, after a place.
///
/// # Errors
/// [`StoreError`] when the database refuses or is away.
pub async fn given_up(
    conn: &mut Conn,
    chain: i64,
    after: Option<Place>,
    limit: i64,
) -> Result<Vec<Payment>, StoreError> {
    const SQL: &str = select!(
        "WHERE status = 'failed' AND closed_at IS NULL AND chain = $1 AND (created_at, id) > ($2, $3) \
         ORDER BY created_at, id LIMIT $4"
    );
    let (at, id) = after.unwrap_or_default();
    let rows: Vec<PaymentRead> =
        on!(conn, |c| sqlx::query_as(SQL).bind(chain).bind(at).bind(id).bind(limit).fetch_all(c).await?);
    rows.into_iter().map(Payment::try_from).collect()
}

/// Notes that a claim which was given up stays so, and forgets its private part; `false` when that is no news.
///
/// # Errors
/// [`StoreError`] when the database refuses or is away.
pub async fn close(tx: &mut Tx, id: Uuid) -> Result<bool, StoreError> {
    const SQL: &str = "UPDATE payments SET closed_at = $2, private = NULL WHERE id = $1 AND status = 'failed' \
        AND closed_at IS NULL";
    let at = tx.at;
    Ok(on!(&mut tx.conn, |c| sqlx::query(SQL).bind(id).bind(at).execute(c).await?.rows_affected()) == 1)
}

/// The claim that paid a sale.
///
/// # Errors
/// [`StoreError`] when the database refuses or is away.
pub async fn of_sale(conn: &mut Conn, sale: Uuid) -> Result<Option<Payment>, StoreError> {
    const SQL: &str =
        select!("WHERE status = 'done' AND order_hash = (SELECT order_hash FROM orders WHERE id = $1)");
    let row: Option<PaymentRead> = on!(conn, |c| sqlx::query_as(SQL).bind(sale).fetch_optional(c).await?);
    row.map(Payment::try_from).transpose()
}

/// Gives a claim another order: its own was paid otherwise.
///
/// # Errors
/// [`StoreError`] when the database refuses or is away.
pub async fn rename_order(
    tx: &mut Tx,
    id: Uuid,
    order_id: &str,
    order_hash: [u8; 32],
) -> Result<(), StoreError> {
    const SQL: &str = "UPDATE payments SET order_id = $2, order_hash = $3 WHERE id = $1";
    on!(&mut tx.conn, |c| sqlx::query(SQL)
        .bind(id)
        .bind(order_id)
        .bind(order_hash.to_vec())
        .execute(c)
        .await?
        .rows_affected());
    Ok(())
}

/// How a claim ended that was carried out.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Done {
    /// The transaction that paid the claim's order already, if any.
    pub other: Option<[u8; 32]>,
    /// Whether its transfer is taken for this use now, and was not used before.
    pub taken: bool,
}

/// Ends a claim as carried out, and takes its transfer; `None` when it had ended so before, and then takes nothing. One
/// that failed may still be done: the chain has the last word.
///
/// # Errors
/// [`StoreError`] when the database refuses or is away.
pub async fn done(tx: &mut Tx, id: Uuid, transfer: &Receipt) -> Result<Option<Done>, StoreError> {
    const SQL: &str = "UPDATE payments SET status = 'done', failure = NULL, ended_at = $2, private = NULL \
        WHERE id = $1 AND status IN ('claimed', 'sent', 'failed') \
        RETURNING (SELECT o.tx_hash FROM orders o WHERE o.order_hash = payments.order_hash)";
    // One way to the database instead of two: somebody waits.
    const PG: &str = concat!(
        "WITH done AS (UPDATE payments SET status = 'done', failure = NULL, ended_at = $14, private = NULL \
        WHERE id = $15 AND status IN ('claimed', 'sent', 'failed') \
        RETURNING (SELECT o.tx_hash FROM orders o WHERE o.order_hash = payments.order_hash) AS other), taken AS (",
        receipts::insert_receipt!("SELECT ", " FROM done"),
        " RETURNING 1) SELECT done.other, EXISTS (SELECT 1 FROM taken) FROM done"
    );
    let at = tx.at;
    let other = |bytes: Option<Vec<u8>>| bytes.map(|bytes| hash("orders", "tx_hash", bytes)).transpose();
    if let Conn::Postgres(c) = &mut tx.conn {
        let query = receipts::bound_receipt!(sqlx::query_as(PG), transfer, at).bind(id);
        let row: Option<(Option<Vec<u8>>, bool)> = query.fetch_optional(c).await?;
        return row.map(|(bytes, taken)| Ok(Done { other: other(bytes)?, taken })).transpose();
    }
    let row: Option<(Option<Vec<u8>>,)> =
        on!(&mut tx.conn, |c| sqlx::query_as(SQL).bind(id).bind(at).fetch_optional(c).await?);
    let Some((bytes,)) = row else { return Ok(None) };
    Ok(Some(Done { other: other(bytes)?, taken: receipts::insert(tx, transfer).await? }))
}

/// Ends a claim that came to nothing; `false` when it has ended before. It keeps what being done after all needs: the
/// chain has the last word.
///
/// # Errors
/// [`StoreError`] when the database refuses or is away.
pub async fn fail(tx: &mut Tx, id: Uuid, failure: &str) -> Result<bool, StoreError> {
    const SQL: &str = "UPDATE payments SET status = 'failed', failure = $2, ended_at = $3 WHERE id = $1 \
        AND status IN ('claimed', 'sent')";
    let at = tx.at;
    let done = on!(&mut tx.conn, |c| sqlx::query(SQL)
        .bind(id)
        .bind(failure)
        .bind(at)
        .execute(c)
        .await?
        .rows_affected());
    Ok(done == 1)
}

/// Notes that a claim's settlement is signed, about to be sent; `false` when it is not waiting for that.
///
/// # Errors
/// [`StoreError`] when the database refuses or is away.
pub async fn mark_sent(tx: &mut Tx, id: Uuid) -> Result<bool, StoreError> {
    const SQL: &str = "UPDATE payments SET status = 'sent' WHERE id = $1 AND status = 'claimed'";
    Ok(on!(&mut tx.conn, |c| sqlx::query(SQL).bind(id).execute(c).await?.rows_affected()) == 1)
}
