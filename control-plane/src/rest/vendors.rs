//! What vendors offer, and managed things at them: domains, zones, servers. Purchases have a file of their own.

use std::sync::Arc;

use futures_util::stream::{self, StreamExt as _};
use http::StatusCode;
use otonix_sdk::api::vendors::{
    ActOnServer, CheckDomains, CheckedDomain, CheckedDomains, NewZoneRecord, PlanPrice, PlanStock, ServerPlan,
};
use serde::Serialize;
use serde_json::json as object;

use crate::error::Error;
use crate::rest::answer::{Filters, json, list_query, page, replay, stored, written};
use crate::rest::call::Call;
use crate::rest::{Answered, id_at};
use crate::service::{catalogue, dns, domains, payments, pricing, servers, vendors};
use crate::upstream::providers::{Decimal, DomainName, Plan, Slug};

/// Names checked at once.
const MOST_DOMAINS: usize = 50;
/// Of these, so many are asked for at the same time.
const AT_ONCE: usize = 4;
const NO_FILTERS: Filters = Filters { agent: None, status: &[], category: false, time: false };

pub async fn vercel_status(call: Call) -> Answered {
    status(&call, "vercel")
}

pub async fn cherry_status(call: Call) -> Answered {
    status(&call, "cherry")
}

/// Whether a vendor is configured, and whether its last answer was one. Nobody is asked for it.
fn status(call: &Call, name: &str) -> Answered {
    let counts = call.app.vendors.counts.iter().find(|(known, _)| *known == name);
    let reachable = counts.and_then(|(_, counts)| counts.is_up());
    Ok(json(StatusCode::OK, &object!({ "configured": counts.is_some(), "reachable": reachable })))
}

/// Anyone in open mode; else any key, or the operator.
fn known(call: &Call) -> Result<(), Error> {
    if !call.caller.is_unrestricted() {
        call.caller.key()?;
    }
    Ok(())
}

pub async fn check(call: Call) -> Answered {
    known(&call)?;
    let body: CheckDomains = call.json()?;
    vendors::registrar(&call.app)?;
    if let Some(idem) = call.idem()
        && let Some(before) = payments::kept(&call.app, idem).await?
    {
        return Ok(replay(Some(idem), before));
    }
    match (&body.domain, &body.domains) {
        (Some(name), None) => {
            let name = DomainName::of_field("domain", name)?;
            let free = catalogue::available(&call.app, std::slice::from_ref(&name)).await? == [true];
            answer(&call, checked(&call, name, free).await?).await
        }
        (None, Some(names)) if (1..=MOST_DOMAINS).contains(&names.len()) => {
            let names = names.iter().map(|name| DomainName::of_field("domains", name));
            let names = names.collect::<Result<Vec<_>, _>>()?;
            let free = catalogue::available(&call.app, &names).await?;
            let asked = names.into_iter().zip(free);
            let each = stream::iter(asked).map(|(name, free)| checked(&call, name, free)).buffered(AT_ONCE);
            let domains = each.collect::<Vec<_>>().await.into_iter().collect::<Result<_, _>>()?;
            answer(&call, CheckedDomains { domains }).await
        }
        (None, Some(_)) => Err(Error::invalid("domains", format!("must be 1 to {MOST_DOMAINS} names"))),
        (None, None) => Err(Error::invalid("domain", "is needed")),
        (Some(_), Some(_)) => Err(Error::invalid("domains", "and domain exclude each other")),
    }
}

/// The answer to a check, kept for a repeat with the same key.
async fn answer<T: Serialize + Send + 'static>(call: &Call, checked: T) -> Answered {
    let Some(_) = call.idem() else { return Ok(json(StatusCode::OK, &checked)) };
    let keep = call.keep(|done| stored(StatusCode::OK, done));
    Ok(written(call, StatusCode::OK, catalogue::keep(&call.app, checked, keep).await?))
}

async fn checked(call: &Call, name: DomainName, free: bool) -> Result<CheckedDomain, Error> {
    let price = if free { Some(catalogue::price(&call.app, &name).await?) } else { None };
    let purchase = price.as_deref().and_then(|price| price.purchase).and_then(Decimal::to_micro_usd);
    let renewal = price.as_deref().and_then(|price| price.renewal).and_then(Decimal::to_micro_usd);
    Ok(CheckedDomain {
        domain: name.to_string(),
        available: purchase.is_some(),
        price: purchase,
        currency: "USDC".to_owned(),
        period: 1,
        renewal_price: renewal.filter(|_| purchase.is_some()),
    })
}

/// Managed domains: a key its own; the operator all that the registrar has.
pub async fn registered(call: Call) -> Answered {
    known(&call)?;
    vendors::registrar(&call.app)?;
    let found = domains::registered(&call.app, &call.caller, list_query(&call, &NO_FILTERS)?).await?;
    Ok(page(&call, &found.rows, found.next))
}

fn segment(call: &Call, index: usize) -> String {
    let parts = call.uri.path().split('/').filter(|part| !part.is_empty());
    parts.into_iter().nth(index).unwrap_or_default().to_owned()
}

pub async fn zone(call: Call) -> Answered {
    known(&call)?;
    vendors::zones(&call.app)?;
    let domain = dns::zone_of(&call.app, &call.caller, &segment(&call, 3)).await?;
    Ok(json(StatusCode::OK, &dns::records(&call.app, &domain).await?))
}

pub async fn add_record(call: Call) -> Answered {
    known(&call)?;
    let body: NewZoneRecord = call.json()?;
    vendors::zones(&call.app)?;
    let domain = dns::zone_of(&call.app, &call.caller, &segment(&call, 3)).await?;
    let record = dns::parse(&domain, &body)?;
    if let Some(idem) = call.idem()
        && let Some(before) = payments::kept(&call.app, idem).await?
    {
        return Ok(replay(Some(idem), before));
    }
    let keep = call.keep(|done| stored(StatusCode::CREATED, done));
    let done = dns::add(&call.app, &domain, &record, keep).await?;
    Ok(written(&call, StatusCode::CREATED, done))
}

pub async fn remove_record(call: Call) -> Answered {
    known(&call)?;
    vendors::zones(&call.app)?;
    let domain = dns::zone_of(&call.app, &call.caller, &segment(&call, 3)).await?;
    let id = segment(&call, 4);
    dns::remove(&call.app, &domain, &id).await?;
    Ok(json(StatusCode::OK, &object!({ "id": id, "status": "deleted" })))
}

pub async fn plans(call: Call) -> Answered {
    let plans = catalogue::plans(&call.app).await?;
    let shown: Vec<ServerPlan> = plans.iter().map(|plan| plan_of(&call, plan)).collect();
    Ok(json(StatusCode::OK, &shown))
}

fn plan_of(call: &Call, plan: &Plan) -> ServerPlan {
    let prices = plan.prices.iter().map(|unit| PlanPrice {
        cycle: unit.cycle.as_str().to_owned(),
        price: pricing::in_usdc(&call.app, unit.price, &unit.currency).ok(),
        currency: "USDC".to_owned(),
    });
    let stock = plan.stock.iter();
    ServerPlan {
        id: plan.id,
        slug: plan.slug.to_string(),
        name: plan.name.clone(),
        kind: plan.kind.clone(),
        cpu: plan.cpu,
        memory: plan.memory,
        disk: plan.disk,
        prices: prices.collect(),
        regions: stock.map(|one| PlanStock { region: one.region.to_string(), stock: one.quantity }).collect(),
    }
}

pub async fn regions(call: Call) -> Answered {
    let regions = catalogue::regions(&call.app).await?;
    let shown: Vec<_> = regions
        .iter()
        .map(|one| object!({ "id": one.id, "slug": one.slug.as_str(), "name": one.name, "location": one.location }))
        .collect();
    Ok(json(StatusCode::OK, &shown))
}

pub async fn images(call: Call) -> Answered {
    vendors::compute(&call.app)?;
    let images = match call.query("plan")? {
        Some(plan) => catalogue::images(&call.app, &Slug::of_field("plan", &plan)?).await?,
        None => Arc::new(catalogue::all_images(&call.app).await?),
    };
    let shown: Vec<_> = images
        .iter()
        .map(|one| {
            object!({ "id": one.id, "slug": one.slug.as_str(), "name": one.name, "licensed": one.licensed })
        })
        .collect();
    Ok(json(StatusCode::OK, &shown))
}

fn operators(call: &Call) -> Result<(), Error> {
    if call.caller.is_unrestricted() { Ok(()) } else { call.caller.operator() }
}

pub async fn teams(call: Call) -> Answered {
    operators(&call)?;
    let teams = catalogue::teams(&call.app).await?;
    let shown: Vec<_> = teams
        .iter()
        .map(|team| {
            let remaining = team.remaining.as_ref().map(|(amount, _)| amount.to_string());
            let currency = team.remaining.as_ref().map(|(_, currency)| currency);
            object!({ "id": team.id, "name": team.name, "remaining": remaining, "currency": currency })
        })
        .collect();
    Ok(json(StatusCode::OK, &shown))
}

pub async fn projects(call: Call) -> Answered {
    operators(&call)?;
    vendors::compute(&call.app)?;
    let projects = catalogue::projects(&call.app, id_at(&call, 3, "team")?).await?;
    let shown: Vec<_> = projects.iter().map(|one| object!({ "id": one.id, "name": one.name })).collect();
    Ok(json(StatusCode::OK, &shown))
}

pub async fn servers(call: Call) -> Answered {
    known(&call)?;
    vendors::compute(&call.app)?;
    let (project, query) = (id_at(&call, 3, "project")?, list_query(&call, &NO_FILTERS)?);
    let found = servers::list(&call.app, &call.caller, project, query).await?;
    Ok(page(&call, &found.rows, found.next))
}

pub async fn act_on_server(call: Call) -> Answered {
    call.caller.key()?;
    let body: ActOnServer = call.json()?;
    vendors::compute(&call.app)?;
    let id = id_at(&call, 3, "server")?;
    if let Some(idem) = call.idem()
        && let Some(before) = payments::kept(&call.app, idem).await?
    {
        return Ok(replay(Some(idem), before));
    }
    let keep = call.keep(|done| stored(StatusCode::OK, done));
    let done = servers::act(&call.app, &call.caller, id, body, keep).await?;
    Ok(written(&call, StatusCode::OK, done))
}

pub async fn end_server(call: Call) -> Answered {
    call.caller.key()?;
    vendors::compute(&call.app)?;
    let id = id_at(&call, 3, "server")?;
    servers::end(&call.app, &call.caller, id).await?;
    Ok(json(StatusCode::OK, &object!({ "id": id, "status": "deleted" })))
}
