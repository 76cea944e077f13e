//! The beginning of a payment: what is asked, what the rules say, and what is signed and written down.

use std::sync::Arc;

use chrono::{DateTime, TimeDelta, Utc};
use sha2::{Digest as _, Sha256};
use uuid::Uuid;

use super::book::{Book, Content, MAX_OPEN};
use super::client::{Inner, locked, micros};
use super::policy::{Ask, Denied, Knowledge};
use super::record::{Intent, Record, Refusal, Request, State};
use super::{Fetch, Fetched, PayError, check, http, order, sign};
use crate::chain::{At, ChainError};
use crate::clock::new_id;
use crate::money::MicroUsd;
use crate::wallet::Gas;
use crate::x402::{Required, headers};

/// Refusals of the same kind are written down once in this time.
const SAME_REFUSAL_SECS: i64 = 60;

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

impl Inner {
    /// Asks, and pays when that is asked for and allowed.
    pub(super) async fn fetch(self: &Arc<Self>, fetch: Fetch) -> Result<Fetched, PayError> {
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
        let head = head?.ok_or_else(|| ChainError::Garbage("no newest block".to_owned()))?;
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
}

fn known_in(content: &Content, fetch: &Fetch, digest: &str) -> Result<Option<Uuid>, PayError> {
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
