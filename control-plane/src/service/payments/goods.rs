//! What is sold, in a form that outlives the request: whoever finishes a payment, after a crash too, can deliver it.

use otonix_sdk::api::payments::{PaymentReceipt, ToppedUp};
use otonix_sdk::error::ErrorCode;
use otonix_sdk::ids::AgentId;
use otonix_sdk::money::MicroUsd;
use serde::{Deserialize, Serialize};
use serde_json::json;
use uuid::Uuid;

use crate::error::Error;
use crate::store::writer::Tx;
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
}

/// The answer of a sale: HTTP status and JSON.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Answer {
    /// The status.
    pub status: u16,
    /// The body.
    pub body: String,
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
        }
    }

    /// In the ledger and the record of transactions.
    pub const fn name(&self) -> &'static str {
        match self {
            Self::Topup { .. } => "topup",
        }
    }
}

/// Delivers, in the transaction that books the payment. `from` is the account that the money is booked on.
///
/// # Errors
/// Store errors.
pub async fn deliver(
    tx: &mut Tx,
    goods: &Goods,
    receipt: &PaymentReceipt,
    from: &'static str,
    sale: Uuid,
) -> Result<Delivered, Error> {
    match goods {
        Goods::Topup { agent } => topup(tx, *agent, receipt, from, sale).await,
    }
}

async fn topup(
    tx: &mut Tx,
    agent: AgentId,
    receipt: &PaymentReceipt,
    from: &'static str,
    sale: Uuid,
) -> Result<Delivered, Error> {
    let impossible = |owner, code, detail: &str| Delivered::Impossible {
        code,
        detail: format!("{detail}; the payment is noted as a refund that is due"),
        owner,
    };
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
    Ok(Delivered::Done { answer: Answer { status: 201, body }, owner: state.owner.uuid() })
}

/// The answer to who paid for something that cannot be delivered.
pub fn refusal(code: ErrorCode, detail: &str) -> Answer {
    Answer { status: 409, body: json!({ "code": code.as_str(), "detail": detail }).to_string() }
}

/// An amount of base units as credits; `None` above what the ledger holds.
pub fn micros(units: u128) -> Option<MicroUsd> {
    i64::try_from(units).ok().map(MicroUsd::from_micros)
}
