//! Events of an agent's spool, whichever transport brings them.

use otonix_proto::v1 as pb;
use otonix_sdk::api::events::{Event, EventBody, EventsAck, PaymentEvent, PostEvents};
use otonix_sdk::error::ErrorCode;
use otonix_sdk::ids::{AgentId, EventId};
use otonix_sdk::limits;
use otonix_sdk::{body, convert};
use serde::Deserialize;
use serde_json::value::RawValue;
use sha2::{Digest as _, Sha256};
use uuid::Uuid;

use crate::app::App;
use crate::auth::Caller;
use crate::error::Error;
use crate::fleet::standing_of;
use crate::service::activity::{check_action, check_usage};
use crate::service::{acting_agent, commands};
use crate::store::agents::AgentState;
use crate::store::batch::{EventRow, EventsDone, EventsItem, LoggedAction, NewEvent, StreamRef};
use crate::store::writer::{IdemFor, Target, Written};

type Body = Result<EventRow, (&'static str, String)>;

/// Checks the name of a spool's life.
///
/// # Errors
/// [`Error::Invalid`].
pub fn check_epoch(epoch: &str) -> Result<(), Error> {
    let fine = (1..=64).contains(&epoch.len()) && epoch.bytes().all(|b| b.is_ascii_graphic());
    if fine { Ok(()) } else { Err(Error::invalid("epoch", "must have 1 to 64 printable ASCII characters")) }
}

/// What an event leaves behind, or why it never will.
fn row_of(app: &App, body: EventBody) -> Body {
    let checked = match body {
        EventBody::Action(action) => check_action(action).map(EventRow::Action).map_err(Error::from),
        EventBody::Usage(usage) => check_usage(&app.prices, usage).map(EventRow::Usage),
        EventBody::Payment(payment) => payment_line(payment).map(EventRow::Action),
        EventBody::TierEffect(effect) => {
            let action = format!("tier {}: {}", effect.tier, effect.effect);
            line("survival", action, effect.detail, true).map(EventRow::Action)
        }
        EventBody::CommandResult(result) => {
            let action =
                format!("command {} {}", result.command_id, if result.ok { "done" } else { "failed" });
            let says = result.detail.clone().unwrap_or_default();
            line("system", action, result.detail, result.ok).map(|mut row| {
                row.ends_command = Some((result.command_id.uuid(), result.ok, says));
                EventRow::Action(row)
            })
        }
        EventBody::Lost(lost) => {
            line("system", "an event was lost on the agent's machine".to_owned(), Some(lost.reason), false)
                .map(EventRow::Action)
        }
    };
    checked.map_err(|error| (error.code().as_str(), error.to_string()))
}

fn line(category: &str, action: String, details: Option<String>, ok: bool) -> Result<LoggedAction, Error> {
    let status = if ok { "completed" } else { "failed" };
    limits::check_action(&action, category, details.as_deref().unwrap_or(""), status)?;
    Ok(LoggedAction {
        action,
        category: category.to_owned(),
        details,
        status: status.to_owned(),
        autonomous: true,
        counted: false,
        ends_command: None,
    })
}

fn payment_line(payment: PaymentEvent) -> Result<LoggedAction, Error> {
    limits::check_slug("state", &payment.state)?;
    let details = serde_json::to_string(&payment).map_err(|why| Error::internal(why.to_string()))?;
    let action = format!("payment {}: {} USDC", payment.state, payment.amount);
    line("payment", action, Some(details), true)
}

/// An event from the session.
pub fn from_wire(app: &App, event: pb::Event) -> NewEvent {
    let at = event.at.as_ref().and_then(convert::time).unwrap_or_else(|| app.clock.now());
    let at = otonix_sdk::clock::to_micros(at);
    let (id, known_id) = match Uuid::try_parse(&event.id) {
        Ok(id) => (id, true),
        Err(_) => (stand_in(&event.id, event.seq), false),
    };
    let body = if known_id {
        convert::body_from_pb(event.body)
            .map_err(|why| ("invalid_field", why.to_string()))
            .and_then(|body| row_of(app, body))
    } else {
        Err(("invalid_id", "`id` must be a UUID".to_owned()))
    };
    NewEvent { seq: event.seq, id, at, body }
}

/// An id for an event that has none, the same at every resend.
fn stand_in(id: &str, seq: u64) -> Uuid {
    let digest = Sha256::digest(format!("{seq} {id}"));
    let mut bytes = [0_u8; 16];
    bytes.copy_from_slice(&digest[..16]);
    uuid::Builder::from_custom_bytes(bytes).into_uuid()
}

#[derive(Deserialize)]
struct Numbered {
    seq: u64,
    #[serde(default)]
    id: Option<Box<RawValue>>,
}

/// An event from REST. Only its number must be readable; the rest is rejected by itself.
fn from_json(app: &App, raw: &RawValue) -> Result<NewEvent, Error> {
    let numbered: Numbered = serde_json::from_str(raw.get())
        .map_err(|_| Error::invalid("events.seq", "must be a whole number"))?;
    let now = app.clock.now();
    match body::read::<Event>(raw.get().as_bytes()) {
        Ok(event) => {
            let at = otonix_sdk::clock::to_micros(event.at.unwrap_or(now));
            let id = event.id.uuid();
            let body = match event.into_body() {
                Some(body) => row_of(app, body),
                None => Err(("invalid_field", "exactly one kind of event must be set".to_owned())),
            };
            Ok(NewEvent { seq: numbered.seq, id, at, body })
        }
        Err(why) => {
            let text = numbered.id.as_deref().map_or("", RawValue::get);
            let id = serde_json::from_str::<EventId>(text)
                .map_or_else(|_| stand_in(text, numbered.seq), EventId::uuid);
            Ok(NewEvent { seq: numbered.seq, id, at: now, body: Err(("invalid_field", why.to_string())) })
        }
    }
}

/// Stores events of a stream; answers after the commit.
///
/// # Errors
/// [`Error::NewEpochRequired`], [`Error::Superseded`], 409 `agent_killed`, 503.
pub async fn store(
    app: &App,
    state: &AgentState,
    stream: StreamRef,
    events: Vec<NewEvent>,
) -> Result<EventsDone, Error> {
    let count = events.len() as u64;
    let (item, done) = EventsItem::new(state.id.uuid(), state.owner, Some(stream), events, None);
    app.writer.send_events(item)?;
    let done = done.await.map_err(|_| Error::internal("the writer is gone"))??;
    app.shared.metrics.events.inc_by(count);
    app.shared.metrics.events_rejected.inc_by(done.rejected.len() as u64);
    Ok(done)
}

/// The session's events over REST.
///
/// # Errors
/// 401, 404, 400, 409 `new_epoch_required` or `agent_killed`, 503.
pub async fn post(
    app: &App,
    caller: &Caller,
    agent: AgentId,
    body: PostEvents<Box<RawValue>>,
    idem: Option<IdemFor<EventsAck>>,
) -> Result<Written<EventsAck>, Error> {
    let state = acting_agent(app, caller, agent).await?;
    check_epoch(&body.epoch)?;
    if body.events.len() > limits::MAX_EVENTS {
        return Err(Error::invalid("events", format!("must have at most {} entries", limits::MAX_EVENTS)));
    }
    let events: Vec<NewEvent> =
        body.events.iter().map(|raw| from_json(app, raw)).collect::<Result<_, _>>()?;
    if events.iter().any(|event| event.seq == 0) {
        return Err(Error::invalid("events.seq", "must be 1 or more"));
    }
    if events.windows(2).any(|pair| pair[1].seq != pair[0].seq.saturating_add(1)) {
        return Err(Error::conflict(
            ErrorCode::SequenceGap,
            "the events must be numbered without gaps, in order",
        ));
    }
    let stream = StreamRef { epoch: body.epoch, session: None, next_seq: Some(body.next_seq), seen: None };
    let done = store(app, &state, stream, events).await?;
    let commands = commands::deliver(app, agent.uuid()).await?;
    let state = done.state.unwrap_or(state);
    let ack = EventsAck {
        acked_seq: done.acked_seq,
        acked_event_id: done.acked_event.map(EventId::from),
        resend_from: done.resend_from,
        rejected: done.rejected,
        standing: standing_of(&state),
        commands,
    };
    match idem {
        // The events carry their own ids and numbers, so only the answer needs to be kept.
        Some(idem) => {
            app.writer
                .run(Target::Agent(agent.uuid()), Some(idem), move |_| Box::pin(async move { Ok(ack) }))
                .await
        }
        None => Ok(Written::Fresh(ack)),
    }
}
