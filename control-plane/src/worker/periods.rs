//! The next period of a server, paid from its agent's credits: only for a server that is there, at what it costs now, and
//! in the transaction that moves its end.

use otonix_sdk::ids::AgentId;
use otonix_sdk::money::MicroUsd;
use tokio::sync::OnceCell;
use uuid::Uuid;

use crate::app::App;
use crate::error::Error;
use crate::service::pricing;
use crate::service::purchases::book::Wanted;
use crate::service::purchases::item::Item;
use crate::service::purchases::{offers, open};
use crate::store::tenancies::{self, Tenancy};
use crate::store::writer::{Target, Tx};
use crate::store::{agents, sandboxes, warnings};
use crate::upstream::providers::{ComputeProvider, Cycle, Plan, Purpose};
use crate::worker::Held;
use crate::worker::lifetime::{LAST_CALL, is_poor, lead, log_as, warn};

/// Hours that are bought at once, and what is tried when the credits are too few.
const HOURS: [u32; 3] = [24, 6, 1];

/// What is sold: asked for at most once in a pass, however many servers are due.
pub(super) type Sold = OnceCell<Result<Vec<Plan>, Error>>;

/// Pays for the next period from the agent's credits; tells whether the server's end has moved.
pub(super) async fn extend(
    app: &App,
    held: Held,
    compute: &dyn ComputeProvider,
    sold: &Sold,
    tenancy: &Tenancy,
) -> Result<bool, Error> {
    if tenancy.status == "error" {
        return warn(app, held, tenancy, "the vendor could not install it").await.map(|()| false);
    }
    let vendor_id = tenancy.vendor_id.clone();
    let found = app.db.read(move |conn| Box::pin(async move { sandboxes::managed(conn, &vendor_id).await }));
    let Some((sandbox, owner, at)) = found.await? else { return Ok(true) };
    let Some(agent) = tenancy.agent_id else {
        return warn(app, held, tenancy, "no agent is linked to it").await.map(|()| false);
    };
    let hourly = Cycle::parse(&tenancy.cycle) == Some(Cycle::Hourly);
    let tries: &[Option<u32>] = if hourly { &HOURS.map(Some) } else { &[None] };
    for periods in tries {
        let quoted = match sold.get_or_init(|| pricing::sold_now(app, Purpose::Purchase)).await {
            Ok(sold) => offers::quote_period(app, Purpose::Purchase, sold, &sandbox, &at, *periods)
                .await
                .map_err(|why| {
                    let is_final = matches!(why, Error::Invalid { .. });
                    (is_final, why.to_string())
                }),
            Err(why) => Err((false, why.to_string())),
        };
        let (item, price) = match quoted {
            Ok(quote) => quote,
            // Unknown is not unpaid: without a price nothing is decided, until the very end.
            Err((false, why)) if app.clock.now() < tenancy.paid_until - LAST_CALL => {
                if app.clock.now() >= tenancy.paid_until - lead(tenancy) / 2 {
                    tell_once(app, held, tenancy, "has no price now", &why).await?;
                }
                return Ok(true);
            }
            Err((_, why)) => return warn(app, held, tenancy, &why).await.map(|()| false),
        };
        if !affords(app, agent, price).await? {
            continue;
        }
        let Ok(number) = tenancy.vendor_id.parse() else { return Ok(true) };
        match compute.server(number).await {
            Ok(Some(_)) => {}
            // Somebody has deleted it in the vendor's dashboard, or a deletion was never noted. Should it show again before
            // its end it is paid; until then nothing is done to it.
            Ok(None) => {
                let why = "the vendor does not know it any more";
                return tell_once(app, held, tenancy, "is gone", why).await.map(|()| false);
            }
            // It may be there: nothing is decided before the very end either, and then it is paid.
            Err(_) if app.clock.now() < tenancy.paid_until - LAST_CALL => return Ok(true),
            Err(error) => tracing::debug!(server.id = tenancy.vendor_id, %error, "a server is paid unseen"),
        }
        let (replica, seen) = (app.replica, tenancy.clone());
        let paid = app.writer.apply(Target::Alone, move |tx| {
            Box::pin(async move {
                held.check(tx, replica).await?;
                pay(tx, &seen, agent, owner, item, price).await
            })
        });
        match paid.await {
            Ok(()) => return Ok(true),
            Err(error) if is_poor(&error) => {}
            Err(error) => return Err(error),
        }
    }
    warn(app, held, tenancy, "its agent's credits do not cover it").await.map(|()| false)
}

/// Whether an agent's credits cover a price; the transaction that pays looks again.
async fn affords(app: &App, agent: Uuid, price: MicroUsd) -> Result<bool, Error> {
    let states = app.db.read(move |conn| Box::pin(async move { agents::states_of(conn, &[agent]).await }));
    Ok(states.await?.first().is_some_and(|state| !state.killed && state.credits >= price))
}

/// Tells once for each end that something stands in the way of paying for a server, which only the operator can mend.
async fn tell_once(
    app: &App,
    held: Held,
    tenancy: &Tenancy,
    what: &'static str,
    why: &str,
) -> Result<(), Error> {
    let (seen, words) = (tenancy.clone(), why.to_owned());
    let told = held.write(app, move |tx| {
        Box::pin(async move {
            if !warnings::first(tx, &format!("server {} {what}", seen.id), seen.paid_until).await? {
                return Ok(false);
            }
            let line = format!("server {} {what}, and is not paid for: {words}", seen.name);
            log_as(tx, seen.agent_id, &line, "failed").await?;
            Ok(true)
        })
    });
    if told.await? {
        tracing::error!(server.id = tenancy.vendor_id, paid_until = %tenancy.paid_until, what, why,
            "a server is not paid for, whatever its agent has");
    }
    Ok(())
}

async fn pay(
    tx: &mut Tx,
    seen: &Tenancy,
    agent: Uuid,
    owner: Option<Uuid>,
    item: Item,
    price: MicroUsd,
) -> Result<(), Error> {
    agents::lock_state(tx, agent).await?;
    let now = tenancies::lock(tx, seen.id).await?;
    // Paid by somebody else meanwhile, or given to another agent: that is for the next pass.
    if now.is_none_or(|now| now.paid_until != seen.paid_until || now.agent_id != Some(agent)) {
        return Ok(());
    }
    let owner = owner.unwrap_or_default();
    let wanted = Wanted { item, private: None, price, agent, owner, idem: None };
    open::by_credits_in(tx, AgentId::from(agent), &wanted).await?;
    Ok(())
}
