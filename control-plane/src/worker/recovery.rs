//! The rest of the ladder of healing, for agents that are silent and have a server of ours: the daemon is told to restart
//! its agent, then the server is rebooted, then a person is called.
//!
//! A reboot takes two kinds of evidence: the agent's silence, and a command that was not carried out while the vendor says
//! that the machine is there. Every step is noted before it is taken, so that a crash may lose one but never repeats it.

use std::time::Duration;

use chrono::{DateTime, TimeDelta, Utc};
use otonix_sdk::api::attached::Attached;
use otonix_sdk::api::commands::Command;
use otonix_sdk::ids::CommandId;
use otonix_sdk::standing::AgentStatus;
use uuid::Uuid;

use crate::app::App;
use crate::error::Error;
use crate::store::actions::{self, ActionRow};
use crate::store::healings::{self, Healing, Patient};
use crate::store::writer::{Notice, Target, Tx};
use crate::store::{agents, commands};
use crate::upstream::providers::{ComputeProvider, Deadline, ServerAction, ServerStatus};
use crate::worker::{Held, hold};

const LEASE: &str = "recovery";
/// Silent agents of one pass.
const PAGE: i64 = 1000;
/// Between two steps, and how long the command may wait.
const COOLDOWN: TimeDelta = TimeDelta::minutes(5);
/// Reboots of one server in a day.
const MOST_REBOOTS: usize = 3;
const DAY: TimeDelta = TimeDelta::hours(24);
/// At most this share of a fleet is healed at once, and at least one.
const MOST_PERCENT: i64 = 5;
/// Fleets up to this size may be silent as a whole and are healed all the same, one after another.
const SMALL_FLEET: i64 = 2;
const SEND_FOR: Duration = Duration::from_secs(55);

/// What comes next for a silent agent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Step {
    Wait,
    Restart,
    Reboot,
    Operator,
}

/// The next step, from what was tried (latest first).
fn next_step(history: &[Healing], last_heartbeat: Option<DateTime<Utc>>, now: DateTime<Utc>) -> Step {
    let in_episode = |healing: &&Healing| last_heartbeat.is_none_or(|heard| healing.created_at > heard);
    let episode: Vec<&Healing> = history.iter().filter(in_episode).collect();
    if episode.first().is_some_and(|latest| latest.step == "operator" || now < latest.created_at + COOLDOWN) {
        return Step::Wait;
    }
    if !episode.iter().any(|healing| healing.step == "restart") {
        return Step::Restart;
    }
    let reboots = history.iter().filter(|healing| healing.step == "reboot" && now < healing.created_at + DAY);
    if reboots.count() >= MOST_REBOOTS { Step::Operator } else { Step::Reboot }
}

/// Whether so many silent agents at once are this server's own fault rather than theirs.
fn is_fleet_wide(silent: i64, fleet: i64) -> bool {
    fleet > SMALL_FLEET && silent * 2 > fleet
}

/// One pass over the silent agents.
///
/// # Errors
/// 503 without database.
pub async fn run_once(app: &App) -> Result<(), Error> {
    let Some(compute) = &app.vendors.compute else { return Ok(()) };
    let Some(held) = hold(app, LEASE).await? else { return Ok(()) };
    app.shared.cycled();
    close(app, held).await?;
    let now = app.clock.now();
    let read = app.db.read(move |conn| {
        Box::pin(async move {
            let fleet = healings::fleet(conn).await?;
            let busy = healings::busy_since(conn, now - COOLDOWN).await?;
            Ok((healings::silent(conn, PAGE).await?, fleet, busy))
        })
    });
    let (patients, fleet, busy) = read.await?;
    if is_fleet_wide(i64::try_from(patients.len()).unwrap_or(i64::MAX), fleet) {
        tracing::warn!(silent = patients.len(), fleet, "most of the fleet is silent: nobody is healed");
        return Ok(());
    }
    let mut places = (fleet * MOST_PERCENT / 100).max(1) - busy;
    for patient in patients {
        if places <= 0 {
            break;
        }
        let agent = patient.agent_id;
        let history = app
            .db
            .read(move |conn| Box::pin(async move { healings::since(conn, agent, now - DAY * 7).await }));
        let step = next_step(&history.await?, patient.last_heartbeat, now);
        let taken = match step {
            Step::Wait => false,
            Step::Restart => restart(app, held, &patient).await?,
            Step::Reboot => reboot(app, held, compute.as_ref(), &patient).await?,
            Step::Operator => call(app, held, &patient, "three reboots in a day did not help").await?,
        };
        places -= i64::from(taken);
    }
    Ok(())
}

/// Closes what was tried on agents that are heard again.
async fn close(app: &App, held: Held) -> Result<(), Error> {
    let replica = app.replica;
    let well = app.writer.apply(Target::Alone, move |tx| {
        Box::pin(async move {
            held.check(tx, replica).await?;
            let well = healings::close_recovered(tx).await?;
            tx.counts.healing_successes += well.len() as u64;
            let mut lines = Vec::new();
            for state in agents::states_of(&mut tx.conn, &well).await? {
                lines.push(ActionRow::by_server(
                    &state,
                    "system",
                    "healing: the agent is heard again",
                    None,
                    tx.at,
                ));
            }
            actions::insert(tx, &lines).await?;
            Ok(well.len())
        })
    });
    app.shared.metrics.healing_successes.inc_by(well.await? as u64);
    Ok(())
}

/// Notes a step, unless the agent was heard meanwhile; tells whether it may be taken.
async fn note(
    app: &App,
    held: Held,
    patient: &Patient,
    step: &'static str,
    action: &'static str,
    details: Option<String>,
) -> Result<bool, Error> {
    let (replica, agent) = (app.replica, patient.agent_id);
    let noted = app.writer.apply(Target::Alone, move |tx| {
        Box::pin(async move {
            held.check(tx, replica).await?;
            let Some(state) = agents::lock_state(tx, agent).await? else { return Ok(false) };
            if state.killed || state.status != AgentStatus::Inactive {
                return Ok(false);
            }
            let command = if step == "restart" { Some(queue(tx, agent).await?) } else { None };
            healings::insert(tx, agent, step, command).await?;
            tx.counts.healing_attempts += u64::from(step != "operator");
            let mut line = ActionRow::by_server(&state, "system", action, details, tx.at);
            if step == "operator" {
                "failed".clone_into(&mut line.status);
            }
            actions::insert(tx, &[line]).await?;
            Ok(true)
        })
    });
    let noted = noted.await?;
    if noted && step != "operator" {
        app.shared.metrics.healing_attempts.inc();
    }
    Ok(noted)
}

async fn queue(tx: &mut Tx, agent: Uuid) -> Result<Uuid, Error> {
    let id = otonix_sdk::clock::new_id();
    let command = Command {
        id: CommandId::from(id),
        kind: "restart_agent".to_owned(),
        args: Attached::default(),
        status: "queued".to_owned(),
        created_at: tx.at,
        expires_at: tx.at + COOLDOWN,
        result: None,
    };
    commands::insert(tx, agent, &command).await?;
    tx.notices.push(Notice::Command(agent));
    Ok(id)
}

async fn restart(app: &App, held: Held, patient: &Patient) -> Result<bool, Error> {
    let action = "healing: the silent agent is told to restart";
    note(app, held, patient, "restart", action, None).await
}

async fn call(app: &App, held: Held, patient: &Patient, why: &str) -> Result<bool, Error> {
    let action = "healing: the agent does not come back; the operator is needed";
    let called = note(app, held, patient, "operator", action, Some(why.to_owned())).await?;
    if called {
        tracing::error!(agent.id = %patient.agent_id, server.id = patient.vendor_id, why, "an agent does not come back");
    }
    Ok(false)
}

async fn reboot(
    app: &App,
    held: Held,
    compute: &dyn ComputeProvider,
    patient: &Patient,
) -> Result<bool, Error> {
    let Ok(id) = patient.vendor_id.parse() else { return Ok(false) };
    let server = match compute.server(id).await {
        Ok(Some(server)) => server,
        Ok(None) => return call(app, held, patient, "the vendor has no such server").await,
        Err(error) => {
            tracing::debug!(server.id = id, %error, "the vendor does not say how a server is");
            return Ok(false);
        }
    };
    match server.status {
        ServerStatus::Deployed => {}
        ServerStatus::Failed => return call(app, held, patient, "the vendor calls the server failed").await,
        // Somebody works on it.
        ServerStatus::Deploying | ServerStatus::Rescue | ServerStatus::Other(_) => return Ok(false),
    }
    let (action, words) = match server.powered {
        Some(false) => (ServerAction::PowerOn, "healing: the agent's server is powered on"),
        Some(true) | None => (ServerAction::Reboot, "healing: the agent's server is rebooted"),
    };
    // Nobody takes the next step before the rest that begins with the note, so what is sent ends before it.
    let until = Deadline::after(SEND_FOR);
    if !note(app, held, patient, "reboot", words, None).await? {
        return Ok(false);
    }
    if let Err(error) = compute.act(id, &action, until).await {
        tracing::warn!(server.id = id, %error, "a server could not be rebooted");
    }
    Ok(true)
}

/// Reboots the server of an agent that is heard and gets nowhere, although its daemon was told to restart it: a stalled
/// process and commands in vain are the two kinds of evidence. Tells whether it was rebooted; the row of reboots decides,
/// whichever replica hears the agent.
///
/// # Errors
/// 503 without database.
pub async fn reboot_stalled(app: &App, agent: Uuid) -> Result<bool, Error> {
    let Some(compute) = &app.vendors.compute else { return Ok(false) };
    let found = app.db.read(move |conn| Box::pin(async move { healings::server_of(conn, agent).await }));
    let Some(id) = found.await?.and_then(|id| id.parse().ok()) else { return Ok(false) };
    match compute.server(id).await {
        Ok(Some(server)) if server.status == ServerStatus::Deployed => {}
        Ok(_) => return Ok(false),
        Err(error) => {
            tracing::debug!(server.id = id, %error, "the vendor does not say how a server is");
            return Ok(false);
        }
    }
    let until = Deadline::after(SEND_FOR);
    let noted = app.writer.apply(Target::Agent(agent), move |tx| {
        Box::pin(async move {
            let Some(state) = agents::lock_state(tx, agent).await? else { return Ok(false) };
            let at = tx.at;
            let history = healings::since(&mut tx.conn, agent, at - DAY).await?;
            let reboots: Vec<&Healing> = history.iter().filter(|healing| healing.step == "reboot").collect();
            let rests = reboots.first().is_some_and(|latest| at < latest.created_at + COOLDOWN);
            if state.killed || rests || reboots.len() >= MOST_REBOOTS {
                return Ok(false);
            }
            healings::insert_reboot(tx, agent).await?;
            tx.counts.healing_attempts += 1;
            let action = "healing: the agent stays stalled; its server is rebooted";
            actions::insert(tx, &[ActionRow::by_server(&state, "system", action, None, at)]).await?;
            Ok(true)
        })
    });
    if !noted.await? {
        return Ok(false);
    }
    app.shared.metrics.healing_attempts.inc();
    if let Err(error) = compute.act(id, &ServerAction::Reboot, until).await {
        tracing::warn!(server.id = id, %error, "a server could not be rebooted");
    }
    Ok(true)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tried(step: &str, minutes: i64) -> Healing {
        Healing {
            id: Uuid::nil(),
            step: step.to_owned(),
            command_id: None,
            recovered_at: None,
            created_at: DateTime::UNIX_EPOCH + TimeDelta::minutes(minutes),
        }
    }

    #[test]
    fn the_ladder_is_climbed_step_by_step() {
        let at = |minutes: i64| DateTime::UNIX_EPOCH + TimeDelta::minutes(minutes);
        let heard = Some(at(-60));
        for (history, now, step) in [
            (vec![], 0, Step::Restart),
            (vec![tried("restart", 0)], 4, Step::Wait),
            (vec![tried("restart", 0)], 5, Step::Reboot),
            (vec![tried("reboot", 5), tried("restart", 0)], 9, Step::Wait),
            (vec![tried("reboot", 10), tried("reboot", 5), tried("restart", 0)], 15, Step::Reboot),
            (
                vec![tried("reboot", 15), tried("reboot", 10), tried("reboot", 5), tried("restart", 0)],
                20,
                Step::Operator,
            ),
            (vec![tried("operator", 20), tried("restart", 0)], 9_999, Step::Wait),
            // Of the silence before this one: only its reboots count.
            (vec![tried("restart", -61)], 0, Step::Restart),
        ] {
            assert_eq!(next_step(&history, heard, at(now)), step, "{history:?} at {now}");
        }
    }

    #[test]
    fn a_silence_of_most_of_a_fleet_is_nobody_s_illness() {
        for (silent, fleet, wide) in
            [(1, 1, false), (2, 2, false), (2, 3, true), (1, 3, false), (51, 100, true)]
        {
            assert_eq!(is_fleet_wide(silent, fleet), wide, "{silent} of {fleet}");
        }
    }
}
