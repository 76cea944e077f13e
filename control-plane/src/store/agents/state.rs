//! The part of an agent that decisions are made from: read, locked, settled and written.

use chrono::{DateTime, Utc};
use otonix_sdk::ids::{AgentId, KeyId, OwnerId};
use otonix_sdk::money::MicroUsd;
use otonix_sdk::standing::{AgentStatus, SurvivalTier, Thresholds, standing};
use sqlx::FromRow;
use uuid::Uuid;

use crate::store::sql::{hex_id, ids_json, json, name};
use crate::store::writer::Tx;
use crate::store::{Conn, StoreError};

/// The part of an agent that decisions are made from; small, so that it can be cached for whole fleets.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct AgentState {
    pub id: AgentId,
    pub owner: OwnerId,
    pub api_key: Option<KeyId>,
    pub credits: MicroUsd,
    pub funded: bool,
    pub grace_until: Option<DateTime<Utc>>,
    pub tier: SurvivalTier,
    pub status: AgentStatus,
    /// Effective, seconds.
    pub interval: u32,
    pub killed: bool,
    pub version: i64,
    pub session: Option<Uuid>,
    pub last_heartbeat: Option<DateTime<Utc>>,
}

#[derive(FromRow)]
pub(super) struct StateRow {
    id: Uuid,
    owner_id: Uuid,
    api_key_id: Option<Uuid>,
    credits: i64,
    funded: bool,
    grace_until: Option<DateTime<Utc>>,
    survival_tier: String,
    status: String,
    heartbeat_interval: i64,
    interval_override: Option<i64>,
    killed_at: Option<DateTime<Utc>>,
    version: i64,
    session_id: Option<Uuid>,
    last_heartbeat: Option<DateTime<Utc>>,
}

impl TryFrom<StateRow> for AgentState {
    type Error = StoreError;

    fn try_from(row: StateRow) -> Result<Self, StoreError> {
        let interval = row.interval_override.unwrap_or(row.heartbeat_interval);
        Ok(Self {
            id: AgentId::from(row.id),
            owner: OwnerId::from(row.owner_id),
            api_key: row.api_key_id.map(KeyId::from),
            credits: MicroUsd::from_micros(row.credits),
            funded: row.funded,
            grace_until: row.grace_until,
            tier: name("agents", "survival_tier", &row.survival_tier)?,
            status: name("agents", "status", &row.status)?,
            interval: u32::try_from(interval)
                .map_err(|_| StoreError::Corrupt { table: "agents", column: "heartbeat_interval" })?,
            killed: row.killed_at.is_some(),
            version: row.version,
            session: row.session_id,
            last_heartbeat: row.last_heartbeat,
        })
    }
}

impl AgentState {
    /// Puts tier and status where they belong at a time; tells whether anything changed.
    pub fn settle(&mut self, now: DateTime<Utc>, thresholds: &Thresholds) -> bool {
        let tier = if self.killed {
            SurvivalTier::Terminated
        } else {
            standing(self.credits, self.funded, self.grace_until, now, thresholds)
        };
        let status = match (tier, self.status) {
            (SurvivalTier::Terminated, _) => AgentStatus::Terminated,
            // Revived: active from its next heartbeat on.
            (_, AgentStatus::Terminated) => AgentStatus::Inactive,
            (_, status) => status,
        };
        let changed = (tier, status) != (self.tier, self.status);
        (self.tier, self.status) = (tier, status);
        changed
    }
}

pub(super) fn states(rows: Vec<StateRow>) -> Result<Vec<AgentState>, StoreError> {
    rows.into_iter().map(AgentState::try_from).collect()
}

/// The cached part of some agents.
///
/// # Errors
/// [`StoreError`] when the database refuses or is away.
pub async fn states_of(conn: &mut Conn, ids: &[Uuid]) -> Result<Vec<AgentState>, StoreError> {
    states(select_states(conn, ids, false).await?)
}

/// The same, locked until the transaction ends, in the order of their ids so that writers cannot deadlock.
///
/// # Errors
/// [`StoreError`] when the database refuses or is away.
pub async fn lock_states(tx: &mut Tx, ids: &[Uuid]) -> Result<Vec<AgentState>, StoreError> {
    states(select_states(&mut tx.conn, ids, true).await?)
}

/// One agent, locked until the transaction ends. To be asked for before anything of the agent is written: what the
/// lane locked and read for a job is not read again.
///
/// # Errors
/// [`StoreError`] when the database refuses or is away.
pub async fn lock_state(tx: &mut Tx, id: Uuid) -> Result<Option<AgentState>, StoreError> {
    if let Some(at) = tx.locked.iter().position(|state| state.id.uuid() == id) {
        let state = tx.locked.swap_remove(at);
        #[cfg(debug_assertions)]
        assert_eq!(
            lock_states(tx, &[id]).await?.pop(),
            Some(state),
            "an agent was written before it was read"
        );
        return Ok(Some(state));
    }
    Ok(lock_states(tx, &[id]).await?.pop())
}

async fn select_states(conn: &mut Conn, ids: &[Uuid], lock: bool) -> Result<Vec<StateRow>, StoreError> {
    const PG: &str = "SELECT id, owner_id, api_key_id, credits, funded, grace_until, survival_tier, status, \
        heartbeat_interval, interval_override, killed_at, version, session_id, last_heartbeat \
        FROM agents WHERE id = ANY($1)";
    const PG_LOCK: &str = "SELECT id, owner_id, api_key_id, credits, funded, grace_until, survival_tier, status, \
        heartbeat_interval, interval_override, killed_at, version, session_id, last_heartbeat \
        FROM agents WHERE id = ANY($1) ORDER BY id FOR NO KEY UPDATE";
    // PostgreSQL would plan a list of one anew each time.
    const PG_LOCK_ONE: &str = "SELECT id, owner_id, api_key_id, credits, funded, grace_until, survival_tier, \
        status, heartbeat_interval, interval_override, killed_at, version, session_id, last_heartbeat \
        FROM agents WHERE id = $1 FOR NO KEY UPDATE";
    const LITE: &str = "SELECT id, owner_id, api_key_id, credits, funded, grace_until, survival_tier, status, \
        heartbeat_interval, interval_override, killed_at, version, session_id, last_heartbeat \
        FROM agents WHERE id IN (SELECT unhex(value) FROM json_each($1))";
    if let (Conn::Postgres(c), [id], true) = (&mut *conn, ids, lock) {
        return Ok(sqlx::query_as(PG_LOCK_ONE).bind(id).fetch_all(c).await?);
    }
    Ok(match conn {
        Conn::Postgres(c) => sqlx::query_as(if lock { PG_LOCK } else { PG }).bind(ids).fetch_all(c).await?,
        Conn::PostgresPooled(c) => {
            sqlx::query_as(if lock { PG_LOCK } else { PG }).bind(ids).fetch_all(&mut **c).await?
        }
        Conn::Sqlite(c) => sqlx::query_as(LITE).bind(ids_json(ids)).fetch_all(c).await?,
        Conn::SqlitePooled(c) => sqlx::query_as(LITE).bind(ids_json(ids)).fetch_all(&mut **c).await?,
    })
}

/// Writes what [`AgentState`] says of locked agents; raises their versions.
///
/// # Errors
/// [`StoreError`] when the database refuses or is away.
pub async fn write_states(tx: &mut Tx, changes: &mut [AgentState]) -> Result<(), StoreError> {
    const PG: &str = "UPDATE agents a SET credits = c.credits, funded = c.funded, survival_tier = c.tier, \
        status = c.status, session_id = c.session, version = c.version \
        FROM UNNEST($1::uuid[], $2::bigint[], $3::boolean[], $4::text[], $5::text[], $6::uuid[], \
        $7::bigint[]) AS c(id, credits, funded, tier, status, session, version) WHERE a.id = c.id";
    const LITE: &str = "UPDATE agents SET credits = c.value->>1, funded = c.value->>2, survival_tier = c.value->>3, \
        status = c.value->>4, session_id = unhex(c.value->>5), version = c.value->>6 FROM json_each($1) c WHERE agents.id = unhex(c.value->>0)";
    if changes.is_empty() {
        return Ok(());
    }
    for state in changes.iter_mut() {
        state.version += 1;
    }
    match &mut tx.conn {
        Conn::Postgres(c) => {
            sqlx::query(PG)
                .bind(changes.iter().map(|s| s.id.uuid()).collect::<Vec<_>>())
                .bind(changes.iter().map(|s| s.credits.micros()).collect::<Vec<_>>())
                .bind(changes.iter().map(|s| s.funded).collect::<Vec<_>>())
                .bind(changes.iter().map(|s| s.tier.as_str()).collect::<Vec<_>>())
                .bind(changes.iter().map(|s| s.status.as_str()).collect::<Vec<_>>())
                .bind(changes.iter().map(|s| s.session).collect::<Vec<_>>())
                .bind(changes.iter().map(|s| s.version).collect::<Vec<_>>())
                .execute(c)
                .await?;
        }
        Conn::Sqlite(c) => {
            let rows: Vec<_> = changes
                .iter()
                .map(|s| {
                    let session = s.session.map(hex_id);
                    (
                        hex_id(s.id.uuid()),
                        s.credits.micros(),
                        i64::from(s.funded),
                        s.tier.as_str(),
                        s.status.as_str(),
                        session,
                        s.version,
                    )
                })
                .collect();
            sqlx::query(LITE).bind(json(&rows)).execute(c).await?;
        }
        Conn::SqlitePooled(_) | Conn::PostgresPooled(_) => {}
    }
    tx.changed.extend_from_slice(changes);
    Ok(())
}
