//! Keeps managed domains as they should be at the registrar: the registrant's address is confirmed in time, or people
//! are told; the registrar does not renew by itself; and it answers for the zones that are kept here.
//!
//! A turn is taken before anything is sent, and nobody looks again before all of that has certainly come. Each write can
//! be done twice without harm; the next look shows whether it was.

use std::time::Duration;

use chrono::{DateTime, TimeDelta, Utc};
use otonix_sdk::clock::to_micros;

use crate::app::App;
use crate::error::Error;
use crate::store::actions::{self, ActionRow};
use crate::store::keeping;
use crate::store::registrations::{self, Registration};
use crate::store::writer::Tx;
use crate::store::{agents, warnings};
use crate::upstream::providers::{
    Confirmation, Deadline, DomainName, OwnedDomain, Refusal, Registrar, VendorError,
};
use crate::worker::{Held, hold};

const LEASE: &str = "registrations";
/// Domains of one pass.
const PAGE: i64 = 20;
/// The registrar does not know sooner whether a new domain's registrant has confirmed.
const FIRST_AFTER: TimeDelta = TimeDelta::minutes(31);
/// How soon a look is taken again that was not answered, or whose writes must be seen: longer than these may be on their
/// way.
const AGAIN_AFTER: TimeDelta = TimeDelta::minutes(10);
/// How often it is looked whether a registrant has confirmed.
const AWAIT_EVERY: TimeDelta = TimeDelta::hours(1);
/// How often a domain is looked at that is well.
const LOOK_EVERY: TimeDelta = TimeDelta::hours(24);
/// So long before the end of its time a confirmation is asked for once more.
const SOON: TimeDelta = TimeDelta::days(3);
/// So long after its end a domain may be renewed by hand at the registrar, and is looked at.
const GRACE: TimeDelta = TimeDelta::days(75);
const SEND_FOR: Duration = Duration::from_secs(55);

/// One pass over the domains whose turn it is.
///
/// # Errors
/// 503 without database.
pub async fn run_once(app: &App) -> Result<(), Error> {
    let Some(registrar) = &app.vendors.registrar else { return Ok(()) };
    let Some(held) = hold(app, LEASE).await? else { return Ok(()) };
    app.shared.cycled();
    let now = app.clock.now();
    let due = app.db.read(move |conn| {
        let (here, expired) = (now - FIRST_AFTER, now - GRACE);
        Box::pin(async move { registrations::due(conn, now, here, expired, PAGE).await })
    });
    for seen in due.await? {
        if let Err(error) = keep(app, held, registrar.as_ref(), &seen).await {
            tracing::warn!(domain = seen.name, %error, "a domain could not be seen to at the registrar");
        }
    }
    Ok(())
}

async fn keep(app: &App, held: Held, registrar: &dyn Registrar, seen: &Registration) -> Result<(), Error> {
    let Some(name) = DomainName::parse(&seen.name) else { return Ok(()) };
    // The time for what is sent begins before the turn is taken.
    let until = Deadline::after(SEND_FOR);
    let id = seen.id;
    let taken = held.write(app, move |tx| {
        Box::pin(async move { Ok(registrations::take_turn(tx, id, tx.at + AGAIN_AFTER).await?) })
    });
    if !taken.await? {
        return Ok(());
    }
    let owned = match registrar.domain(&name).await {
        Ok(Some(owned)) => owned,
        // That it is not in the account is told by its renewal.
        Ok(None) => return note(app, held, seen, Seen::Nothing(LOOK_EVERY)).await,
        Err(error) => {
            tracing::debug!(domain = seen.name, %error, "the registrar does not answer");
            return Ok(());
        }
    };
    let is_over = seen.status == "expired";
    if is_over && owned.expires_at.is_none_or(|end| end <= app.clock.now()) {
        return note(app, held, seen, Seen::Nothing(LOOK_EVERY)).await;
    }
    if let Some(end) = owned.expires_at.filter(|_| is_over || seen.expires_at.is_none()) {
        // Without an end it would never be renewed, and one that was renewed late is ours again.
        held.write(app, move |tx| {
            Box::pin(async move {
                let status = if end > tx.at { "active" } else { "expired" };
                Ok(keeping::set_end(tx, id, to_micros(end), status).await?)
            })
        })
        .await?;
    }
    let mended = mend(app, held, registrar, seen, &owned, until).await?;
    let confirmation = registrar.confirmation(&name).await;
    let found = match confirmation {
        // What was sent is seen, or not, at the next look.
        Ok(found) if mended => Seen::Confirmation(found, AGAIN_AFTER),
        Ok(found @ Confirmation::Given) => Seen::Confirmation(found, LOOK_EVERY),
        Ok(found @ Confirmation::Awaited { .. }) => Seen::Confirmation(found, AWAIT_EVERY),
        Err(error) if is_no_answer(&error) => Seen::Nothing(if mended { AGAIN_AFTER } else { LOOK_EVERY }),
        Err(error) => {
            tracing::debug!(domain = seen.name, %error, "the registrar does not say whether a contact is confirmed");
            return Ok(());
        }
    };
    note(app, held, seen, found).await
}

/// Whether asking again soon would change nothing: the domain was brought, not bought there.
fn is_no_answer(error: &VendorError) -> bool {
    matches!(error.refusal(), Some(Refusal::NotRegistered | Refusal::NotFound | Refusal::Invalid))
}

/// Puts right what somebody has changed in the vendor's dashboard; tells whether a look soon will show it.
async fn mend(
    app: &App,
    held: Held,
    registrar: &dyn Registrar,
    seen: &Registration,
    owned: &OwnedDomain,
    until: Deadline,
) -> Result<bool, Error> {
    // Nameservers matter only where a zone is kept here.
    let elsewhere = owned.hosted == Some(false) && seen.sandbox_id.is_some();
    if !owned.renews_itself && !elsewhere {
        return Ok(false);
    }
    held.still(app).await?;
    let mut soon = false;
    if owned.renews_itself {
        let sent = registrar.stop_renewing(&owned.name, until).await;
        soon |= told(app, held, seen, "is no longer renewed by the registrar itself", sent).await?;
    }
    if elsewhere {
        let sent = registrar.reset_nameservers(&owned.name, until).await;
        soon |= told(app, held, seen, "has the registrar's nameservers again", sent).await?;
    }
    Ok(soon)
}

async fn told(
    app: &App,
    held: Held,
    seen: &Registration,
    what: &'static str,
    sent: Result<(), VendorError>,
) -> Result<bool, Error> {
    if let Err(error) = sent {
        tracing::warn!(domain = seen.name, %error, what, "a domain could not be put right at the registrar");
        // What is refused for good is tried again tomorrow.
        return Ok(error.refusal().is_none_or(Refusal::passes));
    }
    let seen = seen.clone();
    held.write(app, move |tx| {
        Box::pin(
            async move { log(tx, &seen, &format!("domain {} {what}", seen.name), None, "completed").await },
        )
    })
    .await?;
    Ok(true)
}

/// What a look has shown, and after how long the next is due.
#[derive(Debug, Clone, Copy)]
enum Seen {
    Confirmation(Confirmation, TimeDelta),
    Nothing(TimeDelta),
}

async fn note(app: &App, held: Held, seen: &Registration, found: Seen) -> Result<(), Error> {
    let seen = seen.clone();
    held.write(app, move |tx| Box::pin(async move { note_in(tx, &seen, found).await })).await
}

async fn note_in(tx: &mut Tx, seen: &Registration, found: Seen) -> Result<(), Error> {
    let (verified, verify_by, wait) = match found {
        Seen::Nothing(wait) => (seen.contact_verified, seen.verify_by, wait),
        Seen::Confirmation(Confirmation::Given, wait) => (Some(true), None, wait),
        Seen::Confirmation(Confirmation::Awaited { until }, wait) => (Some(false), until, wait),
    };
    registrations::note(tx, seen.id, verified, verify_by, tx.at + wait).await?;
    match found {
        Seen::Nothing(_) => Ok(()),
        Seen::Confirmation(Confirmation::Given, _) if seen.contact_verified == Some(false) => {
            let what = format!("domain {}: its registrant has confirmed the address", seen.name);
            log(tx, seen, &what, None, "completed").await
        }
        Seen::Confirmation(Confirmation::Given, _) => Ok(()),
        Seen::Confirmation(Confirmation::Awaited { until }, _) => warn(tx, seen, until).await,
    }
}

/// Says that the registrant must confirm: when it is known, again when the time runs out, and when it has; each once.
async fn warn(tx: &mut Tx, seen: &Registration, until: Option<DateTime<Utc>>) -> Result<(), Error> {
    let left = until.map(|until| until - tx.at);
    let (step, status, details) = match left {
        Some(left) if left <= TimeDelta::zero() => (
            "late",
            "failed",
            "the time to confirm is over: the registry may suspend the domain; confirm it all the same",
        ),
        Some(left) if left <= SOON => (
            "soon",
            "failed",
            "the registry suspends the domain soon: follow the link in the registrar's e-mail now",
        ),
        Some(_) | None => (
            "first",
            "pending",
            "the registrar has sent an e-mail to the registrant: follow its link, or the registry suspends the domain",
        ),
    };
    let due = until.unwrap_or(DateTime::UNIX_EPOCH);
    if !warnings::first(tx, &format!("registrant {step} {}", seen.id), due).await? {
        return Ok(());
    }
    let end = until.map_or_else(String::new, |until| format!(" before {}", until.to_rfc3339()));
    let what = format!("domain {}: its registrant must confirm the address{end}", seen.name);
    if status == "failed" {
        tracing::error!(domain = seen.name, verify_by = %due, details, "a domain's registrant has not confirmed");
    } else {
        tracing::warn!(domain = seen.name, verify_by = %due, "a domain's registrant must confirm the address");
    }
    log(tx, seen, &what, Some(details), status).await
}

async fn log(
    tx: &mut Tx,
    seen: &Registration,
    what: &str,
    details: Option<&str>,
    status: &str,
) -> Result<(), Error> {
    let Some(agent) = seen.agent_id else { return Ok(()) };
    let Some(state) = agents::states_of(&mut tx.conn, &[agent]).await?.pop() else { return Ok(()) };
    let line = ActionRow::by_server(&state, "domain", what, details.map(str::to_owned), tx.at);
    actions::insert(tx, &[ActionRow { status: status.to_owned(), ..line }]).await?;
    Ok(())
}
