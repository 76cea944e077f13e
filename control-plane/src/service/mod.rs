//! The rules of the business, one file a resource; no transport and no SQL.

use otonix_sdk::ids::{AgentId, SandboxId};
use uuid::Uuid;

use crate::app::App;
use crate::auth::{Caller, Principal};
use crate::error::Error;
use crate::store;
use crate::store::agents::AgentState;

pub mod activity;
pub mod agents;
pub mod automation;
pub mod catalogue;
pub mod children;
pub mod commands;
pub mod dns;
pub mod domains;
pub mod enrolment;
pub mod events;
pub mod keys;
pub mod ledger;
pub mod payments;
pub mod pricing;
pub mod purchases;
pub mod sandboxes;
pub mod servers;
pub mod sessions;
pub mod transactions;
pub mod vendors;
mod wallets;

/// The agent of an id, from memory or the database.
///
/// # Errors
/// [`Error::NotFound`] when there is none.
pub(crate) async fn agent_state(app: &App, id: AgentId) -> Result<AgentState, Error> {
    let slot = app.shared.fleet.slot(&app.db, id.uuid()).await?;
    slot.map(|slot| slot.state()).ok_or_else(|| Error::not_found("agent", id))
}

/// The agent that a key acts for: its own owner's, or the one of an agent's key.
///
/// # Errors
/// 401 without a key, 404 for another owner's agent, 409 when it was killed.
pub(crate) async fn acting_agent(app: &App, caller: &Caller, id: AgentId) -> Result<AgentState, Error> {
    caller.key()?;
    let state = agent_state(app, id).await?;
    if !caller.owns(Some(state.owner.uuid()), Some(id.uuid())) {
        return Err(Error::not_found("agent", id));
    }
    if state.killed {
        return Err(Error::agent_killed(id.uuid()));
    }
    Ok(state)
}

/// The agent that a body links to; an agent's own key links its agent. Nobody known links nothing.
///
/// # Errors
/// [`Error::Invalid`] when it is unknown or another owner's.
pub(crate) async fn linked_agent(
    app: &App,
    caller: &Caller,
    id: Option<AgentId>,
) -> Result<Option<AgentState>, Error> {
    let own = match caller.principal {
        Principal::Key(key) => key.agent,
        Principal::Operator | Principal::Anonymous => None,
    };
    let Some(id) = id.or(own) else { return Ok(None) };
    if caller.principal == Principal::Anonymous {
        return Ok(None);
    }
    let slot = app.shared.fleet.slot(&app.db, id.uuid()).await?;
    let state = slot.map(|slot| slot.state()).ok_or_else(|| Error::unknown_link("agentId"))?;
    if caller.principal != Principal::Operator && !caller.owns(Some(state.owner.uuid()), Some(id.uuid())) {
        return Err(Error::unknown_link("agentId"));
    }
    if state.killed {
        return Err(Error::agent_killed(id.uuid()));
    }
    Ok(Some(state))
}

/// The sandbox that a body links to. Nobody known links nothing.
///
/// # Errors
/// [`Error::Invalid`] when it is unknown or another owner's.
pub(crate) async fn linked_sandbox(
    app: &App,
    caller: &Caller,
    id: Option<SandboxId>,
) -> Result<Option<SandboxId>, Error> {
    let Some(id) = id else { return Ok(None) };
    if caller.principal == Principal::Anonymous {
        return Ok(None);
    }
    let found = app
        .db
        .read(move |conn| Box::pin(async move { store::sandboxes::sandbox(conn, id.uuid()).await }))
        .await?;
    let (sandbox, owner) = found.ok_or_else(|| Error::unknown_link("sandboxId"))?;
    let agent = sandbox.agent_id.map(AgentId::uuid);
    if caller.principal != Principal::Operator && !caller.owns(owner, agent) {
        return Err(Error::unknown_link("sandboxId"));
    }
    Ok(Some(id))
}

/// Whom a new record belongs to: the key's owner, or the linked agent's when the operator records it.
pub(crate) fn record_owner(caller: &Caller, agent: Option<&AgentState>) -> Option<Uuid> {
    match caller.principal {
        Principal::Key(key) => Some(key.owner.uuid()),
        Principal::Operator => agent.map(|state| state.owner.uuid()),
        Principal::Anonymous => None,
    }
}

/// A write that the API documents as needing no key: anyone in open mode, else a key or the operator.
///
/// # Errors
/// 401 for nobody in guarded mode.
pub(crate) fn may_record(caller: &Caller) -> Result<(), Error> {
    if caller.is_unrestricted() {
        return Ok(());
    }
    caller.key().map(|_| ())
}
