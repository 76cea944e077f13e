//! Two live daemons on copies of one state directory.

use std::time::{Duration, Instant};

use serde_json::Value;

use crate::random::number;
use crate::world::{Machine, World};

/// Two copies take turns at most this often.
const TURN: Duration = Duration::from_secs(55);
/// One machine may need more than one session to take its turn.
const ONE_TURN: Duration = Duration::from_secs(5);

/// Watches who has the session; gives back when it changed hands.
fn turns(world: &World, length: Duration) -> Vec<Duration> {
    let began = Instant::now();
    let mut turns = Vec::new();
    let mut before = Value::Null;
    while began.elapsed() < length {
        let now = world.server.sql("SELECT hex(session_id) FROM agents")[0][0].clone();
        if now != before {
            turns.push(began.elapsed());
            before = now;
        }
        std::thread::sleep(Duration::from_millis(200));
    }
    turns
}

/// Where there are sessions they change hands at the start, and then once a minute at most.
fn not_too_often(turns: &[Duration]) {
    let mut begins: Vec<Duration> = Vec::new();
    for (index, at) in turns.iter().enumerate() {
        if index == 0 || *at - turns[index - 1] > ONE_TURN {
            begins.push(*at);
        }
    }
    let apart = begins.windows(2).skip(1).all(|pair| pair[1] - pair[0] > TURN);
    assert!(apart && turns.len() <= 3 + 2 * begins.len(), "the copies throw each other out: {turns:?}");
}

/// Lets each of them deliver what it has while the other is away.
fn settle_alone(one: &mut Machine, other: &mut Machine) {
    other.kill();
    one.kill();
    one.start_and_wait();
    one.settle();
    one.stop();
    other.start_and_wait();
    other.settle();
    other.stop();
}

fn two_live_clones(transport: &str) {
    let watch = Duration::from_secs(number("WATCH", 12));
    let mut world = World::new(&format!("two clones over {transport}"), transport);
    world.machine.start_and_wait();
    let socket = world.machine.socket();
    let first = world.writers(socket.clone(), 2, 40);
    std::thread::sleep(Duration::from_millis(500));

    let mut clone = world.another_machine("clone");
    world.machine.copy_to(clone.state(), true);
    clone.start_and_wait();
    let second = world.writers(clone.socket(), 2, 40);
    let turns = turns(&world, watch);
    first.finish();
    second.finish();
    not_too_often(&turns);
    settle_alone(&mut clone, &mut world.machine);
    let found = world.check();
    eprintln!(
        "two clones over {transport}: {} accepted, each stored once; the session changed hands at {turns:?}; reported as {:?}",
        found.accepted,
        found.others_with("another copy").iter().map(|row| row["action"].clone()).collect::<Vec<_>>()
    );
    assert_eq!(found.unanswered, 0);
    assert!(!found.others_with("another copy").is_empty(), "the operator is told: {:?}", found.others);
}

#[test]
fn two_live_clones_over_grpc() {
    two_live_clones("auto");
}

#[test]
fn two_live_clones_over_rest() {
    two_live_clones("rest");
}
