//! The real server as a process: started on a free port with a data directory of its own, killed, restarted.

use std::fs::{self, File};
use std::net::SocketAddr;
use std::os::unix::process::ExitStatusExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Output, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};
use tempfile::TempDir;

use super::database::{self, Database, Store};
use super::http::Call;
use super::port;

/// The program under test.
const PROGRAM: &str = env!("CARGO_BIN_EXE_otonix-control-plane");
/// Longest that a start may take on a busy machine.
const START: Duration = Duration::from_secs(60);

/// How to start a server.
#[derive(Debug, Clone)]
pub struct Options {
    database: Database,
    via: Option<SocketAddr>,
    args: Vec<String>,
    env: Vec<(String, String)>,
    listen: String,
    dir: Option<Arc<TempDir>>,
    operator: Option<String>,
}

impl Options {
    /// With a flag more.
    pub fn arg(mut self, flag: &str, value: &str) -> Self {
        self.args.extend([flag.to_owned(), value.to_owned()]);
        self
    }

    /// With a variable in its environment.
    pub fn env(mut self, name: &str, value: &str) -> Self {
        self.env.push((name.to_owned(), value.to_owned()));
        self
    }

    /// Whose operator token is known beforehand.
    pub fn operator(mut self, token: &str) -> Self {
        self.operator = Some(token.to_owned());
        self
    }

    /// Reaching its PostgreSQL through another address than PostgreSQL's own; `None`: directly.
    pub fn via(mut self, addr: Option<SocketAddr>) -> Self {
        self.via = addr;
        self
    }

    /// Where every caller must show who they are.
    pub fn guarded(self) -> Self {
        self.arg("--mode", "guarded")
    }

    /// Listening somewhere else than on 127.0.0.1 with any port.
    pub fn listen(mut self, address: &str) -> Self {
        address.clone_into(&mut self.listen);
        self
    }

    /// Starts it; returns when it is ready.
    pub async fn start(self) -> Server {
        let dir = self.dir.clone().unwrap_or_else(|| Arc::new(tempfile::tempdir().expect("a directory")));
        let mut server = Server {
            addr: SocketAddr::from(([127, 0, 0, 1], 0)),
            operator: self.operator.clone().unwrap_or_default(),
            child: None,
            dir,
            options: self,
        };
        server.launch().await;
        server
    }
}

/// A running server (or one that a test has stopped).
#[derive(Debug)]
pub struct Server {
    pub addr: SocketAddr,
    /// The operator token.
    pub operator: String,
    child: Option<Child>,
    dir: Arc<TempDir>,
    options: Options,
}

impl Server {
    /// One with default options on a fresh database.
    pub async fn start(store: Store) -> Self {
        Self::with(store).await.start().await
    }

    /// Options for one on a fresh database.
    pub async fn with(store: Store) -> Options {
        Self::on(Database::fresh(store).await)
    }

    /// Options for one on a database.
    pub fn on(database: Database) -> Options {
        Options {
            database,
            via: None,
            args: Vec::new(),
            env: Vec::new(),
            listen: port::address(),
            dir: None,
            operator: None,
        }
    }

    /// A second server on the same database, with a data directory of its own.
    pub async fn replica(&self) -> Self {
        self.replica_via(self.options.via).await
    }

    /// The same, reaching PostgreSQL through an address.
    pub async fn replica_via(&self, addr: Option<SocketAddr>) -> Self {
        let mut options = self.options.clone().via(addr);
        options.operator = Some(self.operator.clone());
        options.listen = port::address();
        options.dir = None;
        options.start().await
    }

    fn command(&self) -> Command {
        let mut command = Command::new(PROGRAM);
        command.env_clear().current_dir(self.dir.path());
        if let Some(path) = std::env::var_os("PATH") {
            command.env("PATH", path);
        }
        command.stdin(Stdio::null());
        command
    }

    fn place(&self, command: &mut Command) {
        command.arg("--data-dir").arg(self.data_dir());
        if let Some(url) = self.options.database.url(self.options.via) {
            command.args(["--database", &url]);
        }
    }

    async fn launch(&mut self) {
        let data = self.data_dir();
        fs::create_dir_all(&data).expect("our directory");
        let listen_file = data.join("listen");
        let _not_there_yet = fs::remove_file(&listen_file);
        let log = File::options().create(true).append(true).open(self.log_path()).expect("our directory");
        let mut command = self.command();
        self.place(&mut command);
        command.args(["--listen", &self.options.listen, "--log-format", "human"]);
        command.args(&self.options.args);
        command.envs(self.options.env.iter().map(|(name, value)| (name, value)));
        command.stdout(log.try_clone().expect("a file")).stderr(log);
        self.child = Some(command.spawn().expect("the server's program is built"));
        let deadline = Instant::now() + START;
        loop {
            if let Some(addr) =
                fs::read_to_string(&listen_file).ok().and_then(|text| text.trim().parse().ok())
            {
                self.addr = addr;
                let ready = Call::new(addr, "GET", "/readyz").attempt().await;
                if ready.is_ok_and(|answer| answer.status == 200) {
                    break;
                }
            }
            if let Some(status) = self.exited() {
                panic!("the server ended with {status}: {}", self.log());
            }
            assert!(Instant::now() < deadline, "the server did not start: {}", self.log());
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        // Clients come back to the address they know.
        self.options.listen = self.addr.to_string();
        if self.operator.is_empty() {
            let token = fs::read_to_string(data.join("operator-token")).expect("the operator token is shown");
            token.trim().clone_into(&mut self.operator);
        }
    }

    /// Where the server keeps its files.
    pub fn data_dir(&self) -> PathBuf {
        self.dir.path().join("data")
    }

    fn log_path(&self) -> PathBuf {
        self.dir.path().join("log")
    }

    /// What the server has logged.
    pub fn log(&self) -> String {
        fs::read_to_string(self.log_path()).unwrap_or_default()
    }

    /// The server's process id.
    pub fn pid(&self) -> u32 {
        self.child.as_ref().expect("it runs").id()
    }

    /// How the server ended, if it has.
    pub fn exited(&mut self) -> Option<ExitStatus> {
        self.child.as_mut().and_then(|child| child.try_wait().expect("our child"))
    }

    /// SIGKILL.
    pub fn kill(&mut self) {
        if let Some(mut child) = self.child.take() {
            child.kill().expect("our child");
            child.wait().expect("our child");
        }
    }

    /// Sends SIGTERM.
    pub fn terminate(&self) {
        self.signal(Signal::TERM);
    }

    /// Sends a signal.
    pub fn signal(&self, signal: Signal) {
        let pid = i32::try_from(self.pid()).ok().and_then(Pid::from_raw).expect("a process id");
        kill_process(pid, signal).expect("our child");
    }

    /// SIGTERM, then waits for a clean end.
    pub async fn stop(&mut self) {
        self.terminate();
        self.stop_already_asked().await;
    }

    /// Waits for the clean end that was asked for.
    pub async fn stop_already_asked(&mut self) {
        let deadline = Instant::now() + Duration::from_secs(15);
        loop {
            if let Some(status) = self.exited() {
                assert!(
                    status.success(),
                    "ended with {status} (signal {:?}): {}",
                    status.signal(),
                    self.log()
                );
                break;
            }
            assert!(Instant::now() < deadline, "did not stop in time: {}", self.log());
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        self.child = None;
    }

    /// SIGKILL, then up again on the same data and address.
    pub async fn crash(&mut self) {
        self.kill();
        self.launch().await;
    }

    /// Up again on the same data and address, with flags added.
    pub async fn restart_with(&mut self, args: &[&str]) {
        if self.child.is_some() {
            self.stop().await;
        }
        self.options.args.extend(args.iter().map(|arg| (*arg).to_owned()));
        self.launch().await;
    }

    /// Runs a subcommand of the program on this server's data.
    pub fn subcommand(&self, name: &str) -> Output {
        self.run_with(&[name])
    }

    /// Runs the program on this server's data with arguments, to its end (at most a while).
    pub fn run_with(&self, args: &[&str]) -> Output {
        let mut command = self.command();
        command.args(args);
        self.place(&mut command);
        command.stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = command.spawn().expect("the server's program is built");
        let deadline = Instant::now() + START;
        while child.try_wait().expect("our child").is_none() {
            if Instant::now() > deadline {
                child.kill().expect("our child");
                panic!("{args:?} did not end");
            }
            std::thread::sleep(Duration::from_millis(10));
        }
        child.wait_with_output().expect("our child")
    }

    /// Runs `audit`, which must find every sum right.
    pub fn audit(&self) {
        let output = self.subcommand("audit");
        let said =
            format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
        assert!(output.status.success(), "audit: {said}");
        assert!(said.contains("sum 0 USDC"), "audit: {said}");
    }

    /// Runs a statement on the database, beside the server: for what no route can bring about yet.
    pub async fn sql(&self, statement: &str) -> u64 {
        database::execute(&self.database_url(), statement).await
    }

    /// The URL of its database.
    pub fn database_url(&self) -> String {
        let url = self.options.database.url(None);
        url.unwrap_or_else(|| format!("sqlite://{}", self.sqlite_file().display()))
    }

    /// The embedded database.
    pub fn sqlite_file(&self) -> PathBuf {
        self.data_dir().join("otonix.db")
    }

    /// A request to this server.
    pub fn call(&self, method: &str, path: &str) -> Call {
        Call::new(self.addr, method, path)
    }

    pub fn get(&self, path: &str) -> Call {
        self.call("GET", path)
    }

    pub fn post(&self, path: &str) -> Call {
        self.call("POST", path)
    }

    pub fn patch(&self, path: &str) -> Call {
        self.call("PATCH", path)
    }

    pub fn delete(&self, path: &str) -> Call {
        self.call("DELETE", path)
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        if let Some(mut child) = self.child.take() {
            let _ended_already = child.kill();
            let _ended_already = child.wait();
        }
        if std::thread::panicking() {
            let log = self.log();
            let lines: Vec<&str> = log.lines().collect();
            let tail = &lines[lines.len().saturating_sub(40)..];
            eprintln!("--- the server's last words ---\n{}\n---", tail.join("\n"));
        }
    }
}

/// Whether a file under the directory contains the text.
pub fn is_written_under(dir: &Path, text: &str) -> bool {
    let needle = text.as_bytes();
    let entries = fs::read_dir(dir).expect("our directory");
    entries.flatten().any(|entry| {
        let path = entry.path();
        if path.is_dir() {
            return is_written_under(&path, text);
        }
        let bytes = fs::read(&path).unwrap_or_default();
        bytes.windows(needle.len()).any(|window| window == needle)
    })
}
