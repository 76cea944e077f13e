//! Vendors, purchases and automation from the outside: the real program against a small stateful fake of both vendors,
//! and the clients against a stock mock server with the vendors' documents.

#![expect(clippy::disallowed_methods, reason = "a client from outside has its own clock and environment")]

#[path = "../../../tests/interop/chain.rs"]
mod chain;
#[expect(dead_code, reason = "shared with the tests of faults, which use all of it")]
#[path = "../support/chaos.rs"]
mod chaos;
#[path = "../../../tests/clock/clock.rs"]
mod clock;
#[expect(dead_code, reason = "shared with the example of the same name, which has other switches")]
mod fake;
#[expect(dead_code, reason = "shared with the tests of payments, which use all of it")]
#[path = "../payments/peer.rs"]
mod peer;
#[expect(dead_code, reason = "shared with the tests of payments, which use all of it")]
#[path = "../payments/shop.rs"]
mod shop;
#[expect(dead_code, reason = "shared with the other tests, which use the rest of it")]
#[path = "../support/mod.rs"]
mod support;

mod automation;
mod fakes;
mod killed;
mod purchases;
mod registrations;
mod renewals;
mod seat;
mod tenants;
mod town;
mod vendors;
