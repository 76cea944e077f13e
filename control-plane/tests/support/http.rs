//! A plain HTTP/1.1 client that sends exactly what it is told and checks the rules that hold for every answer.

use std::future::{Future, IntoFuture};
use std::net::SocketAddr;
use std::pin::Pin;
use std::time::Duration;

use bytes::Bytes;
use chrono::DateTime;
use http::header::{CONTENT_TYPE, HOST, HeaderMap, HeaderName, HeaderValue, LINK};
use http_body_util::{BodyExt as _, Full};
use hyper_util::rt::TokioIo;
use otonix_sdk::error::ErrorCode;
use serde_json::Value;
use serde_json::value::RawValue;
use std::collections::BTreeMap;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

use super::calls::Key;

/// Longest that any answer may take.
const PATIENCE: Duration = Duration::from_secs(30);

/// A request about to be sent; `.await` sends it.
#[derive(Debug, Clone)]
pub struct Call {
    addr: SocketAddr,
    method: http::Method,
    path: String,
    headers: HeaderMap,
    body: Bytes,
}

impl Call {
    /// A request without a body or headers of its own.
    pub fn new(addr: SocketAddr, method: &str, path: &str) -> Self {
        Self {
            addr,
            method: method.parse().expect("a method"),
            path: path.to_owned(),
            headers: HeaderMap::new(),
            body: Bytes::new(),
        }
    }

    /// With a header more.
    pub fn header(mut self, name: &str, value: impl AsRef<[u8]>) -> Self {
        let name: HeaderName = name.parse().expect("a header name");
        self.headers.append(name, HeaderValue::from_bytes(value.as_ref()).expect("a header value"));
        self
    }

    /// As the holder of a key.
    pub fn key(self, key: &Key) -> Self {
        self.header("x-api-key", &key.secret)
    }

    /// As the operator.
    pub fn operator(self, token: &str) -> Self {
        self.header("authorization", format!("Bearer {token}"))
    }

    /// With an idempotency key.
    pub fn once(self, key: &str) -> Self {
        self.header("idempotency-key", key)
    }

    /// With a JSON body.
    #[expect(clippy::needless_pass_by_value, reason = "reads better with json!")]
    pub fn json(self, body: Value) -> Self {
        self.raw(body.to_string())
    }

    /// With a body sent as JSON, byte for byte.
    pub fn raw(self, body: impl Into<Bytes>) -> Self {
        self.header("content-type", "application/json").bytes(body)
    }

    /// With a body and no content type.
    pub fn bytes(mut self, body: impl Into<Bytes>) -> Self {
        self.body = body.into();
        self
    }

    async fn send(self) -> Answer {
        let what = format!("{} {}", self.method, self.path);
        match tokio::time::timeout(PATIENCE, self.exchange()).await {
            Ok(Ok(answer)) => answer.checked(),
            Ok(Err(why)) => panic!("{what}: {why}"),
            Err(_) => panic!("{what}: no answer within {PATIENCE:?}"),
        }
    }

    /// Sends it; a connection that breaks is an error, not a failed test.
    ///
    /// # Errors
    /// When the connection breaks before the whole answer is there.
    pub async fn attempt(self) -> Result<Answer, String> {
        match tokio::time::timeout(PATIENCE, self.exchange()).await {
            Ok(Ok(answer)) => Ok(answer.checked()),
            Ok(Err(why)) => Err(why.to_string()),
            Err(_) => Err("no answer in time".to_owned()),
        }
    }

    async fn exchange(self) -> Result<Answer, Box<dyn std::error::Error + Send + Sync>> {
        let what = format!("{} {}", self.method, self.path);
        let stream = TcpStream::connect(self.addr).await?;
        stream.set_nodelay(true)?;
        let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await?;
        let driver = tokio::spawn(connection);
        let mut request = http::Request::builder().method(self.method).uri(&self.path);
        if !self.headers.contains_key(HOST) {
            request = request.header(HOST, self.addr.to_string());
        }
        let mut request = request.body(Full::new(self.body))?;
        request.headers_mut().extend(self.headers);
        let response = sender.send_request(request).await?;
        let (head, body) = response.into_parts();
        let body = body.collect().await?.to_bytes();
        driver.abort();
        Ok(Answer { what, status: head.status.as_u16(), headers: head.headers, body })
    }
}

impl IntoFuture for Call {
    type Output = Answer;
    type IntoFuture = Pin<Box<dyn Future<Output = Answer> + Send>>;

    fn into_future(self) -> Self::IntoFuture {
        Box::pin(self.send())
    }
}

/// What the server said.
#[derive(Debug, Clone)]
pub struct Answer {
    what: String,
    pub status: u16,
    pub headers: HeaderMap,
    pub body: Bytes,
}

impl Answer {
    /// The body as text.
    pub fn text(&self) -> &str {
        std::str::from_utf8(&self.body).unwrap_or_else(|_| panic!("{}: not UTF-8", self.what))
    }

    /// The body as JSON.
    pub fn json(&self) -> Value {
        serde_json::from_slice(&self.body)
            .unwrap_or_else(|why| panic!("{}: {why}: {}", self.what, self.shown()))
    }

    /// A header, once and readable.
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.get(name).map(|value| value.to_str().expect("a readable header"))
    }

    /// The body of an answer that must have this status.
    pub fn ok(&self, status: u16) -> Value {
        assert_eq!(self.status, status, "{}: {}", self.what, self.shown());
        self.json()
    }

    /// The rows of a list.
    pub fn list(&self) -> Vec<Value> {
        match self.ok(200) {
            Value::Array(rows) => rows,
            other => panic!("{}: not an array: {other}", self.what),
        }
    }

    /// The body of a refusal that must have this status and code.
    pub fn refused(&self, status: u16, code: &str) -> Value {
        assert_eq!(self.status, status, "{}: {}", self.what, self.shown());
        let problem = self.json();
        assert_eq!(problem["code"], code, "{}: {problem}", self.what);
        problem
    }

    /// A 400 that names the field.
    pub fn bad_field(&self, field: &str) {
        assert_eq!(self.status, 400, "{} ({field}): {}", self.what, self.shown());
        let problem = self.json();
        let detail = problem["detail"].as_str().unwrap_or_default();
        assert!(detail.contains(field), "{}: does not name {field}: {problem}", self.what);
    }

    /// The source text of a field: money is compared as written.
    pub fn source(&self, field: &str) -> String {
        sources(&self.body)
            .remove(field)
            .unwrap_or_else(|| panic!("{}: no {field}: {}", self.what, self.text()))
    }

    /// The path of the next page, if there is one.
    pub fn next_page(&self) -> Option<String> {
        let link = self.headers.get(LINK)?.to_str().expect("a readable link");
        let (target, relation) = link.split_once('>').expect("a link");
        assert!(relation.contains("rel=\"next\""), "{link}");
        let target = target.strip_prefix('<').expect("a link");
        let path = match target.split_once("://") {
            Some((_, rest)) => rest.find('/').map_or("/", |slash| &rest[slash..]),
            None => target,
        };
        Some(path.to_owned())
    }

    fn shown(&self) -> String {
        let text = String::from_utf8_lossy(&self.body);
        text.chars().take(2000).collect()
    }

    /// The rules of every answer under `/api`.
    fn checked(self) -> Self {
        let path = self.what.split_once(' ').map_or("", |(_, path)| path);
        if !path.starts_with("/api") || self.what.starts_with("HEAD") {
            return self;
        }
        let what = &self.what;
        let content_type = self.header(CONTENT_TYPE.as_str()).unwrap_or_default();
        let media_type = content_type.split(';').next().unwrap_or_default().trim();
        let body = self.json();
        match self.status {
            200..=299 => {
                assert_eq!(media_type, "application/json", "{what}: {}", self.shown());
                assert!(body.is_object() || body.is_array(), "{what}: {body}");
                assert!(body.get("error").is_none(), "{what}: a success with an error key: {body}");
            }
            402 => assert_eq!(media_type, "application/json", "{what}"),
            status => {
                assert_eq!(media_type, "application/problem+json", "{what}: {status} {}", self.shown());
                check_problem(what, status, &body);
            }
        }
        check_names_and_times(what, &body);
        self
    }
}

/// The fields of an object as they are written; empty when it is none.
pub fn sources(json: &[u8]) -> BTreeMap<String, String> {
    let fields: BTreeMap<String, Box<RawValue>> = serde_json::from_slice(json).unwrap_or_default();
    fields.into_iter().map(|(name, value)| (name, value.get().to_owned())).collect()
}

fn check_problem(what: &str, status: u16, body: &Value) {
    assert_eq!(body["status"], status, "{what}: {body}");
    for field in ["type", "title", "detail", "code", "error", "requestId"] {
        assert!(body[field].as_str().is_some_and(|text| !text.is_empty()), "{what}: {field}: {body}");
    }
    assert_eq!(body["error"], body["detail"], "{what}: {body}");
    let code = body["code"].as_str().unwrap_or_default();
    assert!(ErrorCode::parse(code).is_some(), "{what}: unknown code {code}");
    assert_ne!(body["success"], true, "{what}: {body}");
}

/// Names are camelCase (but `action_id`), times are RFC 3339 with `Z`.
fn check_names_and_times(what: &str, value: &Value) {
    match value {
        Value::Array(items) => items.iter().for_each(|item| check_names_and_times(what, item)),
        Value::Object(fields) => {
            for (name, value) in fields {
                if matches!(name.as_str(), "args" | "metadata" | "prices" | "models") {
                    continue;
                }
                assert!(!name.contains('_') || name == "action_id", "{what}: {name} is not camelCase");
                let is_time = name.ends_with("At")
                    || name.ends_with("Until")
                    || matches!(name.as_str(), "timestamp" | "nextExpected" | "lastHeartbeat");
                if let (true, Some(text)) = (is_time, value.as_str()) {
                    let fine = DateTime::parse_from_rfc3339(text).is_ok() && text.ends_with('Z');
                    assert!(fine, "{what}: {name} is {text}");
                }
                check_names_and_times(what, value);
            }
        }
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => {}
    }
}

/// Writes bytes to the server and reads what it answers until it closes, or `within` is over.
pub async fn raw_exchange(addr: SocketAddr, bytes: &[u8], within: Duration) -> Vec<u8> {
    let mut stream = TcpStream::connect(addr).await.expect("the server listens");
    // The server may refuse and close before it has read everything.
    let _closed_early = stream.write_all(bytes).await;
    let mut answer = Vec::new();
    let _closed_or_late = tokio::time::timeout(within, stream.read_to_end(&mut answer)).await;
    answer
}
