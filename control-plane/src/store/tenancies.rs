//! Servers of ours at the vendor, from the view of who pays for their next period.

use chrono::{DateTime, Utc};
use sqlx::FromRow;
use uuid::Uuid;

use crate::store::writer::Tx;
use crate::store::{Conn, StoreError, on};

/// A managed server with the end of what is paid.
#[derive(Debug, Clone, PartialEq, Eq, FromRow)]
pub struct Tenancy {
    pub id: Uuid,
    pub name: String,
    pub agent_id: Option<Uuid>,
    pub owner_id: Option<Uuid>,
    pub status: String,
    pub vendor_id: String,
    pub plan: String,
    pub cycle: String,
    pub paid_until: DateTime<Utc>,
    /// When it was last about to be powered off for want of money.
    pub powered_off_at: Option<DateTime<Utc>>,
}

impl Tenancy {
    /// Whether the vendor has powered it off for want of money.
    pub fn is_off(&self) -> bool {
        self.powered_off_at.is_some() && self.status == "stopped"
    }
}

/// Managed servers whose paid time ends before a time, the first to end first; and those that were powered off.
///
/// # Errors
/// [`StoreError`] when the database refuses or is away.
pub async fn ending_before(
    conn: &mut Conn,
    before: DateTime<Utc>,
    limit: i64,
) -> Result<Vec<Tenancy>, StoreError> {
    const SQL: &str = "SELECT id, name, agent_id, owner_id, status, vendor_id, plan, cycle, paid_until, \
        powered_off_at FROM sandboxes WHERE managed AND vendor_id IS NOT NULL AND plan IS NOT NULL \
        AND cycle IS NOT NULL AND paid_until <= $1 ORDER BY paid_until, id LIMIT $2";
    const OFF: &str = "SELECT id, name, agent_id, owner_id, status, vendor_id, plan, cycle, paid_until, \
        powered_off_at FROM sandboxes WHERE managed AND vendor_id IS NOT NULL AND plan IS NOT NULL \
        AND cycle IS NOT NULL AND powered_off_at IS NOT NULL AND paid_until > $1 ORDER BY paid_until, id LIMIT $2";
    let mut all: Vec<Tenancy> =
        on!(&mut *conn, |c| sqlx::query_as(SQL).bind(before).bind(limit).fetch_all(c).await?);
    let off: Vec<Tenancy> = on!(conn, |c| sqlx::query_as(OFF).bind(before).bind(limit).fetch_all(c).await?);
    all.extend(off);
    Ok(all)
}

/// One of them, locked until the transaction ends; `None` when it is not managed any more.
///
/// # Errors
/// [`StoreError`] when the database refuses or is away.
pub async fn lock(tx: &mut Tx, id: Uuid) -> Result<Option<Tenancy>, StoreError> {
    const SQL: &str = "SELECT id, name, agent_id, owner_id, status, vendor_id, plan, cycle, paid_until, \
        powered_off_at FROM sandboxes WHERE id = $1 AND managed AND vendor_id IS NOT NULL AND plan IS NOT NULL \
        AND cycle IS NOT NULL AND paid_until IS NOT NULL";
    super::sandboxes::lock(tx, id).await?;
    Ok(on!(&mut tx.conn, |c| sqlx::query_as(SQL).bind(id).fetch_optional(c).await?))
}

/// Notes that a server is about to be powered off for want of money; `false` when it was paid meanwhile.
///
/// # Errors
/// [`StoreError`] when the database refuses or is away.
pub async fn begin_power_off(tx: &mut Tx, id: Uuid, paid_until: DateTime<Utc>) -> Result<bool, StoreError> {
    const SQL: &str =
        "UPDATE sandboxes SET powered_off_at = $3 WHERE id = $1 AND managed AND paid_until = $2";
    let at = tx.at;
    let done = on!(&mut tx.conn, |c| sqlx::query(SQL)
        .bind(id)
        .bind(paid_until)
        .bind(at)
        .execute(c)
        .await?
        .rows_affected());
    Ok(done == 1)
}

/// Notes that a server was powered off, or is on again.
///
/// # Errors
/// [`StoreError`] when the database refuses or is away.
pub async fn note_power(tx: &mut Tx, id: Uuid, off: bool) -> Result<(), StoreError> {
    const OFF: &str = "UPDATE sandboxes SET status = 'stopped' WHERE id = $1 AND managed";
    const ON: &str =
        "UPDATE sandboxes SET status = 'running', powered_off_at = NULL WHERE id = $1 AND managed";
    let sql = if off { OFF } else { ON };
    on!(&mut tx.conn, |c| sqlx::query(sql).bind(id).execute(c).await?.rows_affected());
    Ok(())
}

/// From now on it is to be deleted and can be paid for no more; `false` when it was paid meanwhile, or is not ours.
///
/// # Errors
/// [`StoreError`] when the database refuses or is away.
pub async fn end(tx: &mut Tx, id: Uuid, paid_until: DateTime<Utc>) -> Result<bool, StoreError> {
    const SQL: &str = "UPDATE sandboxes SET managed = FALSE, status = 'stopped', ending_at = $3 \
        WHERE id = $1 AND managed AND paid_until = $2";
    let at = tx.at;
    let done = on!(&mut tx.conn, |c| sqlx::query(SQL)
        .bind(id)
        .bind(paid_until)
        .bind(at)
        .execute(c)
        .await?
        .rows_affected());
    Ok(done == 1)
}

/// The same for one whose purchase was given back, whenever it is paid until.
///
/// # Errors
/// [`StoreError`] when the database refuses or is away.
pub async fn end_now(tx: &mut Tx, id: Uuid) -> Result<bool, StoreError> {
    const SQL: &str =
        "UPDATE sandboxes SET managed = FALSE, status = 'stopped', ending_at = $2 WHERE id = $1 AND managed";
    let at = tx.at;
    Ok(on!(&mut tx.conn, |c| sqlx::query(SQL).bind(id).bind(at).execute(c).await?.rows_affected()) == 1)
}

/// A server that is to be deleted at the vendor.
#[derive(Debug, Clone, PartialEq, Eq, FromRow)]
pub struct Ending {
    pub id: Uuid,
    pub name: String,
    pub agent_id: Option<Uuid>,
    pub vendor_id: String,
}

/// The servers that are to be deleted.
///
/// # Errors
/// [`StoreError`] when the database refuses or is away.
pub async fn ending(conn: &mut Conn, limit: i64) -> Result<Vec<Ending>, StoreError> {
    const SQL: &str = "SELECT id, name, agent_id, vendor_id FROM sandboxes WHERE ending_at IS NOT NULL \
        AND deleted_at IS NULL AND vendor_id IS NOT NULL ORDER BY ending_at, id LIMIT $1";
    Ok(on!(conn, |c| sqlx::query_as(SQL).bind(limit).fetch_all(c).await?))
}

/// The vendor has deleted it; `false` when that is known already.
///
/// # Errors
/// [`StoreError`] when the database refuses or is away.
pub async fn deleted(tx: &mut Tx, id: Uuid) -> Result<bool, StoreError> {
    const SQL: &str = "UPDATE sandboxes SET deleted_at = $2 WHERE id = $1 AND ending_at IS NOT NULL \
        AND deleted_at IS NULL";
    let at = tx.at;
    Ok(on!(&mut tx.conn, |c| sqlx::query(SQL).bind(id).bind(at).execute(c).await?.rows_affected()) == 1)
}
