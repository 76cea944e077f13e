//! Keeping the agent alive: when its credits fall, the wallet buys more. One top-up at a time, in every tier.

use std::time::Duration;

use serde_json::json;

use super::{Asker, Client, Fetch, Fetched, PayError, Request, State};
use crate::money::MicroUsd;
use crate::standing::SurvivalTier;

/// The least that the contract lets one buy.
const LEAST: MicroUsd = MicroUsd::from_micros(10_000);
/// The most.
const MOST: MicroUsd = MicroUsd::from_usdc(10_000);

/// When credits are bought, and how many.
#[derive(Debug, Clone, Copy)]
pub struct TopupRules {
    /// When credits fall below this.
    pub below: MicroUsd,
    /// How many.
    pub amount: MicroUsd,
}

/// How long to wait after so many failures in a row.
pub fn pause_after(failures: u32) -> Duration {
    Duration::from_secs(5).saturating_mul(1 << failures.min(7)).min(Duration::from_secs(300))
}

/// Whether credits should be bought. A balance that is not known buys nothing.
pub fn is_due(rules: &TopupRules, credits: MicroUsd, known: bool) -> bool {
    known && rules.amount > MicroUsd::ZERO && credits < rules.below
}

impl Client {
    /// Buys credits for the agent: as much as is wished for and the wallet and its rules allow, at least 0.01 USDC.
    /// A top-up that is not over is waited for instead. `None`: there is nothing to buy with.
    ///
    /// # Errors
    /// [`PayError`]; nothing was signed.
    pub async fn topup(&self, wish: MicroUsd, tier: SurvivalTier) -> Result<Option<Fetched>, PayError> {
        if let Some(id) = self.open_topup() {
            return Ok(self.wait(id).await);
        }
        let (balance, _) = self.balance().await?;
        let spendable = balance.saturating_sub(self.outstanding()).saturating_sub(self.rules().reserve);
        let amount = wish.min(spendable).min(self.topup_left()).min(MOST);
        if amount < LEAST {
            return Ok(None);
        }
        let body = json!({ "amount": amount.to_string() }).to_string();
        let request = Request {
            method: "POST".to_owned(),
            url: format!("{}{}", self.rules().server, self.rules().topup_path),
            headers: vec![("content-type".to_owned(), "application/json".to_owned())],
            body: body.into_bytes(),
        };
        let fetch = Fetch { request, max_amount: amount, key: None, asker: Asker::Topup, tier };
        self.fetch(fetch).await.map(Some)
    }
}

/// Whether a top-up has bought what it paid for.
pub fn succeeded(fetched: &Fetched) -> bool {
    fetched.payment.as_ref().is_some_and(|payment| payment.state == State::Settled)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn credits_are_bought_below_the_bound_when_they_are_known() {
        let rules = TopupRules { below: MicroUsd::from_usdc(12), amount: MicroUsd::from_usdc(10) };
        let due = |micros: i64, known| is_due(&rules, MicroUsd::from_micros(micros), known);
        assert!(due(11_999_999, true) && due(-5, true));
        assert!(!due(12_000_000, true) && !due(0, false));
        let off = TopupRules { amount: MicroUsd::ZERO, ..rules };
        assert!(!is_due(&off, MicroUsd::ZERO, true));
    }

    #[test]
    fn failures_make_the_pauses_longer_up_to_a_bound() {
        assert_eq!(pause_after(0), Duration::from_secs(5));
        assert_eq!(pause_after(3), Duration::from_secs(40));
        assert_eq!(pause_after(99), Duration::from_secs(300));
    }
}
