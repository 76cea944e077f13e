//! Servers of ours that are not as they were thought to be: gone, without a price, turned off by their owner; and what many
//! of them ask of a vendor.

use chrono::TimeDelta;
use otonix_control_plane::service::purchases::offers;
use otonix_control_plane::service::servers;
use otonix_control_plane::worker::{lifetime, recovery, zones};
use otonix_sdk::api::purchases::ExtendServer;
use otonix_sdk::standing::AgentStatus;
use serde_json::json;

use crate::support::database::execute;
use crate::support::{Store, on_each_store};
use crate::town::{Fault, Town, zone_record};

on_each_store!(
    a_server_that_is_gone_is_paid_no_more,
    a_price_that_nobody_gives_is_told_of,
    what_is_sold_is_asked_for_once_a_pass,
    a_server_that_its_owner_turned_off_is_left_alone,
    no_domain_points_at_a_server_that_has_ended,
    a_server_that_could_not_be_installed_takes_no_money,
);

fn minutes(n: i64) -> TimeDelta {
    TimeDelta::minutes(n)
}

async fn pass(town: &Town) {
    lifetime::run_once(&town.app).await.expect("a pass");
}

async fn a_server_that_is_gone_is_paid_no_more(store: Store) {
    let town = Town::on(store).await;
    let agent = town.agent("a", 100).await;
    let (lost, late) = (
        town.server(&agent, 7, "monthly", TimeDelta::hours(23)).await,
        town.server(&agent, 8, "monthly", TimeDelta::hours(23)).await,
    );
    // Somebody has deleted one in the vendor's dashboard; the other is only not shown for a while.
    for id in [7, 8] {
        town.desk.0.lock().servers.remove(&id);
    }
    for _ in 0..3 {
        pass(&town).await;
        town.pass(minutes(20));
    }
    assert_eq!(town.credits(agent.id).await, "100");
    town.desk.0.lock().servers.insert(8, true);
    for _ in 0..3 {
        pass(&town).await;
    }
    assert_eq!(town.credits(agent.id).await, "95", "one of them is paid");
    assert!(town.sandbox(late).await.paid_until.expect("an end") > town.now() + TimeDelta::days(20));
    for name in ["server server-7 is gone", "server server-8 is gone"] {
        assert_eq!(town.failures(agent.id, name).await, 1, "told once");
    }
    // What may be there is not deleted before its time.
    assert!(town.sandbox(lost).await.managed);
    assert!(town.desk.0.lock().done.is_empty());
    town.pass(TimeDelta::hours(22) - minutes(4));
    for _ in 0..3 {
        pass(&town).await;
    }
    let row = town.sandbox(lost).await;
    assert_eq!((row.managed, row.status.as_str()), (false, "stopped"));
    assert_eq!((town.credits(agent.id).await.as_str(), town.desk.0.lock().count("delete 8")), ("95", 0));
    town.audit().await;
}

async fn a_price_that_nobody_gives_is_told_of(store: Store) {
    let town = Town::on(store).await;
    let agent = town.agent("a", 100).await;
    let server = town.server(&agent, 7, "monthly", TimeDelta::hours(23)).await;
    let end = town.sandbox(server).await.paid_until.expect("an end");
    town.desk.0.lock().is_silent = true;
    for _ in 0..3 {
        pass(&town).await;
    }
    assert_eq!(town.failures(agent.id, "server server-7 has no price").await, 0, "it may pass");
    town.pass(TimeDelta::hours(12));
    for _ in 0..3 {
        pass(&town).await;
    }
    assert_eq!(town.failures(agent.id, "server server-7 has no price").await, 1);
    assert!(town.desk.0.lock().done.is_empty(), "unknown is not unpaid");
    town.desk.0.lock().is_silent = false;
    pass(&town).await;
    assert!(town.sandbox(server).await.paid_until.expect("an end") > end);
    town.audit().await;
}

async fn what_is_sold_is_asked_for_once_a_pass(store: Store) {
    let town = Town::on(store).await;
    // Too poor for any of them, by the hour or the month.
    let agent = town.agent("a", 2).await;
    town.desk.0.lock().hour_cents = 300;
    for id in 1..=20 {
        let cycle = if id % 2 == 0 { "hourly" } else { "monthly" };
        town.server(&agent, id, cycle, TimeDelta::minutes(100)).await;
    }
    for passes in 1..=3 {
        pass(&town).await;
        assert_eq!(town.desk.0.lock().plans_asked, passes);
    }
    assert_eq!(town.credits(agent.id).await, "2");
}

async fn a_server_that_its_owner_turned_off_is_left_alone(store: Store) {
    let town = Town::on(store).await;
    let owner = town.owner().await;
    let agent = town.register(&owner, "a").await;
    town.grant(agent.id, 20).await;
    let server = town.server(&agent, 7, "monthly", TimeDelta::days(20)).await;
    town.heard(agent.id, AgentStatus::Active).await;
    let act = async |kind: &str| {
        let body = serde_json::from_value(json!({"type": kind})).expect("a body");
        servers::act(&town.app, &owner, 7, body, None).await.map(|_| ()).expect("it is done");
    };
    act("power-off").await;
    assert_eq!(town.sandbox(server).await.status, "stopped");
    town.pass(minutes(10));
    town.heard(agent.id, AgentStatus::Inactive).await;
    for _ in 0..4 {
        recovery::run_once(&town.app).await.expect("a pass");
        town.pass(minutes(6));
    }
    assert!(town.commands(agent.id).await.is_empty());
    assert_eq!(town.desk.0.lock().done, ["off 7"], "nobody turns it on again");
    act("power-on").await;
    assert_eq!(town.sandbox(server).await.status, "running");
    recovery::run_once(&town.app).await.expect("a pass");
    assert_eq!(town.commands(agent.id).await.len(), 1);
}

async fn no_domain_points_at_a_server_that_has_ended(store: Store) {
    let town = Town::on(store).await;
    let owner = town.owner().await;
    let agent = town.register(&owner, "a").await;
    town.grant(agent.id, 2).await;
    let unpaid = town.server_at(&agent, 7, "monthly", minutes(30), "10.0.0.7").await;
    let deleted = town.server_at(&agent, 8, "monthly", TimeDelta::days(20), "10.0.0.8").await;
    let mut domains = Vec::new();
    for (name, server, address) in [("a.example", unpaid, "10.0.0.7"), ("b.example", deleted, "10.0.0.8")] {
        // The desk has one zone for all; what matters is whose address stands in it.
        let domain = town.domain(&agent, name, TimeDelta::days(300), Some(server)).await;
        town.desk.0.lock().records.push(zone_record(&format!("mx-{address}"), "", "MX", "10 mail.example"));
        domains.push(domain);
    }
    zones::run_once(&town.app).await.expect("a pass");
    let pointing = async || {
        let known = town.desk.0.lock().records.clone();
        let mut shown: Vec<String> =
            known.iter().filter(|record| record.kind == "A").map(|record| record.value.clone()).collect();
        shown.sort();
        shown
    };
    assert_eq!(pointing().await, ["10.0.0.7", "10.0.0.8"]);
    // One ends because nobody pays, the other because its owner ends it.
    servers::end(&town.app, &owner, 8).await.expect("it is ended");
    town.pass(minutes(26));
    pass(&town).await;
    assert!(!town.sandbox(unpaid).await.managed);
    // The first record goes, and the answer is lost: it is looked at again before anything else is sent.
    town.desk.0.lock().faults.push_back(Fault::Unheard);
    for _ in 0..4 {
        zones::run_once(&town.app).await.expect("a pass");
        town.pass(minutes(4));
    }
    assert!(pointing().await.is_empty(), "{:?}", pointing().await);
    assert_eq!(town.desk.0.lock().count("unrecord"), 2, "each once");
    assert_eq!(town.desk.0.lock().records.iter().filter(|record| record.kind == "MX").count(), 2);
    for domain in domains {
        let copied = town.domain_row(domain).await.dns_records;
        assert!(copied.iter().all(|record| record.kind != "A"), "{copied:?}");
    }
    // It does not come back either.
    town.pass(minutes(30));
    zones::run_once(&town.app).await.expect("a pass");
    assert!(pointing().await.is_empty());
}

async fn a_server_that_could_not_be_installed_takes_no_money(store: Store) {
    let town = Town::on(store).await;
    let owner = town.owner().await;
    let agent = town.register(&owner, "a").await;
    town.grant(agent.id, 20).await;
    town.server(&agent, 7, "monthly", TimeDelta::days(20)).await;
    let offer = async || offers::period(&town.app, &owner, 7, ExtendServer::default()).await;
    assert!(offer().await.is_ok());
    execute(&town.place.url, "UPDATE sandboxes SET status = 'error'").await;
    let refused = offer().await.map(|_| ()).expect_err("it is the operator's");
    assert_eq!(refused.code().as_str(), "conflict");
}
