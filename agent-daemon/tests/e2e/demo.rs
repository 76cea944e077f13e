//! `deploy/demo`, the first thing that a newcomer runs: the whole story, and an end that leaves nothing behind.

use std::fs;
use std::io::{BufRead as _, BufReader};
use std::os::unix::fs::symlink;
use std::path::Path;
use std::process::{Command, Stdio};

use rustix::process::{Pid, Signal, kill_process};

use super::support::{eventually, program, server};

/// The demo on the programs under test, at a quick pace, with its files under `dir`.
fn demo(dir: &Path) -> Command {
    let programs = dir.join("programs");
    fs::create_dir(&programs).expect("a directory");
    symlink(server::binary(), programs.join("otonix-control-plane")).expect("a link");
    symlink(program(), programs.join("otonix-agent")).expect("a link");
    let files = dir.join("files");
    fs::create_dir(&files).expect("a directory");
    let mut command = Command::new(concat!(env!("CARGO_MANIFEST_DIR"), "/../deploy/demo"));
    command.arg("--programs").arg(programs).args(["--pace", "0.1"]).env("TMPDIR", files);
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    command
}

/// Nothing that mentions the demo's files runs any more, and they are gone.
fn assert_nothing_is_left(dir: &Path) {
    let files = dir.join("files");
    let left: Vec<_> = fs::read_dir(&files).expect("our directory").flatten().collect();
    assert!(left.is_empty(), "{left:?}");
    let name = files.display().to_string();
    for process in fs::read_dir("/proc").expect("/proc").flatten() {
        let command = fs::read(process.path().join("cmdline")).unwrap_or_default();
        let command = String::from_utf8_lossy(&command).replace('\0', " ");
        assert!(!command.contains(&name), "still running: {command}");
    }
}

#[test]
fn the_demo_tells_the_whole_story() {
    let dir = tempfile::tempdir().expect("a directory");
    let output = demo(dir.path()).arg("--once").output().expect("python3 runs it");
    let said = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success(), "{said}\n{}", String::from_utf8_lossy(&output.stderr));
    for part in [
        "is ready",
        "demo-agent",
        "grants 55 USDC",
        "tier full",
        "3.2 USDC",
        "round 1 with",
        "from full to conservation",
        "from conservation to critical",
        "from critical to terminated",
        "tier terminated: stopped",
        "heartbeat  terminated",
        "grants 30 USDC",
        "from terminated to conservation",
        "tier conservation: started",
        "its files are gone",
    ] {
        assert!(said.contains(part), "`{part}` is missing in:\n{said}");
    }
    assert_nothing_is_left(dir.path());
}

#[test]
fn the_demo_ends_cleanly_whenever_it_is_interrupted() {
    for last_words in
        ["is ready", "makes an API key", "init: agent", "round 3 with", "from critical to terminated"]
    {
        let dir = tempfile::tempdir().expect("a directory");
        let mut child = demo(dir.path()).stderr(Stdio::inherit()).spawn().expect("python3 runs it");
        let mut lines = BufReader::new(child.stdout.take().expect("piped")).lines();
        let mut heard = |words: &str| lines.by_ref().map_while(Result::ok).any(|line| line.contains(words));
        assert!(heard(last_words), "`{last_words}` was never said");
        let pid = i32::try_from(child.id()).ok().and_then(Pid::from_raw).expect("a process id");
        kill_process(pid, Signal::INT).expect("our child");
        assert!(heard("ending"), "interrupted after `{last_words}` it does not end");
        assert!(lines.map_while(Result::ok).all(|line| !line.contains("Traceback")));
        let status = eventually("it has ended", || child.try_wait().expect("our child"));
        assert!(matches!(status.code(), Some(0 | 130)), "{status}");
        assert_nothing_is_left(dir.path());
    }
}
