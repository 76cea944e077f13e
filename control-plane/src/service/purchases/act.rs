//! What is asked of vendors for a purchase: the check before an attempt, the attempt, and the looks after it. Nothing
//! here writes to our books; what became known is told.

use otonix_sdk::error::ErrorCode;
use otonix_sdk::money::MicroUsd;
use otonix_sdk::secret::Secret;

use crate::app::App;
use crate::error::Error;
use crate::service::pricing;
use crate::service::purchases::bring::Brought;
use crate::service::purchases::item::{DomainItem, Item, Private, RenewalItem, ServerItem};
use crate::service::purchases::machine::News;
use crate::service::purchases::{contact, find};
use crate::store::purchases::Purchase;
use crate::upstream::providers::{
    BuyDomain, ComputeProvider, CreateServer, Cycle, Deadline, Decimal, DomainName, OrderState, Purpose,
    Refusal, Registrar, RenewDomain, Slug, VendorError,
};

/// What became known of a purchase.
#[derive(Debug)]
pub struct Report {
    /// In the words of the state machine.
    pub news: News,
    /// What the vendor has given.
    pub brought: Option<Brought>,
    /// The vendor's name of its order.
    pub vendor_ref: Option<String>,
    /// Why not, as a code.
    pub code: ErrorCode,
    /// The same in words.
    pub detail: String,
}

impl Report {
    /// News without goods.
    pub fn new(news: News, code: ErrorCode, detail: impl Into<String>) -> Self {
        Self { news, brought: None, vendor_ref: None, code, detail: detail.into() }
    }

    /// The goods are there.
    pub fn present(brought: Brought) -> Self {
        Self { brought: Some(brought), ..Self::new(News::Present, ErrorCode::PurchaseFailed, "") }
    }

    fn accepted(vendor_ref: String) -> Self {
        Self { vendor_ref: Some(vendor_ref), ..Self::new(News::Accepted, ErrorCode::PurchaseFailed, "") }
    }

    pub(super) fn silent(why: &VendorError) -> Self {
        Self::new(News::Silent, ErrorCode::UpstreamUnavailable, why.to_string())
    }

    pub(super) fn absent(detail: &str) -> Self {
        Self::new(News::Absent, ErrorCode::PurchaseFailed, detail)
    }

    fn refused(code: ErrorCode, detail: impl Into<String>) -> Self {
        Self::new(News::Refused, code, detail)
    }

    /// A read before the attempt failed: nothing was sent.
    fn not_ready(why: &VendorError) -> Self {
        Self::new(News::NotDone, ErrorCode::UpstreamUnavailable, why.to_string())
    }

    /// A write was answered with an error.
    fn of_write(why: &VendorError) -> Self {
        match why {
            VendorError::Unknown { detail } => {
                Self::new(News::Lost, ErrorCode::UpstreamUnavailable, detail.clone())
            }
            VendorError::NotDone { reason, detail, .. } => {
                // What the operator mends may be mended before the money goes back.
                let mended = matches!(reason, Refusal::Unauthorised | Refusal::NoCredit);
                let news = if reason.passes() || mended { News::NotDone } else { News::Refused };
                Self::new(news, reason.code(), detail.clone())
            }
        }
    }
}

/// An attempt that may be sent, with everything that was to be known before.
pub enum Ready {
    /// Buys a domain.
    Domain(Box<BuyDomain>),
    /// Renews a domain.
    Renewal(RenewDomain),
    /// Buys a server.
    Server(Box<CreateServer>),
}

/// The registrar.
///
/// # Errors
/// A report that nothing was done.
pub(super) fn registrar(app: &App) -> Result<&dyn Registrar, Report> {
    let missing =
        || Report::new(News::NotDone, ErrorCode::UpstreamNotConfigured, "no registrar is configured");
    app.vendors.domains_for(Purpose::Purchase).map(AsRef::as_ref).ok_or_else(missing)
}

/// Whoever sells servers.
///
/// # Errors
/// A report that nothing was done.
pub(super) fn compute(app: &App) -> Result<&dyn ComputeProvider, Report> {
    let missing =
        || Report::new(News::NotDone, ErrorCode::UpstreamNotConfigured, "no seller of servers is configured");
    app.vendors.servers_for(Purpose::Purchase).map(AsRef::as_ref).ok_or_else(missing)
}

fn unreadable(what: &str) -> Report {
    Report::refused(ErrorCode::PurchaseFailed, format!("the purchase's {what} cannot be read"))
}

pub(super) fn name_of(domain: &str) -> Result<DomainName, Report> {
    DomainName::parse(domain).ok_or_else(|| unreadable("domain"))
}

/// Checks everything again that must hold right before an attempt.
///
/// # Errors
/// What stands in the way; nothing was sent.
pub async fn prepare(app: &App, purchase: &Purchase, item: &Item) -> Result<Ready, Report> {
    let price = MicroUsd::from_micros(purchase.price);
    if purchase.attempts > 0 {
        // An attempt before this one was given up as not done: the last look is right before the next.
        let report = find::look(app, purchase, item).await;
        match report.news {
            News::Absent => {}
            News::Present | News::UnderWay => return Err(report),
            // It is somebody's by now, perhaps by the attempt before.
            News::Silent if report.code == ErrorCode::DomainNotAvailable => {
                return Err(Report { news: News::UnderWay, ..report });
            }
            _ => return Err(Report { news: News::NotDone, ..report }),
        }
    }
    match item {
        Item::Domain(item) => {
            domain(app, purchase, item, price).await.map(|order| Ready::Domain(Box::new(order)))
        }
        Item::Renewal(item) => renewal(app, item, price).await.map(Ready::Renewal),
        Item::Server(item) => {
            server(app, purchase, item, price).await.map(|order| Ready::Server(Box::new(order)))
        }
        Item::Period(_) => Err(unreadable("kind")),
    }
}

fn expected(error: &Error) -> Report {
    match error {
        Error::Busy { .. } | Error::NotConfigured { .. } | Error::Store(_) | Error::Internal(_) => {
            Report::new(News::NotDone, error.code(), error.to_string())
        }
        _ => Report::refused(error.code(), error.to_string()),
    }
}

fn at_most(quoted: MicroUsd, paid: MicroUsd) -> Result<(), Report> {
    if quoted <= paid {
        return Ok(());
    }
    Err(Report::refused(
        ErrorCode::PriceMoved,
        format!("it costs {quoted} USDC now, and {paid} USDC were paid"),
    ))
}

async fn domain(
    app: &App,
    purchase: &Purchase,
    item: &DomainItem,
    price: MicroUsd,
) -> Result<BuyDomain, Report> {
    let registrar = registrar(app)?;
    let name = name_of(&item.domain)?;
    // What is in the account already could not be told from what this attempt buys.
    if registrar.domain(&name).await.map_err(|why| Report::not_ready(&why))?.is_some() {
        let detail = format!("{name} is in the registrar's account already");
        return Err(Report::refused(ErrorCode::DomainNotAvailable, detail));
    }
    let quote =
        pricing::domain(app, Purpose::Purchase, &name, item.years).await.map_err(|error| expected(&error))?;
    at_most(quote.price, price)?;
    let contact = contact::of(app, Private::of(purchase).contact);
    let contact = contact.ok_or_else(|| {
        Report::refused(ErrorCode::ContactRequired, "there is no registrant contact (any more)")
    })?;
    Ok(BuyDomain {
        domain: name,
        years: item.years,
        expected: quote.expected,
        contact,
        language_code: item.language_code.clone(),
    })
}

async fn renewal(app: &App, item: &RenewalItem, price: MicroUsd) -> Result<RenewDomain, Report> {
    let registrar = registrar(app)?;
    let name = name_of(&item.domain)?;
    let owned = registrar.domain(&name).await.map_err(|why| Report::not_ready(&why))?;
    let expires_at = owned.and_then(|owned| owned.expires_at);
    let Some(expires_at) = expires_at else {
        let detail = format!("{name} is not in the registrar's account");
        return Err(Report::refused(ErrorCode::NotFound, detail));
    };
    if find::is_renewed(item, expires_at) {
        let detail = format!("{name} was renewed otherwise, until {expires_at}");
        return Err(Report::refused(ErrorCode::Conflict, detail));
    }
    let quote = pricing::renewal(app, &name, item.years).await.map_err(|error| expected(&error))?;
    at_most(quote.price, price)?;
    Ok(RenewDomain { domain: name, years: item.years, expected: quote.expected })
}

async fn server(
    app: &App,
    purchase: &Purchase,
    item: &ServerItem,
    price: MicroUsd,
) -> Result<CreateServer, Report> {
    compute(app)?;
    let slug = |text: &str| Slug::parse(text).ok_or_else(|| unreadable("server"));
    let (plan, region, image) = (slug(&item.plan)?, slug(&item.region)?, slug(&item.image)?);
    let cycle = Cycle::parse(&item.cycle).ok_or_else(|| unreadable("cycle"))?;
    let quote = pricing::server(app, Purpose::Purchase, (&plan, &region), cycle, item.periods).await;
    let quote = quote.map_err(|error| expected(&error))?;
    at_most(quote.price, price)?;
    Ok(CreateServer {
        project: item.project,
        plan,
        region,
        image,
        hostname: item.hostname.clone(),
        cycle,
        ssh_keys: item.ssh_keys.clone(),
        user_data: Private::of(purchase).user_data.map(Secret::new),
        tags: [(find::TAG.to_owned(), purchase.id.to_string())].into_iter().collect(),
    })
}

/// Sends an attempt, before its deadline or not at all.
pub async fn send(app: &App, ready: &Ready, until: Deadline) -> Report {
    let sent = match ready {
        Ready::Domain(order) => match registrar(app) {
            Ok(registrar) => registrar.buy(order, until).await.map(|id| Report::accepted(id.to_string())),
            Err(report) => return report,
        },
        Ready::Renewal(order) => match registrar(app) {
            Ok(registrar) => registrar.renew(order, until).await.map(|id| Report::accepted(id.to_string())),
            Err(report) => return report,
        },
        Ready::Server(order) => match compute(app) {
            Ok(compute) => compute
                .create(order, until)
                .await
                .map(|created| Report::present(Brought::Server(Box::new(created.server)))),
            Err(report) => return report,
        },
    };
    sent.unwrap_or_else(|why| Report::of_write(&why))
}

/// Asks after the order that the vendor has named.
pub async fn follow(app: &App, purchase: &Purchase, item: &Item) -> Report {
    let order = purchase.vendor_ref.as_deref().and_then(Slug::parse);
    let state = match (registrar(app), order) {
        (Ok(registrar), Some(order)) => registrar.order(&order).await,
        (Err(report), _) => return Report { news: News::Silent, ..report },
        (Ok(_), None) => Ok(None),
    };
    match state {
        Err(why) => Report::silent(&why),
        Ok(Some(OrderState::Purchasing)) => {
            Report::new(News::UnderWay, ErrorCode::UpstreamUnavailable, "the registrar carries it out")
        }
        Ok(Some(OrderState::Completed { price })) => {
            warn_of_price(purchase, price);
            there(app, purchase, item).await
        }
        // What the vendor calls an error may be there all the same, and an order may be forgotten.
        Ok(None) => there(app, purchase, item).await,
        Ok(Some(OrderState::Failed { code })) => failed(app, purchase, item, &code, false).await,
        Ok(Some(OrderState::FailedUnrefunded { code })) => failed(app, purchase, item, &code, true).await,
    }
}

fn warn_of_price(purchase: &Purchase, price: Option<Decimal>) {
    let price = price.and_then(Decimal::to_micro_usd);
    if let Some(price) = price.filter(|price| price.micros() > purchase.price) {
        tracing::warn!(purchase.id = %purchase.id, price_micro = price.micros(), paid_micro = purchase.price,
            "the registrar charged more than was paid");
    }
}

/// A look that tells presence only: the vendor's own word says that the order exists.
async fn there(app: &App, purchase: &Purchase, item: &Item) -> Report {
    let report = find::look(app, purchase, item).await;
    if report.news == News::Absent {
        return Report { news: News::UnderWay, ..report };
    }
    report
}

async fn failed(app: &App, purchase: &Purchase, item: &Item, code: &str, unrefunded: bool) -> Report {
    let report = find::look(app, purchase, item).await;
    if matches!(report.news, News::Present | News::Silent) {
        return report;
    }
    if unrefunded {
        tracing::error!(purchase.id = %purchase.id, code, "the registrar has not given the money of a failed order back");
    }
    let detail = format!("the registrar could not carry the order out ({})", code.replace('-', " "));
    Report::refused(code_of(code), detail)
}

fn code_of(code: &str) -> ErrorCode {
    match code {
        "price-mismatch" | "price-change" => ErrorCode::PriceMoved,
        "unavailable-legal" => ErrorCode::DomainNotAvailable,
        "invalid-contact" => ErrorCode::ContactRefused,
        _ => ErrorCode::PurchaseFailed,
    }
}
