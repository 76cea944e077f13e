//! The database going away and coming back: refused meanwhile, nothing wrong, nothing lost.

use std::sync::Arc;
use std::time::Duration;

use serde_json::json;

use crate::support::Server;
use crate::support::database::{Cluster, Durability};
use crate::support::link::{Link, action, hello};
use crate::support::poll::until_true;

#[tokio::test]
async fn postgres_may_crash_and_come_back() {
    let cluster = tokio::task::spawn_blocking(|| Arc::new(Cluster::start(Durability::Default)));
    let cluster = cluster.await.expect("it starts");
    let server = Server::on(cluster.database().await).start().await;
    let agent = server.agent("a").await;
    server.grant(&agent, "100").await;
    let (mut link, _) = Link::open(&server, &agent, hello(&agent)).await;
    let mut acknowledged = 0;
    for round in 0..2 {
        for n in 0..10 {
            server.spend(&agent, "0.01").await;
            server.act(&agent, &format!("{round} {n}")).await;
            acknowledged += 1;
        }
        let before = server.look(&agent).await;
        let seq = round + 1;
        link.event(action(seq)).await;
        link.acked(seq).await;

        cluster.kill();
        let refused = server.post(&agent.path("actions")).key(&agent.key);
        let refused = refused.json(json!({"action": "lost", "category": "system"})).await;
        assert_eq!(refused.status, 503, "{}", refused.text());
        assert!(refused.header("retry-after").is_some());
        let standing = server.post(&agent.path("heartbeat")).key(&agent.key).await;
        if standing.status == 200 {
            assert_eq!(standing.json()["survivalTier"], before["survivalTier"], "unknown is not zero");
        } else {
            assert_eq!(standing.status, 503, "{}", standing.text());
        }
        let kept = server.post(&agent.path("heartbeat")).key(&agent.key).once(&format!("beat {round}")).await;
        assert_eq!(kept.status, standing.status, "a key is no reason not to be heard: {}", kept.text());
        assert_eq!(server.get("/healthz").await.status, 200);
        until_true("readiness says so", Duration::from_secs(10), async || {
            server.get("/readyz").await.status == 503
        })
        .await;

        let again = Arc::clone(&cluster);
        tokio::task::spawn_blocking(move || again.run()).await.expect("it starts");
        until_true("it serves again", Duration::from_secs(20), async || {
            let answer = server.get(&agent.path("")).key(&agent.key).await;
            assert!(matches!(answer.status, 200 | 503), "{}", answer.text());
            answer.status == 200 && server.get("/readyz").await.status == 200
        })
        .await;
        let after = server.look(&agent).await;
        for field in ["credits", "survivalTier", "status"] {
            assert_eq!(after[field], before[field], "{field}");
        }
    }
    let logs = server.all(&agent.key, "/api/compute-logs").await;
    assert_eq!(logs.len(), acknowledged);
    server.audit();
}
