//! A payment that left the chain after it began a purchase, or came back: nothing that was not sent yet is bought for
//! it, and for what was bought its agent owes, or else the operator bears it.

use otonix_sdk::error::ErrorCode;
use otonix_sdk::money::MicroUsd;

use crate::error::Error;
use crate::service::payments::goods;
use crate::service::purchases::machine::Status;
use crate::service::purchases::money;
use crate::store::purchases::{self, Purchase};
use crate::store::receipts::Receipt;
use crate::store::writer::Tx;
use crate::store::{agents, ledger, orders, refunds};

/// The mark of a purchase that was ended by this.
const REVERSED: &str = "payment_reversed";

/// Takes back what the payment of a purchase gave, or gives it again.
///
/// # Errors
/// Store errors.
pub async fn turn_in(tx: &mut Tx, row: &Receipt, purchase: &Purchase, back: bool) -> Result<(), Error> {
    if back { take_back(tx, row, purchase).await } else { give_again(tx, row, purchase).await }
}

async fn take_back(tx: &mut Tx, row: &Receipt, purchase: &Purchase) -> Result<(), Error> {
    let reference = Some(format!("0x{}", hex::encode(row.tx_hash)));
    let mut rest = row.amount;
    if purchase.status == Status::Paid.as_str() {
        let mut after = purchase.clone();
        Status::Failed.as_str().clone_into(&mut after.status);
        after.failure_code = Some(REVERSED.to_owned());
        after.failure = Some("its payment left the chain".to_owned());
        after.private = None;
        after.ended_at = Some(tx.at);
        if purchases::change(tx, purchase, &after).await? {
            let from = ledger::PURCHASES_OPEN;
            ledger::move_between(tx, "reversal", from, ledger::TREASURY, purchase.held, reference.clone())
                .await?;
            rest -= purchase.held;
            let answer = goods::refusal(ErrorCode::PaymentFailed, "the payment left the chain");
            orders::finish(tx, row.sale, "reversed", answer.status, &answer.body).await?;
        }
    }
    orders::mark(tx, row.sale, "reversed").await?;
    // What is still owed back is owed no more.
    let owed = refunds::drop_of_sale(tx, row.sale).await?.min(rest);
    ledger::move_between(tx, "reversal", ledger::REFUNDS, ledger::TREASURY, owed, reference.clone()).await?;
    rest -= owed;
    if rest <= 0 {
        return Ok(());
    }
    match agents::lock_state(tx, row.agent).await? {
        Some(mut state) => {
            let amount = MicroUsd::from_micros(-rest);
            ledger::move_credits(tx, &mut state, "reversal", ledger::TREASURY, amount, reference).await?;
        }
        None => {
            tracing::error!(purchase.id = %purchase.id, amount_micro = rest,
                "the payment of a purchase that was begun left the chain");
            ledger::move_between(tx, "reversal", ledger::REVERSALS, ledger::TREASURY, rest, reference)
                .await?;
        }
    }
    Ok(())
}

async fn give_again(tx: &mut Tx, row: &Receipt, purchase: &Purchase) -> Result<(), Error> {
    let payer = orders::payer(&mut tx.conn, row.sale).await?;
    let payer = payer.ok_or_else(|| Error::internal("a purchase's sale is gone"))?;
    let reference = Some(format!("0x{}", hex::encode(row.tx_hash)));
    if purchase.status != Status::Failed.as_str() {
        let status = if purchase.status == Status::Delivered.as_str() { "delivered" } else { "pending" };
        orders::mark(tx, row.sale, status).await?;
        // What was owed back of it is owed again; the rest goes to whoever made up for it.
        let owed = refunds::restore_of_sale(tx, row.sale).await?.min(row.amount);
        let (treasury, rest) = (ledger::TREASURY, row.amount - owed);
        ledger::move_between(tx, "restored", treasury, ledger::REFUNDS, owed, reference.clone()).await?;
        match agents::lock_state(tx, row.agent).await? {
            Some(mut state) if rest > 0 => {
                let amount = MicroUsd::from_micros(rest);
                ledger::move_credits(tx, &mut state, "restored", treasury, amount, reference).await?;
            }
            Some(_) => {}
            None => {
                ledger::move_between(tx, "restored", treasury, ledger::REVERSALS, rest, reference).await?;
            }
        }
        return Ok(());
    }
    let reason = format!("{}: its payment was gone for a while", purchase.subject);
    let back = money::give_back(tx, ledger::TREASURY, row.amount, &payer, true, &reason).await?;
    Ok(orders::mark(tx, row.sale, back.order_status()).await?)
}
