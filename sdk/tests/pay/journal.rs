//! Restarts, and a journal put back from an old copy.

use std::fs;
use std::time::Duration;

use otonix_sdk::pay::{Client, Fetched, PayError, State};

use crate::seller::{Manner, Seller, offer};
use crate::world::{World, over, post, state};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn after_a_restart_the_same_bytes_go_on() {
    let world = World::with(1_000_000).await;
    let offers = vec![offer(&world.chain, world.payee(), "10000")];
    let seller = Seller::start(&world.chain, 2, offers, Manner::Refuses(500)).await;
    let copy = world.dir.path().join("copy");
    let client = world.client().await;
    let fetched = client.fetch(post(&seller.url(), "{}")).await.expect("signed");
    assert_eq!(state(&fetched), State::Signed);
    // A copy of the folder is what a killed process leaves.
    copy_folder(&world.folder(), &copy);
    client.set_paused(Some("this life is over".to_owned()));
    seller.be(Manner::Honest);
    let second = World { dir: tempfile::tempdir().expect("a folder"), ..world };
    copy_folder(&copy, &second.folder());
    let client = second.client().await;
    client.resume();
    assert_eq!(over(&client, fetched.id).await, State::Settled);
    let payments = seller.payments();
    assert!(payments.iter().all(|payment| *payment == payments[0]));
    assert_eq!((second.moved().len(), seller.authorizations()), (1, 1));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_journal_put_back_stops_payments_until_it_is_reconciled() {
    let mut world = World::with(10_000_000).await;
    world.tuning.after_rollback = Duration::from_secs(3);
    let offers = vec![offer(&world.chain, world.payee(), "600000")];
    let seller = Seller::start(&world.chain, 2, offers, Manner::Honest).await;
    let copy = world.dir.path().join("copy");
    let client = world.client().await;
    client.fetch(post(&seller.url(), "1")).await.expect("paid");
    copy_folder(&world.folder(), &copy);
    for body in ["2", "3", "4"] {
        client.fetch(post(&seller.url(), body)).await.expect("paid");
    }
    drop(client);
    tokio::time::sleep(Duration::from_millis(300)).await;
    fs::remove_dir_all(world.folder()).expect("removes");
    copy_folder(&copy, &world.folder());

    let client = world.client().await;
    for body in ["5", "6"] {
        let refused = client.fetch(post(&seller.url(), body)).await;
        assert!(matches!(refused, Err(PayError::Paused(_))), "{refused:?}");
    }
    assert!(client.standstill().is_some_and(|why| why.contains("without a payment")));
    assert!(client.reconcile().await.expect("the chain answers").is_some());
    let waiting = client.fetch(post(&seller.url(), "7")).await;
    assert!(matches!(waiting, Err(PayError::Paused(_))), "what the lost journal signed may still move");
    tokio::time::sleep(Duration::from_millis(3100)).await;
    // Four payments of 0.6 count, although the journal knows one: 5 USDC an hour leave four more.
    for body in ["8", "9", "10", "11"] {
        client.fetch(post(&seller.url(), body)).await.expect("paid");
    }
    assert!(matches!(client.fetch(post(&seller.url(), "12")).await, Err(PayError::Denied(_))));
    drop(client);
    let client = world.client().await;
    assert!(client.reconcile().await.expect("the chain answers").is_none(), "nothing new since");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn money_that_left_by_other_software_is_seen() {
    let world = World::with(10_000_000).await;
    let offers = vec![offer(&world.chain, world.payee(), "10000")];
    let seller = Seller::start(&world.chain, 2, offers, Manner::Honest).await;
    let client = world.client().await;
    client.fetch(post(&seller.url(), "1")).await.expect("paid");
    drop(client);
    world.chain.set_ether(&world.address, 1_000_000_000_000_000_000);
    let hash = world.chain.transfer(&world.address, world.payee(), 5, "");
    world.chain.mined(&hash);
    let client = world.client().await;
    assert!(matches!(client.fetch(post(&seller.url(), "2")).await, Err(PayError::Paused(_))));
    assert_eq!(seller.settled(), 1);
}

/// A payment that was settled and not answered, and the client that goes on asking for its answer.
async fn unanswered() -> (World, Seller, Client, Fetched) {
    let mut world = World::with(1_000_000).await;
    let offers = vec![offer(&world.chain, world.payee(), "10000")];
    let seller = Seller::start(&world.chain, 2, offers, Manner::SettlesThen(500)).await;
    world.tuning.undelivered = Duration::from_secs(600);
    let client = world.client().await;
    let fetched = client.fetch(post(&seller.url(), "{}")).await.expect("signed");
    (world, seller, client, fetched)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_payment_that_is_overdue_at_a_restart_is_tried_once_more() {
    let (world, seller, client, fetched) = unanswered().await;
    let copy = world.dir.path().join("copy");
    copy_folder(&world.folder(), &copy);
    drop(client);
    let mut second = World { dir: tempfile::tempdir().expect("a folder"), ..world };
    second.tuning.undelivered = Duration::ZERO;
    copy_folder(&copy, &second.folder());
    seller.be(Manner::SettlesThenOnce(500));
    let client = second.client().await;
    client.resume();
    assert_eq!(over(&client, fetched.id).await, State::Settled, "the last try was delivered");
    assert_eq!(second.moved().len(), 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn another_wallet_ends_the_payments_of_the_one_before() {
    let (world, seller, client, fetched) = unanswered().await;
    assert_eq!(world.moved().len(), 1);
    client.set_paused(Some("this life is over".to_owned()));
    let copy = world.dir.path().join("copy");
    copy_folder(&world.folder(), &copy);
    let other = otonix_sdk::wallet::Wallet::generate();
    let (key, address) = (other.private_key_hex().to_string(), other.address().to_string());
    let second = World { dir: tempfile::tempdir().expect("a folder"), key, address, ..world };
    copy_folder(&copy, &second.folder());
    second.chain.mint(&second.address, 1_000_000);
    let client = second.client().await;
    client.resume();
    seller.be(Manner::SettlesThenOnce(500));
    assert_eq!(over(&client, fetched.id).await, State::Settled, "the old wallet's money has moved");
    let fetched = client.fetch(post(&seller.url(), "{\"n\":2}")).await.expect("paid by the new one");
    assert_eq!((state(&fetched), second.moved().len()), (State::Settled, 1));
}

pub fn copy_folder(from: &std::path::Path, to: &std::path::Path) {
    fs::create_dir_all(to).expect("a folder");
    for entry in fs::read_dir(from).expect("reads") {
        let entry = entry.expect("an entry");
        let target = to.join(entry.file_name());
        if entry.file_type().expect("a type").is_dir() {
            copy_folder(&entry.path(), &target);
        } else {
            fs::copy(entry.path(), target).expect("copies");
        }
    }
}
