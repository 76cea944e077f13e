//! `init`: the wallet, the registration, the files.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;

use super::support::Home;
use super::support::server::Server;
use super::{agent_id, registered};

#[test]
fn init_makes_a_proven_wallet_and_repeats_change_nothing() {
    let server = Server::start();
    let (home, id) = registered(&server);
    for name in ["agent.toml", "api-key", "keystore.json", "wallet.passphrase"] {
        let mode = fs::metadata(home.state().join(name)).expect(name).permissions().mode() & 0o777;
        assert_eq!(mode, 0o600, "{name}");
    }
    assert_eq!(fs::metadata(home.state()).expect("state").permissions().mode() & 0o777, 0o700);
    let agent = server.agent(&id);
    assert_eq!(agent["walletProven"], true, "{agent}");
    assert_eq!(agent["heartbeatInterval"], 5);

    let read = |name: &str| fs::read_to_string(home.state().join(name)).expect(name);
    let before = [read("agent.toml"), read("keystore.json"), read("api-key")];
    let again = home.call(&["init"]);
    assert!(again.status.success(), "{again:?}");
    assert_eq!([read("agent.toml"), read("keystore.json"), read("api-key")], before);
    assert_eq!(agent_id(&home), id);

    let other = home.call(&["init", "--name", "Beta"]);
    assert_eq!(other.status.code(), Some(1));
    assert!(String::from_utf8_lossy(&other.stderr).contains("belongs to the agent Alpha"), "{other:?}");
}

#[test]
fn a_lost_configuration_finds_the_same_agent_and_wallet() {
    let server = Server::start();
    let (home, id) = registered(&server);
    let wallet = server.agent(&id)["walletAddress"].clone();
    fs::remove_file(home.state().join("agent.toml")).expect("remove");
    let again = home.call(&["init", "--server", &server.url(), "--name", "Alpha"]);
    assert!(again.status.success(), "{again:?}");
    assert_eq!(agent_id(&home), id);
    assert_eq!(server.agent(&id)["walletAddress"], wallet);
}

#[test]
fn init_refuses_what_would_give_the_key_away_or_lose_the_wallet() {
    let home = Home::new();
    let key = "otonix_000000000000000000000000000000000000000000000000";
    let plain = home.call(&["init", "--server", "http://192.0.2.1", "--api-key", key, "--name", "x"]);
    assert_eq!(plain.status.code(), Some(1));
    assert!(String::from_utf8_lossy(&plain.stderr).contains("https"), "{plain:?}");
    let nowhere = home.call(&["init", "--server", "http://127.0.0.1:9", "--api-key", key, "--name", "x"]);
    assert_eq!(nowhere.status.code(), Some(1), "{nowhere:?}");
    assert!(!home.state().join("agent.toml").exists());
    assert!(home.state().join("keystore.json").exists(), "the wallet is kept before anybody hears of it");
    fs::remove_file(home.state().join("wallet.passphrase")).expect("remove");
    let lost = home.call(&["init", "--server", "http://127.0.0.1:9", "--api-key", key, "--name", "x"]);
    assert!(String::from_utf8_lossy(&lost.stderr).contains("no passphrase"), "{lost:?}");
    let run = home.call(&["run", "--api-key", key]);
    assert_eq!(run.status.code(), Some(1));
    assert!(String::from_utf8_lossy(&run.stderr).contains("init"), "{run:?}");
}

#[test]
fn run_registers_by_itself_when_the_environment_says_as_whom() {
    let server = Server::start();
    let home = Home::new();
    let daemon = home.start_with("", |command| {
        command
            .env("OTONIX_API_KEY", server.key())
            .env("OTONIX_NAME", "Contained")
            .env("OTONIX_SERVER", server.url());
    });
    daemon.until("connected", |status| status["connected"] == true);
    assert_eq!(server.agent(&agent_id(&home))["name"], "Contained");
}

#[test]
fn an_empty_key_is_named() {
    let home = Home::new();
    let output = home.command().args(["init", "--name", "A", "--api-key", ""]).output().expect("runs");
    assert_eq!(output.status.code(), Some(1));
    assert!(String::from_utf8_lossy(&output.stderr).contains("OTONIX_API_KEY is empty"), "{output:?}");
}

#[test]
fn doctor_tells_what_is_wrong() {
    let mut server = Server::start();
    let (home, _) = registered(&server);
    let well = home.call(&["doctor"]);
    assert!(well.status.success(), "{}", String::from_utf8_lossy(&well.stdout));
    assert!(String::from_utf8_lossy(&well.stdout).contains("payments asked for by it are off"));
    fs::set_permissions(home.state().join("api-key"), fs::Permissions::from_mode(0o644)).expect("chmod");
    server.kill();
    let ill = home.call(&["doctor"]);
    assert_eq!(ill.status.code(), Some(1));
    let text = String::from_utf8_lossy(&ill.stdout).into_owned();
    assert!(text.contains("others can read") && text.contains("check network"), "{text}");
}
