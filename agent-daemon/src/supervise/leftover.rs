//! What an earlier life of the daemon left running. The agent's process is written down before its command starts,
//! so that the next life finds and ends what is left of it, and an agent never runs twice.

use std::io;
use std::path::Path;
use std::time::Duration;

use rustix::process::Signal;
use serde::{Deserialize, Serialize};
use tokio::time::{Instant, sleep};

use super::Launch;
use crate::files;
use crate::process_tree::{self, Process};

/// How long leftovers may take to end before they are killed.
const GRACE: Duration = Duration::from_secs(2);
const LOOK_AGAIN: Duration = Duration::from_millis(50);

/// Who the agent's process is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Record {
    boot_id: String,
    pid: i32,
    start: u64,
    uid: u32,
}

/// Writes down who was started.
pub(super) fn note(launch: &Launch, pid: i32, start: u64) -> io::Result<()> {
    let uid =
        launch.account.as_ref().map_or_else(|| rustix::process::getuid().as_raw(), |account| account.uid);
    files::write_json(&launch.record, &Record { boot_id: process_tree::boot_id(), pid, start, uid })
}

/// It has ended, with all it started.
pub(super) fn forget(launch: &Launch) {
    // A stale record is harmless: its session has no members.
    let _ = std::fs::remove_file(&launch.record);
}

/// Ends what is left of the process that is written down; returns how many processes that were.
/// Call it while holding the lock of the state directory: nobody else may own them.
pub async fn end(record: &Path, socket: &Path) -> usize {
    let record = match files::read_json::<Record>(record) {
        Ok(Some(record)) => record,
        Ok(None) => return 0,
        Err(error) => {
            tracing::warn!(%error, path = %record.display(), "what an earlier daemon left running is not known");
            return 0;
        }
    };
    if record.boot_id != process_tree::boot_id() {
        return 0;
    }
    let found = left_of(&record, socket);
    let deadline = Instant::now() + GRACE;
    let mut left = found.clone();
    for process in &left {
        process_tree::signal(process.pid, Signal::TERM);
        process_tree::signal(process.pid, Signal::CONT);
    }
    while !left.is_empty() && Instant::now() < deadline + GRACE {
        if Instant::now() >= deadline {
            for process in &left {
                process_tree::signal(process.pid, Signal::KILL);
            }
        }
        sleep(LOOK_AGAIN).await;
        left = left_of(&record, socket);
    }
    found.len()
}

/// The members of the recorded session. A session's id is not given again while it has members; should all have
/// ended and the number have been reused, the start time of a leader, or user and environment of the others, tell.
fn left_of(record: &Record, socket: &Path) -> Vec<Process> {
    let all = process_tree::all();
    if all.iter().any(|process| process.pid == record.pid && process.start != record.start) {
        return Vec::new();
    }
    all.into_iter()
        .filter(|process| process.session == record.pid || process.group == record.pid)
        .filter(|process| process.start >= record.start && !process.zombie)
        .filter(|process| {
            process.pid == record.pid
                || process_tree::uid(process.pid) == Some(record.uid)
                || process_tree::has_variable(process.pid, "OTONIX_SOCKET", socket)
        })
        .collect()
}
