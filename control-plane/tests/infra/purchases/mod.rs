//! Purchases: settled first, then bought, each payment once, whatever the vendor does.

mod bench;
mod bootstrap;
mod credits;
mod crowds;
mod ends;
mod flows;
mod histories;
mod kills;
mod leases;
mod offers;
mod races;
mod reversals;
mod servers;
mod shelf;
