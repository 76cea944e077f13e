//! Replication: a child is one transaction of its parent's grant, the new agent with the parent's laws, and a one-time
//! token for its machine. What a lineage holds is the same before and after, and a child that never comes to life gives
//! back what it was given.

use otonix_sdk::api::enrolment::{ChildBorn, NewChild};
use otonix_sdk::api::purchases::ProvisionServer;
use otonix_sdk::api::records::Transaction;
use otonix_sdk::body::{self, Unreadable};
use otonix_sdk::error::ErrorCode;
use otonix_sdk::ids::{AgentId, TransactionId};
use otonix_sdk::limits;
use otonix_sdk::money::MicroUsd;
use otonix_sdk::standing::{AgentStatus, SurvivalTier, standing};
use serde_json::{Map, Value};
use uuid::Uuid;

use crate::app::App;
use crate::auth::{Caller, Principal};
use crate::error::Error;
use crate::service::enrolment::Invitation;
use crate::service::purchases::book::Wanted;
use crate::service::purchases::{offers, open};
use crate::service::{agent_state, enrolment};
use crate::store::actions::{self, ActionRow};
use crate::store::agents::{AgentState, NewAgent};
use crate::store::births::Birth;
use crate::store::transactions::Reporter;
use crate::store::writer::{IdemFor, Notice, Target, Tx, Written};
use crate::store::{agents, births, keys, ledger, transactions};

/// How long a child's machine may take to enrol, seconds.
pub const ENROL_WITHIN_SECS: u32 = 86_400;

/// How far lineages may grow.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Lineage {
    /// Living children of one agent.
    pub max_children: u32,
    /// Ancestors of one agent.
    pub max_depth: u32,
}

/// A child that was read and checked.
struct Child {
    id: Uuid,
    parent: Uuid,
    /// Its server, at the parent's expense.
    server: Option<Wanted>,
    name: String,
    model: Option<String>,
    genesis_prompt: Option<String>,
    budget: MicroUsd,
    limits: Lineage,
    made_by: Option<Uuid>,
}

/// Makes a child of an agent, for its owner, the agent itself, or the operator.
///
/// # Errors
/// 401, 404, 400, 409 `agent_killed`, `agent_terminated`, `insufficient_credits`, `lineage_limit_reached`, `name_taken`.
pub async fn create(
    app: &App,
    caller: &Caller,
    parent: AgentId,
    body: NewChild,
    idem: Option<IdemFor<ChildBorn>>,
) -> Result<Written<ChildBorn>, Error> {
    if caller.operator().is_err() {
        caller.key()?;
    }
    let state = agent_state(app, parent).await?;
    caller.must_own("agent", parent, Some(state.owner.uuid()), Some(parent.uuid()))?;
    limits::check_name("name", &body.name, limits::NAME)?;
    if let Some(model) = &body.model {
        limits::check_name("model", model, limits::MODEL)?;
    }
    if let Some(prompt) = &body.genesis_prompt {
        limits::check_text("genesisPrompt", prompt, limits::GENESIS_PROMPT)?;
    }
    let budget = body.budget.get();
    let least = app.settings.tiers.critical_from;
    if budget < least {
        return Err(Error::invalid("budget", format!("must be at least {least}: with less it is not alive")));
    }
    let id = otonix_sdk::clock::new_id();
    let server = match body.server {
        Some(order) => Some(price_server(app, id, order).await?),
        None => None,
    };
    let wanted = Child {
        id,
        server,
        parent: parent.uuid(),
        name: body.name,
        model: body.model,
        genesis_prompt: body.genesis_prompt,
        budget,
        limits: app.settings.lineage,
        made_by: match caller.principal {
            Principal::Key(key) => Some(key.id.uuid()),
            Principal::Operator | Principal::Anonymous => None,
        },
    };
    let born = app.writer.run(Target::Alone, idem, move |tx| Box::pin(bear(tx, wanted))).await?;
    app.shared.purchases.notify_one();
    Ok(born)
}

/// The order for a child's server, with what it costs: the daemon is installed there, for the child.
async fn price_server(app: &App, child: Uuid, order: Value) -> Result<Wanted, Error> {
    let mut order: ProvisionServer = body::read_field("server", &order).map_err(|why| match why {
        Unreadable::NoObject(why) => Error::invalid("server", why),
        Unreadable::Field { field, why } => Error::invalid(&field, why),
    })?;
    order.agent_id = Some(AgentId::from(child));
    let asked = offers::read_server(order)?;
    let project =
        app.vendors.project.filter(|_| app.vendors.compute.is_some()).ok_or(Error::NotConfigured {
            code: ErrorCode::UpstreamNotConfigured,
            detail: "no seller of servers is configured on this server",
        })?;
    let (item, private, price) = offers::quote_server(app, project, asked).await?;
    Ok(Wanted { item, private: private.to_text(), price, agent: child, owner: Uuid::nil(), idem: None })
}

async fn bear(tx: &mut Tx, wanted: Child) -> Result<ChildBorn, Error> {
    let gone = || Error::not_found("agent", wanted.parent);
    let owner = agents::states_of(&mut tx.conn, &[wanted.parent]).await?.pop().ok_or_else(gone)?.owner;
    keys::lock_owner(tx, owner.uuid()).await?;
    let mut parent = agents::lock_state(tx, wanted.parent).await?.ok_or_else(gone)?;
    if parent.killed {
        return Err(Error::agent_killed(wanted.parent));
    }
    parent.settle(tx.at, &tx.thresholds);
    if parent.tier == SurvivalTier::Terminated {
        return Err(Error::conflict(
            ErrorCode::AgentTerminated,
            format!("agent {} has no credits; nothing is spawned for it", wanted.parent),
        ));
    }
    if parent.credits < wanted.budget {
        return Err(Error::conflict(
            ErrorCode::InsufficientCredits,
            format!("the balance of {} USDC does not cover {} USDC", parent.credits, wanted.budget),
        ));
    }
    let ancestry = agents::ancestry(tx, wanted.parent).await?.ok_or_else(gone)?;
    let depth = ancestry.depth + 1;
    let too_deep = depth > i64::from(wanted.limits.max_depth);
    if too_deep || ancestry.living_children >= i64::from(wanted.limits.max_children) {
        let why = if too_deep { "as many ancestors" } else { "as many living children" };
        return Err(Error::conflict(
            ErrorCode::LineageLimitReached,
            format!("an agent has {why} as this server allows"),
        ));
    }
    if !agents::namesakes(tx, owner.uuid(), &wanted.name).await?.is_empty() {
        return Err(Error::conflict(
            ErrorCode::NameTaken,
            format!("this owner has an agent {} already", wanted.name),
        ));
    }
    let id = wanted.id;
    let child = NewAgent {
        id,
        name: wanted.name,
        tier: standing(wanted.budget, true, None, tx.at, &tx.thresholds),
        // Active from its first heartbeat on.
        status: AgentStatus::Inactive,
        wallet_address: None,
        wallet_proven: false,
        genesis_prompt: wanted.genesis_prompt,
        model: wanted.model.unwrap_or(ancestry.model),
        heartbeat_interval: u32::try_from(ancestry.heartbeat_interval)
            .unwrap_or(limits::DEFAULT_HEARTBEAT_INTERVAL),
        api_key: None,
        owner: owner.uuid(),
        vps_ip: None,
        vps_ip_sent: false,
        parent: Some(wanted.parent),
        grace_until: None,
        depth,
        laws_sha256: ancestry.laws_sha256,
        tag: None,
    };
    agents::insert(tx, &child).await?;
    agents::add_child(tx, wanted.parent).await?;
    let mut born = agents::lock_state(tx, id).await?.ok_or_else(|| Error::not_found("agent", id))?;
    hand_over(tx, &mut parent, &mut born, wanted.budget, "budget of a child").await?;
    let details = Some(format!("agent {id}, {} USDC", wanted.budget));
    actions::insert(tx, &[ActionRow::by_server(&parent, "replicate", "a child was born", details, tx.at)])
        .await?;
    let agent = agents::agent(&mut tx.conn, id).await?.ok_or_else(|| Error::not_found("agent", id))?;
    let invitation = Invitation {
        agent: &agent,
        made_by: wanted.made_by,
        ttl_secs: ENROL_WITHIN_SECS,
        moves_wallet: false,
    };
    let (token, expires_at) = enrolment::invite(tx, invitation).await?;
    let birth = Birth { agent_id: id, parent_id: wanted.parent, budget: wanted.budget.micros() };
    let purchase = match wanted.server {
        Some(order) => {
            let order = Wanted { owner: owner.uuid(), ..order };
            Some(open::by_credits_in(tx, AgentId::from(wanted.parent), &order).await?)
        }
        None => None,
    };
    births::insert(tx, &birth, purchase, expires_at).await?;
    tx.notices.extend([Notice::Agent(wanted.parent), Notice::Agent(id)]);
    Ok(ChildBorn {
        agent,
        budget: wanted.budget,
        enrolment_token: Some(token),
        expires_at,
        purchase_id: purchase,
        secret_shown: None,
    })
}

/// Moves credits within a lineage: what one has less the other has more, in one transaction, each with its row of the
/// record of money.
async fn hand_over(
    tx: &mut Tx,
    from: &mut AgentState,
    to: &mut AgentState,
    amount: MicroUsd,
    why: &str,
) -> Result<(), Error> {
    let given = MicroUsd::ZERO.saturating_sub(amount);
    let reference = Some(to.id.to_string());
    ledger::move_credits(tx, from, "child_grant", ledger::LINEAGE, given, reference).await?;
    let reference = Some(from.id.to_string());
    to.funded = true;
    ledger::move_credits(tx, to, "child_grant", ledger::LINEAGE, amount, reference).await?;
    for (kind, state, other) in [("debit", &*from, to.id), ("credit", &*to, from.id)] {
        let metadata = Map::from_iter([
            ("protocol".to_owned(), Value::from("lineage")),
            ("other".to_owned(), Value::from(other.to_string())),
        ]);
        let row = Transaction {
            id: TransactionId::from(otonix_sdk::clock::new_id()),
            kind: kind.to_owned(),
            amount,
            currency: "USDC".to_owned(),
            description: Some(why.to_owned()),
            status: "completed".to_owned(),
            from_address: None,
            to_address: None,
            tx_hash: None,
            metadata: Some(metadata.into()),
            agent_id: Some(state.id),
            created_at: tx.at,
        };
        transactions::insert(tx, &row, Reporter { owner: state.owner.uuid(), by_server: true }).await?;
    }
    Ok(())
}

/// Ends a child whose machine has not enrolled, and gives its parent back what the child has. Doing it twice changes
/// nothing the second time; tells whether it was done now.
///
/// # Errors
/// 503 without database.
pub(crate) async fn undo(tx: &mut Tx, child: Uuid, reason: &str) -> Result<bool, Error> {
    let Some(birth) = births::undo(tx, child).await? else { return Ok(false) };
    let states = agents::lock_states(tx, &[birth.parent_id, child]).await?;
    let find = |id: Uuid| states.iter().find(|state| state.id.uuid() == id).copied();
    let (Some(mut parent), Some(mut born)) = (find(birth.parent_id), find(child)) else {
        return Err(Error::internal(format!("a birth of agent {child} without its agents")));
    };
    // Never more than it was given: what others have paid in since is the child's.
    let back = MicroUsd::from_micros(birth.budget.min(born.credits.micros()));
    if !born.killed {
        agents::mark_killed(tx, child, reason).await?;
        born.killed = true;
        born.settle(tx.at, &tx.thresholds);
        agents::write_states(tx, std::slice::from_mut(&mut born)).await?;
    }
    if !back.is_negative() && back != MicroUsd::ZERO {
        hand_over(tx, &mut born, &mut parent, back, "budget of a child that was not born").await?;
    }
    let details = Some(format!("agent {child}, {back} USDC came back"));
    let line = ActionRow::by_server(&parent, "replicate", reason, details, tx.at);
    actions::insert(tx, &[ActionRow { status: "failed".to_owned(), ..line }]).await?;
    tx.notices.extend([Notice::Agent(birth.parent_id), Notice::Agent(child)]);
    Ok(true)
}
