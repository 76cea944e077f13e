//! The server killed under load, at random moments: what it acknowledged is there afterwards, once.

use std::time::Duration;

use rand::Rng as _;

use super::load::{self, Client};
use super::{chance, crowd, setting};
use crate::support::{Server, Store, on_each_store};

on_each_store!(killed_at_any_moment_nothing_acknowledged_is_lost_or_doubled);

async fn killed_at_any_moment_nothing_acknowledged_is_lost_or_doubled(store: Store) {
    let mut chance = chance();
    let mut server = Server::start(store).await;
    let key = server.key("load").await;
    let (mut clients, mut streamers) = crowd(&server, &key, &mut chance, 3).await;
    let rounds = setting("OTONIX_FAULT_ROUNDS", 4);
    for round in 0..rounds {
        let writing: Vec<_> = clients.drain(..).map(|client| tokio::spawn(client.until_lost())).collect();
        let sending: Vec<_> = streamers.drain(..).map(|one| tokio::spawn(one.until_lost())).collect();
        tokio::time::sleep(Duration::from_millis(chance.random_range(50..900))).await;
        server.kill();
        for client in writing {
            clients.push(client.await.expect("no wrong answer"));
        }
        for streamer in sending {
            streamers.push(streamer.await.expect("no wrong answer"));
        }
        server.crash().await;
        // Every other time what is in doubt stays so until the next round.
        if round % 2 == 0 || round + 1 == rounds {
            for client in &mut clients {
                client.settle().await;
            }
        }
        let there = load::verify(&server, &clients).await;
        for streamer in &streamers {
            streamer.verify(&server).await;
        }
        let acknowledged: usize = clients.iter().map(Client::acknowledged).sum();
        let acked: u64 = streamers.iter().map(|streamer| streamer.acked).sum();
        eprintln!(
            "{store:?} round {round}: {acknowledged} writes acknowledged, {there} there, {acked} events"
        );
    }
    for streamer in &mut streamers {
        streamer.settle().await;
        streamer.verify(&server).await;
        assert!(streamer.acked > 0, "the load was one");
    }
    assert!(clients.iter().map(Client::acknowledged).sum::<usize>() > 100, "the load was one");
    server.audit();
}
