//! One purchase of a domain through everything that a vendor may do.

use otonix_control_plane::service::purchases::resolve::resolve;
use otonix_control_plane::upstream::providers::Refusal;
use otonix_sdk::api::purchases::ResolvePurchase;
use otonix_sdk::ids::AgentId;
use otonix_sdk::ids::PurchaseId;

use super::bench::{Bench, DOMAIN, For, domain, stranger};
use super::shelf::How;
use crate::support::{Store, on_each_store};

on_each_store!(
    a_paid_domain_is_bought_once_and_takes_its_name_over,
    a_lost_answer_is_found_by_a_look_and_never_sent_again,
    what_was_not_done_is_tried_again_after_ten_minutes_of_looks,
    what_is_done_late_is_found_and_not_bought_twice,
    a_refusal_gives_the_money_back_to_whom_it_is_due,
    a_price_that_moved_gives_the_money_back,
    a_vendor_that_is_away_gets_half_an_hour,
    an_order_that_fails_at_the_vendor_gives_the_money_back,
    what_nobody_can_find_out_waits_for_the_operator,
    what_was_paid_too_much_is_given_back,
    a_domain_that_is_ours_already_is_not_bought,
);

const NAME: &str = "agent-seven.com";

async fn a_paid_domain_is_bought_once_and_takes_its_name_over(store: Store) {
    let bench = Bench::open(store).await;
    let owner = bench.owner().await;
    let (agent, _) = bench.agent(&owner, "a").await;
    let other = bench.owner().await;
    let body = serde_json::from_value(serde_json::json!({ "name": NAME })).expect("a record");
    otonix_control_plane::service::domains::create(&bench.app, &other, body, None).await.expect("recorded");
    let to = For { agent: Some(agent), owner: owner.key().expect("a key").owner.uuid() };
    let sold = bench.pay(domain(NAME), &to, DOMAIN, DOMAIN, stranger(1)).await;
    assert_eq!(sold.status, 0, "the answer waits for the goods");
    assert_eq!(bench.account("purchases_open").await, DOMAIN);
    assert!(bench.purchase(sold.id).await.private.is_some());
    bench.work().await;
    // The order goes on at the registrar.
    bench.live(10, 2).await;
    let purchase = bench.purchase(sold.id).await;
    assert_eq!((purchase.status.as_str(), purchase.attempts), ("delivered", 1));
    assert_eq!(purchase.private, None, "the contact is erased");
    assert_eq!(bench.shelf.bought(NAME), 1);
    assert_eq!(bench.shelf.world.lock().contacts, ["ada@example.org"]);
    let (status, body) = bench.answer(sold.id).await;
    assert_eq!(status, 201);
    assert_eq!(body["domain"]["name"], NAME);
    assert_eq!(body["domain"]["managed"], true);
    assert_eq!(body["domain"]["agentId"], agent.to_string());
    assert_eq!(body["receipt"]["amount"], 11.25);
    assert_eq!(bench.sale(sold.id).await, "delivered");
    assert_eq!((bench.account("purchases").await, bench.account("purchases_open").await), (DOMAIN, 0));
    // Nothing is done a second time.
    bench.live(7200, 600).await;
    assert_eq!(bench.shelf.bought(NAME), 1);
    let mine = otonix_control_plane::service::domains::list(&bench.app, &owner, whole_list()).await;
    assert_eq!(mine.expect("a list").rows.len(), 1);
    let theirs = otonix_control_plane::service::domains::list(&bench.app, &other, whole_list()).await;
    assert!(theirs.expect("a list").rows.is_empty(), "the record of the name is gone");
}

fn whole_list() -> otonix_control_plane::store::list::Query {
    otonix_control_plane::store::list::Query { limit: 10, ..Default::default() }
}

async fn a_lost_answer_is_found_by_a_look_and_never_sent_again(store: Store) {
    let bench = Bench::open(store).await;
    bench.shelf.next(&[How::LostAfter]);
    let sold = bench.pay(domain(NAME), &For::default(), DOMAIN, DOMAIN, stranger(1)).await;
    bench.work().await;
    assert_eq!(bench.purchase(sold.id).await.status, "unknown");
    let looks = bench.shelf.world.lock().looks;
    bench.live(119, 7).await;
    assert_eq!(bench.shelf.world.lock().looks, looks, "nobody looks before the request must have arrived");
    bench.live(14, 7).await;
    let found = bench.purchase(sold.id).await;
    assert_eq!((found.status.as_str(), found.failure_code, found.failure), ("delivered", None, None));
    assert_eq!(bench.shelf.bought(NAME), 1);
    bench.audit().await;
}

async fn what_was_not_done_is_tried_again_after_ten_minutes_of_looks(store: Store) {
    let bench = Bench::open(store).await;
    bench.shelf.next(&[How::LostBefore, How::LostBefore]);
    let sold = bench.pay(domain(NAME), &For::default(), DOMAIN, DOMAIN, stranger(1)).await;
    bench.work().await;
    bench.live(700, 20).await;
    assert_eq!(bench.purchase(sold.id).await.status, "unknown", "ten minutes of looks are not over");
    bench.live(60, 20).await;
    let purchase = bench.purchase(sold.id).await;
    assert_eq!((purchase.status.as_str(), purchase.attempts), ("unknown", 2), "the second is lost too");
    bench.live(800, 20).await;
    assert_eq!(bench.purchase(sold.id).await.status, "delivered");
    assert_eq!(bench.shelf.bought(NAME), 1);
    bench.audit().await;
    // After three it is given up.
    bench.shelf.next(&[How::LostBefore, How::LostBefore, How::LostBefore]);
    let sold = bench.pay(domain("other.com"), &For::default(), DOMAIN, DOMAIN, stranger(1)).await;
    bench.live(3600, 20).await;
    assert_eq!(bench.purchase(sold.id).await.status, "failed");
    assert_eq!(bench.sale(sold.id).await, "refund_due");
    assert_eq!(bench.account("refunds").await, DOMAIN);
    assert_eq!(bench.shelf.bought("other.com"), 0);
}

async fn what_is_done_late_is_found_and_not_bought_twice(store: Store) {
    for looks in [1, 5, 15] {
        let bench = Bench::open(store).await;
        bench.shelf.next(&[How::Late(looks)]);
        let sold = bench.pay(domain(NAME), &For::default(), DOMAIN, DOMAIN, stranger(1)).await;
        bench.live(1200, 15).await;
        assert_eq!(bench.purchase(sold.id).await.status, "delivered", "after {looks} looks");
        assert_eq!(bench.shelf.bought(NAME), 1);
        bench.audit().await;
    }
}

async fn a_refusal_gives_the_money_back_to_whom_it_is_due(store: Store) {
    let bench = Bench::open(store).await;
    let owner = bench.owner().await;
    let (payer, wallet) = bench.agent(&owner, "payer").await;
    let (linked, _) = bench.agent(&owner, "linked").await;
    let to = |agent: Option<AgentId>| For { agent, ..For::default() };
    let refusal = How::Refused(Refusal::DomainNotAvailable);
    bench.shelf.next(&[refusal.clone(), refusal.clone(), refusal]);
    let by_wallet = bench.pay(domain("a.com"), &to(Some(linked)), DOMAIN, DOMAIN, wallet).await;
    let by_link = bench.pay(domain("b.com"), &to(Some(linked)), DOMAIN, DOMAIN, stranger(1)).await;
    let by_nobody = bench.pay(domain("c.com"), &to(None), DOMAIN, DOMAIN, stranger(1)).await;
    bench.work().await;
    assert_eq!(bench.credits(payer).await, DOMAIN, "the agent whose wallet paid");
    assert_eq!(bench.credits(linked).await, DOMAIN, "the agent that it was for");
    assert_eq!(bench.account("refunds").await, DOMAIN, "nobody known");
    for (sold, became) in [(by_wallet, "credited"), (by_link, "credited"), (by_nobody, "refund_due")] {
        assert_eq!(bench.sale(sold.id).await, became);
        let (status, body) = bench.answer(sold.id).await;
        assert_eq!((status, body["code"].as_str()), (409, Some("domain_not_available")));
        assert!(body["detail"].as_str().is_some_and(|text| text.contains("11.25 USDC")), "{body}");
        assert_eq!(bench.purchase(sold.id).await.private, None);
    }
    assert_eq!(bench.account("purchases_open").await, 0);
}

async fn a_price_that_moved_gives_the_money_back(store: Store) {
    let bench = Bench::open(store).await;
    let sold = bench.pay(domain(NAME), &For::default(), DOMAIN, DOMAIN, stranger(1)).await;
    "11.26".clone_into(&mut bench.shelf.world.lock().domain_price);
    bench.work().await;
    let (status, body) = bench.answer(sold.id).await;
    assert_eq!((status, body["code"].as_str()), (409, Some("price_moved")));
    assert_eq!(bench.shelf.bought(NAME), 0);
    assert_eq!(bench.account("refunds").await, DOMAIN);
    // A price that fell buys all the same.
    "9.99".clone_into(&mut bench.shelf.world.lock().domain_price);
    let sold = bench.pay(domain(NAME), &For::default(), DOMAIN, DOMAIN, stranger(1)).await;
    bench.live(30, 2).await;
    assert_eq!(bench.purchase(sold.id).await.status, "delivered");
}

async fn a_vendor_that_is_away_gets_half_an_hour(store: Store) {
    let bench = Bench::open(store).await;
    bench.shelf.world.lock().away = true;
    let sold = bench.pay(domain(NAME), &For::default(), DOMAIN, DOMAIN, stranger(1)).await;
    bench.live(1740, 30).await;
    assert_eq!(bench.purchase(sold.id).await.status, "paid");
    let later = bench.pay(domain("later.com"), &For::default(), DOMAIN, DOMAIN, stranger(1)).await;
    bench.live(120, 30).await;
    assert_eq!(bench.purchase(sold.id).await.status, "failed");
    assert_eq!(bench.account("refunds").await, DOMAIN);
    bench.shelf.world.lock().away = false;
    bench.live(60, 5).await;
    assert_eq!(bench.purchase(later.id).await.status, "delivered");
    assert_eq!((bench.shelf.bought(NAME), bench.shelf.bought("later.com")), (0, 1));
    bench.audit().await;
}

async fn an_order_that_fails_at_the_vendor_gives_the_money_back(store: Store) {
    for refunded in [true, false] {
        let bench = Bench::open(store).await;
        bench.shelf.world.lock().order_fails = Some(("price-mismatch".to_owned(), refunded));
        let sold = bench.pay(domain(NAME), &For::default(), DOMAIN, DOMAIN, stranger(1)).await;
        bench.live(60, 2).await;
        let (status, body) = bench.answer(sold.id).await;
        assert_eq!((status, body["code"].as_str()), (409, Some("price_moved")));
        assert_eq!(bench.account("refunds").await, DOMAIN);
    }
}

async fn what_nobody_can_find_out_waits_for_the_operator(store: Store) {
    for resolution in ["delivered", "failed", "retry"] {
        let bench = Bench::open(store).await;
        let done = if resolution == "delivered" { How::LostAfter } else { How::LostBefore };
        bench.shelf.next(&[done]);
        let sold = bench.pay(domain(NAME), &For::default(), DOMAIN, DOMAIN, stranger(1)).await;
        bench.work().await;
        bench.shelf.world.lock().away = true;
        bench.live(86_000, 1000).await;
        assert_eq!(bench.purchase(sold.id).await.status, "unknown");
        bench.live(2000, 1000).await;
        let purchase = bench.purchase(sold.id).await;
        assert_eq!(purchase.status, "needs_operator");
        assert_eq!(bench.account("purchases_open").await, DOMAIN, "its money is still kept for it");
        let body = |resolution: &str| ResolvePurchase {
            resolution: resolution.to_owned(),
            vendor_id: None,
            note: Some("looked at the account".to_owned()),
        };
        let id = PurchaseId::from(purchase.id);
        let ask = async |what: &str| resolve(&bench.app, &Bench::operator(), id, body(what), None).await;
        assert!(ask("nonsense").await.is_err());
        assert!(ask("delivered").await.is_err(), "the operator's word alone delivers nothing");
        bench.shelf.world.lock().away = false;
        ask(resolution).await.expect(resolution);
        bench.live(30, 2).await;
        let (became, bought) = match resolution {
            "failed" => ("failed", 0),
            _ => ("delivered", 1),
        };
        assert_eq!(bench.purchase(sold.id).await.status, became, "{resolution}");
        assert_eq!(bench.shelf.bought(NAME), bought, "{resolution}");
        assert!(ask("failed").await.is_err(), "it has ended");
        bench.audit().await;
    }
}

async fn what_was_paid_too_much_is_given_back(store: Store) {
    let bench = Bench::open(store).await;
    let owner = bench.owner().await;
    let (linked, _) = bench.agent(&owner, "linked").await;
    let to = For { agent: Some(linked), ..For::default() };
    bench.pay(domain("a.com"), &to, DOMAIN, DOMAIN + 5, stranger(1)).await;
    bench.pay(domain("b.com"), &For::default(), DOMAIN, DOMAIN + 7, stranger(1)).await;
    // The shortfall is the operator's.
    bench.pay(domain("c.com"), &For::default(), DOMAIN, DOMAIN - 10_000, stranger(1)).await;
    bench.live(30, 2).await;
    assert_eq!(bench.credits(linked).await, 5);
    assert_eq!(bench.account("refunds").await, 7);
    assert_eq!(bench.account("purchases").await, 3 * DOMAIN - 10_000);
}

async fn a_domain_that_is_ours_already_is_not_bought(store: Store) {
    let bench = Bench::open(store).await;
    bench.pay(domain(NAME), &For::default(), DOMAIN, DOMAIN, stranger(1)).await;
    bench.live(30, 2).await;
    let again = bench.pay(domain(NAME), &For::default(), DOMAIN, DOMAIN, stranger(2)).await;
    bench.live(30, 2).await;
    let (status, body) = bench.answer(again.id).await;
    assert_eq!((status, body["code"].as_str()), (409, Some("domain_not_available")));
    assert_eq!(bench.shelf.bought(NAME), 1);
    assert_eq!(bench.account("refunds").await, DOMAIN);
}
