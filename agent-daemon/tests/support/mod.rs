//! Real daemons for tests: the binary, its state directory, its socket.
#![allow(dead_code, clippy::allow_attributes, reason = "each test crate uses its own part of it")]

#[path = "../../../tests/port.rs"]
pub mod port;
pub mod server;

use std::fs;
use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::os::unix::fs::PermissionsExt as _;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Output, Stdio};
use std::time::{Duration, Instant};

use serde_json::Value;
use tempfile::TempDir;

/// The longest any single thing is waited for.
pub const PATIENCE: Duration = Duration::from_secs(30);
/// The id of an agent that no server knows.
pub const OFFLINE_ID: &str = "0197a000-0000-7000-8000-000000000001";

/// The program under test.
pub fn program() -> &'static str {
    env!("CARGO_BIN_EXE_otonix-agent")
}

/// Waits until something is there.
pub fn eventually<T>(what: &str, mut look: impl FnMut() -> Option<T>) -> T {
    let began = Instant::now();
    loop {
        if let Some(found) = look() {
            return found;
        }
        assert!(began.elapsed() < PATIENCE, "{what}: not within {PATIENCE:?}");
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// Whether a process runs (one that waits to be reaped does not).
pub fn alive(pid: &str) -> bool {
    let Ok(stat) = fs::read_to_string(format!("/proc/{}/stat", pid.trim())) else { return false };
    stat.rsplit_once(") ").is_some_and(|(_, rest)| !rest.starts_with(['Z', 'X']))
}

/// A state directory, and the way programs are started on it.
pub struct Home {
    dir: TempDir,
    variables: Vec<(String, String)>,
}

impl Home {
    /// An empty one, not initialised.
    pub fn new() -> Self {
        Self::with(&[])
    }

    /// An empty one, whose programs get variables.
    pub fn with(variables: &[(&str, String)]) -> Self {
        let variables = variables.iter().map(|(name, value)| ((*name).to_owned(), value.clone())).collect();
        Self { dir: tempfile::tempdir().expect("a directory"), variables }
    }

    /// One of an agent that was registered at a server that cannot be reached.
    pub fn offline(more: &str) -> Self {
        let home = Self::new();
        fs::create_dir(home.state()).expect("a state directory");
        let (agent, rest) = more.split_once("---").unwrap_or((more, ""));
        let config = format!(
            "[agent]\nid = '{OFFLINE_ID}'\nname = 'offline'\nstop_grace = 2\n{agent}\n[link]\nserver = 'http://127.0.0.1:9'\n{rest}"
        );
        fs::write(home.state().join("agent.toml"), config).expect("write");
        fs::write(home.state().join("api-key"), "otonix_000000000000000000000000000000000000000000000000\n")
            .expect("write");
        for name in ["agent.toml", "api-key"] {
            fs::set_permissions(home.state().join(name), fs::Permissions::from_mode(0o600)).expect("chmod");
        }
        home
    }

    pub fn path(&self) -> &Path {
        self.dir.path()
    }

    pub fn state(&self) -> PathBuf {
        self.dir.path().join("state")
    }

    pub fn socket(&self) -> PathBuf {
        self.state().join("agent.sock")
    }

    /// The program with its state directory and no other setting.
    pub fn command(&self) -> Command {
        let mut command = Command::new(program());
        command.env_clear().env("PATH", "/usr/bin:/bin").current_dir(self.path());
        command.envs(self.variables.iter().map(|(name, value)| (name, value)));
        command.arg("--state-dir").arg(self.state());
        command
    }

    /// Runs a subcommand to its end.
    pub fn call(&self, arguments: &[&str]) -> Output {
        self.command().args(arguments).output().expect("runs")
    }

    /// Starts the daemon, with a shell script as the agent's process unless it is empty.
    pub fn start(&self, script: &str) -> Daemon {
        self.start_with(script, |_| {})
    }

    pub fn start_with(&self, script: &str, change: impl FnOnce(&mut Command)) -> Daemon {
        let mut command = self.command();
        command.args(["--log", "info", "run"]).stdin(Stdio::null());
        if !script.is_empty() {
            command.args(["--", "/bin/sh", "-c", script]);
        }
        change(&mut command);
        let mut daemon =
            Daemon { child: command.spawn().expect("starts"), socket: self.socket(), stopped: false };
        eventually("the daemon answers", || {
            if let Some(status) = daemon.child.try_wait().expect("its status") {
                panic!("the daemon ended: {status}");
            }
            daemon.get("/v1/status").ok()
        });
        daemon
    }

    /// The line that the agent's process wrote into a file.
    pub fn line(&self, name: &str) -> String {
        let path = self.path().join(name);
        eventually(name, || fs::read_to_string(&path).ok().filter(|text| text.ends_with('\n')))
            .trim()
            .to_owned()
    }
}

/// A running daemon; stopped when dropped.
pub struct Daemon {
    child: Child,
    socket: PathBuf,
    stopped: bool,
}

/// An answer of the local API.
#[derive(Debug)]
pub struct Answer {
    pub status: u16,
    pub head: String,
    pub body: Value,
}

impl Answer {
    pub fn code(&self) -> &str {
        self.body["code"].as_str().unwrap_or_default()
    }

    pub fn id(&self) -> String {
        self.body["id"].as_str().unwrap_or_else(|| panic!("no id in {self:?}")).to_owned()
    }
}

/// One request over a unix socket.
pub fn request(
    socket: &Path,
    method: &str,
    path: &str,
    headers: &[(&str, &str)],
    body: &[u8],
) -> std::io::Result<Answer> {
    let mut stream = UnixStream::connect(socket)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    let mut head = format!("{method} {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n");
    for (name, value) in headers {
        head.push_str(&format!("{name}: {value}\r\n"));
    }
    if method == "POST" {
        head.push_str(&format!("Content-Length: {}\r\n", body.len()));
    }
    // The daemon may answer and close before it has read everything.
    let _ = stream.write_all(format!("{head}\r\n").as_bytes()).and_then(|()| stream.write_all(body));
    let mut answer = Vec::new();
    let _ = stream.read_to_end(&mut answer);
    let text = String::from_utf8_lossy(&answer);
    let (head, body) = text
        .split_once("\r\n\r\n")
        .ok_or_else(|| std::io::Error::new(std::io::ErrorKind::UnexpectedEof, "no answer"))?;
    let status = head.split(' ').nth(1).and_then(|status| status.parse().ok()).expect("a status");
    let body = serde_json::from_str(body).unwrap_or(Value::Null);
    Ok(Answer { status, head: head.to_ascii_lowercase(), body })
}

impl Daemon {
    pub fn get(&self, path: &str) -> std::io::Result<Answer> {
        request(&self.socket, "GET", path, &[], b"")
    }

    pub fn post(&self, path: &str, body: &str) -> Answer {
        self.post_keyed(path, body, &[])
    }

    pub fn post_keyed(&self, path: &str, body: &str, headers: &[(&str, &str)]) -> Answer {
        request(&self.socket, "POST", path, headers, body.as_bytes()).expect("an answer")
    }

    pub fn log(&self, action: &str) -> String {
        let body = serde_json::json!({ "action": action, "category": "system" }).to_string();
        let answer = self.post("/v1/actions", &body);
        assert_eq!(answer.status, 202, "{answer:?}");
        answer.id()
    }

    pub fn status(&self) -> Value {
        self.get("/v1/status").expect("an answer").body
    }

    /// Waits until the status is as wanted.
    pub fn until(&self, what: &str, mut fits: impl FnMut(&Value) -> bool) -> Value {
        eventually(what, || self.get("/v1/status").ok().map(|answer| answer.body).filter(&mut fits))
    }

    /// The lines of `GET /v1/events`, from now on.
    pub fn events(&self) -> impl Iterator<Item = String> + use<> {
        let mut stream = UnixStream::connect(&self.socket).expect("connects");
        stream.set_read_timeout(Some(PATIENCE)).expect("a timeout");
        stream.write_all(b"GET /v1/events HTTP/1.1\r\nHost: localhost\r\n\r\n").expect("asks");
        BufReader::new(stream).lines().map_while(Result::ok)
    }

    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    pub fn signal(&self, name: &str) {
        let pid = self.pid().to_string();
        let status = Command::new("kill").args(["-s", name, &pid]).status().expect("kill");
        assert!(status.success());
    }

    /// SIGKILL.
    pub fn kill(mut self) {
        self.stopped = true;
        self.child.kill().expect("kill");
        self.child.wait().expect("wait");
    }

    /// SIGTERM, and how it ended.
    pub fn stop(mut self) -> (ExitStatus, Duration) {
        let began = Instant::now();
        self.signal("TERM");
        let status = self.wait();
        (status, began.elapsed())
    }

    pub fn wait(&mut self) -> ExitStatus {
        let status = eventually("the daemon ends", || self.child.try_wait().expect("its status"));
        self.stopped = true;
        status
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        if self.stopped {
            return;
        }
        // In order, so that the agent's process and all it has started end as well.
        let _ = Command::new("kill").arg(self.pid().to_string()).status();
        let began = Instant::now();
        while began.elapsed() < PATIENCE && matches!(self.child.try_wait(), Ok(None)) {
            std::thread::sleep(Duration::from_millis(20));
        }
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
