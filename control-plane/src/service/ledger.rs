//! The ledger as its users see it: an agent's lines, and money set aside before it is spent.

use otonix_sdk::api::ledger::LedgerEntry;
use otonix_sdk::error::ErrorCode;
use otonix_sdk::ids::AgentId;
use otonix_sdk::money::{Amount, MicroUsd};
use uuid::Uuid;

use crate::app::App;
use crate::auth::Caller;
use crate::error::Error;
use crate::service::agent_state;
use crate::store::list::{self, Page, Param, Query};
use crate::store::writer::{Target, Tx};
use crate::store::{agents, ledger};

/// Lines of an agent's account, newest first.
///
/// # Errors
/// 401, 404.
pub async fn entries(
    app: &App,
    caller: &Caller,
    id: AgentId,
    mut query: Query,
) -> Result<Page<LedgerEntry>, Error> {
    if caller.operator().is_err() {
        caller.key()?;
    }
    let state = agent_state(app, id).await?;
    caller.must_own("agent", id, Some(state.owner.uuid()), Some(id.uuid()))?;
    query.filters.insert(
        0,
        ("(from_account = 'agent' OR to_account = 'agent') AND agent_id = ", Param::Id(id.uuid())),
    );
    Ok(app.db.read(move |conn| Box::pin(async move { list::ledger(conn, &query).await })).await?)
}

/// How a reservation ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum End {
    /// The money was spent on what it was for.
    Settled {
        /// The account that gets it.
        to: &'static str,
    },
    /// The money goes back.
    Released,
}

/// Sets an amount aside, if the balance covers it. Parallel reservations cannot exceed a balance by one unit:
/// the agent's row is locked while it is compared.
///
/// # Errors
/// 404, 409 `insufficient_credits` or `agent_killed`.
pub async fn reserve(app: &App, agent: AgentId, amount: Amount, purpose: &str) -> Result<Uuid, Error> {
    let purpose = purpose.to_owned();
    app.writer
        .apply(Target::Agent(agent.uuid()), move |tx| Box::pin(reserve_in(tx, agent, amount, purpose)))
        .await
}

/// The same inside a transaction.
///
/// # Errors
/// As [`reserve`].
pub async fn reserve_in(tx: &mut Tx, agent: AgentId, amount: Amount, purpose: String) -> Result<Uuid, Error> {
    let mut state =
        agents::lock_state(tx, agent.uuid()).await?.ok_or_else(|| Error::not_found("agent", agent))?;
    if state.killed {
        return Err(Error::agent_killed(agent.uuid()));
    }
    if state.credits < amount.get() {
        return Err(Error::conflict(
            ErrorCode::InsufficientCredits,
            format!("the balance of {} USDC does not cover {} USDC", state.credits, amount.get()),
        ));
    }
    let id = otonix_sdk::clock::new_id();
    let taken = MicroUsd::ZERO.saturating_sub(amount.get());
    ledger::insert_reservation(tx, agent.uuid(), id, amount.get(), &purpose).await?;
    ledger::move_credits(tx, &mut state, "reserve", ledger::RESERVED, taken, Some(id.to_string())).await?;
    Ok(id)
}

/// Ends a reservation; ending it twice changes nothing the second time.
///
/// # Errors
/// 404 when it is not held.
pub async fn end(app: &App, agent: AgentId, reservation: Uuid, how: End) -> Result<(), Error> {
    app.writer
        .apply(Target::Agent(agent.uuid()), move |tx| Box::pin(end_in(tx, agent, reservation, how)))
        .await
}

async fn end_in(tx: &mut Tx, agent: AgentId, id: Uuid, how: End) -> Result<(), Error> {
    let mut state =
        agents::lock_state(tx, agent.uuid()).await?.ok_or_else(|| Error::not_found("agent", agent))?;
    let status = match how {
        End::Settled { .. } => "settled",
        End::Released => "released",
    };
    let held = ledger::end_reservation(tx, agent.uuid(), id, status).await?;
    let held = held.ok_or_else(|| Error::not_found("held reservation", id))?;
    match how {
        End::Settled { to } => ledger::settle_reserved(tx, &state, to, held.amount, id).await?,
        End::Released => {
            let amount = MicroUsd::from_micros(held.amount);
            ledger::move_credits(tx, &mut state, "release", ledger::RESERVED, amount, Some(id.to_string()))
                .await?;
        }
    }
    Ok(())
}
