//! API keys.

use chrono::{DateTime, Utc};
use otonix_sdk::api::keys::{Key, KeyKind};
use otonix_sdk::ids::{AgentId, KeyId, OwnerId};
use sqlx::FromRow;
use uuid::Uuid;

use crate::store::writer::Tx;
use crate::store::{Conn, StoreError, on};

/// What a presented key is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct KnownKey {
    pub id: KeyId,
    pub owner: OwnerId,
    pub kind: KeyKind,
    /// The one agent of a key of kind `agent`.
    pub agent: Option<AgentId>,
    pub revoked: bool,
}

#[derive(FromRow)]
struct KnownRow {
    id: Uuid,
    owner_id: Uuid,
    kind: String,
    agent_id: Option<Uuid>,
    status: String,
}

fn kind_of(text: &str) -> Result<KeyKind, StoreError> {
    match text {
        "owner" => Ok(KeyKind::Owner),
        "agent" => Ok(KeyKind::Agent),
        _ => Err(StoreError::Corrupt { table: "api_keys", column: "kind" }),
    }
}

impl TryFrom<KnownRow> for KnownKey {
    type Error = StoreError;

    fn try_from(row: KnownRow) -> Result<Self, StoreError> {
        Ok(Self {
            id: KeyId::from(row.id),
            owner: OwnerId::from(row.owner_id),
            kind: kind_of(&row.kind)?,
            agent: row.agent_id.map(AgentId::from),
            revoked: row.status != "active",
        })
    }
}

/// The key of a SHA-256 in hex.
///
/// # Errors
/// [`StoreError`] when the database refuses or is away.
pub async fn by_hash(conn: &mut Conn, hash: &str) -> Result<Option<KnownKey>, StoreError> {
    const SQL: &str = "SELECT id, owner_id, kind, agent_id, status FROM api_keys WHERE key_hash = $1";
    let row: Option<KnownRow> = on!(conn, |c| sqlx::query_as(SQL).bind(hash).fetch_optional(c).await?);
    row.map(KnownKey::try_from).transpose()
}

/// The key of an id, inside a transaction.
///
/// # Errors
/// [`StoreError`] when the database refuses or is away.
pub async fn by_id(tx: &mut Tx, id: Uuid) -> Result<Option<KnownKey>, StoreError> {
    const SQL: &str = "SELECT id, owner_id, kind, agent_id, status FROM api_keys WHERE id = $1";
    let row: Option<KnownRow> = on!(&mut tx.conn, |c| sqlx::query_as(SQL).bind(id).fetch_optional(c).await?);
    row.map(KnownKey::try_from).transpose()
}

/// A new key.
#[derive(Debug, Clone)]
pub struct NewKeyRow {
    pub id: Uuid,
    pub masked: String,
    pub hash: String,
    pub prefix: String,
    pub name: String,
    pub owner_wallet: Option<String>,
    pub owner: Uuid,
    pub kind: KeyKind,
    pub agent: Option<Uuid>,
    pub made_by: Option<Uuid>,
}

/// Inserts a key.
///
/// # Errors
/// [`StoreError`] when the database refuses or is away.
pub async fn insert(tx: &mut Tx, key: &NewKeyRow) -> Result<(), StoreError> {
    const SQL: &str = "INSERT INTO api_keys (id, key, key_hash, key_prefix, name, owner_wallet, owner_id, kind, \
        agent_id, made_by, agent_count, status, created_at) VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, 0, \
        'active', $11)";
    let at = tx.at;
    on!(&mut tx.conn, |c| sqlx::query(SQL)
        .bind(key.id)
        .bind(&key.masked)
        .bind(&key.hash)
        .bind(&key.prefix)
        .bind(&key.name)
        .bind(&key.owner_wallet)
        .bind(key.owner)
        .bind(key.kind.as_str())
        .bind(key.agent)
        .bind(key.made_by)
        .bind(at)
        .execute(c)
        .await?
        .rows_affected());
    Ok(())
}

/// Makes an owner.
///
/// # Errors
/// [`StoreError`] when the database refuses or is away.
pub async fn insert_owner(tx: &mut Tx, id: Uuid) -> Result<(), StoreError> {
    const SQL: &str = "INSERT INTO owners (id, created_at) VALUES ($1, $2)";
    let at = tx.at;
    on!(&mut tx.conn, |c| sqlx::query(SQL).bind(id).bind(at).execute(c).await?.rows_affected());
    Ok(())
}

/// Locks an owner until the transaction ends; tells whether it exists.
///
/// # Errors
/// [`StoreError`] when the database refuses or is away.
pub async fn lock_owner(tx: &mut Tx, id: Uuid) -> Result<bool, StoreError> {
    const PG: &str = "SELECT 1 FROM owners WHERE id = $1 FOR NO KEY UPDATE";
    const LITE: &str = "SELECT 1 FROM owners WHERE id = $1";
    let sql = if tx.conn.is_postgres() { PG } else { LITE };
    let rows = on!(&mut tx.conn, |c| sqlx::query(sql).bind(id).fetch_all(c).await?.len());
    Ok(rows == 1)
}

/// How many active keys of its own an owner has; those of its agents are not counted.
///
/// # Errors
/// [`StoreError`] when the database refuses or is away.
pub async fn active_count(tx: &mut Tx, owner: Uuid) -> Result<i64, StoreError> {
    const SQL: &str =
        "SELECT count(*) FROM api_keys WHERE owner_id = $1 AND status = 'active' AND kind = 'owner'";
    Ok(on!(&mut tx.conn, |c| sqlx::query_scalar(SQL).bind(owner).fetch_one(c).await?))
}

/// Revokes an active key; tells whether it was active.
///
/// # Errors
/// [`StoreError`] when the database refuses or is away.
pub async fn revoke(tx: &mut Tx, id: Uuid) -> Result<bool, StoreError> {
    const SQL: &str =
        "UPDATE api_keys SET status = 'revoked', revoked_at = $2 WHERE id = $1 AND status = 'active'";
    let at = tx.at;
    Ok(on!(&mut tx.conn, |c| sqlx::query(SQL).bind(id).bind(at).execute(c).await?.rows_affected()) == 1)
}

/// The keys that a key made.
///
/// # Errors
/// [`StoreError`] when the database refuses or is away.
pub async fn made_by(tx: &mut Tx, id: Uuid) -> Result<Vec<Uuid>, StoreError> {
    const SQL: &str = "SELECT id FROM api_keys WHERE made_by = $1";
    Ok(on!(&mut tx.conn, |c| sqlx::query_scalar(SQL).bind(id).fetch_all(c).await?))
}

/// The active keys of one agent's own.
///
/// # Errors
/// [`StoreError`] when the database refuses or is away.
pub async fn of_agent(tx: &mut Tx, agent: Uuid) -> Result<Vec<Uuid>, StoreError> {
    const SQL: &str = "SELECT id FROM api_keys WHERE agent_id = $1 AND kind = 'agent' AND status = 'active'";
    Ok(on!(&mut tx.conn, |c| sqlx::query_scalar(SQL).bind(agent).fetch_all(c).await?))
}

/// Keys revoked since a time: what other replicas did.
///
/// # Errors
/// [`StoreError`] when the database refuses or is away.
pub async fn revoked_since(conn: &mut Conn, since: DateTime<Utc>) -> Result<Vec<Uuid>, StoreError> {
    const SQL: &str = "SELECT id FROM api_keys WHERE revoked_at IS NOT NULL AND revoked_at >= $1";
    Ok(on!(conn, |c| sqlx::query_scalar(SQL).bind(since).fetch_all(c).await?))
}

/// Counts an agent to another key than before.
///
/// # Errors
/// [`StoreError`] when the database refuses or is away.
pub async fn move_agent(tx: &mut Tx, from: Option<Uuid>, to: Option<Uuid>) -> Result<(), StoreError> {
    const SQL: &str = "UPDATE api_keys SET agent_count = agent_count + $2 WHERE id = $1";
    for (key, by) in [(from, -1_i64), (to, 1)] {
        if let Some(key) = key {
            on!(&mut tx.conn, |c| sqlx::query(SQL).bind(key).bind(by).execute(c).await?.rows_affected());
        }
    }
    Ok(())
}

#[derive(FromRow)]
pub(super) struct KeyRead {
    pub(super) id: Uuid,
    key: String,
    key_prefix: String,
    name: String,
    owner_wallet: Option<String>,
    owner_id: Uuid,
    kind: String,
    agent_count: i64,
    status: String,
    pub(super) created_at: DateTime<Utc>,
}

pub(super) const COLUMNS: &str =
    "id, key, key_prefix, name, owner_wallet, owner_id, kind, agent_count, status, created_at";

impl TryFrom<KeyRead> for Key {
    type Error = StoreError;

    fn try_from(row: KeyRead) -> Result<Self, StoreError> {
        Ok(Self {
            id: KeyId::from(row.id),
            key: row.key,
            key_prefix: row.key_prefix,
            name: row.name,
            kind: kind_of(&row.kind)?,
            owner_id: OwnerId::from(row.owner_id),
            owner_wallet: row.owner_wallet,
            agent_count: row.agent_count,
            status: row.status,
            created_at: row.created_at,
        })
    }
}
