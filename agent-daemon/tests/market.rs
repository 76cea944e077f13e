//! One day of an agent's life from end to end: a daemon with a funded wallet buys a domain and a server from a running
//! control plane, whose vendors are the fake with a memory; the new machine starts from the user data that the vendor was
//! given, enrols and beats; the domain points at it; a child is born with a budget, earns nothing, and dies; and as the
//! clock of all of them is moved, the server's next day and the domain's next year are paid from credits, until nobody
//! pays for the server any more.

#[path = "../../tests/interop/chain.rs"]
mod chain;
#[path = "../../tests/clock/clock.rs"]
mod clock;
mod support;

use std::fs;
use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::{TcpListener, TcpStream};
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use chain::Chain;
use clock::MovedClock;
use serde_json::{Value, json};
use support::server::{self, Server};
use support::{Home, eventually};

/// The fake of both vendors as a program.
struct Vendors {
    program: Child,
    url: String,
    flags: Vec<String>,
}

impl Vendors {
    fn start() -> Self {
        let path = server::binary().with_file_name("examples").join("vendors");
        if !path.exists() {
            let built = Command::new(env!("CARGO"))
                .args(["build", "-p", "otonix-control-plane", "--example", "vendors"])
                .current_dir(env!("CARGO_MANIFEST_DIR"))
                .status();
            assert!(built.is_ok_and(|status| status.success()), "the fake vendors do not build");
        }
        let mut program = Command::new(path).stdout(Stdio::piped()).spawn().expect("the vendors start");
        let output = BufReader::new(program.stdout.take().expect("it is piped"));
        let mut flags = Vec::new();
        for line in output.lines().map(|line| line.expect("text")) {
            let (flag, value) = line.split_once(' ').expect("a flag and its value");
            flags.extend([flag.to_owned(), value.to_owned()]);
            if flag == "--cherry-project" {
                break;
            }
        }
        let of = |name: &str| flags.iter().position(|flag| flag == name).map(|at| flags[at + 1].clone());
        let url = of("--cherry-url").expect("its address");
        Self { program, url, flags }
    }

    fn project(&self) -> &str {
        self.flags.last().expect("a project")
    }

    /// What the vendors know.
    fn state(&self) -> Value {
        self.ask("state", &json!({}))
    }

    /// Turns one of their switches; what they know then.
    fn ask(&self, command: &str, body: &Value) -> Value {
        let (address, body) = (self.url.trim_start_matches("http://"), body.to_string());
        let mut stream = TcpStream::connect(address).expect("the vendors listen");
        let head = format!("POST /admin/{command} HTTP/1.1\r\nHost: {address}\r\nConnection: close\r\n");
        let length = format!("Content-Type: application/json\r\nContent-Length: {}\r\n\r\n", body.len());
        stream.write_all(format!("{head}{length}{body}").as_bytes()).expect("they read");
        // They keep the connection open, so the answer's length says where it ends.
        let mut reader = BufReader::new(stream);
        let mut length = 0;
        loop {
            let mut line = String::new();
            reader.read_line(&mut line).expect("they answer");
            let line = line.trim().to_ascii_lowercase();
            if let Some(text) = line.strip_prefix("content-length:") {
                length = text.trim().parse().expect("a length");
            }
            if line.is_empty() {
                break;
            }
        }
        let mut body = vec![0; length];
        reader.read_exact(&mut body).expect("a body");
        serde_json::from_slice(&body).expect("JSON")
    }
}

impl Drop for Vendors {
    fn drop(&mut self) {
        let _ended_already = self.program.kill();
        let _ended_already = self.program.wait();
    }
}

/// Serves one file to whoever asks.
fn package(content: String) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").expect("binds");
    let url = format!("http://{}/otonix-agent", listener.local_addr().expect("an address"));
    std::thread::spawn(move || {
        for mut stream in listener.incoming().flatten() {
            let mut asked = [0; 4096];
            let _whatever_it_is = stream.read(&mut asked);
            let answer = format!(
                "HTTP/1.1 200 OK\r\nContent-Length: {}\r\nConnection: close\r\n\r\n{content}",
                content.len()
            );
            let _gone_already = stream.write_all(answer.as_bytes());
        }
    });
    url
}

/// Seconds.
const HOUR: i64 = 3600;

fn text(value: &Value) -> String {
    value.as_str().unwrap_or_else(|| panic!("no text: {value}")).to_owned()
}

/// Time passes for everybody: our programs, the vendors, the chain.
fn pass(secs: i64, clock: &MovedClock, vendors: &Vendors, chain: &Chain) {
    vendors.ask("advance", &json!({ "seconds": secs }));
    chain.advance(secs.unsigned_abs());
    clock.advance(secs);
}

/// The machine's first start: its root is a directory, and its service manager is a script that does what the unit says.
fn machine(root: &Path) -> PathBuf {
    let tools = root.join("tools");
    for dir in ["run/systemd/system", "etc/systemd/system", "tools"] {
        fs::create_dir_all(root.join(dir)).expect("our directory");
    }
    let script = "#!/bin/bash\necho \"$*\" >>\"$OTONIX_ROOT/systemctl.log\"\n\
        [ \"$1 $2 $3\" = 'enable --now otonix-agent' ] || exit 0\n\
        start=$(sed -n 's/^ExecStart=//p' \"$OTONIX_ROOT/etc/systemd/system/otonix-agent.service\")\n\
        export STATE_DIRECTORY=\"$OTONIX_ROOT/var/lib/otonix-agent\"\n\
        setsid $OTONIX_ROOT$start >\"$OTONIX_ROOT/journal\" 2>&1 </dev/null &\n\
        echo $! >\"$OTONIX_ROOT/pid\"\n";
    fs::write(tools.join("systemctl"), script).expect("our directory");
    fs::set_permissions(tools.join("systemctl"), fs::Permissions::from_mode(0o755)).expect("our file");
    tools
}

/// Ends the daemon that the new machine's first start has left running.
struct Machine(PathBuf);

impl Drop for Machine {
    fn drop(&mut self) {
        let Ok(pid) = fs::read_to_string(self.0.join("pid")) else { return };
        let _ended_already = Command::new("kill").args(["-TERM", pid.trim()]).status();
        for _ in 0..500 {
            if !support::alive(&pid) {
                return;
            }
            std::thread::sleep(Duration::from_millis(20));
        }
        let _ended_already = Command::new("kill").args(["-KILL", pid.trim()]).status();
    }
}

/// Pays for a request as the machine's owner; the answer's body.
fn buy(home: &Home, key: &str, url: &str, body: &Value, most: &str, once: &str) -> Value {
    let header = format!("X-API-Key: {key}");
    let (body, arguments) = (body.to_string(), ["pay", url, "--max-amount", most, "--idempotency-key", once]);
    let output = home
        .command()
        .args(arguments)
        .args(["-X", "POST", "-H", &header, "-H", "Content-Type: application/json", "-i", "-d", &body])
        .output()
        .expect("runs");
    assert!(output.status.success(), "{url}: {output:?}");
    serde_json::from_slice(&output.stdout).expect("JSON")
}

#[test]
fn an_agent_buys_its_world_and_lives_in_it() {
    let chain = Chain::start();
    let vendors = Vendors::start();
    let clock = MovedClock::start();
    let files = tempfile::tempdir().expect("a directory");
    let file = |name: &str, content: &str| {
        let path = files.path().join(name);
        fs::write(&path, content).expect("our directory");
        path.display().to_string()
    };
    let contact = json!({"firstName": "A", "lastName": "B", "email": "a@b.example", "phone": "+15551234567",
        "address1": "1 Road", "city": "Town", "state": "CA", "zip": "90210", "country": "US"});
    let contact = file("contact.json", &contact.to_string());
    let settle = file("settle", &chain.accounts[6].key);
    let laws = file("laws.txt", "Never harm.\n");
    // The package is the program that is tested, by its path.
    let program = format!("#!/bin/sh\nexec {} \"$@\"\n", support::program());
    let sum = file("sum", &program);
    let sha = Command::new("sha256sum").arg(&sum).output().expect("runs").stdout;
    let sha = String::from_utf8(sha).expect("text")[..64].to_owned();
    let url = package(program);
    let mut flags: Vec<String> = vendors.flags.clone();
    for (flag, value) in [
        ("--mode", "open"),
        ("--chain-rpc", chain.rpc.as_str()),
        ("--treasury", chain.accounts[5].address.as_str()),
        ("--settle-key-file", settle.as_str()),
        // A chain on which nothing else happens goes no deeper.
        ("--confirmations", "1"),
        ("--registrant-contact", contact.as_str()),
        ("--agent-package-url", url.as_str()),
        ("--agent-package-sha256", sha.as_str()),
        ("--laws-file", laws.as_str()),
    ] {
        flags.extend([flag.to_owned(), value.to_owned()]);
    }
    let server = Server::start_in(&flags.iter().map(String::as_str).collect::<Vec<_>>(), &clock.variables());
    let key = server.key();

    // The buyer: a daemon with a wallet of 100 USDC.
    let home = Home::with(&clock.variables());
    let made = home
        .command()
        .env("OTONIX_API_KEY", &key)
        .args(["init", "--server", &server.url(), "--name", "buyer", "--heartbeat-interval", "5"])
        .output()
        .expect("runs");
    assert!(made.status.success(), "{made:?}");
    let config = home.state().join("agent.toml");
    let more = format!(
        "\n[chain]\nrpc = '{}'\n[pay]\nmax_payment = '50'\nmax_hour = '90'\nmax_day = '90'\n",
        chain.rpc
    );
    let whole = fs::read_to_string(&config).expect("agent.toml") + &more;
    fs::write(&config, &whole).expect("our directory");
    let line = |name: &str| {
        let line = whole.lines().find(|line| line.starts_with(name)).expect("it is there");
        line.split('=').nth(1).expect("a value").trim().trim_matches(['"', '\'']).to_owned()
    };
    let (buyer, wallet) = (line("id = "), line("wallet_address = "));
    chain.mint(&wallet, 100_000_000);
    let daemon = home.start("");
    daemon.until("connected", |status| status["connected"] == true);
    // It buys credits by itself, since it has none.
    daemon.until("credits", |status| status["credits"].as_f64().is_some_and(|credits| credits >= 10.0));

    // A domain, for itself.
    let body = json!({"domain": "market-day.com", "agentId": buyer, "autoRenew": true});
    let bought = buy(&home, &key, &format!("{}/api/vercel/register", server.url()), &body, "30", "domain-1");
    assert_eq!((&bought["domain"]["managed"], &bought["domain"]["status"]), (&json!(true), &json!("active")));
    let domain = text(&bought["domain"]["id"]);

    // A server, for an agent that has no machine yet.
    let body = json!({"name": "tenant", "heartbeatInterval": 5});
    let (status, tenant) = server.as_key(&key, "POST", "/api/agents/register", Some(&body));
    assert_eq!(status, 201, "{tenant}");
    let tenant = text(&tenant["agent"]["id"]);
    server.grant(&tenant, "20");
    let body = json!({"plan": "B1-1-1gb-20s-shared", "region": "LT-Siauliai", "image": "debian_12_64bit",
        "hostname": "tenant-1", "cycle": "hourly", "agentId": tenant});
    let path = format!("{}/api/cherry/servers/{}", server.url(), vendors.project());
    let bought = buy(&home, &key, &path, &body, "5", "server-1");
    let sandbox = text(&bought["sandbox"]["id"]);
    assert_eq!(bought["sandbox"]["agentId"], json!(tenant), "{bought}");

    // The machine starts for the first time, by what the vendor was given.
    let known = vendors.state();
    let script = text(&known["servers"][0]["userData"]);
    assert_eq!(known["violations"], json!([]));
    let root = files.path().join("machine");
    fs::create_dir_all(&root).expect("our directory");
    let _machine = Machine(root.clone());
    let tools = machine(&root);
    let user_data = root.join("user-data");
    fs::write(&user_data, &script).expect("our directory");
    fs::set_permissions(&user_data, fs::Permissions::from_mode(0o700)).expect("our file");
    let started = Command::new(&user_data)
        .env_clear()
        .env("PATH", format!("{}:/usr/bin:/bin", tools.display()))
        .env("OTONIX_ROOT", &root)
        .envs(clock.variables())
        .stdin(Stdio::null())
        .output()
        .expect("bash runs");
    assert!(started.status.success(), "{started:?}");
    let asked = fs::read_to_string(root.join("systemctl.log")).expect("it was asked");
    assert_eq!(asked, "daemon-reload\nenable --now otonix-agent\n");
    let lived = eventually("the tenant beats", || {
        let agent = server.agent(&tenant);
        agent["lastHeartbeat"].is_string().then_some(agent)
    });
    assert_eq!((&lived["walletProven"], &lived["status"]), (&json!(true), &json!("active")), "{lived}");
    let state = root.join("var/lib/otonix-agent");
    assert_eq!(fs::read_to_string(state.join("laws.txt")).expect("laws"), "Never harm.\n");

    // The domain is linked to the server and points at it.
    let (status, linked) =
        server.as_key(&key, "PATCH", &format!("/api/domains/{domain}"), Some(&json!({"sandboxId": sandbox})));
    assert_eq!(status, 200, "{linked}");
    eventually("the domain points at the server", || {
        let (_, row) = server.as_key(&key, "GET", &format!("/api/sandboxes/{sandbox}"), None);
        let address = row["ipAddress"].as_str()?.to_owned();
        let records = vendors.state()["domains"][0]["records"].to_string();
        (records.contains(&address) && records.contains("CNAME")).then_some(())
    });

    // A child is born with a budget, earns nothing, and dies.
    let born = daemon.post("/v1/children", r#"{"name": "child", "budget": "1.5"}"#);
    assert_eq!(born.status, 201, "{born:?}");
    let nursery = Home::with(&clock.variables());
    let enrolled = nursery
        .command()
        .env("OTONIX_ENROL", text(&born.body["enrolmentToken"]))
        .args(["init", "--server", &server.url(), "--heartbeat-interval", "5"])
        .output()
        .expect("runs");
    assert!(enrolled.status.success(), "{enrolled:?}");
    let child = nursery.start("sleep 600");
    child.until("alive", |status| status["agentProcess"] == "running" && status["connected"] == true);
    let spent = child.post("/v1/usage", r#"{"model": "m", "tokensIn": 1, "tokensOut": 1, "cost": "1"}"#);
    assert_eq!(spent.status, 202, "{spent:?}");
    child.until("dead", |status| {
        status["survivalTier"] == "terminated" && status["agentProcess"] == "stopped"
    });
    let id = text(&born.body["agent"]["id"]);
    eventually("the server knows", || (server.agent(&id)["status"] == "terminated").then_some(()));
    assert_eq!(server.agent(&buyer)["childrenCount"], 1);

    // Its paid day is over soon: the next one is paid from the tenant's credits.
    let credits = server.agent(&tenant)["credits"].as_f64().expect("a number");
    pass(23 * HOUR, &clock, &vendors, &chain);
    eventually("the next day is paid", || {
        let now = server.agent(&tenant)["credits"].as_f64().expect("a number");
        (now < credits - 0.3).then_some(())
    });
    let delivered = || {
        let (_, purchases) = server.as_key(&key, "GET", "/api/purchases", None);
        let purchases = purchases.as_array().expect("a list").clone();
        let ended = purchases.into_iter().filter(|purchase| purchase["status"] == "delivered");
        ended.map(|purchase| text(&purchase["kind"])).collect::<Vec<_>>()
    };
    assert_eq!(delivered(), ["period", "server", "domain"]);

    // The tenant spends what it has.
    let cost = format!("{:.6}", server.agent(&tenant)["credits"].as_f64().expect("a number") - 0.5);
    let usage = json!({"model": "m", "tokensIn": 1, "tokensOut": 1, "cost": cost, "agentId": tenant});
    let (status, spent) = server.as_key(&key, "POST", "/api/compute-logs", Some(&usage));
    assert_eq!(status, 201, "{spent}");

    // The domain's year is nearly over: the next one is paid from the buyer's credits.
    eventually("it needs no more credits", || {
        (server.agent(&buyer)["credits"].as_f64().expect("a number") >= 12.0).then_some(())
    });
    server.grant(&buyer, "30");
    let ends = || text(&vendors.state()["domains"][0]["expiresAt"]);
    let (before, credits) = (ends(), server.agent(&buyer)["credits"].as_f64().expect("a number"));
    pass(336 * 24 * HOUR, &clock, &vendors, &chain);
    eventually("the domain is renewed", || delivered().contains(&"renewal".to_owned()).then_some(()));
    assert_eq!(vendors.state()["renewed"], json!({"market-day.com": 1}));
    assert_eq!(ends()[..4].parse(), before[..4].parse::<u32>().map(|year| year + 1), "{before}, {}", ends());
    let (_, row) = server.as_key(&key, "GET", &format!("/api/domains/{domain}"), None);
    assert_eq!(row["expiresAt"].as_str().map(|end| &end[..10]), Some(&ends()[..10]));
    let left = server.agent(&buyer)["credits"].as_f64().expect("a number");
    assert!((credits - left - 11.25).abs() < 1e-9, "{credits} {left}");

    // The tenant could pay no more: its server has ended, and nobody is billed for it.
    eventually("the server is deleted", || (vendors.state()["servers"][0]["deleted"] == true).then_some(()));
    let (_, status) = server.as_key(&key, "GET", "/api/autonomic/status", None);
    assert_eq!(
        (&status["totalRenewalAttempts"], &status["totalRenewalSuccesses"]),
        (&json!(1), &json!(1)),
        "{status}"
    );
    assert!(status["tierChanges"].as_u64().is_some_and(|changes| changes > 0), "{status}");

    let audit = Command::new(server::binary())
        .arg("audit")
        .arg("--data-dir")
        .arg(server.data_dir())
        .env_clear()
        .output()
        .expect("runs");
    assert!(audit.status.success(), "{audit:?}");
    assert_eq!(vendors.state()["violations"], json!([]));
}
