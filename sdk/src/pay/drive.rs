//! Brings one signed payment to its end: send, look at the chain, send the same again, until it is known.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch;
use tokio::time::Instant;
use uuid::Uuid;

use super::client::{Inner, Told};
use super::http::{Extra, HttpAnswer, HttpError};
use super::record::{End, Intent, Record, Signature, State};
use super::{PayError, answers, order};
use crate::chain::usdc::{self};
use crate::chain::{At, ChainError, Hash};
use crate::x402::{SettlementResponse, headers};

/// So many failed tries, with the chain's word on them, are enough for a caller to be told.
const ENOUGH_TRIES: u32 = 4;
/// The chain's time that must be past `validBefore` before "unused" is final, seconds.
const PAST_VALIDITY_SECS: u64 = 12;
/// How long one try may take, and the last one of a payment that is given up.
const LONGEST_TRY: Duration = Duration::from_secs(120);
const LAST_TRY: Duration = Duration::from_secs(30);
/// Longest receipt that is kept, bytes.
const MAX_RECEIPT: usize = 8 * 1024;

/// What the chain says of a payment.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum View {
    /// It did not answer.
    Unknown,
    /// Not yet, and perhaps later.
    Unused,
    /// Money has moved.
    Used(Option<Hash>),
    /// It never moves money any more.
    Never,
}

/// Brings a payment to its end.
pub(super) async fn run(inner: &Arc<Inner>, id: Uuid, tell: &watch::Sender<Told>) {
    let Some(entry) = inner.entry(id) else { return };
    let intent = entry.intent;
    let ended = match &intent.way {
        Signature::Exact { .. } => exact(inner, &intent, tell).await,
        Signature::Order { .. } => order::run(inner, &intent, tell).await,
    };
    if let Err(error) = ended {
        tracing::error!(payment.id = %id, %error, "a payment cannot go on until the next start");
    }
    inner.changed();
}

/// Sending one paid request again and again: what came back, and when the next try is due.
#[derive(Debug)]
pub(super) struct Tries {
    pub count: u32,
    pub next: Instant,
    pub last: Option<String>,
    pub pending: bool,
}

impl Tries {
    pub fn new() -> Self {
        Self { count: 0, next: Instant::now(), last: None, pending: false }
    }

    /// Sends the paid request once. `true`: delivered, and the intent is settled.
    pub async fn send(
        &mut self,
        inner: &Arc<Inner>,
        intent: &Intent,
        header: (String, String),
        tell: &watch::Sender<Told>,
    ) -> Result<bool, PayError> {
        let mut extra: Extra = inner.credentials(intent.asker);
        extra.push(header);
        // The last try of a payment that is given up does not wait long.
        let overdue = age(inner, intent) >= inner.config.tuning.undelivered;
        let limit = if overdue { LAST_TRY } else { LONGEST_TRY };
        let answer = tokio::time::timeout(limit, inner.http.send(&intent.request, &extra)).await;
        let answer = answer.unwrap_or_else(|_| Err(HttpError::NoAnswer("it took too long".to_owned())));
        self.count += 1;
        let mut asked = None;
        match answer {
            Ok(answer) if (200..300).contains(&answer.status) => {
                settle(inner, intent, answer, tell).await?;
                return Ok(true);
            }
            Ok(answer) => {
                asked = answer.retry_after();
                self.pending = answer.status == 503;
                self.last = Some(format!("the seller answered {}{}", answer.status, reason(&answer)));
                tell.send_modify(|told| told.answer = Some(answer));
            }
            Err(HttpError::TooLong) => self.last = Some(HttpError::TooLong.to_string()),
            Err(error) => {
                self.pending = false;
                self.last = Some(error.to_string());
            }
        }
        tracing::debug!(payment.id = %intent.id, tries = self.count, last = self.last, "not delivered");
        self.next = Instant::now() + inner.pause(self.count, asked);
        Ok(false)
    }
}

async fn exact(inner: &Arc<Inner>, intent: &Intent, tell: &watch::Sender<Told>) -> Result<(), PayError> {
    let Signature::Exact { header, value, nonce, valid_before } = &intent.way else { return Ok(()) };
    let mut tries = Tries::new();
    let mut view = View::Unknown;
    // After a restart the chain is asked first: what is used need not be sent to be known.
    let mut offered = inner.clock.now() - intent.at < chrono::TimeDelta::seconds(1);
    loop {
        let used = matches!(view, View::Used(_));
        let told = tell.borrow().enough;
        let valid = now(inner) < *valid_before;
        if offered && Instant::now() >= tries.next && (used || (valid && !told)) {
            let header = (header.clone(), value.clone());
            if tries.send(inner, intent, header, tell).await? {
                return Ok(());
            }
        }
        offered = true;
        view = match view {
            // It stays so; a chain that takes it back is asked again at the end.
            View::Used(_) => view,
            _ => look(inner, intent, *nonce, *valid_before).await,
        };
        match view {
            View::Used(tx_hash) => {
                paid(inner, intent, tx_hash).await?;
                if tries.count > 0 && age(inner, intent) >= inner.config.tuning.undelivered {
                    view = look(inner, intent, *nonce, *valid_before).await;
                    if let View::Used(tx_hash) = view {
                        return undelivered(inner, intent, tx_hash, &tries).await;
                    }
                }
            }
            View::Never => {
                let detail = tries.last.clone();
                return end(inner, intent, State::ExpiredUnspent, None, detail).await;
            }
            View::Unused | View::Unknown => {}
        }
        if tries.count >= ENOUGH_TRIES && view != View::Unknown && !tries.pending {
            tell.send_modify(|told| told.enough = true);
        }
        rest(inner, &tries, tell, valid || used).await;
    }
}

/// Sleeps until the next try or the next look at the chain.
pub(super) async fn rest(inner: &Inner, tries: &Tries, tell: &watch::Sender<Told>, sends: bool) {
    let look = Instant::now() + inner.config.tuning.poll;
    let told = tell.borrow().enough;
    let next = if sends && !told { look.min(tries.next) } else { look };
    tokio::time::sleep_until(next.max(Instant::now() + Duration::from_millis(10))).await;
}

/// Whether the authorization was carried out, and whether it still can be.
async fn look(inner: &Arc<Inner>, intent: &Intent, nonce: Hash, valid_before: u64) -> View {
    match state_of(inner, intent, nonce, valid_before).await {
        Ok(view) => view,
        Err(error) => {
            tracing::debug!(payment.id = %intent.id, %error, "the chain does not say");
            View::Unknown
        }
    }
}

async fn state_of(
    inner: &Arc<Inner>,
    intent: &Intent,
    nonce: Hash,
    valid_before: u64,
) -> Result<View, ChainError> {
    let (payer, asset) = (intent.payer, inner.config.rules.asset);
    if inner.rpc.authorization_state(asset, payer, nonce.0, At::Latest).await? {
        let head = inner.rpc.block_number().await?;
        let blocks = intent.from_block.saturating_add(1).min(head)..=head;
        let logs = inner.rpc.logs(&usdc::authorization_used(asset, payer, nonce.0, blocks)).await;
        let found = logs.ok().and_then(|logs| logs.first().map(|log| log.tx_hash));
        return Ok(View::Used(found));
    }
    let Some(last) = inner.rpc.block(At::Finalized).await? else { return Ok(View::Unused) };
    if last.timestamp < valid_before.saturating_add(PAST_VALIDITY_SECS) {
        return Ok(View::Unused);
    }
    // Both the newest block and the last final one were asked: it did not slip through in between.
    let used = inner.rpc.authorization_state(asset, payer, nonce.0, At::Number(last.number)).await?;
    Ok(if used { View::Used(None) } else { View::Never })
}

/// Asks the chain's last word on what was delivered: whether the seller has taken the money.
pub(super) async fn check_delivered(inner: &Arc<Inner>) -> Result<(), PayError> {
    let unchecked = inner.book(|book| {
        let entries = book.content().unchecked();
        entries.map(|entry| entry.intent.clone()).collect::<Vec<_>>()
    });
    for intent in unchecked.await? {
        let id = intent.id;
        let checked = match &intent.way {
            // Its transfer was seen before anything was asked for with it.
            Signature::Order { .. } => Record::Checked { id, moved: true, tx_hash: None },
            Signature::Exact { nonce, valid_before, .. } => {
                match last_word(inner, &intent, *nonce, *valid_before).await {
                    Ok(Some((moved, found))) => {
                        Record::Checked { id, moved, tx_hash: found.map(|hash| hash.to_string()) }
                    }
                    Ok(None) | Err(_) => continue,
                }
            }
        };
        inner.book(move |book| book.note(vec![checked])).await??;
    }
    Ok(())
}

/// Whether an authorization was carried out, when that can never change any more.
async fn last_word(
    inner: &Arc<Inner>,
    intent: &Intent,
    nonce: Hash,
    valid_before: u64,
) -> Result<Option<(bool, Option<Hash>)>, ChainError> {
    match state_of(inner, intent, nonce, valid_before).await? {
        View::Never => Ok(Some((false, None))),
        View::Used(found) => {
            let Some(last) = inner.rpc.block(At::Finalized).await? else { return Ok(None) };
            let (payer, asset) = (intent.payer, inner.config.rules.asset);
            let at = At::Number(last.number);
            let is_final = inner.rpc.authorization_state(asset, payer, nonce.0, at).await?;
            Ok(is_final.then_some((true, found)))
        }
        View::Unused | View::Unknown => Ok(None),
    }
}

/// Unix time, seconds.
pub(super) fn now(inner: &Inner) -> u64 {
    u64::try_from(inner.clock.now().timestamp()).unwrap_or_default()
}

pub(super) fn age(inner: &Inner, intent: &Intent) -> Duration {
    (inner.clock.now() - intent.at).to_std().unwrap_or_default()
}

/// Writes down that money has moved.
pub(super) async fn paid(inner: &Arc<Inner>, intent: &Intent, tx_hash: Option<Hash>) -> Result<(), PayError> {
    let tx_hash = tx_hash.map(|hash| hash.to_string());
    let known = inner.entry(intent.id);
    let same = known
        .is_some_and(|entry| entry.state == State::Paid && (entry.tx_hash == tx_hash || tx_hash.is_none()));
    if same {
        return Ok(());
    }
    let record = Record::Paid { id: intent.id, at: inner.clock.now(), tx_hash };
    inner.book(move |book| book.commit(vec![record])).await??;
    inner.changed();
    Ok(())
}

pub(super) async fn undelivered(
    inner: &Arc<Inner>,
    intent: &Intent,
    tx_hash: Option<Hash>,
    tries: &Tries,
) -> Result<(), PayError> {
    let last = tries.last.as_deref().unwrap_or("the seller was not reached");
    let detail = format!("paid, and not delivered after {} tries: {last}", tries.count);
    tracing::warn!(payment.id = %intent.id, amount = %intent.amount, detail, "paid and undelivered");
    end(inner, intent, State::PaidUndelivered, tx_hash.map(|hash| hash.to_string()), Some(detail)).await
}

/// Ends an intent.
pub(super) async fn end(
    inner: &Arc<Inner>,
    intent: &Intent,
    state: State,
    tx_hash: Option<String>,
    detail: Option<String>,
) -> Result<(), PayError> {
    let end =
        End { id: intent.id, at: inner.clock.now(), state, tx_hash, receipt: None, status: None, detail };
    inner.book(move |book| book.commit(vec![Record::Ended(end)])).await??;
    inner.changed();
    Ok(())
}

async fn settle(
    inner: &Arc<Inner>,
    intent: &Intent,
    answer: HttpAnswer,
    tell: &watch::Sender<Told>,
) -> Result<(), PayError> {
    let receipt = receipt_of(&answer);
    let end = End {
        id: intent.id,
        at: inner.clock.now(),
        state: State::Settled,
        tx_hash: receipt.as_ref().and_then(tx_of),
        receipt: receipt.and_then(|receipt| serde_json::to_value(receipt).ok()),
        status: Some(answer.status),
        detail: None,
    };
    let (dir, kept, id) = (inner.dir().to_owned(), answer.clone(), intent.id);
    tell.send_modify(|told| told.answer = Some(answer));
    inner
        .book(move |book| {
            if let Err(error) = answers::save(&dir, id, &kept) {
                tracing::warn!(payment.id = %id, %error, "an answer that was paid for could not be kept");
            }
            book.commit(vec![Record::Ended(end)])
        })
        .await??;
    inner.changed();
    Ok(())
}

fn receipt_of(answer: &HttpAnswer) -> Option<SettlementResponse> {
    let header = |name| answer.header(name).filter(|text| text.len() <= MAX_RECEIPT);
    let text = header(headers::PAYMENT_RESPONSE).or_else(|| header(headers::X_PAYMENT_RESPONSE))?;
    headers::read("PAYMENT-RESPONSE", text).ok()
}

fn tx_of(receipt: &SettlementResponse) -> Option<String> {
    receipt.transaction.parse::<Hash>().ok().map(|hash| hash.to_string())
}

/// The seller's words on a failure, cut.
fn reason(answer: &HttpAnswer) -> String {
    let words = receipt_of(answer).and_then(|receipt| receipt.error_reason).or_else(|| {
        let body: serde_json::Value = serde_json::from_slice(&answer.body).ok()?;
        let named =
            ["code", "error", "detail", "errorReason"].iter().find_map(|name| body.get(name)?.as_str());
        named.map(str::to_owned)
    });
    words.map(|words| format!(" ({})", words.chars().take(200).collect::<String>())).unwrap_or_default()
}
