//! Migrations: one folder, `NNNN_what.sql` for both databases and `NNNN_what.{sqlite,postgres}.sql` where they differ.
//! Forward only; a shipped one is never edited.

use sha2::{Digest as _, Sha256};

use crate::store::{Conn, Db, StoreError, on};

/// Which databases a migration is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum For {
    Both,
    Postgres,
}

/// Every migration, in order.
const MIGRATIONS: &[(&str, For, &str)] = &[
    ("0001_init", For::Both, include_str!("../../../migrations/0001_init.sql")),
    ("0002_tuning", For::Postgres, include_str!("../../../migrations/0002_tuning.postgres.sql")),
    ("0003_money", For::Both, include_str!("../../../migrations/0003_money.sql")),
    ("0004_purchases", For::Both, include_str!("../../../migrations/0004_purchases.sql")),
    ("0005_enrolment", For::Both, include_str!("../../../migrations/0005_enrolment.sql")),
    ("0006_automation", For::Both, include_str!("../../../migrations/0006_automation.sql")),
    ("0007_claims", For::Both, include_str!("../../../migrations/0007_claims.sql")),
    ("0008_counters", For::Both, include_str!("../../../migrations/0008_counters.sql")),
    ("0009_purchase_leases", For::Both, include_str!("../../../migrations/0009_purchase_leases.sql")),
    ("0010_registrations", For::Both, include_str!("../../../migrations/0010_registrations.sql")),
];

/// Why the database cannot be brought up to date.
#[derive(Debug, thiserror::Error)]
pub enum MigrateError {
    /// The database refused.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// A migration that was applied is not the one known here.
    #[error("migration {0} was applied with another text; this database belongs to another version")]
    Changed(String),
    /// The database is newer than this program.
    #[error("migration {0} is unknown here; this program is older than its database")]
    Unknown(String),
}

/// Applies what is missing; gives back the names of what was applied. Replicas that start together wait for each other.
///
/// # Errors
/// [`MigrateError`] when the database refuses or belongs to another version.
pub async fn migrate(db: &Db) -> Result<Vec<&'static str>, MigrateError> {
    const TABLE: &str =
        "CREATE TABLE IF NOT EXISTS migrations (name TEXT NOT NULL PRIMARY KEY, sha256 TEXT NOT NULL)";
    let mut conn = db.dedicated().await?;
    let postgres = conn.is_postgres();
    if postgres {
        conn.run_raw("SET lock_timeout = '60s'; SET statement_timeout = 0; BEGIN").await?;
        conn.run_raw("SELECT pg_advisory_xact_lock(8402)").await?;
    } else {
        conn.run_raw("BEGIN IMMEDIATE").await?;
    }
    conn.run_raw(TABLE).await?;
    let applied: Vec<(String, String)> = on!(&mut conn, |c| {
        sqlx::query_as("SELECT name, sha256 FROM migrations ORDER BY name").fetch_all(c).await
    })
    .map_err(StoreError::from)?;
    if let Some((name, _)) =
        applied.iter().find(|(name, _)| !MIGRATIONS.iter().any(|(known, ..)| known == name))
    {
        return Err(MigrateError::Unknown(name.clone()));
    }
    let mut done = Vec::new();
    for (name, engine, sql) in MIGRATIONS {
        if *engine == For::Postgres && !postgres {
            continue;
        }
        let sha256 = hex::encode(Sha256::digest(sql.as_bytes()));
        match applied.iter().find(|(applied, _)| applied == name) {
            Some((_, known)) if *known == sha256 => {}
            Some(_) => return Err(MigrateError::Changed((*name).to_owned())),
            None => {
                apply(&mut conn, name, &sha256, sql).await?;
                done.push(*name);
            }
        }
    }
    conn.run_raw("COMMIT").await?;
    Ok(done)
}

/// How many migrations are missing.
///
/// # Errors
/// [`MigrateError`] when the database refuses or belongs to another version.
pub async fn pending(db: &Db) -> Result<usize, MigrateError> {
    let mut conn = db.dedicated().await?;
    let applied: Result<Vec<String>, sqlx::Error> =
        on!(&mut conn, |c| sqlx::query_scalar("SELECT name FROM migrations").fetch_all(c).await);
    let postgres = conn.is_postgres();
    let wanted = MIGRATIONS.iter().filter(|(_, engine, _)| *engine == For::Both || postgres);
    Ok(match applied {
        Ok(applied) => wanted.filter(|(name, ..)| !applied.iter().any(|known| known == name)).count(),
        // Before the first migration there is no table of them.
        Err(sqlx::Error::Database(_)) => wanted.count(),
        Err(error) => return Err(StoreError::from(error).into()),
    })
}

async fn apply(conn: &mut Conn, name: &str, sha256: &str, sql: &'static str) -> Result<(), StoreError> {
    const NOTE: &str = "INSERT INTO migrations (name, sha256) VALUES ($1, $2)";
    conn.run_raw(sql).await?;
    on!(conn, |c| sqlx::query(NOTE).bind(name).bind(sha256).execute(c).await?.rows_affected());
    Ok(())
}
