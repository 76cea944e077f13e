//! Paid orders and refunds as their owners and the operator see them.

use otonix_sdk::api::payments::{Confirmations, Order, Refund, ResolveRefund, X402Config};
use otonix_sdk::error::ErrorCode;
use otonix_sdk::ids::RefundId;
use otonix_sdk::limits;
use otonix_sdk::money::MicroUsd;
use otonix_sdk::x402::network::caip2;
use uuid::Uuid;

use crate::app::App;
use crate::auth::{Caller, Scope};
use crate::error::Error;
use crate::service::purchases::money::{self, Line};
use crate::store::list::{self, Page, Param, Query};
use crate::store::writer::{IdemFor, Target, Tx, Written};
use crate::store::{agents, ledger, refunds};
use crate::treasury;

/// The rows of a list that only its owner and the operator see, in every mode.
///
/// # Errors
/// 401.
pub fn scope(caller: &Caller) -> Result<Scope, Error> {
    if caller.operator().is_ok() {
        return Ok(Scope::All);
    }
    caller.key()?;
    Ok(caller.own_rows())
}

/// Narrows a list to those rows.
pub fn narrow(query: &mut Query, scope: Scope) {
    match scope {
        Scope::All | Scope::Sanitised => {}
        Scope::Owner(owner) => query.filter("owner_id = ", Param::Id(owner)),
        Scope::Agent(agent) => query.filter("agent_id = ", Param::Id(agent)),
    }
}

/// Paid orders, newest first.
///
/// # Errors
/// 401.
pub async fn orders(app: &App, caller: &Caller, mut query: Query) -> Result<Page<Order>, Error> {
    narrow(&mut query, scope(caller)?);
    Ok(app.db.read(move |conn| Box::pin(async move { list::orders(conn, &query).await })).await?)
}

/// Refunds, newest first.
///
/// # Errors
/// 401.
pub async fn refunds(app: &App, caller: &Caller, mut query: Query) -> Result<Page<Refund>, Error> {
    narrow(&mut query, scope(caller)?);
    Ok(app.db.read(move |conn| Box::pin(async move { list::refunds(conn, &query).await })).await?)
}

/// Ends a refund.
///
/// # Errors
/// 401, 403, 404, 400, 409 when it has ended.
pub async fn resolve(
    app: &App,
    caller: &Caller,
    id: RefundId,
    body: ResolveRefund,
    idem: Option<IdemFor<Refund>>,
) -> Result<Written<Refund>, Error> {
    caller.operator()?;
    if !matches!(body.resolution.as_str(), "paid" | "credited" | "dismissed") {
        return Err(Error::invalid("resolution", "must be paid, credited or dismissed"));
    }
    if body.resolution == "credited" && body.agent_id.is_none() {
        return Err(Error::invalid("agentId", "is needed to credit it"));
    }
    if let Some(hash) = &body.tx_hash {
        let fits = hash.parse::<otonix_sdk::chain::Hash>().is_ok();
        if !fits {
            return Err(Error::invalid("txHash", "must be 0x and 64 hex digits"));
        }
    }
    if let Some(note) = &body.note {
        limits::check_text("note", note, 0..=1024)?;
    }
    let target = body.agent_id.filter(|_| body.resolution == "credited");
    let target = target.map_or(Target::Shared, |agent| Target::Agent(agent.uuid()));
    app.writer.run(target, idem, move |tx| Box::pin(resolve_in(tx, id, body))).await
}

async fn resolve_in(tx: &mut Tx, id: RefundId, body: ResolveRefund) -> Result<Refund, Error> {
    let hash = body.tx_hash.as_ref().map(|hash| hash.to_ascii_lowercase());
    let (note, hash) = (body.note.as_deref(), hash.as_deref());
    let found = refunds::resolve(tx, id.uuid(), &body.resolution, note, hash).await?;
    let Some(refund) = found else {
        if refunds::exists(tx, id.uuid()).await? {
            return Err(Error::conflict(ErrorCode::Conflict, "this refund has ended"));
        }
        return Err(Error::not_found("refund", id));
    };
    let (amount, id) = (refund.amount.micros(), id.to_string());
    let line = Line {
        amount: refund.amount,
        reason: &refund.reason,
        payer: &refund.payer,
        sent_by: refund.refund_tx_hash.as_deref(),
        about: vec![("resource", "refund"), ("refundId", id.as_str()), ("paidBy", refund.tx_hash.as_str())],
    };
    let reference = id.clone();
    match body.resolution.as_str() {
        "credited" => {
            let agent = body.agent_id.map_or(Uuid::nil(), |agent| agent.uuid());
            let state = agents::lock_state(tx, agent).await?;
            let mut state = state.ok_or_else(|| Error::unknown_link("agentId"))?;
            if state.killed {
                return Err(Error::agent_killed(agent));
            }
            money::credit(tx, &mut state, ledger::REFUNDS, reference, &line).await?;
        }
        "paid" => {
            let (from, to) = (ledger::REFUNDS, ledger::WITHDRAWALS);
            ledger::move_between(tx, "refund_paid", from, to, amount, Some(reference)).await?;
            money::record(tx, &line, None).await?;
        }
        _ => {
            let (from, to) = (ledger::REFUNDS, ledger::UNMATCHED);
            ledger::move_between(tx, "refund_dismissed", from, to, amount, Some(reference)).await?;
        }
    }
    Ok(refund)
}

/// What is needed to pay here.
pub fn config(app: &App) -> X402Config {
    let settings = app.payments.as_ref().map(|parts| &parts.settings);
    let confirmations = match settings.map(|settings| settings.confirmations) {
        None => Vec::new(),
        Some(treasury::Confirmations::Blocks(blocks)) => {
            vec![Confirmations { below: None, blocks: Some(blocks) }]
        }
        Some(treasury::Confirmations::Auto) => {
            let steps = treasury::STEPS.map(|(below, blocks)| Confirmations {
                below: Some(MicroUsd::from_usdc(below)),
                blocks: Some(blocks),
            });
            steps.into_iter().chain([Confirmations { below: None, blocks: None }]).collect()
        }
    };
    let settler = app.payments.as_ref().map(|parts| &parts.settler);
    let exact = settler.is_some_and(|settler| !matches!(settler, treasury::Settler::None));
    let schemes = match (settings.is_some(), exact) {
        (false, _) => Vec::new(),
        (true, false) => vec!["otonix-order".to_owned()],
        (true, true) => vec!["exact".to_owned(), "otonix-order".to_owned()],
    };
    let chain_id = settings.map_or(treasury::DEFAULT_CHAIN, |settings| settings.chain_id);
    X402Config {
        enabled: settings.is_some(),
        configured: settings.is_some(),
        x402_version: 2,
        versions: vec![1, 2],
        network: caip2(chain_id),
        chain_id,
        asset: settings
            .map_or_else(|| treasury::DEFAULT_ASSET.to_owned(), |settings| settings.asset.to_string()),
        asset_name: "USDC".to_owned(),
        decimals: 6,
        treasury: settings.map(|settings| settings.treasury.to_string()),
        order_ttl_seconds: settings.map_or(treasury::DEFAULT_ORDER_TTL, |settings| settings.order_ttl),
        schemes,
        confirmations,
        min_exact: settings.map(|settings| settings.min_exact),
    }
}
