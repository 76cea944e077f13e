//! The wallet of a real daemon on a local chain: the command line, the local API, and a wallet that cannot be opened.

#[path = "../../tests/interop/chain.rs"]
mod chain;
mod support;

use std::fs;
use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::{TcpListener, TcpStream};
use std::os::unix::fs::PermissionsExt as _;
use std::process::{Output, Stdio};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, OnceLock};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use chain::Chain;
use serde_json::{Value, json};
use support::{Home, eventually};

/// One chain for all tests.
fn chain() -> &'static Chain {
    static CHAIN: OnceLock<Chain> = OnceLock::new();
    CHAIN.get_or_init(Chain::start)
}

/// A seller that delivers to whoever shows a payment; it never takes the money.
struct Seller {
    url: String,
    shown: Arc<AtomicUsize>,
}

impl Seller {
    fn start(price: &str) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").expect("binds");
        let url = format!("http://{}/work", listener.local_addr().expect("an address"));
        let shown = Arc::new(AtomicUsize::default());
        let asked = json!({
            "x402Version": 2, "resource": {"url": url}, "accepts": [{
                "scheme": "exact", "network": "eip155:8453", "amount": price, "asset": chain().asset,
                "payTo": chain().accounts[5].address, "maxTimeoutSeconds": 60,
                "extra": {"name": "USD Coin", "version": "2"},
            }],
        });
        let header = STANDARD.encode(asked.to_string());
        let count = Arc::clone(&shown);
        std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                serve(stream, &header, &count);
            }
        });
        Self { url, shown }
    }

    fn shown(&self) -> usize {
        self.shown.load(Ordering::SeqCst)
    }
}

fn serve(mut stream: TcpStream, header: &str, shown: &AtomicUsize) {
    let mut reader = BufReader::new(stream.try_clone().expect("clones"));
    let (mut length, mut paid) = (0, false);
    loop {
        let mut line = String::new();
        if reader.read_line(&mut line).unwrap_or(0) == 0 {
            return;
        }
        let line = line.trim().to_ascii_lowercase();
        if let Some(text) = line.strip_prefix("content-length:") {
            length = text.trim().parse().expect("a length");
        }
        paid |= line.starts_with("payment-signature:");
        if line.is_empty() {
            break;
        }
    }
    let mut body = vec![0; length];
    reader.read_exact(&mut body).expect("a body");
    let answer = if paid {
        shown.fetch_add(1, Ordering::SeqCst);
        format!("HTTP/1.1 200 OK\r\nContent-Length: {length}\r\nConnection: close\r\n\r\n")
    } else {
        body = b"{}".to_vec();
        format!(
            "HTTP/1.1 402 Payment Required\r\nPAYMENT-REQUIRED: {header}\r\nContent-Length: 2\r\nConnection: close\r\n\r\n"
        )
    };
    // A client that is gone needs no answer.
    let _ = stream.write_all(answer.as_bytes()).and_then(|()| stream.write_all(&body));
}

/// A state directory with a funded wallet.
fn home(pay: &str) -> Home {
    let home =
        Home::offline(&format!("---[chain]\nrpc = '{}'\n[pay]\nessential = ['*']\n{pay}", chain().rpc));
    let address = text(&home.call(&["wallet", "new"]));
    chain().mint(address.lines().last().expect("an address"), 5_000_000);
    home
}

fn text(output: &Output) -> String {
    assert!(output.status.success(), "{output:?}");
    String::from_utf8(output.stdout.clone()).expect("UTF-8").trim().to_owned()
}

fn code(output: &Output) -> i32 {
    output.status.code().unwrap_or_else(|| panic!("{output:?}"))
}

const PRIVATE: &str = "allow_private_addresses = true\n";

#[test]
fn a_wallet_is_made_shown_and_put_aside_but_never_overwritten() {
    let home = Home::new();
    let made = text(&home.call(&["wallet", "new"]));
    assert_eq!(text(&home.call(&["wallet", "address"])), made);
    assert!(!home.call(&["wallet", "new"]).status.success());
    let key = text(&home.call(&["wallet", "export"]));
    assert!(key.starts_with("0x") && key.len() == 66);
    let kept = text(&home.call(&["wallet", "export", "--keystore"]));
    assert!(serde_json::from_str::<Value>(&kept).is_ok_and(|stored| stored["version"] == 3));
    let import = |input: &str, more: &[&str]| {
        let mut command = home.command();
        command.args(["wallet", "import"]).args(more).stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut child = command.stderr(Stdio::piped()).spawn().expect("runs");
        child.stdin.take().expect("piped").write_all(input.as_bytes()).expect("writes");
        child.wait_with_output().expect("ends")
    };
    let other = &chain().accounts[3];
    assert!(!import(&other.key, &[]).status.success());
    assert!(!import("not a key", &["--replace"]).status.success());
    assert_eq!(text(&home.call(&["wallet", "address"])), made);
    assert!(text(&import(&format!("{}\n", other.key), &["--replace"])).ends_with(&other.address));
    assert_eq!(text(&home.call(&["wallet", "address"])), other.address);
    let aside = fs::read_dir(home.state()).expect("lists").flatten();
    let aside: Vec<_> =
        aside.filter(|entry| entry.file_name().to_string_lossy().starts_with("keystore.json.")).collect();
    assert_eq!(aside.len(), 1, "the wallet before is still there");
    assert!(text(&import(&kept, &["--replace"])).ends_with(&made), "a keystore is read by its passphrase");
    let mode = fs::metadata(home.state().join("keystore.json")).expect("a file").permissions().mode();
    assert_eq!(mode & 0o777, 0o600);
}

#[test]
fn a_wallet_that_cannot_be_opened_is_named_and_the_daemon_goes_on() {
    for (damage, named) in [
        ("open", "mode 0644"),
        ("cut", "damaged"),
        ("passphrase", "passphrase does not open"),
        ("gone", "there is no keystore"),
    ] {
        let home = home(PRIVATE);
        let path = home.state().join("keystore.json");
        match damage {
            "open" => fs::set_permissions(&path, fs::Permissions::from_mode(0o644)).expect("chmod"),
            "cut" => fs::write(&path, &fs::read(&path).expect("reads")[..100]).expect("writes"),
            "passphrase" => fs::write(home.state().join("wallet.passphrase"), "another").expect("writes"),
            _ => fs::remove_file(&path).expect("removes"),
        }
        let daemon = home.start("");
        let status = daemon.until("payments are off", |status| status["payments"]["state"] == "off");
        let why = status["payments"]["detail"].as_str().expect("why").to_owned();
        assert!(why.contains(named), "{damage}: {why}");
        let answer = daemon.post("/v1/pay", r#"{"url":"http://127.0.0.1:1","maxAmount":"1"}"#);
        assert!(answer.status == 403 || answer.status == 503, "{answer:?}");
        daemon.log("still alive");
        assert_eq!(text(&home.call(&["journal", "list", "--json"])), "[]", "the journal can still be read");
    }
}

#[test]
fn the_command_line_pays_with_and_without_a_daemon() {
    let seller = Seller::start("10000");
    let home = home(PRIVATE);
    let pay = |more: &[&str]| {
        let arguments = [&["pay", &seller.url, "--data", "hello"], more].concat();
        home.call(&arguments)
    };
    assert_eq!(text(&pay(&["--max-amount", "0.01", "--idempotency-key", "a"])), "hello");
    assert_eq!(seller.shown(), 1);
    let dear = pay(&["--max-amount", "0.009999"]);
    assert_eq!((code(&dear), seller.shown()), (3, 1), "{dear:?}");
    assert!(String::from_utf8_lossy(&dear.stderr).contains("0.01"), "it says why: {dear:?}");
    assert_eq!(code(&pay(&[])), 2, "--max-amount is needed");

    let daemon = home.start("");
    daemon.until("payments are on", |status| status["payments"]["state"] == "on");
    let again = pay(&["--max-amount", "0.01", "--idempotency-key", "a"]);
    assert_eq!((text(&again).as_str(), seller.shown()), ("hello", 1), "the key was paid before");
    let shown = pay(&["--max-amount", "0.01", "-i"]);
    assert_eq!((text(&shown).as_str(), seller.shown()), ("hello", 2));
    let headers = String::from_utf8_lossy(&shown.stderr).into_owned();
    assert!(headers.starts_with("HTTP 200") && headers.contains("settled"), "{headers}");
    assert_eq!(code(&pay(&["--max-amount", "0.009999"])), 3);

    let listed: Value =
        serde_json::from_str(&text(&home.call(&["journal", "list", "--json"]))).expect("JSON");
    let states: Vec<&str> =
        listed.as_array().expect("a list").iter().filter_map(|one| one["state"].as_str()).collect();
    assert_eq!(states.iter().filter(|state| **state == "settled").count(), 2, "{listed}");
    let pins = text(&home.call(&["pins", "list"]));
    assert!(pins.starts_with(&chain().accounts[5].address), "{pins}");
    let origin = seller.url.trim_end_matches("/work");
    assert!(home.call(&["pins", "remove", origin]).status.success());
    assert!(!home.call(&["pins", "remove", origin]).status.success());
    assert_eq!(text(&home.call(&["journal", "reconcile"])), "chain and journal agree");
    drop(daemon);
    let after: Value = serde_json::from_str(&text(&home.call(&["journal", "list", "--json"]))).expect("JSON");
    assert_eq!(after, listed, "the same without a daemon, and without wallet or chain");
}

#[test]
fn the_agents_process_may_not_use_a_wallet_that_it_could_read() {
    let seller = Seller::start("10000");
    let home = home(&format!("{PRIVATE}hosts = []\n"));
    // Its child has the daemon's user id and can read the owner's token; it is still no owner.
    let program = support::program();
    let script = format!("{program} pay {} --max-amount 1 2>why; echo $? >code; sleep 60", seller.url);
    let daemon = home.start(&script);
    assert_eq!(home.line("code"), "3");
    assert!(fs::read_to_string(home.path().join("why")).expect("why").contains("allow_shared_uid"));
    let body = json!({ "url": seller.url, "maxAmount": "1" }).to_string();
    let refused = daemon.post("/v1/pay", &body);
    assert_eq!((refused.status, refused.code()), (403, "payment_refused"), "{refused:?}");
    assert_eq!(seller.shown(), 0);
    assert_eq!(code(&home.call(&["pay", &seller.url, "--max-amount", "1"])), 0, "the owner may");
}

#[test]
fn when_it_is_allowed_the_rules_still_bind_the_agents_process() {
    let (seller, other) = (Seller::start("10000"), Seller::start("10000"));
    let host = seller.url.trim_start_matches("http://").trim_end_matches("/work").to_owned();
    let home = home(&format!("{PRIVATE}allow_shared_uid = true\nhosts = ['{host}']\n"));
    let daemon = home.start("");
    let ask = |url: &str, key: &str| {
        let body = json!({ "url": url, "body": {"a": 1}, "maxAmount": "1" }).to_string();
        daemon.post_keyed("/v1/pay", &body, &[("Idempotency-Key", key)])
    };
    let paid = ask(&seller.url, "one");
    assert_eq!((paid.status, &paid.body["status"]), (200, &json!(200)), "{paid:?}");
    assert_eq!(paid.body["body"], r#"{"a":1}"#);
    assert_eq!(paid.body["payment"]["state"], "settled");
    assert_eq!(paid.body["payment"]["amount"], json!(0.01));
    let id = paid.body["intentId"].as_str().expect("an id");
    let later = daemon.get(&format!("/v1/payments/{id}")).expect("an answer");
    assert_eq!(
        (&later.body["payment"]["state"], &later.body["body"]),
        (&json!("settled"), &paid.body["body"])
    );
    assert_eq!(ask(&seller.url, "one").body["intentId"], paid.body["intentId"]);
    let reused = daemon.post_keyed(
        "/v1/pay",
        &json!({ "url": seller.url, "maxAmount": "1" }).to_string(),
        &[("Idempotency-Key", "one")],
    );
    assert_eq!((reused.status, reused.code()), (409, "idempotency_key_reused"));
    let refused = ask(&other.url, "two");
    assert_eq!((refused.status, refused.code()), (403, "payment_refused"), "{refused:?}");
    assert!(refused.body["detail"].as_str().is_some_and(|detail| detail.contains("host_not_allowed")));
    assert_eq!((seller.shown(), other.shown()), (1, 0));
    let missing = daemon.get("/v1/payments/0197a000-0000-7000-8000-000000000001").expect("an answer");
    assert_eq!((missing.status, missing.code()), (404, "not_found"));
    for bad in ["{}", r#"{"url":"x","maxAmount":"1"}"#, r#"{"url":"http://a.example","maxAmount":"-1"}"#] {
        assert_eq!(daemon.post("/v1/pay", bad).status, 400, "{bad}");
    }
    let only_owner = daemon.post("/v1/payments/reconcile", "");
    assert_eq!(only_owner.status, 403);
}

#[test]
fn a_pause_of_the_owner_holds_and_private_addresses_are_refused() {
    let seller = Seller::start("10000");
    let paused = home(&format!("{PRIVATE}paused = true\n"));
    assert_eq!(code(&paused.call(&["pay", &seller.url, "--max-amount", "1"])), 3);
    let daemon = paused.start("");
    eventually("it is known", || daemon.status()["payments"]["detail"].as_str().map(str::to_owned));
    assert_eq!(code(&paused.call(&["pay", &seller.url, "--max-amount", "1"])), 3);
    let careful = home("");
    assert_eq!(code(&careful.call(&["pay", &seller.url, "--max-amount", "1"])), 3);
    assert_eq!(seller.shown(), 0);
}
