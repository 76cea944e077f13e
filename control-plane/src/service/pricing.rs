//! What things cost now: the vendors' own prices, as the vendor bills them, in USDC: dollars as they are, euros by the
//! configured rate while it counts, nothing else.

use std::time::Duration;

use otonix_sdk::error::ErrorCode;
use otonix_sdk::money::MicroUsd;

use crate::app::App;
use crate::error::Error;
use crate::upstream::providers::{
    Currency, Cycle, Decimal, DomainName, Plan, Purpose, Refusal, Slug, VendorError,
};

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

/// What a domain costs.
#[derive(Debug, Clone, Copy)]
pub struct DomainQuote {
    /// In USDC.
    pub price: MicroUsd,
    /// As the registrar wants to be told it.
    pub expected: Decimal,
    /// What a renewal for a year costs.
    pub renewal: Option<MicroUsd>,
}

/// What a server costs.
#[derive(Debug, Clone)]
pub struct ServerQuote {
    /// In USDC, for all periods.
    pub price: MicroUsd,
    /// The plan.
    pub plan: Plan,
}

/// A vendor's error as the caller hears it.
pub fn vendor_error(why: VendorError) -> Error {
    tracing::warn!(error = %why, "a vendor did not answer");
    let code = why.refusal().map_or(ErrorCode::UpstreamUnavailable, Refusal::code);
    match why.refusal() {
        Some(Refusal::NotFound | Refusal::NotRegistered) => Error::not_found("thing", "at the vendor"),
        Some(
            Refusal::PriceMoved
            | Refusal::OutOfStock
            | Refusal::DomainNotAvailable
            | Refusal::AlreadyThere
            | Refusal::TldNotSupported
            | Refusal::TooExpensive
            | Refusal::ContactRefused
            | Refusal::LanguageCodeRequired
            | Refusal::Invalid,
        ) => Error::conflict(code, why.to_string()),
        _ => Error::Busy {
            code,
            retry_after: Duration::from_secs(5),
            detail: "the vendor cannot be asked now; try again",
        },
    }
}

fn not_configured() -> Error {
    Error::NotConfigured {
        code: ErrorCode::UpstreamNotConfigured,
        detail: "this vendor is not configured on this server",
    }
}

/// A price that is there, as the registrar tells it and in USDC.
fn told(price: Option<Decimal>, name: &DomainName, what: &str) -> Result<(Decimal, MicroUsd), Error> {
    let both = price.and_then(|price| Some((price, price.to_micro_usd()?)));
    both.ok_or_else(|| Error::conflict(ErrorCode::DomainNotAvailable, format!("{name} cannot be {what}")))
}

/// What a domain costs for a number of years.
///
/// # Errors
/// 409 when it is not for sale, 503 when the registrar cannot be asked.
pub async fn domain(
    app: &App,
    purpose: Purpose,
    name: &DomainName,
    years: u32,
) -> Result<DomainQuote, Error> {
    let registrar = app.vendors.domains_for(purpose).ok_or_else(not_configured)?;
    let price = registrar.price(name, years).await.map_err(vendor_error)?;
    let (expected, in_usdc) = told(price.purchase, name, "registered")?;
    let renewal = match (years, price.renewal) {
        (1, renewal) => renewal,
        (_, _) => registrar.price(name, 1).await.map_err(vendor_error)?.renewal,
    };
    Ok(DomainQuote { price: in_usdc, expected, renewal: renewal.and_then(Decimal::to_micro_usd) })
}

/// What more years for a domain cost; only who renews it asks.
///
/// # Errors
/// 409 when it cannot be renewed, 503 when the registrar cannot be asked.
pub async fn renewal(app: &App, name: &DomainName, years: u32) -> Result<DomainQuote, Error> {
    let registrar = app.vendors.domains_for(Purpose::Purchase).ok_or_else(not_configured)?;
    let price = registrar.price(name, years).await.map_err(vendor_error)?;
    let (expected, in_usdc) = told(price.renewal, name, "renewed")?;
    Ok(DomainQuote { price: in_usdc, expected, renewal: Some(in_usdc) })
}

/// What a server costs for a number of periods, when it can be had there.
///
/// # Errors
/// 400 for a plan, region or cycle that is not sold, 409 `out_of_stock`, 503.
pub async fn server(
    app: &App,
    purpose: Purpose,
    (plan, region): (&Slug, &Slug),
    cycle: Cycle,
    periods: u32,
) -> Result<ServerQuote, Error> {
    let compute = app.vendors.servers_for(purpose).ok_or_else(not_configured)?;
    let found = sold_now(app, purpose).await?.into_iter().find(|known| known.slug == *plan);
    let quote = priced(app, found.ok_or_else(|| Error::invalid("plan", "is not sold"))?, cycle, periods)?;
    let Some(stock) = quote.plan.stock.iter().find(|stock| stock.region == *region) else {
        let known = compute.region(region).await.map_err(vendor_error)?;
        let why = if known.is_some() { "does not have this plan" } else { "is none of the vendor's" };
        return Err(Error::invalid("region", why));
    };
    if stock.quantity == Some(0) {
        let detail = format!("{region} has no {plan} now");
        return Err(Error::conflict(ErrorCode::OutOfStock, detail));
    }
    Ok(quote)
}

/// What so many periods of a plan cost, for a server that is there. A plan that is not sold any more is billed on: then
/// its own page says what it costs.
///
/// # Errors
/// 400 for a plan or cycle that is not sold, 503.
pub async fn period(
    app: &App,
    purpose: Purpose,
    sold: &[Plan],
    plan: &Slug,
    cycle: Cycle,
    periods: u32,
) -> Result<ServerQuote, Error> {
    let compute = app.vendors.servers_for(purpose).ok_or_else(not_configured)?;
    let found = match sold.iter().find(|known| known.slug == *plan) {
        Some(found) => Some(found.clone()),
        None => compute.plan(plan).await.map_err(vendor_error)?,
    };
    priced(app, found.ok_or_else(|| Error::invalid("plan", "is none of the vendor's"))?, cycle, periods)
}

/// What is sold to this account at this moment.
///
/// # Errors
/// 503 when the vendor cannot be asked.
pub async fn sold_now(app: &App, purpose: Purpose) -> Result<Vec<Plan>, Error> {
    let compute = app.vendors.servers_for(purpose).ok_or_else(not_configured)?;
    compute.plans().await.map_err(vendor_error)
}

fn priced(app: &App, plan: Plan, cycle: Cycle, periods: u32) -> Result<ServerQuote, Error> {
    let unit = plan.prices.iter().find(|price| price.cycle == cycle);
    let unit = unit.ok_or_else(|| Error::invalid("cycle", "is not one of this plan's"))?;
    let whole = unit.price.checked_mul(periods).ok_or_else(|| Error::invalid("periods", "are too many"))?;
    let price = in_usdc(app, whole, &unit.currency)?;
    Ok(ServerQuote { price, plan })
}
