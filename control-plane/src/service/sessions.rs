//! The opening of a session: who it is, where its stream stands, and how many may come at once.

use std::time::Duration;

use otonix_proto::v1 as pb;
use otonix_sdk::ids::AgentId;
use parking_lot::Mutex;
use rand::Rng as _;
use tokio::time::Instant;
use uuid::Uuid;

use crate::app::App;
use crate::auth::Caller;
use crate::error::Error;
use crate::service::acting_agent;
use crate::service::events::check_epoch;
use crate::store::batch::{HelloDone, HelloItem};

/// Sessions admitted a second; a fleet that comes back waits its turn instead of trampling the database.
const ADMITTED_PER_SECOND: f64 = 4000.0;
/// Sessions admitted at once after a quiet time.
const ADMITTED_BURST: f64 = 4000.0;

/// A bucket of admissions.
pub struct Admission(Mutex<(f64, Instant)>);

impl Default for Admission {
    fn default() -> Self {
        Self(Mutex::new((ADMITTED_BURST, Instant::now())))
    }
}

impl Admission {
    /// Takes a place; else tells when to come back, spread so that the turned away do not come together.
    ///
    /// # Errors
    /// The time to wait.
    pub fn admit(&self) -> Result<(), Duration> {
        let mut bucket = self.0.lock();
        let now = Instant::now();
        let gained = now.duration_since(bucket.1).as_secs_f64() * ADMITTED_PER_SECOND;
        *bucket = ((bucket.0 + gained).min(ADMITTED_BURST), now);
        if bucket.0 >= 1.0 {
            bucket.0 -= 1.0;
            return Ok(());
        }
        Err(Duration::from_millis(rand::rng().random_range(200..2000)))
    }
}

/// How a machine names itself: at most so many characters.
const MAX_NAME: usize = 128;

fn short(text: &str) -> String {
    text.chars().filter(|c| !c.is_control()).take(MAX_NAME).collect()
}

/// Opens a session; older ones of the agent are superseded by its commit.
///
/// # Errors
/// 401, 404, [`Error::NewEpochRequired`], 409 `agent_killed`, 503.
pub async fn open(
    app: &App,
    caller: &Caller,
    hello: &pb::Hello,
    session: Uuid,
) -> Result<(AgentId, HelloDone), Error> {
    let id: AgentId = hello.agent_id.parse().map_err(|_| Error::invalid("agent_id", "must be a UUID"))?;
    acting_agent(app, caller, id).await?;
    check_epoch(&hello.epoch)?;
    let last_event = Uuid::try_parse(&hello.last_event_id).ok();
    let (item, done) = HelloItem::new(
        id.uuid(),
        (hello.epoch.clone(), hello.next_seq.max(1), last_event),
        session,
        (short(&hello.machine_id), short(&hello.boot_id)),
    );
    app.writer.send_hello(item)?;
    let done = done.await.map_err(|_| Error::internal("the writer is gone"))??;
    app.shared.metrics.sessions_opened.inc();
    Ok((id, done))
}
