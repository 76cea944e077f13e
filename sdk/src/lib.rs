//! The contract of Otonix and everything an agent needs to live on it.
//!
//! Without features this crate is pure: types, exact money, the survival tier, model routing.
//! It never does I/O, never spawns, and reads the time only inside [`clock::SystemClock`].
//! I/O sits behind features: `client` (REST), `link` (the durable session), `wallet`, `agent` (all in one type).

#[cfg(feature = "agent")]
pub mod agent;
pub mod api;
pub mod body;
#[cfg(all(feature = "wallet", feature = "client"))]
pub mod chain;
#[cfg(feature = "client")]
pub mod client;
pub mod clock;
#[cfg(feature = "link")]
pub mod convert;
pub mod error;
pub mod ids;
pub mod limits;
#[cfg(feature = "agent")]
pub mod link;
pub mod money;
#[cfg(feature = "agent")]
pub mod pay;
pub mod prices;
pub mod routing;
pub mod secret;
pub mod standing;
#[cfg(feature = "wallet")]
pub mod wallet;
pub mod x402;
