//! Where the money of a purchase is: kept apart until the goods are there, then spent, or given back whole.

use otonix_sdk::api::records::Transaction;
use otonix_sdk::ids::{AgentId, TransactionId};
use otonix_sdk::money::MicroUsd;
use serde_json::{Map, Value};
use uuid::Uuid;

use crate::error::Error;
use crate::store::agents::AgentState;
use crate::store::orders::Payer;
use crate::store::purchases::Purchase;
use crate::store::refunds::NewRefund;
use crate::store::transactions::Reporter;
use crate::store::writer::Tx;
use crate::store::{agents, ledger, orders, receipts, refunds, transactions};

/// Where money went that could not buy what it was for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Back {
    /// It is credits of this agent.
    Credited(AgentId),
    /// It is owed back.
    Due,
    /// It had left the chain: nobody is owed anything.
    Nobody,
}

impl Back {
    /// What becomes of the sale.
    pub const fn order_status(self) -> &'static str {
        match self {
            Self::Credited(_) => "credited",
            Self::Due => "refund_due",
            Self::Nobody => "reversed",
        }
    }

    /// For the payer.
    pub fn describe(self, amount: MicroUsd) -> String {
        match self {
            Self::Credited(agent) => format!("{amount} USDC were credited to agent {agent}"),
            Self::Due => format!("{amount} USDC are noted as a refund that is due"),
            Self::Nobody => "the payment itself had left the chain".to_owned(),
        }
    }
}

/// Who may be given credits: the agent whose proven wallet paid, else the one that the goods were for.
async fn creditor(tx: &mut Tx, payer: &str, linked: Uuid) -> Result<Option<AgentState>, Error> {
    let by_wallet = agents::by_proven_wallet(&mut tx.conn, payer).await?.map(|(agent, _)| agent);
    for agent in by_wallet.into_iter().chain([linked]).filter(|agent| !agent.is_nil()) {
        let state = agents::lock_state(tx, agent).await?.filter(|state| !state.killed);
        if state.is_some() {
            return Ok(state);
        }
    }
    Ok(None)
}

/// Gives back money of a sale that is on an account of ours: as credits of the payer's agent, or as a refund that is
/// due. `whole`: it is all that the payment brought.
///
/// # Errors
/// Store errors.
pub async fn give_back(
    tx: &mut Tx,
    from: &'static str,
    amount: i64,
    payer: &Payer,
    whole: bool,
    reason: &str,
) -> Result<Back, Error> {
    if amount <= 0 {
        return Ok(Back::Due);
    }
    if let Some(mut state) = creditor(tx, &payer.address, payer.agent).await? {
        let agent = state.id;
        state.funded = true;
        let reference = Some(payer.sale.to_string());
        let credited = MicroUsd::from_micros(amount);
        ledger::move_credits(tx, &mut state, "refund", from, credited, reference).await?;
        record(tx, &state, credited, payer, reason).await?;
        receipts::reassign(tx, payer.sale, None, agent.uuid()).await?;
        return Ok(Back::Credited(agent));
    }
    owe(tx, from, amount, payer, whole, reason).await
}

/// The line of money that people read.
async fn record(
    tx: &mut Tx,
    state: &AgentState,
    amount: MicroUsd,
    payer: &Payer,
    reason: &str,
) -> Result<(), Error> {
    let metadata: Map<String, Value> = [
        ("protocol".to_owned(), Value::from("x402")),
        ("saleId".to_owned(), Value::from(payer.sale.to_string())),
        ("payer".to_owned(), Value::from(payer.address.as_str())),
    ]
    .into_iter()
    .collect();
    let line = Transaction {
        id: TransactionId::from(otonix_sdk::clock::new_id()),
        kind: "credit".to_owned(),
        amount,
        currency: "USDC".to_owned(),
        description: Some(format!("refund: {reason}")),
        status: "completed".to_owned(),
        from_address: None,
        to_address: None,
        tx_hash: None,
        metadata: Some(metadata.into()),
        agent_id: Some(state.id),
        created_at: tx.at,
    };
    let reporter = Reporter { owner: state.owner.uuid(), by_server: true };
    Ok(transactions::insert(tx, &line, reporter).await?)
}

/// Notes a refund as due, for money that is on an account of ours. `whole`: it is all that the payment brought.
///
/// # Errors
/// Store errors.
pub async fn owe(
    tx: &mut Tx,
    from: &'static str,
    amount: i64,
    payer: &Payer,
    whole: bool,
    reason: &str,
) -> Result<Back, Error> {
    if amount <= 0 {
        return Ok(Back::Due);
    }
    let refund = NewRefund {
        reason: reason.to_owned(),
        amount,
        payer: payer.address.clone(),
        chain: payer.chain,
        tx_hash: payer.tx_hash,
        sale: payer.sale,
        agent: payer.agent,
        owner: payer.owner,
    };
    let id = refunds::insert(tx, &refund).await?;
    ledger::move_between(tx, "refund_due", from, ledger::REFUNDS, amount, Some(id.to_string())).await?;
    if whole {
        receipts::reassign(tx, payer.sale, Some("refund_due"), payer.agent).await?;
    }
    tracing::warn!(refund.id = %id, amount_micro = amount, "a payment bought nothing: a refund is due");
    Ok(Back::Due)
}

/// What was kept for a delivered purchase is spent.
///
/// # Errors
/// Store errors.
pub async fn spend(tx: &mut Tx, purchase: &Purchase) -> Result<(), Error> {
    let reference = Some(purchase.id.to_string());
    if purchase.held_in == ledger::RESERVED {
        let state = agents::lock_state(tx, purchase.payer_agent).await?;
        let state = state.ok_or_else(|| Error::internal("the agent that pays is gone"))?;
        let ended =
            ledger::end_reservation(tx, purchase.payer_agent, purchase.reservation, "settled").await?;
        let ended = ended.ok_or_else(|| Error::internal("a purchase's reservation is not held"))?;
        ledger::settle_reserved(tx, &state, ledger::PURCHASES, ended.amount, purchase.id).await?;
        return Ok(());
    }
    let (from, to) = (ledger::PURCHASES_OPEN, ledger::PURCHASES);
    Ok(ledger::move_between(tx, "purchase", from, to, purchase.held, reference).await?)
}

/// What was spent is kept again: what was delivered turned out not to be there.
///
/// # Errors
/// Store errors.
pub async fn unspend(tx: &mut Tx, purchase: &Purchase) -> Result<(), Error> {
    let (from, to) = (ledger::PURCHASES, ledger::PURCHASES_OPEN);
    let reference = Some(purchase.id.to_string());
    Ok(ledger::move_between(tx, "purchase_undone", from, to, purchase.held, reference).await?)
}

/// What was kept for a failed purchase goes back to whom it came from.
///
/// # Errors
/// Store errors.
pub async fn release(tx: &mut Tx, purchase: &Purchase, reason: &str) -> Result<Back, Error> {
    let amount = MicroUsd::from_micros(purchase.held);
    let reference = Some(purchase.id.to_string());
    let Some(sale) = purchase.sale else {
        let agent = purchase.payer_agent;
        let state = agents::lock_state(tx, agent).await?;
        let mut state = state.ok_or_else(|| Error::internal("the agent that paid is gone"))?;
        let (kind, from) = if purchase.held_in == ledger::RESERVED {
            let ended = ledger::end_reservation(tx, agent, purchase.reservation, "released").await?;
            ended.ok_or_else(|| Error::internal("a purchase's reservation is not held"))?;
            ("release", ledger::RESERVED)
        } else {
            ("refund", ledger::PURCHASES_OPEN)
        };
        ledger::move_credits(tx, &mut state, kind, from, amount, reference).await?;
        return Ok(Back::Credited(state.id));
    };
    let payer = orders::payer(&mut tx.conn, sale).await?;
    let payer = payer.ok_or_else(|| Error::internal("a purchase's sale is gone"))?;
    let from = ledger::PURCHASES_OPEN;
    if payer.status != "reversed" {
        let whole = purchase.held >= payer.amount;
        return give_back(tx, from, purchase.held, &payer, whole, reason).await;
    }
    // The payment has left the chain meanwhile, and whoever made up for it then gets that back.
    match agents::lock_state(tx, purchase.agent).await? {
        Some(mut state) => {
            ledger::move_credits(tx, &mut state, "refund", from, amount, reference).await?;
            Ok(Back::Credited(state.id))
        }
        None => {
            let to = ledger::REVERSALS;
            ledger::move_between(tx, "reversal", from, to, purchase.held, reference).await?;
            Ok(Back::Nobody)
        }
    }
}
