//! Up to which block everything that moved is booked.

use crate::store::writer::Tx;
use crate::store::{Conn, StoreError, on};

/// The last block that is booked.
///
/// # Errors
/// [`StoreError`] when the database refuses or is away.
pub async fn read(conn: &mut Conn, name: String) -> Result<Option<i64>, StoreError> {
    const SQL: &str = "SELECT block_number FROM cursors WHERE name = $1";
    Ok(on!(conn, |c| sqlx::query_scalar(SQL).bind(name).fetch_optional(c).await?))
}

/// Puts a cursor at its start, unless it is somewhere.
///
/// # Errors
/// [`StoreError`] when the database refuses or is away.
pub async fn init(tx: &mut Tx, name: &str, block: i64) -> Result<(), StoreError> {
    const SQL: &str = "INSERT INTO cursors (name, block_number, updated_at) VALUES ($1, $2, $3) \
        ON CONFLICT (name) DO NOTHING";
    let at = tx.at;
    on!(&mut tx.conn, |c| sqlx::query(SQL).bind(name).bind(block).bind(at).execute(c).await?.rows_affected());
    Ok(())
}

/// Moves a cursor from where it was found; `false` when it was moved meanwhile.
///
/// # Errors
/// [`StoreError`] when the database refuses or is away.
pub async fn advance(tx: &mut Tx, name: &str, from: i64, to: i64) -> Result<bool, StoreError> {
    const SQL: &str =
        "UPDATE cursors SET block_number = $3, updated_at = $4 WHERE name = $1 AND block_number = $2";
    let at = tx.at;
    let done = on!(&mut tx.conn, |c| sqlx::query(SQL)
        .bind(name)
        .bind(from)
        .bind(to)
        .bind(at)
        .execute(c)
        .await?
        .rows_affected());
    Ok(done == 1)
}
