//! The client against a server that follows a script.

use std::time::Duration;

use tokio::io::{AsyncBufReadExt as _, AsyncReadExt as _, AsyncWriteExt as _, BufReader};
use tokio::net::TcpListener;
use tokio::task::JoinHandle;

use super::*;
use crate::api::actions::LogAction;
use crate::api::keys::GenerateKey;
use crate::ids::AgentId;
use crate::secret::Secret;

/// Answers one connection after the other with the script's lines; an empty one hangs up. Returns what was asked.
async fn scripted(script: Vec<String>) -> (ServerUrl, JoinHandle<Vec<String>>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let address = listener.local_addr().expect("an address");
    let served = tokio::spawn(async move {
        let mut asked = Vec::new();
        for answer in script {
            let (stream, _) = listener.accept().await.expect("a connection");
            let mut stream = BufReader::new(stream);
            let (mut head, mut length) = (String::new(), 0);
            while !head.ends_with("\r\n\r\n") {
                let from = head.len();
                stream.read_line(&mut head).await.expect("a line");
                if let Some(text) = head[from..].strip_prefix("content-length: ") {
                    length = text.trim().parse().expect("a number");
                }
            }
            let mut body = vec![0; length];
            stream.read_exact(&mut body).await.expect("a body");
            asked.push(head + &String::from_utf8(body).expect("text"));
            stream.write_all(answer.as_bytes()).await.expect("is taken");
            stream.shutdown().await.ok();
        }
        asked
    });
    (ServerUrl::parse(&format!("http://{address}")).expect("loopback"), served)
}

fn answer(status: &str, headers: &str, body: &str) -> String {
    format!("HTTP/1.1 {status}\r\nconnection: close\r\n{headers}content-length: {}\r\n\r\n{body}", body.len())
}

fn problem(status: u16, code: &str, headers: &str) -> String {
    let body = format!(
        r#"{{"type":"about:blank","title":"t","status":{status},"detail":"d","code":"{code}","error":"d","requestId":"r"}}"#
    );
    answer(&format!("{status} X"), headers, &body)
}

fn client(server: ServerUrl, credential: Credential) -> Client {
    let retry = RetryPolicy { attempts: 3, base: Duration::from_millis(1), cap: Duration::from_millis(2) };
    Client::new(ClientConfig { server, credential, retry }).expect("a client")
}

fn header<'a>(asked: &'a str, name: &str) -> Option<&'a str> {
    asked.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(": "))
}

fn action() -> LogAction {
    LogAction {
        action: "a".to_owned(),
        category: "system".to_owned(),
        details: None,
        status: None,
        autonomous: None,
    }
}

const LOGGED: &str = r#"{"success":true,"action_id":"019a0000-0000-7000-8000-000000000001",
"id":"019a0000-0000-7000-8000-000000000001","agentId":"019a0000-0000-7000-8000-000000000002","action":"a",
"category":"system","details":null,"status":"completed","autonomous":true,"createdAt":"2026-01-01T00:00:00Z",
"timestamp":"2026-01-01T00:00:00Z"}"#;

fn agent_id() -> AgentId {
    "019a0000-0000-7000-8000-000000000002".parse().expect("a UUID")
}

#[tokio::test]
async fn a_post_is_repeated_with_the_same_key_and_body() {
    let (server, served) = scripted(vec![
        problem(503, "overloaded", "retry-after: 0\r\n"),
        String::new(),
        answer("201 Created", "", LOGGED),
    ])
    .await;
    let client = client(server, Credential::ApiKey(Secret::from("otonix_k")));
    let logged = client.log_action(agent_id(), &action()).await.expect("succeeds at last");
    assert_eq!(logged.action.agent_id, agent_id());
    let asked = served.await.expect("three requests");
    let key = header(&asked[0], "idempotency-key").expect("always sent");
    for request in &asked {
        assert_eq!(header(request, "idempotency-key"), Some(key));
        assert_eq!(header(request, "x-api-key"), Some("otonix_k"));
        assert!(request.ends_with(r#"{"action":"a","category":"system"}"#), "{request}");
    }
}

#[tokio::test]
async fn a_key_of_the_caller_is_used() {
    let (server, served) = scripted(vec![answer("201 Created", "", LOGGED)]).await;
    let client = client(server, Credential::Operator(Secret::from("tok")));
    client.once("mine").log_action(agent_id(), &action()).await.expect("succeeds");
    let asked = served.await.expect("one request");
    assert_eq!(header(&asked[0], "idempotency-key"), Some("mine"));
    assert_eq!(header(&asked[0], "authorization"), Some("Bearer tok"));
}

#[tokio::test]
async fn a_delete_is_sent_once() {
    let (server, served) = scripted(vec![problem(503, "database_unavailable", "retry-after: 0\r\n")]).await;
    let client = client(server, Credential::ApiKey(Secret::from("k")));
    let error = client.revoke_key(agent_id().uuid().into(), true).await.expect_err("is refused");
    assert_eq!(error.code(), Some(ErrorCode::DatabaseUnavailable));
    assert_eq!(error.retry_after(), Some(Duration::ZERO));
    let asked = served.await.expect("one request");
    assert_eq!(header(&asked[0], "idempotency-key"), None);
    assert!(asked[0].starts_with("DELETE") && asked[0].contains("?descendants=true "));
}

#[tokio::test]
async fn a_final_error_is_returned_at_once_with_its_problem() {
    let (server, served) = scripted(vec![problem(409, "name_taken", "")]).await;
    let client = client(server, Credential::Anonymous);
    let key = GenerateKey { name: "n".to_owned(), owner_wallet: None, owner_id: None };
    let error = client.generate_key(&key).await.expect_err("is refused");
    assert_eq!((error.status(), error.code()), (Some(409), Some(ErrorCode::NameTaken)));
    assert!(!error.is_transient());
    assert_eq!(served.await.expect("one request").len(), 1);
}

#[tokio::test]
async fn tries_end() {
    let busy = || problem(429, "rate_limited", "retry-after: 0\r\n");
    let (server, served) = scripted(vec![busy(), busy(), busy()]).await;
    let error = client(server, Credential::Anonymous).agent(agent_id()).await.expect_err("is refused");
    assert_eq!(error.code(), Some(ErrorCode::RateLimited));
    assert_eq!(served.await.expect("three requests").len(), 3);
    let (server, served) = scripted(vec![problem(503, "overloaded", "retry-after: 3600\r\n")]).await;
    let error = client(server, Credential::Anonymous).agent(agent_id()).await.expect_err("is refused");
    assert_eq!(error.retry_after(), Some(Duration::from_secs(3600)));
    assert_eq!(served.await.expect("one request").len(), 1);
}

#[tokio::test]
async fn pages_are_followed_by_their_cursor() {
    let link = "link: <https://public.example/api/keys?limit=1&cursor=a%2Bb>; rel=\"next\"\r\n";
    let (server, served) = scripted(vec![answer("200 OK", link, "[]"), answer("200 OK", "", "[]")]).await;
    let client = client(server, Credential::Anonymous);
    let query = ListQuery { limit: Some(1), ..ListQuery::default() };
    let page = client.keys(&query).await.expect("a page");
    assert_eq!(page.next.as_deref(), Some("a+b"));
    let last = client.keys(&query.after("a+b")).await.expect("a page");
    assert_eq!(last.next, None);
    let asked = served.await.expect("two requests");
    assert!(asked[1].starts_with("GET /api/keys?limit=1&cursor=a%2Bb HTTP/1.1"), "{}", asked[1]);
}

#[tokio::test]
async fn redirects_are_not_followed_and_strange_answers_are_named() {
    let elsewhere = answer("302 Found", "location: http://127.0.0.1:1/\r\n", "");
    let (server, served) = scripted(vec![elsewhere, answer("200 OK", "", "<html>")]).await;
    let client = client(server, Credential::ApiKey(Secret::from("k")));
    let error = client.agent(agent_id()).await.expect_err("is no agent");
    assert!(matches!(error, ClientError::BadAnswer { status: 302, .. }), "{error}");
    let error = client.agent(agent_id()).await.expect_err("is no agent");
    assert!(matches!(error, ClientError::BadAnswer { status: 200, .. }), "{error}");
    served.await.expect("two requests");
}

#[tokio::test]
async fn the_price_table_is_read_with_and_without_its_version() {
    let table = r#"{"m":{"input":1.5,"output":2}}"#;
    let wrapped = format!(r#"{{"version":"x","prices":{table}}}"#);
    let (server, served) = scripted(vec![answer("200 OK", "", table), answer("200 OK", "", &wrapped)]).await;
    let client = client(server, Credential::Anonymous);
    for _ in 0..2 {
        assert!(client.price_table().await.expect("a table").prices().contains_key("m"));
    }
    served.await.expect("two requests");
}

#[tokio::test]
async fn nothing_listens() {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let server = format!("http://{}", listener.local_addr().expect("an address"));
    drop(listener);
    let client = client(ServerUrl::parse(&server).expect("loopback"), Credential::Anonymous);
    let error = client.readyz().await.expect_err("nobody answers");
    assert!(matches!(error, ClientError::NoAnswer { sent: false, .. }), "{error:?}");
}

#[test]
fn a_credential_is_never_shown() {
    let server = ServerUrl::parse("https://app.example").expect("an address");
    let client = client(server, Credential::ApiKey(Secret::from("otonix_secret")));
    assert!(!format!("{client:?}").contains("otonix_secret"));
    let server = ServerUrl::parse("https://app.example").expect("an address");
    let credential = Credential::ApiKey(Secret::from("a\nb"));
    let bad = Client::new(ClientConfig { server, credential, retry: RetryPolicy::NEVER });
    assert!(matches!(bad, Err(ClientError::Unsendable("credential"))));
}
