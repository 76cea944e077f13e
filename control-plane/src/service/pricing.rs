//! Vendors' prices in USDC: dollars as they are, euros by the configured rate while it counts, nothing else.

use otonix_sdk::error::ErrorCode;
use otonix_sdk::money::MicroUsd;

use crate::app::App;
use crate::error::Error;
use crate::upstream::providers::{Currency, Decimal};

/// What an amount of a vendor is in USDC, rounded up to the micro-unit.
///
/// # Errors
/// 503 `price_unavailable` without a rate that counts.
pub fn in_usdc(app: &App, amount: Decimal, currency: &Currency) -> Result<MicroUsd, Error> {
    let unavailable = |detail| Error::NotConfigured { code: ErrorCode::PriceUnavailable, detail };
    let dollars = match currency {
        Currency::Usd => Some(amount),
        Currency::Eur => {
            let rate = app.settings.vendors.eur.and_then(|rate| rate.at(app.clock.now()));
            let none = "the vendor bills in euros, and this server has no rate that still counts";
            amount.times(rate.ok_or_else(|| unavailable(none))?)
        }
        Currency::Other(_) => None,
    };
    let none = "the vendor's price cannot be given in USDC";
    dollars
        .and_then(Decimal::to_micro_usd)
        .filter(|price| *price > MicroUsd::ZERO)
        .ok_or_else(|| unavailable(none))
}
