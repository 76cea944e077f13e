//! Answers kept for repeated requests, written in the transaction of what they answer.

use std::time::Duration;

use chrono::{DateTime, Utc};
use sha2::{Digest as _, Sha256};

use crate::store::writer::Tx;
use crate::store::{Conn, StoreError, on};

/// How long an answer is kept at least.
pub const KEPT: Duration = Duration::from_secs(36 * 3600);

/// An idempotency key in its scope, and the request it stands for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Idem {
    /// SHA-256 of principal, method, path with query, and key.
    pub scope: [u8; 32],
    /// SHA-256 of the body.
    pub fingerprint: [u8; 32],
}

impl Idem {
    /// Names a request.
    pub fn new(principal: &str, method: &str, path_and_query: &str, key: &str, body: &[u8]) -> Self {
        let mut scope = Sha256::new();
        for part in [principal, method, path_and_query, key] {
            scope.update(part.len().to_be_bytes());
            scope.update(part);
        }
        Self { scope: scope.finalize().into(), fingerprint: Sha256::digest(body).into() }
    }
}

/// An answer as it is kept.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StoredAnswer {
    /// HTTP status.
    pub status: u16,
    /// JSON.
    pub body: String,
    /// What was asked.
    pub fingerprint: [u8; 32],
}

/// Whether a key is new.
pub enum Claim {
    /// This transaction has it now.
    New,
    /// It was used before.
    Taken(StoredAnswer),
}

#[derive(sqlx::FromRow)]
struct Row {
    fingerprint: Vec<u8>,
    status: i64,
    body: String,
}

impl TryFrom<Row> for StoredAnswer {
    type Error = StoreError;

    fn try_from(row: Row) -> Result<Self, StoreError> {
        let corrupt = |column| StoreError::Corrupt { table: "idempotency", column };
        Ok(Self {
            status: u16::try_from(row.status).map_err(|_| corrupt("status"))?,
            body: row.body,
            fingerprint: row.fingerprint.try_into().map_err(|_| corrupt("fingerprint"))?,
        })
    }
}

/// The answer kept for a scope.
///
/// # Errors
/// [`StoreError`] when the database refuses or is away.
pub async fn answer(conn: &mut Conn, scope: [u8; 32]) -> Result<Option<StoredAnswer>, StoreError> {
    const SQL: &str = "SELECT fingerprint, status, body FROM idempotency WHERE scope = $1";
    let row: Option<Row> = on!(conn, |c| sqlx::query_as(SQL).bind(scope.to_vec()).fetch_optional(c).await?);
    row.map(StoredAnswer::try_from).transpose()
}

/// Takes a key for this transaction; another transaction that has it is waited for.
///
/// # Errors
/// [`StoreError`] when the database refuses or is away.
pub async fn claim(tx: &mut Tx, idem: &Idem) -> Result<Claim, StoreError> {
    const SQL: &str = "INSERT INTO idempotency (scope, fingerprint, status, body, created_at) \
        VALUES ($1, $2, 0, '', $3) ON CONFLICT (scope) DO NOTHING";
    let at = tx.at;
    let inserted = on!(&mut tx.conn, |c| sqlx::query(SQL)
        .bind(idem.scope.to_vec())
        .bind(idem.fingerprint.to_vec())
        .bind(at)
        .execute(c)
        .await?
        .rows_affected());
    if inserted == 1 {
        return Ok(Claim::New);
    }
    answer(&mut tx.conn, idem.scope)
        .await?
        .map(Claim::Taken)
        .ok_or(StoreError::Corrupt { table: "idempotency", column: "scope" })
}

/// Keeps the answer of a claimed key.
///
/// # Errors
/// [`StoreError`] when the database refuses or is away.
pub async fn store(tx: &mut Tx, idem: &Idem, answer: &StoredAnswer) -> Result<(), StoreError> {
    const SQL: &str = "UPDATE idempotency SET status = $2, body = $3 WHERE scope = $1";
    on!(&mut tx.conn, |c| sqlx::query(SQL)
        .bind(idem.scope.to_vec())
        .bind(i64::from(answer.status))
        .bind(&answer.body)
        .execute(c)
        .await?
        .rows_affected());
    Ok(())
}

/// Forgets answers older than a time; a bounded number at once.
///
/// # Errors
/// [`StoreError`] when the database refuses or is away.
pub async fn forget(tx: &mut Tx, before: DateTime<Utc>, limit: i64) -> Result<u64, StoreError> {
    const SQL: &str = "DELETE FROM idempotency WHERE scope IN \
        (SELECT scope FROM idempotency WHERE created_at < $1 ORDER BY created_at LIMIT $2)";
    Ok(on!(&mut tx.conn, |c| sqlx::query(SQL).bind(before).bind(limit).execute(c).await?.rows_affected()))
}
