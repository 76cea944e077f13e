//! Agents that are not in memory are read together: a fleet that comes back costs a few large reads, not one for each.

use std::sync::Arc;

use parking_lot::Mutex;
use tokio::sync::oneshot;
use uuid::Uuid;

use super::Slots;
use crate::store::agents::{AgentState, states_of};
use crate::store::{Db, StoreError};

/// Agents of one read.
const TOGETHER: usize = 256;

type Asked = (Uuid, oneshot::Sender<Result<(), StoreError>>);

/// Who waits for which agent.
#[derive(Debug, Default)]
pub(super) struct Missing {
    waiting: Mutex<Waiting>,
}

#[derive(Debug, Default)]
struct Waiting {
    asked: Vec<Asked>,
    /// Whether somebody reads: there is one reader at a time, and it goes on until nobody waits.
    read: bool,
}

impl Missing {
    /// Puts an agent into memory, if there is one of this id.
    pub async fn read(self: &Arc<Self>, slots: &Arc<Slots>, db: &Db, id: Uuid) -> Result<(), StoreError> {
        let (tell, answer) = oneshot::channel();
        let first = {
            let mut waiting = self.waiting.lock();
            waiting.asked.push((id, tell));
            !std::mem::replace(&mut waiting.read, true)
        };
        if first {
            // In a task of its own: who asked first may hang up.
            let reader = Reader { missing: Arc::clone(self), at_work: true };
            tokio::spawn(reader.run(Arc::clone(slots), db.clone()));
        }
        answer.await.unwrap_or(Err(StoreError::unanswered()))
    }

    /// The next that wait; when there are none, the reader is done.
    fn next(&self) -> Vec<Asked> {
        let mut waiting = self.waiting.lock();
        let most = waiting.asked.len().min(TOGETHER);
        waiting.read = most > 0;
        waiting.asked.drain(..most).collect()
    }
}

/// Whoever reads; however it ends, nobody waits for it any longer.
struct Reader {
    missing: Arc<Missing>,
    at_work: bool,
}

impl Drop for Reader {
    fn drop(&mut self) {
        if self.at_work {
            *self.missing.waiting.lock() = Waiting::default();
        }
    }
}

impl Reader {
    async fn run(mut self, slots: Arc<Slots>, db: Db) {
        loop {
            let asked = self.missing.next();
            self.at_work = !asked.is_empty();
            if asked.is_empty() {
                return;
            }
            let found = read(&db, asked.iter().map(|(id, _)| *id).collect()).await;
            if let Ok(states) = &found {
                slots.remember(states);
            }
            for (id, tell) in asked {
                let answer = match &found {
                    Ok(_) => Ok(()),
                    Err(error @ StoreError::Unavailable(_)) => Err(error.again()),
                    // One row that cannot be read is nobody else's trouble.
                    Err(_) => read(&db, vec![id]).await.map(|states| {
                        slots.remember(&states);
                    }),
                };
                let _ = tell.send(answer);
            }
        }
    }
}

async fn read(db: &Db, ids: Vec<Uuid>) -> Result<Vec<AgentState>, StoreError> {
    db.read(move |conn| Box::pin(async move { states_of(conn, &ids).await })).await
}
