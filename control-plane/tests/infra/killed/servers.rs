//! The next period of a server, its end when nobody pays, and its reboot when its agent is silent.

use chrono::{Months, TimeDelta};
use otonix_sdk::standing::AgentStatus;

use super::{At, LONG, Scene};
use crate::fake::switches::How;
use crate::support::{Store, on_each_store};

on_each_store!(
    killed_anywhere_a_server_is_extended_once,
    killed_anywhere_a_server_that_nobody_pays_is_ended_once,
    killed_anywhere_a_server_is_rebooted_as_often_as_is_noted,
);

async fn killed_anywhere_a_server_is_extended_once(store: Store) {
    let mut scene = Scene::open(store).await;
    let mut points =
        vec![At::Vendor("getTeam", How::Late(LONG)), At::Vendor("listTeamPlans", How::Late(LONG))];
    points.extend(At::commit("purchases", "NEW.kind = 'period'"));
    for (n, at) in scene.points(&points).into_iter().enumerate() {
        let agent = scene.town.agent(&format!("a{n}"), 100).await;
        let machine = scene.machine(&agent, 10 + n as u64, TimeDelta::hours(23)).await;
        let end = scene.town.sandbox(machine).await.paid_until.expect("an end");
        scene.killed(at).await;
        scene.live(3).await;
        let later = end.checked_add_months(Months::new(1));
        assert_eq!(scene.town.sandbox(machine).await.paid_until, later, "{at:?}");
        // 8.25 and 21 % of it.
        assert_eq!(scene.town.credits(agent.id).await, "90.0175", "{at:?}");
        assert_eq!(scene.done("serverAction", ""), 0, "nothing is asked of the vendor");
        scene.checked().await;
    }
}

async fn killed_anywhere_a_server_that_nobody_pays_is_ended_once(store: Store) {
    let mut scene = Scene::open(store).await;
    // Paid for so many minutes more: powered off, or deleted at once.
    let mut points = vec![
        (9, At::Vendor("serverAction", How::Late(LONG))),
        (9, At::Vendor("serverAction", How::Unheard)),
        (4, At::Vendor("deleteServer", How::Late(LONG))),
        (4, At::Vendor("deleteServer", How::Unheard)),
    ];
    for (minutes, when) in [
        (9, "NEW.powered_off_at IS NOT NULL AND NEW.status = 'running'"),
        (9, "NEW.powered_off_at IS NOT NULL AND NEW.status = 'stopped'"),
        (4, "NEW.ending_at IS NOT NULL AND NEW.deleted_at IS NULL"),
        (4, "NEW.deleted_at IS NOT NULL"),
    ] {
        points.extend(At::commit("sandboxes", when).map(|at| (minutes, at)));
    }
    let there = scene.points(&points.iter().map(|(_, at)| *at).collect::<Vec<_>>());
    for (n, (minutes, at)) in points.into_iter().filter(|(_, at)| there.contains(at)).enumerate() {
        let agent = scene.town.agent(&format!("a{n}"), 3).await;
        let id = 10 + n as u64;
        let machine = scene.machine(&agent, id, TimeDelta::minutes(minutes)).await;
        scene.killed(at).await;
        if minutes == 9 {
            scene.live(1).await;
            assert!(!scene.fake.with(|world| world.cherry.machines[&id].powered), "{at:?}");
            assert_eq!(scene.town.sandbox(machine).await.status, "stopped", "{at:?}");
        }
        scene.live(12).await;
        let row = scene.town.sandbox(machine).await;
        assert_eq!((row.managed, row.status.as_str()), (false, "stopped"), "{at:?}");
        assert!(scene.fake.with(|world| world.cherry.machines[&id].deleted_at.is_some()), "{at:?}");
        assert_eq!(scene.done("deleteServer", &format!("/{id}")), 1, "{at:?}");
        assert_eq!(scene.town.failures(agent.id, "server ").await, 1, "{at:?}: warned of once");
        let log = scene.town.log(agent.id).await;
        for line in ["ends: nobody paid for it", "was deleted"] {
            let told = log.iter().filter(|action| action.action.ends_with(line)).count();
            assert_eq!(told, 1, "{at:?}: {line}: {log:?}");
        }
        assert_eq!(scene.town.credits(agent.id).await, "3", "{at:?}");
        scene.checked().await;
    }
}

async fn killed_anywhere_a_server_is_rebooted_as_often_as_is_noted(store: Store) {
    let mut scene = Scene::open(store).await;
    // How often it is rebooted when the other replica has seen to it: a crash may lose a reboot, and repeats none.
    let mut points = vec![
        (At::Vendor("getServer", How::Late(LONG)), 1),
        (At::Vendor("serverAction", How::Late(LONG)), 1),
        (At::Vendor("serverAction", How::Unheard), 0),
    ];
    let [lands, undone] = At::commit("healings", "NEW.step = 'reboot'");
    points.extend([(lands, 0), (undone, 1)]);
    let there = scene.points(&points.iter().map(|(at, _)| *at).collect::<Vec<_>>());
    for (n, (at, rebooted)) in points.into_iter().filter(|(at, _)| there.contains(at)).enumerate() {
        let agent = scene.town.agent(&format!("a{n}"), 20).await;
        let id = 10 + n as u64;
        scene.machine(&agent, id, TimeDelta::days(20)).await;
        scene.town.heard(agent.id, AgentStatus::Active).await;
        scene.pass(TimeDelta::minutes(10));
        scene.town.heard(agent.id, AgentStatus::Inactive).await;
        scene.heal().await;
        let commands = scene.town.commands(agent.id).await;
        assert_eq!(commands.len(), 1, "{at:?}: its process first");
        scene.pass(TimeDelta::minutes(6));
        scene.killed(at).await;
        let reboots = || scene.fake.with(|world| world.cherry.machines[&id].reboots);
        let noted = async || {
            let log = scene.town.log(agent.id).await;
            log.iter().filter(|line| line.action.ends_with("server is rebooted")).count()
        };
        for _ in 0..3 {
            scene.heal().await;
        }
        assert_eq!((reboots(), noted().await), (rebooted, 1), "{at:?}");
        scene.pass(TimeDelta::minutes(5));
        scene.heal().await;
        scene.heal().await;
        assert_eq!((reboots(), noted().await), (rebooted + 1, 2), "{at:?}: the next one in its time");
        assert_eq!(scene.town.commands(agent.id).await.len(), 1, "{at:?}");
        scene.town.heard(agent.id, AgentStatus::Active).await;
        scene.heal().await;
        scene.checked().await;
    }
}
