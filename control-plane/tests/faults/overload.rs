//! More work than the server can take: refused with 503 and a time to come back, nothing lost, heartbeats go on.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use http_body_util::{BodyExt as _, Full};
use hyper_util::rt::{TokioExecutor, TokioIo};
use otonix_control_plane::error::Error;
use otonix_control_plane::service::{activity, agents};
use otonix_control_plane::store::StoreError;
use otonix_control_plane::store::writer::Written;
use otonix_sdk::api::actions::LogAction;
use serde_json::{Value, json};
use sqlx::sqlite::SqliteConnectOptions;
use sqlx::{ConnectOptions as _, Executor as _};
use tokio::net::TcpStream;
use tokio_util::sync::CancellationToken;

use super::chaos::Proxy;
use super::library::Library;
use super::postgres::{beats_go_on, own_cluster};
use crate::support::poll::until_true;
use crate::support::{Agent, Server, Store};

/// Connections and streams on each: more requests at once than the server runs.
const CONNECTIONS: usize = 100;
const STREAMS: usize = 100;

/// What one request was answered: status, `Retry-After`, body.
type Said = (u16, Option<String>, Bytes);

/// Posts actions over one HTTP/2 connection, all at once.
async fn burst(addr: SocketAddr, agent: Agent, name: usize) -> Vec<(String, Result<Said, String>)> {
    let stream = TcpStream::connect(addr).await.expect("it listens");
    let io = TokioIo::new(stream);
    let made = hyper::client::conn::http2::handshake(TokioExecutor::new(), io).await;
    let (sender, connection) = made.expect("HTTP/2");
    let driver = tokio::spawn(connection);
    let posts: Vec<_> = (0..STREAMS)
        .map(|n| {
            let mut sender = sender.clone();
            let text = format!("burst {name}-{n}");
            let request = http::Request::post(format!("http://{addr}{}", agent.path("actions")))
                .header("x-api-key", &agent.key.secret)
                .header("content-type", "application/json")
                .body(Full::new(Bytes::from(json!({"action": text, "category": "system"}).to_string())))
                .expect("a request");
            tokio::spawn(async move {
                let answer = async {
                    let response = sender.send_request(request).await.map_err(|why| why.to_string())?;
                    let (head, body) = response.into_parts();
                    let wait = head.headers.get("retry-after").and_then(|value| value.to_str().ok());
                    let wait = wait.map(str::to_owned);
                    let body = body.collect().await.map_err(|why| why.to_string())?.to_bytes();
                    Ok((head.status.as_u16(), wait, body))
                };
                (text, answer.await)
            })
        })
        .collect();
    let mut said = Vec::new();
    for post in posts {
        said.push(post.await.expect("no panic"));
    }
    driver.abort();
    said
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn more_requests_than_fit_are_refused_and_heartbeats_go_on() {
    let proxy = Proxy::start(own_cluster().await.addr()).await;
    let database = own_cluster().await.database().await;
    let server = Server::on(database).via(Some(proxy.addr)).start().await;
    let key = server.key("load").await;
    let agent = server.register(&key, "busy").await;
    let other = server.register(&key, "beating").await;
    server.beat(&agent).await;
    server.beat(&other).await;
    let stop = CancellationToken::new();
    let beating =
        tokio::spawn(beats_go_on(server.post(&other.path("heartbeat")), other.clone(), stop.clone()));
    proxy.stall();
    let bursts: Vec<_> =
        (0..CONNECTIONS).map(|n| tokio::spawn(burst(server.addr, agent.clone(), n))).collect();
    until_true("it sheds load", Duration::from_secs(15), async || {
        let metrics = server.get("/metrics").await;
        metrics.status == 503 || shed(metrics.text()) > 500.0
    })
    .await;
    tokio::time::sleep(Duration::from_secs(1)).await;
    proxy.clear();
    let (mut acknowledged, mut refused, mut lost) = (Vec::new(), 0, 0);
    for one in bursts {
        for (text, said) in one.await.expect("no panic") {
            match said {
                Ok((201, ..)) => acknowledged.push(text),
                Ok((503, wait, body)) => {
                    assert!(wait.and_then(|wait| wait.parse::<u64>().ok()).is_some_and(|secs| secs >= 1));
                    let problem: Value = serde_json::from_slice(&body).expect("a problem");
                    assert!(
                        problem["code"].is_string() && problem["error"] == problem["detail"],
                        "{problem}"
                    );
                    refused += 1;
                }
                Ok((status, _, body)) => panic!("{status}: {}", String::from_utf8_lossy(&body)),
                Err(_) => lost += 1,
            }
        }
    }
    stop.cancel();
    let (beats, slowest) = beating.await.expect("heartbeats go on");
    eprintln!(
        "of {} at once {} acknowledged, {refused} refused, {lost} without an answer; {beats} beats, slowest \
         {slowest:?}",
        CONNECTIONS * STREAMS,
        acknowledged.len()
    );
    assert_eq!(lost, 0, "each is answered");
    assert!(refused >= 500, "it was too much");
    assert!(slowest < Duration::from_secs(5), "a heartbeat took {slowest:?}");
    let rows = server.all(&key, &agent.path("actions?limit=1000")).await;
    let mut there: Vec<&str> = rows.iter().filter_map(|row| row["action"].as_str()).collect();
    there.sort_unstable();
    let all = there.len();
    there.dedup();
    assert_eq!(there.len(), all, "none twice");
    for text in &acknowledged {
        assert!(there.binary_search(&text.as_str()).is_ok(), "{text} was acknowledged");
    }
    server.act(&agent, "as ever").await;
}

/// The requests that were refused because too many were running, as the metrics say.
fn shed(metrics: &str) -> f64 {
    let line = metrics.lines().find(|line| !line.starts_with('#') && line.contains("shed"));
    line.and_then(|line| line.rsplit(' ').next()).and_then(|number| number.parse().ok()).unwrap_or(0.0)
}

#[tokio::test]
async fn a_full_queue_refuses_and_what_it_took_is_written() {
    let library = Library::on(Store::Sqlite).await;
    let owner = library.owner().await;
    let agent = library.register(&owner, "a", 60).await;
    agents::heartbeat(&library.app, &owner, agent).await.expect("heard");
    // Somebody else writes to the file; the server's writer waits.
    let file = library.file();
    let mut beside = SqliteConnectOptions::new().filename(&file).connect().await.expect("it opens");
    beside.execute("BEGIN IMMEDIATE").await.expect("it locks");
    let since = Instant::now();
    let many: Vec<_> = (0..30_000)
        .map(|n| {
            let app = Arc::clone(&library.app);
            tokio::spawn(async move {
                let body = LogAction {
                    action: format!("{n}"),
                    category: "system".to_owned(),
                    details: None,
                    status: None,
                    autonomous: None,
                };
                activity::log_action(&app, &owner, agent, body, None).await
            })
        })
        .collect();
    // All of them have been tried once when this one runs.
    tokio::task::yield_now().await;
    let queued = library.app.writer.queued();
    for _ in 0..100 {
        let ack = agents::heartbeat(&library.app, &owner, agent).await.expect("heartbeats go on");
        assert!(ack.received);
    }
    assert!(since.elapsed() < Duration::from_secs(4), "the lock is given up before the writer is");
    beside.execute("ROLLBACK").await.expect("it unlocks");
    let (mut written, mut refused) = (0, 0);
    for one in many {
        match one.await.expect("no panic") {
            Ok(Written::Fresh(_)) => written += 1,
            Ok(Written::Replayed(_)) => panic!("a repeat without a key"),
            Err(Error::Store(StoreError::QueueFull)) => refused += 1,
            Err(other) => panic!("{other}"),
        }
    }
    eprintln!("{queued} were queued; {written} written, {refused} refused");
    assert!(refused > 1000, "the queue is bounded");
    let row = agents::agent(&library.app, &Library::operator(), agent).await.expect("it is there");
    assert_eq!(row.total_actions, written, "what was taken is written, what was refused is not");
}
