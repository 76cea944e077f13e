//! The table of rules, line by line, and what must hold for every input.

use proptest::prelude::*;

use super::*;
use Criticality::{High, Low, Normal};
use SurvivalTier::{Conservation, Critical, Full, Terminated};

fn model(name: &str, price_usdc: i32, latency_ms: u32, strength: u8) -> Model {
    let price = MicroUsd::from_usdc(price_usdc);
    Model {
        name: name.to_owned(),
        price: ModelPrice { input: price, output: price, cached: None },
        latency_ms,
        strength,
    }
}

/// A reference call has 9,000 tokens: at 10 USDC per million it costs 0.09.
fn catalogue() -> Catalogue {
    Catalogue::new(vec![
        model("big", 100, 9000, 100),
        model("good", 50, 5000, 90),
        model("fair", 20, 3000, ADEQUATE),
        model("poor", 10, 2000, ADEQUATE - 1),
        model("tiny", 1, 4000, 10),
    ])
}

fn pick(tier: SurvivalTier, criticality: Criticality, budget: &str, latency: Option<u32>) -> String {
    let budget = MicroUsd::parse(budget).expect("an amount");
    choose(tier, budget, criticality, latency, &catalogue(), "big").model
}

#[test]
fn tier_and_criticality_decide_as_in_the_table() {
    for (tier, low, normal, high) in [
        (Full, "fair", "big", "big"),
        (Conservation, "tiny", "fair", "big"),
        (Critical, "tiny", "tiny", "fair"),
        (Terminated, "tiny", "tiny", "tiny"),
    ] {
        assert_eq!(pick(tier, Low, "1000", None), low, "{tier} low");
        assert_eq!(pick(tier, Normal, "1000", None), normal, "{tier} normal");
        assert_eq!(pick(tier, High, "1000", None), high, "{tier} high");
    }
}

#[test]
fn the_budget_comes_first_to_the_micro_unit() {
    for (budget, chosen) in [
        ("0.9", "big"),
        ("0.899999", "good"),
        ("0.45", "good"),
        ("0.449999", "fair"),
        ("0.179999", "poor"),
        ("0.009", "tiny"),
        ("0.008999", "tiny"),
        ("0", "tiny"),
        ("-5", "tiny"),
    ] {
        assert_eq!(pick(Full, High, budget, None), chosen, "{budget}");
    }
    assert_eq!(pick(Full, Low, "0.179999", None), "poor", "nothing adequate fits: the strongest");
}

#[test]
fn latency_comes_second() {
    for (latency, chosen) in
        [(9000, "big"), (8999, "good"), (3000, "fair"), (2999, "poor"), (1999, "poor"), (0, "poor")]
    {
        assert_eq!(pick(Full, High, "1000", Some(latency)), chosen, "{latency}");
    }
    assert_eq!(pick(Critical, Normal, "1000", Some(3000)), "poor", "the cheapest of the quick ones");
    assert_eq!(pick(Critical, Normal, "0.01", Some(3000)), "tiny", "budget before latency");
}

#[test]
fn the_preferred_model_is_the_ceiling_of_the_price() {
    let choose = |tier, criticality, latency, preferred: &str| {
        choose(tier, MicroUsd::from_usdc(1000), criticality, latency, &catalogue(), preferred).model
    };
    assert_eq!(choose(Full, High, None, "fair"), "fair");
    assert_eq!(choose(Full, Low, None, "tiny"), "tiny", "a cheap preference is not made dearer");
    assert_eq!(choose(Conservation, Normal, None, "poor"), "poor");
    assert_eq!(choose(Full, High, Some(4000), "good"), "fair", "the strongest quick one that is not dearer");
    assert_eq!(choose(Full, High, Some(3000), "tiny"), "poor", "none is cheaper: the cheapest quick one");
}

#[test]
fn an_unknown_preference_is_trusted_only_at_full() {
    let choose = |tier, criticality, latency| {
        choose(tier, MicroUsd::from_usdc(1000), criticality, latency, &catalogue(), "mine").model
    };
    assert_eq!(choose(Full, Normal, None), "mine");
    assert_eq!(choose(Full, Normal, Some(4000)), "fair");
    assert_eq!(choose(Full, Low, None), "fair");
    assert_eq!(choose(Conservation, High, None), "big");
    assert_eq!(choose(Critical, Normal, None), "tiny");
    let empty = Catalogue::new(Vec::new());
    assert_eq!(super::choose(Critical, MicroUsd::ZERO, Low, None, &empty, "mine").model, "mine");
}

#[test]
fn the_built_in_catalogue_has_every_built_in_price() {
    let models = Catalogue::default();
    assert_eq!(models.models().len(), PriceTable::default().prices().len());
    let cheap = choose(Critical, MicroUsd::from_usdc(5), Normal, None, &models, "claude-opus-4-6");
    assert_eq!(cheap.model, "gpt-5-mini");
    let table: PriceTable =
        serde_json::from_str(r#"{"gpt-5-mini":{"input":50,"output":50}}"#).expect("a table");
    let dearer = choose(Critical, MicroUsd::from_usdc(5), Normal, None, &models.with_prices(&table), "gpt-5");
    assert_eq!(dearer.model, "gemini-2.5-flash");
}

#[test]
fn criticality_is_read_from_its_words() {
    for (text, read) in
        [("low", Ok(Low)), ("normal", Ok(Normal)), ("high", Ok(High)), ("High", Err(UnknownName))]
    {
        assert_eq!(text.parse(), read);
    }
}

fn any_tier() -> impl Strategy<Value = SurvivalTier> {
    prop_oneof![Just(Full), Just(Conservation), Just(Critical), Just(Terminated)]
}

fn any_criticality() -> impl Strategy<Value = Criticality> {
    prop_oneof![Just(Low), Just(Normal), Just(High)]
}

fn any_catalogue() -> impl Strategy<Value = Catalogue> {
    let price = prop_oneof![0..200_000_000_i64, any::<i64>()].prop_map(MicroUsd::from_micros);
    let model = ("[a-f]", price.clone(), price, 0..60_000_u32, 0..=100_u8).prop_map(
        |(name, input, output, latency_ms, strength)| Model {
            name,
            price: ModelPrice { input, output, cached: None },
            latency_ms,
            strength,
        },
    );
    proptest::collection::vec(model, 0..8).prop_map(|mut models| {
        models.sort_by(|a, b| a.name.cmp(&b.name));
        models.dedup_by(|a, b| a.name == b.name);
        Catalogue::new(models)
    })
}

proptest! {
    #[test]
    fn the_rules_hold_for_every_input(
        tier in any_tier(),
        criticality in any_criticality(),
        budget in prop_oneof![0..3_000_000_i64, any::<i64>()],
        latency in proptest::option::of(0..60_000_u32),
        catalogue in any_catalogue(),
        preferred in "[a-g]",
    ) {
        let budget = MicroUsd::from_micros(budget);
        let chosen = choose(tier, budget, criticality, latency, &catalogue, &preferred);
        prop_assert_eq!(&chosen, &choose(tier, budget, criticality, latency, &catalogue, &preferred));
        let Some(model) = catalogue.models().iter().find(|model| model.name == chosen.model) else {
            prop_assert_eq!(chosen.model, preferred);
            prop_assert!(catalogue.models().is_empty() || (tier == Full && latency.is_none()));
            return Ok(());
        };
        let fits = |model: &&Model| model.call_cost() <= budget;
        let quick = |model: &&Model| model.latency_ms <= latency.unwrap_or(u32::MAX);
        let all = || catalogue.models().iter();
        if all().any(|model| fits(&model)) {
            prop_assert!(fits(&model), "over budget although one fits");
        } else {
            prop_assert_eq!(model.call_cost(), all().map(Model::call_cost).min().unwrap_or_default());
        }
        if all().filter(fits).any(|model| quick(&model)) {
            prop_assert!(quick(&model), "slow although a quick one fits");
            if tier == Terminated || (tier == Critical && criticality != High) {
                let least = all().filter(fits).filter(quick).map(Model::call_cost).min();
                prop_assert_eq!(Some(model.call_cost()), least);
            }
        }
    }
}
