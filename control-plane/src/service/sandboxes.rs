//! Sandboxes as their agents and operators record them. A posted record gives no rights at a vendor.

use otonix_sdk::api::records::{NewSandbox, Sandbox};
use otonix_sdk::error::ErrorCode;
use otonix_sdk::ids::{AgentId, SandboxId};
use otonix_sdk::limits;
use uuid::Uuid;

use crate::app::App;
use crate::auth::{Caller, Principal, Scope};
use crate::error::Error;
use crate::service::vendors::{compute, failed};
use crate::service::{linked_agent, may_record, record_owner};
use crate::store::StoreError;
use crate::store::list::{self, Page, Param, Query};
use crate::store::sandboxes::{self, AtVendor};
use crate::store::writer::{IdemFor, Target, Written};
use crate::upstream::providers::Cycle;

const STATUSES: [&str; 4] = ["running", "stopped", "deploying", "error"];
const MAX_PORTS: usize = 1024;

fn optional(field: &'static str, text: Option<&str>) -> Result<(), Error> {
    if let Some(text) = text {
        limits::check_text(field, text, 0..=256)?;
    }
    Ok(())
}

fn not_negative(field: &'static str, number: Option<i32>) -> Result<(), Error> {
    match number {
        Some(number) if number < 0 => Err(Error::invalid(field, "must not be negative")),
        Some(_) | None => Ok(()),
    }
}

fn taken(error: StoreError) -> Error {
    match error {
        StoreError::Taken(_) => Error::conflict(ErrorCode::NameTaken, "this server has a row already"),
        other => Error::Store(other),
    }
}

/// The server that the operator names, as the vendor has it.
async fn at_vendor(app: &App, body: &NewSandbox) -> Result<AtVendor, Error> {
    let id = body.server_id.ok_or_else(|| Error::invalid("serverId", "is needed for a managed server"))?;
    let cycle = Cycle::parse(body.cycle.as_deref().unwrap_or("hourly"));
    let cycle = cycle.ok_or_else(|| Error::invalid("cycle", "is not known"))?;
    let found = compute(app)?.server(id).await.map_err(failed)?;
    let server = found.ok_or_else(|| Error::invalid("serverId", "names no server of the account"))?;
    let project = server.project.or(app.vendors.project);
    Ok(AtVendor {
        purchase: Uuid::nil(),
        vendor_id: id.to_string(),
        project_id: project.map(|project| project.to_string()).unwrap_or_default(),
        plan: server.plan.map(|plan| plan.to_string()).unwrap_or_default(),
        cycle: cycle.as_str().to_owned(),
    })
}

/// Records a sandbox.
///
/// # Errors
/// 401 in guarded mode, 400.
pub async fn create(
    app: &App,
    caller: &Caller,
    body: NewSandbox,
    idem: Option<IdemFor<Sandbox>>,
) -> Result<Written<Sandbox>, Error> {
    may_record(caller)?;
    limits::check_name("name", &body.name, limits::NAME)?;
    let at = match body.managed {
        // Rights at a vendor come from a purchase or from the operator; a claim by anyone else gives none.
        Some(true) if caller.principal == Principal::Operator => Some(at_vendor(app, &body).await?),
        Some(_) | None => None,
    };
    let status = body.status.unwrap_or_else(|| "running".to_owned());
    if !STATUSES.contains(&status.as_str()) {
        return Err(Error::invalid("status", "must be running, stopped, deploying or error"));
    }
    optional("os", body.os.as_deref())?;
    optional("region", body.region.as_deref())?;
    optional("ipAddress", body.ip_address.as_deref())?;
    not_negative("cpu", body.cpu)?;
    not_negative("memory", body.memory)?;
    not_negative("disk", body.disk)?;
    let ports = body.ports.unwrap_or_default();
    if ports.len() > MAX_PORTS {
        return Err(Error::invalid("ports", format!("must have at most {MAX_PORTS} entries")));
    }
    let agent = linked_agent(app, caller, body.agent_id).await?;
    let owner = record_owner(caller, agent.as_ref());
    let sandbox = Sandbox {
        id: SandboxId::from(otonix_sdk::clock::new_id()),
        name: body.name,
        status,
        os: body.os,
        cpu: body.cpu,
        memory: body.memory,
        disk: body.disk,
        region: body.region,
        ip_address: body.ip_address,
        ports,
        agent_id: agent.map(|state| state.id),
        managed: at.is_some(),
        paid_until: body.paid_until.filter(|_| at.is_some()),
        created_at: app.clock.now(),
    };
    app.writer
        .run(Target::Shared, idem, move |tx| {
            Box::pin(async move {
                match &at {
                    Some(at) => sandboxes::insert_managed(tx, &sandbox, owner, at).await.map_err(taken)?,
                    None => sandboxes::insert(tx, &sandbox, owner).await?,
                }
                Ok(sandbox)
            })
        })
        .await
}

/// Sandboxes, newest first, and whether they are to be sanitised.
///
/// # Errors
/// 503 without database.
pub async fn list(app: &App, caller: &Caller, mut query: Query) -> Result<Page<Sandbox>, Error> {
    match caller.public_scope() {
        Scope::All | Scope::Sanitised => {}
        Scope::Owner(owner) => query.filter("owner_id = ", Param::Id(owner)),
        Scope::Agent(agent) => query.filter("agent_id = ", Param::Id(agent)),
    }
    Ok(app.db.read(move |conn| Box::pin(async move { list::sandboxes(conn, &query).await })).await?)
}

/// One sandbox.
///
/// # Errors
/// 401 for nobody in guarded mode, 404.
pub async fn sandbox(app: &App, caller: &Caller, id: SandboxId) -> Result<Sandbox, Error> {
    if !caller.is_unrestricted() {
        caller.key()?;
    }
    let found =
        app.db.read(move |conn| Box::pin(async move { sandboxes::sandbox(conn, id.uuid()).await })).await?;
    let (sandbox, owner) = found.ok_or_else(|| Error::not_found("sandbox", id))?;
    caller.may_see("sandbox", id, owner, sandbox.agent_id.map(AgentId::uuid))?;
    Ok(sandbox)
}
