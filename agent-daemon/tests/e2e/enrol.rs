//! Enrolment from a token alone, and a child born through the local socket that becomes a daemon of its own.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;

use serde_json::json;

use super::support::Home;
use super::support::server::Server;
use super::{agent_id, registered};

/// A machine that has nothing but a token.
fn enrolled(server: &Server, token: &str) -> Home {
    let home = Home::new();
    let output = home
        .command()
        .env("OTONIX_ENROL", token)
        .args(["init", "--server", &server.url()])
        .output()
        .expect("runs");
    assert!(output.status.success(), "{output:?}");
    home
}

#[test]
fn a_machine_with_a_token_alone_becomes_an_agent_under_the_laws() {
    let dir = tempfile::tempdir().expect("a directory");
    let laws = dir.path().join("laws.txt");
    fs::write(&laws, "Never harm.\n").expect("our directory");
    let server = Server::start_with(&["--laws-file", laws.to_str().expect("a text")]);
    let body = json!({"name": "scout", "model": "m-7", "genesisPrompt": "look around"});
    let made = server.call("POST", "/api/enrolment-tokens", Some(&body));
    let token = made["token"].as_str().expect("a token");
    let home = enrolled(&server, token);
    let id = agent_id(&home);
    let agent = server.agent(&id);
    assert_eq!((&agent["name"], &agent["model"]), (&json!("scout"), &json!("m-7")), "{agent}");
    assert_eq!(agent["walletProven"], true, "{agent}");
    let read = |name: &str| fs::read_to_string(home.state().join(name)).expect(name);
    assert_eq!(
        (read("laws.txt"), read("genesis.txt")),
        ("Never harm.\n".to_owned(), "look around".to_owned())
    );
    let mode = fs::metadata(home.state().join("api-key")).expect("api-key").permissions().mode() & 0o777;
    assert_eq!(mode, 0o600);
    // The token is worth nothing on this disk, and is not on it.
    for file in fs::read_dir(home.state()).expect("list").flatten() {
        let text = fs::read(file.path()).unwrap_or_default();
        assert!(!String::from_utf8_lossy(&text).contains(token), "{:?}", file.path());
    }
    // A repeat, by the token or without it, changes nothing.
    let key = read("api-key");
    for more in [&["init", "--enrol", token][..], &["init"]] {
        let again = home.call(more);
        assert!(again.status.success(), "{again:?}");
        assert_eq!((agent_id(&home), read("api-key")), (id.clone(), key.clone()));
    }
    let script = "printf '%s\\n' \"$(cat $OTONIX_LAWS_FILE) $(cat $OTONIX_GENESIS_PROMPT_FILE)\" >born; \
                  sleep 600";
    let daemon = home.start(script);
    daemon.until("connected", |status| status["connected"] == true);
    assert_eq!(home.line("born"), "Never harm. look around");
}

#[test]
fn a_wallet_that_enrolled_gets_another_key_when_its_own_is_lost() {
    let server = Server::start();
    let made = server.call("POST", "/api/enrolment-tokens", Some(&json!({"tag": "herd"})));
    let token = made["token"].as_str().expect("a token");
    let home = enrolled(&server, token);
    let (id, key) = (agent_id(&home), fs::read_to_string(home.state().join("api-key")).expect("a key"));
    // The answer came, and the machine stopped before anything but the wallet was on disk.
    fs::remove_file(home.state().join("api-key")).expect("remove");
    fs::remove_file(home.state().join("agent.toml")).expect("remove");
    let again = home.call(&["init", "--server", &server.url(), "--enrol", token]);
    assert!(again.status.success(), "{again:?}");
    assert_eq!(agent_id(&home), id);
    assert_ne!(fs::read_to_string(home.state().join("api-key")).expect("a key"), key);
    let daemon = home.start("");
    daemon.until("connected", |status| status["connected"] == true);
    let other = Home::new();
    let refused = other.call(&["init", "--server", &server.url(), "--enrol", token]);
    assert_eq!(refused.status.code(), Some(1));
    assert!(String::from_utf8_lossy(&refused.stderr).contains("enrolment_token_used"), "{refused:?}");
}

#[test]
fn run_enrols_by_itself_when_the_environment_has_a_token() {
    let server = Server::start();
    let made = server.call("POST", "/api/enrolment-tokens", Some(&json!({})));
    let token = made["token"].as_str().expect("a token").to_owned();
    let home = Home::new();
    let daemon = home.start_with("", |command| {
        command.env("OTONIX_ENROL", token).env("OTONIX_SERVER", server.url());
    });
    daemon.until("connected", |status| status["connected"] == true);
}

#[test]
fn an_agent_bears_a_child_through_its_socket() {
    let server = Server::start();
    let (home, id) = registered(&server);
    server.grant(&id, "100");
    let daemon = home.start("");
    daemon.until("credits", |status| status["credits"] == json!(100));
    let body = r#"{"name": "child", "budget": "25.5", "genesisPrompt": "be brief"}"#;
    let key = [("Idempotency-Key", "birth-1")];
    let born = daemon.post_keyed("/v1/children", body, &key);
    assert_eq!(born.status, 201, "{born:?}");
    assert_eq!(born.body["agent"]["parentId"], json!(id));
    let again = daemon.post_keyed("/v1/children", body, &key);
    assert_eq!((again.status, &again.body["agent"]["id"]), (201, &born.body["agent"]["id"]));
    assert!(again.body["enrolmentToken"].is_null(), "{again:?}");
    daemon.until("the budget is gone", |status| status["credits"] == json!(74.5));
    let dear = daemon.post("/v1/children", r#"{"name": "other", "budget": 75}"#);
    assert_eq!((dear.status, dear.code()), (409, "insufficient_credits"));
    let wrong = daemon.post("/v1/children", r#"{"name": "other"}"#);
    assert_eq!(wrong.status, 400, "{wrong:?}");
    // The child's machine lives by the token, and bears a child with the key that it brought.
    let token = born.body["enrolmentToken"].as_str().expect("a token");
    let nursery = enrolled(&server, token);
    let child = nursery.start("");
    let status = child.until("connected", |status| status["connected"] == true);
    assert_eq!((&status["agentId"], &status["credits"]), (&born.body["agent"]["id"], &json!(25.5)));
    let grandchild = child.post("/v1/children", r#"{"name": "grandchild", "budget": 5}"#);
    assert_eq!(grandchild.status, 201, "{grandchild:?}");
    assert_eq!(server.agent(&id)["childrenCount"], 1);
}
