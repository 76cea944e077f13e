//! What model calls cost: a table of prices per million tokens, and the exact cost of one call.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};

use crate::money::{MAX_COST, MicroUsd};

/// Prices of one model, USDC per million tokens.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct ModelPrice {
    /// Input tokens.
    pub input: MicroUsd,
    /// Output tokens.
    pub output: MicroUsd,
    /// Input tokens read from a cache; the input price when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cached: Option<MicroUsd>,
}

/// Prices by model name.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct PriceTable(BTreeMap<String, ModelPrice>);

const fn price(input: i64, output: i64, cached: i64) -> ModelPrice {
    ModelPrice {
        input: MicroUsd::from_micros(input),
        output: MicroUsd::from_micros(output),
        cached: Some(MicroUsd::from_micros(cached)),
    }
}

/// The vendors' public list prices built in, in micro-USDC per million tokens.
const BUILT_IN: [(&str, ModelPrice); 8] = [
    ("claude-opus-4-6", price(5_000_000, 25_000_000, 500_000)),
    ("claude-opus-4-5", price(5_000_000, 25_000_000, 500_000)),
    ("claude-sonnet-4-5", price(3_000_000, 15_000_000, 300_000)),
    ("claude-haiku-4-5", price(1_000_000, 5_000_000, 100_000)),
    ("gpt-5", price(1_250_000, 10_000_000, 125_000)),
    ("gpt-5-mini", price(250_000, 2_000_000, 25_000)),
    ("gemini-2.5-pro", price(1_250_000, 10_000_000, 125_000)),
    ("gemini-2.5-flash", price(300_000, 2_500_000, 30_000)),
];

impl Default for PriceTable {
    fn default() -> Self {
        Self(BUILT_IN.iter().map(|(model, price)| ((*model).to_owned(), *price)).collect())
    }
}

impl PriceTable {
    /// A table of given prices.
    pub fn new(prices: BTreeMap<String, ModelPrice>) -> Self {
        Self(prices)
    }

    /// The prices, by model.
    pub fn prices(&self) -> &BTreeMap<String, ModelPrice> {
        &self.0
    }

    /// The list cost of a call, rounded up to the micro-USDC; `None` for an unknown model or a cost beyond
    /// what one record may cost. `tokens_cached` of the input tokens were read from a cache.
    pub fn cost(&self, model: &str, tokens_in: i64, tokens_out: i64, tokens_cached: i64) -> Option<MicroUsd> {
        let price = self.0.get(model)?;
        let cached_price = price.cached.unwrap_or(price.input);
        let cached = tokens_cached.clamp(0, tokens_in.max(0));
        let part = |tokens: i64, price: MicroUsd| i128::from(tokens.max(0)) * i128::from(price.micros());
        let total = part(tokens_in - cached, price.input)
            + part(cached, cached_price)
            + part(tokens_out, price.output);
        let micros = i64::try_from((total + 999_999) / 1_000_000).ok()?;
        Some(MicroUsd::from_micros(micros)).filter(|cost| *cost <= MAX_COST)
    }

    /// Changes whenever a price changes: the first 16 hex digits of the table's SHA-256.
    pub fn version(&self) -> String {
        let mut hash = Sha256::new();
        for (model, price) in &self.0 {
            let cached = price.cached.map_or(-1, MicroUsd::micros);
            hash.update(format!("{model}\n{} {} {cached}\n", price.input.micros(), price.output.micros()));
        }
        hex::encode(&hash.finalize()[..8])
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_call_costs_its_tokens_rounded_up() {
        let table = PriceTable::default();
        for (tokens, micros) in [
            ((1_000_000, 0, 0), 5_000_000),
            ((0, 1_000_000, 0), 25_000_000),
            ((1_000_000, 0, 1_000_000), 500_000),
            ((1, 0, 1), 1),
            ((0, 0, 0), 0),
            ((1, 0, 500), 1),
        ] {
            let (tokens_in, tokens_out, cached) = tokens;
            let cost = table.cost("claude-opus-4-6", tokens_in, tokens_out, cached);
            assert_eq!(cost, Some(MicroUsd::from_micros(micros)), "{tokens:?}");
        }
        assert_eq!(table.cost("nobody", 1, 1, 0), None);
        assert_eq!(table.cost("claude-opus-4-6", i64::MAX, i64::MAX, 0), None);
    }

    #[test]
    fn the_version_follows_the_prices() {
        let table = PriceTable::default();
        let mut other = table.clone();
        other.0.insert("x".to_owned(), price(1, 1, 1));
        assert_ne!(table.version(), other.version());
        assert_eq!(table.version(), PriceTable::default().version());
    }
}
