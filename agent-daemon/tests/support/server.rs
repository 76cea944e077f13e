//! A real control plane for tests: the binary on an empty SQLite database.

use std::fs;
use std::io::{Read as _, Write as _};
use std::net::TcpStream;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::sync::OnceLock;

use serde_json::{Value, json};
use tempfile::TempDir;

use super::{PATIENCE, eventually};

/// The server's binary, next to the daemon's; built when it is not there.
pub fn binary() -> PathBuf {
    static BINARY: OnceLock<PathBuf> = OnceLock::new();
    BINARY
        .get_or_init(|| {
            if let Some(path) = std::env::var_os("OTONIX_CONTROL_PLANE_BIN") {
                return PathBuf::from(path);
            }
            let path = PathBuf::from(super::program()).with_file_name("otonix-control-plane");
            if !path.exists() {
                let built = Command::new(env!("CARGO"))
                    .args(["build", "-p", "otonix-control-plane"])
                    .current_dir(env!("CARGO_MANIFEST_DIR"))
                    .status();
                assert!(built.is_ok_and(|status| status.success()), "the control plane does not build");
            }
            path
        })
        .clone()
}

/// A running server; killed when dropped.
pub struct Server {
    dir: TempDir,
    child: Option<Child>,
    address: String,
    flags: Vec<String>,
    variables: Vec<(String, String)>,
}

impl Server {
    pub fn start() -> Self {
        Self::start_with(&[])
    }

    pub fn start_with(flags: &[&str]) -> Self {
        Self::start_in(flags, &[])
    }

    /// With variables in its environment.
    pub fn start_in(flags: &[&str], variables: &[(&str, String)]) -> Self {
        let dir = tempfile::tempdir().expect("a directory");
        let flags = flags.iter().map(|flag| (*flag).to_owned()).collect();
        let variables = variables.iter().map(|(name, value)| ((*name).to_owned(), value.clone())).collect();
        let mut server = Self { dir, child: None, address: super::port::address(), flags, variables };
        server.again();
        server
    }

    /// Starts it (again) on its address.
    pub fn again(&mut self) {
        let listen = self.dir.path().join("listen");
        let _ = fs::remove_file(&listen);
        let mut command = Command::new(binary());
        command.env_clear().env("PATH", "/usr/bin:/bin").current_dir(self.dir.path()).stdin(Stdio::null());
        command.arg("serve").args(["--listen", &self.address]).arg("--data-dir").arg(self.dir.path());
        command.args(["--log", "warn"]).args(&self.flags);
        command.envs(self.variables.iter().map(|(name, value)| (name, value)));
        self.child = Some(command.spawn().expect("the server starts"));
        self.address = eventually("the server listens", || {
            fs::read_to_string(&listen).ok().filter(|text| !text.trim().is_empty())
        })
        .trim()
        .to_owned();
        eventually("the server is ready", || {
            self.try_call("GET", "/readyz", &[], None).filter(|(status, _)| *status == 200)
        });
    }

    /// SIGKILL.
    pub fn kill(&mut self) {
        if let Some(mut child) = self.child.take() {
            child.kill().expect("kill");
            child.wait().expect("wait");
        }
    }

    pub fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    fn operator(&self) -> String {
        let token = eventually("the operator's token", || {
            fs::read_to_string(self.dir.path().join("operator-token")).ok()
        });
        format!("Bearer {}", token.trim())
    }

    /// A call with headers of its own; `None` when nobody answers.
    pub fn try_call(
        &self,
        method: &str,
        path: &str,
        headers: &[(&str, &str)],
        body: Option<&Value>,
    ) -> Option<(u16, Value)> {
        let mut stream = TcpStream::connect(&self.address).ok()?;
        stream.set_read_timeout(Some(PATIENCE)).ok()?;
        let body = body.map(Value::to_string).unwrap_or_default();
        let mut head = format!("{method} {path} HTTP/1.1\r\nHost: {}\r\nConnection: close\r\n", self.address);
        for (name, value) in headers {
            head.push_str(&format!("{name}: {value}\r\n"));
        }
        if method != "GET" {
            head.push_str(&format!("Content-Type: application/json\r\nContent-Length: {}\r\n", body.len()));
        }
        stream.write_all(format!("{head}\r\n{body}").as_bytes()).ok()?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer).ok()?;
        let (head, body) = answer.split_once("\r\n\r\n")?;
        let status = head.split(' ').nth(1)?.parse().ok()?;
        Some((status, serde_json::from_str(body).unwrap_or(Value::Null)))
    }

    /// A call as the operator; it must succeed.
    pub fn call(&self, method: &str, path: &str, body: Option<&Value>) -> Value {
        let operator = self.operator();
        let (status, answer) = self
            .try_call(method, path, &[("Authorization", &operator)], body)
            .unwrap_or_else(|| panic!("{method} {path}: no answer"));
        assert!((200..300).contains(&status), "{method} {path}: {status} {answer}");
        answer
    }

    /// A call with a key; its status and answer.
    pub fn as_key(&self, key: &str, method: &str, path: &str, body: Option<&Value>) -> (u16, Value) {
        let called = self.try_call(method, path, &[("X-API-Key", key)], body);
        called.unwrap_or_else(|| panic!("{method} {path}: no answer"))
    }

    /// Where it keeps its data.
    pub fn data_dir(&self) -> &std::path::Path {
        self.dir.path()
    }

    pub fn key(&self) -> String {
        let key = self.call("POST", "/api/keys/generate", Some(&json!({ "name": "test" })));
        key["key"].as_str().expect("a key").to_owned()
    }

    pub fn grant(&self, agent: &str, amount: &str) {
        let body = json!({ "amount": amount, "reason": "test" });
        self.call("POST", &format!("/api/agents/{agent}/grant"), Some(&body));
    }

    pub fn agent(&self, agent: &str) -> Value {
        self.call("GET", &format!("/api/agents/{agent}"), None)
    }

    /// All actions of an agent; fewer than a page in these tests.
    pub fn actions(&self, agent: &str) -> Vec<Value> {
        let answer = self.call("GET", &format!("/api/agents/{agent}/actions?limit=1000"), None);
        answer.as_array().expect("an array").clone()
    }

    /// Sends a command and waits for its end.
    pub fn command(&self, agent: &str, kind: &str, args: Value) -> Value {
        let path = format!("/api/agents/{agent}/commands");
        let command = self.call("POST", &path, Some(&json!({ "kind": kind, "args": args })));
        let id = command["id"].clone();
        eventually(&format!("{kind} ends"), || {
            let commands = self.call("GET", &path, None);
            let found = commands.as_array()?.iter().find(|command| command["id"] == id)?.clone();
            matches!(found["status"].as_str(), Some("done" | "failed" | "expired")).then_some(found)
        })
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.kill();
    }
}
