//! Daemons killed at random moments while programs post, the server comes and goes, and answers are lost.

use std::sync::atomic::{AtomicBool, Ordering::SeqCst};
use std::time::{Duration, Instant};

use crate::proxy::Proxy;
use crate::random::{Random, number};
use crate::server::Server;
use crate::world::World;

/// How often daemons are killed when nothing else is said, over all transports.
const KILLS: u64 = 66;
/// Programs that post.
const WRITERS: u64 = 4;

/// Set when dropped, so that a failure ends the other threads too.
struct End<'a>(&'a AtomicBool);

impl Drop for End<'_> {
    fn drop(&mut self) {
        self.0.store(true, SeqCst);
    }
}

/// What happened to the server.
#[derive(Debug, Default)]
struct ServerCounts {
    kills: u64,
    stops: u64,
    slowest_stop: Duration,
}

/// Kills and stops the server at random until the end; leaves it running.
fn come_and_go(server: &mut Server, proxy: &Proxy, mut random: Random, ended: &AtomicBool) -> ServerCounts {
    let mut counts = ServerCounts::default();
    while !ended.load(SeqCst) {
        let until = Instant::now() + random.millis(300, 6000);
        while Instant::now() < until && !ended.load(SeqCst) {
            std::thread::sleep(Duration::from_millis(20));
        }
        if random.percent(60) {
            server.kill();
            counts.kills += 1;
        } else {
            counts.slowest_stop = counts.slowest_stop.max(server.stop());
            counts.stops += 1;
        }
        std::thread::sleep(random.millis(0, 800));
        server.again();
        proxy.aim(Some(server.address()));
    }
    counts
}

/// How long a daemon lives: often not long enough to have started.
fn life(random: &mut Random) -> Duration {
    match random.below(10) {
        0 | 1 => random.millis(0, 80),
        2..8 => random.millis(80, 1000),
        _ => random.millis(1000, 3000),
    }
}

fn kill_daemons(transport: &str, kills: u64) {
    let what = format!("kills over {transport}");
    let began = Instant::now();
    let mut world = World::new(&what, transport);
    let pause_ms = if kills > 100 { 80 } else { 30 };
    let socket = world.machine.socket();
    let writers = world.writers(socket, WRITERS, pause_ms);
    world.proxy.faults(true);
    let ended = AtomicBool::new(false);
    let mut random = world.random.split();
    let (server, proxy, machine) = (&mut world.server, &world.proxy, &mut world.machine);
    let comings = std::thread::scope(|scope| {
        let coming = random.split();
        let ended = &ended;
        let comings = scope.spawn(move || come_and_go(server, proxy, coming, ended));
        let end = End(ended);
        for kill in 1..=kills {
            machine.start();
            std::thread::sleep(life(&mut random));
            machine.kill();
            if kill % 100 == 0 {
                eprintln!("{what}: {kill} kills after {:?}", began.elapsed());
            }
        }
        drop(end);
        comings.join().expect("the server comes and goes")
    });
    world.proxy.faults(false);
    world.machine.start_and_wait();
    writers.finish();
    let damaged = world.machine.spool("damaged");
    world.machine.settle();
    let rejected = world.machine.spool("rejected");
    let found = world.check();
    let counts = world.proxy.counts();
    eprintln!(
        "{what}: {kills} kills of the daemon, {} kills and {} stops of the server (slowest {:?}), {} connections, \
         {} cut, {} bytes of answers lost; {} accepted, each stored once; {} unanswered, {} of them stored once; \
         {} actions of daemon and server; {:?}",
        comings.kills,
        comings.stops,
        comings.slowest_stop,
        counts.connections.load(SeqCst),
        counts.cuts.load(SeqCst),
        counts.lost.load(SeqCst),
        found.accepted,
        found.unanswered,
        found.unanswered_stored,
        found.others.len(),
        began.elapsed(),
    );
    assert!(found.accepted > kills * 5, "the programs hardly posted anything");
    // A kill damages nothing, takes no machine for another, and what is posted is never unstorable.
    assert_eq!((damaged, rejected, world.epochs()), (0, 0, 1));
    assert!(found.others_with("another").is_empty(), "{:?}", found.others_with("another"));
    assert!(found.others_with("lost").is_empty(), "{:?}", found.others_with("lost"));
    world.machine.stop();
}

#[test]
fn kills_over_grpc() {
    kill_daemons("grpc", number("KILLS", KILLS) * 45 / 100);
}

#[test]
fn kills_over_rest() {
    kill_daemons("rest", number("KILLS", KILLS) * 45 / 100);
}

#[test]
fn kills_over_whichever_transport_works() {
    kill_daemons("auto", number("KILLS", KILLS).div_ceil(10));
}
