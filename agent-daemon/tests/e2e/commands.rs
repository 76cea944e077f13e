//! Commands: the closed list, each executed once, nothing else.

use serde_json::{Value, json};

use super::registered;
use super::support::server::Server;
use super::support::{alive, eventually};

#[test]
fn every_command_does_what_it_says() {
    let server = Server::start();
    let (home, id) = registered(&server);
    let daemon = home.start("echo $$ > pid; SECRET_OF_MINE=hidden exec sleep 600");
    daemon.until("it runs", |status| status["connected"] == true && status["agentProcess"] == "running");
    let run = |kind: &str, args: Value| -> (bool, String) {
        let command = server.command(&id, kind, args);
        (command["status"] == "done", command["result"].as_str().unwrap_or_default().to_owned())
    };

    let first = home.line("pid");
    assert!(run("restart_agent", json!({})).0);
    assert!(!alive(&first));
    eventually("a new process", || (home.line("pid") != first).then_some(()));

    assert!(run("stop_agent", json!({})).0);
    daemon.until("it is stopped", |status| status["agentProcess"] == "stopped");
    assert!(!run("restart_agent", json!({})).0, "stopped means stopped");
    // Also for the next life of the daemon.
    daemon.kill();
    let daemon = home.start("echo $$ > pid; exec sleep 600");
    daemon.until("it is connected", |status| status["connected"] == true);
    assert_eq!(daemon.status()["agentProcess"], "stopped");
    assert!(run("start_agent", json!({})).0);
    daemon.until("it runs", |status| status["agentProcess"] == "running");

    assert!(run("set_model", json!({ "model": "another-model" })).0);
    assert_eq!(daemon.status()["model"], "another-model");
    assert!(run("set_interval", json!({ "seconds": 30 })).0);

    assert!(run("pause_payments", json!({})).0);
    assert_eq!(daemon.status()["paymentsPaused"], true);
    assert!(run("resume_payments", json!({})).0);
    assert_eq!(daemon.status()["paymentsPaused"], false);
    assert!(!run("sweep", json!({})).0);

    let (done, text) = run("collect_diagnostics", json!({}));
    assert!(done);
    let diagnostics: Value = serde_json::from_str(&text).expect("JSON");
    assert_eq!(diagnostics["process"]["state"], "running");
    for hidden in ["hidden", "SECRET", "PATH", "api-key", "otonix_", "sleep 600"] {
        assert!(!text.contains(hidden), "{hidden} in {text}");
    }
}

#[test]
fn a_local_pause_is_not_lifted_from_afar() {
    let server = Server::start();
    let (home, id) = registered(&server);
    let daemon = home.start_with("", |command| {
        command.env("OTONIX_PAY_PAUSED", "true");
    });
    daemon.until("it is connected", |status| status["connected"] == true);
    let command = server.command(&id, "resume_payments", json!({}));
    assert_eq!(command["status"], "failed");
    assert_eq!(daemon.status()["paymentsPaused"], true);
}
