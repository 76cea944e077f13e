//! Words of registrars and of those who answer for zones.

use std::fmt;
use std::net::{Ipv4Addr, Ipv6Addr};

use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use crate::upstream::names::{DomainName, Slug};
use crate::upstream::price::Decimal;

/// What a number of years costs, dollars; `None`: not to be had.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DomainPrice {
    pub years: u32,
    pub purchase: Option<Decimal>,
    pub renewal: Option<Decimal>,
}

/// Who a domain is registered to. Every field but the last three is asked for by every registry.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Contact {
    pub first_name: String,
    pub last_name: String,
    pub email: String,
    /// E.164: `+` and digits.
    pub phone: String,
    pub address1: String,
    pub city: String,
    pub state: String,
    pub zip: String,
    /// Two capitals (ISO 3166).
    pub country: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub address2: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub company_name: Option<String>,
    /// What some endings ask for beyond this.
    #[serde(default, skip_serializing_if = "Map::is_empty")]
    pub additional: Map<String, Value>,
}

impl fmt::Debug for Contact {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Contact(…)")
    }
}

/// An order for a domain. The registrar never renews by itself.
#[derive(Debug, Clone)]
pub struct BuyDomain {
    pub domain: DomainName,
    pub years: u32,
    /// What it costs at most and at least: at another price the registrar refuses.
    pub expected: Decimal,
    pub contact: Contact,
    /// The language of a name in punycode (ISO 639).
    pub language_code: Option<String>,
}

/// An order for more years.
#[derive(Debug, Clone)]
pub struct RenewDomain {
    pub domain: DomainName,
    pub years: u32,
    /// What it costs at most and at least: at another price the registrar refuses.
    pub expected: Decimal,
}

/// How an order stands.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum OrderState {
    /// Goes on. A word that this version does not know counts as this.
    Purchasing,
    /// Carried out, at this price.
    Completed { price: Option<Decimal> },
    /// Not carried out, and the account has its money.
    Failed { code: String },
    /// Not carried out, and the account may not have its money: for the operator.
    FailedUnrefunded { code: String },
}

/// Whether a domain's registrant has confirmed the address that it was registered with.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Confirmation {
    /// Yes.
    Given,
    /// Not yet; after this time the registry suspends the domain.
    Awaited { until: Option<DateTime<Utc>> },
}

/// A domain of the account.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OwnedDomain {
    pub name: DomainName,
    /// When it was bought here; `None`: it was not, or not yet.
    pub bought_at: Option<DateTime<Utc>>,
    pub expires_at: Option<DateTime<Utc>>,
    /// Whether the registrar renews it by itself, which it should not.
    pub renews_itself: bool,
    /// Whether the registrar answers for its zone; `None` when it does not say.
    pub hosted: Option<bool>,
}

/// The value of a record, by its type.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum RecordData {
    A(Ipv4Addr),
    Aaaa(Ipv6Addr),
    Cname(String),
    Mx { priority: u16, host: String },
    Txt(String),
    Ns(String),
    Srv { priority: u16, weight: u16, port: u16, target: String },
}

impl RecordData {
    /// The type's name.
    pub const fn kind(&self) -> &'static str {
        match self {
            Self::A(_) => "A",
            Self::Aaaa(_) => "AAAA",
            Self::Cname(_) => "CNAME",
            Self::Mx { .. } => "MX",
            Self::Txt(_) => "TXT",
            Self::Ns(_) => "NS",
            Self::Srv { .. } => "SRV",
        }
    }

    /// The value as lists show it; of MX and SRV with the numbers in front.
    pub fn text(&self) -> String {
        match self {
            Self::A(ip) => ip.to_string(),
            Self::Aaaa(ip) => ip.to_string(),
            Self::Cname(text) | Self::Txt(text) | Self::Ns(text) => text.clone(),
            Self::Mx { priority, host } => format!("{priority} {host}"),
            Self::Srv { priority, weight, port, target } => format!("{priority} {weight} {port} {target}"),
        }
    }
}

/// A record to add.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NewRecord {
    /// Below the domain; empty for the domain itself.
    pub name: String,
    /// Seconds.
    pub ttl: u32,
    pub data: RecordData,
}

/// A record that is there.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ZoneRecord {
    pub id: Slug,
    pub name: String,
    /// Any type, those that nobody can add here too.
    pub kind: String,
    /// As [`RecordData::text`].
    pub value: String,
    pub ttl: Option<u32>,
    /// Whether the vendor keeps it by itself.
    pub system: bool,
}

impl NewRecord {
    /// Whether this record is there: the same name, type and value.
    pub fn is(&self, there: &ZoneRecord) -> bool {
        let plain = |text: &str| text.trim_end_matches('.').to_ascii_lowercase();
        let same_value = match &self.data {
            RecordData::Txt(text) => *text == there.value.trim_matches('"'),
            RecordData::Aaaa(ip) => there.value.parse() == Ok(*ip),
            other => plain(&other.text()) == plain(&there.value),
        };
        self.name.eq_ignore_ascii_case(&there.name) && self.data.kind() == there.kind && same_value
    }
}
