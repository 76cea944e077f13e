//! What this server asks of whoever sells servers, registers domains and answers for zones: three traits, the words
//! they share, and errors that say whether anything may have happened.
//!
//! Nothing here caches, and no write is ever repeated: who writes decides, after looking.

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use otonix_sdk::error::ErrorCode;

use crate::upstream::vendors::VendorCounts;

pub use crate::upstream::compute::{
    Account, CreateServer, Created, Cycle, Image, Plan, Project, Region, Server, ServerAction, ServerStatus,
    Stock, Team, UnitPrice,
};
pub use crate::upstream::deadline::Deadline;
pub use crate::upstream::names::{DomainName, Slug};
pub use crate::upstream::price::{Currency, Decimal};
pub use crate::upstream::registrar::{
    BuyDomain, Confirmation, Contact, DomainPrice, NewRecord, OrderState, OwnedDomain, RecordData,
    RenewDomain, ZoneRecord,
};

/// Why a vendor did not do, or did not answer, what it was asked.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum VendorError {
    /// Certainly not done: refused, or never sent. A read that failed is one too.
    #[error("{detail}")]
    NotDone {
        /// What stands in the way.
        reason: Refusal,
        /// When the vendor wants to be asked again.
        retry_after: Option<Duration>,
        /// In words, without secrets.
        detail: String,
    },
    /// Sent, and not known whether it was carried out. Look before doing anything.
    #[error("the outcome is not known: {detail}")]
    Unknown {
        /// What came instead of an answer.
        detail: String,
    },
}

impl VendorError {
    /// Not done, for a reason.
    pub fn not_done(reason: Refusal, detail: impl Into<String>) -> Self {
        Self::NotDone { reason, retry_after: None, detail: detail.into() }
    }

    /// Not known.
    pub fn unknown(detail: impl Into<String>) -> Self {
        Self::Unknown { detail: detail.into() }
    }

    /// Why it was certainly not done; `None` when that is not certain.
    pub fn refusal(&self) -> Option<Refusal> {
        match self {
            Self::NotDone { reason, .. } => Some(*reason),
            Self::Unknown { .. } => None,
        }
    }
}

/// What stands in the way.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Refusal {
    /// The vendor cannot be reached, or answers reads with nothing usable. Passes.
    Unavailable,
    /// Asked too often. Passes.
    RateLimited,
    /// The time to send it had passed; it was not sent.
    Late,
    /// The token is wrong or may not do this. The operator mends it.
    Unauthorised,
    /// The account cannot pay. The operator mends it.
    NoCredit,
    /// The price is another than expected.
    PriceMoved,
    /// No such server can be had there now.
    OutOfStock,
    /// Somebody has the domain, or nobody can have it, or have it longer.
    DomainNotAvailable,
    /// The registrar does not sell under this ending.
    TldNotSupported,
    /// The order is above what the registrar takes.
    TooExpensive,
    /// The registrant's data are not enough for this ending, or wrong.
    ContactRefused,
    /// The name needs the code of its language.
    LanguageCodeRequired,
    /// The domain is not registered there.
    NotRegistered,
    /// There is no such thing.
    NotFound,
    /// There is such a thing already, or it is under way.
    AlreadyThere,
    /// The vendor does not know it yet: it was bought a moment ago.
    TooEarly,
    /// The vendor takes a field for wrong.
    Invalid,
    /// Something that this version does not know.
    Other,
}

impl Refusal {
    /// The stable code that callers see.
    pub const fn code(self) -> ErrorCode {
        match self {
            Self::Unavailable | Self::Late | Self::Other => ErrorCode::UpstreamUnavailable,
            Self::RateLimited => ErrorCode::UpstreamBusy,
            Self::Unauthorised | Self::NoCredit => ErrorCode::UpstreamRefused,
            Self::PriceMoved => ErrorCode::PriceMoved,
            Self::OutOfStock => ErrorCode::OutOfStock,
            Self::DomainNotAvailable => ErrorCode::DomainNotAvailable,
            Self::TldNotSupported => ErrorCode::TldNotSupported,
            Self::TooExpensive => ErrorCode::OrderTooExpensive,
            Self::ContactRefused => ErrorCode::ContactRefused,
            Self::LanguageCodeRequired => ErrorCode::LanguageCodeRequired,
            Self::NotRegistered | Self::NotFound => ErrorCode::NotFound,
            Self::AlreadyThere => ErrorCode::Conflict,
            Self::TooEarly => ErrorCode::UpstreamPending,
            Self::Invalid => ErrorCode::InvalidField,
        }
    }

    /// Whether the same request may be carried out later as it is.
    pub const fn passes(self) -> bool {
        matches!(self, Self::Unavailable | Self::RateLimited | Self::Late)
    }
}

/// Sells servers.
#[async_trait]
pub trait ComputeProvider: Send + Sync {
    /// Whose token this is.
    async fn account(&self) -> Result<Account, VendorError>;

    /// What is sold, with prices, VAT included as the team is billed, and stock by region.
    async fn plans(&self) -> Result<Vec<Plan>, VendorError>;

    /// One plan, also one that is not sold any more; `None` when there never was one.
    async fn plan(&self, plan: &Slug) -> Result<Option<Plan>, VendorError>;

    /// Where.
    async fn regions(&self) -> Result<Vec<Region>, VendorError>;

    /// One place; `None` when there is none.
    async fn region(&self, region: &Slug) -> Result<Option<Region>, VendorError>;

    /// What a plan can be installed with.
    async fn images(&self, plan: &Slug) -> Result<Vec<Image>, VendorError>;

    /// The account's teams.
    async fn teams(&self) -> Result<Vec<Team>, VendorError>;

    /// A team's projects.
    async fn projects(&self, team: u64) -> Result<Vec<Project>, VendorError>;

    /// One project of the token; `None` when there is none.
    async fn project(&self, id: u64) -> Result<Option<Project>, VendorError>;

    /// Every server of a project, or an error: never a part of them. An order is found again by its tag.
    async fn servers(&self, project: u64) -> Result<Vec<Server>, VendorError>;

    /// One server; `None` when there is none.
    async fn server(&self, id: u64) -> Result<Option<Server>, VendorError>;

    /// A server with what only its buyer may see, which the vendor forgets after a day; `None` when there is none.
    async fn credentials(&self, id: u64) -> Result<Option<Created>, VendorError>;

    /// Buys a server. It is billed until it is deleted.
    async fn create(&self, order: &CreateServer, until: Deadline) -> Result<Created, VendorError>;

    /// Does something to a server.
    async fn act(&self, id: u64, action: &ServerAction, until: Deadline) -> Result<(), VendorError>;

    /// Ends a server and its bill; a server that is gone is no error.
    async fn delete(&self, id: u64, until: Deadline) -> Result<(), VendorError>;
}

/// Registers domains.
#[async_trait]
pub trait Registrar: Send + Sync {
    /// Which of at most fifty names can be registered, in their order.
    async fn available(&self, domains: &[DomainName]) -> Result<Vec<bool>, VendorError>;

    /// What a number of years costs, in dollars.
    async fn price(&self, domain: &DomainName, years: u32) -> Result<DomainPrice, VendorError>;

    /// The endings that names are sold under.
    async fn endings(&self) -> Result<Vec<String>, VendorError>;

    /// The codes of the languages that names under an ending may be in; empty when there is no choice.
    async fn languages(&self, ending: &Slug) -> Result<Vec<String>, VendorError>;

    /// What the registrar asks of a registrant beyond the usual, as JSON schema; `None` when nothing.
    async fn contact_schema(&self, domain: &DomainName) -> Result<Option<serde_json::Value>, VendorError>;

    /// Buys a domain; the order goes on after the answer. Gives the order's id.
    async fn buy(&self, order: &BuyDomain, until: Deadline) -> Result<Slug, VendorError>;

    /// Renews a domain; the order goes on after the answer. Gives the order's id.
    async fn renew(&self, order: &RenewDomain, until: Deadline) -> Result<Slug, VendorError>;

    /// How an order stands; `None` when there is none.
    async fn order(&self, id: &Slug) -> Result<Option<OrderState>, VendorError>;

    /// A domain of the account; `None` when it is not there.
    async fn domain(&self, domain: &DomainName) -> Result<Option<OwnedDomain>, VendorError>;

    /// Every domain of the account.
    async fn domains(&self) -> Result<Vec<OwnedDomain>, VendorError>;

    /// Whether a domain's registrant has confirmed the address; refused as `TooEarly` for half an hour after it was
    /// bought.
    async fn confirmation(&self, domain: &DomainName) -> Result<Confirmation, VendorError>;

    /// Keeps the registrar from renewing a domain by itself. Doing it twice changes nothing.
    async fn stop_renewing(&self, domain: &DomainName, until: Deadline) -> Result<(), VendorError>;

    /// Gives a domain the vendor's own nameservers again. Doing it twice changes nothing.
    async fn reset_nameservers(&self, domain: &DomainName, until: Deadline) -> Result<(), VendorError>;
}

/// Answers for the zones of domains.
#[async_trait]
pub trait DnsZone: Send + Sync {
    /// Every record of a zone; `None` when there is no such zone in the account.
    async fn records(&self, domain: &DomainName) -> Result<Option<Vec<ZoneRecord>>, VendorError>;

    /// Adds a record and gives its id.
    async fn create_record(
        &self,
        domain: &DomainName,
        record: &NewRecord,
        until: Deadline,
    ) -> Result<Slug, VendorError>;

    /// Makes a record of a zone another one.
    async fn change_record(&self, id: &Slug, record: &NewRecord, until: Deadline) -> Result<(), VendorError>;

    /// Takes a record away; one that is gone is no error.
    async fn delete_record(&self, domain: &DomainName, id: &Slug, until: Deadline)
    -> Result<(), VendorError>;
}

/// Who is configured.
#[derive(Clone, Default)]
pub struct Vendors {
    /// Sells servers.
    pub compute: Option<Arc<dyn ComputeProvider>>,
    /// The project that servers are bought into when nobody names another.
    pub project: Option<u64>,
    /// Registers domains.
    pub registrar: Option<Arc<dyn Registrar>>,
    /// Answers for zones.
    pub dns: Option<Arc<dyn DnsZone>>,
    /// The same vendors as those ask them who want a price, when they have a share of the pace.
    pub quoting: Sellers,
    /// The same as purchases ask them, when these have one.
    pub buying: Sellers,
    /// What was asked of each.
    pub counts: Vec<VendorCounts>,
}

/// Vendors as they are asked for one purpose.
#[derive(Clone, Default)]
pub struct Sellers {
    /// Sells servers.
    pub compute: Option<Arc<dyn ComputeProvider>>,
    /// Registers domains.
    pub registrar: Option<Arc<dyn Registrar>>,
}

/// What a seller is asked for. Each has a share of the pace that nothing else can use up: however many ask for prices
/// and never pay, what was taken is bought.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Purpose {
    /// A price, for somebody who may never pay it.
    Quote,
    /// A purchase.
    Purchase,
}

impl Vendors {
    const fn sellers(&self, purpose: Purpose) -> &Sellers {
        match purpose {
            Purpose::Quote => &self.quoting,
            Purpose::Purchase => &self.buying,
        }
    }

    /// Who sells servers.
    pub fn servers_for(&self, purpose: Purpose) -> Option<&Arc<dyn ComputeProvider>> {
        self.sellers(purpose).compute.as_ref().or(self.compute.as_ref())
    }

    /// Who registers domains.
    pub fn domains_for(&self, purpose: Purpose) -> Option<&Arc<dyn Registrar>> {
        self.sellers(purpose).registrar.as_ref().or(self.registrar.as_ref())
    }
}
