//! What the records add up to, also after they were written anew.

use super::*;
use crate::clock::new_id;
use crate::money::MicroUsd;
use crate::pay::record::{Raw, Request};

fn at(days: i64) -> DateTime<Utc> {
    DateTime::UNIX_EPOCH + TimeDelta::days(20_000 + days)
}

fn intent(days: i64, micros: i64, key: Option<&str>) -> Intent {
    let id = new_id();
    Intent {
        id,
        at: at(days),
        asker: Asker::Agent,
        key: key.map(str::to_owned),
        digest: format!("digest {id}"),
        request: Request {
            method: "POST".to_owned(),
            url: "https://a.example/".to_owned(),
            headers: Vec::new(),
            body: vec![0, 255, 1],
        },
        origin: "https://a.example".to_owned(),
        payer: EvmAddress::from_bytes([6; 20]),
        pay_to: EvmAddress::from_bytes([7; 20]),
        amount: MicroUsd::from_micros(micros),
        from_block: 5,
        way: Signature::Exact {
            header: "x-payment".to_owned(),
            value: "e30=".to_owned(),
            nonce: Hash([u8::try_from(micros % 251).expect("small"); 32]),
            valid_before: 100,
        },
    }
}

fn order(days: i64, nonce: u64) -> Intent {
    let raw = Raw {
        hash: Hash([9; 32]),
        raw: "02".to_owned(),
        gas_limit: 1,
        max_fee: u128::MAX,
        priority_fee: 1,
        void: false,
    };
    let way = Signature::Order { order_id: "o".to_owned(), expires: 9, nonce, transactions: vec![raw] };
    Intent { way, ..intent(days, 5, None) }
}

fn end(intent: &Intent, days: i64, state: State) -> Record {
    Record::Ended(End {
        id: intent.id,
        at: at(days),
        state,
        tx_hash: None,
        receipt: None,
        status: None,
        detail: None,
    })
}

fn begin(intent: &Intent) -> Record {
    Record::Intent(Box::new(intent.clone()))
}

fn image(book: &Book) -> String {
    let content = book.content();
    format!(
        "{:?} {:?} {:?} {:?} {:?} {:?} {:?} {:?} {:?}",
        content.entries,
        content.refusals,
        content.pins,
        content.token,
        content.checkpoint,
        content.strays,
        content.suspect,
        content.wait_until,
        {
            let mut keys: Vec<_> = content.keys.iter().collect();
            keys.sort();
            keys
        }
    )
}

#[test]
fn a_book_reads_back_and_compacts_to_the_same() {
    let dir = tempfile::tempdir().expect("a folder");
    let (a, b, c, d) = (intent(0, 1, Some("k")), intent(0, 2, None), intent(0, 3, None), order(0, 4));
    let bumped = Raw {
        hash: Hash([8; 32]),
        raw: String::new(),
        gas_limit: 1,
        max_fee: 3,
        priority_fee: 2,
        void: true,
    };
    let mut book = Book::open(dir.path()).expect("opens");
    book.commit(vec![begin(&a), begin(&b), begin(&c), begin(&d)]).expect("commits");
    book.commit(vec![
        Record::Paid { id: b.id, at: at(0), tx_hash: Some("0x1".to_owned()) },
        end(&c, 0, State::ExpiredUnspent),
        Record::Bumped { id: d.id, transaction: bumped },
        Record::Pin { origin: "https://a.example".to_owned(), pay_to: EvmAddress::from_bytes([1; 20]) },
        Record::Told { id: c.id, state: State::ExpiredUnspent },
        Record::Suspect { why: "x".to_owned() },
    ])
    .expect("commits");
    let before = image(&book);
    drop(book);
    let mut book = Book::open(dir.path()).expect("opens");
    assert_eq!(image(&book), before);
    book.compact().expect("compacts");
    assert_eq!(image(&book), before);
    drop(book);
    let book = Book::open(dir.path()).expect("opens");
    assert_eq!(image(&book), before);
    assert_eq!(book.content().by_key("k").map(|entry| entry.intent.id), Some(a.id));
    assert_eq!(book.content().open_like(&b.digest).map(|entry| entry.state), Some(State::Paid));
    assert!(book.content().open_like(&c.digest).is_none());
    assert_eq!(book.content().next_nonce(a.payer), Some(5));
    assert_eq!(book.content().next_nonce(a.pay_to), None);
}

#[test]
fn what_is_over_stays_over() {
    let dir = tempfile::tempdir().expect("a folder");
    let mut book = Book::open(dir.path()).expect("opens");
    let a = intent(0, 1, None);
    let paid = Record::Paid { id: a.id, at: at(1), tx_hash: None };
    book.commit(vec![begin(&a), end(&a, 0, State::Settled), end(&a, 1, State::ExpiredUnspent), paid])
        .expect("commits");
    assert_eq!(book.content().entries[&a.id].state, State::Settled);
}

#[test]
fn only_what_never_moves_gives_its_budget_back() {
    let dir = tempfile::tempdir().expect("a folder");
    let mut book = Book::open(dir.path()).expect("opens");
    let intents: Vec<Intent> = (0..5).map(|n| intent(0, 10_i64.pow(n), None)).collect();
    book.commit(intents.iter().map(begin).collect()).expect("commits");
    book.commit(vec![
        end(&intents[1], 0, State::Settled),
        end(&intents[2], 0, State::ExpiredUnspent),
        end(&intents[3], 0, State::PaidUndelivered),
        Record::Paid { id: intents[4].id, at: at(0), tx_hash: None },
    ])
    .expect("commits");
    let totals = book.content().totals(at(0));
    assert_eq!((totals.day.micros(), totals.outstanding.micros()), (11_011, 1));
    assert_eq!(book.content().totals(at(2)).day.micros(), 1);
    let checked = |moved| Record::Checked { id: intents[1].id, moved, tx_hash: None };
    book.commit(vec![checked(true)]).expect("commits");
    assert_eq!(book.content().totals(at(0)).day.micros(), 11_011);
    book.commit(vec![checked(false)]).expect("commits");
    assert_eq!(book.content().totals(at(0)).day.micros(), 11_001, "delivered, and never taken");
}

#[test]
fn old_payments_go_only_when_compared_and_told() {
    let dir = tempfile::tempdir().expect("a folder");
    let mut book = Book::open(dir.path()).expect("opens");
    let (told, untold, open) = (intent(0, 1, Some("k")), intent(0, 2, None), intent(0, 3, None));
    let told_id = told.id;
    book.commit(vec![
        begin(&told),
        begin(&untold),
        begin(&open),
        end(&told, 0, State::Settled),
        end(&untold, 0, State::Settled),
        Record::Told { id: told_id, state: State::Settled },
    ])
    .expect("commits");
    book.compact().expect("compacts");
    assert_eq!(book.content().entries.len(), 3);
    let payer = EvmAddress::from_bytes([1; 20]);
    let checkpoint =
        |days| Record::Checkpoint(Checkpoint { block: 1, account_nonce: 0, at: at(days), payer });
    book.commit(vec![checkpoint(7)]).expect("commits");
    book.compact().expect("compacts");
    assert_eq!(book.content().entries.len(), 3);
    book.commit(vec![checkpoint(8)]).expect("commits");
    book.compact().expect("compacts");
    assert_eq!(book.content().entries.len(), 2);
    assert!(!book.content().entries.contains_key(&told_id) && book.content().by_key("k").is_none());
}

#[test]
fn damage_stops_payments_until_it_is_reconciled() {
    let dir = tempfile::tempdir().expect("a folder");
    let (a, b) = (intent(0, 1, None), intent(0, 2, None));
    let first;
    {
        let mut book = Book::open(dir.path()).expect("opens");
        book.commit(vec![begin(&a)]).expect("commits");
        first = book.journal.len();
        book.commit(vec![begin(&b)]).expect("commits");
    }
    let path = dir.path().join("journal");
    let mut bytes = std::fs::read(&path).expect("reads");
    let place = usize::try_from(first).expect("small") - 3;
    bytes[place] ^= 1;
    std::fs::write(&path, bytes).expect("writes");
    for _ in 0..2 {
        let book = Book::open(dir.path()).expect("opens");
        assert!(book.content().suspect.is_some());
        assert!(book.content().entries.contains_key(&b.id) && book.content().entries.len() == 1);
    }
    let mut book = Book::open(dir.path()).expect("opens");
    book.commit(vec![Record::Reconciled { at: at(0), wait_until: at(1) }]).expect("commits");
    drop(book);
    let book = Book::open(dir.path()).expect("opens");
    assert_eq!((book.content().suspect.clone(), book.content().wait_until), (None, Some(at(1))));
}
