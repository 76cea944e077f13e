//! `otonix-agent status`.

use clap::Args;
use otonix_sdk::api::local::LocalStatus;
use serde_json::Value;

use super::client::{self, Call};
use super::{Place, runtime, say};

/// `status`.
#[derive(Debug, Args)]
pub(super) struct Status {
    /// The daemon's answer as it is
    #[arg(long)]
    json: bool,
}

impl Status {
    pub(super) fn run(&self, place: &Place) -> anyhow::Result<()> {
        let answer: Box<serde_json::value::RawValue> =
            runtime()?.block_on(client::call(&place.socket(), Call::get("/v1/status")))?;
        if self.json {
            say(answer);
            return Ok(());
        }
        let status: LocalStatus = serde_json::from_str(answer.get())?;
        let more: Value = serde_json::from_str(answer.get())?;
        for (name, value) in lines(&status, &more) {
            say(format!("{name:<10} {value}"));
        }
        Ok(())
    }
}

fn lines(status: &LocalStatus, more: &Value) -> Vec<(&'static str, String)> {
    let text = |name: &str| more.get(name).and_then(Value::as_str);
    let refused = status.refused.as_deref().map(client::refusal_in_words);
    let link = match (status.connected, text("transport"), refused.or(text("lastError"))) {
        (true, transport, _) => format!("connected ({})", transport.unwrap_or("?")),
        (false, _, Some(error)) => format!("not connected: {error}"),
        (false, _, None) => "not connected".to_owned(),
    };
    let known = more.get("standingKnown").and_then(Value::as_bool).unwrap_or(true);
    let tier = match (known, status.funded) {
        (false, _) => "not known yet".to_owned(),
        (true, true) => format!("{}, {} USDC", status.survival_tier, status.credits),
        (true, false) => format!("{}, {} USDC, never funded", status.survival_tier, status.credits),
    };
    let spool = &status.spool;
    let mut waiting = format!("{} waiting, {} bytes", spool.pending, spool.bytes);
    for (count, what) in [(spool.damaged, "damaged"), (spool.rejected, "rejected by the server")] {
        if count > 0 {
            waiting.push_str(&format!(", {count} {what}"));
        }
    }
    let mut process = status.agent_process.clone();
    if let Some(exit) = text("lastExit") {
        process.push_str(&format!(" (last: {exit})"));
    }
    let payments = match (more["payments"]["state"].as_str(), more["payments"]["detail"].as_str()) {
        _ if status.payments_paused => "paused".to_owned(),
        (Some(state), Some(detail)) => format!("{state}: {detail}"),
        (state, _) => state.unwrap_or("not paused").to_owned(),
    };
    vec![
        ("agent", format!("{} {}", text("name").unwrap_or_default(), status.agent_id)),
        ("server", format!("{} {link}", text("server").unwrap_or_default())),
        ("tier", tier),
        ("model", status.model.clone()),
        ("process", process),
        ("spool", waiting),
        ("wallet", status.wallet_address.clone().unwrap_or_else(|| "none".to_owned())),
        ("payments", payments),
    ]
}
