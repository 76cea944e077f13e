//! The paying client: one request, what it may cost, and what came of it.

use std::collections::HashMap;
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use chrono::TimeDelta;
use tokio::sync::{oneshot, watch};
use uuid::Uuid;

use super::book::{Book, Entry};
use super::http::{Extra, Http, HttpAnswer};
use super::policy::Asker;
use super::record::{Record, State};
use super::view::{event_of, listed, of_entry, of_refusal};
use super::{Fetch, Fetched, PayConfig, PayError, Payment, answers, check, drive};
use crate::api::events::PaymentEvent;
use crate::chain::{EvmAddress, Rpc};
use crate::clock::Clock;
use crate::money::MicroUsd;
use crate::wallet::Wallet;

/// A client of one wallet; cheap to clone.
#[derive(Debug, Clone)]
pub struct Client(Arc<Inner>);

/// What a driver tells those who wait.
#[derive(Debug, Clone, Default)]
pub(super) struct Told {
    /// Waiting on makes no sense.
    pub enough: bool,
    /// The newest answer.
    pub answer: Option<HttpAnswer>,
}

#[derive(Debug)]
pub(super) struct Inner {
    pub config: PayConfig,
    pub wallet: Wallet,
    pub rpc: Rpc,
    pub http: Http,
    pub clock: Arc<dyn Clock>,
    pub(super) book: Mutex<Book>,
    running: Mutex<HashMap<Uuid, watch::Receiver<Told>>>,
    /// Chain and journal were compared in this life.
    pub(super) ready: tokio::sync::Mutex<bool>,
    pub(super) paused: Mutex<Option<String>>,
    changes: watch::Sender<u64>,
}

pub(super) fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Client {
    /// Opens the journal. Nothing is sent before [`Client::resume`] or a fetch.
    ///
    /// # Errors
    /// [`PayError::Journal`] when it cannot be used, [`PayError::Http`] or [`PayError::WrongChain`] when the
    /// configuration cannot.
    pub fn open(config: PayConfig, wallet: Wallet, clock: Arc<dyn Clock>) -> Result<Self, PayError> {
        let book = Book::open(&config.dir)?;
        let http = Http::new(config.rules.server.clone(), config.allow_private)?;
        let rpc = Rpc::new(&config.rpc)
            .map_err(|why| PayError::WrongChain(format!("a chain RPC address {why}")))?;
        Ok(Self(Arc::new(Inner {
            config,
            wallet,
            rpc,
            http,
            clock,
            book: Mutex::new(book),
            running: Mutex::default(),
            ready: tokio::sync::Mutex::new(false),
            paused: Mutex::default(),
            changes: watch::Sender::new(0),
        })))
    }

    /// Goes on with every payment that is not over.
    pub fn resume(&self) {
        let open: Vec<Uuid> = locked(&self.0.book).content().open().map(|entry| entry.intent.id).collect();
        for id in open {
            self.0.start(id);
        }
    }

    /// Asks, pays when that is asked for and allowed, and waits for what was paid for. Goes on when the caller does
    /// not wait any more.
    ///
    /// # Errors
    /// [`PayError`]; nothing was signed for this request.
    pub async fn fetch(&self, fetch: Fetch) -> Result<Fetched, PayError> {
        let inner = Arc::clone(&self.0);
        let (done, outcome) = oneshot::channel();
        tokio::spawn(async move {
            // The caller may be gone; the journal has what matters.
            let _ = done.send(inner.fetch(fetch).await);
        });
        outcome.await.map_err(|_| PayError::Closed)?
    }

    /// A payment, and its answer when that is still kept.
    pub fn payment(&self, id: Uuid) -> Option<(Payment, Option<HttpAnswer>)> {
        let payment = {
            let book = locked(&self.0.book);
            let content = book.content();
            let refused = || content.refusals.get(&id).map(|declined| of_refusal(&declined.refusal));
            content.entries.get(&id).map(of_entry).or_else(refused)?
        };
        let running = locked(&self.0.running).get(&id).and_then(|told| told.borrow().answer.clone());
        Some((payment, running.or_else(|| answers::load(&self.0.config.dir, id))))
    }

    /// Every payment that the journal still has, newest first.
    pub fn payments(&self) -> Vec<Payment> {
        listed(locked(&self.0.book).content())
    }

    /// Checks chain and token, and compares chain and journal, unless that was done in this life.
    ///
    /// # Errors
    /// [`PayError`] when the chain does not answer or is another.
    pub async fn check(&self) -> Result<(), PayError> {
        self.0.make_ready().await
    }

    /// Compares what was delivered with the chain's last word.
    ///
    /// # Errors
    /// [`PayError::Journal`].
    pub async fn check_delivered(&self) -> Result<(), PayError> {
        drive::check_delivered(&self.0).await
    }

    /// Counts changes of payments.
    pub fn changes(&self) -> watch::Receiver<u64> {
        self.0.changes.subscribe()
    }

    /// States that the link does not have yet, as events.
    pub fn untold(&self) -> Vec<(Uuid, State, PaymentEvent)> {
        let book = locked(&self.0.book);
        let content = book.content();
        let entries = content.entries.values().filter(|entry| entry.told != Some(entry.state));
        let refused = content.refusals.values().filter(|declined| !declined.told);
        let payments = entries.map(of_entry).chain(refused.map(|declined| of_refusal(&declined.refusal)));
        payments.map(|payment| (payment.intent_id, payment.state, event_of(payment))).collect()
    }

    /// The link has the event of a state.
    pub async fn told(&self, id: Uuid, state: State) -> Result<(), PayError> {
        Ok(self.0.book(move |book| book.note(vec![Record::Told { id, state }])).await??)
    }

    /// Stops and starts signing. What is signed already goes on.
    pub fn set_paused(&self, why: Option<String>) {
        *locked(&self.0.paused) = why;
    }

    /// Why nothing is paid at the moment, as far as is known without asking the chain.
    pub fn standstill(&self) -> Option<String> {
        if let Some(why) = locked(&self.0.paused).clone() {
            return Some(why);
        }
        let book = locked(&self.0.book);
        let waits = book.content().wait_until.filter(|until| *until > self.0.clock.now());
        let suspect = book
            .content()
            .suspect
            .as_ref()
            .map(|why| format!("{why}; look at it, then run `otonix-agent journal reconcile`"));
        suspect
            .or_else(|| waits.map(|until| format!("the journal was reconciled; payments go on at {until}")))
    }

    /// The wallet.
    pub fn address(&self) -> EvmAddress {
        self.0.wallet.address()
    }

    /// Signed and not yet known to have moved.
    pub fn outstanding(&self) -> MicroUsd {
        locked(&self.0.book).content().totals(self.0.clock.now()).outstanding
    }

    /// What `[topup] max_day` leaves.
    pub fn topup_left(&self) -> MicroUsd {
        let spent = locked(&self.0.book).content().totals(self.0.clock.now()).topups_day;
        self.0.config.rules.topup_max_day.saturating_sub(spent)
    }

    /// A top-up that is not over.
    pub fn open_topup(&self) -> Option<Uuid> {
        let book = locked(&self.0.book);
        book.content().open().find(|entry| entry.intent.asker == Asker::Topup).map(|entry| entry.intent.id)
    }

    /// Waits until a payment is over or its driver has said enough.
    pub async fn wait(&self, id: Uuid) -> Option<Fetched> {
        self.0.wait(id).await
    }

    /// What the wallet holds, USDC, and coins for gas in wei.
    ///
    /// # Errors
    /// [`PayError::Chain`].
    pub async fn balance(&self) -> Result<(MicroUsd, u128), PayError> {
        let of = self.0.wallet.address();
        let usdc = self.0.rpc.token_balance(self.0.config.rules.asset, of).await?;
        Ok((micros(usdc), self.0.rpc.balance(of).await?))
    }

    /// Compares chain and journal now, and lets payments go on after the owner has looked.
    ///
    /// # Errors
    /// [`PayError`].
    pub async fn reconcile(&self) -> Result<Option<String>, PayError> {
        let inner = &self.0;
        let mut ready = inner.ready.lock().await;
        check::run(inner).await?;
        drive::check_delivered(inner).await?;
        *ready = true;
        let at = inner.clock.now();
        let wait_until = at + TimeDelta::from_std(inner.config.tuning.after_rollback).unwrap_or_default();
        let suspect = inner
            .book(move |book| {
                let suspect = book.content().suspect.clone();
                if suspect.is_some() {
                    book.commit(vec![Record::Reconciled { at, wait_until }])?;
                }
                Ok::<_, PayError>(suspect)
            })
            .await??;
        Ok(suspect)
    }

    /// Payees by origin, and the token.
    pub fn pins(&self) -> Vec<(String, String)> {
        let book = locked(&self.0.book);
        book.content().pins.iter().map(|(origin, payee)| (origin.clone(), payee.to_string())).collect()
    }

    /// Forgets the payee of an origin; false when there is none.
    ///
    /// # Errors
    /// [`PayError::Journal`].
    pub async fn unpin(&self, origin: String) -> Result<bool, PayError> {
        self.0
            .book(move |book| {
                let known = book.content().pins.contains_key(&origin);
                if known {
                    book.commit(vec![Record::Unpin { origin }])?;
                }
                Ok(known)
            })
            .await?
    }

    /// The rules.
    pub fn rules(&self) -> &super::Rules {
        &self.0.config.rules
    }
}

impl Inner {
    /// Runs something on the journal, in a thread that may wait for the disk.
    pub async fn book<T: Send + 'static>(
        self: &Arc<Self>,
        work: impl FnOnce(&mut Book) -> T + Send + 'static,
    ) -> Result<T, PayError> {
        let inner = Arc::clone(self);
        let worked = tokio::task::spawn_blocking(move || work(&mut locked(&inner.book)));
        worked.await.map_err(|_| PayError::Closed)
    }

    /// The newest content of an entry.
    pub fn entry(&self, id: Uuid) -> Option<Entry> {
        locked(&self.book).content().entries.get(&id).cloned()
    }

    pub fn changed(&self) {
        self.changes.send_modify(|count| *count = count.wrapping_add(1));
    }

    pub fn dir(&self) -> &Path {
        &self.config.dir
    }

    /// The daemon's own key goes with a top-up of its own agent, and nowhere else.
    pub fn credentials(&self, asker: Asker) -> Extra {
        match (&self.config.api_key, asker) {
            (Some(key), Asker::Topup) => vec![("x-api-key".to_owned(), key.expose().to_owned())],
            _ => Extra::new(),
        }
    }

    /// Starts a payment's driver unless it runs or is over.
    pub fn start(self: &Arc<Self>, id: Uuid) {
        let mut running = locked(&self.running);
        let over = self.entry(id).is_none_or(|entry| entry.state.is_terminal());
        if over || running.contains_key(&id) {
            return;
        }
        let (tell, told) = watch::channel(Told::default());
        running.insert(id, told);
        let inner = Arc::clone(self);
        tokio::spawn(async move {
            drive::run(&inner, id, &tell).await;
            locked(&inner.running).remove(&id);
            tell.send_modify(|told| told.enough = true);
        });
    }

    /// Waits until a payment is over, or its driver has said enough, or patience ends.
    pub(super) async fn wait(&self, id: Uuid) -> Option<Fetched> {
        let told = locked(&self.running).get(&id).cloned();
        let mut answer = None;
        if let Some(mut told) = told {
            let patience = self.config.tuning.patience;
            let enough = told.wait_for(|told| told.enough);
            // A driver that is gone has said what there was to say.
            let _ = tokio::time::timeout(patience, enough).await;
            answer = told.borrow().answer.clone();
        }
        let entry = self.entry(id)?;
        let answer = answer.or_else(|| answers::load(&self.config.dir, id));
        Some(Fetched { id, answer, payment: Some(of_entry(&entry)) })
    }

    /// How long the pause before the next try is.
    pub fn pause(&self, attempt: u32, asked: Option<Duration>) -> Duration {
        const LONGEST: Duration = Duration::from_secs(30);
        let own = self.config.tuning.backoff.saturating_mul(1 << attempt.min(10));
        asked.unwrap_or(own).max(self.config.tuning.backoff).min(LONGEST)
    }
}

/// Base units of USDC; more than fits is as much as fits.
pub(super) fn micros(units: u128) -> MicroUsd {
    MicroUsd::from_micros(i64::try_from(units).unwrap_or(i64::MAX))
}
