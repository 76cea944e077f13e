//! Servers live as long as somebody pays: extended from their agent's credits in time; else warned of, the wallet swept
//! for what it has, powered off, and deleted before the vendor begins a period that nobody paid.
//!
//! Powering and deleting are repeated until the vendor has answered: doing them twice changes nothing. What is paid is in
//! `periods.rs`.

use chrono::{DateTime, TimeDelta, Utc};
use otonix_sdk::api::attached::Attached;
use otonix_sdk::api::commands::Command;
use otonix_sdk::error::ErrorCode;
use otonix_sdk::ids::CommandId;
use std::time::Duration;
use uuid::Uuid;

use crate::app::App;
use crate::error::Error;
use crate::store::actions::{self, ActionRow};
use crate::store::agents::AgentState;
use crate::store::tenancies::{self, Ending, Tenancy};
use crate::store::writer::{Notice, Target, Tx};
use crate::store::{agents, commands, warnings};
use crate::upstream::providers::{ComputeProvider, Cycle, Deadline, Refusal, ServerAction, VendorError};
use crate::worker::periods::{Sold, extend};
use crate::worker::{Held, hold};

const LEASE: &str = "lifetime";
/// Servers of one pass.
const PAGE: i64 = 200;
/// How long before its end a server is extended, and one that is billed by the hour.
const LEAD: TimeDelta = TimeDelta::hours(24);
const HOURLY_LEAD: TimeDelta = TimeDelta::hours(2);
/// So long before the end it is powered off, and deleted: the vendor bills the next period from the end on.
pub(super) const LAST_CALL: TimeDelta = TimeDelta::minutes(10);
const DELETE_BEFORE: TimeDelta = TimeDelta::minutes(5);
/// After it was powered off it is not powered on before whatever was sent has certainly come.
const REST: TimeDelta = TimeDelta::minutes(2);
const SEND_FOR: Duration = Duration::from_secs(55);

/// One pass over the servers whose time ends soon.
///
/// # Errors
/// 503 without database.
pub async fn run_once(app: &App) -> Result<(), Error> {
    let Some(compute) = &app.vendors.compute else { return Ok(()) };
    let Some(held) = hold(app, LEASE).await? else { return Ok(()) };
    app.shared.cycled();
    let until = app.clock.now() + LEAD;
    let due =
        app.db.read(move |conn| Box::pin(async move { tenancies::ending_before(conn, until, PAGE).await }));
    let sold = Sold::new();
    for tenancy in due.await? {
        if let Err(error) = keep(app, held, compute.as_ref(), &sold, &tenancy).await {
            tracing::warn!(server.id = tenancy.vendor_id, %error, "a server's time could not be seen to");
        }
    }
    let ending = app.db.read(move |conn| Box::pin(async move { tenancies::ending(conn, PAGE).await }));
    for ending in ending.await? {
        if let Err(error) = delete(app, held, compute.as_ref(), &ending).await {
            tracing::warn!(server.id = ending.vendor_id, %error, "a server could not be deleted");
        }
    }
    Ok(())
}

pub(super) fn lead(tenancy: &Tenancy) -> TimeDelta {
    if Cycle::parse(&tenancy.cycle) == Some(Cycle::Hourly) { HOURLY_LEAD } else { LEAD }
}

async fn keep(
    app: &App,
    held: Held,
    compute: &dyn ComputeProvider,
    sold: &Sold,
    tenancy: &Tenancy,
) -> Result<(), Error> {
    let now = app.clock.now();
    let last_call = tenancy.paid_until - LAST_CALL;
    if let Some(off) = tenancy.powered_off_at
        && now < last_call
        && now >= off + REST
    {
        return power_on(app, held, compute, tenancy).await;
    }
    if now < tenancy.paid_until - lead(tenancy) || extend(app, held, compute, sold, tenancy).await? {
        return Ok(());
    }
    if now >= tenancy.paid_until - DELETE_BEFORE {
        return end(app, held, tenancy).await;
    }
    if now >= last_call && !tenancy.is_off() {
        return power_off(app, held, compute, tenancy).await;
    }
    Ok(())
}

/// Whether an agent cannot pay, rather than something having gone wrong.
pub(super) fn is_poor(error: &Error) -> bool {
    matches!(
        error.code(),
        ErrorCode::InsufficientCredits | ErrorCode::AgentKilled | ErrorCode::AgentTerminated
    )
}

/// Tells once for each end that nobody pays, and asks the daemon to bring the wallet's money in.
pub(super) async fn warn(app: &App, held: Held, tenancy: &Tenancy, why: &str) -> Result<(), Error> {
    let (replica, seen, why) = (app.replica, tenancy.clone(), why.to_owned());
    let told = app.writer.apply(Target::Alone, move |tx| {
        Box::pin(async move {
            held.check(tx, replica).await?;
            if !warnings::first(tx, &format!("server {}", seen.id), seen.paid_until).await? {
                return Ok(false);
            }
            if let Some(agent) = seen.agent_id {
                tell(tx, agent, &seen, &why).await?;
            }
            Ok(true)
        })
    });
    if told.await? {
        tracing::warn!(server.id = tenancy.vendor_id, paid_until = %tenancy.paid_until, "nobody pays for a server");
    }
    Ok(())
}

async fn tell(tx: &mut Tx, agent: Uuid, seen: &Tenancy, why: &str) -> Result<(), Error> {
    let Some(state) = agents::lock_state(tx, agent).await? else { return Ok(()) };
    let action = format!("server {} is not paid beyond {}", seen.name, seen.paid_until.to_rfc3339());
    let line = ActionRow::by_server(&state, "infra", &action, Some(why.to_owned()), tx.at);
    actions::insert(tx, &[ActionRow { status: "failed".to_owned(), ..line }]).await?;
    ask_for_money(tx, &state, seen.paid_until).await
}

/// Warns a daemon, over its session, that something is not paid: it brings in what its wallet has. Once a date.
pub(super) async fn ask_for_money(
    tx: &mut Tx,
    state: &AgentState,
    due_at: DateTime<Utc>,
) -> Result<(), Error> {
    if state.killed {
        return Ok(());
    }
    let command = Command {
        id: CommandId::from(otonix_sdk::clock::new_id()),
        kind: "sweep".to_owned(),
        args: Attached::default(),
        status: "queued".to_owned(),
        created_at: tx.at,
        expires_at: due_at.max(tx.at + TimeDelta::minutes(5)),
        result: None,
    };
    commands::insert(tx, state.id.uuid(), &command).await?;
    tx.notices.push(Notice::Command(state.id.uuid()));
    Ok(())
}

/// Powers a server off for want of money. It is noted before it is sent, so that whoever pays meanwhile has it powered on
/// again once what was sent has certainly come.
async fn power_off(
    app: &App,
    held: Held,
    compute: &dyn ComputeProvider,
    tenancy: &Tenancy,
) -> Result<(), Error> {
    let Ok(id) = tenancy.vendor_id.parse() else { return Ok(()) };
    let until = Deadline::after(SEND_FOR);
    let (replica, seen) = (app.replica, tenancy.clone());
    let begun = app.writer.apply(Target::Alone, move |tx| {
        Box::pin(async move {
            held.check(tx, replica).await?;
            Ok(tenancies::begin_power_off(tx, seen.id, seen.paid_until).await?)
        })
    });
    if !begun.await? {
        return Ok(());
    }
    if let Err(why) = compute.act(id, &ServerAction::PowerOff, until).await {
        tracing::warn!(server.id = id, error = %why, "a server could not be powered off");
        return Ok(());
    }
    note_power(app, held, tenancy, true).await
}

async fn power_on(
    app: &App,
    held: Held,
    compute: &dyn ComputeProvider,
    tenancy: &Tenancy,
) -> Result<(), Error> {
    let Ok(id) = tenancy.vendor_id.parse() else { return Ok(()) };
    let until = Deadline::after(SEND_FOR);
    held.still(app).await?;
    if let Err(why) = compute.act(id, &ServerAction::PowerOn, until).await {
        tracing::warn!(server.id = id, error = %why, "a server could not be powered on");
        return Ok(());
    }
    note_power(app, held, tenancy, false).await
}

/// The vendor has powered a server off, or on again.
async fn note_power(app: &App, held: Held, tenancy: &Tenancy, off: bool) -> Result<(), Error> {
    let (replica, seen) = (app.replica, tenancy.clone());
    let noted = app.writer.apply(Target::Alone, move |tx| {
        Box::pin(async move {
            held.check(tx, replica).await?;
            tenancies::note_power(tx, seen.id, off).await?;
            let word = if off { "off: nobody paid for it" } else { "on again" };
            log(tx, seen.agent_id, &format!("server {} was powered {word}", seen.name)).await
        })
    });
    noted.await
}

/// Nobody can pay for it from here on; the vendor is told next.
async fn end(app: &App, held: Held, tenancy: &Tenancy) -> Result<(), Error> {
    let (replica, seen) = (app.replica, tenancy.clone());
    let ended = app.writer.apply(Target::Alone, move |tx| {
        Box::pin(async move {
            held.check(tx, replica).await?;
            if tenancies::end(tx, seen.id, seen.paid_until).await? {
                log(tx, seen.agent_id, &format!("server {} ends: nobody paid for it", seen.name)).await?;
            }
            Ok(())
        })
    });
    ended.await
}

async fn delete(app: &App, held: Held, compute: &dyn ComputeProvider, ending: &Ending) -> Result<(), Error> {
    let Ok(id) = ending.vendor_id.parse() else { return Ok(()) };
    match compute.delete(id, Deadline::after(SEND_FOR)).await {
        Ok(()) | Err(VendorError::NotDone { reason: Refusal::NotFound, .. }) => {}
        Err(why) => {
            tracing::warn!(server.id = ending.vendor_id, error = %why, "a server could not be deleted");
            return Ok(());
        }
    }
    let (replica, seen) = (app.replica, ending.clone());
    let noted = app.writer.apply(Target::Alone, move |tx| {
        Box::pin(async move {
            held.check(tx, replica).await?;
            if tenancies::deleted(tx, seen.id).await? {
                log(tx, seen.agent_id, &format!("server {} was deleted", seen.name)).await?;
            }
            Ok(())
        })
    });
    noted.await
}

async fn log(tx: &mut Tx, agent: Option<Uuid>, action: &str) -> Result<(), Error> {
    log_as(tx, agent, action, "completed").await
}

pub(super) async fn log_as(
    tx: &mut Tx,
    agent: Option<Uuid>,
    action: &str,
    status: &str,
) -> Result<(), Error> {
    let Some(agent) = agent else { return Ok(()) };
    if let Some(state) = agents::states_of(&mut tx.conn, &[agent]).await?.pop() {
        let line = ActionRow::by_server(&state, "infra", action, None, tx.at);
        actions::insert(tx, &[ActionRow { status: status.to_owned(), ..line }]).await?;
    }
    Ok(())
}
