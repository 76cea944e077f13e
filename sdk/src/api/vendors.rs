//! What vendors offer, and the things at vendors that are managed here.

use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};

use crate::ids::{AgentId, SandboxId};
use crate::money::MicroUsd;
use crate::secret::Secret;

/// Asks whether domains can be registered: one, or up to fifty.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub struct CheckDomains {
    #[serde(default)]
    pub domain: Option<String>,
    #[serde(default)]
    pub domains: Option<Vec<String>>,
}

/// Whether a domain can be registered, and for what.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct CheckedDomain {
    pub domain: String,
    pub available: bool,
    /// For the period; `None`: not to be had.
    pub price: Option<MicroUsd>,
    pub currency: String,
    /// Years.
    pub period: u32,
    pub renewal_price: Option<MicroUsd>,
}

/// Whether each of several domains can be registered.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct CheckedDomains {
    pub domains: Vec<CheckedDomain>,
}

/// What was asked of a server.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct ServerTold {
    pub id: u64,
    #[serde(rename = "type")]
    pub kind: String,
    /// accepted
    pub status: String,
}

/// A DNS record to add. Of MX and SRV the numbers stand in `value` or in their fields.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct NewZoneRecord {
    /// A, AAAA, CNAME, MX, TXT, NS, SRV
    #[serde(rename = "type")]
    pub kind: String,
    /// Below the domain; `@` or nothing for the domain itself.
    #[serde(default)]
    pub name: Option<String>,
    #[serde(default)]
    pub value: Option<String>,
    /// Seconds; 300 when absent.
    #[serde(default)]
    pub ttl: Option<u32>,
    #[serde(default)]
    pub priority: Option<u16>,
    #[serde(default)]
    pub mx_priority: Option<u16>,
    #[serde(default)]
    pub weight: Option<u16>,
    #[serde(default)]
    pub port: Option<u16>,
    #[serde(default)]
    pub target: Option<String>,
}

/// A DNS record that is there.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ShownRecord {
    pub id: String,
    #[serde(rename = "type")]
    pub kind: String,
    /// `@` for the domain itself.
    pub name: String,
    pub value: String,
    pub ttl: Option<u32>,
    /// Whether the vendor keeps it by itself.
    pub system: bool,
}

/// A domain at the registrar.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct RegisteredDomain {
    pub name: String,
    pub registered_at: Option<DateTime<Utc>>,
    pub expires_at: Option<DateTime<Utc>>,
    /// Whether the registrar renews it by itself, which it should not.
    pub renews_itself: bool,
}

/// What one period of a plan costs.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct PlanPrice {
    /// hourly, monthly, quarterly, semiannually, annually
    pub cycle: String,
    /// With VAT; `None` while there is no rate for the vendor's currency.
    pub price: Option<MicroUsd>,
    pub currency: String,
}

/// How many servers of a plan can be had in a region.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct PlanStock {
    pub region: String,
    /// `None`: the vendor does not say.
    pub stock: Option<u64>,
}

/// A kind of server that is sold.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ServerPlan {
    pub id: u64,
    /// What orders name it by.
    pub slug: String,
    pub name: String,
    #[serde(rename = "type")]
    pub kind: Option<String>,
    pub cpu: Option<u32>,
    /// MB
    pub memory: Option<u32>,
    /// GB
    pub disk: Option<u32>,
    pub prices: Vec<PlanPrice>,
    pub regions: Vec<PlanStock>,
}

/// A server at the vendor, without its secrets.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct VendorServer {
    pub id: u64,
    pub hostname: String,
    /// deploying, deployed, rescue, failed, or the vendor's own word.
    pub status: String,
    pub state: Option<String>,
    pub plan: Option<String>,
    pub region: Option<String>,
    pub image: Option<String>,
    pub ip_address: Option<String>,
    pub created_at: Option<DateTime<Utc>>,
    /// The managed row, if it has one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sandbox_id: Option<SandboxId>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub agent_id: Option<AgentId>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub paid_until: Option<DateTime<Utc>>,
}

/// Does something to a server.
#[derive(Debug, Clone, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ActOnServer {
    /// reboot, power-on, power-off, rebuild, enter-rescue-mode, exit-rescue-mode
    #[serde(rename = "type")]
    pub kind: String,
    /// rebuild
    #[serde(default)]
    pub image: Option<String>,
    /// rebuild; the server's own when absent
    #[serde(default)]
    pub hostname: Option<String>,
    /// rebuild, enter-rescue-mode
    #[serde(default)]
    pub password: Option<Secret>,
    /// rebuild: ids of keys at the vendor
    #[serde(default)]
    pub ssh_keys: Option<Vec<u64>>,
    /// rebuild: a script, at most 16 KiB
    #[serde(default)]
    pub user_data: Option<Secret>,
}
