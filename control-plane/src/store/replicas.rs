//! Which servers share this database, and how they wake each other.

use chrono::{DateTime, TimeDelta, Utc};
use sqlx::postgres::PgListener;
use uuid::Uuid;

use crate::store::writer::{Notice, Tx};
use crate::store::{Conn, Db, StoreError, leases, on};

/// The PostgreSQL channel.
const CHANNEL: &str = "otonix";
/// Longest payload that PostgreSQL takes is 8000 bytes.
const MAX_PAYLOAD: usize = 7_000;
/// A replica not seen for so long is gone.
pub const GONE_AFTER_SECS: i64 = 10;

/// Notes that this replica is alive; tells the database's time and how many others are.
///
/// # Errors
/// [`StoreError`] when the database refuses or is away.
pub async fn beat(tx: &mut Tx, id: Uuid) -> Result<(DateTime<Utc>, i64), StoreError> {
    const SQL: &str = "INSERT INTO replicas (id, seen_at) VALUES ($1, $2) \
        ON CONFLICT (id) DO UPDATE SET seen_at = excluded.seen_at";
    const OTHERS: &str = "SELECT count(*) FROM replicas WHERE id <> $1 AND seen_at > $2";
    const TIDY: &str = "DELETE FROM replicas WHERE seen_at < $1";
    let now = leases::database_time(tx).await?;
    let gone = now - TimeDelta::seconds(GONE_AFTER_SECS);
    let old = now - TimeDelta::hours(1);
    on!(&mut tx.conn, |c| sqlx::query(SQL).bind(id).bind(now).execute(c).await?.rows_affected());
    on!(&mut tx.conn, |c| sqlx::query(TIDY).bind(old).execute(c).await?.rows_affected());
    let others = on!(&mut tx.conn, |c| sqlx::query_scalar(OTHERS).bind(id).bind(gone).fetch_one(c).await?);
    Ok((now, others))
}

/// Forgets this replica, at a clean stop.
///
/// # Errors
/// [`StoreError`] when the database refuses or is away.
pub async fn leave(tx: &mut Tx, id: Uuid) -> Result<(), StoreError> {
    on!(&mut tx.conn, |c| sqlx::query("DELETE FROM replicas WHERE id = $1")
        .bind(id)
        .execute(c)
        .await?
        .rows_affected());
    Ok(())
}

fn encode(notice: Notice) -> String {
    match notice {
        Notice::Agent(id) => format!("a{}", id.simple()),
        Notice::Key(id) => format!("k{}", id.simple()),
        Notice::Command(id) => format!("c{}", id.simple()),
    }
}

fn decode(text: &str) -> Option<Notice> {
    let id = Uuid::try_parse(text.get(1..)?).ok()?;
    match text.get(..1)? {
        "a" => Some(Notice::Agent(id)),
        "k" => Some(Notice::Key(id)),
        "c" => Some(Notice::Command(id)),
        _ => None,
    }
}

/// Wakes the other replicas with what this transaction changed, when it commits.
///
/// # Errors
/// [`StoreError`] when the database refuses or is away.
pub async fn notify(tx: &mut Tx) -> Result<(), StoreError> {
    let changed = tx.changed.iter().map(|state| Notice::Agent(state.id.uuid()));
    let all: Vec<String> = changed.chain(tx.notices.iter().copied()).map(encode).collect();
    let Conn::Postgres(conn) = &mut tx.conn else { return Ok(()) };
    let mut payload = String::new();
    let mut payloads = Vec::new();
    for part in all {
        if payload.len() + part.len() + 1 > MAX_PAYLOAD {
            payloads.push(std::mem::take(&mut payload));
        }
        if !payload.is_empty() {
            payload.push(' ');
        }
        payload.push_str(&part);
    }
    if !payload.is_empty() {
        payloads.push(payload);
    }
    for payload in payloads {
        sqlx::query("SELECT pg_notify($1, $2)").bind(CHANNEL).bind(payload).execute(&mut *conn).await?;
    }
    Ok(())
}

/// Hears what other replicas commit. Only a wake-up: what it misses, the poll finds.
pub struct Listener(PgListener);

impl Listener {
    /// Listens; `None` on SQLite, where nobody else writes.
    ///
    /// # Errors
    /// [`StoreError`] when the database is away.
    pub async fn open(db: &Db) -> Result<Option<Self>, StoreError> {
        let Db::Postgres { readers, .. } = db else { return Ok(None) };
        let mut listener = PgListener::connect_with(readers).await?;
        listener.listen(CHANNEL).await?;
        Ok(Some(Self(listener)))
    }

    /// The next notices; an error means that some may have been missed.
    ///
    /// # Errors
    /// [`StoreError`] when the connection is lost.
    pub async fn next(&mut self) -> Result<Vec<Notice>, StoreError> {
        let message = self.0.recv().await?;
        Ok(message.payload().split(' ').filter_map(decode).collect())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn notices_read_back() {
        for notice in
            [Notice::Agent(Uuid::from_u128(1)), Notice::Key(Uuid::from_u128(2)), Notice::Command(Uuid::nil())]
        {
            assert_eq!(decode(&encode(notice)), Some(notice));
        }
        for bad in ["", "a", "x0000", "é"] {
            assert_eq!(decode(bad), None, "{bad}");
        }
    }
}
