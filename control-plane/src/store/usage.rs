//! What model calls cost: the records, written in batches.

use std::collections::HashSet;

use chrono::{DateTime, Utc};
use otonix_sdk::api::usage::ComputeLog;
use otonix_sdk::ids::{AgentId, EventId};
use otonix_sdk::money::MicroUsd;
use sqlx::FromRow;
use uuid::Uuid;

use crate::store::sql::{hex_id, json, time_text};
use crate::store::writer::Tx;
use crate::store::{Conn, StoreError};

/// A usage record to be inserted.
#[derive(Debug, Clone)]
pub struct UsageRow {
    /// The nil UUID for no agent.
    pub agent: Uuid,
    pub id: Uuid,
    pub owner: Uuid,
    pub model: String,
    pub tokens_in: i64,
    pub tokens_out: i64,
    pub tokens_cached: i64,
    pub cost: i64,
    pub list_cost: Option<i64>,
    pub created_at: DateTime<Utc>,
}

/// Inserts records that are not there yet; gives back those that were new.
///
/// # Errors
/// [`StoreError`] when the database refuses or is away; [`StoreError::Taken`] when one is there already and the
/// transaction does not look for repeats.
pub async fn insert(tx: &mut Tx, rows: &[UsageRow]) -> Result<HashSet<(Uuid, Uuid)>, StoreError> {
    const FRESH: &str = "INSERT INTO compute_logs (agent_id, id, owner_id, model, tokens_in, tokens_out, \
        tokens_cached, cost, list_cost, created_at) SELECT * FROM UNNEST($1::uuid[], $2::uuid[], $3::uuid[], \
        $4::text[], $5::bigint[], $6::bigint[], $7::bigint[], $8::bigint[], $9::bigint[], $10::timestamptz[])";
    const PG: &str = "INSERT INTO compute_logs (agent_id, id, owner_id, model, tokens_in, tokens_out, tokens_cached, \
        cost, list_cost, created_at) SELECT * FROM UNNEST($1::uuid[], $2::uuid[], $3::uuid[], $4::text[], \
        $5::bigint[], $6::bigint[], $7::bigint[], $8::bigint[], $9::bigint[], $10::timestamptz[]) \
        ON CONFLICT (agent_id, id) DO NOTHING RETURNING agent_id, id";
    const LITE: &str = "INSERT INTO compute_logs (agent_id, id, owner_id, model, tokens_in, tokens_out, \
        tokens_cached, cost, list_cost, created_at) SELECT unhex(r.value->>0), unhex(r.value->>1), \
        unhex(r.value->>2), r.value->>3, r.value->>4, r.value->>5, r.value->>6, r.value->>7, r.value->>8, \
        r.value->>9 FROM json_each($1) r WHERE true ON CONFLICT (agent_id, id) DO NOTHING RETURNING agent_id, id";
    let new: Vec<(Uuid, Uuid)> = match &mut tx.conn {
        Conn::Postgres(c) => {
            let found = sqlx::query_as(if tx.repeats { PG } else { FRESH })
                .bind(rows.iter().map(|row| row.agent).collect::<Vec<_>>())
                .bind(rows.iter().map(|row| row.id).collect::<Vec<_>>())
                .bind(rows.iter().map(|row| row.owner).collect::<Vec<_>>())
                .bind(rows.iter().map(|row| row.model.as_str()).collect::<Vec<_>>())
                .bind(rows.iter().map(|row| row.tokens_in).collect::<Vec<_>>())
                .bind(rows.iter().map(|row| row.tokens_out).collect::<Vec<_>>())
                .bind(rows.iter().map(|row| row.tokens_cached).collect::<Vec<_>>())
                .bind(rows.iter().map(|row| row.cost).collect::<Vec<_>>())
                .bind(rows.iter().map(|row| row.list_cost).collect::<Vec<_>>())
                .bind(rows.iter().map(|row| row.created_at).collect::<Vec<_>>())
                .fetch_all(c)
                .await?;
            if tx.repeats { found } else { rows.iter().map(|row| (row.agent, row.id)).collect() }
        }
        Conn::Sqlite(c) => {
            let rows: Vec<_> = rows
                .iter()
                .map(|row| {
                    (
                        hex_id(row.agent),
                        hex_id(row.id),
                        hex_id(row.owner),
                        row.model.as_str(),
                        row.tokens_in,
                        row.tokens_out,
                        row.tokens_cached,
                        row.cost,
                        row.list_cost,
                        time_text(row.created_at),
                    )
                })
                .collect();
            sqlx::query_as(LITE).bind(json(&rows)).fetch_all(c).await?
        }
        Conn::SqlitePooled(_) | Conn::PostgresPooled(_) => Vec::new(),
    };
    Ok(new.into_iter().collect())
}

#[derive(FromRow)]
pub(super) struct UsageRead {
    agent_id: Uuid,
    pub(super) id: Uuid,
    model: String,
    tokens_in: i64,
    tokens_out: i64,
    tokens_cached: i64,
    cost: i64,
    list_cost: Option<i64>,
    pub(super) created_at: DateTime<Utc>,
}

pub(super) const COLUMNS: &str =
    "agent_id, id, model, tokens_in, tokens_out, tokens_cached, cost, list_cost, created_at";

impl From<UsageRead> for ComputeLog {
    fn from(row: UsageRead) -> Self {
        Self {
            id: EventId::from(row.id),
            model: row.model,
            tokens_in: row.tokens_in,
            tokens_out: row.tokens_out,
            tokens_cached: row.tokens_cached,
            cost: MicroUsd::from_micros(row.cost),
            list_cost: row.list_cost.map(MicroUsd::from_micros),
            agent_id: (!row.agent_id.is_nil()).then(|| AgentId::from(row.agent_id)),
            created_at: row.created_at,
        }
    }
}
