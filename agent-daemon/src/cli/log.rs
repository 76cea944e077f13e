//! `otonix-agent log` and `otonix-agent usage`: what the local API does, for scripts.

use clap::Args;
use http::Method;
use otonix_sdk::api::actions::LogAction;
use otonix_sdk::api::local::Accepted;
use otonix_sdk::api::usage::LogUsage;
use otonix_sdk::money::{Cost, MicroUsd};
use serde::Serialize;

use super::client::{self, Call};
use super::{Place, runtime, say};

/// `log`.
#[derive(Debug, Args)]
pub(super) struct Log {
    /// What the agent did
    action: String,
    /// A slug like system, compute, domain, payment
    #[arg(long, default_value = "system", value_name = "C")]
    category: String,
    /// More about it
    #[arg(long, value_name = "D")]
    details: Option<String>,
    /// completed, failed or pending
    #[arg(long, value_name = "STATUS")]
    status: Option<String>,
    /// The same key and content are recorded once
    #[arg(long, value_name = "KEY")]
    idempotency_key: Option<String>,
}

/// `usage`.
#[derive(Debug, Args)]
pub(super) struct Usage {
    /// The model that was called
    #[arg(long, value_name = "M")]
    model: String,
    /// Input tokens
    #[arg(long, value_name = "N")]
    tokens_in: i64,
    /// Output tokens
    #[arg(long, value_name = "N")]
    tokens_out: i64,
    /// Input tokens that were read from a cache
    #[arg(long, value_name = "N")]
    tokens_cached: Option<i64>,
    /// What it cost; from the price table when absent
    #[arg(long, value_name = "USDC", value_parser = parse_cost)]
    cost: Option<Cost>,
    /// The same key and content are recorded once
    #[arg(long, value_name = "KEY")]
    idempotency_key: Option<String>,
}

fn parse_cost(text: &str) -> Result<Cost, String> {
    MicroUsd::parse(text).and_then(Cost::new).map_err(|error| error.to_string())
}

impl Log {
    pub(super) fn run(self, place: &Place) -> anyhow::Result<()> {
        let action = LogAction {
            action: self.action,
            category: self.category,
            details: self.details,
            status: self.status,
            autonomous: None,
        };
        record(place, "/v1/actions", &action, self.idempotency_key.as_deref())
    }
}

impl Usage {
    pub(super) fn run(self, place: &Place) -> anyhow::Result<()> {
        let usage = LogUsage {
            model: self.model,
            tokens_in: self.tokens_in,
            tokens_out: self.tokens_out,
            tokens_cached: self.tokens_cached,
            cost: self.cost,
            agent_id: None,
        };
        record(place, "/v1/usage", &usage, self.idempotency_key.as_deref())
    }
}

fn record<T: Serialize>(place: &Place, path: &str, what: &T, key: Option<&str>) -> anyhow::Result<()> {
    let call = Call { method: Method::POST, path, body: serde_json::to_vec(what)?, idempotency_key: key };
    let accepted: Accepted = runtime()?.block_on(client::call(&place.socket(), call))?;
    say(accepted.id);
    Ok(())
}
