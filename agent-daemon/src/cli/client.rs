//! Speaking to the running daemon over its socket.

use std::path::Path;
use std::time::Duration;

use anyhow::{Context as _, anyhow};
use bytes::Bytes;
use http::{Method, Request, header};
use http_body_util::{BodyExt as _, Full, Limited};
use hyper_util::rt::TokioIo;
use otonix_sdk::error::Problem;
use serde::de::DeserializeOwned;
use tokio::net::UnixStream;

use super::Place;
use crate::local_api::pay::{OWNER_HEADER, OWNER_TOKEN};

/// How long the daemon may take to answer: it waits for the disk.
pub(super) const TIMEOUT: Duration = Duration::from_secs(30);
/// Largest answer, bytes.
const MAX_ANSWER: usize = 16 * 1024 * 1024;

/// A request to the daemon.
#[derive(Debug)]
pub(super) struct Call<'a> {
    pub method: Method,
    pub path: &'a str,
    pub body: Vec<u8>,
    pub idempotency_key: Option<&'a str>,
}

impl<'a> Call<'a> {
    pub(super) const fn get(path: &'a str) -> Self {
        Self { method: Method::GET, path, body: Vec::new(), idempotency_key: None }
    }
}

/// What it means that the server takes nothing from this agent.
pub(super) fn refusal_in_words(code: &str) -> &str {
    match code {
        "agent_killed" => "the agent was killed; nothing of it is stored any more",
        "revoked_key" => "the API key was revoked; records wait for another key",
        "unknown_key" => "the server does not know the API key; records wait for another key",
        "not_found" => "the server knows no such agent of this key's owner; records wait",
        other => other,
    }
}

/// Whether a daemon listens.
pub(super) async fn listens(socket: &Path) -> bool {
    UnixStream::connect(socket).await.is_ok()
}

/// Calls the daemon and reads its answer.
pub(super) async fn call<T: DeserializeOwned>(socket: &Path, call: Call<'_>) -> anyhow::Result<T> {
    let stream = UnixStream::connect(socket).await.map_err(|error| match error.kind() {
        std::io::ErrorKind::NotFound | std::io::ErrorKind::ConnectionRefused => {
            anyhow!("no daemon is running at {}; start one with `otonix-agent run`", socket.display())
        }
        _ => anyhow!("failed to reach the daemon at {}: {error}", socket.display()),
    })?;
    let exchanged = tokio::time::timeout(TIMEOUT, exchange(stream, call, None)).await;
    let body = exchanged.context("the daemon does not answer")??;
    let body = body.map_err(|problem| anyhow!("{} ({})", problem.detail, problem.code))?;
    serde_json::from_slice(&body).context("the daemon's answer cannot be read")
}

/// Calls the daemon as the machine's owner: who can read its state directory. The outer error: it did not answer.
pub(super) async fn call_as_owner(
    socket: &Path,
    call: Call<'_>,
    place: &Place,
    timeout: Duration,
) -> anyhow::Result<Result<serde_json::Value, Problem>> {
    let token = std::fs::read_to_string(place.state_dir().join(OWNER_TOKEN)).ok();
    let stream = UnixStream::connect(socket).await.context("failed to reach the daemon")?;
    let exchanged = tokio::time::timeout(timeout, exchange(stream, call, token.as_deref())).await;
    match exchanged.context("the daemon does not answer")?? {
        Ok(body) => Ok(Ok(serde_json::from_slice(&body).context("the daemon's answer cannot be read")?)),
        Err(problem) => Ok(Err(problem)),
    }
}

async fn exchange(
    stream: UnixStream,
    call: Call<'_>,
    token: Option<&str>,
) -> anyhow::Result<Result<Bytes, Problem>> {
    let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await?;
    tokio::spawn(connection);
    let mut request = Request::builder()
        .method(call.method)
        .uri(call.path)
        .header(header::HOST, "localhost")
        .header(header::CONTENT_TYPE, "application/json");
    if let Some(token) = token {
        request = request.header(OWNER_HEADER, token.trim());
    }
    if let Some(key) = call.idempotency_key {
        request = request.header("idempotency-key", key);
    }
    let answer = sender.send_request(request.body(Full::new(Bytes::from(call.body)))?).await?;
    let status = answer.status();
    let body = Limited::new(answer.into_body(), MAX_ANSWER).collect().await;
    let body = body.map_err(|error| anyhow!("{error}"))?.to_bytes();
    if !status.is_success() {
        let problem: Problem =
            serde_json::from_slice(&body).with_context(|| format!("the daemon answered {status}"))?;
        return Ok(Err(problem));
    }
    Ok(Ok(body))
}
