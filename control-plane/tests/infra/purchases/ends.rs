//! Every purchase comes to an end: with the goods, with the money, or with a person, whatever stands in its way.

use otonix_control_plane::auth::Caller;
use otonix_control_plane::service::purchases::book::Wanted;
use otonix_control_plane::service::purchases::item::{Item, RenewalItem};
use otonix_control_plane::service::purchases::resolve::resolve;
use otonix_control_plane::service::purchases::{lists, open};
use otonix_control_plane::service::{agents, keys, sandboxes};
use otonix_control_plane::store::list;
use otonix_control_plane::upstream::providers::{Refusal, ServerStatus, VendorError};
use otonix_control_plane::worker::lifetime;
use otonix_sdk::api::agents::Kill;
use otonix_sdk::api::purchases::ResolvePurchase;
use otonix_sdk::clock::Clock as _;
use otonix_sdk::ids::{AgentId, PurchaseId};
use otonix_sdk::money::MicroUsd;
use uuid::Uuid;

use super::bench::{Bench, DOMAIN, For, SERVER, domain, server, stranger};
use super::shelf::How;
use crate::support::{Store, on_each_store};

on_each_store!(
    after_a_day_every_purchase_has_ended_or_waits_for_a_person,
    what_cannot_be_written_down_waits_for_the_operator_with_its_money,
    a_server_that_the_vendor_forgets_or_never_finishes_waits_for_the_operator,
    nothing_is_bought_for_an_agent_that_was_killed_or_has_no_key,
    a_domain_that_shows_up_before_another_attempt_is_not_bought_again,
);

const RENEWAL: i64 = 12_500_000;

/// What stands in the way of every step.
#[derive(Debug, Clone, Copy)]
enum Trouble {
    Away,
    Unauthorised,
    Garbage,
    UnreadableRow,
    Panic,
}

/// One purchase of each kind in each state that is no end.
async fn in_every_state(bench: &Bench) -> Vec<Uuid> {
    let owner = bench.owner().await;
    let (agent, _) = bench.agent(&owner, "a").await;
    bench.grant(agent, 10 * RENEWAL).await;
    let to = For { agent: Some(agent), ..For::default() };
    let mut ids = Vec::new();
    for (n, status) in ["paid", "executing", "unknown"].into_iter().enumerate() {
        for has_order in [false, true] {
            let name = format!("{n}-{has_order}");
            let bought = bench.pay(domain(&format!("d{name}.com")), &to, DOMAIN, DOMAIN, stranger(1)).await;
            let server = bench.pay(server(&format!("s{name}")), &to, SERVER, SERVER, stranger(1)).await;
            let renewal =
                RenewalItem { domain: format!("r{name}.com"), years: 1, expires_before: bench.clock.now() };
            let wanted = Wanted {
                item: Item::Renewal(renewal),
                private: None,
                price: MicroUsd::from_micros(RENEWAL),
                agent: agent.uuid(),
                owner: Uuid::nil(),
                idem: None,
            };
            let renewed = open::by_credits(&bench.app, agent, wanted).await.expect("it is covered");
            for id in [bench.purchase(bought.id).await.id, bench.purchase(server.id).await.id, renewed] {
                ids.push(id);
                if status == "paid" {
                    continue;
                }
                let order = if has_order { "'order_1'" } else { "NULL" };
                let subject = bench.by_id(id).await.subject;
                let changed = bench
                    .sql(&format!(
                        "UPDATE purchases SET status = '{status}', attempts = 1, attempt_id = id, \
                        deadline = created_at, vendor_ref = {order} WHERE subject = '{subject}'"
                    ))
                    .await;
                assert_eq!(changed, 1);
            }
        }
    }
    ids
}

async fn after_a_day_every_purchase_has_ended_or_waits_for_a_person(store: Store) {
    use Trouble::{Away, Garbage, Panic, Unauthorised, UnreadableRow};
    for trouble in [Away, Unauthorised, Garbage, UnreadableRow, Panic] {
        let bench = Bench::open(store).await;
        let ids = in_every_state(&bench).await;
        {
            let mut world = bench.shelf.world.lock();
            match trouble {
                Away => world.away = true,
                Unauthorised => {
                    world.trouble = Some(VendorError::not_done(Refusal::Unauthorised, "401"));
                }
                Garbage => world.trouble = Some(VendorError::unknown("noise")),
                UnreadableRow => {}
                Panic => world.panics = true,
            }
        }
        if matches!(trouble, UnreadableRow) {
            bench.sql("UPDATE purchases SET item = '{}'").await;
        }
        bench.live(24 * 3600 + 1800, 900).await;
        for id in ids {
            let row = bench.by_id(id).await;
            let ended = matches!(row.status.as_str(), "delivered" | "failed" | "needs_operator");
            assert!(ended, "{trouble:?}: {row:?}");
            if let Some(sale) = row.sale {
                let became = bench.sale(sale).await;
                let fits = match row.status.as_str() {
                    "failed" => matches!(became.as_str(), "credited" | "refund_due"),
                    _ => became == "pending",
                };
                assert!(fits, "{trouble:?}: {became}, {row:?}");
            }
        }
        assert_eq!(bench.shelf.world.lock().bought.len(), 0);
        bench.audit().await;
    }
}

async fn what_cannot_be_written_down_waits_for_the_operator_with_its_money(store: Store) {
    let bench = Bench::open(store).await;
    let owner = bench.owner().await;
    let (agent, _) = bench.agent(&owner, "a").await;
    let to = For { agent: Some(agent), ..For::default() };
    let first = bench.pay(server("first"), &to, SERVER, SERVER, stranger(1)).await;
    bench.work().await;
    // The vendor's next server has a number that a row of ours has already.
    let vendor = bench.purchase(first.id).await.vendor_ref.expect("a server");
    let next = vendor.parse::<u64>().expect("a number") + 1;
    bench.sql(&format!("UPDATE sandboxes SET vendor_id = '{next}'")).await;
    let sold = bench.pay(server("s1"), &to, SERVER, SERVER, stranger(1)).await;
    bench.live(1500, 30).await;
    assert_eq!(bench.purchase(sold.id).await.status, "executing", "it is tried for a while");
    bench.live(600, 30).await;
    let purchase = bench.purchase(sold.id).await;
    assert_eq!((purchase.status.as_str(), purchase.attempts), ("needs_operator", 1));
    assert_eq!(bench.shelf.bought("s1"), 1);
    assert_eq!(bench.account("purchases_open").await, SERVER);
    assert_eq!(failures(&bench, agent).await, 1);
    bench.sql(&format!("UPDATE sandboxes SET vendor_id = '{vendor}'")).await;
    resolved(&bench, purchase.id, "delivered").await;
    assert_eq!(bench.purchase(sold.id).await.status, "delivered");
    assert_eq!(bench.answer(sold.id).await.0, 201);
    bench.audit().await;
}

async fn resolved(bench: &Bench, id: Uuid, resolution: &str) {
    let body = ResolvePurchase { resolution: resolution.to_owned(), vendor_id: None, note: None };
    let done = resolve(&bench.app, &Bench::operator(), PurchaseId::from(id), body, None).await;
    done.expect("it waits for it");
}

/// Lines of an agent's log that say that something of it waits for the operator.
async fn failures(bench: &Bench, agent: AgentId) -> usize {
    let filters = vec![("agent_id = ", list::Param::Id(agent.uuid()))];
    let query = list::Query { filters, after: None, limit: 100 };
    let found = bench.app.db.read(move |conn| Box::pin(async move { list::actions(conn, &query).await }));
    let told = |details: &Option<String>| {
        details.as_deref().is_some_and(|text| text.ends_with("it waits for the operator"))
    };
    let rows = found.await.expect("a log").rows;
    rows.iter().filter(|line| line.status == "failed" && told(&line.details)).count()
}

async fn a_server_that_the_vendor_forgets_or_never_finishes_waits_for_the_operator(store: Store) {
    for (forgets, resolution) in [(true, "failed"), (false, "failed"), (false, "delivered")] {
        let bench = Bench::open(store).await;
        let owner = bench.owner().await;
        let (agent, _) = bench.agent(&owner, "a").await;
        let to = For { agent: Some(agent), owner: owner.key().expect("a key").owner.uuid() };
        let sold = bench.pay(server("s1"), &to, SERVER, SERVER, stranger(1)).await;
        bench.work().await;
        let sandbox = bench.purchase(sold.id).await.result.expect("a sandbox");
        let (patience, more) = if forgets { (590, 30) } else { (7100, 200) };
        if forgets {
            // A look that is not answered, or shows it again, does not count.
            let servers = std::mem::take(&mut bench.shelf.world.lock().servers);
            bench.live(300, 10).await;
            bench.shelf.world.lock().away = true;
            bench.live(600, 10).await;
            bench.shelf.world.lock().away = false;
            bench.shelf.world.lock().servers = servers;
            bench.live(20, 10).await;
            bench.shelf.world.lock().servers.clear();
            bench.live(10, 10).await;
        }
        bench.live(patience, 10).await;
        assert_eq!(bench.purchase(sold.id).await.status, "delivered");
        assert_eq!(failures(&bench, agent).await, 0);
        bench.live(more, 10).await;
        let purchase = bench.purchase(sold.id).await;
        assert_eq!(purchase.status, "needs_operator");
        assert_eq!((bench.account("purchases").await, bench.account("purchases_open").await), (0, SERVER));
        assert_eq!(failures(&bench, agent).await, 1, "its agent is told once");
        let shown = sandboxes::sandbox(&bench.app, &owner, sandbox.into()).await.expect("the owner's");
        assert_eq!(shown.status, "error");
        let query = list::Query { limit: 10, ..list::Query::default() };
        let rows = lists::purchases(&bench.app, &owner, query).await.expect("a list").rows;
        assert_eq!(rows[0].status, "needs_operator");
        assert!(rows[0].failure.as_deref().is_some_and(|text| text.starts_with("the vendor")), "{rows:?}");
        for (server, _) in bench.shelf.world.lock().servers.values_mut() {
            server.status = ServerStatus::Deployed;
        }
        resolved(&bench, purchase.id, resolution).await;
        let shown = sandboxes::sandbox(&bench.app, &owner, sandbox.into()).await.expect("the owner's");
        if resolution == "delivered" {
            assert_eq!((shown.status.as_str(), shown.managed), ("running", true));
            assert_eq!(bench.account("purchases").await, SERVER);
            continue;
        }
        // Its money is back, and it is billed no more.
        assert_eq!((shown.status.as_str(), shown.managed), ("stopped", false));
        assert_eq!(bench.credits(agent).await, SERVER);
        lifetime::run_once(&bench.app).await.expect("a pass");
        assert_eq!(bench.shelf.world.lock().servers.len(), 0);
        bench.audit().await;
    }
}

async fn nothing_is_bought_for_an_agent_that_was_killed_or_has_no_key(store: Store) {
    for killed in [true, false] {
        let bench = Bench::open(store).await;
        let owner = bench.owner().await;
        let (agent, wallet) = bench.agent(&owner, "a").await;
        let other = bench.owner().await;
        let (payer, paying) = bench.agent(&other, "payer").await;
        let to = For { agent: Some(agent), ..For::default() };
        let own = bench.pay(domain("a.com"), &to, DOMAIN, DOMAIN, wallet).await;
        let given = bench.pay(server("s1"), &to, SERVER, SERVER, paying).await;
        let nobodys = bench.pay(domain("b.com"), &to, DOMAIN, DOMAIN, stranger(1)).await;
        if killed {
            let body: Kill = serde_json::from_value(serde_json::json!({ "reason": "test" })).expect("a kill");
            agents::kill(&bench.app, &Bench::operator(), agent, body, None).await.expect("it is killed");
        } else {
            let Caller { principal: otonix_control_plane::auth::Principal::Key(key), .. } = owner else {
                panic!("a key")
            };
            keys::revoke(&bench.app, &Bench::operator(), key.id, false).await.expect("it is revoked");
        }
        bench.live(60, 5).await;
        for sold in [&own, &given, &nobodys] {
            let row = bench.purchase(sold.id).await;
            let code = if killed { "agent_killed" } else { "revoked_key" };
            assert_eq!((row.status.as_str(), row.failure_code.as_deref()), ("failed", Some(code)));
            assert_eq!(bench.answer(sold.id).await.0, 409);
        }
        assert_eq!(bench.shelf.world.lock().asked, 0, "nothing is asked for");
        // The money is its payer's: of whoever is alive credits, else due.
        assert_eq!(bench.credits(payer).await, SERVER);
        let (credited, due) = if killed { (0, 2 * DOMAIN) } else { (2 * DOMAIN, 0) };
        assert_eq!((bench.credits(agent).await, bench.account("refunds").await), (credited, due));
    }
}

async fn a_domain_that_shows_up_before_another_attempt_is_not_bought_again(store: Store) {
    let bench = Bench::open(store).await;
    bench.shelf.next(&[How::LostBefore]);
    let sold = bench.pay(domain("a.com"), &For::default(), DOMAIN, DOMAIN, stranger(1)).await;
    bench.work().await;
    while bench.purchase(sold.id).await.status == "unknown" {
        bench.pass(5);
        if bench.purchase(sold.id).await.next_at <= bench.clock.now() {
            // The look that ends the ten minutes is the last one of this kind.
            otonix_control_plane::worker::purchases::run_once(&bench.app).await.expect("a pass");
        }
    }
    assert_eq!(bench.purchase(sold.id).await.status, "paid");
    // Neither free nor ours: the attempt may be coming through after all.
    bench.shelf.world.lock().taken.push("a.com".to_owned());
    bench.live(3600, 20).await;
    let row = bench.purchase(sold.id).await;
    assert_eq!((row.status.as_str(), row.attempts), ("unknown", 1), "its money is not given back yet");
    bench.live(24 * 3600, 1800).await;
    assert_eq!(bench.purchase(sold.id).await.status, "needs_operator");
    assert_eq!(bench.shelf.world.lock().asked, 1);
    bench.audit().await;
}
