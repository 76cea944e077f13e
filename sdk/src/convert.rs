//! Between the wire of the session and the contract's types; the only place that knows both.

use chrono::{DateTime, Utc};
use otonix_proto::v1 as pb;
use prost_types::Timestamp;

use crate::api::actions::LogAction;
use crate::api::attached::Attached;
use crate::api::commands::Command;
use crate::api::events::{CommandResult, EventBody, Lost, PaymentEvent, Standing, TierEffect};
use crate::api::usage::LogUsage;
use crate::ids::{CommandId, EventId};
use crate::limits::Invalid;
use crate::money::{Cost, MicroUsd};
use crate::standing::{AgentStatus, SurvivalTier, Thresholds};

fn non_empty(text: String) -> Option<String> {
    (!text.is_empty()).then_some(text)
}

/// A time on the wire.
pub fn timestamp(at: DateTime<Utc>) -> Timestamp {
    Timestamp { seconds: at.timestamp(), nanos: i32::try_from(at.timestamp_subsec_nanos()).unwrap_or(0) }
}

/// A time from the wire; `None` when it is out of any calendar.
pub fn time(at: &Timestamp) -> Option<DateTime<Utc>> {
    let nanos = u32::try_from(at.nanos.clamp(0, 999_999_999)).ok()?;
    DateTime::from_timestamp(at.seconds, nanos)
}

/// An event of a body for the wire.
pub fn event_to_pb(seq: u64, id: EventId, at: DateTime<Utc>, body: EventBody) -> pb::Event {
    pb::Event { seq, id: id.to_string(), at: Some(timestamp(at)), body: Some(body_to_pb(body)) }
}

fn body_to_pb(body: EventBody) -> pb::event::Body {
    match body {
        EventBody::Action(part) => pb::event::Body::Action(pb::Action {
            action: part.action,
            category: part.category,
            details: part.details.unwrap_or_default(),
            status: part.status.unwrap_or_default(),
            autonomous: part.autonomous,
        }),
        EventBody::Usage(part) => pb::event::Body::Usage(pb::Usage {
            model: part.model,
            tokens_in: part.tokens_in,
            tokens_out: part.tokens_out,
            tokens_cached: part.tokens_cached.unwrap_or(0),
            cost_micro: part.cost.map(|cost| cost.get().micros()),
        }),
        EventBody::Payment(part) => pb::event::Body::Payment(pb::Payment {
            intent_id: part.intent_id,
            state: part.state,
            amount_micro: part.amount.micros(),
            pay_to: part.pay_to.unwrap_or_default(),
            tx_hash: part.tx_hash.unwrap_or_default(),
            url: part.url.unwrap_or_default(),
            detail: part.detail.unwrap_or_default(),
        }),
        EventBody::TierEffect(part) => pb::event::Body::TierEffect(pb::TierEffect {
            tier: part.tier.to_string(),
            effect: part.effect,
            detail: part.detail.unwrap_or_default(),
        }),
        EventBody::CommandResult(part) => pb::event::Body::CommandResult(pb::CommandResult {
            command_id: part.command_id.to_string(),
            ok: part.ok,
            detail: part.detail.unwrap_or_default(),
        }),
        EventBody::Lost(part) => pb::event::Body::Lost(pb::Lost { reason: part.reason }),
    }
}

/// What happened, from the wire.
///
/// # Errors
/// [`Invalid`] when a part is missing or cannot be read; bounds of texts are not checked here.
pub fn body_from_pb(body: Option<pb::event::Body>) -> Result<EventBody, Invalid> {
    let body = body.ok_or_else(|| Invalid::new("body", "must be set"))?;
    Ok(match body {
        pb::event::Body::Action(part) => EventBody::Action(LogAction {
            action: part.action,
            category: part.category,
            details: non_empty(part.details),
            status: non_empty(part.status),
            autonomous: part.autonomous,
        }),
        pb::event::Body::Usage(part) => EventBody::Usage(LogUsage {
            model: part.model,
            tokens_in: part.tokens_in,
            tokens_out: part.tokens_out,
            tokens_cached: (part.tokens_cached != 0).then_some(part.tokens_cached),
            cost: part
                .cost_micro
                .map(|micros| Cost::new(MicroUsd::from_micros(micros)))
                .transpose()
                .map_err(|why| Invalid::new("cost", why.to_string()))?,
            agent_id: None,
        }),
        pb::event::Body::Payment(part) => EventBody::Payment(PaymentEvent {
            intent_id: part.intent_id,
            state: part.state,
            amount: MicroUsd::from_micros(part.amount_micro),
            pay_to: non_empty(part.pay_to),
            tx_hash: non_empty(part.tx_hash),
            url: non_empty(part.url),
            detail: non_empty(part.detail),
        }),
        pb::event::Body::TierEffect(part) => EventBody::TierEffect(TierEffect {
            tier: part.tier.parse().map_err(|_| Invalid::new("tier", "is unknown"))?,
            effect: part.effect,
            detail: non_empty(part.detail),
        }),
        pb::event::Body::CommandResult(part) => EventBody::CommandResult(CommandResult {
            command_id: part.command_id.parse().map_err(|_| Invalid::new("commandId", "must be a UUID"))?,
            ok: part.ok,
            detail: non_empty(part.detail),
        }),
        pb::event::Body::Lost(part) => EventBody::Lost(Lost { reason: part.reason }),
    })
}

/// A standing for the wire.
pub fn standing_to_pb(standing: &Standing) -> pb::Standing {
    pb::Standing {
        tier: standing.survival_tier.to_string(),
        credits_micro: standing.credits.micros(),
        funded: standing.funded,
        grace_until: standing.grace_until.map(timestamp),
        interval: standing.heartbeat_interval,
        status: standing.status.as_str().to_owned(),
        killed: standing.killed,
    }
}

/// A standing from the wire; `None` when it names a tier or status that this version does not know.
pub fn standing_from_pb(standing: &pb::Standing) -> Option<Standing> {
    Some(Standing {
        survival_tier: standing.tier.parse::<SurvivalTier>().ok()?,
        status: standing.status.parse::<AgentStatus>().ok()?,
        credits: MicroUsd::from_micros(standing.credits_micro),
        funded: standing.funded,
        grace_until: standing.grace_until.as_ref().and_then(time),
        heartbeat_interval: standing.interval,
        killed: standing.killed,
    })
}

/// Thresholds for the wire.
pub fn thresholds_to_pb(thresholds: &Thresholds) -> pb::Thresholds {
    pb::Thresholds {
        full_above_micro: thresholds.full_above.micros(),
        conservation_from_micro: thresholds.conservation_from.micros(),
        critical_from_micro: thresholds.critical_from.micros(),
    }
}

/// Thresholds from the wire.
pub fn thresholds_from_pb(thresholds: &pb::Thresholds) -> Thresholds {
    Thresholds {
        full_above: MicroUsd::from_micros(thresholds.full_above_micro),
        conservation_from: MicroUsd::from_micros(thresholds.conservation_from_micro),
        critical_from: MicroUsd::from_micros(thresholds.critical_from_micro),
    }
}

/// A command for the wire.
pub fn command_to_pb(command: &Command) -> pb::Command {
    pb::Command {
        id: command.id.to_string(),
        kind: command.kind.clone(),
        args: command.args.text().to_owned(),
        expires_at: Some(timestamp(command.expires_at)),
    }
}

/// A command from the wire; `None` when its id cannot be read. Args that are no object are taken as empty.
pub fn command_from_pb(command: pb::Command, now: DateTime<Utc>) -> Option<Command> {
    Some(Command {
        id: command.id.parse::<CommandId>().ok()?,
        kind: command.kind,
        args: serde_json::from_str::<Attached>(&command.args).unwrap_or_default(),
        status: "delivered".to_owned(),
        created_at: now,
        expires_at: command.expires_at.as_ref().and_then(time).unwrap_or(now),
        result: None,
    })
}
