//! One session: events up and acknowledged after commit, standing and commands down.
//!
//! The whole session is the stream that answers it: when its client does not read, nothing more is taken from it.

use std::collections::HashSet;
use std::sync::Arc;
use std::time::Duration;

use async_stream::stream;
use futures_util::{FutureExt as _, Stream, StreamExt as _};
use otonix_proto::v1 as pb;
use otonix_sdk::api::events::Standing;
use otonix_sdk::convert;
use otonix_sdk::error::ErrorCode;
use otonix_sdk::ids::CommandId;
use otonix_sdk::limits::MAX_EVENTS;
use rand::Rng as _;
use tokio::time::{Instant, timeout};
use tonic::{Status, Streaming};
use uuid::Uuid;

use crate::app::App;
use crate::auth::Caller;
use crate::error::Error;
use crate::fleet::{Slot, standing_of};
use crate::grpc::status;
use crate::links::{Leave, Link, Woken};
use crate::service::{commands, events, sessions};
use crate::store::StoreError;
use crate::store::batch::{EventsDone, StreamRef};
use crate::store::streams::Position;

/// How long a client may take to say hello.
const HELLO_TIME: Duration = Duration::from_secs(10);
/// A balance alone is told at most so often; a tier at once.
const BALANCE_EVERY: Duration = Duration::from_secs(1);
/// The first heartbeat of a session comes within this time even when the interval is long.
const FIRST_BEAT_WITHIN_SECS: u32 = 60;

type Up = Streaming<pb::Up>;

fn down(message: pb::down::Msg) -> pb::Down {
    pb::Down { msg: Some(message) }
}

fn go_away(reason: &str, wait: Duration, detail: impl Into<String>) -> pb::Down {
    let retry_after_ms = u32::try_from(wait.as_millis()).unwrap_or(u32::MAX);
    down(pb::down::Msg::GoAway(pb::GoAway {
        reason: reason.to_owned(),
        retry_after_ms,
        detail: detail.into(),
    }))
}

/// An error as the last message of a session; what the client cannot mend ends it with a status instead.
fn farewell(error: &Error) -> Result<pb::Down, Status> {
    match error {
        Error::NewEpochRequired => Ok(go_away("new_epoch_required", Duration::ZERO, error.to_string())),
        Error::Superseded => Ok(go_away("superseded", Duration::ZERO, error.to_string())),
        Error::NotFound { .. } => Ok(go_away("not_found", Duration::ZERO, error.to_string())),
        Error::Conflict { code: ErrorCode::AgentKilled, .. } => {
            Ok(go_away("killed", Duration::ZERO, error.to_string()))
        }
        Error::Busy { retry_after, .. } => Ok(go_away("overloaded", *retry_after, error.to_string())),
        Error::Store(StoreError::Unavailable(_) | StoreError::QueueFull | StoreError::LostRace) => {
            let wait = Duration::from_millis(rand::rng().random_range(500..3000));
            Ok(go_away("overloaded", wait, "the database is away or busy"))
        }
        _ => Err(status::of(error)),
    }
}

/// A session's place among the links; given up when dropped.
struct Opening {
    app: Arc<App>,
    agent: Uuid,
    id: Uuid,
    link: Arc<Link>,
}

impl Drop for Opening {
    fn drop(&mut self) {
        self.app.shared.links.close(self.agent, self.id);
    }
}

/// What is known of a session.
struct Session {
    opening: Opening,
    epoch: String,
    /// How far its events are stored.
    seen: Position,
    slot: Arc<Slot>,
    told: Standing,
    told_at: Instant,
    /// When a balance that was held back is told.
    tell_at: Option<Instant>,
    /// Open commands that this session has brought.
    sent: HashSet<CommandId>,
}

/// Serves one session. What an idle one holds for days is small: its steps and its messages are boxed.
pub fn run(app: Arc<App>, caller: Caller, mut up: Up) -> impl Stream<Item = Result<pb::Down, Status>> + Send {
    let told = stream! {
        let (mut session, welcome) = match Box::pin(open(app, caller, &mut up)).await {
            Ok(opened) => opened,
            Err(last) => {
                yield last;
                return;
            }
        };
        for message in boxed(welcome) {
            yield message;
        }
        loop {
            let out = match next(&session.opening.link, &mut up, session.tell_at).await {
                Next::Woken(woken) => Box::pin(session.woken(woken)).await,
                Next::Up(message) => Box::pin(session.up(*message, &mut up)).await,
                Next::Ended => return,
                Next::Unreadable(status) => Err(Box::new(Err(status))),
            };
            match out {
                Ok(messages) => {
                    for message in boxed(messages) {
                        yield message;
                    }
                }
                Err(last) => {
                    yield last;
                    return;
                }
            }
        }
    };
    told.map(|message: Last| *message)
}

fn boxed(messages: Vec<pb::Down>) -> impl Iterator<Item = Last> {
    messages.into_iter().map(|message| Box::new(Ok(message)))
}

enum Next {
    Woken(Woken),
    Up(Box<pb::up::Msg>),
    Ended,
    /// What came is no message, or too large a one.
    Unreadable(Status),
}

async fn next(link: &Link, up: &mut Up, tell_at: Option<Instant>) -> Next {
    let tell = async {
        match tell_at {
            Some(at) => tokio::time::sleep_until(at).await,
            None => std::future::pending().await,
        }
    };
    tokio::select! {
        woken = link.wait() => Next::Woken(woken),
        () = tell => Next::Woken(Woken { standing: true, ..Woken::default() }),
        message = up.message() => match message {
            Ok(Some(pb::Up { msg: Some(message) })) => Next::Up(Box::new(message)),
            // A kind of message that this version does not know is no reason to part.
            Ok(Some(pb::Up { msg: None })) => Next::Woken(Woken::default()),
            Ok(None) => Next::Ended,
            Err(status) => Next::Unreadable(status),
        },
    }
}

type Last = Box<Result<pb::Down, Status>>;

async fn open(app: Arc<App>, caller: Caller, up: &mut Up) -> Result<(Box<Session>, Vec<pb::Down>), Last> {
    let last = |error: &Error| Box::new(farewell(error));
    let protocol = |detail: &str| Box::new(Ok(go_away("protocol_error", Duration::ZERO, detail)));
    let hello = match timeout(HELLO_TIME, up.message()).await {
        Ok(Ok(Some(pb::Up { msg: Some(pb::up::Msg::Hello(hello)) }))) => hello,
        Ok(Err(status)) => return Err(Box::new(Err(status))),
        Ok(Ok(_)) => return Err(protocol("the first message must be hello")),
        Err(_) => return Err(protocol("hello did not come in time")),
    };
    if let Err(wait) = app.shared.admission.admit() {
        app.shared.metrics.sessions_refused.inc();
        return Err(Box::new(Ok(go_away("overloaded", wait, "many agents are coming back at once"))));
    }
    if app.shared.is_draining() {
        return Err(Box::new(Ok(go_away("shutting_down", Duration::from_secs(1), "the server stops"))));
    }
    let key = caller.key().map_err(|error| last(&error))?;
    let id = Uuid::new_v4();
    let agent = hello.agent_id.parse::<Uuid>().map_err(|_| protocol("agent_id must be a UUID"))?;
    // Announced first, so that a command, a revocation or a newer session in the meantime is not missed.
    let opening =
        Opening { app: Arc::clone(&app), agent, id, link: app.shared.links.open(agent, id, key.id) };
    let (_, done) = sessions::open(&app, &caller, &hello, id).await.map_err(|error| last(&error))?;
    opening.link.welcome();
    let slot = app.shared.fleet.slot(&app.db, agent).await.map_err(|error| last(&Error::Store(error)))?;
    let slot = slot.ok_or_else(|| last(&Error::not_found("agent", agent)))?;
    if slot.state().session != Some(id) && slot.state().version > done.state.version {
        return Err(last(&Error::Superseded));
    }
    let told = standing_of(&slot.state());
    let first_beat =
        rand::rng().random_range(0..told.heartbeat_interval.clamp(1, FIRST_BEAT_WITHIN_SECS) * 1000);
    let mut messages = vec![down(pb::down::Msg::Welcome(pb::Welcome {
        session: id.to_string(),
        server_time: Some(convert::timestamp(app.clock.now())),
        standing: Some(convert::standing_to_pb(&told)),
        acked_seq: done.acked_seq,
        thresholds: Some(convert::thresholds_to_pb(&app.settings.tiers)),
        price_table_version: app.price_version.clone(),
        acked_event_id: done.acked_event.map(|id| id.to_string()).unwrap_or_default(),
        first_beat_after_ms: first_beat,
    }))];
    messages.extend(
        done.commands.iter().map(|command| down(pb::down::Msg::Command(convert::command_to_pb(command)))),
    );
    let sent = done.commands.iter().map(|command| command.id).collect();
    let epoch = hello.epoch;
    let seen = Position { acked_seq: done.acked_seq, acked_event: done.acked_event };
    let session = Session { opening, epoch, seen, slot, told, told_at: Instant::now(), tell_at: None, sent };
    Ok((Box::new(session), messages))
}

type Out = Result<Vec<pb::Down>, Last>;

impl Session {
    async fn woken(&mut self, woken: Woken) -> Out {
        if let Some(leave) = woken.leave {
            let wait = if leave == Leave::ShuttingDown {
                Duration::from_millis(rand::rng().random_range(100..2000))
            } else {
                Duration::ZERO
            };
            return Err(Box::new(Ok(go_away(leave.as_str(), wait, ""))));
        }
        let mut out = Vec::new();
        if woken.standing {
            out.extend(self.standing(false));
        }
        if woken.commands {
            match commands::deliver(&self.opening.app, self.opening.agent).await {
                Ok(open) => {
                    let new = open.iter().filter(|command| !self.sent.contains(&command.id));
                    out.extend(
                        new.map(|command| down(pb::down::Msg::Command(convert::command_to_pb(command)))),
                    );
                    self.sent = open.iter().map(|command| command.id).collect();
                }
                // They stay queued: the next wake-up or session brings them.
                Err(error) => tracing::debug!(%error, "commands could not be read"),
            }
        }
        Ok(out)
    }

    /// The standing, when it says something new: a tier at once, a mere balance not too often (`beat`: now).
    fn standing(&mut self, beat: bool) -> Option<pb::Down> {
        let now = standing_of(&self.slot.state());
        self.tell_at = None;
        if now == self.told {
            return None;
        }
        let only_balance = Standing { credits: self.told.credits, ..now } == self.told;
        if only_balance && !beat && self.told_at.elapsed() < BALANCE_EVERY {
            self.tell_at = Some(self.told_at + BALANCE_EVERY);
            return None;
        }
        self.told = now;
        self.told_at = Instant::now();
        Some(down(pb::down::Msg::Standing(convert::standing_to_pb(&now))))
    }

    async fn up(&mut self, message: pb::up::Msg, up: &mut Up) -> Out {
        match message {
            pb::up::Msg::Hello(_) => {
                Err(Box::new(Ok(go_away("protocol_error", Duration::ZERO, "hello comes once"))))
            }
            pb::up::Msg::Heartbeat(beat) => Ok(self.heartbeat(&beat)),
            pb::up::Msg::Event(event) => self.events(vec![event], up).await,
            pb::up::Msg::Events(events) => self.events(events.events, up).await,
            pb::up::Msg::Pong(_) => Ok(Vec::new()),
        }
    }

    fn heartbeat(&mut self, beat: &pb::Heartbeat) -> Vec<pb::Down> {
        let app = &self.opening.app;
        app.shared.fleet.hear(&self.slot, app.clock.now());
        app.shared.metrics.heartbeats.inc();
        if app.shared.health.hear(self.opening.agent, &beat.agent_process) {
            app.shared.metrics.healing_successes.inc();
        }
        self.standing(true).into_iter().collect()
    }

    /// Stores events, with all that have arrived behind them, and acknowledges them.
    async fn events(&mut self, mut events: Vec<pb::Event>, up: &mut Up) -> Out {
        let mut out = Vec::new();
        let mut then = None;
        while events.len() < MAX_EVENTS {
            match up.message().now_or_never() {
                Some(Ok(Some(pb::Up { msg: Some(pb::up::Msg::Event(event)) }))) => events.push(event),
                Some(Ok(Some(pb::Up { msg: Some(pb::up::Msg::Events(more)) }))) => events.extend(more.events),
                Some(Ok(Some(pb::Up { msg: Some(pb::up::Msg::Heartbeat(beat)) }))) => {
                    out.extend(self.heartbeat(&beat));
                }
                Some(Ok(Some(pb::Up { msg: Some(other) }))) => {
                    then = Some(other);
                    break;
                }
                Some(Ok(Some(pb::Up { msg: None }))) => {}
                // A client that has hung up is not read again; its events are stored all the same.
                Some(Ok(None) | Err(_)) | None => break,
            }
        }
        out.extend(self.store(events).await?);
        out.extend(self.standing(false));
        if matches!(then, Some(pb::up::Msg::Hello(_))) {
            return Err(Box::new(Ok(go_away("protocol_error", Duration::ZERO, "hello comes once"))));
        }
        Ok(out)
    }

    async fn store(&mut self, events: Vec<pb::Event>) -> Result<Vec<pb::Down>, Last> {
        let mut out = Vec::new();
        if events.iter().any(|event| event.seq == 0) {
            return Err(Box::new(Ok(go_away(
                "protocol_error",
                Duration::ZERO,
                "events are numbered from 1",
            ))));
        }
        let mut rest = events.into_iter().map(|event| events::from_wire(&self.opening.app, event)).peekable();
        while rest.peek().is_some() {
            let part: Vec<_> = rest.by_ref().take(MAX_EVENTS).collect();
            let stream = StreamRef {
                epoch: self.epoch.clone(),
                session: Some(self.opening.id),
                next_seq: None,
                seen: Some(self.seen.clone()),
            };
            let state = self.slot.state();
            let done = events::store(&self.opening.app, &state, stream, part)
                .await
                .map_err(|error| Box::new(farewell(&error)))?;
            self.seen = Position { acked_seq: done.acked_seq, acked_event: done.acked_event };
            out.push(ack(done));
        }
        Ok(out)
    }
}

fn ack(done: EventsDone) -> pb::Down {
    let rejected = done.rejected.into_iter().map(|rejected| pb::Rejected {
        seq: rejected.seq,
        id: rejected.id.map(|id| id.to_string()).unwrap_or_default(),
        code: rejected.code,
        detail: rejected.detail,
    });
    down(pb::down::Msg::Ack(pb::Ack {
        seq: done.acked_seq,
        rejected: rejected.collect(),
        resend_from: done.resend_from.unwrap_or(0),
    }))
}
