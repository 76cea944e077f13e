//! What is sold, in a form that outlives the request: whoever finishes a payment, after a crash too, can deliver it.

use otonix_sdk::api::payments::{PaymentReceipt, ToppedUp};
use otonix_sdk::error::ErrorCode;
use otonix_sdk::ids::AgentId;
use otonix_sdk::money::MicroUsd;
use serde::{Deserialize, Serialize};
use serde_json::json;
use uuid::Uuid;

use crate::error::Error;
use crate::service::payments::book::SoldFor;
use crate::service::purchases::book::Wanted;
use crate::service::purchases::item::Item;
use crate::service::purchases::open::{self, Opened};
use crate::store::writer::{Target, Tx};
use crate::store::{agents, ledger};

/// Something that is sold.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
pub enum Goods {
    /// Credits for an agent; the price is the amount, and what arrives is what is credited.
    Topup {
        /// Whose.
        agent: AgentId,
    },
    /// Something that is bought at a vendor once it is paid.
    Purchase {
        /// What.
        item: Item,
        /// Whom it is for.
        agent: Option<AgentId>,
        /// Whose it is, or nil.
        owner: Uuid,
    },
    /// What was asked for cannot be had any more, and its order was paid: the money is given back.
    Void {
        /// Why.
        code: String,
        /// In words.
        detail: String,
    },
}

/// The answer of a sale: HTTP status and JSON.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Answer {
    /// The status; 0 while what was paid for is not there yet.
    pub status: u16,
    /// The body.
    pub body: String,
}

impl Answer {
    /// None yet.
    pub const fn pending() -> Self {
        Self { status: 0, body: String::new() }
    }

    /// Whether there is none yet.
    pub const fn is_pending(&self) -> bool {
        self.status == 0
    }
}

/// What became of a delivery.
#[derive(Debug)]
pub enum Delivered {
    /// Done; the owner of the agent it is for.
    Done {
        /// The answer.
        answer: Answer,
        /// Whose agent it is for.
        owner: Uuid,
        /// The purchase at a vendor, if it is one.
        purchase: Option<Uuid>,
    },
    /// It is bought now.
    Waits {
        /// The purchase.
        purchase: Uuid,
        /// Whose it is, or nil.
        owner: Uuid,
    },
    /// It cannot be done any more; the money is owed back.
    Impossible {
        /// Why.
        code: ErrorCode,
        /// In words.
        detail: String,
        /// Whose agent it was for, or nil.
        owner: Uuid,
    },
}

impl Goods {
    /// The agent it is for.
    pub const fn agent(&self) -> Option<AgentId> {
        match self {
            Self::Topup { agent } => Some(*agent),
            Self::Purchase { agent, .. } => *agent,
            Self::Void { .. } => None,
        }
    }

    /// Which rows its booking locks.
    pub fn target(&self) -> Target {
        match self {
            Self::Topup { agent } => Target::Agent(agent.uuid()),
            // Its money may be given back to an agent that is known only then.
            Self::Purchase { .. } | Self::Void { .. } => Target::Alone,
        }
    }

    /// What no two payments may wait for at once.
    pub fn exclusive(&self) -> Option<String> {
        match self {
            Self::Topup { .. } | Self::Void { .. } => None,
            Self::Purchase { item, .. } => item.exclusive(),
        }
    }

    /// Whose it is, when that is known beforehand, or nil.
    pub const fn owner(&self) -> Uuid {
        match self {
            Self::Topup { .. } | Self::Void { .. } => Uuid::nil(),
            Self::Purchase { owner, .. } => *owner,
        }
    }

    /// In the ledger and the record of transactions.
    pub const fn name(&self) -> &'static str {
        match self {
            Self::Topup { .. } => "topup",
            Self::Purchase { item, .. } => item.kind(),
            Self::Void { .. } => "refund",
        }
    }
}

/// Delivers, in the transaction that books the payment, or begins to.
///
/// # Errors
/// Store errors.
pub async fn deliver(tx: &mut Tx, sold: &SoldFor, payment: &open::Payment<'_>) -> Result<Delivered, Error> {
    let (item, agent, owner) = match &sold.goods {
        Goods::Topup { agent } => {
            return topup(tx, *agent, payment.receipt, payment.from, payment.payer.sale).await;
        }
        Goods::Purchase { item, agent, owner } => (item.clone(), *agent, *owner),
        Goods::Void { code, detail } => {
            let code = ErrorCode::parse(code).unwrap_or(ErrorCode::PurchaseFailed);
            return Ok(Delivered::Impossible { code, detail: detail.clone(), owner: Uuid::nil() });
        }
    };
    let wanted = Wanted {
        item,
        private: sold.private.clone(),
        price: sold.price,
        agent: agent.map_or(Uuid::nil(), AgentId::uuid),
        owner,
        idem: sold.idem,
    };
    Ok(match open::by_sale(tx, &wanted, payment).await? {
        Opened::Waits(purchase) => Delivered::Waits { purchase, owner },
        Opened::Done(purchase, answer) => Delivered::Done { answer, owner, purchase: Some(purchase) },
        Opened::Impossible(code, detail) => Delivered::Impossible { code, detail, owner },
    })
}

async fn topup(
    tx: &mut Tx,
    agent: AgentId,
    receipt: &PaymentReceipt,
    from: &'static str,
    sale: Uuid,
) -> Result<Delivered, Error> {
    let impossible =
        |owner, code, detail: &str| Delivered::Impossible { code, detail: detail.to_owned(), owner };
    let Some(mut state) = agents::lock_state(tx, agent.uuid()).await? else {
        return Ok(impossible(Uuid::nil(), ErrorCode::NotFound, "the agent is gone"));
    };
    if state.killed {
        return Ok(impossible(state.owner.uuid(), ErrorCode::AgentKilled, "the agent was killed"));
    }
    state.funded = true;
    ledger::move_credits(tx, &mut state, "topup", from, receipt.amount, Some(sale.to_string())).await?;
    let body = ToppedUp {
        agent_id: agent,
        credited: receipt.amount,
        credits: state.credits,
        survival_tier: state.tier,
        receipt: receipt.clone(),
    };
    let body = serde_json::to_string(&body).map_err(|why| Error::internal(why.to_string()))?;
    let owner = state.owner.uuid();
    Ok(Delivered::Done { answer: Answer { status: 201, body }, owner, purchase: None })
}

/// The answer to who paid for something that cannot be delivered.
pub fn refusal(code: ErrorCode, detail: &str) -> Answer {
    Answer { status: 409, body: json!({ "code": code.as_str(), "detail": detail }).to_string() }
}

/// An amount of base units as credits; `None` above what the ledger holds.
pub fn micros(units: u128) -> Option<MicroUsd> {
    i64::try_from(units).ok().map(MicroUsd::from_micros)
}
