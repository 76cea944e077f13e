//! Whether the accounts at vendors can be used: each is asked for what costs nothing.

use otonix_sdk::clock::{Clock as _, SystemClock};

use super::Findings;
use crate::config::Settings;
use crate::upstream::providers::{ComputeProvider, Currency, Plan, VendorError};
use crate::upstream::vendors::VendorSettings;

/// Which accounts are configured, in a line.
pub fn summary(settings: &VendorSettings) -> String {
    let vercel = settings.vercel.as_ref().map(|account| format!("Vercel at {}", account.url));
    let cherry = settings.cherry.as_ref().map(|account| {
        let project = account.project.map_or("no project".to_owned(), |id| format!("project {id}"));
        format!("Cherry Servers at {}, {project}", account.url)
    });
    let all: Vec<String> = vercel.into_iter().chain(cherry).collect();
    if all.is_empty() { "none".to_owned() } else { all.join("; ") }
}

/// Asks each vendor.
pub async fn look(settings: &Settings, findings: &mut Findings) {
    let vendors = match settings.vendors.connect() {
        Ok(vendors) => vendors,
        Err(error) => {
            findings.bad(format!("vendors: {error:#}"));
            return;
        }
    };
    if let Some(registrar) = &vendors.registrar {
        match registrar.domains().await {
            Ok(domains) => {
                findings.good(format!("Vercel answers; {} domains are in the account", domains.len()));
            }
            Err(why) => {
                findings.bad(format!("Vercel: {why}: check vercel-token, vercel-team and vercel-url"));
            }
        }
    }
    if let Some(compute) = &vendors.compute {
        match compute.plans().await {
            Ok(plans) => {
                findings.good(format!("Cherry Servers answers; {} plans are sold", plans.len()));
                rate(settings, &plans, findings);
            }
            Err(why) => findings.bad(format!(
                "Cherry Servers: {why}: check cherry-token, cherry-team, cherry-project and cherry-url"
            )),
        }
        match vendors.project {
            None => findings.bad("no server can be bought: set cherry-project"),
            Some(wanted) => match has_project(compute.as_ref(), wanted).await {
                Ok(true) => {}
                Ok(false) => findings.bad(format!(
                    "no team of the Cherry Servers token has the project {wanted}: correct cherry-project"
                )),
                Err(why) => findings.bad(format!("Cherry Servers does not tell its projects: {why}")),
            },
        }
    }
}

async fn has_project(compute: &dyn ComputeProvider, wanted: u64) -> Result<bool, VendorError> {
    for team in compute.teams().await? {
        if compute.projects(team.id).await?.iter().any(|project| project.id == wanted) {
            return Ok(true);
        }
    }
    Ok(false)
}

fn rate(settings: &Settings, plans: &[Plan], findings: &mut Findings) {
    let in_euros = plans.iter().flat_map(|plan| &plan.prices).any(|price| price.currency == Currency::Eur);
    let known = settings.vendors.eur.and_then(|rate| rate.at(SystemClock.now()));
    if in_euros && known.is_none() {
        findings.bad(
            "Cherry Servers bills in euros, and there is no rate that counts: set eur-usd and eur-usd-date",
        );
    }
}
