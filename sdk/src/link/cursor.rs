//! The spool's small state: its epoch and what is acknowledged, in two slots of one file.
//!
//! A slot is overwritten in place, always the older one, so that a full disk or a torn write never costs both.
//! Losing the file costs a resend under a new epoch, never an event.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::FileExt as _;
use std::path::Path;

use uuid::Uuid;

const MAGIC: [u8; 8] = *b"OTXSTATE";
/// One sector, so that a slot is written whole.
const SLOT: u64 = 512;
const USED: usize = 84;

/// What the slots hold.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct State {
    /// Made with the log.
    pub log: Uuid,
    /// The current epoch.
    pub epoch: Uuid,
    /// The number in the log before the first of the epoch.
    pub base: u64,
    /// Everything up to here is acknowledged.
    pub acked: u64,
    /// The id of the event at `acked`; nil when not known.
    pub acked_id: Uuid,
}

/// The open file.
#[derive(Debug)]
pub(crate) struct StateFile {
    file: File,
    counter: u64,
}

fn encode(counter: u64, state: &State) -> [u8; USED] {
    let mut slot = [0; USED];
    slot[..8].copy_from_slice(&MAGIC);
    slot[8..16].copy_from_slice(&counter.to_le_bytes());
    slot[16..32].copy_from_slice(state.log.as_bytes());
    slot[32..48].copy_from_slice(state.epoch.as_bytes());
    slot[48..56].copy_from_slice(&state.base.to_le_bytes());
    slot[56..64].copy_from_slice(&state.acked.to_le_bytes());
    slot[64..80].copy_from_slice(state.acked_id.as_bytes());
    let crc = crc32c::crc32c(&slot[..80]);
    slot[80..].copy_from_slice(&crc.to_le_bytes());
    slot
}

fn decode(slot: &[u8]) -> Option<(u64, State)> {
    let number = |at: usize| slot.get(at..at + 8)?.try_into().ok().map(u64::from_le_bytes);
    let id = |at: usize| Uuid::from_slice(slot.get(at..at + 16)?).ok();
    let crc = u32::from_le_bytes(slot.get(80..USED)?.try_into().ok()?);
    if slot.get(..8)? != MAGIC || crc32c::crc32c(slot.get(..80)?) != crc {
        return None;
    }
    let state =
        State { log: id(16)?, epoch: id(32)?, base: number(48)?, acked: number(56)?, acked_id: id(64)? };
    (state.base <= state.acked).then_some((number(8)?, state))
}

fn newest_in(file: &File) -> Option<(u64, State)> {
    let read = |slot: u64| {
        let mut bytes = [0; USED];
        file.read_exact_at(&mut bytes, slot * SLOT).ok()?;
        decode(&bytes)
    };
    [read(0), read(1)].into_iter().flatten().max_by_key(|(counter, _)| *counter)
}

impl StateFile {
    /// Opens or makes the file; the state is `None` when there is none to be trusted.
    pub(crate) fn open(path: &Path) -> io::Result<(Self, Option<State>)> {
        let file = OpenOptions::new().read(true).write(true).create(true).truncate(false).open(path)?;
        let newest = newest_in(&file);
        let counter = newest.map_or(0, |(counter, _)| counter);
        Ok((Self { file, counter }, newest.map(|(_, state)| state)))
    }

    /// Reads the state without changing anything.
    pub(crate) fn look(path: &Path) -> io::Result<Option<State>> {
        Ok(newest_in(&File::open(path)?).map(|(_, state)| state))
    }

    /// Overwrites the older slot; durable only after [`StateFile::sync`].
    pub(crate) fn write(&mut self, state: &State) -> io::Result<()> {
        let counter = self.counter + 1;
        self.file.write_all_at(&encode(counter, state), (counter % 2) * SLOT)?;
        self.counter = counter;
        Ok(())
    }

    /// Makes what was written durable.
    pub(crate) fn sync(&self) -> io::Result<()> {
        self.file.sync_data()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn state(acked: u64) -> State {
        State { log: Uuid::max(), epoch: Uuid::now_v7(), base: 0, acked, acked_id: Uuid::nil() }
    }

    #[test]
    fn a_torn_or_flipped_slot_leaves_the_one_before() {
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join("state");
        let (mut file, none) = StateFile::open(&path).expect("opened");
        assert_eq!(none, None);
        let (old, new) = (state(5), state(9));
        file.write(&old).expect("written");
        file.write(&new).expect("written");
        let whole = std::fs::read(&path).expect("read");
        for byte in 0..USED {
            let mut bytes = whole.clone();
            bytes[byte] ^= 4;
            std::fs::write(&path, &bytes).expect("written");
            assert_eq!(StateFile::open(&path).expect("opened").1, Some(old), "byte {byte}");
        }
        std::fs::write(&path, &whole).expect("written");
        assert_eq!(StateFile::open(&path).expect("opened").1, Some(new));
        std::fs::write(&path, b"").expect("written");
        assert_eq!(StateFile::open(&path).expect("opened").1, None);
    }
}
