//! Commands: queued, delivered at least once, ended once.

use std::collections::HashMap;

use chrono::{DateTime, Utc};
use otonix_sdk::api::attached::Attached;
use otonix_sdk::api::commands::Command;
use otonix_sdk::ids::CommandId;
use serde_json::Value;
use sqlx::FromRow;
use sqlx::types::Json;
use uuid::Uuid;

use crate::store::sql::ids_json;
use crate::store::writer::{Notice, Tx};
use crate::store::{Conn, StoreError, agents, on};

/// Commands of one agent that may be open at once.
pub const MAX_OPEN: i64 = 100;

#[derive(FromRow)]
pub(super) struct CommandRead {
    agent_id: Uuid,
    pub(super) id: Uuid,
    kind: String,
    args: Json<Attached>,
    status: String,
    result: Option<String>,
    pub(super) created_at: DateTime<Utc>,
    expires_at: DateTime<Utc>,
}

pub(super) const COLUMNS: &str = "agent_id, id, kind, args, status, result, created_at, expires_at";

impl From<CommandRead> for Command {
    fn from(row: CommandRead) -> Self {
        Self {
            id: CommandId::from(row.id),
            kind: row.kind,
            args: row.args.0,
            status: row.status,
            created_at: row.created_at,
            expires_at: row.expires_at,
            result: row.result,
        }
    }
}

/// Queues a command.
///
/// # Errors
/// [`StoreError`] when the database refuses or is away.
pub async fn insert(tx: &mut Tx, agent: Uuid, command: &Command) -> Result<(), StoreError> {
    const SQL: &str = "INSERT INTO commands (agent_id, id, kind, args, status, created_at, expires_at) \
        VALUES ($1, $2, $3, $4, 'queued', $5, $6)";
    on!(&mut tx.conn, |c| sqlx::query(SQL)
        .bind(agent)
        .bind(command.id.uuid())
        .bind(&command.kind)
        .bind(Json(&command.args))
        .bind(command.created_at)
        .bind(command.expires_at)
        .execute(c)
        .await?
        .rows_affected());
    Ok(())
}

/// Whether a command of a kind was sent to an agent after a time.
///
/// # Errors
/// [`StoreError`] when the database refuses or is away.
pub async fn sent_since(tx: &mut Tx, agent: Uuid, kind: &str, at: DateTime<Utc>) -> Result<bool, StoreError> {
    const SQL: &str = "SELECT 1 FROM commands WHERE agent_id = $1 AND kind = $2 AND created_at > $3 LIMIT 1";
    let found =
        on!(&mut tx.conn, |c| sqlx::query(SQL).bind(agent).bind(kind).bind(at).fetch_all(c).await?.len());
    Ok(found > 0)
}

/// How many commands of an agent are open.
///
/// # Errors
/// [`StoreError`] when the database refuses or is away.
pub async fn open_count(tx: &mut Tx, agent: Uuid) -> Result<i64, StoreError> {
    const SQL: &str = "SELECT count(*) FROM commands WHERE agent_id = $1 AND status IN ('queued', 'delivered') \
        AND expires_at > $2";
    let at = tx.at;
    Ok(on!(&mut tx.conn, |c| sqlx::query_scalar(SQL).bind(agent).bind(at).fetch_one(c).await?))
}

/// The open commands of agents, marked as delivered; oldest first.
///
/// # Errors
/// [`StoreError`] when the database refuses or is away.
pub async fn deliver(tx: &mut Tx, agents: &[Uuid]) -> Result<HashMap<Uuid, Vec<Command>>, StoreError> {
    const PG: &str = "SELECT agent_id, id, kind, args, status, result, created_at, expires_at FROM commands \
        WHERE agent_id = ANY($1) AND status IN ('queued', 'delivered') AND expires_at > $2 ORDER BY created_at, id";
    const PG_MARK: &str = "UPDATE commands SET status = 'delivered' WHERE agent_id = ANY($1) AND status = 'queued' \
        AND expires_at > $2";
    const LITE: &str = "SELECT agent_id, id, kind, args, status, result, created_at, expires_at FROM commands \
        WHERE agent_id IN (SELECT unhex(value) FROM json_each($1)) AND status IN ('queued', 'delivered') \
        AND expires_at > $2 ORDER BY created_at, id";
    const LITE_MARK: &str = "UPDATE commands SET status = 'delivered' WHERE agent_id IN \
        (SELECT unhex(value) FROM json_each($1)) AND status = 'queued' AND expires_at > $2";
    let rows: Vec<CommandRead> = match &mut tx.conn {
        Conn::Postgres(c) => sqlx::query_as(PG).bind(agents).bind(tx.at).fetch_all(c).await?,
        Conn::Sqlite(c) => sqlx::query_as(LITE).bind(ids_json(agents)).bind(tx.at).fetch_all(c).await?,
        Conn::SqlitePooled(_) | Conn::PostgresPooled(_) => Vec::new(),
    };
    if rows.iter().any(|row| row.status == "queued") {
        match &mut tx.conn {
            Conn::Postgres(c) => {
                sqlx::query(PG_MARK).bind(agents).bind(tx.at).execute(c).await?.rows_affected()
            }
            Conn::Sqlite(c) => {
                sqlx::query(LITE_MARK).bind(ids_json(agents)).bind(tx.at).execute(c).await?.rows_affected()
            }
            Conn::SqlitePooled(_) | Conn::PostgresPooled(_) => 0,
        };
    }
    let mut open: HashMap<Uuid, Vec<Command>> = HashMap::new();
    for row in rows {
        open.entry(row.agent_id).or_default().push(Command::from(row));
    }
    for command in open.values_mut().flatten() {
        command.status = "delivered".to_owned();
    }
    Ok(open)
}

/// Which of some agents have commands that were never delivered.
///
/// # Errors
/// [`StoreError`] when the database refuses or is away.
pub async fn waiting(conn: &mut Conn, now: DateTime<Utc>, limit: i64) -> Result<Vec<Uuid>, StoreError> {
    const SQL: &str =
        "SELECT DISTINCT agent_id FROM commands WHERE status = 'queued' AND expires_at > $1 LIMIT $2";
    Ok(on!(conn, |c| sqlx::query_scalar(SQL).bind(now).bind(limit).fetch_all(c).await?))
}

/// Ends a command with what its daemon says; the first word counts. One whose time is over stays expired, and keeps
/// what the daemon says: it was shown as expired, and that is not taken back. What a command changed on the machine
/// (interval, model) is changed here too, however late the word of it comes.
///
/// # Errors
/// [`StoreError`] when the database refuses or is away.
pub async fn finish(tx: &mut Tx, agent: Uuid, id: Uuid, ok: bool, says: &str) -> Result<(), StoreError> {
    const SQL: &str = "UPDATE commands SET status = CASE WHEN status = 'expired' OR expires_at <= $5 \
        THEN 'expired' ELSE $3 END, result = $4 WHERE agent_id = $1 AND id = $2 \
        AND status NOT IN ('done', 'failed') AND result IS NULL RETURNING kind, args";
    let at = tx.at;
    let status = if ok { "done" } else { "failed" };
    let ended: Option<(String, Json<Attached>)> = on!(&mut tx.conn, |c| sqlx::query_as(SQL)
        .bind(agent)
        .bind(id)
        .bind(status)
        .bind(says)
        .bind(at)
        .fetch_optional(c)
        .await?);
    let Some((kind, Json(args))) = ended.filter(|_| ok) else { return Ok(()) };
    let args = args.fields();
    match kind.as_str() {
        "set_interval" => {
            let secs = args.get("seconds").and_then(Value::as_u64).and_then(|secs| u32::try_from(secs).ok());
            agents::override_interval(tx, agent, secs).await?;
        }
        "set_model" => {
            if let Some(model) = args.get("model").and_then(Value::as_str) {
                agents::set_model(tx, agent, model).await?;
            }
        }
        _ => return Ok(()),
    }
    tx.notices.push(Notice::Agent(agent));
    Ok(())
}

/// Expires commands whose time is over; a bounded number at once.
///
/// # Errors
/// [`StoreError`] when the database refuses or is away.
pub async fn expire(tx: &mut Tx, limit: i64) -> Result<u64, StoreError> {
    const SQL: &str = "UPDATE commands SET status = 'expired' WHERE status IN ('queued', 'delivered') \
        AND (agent_id, id) IN (SELECT agent_id, id FROM commands WHERE status IN ('queued', 'delivered') \
        AND expires_at <= $1 ORDER BY expires_at LIMIT $2)";
    let at = tx.at;
    Ok(on!(&mut tx.conn, |c| sqlx::query(SQL).bind(at).bind(limit).execute(c).await?.rows_affected()))
}
