//! Commands for daemons: a closed list, queued until delivered or expired.

use chrono::TimeDelta;
use otonix_sdk::api::attached::Attached;
use otonix_sdk::api::commands::{Command, KINDS, NewCommand};
use otonix_sdk::error::ErrorCode;
use otonix_sdk::ids::{AgentId, CommandId};
use otonix_sdk::limits;
use serde_json::Value;
use uuid::Uuid;

use crate::app::App;
use crate::auth::{Caller, Principal};
use crate::error::Error;
use crate::service::agent_state;
use crate::store::list::{self, Page, Param, Query};
use crate::store::writer::{IdemFor, Notice, Target, Tx, Written};
use crate::store::{agents, commands};

const DEFAULT_TTL_SECS: u32 = 300;
const MAX_TTL_SECS: u32 = 7 * 86_400;

async fn may_command(app: &App, caller: &Caller, id: AgentId) -> Result<(), Error> {
    if caller.principal != Principal::Operator {
        caller.owner_key()?;
    }
    let state = agent_state(app, id).await?;
    caller.must_own("agent", id, Some(state.owner.uuid()), None)
}

fn check_args(kind: &str, args: &Attached) -> Result<(), Error> {
    args.check("args")?;
    let args = args.fields();
    match kind {
        "set_interval" => {
            let secs = args.get("seconds").and_then(Value::as_u64).and_then(|secs| u32::try_from(secs).ok());
            match secs {
                Some(secs) if limits::HEARTBEAT_INTERVAL.contains(&secs) => Ok(()),
                Some(_) | None => Err(Error::invalid("args.seconds", "must be 5 to 86400")),
            }
        }
        "set_model" => {
            let model = args.get("model").and_then(Value::as_str).unwrap_or("");
            Ok(limits::check_name("args.model", model, limits::MODEL)?)
        }
        _ => Ok(()),
    }
}

/// Queues a command.
///
/// # Errors
/// 401, 403 for an agent's key, 404, 400, 409 `agent_killed`.
pub async fn create(
    app: &App,
    caller: &Caller,
    agent: AgentId,
    body: NewCommand,
    idem: Option<IdemFor<Command>>,
) -> Result<Written<Command>, Error> {
    may_command(app, caller, agent).await?;
    if !KINDS.contains(&body.kind.as_str()) {
        return Err(Error::invalid("kind", format!("must be one of {}", KINDS.join(", "))));
    }
    let args = body.args.unwrap_or_default();
    check_args(&body.kind, &args)?;
    let ttl = body.ttl_seconds.unwrap_or(DEFAULT_TTL_SECS);
    if !(1..=MAX_TTL_SECS).contains(&ttl) {
        return Err(Error::invalid("ttlSeconds", format!("must be 1 to {MAX_TTL_SECS}")));
    }
    let now = app.clock.now();
    let command = Command {
        id: CommandId::from(otonix_sdk::clock::new_id()),
        kind: body.kind,
        args,
        status: "queued".to_owned(),
        created_at: now,
        expires_at: now + TimeDelta::seconds(i64::from(ttl)),
        result: None,
    };
    app.writer
        .run(Target::Agent(agent.uuid()), idem, move |tx| Box::pin(queue(tx, agent.uuid(), command)))
        .await
}

async fn queue(tx: &mut Tx, agent: Uuid, command: Command) -> Result<Command, Error> {
    let state = agents::lock_state(tx, agent).await?.ok_or_else(|| Error::not_found("agent", agent))?;
    if state.killed {
        return Err(Error::agent_killed(agent));
    }
    if commands::open_count(tx, agent).await? >= commands::MAX_OPEN {
        return Err(Error::conflict(ErrorCode::Conflict, "too many commands are waiting for this agent"));
    }
    commands::insert(tx, agent, &command).await?;
    tx.notices.push(Notice::Command(agent));
    Ok(command)
}

/// Commands of an agent, newest first. One whose time is over shows as expired, whether or not a worker has been there.
///
/// # Errors
/// 401, 403 for an agent's key, 404.
pub async fn list(
    app: &App,
    caller: &Caller,
    agent: AgentId,
    mut query: Query,
) -> Result<Page<Command>, Error> {
    may_command(app, caller, agent).await?;
    query.filters.insert(0, ("agent_id = ", Param::Id(agent.uuid())));
    let now = app.clock.now();
    let mut page =
        app.db.read(move |conn| Box::pin(async move { list::commands(conn, &query).await })).await?;
    for command in &mut page.rows {
        if matches!(command.status.as_str(), "queued" | "delivered") && command.expires_at <= now {
            command.status = "expired".to_owned();
        }
    }
    Ok(page)
}

/// The open commands of an agent, marked as delivered.
///
/// # Errors
/// 503 without database.
pub async fn deliver(app: &App, agent: Uuid) -> Result<Vec<Command>, Error> {
    app.writer
        .apply(Target::Agent(agent), move |tx| {
            Box::pin(
                async move { Ok(commands::deliver(tx, &[agent]).await?.remove(&agent).unwrap_or_default()) },
            )
        })
        .await
}
