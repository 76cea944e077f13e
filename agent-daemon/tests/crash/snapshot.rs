//! A state directory put back from an older copy, as when a machine is restored from a snapshot.

use std::fs;
use std::time::Duration;

use crate::random::number;
use crate::world::World;
use crate::writers::act_times;

/// Both lives write under the same numbers; the server has those of the first.
fn put_back(transport: &str) {
    let rounds = number("ROUNDS", 4);
    let mut world = World::new(&format!("a snapshot put back over {transport}"), transport);
    world.machine.start_and_wait();
    let socket = world.machine.socket();
    let copy = world.place("copy");
    for round in 0..rounds {
        // The first life, with the copy taken in the middle of it.
        let writers = world.writers(socket.clone(), 3, 15);
        std::thread::sleep(world.random.millis(150, 600));
        let cut_off = round % 2 == 1;
        if cut_off {
            // So that the copy holds events which are not acknowledged yet.
            world.disconnect();
            std::thread::sleep(Duration::from_millis(200));
        }
        let _ = fs::remove_dir_all(&copy);
        let before = world.books.accepted();
        // A snapshot is of one moment; one in four is not, as when somebody copies files by hand.
        world.machine.copy_to(&copy, round % 4 != 3);
        if cut_off {
            world.connect();
        }
        std::thread::sleep(world.random.millis(150, 600));
        writers.finish();
        world.machine.settle();
        let since = world.books.accepted() - before;
        world.machine.kill();

        // The second life begins without a connection and reuses some of the numbers, all, or more than all.
        world.machine.put_back(&copy);
        world.disconnect();
        world.machine.start_and_wait();
        let reused = match round % 4 {
            0 => since / 2,
            1 => since * 2,
            2 => 0,
            _ => since,
        };
        act_times(&world.books, &socket, reused);
        world.connect();
        let writers = world.writers(socket.clone(), 3, 15);
        std::thread::sleep(world.random.millis(100, 400));
        writers.finish();
        world.machine.settle();
        let found = world.check();
        assert_eq!(found.unanswered, 0, "{found:?}");
        assert!(world.epochs() > 1, "the numbers were used twice in round {round}");
    }
    let found = world.check();
    eprintln!(
        "a snapshot put back over {transport}: {rounds} times, {} accepted, each stored once; {} lives of the spool",
        found.accepted,
        world.epochs()
    );
    assert_eq!((world.machine.spool("damaged"), world.machine.spool("rejected")), (0, 0));
    assert!(!found.others_with("another copy").is_empty(), "the operator is told: {:?}", found.others);
    world.machine.stop();
}

#[test]
fn a_snapshot_put_back_over_grpc() {
    put_back("auto");
}

#[test]
fn a_snapshot_put_back_over_rest() {
    put_back("rest");
}
