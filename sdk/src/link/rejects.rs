//! The events that the server will never store, kept for people to look at.

use std::fs::{self, File};
use std::io::{self, BufRead as _, BufReader, Write as _};
use std::path::{Path, PathBuf};

use chrono::{DateTime, Utc};
use serde::Serialize;

use crate::api::events::{Event, Rejected};

/// A file beyond this becomes the old one; the old one before it goes.
const MAX_BYTES: u64 = 4 * 1024 * 1024;

#[derive(Debug, Serialize)]
struct Line<'a> {
    at: DateTime<Utc>,
    epoch: &'a str,
    seq: u64,
    code: &'a str,
    detail: &'a str,
    event: Option<Event>,
}

/// The reject file.
#[derive(Debug)]
pub(crate) struct Rejects {
    path: PathBuf,
    count: u64,
}

fn lines(path: &Path) -> u64 {
    File::open(path).map_or(0, |file| BufReader::new(file).split(b'\n').map_while(Result::ok).count() as u64)
}

impl Rejects {
    /// Goes on from disk.
    pub(crate) fn open(path: PathBuf) -> Self {
        let count = lines(&path) + lines(&path.with_extension("jsonl.old"));
        Self { path, count }
    }

    /// How many there are.
    pub(crate) fn count(&self) -> u64 {
        self.count
    }

    /// Keeps one durably.
    pub(crate) fn keep(
        &mut self,
        now: DateTime<Utc>,
        epoch: &str,
        rejected: &Rejected,
        event: Option<Event>,
    ) -> io::Result<()> {
        self.count += 1;
        let line =
            Line { at: now, epoch, seq: rejected.seq, code: &rejected.code, detail: &rejected.detail, event };
        let mut text = serde_json::to_vec(&line)?;
        text.push(b'\n');
        let mut file = File::options().create(true).append(true).open(&self.path)?;
        let len = file.metadata()?.len();
        if len + text.len() as u64 > MAX_BYTES {
            let old = self.path.with_extension("jsonl.old");
            self.count = self.count.saturating_sub(lines(&old));
            fs::rename(&self.path, old)?;
            file = File::options().create(true).append(true).open(&self.path)?;
        }
        file.write_all(&text)?;
        file.sync_data()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rejects_are_counted_across_restarts_and_bounded() {
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join("rejects.jsonl");
        let mut rejects = Rejects::open(path.clone());
        let rejected =
            Rejected { seq: 1, id: None, code: "invalid_field".to_owned(), detail: "x".repeat(100_000) };
        for _ in 0..100 {
            rejects.keep(DateTime::UNIX_EPOCH, "epoch", &rejected, None).expect("kept");
        }
        let kept = fs::metadata(&path).expect("there").len()
            + fs::metadata(path.with_extension("jsonl.old")).expect("there").len();
        assert!(kept <= 2 * MAX_BYTES);
        assert_eq!(Rejects::open(path).count(), rejects.count());
        assert!(rejects.count() < 100);
    }
}
