//! `otonix-agent journal` and `otonix-agent pins`: what was paid, and who.

use std::path::Path;

use anyhow::bail;
use clap::{Args, Subcommand};
use http::Method;
use otonix_sdk::error::ErrorCode;
use otonix_sdk::pay::Records;
use serde_json::{Value, json};

use super::client::{self, Call};
use super::{Place, load_config, runtime, say};
use crate::config::Config;
use crate::{app, payments};

/// `journal`.
#[derive(Debug, Args)]
pub(super) struct Journal {
    #[command(subcommand)]
    what: Option<JournalCommand>,
    /// As JSON
    #[arg(long, global = true)]
    json: bool,
}

#[derive(Debug, Subcommand)]
enum JournalCommand {
    /// Every payment that is still kept, newest first
    List,
    /// Compare chain and journal, and let payments go on after a journal was put back or damaged
    Reconcile,
}

/// `pins`.
#[derive(Debug, Args)]
pub(super) struct Pins {
    #[command(subcommand)]
    what: PinsCommand,
}

#[derive(Debug, Subcommand)]
enum PinsCommand {
    /// Who is paid at each origin
    List {
        /// As JSON
        #[arg(long)]
        json: bool,
    },
    /// Forget who was paid at an origin
    Remove {
        /// Like https://shop.example
        origin: String,
    },
}

/// Asks the running daemon, or opens the journal itself.
async fn ask(
    place: &Place,
    method: Method,
    path: &str,
    alone: impl AsyncFnOnce(&Path, Config) -> anyhow::Result<Value>,
) -> anyhow::Result<Value> {
    let socket = place.socket();
    if client::listens(&socket).await {
        let call = Call { method, path, body: Vec::new(), idempotency_key: None };
        let answer = client::call_as_owner(&socket, call, place, client::TIMEOUT).await?;
        match answer {
            Ok(answer) => return Ok(answer),
            // A daemon that pays nothing does not hold the journal.
            Err(problem) if problem.code == ErrorCode::PaymentsNotConfigured.as_str() => {}
            Err(problem) => anyhow::bail!("{} ({})", problem.detail, problem.code),
        }
    }
    app::harden();
    let state_dir = place.state_dir();
    let config = load_config(place, &state_dir)?;
    alone(&state_dir, config).await
}

/// The journal of a state directory that no daemon runs on.
fn records(state_dir: &Path) -> anyhow::Result<Records> {
    Ok(Records::open(&state_dir.join(payments::FOLDER))?)
}

impl Journal {
    pub(super) fn run(self, place: &Place) -> anyhow::Result<()> {
        match self.what {
            None | Some(JournalCommand::List) => {
                let listing = ask(place, Method::GET, "/v1/payments", async |dir, _| {
                    Ok(serde_json::to_value(records(dir)?.payments())?)
                });
                let payments = runtime()?.block_on(listing)?;
                self.show(&payments);
            }
            Some(JournalCommand::Reconcile) => {
                let reconciling = ask(place, Method::POST, "/v1/payments/reconcile", async |dir, config| {
                    let client = payments::alone(&config, dir, None)?;
                    let found = client.reconcile().await?;
                    Ok(json!({ "reconciled": found, "standstill": client.standstill() }))
                });
                let found = runtime()?.block_on(reconciling)?;
                if self.json {
                    say(&found);
                    return Ok(());
                }
                match found["reconciled"].as_str() {
                    Some(why) => say(format!("reconciled: {why}")),
                    None => say("chain and journal agree"),
                }
                if let Some(why) = found["standstill"].as_str() {
                    say(why);
                }
            }
        }
        Ok(())
    }

    fn show(&self, payments: &Value) {
        if self.json {
            return say(payments);
        }
        for payment in payments.as_array().into_iter().flatten() {
            let text = |name: &str| payment[name].as_str().unwrap_or("-").to_owned();
            say(format!(
                "{}  {:<16} {:>12}  {}  {}  {}",
                text("createdAt"),
                text("state"),
                payment["amount"].to_string(),
                text("intentId"),
                text("txHash"),
                text("url"),
            ));
            if let Some(detail) = payment["detail"].as_str() {
                say(format!("    {detail}"));
            }
        }
    }
}

impl Pins {
    pub(super) fn run(self, place: &Place) -> anyhow::Result<()> {
        match self.what {
            PinsCommand::List { json } => {
                let listing = ask(place, Method::GET, "/v1/pins", async |dir, _| {
                    let pins = records(dir)?.pins().into_iter();
                    Ok(pins.map(|(origin, pay_to)| json!({ "origin": origin, "payTo": pay_to })).collect())
                });
                let pins = runtime()?.block_on(listing)?;
                if json {
                    say(&pins);
                    return Ok(());
                }
                for pin in pins.as_array().into_iter().flatten() {
                    let text = |name: &str| pin[name].as_str().unwrap_or_default().to_owned();
                    say(format!("{}  {}", text("payTo"), text("origin")));
                }
            }
            PinsCommand::Remove { origin } => {
                let path = format!("/v1/pins?{origin}");
                let removing = ask(place, Method::DELETE, &path, async |dir, _| {
                    Ok(json!({ "removed": records(dir)?.unpin(origin.clone())? }))
                });
                let removed = runtime()?.block_on(removing)?;
                if removed["removed"] != true {
                    bail!("nobody is pinned at {origin}");
                }
                say(format!("{origin}: the next payee is believed"));
            }
        }
        Ok(())
    }
}
