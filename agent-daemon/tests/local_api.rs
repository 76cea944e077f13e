//! The local API of a real daemon whose server cannot be reached.

mod support;

use std::fs;
use std::io::{Read as _, Write as _};
use std::os::unix::fs::PermissionsExt as _;
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt as _;
use std::process::Command;
use std::time::{Duration, Instant};

use support::{Home, OFFLINE_ID, eventually, request};

#[test]
fn status_tells_how_things_are() {
    let home = Home::offline("");
    let daemon = home.start("");
    let answer = daemon.get("/v1/status").expect("an answer");
    assert_eq!(answer.status, 200);
    assert!(answer.head.contains("content-type: application/json"));
    let status = answer.body;
    assert_eq!(status["agentId"], OFFLINE_ID);
    assert_eq!(status["connected"], false);
    assert_eq!(status["agentProcess"], "none");
    assert_eq!(status["paymentsPaused"], false);
    for field in ["survivalTier", "credits", "funded", "model", "spool"] {
        assert!(!status[field].is_null(), "{field} in {status}");
    }
    for field in ["pending", "bytes", "damaged"] {
        assert!(status["spool"][field].is_u64(), "{field} in {status}");
    }
    assert!(status.as_object().expect("an object").contains_key("walletAddress"));
}

#[test]
fn what_is_accepted_survives_a_kill_and_a_key_is_used_once() {
    let home = Home::offline("");
    let daemon = home.start("");
    let key = [("Idempotency-Key", "k-1")];
    let body = r#"{"action":"one","category":"system"}"#;
    let first = daemon.post_keyed("/v1/actions", body, &key);
    assert_eq!(first.status, 202, "{first:?}");
    let usage = r#"{"model":"claude-opus-4-6","tokensIn":10,"tokensOut":5,"cost":1e-06}"#;
    assert_eq!(daemon.post("/v1/usage", usage).status, 202);
    let pending = daemon.status()["spool"]["pending"].as_u64().expect("a number");
    assert!(pending >= 2);
    daemon.kill();

    let daemon = home.start("");
    assert_eq!(daemon.status()["spool"]["pending"].as_u64(), Some(pending));
    let again = daemon.post_keyed("/v1/actions", body, &key);
    assert_eq!((again.status, again.id()), (202, first.id()));
    let other = daemon.post_keyed("/v1/actions", r#"{"action":"two","category":"system"}"#, &key);
    assert_eq!((other.status, other.code()), (409, "idempotency_key_reused"));
    let usage = daemon.post_keyed("/v1/usage", usage, &key);
    assert_eq!((usage.status, usage.code()), (409, "idempotency_key_reused"));
    assert_eq!(daemon.status()["spool"]["pending"].as_u64(), Some(pending), "nothing was recorded twice");
}

#[test]
fn errors_have_the_contracts_form() {
    let home = Home::offline("");
    let daemon = home.start("");
    let long = format!(r#"{{"action":"{}","category":"system"}}"#, "x".repeat(5000));
    let huge = format!(r#"{{"action":"x","category":"system","details":"{}"}}"#, "x".repeat(300_000));
    let deep = "[".repeat(100_000);
    let deep_field = format!(r#"{{"action":{}}}"#, "[".repeat(100_000));
    for (path, body, status, code) in [
        ("/v1/actions", "", 400, "invalid_json"),
        ("/v1/actions", "[]", 400, "invalid_json"),
        ("/v1/actions", r#"["a","b"]"#, 400, "invalid_json"),
        ("/v1/actions", "{", 400, "invalid_json"),
        ("/v1/actions", &deep, 400, "invalid_json"),
        ("/v1/actions", "{}", 400, "invalid_field"),
        ("/v1/actions", r#"{"action":1,"category":"system"}"#, 400, "invalid_field"),
        ("/v1/actions", r#"{"action":"","category":"system"}"#, 400, "invalid_field"),
        ("/v1/actions", r#"{"action":"a\u0000","category":"system"}"#, 400, "invalid_field"),
        ("/v1/actions", r#"{"action":"a","category":"no slug"}"#, 400, "invalid_field"),
        ("/v1/actions", r#"{"action":"a","category":"system","status":"maybe"}"#, 400, "invalid_field"),
        ("/v1/actions", &long, 400, "invalid_field"),
        ("/v1/actions", &huge, 413, "payload_too_large"),
        ("/v1/usage", r#"{"model":"m","tokensIn":-1}"#, 400, "invalid_field"),
        ("/v1/usage", r#"{"model":"m","tokensIn":1e400}"#, 400, "invalid_json"),
        ("/v1/usage", r#"{"model":"m","cost":-1}"#, 400, "invalid_field"),
        ("/v1/usage", r#"{"model":"m","cost":10001}"#, 400, "invalid_field"),
        (
            "/v1/usage",
            r#"{"model":"m","cost":1,"agentId":"0197a000-0000-7000-8000-000000000002"}"#,
            400,
            "unknown_link",
        ),
        ("/v1/nothing", "{}", 404, "no_route"),
        ("/v1/status", "{}", 405, "method_not_allowed"),
    ] {
        let answer = daemon.post(path, body);
        let shown: String = body.chars().take(60).collect();
        assert_eq!((answer.status, answer.code()), (status, code), "{path} {shown}: {answer:?}");
        assert!(answer.head.contains("content-type: application/problem+json"), "{answer:?}");
        assert_eq!(answer.body["error"], answer.body["detail"]);
        assert_eq!(answer.body["status"], status);
    }
    // One that announces too much is not waited for.
    let mut announced = UnixStream::connect(home.socket()).expect("connects");
    announced.set_read_timeout(Some(support::PATIENCE)).expect("a timeout");
    let head =
        "POST /v1/actions HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Length: 99999999999\r\n\r\n";
    announced.write_all(head.as_bytes()).expect("writes");
    let mut told = String::new();
    announced.read_to_string(&mut told).expect("reads");
    assert!(told.starts_with("HTTP/1.1 413 "), "{told}");
    let answer = daemon.post("/v1/actions", &deep_field);
    assert_eq!(answer.status, 400, "{answer:?}");
    let not_utf8 =
        request(&home.socket(), "POST", "/v1/actions", &[], b"{\"action\":\"\xff\"}").expect("an answer");
    assert_eq!(not_utf8.status, 400);
    let bad_key = [("Idempotency-Key", &*"k".repeat(129))];
    assert_eq!(daemon.post_keyed("/v1/actions", "{}", &bad_key).status, 400);
    let body = r#"{"action":"a","category":"system"}"#;
    let two_keys = [("Idempotency-Key", "a"), ("Idempotency-Key", "b")];
    assert_eq!(daemon.post_keyed("/v1/actions", body, &two_keys).status, 400);
    let answer = daemon.get("/v1/model?criticality=extreme").expect("an answer");
    assert_eq!((answer.status, answer.code()), (400, "invalid_query"));
    assert_eq!(daemon.status()["spool"]["pending"].as_u64(), Some(0));
}

#[test]
fn the_model_follows_configuration_and_question() {
    let home = Home::offline("model = 'own-model'\n---\n[tier.terminated]\nmodel = 'x'");
    let daemon = home.start("");
    let choice = daemon.get("/v1/model?criticality=high&maxLatencyMs=100000").expect("an answer");
    assert_eq!(choice.status, 200);
    assert!(choice.body["model"].is_string() && choice.body["reason"].is_string(), "{choice:?}");
    let progress = daemon.post("/v1/progress", "");
    assert_eq!(progress.status, 200);
}

#[test]
fn the_socket_serves_its_users_only() {
    let home = Home::offline("");
    let daemon = home.start("");
    let mode = |path| fs::metadata(path).expect("metadata").permissions().mode() & 0o777;
    assert_eq!(mode(home.socket()), 0o660);
    if !rustix::process::getuid().is_root() {
        return;
    }
    // Even when the file's mode lets it in, a stranger is told off.
    fs::set_permissions(home.socket(), fs::Permissions::from_mode(0o666)).expect("chmod");
    for dir in [home.path().to_owned(), home.state()] {
        fs::set_permissions(dir, fs::Permissions::from_mode(0o755)).expect("chmod");
    }
    let script = "import socket,sys\ns=socket.socket(socket.AF_UNIX)\ns.connect(sys.argv[1])\n\
                  s.send(b'GET /v1/status HTTP/1.1\\r\\nHost: x\\r\\nConnection: close\\r\\n\\r\\n')\nprint(s.recv(65536))";
    let answer = Command::new("python3")
        .args(["-c", script])
        .arg(home.socket())
        .uid(65_534)
        .gid(65_534)
        .output()
        .expect("python3");
    let text = String::from_utf8_lossy(&answer.stdout).into_owned();
    assert!(text.contains("403") && text.contains("forbidden"), "{text} {answer:?}");
    assert_eq!(daemon.get("/v1/status").expect("an answer").status, 200);
}

#[test]
fn one_daemon_per_state_directory_and_a_stale_socket_is_replaced() {
    let home = Home::offline("");
    let daemon = home.start("");
    let second = home.call(&["run"]);
    assert!(!second.status.success());
    assert!(String::from_utf8_lossy(&second.stderr).contains("another otonix-agent runs"), "{second:?}");
    assert_eq!(daemon.get("/v1/status").expect("an answer").status, 200);
    daemon.kill();
    assert!(home.socket().exists(), "a killed daemon leaves its socket");
    let daemon = home.start("");
    let (status, _) = daemon.stop();
    assert!(status.success());
    assert!(!home.socket().exists());
}

#[test]
fn too_many_or_slow_callers_do_not_stop_it() {
    let home = Home::offline("");
    let daemon = home.start("");
    let mut drips: Vec<UnixStream> = Vec::new();
    for _ in 0..60 {
        let mut drip = UnixStream::connect(home.socket()).expect("connects");
        drip.write_all(b"GET /v1/sta").expect("begins");
        drips.push(drip);
    }
    assert_eq!(daemon.get("/v1/status").expect("an answer").status, 200);
    for mut drip in drips {
        drip.set_read_timeout(Some(support::PATIENCE)).expect("a timeout");
        let mut rest = Vec::new();
        // Closed, with or without an answer; never left open.
        let _ = drip.read_to_end(&mut rest);
    }
}

#[test]
fn half_open_connections_keep_no_honest_caller_waiting() {
    let home = Home::offline("");
    let daemon = home.start("");
    let mut events = daemon.events();
    assert!(events.next().expect("a line").contains("200"));
    let half = |text: &str| -> Vec<UnixStream> {
        let connect = |_| {
            let mut stream = UnixStream::connect(home.socket()).expect("connects");
            stream.write_all(text.as_bytes()).expect("begins");
            stream
        };
        (0..150).map(connect).collect()
    };
    for text in
        ["", "POST /v1/act", "POST /v1/actions HTTP/1.1\r\nHost: x\r\nContent-Length: 50\r\n\r\n{\"action\""]
    {
        let held = half(text);
        for n in 0..20 {
            let began = Instant::now();
            daemon.log(&format!("honest {n}"));
            assert!(began.elapsed() < Duration::from_secs(4), "{text:?}: {:?}", began.elapsed());
        }
        assert!(home.call(&["status"]).status.success());
        drop(held);
    }
    // Who listens to events is at work, and stays.
    assert!(events.any(|line| line.starts_with("event: standing")));
}

#[test]
fn what_is_no_request_is_told_so() {
    let home = Home::offline("");
    let daemon = home.start("");
    for (sent, status, code) in [
        ("nonsense\r\n\r\n".to_owned(), 400, "bad_request"),
        ("GET /v1/status HTTP/1.1\r\nno colon here\r\n\r\n".to_owned(), 400, "bad_request"),
        ("POST /v1/actions HTTP/1.1\r\nContent-Length: x\r\n\r\n".to_owned(), 400, "bad_request"),
        (format!("GET /v1/status HTTP/1.1\r\nX: {}\r\n\r\n", "x".repeat(40_000)), 431, "payload_too_large"),
    ] {
        let mut stream = UnixStream::connect(home.socket()).expect("connects");
        // It may be refused before it has sent everything.
        let _ = stream.write_all(sent.as_bytes());
        let mut answer = Vec::new();
        let _ = stream.read_to_end(&mut answer);
        let answer = String::from_utf8(answer).expect("text");
        let (head, body) = answer.split_once("\r\n\r\n").unwrap_or_else(|| panic!("{sent:.30}: {answer}"));
        assert!(head.starts_with(&format!("HTTP/1.1 {status} ")), "{sent:.30}: {head}");
        assert!(head.contains("content-type: application/problem+json"), "{head}");
        let problem: serde_json::Value = serde_json::from_str(body).expect("a problem");
        assert_eq!((&problem["code"], &problem["status"]), (&code.into(), &status.into()));
    }
    assert_eq!(daemon.get("/v1/status").expect("an answer").status, 200);
}

#[test]
fn errors_name_the_field_and_no_type() {
    let home = Home::offline("---\n[pay]\nallow_shared_uid = true\n");
    let daemon = home.start("");
    for (path, body, detail) in [
        ("/v1/actions", r#"{"category":"system"}"#, "`action` is needed"),
        ("/v1/actions", r#"{"action":["a"],"category":"system"}"#, "`action` must be a text, not a list"),
        (
            "/v1/usage",
            r#"{"model":"m","tokensIn":"7"}"#,
            "`tokensIn` must be a whole number in its range, not a text",
        ),
        (
            "/v1/pay",
            r#"{"url":"http://127.0.0.1:9","maxAmount":1,"headers":[]}"#,
            "`headers` must be an object, not a list",
        ),
    ] {
        let answer = daemon.post(path, body);
        assert_eq!((answer.status, answer.body["detail"].as_str()), (400, Some(detail)), "{path} {body}");
    }
    let packed = daemon.post_keyed("/v1/actions", "{}", &[("Content-Encoding", "gzip")]);
    assert_eq!((packed.status, packed.code()), (415, "unsupported_media_type"));
}

#[test]
fn log_and_usage_and_status_speak_to_the_daemon() {
    let home = Home::offline("");
    for arguments in
        [&["log", "x"][..], &["usage", "--model", "m", "--tokens-in", "1", "--tokens-out", "1"], &["status"]]
    {
        let output = home.call(arguments);
        assert_eq!(output.status.code(), Some(1));
        assert!(String::from_utf8_lossy(&output.stderr).contains("no daemon is running"), "{output:?}");
    }
    let daemon = home.start("");
    let first = home.call(&["log", "said hello", "--category", "communication", "--idempotency-key", "a"]);
    assert!(first.status.success(), "{first:?}");
    let second = home.call(&["log", "said hello", "--category", "communication", "--idempotency-key", "a"]);
    assert_eq!(first.stdout, second.stdout);
    let refused = home.call(&["log", "x", "--category", "not a slug"]);
    assert_eq!(refused.status.code(), Some(1));
    let usage = home.call(&[
        "usage",
        "--model",
        "claude-opus-4-6",
        "--tokens-in",
        "5",
        "--tokens-out",
        "1",
        "--cost",
        "0.5",
    ]);
    assert!(usage.status.success(), "{usage:?}");
    let status = home.call(&["status", "--json"]);
    let status: serde_json::Value = serde_json::from_slice(&status.stdout).expect("JSON");
    assert_eq!(status["agentId"], OFFLINE_ID);
    let people = home.call(&["status"]);
    assert!(String::from_utf8_lossy(&people.stdout).contains("not connected"), "{people:?}");
    drop(daemon);
}

#[test]
fn the_events_begin_with_the_standing_and_end_with_the_shutdown() {
    let home = Home::offline("");
    let daemon = home.start("");
    let mut events = daemon.events();
    let mut wait_for =
        |wanted: &str| events.find(|line| line.starts_with(wanted)).unwrap_or_else(|| panic!("no {wanted}"));
    wait_for("event: standing");
    let data = wait_for("data: ");
    assert!(data.contains("survivalTier") && data.contains("optionalWork"), "{data}");
    daemon.signal("TERM");
    wait_for("event: shutdown");
    // And the stream ends with the daemon.
    let mut daemon = daemon;
    assert!(daemon.wait().success());
    assert_eq!(events.find(|line| line.starts_with("event:")), None);
    eventually("the socket is gone", || (!home.socket().exists()).then_some(()));
}
