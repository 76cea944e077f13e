//! What a purchase brings: rows of domains and sandboxes, and the answer with them.

use chrono::{DateTime, Months, TimeDelta, Utc};
use otonix_sdk::api::payments::PaymentReceipt;
use otonix_sdk::api::purchases::{DomainBought, ServerBought, ServerExtended, ServerProvisioned};
use otonix_sdk::api::records::{Domain, Sandbox};
use otonix_sdk::clock::to_micros;
use otonix_sdk::ids::{AgentId, DomainId, SandboxId};
use serde::Serialize;
use uuid::Uuid;

use crate::error::Error;
use crate::service::payments::goods::Answer;
use crate::service::purchases::item::{DomainItem, Item, PeriodItem, RenewalItem, ServerItem};
use crate::store::purchases::Purchase;
use crate::store::sandboxes::AtVendor;
use crate::store::writer::Tx;
use crate::store::{domains, sandboxes};
use crate::upstream::providers::{Cycle, Server, ServerStatus};

/// A vendor's clock is believed so far.
const MAX_SKEW: TimeDelta = TimeDelta::hours(26);

/// What the vendor has given.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Brought {
    /// A domain.
    Domain {
        /// When it was bought, by the vendor.
        bought_at: Option<DateTime<Utc>>,
        /// Until when it is ours, by the vendor.
        expires_at: Option<DateTime<Utc>>,
    },
    /// More years for a domain.
    Renewal {
        /// Until when it is ours now.
        expires_at: DateTime<Utc>,
    },
    /// A server.
    Server(Box<Server>),
    /// More time for a server.
    Period,
}

impl Brought {
    /// What the vendor calls it, when that is news.
    pub fn vendor_id(&self) -> Option<String> {
        match self {
            Self::Server(server) => Some(server.id.to_string()),
            Self::Domain { .. } | Self::Renewal { .. } | Self::Period => None,
        }
    }
}

/// The rows that came of it.
#[derive(Debug, Clone)]
pub enum Rows {
    /// A domain; boxed, since it is large.
    Domain(Box<Domain>),
    /// A renewed domain.
    Renewed(Uuid),
    /// A server.
    Server(Box<(ServerBought, Sandbox)>),
    /// A server with more time.
    Extended(Box<Sandbox>),
}

impl Rows {
    /// The row's id.
    pub fn id(&self) -> Uuid {
        match self {
            Self::Domain(domain) => domain.id.uuid(),
            Self::Renewed(id) => *id,
            Self::Server(pair) => pair.1.id.uuid(),
            Self::Extended(sandbox) => sandbox.id.uuid(),
        }
    }

    /// The answer to who paid.
    ///
    /// # Errors
    /// [`Error::Internal`]; it never happens.
    pub fn answer(self, receipt: PaymentReceipt) -> Result<Answer, Error> {
        match self {
            Self::Domain(domain) => write_answer(&DomainBought { domain: *domain, receipt }),
            Self::Renewed(_) => Err(Error::internal("a renewal is paid by no sale")),
            Self::Server(pair) => {
                let (server, sandbox) = *pair;
                // What is kept never has the password: see `secrets`.
                write_answer(&ServerProvisioned { server, sandbox, receipt, secret_shown: true })
            }
            Self::Extended(sandbox) => {
                let paid_until = sandbox.paid_until;
                write_answer(&ServerExtended { sandbox: *sandbox, paid_until, receipt })
            }
        }
    }
}

fn write_answer<T: Serialize>(body: &T) -> Result<Answer, Error> {
    let body = serde_json::to_string(body).map_err(|why| Error::internal(why.to_string()))?;
    Ok(Answer { status: 201, body })
}

/// Writes what a purchase has brought.
///
/// # Errors
/// Store errors; 404 when what it was to extend is gone.
pub async fn write(tx: &mut Tx, purchase: &Purchase, item: &Item, brought: &Brought) -> Result<Rows, Error> {
    match (item, brought) {
        (Item::Domain(item), Brought::Domain { bought_at, expires_at }) => {
            domain(tx, purchase, item, (*bought_at, *expires_at)).await
        }
        (Item::Renewal(item), Brought::Renewal { expires_at }) => renewal(tx, item, *expires_at).await,
        (Item::Server(item), Brought::Server(server)) => self::server(tx, purchase, item, server).await,
        (Item::Period(item), Brought::Period) => period(tx, item).await,
        _ => Err(Error::internal("a purchase brought something else")),
    }
}

fn some(id: Uuid) -> Option<Uuid> {
    Some(id).filter(|id| !id.is_nil())
}

async fn domain(
    tx: &mut Tx,
    purchase: &Purchase,
    item: &DomainItem,
    (bought_at, expires_at): (Option<DateTime<Utc>>, Option<DateTime<Utc>>),
) -> Result<Rows, Error> {
    let years = Months::new(item.years.saturating_mul(12));
    let domain = Domain {
        id: DomainId::from(otonix_sdk::clock::new_id()),
        name: item.domain.clone(),
        status: "active".to_owned(),
        registered_at: Some(bought_at.map_or(tx.at, to_micros)),
        expires_at: expires_at.map(to_micros).or_else(|| tx.at.checked_add_months(years)),
        dns_records: Vec::new(),
        sandbox_id: item.sandbox,
        agent_id: some(purchase.agent).map(AgentId::from),
        auto_renew: item.auto_renew,
        managed: true,
        contact_verified: None,
        verify_by: None,
    };
    let owner = some(purchase.owner);
    domains::take_over(tx, &domain, owner, purchase.id, item.renewal_price_micro).await?;
    Ok(Rows::Domain(Box::new(domain)))
}

async fn renewal(tx: &mut Tx, item: &RenewalItem, expires_at: DateTime<Utc>) -> Result<Rows, Error> {
    let id = domains::renewed(tx, &item.domain, to_micros(expires_at)).await?;
    // The vendor has done it, whatever has become of our row.
    Ok(Rows::Renewed(id.unwrap_or_default()))
}

async fn server(tx: &mut Tx, purchase: &Purchase, item: &ServerItem, server: &Server) -> Result<Rows, Error> {
    let cycle = Cycle::parse(&item.cycle).ok_or_else(|| Error::internal("a server's cycle is not known"))?;
    // The vendor bills from when it took the order.
    let from = server.created_at.map(to_micros).filter(|at| (*at - tx.at).abs() < MAX_SKEW);
    let from = from.unwrap_or(tx.at);
    let small = |number: Option<u32>| number.and_then(|number| i32::try_from(number).ok());
    let status = match server.status {
        ServerStatus::Deployed if server.address.is_some() => "running",
        ServerStatus::Deployed
        | ServerStatus::Deploying
        | ServerStatus::Rescue
        | ServerStatus::Failed
        | ServerStatus::Other(_) => "deploying",
    };
    let sandbox = Sandbox {
        id: SandboxId::from(otonix_sdk::clock::new_id()),
        name: item.hostname.clone(),
        status: status.to_owned(),
        os: Some(item.image.clone()),
        cpu: small(item.cpu),
        memory: small(item.memory),
        disk: small(item.disk),
        region: Some(item.region.clone()),
        ip_address: server.address.map(|address| address.to_string()),
        ports: Vec::new(),
        agent_id: some(purchase.agent).map(AgentId::from),
        managed: true,
        paid_until: cycle.end(from, item.periods),
        created_at: tx.at,
    };
    let at = AtVendor {
        purchase: purchase.id,
        vendor_id: server.id.to_string(),
        project_id: item.project.to_string(),
        plan: item.plan.clone(),
        cycle: cycle.as_str().to_owned(),
    };
    sandboxes::insert_managed(tx, &sandbox, some(purchase.owner), &at).await?;
    let bought = ServerBought {
        id: at.vendor_id,
        hostname: item.hostname.clone(),
        plan: item.plan.clone(),
        region: item.region.clone(),
        image: item.image.clone(),
        cycle: at.cycle,
        status: status.to_owned(),
        ip_address: sandbox.ip_address.clone(),
        username: None,
        password: None,
    };
    Ok(Rows::Server(Box::new((bought, sandbox))))
}

async fn period(tx: &mut Tx, item: &PeriodItem) -> Result<Rows, Error> {
    let gone = || Error::not_found("managed server", &item.vendor_id);
    let cycle = Cycle::parse(&item.cycle).ok_or_else(|| Error::internal("a server's cycle is not known"))?;
    sandboxes::lock(tx, item.sandbox.uuid()).await?;
    let found = sandboxes::managed(&mut tx.conn, &item.vendor_id).await?;
    let (mut sandbox, _, _) = found.filter(|(sandbox, ..)| sandbox.id == item.sandbox).ok_or_else(gone)?;
    let from = sandbox.paid_until.unwrap_or(tx.at);
    let until =
        cycle.end(from, item.periods).ok_or_else(|| Error::invalid("periods", "go beyond the calendar"))?;
    sandboxes::set_paid_until(tx, sandbox.id.uuid(), until).await?;
    sandbox.paid_until = Some(until);
    Ok(Rows::Extended(Box::new(sandbox)))
}
