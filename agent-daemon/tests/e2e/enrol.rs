//! Enrolment from a token alone, and a child born through the local socket that becomes a daemon of its own.

use std::fs;
use std::io::{Read as _, Write as _};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::os::unix::fs::PermissionsExt as _;
use std::sync::atomic::{AtomicBool, Ordering::SeqCst};
use std::sync::mpsc::{Receiver, Sender};
use std::sync::{Arc, Mutex};

use serde_json::json;

use super::support::server::Server;
use super::support::{self, Home};
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

/// A network between daemon and server that loses the answers to births from when it is told to.
struct Network {
    url: String,
    server: Arc<Mutex<String>>,
    lose: Arc<AtomicBool>,
    lost: Receiver<()>,
}

impl Network {
    fn new() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").expect("binds");
        let url = format!("http://{}", listener.local_addr().expect("an address"));
        let (server, lose) = (Arc::new(Mutex::new(String::new())), Arc::new(AtomicBool::new(false)));
        let (tell, lost) = std::sync::mpsc::channel();
        let (to, armed) = (Arc::clone(&server), Arc::clone(&lose));
        std::thread::spawn(move || {
            for client in listener.incoming().flatten() {
                let address = to.lock().expect("no panic while held").clone();
                let Ok(upstream) = TcpStream::connect(address.trim_start_matches("http://")) else {
                    continue;
                };
                carry(client, upstream, &armed, &tell);
            }
        });
        Self { url, server, lose, lost }
    }
}

/// Carries both ways until either ends; from a birth on nothing comes back when that is armed.
fn carry(client: TcpStream, server: TcpStream, armed: &Arc<AtomicBool>, tell: &Sender<()>) {
    let deaf = Arc::new(AtomicBool::new(false));
    let (mut from, mut to) = (client.try_clone().expect("a socket"), server.try_clone().expect("a socket"));
    let (armed, hears_no_more) = (Arc::clone(armed), Arc::clone(&deaf));
    std::thread::spawn(move || {
        let mut part = [0; 16_384];
        while let Ok(length @ 1..) = from.read(&mut part) {
            let is_birth = part[..length].windows(9).any(|nine| nine == b"/children");
            if is_birth && armed.load(SeqCst) {
                hears_no_more.store(true, SeqCst);
            }
            if to.write_all(&part[..length]).is_err() {
                break;
            }
        }
        let _closed_already = to.shutdown(Shutdown::Both);
    });
    let (mut from, mut to, tell) = (server, client, tell.clone());
    std::thread::spawn(move || {
        let mut part = [0; 16_384];
        while let Ok(length @ 1..) = from.read(&mut part) {
            if deaf.load(SeqCst) {
                let _nobody_waits = tell.send(());
            } else if to.write_all(&part[..length]).is_err() {
                break;
            }
        }
        let _closed_already = to.shutdown(Shutdown::Both);
    });
}

#[test]
fn a_birth_whose_answer_is_lost_with_the_daemon_is_one_birth() {
    let network = Network::new();
    let server = Server::start_with(&["--public-url", &network.url]);
    *network.server.lock().expect("no panic while held") = server.url();
    let home = Home::new();
    let made = home
        .command()
        .env("OTONIX_API_KEY", server.key())
        .args(["init", "--server", &network.url, "--name", "parent", "--heartbeat-interval", "5"])
        .output()
        .expect("runs");
    assert!(made.status.success(), "{made:?}");
    let id = agent_id(&home);
    server.grant(&id, "100");
    let daemon = home.start("");
    daemon.until("credits", |status| status["credits"] == json!(100));
    let body = r#"{"name": "child", "budget": 30}"#;
    let key = [("Idempotency-Key", "birth-1")];
    network.lose.store(true, SeqCst);
    let socket = home.socket();
    let asking = std::thread::spawn(move || {
        support::request(&socket, "POST", "/v1/children", &[("Idempotency-Key", "birth-1")], body.as_bytes())
    });
    // The server has answered; the daemon never hears it.
    network.lost.recv_timeout(support::PATIENCE).expect("the server answers");
    daemon.kill();
    let _no_answer = asking.join().expect("it does not panic");
    network.lose.store(false, SeqCst);
    let daemon = home.start("");
    daemon.until("connected", |status| status["connected"] == true);
    let born = daemon.post_keyed("/v1/children", body, &key);
    let again = daemon.post_keyed("/v1/children", body, &key);
    assert_eq!((born.status, again.status), (201, 201), "{born:?} {again:?}");
    assert_eq!(born.body["agent"]["id"], again.body["agent"]["id"]);
    // The token was in the answer that was lost; the owner makes another one for the child.
    assert_eq!((&born.body["enrolmentToken"], &born.body["secretShown"]), (&json!(null), &json!(true)));
    let other = daemon.post_keyed("/v1/children", r#"{"name": "other", "budget": 30}"#, &key);
    assert_eq!((other.status, other.code()), (409, "idempotency_key_reused"), "{other:?}");
    let parent = server.agent(&id);
    assert_eq!((&parent["childrenCount"], &parent["credits"]), (&json!(1), &json!(70)));
}
