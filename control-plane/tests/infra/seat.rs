//! The server's library on a database: workers and services that a test calls by itself, under a clock that it moves.

use std::net::Ipv4Addr;
use std::sync::Arc;

use chrono::{DateTime, TimeDelta, Utc};
use clap::Parser as _;
use otonix_control_plane::app::{App, Outside};
use otonix_control_plane::auth::{Caller, Mode, Principal, hash_secret};
use otonix_control_plane::config::Cli;
use otonix_control_plane::service::{agents, keys};
use otonix_control_plane::store::writer::{Target, Written};
use otonix_control_plane::store::{Db, audit, leases, migrate};
use otonix_sdk::api::agents::{Agent, Grant, RegisterAgent};
use otonix_sdk::api::keys::GenerateKey;
use otonix_sdk::clock::{Clock as _, TestClock};
use otonix_sdk::ids::AgentId;
use otonix_sdk::money::{Amount, MicroUsd};
use otonix_sdk::prices::PriceTable;
use tempfile::TempDir;
use tokio_util::task::TaskTracker;

use crate::support::Store;
use crate::support::database::Database;

/// Where it keeps its data; as long as one of these is there, they are.
#[derive(Clone)]
pub struct Place {
    pub url: String,
    _dir: Arc<TempDir>,
    _database: Database,
}

impl Place {
    /// An empty database.
    pub async fn fresh(store: Store) -> Self {
        let dir = tempfile::tempdir().expect("a directory");
        let database = Database::fresh(store).await;
        let url = database.url(None);
        let url = url.unwrap_or_else(|| format!("sqlite://{}", dir.path().join("otonix.db").display()));
        Self { url, _dir: Arc::new(dir), _database: database }
    }

    /// Somebody else's, who keeps it.
    pub fn of(url: String) -> Self {
        let dir = tempfile::tempdir().expect("a directory");
        Self { url, _dir: Arc::new(dir), _database: Database::Sqlite }
    }
}

/// One replica.
pub struct Seat {
    pub app: Arc<App>,
    pub clock: TestClock,
    pub place: Place,
}

/// What a writer has done now.
pub fn fresh<T>(written: Written<T>) -> T {
    match written {
        Written::Fresh(done) => done,
        Written::Replayed(_) => panic!("a repeat without a key"),
    }
}

impl Seat {
    /// One with options; those that `outside` leaves out are what the options say.
    pub async fn open(
        place: Place,
        clock: TestClock,
        options: &[(&str, &str)],
        outside: Option<Outside>,
    ) -> Self {
        let data_dir = place._dir.path().display().to_string();
        let mut args = vec!["test", "--data-dir", &data_dir, "--database", &place.url];
        args.extend(options.iter().flat_map(|(flag, value)| [*flag, *value]));
        let settings = Cli::try_parse_from(args).expect("arguments").options.settings().expect("settings");
        let outside = outside.unwrap_or_else(|| Outside {
            vendors: settings.vendors.connect().expect("clients"),
            ..Outside::default()
        });
        let db = Db::connect(&place.url).await.expect("it opens");
        migrate::migrate(&db).await.expect("it is brought up to date");
        let (moved, operator) = (Arc::new(clock.clone()), hash_secret("operator"));
        let app =
            App::new(settings, PriceTable::default(), db, moved, operator, outside, &TaskTracker::new());
        Self { app, clock, place }
    }

    /// Gives its leases up, as a replica that stops.
    pub async fn stop(&self) {
        let replica = self.app.replica;
        let released = self
            .app
            .writer
            .apply(Target::Alone, move |tx| Box::pin(async move { Ok(leases::release(tx, replica).await?) }));
        released.await.expect("released");
    }

    /// Moves the clock.
    pub fn pass(&self, time: TimeDelta) {
        self.clock.advance(time);
    }

    pub fn now(&self) -> DateTime<Utc> {
        self.clock.now()
    }

    pub fn operator() -> Caller {
        Caller { principal: Principal::Operator, mode: Mode::Guarded, ip: Ipv4Addr::LOCALHOST.into() }
    }

    /// A new owner, as the holder of its key.
    pub async fn owner(&self) -> Caller {
        let body = GenerateKey { name: "k".to_owned(), owner_wallet: None, owner_id: None };
        let made = keys::generate(&self.app, &Self::operator(), body, None).await.expect("a key");
        let secret = fresh(made).key.expect("shown once");
        let ip = Ipv4Addr::LOCALHOST.into();
        let key = self.app.shared.keys.lookup(&self.app.db, &secret, ip).await.expect("it is known");
        Caller { principal: Principal::Key(key), mode: Mode::Guarded, ip }
    }

    /// An agent of an owner, with a wallet that was made for it.
    pub async fn register(&self, owner: &Caller, name: &str) -> Agent {
        let body = RegisterAgent { name: name.to_owned(), ..RegisterAgent::default() };
        fresh(agents::register(&self.app, owner, body, None).await.expect("it is registered")).agent
    }

    pub async fn grant_micros(&self, agent: AgentId, micros: i64) {
        let amount = Amount::new(MicroUsd::from_micros(micros)).expect("an amount");
        let body = Grant { amount, reason: "test".to_owned() };
        agents::grant(&self.app, &Self::operator(), agent, body, None).await.expect("it is granted");
    }

    /// The agent as the operator sees it.
    pub async fn look(&self, id: AgentId) -> Agent {
        agents::agent(&self.app, &Self::operator(), id).await.expect("an agent")
    }

    /// The books hold.
    pub async fn audit(&self) -> audit::Books {
        let mut conn = self.app.db.dedicated().await.expect("a connection");
        let books = audit::books(&mut conn).await.expect("they can be read");
        assert_eq!(books.differences(), Vec::<String>::new());
        books
    }
}
