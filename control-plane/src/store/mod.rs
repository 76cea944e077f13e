//! One store, two databases. Nothing outside this folder contains SQL.
//!
//! Reads run on a pool, each in its own task, and never open a transaction, so that no connection can go back to
//! the pool inside one. Every write goes through [`writer`], which commits whatever is
//! queued in one transaction; the store never answers a write before its commit.

use std::path::Path;
use std::str::FromStr as _;
use std::time::Duration;

use futures_util::future::BoxFuture;
use sqlx::postgres::{PgConnectOptions, PgConnection, PgPool, PgPoolOptions};
use sqlx::sqlite::{
    SqliteConnectOptions, SqliteConnection, SqliteJournalMode, SqlitePool, SqlitePoolOptions,
    SqliteSynchronous,
};
use sqlx::{ConnectOptions as _, Connection as _};

pub mod actions;
pub mod agents;
pub mod audit;
pub mod batch;
pub mod births;
pub mod commands;
pub mod counters;
pub mod cursors;
pub mod domains;
pub mod enrolment;
pub mod healings;
pub mod idempotency;
pub mod keeping;
pub mod keys;
pub mod laws;
pub mod leases;
pub mod ledger;
pub mod list;
pub mod migrate;
pub mod orders;
pub mod payments;
pub mod presentations;
pub mod purchases;
pub mod receipts;
pub mod refunds;
pub mod registrations;
pub mod replicas;
pub mod retention;
pub mod sandboxes;
pub mod settings;
pub mod settlements;
pub mod sql;
pub mod streams;
pub mod tenancies;
pub mod transactions;
pub mod usage;
pub mod warnings;
pub mod writer;

/// Connections of the read pool.
const READERS: u32 = 8;
/// How long a read waits for a connection.
const ACQUIRE_TIMEOUT: Duration = Duration::from_secs(3);
/// How often a read waits again while every connection is there and at work.
const BUSY_WAITS: usize = 4;
/// How long a first connection is tried at start.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);
/// A pooled connection that rested so long is tried before it is used.
const RESTED: Duration = Duration::from_millis(500);
/// How long a read may take, whatever the database does.
const READ_TIMEOUT: Duration = Duration::from_secs(20);
/// Longest statement that a request may cause on PostgreSQL.
const STATEMENT_TIMEOUT: &str = "15s";

/// Why the store could not do it.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// The database cannot be reached, or did not answer. A write may have happened.
    #[error("the database is unavailable")]
    Unavailable(#[source] sqlx::Error),
    /// The writer's queue is full.
    #[error("the write queue is full")]
    QueueFull,
    /// A unique value is taken; the name of the constraint where the database tells it.
    #[error("a unique value is taken")]
    Taken(String),
    /// Another writer was at the same rows; what can be tried again is.
    #[error("another writer was faster")]
    LostRace,
    /// A row cannot be decoded.
    #[error("corrupt {table}.{column}")]
    Corrupt {
        /// The table.
        table: &'static str,
        /// The column.
        column: &'static str,
    },
    /// The database refused a statement.
    #[error("the database refused a statement")]
    Sql(#[source] sqlx::Error),
}

impl StoreError {
    /// Whoever was to answer is gone.
    pub fn unanswered() -> Self {
        Self::Unavailable(sqlx::Error::WorkerCrashed)
    }

    /// The same for another waiter of the same transaction.
    pub fn again(&self) -> Self {
        match self {
            Self::Unavailable(_) => Self::Unavailable(sqlx::Error::WorkerCrashed),
            Self::QueueFull => Self::QueueFull,
            Self::LostRace => Self::LostRace,
            Self::Taken(what) => Self::Taken(what.clone()),
            Self::Corrupt { table, column } => Self::Corrupt { table, column },
            Self::Sql(_) => Self::Sql(sqlx::Error::RowNotFound),
        }
    }
}

impl From<sqlx::Error> for StoreError {
    fn from(error: sqlx::Error) -> Self {
        match &error {
            sqlx::Error::Database(db) if db.is_unique_violation() => {
                Self::Taken(db.constraint().map_or_else(|| db.message().to_owned(), str::to_owned))
            }
            sqlx::Error::Database(db) => match db.code().as_deref() {
                // PostgreSQL: a deadlock, or a lock that was not to be had.
                Some(code) if code.starts_with("40") || code == "55P03" => Self::LostRace,
                // PostgreSQL: connection exceptions, operator intervention, resources.
                Some(code) if code.starts_with("08") || code.starts_with("57") || code.starts_with("53") => {
                    Self::Unavailable(error)
                }
                // SQLite: busy, locked, I/O, full, cannot open.
                Some("5" | "6" | "10" | "13" | "14" | "261" | "517" | "778" | "1034" | "1290" | "2314") => {
                    Self::Unavailable(error)
                }
                _ => Self::Sql(error),
            },
            sqlx::Error::Io(_)
            | sqlx::Error::Tls(_)
            | sqlx::Error::Protocol(_)
            | sqlx::Error::PoolTimedOut
            | sqlx::Error::PoolClosed
            | sqlx::Error::WorkerCrashed => Self::Unavailable(error),
            _ => Self::Sql(error),
        }
    }
}

/// Which database.
#[derive(Debug, Clone)]
pub enum Db {
    /// Embedded: a pool of readers; the writer has a connection of its own.
    Sqlite {
        /// Read-only connections.
        readers: SqlitePool,
        /// How the writer connects.
        writer: SqliteConnectOptions,
    },
    /// PostgreSQL.
    Postgres {
        /// Connections for reads.
        readers: PgPool,
        /// How writers and the listener connect.
        writer: PgConnectOptions,
    },
}

/// One connection of either database.
#[derive(Debug)]
pub enum Conn {
    /// SQLite, a writer's own.
    Sqlite(SqliteConnection),
    /// SQLite, lent by the readers.
    SqlitePooled(sqlx::pool::PoolConnection<sqlx::Sqlite>),
    /// PostgreSQL, a writer's own.
    Postgres(PgConnection),
    /// PostgreSQL, lent by the readers.
    PostgresPooled(sqlx::pool::PoolConnection<sqlx::Postgres>),
}

/// Runs the same statement on whichever database the connection has.
macro_rules! on {
    ($conn:expr, |$c:ident| $body:expr) => {
        match $conn {
            $crate::store::Conn::Sqlite(inner) => {
                let $c = &mut *inner;
                $body
            }
            $crate::store::Conn::SqlitePooled(inner) => {
                let $c = &mut **inner;
                $body
            }
            $crate::store::Conn::Postgres(inner) => {
                let $c = &mut *inner;
                $body
            }
            $crate::store::Conn::PostgresPooled(inner) => {
                let $c = &mut **inner;
                $body
            }
        }
    };
}
pub(crate) use on;

impl Conn {
    /// Whether this is PostgreSQL: for the few statements that need two texts.
    pub fn is_postgres(&self) -> bool {
        matches!(self, Self::Postgres(_) | Self::PostgresPooled(_))
    }

    /// Executes a statement without parameters.
    ///
    /// # Errors
    /// [`StoreError`] when the database refuses or is away.
    pub async fn run(&mut self, sql: &'static str) -> Result<u64, StoreError> {
        Ok(on!(self, |c| sqlx::query(sql).execute(c).await?.rows_affected()))
    }

    /// Begins a transaction that will write.
    ///
    /// # Errors
    /// [`StoreError`] when the database refuses or is away.
    pub async fn begin(&mut self) -> Result<(), StoreError> {
        self.run_raw(if self.is_postgres() { "BEGIN" } else { "BEGIN IMMEDIATE" }).await
    }

    /// Executes statements in one round trip, without parameters or plans.
    ///
    /// # Errors
    /// [`StoreError`] when the database refuses or is away.
    pub async fn run_raw(&mut self, sql: &'static str) -> Result<(), StoreError> {
        on!(self, |c| sqlx::raw_sql(sql).execute(c).await.map(|_| ())?);
        Ok(())
    }
}

impl Db {
    /// Opens the database of a URL, `sqlite://path` or `postgres://…`, without migrating it.
    ///
    /// # Errors
    /// When the URL cannot be read or the database cannot be opened.
    pub async fn connect(url: &str) -> anyhow::Result<Self> {
        if let Some(path) = url.strip_prefix("sqlite://") {
            return Self::connect_sqlite(Path::new(path)).await;
        }
        if url.starts_with("postgres://") || url.starts_with("postgresql://") {
            return Self::connect_postgres(url).await;
        }
        anyhow::bail!("the database URL must start with sqlite:// or postgres://")
    }

    async fn connect_sqlite(path: &Path) -> anyhow::Result<Self> {
        let options = SqliteConnectOptions::new()
            .filename(path)
            .create_if_missing(true)
            .journal_mode(SqliteJournalMode::Wal)
            .synchronous(SqliteSynchronous::Full)
            .busy_timeout(Duration::from_secs(5))
            .foreign_keys(true)
            .pragma("wal_autocheckpoint", "2000")
            .pragma("cache_size", "-8000")
            .disable_statement_logging();
        // The file and its WAL must exist before it can be opened read-only.
        options.connect().await?.close().await?;
        let readers = SqlitePoolOptions::new()
            .max_connections(4)
            .acquire_timeout(ACQUIRE_TIMEOUT)
            .connect_lazy_with(options.clone().pragma("query_only", "ON"));
        Ok(Self::Sqlite { readers, writer: options })
    }

    async fn connect_postgres(url: &str) -> anyhow::Result<Self> {
        let options = PgConnectOptions::from_str(url)?
            .application_name("otonix-control-plane")
            .options([
                ("statement_timeout", STATEMENT_TIMEOUT),
                ("lock_timeout", "5s"),
                ("idle_in_transaction_session_timeout", "15s"),
                ("client_min_messages", "warning"),
            ])
            .disable_statement_logging();
        let readers = PgPoolOptions::new()
            .max_connections(READERS)
            .acquire_timeout(ACQUIRE_TIMEOUT)
            .test_before_acquire(false)
            .before_acquire(|conn, meta| {
                Box::pin(async move {
                    // Busy connections are known to be alive; one that rested may have died with its server.
                    if meta.idle_for < RESTED { Ok(true) } else { conn.ping().await.map(|()| true) }
                })
            })
            .connect_lazy_with(options.clone());
        let first = tokio::time::timeout(CONNECT_TIMEOUT, options.connect()).await??;
        first.close().await?;
        Ok(Self::Postgres { readers, writer: options })
    }

    /// Whether this is PostgreSQL, where other replicas may write too.
    pub fn is_postgres(&self) -> bool {
        matches!(self, Self::Postgres { .. })
    }

    /// A connection of its own, outside the pool.
    ///
    /// # Errors
    /// [`StoreError::Unavailable`] when the database cannot be reached.
    pub async fn dedicated(&self) -> Result<Conn, StoreError> {
        Ok(match self {
            Self::Sqlite { writer, .. } => Conn::Sqlite(writer.connect().await?),
            Self::Postgres { writer, .. } => Conn::Postgres(writer.connect().await?),
        })
    }

    async fn reader(&self) -> Result<Conn, StoreError> {
        Ok(match self {
            Self::Sqlite { readers, .. } => Conn::SqlitePooled(readers.acquire().await?),
            Self::Postgres { readers, .. } => {
                for _ in 1..BUSY_WAITS {
                    match readers.acquire().await {
                        // A database that is slow is not one that is away.
                        Err(sqlx::Error::PoolTimedOut) if readers.size() >= READERS => {}
                        acquired => return Ok(Conn::PostgresPooled(acquired?)),
                    }
                }
                Conn::PostgresPooled(readers.acquire().await?)
            }
        })
    }

    /// Runs a read in its own task, so that a caller's hang-up never drops a statement halfway.
    ///
    /// # Errors
    /// What the read answers, or [`StoreError::Unavailable`].
    pub async fn read<T, F>(&self, read: F) -> Result<T, StoreError>
    where
        T: Send + 'static,
        F: for<'c> FnOnce(&'c mut Conn) -> BoxFuture<'c, Result<T, StoreError>> + Send + 'static,
    {
        let db = self.clone();
        let task = tokio::spawn(async move {
            let mut conn = db.reader().await?;
            let timed_out = |_| Err(StoreError::Unavailable(sqlx::Error::PoolTimedOut));
            let done = tokio::time::timeout(READ_TIMEOUT, read(&mut conn)).await.unwrap_or_else(timed_out);
            if matches!(done, Err(StoreError::Unavailable(_))) {
                close(conn).await;
            }
            done
        });
        task.await.unwrap_or_else(|_| Err(StoreError::Unavailable(sqlx::Error::WorkerCrashed)))
    }

    /// Closes the read pool.
    pub async fn close(&self) {
        match self {
            Self::Sqlite { readers, .. } => readers.close().await,
            Self::Postgres { readers, .. } => readers.close().await,
        }
    }
}

async fn close(conn: Conn) {
    match conn {
        Conn::SqlitePooled(inner) => drop(inner.close().await),
        Conn::PostgresPooled(inner) => drop(inner.close().await),
        Conn::Sqlite(_) | Conn::Postgres(_) => {}
    }
}
