//! When agents were last heard, and who is active again by it.

use chrono::{DateTime, Utc};
use uuid::Uuid;

use crate::store::sql::{hex_id, ids_json, json, time_text};
use crate::store::writer::Tx;
use crate::store::{Conn, StoreError};

/// Notes when agents were last heard, and that those that were inactive are active again.
///
/// # Errors
/// [`StoreError`] when the database refuses or is away.
pub async fn write_beats(tx: &mut Tx, beats: &[(Uuid, DateTime<Utc>)]) -> Result<(), StoreError> {
    const PG_LOCK: &str = "SELECT count(*) FROM (SELECT 1 FROM agents WHERE id = ANY($1) ORDER BY id \
        FOR NO KEY UPDATE) l";
    const PG: &str = "UPDATE agents a SET last_heartbeat = b.at FROM UNNEST($1::uuid[], $2::timestamptz[]) \
        AS b(id, at) WHERE a.id = b.id";
    const LITE: &str = "UPDATE agents SET last_heartbeat = b.value->>1 FROM json_each($1) b \
        WHERE agents.id = unhex(b.value->>0)";
    match &mut tx.conn {
        Conn::Postgres(c) => {
            let ids: Vec<Uuid> = beats.iter().map(|(id, _)| *id).collect();
            sqlx::query(PG_LOCK).bind(&ids).execute(&mut *c).await?;
            sqlx::query(PG)
                .bind(&ids)
                .bind(beats.iter().map(|(_, at)| *at).collect::<Vec<_>>())
                .execute(&mut *c)
                .await?;
        }
        Conn::Sqlite(c) => {
            let rows: Vec<_> = beats.iter().map(|(id, at)| (hex_id(*id), time_text(*at))).collect();
            sqlx::query(LITE).bind(json(&rows)).execute(&mut *c).await?;
        }
        Conn::SqlitePooled(_) | Conn::PostgresPooled(_) => {}
    }
    Ok(())
}

/// Which of some agents are inactive and may become active: an active key is left to them.
///
/// # Errors
/// [`StoreError`] when the database refuses or is away.
pub async fn inactive_among(tx: &mut Tx, ids: &[Uuid]) -> Result<Vec<Uuid>, StoreError> {
    const PG: &str = "SELECT a.id FROM agents a WHERE a.id = ANY($1) AND a.status = 'inactive' AND EXISTS \
        (SELECT 1 FROM api_keys k WHERE k.owner_id = a.owner_id AND k.status = 'active' \
        AND (k.kind = 'owner' OR k.agent_id = a.id))";
    const LITE: &str = "SELECT a.id FROM agents a WHERE a.id IN (SELECT unhex(value) FROM json_each($1)) \
        AND a.status = 'inactive' AND EXISTS \
        (SELECT 1 FROM api_keys k WHERE k.owner_id = a.owner_id AND k.status = 'active' \
        AND (k.kind = 'owner' OR k.agent_id = a.id))";
    Ok(match &mut tx.conn {
        Conn::Postgres(c) => sqlx::query_scalar(PG).bind(ids).fetch_all(c).await?,
        Conn::Sqlite(c) => sqlx::query_scalar(LITE).bind(ids_json(ids)).fetch_all(c).await?,
        Conn::SqlitePooled(_) | Conn::PostgresPooled(_) => Vec::new(),
    })
}
