//! Paying on a local chain with the real USDC: honest sellers, sellers that fail or cheat, and crashes in between.

#[path = "../../../tests/interop/chain.rs"]
mod chain;
mod example;
mod hostile;
mod journal;
mod orders;
mod plain;
mod seller;
mod world;
