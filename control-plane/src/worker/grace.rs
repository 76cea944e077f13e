//! Ends the grace of agents that were never funded.

use uuid::Uuid;

use crate::app::App;
use crate::error::Error;
use crate::store::actions::{self, ActionRow};
use crate::store::agents;
use crate::store::writer::{Target, Tx};

/// Agents of one pass.
const PAGE: i64 = 1000;

/// Settles the standing of agents whose grace is over. Any replica may: the row is locked, the result is the same.
///
/// # Errors
/// 503 without database.
pub async fn run_once(app: &App) -> Result<(), Error> {
    let now = app.clock.now();
    let due =
        app.db.read(move |conn| Box::pin(async move { agents::grace_over(conn, now, PAGE).await })).await?;
    if due.is_empty() {
        return Ok(());
    }
    app.writer.apply(Target::Alone, move |tx| Box::pin(settle(tx, due))).await
}

async fn settle(tx: &mut Tx, due: Vec<Uuid>) -> Result<(), Error> {
    let mut changes = Vec::new();
    let mut lines = Vec::new();
    for mut state in agents::lock_states(tx, &due).await? {
        let before = state.tier;
        if state.settle(tx.at, &tx.thresholds) {
            lines.push(ActionRow::tier_change(&state, before, tx.at));
            changes.push(state);
        }
    }
    actions::insert(tx, &lines).await?;
    tx.counts.tier_changes += lines.len() as u64;
    agents::write_states(tx, &mut changes).await?;
    Ok(())
}
