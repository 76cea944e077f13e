//! What a purchase does to the books, each step in one transaction: opened with its money, changed only from where its
//! writer has seen it, ended once.

use chrono::{DateTime, Utc};
use otonix_sdk::api::payments::PaymentReceipt;
use otonix_sdk::api::records::Transaction;
use otonix_sdk::error::ErrorCode;
use otonix_sdk::ids::{AgentId, TransactionId};
use otonix_sdk::money::MicroUsd;
use serde_json::{Map, Value};
use uuid::Uuid;

use crate::error::Error;
use crate::service::payments::goods::{self, Answer};
use crate::service::purchases::bring::{self, Brought};
use crate::service::purchases::item::Item;
use crate::service::purchases::machine::Status;
use crate::service::purchases::money::{self, Back};
use crate::store::actions::{self, ActionRow};
use crate::store::idempotency::{self, Idem, StoredAnswer};
use crate::store::purchases::{self, Purchase};
use crate::store::transactions::{self, Reporter};
use crate::store::writer::Tx;
use crate::store::{agents, ledger, orders, sandboxes, tenancies};

/// A purchase to be opened, before it is known who pays it.
#[derive(Debug, Clone)]
pub struct Wanted {
    /// What.
    pub item: Item,
    /// What must not outlive it.
    pub private: Option<String>,
    /// For how much.
    pub price: MicroUsd,
    /// Whom it is for, or nil.
    pub agent: Uuid,
    /// Whose it is, or nil.
    pub owner: Uuid,
    /// The request's idempotency key, if it has one.
    pub idem: Option<Idem>,
}

/// The row of a new purchase, with its money on an account.
///
/// # Errors
/// [`Error::Internal`]; it never happens.
pub fn row(tx: &Tx, wanted: &Wanted, held_in: &'static str, held: i64) -> Result<Purchase, Error> {
    Ok(Purchase {
        id: otonix_sdk::clock::new_id(),
        kind: wanted.item.kind().to_owned(),
        status: Status::Paid.as_str().to_owned(),
        subject: wanted.item.subject().to_owned(),
        item: wanted.item.to_value()?,
        private: wanted.private.clone(),
        held_in: held_in.to_owned(),
        price: wanted.price.micros(),
        held,
        sale: None,
        payer_agent: Uuid::nil(),
        reservation: Uuid::nil(),
        agent: wanted.agent,
        owner: wanted.owner,
        idem: wanted.idem,
        attempts: 0,
        attempt: Uuid::nil(),
        deadline: None,
        vendor_ref: None,
        absent_since: None,
        epoch: 0,
        next_at: tx.at,
        failure_code: None,
        failure: None,
        result: None,
        secret_shown: !matches!(wanted.item, Item::Server(_)),
        note: None,
        since: tx.at,
        created_at: tx.at,
        ended_at: None,
    })
}

/// Ends a purchase with what it brought; `false` when it is not (any more) where `before` has it.
///
/// # Errors
/// Store errors; 404 when what it was to extend is gone.
pub async fn deliver_in(tx: &mut Tx, before: &Purchase, brought: &Brought) -> Result<bool, Error> {
    let mut after = ended(tx, before, Status::Delivered);
    // What was in the way before is none of its story any more.
    (after.failure_code, after.failure) = (None, None);
    if let Some(id) = brought.vendor_id() {
        after.vendor_ref = Some(id);
    }
    if !purchases::change(tx, before, &after).await? {
        return Ok(false);
    }
    money::spend(tx, before).await?;
    let item = Item::of(before)?;
    if let Some(result) = before.result {
        // It was delivered before, and the operator says that it is good after all.
        if let Brought::Server(server) = brought {
            let address = server.address.map(|address| address.to_string());
            sandboxes::mended(tx, result, address.as_deref()).await?;
        }
        return Ok(true);
    }
    let rows = bring::write(tx, before, &item, brought).await?;
    purchases::set_result(tx, before.id, rows.id()).await?;
    if let Some(sale) = before.sale {
        let order = orders::order(&mut tx.conn, sale).await?;
        let order = order.ok_or_else(|| Error::internal("a purchase's sale is gone"))?;
        let receipt = PaymentReceipt {
            order_id: order.order_id,
            resource: order.resource,
            amount: order.amount,
            currency: order.currency,
            network: order.network,
            payer: order.payer,
            pay_to: order.pay_to,
            tx_hash: order.tx_hash,
            scheme: order.scheme,
            settled_at: order.settled_at,
        };
        let answer = rows.answer(receipt)?;
        answer_in(tx, before, "delivered", &answer).await?;
    }
    record(tx, before, &item).await?;
    log(tx, before, &item.describe(), item.category(), None).await?;
    tracing::info!(purchase.id = %before.id, kind = before.kind, subject = before.subject, "a purchase was delivered");
    Ok(true)
}

/// Ends a purchase that cannot be delivered, and gives its money back; `false` when it is not (any more) where
/// `before` has it.
///
/// # Errors
/// Store errors.
pub async fn fail_in(
    tx: &mut Tx,
    before: &Purchase,
    code: ErrorCode,
    detail: &str,
) -> Result<Option<Back>, Error> {
    let mut after = ended(tx, before, Status::Failed);
    after.failure_code = Some(code.as_str().to_owned());
    after.failure = Some(detail.to_owned());
    if !purchases::change(tx, before, &after).await? {
        return Ok(None);
    }
    let item = Item::of(before)?;
    let back = money::release(tx, before, &format!("{}: {detail}", item.describe())).await?;
    let said = format!("{detail}; {}", back.describe(MicroUsd::from_micros(before.held)));
    if before.sale.is_some() {
        answer_in(tx, before, back.order_status(), &goods::refusal(code, &said)).await?;
    }
    if let (Item::Server(_), Some(result)) = (&item, before.result) {
        // It is nobody's any more, and billed until the vendor has deleted it.
        tenancies::end_now(tx, result).await?;
    }
    log(tx, before, &item.describe(), item.category(), Some(&said)).await?;
    tracing::warn!(purchase.id = %before.id, kind = before.kind, subject = before.subject, code = code.as_str(),
        detail, "a purchase failed");
    Ok(Some(back))
}

/// Leaves a purchase to the operator; `false` when it is not (any more) where `before` has it.
///
/// # Errors
/// Store errors.
pub async fn escalate_in(
    tx: &mut Tx,
    before: &Purchase,
    code: ErrorCode,
    detail: &str,
) -> Result<bool, Error> {
    let mut after = before.clone();
    Status::NeedsOperator.as_str().clone_into(&mut after.status);
    after.ended_at = None;
    after.failure_code = Some(code.as_str().to_owned());
    after.failure = Some(detail.to_owned());
    let reopened = before.status == Status::Delivered.as_str();
    if reopened {
        ledger::PURCHASES_OPEN.clone_into(&mut after.held_in);
    }
    if !purchases::change(tx, before, &after).await? {
        return Ok(false);
    }
    if reopened {
        money::unspend(tx, before).await?;
    }
    // What is bought may be what cannot be read.
    let (what, category) = match Item::of(before) {
        Ok(item) => (item.describe(), item.category()),
        Err(_) => (format!("{} {}", before.kind, before.subject), "infra"),
    };
    let said = format!("{detail}; it waits for the operator");
    log(tx, before, &what, category, Some(&said)).await?;
    tracing::error!(purchase.id = %before.id, kind = before.kind, subject = before.subject, detail,
        "a purchase needs the operator");
    Ok(true)
}

fn ended(tx: &Tx, before: &Purchase, status: Status) -> Purchase {
    let mut after = before.clone();
    status.as_str().clone_into(&mut after.status);
    after.private = None;
    after.ended_at = Some(tx.at);
    after
}

/// The answer for good, to whoever paid and to repeats. An answer that was given stays.
async fn answer_in(
    tx: &mut Tx,
    purchase: &Purchase,
    status: &'static str,
    answer: &Answer,
) -> Result<(), Error> {
    let Some(sale) = purchase.sale else { return Ok(()) };
    let payer = orders::payer(&mut tx.conn, sale).await?;
    let payer = payer.ok_or_else(|| Error::internal("a purchase's sale is gone"))?;
    if payer.answer_status != 0 {
        if payer.status != "reversed" {
            orders::mark(tx, sale, status).await?;
        }
        return Ok(());
    }
    orders::finish(tx, sale, status, answer.status, &answer.body).await?;
    if let Some(idem) = purchase.idem.filter(|_| status == "delivered")
        && let idempotency::Claim::New = idempotency::claim(tx, &idem).await?
    {
        let stored =
            StoredAnswer { status: answer.status, body: answer.body.clone(), fingerprint: idem.fingerprint };
        idempotency::store(tx, &idem, &stored).await?;
    }
    Ok(())
}

/// The line of money that people read.
async fn record(tx: &mut Tx, purchase: &Purchase, item: &Item) -> Result<(), Error> {
    let order = match purchase.sale {
        Some(sale) => orders::order(&mut tx.conn, sale).await?,
        None => None,
    };
    let text = |value: Option<&String>| value.map_or(Value::Null, |text| Value::from(text.as_str()));
    let protocol = if order.is_some() { "x402" } else { "credits" };
    let metadata: Map<String, Value> = [
        ("protocol", Value::from(protocol)),
        ("orderId", text(order.as_ref().map(|order| &order.order_id))),
        ("resource", text(order.as_ref().map(|order| &order.resource))),
        ("payer", text(order.as_ref().map(|order| &order.payer))),
        ("purchaseId", Value::from(purchase.id.to_string())),
        ("kind", Value::from(purchase.kind.as_str())),
    ]
    .map(|(name, value)| (name.to_owned(), value))
    .into_iter()
    .collect();
    let agent = if purchase.sale.is_some() { purchase.agent } else { purchase.payer_agent };
    let line = Transaction {
        id: TransactionId::from(otonix_sdk::clock::new_id()),
        kind: "debit".to_owned(),
        amount: MicroUsd::from_micros(purchase.price),
        currency: "USDC".to_owned(),
        description: Some(item.describe()),
        status: "completed".to_owned(),
        from_address: None,
        to_address: None,
        tx_hash: None,
        metadata: Some(metadata.into()),
        agent_id: Some(agent).filter(|id| !id.is_nil()).map(AgentId::from),
        created_at: tx.at,
    };
    Ok(transactions::insert(tx, &line, Reporter { owner: purchase.owner, by_server: true }).await?)
}

/// A line in the log of the agent that it is for.
///
/// # Errors
/// Store errors.
pub async fn log(
    tx: &mut Tx,
    purchase: &Purchase,
    what: &str,
    category: &str,
    failure: Option<&str>,
) -> Result<(), Error> {
    let Some(state) = agents::states_of(&mut tx.conn, &[purchase.agent]).await?.pop() else { return Ok(()) };
    let details = failure.map(str::to_owned);
    let mut line = ActionRow::by_server(&state, category, what, details, tx.at);
    if failure.is_some() {
        "failed".clone_into(&mut line.status);
    }
    actions::insert(tx, &[line]).await?;
    Ok(())
}

/// Why a purchase that nothing was sent for is not carried out any more: its payment left the chain, or whom it is for
/// was killed or has no key left. (A domain is renewed all the same for an agent whose key was changed.)
///
/// # Errors
/// Store errors.
pub async fn objection(tx: &mut Tx, purchase: &Purchase) -> Result<Option<(ErrorCode, &'static str)>, Error> {
    if let Some(sale) = purchase.sale
        && orders::payer(&mut tx.conn, sale).await?.is_some_and(|payer| payer.status == "reversed")
    {
        return Ok(Some((ErrorCode::PaymentFailed, "its payment left the chain")));
    }
    if purchase.agent.is_nil() {
        return Ok(None);
    }
    let state = agents::lock_state(tx, purchase.agent).await?;
    if state.is_none_or(|state| state.killed) {
        return Ok(Some((ErrorCode::AgentKilled, "the agent that it was for was killed")));
    }
    if purchase.kind != "renewal" && !agents::has_key(&mut tx.conn, purchase.agent).await? {
        return Ok(Some((ErrorCode::RevokedKey, "the agent that it was for has no key any more")));
    }
    Ok(None)
}

/// When a purchase is due again, and nothing else; `false` when it is not (any more) where `before` has it.
///
/// # Errors
/// Store errors.
pub async fn postpone_in(tx: &mut Tx, before: &Purchase, until: DateTime<Utc>) -> Result<bool, Error> {
    let mut after = before.clone();
    after.next_at = until;
    Ok(purchases::change(tx, before, &after).await?)
}
