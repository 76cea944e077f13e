//! A disk without room under the state directory.

use std::fs::{self, File};
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use serde_json::Value;

use crate::books::Outcome;
use crate::support::eventually;
use crate::world::World;
use crate::writers::act;

/// A small file system; unmounted when dropped.
struct SmallDisk(PathBuf);

impl SmallDisk {
    /// Mounts one over a directory; none when this process may not.
    fn mount(over: &Path) -> Option<Self> {
        let mut mount = Command::new("mount");
        mount.args(["-t", "tmpfs", "-o", "size=1m,mode=0700", "tmpfs"]).arg(over).stderr(Stdio::null());
        mount.status().is_ok_and(|status| status.success()).then(|| Self(over.to_owned()))
    }

    /// Takes all the room there is.
    fn fill(&self) {
        let mut file = File::create(self.filler()).expect("a file");
        while file.write_all(&[0; 4096]).is_ok() {}
        while file.write_all(&[0; 1]).is_ok() {}
    }

    fn free(&self) {
        fs::remove_file(self.filler()).expect("our file");
    }

    fn filler(&self) -> PathBuf {
        self.0.join("filler")
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        // Lazily: whatever still has a file open there must not keep it.
        let _ = Command::new("umount").arg("-l").arg(&self.0).status();
    }
}

/// Posts until one is refused; how many were accepted before.
fn until_refused(world: &World) -> u64 {
    for accepted in 0..5000 {
        if act(&world.books, &world.machine.socket(), 300) == Outcome::Refused {
            return accepted;
        }
    }
    panic!("the disk is full and everything is accepted")
}

fn last_heartbeat(world: &World) -> String {
    world.server.agent(&world.agent)["lastHeartbeat"].as_str().unwrap_or_default().to_owned()
}

/// Waits for so many more heartbeats.
fn beats_go_on(world: &World, beats: u32) {
    let mut before = last_heartbeat(world);
    for _ in 0..beats {
        before = eventually("a heartbeat", || Some(last_heartbeat(world)).filter(|now| *now > before));
    }
}

fn is_refused(world: &World) {
    assert_eq!(act(&world.books, &world.machine.socket(), 300), Outcome::Refused);
}

fn is_accepted_again(world: &World) {
    eventually("room again", || {
        let outcome = act(&world.books, &world.machine.socket(), 300);
        matches!(outcome, Outcome::Accepted(_)).then_some(())
    });
}

fn full_disk(transport: &str) {
    let place = tempfile::tempdir().expect("a directory");
    let Some(disk) = SmallDisk::mount(place.path()) else {
        eprintln!("a full disk over {transport}: left out, mounting is not permitted");
        return;
    };
    let mut world = World::on(&format!("a full disk over {transport}"), transport, Some(place.path()));
    world.machine.start_and_wait();
    is_accepted_again(&world);
    world.machine.settle();

    // The disk fills up while the daemon is connected, and while it is not.
    disk.fill();
    until_refused(&world);
    beats_go_on(&world, 2);
    is_refused(&world);
    disk.free();
    is_accepted_again(&world);
    world.disconnect();
    until_refused(&world);
    disk.fill();
    is_refused(&world);
    let pending = world.machine.spool("pending");
    assert!(pending > 100, "{pending}");

    // It also starts on a full disk, delivers what it has and beats.
    world.machine.kill();
    world.machine.start_and_wait();
    is_refused(&world);
    world.connect();
    beats_go_on(&world, 2);
    world.machine.settle();
    let status = world.machine.status().expect("a status");
    assert_eq!(status["connected"], true, "{status}");

    disk.free();
    is_accepted_again(&world);
    let socket = world.machine.socket();
    let writers = world.writers(socket, 2, 10);
    std::thread::sleep(Duration::from_millis(500));
    writers.finish();
    world.machine.settle();
    let found = world.check();
    eprintln!(
        "a full disk over {transport}: {} accepted, each stored once; {} refused, none stored",
        found.accepted, found.refused
    );
    assert_eq!((world.machine.spool("damaged"), world.machine.spool("rejected"), world.epochs()), (0, 0, 1));
    world.machine.stop();
}

#[test]
fn a_full_disk_over_grpc() {
    full_disk("grpc");
}

#[test]
fn a_full_disk_over_rest() {
    full_disk("rest");
}

/// The kernel refuses writes beyond a size, as a quota does; needs no rights.
#[test]
fn files_that_may_not_grow() {
    let mut world = World::new("files that may not grow", "grpc");
    // Soft limit: 64 KiB for every file; it can be lifted later.
    let wrapper = "trap '' XFSZ; exec prlimit --fsize=65536:unlimited \"$@\"";
    world.machine.before = ["sh", "-c", wrapper, "sh"].map(str::to_owned).to_vec();
    world.disconnect();
    world.machine.start_and_wait();
    let accepted = until_refused(&world);
    assert!(accepted > 50, "{accepted}");
    world.connect();
    beats_go_on(&world, 1);
    is_refused(&world);
    world.machine.settle();
    let pid = world.machine.pid().to_string();
    let lifted = Command::new("prlimit").args(["--pid", &pid, "--fsize=unlimited:unlimited"]).status();
    assert!(lifted.is_ok_and(|status| status.success()));
    is_accepted_again(&world);
    world.machine.settle();
    let found = world.check();
    assert!(found.refused >= 2);
    assert_eq!(world.machine.status().map(|status| status["spool"]["pending"].clone()), Some(Value::from(0)));
    world.machine.stop();
}
