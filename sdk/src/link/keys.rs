//! Which idempotency keys were used here lately, and with what. Bounded; older keys are still the server's to
//! recognise, by the event id that is made from them.

use std::collections::HashMap;
use std::fs::{self, File};
use std::io::{self, Read as _, Write as _};
use std::path::{Path, PathBuf};

use sha2::{Digest as _, Sha256};
use uuid::Uuid;

use crate::ids::{AgentId, EventId};

/// Keys in each of the two generations.
const MAX_KEYS: usize = 8192;
const RECORD: usize = 28;

/// What is known of a key.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Seen {
    /// Nothing, or the same content which is not on disk yet.
    Record,
    /// The same content is recorded.
    Recorded,
    /// Other content came with it.
    Reused,
}

#[derive(Debug, Clone, Copy)]
struct Entry {
    content: u64,
    durable: bool,
}

/// The keys of two generations.
#[derive(Debug)]
pub(crate) struct KeyBook {
    path: PathBuf,
    file: Option<File>,
    young: HashMap<Uuid, Entry>,
    old: HashMap<Uuid, Entry>,
}

/// The event id that a key stands for.
pub(crate) fn id_of(agent: AgentId, key: &str) -> EventId {
    let digest = digest(&[agent.uuid().as_bytes(), key.as_bytes()]);
    EventId::new(uuid::Builder::from_custom_bytes(digest).into_uuid())
}

/// A fingerprint of what is recorded.
pub(crate) fn fingerprint(content: &[u8]) -> u64 {
    let digest = digest(&[content]);
    digest[..8].try_into().map_or(0, u64::from_le_bytes)
}

fn digest(parts: &[&[u8]]) -> [u8; 16] {
    let mut hash = Sha256::new();
    for part in parts {
        hash.update(part);
    }
    let mut bytes = [0; 16];
    bytes.copy_from_slice(&hash.finalize()[..16]);
    bytes
}

fn load(path: &Path) -> HashMap<Uuid, Entry> {
    let mut bytes = Vec::new();
    let most = (MAX_KEYS * RECORD * 2) as u64;
    let read = File::open(path).and_then(|file| file.take(most).read_to_end(&mut bytes));
    let mut keys = HashMap::new();
    if read.is_err() {
        return keys;
    }
    for record in bytes.chunks_exact(RECORD) {
        let (Ok(id), Ok(content), Ok(crc)) =
            (Uuid::from_slice(&record[..16]), record[16..24].try_into(), record[24..].try_into())
        else {
            continue;
        };
        if crc32c::crc32c(&record[..24]) == u32::from_le_bytes(crc) {
            keys.insert(id, Entry { content: u64::from_le_bytes(content), durable: true });
        }
    }
    keys
}

impl KeyBook {
    /// Goes on from disk.
    pub(crate) fn open(path: PathBuf) -> Self {
        let young = load(&path);
        let old = load(&path.with_extension("old"));
        Self { path, file: None, young, old }
    }

    /// Asks for a key; from now on it belongs to this content.
    pub(crate) fn ask(&mut self, id: EventId, content: u64) -> Seen {
        let id = id.uuid();
        match self.young.get(&id).or_else(|| self.old.get(&id)) {
            Some(entry) if entry.content != content => Seen::Reused,
            Some(entry) if entry.durable => Seen::Recorded,
            Some(_) => Seen::Record,
            None => {
                self.young.insert(id, Entry { content, durable: false });
                Seen::Record
            }
        }
    }

    /// The event is on disk.
    pub(crate) fn recorded(&mut self, id: EventId, content: u64) {
        let id = id.uuid();
        if self.young.insert(id, Entry { content, durable: true }).is_some_and(|before| before.durable) {
            return;
        }
        if let Err(error) = self.note(id, content) {
            tracing::debug!(%error, "failed to note an idempotency key");
        }
        if self.young.len() >= MAX_KEYS {
            self.file = None;
            let _ = fs::rename(&self.path, self.path.with_extension("old"));
            self.old = std::mem::take(&mut self.young);
        }
    }

    /// The event was not recorded.
    pub(crate) fn refused(&mut self, id: EventId) {
        if self.young.get(&id.uuid()).is_some_and(|entry| !entry.durable) {
            self.young.remove(&id.uuid());
        }
    }

    fn note(&mut self, id: Uuid, content: u64) -> io::Result<()> {
        let mut record = [0; RECORD];
        record[..16].copy_from_slice(id.as_bytes());
        record[16..24].copy_from_slice(&content.to_le_bytes());
        let crc = crc32c::crc32c(&record[..24]);
        record[24..].copy_from_slice(&crc.to_le_bytes());
        let file = match self.file.take() {
            Some(file) => file,
            None => {
                let file = File::options().create(true).append(true).open(&self.path)?;
                let whole = file.metadata()?.len() / RECORD as u64 * RECORD as u64;
                file.set_len(whole)?;
                file
            }
        };
        (&file).write_all(&record)?;
        self.file = Some(file);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(number: usize) -> EventId {
        id_of(AgentId::new(Uuid::nil()), &format!("key {number}"))
    }

    #[test]
    fn a_key_belongs_to_its_first_content_also_after_a_restart() {
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join("keys");
        let mut book = KeyBook::open(path.clone());
        assert_eq!(book.ask(key(1), 7), Seen::Record);
        assert_eq!(book.ask(key(1), 8), Seen::Reused);
        assert_eq!(book.ask(key(1), 7), Seen::Record);
        book.recorded(key(1), 7);
        assert_eq!(book.ask(key(1), 7), Seen::Recorded);
        assert_eq!(book.ask(key(2), 7), Seen::Record);
        book.refused(key(2));
        assert_eq!(book.ask(key(2), 8), Seen::Record);
        let mut again = KeyBook::open(path);
        assert_eq!(again.ask(key(1), 8), Seen::Reused);
        assert_eq!(again.ask(key(1), 7), Seen::Recorded);
        assert_eq!(again.ask(key(2), 9), Seen::Record);
    }

    #[test]
    fn the_book_is_bounded() {
        let dir = tempfile::tempdir().expect("a directory");
        let mut book = KeyBook::open(dir.path().join("keys"));
        for number in 0..MAX_KEYS * 3 {
            book.ask(key(number), 1);
            book.recorded(key(number), 1);
        }
        assert!(book.young.len() + book.old.len() <= 2 * MAX_KEYS);
        assert_eq!(book.ask(key(MAX_KEYS * 3 - 1), 1), Seen::Recorded);
        assert_eq!(book.ask(key(0), 2), Seen::Record);
    }
}
