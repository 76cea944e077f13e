//! The texts that are or were the laws of agents.

use otonix_sdk::api::enrolment::Laws;

use crate::store::{Conn, Db, StoreError, on};

/// The laws of a SHA-256 in hex.
///
/// # Errors
/// [`StoreError`] when the database refuses or is away.
pub async fn laws(conn: &mut Conn, sha256: &str) -> Result<Option<Laws>, StoreError> {
    const SQL: &str = "SELECT sha256, text FROM laws WHERE sha256 = $1";
    let row: Option<(String, String)> =
        on!(conn, |c| sqlx::query_as(SQL).bind(sha256).fetch_optional(c).await?);
    Ok(row.map(|(sha256, text)| Laws { sha256, text }))
}

/// Keeps the laws in force, before the server runs.
///
/// # Errors
/// [`StoreError`] when the database refuses or is away.
pub async fn keep(db: &Db, laws: &Laws, at: chrono::DateTime<chrono::Utc>) -> Result<(), StoreError> {
    const SQL: &str = "INSERT INTO laws (sha256, text, created_at) VALUES ($1, $2, $3) \
        ON CONFLICT (sha256) DO NOTHING";
    let mut conn = db.dedicated().await?;
    on!(&mut conn, |c| sqlx::query(SQL)
        .bind(&laws.sha256)
        .bind(&laws.text)
        .bind(at)
        .execute(c)
        .await?
        .rows_affected());
    Ok(())
}
