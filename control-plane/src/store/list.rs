//! Lists: newest first, paged by the last row's time and id, so that a page costs the same at any depth.

use chrono::{DateTime, Utc};
use otonix_sdk::api::actions::Action;
use otonix_sdk::api::agents::Agent;
use otonix_sdk::api::commands::Command;
use otonix_sdk::api::enrolment::EnrolmentToken;
use otonix_sdk::api::keys::Key;
use otonix_sdk::api::ledger::LedgerEntry;
use otonix_sdk::api::payments::{Order, Refund};
use otonix_sdk::api::records::{Domain, Sandbox, Transaction};
use otonix_sdk::api::usage::ComputeLog;
use sqlx::AssertSqlSafe;
use uuid::Uuid;

use crate::store::purchases::Purchase;
use crate::store::{Conn, StoreError, on};
use crate::store::{
    actions, agents, commands, domains, enrolment, keys, ledger, orders, purchases, refunds, sandboxes,
    transactions, usage,
};

/// A value in a filter.
#[derive(Debug, Clone, PartialEq)]
pub enum Param {
    Id(Uuid),
    Text(String),
    Time(DateTime<Utc>),
}

/// The last row of the page before.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Cursor {
    pub created_at: DateTime<Utc>,
    pub id: Uuid,
}

/// Which rows.
#[derive(Debug, Clone, Default)]
pub struct Query {
    /// Conditions, each a fixed text that ends where its parameter goes (`owner_id = `).
    pub filters: Vec<(&'static str, Param)>,
    pub after: Option<Cursor>,
    pub limit: i64,
}

impl Query {
    /// Adds a condition.
    pub fn filter(&mut self, condition: &'static str, param: Param) {
        self.filters.push((condition, param));
    }
}

/// A page, and where the next one starts.
#[derive(Debug)]
pub struct Page<T> {
    pub rows: Vec<T>,
    pub next: Option<Cursor>,
}

/// Only fixed texts go into the statement; every value is bound.
fn statement(columns: &str, table: &str, query: &Query, by_id: bool) -> (String, Vec<Param>) {
    let mut sql = format!("SELECT {columns} FROM {table}");
    let mut params = Vec::new();
    let mut join = " WHERE ";
    for (condition, param) in &query.filters {
        params.push(param.clone());
        sql.push_str(&format!("{join}{condition}${}", params.len()));
        join = " AND ";
    }
    if let Some(after) = query.after {
        if by_id {
            params.push(Param::Id(after.id));
            sql.push_str(&format!("{join}id < ${}", params.len()));
        } else {
            params.push(Param::Time(after.created_at));
            params.push(Param::Id(after.id));
            sql.push_str(&format!("{join}(created_at, id) < (${}, ${})", params.len() - 1, params.len()));
        }
    }
    let order = if by_id { "id DESC" } else { "created_at DESC, id DESC" };
    // One row more than asked for tells whether there is a next page.
    sql.push_str(&format!(" ORDER BY {order} LIMIT {}", query.limit + 1));
    (sql, params)
}

macro_rules! fetch {
    ($conn:expr, $row:ty, $columns:expr, $table:expr, $query:expr, $by_id:expr) => {{
        let (sql, params) = statement($columns, $table, $query, $by_id);
        let rows: Vec<$row> = on!($conn, |c| {
            let mut statement = sqlx::query_as(AssertSqlSafe(sql));
            for param in params {
                statement = match param {
                    Param::Id(id) => statement.bind(id),
                    Param::Text(text) => statement.bind(text),
                    Param::Time(at) => statement.bind(at),
                };
            }
            statement.fetch_all(c).await?
        });
        rows
    }};
}

fn page<R, T>(
    mut rows: Vec<R>,
    limit: i64,
    place: impl Fn(&R) -> Cursor,
    read: impl Fn(R) -> Result<T, StoreError>,
) -> Result<Page<T>, StoreError> {
    let limit = usize::try_from(limit).unwrap_or(0);
    let more = rows.len() > limit;
    rows.truncate(limit);
    let next = rows.last().filter(|_| more).map(place);
    Ok(Page { rows: rows.into_iter().map(read).collect::<Result<_, _>>()?, next })
}

macro_rules! lists {
    ($($(#[$doc:meta])* $name:ident: $row:ty => $item:ty, $columns:expr, $table:literal;)*) => {
        $(
            $(#[$doc])*
            ///
            /// # Errors
            /// [`StoreError`] when the database refuses or is away.
            pub async fn $name(conn: &mut Conn, query: &Query) -> Result<Page<$item>, StoreError> {
                let rows = fetch!(conn, $row, $columns, $table, query, false);
                let place = |row: &$row| Cursor { created_at: row.created_at, id: row.id };
                page(rows, query.limit, place, |row| <$item>::try_from(row).map_err(StoreError::from))
            }
        )*
    };
}

lists! {
    /// Keys.
    keys: keys::KeyRead => Key, keys::COLUMNS, "api_keys";
    /// Agents.
    agents: agents::AgentRow => Agent, agents::AGENT_COLUMNS, "agents";
    /// Actions.
    actions: actions::ActionRead => Action, actions::COLUMNS, "agent_actions";
    /// Sandboxes.
    sandboxes: sandboxes::SandboxRead => Sandbox, sandboxes::COLUMNS, "sandboxes";
    /// Domains.
    domains: domains::DomainRead => Domain, domains::COLUMNS, "domains";
    /// Managed domains.
    managed_domains: domains::DomainRead => Domain, domains::COLUMNS, "(SELECT * FROM domains WHERE managed) AS managed_domains";
    /// Transactions.
    transactions: transactions::TransactionRead => Transaction, transactions::COLUMNS, "transactions";
    /// Usage records.
    usage: usage::UsageRead => ComputeLog, usage::COLUMNS, "compute_logs";
    /// Commands.
    commands: commands::CommandRead => Command, commands::COLUMNS, "commands";
    /// Enrolment tokens.
    enrolment_tokens: enrolment::Token => EnrolmentToken, enrolment::COLUMNS, "enrolment_tokens";
    /// Paid orders.
    orders: orders::OrderRead => Order, orders::COLUMNS, "orders";
    /// Purchases.
    purchases: purchases::PurchaseRead => Purchase, purchases::COLUMNS, "purchases";
    /// Refunds.
    refunds: refunds::RefundRead => Refund, refunds::COLUMNS, "refunds";
}

impl From<std::convert::Infallible> for StoreError {
    fn from(never: std::convert::Infallible) -> Self {
        match never {}
    }
}

/// Lines of an agent's ledger, newest first.
///
/// # Errors
/// [`StoreError`] when the database refuses or is away.
pub async fn ledger(conn: &mut Conn, query: &Query) -> Result<Page<LedgerEntry>, StoreError> {
    let rows = fetch!(conn, ledger::EntryRead, ledger::COLUMNS, "transfers", query, true);
    let place = |row: &ledger::EntryRead| Cursor { created_at: DateTime::UNIX_EPOCH, id: row.id };
    page(rows, query.limit, place, |row| Ok(LedgerEntry::from(row)))
}
