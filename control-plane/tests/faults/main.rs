//! What the control plane promises when things break: killed in the middle of its work, a slow, cut or crashed
//! database, clients that hang up, drip and flood, several replicas, clocks that jump, races.
//!
//! By default each test is a short run of its kind; the whole takes about three minutes on two busy cores. Longer:
//! - `OTONIX_FAULT_ROUNDS` (4): kills of the server, and of PostgreSQL, per test.
//! - `OTONIX_FAULT_HANG_UPS` (300): clients that hang up on a slow database.
//! - `OTONIX_FAULT_CASES` (24): random histories of the ledger per store.
//! - `OTONIX_FAULT_INPUTS` (4): how often every hostile input is sent while memory is watched.
//! - `OTONIX_FAULT_STOP_SECS` (17): how long a server or database stays away in the tests of liveness; 600 is the
//!   ten minutes of the promise (without it they are shown on a clock that the test moves).
//!
//! A failed run names its random seed; `OTONIX_FAULT_SEED` repeats the choices (not the timing).
//! The header drips need about 6,000 open files here and as many in the server; a lower hard limit makes them fewer,
//! and the test says so.

#[expect(dead_code, reason = "shared with the tests of the contract, which use all of it")]
#[expect(clippy::disallowed_methods, reason = "a client from outside has its own clock and environment")]
#[path = "../support/mod.rs"]
mod support;

#[path = "../support/chaos.rs"]
mod chaos;

mod floods;
mod hang_ups;
mod inputs;
mod library;
mod liveness;
mod load;
mod overload;
mod postgres;
mod races;
mod replicas;
mod server_kills;
mod streams;

use std::sync::atomic::{AtomicU64, Ordering};

use rand::rngs::StdRng;
use rand::{Rng as _, SeedableRng as _};

use self::load::Client;
use self::streams::Streamer;
use self::support::Key;
use self::support::Server;

/// A number from the environment.
fn setting(name: &str, otherwise: u64) -> u64 {
    std::env::var_os(name).and_then(|text| text.to_str()?.parse().ok()).unwrap_or(otherwise)
}

/// Chance for a test; its seed is told, and shown when the test fails.
fn chance() -> StdRng {
    static NEXT: AtomicU64 = AtomicU64::new(0);
    let seed =
        setting("OTONIX_FAULT_SEED", rand::random::<u32>().into()) + NEXT.fetch_add(1, Ordering::Relaxed);
    eprintln!("OTONIX_FAULT_SEED={seed}");
    StdRng::seed_from_u64(seed)
}

/// Agents under load: three clients over REST on each of the first, one stream for each of as many others.
async fn crowd(
    server: &Server,
    key: &Key,
    chance: &mut StdRng,
    agents: usize,
) -> (Vec<Client>, Vec<Streamer>) {
    let (mut clients, mut streamers) = (Vec::new(), Vec::new());
    for n in 0..agents {
        let agent = server.register(key, &format!("rest-{n}")).await;
        for m in 0..3 {
            let own = StdRng::seed_from_u64(chance.random());
            clients.push(Client::new(server, &agent, &format!("c{n}{m}"), own));
        }
        let agent = server.register(key, &format!("stream-{n}")).await;
        streamers.push(Streamer::new(server, &agent, StdRng::seed_from_u64(chance.random())));
    }
    (clients, streamers)
}
