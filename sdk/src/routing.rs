//! Which model to call: a pure function of the agent's tier, its remaining budget, how much hangs on the call and how
//! long it may take, over a catalogue of models.
//!
//! The rules, in order; the first that leaves one model decides:
//! 1. **Budget.** A model fits when one reference call ([`CALL_TOKENS_IN`], [`CALL_TOKENS_OUT`]) costs no more than the
//!    remaining budget. When none fits, the cheapest of all is taken: a wrong price must not silence an agent.
//! 2. **Latency.** Of those, the ones that answer within `max_latency_ms`; when there is none, the fastest is taken.
//! 3. **Demand**, by tier and criticality:
//!
//!    | | low | normal | high |
//!    | --- | --- | --- | --- |
//!    | full | adequate | preferred | preferred |
//!    | conservation | cheapest | adequate | preferred |
//!    | critical | cheapest | cheapest | adequate |
//!    | terminated | cheapest | cheapest | cheapest |
//!
//!    *Preferred* is the agent's own model; when rules 1 or 2 put it aside, the strongest that is not dearer, else the
//!    cheapest. *Adequate* is the cheapest of at least [`ADEQUATE`] strength, else the strongest; never dearer than the
//!    preferred one while that is still in the choice. Equals are decided by price, then strength, then name.
//!
//! A preferred model that the catalogue does not know has no price: it is taken where the table says *preferred*,
//! the tier is `full` and no latency is asked for; else the catalogue decides without it.

use std::cmp::Reverse;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::api::local::ModelChoice;
use crate::money::MicroUsd;
use crate::prices::{ModelPrice, PriceTable};
use crate::standing::{SurvivalTier, UnknownName};

/// Input tokens of the reference call.
pub const CALL_TOKENS_IN: i64 = 8_000;
/// Output tokens of the reference call.
pub const CALL_TOKENS_OUT: i64 = 1_000;
/// Strength, of 100, from which on a model does for everyday work.
pub const ADEQUATE: u8 = 60;

/// How much hangs on a call.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Criticality {
    /// Nothing is lost by a poor answer.
    Low,
    /// Everyday work.
    #[default]
    Normal,
    /// Worth its price.
    High,
}

impl FromStr for Criticality {
    type Err = UnknownName;

    fn from_str(text: &str) -> Result<Self, UnknownName> {
        match text {
            "low" => Ok(Self::Low),
            "normal" => Ok(Self::Normal),
            "high" => Ok(Self::High),
            _ => Err(UnknownName),
        }
    }
}

/// A model as routing sees it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Model {
    /// As it is written in usage records.
    pub name: String,
    /// Per million tokens.
    pub price: ModelPrice,
    /// How long a reference call takes, typically.
    pub latency_ms: u32,
    /// 0 to 100, by the operator's judgement.
    pub strength: u8,
}

impl Model {
    /// What the reference call costs.
    pub fn call_cost(&self) -> MicroUsd {
        let part = |tokens: i64, price: MicroUsd| i128::from(tokens) * i128::from(price.micros().max(0));
        let total = part(CALL_TOKENS_IN, self.price.input) + part(CALL_TOKENS_OUT, self.price.output);
        MicroUsd::from_micros(i64::try_from((total + 999_999) / 1_000_000).unwrap_or(i64::MAX))
    }
}

/// The models to choose from.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Catalogue(Vec<Model>);

/// Latency and strength of the models in the built-in price table.
const BUILT_IN: [(&str, u32, u8); 8] = [
    ("claude-opus-4-6", 25_000, 100),
    ("claude-opus-4-5", 25_000, 97),
    ("claude-sonnet-4-5", 14_000, 88),
    ("claude-haiku-4-5", 6_000, 65),
    ("gpt-5", 30_000, 92),
    ("gpt-5-mini", 12_000, 62),
    ("gemini-2.5-pro", 22_000, 85),
    ("gemini-2.5-flash", 5_000, 55),
];

impl Default for Catalogue {
    fn default() -> Self {
        let table = PriceTable::default();
        let priced = |(name, latency_ms, strength): (&str, u32, u8)| {
            let price = *table.prices().get(name)?;
            Some(Model { name: name.to_owned(), price, latency_ms, strength })
        };
        Self(BUILT_IN.into_iter().filter_map(priced).collect())
    }
}

impl Catalogue {
    /// A catalogue of given models.
    pub const fn new(models: Vec<Model>) -> Self {
        Self(models)
    }

    /// The models.
    pub fn models(&self) -> &[Model] {
        &self.0
    }

    /// The same models at a table's prices, where it has them.
    #[must_use]
    pub fn with_prices(mut self, table: &PriceTable) -> Self {
        for model in &mut self.0 {
            if let Some(price) = table.prices().get(&model.name) {
                model.price = *price;
            }
        }
        self
    }
}

/// What the tier and the criticality ask for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Demand {
    Preferred,
    Adequate,
    Cheapest,
}

const fn demand(tier: SurvivalTier, criticality: Criticality) -> Demand {
    match (tier, criticality) {
        (SurvivalTier::Full, Criticality::Normal | Criticality::High)
        | (SurvivalTier::Conservation, Criticality::High) => Demand::Preferred,
        (SurvivalTier::Full, Criticality::Low)
        | (SurvivalTier::Conservation, Criticality::Normal)
        | (SurvivalTier::Critical, Criticality::High) => Demand::Adequate,
        (SurvivalTier::Conservation, Criticality::Low)
        | (SurvivalTier::Critical, Criticality::Low | Criticality::Normal)
        | (SurvivalTier::Terminated, _) => Demand::Cheapest,
    }
}

/// Chooses a model; total and deterministic. An empty catalogue leaves the preferred model.
pub fn choose(
    tier: SurvivalTier,
    remaining_budget: MicroUsd,
    criticality: Criticality,
    max_latency_ms: Option<u32>,
    catalogue: &Catalogue,
    preferred: &str,
) -> ModelChoice {
    let demand = demand(tier, criticality);
    let known = catalogue.0.iter().find(|model| model.name == preferred);
    let trusted = demand == Demand::Preferred && tier == SurvivalTier::Full && max_latency_ms.is_none();
    if catalogue.0.is_empty() || (known.is_none() && trusted) {
        return choice(preferred, "the preferred model, not in the catalogue");
    }
    let affordable: Vec<&Model> =
        catalogue.0.iter().filter(|model| model.call_cost() <= remaining_budget).collect();
    if affordable.is_empty() {
        return taken(cheapest(&catalogue.0), preferred, "nothing fits the budget: the cheapest");
    }
    let bound = max_latency_ms.unwrap_or(u32::MAX);
    let quick: Vec<&Model> = affordable.iter().copied().filter(|model| model.latency_ms <= bound).collect();
    if quick.is_empty() {
        let fastest = affordable.into_iter().min_by_key(|model| (model.latency_ms, rank(model)));
        return taken(fastest, preferred, "nothing is quick enough: the fastest that fits the budget");
    }
    let (model, what) = match demand {
        Demand::Cheapest => (cheapest(quick), "the cheapest"),
        Demand::Adequate => adequate(&quick, preferred),
        Demand::Preferred => as_preferred(&quick, known, preferred),
    };
    taken(model, preferred, &format!("{what} at {tier}"))
}

/// Cheaper first, then stronger, then by name.
fn rank(model: &Model) -> (MicroUsd, Reverse<u8>, &str) {
    (model.call_cost(), Reverse(model.strength), &model.name)
}

fn cheapest<'a>(models: impl IntoIterator<Item = &'a Model>) -> Option<&'a Model> {
    models.into_iter().min_by_key(|model| rank(model))
}

fn strongest<'a>(models: impl IntoIterator<Item = &'a Model>) -> Option<&'a Model> {
    models.into_iter().min_by_key(|model| (Reverse(model.strength), rank(model)))
}

fn adequate<'a>(quick: &[&'a Model], preferred: &str) -> (Option<&'a Model>, &'static str) {
    let strong_enough = quick.iter().copied().filter(|model| model.strength >= ADEQUATE);
    let found = cheapest(strong_enough).or_else(|| strongest(quick.iter().copied()));
    let own = quick.iter().copied().find(|model| model.name == preferred);
    match (found, own) {
        (Some(found), Some(own)) if own.call_cost() <= found.call_cost() => {
            (Some(own), "the preferred model, as cheap as an adequate one")
        }
        _ => (found, "an adequate model"),
    }
}

fn as_preferred<'a>(
    quick: &[&'a Model],
    known: Option<&Model>,
    preferred: &str,
) -> (Option<&'a Model>, &'static str) {
    if let Some(own) = quick.iter().copied().find(|model| model.name == preferred) {
        return (Some(own), "the preferred model");
    }
    let ceiling = known.map_or(MicroUsd::from_micros(i64::MAX), Model::call_cost);
    let below = quick.iter().copied().filter(|model| model.call_cost() <= ceiling);
    let found = strongest(below).or_else(|| cheapest(quick.iter().copied()));
    (found, "the strongest in place of the preferred model")
}

fn taken(model: Option<&Model>, preferred: &str, reason: &str) -> ModelChoice {
    choice(model.map_or(preferred, |model| &model.name), reason)
}

fn choice(model: &str, reason: &str) -> ModelChoice {
    ModelChoice { model: model.to_owned(), reason: reason.to_owned() }
}

#[cfg(test)]
mod tests;
