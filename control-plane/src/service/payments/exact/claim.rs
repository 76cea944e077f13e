//! The claim of a signed payment: a row that is unique by payer and nonce, committed before anything is done for it.

use std::sync::Arc;

use otonix_sdk::error::ErrorCode;
use otonix_sdk::x402::eip3009::Transfer;
use uuid::Uuid;

use super::presented::Checked;
use super::{LOOK_BACK, refuse};
use crate::app::App;
use crate::error::Error;
use crate::service::payments::book::signed;
use crate::service::payments::desk::Pen;
use crate::service::payments::{Asked, Paid, Payments, Sale, Stop, order_id, outcome, used_elsewhere};
use crate::store::StoreError;
use crate::store::payments::{self, Payment};
use crate::store::purchases;
use crate::store::settlements::Settlement;
use crate::store::writer::{Target, Tx};
use crate::upstream::chain::Ready;

pub(super) async fn claim_of(
    app: &App,
    parts: &Payments,
    transfer: &Transfer,
) -> Result<Option<Payment>, Error> {
    let chain = signed(parts.settings.chain_id);
    let (asset, from) = (parts.settings.asset.to_string(), transfer.from.to_string());
    let nonce = transfer.nonce;
    let found = app.db.read(move |conn| {
        Box::pin(async move { payments::by_nonce(conn, chain, &asset, &from, nonce).await })
    });
    Ok(found.await?)
}

/// Commits a claim; with it what settles it, where this replica gives the account's numbers out and need ask nobody
/// anything. `None` when its nonce, its order or its idempotency key was taken before.
pub(super) async fn claim_and_sign(
    app: &App,
    parts: &Arc<Payments>,
    claim: &Payment,
) -> Result<Option<Option<Settlement>>, Error> {
    let pen = if claim.status == "claimed" { Pen::at_hand(app, parts) } else { None };
    let claim_by = |target| {
        let (pen, claim) = (pen.clone(), claim.clone());
        app.writer.apply(target, move |tx| Box::pin(async move { claim_in(tx, claim, pen.as_ref()).await }))
    };
    match claim_by(Target::Single).await {
        // Perhaps only the connection had died unused. If not, the claim is found where this one would be; and it may be
        // there whatever the second attempt comes to.
        Err(first @ Error::Store(StoreError::Unavailable(_))) => {
            claim_by(Target::Shared).await.map_err(|_| first)
        }
        done => done,
    }
}

/// Takes a payment, unless what it is for is being bought already: nobody is charged for what only one can have.
async fn claim_in(
    tx: &mut Tx,
    claim: Payment,
    pen: Option<&Pen>,
) -> Result<Option<Option<Settlement>>, Error> {
    let name = claim.subject.as_deref().and_then(|subject| subject.strip_prefix("domain "));
    if let Some(name) = name
        && purchases::is_domain_live(&mut tx.conn, name).await?
    {
        return Ok(None);
    }
    if let Some(pen) = pen {
        let signed = Payment { status: "sent".to_owned(), ..claim.clone() };
        if let Some(last) = pen.remembered()
            && let Some(done) = claim_after(tx, &signed, pen, Some(last)).await?
        {
            return Ok(Some(Some(done)));
        }
        // Somebody else has given a number out, or the claim was there before.
        if let Some(last) = pen.last_number(tx).await?
            && let Some(done) = claim_after(tx, &signed, pen, last).await?
        {
            return Ok(Some(Some(done)));
        }
    }
    Ok(payments::claim(tx, &claim).await?.then_some(None))
}

/// Takes it with the account's number after the last one; `None` when it was taken before, or that was not the last.
async fn claim_after(
    tx: &mut Tx,
    claim: &Payment,
    pen: &Pen,
    last: Option<i64>,
) -> Result<Option<Settlement>, Error> {
    let number = pen.next_after(last);
    let Some(row) = pen.sign(tx, number, std::slice::from_ref(claim))?.pop() else { return Ok(None) };
    if !payments::claim_signed(tx, claim, &row, pen.lease(), last).await? {
        return Ok(None);
    }
    pen.gave(number);
    Ok(Some(row))
}

pub(super) fn new_claim(
    app: &App,
    parts: &Payments,
    asked: &Asked,
    sale: &Sale,
    checked: &Checked,
    by_contract: bool,
    ready: &Ready,
) -> Result<Payment, Stop> {
    let goods = serde_json::to_value(&sale.goods).map_err(|why| Error::internal(why.to_string()))?;
    let Ok(amount) = i64::try_from(checked.transfer.value) else {
        return refuse(ErrorCode::PaymentInvalid, "the payment is larger than any price");
    };
    Ok(Payment {
        id: otonix_sdk::clock::new_id(),
        chain: signed(parts.settings.chain_id),
        asset: parts.settings.asset.to_string(),
        from: checked.transfer.from.to_string(),
        nonce: checked.transfer.nonce,
        status: "claimed".to_owned(),
        version: i64::from(checked.version),
        order_hash: order_id::hash_of(&checked.order_id),
        order_id: checked.order_id.clone(),
        binding: asked.binding,
        resource: asked.resource.clone(),
        idem: asked.idem,
        goods,
        private: sale.private.clone(),
        subject: sale.goods.exclusive(),
        agent: sale.goods.agent().map_or(Uuid::nil(), |agent| agent.uuid()),
        price: signed(checked.price),
        amount,
        pay_to: checked.transfer.to.to_string(),
        valid_after: signed(checked.transfer.valid_after),
        valid_before: signed(checked.transfer.valid_before),
        signature: checked.signature.clone(),
        by_contract,
        facilitator_body: checked.facilitator_body.clone(),
        from_block: signed(ready.head.number.saturating_sub(LOOK_BACK)),
        failure: None,
        created_at: app.clock.now(),
    })
}

pub(super) async fn join(app: &App, parts: &Payments, asked: &Asked, claim: Payment) -> Result<Paid, Stop> {
    if claim.binding != asked.binding {
        return Err(used_elsewhere().into());
    }
    outcome(app, parts, claim).await
}

pub(super) fn under_way() -> Stop {
    let detail = "somebody is paying for the same thing; nothing was charged";
    Error::conflict(ErrorCode::PurchaseUnderWay, detail).into()
}

pub(super) fn order_or_key_taken(asked: &Asked) -> Stop {
    let (code, detail) = if asked.idem.is_some() {
        (
            ErrorCode::IdempotencyInProgress,
            "another payment for this Idempotency-Key, or for this order, is under way",
        )
    } else {
        (ErrorCode::OrderAlreadyPaid, "this order is being paid by another payment")
    };
    Error::conflict(code, detail).into()
}
