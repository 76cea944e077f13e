//! What acts without a human, on a clock that the test moves, with two replicas and vendors whose answers go astray.

use chrono::{Months, TimeDelta};
use otonix_control_plane::service::{automation, children};
use otonix_control_plane::worker::{births, lifetime, purchases, recovery, renewal, zones};
use otonix_sdk::api::enrolment::NewChild;
use otonix_sdk::money::{Amount, MicroUsd};
use otonix_sdk::standing::AgentStatus;
use serde_json::json;

use crate::seat::fresh;
use crate::support::{Store, on_each_store};
use crate::town::{Fault, Town, zone_record};

on_each_store!(
    a_server_is_extended_once_by_either_replica,
    a_server_that_nobody_pays_is_warned_of_swept_and_ended,
    money_in_time_brings_a_server_back,
    a_server_by_the_hour_lives_as_long_as_the_credits_last,
    a_plan_that_is_sold_no_more_is_paid_on,
    an_answer_that_is_lost_ends_no_server_twice,
    a_domain_is_renewed_once_by_either_replica,
    a_renewal_that_cannot_be_paid_is_told_of_once,
    a_renewal_at_another_price_waits_for_the_operator,
    a_domain_follows_what_the_registrar_says,
    a_lost_answer_never_renews_twice,
    a_domain_points_at_its_server_and_keeps_pointing,
    a_silent_agent_is_healed_step_by_step,
    a_silent_fleet_is_nobody_s_illness,
    few_are_healed_at_once,
    an_agent_that_stays_stalled_gets_its_server_rebooted,
    a_child_is_born_with_a_server,
    a_child_without_its_server_is_not_born,
);

fn hours(n: i64) -> TimeDelta {
    TimeDelta::hours(n)
}

fn minutes(n: i64) -> TimeDelta {
    TimeDelta::minutes(n)
}

async fn a_server_is_extended_once_by_either_replica(store: Store) {
    let town = Town::on(store).await;
    let other = town.again().await;
    let agent = town.agent("a", 100).await;
    let server = town.server(&agent, 7, "monthly", TimeDelta::days(10)).await;
    let end = town.sandbox(server).await.paid_until.expect("an end");
    lifetime::run_once(&town.app).await.expect("a pass");
    assert_eq!(town.sandbox(server).await.paid_until, Some(end), "too early");
    town.pass(TimeDelta::days(9) + minutes(1));
    let (one, two) = tokio::join!(lifetime::run_once(&town.app), lifetime::run_once(&other.app));
    // On SQLite each of two processes takes every lease; the row decides.
    assert!(one.is_ok() || two.is_ok(), "{one:?} {two:?}");
    for _ in 0..3 {
        town.stop().await;
        lifetime::run_once(&other.app).await.expect("a pass");
        other.stop().await;
        lifetime::run_once(&town.app).await.expect("a pass");
    }
    let later = end.checked_add_months(Months::new(1)).expect("a time");
    assert_eq!(town.sandbox(server).await.paid_until, Some(later));
    assert_eq!(town.credits(agent.id).await, "95");
    assert!(town.desk.0.lock().done.is_empty(), "nothing is asked of the vendor");
    town.audit().await;
}

async fn a_server_that_nobody_pays_is_warned_of_swept_and_ended(store: Store) {
    let town = Town::on(store).await;
    let agent = town.agent("a", 3).await;
    let server = town.server(&agent, 7, "monthly", hours(25)).await;
    lifetime::run_once(&town.app).await.expect("a pass");
    assert!(town.commands(agent.id).await.is_empty());
    town.pass(hours(1));
    for _ in 0..3 {
        lifetime::run_once(&town.app).await.expect("a pass");
        town.pass(minutes(1));
    }
    // Told once, and the wallet is asked for what it has.
    assert_eq!(town.failures(agent.id, "server server-7 is not paid").await, 1);
    let commands = town.commands(agent.id).await;
    assert_eq!(commands.iter().map(|command| command.kind.as_str()).collect::<Vec<_>>(), ["sweep"]);
    town.pass(hours(24) - minutes(13));
    town.stop().await;
    let again = town.again().await;
    for _ in 0..3 {
        lifetime::run_once(&again.app).await.expect("a pass");
    }
    assert_eq!(town.desk.0.lock().done, ["off 7"]);
    assert_eq!(town.sandbox(server).await.status, "stopped");
    again.stop().await;
    town.pass(minutes(5));
    for _ in 0..3 {
        lifetime::run_once(&town.app).await.expect("a pass");
    }
    // Before the end of what is paid, since the vendor bills the next period from there on.
    assert!(town.now() < town.sandbox(server).await.paid_until.expect("an end"));
    assert_eq!(town.desk.0.lock().done, ["off 7", "delete 7"]);
    let row = town.sandbox(server).await;
    assert_eq!((row.managed, row.status.as_str()), (false, "stopped"));
    assert_eq!(town.credits(agent.id).await, "3");
    town.audit().await;
}

async fn money_in_time_brings_a_server_back(store: Store) {
    let town = Town::on(store).await;
    let agent = town.agent("a", 2).await;
    let server = town.server(&agent, 7, "monthly", minutes(9)).await;
    lifetime::run_once(&town.app).await.expect("a pass");
    assert_eq!(town.desk.0.lock().done, ["off 7"]);
    town.grant(agent.id, 20).await;
    town.pass(minutes(2));
    for _ in 0..3 {
        lifetime::run_once(&town.app).await.expect("a pass");
    }
    assert_eq!(town.desk.0.lock().done, ["off 7", "on 7"]);
    assert_eq!(town.sandbox(server).await.status, "running");
    assert_eq!(town.credits(agent.id).await, "17");
    town.audit().await;
}

async fn a_server_by_the_hour_lives_as_long_as_the_credits_last(store: Store) {
    let town = Town::on(store).await;
    // 1.30 USDC at 20 cents an hour: not a day, but six hours; then nothing is left to live on.
    town.desk.0.lock().hour_cents = 20;
    let agent = town.agent("a", 2).await;
    let server = town.server(&agent, 7, "hourly", hours(1)).await;
    let end = town.sandbox(server).await.paid_until.expect("an end");
    lifetime::run_once(&town.app).await.expect("a pass");
    assert_eq!(town.sandbox(server).await.paid_until, Some(end + hours(6)));
    assert_eq!(town.credits(agent.id).await, "0.8");
    town.pass(hours(7) - minutes(4));
    lifetime::run_once(&town.app).await.expect("a pass");
    assert_eq!(town.desk.0.lock().done, ["delete 7"]);
    town.audit().await;
}

async fn an_answer_that_is_lost_ends_no_server_twice(store: Store) {
    let town = Town::on(store).await;
    let agent = town.agent("a", 2).await;
    town.server(&agent, 7, "monthly", minutes(9)).await;
    // Refused, done without an answer, and done again: off is off.
    town.desk.0.lock().faults.extend([Fault::Refused, Fault::Unheard]);
    for _ in 0..3 {
        lifetime::run_once(&town.app).await.expect("a pass");
    }
    assert_eq!(town.desk.0.lock().done, ["off 7", "off 7"]);
    town.pass(minutes(5));
    town.stop().await;
    town.desk.0.lock().faults.extend([Fault::Refused, Fault::Unheard]);
    for _ in 0..4 {
        let again = town.again().await;
        lifetime::run_once(&again.app).await.expect("a pass");
        again.stop().await;
    }
    assert_eq!(town.desk.0.lock().count("delete 7"), 2);
    assert!(town.desk.0.lock().servers.is_empty());
    town.audit().await;
}

async fn a_domain_is_renewed_once_by_either_replica(store: Store) {
    let town = Town::on(store).await;
    let other = town.again().await;
    let agent = town.agent("a", 100).await;
    let domain = town.domain(&agent, "a.example", TimeDelta::days(31), None).await;
    let end = town.domain_row(domain).await.expires_at.expect("an end");
    renewal::run_once(&town.app).await.expect("a pass");
    assert_eq!(town.credits(agent.id).await, "100", "too early");
    town.pass(TimeDelta::days(1) + minutes(1));
    let (one, two) = tokio::join!(renewal::run_once(&town.app), renewal::run_once(&other.app));
    assert!(one.is_ok() || two.is_ok(), "{one:?} {two:?}");
    // Set aside, and not spent yet.
    assert_eq!(town.credits(agent.id).await, "90");
    for _ in 0..4 {
        town.stop().await;
        renewal::run_once(&other.app).await.expect("a pass");
        purchases::run_once(&other.app).await.expect("a pass");
        other.stop().await;
        renewal::run_once(&town.app).await.expect("a pass");
        purchases::run_once(&town.app).await.expect("a pass");
        town.pass(minutes(5));
    }
    assert_eq!(town.desk.0.lock().done, ["renew a.example"]);
    let later = end.checked_add_months(Months::new(12)).expect("a time");
    assert_eq!(town.domain_row(domain).await.expires_at, Some(later));
    assert_eq!(town.credits(agent.id).await, "90");
    town.audit().await;
}

async fn a_renewal_that_cannot_be_paid_is_told_of_once(store: Store) {
    let town = Town::on(store).await;
    let agent = town.agent("a", 9).await;
    let domain = town.domain(&agent, "a.example", TimeDelta::days(29), None).await;
    for _ in 0..40 {
        renewal::run_once(&town.app).await.expect("a pass");
        town.pass(hours(12));
    }
    assert_eq!(town.failures(agent.id, "domain a.example is not renewed").await, 1);
    let commands = town.commands(agent.id).await;
    assert_eq!(commands.iter().map(|command| command.kind.as_str()).collect::<Vec<_>>(), ["sweep"]);
    assert_eq!(town.credits(agent.id).await, "9");
    // With credits it is renewed at its next turn.
    town.grant(agent.id, 5).await;
    town.pass(TimeDelta::days(1));
    renewal::run_once(&town.app).await.expect("a pass");
    for _ in 0..4 {
        purchases::run_once(&town.app).await.expect("a pass");
        town.pass(minutes(1));
    }
    let renewed = town.desk.0.lock().count("renew");
    assert_eq!((renewed, town.credits(agent.id).await.as_str()), (1, "4"));
    assert_eq!(town.domain_row(domain).await.status, "active");
    town.audit().await;
}

async fn a_renewal_at_another_price_waits_for_the_operator(store: Store) {
    let town = Town::on(store).await;
    let agent = town.agent("a", 100).await;
    town.domain(&agent, "a.example", TimeDelta::days(20), None).await;
    // Quoted were 10.00: 12.50 is paid, 12.51 is not.
    town.desk.0.lock().renewal_cents = 1251;
    for _ in 0..3 {
        renewal::run_once(&town.app).await.expect("a pass");
        town.pass(TimeDelta::days(1));
    }
    assert_eq!(town.failures(agent.id, "domain a.example is not renewed").await, 1);
    assert_eq!(town.credits(agent.id).await, "100");
    town.desk.0.lock().renewal_cents = 1250;
    renewal::run_once(&town.app).await.expect("a pass");
    assert_eq!(town.credits(agent.id).await, "87.5");
    town.audit().await;
}

async fn a_domain_follows_what_the_registrar_says(store: Store) {
    let town = Town::on(store).await;
    let agent = town.agent("a", 100).await;
    let elsewhere = town.domain(&agent, "elsewhere.example", TimeDelta::days(5), None).await;
    let over = town.domain(&agent, "over.example", TimeDelta::days(5), None).await;
    let gone = town.domain(&agent, "gone.example", TimeDelta::days(5), None).await;
    town.pass(TimeDelta::days(6));
    let later = town.now() + TimeDelta::days(360);
    town.desk.0.lock().domains.insert("elsewhere.example".to_owned(), later);
    town.desk.0.lock().domains.remove("gone.example");
    for _ in 0..2 {
        renewal::run_once(&town.app).await.expect("a pass");
        town.pass(hours(2));
    }
    let row = town.domain_row(elsewhere).await;
    assert_eq!((row.status.as_str(), row.expires_at), ("active", Some(later)));
    assert_eq!(town.domain_row(over).await.status, "expired");
    assert_eq!(town.domain_row(gone).await.status, "active", "unknown is not expired");
    let renewed = town.desk.0.lock().count("renew");
    assert_eq!((renewed, town.credits(agent.id).await.as_str()), (0, "100"));
}

async fn a_lost_answer_never_renews_twice(store: Store) {
    let town = Town::on(store).await;
    let agent = town.agent("a", 100).await;
    let domain = town.domain(&agent, "a.example", TimeDelta::days(2), None).await;
    let end = town.domain_row(domain).await.expires_at.expect("an end");
    town.desk.0.lock().faults.push_back(Fault::Unheard);
    for _ in 0..8 {
        // Every pass is another process: whatever was in memory is gone.
        let again = town.again().await;
        renewal::run_once(&again.app).await.expect("a pass");
        purchases::run_once(&again.app).await.expect("a pass");
        again.stop().await;
        town.pass(minutes(20));
    }
    assert_eq!(town.desk.0.lock().done, ["renew a.example"]);
    let later = end.checked_add_months(Months::new(12)).expect("a time");
    assert_eq!(town.domain_row(domain).await.expires_at, Some(later));
    assert_eq!(town.credits(agent.id).await, "90");
    town.audit().await;
}

async fn a_domain_points_at_its_server_and_keeps_pointing(store: Store) {
    let town = Town::on(store).await;
    let agent = town.agent("a", 10).await;
    let server = town.server(&agent, 7, "monthly", TimeDelta::days(20)).await;
    let domain = town.domain(&agent, "a.example", TimeDelta::days(300), Some(server)).await;
    town.desk.0.lock().records.push(zone_record("rec_mail", "", "MX", "10 mail.example"));
    // The first record is added and its answer lost: nobody looks again at once, and it is not added again.
    town.desk.0.lock().faults.push_back(Fault::Unheard);
    let other = town.again().await;
    for _ in 0..3 {
        zones::run_once(&town.app).await.expect("a pass");
        town.stop().await;
        zones::run_once(&other.app).await.expect("a pass");
        other.stop().await;
    }
    assert_eq!(town.desk.0.lock().done, ["record A  10.0.0.1"]);
    town.pass(minutes(4));
    zones::run_once(&town.app).await.expect("a pass");
    assert_eq!(town.desk.0.lock().done, ["record A  10.0.0.1", "record CNAME www a.example"]);
    // What is taken away comes back; what is somebody else's stays.
    town.desk.0.lock().records.retain(|record| record.kind != "A");
    town.pass(minutes(11));
    zones::run_once(&town.app).await.expect("a pass");
    assert_eq!(town.desk.0.lock().count("record A"), 2);
    // It is linked to another server: the domain follows, and the old address goes.
    let next = town.server_at(&agent, 8, "monthly", TimeDelta::days(20), "10.0.0.2").await;
    town.link(domain, next).await;
    town.pass(minutes(4));
    zones::run_once(&town.app).await.expect("a pass");
    let there: Vec<String> = town
        .desk
        .0
        .lock()
        .records
        .iter()
        .map(|record| format!("{} {} {}", record.kind, record.name, record.value))
        .collect();
    assert_eq!(there, ["MX  10 mail.example", "CNAME www a.example", "A  10.0.0.2"]);
    // In its place, so that the domain points somewhere at every moment; and the domain's own row says so.
    assert_eq!(town.desk.0.lock().done.last().map(String::as_str), Some("change A  10.0.0.2"));
    let copied = async || {
        let rows = town.domain_row(domain).await.dns_records;
        rows.iter().map(|row| format!("{} {} {}", row.kind, row.name, row.value)).collect::<Vec<_>>()
    };
    assert_eq!(copied().await, ["CNAME www a.example", "A @ 10.0.0.2"]);
    // The answer to a change is lost: it is seen to be done, and not done again.
    let third = town.server_at(&agent, 9, "monthly", TimeDelta::days(20), "10.0.0.3").await;
    town.link(domain, third).await;
    town.pass(minutes(4));
    town.desk.0.lock().faults.push_back(Fault::Unheard);
    zones::run_once(&town.app).await.expect("a pass");
    town.pass(minutes(4));
    zones::run_once(&town.app).await.expect("a pass");
    assert_eq!(town.desk.0.lock().count("change A  10.0.0.3"), 1);
    assert_eq!(copied().await, ["CNAME www a.example", "A @ 10.0.0.3"]);
}

async fn a_plan_that_is_sold_no_more_is_paid_on(store: Store) {
    let town = Town::on(store).await;
    let agent = town.agent("a", 20).await;
    let server = town.server(&agent, 7, "monthly", hours(23)).await;
    let end = town.sandbox(server).await.paid_until.expect("an end");
    town.desk.0.lock().is_withdrawn = true;
    lifetime::run_once(&town.app).await.expect("a pass");
    let later = end.checked_add_months(Months::new(1)).expect("a time");
    assert_eq!(town.sandbox(server).await.paid_until, Some(later));
    assert_eq!(town.credits(agent.id).await, "15");
}

async fn a_silent_agent_is_healed_step_by_step(store: Store) {
    let town = Town::on(store).await;
    let other = town.again().await;
    let agent = town.agent("a", 20).await;
    town.server(&agent, 7, "monthly", TimeDelta::days(20)).await;
    town.heard(agent.id, AgentStatus::Active).await;
    town.pass(minutes(10));
    town.heard(agent.id, AgentStatus::Inactive).await;
    let pass = async |at: &Town| {
        recovery::run_once(&at.app).await.expect("a pass");
        at.stop().await;
    };
    for _ in 0..3 {
        pass(&town).await;
        pass(&other).await;
    }
    let commands = town.commands(agent.id).await;
    assert_eq!(commands.iter().map(|command| command.kind.as_str()).collect::<Vec<_>>(), ["restart_agent"]);
    assert!(town.desk.0.lock().done.is_empty(), "one kind of evidence reboots nothing");
    for reboots in 1..=3 {
        town.pass(minutes(5));
        // The vendor may have done it or not: it is noted as tried.
        town.desk.0.lock().faults.push_back(Fault::Unheard);
        for _ in 0..3 {
            pass(&town).await;
            pass(&other).await;
        }
        assert_eq!(town.desk.0.lock().count("reboot 7"), reboots);
    }
    town.pass(minutes(5));
    for _ in 0..3 {
        pass(&town).await;
        town.pass(minutes(6));
    }
    assert_eq!(town.desk.0.lock().count("reboot 7"), 3);
    assert_eq!(town.failures(agent.id, "healing: the agent does not come back").await, 1);
    // It comes back by itself in the end.
    town.heard(agent.id, AgentStatus::Active).await;
    pass(&town).await;
    pass(&town).await;
    let log = town.log(agent.id).await;
    let heard = log.iter().filter(|line| line.action == "healing: the agent is heard again").count();
    assert_eq!(heard, 1);
    assert_eq!(town.app.shared.metrics.healing_successes.get(), 1);
    // A restart and three reboots, whoever is asked and however often it was started since.
    let done = automation::done(&town.again().await.app).await.expect("the database");
    assert_eq!((done.counts.healing_attempts, done.counts.healing_successes), (4, 1));
}

async fn a_silent_fleet_is_nobody_s_illness(store: Store) {
    let town = Town::on(store).await;
    let mut fleet = Vec::new();
    for n in 0..4 {
        let agent = town.agent(&format!("a{n}"), 20).await;
        town.server(&agent, 10 + n, "monthly", TimeDelta::days(20)).await;
        town.heard(agent.id, AgentStatus::Active).await;
        fleet.push(agent);
    }
    town.pass(minutes(10));
    for agent in &fleet[..3] {
        town.heard(agent.id, AgentStatus::Inactive).await;
    }
    for _ in 0..3 {
        recovery::run_once(&town.app).await.expect("a pass");
        town.pass(minutes(6));
    }
    for agent in &fleet {
        assert!(town.commands(agent.id).await.is_empty());
    }
    assert!(town.desk.0.lock().done.is_empty());
}

async fn few_are_healed_at_once(store: Store) {
    let town = Town::on(store).await;
    let mut fleet = Vec::new();
    for n in 0..6 {
        let agent = town.agent(&format!("a{n}"), 20).await;
        town.server(&agent, 10 + n, "monthly", TimeDelta::days(20)).await;
        town.heard(agent.id, AgentStatus::Active).await;
        fleet.push(agent);
    }
    town.pass(minutes(10));
    for agent in &fleet[..3] {
        town.heard(agent.id, AgentStatus::Inactive).await;
    }
    for _ in 0..3 {
        recovery::run_once(&town.app).await.expect("a pass");
    }
    let mut told = 0;
    for agent in &fleet {
        told += town.commands(agent.id).await.len();
    }
    assert_eq!(told, 1, "at least one, and no more than a twentieth of the fleet");
}

async fn an_agent_that_stays_stalled_gets_its_server_rebooted(store: Store) {
    let town = Town::on(store).await;
    let (agent, homeless) = (town.agent("a", 20).await, town.agent("b", 20).await);
    town.server(&agent, 7, "monthly", TimeDelta::days(20)).await;
    for _ in 0..3 {
        assert!(!recovery::reboot_stalled(&town.app, homeless.id.uuid()).await.expect("a look"));
    }
    let mut rebooted = 0;
    for _ in 0..30 {
        rebooted += i32::from(recovery::reboot_stalled(&town.app, agent.id.uuid()).await.expect("a look"));
        recovery::run_once(&town.app).await.expect("a pass");
        town.pass(minutes(2));
    }
    assert_eq!((rebooted, town.desk.0.lock().count("reboot 7")), (3, 3), "three a day");
    assert_eq!(town.app.shared.metrics.healing_successes.get(), 0);
}

fn child(name: &str, server: Option<serde_json::Value>) -> NewChild {
    NewChild {
        name: name.to_owned(),
        genesis_prompt: None,
        budget: Amount::new(MicroUsd::from_micros(20_000_000)).expect("an amount"),
        model: None,
        server,
    }
}

fn order() -> serde_json::Value {
    json!({"plan": "vps", "region": "here", "image": "linux", "hostname": "nursery", "cycle": "monthly"})
}

async fn a_child_is_born_with_a_server(store: Store) {
    let town = Town::on(store).await;
    let agent = town.agent("a", 100).await;
    let body = child("c", Some(order()));
    let born = children::create(&town.app, &Town::operator(), agent.id, body, None).await;
    let born = fresh(born.expect("a child"));
    assert!(born.purchase_id.is_some());
    assert_eq!(town.credits(agent.id).await, "75");
    for _ in 0..4 {
        purchases::run_once(&town.app).await.expect("a pass");
        births::run_once(&town.app).await.expect("a pass");
        town.pass(minutes(1));
    }
    assert_eq!(town.desk.0.lock().done, ["create nursery"]);
    assert_eq!((town.credits(agent.id).await, town.credits(born.agent.id).await), ("75".into(), "20".into()));
    town.audit().await;
}

async fn a_child_without_its_server_is_not_born(store: Store) {
    let town = Town::on(store).await;
    let agent = town.agent("a", 100).await;
    // What a server costs and the budget must both be there.
    town.desk.0.lock().month_cents = 8_001;
    let dear =
        children::create(&town.app, &Town::operator(), agent.id, child("c", Some(order())), None).await;
    assert!(dear.is_err());
    assert_eq!((town.credits(agent.id).await, town.look(agent.id).await.children_count), ("100".into(), 0));
    town.desk.0.lock().month_cents = 500;
    let born =
        children::create(&town.app, &Town::operator(), agent.id, child("c", Some(order())), None).await;
    let born = fresh(born.expect("a child"));
    // The price moves before it is bought.
    town.desk.0.lock().month_cents = 600;
    for _ in 0..3 {
        purchases::run_once(&town.app).await.expect("a pass");
        births::run_once(&town.app).await.expect("a pass");
        town.pass(minutes(1));
    }
    assert!(town.desk.0.lock().done.is_empty());
    assert_eq!((town.credits(agent.id).await, town.credits(born.agent.id).await), ("100".into(), "0".into()));
    assert!(town.look(born.agent.id).await.killed_at.is_some());
    town.audit().await;
}
