//! What agents did and what their model calls cost, one record at a time.

use otonix_sdk::api::actions::{Action, ActionLogged, LogAction};
use otonix_sdk::api::usage::{ComputeLog, LogUsage};
use otonix_sdk::error::ErrorCode;
use otonix_sdk::ids::{AgentId, EventId, OwnerId};
use otonix_sdk::limits;
use otonix_sdk::money::Cost;
use otonix_sdk::prices::PriceTable;
use uuid::Uuid;

use crate::app::App;
use crate::auth::{Caller, Scope};
use crate::error::Error;
use crate::service::{acting_agent, linked_agent, may_record, record_owner};
use crate::store::batch::{EventRow, EventsItem, LoggedAction, NewEvent, UsedModel};
use crate::store::idempotency::{Idem, StoredAnswer};
use crate::store::list::{self, Page, Param, Query};
use crate::store::writer::Written;

/// How the answer to a single record is kept for its idempotency key.
pub type Keep<T> = Option<(Idem, Box<dyn FnOnce(&T) -> StoredAnswer + Send>)>;

/// Checks an action and fills in its defaults.
///
/// # Errors
/// [`limits::Invalid`] naming the field.
pub fn check_action(body: LogAction) -> Result<LoggedAction, limits::Invalid> {
    let status = body.status.unwrap_or_else(|| "completed".to_owned());
    limits::check_action(&body.action, &body.category, body.details.as_deref().unwrap_or(""), &status)?;
    Ok(LoggedAction {
        action: body.action,
        category: body.category,
        details: body.details,
        status,
        autonomous: body.autonomous.unwrap_or(true),
        counted: true,
        ends_command: None,
    })
}

/// Checks a usage record and finds its cost.
///
/// # Errors
/// 400 naming the field; `unknown_model` when neither the record nor the price table says what it cost.
pub fn check_usage(prices: &PriceTable, body: LogUsage) -> Result<UsedModel, Error> {
    let cached = body.tokens_cached.unwrap_or(0);
    let reported = body.cost.map(Cost::get);
    limits::check_usage(&body.model, body.tokens_in, body.tokens_out, cached, reported)?;
    let list = prices.cost(&body.model, body.tokens_in, body.tokens_out, cached);
    let (cost, list_cost) = match (reported, list) {
        (Some(cost), list) => (cost, list),
        (None, Some(cost)) => (cost, None),
        (None, None) => {
            return Err(Error::Invalid {
                code: ErrorCode::UnknownModel,
                field: "cost".to_owned(),
                why: format!("is needed: the price table has no cost for model {}", body.model),
            });
        }
    };
    Ok(UsedModel {
        model: body.model,
        tokens_in: body.tokens_in,
        tokens_out: body.tokens_out,
        tokens_cached: cached,
        cost,
        list_cost,
    })
}

/// Logs an action.
///
/// # Errors
/// 401, 404, 400, 409 `agent_killed`.
pub async fn log_action(
    app: &App,
    caller: &Caller,
    agent: AgentId,
    body: LogAction,
    keep: Keep<ActionLogged>,
) -> Result<Written<ActionLogged>, Error> {
    let state = acting_agent(app, caller, agent).await?;
    let row = check_action(body)?;
    let id = otonix_sdk::clock::new_id();
    let at = app.clock.now();
    let logged = ActionLogged {
        success: true,
        action_id: EventId::from(id),
        action: Action {
            id: EventId::from(id),
            agent_id: agent,
            action: row.action.clone(),
            category: row.category.clone(),
            details: row.details.clone(),
            status: row.status.clone(),
            autonomous: row.autonomous,
            created_at: at,
        },
        timestamp: at,
    };
    let event = NewEvent { seq: 0, id, at, body: Ok(EventRow::Action(row)) };
    record(app, agent.uuid(), state.owner, event, logged, keep).await
}

/// Records a model call and debits its agent.
///
/// # Errors
/// 401 in guarded mode, 400, 409 `agent_killed`.
pub async fn log_usage(
    app: &App,
    caller: &Caller,
    body: LogUsage,
    keep: Keep<ComputeLog>,
) -> Result<Written<ComputeLog>, Error> {
    may_record(caller)?;
    let agent = linked_agent(app, caller, body.agent_id).await?;
    if let Some(state) = &agent
        && state.killed
    {
        return Err(Error::agent_killed(state.id.uuid()));
    }
    let owner = record_owner(caller, agent.as_ref()).unwrap_or(Uuid::nil());
    let row = check_usage(&app.prices, body)?;
    let id = otonix_sdk::clock::new_id();
    let at = app.clock.now();
    let log = ComputeLog {
        id: EventId::from(id),
        model: row.model.clone(),
        tokens_in: row.tokens_in,
        tokens_out: row.tokens_out,
        tokens_cached: row.tokens_cached,
        cost: row.cost,
        list_cost: row.list_cost,
        agent_id: agent.map(|state| state.id),
        created_at: at,
    };
    let agent = agent.map_or(Uuid::nil(), |state| state.id.uuid());
    let event = NewEvent { seq: 0, id, at, body: Ok(EventRow::Usage(row)) };
    record(app, agent, OwnerId::from(owner), event, log, keep).await
}

async fn record<T>(
    app: &App,
    agent: Uuid,
    owner: OwnerId,
    event: NewEvent,
    answer: T,
    keep: Keep<T>,
) -> Result<Written<T>, Error> {
    let idem = keep.map(|(idem, encode)| (idem, encode(&answer)));
    let (item, done) = EventsItem::new(agent, owner, None, vec![event], idem);
    app.writer.send_events(item)?;
    let done = done.await.map_err(|_| Error::internal("the writer is gone"))??;
    app.shared.metrics.events.inc();
    Ok(match done.replay {
        Some(stored) => Written::Replayed(stored),
        None => Written::Fresh(answer),
    })
}

fn narrow(caller: &Caller, query: &mut Query) -> Result<(), Error> {
    match caller.private_scope()? {
        Scope::All | Scope::Sanitised => {}
        Scope::Owner(owner) => query.filter("owner_id = ", Param::Id(owner)),
        Scope::Agent(agent) => query.filter("agent_id = ", Param::Id(agent)),
    }
    Ok(())
}

/// Actions of all agents, newest first.
///
/// # Errors
/// 401 for nobody in guarded mode.
pub async fn actions(app: &App, caller: &Caller, mut query: Query) -> Result<Page<Action>, Error> {
    narrow(caller, &mut query)?;
    Ok(app.db.read(move |conn| Box::pin(async move { list::actions(conn, &query).await })).await?)
}

/// Actions of one agent, newest first.
///
/// # Errors
/// 401 for nobody in guarded mode, 404.
pub async fn actions_of(
    app: &App,
    caller: &Caller,
    agent: AgentId,
    mut query: Query,
) -> Result<Page<Action>, Error> {
    if !caller.is_unrestricted() {
        caller.key()?;
    }
    let state = crate::service::agent_state(app, agent).await?;
    caller.may_see("agent", agent, Some(state.owner.uuid()), Some(agent.uuid()))?;
    query.filters.insert(0, ("agent_id = ", Param::Id(agent.uuid())));
    Ok(app.db.read(move |conn| Box::pin(async move { list::actions(conn, &query).await })).await?)
}

/// Usage records, newest first.
///
/// # Errors
/// 401 for nobody in guarded mode.
pub async fn usage(app: &App, caller: &Caller, mut query: Query) -> Result<Page<ComputeLog>, Error> {
    narrow(caller, &mut query)?;
    Ok(app.db.read(move |conn| Box::pin(async move { list::usage(conn, &query).await })).await?)
}
