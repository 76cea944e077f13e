//! The closed list of commands, each executed once. There is no remote shell; no command raises a spending limit,
//! lifts a local pause, or reads the agent's environment or files.

use std::time::Duration;

use otonix_sdk::api::commands::Command;
use otonix_sdk::api::events::{CommandResult, EventBody};
use otonix_sdk::limits;
use otonix_sdk::money::MicroUsd;
use otonix_sdk::pay::topup;
use serde_json::{Map, Value, json};
use tokio::sync::mpsc;

use crate::payments::Payments;
use crate::probe;
use crate::shared::{Notice, Shared, tier_of};
use crate::supervise::ProcessState;
use otonix_sdk::standing::SurvivalTier;

/// How long a command waits to see the agent's process do what it asked, beyond the process's own grace.
const SETTLE: Duration = Duration::from_secs(5);

/// Executes commands until there will be no more.
pub async fn run(shared: Shared, mut commands: mpsc::Receiver<Command>) {
    while let Some(command) = commands.recv().await {
        let outcome = execute(&shared, &command.kind, &command.args.fields()).await;
        let (ok, detail) = match outcome {
            Ok(detail) => (true, detail),
            Err(detail) => (false, detail),
        };
        tracing::info!(command.id = %command.id, kind = command.kind, ok, detail, "a command was executed");
        shared.tell(Notice::Command { id: command.id.to_string(), kind: command.kind, ok });
        let result = CommandResult { command_id: command.id, ok, detail: Some(detail) };
        if let Err(error) = shared.agent.record(EventBody::CommandResult(result)).await {
            tracing::warn!(%error, "failed to record the result of a command");
        }
    }
}

/// Executes one command; both outcomes are sentences for people.
async fn execute(shared: &Shared, kind: &str, args: &Map<String, Value>) -> Result<String, String> {
    match kind {
        "restart_agent" => restart(shared).await,
        "stop_agent" => stop(shared).await,
        "start_agent" => start(shared).await,
        "set_interval" => set_interval(shared, args),
        "set_model" => set_model(shared, args),
        "pause_payments" => {
            set(shared, |settings| settings.payments_paused = true)?;
            Ok("payments are paused".to_owned())
        }
        "resume_payments" => resume_payments(shared),
        "sweep" => sweep(shared).await,
        "collect_diagnostics" => Ok(diagnostics(shared).to_string()),
        _ => Err(format!("this version knows no command `{kind}`")),
    }
}

fn set(shared: &Shared, change: impl FnOnce(&mut crate::shared::Settings)) -> Result<(), String> {
    shared.change_settings(change).map_err(|error| format!("failed to keep the setting: {error}"))
}

fn needs_process(shared: &Shared) -> Result<(), String> {
    if shared.has_command {
        return Ok(());
    }
    Err("no agent process is configured on this machine".to_owned())
}

fn needs_credits(shared: &Shared) -> Result<(), String> {
    if tier_of(&shared.agent.standing()) != SurvivalTier::Terminated {
        return Ok(());
    }
    Err("the agent is terminated: its process starts again when credits return".to_owned())
}

async fn restart(shared: &Shared) -> Result<String, String> {
    needs_process(shared)?;
    needs_credits(shared)?;
    if shared.settings.borrow().held {
        return Err("the agent's process was stopped by a command; start_agent starts it".to_owned());
    }
    if shared.process.borrow().pid.is_some() {
        shared.tell(Notice::Shutdown {
            reason: "restarted by a command",
            grace_secs: shared.config.agent.stop_grace,
        });
    }
    let mut generation = 0;
    shared.wanted.send_modify(|wanted| {
        wanted.generation += 1;
        generation = wanted.generation;
    });
    wait_for_start(shared, generation).await
}

async fn wait_for_start(shared: &Shared, generation: u64) -> Result<String, String> {
    let mut process = shared.process.subscribe();
    let limit = Duration::from_secs(shared.config.agent.stop_grace) + SETTLE;
    let started = process.wait_for(|status| status.generation >= generation && status.pid.is_some());
    match tokio::time::timeout(limit, started).await {
        Ok(Ok(status)) => Ok(format!("the agent's process runs with pid {}", status.pid.unwrap_or_default())),
        Ok(Err(_)) => Err("the daemon is stopping".to_owned()),
        Err(_) => Err("the agent's process did not start in time".to_owned()),
    }
}

async fn stop(shared: &Shared) -> Result<String, String> {
    needs_process(shared)?;
    set(shared, |settings| settings.held = true)?;
    let mut process = shared.process.subscribe();
    let limit = Duration::from_secs(shared.config.agent.stop_grace) + SETTLE;
    let stopped = process.wait_for(|status| status.state == ProcessState::Stopped);
    match tokio::time::timeout(limit, stopped).await {
        Ok(Ok(_)) => Ok("the agent's process is stopped".to_owned()),
        Ok(Err(_)) => Err("the daemon is stopping".to_owned()),
        Err(_) => Err("the agent's process did not stop in time".to_owned()),
    }
}

async fn start(shared: &Shared) -> Result<String, String> {
    needs_process(shared)?;
    set(shared, |settings| settings.held = false)?;
    needs_credits(shared)?;
    if let Some(pid) = shared.process.borrow().pid {
        return Ok(format!("the agent's process runs with pid {pid} already"));
    }
    let mut generation = 0;
    shared.wanted.send_modify(|wanted| {
        wanted.run = true;
        wanted.generation += 1;
        generation = wanted.generation;
    });
    wait_for_start(shared, generation).await
}

fn set_interval(shared: &Shared, args: &Map<String, Value>) -> Result<String, String> {
    let named = ["seconds", "interval", "heartbeatInterval"].iter().find_map(|name| args.get(*name));
    let secs = named
        .and_then(Value::as_u64)
        .and_then(|secs| u32::try_from(secs).ok())
        .filter(|secs| limits::HEARTBEAT_INTERVAL.contains(secs))
        .ok_or_else(|| "`seconds` must be a whole number from 5 to 86400".to_owned())?;
    set(shared, |settings| settings.interval = Some(secs))?;
    Ok(format!("the daemon beats at least every {secs} s"))
}

fn set_model(shared: &Shared, args: &Map<String, Value>) -> Result<String, String> {
    let model =
        args.get("model").and_then(Value::as_str).ok_or_else(|| "`model` must be a text".to_owned())?;
    limits::check_name("model", model, limits::MODEL).map_err(|error| error.to_string())?;
    set(shared, |settings| settings.model = Some(model.to_owned()))?;
    Ok(format!("the model is {model}"))
}

/// Turns what the wallet holds into the agent's own credits, within the bounds of a top-up: no command raises them.
async fn sweep(shared: &Shared) -> Result<String, String> {
    let client = match &*shared.payments.borrow() {
        Payments::On(client) => client.clone(),
        Payments::Off(why) => return Err(format!("payments are off: {why}")),
        Payments::Starting => return Err("the wallet is being unlocked".to_owned()),
    };
    match client.topup(MicroUsd::from_micros(i64::MAX), shared.agent.tier()).await {
        Ok(Some(fetched)) if topup::succeeded(&fetched) => {
            let amount = fetched.payment.map(|payment| payment.amount).unwrap_or_default();
            Ok(format!("{amount} USDC became credits"))
        }
        Ok(Some(fetched)) => {
            let state = fetched.payment.map_or("not asked for", |payment| payment.state.as_str());
            Err(format!("the payment is {state}"))
        }
        Ok(None) => Ok("the wallet has nothing to sweep, or `[topup] max_day` is used up".to_owned()),
        Err(error) => Err(error.to_string()),
    }
}

fn resume_payments(shared: &Shared) -> Result<String, String> {
    set(shared, |settings| settings.payments_paused = false)?;
    if shared.config.pay.paused {
        return Err("payments were paused on the machine and can only be resumed there".to_owned());
    }
    Ok("payments go on".to_owned())
}

/// How the daemon is. Built from the daemon's own knowledge: nothing of the agent's process but its state.
pub fn diagnostics(shared: &Shared) -> Value {
    let process = shared.process.borrow().clone();
    let link = shared.agent.status();
    let standing = shared.agent.standing();
    let (memory_used, memory_total) = probe::memory();
    let (disk_used, disk_total, disk_free) = probe::disk(&shared.state_dir);
    let settings = shared.settings.borrow().clone();
    json!({
        "version": env!("CARGO_PKG_VERSION"),
        "uptimeSecs": shared.began.elapsed().as_secs(),
        "process": {
            "state": process.state.as_str(),
            "starts": process.starts,
            "failures": process.failures,
            "lastExit": process.last_exit,
        },
        "link": {
            "connected": link.connected,
            "transport": link.transport,
            "lastError": link.last_error,
        },
        "spool": link.spool,
        "standing": { "tier": standing.survival_tier, "credits": standing.credits, "asOf": standing.as_of },
        "settings": settings,
        "paymentsPaused": shared.payments_paused(),
        "machine": {
            "load": probe::load(),
            "memoryUsed": memory_used,
            "memoryTotal": memory_total,
            "diskUsed": disk_used,
            "diskTotal": disk_total,
            "diskFree": disk_free,
        },
    })
}
