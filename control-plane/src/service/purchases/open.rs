//! How a purchase begins: in the transaction that books its payment, or in the one that reserves an agent's credits.

use otonix_sdk::api::payments::PaymentReceipt;
use otonix_sdk::error::ErrorCode;
use otonix_sdk::ids::AgentId;
use otonix_sdk::money::{Amount, MicroUsd};
use otonix_sdk::standing::SurvivalTier;
use uuid::Uuid;

use crate::app::App;
use crate::error::Error;
use crate::service::ledger::reserve_in;
use crate::service::payments::goods::Answer;
use crate::service::purchases::book::{self, Wanted};
use crate::service::purchases::bring::{self, Brought};
use crate::service::purchases::item::Item;
use crate::service::purchases::machine::Status;
use crate::service::purchases::money;
use crate::store::orders::Payer;
use crate::store::purchases::{self, Purchase};
use crate::store::writer::{Target, Tx};
use crate::store::{agents, domains, ledger, sandboxes};

/// A payment, as far as a purchase is concerned with it.
#[derive(Debug)]
pub struct Payment<'a> {
    /// Who paid, how much, for which sale.
    pub payer: &'a Payer,
    /// The account that the money is on.
    pub from: &'static str,
    /// The proof.
    pub receipt: &'a PaymentReceipt,
}

/// What became of a paid request.
#[derive(Debug)]
pub enum Opened {
    /// It is carried out now.
    Waits(Uuid),
    /// It is done.
    Done(Uuid, Answer),
    /// It cannot be done any more; the money is where it was.
    Impossible(ErrorCode, String),
}

/// Opens a purchase that a sale pays. What arrived beyond the price is given back, what is missing is the operator's.
///
/// # Errors
/// Store errors.
pub async fn by_sale(tx: &mut Tx, wanted: &Wanted, payment: &Payment<'_>) -> Result<Opened, Error> {
    if !wanted.agent.is_nil() {
        let state = agents::lock_state(tx, wanted.agent).await?;
        if state.is_none_or(|state| state.killed) {
            let why = "the agent that it was for was killed".to_owned();
            return Ok(Opened::Impossible(ErrorCode::AgentKilled, why));
        }
    }
    if let Item::Period(item) = &wanted.item {
        let found = sandboxes::managed(&mut tx.conn, &item.vendor_id).await?;
        if found.is_none_or(|(sandbox, ..)| sandbox.id != item.sandbox) {
            let why = "the server is gone".to_owned();
            return Ok(Opened::Impossible(ErrorCode::NotFound, why));
        }
    }
    let (price, amount) = (wanted.price.micros(), payment.payer.amount);
    let held = amount.min(price);
    let mut purchase = book::row(tx, wanted, ledger::PURCHASES_OPEN, held)?;
    purchase.sale = Some(payment.payer.sale);
    let is_period = matches!(wanted.item, Item::Period(_));
    if is_period {
        ended_at_once(tx, &mut purchase);
    }
    if !purchases::insert(tx, &purchase).await? {
        let why = format!("{} is being bought by someone else", wanted.item.subject());
        return Ok(Opened::Impossible(ErrorCode::PurchaseUnderWay, why));
    }
    let reference = Some(purchase.id.to_string());
    let to = if is_period { ledger::PURCHASES } else { ledger::PURCHASES_OPEN };
    ledger::move_between(tx, "purchase", payment.from, to, held, reference).await?;
    let surplus = amount - held;
    if surplus > 0 {
        let reason = format!("{}: more was paid than it cost", wanted.item.describe());
        money::give_back(tx, payment.from, surplus, payment.payer, false, &reason).await?;
    }
    if !is_period {
        return Ok(Opened::Waits(purchase.id));
    }
    let rows = bring::write(tx, &purchase, &wanted.item, &Brought::Period).await?;
    purchases::set_result(tx, purchase.id, rows.id()).await?;
    book::log(tx, &purchase, &wanted.item.describe(), wanted.item.category(), None).await?;
    Ok(Opened::Done(purchase.id, rows.answer(payment.receipt.clone())?))
}

fn ended_at_once(tx: &Tx, purchase: &mut Purchase) {
    Status::Delivered.as_str().clone_into(&mut purchase.status);
    purchase.ended_at = Some(tx.at);
    purchase.private = None;
}

/// Opens a purchase that an agent's credits pay: they are set aside with it, and spent or given back with its end.
///
/// # Errors
/// 404, 409 `insufficient_credits`, `agent_killed` or `purchase_under_way`.
pub async fn by_credits(app: &App, payer: AgentId, wanted: Wanted) -> Result<Uuid, Error> {
    let done = app
        .writer
        .apply(Target::Alone, move |tx| Box::pin(async move { by_credits_in(tx, payer, &wanted).await }));
    let id = done.await?;
    app.shared.purchases.notify_one();
    Ok(id)
}

/// The same inside a transaction; whoever commits it wakes the worker (`Shared::purchases`).
///
/// # Errors
/// As [`by_credits`].
pub async fn by_credits_in(tx: &mut Tx, payer: AgentId, wanted: &Wanted) -> Result<Uuid, Error> {
    let reservation = set_aside(tx, payer, &wanted.item, wanted.price).await?;
    let mut purchase = book::row(tx, wanted, ledger::RESERVED, wanted.price.micros())?;
    purchase.payer_agent = payer.uuid();
    purchase.reservation = reservation;
    let is_period = matches!(wanted.item, Item::Period(_));
    if !purchases::insert(tx, &purchase).await? {
        return Err(Error::conflict(
            ErrorCode::PurchaseUnderWay,
            format!("{} is being bought already", wanted.item.subject()),
        ));
    }
    if is_period {
        // Nothing is asked of the vendor, which bills until the server is deleted.
        book::deliver_in(tx, &purchase, &Brought::Period).await?;
    }
    Ok(purchase.id)
}

async fn set_aside(tx: &mut Tx, payer: AgentId, item: &Item, price: MicroUsd) -> Result<Uuid, Error> {
    let amount = Amount::new(price).map_err(|why| Error::invalid("price", why.to_string()))?;
    let state = agents::lock_state(tx, payer.uuid()).await?;
    let state = state.ok_or_else(|| Error::not_found("agent", payer))?;
    if state.tier == SurvivalTier::Terminated && !state.killed {
        return Err(Error::conflict(
            ErrorCode::InsufficientCredits,
            format!("agent {payer} is terminated: nothing is bought for it"),
        ));
    }
    reserve_in(tx, payer, amount, item.describe()).await
}

/// Opens a purchase that waits for the operator's word, before anything is set aside for it; `None` when there is a live
/// one already.
///
/// # Errors
/// Store errors.
pub async fn ask_in(
    tx: &mut Tx,
    payer: AgentId,
    wanted: &Wanted,
    code: ErrorCode,
    why: &str,
) -> Result<Option<Uuid>, Error> {
    let mut asked = book::row(tx, wanted, ledger::RESERVED, 0)?;
    asked.payer_agent = payer.uuid();
    Status::NeedsOperator.as_str().clone_into(&mut asked.status);
    if !purchases::insert(tx, &asked).await? {
        return Ok(None);
    }
    let mut told = asked.clone();
    (told.failure_code, told.failure) = (Some(code.as_str().to_owned()), Some(why.to_owned()));
    purchases::change(tx, &asked, &told).await?;
    Ok(Some(asked.id))
}

/// What the operator has agreed to, with its money set aside.
///
/// # Errors
/// As [`by_credits`]; the purchase waits on.
pub async fn agreed_in(tx: &mut Tx, asked: &Purchase) -> Result<Purchase, Error> {
    let item = Item::of(asked)?;
    let price = MicroUsd::from_micros(asked.price);
    let payer = AgentId::from(asked.payer_agent);
    let found = domains::managed(&mut tx.conn, &asked.subject).await?;
    if found.is_none_or(|(domain, ..)| domain.agent_id != Some(payer)) {
        let detail = format!("{} is not agent {payer}'s any more", asked.subject);
        return Err(Error::conflict(ErrorCode::Conflict, detail));
    }
    let mut agreed = asked.clone();
    agreed.reservation = set_aside(tx, payer, &item, price).await?;
    agreed.held = asked.price;
    Ok(agreed)
}
