//! Renewals that are dearer than was quoted: they wait for the operator's word, with nothing set aside, and end as the
//! operator or the registrar's price says.

use chrono::{Months, TimeDelta};
use otonix_control_plane::service::automation;
use otonix_control_plane::service::purchases::{lists, resolve};
use otonix_control_plane::store::domains;
use otonix_control_plane::store::list::Query;
use otonix_control_plane::store::writer::Target;
use otonix_control_plane::worker::{purchases, renewal};
use otonix_sdk::api::purchases::{Purchase, ResolvePurchase};
use otonix_sdk::api::records::Domain;
use otonix_sdk::ids::{AgentId, DomainId};

use crate::seat::fresh;
use crate::support::{Store, on_each_store};
use crate::town::Town;

on_each_store!(
    the_operator_agrees_to_a_price,
    a_price_that_is_refused_is_not_asked_again,
    a_price_that_falls_needs_nobody,
    what_was_renewed_by_hand_waits_for_nobody,
    an_agent_that_cannot_pay_what_was_agreed_keeps_its_credits,
    a_price_that_rose_again_is_asked_anew,
    nobody_pays_for_a_domain_that_was_given_away,
    what_was_not_to_be_renewed_for_a_while_is_asked_about_again,
);

const NAME: &str = "a.example";

struct Case {
    town: Town,
    agent: AgentId,
    domain: DomainId,
}

impl Case {
    /// A domain that ends in twenty days; 10.00 were quoted.
    async fn on(store: Store, dollars: i64, cents: u32) -> Self {
        let town = Town::on(store).await;
        let agent = town.agent("a", dollars).await;
        let domain = town.domain(&agent, NAME, TimeDelta::days(20), None).await;
        town.desk.0.lock().renewal_cents = cents;
        Self { town, agent: agent.id, domain }
    }

    fn cost(&self, cents: u32) {
        self.town.desk.0.lock().renewal_cents = cents;
    }

    /// A day, with its turn and what follows of it.
    async fn day(&self) {
        renewal::run_once(&self.town.app).await.expect("a pass");
        for _ in 0..4 {
            purchases::run_once(&self.town.app).await.expect("a pass");
        }
        self.town.pass(TimeDelta::hours(24) + TimeDelta::minutes(1));
    }

    /// Purchases in a state, oldest first.
    async fn of(&self, status: &str) -> Vec<Purchase> {
        let query = Query { limit: 100, ..Query::default() };
        let found = lists::purchases(&self.town.app, &Town::operator(), query).await.expect("a list");
        let mut rows: Vec<Purchase> = found.rows.into_iter().filter(|row| row.status == status).collect();
        rows.reverse();
        rows
    }

    async fn resolve(&self, resolution: &str) -> Result<Purchase, String> {
        let waiting = self.of("needs_operator").await;
        let [one] = waiting.as_slice() else { panic!("not one waits: {waiting:?}") };
        let body = ResolvePurchase { resolution: resolution.to_owned(), vendor_id: None, note: None };
        let done = resolve::resolve(&self.town.app, &Town::operator(), one.id, body, None).await;
        done.map(fresh).map_err(|error| error.code().as_str().to_owned())
    }

    /// Changes the domain's row as a PATCH does.
    async fn change(&self, row: Domain) {
        let changed =
            self.town.app.writer.apply(Target::Alone, move |tx| {
                Box::pin(async move { Ok(domains::update(tx, &row).await?) })
            });
        changed.await.expect("it is changed");
    }

    async fn credits(&self) -> String {
        self.town.credits(self.agent).await
    }

    fn renewed(&self) -> usize {
        self.town.desk.0.lock().count("renew")
    }
}

async fn the_operator_agrees_to_a_price(store: Store) {
    let case = Case::on(store, 100, 1251).await;
    let other = case.town.again().await;
    let (one, two) = tokio::join!(renewal::run_once(&case.town.app), renewal::run_once(&other.app));
    assert!(one.is_ok() || two.is_ok(), "{one:?} {two:?}");
    other.stop().await;
    for _ in 0..3 {
        case.day().await;
    }
    let waiting = case.of("needs_operator").await;
    let [asked] = waiting.as_slice() else { panic!("{waiting:?}") };
    assert_eq!((asked.kind.as_str(), asked.price.to_string().as_str()), ("renewal", "12.51"));
    assert_eq!((asked.subject.as_str(), asked.failure_code.as_deref()), (NAME, Some("price_moved")));
    assert_eq!((case.credits().await.as_str(), case.renewed()), ("100", 0), "nothing is set aside");
    assert_eq!(case.town.failures(case.agent, "domain a.example is not renewed").await, 1);
    let done = automation::done(&case.town.app).await.expect("the database").renewals;
    assert_eq!((done.attempts, done.successes), (0, 0), "a question is no attempt");
    case.town.audit().await;
    // It cannot be called delivered: nobody has paid for it.
    assert_eq!(case.resolve("delivered").await.map(|_| ()), Err("conflict".to_owned()));
    let end = case.town.domain_row(case.domain).await.expires_at.expect("an end");
    assert_eq!(case.resolve("retry").await.expect("agreed").status, "paid");
    assert_eq!(case.credits().await, "87.49", "set aside");
    case.town.audit().await;
    for _ in 0..3 {
        case.day().await;
    }
    let later = end.checked_add_months(Months::new(12)).expect("a time");
    assert_eq!(case.town.domain_row(case.domain).await.expires_at, Some(later));
    assert_eq!((case.credits().await.as_str(), case.renewed()), ("87.49", 1));
    let done = automation::done(&case.town.app).await.expect("the database").renewals;
    assert_eq!((done.attempts, done.successes), (1, 1));
    assert!(case.of("needs_operator").await.is_empty());
    case.town.audit().await;
}

async fn a_price_that_is_refused_is_not_asked_again(store: Store) {
    let case = Case::on(store, 100, 2000).await;
    case.day().await;
    assert_eq!(case.resolve("failed").await.expect("refused").status, "failed");
    for _ in 0..3 {
        case.day().await;
    }
    assert!(case.of("needs_operator").await.is_empty(), "the answer was no");
    // Another price is another question.
    case.cost(1500);
    case.day().await;
    assert_eq!(case.of("needs_operator").await.len(), 1);
    assert_eq!(case.resolve("failed").await.expect("refused").status, "failed");
    case.cost(1000);
    for _ in 0..2 {
        case.day().await;
    }
    assert_eq!((case.credits().await.as_str(), case.renewed()), ("90", 1));
    case.town.audit().await;
}

async fn a_price_that_falls_needs_nobody(store: Store) {
    let case = Case::on(store, 100, 1300).await;
    case.day().await;
    assert_eq!(case.of("needs_operator").await.len(), 1);
    case.cost(1250);
    for _ in 0..2 {
        case.day().await;
    }
    assert!(case.of("needs_operator").await.is_empty());
    assert_eq!((case.credits().await.as_str(), case.renewed()), ("87.5", 1));
    case.town.audit().await;
}

async fn what_was_renewed_by_hand_waits_for_nobody(store: Store) {
    let case = Case::on(store, 100, 1300).await;
    case.day().await;
    let end = case.town.domain_row(case.domain).await.expires_at.expect("an end");
    let later = end.checked_add_months(Months::new(12)).expect("a time");
    case.town.desk.0.lock().domains.insert(NAME.to_owned(), later);
    case.day().await;
    assert!(case.of("needs_operator").await.is_empty());
    assert_eq!(case.town.domain_row(case.domain).await.expires_at, Some(later));
    assert_eq!((case.credits().await.as_str(), case.renewed()), ("100", 0));
    case.town.audit().await;
}

async fn an_agent_that_cannot_pay_what_was_agreed_keeps_its_credits(store: Store) {
    let case = Case::on(store, 12, 1300).await;
    case.day().await;
    assert_eq!(case.resolve("retry").await.map(|_| ()), Err("insufficient_credits".to_owned()));
    assert_eq!((case.of("needs_operator").await.len(), case.credits().await.as_str()), (1, "12"));
    case.town.grant(case.agent, 10).await;
    case.resolve("retry").await.expect("agreed");
    case.day().await;
    assert_eq!((case.credits().await.as_str(), case.renewed()), ("9", 1));
    case.town.audit().await;
}

async fn a_price_that_rose_again_is_asked_anew(store: Store) {
    let case = Case::on(store, 100, 1300).await;
    case.day().await;
    case.cost(1400);
    // Agreed to was 13: nothing is bought for 14, and what was set aside is back.
    case.resolve("retry").await.expect("agreed");
    case.day().await;
    assert_eq!((case.credits().await.as_str(), case.renewed()), ("100", 0));
    case.day().await;
    let waiting = case.of("needs_operator").await;
    assert_eq!(waiting.iter().map(|row| row.price.to_string()).collect::<Vec<_>>(), ["14"]);
    // A question that is not answered is asked at the price of the day.
    case.cost(1500);
    case.day().await;
    let waiting = case.of("needs_operator").await;
    assert_eq!(waiting.iter().map(|row| row.price.to_string()).collect::<Vec<_>>(), ["15"]);
    case.town.audit().await;
}

async fn nobody_pays_for_a_domain_that_was_given_away(store: Store) {
    let case = Case::on(store, 100, 1300).await;
    case.day().await;
    let other = case.town.agent("b", 100).await;
    let row = case.town.domain_row(case.domain).await;
    case.change(Domain { agent_id: Some(other.id), ..row }).await;
    assert_eq!(case.resolve("retry").await.map(|_| ()), Err("conflict".to_owned()));
    assert_eq!(case.credits().await, "100");
    // The next turn asks for whose it is now.
    case.day().await;
    case.resolve("retry").await.expect("agreed");
    case.day().await;
    let paid = case.town.credits(other.id).await;
    assert_eq!((case.credits().await.as_str(), paid.as_str(), case.renewed()), ("100", "87", 1));
    case.town.audit().await;
}

async fn what_was_not_to_be_renewed_for_a_while_is_asked_about_again(store: Store) {
    let case = Case::on(store, 100, 1300).await;
    case.day().await;
    let row = case.town.domain_row(case.domain).await;
    case.change(Domain { auto_renew: false, ..row.clone() }).await;
    case.day().await;
    assert!(case.of("needs_operator").await.is_empty());
    case.change(row).await;
    case.day().await;
    assert_eq!(case.of("needs_operator").await.len(), 1);
    case.town.audit().await;
}
