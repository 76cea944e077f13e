//! The end of the front, in two steps that every connection hears of.

use std::pin::Pin;
use std::sync::atomic::{AtomicU8, Ordering};
use std::task::{Context, Poll};

use tokio::sync::Notify;
use tokio::sync::futures::Notified;

/// How far a stop has got.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
#[repr(u8)]
pub(crate) enum Stage {
    /// Everything is served.
    Running = 0,
    /// What runs is finished, then connections close.
    Draining = 1,
    /// Connections close now.
    Killed = 2,
}

/// The stage, and a way to wake everyone at its changes.
#[derive(Debug, Default)]
pub(crate) struct Stop {
    stage: AtomicU8,
    changed: Notify,
}

impl Stop {
    pub(crate) fn set(&self, stage: Stage) {
        self.stage.store(stage as u8, Ordering::SeqCst);
        self.changed.notify_waiters();
    }

    pub(crate) fn stage(&self) -> Stage {
        match self.stage.load(Ordering::SeqCst) {
            0 => Stage::Running,
            1 => Stage::Draining,
            _ => Stage::Killed,
        }
    }

    pub(crate) fn changed(&self) -> Notified<'_> {
        self.changed.notified()
    }
}

/// One task's ear for a [`Stop`]: after the first poll a look at the stage costs one load.
pub(crate) struct Ear<'a, 'n> {
    stop: &'a Stop,
    notified: Pin<&'n mut Notified<'a>>,
    heard: Option<Stage>,
}

impl<'a, 'n> Ear<'a, 'n> {
    pub(crate) fn new(stop: &'a Stop, notified: Pin<&'n mut Notified<'a>>) -> Self {
        Self { stop, notified, heard: None }
    }

    /// The stage now; the task is woken when it changes.
    pub(crate) fn stage(&mut self, cx: &mut Context<'_>) -> Stage {
        loop {
            let stage = self.stop.stage();
            if self.heard == Some(stage) {
                return stage;
            }
            while let Poll::Ready(()) = self.notified.as_mut().poll(cx) {
                self.notified.set(self.stop.changed());
            }
            self.heard = Some(stage);
        }
    }
}
