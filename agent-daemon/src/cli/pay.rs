//! `otonix-agent pay`: one request, paid when that is asked for and allowed. Through the running daemon when there is
//! one, else with the journal's lock. Counts as the machine's owner.

use std::collections::BTreeMap;
use std::io::Write as _;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context as _, anyhow};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use clap::Args;
use http::Method;
use otonix_sdk::client::{Client, ClientConfig, Credential, RetryPolicy};
use otonix_sdk::money::MicroUsd;
use otonix_sdk::pay::Asker;
use otonix_sdk::standing::SurvivalTier;
use serde_json::Value;

use super::client::{self, Call, Unanswered};
use super::{Place, api_key, load_config, runtime};
use crate::config::{self, Config};
use crate::local_api::pay::{PayRequest, fetch_of, fetched_json, refusal};
use crate::{app, payments};

/// Exit codes beyond 0 (a 2xx) and 1.
const REFUSED: u8 = 3;
const UNKNOWN: u8 = 4;
/// How long a daemon may take: what is bought may be slow work.
const TIMEOUT: Duration = Duration::from_secs(300);
/// How long the server may take to say how the agent stands.
const TIER_PATIENCE: Duration = Duration::from_secs(3);

/// `pay`.
#[derive(Debug, Args)]
pub(super) struct Pay {
    /// What to ask for
    url: String,
    /// GET, or POST with --data
    #[arg(long, short = 'X', value_name = "M")]
    method: Option<String>,
    /// The request's body
    #[arg(long, short = 'd', value_name = "D")]
    data: Option<String>,
    /// A header of the request, NAME: VALUE
    #[arg(long, short = 'H', value_name = "H")]
    header: Vec<String>,
    /// Most that it may cost
    #[arg(long, value_name = "USDC", value_parser = parse_amount)]
    max_amount: MicroUsd,
    /// The same key is never paid twice
    #[arg(long, value_name = "K")]
    idempotency_key: Option<String>,
    /// The answer's headers, and the payment, to the error output
    #[arg(short = 'i', long = "include")]
    include: bool,
    /// A file with the wallet's passphrase, when no daemon runs
    #[arg(long, env = "OTONIX_PASSPHRASE_FILE", value_name = "FILE")]
    passphrase_file: Option<std::path::PathBuf>,
}

fn parse_amount(text: &str) -> Result<MicroUsd, String> {
    match MicroUsd::parse(text) {
        Ok(amount) if amount.is_negative() => Err("must not be negative".to_owned()),
        Ok(amount) => Ok(amount),
        Err(why) => Err(why.to_string()),
    }
}

/// What came back, or why nothing was paid: a slug, a sentence.
type Outcome = Result<Value, (String, String)>;

impl Pay {
    /// The exit code.
    pub(super) fn run(self, place: &Place) -> anyhow::Result<u8> {
        let request = self.request()?;
        let socket = place.socket();
        let outcome = runtime()?.block_on(async {
            if client::listens(&socket).await {
                through_daemon(place, &socket, &request).await
            } else {
                alone(place, request, self.passphrase_file.as_deref()).await
            }
        });
        match outcome {
            Ok(outcome) => Ok(self.tell(outcome)),
            Err(error) if error.is::<Unanswered>() => {
                let mut errors = std::io::stderr();
                let _ = writeln!(
                    errors,
                    "otonix-agent: {error:#}; whether something was paid is in `otonix-agent journal list`"
                );
                Ok(UNKNOWN)
            }
            Err(error) => Err(error),
        }
    }

    fn request(&self) -> anyhow::Result<PayRequest> {
        let mut headers: BTreeMap<String, String> = BTreeMap::new();
        for header in &self.header {
            let (name, value) =
                header.split_once(':').with_context(|| format!("`{header}` is no header (NAME: VALUE)"))?;
            let (name, value) = (name.trim().to_ascii_lowercase(), value.trim());
            // A header given twice is one with both values.
            let known = headers.entry(name).or_default();
            if !known.is_empty() {
                known.push_str(", ");
            }
            known.push_str(value);
        }
        Ok(PayRequest {
            url: self.url.clone(),
            method: self.method.clone(),
            headers,
            body: self.data.as_ref().map(serde_json::value::to_raw_value).transpose()?,
            body_base64: None,
            max_amount: self.max_amount,
            idempotency_key: self.idempotency_key.clone(),
        })
    }

    fn tell(&self, outcome: Outcome) -> u8 {
        let mut errors = std::io::stderr();
        let fetched = match outcome {
            Ok(fetched) => fetched,
            Err((code, why)) => {
                let _ = writeln!(errors, "otonix-agent: {why}");
                return if matches!(code.as_str(), "payment_refused" | "payments_paused") {
                    REFUSED
                } else {
                    1
                };
            }
        };
        let payment = &fetched["payment"];
        let state = payment["state"].as_str().unwrap_or_default();
        let status = fetched["status"].as_u64();
        if self.include {
            tell_headers(&fetched, status);
        }
        if let Some(body) = body_of(&fetched) {
            let mut output = std::io::stdout();
            let _ = output.write_all(&body).and_then(|()| output.flush());
        }
        match (state, status) {
            ("none" | "settled", Some(200..300)) => 0,
            ("signed" | "paid" | "paid_undelivered", _) => {
                let id = fetched["intentId"].as_str().unwrap_or_default();
                let amount = &payment["amount"];
                let what = match state {
                    "signed" => "is signed; whether it moves money is not known yet",
                    "paid" => "has moved the money; nothing was delivered yet, and it is tried on",
                    _ => "has moved the money, and nothing was delivered",
                };
                let _ = writeln!(errors, "otonix-agent: the payment {id} of {amount} USDC {what}");
                UNKNOWN
            }
            ("expired_unspent", _) => {
                let _ = writeln!(errors, "otonix-agent: the payment expired unspent");
                1
            }
            _ => 1,
        }
    }
}

fn tell_headers(fetched: &Value, status: Option<u64>) {
    let mut errors = std::io::stderr();
    let _ = writeln!(errors, "HTTP {}", status.map_or_else(|| "-".to_owned(), |status| status.to_string()));
    for (name, value) in fetched["headers"].as_object().into_iter().flatten() {
        let _ = writeln!(errors, "{name}: {}", value.as_str().unwrap_or_default());
    }
    let _ = writeln!(errors, "otonix-payment: {}", fetched["payment"]);
}

fn body_of(fetched: &Value) -> Option<Vec<u8>> {
    match (fetched["body"].as_str(), fetched["bodyBase64"].as_str()) {
        (Some(text), _) => Some(text.as_bytes().to_vec()),
        (None, Some(text)) => STANDARD.decode(text).ok(),
        (None, None) => None,
    }
}

async fn through_daemon(place: &Place, socket: &Path, request: &PayRequest) -> anyhow::Result<Outcome> {
    let call = Call {
        method: Method::POST,
        path: "/v1/pay",
        body: serde_json::to_vec(request)?,
        idempotency_key: None,
    };
    let answer = client::call_as_owner(socket, call, place, TIMEOUT).await?;
    Ok(answer.map_err(|problem| (problem.code.into_owned(), problem.detail)))
}

async fn alone(place: &Place, request: PayRequest, file: Option<&Path>) -> anyhow::Result<Outcome> {
    app::harden();
    let state_dir = place.state_dir();
    let config = load_config(place, &state_dir)?;
    let known = known_tier(&config, &state_dir);
    let tier = asked_tier(&config, &state_dir).await.unwrap_or(known);
    let fetch =
        fetch_of(request, None, Asker::Owner, tier).map_err(|refused| anyhow!("{}", refused.detail()))?;
    let client = payments::alone(&config, &state_dir, file)?;
    client.resume();
    match client.fetch(fetch).await {
        Ok(fetched) => Ok(Ok(fetched_json(&fetched))),
        Err(error) => {
            let refused = refusal(&error);
            Ok(Err((refused.code().as_str().to_owned(), refused.detail().to_owned())))
        }
    }
}

/// The tier as the server knows it, when it answers soon.
async fn asked_tier(config: &Config, state_dir: &Path) -> Option<SurvivalTier> {
    let id = config.agent.id?;
    let key = api_key(None, None, state_dir).ok()?;
    let server = config::check_server(&config.link.server).ok()?;
    let credential = Credential::ApiKey(key);
    let client = Client::new(ClientConfig { server, credential, retry: RetryPolicy::NEVER }).ok()?;
    let agent = tokio::time::timeout(TIER_PATIENCE, client.agent(id)).await.ok()?.ok()?;
    Some(if agent.killed_at.is_some() { SurvivalTier::Terminated } else { agent.survival_tier })
}

/// The tier as the daemon last knew it; `full` for a wallet without a registered agent.
fn known_tier(config: &Config, state_dir: &Path) -> SurvivalTier {
    if config.agent.id.is_none() {
        return SurvivalTier::Full;
    }
    let text = std::fs::read(state_dir.join("standing.json")).unwrap_or_default();
    let kept: Value = serde_json::from_slice(&text).unwrap_or_default();
    let standing = &kept["standing"];
    if standing["killed"] == true {
        return SurvivalTier::Terminated;
    }
    standing["survivalTier"].as_str().and_then(|tier| tier.parse().ok()).unwrap_or(SurvivalTier::Critical)
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Parser)]
    struct Line {
        #[command(flatten)]
        pay: Pay,
    }

    #[test]
    fn a_header_given_twice_keeps_both_values() {
        let line = Line::parse_from([
            "pay",
            "https://example.com/",
            "--max-amount",
            "1",
            "--header",
            "Accept: text/html",
            "--header",
            "X-One:1",
            "--header",
            "accept: text/plain",
        ]);
        let headers = line.pay.request().expect("a request").headers;
        let told: Vec<_> = headers.iter().map(|(name, value)| (name.as_str(), value.as_str())).collect();
        assert_eq!(told, [("accept", "text/html, text/plain"), ("x-one", "1")]);
    }
}
