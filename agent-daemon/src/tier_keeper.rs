//! What a standing means on this machine: whether the agent's process runs, its model, how often the daemon beats.
//!
//! Effects are reported to the server once they are true: `stopped` when the process has ended, `started` when it
//! lives again. Nothing here lowers a tier; that is the link's knowledge.

use otonix_sdk::api::events::{EventBody, TierEffect};
use otonix_sdk::standing::SurvivalTier;
use tokio_util::sync::CancellationToken;

use crate::shared::{Notice, Shared, tier_of};
use crate::supervise::ProcessState;

/// Runs until it is cancelled.
pub async fn run(shared: Shared, cancel: CancellationToken) {
    let mut keeper = TierKeeper::new(shared);
    let mut standings = keeper.shared.agent.standing_changes();
    let mut settings = keeper.shared.settings.subscribe();
    let mut process = keeper.shared.process.subscribe();
    loop {
        standings.borrow_and_update();
        settings.borrow_and_update();
        process.borrow_and_update();
        keeper.apply().await;
        let changed = tokio::select! {
            () = cancel.cancelled() => return,
            changed = standings.changed() => changed.is_ok(),
            changed = settings.changed() => changed.is_ok(),
            // Without a process to supervise nobody ever speaks here.
            changed = process.changed(), if keeper.shared.has_command => changed.is_ok(),
        };
        if !changed {
            return;
        }
    }
}

struct TierKeeper {
    shared: Shared,
    tier: SurvivalTier,
    model: String,
    optional_work: bool,
    known: bool,
    credits_told: String,
    /// An effect that is ordered and not true yet.
    awaited: Option<ProcessState>,
}

impl TierKeeper {
    fn new(shared: Shared) -> Self {
        let standing = shared.agent.standing();
        let tier = tier_of(&standing);
        let model = shared.usual_model();
        let optional_work = shared.config.tier.optional_work(tier);
        Self {
            shared,
            tier,
            model,
            optional_work,
            known: standing.known,
            credits_told: String::new(),
            awaited: None,
        }
    }

    /// Compares what is with what should be.
    async fn apply(&mut self) {
        let standing = self.shared.agent.standing();
        let tier = tier_of(&standing);
        if standing.known && !self.known {
            // The first word of the server is no change: nothing was in force before it.
            self.known = true;
            self.model = self.shared.usual_model();
            self.optional_work = self.shared.config.tier.optional_work(tier);
            if tier != SurvivalTier::Terminated {
                self.tier = tier;
            }
        }
        let was = std::mem::replace(&mut self.tier, tier);
        self.order_process(was).await;
        self.follow_model().await;
        self.follow_optional_work().await;
        let told = format!("{tier} {} {} {}", standing.credits, standing.funded, self.model);
        if self.credits_told != told {
            self.credits_told = told;
            self.shared.tell(Notice::Standing);
        }
        self.report_awaited().await;
    }

    async fn order_process(&mut self, was: SurvivalTier) {
        let alive = self.tier != SurvivalTier::Terminated;
        if was != self.tier {
            tracing::info!(from = %was, to = %self.tier, "the survival tier changed");
            let was_alive = was != SurvivalTier::Terminated;
            if self.shared.has_command && was_alive != alive && !self.shared.settings.borrow().held {
                self.awaited = Some(if alive { ProcessState::Running } else { ProcessState::Stopped });
            }
            if self.shared.config.tier.of(self.tier).interval != self.shared.config.tier.of(was).interval {
                let interval = self.shared.config.tier.of(self.tier).interval;
                let detail = interval.map_or_else(|| "the server's".to_owned(), |secs| format!("{secs} s"));
                self.report("interval_changed", Some(detail)).await;
            }
        }
        let run = self.shared.has_command && alive && !self.shared.settings.borrow().held;
        if !run && self.shared.wanted.borrow().run {
            self.shared.tell(Notice::Shutdown {
                reason: if alive { "stopped by a command" } else { "terminated" },
                grace_secs: self.shared.config.agent.stop_grace,
            });
        }
        self.shared.wanted.send_if_modified(|wanted| {
            let changed = wanted.run != run;
            wanted.run = run;
            changed
        });
        self.shared.beat_at_least_every(self.interval());
    }

    /// The longest time between beats that command and configuration ask for; the shorter wins.
    fn interval(&self) -> Option<u32> {
        let configured = self.shared.config.tier.of(self.tier).interval;
        let set = self.shared.settings.borrow().interval;
        match (configured, set) {
            (Some(configured), Some(set)) => Some(configured.min(set)),
            (configured, set) => configured.or(set),
        }
    }

    async fn follow_model(&mut self) {
        let model = self.shared.usual_model();
        if model != self.model {
            self.model.clone_from(&model);
            self.report("model_changed", Some(model)).await;
        }
    }

    async fn follow_optional_work(&mut self) {
        let optional_work = self.shared.config.tier.optional_work(self.tier);
        if optional_work != self.optional_work {
            self.optional_work = optional_work;
            let effect = if optional_work { "optional_work_on" } else { "optional_work_off" };
            self.report(effect, None).await;
        }
    }

    async fn report_awaited(&mut self) {
        let status = self.shared.process.borrow().clone();
        match self.awaited {
            Some(ProcessState::Stopped) if status.state == ProcessState::Stopped => {
                self.awaited = None;
                self.report("stopped", None).await;
            }
            Some(ProcessState::Running) if status.pid.is_some() => {
                self.awaited = None;
                self.report("started", status.pid.map(|pid| format!("pid {pid}"))).await;
            }
            _ => {}
        }
    }

    async fn report(&self, effect: &str, detail: Option<String>) {
        tracing::info!(tier = %self.tier, effect, detail, "the tier has an effect");
        let effect = TierEffect { tier: self.tier, effect: effect.to_owned(), detail };
        if let Err(error) = self.shared.agent.record(EventBody::TierEffect(effect)).await {
            tracing::warn!(%error, "failed to record an effect of the tier");
        }
    }
}
