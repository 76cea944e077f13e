//! The payment journal of a process that is killed (SIGKILL) at each of its writes, also while it is written anew. A
//! program of its own: what a process holds, the children that it starts hold for a moment too.
#![expect(clippy::expect_used, reason = "tests")]

use std::path::Path;

use chrono::DateTime;
use otonix_sdk::chain::{EvmAddress, Hash};
use otonix_sdk::money::MicroUsd;
use otonix_sdk::pay::Asker;
use otonix_sdk::pay::book::Book;
use otonix_sdk::pay::record::{End, Intent, Record, Request, Signature, State};
use uuid::Uuid;

fn intent(n: u128) -> Intent {
    Intent {
        id: Uuid::from_u128(n),
        at: DateTime::UNIX_EPOCH,
        asker: Asker::Agent,
        key: None,
        digest: format!("digest {n}"),
        request: Request {
            method: "POST".to_owned(),
            url: "https://a.example/".to_owned(),
            headers: Vec::new(),
            body: vec![0, 255, 1],
        },
        origin: "https://a.example".to_owned(),
        payer: EvmAddress::from_bytes([6; 20]),
        pay_to: EvmAddress::from_bytes([7; 20]),
        amount: MicroUsd::from_micros(5),
        from_block: 5,
        way: Signature::Exact {
            header: "x-payment".to_owned(),
            value: "e30=".to_owned(),
            nonce: Hash([9; 32]),
            valid_before: 100,
        },
    }
}

fn settled(n: u128) -> Record {
    Record::Ended(End {
        id: Uuid::from_u128(n),
        at: DateTime::UNIX_EPOCH,
        state: State::Settled,
        tx_hash: None,
        receipt: None,
        status: None,
        detail: None,
    })
}

/// A fixed life of a book, told step by step: three payments, written anew, one of them ended, written anew again.
fn live(dir: &Path, mut told: impl FnMut()) {
    let mut book = Book::open(dir).expect("opens");
    for n in 1..=3 {
        book.commit(vec![Record::Intent(Box::new(intent(n)))]).expect("commits");
        told();
    }
    book.compact().expect("compacts");
    told();
    book.commit(vec![settled(1)]).expect("commits");
    told();
    book.compact().expect("compacts");
    told();
}

/// What a life has come to: payments, and those that have ended.
fn come_to(dir: &Path) -> (usize, usize) {
    let book = Book::open(dir).expect("a killed journal opens");
    assert_eq!(book.content().suspect, None, "it is not damaged");
    let entries = &book.content().entries;
    (entries.len(), entries.values().filter(|entry| entry.state == State::Settled).count())
}

#[test]
#[expect(clippy::print_stdout, reason = "how far the other process came is told")]
fn a_journal_killed_at_any_write_has_all_that_was_told_and_no_more_than_one_step_beyond() {
    const NAME: &str = "a_journal_killed_at_any_write_has_all_that_was_told_and_no_more_than_one_step_beyond";
    const STEPS: [(usize, usize); 7] = [(0, 0), (1, 0), (2, 0), (3, 0), (3, 0), (3, 1), (3, 1)];
    if let Some(dir) = std::env::var_os("OTONIX_TEST_LIFE") {
        return live(Path::new(&dir), || println!("told"));
    }
    let place = tempfile::tempdir().expect("a folder");
    let (library, trigger) = (place.path().join("boundary.so"), place.path().join("trigger"));
    let source = concat!(env!("CARGO_MANIFEST_DIR"), "/../tests/interop/boundary.c");
    let made = std::process::Command::new("cc")
        .args(["-O1", "-shared", "-fPIC", "-o"])
        .arg(&library)
        .args([source, "-ldl"])
        .status();
    assert!(made.expect("whoever links Rust has cc").success());
    let mut kills = 0;
    for at in 1.. {
        let dir = place.path().join(format!("life-{at}"));
        std::fs::write(&trigger, at.to_string()).expect("writes");
        let life = std::process::Command::new(std::env::current_exe().expect("a program"))
            .args(["--exact", NAME, "--nocapture"])
            .env("LD_PRELOAD", &library)
            .env("OTONIX_TEST_BOUNDARY", &trigger)
            .env("OTONIX_TEST_LIFE", &dir)
            .output()
            .expect("ran");
        let told =
            String::from_utf8_lossy(&life.stdout).lines().filter(|line| line.ends_with("told")).count();
        let found = come_to(&dir);
        if life.status.success() {
            assert_eq!((told, found), (6, (3, 1)));
            break;
        }
        kills += 1;
        let next = STEPS[(told + 1).min(6)];
        assert!(found == STEPS[told] || found == next, "boundary {at}: told {told}, found {found:?}");
        // It goes on as if nothing had been.
        live(&dir, || {});
        assert_eq!(come_to(&dir), (3, 1), "boundary {at}");
    }
    assert!(kills > 30, "it was killed {kills} times");
}
