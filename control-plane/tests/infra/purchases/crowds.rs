//! An order whose answer was lost, in a project with hundreds of servers: it is found on whichever page it stands, and a
//! look that ends half-way has shown nothing.

use std::time::Duration;

use chrono::{TimeDelta, Utc};
use otonix_control_plane::service::purchases::book::Wanted;
use otonix_control_plane::service::purchases::item::{Item, ServerItem};
use otonix_control_plane::service::purchases::open;
use otonix_control_plane::store::purchases as rows;
use otonix_control_plane::store::purchases::Purchase;
use otonix_control_plane::worker::{purchases as worker, renewal};
use otonix_sdk::clock::TestClock;
use otonix_sdk::money::MicroUsd;
use uuid::Uuid;

use crate::fake::Fake;
use crate::fake::cherry::PROJECT;
use crate::fake::switches::How;
use crate::fake::vercel::Owned;
use crate::seat::{Place, Seat};
use crate::support::database::execute;
use crate::support::{Store, on_each_store};
use crate::town::Town;

on_each_store!(
    a_lost_order_is_found_among_hundreds,
    half_a_look_is_no_look,
    new_servers_are_looked_at_by_one_pass_at_a_time,
    domains_that_end_are_looked_at_by_one_pass_at_a_time,
);

const PLAN: &str = "B1-1-1gb-20s-shared";

struct Crowd {
    seat: Seat,
    fake: Fake,
    id: Uuid,
}

impl Crowd {
    /// A server is ordered beside 250 others, and whether it was made is not known.
    async fn with(store: Store, how: How) -> Self {
        let fake = Fake::start();
        fake.with(|world| (1..=250).for_each(|id| world.cherry.put(id, PLAN, "10.0.0.1")));
        let options = fake.options();
        let options: Vec<_> = options.iter().map(|(flag, value)| (*flag, value.as_str())).collect();
        let seat = Seat::open(Place::fresh(store).await, TestClock::at(Utc::now()), &options, None).await;
        let owner = seat.owner().await;
        let agent = seat.register(&owner, "a").await;
        seat.grant_micros(agent.id, 20_000_000).await;
        let item = Item::Server(ServerItem {
            project: PROJECT,
            plan: PLAN.to_owned(),
            region: "LT-Siauliai".to_owned(),
            image: "debian_12_64bit".to_owned(),
            hostname: "lost".to_owned(),
            cycle: "hourly".to_owned(),
            periods: 24,
            ssh_keys: Vec::new(),
            bootstrap: false,
            cpu: None,
            memory: None,
            disk: None,
        });
        let price = MicroUsd::from_micros(435_600);
        let (agent, owner) = (agent.id, agent.owner_id.uuid());
        let wanted = Wanted { item, private: None, price, agent: agent.uuid(), owner, idem: None };
        let id = open::by_credits(&seat.app, agent, wanted).await.expect("it is opened");
        fake.fail("createServer", how);
        let crowd = Self { seat, fake, id };
        crowd.pass(0).await;
        assert_eq!((crowd.row().await.status.as_str(), crowd.fake.count("createServer")), ("unknown", 1));
        crowd
    }

    /// So many minutes, and a pass.
    async fn pass(&self, minutes: i64) {
        self.seat.pass(TimeDelta::minutes(minutes));
        self.fake.advance(TimeDelta::minutes(minutes));
        worker::run_once(&self.seat.app).await.expect("a pass");
    }

    async fn row(&self) -> Purchase {
        let id = self.id;
        let found = self.seat.app.db.read(move |conn| Box::pin(async move { rows::by_id(conn, id).await }));
        found.await.expect("the database").expect("a purchase")
    }

    /// The first page of the next list comes, and the others do not.
    fn break_off(&self) {
        self.fake.mend();
        self.fake.fail("listServers", How::Late(Duration::ZERO));
        self.fake.fail_times("listServers", How::Instead(500), 3);
    }

    fn made(&self) -> usize {
        self.fake
            .with(|world| world.cherry.machines.values().filter(|machine| machine.hostname == "lost").count())
    }
}

async fn a_lost_order_is_found_among_hundreds(store: Store) {
    let crowd = Crowd::with(store, How::Lost).await;
    // While it is looked for, one above it goes.
    crowd.fake.with(|world| world.cherry.going = vec![5]);
    crowd.pass(3).await;
    let row = crowd.row().await;
    assert_eq!((row.status.as_str(), crowd.made()), ("delivered", 1));
    assert_eq!(crowd.fake.count("createServer"), 1);
    crowd.seat.audit().await;
    assert!(crowd.fake.violations().is_empty(), "{:?}", crowd.fake.violations());
}

async fn half_a_look_is_no_look(store: Store) {
    let crowd = Crowd::with(store, How::Lost).await;
    for _ in 0..4 {
        crowd.break_off();
        crowd.pass(4).await;
        let row = crowd.row().await;
        assert_eq!((row.status.as_str(), row.absent_since), ("unknown", None));
    }
    assert_eq!(crowd.fake.count("createServer"), 1, "more than ten minutes of nothing are no answer");
    crowd.fake.mend();
    crowd.pass(1).await;
    assert_eq!((crowd.row().await.status.as_str(), crowd.made()), ("delivered", 1));
    // What was never made is said to be absent by whole looks, for ten minutes, and only then ordered again.
    let crowd = Crowd::with(store, How::Unheard).await;
    crowd.pass(3).await;
    assert!(crowd.row().await.absent_since.is_some());
    crowd.pass(9).await;
    assert_eq!(crowd.fake.count("createServer"), 1);
    crowd.pass(2).await;
    crowd.pass(0).await;
    assert_eq!((crowd.row().await.status.as_str(), crowd.made()), ("delivered", 1));
    crowd.seat.audit().await;
}

async fn new_servers_are_looked_at_by_one_pass_at_a_time(store: Store) {
    let fake = Fake::start();
    let options = fake.options();
    let options: Vec<_> = options.iter().map(|(flag, value)| (*flag, value.as_str())).collect();
    let place = Place::fresh(store).await;
    let town = Town::beside(place.url.clone(), &options).await;
    let agent = town.agent("a", 10).await;
    for id in 1..=3 {
        fake.with(|world| world.cherry.put(id, PLAN, "10.0.0.1"));
        town.server_of(&agent, id, PLAN, "monthly", TimeDelta::days(9), "10.0.0.1").await;
    }
    let deploying = "UPDATE sandboxes SET status = 'deploying'";
    assert_eq!(execute(&place.url, deploying).await, 3);
    // A vendor that takes its time is not asked the same by the next pass meanwhile.
    fake.fail("getServer", How::Late(Duration::from_millis(300)));
    let (one, two) = tokio::join!(worker::run_once(&town.app), worker::run_once(&town.app));
    assert!(one.is_ok() && two.is_ok(), "{one:?} {two:?}");
    assert_eq!(fake.count("getServer"), 3);
    assert_eq!(execute(&place.url, deploying).await, 3, "all of them run");
}

async fn domains_that_end_are_looked_at_by_one_pass_at_a_time(store: Store) {
    let fake = Fake::start();
    let options = fake.options();
    let options: Vec<_> = options.iter().map(|(flag, value)| (*flag, value.as_str())).collect();
    let place = Place::fresh(store).await;
    let town = Town::beside(place.url.clone(), &options).await;
    let agent = town.agent("a", 1).await;
    for index in 0..3 {
        let name = format!("d{index}.com");
        town.domain(&agent, &name, TimeDelta::days(20), None).await;
        let expires_at = town.now() + TimeDelta::days(20);
        let owned = Owned {
            bought_at: expires_at - TimeDelta::days(365),
            expires_at,
            renews_itself: false,
            records: Vec::new(),
            contact: serde_json::Value::Null,
        };
        fake.with(|world| world.vercel.domains.insert(name, owned));
    }
    fake.fail("getDomain", How::Late(Duration::from_millis(300)));
    let (one, two) = tokio::join!(renewal::run_once(&town.app), renewal::run_once(&town.app));
    assert!(one.is_ok() && two.is_ok(), "{one:?} {two:?}");
    assert_eq!(fake.count("getDomain"), 3);
}
