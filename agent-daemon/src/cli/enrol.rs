//! How `init` becomes somebody: by an owner's key, by a one-time enrolment token, or as who it is already.

use std::path::Path;

use anyhow::{Context as _, bail, ensure};
use otonix_sdk::api::agents::{Agent, RegisterAgent};
use otonix_sdk::api::enrolment::{Enrol, Laws};
use otonix_sdk::client::{Client, ClientConfig, Credential, RetryPolicy, ServerUrl};
use otonix_sdk::clock::{Clock as _, SystemClock};
use otonix_sdk::error::ErrorCode;
use otonix_sdk::ids::AgentId;
use otonix_sdk::secret::Secret;
use otonix_sdk::wallet::Wallet;

use crate::files;

/// The operator's laws, in the state directory.
pub(crate) const LAWS: &str = "laws.txt";
/// The prompt that the agent was born with, in the state directory.
pub(crate) const GENESIS: &str = "genesis.txt";

fn client(server: &ServerUrl, credential: Credential) -> anyhow::Result<Client> {
    Ok(Client::new(ClientConfig { server: server.clone(), credential, retry: RetryPolicy::default() })?)
}

/// Registers with an owner's key. An agent that enrolled has a key of its own, which registers nobody: it is asked
/// for by its id.
pub(super) async fn register(
    server: &ServerUrl,
    key: &Secret,
    known: Option<AgentId>,
    wallet: &Wallet,
    request: RegisterAgent,
) -> anyhow::Result<Agent> {
    let client = client(server, Credential::ApiKey(key.clone()))?;
    let now = SystemClock.now().timestamp();
    let request = RegisterAgent {
        wallet_proof: Some(wallet.wallet_proof(&request.name, server.as_str(), now)),
        wallet_address: Some(wallet.address().to_string()),
        ..request
    };
    let failed = || format!("failed to register at {server}");
    match (client.register_agent(&request).await, known) {
        (Ok(registered), _) => Ok(registered.agent),
        (Err(error), Some(id)) if error.code() == Some(ErrorCode::Forbidden) => {
            client.agent(id).await.with_context(failed)
        }
        (Err(error), _) => Err(error).with_context(failed),
    }
}

/// Enrols by a token, unless this machine has enrolled before and its key is still good.
pub(super) async fn enrol(
    server: &ServerUrl,
    token: &Secret,
    known: Option<(AgentId, Secret)>,
    wallet: &Wallet,
    request: RegisterAgent,
    name: Option<String>,
) -> anyhow::Result<(Agent, Secret)> {
    if let Some((id, key)) = known {
        match client(server, Credential::ApiKey(key.clone()))?.agent(id).await {
            Ok(agent) => return Ok((agent, key)),
            // A key that was revoked: the machine enrols anew.
            Err(error) if error.status() == Some(401) => {}
            Err(error) => return Err(error).with_context(|| format!("failed to ask {server}")),
        }
    }
    let client = client(server, Credential::Anonymous)?;
    let signed_for = name.as_deref().unwrap_or_else(|| token.expose());
    let enrol = Enrol {
        token: token.expose().to_owned(),
        wallet_address: wallet.address().to_string(),
        wallet_proof: wallet.wallet_proof(signed_for, server.as_str(), SystemClock.now().timestamp()),
        name,
        model: request.model,
        vps_ip: request.vps_ip,
        heartbeat_interval: request.heartbeat_interval,
    };
    // When the first answer is lost its repeat has no key any more; asking anew gives another one.
    for _ in 0..2 {
        let enrolled = client.enrol(&enrol).await.with_context(|| format!("failed to enrol at {server}"))?;
        if let Some(key) = enrolled.key {
            return Ok((enrolled.agent, Secret::new(key)));
        }
    }
    bail!("{server} shows no key for this token; run it again")
}

/// Keeps what the agent was born with, for its process.
pub(super) async fn keep_birth(
    server: &ServerUrl,
    key: &Secret,
    agent: &Agent,
    state_dir: &Path,
) -> anyhow::Result<()> {
    if let Some(prompt) = agent.genesis_prompt.as_ref().and_then(Option::as_ref) {
        files::write_readable(&state_dir.join(GENESIS), prompt.as_bytes())
            .context("failed to keep the genesis prompt")?;
    }
    let Some(sha256) = &agent.laws_sha256 else { return Ok(()) };
    let client = client(server, Credential::ApiKey(key.clone()))?;
    let laws = client.laws(sha256).await.with_context(|| format!("failed to ask {server} for the laws"))?;
    ensure!(
        Laws::new(laws.text.clone()).sha256 == *sha256,
        "{server} sent other laws than this agent's ({sha256})"
    );
    files::write_readable(&state_dir.join(LAWS), laws.text.as_bytes()).context("failed to keep the laws")
}
