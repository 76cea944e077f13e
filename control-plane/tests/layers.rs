//! Who may know whom, read from the sources of the whole workspace: the rules of ARCHITECTURE.md, as absences.
//!
//! Unit tests at the end of a file and comments do not count. A rule that has exceptions names them, with the reason.

use std::fs;
use std::path::{Path, PathBuf};

/// One source file, without comments and unit tests.
struct Source {
    /// From the root of the workspace, e.g. `control-plane/src/app.rs`.
    path: String,
    whole: String,
    code: String,
}

impl Source {
    fn is_in(&self, places: &[&str]) -> bool {
        places.iter().any(|place| match place.strip_suffix('/') {
            Some(dir) => self.path.strip_prefix(dir).is_some_and(|rest| rest.starts_with('/')),
            None => self.path == *place,
        })
    }
}

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("the package is in a workspace").to_owned()
}

fn read_dir(dir: &Path, into: &mut Vec<Source>) {
    for entry in fs::read_dir(dir).expect("a source directory").flatten() {
        let path = entry.path();
        if path.is_dir() {
            read_dir(&path, into);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            let whole = fs::read_to_string(&path).expect("a source file");
            let inside = path.strip_prefix(root()).expect("below the root").display().to_string();
            into.push(Source { code: code_of(&whole), whole, path: inside });
        }
    }
}

fn code_of(whole: &str) -> String {
    let before_tests = whole.split("\n#[cfg(test)]\nmod ").next().unwrap_or_default();
    let is_code = |line: &&str| !line.trim_start().starts_with("//");
    before_tests.lines().filter(is_code).collect::<Vec<_>>().join("\n")
}

fn sources() -> Vec<Source> {
    let mut all = Vec::new();
    for package in ["proto", "sdk", "control-plane", "agent-daemon"] {
        read_dir(&root().join(package).join("src"), &mut all);
    }
    assert!(all.len() > 100, "the sources were not found");
    // Files that hold only unit tests.
    all.retain(|source| !source.path.ends_with("/tests.rs"));
    all
}

fn is_word(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || byte == b'_'
}

/// Whether a path begins with this: `sqlx` is found in `use sqlx::query` and `sqlx::Error`, not in `crate::sqlx`.
fn names(code: &str, path: &str) -> bool {
    code.match_indices(path).any(|(at, _)| {
        let before = code.as_bytes()[..at].last().copied().unwrap_or(b' ');
        let after = code.as_bytes().get(at + path.len()).copied().unwrap_or(b' ');
        !is_word(before)
            && before != b':'
            && !is_word(after)
            && (path.contains("::") || code[at + path.len()..].starts_with("::") || after == b';')
    })
}

/// Finds where sources in `places` name one of `paths`, but for the exceptions.
fn offenders(places: &[&str], paths: &[&str], exceptions: &[&str]) -> Vec<String> {
    let all = sources();
    for place in places.iter().chain(exceptions) {
        assert!(
            all.iter().any(|source| source.is_in(&[place])),
            "there is no {place} any more; mend this test"
        );
    }
    let mut found = Vec::new();
    for source in all.iter().filter(|source| source.is_in(places) && !source.is_in(exceptions)) {
        for path in paths.iter().filter(|path| names(&source.code, path)) {
            found.push(format!("{} names {path}", source.path));
        }
    }
    found
}

#[track_caller]
fn assert_absent(places: &[&str], paths: &[&str], exceptions: &[&str]) {
    let found = offenders(places, paths, exceptions);
    assert!(found.is_empty(), "{found:#?}");
}

const OURS: &[&str] = &["sdk/src/", "control-plane/src/", "agent-daemon/src/"];
const HANDLERS: &[&str] = &[
    "control-plane/src/rest/agents.rs",
    "control-plane/src/rest/enrolment.rs",
    "control-plane/src/rest/keys.rs",
    "control-plane/src/rest/payments.rs",
    "control-plane/src/rest/purchases.rs",
    "control-plane/src/rest/records.rs",
    "control-plane/src/rest/sanitise.rs",
    "control-plane/src/rest/system.rs",
    "control-plane/src/rest/vendors.rs",
];

#[test]
fn names_are_found_whole_and_at_the_start_of_a_path() {
    for code in ["use sqlx::query;", "sqlx::Error", "(sqlx::Error)", "extern crate sqlx;"] {
        assert!(names(code, "sqlx"), "{code}");
    }
    for code in ["use crate::sqlx::x;", "mysqlx::x", "sqlx_core::x", "let sqlx = 1"] {
        assert!(!names(code, "sqlx"), "{code}");
    }
    assert!(names("use crate::store::list::Page;", "crate::store"));
    assert!(!names("use crate::stores::x;", "crate::store"));
}

#[test]
fn services_know_no_transport_and_no_database() {
    let places = &["control-plane/src/service/", "control-plane/src/worker/"];
    assert_absent(places, &["axum", "tonic", "http", "hyper", "tower", "sqlx", "alloy", "reqwest"], &[]);
    assert_absent(places, &["crate::rest", "crate::grpc", "crate::net"], &[]);
    assert_absent(&["control-plane/src/service/"], &["crate::worker"], &[]);
}

#[test]
fn the_domain_error_and_what_is_kept_in_memory_know_no_transport_and_no_database() {
    let places = &[
        "control-plane/src/error.rs",
        "control-plane/src/auth.rs",
        "control-plane/src/fleet.rs",
        "control-plane/src/health.rs",
        "control-plane/src/limits.rs",
        "control-plane/src/links.rs",
        "control-plane/src/metrics.rs",
    ];
    assert_absent(places, &["axum", "tonic", "http", "hyper", "sqlx", "reqwest"], &[]);
    assert_absent(
        places,
        &["crate::rest", "crate::grpc", "crate::net", "crate::service", "crate::worker"],
        &[],
    );
}

#[test]
fn the_store_knows_nothing_above_it() {
    let place = &["control-plane/src/store/"];
    assert_absent(place, &["axum", "tonic", "http", "hyper", "alloy", "reqwest"], &[]);
    let above = ["service", "rest", "grpc", "net", "worker", "app", "auth", "fleet", "links", "config"];
    let above: Vec<String> = above.iter().map(|module| format!("crate::{module}")).collect();
    assert_absent(place, &above.iter().map(String::as_str).collect::<Vec<_>>(), &[]);
}

#[test]
fn nothing_but_the_store_speaks_sql() {
    assert_absent(OURS, &["sqlx"], &["control-plane/src/store/"]);
    let statements =
        ["\"SELECT ", "\"INSERT ", "\"UPDATE ", "\"DELETE FROM ", "\"CREATE ", "\"ALTER ", "\"WITH "];
    let found: Vec<String> = sources()
        .iter()
        .filter(|source| !source.is_in(&["control-plane/src/store/"]))
        .filter(|source| statements.iter().any(|statement| source.code.contains(statement)))
        .map(|source| source.path.clone())
        .collect();
    assert!(found.is_empty(), "{found:?} contain SQL");
}

#[test]
fn handlers_do_not_touch_the_store() {
    // What a handler may name: the type of an answer that is kept for repeats.
    for source in sources().iter().filter(|source| source.is_in(HANDLERS)) {
        let code = source.code.replace("crate::store::idempotency::StoredAnswer", "");
        // The list's generic page, in a signature.
        let mut code = code.replace("crate::store::list::Page", "");
        if source.path == "control-plane/src/rest/system.rs" {
            // Readiness is the question whether the database answers; metrics show how much waits to be written.
            code = code
                .replace("crate::store::settings", "")
                .replace("app.db.read(", "")
                .replace("writer.queued()", "");
        }
        assert!(!names(&code, "crate::store"), "{} names crate::store", source.path);
        for call in [".db.read(", ".writer.", ".db."] {
            assert!(!code.contains(call), "{} calls {call}", source.path);
        }
    }
}

#[test]
fn one_place_chooses_the_status_of_an_error() {
    // The front of the network refuses what is no request yet; `answer` asks which statuses pass.
    let exceptions =
        &["control-plane/src/rest/problem.rs", "control-plane/src/rest/answer.rs", "control-plane/src/net/"];
    for source in
        sources().iter().filter(|source| source.is_in(&["control-plane/src/"]) && !source.is_in(exceptions))
    {
        for (at, _) in source.code.match_indices("StatusCode::") {
            let rest = &source.code[at + "StatusCode::".len()..];
            assert!(
                rest.starts_with("OK") || rest.starts_with("CREATED"),
                "{} chooses a status",
                source.path
            );
        }
    }
    // gRPC has its own words for them, in one file as well.
    let exceptions = &["control-plane/src/grpc/status.rs"];
    assert_absent(&["control-plane/src/"], &["tonic::Code", "Code::NotFound"], exceptions);
    assert_absent(&["control-plane/src/grpc/"], &["crate::rest"], exceptions);
}

#[test]
fn frames_stay_on_the_wire() {
    // The two services that take frames of the session as they come, and the link, whose disk format they are.
    let exceptions = &[
        "control-plane/src/grpc/",
        "control-plane/src/service/events.rs",
        "control-plane/src/service/sessions.rs",
        "sdk/src/convert.rs",
        "sdk/src/link/",
    ];
    assert_absent(OURS, &["otonix_proto", "prost", "pb"], exceptions);
    // The front answers a panic below gRPC.
    let exceptions =
        &["control-plane/src/grpc/", "control-plane/src/rest/front.rs", "sdk/src/link/session.rs"];
    assert_absent(OURS, &["tonic"], exceptions);
}

#[test]
fn rows_stay_in_the_store() {
    // Written by several resources: what is logged, and what an event leaves behind. They are inputs of the store.
    let shared = ["ActionRow", "EventRow", "NewKeyRow"];
    for source in sources().iter().filter(|source| !source.is_in(&["control-plane/src/store/"])) {
        let words = source.code.split(|c: char| !c.is_alphanumeric() && c != '_');
        for word in words.filter(|word| word.ends_with("Row") && word.len() > 3) {
            assert!(shared.contains(&word), "{} knows the row {word}", source.path);
        }
    }
}

#[test]
fn chains_and_private_keys_have_one_home() {
    let homes = &["sdk/src/wallet/evm.rs", "sdk/src/wallet/transaction.rs", "sdk/src/x402/eip3009.rs"];
    assert_absent(OURS, &["alloy"], homes);
    for source in sources().iter().filter(|source| !source.is_in(&["sdk/src/wallet/"])) {
        assert!(!source.code.contains("PrivateKeySigner"), "{} holds a private key", source.path);
    }
    for source in sources().iter().filter(|source| source.is_in(&["sdk/src/wallet/"])) {
        assert!(!source.code.contains("Serialize for Wallet"), "{} writes a wallet down", source.path);
    }
}

#[test]
fn clients_clocks_and_pools_are_made_in_one_place() {
    // The payer's other files name the type of a URL only.
    let homes = &[
        "sdk/src/client/",
        "sdk/src/link/",
        "sdk/src/agent.rs",
        "sdk/src/chain/http.rs",
        "sdk/src/pay/",
        "control-plane/src/upstream/",
    ];
    assert_absent(OURS, &["reqwest"], homes);
    for (what, places) in [
        ("SystemClock", &["control-plane/src/serve.rs", "control-plane/src/doctor/vendors.rs"][..]),
        ("connect_lazy_with(", &["control-plane/src/store/mod.rs"][..]),
        ("TcpListener::bind", &[][..]),
        ("unbounded_channel", &[][..]),
    ] {
        for source in
            sources().iter().filter(|source| source.is_in(&["control-plane/src/"]) && !source.is_in(places))
        {
            assert!(!source.code.contains(what), "{} has {what}", source.path);
        }
    }
}

#[test]
fn the_core_of_the_sdk_is_pure() {
    let core = &[
        "sdk/src/api/",
        "sdk/src/clock.rs",
        "sdk/src/error.rs",
        "sdk/src/ids.rs",
        "sdk/src/limits.rs",
        "sdk/src/money.rs",
        "sdk/src/prices.rs",
        "sdk/src/routing.rs",
        "sdk/src/secret.rs",
        "sdk/src/standing.rs",
    ];
    let outside = [
        "tokio",
        "reqwest",
        "tonic",
        "hyper",
        "axum",
        "rustix",
        "std::fs",
        "std::net",
        "std::env",
        "std::thread",
    ];
    assert_absent(core, &outside, &[]);
    assert_absent(core, &["crate::link", "crate::client", "crate::agent", "crate::wallet"], &[]);
}

#[test]
fn packages_depend_one_way() {
    for (package, never) in [
        ("proto", &["otonix-sdk", "otonix-control-plane", "otonix-agent-daemon"][..]),
        ("sdk", &["otonix-control-plane", "otonix-agent-daemon"][..]),
        ("control-plane", &["otonix-agent-daemon"][..]),
        ("agent-daemon", &["otonix-control-plane", "otonix-proto"][..]),
    ] {
        let text = fs::read_to_string(root().join(package).join("Cargo.toml")).expect("a manifest");
        let manifest: toml::Table = text.parse().expect("a manifest");
        let dependencies =
            manifest.get("dependencies").and_then(toml::Value::as_table).expect("dependencies");
        for other in never {
            assert!(!dependencies.contains_key(*other), "{package} depends on {other}");
        }
    }
}

#[test]
fn every_module_says_what_it_owns() {
    let silent: Vec<_> = sources().into_iter().filter(|source| !source.whole.starts_with("//!")).collect();
    assert!(
        silent.is_empty(),
        "{:?} do not begin with `//!`",
        silent.iter().map(|s| &s.path).collect::<Vec<_>>()
    );
}
