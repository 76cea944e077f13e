//! The first step of healing: an agent's process that two heartbeats in a row call stalled is told to restart; when that
//! was in vain twice, a server of ours is rebooted.

use chrono::TimeDelta;
use otonix_sdk::api::attached::Attached;
use otonix_sdk::api::commands::Command;
use otonix_sdk::ids::CommandId;
use uuid::Uuid;

use crate::app::App;
use crate::error::Error;
use crate::store::actions::{self, ActionRow};
use crate::store::writer::{Notice, Target, Tx};
use crate::store::{agents, commands};
use crate::worker::recovery;

/// What the daemon is told.
const RESTART: &str = "restart_agent";
/// Between two of them.
const REST: TimeDelta = TimeDelta::seconds(270);
/// How long the command may wait.
const TTL_SECS: i64 = 300;
/// Restarts in vain before a server of ours is rebooted.
const RESTARTS_FIRST: u32 = 2;
/// At most this share of the agents with a session here is healed at once, and at least one.
const MOST_PERCENT: usize = 5;

/// Treats agents with trouble. Each replica heals those whose sessions it holds.
///
/// # Errors
/// 503 without database.
pub async fn run_once(app: &App) -> Result<(), Error> {
    app.shared.cycled();
    note_recovered(app).await?;
    let most = (app.shared.links.len() * MOST_PERCENT / 100).max(1);
    for (agent, in_vain) in app.shared.health.to_treat(most) {
        if in_vain >= RESTARTS_FIRST && recovery::reboot_stalled(app, agent).await? {
            continue;
        }
        let told = app.writer.apply(Target::Agent(agent), move |tx| Box::pin(treat(tx, agent)));
        if told.await? {
            app.shared.metrics.healing_attempts.inc();
        }
    }
    Ok(())
}

async fn note_recovered(app: &App) -> Result<(), Error> {
    let count = app.shared.health.take_recovered();
    if count == 0 {
        return Ok(());
    }
    let noted = app.writer.apply(Target::Shared, move |tx| {
        tx.counts.healing_successes += count;
        Box::pin(async move { Ok(()) })
    });
    noted.await.inspect_err(|_| app.shared.health.keep_recovered(count))
}

/// Tells a stalled agent to restart, unless it was told lately: by a replica that heard it before this one did.
async fn treat(tx: &mut Tx, agent: Uuid) -> Result<bool, Error> {
    let Some(state) = agents::lock_state(tx, agent).await? else { return Ok(false) };
    if state.killed || commands::sent_since(tx, agent, RESTART, tx.at - REST).await? {
        return Ok(false);
    }
    tx.counts.healing_attempts += 1;
    let command = Command {
        id: CommandId::from(otonix_sdk::clock::new_id()),
        kind: RESTART.to_owned(),
        args: Attached::default(),
        status: "queued".to_owned(),
        created_at: tx.at,
        expires_at: tx.at + TimeDelta::seconds(TTL_SECS),
        result: None,
    };
    commands::insert(tx, agent, &command).await?;
    let line =
        ActionRow::by_server(&state, "system", "healing: the stalled agent is told to restart", None, tx.at);
    actions::insert(tx, &[line]).await?;
    tx.notices.push(Notice::Command(agent));
    Ok(true)
}
