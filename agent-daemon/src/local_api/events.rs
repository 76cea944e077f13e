//! `GET /v1/events`: server-sent events `standing`, `command` and `shutdown`.

use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use axum::extract::State;
use axum::response::sse::{Event, KeepAlive, Sse};
use axum::response::{IntoResponse as _, Response};
use futures_util::stream;
use http::StatusCode;
use otonix_sdk::error::ErrorCode;
use serde_json::json;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, broadcast};
use tokio_util::sync::CancellationToken;

use super::problem::Refusal;
use crate::shared::{Notice, Shared, tier_of};

/// Streams open at a time.
const MAX_STREAMS: usize = 16;
/// A comment is sent this often, so that a reader that has gone is noticed.
const KEEP_ALIVE: Duration = Duration::from_secs(30);

/// The places for open streams.
#[derive(Debug, Clone)]
pub(super) struct Streams {
    places: Arc<Semaphore>,
    cancel: CancellationToken,
}

impl Streams {
    pub(super) fn new(cancel: CancellationToken) -> Self {
        Self { places: Arc::new(Semaphore::new(MAX_STREAMS)), cancel }
    }
}

struct Reader {
    shared: Shared,
    notices: broadcast::Receiver<Notice>,
    cancel: CancellationToken,
    first: bool,
    _place: OwnedSemaphorePermit,
}

/// The standing at once, then every notice until the daemon stops.
pub(super) fn stream(State(shared): State<Shared>, streams: &Streams) -> Result<Response, Refusal> {
    let place = Arc::clone(&streams.places).try_acquire_owned().map_err(|_| {
        let detail = format!("{MAX_STREAMS} event streams are open already");
        Refusal::new(StatusCode::SERVICE_UNAVAILABLE, ErrorCode::Overloaded, detail)
    })?;
    let notices = shared.notices.subscribe();
    let reader = Reader { shared, notices, cancel: streams.cancel.clone(), first: true, _place: place };
    let events = stream::unfold(reader, |mut reader| async move {
        let event = reader.next().await?;
        Some((Ok::<_, Infallible>(event), reader))
    });
    Ok(Sse::new(events).keep_alive(KeepAlive::new().interval(KEEP_ALIVE)).into_response())
}

impl Reader {
    async fn next(&mut self) -> Option<Event> {
        if std::mem::take(&mut self.first) {
            return Some(self.standing());
        }
        let notice = tokio::select! {
            biased;
            notice = self.notices.recv() => notice,
            () = self.cancel.cancelled() => return None,
        };
        match notice {
            // One who is behind gets what holds now.
            Ok(Notice::Standing) | Err(broadcast::error::RecvError::Lagged(_)) => Some(self.standing()),
            Ok(Notice::Command { id, kind, ok }) => {
                Some(event("command", &json!({ "id": id, "kind": kind, "ok": ok })))
            }
            Ok(Notice::Shutdown { reason, grace_secs }) => {
                Some(event("shutdown", &json!({ "reason": reason, "graceSeconds": grace_secs })))
            }
            Err(broadcast::error::RecvError::Closed) => None,
        }
    }

    fn standing(&self) -> Event {
        let standing = self.shared.agent.standing();
        let tier = tier_of(&standing);
        event(
            "standing",
            &json!({
                "survivalTier": tier,
                "credits": standing.credits,
                "funded": standing.funded,
                "graceUntil": standing.grace_until,
                "model": self.shared.usual_model(),
                "optionalWork": self.shared.config.tier.optional_work(tier),
                "heartbeatInterval": standing.heartbeat_interval,
            }),
        )
    }
}

fn event(name: &str, data: &serde_json::Value) -> Event {
    Event::default().event(name).data(data.to_string())
}
