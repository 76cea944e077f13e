//! Purchases at vendors. A row is changed only from the state that its writer has seen.

use chrono::{DateTime, Utc};
use serde_json::Value;
use sqlx::FromRow;
use sqlx::types::Json;
use uuid::Uuid;

use crate::store::idempotency::Idem;
use crate::store::receipts::hash;
use crate::store::writer::Tx;
use crate::store::{Conn, StoreError, on};

/// A purchase.
#[derive(Debug, Clone, PartialEq)]
pub struct Purchase {
    /// Its id; also the mark that a vendor's server carries.
    pub id: Uuid,
    /// domain, renewal, server, period.
    pub kind: String,
    /// paid, executing, unknown, delivered, failed, needs_operator.
    pub status: String,
    /// A domain's name or a server's.
    pub subject: String,
    /// What is bought.
    pub item: Value,
    /// What must not outlive it, JSON.
    pub private: Option<String>,
    /// The account that its money is kept on until the end.
    pub held_in: String,
    /// Micro-USDC.
    pub price: i64,
    /// Micro-USDC that are kept for it.
    pub held: i64,
    /// The sale that paid it; `None` when credits did.
    pub sale: Option<Uuid>,
    /// Whose credits paid it, or nil.
    pub payer_agent: Uuid,
    /// The reservation of those credits, or nil.
    pub reservation: Uuid,
    /// Whom it is for, or nil.
    pub agent: Uuid,
    /// Whose it is, or nil.
    pub owner: Uuid,
    /// The request's idempotency key, if it has one.
    pub idem: Option<Idem>,
    /// Attempts that count.
    pub attempts: i64,
    /// The latest attempt, or nil.
    pub attempt: Uuid,
    /// Until when it may send.
    pub deadline: Option<DateTime<Utc>>,
    /// The vendor's order or server.
    pub vendor_ref: Option<String>,
    /// Since when looks show that nothing was done.
    pub absent_since: Option<DateTime<Utc>>,
    /// The epoch of the lease under which the two times above were written.
    pub epoch: i64,
    /// When it is looked at again.
    pub next_at: DateTime<Utc>,
    /// Why it failed or needs a person: a code.
    pub failure_code: Option<String>,
    /// The same in words.
    pub failure: Option<String>,
    /// The domain or sandbox that came of it.
    pub result: Option<Uuid>,
    /// Whether the server's password was shown, or there is none.
    pub secret_shown: bool,
    /// What the operator noted.
    pub note: Option<String>,
    /// From when on it is tried: since it was paid, or was sent on its way again by the operator.
    pub since: DateTime<Utc>,
    /// When it was paid.
    pub created_at: DateTime<Utc>,
    /// When it ended.
    pub ended_at: Option<DateTime<Utc>>,
}

impl Purchase {
    /// Whether nothing is set aside for it: it waits for the operator's word, or had none.
    pub const fn is_unpaid(&self) -> bool {
        self.sale.is_none() && self.held == 0 && self.reservation.is_nil()
    }
}

#[derive(FromRow)]
pub(super) struct PurchaseRead {
    pub(super) id: Uuid,
    kind: String,
    status: String,
    subject: String,
    item: Json<Value>,
    private: Option<String>,
    held_in: String,
    price: i64,
    held: i64,
    sale_id: Option<Uuid>,
    payer_agent: Uuid,
    reservation_id: Uuid,
    agent_id: Uuid,
    owner_id: Uuid,
    idem_scope: Option<Vec<u8>>,
    idem_fingerprint: Option<Vec<u8>>,
    attempts: i64,
    attempt_id: Uuid,
    deadline: Option<DateTime<Utc>>,
    vendor_ref: Option<String>,
    absent_since: Option<DateTime<Utc>>,
    lease_epoch: i64,
    next_at: DateTime<Utc>,
    failure_code: Option<String>,
    failure: Option<String>,
    result_id: Option<Uuid>,
    secret_shown: bool,
    note: Option<String>,
    since: DateTime<Utc>,
    pub(super) created_at: DateTime<Utc>,
    ended_at: Option<DateTime<Utc>>,
}

pub(super) const COLUMNS: &str = "id, kind, status, subject, item, private, held_in, price, held, sale_id, \
    payer_agent, reservation_id, agent_id, owner_id, idem_scope, idem_fingerprint, attempts, attempt_id, deadline, \
    vendor_ref, absent_since, lease_epoch, next_at, failure_code, failure, result_id, secret_shown, note, since, \
    created_at, ended_at";

impl TryFrom<PurchaseRead> for Purchase {
    type Error = StoreError;

    fn try_from(row: PurchaseRead) -> Result<Self, StoreError> {
        let idem = match (row.idem_scope, row.idem_fingerprint) {
            (Some(scope), Some(fingerprint)) => Some(Idem {
                scope: hash("purchases", "idem_scope", scope)?,
                fingerprint: hash("purchases", "idem_fingerprint", fingerprint)?,
            }),
            _ => None,
        };
        Ok(Self {
            id: row.id,
            kind: row.kind,
            status: row.status,
            subject: row.subject,
            item: row.item.0,
            private: row.private,
            held_in: row.held_in,
            price: row.price,
            held: row.held,
            sale: row.sale_id,
            payer_agent: row.payer_agent,
            reservation: row.reservation_id,
            agent: row.agent_id,
            owner: row.owner_id,
            idem,
            attempts: row.attempts,
            attempt: row.attempt_id,
            deadline: row.deadline,
            vendor_ref: row.vendor_ref,
            absent_since: row.absent_since,
            epoch: row.lease_epoch,
            next_at: row.next_at,
            failure_code: row.failure_code,
            failure: row.failure,
            result: row.result_id,
            secret_shown: row.secret_shown,
            note: row.note,
            since: row.since,
            created_at: row.created_at,
            ended_at: row.ended_at,
        })
    }
}

macro_rules! select {
    ($rest:literal) => {
        concat!(
            "SELECT id, kind, status, subject, item, private, held_in, price, held, sale_id, payer_agent, ",
            "reservation_id, agent_id, owner_id, idem_scope, idem_fingerprint, attempts, attempt_id, deadline, ",
            "vendor_ref, absent_since, lease_epoch, next_at, failure_code, failure, result_id, secret_shown, note, ",
            "since, created_at, ended_at FROM purchases ",
            $rest
        )
    };
}

/// Writes a purchase; `false` when there is a live one of the same domain, of the same sale, or for the same
/// idempotency key.
///
/// # Errors
/// [`StoreError`] when the database refuses or is away.
pub async fn insert(tx: &mut Tx, row: &Purchase) -> Result<bool, StoreError> {
    const SQL: &str = "INSERT INTO purchases (id, kind, status, subject, item, private, held_in, price, held, sale_id, \
        payer_agent, reservation_id, agent_id, owner_id, idem_scope, idem_fingerprint, attempts, attempt_id, \
        deadline, vendor_ref, next_at, result_id, secret_shown, created_at, ended_at, since) \
        VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14, $15, $16, $17, $18, $19, $20, $21, $22, \
        $23, $24, $25, $26) ON CONFLICT DO NOTHING";
    let done = on!(&mut tx.conn, |c| sqlx::query(SQL)
        .bind(row.id)
        .bind(&row.kind)
        .bind(&row.status)
        .bind(&row.subject)
        .bind(Json(&row.item))
        .bind(&row.private)
        .bind(&row.held_in)
        .bind(row.price)
        .bind(row.held)
        .bind(row.sale)
        .bind(row.payer_agent)
        .bind(row.reservation)
        .bind(row.agent)
        .bind(row.owner)
        .bind(row.idem.map(|idem| idem.scope.to_vec()))
        .bind(row.idem.map(|idem| idem.fingerprint.to_vec()))
        .bind(row.attempts)
        .bind(row.attempt)
        .bind(row.deadline)
        .bind(&row.vendor_ref)
        .bind(row.next_at)
        .bind(row.result)
        .bind(row.secret_shown)
        .bind(row.created_at)
        .bind(row.ended_at)
        .bind(row.since)
        .execute(c)
        .await?
        .rows_affected());
    Ok(done == 1)
}

/// Writes what may change of a purchase; `false` when it is not (any more) where `before` has it.
///
/// # Errors
/// [`StoreError`] when the database refuses or is away.
pub async fn change(tx: &mut Tx, before: &Purchase, after: &Purchase) -> Result<bool, StoreError> {
    const SQL: &str = "UPDATE purchases SET status = $4, private = $5, held_in = $6, held = $7, reservation_id = $8, \
        attempts = $9, attempt_id = $10, deadline = $11, vendor_ref = $12, absent_since = $13, next_at = $14, \
        failure_code = $15, failure = $16, result_id = $17, note = $18, ended_at = $19, since = $20, lease_epoch = $21 \
        WHERE id = $1 AND status = $2 AND attempt_id = $3";
    let done = on!(&mut tx.conn, |c| sqlx::query(SQL)
        .bind(before.id)
        .bind(&before.status)
        .bind(before.attempt)
        .bind(&after.status)
        .bind(&after.private)
        .bind(&after.held_in)
        .bind(after.held)
        .bind(after.reservation)
        .bind(after.attempts)
        .bind(after.attempt)
        .bind(after.deadline)
        .bind(&after.vendor_ref)
        .bind(after.absent_since)
        .bind(after.next_at)
        .bind(&after.failure_code)
        .bind(&after.failure)
        .bind(after.result)
        .bind(&after.note)
        .bind(after.ended_at)
        .bind(after.since)
        .bind(after.epoch)
        .execute(c)
        .await?
        .rows_affected());
    Ok(done == 1)
}

/// Notes what came of a purchase.
///
/// # Errors
/// [`StoreError`] when the database refuses or is away.
pub async fn set_result(tx: &mut Tx, id: Uuid, result: Uuid) -> Result<(), StoreError> {
    const SQL: &str = "UPDATE purchases SET result_id = $2 WHERE id = $1";
    on!(&mut tx.conn, |c| sqlx::query(SQL).bind(id).bind(result).execute(c).await?.rows_affected());
    Ok(())
}

/// Takes the right to show a server's password until a time; `false` when an answer has shown it, or another has the
/// right and may be on its way.
///
/// # Errors
/// [`StoreError`] when the database refuses or is away.
pub async fn take_secret(tx: &mut Tx, id: Uuid, until: DateTime<Utc>) -> Result<bool, StoreError> {
    const SQL: &str = "UPDATE purchases SET secret_until = $2 WHERE id = $1 AND secret_shown = $3 \
        AND (secret_until IS NULL OR secret_until <= $4)";
    let at = tx.at;
    let done = on!(&mut tx.conn, |c| sqlx::query(SQL)
        .bind(id)
        .bind(until)
        .bind(false)
        .bind(at)
        .execute(c)
        .await?
        .rows_affected());
    Ok(done == 1)
}

/// The answer that had the right until a time was sent (then nobody gets it again), or was not.
///
/// # Errors
/// [`StoreError`] when the database refuses or is away.
pub async fn end_secret(tx: &mut Tx, id: Uuid, until: DateTime<Utc>, sent: bool) -> Result<(), StoreError> {
    const SQL: &str =
        "UPDATE purchases SET secret_shown = $3, secret_until = NULL WHERE id = $1 AND secret_until = $2";
    on!(&mut tx.conn, |c| sqlx::query(SQL).bind(id).bind(until).bind(sent).execute(c).await?.rows_affected());
    Ok(())
}

/// One purchase.
///
/// # Errors
/// [`StoreError`] when the database refuses or is away.
pub async fn by_id(conn: &mut Conn, id: Uuid) -> Result<Option<Purchase>, StoreError> {
    const SQL: &str = select!("WHERE id = $1");
    let row: Option<PurchaseRead> = on!(conn, |c| sqlx::query_as(SQL).bind(id).fetch_optional(c).await?);
    row.map(Purchase::try_from).transpose()
}

/// The purchase that a sale has paid.
///
/// # Errors
/// [`StoreError`] when the database refuses or is away.
pub async fn of_sale(conn: &mut Conn, sale: Uuid) -> Result<Option<Purchase>, StoreError> {
    const SQL: &str = select!("WHERE sale_id = $1");
    let row: Option<PurchaseRead> = on!(conn, |c| sqlx::query_as(SQL).bind(sale).fetch_optional(c).await?);
    row.map(Purchase::try_from).transpose()
}

/// The live purchase of a request with an idempotency key.
///
/// # Errors
/// [`StoreError`] when the database refuses or is away.
pub async fn live_of_idem(conn: &mut Conn, scope: [u8; 32]) -> Result<Option<Purchase>, StoreError> {
    const SQL: &str =
        select!("WHERE idem_scope = $1 AND status IN ('paid', 'executing', 'unknown', 'needs_operator')");
    let row: Option<PurchaseRead> =
        on!(conn, |c| sqlx::query_as(SQL).bind(scope.to_vec()).fetch_optional(c).await?);
    row.map(Purchase::try_from).transpose()
}

/// Whether a domain is being bought or renewed.
///
/// # Errors
/// [`StoreError`] when the database refuses or is away.
pub async fn is_domain_live(conn: &mut Conn, name: &str) -> Result<bool, StoreError> {
    const SQL: &str = "SELECT 1 FROM purchases WHERE subject = $1 AND kind IN ('domain', 'renewal') \
        AND status IN ('paid', 'executing', 'unknown', 'needs_operator')";
    Ok(on!(conn, |c| sqlx::query(SQL).bind(name).fetch_all(c).await?.len()) > 0)
}

/// The renewal of a domain that waits for the operator's word with nothing set aside for it.
///
/// # Errors
/// [`StoreError`] when the database refuses or is away.
pub async fn asked_renewal(conn: &mut Conn, name: &str) -> Result<Option<Purchase>, StoreError> {
    const SQL: &str =
        select!("WHERE subject = $1 AND kind = 'renewal' AND status = 'needs_operator' AND held = 0");
    let row: Option<PurchaseRead> = on!(conn, |c| sqlx::query_as(SQL).bind(name).fetch_optional(c).await?);
    Ok(row.map(Purchase::try_from).transpose()?.filter(Purchase::is_unpaid))
}

/// Whether the operator has refused a renewal of a domain at a price, for an agent, since a time.
///
/// # Errors
/// [`StoreError`] when the database refuses or is away.
pub async fn was_refused(
    conn: &mut Conn,
    (name, price, payer): (&str, i64, Uuid),
    code: &str,
    since: DateTime<Utc>,
) -> Result<bool, StoreError> {
    const SQL: &str = "SELECT 1 FROM purchases WHERE subject = $1 AND kind = 'renewal' AND status = 'failed' \
        AND held = 0 AND price = $2 AND payer_agent = $3 AND failure_code = $4 AND created_at >= $5";
    let rows = on!(conn, |c| sqlx::query(SQL)
        .bind(name)
        .bind(price)
        .bind(payer)
        .bind(code)
        .bind(since)
        .fetch_all(c)
        .await?
        .len());
    Ok(rows > 0)
}

/// Purchases that are to be looked at by a time, the longest due first; and those under way whose times another epoch
/// of the lease has written.
///
/// # Errors
/// [`StoreError`] when the database refuses or is away.
pub async fn due(
    conn: &mut Conn,
    now: DateTime<Utc>,
    epoch: i64,
    limit: i64,
) -> Result<Vec<Purchase>, StoreError> {
    const SQL: &str = select!(
        "WHERE status IN ('paid', 'executing', 'unknown') \
        AND (next_at <= $1 OR (status <> 'paid' AND vendor_ref IS NULL AND lease_epoch <> $3)) ORDER BY next_at, id LIMIT $2"
    );
    let rows: Vec<PurchaseRead> =
        on!(conn, |c| sqlx::query_as(SQL).bind(now).bind(limit).bind(epoch).fetch_all(c).await?);
    rows.into_iter().map(Purchase::try_from).collect()
}

/// How many there are in each state that is no end.
///
/// # Errors
/// [`StoreError`] when the database refuses or is away.
pub async fn open_counts(conn: &mut Conn) -> Result<Vec<(String, i64)>, StoreError> {
    const SQL: &str = "SELECT status, COUNT(*) FROM purchases \
        WHERE status IN ('paid', 'executing', 'unknown', 'needs_operator') GROUP BY status";
    Ok(on!(conn, |c| sqlx::query_as(SQL).fetch_all(c).await?))
}
