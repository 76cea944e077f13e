//! Killed between any two steps, and whatever a vendor does in whatever order: never two purchases for one payment,
//! never a payment without purchase, credit or refund.

use std::time::Duration;

use otonix_control_plane::service::purchases::book::Wanted;
use otonix_control_plane::service::purchases::item::{Item, RenewalItem};
use otonix_control_plane::service::purchases::open;
use otonix_control_plane::upstream::providers::Refusal;
use otonix_control_plane::worker::purchases as worker;
use otonix_sdk::money::MicroUsd;
use rand::rngs::StdRng;
use rand::{Rng as _, SeedableRng as _};
use uuid::Uuid;

use super::bench::{Bench, DOMAIN, For, SERVER, domain, server, stranger};
use super::shelf::{How, Kill};
use crate::support::{Store, on_each_store};

on_each_store!(
    a_worker_killed_at_any_call_buys_once_or_gives_the_money_back,
    any_history_ends_with_the_goods_or_the_money,
);

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum What {
    Domain,
    Server,
    Renewal,
}

/// Begins a purchase; its id and what the vendors count it as.
pub async fn begin(bench: &Bench, what: What) -> (Uuid, String) {
    match what {
        What::Domain | What::Server => {
            let (item, price) =
                if what == What::Domain { (domain("a.com"), DOMAIN) } else { (server("s1"), SERVER) };
            let sold = bench.pay(item, &For::default(), price, price, stranger(1)).await;
            let count = if what == What::Domain { "a.com" } else { "s1" };
            (bench.purchase(sold.id).await.id, count.to_owned())
        }
        What::Renewal => {
            let owner = bench.owner().await;
            let (agent, _) = bench.agent(&owner, "a").await;
            bench.grant(agent, 20_000_000).await;
            let to = For { agent: Some(agent), ..For::default() };
            bench.pay(domain("r.com"), &to, DOMAIN, DOMAIN, stranger(1)).await;
            bench.live(30, 2).await;
            let expires_before = bench.shelf.world.lock().domains["r.com"].expires_at;
            let wanted = Wanted {
                item: Item::Renewal(RenewalItem { domain: "r.com".to_owned(), years: 1, expires_before }),
                private: None,
                price: MicroUsd::from_micros(12_500_000),
                agent: agent.uuid(),
                owner: Uuid::nil(),
                idem: None,
            };
            let id = open::by_credits(&bench.app, agent, wanted).await.expect("it is covered");
            (id, "renewal of r.com".to_owned())
        }
    }
}

/// Works until it is killed at its call `at`; `false` when it was through before.
async fn killed(bench: &Bench, kill: Kill) -> bool {
    let at = bench.shelf.world.lock().calls + kill.at;
    bench.shelf.world.lock().kill = Some(Kill { at, ..kill });
    let app = std::sync::Arc::clone(&bench.app);
    let clock = bench.clock.clone();
    let mut work = tokio::spawn(async move {
        for _ in 0..30 {
            while worker::run_once(&app).await.expect("a pass") > 0 {}
            clock.advance(chrono::TimeDelta::seconds(10));
        }
    });
    let hung = tokio::select! {
        () = bench.shelf.hanging.notified() => true,
        _ = &mut work => false,
        () = tokio::time::sleep(Duration::from_secs(60)) => panic!("neither through nor killed"),
    };
    if hung {
        work.abort();
        let _aborted = work.await;
    }
    bench.shelf.world.lock().kill = None;
    hung
}

async fn a_worker_killed_at_any_call_buys_once_or_gives_the_money_back(store: Store) {
    for what in [What::Domain, What::Server, What::Renewal] {
        let mut kills = [0_u32, 0];
        // There are fewer calls than this, of which one is the write that acts.
        for (at, acted) in (1..=9).flat_map(|at| [(at, false), (at, true)]) {
            if acted && kills[1] == 1 || !acted && kills[0] + 1 < at {
                continue;
            }
            let bench = Bench::open(store).await;
            let (id, count) = begin(&bench, what).await;
            if !killed(&bench, Kill { at, acted }).await {
                continue;
            }
            kills[usize::from(acted)] += 1;
            let bench = bench.again().await;
            bench.live_out(id, 1800, 20).await;
            let purchase = bench.by_id(id).await;
            let bought = bench.shelf.bought(&count);
            let place = format!("{what:?} killed at call {at}, acted {acted}: {purchase:?}");
            match purchase.status.as_str() {
                "delivered" => assert_eq!(bought, 1, "{place}"),
                // Of renewals nobody may send a second one.
                "failed" => assert_eq!((bought, what), (0, What::Renewal), "{place}"),
                other => panic!("{other}: {place}"),
            }
            bench.audit().await;
        }
        assert!(kills[0] >= 2 && kills[1] == 1, "{what:?}: {kills:?}");
    }
}

async fn any_history_ends_with_the_goods_or_the_money(store: Store) {
    let seeds = if store == Store::Sqlite { 4 } else { 2 };
    for seed in 0..seeds {
        let mut chance = StdRng::seed_from_u64(seed);
        let mut bench = Bench::open(store).await;
        let mut ids = Vec::new();
        for n in 0..3_u8 {
            let name = format!("d{n}.com");
            let sold = bench.pay(domain(&name), &For::default(), DOMAIN, DOMAIN, stranger(n + 1)).await;
            ids.push((bench.purchase(sold.id).await.id, name));
            let name = format!("s{n}");
            let sold = bench.pay(server(&name), &For::default(), SERVER, SERVER, stranger(n + 9)).await;
            ids.push((bench.purchase(sold.id).await.id, name));
        }
        let mut passed = 0;
        while passed < 90_000 {
            let how = match chance.random_range(0..9) {
                0 => How::LostAfter,
                1 => How::LostBefore,
                2 => How::Late(chance.random_range(1..6)),
                3 => How::Refused(Refusal::RateLimited),
                4 => How::Refused(Refusal::Unavailable),
                5 => How::Refused(Refusal::OutOfStock),
                _ => How::Well,
            };
            bench.shelf.next(&[how]);
            bench.shelf.world.lock().away = chance.random_range(0..4) == 0;
            if chance.random_range(0..3) == 0 {
                killed(&bench, Kill { at: chance.random_range(1..8), acted: chance.random_bool(0.5) }).await;
                bench = bench.again().await;
                passed += 300;
            }
            let step = *[5, 20, 60, 300, 1800].get(chance.random_range(0..5_usize)).expect("one of them");
            bench.pass(step);
            passed += step;
            bench.work().await;
            // What the fake did behind a lost answer must not stay for later purchases.
            bench.shelf.world.lock().writes.clear();
        }
        bench.shelf.world.lock().away = false;
        bench.live(1200, 60).await;
        for (id, name) in ids {
            let purchase = bench.by_id(id).await;
            let bought = bench.shelf.bought(&name);
            let place = format!("seed {seed}, {name}, bought {bought}: {purchase:?}");
            match purchase.status.as_str() {
                "delivered" => assert_eq!(bought, 1, "{place}"),
                "failed" => assert_eq!(bought, 0, "{place}"),
                "needs_operator" => assert!(bought <= 1, "{place}"),
                other => panic!("{other}: {place}"),
            }
        }
        bench.audit().await;
    }
}
