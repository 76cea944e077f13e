//! The server about itself.

use std::sync::atomic::Ordering;

use axum::body::Body;
use axum::response::Response;
use http::header::CONTENT_TYPE;
use http::{HeaderValue, StatusCode};
use otonix_sdk::chain::Usage;
use otonix_sdk::error::ErrorCode;
use otonix_sdk::money::MicroUsd;
use serde_json::json as object;

use crate::auth::{Mode, Principal};
use crate::error::Error;
use crate::rest::Answered;
use crate::rest::answer::json;
use crate::rest::call::Call;
use crate::service::automation;
use crate::service::purchases::lists as purchases;
use crate::store::settings;
use crate::upstream::http::Counts;

pub async fn healthz(_: Call) -> Answered {
    Ok(json(StatusCode::OK, &object!({ "status": "ok" })))
}

pub async fn readyz(call: Call) -> Answered {
    if call.app.shared.is_draining() {
        return Err(Error::Busy {
            code: ErrorCode::Overloaded,
            retry_after: std::time::Duration::from_secs(5),
            detail: "the server is stopping",
        });
    }
    let name = settings::OPERATOR_TOKEN_HASH;
    call.app.db.read(move |conn| Box::pin(async move { settings::read(conn, name).await })).await?;
    let chain = match &call.app.payments {
        None => "not configured",
        Some(parts) if parts.chain.is_up() => "ok",
        Some(_) => {
            return Err(Error::Busy {
                code: ErrorCode::ChainUnavailable,
                retry_after: std::time::Duration::from_secs(2),
                detail: "the chain cannot be relied on now; paid routes are closed",
            });
        }
    };
    Ok(json(StatusCode::OK, &object!({ "status": "ready", "database": "ok", "chain": chain })))
}

pub async fn metrics(call: Call) -> Answered {
    if !call.is_direct_local() {
        call.caller.operator()?;
    }
    let shared = &call.app.shared;
    // Without a database they are not known, and the rest is told all the same.
    let (going, waiting) = purchases::open(&call.app).await.unwrap_or_default();
    let gauges = [
        ("purchases_open", "Purchases that go on", going),
        ("purchases_needing_operator", "Purchases that wait for the operator", waiting),
        ("sessions", "Open sessions", shared.links.len() as u64),
        ("agents_known", "Agents in memory", shared.fleet.len() as u64),
        ("write_queue", "Writes that wait", call.app.writer.queued() as u64),
        (
            "database_up",
            "Whether the last transaction found the database",
            u64::from(shared.is_database_up()),
        ),
        (
            "chain_up",
            "Whether the chain can be relied on; 0 without one",
            u64::from(call.app.payments.as_ref().is_some_and(|parts| parts.chain.is_up())),
        ),
        (
            "settling_key_has_gas",
            "Whether the settling key can pay for gas; 0 without one",
            u64::from(call.app.payments.as_ref().is_some_and(|parts| parts.chain.has_gas())),
        ),
        ("connections", "Open connections", shared.net.open.load(Ordering::Relaxed)),
    ];
    let mut text = shared.metrics.render(&gauges);
    for (name, counts) in &call.app.vendors.counts {
        text = format!("{}{text}", vendor_metrics(name, counts));
    }
    if let Some(parts) = &call.app.payments {
        text = format!("{}{text}", chain_metrics(parts.chain.rpc().usage()));
    }
    let mut response = Response::new(Body::from(text));
    let kind = HeaderValue::from_static("application/openmetrics-text; version=1.0.0; charset=utf-8");
    response.headers_mut().insert(CONTENT_TYPE, kind);
    Ok(response)
}

/// Counters of the chain's nodes, in the text form of Prometheus.
fn chain_metrics(usage: Usage) -> String {
    let (calls, seconds) = (usage.calls, usage.waited.as_secs_f64());
    format!(
        "# HELP otonix_chain_requests Calls to the chain's nodes.\n# TYPE otonix_chain_requests counter\n\
         otonix_chain_requests_total {calls}\n\
         # HELP otonix_chain_request_seconds Time of these calls together.\n\
         # TYPE otonix_chain_request_seconds counter\n# UNIT otonix_chain_request_seconds seconds\n\
         otonix_chain_request_seconds_total {seconds}\n"
    )
}

/// Counters of one vendor, in the text form of Prometheus.
fn vendor_metrics(name: &str, counts: &Counts) -> String {
    let all = [
        ("requests", "Requests sent", &counts.requests),
        ("failures", "Answers that said no or were none", &counts.failures),
        ("limited", "Answers that said: too often", &counts.limited),
        ("unknown", "Writes whose outcome was not known", &counts.unknown),
    ];
    let each = all.map(|(what, help, count)| {
        let (id, count) = (format!("otonix_upstream_{name}_{what}"), count.load(Ordering::Relaxed));
        format!("# HELP {id} {help}.\n# TYPE {id} counter\n{id}_total {count}\n")
    });
    each.concat()
}

pub async fn auth_status(call: Call) -> Answered {
    let mode = match call.caller.mode {
        Mode::Open => "open",
        Mode::Guarded => "guarded",
    };
    let (principal, owner, agent) = match call.caller.principal {
        Principal::Operator => ("operator", None, None),
        Principal::Key(key) => (key.kind.as_str(), Some(key.owner), key.agent),
        Principal::Anonymous => ("anonymous", None, None),
    };
    let authenticated = call.caller.principal != Principal::Anonymous;
    let body = object!({
        "mode": mode,
        "authenticated": authenticated,
        "principal": principal,
        "ownerId": owner,
        "agentId": agent,
    });
    Ok(json(StatusCode::OK, &body))
}

pub async fn price_table(call: Call) -> Answered {
    if call.caller.operator().is_err() {
        call.caller.key()?;
    }
    #[derive(serde::Serialize)]
    struct Table<'a> {
        version: String,
        currency: &'static str,
        unit: &'static str,
        prices: &'a otonix_sdk::prices::PriceTable,
    }
    let prices = &call.app.prices;
    let table = Table { version: prices.version(), currency: "USDC", unit: "per million tokens", prices };
    Ok(json(StatusCode::OK, &table))
}

pub async fn autonomic_status(call: Call) -> Answered {
    #[derive(serde::Serialize)]
    #[serde(rename_all = "camelCase")]
    struct Status {
        enabled: bool,
        last_cycle_at: Option<chrono::DateTime<chrono::Utc>>,
        total_renewal_attempts: u64,
        total_renewal_successes: u64,
        vercel_domains_configured: bool,
        cherry_configured: bool,
        renewal_window_days: u32,
        healing_attempts: u64,
        healing_successes: u64,
        tier_changes: u64,
        tier_thresholds: Thresholds,
    }
    #[derive(serde::Serialize)]
    struct Thresholds {
        full: MicroUsd,
        conservation: MicroUsd,
        critical: MicroUsd,
    }
    let app = &call.app;
    let tiers = app.settings.tiers;
    let automation::Done { renewals, counts } = automation::done(app).await?;
    let status = Status {
        enabled: true,
        last_cycle_at: app.shared.last_cycle(),
        total_renewal_attempts: renewals.attempts,
        total_renewal_successes: renewals.successes,
        vercel_domains_configured: app.vendors.registrar.is_some(),
        cherry_configured: app.vendors.compute.is_some(),
        renewal_window_days: automation::RENEWAL_WINDOW_DAYS,
        healing_attempts: counts.healing_attempts,
        healing_successes: counts.healing_successes,
        tier_changes: counts.tier_changes,
        tier_thresholds: Thresholds {
            full: tiers.full_above,
            conservation: tiers.conservation_from,
            critical: tiers.critical_from,
        },
    };
    Ok(json(StatusCode::OK, &status))
}
