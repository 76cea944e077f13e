//! Agents: registered, heard, granted credits, killed.

use std::net::IpAddr;

use chrono::TimeDelta;
use otonix_sdk::api::agents::{
    Agent, Grant, Granted, HeartbeatAck, Kill, Killed, Monitoring, RegisterAgent, Registered,
};
use otonix_sdk::api::records::Transaction;
use otonix_sdk::error::ErrorCode;
use otonix_sdk::ids::{AgentId, TransactionId};
use otonix_sdk::limits;
use otonix_sdk::money::MicroUsd;
use otonix_sdk::standing::{AgentStatus, SurvivalTier, standing};
use otonix_sdk::wallet::{Wallet, parse_address};
use serde_json::{Map, Value};
use uuid::Uuid;

use crate::app::App;
use crate::auth::{Caller, Scope};
use crate::error::Error;
use crate::service::{agent_state, wallets};
use crate::store::actions::{self, ActionRow};
use crate::store::agents::{AgentState, Namesake, NewAgent, Refresh};
use crate::store::list::{self, Page, Param, Query};
use crate::store::transactions::Reporter;
use crate::store::writer::{IdemFor, Target, Tx, Written};
use crate::store::{StoreError, agents, keys, ledger, transactions};

/// Agents that one kill with `subtree` ends at most; more need another call.
const MAX_KILLED: usize = 10_000;

/// A registration that was read and checked.
struct Registration {
    owner: Uuid,
    key: Uuid,
    name: String,
    model: Option<String>,
    interval: Option<u32>,
    genesis_prompt: Option<String>,
    vps_ip: Option<String>,
    peer: String,
    wallet: Option<String>,
    proven: bool,
    grace: TimeDelta,
    laws: Option<String>,
}

/// Registers an agent, or finds the one that this owner has under this name.
///
/// # Errors
/// 401 without a key, 400, 409 `agent_killed` or `wallet_taken`.
pub async fn register(
    app: &App,
    caller: &Caller,
    body: RegisterAgent,
    idem: Option<IdemFor<Registered>>,
) -> Result<Written<Registered>, Error> {
    let key = caller.owner_key()?;
    limits::check_name("name", &body.name, limits::NAME)?;
    if let Some(model) = &body.model {
        limits::check_name("model", model, limits::MODEL)?;
    }
    if let Some(prompt) = &body.genesis_prompt {
        limits::check_text("genesisPrompt", prompt, limits::GENESIS_PROMPT)?;
    }
    if let Some(secs) = body.heartbeat_interval
        && !limits::HEARTBEAT_INTERVAL.contains(&secs)
    {
        return Err(Error::invalid("heartbeatInterval", "must be 5 to 86400 seconds"));
    }
    let proven = prove_wallet(app, &body)?;
    let registration = Registration {
        owner: key.owner.uuid(),
        key: key.id.uuid(),
        vps_ip: read_ip(body.vps_ip.as_deref())?,
        peer: caller.ip.to_string(),
        name: body.name,
        model: body.model,
        interval: body.heartbeat_interval,
        genesis_prompt: body.genesis_prompt,
        wallet: body.wallet_address,
        proven,
        grace: TimeDelta::from_std(app.settings.funding_grace).unwrap_or(TimeDelta::MAX),
        laws: app.settings.laws.as_ref().map(|laws| laws.sha256.clone()),
    };
    app.writer.run(Target::Alone, idem, move |tx| Box::pin(register_in(tx, registration))).await
}

/// Whether the address was shown to be the caller's.
fn prove_wallet(app: &App, body: &RegisterAgent) -> Result<bool, Error> {
    let Some(address) = &body.wallet_address else {
        return match body.wallet_proof {
            Some(_) => Err(Error::invalid("walletAddress", "is needed beside walletProof")),
            None => Ok(false),
        };
    };
    parse_address(address).map_err(|why| Error::invalid("walletAddress", why.to_string()))?;
    let Some(proof) = &body.wallet_proof else { return Ok(false) };
    wallets::check_proof(app, address, [body.name.as_str()].into_iter(), proof)?;
    Ok(true)
}

/// An address of a machine; `0.0.0.0` says nothing.
///
/// # Errors
/// 400 naming the field.
pub(crate) fn read_ip(text: Option<&str>) -> Result<Option<String>, Error> {
    let Some(text) = text.map(str::trim).filter(|text| !text.is_empty()) else { return Ok(None) };
    let ip: IpAddr = text.parse().map_err(|_| Error::invalid("vpsIp", "must be an IP address"))?;
    Ok((!ip.is_unspecified()).then(|| ip.to_string()))
}

async fn register_in(tx: &mut Tx, new: Registration) -> Result<Registered, Error> {
    keys::lock_owner(tx, new.owner).await?;
    let namesakes = agents::namesakes(tx, new.owner, &new.name).await?;
    let (id, secret) = match same_agent(&namesakes, new.vps_ip.as_deref()) {
        Some(known) => (refresh(tx, &new, known).await?, None),
        None => insert(tx, &new).await?,
    };
    let agent = agents::agent(&mut tx.conn, id).await?.ok_or_else(|| Error::not_found("agent", id))?;
    tx.notices.push(crate::store::writer::Notice::Agent(id));
    Ok(registered(agent, secret))
}

/// The owner's agent of that name that this registration means. Two addresses that both calls sent tell agents apart.
fn same_agent<'a>(namesakes: &'a [Namesake], vps_ip: Option<&str>) -> Option<&'a Namesake> {
    let Some(vps_ip) = vps_ip else { return namesakes.first() };
    let same = |known: &&Namesake| known.vps_ip_sent && known.vps_ip.as_deref() == Some(vps_ip);
    namesakes.iter().find(same).or_else(|| namesakes.iter().find(|known| !known.vps_ip_sent))
}

fn wallet_taken(error: StoreError) -> Error {
    match error {
        StoreError::Taken(_) => {
            Error::conflict(ErrorCode::WalletTaken, "this wallet address belongs to another agent")
        }
        other => Error::Store(other),
    }
}

async fn refresh(tx: &mut Tx, new: &Registration, known: &Namesake) -> Result<Uuid, Error> {
    let state = agents::lock_state(tx, known.id).await?.ok_or_else(|| Error::not_found("agent", known.id))?;
    if state.killed {
        return Err(Error::agent_killed(known.id));
    }
    let same_wallet = |a: &str, b: &str| a.eq_ignore_ascii_case(b);
    let own = match (&known.wallet_address, &new.wallet) {
        (Some(known), Some(sent)) => same_wallet(known, sent),
        _ => false,
    };
    let change = Refresh {
        model: new.model.clone(),
        heartbeat_interval: new.interval,
        vps_ip: new.vps_ip.clone(),
        api_key: Some(new.key),
        prove_wallet: own && new.proven,
        laws_sha256: new.laws.clone(),
    };
    agents::refresh(tx, known.id, &change).await.map_err(wallet_taken)?;
    if known.api_key_id != Some(new.key) {
        keys::move_agent(tx, known.api_key_id, Some(new.key)).await?;
    }
    Ok(known.id)
}

async fn insert(tx: &mut Tx, new: &Registration) -> Result<(Uuid, Option<String>), Error> {
    let (wallet_address, proven, secret) = match &new.wallet {
        Some(address) => (address.clone(), new.proven, None),
        None => {
            let wallet = Wallet::generate();
            (wallet.address().to_string(), true, Some(wallet.private_key_hex().as_str().to_owned()))
        }
    };
    let root = NewRoot {
        id: otonix_sdk::clock::new_id(),
        owner: new.owner,
        name: new.name.clone(),
        model: new.model.clone(),
        interval: new.interval,
        genesis_prompt: new.genesis_prompt.clone(),
        tag: None,
        grace: new.grace,
        laws: new.laws.clone(),
    };
    let agent = NewAgent {
        wallet_address: Some(wallet_address),
        wallet_proven: proven,
        api_key: Some(new.key),
        vps_ip: Some(new.vps_ip.clone().unwrap_or_else(|| new.peer.clone())),
        vps_ip_sent: new.vps_ip.is_some(),
        ..root.unfunded(tx)
    };
    agents::insert(tx, &agent).await.map_err(wallet_taken)?;
    keys::move_agent(tx, None, Some(new.key)).await?;
    Ok((agent.id, secret))
}

/// An agent without a parent, before it has a wallet and a machine.
pub(crate) struct NewRoot {
    pub id: Uuid,
    pub owner: Uuid,
    pub name: String,
    pub model: Option<String>,
    pub interval: Option<u32>,
    pub genesis_prompt: Option<String>,
    pub tag: Option<String>,
    pub grace: TimeDelta,
    pub laws: Option<String>,
}

impl NewRoot {
    fn unfunded(self, tx: &Tx) -> NewAgent {
        let grace_until = tx.at + self.grace;
        let tier = standing(MicroUsd::ZERO, false, Some(grace_until), tx.at, &tx.thresholds);
        let status = match tier {
            SurvivalTier::Terminated => AgentStatus::Terminated,
            SurvivalTier::Critical | SurvivalTier::Conservation | SurvivalTier::Full => AgentStatus::Active,
        };
        NewAgent {
            id: self.id,
            name: self.name,
            tier,
            status,
            wallet_address: None,
            wallet_proven: false,
            genesis_prompt: self.genesis_prompt,
            model: self.model.unwrap_or_else(|| limits::DEFAULT_MODEL.to_owned()),
            heartbeat_interval: self.interval.unwrap_or(limits::DEFAULT_HEARTBEAT_INTERVAL),
            api_key: None,
            owner: self.owner,
            vps_ip: None,
            vps_ip_sent: false,
            parent: None,
            grace_until: Some(grace_until),
            depth: 0,
            laws_sha256: self.laws,
            tag: self.tag,
        }
    }
}

/// Inserts an agent whose wallet and machine come next.
///
/// # Errors
/// 503 without database.
pub(crate) async fn insert_root(tx: &mut Tx, root: NewRoot) -> Result<(), Error> {
    let agent = root.unfunded(tx);
    Ok(agents::insert(tx, &agent).await?)
}

fn registered(agent: Agent, secret: Option<String>) -> Registered {
    let id = agent.id;
    Registered {
        success: true,
        monitoring: Monitoring {
            heartbeat_endpoint: format!("POST /api/agents/{id}/heartbeat"),
            actions_endpoint: format!("POST /api/agents/{id}/actions"),
            status_endpoint: format!("GET /api/agents/{id}"),
        },
        message: format!("Agent {} is registered", agent.name),
        agent,
        wallet_private_key: secret.map(Some),
        secret_shown: None,
    }
}

/// Agents, newest first.
///
/// # Errors
/// 503 without database.
pub async fn list(app: &App, caller: &Caller, mut query: Query) -> Result<Page<Agent>, Error> {
    let scope = caller.public_scope();
    match scope {
        Scope::All | Scope::Sanitised => {}
        Scope::Owner(owner) => query.filter("owner_id = ", Param::Id(owner)),
        Scope::Agent(agent) => query.filter("id = ", Param::Id(agent)),
    }
    let mut page = app.db.read(move |conn| Box::pin(async move { list::agents(conn, &query).await })).await?;
    for agent in &mut page.rows {
        app.shared.fleet.overlay(agent);
    }
    Ok(page)
}

/// One agent.
///
/// # Errors
/// 401 for nobody in guarded mode, 404.
pub async fn agent(app: &App, caller: &Caller, id: AgentId) -> Result<Agent, Error> {
    if !caller.is_unrestricted() {
        caller.key()?;
    }
    let found =
        app.db.read(move |conn| Box::pin(async move { agents::agent(conn, id.uuid()).await })).await?;
    let mut agent = found.ok_or_else(|| Error::not_found("agent", id))?;
    caller.may_see("agent", id, Some(agent.owner_id.uuid()), Some(id.uuid()))?;
    app.shared.fleet.overlay(&mut agent);
    Ok(agent)
}

/// Notes a heartbeat in memory.
///
/// # Errors
/// 401, 404, 409 `agent_killed`.
pub async fn heartbeat(app: &App, caller: &Caller, id: AgentId) -> Result<HeartbeatAck, Error> {
    caller.key()?;
    let slot = app.shared.fleet.slot(&app.db, id.uuid()).await?;
    let slot = slot.ok_or_else(|| Error::not_found("agent", id))?;
    let known = slot.state();
    if !caller.owns(Some(known.owner.uuid()), Some(id.uuid())) {
        return Err(Error::not_found("agent", id));
    }
    if known.killed {
        return Err(Error::agent_killed(id.uuid()));
    }
    let now = app.clock.now();
    let state = app.shared.fleet.hear(&slot, now);
    app.shared.metrics.heartbeats.inc();
    Ok(HeartbeatAck {
        received: true,
        agent_id: id,
        next_expected: now + TimeDelta::seconds(i64::from(state.interval)),
        survival_tier: state.tier,
        credits: state.credits,
        funded: state.funded,
        grace_until: state.grace_until.filter(|_| !state.funded),
        heartbeat_interval: state.interval,
    })
}

/// A heartbeat whose answer is kept for its idempotency key.
///
/// # Errors
/// As [`heartbeat`].
pub async fn heartbeat_once(
    app: &App,
    caller: &Caller,
    id: AgentId,
    idem: IdemFor<HeartbeatAck>,
) -> Result<Written<HeartbeatAck>, Error> {
    let ack = heartbeat(app, caller, id).await?;
    let kept = ack.clone();
    let stored = app
        .writer
        .run(Target::Agent(id.uuid()), Some(idem), move |_| Box::pin(async move { Ok(kept) }))
        .await;
    match stored {
        // It was heard, and hearing it again does no harm: nobody is refused for an answer that cannot be kept.
        Err(Error::Store(StoreError::Unavailable(_) | StoreError::QueueFull)) => Ok(Written::Fresh(ack)),
        stored => stored,
    }
}

/// Gives credits. They are funded from then on.
///
/// # Errors
/// 401, 403, 404, 409 `agent_killed`.
pub async fn grant(
    app: &App,
    caller: &Caller,
    id: AgentId,
    body: Grant,
    idem: Option<IdemFor<Granted>>,
) -> Result<Written<Granted>, Error> {
    caller.operator()?;
    limits::check_text("reason", &body.reason, 1..=512)?;
    app.writer.run(Target::Agent(id.uuid()), idem, move |tx| Box::pin(grant_in(tx, id, body))).await
}

async fn grant_in(tx: &mut Tx, id: AgentId, body: Grant) -> Result<Granted, Error> {
    let state = give(tx, id, body.amount.get(), body.reason).await?;
    Ok(Granted {
        agent_id: id,
        credited: body.amount.get(),
        credits: state.credits,
        survival_tier: state.tier,
    })
}

/// Gives an agent credits of the operator's, with their row of the record of money.
///
/// # Errors
/// 404, 409 `agent_killed`.
pub(crate) async fn give(
    tx: &mut Tx,
    id: AgentId,
    amount: MicroUsd,
    reason: String,
) -> Result<AgentState, Error> {
    let mut state = agents::lock_state(tx, id.uuid()).await?.ok_or_else(|| Error::not_found("agent", id))?;
    if state.killed {
        return Err(Error::agent_killed(id.uuid()));
    }
    let row_id = otonix_sdk::clock::new_id();
    state.funded = true;
    ledger::move_credits(tx, &mut state, "grant", ledger::GRANTS, amount, Some(row_id.to_string())).await?;
    let metadata = Map::from_iter([("protocol".to_owned(), Value::from("grant"))]);
    let row = Transaction {
        id: TransactionId::from(row_id),
        kind: "credit".to_owned(),
        amount,
        currency: "USDC".to_owned(),
        description: Some(reason),
        status: "completed".to_owned(),
        from_address: None,
        to_address: None,
        tx_hash: None,
        metadata: Some(metadata.into()),
        agent_id: Some(id),
        created_at: tx.at,
    };
    transactions::insert(tx, &row, Reporter { owner: state.owner.uuid(), by_server: true }).await?;
    Ok(state)
}

/// Ends an agent for good, with `subtree` also its descendants.
///
/// # Errors
/// 401, 403 for an agent's key, 404.
pub async fn kill(
    app: &App,
    caller: &Caller,
    id: AgentId,
    body: Kill,
    idem: Option<IdemFor<Killed>>,
) -> Result<Written<Killed>, Error> {
    if caller.operator().is_err() {
        caller.owner_key()?;
    }
    limits::check_text("reason", &body.reason, 1..=512)?;
    let state = agent_state(app, id).await?;
    caller.must_own("agent", id, Some(state.owner.uuid()), None)?;
    let subtree = body.subtree.unwrap_or(false);
    app.writer
        .run(Target::Alone, idem, move |tx| Box::pin(kill_in(tx, id.uuid(), subtree, body.reason)))
        .await
}

async fn kill_in(tx: &mut Tx, id: Uuid, subtree: bool, reason: String) -> Result<Killed, Error> {
    let mut ids = vec![id];
    let mut states = agents::lock_states(tx, &ids).await?;
    let mut generation = ids.clone();
    // A parent that is locked bears no child: once a generation is locked, its children are all there are.
    while subtree && !generation.is_empty() && ids.len() < MAX_KILLED {
        generation = agents::children(tx, &generation).await?;
        generation.retain(|child| !ids.contains(child));
        states.extend(agents::lock_states(tx, &generation).await?);
        ids.extend(&generation);
    }
    let mut changes = Vec::new();
    let mut lines = Vec::new();
    for mut state in states.into_iter().filter(|state| !state.killed) {
        agents::mark_killed(tx, state.id.uuid(), &reason).await?;
        state.killed = true;
        state.settle(tx.at, &tx.thresholds);
        lines.push(ActionRow::by_server(&state, "system", "agent was killed", Some(reason.clone()), tx.at));
        changes.push(state);
    }
    actions::insert(tx, &lines).await?;
    agents::write_states(tx, &mut changes).await?;
    Ok(Killed { killed: changes.len() as u64 })
}
