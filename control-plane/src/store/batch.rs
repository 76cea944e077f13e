//! The hot path: events of many agents stored in one transaction, each exactly once.
//!
//! An agent whose row changes (its balance, its session) is locked first, in the order of ids. A stream is not locked:
//! its row is written on condition that it is where it was found, and a batch that lost the race to another replica
//! is tried again. Events of a superseded session that slip in before a new one are found again by their ids.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};

use chrono::{DateTime, TimeZone as _, Utc};
use otonix_sdk::api::commands::Command;
use otonix_sdk::api::events::Rejected;
use otonix_sdk::ids::{EventId, OwnerId};
use otonix_sdk::money::MicroUsd;
use tokio::sync::oneshot;
use uuid::Uuid;

use crate::error::Error;
use crate::store::actions::ActionRow;
use crate::store::agents::{self, AgentState};
use crate::store::commands;
use crate::store::idempotency::{Idem, StoredAnswer};
use crate::store::ledger::{self, NewTransfer};
use crate::store::streams::{self, Moved, Position};
use crate::store::usage::UsageRow;
use crate::store::writer::Tx;
use crate::store::{StoreError, actions, usage};

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
    outcome: Option<Result<EventsDone, Error>>,
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
    outcome: Option<Result<HelloDone, Error>>,
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
}

/// What the hot path takes.
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
    fn changes_agent(&self) -> bool {
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

/// The earliest time a row may carry; clocks without a battery start in 1970.
fn floor() -> DateTime<Utc> {
    Utc.with_ymd_and_hms(2000, 1, 1, 0, 0, 0).single().unwrap_or_default()
}

type StreamKey = (Uuid, String);

struct Work {
    states: BTreeMap<Uuid, AgentState>,
    /// Agents whose rows change; they are locked.
    touched: BTreeSet<Uuid>,
    streams: HashMap<StreamKey, Position>,
    /// Streams that move, with the number each was found at.
    moved: BTreeMap<StreamKey, u64>,
    known: HashSet<(Uuid, Uuid)>,
    actions: Vec<ActionRow>,
    usage: Vec<UsageRow>,
    rejects: Vec<(Uuid, Uuid, u64, &'static str)>,
    ended: Vec<(Uuid, Uuid, bool, String)>,
}

/// Stores a batch inside the transaction; each item's outcome is kept in it until the commit.
///
/// # Errors
/// [`StoreError`] when the database refuses or is away; then nothing of the batch is stored.
pub async fn store(tx: &mut Tx, items: &mut [BatchItem]) -> Result<(), StoreError> {
    let mut work = load(tx, items).await?;
    let mut answers = claim_keys(tx, items, &work).await?;
    for item in items.iter_mut() {
        match item {
            BatchItem::Events(item) => {
                let repeat = item.idem.as_ref().and_then(|(idem, _)| answers.get(&idem.scope)).cloned();
                if let (None, Some((idem, answer))) = (&repeat, &item.idem) {
                    answers.insert(idem.scope, answer.clone());
                }
                item.outcome = Some(match repeat {
                    Some(stored) => Ok(replayed(stored)),
                    None => accept(&mut work, item, tx.at),
                });
            }
            BatchItem::Hello(item) => open(tx, &mut work, item).await?,
        }
    }
    write(tx, &mut work).await?;
    for item in items.iter_mut() {
        let agent = item.agent();
        match item {
            BatchItem::Events(EventsItem { outcome: Some(Ok(done)), .. }) => {
                done.state = work.states.get(&agent).copied();
            }
            BatchItem::Hello(HelloItem { outcome: Some(Ok(done)), .. }) => {
                if let Some(state) = work.states.get(&agent) {
                    done.state = *state;
                }
            }
            BatchItem::Events(_) | BatchItem::Hello(_) => {}
        }
    }
    attach_commands(tx, items).await
}

fn replayed(stored: StoredAnswer) -> EventsDone {
    EventsDone {
        acked_seq: 0,
        acked_event: None,
        rejected: Vec::new(),
        resend_from: None,
        state: None,
        replay: Some(stored),
    }
}

async fn load(tx: &mut Tx, items: &[BatchItem]) -> Result<Work, StoreError> {
    let agents_of = |changing: bool| -> BTreeSet<Uuid> {
        let items = items.iter().filter(|item| item.changes_agent() == changing);
        items.map(BatchItem::agent).filter(|id| !id.is_nil()).collect()
    };
    let changing = agents_of(true);
    let reading: Vec<Uuid> = agents_of(false).difference(&changing).copied().collect();
    let changing: Vec<Uuid> = changing.into_iter().collect();
    let mut states = Vec::new();
    if !changing.is_empty() {
        states.extend(agents::lock_states(tx, &changing).await?);
    }
    if !reading.is_empty() {
        states.extend(agents::states_of(&mut tx.conn, &reading).await?);
    }
    let mut wanted: BTreeSet<StreamKey> = BTreeSet::new();
    for item in items {
        match item {
            BatchItem::Events(item) => {
                if let Some(stream) = &item.stream {
                    wanted.insert((item.agent, stream.epoch.clone()));
                }
            }
            BatchItem::Hello(item) => {
                wanted.insert((item.agent, item.epoch.clone()));
            }
        }
    }
    let streams = if wanted.is_empty() { HashMap::new() } else { streams::positions(tx, &wanted).await? };
    let mut work = Work {
        states: states.into_iter().map(|state| (state.id.uuid(), state)).collect(),
        touched: BTreeSet::new(),
        streams,
        moved: BTreeMap::new(),
        known: HashSet::new(),
        actions: Vec::new(),
        usage: Vec::new(),
        rejects: Vec::new(),
        ended: Vec::new(),
    };
    work.known = known_repeats(tx, items, &work).await?;
    Ok(work)
}

/// Which of the events that claim an already stored number are really stored.
async fn known_repeats(
    tx: &mut Tx,
    items: &[BatchItem],
    work: &Work,
) -> Result<HashSet<(Uuid, Uuid)>, StoreError> {
    let mut repeats = Vec::new();
    for item in items {
        let BatchItem::Events(EventsItem { agent, stream: Some(stream), events, .. }) = item else {
            continue;
        };
        let acked =
            work.streams.get(&(*agent, stream.epoch.clone())).map_or(0, |position| position.acked_seq);
        repeats.extend(events.iter().filter(|event| event.seq <= acked).map(|event| (*agent, event.id)));
    }
    if repeats.is_empty() { Ok(HashSet::new()) } else { streams::stored_events(tx, &repeats).await }
}

/// Takes the idempotency keys of single records; answers those that were used before.
async fn claim_keys(
    tx: &mut Tx,
    items: &[BatchItem],
    work: &Work,
) -> Result<HashMap<[u8; 32], StoredAnswer>, StoreError> {
    let mut claims = Vec::new();
    let mut seen = HashSet::new();
    for item in items {
        let BatchItem::Events(EventsItem { agent, idem: Some((idem, answer)), .. }) = item else { continue };
        let refused = !agent.is_nil() && work.states.get(agent).is_none_or(|state| state.killed);
        if !refused && seen.insert(idem.scope) {
            claims.push((*idem, answer.clone()));
        }
    }
    if claims.is_empty() { Ok(HashMap::new()) } else { streams::claim_keys(tx, &claims).await }
}

fn accept(work: &mut Work, item: &mut EventsItem, at: DateTime<Utc>) -> Result<EventsDone, Error> {
    if !item.agent.is_nil() {
        let state = work.states.get(&item.agent).ok_or_else(|| Error::not_found("agent", item.agent))?;
        if state.killed {
            return Err(Error::agent_killed(item.agent));
        }
        let superseded = |session: Uuid| state.session != Some(session);
        if item.stream.as_ref().and_then(|stream| stream.session).is_some_and(superseded) {
            return Err(Error::Superseded);
        }
    }
    let Some(stream) = item.stream.clone() else {
        let owner = item.owner;
        for event in &item.events {
            take(work, item.agent, owner, event.clone(), at);
        }
        return Ok(EventsDone {
            acked_seq: 0,
            acked_event: None,
            rejected: Vec::new(),
            resend_from: None,
            state: None,
            replay: None,
        });
    };
    accept_stream(work, item, &stream, at)
}

fn accept_stream(
    work: &mut Work,
    item: &mut EventsItem,
    stream: &StreamRef,
    at: DateTime<Utc>,
) -> Result<EventsDone, Error> {
    let key = (item.agent, stream.epoch.clone());
    let mut position = work.streams.get(&key).cloned().unwrap_or_default();
    let first = item.events.first().map(|event| event.seq);
    // A sender that has given out fewer numbers than are stored here is a copy of another one.
    if let Some(next) = stream.next_seq
        && next <= position.acked_seq
        && first != Some(next)
        && next > 0
    {
        return Err(Error::NewEpochRequired);
    }
    let foreign =
        |event: &NewEvent| event.seq <= position.acked_seq && !work.known.contains(&(item.agent, event.id));
    if item.events.iter().any(foreign) {
        return Err(Error::NewEpochRequired);
    }
    let mut rejected = Vec::new();
    let mut resend_from = None;
    for event in &item.events {
        if event.seq <= position.acked_seq {
            continue;
        }
        if event.seq != position.acked_seq + 1 {
            resend_from = Some(position.acked_seq + 1);
            break;
        }
        position = Position { acked_seq: event.seq, acked_event: Some(event.id) };
        work.known.insert((item.agent, event.id));
        if let Err((code, detail)) = &event.body {
            rejected.push(Rejected {
                seq: event.seq,
                id: Some(EventId::from(event.id)),
                code: (*code).to_owned(),
                detail: detail.clone(),
            });
        }
        take(work, item.agent, item.owner, event.clone(), at);
    }
    let done = EventsDone {
        acked_seq: position.acked_seq,
        acked_event: position.acked_event,
        rejected,
        resend_from,
        state: None,
        replay: None,
    };
    let found = work.streams.insert(key.clone(), position).map_or(0, |position| position.acked_seq);
    work.moved.entry(key).or_insert(found);
    Ok(done)
}

fn take(work: &mut Work, agent: Uuid, owner: Uuid, event: NewEvent, at: DateTime<Utc>) {
    let created_at = event.at.clamp(floor(), at);
    match event.body {
        Err((code, _)) => work.rejects.push((agent, event.id, event.seq, code)),
        Ok(EventRow::Action(row)) => {
            if let Some((command, ok, says)) = row.ends_command {
                work.ended.push((agent, command, ok, says));
            }
            work.actions.push(ActionRow {
                agent,
                id: event.id,
                owner,
                action: row.action,
                category: row.category,
                details: row.details,
                status: row.status,
                autonomous: row.autonomous,
                counted: row.counted,
                created_at,
            });
        }
        Ok(EventRow::Usage(row)) => work.usage.push(UsageRow {
            agent,
            id: event.id,
            owner,
            model: row.model,
            tokens_in: row.tokens_in,
            tokens_out: row.tokens_out,
            tokens_cached: row.tokens_cached,
            cost: row.cost.micros(),
            list_cost: row.list_cost.map(MicroUsd::micros),
            created_at,
        }),
    }
}

async fn open(tx: &mut Tx, work: &mut Work, item: &mut HelloItem) -> Result<(), StoreError> {
    let Some(state) = work.states.get_mut(&item.agent) else {
        item.outcome = Some(Err(Error::not_found("agent", item.agent)));
        return Ok(());
    };
    if state.killed {
        item.outcome = Some(Err(Error::agent_killed(item.agent)));
        return Ok(());
    }
    let position = work.streams.get(&(item.agent, item.epoch.clone())).cloned().unwrap_or_default();
    let behind = item.next_seq <= position.acked_seq;
    let other = position.acked_seq > 0
        && item.next_seq == position.acked_seq + 1
        && item.last_event.is_some()
        && item.last_event != position.acked_event;
    if behind || other {
        item.outcome = Some(Err(Error::NewEpochRequired));
        return Ok(());
    }
    let moved = streams::open_session(tx, item.agent, &item.machine_id, &item.boot_id).await?;
    if let Some(previous) = moved
        && state.session.is_some()
    {
        work.actions.push(ActionRow::by_server(
            state,
            "system",
            "another machine took over this agent's session",
            Some(format!("machine {} was {previous}", item.machine_id)),
            tx.at,
        ));
    }
    state.session = Some(item.session);
    work.touched.insert(item.agent);
    item.outcome = Some(Ok(HelloDone {
        state: *state,
        acked_seq: position.acked_seq,
        acked_event: position.acked_event,
        commands: Vec::new(),
    }));
    Ok(())
}

async fn write(tx: &mut Tx, work: &mut Work) -> Result<(), StoreError> {
    let mut counts = actions::insert(tx, &work.actions).await?;
    let transfers = debit(tx, work).await?;
    let now = tx.at;
    let mut tier_actions = Vec::new();
    let mut changes = Vec::with_capacity(work.touched.len());
    for agent in &work.touched {
        let Some(state) = work.states.get_mut(agent) else { continue };
        let before = state.tier;
        state.settle(now, &tx.thresholds);
        if state.tier != before {
            tier_actions.push(ActionRow::tier_change(state, before, now));
        }
        changes.push(*state);
    }
    actions::insert(tx, &tier_actions).await?;
    ledger::insert(tx, &transfers).await?;
    let spent: i64 = transfers.iter().map(|transfer| transfer.amount).sum();
    if spent > 0 {
        ledger::add_to_account(tx, ledger::COMPUTE, spent).await?;
    }
    agents::write_states(tx, &mut changes).await?;
    for state in changes {
        work.states.insert(state.id.uuid(), state);
    }
    let mut moved: Vec<Moved<'_>> = Vec::with_capacity(work.moved.len());
    for ((agent, epoch), from) in &work.moved {
        let to = work.streams.get(&(*agent, epoch.clone())).cloned().unwrap_or_default();
        let actions = counts.remove(agent).unwrap_or(0);
        moved.push(Moved { agent: *agent, epoch, from: *from, to, actions });
    }
    // What came one by one over REST is counted under no epoch.
    let single = counts.into_iter().filter(|(_, actions)| *actions > 0);
    moved.extend(single.map(|(agent, actions)| Moved {
        agent,
        epoch: "",
        from: 0,
        to: Position::default(),
        actions,
    }));
    moved.sort_by(|a, b| (a.agent, a.epoch).cmp(&(b.agent, b.epoch)));
    streams::write_positions(tx, &moved).await?;
    streams::insert_rejects(tx, &work.rejects).await?;
    for (agent, command, ok, says) in &work.ended {
        commands::finish(tx, *agent, *command, *ok, says).await?;
    }
    Ok(())
}

/// Stores usage and takes its cost from the balances; a record that is already there costs nothing again.
async fn debit(tx: &mut Tx, work: &mut Work) -> Result<Vec<NewTransfer>, StoreError> {
    if work.usage.is_empty() {
        return Ok(Vec::new());
    }
    let new = usage::insert(tx, &work.usage).await?;
    let mut seen = HashSet::new();
    let mut transfers = Vec::new();
    for row in &work.usage {
        let key = (row.agent, row.id);
        if !new.contains(&key) || !seen.insert(key) {
            continue;
        }
        let Some(state) = work.states.get_mut(&row.agent) else { continue };
        work.touched.insert(row.agent);
        if row.cost > 0 {
            state.credits = state.credits.saturating_sub(MicroUsd::from_micros(row.cost));
            transfers.push(NewTransfer {
                agent: row.agent,
                kind: "usage",
                from: ledger::AGENT,
                to: ledger::COMPUTE,
                amount: row.cost,
                balance_after: state.credits.micros(),
                reference: Some(row.id.to_string()),
            });
        }
    }
    Ok(transfers)
}

async fn attach_commands(tx: &mut Tx, items: &mut [BatchItem]) -> Result<(), StoreError> {
    let opened =
        |item: &&mut BatchItem| matches!(item, BatchItem::Hello(HelloItem { outcome: Some(Ok(_)), .. }));
    let ids: Vec<Uuid> = items.iter_mut().filter(opened).map(|item| item.agent()).collect();
    if ids.is_empty() {
        return Ok(());
    }
    let mut open = commands::deliver(tx, &ids).await?;
    for item in items {
        if let BatchItem::Hello(HelloItem { agent, outcome: Some(Ok(done)), .. }) = item {
            done.commands = open.remove(agent).unwrap_or_default();
        }
    }
    Ok(())
}
