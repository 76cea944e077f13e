//! How far each stream of events is stored, and the batch statements that the hot path needs.

use std::collections::{BTreeSet, HashMap, HashSet};

use sqlx::FromRow;
use uuid::Uuid;

use crate::store::idempotency::{Idem, StoredAnswer};
use crate::store::sql::{hex_id, json};
use crate::store::writer::Tx;
use crate::store::{Conn, StoreError, on};

/// Where a stream stands.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Position {
    /// The highest contiguous number stored.
    pub acked_seq: u64,
    /// The event that has it.
    pub acked_event: Option<Uuid>,
}

/// A change of a stream's row.
#[derive(Debug, Clone)]
pub struct Moved<'a> {
    pub agent: Uuid,
    pub epoch: &'a str,
    /// What it was found at.
    pub from: u64,
    pub to: Position,
    /// Actions that came with it.
    pub actions: i64,
}

#[derive(FromRow)]
struct PositionRow {
    agent_id: Uuid,
    epoch: String,
    acked_seq: i64,
    acked_event_id: Option<Uuid>,
}

/// The positions of streams that exist.
///
/// # Errors
/// [`StoreError`] when the database refuses or is away.
pub async fn positions(
    tx: &mut Tx,
    wanted: &BTreeSet<(Uuid, String)>,
) -> Result<HashMap<(Uuid, String), Position>, StoreError> {
    const PG: &str = "SELECT s.agent_id, s.epoch, s.acked_seq, s.acked_event_id FROM streams s \
        JOIN UNNEST($1::uuid[], $2::text[]) AS w(agent_id, epoch) ON s.agent_id = w.agent_id AND s.epoch = w.epoch";
    const LITE: &str = "SELECT s.agent_id, s.epoch, s.acked_seq, s.acked_event_id FROM json_each($1) w \
        JOIN streams s ON s.agent_id = unhex(w.value->>0) AND s.epoch = w.value->>1";
    let rows: Vec<PositionRow> = match &mut tx.conn {
        Conn::Postgres(c) => {
            sqlx::query_as(PG)
                .bind(wanted.iter().map(|(agent, _)| *agent).collect::<Vec<_>>())
                .bind(wanted.iter().map(|(_, epoch)| epoch.as_str()).collect::<Vec<_>>())
                .fetch_all(c)
                .await?
        }
        Conn::Sqlite(c) => {
            let rows: Vec<_> = wanted.iter().map(|(agent, epoch)| (hex_id(*agent), epoch)).collect();
            sqlx::query_as(LITE).bind(json(&rows)).fetch_all(c).await?
        }
        Conn::SqlitePooled(_) | Conn::PostgresPooled(_) => Vec::new(),
    };
    rows.into_iter()
        .map(|row| {
            let acked_seq = u64::try_from(row.acked_seq)
                .map_err(|_| StoreError::Corrupt { table: "streams", column: "acked_seq" })?;
            Ok(((row.agent_id, row.epoch), Position { acked_seq, acked_event: row.acked_event_id }))
        })
        .collect()
}

/// Writes where streams stand now, in the order of their keys.
///
/// # Errors
/// [`StoreError::LostRace`] when another replica has moved one meanwhile; [`StoreError`] when the database refuses or
/// is away.
pub async fn write_positions(tx: &mut Tx, moved: &[Moved<'_>]) -> Result<(), StoreError> {
    const PG: &str = "INSERT INTO streams (agent_id, epoch, acked_seq, acked_event_id, prior_seq, actions, updated_at) \
        SELECT m.*, $7 FROM UNNEST($1::uuid[], $2::text[], $3::bigint[], $4::uuid[], $5::bigint[], $6::bigint[]) AS m \
        ON CONFLICT (agent_id, epoch) DO UPDATE SET acked_seq = excluded.acked_seq, \
        acked_event_id = excluded.acked_event_id, prior_seq = excluded.prior_seq, \
        actions = streams.actions + excluded.actions, updated_at = excluded.updated_at \
        WHERE streams.acked_seq = excluded.prior_seq";
    const LITE: &str = "INSERT INTO streams (agent_id, epoch, acked_seq, acked_event_id, prior_seq, actions, \
        updated_at) SELECT unhex(m.value->>0), m.value->>1, m.value->>2, unhex(m.value->>3), m.value->>4, \
        m.value->>5, $2 FROM json_each($1) m WHERE true \
        ON CONFLICT (agent_id, epoch) DO UPDATE SET acked_seq = excluded.acked_seq, \
        acked_event_id = excluded.acked_event_id, prior_seq = excluded.prior_seq, \
        actions = streams.actions + excluded.actions, updated_at = excluded.updated_at \
        WHERE streams.acked_seq = excluded.prior_seq";
    if moved.is_empty() {
        return Ok(());
    }
    let number = |seq: u64| i64::try_from(seq).unwrap_or(i64::MAX);
    let written = match &mut tx.conn {
        Conn::Postgres(c) => sqlx::query(PG)
            .bind(moved.iter().map(|row| row.agent).collect::<Vec<_>>())
            .bind(moved.iter().map(|row| row.epoch).collect::<Vec<_>>())
            .bind(moved.iter().map(|row| number(row.to.acked_seq)).collect::<Vec<_>>())
            .bind(moved.iter().map(|row| row.to.acked_event).collect::<Vec<_>>())
            .bind(moved.iter().map(|row| number(row.from)).collect::<Vec<_>>())
            .bind(moved.iter().map(|row| row.actions).collect::<Vec<_>>())
            .bind(tx.at)
            .execute(c)
            .await?
            .rows_affected(),
        Conn::Sqlite(c) => {
            let rows: Vec<_> = moved
                .iter()
                .map(|row| {
                    let event = row.to.acked_event.map(hex_id);
                    let (from, to) = (number(row.from), number(row.to.acked_seq));
                    (hex_id(row.agent), row.epoch, to, event, from, row.actions)
                })
                .collect();
            sqlx::query(LITE).bind(json(&rows)).bind(tx.at).execute(c).await?.rows_affected()
        }
        Conn::SqlitePooled(_) | Conn::PostgresPooled(_) => 0,
    };
    if written == moved.len() as u64 { Ok(()) } else { Err(StoreError::LostRace) }
}

/// Which of these events are stored, in whatever form.
///
/// # Errors
/// [`StoreError`] when the database refuses or is away.
pub async fn stored_events(
    tx: &mut Tx,
    events: &[(Uuid, Uuid)],
) -> Result<HashSet<(Uuid, Uuid)>, StoreError> {
    const PG: &str = "SELECT w.agent_id, w.id FROM UNNEST($1::uuid[], $2::uuid[]) AS w(agent_id, id) WHERE \
        EXISTS (SELECT 1 FROM agent_actions a WHERE a.agent_id = w.agent_id AND a.id = w.id) OR \
        EXISTS (SELECT 1 FROM compute_logs l WHERE l.agent_id = w.agent_id AND l.id = w.id) OR \
        EXISTS (SELECT 1 FROM rejected_events r WHERE r.agent_id = w.agent_id AND r.id = w.id)";
    const LITE: &str = "WITH w AS (SELECT unhex(value->>0) AS agent_id, unhex(value->>1) AS id FROM json_each($1)) \
        SELECT w.agent_id, w.id FROM w WHERE \
        EXISTS (SELECT 1 FROM agent_actions a WHERE a.agent_id = w.agent_id AND a.id = w.id) OR \
        EXISTS (SELECT 1 FROM compute_logs l WHERE l.agent_id = w.agent_id AND l.id = w.id) OR \
        EXISTS (SELECT 1 FROM rejected_events r WHERE r.agent_id = w.agent_id AND r.id = w.id)";
    let rows: Vec<(Uuid, Uuid)> = match &mut tx.conn {
        Conn::Postgres(c) => {
            sqlx::query_as(PG)
                .bind(events.iter().map(|(agent, _)| *agent).collect::<Vec<_>>())
                .bind(events.iter().map(|(_, id)| *id).collect::<Vec<_>>())
                .fetch_all(c)
                .await?
        }
        Conn::Sqlite(c) => {
            let rows: Vec<_> = events.iter().map(|(agent, id)| (hex_id(*agent), hex_id(*id))).collect();
            sqlx::query_as(LITE).bind(json(&rows)).fetch_all(c).await?
        }
        Conn::SqlitePooled(_) | Conn::PostgresPooled(_) => Vec::new(),
    };
    Ok(rows.into_iter().collect())
}

/// Remembers events that were refused for good.
///
/// # Errors
/// [`StoreError`] when the database refuses or is away.
pub async fn insert_rejects(
    tx: &mut Tx,
    rejects: &[(Uuid, Uuid, u64, &'static str)],
) -> Result<(), StoreError> {
    const SQL: &str = "INSERT INTO rejected_events (agent_id, id, seq, code, created_at) VALUES ($1, $2, $3, $4, $5) \
        ON CONFLICT (agent_id, id) DO NOTHING";
    let at = tx.at;
    for (agent, id, seq, code) in rejects {
        let seq = i64::try_from(*seq).unwrap_or(i64::MAX);
        on!(&mut tx.conn, |c| sqlx::query(SQL)
            .bind(*agent)
            .bind(*id)
            .bind(seq)
            .bind(*code)
            .bind(at)
            .execute(c)
            .await?
            .rows_affected());
    }
    Ok(())
}

/// Takes idempotency keys with the answers to keep; gives back the answers of those that were taken before.
///
/// # Errors
/// [`StoreError`] when the database refuses or is away.
pub async fn claim_keys(
    tx: &mut Tx,
    claims: &[(Idem, StoredAnswer)],
) -> Result<HashMap<[u8; 32], StoredAnswer>, StoreError> {
    const PG: &str = "INSERT INTO idempotency (scope, fingerprint, status, body, created_at) \
        SELECT c.scope, c.fingerprint, c.status, c.body, $5 FROM UNNEST($1::bytea[], $2::bytea[], $3::bigint[], \
        $4::text[]) AS c(scope, fingerprint, status, body) ORDER BY c.scope ON CONFLICT (scope) DO NOTHING \
        RETURNING scope";
    const LITE: &str = "INSERT INTO idempotency (scope, fingerprint, status, body, created_at) \
        SELECT unhex(c.value->>0), unhex(c.value->>1), c.value->>2, c.value->>3, $2 FROM json_each($1) c WHERE true \
        ON CONFLICT (scope) DO NOTHING RETURNING scope";
    let taken: Vec<Vec<u8>> = match &mut tx.conn {
        Conn::Postgres(c) => {
            sqlx::query_scalar(PG)
                .bind(claims.iter().map(|(idem, _)| idem.scope.to_vec()).collect::<Vec<_>>())
                .bind(claims.iter().map(|(idem, _)| idem.fingerprint.to_vec()).collect::<Vec<_>>())
                .bind(claims.iter().map(|(_, answer)| i64::from(answer.status)).collect::<Vec<_>>())
                .bind(claims.iter().map(|(_, answer)| answer.body.as_str()).collect::<Vec<_>>())
                .bind(tx.at)
                .fetch_all(c)
                .await?
        }
        Conn::Sqlite(c) => {
            let rows: Vec<_> = claims
                .iter()
                .map(|(idem, answer)| {
                    (
                        hex::encode(idem.scope),
                        hex::encode(idem.fingerprint),
                        answer.status,
                        answer.body.as_str(),
                    )
                })
                .collect();
            sqlx::query_scalar(LITE).bind(json(&rows)).bind(tx.at).fetch_all(c).await?
        }
        Conn::SqlitePooled(_) | Conn::PostgresPooled(_) => Vec::new(),
    };
    let taken: HashSet<Vec<u8>> = taken.into_iter().collect();
    let mut before = HashMap::new();
    for (idem, _) in claims.iter().filter(|(idem, _)| !taken.contains(idem.scope.as_slice())) {
        if let Some(answer) = crate::store::idempotency::answer(&mut tx.conn, idem.scope).await? {
            before.insert(idem.scope, answer);
        }
    }
    Ok(before)
}

/// Notes which machine has an agent's session; gives back the machine that had it when that was another one.
///
/// # Errors
/// [`StoreError`] when the database refuses or is away.
pub async fn open_session(
    tx: &mut Tx,
    agent: Uuid,
    machine_id: &str,
    boot_id: &str,
) -> Result<Option<String>, StoreError> {
    const READ: &str = "SELECT machine_id, boot_id FROM agents WHERE id = $1";
    const WRITE: &str = "UPDATE agents SET machine_id = $2, boot_id = $3 WHERE id = $1";
    let before: (Option<String>, Option<String>) =
        on!(&mut tx.conn, |c| sqlx::query_as(READ).bind(agent).fetch_one(c).await?);
    if before == (Some(machine_id.to_owned()), Some(boot_id.to_owned())) {
        return Ok(None);
    }
    on!(&mut tx.conn, |c| sqlx::query(WRITE)
        .bind(agent)
        .bind(machine_id)
        .bind(boot_id)
        .execute(c)
        .await?
        .rows_affected());
    Ok(before.0.filter(|machine| machine != machine_id && !machine.is_empty()))
}

/// Forgets refused events older than a time; a bounded number at once.
///
/// # Errors
/// [`StoreError`] when the database refuses or is away.
pub async fn forget_rejects(
    tx: &mut Tx,
    before: chrono::DateTime<chrono::Utc>,
    limit: i64,
) -> Result<u64, StoreError> {
    const SQL: &str = "DELETE FROM rejected_events WHERE (agent_id, id) IN \
        (SELECT agent_id, id FROM rejected_events WHERE created_at < $1 ORDER BY created_at LIMIT $2)";
    Ok(on!(&mut tx.conn, |c| sqlx::query(SQL).bind(before).bind(limit).execute(c).await?.rows_affected()))
}
