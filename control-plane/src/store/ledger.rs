//! Double entry: every movement takes a positive amount from one account and gives it to another, and the balances
//! change in the same transaction. The sum over all accounts is 0 at all times.

use otonix_sdk::money::MicroUsd;
use sqlx::FromRow;
use uuid::Uuid;

use crate::error::Error;
use crate::store::actions::{self, ActionRow};
use crate::store::agents::{self, AgentState};
use crate::store::sql::{hex_id, json};
use crate::store::writer::Tx;
use crate::store::{Conn, StoreError, on};

/// The agent's own account: its row's credits.
pub const AGENT: &str = "agent";
/// What model calls cost.
pub const COMPUTE: &str = "compute";
/// Where the operator's grants come from.
pub const GRANTS: &str = "grants";
/// Between parent and child; always 0 after a transaction.
pub const LINEAGE: &str = "lineage";
/// What is set aside for a purchase, a renewal or a child.
pub const RESERVED: &str = "reserved";
/// The money on the chain; its balance is what the treasury holds, negated.
pub const TREASURY: &str = "treasury";
/// Money that arrived from nobody known.
pub const UNMATCHED: &str = "unmatched";
/// Money that is owed back.
pub const REFUNDS: &str = "refunds";
/// What was paid for goods that are not there yet.
pub const PURCHASES_OPEN: &str = "purchases_open";
/// What was paid for goods that were delivered.
pub const PURCHASES: &str = "purchases";
/// Payments that left the chain after their goods were bought: the operator's loss.
pub const REVERSALS: &str = "reversals";
/// What the operator took out of the treasury.
pub const WITHDRAWALS: &str = "withdrawals";

/// Moves an amount between two system accounts, on behalf of no agent.
///
/// # Errors
/// [`StoreError`] when the database refuses or is away.
pub async fn move_between(
    tx: &mut Tx,
    kind: &'static str,
    from: &'static str,
    to: &'static str,
    amount: i64,
    reference: Option<String>,
) -> Result<(), StoreError> {
    if amount <= 0 {
        return Ok(());
    }
    insert(tx, &[NewTransfer { agent: Uuid::nil(), kind, from, to, amount, balance_after: 0, reference }])
        .await?;
    add_to_account(tx, from, -amount).await?;
    add_to_account(tx, to, amount).await
}

/// A movement of one agent's account.
#[derive(Debug, Clone)]
pub struct NewTransfer {
    pub agent: Uuid,
    pub kind: &'static str,
    pub from: &'static str,
    pub to: &'static str,
    /// Micro-USDC, positive.
    pub amount: i64,
    pub balance_after: i64,
    pub reference: Option<String>,
}

/// Inserts transfers whose balances were already changed in this transaction.
///
/// # Errors
/// [`StoreError`] when the database refuses or is away.
pub async fn insert(tx: &mut Tx, rows: &[NewTransfer]) -> Result<(), StoreError> {
    const PG: &str = "INSERT INTO transfers (agent_id, id, kind, from_account, to_account, amount, balance_after, \
        ref, created_at) SELECT r.*, $9 FROM UNNEST($1::uuid[], $2::uuid[], $3::text[], $4::text[], $5::text[], \
        $6::bigint[], $7::bigint[], $8::text[]) AS r";
    const LITE: &str = "INSERT INTO transfers (agent_id, id, kind, from_account, to_account, amount, balance_after, \
        ref, created_at) SELECT unhex(r.value->>0), unhex(r.value->>1), r.value->>2, r.value->>3, r.value->>4, \
        r.value->>5, r.value->>6, r.value->>7, $2 FROM json_each($1) r";
    if rows.is_empty() {
        return Ok(());
    }
    let ids: Vec<Uuid> = rows.iter().map(|_| otonix_sdk::clock::new_id()).collect();
    match &mut tx.conn {
        Conn::Postgres(c) => {
            sqlx::query(PG)
                .bind(rows.iter().map(|row| row.agent).collect::<Vec<_>>())
                .bind(&ids)
                .bind(rows.iter().map(|row| row.kind).collect::<Vec<_>>())
                .bind(rows.iter().map(|row| row.from).collect::<Vec<_>>())
                .bind(rows.iter().map(|row| row.to).collect::<Vec<_>>())
                .bind(rows.iter().map(|row| row.amount).collect::<Vec<_>>())
                .bind(rows.iter().map(|row| row.balance_after).collect::<Vec<_>>())
                .bind(rows.iter().map(|row| row.reference.as_deref()).collect::<Vec<_>>())
                .bind(tx.at)
                .execute(c)
                .await?;
        }
        Conn::Sqlite(c) => {
            let rows: Vec<_> = rows
                .iter()
                .zip(&ids)
                .map(|(row, id)| {
                    let reference = row.reference.as_deref();
                    (
                        hex_id(row.agent),
                        hex_id(*id),
                        row.kind,
                        row.from,
                        row.to,
                        row.amount,
                        row.balance_after,
                        reference,
                    )
                })
                .collect();
            sqlx::query(LITE).bind(json(&rows)).bind(tx.at).execute(c).await?;
        }
        Conn::SqlitePooled(_) | Conn::PostgresPooled(_) => {}
    }
    Ok(())
}

/// Adds to a system account; negative takes from it.
///
/// # Errors
/// [`StoreError`] when the database refuses or is away.
pub async fn add_to_account(tx: &mut Tx, name: &'static str, micros: i64) -> Result<(), StoreError> {
    const SQL: &str = "INSERT INTO accounts (name, shard, balance) VALUES ($1, $2, $3) \
        ON CONFLICT (name, shard) DO UPDATE SET balance = accounts.balance + excluded.balance";
    let shard = tx.shard;
    on!(&mut tx.conn, |c| sqlx::query(SQL)
        .bind(name)
        .bind(shard)
        .bind(micros)
        .execute(c)
        .await?
        .rows_affected());
    Ok(())
}

/// Moves an amount between a locked agent's account and a system account: into the agent's when `amount` is
/// positive. Writes transfer, balances, standing, and a line of the log when the tier changes.
///
/// # Errors
/// [`StoreError`] when the database refuses or is away; [`Error::Invalid`] when the balance would leave its range.
pub async fn move_credits(
    tx: &mut Tx,
    state: &mut AgentState,
    kind: &'static str,
    other: &'static str,
    amount: MicroUsd,
    reference: Option<String>,
) -> Result<(), Error> {
    let before = state.tier;
    let out_of_range = || Error::invalid("amount", "would take the balance out of its range");
    state.credits = state.credits.checked_add(amount).ok_or_else(out_of_range)?;
    state.settle(tx.at, &tx.thresholds);
    let into = !amount.is_negative();
    let row = NewTransfer {
        agent: state.id.uuid(),
        kind,
        from: if into { other } else { AGENT },
        to: if into { AGENT } else { other },
        amount: amount.micros().checked_abs().ok_or_else(out_of_range)?,
        balance_after: state.credits.micros(),
        reference,
    };
    let given = amount.micros().checked_neg().ok_or_else(out_of_range)?;
    if state.tier != before {
        actions::insert(tx, &[ActionRow::tier_change(state, before, tx.at)]).await?;
        tx.counts.tier_changes += 1;
    }
    if tx.conn.is_postgres() {
        return Ok(move_at_once(tx, state, row, (other, given)).await?);
    }
    insert(tx, &[row]).await?;
    add_to_account(tx, other, given).await?;
    let mut changes = [*state];
    agents::write_states(tx, &mut changes).await?;
    *state = changes[0];
    Ok(())
}

/// Transfer, account and agent in one statement: each one that a payment waits for is a way to the database and back.
async fn move_at_once(
    tx: &mut Tx,
    state: &mut AgentState,
    row: NewTransfer,
    (other, given): (&'static str, i64),
) -> Result<(), StoreError> {
    const SQL: &str = "WITH moved AS (INSERT INTO transfers (agent_id, id, kind, from_account, to_account, amount, \
        balance_after, ref, created_at) VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9)), \
        booked AS (INSERT INTO accounts (name, shard, balance) VALUES ($10, $11, $12) \
        ON CONFLICT (name, shard) DO UPDATE SET balance = accounts.balance + excluded.balance) \
        UPDATE agents SET credits = $7, funded = $13, survival_tier = $14, status = $15, session_id = $16, \
        version = $17 WHERE id = $1";
    state.version += 1;
    let (at, shard) = (tx.at, tx.shard);
    on!(&mut tx.conn, |c| sqlx::query(SQL)
        .bind(row.agent)
        .bind(otonix_sdk::clock::new_id())
        .bind(row.kind)
        .bind(row.from)
        .bind(row.to)
        .bind(row.amount)
        .bind(row.balance_after)
        .bind(row.reference)
        .bind(at)
        .bind(other)
        .bind(shard)
        .bind(given)
        .bind(state.funded)
        .bind(state.tier.as_str())
        .bind(state.status.as_str())
        .bind(state.session)
        .bind(state.version)
        .execute(c)
        .await?
        .rows_affected());
    tx.changed.push(*state);
    Ok(())
}

/// Gives what was reserved to the account it was spent on; the agent's own balance has changed when it was reserved.
///
/// # Errors
/// [`StoreError`] when the database refuses or is away.
pub async fn settle_reserved(
    tx: &mut Tx,
    state: &AgentState,
    to: &'static str,
    amount: i64,
    reservation: Uuid,
) -> Result<(), StoreError> {
    let row = NewTransfer {
        agent: state.id.uuid(),
        kind: "settle",
        from: RESERVED,
        to,
        amount,
        balance_after: state.credits.micros(),
        reference: Some(reservation.to_string()),
    };
    insert(tx, &[row]).await?;
    add_to_account(tx, RESERVED, -amount).await?;
    add_to_account(tx, to, amount).await
}

#[derive(FromRow)]
pub(super) struct EntryRead {
    pub(super) id: Uuid,
    kind: String,
    to_account: String,
    amount: i64,
    balance_after: i64,
    #[sqlx(rename = "ref")]
    reference: Option<String>,
    created_at: chrono::DateTime<chrono::Utc>,
}

pub(super) const COLUMNS: &str = "id, kind, to_account, amount, balance_after, ref, created_at";

impl From<EntryRead> for otonix_sdk::api::ledger::LedgerEntry {
    fn from(row: EntryRead) -> Self {
        let signed = if row.to_account == AGENT { row.amount } else { -row.amount };
        Self {
            id: row.id.into(),
            kind: row.kind,
            amount: MicroUsd::from_micros(signed),
            balance_after: MicroUsd::from_micros(row.balance_after),
            reference: row.reference,
            created_at: row.created_at,
        }
    }
}

/// What became of a reservation.
#[derive(Debug, Clone, FromRow)]
pub struct Reservation {
    pub amount: i64,
    pub status: String,
    pub purpose: String,
}

/// Notes an amount as held.
///
/// # Errors
/// [`StoreError`] when the database refuses or is away.
pub async fn insert_reservation(
    tx: &mut Tx,
    agent: Uuid,
    id: Uuid,
    amount: MicroUsd,
    purpose: &str,
) -> Result<(), StoreError> {
    const SQL: &str = "INSERT INTO reservations (agent_id, id, amount, purpose, status, created_at) \
        VALUES ($1, $2, $3, $4, 'held', $5)";
    let at = tx.at;
    on!(&mut tx.conn, |c| sqlx::query(SQL)
        .bind(agent)
        .bind(id)
        .bind(amount.micros())
        .bind(purpose)
        .bind(at)
        .execute(c)
        .await?
        .rows_affected());
    Ok(())
}

/// Ends a held reservation; `None` when it is not held (any more).
///
/// # Errors
/// [`StoreError`] when the database refuses or is away.
pub async fn end_reservation(
    tx: &mut Tx,
    agent: Uuid,
    id: Uuid,
    status: &'static str,
) -> Result<Option<Reservation>, StoreError> {
    const SQL: &str = "UPDATE reservations SET status = $3 WHERE agent_id = $1 AND id = $2 AND status = 'held' \
        RETURNING amount, status, purpose";
    Ok(on!(&mut tx.conn, |c| sqlx::query_as(SQL).bind(agent).bind(id).bind(status).fetch_optional(c).await?))
}
