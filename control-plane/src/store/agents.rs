//! Agents: the whole row, and what is asked and changed of it.

mod beats;
mod state;

use chrono::{DateTime, Utc};
use otonix_sdk::api::agents::Agent;
use otonix_sdk::ids::{AgentId, KeyId, OwnerId};
use otonix_sdk::money::MicroUsd;
use otonix_sdk::standing::{AgentStatus, SurvivalTier};
use sqlx::FromRow;
use uuid::Uuid;

pub use self::beats::{inactive_among, write_beats};
pub use self::state::{AgentState, lock_state, lock_states, states_of, write_states};
use crate::store::sql::{ids_json, name};
use crate::store::writer::Tx;
use crate::store::{Conn, StoreError, on};

/// A new agent.
#[derive(Debug, Clone)]
pub struct NewAgent {
    pub id: Uuid,
    pub name: String,
    pub tier: SurvivalTier,
    pub status: AgentStatus,
    pub wallet_address: Option<String>,
    pub wallet_proven: bool,
    pub genesis_prompt: Option<String>,
    pub model: String,
    pub heartbeat_interval: u32,
    pub api_key: Option<Uuid>,
    pub owner: Uuid,
    pub vps_ip: Option<String>,
    pub vps_ip_sent: bool,
    pub parent: Option<Uuid>,
    pub grace_until: Option<DateTime<Utc>>,
    /// How many ancestors it has.
    pub depth: i64,
    pub laws_sha256: Option<String>,
    pub tag: Option<String>,
}

/// Inserts an agent.
///
/// # Errors
/// [`StoreError::Taken`] when its proven wallet belongs to another.
pub async fn insert(tx: &mut Tx, agent: &NewAgent) -> Result<(), StoreError> {
    const SQL: &str = "INSERT INTO agents (id, name, status, survival_tier, credits, wallet_address, wallet_proven, \
        genesis_prompt, model, heartbeat_interval, api_key_id, owner_id, vps_ip, vps_ip_sent, total_actions, \
        children_count, parent_id, funded, grace_until, version, created_at, depth, laws_sha256, tag) \
        VALUES ($1, $2, $3, $4, 0, $5, $6, $7, $8, $9, $10, $11, $12, $13, 0, 0, $14, $15, $16, 1, $17, $18, $19, $20)";
    let at = tx.at;
    on!(&mut tx.conn, |c| {
        sqlx::query(SQL)
            .bind(agent.id)
            .bind(&agent.name)
            .bind(agent.status.as_str())
            .bind(agent.tier.as_str())
            .bind(&agent.wallet_address)
            .bind(agent.wallet_proven)
            .bind(&agent.genesis_prompt)
            .bind(&agent.model)
            .bind(i64::from(agent.heartbeat_interval))
            .bind(agent.api_key)
            .bind(agent.owner)
            .bind(&agent.vps_ip)
            .bind(agent.vps_ip_sent)
            .bind(agent.parent)
            .bind(false)
            .bind(agent.grace_until)
            .bind(at)
            .bind(agent.depth)
            .bind(&agent.laws_sha256)
            .bind(&agent.tag)
            .execute(c)
            .await?;
    });
    Ok(())
}

/// An agent of this owner and name, with what identifies it further.
#[derive(Debug, Clone, FromRow)]
pub struct Namesake {
    pub id: Uuid,
    pub vps_ip: Option<String>,
    pub vps_ip_sent: bool,
    pub wallet_address: Option<String>,
    pub wallet_proven: bool,
    pub api_key_id: Option<Uuid>,
}

/// The living agents of an owner with a name, oldest first.
///
/// # Errors
/// [`StoreError`] when the database refuses or is away.
pub async fn namesakes(tx: &mut Tx, owner: Uuid, name: &str) -> Result<Vec<Namesake>, StoreError> {
    const SQL: &str = "SELECT id, vps_ip, vps_ip_sent, wallet_address, wallet_proven, api_key_id FROM agents \
        WHERE owner_id = $1 AND name = $2 ORDER BY created_at, id LIMIT 1000";
    Ok(on!(&mut tx.conn, |c| sqlx::query_as(SQL).bind(owner).bind(name).fetch_all(c).await?))
}

/// What a repeated registration may change.
#[derive(Debug, Clone, Default)]
pub struct Refresh {
    pub model: Option<String>,
    pub heartbeat_interval: Option<u32>,
    pub vps_ip: Option<String>,
    pub api_key: Option<Uuid>,
    /// The agent's own address was shown to be its.
    pub prove_wallet: bool,
    /// The laws of an agent that has none.
    pub laws_sha256: Option<String>,
}

/// Applies a repeated registration.
///
/// # Errors
/// [`StoreError::Taken`] when the proven wallet belongs to another.
pub async fn refresh(tx: &mut Tx, id: Uuid, change: &Refresh) -> Result<(), StoreError> {
    const SQL: &str = "UPDATE agents SET model = COALESCE($2, model), \
        heartbeat_interval = COALESCE($3, heartbeat_interval), vps_ip = COALESCE($4, vps_ip), \
        vps_ip_sent = (vps_ip_sent OR $5), api_key_id = COALESCE($6, api_key_id), \
        wallet_proven = (wallet_proven OR $7), laws_sha256 = COALESCE(laws_sha256, $8), version = version + 1 \
        WHERE id = $1";
    on!(&mut tx.conn, |c| {
        sqlx::query(SQL)
            .bind(id)
            .bind(&change.model)
            .bind(change.heartbeat_interval.map(i64::from))
            .bind(&change.vps_ip)
            .bind(change.vps_ip.is_some())
            .bind(change.api_key)
            .bind(change.prove_wallet)
            .bind(&change.laws_sha256)
            .execute(c)
            .await?;
    });
    Ok(())
}

/// Sets or clears the interval that a command asked for.
///
/// # Errors
/// [`StoreError`] when the database refuses or is away.
pub async fn override_interval(tx: &mut Tx, id: Uuid, secs: Option<u32>) -> Result<(), StoreError> {
    const SQL: &str = "UPDATE agents SET interval_override = $2, version = version + 1 WHERE id = $1";
    on!(&mut tx.conn, |c| sqlx::query(SQL)
        .bind(id)
        .bind(secs.map(i64::from))
        .execute(c)
        .await?
        .rows_affected());
    Ok(())
}

/// Sets the model that a command asked for.
///
/// # Errors
/// [`StoreError`] when the database refuses or is away.
pub async fn set_model(tx: &mut Tx, id: Uuid, model: &str) -> Result<(), StoreError> {
    const SQL: &str = "UPDATE agents SET model = $2, version = version + 1 WHERE id = $1";
    on!(&mut tx.conn, |c| sqlx::query(SQL).bind(id).bind(model).execute(c).await?.rows_affected());
    Ok(())
}

/// Marks an agent killed.
///
/// # Errors
/// [`StoreError`] when the database refuses or is away.
pub async fn mark_killed(tx: &mut Tx, id: Uuid, reason: &str) -> Result<(), StoreError> {
    const SQL: &str = "UPDATE agents SET killed_at = $2, kill_reason = $3 WHERE id = $1";
    let at = tx.at;
    on!(&mut tx.conn, |c| sqlx::query(SQL).bind(id).bind(at).bind(reason).execute(c).await?.rows_affected());
    Ok(())
}

/// The children of some agents.
///
/// # Errors
/// [`StoreError`] when the database refuses or is away.
pub async fn children(tx: &mut Tx, parents: &[Uuid]) -> Result<Vec<Uuid>, StoreError> {
    const PG: &str = "SELECT id FROM agents WHERE parent_id = ANY($1) ORDER BY id";
    const LITE: &str =
        "SELECT id FROM agents WHERE parent_id IN (SELECT unhex(value) FROM json_each($1)) ORDER BY id";
    Ok(match &mut tx.conn {
        Conn::Postgres(c) => sqlx::query_scalar(PG).bind(parents).fetch_all(c).await?,
        Conn::Sqlite(c) => sqlx::query_scalar(LITE).bind(ids_json(parents)).fetch_all(c).await?,
        Conn::SqlitePooled(_) | Conn::PostgresPooled(_) => Vec::new(),
    })
}

/// What an agent hands down to its children.
#[derive(Debug, Clone, FromRow)]
pub struct Ancestry {
    pub depth: i64,
    pub laws_sha256: Option<String>,
    pub model: String,
    pub heartbeat_interval: i64,
    /// Its children that were not killed.
    pub living_children: i64,
}

/// What a locked agent hands down.
///
/// # Errors
/// [`StoreError`] when the database refuses or is away.
pub async fn ancestry(tx: &mut Tx, id: Uuid) -> Result<Option<Ancestry>, StoreError> {
    const SQL: &str = "SELECT depth, laws_sha256, model, heartbeat_interval, (SELECT count(*) FROM agents c \
        WHERE c.parent_id = agents.id AND c.killed_at IS NULL) AS living_children FROM agents WHERE id = $1";
    Ok(on!(&mut tx.conn, |c| sqlx::query_as(SQL).bind(id).fetch_optional(c).await?))
}

/// Counts one child more.
///
/// # Errors
/// [`StoreError`] when the database refuses or is away.
pub async fn add_child(tx: &mut Tx, parent: Uuid) -> Result<(), StoreError> {
    const SQL: &str = "UPDATE agents SET children_count = children_count + 1 WHERE id = $1";
    on!(&mut tx.conn, |c| sqlx::query(SQL).bind(parent).execute(c).await?.rows_affected());
    Ok(())
}

/// What an enrolment says of an agent.
#[derive(Debug, Clone)]
pub struct Enrolment {
    pub wallet_address: String,
    pub api_key: Uuid,
    pub vps_ip: String,
    pub vps_ip_sent: bool,
    pub model: Option<String>,
    pub heartbeat_interval: Option<u32>,
}

/// Gives an agent the machine that enrols; its wallet is proven.
///
/// # Errors
/// [`StoreError::Taken`] when the wallet belongs to another.
pub async fn enrol(tx: &mut Tx, id: Uuid, enrolment: &Enrolment) -> Result<(), StoreError> {
    const SQL: &str = "UPDATE agents SET wallet_address = $2, wallet_proven = true, api_key_id = $3, vps_ip = $4, \
        vps_ip_sent = $5, model = COALESCE($6, model), heartbeat_interval = COALESCE($7, heartbeat_interval), \
        version = version + 1 WHERE id = $1";
    on!(&mut tx.conn, |c| {
        sqlx::query(SQL)
            .bind(id)
            .bind(&enrolment.wallet_address)
            .bind(enrolment.api_key)
            .bind(&enrolment.vps_ip)
            .bind(enrolment.vps_ip_sent)
            .bind(&enrolment.model)
            .bind(enrolment.heartbeat_interval.map(i64::from))
            .execute(c)
            .await?;
    });
    Ok(())
}

/// Active agents after an id, for the liveness sweep.
///
/// # Errors
/// [`StoreError`] when the database refuses or is away.
pub async fn active_after(conn: &mut Conn, after: Uuid, limit: i64) -> Result<Vec<Heard>, StoreError> {
    const SQL: &str = "SELECT id, last_heartbeat, created_at, COALESCE(interval_override, heartbeat_interval) \
        AS interval_secs FROM agents WHERE id > $1 AND status = 'active' ORDER BY id LIMIT $2";
    Ok(on!(conn, |c| sqlx::query_as(SQL).bind(after).bind(limit).fetch_all(c).await?))
}

/// When an active agent was last heard.
#[derive(Debug, Clone, Copy, FromRow)]
pub struct Heard {
    pub id: Uuid,
    pub last_heartbeat: Option<DateTime<Utc>>,
    pub created_at: DateTime<Utc>,
    pub interval_secs: i64,
}

/// Agents whose grace is over and who were never funded.
///
/// # Errors
/// [`StoreError`] when the database refuses or is away.
pub async fn grace_over(conn: &mut Conn, now: DateTime<Utc>, limit: i64) -> Result<Vec<Uuid>, StoreError> {
    const SQL: &str = "SELECT id FROM agents WHERE NOT funded AND survival_tier <> 'terminated' \
        AND grace_until <= $1 ORDER BY grace_until LIMIT $2";
    Ok(on!(conn, |c| sqlx::query_scalar(SQL).bind(now).bind(limit).fetch_all(c).await?))
}

/// Agents linked to keys of an owner that has no active key left for them.
///
/// # Errors
/// [`StoreError`] when the database refuses or is away.
pub async fn without_key(tx: &mut Tx, owner: Uuid) -> Result<Vec<Uuid>, StoreError> {
    const SQL: &str = "SELECT a.id FROM agents a WHERE a.owner_id = $1 AND a.status = 'active' AND NOT EXISTS \
        (SELECT 1 FROM api_keys k WHERE k.owner_id = $1 AND k.status = 'active' \
        AND (k.kind = 'owner' OR k.agent_id = a.id)) ORDER BY a.id";
    Ok(on!(&mut tx.conn, |c| sqlx::query_scalar(SQL).bind(owner).fetch_all(c).await?))
}

/// Whether an agent still has a key: one of its own, one of its owner's, or the one that it was made with. One that
/// never had any is waiting for its machine.
///
/// # Errors
/// [`StoreError`] when the database refuses or is away.
pub async fn has_key(conn: &mut Conn, id: Uuid) -> Result<bool, StoreError> {
    const SQL: &str = "SELECT 1 FROM agents a WHERE a.id = $1 AND (a.api_key_id IS NULL OR EXISTS \
        (SELECT 1 FROM api_keys k WHERE k.status = 'active' AND (k.id = a.api_key_id \
        OR (k.owner_id = a.owner_id AND (k.kind = 'owner' OR k.agent_id = a.id)))))";
    Ok(on!(conn, |c| sqlx::query(SQL).bind(id).fetch_all(c).await?.len()) == 1)
}

#[derive(FromRow)]
pub(super) struct AgentRow {
    pub(super) id: Uuid,
    name: String,
    status: String,
    survival_tier: String,
    credits: i64,
    wallet_address: Option<String>,
    wallet_proven: bool,
    genesis_prompt: Option<String>,
    model: String,
    heartbeat_interval: i64,
    last_heartbeat: Option<DateTime<Utc>>,
    api_key_id: Option<Uuid>,
    owner_id: Uuid,
    vps_ip: Option<String>,
    total_actions: i64,
    children_count: i64,
    parent_id: Option<Uuid>,
    laws_sha256: Option<String>,
    tag: Option<String>,
    funded: bool,
    grace_until: Option<DateTime<Utc>>,
    killed_at: Option<DateTime<Utc>>,
    pub(super) created_at: DateTime<Utc>,
}

pub(super) const AGENT_COLUMNS: &str = "id, name, status, survival_tier, credits, wallet_address, wallet_proven, \
    genesis_prompt, model, heartbeat_interval, last_heartbeat, api_key_id, owner_id, vps_ip, \
    total_actions + COALESCE((SELECT CAST(SUM(s.actions) AS BIGINT) FROM streams s WHERE s.agent_id = agents.id), 0) \
    AS total_actions, children_count, parent_id, laws_sha256, tag, funded, grace_until, killed_at, created_at";

impl TryFrom<AgentRow> for Agent {
    type Error = StoreError;

    fn try_from(row: AgentRow) -> Result<Self, StoreError> {
        Ok(Self {
            id: AgentId::from(row.id),
            name: row.name,
            status: name("agents", "status", &row.status)?,
            survival_tier: name("agents", "survival_tier", &row.survival_tier)?,
            credits: MicroUsd::from_micros(row.credits),
            wallet_address: row.wallet_address,
            wallet_proven: row.wallet_proven,
            genesis_prompt: Some(row.genesis_prompt),
            model: row.model,
            heartbeat_interval: u32::try_from(row.heartbeat_interval).unwrap_or(u32::MAX),
            last_heartbeat: row.last_heartbeat,
            api_key_id: row.api_key_id.map(KeyId::from),
            owner_id: OwnerId::from(row.owner_id),
            vps_ip: row.vps_ip,
            total_actions: row.total_actions,
            actions_count: row.total_actions,
            children_count: row.children_count,
            parent_id: row.parent_id.map(AgentId::from),
            laws_sha256: row.laws_sha256,
            tag: row.tag,
            // The grace matters only until the first funding.
            grace_until: row.grace_until.filter(|_| !row.funded),
            funded: row.funded,
            killed_at: row.killed_at,
            created_at: row.created_at,
        })
    }
}

/// One agent, whole.
///
/// # Errors
/// [`StoreError`] when the database refuses or is away.
pub async fn agent(conn: &mut Conn, id: Uuid) -> Result<Option<Agent>, StoreError> {
    const SQL: &str = "SELECT id, name, status, survival_tier, credits, wallet_address, wallet_proven, \
        genesis_prompt, model, heartbeat_interval, last_heartbeat, api_key_id, owner_id, vps_ip, total_actions + \
        COALESCE((SELECT CAST(SUM(s.actions) AS BIGINT) FROM streams s WHERE s.agent_id = agents.id), 0) AS \
        total_actions, children_count, parent_id, laws_sha256, tag, funded, grace_until, killed_at, created_at \
        FROM agents WHERE id = $1";
    let row: Option<AgentRow> = on!(conn, |c| sqlx::query_as(SQL).bind(id).fetch_optional(c).await?);
    row.map(Agent::try_from).transpose()
}

/// The agent that a proven wallet belongs to, and its owner.
///
/// # Errors
/// [`StoreError`] when the database refuses or is away.
pub async fn by_proven_wallet(conn: &mut Conn, address: &str) -> Result<Option<(Uuid, Uuid)>, StoreError> {
    const SQL: &str = "SELECT id, owner_id FROM agents WHERE wallet_proven AND lower(wallet_address) = $1";
    let address = address.to_ascii_lowercase();
    Ok(on!(conn, |c| sqlx::query_as(SQL).bind(address).fetch_optional(c).await?))
}
