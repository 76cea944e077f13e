//! What all replicas must agree on: the operator token's hash, the key that authenticates orders.

use crate::store::{Conn, Db, StoreError, on};

/// SHA-256 of the operator token, hex.
pub const OPERATOR_TOKEN_HASH: &str = "operator_token_hash";
/// The key that authenticates the ids of orders, hex.
pub const ORDER_KEY: &str = "order_key";

/// Reads a setting.
///
/// # Errors
/// [`StoreError`] when the database refuses or is away.
pub async fn read(conn: &mut Conn, name: &str) -> Result<Option<String>, StoreError> {
    const SQL: &str = "SELECT value FROM settings WHERE name = $1";
    Ok(on!(conn, |c| sqlx::query_scalar(SQL).bind(name).fetch_optional(c).await?))
}

/// A connection for the few settings that are agreed on before the server runs.
pub struct Direct(Conn);

impl Direct {
    /// Connects.
    ///
    /// # Errors
    /// [`StoreError`] when the database is away.
    pub async fn open(db: &Db) -> Result<Self, StoreError> {
        Ok(Self(db.dedicated().await?))
    }

    /// Reads a setting.
    ///
    /// # Errors
    /// [`StoreError`] when the database refuses or is away.
    pub async fn read(&mut self, name: &str) -> Result<Option<String>, StoreError> {
        read(&mut self.0, name).await
    }

    /// Writes a setting unless it is there; gives back what is there now, which every replica agrees on.
    ///
    /// # Errors
    /// [`StoreError`] when the database refuses or is away.
    pub async fn init(&mut self, name: &str, value: &str) -> Result<String, StoreError> {
        const SQL: &str = "INSERT INTO settings (name, value) VALUES ($1, $2) ON CONFLICT (name) DO NOTHING";
        on!(&mut self.0, |c| sqlx::query(SQL).bind(name).bind(value).execute(c).await?.rows_affected());
        self.read(name).await?.ok_or(StoreError::Corrupt { table: "settings", column: "value" })
    }

    /// Writes a setting.
    ///
    /// # Errors
    /// [`StoreError`] when the database refuses or is away.
    pub async fn write(&mut self, name: &str, value: &str) -> Result<(), StoreError> {
        const SQL: &str = "INSERT INTO settings (name, value) VALUES ($1, $2) \
            ON CONFLICT (name) DO UPDATE SET value = excluded.value";
        on!(&mut self.0, |c| sqlx::query(SQL).bind(name).bind(value).execute(c).await?.rows_affected());
        Ok(())
    }
}
