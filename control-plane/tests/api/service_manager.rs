//! What systemd hears: readiness, that the server is alive, and its stop.

use std::os::unix::net::UnixDatagram;
use std::time::{Duration, Instant};

use crate::support::{Server, Store};

/// Waits until a state is told.
fn hear(socket: &UnixDatagram, state: &str) {
    let deadline = Instant::now() + Duration::from_secs(10);
    let mut message = [0; 4096];
    while Instant::now() < deadline {
        if let Ok(length) = socket.recv(&mut message)
            && String::from_utf8_lossy(&message[..length]).lines().any(|line| line == state)
        {
            return;
        }
    }
    panic!("{state} was never told");
}

#[tokio::test(flavor = "multi_thread")]
async fn sqlite_readiness_life_and_stop_are_told() {
    let dir = tempfile::tempdir().expect("a directory");
    let path = dir.path().join("notify");
    let socket = UnixDatagram::bind(&path).expect("a socket");
    socket.set_read_timeout(Some(Duration::from_millis(200))).expect("a timeout");
    let options = Server::with(Store::Sqlite).await.env("NOTIFY_SOCKET", path.to_str().expect("a path"));
    let mut server = options.env("WATCHDOG_USEC", "600000").start().await;
    hear(&socket, "READY=1");
    for _ in 0..3 {
        hear(&socket, "WATCHDOG=1");
    }
    server.terminate();
    hear(&socket, "STOPPING=1");
    server.stop_already_asked().await;
}
