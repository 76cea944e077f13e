//! A leader that is stopped (SIGSTOP) while a vendor has its question in hand, and goes on when another replica has its
//! lease and has done the work. On PostgreSQL alone: an embedded database has one server.

use chrono::TimeDelta;
use otonix_sdk::standing::AgentStatus;

use super::Scene;
use crate::support::Store;

#[tokio::test]
async fn a_paused_leader_renews_no_domain_again() {
    let mut scene = Scene::open(Store::Postgres).await;
    let agent = scene.town.agent("a", 100).await;
    scene.domain(&agent, "paused.com", 20, None).await;
    scene.paused("getDomain", async |scene: &Scene| scene.live(3).await).await;
    scene.live(16).await;
    assert_eq!(scene.fake.with(|world| world.vercel.renewed["paused.com"]), 1);
    assert_eq!(scene.town.credits(agent.id).await, "88.75");
    scene.checked().await;
}

#[tokio::test]
async fn a_paused_leader_pays_no_period_again() {
    let mut scene = Scene::open(Store::Postgres).await;
    let agent = scene.town.agent("a", 100).await;
    scene.machine(&agent, 10, TimeDelta::hours(23)).await;
    scene.paused("listTeamPlans", async |scene: &Scene| scene.live(3).await).await;
    scene.live(3).await;
    assert_eq!(scene.town.credits(agent.id).await, "90.0175");
    scene.checked().await;
}

#[tokio::test]
async fn a_paused_leader_adds_no_record_again() {
    let mut scene = Scene::open(Store::Postgres).await;
    let agent = scene.town.agent("a", 50).await;
    let machine = scene.machine(&agent, 10, TimeDelta::days(20)).await;
    scene.domain(&agent, "paused.com", 300, Some(machine)).await;
    scene.paused("getRecords", async |scene: &Scene| scene.live(5).await).await;
    // Asked twice, it would have been refused or added twice: neither has happened.
    assert_eq!(scene.fake.count("createRecord"), 2);
    assert_eq!(scene.fake.with(|world| world.vercel.domains["paused.com"].records.len()), 2);
    scene.checked().await;
}

#[tokio::test]
async fn a_paused_leader_reboots_no_server_again() {
    let mut scene = Scene::open(Store::Postgres).await;
    let agent = scene.town.agent("a", 20).await;
    scene.machine(&agent, 10, TimeDelta::days(20)).await;
    scene.town.heard(agent.id, AgentStatus::Active).await;
    scene.pass(TimeDelta::minutes(10));
    scene.town.heard(agent.id, AgentStatus::Inactive).await;
    scene.heal().await;
    scene.pass(TimeDelta::minutes(6));
    scene.paused("getServer", async |scene: &Scene| scene.heal().await).await;
    assert_eq!(scene.fake.with(|world| world.cherry.machines[&10].reboots), 1);
    let log = scene.town.log(agent.id).await;
    assert_eq!(log.iter().filter(|line| line.action.ends_with("server is rebooted")).count(), 1, "{log:?}");
    scene.checked().await;
}
