//! What is asked of a lane: a job with its waiter, or a batch.

use std::any::Any;
use std::panic::AssertUnwindSafe;

use futures_util::FutureExt as _;
use futures_util::future::BoxFuture;
use tokio::sync::oneshot;

use super::{IdemFor, Target, Tx, Written};
use crate::error::Error;
use crate::store::StoreError;
use crate::store::batch::BatchItem;
use crate::store::idempotency::{self, Claim};

pub(super) type Work<T> = Box<dyn for<'c> FnOnce(&'c mut Tx) -> BoxFuture<'c, Result<T, Error>> + Send>;

pub(super) trait Job: Send {
    fn has_run(&self) -> bool;
    fn run<'c>(&'c mut self, tx: &'c mut Tx) -> BoxFuture<'c, Verdict>;
    fn finish(self: Box<Self>, committed: Result<(), StoreError>);
}

/// What a job did to its transaction.
pub(super) enum Verdict {
    /// Keep it.
    Keep,
    /// Undo this job's part.
    Undo,
    /// Nothing of the transaction will be: the connection is gone, or another writer was faster.
    Dead(StoreError),
}

pub(super) struct TypedJob<T> {
    pub work: Option<Work<T>>,
    pub idem: Option<IdemFor<T>>,
    pub outcome: Option<Result<Written<T>, Error>>,
    pub reply: oneshot::Sender<Result<Written<T>, Error>>,
}

impl<T: Send + 'static> TypedJob<T> {
    async fn attempt(&mut self, tx: &mut Tx) -> Result<Written<T>, Error> {
        if let Some(claim) = &self.idem
            && let Claim::Taken(stored) = idempotency::claim(tx, &claim.idem).await?
        {
            return Ok(Written::Replayed(stored));
        }
        let work = self.work.take().ok_or_else(|| Error::internal("a job ran twice"))?;
        let done = work(tx).await?;
        if let Some(claim) = self.idem.take() {
            let answer = (claim.encode)(&done);
            idempotency::store(tx, &claim.idem, &answer).await?;
        }
        Ok(Written::Fresh(done))
    }
}

impl<T: Send + 'static> Job for TypedJob<T> {
    fn has_run(&self) -> bool {
        self.work.is_none()
    }

    fn run<'c>(&'c mut self, tx: &'c mut Tx) -> BoxFuture<'c, Verdict> {
        Box::pin(async move {
            let outcome = AssertUnwindSafe(self.attempt(tx)).catch_unwind().await.unwrap_or_else(|panic| {
                tracing::error!(panic = panic_text(panic.as_ref()), "a write panicked");
                Err(Error::internal("a write panicked"))
            });
            let verdict = match &outcome {
                Ok(_) => Verdict::Keep,
                Err(Error::Store(error @ (StoreError::Unavailable(_) | StoreError::LostRace))) => {
                    Verdict::Dead(error.again())
                }
                Err(_) => Verdict::Undo,
            };
            self.outcome = Some(outcome);
            verdict
        })
    }

    fn finish(self: Box<Self>, committed: Result<(), StoreError>) {
        let answer = match (committed, self.outcome) {
            (Ok(()), Some(outcome)) => outcome,
            // What this job itself found out stays true without a commit.
            (Err(_), Some(Err(error))) => Err(error),
            (Err(error), _) => Err(Error::Store(error)),
            (Ok(()), None) => Err(Error::internal("a job did not run")),
        };
        let _ = self.reply.send(answer);
    }
}

fn panic_text(panic: &(dyn Any + Send)) -> &str {
    panic
        .downcast_ref::<&str>()
        .copied()
        .or_else(|| panic.downcast_ref::<String>().map(String::as_str))
        .unwrap_or("unknown")
}

pub(super) type Queued = (Target, Box<dyn Job>);

pub(super) enum Item {
    Batch(Box<BatchItem>),
    Job(Target, Box<dyn Job>),
}
