//! Buying credits for an agent: anyone may, for any agent.

use otonix_sdk::api::payments::TopUp;
use otonix_sdk::ids::AgentId;
use otonix_sdk::money::MicroUsd;

use crate::app::App;
use crate::error::Error;
use crate::service::agent_state;
use crate::service::payments::Sale;
use crate::service::payments::goods::Goods;

/// What one top-up may be.
const LEAST: MicroUsd = MicroUsd::from_micros(10_000);
const MOST: MicroUsd = MicroUsd::from_usdc(10_000);

/// What is sold: the price is the amount.
///
/// # Errors
/// 400, 404, 409 `agent_killed`.
pub async fn offer(app: &App, id: AgentId, body: TopUp) -> Result<Sale, Error> {
    let price = body.amount.get();
    if !(LEAST..=MOST).contains(&price) {
        return Err(Error::invalid("amount", format!("must be {LEAST} to {MOST} USDC")));
    }
    let state = agent_state(app, id).await?;
    if state.killed {
        return Err(Error::agent_killed(id.uuid()));
    }
    Ok(Sale {
        goods: Goods::Topup { agent: id },
        price,
        description: "Credits for an Otonix agent".to_owned(),
        private: None,
    })
}
