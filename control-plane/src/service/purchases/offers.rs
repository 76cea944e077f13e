//! What is sold of vendors' goods: everything but the payment is checked here, before a 402 and again before a payment
//! is taken, and the price is the vendor's own of this moment.

use otonix_sdk::api::keys::KeyKind;
use otonix_sdk::api::purchases::{ExtendServer, ProvisionServer, RegisterDomain};
use otonix_sdk::error::ErrorCode;
use otonix_sdk::ids::AgentId;
use otonix_sdk::money::MicroUsd;
use otonix_sdk::standing::SurvivalTier;
use uuid::Uuid;

use crate::app::App;
use crate::auth::{Caller, Principal};
use crate::error::Error;
use crate::service::payments::Sale;
use crate::service::payments::goods::Goods;
use crate::service::pricing;
use crate::service::purchases::item::{DomainItem, Item, PeriodItem, Private, ServerItem};
use crate::service::purchases::{bootstrap, contact};
use crate::service::{linked_agent, linked_sandbox, record_owner};
use crate::store::agents::AgentState;
use crate::store::{purchases, sandboxes};
use crate::upstream::providers::{Cycle, DomainName, Plan, Purpose, Registrar, Slug};

/// Years of one purchase.
const MAX_YEARS: u32 = 10;
/// Hours and longer periods of one purchase.
const MAX_HOURS: u32 = 24 * 366;
const MAX_PERIODS: u32 = 36;
/// Periods when a request does not say.
const DEFAULT_HOURS: u32 = 24;
/// Keys of one server.
const MAX_KEYS: usize = 32;
/// Bytes of a caller's script.
const MAX_USER_DATA: usize = 16 * 1024;

/// The agent that goods are for: the one that is named, else the one that an agent's own key acts for.
async fn beneficiary(
    app: &App,
    caller: &Caller,
    named: Option<AgentId>,
) -> Result<Option<AgentState>, Error> {
    let own = match caller.principal {
        Principal::Key(key) if key.kind == KeyKind::Agent => key.agent,
        Principal::Key(_) | Principal::Operator | Principal::Anonymous => None,
    };
    let state = linked_agent(app, caller, named.or(own)).await?;
    if let Some(state) = state.filter(|state| state.tier == SurvivalTier::Terminated) {
        let detail =
            format!("agent {} is terminated: nothing is bought for it until it has credits", state.id);
        return Err(Error::conflict(ErrorCode::InsufficientCredits, detail));
    }
    Ok(state)
}

fn sale(
    item: Item,
    private: &Private,
    price: MicroUsd,
    agent: Option<&AgentState>,
    owner: Option<Uuid>,
) -> Sale {
    let description = item.describe();
    let agent = agent.map(|state| state.id);
    let goods = Goods::Purchase { item, agent, owner: owner.unwrap_or(Uuid::nil()) };
    Sale { goods, price, description, private: private.to_text() }
}

/// A name that is not ASCII needs the code of its language, one of those that its ending takes.
async fn check_language(
    registrar: &dyn Registrar,
    name: &DomainName,
    code: Option<&str>,
) -> Result<(), Error> {
    let Some(ending) = Slug::parse(name.tld()).filter(|_| name.is_international()) else { return Ok(()) };
    let known = registrar.languages(&ending).await.map_err(pricing::vendor_error)?;
    let fits = |code: &str| known.is_empty() || known.iter().any(|one| one.eq_ignore_ascii_case(code));
    if code.is_some_and(fits) {
        return Ok(());
    }
    let why = if known.is_empty() {
        "is needed for a name that is not ASCII".to_owned()
    } else {
        format!("must be one of {} for .{ending}", known.join(", "))
    };
    Err(Error::Invalid { code: ErrorCode::LanguageCodeRequired, field: "languageCode".to_owned(), why })
}

/// A domain.
///
/// # Errors
/// 400, 409 `domain_not_available` or `purchase_under_way`, 503.
pub async fn domain(app: &App, caller: &Caller, body: RegisterDomain) -> Result<Sale, Error> {
    let name = DomainName::of_field("domain", &body.domain)?;
    let years = body.years.unwrap_or(1);
    if !(1..=MAX_YEARS).contains(&years) {
        return Err(Error::invalid("years", format!("must be 1 to {MAX_YEARS}")));
    }
    if let Some(code) = &body.language_code {
        otonix_sdk::limits::check_slug("languageCode", code)?;
    }
    let agent = beneficiary(app, caller, body.agent_id).await?;
    let sandbox = linked_sandbox(app, caller, body.sandbox_id).await?;
    let Some(registrar) = app.vendors.domains_for(Purpose::Quote) else {
        return Err(Error::NotConfigured {
            code: ErrorCode::UpstreamNotConfigured,
            detail: "no registrar is configured on this server",
        });
    };
    contact::demand(app, &name, body.contact.as_ref()).await?;
    check_language(registrar.as_ref(), &name, body.language_code.as_deref()).await?;
    let live = name.as_str().to_owned();
    let live = app.db.read(move |conn| Box::pin(async move { purchases::is_domain_live(conn, &live).await }));
    if live.await? {
        let detail = format!("{name} is being bought already");
        return Err(Error::conflict(ErrorCode::PurchaseUnderWay, detail));
    }
    let names = [name];
    let free = registrar.available(&names).await.map_err(pricing::vendor_error)?;
    let [name] = names;
    if free != [true] {
        return Err(Error::conflict(ErrorCode::DomainNotAvailable, format!("{name} is taken")));
    }
    let quote = pricing::domain(app, Purpose::Quote, &name, years).await?;
    let owner = record_owner(caller, agent.as_ref());
    let item = Item::Domain(DomainItem {
        domain: name.as_str().to_owned(),
        years,
        auto_renew: body.auto_renew.unwrap_or(agent.is_some()),
        sandbox,
        renewal_price_micro: quote.renewal.map(MicroUsd::micros),
        language_code: body.language_code,
    });
    let private = Private { contact: body.contact, user_data: None };
    Ok(sale(item, &private, quote.price, agent.as_ref(), owner))
}

fn cycle_of(text: &str) -> Result<Cycle, Error> {
    let names = Cycle::ALL.map(Cycle::as_str).join(", ");
    Cycle::parse(text).ok_or_else(|| Error::invalid("cycle", format!("must be one of {names}")))
}

fn periods_of(cycle: Cycle, asked: Option<u32>) -> Result<u32, Error> {
    let (usual, most) = if cycle == Cycle::Hourly { (DEFAULT_HOURS, MAX_HOURS) } else { (1, MAX_PERIODS) };
    let periods = asked.unwrap_or(usual);
    if !(1..=most).contains(&periods) {
        return Err(Error::invalid("periods", format!("must be 1 to {most}")));
    }
    Ok(periods)
}

fn check_hostname(name: &str) -> Result<(), Error> {
    let label = |label: &str| {
        (1..=63).contains(&label.len())
            && label.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'-')
            && !label.starts_with('-')
            && !label.ends_with('-')
    };
    if name.len() > 253 || !name.split('.').all(label) {
        return Err(Error::invalid(
            "hostname",
            "must be a host's name: letters, digits and -, labels up to 63",
        ));
    }
    Ok(())
}

/// A server as it was asked for, after everything that needs no vendor was checked.
#[derive(Debug, Clone)]
pub struct Asked {
    plan: Slug,
    region: Slug,
    image: Slug,
    cycle: Cycle,
    periods: u32,
    body: ProvisionServer,
}

/// Reads what was asked for.
///
/// # Errors
/// 400 naming the field.
pub fn read_server(body: ProvisionServer) -> Result<Asked, Error> {
    let cycle = cycle_of(&body.cycle)?;
    check_hostname(&body.hostname)?;
    if body.ssh_keys.as_ref().is_some_and(|keys| keys.len() > MAX_KEYS) {
        return Err(Error::invalid("sshKeys", format!("must have at most {MAX_KEYS} entries")));
    }
    if body.user_data.as_ref().is_some_and(|text| text.len() > MAX_USER_DATA) {
        return Err(Error::invalid("userData", "must have at most 16 KiB"));
    }
    let is_script = |text: &String| text.is_empty() || text.starts_with("#!");
    if body.agent_id.is_some() && !body.user_data.as_ref().is_none_or(is_script) {
        return Err(Error::invalid("userData", "must be a script that begins with #! when agentId is given"));
    }
    Ok(Asked {
        plan: Slug::of_field("plan", &body.plan)?,
        region: Slug::of_field("region", &body.region)?,
        image: Slug::of_field("image", &body.image)?,
        cycle,
        periods: periods_of(cycle, body.periods)?,
        body,
    })
}

/// Servers are bought into the configured project; without one, into any that the vendor's token has.
async fn check_project(app: &App, project: u64) -> Result<(), Error> {
    let is_there = match (app.vendors.project, app.vendors.servers_for(Purpose::Quote)) {
        (Some(ours), _) => ours == project,
        (None, Some(compute)) => compute.project(project).await.map_err(pricing::vendor_error)?.is_some(),
        // That nothing is sold is said with the price.
        (None, None) => true,
    };
    if is_there { Ok(()) } else { Err(Error::not_found("project", project)) }
}

/// A server in a project, with its price.
///
/// # Errors
/// 400, 404 for another project, 409 `out_of_stock`, 503.
pub async fn quote_server(app: &App, project: u64, asked: Asked) -> Result<(Item, Private, MicroUsd), Error> {
    check_project(app, project).await?;
    let bootstrap = asked.body.agent_id.is_some();
    if bootstrap {
        bootstrap::package(app)?;
    }
    let quote =
        pricing::server(app, Purpose::Quote, (&asked.plan, &asked.region), asked.cycle, asked.periods)
            .await?;
    let Some(compute) = app.vendors.servers_for(Purpose::Quote) else {
        return Err(Error::internal("a price without a seller"));
    };
    let images = compute.images(&asked.plan).await.map_err(pricing::vendor_error)?;
    let image = images.iter().find(|image| image.slug == asked.image);
    let image = image.ok_or_else(|| Error::invalid("image", "is not one of this plan's"))?;
    if image.licensed {
        return Err(Error::invalid("image", "needs a licence that is billed apart, and is not sold"));
    }
    let body = asked.body;
    let item = Item::Server(ServerItem {
        project,
        plan: asked.plan.to_string(),
        region: asked.region.to_string(),
        image: asked.image.to_string(),
        hostname: body.hostname,
        cycle: asked.cycle.as_str().to_owned(),
        periods: asked.periods,
        ssh_keys: body.ssh_keys.unwrap_or_default(),
        bootstrap,
        cpu: quote.plan.cpu,
        memory: quote.plan.memory,
        disk: quote.plan.disk,
    });
    let user_data = body.user_data.filter(|text| !text.is_empty());
    Ok((item, Private { contact: None, user_data }, quote.price))
}

/// A server.
///
/// # Errors
/// 401 without a key; as [`read_server`] and [`quote_server`].
pub async fn server(app: &App, caller: &Caller, project: u64, body: ProvisionServer) -> Result<Sale, Error> {
    caller.key()?;
    let asked = read_server(body)?;
    let agent = beneficiary(app, caller, asked.body.agent_id).await?;
    let owner = record_owner(caller, agent.as_ref());
    let (item, private, price) = quote_server(app, project, asked).await?;
    Ok(sale(item, &private, price, agent.as_ref(), owner))
}

/// More time for a server: what it is and what it costs by what is sold. `periods`: the usual number when it is not said.
///
/// # Errors
/// 400, 503.
pub async fn quote_period(
    app: &App,
    purpose: Purpose,
    sold: &[Plan],
    sandbox: &otonix_sdk::api::records::Sandbox,
    at: &sandboxes::AtVendor,
    periods: Option<u32>,
) -> Result<(Item, MicroUsd), Error> {
    let cycle = cycle_of(&at.cycle)?;
    let periods = periods_of(cycle, periods)?;
    let plan = Slug::of_field("plan", &at.plan)?;
    let quote = pricing::period(app, purpose, sold, &plan, cycle, periods).await?;
    let item = Item::Period(PeriodItem {
        sandbox: sandbox.id,
        vendor_id: at.vendor_id.clone(),
        hostname: sandbox.name.clone(),
        cycle: at.cycle.clone(),
        periods,
    });
    Ok((item, quote.price))
}

/// More time for a managed server of the caller's.
///
/// # Errors
/// 401 without a key, 404 for another's, 400, 503.
pub async fn period(app: &App, caller: &Caller, server: u64, body: ExtendServer) -> Result<Sale, Error> {
    caller.key()?;
    let id = server.to_string();
    let found = app.db.read(move |conn| Box::pin(async move { sandboxes::managed(conn, &id).await })).await?;
    let (sandbox, owner, at) = found.ok_or_else(|| Error::not_found("server", server))?;
    caller.must_own("server", server, owner, sandbox.agent_id.map(AgentId::uuid))?;
    if sandbox.status == "error" {
        let detail =
            format!("server {server} could not be installed; the operator decides what becomes of it");
        return Err(Error::conflict(ErrorCode::Conflict, detail));
    }
    let Some(compute) = app.vendors.servers_for(Purpose::Quote) else {
        return Err(Error::NotConfigured {
            code: ErrorCode::UpstreamNotConfigured,
            detail: "no seller of servers is configured on this server",
        });
    };
    if compute.server(server).await.map_err(pricing::vendor_error)?.is_none() {
        return Err(Error::not_found("server", server));
    }
    let sold = pricing::sold_now(app, Purpose::Quote).await?;
    let (item, price) = quote_period(app, Purpose::Quote, &sold, &sandbox, &at, body.periods).await?;
    let agent = beneficiary(app, caller, sandbox.agent_id).await?;
    Ok(sale(item, &Private::default(), price, agent.as_ref(), owner))
}
