//! Domains and servers that are bought at vendors.

use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use crate::api::payments::PaymentReceipt;
use crate::api::records::{Domain, Sandbox};
use crate::ids::{AgentId, PurchaseId, SandboxId};
use crate::money::MicroUsd;

/// Buys a domain.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct RegisterDomain {
    /// The name.
    pub domain: String,
    /// Whom it is for; its credits pay the renewals.
    #[serde(default)]
    pub agent_id: Option<AgentId>,
    /// The server it points at.
    #[serde(default)]
    pub sandbox_id: Option<SandboxId>,
    /// 1 (the default) to 10.
    #[serde(default)]
    pub years: Option<u32>,
    /// Whether it is renewed from the agent's credits; true when an agent is named, unless said otherwise.
    #[serde(default)]
    pub auto_renew: Option<bool>,
    /// Who registers it (default: whoever the server is configured with).
    #[serde(default)]
    pub contact: Option<Contact>,
    /// The language of a name that is not ASCII (ISO 639), where the registry asks for it.
    #[serde(default)]
    pub language_code: Option<String>,
}

/// Who registers a domain, as registries ask for it.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Contact {
    pub first_name: String,
    pub last_name: String,
    pub email: String,
    /// E.164.
    pub phone: String,
    pub address1: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub address2: Option<String>,
    pub city: String,
    pub state: String,
    pub zip: String,
    /// Two capitals.
    pub country: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub company_name: Option<String>,
    /// What some endings ask for beyond this.
    #[serde(default, skip_serializing_if = "Map::is_empty")]
    pub additional: Map<String, Value>,
}

impl std::fmt::Debug for Contact {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Contact(…)")
    }
}

/// A domain was bought.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct DomainBought {
    pub domain: Domain,
    pub receipt: PaymentReceipt,
}

/// Buys a server.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ProvisionServer {
    /// Slug of the plan.
    pub plan: String,
    /// Slug of the region.
    pub region: String,
    /// Slug of the image.
    pub image: String,
    pub hostname: String,
    /// How the vendor bills: hourly, monthly, …
    pub cycle: String,
    /// How many cycles are paid now (default 1; hourly: 24).
    #[serde(default)]
    pub periods: Option<u32>,
    /// Whom it is for: the daemon is installed for this agent, and its credits pay further periods.
    #[serde(default)]
    pub agent_id: Option<AgentId>,
    /// Ids of keys at the vendor.
    #[serde(default)]
    pub ssh_keys: Option<Vec<u64>>,
    /// A script for the first start, at most 16 KiB.
    #[serde(default)]
    pub user_data: Option<String>,
}

/// Buys more time for a server.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ExtendServer {
    /// How many cycles (default 1; hourly: 24).
    #[serde(default)]
    pub periods: Option<u32>,
}

/// A server as its buyer sees it.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ServerBought {
    /// The vendor's id.
    pub id: String,
    pub hostname: String,
    pub plan: String,
    pub region: String,
    pub image: String,
    pub cycle: String,
    /// As the vendor has it.
    pub status: String,
    pub ip_address: Option<String>,
    pub username: Option<String>,
    /// Shown once; `null` in a repeat.
    pub password: Option<String>,
}

/// A server was bought.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ServerProvisioned {
    pub server: ServerBought,
    pub sandbox: Sandbox,
    pub receipt: PaymentReceipt,
    /// Whether the password was shown before.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub secret_shown: bool,
}

/// A server was given more time.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ServerExtended {
    pub sandbox: Sandbox,
    pub paid_until: Option<DateTime<Utc>>,
    pub receipt: PaymentReceipt,
}

/// Something that is bought at a vendor.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Purchase {
    pub id: PurchaseId,
    /// domain, renewal, server, period.
    pub kind: String,
    /// paid, executing, unknown, delivered, failed, needs_operator.
    pub status: String,
    /// A domain's name or a server's.
    pub subject: String,
    pub price: MicroUsd,
    /// `USDC`.
    pub currency: String,
    /// `payment` or `credits`.
    pub paid_by: String,
    /// The sale that paid it; `null` when credits did.
    pub sale_id: Option<crate::ids::SaleId>,
    pub agent_id: Option<AgentId>,
    /// The vendor's order or server.
    pub vendor_id: Option<String>,
    pub attempts: i64,
    /// Why it failed, or needs the operator.
    pub failure_code: Option<String>,
    pub failure: Option<String>,
    /// The domain or sandbox that came of it.
    pub result_id: Option<uuid::Uuid>,
    /// What the operator noted.
    pub note: Option<String>,
    pub created_at: DateTime<Utc>,
    pub ended_at: Option<DateTime<Utc>>,
}

/// How the operator ends a purchase whose outcome the server could not find out.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ResolvePurchase {
    /// `delivered` (the vendor has it, and the server finds it there), `failed` (the money goes back, or none was set
    /// aside), `retry` (it was not done; it is tried once more, or its price is agreed to).
    pub resolution: String,
    /// For `delivered`, a server: its id at the vendor, when it does not carry the purchase's mark.
    #[serde(default)]
    pub vendor_id: Option<String>,
    /// For people.
    #[serde(default)]
    pub note: Option<String>,
}
