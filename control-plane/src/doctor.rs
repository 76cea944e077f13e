//! Tells what is wrong with an installation and what to do about it.

mod vendors;

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::process::ExitCode;
use std::time::Duration;

use crate::auth::Mode;
use crate::config::Settings;
use crate::net::Tls;
use crate::service::payments::Payments;
use crate::store::{Db, audit, migrate};
use crate::treasury::Settler;

/// What the configuration comes to, without secrets.
///
/// # Errors
/// When a file that it names cannot be read.
pub fn summary(settings: &Settings) -> anyhow::Result<String> {
    let prices = settings.prices()?;
    settings.registrant()?;
    let database = settings.database.expose();
    let database = if database.starts_with("sqlite://") { database } else { "postgres (URL not shown)" };
    let mode = match settings.mode {
        Mode::Open => "open",
        Mode::Guarded => "guarded",
    };
    let tiers = settings.tiers;
    let payments = payments_summary(settings)?;
    Ok(format!(
        "listen = {}\nmode = {mode}\ndatabase = {database}\ndata-dir = {}\ntls = {}\npublic-url = {}\n\
         tiers = {}/{}/{}\nfunding-grace = {} s\nprice-table = {} models, version {}\nretention-days = {}\n\
         rate-limit = {}\npayments = {payments}\nvendors = {}",
        settings.listen,
        settings.data_dir.display(),
        if settings.tls.is_some() { "on" } else { "off" },
        settings.proof_urls().first().map_or("", String::as_str),
        tiers.full_above,
        tiers.conservation_from,
        tiers.critical_from,
        settings.funding_grace.as_secs(),
        prices.prices().len(),
        prices.version(),
        settings.retention_days.map_or("for ever".to_owned(), |days| days.to_string()),
        settings.rate_limit,
        vendors::summary(&settings.vendors),
    ))
}

/// How this server is paid, in a line.
fn payments_summary(settings: &Settings) -> anyhow::Result<String> {
    let Some(payments) = &settings.payments else { return Ok("off (no chain-rpc)".to_owned()) };
    let settler = match payments.settler()? {
        Settler::None => "orders only".to_owned(),
        Settler::Key(key) => format!("orders and signed payments, settled by {}", key.address()),
        Settler::Facilitator(_) => "orders and signed payments, settled by a facilitator".to_owned(),
    };
    Ok(format!("to {} on chain {} in {}: {settler}", payments.treasury, payments.chain_id, payments.asset))
}

struct Findings(Vec<(bool, String)>);

impl Findings {
    fn good(&mut self, what: impl Into<String>) {
        self.0.push((true, what.into()));
    }

    fn bad(&mut self, what: impl Into<String>) {
        self.0.push((false, what.into()));
    }
}

/// Looks at everything; exits non-zero when something is wrong.
///
/// # Errors
/// None so far: what goes wrong is a finding.
#[expect(clippy::print_stdout, reason = "what the command answers")]
pub async fn run(settings: &Settings) -> anyhow::Result<ExitCode> {
    let mut findings = Findings(Vec::new());
    data_dir(settings, &mut findings);
    if let Err(error) = settings.prices() {
        findings.bad(format!("{error:#}: correct the price table"));
    }
    if let Err(error) = settings.registrant() {
        findings.bad(format!("{error:#}: correct the file, or name a contact in every request"));
    }
    if let Some((cert, key)) = &settings.tls {
        match Tls::load(cert, key) {
            Ok(_) => findings.good("TLS certificate and key fit"),
            Err(error) => findings.bad(format!("TLS: {error}: give a PEM chain and its key")),
        }
    } else if !settings.listen.ip().is_loopback() {
        findings.bad("the server listens on the network without TLS: set tls-cert and tls-key, or put a proxy before it");
    }
    database(settings, &mut findings).await;
    payments(settings, &mut findings).await;
    vendors::look(settings, &mut findings).await;
    for (good, what) in &findings.0 {
        println!("{} {what}", if *good { "ok  " } else { "BAD " });
    }
    let well = findings.0.iter().all(|(good, _)| *good);
    Ok(if well { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

fn data_dir(settings: &Settings, findings: &mut Findings) {
    let dir = &settings.data_dir;
    match fs::metadata(dir) {
        Err(error) => findings.bad(format!("data-dir {}: {error}: the first start makes it", dir.display())),
        Ok(meta) if meta.permissions().mode() & 0o077 != 0 => {
            findings.bad(format!("data-dir {} is open to other users: chmod 700 it", dir.display()));
        }
        Ok(_) => findings.good(format!("data-dir {} is private", dir.display())),
    }
    let token = dir.join("operator-token");
    if let Ok(meta) = fs::metadata(&token)
        && meta.permissions().mode() & 0o077 != 0
    {
        findings.bad(format!("{} can be read by other users: chmod 600 it", token.display()));
    }
}

async fn database(settings: &Settings, findings: &mut Findings) {
    let db = match Db::connect(settings.database.expose()).await {
        Ok(db) => db,
        Err(error) => {
            findings.bad(format!("the database cannot be opened: {error:#}: check its URL and that it runs"));
            return;
        }
    };
    match migrate::pending(&db).await {
        Ok(0) => findings.good("the database is up to date"),
        Ok(n) => {
            findings.bad(format!("{n} migrations are missing: run `migrate` or start the server"));
            return;
        }
        Err(error) => {
            findings.bad(format!("the database: {error}"));
            return;
        }
    }
    let books = async { audit::books(&mut db.dedicated().await?).await };
    match books.await {
        Ok(books) if books.differences().is_empty() => findings.good("the books balance"),
        Ok(_) => findings.bad("the books do not balance: run `audit`"),
        Err(error) => findings.bad(format!("the books cannot be read: {error}")),
    }
}

async fn payments(settings: &Settings, findings: &mut Findings) {
    let Some(configured) = settings.payments.clone() else { return };
    if let Some(path) = &configured.settle_key_file
        && let Ok(meta) = fs::metadata(path)
        && meta.permissions().mode() & 0o077 != 0
    {
        findings.bad(format!("{} can be read by other users: chmod 600 it", path.display()));
    }
    let parts = match Payments::new(configured, [0; 32]) {
        Ok(parts) => parts,
        Err(error) => {
            findings.bad(format!("payments: {error:#}"));
            return;
        }
    };
    let head = match parts.chain.head(Duration::ZERO).await {
        Ok(head) => head,
        Err(trouble) => {
            findings.bad(format!(
                "the chain cannot be relied on: {trouble}: check chain-rpc, chain-id and asset"
            ));
            return;
        }
    };
    findings.good(format!("the chain is {} and its newest block {}", parts.chain.id(), head.number));
    if let Settler::Key(key) = &parts.settler {
        match parts.chain.watch_gas(key.address()).await {
            Ok(()) if parts.chain.has_gas() => findings.good("the settling key can pay for gas"),
            Ok(()) => {
                findings.bad(format!("the settling key {} is short of gas: send it some", key.address()))
            }
            Err(trouble) => findings.bad(format!("the settling key's gas is not known: {trouble}")),
        }
    }
}
