//! What batches of both engines share: SQLite takes one JSON text, PostgreSQL takes arrays.

use chrono::{DateTime, SecondsFormat, Utc};
use serde::Serialize;
use uuid::Uuid;

use crate::store::StoreError;

/// A time as SQLite keeps it; sorts as text.
pub fn time_text(at: DateTime<Utc>) -> String {
    at.to_rfc3339_opts(SecondsFormat::AutoSi, false)
}

/// An id as hex, for `unhex`.
pub fn hex_id(id: Uuid) -> String {
    id.simple().to_string()
}

/// Ids as a JSON array of hex texts, for `json_each`.
pub fn ids_json(ids: &[Uuid]) -> String {
    json(&ids.iter().map(|id| hex_id(*id)).collect::<Vec<_>>())
}

/// Rows as JSON, for `json_each`.
pub fn json<T: Serialize>(rows: &T) -> String {
    serde_json::to_string(rows).unwrap_or_else(|_| "[]".to_owned())
}

/// A column's text as one of our own enums.
///
/// # Errors
/// [`StoreError::Corrupt`] when it is none of them.
pub fn name<T: std::str::FromStr>(
    table: &'static str,
    column: &'static str,
    text: &str,
) -> Result<T, StoreError> {
    text.parse().map_err(|_| StoreError::Corrupt { table, column })
}
