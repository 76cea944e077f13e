//! Booking a payment: one transaction takes the transfer for its one use, delivers, writes the ledger, and keeps the
//! answer. It either happens whole or not at all, and never twice.

use std::time::Duration;

use chrono::{DateTime, Utc};
use otonix_sdk::api::payments::PaymentReceipt;
use otonix_sdk::api::records::Transaction;
use otonix_sdk::chain::usdc::TransferLog;
use otonix_sdk::chain::{Block, EvmAddress};
use otonix_sdk::error::ErrorCode;
use otonix_sdk::ids::{AgentId, TransactionId};
use otonix_sdk::money::MicroUsd;
use otonix_sdk::x402::network::caip2;
use serde_json::{Map, Value};
use uuid::Uuid;

use crate::error::Error;
use crate::service::payments::goods::{self, Answer, Delivered, Goods};
use crate::service::purchases::money::{self, Back};
use crate::service::purchases::open::Payment;
use crate::store::idempotency::{self, Idem, StoredAnswer};
use crate::store::orders::{self, NewSale, Payer, Sold};
use crate::store::receipts::{self, Receipt};
use crate::store::transactions::{self, Reporter};
use crate::store::writer::Tx;
use crate::store::{keys, ledger};

/// A transfer to the treasury that the chain has.
#[derive(Debug, Clone)]
pub struct Arrived {
    /// The chain.
    pub chain: u64,
    /// The transaction.
    pub tx_hash: [u8; 32],
    /// The log's place within the transaction.
    pub log_index: u64,
    /// The block.
    pub block_number: u64,
    /// The block's hash.
    pub block_hash: [u8; 32],
    /// The block's time, seconds since 1970.
    pub block_time: u64,
    /// Who paid.
    pub from: EvmAddress,
    /// Who was paid.
    pub to: EvmAddress,
    /// How much.
    pub amount: MicroUsd,
}

/// A number that fits, or the end of the range: blocks and times never come near it.
pub fn signed(number: u64) -> i64 {
    i64::try_from(number).unwrap_or(i64::MAX)
}

impl Arrived {
    /// A transfer as a transaction's receipt shows it, at its place `index` there; none when it is more than there is.
    pub fn of(chain: u64, index: usize, log: &TransferLog, block: &Block) -> Option<Self> {
        Some(Self {
            chain,
            tx_hash: log.tx_hash.0,
            log_index: index as u64,
            block_number: block.number,
            block_hash: block.hash.0,
            block_time: block.timestamp,
            from: log.from,
            to: log.to,
            amount: goods::micros(log.value)?,
        })
    }

    /// The receipt that the payer gets.
    pub fn receipt(&self, order_id: &str, resource: &str, scheme: &str, at: DateTime<Utc>) -> PaymentReceipt {
        PaymentReceipt {
            order_id: order_id.to_owned(),
            resource: resource.to_owned(),
            amount: self.amount,
            currency: "USDC".to_owned(),
            network: caip2(self.chain),
            payer: self.from.to_string(),
            pay_to: self.to.to_string(),
            tx_hash: self.hash_text(),
            scheme: scheme.to_owned(),
            settled_at: at,
        }
    }

    /// The row of this transfer, used so.
    pub fn row(&self, kind: &str, agent: Uuid, sale: Uuid) -> Receipt {
        Receipt {
            chain: signed(self.chain),
            tx_hash: self.tx_hash,
            log_index: signed(self.log_index),
            kind: kind.to_owned(),
            status: "granted".to_owned(),
            block_number: signed(self.block_number),
            block_hash: self.block_hash,
            block_time: signed(self.block_time),
            from: self.from.to_string(),
            to: self.to.to_string(),
            amount: self.amount.micros(),
            agent,
            sale,
            missing_since: None,
        }
    }

    /// The transaction, as it is written.
    pub fn hash_text(&self) -> String {
        format!("0x{}", hex::encode(self.tx_hash))
    }
}

/// What a payment is for.
#[derive(Debug, Clone)]
pub struct SoldFor {
    /// The order's id.
    pub order_id: String,
    /// Its SHA-256.
    pub order_hash: [u8; 32],
    /// `exact` or `otonix-order`.
    pub scheme: &'static str,
    /// Method and path.
    pub resource: String,
    /// What the order was for.
    pub binding: [u8; 32],
    /// What is sold.
    pub goods: Goods,
    /// What must not be kept beyond its end, JSON.
    pub private: Option<String>,
    /// What it cost.
    pub price: MicroUsd,
    /// The request's idempotency key.
    pub idem: Option<Idem>,
    /// The key whose owner proved the payer; it must still be active.
    pub key: Option<Uuid>,
}

/// A transfer cannot be used any more, since it was used so.
pub fn already_used(kind: &str) -> Error {
    match kind {
        "deposit" => Error::conflict(
            ErrorCode::PaymentAlreadyCredited,
            "this transfer was credited as a deposit to the agent whose wallet sent it",
        ),
        _ => Error::conflict(ErrorCode::PaymentAlreadyUsed, "this transfer has paid for something else"),
    }
}

/// Books a payment and delivers what it paid for. A repeat gets what was answered the first time.
///
/// # Errors
/// 409 when the order or the transfer was used otherwise; store errors.
pub async fn sell_in(tx: &mut Tx, sold: &SoldFor, arrived: &Arrived) -> Result<Sold, Error> {
    if let Some(key) = sold.key {
        let known = keys::by_id(tx, key).await?;
        if known.is_none_or(|key| key.revoked) {
            return Err(Error::Unauthenticated {
                code: ErrorCode::RevokedKey,
                detail: "this API key was revoked",
            });
        }
    }
    let row = row_for(sold, arrived);
    let taken = receipts::insert(tx, &row).await?;
    sell_for(tx, sold, arrived, &row, taken).await
}

/// The row of a transfer that pays for a new sale.
pub fn row_for(sold: &SoldFor, arrived: &Arrived) -> Receipt {
    let agent = sold.goods.agent().map_or(Uuid::nil(), AgentId::uuid);
    let kind = if sold.scheme == "exact" { "exact" } else { "order" };
    arrived.row(kind, agent, otonix_sdk::clock::new_id())
}

/// The same for a transfer whose row was tried to be written; `taken` when it was.
///
/// # Errors
/// As [`sell_in`].
pub async fn sell_for(
    tx: &mut Tx,
    sold: &SoldFor,
    arrived: &Arrived,
    row: &Receipt,
    taken: bool,
) -> Result<Sold, Error> {
    let (sale, agent) = (row.sale, row.agent);
    let mut from = ledger::TREASURY;
    if !taken {
        if let Some(known) = known(tx, sold, arrived).await? {
            return Ok(known);
        }
        if !receipts::match_up(tx, row).await? {
            let used = receipts::of_transaction(&mut tx.conn, row.chain, row.tx_hash).await?;
            let used = used.iter().find(|other| other.log_index == row.log_index);
            if used.is_some_and(|other| other.kind == "unmatched") {
                // It had left the chain, and is not booked again yet.
                return Err(Error::Busy {
                    code: ErrorCode::ChainUnavailable,
                    retry_after: Duration::from_secs(2),
                    detail: "the transfer is on its way back into the chain; present the same payment again",
                });
            }
            return Err(already_used(used.map_or("", |other| other.kind.as_str())));
        }
        from = ledger::UNMATCHED;
    }
    let receipt = arrived.receipt(&sold.order_id, &sold.resource, sold.scheme, tx.at);
    let mut payer = Payer {
        sale,
        status: "pending".to_owned(),
        address: receipt.payer.clone(),
        chain: row.chain,
        tx_hash: arrived.tx_hash,
        amount: arrived.amount.micros(),
        agent,
        owner: sold.goods.owner(),
        answer_status: 0,
    };
    let payment = Payment { payer: &payer, from, receipt: &receipt };
    let (answer, status, owner, purchase) = match goods::deliver(tx, sold, &payment).await? {
        Delivered::Done { answer, owner, purchase } => (answer, "delivered", owner, purchase),
        Delivered::Waits { purchase, owner } => (Answer::pending(), "pending", owner, Some(purchase)),
        Delivered::Impossible { code, detail, owner } => {
            payer.owner = owner;
            let back = return_money(tx, sold, from, &payer, &detail).await?;
            let said = format!("{detail}; {}", back.describe(arrived.amount));
            (goods::refusal(code, &said), back.order_status(), owner, None)
        }
    };
    let new = NewSale {
        id: sale,
        order_hash: sold.order_hash,
        order_id: sold.order_id.clone(),
        scheme: sold.scheme,
        resource: sold.resource.clone(),
        binding: sold.binding,
        goods: serde_json::to_value(&sold.goods).map_err(|why| Error::internal(why.to_string()))?,
        status,
        price: sold.price.micros(),
        amount: arrived.amount.micros(),
        chain: row.chain,
        payer: receipt.payer.clone(),
        pay_to: receipt.pay_to.clone(),
        tx_hash: arrived.tx_hash,
        agent,
        owner,
        answer_status: answer.status,
        answer: answer.body.clone(),
    };
    let line = line_of(&receipt, sold.goods.name(), (sale, purchase), agent, tx.at);
    let line = line.map(|line| (line, Reporter { owner, by_server: true }));
    if !orders::insert(tx, &new, line).await? {
        return Err(Error::conflict(ErrorCode::OrderAlreadyPaid, "this order was paid by another payment"));
    }
    if let Some(idem) = sold.idem.filter(|_| status == "delivered") {
        keep(tx, &idem, &answer).await?;
    }
    Ok(Sold {
        id: sale,
        order_id: receipt.order_id,
        binding: sold.binding,
        tx_hash: arrived.tx_hash,
        payer: receipt.payer,
        status: answer.status,
        answer: answer.body,
    })
}

/// The same order paid by the same transfer.
async fn known(tx: &mut Tx, sold: &SoldFor, arrived: &Arrived) -> Result<Option<Sold>, Error> {
    let known = orders::sold(&mut tx.conn, sold.order_hash).await?;
    Ok(known.filter(|known| known.tx_hash == arrived.tx_hash && known.binding == sold.binding))
}

async fn keep(tx: &mut Tx, idem: &Idem, answer: &Answer) -> Result<(), Error> {
    if let idempotency::Claim::New = idempotency::claim(tx, idem).await? {
        let stored =
            StoredAnswer { status: answer.status, body: answer.body.clone(), fingerprint: idem.fingerprint };
        idempotency::store(tx, idem, &stored).await?;
    }
    Ok(())
}

/// Money that arrived and buys nothing: owed back, or credits of whoever wanted to buy at a vendor.
async fn return_money(
    tx: &mut Tx,
    sold: &SoldFor,
    from: &'static str,
    payer: &Payer,
    detail: &str,
) -> Result<Back, Error> {
    let reason = format!("{}: {detail}", sold.resource);
    match sold.goods {
        Goods::Topup { .. } => money::owe(tx, from, payer.amount, payer, true, &reason).await,
        Goods::Purchase { .. } | Goods::Void { .. } => {
            money::give_back(tx, from, payer.amount, payer, true, &reason).await
        }
    }
}

/// The line of money that people read.
///
/// # Errors
/// Store errors.
pub async fn record(
    tx: &mut Tx,
    receipt: &PaymentReceipt,
    what: &str,
    (sale, purchase): (Uuid, Option<Uuid>),
    agent: Uuid,
    owner: Uuid,
) -> Result<(), Error> {
    match line_of(receipt, what, (sale, purchase), agent, tx.at) {
        Some(line) => Ok(transactions::insert(tx, &line, Reporter { owner, by_server: true }).await?),
        None => Ok(()),
    }
}

/// That line; none when no money moved.
fn line_of(
    receipt: &PaymentReceipt,
    what: &str,
    (sale, purchase): (Uuid, Option<Uuid>),
    agent: Uuid,
    at: DateTime<Utc>,
) -> Option<Transaction> {
    if receipt.amount == MicroUsd::ZERO {
        return None;
    }
    let purchase = purchase.map_or(Value::Null, |id| Value::from(id.to_string()));
    let sale_id = if sale.is_nil() { Value::Null } else { Value::from(sale.to_string()) };
    let metadata: Map<String, Value> = [
        ("protocol", if sale.is_nil() { receipt.scheme.as_str() } else { "x402" }),
        ("scheme", receipt.scheme.as_str()),
        ("orderId", receipt.order_id.as_str()),
        ("resource", receipt.resource.as_str()),
        ("payer", receipt.payer.as_str()),
    ]
    .into_iter()
    .map(|(name, value)| (name.to_owned(), if value.is_empty() { Value::Null } else { Value::from(value) }))
    .chain([("saleId".to_owned(), sale_id), ("purchaseId".to_owned(), purchase)])
    .collect();
    Some(Transaction {
        id: TransactionId::from(otonix_sdk::clock::new_id()),
        kind: "credit".to_owned(),
        amount: receipt.amount,
        currency: "USDC".to_owned(),
        description: Some(what.to_owned()),
        status: "completed".to_owned(),
        from_address: Some(receipt.payer.clone()),
        to_address: Some(receipt.pay_to.clone()),
        tx_hash: Some(receipt.tx_hash.clone()),
        metadata: Some(metadata.into()),
        agent_id: Some(agent).filter(|id| !id.is_nil()).map(AgentId::from),
        created_at: at,
    })
}
