//! Money that moved without a sale: deposits from agents' own wallets, what came from nobody known, what the operator
//! took out; and payments that left the chain again.

use otonix_sdk::ids::AgentId;
use otonix_sdk::money::MicroUsd;
use uuid::Uuid;

use crate::error::Error;
use crate::service::payments::book::{Arrived, record};
use crate::service::purchases::reversal;
use crate::store::agents::AgentState;
use crate::store::receipts::{self, Receipt};
use crate::store::writer::Tx;
use crate::store::{agents, ledger, orders, purchases, refunds};

/// Books a transfer to the treasury that nothing has used: it becomes credits of the agent whose proven wallet sent
/// it, else it is unmatched. Tells whether credits came of it; does nothing when it was used.
///
/// # Errors
/// Store errors.
pub async fn deposit_in(tx: &mut Tx, arrived: &Arrived) -> Result<bool, Error> {
    let known = agents::by_proven_wallet(&mut tx.conn, &arrived.from.to_string()).await?;
    let state = match known {
        Some((agent, _)) => agents::lock_state(tx, agent).await?.filter(|state| !state.killed),
        None => None,
    };
    let reference = Some(arrived.hash_text());
    let Some(mut state) = state.filter(|_| arrived.amount > MicroUsd::ZERO) else {
        if receipts::insert(tx, &arrived.row("unmatched", Uuid::nil(), Uuid::nil())).await? {
            let (from, to) = (ledger::TREASURY, ledger::UNMATCHED);
            ledger::move_between(tx, "unmatched", from, to, arrived.amount.micros(), reference).await?;
        }
        return Ok(false);
    };
    let (agent, owner) = (state.id.uuid(), state.owner.uuid());
    if !receipts::insert(tx, &arrived.row("deposit", agent, Uuid::nil())).await? {
        return Ok(false);
    }
    state.funded = true;
    ledger::move_credits(tx, &mut state, "deposit", ledger::TREASURY, arrived.amount, reference).await?;
    let receipt = arrived.receipt("", "deposit", "deposit", tx.at);
    record(tx, &receipt, "deposit", (Uuid::nil(), None), agent, owner).await?;
    Ok(true)
}

/// Books a transfer out of the treasury.
///
/// # Errors
/// Store errors.
pub async fn withdrawal_in(tx: &mut Tx, left: &Arrived) -> Result<(), Error> {
    if receipts::insert(tx, &left.row("withdrawal", Uuid::nil(), Uuid::nil())).await? && left.from != left.to
    {
        let (from, to) = (ledger::WITHDRAWALS, ledger::TREASURY);
        let reference = Some(left.hash_text());
        ledger::move_between(tx, "withdrawal", from, to, left.amount.micros(), reference).await?;
    }
    Ok(())
}

/// The other account of a receipt that went to no agent.
fn account(kind: &str) -> &'static str {
    match kind {
        "refund_due" => ledger::REFUNDS,
        "withdrawal" => ledger::WITHDRAWALS,
        _ => ledger::UNMATCHED,
    }
}

/// Takes back what a receipt gave, or gives it again: the transfer has left the chain, or is on it again. `false`
/// when that was done before.
///
/// # Errors
/// Store errors.
pub async fn turn_in(tx: &mut Tx, row: &Receipt, back: bool) -> Result<bool, Error> {
    let (was, status) = if back { ("granted", "reversed") } else { ("reversed", "granted") };
    let mut turned = row.clone();
    status.clone_into(&mut turned.status);
    turned.missing_since = row.missing_since.filter(|_| back);
    let state = match row.agent {
        agent if agent.is_nil() || row.kind == "refund_due" => None,
        agent => agents::lock_state(tx, agent).await?,
    };
    if !receipts::note(tx, &turned, was).await? {
        return Ok(false);
    }
    if !row.sale.is_nil()
        && let Some(purchase) = purchases::of_sale(&mut tx.conn, row.sale).await?
    {
        reversal::turn_in(tx, row, &purchase, back).await?;
        return Ok(true);
    }
    let kind = if back { "reversal" } else { "restored" };
    let reference = Some(format!("0x{}", hex::encode(row.tx_hash)));
    if let Some(mut state) = state {
        turn_credits(tx, &mut state, row, kind, back, reference).await?;
    } else if row.kind == "refund_due" && !row.sale.is_nil() {
        turn_refund(tx, row, kind, back, reference).await?;
    } else if row.amount > 0 && row.from != row.to {
        let other = account(&row.kind);
        // A withdrawal went the other way in the first place.
        let returns = back != (row.kind == "withdrawal");
        let (from, to) = if returns { (other, ledger::TREASURY) } else { (ledger::TREASURY, other) };
        ledger::move_between(tx, kind, from, to, row.amount, reference).await?;
    }
    if !row.sale.is_nil() {
        let status = match (back, row.kind.as_str()) {
            (true, _) => "reversed",
            (false, "refund_due") => "refund_due",
            (false, _) => "delivered",
        };
        orders::mark(tx, row.sale, status).await?;
    }
    Ok(true)
}

/// The signed payment of a sale left the chain and came by another transaction: the receipt moves there, and what was
/// taken back is given again. `false` when that was done before, or the other transfer has a use of its own.
///
/// # Errors
/// Store errors.
pub async fn rehome_in(tx: &mut Tx, row: &Receipt, arrived: &Arrived) -> Result<bool, Error> {
    let mut place = arrived.row(&row.kind, row.agent, row.sale);
    place.status.clone_from(&row.status);
    let there = receipts::of_transaction(&mut tx.conn, place.chain, place.tx_hash).await?;
    if let Some(other) = there.iter().find(|other| other.log_index == place.log_index) {
        if !receipts::unbook(tx, other).await? {
            return Ok(false);
        }
        if other.status != "reversed" {
            let reference = Some(arrived.hash_text());
            let (from, to) = (ledger::UNMATCHED, ledger::TREASURY);
            ledger::move_between(tx, "matched", from, to, other.amount, reference).await?;
        }
    }
    if !receipts::rehome(tx, row, &place).await? {
        return Err(Error::internal("a receipt was changed by another"));
    }
    orders::set_transaction(tx, row.sale, place.tx_hash).await?;
    if row.status == "reversed" {
        return turn_in(tx, &place, false).await;
    }
    Ok(true)
}

/// What is still owed back of a payment that is gone is owed no more; what was given back already is borne here.
async fn turn_refund(
    tx: &mut Tx,
    row: &Receipt,
    kind: &'static str,
    back: bool,
    reference: Option<String>,
) -> Result<(), Error> {
    let owed = if back {
        refunds::drop_of_sale(tx, row.sale).await?
    } else {
        refunds::restore_of_sale(tx, row.sale).await?
    };
    let owed = owed.min(row.amount);
    for (other, amount) in [(ledger::REFUNDS, owed), (ledger::REVERSALS, row.amount - owed)] {
        if amount > 0 {
            let (from, to) = if back { (other, ledger::TREASURY) } else { (ledger::TREASURY, other) };
            ledger::move_between(tx, kind, from, to, amount, reference.clone()).await?;
        }
    }
    Ok(())
}

async fn turn_credits(
    tx: &mut Tx,
    state: &mut AgentState,
    row: &Receipt,
    kind: &'static str,
    back: bool,
    reference: Option<String>,
) -> Result<(), Error> {
    let amount = MicroUsd::from_micros(if back { -row.amount } else { row.amount });
    ledger::move_credits(tx, state, kind, ledger::TREASURY, amount, reference).await?;
    let line = otonix_sdk::api::records::Transaction {
        id: otonix_sdk::ids::TransactionId::from(otonix_sdk::clock::new_id()),
        kind: if back { "debit" } else { "credit" }.to_owned(),
        amount: MicroUsd::from_micros(row.amount),
        currency: "USDC".to_owned(),
        description: Some(kind.to_owned()),
        status: "completed".to_owned(),
        from_address: Some(row.from.clone()),
        to_address: Some(row.to.clone()),
        tx_hash: Some(format!("0x{}", hex::encode(row.tx_hash))),
        metadata: None,
        agent_id: Some(AgentId::from(row.agent)),
        created_at: tx.at,
    };
    let reporter = crate::store::transactions::Reporter { owner: state.owner.uuid(), by_server: true };
    Ok(crate::store::transactions::insert(tx, &line, reporter).await?)
}
