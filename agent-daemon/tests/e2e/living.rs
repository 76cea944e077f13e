//! Living: what the agent did arrives once, whatever is killed; its process lives by its credits.

use std::collections::BTreeMap;
use std::time::Duration;

use super::support::server::Server;
use super::support::{alive, eventually};
use super::{actions, registered};

#[test]
fn what_was_accepted_arrives_once_through_kills_of_both_sides() {
    for transport in ["grpc", "rest"] {
        let mut server = Server::start();
        let (home, id) = registered(&server);
        let mut logged = Vec::new();
        for round in 0..6 {
            let daemon = home.start_with("", |command| {
                command.env("OTONIX_LINK_TRANSPORT", transport);
            });
            if round % 3 == 1 {
                server.kill();
            }
            for number in 0..20 {
                let action = format!("{round}-{number}");
                daemon.log(&action);
                logged.push(action);
            }
            std::thread::sleep(Duration::from_millis(37 * round));
            daemon.kill();
            if round % 3 == 1 {
                server.again();
            }
        }
        let daemon = home.start_with("", |command| {
            command.env("OTONIX_LINK_TRANSPORT", transport);
        });
        daemon.until("everything is sent", |status| {
            status["connected"] == true && status["spool"]["pending"].as_u64() == Some(0)
        });
        let mut counts: BTreeMap<String, u32> = BTreeMap::new();
        for action in actions(&server, &id) {
            *counts.entry(action).or_default() += 1;
        }
        for action in &logged {
            assert_eq!(counts.get(action), Some(&1), "{transport}: {action}");
        }
    }
}

#[test]
fn the_process_lives_by_its_credits() {
    let server = Server::start();
    let (home, id) = registered(&server);
    let daemon = home.start("echo $OTONIX_SURVIVAL_TIER > tier; echo $$ > pid; while :; do sleep 0.2; done");
    daemon.until("it runs in its grace", |status| {
        status["connected"] == true && status["agentProcess"] == "running"
    });
    server.grant(&id, "5");
    daemon.until("it is funded", |status| status["funded"] == true && status["survivalTier"] == "critical");
    let first = home.line("pid");

    let spent =
        daemon.post("/v1/usage", r#"{"model":"claude-opus-4-6","tokensIn":1,"tokensOut":1,"cost":"4.5"}"#);
    assert_eq!(spent.status, 202);
    // By its own spending the daemon knows at once; the server agrees.
    daemon.until("it is stopped", |status| {
        status["survivalTier"] == "terminated" && status["agentProcess"] == "stopped"
    });
    assert!(!alive(&first));
    eventually("the server agrees", || (server.agent(&id)["survivalTier"] == "terminated").then_some(()));

    server.grant(&id, "30");
    daemon.until("it is started again", |status| {
        status["survivalTier"] == "conservation" && status["agentProcess"] == "running"
    });
    eventually("a new process", || (home.line("pid") != first).then_some(()));
    assert_eq!(home.line("tier"), "conservation");
    eventually("it is active", || (server.agent(&id)["status"] == "active").then_some(()));
}

#[test]
fn offline_it_goes_on_with_what_it_last_knew() {
    let mut server = Server::start();
    let (home, id) = registered(&server);
    server.grant(&id, "60");
    let daemon = home.start("");
    daemon.until("it is full", |status| status["survivalTier"] == "full");
    daemon.stop();
    server.kill();
    let daemon = home.start("echo $OTONIX_SURVIVAL_TIER > tier; sleep 60");
    let status = daemon.until("it runs", |status| status["agentProcess"] == "running");
    assert_eq!((&status["survivalTier"], &status["connected"]), (&"full".into(), &false.into()));
    assert_eq!(home.line("tier"), "full");
    // Spending lowers it, silence does not.
    let spent = daemon.post("/v1/usage", r#"{"model":"m","tokensIn":1,"tokensOut":1,"cost":15}"#);
    assert_eq!(spent.status, 202);
    daemon.until("it is lower", |status| status["survivalTier"] == "conservation");
    daemon.log("done offline");
    server.again();
    eventually("it arrives", || actions(&server, &id).contains(&"done offline".to_owned()).then_some(()));
    let agent = eventually("the debit arrives", || {
        Some(server.agent(&id)).filter(|agent| agent["credits"].as_f64() == Some(45.0))
    });
    assert_eq!(agent["survivalTier"], "conservation");
}

#[test]
fn one_that_was_killed_stays_stopped() {
    let server = Server::start();
    let (home, id) = registered(&server);
    let daemon = home.start("echo $$ > pid; sleep 60");
    daemon.until("it runs", |status| status["connected"] == true && status["agentProcess"] == "running");
    let pid = home.line("pid");
    server.call("POST", &format!("/api/agents/{id}/kill"), Some(&serde_json::json!({ "reason": "test" })));
    daemon.until("it is stopped", |status| status["agentProcess"] == "stopped");
    assert!(!alive(&pid));
}

#[test]
fn the_example_agent_lives_and_reports() {
    let server = Server::start();
    let (home, id) = registered(&server);
    server.grant(&id, "100");
    let example = concat!(env!("CARGO_MANIFEST_DIR"), "/../deploy/examples/agent.py");
    let daemon = home.start(&format!("ROUND_SECONDS=0.2 ROUND_COST=20 exec python3 {example}"));
    eventually("its first round", || {
        actions(&server, &id).iter().any(|action| action.starts_with("round 1 ")).then_some(())
    });
    daemon.until("it has spent everything", |status| {
        status["survivalTier"] == "terminated" && status["agentProcess"] == "stopped"
    });
    eventually("its last words", || {
        actions(&server, &id).iter().any(|action| action.starts_with("stopped after")).then_some(())
    });
}
