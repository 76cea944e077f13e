//! Clients that hang up while a slow database works for them. With sqlx, a request dropped while `BEGIN` is on the
//! wire can leave its connection inside a transaction; later writes on it would be acknowledged and lost.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use rand::rngs::StdRng;
use rand::{Rng as _, SeedableRng as _};
use sqlx::PgConnection;
use tokio::io::AsyncWriteExt as _;
use tokio::net::TcpStream;

use super::chaos::Proxy;
use super::load::{self, Client, Outcome};
use super::postgres::{beside, own_cluster};
use super::{chance, setting};
use crate::support::poll::until_true;
use crate::support::{Agent, Server, Store};

/// How much slower every answer of the database is.
const DELAY: Duration = Duration::from_millis(50);

/// Sends a request and hangs up after a while, answered or not.
async fn hang_up(addr: SocketAddr, request: String, after: Duration) {
    let Ok(mut stream) = TcpStream::connect(addr).await else { return };
    let _hangs_up_anyway = stream.write_all(request.as_bytes()).await;
    tokio::time::sleep(after).await;
}

/// A request of any kind that reaches the database.
fn request(agent: &Agent, operator: &str, n: u64, chance: &mut StdRng) -> String {
    let id = &agent.id;
    let key = format!("x-api-key: {}", agent.key.secret);
    let operator = format!("authorization: Bearer {operator}");
    let (method, path, who, body) = match chance.random_range(0..10) {
        0 => (
            "POST",
            format!("/api/agents/{id}/actions"),
            key,
            r#"{"action": "hung up", "category": "system"}"#.to_owned(),
        ),
        1 => (
            "POST",
            "/api/compute-logs".to_owned(),
            key,
            format!(r#"{{"model": "hung-up", "cost": 0.01, "agentId": "{id}"}}"#),
        ),
        2 => (
            "POST",
            format!("/api/agents/{id}/grant"),
            operator,
            r#"{"amount": 1, "reason": "hung up"}"#.to_owned(),
        ),
        3 => (
            "POST",
            "/api/agents/register".to_owned(),
            key,
            format!(
                r#"{{"name": "hung-up-{}", "walletAddress": "0x2a18000000000000000000000000000000000461"}}"#,
                n % 7
            ),
        ),
        4 => ("POST", "/api/keys/generate".to_owned(), operator, r#"{"name": "hung up"}"#.to_owned()),
        5 => (
            "POST",
            format!("/api/agents/{id}/commands"),
            operator,
            r#"{"kind": "set_interval", "args": {"seconds": 60}}"#.to_owned(),
        ),
        6 => ("GET", "/api/agents".to_owned(), key, String::new()),
        7 => ("GET", format!("/api/agents/{id}"), key, String::new()),
        8 => ("GET", "/api/compute-logs".to_owned(), key, String::new()),
        _ => ("GET", format!("/api/agents/{id}/ledger"), key, String::new()),
    };
    let idempotency = if method == "POST" && chance.random_bool(0.5) {
        format!("idempotency-key: hung-up-{n}\r\n")
    } else {
        String::new()
    };
    format!(
        "{method} {path} HTTP/1.1\r\nhost: localhost\r\n{who}\r\n{idempotency}content-type: application/json\r\n\
         content-length: {}\r\n\r\n{body}",
        body.len()
    )
}

/// Sessions of the server that have been inside a transaction, or idle in one, for longer than any of its own takes.
async fn stuck(connection: &mut PgConnection) -> Vec<(i32, String, String)> {
    const SQL: &str = "SELECT pid, state, left(query, 80) FROM pg_stat_activity WHERE datname = current_database() \
        AND application_name = 'otonix-control-plane' AND (xact_start < clock_timestamp() - interval '4 seconds' \
        OR (state LIKE 'idle in transaction%' AND state_change < clock_timestamp() - interval '1 second'))";
    sqlx::query_as(SQL).fetch_all(connection).await.expect("the statement runs")
}

async fn idle_in_transaction(connection: &mut PgConnection) -> i64 {
    const SQL: &str = "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() \
        AND application_name = 'otonix-control-plane' AND state LIKE 'idle in transaction%'";
    sqlx::query_scalar(SQL).fetch_one(connection).await.expect("the statement runs")
}

async fn hang_up_many(server: &Server, agents: &[Agent], chance: &mut StdRng) {
    let mut hung_up = Vec::new();
    for n in 0..setting("OTONIX_FAULT_HANG_UPS", 300) {
        let agent = &agents[chance.random_range(0..agents.len())];
        let request = request(agent, &server.operator, n, chance);
        let after = Duration::from_millis(chance.random_range(0..=300));
        hung_up.push(tokio::spawn(hang_up(server.addr, request, after)));
        if n % 50 == 49 {
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    }
    for one in hung_up {
        one.await.expect("no panic");
    }
}

async fn some_agents(server: &Server) -> Vec<Agent> {
    let key = server.key("k").await;
    let mut agents = Vec::new();
    for n in 0..4 {
        let agent = server.register(&key, &format!("a{n}")).await;
        // Known in memory, so that the hang-ups reach the writer.
        server.beat(&agent).await;
        agents.push(agent);
    }
    agents
}

/// 200 writes, all of which must be acknowledged.
async fn ordinary_writes(server: &Server, agents: &[Agent], chance: &mut StdRng) -> Vec<Client> {
    let writers = (0..20).map(|n| {
        let own = StdRng::seed_from_u64(chance.random());
        let mut client = Client::new(server, &agents[n % agents.len()], &format!("c{n}"), own);
        tokio::spawn(async move {
            for _ in 0..10 {
                assert_eq!(client.write().await, Outcome::Done, "no 5xx");
            }
            client
        })
    });
    let mut clients = Vec::new();
    for writer in writers.collect::<Vec<_>>() {
        clients.push(writer.await.expect("no wrong answer"));
    }
    clients
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn on_a_slow_database_every_acknowledged_write_survives() {
    let mut chance = chance();
    let proxy = Proxy::start(own_cluster().await.addr()).await;
    let database = own_cluster().await.database().await;
    let mut watch = beside(&database).await;
    let mut server = Server::on(database).via(Some(proxy.addr)).start().await;
    let agents = some_agents(&server).await;
    proxy.delay(DELAY);
    hang_up_many(&server, &agents, &mut chance).await;
    let since = Instant::now();
    let clients = ordinary_writes(&server, &agents, &mut chance).await;
    let took = since.elapsed();
    assert_eq!(stuck(&mut watch).await, [], "no session stays inside a transaction");
    server.kill();
    proxy.clear();
    until_true("PostgreSQL has seen the end", Duration::from_secs(10), async || {
        idle_in_transaction(&mut watch).await == 0
    })
    .await;
    server.crash().await;
    let stored = verify_beside_strangers(&server, &clients).await;
    eprintln!(
        "200 writes acknowledged in {took:?}, {stored} there; {} connections to the database",
        proxy.accepted()
    );
    let log = server.log();
    let failures: Vec<&str> = log.lines().filter(|line| line.contains("a request failed")).collect();
    assert_eq!(failures, Vec::<&str>::new(), "no 5xx, not even to those who hung up");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn on_the_embedded_database_every_acknowledged_write_survives() {
    let mut chance = chance();
    let mut server = Server::start(Store::Sqlite).await;
    let agents = some_agents(&server).await;
    hang_up_many(&server, &agents, &mut chance).await;
    let clients = ordinary_writes(&server, &agents, &mut chance).await;
    server.crash().await;
    verify_beside_strangers(&server, &clients).await;
    assert!(!server.log().contains("a request failed"), "no 5xx");
}

/// As [`load::verify`]; what those who hung up have written is in the books too.
async fn verify_beside_strangers(server: &Server, clients: &[Client]) -> usize {
    let stored = load::verify(server, clients).await;
    assert_eq!(stored, 200);
    stored
}
