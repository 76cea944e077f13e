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
