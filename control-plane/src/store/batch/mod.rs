//! The hot path: events of many agents stored in one transaction, each exactly once.
//!
//! An agent whose row changes (its balance, its session) is locked first, in the order of ids. A stream is not locked:
//! its row is written on condition that it is where it was found, and a batch that lost the race to another replica
//! is tried again. Events of a superseded session that slip in before a new one are found again by their ids.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};

use chrono::{DateTime, TimeZone as _, Utc};
use otonix_sdk::api::events::Rejected;
use otonix_sdk::ids::EventId;
use otonix_sdk::money::MicroUsd;
use uuid::Uuid;

use crate::error::Error;
use crate::store::actions::ActionRow;
use crate::store::agents::{self, AgentState};
use crate::store::commands;
use crate::store::idempotency::StoredAnswer;
use crate::store::ledger::{self, NewTransfer};
use crate::store::streams::{self, Moved, Position};
use crate::store::usage::UsageRow;
use crate::store::writer::Tx;
use crate::store::{StoreError, actions, usage};

mod item;

pub use item::{
    BatchItem, EventRow, EventsDone, EventsItem, HelloDone, HelloItem, LoggedAction, NewEvent, StreamRef,
    UsedModel, Whole,
};

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
                    None => accept(&mut work, item, tx),
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
    let agents_of = |wanted: &dyn Fn(&BatchItem) -> bool| -> BTreeSet<Uuid> {
        let items = items.iter().filter(|item| wanted(item));
        items.map(BatchItem::agent).filter(|id| !id.is_nil()).collect()
    };
    let changing = agents_of(&BatchItem::changes_agent);
    let repeats = tx.repeats;
    let reading = agents_of(&|item| matches!(item, BatchItem::Events(item) if item.reads_agent(repeats)));
    let reading: Vec<Uuid> = reading.difference(&changing).copied().collect();
    let changing: Vec<Uuid> = changing.into_iter().collect();
    let mut states = Vec::new();
    if !changing.is_empty() {
        states.extend(agents::lock_states(tx, &changing).await?);
    }
    if !reading.is_empty() {
        states.extend(agents::states_of(&mut tx.conn, &reading).await?);
    }
    let mut wanted: BTreeSet<StreamKey> = BTreeSet::new();
    let mut seen = Vec::new();
    for item in items {
        match item {
            BatchItem::Events(EventsItem { agent, stream: Some(stream), .. }) => {
                let key = (*agent, stream.epoch.clone());
                match &stream.seen {
                    Some(position) if !repeats => seen.push((key, position.clone())),
                    Some(_) | None => _ = wanted.insert(key),
                }
            }
            BatchItem::Events(EventsItem { stream: None, .. }) => {}
            BatchItem::Hello(item) => _ = wanted.insert((item.agent, item.epoch.clone())),
        }
    }
    let mut streams =
        if wanted.is_empty() { HashMap::new() } else { streams::positions(tx, &wanted).await? };
    for (key, position) in seen {
        if !wanted.contains(&key) {
            streams.insert(key, position);
        }
    }
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
        let BatchItem::Events(item) = item else { continue };
        let Some((idem, answer)) = &item.idem else { continue };
        let refused = match work.states.get(&item.agent) {
            Some(state) => state.killed,
            None => !item.agent.is_nil() && item.reads_agent(tx.repeats),
        };
        if !refused && seen.insert(idem.scope) {
            claims.push((*idem, answer.clone()));
        }
    }
    if claims.is_empty() { Ok(HashMap::new()) } else { streams::claim_keys(tx, &claims).await }
}

fn accept(work: &mut Work, item: &EventsItem, tx: &Tx) -> Result<EventsDone, Error> {
    let at = tx.at;
    let state = work.states.get(&item.agent);
    if state.is_none() && item.reads_agent(tx.repeats) && !item.agent.is_nil() {
        return Err(Error::not_found("agent", item.agent));
    }
    if let Some(state) = state {
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
    item: &EventsItem,
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
    tx.counts.tier_changes += tier_actions.len() as u64;
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
