//! Machines that enrol by a one-time token: each gets a key that is good for its own agent and nothing else.
//!
//! A machine is known by its wallet. One that did not hear the answer asks again by the same token and gets a new key;
//! the one before it is revoked.

use std::net::IpAddr;

use chrono::TimeDelta;
use otonix_sdk::api::agents::Agent;
use otonix_sdk::api::enrolment::{Enrol, Enrolled, EnrolmentToken, Laws, NewEnrolmentToken};
use otonix_sdk::api::keys::KeyKind;
use otonix_sdk::error::ErrorCode;
use otonix_sdk::ids::{AgentId, EnrolmentTokenId, KeyId, OwnerId};
use otonix_sdk::limits;
use otonix_sdk::money::MicroUsd;
use otonix_sdk::secret::Secret;
use uuid::Uuid;

use crate::app::App;
use crate::auth::{Caller, KEY_PREFIX, Principal, Scope, hash_secret, random_hex};
use crate::error::Error;
use crate::service::agents::{self as agents_service, NewRoot};
use crate::service::{linked_agent, wallets};
use crate::store::actions::{self, ActionRow};
use crate::store::agents::Enrolment;
use crate::store::enrolment::{self, Token};
use crate::store::keys::NewKeyRow;
use crate::store::list::{self, Page, Param, Query};
use crate::store::writer::{IdemFor, Notice, Target, Tx, Written};
use crate::store::{StoreError, agents, births, keys, laws};

/// What every enrolment token starts with.
pub const TOKEN_PREFIX: &str = "otonix_enrol_";
/// How long a new server may take to enrol, seconds: bare metal is installed within the hour.
const SERVER_TTL_SECS: u32 = 86_400;
/// How long a token may be used unless it says otherwise, seconds.
const DEFAULT_TTL_SECS: u32 = 3600;

/// A new secret token.
pub(crate) fn new_token() -> String {
    format!("{TOKEN_PREFIX}{}", random_hex::<24>())
}

/// Who may make enrolment tokens: the operator, and owners.
///
/// # Errors
/// 401 for nobody, 403 for an agent's own key.
pub fn may_invite(caller: &Caller) -> Result<(), Error> {
    match caller.principal {
        Principal::Operator => Ok(()),
        Principal::Key(_) | Principal::Anonymous => caller.owner_key().map(|_| ()),
    }
}

/// Makes a token.
///
/// # Errors
/// 401, 403 (also for a grant that is not the operator's), 400, 409 `agent_killed`.
pub async fn create_token(
    app: &App,
    caller: &Caller,
    body: NewEnrolmentToken,
    idem: Option<IdemFor<EnrolmentToken>>,
) -> Result<Written<EnrolmentToken>, Error> {
    may_invite(caller)?;
    if body.grant.is_some() {
        caller.operator()?;
    }
    let ttl = body.ttl_seconds.unwrap_or(DEFAULT_TTL_SECS);
    if !limits::ENROLMENT_TTL.contains(&ttl) {
        return Err(Error::invalid("ttlSeconds", "must be 60 to 2592000"));
    }
    let uses = body.uses.unwrap_or(1);
    if !limits::ENROLMENT_USES.contains(&uses) {
        return Err(Error::invalid("uses", "must be 1 to 1000"));
    }
    if body.agent_id.is_some() && uses != 1 {
        return Err(Error::invalid("uses", "must be 1 for an agent that is there already"));
    }
    for (field, text, bound) in [
        ("tag", &body.tag, limits::TAG),
        ("name", &body.name, limits::NAME),
        ("model", &body.model, limits::MODEL),
    ] {
        if let Some(text) = text {
            limits::check_name(field, text, bound)?;
        }
    }
    if let Some(prompt) = &body.genesis_prompt {
        limits::check_text("genesisPrompt", prompt, limits::GENESIS_PROMPT)?;
    }
    let agent = linked_agent(app, caller, body.agent_id).await?;
    let joins = match (caller.principal, &agent) {
        (Principal::Key(key), _) => Some(key.owner.uuid()),
        (_, Some(state)) => Some(state.owner.uuid()),
        _ => body.owner_id.map(OwnerId::uuid),
    };
    let made_by = match caller.principal {
        Principal::Key(key) => Some(key.id.uuid()),
        Principal::Operator | Principal::Anonymous => None,
    };
    let secret = new_token();
    let now = app.clock.now();
    let expires_at = now + TimeDelta::seconds(i64::from(ttl));
    let owner = joins.unwrap_or_else(otonix_sdk::clock::new_id);
    let row = Token {
        made_by,
        agent_id: agent.map(|state| state.id.uuid()),
        name: body.name,
        model: body.model,
        genesis_prompt: body.genesis_prompt,
        tag: body.tag,
        grant_amount: body.grant.map_or(0, |grant| grant.get().micros()),
        moves_wallet: body.replace_wallet.unwrap_or(false),
        ..Token::new(hash_secret(&secret), owner, uses, now, expires_at)
    };
    let new_owner = joins.is_none();
    app.writer
        .run(Target::Alone, idem, move |tx| {
            Box::pin(async move {
                if new_owner {
                    keys::insert_owner(tx, row.owner_id).await?;
                } else if !keys::lock_owner(tx, row.owner_id).await? {
                    return Err(Error::invalid("ownerId", "names no owner"));
                }
                if let Some(agent) = row.agent_id {
                    births::wait_until(tx, agent, row.expires_at).await?;
                }
                enrolment::insert(tx, &row).await?;
                Ok(EnrolmentToken { token: Some(secret), ..EnrolmentToken::from(row) })
            })
        })
        .await
}

/// Tokens, newest first, without the secrets.
///
/// # Errors
/// 401, 403 for an agent's own key.
pub async fn tokens(app: &App, caller: &Caller, mut query: Query) -> Result<Page<EnrolmentToken>, Error> {
    may_invite(caller)?;
    if let (Principal::Key(_), Scope::Owner(owner)) = (caller.principal, caller.own_rows()) {
        query.filter("owner_id = ", Param::Id(owner));
    }
    Ok(app.db.read(move |conn| Box::pin(async move { list::enrolment_tokens(conn, &query).await })).await?)
}

/// Revokes a token. Machines that have enrolled by it keep their keys.
///
/// # Errors
/// 401, 403 for an agent's own key, 404.
pub async fn revoke_token(app: &App, caller: &Caller, id: EnrolmentTokenId) -> Result<(), Error> {
    may_invite(caller)?;
    let found =
        app.db.read(move |conn| Box::pin(async move { enrolment::by_id(conn, id.uuid()).await })).await?;
    let row = found.ok_or_else(|| Error::not_found("enrolment token", id))?;
    caller.must_own("enrolment token", id, Some(row.owner_id), None)?;
    app.writer
        .apply(Target::Shared, move |tx| {
            Box::pin(async move { Ok(enrolment::revoke(tx, id.uuid()).await.map(|_| ())?) })
        })
        .await
}

/// The laws of a SHA-256.
///
/// # Errors
/// 401 for nobody, 404.
pub async fn laws_of(app: &App, caller: &Caller, sha256: String) -> Result<Laws, Error> {
    if caller.operator().is_err() {
        caller.key()?;
    }
    let wanted = sha256.clone();
    let found = app.db.read(move |conn| Box::pin(async move { laws::laws(conn, &wanted).await })).await?;
    found.ok_or_else(|| Error::not_found("laws", sha256))
}

/// An enrolment that was read and checked.
struct Machine {
    token_hash: String,
    wallet: String,
    name: Option<String>,
    model: Option<String>,
    interval: Option<u32>,
    vps_ip: Option<String>,
    peer: IpAddr,
    grace: TimeDelta,
    laws: Option<String>,
}

/// Enrols a machine.
///
/// # Errors
/// 401 for a token that is not known or over, 400, 409 `enrolment_token_used`, `agent_killed`, `wallet_taken`,
/// `name_taken`, 429.
pub async fn enrol(
    app: &App,
    caller: &Caller,
    body: Enrol,
    idem: Option<IdemFor<Enrolled>>,
) -> Result<Written<Enrolled>, Error> {
    app.rate_limits.enrolment(caller.ip)?;
    let hash = hash_secret(&body.token);
    let wanted = hash.clone();
    let found = app.db.read(move |conn| {
        Box::pin(async move {
            let Some(token) = enrolment::by_hash(conn, &wanted).await? else { return Ok(None) };
            let agent = match token.agent_id {
                Some(id) => agents::agent(conn, id).await?,
                None => None,
            };
            Ok(Some((token, agent)))
        })
    });
    let (token, agent) = found.await?.ok_or_else(unknown_token)?;
    if token.expires_at <= app.clock.now() {
        return Err(expired_token());
    }
    for (field, text, bound) in [("name", &body.name, limits::NAME), ("model", &body.model, limits::MODEL)] {
        if let Some(text) = text {
            limits::check_name(field, text, bound)?;
        }
    }
    if let Some(secs) = body.heartbeat_interval
        && !limits::HEARTBEAT_INTERVAL.contains(&secs)
    {
        return Err(Error::invalid("heartbeatInterval", "must be 5 to 86400 seconds"));
    }
    // The machine need not know how its agent is called; the token names it as well.
    let names = [
        agent.as_ref().map(|agent| &agent.name),
        body.name.as_ref(),
        token.name.as_ref(),
        token.tag.as_ref(),
    ];
    let names = names.into_iter().flatten().map(String::as_str).chain([body.token.as_str()]);
    wallets::check_proof(app, &body.wallet_address, names, &body.wallet_proof)?;
    let machine = Machine {
        token_hash: hash,
        wallet: body.wallet_address,
        name: body.name,
        model: body.model,
        interval: body.heartbeat_interval,
        vps_ip: agents_service::read_ip(body.vps_ip.as_deref())?,
        peer: caller.ip,
        grace: TimeDelta::from_std(app.settings.funding_grace).unwrap_or(TimeDelta::MAX),
        laws: app.settings.laws.as_ref().map(|laws| laws.sha256.clone()),
    };
    app.writer.run(Target::Alone, idem, move |tx| Box::pin(enrol_in(tx, machine))).await
}

fn unknown_token() -> Error {
    Error::Unauthenticated {
        code: ErrorCode::UnknownEnrolmentToken,
        detail: "this enrolment token is not known",
    }
}

fn expired_token() -> Error {
    Error::Unauthenticated {
        code: ErrorCode::EnrolmentTokenExpired,
        detail: "this enrolment token's time is over",
    }
}

async fn enrol_in(tx: &mut Tx, machine: Machine) -> Result<Enrolled, Error> {
    let token = enrolment::by_hash(&mut tx.conn, &machine.token_hash).await?.ok_or_else(unknown_token)?;
    // Read again once it is this transaction's: the first look may be of before another's commit.
    keys::lock_owner(tx, token.owner_id).await?;
    enrolment::lock(tx, token.id).await?;
    let token = enrolment::by_hash(&mut tx.conn, &machine.token_hash).await?.ok_or_else(unknown_token)?;
    if token.expires_at <= tx.at {
        return Err(expired_token());
    }
    let id = match enrolment::enrolled_by(tx, token.id, &machine.wallet).await? {
        Some(known) => known,
        None => {
            if !enrolment::take_use(tx, token.id).await? {
                return Err(Error::conflict(
                    ErrorCode::EnrolmentTokenUsed,
                    "as many machines as may have enrolled by this token",
                ));
            }
            let id = agent_of(tx, &token, &machine).await?;
            enrolment::note(tx, token.id, &machine.wallet, id).await?;
            id
        }
    };
    let (key, key_id) = move_in(tx, &token, &machine, id).await?;
    let agent = agents::agent(&mut tx.conn, id).await?.ok_or_else(|| Error::not_found("agent", id))?;
    Ok(Enrolled { agent, key: Some(key), key_id: KeyId::from(key_id), secret_shown: None })
}

/// The agent that the token means: the one it names, the one that has this wallet, or a new one.
async fn agent_of(tx: &mut Tx, token: &Token, machine: &Machine) -> Result<Uuid, Error> {
    if let Some(id) = token.agent_id {
        let agent = agents::agent(&mut tx.conn, id).await?.ok_or_else(|| Error::not_found("agent", id))?;
        let same = |known: &str| known.eq_ignore_ascii_case(&machine.wallet);
        let other = agent.wallet_proven && !agent.wallet_address.as_deref().is_some_and(same);
        if other && !token.moves_wallet {
            return Err(Error::conflict(
                ErrorCode::WalletTaken,
                "this agent has another wallet; restore that one on the machine, or ask for a token with replaceWallet",
            ));
        }
        return Ok(id);
    }
    if let Some((id, owner)) = agents::by_proven_wallet(&mut tx.conn, &machine.wallet).await? {
        return if owner == token.owner_id { Ok(id) } else { Err(wallet_taken()) };
    }
    let id = otonix_sdk::clock::new_id();
    let root = NewRoot {
        id,
        owner: token.owner_id,
        name: name_of(token, machine, id),
        model: machine.model.clone().or_else(|| token.model.clone()),
        interval: machine.interval,
        genesis_prompt: token.genesis_prompt.clone(),
        tag: token.tag.clone(),
        grace: machine.grace,
        laws: machine.laws.clone(),
    };
    if !agents::namesakes(tx, root.owner, &root.name).await?.is_empty() {
        return Err(Error::conflict(
            ErrorCode::NameTaken,
            format!("this owner has an agent {} already", root.name),
        ));
    }
    agents_service::insert_root(tx, root).await?;
    if token.grant_amount > 0 {
        let amount = MicroUsd::from_micros(token.grant_amount);
        agents_service::give(tx, AgentId::from(id), amount, "granted by its enrolment token".to_owned())
            .await?;
    }
    Ok(id)
}

/// What the agent is called: as the token says (with a number of its own when it makes several), as the machine says,
/// or by the tag.
fn name_of(token: &Token, machine: &Machine, id: Uuid) -> String {
    let short = || id.simple().to_string()[24..].to_owned();
    let numbered = |name: &str| {
        let most = *limits::NAME.end() - 9;
        format!("{}-{}", name.chars().take(most).collect::<String>(), short())
    };
    match (&token.name, &machine.name) {
        (Some(name), _) if token.uses == 1 => name.clone(),
        (Some(name), _) => numbered(name),
        (None, Some(name)) => name.clone(),
        (None, None) => numbered(token.tag.as_deref().unwrap_or("agent")),
    }
}

fn wallet_taken() -> Error {
    Error::conflict(ErrorCode::WalletTaken, "this wallet address belongs to another agent")
}

/// Gives the agent this machine, and the machine its key. Keys of machines before it are revoked.
async fn move_in(tx: &mut Tx, token: &Token, machine: &Machine, id: Uuid) -> Result<(String, Uuid), Error> {
    let state = agents::lock_state(tx, id).await?.ok_or_else(|| Error::not_found("agent", id))?;
    if state.killed {
        return Err(Error::agent_killed(id));
    }
    let secret = format!("{KEY_PREFIX}{}", random_hex::<24>());
    let digits = &secret[KEY_PREFIX.len()..];
    let row = NewKeyRow {
        id: otonix_sdk::clock::new_id(),
        masked: format!("{KEY_PREFIX}{}****{}", &digits[..4], &digits[44..]),
        hash: hash_secret(&secret),
        prefix: format!("{KEY_PREFIX}{}", &digits[..4]),
        name: format!("enrolled {id}"),
        owner_wallet: None,
        owner: state.owner.uuid(),
        kind: KeyKind::Agent,
        agent: Some(id),
        made_by: token.made_by,
    };
    let before = keys::of_agent(tx, id).await?;
    let before_wallet = agents::agent(&mut tx.conn, id).await?.and_then(|agent| agent.wallet_address);
    keys::insert(tx, &row).await?;
    keys::move_agent(tx, state.api_key.map(KeyId::uuid), Some(row.id)).await?;
    let enrolment = Enrolment {
        wallet_address: machine.wallet.clone(),
        api_key: row.id,
        vps_ip: machine.vps_ip.clone().unwrap_or_else(|| machine.peer.to_string()),
        vps_ip_sent: machine.vps_ip.is_some(),
        model: machine.model.clone(),
        heartbeat_interval: machine.interval,
    };
    agents::enrol(tx, id, &enrolment).await.map_err(|error| match error {
        StoreError::Taken(_) => wallet_taken(),
        other => Error::Store(other),
    })?;
    for old in before {
        keys::revoke(tx, old).await?;
        tx.notices.push(Notice::Key(old));
    }
    births::enrolled(tx, id).await?;
    let details = Some(match before_wallet.filter(|known| !known.eq_ignore_ascii_case(&machine.wallet)) {
        Some(known) => format!("wallet {}, before {known}", machine.wallet),
        None => format!("wallet {}", machine.wallet),
    });
    actions::insert(tx, &[ActionRow::by_server(&state, "system", "a machine has enrolled", details, tx.at)])
        .await?;
    tx.notices.push(Notice::Agent(id));
    Ok((secret, row.id))
}

/// A token for the new server of an agent: good until the vendor has surely installed it, and for a wallet of the new
/// machine's own.
///
/// # Errors
/// 404, 409 `agent_killed`, 503 without database.
pub(crate) async fn invite_server(app: &App, agent: AgentId) -> Result<Secret, Error> {
    let invited = app.writer.apply(Target::Alone, move |tx| {
        Box::pin(async move {
            let found = agents::agent(&mut tx.conn, agent.uuid()).await?;
            let known = found.ok_or_else(|| Error::not_found("agent", agent))?;
            if known.killed_at.is_some() {
                return Err(Error::agent_killed(agent.uuid()));
            }
            let machine =
                Invitation { agent: &known, made_by: None, ttl_secs: SERVER_TTL_SECS, moves_wallet: true };
            Ok(invite(tx, machine).await?.0)
        })
    });
    Ok(Secret::new(invited.await?))
}

/// For whose machine a token is made.
pub(crate) struct Invitation<'a> {
    pub agent: &'a Agent,
    pub made_by: Option<Uuid>,
    pub ttl_secs: u32,
    /// Whether the machine may bring another wallet than the agent has.
    pub moves_wallet: bool,
}

/// A token for the machine of one agent; gives back its secret.
///
/// # Errors
/// 503 without database.
pub(crate) async fn invite(
    tx: &mut Tx,
    invitation: Invitation<'_>,
) -> Result<(String, chrono::DateTime<chrono::Utc>), Error> {
    let secret = new_token();
    let expires_at = tx.at + TimeDelta::seconds(i64::from(invitation.ttl_secs));
    let (agent, owner) = (invitation.agent.id.uuid(), invitation.agent.owner_id.uuid());
    let row = Token {
        made_by: invitation.made_by,
        agent_id: Some(agent),
        moves_wallet: invitation.moves_wallet,
        ..Token::new(hash_secret(&secret), owner, 1, tx.at, expires_at)
    };
    births::wait_until(tx, agent, expires_at).await?;
    enrolment::insert(tx, &row).await?;
    Ok((secret, expires_at))
}
