//! Whether an attempt whose answer was lost was carried out: what the vendor's account shows. Only an answered look
//! counts, and only one that leaves no doubt.

use chrono::{DateTime, Months, TimeDelta, Utc};
use otonix_sdk::error::ErrorCode;

use crate::app::App;
use crate::service::purchases::act::{Report, compute, name_of, registrar};
use crate::service::purchases::bring::Brought;
use crate::service::purchases::item::{DomainItem, Item, RenewalItem, ServerItem};
use crate::service::purchases::machine::News;
use crate::store::purchases::Purchase;
use crate::upstream::providers::Server;

/// The mark on a server: the purchase's id.
pub const TAG: &str = "otonix_order";
/// An expiry may move by so much for other reasons than a renewal.
const SLACK: TimeDelta = TimeDelta::days(5);

/// Looks.
pub async fn look(app: &App, purchase: &Purchase, item: &Item) -> Report {
    let looked = match item {
        Item::Domain(item) => domain(app, item).await,
        Item::Renewal(item) => renewal(app, item).await,
        Item::Server(item) => server(app, purchase, item).await,
        Item::Period(_) => Ok(Report::absent("nothing is asked of the vendor")),
    };
    looked.unwrap_or_else(|report| Report { news: News::Silent, ..report })
}

async fn domain(app: &App, item: &DomainItem) -> Result<Report, Report> {
    let registrar = registrar(app)?;
    let name = name_of(&item.domain)?;
    match registrar.domain(&name).await.map_err(|why| Report::silent(&why))? {
        // It was not in the account before the attempt, and no other purchase of it is alive.
        Some(owned) if owned.bought_at.is_some() => {
            Ok(Report::present(Brought::Domain { bought_at: owned.bought_at, expires_at: owned.expires_at }))
        }
        Some(_) => Ok(Report::new(
            News::UnderWay,
            ErrorCode::UpstreamUnavailable,
            "it is in the account, not bought yet",
        )),
        None => {
            let names = [name];
            let free = registrar.available(&names).await.map_err(|why| Report::silent(&why))?;
            if free == [true] {
                return Ok(Report::absent("the domain is not in the account, and still free"));
            }
            // Taken, and not by this account: by somebody else, or by an order that is still under way.
            Ok(Report::new(
                News::Silent,
                ErrorCode::DomainNotAvailable,
                "the domain is neither in the account nor free",
            ))
        }
    }
}

/// Whether an expiry shows that the years were added.
pub fn is_renewed(item: &RenewalItem, expires_at: DateTime<Utc>) -> bool {
    let years = Months::new(item.years.saturating_mul(12));
    let due = item.expires_before.checked_add_months(years).unwrap_or(DateTime::<Utc>::MAX_UTC);
    due.checked_sub_signed(SLACK).is_some_and(|due| expires_at >= due)
}

async fn renewal(app: &App, item: &RenewalItem) -> Result<Report, Report> {
    let registrar = registrar(app)?;
    let name = name_of(&item.domain)?;
    let owned = registrar.domain(&name).await.map_err(|why| Report::silent(&why))?;
    let expires_at = owned.and_then(|owned| owned.expires_at);
    Ok(match expires_at {
        Some(expires_at) if is_renewed(item, expires_at) => Report::present(Brought::Renewal { expires_at }),
        Some(_) => Report::absent("the domain's expiry has not moved"),
        None => Report::new(News::Silent, ErrorCode::NotFound, "the domain's expiry is not known"),
    })
}

async fn server(app: &App, purchase: &Purchase, item: &ServerItem) -> Result<Report, Report> {
    let compute = compute(app)?;
    let mark = purchase.id.to_string();
    let servers = compute.servers(item.project).await.map_err(|why| Report::silent(&why))?;
    let mut marked: Vec<Server> =
        servers.into_iter().filter(|server| server.tags.get(TAG) == Some(&mark)).collect();
    marked.sort_by_key(|server| server.id);
    if marked.len() > 1 {
        let ids: Vec<String> = marked.iter().map(|server| server.id.to_string()).collect();
        tracing::error!(purchase.id = %purchase.id, servers = ids.join(" "), "the vendor has made a server twice");
    }
    Ok(match marked.into_iter().next() {
        Some(server) => Report::present(Brought::Server(Box::new(server))),
        None => Report::absent("no server carries the purchase's mark"),
    })
}
