//! Real daemons, a real control plane and real files, with everything between them failing: what the local API
//! accepted is in the database exactly once, whatever was killed, cut, copied, filled up or damaged.
//!
//! ```text
//! cargo test -p otonix-agent-daemon --test crash                                            # a minute; CI
//! KILLS=1000 cargo test -p otonix-agent-daemon --test crash kills -- --nocapture            # the long run, half an hour
//! WATCH=600 cargo test -p otonix-agent-daemon --test crash clones -- --nocapture            # two copies, ten minutes
//! ```
//!
//! `KILLS` is how often daemons are killed altogether, `ROUNDS` how often a snapshot is put back and files are damaged,
//! `WATCH` for how many seconds two copies live side by side. `SEED` repeats the choices of an earlier run (a run prints
//! its own), as far as two machines' timing can be repeated. `OTONIX_CONTROL_PLANE_BIN` names another control plane
//! than the one beside the daemon's program.

#[path = "../support/mod.rs"]
mod support;

mod books;
mod clones;
mod damage;
mod disk;
mod kills;
mod offline;
mod proxy;
mod random;
mod server;
mod snapshot;
mod world;
mod writers;
