//! What a server and its database use, read from /proc.

use std::fs;
use std::path::{Path, PathBuf};

/// Clock ticks per second of /proc: fixed by the kernel's interface.
const TICKS: f64 = 100.0;
const PAGE: u64 = 4096;

/// Whose figures to read.
#[derive(Clone, Default)]
pub struct Watched {
    pub server: Option<u32>,
    /// PostgreSQL's data directory: its postmaster and all children are counted.
    pub pgdata: Option<PathBuf>,
    /// PostgreSQL's postmasters.
    pub postgres: Vec<u32>,
}

/// CPU seconds since each process began, and resident memory.
#[derive(Clone, Copy, Default)]
pub struct Usage {
    pub server_cpu: f64,
    pub database_cpu: f64,
    pub server_rss: u64,
}

impl Watched {
    /// Reads everything once.
    pub fn usage(&self) -> Usage {
        let postmasters = self.postgres.iter().copied().chain(self.pgdata.as_deref().and_then(postmaster));
        Usage {
            server_cpu: self.server.and_then(|pid| cpu(pid, false)).unwrap_or(0.0),
            database_cpu: postmasters.map(family_cpu).sum(),
            server_rss: self.server.and_then(rss).unwrap_or(0),
        }
    }
}

fn postmaster(pgdata: &Path) -> Option<u32> {
    fs::read_to_string(pgdata.join("postmaster.pid")).ok()?.lines().next()?.trim().parse().ok()
}

fn family_cpu(postmaster: u32) -> f64 {
    // Children that have ended are in the postmaster's own figures.
    let own = cpu(postmaster, true).unwrap_or(0.0);
    own + children(postmaster).into_iter().filter_map(precise_cpu).sum::<f64>()
}

fn stat(pid: u32) -> Option<Vec<String>> {
    let text = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The name may hold anything, closing brackets too.
    let (_, rest) = text.rsplit_once(')')?;
    Some(rest.split_whitespace().map(str::to_owned).collect())
}

fn cpu(pid: u32, with_ended_children: bool) -> Option<f64> {
    let fields = stat(pid)?;
    // utime, stime, cutime, cstime are fields 14 to 17; the rest begins with field 3.
    let wanted = if with_ended_children { 11..15 } else { 11..13 };
    let ticks: f64 = fields.get(wanted)?.iter().filter_map(|field| field.parse::<f64>().ok()).sum();
    Some(ticks / TICKS)
}

/// Of a process with one thread, to the nanosecond.
fn precise_cpu(pid: u32) -> Option<f64> {
    let text = fs::read_to_string(format!("/proc/{pid}/schedstat")).ok()?;
    Some(text.split_whitespace().next()?.parse::<f64>().ok()? / 1e9)
}

fn children(parent: u32) -> Vec<u32> {
    let Ok(entries) = fs::read_dir("/proc") else { return Vec::new() };
    let pids = entries.flatten().filter_map(|entry| entry.file_name().to_str()?.parse::<u32>().ok());
    pids.filter(|pid| {
        let ppid = stat(*pid).and_then(|fields| fields.get(1)?.parse::<u32>().ok());
        ppid == Some(parent)
    })
    .collect()
}

fn rss(pid: u32) -> Option<u64> {
    let text = fs::read_to_string(format!("/proc/{pid}/statm")).ok()?;
    Some(text.split_whitespace().nth(1)?.parse::<u64>().ok()? * PAGE)
}
