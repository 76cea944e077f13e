//! Being paid, from the outside: the real program, a real chain with the real USDC contract, on SQLite and PostgreSQL.

#![expect(clippy::disallowed_methods, reason = "a client from outside has its own clock and environment")]

#[path = "../../../tests/interop/chain.rs"]
mod chain;
#[expect(dead_code, reason = "shared with the tests of faults, which use all of it")]
#[path = "../support/chaos.rs"]
mod chaos;
#[path = "../infra/killed/gate.rs"]
mod gate;
#[expect(dead_code, unused_imports, reason = "shared with the other tests, which use the rest of it")]
#[path = "../support/mod.rs"]
mod support;

mod carried;
mod claims;
mod exact;
mod faults;
mod killed;
mod movements;
mod orders;
mod peer;
mod reorgs;
mod shop;
