//! The server's library beside vendors in the same process: a clock that the test moves, several replicas, and answers that
//! go astray when a test says so.

use std::collections::{BTreeMap, VecDeque};
use std::net::{IpAddr, Ipv4Addr};
use std::sync::Arc;

use async_trait::async_trait;
use chrono::{DateTime, Months, TimeDelta, Utc};
use clap::Parser as _;
use otonix_control_plane::app::{App, Outside};
use otonix_control_plane::auth::{Caller, Mode, Principal, hash_secret};
use otonix_control_plane::config::Cli;
use otonix_control_plane::service::{agents, keys};
use otonix_control_plane::store::agents as rows;
use otonix_control_plane::store::sandboxes::AtVendor;
use otonix_control_plane::store::writer::{Target, Written};
use otonix_control_plane::store::{Db, audit, domains, leases, list, migrate, sandboxes};
use otonix_control_plane::upstream::providers::*;
use otonix_sdk::api::actions::Action;
use otonix_sdk::api::agents::{Agent, Grant, RegisterAgent};
use otonix_sdk::api::commands::Command;
use otonix_sdk::api::keys::GenerateKey;
use otonix_sdk::api::records::{Domain, Sandbox};
use otonix_sdk::clock::TestClock;
use otonix_sdk::ids::{AgentId, DomainId, SandboxId};
use otonix_sdk::money::{Amount, MicroUsd};
use otonix_sdk::prices::PriceTable;
use otonix_sdk::standing::AgentStatus;
use parking_lot::Mutex;
use tempfile::TempDir;
use tokio_util::task::TaskTracker;
use uuid::Uuid;

use crate::support::Store;
use crate::support::database::Database;

/// What goes wrong with the next write.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fault {
    /// The vendor refuses for now.
    Refused,
    /// It is done, and the answer is lost.
    Unheard,
}

/// What the vendors know.
#[derive(Default)]
pub struct Known {
    /// Servers by id: whether they have power.
    pub servers: BTreeMap<u64, bool>,
    pub domains: BTreeMap<String, DateTime<Utc>>,
    pub records: Vec<ZoneRecord>,
    /// Cents of a year's renewal.
    pub renewal_cents: u32,
    /// Cents of an hour and of a month.
    pub hour_cents: u32,
    pub month_cents: u32,
    /// Every write that was carried out, in order.
    pub done: Vec<String>,
    pub faults: VecDeque<Fault>,
    orders: u64,
}

impl Known {
    /// Writes of a kind that were carried out.
    pub fn count(&self, what: &str) -> usize {
        self.done.iter().filter(|done| done.starts_with(what)).count()
    }

    fn write<T>(&mut self, what: String, act: impl FnOnce(&mut Self) -> T) -> Result<T, VendorError> {
        let fault = self.faults.pop_front();
        if fault == Some(Fault::Refused) {
            return Err(VendorError::not_done(Refusal::Unavailable, "not now"));
        }
        self.done.push(what);
        let done = act(self);
        if fault == Some(Fault::Unheard) { Err(VendorError::unknown("no answer")) } else { Ok(done) }
    }
}

/// All vendors in one.
#[derive(Clone, Default)]
pub struct Desk(pub Arc<Mutex<Known>>);

fn slug(text: &str) -> Slug {
    Slug::parse(text).expect("a slug")
}

fn dollars(cents: u32) -> Decimal {
    Decimal::parse(&format!("{}.{:02}", cents / 100, cents % 100)).expect("a decimal")
}

fn server(id: u64, powered: bool) -> Server {
    Server {
        id,
        hostname: "h".to_owned(),
        status: ServerStatus::Deployed,
        state: None,
        powered: Some(powered),
        plan: Some(slug("vps")),
        region: Some(slug("here")),
        image: None,
        address: Some(IpAddr::from([10, 0, 0, 1])),
        project: Some(1),
        tags: BTreeMap::new(),
        created_at: None,
    }
}

#[async_trait]
impl ComputeProvider for Desk {
    async fn plans(&self) -> Result<Vec<Plan>, VendorError> {
        let known = self.0.lock();
        let price = |cycle, cents| UnitPrice { cycle, price: dollars(cents), currency: Currency::Usd };
        Ok(vec![Plan {
            id: 1,
            slug: slug("vps"),
            name: "VPS".to_owned(),
            kind: None,
            cpu: Some(1),
            memory: Some(1024),
            disk: Some(20),
            prices: vec![price(Cycle::Hourly, known.hour_cents), price(Cycle::Monthly, known.month_cents)],
            stock: vec![Stock { region: slug("here"), quantity: Some(5) }],
        }])
    }
    async fn regions(&self) -> Result<Vec<Region>, VendorError> {
        Ok(Vec::new())
    }
    async fn images(&self, _: &Slug) -> Result<Vec<Image>, VendorError> {
        Ok(vec![Image { id: 1, slug: slug("linux"), name: "Linux".to_owned(), licensed: false }])
    }
    async fn teams(&self) -> Result<Vec<Team>, VendorError> {
        Ok(Vec::new())
    }
    async fn projects(&self, _: u64) -> Result<Vec<Project>, VendorError> {
        Ok(Vec::new())
    }
    async fn servers(&self, _: u64) -> Result<Vec<Server>, VendorError> {
        Ok(self.0.lock().servers.iter().map(|(id, powered)| server(*id, *powered)).collect())
    }
    async fn server(&self, id: u64) -> Result<Option<Server>, VendorError> {
        Ok(self.0.lock().servers.get(&id).map(|powered| server(id, *powered)))
    }
    async fn credentials(&self, _: u64) -> Result<Option<Created>, VendorError> {
        Ok(None)
    }
    async fn create(&self, order: &CreateServer, _: Deadline) -> Result<Created, VendorError> {
        let what = format!("create {}", order.hostname);
        let id = self.0.lock().write(what, |known| {
            known.orders += 1;
            let id = 900 + known.orders;
            known.servers.insert(id, true);
            id
        })?;
        Ok(Created { server: server(id, true), username: None, password: None })
    }
    async fn act(&self, id: u64, action: &ServerAction, _: Deadline) -> Result<(), VendorError> {
        let (word, power) = match action {
            ServerAction::PowerOff => ("off", Some(false)),
            ServerAction::PowerOn => ("on", Some(true)),
            _ => ("reboot", None),
        };
        self.0.lock().write(format!("{word} {id}"), |known| {
            if let (Some(server), Some(power)) = (known.servers.get_mut(&id), power) {
                *server = power;
            }
        })
    }
    async fn delete(&self, id: u64, _: Deadline) -> Result<(), VendorError> {
        self.0.lock().write(format!("delete {id}"), |known| {
            known.servers.remove(&id);
        })
    }
}

#[async_trait]
impl Registrar for Desk {
    async fn available(&self, names: &[DomainName]) -> Result<Vec<bool>, VendorError> {
        Ok(names.iter().map(|_| true).collect())
    }
    async fn price(&self, _: &DomainName, years: u32) -> Result<DomainPrice, VendorError> {
        let price = dollars(self.0.lock().renewal_cents);
        Ok(DomainPrice { years, purchase: Some(price), renewal: Some(price) })
    }
    async fn contact_schema(&self, _: &DomainName) -> Result<Option<serde_json::Value>, VendorError> {
        Ok(None)
    }
    async fn buy(&self, _: &BuyDomain, _: Deadline) -> Result<Slug, VendorError> {
        Err(VendorError::not_done(Refusal::Other, "not here"))
    }
    async fn renew(&self, order: &RenewDomain, _: Deadline) -> Result<Slug, VendorError> {
        let name = order.domain.as_str().to_owned();
        self.0.lock().write(format!("renew {name}"), |known| {
            let end = known.domains.get_mut(&name).expect("it is there");
            *end = end.checked_add_months(Months::new(12)).expect("a time");
            slug("order-1")
        })
    }
    async fn order(&self, _: &Slug) -> Result<Option<OrderState>, VendorError> {
        Ok(Some(OrderState::Completed { price: None }))
    }
    async fn domain(&self, name: &DomainName) -> Result<Option<OwnedDomain>, VendorError> {
        let end = self.0.lock().domains.get(name.as_str()).copied();
        Ok(end.map(|end| OwnedDomain {
            name: name.clone(),
            bought_at: Some(end - TimeDelta::days(365)),
            expires_at: Some(end),
            renews_itself: false,
            hosted: true,
        }))
    }
    async fn domains(&self) -> Result<Vec<OwnedDomain>, VendorError> {
        Ok(Vec::new())
    }
}

#[async_trait]
impl DnsZone for Desk {
    async fn records(&self, _: &DomainName) -> Result<Option<Vec<ZoneRecord>>, VendorError> {
        Ok(Some(self.0.lock().records.clone()))
    }
    async fn create_record(
        &self,
        _: &DomainName,
        record: &NewRecord,
        _: Deadline,
    ) -> Result<Slug, VendorError> {
        let (kind, value) = (record.data.kind(), record.data.text());
        self.0.lock().write(format!("record {kind} {} {value}", record.name), |known| {
            let id = slug(&format!("rec_{}", known.done.len()));
            known.records.push(zone_record(id.as_str(), &record.name, kind, &value));
            id
        })
    }
    async fn delete_record(&self, _: &DomainName, id: &Slug, _: Deadline) -> Result<(), VendorError> {
        self.0.lock().write(format!("unrecord {id}"), |known| known.records.retain(|record| record.id != *id))
    }
}

/// A record that is there.
pub fn zone_record(id: &str, name: &str, kind: &str, value: &str) -> ZoneRecord {
    let (name, kind, value) = (name.to_owned(), kind.to_owned(), value.to_owned());
    ZoneRecord { id: slug(id), name, kind, value, ttl: Some(300), system: false }
}

/// An app among its vendors.
pub struct Town {
    pub app: Arc<App>,
    pub clock: TestClock,
    pub desk: Desk,
    url: String,
    dir: Arc<TempDir>,
    database: Database,
}

/// What a writer has done now.
pub fn fresh<T>(written: Written<T>) -> T {
    match written {
        Written::Fresh(done) => done,
        Written::Replayed(_) => panic!("a repeat without a key"),
    }
}

impl Town {
    pub async fn on(store: Store) -> Self {
        let dir = Arc::new(tempfile::tempdir().expect("a directory"));
        let database = Database::fresh(store).await;
        let url = database.url(None);
        let url = url.unwrap_or_else(|| format!("sqlite://{}", dir.path().join("otonix.db").display()));
        let clock = TestClock::at(DateTime::from_timestamp(1_800_000_000, 0).expect("a time"));
        let desk = Desk::default();
        {
            let mut known = desk.0.lock();
            (known.renewal_cents, known.hour_cents, known.month_cents) = (1000, 1, 500);
        }
        Self::open(url, dir, database, clock, desk).await
    }

    /// Another on the same database: a replica, or the same server after a crash.
    pub async fn again(&self) -> Self {
        let (dir, database) = (Arc::clone(&self.dir), self.database.clone());
        Self::open(self.url.clone(), dir, database, self.clock.clone(), self.desk.clone()).await
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

    async fn open(url: String, dir: Arc<TempDir>, database: Database, clock: TestClock, desk: Desk) -> Self {
        let data_dir = dir.path().display().to_string();
        let package = "https://packages.example/otonix-agent";
        let sha256 = "00".repeat(32);
        let cli = Cli::try_parse_from([
            "test",
            "--data-dir",
            &data_dir,
            "--database",
            &url,
            "--agent-package-url",
            package,
            "--agent-package-sha256",
            &sha256,
        ]);
        let settings = cli.expect("arguments").options.settings().expect("settings");
        let db = Db::connect(&url).await.expect("it opens");
        migrate::migrate(&db).await.expect("it is brought up to date");
        let vendors = Vendors {
            compute: Some(Arc::new(desk.clone())),
            project: Some(1),
            registrar: Some(Arc::new(desk.clone())),
            dns: Some(Arc::new(desk.clone())),
            ..Vendors::default()
        };
        let outside = Outside { vendors, ..Outside::default() };
        let (moved, hash) = (Arc::new(clock.clone()), hash_secret("operator"));
        let app = App::new(settings, PriceTable::default(), db, moved, hash, outside, &TaskTracker::new());
        Self { app, clock, desk, url, dir, database }
    }

    /// Moves the clock.
    pub fn pass(&self, time: TimeDelta) {
        self.clock.advance(time);
    }

    pub fn operator() -> Caller {
        Caller { principal: Principal::Operator, mode: Mode::Guarded, ip: Ipv4Addr::LOCALHOST.into() }
    }

    /// A new owner.
    pub async fn owner(&self) -> Caller {
        let body = GenerateKey { name: "k".to_owned(), owner_wallet: None, owner_id: None };
        let made = keys::generate(&self.app, &Self::operator(), body, None).await.expect("a key");
        let secret = fresh(made).key.expect("shown once");
        let ip = Ipv4Addr::LOCALHOST.into();
        let key = self.app.shared.keys.lookup(&self.app.db, &secret, ip).await.expect("it is known");
        Caller { principal: Principal::Key(key), mode: Mode::Guarded, ip }
    }

    /// An agent of a new owner with credits in dollars.
    pub async fn agent(&self, name: &str, dollars: i64) -> Agent {
        let owner = self.owner().await;
        let body = RegisterAgent { name: name.to_owned(), ..RegisterAgent::default() };
        let made = fresh(agents::register(&self.app, &owner, body, None).await.expect("registered")).agent;
        if dollars > 0 {
            self.grant(made.id, dollars).await;
        }
        made
    }

    pub async fn grant(&self, id: AgentId, dollars: i64) {
        let amount = Amount::new(MicroUsd::from_micros(dollars * 1_000_000)).expect("an amount");
        let body = Grant { amount, reason: "test".to_owned() };
        agents::grant(&self.app, &Self::operator(), id, body, None).await.expect("granted");
    }

    pub async fn look(&self, id: AgentId) -> Agent {
        agents::agent(&self.app, &Self::operator(), id).await.expect("an agent")
    }

    /// Dollars, exactly.
    pub async fn credits(&self, id: AgentId) -> String {
        self.look(id).await.credits.to_string()
    }

    /// A managed server of an agent, paid for so long.
    pub async fn server(&self, agent: &Agent, vendor_id: u64, cycle: &str, paid_for: TimeDelta) -> SandboxId {
        self.server_at(agent, vendor_id, cycle, paid_for, "10.0.0.1").await
    }

    /// The same at an address.
    pub async fn server_at(
        &self,
        agent: &Agent,
        vendor_id: u64,
        cycle: &str,
        paid_for: TimeDelta,
        address: &str,
    ) -> SandboxId {
        self.desk.0.lock().servers.insert(vendor_id, true);
        let sandbox = Sandbox {
            id: SandboxId::from(otonix_sdk::clock::new_id()),
            name: format!("server-{vendor_id}"),
            status: "running".to_owned(),
            os: None,
            cpu: None,
            memory: None,
            disk: None,
            region: None,
            ip_address: Some(address.to_owned()),
            ports: Vec::new(),
            agent_id: Some(agent.id),
            managed: true,
            paid_until: Some(self.now() + paid_for),
            created_at: self.now(),
        };
        let at = AtVendor {
            purchase: Uuid::nil(),
            vendor_id: vendor_id.to_string(),
            project_id: "1".to_owned(),
            plan: "vps".to_owned(),
            cycle: cycle.to_owned(),
        };
        let (id, owner) = (sandbox.id, agent.owner_id.uuid());
        let made = self.app.writer.apply(Target::Alone, move |tx| {
            Box::pin(async move { Ok(sandboxes::insert_managed(tx, &sandbox, Some(owner), &at).await?) })
        });
        made.await.expect("a server");
        id
    }

    /// A managed domain of an agent that ends after a while.
    pub async fn domain(
        &self,
        agent: &Agent,
        name: &str,
        left: TimeDelta,
        sandbox: Option<SandboxId>,
    ) -> DomainId {
        let end = self.now() + left;
        self.desk.0.lock().domains.insert(name.to_owned(), end);
        let domain = Domain {
            id: DomainId::from(otonix_sdk::clock::new_id()),
            name: name.to_owned(),
            status: "active".to_owned(),
            registered_at: Some(self.now()),
            expires_at: Some(end),
            dns_records: Vec::new(),
            sandbox_id: sandbox,
            agent_id: Some(agent.id),
            auto_renew: true,
            managed: true,
        };
        let (id, owner) = (domain.id, agent.owner_id.uuid());
        let made = self.app.writer.apply(Target::Alone, move |tx| {
            Box::pin(async move {
                Ok(domains::take_over(tx, &domain, Some(owner), Uuid::nil(), Some(10_000_000)).await?)
            })
        });
        made.await.expect("a domain");
        id
    }

    /// Points a domain's row at another server.
    pub async fn link(&self, domain: DomainId, sandbox: SandboxId) {
        let row = Domain { sandbox_id: Some(sandbox), ..self.domain_row(domain).await };
        let linked = self
            .app
            .writer
            .apply(Target::Alone, move |tx| Box::pin(async move { Ok(domains::update(tx, &row).await?) }));
        linked.await.expect("linked");
    }

    pub fn now(&self) -> DateTime<Utc> {
        use otonix_sdk::clock::Clock as _;
        self.clock.now()
    }

    pub async fn sandbox(&self, id: SandboxId) -> Sandbox {
        let found =
            self.app.db.read(move |conn| Box::pin(async move { sandboxes::sandbox(conn, id.uuid()).await }));
        found.await.expect("the database").expect("a sandbox").0
    }

    pub async fn domain_row(&self, id: DomainId) -> Domain {
        let found =
            self.app.db.read(move |conn| Box::pin(async move { domains::domain(conn, id.uuid()).await }));
        found.await.expect("the database").expect("a domain").0
    }

    /// The agent was heard at this time, and is what it is then.
    pub async fn heard(&self, id: AgentId, status: AgentStatus) {
        let at = self.now();
        let done = self.app.writer.apply(Target::Alone, move |tx| {
            Box::pin(async move {
                let mut state = rows::lock_state(tx, id.uuid()).await?.expect("an agent");
                if status == AgentStatus::Active {
                    rows::write_beats(tx, &[(id.uuid(), at)]).await?;
                }
                state.status = status;
                Ok(rows::write_states(tx, &mut [state]).await?)
            })
        });
        done.await.expect("noted");
    }

    /// What was logged of an agent, newest first.
    pub async fn log(&self, id: AgentId) -> Vec<Action> {
        let query = list::Query {
            filters: vec![("agent_id = ", list::Param::Id(id.uuid()))],
            after: None,
            limit: 1000,
        };
        let found = self.app.db.read(move |conn| Box::pin(async move { list::actions(conn, &query).await }));
        found.await.expect("the database").rows
    }

    /// Lines of an agent's log that failed and begin like this.
    pub async fn failures(&self, id: AgentId, begin: &str) -> usize {
        let log = self.log(id).await;
        log.iter().filter(|line| line.status == "failed" && line.action.starts_with(begin)).count()
    }

    pub async fn commands(&self, id: AgentId) -> Vec<Command> {
        let query = list::Query {
            filters: vec![("agent_id = ", list::Param::Id(id.uuid()))],
            after: None,
            limit: 1000,
        };
        let found = self.app.db.read(move |conn| Box::pin(async move { list::commands(conn, &query).await }));
        found.await.expect("the database").rows
    }

    /// The books must balance.
    pub async fn audit(&self) {
        let mut conn = self.app.db.dedicated().await.expect("it opens");
        let books = audit::books(&mut conn).await.expect("books");
        assert_eq!(books.differences(), Vec::<String>::new());
    }
}
