//! Domains as their agents and operators record them. A posted record is never renewed and never touched at a vendor.

use otonix_sdk::api::records::{DnsRecord, Domain, NewDomain};
use otonix_sdk::api::vendors::RegisteredDomain;
use otonix_sdk::error::ErrorCode;
use otonix_sdk::ids::{AgentId, DomainId};
use otonix_sdk::limits;
use serde::Deserialize;
use serde_json::Value;
use sha2::{Digest as _, Sha256};

use crate::app::App;
use crate::auth::{Caller, Principal, Scope};
use crate::error::Error;
use crate::service::{catalogue, linked_agent, linked_sandbox, may_record, record_owner, vendors};
use crate::store::list::{self, Page, Param, Query};
use crate::store::writer::{IdemFor, Target, Tx, Written};
use crate::store::{StoreError, domains};
use crate::upstream::names::DomainName;

const STATUSES: [&str; 3] = ["active", "expired", "pending"];
const MAX_RECORDS: usize = 500;

/// A domain name in its ASCII form.
///
/// # Errors
/// [`Error::Invalid`] when it is none.
pub fn normalise(name: &str) -> Result<String, Error> {
    Ok(DomainName::of_field("name", name)?.as_str().to_owned())
}

fn check_status(status: &str) -> Result<(), Error> {
    if STATUSES.contains(&status) {
        Ok(())
    } else {
        Err(Error::invalid("status", "must be active, expired or pending"))
    }
}

fn check_records(records: &[DnsRecord]) -> Result<(), Error> {
    if records.len() > MAX_RECORDS {
        return Err(Error::invalid("dnsRecords", format!("must have at most {MAX_RECORDS} entries")));
    }
    for record in records {
        limits::check_slug("dnsRecords.type", &record.kind)?;
        limits::check_text("dnsRecords.name", &record.name, 0..=255)?;
        limits::check_text("dnsRecords.value", &record.value, 1..=4096)?;
    }
    Ok(())
}

/// Records a domain.
///
/// # Errors
/// 401 in guarded mode, 400, 409 `name_taken`.
pub async fn create(
    app: &App,
    caller: &Caller,
    body: NewDomain,
    idem: Option<IdemFor<Domain>>,
) -> Result<Written<Domain>, Error> {
    may_record(caller)?;
    let name = normalise(&body.name)?;
    let status = body.status.unwrap_or_else(|| "active".to_owned());
    check_status(&status)?;
    let dns_records = body.dns_records.unwrap_or_default();
    check_records(&dns_records)?;
    let agent = linked_agent(app, caller, body.agent_id).await?;
    let sandbox_id = linked_sandbox(app, caller, body.sandbox_id).await?;
    let owner = record_owner(caller, agent.as_ref());
    // Rights at a vendor come from a purchase or from the operator; a claim by anyone else gives none.
    let managed = body.managed == Some(true) && caller.principal == Principal::Operator;
    let domain = Domain {
        id: DomainId::from(otonix_sdk::clock::new_id()),
        name,
        status,
        registered_at: Some(body.registered_at.unwrap_or_else(|| app.clock.now())),
        expires_at: body.expires_at,
        dns_records,
        sandbox_id,
        agent_id: agent.map(|state| state.id),
        auto_renew: body.auto_renew.unwrap_or(false),
        managed,
        contact_verified: None,
        verify_by: None,
    };
    app.writer
        .run(Target::Shared, idem, move |tx| {
            Box::pin(async move {
                domains::insert(tx, &domain, owner).await.map_err(|error| taken(error, &domain.name))?;
                Ok(domain)
            })
        })
        .await
}

fn taken(error: StoreError, name: &str) -> Error {
    match error {
        StoreError::Taken(_) => {
            Error::conflict(ErrorCode::NameTaken, format!("the domain {name} is recorded already"))
        }
        other => Error::Store(other),
    }
}

/// Domains, newest first.
///
/// # Errors
/// 503 without database.
pub async fn list(app: &App, caller: &Caller, mut query: Query) -> Result<Page<Domain>, Error> {
    match caller.public_scope() {
        Scope::All | Scope::Sanitised => {}
        Scope::Owner(owner) => query.filter("owner_id = ", Param::Id(owner)),
        Scope::Agent(agent) => query.filter("agent_id = ", Param::Id(agent)),
    }
    Ok(app.db.read(move |conn| Box::pin(async move { list::domains(conn, &query).await })).await?)
}

/// The managed domains that are a caller's own; in open mode everyone's; for the operator all that the registrar has.
/// Newest first.
///
/// # Errors
/// 401 for nobody in guarded mode, 503 when the registrar cannot be asked.
pub async fn registered(
    app: &App,
    caller: &Caller,
    mut query: Query,
) -> Result<Page<RegisteredDomain>, Error> {
    if caller.principal == Principal::Operator {
        let all = catalogue::domains(app).await?;
        let shown = all.iter().map(|domain| RegisteredDomain {
            name: domain.name.to_string(),
            registered_at: domain.bought_at,
            expires_at: domain.expires_at,
            renews_itself: domain.renews_itself,
        });
        let place = |domain: &RegisteredDomain| (domain.registered_at, number_of(&domain.name));
        return Ok(vendors::page_of(shown, &query, place));
    }
    match caller.private_scope()? {
        Scope::All | Scope::Sanitised => {}
        Scope::Owner(owner) => query.filter("owner_id = ", Param::Id(owner)),
        Scope::Agent(agent) => query.filter("agent_id = ", Param::Id(agent)),
    }
    let page =
        app.db.read(move |conn| Box::pin(async move { list::managed_domains(conn, &query).await })).await?;
    let shown = page.rows.into_iter().map(|domain| RegisteredDomain {
        name: domain.name,
        registered_at: domain.registered_at,
        expires_at: domain.expires_at,
        renews_itself: false,
    });
    Ok(Page { rows: shown.collect(), next: page.next })
}

/// A number that tells a name from others.
fn number_of(name: &str) -> u128 {
    let digest: [u8; 32] = Sha256::digest(name).into();
    digest.iter().take(16).fold(0, |number, byte| (number << 8) | u128::from(*byte))
}

/// One domain.
///
/// # Errors
/// 401 for nobody in guarded mode, 404.
pub async fn domain(app: &App, caller: &Caller, id: DomainId) -> Result<Domain, Error> {
    if !caller.is_unrestricted() {
        caller.key()?;
    }
    let found =
        app.db.read(move |conn| Box::pin(async move { domains::domain(conn, id.uuid()).await })).await?;
    let (domain, owner) = found.ok_or_else(|| Error::not_found("domain", id))?;
    caller.may_see("domain", id, owner, domain.agent_id.map(AgentId::uuid))?;
    Ok(domain)
}

/// A change of a domain: a field that is absent stays, `null` clears it.
#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ChangeDomain {
    #[serde(default)]
    status: Option<String>,
    #[serde(default, deserialize_with = "present")]
    registered_at: Option<Value>,
    #[serde(default, deserialize_with = "present")]
    expires_at: Option<Value>,
    #[serde(default)]
    dns_records: Option<Vec<DnsRecord>>,
    #[serde(default, deserialize_with = "present")]
    sandbox_id: Option<Value>,
    #[serde(default, deserialize_with = "present")]
    agent_id: Option<Value>,
    #[serde(default)]
    auto_renew: Option<bool>,
}

fn present<'de, D: serde::Deserializer<'de>>(deserializer: D) -> Result<Option<Value>, D::Error> {
    Value::deserialize(deserializer).map(Some)
}

/// `None`: stays. `Some(None)`: cleared.
fn change<T: for<'de> Deserialize<'de>>(
    field: &str,
    value: Option<Value>,
) -> Result<Option<Option<T>>, Error> {
    let Some(value) = value else { return Ok(None) };
    if value.is_null() {
        return Ok(Some(None));
    }
    serde_json::from_value(value)
        .map(|value| Some(Some(value)))
        .map_err(|why| Error::invalid(field, why.to_string()))
}

/// Changes a domain. On a managed one `status`, `expiresAt` and `registeredAt` are the server's and stay.
///
/// # Errors
/// 401 in guarded mode, 404, 400.
pub async fn update(app: &App, caller: &Caller, id: DomainId, body: ChangeDomain) -> Result<Domain, Error> {
    may_record(caller)?;
    domain(app, caller, id).await?;
    if let Some(status) = &body.status {
        check_status(status)?;
    }
    if let Some(records) = &body.dns_records {
        check_records(records)?;
    }
    let registered_at = change("registeredAt", body.registered_at)?;
    let expires_at = change("expiresAt", body.expires_at)?;
    let sandbox_id = match change("sandboxId", body.sandbox_id)? {
        Some(id) => Some(linked_sandbox(app, caller, id).await?),
        None => None,
    };
    let agent_id = match change("agentId", body.agent_id)? {
        Some(id) => Some(linked_agent(app, caller, id).await?.map(|state| state.id)),
        None => None,
    };
    let apply = move |domain: &mut Domain| {
        if !domain.managed {
            domain.status = body.status.unwrap_or_else(|| domain.status.clone());
            domain.registered_at = registered_at.unwrap_or(domain.registered_at);
            domain.expires_at = expires_at.unwrap_or(domain.expires_at);
        }
        domain.dns_records = body.dns_records.unwrap_or_else(|| std::mem::take(&mut domain.dns_records));
        domain.sandbox_id = sandbox_id.unwrap_or(domain.sandbox_id);
        domain.agent_id = agent_id.unwrap_or(domain.agent_id);
        domain.auto_renew = body.auto_renew.unwrap_or(domain.auto_renew);
    };
    app.writer.apply(Target::Alone, move |tx| Box::pin(update_in(tx, id, apply))).await
}

async fn update_in(
    tx: &mut Tx,
    id: DomainId,
    apply: impl FnOnce(&mut Domain) + Send,
) -> Result<Domain, Error> {
    domains::lock(tx, id.uuid()).await?;
    let found = domains::domain(&mut tx.conn, id.uuid()).await?;
    let (mut domain, _) = found.ok_or_else(|| Error::not_found("domain", id))?;
    apply(&mut domain);
    domains::update(tx, &domain).await?;
    Ok(domain)
}
