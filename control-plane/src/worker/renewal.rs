//! Renews managed domains from their agents' credits: at the registrar's price of the day, once for each end.
//!
//! The turn of a domain is taken in the transaction that sets the money aside, and only while its end is the one that was
//! seen. Whether a renewal took place is decided by the ends before and after, as the purchase worker does.

use chrono::{DateTime, TimeDelta, Utc};
use otonix_sdk::error::ErrorCode;
use otonix_sdk::ids::AgentId;
use otonix_sdk::money::MicroUsd;
use uuid::Uuid;

use crate::app::App;
use crate::error::Error;
use crate::service::automation::RENEWAL_WINDOW_DAYS;
use crate::service::pricing;
use crate::service::purchases::book::{self, Wanted};
use crate::service::purchases::item::{Item, RenewalItem};
use crate::service::purchases::open;
use crate::store::actions::{self, ActionRow};
use crate::store::keeping::{self, Holding};
use crate::store::purchases::{self, Purchase};
use crate::store::writer::{Target, Tx};
use crate::store::{agents, warnings};
use crate::upstream::providers::{DomainName, Registrar};
use crate::worker::{Held, hold, lifetime};

const LEASE: &str = "renewal";
/// Domains of one pass.
const PAGE: i64 = 200;
/// So long before its end a domain is renewed.
const WINDOW: TimeDelta = TimeDelta::days(RENEWAL_WINDOW_DAYS as i64);
/// In its last days it is tried every hour, before that once a day.
const LAST_DAYS: TimeDelta = TimeDelta::days(3);
/// A price above this part of the quoted one waits for the operator: five quarters.
const MOST: (i64, i64) = (5, 4);

/// One pass over the domains that end soon; none while another goes on: the calendar does not wait for a slow registrar.
///
/// # Errors
/// 503 without database.
pub async fn run_once(app: &App) -> Result<(), Error> {
    let Some(registrar) = &app.vendors.registrar else { return Ok(()) };
    let Ok(_alone) = app.shared.renewals.try_lock() else { return Ok(()) };
    let Some(held) = hold(app, LEASE).await? else { return Ok(()) };
    app.shared.cycled();
    let now = app.clock.now();
    let due = app.db.read(move |conn| {
        Box::pin(async move { keeping::ending_before(conn, now + WINDOW, now, PAGE).await })
    });
    for holding in due.await? {
        if let Err(error) = keep(app, held, registrar.as_ref(), &holding).await {
            tracing::warn!(domain = holding.name, %error, "a domain's end could not be seen to");
        }
    }
    Ok(())
}

/// When a domain is thought of again.
fn next_turn(expires_at: DateTime<Utc>, now: DateTime<Utc>) -> DateTime<Utc> {
    now + if expires_at - now <= LAST_DAYS { TimeDelta::hours(1) } else { TimeDelta::days(1) }
}

async fn keep(app: &App, held: Held, registrar: &dyn Registrar, holding: &Holding) -> Result<(), Error> {
    let Some(name) = DomainName::parse(&holding.name) else { return Ok(()) };
    let now = app.clock.now();
    let owned = match registrar.domain(&name).await {
        Ok(owned) => owned,
        Err(error) => {
            tracing::debug!(domain = holding.name, %error, "the registrar does not answer");
            return Ok(());
        }
    };
    match owned.and_then(|owned| owned.expires_at) {
        None => return refuse(app, held, holding, "it is not in the registrar's account").await,
        // Renewed by somebody else.
        Some(end) if end > holding.expires_at => return set_end(app, held, holding, end, "active").await,
        Some(end) if end <= now => return set_end(app, held, holding, end, "expired").await,
        Some(_) => {}
    }
    if !holding.auto_renew {
        let seen = holding.clone();
        return write(app, held, move |tx| {
            Box::pin(async move {
                keeping::take_turn(tx, &seen, next_turn(seen.expires_at, tx.at)).await?;
                drop_asked(tx, &seen.name, "it is not to be renewed any more").await
            })
        })
        .await;
    }
    let Some(agent) = holding.agent_id else {
        return refuse(app, held, holding, "no agent is linked to it").await;
    };
    let price = match pricing::renewal(app, &name, 1).await {
        Ok(quote) => quote.price,
        Err(error @ (Error::Conflict { .. } | Error::Invalid { .. })) => {
            return refuse(app, held, holding, &error.to_string()).await;
        }
        Err(error) => {
            tracing::debug!(domain = holding.name, %error, "the registrar has no price now");
            return Ok(());
        }
    };
    if let Some(quoted) = holding.renewal_price
        && i128::from(price.micros()) * i128::from(MOST.1) > i128::from(quoted) * i128::from(MOST.0)
    {
        let quoted = MicroUsd::from_micros(quoted);
        let why = format!("it costs {price} USDC, quoted were {quoted} USDC; the operator decides");
        return ask(app, held, holding, agent, price, &why).await;
    }
    match renew(app, held, holding, agent, price).await {
        Err(error) if lifetime::is_poor(&error) => tell(app, held, holding, &error.to_string(), true).await,
        Err(error) if error.code() == ErrorCode::PurchaseUnderWay => Ok(()),
        done => done,
    }
}

/// The renewal of a domain at a price.
fn wanted(seen: &Holding, agent: Uuid, price: MicroUsd) -> Wanted {
    let item =
        Item::Renewal(RenewalItem { domain: seen.name.clone(), years: 1, expires_before: seen.expires_at });
    Wanted { item, private: None, price, agent, owner: seen.owner_id.unwrap_or_default(), idem: None }
}

/// Leaves a price to the operator, as a purchase that waits; what was refused for this end is not asked again.
async fn ask(
    app: &App,
    held: Held,
    holding: &Holding,
    agent: Uuid,
    price: MicroUsd,
    why: &str,
) -> Result<(), Error> {
    let (seen, words) = (holding.clone(), why.to_owned());
    let asked = held.write(app, move |tx| {
        Box::pin(async move {
            agents::lock_state(tx, agent).await?;
            if !keeping::take_turn(tx, &seen, next_turn(seen.expires_at, tx.at)).await? {
                return Ok(None);
            }
            let is_this = |row: &Purchase| row.price == price.micros() && row.payer_agent == agent;
            if purchases::asked_renewal(&mut tx.conn, &seen.name).await?.is_some_and(|row| is_this(&row)) {
                return Ok(None);
            }
            drop_asked(tx, &seen.name, "its price has moved again").await?;
            // One that is under way may yet come to an end.
            if purchases::is_domain_live(&mut tx.conn, &seen.name).await? {
                return Ok(None);
            }
            let since = seen.expires_at - WINDOW;
            let refused = ErrorCode::PurchaseFailed.as_str();
            let asked = (seen.name.as_str(), price.micros(), agent);
            if purchases::was_refused(&mut tx.conn, asked, refused, since).await? {
                return Ok(None);
            }
            let wanted = wanted(&seen, agent, price);
            let payer = AgentId::from(agent);
            let asked = open::ask_in(tx, payer, &wanted, ErrorCode::PriceMoved, &words).await?;
            if asked.is_some() {
                let action = format!("domain {} is not renewed", seen.name);
                log(tx, seen.agent_id, &action, Some(words)).await?;
            }
            Ok(asked)
        })
    });
    if let Some(id) = asked.await? {
        app.shared.metrics.purchases_escalated.inc();
        tracing::error!(purchase.id = %id, domain = holding.name, why, "a renewal needs the operator");
    }
    Ok(())
}

/// Ends a renewal that waits for the operator's word: there is nothing to decide any more.
async fn drop_asked(tx: &mut Tx, name: &str, why: &str) -> Result<(), Error> {
    if let Some(asked) = purchases::asked_renewal(&mut tx.conn, name).await? {
        book::fail_in(tx, &asked, ErrorCode::Conflict, why).await?;
    }
    Ok(())
}

async fn renew(app: &App, held: Held, holding: &Holding, agent: Uuid, price: MicroUsd) -> Result<(), Error> {
    let seen = holding.clone();
    write(app, held, move |tx| {
        Box::pin(async move {
            agents::lock_state(tx, agent).await?;
            if !keeping::take_turn(tx, &seen, next_turn(seen.expires_at, tx.at)).await? {
                return Ok(());
            }
            drop_asked(tx, &seen.name, "its price is near the quoted one again").await?;
            open::by_credits_in(tx, AgentId::from(agent), &wanted(&seen, agent, price)).await?;
            Ok(())
        })
    })
    .await?;
    app.shared.purchases.notify_one();
    Ok(())
}

async fn set_end(
    app: &App,
    held: Held,
    holding: &Holding,
    end: DateTime<Utc>,
    status: &'static str,
) -> Result<(), Error> {
    let seen = holding.clone();
    write(app, held, move |tx| {
        Box::pin(async move {
            keeping::set_end(tx, seen.id, end, status).await?;
            drop_asked(tx, &seen.name, "its end is another by now").await?;
            let action = format!("domain {} is {status}, until {}", seen.name, end.to_rfc3339());
            log(tx, seen.agent_id, &action, None).await
        })
    })
    .await
}

/// Takes the turn without a renewal, and tells why once for each end.
async fn refuse(app: &App, held: Held, holding: &Holding, why: &str) -> Result<(), Error> {
    tell(app, held, holding, why, false).await
}

/// The same; money may help, so the daemon is asked for what its wallet has.
async fn tell(app: &App, held: Held, holding: &Holding, why: &str, is_poor: bool) -> Result<(), Error> {
    let (seen, words) = (holding.clone(), why.to_owned());
    let why = why.to_owned();
    write(app, held, move |tx| {
        Box::pin(async move {
            let state = match seen.agent_id.filter(|_| is_poor) {
                Some(agent) => agents::lock_state(tx, agent).await?,
                None => None,
            };
            keeping::take_turn(tx, &seen, next_turn(seen.expires_at, tx.at)).await?;
            if warnings::first(tx, &format!("domain {}", seen.id), seen.expires_at).await? {
                let action = format!("domain {} is not renewed", seen.name);
                log(tx, seen.agent_id, &action, Some(words)).await?;
                if let Some(state) = state {
                    lifetime::ask_for_money(tx, &state, seen.expires_at).await?;
                }
            }
            Ok(())
        })
    })
    .await?;
    tracing::warn!(domain = holding.name, expires_at = %holding.expires_at, why, "a domain is not renewed");
    Ok(())
}

async fn log(tx: &mut Tx, agent: Option<Uuid>, action: &str, failure: Option<String>) -> Result<(), Error> {
    let Some(agent) = agent else { return Ok(()) };
    let Some(state) = agents::states_of(&mut tx.conn, &[agent]).await?.pop() else { return Ok(()) };
    let failed = failure.is_some();
    let mut line = ActionRow::by_server(&state, "domain", action, failure, tx.at);
    if failed {
        "failed".clone_into(&mut line.status);
    }
    actions::insert(tx, &[line]).await?;
    Ok(())
}

/// A write under the lease.
async fn write<F>(app: &App, held: Held, work: F) -> Result<(), Error>
where
    F: for<'c> FnOnce(&'c mut Tx) -> futures_util::future::BoxFuture<'c, Result<(), Error>> + Send + 'static,
{
    let replica = app.replica;
    app.writer
        .apply(Target::Alone, move |tx| {
            Box::pin(async move {
                held.check(tx, replica).await?;
                work(tx).await
            })
        })
        .await
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn turns_come_daily_and_hourly_in_the_last_days() {
        let now = DateTime::UNIX_EPOCH;
        for (left, wait) in [(30 * 24, 24), (73, 24), (72, 1), (1, 1), (-5, 1)] {
            assert_eq!(next_turn(now + TimeDelta::hours(left), now), now + TimeDelta::hours(wait), "{left}");
        }
    }
}
