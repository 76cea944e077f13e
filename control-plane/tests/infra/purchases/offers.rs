//! What is checked before anybody is asked for money.

use serde_json::{Value, json};

use super::kills::Market;
use crate::shop::Quote;
use crate::support::{Answer, Store, on_each_store};

on_each_store!(
    nothing_is_asked_for_what_cannot_be_sold,
    a_contact_is_asked_for_before_any_payment,
    a_paid_request_is_its_owner_s_alone,
    an_idempotency_key_never_asks_for_a_second_payment,
    purchases_are_shown_to_whose_they_are,
);

fn contact() -> Value {
    json!({
        "firstName": "Ada", "lastName": "Agent", "email": "ada@example.org", "phone": "+37060000000",
        "address1": "1 Street", "city": "Vilnius", "state": "Vilnius", "zip": "01100", "country": "LT",
    })
}

#[track_caller]
fn names(answer: &Answer, status: u16, code: &str, word: &str) {
    let body = answer.refused(status, code);
    assert!(body["detail"].as_str().is_some_and(|text| text.contains(word)), "{word}: {body}");
}

async fn nothing_is_asked_for_what_cannot_be_sold(store: Store) {
    let market = Market::open(store).await;
    let key = &market.agent.key;
    market.fake.take_domain("taken.com");
    let domain = |body: Value| market.shop.server.post("/api/vercel/register").key(key).json(body);
    let of = |name: &str, more: Value| {
        let mut body = json!({ "domain": name, "contact": contact() });
        body.as_object_mut().expect("an object").extend(more.as_object().cloned().unwrap_or_default());
        body
    };
    domain(of("free.com", json!({}))).await.ok(402);
    // A name that is not ASCII needs a language that its ending knows.
    let in_language = |code: Value| domain(of("münchen.com", json!({ "languageCode": code })));
    names(&in_language(Value::Null).await, 400, "language_code_required", "one of ger, spa");
    names(&in_language(json!("xyz")).await, 400, "language_code_required", "languageCode");
    in_language(json!("ger")).await.ok(402);
    domain(of("taken.com", json!({}))).await.refused(409, "domain_not_available");
    names(&domain(of("no name", json!({}))).await, 400, "invalid_field", "domain");
    names(&domain(of("free.com", json!({ "years": 0 }))).await, 400, "invalid_field", "years");
    names(&domain(of("free.com", json!({ "years": 11 }))).await, 400, "invalid_field", "years");
    let unknown = json!({ "agentId": "00000000-0000-4000-8000-000000000000" });
    names(&domain(of("free.com", unknown)).await, 400, "unknown_link", "agentId");
    let other = market.shop.server.agent("other").await;
    names(&domain(of("free.com", json!({ "agentId": other.id }))).await, 400, "unknown_link", "agentId");

    let usual = json!({
        "plan": "B1-1-1gb-20s-shared", "region": "LT-Siauliai", "image": "debian_12_64bit",
        "hostname": "h", "cycle": "hourly",
    });
    let server = |more: Value| {
        let mut body = usual.clone();
        body.as_object_mut().expect("an object").extend(more.as_object().cloned().unwrap_or_default());
        market.shop.server.post("/api/cherry/servers/321").key(key).json(body)
    };
    let quote = Quote::of(&server(json!({})).await);
    // 24 hours of 0.015, and 21 % on top.
    assert_eq!(quote.body["amountUSDC"], "0.4356");
    assert_eq!(Quote::of(&server(json!({ "periods": 1 })).await).body["amountUSDC"], "0.01815");
    for (field, value) in [
        ("plan", json!("none")),
        ("plan", json!("../../user")),
        ("region", json!("nowhere")),
        ("image", json!("none")),
        ("image", json!("licensed_os_64bit")),
        ("hostname", json!("a b")),
        ("hostname", json!("-a")),
        ("cycle", json!("weekly")),
        ("periods", json!(0)),
        ("userData", json!("x".repeat(16 * 1024 + 1))),
    ] {
        names(&server(json!({ field: value })).await, 400, "invalid_field", field);
    }
    names(&server(json!({ "region": "nowhere" })).await, 400, "invalid_field", "none of the vendor's");
    let elsewhere = json!({ "plan": "e3_1240v3", "region": "NL-Amsterdam" });
    names(&server(elsewhere).await, 400, "invalid_field", "does not have this plan");
    server(json!({ "region": "NL-Amsterdam" })).await.refused(409, "out_of_stock");
    server(json!({ "agentId": market.agent.id })).await.refused(503, "bootstrap_not_configured");
    market
        .shop
        .server
        .post("/api/cherry/servers/322")
        .key(key)
        .json(usual.clone())
        .await
        .refused(404, "not_found");
    market
        .shop
        .server
        .post("/api/cherry/servers/x")
        .key(key)
        .json(usual.clone())
        .await
        .refused(404, "not_found");
    market.shop.server.post("/api/cherry/servers/999/extend").key(key).await.refused(404, "not_found");
    assert_eq!(market.fake.count("createServer") + market.fake.count("buySingleDomain"), 0);
    assert_eq!(market.fake.violations(), Vec::<String>::new());
}

async fn a_contact_is_asked_for_before_any_payment(store: Store) {
    let market = Market::open(store).await;
    let ask = |body: Value| market.shop.server.post("/api/vercel/register").json(body);
    ask(json!({ "domain": "free.com" })).await.refused(400, "contact_required");
    for (field, value) in [
        ("phone", "12345"),
        ("country", "lt"),
        ("email", "nobody"),
        ("city", ""),
        ("city", "a\r\nb"),
        ("companyName", "a\0"),
        ("firstName", " Ada"),
    ] {
        let mut contact = contact();
        contact[field] = json!(value);
        let answer = ask(json!({ "domain": "free.com", "contact": contact })).await;
        names(&answer, 400, "invalid_field", &format!("contact.{field}"));
    }
    let mut missing = contact();
    missing.as_object_mut().expect("an object").remove("zip");
    names(&ask(json!({ "domain": "free.com", "contact": missing })).await, 400, "invalid_field", "zip");
    // Nobody's key is needed to pay.
    let quote = Quote::of(&ask(json!({ "domain": "free.com", "contact": contact() })).await);
    let payment = quote.pay_v2(&market.shop.customer);
    let call =
        ask(json!({ "domain": "free.com", "contact": contact() })).header("payment-signature", &payment);
    let body = call.await.ok(201);
    assert_eq!(body["domain"]["managed"], true);
    assert_eq!(body["receipt"]["orderId"], quote.order_id.as_str());
    let left =
        market.shop.server.sql("UPDATE purchases SET private = private WHERE private IS NOT NULL").await;
    let claimed =
        market.shop.server.sql("UPDATE payments SET private = private WHERE private IS NOT NULL").await;
    assert_eq!((left, claimed), (0, 0), "the contact is erased once it is delivered");
    assert!(!market.shop.server.log().contains("ada@example.org"), "and never logged");
}

async fn a_paid_request_is_its_owner_s_alone(store: Store) {
    let market = Market::open(store).await;
    let other = market.shop.server.agent("other").await;
    let quote = Quote::of(&market.server("mine").await);
    let payment = quote.pay_v2(&market.shop.customer);
    let theirs = |payment: &str| market.server_for(&other, "mine").header("payment-signature", payment);
    theirs(&payment).await.refused(402, "payment_mismatch");
    let done = market.server("mine").header("payment-signature", &payment).await.ok(201);
    assert!(done["server"]["password"].is_string());
    theirs(&payment).await.refused(409, "payment_already_used");
    let id = done["server"]["id"].as_str().expect("an id").to_owned();
    let extend = |agent: &crate::support::Agent| {
        let path = format!("/api/cherry/servers/{id}/extend");
        market.shop.server.post(&path).key(&agent.key).json(json!({ "periods": 2 }))
    };
    extend(&other).await.refused(404, "not_found");
    let quote = Quote::of(&extend(&market.agent).await);
    assert_eq!(quote.body["amountUSDC"], "0.0363");
    let hash = market.shop.pay_order(&market.shop.customer, &quote, 36_300);
    let proof = quote.proof(&hash, &market.shop.customer.address, None);
    let more = extend(&market.agent).header("x-payment", &proof).await.ok(201);
    assert_eq!(more["sandbox"]["id"], done["sandbox"]["id"]);
    assert_ne!(more["paidUntil"], done["sandbox"]["paidUntil"]);
    let again = extend(&market.agent).header("x-payment", &proof).await.ok(201);
    assert_eq!(again, more, "paid once, extended once");
    market.checked();
}

async fn an_idempotency_key_never_asks_for_a_second_payment(store: Store) {
    let market = Market::open(store).await;
    market.fake.fail("buySingleDomain", crate::fake::switches::How::Lost);
    let quote = Quote::of(&market.domain("key.com").await);
    let payment = quote.pay_v2(&market.shop.customer);
    let first = market.domain("key.com").once("k").header("payment-signature", &payment).await;
    assert_eq!(first.refused(503, "payment_pending")["orderId"], quote.order_id.as_str());
    // The same key without the payment is told of the same order.
    let second = market.domain("key.com").once("k").await;
    assert_eq!(second.refused(503, "payment_pending")["orderId"], quote.order_id.as_str());
    market.domain("else.com").once("k").await.refused(409, "idempotency_key_reused");
    market.finish().await;
    let third = market.domain("key.com").once("k").await;
    assert_eq!(third.ok(201)["domain"]["name"], "key.com");
    let fourth = market.domain("key.com").header("payment-signature", &payment).await;
    assert_eq!(fourth.text(), third.text());
    market.checked();
}

async fn purchases_are_shown_to_whose_they_are(store: Store) {
    let market = Market::open(store).await;
    let other = market.shop.server.agent("other").await;
    for name in ["one.com", "two.com"] {
        let quote = Quote::of(&market.domain(name).await);
        let payment = quote.pay_v2(&market.shop.customer);
        market.domain(name).header("payment-signature", &payment).await.ok(201);
    }
    let list = |path: &str| market.shop.server.get(path);
    let mine = list("/api/purchases").key(&market.agent.key).await.list();
    assert_eq!(mine.len(), 2);
    assert_eq!(
        (mine[0]["subject"].as_str(), mine[0]["status"].as_str()),
        (Some("two.com"), Some("delivered"))
    );
    assert_eq!((&mine[0]["price"], &mine[0]["paidBy"]), (&json!(11.25), &json!("payment")));
    assert!(list("/api/purchases").key(&other.key).await.list().is_empty());
    assert_eq!(
        market.shop.server.as_operator("GET", "/api/purchases?status=delivered").await.list().len(),
        2
    );
    assert_eq!(market.shop.server.as_operator("GET", "/api/purchases?status=failed").await.list().len(), 0);
    list("/api/purchases?status=nonsense").key(&other.key).await.refused(400, "invalid_query");
    let first = list("/api/purchases?limit=1").key(&market.agent.key).await;
    let next = first.next_page().expect("there is one more");
    assert_eq!(list(&next).key(&market.agent.key).await.list()[0]["subject"], "one.com");
    let id = mine[0]["id"].as_str().expect("an id");
    let resolve = |who: crate::support::Call| who.json(json!({ "resolution": "failed" }));
    let path = format!("/api/purchases/{id}/resolve");
    resolve(market.shop.server.post(&path).key(&market.agent.key)).await.refused(403, "operator_required");
    resolve(market.shop.server.as_operator("POST", &path)).await.refused(409, "conflict");
    // Every movement has its line, tied to its purchase.
    let lines = market.shop.server.get("/api/transactions").key(&market.agent.key).await.list();
    for purchase in &mine {
        let of = |kind: &str| {
            lines.iter().any(|line| line["type"] == kind && line["metadata"]["purchaseId"] == purchase["id"])
        };
        assert!(of("credit") && of("debit"), "{purchase}: {lines:?}");
    }
    let orders = market.shop.server.get("/api/orders").key(&market.agent.key).await.list();
    assert!(orders.iter().all(|order| order["status"] == "delivered"), "{orders:?}");
    market.checked();
}
