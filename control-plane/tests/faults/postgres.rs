//! PostgreSQL going away and coming back under load, in every way that it can.

use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use rand::Rng as _;
use serde_json::json;
use sqlx::{Connection as _, PgConnection};
use tokio_util::sync::CancellationToken;

use super::chaos::Proxy;
use super::load::{self, Client};
use super::{chance, crowd, setting};
use crate::support::database::{Cluster, Database, Durability};
use crate::support::link::{Link, hello};
use crate::support::poll::until_true;
use crate::support::{Agent, Call, Server};

/// How soon the service is whole again after its database is.
const RECOVERY: Duration = Duration::from_secs(8);

/// A PostgreSQL of this program's own: `TEST_DATABASE_URL` may name one that no proxy can stand before.
pub async fn own_cluster() -> &'static Cluster {
    static OWN: OnceLock<Cluster> = OnceLock::new();
    tokio::task::spawn_blocking(|| OWN.get_or_init(|| Cluster::start(Durability::None)))
        .await
        .expect("it starts")
}

/// Connects beside the server.
pub async fn beside(database: &Database) -> PgConnection {
    let url = database.url(None).expect("PostgreSQL");
    PgConnection::connect(&url).await.expect("it accepts us")
}

/// Beats for an agent until told to stop: every beat must be answered, whatever the database does.
pub async fn beats_go_on(server: Call, agent: Agent, stop: CancellationToken) -> (usize, Duration) {
    let (mut beats, mut slowest) = (0, Duration::ZERO);
    while !stop.is_cancelled() {
        let since = Instant::now();
        let answer = server.clone().key(&agent.key).await;
        assert_eq!(answer.status, 200, "a heartbeat: {}", answer.text());
        slowest = slowest.max(since.elapsed());
        beats += 1;
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    (beats, slowest)
}

/// Reads until told to stop: an answer is right, or it is a 503.
async fn reads_are_right_or_refused(call: Call, expected: String, stop: CancellationToken) -> (usize, usize) {
    let (mut right, mut refused) = (0, 0);
    while !stop.is_cancelled() {
        let answer = call.clone().await;
        match answer.status {
            200 => {
                assert_eq!(answer.source("credits"), expected, "unknown is not zero");
                right += 1;
            }
            503 => {
                assert!(answer.header("retry-after").is_some());
                refused += 1;
            }
            status => panic!("{status}: {}", answer.text()),
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    (right, refused)
}

/// What the tests here do to the database.
#[derive(Debug, Clone, Copy)]
enum Fault {
    /// SIGKILL of the postmaster.
    Kill,
    /// Immediate shutdown.
    Quit,
    /// Every connection cut, new ones closed.
    Refuse,
    /// Every connection reset, new ones at once possible.
    Reset,
}

struct Scene {
    cluster: Arc<Cluster>,
    proxy: Proxy,
}

impl Scene {
    async fn strike(&self, fault: Fault, away: Duration) {
        match fault {
            Fault::Kill => self.cluster.kill(),
            Fault::Quit => {
                let cluster = Arc::clone(&self.cluster);
                tokio::task::spawn_blocking(move || cluster.quit()).await.expect("it ends");
            }
            Fault::Refuse => self.proxy.refuse(),
            Fault::Reset => self.proxy.reset(),
        }
        tokio::time::sleep(away).await;
    }

    async fn mend(&self, fault: Fault) {
        match fault {
            Fault::Kill | Fault::Quit => {
                let cluster = Arc::clone(&self.cluster);
                tokio::task::spawn_blocking(move || cluster.run()).await.expect("it starts");
            }
            Fault::Refuse => self.proxy.clear(),
            Fault::Reset => {}
        }
    }
}

/// Whether all kinds of calls are served again.
async fn is_whole(server: &Server, agent: &Agent) -> bool {
    let write = server.post(&agent.path("actions")).key(&agent.key);
    let write = write.json(json!({"action": "whole again", "category": "system"}));
    server.get("/readyz").await.status == 200
        && server.get(&agent.path("")).key(&agent.key).await.status == 200
        && write.await.status == 201
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn postgres_killed_cut_and_reset_under_load() {
    let mut chance = chance();
    let cluster = tokio::task::spawn_blocking(|| Arc::new(Cluster::start(Durability::Default)));
    let cluster = cluster.await.expect("it starts");
    let proxy = Proxy::start(cluster.addr()).await;
    let database = cluster.database().await;
    let server = Server::on(database).via(Some(proxy.addr)).start().await;
    let scene = Scene { cluster, proxy };
    let key = server.key("load").await;
    let quiet = server.register(&key, "quiet").await;
    server.grant(&quiet, "12.345678").await;
    let probe = server.register(&key, "probe").await;
    server.beat(&quiet).await;
    let (clients, streamers) = crowd(&server, &key, &mut chance, 2).await;
    let stop = CancellationToken::new();
    let beating =
        tokio::spawn(beats_go_on(server.post(&quiet.path("heartbeat")), quiet.clone(), stop.clone()));
    let read = server.get(&quiet.path("")).key(&key);
    let reading = tokio::spawn(reads_are_right_or_refused(read, "12.345678".to_owned(), stop.clone()));
    let writing: Vec<_> =
        clients.into_iter().map(|client| tokio::spawn(client.until_stopped(stop.clone()))).collect();
    let sending: Vec<_> =
        streamers.into_iter().map(|one| tokio::spawn(one.until_stopped(stop.clone()))).collect();

    let faults = [Fault::Kill, Fault::Reset, Fault::Refuse, Fault::Quit];
    for round in 0..usize::try_from(setting("OTONIX_FAULT_ROUNDS", 4)).expect("small") {
        let fault = faults[round % faults.len()];
        tokio::time::sleep(Duration::from_millis(chance.random_range(200..1200))).await;
        let away = Duration::from_millis(chance.random_range(500..2500));
        scene.strike(fault, away).await;
        if !matches!(fault, Fault::Reset) {
            let refused = server.post(&probe.path("actions")).key(&key);
            let refused = refused.json(json!({"action": "away", "category": "system"})).await;
            assert_eq!(refused.status, 503, "{}", refused.text());
            assert!(refused.header("retry-after").is_some());
            assert_eq!(server.get("/healthz").await.status, 200, "the process is up");
            assert_eq!(server.get("/readyz").await.status, 503, "but not ready");
        }
        scene.mend(fault).await;
        let since = Instant::now();
        until_true("it recovers by itself", RECOVERY, async || is_whole(&server, &probe).await).await;
        eprintln!("round {round}: {fault:?}, away for {away:?}, whole again after {:?}", since.elapsed());
    }
    tokio::time::sleep(Duration::from_millis(500)).await;
    stop.cancel();
    let (beats, slowest) = beating.await.expect("heartbeats go on");
    let (right, refused) = reading.await.expect("no wrong answer");
    let mut clients = Vec::new();
    for client in writing {
        clients.push(client.await.expect("no wrong answer"));
    }
    for client in &mut clients {
        client.settle().await;
    }
    let there = load::verify(&server, &clients).await;
    let mut events = 0;
    for streamer in sending {
        let mut streamer = streamer.await.expect("no wrong answer");
        streamer.settle().await;
        streamer.verify(&server).await;
        events += streamer.acked;
    }
    let refusals: usize = clients.iter().map(|client| client.refused).sum();
    let acknowledged: usize = clients.iter().map(Client::acknowledged).sum();
    eprintln!(
        "{beats} beats (slowest {slowest:?}), {right} reads right, {refused} refused; {acknowledged} writes \
         acknowledged, {refusals} refused, {there} there; {events} events"
    );
    assert!(refusals > 0, "the outage was felt");
    assert!(slowest < Duration::from_secs(5), "a heartbeat took {slowest:?}");
    let agents = server.get("/api/agents?status=inactive").key(&key).await.list();
    assert_eq!(agents, Vec::<serde_json::Value>::new(), "nobody is inactive by it");
    server.audit();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_database_that_says_nothing_holds_up_no_heartbeat_and_loses_nothing() {
    let proxy = Proxy::start(own_cluster().await.addr()).await;
    let database = own_cluster().await.database().await;
    let server = Server::on(database).via(Some(proxy.addr)).start().await;
    let agent = server.agent("a").await;
    let writing = server.register(&agent.key, "writing").await;
    server.beat(&agent).await;
    let (link, _) = Link::open(&server, &agent, hello(&agent)).await;
    let stop = CancellationToken::new();
    let beating =
        tokio::spawn(beats_go_on(server.post(&agent.path("heartbeat")), agent.clone(), stop.clone()));
    tokio::time::sleep(Duration::from_millis(300)).await;
    proxy.stall();
    let mut client = Client::new(&server, &writing, "c", chance());
    let writes: Vec<_> = (0..50)
        .map(|_| {
            let write = client.next();
            let call = client.call(&write);
            client.writes.push(write);
            tokio::spawn(call.attempt())
        })
        .collect();
    tokio::time::sleep(Duration::from_secs(3)).await;
    link.beat().await;
    proxy.clear();
    for (write, answer) in client.writes.iter_mut().zip(writes) {
        let answer = answer.await.expect("no panic").expect("an answer");
        assert!(matches!(answer.status, 201 | 503), "{}", answer.text());
        write.acknowledged = answer.status == 201;
    }
    let late = client.acknowledged();
    until_true("it goes on", RECOVERY, async || is_whole(&server, &agent).await).await;
    stop.cancel();
    let (beats, slowest) = beating.await.expect("heartbeats go on");
    client.settle().await;
    load::verify(&server, &[client]).await;
    eprintln!("{beats} beats, slowest {slowest:?}; {late} of 50 writes were answered after the silence");
    assert!(slowest < Duration::from_millis(2500), "a heartbeat took {slowest:?}");
    assert_eq!(server.look(&agent).await["status"], "active");
}
