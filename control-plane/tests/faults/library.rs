//! The server's library without its process: an app on a database, with a clock that the test moves.

use std::net::{IpAddr, Ipv4Addr};
use std::sync::Arc;

use chrono::{DateTime, TimeDelta, Utc};
use clap::Parser as _;
use otonix_control_plane::app::{App, Outside};
use otonix_control_plane::auth::{Caller, Mode, Principal, hash_secret};
use otonix_control_plane::config::Cli;
use otonix_control_plane::service::{activity, agents, keys};
use otonix_control_plane::store::audit::{self, Books};
use otonix_control_plane::store::writer::{Target, Written};
use otonix_control_plane::store::{Db, leases, migrate};
use otonix_control_plane::worker::beats;
use otonix_sdk::api::agents::{Grant, HeartbeatAck, RegisterAgent};
use otonix_sdk::api::keys::GenerateKey;
use otonix_sdk::api::usage::LogUsage;
use otonix_sdk::clock::TestClock;
use otonix_sdk::ids::AgentId;
use otonix_sdk::money::{Amount, Cost, MicroUsd};
use otonix_sdk::prices::PriceTable;
use otonix_sdk::standing::AgentStatus;
use tempfile::TempDir;
use tokio_util::task::TaskTracker;

use crate::support::Store;
use crate::support::database::Database;

/// An app.
pub struct Library {
    pub app: Arc<App>,
    pub clock: TestClock,
    url: String,
    dir: Arc<TempDir>,
    database: Database,
}

/// A time to start at.
pub fn start() -> DateTime<Utc> {
    DateTime::from_timestamp(1_800_000_000, 0).expect("a time")
}

fn fresh<T>(written: Written<T>) -> T {
    match written {
        Written::Fresh(done) => done,
        Written::Replayed(_) => panic!("a repeat without a key"),
    }
}

impl Library {
    /// One on a fresh database.
    pub async fn on(store: Store) -> Self {
        let dir = Arc::new(tempfile::tempdir().expect("a directory"));
        let database = Database::fresh(store).await;
        let url = database.url(None);
        let url = url.unwrap_or_else(|| format!("sqlite://{}", dir.path().join("otonix.db").display()));
        Self::open(url, dir, database, TestClock::at(start())).await
    }

    /// Another on the same database: a replica, or the same server after a stop.
    pub async fn again(&self) -> Self {
        Self::open(self.url.clone(), Arc::clone(&self.dir), self.database.clone(), self.clock.clone()).await
    }

    /// Gives back what a replica holds, as at a clean stop.
    pub async fn stop(&self) {
        let replica = self.app.replica;
        let released = self
            .app
            .writer
            .apply(Target::Alone, move |tx| Box::pin(async move { Ok(leases::release(tx, replica).await?) }));
        released.await.expect("released");
    }

    async fn open(url: String, dir: Arc<TempDir>, database: Database, clock: TestClock) -> Self {
        let data_dir = dir.path().display().to_string();
        let cli =
            Cli::try_parse_from(["test", "--data-dir", &data_dir, "--database", &url]).expect("arguments");
        let settings = cli.options.settings().expect("settings");
        let db = Db::connect(&url).await.expect("it opens");
        migrate::migrate(&db).await.expect("it is brought up to date");
        let tracker = TaskTracker::new();
        let moved = Arc::new(clock.clone());
        let app = App::new(
            settings,
            PriceTable::default(),
            db,
            moved,
            hash_secret("operator"),
            Outside::default(),
            &tracker,
        );
        Self { app, clock, url, dir, database }
    }

    /// The embedded database.
    pub fn file(&self) -> std::path::PathBuf {
        self.dir.path().join("otonix.db")
    }

    /// Moves the clock.
    pub fn pass(&self, secs: i64) {
        self.clock.advance(TimeDelta::seconds(secs));
    }

    /// The operator.
    pub fn operator() -> Caller {
        let ip = IpAddr::V4(Ipv4Addr::LOCALHOST);
        Caller { principal: Principal::Operator, mode: Mode::Guarded, ip }
    }

    /// A new owner, as the holder of its key.
    pub async fn owner(&self) -> Caller {
        let body = GenerateKey { name: "k".to_owned(), owner_wallet: None, owner_id: None };
        let made = keys::generate(&self.app, &Self::operator(), body, None).await.expect("a key");
        let secret = fresh(made).key.expect("shown once");
        let ip = IpAddr::V4(Ipv4Addr::LOCALHOST);
        let key = self.app.shared.keys.lookup(&self.app.db, &secret, ip).await.expect("it is known");
        Caller { principal: Principal::Key(key), mode: Mode::Guarded, ip }
    }

    /// An agent of an owner that beats every so many seconds.
    pub async fn register(&self, owner: &Caller, name: &str, interval: u32) -> AgentId {
        let body = RegisterAgent {
            name: name.to_owned(),
            model: None,
            vps_ip: None,
            wallet_address: Some("0x2a18000000000000000000000000000000000461".to_owned()),
            wallet_proof: None,
            genesis_prompt: None,
            heartbeat_interval: Some(interval),
        };
        fresh(agents::register(&self.app, owner, body, None).await.expect("registered")).agent.id
    }

    /// Gives credits.
    pub async fn grant(&self, agent: AgentId, micros: i64) {
        let amount = Amount::new(MicroUsd::from_micros(micros)).expect("an amount");
        let body = Grant { amount, reason: "test".to_owned() };
        agents::grant(&self.app, &Self::operator(), agent, body, None).await.expect("granted");
    }

    /// Logs a model call of a cost.
    pub async fn spend(&self, owner: &Caller, agent: AgentId, micros: i64) {
        let body = LogUsage {
            model: "m".to_owned(),
            tokens_in: 1,
            tokens_out: 1,
            tokens_cached: None,
            cost: Some(Cost::new(MicroUsd::from_micros(micros)).expect("a cost")),
            agent_id: Some(agent),
        };
        activity::log_usage(&self.app, owner, body, None).await.expect("logged");
    }

    /// A heartbeat, and the second that writes it.
    pub async fn beat(&self, owner: &Caller, agent: AgentId) -> HeartbeatAck {
        let ack = agents::heartbeat(&self.app, owner, agent).await.expect("heard");
        beats::run_once(&self.app).await.expect("written");
        ack
    }

    /// What the database says of an agent's status.
    pub async fn status(&self, owner: &Caller, agent: AgentId) -> AgentStatus {
        agents::agent(&self.app, owner, agent).await.expect("it is there").status
    }

    /// The books, which must balance.
    pub async fn books(&self) -> Books {
        let mut conn = self.app.db.dedicated().await.expect("it opens");
        let books = audit::books(&mut conn).await.expect("they are read");
        assert_eq!(books.differences(), Vec::<String>::new());
        assert_eq!(books.sum(), MicroUsd::ZERO);
        books
    }
}
