//! The session's work over plain REST, for networks that do not let HTTP/2 through.

use std::sync::Arc;
use std::time::Duration;

use chrono::DateTime;
use reqwest::header::{DATE, RETRY_AFTER};
use reqwest::{Response, StatusCode};
use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio::sync::Notify;

use crate::api::agents::HeartbeatAck;
use crate::api::events::{Event, EventsAck, PostEvents, Standing};
use crate::clock::{Clock as _, SystemClock, new_id};
use crate::error::{ErrorCode, Problem};
use crate::link::Transport;
use crate::link::core::Core;
use crate::link::heartbeat::{Beat, Rhythm};
use crate::link::outbox::{self, Verdict, Window};
use crate::link::session::{End, causes};
use crate::standing::{AgentStatus, SurvivalTier};

/// A whole request and its answer.
const TIMEOUT: Duration = Duration::from_secs(30);
/// Most bytes of an answer.
const MAX_ANSWER: usize = 1024 * 1024;

/// Just the calls that the link needs.
#[derive(Debug)]
pub(crate) struct RestClient {
    http: reqwest::Client,
    core: Arc<Core>,
}

fn tls() -> Result<rustls::ClientConfig, rustls::Error> {
    let mut roots = rustls::RootCertStore::empty();
    roots.extend(webpki_roots::TLS_SERVER_ROOTS.iter().cloned());
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config =
        rustls::ClientConfig::builder_with_provider(provider).with_safe_default_protocol_versions()?;
    Ok(config.with_root_certificates(roots).with_no_client_auth())
}

impl RestClient {
    pub(crate) fn new(core: &Arc<Core>) -> Result<Self, End> {
        let config = &core.config;
        let http = reqwest::Client::builder()
            .user_agent(format!("otonix-agent/{}", config.version))
            .timeout(TIMEOUT)
            .connect_timeout(config.tuning.hello_timeout)
            .redirect(reqwest::redirect::Policy::none())
            .no_proxy()
            .http1_only()
            .pool_max_idle_per_host(1)
            .local_address(config.tuning.local_address)
            .tls_backend_preconfigured(tls().map_err(|error| End::lost(error, false))?)
            .build()
            .map_err(|error| End::lost(causes(&error), false))?;
        Ok(Self { http, core: Arc::clone(core) })
    }

    fn url(&self, path: &str) -> String {
        format!("{}{path}", self.core.config.server.as_str().trim_end_matches('/'))
    }

    async fn post<T: DeserializeOwned>(
        &self,
        path: &str,
        body: &impl Serialize,
        key: Option<String>,
    ) -> Result<T, End> {
        let mut request =
            self.http.post(self.url(path)).header("x-api-key", self.core.config.api_key.expose()).json(body);
        if let Some(key) = key {
            request = request.header("idempotency-key", key);
        }
        let answer = request.send().await.map_err(|error| End::lost(causes(&error), false))?;
        let date = answer.headers().get(DATE).and_then(|value| value.to_str().ok());
        if let Some(at) = date.and_then(|text| DateTime::parse_from_rfc2822(text).ok()) {
            self.core.heard_time(at.to_utc());
        }
        let text = text_of(answer).await?;
        serde_json::from_str(&text)
            .map_err(|error| End::lost(format!("an answer of another kind: {error}"), false))
    }

    async fn events(&self, window: &Window, events: Vec<Event>) -> Result<EventsAck, End> {
        let view = window.view();
        let next_seq = view.seq(self.core.spool.view().next);
        let body = PostEvents { epoch: view.epoch.to_string(), next_seq, events };
        let path = format!("/api/agents/{}/events", self.core.config.agent_id);
        self.post(&path, &body, Some(new_id().to_string())).await
    }

    async fn heartbeat(&self) -> Result<HeartbeatAck, End> {
        let beat = Beat::of(&self.core.vitals.borrow());
        let path = format!("/api/agents/{}/heartbeat", self.core.config.agent_id);
        self.post(&path, &beat, Some(new_id().to_string())).await
    }

    async fn price_table(&self) -> Result<String, End> {
        let request = self
            .http
            .get(self.url("/api/price-table"))
            .header("x-api-key", self.core.config.api_key.expose());
        text_of(request.send().await.map_err(|error| End::lost(causes(&error), false))?).await
    }
}

async fn text_of(mut answer: Response) -> Result<String, End> {
    let status = answer.status();
    let retry_after = answer
        .headers()
        .get(RETRY_AFTER)
        .and_then(|value| value.to_str().ok()?.parse().ok())
        .map(Duration::from_secs);
    let mut bytes = Vec::new();
    while let Some(part) = answer.chunk().await.map_err(|error| End::lost(causes(&error), false))? {
        if bytes.len() + part.len() > MAX_ANSWER {
            return Err(End::lost("the answer is too long", false));
        }
        bytes.extend_from_slice(&part);
    }
    let text = String::from_utf8(bytes).map_err(|_| End::lost("the answer is no text", false))?;
    if status.is_success() { Ok(text) } else { Err(failure(status, retry_after, &text)) }
}

fn failure(status: StatusCode, retry_after: Option<Duration>, text: &str) -> End {
    let problem = serde_json::from_str::<Problem>(text).ok();
    let detail = problem.as_ref().map(|problem| problem.detail.clone()).unwrap_or_default();
    let code = problem.as_ref().and_then(|problem| ErrorCode::parse(&problem.code));
    let away = |reason: &str| End::Away { reason: reason.to_owned(), detail: detail.clone(), retry_after };
    match (status.as_u16(), code) {
        (_, Some(ErrorCode::NewEpochRequired)) => End::Fork(detail),
        (_, Some(ErrorCode::AgentKilled)) => away("killed"),
        (401 | 403, code) => {
            End::Refused { code: code.unwrap_or(ErrorCode::Forbidden), error: format!("{status}: {detail}") }
        }
        (404, Some(ErrorCode::NotFound)) => away("not_found"),
        (429 | 503, _) => End::Lost { error: format!("{status}: {detail}"), welcomed: false, retry_after },
        _ => End::lost(format!("{status}: {detail}"), false),
    }
}

/// Fetches the price table once; without success the old one stays.
pub(crate) async fn fetch_prices(core: Arc<Core>) {
    let answer = match RestClient::new(&core) {
        Ok(client) => client.price_table().await,
        Err(end) => Err(end),
    };
    match answer {
        Ok(text) if core.prices.take(&text) => {}
        Ok(_) => tracing::debug!("the control plane's price table is of another kind"),
        Err(end) => tracing::debug!(?end, "failed to fetch the price table"),
    }
}

/// Works over REST until it fails, this side stops, or it is time to try gRPC again.
pub(crate) async fn run(core: &Arc<Core>, probe_after: Option<Duration>) -> End {
    let client = match RestClient::new(core) {
        Ok(client) => client,
        Err(end) => return end,
    };
    let hello = match client.events(&Window::new(core), Vec::new()).await {
        Ok(hello) => hello,
        Err(end) => return end,
    };
    let acked_id = hello.acked_event_id.map(crate::ids::EventId::uuid);
    match outbox::reconcile(core, hello.acked_seq, acked_id).await {
        Ok(Verdict::Same) => {}
        Ok(Verdict::Fork(why)) => return End::Fork(why.to_owned()),
        Err(error) => return End::lost(error, true),
    }
    let window = Window::new(core);
    take(core, &window, hello).await;
    core.connected(Transport::Rest);
    tokio::spawn(fetch_prices(Arc::clone(core)));
    let poll = Notify::new();
    let probe = async {
        match probe_after {
            Some(after) => tokio::time::sleep(after).await,
            None => std::future::pending().await,
        }
    };
    let end = tokio::select! {
        end = send(core, &client, &window, &poll) => end,
        end = beat(core, &client, &poll) => end,
        () = probe => End::Probe,
    };
    match end {
        End::Lost { error, retry_after, .. } => End::Lost { error, retry_after, welcomed: true },
        other => other,
    }
}

async fn beat(core: &Arc<Core>, client: &RestClient, poll: &Notify) -> End {
    let mut standing = core.keeper.changes();
    let mut rhythm = Rhythm::new(core.keeper.current().heartbeat_interval, Duration::ZERO);
    loop {
        tokio::select! {
            changed = standing.changed() => match changed {
                Ok(()) => rhythm.set(standing.borrow_and_update().heartbeat_interval),
                Err(_) => return End::Done,
            },
            () = rhythm.due() => {
                let ack = match client.heartbeat().await {
                    Ok(ack) => ack,
                    Err(end) => return end,
                };
                rhythm.beaten();
                let before = core.keeper.current();
                core.keeper.heard(standing_of(&ack, before.killed), None, SystemClock.now());
                // Commands come with the answer to events only.
                poll.notify_one();
            }
        }
    }
}

fn standing_of(ack: &HeartbeatAck, killed: bool) -> Standing {
    let status = match ack.survival_tier {
        SurvivalTier::Terminated => AgentStatus::Terminated,
        SurvivalTier::Critical | SurvivalTier::Conservation | SurvivalTier::Full => AgentStatus::Active,
    };
    Standing {
        survival_tier: ack.survival_tier,
        status,
        credits: ack.credits,
        funded: ack.funded,
        grace_until: ack.grace_until,
        heartbeat_interval: ack.heartbeat_interval,
        killed,
    }
}

async fn send(core: &Arc<Core>, client: &RestClient, window: &Window, poll: &Notify) -> End {
    let mut reader = core.spool.reader(window.sent() + 1);
    loop {
        if core.stop.is_cancelled() && core.spool.status().pending == 0 {
            return End::Done;
        }
        let mut batch = Vec::new();
        tokio::select! {
            (from, turn, max) = window.next(core) => {
                let (back, found) = outbox::read(reader, from, max).await;
                reader = back;
                match found {
                    Ok(found) if window.send(turn, &found) => batch = found,
                    Ok(_) => continue,
                    Err(error) => return End::lost(error, true),
                }
            }
            () = poll.notified() => {}
            () = core.stop.cancelled(), if !core.stop.is_cancelled() => continue,
        }
        let mut events = Vec::with_capacity(batch.len());
        for stored in &batch {
            let seq = window.view().seq(stored.lsn);
            let Some(event) = outbox::to_api(seq, stored) else {
                return End::lost(format!("event {seq} has a form that REST does not know"), true);
            };
            events.push(event);
        }
        let ack = match client.events(window, events).await {
            Ok(ack) => ack,
            Err(end) => return end,
        };
        let before = window.sent();
        if window.view().lsn(ack.acked_seq) >= core.spool.view().next {
            return End::Fork("the server acknowledged what was never sent".to_owned());
        }
        let stuck =
            !batch.is_empty() && window.view().lsn(ack.acked_seq) < before && ack.resend_from.is_none();
        let again = ack.resend_from;
        if !take(core, window, ack).await {
            return End::lost("failed to note an acknowledgement", true);
        }
        if let Some(from) = again {
            window.rewind(from);
        } else if stuck {
            return End::lost("the control plane did not take the events", true);
        }
    }
}

/// Settles an answer: what is stored, what never will be, where the agent stands, what it is to do.
async fn take(core: &Arc<Core>, window: &Window, ack: EventsAck) -> bool {
    let settled = window.acked(core, ack.acked_seq, ack.rejected).await.is_ok();
    core.keeper.heard(ack.standing, None, SystemClock.now());
    for command in ack.commands {
        core.command(command).await;
    }
    settled
}
