//! Whether the accounts at vendors can be used: each is asked for what costs nothing.

use otonix_sdk::clock::{Clock as _, SystemClock};

use super::Findings;
use crate::config::Settings;
use crate::upstream::providers::{ComputeProvider, Currency, Plan, Registrar};
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
        vercel(registrar.as_ref(), findings).await;
    }
    if let Some(compute) = &vendors.compute {
        cherry(compute.as_ref(), settings, vendors.project, findings).await;
    }
}

/// The account's list and the registrar itself are asked: a token may be let into one and not the other.
async fn vercel(registrar: &dyn Registrar, findings: &mut Findings) {
    match registrar.domains().await {
        Ok(domains) => {
            findings.good(format!("Vercel answers; {} domains are in the account", domains.len()));
            for domain in domains.iter().filter(|domain| domain.renews_itself) {
                findings.bad(format!(
                    "{} is renewed by the registrar itself, and may be paid twice: switch that off there",
                    domain.name
                ));
            }
        }
        Err(why) => findings.bad(format!("Vercel: {why}: check vercel-token, vercel-team and vercel-url")),
    }
    match registrar.endings().await {
        Ok(endings) => findings.good(format!("Vercel's registrar sells {} endings", endings.len())),
        Err(why) => findings.bad(format!("Vercel's registrar: {why}: the token must be allowed to buy")),
    }
}

async fn cherry(
    compute: &dyn ComputeProvider,
    settings: &Settings,
    project: Option<u64>,
    findings: &mut Findings,
) {
    match compute.account().await {
        Ok(account) => {
            let name = account.email.unwrap_or_else(|| format!("user {}", account.id));
            findings.good(format!("Cherry Servers answers; the token is {name}'s"));
        }
        Err(why) => {
            findings.bad(format!("Cherry Servers: {why}: check cherry-token and cherry-url"));
        }
    }
    match compute.plans().await {
        Ok(plans) => {
            findings.good(format!("{} plans are sold at Cherry Servers", plans.len()));
            rate(settings, &plans, findings);
        }
        Err(why) => findings
            .bad(format!("Cherry Servers' plans: {why}: check cherry-token, cherry-team and cherry-project")),
    }
    let Some(wanted) = project else {
        findings.bad("children get no servers, and others may be bought into any project of the token: set cherry-project");
        return;
    };
    match compute.project(wanted).await {
        Ok(Some(project)) => findings.good(format!("servers are bought into the project {}", project.name)),
        Ok(None) => {
            findings.bad(format!("the Cherry Servers token has no project {wanted}: correct cherry-project"))
        }
        Err(why) => findings.bad(format!("Cherry Servers does not tell of the project {wanted}: {why}")),
    }
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
