//! Enrolment tokens, and who has used them.

use chrono::{DateTime, Utc};
use otonix_sdk::api::enrolment::EnrolmentToken;
use otonix_sdk::ids::{AgentId, EnrolmentTokenId, OwnerId};
use otonix_sdk::money::MicroUsd;
use sqlx::FromRow;
use uuid::Uuid;

use crate::store::writer::Tx;
use crate::store::{Conn, StoreError, on};

/// A token as it is kept.
#[derive(Debug, Clone, FromRow)]
pub struct Token {
    pub id: Uuid,
    pub token_hash: String,
    pub owner_id: Uuid,
    pub made_by: Option<Uuid>,
    pub agent_id: Option<Uuid>,
    pub name: Option<String>,
    pub model: Option<String>,
    pub genesis_prompt: Option<String>,
    pub tag: Option<String>,
    /// Micro-USDC.
    pub grant_amount: i64,
    pub uses: i64,
    pub uses_left: i64,
    pub expires_at: DateTime<Utc>,
    pub revoked_at: Option<DateTime<Utc>>,
    /// Whether it may give its agent another wallet.
    pub moves_wallet: bool,
    pub created_at: DateTime<Utc>,
}

impl Token {
    /// A token that nobody has used, made at a time.
    pub fn new(
        token_hash: String,
        owner_id: Uuid,
        uses: u32,
        created_at: DateTime<Utc>,
        expires_at: DateTime<Utc>,
    ) -> Self {
        Self {
            id: otonix_sdk::clock::new_id(),
            token_hash,
            owner_id,
            made_by: None,
            agent_id: None,
            name: None,
            model: None,
            genesis_prompt: None,
            tag: None,
            grant_amount: 0,
            uses: i64::from(uses),
            uses_left: i64::from(uses),
            expires_at,
            revoked_at: None,
            moves_wallet: false,
            created_at,
        }
    }
}

pub(super) const COLUMNS: &str = "id, token_hash, owner_id, made_by, agent_id, name, model, genesis_prompt, tag, \
    grant_amount, uses, uses_left, expires_at, revoked_at, moves_wallet, created_at";

impl From<Token> for EnrolmentToken {
    fn from(row: Token) -> Self {
        let count = |n: i64| u32::try_from(n).unwrap_or(u32::MAX);
        Self {
            id: EnrolmentTokenId::from(row.id),
            token: None,
            owner_id: OwnerId::from(row.owner_id),
            agent_id: row.agent_id.map(AgentId::from),
            name: row.name,
            tag: row.tag,
            grant: MicroUsd::from_micros(row.grant_amount),
            uses: count(row.uses),
            uses_left: count(row.uses_left),
            expires_at: row.expires_at,
            created_at: row.created_at,
            secret_shown: None,
        }
    }
}

/// Inserts a token.
///
/// # Errors
/// [`StoreError`] when the database refuses or is away.
pub async fn insert(tx: &mut Tx, row: &Token) -> Result<(), StoreError> {
    const SQL: &str = "INSERT INTO enrolment_tokens (id, token_hash, owner_id, made_by, agent_id, name, model, \
        genesis_prompt, tag, grant_amount, uses, uses_left, expires_at, created_at, \
        moves_wallet) VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14, $15)";
    on!(&mut tx.conn, |c| {
        sqlx::query(SQL)
            .bind(row.id)
            .bind(&row.token_hash)
            .bind(row.owner_id)
            .bind(row.made_by)
            .bind(row.agent_id)
            .bind(&row.name)
            .bind(&row.model)
            .bind(&row.genesis_prompt)
            .bind(&row.tag)
            .bind(row.grant_amount)
            .bind(row.uses)
            .bind(row.uses_left)
            .bind(row.expires_at)
            .bind(row.created_at)
            .bind(row.moves_wallet)
            .execute(c)
            .await?;
    });
    Ok(())
}

/// The token of a hash, unless it or the key that made it was revoked.
///
/// # Errors
/// [`StoreError`] when the database refuses or is away.
pub async fn by_hash(conn: &mut Conn, hash: &str) -> Result<Option<Token>, StoreError> {
    const SQL: &str = "SELECT id, token_hash, owner_id, made_by, agent_id, name, model, genesis_prompt, tag, \
        grant_amount, uses, uses_left, expires_at, revoked_at, moves_wallet, created_at FROM enrolment_tokens t \
        WHERE token_hash = $1 AND revoked_at IS NULL AND NOT EXISTS \
        (SELECT 1 FROM api_keys k WHERE k.id = t.made_by AND k.status <> 'active')";
    Ok(on!(conn, |c| sqlx::query_as(SQL).bind(hash).fetch_optional(c).await?))
}

/// A token by its id.
///
/// # Errors
/// [`StoreError`] when the database refuses or is away.
pub async fn by_id(conn: &mut Conn, id: Uuid) -> Result<Option<Token>, StoreError> {
    const SQL: &str = "SELECT id, token_hash, owner_id, made_by, agent_id, name, model, genesis_prompt, tag, \
        grant_amount, uses, uses_left, expires_at, revoked_at, moves_wallet, created_at FROM enrolment_tokens WHERE id = $1";
    Ok(on!(conn, |c| sqlx::query_as(SQL).bind(id).fetch_optional(c).await?))
}

/// Takes one use of a token; tells whether one was left.
///
/// # Errors
/// [`StoreError`] when the database refuses or is away.
pub async fn take_use(tx: &mut Tx, id: Uuid) -> Result<bool, StoreError> {
    const SQL: &str = "UPDATE enrolment_tokens SET uses_left = uses_left - 1 WHERE id = $1 AND uses_left > 0";
    Ok(on!(&mut tx.conn, |c| sqlx::query(SQL).bind(id).execute(c).await?.rows_affected()) == 1)
}

/// Locks a token until the transaction ends, so that its uses are seen one after another.
///
/// # Errors
/// [`StoreError`] when the database refuses or is away.
pub async fn lock(tx: &mut Tx, id: Uuid) -> Result<(), StoreError> {
    const SQL: &str = "UPDATE enrolment_tokens SET uses_left = uses_left WHERE id = $1";
    on!(&mut tx.conn, |c| sqlx::query(SQL).bind(id).execute(c).await?.rows_affected());
    Ok(())
}

/// Revokes a token; tells whether it was not revoked yet.
///
/// # Errors
/// [`StoreError`] when the database refuses or is away.
pub async fn revoke(tx: &mut Tx, id: Uuid) -> Result<bool, StoreError> {
    const SQL: &str = "UPDATE enrolment_tokens SET revoked_at = $2 WHERE id = $1 AND revoked_at IS NULL";
    let at = tx.at;
    Ok(on!(&mut tx.conn, |c| sqlx::query(SQL).bind(id).bind(at).execute(c).await?.rows_affected()) == 1)
}

/// The agent that a wallet has enrolled by a token.
///
/// # Errors
/// [`StoreError`] when the database refuses or is away.
pub async fn enrolled_by(tx: &mut Tx, token: Uuid, wallet: &str) -> Result<Option<Uuid>, StoreError> {
    const SQL: &str = "SELECT agent_id FROM enrolments WHERE token_id = $1 AND wallet_address = $2";
    let wallet = wallet.to_ascii_lowercase();
    Ok(on!(&mut tx.conn, |c| sqlx::query_scalar(SQL).bind(token).bind(wallet).fetch_optional(c).await?))
}

/// Notes that a wallet has enrolled an agent by a token.
///
/// # Errors
/// [`StoreError`] when the database refuses or is away.
pub async fn note(tx: &mut Tx, token: Uuid, wallet: &str, agent: Uuid) -> Result<(), StoreError> {
    const SQL: &str = "INSERT INTO enrolments (token_id, wallet_address, agent_id, created_at) \
        VALUES ($1, $2, $3, $4)";
    let at = tx.at;
    let wallet = wallet.to_ascii_lowercase();
    on!(&mut tx.conn, |c| sqlx::query(SQL)
        .bind(token)
        .bind(wallet)
        .bind(agent)
        .bind(at)
        .execute(c)
        .await?
        .rows_affected());
    Ok(())
}
