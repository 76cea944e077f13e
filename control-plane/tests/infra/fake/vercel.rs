//! The registrar's side of the fake.

use std::collections::{BTreeMap, BTreeSet};

use chrono::{DateTime, Months, TimeDelta, Utc};
use serde_json::{Value, json};

use super::World;
use super::wire::{Reply, Request};

/// What a year of any domain costs unless a test says otherwise, dollars.
const USUAL_PRICE: &str = "11.25";
const TLDS: [&str; 8] = ["com", "net", "org", "dev", "app", "io", "ai", "xyz"];

/// How an order ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    Completed,
    /// Failed, and the money is back.
    Refunded,
    /// Failed, and the money is not back.
    RefundFailed,
    PaymentFailed,
    /// The registry asks another price.
    PriceMismatch,
}

/// A domain of the account.
#[derive(Debug, Clone)]
pub struct Owned {
    pub bought_at: DateTime<Utc>,
    pub expires_at: DateTime<Utc>,
    pub renews_itself: bool,
    pub records: Vec<Value>,
    pub contact: Value,
}

#[derive(Debug, Clone)]
struct Order {
    domain: String,
    years: u32,
    price: f64,
    is_renewal: bool,
    contact: Value,
    /// How many looks it takes until it ends.
    looks: u32,
    outcome: Outcome,
    ended: bool,
}

/// What the registrar knows.
#[derive(Default)]
pub struct Vercel {
    pub domains: BTreeMap<String, Owned>,
    pub taken: BTreeSet<String>,
    /// By domain: to buy, to renew.
    pub prices: BTreeMap<String, (String, String)>,
    /// How many looks (at the order or the domain) an order takes until it ends.
    pub looks: u32,
    /// How the next orders end; empty: well.
    pub outcomes: Vec<Outcome>,
    /// Accepted orders to buy, by domain: how often.
    pub bought: BTreeMap<String, u32>,
    /// Accepted renewals, by domain: how often.
    pub renewed: BTreeMap<String, u32>,
    /// Domains whose registrant has not confirmed, and until when.
    pub unconfirmed: BTreeMap<String, DateTime<Utc>>,
    /// Domains with other nameservers.
    pub elsewhere: BTreeSet<String>,
    orders: BTreeMap<String, Order>,
}

fn number(text: &str) -> Value {
    serde_json::from_str(text).expect("a test's price is a number")
}

fn times(text: &str, years: u32) -> Value {
    // Cents, so that the product of a price and a number of years is what it would be on paper.
    let cents = (text.parse::<f64>().expect("a price") * 100.0).round() * f64::from(years);
    number(&format!("{}", cents / 100.0))
}

fn refused(code: &str, message: &str) -> Reply {
    Reply::json(400, &json!({ "status": 400, "code": code, "message": message }))
}

fn missing(registrar: bool) -> Reply {
    if registrar {
        return Reply::json(404, &json!({ "status": 404, "code": "not_found", "message": "Not found" }));
    }
    Reply::json(404, &json!({ "error": { "code": "not_found", "message": "The domain was not found." } }))
}

fn unknown_domain() -> Reply {
    let body = json!({ "status": 404, "code": "domain_not_found", "message": "The domain was not found." });
    Reply::json(404, &body)
}

fn years(body: &Value) -> u32 {
    body["years"].as_u64().and_then(|years| u32::try_from(years).ok()).unwrap_or(1)
}

/// Does what an operation says.
pub fn act(world: &mut World, operation: &str, path: &[String], request: &Request) -> Reply {
    let body = request.body.clone().unwrap_or(Value::Null);
    let first = path.first().cloned().unwrap_or_default();
    match operation {
        "getSupportedTlds" => Reply::json(200, &json!(TLDS)),
        "getTld" => {
            Reply::json(200, &json!({ "supportedLanguageCodes": { "spa": "Spanish", "ger": "German" } }))
        }
        "getTldPrice" | "getDomainPrice" => price(world, &first, request),
        "getDomainAvailability" => Reply::json(200, &json!({ "available": is_free(world, &first) })),
        "getBulkAvailability" => {
            let names = body["domains"].as_array().cloned().unwrap_or_default();
            let each = |name: Value| {
                let available = is_free(world, name.as_str().unwrap_or_default());
                json!({ "domain": name, "available": available })
            };
            let results: Vec<Value> = names.into_iter().map(each).collect();
            Reply::json(200, &json!({ "results": results }))
        }
        "getContactInfoSchema" => Reply::json(200, &json!({})),
        "getDomainContactVerification" => verification(world, &first),
        "buySingleDomain" => buy(world, &first, &body),
        "renewDomain" => renew(world, &first, &body),
        "getOrder" => order(world, &first),
        "updateDomainAutoRenew" => match world.vercel.domains.get_mut(&first) {
            Some(owned) => {
                owned.renews_itself = body["autoRenew"] == true;
                Reply { status: 204, ..Reply::default() }
            }
            None => unknown_domain(),
        },
        "updateDomainNameservers" => {
            if !world.vercel.domains.contains_key(&first) {
                return unknown_domain();
            }
            let is_own = body["nameservers"].as_array().is_some_and(Vec::is_empty);
            let elsewhere = &mut world.vercel.elsewhere;
            if is_own {
                elsewhere.remove(&first)
            } else {
                elsewhere.insert(first)
            };
            Reply { status: 204, ..Reply::default() }
        }
        "getDomains" => {
            let names: Vec<String> = world.vercel.domains.keys().cloned().collect();
            page(request, "domains", names.iter().map(|name| shown(world, name)).collect())
        }
        "getDomain" => {
            progress(world, |order| order.domain == first);
            if !world.vercel.domains.contains_key(&first) {
                return missing(false);
            }
            Reply::json(200, &json!({ "domain": shown(world, &first) }))
        }
        "getDomainConfig" => Reply::json(
            200,
            &json!({ "configuredBy": "A", "acceptedChallenges": [], "recommendedIPv4": [], "recommendedCNAME": [], "misconfigured": false }),
        ),
        "getRecords" => match world.vercel.domains.get(&first) {
            Some(owned) => page(request, "records", owned.records.clone()),
            None => missing(false),
        },
        "createRecord" => create_record(world, &first, &body),
        "updateRecord" => update_record(world, &first, &body),
        "removeRecord" => remove_record(world, &first, path),
        other => panic!("the fake does not know {other}"),
    }
}

fn verification(world: &World, domain: &str) -> Reply {
    let Some(owned) = world.vercel.domains.get(domain) else {
        return refused("domain_not_registered", "The domain is not registered with Vercel.");
    };
    if world.now() - owned.bought_at < TimeDelta::minutes(30) {
        return refused("bought_too_recently", "The domain was bought less than 30 minutes ago.");
    }
    Reply::json(
        200,
        &match world.vercel.unconfirmed.get(domain) {
            Some(until) => {
                json!({ "verified": false, "verifyBy": until.to_rfc3339(), "email": "ada@example.org" })
            }
            None => json!({ "verified": true }),
        },
    )
}

fn is_free(world: &World, domain: &str) -> bool {
    let tld = domain.rsplit('.').next().unwrap_or_default();
    TLDS.contains(&tld) && !world.vercel.taken.contains(domain) && !world.vercel.domains.contains_key(domain)
}

fn prices(world: &World, domain: &str) -> (String, String) {
    let usual = || (USUAL_PRICE.to_owned(), USUAL_PRICE.to_owned());
    world.vercel.prices.get(domain).cloned().unwrap_or_else(usual)
}

fn price(world: &World, domain: &str, request: &Request) -> Reply {
    let tld = domain.rsplit('.').next().unwrap_or_default();
    if !TLDS.contains(&tld) {
        return refused("tld_not_supported", "The TLD is not supported.");
    }
    let years = request.query("years").and_then(|years| years.parse().ok()).unwrap_or(1);
    let (purchase, renewal) = prices(world, domain);
    let purchase = if is_free(world, domain) { times(&purchase, years) } else { Value::Null };
    let renewal = times(&renewal, years);
    let body = json!({
        "years": years,
        "purchasePrice": purchase,
        "renewalPrice": renewal,
        "transferPrice": renewal,
    });
    Reply::json(200, &body)
}

fn buy(world: &mut World, domain: &str, body: &Value) -> Reply {
    let tld = domain.rsplit('.').next().unwrap_or_default();
    if !TLDS.contains(&tld) {
        return refused("tld_not_supported", "The TLD is not supported.");
    }
    if !is_free(world, domain) {
        return refused("domain_not_available", "The domain is not available.");
    }
    if domain.contains("xn--") && body["languageCode"].is_null() {
        return refused("language_code_required", "The language code is required.");
    }
    let years = years(body);
    let price = times(&prices(world, domain).0, years);
    if price.as_f64() != body["expectedPrice"].as_f64() {
        return refused("expected_price_mismatch", "The expected price does not match the actual price.");
    }
    *world.vercel.bought.entry(domain.to_owned()).or_default() += 1;
    accept(
        world,
        domain,
        years,
        price.as_f64().unwrap_or_default(),
        false,
        body["contactInformation"].clone(),
    )
}

fn renew(world: &mut World, domain: &str, body: &Value) -> Reply {
    if !world.vercel.domains.contains_key(domain) {
        return refused("domain_not_registered", "The domain is not registered with Vercel.");
    }
    let years = years(body);
    let price = times(&prices(world, domain).1, years);
    if price.as_f64() != body["expectedPrice"].as_f64() {
        return refused("expected_price_mismatch", "The expected price does not match the actual price.");
    }
    *world.vercel.renewed.entry(domain.to_owned()).or_default() += 1;
    accept(world, domain, years, price.as_f64().unwrap_or_default(), true, Value::Null)
}

fn accept(
    world: &mut World,
    domain: &str,
    years: u32,
    price: f64,
    is_renewal: bool,
    contact: Value,
) -> Reply {
    let id = format!("order_{:06}", world.next());
    let outcome =
        if world.vercel.outcomes.is_empty() { Outcome::Completed } else { world.vercel.outcomes.remove(0) };
    let looks = world.vercel.looks;
    let order =
        Order { domain: domain.to_owned(), years, price, is_renewal, contact, looks, outcome, ended: false };
    world.vercel.orders.insert(id.clone(), order);
    let href = format!("/v1/registrar/orders/{id}");
    Reply::json(200, &json!({ "orderId": id, "_links": { "self": { "href": href, "method": "GET" } } }))
}

/// Brings orders a look nearer to their end.
fn progress(world: &mut World, of: impl Fn(&Order) -> bool) {
    let now = world.now();
    let vercel = &mut world.vercel;
    for order in vercel.orders.values_mut().filter(|order| !order.ended && of(order)) {
        if order.looks > 0 {
            order.looks -= 1;
            continue;
        }
        order.ended = true;
        if order.outcome != Outcome::Completed {
            continue;
        }
        let longer = |from: DateTime<Utc>| from + Months::new(12 * order.years);
        if order.is_renewal {
            if let Some(owned) = vercel.domains.get_mut(&order.domain) {
                owned.expires_at = longer(owned.expires_at);
            }
        } else {
            let owned = Owned {
                bought_at: now,
                expires_at: longer(now),
                renews_itself: false,
                records: Vec::new(),
                contact: order.contact.clone(),
            };
            vercel.domains.insert(order.domain.clone(), owned);
        }
    }
}

fn order(world: &mut World, id: &str) -> Reply {
    let Some(known) = world.vercel.orders.get(id) else { return missing(true) };
    let (domain, is_renewal) = (known.domain.clone(), known.is_renewal);
    progress(world, |order| order.domain == domain && order.is_renewal == is_renewal);
    let order = &world.vercel.orders[id];
    let (status, inner, error) = match (order.ended, order.outcome) {
        (false, _) => ("purchasing", "pending", Value::Null),
        (true, Outcome::Completed) => ("completed", "completed", Value::Null),
        (true, Outcome::Refunded) => ("failed", "refunded", json!({ "code": "unexpected-error" })),
        (true, Outcome::RefundFailed) => ("failed", "refund-failed", json!({ "code": "unexpected-error" })),
        (true, Outcome::PaymentFailed) => ("failed", "failed", json!({ "code": "payment-failed" })),
        (true, Outcome::PriceMismatch) => (
            "failed",
            "failed",
            json!({ "code": "price-mismatch", "details": { "expectedPrice": order.price, "actualPrice": order.price + 1.0 } }),
        ),
    };
    let mut one = json!({
        "purchaseType": if order.is_renewal { "renewal" } else { "purchase" },
        "years": order.years,
        "domainName": order.domain,
        "status": inner,
        "price": order.price,
    });
    if !order.is_renewal {
        one["autoRenew"] = json!(false);
    }
    let mut body = json!({ "orderId": id, "domains": [one], "status": status });
    if !error.is_null() {
        body["error"] = error;
    }
    Reply::json(200, &body)
}

fn shown(world: &World, name: &str) -> Value {
    let owned = &world.vercel.domains[name];
    json!({
        "verified": true,
        "nameservers": ["ns1.vercel-dns.com", "ns2.vercel-dns.com"],
        "intendedNameservers": ["ns1.vercel-dns.com", "ns2.vercel-dns.com"],
        "creator": { "username": "otonix", "email": "ops@example.com", "id": "usr_0a1b2c3d4e5f" },
        "teamId": null,
        "createdAt": owned.bought_at.timestamp_millis(),
        "boughtAt": owned.bought_at.timestamp_millis(),
        "expiresAt": owned.expires_at.timestamp_millis(),
        "id": format!("dom_{name}"),
        "name": name,
        "renew": owned.renews_itself,
        "serviceType": if world.vercel.elsewhere.contains(name) { "external" } else { "zeit.world" },
        "userId": "usr_0a1b2c3d4e5f",
        "suffix": false,
        "aFieldOfTomorrow": { "deep": [1, 2] },
    })
}

/// Lists are cut as the vendor cuts them; the next page begins `until` a number.
fn page(request: &Request, name: &str, all: Vec<Value>) -> Reply {
    let limit = request.query("limit").and_then(|limit| limit.parse().ok()).unwrap_or(20_usize);
    let start = request.query("until").and_then(|until| until.parse().ok()).unwrap_or(0_usize);
    let end = (start + limit).min(all.len());
    let next = if end < all.len() { json!(end) } else { Value::Null };
    let part = all.get(start..end).unwrap_or_default();
    let pagination = json!({ "count": part.len(), "next": next, "prev": start });
    Reply::json(200, &json!({ name: part, "pagination": pagination }))
}

fn create_record(world: &mut World, domain: &str, body: &Value) -> Reply {
    let at = world.now().timestamp_millis();
    let id = format!("rec_{:06}", world.next());
    let Some(owned) = world.vercel.domains.get_mut(domain) else { return missing(false) };
    let srv = &body["srv"];
    let value = if srv.is_object() {
        json!(format!(
            "{} {} {} {}",
            srv["priority"],
            srv["weight"],
            srv["port"],
            srv["target"].as_str().unwrap_or_default()
        ))
    } else if body["type"] == "MX" {
        json!(format!("{} {}", body["mxPriority"], body["value"].as_str().unwrap_or_default()))
    } else {
        body["value"].clone()
    };
    let same = |there: &Value| {
        there["type"] == body["type"] && there["name"] == body["name"] && there["value"] == value
    };
    if owned.records.iter().any(same) {
        let error = json!({ "code": "record_already_exists", "message": "A record with the same name and value exists." });
        return Reply::json(409, &json!({ "error": error }));
    }
    let record = json!({
        "id": id, "slug": body["name"], "name": body["name"], "type": body["type"], "value": value,
        "creator": "usr_0a1b2c3d4e5f", "created": at, "updated": at, "createdAt": at, "updatedAt": at,
        "ttl": body["ttl"].as_u64().unwrap_or(60),
    });
    owned.records.push(record);
    Reply::json(200, &json!({ "uid": id }))
}

/// Of the types that are changed in place here, whose value stands in `value`.
fn update_record(world: &mut World, id: &str, body: &Value) -> Reply {
    let at = world.now().timestamp_millis();
    let all = world.vercel.domains.iter_mut();
    let mut found = all.flat_map(|(domain, owned)| owned.records.iter_mut().map(move |one| (domain, one)));
    let Some((domain, record)) = found.find(|(_, record)| record["id"] == id) else { return missing(false) };
    for field in ["name", "type", "value", "ttl"] {
        if !body[field].is_null() {
            record[field] = body[field].clone();
        }
    }
    record["updatedAt"] = json!(at);
    let answer = json!({
        "creator": record["creator"], "domain": domain, "id": id, "name": record["name"], "type": "record",
        "recordType": record["type"], "value": record["value"], "ttl": record["ttl"],
    });
    Reply::json(200, &answer)
}

fn remove_record(world: &mut World, domain: &str, path: &[String]) -> Reply {
    let Some(owned) = world.vercel.domains.get_mut(domain) else { return missing(false) };
    let before = owned.records.len();
    owned
        .records
        .retain(|record| Some(record["id"].as_str().unwrap_or_default()) != path.get(1).map(String::as_str));
    if owned.records.len() == before { missing(false) } else { Reply::json(200, &json!({})) }
}
