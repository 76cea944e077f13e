//! Files of the spool that were cut off or changed on the disk while the daemon was down.

use std::fs::{self, File};
use std::os::unix::fs::FileExt as _;
use std::path::PathBuf;
use std::process::Command;

use serde_json::Value;

use crate::books::Found;
use crate::random::number;
use crate::support::program;
use crate::world::World;
use crate::writers::act_times;

/// Bytes before a segment's first record.
const HEAD: u64 = 40;

fn newest_segment(world: &World) -> PathBuf {
    let spool = world.machine.state().join("spool");
    let entries = fs::read_dir(spool).expect("the spool").flatten().map(|entry| entry.path());
    entries.filter(|path| path.extension().is_some_and(|end| end == "seg")).max().expect("a segment")
}

/// Events that are accepted while the server is out of reach; then the daemon is killed.
fn backlog(world: &mut World, events: u64) {
    world.disconnect();
    if world.machine.status().is_none() {
        world.machine.start_and_wait();
    }
    act_times(&world.books, &world.machine.socket(), events);
    world.machine.kill();
}

/// Starts on what is there, delivers it, goes on with more, and survives another kill.
fn go_on(world: &mut World) -> Found {
    world.machine.start_and_wait();
    world.connect();
    act_times(&world.books, &world.machine.socket(), 5);
    world.machine.settle();
    world.machine.kill();
    world.machine.start_and_wait();
    act_times(&world.books, &world.machine.socket(), 5);
    world.machine.settle();
    world.look()
}

/// Every accepted event is stored or its loss is reported, and nothing else is.
fn losses_are_reported(world: &World, found: &Found) -> u64 {
    let lost = found.others_with("an event was lost on the agent's machine");
    for row in &lost {
        assert_eq!(
            (row["status"].as_str(), row["category"].as_str()),
            (Some("failed"), Some("system")),
            "{row}"
        );
    }
    assert_eq!(found.missing.len(), lost.len(), "{:?}", found.missing);
    let damaged = world.machine.spool("damaged");
    assert_eq!(damaged, lost.len() as u64, "what `status` says");
    damaged
}

#[test]
fn a_torn_tail_is_cut_and_costs_nothing_that_was_whole() {
    let mut world = World::new("torn tails", "auto");
    let rounds = number("ROUNDS", 5);
    let mut torn = 0;
    for _ in 0..rounds {
        let (some, cut) = (5 + world.random.below(30), 1 + world.random.below(60));
        backlog(&mut world, some);
        // The last record is longer than this, so it loses a part of itself.
        let file = File::options().write(true).open(newest_segment(&world)).expect("the segment");
        let len = file.metadata().expect("there").len();
        file.set_len(len - cut).expect("cut");
        torn += 1;
        let found = go_on(&mut world);
        assert_eq!(found.missing.len(), torn, "{:?}", found.missing);
        assert!(found.others_with("lost").is_empty(), "{:?}", found.others);
    }
    assert_eq!(world.machine.spool("damaged"), 0);
    let found = world.look();
    eprintln!(
        "torn tails: {torn} times, {} accepted, all but the {torn} torn ones stored once",
        found.accepted
    );
}

#[test]
fn a_tail_lost_at_any_place_costs_what_lay_behind_it() {
    let mut world = World::new("lost tails", "auto");
    let rounds = number("ROUNDS", 5);
    for _ in 0..rounds {
        let before = world.look().missing.len();
        let events = 5 + world.random.below(30);
        backlog(&mut world, events);
        let first = world.books.accepted() - events;
        let file = File::options().read(true).write(true).open(newest_segment(&world)).expect("the segment");
        let len = file.metadata().expect("there").len();
        let cut = HEAD + world.random.below(len - HEAD);
        file.set_len(cut).expect("cut");
        let found = go_on(&mut world);
        // What is gone is the end of this round's backlog, and nothing before it.
        let gone: Vec<u64> = found.missing[before..].iter().map(|post| ordinal(&post.name)).collect();
        assert!(gone.iter().all(|number| *number >= first), "{gone:?} of {first}");
        assert!(gone.windows(2).all(|pair| pair[1] == pair[0] + 1), "{gone:?}");
    }
    let found = world.look();
    eprintln!(
        "lost tails: {rounds} times, {} accepted, {} lay behind a cut",
        found.accepted,
        found.missing.len()
    );
}

fn ordinal(name: &str) -> u64 {
    name.rsplit(' ').next().and_then(|number| number.parse().ok()).expect("a number")
}

#[test]
fn flipped_bits_cost_their_records_which_are_reported() {
    let mut world = World::new("flipped bits", "auto");
    let rounds = number("ROUNDS", 5);
    let mut flips = 0;
    for round in 0..rounds {
        let (events, some) = (20 + world.random.below(40), 1 + world.random.below(6));
        backlog(&mut world, events);
        let file = File::options().read(true).write(true).open(newest_segment(&world)).expect("the segment");
        let len = file.metadata().expect("there").len();
        // The header too, in some rounds.
        let from = if round % 2 == 0 { HEAD } else { 0 };
        for _ in 0..some {
            let at = from + world.random.below(len - from);
            let mut byte = [0];
            file.read_exact_at(&mut byte, at).expect("read");
            byte[0] ^= 1 << world.random.below(8);
            file.write_all_at(&byte, at).expect("written");
            flips += 1;
        }
        let found = go_on(&mut world);
        losses_are_reported(&world, &found);
    }
    let found = world.look();
    let damaged = losses_are_reported(&world, &found);
    let shown = status_of_the_program(&world);
    assert_eq!(shown["spool"]["damaged"], damaged, "{shown}");
    eprintln!("flipped bits: {flips}, {} accepted, {damaged} of them lost and reported", found.accepted);
    assert!(damaged > 0);
}

fn status_of_the_program(world: &World) -> Value {
    let mut command = Command::new(program());
    command.env_clear().arg("--state-dir").arg(world.machine.state()).args(["status", "--json"]);
    let output = command.output().expect("runs");
    serde_json::from_slice(&output.stdout).unwrap_or_else(|error| panic!("{error}: {output:?}"))
}

#[test]
fn the_spools_own_state_may_be_lost() {
    let mut world = World::new("a lost cursor", "auto");
    for garbage in [b"".as_slice(), &[0xA5; 1024]] {
        backlog(&mut world, 20);
        fs::write(world.machine.state().join("spool").join("state"), garbage).expect("written");
        let found = go_on(&mut world);
        assert!(found.missing.is_empty(), "{:?}", found.missing);
        assert_eq!(losses_are_reported(&world, &found), 0);
    }
    assert!(world.epochs() > 1);
}
