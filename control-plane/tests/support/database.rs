//! Databases for tests: a SQLite file per server, or a fresh database in a PostgreSQL of our own.
//!
//! The PostgreSQL is made once per run with `initdb` (as an unprivileged user when we are root) and ends with the
//! test process, however that ends: a watchdog holds the other end of a pipe. `TEST_DATABASE_URL` names one that
//! is there already instead. Tests of crashes start their own with the default durability.

use std::fmt::Write as _;
use std::fs;
use std::net::SocketAddr;
use std::os::unix::fs::{PermissionsExt as _, chown};
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex, OnceLock};
use std::thread;
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};
use sqlx::postgres::PgConnection;
use sqlx::sqlite::SqliteConnectOptions;
use sqlx::{Connection as _, Executor as _, SqliteConnection};

use super::port;

/// Where a test keeps its data.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Store {
    Sqlite,
    Postgres,
}

/// What PostgreSQL does at a commit.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Durability {
    /// As PostgreSQL comes: every commit is flushed.
    Default,
    /// Nothing is flushed; for tests that kill only the control plane.
    None,
}

/// A PostgreSQL server of our own.
#[derive(Debug)]
pub struct Cluster {
    programs: PathBuf,
    dir: PathBuf,
    port: u16,
    durability: Durability,
    user: Option<(u32, u32)>,
    postgres: Mutex<Option<Child>>,
    /// Ends what is left and removes the directory when its input closes, that is with us.
    watchdog: Child,
}

impl Cluster {
    /// Makes and starts one.
    pub fn start(durability: Durability) -> Self {
        let programs = programs();
        let dir = tempfile::Builder::new()
            .prefix("otonix-pg-")
            .tempdir()
            .expect("the temporary directory can be written")
            .keep();
        let user = unprivileged();
        if let Some((uid, gid)) = user {
            chown(&dir, Some(uid), Some(gid)).expect("root may give a directory away");
        }
        fs::set_permissions(&dir, fs::Permissions::from_mode(0o700)).expect("our directory");
        let watchdog = watchdog(&dir, user);
        let made = as_user(&programs.join("initdb"), user)
            .args(["--no-sync", "--auth=trust", "--username=otonix", "--encoding=UTF8", "--locale=C"])
            .arg("--pgdata")
            .arg(dir.join("data"))
            .current_dir(&dir)
            .output()
            .expect("initdb runs");
        assert!(made.status.success(), "initdb failed: {}", String::from_utf8_lossy(&made.stderr));
        let cluster = Self {
            programs,
            port: port::lasting(),
            dir,
            durability,
            user,
            postgres: Mutex::new(None),
            watchdog,
        };
        cluster.run();
        cluster
    }

    /// The one that all tests of this run share.
    fn shared() -> &'static Self {
        static SHARED: OnceLock<Cluster> = OnceLock::new();
        SHARED.get_or_init(|| Self::start(Durability::None))
    }

    /// Starts the server on its data; returns when it accepts connections.
    pub fn run(&self) {
        let deadline = Instant::now() + Duration::from_secs(60);
        loop {
            let mut child = self.spawn();
            while child.try_wait().expect("our child").is_none() {
                if self.accepts() {
                    *self.postgres.lock().expect("no panic while held") = Some(child);
                    return;
                }
                assert!(Instant::now() < deadline, "PostgreSQL did not start: {}", self.log());
                thread::sleep(Duration::from_millis(20));
            }
            // After a kill the old backends may still hold the shared memory for a moment.
            assert!(Instant::now() < deadline, "PostgreSQL did not start: {}", self.log());
            thread::sleep(Duration::from_millis(100));
        }
    }

    fn spawn(&self) -> Child {
        let log = fs::OpenOptions::new()
            .create(true)
            .append(true)
            .open(self.dir.join("log"))
            .expect("our directory");
        let mut command = as_user(&self.programs.join("postgres"), self.user);
        command.arg("-D").arg(self.dir.join("data"));
        let mut settings = vec![
            format!("port={}", self.port),
            "listen_addresses=127.0.0.1".to_owned(),
            format!("unix_socket_directories={}", self.dir.display()),
            "max_connections=300".to_owned(),
            "shared_buffers=64MB".to_owned(),
        ];
        if self.durability == Durability::None {
            settings
                .extend(["fsync=off", "synchronous_commit=off", "full_page_writes=off"].map(str::to_owned));
        }
        for setting in settings {
            command.arg("-c").arg(setting);
        }
        command
            .current_dir(&self.dir)
            .stdin(Stdio::null())
            .stdout(log.try_clone().expect("a file"))
            .stderr(log)
            .spawn()
            .expect("postgres runs")
    }

    fn accepts(&self) -> bool {
        Command::new(self.programs.join("pg_isready"))
            .args(["-q", "-h", "127.0.0.1", "-p", &self.port.to_string()])
            .status()
            .is_ok_and(|status| status.success())
    }

    fn log(&self) -> String {
        fs::read_to_string(self.dir.join("log")).unwrap_or_default()
    }

    /// Where it listens.
    pub fn addr(&self) -> SocketAddr {
        SocketAddr::from(([127, 0, 0, 1], self.port))
    }

    /// Ends the server at once by its own means (an immediate shutdown), without a checkpoint.
    pub fn quit(&self) {
        if let Some(mut child) = self.postgres.lock().expect("no panic while held").take() {
            let pid = i32::try_from(child.id()).ok().and_then(Pid::from_raw).expect("a process id");
            kill_process(pid, Signal::QUIT).expect("our child");
            child.wait().expect("our child");
        }
    }

    /// Ends the server at once, losing what it had not flushed.
    pub fn kill(&self) {
        if let Some(mut child) = self.postgres.lock().expect("no panic while held").take() {
            child.kill().expect("our child");
            child.wait().expect("our child");
        }
    }

    /// A fresh database, dropped with the last handle to it.
    pub async fn database(&self) -> Database {
        Database::make(&format!("postgres://otonix@127.0.0.1:{}/postgres", self.port)).await
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        self.kill();
        drop(self.watchdog.stdin.take());
        let _nothing_to_say = self.watchdog.wait();
    }
}

/// A database for one server, or for several replicas.
#[derive(Debug, Clone)]
pub enum Database {
    /// Each server makes its own file in its data directory.
    Sqlite,
    /// A database of its own in a PostgreSQL.
    Postgres(Arc<Postgres>),
}

/// Dropped in the server when the last handle goes.
#[derive(Debug)]
pub struct Postgres {
    admin: String,
    name: String,
    pub url: String,
}

impl Database {
    /// A fresh one.
    pub async fn fresh(store: Store) -> Self {
        match store {
            Store::Sqlite => Self::Sqlite,
            Store::Postgres => match std::env::var("TEST_DATABASE_URL") {
                Ok(url) if !url.is_empty() => Self::make(&url).await,
                _ => tokio::task::spawn_blocking(Cluster::shared).await.expect("it starts").database().await,
            },
        }
    }

    /// Its URL, through another address than its own when one is given; the embedded one has none.
    pub fn url(&self, via: Option<SocketAddr>) -> Option<String> {
        let Self::Postgres(postgres) = self else { return None };
        let Some(via) = via else { return Some(postgres.url.clone()) };
        let (scheme, rest) = postgres.url.split_once("://").expect("a URL");
        let (authority, path) = rest.split_once('/').expect("a URL with a database");
        let user = authority.rsplit_once('@').map_or("", |(user, _)| user);
        Some(format!("{scheme}://{user}@{via}/{path}"))
    }

    async fn make(admin: &str) -> Self {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let name = format!("otonix_test_{}_{}", std::process::id(), COUNT.fetch_add(1, Ordering::Relaxed));
        run_sql(admin, &format!("CREATE DATABASE {name}")).await;
        let (server, query) = admin
            .split_once('?')
            .map_or((admin, String::new()), |(server, query)| (server, format!("?{query}")));
        let host = match server.trim_end_matches('/').rsplit_once('/') {
            Some((host, _)) if !host.ends_with('/') => host,
            _ => server.trim_end_matches('/'),
        };
        let url = format!("{host}/{name}{query}");
        Self::Postgres(Arc::new(Postgres { admin: admin.to_owned(), name, url }))
    }
}

impl Drop for Postgres {
    fn drop(&mut self) {
        let (admin, sql) = (self.admin.clone(), format!("DROP DATABASE {} WITH (FORCE)", self.name));
        let dropper = thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
            runtime.expect("a runtime").block_on(async move {
                if let Ok(mut connection) = PgConnection::connect(&admin).await {
                    let _gone_already =
                        sqlx::raw_sql(sqlx::AssertSqlSafe(sql)).execute(&mut connection).await;
                }
            });
        });
        let _nothing_to_say = dropper.join();
    }
}

async fn run_sql(url: &str, sql: &str) {
    let mut connection = PgConnection::connect(url).await.expect("PostgreSQL accepts us");
    sqlx::raw_sql(sqlx::AssertSqlSafe(sql.to_owned()))
        .execute(&mut connection)
        .await
        .expect("the statement runs");
    connection.close().await.expect("it closes");
}

/// The directory with `initdb` and `postgres`: on the `PATH`, or where distributions put them.
fn programs() -> PathBuf {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let mut versions: Vec<PathBuf> = fs::read_dir("/usr/lib/postgresql")
        .map(|dirs| dirs.flatten().map(|dir| dir.path().join("bin")).collect())
        .unwrap_or_default();
    versions.sort();
    versions.reverse();
    versions
        .into_iter()
        .chain(std::env::split_paths(&path))
        .chain(["/usr/local/pgsql/bin", "/usr/pgsql/bin", "/opt/homebrew/bin"].map(PathBuf::from))
        .find(|dir| ["initdb", "postgres", "pg_isready"].iter().all(|program| dir.join(program).exists()))
        .expect("PostgreSQL is installed (initdb, postgres), or TEST_DATABASE_URL is set")
}

/// PostgreSQL refuses to run as root.
fn unprivileged() -> Option<(u32, u32)> {
    if !rustix::process::geteuid().is_root() {
        return None;
    }
    let users = fs::read_to_string("/etc/passwd").expect("there are users");
    let find = |name: &str| {
        users.lines().find_map(|line| {
            let mut parts = line.split(':');
            (parts.next() == Some(name)).then_some(())?;
            Some((parts.nth(1)?.parse().ok()?, parts.next()?.parse().ok()?))
        })
    };
    Some(find("postgres").or_else(|| find("nobody")).expect("there is an unprivileged user"))
}

fn as_user(program: &Path, user: Option<(u32, u32)>) -> Command {
    let mut command = Command::new(program);
    if let Some((uid, gid)) = user {
        command.uid(uid).gid(gid);
    }
    command.env_remove("PGDATA").env("LC_ALL", "C");
    command
}

/// Waits for the end of its input, that is of this process, then ends PostgreSQL and removes its directory.
fn watchdog(dir: &Path, user: Option<(u32, u32)>) -> Child {
    let mut script = String::from("trap '' INT TERM HUP QUIT\ncat >/dev/null\n");
    let _infallible = write!(
        script,
        "pid=$(head -n 1 {dir}/data/postmaster.pid 2>/dev/null)\n\
         if [ -n \"$pid\" ] && [ \"$(cat /proc/$pid/comm 2>/dev/null)\" = postgres ]; then\n\
         kill -QUIT $pid; i=0\n\
         while kill -0 $pid 2>/dev/null && [ $i -lt 100 ]; do sleep 0.05; i=$((i+1)); done\n\
         fi\n\
         rm -rf {dir}\n",
        dir = dir.display()
    );
    as_user(Path::new("/bin/sh"), user)
        .arg("-c")
        .arg(script)
        .current_dir("/")
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .process_group(0)
        .spawn()
        .expect("there is a shell")
}

/// Runs a statement on a database, beside whoever uses it; tells how many rows it changed.
pub async fn execute(url: &str, statement: &str) -> u64 {
    let statement = sqlx::AssertSqlSafe(statement.to_owned());
    let Some(file) = url.strip_prefix("sqlite://") else {
        let mut connection = PgConnection::connect(url).await.expect("it accepts us");
        return connection.execute(statement).await.expect("the statement runs").rows_affected();
    };
    let options = SqliteConnectOptions::new().filename(file).busy_timeout(Duration::from_secs(10));
    let mut connection = SqliteConnection::connect_with(&options).await.expect("the file opens");
    connection.execute(statement).await.expect("the statement runs").rows_affected()
}
