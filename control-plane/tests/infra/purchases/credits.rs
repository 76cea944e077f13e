//! Purchases that an agent's credits pay: reserved first, then spent or given back.

use std::sync::Arc;

use chrono::{Months, TimeDelta};
use otonix_control_plane::error::Error;
use otonix_control_plane::service::purchases::book::Wanted;
use otonix_control_plane::service::purchases::item::{Item, PeriodItem, RenewalItem};
use otonix_control_plane::service::purchases::open;
use otonix_control_plane::upstream::providers::Refusal;
use otonix_sdk::clock::Clock as _;
use otonix_sdk::error::ErrorCode;
use otonix_sdk::ids::AgentId;
use otonix_sdk::money::MicroUsd;
use uuid::Uuid;

use super::bench::{Bench, DOMAIN, For, SERVER, domain, server, stranger};
use super::shelf::How;
use crate::support::{Store, on_each_store};

on_each_store!(
    a_renewal_is_reserved_then_spent_or_given_back,
    a_renewal_is_never_sent_again,
    of_fifty_purchases_on_a_balance_for_ten_ten_are_made,
    more_time_for_a_server_asks_nothing_of_the_vendor,
);

const NAME: &str = "agent-seven.com";
const RENEWAL: i64 = 12_500_000;

fn wanted(item: Item, agent: AgentId, price: i64) -> Wanted {
    Wanted {
        item,
        private: None,
        price: MicroUsd::from_micros(price),
        agent: agent.uuid(),
        owner: Uuid::nil(),
        idem: None,
    }
}

/// A bench with a domain and the agent that it belongs to.
async fn with_domain(store: Store) -> (Bench, AgentId, RenewalItem) {
    let bench = Bench::open(store).await;
    let owner = bench.owner().await;
    let (agent, _) = bench.agent(&owner, "a").await;
    let to = For { agent: Some(agent), owner: owner.key().expect("a key").owner.uuid() };
    bench.pay(domain(NAME), &to, DOMAIN, DOMAIN, stranger(1)).await;
    bench.live(30, 2).await;
    let held = bench.shelf.world.lock().domains[NAME].clone();
    let item = RenewalItem { domain: NAME.to_owned(), years: 1, expires_before: held.expires_at };
    (bench, agent, item)
}

async fn a_renewal_is_reserved_then_spent_or_given_back(store: Store) {
    let (bench, agent, item) = with_domain(store).await;
    let renewal = || wanted(Item::Renewal(item.clone()), agent, RENEWAL);
    let poor = open::by_credits(&bench.app, agent, renewal()).await;
    assert!(matches!(poor, Err(Error::Conflict { code: ErrorCode::InsufficientCredits, .. })), "{poor:?}");
    bench.grant(agent, RENEWAL + 3_000_000).await;
    bench.shelf.next(&[How::Refused(Refusal::Other)]);
    let id = open::by_credits(&bench.app, agent, renewal()).await.expect("it is covered");
    assert_eq!(bench.credits(agent).await, 3_000_000);
    let second = open::by_credits(&bench.app, agent, renewal()).await;
    assert!(second.is_err(), "one at a time for a domain");
    assert_eq!(bench.credits(agent).await, 3_000_000, "and what it had reserved is free");
    bench.work().await;
    assert_eq!(bench.by_id(id).await.status, "failed");
    assert_eq!(bench.credits(agent).await, RENEWAL + 3_000_000);
    assert_eq!(bench.account("reserved").await, 0);
    let id = open::by_credits(&bench.app, agent, renewal()).await.expect("it is covered");
    bench.live(30, 2).await;
    assert_eq!(bench.by_id(id).await.status, "delivered");
    assert_eq!((bench.credits(agent).await, bench.account("reserved").await), (3_000_000, 0));
    assert_eq!(bench.account("purchases").await, DOMAIN + RENEWAL);
    let expires_at = bench.shelf.world.lock().domains[NAME].expires_at;
    assert_eq!(expires_at, item.expires_before + Months::new(12));
    let operator = Bench::operator();
    let list = otonix_control_plane::service::domains::list(
        &bench.app,
        &operator,
        otonix_control_plane::store::list::Query { limit: 10, ..Default::default() },
    );
    assert_eq!(list.await.expect("a list").rows[0].expires_at, Some(expires_at));
    // The same order again finds that it was done.
    bench.grant(agent, RENEWAL).await;
    let id = open::by_credits(&bench.app, agent, renewal()).await.expect("it is covered");
    bench.live(30, 2).await;
    assert_eq!(bench.by_id(id).await.status, "failed");
    assert_eq!(bench.shelf.bought(&format!("renewal of {NAME}")), 1);
    bench.audit().await;
}

async fn a_renewal_is_never_sent_again(store: Store) {
    for (how, became, renewed) in [(How::LostBefore, "failed", 0), (How::LostAfter, "delivered", 1)] {
        let (bench, agent, item) = with_domain(store).await;
        bench.grant(agent, RENEWAL + 3_000_000).await;
        bench.shelf.next(&[how]);
        let id = open::by_credits(&bench.app, agent, wanted(Item::Renewal(item), agent, RENEWAL)).await;
        let id = id.expect("it is covered");
        bench.live(1200, 20).await;
        assert_eq!(bench.by_id(id).await.status, became);
        assert_eq!(bench.shelf.bought(&format!("renewal of {NAME}")), renewed);
        let left = if renewed == 1 { 3_000_000 } else { RENEWAL + 3_000_000 };
        assert_eq!(bench.credits(agent).await, left);
        bench.audit().await;
    }
}

async fn of_fifty_purchases_on_a_balance_for_ten_ten_are_made(store: Store) {
    let bench = Arc::new(Bench::open(store).await);
    let owner = bench.owner().await;
    let (agent, _) = bench.agent(&owner, "a").await;
    bench.grant(agent, 10 * SERVER + 1_000_000).await;
    bench.shelf.world.lock().stock = 100;
    let running: Vec<_> = (0..50)
        .map(|n| {
            let bench = Arc::clone(&bench);
            tokio::spawn(async move {
                open::by_credits(&bench.app, agent, wanted(server(&format!("s{n}")), agent, SERVER)).await
            })
        })
        .collect();
    let mut made = Vec::new();
    for one in running {
        match one.await.expect("no panic") {
            Ok(id) => made.push(id),
            Err(Error::Conflict { code: ErrorCode::InsufficientCredits, .. }) => {}
            Err(other) => panic!("{other}"),
        }
    }
    // What is left after ten is above the least that an agent lives by, and below an eleventh.
    let expected = (10 * SERVER + 1_000_000) / SERVER;
    assert!(made.len() as i64 <= expected && made.len() >= 10, "{}", made.len());
    bench.live(30, 5).await;
    for id in &made {
        assert_eq!(bench.by_id(*id).await.status, "delivered");
    }
    let left = 10 * SERVER + 1_000_000 - SERVER * made.len() as i64;
    assert!(left >= 0);
    assert_eq!(bench.credits(agent).await, left);
    assert_eq!(bench.shelf.world.lock().servers.len(), made.len());
    bench.audit().await;
}

async fn more_time_for_a_server_asks_nothing_of_the_vendor(store: Store) {
    let bench = Bench::open(store).await;
    let owner = bench.owner().await;
    let (agent, _) = bench.agent(&owner, "a").await;
    bench.grant(agent, 10_000_000).await;
    let bought = open::by_credits(&bench.app, agent, wanted(server("s"), agent, SERVER)).await;
    let bought = bought.expect("it is covered");
    bench.live(10, 2).await;
    let row = bench.by_id(bought).await;
    let sandbox = row.result.expect("a sandbox");
    let began = bench.clock.now();
    let item = Item::Period(PeriodItem {
        sandbox: sandbox.into(),
        vendor_id: row.vendor_ref.expect("the server"),
        hostname: "s".to_owned(),
        cycle: "hourly".to_owned(),
        periods: 24,
    });
    let calls = bench.shelf.world.lock().calls;
    let id = open::by_credits(&bench.app, agent, wanted(item.clone(), agent, SERVER)).await.expect("covered");
    assert_eq!(bench.by_id(id).await.status, "delivered", "at once");
    assert_eq!(bench.shelf.world.lock().calls, calls);
    let operator = Bench::operator();
    let shown = otonix_control_plane::service::sandboxes::sandbox(&bench.app, &operator, sandbox.into());
    let until = shown.await.expect("it is there").paid_until.expect("it is paid");
    let days = until - began;
    assert!((days - TimeDelta::hours(48)).abs() < TimeDelta::minutes(1), "{days}");
    assert_eq!(bench.credits(agent).await, 10_000_000 - 2 * SERVER);
    // The same, paid on chain; and for a server that is gone.
    let sold = bench.pay(item.clone(), &For::default(), SERVER, SERVER, stranger(1)).await;
    assert_eq!(sold.status, 201);
    assert!(sold.answer.contains("paidUntil"), "{}", sold.answer);
    let Item::Period(mut gone) = item else { unreachable!() };
    "999".clone_into(&mut gone.vendor_id);
    let sold = bench.pay(Item::Period(gone), &For::default(), SERVER, SERVER, stranger(1)).await;
    assert_eq!(sold.status, 409);
    assert_eq!(bench.account("refunds").await, SERVER);
    assert_eq!(bench.account("purchases").await, 3 * SERVER);
}
