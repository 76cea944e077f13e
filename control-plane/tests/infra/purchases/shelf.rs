//! Both vendors behind the traits, in memory, with a clock that the test moves: what was bought is remembered, and each
//! write goes wrong as it is told.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;

use async_trait::async_trait;
use chrono::{DateTime, Months, TimeDelta, Utc};
use otonix_control_plane::upstream::providers::*;
use otonix_sdk::clock::{Clock, TestClock};
use otonix_sdk::secret::Secret;
use parking_lot::Mutex;
use serde_json::Value;
use tokio::sync::Notify;

/// A request that was stopped for longer is not sent.
const SEND_FOR: TimeDelta = TimeDelta::seconds(55);

/// How a write goes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum How {
    /// It is done.
    Well,
    /// It is done, and the answer is lost.
    LostAfter,
    /// It is not done, and there is no answer.
    LostBefore,
    /// It is refused.
    Refused(Refusal),
    /// It is done so many looks later, and there is no answer.
    Late(u32),
}

/// Where the caller is killed: at which of its calls, counted from 1, and whether the vendor has acted by then.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Kill {
    pub at: u32,
    pub acted: bool,
}

/// A domain of the account.
#[derive(Debug, Clone)]
pub struct Held {
    pub bought_at: DateTime<Utc>,
    pub expires_at: DateTime<Utc>,
    /// Looks until it is there.
    pub looks: u32,
}

#[derive(Debug)]
pub struct World {
    pub domains: BTreeMap<String, Held>,
    pub taken: Vec<String>,
    pub orders: BTreeMap<String, (OrderState, u32)>,
    pub servers: BTreeMap<u64, (Server, u32)>,
    /// Prices by kind: domain, renewal, hour.
    pub domain_price: String,
    pub renewal_price: String,
    pub hour_price: String,
    pub stock: u64,
    /// How the next writes go; after them, well.
    pub writes: VecDeque<How>,
    /// Reads fail.
    pub away: bool,
    /// Every call fails so, reads and writes.
    pub trouble: Option<VendorError>,
    /// Every call ends its caller's task by a panic: a fault of ours.
    pub panics: bool,
    /// Writes that came in, done or not.
    pub asked: u32,
    /// Orders fail with this code once they are carried out.
    pub order_fails: Option<(String, bool)>,
    /// How often each thing was really bought.
    pub bought: BTreeMap<String, u32>,
    /// What was sent: the contact's e-mail, the server's script.
    pub contacts: Vec<String>,
    pub scripts: Vec<String>,
    /// Reads of the account.
    pub looks: u32,
    /// Calls so far, and where the caller waits for ever.
    pub calls: u32,
    pub kill: Option<Kill>,
    next: u64,
}

/// The vendors.
#[derive(Clone)]
pub struct Shelf {
    pub world: Arc<Mutex<World>>,
    /// The caller has come to where it is to be killed.
    pub hanging: Arc<Notify>,
    /// Lets a caller go on that hangs.
    pub resume: Arc<Notify>,
    clock: TestClock,
}

impl Shelf {
    pub fn new(clock: &TestClock) -> Self {
        let world = World {
            domains: BTreeMap::new(),
            taken: Vec::new(),
            orders: BTreeMap::new(),
            servers: BTreeMap::new(),
            domain_price: "11.25".to_owned(),
            renewal_price: "12.5".to_owned(),
            hour_price: "0.01815".to_owned(),
            stock: 5,
            writes: VecDeque::new(),
            away: false,
            trouble: None,
            panics: false,
            asked: 0,
            order_fails: None,
            bought: BTreeMap::new(),
            contacts: Vec::new(),
            scripts: Vec::new(),
            looks: 0,
            calls: 0,
            kill: None,
            next: 383_531,
        };
        Self {
            world: Arc::new(Mutex::new(world)),
            hanging: Arc::default(),
            resume: Arc::default(),
            clock: clock.clone(),
        }
    }

    pub fn vendors(&self) -> Vendors {
        Vendors {
            compute: Some(Arc::new(self.clone())),
            project: Some(321),
            registrar: Some(Arc::new(self.clone())),
            ..Vendors::default()
        }
    }

    /// The next writes go so.
    pub fn next(&self, how: &[How]) {
        self.world.lock().writes.extend(how.iter().cloned());
    }

    /// How often something was really bought.
    pub fn bought(&self, what: &str) -> u32 {
        self.world.lock().bought.get(what).copied().unwrap_or(0)
    }

    /// One call: stops here when the caller is to be killed, or stopped, at it.
    async fn call(&self, acted: bool) {
        let here = {
            let mut world = self.world.lock();
            if !acted {
                world.calls += 1;
            }
            assert!(!world.panics, "as the test wants it");
            world.kill == Some(Kill { at: world.calls, acted })
        };
        if here {
            self.hanging.notify_one();
            self.resume.notified().await;
        }
    }

    async fn read(&self) -> Result<(), VendorError> {
        self.call(false).await;
        let mut world = self.world.lock();
        world.looks += 1;
        if let Some(trouble) = &world.trouble {
            return Err(trouble.clone());
        }
        if world.away { Err(VendorError::not_done(Refusal::Unavailable, "no answer")) } else { Ok(()) }
    }

    /// Whether to do it, after how many looks it shows, and what to answer then.
    async fn write(&self) -> Result<(bool, u32), VendorError> {
        let began = self.clock.now();
        self.call(false).await;
        // As the clients do right before a body is written, by a clock that the test can move.
        if self.clock.now() - began >= SEND_FOR {
            return Err(VendorError::not_done(
                Refusal::Unavailable,
                "its time had passed before it was sent",
            ));
        }
        self.world.lock().asked += 1;
        if let Some(trouble) = &self.world.lock().trouble {
            return Err(trouble.clone());
        }
        match self.world.lock().writes.pop_front().unwrap_or(How::Well) {
            How::Well => Ok((true, 0)),
            How::LostAfter => Ok((false, 0)),
            How::Late(looks) => Ok((false, looks)),
            How::LostBefore => Err(VendorError::unknown("the connection ended")),
            How::Refused(why) => Err(VendorError::not_done(why, format!("refused: {why:?}"))),
        }
    }

    fn buy_now(&self, order: &BuyDomain, looks: u32) -> Result<String, VendorError> {
        let mut world = self.world.lock();
        let name = order.domain.as_str().to_owned();
        if world.domains.contains_key(&name) || world.taken.contains(&name) {
            return Err(VendorError::not_done(Refusal::DomainNotAvailable, "somebody has it"));
        }
        let price = dollars(&world.domain_price).checked_mul(order.years).expect("a price");
        if order.expected != price {
            return Err(VendorError::not_done(Refusal::PriceMoved, "another price"));
        }
        world.next += 1;
        let id = format!("order_{}", world.next);
        let state = match world.order_fails.clone() {
            Some((code, true)) => OrderState::Failed { code },
            Some((code, false)) => OrderState::FailedUnrefunded { code },
            None => OrderState::Completed { price: Some(price) },
        };
        world.contacts.push(order.contact.email.clone());
        if matches!(state, OrderState::Completed { .. }) {
            let now = self.clock.now();
            let expires_at = now.checked_add_months(Months::new(order.years * 12)).expect("a time");
            *world.bought.entry(name.clone()).or_default() += 1;
            world.domains.insert(name, Held { bought_at: now, expires_at, looks });
        }
        world.orders.insert(id.clone(), (state, 1));
        Ok(id)
    }

    fn renew_now(&self, order: &RenewDomain) -> Result<String, VendorError> {
        let mut world = self.world.lock();
        let name = order.domain.as_str().to_owned();
        let price = dollars(&world.renewal_price).checked_mul(order.years).expect("a price");
        if order.expected != price {
            return Err(VendorError::not_done(Refusal::PriceMoved, "another price"));
        }
        let Some(held) = world.domains.get_mut(&name) else {
            return Err(VendorError::not_done(Refusal::NotRegistered, "not here"));
        };
        held.expires_at = held.expires_at.checked_add_months(Months::new(order.years * 12)).expect("a time");
        *world.bought.entry(format!("renewal of {name}")).or_default() += 1;
        world.next += 1;
        let id = format!("order_{}", world.next);
        world.orders.insert(id.clone(), (OrderState::Completed { price: Some(price) }, 1));
        Ok(id)
    }

    fn create_now(&self, order: &CreateServer, looks: u32) -> Result<Server, VendorError> {
        let mut world = self.world.lock();
        if world.stock == 0 {
            return Err(VendorError::not_done(Refusal::OutOfStock, "none left"));
        }
        world.stock -= 1;
        world.next += 1;
        let id = world.next;
        let server = Server {
            id,
            hostname: order.hostname.clone(),
            status: ServerStatus::Deploying,
            state: None,
            powered: None,
            plan: Some(order.plan.clone()),
            region: Some(order.region.clone()),
            image: Some(order.image.to_string()),
            address: None,
            project: Some(order.project),
            tags: order.tags.clone(),
            created_at: Some(self.clock.now()),
        };
        *world.bought.entry(order.hostname.clone()).or_default() += 1;
        world.scripts.extend(order.user_data.iter().map(|text| text.expose().to_owned()));
        world.servers.insert(id, (server.clone(), looks));
        Ok(server)
    }
}

fn dollars(text: &str) -> Decimal {
    Decimal::parse(text).expect("a price")
}

fn slug(text: &str) -> Slug {
    Slug::parse(text).expect("a slug")
}

fn lost<T>() -> Result<T, VendorError> {
    Err(VendorError::unknown("the answer was lost"))
}

#[async_trait]
impl Registrar for Shelf {
    async fn available(&self, domains: &[DomainName]) -> Result<Vec<bool>, VendorError> {
        self.read().await?;
        let world = self.world.lock();
        let free = |name: &DomainName| {
            !world.domains.contains_key(name.as_str())
                && !world.taken.iter().any(|taken| taken == name.as_str())
        };
        Ok(domains.iter().map(free).collect())
    }

    async fn price(&self, _: &DomainName, years: u32) -> Result<DomainPrice, VendorError> {
        self.read().await?;
        let world = self.world.lock();
        Ok(DomainPrice {
            years,
            purchase: dollars(&world.domain_price).checked_mul(years),
            renewal: dollars(&world.renewal_price).checked_mul(years),
        })
    }

    async fn endings(&self) -> Result<Vec<String>, VendorError> {
        Ok(Vec::new())
    }

    async fn languages(&self, _: &Slug) -> Result<Vec<String>, VendorError> {
        Ok(Vec::new())
    }

    async fn contact_schema(&self, domain: &DomainName) -> Result<Option<Value>, VendorError> {
        self.read().await?;
        let asks = domain.tld() == "eu";
        Ok(asks.then(|| serde_json::json!({"type": "object", "required": ["citizenship"]})))
    }

    async fn buy(&self, order: &BuyDomain, until: Deadline) -> Result<Slug, VendorError> {
        assert!(until.remaining().is_some(), "sent too late");
        let (answered, looks) = self.write().await?;
        let id = self.buy_now(order, looks)?;
        self.call(true).await;
        if answered { Ok(slug(&id)) } else { lost() }
    }
    async fn renew(&self, order: &RenewDomain, until: Deadline) -> Result<Slug, VendorError> {
        assert!(until.remaining().is_some(), "sent too late");
        let (answered, _) = self.write().await?;
        let id = self.renew_now(order)?;
        self.call(true).await;
        if answered { Ok(slug(&id)) } else { lost() }
    }
    async fn order(&self, id: &Slug) -> Result<Option<OrderState>, VendorError> {
        self.read().await?;
        let mut world = self.world.lock();
        let Some((state, looks)) = world.orders.get_mut(id.as_str()) else { return Ok(None) };
        if *looks > 0 {
            *looks -= 1;
            return Ok(Some(OrderState::Purchasing));
        }
        Ok(Some(state.clone()))
    }

    async fn domain(&self, domain: &DomainName) -> Result<Option<OwnedDomain>, VendorError> {
        self.read().await?;
        let mut world = self.world.lock();
        let Some(held) = world.domains.get_mut(domain.as_str()) else { return Ok(None) };
        if held.looks > 0 {
            held.looks -= 1;
            return Ok(None);
        }
        Ok(Some(OwnedDomain {
            name: domain.clone(),
            bought_at: Some(held.bought_at),
            expires_at: Some(held.expires_at),
            renews_itself: false,
            hosted: Some(true),
        }))
    }

    async fn domains(&self) -> Result<Vec<OwnedDomain>, VendorError> {
        self.read().await?;
        Ok(Vec::new())
    }

    async fn confirmation(&self, _: &DomainName) -> Result<Confirmation, VendorError> {
        Ok(Confirmation::Given)
    }

    async fn stop_renewing(&self, _: &DomainName, _: Deadline) -> Result<(), VendorError> {
        Ok(())
    }

    async fn reset_nameservers(&self, _: &DomainName, _: Deadline) -> Result<(), VendorError> {
        Ok(())
    }
}

#[async_trait]
impl ComputeProvider for Shelf {
    async fn account(&self) -> Result<Account, VendorError> {
        Ok(Account { id: 1, email: None })
    }

    async fn plan(&self, _: &Slug) -> Result<Option<Plan>, VendorError> {
        Ok(None)
    }

    async fn region(&self, _: &Slug) -> Result<Option<Region>, VendorError> {
        Ok(None)
    }

    async fn project(&self, id: u64) -> Result<Option<Project>, VendorError> {
        Ok(Some(Project { id, name: "p".to_owned() }))
    }

    async fn plans(&self) -> Result<Vec<Plan>, VendorError> {
        self.read().await?;
        let world = self.world.lock();
        Ok(vec![Plan {
            id: 625,
            slug: slug("small"),
            name: "small".to_owned(),
            kind: Some("vps".to_owned()),
            cpu: Some(1),
            memory: Some(1024),
            disk: Some(20),
            prices: vec![UnitPrice {
                cycle: Cycle::Hourly,
                price: dollars(&world.hour_price),
                currency: Currency::Usd,
            }],
            stock: vec![Stock { region: slug("lt"), quantity: Some(world.stock) }],
        }])
    }

    async fn regions(&self) -> Result<Vec<Region>, VendorError> {
        Ok(Vec::new())
    }

    async fn images(&self, _: &Slug) -> Result<Vec<Image>, VendorError> {
        self.read().await?;
        let image = |id: u64, text: &str, licensed: bool| Image {
            id,
            slug: slug(text),
            name: text.to_owned(),
            licensed,
        };
        Ok(vec![image(1, "debian_12", false), image(2, "windows", true)])
    }

    async fn teams(&self) -> Result<Vec<Team>, VendorError> {
        Ok(Vec::new())
    }

    async fn projects(&self, _: u64) -> Result<Vec<Project>, VendorError> {
        Ok(Vec::new())
    }

    async fn servers(&self, _: u64) -> Result<Vec<Server>, VendorError> {
        self.read().await?;
        let mut world = self.world.lock();
        let mut shown = Vec::new();
        for (server, looks) in world.servers.values_mut() {
            if *looks > 0 {
                *looks -= 1;
            } else {
                shown.push(server.clone());
            }
        }
        Ok(shown)
    }

    async fn server(&self, id: u64) -> Result<Option<Server>, VendorError> {
        self.read().await?;
        Ok(self.world.lock().servers.get(&id).map(|(server, _)| server.clone()))
    }

    async fn credentials(&self, id: u64) -> Result<Option<Created>, VendorError> {
        self.read().await?;
        let found = self.world.lock().servers.get(&id).map(|(server, _)| server.clone());
        Ok(found.map(|server| Created {
            server,
            username: Some("root".to_owned()),
            password: Some(Secret::new("invented-Passw0rd".to_owned())),
        }))
    }

    async fn create(&self, order: &CreateServer, until: Deadline) -> Result<Created, VendorError> {
        assert!(until.remaining().is_some(), "sent too late");
        let (answered, looks) = self.write().await?;
        let server = self.create_now(order, looks)?;
        self.call(true).await;
        let password = Some(Secret::new("invented-Passw0rd".to_owned()));
        if answered { Ok(Created { server, username: Some("root".to_owned()), password }) } else { lost() }
    }

    async fn act(&self, _: u64, _: &ServerAction, _: Deadline) -> Result<(), VendorError> {
        Ok(())
    }

    async fn delete(&self, id: u64, _: Deadline) -> Result<(), VendorError> {
        self.world.lock().servers.remove(&id);
        Ok(())
    }
}
