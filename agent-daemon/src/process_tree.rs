//! Who runs on this machine, as far as it concerns the supervised process: read from `/proc`.
//! Only reads and signals; it never decides when.

use std::fs;
use std::path::Path;

use rustix::process::{Pid, Signal, kill_process};

/// A process, from `/proc/<pid>/stat`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Process {
    /// Its id.
    pub pid: i32,
    /// Its parent's id.
    pub parent: i32,
    /// Its process group.
    pub group: i32,
    /// Its session.
    pub session: i32,
    /// When it started, clock ticks since boot. With the pid it names a process for the whole boot.
    pub start: u64,
    /// It has ended and waits to be reaped.
    pub zombie: bool,
}

/// Reads one process; `None` when there is none.
pub fn read(pid: i32) -> Option<Process> {
    parse(&fs::read_to_string(format!("/proc/{pid}/stat")).ok()?)
}

fn parse(stat: &str) -> Option<Process> {
    // The name in parentheses may hold anything, parentheses included.
    let (pid, rest) = stat.split_once(" (")?;
    let (_, rest) = rest.rsplit_once(") ")?;
    let fields: Vec<&str> = rest.split(' ').collect();
    Some(Process {
        pid: pid.parse().ok()?,
        zombie: matches!(*fields.first()?, "Z" | "X"),
        parent: fields.get(1)?.parse().ok()?,
        group: fields.get(2)?.parse().ok()?,
        session: fields.get(3)?.parse().ok()?,
        start: fields.get(19)?.parse().ok()?,
    })
}

/// Every process that can be seen.
pub fn all() -> Vec<Process> {
    let Ok(entries) = fs::read_dir("/proc") else { return Vec::new() };
    entries
        .filter_map(|entry| entry.ok()?.file_name().to_str()?.parse::<i32>().ok())
        .filter_map(read)
        .collect()
}

/// The descendants of a process, itself not included.
pub fn descendants(of: i32, all: &[Process]) -> Vec<Process> {
    let mut found: Vec<Process> = Vec::new();
    let mut parents = vec![of];
    while let Some(parent) = parents.pop() {
        for process in all.iter().filter(|process| process.parent == parent) {
            if !found.iter().any(|known| known.pid == process.pid) {
                parents.push(process.pid);
                found.push(*process);
            }
        }
    }
    found
}

/// Names the current boot, so that a recorded pid is not taken for one of an earlier boot.
pub fn boot_id() -> String {
    fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap_or_default().trim().to_owned()
}

/// The real user id of a process.
pub fn uid(pid: i32) -> Option<u32> {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("Uid:"))?;
    line.split_whitespace().next()?.parse().ok()
}

/// Whether a process was started with this variable and value.
pub fn has_variable(pid: i32, name: &str, value: &Path) -> bool {
    let Ok(environ) = fs::read(format!("/proc/{pid}/environ")) else { return false };
    let wanted = format!("{name}={}", value.display());
    environ.split(|byte| *byte == 0).any(|entry| entry == wanted.as_bytes())
}

/// Sends a signal; a process that is gone already is no error worth telling.
pub fn signal(pid: i32, signal: Signal) {
    if let Some(pid) = Pid::from_raw(pid).filter(|_| pid > 1) {
        let _ = kill_process(pid, signal);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_with_parentheses_does_not_confuse() {
        let stat = "42 (a) b (c) S 7 40 39 0 -1 4194560 1 0 0 0 0 0 0 0 20 0 1 0 12345 1 1";
        let process = parse(stat).expect("parses");
        let expected = Process { pid: 42, parent: 7, group: 40, session: 39, start: 12345, zombie: false };
        assert_eq!(process, expected);
        assert_eq!(parse("42 (a"), None);
    }

    #[test]
    fn this_process_is_found() {
        let pid = i32::try_from(std::process::id()).expect("a pid");
        let me = read(pid).expect("me");
        assert_eq!(me.pid, pid);
        assert!(all().contains(&me));
    }

    #[test]
    fn descendants_are_found_through_generations() {
        let process = |pid, parent| Process { pid, parent, group: 1, session: 1, start: 0, zombie: false };
        let all = [process(2, 1), process(3, 2), process(4, 3), process(5, 9)];
        let mut pids: Vec<i32> = descendants(2, &all).iter().map(|found| found.pid).collect();
        pids.sort_unstable();
        assert_eq!(pids, [3, 4]);
    }
}
