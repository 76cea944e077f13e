//! The registrar's and the zones' client against the fake: what is bought, what each fault is said to mean, and that a
//! write is sent once.

use std::net::{Ipv4Addr, Ipv6Addr};
use std::time::Duration;

use chrono::{DateTime, Months, TimeDelta, Utc};
use otonix_control_plane::upstream::providers::{
    Confirmation, Deadline, DnsZone as _, NewRecord, OrderState, RecordData, Refusal, Registrar as _,
    RenewDomain, VendorError,
};

use super::{amount, name, order, slug, soon, vercel};
use crate::fake::Fake;
use crate::fake::switches::How;
use crate::fake::vercel::{Outcome, Owned};

const NAME: &str = "agent-seven.dev";

#[tokio::test]
async fn a_domain_is_bought_and_renewed() {
    let fake = Fake::start();
    let vercel = vercel(&fake.url(), fake.token());
    fake.with(|world| world.vercel.looks = 2);
    fake.take_domain("taken.com");
    let names = [name(NAME), name("taken.com"), name("x.unknown")];
    assert_eq!(vercel.available(&names).await, Ok(vec![true, false, false]));
    assert_eq!(vercel.available(&names[..1]).await, Ok(vec![true]));
    let price = vercel.price(&name(NAME), 2).await.expect("a price");
    assert_eq!((price.purchase, price.renewal), (Some(amount("22.5")), Some(amount("22.5"))));
    assert_eq!(vercel.price(&name("taken.com"), 1).await.expect("a price").purchase, None);
    assert_eq!(vercel.contact_schema(&name(NAME)).await, Ok(None));
    assert_eq!(vercel.domain(&name(NAME)).await, Ok(None));
    let id = vercel.buy(&order(NAME), soon()).await.expect("an order");
    assert_eq!(vercel.order(&id).await, Ok(Some(OrderState::Purchasing)));
    assert_eq!(vercel.order(&id).await, Ok(Some(OrderState::Purchasing)));
    assert_eq!(vercel.order(&id).await, Ok(Some(OrderState::Completed { price: Some(amount("11.25")) })));
    assert_eq!(vercel.order(&slug("order_none")).await, Ok(None));
    let bought = vercel.domain(&name(NAME)).await.expect("an answer").expect("a domain");
    assert!(bought.bought_at.is_some() && bought.hosted == Some(true) && !bought.renews_itself);
    fake.with(|world| world.vercel.looks = 0);
    let more = RenewDomain { domain: name(NAME), years: 2, expected: amount("22.5") };
    let id = vercel.renew(&more, soon()).await.expect("an order");
    assert!(matches!(vercel.order(&id).await, Ok(Some(OrderState::Completed { .. }))));
    let renewed = vercel.domain(&name(NAME)).await.expect("an answer").expect("a domain");
    assert_eq!(renewed.expires_at, bought.expires_at.map(|end| end + Months::new(24)));
    let sent = fake.seen().into_iter().find(|seen| seen.operation == "buySingleDomain").expect("an order");
    assert_eq!(sent.request.body.expect("a body")["autoRenew"], false);
    assert!(fake.violations().is_empty(), "{:?}", fake.violations());
}

#[tokio::test]
async fn the_registrar_tells_of_a_domain_beside_its_end_and_mends_it() {
    let fake = Fake::start();
    let vercel = vercel(&fake.url(), fake.token());
    assert!(vercel.endings().await.expect("endings").contains(&"dev".to_owned()));
    assert_eq!(vercel.languages(&slug("dev")).await.expect("languages"), ["ger", "spa"]);
    let none = vercel.confirmation(&name(NAME)).await.expect_err("not ours");
    assert_eq!(none.refusal(), Some(Refusal::NotRegistered));
    vercel.buy(&order(NAME), soon()).await.expect("an order");
    assert!(vercel.domain(&name(NAME)).await.expect("an answer").is_some());
    let early = vercel.confirmation(&name(NAME)).await.expect_err("bought a moment ago");
    assert_eq!(early.refusal(), Some(Refusal::TooEarly));
    fake.advance(TimeDelta::minutes(31));
    assert_eq!(vercel.confirmation(&name(NAME)).await, Ok(Confirmation::Given));
    let until = DateTime::from_timestamp(1_900_000_000, 0).expect("a time");
    fake.with(|world| {
        world.vercel.unconfirmed.insert(NAME.to_owned(), until);
        world.vercel.elsewhere.insert(NAME.to_owned());
        world.vercel.domains.get_mut(NAME).expect("ours").renews_itself = true;
    });
    let awaited = Confirmation::Awaited { until: Some(until) };
    assert_eq!(vercel.confirmation(&name(NAME)).await, Ok(awaited));
    let owned = vercel.domain(&name(NAME)).await.expect("an answer").expect("ours");
    assert_eq!((owned.renews_itself, owned.hosted), (true, Some(false)));
    for _ in 0..2 {
        vercel.stop_renewing(&name(NAME), soon()).await.expect("done");
        vercel.reset_nameservers(&name(NAME), soon()).await.expect("done");
    }
    let owned = vercel.domain(&name(NAME)).await.expect("an answer").expect("ours");
    assert_eq!((owned.renews_itself, owned.hosted), (false, Some(true)));
    let none = vercel.stop_renewing(&name("other.dev"), soon()).await.expect_err("not ours");
    assert_eq!(none.refusal(), Some(Refusal::NotFound));
    assert!(fake.violations().is_empty(), "{:?}", fake.violations());
}

#[tokio::test]
async fn a_record_becomes_another_in_its_place() {
    let fake = Fake::start();
    let vercel = vercel(&fake.url(), fake.token());
    vercel.buy(&order(NAME), soon()).await.expect("an order");
    assert!(vercel.domain(&name(NAME)).await.expect("an answer").is_some());
    let at = |last: u8| {
        let data = RecordData::A(Ipv4Addr::new(185, 150, 0, last));
        NewRecord { name: String::new(), ttl: 300, data }
    };
    let id = vercel.create_record(&name(NAME), &at(1), soon()).await.expect("a record");
    vercel.change_record(&id, &at(2), soon()).await.expect("changed");
    let there = vercel.records(&name(NAME)).await.expect("an answer").expect("a zone");
    assert!(there.len() == 1 && there[0].id == id && at(2).is(&there[0]), "{there:?}");
    fake.fail("updateRecord", How::Lost);
    let lost = vercel.change_record(&id, &at(3), soon()).await.expect_err("no answer");
    assert_eq!(lost.refusal(), None);
    let gone = vercel.change_record(&slug("rec_none"), &at(4), soon()).await.expect_err("no such record");
    assert_eq!(gone.refusal(), Some(Refusal::NotFound));
    assert!(fake.violations().is_empty(), "{:?}", fake.violations());
}

#[tokio::test]
async fn orders_that_fail_say_whether_the_money_is_back() {
    let fake = Fake::start();
    let vercel = vercel(&fake.url(), fake.token());
    for (outcome, unrefunded, code) in [
        (Outcome::Refunded, false, "unexpected-error"),
        (Outcome::RefundFailed, true, "unexpected-error"),
        (Outcome::PaymentFailed, false, "payment-failed"),
        (Outcome::PriceMismatch, false, "price-mismatch"),
    ] {
        fake.with(|world| world.vercel.outcomes = vec![outcome]);
        let id = vercel.buy(&order(NAME), soon()).await.expect("an order");
        let code = code.to_owned();
        let state =
            if unrefunded { OrderState::FailedUnrefunded { code } } else { OrderState::Failed { code } };
        assert_eq!(vercel.order(&id).await, Ok(Some(state)), "{outcome:?}");
        assert_eq!(vercel.domain(&name(NAME)).await, Ok(None));
    }
    assert!(fake.violations().is_empty(), "{:?}", fake.violations());
}

#[tokio::test]
async fn a_write_says_whether_it_may_have_been_done_and_is_sent_once() {
    // The fault; whether the registrar acts; whether the client may say "not done".
    for (how, acts, known) in [
        (How::Lost, 1, false),
        (How::Half, 1, false),
        (How::Noise, 1, false),
        (How::Unheard, 0, false),
        (How::ActThen(500), 1, false),
        (How::ActThen(502), 1, false),
        (How::Instead(500), 0, false),
        (How::Instead(503), 0, false),
        (How::Instead(302), 0, false),
        (How::Instead(408), 0, false),
        (How::Instead(403), 0, true),
        (How::Instead(404), 0, true),
        (How::TooOften, 0, true),
    ] {
        let fake = Fake::start();
        let vercel = vercel(&fake.url(), fake.token());
        fake.fail("buySingleDomain", how);
        let why = vercel.buy(&order(NAME), soon()).await.expect_err("no answer");
        assert_eq!(why.refusal().is_some(), known, "{how:?}: {why:?}");
        assert_eq!(fake.count("buySingleDomain"), 1, "{how:?}");
        let bought = fake.with(|world| world.vercel.bought.get(NAME).copied().unwrap_or(0));
        assert_eq!(bought, acts, "{how:?}");
    }
}

#[tokio::test]
async fn an_answer_that_comes_twice_harms_nothing() {
    let fake = Fake::start();
    let vercel = vercel(&fake.url(), fake.token());
    fake.fail("buySingleDomain", How::Twice);
    let first = vercel.buy(&order(NAME), soon()).await.expect("an order");
    fake.fail("getOrder", How::Twice);
    for _ in 0..3 {
        assert!(matches!(vercel.order(&first).await, Ok(Some(OrderState::Completed { .. }))));
    }
    let second = vercel.buy(&order("other.dev"), soon()).await.expect("an order");
    assert_ne!(first, second);
}

#[tokio::test]
async fn an_answer_after_the_deadline_is_unknown_and_a_request_after_it_is_never_sent() {
    let fake = Fake::start();
    let vercel = vercel(&fake.url(), fake.token());
    fake.fail("buySingleDomain", How::Late(Duration::from_secs(20)));
    let until = Deadline::after(Duration::from_millis(1500));
    let why = vercel.buy(&order(NAME), until).await.expect_err("no answer in time");
    assert_eq!(why.refusal(), None, "{why:?}");
    assert!(until.remaining().is_some(), "the wait ends before the deadline");
    assert_eq!(fake.count("buySingleDomain"), 1);
    for left in [0, 900] {
        let until = Deadline::after(Duration::from_millis(left));
        let why = vercel.buy(&order("late.dev"), until).await.expect_err("too late");
        assert_eq!(why.refusal(), Some(Refusal::Late), "{why:?}");
    }
    assert_eq!(fake.count("buySingleDomain"), 1, "nothing was sent");
}

#[tokio::test]
async fn a_vendor_that_cannot_be_reached_has_done_nothing() {
    let vercel = vercel("http://127.0.0.1:9", "x");
    let why = vercel.buy(&order(NAME), soon()).await.expect_err("nobody is there");
    assert_eq!(why.refusal(), Some(Refusal::Unavailable));
    assert_eq!(vercel.order(&slug("o")).await.expect_err("nobody").refusal(), Some(Refusal::Unavailable));
}

#[tokio::test]
async fn refusals_are_told_apart() {
    let fake = Fake::start();
    let vercel = vercel(&fake.url(), fake.token());
    fake.price_domain("dear.com", "2499", "89.5");
    fake.take_domain("taken.com");
    for (domain, reason) in [
        ("dear.com", Refusal::PriceMoved),
        ("taken.com", Refusal::DomainNotAvailable),
        ("x.unknown", Refusal::TldNotSupported),
        ("münchen.com", Refusal::LanguageCodeRequired),
    ] {
        let why = vercel.buy(&order(domain), soon()).await.expect_err(domain);
        assert_eq!(why.refusal(), Some(reason), "{domain}: {why:?}");
    }
    let mut no_phone = order(NAME);
    no_phone.contact.phone = "123".to_owned();
    assert!(vercel.buy(&no_phone, soon()).await.expect_err("a bad phone").refusal().is_some());
    let more = RenewDomain { domain: name(NAME), years: 1, expected: amount("11.25") };
    let why = vercel.renew(&more, soon()).await.expect_err("not ours");
    assert_eq!(why.refusal(), Some(Refusal::NotRegistered));
    assert!(fake.with(|world| world.vercel.bought.is_empty()));
}

#[tokio::test]
async fn reads_are_repeated_a_few_times() {
    let fake = Fake::start();
    let good = vercel(&fake.url(), fake.token());
    for how in [How::Instead(500), How::Unheard, How::Noise, How::TooOften] {
        let before = fake.count("getDomainPrice");
        fake.fail_times("getDomainPrice", how, 2);
        assert!(good.price(&name(NAME), 1).await.is_ok(), "{how:?}");
        assert!(fake.count("getDomainPrice") - before >= 1);
        fake.mend();
    }
    fake.fail_times("getDomainPrice", How::Instead(500), 9);
    let before = fake.count("getDomainPrice");
    let why = good.price(&name(NAME), 1).await.expect_err("away");
    assert_eq!((why.refusal(), fake.count("getDomainPrice") - before), (Some(Refusal::Unavailable), 3));
    fake.mend();
    // A token that is not taken is not tried again.
    let before = fake.count("getDomainPrice");
    let bad = vercel(&fake.url(), "a-token-nobody-knows");
    let why = bad.price(&name(NAME), 1).await.expect_err("not let in");
    assert_eq!((why.refusal(), fake.count("getDomainPrice") - before), (Some(Refusal::Unauthorised), 1));
    assert!(!format!("{why:?} {why}").contains("a-token-nobody-knows"));
}

#[tokio::test]
async fn a_redirect_does_not_get_the_token() {
    let fake = Fake::start();
    let vercel = vercel(&fake.url(), fake.token());
    fake.fail_times("getDomainPrice", How::Instead(302), 9);
    let why = vercel.price(&name(NAME), 1).await.expect_err("a redirect");
    assert_eq!(why.refusal(), Some(Refusal::Unavailable));
    assert_eq!(fake.count("getCurrentUser"), 0, "the redirect was followed");
}

#[tokio::test]
async fn lists_are_read_to_their_end() {
    let fake = Fake::start();
    let vercel = vercel(&fake.url(), fake.token());
    fake.with(|world| {
        for index in 0..230 {
            let owned = Owned {
                bought_at: Utc::now(),
                expires_at: Utc::now(),
                renews_itself: index == 7,
                records: Vec::new(),
                contact: serde_json::Value::Null,
            };
            world.vercel.domains.insert(format!("d{index:03}.com"), owned);
        }
    });
    let all = vercel.domains().await.expect("a list");
    assert_eq!(all.len(), 230);
    assert_eq!(all.iter().filter(|domain| domain.renews_itself).count(), 1);
    assert_eq!(fake.count("getDomains"), 3);
}

#[tokio::test]
async fn the_seven_types_of_records_come_back_as_they_were_sent() {
    let fake = Fake::start();
    let vercel = vercel(&fake.url(), fake.token());
    vercel.buy(&order(NAME), soon()).await.expect("an order");
    assert!(vercel.domain(&name(NAME)).await.expect("an answer").is_some());
    let record = |name: &str, data| NewRecord { name: name.to_owned(), ttl: 300, data };
    let host = || "mail.example.com".to_owned();
    let all = [
        record("", RecordData::A(Ipv4Addr::new(185, 150, 0, 42))),
        record("", RecordData::Aaaa(Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 0x42))),
        record("www", RecordData::Cname(NAME.to_owned())),
        record("", RecordData::Mx { priority: 10, host: host() }),
        record("_acme", RecordData::Txt("a b=c".to_owned())),
        record("sub", RecordData::Ns(host())),
        record("_sip._tcp", RecordData::Srv { priority: 1, weight: 2, port: 5060, target: host() }),
    ];
    for one in &all {
        let id = vercel.create_record(&name(NAME), one, soon()).await.expect("a record");
        let there = vercel.records(&name(NAME)).await.expect("an answer").expect("a zone");
        let found = there.iter().find(|record| record.id == id).expect("it is there");
        assert!(one.is(found), "{one:?} {found:?}");
        let again = vercel.create_record(&name(NAME), one, soon()).await.expect_err("it is there");
        assert_eq!(again.refusal(), Some(Refusal::AlreadyThere));
    }
    let there = vercel.records(&name(NAME)).await.expect("an answer").expect("a zone");
    for record in &there {
        vercel.delete_record(&name(NAME), &record.id, soon()).await.expect("gone");
        vercel.delete_record(&name(NAME), &record.id, soon()).await.expect("gone before");
    }
    assert_eq!(vercel.records(&name(NAME)).await, Ok(Some(Vec::new())));
    assert_eq!(vercel.records(&name("other.dev")).await, Ok(None));
    fake.fail("createRecord", How::Lost);
    let why = vercel.create_record(&name(NAME), &all[0], soon()).await.expect_err("no answer");
    assert!(matches!(why, VendorError::Unknown { .. }));
    assert!(fake.violations().is_empty(), "{:?}", fake.violations());
}
