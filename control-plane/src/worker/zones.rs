//! Points managed domains at their servers: `A @` (`AAAA` for an IPv6 address) and `CNAME www`, and keeps them, as long as
//! the server is there. Other records are left alone.
//!
//! A look is noted before anything is changed, and nobody looks again before whatever was sent has certainly come; the
//! records that are there then decide what is missing.

use std::net::IpAddr;
use std::time::Duration;

use chrono::TimeDelta;
use otonix_sdk::api::records::DnsRecord;
use uuid::Uuid;

use crate::app::App;
use crate::error::Error;
use crate::service::dns;
use crate::store::actions::{self, ActionRow};
use crate::store::agents;
use crate::store::keeping::{self, Pointed};
use crate::store::writer::{Target, Tx};
use crate::upstream::providers::{
    Deadline, DnsZone, DomainName, NewRecord, RecordData, Refusal, VendorError, ZoneRecord,
};
use crate::worker::{Held, hold};

const LEASE: &str = "zones";
/// Domains of one pass.
const PAGE: i64 = 50;
/// How often a zone is looked at that should be well.
const LOOK_EVERY: TimeDelta = TimeDelta::minutes(10);
/// How soon at most one that is not: longer than a request may be on its way.
const AGAIN_AFTER: TimeDelta = TimeDelta::minutes(3);
const SEND_FOR: Duration = Duration::from_secs(55);
/// Seconds.
const TTL: u32 = 300;

/// One pass over the domains that are linked to a server.
///
/// # Errors
/// 503 without database.
pub async fn run_once(app: &App) -> Result<(), Error> {
    let Some(vendor) = &app.vendors.dns else { return Ok(()) };
    let Some(held) = hold(app, LEASE).await? else { return Ok(()) };
    app.shared.cycled();
    let now = app.clock.now();
    let due = app.db.read(move |conn| {
        Box::pin(async move { keeping::to_point(conn, now - LOOK_EVERY, now - AGAIN_AFTER, PAGE).await })
    });
    for pointed in due.await? {
        if let Err(error) = keep(app, held, vendor.as_ref(), &pointed).await {
            tracing::warn!(domain = pointed.name, %error, "a zone could not be seen to");
        }
    }
    let left = app
        .db
        .read(move |conn| Box::pin(async move { keeping::to_clear(conn, now - AGAIN_AFTER, PAGE).await }));
    for pointed in left.await? {
        if let Err(error) = clear(app, held, vendor.as_ref(), &pointed).await {
            tracing::warn!(domain = pointed.name, %error, "a zone could not be cleared");
        }
    }
    Ok(())
}

/// What is to be done to a zone.
#[derive(Debug, Default, PartialEq, Eq)]
struct Plan {
    /// What stands there in the end of what is ours, and what of it does not any more.
    wanted: Vec<NewRecord>,
    left: Option<NewRecord>,
    /// The record that becomes another one in its place.
    moved: Option<(ZoneRecord, NewRecord)>,
    missing: Vec<NewRecord>,
    stale: Vec<ZoneRecord>,
}

impl Plan {
    fn is_done(&self) -> bool {
        self.moved.is_none() && self.missing.is_empty() && self.stale.is_empty()
    }
}

fn apex_at(address: IpAddr) -> NewRecord {
    let data = match address {
        IpAddr::V4(ip) => RecordData::A(ip),
        IpAddr::V6(ip) => RecordData::Aaaa(ip),
    };
    NewRecord { name: String::new(), ttl: TTL, data }
}

/// Compares a zone with what it should have. `before`: the address that we gave it last.
fn plan(name: &DomainName, address: IpAddr, before: Option<&str>, there: &[ZoneRecord]) -> Plan {
    let apex = apex_at(address);
    let www =
        NewRecord { name: "www".to_owned(), ttl: TTL, data: RecordData::Cname(name.as_str().to_owned()) };
    let own = |record: &&ZoneRecord| !record.system;
    let mut plan = Plan { wanted: vec![apex.clone()], ..Plan::default() };
    let before = before.and_then(|text| text.parse::<IpAddr>().ok()).filter(|ip| *ip != address);
    plan.left = before.map(apex_at);
    plan.stale = there
        .iter()
        .filter(own)
        .filter(|record| record.name.is_empty() && matches!(record.kind.as_str(), "A" | "AAAA"))
        .filter(|record| before.is_some() && record.value.parse::<IpAddr>().ok() == before)
        .cloned()
        .collect();
    if !there.iter().filter(own).any(|record| apex.is(record)) {
        match plan.stale.iter().position(|record| record.kind == apex.data.kind()) {
            Some(index) => plan.moved = Some((plan.stale.remove(index), apex)),
            None => plan.missing.push(apex),
        }
    }
    // A name that somebody else has given a meaning keeps it: nothing can stand beside a CNAME.
    let mut in_place =
        there.iter().filter(own).filter(|record| record.name.eq_ignore_ascii_case("www")).peekable();
    if in_place.peek().is_none() {
        plan.missing.push(www.clone());
        plan.wanted.push(www);
    } else if in_place.any(|record| www.is(record)) {
        plan.wanted.push(www);
    }
    plan
}

/// Takes the record of a server away that is ours no more: the vendor gives its address to somebody else.
async fn clear(app: &App, held: Held, vendor: &dyn DnsZone, pointed: &Pointed) -> Result<(), Error> {
    let (Some(name), Ok(address)) = (DomainName::parse(&pointed.name), pointed.ip_address.parse::<IpAddr>())
    else {
        return Ok(());
    };
    let until = Deadline::after(SEND_FOR);
    note(app, held, pointed, None).await?;
    let there = match vendor.records(&name).await {
        Ok(there) => there.unwrap_or_default(),
        Err(error) => {
            tracing::debug!(domain = pointed.name, %error, "the zone cannot be read");
            return Ok(());
        }
    };
    let apex = apex_at(address);
    let ours: Vec<&ZoneRecord> = there.iter().filter(|record| !record.system && apex.is(record)).collect();
    if !ours.is_empty() {
        held.still(app).await?;
    }
    for record in ours {
        if let Err(error) = vendor.delete_record(&name, &record.id, until).await {
            tracing::warn!(domain = pointed.name, %error, "a record could not be taken away");
            return Ok(());
        }
    }
    let seen = pointed.clone();
    held.write(app, move |tx| {
        Box::pin(async move {
            keeping::cleared(tx, seen.id).await?;
            dns::copy_in(tx, &seen.name, &[dns::copy_of_new(&apex)], &[]).await?;
            let action = format!("domain {} points at {} no more: its server has ended", seen.name, address);
            log(tx, seen.agent_id, &action).await
        })
    })
    .await
}

async fn keep(app: &App, held: Held, vendor: &dyn DnsZone, pointed: &Pointed) -> Result<(), Error> {
    let (Some(name), Ok(address)) = (DomainName::parse(&pointed.name), pointed.ip_address.parse::<IpAddr>())
    else {
        return Ok(());
    };
    // Nobody looks again before all that is sent has come: the time for it begins before the look is noted.
    let until = Deadline::after(SEND_FOR);
    note(app, held, pointed, None).await?;
    let there = match vendor.records(&name).await {
        Ok(Some(there)) => there,
        Ok(None) => {
            tracing::debug!(domain = pointed.name, "the zone is not in the account");
            return Ok(());
        }
        Err(error) => {
            tracing::debug!(domain = pointed.name, %error, "the zone cannot be read");
            return Ok(());
        }
    };
    let mut plan = plan(&name, address, pointed.zone_address.as_deref(), &there);
    let well = Well::of(&plan);
    if well.changed {
        held.still(app).await?;
    }
    if let Some((old, new)) = plan.moved.take() {
        match vendor.change_record(&old.id, &new, until).await {
            Ok(()) => {}
            // Refused for good, or gone: the new one is put beside it, and the old one taken away.
            Err(error) if error.refusal().is_some_and(|why| !why.passes()) => {
                plan.missing.insert(0, new);
                plan.stale.push(old);
            }
            Err(error) => {
                tracing::warn!(domain = pointed.name, %error, "a record could not be changed");
                return Ok(());
            }
        }
    }
    for record in &plan.missing {
        let sent = vendor.create_record(&name, record, until).await;
        match sent {
            Ok(_) | Err(VendorError::NotDone { reason: Refusal::AlreadyThere, .. }) => {}
            Err(error) => {
                tracing::warn!(domain = pointed.name, %error, "a record could not be added");
                return Ok(());
            }
        }
    }
    for record in &plan.stale {
        if let Err(error) = vendor.delete_record(&name, &record.id, until).await {
            tracing::warn!(domain = pointed.name, %error, "a record could not be taken away");
            return Ok(());
        }
    }
    note(app, held, pointed, Some(well)).await
}

/// A zone that points where it should: what was done for it.
struct Well {
    changed: bool,
    there: Vec<DnsRecord>,
    gone: Vec<DnsRecord>,
}

impl Well {
    /// When a plan is carried out.
    fn of(plan: &Plan) -> Self {
        Self {
            changed: !plan.is_done(),
            there: plan.wanted.iter().map(dns::copy_of_new).collect(),
            gone: plan.left.iter().map(dns::copy_of_new).collect(),
        }
    }
}

/// Notes the look, and that the domain points where it should.
async fn note(app: &App, held: Held, pointed: &Pointed, well: Option<Well>) -> Result<(), Error> {
    let (replica, seen) = (app.replica, pointed.clone());
    app.writer
        .apply(Target::Shared, move |tx| {
            Box::pin(async move {
                held.check(tx, replica).await?;
                let address = well.as_ref().map(|_| seen.ip_address.as_str());
                keeping::pointed(tx, seen.id, address).await?;
                let Some(well) = well else { return Ok(()) };
                dns::copy_in(tx, &seen.name, &well.gone, &well.there).await?;
                if well.changed {
                    let action = format!("domain {} points at {}", seen.name, seen.ip_address);
                    log(tx, seen.agent_id, &action).await?;
                }
                Ok(())
            })
        })
        .await
}

async fn log(tx: &mut Tx, agent: Option<Uuid>, action: &str) -> Result<(), Error> {
    let Some(agent) = agent else { return Ok(()) };
    let Some(state) = agents::states_of(&mut tx.conn, &[agent]).await?.pop() else { return Ok(()) };
    let line = ActionRow::by_server(&state, "domain", action, None, tx.at);
    actions::insert(tx, &[line]).await?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::upstream::providers::Slug;

    fn record(name: &str, kind: &str, value: &str, system: bool) -> ZoneRecord {
        let id = Slug::parse("rec_1").expect("a slug");
        let (name, kind, value) = (name.to_owned(), kind.to_owned(), value.to_owned());
        ZoneRecord { id, name, kind, value, ttl: Some(60), system }
    }

    #[test]
    fn a_zone_gets_what_it_lacks_and_loses_only_what_was_ours() {
        let name = DomainName::parse("a.example").expect("a name");
        let (old, new): (IpAddr, IpAddr) = ([10, 0, 0, 1].into(), [10, 0, 0, 2].into());
        let empty = plan(&name, new, None, &[record("", "ALIAS", "x.example", true)]);
        assert_eq!((empty.missing.len(), empty.stale.len()), (2, 0));
        let well = [record("", "A", "10.0.0.2", false), record("www", "CNAME", "A.example.", false)];
        assert!(plan(&name, new, Some("10.0.0.2"), &well).is_done());
        let moved = [record("", "A", "10.0.0.1", false), record("www", "CNAME", "a.example", false)];
        let todo = plan(&name, new, Some(&old.to_string()), &moved);
        // The record of the old address becomes that of the new one.
        assert_eq!((todo.missing.len(), todo.stale.len(), todo.moved.is_some()), (0, 0, true));
        let both = [moved[0].clone(), well[0].clone(), well[1].clone()];
        let todo = plan(&name, new, Some(&old.to_string()), &both);
        assert_eq!((todo.missing.len(), todo.stale.len(), todo.moved.is_some()), (0, 1, false));
        // What we did not put there stays, and a name in use is left alone.
        let foreign = [record("", "A", "192.0.2.9", false), record("www", "A", "192.0.2.9", false)];
        let todo = plan(&name, new, Some(&old.to_string()), &foreign);
        assert_eq!((todo.missing.len(), todo.stale.len(), todo.wanted.len()), (1, 0, 1));
        let six: IpAddr = "2001:db8::1".parse().expect("an address");
        assert_eq!(plan(&name, six, None, &[]).missing[0].data.kind(), "AAAA");
    }
}
