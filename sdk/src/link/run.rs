//! Keeps a session going: chooses the transport, and how long to wait after each end.

use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::api::actions::LogAction;
use crate::api::events::EventBody;
use crate::clock::{Clock as _, SystemClock};
use crate::error::ErrorCode;
use crate::link::Transport;
use crate::link::backoff::{Backoff, upto};
use crate::link::core::{Core, on_disk};
use crate::link::rest;
use crate::link::session::{self, End};

/// New epochs in a row without an acknowledged event before they are slowed down.
const QUICK_FORKS: u32 = 3;
/// A session that lasted so long was no failure.
const LASTING: Duration = Duration::from_secs(30);
/// Who is superseded so soon may have been overtaken by a connection of its own that was cut before, and only now
/// reached the server.
const YOUNG: Duration = Duration::from_secs(10);
/// That another copy of the agent lives is reported at most so often.
const TELL_EVERY: Duration = Duration::from_secs(3600);
/// The standing is written down at most so often.
const PERSIST_EVERY: Duration = Duration::from_secs(1);

#[derive(Debug)]
struct Chooser {
    wanted: Transport,
    /// Failures of gRPC in a row, until one session worked.
    failures: u32,
    /// The last session that worked was REST.
    on_rest: bool,
    limit: u32,
    last: Transport,
    /// Times that gRPC was tried again from REST, in vain.
    probes: u32,
}

/// The first try of gRPC from REST comes after the configured time divided by two so often, and each later one takes
/// twice as long: after a server's restart the fallback is short, behind a network without HTTP/2 tries are rare.
const PROBE_DOUBLINGS: u32 = 4;

impl Chooser {
    /// How long to stay on REST before gRPC is tried again.
    fn stay(&self, longest: Duration) -> Duration {
        longest / 2_u32.pow(PROBE_DOUBLINGS.saturating_sub(self.probes))
    }

    fn next(&mut self) -> Transport {
        let choice = match self.wanted {
            Transport::Grpc => Transport::Grpc,
            Transport::Rest => Transport::Rest,
            Transport::Auto if self.failures < self.limit => Transport::Grpc,
            // Neither is known to work: take turns.
            Transport::Auto if self.last == Transport::Rest && !self.on_rest => Transport::Grpc,
            Transport::Auto => Transport::Rest,
        };
        self.last = choice;
        choice
    }

    fn ended(&mut self, end: &End) {
        match (self.last, end) {
            (Transport::Rest, End::Probe) => {
                self.failures = self.limit.saturating_sub(1);
                self.probes = self.probes.saturating_add(1);
                self.on_rest = true;
            }
            (Transport::Rest, End::Lost { welcomed, .. }) => self.on_rest = *welcomed,
            (Transport::Rest, _) => self.on_rest = true,
            (_, End::Lost { welcomed: false, .. }) => self.failures = self.failures.saturating_add(1),
            (_, _) => {
                self.failures = 0;
                self.probes = 0;
                self.on_rest = false;
            }
        }
    }
}

/// What sessions before left behind.
#[derive(Debug)]
struct Course {
    backoff: Backoff,
    /// New epochs in a row without an acknowledged event.
    forks: u32,
    /// How long the last session lived.
    lived: Duration,
    /// The session before was superseded while it was young.
    overtaken: bool,
    /// When another copy was reported last.
    told: Option<Instant>,
}

impl Course {
    /// Tells the operator of another copy of this agent, through the log like everything else. Only the copies
    /// themselves can tell each other from a machine that reconnects.
    async fn tell_of_a_copy(&mut self, core: &Core, action: &str, details: String) {
        if self.told.is_some_and(|told| told.elapsed() < TELL_EVERY) {
            return;
        }
        let action = LogAction {
            action: action.to_owned(),
            category: "system".to_owned(),
            details: Some(details),
            status: Some("failed".to_owned()),
            autonomous: None,
        };
        match core.record(EventBody::Action(action), None).await {
            Ok(_) => self.told = Some(Instant::now()),
            Err(error) => tracing::warn!(%error, "failed to record that another copy of this agent lives"),
        }
    }
}

/// Runs the link until it is stopped.
pub(crate) async fn run(core: Arc<Core>) {
    core.fail_unfinished().await;
    let tuning = core.config.tuning.clone();
    let backoff = Backoff::new(tuning.backoff_base, tuning.backoff_cap);
    let mut course = Course { backoff, forks: 0, lived: Duration::ZERO, overtaken: false, told: None };
    let mut chooser = Chooser {
        wanted: core.config.transport,
        failures: 0,
        on_rest: false,
        limit: tuning.grpc_failures,
        last: Transport::Auto,
        probes: 0,
    };
    let mut acked = core.spool.view().acked;
    while !core.stop.is_cancelled() {
        let started = Instant::now();
        let end = match chooser.next() {
            Transport::Rest => {
                let stay = chooser.stay(tuning.grpc_probe);
                let probe = (core.config.transport == Transport::Auto).then(|| stay + upto(stay / 4));
                rest::run(&core, probe).await
            }
            Transport::Auto | Transport::Grpc => session::run(&core).await,
        };
        chooser.ended(&end);
        course.lived = started.elapsed();
        if course.lived > LASTING {
            course.backoff.reset();
        }
        if course.lived > YOUNG {
            course.overtaken = false;
        }
        let progress = core.spool.view().acked;
        if progress > acked {
            acked = progress;
            course.forks = 0;
            course.backoff.reset();
        }
        let wait = after(&core, end, &mut course).await;
        if core.stop.is_cancelled() {
            break;
        }
        tokio::select! {
            () = tokio::time::sleep(wait) => {}
            () = core.stop.cancelled() => {}
        }
    }
    core.disconnected(None);
}

/// Settles the end of a session: how long to wait before the next.
async fn after(core: &Arc<Core>, end: End, course: &mut Course) -> Duration {
    let tuning = &core.config.tuning;
    match end {
        End::Done => Duration::ZERO,
        End::Probe => Duration::ZERO,
        End::Lost { error, retry_after, .. } => {
            core.disconnected(Some(error));
            course.backoff.next(retry_after)
        }
        End::Fork(why) => {
            core.disconnected(Some(format!("a new epoch is needed: {why}")));
            course.forks += 1;
            if let Err(error) = core.spool.new_epoch().await {
                tracing::warn!(%error, "failed to open a new epoch");
                return course.backoff.next(None);
            }
            tracing::warn!(why, "opened a new epoch; what was not acknowledged is sent again");
            let action = "another copy of this agent may exist: its events are numbered anew";
            course.tell_of_a_copy(core, action, format!("a restored snapshot, or a clone: {why}")).await;
            if course.forks <= QUICK_FORKS { Duration::ZERO } else { course.backoff.next(None) }
        }
        End::Refused { code, error } => {
            tracing::warn!(%error, code = code.as_str(), "the control plane refuses the API key");
            core.disconnected(Some(error));
            core.refused(code);
            tuning.refused_pause + upto(tuning.refused_pause)
        }
        End::Away { reason, detail, retry_after } => {
            core.disconnected(Some(format!("sent away: {reason} {detail}").trim_end().to_owned()));
            let asked = retry_after.unwrap_or_default();
            match reason.as_str() {
                // Two live machines with one identity must not throw each other out in turns.
                "superseded" if course.lived <= YOUNG && !course.overtaken => {
                    course.overtaken = true;
                    course.backoff.next(retry_after)
                }
                "superseded" => {
                    tracing::warn!("another machine took over with this agent's identity");
                    let details = "a newer session with this agent's identity took over from this machine";
                    course
                        .tell_of_a_copy(core, "another copy of this agent is live", details.to_owned())
                        .await;
                    asked.max(tuning.superseded_pause) + upto(tuning.superseded_pause)
                }
                "killed" | "revoked" | "not_found" => {
                    match reason.as_str() {
                        "killed" => core.keeper.killed(SystemClock.now()),
                        "revoked" => core.refused(ErrorCode::RevokedKey),
                        _ => core.refused(ErrorCode::NotFound),
                    }
                    asked.max(tuning.refused_pause) + upto(tuning.refused_pause)
                }
                "shutting_down" => {
                    course.backoff.reset();
                    asked + course.backoff.next(None)
                }
                _ => course.backoff.next(retry_after),
            }
        }
    }
}

/// Writes the standing down when it changed, at most once a second.
pub(crate) async fn persist(core: Arc<Core>) {
    loop {
        core.keeper.dirty().await;
        let at_work = Arc::clone(&core);
        on_disk(move || at_work.keeper.persist()).await;
        tokio::time::sleep(PERSIST_EVERY).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn chooser(wanted: Transport) -> Chooser {
        Chooser { wanted, failures: 0, on_rest: false, limit: 3, last: Transport::Auto, probes: 0 }
    }

    #[test]
    fn rest_is_tried_when_grpc_keeps_failing_and_grpc_again_later() {
        let mut chooser = chooser(Transport::Auto);
        let failed = End::lost("refused", false);
        for _ in 0..3 {
            assert_eq!(chooser.next(), Transport::Grpc);
            chooser.ended(&failed);
        }
        assert_eq!(chooser.next(), Transport::Rest);
        chooser.ended(&failed);
        assert_eq!(chooser.next(), Transport::Grpc);
        chooser.ended(&failed);
        assert_eq!(chooser.next(), Transport::Rest);
        chooser.ended(&End::lost("cut", true));
        assert_eq!(chooser.next(), Transport::Rest);
        chooser.ended(&End::Probe);
        assert_eq!(chooser.next(), Transport::Grpc);
        chooser.ended(&failed);
        assert_eq!(chooser.next(), Transport::Rest);
        chooser.ended(&End::Probe);
        assert_eq!(chooser.next(), Transport::Grpc);
        chooser.ended(&End::lost("cut", true));
        assert_eq!(chooser.next(), Transport::Grpc);
    }

    #[test]
    fn grpc_is_tried_soon_and_then_more_and_more_rarely() {
        let longest = Duration::from_secs(240);
        let mut chooser = chooser(Transport::Auto);
        chooser.failures = 3;
        let mut stays = Vec::new();
        for _ in 0..6 {
            assert_eq!(chooser.next(), Transport::Rest);
            stays.push(chooser.stay(longest).as_secs());
            chooser.ended(&End::Probe);
            assert_eq!(chooser.next(), Transport::Grpc);
            chooser.ended(&End::lost("refused", false));
        }
        assert_eq!(stays, [15, 30, 60, 120, 240, 240]);
        assert_eq!(chooser.next(), Transport::Rest);
        chooser.ended(&End::Probe);
        assert_eq!(chooser.next(), Transport::Grpc);
        chooser.ended(&End::lost("cut", true));
        assert_eq!(chooser.stay(longest).as_secs(), 15, "a session over gRPC worked");
    }

    #[test]
    fn a_fixed_transport_stays() {
        for wanted in [Transport::Grpc, Transport::Rest] {
            let mut chooser = chooser(wanted);
            for _ in 0..10 {
                assert_eq!(chooser.next(), wanted);
                chooser.ended(&End::lost("refused", false));
            }
        }
    }
}
