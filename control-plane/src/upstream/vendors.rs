//! What is configured for buying: addresses, tokens, accounts, and the rate of a currency that is not dollars.

use std::sync::Arc;

use anyhow::{Context as _, bail};
use chrono::{DateTime, NaiveDate, TimeDelta, Utc};
use otonix_sdk::secret::Secret;
use reqwest::Url;

use crate::upstream::cherry::{self, Cherry};
use crate::upstream::http::{Counts, vendor_url};
use crate::upstream::price::Decimal;
use crate::upstream::providers::{ComputeProvider, DnsZone, Purpose, Registrar, Vendors};
use crate::upstream::vercel::{self, Vercel};

/// How many days a rate counts when nobody says otherwise.
const DEFAULT_RATE_DAYS: u32 = 30;

/// A vendor's account at Vercel.
#[derive(Debug, Clone)]
pub struct VercelSettings {
    pub url: Url,
    pub token: Secret,
    pub team: Option<String>,
}

/// An account at Cherry Servers.
#[derive(Debug, Clone)]
pub struct CherrySettings {
    pub url: Url,
    pub token: Secret,
    pub team: Option<u64>,
    pub project: Option<u64>,
}

/// What a euro costs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct EurRate {
    /// Dollars for one euro.
    pub usd: Decimal,
    /// The day that it is of.
    pub date: NaiveDate,
    /// How many days it counts.
    pub days: u32,
}

impl EurRate {
    /// The dollars for one euro, while the rate counts.
    pub fn at(&self, now: DateTime<Utc>) -> Option<Decimal> {
        let end = self.date.checked_add_signed(TimeDelta::days(i64::from(self.days) + 1))?;
        (now.date_naive() < end).then_some(self.usd)
    }
}

/// The accounts at vendors.
#[derive(Debug, Clone, Default)]
pub struct VendorSettings {
    pub vercel: Option<VercelSettings>,
    pub cherry: Option<CherrySettings>,
    pub eur: Option<EurRate>,
}

/// The options, as they were given.
#[derive(Debug, Default)]
pub struct Given {
    pub vercel_url: Option<String>,
    pub vercel_token: Option<Secret>,
    pub vercel_team: Option<String>,
    pub cherry_url: Option<String>,
    pub cherry_token: Option<Secret>,
    pub cherry_team: Option<u64>,
    pub cherry_project: Option<u64>,
    pub eur_usd: Option<String>,
    pub eur_usd_date: Option<String>,
    pub eur_usd_days: Option<u32>,
}

fn url(name: &str, text: Option<&str>, usual: &str) -> anyhow::Result<Url> {
    vendor_url(text.filter(|text| !text.is_empty()).unwrap_or(usual))
        .map_err(|why| anyhow::anyhow!("{name} {why}"))
}

impl Given {
    /// Checks everything.
    ///
    /// # Errors
    /// What is wrong, naming the option.
    pub fn resolve(self) -> anyhow::Result<VendorSettings> {
        let vercel_url = url("vercel-url", self.vercel_url.as_deref(), vercel::DEFAULT_URL)?;
        let cherry_url = url("cherry-url", self.cherry_url.as_deref(), cherry::DEFAULT_URL)?;
        let eur = match (self.eur_usd, self.eur_usd_date) {
            (None, None) => None,
            (Some(rate), Some(date)) => {
                let usd = Decimal::parse(&rate).filter(|rate| *rate > Decimal::ZERO);
                let date = NaiveDate::parse_from_str(date.trim(), "%Y-%m-%d");
                Some(EurRate {
                    usd: usd.context("eur-usd must be the dollars for one euro")?,
                    date: date.context("eur-usd-date must be a day: YYYY-MM-DD")?,
                    days: self.eur_usd_days.unwrap_or(DEFAULT_RATE_DAYS),
                })
            }
            _ => bail!("eur-usd and eur-usd-date go together"),
        };
        Ok(VendorSettings {
            vercel: self.vercel_token.map(|token| VercelSettings {
                url: vercel_url,
                token,
                team: self.vercel_team.filter(|team| !team.is_empty()),
            }),
            cherry: self.cherry_token.map(|token| CherrySettings {
                url: cherry_url,
                token,
                team: self.cherry_team,
                project: self.cherry_project,
            }),
            eur,
        })
    }
}

impl VendorSettings {
    /// The clients of the configured accounts.
    ///
    /// # Errors
    /// When one cannot be made.
    pub fn connect(&self) -> anyhow::Result<Vendors> {
        let mut vendors = Vendors::default();
        if let Some(account) = &self.vercel {
            let client = Vercel::new(account.url.clone(), account.token.clone(), account.team.clone());
            let client = Arc::new(client.context("vercel-url")?);
            vendors.counts.push(("vercel", client.counts()));
            vendors.quoting.registrar = Some(Arc::new(client.asked_for(Purpose::Quote)));
            vendors.buying.registrar = Some(Arc::new(client.asked_for(Purpose::Purchase)));
            vendors.registrar = Some(Arc::clone(&client) as Arc<dyn Registrar>);
            vendors.dns = Some(client as Arc<dyn DnsZone>);
        }
        if let Some(account) = &self.cherry {
            let client =
                Cherry::new(account.url.clone(), account.token.clone(), account.team, account.project);
            let client = Arc::new(client.context("cherry-url")?);
            vendors.counts.push(("cherry", client.counts()));
            vendors.quoting.compute = Some(Arc::new(client.asked_for(Purpose::Quote)));
            vendors.buying.compute = Some(Arc::new(client.asked_for(Purpose::Purchase)));
            vendors.compute = Some(client as Arc<dyn ComputeProvider>);
            vendors.project = account.project;
        }
        Ok(vendors)
    }
}

/// Counters of a vendor.
pub type VendorCounts = (&'static str, Arc<Counts>);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_rate_counts_for_its_days_and_not_longer() {
        let rate = EurRate {
            usd: Decimal::parse("1.1").expect("a rate"),
            date: NaiveDate::from_ymd_opt(2026, 11, 1).expect("a day"),
            days: 30,
        };
        let at = |text: &str| text.parse::<DateTime<Utc>>().expect("a time");
        assert_eq!(rate.at(at("2026-11-01T00:00:00Z")), Some(rate.usd));
        assert_eq!(rate.at(at("2026-12-01T23:59:59Z")), Some(rate.usd));
        assert_eq!(rate.at(at("2026-12-02T00:00:00Z")), None);
    }

    #[test]
    fn tokens_are_not_sent_in_plain_text_to_other_machines() {
        let given = |url: &str| Given { cherry_url: Some(url.to_owned()), ..Given::default() };
        for good in ["https://api.example.com", "http://127.0.0.1:4610", "http://localhost:1/base"] {
            assert!(given(good).resolve().is_ok(), "{good}");
        }
        for bad in ["http://api.example.com", "ftp://x", "https://user@x", "https://x?y=1", "nonsense"] {
            assert!(given(bad).resolve().is_err(), "{bad}");
        }
    }

    #[test]
    fn half_a_rate_is_an_error() {
        let whole = Given {
            eur_usd: Some("1.08".to_owned()),
            eur_usd_date: Some("2026-11-20".to_owned()),
            ..Given::default()
        };
        assert!(whole.resolve().is_ok());
        for (rate, date) in
            [(Some("1.08"), None), (None, Some("2026-11-20")), (Some("0"), Some("2026-11-20"))]
        {
            let of = |text: Option<&str>| text.map(str::to_owned);
            let half = Given { eur_usd: of(rate), eur_usd_date: of(date), ..Given::default() };
            assert!(half.resolve().is_err(), "{rate:?} {date:?}");
        }
    }
}
