//! Purchases: settled first, then bought, each payment once, whatever the vendor does.

mod bench;
mod credits;
mod flows;
mod histories;
mod races;
mod reversals;
mod servers;
mod shelf;
