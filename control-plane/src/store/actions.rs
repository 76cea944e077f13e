//! What agents did: the log, written in batches.

use std::collections::HashMap;

use chrono::{DateTime, Utc};
use otonix_sdk::api::actions::Action;
use otonix_sdk::ids::{AgentId, EventId};
use otonix_sdk::standing::SurvivalTier;
use sqlx::FromRow;
use uuid::Uuid;

use crate::store::agents::AgentState;
use crate::store::sql::{hex_id, json, time_text};
use crate::store::writer::Tx;
use crate::store::{Conn, StoreError};

/// An action to be inserted.
#[derive(Debug, Clone)]
pub struct ActionRow {
    pub agent: Uuid,
    pub id: Uuid,
    pub owner: Uuid,
    pub action: String,
    pub category: String,
    pub details: Option<String>,
    pub status: String,
    pub autonomous: bool,
    /// Whether it counts among the agent's own actions.
    pub counted: bool,
    pub created_at: DateTime<Utc>,
}

impl ActionRow {
    /// A line that the server itself writes about an agent.
    pub fn by_server(
        state: &AgentState,
        category: &str,
        action: &str,
        details: Option<String>,
        at: DateTime<Utc>,
    ) -> Self {
        Self {
            agent: state.id.uuid(),
            id: otonix_sdk::clock::new_id(),
            owner: state.owner.uuid(),
            action: action.to_owned(),
            category: category.to_owned(),
            details,
            status: "completed".to_owned(),
            autonomous: true,
            counted: false,
            created_at: at,
        }
    }

    /// The line about a crossed threshold.
    pub fn tier_change(state: &AgentState, before: SurvivalTier, at: DateTime<Utc>) -> Self {
        let action = format!("survival tier changed from {before} to {}", state.tier);
        let details = format!("credits {} USDC", state.credits);
        Self::by_server(state, "survival", &action, Some(details), at)
    }
}

/// Inserts actions that are not there yet; gives back how many counted ones each agent gained.
///
/// # Errors
/// [`StoreError`] when the database refuses or is away; [`StoreError::Taken`] when one is there already and the
/// transaction does not look for repeats.
pub async fn insert(tx: &mut Tx, rows: &[ActionRow]) -> Result<HashMap<Uuid, i64>, StoreError> {
    const FRESH: &str = "INSERT INTO agent_actions (agent_id, id, owner_id, action, category, details, status, \
        autonomous, created_at) SELECT * FROM UNNEST($1::uuid[], $2::uuid[], $3::uuid[], $4::text[], $5::text[], \
        $6::text[], $7::text[], $8::boolean[], $9::timestamptz[])";
    const PG: &str = "WITH new AS (INSERT INTO agent_actions (agent_id, id, owner_id, action, category, details, \
        status, autonomous, created_at) SELECT * FROM UNNEST($1::uuid[], $2::uuid[], $3::uuid[], $4::text[], \
        $5::text[], $6::text[], $7::text[], $8::boolean[], $9::timestamptz[]) ON CONFLICT (agent_id, id) DO NOTHING \
        RETURNING agent_id) SELECT agent_id, count(*) FROM new GROUP BY agent_id";
    const LITE: &str = "INSERT INTO agent_actions (agent_id, id, owner_id, action, category, details, status, \
        autonomous, created_at) SELECT unhex(r.value->>0), unhex(r.value->>1), unhex(r.value->>2), r.value->>3, \
        r.value->>4, r.value->>5, r.value->>6, r.value->>7, r.value->>8 FROM json_each($1) r WHERE true \
        ON CONFLICT (agent_id, id) DO NOTHING RETURNING agent_id";
    if rows.is_empty() {
        return Ok(HashMap::new());
    }
    // Rows of the server and of the agents go separately, so that only the agents' own are counted.
    let (counted, others): (Vec<_>, Vec<_>) = rows.iter().partition(|row| row.counted);
    let mut counts = HashMap::new();
    for (rows, count) in [(counted, true), (others, false)] {
        if rows.is_empty() {
            continue;
        }
        let new: Vec<(Uuid, i64)> = match &mut tx.conn {
            Conn::Postgres(c) => {
                let found = sqlx::query_as(if tx.repeats { PG } else { FRESH })
                    .bind(rows.iter().map(|row| row.agent).collect::<Vec<_>>())
                    .bind(rows.iter().map(|row| row.id).collect::<Vec<_>>())
                    .bind(rows.iter().map(|row| row.owner).collect::<Vec<_>>())
                    .bind(rows.iter().map(|row| row.action.as_str()).collect::<Vec<_>>())
                    .bind(rows.iter().map(|row| row.category.as_str()).collect::<Vec<_>>())
                    .bind(rows.iter().map(|row| row.details.as_deref()).collect::<Vec<_>>())
                    .bind(rows.iter().map(|row| row.status.as_str()).collect::<Vec<_>>())
                    .bind(rows.iter().map(|row| row.autonomous).collect::<Vec<_>>())
                    .bind(rows.iter().map(|row| row.created_at).collect::<Vec<_>>())
                    .fetch_all(c)
                    .await?;
                if tx.repeats { found } else { rows.iter().map(|row| (row.agent, 1)).collect() }
            }
            Conn::Sqlite(c) => {
                let rows: Vec<_> = rows
                    .iter()
                    .map(|row| {
                        (
                            hex_id(row.agent),
                            hex_id(row.id),
                            hex_id(row.owner),
                            row.action.as_str(),
                            row.category.as_str(),
                            row.details.as_deref(),
                            row.status.as_str(),
                            i64::from(row.autonomous),
                            time_text(row.created_at),
                        )
                    })
                    .collect();
                let new: Vec<Uuid> = sqlx::query_scalar(LITE).bind(json(&rows)).fetch_all(c).await?;
                new.into_iter().map(|agent| (agent, 1)).collect()
            }
            Conn::SqlitePooled(_) | Conn::PostgresPooled(_) => Vec::new(),
        };
        for (agent, n) in new {
            *counts.entry(agent).or_insert(0) += if count { n } else { 0 };
        }
    }
    Ok(counts)
}

#[derive(FromRow)]
pub(super) struct ActionRead {
    agent_id: Uuid,
    pub(super) id: Uuid,
    action: String,
    category: String,
    details: Option<String>,
    status: String,
    autonomous: bool,
    pub(super) created_at: DateTime<Utc>,
}

pub(super) const COLUMNS: &str = "agent_id, id, action, category, details, status, autonomous, created_at";

impl From<ActionRead> for Action {
    fn from(row: ActionRead) -> Self {
        Self {
            id: EventId::from(row.id),
            agent_id: AgentId::from(row.agent_id),
            action: row.action,
            category: row.category,
            details: row.details,
            status: row.status,
            autonomous: row.autonomous,
            created_at: row.created_at,
        }
    }
}
