//! The supervised process of a real daemon, offline.

mod support;

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::os::unix::net::UnixDatagram;
use std::time::{Duration, Instant};

use support::{Home, OFFLINE_ID, alive};

#[test]
fn the_agents_environment_is_clean_and_tells_what_it_needs() {
    let home = Home::offline("env = ['MINE=1', 'TAKEN', 'MISSING']\n");
    let daemon = home.start_with("env -0 | sort -z | tr '\\0' '\\n' > env; sleep 60", |command| {
        for (name, value) in [
            ("OTONIX_API_KEY", "otonix_000000000000000000000000000000000000000000000000"),
            ("CREDENTIALS_DIRECTORY", "/nowhere"),
            ("WATCHDOG_USEC", "60000000"),
            ("INVOCATION_ID", "x"),
            ("SECRET", "x"),
            ("TAKEN", "over"),
        ] {
            command.env(name, value);
        }
        command.env("NOTIFY_SOCKET", "@nobody-listens");
    });
    let environment = home.line("env");
    let names: Vec<&str> = environment.lines().filter_map(|line| line.split('=').next()).collect();
    let expected = [
        "HOME",
        "LANG",
        "MINE",
        "OTONIX_AGENT_ID",
        "OTONIX_MODEL",
        "OTONIX_SOCKET",
        "OTONIX_SURVIVAL_TIER",
        "PATH",
        "PWD",
        "TAKEN",
    ];
    // The shell adds PWD, and may add SHLVL and _.
    let names: Vec<&str> =
        names.into_iter().filter(|name| !["SHLVL", "_", "OLDPWD"].contains(name)).collect();
    assert_eq!(names, expected);
    assert!(environment.contains(&format!("OTONIX_AGENT_ID={OFFLINE_ID}")));
    assert!(
        environment
            .contains(&format!("OTONIX_SOCKET={}", home.socket().canonicalize().expect("a path").display()))
    );
    assert!(environment.contains("TAKEN=over"));
    drop(daemon);
}

#[test]
fn a_killed_daemon_takes_its_agent_with_it_and_the_next_one_ends_what_is_left() {
    let home = Home::offline("");
    let script = "(trap '' TERM; while :; do sleep 1; done) & echo $! > child; echo $$ > pid; wait";
    let daemon = home.start(script);
    let (pid, child) = (home.line("pid"), home.line("child"));
    daemon.kill();
    support::eventually("the agent's process has ended", || (!alive(&pid)).then_some(()));
    assert!(alive(&child), "its child is an orphan");
    fs::remove_file(home.path().join("pid")).expect("remove");
    let daemon = home.start(script);
    assert!(!alive(&child), "ended before the next start");
    assert_ne!(home.line("pid"), pid);
    drop(daemon);
}

#[test]
fn the_daemon_stops_in_order_and_in_time() {
    let home = Home::offline("");
    let script = "trap 'echo bye > bye; exit 0' TERM; echo $$ > pid; while :; do sleep 0.1; done";
    let daemon = home.start(script);
    let pid = home.line("pid");
    let (status, took) = daemon.stop();
    assert!(status.success());
    assert!(took < Duration::from_secs(10), "{took:?}");
    assert_eq!(home.line("bye"), "bye");
    assert!(!alive(&pid));
}

#[test]
fn one_that_ignores_sigterm_and_leaves_its_session_is_gone_when_the_daemon_is() {
    let home = Home::offline("");
    let script = "trap '' TERM; echo $$ > pid; \
                  setsid sh -c 'trap \"\" TERM; setsid sh -c \"trap : TERM; echo \\$\\$ > escaped; while :; do sleep 1; done\" & wait' & \
                  while :; do sleep 1; done";
    let daemon = home.start(script);
    let (pid, escaped) = (home.line("pid"), home.line("escaped"));
    let (status, took) = daemon.stop();
    assert!(status.success());
    assert!(took < Duration::from_secs(10), "{took:?}");
    assert!(!alive(&pid) && !alive(&escaped));
}

#[test]
fn a_second_signal_does_not_wait() {
    let home = Home::offline("");
    let script = "trap '' TERM; echo $$ > pid; while :; do sleep 1; done";
    // Its grace is the daemon's own: five seconds.
    let daemon = home.start_with(script, |command| {
        command.env("OTONIX_AGENT_STOP_GRACE", "60");
    });
    let pid = home.line("pid");
    let began = Instant::now();
    daemon.signal("TERM");
    std::thread::sleep(Duration::from_millis(200));
    daemon.signal("INT");
    let mut daemon = daemon;
    daemon.wait();
    assert!(began.elapsed() < Duration::from_millis(4900), "{:?}", began.elapsed());
    assert!(!alive(&pid));
}

#[test]
fn a_crash_loop_is_told_and_its_orphans_are_reaped() {
    let home = Home::offline("");
    let daemon = home.start("sleep 0.05 & exit 7");
    let status = daemon.until("backoff", |status| status["agentProcess"] == "backoff");
    assert!(status["lastExit"].as_str().is_some_and(|exit| exit.contains('7')), "{status}");
    daemon.until("two starts", |status| status["processStarts"].as_u64() >= Some(2));
    // One that is not reaped stays for ever; those that still run, or wait for the next look, do not.
    let children = format!("/proc/{0}/task/{0}/children", daemon.pid());
    support::eventually("a moment without a child", || {
        fs::read_to_string(&children).expect("the daemon runs").trim().is_empty().then_some(())
    });
}

#[test]
fn progress_is_watched() {
    let home = Home::offline("progress_timeout = 1\n");
    let daemon = home.start("sleep 60");
    daemon.until("a second start", |status| status["processStarts"].as_u64() >= Some(2));
}

#[test]
fn output_goes_to_a_file_when_configured() {
    let home = Home::offline("output = 'file'\noutput_max_bytes = 4096\noutput_keep = 1\n");
    let daemon = home.start(
        "i=0; while [ $i -lt 500 ]; do echo line $i ......................; i=$((i+1)); done; sleep 60",
    );
    let path = home.state().join("agent.log");
    support::eventually("the last line", || {
        fs::read_to_string(&path).ok().filter(|text| text.contains("line 499"))
    });
    assert!(fs::metadata(&path).expect("metadata").len() <= 4096);
    assert!(home.state().join("agent.log.1").exists() && !home.state().join("agent.log.2").exists());
    drop(daemon);
}

#[test]
fn another_user_runs_the_agent_and_reads_no_secret() {
    if !rustix::process::getuid().is_root() {
        return;
    }
    let home = Home::offline("user = '65534:65534'\n");
    fs::set_permissions(home.path(), fs::Permissions::from_mode(0o777)).expect("chmod");
    let script = "id -u > uid; id -G > groups; cat state/api-key > key 2>&1; echo $? > code; \
                  grep CapEff /proc/self/status > caps; \
                  python3 -c 'import socket,os; s=socket.socket(socket.AF_UNIX); s.connect(os.environ[\"OTONIX_SOCKET\"]); \
                  s.send(b\"GET /v1/status HTTP/1.1\\r\\nHost: x\\r\\nConnection: close\\r\\n\\r\\n\"); print(s.recv(20))' > api; \
                  echo done > done; sleep 60";
    let daemon = home.start(script);
    home.line("done");
    assert_eq!(home.line("uid"), "65534");
    assert_eq!(home.line("groups"), "65534");
    assert_eq!(home.line("code"), "1");
    assert!(home.line("caps").ends_with("0000000000000000"));
    assert!(home.line("api").contains("200"), "{}", home.line("api"));
    let (status, _) = daemon.stop();
    assert!(status.success());
}

#[test]
fn the_service_manager_hears_and_gives_credentials() {
    let home = Home::offline("");
    let credentials = home.path().join("credentials");
    fs::create_dir(&credentials).expect("a directory");
    fs::rename(home.state().join("api-key"), credentials.join("api-key")).expect("moved");
    let path = home.path().join("notify");
    let manager = UnixDatagram::bind(&path).expect("binds");
    manager.set_read_timeout(Some(support::PATIENCE)).expect("a timeout");
    let daemon = home.start_with("sleep 60", |command| {
        command
            .env("NOTIFY_SOCKET", &path)
            .env("WATCHDOG_USEC", "900000")
            .env("CREDENTIALS_DIRECTORY", &credentials);
    });
    let hear = |wanted: &str| {
        let mut message = [0_u8; 4096];
        loop {
            let length = manager.recv(&mut message).unwrap_or_else(|error| panic!("no {wanted}: {error}"));
            if String::from_utf8_lossy(&message[..length]).contains(wanted) {
                return;
            }
        }
    };
    hear("READY=1");
    hear("STATUS=");
    for _ in 0..3 {
        hear("WATCHDOG=1");
    }
    daemon.signal("TERM");
    hear("STOPPING=1");
    drop(daemon);
}

#[test]
fn the_daemon_keeps_its_memory_and_files_to_itself() {
    let home = Home::offline("");
    let daemon = home.start("");
    daemon.log("something");
    // A process that is not dumpable has its /proc entries owned by root, and no other user may read its memory.
    let status = fs::read_to_string(format!("/proc/{}/status", daemon.pid())).expect("status");
    let umask = status.lines().find_map(|line| line.strip_prefix("Umask:")).expect("umask");
    assert_eq!(umask.trim(), "0077");
    for entry in fs::read_dir(home.state()).expect("list") {
        let entry = entry.expect("entry");
        let mode = entry.metadata().expect("metadata").permissions().mode() & 0o077;
        let name = entry.file_name().into_string().expect("a name");
        // The socket is for the agent's user as well.
        if name != "agent.sock" {
            assert_eq!(mode, 0, "{name}");
        }
    }
}

#[test]
fn idle_it_is_small() {
    let home = Home::offline("");
    let daemon = home.start("sleep 60");
    std::thread::sleep(Duration::from_secs(2));
    let status = fs::read_to_string(format!("/proc/{}/status", daemon.pid())).expect("status");
    let rss = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).expect("VmRSS");
    let kilobytes: u64 = rss.trim().trim_end_matches(" kB").parse().expect("a number");
    // The promise is for the release build; this one carries all its debug code.
    let bound = if cfg!(debug_assertions) { 40 * 1024 } else { 10 * 1024 };
    assert!(kilobytes <= bound, "{kilobytes} kB");
}
