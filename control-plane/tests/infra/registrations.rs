//! Managed domains at the registrar, on a clock that the test moves: registrants that must confirm, and what somebody has
//! switched in the vendor's dashboard.

use chrono::TimeDelta;
use otonix_control_plane::store::domains;
use otonix_control_plane::store::writer::Target;
use otonix_control_plane::upstream::providers::Confirmation;
use otonix_control_plane::worker::{registrations, renewal};
use otonix_sdk::api::records::Domain;
use otonix_sdk::ids::AgentId;

use crate::support::{Store, on_each_store};
use crate::town::{Fault, Town};

on_each_store!(
    a_registrant_who_must_confirm_is_told_of_until_it_is_done,
    a_time_that_runs_out_is_told_of_once_more,
    the_registrar_is_kept_from_renewing_by_itself,
    nameservers_are_put_back_where_a_zone_is_kept,
    a_look_is_taken_by_one_replica,
    a_domain_without_an_end_gets_the_registrar_s,
    a_domain_that_was_renewed_late_is_ours_again,
);

const NAME: &str = "a.example";

fn minutes(n: i64) -> TimeDelta {
    TimeDelta::minutes(n)
}

async fn pass(town: &Town) {
    registrations::run_once(&town.app).await.expect("a pass");
}

/// Lines of an agent's log about its registrant: how many wait, how many are urgent, how many are done.
async fn told(town: &Town, agent: AgentId) -> (usize, usize, usize) {
    let log = town.log(agent).await;
    let count = |status: &str, word: &str| {
        log.iter().filter(|line| line.status == status && line.action.contains(word)).count()
    };
    (count("pending", "must confirm"), count("failed", "must confirm"), count("completed", "has confirmed"))
}

async fn a_registrant_who_must_confirm_is_told_of_until_it_is_done(store: Store) {
    let town = Town::on(store).await;
    let agent = town.agent("a", 10).await;
    let domain = town.domain(&agent, NAME, TimeDelta::days(365), None).await;
    let until = town.now() + TimeDelta::days(14);
    town.desk.0.lock().confirmation = Some(Confirmation::Awaited { until: Some(until) });
    // The registrar is not asked in the first half an hour.
    pass(&town).await;
    town.pass(minutes(30));
    pass(&town).await;
    assert_eq!((told(&town, agent.id).await, town.domain_row(domain).await.verify_by), ((0, 0, 0), None));
    // It does not know yet: that says nothing.
    town.pass(minutes(2));
    town.desk.0.lock().confirmation = None;
    pass(&town).await;
    assert_eq!(town.domain_row(domain).await.contact_verified, None);
    town.desk.0.lock().confirmation = Some(Confirmation::Awaited { until: Some(until) });
    for _ in 0..5 {
        town.pass(minutes(11));
        pass(&town).await;
    }
    let row = town.domain_row(domain).await;
    assert_eq!((row.contact_verified, row.verify_by), (Some(false), Some(until)));
    assert_eq!(told(&town, agent.id).await, (1, 0, 0));
    town.desk.0.lock().confirmation = Some(Confirmation::Given);
    for _ in 0..3 {
        town.pass(minutes(61));
        pass(&town).await;
    }
    let row = town.domain_row(domain).await;
    assert_eq!((row.contact_verified, row.verify_by), (Some(true), None));
    assert_eq!(told(&town, agent.id).await, (1, 0, 1));
    // Another address is to be confirmed later: it is told of anew.
    let until = town.now() + TimeDelta::days(30);
    town.desk.0.lock().confirmation = Some(Confirmation::Awaited { until: Some(until) });
    town.pass(TimeDelta::hours(25));
    pass(&town).await;
    assert_eq!(told(&town, agent.id).await, (2, 0, 1));
}

async fn a_time_that_runs_out_is_told_of_once_more(store: Store) {
    let town = Town::on(store).await;
    let agent = town.agent("a", 10).await;
    let domain = town.domain(&agent, NAME, TimeDelta::days(365), None).await;
    let until = town.now() + TimeDelta::days(5);
    town.desk.0.lock().confirmation = Some(Confirmation::Awaited { until: Some(until) });
    let mut seen = Vec::new();
    for _ in 0..6 * 24 {
        town.pass(minutes(61));
        pass(&town).await;
        let now = told(&town, agent.id).await;
        if seen.last() != Some(&now) {
            seen.push(now);
        }
    }
    // When it is known, three days before, and when it is over.
    assert_eq!(seen, [(1, 0, 0), (1, 1, 0), (1, 2, 0)]);
    assert_eq!(town.domain_row(domain).await.verify_by, Some(until));
    assert_eq!(town.domain_row(domain).await.status, "active", "the registry decides, not we");
}

async fn the_registrar_is_kept_from_renewing_by_itself(store: Store) {
    let town = Town::on(store).await;
    let agent = town.agent("a", 10).await;
    town.domain(&agent, NAME, TimeDelta::days(365), None).await;
    {
        let mut known = town.desk.0.lock();
        known.confirmation = Some(Confirmation::Given);
        known.renewing_itself.insert(NAME.to_owned());
        // Refused for now, then done without an answer.
        known.faults.extend([Fault::Refused, Fault::Unheard]);
    }
    town.pass(minutes(32));
    for _ in 0..5 {
        for _ in 0..3 {
            pass(&town).await;
        }
        town.pass(minutes(11));
    }
    assert_eq!(town.desk.0.lock().done, ["stop a.example"]);
    town.desk.0.lock().renewing_itself.insert(NAME.to_owned());
    // Refused for good: that is for tomorrow, not for every ten minutes.
    town.desk.0.lock().faults.extend([Fault::Never]);
    town.pass(TimeDelta::hours(24));
    for _ in 0..4 {
        pass(&town).await;
        town.pass(minutes(11));
    }
    let sent = {
        let known = town.desk.0.lock();
        (known.done.len(), known.faults.len())
    };
    assert_eq!(sent, (1, 0));
    town.pass(TimeDelta::hours(24));
    pass(&town).await;
    assert_eq!(town.desk.0.lock().done.len(), 2);
    let log = town.log(agent.id).await;
    assert!(
        log.iter().any(|line| line.action == "domain a.example is no longer renewed by the registrar itself")
    );
}

async fn nameservers_are_put_back_where_a_zone_is_kept(store: Store) {
    let town = Town::on(store).await;
    let agent = town.agent("a", 10).await;
    let server = town.server(&agent, 7, "monthly", TimeDelta::days(20)).await;
    town.domain(&agent, NAME, TimeDelta::days(365), Some(server)).await;
    town.domain(&agent, "free.example", TimeDelta::days(365), None).await;
    {
        let mut known = town.desk.0.lock();
        known.confirmation = Some(Confirmation::Given);
        known.elsewhere.extend([NAME.to_owned(), "free.example".to_owned()]);
    }
    town.pass(minutes(32));
    for _ in 0..4 {
        pass(&town).await;
        town.pass(minutes(11));
    }
    assert_eq!(town.desk.0.lock().done, ["nameservers a.example"]);
}

async fn a_look_is_taken_by_one_replica(store: Store) {
    let town = Town::on(store).await;
    let other = town.again().await;
    let agent = town.agent("a", 10).await;
    town.domain(&agent, NAME, TimeDelta::days(365), None).await;
    let until = town.now() + TimeDelta::days(14);
    {
        let mut known = town.desk.0.lock();
        known.confirmation = Some(Confirmation::Awaited { until: Some(until) });
        known.renewing_itself.insert(NAME.to_owned());
        // Whatever is sent is sent again only after the next look.
        known.faults.push_back(Fault::Refused);
    }
    town.pass(minutes(32));
    let (one, two) = tokio::join!(registrations::run_once(&town.app), registrations::run_once(&other.app));
    assert!(one.is_ok() || two.is_ok(), "{one:?} {two:?}");
    for _ in 0..3 {
        town.stop().await;
        pass(&other).await;
        other.stop().await;
        pass(&town).await;
    }
    assert!(town.desk.0.lock().done.is_empty(), "it is not sent a second time before the next look");
    // Whoever lost the lease in the midst of a look has written nothing; the next look does.
    town.pass(minutes(11));
    pass(&town).await;
    assert_eq!(told(&town, agent.id).await, (1, 0, 0));
    assert!(town.desk.0.lock().faults.is_empty(), "it was sent");
}

async fn a_domain_without_an_end_gets_the_registrar_s(store: Store) {
    let town = Town::on(store).await;
    let agent = town.agent("a", 10).await;
    let id = town.domain(&agent, NAME, TimeDelta::days(365), None).await;
    let row = town.domain_row(id).await;
    let end = row.expires_at;
    let unknown = Domain { expires_at: None, ..row };
    let declared = town
        .app
        .writer
        .apply(Target::Alone, move |tx| Box::pin(async move { Ok(domains::update(tx, &unknown).await?) }));
    declared.await.expect("it is declared");
    town.pass(minutes(32));
    pass(&town).await;
    let row = town.domain_row(id).await;
    assert_eq!((row.expires_at, row.status.as_str()), (end, "active"));
}

async fn a_domain_that_was_renewed_late_is_ours_again(store: Store) {
    let town = Town::on(store).await;
    let agent = town.agent("a", 0).await;
    let id = town.domain(&agent, NAME, TimeDelta::days(2), None).await;
    town.desk.0.lock().confirmation = Some(Confirmation::Given);
    pass(&town).await;
    town.pass(TimeDelta::days(3));
    renewal::run_once(&town.app).await.expect("a pass");
    assert_eq!(town.domain_row(id).await.status, "expired");
    pass(&town).await;
    assert_eq!(town.domain_row(id).await.status, "expired");
    // Within the registry's grace somebody pays for it by hand.
    let later = town.now() + TimeDelta::days(360);
    town.desk.0.lock().domains.insert(NAME.to_owned(), later);
    town.pass(TimeDelta::hours(25));
    pass(&town).await;
    let row = town.domain_row(id).await;
    assert_eq!((row.status.as_str(), row.expires_at), ("active", Some(later)));
}
