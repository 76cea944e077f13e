//! For which requests an authorization was shown that the chain had carried out before anybody claimed it here.

use chrono::{DateTime, Utc};

use crate::store::writer::Tx;
use crate::store::{StoreError, on};

/// An authorization, as it is shown for a request.
#[derive(Debug, Clone)]
pub struct Presentation {
    /// The chain's id.
    pub chain: i64,
    /// The token, with its checksum.
    pub asset: String,
    /// Who pays, with its checksum.
    pub from: String,
    /// The payer's nonce.
    pub nonce: [u8; 32],
    /// What it is shown for.
    pub binding: [u8; 32],
}

/// Notes that an authorization was shown for a request; tells since when it is, and whether it was shown for another
/// one too. Of more than two requests nothing is noted.
///
/// # Errors
/// [`StoreError`] when the database refuses or is away.
pub async fn note(tx: &mut Tx, shown: &Presentation) -> Result<(DateTime<Utc>, bool), StoreError> {
    const ALL: &str = "SELECT binding, created_at FROM presentations WHERE chain = $1 AND asset = $2 \
        AND from_address = $3 AND nonce = $4";
    const SQL: &str = "INSERT INTO presentations (chain, asset, from_address, nonce, binding, created_at) \
        VALUES ($1, $2, $3, $4, $5, $6) ON CONFLICT DO NOTHING";
    let at = tx.at;
    let all: Vec<(Vec<u8>, DateTime<Utc>)> = on!(&mut tx.conn, |c| sqlx::query_as(ALL)
        .bind(shown.chain)
        .bind(&shown.asset)
        .bind(&shown.from)
        .bind(shown.nonce.to_vec())
        .fetch_all(c)
        .await?);
    let own = all.iter().find(|(binding, _)| *binding == shown.binding);
    let others = all.iter().any(|(binding, _)| *binding != shown.binding);
    if let Some((_, since)) = own {
        return Ok((*since, others));
    }
    if all.len() < 2 {
        on!(&mut tx.conn, |c| sqlx::query(SQL)
            .bind(shown.chain)
            .bind(&shown.asset)
            .bind(&shown.from)
            .bind(shown.nonce.to_vec())
            .bind(shown.binding.to_vec())
            .bind(at)
            .execute(c)
            .await?
            .rows_affected());
    }
    Ok((at, others))
}

/// Deletes what was noted before a time; at most `limit` at once.
///
/// # Errors
/// [`StoreError`] when the database refuses or is away.
pub async fn forget(tx: &mut Tx, before: DateTime<Utc>, limit: i64) -> Result<u64, StoreError> {
    const SQL: &str = "DELETE FROM presentations WHERE (chain, asset, from_address, nonce, binding) IN \
        (SELECT chain, asset, from_address, nonce, binding FROM presentations WHERE created_at < $1 LIMIT $2)";
    Ok(on!(&mut tx.conn, |c| sqlx::query(SQL).bind(before).bind(limit).execute(c).await?.rows_affected()))
}
