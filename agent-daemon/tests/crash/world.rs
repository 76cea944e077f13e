//! One agent's world: a control plane, the network to it, and machines with the agent's state directory.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use serde_json::Value;
use tempfile::TempDir;

use crate::books::{Books, Found};
use crate::proxy::Proxy;
use crate::random::Random;
use crate::server::Server;
use crate::support::{eventually, program, request};
use crate::writers::Writers;

/// The longest that a backlog may take to be delivered.
const SETTLE: Duration = Duration::from_secs(180);
/// What every agent is given, whole USDC.
const GRANT: u32 = 10_000;

/// Sends a signal to one process.
pub fn signal(pid: u32, name: &str) {
    let status = Command::new("kill").args(["-s", name, &pid.to_string()]).status().expect("kill");
    assert!(status.success(), "SIG{name} to {pid}");
}

/// Whether a process is stopped by SIGSTOP, so that nothing of it moves any more.
fn is_stopped(pid: u32) -> bool {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    stat.rsplit_once(") ").is_some_and(|(_, rest)| rest.starts_with('T'))
}

/// A state directory and the daemon that runs on it, if any; killed when dropped.
#[derive(Debug)]
pub struct Machine {
    state: PathBuf,
    log: PathBuf,
    child: Option<Child>,
    /// Words before the program's own, e.g. for limits.
    pub before: Vec<String>,
    pub starts: u64,
}

impl Machine {
    /// One whose state directory is this.
    pub fn new(state: PathBuf, log: PathBuf) -> Self {
        Self { state, log, child: None, before: Vec::new(), starts: 0 }
    }

    pub fn state(&self) -> &Path {
        &self.state
    }

    pub fn socket(&self) -> PathBuf {
        self.state.join("agent.sock")
    }

    fn command(&self) -> Command {
        let mut command = match self.before.split_first() {
            Some((first, more)) => {
                let mut command = Command::new(first);
                command.args(more).arg(program());
                command
            }
            None => Command::new(program()),
        };
        command.env_clear().env("PATH", "/usr/bin:/bin").env("OTONIX_STATE_DIR", &self.state);
        command.current_dir("/").stdin(Stdio::null());
        command
    }

    /// Starts the daemon; does not wait for anything.
    pub fn start(&mut self) {
        assert!(self.child.is_none(), "it runs");
        let log = File::options().create(true).append(true).open(&self.log).expect("a log");
        let mut command = self.command();
        command.args(["--log", "info", "run"]).stdout(log.try_clone().expect("a file")).stderr(log);
        self.child = Some(command.spawn().expect("the daemon starts"));
        self.starts += 1;
    }

    /// Starts the daemon and waits for its local API.
    pub fn start_and_wait(&mut self) {
        self.start();
        eventually("the daemon answers", || {
            assert!(self.ended().is_none(), "the daemon ended\n{}", self.last_words());
            self.status()
        });
    }

    pub fn pid(&self) -> u32 {
        self.child.as_ref().expect("it runs").id()
    }

    /// How the daemon ended by itself.
    pub fn ended(&mut self) -> Option<ExitStatus> {
        self.child.as_mut().and_then(|child| child.try_wait().expect("its status"))
    }

    /// SIGKILL. A daemon that had ended by itself is a failure.
    pub fn kill(&mut self) {
        if let Some(ended) = self.ended() {
            panic!("the daemon ended by itself: {ended}\n{}", self.last_words());
        }
        if let Some(mut child) = self.child.take() {
            child.kill().expect("kill");
            child.wait().expect("wait");
        }
    }

    /// SIGTERM, and a clean end.
    pub fn stop(&mut self) {
        signal(self.pid(), "TERM");
        let ended = eventually("the daemon ends", || self.ended());
        assert!(ended.success(), "{ended}\n{}", self.last_words());
        self.child = None;
    }

    /// What `GET /v1/status` says; none when nobody answers.
    pub fn status(&self) -> Option<Value> {
        let answer = request(&self.socket(), "GET", "/v1/status", &[], b"").ok()?;
        Some(answer.body).filter(Value::is_object)
    }

    /// A number of the status's `spool`.
    pub fn spool(&self, what: &str) -> u64 {
        let status = eventually("a status", || self.status());
        status["spool"][what].as_u64().unwrap_or_else(|| panic!("{what} in {status}"))
    }

    /// Waits until everything is delivered.
    pub fn settle(&mut self) {
        let began = Instant::now();
        loop {
            let status = self.status();
            if status
                .as_ref()
                .is_some_and(|status| status["spool"]["pending"] == 0 && status["connected"] == true)
            {
                return;
            }
            assert!(self.ended().is_none(), "the daemon ended\n{}", self.last_words());
            assert!(began.elapsed() < SETTLE, "not delivered: {status:?}\n{}", self.last_words());
            std::thread::sleep(Duration::from_millis(30));
        }
    }

    /// Copies the files of the state directory, with the daemon held still when it runs.
    pub fn copy_to(&self, to: &Path, still: bool) {
        let still = self.child.as_ref().filter(|_| still).map(Child::id);
        if let Some(pid) = still {
            signal(pid, "STOP");
            eventually("it stands still", || is_stopped(pid).then_some(()));
        }
        copy(&self.state, to);
        if let Some(pid) = still {
            signal(pid, "CONT");
        }
    }

    /// Puts a copy of the state directory in its place.
    pub fn put_back(&mut self, from: &Path) {
        assert!(self.child.is_none(), "it runs");
        fs::remove_dir_all(&self.state).expect("our directory");
        copy(from, &self.state);
    }

    fn last_words(&self) -> String {
        let log = fs::read_to_string(&self.log).unwrap_or_default();
        let lines: Vec<&str> = log.lines().collect();
        lines[lines.len().saturating_sub(40)..].join("\n")
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        if let Some(mut child) = self.child.take() {
            let _ = child.kill();
            let _ = child.wait();
        }
        if std::thread::panicking() {
            eprintln!("--- the daemon's last words ---\n{}\n---", self.last_words());
        }
    }
}

/// Copies a directory while somebody may be writing to it: a file that goes away meanwhile is left out.
pub fn copy(from: &Path, to: &Path) {
    fs::create_dir_all(to).expect("our directory");
    fs::set_permissions(to, fs::metadata(from).expect("there").permissions()).expect("ours");
    for entry in fs::read_dir(from).expect("our directory").flatten() {
        let Ok(kind) = entry.file_type() else { continue };
        let target = to.join(entry.file_name());
        if kind.is_dir() {
            copy(&entry.path(), &target);
        } else if kind.is_file() {
            let _ = fs::copy(entry.path(), target);
        }
    }
}

/// Everything that one agent meets.
pub struct World {
    pub machine: Machine,
    pub books: Books,
    pub proxy: Proxy,
    pub server: Server,
    pub agent: String,
    pub random: Random,
    dir: TempDir,
}

impl World {
    /// A control plane, a sound network, and a machine with a registered agent whose daemon does not run.
    pub fn new(what: &str, transport: &str) -> Self {
        Self::on(what, transport, None)
    }

    /// The same with the state directory in a place of its own.
    pub fn on(what: &str, transport: &str, place: Option<&Path>) -> Self {
        let mut random = Random::new(what);
        let dir = tempfile::tempdir().expect("a directory");
        let proxy = Proxy::start(random.split());
        let server = Server::start(&proxy.url());
        proxy.aim(Some(server.address()));
        let state = place.unwrap_or(dir.path()).join("state");
        let machine = Machine::new(state, dir.path().join("daemon.log"));
        let mut init = machine.command();
        init.env("OTONIX_API_KEY", server.key());
        init.args(["init", "--server", &proxy.url(), "--name", what, "--heartbeat-interval", "5"]);
        let output = init.output().expect("runs");
        assert!(output.status.success(), "{output:?}");
        let file = machine.state().join("agent.toml");
        let config = fs::read_to_string(&file).expect("agent.toml");
        let with_transport =
            config.replacen("[link]\n", &format!("[link]\ntransport = \"{transport}\"\n"), 1);
        assert_ne!(config, with_transport);
        fs::write(&file, with_transport).expect("agent.toml");
        let id = config.lines().find_map(|line| line.strip_prefix("id = ")).expect("an id");
        let agent = id.trim_matches('"').to_owned();
        server.grant(&agent, GRANT);
        Self { machine, books: Books::default(), proxy, server, agent, random, dir }
    }

    /// A place for other files.
    pub fn place(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// Writers on a machine's socket.
    pub fn writers(&mut self, socket: PathBuf, count: u64, pause_ms: u64) -> Writers {
        Writers::start(&self.books, socket, count, pause_ms, &mut self.random)
    }

    /// Another machine, with what it says going to a log of its own.
    pub fn another_machine(&self, name: &str) -> Machine {
        Machine::new(self.place(name).join("state"), self.place(&format!("{name}.log")))
    }

    /// The server is out of reach until it is aimed at again.
    pub fn disconnect(&self) {
        self.proxy.aim(None);
        self.proxy.cut();
    }

    /// The server is reached.
    pub fn connect(&self) {
        self.proxy.aim(Some(self.server.address()));
    }

    /// Compares database and books; whatever is wrong in the database is a failure, what is missing is returned.
    pub fn look(&self) -> Found {
        self.books.compare(&self.server, &self.agent, u64::from(GRANT) * 1_000_000)
    }

    /// Compares database and books; nothing may be missing.
    pub fn check(&self) -> Found {
        let found = self.look();
        assert!(found.missing.is_empty(), "accepted and not in the database: {:?}", found.missing);
        found
    }

    /// How many lives of the spool the server has seen.
    pub fn epochs(&self) -> u64 {
        self.server.count("SELECT COUNT(*) FROM streams WHERE epoch <> ''")
    }
}
