//! One session over gRPC, from `Hello` to its end.

use std::path::Path;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use futures_util::Stream;
use otonix_proto::v1 as pb;
use otonix_proto::v1::agent_link_client::AgentLinkClient;
use sha2::{Digest as _, Sha256};
use tokio::sync::mpsc;
use tokio::time::Instant;
use tonic::metadata::MetadataValue;
use tonic::transport::{Channel, ClientTlsConfig, Endpoint};
use tonic::{Code, Request, Status, Streaming};
use uuid::Uuid;

use crate::api::events::Rejected;
use crate::clock::{Clock as _, SystemClock};
use crate::convert;
use crate::error::ErrorCode;
use crate::link::Transport;
use crate::link::core::Core;
use crate::link::heartbeat::{self, Rhythm};
use crate::link::outbox::{self, Verdict, Window};

/// The version of the protocol spoken.
const PROTOCOL: &str = "1";
/// Largest message taken from the server, bytes.
const MAX_MESSAGE: usize = 1024 * 1024;
/// How long the server may take to close its side.
const GOODBYE: Duration = Duration::from_millis(300);

/// Why a session ended.
#[derive(Debug)]
pub(crate) enum End {
    /// This side is done.
    Done,
    /// The connection or the server failed. `welcomed`: it had worked before.
    Lost { error: String, welcomed: bool, retry_after: Option<Duration> },
    /// The server sent this side away.
    Away { reason: String, detail: String, retry_after: Option<Duration> },
    /// The key is refused.
    Refused { code: ErrorCode, error: String },
    /// The numbers were used by another: a new epoch is needed.
    Fork(String),
    /// gRPC is to be tried again.
    Probe,
}

impl End {
    pub(crate) fn lost(error: impl ToString, welcomed: bool) -> Self {
        Self::Lost { error: error.to_string(), welcomed, retry_after: None }
    }

    fn of(status: &Status, welcomed: bool) -> Self {
        let why = format!("{}: {}", status.code(), status.message());
        match status.code() {
            Code::Unauthenticated | Code::PermissionDenied => {
                let code = status.metadata().get("otonix-code").and_then(|value| value.to_str().ok());
                let code = code.and_then(ErrorCode::parse).unwrap_or(ErrorCode::Forbidden);
                Self::Refused { code, error: status.message().to_owned() }
            }
            _ => {
                let secs =
                    status.metadata().get("retry-after").and_then(|value| value.to_str().ok()?.parse().ok());
                Self::Lost { error: why, welcomed, retry_after: secs.map(Duration::from_secs) }
            }
        }
    }
}

/// Frames to the server: heartbeats and answers to pings go before events.
struct Upward {
    first: mpsc::Receiver<pb::Up>,
    events: mpsc::Receiver<pb::Up>,
}

impl Stream for Upward {
    type Item = pb::Up;

    fn poll_next(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<pb::Up>> {
        match self.first.poll_recv(context) {
            Poll::Pending => match self.events.poll_recv(context) {
                Poll::Ready(Some(frame)) => Poll::Ready(Some(frame)),
                Poll::Ready(None) | Poll::Pending => Poll::Pending,
            },
            ended_or_frame => ended_or_frame,
        }
    }
}

/// Runs one session to its end.
pub(crate) async fn run(core: &Arc<Core>) -> End {
    let (first, first_queue) = mpsc::channel(4);
    let (events, events_queue) = mpsc::channel(1);
    let hello = pb::Up { msg: Some(pb::up::Msg::Hello(hello(core))) };
    if first.try_send(hello).is_err() {
        return End::lost("the session's queue is closed", false);
    }
    let upward = Upward { first: first_queue, events: events_queue };
    let opened = tokio::time::timeout(core.config.tuning.hello_timeout, open(core, upward)).await;
    let (mut down, welcome) = match opened {
        Ok(Ok(opened)) => opened,
        Ok(Err(end)) => return end,
        Err(_) => return End::lost("the control plane did not answer in time", false),
    };
    let acked_id = Uuid::try_parse(&welcome.acked_event_id).ok();
    match outbox::reconcile(core, welcome.acked_seq, acked_id).await {
        Ok(Verdict::Same) => {}
        Ok(Verdict::Fork(why)) => return End::Fork(why.to_owned()),
        Err(error) => return End::lost(error, true),
    }
    let window = Arc::new(Window::new(core));
    greet(core, &welcome);
    core.connected(Transport::Grpc);
    let interval = core.keeper.current().heartbeat_interval;
    let rhythm = Rhythm::new(interval, Duration::from_millis(u64::from(welcome.first_beat_after_ms)));
    let end = tokio::select! {
        end = listen(core, &window, &mut down, &first) => end,
        () = beat(core, rhythm, &first) => End::lost("the session's stream closed", true),
        error = outbox::pump(Arc::clone(core), Arc::clone(&window), events) => End::lost(error, true),
    };
    if matches!(end, End::Done) {
        drop(first);
        let _ =
            tokio::time::timeout(GOODBYE, async { while let Ok(Some(_)) = down.message().await {} }).await;
    }
    end
}

async fn open(core: &Core, upward: Upward) -> Result<(Streaming<pb::Down>, pb::Welcome), End> {
    let channel = connect(core).await.map_err(|error| End::lost(causes(&error), false))?;
    let mut client = AgentLinkClient::new(channel).max_decoding_message_size(MAX_MESSAGE);
    let mut request = Request::new(upward);
    let key = MetadataValue::try_from(core.config.api_key.expose()).map_err(|_| End::Refused {
        code: ErrorCode::UnknownKey,
        error: "the API key has characters that cannot be sent".to_owned(),
    })?;
    request.metadata_mut().insert("x-api-key", key);
    let mut down = client.session(request).await.map_err(|status| End::of(&status, false))?.into_inner();
    loop {
        let message = down.message().await.map_err(|status| End::of(&status, false))?;
        match message.and_then(|down| down.msg) {
            Some(pb::down::Msg::Welcome(welcome)) => return Ok((down, welcome)),
            Some(pb::down::Msg::GoAway(away)) => return Err(gone(away)),
            Some(pb::down::Msg::Ping(_)) => {}
            Some(_) => return Err(End::lost("the control plane spoke before its welcome", false)),
            None => return Err(End::lost("the control plane closed the session at once", false)),
        }
    }
}

async fn connect(core: &Core) -> Result<Channel, tonic::transport::Error> {
    let tuning = &core.config.tuning;
    let mut endpoint = Endpoint::from_shared(core.config.server.to_string())?
        .user_agent(format!("otonix-agent/{}", core.config.version))?
        .connect_timeout(tuning.hello_timeout)
        .http2_keep_alive_interval(tuning.keepalive)
        .keep_alive_timeout(tuning.keepalive / 2)
        .keep_alive_while_idle(true)
        .http2_max_header_list_size(16 * 1024)
        .local_address(tuning.local_address);
    if core.config.server.scheme() == "https" {
        endpoint = endpoint.tls_config(ClientTlsConfig::new().with_webpki_roots())?;
    }
    endpoint.connect().await
}

/// An error with what caused it, since transports hide the interesting part.
pub(crate) fn causes(error: &(dyn std::error::Error + 'static)) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        let cause_text = cause.to_string();
        if !text.ends_with(&cause_text) {
            text = format!("{text}: {cause_text}");
        }
        source = cause.source();
    }
    text
}

fn gone(away: pb::GoAway) -> End {
    if away.reason == "new_epoch_required" {
        return End::Fork(away.detail);
    }
    let retry_after =
        (away.retry_after_ms > 0).then(|| Duration::from_millis(u64::from(away.retry_after_ms)));
    End::Away { reason: away.reason, detail: away.detail, retry_after }
}

fn boot_id() -> String {
    read_line(Path::new("/proc/sys/kernel/random/boot_id"))
}

/// Names the machine without telling its own id.
fn machine_id() -> String {
    let id = read_line(Path::new("/etc/machine-id"));
    if id.is_empty() { id } else { hex::encode(&Sha256::digest(format!("otonix machine {id}"))[..16]) }
}

fn read_line(path: &Path) -> String {
    std::fs::read_to_string(path).map(|text| text.trim().to_owned()).unwrap_or_default()
}

fn hello(core: &Core) -> pb::Hello {
    let view = core.spool.view();
    let next_seq = view.seq(view.next);
    let last = view.last_id.filter(|_| next_seq > 1);
    pb::Hello {
        agent_id: core.config.agent_id.to_string(),
        boot_id: boot_id(),
        machine_id: machine_id(),
        epoch: view.epoch.to_string(),
        next_seq,
        last_event_id: last.map(|id| id.to_string()).unwrap_or_default(),
        versions: Some(pb::Versions { daemon: core.config.version.clone(), protocol: PROTOCOL.to_owned() }),
        wallet_address: core.config.wallet_address.clone().unwrap_or_default(),
        wallet_proof: None,
        vps_ip: core.config.vps_ip.clone().unwrap_or_default(),
    }
}

fn greet(core: &Arc<Core>, welcome: &pb::Welcome) {
    if let Some(at) = welcome.server_time.as_ref().and_then(convert::time) {
        core.heard_time(at);
    }
    let thresholds = welcome.thresholds.as_ref().map(convert::thresholds_from_pb);
    if let Some(standing) = welcome.standing.as_ref().and_then(convert::standing_from_pb) {
        core.keeper.heard(standing, thresholds, SystemClock.now());
    }
    let version = &welcome.price_table_version;
    if !version.is_empty() && !core.prices.is_current(version) {
        tokio::spawn(crate::link::rest::fetch_prices(Arc::clone(core)));
    }
}

async fn beat(core: &Arc<Core>, mut rhythm: Rhythm, first: &mpsc::Sender<pb::Up>) {
    let mut standing = core.keeper.changes();
    loop {
        tokio::select! {
            changed = standing.changed() => match changed {
                Ok(()) => rhythm.set(standing.borrow_and_update().heartbeat_interval),
                Err(_) => return,
            },
            () = rhythm.due() => {
                let frame = heartbeat::frame(&core.vitals.borrow());
                if first.send(frame).await.is_err() {
                    return;
                }
                rhythm.beaten();
            }
        }
    }
}

async fn listen(
    core: &Arc<Core>,
    window: &Arc<Window>,
    down: &mut Streaming<pb::Down>,
    first: &mpsc::Sender<pb::Up>,
) -> End {
    let patience = core.config.tuning.ack_timeout;
    let mut quiet_since = Instant::now();
    let mut check = tokio::time::interval(patience / 4);
    check.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    let mut drained = tokio::time::interval(Duration::from_millis(20));
    drained.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            message = down.message() => match message {
                Ok(Some(pb::Down { msg: Some(message) })) => {
                    if matches!(message, pb::down::Msg::Ack(_)) {
                        quiet_since = Instant::now();
                    }
                    if let Some(end) = handle(core, window, first, message).await {
                        return end;
                    }
                }
                Ok(Some(pb::Down { msg: None })) => {}
                Ok(None) => return End::lost("the control plane closed the session", true),
                Err(status) => return End::of(&status, true),
            },
            _ = check.tick(), if !core.stop.is_cancelled() => {
                if window.is_empty() {
                    quiet_since = Instant::now();
                } else if quiet_since.elapsed() > patience {
                    return End::lost("events were not acknowledged in time", true);
                }
            }
            _ = drained.tick(), if core.stop.is_cancelled() => {
                if core.spool.status().pending == 0 {
                    return End::Done;
                }
            }
            () = core.stop.cancelled(), if !core.stop.is_cancelled() => {}
        }
    }
}

async fn handle(
    core: &Arc<Core>,
    window: &Arc<Window>,
    first: &mpsc::Sender<pb::Up>,
    message: pb::down::Msg,
) -> Option<End> {
    match message {
        pb::down::Msg::Ack(ack) => {
            if window.view().lsn(ack.seq) >= core.spool.view().next {
                return Some(End::Fork("the server acknowledged what was never sent".to_owned()));
            }
            let rejected = ack.rejected.into_iter().map(rejected).collect();
            if let Err(error) = window.acked(core, ack.seq, rejected).await {
                return Some(End::lost(error, true));
            }
            if ack.resend_from > 0 {
                window.rewind(ack.resend_from);
            }
        }
        pb::down::Msg::Standing(standing) => {
            if let Some(standing) = convert::standing_from_pb(&standing) {
                core.keeper.heard(standing, None, SystemClock.now());
            }
        }
        pb::down::Msg::Command(command) => {
            if let Some(command) = convert::command_from_pb(command, core.server_now()) {
                core.command(command).await;
            }
        }
        pb::down::Msg::Ping(ping) => {
            let pong = pb::Up { msg: Some(pb::up::Msg::Pong(pb::Pong { nonce: ping.nonce })) };
            let _ = first.send(pong).await;
        }
        pb::down::Msg::GoAway(away) => return Some(gone(away)),
        pb::down::Msg::Welcome(_) => {}
    }
    None
}

fn rejected(rejected: pb::Rejected) -> Rejected {
    let id = rejected.id.parse().ok();
    Rejected { seq: rejected.seq, id, code: rejected.code, detail: rejected.detail }
}
