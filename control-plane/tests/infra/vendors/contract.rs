//! Every operation of the vendors' documents that is called, with every documented answer, against a stock mock server.
//! A request that is not as documented shows as a violation and fails the test; so does an operation that is neither
//! called nor named here as one that is not.

use std::sync::Arc;

use futures_util::stream::{self, StreamExt as _};
use otonix_control_plane::service::vendors::failed;
use otonix_control_plane::upstream::cherry::Cherry;
use otonix_control_plane::upstream::providers::{
    ComputeProvider as _, DnsZone as _, NewRecord, RecordData, Registrar as _, RenewDomain, ServerAction,
    VendorError,
};
use otonix_control_plane::upstream::vercel::Vercel;
use otonix_sdk::secret::Secret;
use serde_json::json;

use super::prism::{Prism, Wanted, Wire};
use super::{amount, cherry, machine, name, order, slug, soon, vercel};
use crate::fake::schema;
use crate::support::Call;

/// Cases under way at once.
const AT_ONCE: usize = 12;

/// What became of a call.
#[derive(Debug)]
struct Outcome {
    result: Result<(), VendorError>,
    /// Whether a lost answer could mean that something was bought.
    is_write: bool,
    /// Whether 404 is an answer: there is none.
    absent_is_fine: bool,
}

fn read<T>(result: Result<T, VendorError>) -> Outcome {
    Outcome { result: result.map(|_| ()), is_write: false, absent_is_fine: false }
}

fn find<T>(result: Result<T, VendorError>) -> Outcome {
    Outcome { absent_is_fine: true, ..read(result) }
}

fn write<T>(result: Result<T, VendorError>) -> Outcome {
    Outcome { is_write: true, ..read(result) }
}

fn remove<T>(result: Result<T, VendorError>) -> Outcome {
    Outcome { absent_is_fine: true, ..write(result) }
}

const VERCEL: [&str; 18] = [
    "getSupportedTlds",
    "getTld",
    "getDomainAvailability",
    "getBulkAvailability",
    "getDomainPrice",
    "getContactInfoSchema",
    "buySingleDomain",
    "renewDomain",
    "getOrder",
    "updateDomainAutoRenew",
    "updateDomainNameservers",
    "getDomainContactVerification",
    "getDomains",
    "getDomain",
    "getRecords",
    "createRecord",
    "updateRecord",
    "removeRecord",
];

/// Not called, and why; `docs/vendors.md` says the same.
const NOT_OF_VERCEL: [(&str, &str); 2] = [
    ("getTldPrice", "what is sold is a name, and a premium one has a price of its own: getDomainPrice"),
    (
        "getDomainConfig",
        "tells whether a name leads to the vendor's own hosts; ours lead to servers elsewhere",
    ),
];

async fn ask_vercel(vercel: &Vercel, operation: &str) -> Outcome {
    let domain = name("agent-seven.dev");
    let record =
        NewRecord { name: "www".to_owned(), ttl: 300, data: RecordData::Cname("example.com".to_owned()) };
    match operation {
        "getDomainAvailability" => read(vercel.available(&[domain]).await),
        "getBulkAvailability" => read(vercel.available(&[domain, name("example.com")]).await),
        "getSupportedTlds" => read(vercel.endings().await),
        "getTld" => read(vercel.languages(&slug("com")).await),
        "updateDomainAutoRenew" => write(vercel.stop_renewing(&domain, soon()).await),
        "updateDomainNameservers" => write(vercel.reset_nameservers(&domain, soon()).await),
        "getDomainContactVerification" => read(vercel.confirmation(&domain).await),
        "updateRecord" => write(vercel.change_record(&slug("rec_a1"), &record, soon()).await),
        "getDomainPrice" => read(vercel.price(&domain, 1).await),
        "getContactInfoSchema" => read(vercel.contact_schema(&domain).await),
        "buySingleDomain" => write(vercel.buy(&order("agent-seven.dev"), soon()).await),
        "renewDomain" => {
            let more = RenewDomain { domain, years: 1, expected: amount("11.25") };
            write(vercel.renew(&more, soon()).await)
        }
        "getOrder" => find(vercel.order(&slug("order_9f3c1b7e2a")).await),
        "getDomains" => read(vercel.domains().await),
        "getDomain" => find(vercel.domain(&domain).await),
        "getRecords" => find(vercel.records(&domain).await),
        "createRecord" => write(vercel.create_record(&domain, &record, soon()).await),
        "removeRecord" => remove(vercel.delete_record(&domain, &slug("rec_a1"), soon()).await),
        other => panic!("{other} is not called"),
    }
}

const CHERRY: [&str; 16] = [
    "getCurrentUser",
    "listTeams",
    "getTeam",
    "listProjects",
    "getProject",
    "listTeamPlans",
    "getPlan",
    "listPlanImages",
    "listRegions",
    "getRegion",
    "listCycles",
    "listServers",
    "createServer",
    "getServer",
    "deleteServer",
    "serverAction",
];

/// As `NOT_OF_VERCEL`.
const NOT_OF_CHERRY: [(&str, &str); 1] = [(
    "listPublicPlans",
    "servers are sold at what the team is billed: listTeamPlans, and getPlan for one that went",
)];

async fn ask_cherry(cherry: &Cherry, operation: &str) -> Outcome {
    let rebuild = ServerAction::Rebuild {
        image: slug("debian_12_64bit"),
        hostname: "agent-seven".to_owned(),
        password: Secret::from("abcD1efgh"),
        ssh_keys: vec![1],
        user_data: Some(Secret::from("#!/bin/sh\n")),
    };
    match operation {
        "getCurrentUser" => read(cherry.account().await),
        "getProject" => find(cherry.project(321).await),
        "getPlan" => find(cherry.plan(&slug("B1-1-1gb-20s-shared")).await),
        "getRegion" => find(cherry.region(&slug("LT-Siauliai")).await),
        "listTeams" => read(cherry.teams().await),
        "getTeam" | "listTeamPlans" => read(cherry.plans().await),
        "listProjects" => read(cherry.projects(123).await),
        "listPlanImages" => read(cherry.images(&slug("B1-1-1gb-20s-shared")).await),
        "listRegions" => read(cherry.regions().await),
        // Asked for before anything is bought: what it answers stops the order.
        "listCycles" => read(cherry.create(&machine(), soon()).await),
        "listServers" => read(cherry.servers(321).await),
        "createServer" => write(cherry.create(&machine(), soon()).await),
        "getServer" => find(cherry.server(383_531).await),
        "deleteServer" => remove(cherry.delete(383_531, soon()).await),
        "serverAction" => write(cherry.act(383_531, &rebuild, soon()).await),
        other => panic!("{other} is not called"),
    }
}

/// What is wrong with an outcome, given what the vendor answered.
fn fault(operation: &str, status: u16, example: Option<&str>, outcome: Outcome) -> Option<String> {
    let wanted = match status {
        200..=299 => None,
        404 if outcome.absent_is_fine => None,
        400 => Some(of_refusal(operation, example)),
        401..=403 => Some("upstream_refused"),
        404 => Some("not_found"),
        409 => Some("conflict"),
        429 => Some("upstream_busy"),
        500.. if outcome.is_write => Some("upstream_pending"),
        500.. => Some("upstream_unavailable"),
        _ => Some("a status that nobody has thought of"),
    };
    let shown = format!("{:?}", outcome.result);
    let is_unknown = matches!(outcome.result, Err(VendorError::Unknown { .. }));
    if is_unknown != (outcome.is_write && status >= 500) {
        return Some(format!("whether it is known what became of it: {shown}"));
    }
    let code = outcome.result.err().map(|why| failed(why).code().as_str());
    (code != wanted).then(|| format!("it is {code:?} instead of {wanted:?}: {shown}"))
}

/// The code that callers see of a 400, by the name of its example.
fn of_refusal(operation: &str, example: Option<&str>) -> &'static str {
    match example.unwrap_or("usual") {
        "price_moved" => "price_moved",
        "not_available" | "domain_not_available" | "domain_too_short" | "not_renewable" => {
            "domain_not_available"
        }
        "too_expensive" => "order_too_expensive",
        "contact_required" | "invalid_additional_contact_info" => "contact_refused",
        // Of this body only the contact comes from people.
        "decode" if operation == "buySingleDomain" => "contact_refused",
        "language_code_required" => "language_code_required",
        "not_registered" | "domain_not_registered" => "not_found",
        "tld" | "tld_not_supported" => "tld_not_supported",
        "already_renewing" => "conflict",
        "bought_too_recently" => "upstream_pending",
        "out_of_stock" => "out_of_stock",
        "no_credit" => "upstream_refused",
        "bad_field" | "bad_request" | "decode" | "usual" => "invalid_field",
        _ => "an example that nobody has thought of",
    }
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Vendor {
    Vercel,
    Cherry,
}

/// The mock skips a check without a word when a schema does not compile: a body that no operation takes must be noticed
/// by each that takes one.
async fn notices_wrong_bodies(prism: &Prism, document: &schema::Document) {
    let all = document.operations_with_body();
    assert!(!all.is_empty());
    for (operation, method, path) in all {
        let path: Vec<&str> = path
            .split('/')
            .map(|part| match part {
                "{domain}" => "agent-seven.dev",
                "{recordId}" => "rec_a1",
                "{projectId}" => "321",
                "{serverId}" => "383531",
                other => other,
            })
            .collect();
        let call = Call::new(prism.addr, &method, &path.join("/")).header("authorization", "Bearer t");
        let answer = call.json(json!({"nonsense": true})).await;
        let noticed = answer.header("sl-violations").is_some() && answer.status >= 400;
        assert!(noticed, "{operation} takes anything: {} {}", answer.status, answer.text());
    }
}

async fn hold_to(vendor: Vendor, operations: &[&str]) {
    let (file, document) = match vendor {
        Vendor::Vercel => ("vercel.openapi.json", schema::vercel()),
        Vendor::Cherry => ("cherryservers.openapi.json", schema::cherry()),
    };
    let prism = Prism::start(file).await;
    notices_wrong_bodies(&prism, &document).await;
    let document = Arc::new(document);
    let mut cases = Vec::new();
    for operation in operations {
        for (status, examples) in document.answers(operation) {
            let examples: Vec<Option<String>> =
                if examples.is_empty() { vec![None] } else { examples.into_iter().map(Some).collect() };
            let of = |example| Wanted { operation: (*operation).to_owned(), status, example };
            cases.extend(examples.into_iter().map(of));
        }
    }
    let total = cases.len();
    let to = prism.addr;
    let each = |wanted: Wanted| {
        let document = Arc::clone(&document);
        async move {
            let wire = Wire::lay(to, document, wanted.clone()).await;
            let outcome = match vendor {
                Vendor::Vercel => ask_vercel(&vercel(&wire.url, "t"), &wanted.operation).await,
                Vendor::Cherry => ask_cherry(&cherry(&wire.url, "t"), &wanted.operation).await,
            };
            let heard = wire.heard();
            let mut wrong: Vec<String> = heard.violations;
            wrong.extend(fault(&wanted.operation, wanted.status, wanted.example.as_deref(), outcome));
            if heard.met == 0 {
                wrong.push("the operation was not called".to_owned());
            }
            wrong.into_iter().map(|what| format!("{wanted:?}: {what}")).collect::<Vec<_>>()
        }
    };
    let wrong: Vec<Vec<String>> = stream::iter(cases).map(each).buffer_unordered(AT_ONCE).collect().await;
    let wrong = wrong.concat();
    assert!(wrong.is_empty(), "of {total} answers {} are wrong:\n{}", wrong.len(), wrong.join("\n"));
    assert!(total >= operations.len() * 5, "only {total} answers were asked for");
}

#[test]
fn every_documented_operation_is_called_or_is_said_not_to_be() {
    let docs = include_str!(concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/vendors.md"));
    for (document, called, not_called) in [
        (schema::vercel(), &VERCEL[..], &NOT_OF_VERCEL[..]),
        (schema::cherry(), &CHERRY[..], &NOT_OF_CHERRY[..]),
    ] {
        let listed = called.iter().copied().chain(not_called.iter().map(|(name, _)| *name));
        let mut listed: Vec<&str> = listed.collect();
        listed.sort_unstable();
        let all = document.operations();
        let mut all: Vec<&str> = all.iter().map(|(name, ..)| name.as_str()).collect();
        all.sort_unstable();
        assert_eq!(listed, all);
        for (name, why) in not_called {
            assert!(docs.contains(&format!("`{name}`")), "docs/vendors.md does not say: {name}: {why}");
        }
    }
}

#[tokio::test]
async fn the_registrars_client_keeps_to_the_document() {
    hold_to(Vendor::Vercel, &VERCEL).await;
}

#[tokio::test]
async fn the_client_for_servers_keeps_to_the_document() {
    hold_to(Vendor::Cherry, &CHERRY).await;
}
