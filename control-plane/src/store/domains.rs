//! Domains.

use chrono::{DateTime, Utc};
use otonix_sdk::api::records::{DnsRecord, Domain};
use otonix_sdk::ids::{AgentId, DomainId, SandboxId};
use sqlx::FromRow;
use sqlx::types::Json;
use uuid::Uuid;

use crate::store::writer::Tx;
use crate::store::{Conn, StoreError, on};

#[derive(FromRow)]
pub(super) struct DomainRead {
    pub(super) id: Uuid,
    name: String,
    status: String,
    registered_at: Option<DateTime<Utc>>,
    expires_at: Option<DateTime<Utc>>,
    dns_records: Json<Vec<DnsRecord>>,
    sandbox_id: Option<Uuid>,
    agent_id: Option<Uuid>,
    auto_renew: bool,
    managed: bool,
    contact_verified: Option<bool>,
    verify_by: Option<DateTime<Utc>>,
    pub(super) created_at: DateTime<Utc>,
}

pub(super) const COLUMNS: &str = "id, name, status, registered_at, expires_at, dns_records, sandbox_id, agent_id, \
    auto_renew, managed, contact_verified, verify_by, created_at";

impl From<DomainRead> for Domain {
    fn from(row: DomainRead) -> Self {
        Self {
            id: DomainId::from(row.id),
            name: row.name,
            status: row.status,
            registered_at: row.registered_at,
            expires_at: row.expires_at,
            dns_records: row.dns_records.0,
            sandbox_id: row.sandbox_id.map(SandboxId::from),
            agent_id: row.agent_id.map(AgentId::from),
            auto_renew: row.auto_renew,
            managed: row.managed,
            contact_verified: row.contact_verified,
            verify_by: row.verify_by,
        }
    }
}

/// Inserts a domain of an owner (none in open mode).
///
/// # Errors
/// [`StoreError::Taken`] when the name is there already.
pub async fn insert(tx: &mut Tx, domain: &Domain, owner: Option<Uuid>) -> Result<(), StoreError> {
    const SQL: &str = "INSERT INTO domains (id, name, status, registered_at, expires_at, dns_records, sandbox_id, \
        agent_id, auto_renew, managed, owner_id, created_at) \
        VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12)";
    let at = tx.at;
    on!(&mut tx.conn, |c| sqlx::query(SQL)
        .bind(domain.id.uuid())
        .bind(&domain.name)
        .bind(&domain.status)
        .bind(domain.registered_at)
        .bind(domain.expires_at)
        .bind(Json(&domain.dns_records))
        .bind(domain.sandbox_id.map(SandboxId::uuid))
        .bind(domain.agent_id.map(AgentId::uuid))
        .bind(domain.auto_renew)
        .bind(domain.managed)
        .bind(owner)
        .bind(at)
        .execute(c)
        .await?
        .rows_affected());
    Ok(())
}

/// Writes a domain's changeable columns.
///
/// # Errors
/// [`StoreError::Taken`] when the name is there already.
pub async fn update(tx: &mut Tx, domain: &Domain) -> Result<(), StoreError> {
    const SQL: &str = "UPDATE domains SET status = $2, registered_at = $3, expires_at = $4, dns_records = $5, \
        sandbox_id = $6, agent_id = $7, auto_renew = $8 WHERE id = $1";
    on!(&mut tx.conn, |c| sqlx::query(SQL)
        .bind(domain.id.uuid())
        .bind(&domain.status)
        .bind(domain.registered_at)
        .bind(domain.expires_at)
        .bind(Json(&domain.dns_records))
        .bind(domain.sandbox_id.map(SandboxId::uuid))
        .bind(domain.agent_id.map(AgentId::uuid))
        .bind(domain.auto_renew)
        .execute(c)
        .await?
        .rows_affected());
    Ok(())
}

/// Keeps others from changing a domain until the end of the transaction. (SQLite has one writer.)
///
/// # Errors
/// [`StoreError`] when the database refuses or is away.
pub async fn lock(tx: &mut Tx, id: Uuid) -> Result<(), StoreError> {
    const PG: &str = "SELECT 1 FROM domains WHERE id = $1 FOR NO KEY UPDATE";
    if tx.conn.is_postgres() {
        on!(&mut tx.conn, |c| sqlx::query(PG).bind(id).execute(c).await?.rows_affected());
    }
    Ok(())
}

/// One domain and its owner.
///
/// # Errors
/// [`StoreError`] when the database refuses or is away.
pub async fn domain(conn: &mut Conn, id: Uuid) -> Result<Option<(Domain, Option<Uuid>)>, StoreError> {
    const SQL: &str = "SELECT id, name, status, registered_at, expires_at, dns_records, sandbox_id, agent_id, \
        auto_renew, managed, contact_verified, verify_by, created_at FROM domains WHERE id = $1";
    const OWNER: &str = "SELECT owner_id FROM domains WHERE id = $1";
    let row: Option<DomainRead> = on!(&mut *conn, |c| sqlx::query_as(SQL).bind(id).fetch_optional(c).await?);
    let Some(row) = row else { return Ok(None) };
    let owner: Option<Option<Uuid>> =
        on!(conn, |c| sqlx::query_scalar(OWNER).bind(id).fetch_optional(c).await?);
    Ok(Some((Domain::from(row), owner.flatten())))
}

/// Puts a bought domain in the place of whatever was recorded under its name.
///
/// # Errors
/// [`StoreError`] when the database refuses or is away.
pub async fn take_over(
    tx: &mut Tx,
    domain: &Domain,
    owner: Option<Uuid>,
    purchase: Uuid,
    renewal_price: Option<i64>,
) -> Result<(), StoreError> {
    const GONE: &str = "DELETE FROM domains WHERE name = $1";
    const SQL: &str = "UPDATE domains SET purchase_id = $2, renewal_price = $3 WHERE id = $1";
    on!(&mut tx.conn, |c| sqlx::query(GONE).bind(&domain.name).execute(c).await?.rows_affected());
    insert(tx, domain, owner).await?;
    on!(&mut tx.conn, |c| sqlx::query(SQL)
        .bind(domain.id.uuid())
        .bind(purchase)
        .bind(renewal_price)
        .execute(c)
        .await?
        .rows_affected());
    Ok(())
}

/// The managed domain of a name, its owner, and what a renewal cost when it was bought (micro-USDC).
///
/// # Errors
/// [`StoreError`] when the database refuses or is away.
pub async fn managed(
    conn: &mut Conn,
    name: &str,
) -> Result<Option<(Domain, Option<Uuid>, Option<i64>)>, StoreError> {
    const SQL: &str = "SELECT id, owner_id, renewal_price FROM domains WHERE name = $1 AND managed";
    let row: Option<(Uuid, Option<Uuid>, Option<i64>)> =
        on!(&mut *conn, |c| sqlx::query_as(SQL).bind(name).fetch_optional(c).await?);
    let Some((id, owner, renewal_price)) = row else { return Ok(None) };
    let found = domain(conn, id).await?;
    Ok(found.map(|(domain, _)| (domain, owner, renewal_price)))
}

/// Notes a managed domain's renewal; `None` when there is no such domain.
///
/// # Errors
/// [`StoreError`] when the database refuses or is away.
pub async fn renewed(tx: &mut Tx, name: &str, expires_at: DateTime<Utc>) -> Result<Option<Uuid>, StoreError> {
    const SQL: &str =
        "UPDATE domains SET expires_at = $2, status = 'active' WHERE name = $1 AND managed RETURNING id";
    Ok(on!(&mut tx.conn, |c| sqlx::query_scalar(SQL).bind(name).bind(expires_at).fetch_optional(c).await?))
}

/// Changes what a managed domain's row says of its zone; nothing when there is no such domain.
///
/// # Errors
/// [`StoreError`] when the database refuses or is away.
pub async fn change_records(
    tx: &mut Tx,
    name: &str,
    change: impl FnOnce(&mut Vec<DnsRecord>) + Send,
) -> Result<(), StoreError> {
    const LITE: &str = "SELECT dns_records FROM domains WHERE name = $1 AND managed";
    const PG: &str = "SELECT dns_records FROM domains WHERE name = $1 AND managed FOR NO KEY UPDATE";
    const SQL: &str = "UPDATE domains SET dns_records = $2 WHERE name = $1 AND managed";
    let sql = if tx.conn.is_postgres() { PG } else { LITE };
    let found: Option<Json<Vec<DnsRecord>>> =
        on!(&mut tx.conn, |c| sqlx::query_scalar(sql).bind(name).fetch_optional(c).await?);
    let Some(Json(mut records)) = found else { return Ok(()) };
    let before = records.clone();
    change(&mut records);
    if records == before {
        return Ok(());
    }
    on!(&mut tx.conn, |c| sqlx::query(SQL).bind(name).bind(Json(&records)).execute(c).await?.rows_affected());
    Ok(())
}
