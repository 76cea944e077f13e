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
    /// Nothing had been set aside.
    Nothing,
}

impl Back {
    /// What becomes of the sale.
    pub const fn order_status(self) -> &'static str {
        match self {
            Self::Credited(_) => "credited",
            Self::Due => "refund_due",
            Self::Nobody | Self::Nothing => "reversed",
        }
    }

    /// For the payer.
    pub fn describe(self, amount: MicroUsd) -> String {
        match self {
            Self::Credited(agent) => format!("{amount} USDC were credited to agent {agent}"),
            Self::Due => format!("{amount} USDC are noted as a refund that is due"),
            Self::Nobody => "the payment itself had left the chain".to_owned(),
            Self::Nothing => "nothing had been set aside for it".to_owned(),
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
        let sale = payer.sale.to_string();
        let line = Line {
            amount: MicroUsd::from_micros(amount),
            reason,
            payer: &payer.address,
            sent_by: None,
            about: vec![("saleId", sale.as_str())],
        };
        credit(tx, &mut state, from, sale.clone(), &line).await?;
        receipts::reassign(tx, payer.sale, None, agent.uuid()).await?;
        return Ok(Back::Credited(agent));
    }
    owe(tx, from, amount, payer, whole, reason).await
}

/// A refund as people read it in the record of money.
#[derive(Debug)]
pub struct Line<'a> {
    /// How much.
    pub amount: MicroUsd,
    /// Why.
    pub reason: &'a str,
    /// Who had paid.
    pub payer: &'a str,
    /// The transaction that sent it back, when that is known.
    pub sent_by: Option<&'a str>,
    /// What it belongs to.
    pub about: Vec<(&'static str, &'a str)>,
}

/// Money of a payment becomes credits of an agent, as if it had paid them.
///
/// # Errors
/// Store errors.
pub async fn credit(
    tx: &mut Tx,
    state: &mut AgentState,
    from: &'static str,
    reference: String,
    line: &Line<'_>,
) -> Result<(), Error> {
    state.funded = true;
    ledger::move_credits(tx, state, "refund", from, line.amount, Some(reference)).await?;
    record(tx, line, Some(state)).await
}

/// Writes the line: credits of an agent, or what was sent back to the payer.
///
/// # Errors
/// Store errors.
pub async fn record(tx: &mut Tx, line: &Line<'_>, credited: Option<&AgentState>) -> Result<(), Error> {
    let metadata: Map<String, Value> = [("protocol", "x402"), ("payer", line.payer)]
        .into_iter()
        .chain(line.about.iter().copied())
        .map(|(name, value)| (name.to_owned(), Value::from(value)))
        .collect();
    let line = Transaction {
        id: TransactionId::from(otonix_sdk::clock::new_id()),
        kind: if credited.is_some() { "credit" } else { "debit" }.to_owned(),
        amount: line.amount,
        currency: "USDC".to_owned(),
        description: Some(format!("refund: {}", line.reason)),
        status: "completed".to_owned(),
        from_address: None,
        to_address: credited.is_none().then(|| line.payer.to_owned()),
        tx_hash: line.sent_by.filter(|_| credited.is_none()).map(str::to_owned),
        metadata: Some(metadata.into()),
        agent_id: credited.map(|state| state.id),
        created_at: tx.at,
    };
    let owner = credited.map_or(Uuid::nil(), |state| state.owner.uuid());
    Ok(transactions::insert(tx, &line, Reporter { owner, by_server: true }).await?)
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
    if purchase.is_unpaid() {
        return Ok(Back::Nothing);
    }
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
    let made_up = receipts::of_sale(&mut tx.conn, sale).await?.map_or(Uuid::nil(), |row| row.agent);
    match agents::lock_state(tx, made_up).await? {
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
