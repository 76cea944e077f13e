//! Vercel: registers domains and answers for their zones. Every answer is read for what is needed of it; fields and
//! words that this version does not know are passed over.

use std::num::NonZeroU32;
use std::time::Duration;

use async_trait::async_trait;
use chrono::{DateTime, Utc};
use governor::Quota;
use otonix_sdk::secret::Secret;
use reqwest::{Method, Url};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};

use crate::upstream::deadline::Deadline;
use crate::upstream::http::{Answer, Ask, BadVendorUrl, Endpoint, Refused, Tongue};
use crate::upstream::names::{DomainName, Slug};
use crate::upstream::price::Decimal;
use crate::upstream::providers::{DnsZone, Refusal, Registrar, VendorError};
use crate::upstream::registrar::{
    BuyDomain, Contact, DomainPrice, NewRecord, OrderState, OwnedDomain, RecordData, RenewDomain, ZoneRecord,
};

/// The vendor's own address.
pub const DEFAULT_URL: &str = "https://api.vercel.com";
/// Requests a second that are anyone's, and those that are for purchases alone; the vendor's limits differ by operation
/// and are higher for most.
const PACE: Quota = Quota::per_second(NonZeroU32::new(6).expect("not zero"));
const PURCHASES: Quota = Quota::per_second(NonZeroU32::new(4).expect("not zero"));
/// Rows of a page.
const PAGE: usize = 100;
/// Pages read of one list.
const MAX_PAGES: usize = 100;

/// The account at Vercel.
pub struct Vercel {
    http: Endpoint,
}

/// What no answer of the vendor may carry on: who a domain is for. Words that are nobody's (a country) are left.
fn private_words(contact: &impl Serialize) -> Vec<Secret> {
    let Ok(Value::Object(fields)) = serde_json::to_value(contact) else { return Vec::new() };
    let texts = fields.into_iter().filter_map(|(_, value)| value.as_str().map(str::to_owned));
    texts.filter(|text| text.len() > 3).map(Secret::new).collect()
}

impl Vercel {
    /// The account of a token, at an address, for a team.
    ///
    /// # Errors
    /// [`BadVendorUrl`] when the address is none.
    pub fn new(base: Url, token: Secret, team: Option<String>) -> Result<Self, BadVendorUrl> {
        let http = Endpoint::new("vercel", base, token, PACE, Words)?;
        Ok(Self { http: http.with_query("teamId", team) })
    }

    /// The same account, with a share of the pace for purchases.
    #[must_use]
    pub fn for_purchases(&self) -> Self {
        Self { http: self.http.for_purchases(PURCHASES) }
    }

    /// What was asked of it.
    pub fn counts(&self) -> std::sync::Arc<crate::upstream::http::Counts> {
        std::sync::Arc::clone(&self.http.counts)
    }

    async fn get<T: DeserializeOwned>(
        &self,
        path: &[&str],
        query: &[(&str, String)],
    ) -> Result<T, VendorError> {
        let answer = self.http.read(&Ask { query, ..Ask::get(path) }).await?;
        read(&answer.body).map_err(unreadable)
    }

    /// As `get`; a 404 is `None`.
    async fn find<T: DeserializeOwned>(&self, path: &[&str]) -> Result<Option<T>, VendorError> {
        match self.get(path, &[]).await {
            Ok(found) => Ok(Some(found)),
            Err(error) if error.refusal() == Some(Refusal::NotFound) => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// All pages of a list; the field that holds the rows has its name. `None` when there is no such list.
    async fn pages(&self, path: &[&str], name: &str) -> Result<Vec<Value>, VendorError> {
        let mut all = Vec::new();
        let mut next: Option<String> = None;
        for _ in 0..MAX_PAGES {
            let mut query = vec![("limit", PAGE.to_string())];
            query.extend(next.take().map(|until| ("until", until)));
            let mut page: Map<String, Value> = self.get(path, &query).await?;
            let Some(Value::Array(rows)) = page.remove(name) else { return Err(unreadable("no rows")) };
            let is_empty = rows.is_empty();
            all.extend(rows);
            next = match page.get("pagination").and_then(|pagination| pagination.get("next")) {
                Some(Value::Number(until)) => Some(until.to_string()),
                Some(Value::String(until)) => Some(until.clone()),
                _ => None,
            };
            if next.is_none() || is_empty {
                return Ok(all);
            }
        }
        Err(unreadable("a list without end"))
    }

    async fn send(
        &self,
        method: Method,
        path: &[&str],
        body: Vec<u8>,
        secrets: &[&Secret],
        until: Deadline,
    ) -> Result<Answer, VendorError> {
        self.http.write(&Ask { method, path, query: &[], body: Some(body), secrets }, until).await
    }

    async fn order_of(
        &self,
        path: &[&str],
        body: Vec<u8>,
        secrets: &[&Secret],
        until: Deadline,
    ) -> Result<Slug, VendorError> {
        #[derive(Deserialize)]
        #[serde(rename_all = "camelCase")]
        struct Accepted {
            order_id: String,
        }
        let answer = self.send(Method::POST, path, body, secrets, until).await?;
        let accepted: Option<Accepted> = read(&answer.body).ok();
        let id = accepted.and_then(|accepted| Slug::parse(&accepted.order_id));
        id.ok_or_else(|| VendorError::unknown("vercel accepted it with an answer that cannot be read"))
    }
}

fn read<T: DeserializeOwned>(body: &[u8]) -> Result<T, &'static str> {
    serde_json::from_slice(body).map_err(|_| "not what is documented")
}

fn unreadable(why: &str) -> VendorError {
    VendorError::not_done(Refusal::Unavailable, format!("vercel's answer cannot be read: {why}"))
}

/// Written to JSON as a struct, since a price must not pass through a float on its way.
fn written<T: Serialize>(body: &T) -> Result<Vec<u8>, VendorError> {
    let why = |_| VendorError::not_done(Refusal::Invalid, "an order that cannot be written");
    serde_json::to_vec(body).map_err(why)
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct BuyBody<'a> {
    /// Renewals are paid one by one.
    auto_renew: bool,
    years: u32,
    expected_price: Decimal,
    contact_information: &'a Contact,
    #[serde(skip_serializing_if = "Option::is_none")]
    language_code: Option<&'a str>,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct RenewBody {
    years: u32,
    expected_price: Decimal,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct PriceAnswer {
    #[serde(default)]
    purchase_price: Option<Decimal>,
    #[serde(default)]
    renewal_price: Option<Decimal>,
}

#[derive(Deserialize)]
struct Bulk {
    results: Vec<BulkOne>,
}

#[derive(Deserialize)]
struct BulkOne {
    domain: String,
    available: bool,
}

#[derive(Deserialize)]
struct OrderAnswer {
    status: String,
    #[serde(default)]
    domains: Vec<OrderLine>,
    #[serde(default)]
    error: Option<CodeOnly>,
}

#[derive(Deserialize)]
struct OrderLine {
    #[serde(default)]
    status: String,
    #[serde(default)]
    price: Option<Decimal>,
    #[serde(default)]
    error: Option<CodeOnly>,
}

#[derive(Deserialize)]
struct CodeOnly {
    code: String,
}

impl From<OrderAnswer> for OrderState {
    fn from(order: OrderAnswer) -> Self {
        let line = order.domains.first();
        let code = order.error.as_ref().or(line.and_then(|line| line.error.as_ref()));
        let code = || code.map_or_else(|| "failed".to_owned(), |error| error.code.chars().take(64).collect());
        match (order.status.as_str(), line.map_or("", |line| line.status.as_str())) {
            (_, "refund-failed") => Self::FailedUnrefunded { code: code() },
            ("failed", _) | ("completed", "failed" | "refunded") => Self::Failed { code: code() },
            ("completed", _) => Self::Completed { price: line.and_then(|line| line.price) },
            _ => Self::Purchasing,
        }
    }
}

fn owned(value: &Value) -> Option<OwnedDomain> {
    let time = |name: &str| -> Option<DateTime<Utc>> {
        let number = value.get(name)?;
        let millis = number.as_i64().or_else(|| number.to_string().split('.').next()?.parse().ok())?;
        DateTime::from_timestamp_millis(millis)
    };
    Some(OwnedDomain {
        name: DomainName::parse(value.get("name")?.as_str()?)?,
        bought_at: time("boughtAt"),
        expires_at: time("expiresAt"),
        renews_itself: value.get("renew").and_then(Value::as_bool).unwrap_or(false),
        hosted: value.get("serviceType").and_then(Value::as_str) == Some("zeit.world"),
    })
}

#[async_trait]
impl Registrar for Vercel {
    async fn available(&self, domains: &[DomainName]) -> Result<Vec<bool>, VendorError> {
        if let [only] = domains {
            #[derive(Deserialize)]
            struct One {
                available: bool,
            }
            let path = ["v1", "registrar", "domains", only.as_str(), "availability"];
            let one: One = self.get(&path, &[]).await?;
            return Ok(vec![one.available]);
        }
        let names: Vec<&str> = domains.iter().map(DomainName::as_str).collect();
        let ask = Ask {
            method: Method::POST,
            path: &["v1", "registrar", "domains", "availability"],
            query: &[],
            body: Some(json!({ "domains": names }).to_string().into_bytes()),
            secrets: &[],
        };
        let answer = self.http.read(&ask).await?;
        let bulk: Bulk = read(&answer.body).map_err(unreadable)?;
        let is_free = |name: &&str| {
            let said = bulk.results.iter().find(|one| one.domain.eq_ignore_ascii_case(name));
            said.is_some_and(|one| one.available)
        };
        Ok(names.iter().map(is_free).collect())
    }

    async fn price(&self, domain: &DomainName, years: u32) -> Result<DomainPrice, VendorError> {
        let path = ["v1", "registrar", "domains", domain.as_str(), "price"];
        let price: PriceAnswer = self.get(&path, &[("years", years.to_string())]).await?;
        Ok(DomainPrice { years, purchase: price.purchase_price, renewal: price.renewal_price })
    }

    async fn contact_schema(&self, domain: &DomainName) -> Result<Option<Value>, VendorError> {
        let path = ["v1", "registrar", "domains", domain.as_str(), "contact-info", "schema"];
        let schema: Map<String, Value> = self.get(&path, &[]).await?;
        Ok((!schema.is_empty()).then_some(Value::Object(schema)))
    }

    async fn buy(&self, order: &BuyDomain, until: Deadline) -> Result<Slug, VendorError> {
        let body = written(&BuyBody {
            auto_renew: false,
            years: order.years,
            expected_price: order.expected,
            contact_information: &order.contact,
            language_code: order.language_code.as_deref(),
        })?;
        let path = ["v1", "registrar", "domains", order.domain.as_str(), "buy"];
        // A registrar that refuses a contact repeats what was wrong with it.
        let private = private_words(&order.contact);
        self.order_of(&path, body, &private.iter().collect::<Vec<_>>(), until).await
    }

    async fn renew(&self, order: &RenewDomain, until: Deadline) -> Result<Slug, VendorError> {
        let body = written(&RenewBody { years: order.years, expected_price: order.expected })?;
        let path = ["v1", "registrar", "domains", order.domain.as_str(), "renew"];
        self.order_of(&path, body, &[], until).await
    }

    async fn order(&self, id: &Slug) -> Result<Option<OrderState>, VendorError> {
        let order: Option<OrderAnswer> = self.find(&["v1", "registrar", "orders", id.as_str()]).await?;
        Ok(order.map(OrderState::from))
    }

    async fn domain(&self, domain: &DomainName) -> Result<Option<OwnedDomain>, VendorError> {
        #[derive(Deserialize)]
        struct Found {
            domain: Value,
        }
        let found: Option<Found> = self.find(&["v5", "domains", domain.as_str()]).await?;
        let Some(found) = found else { return Ok(None) };
        let one = owned(&found.domain).filter(|one| one.name == *domain);
        one.map(Some).ok_or_else(|| unreadable("a domain that was not asked for"))
    }

    async fn domains(&self) -> Result<Vec<OwnedDomain>, VendorError> {
        let rows = self.pages(&["v5", "domains"], "domains").await?;
        Ok(rows.iter().filter_map(owned).collect())
    }
}

fn record(value: &Value) -> Option<ZoneRecord> {
    let text = |name: &str| value.get(name).and_then(Value::as_str);
    let number = |name: &str| value.get(name).and_then(Value::as_u64);
    let kind = text("type")?.to_owned();
    let mut shown = text("value").unwrap_or_default().to_owned();
    let fields = shown.split_whitespace().count();
    // The priority stands in the value, beside it, or in both.
    let beside = match kind.as_str() {
        "MX" if fields == 1 => number("mxPriority"),
        "SRV" if fields == 3 => number("priority"),
        _ => None,
    };
    if let Some(priority) = beside {
        shown = format!("{priority} {shown}");
    }
    Some(ZoneRecord {
        id: Slug::parse(text("id")?)?,
        name: text("name").unwrap_or_default().to_owned(),
        kind,
        value: shown,
        ttl: number("ttl").and_then(|ttl| u32::try_from(ttl).ok()),
        system: text("creator") == Some("system"),
    })
}

fn record_body(record: &NewRecord) -> Value {
    let (name, ttl, kind) = (record.name.as_str(), record.ttl, record.data.kind());
    match &record.data {
        RecordData::Mx { priority, host } => {
            json!({ "type": kind, "name": name, "ttl": ttl, "value": host, "mxPriority": priority })
        }
        RecordData::Srv { priority, weight, port, target } => {
            let srv = json!({ "priority": priority, "weight": weight, "port": port, "target": target });
            json!({ "type": kind, "name": name, "ttl": ttl, "srv": srv })
        }
        RecordData::A(_)
        | RecordData::Aaaa(_)
        | RecordData::Cname(_)
        | RecordData::Txt(_)
        | RecordData::Ns(_) => {
            json!({ "type": kind, "name": name, "ttl": ttl, "value": record.data.text() })
        }
    }
}

#[async_trait]
impl DnsZone for Vercel {
    async fn records(&self, domain: &DomainName) -> Result<Option<Vec<ZoneRecord>>, VendorError> {
        match self.pages(&["v4", "domains", domain.as_str(), "records"], "records").await {
            Ok(rows) => Ok(Some(rows.iter().filter_map(record).collect())),
            Err(error) if error.refusal() == Some(Refusal::NotFound) => Ok(None),
            Err(error) => Err(error),
        }
    }

    async fn create_record(
        &self,
        domain: &DomainName,
        record: &NewRecord,
        until: Deadline,
    ) -> Result<Slug, VendorError> {
        #[derive(Deserialize)]
        struct Made {
            uid: String,
        }
        let path = ["v2", "domains", domain.as_str(), "records"];
        let answer =
            self.send(Method::POST, &path, record_body(record).to_string().into_bytes(), &[], until).await?;
        let made: Option<Made> = read(&answer.body).ok();
        let id = made.and_then(|made| Slug::parse(&made.uid));
        id.ok_or_else(|| VendorError::unknown("vercel accepted it with an answer that cannot be read"))
    }

    async fn delete_record(
        &self,
        domain: &DomainName,
        id: &Slug,
        until: Deadline,
    ) -> Result<(), VendorError> {
        let path = ["v2", "domains", domain.as_str(), "records", id.as_str()];
        let ask = Ask { method: Method::DELETE, ..Ask::get(&path) };
        match self.http.write(&ask, until).await {
            Err(error) if error.refusal() != Some(Refusal::NotFound) => Err(error),
            Ok(_) | Err(_) => Ok(()),
        }
    }
}

/// The two shapes of Vercel's errors: `{status, code, message}` (or `{issues, message}`) and `{error: {…}}`.
struct Words;

#[derive(Deserialize)]
struct Said {
    #[serde(default)]
    code: Option<String>,
    #[serde(default)]
    message: Option<String>,
    #[serde(default)]
    issues: Option<Vec<Issue>>,
    #[serde(default)]
    error: Option<Box<Said>>,
    #[serde(default, rename = "retryAfter")]
    retry_after: Option<RetryAfter>,
}

#[derive(Deserialize)]
struct Issue {
    #[serde(default)]
    path: Vec<Value>,
    #[serde(default)]
    message: String,
}

#[derive(Deserialize)]
struct RetryAfter {
    value: f64,
}

impl Tongue for Words {
    fn reason(&self, refused: &Refused<'_>) -> Option<(Refusal, String)> {
        let said: Said = serde_json::from_slice(refused.body).ok()?;
        if let Some(issues) = &said.issues {
            let of_contact = |issue: &Issue| issue.path.first() == Some(&Value::from("contactInformation"));
            let is_contact = issues.iter().any(of_contact);
            let reason = if is_contact { Refusal::ContactRefused } else { Refusal::Invalid };
            let each = |issue: &Issue| {
                let path: Vec<&str> = issue.path.iter().filter_map(Value::as_str).collect();
                format!("{} {}", path.join("."), issue.message)
            };
            return Some((reason, issues.iter().map(each).collect::<Vec<_>>().join("; ")));
        }
        let said = said.error.map_or_else(|| Said { error: None, ..said }, |inner| *inner);
        let code = said.code?;
        Some((of_code(&code, refused.status), said.message.unwrap_or(code)))
    }

    fn pause(&self, body: &[u8]) -> Option<Duration> {
        let said: Said = serde_json::from_slice(body).ok()?;
        let seconds = said.retry_after?.value;
        Duration::try_from_secs_f64(seconds).ok().filter(|pause| *pause < Duration::from_secs(3600))
    }
}

fn of_code(code: &str, status: u16) -> Refusal {
    match code {
        "expected_price_mismatch" => Refusal::PriceMoved,
        "domain_not_available" | "domain_too_short" => Refusal::DomainNotAvailable,
        "tld_not_supported" => Refusal::TldNotSupported,
        "order_too_expensive" => Refusal::TooExpensive,
        "additional_contact_info_required" | "invalid_additional_contact_info" => Refusal::ContactRefused,
        "language_code_required" => Refusal::LanguageCodeRequired,
        "domain_not_registered" => Refusal::NotRegistered,
        "record_already_exists" => Refusal::AlreadyThere,
        "too_many_requests" | "rate_limited" => Refusal::RateLimited,
        _ => match status {
            402 => Refusal::NoCredit,
            404 => Refusal::NotFound,
            409 => Refusal::AlreadyThere,
            400 | 422 => Refusal::Invalid,
            _ => Refusal::Other,
        },
    }
}
