//! Living: what the agent did arrives once, whatever is killed; its process lives by its credits.

use std::collections::BTreeMap;
use std::time::Duration;

use super::support::server::Server;
use super::support::{Daemon, alive, eventually};
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
    // What can never be delivered is not accepted, also after a restart without the server.
    let refused = |daemon: &Daemon| {
        daemon.until("it says so", |status| status["refused"] == "agent_killed");
        let action = daemon.post("/v1/actions", r#"{"action":"too late","category":"system"}"#);
        assert_eq!((action.status, action.code()), (409, "agent_killed"));
        let usage = daemon.post("/v1/usage", r#"{"model":"m","tokensIn":1,"tokensOut":1,"cost":1}"#);
        assert_eq!((usage.status, usage.code()), (409, "agent_killed"));
        let people = String::from_utf8(home.call(&["status"]).stdout).expect("text");
        assert!(people.contains("the agent was killed"), "{people}");
    };
    refused(&daemon);
    daemon.stop();
    drop(server);
    let daemon = home.start("");
    refused(&daemon);
    let ill = String::from_utf8(home.call(&["doctor"]).stdout).expect("text");
    assert!(ill.contains("PROBLEM  the agent was killed"), "{ill}");
}

#[test]
fn one_whose_key_was_revoked_says_so_and_goes_on() {
    let server = Server::start();
    let (home, id) = registered(&server);
    let daemon = home.start("");
    daemon.until("it is connected", |status| status["connected"] == true && status["refused"].is_null());
    let key = server.agent(&id)["apiKeyId"].as_str().expect("a key").to_owned();
    server.call("DELETE", &format!("/api/keys/{key}"), None);
    daemon.until("it says so", |status| status["refused"] == "revoked_key");
    daemon.log("waits for another key");
    let people = String::from_utf8(home.call(&["status"]).stdout).expect("text");
    assert!(people.contains("not connected: the API key was revoked"), "{people}");
    let ill = String::from_utf8(home.call(&["doctor"]).stdout).expect("text");
    assert!(ill.contains("PROBLEM  the API key was revoked"), "{ill}");
    assert_eq!(daemon.status()["spool"]["pending"].as_u64(), Some(1));
}

#[test]
fn usage_of_a_model_without_a_price_needs_a_cost_once_the_prices_are_known() {
    let server = Server::start();
    let (home, id) = registered(&server);
    let daemon = home.start("");
    daemon.until("it is connected", |status| status["connected"] == true);
    let usage = |more: &str| {
        daemon.post("/v1/usage", &format!(r#"{{"model":"own","tokensIn":1,"tokensOut":1{more}}}"#))
    };
    let refused = usage("");
    assert_eq!((refused.status, refused.code()), (400, "unknown_model"));
    assert!(refused.body["detail"].as_str().is_some_and(|detail| detail.contains("`cost`")), "{refused:?}");
    assert_eq!(usage(r#","cost":0.5"#).status, 202);
    eventually("it is paid", || (server.agent(&id)["credits"].as_f64() == Some(-0.5)).then_some(()));
    assert_eq!(daemon.status()["spool"]["rejected"].as_u64(), Some(0));
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
