//! The journal's file: records appended whole, on disk before they count, and found again after a crash.
//!
//! A record is a head (magic, length, checksums) and a JSON payload. A tail that was never wholly written, and so
//! never answered, is cut; damage before a sound record is told to the caller. One process at a time has the folder.

use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{self, Read as _, Write as _};
use std::os::unix::fs::{DirBuilderExt as _, FileExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};

use rustix::fs::{FallocateFlags, FlockOperation, fallocate, flock};

const NAME: &str = "journal";
const DRAFT: &str = "journal.new";
const ASIDE: &str = "journal.damaged";
const LOCK: &str = "lock";
const FILE_MAGIC: [u8; 8] = *b"OTXPAY01";
const RECORD_MAGIC: [u8; 4] = [0xF3, b'P', b'y', 0x9D];
const HEAD: usize = 16;
/// Largest record: a request of 4 MiB in base64, and what belongs to it.
const MAX_RECORD: usize = 8 * 1024 * 1024;
/// Room kept ahead of the end, so that a full disk does not stop a payment half-way, bytes.
const AHEAD: u64 = 256 * 1024;

/// Why the journal cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum JournalError {
    /// Another process has it.
    #[error("the payment journal is in use by another process")]
    Locked,
    /// The disk refused. Nothing was recorded.
    #[error("the payment journal cannot be written")]
    Io(#[from] io::Error),
    /// An earlier write failed half-way and could not be undone.
    #[error("the payment journal was closed after a failed write; restart to go on")]
    Closed,
    /// Written by a newer version, or by something else.
    #[error("the payment journal is of another kind")]
    Foreign,
}

/// What opening found.
#[derive(Debug, Default)]
pub struct Found {
    /// Payloads in order.
    pub records: Vec<Vec<u8>>,
    /// Bytes cut off the end.
    pub torn: u64,
    /// Bytes inside that are no record any more.
    pub damaged: u64,
}

/// What a folder's journal holds, without changing it; nothing when there is none.
///
/// # Errors
/// [`JournalError`].
pub fn inspect(dir: &Path) -> Result<Found, JournalError> {
    match fs::read(dir.join(NAME)) {
        Ok(bytes) if bytes.starts_with(&FILE_MAGIC) => Ok(scan(&bytes).0),
        Ok(_) => Err(JournalError::Foreign),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Found::default()),
        Err(error) => Err(error.into()),
    }
}

/// An open journal.
#[derive(Debug)]
pub struct Journal {
    dir: PathBuf,
    file: File,
    end: u64,
    reserved: u64,
    closed: bool,
    _lock: File,
}

impl Journal {
    /// Opens a folder's journal, or begins one.
    ///
    /// # Errors
    /// [`JournalError`].
    pub fn open(dir: &Path) -> Result<(Self, Found), JournalError> {
        DirBuilder::new().recursive(true).mode(0o700).create(dir)?;
        let lock =
            OpenOptions::new().create(true).truncate(false).write(true).mode(0o600).open(dir.join(LOCK))?;
        match flock(&lock, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => {}
            Err(rustix::io::Errno::WOULDBLOCK) => return Err(JournalError::Locked),
            Err(error) => return Err(io::Error::from(error).into()),
        }
        // A draft that was never given the name.
        match fs::remove_file(dir.join(DRAFT)) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error.into()),
            _ => {}
        }
        let path = dir.join(NAME);
        if !path.try_exists()? {
            write_draft(dir, &[])?;
            publish(dir)?;
        }
        let mut file = OpenOptions::new().read(true).write(true).open(&path)?;
        let mut bytes = Vec::new();
        file.read_to_end(&mut bytes)?;
        if !bytes.starts_with(&FILE_MAGIC) {
            return Err(JournalError::Foreign);
        }
        let (found, end) = scan(&bytes);
        if found.torn > 0 {
            file.set_len(end)?;
            file.sync_all()?;
        }
        let mut journal = Self { dir: dir.to_owned(), file, end, reserved: end, closed: false, _lock: lock };
        journal.reserve();
        Ok((journal, found))
    }

    /// Bytes of the file.
    pub const fn len(&self) -> u64 {
        self.end
    }

    /// Appends records; with `sync` they are on disk when it returns.
    ///
    /// # Errors
    /// [`JournalError`]; none of them was recorded.
    pub fn append(&mut self, payloads: &[Vec<u8>], sync: bool) -> Result<(), JournalError> {
        if self.closed {
            return Err(JournalError::Closed);
        }
        let mut bytes = Vec::new();
        for payload in payloads {
            push(&mut bytes, payload)?;
        }
        let written = self.file.write_all_at(&bytes, self.end);
        let written = if sync { written.and_then(|()| self.file.sync_data()) } else { written };
        if let Err(error) = written {
            // What the disk holds now is not known: the journal goes on only from its last sure end.
            let undone = self.file.set_len(self.end).and_then(|()| self.file.sync_all());
            self.closed = undone.is_err();
            return Err(error.into());
        }
        self.end += bytes.len() as u64;
        if self.end + AHEAD / 2 > self.reserved {
            self.reserve();
        }
        Ok(())
    }

    /// Replaces everything by these records: after a crash the old file is there or the new one.
    ///
    /// # Errors
    /// [`JournalError`]; the old file goes on, or, when it is not sure which one it is, none until the next start.
    pub fn rewrite(&mut self, payloads: &[Vec<u8>]) -> Result<(), JournalError> {
        if self.closed {
            return Err(JournalError::Closed);
        }
        let end = write_draft(&self.dir, payloads)?;
        // From here on the name may be of the new file: should it not open, nothing may go to the old one.
        self.closed = true;
        publish(&self.dir)?;
        self.file = OpenOptions::new().read(true).write(true).open(self.dir.join(NAME))?;
        self.closed = false;
        self.end = end;
        self.reserved = end;
        self.reserve();
        Ok(())
    }

    /// Keeps a copy of the file as it is, in place of an earlier one.
    ///
    /// # Errors
    /// [`JournalError::Io`].
    pub fn put_aside(&self) -> Result<(), JournalError> {
        fs::copy(self.dir.join(NAME), self.dir.join(ASIDE))?;
        Ok(())
    }

    /// Asks for disk room beyond the end. Not every file system can; then a full disk refuses the next record.
    fn reserve(&mut self) {
        if fallocate(&self.file, FallocateFlags::KEEP_SIZE, self.end, AHEAD).is_ok() {
            self.reserved = self.end + AHEAD;
        } else {
            self.reserved = u64::MAX;
        }
    }
}

fn write_draft(dir: &Path, payloads: &[Vec<u8>]) -> Result<u64, JournalError> {
    let mut bytes = FILE_MAGIC.to_vec();
    for payload in payloads {
        push(&mut bytes, payload)?;
    }
    let draft = dir.join(DRAFT);
    let mut file = OpenOptions::new().create(true).truncate(true).write(true).mode(0o600).open(&draft)?;
    file.write_all(&bytes)?;
    file.sync_all()?;
    Ok(bytes.len() as u64)
}

/// Gives the draft its name.
fn publish(dir: &Path) -> io::Result<()> {
    fs::rename(dir.join(DRAFT), dir.join(NAME))?;
    File::open(dir)?.sync_all()
}

fn push(out: &mut Vec<u8>, payload: &[u8]) -> Result<(), JournalError> {
    let too_long = || io::Error::new(io::ErrorKind::InvalidInput, "a record is too long");
    let len = u32::try_from(payload.len()).map_err(|_| too_long())?;
    if payload.len() > MAX_RECORD {
        return Err(too_long().into());
    }
    let start = out.len();
    out.extend_from_slice(&RECORD_MAGIC);
    out.extend_from_slice(&len.to_le_bytes());
    out.extend_from_slice(&crc32c::crc32c(payload).to_le_bytes());
    let head = crc32c::crc32c(out.get(start..).unwrap_or_default());
    out.extend_from_slice(&head.to_le_bytes());
    out.extend_from_slice(payload);
    Ok(())
}

/// The record at a place: its payload and where the next begins.
fn record_at(bytes: &[u8], at: usize) -> Option<(&[u8], usize)> {
    let head = bytes.get(at..at + HEAD)?;
    let word = |from: usize| head.get(from..from + 4)?.try_into().ok().map(u32::from_le_bytes);
    if head.get(..4)? != RECORD_MAGIC || crc32c::crc32c(head.get(..12)?) != word(12)? {
        return None;
    }
    let end = (at + HEAD).checked_add(usize::try_from(word(4)?).ok()?)?;
    let payload = bytes.get(at + HEAD..end)?;
    (crc32c::crc32c(payload) == word(8)?).then_some((payload, end))
}

/// Every sound record, and the end of the last one.
fn scan(bytes: &[u8]) -> (Found, u64) {
    let mut found = Found::default();
    let (mut at, mut end) = (FILE_MAGIC.len(), FILE_MAGIC.len());
    while at < bytes.len() {
        match record_at(bytes, at) {
            Some((payload, next)) => {
                found.damaged += (at - end) as u64;
                found.records.push(payload.to_vec());
                (at, end) = (next, next);
            }
            None => at += 1,
        }
    }
    found.torn = (bytes.len() - end) as u64;
    (found, end as u64)
}

#[cfg(test)]
mod tests;
