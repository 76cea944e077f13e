//! Builds everything once; the only place that knows all the parts.

use std::collections::HashSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicI64, AtomicUsize, Ordering};
use std::time::Duration;

use chrono::{DateTime, Utc};
use otonix_sdk::api::purchases::Contact;
use otonix_sdk::clock::Clock;
use otonix_sdk::ids::KeyId;
use otonix_sdk::prices::PriceTable;
use otonix_sdk::standing::AgentStatus;
use tokio::sync::Notify;
use tokio_util::task::TaskTracker;
use uuid::Uuid;

use crate::auth::Keys;
use crate::config::Settings;
use crate::fleet::Fleet;
use crate::health::Health;
use crate::limits::RateLimits;
use crate::links::Links;
use crate::metrics::Metrics;
use crate::net::Stats;
use crate::service::catalogue::Catalogue;
use crate::service::payments::Payments;
use crate::service::sessions::Admission;
use crate::store::Db;
use crate::store::agents::AgentState;
use crate::store::writer::{Notice, OnCommit, Writer};
use crate::upstream::providers::Vendors;

/// The server's parts.
pub struct App {
    pub settings: Settings,
    pub clock: Arc<dyn Clock>,
    pub db: Db,
    pub writer: Writer,
    pub prices: PriceTable,
    pub price_version: String,
    pub shared: Arc<Shared>,
    pub rate_limits: RateLimits,
    /// How this server is paid, when it is.
    pub payments: Option<Arc<Payments>>,
    /// Who sells servers and domains, when somebody does.
    pub vendors: Vendors,
    /// What they offer, as far as readers have asked.
    pub catalogue: Catalogue,
    /// Who domains are registered to when a request names nobody.
    pub registrant: Option<Contact>,
    /// SHA-256 of the operator token, hex.
    pub operator_hash: String,
    /// Names this replica.
    pub replica: Uuid,
}

/// Others that this server deals with, as far as they are configured.
#[derive(Default)]
pub struct Outside {
    pub payments: Option<Payments>,
    pub vendors: Vendors,
    /// Who domains are registered to when a request names nobody.
    pub registrant: Option<Contact>,
}

/// What the writer's commits change in memory.
pub struct Shared {
    pub keys: Keys,
    pub fleet: Fleet,
    pub links: Links,
    pub metrics: Metrics,
    /// Other replicas on this database.
    peers: AtomicUsize,
    database_up: AtomicBool,
    /// Since when this replica could hear its agents, microseconds.
    hearing_since: AtomicI64,
    /// Agents whose rows were changed by statements that do not tell the new state.
    pub stale: parking_lot::Mutex<Vec<Uuid>>,
    pub stale_wake: Notify,
    /// Requests with an idempotency key that are running here.
    pub running: parking_lot::Mutex<HashSet<[u8; 32]>>,
    pub admission: Admission,
    pub health: Health,
    /// There is a purchase to carry out; a shortcut, the database has them all.
    pub purchases: Notify,
    /// New servers are looked at one pass after the other, and so are domains that end.
    pub deployments: tokio::sync::Mutex<()>,
    pub renewals: tokio::sync::Mutex<()>,
    /// What the network front counts.
    pub net: Arc<Stats>,
    draining: AtomicBool,
    last_cycle: AtomicI64,
    clock: Arc<dyn Clock>,
}

impl Shared {
    fn new(clock: &Arc<dyn Clock>) -> Self {
        Self {
            keys: Keys::default(),
            fleet: Fleet::default(),
            links: Links::default(),
            metrics: Metrics::default(),
            peers: AtomicUsize::new(0),
            database_up: AtomicBool::new(true),
            hearing_since: AtomicI64::new(clock.now().timestamp_micros()),
            stale: parking_lot::Mutex::default(),
            stale_wake: Notify::new(),
            running: parking_lot::Mutex::default(),
            admission: Admission::default(),
            health: Health::default(),
            purchases: Notify::new(),
            deployments: tokio::sync::Mutex::default(),
            renewals: tokio::sync::Mutex::default(),
            net: Arc::default(),
            draining: AtomicBool::new(false),
            last_cycle: AtomicI64::new(0),
            clock: Arc::clone(clock),
        }
    }

    /// Notes how many other replicas are alive.
    pub fn set_peers(&self, peers: usize) {
        self.peers.store(peers, Ordering::Relaxed);
    }

    /// Whether the last transaction found the database.
    pub fn is_database_up(&self) -> bool {
        self.database_up.load(Ordering::Relaxed)
    }

    /// The server stops: it is no longer ready.
    pub fn drain(&self) {
        self.draining.store(true, Ordering::Relaxed);
    }

    /// Whether the server stops.
    pub fn is_draining(&self) -> bool {
        self.draining.load(Ordering::Relaxed)
    }

    /// A worker has gone round.
    pub fn cycled(&self) {
        self.last_cycle.store(self.clock.now().timestamp_micros(), Ordering::Relaxed);
    }

    /// When a worker last went round here.
    pub fn last_cycle(&self) -> Option<DateTime<Utc>> {
        let micros = self.last_cycle.load(Ordering::Relaxed);
        DateTime::from_timestamp_micros(micros).filter(|_| micros > 0)
    }

    /// Silence before this time is not the agents'.
    pub fn hearing_since(&self) -> DateTime<Utc> {
        DateTime::from_timestamp_micros(self.hearing_since.load(Ordering::Relaxed)).unwrap_or_default()
    }

    /// From now on silence counts; what was before does not.
    pub fn hear_from_now(&self) {
        self.hearing_since.store(self.clock.now().timestamp_micros(), Ordering::Relaxed);
    }

    /// Takes in what was committed, here or elsewhere.
    pub fn learn(&self, changed: &[AgentState], notices: &[Notice]) {
        if notices.iter().any(|notice| matches!(notice, Notice::Key(_))) {
            // A beat that came before its key was revoked is not a sign of life.
            let silenced = changed.iter().filter(|state| state.status == AgentStatus::Inactive);
            self.fleet.unhear(silenced.map(|state| state.id.uuid()));
        }
        self.metrics.tier_changes.inc_by(self.fleet.apply(changed));
        for state in changed {
            // What was read may be older than what is known: the newer one counts.
            let known = self.fleet.cached(state.id.uuid()).map_or(*state, |slot| slot.state());
            self.links.changed(known.id.uuid(), known.session, known.killed);
        }
        for notice in notices {
            match notice {
                Notice::Agent(id) => {
                    self.stale.lock().push(*id);
                    self.stale_wake.notify_one();
                }
                Notice::Key(id) => {
                    self.keys.revoke(KeyId::from(*id));
                    self.links.revoked(KeyId::from(*id));
                }
                Notice::Command(id) => self.links.command(*id),
            }
        }
    }
}

impl OnCommit for Shared {
    fn committed(&self, changed: &[AgentState], notices: &[Notice]) {
        self.learn(changed, notices);
    }

    fn database(&self, up: bool) {
        self.database_up.store(up, Ordering::Relaxed);
        if up {
            tracing::info!("the database is back");
            self.hear_from_now();
        } else {
            tracing::error!("the database is away");
        }
    }

    fn has_peers(&self) -> bool {
        self.peers.load(Ordering::Relaxed) > 0
    }

    fn group(&self, items: usize, took: Duration) {
        self.metrics.group(items, took);
    }
}

impl App {
    /// Puts the parts together on a migrated database.
    pub fn new(
        settings: Settings,
        prices: PriceTable,
        db: Db,
        clock: Arc<dyn Clock>,
        operator_hash: String,
        outside: Outside,
        tracker: &TaskTracker,
    ) -> Arc<Self> {
        let shared = Arc::new(Shared::new(&clock));
        let hook: Arc<dyn OnCommit> = Arc::clone(&shared) as Arc<dyn OnCommit>;
        let writer = Writer::start(&db, &clock, settings.tiers, &hook, tracker);
        let rate_limits = RateLimits::new(settings.rate_limit);
        Arc::new(Self {
            settings,
            clock,
            db,
            writer,
            price_version: prices.version(),
            prices,
            shared,
            rate_limits,
            payments: outside.payments.map(Arc::new),
            vendors: outside.vendors,
            catalogue: Catalogue::default(),
            registrant: outside.registrant,
            operator_hash,
            replica: otonix_sdk::clock::new_id(),
        })
    }
}
