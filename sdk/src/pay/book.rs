//! The journal in memory: every intent and what became of it. It changes only by a record that is on disk.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::path::Path;

use chrono::{DateTime, TimeDelta, Utc};
use uuid::Uuid;

use super::budget::{self, Spent, Totals};
use super::journal::{Journal, JournalError};
use super::policy::Asker;
use super::record::{Checkpoint, End, Intent, Record, Refusal, Signature, State, Stray, Token};
use crate::chain::Hash;
use crate::wallet::EvmAddress;

/// How long an ended payment stays in the journal; longer when the chain was not compared since.
const KEEP: TimeDelta = TimeDelta::days(7);
/// The journal is written anew when it has this many bytes, and twice what it had after the last time.
const COMPACT_AT: u64 = 4 * 1024 * 1024;
/// Refusals kept.
const MAX_REFUSALS: usize = 500;
/// Intents that may be under way at a time.
pub const MAX_OPEN: usize = 256;

/// An intent and what became of it.
#[derive(Debug, Clone)]
pub struct Entry {
    /// As it was signed.
    pub intent: Intent,
    /// Where it stands.
    pub state: State,
    /// When it was first known that money had moved.
    pub paid_at: Option<DateTime<Utc>>,
    /// The transaction, when it is known.
    pub tx_hash: Option<String>,
    /// How it ended.
    pub end: Option<End>,
    /// Whether money has moved, by the chain's last word; asked of what was delivered.
    pub moved: Option<bool>,
    /// The last state that the link has.
    pub told: Option<State>,
}

/// A refusal, and whether the link has it.
#[derive(Debug, Clone)]
pub struct Declined {
    /// As it was recorded.
    pub refusal: Refusal,
    /// The link has it.
    pub told: bool,
}

/// The journal and its content.
#[derive(Debug)]
pub struct Book {
    journal: Journal,
    compact_at: u64,
    content: Content,
}

/// What the records add up to.
#[derive(Debug, Default)]
pub struct Content {
    /// By id, oldest first (ids are ordered by time).
    pub entries: BTreeMap<Uuid, Entry>,
    /// By id, oldest first.
    pub refusals: BTreeMap<Uuid, Declined>,
    /// By origin.
    pub pins: BTreeMap<String, EvmAddress>,
    /// As it was first seen.
    pub token: Option<Token>,
    /// The last comparison with the chain.
    pub checkpoint: Option<Checkpoint>,
    /// Without an intent.
    pub strays: Vec<Stray>,
    /// Why nothing is paid.
    pub suspect: Option<String>,
    /// Nothing is paid before.
    pub wait_until: Option<DateTime<Utc>>,
    keys: HashMap<String, Uuid>,
}

impl Book {
    /// Opens a folder's journal and reads it.
    ///
    /// # Errors
    /// [`JournalError`].
    pub fn open(dir: &Path) -> Result<Self, JournalError> {
        let (journal, found) = Journal::open(dir)?;
        let mut content = Content::default();
        for payload in &found.records {
            // Whole and not understood: a newer version wrote it, and knows better what it means for money.
            content.apply(serde_json::from_slice(payload).map_err(|_| JournalError::Foreign)?);
        }
        let compact_at = COMPACT_AT.max(journal.len().saturating_mul(2));
        let mut book = Self { journal, compact_at, content };
        if found.damaged > 0 {
            tracing::error!(bytes = found.damaged, "the payment journal is damaged");
            book.content.suspect =
                Some(format!("{} bytes of the payment journal are damaged", found.damaged));
            // Put aside, then written anew, so that the damage is told once.
            book.journal.put_aside()?;
            book.compact()?;
        }
        Ok(book)
    }

    /// What the records add up to.
    pub const fn content(&self) -> &Content {
        &self.content
    }

    /// Records something; on disk when it returns, and only then does it count.
    ///
    /// # Errors
    /// [`JournalError`]; nothing was recorded.
    pub fn commit(&mut self, records: Vec<Record>) -> Result<(), JournalError> {
        self.write(records, true)
    }

    /// Records something that may be forgotten in a power cut.
    ///
    /// # Errors
    /// [`JournalError`]; nothing was recorded.
    pub fn note(&mut self, records: Vec<Record>) -> Result<(), JournalError> {
        self.write(records, false)
    }

    fn write(&mut self, records: Vec<Record>, sync: bool) -> Result<(), JournalError> {
        let payloads: Vec<Vec<u8>> = records.iter().map(encode).collect();
        self.journal.append(&payloads, sync)?;
        for record in records {
            self.content.apply(record);
        }
        if self.journal.len() > self.compact_at
            && let Err(error) = self.compact()
        {
            tracing::warn!(%error, "the payment journal could not be shortened");
            self.compact_at = self.compact_at.saturating_mul(2);
        }
        Ok(())
    }

    /// Writes the journal anew, without what no rule asks for any more.
    ///
    /// # Errors
    /// [`JournalError`]; the old journal goes on.
    pub fn compact(&mut self) -> Result<(), JournalError> {
        self.content.forget();
        let payloads: Vec<Vec<u8>> = self.content.records().iter().map(encode).collect();
        self.journal.rewrite(&payloads)?;
        self.compact_at = COMPACT_AT.max(self.journal.len().saturating_mul(2));
        Ok(())
    }
}

fn encode(record: &Record) -> Vec<u8> {
    serde_json::to_vec(record).expect("records are plain data")
}

impl Content {
    fn apply(&mut self, record: Record) {
        match record {
            Record::Intent(intent) => self.begin(*intent),
            Record::Bumped { id, transaction } => {
                if let Some(Signature::Order { transactions, .. }) =
                    self.entries.get_mut(&id).map(|entry| &mut entry.intent.way)
                {
                    transactions.push(transaction);
                }
            }
            Record::Paid { id, at, tx_hash } => {
                if let Some(entry) = self.entries.get_mut(&id).filter(|entry| !entry.state.is_terminal()) {
                    entry.state = State::Paid;
                    entry.paid_at = entry.paid_at.or(Some(at));
                    entry.tx_hash = tx_hash.or(entry.tx_hash.take());
                }
            }
            Record::Ended(end) => {
                if let Some(entry) = self.entries.get_mut(&end.id).filter(|entry| !entry.state.is_terminal())
                {
                    entry.state = end.state;
                    entry.tx_hash = end.tx_hash.clone().or(entry.tx_hash.take());
                    entry.end = Some(end);
                }
            }
            Record::Checked { id, moved, tx_hash } => {
                if let Some(entry) = self.entries.get_mut(&id) {
                    entry.moved = Some(moved);
                    entry.tx_hash = tx_hash.or(entry.tx_hash.take());
                }
            }
            Record::Refused(refusal) => self.decline(refusal),
            Record::Told { id, state } => {
                if let Some(entry) = self.entries.get_mut(&id) {
                    entry.told = Some(state);
                }
                if let Some(declined) = self.refusals.get_mut(&id) {
                    declined.told = true;
                }
            }
            Record::Pin { origin, pay_to } => drop(self.pins.insert(origin, pay_to)),
            Record::Unpin { origin } => drop(self.pins.remove(&origin)),
            Record::Token(token) => self.token = Some(token),
            Record::Checkpoint(checkpoint) => self.checkpoint = Some(checkpoint),
            Record::Stray(stray) => {
                if !self.knows_stray(stray.tx_hash, stray.log_index) {
                    self.strays.push(stray);
                }
            }
            Record::Suspect { why } => self.suspect = Some(why),
            Record::Reconciled { wait_until, .. } => {
                self.suspect = None;
                self.wait_until = Some(wait_until);
            }
        }
    }

    fn begin(&mut self, intent: Intent) {
        if let Some(key) = &intent.key {
            self.keys.insert(key.clone(), intent.id);
        }
        let entry = Entry {
            state: State::Signed,
            paid_at: None,
            tx_hash: None,
            end: None,
            moved: None,
            told: None,
            intent,
        };
        self.entries.entry(entry.intent.id).or_insert(entry);
    }

    fn decline(&mut self, refusal: Refusal) {
        self.refusals.insert(refusal.id, Declined { refusal, told: false });
        while self.refusals.len() > MAX_REFUSALS {
            self.refusals.pop_first();
        }
    }

    /// Drops what is over for long and was compared with the chain since.
    fn forget(&mut self) {
        let Some(compared) = self.checkpoint.as_ref().map(|checkpoint| checkpoint.at) else { return };
        let old = |at: DateTime<Utc>| at + KEEP < compared;
        self.entries.retain(|_, entry| {
            let ended = entry.end.as_ref().map(|end| end.at);
            !ended.is_some_and(old) || entry.told != Some(entry.state)
        });
        self.refusals.retain(|_, declined| !old(declined.refusal.at) || !declined.told);
        self.strays.retain(|stray| !old(stray.at));
        let entries = &self.entries;
        self.keys.retain(|_, id| entries.contains_key(id));
    }

    /// The fewest records that add up to this.
    fn records(&self) -> Vec<Record> {
        let mut records = Vec::new();
        records.extend(self.token.clone().map(Record::Token));
        records.extend(self.checkpoint.clone().map(Record::Checkpoint));
        let pins = self.pins.iter();
        records.extend(pins.map(|(origin, pay_to)| Record::Pin { origin: origin.clone(), pay_to: *pay_to }));
        records.extend(self.strays.iter().cloned().map(Record::Stray));
        for entry in self.entries.values() {
            let id = entry.intent.id;
            records.push(Record::Intent(Box::new(entry.intent.clone())));
            if let Some(at) = entry.paid_at {
                records.push(Record::Paid { id, at, tx_hash: entry.tx_hash.clone() });
            }
            records.extend(entry.end.clone().map(Record::Ended));
            records.extend(entry.moved.map(|moved| Record::Checked { id, moved, tx_hash: None }));
            records.extend(entry.told.map(|state| Record::Told { id, state }));
        }
        for declined in self.refusals.values() {
            let id = declined.refusal.id;
            records.push(Record::Refused(declined.refusal.clone()));
            if declined.told {
                records.push(Record::Told { id, state: State::Refused });
            }
        }
        if let Some(wait_until) = self.wait_until {
            records.push(Record::Reconciled { at: wait_until, wait_until });
        }
        records.extend(self.suspect.clone().map(|why| Record::Suspect { why }));
        records
    }

    /// The intent of a caller's key.
    pub fn by_key(&self, key: &str) -> Option<&Entry> {
        self.keys.get(key).and_then(|id| self.entries.get(id))
    }

    /// An intent of the same request that is not over.
    pub fn open_like(&self, digest: &str) -> Option<&Entry> {
        self.open().find(|entry| entry.intent.digest == digest)
    }

    /// Delivered, and not yet compared with the chain's last word.
    pub fn unchecked(&self) -> impl Iterator<Item = &Entry> {
        self.entries.values().filter(|entry| entry.state == State::Settled && entry.moved.is_none())
    }

    /// Intents that are not over.
    pub fn open(&self) -> impl Iterator<Item = &Entry> {
        self.entries.values().filter(|entry| !entry.state.is_terminal())
    }

    /// What was spent, and what may still be.
    pub fn totals(&self, now: DateTime<Utc>) -> Totals {
        let entries = self.entries.values().filter_map(|entry| {
            let open = match entry.state {
                State::Signed => true,
                State::Paid | State::Settled | State::PaidUndelivered => false,
                State::Refused | State::ExpiredUnspent => return None,
            };
            if entry.moved == Some(false) {
                return None;
            }
            let intent = &entry.intent;
            Some(Spent { at: intent.at, amount: intent.amount, asker: intent.asker, open })
        });
        let strays = self.strays.iter();
        let strays = strays.map(|stray| Spent {
            at: stray.at,
            amount: stray.amount,
            asker: Asker::Agent,
            open: false,
        });
        budget::totals(entries.chain(strays), now)
    }

    /// The number that the account's next transaction has, as far as the journal knows.
    pub fn next_nonce(&self, payer: EvmAddress) -> Option<u64> {
        let own = self.entries.values().filter(|entry| entry.intent.payer == payer);
        let used = own.filter_map(|entry| match &entry.intent.way {
            Signature::Order { nonce, .. } => Some(*nonce),
            Signature::Exact { .. } => None,
        });
        used.max().and_then(|nonce| nonce.checked_add(1))
    }

    /// The hashes of every transaction signed here, and the nonces of every authorization.
    pub fn known(&self) -> (HashSet<Hash>, HashMap<Hash, u128>) {
        let (mut hashes, mut nonces) = (HashSet::new(), HashMap::new());
        for entry in self.entries.values() {
            match &entry.intent.way {
                Signature::Order { transactions, .. } => {
                    hashes.extend(transactions.iter().map(|transaction| transaction.hash));
                }
                Signature::Exact { nonce, .. } => {
                    nonces.insert(*nonce, u128::from(entry.intent.amount.micros().unsigned_abs()));
                }
            }
        }
        (hashes, nonces)
    }

    /// Whether a transfer without an intent was noted before.
    pub fn knows_stray(&self, tx_hash: Hash, log_index: u64) -> bool {
        self.strays.iter().any(|stray| stray.tx_hash == tx_hash && stray.log_index == log_index)
    }
}

#[cfg(test)]
mod tests;
