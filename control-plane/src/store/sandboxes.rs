//! Sandboxes.

use chrono::{DateTime, Utc};
use otonix_sdk::api::records::Sandbox;
use otonix_sdk::ids::{AgentId, SandboxId};
use sqlx::FromRow;
use sqlx::types::Json;
use uuid::Uuid;

use crate::store::writer::Tx;
use crate::store::{Conn, StoreError, on};

#[derive(FromRow)]
pub(super) struct SandboxRead {
    pub(super) id: Uuid,
    name: String,
    status: String,
    os: Option<String>,
    cpu: Option<i64>,
    memory: Option<i64>,
    disk: Option<i64>,
    region: Option<String>,
    ip_address: Option<String>,
    ports: Json<Vec<u16>>,
    agent_id: Option<Uuid>,
    managed: bool,
    paid_until: Option<DateTime<Utc>>,
    pub(super) created_at: DateTime<Utc>,
}

pub(super) const COLUMNS: &str = "id, name, status, os, cpu, memory, disk, region, ip_address, ports, agent_id, \
    managed, paid_until, created_at";

fn small(number: Option<i64>) -> Option<i32> {
    number.and_then(|number| i32::try_from(number).ok())
}

impl From<SandboxRead> for Sandbox {
    fn from(row: SandboxRead) -> Self {
        Self {
            id: SandboxId::from(row.id),
            name: row.name,
            status: row.status,
            os: row.os,
            cpu: small(row.cpu),
            memory: small(row.memory),
            disk: small(row.disk),
            region: row.region,
            ip_address: row.ip_address,
            ports: row.ports.0,
            agent_id: row.agent_id.map(AgentId::from),
            managed: row.managed,
            paid_until: row.paid_until,
            created_at: row.created_at,
        }
    }
}

/// Inserts a sandbox of an owner (none in open mode).
///
/// # Errors
/// [`StoreError`] when the database refuses or is away.
pub async fn insert(tx: &mut Tx, sandbox: &Sandbox, owner: Option<Uuid>) -> Result<(), StoreError> {
    const SQL: &str = "INSERT INTO sandboxes (id, name, status, os, cpu, memory, disk, region, ip_address, ports, \
        agent_id, owner_id, managed, paid_until, created_at) \
        VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14, $15)";
    on!(&mut tx.conn, |c| sqlx::query(SQL)
        .bind(sandbox.id.uuid())
        .bind(&sandbox.name)
        .bind(&sandbox.status)
        .bind(&sandbox.os)
        .bind(sandbox.cpu.map(i64::from))
        .bind(sandbox.memory.map(i64::from))
        .bind(sandbox.disk.map(i64::from))
        .bind(&sandbox.region)
        .bind(&sandbox.ip_address)
        .bind(Json(&sandbox.ports))
        .bind(sandbox.agent_id.map(AgentId::uuid))
        .bind(owner)
        .bind(sandbox.managed)
        .bind(sandbox.paid_until)
        .bind(sandbox.created_at)
        .execute(c)
        .await?
        .rows_affected());
    Ok(())
}

/// One sandbox and its owner.
///
/// # Errors
/// [`StoreError`] when the database refuses or is away.
pub async fn sandbox(conn: &mut Conn, id: Uuid) -> Result<Option<(Sandbox, Option<Uuid>)>, StoreError> {
    const SQL: &str = "SELECT id, name, status, os, cpu, memory, disk, region, ip_address, ports, agent_id, managed, \
        paid_until, created_at FROM sandboxes WHERE id = $1";
    const OWNER: &str = "SELECT owner_id FROM sandboxes WHERE id = $1";
    let row: Option<SandboxRead> =
        on!(&mut *conn, |c| sqlx::query_as(SQL).bind(id).fetch_optional(c).await?);
    let Some(row) = row else { return Ok(None) };
    let owner: Option<Option<Uuid>> =
        on!(conn, |c| sqlx::query_scalar(OWNER).bind(id).fetch_optional(c).await?);
    Ok(Some((Sandbox::from(row), owner.flatten())))
}

/// A managed server as the vendor has it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AtVendor {
    /// The purchase that brought it.
    pub purchase: Uuid,
    /// The vendor's id of it.
    pub vendor_id: String,
    /// The vendor's project that it is in.
    pub project_id: String,
    /// Slug of its plan.
    pub plan: String,
    /// How it is billed.
    pub cycle: String,
}

/// Inserts a bought server.
///
/// # Errors
/// [`StoreError::Taken`] when the vendor's server has a row already.
pub async fn insert_managed(
    tx: &mut Tx,
    sandbox: &Sandbox,
    owner: Option<Uuid>,
    at: &AtVendor,
) -> Result<(), StoreError> {
    const SQL: &str = "UPDATE sandboxes SET purchase_id = $2, vendor_id = $3, project_id = $4, plan = $5, cycle = $6 \
        WHERE id = $1";
    insert(tx, sandbox, owner).await?;
    on!(&mut tx.conn, |c| sqlx::query(SQL)
        .bind(sandbox.id.uuid())
        .bind(at.purchase)
        .bind(&at.vendor_id)
        .bind(&at.project_id)
        .bind(&at.plan)
        .bind(&at.cycle)
        .execute(c)
        .await?
        .rows_affected());
    Ok(())
}

#[derive(FromRow)]
struct AtVendorRead {
    id: Uuid,
    owner_id: Option<Uuid>,
    purchase_id: Option<Uuid>,
    vendor_id: Option<String>,
    project_id: Option<String>,
    plan: Option<String>,
    cycle: Option<String>,
}

impl AtVendorRead {
    fn split(self) -> (Uuid, Option<Uuid>, Option<AtVendor>) {
        let at = match (self.vendor_id, self.project_id, self.plan, self.cycle) {
            (Some(vendor_id), Some(project_id), Some(plan), Some(cycle)) => {
                let purchase = self.purchase_id.unwrap_or_default();
                Some(AtVendor { purchase, vendor_id, project_id, plan, cycle })
            }
            _ => None,
        };
        (self.id, self.owner_id, at)
    }
}

/// The managed server of a vendor's id, with its owner.
///
/// # Errors
/// [`StoreError`] when the database refuses or is away.
pub async fn managed(
    conn: &mut Conn,
    vendor_id: &str,
) -> Result<Option<(Sandbox, Option<Uuid>, AtVendor)>, StoreError> {
    const SQL: &str = "SELECT id, owner_id, purchase_id, vendor_id, project_id, plan, cycle FROM sandboxes \
        WHERE vendor_id = $1 AND managed";
    let row: Option<AtVendorRead> =
        on!(&mut *conn, |c| sqlx::query_as(SQL).bind(vendor_id).fetch_optional(c).await?);
    let Some((id, owner, Some(at))) = row.map(AtVendorRead::split) else { return Ok(None) };
    let found = sandbox(conn, id).await?;
    Ok(found.map(|(sandbox, _)| (sandbox, owner, at)))
}

/// Keeps others from changing a sandbox until the end of the transaction. (SQLite has one writer.)
///
/// # Errors
/// [`StoreError`] when the database refuses or is away.
pub async fn lock(tx: &mut Tx, id: Uuid) -> Result<(), StoreError> {
    const PG: &str = "SELECT 1 FROM sandboxes WHERE id = $1 FOR NO KEY UPDATE";
    if tx.conn.is_postgres() {
        on!(&mut tx.conn, |c| sqlx::query(PG).bind(id).execute(c).await?.rows_affected());
    }
    Ok(())
}

/// Sets until when a server is paid.
///
/// # Errors
/// [`StoreError`] when the database refuses or is away.
pub async fn set_paid_until(tx: &mut Tx, id: Uuid, until: DateTime<Utc>) -> Result<(), StoreError> {
    const SQL: &str = "UPDATE sandboxes SET paid_until = $2 WHERE id = $1 AND managed";
    on!(&mut tx.conn, |c| sqlx::query(SQL).bind(id).bind(until).execute(c).await?.rows_affected());
    Ok(())
}

/// A managed server that is not running yet.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Deploying {
    /// Its row.
    pub sandbox: Uuid,
    /// As the vendor has it.
    pub at: AtVendor,
    /// Since when the vendor does not know it.
    pub missing_since: Option<DateTime<Utc>>,
    /// When it was bought.
    pub created_at: DateTime<Utc>,
}

#[derive(FromRow)]
struct DeployingRead {
    #[sqlx(flatten)]
    at: AtVendorRead,
    missing_since: Option<DateTime<Utc>>,
    created_at: DateTime<Utc>,
}

/// Managed servers that are not running yet, longest waiting first.
///
/// # Errors
/// [`StoreError`] when the database refuses or is away.
pub async fn deploying(conn: &mut Conn, limit: i64) -> Result<Vec<Deploying>, StoreError> {
    const SQL: &str = "SELECT id, owner_id, purchase_id, vendor_id, project_id, plan, cycle, missing_since, created_at \
        FROM sandboxes WHERE managed AND status = 'deploying' AND vendor_id IS NOT NULL ORDER BY created_at, id LIMIT $1";
    let rows: Vec<DeployingRead> = on!(conn, |c| sqlx::query_as(SQL).bind(limit).fetch_all(c).await?);
    Ok(rows
        .into_iter()
        .filter_map(|row| {
            let (missing_since, created_at) = (row.missing_since, row.created_at);
            let (sandbox, _, at) = row.at.split();
            Some(Deploying { sandbox, at: at?, missing_since, created_at })
        })
        .collect())
}

/// Notes since when the vendor does not know a new server, or that it does.
///
/// # Errors
/// [`StoreError`] when the database refuses or is away.
pub async fn note_missing(tx: &mut Tx, id: Uuid, since: Option<DateTime<Utc>>) -> Result<(), StoreError> {
    const SQL: &str = "UPDATE sandboxes SET missing_since = $2 WHERE id = $1 AND status = 'deploying'";
    on!(&mut tx.conn, |c| sqlx::query(SQL).bind(id).bind(since).execute(c).await?.rows_affected());
    Ok(())
}

/// A server that could not be installed is there after all, and runs.
///
/// # Errors
/// [`StoreError`] when the database refuses or is away.
pub async fn mended(tx: &mut Tx, id: Uuid, ip_address: Option<&str>) -> Result<(), StoreError> {
    const SQL: &str = "UPDATE sandboxes SET status = 'running', ip_address = COALESCE($2, ip_address) \
        WHERE id = $1 AND managed AND status = 'error'";
    on!(&mut tx.conn, |c| sqlx::query(SQL).bind(id).bind(ip_address).execute(c).await?.rows_affected());
    Ok(())
}

/// Notes that the owner of a managed server has turned it off, or on again: one that is off on purpose is not healed.
///
/// # Errors
/// [`StoreError`] when the database refuses or is away.
pub async fn turned(tx: &mut Tx, id: Uuid, on: bool) -> Result<(), StoreError> {
    const SQL: &str = "UPDATE sandboxes SET status = $2 WHERE id = $1 AND managed AND status = $3";
    let (after, before) = if on { ("running", "stopped") } else { ("stopped", "running") };
    on!(&mut tx.conn, |c| sqlx::query(SQL)
        .bind(id)
        .bind(after)
        .bind(before)
        .execute(c)
        .await?
        .rows_affected());
    Ok(())
}

/// Notes how the vendor has a managed server: only from `deploying` on, so that nothing later is overwritten.
///
/// # Errors
/// [`StoreError`] when the database refuses or is away.
pub async fn deployed(
    tx: &mut Tx,
    id: Uuid,
    status: &'static str,
    ip_address: Option<&str>,
) -> Result<bool, StoreError> {
    const SQL: &str = "UPDATE sandboxes SET status = $2, ip_address = COALESCE($3, ip_address) \
        WHERE id = $1 AND managed AND status = 'deploying'";
    let done = on!(&mut tx.conn, |c| sqlx::query(SQL)
        .bind(id)
        .bind(status)
        .bind(ip_address)
        .execute(c)
        .await?
        .rows_affected());
    Ok(done == 1)
}

/// A managed server, as far as it matters who may touch it.
#[derive(Debug, Clone, FromRow)]
pub struct ManagedServer {
    pub id: Uuid,
    pub name: String,
    pub vendor_id: String,
    #[sqlx(rename = "owner_id")]
    pub owner: Option<Uuid>,
    #[sqlx(rename = "agent_id")]
    pub agent: Option<Uuid>,
    pub paid_until: Option<DateTime<Utc>>,
}

/// The managed servers of a vendor's project.
///
/// # Errors
/// [`StoreError`] when the database refuses or is away.
pub async fn managed_in(conn: &mut Conn, project: &str) -> Result<Vec<ManagedServer>, StoreError> {
    const SQL: &str = "SELECT id, name, vendor_id, owner_id, agent_id, paid_until FROM sandboxes \
        WHERE project_id = $1 AND vendor_id IS NOT NULL AND managed";
    Ok(on!(conn, |c| sqlx::query_as(SQL).bind(project).fetch_all(c).await?))
}

/// The managed server of a vendor's id.
///
/// # Errors
/// [`StoreError`] when the database refuses or is away.
pub async fn managed_server(conn: &mut Conn, vendor_id: &str) -> Result<Option<ManagedServer>, StoreError> {
    const SQL: &str = "SELECT id, name, vendor_id, owner_id, agent_id, paid_until FROM sandboxes \
        WHERE vendor_id = $1 AND managed";
    Ok(on!(conn, |c| sqlx::query_as(SQL).bind(vendor_id).fetch_optional(c).await?))
}

/// A server is gone: its row stays as a record of it.
///
/// # Errors
/// [`StoreError`] when the database refuses or is away.
pub async fn release(tx: &mut Tx, id: Uuid) -> Result<(), StoreError> {
    const SQL: &str =
        "UPDATE sandboxes SET managed = FALSE, status = 'stopped', paid_until = NULL WHERE id = $1";
    on!(&mut tx.conn, |c| sqlx::query(SQL).bind(id).execute(c).await?.rows_affected());
    Ok(())
}
