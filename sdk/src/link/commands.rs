//! The journal of commands: each is on disk before it is handed out, so that it is handed out once for ever.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{self, Write as _};
use std::path::{Path, PathBuf};

use chrono::{DateTime, TimeDelta, Utc};
use serde::{Deserialize, Serialize};

use crate::ids::CommandId;
use crate::link::faults::damaged_lines;
use crate::link::files;

/// How long an expired command is remembered.
const KEEP: TimeDelta = TimeDelta::days(7);
/// Most commands remembered.
const MAX_COMMANDS: usize = 4096;
/// A longer file is written anew.
const MAX_BYTES: u64 = 1024 * 1024;

#[derive(Debug, Clone, Copy, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Line {
    id: CommandId,
    expires_at: DateTime<Utc>,
    done: bool,
}

/// The commands that came.
#[derive(Debug)]
pub(crate) struct Journal {
    path: PathBuf,
    file: File,
    len: u64,
    known: BTreeMap<CommandId, Line>,
}

fn read(path: &Path) -> io::Result<BTreeMap<CommandId, Line>> {
    let text = match fs::read(path) {
        Ok(bytes) => bytes,
        Err(none) if none.kind() == io::ErrorKind::NotFound => Vec::new(),
        Err(other) => return Err(other),
    };
    let damaged = damaged_lines::<Line>(&text);
    if damaged > 0 {
        tracing::warn!(damaged, path = %path.display(), "commands that came before cannot be read");
    }
    let lines =
        text.split(|byte| *byte == b'\n').filter_map(|line| serde_json::from_slice::<Line>(line).ok());
    Ok(lines.map(|line| (line.id, line)).collect())
}

impl Journal {
    /// Goes on from disk.
    pub(crate) fn open(path: PathBuf, now: DateTime<Utc>) -> io::Result<Self> {
        let known = read(&path)?;
        let file = File::options().create(true).append(true).open(&path)?;
        let mut journal = Self { path, file, len: 0, known };
        journal.compact(now)?;
        Ok(journal)
    }

    /// Whether a command came before.
    pub(crate) fn knows(&self, id: CommandId) -> bool {
        self.known.contains_key(&id)
    }

    /// Notes a command durably; false when it came before.
    pub(crate) fn receive(
        &mut self,
        id: CommandId,
        expires_at: DateTime<Utc>,
        now: DateTime<Utc>,
    ) -> io::Result<bool> {
        if self.knows(id) {
            return Ok(false);
        }
        if self.len > MAX_BYTES || self.known.len() >= MAX_COMMANDS {
            self.compact(now)?;
        }
        self.append(Line { id, expires_at, done: false })?;
        self.file.sync_data()?;
        self.known.insert(id, Line { id, expires_at, done: false });
        Ok(true)
    }

    /// The command's result is recorded. Need not be durable: a result has one event id.
    pub(crate) fn done(&mut self, id: CommandId) {
        let Some(line) = self.known.get_mut(&id) else { return };
        line.done = true;
        let line = *line;
        if let Err(error) = self.append(line) {
            tracing::debug!(%error, "failed to note the end of a command");
        }
    }

    /// Commands that were handed out and never got a result.
    pub(crate) fn unfinished(&self) -> Vec<CommandId> {
        self.known.values().filter(|line| !line.done).map(|line| line.id).collect()
    }

    fn append(&mut self, line: Line) -> io::Result<()> {
        let mut text = serde_json::to_vec(&line)?;
        text.push(b'\n');
        if let Err(error) = self.file.write_all(&text) {
            let _ = self.file.set_len(self.len);
            return Err(error);
        }
        self.len += text.len() as u64;
        Ok(())
    }

    fn compact(&mut self, now: DateTime<Utc>) -> io::Result<()> {
        let mut kept: Vec<Line> = self.known.values().copied().collect();
        kept.retain(|line| {
            !line.done || line.expires_at.checked_add_signed(KEEP).is_none_or(|until| until > now)
        });
        kept.sort_by_key(|line| line.expires_at);
        let surplus = kept.len().saturating_sub(MAX_COMMANDS / 2);
        kept.drain(..surplus);
        let mut text = Vec::new();
        for line in &kept {
            serde_json::to_writer(&mut text, line)?;
            text.push(b'\n');
        }
        files::replace(&self.path, &text)?;
        self.file = File::options().append(true).open(&self.path)?;
        self.len = text.len() as u64;
        self.known = kept.into_iter().map(|line| (line.id, line)).collect();
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use uuid::Uuid;

    const NOW: DateTime<Utc> = DateTime::UNIX_EPOCH;

    #[test]
    fn a_command_is_received_once_also_after_a_torn_line() {
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join("commands.jsonl");
        let (one, two) = (CommandId::new(Uuid::now_v7()), CommandId::new(Uuid::now_v7()));
        let until = NOW + TimeDelta::seconds(300);
        let mut journal = Journal::open(path.clone(), NOW).expect("opened");
        assert!(journal.receive(one, until, NOW).expect("noted"));
        assert!(!journal.receive(one, until, NOW).expect("noted"));
        assert!(journal.receive(two, until, NOW).expect("noted"));
        journal.done(one);
        fs::OpenOptions::new()
            .append(true)
            .open(&path)
            .and_then(|mut file| file.write_all(b"{\"id\":\"01"))
            .expect("written");
        let mut journal = Journal::open(path.clone(), NOW).expect("opened");
        assert!(journal.knows(one) && !journal.receive(two, until, NOW).expect("noted"));
        assert_eq!(journal.unfinished(), [two]);
        journal.done(two);
        let later = until + KEEP + TimeDelta::seconds(1);
        assert!(!Journal::open(path, later).expect("opened").knows(one));
    }
}
