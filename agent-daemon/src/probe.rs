//! How the machine is: load, memory, disk.

use std::fs;
use std::path::Path;

use otonix_sdk::agent::Vitals;

/// Load average over one minute.
pub fn load() -> f64 {
    let text = fs::read_to_string("/proc/loadavg").unwrap_or_default();
    text.split(' ').next().and_then(|first| first.parse().ok()).unwrap_or(0.0)
}

/// Memory in use and in total, bytes.
pub fn memory() -> (u64, u64) {
    memory_of(&fs::read_to_string("/proc/meminfo").unwrap_or_default())
}

fn memory_of(meminfo: &str) -> (u64, u64) {
    let bytes = |name: &str| {
        meminfo
            .lines()
            .find_map(|line| line.strip_prefix(name)?.strip_prefix(':'))
            .and_then(|rest| rest.trim().trim_end_matches(" kB").parse::<u64>().ok())
            .map_or(0, |kilobytes| kilobytes.saturating_mul(1024))
    };
    let total = bytes("MemTotal");
    (total.saturating_sub(bytes("MemAvailable")), total)
}

/// Bytes in use and in total of the file system that holds a path, and bytes that may still be written.
pub fn disk(path: &Path) -> (u64, u64, u64) {
    let Ok(stat) = rustix::fs::statvfs(path) else { return (0, 0, 0) };
    let total = stat.f_blocks.saturating_mul(stat.f_frsize);
    let free = stat.f_bfree.saturating_mul(stat.f_frsize);
    (total.saturating_sub(free), total, stat.f_bavail.saturating_mul(stat.f_frsize))
}

/// Everything for the next heartbeat.
pub fn vitals(state_dir: &Path, agent_process: &str) -> Vitals {
    let (memory_used, memory_total) = memory();
    let (disk_used, disk_total, _) = disk(state_dir);
    Vitals {
        load: load(),
        memory_used,
        memory_total,
        disk_used,
        disk_total,
        agent_process: agent_process.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_is_what_cannot_be_had_any_more() {
        let text = "MemTotal:       1000 kB\nMemFree:         100 kB\nMemAvailable:    400 kB\n";
        assert_eq!(memory_of(text), (600 * 1024, 1000 * 1024));
        assert_eq!(memory_of("nonsense"), (0, 0));
    }

    #[test]
    fn this_machine_has_memory_and_a_disk() {
        let vitals = vitals(Path::new("/"), "none");
        assert!(vitals.memory_total > vitals.memory_used);
        assert!(vitals.disk_total >= vitals.disk_used && vitals.disk_total > 0);
    }
}
