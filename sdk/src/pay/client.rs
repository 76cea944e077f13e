//! The paying client: one request, what it may cost, and what came of it.

use std::collections::HashMap;
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use chrono::{DateTime, TimeDelta, Utc};
use sha2::{Digest as _, Sha256};
use tokio::sync::{oneshot, watch};
use uuid::Uuid;

use super::book::{Book, Entry, MAX_OPEN};
use super::http::{self, Extra, Http, HttpAnswer};
use super::policy::{Ask, Asker, Denied, Knowledge};
use super::record::{Intent, Record, Refusal, Request, State};
use super::{Fetch, Fetched, PayConfig, PayError, Payment, answers, check, drive, order, sign};
use crate::api::events::PaymentEvent;
use crate::chain::{At, EvmAddress, Rpc};
use crate::clock::{Clock, new_id};
use crate::money::MicroUsd;
use crate::wallet::{Gas, Wallet};
use crate::x402::{Required, headers};

/// Refusals of the same kind are written down once in this time.
const SAME_REFUSAL_SECS: i64 = 60;

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
    book: Mutex<Book>,
    running: Mutex<HashMap<Uuid, watch::Receiver<Told>>>,
    /// Chain and journal were compared in this life.
    ready: tokio::sync::Mutex<bool>,
    paused: Mutex<Option<String>>,
    changes: watch::Sender<u64>,
}

/// What the chain says before a payment is signed.
struct Look {
    balance: MicroUsd,
    height: u64,
    now: u64,
    gas: Option<Gas>,
}

/// What the journal decided.
enum Begun {
    Intent(Uuid),
    Refused(Denied),
}

fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
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

    async fn fetch(self: &Arc<Self>, fetch: Fetch) -> Result<Fetched, PayError> {
        let request = http::checked(fetch.request.clone())?;
        let url = http::parse_url(&request.url)?;
        let digest = digest_of(&request);
        if let Some(id) = self.known(&fetch, &digest)? {
            self.start(id);
            return self.wait(id).await.ok_or(PayError::Closed);
        }
        let ask = Ask { asker: fetch.asker, url, max_amount: fetch.max_amount, tier: fetch.tier };
        if let Err(denied) = self.config.rules.may_ask(&ask) {
            return Err(self.refuse(&fetch, denied).await);
        }
        let first = self.http.send(&request, &self.credentials(fetch.asker)).await?;
        if first.status != 402 {
            return Ok(Fetched { id: new_id(), answer: Some(first), payment: None });
        }
        if let Some(why) = locked(&self.paused).clone() {
            return Err(PayError::Paused(why));
        }
        let required = Required::read(
            first.header(headers::PAYMENT_REQUIRED),
            first.header(headers::X_PAYMENT_REQUIRED),
            &first.body,
        );
        self.make_ready().await?;
        let look = self.look(&required, first.header("date")).await?;
        let inner = Arc::clone(self);
        let (again, begun) = self
            .book(move |book| {
                let begun = inner.begin(book, &fetch, request, digest, &ask, &required, &look);
                (fetch, begun)
            })
            .await?;
        match begun? {
            Begun::Intent(id) => {
                self.changed();
                self.start(id);
                self.wait(id).await.ok_or(PayError::Closed)
            }
            Begun::Refused(denied) => Err(self.refuse(&again, denied).await),
        }
    }

    /// The intent that this request belongs to already.
    fn known(&self, fetch: &Fetch, digest: &str) -> Result<Option<Uuid>, PayError> {
        known_in(locked(&self.book).content(), fetch, digest)
    }

    /// Decides and signs, while nobody else can: what is reserved here is seen by the next.
    #[expect(clippy::too_many_arguments, reason = "one decision, from everything that is known")]
    fn begin(
        &self,
        book: &mut Book,
        fetch: &Fetch,
        request: Request,
        digest: String,
        ask: &Ask,
        required: &Required,
        look: &Look,
    ) -> Result<Begun, PayError> {
        let content = book.content();
        if let Some(id) = known_in(content, fetch, &digest)? {
            return Ok(Begun::Intent(id));
        }
        let now = self.clock.now();
        if let Some(why) = &content.suspect {
            return Err(PayError::Paused(format!("{why}; run `otonix-agent journal reconcile`")));
        }
        if let Some(until) = content.wait_until.filter(|until| *until > now) {
            return Err(PayError::Paused(format!("the journal was reconciled; payments go on at {until}")));
        }
        if content.open().count() >= MAX_OPEN {
            return Err(PayError::Busy);
        }
        let origin = super::origin_of(&ask.url);
        let token = content.token.clone().ok_or(PayError::Closed)?;
        let totals = content.totals(now);
        let known = Knowledge {
            token: check::domain(&token),
            balance: look.balance,
            outstanding: totals.outstanding,
            spent_hour: totals.hour,
            spent_day: totals.day,
            topups_day: totals.topups_day,
            pin: content.pins.get(&origin).copied(),
            has_gas: look.gas.is_some(),
            now: look.now,
        };
        let choice = match self.config.rules.choose(ask, required, &known) {
            Ok(choice) => choice,
            Err(denied) => return Ok(Begun::Refused(denied)),
        };
        let gas = look.gas.map(|gas| Gas {
            nonce: gas.nonce.max(content.next_nonce(self.wallet.address()).unwrap_or(0)),
            ..gas
        });
        let way = sign::sign(&self.wallet, &token, required, &choice, look.now, gas.as_ref());
        let way = way.ok_or_else(|| PayError::WrongChain("the offer cannot be signed".to_owned()))?;
        let intent = Intent {
            id: new_id(),
            at: now,
            asker: fetch.asker,
            key: fetch.key.clone(),
            digest,
            request,
            origin: origin.clone(),
            payer: self.wallet.address(),
            pay_to: choice.pay_to,
            amount: choice.amount,
            from_block: look.height,
            way,
        };
        let id = intent.id;
        let mut records = vec![Record::Intent(Box::new(intent))];
        if known.pin.is_none() {
            records.push(Record::Pin { origin, pay_to: choice.pay_to });
        }
        book.commit(records)?;
        Ok(Begun::Intent(id))
    }

    /// Compares chain and journal, once in a life.
    pub async fn make_ready(self: &Arc<Self>) -> Result<(), PayError> {
        let mut ready = self.ready.lock().await;
        if !*ready {
            check::run(self).await?;
            *ready = true;
        }
        Ok(())
    }

    async fn look(&self, required: &Required, date: Option<&str>) -> Result<Look, PayError> {
        let payer = self.wallet.address();
        let (balance, head) =
            tokio::join!(self.rpc.token_balance(self.config.rules.asset, payer), self.rpc.block(At::Latest));
        let head = head?.ok_or_else(|| crate::chain::ChainError::Garbage("no newest block".to_owned()))?;
        let local = plausible(self.clock.now(), date);
        let gas = match &required.order {
            Some(offer) => order::gas_for(self, offer).await?,
            None => None,
        };
        // The token looks at the chain's clock, the seller at its own.
        Ok(Look { balance: micros(balance?), height: head.number, now: local.max(head.timestamp), gas })
    }

    /// Writes a refusal down, unless the same was just written.
    async fn refuse(self: &Arc<Self>, fetch: &Fetch, denied: Denied) -> PayError {
        let refusal = Refusal {
            id: new_id(),
            at: self.clock.now(),
            asker: fetch.asker,
            url: fetch.request.url.chars().take(2048).collect(),
            code: denied.code().to_owned(),
            detail: denied.to_string(),
        };
        let noted = self
            .book(move |book| {
                let again = book.content().refusals.values().rev().take(20).any(|known| {
                    let known = &known.refusal;
                    let age = (refusal.at - known.at).num_seconds();
                    known.url == refusal.url && known.code == refusal.code && age < SAME_REFUSAL_SECS
                });
                if again { Ok(()) } else { book.note(vec![Record::Refused(refusal)]) }
            })
            .await;
        if let Ok(Err(error)) = noted {
            tracing::warn!(%error, "a refused payment could not be written down");
        }
        self.changed();
        PayError::Denied(denied)
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
    async fn wait(&self, id: Uuid) -> Option<Fetched> {
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

fn known_in(content: &super::book::Content, fetch: &Fetch, digest: &str) -> Result<Option<Uuid>, PayError> {
    match &fetch.key {
        Some(key) => match content.by_key(key) {
            Some(entry) if entry.intent.digest != digest => Err(PayError::KeyReused),
            // It never moved money, so paying now is paying once.
            Some(entry) if entry.state == State::ExpiredUnspent => Ok(None),
            Some(entry) => Ok(Some(entry.intent.id)),
            None => Ok(None),
        },
        None => Ok(content.open_like(digest).map(|entry| entry.intent.id)),
    }
}

/// Unix time by this machine's clock, unless the seller's says that it is ahead: a payment must not be valid for longer
/// than it is meant to be. A seller that lies makes its own payment expire.
fn plausible(local: DateTime<Utc>, date: Option<&str>) -> u64 {
    const TOLERANCE: TimeDelta = TimeDelta::seconds(5);
    let theirs = date.and_then(|date| DateTime::parse_from_rfc2822(date).ok());
    let now = theirs.map_or(local, |theirs| local.min(theirs.to_utc() + TOLERANCE));
    u64::try_from(now.timestamp()).unwrap_or_default()
}

/// Tells requests apart: everything that is sent but the payment.
fn digest_of(request: &Request) -> String {
    let mut headers = request.headers.clone();
    headers.sort();
    let head = serde_json::json!([request.method, request.url, headers]);
    let mut hash = Sha256::new();
    hash.update(head.to_string());
    hash.update([0]);
    hash.update(&request.body);
    hex::encode(hash.finalize())
}

/// Base units of USDC; more than fits is as much as fits.
pub(super) fn micros(units: u128) -> MicroUsd {
    MicroUsd::from_micros(i64::try_from(units).unwrap_or(i64::MAX))
}

/// Every payment of a journal, newest first.
pub(super) fn listed(content: &super::book::Content) -> Vec<Payment> {
    let refused = content.refusals.values().map(|declined| of_refusal(&declined.refusal));
    let mut all: Vec<Payment> = content.entries.values().map(of_entry).chain(refused).collect();
    all.sort_by_key(|payment| std::cmp::Reverse(payment.intent_id));
    all
}

pub(super) fn of_entry(entry: &Entry) -> Payment {
    let intent = &entry.intent;
    let end = entry.end.as_ref();
    Payment {
        intent_id: intent.id,
        state: entry.state,
        amount: intent.amount,
        asker: intent.asker,
        url: intent.request.url.clone(),
        pay_to: Some(intent.pay_to.to_string()),
        tx_hash: entry.tx_hash.clone(),
        receipt: end.and_then(|end| end.receipt.clone()),
        detail: end.and_then(|end| end.detail.clone()),
        created_at: intent.at,
        ended_at: end.map(|end| end.at),
        moved: entry.moved,
    }
}

fn of_refusal(refusal: &Refusal) -> Payment {
    Payment {
        intent_id: refusal.id,
        state: State::Refused,
        amount: MicroUsd::ZERO,
        asker: refusal.asker,
        url: refusal.url.clone(),
        pay_to: None,
        tx_hash: None,
        receipt: None,
        detail: Some(format!("{}: {}", refusal.code, refusal.detail)),
        created_at: refusal.at,
        ended_at: Some(refusal.at),
        moved: Some(false),
    }
}

fn event_of(payment: Payment) -> PaymentEvent {
    PaymentEvent {
        intent_id: payment.intent_id.to_string(),
        state: payment.state.as_str().to_owned(),
        amount: payment.amount,
        pay_to: payment.pay_to,
        tx_hash: payment.tx_hash,
        url: Some(payment.url),
        detail: payment.detail,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_clock_that_is_ahead_is_not_believed() {
        let at = |secs: i64| DateTime::from_timestamp(secs, 0).expect("a time");
        let date = |secs: i64| at(secs).to_rfc2822();
        assert_eq!(plausible(at(1_000_000), None), 1_000_000);
        assert_eq!(plausible(at(1_000_000), Some("nonsense")), 1_000_000);
        assert_eq!(plausible(at(1_000_000), Some(&date(1_000_001))), 1_000_000);
        assert_eq!(plausible(at(1_000_000), Some(&date(999_996))), 1_000_000);
        assert_eq!(plausible(at(1_003_600), Some(&date(1_000_000))), 1_000_005);
        assert_eq!(plausible(at(1_000_000), Some(&date(2_000_000))), 1_000_000);
        assert_eq!(plausible(at(1_795_000_000), Some("Sat, 22 Nov 1997 11:00:00 GMT")), 880_196_405);
    }
}
