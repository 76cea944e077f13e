//! Purchases: settled first, then bought, each payment once, whatever the vendor does.

mod bench;
mod bootstrap;
mod credits;
mod flows;
mod histories;
mod kills;
mod offers;
mod races;
mod reversals;
mod servers;
mod shelf;
