//! The control plane as a process that dies and comes back, and what is asked of it.

use std::fs::{self, File};
use std::io::{self, Read as _, Write as _};
use std::net::TcpStream;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use tempfile::TempDir;

use crate::support::server::binary;
use crate::support::{PATIENCE, eventually};

/// The longest that a server may take to end after SIGTERM.
const STOP: Duration = Duration::from_secs(20);

/// A control plane on a database of its own; killed when dropped.
#[derive(Debug)]
pub struct Server {
    dir: TempDir,
    child: Option<Child>,
    address: String,
    public_url: String,
}

/// One request over TCP: status, head, body.
fn request(
    address: &str,
    method: &str,
    path: &str,
    operator: &str,
    body: Option<&Value>,
) -> io::Result<(u16, String, Value)> {
    let mut stream = TcpStream::connect(address)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    let body = body.map(Value::to_string).unwrap_or_default();
    let mut head = format!("{method} {path} HTTP/1.1\r\nHost: {address}\r\nConnection: close\r\n");
    if !operator.is_empty() {
        head.push_str(&format!("Authorization: Bearer {operator}\r\n"));
    }
    if method == "POST" {
        head.push_str(&format!("Content-Type: application/json\r\nContent-Length: {}\r\n", body.len()));
    }
    stream.write_all(format!("{head}\r\n{body}").as_bytes())?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer)?;
    let (head, body) = answer.split_once("\r\n\r\n").ok_or(io::ErrorKind::UnexpectedEof)?;
    let status = head.split(' ').nth(1).and_then(|status| status.parse().ok());
    let status = status.ok_or(io::ErrorKind::InvalidData)?;
    Ok((status, head.to_owned(), serde_json::from_str(body).unwrap_or(Value::Null)))
}

/// The path in a line `Link: <…>; rel="next"`.
fn next_page(line: &str) -> Option<String> {
    let (name, value) = line.split_once(':')?;
    let link = value.split_once('<')?.1.split_once('>')?.0;
    let found = name.eq_ignore_ascii_case("link") && value.contains("rel=\"next\"");
    link.find("/api/").filter(|_| found).map(|path| link[path..].to_owned())
}

impl Server {
    /// A new one.
    pub fn start(public_url: &str) -> Self {
        let dir = tempfile::tempdir().expect("a directory");
        let mut server = Self { dir, child: None, address: String::new(), public_url: public_url.to_owned() };
        server.again();
        server
    }

    fn data(&self) -> PathBuf {
        self.dir.path().join("data")
    }

    /// Starts it (again) on its data, on whatever port is free.
    pub fn again(&mut self) {
        fs::create_dir_all(self.data()).expect("our directory");
        let listen = self.data().join("listen");
        let _ = fs::remove_file(&listen);
        let log = File::options().create(true).append(true).open(self.dir.path().join("log")).expect("a log");
        let mut command = Command::new(binary());
        command.env_clear().env("PATH", "/usr/bin:/bin").current_dir(self.dir.path());
        command.stdin(Stdio::null()).stdout(log.try_clone().expect("a file")).stderr(log);
        command.args(["serve", "--listen", "127.0.0.1:0", "--log", "warn", "--log-format", "human"]);
        command.args(["--public-url", &self.public_url]).arg("--data-dir").arg(self.data());
        self.child = Some(command.spawn().expect("the server starts"));
        self.address = eventually("the server listens", || {
            let ended = self.child.as_mut().and_then(|child| child.try_wait().expect("its status"));
            assert!(ended.is_none(), "the server ended: {ended:?}\n{}", self.last_words());
            fs::read_to_string(&listen)
                .ok()
                .map(|text| text.trim().to_owned())
                .filter(|text| !text.is_empty())
        });
        eventually("the server is ready", || {
            request(&self.address, "GET", "/readyz", "", None).ok().filter(|(status, ..)| *status == 200)
        });
    }

    /// Where it listens now.
    pub fn address(&self) -> &str {
        &self.address
    }

    /// SIGKILL.
    pub fn kill(&mut self) {
        if let Some(mut child) = self.child.take() {
            child.kill().expect("kill");
            child.wait().expect("wait");
        }
    }

    /// SIGTERM, and how long it took to end.
    pub fn stop(&mut self) -> Duration {
        let Some(mut child) = self.child.take() else { return Duration::ZERO };
        let began = Instant::now();
        crate::world::signal(child.id(), "TERM");
        loop {
            if let Some(status) = child.try_wait().expect("its status") {
                assert!(status.success(), "the server ended with {status}\n{}", self.last_words());
                return began.elapsed();
            }
            if began.elapsed() > STOP {
                child.kill().expect("kill");
                child.wait().expect("wait");
                panic!("the server did not stop within {STOP:?}\n{}", self.last_words());
            }
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    fn last_words(&self) -> String {
        let log = fs::read_to_string(self.dir.path().join("log")).unwrap_or_default();
        let lines: Vec<&str> = log.lines().collect();
        lines[lines.len().saturating_sub(40)..].join("\n")
    }

    fn operator(&self) -> String {
        let token = fs::read_to_string(self.data().join("operator-token")).expect("the operator's token");
        token.trim().to_owned()
    }

    fn ask(&self, method: &str, path: &str, body: Option<&Value>) -> (String, Value) {
        let (status, head, answer) = request(&self.address, method, path, &self.operator(), body)
            .unwrap_or_else(|error| panic!("{method} {path}: {error}"));
        assert!((200..300).contains(&status), "{method} {path}: {status} {answer}");
        (head, answer)
    }

    /// A call as the operator; it must succeed.
    pub fn call(&self, method: &str, path: &str, body: Option<&Value>) -> Value {
        self.ask(method, path, body).1
    }

    /// A new API key.
    pub fn key(&self) -> String {
        let key = self.call("POST", "/api/keys/generate", Some(&json!({ "name": "crash" })));
        key["key"].as_str().expect("a key").to_owned()
    }

    /// Gives credits, whole USDC.
    pub fn grant(&self, agent: &str, usdc: u32) {
        let body = json!({ "amount": usdc, "reason": "crash" });
        self.call("POST", &format!("/api/agents/{agent}/grant"), Some(&body));
    }

    /// The agent as the operator sees it.
    pub fn agent(&self, agent: &str) -> Value {
        self.call("GET", &format!("/api/agents/{agent}"), None)
    }

    /// A whole list, page by page.
    pub fn list(&self, path: &str) -> Vec<Value> {
        let mut rows = Vec::new();
        let joint = if path.contains('?') { '&' } else { '?' };
        let mut next = Some(format!("{path}{joint}limit=1000"));
        while let Some(page) = next.take() {
            let (head, answer) = self.ask("GET", &page, None);
            rows.extend(answer.as_array().expect("an array").iter().cloned());
            next = head.lines().find_map(next_page);
        }
        rows
    }

    /// `audit`, which must find the books right.
    pub fn audit(&self) {
        let mut command = Command::new(binary());
        command.env_clear().env("PATH", "/usr/bin:/bin").arg("audit").arg("--data-dir").arg(self.data());
        let output = command.output().expect("runs");
        assert!(output.status.success(), "audit: {output:?}");
    }

    /// Rows of the database file, read beside the server.
    pub fn sql(&self, query: &str) -> Vec<Vec<Value>> {
        const READ: &str = "import json, sqlite3, sys\n\
            db = sqlite3.connect('file:' + sys.argv[1] + '?mode=ro', uri=True, timeout=20)\n\
            print(json.dumps(db.execute(sys.argv[2]).fetchall()))";
        let file = self.data().join("otonix.db");
        let output =
            Command::new("python3").args(["-c", READ]).arg(file).arg(query).output().expect("python3");
        assert!(output.status.success(), "{query}: {output:?}");
        serde_json::from_slice(&output.stdout).expect("rows")
    }

    /// The one number that a query gives.
    pub fn count(&self, query: &str) -> u64 {
        self.sql(query)[0][0].as_u64().expect("a number")
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.kill();
        if std::thread::panicking() {
            eprintln!("--- the server's last words ---\n{}\n---", self.last_words());
        }
    }
}
