//! Words of whoever sells servers.

use std::collections::BTreeMap;
use std::net::IpAddr;

use chrono::{DateTime, Months, TimeDelta, Utc};
use otonix_sdk::secret::Secret;

use crate::upstream::names::Slug;
use crate::upstream::price::{Currency, Decimal};

/// How often a server is billed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Cycle {
    Hourly,
    Monthly,
    Quarterly,
    Semiannually,
    Annually,
}

impl Cycle {
    /// Every cycle.
    pub const ALL: [Self; 5] =
        [Self::Hourly, Self::Monthly, Self::Quarterly, Self::Semiannually, Self::Annually];

    /// As it is asked for.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Hourly => "hourly",
            Self::Monthly => "monthly",
            Self::Quarterly => "quarterly",
            Self::Semiannually => "semiannually",
            Self::Annually => "annually",
        }
    }

    /// The cycle of this name, in any case.
    pub fn parse(text: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|cycle| cycle.as_str().eq_ignore_ascii_case(text))
    }

    /// When so many periods from a time have passed; `None` beyond the calendar.
    pub fn end(self, start: DateTime<Utc>, periods: u32) -> Option<DateTime<Utc>> {
        let months = match self {
            Self::Hourly => {
                return start.checked_add_signed(TimeDelta::try_hours(i64::from(periods))?);
            }
            Self::Monthly => 1,
            Self::Quarterly => 3,
            Self::Semiannually => 6,
            Self::Annually => 12,
        };
        start.checked_add_months(Months::new(periods.checked_mul(months)?))
    }
}

/// What one period costs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct UnitPrice {
    pub cycle: Cycle,
    /// As it is billed, with VAT.
    pub price: Decimal,
    pub currency: Currency,
}

/// How many can be had in a region.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Stock {
    pub region: Slug,
    /// `None` when the vendor does not say.
    pub quantity: Option<u64>,
}

/// A kind of server.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Plan {
    pub id: u64,
    pub slug: Slug,
    pub name: String,
    /// As the vendor calls it: vps, baremetal…
    pub kind: Option<String>,
    /// Cores.
    pub cpu: Option<u32>,
    /// MB
    pub memory: Option<u32>,
    /// GB
    pub disk: Option<u32>,
    pub prices: Vec<UnitPrice>,
    pub stock: Vec<Stock>,
}

/// A place.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Region {
    pub id: u64,
    pub slug: Slug,
    pub name: Option<String>,
    pub location: Option<String>,
}

/// What a server can be installed with.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Image {
    pub id: u64,
    pub slug: Slug,
    pub name: String,
    /// Whether the vendor bills a licence on top; such images are not sold.
    pub licensed: bool,
}

/// Whose token it is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Account {
    pub id: u64,
    pub email: Option<String>,
}

/// Who is billed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Team {
    pub id: u64,
    pub name: String,
    /// What is left on the account.
    pub remaining: Option<(Decimal, Currency)>,
}

/// A group of servers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Project {
    pub id: u64,
    pub name: String,
}

/// How a server stands.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ServerStatus {
    /// Ordered or being installed.
    Deploying,
    /// There.
    Deployed,
    /// In its rescue system.
    Rescue,
    /// Will never be there.
    Failed,
    /// A word that this version does not know.
    Other(String),
}

/// A server, without its secrets.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Server {
    pub id: u64,
    pub hostname: String,
    pub status: ServerStatus,
    /// As the vendor calls it: pending, provisioning, active, inactive.
    pub state: Option<String>,
    /// Whether it has power; `None` when the vendor does not say.
    pub powered: Option<bool>,
    pub plan: Option<Slug>,
    pub region: Option<Slug>,
    pub image: Option<String>,
    /// The public address.
    pub address: Option<IpAddr>,
    pub project: Option<u64>,
    pub tags: BTreeMap<String, String>,
    pub created_at: Option<DateTime<Utc>>,
}

/// An order for a server.
#[derive(Debug, Clone)]
pub struct CreateServer {
    pub project: u64,
    pub plan: Slug,
    pub region: Slug,
    pub image: Slug,
    pub hostname: String,
    /// Always sent: it is the one that was quoted.
    pub cycle: Cycle,
    /// Ids of keys at the vendor.
    pub ssh_keys: Vec<u64>,
    /// A bash or cloud-config script, not yet in base64. It may hold a one-time token.
    pub user_data: Option<Secret>,
    /// The order's id among them: the only way to find it again.
    pub tags: BTreeMap<String, String>,
}

/// A server that was ordered, with what only its buyer may see.
#[derive(Debug, Clone)]
pub struct Created {
    pub server: Server,
    pub username: Option<String>,
    pub password: Option<Secret>,
}

/// What can be done to a server.
#[derive(Debug, Clone)]
pub enum ServerAction {
    Reboot,
    PowerOn,
    PowerOff,
    Rebuild {
        image: Slug,
        hostname: String,
        password: Secret,
        ssh_keys: Vec<u64>,
        /// Not yet in base64.
        user_data: Option<Secret>,
    },
    EnterRescueMode {
        password: Secret,
    },
    ExitRescueMode,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_period_ends_by_the_calendar() {
        let at = |text: &str| text.parse::<DateTime<Utc>>().expect("a time");
        for (cycle, periods, end) in [
            (Cycle::Hourly, 24, "2026-02-01T10:00:00Z"),
            (Cycle::Monthly, 1, "2026-02-28T10:00:00Z"),
            (Cycle::Quarterly, 1, "2026-04-30T10:00:00Z"),
            (Cycle::Annually, 2, "2028-01-31T10:00:00Z"),
        ] {
            assert_eq!(cycle.end(at("2026-01-31T10:00:00Z"), periods), Some(at(end)));
        }
        assert_eq!(Cycle::Annually.end(at("2026-01-31T10:00:00Z"), u32::MAX), None);
        assert_eq!(Cycle::parse("Hourly"), Some(Cycle::Hourly));
        assert_eq!(Cycle::parse("spot hourly"), None);
    }
}
