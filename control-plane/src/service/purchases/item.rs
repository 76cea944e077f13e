//! What is bought, in a form that outlives the request: whoever finishes a purchase, after a crash too, knows it all.

use chrono::{DateTime, Utc};
use otonix_sdk::api::purchases::Contact;
use otonix_sdk::ids::SandboxId;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::error::Error;
use crate::store::purchases::Purchase;

/// Something that is bought at a vendor.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
pub enum Item {
    /// A domain.
    Domain(DomainItem),
    /// More years for a managed domain.
    Renewal(RenewalItem),
    /// A server.
    Server(ServerItem),
    /// More time for a managed server. The vendor bills by itself until a server is deleted, so nothing is asked of it.
    Period(PeriodItem),
}

/// A domain to be bought.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct DomainItem {
    /// The name.
    pub domain: String,
    /// For how long.
    pub years: u32,
    /// Whether it is renewed from its agent's credits.
    pub auto_renew: bool,
    /// The server it points at.
    pub sandbox: Option<SandboxId>,
    /// What a year's renewal cost when it was quoted, micro-USDC.
    pub renewal_price_micro: Option<i64>,
    /// The language of its name.
    pub language_code: Option<String>,
}

/// More years for a domain.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct RenewalItem {
    /// The name.
    pub domain: String,
    /// For how long.
    pub years: u32,
    /// When it expires without: what is later than that and by about as much was renewed.
    pub expires_before: DateTime<Utc>,
}

/// A server to be bought.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ServerItem {
    /// The vendor's project.
    pub project: u64,
    /// Slug of the plan.
    pub plan: String,
    /// Slug of the region.
    pub region: String,
    /// Slug of the image.
    pub image: String,
    /// The server's name.
    pub hostname: String,
    /// How it is billed.
    pub cycle: String,
    /// How many cycles are paid.
    pub periods: u32,
    /// Keys at the vendor.
    pub ssh_keys: Vec<u64>,
    /// Whether the daemon is installed and enrolled for the agent.
    pub bootstrap: bool,
    /// Cores, MB and GB, as the plan says.
    pub cpu: Option<u32>,
    /// See `cpu`.
    pub memory: Option<u32>,
    /// See `cpu`.
    pub disk: Option<u32>,
}

/// More time for a server.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct PeriodItem {
    /// The managed server.
    pub sandbox: SandboxId,
    /// The vendor's id of it.
    pub vendor_id: String,
    /// Its name.
    pub hostname: String,
    /// How it is billed.
    pub cycle: String,
    /// How many cycles are paid.
    pub periods: u32,
}

/// What belongs to a purchase and is erased at its end.
#[derive(Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Private {
    /// Who registers the domain, when the request said so.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub contact: Option<Contact>,
    /// The caller's script for a new server.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub user_data: Option<String>,
}

impl std::fmt::Debug for Private {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Private(…)")
    }
}

impl Private {
    /// As it is kept; `None` when there is nothing.
    pub fn to_text(&self) -> Option<String> {
        if *self == Self::default() {
            return None;
        }
        serde_json::to_string(self).ok()
    }

    /// Reads what was kept.
    pub fn of(purchase: &Purchase) -> Self {
        purchase.private.as_deref().and_then(|text| serde_json::from_str(text).ok()).unwrap_or_default()
    }
}

impl Item {
    /// As its row says.
    ///
    /// # Errors
    /// [`Error::Internal`] when the row cannot be read.
    pub fn of(purchase: &Purchase) -> Result<Self, Error> {
        serde_json::from_value(purchase.item.clone()).map_err(|why| {
            Error::internal(format!("the item of purchase {} cannot be read: {why}", purchase.id))
        })
    }

    /// As it is kept.
    ///
    /// # Errors
    /// [`Error::Internal`]; it never happens.
    pub fn to_value(&self) -> Result<Value, Error> {
        serde_json::to_value(self).map_err(|why| Error::internal(why.to_string()))
    }

    /// Its kind, as it is written.
    pub const fn kind(&self) -> &'static str {
        match self {
            Self::Domain(_) => "domain",
            Self::Renewal(_) => "renewal",
            Self::Server(_) => "server",
            Self::Period(_) => "period",
        }
    }

    /// What it is about: a domain's name or a server's.
    pub fn subject(&self) -> &str {
        match self {
            Self::Domain(item) => &item.domain,
            Self::Renewal(item) => &item.domain,
            Self::Server(item) => &item.hostname,
            Self::Period(item) => &item.hostname,
        }
    }

    /// What no two payments may wait for at once.
    pub fn exclusive(&self) -> Option<String> {
        match self {
            Self::Domain(item) => Some(format!("domain {}", item.domain)),
            Self::Renewal(_) | Self::Server(_) | Self::Period(_) => None,
        }
    }

    /// The category of the lines in an agent's log.
    pub const fn category(&self) -> &'static str {
        match self {
            Self::Domain(_) | Self::Renewal(_) => "domain",
            Self::Server(_) | Self::Period(_) => "infra",
        }
    }

    /// For people.
    pub fn describe(&self) -> String {
        let plural =
            |n: u32, one: &str, more: &str| if n == 1 { format!("1 {one}") } else { format!("{n} {more}") };
        match self {
            Self::Domain(item) => {
                format!("domain {} for {}", item.domain, plural(item.years, "year", "years"))
            }
            Self::Renewal(item) => {
                format!("renewal of {} for {}", item.domain, plural(item.years, "year", "years"))
            }
            Self::Server(item) => format!(
                "server {} ({}, {}) for {}",
                item.hostname,
                item.plan,
                item.cycle,
                plural(item.periods, "period", "periods")
            ),
            Self::Period(item) => format!(
                "{} more for server {} ({})",
                plural(item.periods, "period", "periods"),
                item.hostname,
                item.cycle
            ),
        }
    }
}
