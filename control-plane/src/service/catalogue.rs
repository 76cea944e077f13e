//! What vendors offer, for readers: asked by them at a bounded rate, so that purchases always find room, and kept for
//! five minutes. Purchases ask the vendors themselves.

use std::hash::Hash;
use std::num::NonZeroU32;
use std::sync::Arc;
use std::time::Duration;

use dashmap::DashMap;
use governor::clock::{Clock as _, DefaultClock};
use governor::{DefaultDirectRateLimiter, Quota, RateLimiter};
use otonix_sdk::error::ErrorCode;
use tokio::sync::Mutex;
use tokio::time::Instant;

use crate::app::App;
use crate::error::Error;
use crate::service::vendors::{compute, failed, registrar};
use crate::store::writer::{IdemFor, Target, Written};
use crate::upstream::providers::{
    DomainName, DomainPrice, Image, OwnedDomain, Plan, Project, Refusal, Region, Server, Slug, Team,
    VendorError,
};

/// How long an answer is kept.
const KEPT: Duration = Duration::from_secs(300);
/// How long a list of what was bought is: it changes by itself.
const BOUGHT_KEPT: Duration = Duration::from_secs(10);
/// How long a failure is.
const FAILURE_KEPT: Duration = Duration::from_secs(5);
/// Answers kept of each kind.
const MOST: usize = 10_000;
/// Of the requests a second to the seller of servers that are not for purchases, readers get these.
const COMPUTE_READS: NonZeroU32 = NonZeroU32::new(2).expect("not zero");
/// The same for the registrar.
const REGISTRAR_READS: NonZeroU32 = NonZeroU32::new(4).expect("not zero");
/// Types of plans whose images are asked for when nobody names a plan.
const MOST_TYPES: usize = 4;
/// Readers may ask this much at once, when nobody has asked for a while.
const BURST: NonZeroU32 = NonZeroU32::new(4).expect("not zero");
/// How long a reader waits for its turn.
const LONGEST_WAIT: Duration = Duration::from_secs(10);

type Answered<T> = (Instant, Result<Arc<T>, VendorError>);

/// Answers by what was asked; of one question at a time only one is under way.
struct Kept<K: Eq + Hash, T>(DashMap<K, Arc<Mutex<Option<Answered<T>>>>>);

impl<K: Eq + Hash + Clone, T> Default for Kept<K, T> {
    fn default() -> Self {
        Self(DashMap::new())
    }
}

impl<K: Eq + Hash + Clone, T> Kept<K, T> {
    async fn get<F>(
        &self,
        key: &K,
        share: &DefaultDirectRateLimiter,
        ask: impl FnOnce() -> F,
    ) -> Result<Arc<T>, Error>
    where
        F: Future<Output = Result<T, VendorError>>,
    {
        self.get_for(KEPT, key, share, ask).await
    }

    async fn get_for<F>(
        &self,
        kept: Duration,
        key: &K,
        share: &DefaultDirectRateLimiter,
        ask: impl FnOnce() -> F,
    ) -> Result<Arc<T>, Error>
    where
        F: Future<Output = Result<T, VendorError>>,
    {
        if self.0.len() >= MOST {
            self.0.clear();
        }
        let slot = Arc::clone(&self.0.entry(key.clone()).or_default());
        let mut slot = slot.lock().await;
        if let Some((at, known)) = &*slot {
            let lives = if known.is_ok() { kept } else { FAILURE_KEPT };
            if at.elapsed() < lives {
                return known.clone().map_err(failed);
            }
        }
        turn(share).await?;
        let answer = ask().await.map(Arc::new);
        *slot = Some((Instant::now(), answer.clone()));
        answer.map_err(failed)
    }
}

/// Waits for a reader's turn.
async fn turn(share: &DefaultDirectRateLimiter) -> Result<(), Error> {
    let since = Instant::now();
    while let Err(not_yet) = share.check() {
        let wait = not_yet.wait_time_from(DefaultClock::default().now());
        if since.elapsed() + wait > LONGEST_WAIT {
            return Err(Error::Busy {
                code: ErrorCode::UpstreamBusy,
                retry_after: wait.max(Duration::from_secs(1)),
                detail: "too much is asked of this vendor; try again",
            });
        }
        tokio::time::sleep(wait).await;
    }
    Ok(())
}

/// What is kept of vendors' answers.
pub struct Catalogue {
    plans: Kept<(), Vec<Plan>>,
    regions: Kept<(), Vec<Region>>,
    images: Kept<Slug, Vec<Image>>,
    teams: Kept<(), Vec<Team>>,
    projects: Kept<u64, Vec<Project>>,
    servers: Kept<u64, Vec<Server>>,
    domains: Kept<(), Vec<OwnedDomain>>,
    available: Kept<DomainName, bool>,
    prices: Kept<DomainName, DomainPrice>,
    compute_reads: DefaultDirectRateLimiter,
    registrar_reads: DefaultDirectRateLimiter,
}

impl Default for Catalogue {
    fn default() -> Self {
        let share = |per_second| RateLimiter::direct(Quota::per_second(per_second).allow_burst(BURST));
        Self {
            plans: Kept::default(),
            regions: Kept::default(),
            images: Kept::default(),
            teams: Kept::default(),
            projects: Kept::default(),
            servers: Kept::default(),
            domains: Kept::default(),
            available: Kept::default(),
            prices: Kept::default(),
            compute_reads: share(COMPUTE_READS),
            registrar_reads: share(REGISTRAR_READS),
        }
    }
}

/// What is sold.
///
/// # Errors
/// 503 when nobody sells servers, or the vendor cannot be asked.
pub async fn plans(app: &App) -> Result<Arc<Vec<Plan>>, Error> {
    let (kept, vendor) = (&app.catalogue, compute(app)?);
    kept.plans.get(&(), &kept.compute_reads, || vendor.plans()).await
}

/// Where.
///
/// # Errors
/// As [`plans`].
pub async fn regions(app: &App) -> Result<Arc<Vec<Region>>, Error> {
    let (kept, vendor) = (&app.catalogue, compute(app)?);
    kept.regions.get(&(), &kept.compute_reads, || vendor.regions()).await
}

/// What a plan can be installed with.
///
/// # Errors
/// As [`plans`]; 404 for a plan that is not there.
pub async fn images(app: &App, plan: &Slug) -> Result<Arc<Vec<Image>>, Error> {
    let (kept, vendor) = (&app.catalogue, compute(app)?);
    kept.images.get(plan, &kept.compute_reads, || vendor.images(plan)).await
}

/// What servers can be installed with at all: the images of one plan of each type.
///
/// # Errors
/// As [`plans`].
pub async fn all_images(app: &App) -> Result<Vec<Image>, Error> {
    let plans = plans(app).await?;
    let mut types: Vec<&Option<String>> = Vec::new();
    let mut found: Vec<Image> = Vec::new();
    for plan in plans.iter() {
        if types.len() >= MOST_TYPES || types.contains(&&plan.kind) {
            continue;
        }
        types.push(&plan.kind);
        for image in images(app, &plan.slug).await?.iter() {
            if found.iter().all(|known| known.slug != image.slug) {
                found.push(image.clone());
            }
        }
    }
    Ok(found)
}

/// The account's teams.
///
/// # Errors
/// As [`plans`].
pub async fn teams(app: &App) -> Result<Arc<Vec<Team>>, Error> {
    let (kept, vendor) = (&app.catalogue, compute(app)?);
    kept.teams.get(&(), &kept.compute_reads, || vendor.teams()).await
}

/// A team's projects.
///
/// # Errors
/// As [`plans`]; 404 for a team that is not there.
pub async fn projects(app: &App, team: u64) -> Result<Arc<Vec<Project>>, Error> {
    let (kept, vendor) = (&app.catalogue, compute(app)?);
    kept.projects.get(&team, &kept.compute_reads, || vendor.projects(team)).await
}

/// Every server of a project.
///
/// # Errors
/// As [`plans`]; 404 for a project that is not there.
pub async fn servers(app: &App, project: u64) -> Result<Arc<Vec<Server>>, Error> {
    let (kept, vendor) = (&app.catalogue, compute(app)?);
    kept.servers.get_for(BOUGHT_KEPT, &project, &kept.compute_reads, || vendor.servers(project)).await
}

/// Every domain of the account.
///
/// # Errors
/// 503 when nobody registers domains, or the registrar cannot be asked.
pub async fn domains(app: &App) -> Result<Arc<Vec<OwnedDomain>>, Error> {
    let (kept, vendor) = (&app.catalogue, registrar(app)?);
    kept.domains.get_for(BOUGHT_KEPT, &(), &kept.registrar_reads, || vendor.domains()).await
}

/// Which names can be registered, in their order.
///
/// # Errors
/// 503 when nobody registers domains, or the registrar cannot be asked.
pub async fn available(app: &App, names: &[DomainName]) -> Result<Vec<bool>, Error> {
    let (kept, vendor) = (&app.catalogue, registrar(app)?);
    let [name] = names else {
        turn(&kept.registrar_reads).await?;
        return vendor.available(names).await.map_err(failed);
    };
    let ask = || async {
        match vendor.available(names).await {
            Ok(free) => Ok(free.first().copied().unwrap_or(false)),
            Err(why) if is_no(&why) => Ok(false),
            Err(why) => Err(why),
        }
    };
    Ok(vec![*kept.available.get(name, &kept.registrar_reads, ask).await?])
}

/// What a year of a name costs; without a price it cannot be had.
///
/// # Errors
/// As [`available`].
pub async fn price(app: &App, name: &DomainName) -> Result<Arc<DomainPrice>, Error> {
    let (kept, vendor) = (&app.catalogue, registrar(app)?);
    let ask = || async {
        match vendor.price(name, 1).await {
            Err(why) if is_no(&why) => Ok(DomainPrice { years: 1, purchase: None, renewal: None }),
            answer => answer,
        }
    };
    kept.prices.get(name, &kept.registrar_reads, ask).await
}

/// Keeps what was told, for who asks again with the same key.
///
/// # Errors
/// 503 without database.
pub async fn keep<T: Send + 'static>(
    app: &App,
    told: T,
    idem: Option<IdemFor<T>>,
) -> Result<Written<T>, Error> {
    app.writer.run(Target::Shared, idem, move |_| Box::pin(async move { Ok(told) })).await
}

/// Whether an error only says that the name cannot be had.
fn is_no(why: &VendorError) -> bool {
    let reasons = [Refusal::TldNotSupported, Refusal::DomainNotAvailable, Refusal::NotFound];
    why.refusal().is_some_and(|reason| reasons.contains(&reason))
}
