//! Domains of ours, from the view of their renewal and of their zone.

use chrono::{DateTime, Utc};
use sqlx::FromRow;
use uuid::Uuid;

use crate::store::writer::Tx;
use crate::store::{Conn, StoreError, on};

/// A managed domain with its end.
#[derive(Debug, Clone, PartialEq, Eq, FromRow)]
pub struct Holding {
    pub id: Uuid,
    pub name: String,
    pub agent_id: Option<Uuid>,
    pub owner_id: Option<Uuid>,
    pub auto_renew: bool,
    pub expires_at: DateTime<Utc>,
    /// What a year's renewal cost when the domain was bought, micro-USDC.
    pub renewal_price: Option<i64>,
}

/// Managed, active domains that end before a time and whose turn it is.
///
/// # Errors
/// [`StoreError`] when the database refuses or is away.
pub async fn ending_before(
    conn: &mut Conn,
    before: DateTime<Utc>,
    now: DateTime<Utc>,
    limit: i64,
) -> Result<Vec<Holding>, StoreError> {
    const SQL: &str = "SELECT id, name, agent_id, owner_id, auto_renew, expires_at, renewal_price FROM domains \
        WHERE managed AND status = 'active' AND expires_at <= $1 AND (renewal_at IS NULL OR renewal_at <= $2) \
        ORDER BY expires_at, id LIMIT $3";
    Ok(on!(conn, |c| sqlx::query_as(SQL).bind(before).bind(now).bind(limit).fetch_all(c).await?))
}

/// Takes the turn of a domain as it was seen, until another time; `false` when somebody else has, or it has changed.
///
/// # Errors
/// [`StoreError`] when the database refuses or is away.
pub async fn take_turn(tx: &mut Tx, seen: &Holding, next: DateTime<Utc>) -> Result<bool, StoreError> {
    const SQL: &str = "UPDATE domains SET renewal_at = $3 WHERE id = $1 AND managed AND status = 'active' \
        AND expires_at = $2 AND auto_renew = $5 AND (renewal_at IS NULL OR renewal_at <= $4)";
    let at = tx.at;
    let done = on!(&mut tx.conn, |c| sqlx::query(SQL)
        .bind(seen.id)
        .bind(seen.expires_at)
        .bind(next)
        .bind(at)
        .bind(seen.auto_renew)
        .execute(c)
        .await?
        .rows_affected());
    Ok(done == 1)
}

/// Writes what the registrar says of a domain's end.
///
/// # Errors
/// [`StoreError`] when the database refuses or is away.
pub async fn set_end(
    tx: &mut Tx,
    id: Uuid,
    expires_at: DateTime<Utc>,
    status: &'static str,
) -> Result<(), StoreError> {
    const SQL: &str = "UPDATE domains SET expires_at = $2, status = $3 WHERE id = $1 AND managed";
    on!(&mut tx.conn, |c| sqlx::query(SQL)
        .bind(id)
        .bind(expires_at)
        .bind(status)
        .execute(c)
        .await?
        .rows_affected());
    Ok(())
}

/// A managed domain that points at a server.
#[derive(Debug, Clone, PartialEq, Eq, FromRow)]
pub struct Pointed {
    pub id: Uuid,
    pub name: String,
    pub agent_id: Option<Uuid>,
    /// The server's address.
    pub ip_address: String,
    /// The address that we last gave the domain.
    pub zone_address: Option<String>,
}

/// Managed domains linked to a server with an address: those never looked at, those not looked at since a time, and
/// those that did not point at it then and were not looked at since another.
///
/// # Errors
/// [`StoreError`] when the database refuses or is away.
pub async fn to_point(
    conn: &mut Conn,
    seen_before: DateTime<Utc>,
    wrong_since: DateTime<Utc>,
    limit: i64,
) -> Result<Vec<Pointed>, StoreError> {
    const SQL: &str = "SELECT d.id, d.name, d.agent_id, s.ip_address, d.zone_address FROM domains d \
        JOIN sandboxes s ON s.id = d.sandbox_id WHERE d.managed AND d.status = 'active' \
        AND s.ip_address IS NOT NULL AND (s.managed OR s.vendor_id IS NULL) \
        AND (d.zone_seen_at IS NULL OR d.zone_seen_at <= $1 OR (d.zone_seen_at <= $2 AND \
        (d.zone_address IS NULL OR d.zone_address <> s.ip_address))) ORDER BY d.zone_seen_at, d.id LIMIT $3";
    Ok(on!(conn, |c| sqlx::query_as(SQL)
        .bind(seen_before)
        .bind(wrong_since)
        .bind(limit)
        .fetch_all(c)
        .await?))
}

/// Managed domains that point at a server which is ours no more, and were not looked at since a time: its address will be
/// somebody else's.
///
/// # Errors
/// [`StoreError`] when the database refuses or is away.
pub async fn to_clear(
    conn: &mut Conn,
    seen_before: DateTime<Utc>,
    limit: i64,
) -> Result<Vec<Pointed>, StoreError> {
    const SQL: &str = "SELECT d.id, d.name, d.agent_id, d.zone_address AS ip_address, d.zone_address FROM domains d \
        JOIN sandboxes s ON s.id = d.sandbox_id WHERE d.managed AND d.status = 'active' \
        AND d.zone_address IS NOT NULL AND s.vendor_id IS NOT NULL AND NOT s.managed \
        AND (d.zone_seen_at IS NULL OR d.zone_seen_at <= $1) ORDER BY d.zone_seen_at, d.id LIMIT $2";
    Ok(on!(conn, |c| sqlx::query_as(SQL).bind(seen_before).bind(limit).fetch_all(c).await?))
}

/// Notes that a domain points nowhere any more.
///
/// # Errors
/// [`StoreError`] when the database refuses or is away.
pub async fn cleared(tx: &mut Tx, id: Uuid) -> Result<(), StoreError> {
    const SQL: &str = "UPDATE domains SET zone_seen_at = $2, zone_address = NULL WHERE id = $1";
    let at = tx.at;
    on!(&mut tx.conn, |c| sqlx::query(SQL).bind(id).bind(at).execute(c).await?.rows_affected());
    Ok(())
}

/// Notes that a domain's zone was looked at, and where it points if it does.
///
/// # Errors
/// [`StoreError`] when the database refuses or is away.
pub async fn pointed(tx: &mut Tx, id: Uuid, address: Option<&str>) -> Result<(), StoreError> {
    const SQL: &str =
        "UPDATE domains SET zone_seen_at = $2, zone_address = COALESCE($3, zone_address) WHERE id = $1";
    let at = tx.at;
    on!(&mut tx.conn, |c| sqlx::query(SQL).bind(id).bind(at).bind(address).execute(c).await?.rows_affected());
    Ok(())
}

/// Renewals that were paid for.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Renewals {
    pub attempts: u64,
    pub successes: u64,
}

/// Counts renewals: a few for each domain in its whole life.
///
/// # Errors
/// [`StoreError`] when the database refuses or is away.
pub async fn renewals(conn: &mut Conn) -> Result<Renewals, StoreError> {
    const SQL: &str = "SELECT count(*), CAST(COALESCE(SUM(CASE WHEN status = 'delivered' THEN 1 ELSE 0 END), 0) \
        AS BIGINT) FROM purchases WHERE kind = 'renewal' AND held > 0";
    let (attempts, successes): (i64, i64) = on!(conn, |c| sqlx::query_as(SQL).fetch_one(c).await?);
    let count = |n: i64| u64::try_from(n).unwrap_or(0);
    Ok(Renewals { attempts: count(attempts), successes: count(successes) })
}
