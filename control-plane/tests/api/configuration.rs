//! Options: flags over environment over file; what is wrong ends the start with a reason.

use std::os::unix::fs::PermissionsExt as _;

use chrono::{DateTime, Utc};
use serde_json::json;

use crate::support::{Server, Store, on_each_store};

on_each_store!(
    a_flag_wins_over_the_environment_over_the_file,
    secrets_can_come_from_files,
    configuration_errors_end_the_start,
    other_addresses_are_guarded,
    a_vendor_token_makes_guarded_the_default,
);

/// The grace of a new agent, in seconds.
async fn grace(server: &Server) -> i64 {
    let agent = server.agent("a").await;
    let shown = server.look(&agent).await;
    let time =
        |field: &str| -> DateTime<Utc> { shown[field].as_str().expect("a time").parse().expect("a time") };
    (time("graceUntil") - time("createdAt")).num_seconds()
}

async fn a_flag_wins_over_the_environment_over_the_file(store: Store) {
    let dir = tempfile::tempdir().expect("a directory");
    let file = dir.path().join("otonix.toml");
    std::fs::write(&file, "funding-grace = 100\ntiers = \"500/100/10\"\n").expect("our directory");
    let with_file = async || Server::with(store).await.arg("--config", file.to_str().expect("a path"));
    let server = with_file().await.start().await;
    assert_eq!(grace(&server).await, 100);
    let agent = server.agent("b").await;
    assert_eq!(server.grant(&agent, "99").await["survivalTier"], "critical", "the file's tiers");
    let server = with_file().await.env("OTONIX_FUNDING_GRACE", "200").start().await;
    assert_eq!(grace(&server).await, 200);
    let server =
        with_file().await.env("OTONIX_FUNDING_GRACE", "200").arg("--funding-grace", "300").start().await;
    assert_eq!(grace(&server).await, 300);
    let server = Server::with(store).await.env("OTONIX_CONFIG", file.to_str().expect("a path")).start().await;
    assert_eq!(grace(&server).await, 100);
}

async fn secrets_can_come_from_files(store: Store) {
    let dir = tempfile::tempdir().expect("a directory");
    let file = dir.path().join("token");
    let token = "a-token-of-the-operators-own-choice";
    std::fs::write(&file, format!("{token}\n")).expect("our directory");
    for options in [
        Server::with(store).await.arg("--operator-token-file", file.to_str().expect("a path")),
        Server::with(store).await.env("OTONIX_OPERATOR_TOKEN_FILE", file.to_str().expect("a path")),
        Server::with(store).await.env("OTONIX_OPERATOR_TOKEN", token),
    ] {
        let server = options.guarded().operator(token).start().await;
        server.as_operator("GET", "/api/keys").await.ok(200);
        server.get("/api/keys").operator("another").await.refused(401, "operator_required");
        assert!(!server.log().contains(token));
    }
    let server = Server::start(store).await;
    let mode =
        server.data_dir().join("operator-token").metadata().expect("made at the first start").permissions();
    assert_eq!(mode.mode() & 0o777, 0o600);
    let first = server.operator.clone();
    let mut server = server;
    server.crash().await;
    let again = std::fs::read_to_string(server.data_dir().join("operator-token")).expect("still there");
    assert_eq!(again.trim(), first);
    assert!(!server.log().contains(&first));
}

async fn configuration_errors_end_the_start(store: Store) {
    let mut server = Server::start(store).await;
    server.stop().await;
    assert!(server.subcommand("migrate").status.success());
    assert!(server.subcommand("check-config").status.success());
    let refused = |args: &[&str]| {
        let output = server.run_with(args);
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(!output.status.success(), "{args:?}");
        assert!(!said.trim().is_empty(), "{args:?}: says why");
        assert!(!said.contains("panicked"), "{args:?}: {said}");
    };
    for args in [
        &["check-config", "--tiers", "1/10/50"][..],
        &["check-config", "--mode", "ajar"],
        &["check-config", "--listen", "nowhere"],
        &["serve", "--listen", "0.0.0.0:0", "--mode", "open"],
        &["serve", "--no-such-flag"],
    ] {
        refused(args);
    }
}

async fn other_addresses_are_guarded(store: Store) {
    let server = Server::with(store).await.listen("0.0.0.0:0").start().await;
    server.post("/api/keys/generate").json(json!({"name": "x"})).await.refused(401, "missing_key");
    server.get("/api/keys").await.refused(401, "missing_key");
    let key = server.key("k").await;
    assert_eq!(server.get("/api/keys").key(&key).await.list().len(), 1);
}

async fn a_vendor_token_makes_guarded_the_default(store: Store) {
    let server = Server::with(store).await.env("OTONIX_VERCEL_TOKEN", "x").start().await;
    server.get("/api/keys").await.refused(401, "missing_key");
    let server =
        Server::with(store).await.env("OTONIX_VERCEL_TOKEN", "x").arg("--mode", "open").start().await;
    server.get("/api/keys").await.ok(200);
}
