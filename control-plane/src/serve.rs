//! The life of the server: from its configuration to a clean stop.

use std::fs::{self, OpenOptions};
use std::io::Write as _;
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _, PermissionsExt as _};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, bail};
use otonix_sdk::clock::{Clock as _, SystemClock};
use otonix_sdk::secret::Secret;
use rustix::fs::{FlockOperation, flock};
use tokio::signal::unix::{SignalKind, signal};
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::app::{App, Outside};
use crate::auth::{Mode, hash_secret, random_hex};
use crate::config::Settings;
use crate::net::{self, Front, Limits, Tls};
use crate::reconcile::{Reconciled, reconcile};
use crate::rest;
use crate::service::payments::Payments;
use crate::store::writer::Target;
use crate::store::{Db, audit, laws, leases, migrate, replicas, settings};
use crate::worker::{beats, calendar};

/// How long a stop may take before what is left is dropped.
const DRAIN_TIME: Duration = Duration::from_secs(8);
/// How long the last writes may take.
const FLUSH_TIME: Duration = Duration::from_secs(5);

/// Serves until SIGTERM or SIGINT.
///
/// # Errors
/// What keeps the server from starting.
pub async fn serve(mut settings: Settings) -> anyhow::Result<()> {
    let prices = settings.prices()?;
    let registrant = settings.registrant()?;
    settings.laws = settings.read_laws()?;
    make_dir(&settings.data_dir)?;
    let _lock = lock_embedded(&settings)?;
    let listen_file = settings.data_dir.join("listen");
    let _ = fs::remove_file(&listen_file);
    let exempt_networks =
        settings.trusted_proxies.iter().map(|ip| (*ip, if ip.is_ipv4() { 32 } else { 128 })).collect();
    let limits =
        Limits { drain_time: DRAIN_TIME, exempt_networks, ..Limits::default() }.fit(net::raise_nofile());
    let listener = net::bind(settings.listen).with_context(|| format!("listen on {}", settings.listen))?;
    settings.listen = listener.local_addr()?;
    let tls = match &settings.tls {
        Some((cert, key)) => Some(Arc::new(Tls::load(cert, key)?)),
        None => None,
    };
    let db = Db::connect(settings.database.expose()).await.context("the database")?;
    migrate::migrate(&db).await.context("the database")?;
    let tracker = TaskTracker::new();
    let operator_hash = operator_hash(&settings, &db).await?;
    if let Some(laws) = &settings.laws {
        laws::keep(&db, laws, SystemClock.now()).await.context("the laws")?;
    }
    let payments = payments(&settings, &db).await?;
    let outside = Outside { payments, vendors: settings.vendors.connect()?, registrant };
    let app = App::new(settings, prices, db, Arc::new(SystemClock), operator_hash, outside, &tracker);
    let stop = CancellationToken::new();
    crate::worker::start(&app, &stop, &tracker);
    tracker.spawn(watchdog(stop.clone()));
    let mut scheduler = calendar::start(&app).await?;
    let service = rest::front::Front::new(
        Arc::clone(&app),
        rest::router(Arc::clone(&app)),
        crate::grpc::router(Arc::clone(&app)).await?,
    );
    let shutdown = CancellationToken::new();
    let connections = TaskTracker::new();
    tracker.spawn(reload_certificate(tls.clone(), stop.clone()));
    let front = Front {
        listener,
        tls,
        limits,
        stats: Arc::clone(&app.shared.net),
        shutdown: shutdown.clone(),
        tracker: connections.clone(),
    };
    let serving = tokio::spawn(front.serve(service));
    write_file(&listen_file, &app.settings.listen.to_string(), 0o644)?;
    announce(&app);
    until_signal().await?;
    tracing::info!("stopping");
    app.shared.drain();
    app.shared.links.leave_all();
    shutdown.cancel();
    let second = until_signal();
    tokio::select! {
        done = serving => done??,
        signal = second => {
            signal?;
            tracing::warn!("a second signal: stopping now");
        }
    }
    let _ = scheduler.shutdown().await;
    stop.cancel();
    finish(&app).await;
    let _ = fs::remove_file(&listen_file);
    tracing::info!("stopped");
    Ok(())
}

/// Writes what is left and gives back what others wait for.
async fn finish(app: &App) {
    let replica = app.replica;
    let last = async {
        beats::run_once(app).await?;
        app.writer
            .apply(Target::Shared, move |tx| {
                Box::pin(async move {
                    leases::release(tx, replica).await?;
                    Ok(replicas::leave(tx, replica).await?)
                })
            })
            .await
    };
    match timeout(FLUSH_TIME, last).await {
        Ok(Ok(())) => {}
        Ok(Err(error)) => tracing::warn!(%error, "the last writes failed"),
        Err(_) => tracing::warn!("the last writes took too long"),
    }
    let _ = timeout(Duration::from_secs(1), app.db.close()).await;
}

fn announce(app: &App) {
    let settings = &app.settings;
    let database = if app.db.is_postgres() { "postgres" } else { "sqlite" };
    let mode = match settings.mode {
        Mode::Open => "open",
        Mode::Guarded => "guarded",
    };
    tracing::info!(listen = %settings.listen, mode, database, "the control plane is ready");
    if settings.mode == Mode::Open {
        tracing::warn!("open mode: every program on this machine may use routes that need no key");
    }
    let _ = sd_notify::notify(&[sd_notify::NotifyState::Ready]);
}

/// Tells the service manager that the runtime gets on, three times in each of its periods.
async fn watchdog(stop: CancellationToken) {
    let Some(limit) = sd_notify::watchdog_enabled() else { return };
    let mut ticks = tokio::time::interval((limit / 3).max(Duration::from_millis(100)));
    loop {
        tokio::select! {
            () = stop.cancelled() => return,
            _ = ticks.tick() => {}
        }
        let _ = sd_notify::notify(&[sd_notify::NotifyState::Watchdog]);
    }
}

/// On SIGHUP, reads certificate and key again; connections made from then on use what is there.
async fn reload_certificate(tls: Option<Arc<Tls>>, stop: CancellationToken) {
    let mut hangup = match signal(SignalKind::hangup()) {
        Ok(hangup) => hangup,
        Err(error) => {
            tracing::warn!(%error, "SIGHUP cannot be heard");
            return;
        }
    };
    loop {
        tokio::select! {
            () = stop.cancelled() => return,
            _ = hangup.recv() => {}
        }
        match tls.as_deref().map(Tls::reload) {
            None => tracing::info!("SIGHUP: there is no certificate to read again"),
            Some(Ok(())) => tracing::info!("SIGHUP: the certificate was read again"),
            Some(Err(error)) => tracing::error!(%error, "SIGHUP: the old certificate stays in use"),
        }
    }
}

async fn until_signal() -> anyhow::Result<()> {
    let mut term = signal(SignalKind::terminate())?;
    let mut int = signal(SignalKind::interrupt())?;
    tokio::select! {
        _ = term.recv() => {}
        _ = int.recv() => {}
    }
    let _ = sd_notify::notify(&[sd_notify::NotifyState::Stopping]);
    Ok(())
}

fn make_dir(dir: &Path) -> anyhow::Result<()> {
    fs::DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(dir)
        .with_context(|| format!("data-dir {}", dir.display()))
}

/// Two servers on one embedded database would each miss what the other does; the second does not start.
fn lock_embedded(settings: &Settings) -> anyhow::Result<Option<fs::File>> {
    let Some(path) = settings.database.expose().strip_prefix("sqlite://") else { return Ok(None) };
    let path = format!("{path}.lock");
    let file = OpenOptions::new()
        .create(true)
        .truncate(false)
        .write(true)
        .mode(0o600)
        .open(&path)
        .with_context(|| format!("lock {path}"))?;
    if flock(&file, FlockOperation::NonBlockingLockExclusive).is_err() {
        bail!("another server uses this database ({path} is locked)");
    }
    Ok(Some(file))
}

/// Writes a file whole or not at all.
fn write_file(path: &Path, text: &str, mode: u32) -> anyhow::Result<()> {
    let temp = path.with_extension(format!("tmp{}", std::process::id()));
    let write = || -> std::io::Result<()> {
        let mut file = OpenOptions::new().create(true).write(true).truncate(true).mode(mode).open(&temp)?;
        file.set_permissions(fs::Permissions::from_mode(mode))?;
        file.write_all(text.as_bytes())?;
        file.sync_all()?;
        fs::rename(&temp, path)
    };
    write().with_context(|| format!("write {}", path.display()))
}

/// The operator token's hash: of the configured token, else of the one that the database knows, else of a new one,
/// which is shown in a file.
async fn operator_hash(settings: &Settings, db: &Db) -> anyhow::Result<String> {
    let name = settings::OPERATOR_TOKEN_HASH;
    let file = settings.data_dir.join("operator-token");
    if let Some(token) = &settings.operator_token {
        let hash = hash_secret(token.expose());
        let mut tx = settings::Direct::open(db).await?;
        tx.write(name, &hash).await?;
        return Ok(hash);
    }
    let token = match fs::read_to_string(&file) {
        Ok(text) => Some(Secret::from_file_text(text)).filter(|token| !token.expose().is_empty()),
        Err(_) => None,
    };
    let shown = token.is_some();
    let token = token.unwrap_or_else(|| Secret::new(random_hex::<24>()));
    let mut tx = settings::Direct::open(db).await?;
    // The file comes first: a token that nobody can read would lock the operator out.
    let known = tx.read(name).await?;
    if known.is_none() && !shown {
        write_file(&file, token.expose(), 0o600)?;
    }
    let hash = hash_secret(token.expose());
    let agreed = tx.init(name, &hash).await?;
    if agreed != hash && shown {
        tracing::warn!(file = %file.display(), "this operator token is not the one that the database knows");
    }
    if agreed != hash && known.is_none() && !shown {
        // Another replica was first; its token counts.
        let _ = fs::remove_file(&file);
    }
    Ok(agreed)
}

/// What being paid needs, with the key of orders that all replicas share.
async fn payments(settings: &Settings, db: &Db) -> anyhow::Result<Option<Payments>> {
    let Some(settings) = settings.payments.clone() else { return Ok(None) };
    let mut tx = settings::Direct::open(db).await?;
    let key = tx.init(settings::ORDER_KEY, &random_hex::<32>()).await?;
    let mut bytes = [0; 32];
    hex::decode_to_slice(&key, &mut bytes).context("the order key in the database")?;
    Ok(Some(Payments::new(settings, bytes)?))
}

/// Brings the database up to date.
///
/// # Errors
/// When it cannot be reached or belongs to another version.
pub async fn migrate_only(settings: &Settings) -> anyhow::Result<Vec<&'static str>> {
    make_dir(&settings.data_dir)?;
    let db = Db::connect(settings.database.expose()).await.context("the database")?;
    Ok(migrate::migrate(&db).await?)
}

/// Reads the books, and the chain beside them when one is configured.
///
/// # Errors
/// When the database or the chain cannot be read.
pub async fn books(settings: &Settings) -> anyhow::Result<(audit::Books, Option<Reconciled>)> {
    let db = Db::connect(settings.database.expose()).await.context("the database")?;
    let mut conn = db.dedicated().await?;
    // The chain comes last: what is booked meanwhile is on it already.
    let books = audit::books(&mut conn).await?;
    let chain = reconcile(settings, &db).await?;
    Ok((books, chain))
}
