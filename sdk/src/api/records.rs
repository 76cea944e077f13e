//! Sandboxes, domains and transactions as recorded by agents and operators.

use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};

use crate::api::attached::Attached;
use crate::ids::{AgentId, DomainId, SandboxId, TransactionId};
use crate::money::{Amount, MicroUsd};

/// Records a server.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct NewSandbox {
    pub name: String,
    /// running (the default), stopped, deploying, error
    #[serde(default)]
    pub status: Option<String>,
    #[serde(default)]
    pub os: Option<String>,
    #[serde(default)]
    pub cpu: Option<i32>,
    /// MB
    #[serde(default)]
    pub memory: Option<i32>,
    /// GB
    #[serde(default)]
    pub disk: Option<i32>,
    #[serde(default)]
    pub region: Option<String>,
    #[serde(default)]
    pub ip_address: Option<String>,
    #[serde(default)]
    pub ports: Option<Vec<u16>>,
    #[serde(default)]
    pub agent_id: Option<AgentId>,
    /// From the operator: the server is managed; `serverId` names it at the vendor.
    #[serde(default)]
    pub managed: Option<bool>,
    /// The vendor's id of a managed server.
    #[serde(default)]
    pub server_id: Option<u64>,
    /// How the vendor bills a managed server (default hourly).
    #[serde(default)]
    pub cycle: Option<String>,
    /// Until when a managed server is paid for.
    #[serde(default)]
    pub paid_until: Option<DateTime<Utc>>,
}

/// A server, whole.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Sandbox {
    pub id: SandboxId,
    pub name: String,
    pub status: String,
    pub os: Option<String>,
    pub cpu: Option<i32>,
    pub memory: Option<i32>,
    pub disk: Option<i32>,
    pub region: Option<String>,
    pub ip_address: Option<String>,
    pub ports: Vec<u16>,
    pub agent_id: Option<AgentId>,
    pub managed: bool,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub paid_until: Option<DateTime<Utc>>,
    pub created_at: DateTime<Utc>,
}

/// One DNS record.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct DnsRecord {
    #[serde(rename = "type")]
    pub kind: String,
    #[serde(default)]
    pub name: String,
    pub value: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ttl: Option<u32>,
}

/// Records a domain.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct NewDomain {
    pub name: String,
    /// active (the default), expired, pending
    #[serde(default)]
    pub status: Option<String>,
    #[serde(default)]
    pub registered_at: Option<DateTime<Utc>>,
    #[serde(default)]
    pub expires_at: Option<DateTime<Utc>>,
    #[serde(default)]
    pub dns_records: Option<Vec<DnsRecord>>,
    #[serde(default)]
    pub sandbox_id: Option<SandboxId>,
    #[serde(default)]
    pub agent_id: Option<AgentId>,
    #[serde(default)]
    pub auto_renew: Option<bool>,
    /// From the operator: the domain is in the registrar's account and managed.
    #[serde(default)]
    pub managed: Option<bool>,
}

/// A domain, whole.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Domain {
    pub id: DomainId,
    pub name: String,
    pub status: String,
    pub registered_at: Option<DateTime<Utc>>,
    pub expires_at: Option<DateTime<Utc>>,
    pub dns_records: Vec<DnsRecord>,
    pub sandbox_id: Option<SandboxId>,
    pub agent_id: Option<AgentId>,
    pub auto_renew: bool,
    pub managed: bool,
    /// Whether the registrant has confirmed the address at the registrar; absent: not known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub contact_verified: Option<bool>,
    /// Until when it must be confirmed, or the registry suspends the domain.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub verify_by: Option<DateTime<Utc>>,
}

/// Records a movement of money; a claim that moves nothing.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct NewTransaction {
    /// debit, credit
    #[serde(rename = "type")]
    pub kind: String,
    pub amount: Amount,
    #[serde(default)]
    pub currency: Option<String>,
    #[serde(default)]
    pub description: Option<String>,
    /// pending, completed (the default), failed
    #[serde(default)]
    pub status: Option<String>,
    #[serde(default)]
    pub from_address: Option<String>,
    #[serde(default)]
    pub to_address: Option<String>,
    #[serde(default)]
    pub tx_hash: Option<String>,
    #[serde(default)]
    pub metadata: Option<Attached>,
    #[serde(default)]
    pub agent_id: Option<AgentId>,
}

/// A movement of money, whole.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Transaction {
    pub id: TransactionId,
    #[serde(rename = "type")]
    pub kind: String,
    pub amount: MicroUsd,
    pub currency: String,
    pub description: Option<String>,
    pub status: String,
    pub from_address: Option<String>,
    pub to_address: Option<String>,
    pub tx_hash: Option<String>,
    pub metadata: Option<Attached>,
    pub agent_id: Option<AgentId>,
    pub created_at: DateTime<Utc>,
}
