//! The routes of vendors that need no purchase, from outside.

use serde_json::json;

use super::{order, soon, vercel};
use crate::fake::Fake;
use crate::fake::cherry::PROJECT;
use crate::fake::switches::How;
use crate::fake::vercel::Owned;
use crate::support::{Key, Server, Store, on_each_store};
use otonix_control_plane::upstream::providers::{ComputeProvider as _, Registrar as _};

on_each_store!(
    the_catalogue_is_shown_in_usdc_and_kept,
    names_are_checked_at_the_registrars_price,
    a_zone_is_its_owners,
    a_server_is_its_owners,
    nothing_strange_reaches_a_vendor,
    a_vendor_that_is_away_is_said_to_be,
    what_was_bought_is_listed_in_pages,
);

const NAME: &str = "agent-seven.dev";

async fn with(store: Store, fake: &Fake, more: &[(&str, &str)]) -> Server {
    let mut options = Server::with(store).await.guarded();
    for (flag, value) in fake.options() {
        options = options.arg(flag, &value);
    }
    for (flag, value) in more {
        options = options.arg(flag, value);
    }
    options.start().await
}

async fn the_catalogue_is_shown_in_usdc_and_kept(store: Store) {
    let fake = Fake::start();
    fake.with(|world| world.cherry.currency = "EUR".to_owned());
    let today = chrono::Utc::now().format("%Y-%m-%d").to_string();
    let server = with(store, &fake, &[("--eur-usd", "1.1"), ("--eur-usd-date", &today)]).await;
    assert_eq!(
        server.get("/api/cherry/status").await.ok(200),
        json!({"configured": true, "reachable": null})
    );
    for _ in 0..3 {
        let plans = server.get("/api/cherry/plans").await;
        let first = &plans.list()[0];
        assert_eq!((&first["slug"], &first["memory"]), (&json!("B1-1-1gb-20s-shared"), &json!(1024)));
        // 0.015 EUR, 21 percent VAT, 1.1 dollars for a euro, rounded up to the micro-unit.
        assert_eq!(first["prices"][0], json!({"cycle": "hourly", "price": 0.019965, "currency": "USDC"}));
        assert_eq!(first["regions"][1], json!({"region": "NL-Amsterdam", "stock": 0}));
        assert_eq!(server.get("/api/cherry/regions").await.list().len(), 2);
        let images = server.get("/api/cherry/images?plan=e3_1240v3").await.list();
        assert_eq!(images[2]["licensed"], true);
    }
    assert_eq!(
        (fake.count("listTeamPlans"), fake.count("listRegions"), fake.count("listPlanImages")),
        (1, 1, 1)
    );
    // Without a plan: of one of each type, each image once.
    let slugs = server.get("/api/cherry/images").await.list();
    assert_eq!(slugs.len(), 3);
    assert_eq!(fake.count("listPlanImages"), 2);
    server.get("/api/cherry/images?plan=none").await.refused(404, "not_found");
    server.get("/api/cherry/images?plan=").await.bad_field("plan");
    let teams = server.as_operator("GET", "/api/cherry/teams").await.list();
    assert_eq!(teams[0]["remaining"], "412.5");
    let projects = server.as_operator("GET", "/api/cherry/projects/123").await.list();
    assert_eq!(projects.len(), 2);
    server.as_operator("GET", "/api/cherry/projects/999").await.refused(404, "not_found");
    let status = server.get("/api/cherry/status").await.ok(200);
    assert_eq!(status, json!({"configured": true, "reachable": true}));
    let metrics = server.as_operator("GET", "/metrics").await;
    assert!(metrics.text().contains("otonix_upstream_cherry_requests_total"), "{}", metrics.text());
    assert!(fake.violations().is_empty(), "{:?}", fake.violations());
    // Without a rate that counts nothing has a price.
    let server = with(store, &fake, &[("--eur-usd", "1.1"), ("--eur-usd-date", "2020-01-01")]).await;
    assert_eq!(server.get("/api/cherry/plans").await.list()[0]["prices"][0]["price"], json!(null));
}

async fn names_are_checked_at_the_registrars_price(store: Store) {
    let fake = Fake::start();
    fake.take_domain("taken.com");
    fake.price_domain("dear.com", "2499", "89.5");
    let server = with(store, &fake, &[]).await;
    let key = server.key("own").await;
    let check = |body| server.post("/api/vercel/check").key(&key).json(body);
    for _ in 0..2 {
        let answer = check(json!({"domain": "Dear.com"})).await.ok(200);
        let wanted = json!({"domain": "dear.com", "available": true, "price": 2499, "currency": "USDC", "period": 1,
            "renewalPrice": 89.5});
        assert_eq!(answer, wanted);
    }
    assert_eq!(fake.count("getDomainPrice"), 1);
    // A repeat with its key gets what was answered then, whatever has become of the name.
    let body = json!({"domain": "once.com"});
    let first = check(body.clone()).once("k").await.ok(200);
    fake.take_domain("once.com");
    let second = check(body).once("k").await;
    assert_eq!(second.header("idempotency-replayed"), Some("true"));
    assert_eq!((second.ok(200), &first["available"]), (first.clone(), &json!(true)));
    check(json!({"domain": "other.com"})).once("k").await.refused(409, "idempotency_key_reused");
    let taken = check(json!({"domain": "taken.com"})).await.ok(200);
    assert_eq!((&taken["available"], &taken["price"]), (&json!(false), &json!(null)));
    let several = check(json!({"domains": ["a.dev", "taken.com", "b.unknown"]})).await.ok(200);
    let free: Vec<bool> =
        several["domains"].as_array().expect("a list").iter().map(|one| one["available"] == true).collect();
    assert_eq!(free, [true, false, false]);
    check(json!({"domain": "../../user"})).await.bad_field("domain");
    check(json!({})).await.bad_field("domain");
    check(json!({"domains": []})).await.bad_field("domains");
    check(json!({"domains": vec!["a.com"; 51]})).await.bad_field("domains");
    assert!(fake.violations().is_empty(), "{:?}", fake.violations());
}

/// A domain in the account, managed for an agent of the key.
async fn managed_domain(server: &Server, fake: &Fake, key: &Key) {
    let vercel = vercel(&fake.url(), fake.token());
    vercel.buy(&order(NAME), soon()).await.expect("an order");
    vercel
        .domain(&otonix_control_plane::upstream::names::DomainName::parse(NAME).expect("a name"))
        .await
        .expect("ours");
    let agent = server.register(key, "seven").await;
    let body = json!({"name": NAME, "agentId": agent.id, "managed": true});
    let made = server.as_operator("POST", "/api/domains").json(body).await.ok(201);
    assert_eq!(made["managed"], true);
}

async fn a_zone_is_its_owners(store: Store) {
    let fake = Fake::start();
    let server = with(store, &fake, &[]).await;
    let (own, other) = (server.key("own").await, server.key("other").await);
    managed_domain(&server, &fake, &own).await;
    // A claim gives no rights, whoever's it is.
    let claim = json!({"name": "claimed.dev", "managed": true});
    assert_eq!(server.post("/api/domains").key(&other).json(claim).await.ok(201)["managed"], false);
    let zone = format!("/api/vercel/dns/{NAME}");
    let record = json!({"type": "A", "name": "@", "value": "185.150.0.42"});
    let made = server.post(&zone).key(&own).once("k").json(record.clone()).await.ok(201);
    assert_eq!((&made["type"], &made["name"], &made["ttl"]), (&json!("A"), &json!("@"), &json!(300)));
    // The same key: the same answer, and one record.
    assert_eq!(server.post(&zone).key(&own).once("k").json(record.clone()).await.ok(201), made);
    assert_eq!(fake.count("createRecord"), 1);
    server.post(&zone).key(&own).json(record.clone()).await.refused(409, "conflict");
    // The answer is lost: the zone is looked at.
    fake.fail("createRecord", How::Lost);
    let found = server.post(&zone).key(&own).json(json!({"type": "TXT", "value": "x"})).await.ok(201);
    // Not done, and no answer: it is said that nobody knows.
    fake.fail("createRecord", How::Unheard);
    let lost = server.post(&zone).key(&own).json(json!({"type": "TXT", "value": "y"})).await;
    lost.refused(503, "upstream_pending");
    assert!(lost.header("retry-after").is_some());
    let listed = server.get(&zone).key(&own).await.list();
    assert_eq!(listed, [made.clone(), found]);
    let copied = async || {
        let rows = server.get("/api/domains").key(&own).await.list();
        let row = rows.into_iter().find(|row| row["name"] == NAME).expect("it is there");
        row["dnsRecords"].clone()
    };
    let a = json!({"type": "A", "name": "@", "value": "185.150.0.42", "ttl": 300});
    let txt = json!({"type": "TXT", "name": "@", "value": "x", "ttl": 300});
    assert_eq!(copied().await, json!([a, txt]));
    assert_eq!(server.as_operator("GET", &zone).await.list().len(), 2);
    assert_eq!(server.get("/api/vercel/domains").key(&own).await.list()[0]["name"], NAME);
    assert!(server.get("/api/vercel/domains").key(&other).await.list().is_empty());
    assert_eq!(server.as_operator("GET", "/api/vercel/domains").await.list()[0]["renewsItself"], false);
    let before = fake.seen().len();
    for path in [zone.as_str(), "/api/vercel/dns/claimed.dev"] {
        server.get(path).key(&other).await.refused(404, "not_found");
        server.post(path).key(&other).json(record.clone()).await.refused(404, "not_found");
    }
    let id = made["id"].as_str().expect("an id");
    server.delete(&format!("{zone}/{id}")).key(&other).await.refused(404, "not_found");
    server
        .post(&zone)
        .key(&own)
        .json(json!({"type": "CNAME", "name": "@", "value": "a.b"}))
        .await
        .bad_field("name");
    server.post(&zone).key(&own).json(json!({"type": "A", "value": "x"})).await.bad_field("value");
    assert_eq!(fake.seen().len(), before, "the vendor was asked");
    server.delete(&format!("{zone}/{id}")).key(&own).await.ok(200);
    assert_eq!(copied().await, json!([txt]));
    server.delete(&format!("{zone}/{id}")).key(&own).await.refused(404, "not_found");
    assert_eq!(server.get(&zone).key(&own).await.list().len(), 1);
    assert!(fake.violations().is_empty(), "{:?}", fake.violations());
}

async fn a_server_is_its_owners(store: Store) {
    let fake = Fake::start();
    let server = with(store, &fake, &[]).await;
    let (own, other) = (server.key("own").await, server.key("other").await);
    let cherry = super::cherry(&fake.url(), fake.token());
    let created = cherry.create(&super::machine(), soon()).await.expect("a server");
    let unmanaged = cherry.create(&super::machine(), soon()).await.expect("a server");
    let (id, password) = (created.server.id, created.password.expect("a password"));
    let agent = server.register(&own, "seven").await;
    let body = json!({"name": "seven", "agentId": agent.id, "managed": true, "serverId": id});
    let made = server.as_operator("POST", "/api/sandboxes").json(body.clone()).await.ok(201);
    assert_eq!(made["managed"], true);
    server.as_operator("POST", "/api/sandboxes").json(body.clone()).await.refused(409, "name_taken");
    assert_eq!(server.post("/api/sandboxes").key(&own).json(body).await.ok(201)["managed"], false);
    let list = format!("/api/cherry/servers/{PROJECT}");
    let listed = server.get(&list).key(&own).await;
    assert_eq!(listed.list().len(), 1);
    assert_eq!(listed.list()[0]["sandboxId"], made["id"]);
    assert!(server.get(&list).key(&other).await.list().is_empty());
    let all = server.as_operator("GET", &list).await;
    assert_eq!(all.list().len(), 2);
    let actions = format!("/api/cherry/servers/{id}/actions");
    let told = server.post(&actions).key(&own).once("k").json(json!({"type": "reboot"})).await.ok(200);
    assert_eq!(server.post(&actions).key(&own).once("k").json(json!({"type": "reboot"})).await.ok(200), told);
    assert_eq!(fake.with(|world| world.cherry.machines[&id].reboots), 1);
    let secret = "abcD1efghSECRET";
    let rescue = json!({"type": "enter-rescue-mode", "password": secret});
    server.post(&actions).key(&own).json(rescue).await.ok(200);
    server.post(&actions).key(&own).json(json!({"type": "explode"})).await.bad_field("type");
    let theirs = format!("/api/cherry/servers/{}/actions", unmanaged.server.id);
    server.post(&theirs).key(&own).json(json!({"type": "reboot"})).await.refused(404, "not_found");
    server.post(&actions).key(&other).json(json!({"type": "reboot"})).await.refused(404, "not_found");
    server.delete(&format!("/api/cherry/servers/{id}")).key(&other).await.refused(404, "not_found");
    // The first answer is lost: a server can be ended twice.
    fake.fail("deleteServer", How::Lost);
    server.delete(&format!("/api/cherry/servers/{id}")).key(&own).await.ok(200);
    server.delete(&format!("/api/cherry/servers/{id}")).key(&own).await.refused(404, "not_found");
    let row = server
        .get(&format!("/api/sandboxes/{}", made["id"].as_str().expect("an id")))
        .key(&own)
        .await
        .ok(200);
    assert_eq!((&row["managed"], &row["status"]), (&json!(false), &json!("stopped")));
    assert!(fake.with(|world| world.cherry.machines[&unmanaged.server.id].deleted_at.is_none()));
    for shown in [listed.text(), all.text(), &server.log()] {
        for hidden in [password.expose(), secret, fake.token()] {
            assert!(!shown.contains(hidden), "a secret is shown: {shown}");
        }
    }
    assert!(fake.violations().is_empty(), "{:?}", fake.violations());
}

async fn nothing_strange_reaches_a_vendor(store: Store) {
    let fake = Fake::start();
    let server = with(store, &fake, &[]).await;
    let key = server.key("own").await;
    for segment in
        ["..%2F..%2Fuser", "%2e%2e", "a%3Fx=", "a%0d%0aHost:%20x", "a%00.dev", "A.dev", "-1", "1.5", "%2B1"]
    {
        for (method, path) in [
            ("GET", format!("/api/vercel/dns/{segment}")),
            ("POST", format!("/api/vercel/dns/{segment}")),
            ("GET", format!("/api/cherry/images?plan={segment}%2F")),
            ("GET", format!("/api/cherry/servers/{segment}")),
            ("GET", format!("/api/cherry/projects/{segment}")),
            ("POST", format!("/api/cherry/servers/{segment}/actions")),
            ("DELETE", format!("/api/cherry/servers/{segment}")),
        ] {
            for call in [server.call(method, &path).key(&key), server.as_operator(method, &path)] {
                let call =
                    if method == "POST" { call.json(json!({"type": "A", "value": "1.2.3.4"})) } else { call };
                let answer = call.await;
                assert!((400..500).contains(&answer.status), "{method} {path}: {}", answer.text());
            }
        }
    }
    for id in ["..%2F..%2Fuser", "%2e%2e", "a%3Fx=", "a%0d%0aHost:%20x", "-1"] {
        let path = format!("/api/vercel/dns/{NAME}/{id}");
        server.delete(&path).key(&key).await.refused(404, "not_found");
        server.as_operator("DELETE", &path).await.refused(404, "not_found");
    }
    assert!(fake.seen().is_empty(), "{:?}", fake.seen());
    assert!(fake.violations().is_empty(), "{:?}", fake.violations());
}

async fn a_vendor_that_is_away_is_said_to_be(store: Store) {
    let fake = Fake::start();
    let server = with(store, &fake, &[]).await;
    let key = server.key("own").await;
    fake.fail_times("*", How::Instead(500), 1000);
    for path in ["/api/cherry/plans", "/api/cherry/regions"] {
        let answer = server.get(path).await;
        answer.refused(503, "upstream_unavailable");
        assert!(answer.header("retry-after").is_some());
    }
    let check = server.post("/api/vercel/check").key(&key).json(json!({"domain": NAME})).await;
    check.refused(503, "upstream_unavailable");
    let status = server.get("/api/vercel/status").await.ok(200);
    assert_eq!(status, json!({"configured": true, "reachable": false}));
    // A failure is not kept long enough to be asked for again and again.
    assert_eq!(fake.count("listRegions"), 3);
    server.get("/api/cherry/regions").await.refused(503, "upstream_unavailable");
    assert_eq!(fake.count("listRegions"), 3);
}

/// What a list shows, page by page.
async fn pages(
    first: &str,
    ask: impl AsyncFn(&str) -> crate::support::Answer,
) -> Vec<Vec<serde_json::Value>> {
    let (mut path, mut all) = (first.to_owned(), Vec::new());
    loop {
        let page = ask(&path).await;
        all.push(page.list());
        match page.next_page() {
            Some(next) => path = next,
            None => return all,
        }
    }
}

async fn what_was_bought_is_listed_in_pages(store: Store) {
    let fake = Fake::start();
    let server = with(store, &fake, &[]).await;
    let key = server.key("own").await;
    let start = chrono::DateTime::from_timestamp(1_700_000_000, 0).expect("a time");
    fake.with(|world| {
        for index in 0..230_u32 {
            // Some at the same time.
            let bought_at = start + chrono::TimeDelta::hours(i64::from(index / 3));
            let owned = Owned {
                bought_at,
                expires_at: bought_at + chrono::TimeDelta::days(365),
                renews_itself: false,
                records: Vec::new(),
                contact: json!(null),
            };
            world.vercel.domains.insert(format!("d{index:03}.com"), owned);
            world.cherry.put(u64::from(index) + 1, "e3_1240v3", "10.0.0.1");
            world.cherry.machines.get_mut(&(u64::from(index) + 1)).expect("it is there").created_at =
                bought_at;
        }
    });
    let servers = format!("/api/cherry/servers/{PROJECT}");
    for (path, time, id) in
        [("/api/vercel/domains", "registeredAt", "name"), (servers.as_str(), "createdAt", "id")]
    {
        let read = pages(path, async |path| server.as_operator("GET", path).await).await;
        assert_eq!(read.iter().map(Vec::len).collect::<Vec<_>>(), [100, 100, 30], "{path}");
        let all = read.concat();
        let mut ids: Vec<String> = all.iter().map(|row| row[id].to_string()).collect();
        ids.sort();
        ids.dedup();
        assert_eq!(ids.len(), 230, "{path}");
        assert!(all.is_sorted_by(|a, b| a[time].as_str() >= b[time].as_str()), "{path}");
        server.as_operator("GET", &format!("{path}?limit=0")).await.refused(400, "invalid_query");
        server.as_operator("GET", &format!("{path}?cursor=x")).await.refused(400, "invalid_query");
        assert!(server.get(path).key(&key).await.list().is_empty(), "{path}");
    }
    // A key sees its own, in pages too.
    let agent = server.register(&key, "seven").await;
    for index in 0..3 {
        let body = json!({"name": format!("own{index}.com"), "agentId": agent.id, "managed": true});
        server.as_operator("POST", "/api/domains").json(body).await.ok(201);
        let body = json!({"name": format!("s{index}"), "agentId": agent.id, "managed": true, "serverId": 50 + index});
        server.as_operator("POST", "/api/sandboxes").json(body).await.ok(201);
    }
    for path in ["/api/vercel/domains", servers.as_str()] {
        let first = format!("{path}?limit=2");
        let read = pages(&first, async |path| server.get(path).key(&key).await).await;
        assert_eq!(read.iter().map(Vec::len).collect::<Vec<_>>(), [2, 1], "{path}");
    }
    assert!(fake.violations().is_empty(), "{:?}", fake.violations());
}
