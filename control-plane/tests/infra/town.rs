//! The server's library beside vendors in the same process: a clock that the test moves, several replicas, and answers that
//! go astray when a test says so.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::net::IpAddr;
use std::sync::Arc;

use async_trait::async_trait;
use chrono::{DateTime, Months, TimeDelta, Utc};
use otonix_control_plane::app::Outside;
use otonix_control_plane::auth::Caller;
use otonix_control_plane::store::agents as rows;
use otonix_control_plane::store::sandboxes::AtVendor;
use otonix_control_plane::store::writer::Target;
use otonix_control_plane::store::{domains, list, sandboxes};
use otonix_control_plane::upstream::providers::*;
use otonix_sdk::api::actions::Action;
use otonix_sdk::api::agents::Agent;
use otonix_sdk::api::commands::Command;
use otonix_sdk::api::records::{Domain, Sandbox};
use otonix_sdk::clock::TestClock;
use otonix_sdk::ids::{AgentId, DomainId, SandboxId};
use otonix_sdk::standing::AgentStatus;
use parking_lot::Mutex;
use uuid::Uuid;

use crate::seat::{Place, Seat};
use crate::support::Store;

/// What goes wrong with the next write.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fault {
    /// The vendor refuses for now.
    Refused,
    /// It refuses for good.
    Never,
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
    /// How often it was asked what is sold, and whether that is not answered.
    pub plans_asked: usize,
    pub is_silent: bool,
    /// The plan is sold no more, and billed on.
    pub is_withdrawn: bool,
    /// What the registrar says of registrants; nothing: it does not know yet.
    pub confirmation: Option<Confirmation>,
    /// Domains that the registrar renews by itself, and those with other nameservers.
    pub renewing_itself: BTreeSet<String>,
    pub elsewhere: BTreeSet<String>,
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
        if fault == Some(Fault::Never) {
            return Err(VendorError::not_done(Refusal::DomainNotAvailable, "never"));
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

impl Desk {
    fn vps(&self) -> Plan {
        let known = self.0.lock();
        let price = |cycle, cents| UnitPrice { cycle, price: dollars(cents), currency: Currency::Usd };
        Plan {
            id: 1,
            slug: slug("vps"),
            name: "VPS".to_owned(),
            kind: None,
            cpu: Some(1),
            memory: Some(1024),
            disk: Some(20),
            prices: vec![price(Cycle::Hourly, known.hour_cents), price(Cycle::Monthly, known.month_cents)],
            stock: vec![Stock { region: slug("here"), quantity: Some(5) }],
        }
    }
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
    async fn account(&self) -> Result<Account, VendorError> {
        Ok(Account { id: 1, email: None })
    }
    async fn plans(&self) -> Result<Vec<Plan>, VendorError> {
        {
            let mut known = self.0.lock();
            known.plans_asked += 1;
            if known.is_silent {
                return Err(VendorError::not_done(Refusal::Unavailable, "not now"));
            }
            if known.is_withdrawn {
                return Ok(Vec::new());
            }
        }
        Ok(vec![self.vps()])
    }
    async fn plan(&self, plan: &Slug) -> Result<Option<Plan>, VendorError> {
        Ok(Some(self.vps()).filter(|vps| vps.slug == *plan))
    }
    async fn region(&self, _: &Slug) -> Result<Option<Region>, VendorError> {
        Ok(None)
    }
    async fn project(&self, id: u64) -> Result<Option<Project>, VendorError> {
        Ok(Some(Project { id, name: "p".to_owned() }))
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
    async fn endings(&self) -> Result<Vec<String>, VendorError> {
        Ok(Vec::new())
    }
    async fn languages(&self, _: &Slug) -> Result<Vec<String>, VendorError> {
        Ok(Vec::new())
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
        let known = self.0.lock();
        let end = known.domains.get(name.as_str()).copied();
        Ok(end.map(|end| OwnedDomain {
            name: name.clone(),
            bought_at: Some(end - TimeDelta::days(365)),
            expires_at: Some(end),
            renews_itself: known.renewing_itself.contains(name.as_str()),
            hosted: Some(!known.elsewhere.contains(name.as_str())),
        }))
    }
    async fn domains(&self) -> Result<Vec<OwnedDomain>, VendorError> {
        Ok(Vec::new())
    }
    async fn confirmation(&self, _: &DomainName) -> Result<Confirmation, VendorError> {
        let said = self.0.lock().confirmation;
        said.ok_or_else(|| VendorError::not_done(Refusal::TooEarly, "bought too recently"))
    }
    async fn stop_renewing(&self, name: &DomainName, _: Deadline) -> Result<(), VendorError> {
        self.0.lock().write(format!("stop {name}"), |known| {
            known.renewing_itself.remove(name.as_str());
        })
    }
    async fn reset_nameservers(&self, name: &DomainName, _: Deadline) -> Result<(), VendorError> {
        self.0.lock().write(format!("nameservers {name}"), |known| {
            known.elsewhere.remove(name.as_str());
        })
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
    async fn change_record(&self, id: &Slug, record: &NewRecord, _: Deadline) -> Result<(), VendorError> {
        let (kind, value) = (record.data.kind(), record.data.text());
        let mut known = self.0.lock();
        if !known.records.iter().any(|one| one.id == *id) {
            return Err(VendorError::not_done(Refusal::NotFound, "no such record"));
        }
        known.write(format!("change {kind} {} {value}", record.name), |known| {
            let changed = zone_record(id.as_str(), &record.name, kind, &value);
            known.records.iter_mut().filter(|one| one.id == *id).for_each(|one| *one = changed.clone());
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

/// A seat among vendors: its own desk, or others that its options name.
pub struct Town {
    seat: Seat,
    pub desk: Desk,
}

impl std::ops::Deref for Town {
    type Target = Seat;

    fn deref(&self) -> &Seat {
        &self.seat
    }
}

impl Town {
    pub async fn on(store: Store) -> Self {
        let clock = TestClock::at(DateTime::from_timestamp(1_800_000_000, 0).expect("a time"));
        let desk = Desk::default();
        {
            let mut known = desk.0.lock();
            (known.renewal_cents, known.hour_cents, known.month_cents) = (1000, 1, 500);
        }
        Self::open(Place::fresh(store).await, clock, desk).await
    }

    /// Another on the same database: a replica, or the same server after a crash.
    pub async fn again(&self) -> Self {
        Self::open(self.place.clone(), self.clock.clone(), self.desk.clone()).await
    }

    /// One beside a program that runs on the same database, with the vendors that the options name.
    pub async fn beside(url: String, options: &[(&str, &str)]) -> Self {
        let clock = TestClock::at(DateTime::from_timestamp(Utc::now().timestamp(), 0).expect("a time"));
        let seat = Seat::open(Place::of(url), clock, options, None).await;
        Self { seat, desk: Desk::default() }
    }

    async fn open(place: Place, clock: TestClock, desk: Desk) -> Self {
        let sha256 = "00".repeat(32);
        let package = [
            ("--agent-package-url", "https://packages.example/otonix-agent"),
            ("--agent-package-sha256", sha256.as_str()),
        ];
        let vendors = Vendors {
            compute: Some(Arc::new(desk.clone())),
            project: Some(1),
            registrar: Some(Arc::new(desk.clone())),
            dns: Some(Arc::new(desk.clone())),
            ..Vendors::default()
        };
        let outside = Outside { vendors, ..Outside::default() };
        Self { seat: Seat::open(place, clock, &package, Some(outside)).await, desk }
    }

    pub fn operator() -> Caller {
        Seat::operator()
    }

    /// An agent of a new owner with credits in dollars.
    pub async fn agent(&self, name: &str, dollars: i64) -> Agent {
        let owner = self.owner().await;
        let made = self.register(&owner, name).await;
        if dollars > 0 {
            self.grant(made.id, dollars).await;
        }
        made
    }

    pub async fn grant(&self, id: AgentId, dollars: i64) {
        self.grant_micros(id, dollars * 1_000_000).await;
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
        self.server_of(agent, vendor_id, "vps", cycle, paid_for, address).await
    }

    /// The same of a plan.
    pub async fn server_of(
        &self,
        agent: &Agent,
        vendor_id: u64,
        plan: &str,
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
            plan: plan.to_owned(),
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
            contact_verified: None,
            verify_by: None,
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
        self.point(domain, Some(sandbox)).await;
    }

    /// The same, or at none.
    pub async fn point(&self, domain: DomainId, sandbox_id: Option<SandboxId>) {
        let row = Domain { sandbox_id, ..self.domain_row(domain).await };
        let linked = self
            .app
            .writer
            .apply(Target::Alone, move |tx| Box::pin(async move { Ok(domains::update(tx, &row).await?) }));
        linked.await.expect("linked");
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
}
