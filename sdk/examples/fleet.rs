//! N simulated daemons against a control plane, from one process that stays light enough to share its machine.
//!
//! `--transport grpc`: each agent has its own connection and stream; events go up in frames and count when the server
//! has acknowledged them. `--transport rest-…`: prepared HTTP/1.1 requests. Prints one line of JSON.
//!
//! ```sh
//! cargo run --release --example fleet -- --server http://127.0.0.1:8402 --operator-token TOKEN --register \
//!     --agents 1000 --rate 10 --duration 10 --pid $(pidof otonix-control-plane)
//! ```

#[path = "fleet/process.rs"]
mod process;
#[path = "fleet/rest.rs"]
mod rest;
#[path = "fleet/stats.rs"]
mod stats;
#[path = "fleet/stream.rs"]
mod stream;

use std::error::Error;
use std::net::{SocketAddr, ToSocketAddrs as _};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::time::Duration;

use clap::{Parser, ValueEnum};
use futures_util::{StreamExt as _, stream as futures};
use otonix_sdk::api::agents::RegisterAgent;
use otonix_sdk::api::keys::GenerateKey;
use otonix_sdk::client::{Client, ClientConfig, Credential, ListQuery, RetryPolicy, ServerUrl};
use otonix_sdk::clock::new_id;
use otonix_sdk::ids::AgentId;
use otonix_sdk::secret::Secret;
use process::{Usage, Watched};
use rest::{Load, Work};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use serde_json::{Value, json};
use stats::Stats;
use stream::{Agent, Fleet};

/// What it measures shares the machine with it.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;
use tokio::sync::Semaphore;
use tokio::time::{Instant, sleep};

/// Simulated daemons.
#[derive(Parser, Clone)]
struct Options {
    /// The control plane.
    #[arg(long, default_value = "http://127.0.0.1:8402")]
    server: String,
    /// Makes a key with it, in place of --api-key.
    #[arg(long, env = "OTONIX_OPERATOR_TOKEN")]
    operator_token: Option<Secret>,
    /// The key that the agents belong to.
    #[arg(long, env = "OTONIX_API_KEY")]
    api_key: Option<Secret>,
    /// How many agents.
    #[arg(short = 'n', long, default_value_t = 100)]
    agents: usize,
    /// Seconds between two heartbeats of an agent.
    #[arg(long, default_value_t = 60.0)]
    interval: f64,
    /// Actions per second and agent (grpc), requests per second and connection (rest); rest: 0 is as fast as answered.
    #[arg(long, default_value_t = 0.0)]
    rate: f64,
    /// Seconds to measure, once all are connected.
    #[arg(long, default_value_t = 10.0)]
    duration: f64,
    /// How to speak.
    #[arg(long, value_enum, default_value_t = Transport::Grpc)]
    transport: Transport,
    /// Registers the agents first; else the key's agents are used.
    #[arg(long)]
    register: bool,
    /// Takes made-up agents: for a server that does not know any, such as the echo example.
    #[arg(long)]
    no_agents: bool,
    /// Events in one frame; by default a frame a second.
    #[arg(long)]
    batch: Option<usize>,
    /// Frames of an agent that may wait for their acknowledgement.
    #[arg(long, default_value_t = 4)]
    window: usize,
    /// Connections that break and come back per second, over the whole fleet.
    #[arg(long, default_value_t = 0.0)]
    churn: f64,
    /// Connections of rest-heartbeat, rest-action, rest-list and rest-unpaid.
    #[arg(long, default_value_t = 64)]
    connections: usize,
    /// Body of a rest heartbeat.
    #[arg(long, default_value = "")]
    body: String,
    /// Details of each action.
    #[arg(long, default_value = "one of many, made by the fleet")]
    details: String,
    /// Sends rest actions without an Idempotency-Key.
    #[arg(long)]
    unkeyed: bool,
    /// Connections that are opened, or agents that are registered, at the same moment.
    #[arg(long, default_value_t = 128)]
    concurrency: usize,
    /// Longest time to wait for all to be connected, seconds.
    #[arg(long, default_value_t = 120.0)]
    patience: f64,
    /// The server's process, for its memory and CPU.
    #[arg(long)]
    pid: Option<u32>,
    /// PostgreSQL's data directory, for the CPU of all its processes.
    #[arg(long)]
    pgdata: Option<PathBuf>,
    /// PostgreSQL's postmasters, in place of --pgdata.
    #[arg(long, value_delimiter = ',')]
    postgres_pids: Vec<u32>,
    /// Threads of the fleet itself.
    #[arg(long, default_value_t = 1)]
    threads: usize,
}

#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Transport {
    Grpc,
    RestHeartbeat,
    RestAction,
    RestList,
    RestIdle,
    RestUnpaid,
}

type Failure = Box<dyn Error + Send + Sync>;

fn main() -> Result<(), Failure> {
    let options = Options::parse();
    // Each connection is an open file, and the usual soft limit is 1024.
    let limit = getrlimit(Resource::Nofile);
    setrlimit(Resource::Nofile, Rlimit { current: limit.maximum, ..limit })?;
    let runtime = if options.threads > 1 {
        tokio::runtime::Builder::new_multi_thread().worker_threads(options.threads).enable_all().build()?
    } else {
        tokio::runtime::Builder::new_current_thread().enable_all().build()?
    };
    let report = runtime.block_on(run(options))?;
    runtime.shutdown_background();
    print(&report);
    Ok(())
}

#[expect(clippy::print_stdout, reason = "the one line that this program is for")]
fn print(report: &Value) {
    println!("{report}");
}

async fn run(options: Options) -> Result<Value, Failure> {
    let server = ServerUrl::parse(&options.server)?;
    let origin: tonic::codegen::http::Uri = server.as_str().parse()?;
    let authority = origin.authority().ok_or("the server has no host")?.to_string();
    let port = origin.port_u16().unwrap_or(80);
    let host = origin.host().unwrap_or_default().trim_matches(['[', ']']);
    let address = (host, port).to_socket_addrs()?.next().ok_or("the server's host is unknown")?;

    let started = Instant::now();
    let key = key(&options, &server).await?;
    let ids = agents(&options, &server, &key).await?;
    let prepared_secs = started.elapsed().as_secs_f64();

    let watched = Watched {
        server: options.pid,
        pgdata: options.pgdata.clone(),
        postgres: options.postgres_pids.clone(),
    };
    let before = watched.usage();
    let connections = match options.transport {
        Transport::Grpc | Transport::RestIdle => ids.len(),
        Transport::RestHeartbeat | Transport::RestAction | Transport::RestList | Transport::RestUnpaid => {
            options.connections
        }
    };
    let stats = Arc::new(Stats::new(connections));
    let sending = match options.transport {
        Transport::Grpc => start_streams(&options, &stats, address, origin, &key, ids)?,
        _ => start_requests(&options, &stats, address, authority, &key, ids),
    };
    let connecting = Instant::now();
    let patience = Duration::from_secs_f64(options.patience);
    while stats.connected() < connections && connecting.elapsed() < patience {
        sleep(Duration::from_millis(10)).await;
    }
    let connect_secs = connecting.elapsed().as_secs_f64();
    let peak = stats.connected();
    eprintln!("connected {peak} of {connections} in {connect_secs:.2} s");
    let measured = measure(&options, &stats, &watched, &sending).await;
    Ok(report(&options, &stats, before, &measured, (prepared_secs, connect_secs, peak)))
}

/// The key to speak with, made by the operator when none is given.
async fn key(options: &Options, server: &ServerUrl) -> Result<Secret, Failure> {
    if let Some(key) = &options.api_key {
        return Ok(key.clone());
    }
    if options.no_agents {
        return Ok(Secret::from("none"));
    }
    let credential = options.operator_token.clone().map_or(Credential::Anonymous, Credential::Operator);
    let request = GenerateKey { name: "fleet".to_owned(), owner_wallet: None, owner_id: None };
    let made = client(server, credential)?.generate_key(&request).await?;
    Ok(Secret::new(made.key.ok_or("the server did not show the key")?))
}

fn client(server: &ServerUrl, credential: Credential) -> Result<Client, Failure> {
    let retry = RetryPolicy { attempts: 8, ..RetryPolicy::default() };
    Ok(Client::new(ClientConfig { server: server.clone(), credential, retry })?)
}

async fn agents(options: &Options, server: &ServerUrl, key: &Secret) -> Result<Vec<AgentId>, Failure> {
    if options.no_agents {
        return Ok((0..options.agents).map(|_| AgentId::from(new_id())).collect());
    }
    let client = client(server, Credential::ApiKey(key.clone()))?;
    let mut ids = Vec::with_capacity(options.agents);
    if options.register {
        let interval = options.interval.clamp(5.0, 86_400.0) as u32;
        let requests = (0..options.agents).map(|index| {
            let client = client.clone();
            async move {
                let agent = RegisterAgent {
                    name: format!("fleet-{index:06}"),
                    // A label; without one the server would make a wallet.
                    wallet_address: Some(format!("0x{:040x}", new_id().as_u128())),
                    heartbeat_interval: Some(interval),
                    ..RegisterAgent::default()
                };
                client.register_agent(&agent).await.map(|registered| registered.agent.id)
            }
        });
        let mut answers = futures::iter(requests).buffer_unordered(options.concurrency);
        while let Some(id) = answers.next().await {
            ids.push(id?);
        }
        return Ok(ids);
    }
    let mut query = ListQuery { limit: Some(1000), ..ListQuery::default() };
    while ids.len() < options.agents {
        let page = client.agents(&query).await?;
        ids.extend(page.items.iter().map(|agent| agent.id));
        let Some(next) = page.next else { break };
        query = query.after(&next);
    }
    ids.truncate(options.agents);
    if ids.is_empty() { Err("the key has no agents: --register makes them".into()) } else { Ok(ids) }
}

fn start_streams(
    options: &Options,
    stats: &Arc<Stats>,
    address: SocketAddr,
    origin: tonic::codegen::http::Uri,
    key: &Secret,
    ids: Vec<AgentId>,
) -> Result<Sending, Failure> {
    let batch = options.batch.unwrap_or(options.rate.ceil() as usize).max(1);
    let per_second = |rate: f64| (rate > 0.0).then(|| Duration::from_secs_f64(1.0 / rate));
    let fleet = Arc::new(Fleet {
        stats: Arc::clone(stats),
        address,
        origin,
        api_key: key.expose().parse()?,
        beat: Duration::from_secs_f64(options.interval),
        batch,
        frame_every: per_second(options.rate / batch as f64),
        window: options.window.max(1),
        churn_every: per_second(options.churn / ids.len() as f64),
        details: options.details.clone(),
        gate: Semaphore::new(options.concurrency),
        sending: AtomicBool::new(false),
    });
    for (index, id) in ids.into_iter().enumerate() {
        tokio::spawn(Agent::new(Arc::clone(&fleet), id, index).live());
    }
    Ok(Box::new(move |on| fleet.sending.store(on, Relaxed)))
}

fn start_requests(
    options: &Options,
    stats: &Arc<Stats>,
    address: SocketAddr,
    host: String,
    key: &Secret,
    ids: Vec<AgentId>,
) -> Sending {
    let work = match options.transport {
        Transport::RestAction => Work::Action,
        Transport::RestList => Work::List,
        Transport::RestUnpaid => Work::Unpaid,
        Transport::Grpc | Transport::RestIdle | Transport::RestHeartbeat => Work::Heartbeat,
    };
    let every = (options.rate > 0.0).then(|| Duration::from_secs_f64(1.0 / options.rate));
    let credential = format!("X-API-Key: {}\r\n", key.expose());
    let idle = options.transport == Transport::RestIdle;
    let connections = if idle { ids.len() } else { options.connections };
    let mut load =
        Load::new(Arc::clone(stats), address, host, credential, ids, work, every, options.concurrency);
    load.body.clone_from(&options.body);
    load.details.clone_from(&options.details);
    load.keyed = !options.unkeyed;
    let load = Arc::new(load);
    for index in 0..connections {
        if idle {
            tokio::spawn(rest::idle(Arc::clone(&load), index));
        } else {
            tokio::spawn(rest::ask(Arc::clone(&load), index));
        }
    }
    Box::new(move |on| load.sending.store(on, Relaxed))
}

/// Lets the fleet send, or stops it.
type Sending = Box<dyn Fn(bool)>;

/// One stretch of time, with what was used and done in it.
struct Measured {
    seconds: f64,
    acked: u64,
    start: Usage,
    end: Usage,
}

async fn measure(options: &Options, stats: &Stats, watched: &Watched, sending: &Sending) -> Measured {
    sending(true);
    // The first second is for caches, pools and plans.
    sleep(Duration::from_secs_f64((options.duration / 10.0).clamp(0.2, 1.0))).await;
    stats.latency.clear();
    let (from, start, acked) = (Instant::now(), watched.usage(), stats.acked.load(Relaxed));
    sleep(Duration::from_secs_f64(options.duration)).await;
    let (seconds, end) = (from.elapsed().as_secs_f64(), watched.usage());
    let acked = stats.acked.load(Relaxed) - acked;
    sending(false);
    // What is under way may arrive, so that `sent` and `acked_total` can be compared.
    let drain = Instant::now();
    while stats.acked.load(Relaxed) + stats.refused.load(Relaxed) < stats.sent.load(Relaxed)
        && drain.elapsed() < Duration::from_secs(5)
    {
        sleep(Duration::from_millis(20)).await;
    }
    Measured { seconds, acked, start, end }
}

fn report(
    options: &Options,
    stats: &Stats,
    before: Usage,
    measured: &Measured,
    (prepared_secs, connect_secs, peak): (f64, f64, usize),
) -> Value {
    let server_cpu = measured.end.server_cpu - measured.start.server_cpu;
    let database_cpu = measured.end.database_cpu - measured.start.database_cpu;
    // A server that was killed in between has no figures.
    let whole = measured.acked > 0 && measured.end.server_rss > 0 && server_cpu >= 0.0;
    let per_event = |cpu: f64| whole.then(|| cpu * 1e6 / measured.acked as f64);
    let grown = measured.start.server_rss.saturating_sub(before.server_rss);
    let server = options.pid.map(|_| {
        json!({
            "rss_bytes": measured.end.server_rss,
            "rss_before_bytes": before.server_rss,
            "rss_per_stream": grown / peak.max(1) as u64,
            "cpu_us_per_event": per_event(server_cpu + database_cpu),
            "server_us_per_event": per_event(server_cpu),
            "database_us_per_event": per_event(database_cpu),
            "cpu_share": whole.then(|| (server_cpu + database_cpu) / measured.seconds),
        })
    });
    json!({
        "agents": options.agents,
        "connected": stats.connected(),
        "connected_peak": peak,
        "sent": stats.sent.load(Relaxed),
        "acked_total": stats.acked.load(Relaxed),
        "refused": stats.refused.load(Relaxed),
        "first_refusal": stats.first_refusal.get(),
        "broken": stats.broken.load(Relaxed),
        "acked": measured.acked,
        "seconds": measured.seconds,
        "acked_per_s": measured.acked as f64 / measured.seconds,
        "p50_ms": stats.latency.quantile_ms(0.5),
        "p99_ms": stats.latency.quantile_ms(0.99),
        "prepared_s": prepared_secs,
        "connect_s": connect_secs,
        "reconnect_s": stats.outage_secs(),
        "reconnect_after_first_s": stats.return_secs(),
        "server": server,
    })
}
