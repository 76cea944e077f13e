//! Silence is the agent's own only while the server could hear: not while it was stopped, not while its database was
//! away, not when a clock jumped.
//!
//! On a clock that the test moves (the library) hours pass at once; as processes the same is shown with the shortest
//! interval, and for as long as `OTONIX_FAULT_STOP_SECS` says.

use std::time::{Duration, Instant};

use chrono::TimeDelta;
use otonix_control_plane::auth::Caller;
use otonix_control_plane::service::activity;
use otonix_control_plane::store::list::Query;
use otonix_control_plane::worker::liveness::Liveness;
use otonix_sdk::ids::AgentId;
use otonix_sdk::standing::AgentStatus;
use rustix::process::Signal;
use serde_json::json;

use super::chaos::Proxy;
use super::library::Library;
use super::postgres::own_cluster;
use super::setting;
use crate::support::poll::until_true;
use crate::support::{Agent, Server, Store, on_each_store};

on_each_store!(
    real_silence_is_marked_once,
    a_stop_of_ten_minutes_marks_nobody,
    a_clock_jump_of_a_day_either_way_marks_nobody,
    a_server_stopped_for_longer_than_the_silence_marks_nobody,
    a_frozen_server_marks_nobody,
);

/// The library's agents beat this often, so that ten minutes are ten intervals.
const MINUTE: u32 = 60;
/// A pass of the worker in the library's time; less than what counts as a jump.
const STEP_SECS: i64 = 3;

struct Scene {
    library: Library,
    owner: Caller,
    agent: AgentId,
    liveness: Liveness,
}

impl Scene {
    async fn new(store: Store) -> Self {
        let library = Library::on(store).await;
        let owner = library.owner().await;
        let agent = library.register(&owner, "a", MINUTE).await;
        library.grant(agent, 100_000_000).await;
        library.beat(&owner, agent).await;
        Self { library, owner, agent, liveness: Liveness::default() }
    }

    async fn sweep(&mut self) {
        self.liveness.run_once(&self.library.app).await.expect("a pass");
    }

    /// The worker's passes while so much time goes by without a beat.
    async fn silence(&mut self, secs: i64) {
        for _ in 0..secs / STEP_SECS {
            self.library.pass(STEP_SECS);
            self.sweep().await;
        }
    }

    async fn status(&self) -> AgentStatus {
        self.library.status(&self.owner, self.agent).await
    }

    /// How often the log says that it is inactive.
    async fn marks(&self) -> usize {
        let query = Query { limit: 1000, ..Query::default() };
        let page =
            activity::actions_of(&self.library.app, &self.owner, self.agent, query).await.expect("a list");
        page.rows.iter().filter(|row| row.action == "agent is inactive").count()
    }

    /// The server stops and starts again: nothing of its memory is left.
    async fn restart(&mut self) {
        self.library.stop().await;
        self.library = self.library.again().await;
        self.liveness = Liveness::default();
    }
}

async fn real_silence_is_marked_once(store: Store) {
    let mut scene = Scene::new(store).await;
    scene.silence(177).await;
    assert_eq!(scene.status().await, AgentStatus::Active, "not before three intervals");
    scene.silence(30).await;
    assert_eq!(scene.status().await, AgentStatus::Inactive);
    scene.silence(600).await;
    assert_eq!(scene.marks().await, 1);
    scene.library.beat(&scene.owner, scene.agent).await;
    assert_eq!(scene.status().await, AgentStatus::Active);
}

async fn a_stop_of_ten_minutes_marks_nobody(store: Store) {
    let mut scene = Scene::new(store).await;
    scene.silence(60).await;
    scene.library.pass(600);
    scene.restart().await;
    scene.sweep().await;
    assert_eq!(scene.status().await, AgentStatus::Active);
    scene.silence(177).await;
    assert_eq!(scene.status().await, AgentStatus::Active, "it has three intervals to come back");
    scene.silence(30).await;
    assert_eq!(scene.status().await, AgentStatus::Inactive, "then its silence is its own");
}

async fn a_clock_jump_of_a_day_either_way_marks_nobody(store: Store) {
    let day = TimeDelta::days(1);
    for jumps in [vec![day], vec![-day], vec![day, -day], vec![-day, day]] {
        let mut scene = Scene::new(store).await;
        scene.silence(60).await;
        for jump in &jumps {
            scene.library.clock.advance(*jump);
            scene.sweep().await;
            assert_eq!(scene.status().await, AgentStatus::Active, "{jumps:?}");
            scene.silence(150).await;
            assert_eq!(scene.status().await, AgentStatus::Active, "{jumps:?}");
            // Beats on the new clock count.
            scene.library.beat(&scene.owner, scene.agent).await;
            scene.silence(150).await;
            assert_eq!(scene.status().await, AgentStatus::Active, "{jumps:?}");
        }
        assert_eq!(scene.marks().await, 0);
        scene.silence(60).await;
        assert_eq!(scene.status().await, AgentStatus::Inactive, "{jumps:?}: silence is still seen");
        // A crash and a start on the jumped clock: nobody waits for a lease of another time.
        scene.library.beat(&scene.owner, scene.agent).await;
        scene.library.clock.advance(-day);
        scene.restart().await;
        scene.silence(150).await;
        assert_eq!(scene.status().await, AgentStatus::Active, "{jumps:?}");
        scene.silence(60).await;
        assert_eq!(scene.status().await, AgentStatus::Inactive, "{jumps:?}: silence is still seen");
    }
}

/// The shortest interval, and three of them.
const INTERVAL: u64 = 5;
const SILENCE: Duration = Duration::from_secs(3 * INTERVAL);

fn stop_time() -> Duration {
    Duration::from_secs(setting("OTONIX_FAULT_STOP_SECS", 17))
}

async fn quick(server: &Server, name: &str) -> Agent {
    let key = server.key(name).await;
    let wallet = "0x2a18000000000000000000000000000000000461";
    let body = json!({"name": name, "heartbeatInterval": INTERVAL, "walletAddress": wallet});
    let agent = server.register_with(&key, body).await;
    server.beat(&agent).await;
    agent
}

async fn is_active(server: &Server, agent: &Agent) -> bool {
    server.look(agent).await["status"] == "active"
}

/// For nearly three intervals the agents stay active; then their silence is their own, and is marked once.
async fn silence_starts_now(server: &Server, agents: &[&Agent]) {
    let since = Instant::now();
    while since.elapsed() < SILENCE - Duration::from_secs(2) {
        for agent in agents {
            assert!(
                is_active(server, agent).await,
                "marked {:?} after the server could hear again",
                since.elapsed()
            );
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    for agent in agents {
        until_true("its own silence counts", Duration::from_secs(20), async || {
            !is_active(server, agent).await
        })
        .await;
        let actions = server.get(&agent.path("actions")).key(&agent.key).await.list();
        assert_eq!(
            actions.iter().filter(|row| row["action"] == "agent is inactive").count(),
            1,
            "{actions:?}"
        );
    }
}

async fn a_server_stopped_for_longer_than_the_silence_marks_nobody(store: Store) {
    let mut server = Server::start(store).await;
    let agent = quick(&server, "a").await;
    tokio::time::sleep(Duration::from_millis(1500)).await;
    server.kill();
    tokio::time::sleep(stop_time()).await;
    server.crash().await;
    silence_starts_now(&server, &[&agent]).await;
}

/// SIGSTOP: to the server no clock has jumped, and yet it has not heard.
async fn a_frozen_server_marks_nobody(store: Store) {
    let server = Server::start(store).await;
    let agent = quick(&server, "a").await;
    tokio::time::sleep(Duration::from_secs(4)).await;
    server.signal(Signal::STOP);
    tokio::time::sleep(stop_time()).await;
    server.signal(Signal::CONT);
    silence_starts_now(&server, &[&agent]).await;
}

/// What cuts the server off from its database.
#[derive(Debug, Clone, Copy)]
enum Outage {
    /// Connections are refused.
    Refused,
    /// Connections stay and say nothing.
    Silent,
}

async fn an_outage(outage: Outage) {
    let proxy = Proxy::start(own_cluster().await.addr()).await;
    let database = own_cluster().await.database().await;
    let one = Server::on(database).via(Some(proxy.addr)).start().await;
    let quiet = quick(&one, "quiet").await;
    let faithful = quick(&one, "faithful").await;
    tokio::time::sleep(Duration::from_secs(4)).await;
    match outage {
        Outage::Refused => proxy.refuse(),
        Outage::Silent => proxy.stall(),
    }
    let since = Instant::now();
    while since.elapsed() < stop_time() {
        one.beat(&faithful).await;
        tokio::time::sleep(Duration::from_millis(500)).await;
    }
    proxy.clear();
    until_true("it is ready", Duration::from_secs(10), async || one.get("/readyz").await.status == 200).await;
    let beats = {
        let call = one.post(&faithful.path("heartbeat")).key(&faithful.key);
        tokio::spawn(async move {
            loop {
                call.clone().await.ok(200);
                tokio::time::sleep(Duration::from_secs(1)).await;
            }
        })
    };
    silence_starts_now(&one, &[&quiet]).await;
    let actions = one.get(&faithful.path("actions")).key(&faithful.key).await.list();
    assert_eq!(actions, Vec::<serde_json::Value>::new(), "nothing happened to the one that beat");
    beats.abort();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_database_that_is_away_marks_nobody() {
    an_outage(Outage::Refused).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_database_that_says_nothing_marks_nobody() {
    an_outage(Outage::Silent).await;
}
