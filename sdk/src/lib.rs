//! The contract of Otonix and everything an agent needs to live on it.
//!
//! Without features this crate is pure: types, exact money, the survival tier, model routing.
//! It never does I/O, never spawns, and reads the time only inside [`clock::SystemClock`].
//! I/O sits behind features: `client` (REST), `link` (the durable session), `wallet`, `agent` (all in one type).

pub mod api;
pub mod clock;
pub mod error;
pub mod ids;
pub mod limits;
pub mod money;
pub mod prices;
pub mod standing;
