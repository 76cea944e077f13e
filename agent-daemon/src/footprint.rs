//! Gives back what only the start needed. Code that ran once (flags, configuration, TLS, the first connection) stays
//! mapped and counts as the daemon's memory; on a small machine that is most of it.

use std::ffi::c_void;
use std::fs;
use std::time::Duration;

use rustix::mm::{Advice, madvise};

/// After this the start is over.
const START: Duration = Duration::from_secs(10);

/// Waits for the end of the start, and gives back what it needed.
pub async fn settle() {
    tokio::time::sleep(START).await;
    give_back();
}

/// Unmaps the pages of all code. What runs again is mapped again, from memory where the file still is there.
pub fn give_back() {
    let Ok(maps) = fs::read_to_string("/proc/self/maps") else { return };
    for (start, length) in maps.lines().filter_map(code_of_file) {
        // SAFETY: these are private mappings of files that nobody can write to through them, so they have no content of
        // their own: a page that is dropped reads as before when it is touched again.
        #[expect(unsafe_code, reason = "there is no safe call for it")]
        let given = unsafe { madvise(start as *mut c_void, length, Advice::LinuxDontNeed) };
        if let Err(error) = given {
            tracing::debug!(%error, "code that only the start needed stays in memory");
        }
    }
}

/// Start and length of a mapping of executable code from a file, by its line in `/proc/<pid>/maps`.
fn code_of_file(line: &str) -> Option<(usize, usize)> {
    let mut fields = line.split_whitespace();
    let (range, permissions) = (fields.next()?, fields.next()?);
    // offset, device, inode
    if permissions != "r-xp" || !fields.nth(3)?.starts_with('/') {
        return None;
    }
    let (start, end) = range.split_once('-')?;
    let (start, end) = (usize::from_str_radix(start, 16).ok()?, usize::from_str_radix(end, 16).ok()?);
    Some((start, end.checked_sub(start)?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_code_of_files_is_meant() {
        let code =
            "55d0c1a00000-55d0c2200000 r-xp 00257000 fe:00 5440042                    /usr/bin/otonix-agent";
        assert_eq!(code_of_file(code), Some((0x55d0_c1a0_0000, 0x80_0000)));
        for other in [
            "55d0c1a00000-55d0c2200000 r--p 00000000 fe:00 5440042                    /usr/bin/otonix-agent",
            "55d0c1a00000-55d0c2200000 rwxp 00257000 fe:00 5440042                    /usr/bin/otonix-agent",
            "55d0c1a00000-55d0c2200000 r-xs 00257000 fe:00 5440042                    /usr/bin/otonix-agent",
            "7ffd3d5f2000-7ffd3d5f4000 r-xp 00000000 00:00 0                          [vdso]",
            "7f1c00000000-7f1c00021000 r-xp 00000000 00:00 0",
            "",
        ] {
            assert_eq!(code_of_file(other), None, "{other}");
        }
    }

    #[test]
    fn what_is_given_back_is_less_and_still_runs() {
        let mapped = || {
            let status = fs::read_to_string("/proc/self/status").expect("our own status");
            let line = status.lines().find_map(|line| line.strip_prefix("RssFile:")).expect("a figure");
            line.trim().trim_end_matches(" kB").parse::<u64>().expect("a number")
        };
        let before = mapped();
        give_back();
        let after = mapped();
        assert!(after < before, "{before} kB of files were mapped, and {after} kB afterwards");
    }
}
