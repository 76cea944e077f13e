//! Servers: found by their mark, installed later, their password shown once.

use std::sync::Arc;

use otonix_control_plane::service::purchases::resolve::resolve;
use otonix_control_plane::service::purchases::secrets;
use otonix_control_plane::service::sandboxes;
use otonix_control_plane::upstream::providers::{Refusal, ServerStatus};
use otonix_sdk::api::purchases::ResolvePurchase;
use otonix_sdk::ids::PurchaseId;

use super::bench::{Bench, For, SERVER, server, stranger};
use super::shelf::How;
use crate::support::{Store, on_each_store};

on_each_store!(
    a_server_is_a_managed_sandbox_that_runs_when_the_vendor_says_so,
    a_server_whose_answer_was_lost_is_found_by_its_mark,
    what_is_out_of_stock_is_paid_back,
    a_server_that_could_not_be_installed_waits_for_the_operator,
    a_password_is_shown_once_and_never_stored,
);

async fn a_server_is_a_managed_sandbox_that_runs_when_the_vendor_says_so(store: Store) {
    let bench = Bench::open(store).await;
    let owner = bench.owner().await;
    let (agent, _) = bench.agent(&owner, "a").await;
    let to = For { agent: Some(agent), owner: owner.key().expect("a key").owner.uuid() };
    let sold = bench.pay(server("s1"), &to, SERVER, SERVER, stranger(1)).await;
    bench.work().await;
    let (status, body) = bench.answer(sold.id).await;
    assert_eq!((status, body["sandbox"]["status"].as_str()), (201, Some("deploying")));
    assert_eq!(body["sandbox"]["agentId"], agent.to_string());
    assert_eq!(body["server"]["password"], serde_json::Value::Null);
    let id = body["sandbox"]["id"].as_str().expect("an id").parse().expect("an id");
    for (server, _) in bench.shelf.world.lock().servers.values_mut() {
        server.status = ServerStatus::Deployed;
    }
    bench.work().await;
    let shown = sandboxes::sandbox(&bench.app, &owner, id).await.expect("it is the owner's");
    assert_eq!((shown.status.as_str(), shown.ip_address), ("deploying", None), "nobody could reach it");
    for (server, _) in bench.shelf.world.lock().servers.values_mut() {
        server.address = Some("185.150.0.42".parse().expect("an address"));
    }
    bench.work().await;
    let shown = sandboxes::sandbox(&bench.app, &owner, id).await.expect("it is the owner's");
    assert_eq!((shown.status.as_str(), shown.ip_address.as_deref()), ("running", Some("185.150.0.42")));
    assert!(shown.managed && shown.paid_until.is_some());
    bench.audit().await;
}

async fn a_server_whose_answer_was_lost_is_found_by_its_mark(store: Store) {
    for how in [How::LostAfter, How::Late(4)] {
        let bench = Bench::open(store).await;
        bench.shelf.next(&[how]);
        let sold = bench.pay(server("s1"), &For::default(), SERVER, SERVER, stranger(1)).await;
        // Somebody else's server of the same name is not ours.
        let other = bench.pay(server("s1"), &For::default(), SERVER, SERVER, stranger(2)).await;
        bench.live(1200, 15).await;
        let (one, two) = (bench.purchase(sold.id).await, bench.purchase(other.id).await);
        assert_eq!((one.status.as_str(), two.status.as_str()), ("delivered", "delivered"));
        assert_ne!(one.vendor_ref, two.vendor_ref);
        assert_eq!(bench.shelf.bought("s1"), 2);
        bench.audit().await;
    }
}

async fn what_is_out_of_stock_is_paid_back(store: Store) {
    let bench = Bench::open(store).await;
    bench.shelf.world.lock().stock = 0;
    let sold = bench.pay(server("s1"), &For::default(), SERVER, SERVER, stranger(1)).await;
    bench.work().await;
    assert_eq!(bench.answer(sold.id).await.1["code"], "out_of_stock");
    bench.shelf.world.lock().stock = 5;
    bench.shelf.next(&[How::Refused(Refusal::OutOfStock)]);
    let sold = bench.pay(server("s1"), &For::default(), SERVER, SERVER, stranger(1)).await;
    bench.work().await;
    assert_eq!(bench.answer(sold.id).await.1["code"], "out_of_stock");
    // What the operator mends is tried again.
    bench.shelf.next(&[How::Refused(Refusal::NoCredit), How::Refused(Refusal::RateLimited)]);
    let sold = bench.pay(server("s1"), &For::default(), SERVER, SERVER, stranger(1)).await;
    bench.live(60, 5).await;
    let purchase = bench.purchase(sold.id).await;
    assert_eq!((purchase.status.as_str(), purchase.attempts), ("delivered", 1));
    assert_eq!(bench.account("refunds").await, 2 * SERVER);
}

async fn a_server_that_could_not_be_installed_waits_for_the_operator(store: Store) {
    for resolution in ["failed", "delivered"] {
        let bench = Bench::open(store).await;
        let owner = bench.owner().await;
        let (payer, wallet) = bench.agent(&owner, "payer").await;
        let sold = bench.pay(server("s1"), &For::default(), SERVER, SERVER, wallet).await;
        bench.work().await;
        for (server, _) in bench.shelf.world.lock().servers.values_mut() {
            server.status = ServerStatus::Failed;
        }
        bench.work().await;
        let purchase = bench.purchase(sold.id).await;
        assert_eq!(purchase.status, "needs_operator");
        assert_eq!((bench.account("purchases").await, bench.account("purchases_open").await), (0, SERVER));
        let body = ResolvePurchase { resolution: resolution.to_owned(), vendor_id: None, note: None };
        let id = PurchaseId::from(purchase.id);
        resolve(&bench.app, &Bench::operator(), id, body, None).await.expect("it waits for it");
        let (credited, spent) = if resolution == "failed" { (SERVER, 0) } else { (0, SERVER) };
        assert_eq!((bench.credits(payer).await, bench.account("purchases").await), (credited, spent));
        // Who paid keeps the answer that was given.
        assert_eq!(bench.answer(sold.id).await.0, 201);
    }
}

async fn a_password_is_shown_once_and_never_stored(store: Store) {
    let bench = Bench::open(store).await;
    let sold = bench.pay(server("s1"), &For::default(), SERVER, SERVER, stranger(1)).await;
    bench.work().await;
    let (_, body) = bench.answer(sold.id).await;
    let stored = body.to_string();
    assert!(!stored.contains("invented-Passw0rd") && stored.contains("\"secretShown\":true"), "{stored}");
    // While the vendor cannot be asked the right to it is not used up.
    bench.shelf.world.lock().away = true;
    assert_eq!(shown(&bench, sold.id, &stored).await.body, stored);
    bench.shelf.world.lock().away = false;
    let replica = bench.again().await;
    let asked = [&bench, &replica, &bench, &replica];
    let answers = futures_util::future::join_all(asked.map(|bench| shown(bench, sold.id, &stored))).await;
    let with: Vec<_> = answers.iter().filter_map(|answer| Some((&answer.body, answer.right?))).collect();
    let [(body, right)] = with.as_slice() else { panic!("{answers:?}") };
    assert!(body.contains("invented-Passw0rd"), "{body}");
    assert!(body.contains("\"username\":\"root\"") && !body.contains("secretShown"), "{body}");
    let others = answers.iter().filter(|answer| answer.right.is_none());
    assert!(others.clone().all(|answer| answer.body == stored) && others.count() == 3);
    // Its buyer has hung up: the next one has it. The process was killed: who asks a minute later has it.
    secrets::end(Arc::clone(&bench.app), *right, false).await;
    let second = shown(&replica, sold.id, &stored).await;
    assert!(second.body.contains("invented-Passw0rd"), "{second:?}");
    bench.pass(59);
    assert_eq!(shown(&bench, sold.id, &stored).await.right, None, "the answer may be on its way");
    bench.pass(1);
    let third = shown(&bench, sold.id, &stored).await;
    assert!(third.body.contains("invented-Passw0rd"), "{third:?}");
    // One whose time is over says nothing about the one after it.
    secrets::end(Arc::clone(&bench.app), second.right.expect("it had one"), true).await;
    secrets::end(Arc::clone(&bench.app), third.right.expect("it had one"), true).await;
    for secs in [0, 60, 3600] {
        bench.pass(secs);
        assert_eq!(shown(&bench, sold.id, &stored).await.body, stored, "it was sent: never again");
    }
    // What else changes of the purchase gives nothing back.
    bench.shelf.world.lock().servers.clear();
    bench.live(900, 30).await;
    assert_eq!(bench.purchase(sold.id).await.status, "needs_operator");
    assert_eq!(shown(&bench, sold.id, &stored).await.body, stored);
}

async fn shown(bench: &Bench, sale: uuid::Uuid, body: &str) -> secrets::Revealed {
    secrets::reveal(&bench.app, sale, body.to_owned()).await
}
