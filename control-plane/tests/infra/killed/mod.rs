//! The real program's automation, killed (SIGKILL) at each of its steps: while a vendor has its request in hand, and at
//! each commit, which the database then carries out or not. What is left is finished by the same workers in another
//! replica, under a moved clock. A leader that is only paused, and goes on when another has done its work, does nothing
//! twice either.

mod births;
mod domains;
mod enrolments;
mod gate;
mod paused;
mod servers;

use std::time::Duration;

use chrono::{DateTime, TimeDelta, Utc};
use otonix_control_plane::worker::{births as nursery, lifetime, purchases, recovery, renewal, zones};
use otonix_sdk::api::agents::Agent;
use otonix_sdk::ids::{DomainId, SandboxId};
use rustix::process::Signal;
use serde_json::json;

use crate::clock::MovedClock;
use crate::fake::Fake;
use crate::fake::switches::How;
use crate::fake::vercel::Owned;
use crate::support::poll::until_true;
use crate::support::{Server, Store};
use crate::town::Town;
use gate::Gate;

/// Longer than anything waits here.
const LONG: Duration = Duration::from_secs(60);
/// A plan of the fake's.
pub const PLAN: &str = "B1-1-1gb-20s-shared";

/// Where the program is killed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum At {
    /// While the vendor has a request of an operation in hand.
    Vendor(&'static str, How),
    /// As it commits a row of a table that fits a condition, and the database carries it out all the same (PostgreSQL).
    Committed(&'static str, &'static str),
    /// The same, and the database undoes it.
    Undone(&'static str, &'static str),
}

impl At {
    /// Both ends of a commit.
    pub const fn commit(table: &'static str, when: &'static str) -> [Self; 2] {
        [Self::Committed(table, when), Self::Undone(table, when)]
    }
}

/// A program, its vendors, and another replica in this process; their clocks are moved together.
pub struct Scene {
    pub server: Server,
    pub town: Town,
    pub fake: Fake,
    clock: MovedClock,
    store: Store,
}

impl Scene {
    /// The program is not running yet.
    pub async fn open(store: Store) -> Self {
        let (fake, clock) = (Fake::start(), MovedClock::start());
        let sha256 = "00".repeat(32);
        let mut options = fake.options();
        options.push(("--agent-package-url", "https://packages.example/otonix-agent".to_owned()));
        options.push(("--agent-package-sha256", sha256));
        let mut with = Server::with(store).await;
        for (flag, value) in &options {
            with = with.arg(flag, value);
        }
        for (name, value) in clock.variables() {
            with = with.env(name, &value);
        }
        let mut server = with.start().await;
        server.kill();
        let options: Vec<_> = options.iter().map(|(flag, value)| (*flag, value.as_str())).collect();
        let town = Town::beside(server.database_url(), &options).await;
        let scene = Self { server, town, fake, clock, store };
        // The program had a moment to take some.
        scene.expire_leases().await;
        scene
    }

    /// Those of some points that there are on this store.
    pub fn points(&self, all: &[At]) -> Vec<At> {
        let fits = |at: &&At| matches!(at, At::Vendor(..)) || self.store == Store::Postgres;
        all.iter().filter(fits).copied().collect()
    }

    /// Lets time pass for everybody.
    pub fn pass(&self, time: TimeDelta) {
        self.town.pass(time);
        self.fake.advance(time);
        self.clock.advance(time.num_seconds());
    }

    /// How far the program's clock is ahead, seconds.
    pub fn ahead(&self) -> i64 {
        self.clock.ahead()
    }

    /// The replica in this process has no time of its own: it is now as late as the program.
    fn sync(&self) {
        let real = whole_seconds(Utc::now() + TimeDelta::seconds(self.clock.ahead() + 1));
        let behind = real - self.town.now();
        if behind > TimeDelta::zero() {
            self.town.pass(behind);
        }
    }

    /// Whoever comes next takes every lease.
    async fn expire_leases(&self) {
        self.server.sql("UPDATE leases SET expires_at = '1970-01-01 00:00:00+00:00'").await;
    }

    /// Starts the program, lets it come to a point, and kills it there.
    pub async fn killed(&mut self, at: At) {
        self.reach(at, async |_: &Server| {}).await;
    }

    /// The same; `ask` asks the running program for something.
    pub async fn killed_asked(&mut self, at: At, ask: impl AsyncFnOnce(&Server)) {
        self.reach(at, ask).await;
    }

    async fn reach(&mut self, at: At, ask: impl AsyncFnOnce(&Server)) {
        self.expire_leases().await;
        match at {
            At::Vendor(operation, how) => {
                let before = self.fake.count(operation);
                self.fake.fail(operation, how);
                self.start().await;
                ask(&self.server).await;
                until_true(operation, LONG, async || self.fake.count(operation) > before).await;
                self.server.kill();
                self.fake.mend();
            }
            At::Committed(table, when) | At::Undone(table, when) => {
                let mut gate = Gate::close(&self.server.database_url(), table, when).await;
                self.start().await;
                ask(&self.server).await;
                until_true(when, LONG, async || gate.is_waited_at().await).await;
                self.server.kill();
                gate.open(matches!(at, At::Committed(..))).await;
            }
        }
        self.sync();
        self.expire_leases().await;
    }

    /// Starts the program; what has its time of the day comes at once.
    async fn start(&mut self) {
        self.server.crash().await;
        self.pass(TimeDelta::seconds(21));
    }

    /// Starts the program, stops it for a while once the vendor has a read of an operation in hand, lets `others` do the
    /// work, and lets it go on until it finds that it has lost its lease.
    pub async fn paused(&mut self, operation: &str, others: impl AsyncFnOnce(&Self)) {
        self.expire_leases().await;
        let before = self.fake.count(operation);
        // The answer is there by the time that it goes on.
        self.fake.fail(operation, How::Late(Duration::from_secs(2)));
        self.start().await;
        until_true(operation, LONG, async || self.fake.count(operation) > before).await;
        self.server.signal(Signal::STOP);
        self.fake.mend();
        self.sync();
        self.expire_leases().await;
        others(&*self).await;
        self.server.signal(Signal::CONT);
        until_true("it has lost its lease", LONG, async || self.server.log().contains("was lost")).await;
        self.server.kill();
        self.expire_leases().await;
    }

    /// So many minutes of everything in the other replica, each beginning with a pass.
    pub async fn live(&self, minutes: u32) {
        let app = &self.town.app;
        for _ in 0..minutes {
            renewal::run_once(app).await.expect("a pass");
            lifetime::run_once(app).await.expect("a pass");
            zones::run_once(app).await.expect("a pass");
            nursery::run_once(app).await.expect("a pass");
            while purchases::run_once(app).await.expect("a pass") > 0 {}
            self.pass(TimeDelta::minutes(1));
        }
    }

    /// One pass of healing in the other replica.
    pub async fn heal(&self) {
        recovery::run_once(&self.town.app).await.expect("a pass");
    }

    /// A domain at the registrar and here, that ends after so many days.
    pub async fn domain(&self, agent: &Agent, name: &str, days: i64, at: Option<SandboxId>) -> DomainId {
        let id = self.town.domain(agent, name, TimeDelta::days(days), at).await;
        let expires_at = self.town.domain_row(id).await.expires_at.expect("an end");
        let owned = Owned {
            bought_at: expires_at - TimeDelta::days(365),
            expires_at,
            renews_itself: false,
            records: Vec::new(),
            contact: json!({}),
        };
        self.fake.with(|world| world.vercel.domains.insert(name.to_owned(), owned));
        id
    }

    /// A server at the vendor and here, that is paid for so long.
    pub async fn machine(&self, agent: &Agent, id: u64, paid_for: TimeDelta) -> SandboxId {
        let address = format!("10.0.0.{id}");
        self.fake.with(|world| world.cherry.put(id, PLAN, &address));
        self.town.server_of(agent, id, PLAN, "monthly", paid_for, &address).await
    }

    /// How often a request of an operation was carried out, by a word of its path.
    pub fn done(&self, operation: &str, word: &str) -> usize {
        let of = |seen: &&crate::fake::Seen| {
            seen.operation == operation
                && seen.request.path.contains(word)
                && (200..300).contains(&seen.status)
        };
        self.fake.seen().iter().filter(of).count()
    }

    /// The books hold, nothing has been asked that is not documented, and no purchase is under way.
    pub async fn checked(&self) {
        assert_eq!(self.fake.violations(), Vec::<String>::new());
        self.town.audit().await;
        let open = "UPDATE purchases SET note = note WHERE status IN ('paid', 'executing', 'unknown')";
        assert_eq!(self.server.sql(open).await, 0, "every purchase has ended");
        self.server.audit();
    }
}

/// An end as the vendors write it.
pub fn whole_seconds(at: DateTime<Utc>) -> DateTime<Utc> {
    DateTime::from_timestamp(at.timestamp(), 0).expect("a time")
}
