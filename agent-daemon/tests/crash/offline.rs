//! A daemon without its server.

use crate::world::World;
use crate::writers::act_times;

#[test]
fn what_was_recorded_without_a_server_arrives_when_there_is_one() {
    for transport in ["grpc", "rest"] {
        let mut world = World::new(&format!("offline over {transport}"), transport);
        // Not only out of reach: it does not run.
        world.disconnect();
        world.server.stop();
        world.machine.start_and_wait();
        act_times(&world.books, &world.machine.socket(), 50);
        let status = world.machine.status().expect("a status");
        assert_eq!(status["connected"], false);
        assert!(status["spool"]["pending"].as_u64().is_some_and(|pending| pending >= 50), "{status}");
        world.machine.kill();
        world.machine.start_and_wait();
        let socket = world.machine.socket();
        let writers = world.writers(socket, 2, 10);
        std::thread::sleep(std::time::Duration::from_millis(500));
        writers.finish();
        let pending = world.machine.spool("pending");
        assert!(pending > 50, "{pending}");
        world.server.again();
        world.connect();
        world.machine.settle();
        let found = world.check();
        assert!(found.accepted > 50 && found.unanswered == 0, "{found:?}");
        world.machine.stop();
    }
}
