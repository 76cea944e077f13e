//! What a paying agent does by itself: tell the link of every payment, and buy credits before it dies.

use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;

use super::topup::{self, TopupRules};
use super::{Client, PayError};
use crate::api::events::EventBody;
use crate::link::RecordError;
use crate::link::core::{Core, tidy};
use crate::money::MicroUsd;
use crate::standing::SurvivalTier;

/// How often to look, when nothing is heard.
const LOOK: Duration = Duration::from_secs(15);
/// How long a start waits for the server's word, before it buys by what it knew when it ended.
const HEAR_FIRST: Duration = Duration::from_secs(20);
/// How long a purchase may take to show in the balance before the next one is thought of.
const SETTLE: Duration = Duration::from_secs(90);

/// How often what was delivered is compared with the chain.
const COMPARE: Duration = Duration::from_secs(60);

/// Compares journal and chain at the start, and what was delivered with the chain's last word from then on.
pub(crate) async fn compare(client: Client) {
    while let Err(error) = client.check().await {
        tracing::warn!(%error, "journal and chain cannot be compared yet; nothing is paid meanwhile");
        tokio::time::sleep(LOOK).await;
    }
    if let Some(why) = client.standstill() {
        tracing::error!(why, "nothing is paid");
    }
    loop {
        tokio::time::sleep(COMPARE).await;
        if let Err(error) = client.check_delivered().await {
            tracing::warn!(%error, "failed to compare what was delivered with the chain");
        }
    }
}

/// Hands every state of every payment to the link, once each, also those of an earlier life.
pub(crate) async fn report(core: Arc<Core>, client: Client) {
    let mut changes = client.changes();
    loop {
        changes.borrow_and_update();
        for (id, state, event) in client.untold() {
            let mut body = EventBody::Payment(event);
            tidy(&mut body);
            // The key makes a repeat the same event: a crash between the two records tells it once.
            let key = format!("payment {id} {}", state.as_str());
            match core.record(body, Some(&key)).await {
                Ok(_) => {
                    if let Err(error) = client.told(id, state).await {
                        tracing::warn!(payment.id = %id, %error, "failed to note that a payment was told");
                        break;
                    }
                }
                // Nobody is left to be told.
                Err(RecordError::Killed) => break,
                Err(error) => {
                    tracing::warn!(payment.id = %id, %error, "failed to record a payment's event");
                    break;
                }
            }
        }
        if let Ok(Err(_)) = tokio::time::timeout(LOOK, changes.changed()).await {
            return;
        }
    }
}

/// Buys credits when they fall below the bound, in every tier, for as long as the agent is not killed.
pub(crate) async fn alive(core: Arc<Core>, client: Client, rules: TopupRules) {
    let mut standings = core.keeper.changes();
    let began = Instant::now();
    let mut failures = 0;
    let mut quiet_until = Instant::now();
    // What the balance was before the last purchase, until it shows.
    let mut before: Option<MicroUsd> = None;
    loop {
        standings.borrow_and_update();
        let standing = core.keeper.current();
        let tier = if standing.killed { SurvivalTier::Terminated } else { standing.survival_tier };
        let heard = core.keeper.is_heard() || began.elapsed() >= HEAR_FIRST;
        let due = heard && topup::is_due(&rules, standing.credits, standing.known) && !standing.killed;
        if before.is_some_and(|before| standing.credits > before) {
            before = None;
            quiet_until = Instant::now();
        }
        if !due {
            failures = 0;
            quiet_until = Instant::now();
        } else if Instant::now() >= quiet_until && client.standstill().is_none() {
            let wait = match client.topup(rules.amount, tier).await {
                Ok(Some(fetched)) if topup::succeeded(&fetched) => {
                    let amount = fetched.payment.map_or(MicroUsd::ZERO, |payment| payment.amount);
                    tracing::info!(%amount, "credits were bought");
                    failures = 0;
                    before = Some(standing.credits);
                    SETTLE
                }
                Ok(Some(fetched)) => {
                    failures += 1;
                    let status = fetched.answer.map(|answer| answer.status);
                    tracing::warn!(status, "credits were not bought");
                    topup::pause_after(failures)
                }
                Ok(None) => {
                    tracing::debug!("the wallet has nothing to buy credits with");
                    LOOK
                }
                Err(error) => {
                    failures += 1;
                    complain(&error, failures);
                    topup::pause_after(failures)
                }
            };
            quiet_until = Instant::now() + wait;
        }
        let until = if due { quiet_until.min(Instant::now() + LOOK) } else { Instant::now() + LOOK };
        tokio::select! {
            changed = standings.changed() => if changed.is_err() { return },
            () = tokio::time::sleep_until(until.max(Instant::now() + Duration::from_millis(50))) => {}
        }
    }
}

fn complain(error: &PayError, failures: u32) {
    if failures <= 3 || failures.is_power_of_two() {
        tracing::warn!(%error, failures, "credits cannot be bought");
    }
}
