//! Writes the heartbeats of the last second in one statement.

use uuid::Uuid;

use crate::app::App;
use crate::error::Error;
use crate::store::actions::{self, ActionRow};
use crate::store::agents;
use crate::store::writer::Tx;
use otonix_sdk::standing::AgentStatus;

/// Beats of one statement. More would save little, and leave holes of their size in the heap.
const CHUNK: usize = 500;

/// Writes what was heard since the last pass. Beats whose write fails are kept for the next.
///
/// # Errors
/// 503 without database.
pub async fn run_once(app: &App) -> Result<(), Error> {
    let beats = app.shared.fleet.take_beats();
    for (index, chunk) in beats.chunks(CHUNK).enumerate() {
        let rows = chunk.to_vec();
        let written = app.writer.apply_beats(move |tx| {
            Box::pin(async move {
                agents::write_beats(tx, &rows).await?;
                let ids: Vec<Uuid> = rows.iter().map(|(id, _)| *id).collect();
                revive(tx, &ids).await
            })
        });
        if let Err(error) = written.await {
            app.shared.fleet.return_beats(&beats[index * CHUNK..]);
            return Err(error);
        }
        app.shared.metrics.beats_written.inc_by(chunk.len() as u64);
    }
    Ok(())
}

/// Agents that were inactive and beat again are active.
async fn revive(tx: &mut Tx, heard: &[Uuid]) -> Result<(), Error> {
    let silent = agents::inactive_among(tx, heard).await?;
    if silent.is_empty() {
        return Ok(());
    }
    let mut changes = Vec::new();
    let mut lines = Vec::new();
    for mut state in agents::lock_states(tx, &silent).await? {
        if state.status == AgentStatus::Inactive && !state.killed {
            state.status = AgentStatus::Active;
            lines.push(ActionRow::by_server(&state, "system", "agent is active again", None, tx.at));
            changes.push(state);
        }
    }
    actions::insert(tx, &lines).await?;
    agents::write_states(tx, &mut changes).await?;
    Ok(())
}
