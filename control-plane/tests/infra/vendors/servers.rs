//! The client of the seller of servers against the fake.

use otonix_control_plane::upstream::cherry::Cherry;
use otonix_control_plane::upstream::http::vendor_url;
use otonix_control_plane::upstream::providers::{
    ComputeProvider as _, Currency, Cycle, Refusal, ServerAction, ServerStatus,
};
use otonix_sdk::secret::Secret;

use super::{amount, cherry, machine, slug, soon};
use crate::fake::Fake;
use crate::fake::cherry::PROJECT;
use crate::fake::switches::How;

const PLAN: &str = "B1-1-1gb-20s-shared";

#[tokio::test]
async fn the_only_team_of_a_token_is_billed() {
    let fake = Fake::start();
    for project in [None, Some(PROJECT), Some(999)] {
        let url = vendor_url(&fake.url()).expect("an address on this machine");
        let cherry = Cherry::new(url, Secret::from(fake.token()), None, project).expect("a client");
        assert_eq!(cherry.plans().await.expect("plans").len(), 2, "{project:?}");
    }
    assert!(fake.violations().is_empty(), "{:?}", fake.violations());
}

#[tokio::test]
async fn what_an_order_names_is_looked_up_by_itself() {
    let fake = Fake::start();
    let cherry = cherry(&fake.url(), fake.token());
    assert_eq!(cherry.account().await.expect("an account").email.as_deref(), Some("ops@example.com"));
    let project = cherry.project(PROJECT).await.expect("an answer").expect("a project");
    assert_eq!((project.id, project.name.as_str()), (PROJECT, "project-321"));
    assert_eq!(cherry.project(999).await, Ok(None));
    assert!(cherry.region(&slug("LT-Siauliai")).await.expect("an answer").is_some());
    assert_eq!(cherry.region(&slug("nowhere")).await, Ok(None));
    // Its price is the one of the list, VAT included.
    let plan = cherry.plan(&slug(PLAN)).await.expect("an answer").expect("a plan");
    let listed = cherry.plans().await.expect("plans");
    assert!(listed.contains(&plan), "{plan:?}");
    assert_eq!(cherry.plan(&slug("none")).await, Ok(None));
    assert!(fake.violations().is_empty(), "{:?}", fake.violations());
}

#[tokio::test]
async fn a_server_is_bought_found_by_its_tag_and_ended() {
    let fake = Fake::start();
    let cherry = cherry(&fake.url(), fake.token());
    fake.with(|world| world.cherry.looks = 2);
    let order = machine();
    let created = cherry.create(&order, soon()).await.expect("a server");
    assert_eq!((&created.server.status, created.server.address), (&ServerStatus::Deploying, None));
    let password = created.password.as_ref().expect("a password").expose().to_owned();
    let shown = format!("{created:?} {:?} {order:?}", created.server);
    assert!(!shown.contains(&password) && !shown.contains("one-time-token"), "{shown}");
    let id = created.server.id;
    let found = cherry.servers(PROJECT).await.expect("a list");
    assert_eq!(
        found.iter().filter(|server| server.tags == order.tags).map(|one| one.id).collect::<Vec<_>>(),
        [id]
    );
    while cherry.server(id).await.expect("an answer").expect("a server").status == ServerStatus::Deploying {}
    let server = cherry.server(id).await.expect("an answer").expect("a server");
    assert_eq!(server.status, ServerStatus::Deployed);
    assert!(server.address.is_some_and(|address| address.is_ipv4()), "{server:?}");
    let credentials = cherry.credentials(id).await.expect("an answer").expect("a server");
    assert_eq!(credentials.password.expect("a password").expose(), password);
    let new_password = Secret::from("abcD1efgh");
    for action in [
        ServerAction::Reboot,
        ServerAction::PowerOff,
        ServerAction::PowerOn,
        ServerAction::Rebuild {
            image: slug("debian_12_64bit"),
            hostname: "agent-seven".to_owned(),
            password: new_password.clone(),
            ssh_keys: vec![1],
            user_data: Some(Secret::from("#!/bin/sh\n")),
        },
        ServerAction::EnterRescueMode { password: new_password.clone() },
        ServerAction::ExitRescueMode,
    ] {
        cherry.act(id, &action, soon()).await.expect("done");
    }
    let (reboots, rebuilds, script) = fake.with(|world| {
        let machine = &world.cherry.machines[&id];
        (machine.reboots, machine.rebuilds, machine.user_data.clone())
    });
    assert_eq!((reboots, rebuilds), (1, 1));
    assert_eq!(script.as_deref(), Some("#!/bin/sh\necho one-time-token\n"));
    cherry.delete(id, soon()).await.expect("gone");
    cherry.delete(id, soon()).await.expect("gone before");
    assert_eq!(cherry.server(id).await.expect("an answer"), None);
    assert!(fake.violations().is_empty(), "{:?}", fake.violations());
}

#[tokio::test]
async fn every_server_of_a_project_is_seen_or_none() {
    let fake = Fake::start();
    let cherry = cherry(&fake.url(), fake.token());
    fake.with(|world| (1..=350).for_each(|id| world.cherry.put(id, PLAN, "10.0.0.1")));
    let ids = async || -> Vec<u64> {
        let all = cherry.servers(PROJECT).await.expect("a list");
        all.iter().map(|server| server.id).collect()
    };
    assert_eq!(ids().await, (1..=350).collect::<Vec<u64>>());
    assert_eq!(fake.count("listServers"), 4);
    // One of the first page goes while the list is read: what follows moves up, and nobody is passed over.
    fake.with(|world| world.cherry.going = vec![7]);
    assert_eq!(ids().await, (1..=350).filter(|id| *id != 7).collect::<Vec<u64>>());
    // The second page is not answered: that is no list, and no empty one.
    fake.fail("listServers", How::Late(std::time::Duration::ZERO));
    fake.fail_times("listServers", How::Instead(500), 9);
    let why = cherry.servers(PROJECT).await.expect_err("half a list");
    assert_eq!(why.refusal(), Some(Refusal::Unavailable));
    fake.mend();
    // A list that never stands still is none either.
    fake.with(|world| world.cherry.going = (100..200).collect());
    assert!(cherry.servers(PROJECT).await.is_err());
    assert!(fake.violations().is_empty(), "{:?}", fake.violations());
}

#[tokio::test]
async fn the_refusals_of_an_order_are_told_apart_and_nothing_is_sent_twice() {
    let fake = Fake::start();
    let cherry = cherry(&fake.url(), fake.token());
    let refused = async |order, reason| {
        let before = fake.count("createServer");
        let why = cherry.create(&order, soon()).await.expect_err("refused");
        assert_eq!(why.refusal(), reason, "{why:?}");
        assert_eq!(fake.count("createServer") - before, 1);
    };
    let mut elsewhere = machine();
    elsewhere.region = slug("NL-Amsterdam");
    refused(elsewhere, Some(Refusal::OutOfStock)).await;
    let mut unknown = machine();
    unknown.image = slug("no_such_image");
    refused(unknown, Some(Refusal::Invalid)).await;
    fake.with(|world| world.cherry.is_broke = true);
    refused(machine(), Some(Refusal::NoCredit)).await;
    fake.with(|world| world.cherry.is_broke = false);
    let mut other_project = machine();
    other_project.project = 999;
    refused(other_project, Some(Refusal::NotFound)).await;
    for how in [How::Lost, How::Half, How::Instead(500), How::ActThen(502)] {
        fake.fail("createServer", how);
        refused(machine(), None).await;
    }
    fake.fail("createServer", How::TooOften);
    refused(machine(), Some(Refusal::RateLimited)).await;
    // Only hourly and monthly are billed there: nothing is sent for another cycle.
    let mut yearly = machine();
    yearly.cycle = Cycle::Annually;
    let before = fake.count("createServer");
    assert_eq!(cherry.create(&yearly, soon()).await.expect_err("no cycle").refusal(), Some(Refusal::Invalid));
    assert_eq!(fake.count("createServer"), before);
}

#[tokio::test]
async fn prices_are_as_they_are_billed() {
    for (currency, taxed, vat, hourly) in
        [("USD", false, 21, "0.01815"), ("EUR", true, 21, "0.015"), ("EUR", false, 0, "0.015")]
    {
        let fake = Fake::start();
        let cherry = cherry(&fake.url(), fake.token());
        fake.with(|world| {
            world.cherry.currency = currency.to_owned();
            world.cherry.taxed = taxed;
            world.cherry.vat = vat;
        });
        let plans = cherry.plans().await.expect("plans");
        let plan = plans.iter().find(|plan| plan.slug.as_str() == PLAN).expect("the plan");
        let unit = plan.prices.iter().find(|unit| unit.cycle == Cycle::Hourly).expect("by the hour");
        assert_eq!((unit.price, &unit.currency), (amount(hourly), &Currency::from(currency.to_owned())));
        assert_eq!((plan.cpu, plan.memory, plan.disk), (Some(1), Some(1024), Some(20)));
        let metal = plans.iter().find(|plan| plan.slug.as_str() == "e3_1240v3").expect("the other plan");
        assert_eq!(metal.prices.len(), 4, "spot prices are not sold: {:?}", metal.prices);
        let images = cherry.images(&slug(PLAN)).await.expect("images");
        assert_eq!(images.iter().filter(|image| image.licensed).count(), 1);
    }
}

#[tokio::test]
async fn the_pace_stays_under_the_vendors_limit() {
    let fake = Fake::start();
    let cherry = cherry(&fake.url(), fake.token());
    // Four evenly, and one for requests that reach the vendor closer together than they left.
    fake.limit(Some(5));
    for _ in 0..12 {
        cherry.regions().await.expect("regions");
    }
    assert!(fake.seen().iter().all(|seen| seen.status == 200), "the vendor said: too often");
}
