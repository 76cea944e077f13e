//! Vercel: registers domains, and answers for their zones (`vercel_zones.rs`). Every answer is read for what is needed of
//! it; fields and words that this version does not know are passed over.

use std::num::NonZeroU32;

use async_trait::async_trait;
use chrono::{DateTime, Utc};
use governor::Quota;
use otonix_sdk::secret::Secret;
use reqwest::{Method, Url};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};

use crate::upstream::deadline::Deadline;
use crate::upstream::http::{Answer, Ask, BadVendorUrl, Endpoint};
use crate::upstream::names::{DomainName, Slug};
use crate::upstream::price::Decimal;
use crate::upstream::providers::{Purpose, Refusal, Registrar, VendorError};
use crate::upstream::registrar::{
    BuyDomain, Confirmation, Contact, DomainPrice, OrderState, OwnedDomain, RenewDomain,
};
use crate::upstream::vercel_words::Words;

/// The vendor's own address.
pub const DEFAULT_URL: &str = "https://api.vercel.com";
/// Requests a second that are anyone's, and those that are for prices and for purchases alone; the vendor's limits
/// differ by operation and are higher for most.
const PACE: Quota = Quota::per_second(NonZeroU32::new(6).expect("not zero"));
const QUOTES: Quota = Quota::per_second(NonZeroU32::new(2).expect("not zero"));
const PURCHASES: Quota = Quota::per_second(NonZeroU32::new(2).expect("not zero"));
/// Rows of a page.
const PAGE: usize = 100;
/// Pages read of one list.
const MAX_PAGES: usize = 100;

/// The account at Vercel.
pub struct Vercel {
    pub(super) http: Endpoint,
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

    /// The same account, with a share of the pace for one purpose.
    #[must_use]
    pub fn asked_for(&self, purpose: Purpose) -> Self {
        let share = match purpose {
            Purpose::Quote => QUOTES,
            Purpose::Purchase => PURCHASES,
        };
        Self { http: self.http.with_share(share) }
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
    pub(super) async fn pages(&self, path: &[&str], name: &str) -> Result<Vec<Value>, VendorError> {
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

    pub(super) async fn send(
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

/// Reads an answer.
pub(super) fn read<T: DeserializeOwned>(body: &[u8]) -> Result<T, &'static str> {
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
        hosted: match value.get("serviceType").and_then(Value::as_str) {
            Some("zeit.world") => Some(true),
            Some("external") => Some(false),
            _ => None,
        },
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

    async fn endings(&self) -> Result<Vec<String>, VendorError> {
        self.get(&["v1", "registrar", "tlds", "supported"], &[]).await
    }

    async fn languages(&self, ending: &Slug) -> Result<Vec<String>, VendorError> {
        #[derive(Deserialize)]
        #[serde(rename_all = "camelCase")]
        struct Ending {
            #[serde(default)]
            supported_language_codes: Map<String, Value>,
        }
        let found: Ending = self.get(&["v1", "registrar", "tlds", ending.as_str()], &[]).await?;
        Ok(found.supported_language_codes.into_iter().map(|(code, _)| code).collect())
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

    async fn confirmation(&self, domain: &DomainName) -> Result<Confirmation, VendorError> {
        #[derive(Deserialize)]
        #[serde(rename_all = "camelCase")]
        struct Verification {
            verified: bool,
            #[serde(default)]
            verify_by: Option<String>,
        }
        let path = ["v1", "registrar", "domains", domain.as_str(), "contact-verification"];
        let said: Verification = self.get(&path, &[]).await?;
        let until = said.verify_by.and_then(|text| DateTime::parse_from_rfc3339(&text).ok());
        let until = until.map(|until| until.to_utc());
        Ok(if said.verified { Confirmation::Given } else { Confirmation::Awaited { until } })
    }

    async fn stop_renewing(&self, domain: &DomainName, until: Deadline) -> Result<(), VendorError> {
        let path = ["v1", "registrar", "domains", domain.as_str(), "auto-renew"];
        let body = json!({ "autoRenew": false }).to_string().into_bytes();
        self.send(Method::PATCH, &path, body, &[], until).await?;
        Ok(())
    }

    async fn reset_nameservers(&self, domain: &DomainName, until: Deadline) -> Result<(), VendorError> {
        let path = ["v1", "registrar", "domains", domain.as_str(), "nameservers"];
        // An empty list: the vendor's own.
        let body = json!({ "nameservers": [] }).to_string().into_bytes();
        self.send(Method::PATCH, &path, body, &[], until).await?;
        Ok(())
    }
}
