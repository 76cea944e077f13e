//! `doctor` on a directory that no daemon runs on: what keeps `run` from starting, and what is damaged.

mod support;

use std::fs;
use std::path::Path;
use std::process::Command;

use support::Home;

fn doctor(home: &Home) -> String {
    String::from_utf8(home.call(&["doctor"]).stdout).expect("text")
}

fn make(path: &Path, content: Option<&[u8]>) {
    fs::create_dir_all(path.parent().expect("a parent")).expect("made");
    match content {
        Some(content) => fs::write(path, content).expect("written"),
        None => fs::create_dir(path).expect("made"),
    }
}

#[test]
fn doctor_names_what_run_cannot_start_with_and_run_says_it_once() {
    let cases: [(&str, Option<&[u8]>); 7] = [
        ("spool", Some(b"a file")),
        ("spool/state", None),
        ("spool/lock", None),
        ("commands.jsonl", None),
        ("agent.sock", None),
        ("daemon.json", Some(b"{\"held\": 5}")),
        ("daemon.lock", None),
    ];
    for (name, content) in cases {
        let home = Home::offline("");
        make(&home.state().join(name), content);
        let run = home.call(&["run"]);
        assert_eq!(run.status.code(), Some(1), "{name}: {run:?}");
        let said = String::from_utf8(run.stderr).expect("text");
        let last = said.lines().last().expect("a line");
        assert!(last.contains(name.split('/').next().expect("a name")), "{name}: {last}");
        assert!(last.matches("os error").count() <= 1, "{name}: {last}");
        let found = doctor(&home);
        let line = found.lines().find(|line| line.starts_with("PROBLEM") && line.contains(name));
        assert!(line.is_some(), "{name}: {found}");
        assert!(found.contains("cannot start"), "{name}: {found}");
    }
}

#[test]
fn doctor_knows_that_a_socket_needs_a_short_path() {
    let home = Home::new();
    let long = home.path().join("a".repeat(110));
    fs::create_dir(&long).expect("made");
    let offline = Home::offline("");
    for name in ["agent.toml", "api-key"] {
        fs::copy(offline.state().join(name), long.join(name)).expect("copied");
    }
    let doctor = Command::new(support::program()).arg("doctor").env("OTONIX_STATE_DIR", &long).output();
    let doctor = doctor.expect("runs");
    let text = String::from_utf8(doctor.stdout).expect("text");
    assert!(text.contains("is too long for a socket"), "{text}");
}

#[test]
fn doctor_names_damage_that_the_daemon_would_live_with() {
    let well = Home::offline("");
    drop(well.start(""));
    let text = doctor(&well);
    assert!(text.contains("ok       the files of the state directory"), "{text}");
    let cases: [(&str, &[u8]); 6] = [
        ("standing.json", b"{}"),
        ("process.json", b"\0\0"),
        ("commands.jsonl", b"nonsense\n"),
        ("rejects.jsonl", b"nonsense\n"),
        ("spool/state", &[7; 1024]),
        ("pay/journal", b"something else"),
    ];
    for (name, content) in cases {
        let home = Home::offline("");
        make(&home.state().join(name), Some(content));
        let found = doctor(&home);
        let file = name.trim_end_matches("/journal");
        let damaged = found.lines().any(|line| line.starts_with("PROBLEM") && line.contains(file));
        assert!(damaged, "{name}: {found}");
    }
}

#[test]
fn doctor_tells_a_daemon_that_does_not_answer_from_none() {
    let home = Home::offline("");
    let daemon = home.start("");
    fs::remove_file(home.socket()).expect("removed");
    let found = doctor(&home);
    assert!(found.contains("does not answer on the socket"), "{found}");
    drop(daemon);
}
