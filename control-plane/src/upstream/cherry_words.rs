//! What Cherry Servers says, read for what is needed of it. Fields and words that this version does not know are
//! passed over; money is read from the source text; passwords leave only in [`Created`].

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::time::Duration;

use chrono::{DateTime, Utc};
use otonix_sdk::secret::Secret;
use serde::{Deserialize, Deserializer};
use serde_json::Value;

use crate::upstream::compute::{
    Account, Created, Cycle, Image, Plan, Project, Region, Server, ServerStatus, Stock, Team, UnitPrice,
};
use crate::upstream::http::{Refused, Tongue};
use crate::upstream::names::Slug;
use crate::upstream::price::{Currency, Decimal};
use crate::upstream::providers::Refusal;

/// A field that is absent, `null` or of another type than documented is nothing.
fn lenient<'de, D: Deserializer<'de>, T: serde::de::DeserializeOwned>(
    from: D,
) -> Result<Option<T>, D::Error> {
    let raw = Option::<Box<serde_json::value::RawValue>>::deserialize(from)?;
    Ok(raw.and_then(|raw| serde_json::from_str(raw.get()).ok()))
}

#[derive(Deserialize)]
pub struct TeamSaid {
    pub id: u64,
    #[serde(default)]
    name: String,
    #[serde(default, deserialize_with = "lenient")]
    credit: Option<Credit>,
    #[serde(default, deserialize_with = "lenient")]
    billing: Option<Billing>,
}

#[derive(Deserialize)]
struct Credit {
    account: Option<Balance>,
}

#[derive(Deserialize)]
struct Balance {
    remaining: Decimal,
    currency: Currency,
}

#[derive(Deserialize)]
struct Billing {
    vat: Option<Vat>,
}

#[derive(Deserialize)]
struct Vat {
    amount: Decimal,
}

impl TeamSaid {
    /// Percent on top of prices that do not hold it.
    pub fn vat(&self) -> Decimal {
        let vat = self.billing.as_ref().and_then(|billing| billing.vat.as_ref());
        vat.map_or(Decimal::ZERO, |vat| vat.amount)
    }
}

impl From<TeamSaid> for Team {
    fn from(said: TeamSaid) -> Self {
        let account = said.credit.and_then(|credit| credit.account);
        let remaining = account.map(|account| (account.remaining, account.currency));
        Self { id: said.id, name: said.name, remaining }
    }
}

#[derive(Deserialize)]
pub struct ProjectSaid {
    pub id: u64,
    #[serde(default)]
    pub name: String,
}

impl From<ProjectSaid> for Project {
    fn from(said: ProjectSaid) -> Self {
        Self { id: said.id, name: said.name }
    }
}

#[derive(Deserialize)]
pub struct AccountSaid {
    id: u64,
    #[serde(default, deserialize_with = "lenient")]
    email: Option<String>,
}

impl From<AccountSaid> for Account {
    fn from(said: AccountSaid) -> Self {
        let plain = |text: &String| !text.chars().any(char::is_control) && text.len() <= 255;
        Self { id: said.id, email: said.email.filter(plain) }
    }
}

#[derive(Deserialize)]
pub struct CycleSaid {
    name: String,
    slug: String,
}

impl CycleSaid {
    /// The cycle, when it is one of ours.
    pub fn known(&self) -> Option<(Cycle, Slug)> {
        let cycle = Cycle::parse(&self.name).or_else(|| Cycle::parse(&self.slug))?;
        Some((cycle, Slug::parse(&self.slug)?))
    }
}

#[derive(Deserialize)]
struct Pricing {
    price: Decimal,
    unit: String,
    currency: Currency,
    #[serde(default)]
    taxed: bool,
}

#[derive(Deserialize)]
pub struct RegionSaid {
    #[serde(default)]
    id: u64,
    slug: String,
    #[serde(default)]
    name: Option<String>,
    #[serde(default)]
    location: Option<String>,
    #[serde(default)]
    stock_qty: Option<u64>,
}

impl RegionSaid {
    /// The region, when its slug is one.
    pub fn known(self) -> Option<Region> {
        Some(Region { id: self.id, slug: Slug::parse(&self.slug)?, name: self.name, location: self.location })
    }
}

#[derive(Deserialize)]
pub struct ImageSaid {
    id: u64,
    slug: String,
    #[serde(default)]
    name: String,
    #[serde(default)]
    pricing: Option<Vec<Value>>,
}

impl ImageSaid {
    /// The image, when its slug is one.
    pub fn known(self) -> Option<Image> {
        let licensed = self.pricing.is_some_and(|pricing| !pricing.is_empty());
        Some(Image { id: self.id, slug: Slug::parse(&self.slug)?, name: self.name, licensed })
    }
}

#[derive(Deserialize)]
pub struct PlanSaid {
    id: u64,
    slug: String,
    #[serde(default)]
    name: String,
    #[serde(default, rename = "type")]
    kind: Option<String>,
    #[serde(default, deserialize_with = "lenient")]
    specs: Option<Specs>,
    #[serde(default)]
    pricing: Vec<Box<serde_json::value::RawValue>>,
    #[serde(default)]
    available_regions: Vec<RegionSaid>,
}

#[derive(Deserialize, Default)]
struct Specs {
    #[serde(default, deserialize_with = "lenient")]
    cpus: Option<Cpus>,
    #[serde(default, deserialize_with = "lenient")]
    memory: Option<Memory>,
    #[serde(default)]
    storage: Vec<Storage>,
}

#[derive(Deserialize)]
struct Cpus {
    #[serde(default)]
    count: Option<u32>,
    cores: u32,
}

#[derive(Deserialize)]
struct Memory {
    /// GB
    total: u32,
}

#[derive(Deserialize)]
struct Storage {
    #[serde(default)]
    count: Option<u32>,
    size: Decimal,
    #[serde(default)]
    unit: String,
}

impl Storage {
    /// GB, of all disks of this kind.
    fn gigabytes(&self) -> Option<u32> {
        let whole: u32 = self.size.to_string().split('.').next()?.parse().ok()?;
        let each = if self.unit.eq_ignore_ascii_case("TB") { whole.checked_mul(1000)? } else { whole };
        each.checked_mul(self.count.unwrap_or(1).max(1))
    }
}

impl PlanSaid {
    /// The plan with its prices as they are billed, when its slug is one.
    pub fn known(self, vat: Decimal) -> Option<Plan> {
        let specs = self.specs.unwrap_or_default();
        let price = |raw: &serde_json::value::RawValue| -> Option<UnitPrice> {
            let said: Pricing = serde_json::from_str(raw.get()).ok()?;
            let price = if said.taxed { said.price } else { said.price.plus_percent(vat)? };
            Some(UnitPrice { cycle: Cycle::parse(&said.unit)?, price, currency: said.currency })
        };
        let stock =
            |said: &RegionSaid| Some(Stock { region: Slug::parse(&said.slug)?, quantity: said.stock_qty });
        Some(Plan {
            id: self.id,
            slug: Slug::parse(&self.slug)?,
            name: self.name,
            kind: self.kind,
            cpu: specs.cpus.map(|cpus| cpus.cores.saturating_mul(cpus.count.unwrap_or(1).max(1))),
            memory: specs.memory.map(|memory| memory.total.saturating_mul(1024)),
            disk: specs
                .storage
                .iter()
                .map(Storage::gigabytes)
                .try_fold(0_u32, |sum, one| sum.checked_add(one?)),
            prices: self.pricing.iter().filter_map(|raw| price(raw)).collect(),
            stock: self.available_regions.iter().filter_map(stock).collect(),
        })
    }
}

#[derive(Deserialize)]
pub struct ServerSaid {
    id: u64,
    #[serde(default, deserialize_with = "lenient")]
    hostname: Option<String>,
    #[serde(default, deserialize_with = "lenient")]
    username: Option<String>,
    #[serde(default, deserialize_with = "lenient")]
    password: Option<Secret>,
    #[serde(default, deserialize_with = "lenient")]
    image: Option<String>,
    #[serde(default, deserialize_with = "lenient")]
    region: Option<SlugOnly>,
    #[serde(default, deserialize_with = "lenient")]
    plan: Option<SlugOnly>,
    #[serde(default, deserialize_with = "lenient")]
    project: Option<ProjectSaid>,
    #[serde(default, deserialize_with = "lenient")]
    state: Option<String>,
    #[serde(default, deserialize_with = "lenient")]
    status: Option<String>,
    #[serde(default, deserialize_with = "lenient")]
    power: Option<String>,
    #[serde(default, deserialize_with = "lenient")]
    ip_addresses: Option<Vec<IpSaid>>,
    #[serde(default, deserialize_with = "lenient")]
    tags: Option<BTreeMap<String, Value>>,
    #[serde(default, deserialize_with = "lenient")]
    created_at: Option<DateTime<Utc>>,
}

#[derive(Deserialize)]
struct SlugOnly {
    slug: String,
}

#[derive(Deserialize)]
struct IpSaid {
    address: String,
    #[serde(default, rename = "type")]
    kind: String,
}

fn status(word: Option<&str>) -> ServerStatus {
    match word {
        Some("deployed" | "allocated") => ServerStatus::Deployed,
        Some("pending" | "deploying" | "provisioning") | None => ServerStatus::Deploying,
        Some("rescue mode") => ServerStatus::Rescue,
        Some("failed deployment") => ServerStatus::Failed,
        Some(other) => ServerStatus::Other(other.chars().take(64).collect()),
    }
}

impl From<ServerSaid> for Server {
    fn from(said: ServerSaid) -> Self {
        let primary = |ip: &&IpSaid| ip.kind == "primary-ip";
        let addresses = said.ip_addresses.unwrap_or_default();
        let parsed = addresses.iter().filter(primary).filter_map(|ip| ip.address.parse::<IpAddr>().ok());
        let mut parsed: Vec<IpAddr> = parsed.collect();
        parsed.sort_by_key(IpAddr::is_ipv6);
        let slug = |only: Option<SlugOnly>| only.and_then(|only| Slug::parse(&only.slug));
        let text = |value: Value| value.as_str().map_or_else(|| value.to_string(), str::to_owned);
        let tags = said.tags.unwrap_or_default().into_iter().map(|(name, value)| (name, text(value)));
        Self {
            id: said.id,
            hostname: said.hostname.unwrap_or_default(),
            status: status(said.status.as_deref()),
            state: said.state,
            powered: said.power.and_then(|power| match power.as_str() {
                "on" => Some(true),
                "off" => Some(false),
                _ => None,
            }),
            plan: slug(said.plan),
            region: slug(said.region),
            image: said.image,
            address: parsed.first().copied(),
            project: said.project.map(|project| project.id),
            tags: tags.collect(),
            created_at: said.created_at,
        }
    }
}

impl From<ServerSaid> for Created {
    fn from(mut said: ServerSaid) -> Self {
        let (username, password) = (said.username.take(), said.password.take());
        Self { username, password: password.filter(|password| !password.is_empty()), server: said.into() }
    }
}

/// Cherry's errors: `{code, message}`. The texts are not documented, so they are matched by their words.
pub struct Words;

impl Tongue for Words {
    fn reason(&self, refused: &Refused<'_>) -> Option<(Refusal, String)> {
        #[derive(Deserialize)]
        struct Said {
            message: String,
        }
        let said: Said = serde_json::from_slice(refused.body).ok()?;
        let words = said.message.to_ascii_lowercase();
        let has = |some: &[&str]| some.iter().any(|word| words.contains(word));
        let reason = match refused.status {
            404 => Refusal::NotFound,
            402 => Refusal::NoCredit,
            409 => Refusal::AlreadyThere,
            400 | 422 if has(&["stock", "not available", "unavailable"]) => Refusal::OutOfStock,
            400 | 422 if has(&["credit", "funds", "balance", "payment"]) => Refusal::NoCredit,
            400 | 422 => Refusal::Invalid,
            _ => Refusal::Other,
        };
        Some((reason, said.message))
    }

    fn pause(&self, _: &[u8]) -> Option<Duration> {
        None
    }
}
