//! Every rule and its boundary; and that no offer gets past the bounds.

use proptest::prelude::*;

use super::*;
use crate::x402::headers;

const PAYEE: &str = "0x3C44CdDdB6a900fa2b585dd299e03d12FA4293BC";
const OTHER: &str = "0x70997970C51812dc3A010C7d01b50e0d17dc79C8";
const ASSET: &str = "0x833589fCD6eDb6E08f4c7C32D4f71b54bdA02913";

fn address(text: &str) -> EvmAddress {
    parse_address(text).expect("an address")
}

fn usdc(text: &str) -> MicroUsd {
    MicroUsd::parse(text).expect("an amount")
}

fn rules() -> Rules {
    Rules {
        max_payment: usdc("1"),
        max_hour: usdc("5"),
        max_day: usdc("20"),
        reserve: usdc("2"),
        hosts: vec!["shop.example".to_owned()],
        essential: vec!["vital.example".to_owned()],
        topup_max_day: usdc("20"),
        server: "https://otonix.example".to_owned(),
        topup_path: "/api/agents/a1/topup".to_owned(),
        chain_id: 8453,
        asset: address(ASSET),
    }
}

fn known() -> Knowledge {
    Knowledge {
        token: TokenDomain { name: "USD Coin".to_owned(), version: "2".to_owned() },
        balance: usdc("100"),
        outstanding: MicroUsd::ZERO,
        spent_hour: MicroUsd::ZERO,
        spent_day: MicroUsd::ZERO,
        topups_day: MicroUsd::ZERO,
        pin: None,
        has_gas: true,
        now: 1_000_000,
    }
}

fn ask(url: &str) -> Ask {
    Ask {
        asker: Asker::Agent,
        url: Url::parse(url).expect("a URL"),
        max_amount: usdc("10"),
        tier: SurvivalTier::Full,
    }
}

const SHOP: &str = "https://shop.example/x";

/// Version 2 with these offers, each a change of the usual one.
fn required(offers: &[&[(&str, &str)]]) -> Required {
    let entries: Vec<String> = offers
        .iter()
        .map(|changes| {
            let mut fields: Vec<(&str, String)> = vec![
                ("scheme", "\"exact\"".to_owned()),
                ("network", "\"eip155:8453\"".to_owned()),
                ("amount", "\"10000\"".to_owned()),
                ("asset", format!("\"{ASSET}\"")),
                ("payTo", format!("\"{PAYEE}\"")),
                ("maxTimeoutSeconds", "60".to_owned()),
                ("extra", r#"{"name":"USD Coin","version":"2"}"#.to_owned()),
            ];
            for (name, value) in *changes {
                fields.retain(|(known, _)| known != name);
                fields.push((name, (*value).to_owned()));
            }
            let fields: Vec<String> =
                fields.iter().map(|(name, value)| format!("\"{name}\":{value}")).collect();
            format!("{{{}}}", fields.join(","))
        })
        .collect();
    let json = format!(r#"{{"x402Version":2,"resource":{{"url":"x"}},"accepts":[{}]}}"#, entries.join(","));
    Required::read(Some(&headers::write_json(json.as_bytes())), None, b"")
}

fn with_order(mut required: Required, amount: u128, expires_at: &str) -> Required {
    required.order = Some(OrderOffer {
        order_id: "o".to_owned(),
        amount,
        treasury: PAYEE.to_owned(),
        asset: ASSET.to_owned(),
        chain_id: 8453,
        expires_at: expires_at.to_owned(),
    });
    required
}

#[test]
fn the_usual_offer_is_taken() {
    let choice = rules().choose(&ask(SHOP), &required(&[&[]]), &known());
    let way = Way::Exact { offer: 0, validity: 60 };
    assert_eq!(choice, Ok(Choice { amount: usdc("0.01"), pay_to: address(PAYEE), way }));
}

#[test]
fn what_is_not_ours_is_no_offer() {
    let other_token = format!("\"{OTHER}\"");
    for change in [
        ("scheme", "\"upto\""),
        ("network", "\"eip155:1\""),
        ("network", "\"base\"x\""),
        ("network", "\"solana:5eykt4UsFv8P8NJdTREpY1vzqKqZKvdp\""),
        ("asset", other_token.as_str()),
        ("asset", "\"USDC\""),
        ("payTo", "\"0x0000000000000000000000000000000000000000\""),
        ("payTo", "\"0x12\""),
        ("amount", "\"0\""),
        ("amount", "\"-1\""),
        ("amount", "\"1.5\""),
        ("amount", "\"99999999999999999999\""),
        ("amount", "1"),
        ("maxTimeoutSeconds", "9"),
        ("maxTimeoutSeconds", "-1"),
        ("extra", r#"{"name":"USDC","version":"2"}"#),
        ("extra", r#"{"name":"USD Coin","version":"1"}"#),
        ("extra", r#"{"name":"USD Coin","version":"2","assetTransferMethod":"permit2"}"#),
        ("extra", r#"{"name":"USD Coin","version":"2","paymentFlow":"upfront"}"#),
    ] {
        let refused = rules().choose(&ask(SHOP), &required(&[&[change]]), &known());
        assert!(matches!(refused, Err(Denied::NoOffer(_))), "{change:?}: {refused:?}");
    }
    assert!(matches!(rules().choose(&ask(SHOP), &Required::default(), &known()), Err(Denied::NoOffer(_))));
    let unnamed = required(&[&[("extra", "null")]]);
    assert!(rules().choose(&ask(SHOP), &unnamed, &known()).is_ok());
}

#[test]
fn a_year_of_validity_becomes_five_minutes() {
    let choice = rules().choose(&ask(SHOP), &required(&[&[("maxTimeoutSeconds", "31536000")]]), &known());
    assert_eq!(choice.expect("taken").way, Way::Exact { offer: 0, validity: MAX_VALIDITY_SECS });
}

#[test]
fn the_cheapest_acceptable_offer_is_taken_wherever_it_stands() {
    let offers = required(&[
        &[("amount", "\"30000\"")],
        &[("amount", "\"5\""), ("network", "\"eip155:1\"")],
        &[("amount", "\"20000\"")],
        &[("amount", "\"20000\"")],
    ]);
    let choice = rules().choose(&ask(SHOP), &offers, &known()).expect("taken");
    assert_eq!((choice.amount, choice.way), (usdc("0.02"), Way::Exact { offer: 2, validity: 60 }));
}

#[test]
fn an_order_is_paid_when_it_is_cheaper_or_the_only_way() {
    let later = "1970-01-12T13:51:40Z";
    let same = with_order(required(&[&[]]), 10_000, later);
    let way = |required: &Required, known: &Knowledge| {
        rules().choose(&ask(SHOP), required, known).map(|choice| choice.way)
    };
    assert_eq!(way(&same, &known()), Ok(Way::Exact { offer: 0, validity: 60 }));
    assert_eq!(way(&with_order(required(&[&[]]), 9_999, later), &known()), Ok(Way::Order));
    let only = with_order(Required::default(), 10_000, later);
    assert_eq!(way(&only, &known()), Ok(Way::Order));
    assert!(way(&only, &Knowledge { has_gas: false, ..known() }).is_err());
    assert!(way(&only, &Knowledge { now: 1_000_181, ..known() }).is_err());
    assert!(way(&with_order(Required::default(), 10_000, ""), &known()).is_err());
}

#[test]
fn hosts_are_denied_by_default() {
    let rules = rules();
    assert_eq!(rules.may_ask(&ask(SHOP)), Ok(()));
    assert_eq!(rules.may_ask(&ask("https://otonix.example/any")), Ok(()));
    for other in [
        "https://evil.example",
        "https://otonix.example:444",
        "http://otonix.example",
        "https://sub.shop.example",
    ] {
        assert!(matches!(rules.may_ask(&ask(other)), Err(Denied::Host(_))), "{other}");
    }
    let owner = Ask { asker: Asker::Owner, ..ask("https://evil.example") };
    assert_eq!(rules.may_ask(&owner), Ok(()));
}

#[test]
fn the_tier_decides_who_may_be_paid() {
    let mut rules = rules();
    rules.hosts = vec!["*".to_owned()];
    let topup = "https://otonix.example/api/agents/a1/topup";
    let may = |tier, url: &str, asker| rules.may_pay(&Ask { tier, asker, ..ask(url) }).is_ok();
    assert_eq!(rules.may_ask(&Ask { tier: SurvivalTier::Terminated, ..ask(SHOP) }), Ok(()), "it may be free");
    for asker in [Asker::Agent, Asker::Owner] {
        for tier in [SurvivalTier::Full, SurvivalTier::Conservation] {
            assert!(may(tier, SHOP, asker));
        }
        assert!(!may(SurvivalTier::Critical, SHOP, asker));
        assert!(may(SurvivalTier::Critical, "https://vital.example", asker));
        assert!(may(SurvivalTier::Critical, "https://otonix.example/x", asker));
        assert!(!may(SurvivalTier::Terminated, "https://vital.example", asker));
        assert!(!may(SurvivalTier::Terminated, "https://otonix.example/x", asker));
        assert!(!may(SurvivalTier::Terminated, "https://otonix.example/api/agents/a2/topup", asker));
        assert!(may(SurvivalTier::Terminated, topup, asker));
    }
    assert!(may(SurvivalTier::Terminated, topup, Asker::Topup));
}

#[test]
fn another_payee_than_before_is_refused() {
    let pinned = Knowledge { pin: Some(address(OTHER)), ..known() };
    let refused = rules().choose(&ask(SHOP), &required(&[&[]]), &pinned);
    assert!(matches!(refused, Err(Denied::Payee { .. })), "{refused:?}");
    let same = Knowledge { pin: Some(address(PAYEE)), ..known() };
    assert!(rules().choose(&ask(SHOP), &required(&[&[]]), &same).is_ok());
}

#[test]
fn every_bound_binds_to_the_unit() {
    let price = |amount: &str| required(&[&[("amount", &format!("\"{amount}\""))]]);
    let choose = |ask: &Ask, amount: &str, known: &Knowledge| rules().choose(ask, &price(amount), known);
    let above = |outcome: Result<Choice, Denied>| match outcome {
        Err(Denied::Above { bound, .. }) => Some(bound),
        _ => None,
    };
    let agent = ask(SHOP);
    assert!(choose(&agent, "1000000", &known()).is_ok());
    assert_eq!(above(choose(&agent, "1000001", &known())), Some(Bound::Payment));
    let careful = Ask { max_amount: usdc("0.5"), ..ask(SHOP) };
    assert!(choose(&careful, "500000", &known()).is_ok());
    assert_eq!(above(choose(&careful, "500001", &known())), Some(Bound::Asked));
    let hour = Knowledge { spent_hour: usdc("4.5"), spent_day: usdc("4.5"), ..known() };
    assert!(choose(&agent, "500000", &hour).is_ok());
    assert_eq!(above(choose(&agent, "500001", &hour)), Some(Bound::Hour));
    let day = Knowledge { spent_day: usdc("19.9"), ..known() };
    assert!(choose(&agent, "100000", &day).is_ok());
    assert_eq!(above(choose(&agent, "100001", &day)), Some(Bound::Day));
    let poor = Knowledge { balance: usdc("3.5"), outstanding: usdc("1"), ..known() };
    assert!(choose(&agent, "500000", &poor).is_ok());
    assert_eq!(above(choose(&agent, "500001", &poor)), Some(Bound::Balance));
    let broke = Knowledge { balance: MicroUsd::ZERO, ..known() };
    assert_eq!(above(choose(&agent, "1", &broke)), Some(Bound::Balance));
}

#[test]
fn a_topup_has_its_own_bounds() {
    let topup = Ask {
        asker: Asker::Topup,
        max_amount: usdc("10"),
        tier: SurvivalTier::Terminated,
        ..ask("https://otonix.example/api/agents/a1/topup")
    };
    let ten = required(&[&[("amount", "\"10000000\"")]]);
    let spent = Knowledge { spent_hour: usdc("5"), spent_day: usdc("20"), ..known() };
    assert!(rules().choose(&topup, &ten, &spent).is_ok());
    let enough = Knowledge { topups_day: usdc("10.000001"), ..known() };
    let refused = rules().choose(&topup, &ten, &enough);
    assert!(matches!(refused, Err(Denied::Above { bound: Bound::TopupDay, .. })), "{refused:?}");
}

proptest! {
    #[test]
    fn nothing_beyond_any_bound_is_ever_chosen(
        prices in prop::collection::vec(0u64..3_000_000, 1..5),
        max in 0i64..3_000_000,
        hour in 0i64..6_000_000,
        day in 0i64..22_000_000,
        balance in 0i64..10_000_000,
        outstanding in 0i64..5_000_000,
    ) {
        let micros = MicroUsd::from_micros;
        let texts: Vec<String> = prices.iter().map(|price| format!("\"{price}\"")).collect();
        let changes: Vec<[(&str, &str); 1]> = texts.iter().map(|text| [("amount", text.as_str())]).collect();
        let offers: Vec<&[(&str, &str)]> = changes.iter().map(|change| &change[..]).collect();
        let knowledge = Knowledge {
            balance: micros(balance),
            outstanding: micros(outstanding),
            spent_hour: micros(hour),
            spent_day: micros(day),
            ..known()
        };
        let ask = Ask { max_amount: micros(max), ..ask(SHOP) };
        if let Ok(choice) = rules().choose(&ask, &required(&offers), &knowledge) {
            let paid = choice.amount.micros();
            prop_assert!(paid > 0 && paid <= max && paid <= 1_000_000);
            prop_assert!(hour + paid <= 5_000_000 && day + paid <= 20_000_000);
            prop_assert!(balance - outstanding - paid >= 2_000_000);
            let cheapest = prices.iter().filter(|price| **price > 0).min();
            prop_assert_eq!(cheapest.copied(), u64::try_from(paid).ok());
        }
    }
}
