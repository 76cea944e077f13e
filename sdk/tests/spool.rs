//! The spool's promises: what was accepted is there after any stop, damage and full disks included.
#![expect(clippy::expect_used, reason = "tests")]

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use otonix_proto::v1 as pb;
use otonix_sdk::link::reader::Stored;
use otonix_sdk::link::spool::{self, Class, OpenError, Spool, SpoolError};
use proptest::prelude::*;
use prost::Message as _;
use rand::{Rng as _, SeedableRng as _};
use tempfile::TempDir;
use uuid::Uuid;

const MAX: u64 = 512 * 1024;

fn event(text: &str) -> (Vec<u8>, Uuid) {
    let id = Uuid::now_v7();
    let action = pb::Action { action: text.to_owned(), category: "system".to_owned(), ..Default::default() };
    let event =
        pb::Event { id: id.to_string(), body: Some(pb::event::Body::Action(action)), ..Default::default() };
    (event.encode_to_vec(), id)
}

fn text_of(stored: &Stored) -> Option<String> {
    match &stored.event.body {
        Some(pb::event::Body::Action(action)) => Some(action.action.clone()),
        Some(pb::event::Body::Lost(_)) => None,
        other => panic!("an event of another kind: {other:?}"),
    }
}

fn open(dir: &Path, max: u64) -> Spool {
    for _ in 0..500 {
        match Spool::open(dir, max) {
            Ok((spool, _)) => return spool,
            Err(OpenError::Locked) => std::thread::sleep(std::time::Duration::from_millis(10)),
            Err(other) => panic!("failed to open the spool: {other}"),
        }
    }
    panic!("the spool stays locked");
}

async fn append(spool: &Spool, text: &str) -> Result<u64, SpoolError> {
    let (payload, id) = event(text);
    spool.append(payload, id, 1, Class::Action).await
}

fn read_all(spool: &Spool) -> Vec<Stored> {
    let mut reader = spool.reader(spool.view().acked + 1);
    let mut all = Vec::new();
    loop {
        let part = reader.read(7, 4096).expect("read");
        if part.is_empty() {
            return all;
        }
        all.extend(part);
    }
}

fn segments(dir: &Path) -> Vec<PathBuf> {
    let mut found: Vec<PathBuf> = fs::read_dir(dir)
        .expect("listed")
        .map(|entry| entry.expect("an entry").path())
        .filter(|path| path.extension().is_some_and(|end| end == "seg"))
        .collect();
    found.sort();
    found
}

fn copy(from: &Path) -> TempDir {
    let to = tempfile::tempdir().expect("a directory");
    for entry in fs::read_dir(from).expect("listed") {
        let entry = entry.expect("an entry");
        if entry.file_type().expect("a type").is_file() {
            fs::copy(entry.path(), to.path().join(entry.file_name())).expect("copied");
        }
    }
    to
}

/// A closed spool with events numbered from 1 whose text says their number, up to `acked` acknowledged.
async fn template(count: u64, acked: u64) -> TempDir {
    let dir = tempfile::tempdir().expect("a directory");
    let spool = open(dir.path(), MAX);
    let filler = "x".repeat(300);
    for lsn in 1..=count {
        assert_eq!(append(&spool, &format!("event {lsn} {filler}")).await, Ok(lsn));
    }
    if acked > 0 {
        spool.ack(acked, None).await.expect("acknowledged");
    }
    spool.close().await;
    dir
}

/// Checks that what is read is gapless and each event its own; says how many are lost.
fn check(all: &[Stored], from: u64) -> u64 {
    let mut lost = 0;
    for (lsn, stored) in (from..).zip(all) {
        assert_eq!(stored.lsn, lsn);
        match text_of(stored) {
            Some(text) => assert!(text.starts_with(&format!("event {lsn} ")), "{lsn}: {text}"),
            None => lost += 1,
        }
    }
    lost
}

#[tokio::test]
async fn what_was_appended_is_there_after_reopening() {
    let dir = template(200, 50).await;
    assert!(segments(dir.path()).len() > 2);
    assert_eq!(spool::inspect(dir.path()).expect("inspected").pending, 150);
    let (spool, unacked) = Spool::open(dir.path(), MAX).expect("opened");
    assert!(matches!(Spool::open(dir.path(), MAX), Err(OpenError::Locked)));
    let view = spool.view();
    assert_eq!((view.acked, view.next, unacked), (50, 201, 150));
    let all = read_all(&spool);
    assert_eq!((all.len(), check(&all, 51)), (150, 0));
    assert_eq!(all.last().map(Stored::id), view.last_id);
    spool.ack(200, view.last_id).await.expect("acknowledged");
    assert_eq!(spool.status().pending, 0);
    assert!(spool.status().bytes < 20_000);
    spool.close().await;
    let spool = open(dir.path(), MAX);
    assert_eq!(spool.view().last_id, view.last_id);
    assert_eq!(append(&spool, "event 201 ").await, Ok(201));
}

#[tokio::test]
async fn a_torn_tail_is_cut_at_every_byte() {
    let dir = template(5, 0).await;
    let name = segments(dir.path()).pop().expect("a segment");
    let whole = fs::read(&name).expect("read");
    let last = 32 + event(&format!("event 5 {}", "x".repeat(300))).0.len();
    for cut in whole.len() - last..whole.len() {
        let dir = copy(dir.path());
        fs::write(dir.path().join(name.file_name().expect("a name")), &whole[..cut]).expect("written");
        let spool = open(dir.path(), MAX);
        assert_eq!((spool.view().next, spool.status().damaged), (5, 0), "cut {cut}");
        assert_eq!(append(&spool, "event 5 again").await, Ok(5), "cut {cut}");
        let all = read_all(&spool);
        assert_eq!((all.len(), check(&all, 1)), (5, 0), "cut {cut}");
        spool.close().await;
    }
}

#[tokio::test]
async fn a_thousand_flipped_bits_each_cost_at_most_one_event() {
    let dir = template(60, 7).await;
    let mut chance = rand::rngs::StdRng::seed_from_u64(1);
    let mut lost_in_all = 0;
    for round in 0..1000 {
        let dir = copy(dir.path());
        let mut files = segments(dir.path());
        files.push(dir.path().join("state"));
        let file = &files[chance.random_range(0..files.len())];
        let mut bytes = fs::read(file).expect("read");
        let bit = chance.random_range(0..bytes.len() * 8);
        bytes[bit / 8] ^= 1 << (bit % 8);
        fs::write(file, &bytes).expect("written");
        let spool = open(dir.path(), MAX);
        let view = spool.view();
        assert!(view.acked <= 7, "round {round}");
        let all = read_all(&spool);
        let lost = check(&all, view.acked + 1);
        assert!(lost <= 1, "round {round}: {lost}");
        assert_eq!(spool.status().damaged, lost, "round {round}");
        assert_eq!(view.next, 61, "round {round}");
        assert_eq!(append(&spool, "event 61 ").await, Ok(61), "round {round}");
        spool.ack(40, None).await.expect("acknowledged");
        assert!(check(&read_all(&spool), 41) <= lost, "round {round}");
        spool.close().await;
        lost_in_all += lost;
    }
    assert!(lost_in_all > 500);
}

#[tokio::test]
async fn damage_that_piles_up_is_counted_once_and_the_spool_goes_on() {
    let dir = template(100, 0).await;
    let mut chance = rand::rngs::StdRng::seed_from_u64(2);
    for _ in 0..100 {
        let files = segments(dir.path());
        let file = &files[chance.random_range(0..files.len())];
        let mut bytes = fs::read(file).expect("read");
        for _ in 0..3 {
            let bit = chance.random_range(0..bytes.len() * 8);
            bytes[bit / 8] ^= 1 << (bit % 8);
        }
        fs::write(file, &bytes).expect("written");
        let spool = open(dir.path(), MAX);
        let all = read_all(&spool);
        let lost = check(&all, 1);
        assert_eq!(all.len() as u64, spool.view().next - 1);
        assert_eq!(spool.status().damaged, lost);
        let next = spool.view().next;
        assert_eq!(append(&spool, &format!("event {next} ")).await, Ok(next));
        spool.close().await;
    }
}

#[tokio::test]
async fn a_missing_segment_is_reported_number_by_number() {
    let dir = template(200, 0).await;
    let files = segments(dir.path());
    fs::remove_file(&files[1]).expect("removed");
    let spool = open(dir.path(), MAX);
    let all = read_all(&spool);
    assert_eq!(all.len(), 200);
    let lost = check(&all, 1);
    assert!(lost > 10);
    assert_eq!(spool.status().damaged, lost);
    let ids: std::collections::BTreeSet<Uuid> = all.iter().map(Stored::id).collect();
    assert_eq!(ids.len(), 200);
    assert_eq!(
        all.iter().map(Stored::id).collect::<Vec<_>>(),
        read_all(&spool).iter().map(Stored::id).collect::<Vec<_>>()
    );
}

#[tokio::test]
async fn damage_under_a_running_reader_is_lost_and_not_waited_for() {
    let dir = template(60, 0).await;
    let spool = open(dir.path(), MAX);
    let file = segments(dir.path()).remove(0);
    let mut bytes = fs::read(&file).expect("read");
    bytes[1000] ^= 1;
    fs::write(&file, &bytes).expect("written");
    assert_eq!(check(&read_all(&spool), 1), 1);
    assert_eq!(check(&read_all(&spool), 1), 1);
    assert_eq!(spool.status().damaged, 1);
}

#[tokio::test]
async fn a_lost_state_file_means_a_new_epoch_and_no_lost_event() {
    let dir = template(60, 20).await;
    let before = open(dir.path(), MAX).view();
    fs::remove_file(dir.path().join("state")).expect("removed");
    let spool = open(dir.path(), MAX);
    let view = spool.view();
    assert_ne!(view.epoch, before.epoch);
    assert_eq!(view.log, before.log);
    assert_eq!(view.seq(view.acked), 0);
    let all = read_all(&spool);
    assert!(view.acked <= 20 && all.len() as u64 == 60 - view.acked);
    assert_eq!(check(&all, view.acked + 1), 0);
}

#[tokio::test]
async fn at_the_bound_actions_are_refused_first_and_nothing_later_is_larger_than_it() {
    let dir = tempfile::tempdir().expect("a directory");
    let spool = open(dir.path(), MAX);
    let filler = "x".repeat(2000);
    let mut actions = 0;
    while append(&spool, &filler).await.is_ok() {
        actions += 1;
    }
    assert_eq!(append(&spool, &filler).await, Err(SpoolError::Full));
    assert!(spool.status().bytes <= MAX / 8 * 7 && spool.status().bytes > MAX / 8 * 7 - 5000);
    let mut vital = 0;
    loop {
        let (payload, id) = event(&filler);
        match spool.append(payload, id, 0, Class::Vital).await {
            Ok(_) => vital += 1,
            Err(full) => break assert_eq!(full, SpoolError::Full),
        }
    }
    assert!(vital > 20 && spool.status().bytes <= MAX);
    assert_eq!(spool.status().pending, actions + vital);
    spool.ack(actions, None).await.expect("acknowledged");
    assert!(append(&spool, &filler).await.is_ok());
}

#[tokio::test]
async fn a_new_epoch_renumbers_what_is_not_acknowledged_and_nothing_else() {
    let dir = template(60, 20).await;
    let spool = open(dir.path(), MAX);
    let before = spool.view();
    let events: Vec<Uuid> = read_all(&spool).iter().map(Stored::id).collect();
    spool.new_epoch().await.expect("renumbered");
    let view = spool.view();
    assert_ne!(view.epoch, before.epoch);
    assert_eq!((view.seq(21), view.seq(view.next)), (1, 41));
    assert_eq!(read_all(&spool).iter().map(Stored::id).collect::<Vec<_>>(), events);
    spool.ack(30, None).await.expect("acknowledged");
    spool.close().await;
    let again = open(dir.path(), MAX).view();
    assert_eq!((again.epoch, again.base, again.acked), (view.epoch, 20, 30));
}

#[tokio::test]
async fn a_stop_at_any_byte_of_a_new_epoch_leaves_the_old_or_the_new_one() {
    let dir = template(60, 20).await;
    let old = copy(dir.path());
    let spool = open(dir.path(), MAX);
    let before = spool.view();
    spool.new_epoch().await.expect("renumbered");
    let after = spool.view();
    spool.close().await;
    let from = fs::read(old.path().join("state")).expect("read");
    let to = fs::read(dir.path().join("state")).expect("read");
    for written in 0..=to.len() {
        let dir = copy(old.path());
        let mut torn = from.clone();
        torn[..written].copy_from_slice(&to[..written]);
        fs::write(dir.path().join("state"), torn).expect("written");
        let spool = open(dir.path(), MAX);
        let view = spool.view();
        assert!(view.epoch == before.epoch || view.epoch == after.epoch, "at {written}");
        assert_eq!(view.acked, 20, "at {written}");
        assert_eq!(check(&read_all(&spool), 21), 0, "at {written}");
        spool.close().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn many_callers_at_once_each_get_their_own_place() {
    let dir = tempfile::tempdir().expect("a directory");
    let spool = open(dir.path(), 16 * MAX);
    let callers: Vec<_> = (0..50)
        .map(|caller| {
            let spool = spool.clone();
            tokio::spawn(async move {
                let mut mine = Vec::new();
                for turn in 0..40 {
                    let text = format!("{caller}/{turn}");
                    mine.push((append(&spool, &text).await.expect("appended"), text));
                }
                mine
            })
        })
        .collect();
    let mut expected = BTreeMap::new();
    for caller in callers {
        expected.extend(caller.await.expect("finished"));
    }
    assert_eq!(expected.len(), 2000);
    spool.close().await;
    let spool = open(dir.path(), 16 * MAX);
    let found: BTreeMap<u64, String> =
        read_all(&spool).iter().map(|stored| (stored.lsn, text_of(stored).expect("readable"))).collect();
    assert_eq!(found, expected);
}

#[tokio::test]
async fn a_full_disk_refuses_the_caller_and_the_spool_stays_usable() {
    if std::env::var_os("OTONIX_TEST_FILE_LIMIT").is_none() {
        let me = std::env::current_exe().expect("a program");
        let script = "trap '' XFSZ; ulimit -f 16; exec \"$0\" --exact \
                      a_full_disk_refuses_the_caller_and_the_spool_stays_usable --nocapture";
        let done = std::process::Command::new("sh")
            .args(["-c", script])
            .arg(me)
            .env("OTONIX_TEST_FILE_LIMIT", "1")
            .output()
            .expect("ran");
        assert!(done.status.success(), "{}", String::from_utf8_lossy(&done.stderr));
        return;
    }
    let dir = tempfile::tempdir().expect("a directory");
    let spool = open(dir.path(), 16 * MAX);
    let (large, small) = ("x".repeat(1500), "y".repeat(10));
    let mut taken = 0;
    while append(&spool, &large).await.is_ok() {
        taken += 1;
        assert!(taken < 100, "the limit does not bind");
    }
    assert_eq!(append(&spool, &large).await, Err(SpoolError::DiskFull));
    // One that still fits is taken, also in a group with one that does not.
    let (big, little) = tokio::join!(append(&spool, &large), append(&spool, &small));
    assert_eq!((big, little), (Err(SpoolError::DiskFull), Ok(taken + 1)));
    assert_eq!(read_all(&spool).len() as u64, taken + 1);
    spool.close().await;
    let spool = open(dir.path(), 16 * MAX);
    assert_eq!(spool.view().next, taken + 2);
    assert_eq!(append(&spool, &large).await, Err(SpoolError::DiskFull));
    spool.ack(taken + 1, None).await.expect("acknowledged");
    assert_eq!(spool.status().damaged, 0);
}

#[derive(Debug, Clone)]
enum Step {
    Append(usize),
    Ack(u64),
    Epoch,
    Reopen,
    Tear(usize),
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        6 => (0_usize..3000).prop_map(Step::Append),
        2 => (0_u64..12).prop_map(Step::Ack),
        1 => Just(Step::Epoch),
        1 => Just(Step::Reopen),
        1 => (1_usize..200).prop_map(Step::Tear),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(40))]
    #[test]
    fn the_spool_is_a_queue(steps in proptest::collection::vec(step(), 1..40)) {
        let runtime = tokio::runtime::Builder::new_current_thread().build().expect("a runtime");
        runtime.block_on(async {
            let dir = tempfile::tempdir().expect("a directory");
            let mut spool = open(dir.path(), MAX);
            let (mut model, mut acked, mut next) = (BTreeMap::new(), 0_u64, 1_u64);
            let mut base = 0;
            for step in steps {
                match step {
                    Step::Append(len) => {
                        let text = format!("{next} {}", "z".repeat(len));
                        let (payload, id) = event(&text);
                        assert_eq!(spool.append(payload, id, 1, Class::Vital).await, Ok(next));
                        model.insert(next, text);
                        next += 1;
                    }
                    Step::Ack(by) => {
                        acked = (acked + by).min(next - 1);
                        spool.ack(acked, None).await.expect("acknowledged");
                        model.retain(|lsn, _| *lsn > acked);
                    }
                    Step::Epoch => {
                        spool.new_epoch().await.expect("renumbered");
                        base = acked;
                    }
                    Step::Reopen => {
                        spool.close().await;
                        spool = open(dir.path(), MAX);
                    }
                    Step::Tear(bytes) => {
                        // What a write leaves that was stopped half way.
                        spool.close().await;
                        if let Some(last) = segments(dir.path()).last() {
                            let mut torn = fs::read(last).expect("read");
                            let (payload, _) = event(&"t".repeat(400));
                            torn.extend_from_slice(&payload[..bytes.min(31)]);
                            fs::write(last, torn).expect("written");
                        }
                        spool = open(dir.path(), MAX);
                    }
                }
                let view = spool.view();
                assert_eq!((view.acked, view.next, view.base), (acked, next, base));
            }
            let found: BTreeMap<u64, String> = read_all(&spool)
                .iter()
                .map(|stored| (stored.lsn, text_of(stored).expect("readable")))
                .collect();
            assert_eq!(found, model);
            assert_eq!(spool.status().damaged, 0);
        });
    }
}
