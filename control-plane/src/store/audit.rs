//! The proof that the books balance.

use otonix_sdk::money::MicroUsd;
use uuid::Uuid;

use crate::store::{Conn, StoreError, on};

/// What the books say.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Books {
    /// All agents' accounts together.
    pub agents: MicroUsd,
    /// System accounts by name.
    pub accounts: Vec<(String, MicroUsd)>,
    /// System accounts as their transfers say.
    pub by_transfers: Vec<(String, MicroUsd)>,
    /// Agents whose balance is not the sum of their transfers.
    pub wrong_agents: Vec<Uuid>,
    /// Amounts held by reservations.
    pub held: MicroUsd,
    /// What is kept for purchases that sales paid and that have not ended.
    pub open_purchases: MicroUsd,
    /// What delivered purchases cost.
    pub delivered_purchases: MicroUsd,
    /// Purchases and sales that do not fit each other, or their reservation, in words.
    pub wrong_purchases: Vec<String>,
    /// What the treasury holds by what was booked as moved on the chain.
    pub moved: MicroUsd,
}

impl Books {
    /// Everything together; 0 when the books balance.
    pub fn sum(&self) -> MicroUsd {
        self.accounts.iter().fold(self.agents, |sum, (_, balance)| sum.saturating_add(*balance))
    }

    /// What is wrong, in words.
    pub fn differences(&self) -> Vec<String> {
        let mut found = Vec::new();
        if self.sum() != MicroUsd::ZERO {
            found.push(format!("the sum over all accounts is {} USDC, not 0", self.sum()));
        }
        if self.accounts != self.by_transfers {
            found.push(format!(
                "accounts {:?} differ from their transfers {:?}",
                self.accounts, self.by_transfers
            ));
        }
        for agent in &self.wrong_agents {
            found.push(format!("the balance of agent {agent} is not the sum of its transfers"));
        }
        let account = |name: &str| {
            let found = self.accounts.iter().find(|(known, _)| known == name);
            found.map_or(MicroUsd::ZERO, |(_, balance)| *balance)
        };
        let treasury = account(crate::store::ledger::TREASURY);
        if self.moved.saturating_add(treasury) != MicroUsd::ZERO {
            found.push(format!(
                "the treasury holds {} USDC by what moved on the chain, but its account is {treasury} USDC",
                self.moved
            ));
        }
        let reserved = account(crate::store::ledger::RESERVED);
        if reserved != self.held {
            found.push(format!("reserved is {reserved} USDC but reservations hold {} USDC", self.held));
        }
        for (name, kept) in [
            (crate::store::ledger::PURCHASES_OPEN, self.open_purchases),
            (crate::store::ledger::PURCHASES, self.delivered_purchases),
        ] {
            if account(name) != kept {
                found.push(format!("{name} is {} USDC but its purchases come to {kept} USDC", account(name)));
            }
        }
        found.extend(self.wrong_purchases.iter().cloned());
        found
    }
}

/// Reads the books in one snapshot.
///
/// # Errors
/// [`StoreError`] when the database refuses or is away.
pub async fn books(conn: &mut Conn) -> Result<Books, StoreError> {
    let begin = if conn.is_postgres() { "BEGIN ISOLATION LEVEL REPEATABLE READ" } else { "BEGIN" };
    conn.run_raw(begin).await?;
    let books = read(conn).await;
    conn.run_raw("ROLLBACK").await?;
    books
}

async fn read(conn: &mut Conn) -> Result<Books, StoreError> {
    const AGENTS: &str = "SELECT CAST(COALESCE(SUM(credits), 0) AS BIGINT) FROM agents";
    const ACCOUNTS: &str =
        "SELECT name, CAST(SUM(balance) AS BIGINT) FROM accounts GROUP BY name ORDER BY name";
    const TRANSFERS: &str = "SELECT name, CAST(SUM(amount) AS BIGINT) FROM (SELECT to_account AS name, amount FROM \
        transfers WHERE to_account <> 'agent' UNION ALL SELECT from_account, -amount FROM transfers \
        WHERE from_account <> 'agent') AS t GROUP BY name ORDER BY name";
    const WRONG: &str = "SELECT a.id FROM agents a LEFT JOIN (SELECT agent_id, CAST(SUM(CASE WHEN to_account = \
        'agent' THEN amount WHEN from_account = 'agent' THEN -amount ELSE 0 END) AS BIGINT) AS total FROM transfers GROUP BY agent_id) t \
        ON t.agent_id = a.id WHERE a.credits <> COALESCE(t.total, 0) ORDER BY a.id LIMIT 100";
    const HELD: &str =
        "SELECT CAST(COALESCE(SUM(amount), 0) AS BIGINT) FROM reservations WHERE status = 'held'";
    const MOVED: &str = "SELECT CAST(COALESCE(SUM(CASE WHEN kind = 'withdrawal' THEN -amount ELSE amount END), 0) \
        AS BIGINT) FROM receipts WHERE status <> 'reversed' AND from_address <> to_address";
    const OPEN: &str = "SELECT CAST(COALESCE(SUM(held), 0) AS BIGINT) FROM purchases WHERE held_in = 'purchases_open' \
        AND status IN ('paid', 'executing', 'unknown', 'needs_operator')";
    const DELIVERED: &str =
        "SELECT CAST(COALESCE(SUM(held), 0) AS BIGINT) FROM purchases WHERE status = 'delivered'";
    let money = |rows: Vec<(String, i64)>| {
        rows.into_iter().map(|(name, sum)| (name, MicroUsd::from_micros(sum))).collect::<Vec<_>>()
    };
    let agents: i64 = on!(&mut *conn, |c| sqlx::query_scalar(AGENTS).fetch_one(c).await?);
    let accounts = on!(&mut *conn, |c| sqlx::query_as(ACCOUNTS).fetch_all(c).await?);
    let by_transfers = on!(&mut *conn, |c| sqlx::query_as(TRANSFERS).fetch_all(c).await?);
    let wrong_agents = on!(&mut *conn, |c| sqlx::query_scalar(WRONG).fetch_all(c).await?);
    let held: i64 = on!(&mut *conn, |c| sqlx::query_scalar(HELD).fetch_one(c).await?);
    let open: i64 = on!(&mut *conn, |c| sqlx::query_scalar(OPEN).fetch_one(c).await?);
    let delivered: i64 = on!(&mut *conn, |c| sqlx::query_scalar(DELIVERED).fetch_one(c).await?);
    let wrong_purchases = wrong_purchases(conn).await?;
    let moved: i64 = on!(&mut *conn, |c| sqlx::query_scalar(MOVED).fetch_one(c).await?);
    Ok(Books {
        agents: MicroUsd::from_micros(agents),
        accounts: money(accounts),
        by_transfers: money(by_transfers),
        wrong_agents,
        held: MicroUsd::from_micros(held),
        open_purchases: MicroUsd::from_micros(open),
        delivered_purchases: MicroUsd::from_micros(delivered),
        wrong_purchases,
        moved: MicroUsd::from_micros(moved),
    })
}

/// Every payment has its goods, its credit or its refund; every purchase has who paid it.
async fn wrong_purchases(conn: &mut Conn) -> Result<Vec<String>, StoreError> {
    const CHECKS: [(&str, &str); 5] = [
        (
            "waits for goods that nobody buys",
            "SELECT o.id FROM orders o LEFT JOIN purchases p ON p.sale_id = o.id WHERE o.status = 'pending' \
             AND (p.id IS NULL OR p.status IN ('delivered', 'failed')) LIMIT 100",
        ),
        (
            "was bought for a sale that is gone",
            "SELECT p.id FROM purchases p LEFT JOIN orders o ON o.id = p.sale_id WHERE p.sale_id IS NOT NULL \
             AND o.id IS NULL LIMIT 100",
        ),
        (
            "has ended, and its sale was not answered",
            "SELECT p.id FROM purchases p JOIN orders o ON o.id = p.sale_id WHERE p.status IN ('delivered', 'failed') \
             AND o.answer_status = 0 LIMIT 100",
        ),
        (
            "is paid by a reservation that is not as it should be",
            "SELECT p.id FROM purchases p LEFT JOIN reservations r ON r.agent_id = p.payer_agent \
             AND r.id = p.reservation_id WHERE p.held_in = 'reserved' AND COALESCE(r.status, 'none') <> \
             CASE p.status WHEN 'delivered' THEN 'settled' WHEN 'failed' THEN 'released' ELSE 'held' END \
             AND NOT (p.held = 0 AND r.id IS NULL AND p.status IN ('needs_operator', 'failed')) LIMIT 100",
        ),
        (
            "was refunded, and no refund is noted",
            "SELECT o.id FROM orders o LEFT JOIN refunds r ON r.sale_id = o.id WHERE o.status = 'refund_due' \
             AND r.id IS NULL LIMIT 100",
        ),
    ];
    let mut found = Vec::new();
    for (what, sql) in CHECKS {
        let ids: Vec<Uuid> = on!(&mut *conn, |c| sqlx::query_scalar(sql).fetch_all(c).await?);
        found.extend(ids.into_iter().map(|id| format!("{id} {what}")));
    }
    Ok(found)
}
