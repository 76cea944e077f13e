//! Every operation that the clients call, with every documented answer, against a stock mock server with the vendors'
//! documents. A request that is not as documented shows as a violation and fails the test.

use std::sync::Arc;

use futures_util::stream::{self, StreamExt as _};
use otonix_control_plane::upstream::cherry::Cherry;
use otonix_control_plane::upstream::providers::{
    ComputeProvider as _, DnsZone as _, NewRecord, RecordData, Refusal, Registrar as _, RenewDomain,
    ServerAction, VendorError,
};
use otonix_control_plane::upstream::vercel::Vercel;
use otonix_sdk::secret::Secret;

use super::prism::{Prism, Wanted, Wire};
use super::{amount, cherry, machine, name, order, slug, soon, vercel};
use crate::fake::schema;

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

const VERCEL: [&str; 12] = [
    "getDomainAvailability",
    "getBulkAvailability",
    "getDomainPrice",
    "getContactInfoSchema",
    "buySingleDomain",
    "renewDomain",
    "getOrder",
    "getDomains",
    "getDomain",
    "getRecords",
    "createRecord",
    "removeRecord",
];

async fn ask_vercel(vercel: &Vercel, operation: &str) -> Outcome {
    let domain = name("agent-seven.dev");
    let record =
        NewRecord { name: "www".to_owned(), ttl: 300, data: RecordData::Cname("example.com".to_owned()) };
    match operation {
        "getDomainAvailability" => read(vercel.available(&[domain]).await),
        "getBulkAvailability" => read(vercel.available(&[domain, name("example.com")]).await),
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

const CHERRY: [&str; 12] = [
    "listTeams",
    "getTeam",
    "listProjects",
    "listTeamPlans",
    "listPlanImages",
    "listRegions",
    "listCycles",
    "listServers",
    "createServer",
    "getServer",
    "deleteServer",
    "serverAction",
];

async fn ask_cherry(cherry: &Cherry, operation: &str) -> Outcome {
    let rebuild = ServerAction::Rebuild {
        image: slug("debian_12_64bit"),
        hostname: "agent-seven".to_owned(),
        password: Secret::from("abcD1efgh"),
        ssh_keys: vec![1],
        user_data: Some(Secret::from("#!/bin/sh\n")),
    };
    match operation {
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

/// What is wrong with an outcome, given the status that the vendor answered.
fn fault(status: u16, example: Option<&str>, outcome: &Outcome) -> Option<String> {
    let reason = match &outcome.result {
        Ok(()) => None,
        Err(VendorError::Unknown { .. }) if outcome.is_write && status >= 500 => return None,
        Err(VendorError::Unknown { .. }) => return Some(format!("not known: {:?}", outcome.result)),
        Err(VendorError::NotDone { reason, .. }) => Some(*reason),
    };
    let fine = match (status, reason) {
        (200..=299, reason) => reason.is_none(),
        (404, None) => outcome.absent_is_fine,
        (404, Some(reason)) => matches!(reason, Refusal::NotFound | Refusal::NotRegistered),
        (401 | 403, reason) => reason == Some(Refusal::Unauthorised),
        (429, reason) => reason == Some(Refusal::RateLimited),
        (500.., reason) => !outcome.is_write && reason == Some(Refusal::Unavailable),
        (402, reason) => reason == Some(Refusal::NoCredit),
        (409, reason) => reason == Some(Refusal::AlreadyThere),
        (400, reason) => reason.is_some_and(|reason| expected(example).is_none_or(|wanted| wanted == reason)),
        _ => false,
    };
    (!fine).then(|| format!("{:?}", outcome.result))
}

/// What the named examples of a 400 mean.
fn expected(example: Option<&str>) -> Option<Refusal> {
    match example? {
        "price_moved" => Some(Refusal::PriceMoved),
        "not_available" => Some(Refusal::DomainNotAvailable),
        "too_expensive" => Some(Refusal::TooExpensive),
        "contact_required" | "decode" => Some(Refusal::ContactRefused),
        "not_registered" => Some(Refusal::NotRegistered),
        "tld" => Some(Refusal::TldNotSupported),
        "out_of_stock" => Some(Refusal::OutOfStock),
        "bad_field" => Some(Refusal::Invalid),
        "no_credit" => Some(Refusal::NoCredit),
        _ => None,
    }
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Vendor {
    Vercel,
    Cherry,
}

async fn hold_to(vendor: Vendor, operations: &[&str]) {
    let (file, document) = match vendor {
        Vendor::Vercel => ("vercel.openapi.json", schema::vercel()),
        Vendor::Cherry => ("cherryservers.openapi.json", schema::cherry()),
    };
    let prism = Prism::start(file).await;
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
            wrong.extend(fault(wanted.status, wanted.example.as_deref(), &outcome));
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

#[tokio::test]
async fn the_registrars_client_keeps_to_the_document() {
    hold_to(Vendor::Vercel, &VERCEL).await;
}

#[tokio::test]
async fn the_client_for_servers_keeps_to_the_document() {
    hold_to(Vendor::Cherry, &CHERRY).await;
}
