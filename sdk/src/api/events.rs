//! The session's events for clients without HTTP/2: `POST /api/agents/:id/events`.

use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};

use crate::api::actions::LogAction;
use crate::api::commands::Command;
use crate::api::usage::LogUsage;
use crate::ids::{CommandId, EventId};
use crate::money::MicroUsd;
use crate::standing::{AgentStatus, SurvivalTier};

/// A run of events, numbered without gaps within an epoch.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct PostEvents<E = Event> {
    /// Names one life of the sender's spool, 1-64 characters (a number is taken as its text).
    #[serde(deserialize_with = "text_or_number")]
    pub epoch: String,
    /// The number that the sender gives to its next event.
    #[serde(default)]
    pub next_seq: u64,
    #[serde(default = "Vec::new")]
    pub events: Vec<E>,
}

fn text_or_number<'de, D: serde::Deserializer<'de>>(deserializer: D) -> Result<String, D::Error> {
    struct Epoch;
    impl serde::de::Visitor<'_> for Epoch {
        type Value = String;
        fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
            f.write_str("a text or a whole number")
        }
        fn visit_str<E>(self, text: &str) -> Result<String, E> {
            Ok(text.to_owned())
        }
        fn visit_u64<E>(self, number: u64) -> Result<String, E> {
            Ok(number.to_string())
        }
    }
    deserializer.deserialize_any(Epoch)
}

/// One event: exactly one of the optional parts is set.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Event {
    pub seq: u64,
    pub id: EventId,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub at: Option<DateTime<Utc>>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub action: Option<LogAction>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub usage: Option<LogUsage>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub payment: Option<PaymentEvent>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tier_effect: Option<TierEffect>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub command_result: Option<CommandResult>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub lost: Option<Lost>,
}

/// What happened.
#[derive(Debug, Clone, PartialEq)]
pub enum EventBody {
    Action(LogAction),
    Usage(LogUsage),
    Payment(PaymentEvent),
    TierEffect(TierEffect),
    CommandResult(CommandResult),
    Lost(Lost),
}

impl Event {
    /// An event of a body.
    pub fn new(seq: u64, id: EventId, at: DateTime<Utc>, body: EventBody) -> Self {
        let mut event = Self {
            seq,
            id,
            at: Some(at),
            action: None,
            usage: None,
            payment: None,
            tier_effect: None,
            command_result: None,
            lost: None,
        };
        match body {
            EventBody::Action(part) => event.action = Some(part),
            EventBody::Usage(part) => event.usage = Some(part),
            EventBody::Payment(part) => event.payment = Some(part),
            EventBody::TierEffect(part) => event.tier_effect = Some(part),
            EventBody::CommandResult(part) => event.command_result = Some(part),
            EventBody::Lost(part) => event.lost = Some(part),
        }
        event
    }

    /// What happened; `None` unless exactly one part is set.
    pub fn into_body(self) -> Option<EventBody> {
        let parts = [
            self.action.map(EventBody::Action),
            self.usage.map(EventBody::Usage),
            self.payment.map(EventBody::Payment),
            self.tier_effect.map(EventBody::TierEffect),
            self.command_result.map(EventBody::CommandResult),
            self.lost.map(EventBody::Lost),
        ];
        let mut set = parts.into_iter().flatten();
        let body = set.next()?;
        set.next().is_none().then_some(body)
    }
}

/// How a payment of the agent's wallet stands.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct PaymentEvent {
    pub intent_id: String,
    pub state: String,
    pub amount: MicroUsd,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pay_to: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tx_hash: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub url: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub detail: Option<String>,
}

/// What a standing did on the machine.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct TierEffect {
    pub tier: SurvivalTier,
    pub effect: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub detail: Option<String>,
}

/// How a command ended.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct CommandResult {
    pub command_id: CommandId,
    pub ok: bool,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub detail: Option<String>,
}

/// Stands in for an event that the spool can no longer read.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Lost {
    pub reason: String,
}

/// An event that will never be stored.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Rejected {
    pub seq: u64,
    pub id: Option<EventId>,
    pub code: String,
    pub detail: String,
}

/// Where an agent stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Standing {
    pub survival_tier: SurvivalTier,
    pub status: AgentStatus,
    pub credits: MicroUsd,
    pub funded: bool,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub grace_until: Option<DateTime<Utc>>,
    /// Effective, seconds.
    pub heartbeat_interval: u32,
    #[serde(default)]
    pub killed: bool,
}

/// The answer: what is committed, what never will be, and what comes back.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct EventsAck {
    pub acked_seq: u64,
    /// The id of the event stored at `ackedSeq`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub acked_event_id: Option<EventId>,
    /// Events are missing: send again from this number on.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub resend_from: Option<u64>,
    pub rejected: Vec<Rejected>,
    pub standing: Standing,
    pub commands: Vec<Command>,
}
