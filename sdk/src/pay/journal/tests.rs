//! Torn tails, damage, and replacement of the file.

use std::fs;

use super::*;

fn payloads(count: usize) -> Vec<Vec<u8>> {
    (0..count)
        .map(|n| format!("{{\"record\":{n},\"text\":\"{}\"}}", "x".repeat(n * 7 % 40)).into_bytes())
        .collect()
}

#[test]
fn what_was_appended_is_found_in_order() {
    let dir = tempfile::tempdir().expect("a folder");
    let all = payloads(20);
    {
        let (mut journal, found) = Journal::open(dir.path()).expect("opens");
        assert!(found.records.is_empty());
        journal.append(&all[..5], true).expect("appends");
        journal.append(&all[5..], false).expect("appends");
    }
    let (journal, found) = Journal::open(dir.path()).expect("opens");
    assert_eq!((found.records, found.torn, found.damaged), (all, 0, 0));
    assert_eq!(journal.len(), fs::metadata(dir.path().join(NAME)).expect("a file").len());
}

#[test]
fn a_write_torn_at_any_byte_loses_only_itself() {
    let dir = tempfile::tempdir().expect("a folder");
    let all = payloads(4);
    let path = dir.path().join(NAME);
    let mut before = 0;
    {
        let (mut journal, _) = Journal::open(dir.path()).expect("opens");
        journal.append(&all[..3], true).expect("appends");
        before += journal.len();
        journal.append(&all[3..], true).expect("appends");
    }
    let whole = fs::read(&path).expect("reads");
    let before = usize::try_from(before).expect("small");
    for cut in before..whole.len() {
        for filler in [0_u8, 0xff] {
            let mut torn = whole[..cut].to_vec();
            // Some file systems leave the length and not the content.
            torn.resize(if filler == 0 { whole.len() } else { cut }, filler);
            fs::write(&path, &torn).expect("writes");
            let (mut journal, found) = Journal::open(dir.path()).expect("opens");
            assert_eq!(found.records, all[..3], "cut at {cut}");
            assert_eq!(found.damaged, 0, "cut at {cut}");
            journal.append(&all[3..], true).expect("appends");
            drop(journal);
            let (_, found) = Journal::open(dir.path()).expect("opens");
            assert_eq!(found.records, all, "cut at {cut}");
        }
    }
}

#[test]
fn damage_inside_is_told_and_hides_nothing_behind_it() {
    let dir = tempfile::tempdir().expect("a folder");
    let all = payloads(6);
    let path = dir.path().join(NAME);
    let mut ends = vec![FILE_MAGIC.len()];
    {
        let (mut journal, _) = Journal::open(dir.path()).expect("opens");
        for payload in &all {
            journal.append(std::slice::from_ref(payload), true).expect("appends");
            ends.push(usize::try_from(journal.len()).expect("small"));
        }
    }
    let whole = fs::read(&path).expect("reads");
    for at in ends[2]..ends[3] {
        let mut damaged = whole.clone();
        damaged[at] ^= 0x40;
        fs::write(&path, &damaged).expect("writes");
        let (_, found) = Journal::open(dir.path()).expect("opens");
        assert_eq!(found.records, [&all[..2], &all[3..]].concat(), "byte {at}");
        assert_eq!(found.damaged, (ends[3] - ends[2]) as u64, "byte {at}");
    }
}

#[test]
fn a_journal_is_replaced_whole() {
    let dir = tempfile::tempdir().expect("a folder");
    let all = payloads(9);
    {
        let (mut journal, _) = Journal::open(dir.path()).expect("opens");
        journal.append(&all, true).expect("appends");
        journal.rewrite(&all[7..]).expect("rewrites");
        journal.append(&all[..1], true).expect("appends");
        fs::write(dir.path().join(DRAFT), b"half").expect("writes");
    }
    let (_, found) = Journal::open(dir.path()).expect("opens");
    assert_eq!(found.records, [&all[7..], &all[..1]].concat());
    assert!(!dir.path().join(DRAFT).exists());
}

#[test]
fn one_process_has_it_and_what_is_no_journal_is_left_alone() {
    let dir = tempfile::tempdir().expect("a folder");
    let held = Journal::open(dir.path()).expect("opens");
    assert!(matches!(Journal::open(dir.path()), Err(JournalError::Locked)));
    drop(held);
    fs::write(dir.path().join(NAME), b"something else").expect("writes");
    assert!(matches!(Journal::open(dir.path()), Err(JournalError::Foreign)));
    assert_eq!(fs::read(dir.path().join(NAME)).expect("reads"), b"something else");
}
