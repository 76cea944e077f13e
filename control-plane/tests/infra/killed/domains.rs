//! Renewals and zones.

use std::time::Duration;

use chrono::{Months, TimeDelta};

use super::{At, LONG, Scene, whole_seconds};
use crate::fake::switches::How;
use crate::support::{Store, on_each_store};

on_each_store!(
    killed_anywhere_a_domain_is_renewed_once,
    killed_anywhere_a_zone_gets_each_record_once,
    a_renewal_that_cannot_be_paid_is_told_of_once_by_whoever_lives,
);

async fn killed_anywhere_a_domain_is_renewed_once(store: Store) {
    let mut scene = Scene::open(store).await;
    let mut points = vec![
        // What the registrar says of the domain, its price; nothing is set aside yet.
        At::Vendor("getDomain", How::Late(LONG)),
        At::Vendor("getDomainPrice", How::Late(LONG)),
        // Sent: done; done later; never heard.
        At::Vendor("renewDomain", How::Late(LONG)),
        At::Vendor("renewDomain", How::ActLater(Duration::from_millis(500))),
        At::Vendor("renewDomain", How::Unheard),
        At::Vendor("getOrder", How::Late(LONG)),
    ];
    // Set aside with the turn; the attempt; the vendor's order; the end.
    for when in [
        "NEW.status = 'paid'",
        "NEW.status = 'executing' AND NEW.vendor_ref IS NULL",
        "NEW.status = 'executing' AND NEW.vendor_ref IS NOT NULL",
        "NEW.status = 'delivered'",
    ] {
        points.extend(At::commit("purchases", when));
    }
    for (n, at) in scene.points(&points).into_iter().enumerate() {
        let name = format!("renewed-{n}.com");
        let agent = scene.town.agent(&name, 100).await;
        let domain = scene.domain(&agent, &name, 20, None).await;
        let end = scene.town.domain_row(domain).await.expires_at.expect("an end");
        scene.killed(at).await;
        if let At::Vendor(_, How::ActLater(wait)) = at {
            // It is the vendor's clock that must come to it.
            tokio::time::sleep(wait).await;
        }
        scene.live(16).await;
        let renewed = || scene.fake.with(|world| world.vercel.renewed.get(&name).copied()).unwrap_or(0);
        if renewed() == 0 {
            // What was not sent is not sent late: the money is back, and the next turn comes.
            assert_eq!(scene.town.credits(agent.id).await, "100", "{at:?}");
            scene.pass(TimeDelta::days(1));
            scene.live(5).await;
        }
        assert_eq!(renewed(), 1, "{at:?}");
        let later = end.checked_add_months(Months::new(12)).map(whole_seconds);
        let now = scene.town.domain_row(domain).await.expires_at.map(whole_seconds);
        assert_eq!(now, later, "{at:?}");
        assert_eq!(scene.town.credits(agent.id).await, "88.75", "{at:?}");
        scene.checked().await;
    }
}

async fn killed_anywhere_a_zone_gets_each_record_once(store: Store) {
    let mut scene = Scene::open(store).await;
    let mut points = vec![
        At::Vendor("getRecords", How::Late(LONG)),
        At::Vendor("createRecord", How::Late(LONG)),
        At::Vendor("createRecord", How::Unheard),
        At::Vendor("createRecord", How::ActThen(500)),
    ];
    // The look, and its end.
    for when in ["NEW.zone_seen_at IS NOT NULL AND NEW.zone_address IS NULL", "NEW.zone_address IS NOT NULL"]
    {
        points.extend(At::commit("domains", when));
    }
    for (n, at) in scene.points(&points).into_iter().enumerate() {
        let name = format!("zone-{n}.com");
        let agent = scene.town.agent(&name, 50).await;
        let machine = scene.machine(&agent, 10 + n as u64, TimeDelta::days(20)).await;
        let domain = scene.domain(&agent, &name, 300, Some(machine)).await;
        scene.killed(at).await;
        scene.live(12).await;
        let records = scene.fake.with(|world| world.vercel.domains[&name].records.clone());
        let kinds: Vec<_> = records.iter().filter_map(|record| record["type"].as_str()).collect();
        assert_eq!(kinds, ["A", "CNAME"], "{at:?}: {records:?}");
        let asked = scene.fake.seen();
        let again = asked.iter().filter(|seen| seen.operation == "createRecord" && seen.status == 409);
        assert_eq!(again.count(), 0, "{at:?}: what is there is not added again");
        let points_at = scene.town.log(agent.id).await;
        let told = points_at.iter().filter(|line| line.action.starts_with("domain ")).count();
        assert!(told <= 1, "{at:?}: {points_at:?}");
        // The next one is looked at by itself.
        scene.town.point(domain, None).await;
        scene.checked().await;
    }
}

async fn a_renewal_that_cannot_be_paid_is_told_of_once_by_whoever_lives(store: Store) {
    let mut scene = Scene::open(store).await;
    let mut points = vec![At::Vendor("getDomainPrice", How::Late(LONG))];
    points.extend(At::commit("domains", "NEW.renewal_at IS NOT NULL"));
    for (n, at) in scene.points(&points).into_iter().enumerate() {
        let name = format!("poor-{n}.com");
        let agent = scene.town.agent(&name, 9).await;
        scene.domain(&agent, &name, 20, None).await;
        scene.killed(at).await;
        // Other replicas come, and every hour of the days that are left one of them has another look.
        for _ in 0..19 {
            scene.live(1).await;
            scene.pass(TimeDelta::days(1));
        }
        let told = scene.town.failures(agent.id, &format!("domain {name} is not renewed")).await;
        assert_eq!((told, scene.town.credits(agent.id).await.as_str()), (1, "9"), "{at:?}");
        assert_eq!(scene.town.commands(agent.id).await.len(), 1, "{at:?}: warned once over its session");
        scene.pass(TimeDelta::days(2));
        scene.live(1).await;
        scene.checked().await;
    }
}
