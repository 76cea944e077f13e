//! What the hot path takes: events and openings of sessions, each with its waiter.

use chrono::{DateTime, Utc};
use otonix_sdk::api::commands::Command;
use otonix_sdk::api::events::Rejected;
use otonix_sdk::ids::OwnerId;
use otonix_sdk::money::MicroUsd;
use tokio::sync::oneshot;
use uuid::Uuid;

use crate::error::Error;
use crate::store::StoreError;
use crate::store::agents::AgentState;
use crate::store::idempotency::{Idem, StoredAnswer};
use crate::store::streams::Position;

/// What an event leaves behind.
#[derive(Debug, Clone)]
pub enum EventRow {
    /// A line of the log.
    Action(LoggedAction),
    /// A model call.
    Usage(UsedModel),
}

/// An action to be stored.
#[derive(Debug, Clone)]
pub struct LoggedAction {
    pub action: String,
    pub category: String,
    pub details: Option<String>,
    pub status: String,
    pub autonomous: bool,
    /// Whether it counts among the agent's own actions.
    pub counted: bool,
    /// The command that this ends, whether it went well, and what it says.
    pub ends_command: Option<(Uuid, bool, String)>,
}

/// A usage record to be stored.
#[derive(Debug, Clone)]
pub struct UsedModel {
    pub model: String,
    pub tokens_in: i64,
    pub tokens_out: i64,
    pub tokens_cached: i64,
    pub cost: MicroUsd,
    pub list_cost: Option<MicroUsd>,
}

/// One event on its way in; a body that cannot be stored carries the reason.
#[derive(Debug, Clone)]
pub struct NewEvent {
    /// 0 for a record outside any stream.
    pub seq: u64,
    pub id: Uuid,
    pub at: DateTime<Utc>,
    pub body: Result<EventRow, (&'static str, String)>,
}

/// The stream that events belong to.
#[derive(Debug, Clone)]
pub struct StreamRef {
    pub epoch: String,
    /// The session that brings them; none for REST.
    pub session: Option<Uuid>,
    /// The sender's next number, where it tells (REST).
    pub next_seq: Option<u64>,
    /// Where its session last saw it stored. It is believed at the first attempt: the stream is written on condition
    /// that it is there.
    pub seen: Option<Position>,
}

/// Events of one agent.
pub struct EventsItem {
    /// The nil UUID for records that belong to no agent.
    pub agent: Uuid,
    pub owner: Uuid,
    /// None for a single record over REST.
    pub stream: Option<StreamRef>,
    pub events: Vec<NewEvent>,
    /// Idempotency key of a single record, with the answer to keep.
    pub idem: Option<(Idem, StoredAnswer)>,
    pub reply: oneshot::Sender<Result<EventsDone, Error>>,
    pub(super) outcome: Option<Result<EventsDone, Error>>,
}

/// How a batch of events ended.
#[derive(Debug, Clone)]
pub struct EventsDone {
    pub acked_seq: u64,
    pub acked_event: Option<Uuid>,
    pub rejected: Vec<Rejected>,
    pub resend_from: Option<u64>,
    /// The agent afterwards; none for records of no agent.
    pub state: Option<AgentState>,
    /// The key was used before: this was answered.
    pub replay: Option<StoredAnswer>,
}

/// The opening of a session.
pub struct HelloItem {
    pub agent: Uuid,
    pub epoch: String,
    pub next_seq: u64,
    pub last_event: Option<Uuid>,
    pub session: Uuid,
    pub machine_id: String,
    pub boot_id: String,
    pub reply: oneshot::Sender<Result<HelloDone, Error>>,
    pub(super) outcome: Option<Result<HelloDone, Error>>,
}

/// Where a session starts.
#[derive(Debug, Clone)]
pub struct HelloDone {
    pub state: AgentState,
    pub acked_seq: u64,
    pub acked_event: Option<Uuid>,
    pub commands: Vec<Command>,
}

impl HelloItem {
    /// Asks for a session; the answer comes through the receiver.
    pub fn new(
        agent: Uuid,
        (epoch, next_seq, last_event): (String, u64, Option<Uuid>),
        session: Uuid,
        (machine_id, boot_id): (String, String),
    ) -> (Self, oneshot::Receiver<Result<HelloDone, Error>>) {
        let (reply, answer) = oneshot::channel();
        let item =
            Self { agent, epoch, next_seq, last_event, session, machine_id, boot_id, reply, outcome: None };
        (item, answer)
    }
}

impl EventsItem {
    /// Asks for events to be stored; the answer comes through the receiver.
    pub fn new(
        agent: Uuid,
        owner: OwnerId,
        stream: Option<StreamRef>,
        events: Vec<NewEvent>,
        idem: Option<(Idem, StoredAnswer)>,
    ) -> (Self, oneshot::Receiver<Result<EventsDone, Error>>) {
        let (reply, answer) = oneshot::channel();
        (Self { agent, owner: owner.uuid(), stream, events, idem, reply, outcome: None }, answer)
    }

    /// Whether its agent is read from the database. A single record's agent and a session's were checked in memory a
    /// moment ago, and what they bring is found again by its id and number; that is enough at the first attempt.
    pub(super) fn reads_agent(&self, repeats: bool) -> bool {
        repeats || self.stream.as_ref().is_some_and(|stream| stream.seen.is_none())
    }
}

/// What the hot path takes.
#[expect(clippy::large_enum_variant, reason = "nearly all are events, and each waits in a box of its own")]
pub enum BatchItem {
    Events(EventsItem),
    Hello(HelloItem),
}

impl BatchItem {
    /// About how much work it is.
    pub fn weight(&self) -> usize {
        match self {
            Self::Events(item) => item.events.len().max(1),
            Self::Hello(_) => 1,
        }
    }

    /// Whom it concerns.
    pub fn agent(&self) -> Uuid {
        match self {
            Self::Events(item) => item.agent,
            Self::Hello(item) => item.agent,
        }
    }

    /// Answers the waiter, after the commit or its failure.
    pub fn finish(self, failure: Option<StoreError>) {
        match self {
            Self::Events(item) => drop(item.reply.send(settle(item.outcome, failure))),
            Self::Hello(item) => drop(item.reply.send(settle(item.outcome, failure))),
        }
    }

    /// Makes it ready for another attempt: what was found out is found out anew.
    pub fn again(&mut self) {
        match self {
            Self::Events(item) => item.outcome = None,
            Self::Hello(item) => item.outcome = None,
        }
    }

    /// Whether it changes its agent's row, which must then be locked first.
    pub(super) fn changes_agent(&self) -> bool {
        match self {
            Self::Events(item) => {
                item.events.iter().any(|event| matches!(event.body, Ok(EventRow::Usage(_))))
            }
            Self::Hello(_) => true,
        }
    }

    /// One part for every event, and what answers the waiter for all of them.
    pub fn split(self) -> (Vec<Self>, Whole) {
        match self {
            Self::Hello(item) => {
                let (reply, _) = oneshot::channel();
                let HelloItem { agent, epoch, next_seq, last_event, session, machine_id, boot_id, .. } = item;
                let part = HelloItem {
                    agent,
                    epoch,
                    next_seq,
                    last_event,
                    session,
                    machine_id,
                    boot_id,
                    reply,
                    outcome: None,
                };
                (vec![Self::Hello(part)], Whole::Hello(item.reply))
            }
            Self::Events(item) => {
                let parts = item.events.into_iter().map(|event| {
                    let (reply, _) = oneshot::channel();
                    Self::Events(EventsItem {
                        agent: item.agent,
                        owner: item.owner,
                        stream: item.stream.clone(),
                        events: vec![event],
                        idem: item.idem.clone(),
                        reply,
                        outcome: None,
                    })
                });
                (parts.collect(), Whole::Events(item.reply))
            }
        }
    }

    /// Makes its events rejected ones.
    pub fn reject(&mut self) {
        match self {
            Self::Events(item) => {
                item.outcome = None;
                for event in &mut item.events {
                    event.body = Err(("unstorable", "the database refuses this event".to_owned()));
                }
            }
            Self::Hello(item) => item.outcome = None,
        }
    }
}

/// The waiter of an item that was taken apart.
pub enum Whole {
    Events(oneshot::Sender<Result<EventsDone, Error>>),
    Hello(oneshot::Sender<Result<HelloDone, Error>>),
}

impl Whole {
    /// Answers with what became of the parts.
    pub fn finish_parts(self, parts: Vec<BatchItem>, failure: Option<StoreError>) {
        match self {
            Self::Hello(reply) => {
                let outcome = parts.into_iter().find_map(|part| match part {
                    BatchItem::Hello(item) => item.outcome,
                    BatchItem::Events(_) => None,
                });
                let _ = reply.send(settle(outcome, failure));
            }
            Self::Events(reply) => {
                let mut rejected = Vec::new();
                let mut last = None;
                for part in parts {
                    let BatchItem::Events(item) = part else { continue };
                    if let Some(Ok(done)) = &item.outcome {
                        rejected.extend(done.rejected.iter().cloned());
                    }
                    last = item.outcome.or(last);
                }
                let outcome = last.map(|done| done.map(|done| EventsDone { rejected, ..done }));
                let _ = reply.send(settle(outcome, failure));
            }
        }
    }
}

fn settle<T>(outcome: Option<Result<T, Error>>, failure: Option<StoreError>) -> Result<T, Error> {
    match (outcome, failure) {
        (Some(outcome), None) => outcome,
        // What was found out without writing stays true.
        (Some(Err(error)), Some(_)) => Err(error),
        (_, Some(error)) => Err(Error::Store(error)),
        (None, None) => Err(Error::internal("a batch item was not handled")),
    }
}
