//! A real control plane and real daemons: what a user sees.
//!
//! Uses the binary that `OTONIX_CONTROL_PLANE_BIN` names, else the one beside the daemon's, which is built when absent.

#[path = "../support/mod.rs"]
mod support;

mod commands;
mod demo;
mod enrol;
mod init;
mod living;

use serde_json::Value;
use support::Home;
use support::server::Server;

/// A home with an initialised agent, and the agent's id.
pub fn registered(server: &Server) -> (Home, String) {
    let home = Home::new();
    let output = home
        .command()
        .env("OTONIX_API_KEY", server.key())
        .args(["init", "--server", &server.url(), "--name", "Alpha", "--heartbeat-interval", "5"])
        .output()
        .expect("runs");
    assert!(output.status.success(), "{output:?}");
    let id = agent_id(&home);
    (home, id)
}

/// The id in `agent.toml`.
pub fn agent_id(home: &Home) -> String {
    let text = std::fs::read_to_string(home.state().join("agent.toml")).expect("agent.toml");
    let line = text.lines().find(|line| line.starts_with("id = ")).expect("an id");
    line.trim_start_matches("id = ").trim_matches(['"', '\'']).to_owned()
}

/// The texts of an agent's actions, oldest first.
pub fn actions(server: &Server, id: &str) -> Vec<String> {
    let text = |action: &Value| action["action"].as_str().unwrap_or_default().to_owned();
    server.actions(id).iter().rev().map(text).collect()
}
