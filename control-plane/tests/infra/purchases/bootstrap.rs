//! The script of a new server, run for real in a directory of its own.

use std::fs;
use std::io::{Read as _, Write as _};
use std::net::TcpListener;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::process::Command;

use otonix_control_plane::service::purchases::bootstrap::{Package, script};
use otonix_sdk::secret::Secret;
use sha2::{Digest as _, Sha256};

/// A daemon that only says what it was told.
const DAEMON: &str = "#!/bin/sh\necho \"$@ token=$OTONIX_ENROL\" >>\"$OTONIX_ROOT/said\"\n";
const OWN: &str = "#!/bin/sh\necho own >>\"$OTONIX_ROOT/said\"\n";

/// Serves one file for ever; its address.
fn serve(content: &'static str) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port on this machine");
    let url = format!("http://{}/otonix-agent", listener.local_addr().expect("a socket"));
    std::thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            let mut stream = stream;
            let mut head = [0; 4096];
            let _asked = stream.read(&mut head);
            let length = content.len();
            let _sent = write!(stream, "HTTP/1.1 200 OK\r\nContent-Length: {length}\r\n\r\n{content}");
        }
    });
    url
}

/// Runs a script; whether it ended well, and what was said, line by line.
fn run(root: &Path, text: &Secret) -> (bool, Vec<String>) {
    let file = root.join("script");
    fs::write(&file, text.expose()).expect("our directory");
    let status = Command::new("bash").arg(&file).env("OTONIX_ROOT", root).status().expect("there is a bash");
    // The daemon is started in the background.
    for _ in 0..200 {
        let said = fs::read_to_string(root.join("said")).unwrap_or_default();
        if said.contains("own") && (!status.success() || said.contains(" run ")) {
            break;
        }
        std::thread::sleep(std::time::Duration::from_millis(10));
    }
    let said = fs::read_to_string(root.join("said")).unwrap_or_default();
    (status.success(), said.lines().map(str::to_owned).collect())
}

#[test]
fn the_daemon_is_installed_enrolled_and_started_then_the_buyer_s_script_runs() {
    let root = tempfile::tempdir().expect("a directory");
    let sha256 = hex::encode(Sha256::digest(DAEMON));
    let package = Package { url: serve(DAEMON), sha256 };
    let token = Secret::new("otonix_enrol_x".to_owned());
    let text = script(&package, "https://cp.example", &token, Some(OWN));
    let (well, mut said) = run(root.path(), &text);
    said.sort();
    let state = root.path().join("var/lib/otonix-agent");
    let state = state.display();
    assert!(well, "{said:?}");
    assert_eq!(
        said,
        [
            format!("--state-dir {state} init --server https://cp.example token=otonix_enrol_x"),
            format!("--state-dir {state} run token="),
            "own".to_owned(),
        ]
    );
    let mode =
        fs::metadata(root.path().join("usr/bin/otonix-agent")).expect("it is there").permissions().mode();
    assert_eq!(mode & 0o777, 0o755);
}

#[test]
fn another_package_than_the_one_expected_is_never_run() {
    let root = tempfile::tempdir().expect("a directory");
    let package = Package { url: serve(DAEMON), sha256: "0".repeat(64) };
    let text = script(&package, "https://cp.example", &Secret::new("t".to_owned()), Some(OWN));
    let (well, said) = run(root.path(), &text);
    assert_eq!((well, said), (false, vec!["own".to_owned()]));
    assert!(!root.path().join("usr/bin/otonix-agent").exists());
}
