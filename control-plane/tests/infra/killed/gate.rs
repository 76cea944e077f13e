//! A gate in PostgreSQL: whoever is about to commit certain rows waits at it, and can be killed there. Then the database
//! carries the commit out, or undoes it.

use sqlx::{Connection as _, Executor as _, PgConnection};

/// The lock that is waited for.
const LOCK: i64 = 840_200;

/// A closed gate.
pub struct Gate {
    keeper: PgConnection,
    table: &'static str,
}

impl Gate {
    /// Closes it before commits that write rows of a table which fit a condition.
    pub async fn close(url: &str, table: &'static str, when: &str) -> Self {
        let mut keeper = PgConnection::connect(url).await.expect("it accepts us");
        let function = format!(
            "CREATE OR REPLACE FUNCTION wait_at_gate() RETURNS trigger LANGUAGE plpgsql AS \
             $$ BEGIN PERFORM pg_advisory_xact_lock_shared({LOCK}); RETURN NULL; END $$"
        );
        let trigger = format!(
            "CREATE CONSTRAINT TRIGGER gate AFTER INSERT OR UPDATE ON {table} DEFERRABLE INITIALLY DEFERRED \
             FOR EACH ROW WHEN ({when}) EXECUTE FUNCTION wait_at_gate()"
        );
        for statement in [function, format!("SELECT pg_advisory_lock({LOCK})"), trigger] {
            keeper.execute(sqlx::AssertSqlSafe(statement)).await.expect("the statement runs");
        }
        Self { keeper, table }
    }

    /// Whether somebody waits.
    pub async fn is_waited_at(&mut self) -> bool {
        let waiting: i64 = sqlx::query_scalar(
            "SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND NOT granted AND objid = $1::bigint::oid \
             AND database = (SELECT oid FROM pg_database WHERE datname = current_database())",
        )
        .bind(LOCK)
        .fetch_one(&mut self.keeper)
        .await
        .expect("it can be read");
        waiting > 0
    }

    /// Opens it for good; whoever waits may commit, or is undone.
    pub async fn open(mut self, commit: bool) {
        if !commit {
            let end = "SELECT pg_terminate_backend(pid) FROM pg_locks WHERE locktype = 'advisory' AND NOT granted \
                 AND objid = 840200 AND database = (SELECT oid FROM pg_database WHERE datname = current_database())";
            self.keeper.execute(end).await.expect("the statement runs");
            while self.is_waited_at().await {
                tokio::time::sleep(std::time::Duration::from_millis(10)).await;
            }
        }
        // Dropping the trigger waits for the end of whoever has written to the table.
        let drop = format!("DROP TRIGGER gate ON {}", self.table);
        for statement in [format!("SELECT pg_advisory_unlock({LOCK})"), drop] {
            self.keeper.execute(sqlx::AssertSqlSafe(statement)).await.expect("the statement runs");
        }
        self.keeper.close().await.expect("it closes");
    }
}
