//! Many at once on one balance: no unit too much, and a standing that is what its function says.

use std::sync::Arc;

use otonix_control_plane::error::Error;
use otonix_control_plane::service::agents;
use otonix_control_plane::service::ledger::{End, end, reserve};
use otonix_sdk::api::agents::Agent;
use otonix_sdk::clock::Clock as _;
use otonix_sdk::error::ErrorCode;
use otonix_sdk::ids::AgentId;
use otonix_sdk::money::{Amount, MicroUsd};
use otonix_sdk::standing::{AgentStatus, SurvivalTier, Thresholds, standing};
use proptest::prelude::*;
use proptest::test_runner::{Config, TestRunner};
use serde_json::json;
use uuid::Uuid;

use super::library::Library;
use super::setting;
use crate::support::{Server, Store, on_each_store};

on_each_store!(
    of_fifty_reservations_of_one_dollar_on_ten_ten_succeed,
    a_reservation_ends_once_however_often_it_is_ended,
    fifty_logs_of_one_dollar_on_ten_end_at_minus_forty,
    after_any_history_the_standing_is_its_function,
);

fn usdc(usdc: i64) -> i64 {
    usdc * 1_000_000
}

fn amount(micros: i64) -> Amount {
    Amount::new(MicroUsd::from_micros(micros)).expect("an amount")
}

async fn shown(library: &Library, agent: AgentId) -> Agent {
    agents::agent(&library.app, &Library::operator(), agent).await.expect("it is there")
}

/// Reserves fifty times at once, alternately through several apps on the database; how many succeeded.
async fn fifty(apps: &[&Library], agent: AgentId) -> Vec<Uuid> {
    let running: Vec<_> = (0..50)
        .map(|n| {
            let app = Arc::clone(&apps[n % apps.len()].app);
            tokio::spawn(async move { reserve(&app, agent, amount(usdc(1)), "test").await })
        })
        .collect();
    let mut held = Vec::new();
    for one in running {
        match one.await.expect("no panic") {
            Ok(id) => held.push(id),
            Err(Error::Conflict { code, .. }) => assert_eq!(code, ErrorCode::InsufficientCredits),
            Err(other) => panic!("{other}"),
        }
    }
    held
}

async fn of_fifty_reservations_of_one_dollar_on_ten_ten_succeed(store: Store) {
    let library = Library::on(store).await;
    let second = if store == Store::Postgres { Some(library.again().await) } else { None };
    let apps: Vec<&Library> = [&library].into_iter().chain(&second).collect();
    let owner = library.owner().await;
    for round in 0..5 {
        let agent = library.register(&owner, &format!("a{round}"), 60).await;
        library.grant(agent, usdc(10)).await;
        let held = fifty(&apps, agent).await;
        assert_eq!(held.len(), 10, "round {round}");
        assert_eq!(shown(&library, agent).await.credits, MicroUsd::ZERO);
        library.books().await;
        // Half of it is spent, half comes back: five more fit, no sixth.
        for (n, id) in held.iter().enumerate() {
            let how = if n % 2 == 0 { End::Settled { to: "withdrawals" } } else { End::Released };
            end(&apps[n % apps.len()].app, agent, *id, how).await.expect("it was held");
        }
        assert_eq!(fifty(&apps, agent).await.len(), 5, "round {round}");
        library.books().await;
    }
}

async fn a_reservation_ends_once_however_often_it_is_ended(store: Store) {
    let library = Library::on(store).await;
    let owner = library.owner().await;
    let agent = library.register(&owner, "a", 60).await;
    library.grant(agent, usdc(10)).await;
    let (mut settled, mut released) = (0, 0);
    for round in 0..10 {
        let id = reserve(&library.app, agent, amount(usdc(1)), "test").await.expect("covered");
        let running: Vec<_> = (0..10)
            .map(|n| {
                let app = Arc::clone(&library.app);
                let how = if n % 2 == round % 2 { End::Settled { to: "withdrawals" } } else { End::Released };
                tokio::spawn(async move { (how, end(&app, agent, id, how).await.is_ok()) })
            })
            .collect();
        let mut ends = Vec::new();
        for one in running {
            let (how, done) = one.await.expect("no panic");
            if done {
                ends.push(how);
            }
        }
        assert_eq!(ends.len(), 1, "it ends once: {ends:?}");
        match ends[0] {
            End::Settled { .. } => settled += 1,
            End::Released => released += 1,
        }
        // Once more of either changes nothing.
        for how in [End::Settled { to: "withdrawals" }, End::Released] {
            assert!(matches!(end(&library.app, agent, id, how).await, Err(Error::NotFound { .. })));
        }
        let left = usdc(10 - settled);
        assert_eq!(
            shown(&library, agent).await.credits.micros(),
            left,
            "{settled} settled, {released} released"
        );
        let books = library.books().await;
        let of = |name: &str| books.accounts.iter().find(|(n, _)| n == name).map_or(0, |(_, b)| b.micros());
        assert_eq!((of("withdrawals"), of("reserved")), (usdc(settled), 0));
    }
}

async fn fifty_logs_of_one_dollar_on_ten_end_at_minus_forty(store: Store) {
    let server = Server::start(store).await;
    let agent = server.agent("a").await;
    server.grant(&agent, "10").await;
    let running: Vec<_> = (0..50)
        .map(|_| {
            let body = json!({"model": "m", "tokensIn": 1, "cost": 1, "agentId": agent.id});
            tokio::spawn(server.post("/api/compute-logs").key(&agent.key).json(body).attempt())
        })
        .collect();
    for one in running {
        one.await.expect("no panic").expect("an answer").ok(201);
    }
    let answer = server.get(&agent.path("")).key(&agent.key).await;
    assert_eq!(answer.source("credits"), "-40");
    assert_eq!(answer.json()["survivalTier"], "terminated");
    assert_eq!(server.all(&agent.key, "/api/compute-logs").await.len(), 50);
    let actions = server.all(&agent.key, &agent.path("actions")).await;
    let told =
        actions.iter().filter(|row| row["action"].as_str().is_some_and(|text| text.contains("terminated")));
    assert_eq!(told.count(), 1, "terminated once: {actions:?}");
    server.audit();
}

/// One step of a history.
#[derive(Debug, Clone)]
enum Step {
    Grant(i64),
    Spend(i64),
    Reserve(i64),
    /// Ends one of the reservations so far, held or not.
    Settle(usize),
    Release(usize),
    /// Seconds.
    Pass(i64),
    /// The cache is forgotten, as by a restart.
    Restart,
}

/// Amounts around the boundaries of the tiers, and anything else.
fn micros() -> impl Strategy<Value = i64> {
    prop_oneof![
        proptest::sample::select(vec![
            1, 999_999, 1_000_000, 9_000_000, 10_000_000, 40_000_000, 50_000_000, 50_000_001
        ]),
        1_i64..60_000_000,
    ]
}

fn history() -> impl Strategy<Value = Vec<Step>> {
    let step = prop_oneof![
        3 => micros().prop_map(Step::Grant),
        4 => prop_oneof![Just(0), micros()].prop_map(Step::Spend),
        3 => micros().prop_map(Step::Reserve),
        2 => (0..8_usize).prop_map(Step::Settle),
        2 => (0..8_usize).prop_map(Step::Release),
        1 => (1..50_000_i64).prop_map(Step::Pass),
        1 => Just(Step::Restart),
    ];
    proptest::collection::vec(step, 1..30)
}

/// What must be true, kept beside the server.
#[derive(Debug, Default)]
struct Model {
    balance: i64,
    funded: bool,
    reservations: Vec<(Uuid, i64, bool)>,
    spent: i64,
    purchased: i64,
    granted: i64,
}

async fn after_any_history_the_standing_is_its_function(store: Store) {
    let library = Library::on(store).await;
    let owner = library.owner().await;
    let cases = u32::try_from(setting("OTONIX_FAULT_CASES", 24)).expect("a number of cases");
    let config = Config { failure_persistence: None, max_shrink_iters: 200, ..Config::with_cases(cases) };
    let handle = tokio::runtime::Handle::current();
    let judged = tokio::task::spawn_blocking(move || {
        let mut runner = TestRunner::new(config);
        let count = std::cell::Cell::new(0);
        runner.run(&history(), |history| {
            count.set(count.get() + 1);
            let live = live(&library, &owner, format!("h{}", count.get()), &history);
            handle.block_on(live).map_err(TestCaseError::fail)
        })
    });
    if let Err(why) = judged.await.expect("no panic") {
        panic!("{why}");
    }
}

/// Lives through a history, comparing after every step.
async fn live(
    library: &Library,
    owner: &otonix_control_plane::auth::Caller,
    name: String,
    history: &[Step],
) -> Result<(), String> {
    let before = library.books().await;
    let agent = library.register(owner, &name, 60).await;
    let grace = shown(library, agent).await.grace_until;
    let mut model = Model::default();
    let mut replica = None;
    for step in history {
        let library = replica.as_ref().unwrap_or(library);
        match step {
            Step::Grant(micros) => {
                library.grant(agent, *micros).await;
                model.balance += micros;
                model.granted += micros;
                model.funded = true;
            }
            Step::Spend(micros) => {
                library.spend(owner, agent, *micros).await;
                model.balance -= micros;
                model.spent += micros;
            }
            Step::Reserve(micros) => {
                let done = reserve(&library.app, agent, amount(*micros), "test").await;
                match (done, model.balance >= *micros) {
                    (Ok(id), true) => {
                        model.balance -= micros;
                        model.reservations.push((id, *micros, true));
                    }
                    (Err(Error::Conflict { .. }), false) => {}
                    (done, _) => return Err(format!("{step:?} on {}: {done:?}", model.balance)),
                }
            }
            Step::Settle(at) | Step::Release(at) => {
                let Some((id, micros, held)) = model.reservations.get_mut(*at) else { continue };
                let settles = matches!(step, Step::Settle(_));
                let how = if settles { End::Settled { to: "withdrawals" } } else { End::Released };
                let done = end(&library.app, agent, *id, how).await.is_ok();
                if done != *held {
                    return Err(format!("{step:?}: done {done}, held {held}"));
                }
                *held = false;
                match (done, settles) {
                    (true, true) => model.purchased += *micros,
                    (true, false) => model.balance += *micros,
                    (false, _) => {}
                }
            }
            Step::Pass(secs) => library.pass(*secs),
            Step::Restart => {
                replica = Some(library.again().await);
                continue;
            }
        }
        otonix_control_plane::worker::grace::run_once(&library.app).await.map_err(|why| why.to_string())?;
        compare(library, owner, agent, &model, grace).await.map_err(|why| format!("{why} after {step:?}"))?;
    }
    let after = library.books().await;
    let moved = |name: &str| {
        let of = |books: &otonix_control_plane::store::audit::Books| {
            books.accounts.iter().find(|(n, _)| n == name).map_or(0, |(_, balance)| balance.micros())
        };
        of(&after) - of(&before)
    };
    let held: i64 = model.reservations.iter().filter(|(.., held)| *held).map(|(_, micros, _)| micros).sum();
    let told = (moved("compute"), moved("withdrawals"), moved("reserved"), moved("grants"));
    let expected = (model.spent, model.purchased, held, -model.granted);
    if told == expected { Ok(()) } else { Err(format!("accounts moved by {told:?}, expected {expected:?}")) }
}

async fn compare(
    library: &Library,
    owner: &otonix_control_plane::auth::Caller,
    agent: AgentId,
    model: &Model,
    grace: Option<chrono::DateTime<chrono::Utc>>,
) -> Result<(), String> {
    let now = library.clock.now();
    let balance = MicroUsd::from_micros(model.balance);
    let tier = standing(balance, model.funded, grace, now, &Thresholds::default());
    let row = shown(library, agent).await;
    if (row.credits, row.survival_tier, row.funded) != (balance, tier, model.funded) {
        return Err(format!("{row:?} instead of {balance} {tier:?} {model:?}"));
    }
    if (row.status == AgentStatus::Terminated) != (tier == SurvivalTier::Terminated) {
        return Err(format!("{:?} in {tier:?}", row.status));
    }
    let ack = agents::heartbeat(&library.app, owner, agent).await.map_err(|why| why.to_string())?;
    if (ack.credits, ack.survival_tier, ack.funded) == (balance, tier, model.funded) {
        Ok(())
    } else {
        Err(format!("the heartbeat says {ack:?} instead of {balance} {tier:?}"))
    }
}
