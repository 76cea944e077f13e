//! The zones of managed domains: seven types of record, each held to its own rules before the vendor is asked.

use std::net::{Ipv4Addr, Ipv6Addr};

use otonix_sdk::api::vendors::{NewZoneRecord, ShownRecord};

use crate::app::App;
use crate::auth::{Caller, Principal};
use crate::error::Error;
use crate::service::vendors::{WRITE_TIME, failed, zones};
use crate::store::domains;
use crate::store::writer::{IdemFor, Target, Written};
use crate::upstream::providers::{
    Deadline, DomainName, NewRecord, RecordData, Slug, VendorError, ZoneRecord,
};

/// Seconds, when nobody says otherwise.
const USUAL_TTL: u32 = 300;
const LEAST_TTL: u32 = 60;
const LONGEST_TTL: u32 = 2_147_483_647;
/// Longest text of a TXT record.
const LONGEST_TEXT: usize = 2048;

/// The domain that a caller may have the zone of: its own managed one; the operator any, and in open mode anyone any
/// managed one.
///
/// # Errors
/// 401 for nobody in guarded mode, 404 for what is not the caller's.
pub async fn zone_of(app: &App, caller: &Caller, name: &str) -> Result<DomainName, Error> {
    if !caller.is_unrestricted() {
        caller.key()?;
    }
    let missing = || Error::not_found("domain", name.chars().take(64).collect::<String>());
    let domain = DomainName::parse(name).filter(|domain| domain.as_str() == name).ok_or_else(missing)?;
    if caller.principal == Principal::Operator {
        return Ok(domain);
    }
    let asked = domain.as_str().to_owned();
    let found =
        app.db.read(move |conn| Box::pin(async move { domains::managed(conn, &asked).await })).await?;
    let (row, owner, ..) = found.ok_or_else(missing)?;
    let is_own = caller.owns(owner, row.agent_id.map(|agent| agent.uuid()));
    if is_own || caller.is_unrestricted() { Ok(domain) } else { Err(missing()) }
}

/// Every record of a zone.
///
/// # Errors
/// 404 when the vendor has no such zone, 503 when it cannot be asked.
pub async fn records(app: &App, domain: &DomainName) -> Result<Vec<ShownRecord>, Error> {
    let found = zones(app)?.records(domain).await.map_err(failed)?;
    let records = found.ok_or_else(|| Error::not_found("zone", domain))?;
    Ok(records.into_iter().map(shown).collect())
}

fn shown(record: ZoneRecord) -> ShownRecord {
    let name = if record.name.is_empty() { "@".to_owned() } else { record.name };
    ShownRecord {
        id: record.id.to_string(),
        kind: record.kind,
        name,
        value: record.value,
        ttl: record.ttl,
        system: record.system,
    }
}

/// Adds a record. When the vendor's answer is lost, the zone is looked at.
///
/// # Errors
/// 409 when it is there already, 503 when the vendor cannot be asked or did not say.
pub async fn add(
    app: &App,
    domain: &DomainName,
    record: &NewRecord,
    idem: Option<IdemFor<ShownRecord>>,
) -> Result<Written<ShownRecord>, Error> {
    let vendor = zones(app)?;
    let made = match vendor.create_record(domain, record, Deadline::after(WRITE_TIME)).await {
        Ok(id) => {
            let kind = record.data.kind().to_owned();
            let (name, value) = (record.name.clone(), record.data.text());
            shown(ZoneRecord { id, name, kind, value, ttl: Some(record.ttl), system: false })
        }
        Err(unknown @ VendorError::Unknown { .. }) => {
            let there = vendor.records(domain).await.map_err(failed)?.unwrap_or_default();
            let found = there.into_iter().find(|one| record.is(one));
            found.map(shown).ok_or_else(|| failed(unknown))?
        }
        Err(why) => return Err(failed(why)),
    };
    app.writer.run(Target::Shared, idem, move |_| Box::pin(async move { Ok(made) })).await
}

/// Takes a record away.
///
/// # Errors
/// 404 when there is none, 503 when the vendor cannot be asked or did not say.
pub async fn remove(app: &App, domain: &DomainName, id: &str) -> Result<(), Error> {
    let missing = || Error::not_found("record", id.chars().take(64).collect::<String>());
    let id = Slug::parse(id).ok_or_else(missing)?;
    let vendor = zones(app)?;
    let there = vendor.records(domain).await.map_err(failed)?.unwrap_or_default();
    if !there.iter().any(|record| record.id == id) {
        return Err(missing());
    }
    let until = Deadline::after(WRITE_TIME);
    match vendor.delete_record(domain, &id, until).await {
        // Taking away is the same however often it is done.
        Err(VendorError::Unknown { .. }) => vendor.delete_record(domain, &id, until).await.map_err(failed),
        done => done.map_err(failed),
    }
}

/// Reads a record to add, by the rules of its type.
///
/// # Errors
/// 400 naming the field.
pub fn parse(domain: &DomainName, body: &NewZoneRecord) -> Result<NewRecord, Error> {
    let ttl = body.ttl.unwrap_or(USUAL_TTL);
    if !(LEAST_TTL..=LONGEST_TTL).contains(&ttl) {
        return Err(Error::invalid("ttl", format!("must be {LEAST_TTL} to {LONGEST_TTL} seconds")));
    }
    let name = name_below(domain, body.name.as_deref().unwrap_or(""))?;
    let value = body.value.as_deref().unwrap_or("").trim();
    let data = match body.kind.as_str() {
        "A" => RecordData::A(
            value.parse::<Ipv4Addr>().map_err(|_| Error::invalid("value", "must be an IPv4 address"))?,
        ),
        "AAAA" => RecordData::Aaaa(
            value.parse::<Ipv6Addr>().map_err(|_| Error::invalid("value", "must be an IPv6 address"))?,
        ),
        "CNAME" => {
            below_only(&name, "CNAME")?;
            RecordData::Cname(host("value", value)?)
        }
        "NS" => {
            below_only(&name, "NS")?;
            RecordData::Ns(host("value", value)?)
        }
        "MX" => mail(body, value)?,
        "TXT" => RecordData::Txt(text(body.value.as_deref().unwrap_or(""))?),
        "SRV" => {
            let mut labels = name.split('.');
            let has_prefix = |label: Option<&str>| label.is_some_and(|label| label.starts_with('_'));
            if !(has_prefix(labels.next()) && has_prefix(labels.next())) {
                return Err(Error::invalid("name", "of an SRV record begins with _service._protocol"));
            }
            service(body, value)?
        }
        _ => return Err(Error::invalid("type", "must be A, AAAA, CNAME, MX, TXT, NS or SRV")),
    };
    Ok(NewRecord { name, ttl, data })
}

/// The name below the domain: empty for `@`, for nothing, and for the domain itself.
fn name_below(domain: &DomainName, name: &str) -> Result<String, Error> {
    let name = name.trim().to_ascii_lowercase();
    let name = name.strip_suffix('.').filter(|rest| !rest.is_empty()).unwrap_or(&name);
    let name = if name == "@" || name == domain.as_str() {
        ""
    } else {
        name.strip_suffix(&format!(".{domain}")).unwrap_or(name)
    };
    let fits = |(index, label): (usize, &str)| {
        let wild = index == 0 && label == "*";
        let plain = label.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-_".contains(&byte));
        wild || (plain && (1..=63).contains(&label.len()) && !label.starts_with('-') && !label.ends_with('-'))
    };
    let is_name = name.is_empty() || name.split('.').enumerate().all(fits);
    if !is_name || name.len() + 1 + domain.as_str().len() > 253 {
        return Err(Error::invalid("name", "must be a name below the domain, or `@`"));
    }
    Ok(name.to_owned())
}

fn below_only(name: &str, kind: &str) -> Result<(), Error> {
    if name.is_empty() {
        return Err(Error::invalid("name", format!("of a {kind} record must be below the domain")));
    }
    Ok(())
}

/// The name of another machine; a name with an underscore is one too, an address is not.
fn host(field: &str, value: &str) -> Result<String, Error> {
    let name = value.strip_suffix('.').unwrap_or(value).to_ascii_lowercase();
    let fits = |label: &str| {
        let plain = label.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-_".contains(&byte));
        plain && (1..=63).contains(&label.len()) && !label.starts_with('-') && !label.ends_with('-')
    };
    let is_host = name.len() <= 253
        && name.split('.').count() >= 2
        && name.split('.').all(fits)
        && name.parse::<Ipv4Addr>().is_err();
    if is_host { Ok(name) } else { Err(Error::invalid(field, "must be the name of a machine")) }
}

fn number(field: &str, given: Option<u16>, text: Option<&str>) -> Result<u16, Error> {
    let parsed = text.and_then(|text| text.parse().ok());
    given.or(parsed).ok_or_else(|| Error::invalid(field, "must be 0 to 65535"))
}

/// `10 mail.example.com`, or the parts as fields.
fn mail(body: &NewZoneRecord, value: &str) -> Result<RecordData, Error> {
    let (first, rest) = value.split_once(' ').map_or((None, value), |(first, rest)| (Some(first), rest));
    let given = body.priority.or(body.mx_priority);
    Ok(RecordData::Mx { priority: number("priority", given, first)?, host: host("value", rest.trim())? })
}

/// `10 5 5060 sip.example.com`, or the parts as fields.
fn service(body: &NewZoneRecord, value: &str) -> Result<RecordData, Error> {
    let parts: Vec<&str> = value.split_whitespace().collect();
    let (priority, weight, port, last) = match parts.as_slice() {
        [priority, weight, port, target] => (Some(*priority), Some(*weight), Some(*port), Some(*target)),
        [target] => (None, None, None, Some(*target)),
        [] => (None, None, None, None),
        _ => return Err(Error::invalid("value", "must be `priority weight port target`")),
    };
    let target = body.target.as_deref().or(last).unwrap_or("");
    Ok(RecordData::Srv {
        priority: number("priority", body.priority, priority)?,
        weight: number("weight", body.weight, weight)?,
        port: number("port", body.port, port)?,
        target: host("target", target)?,
    })
}

fn text(value: &str) -> Result<String, Error> {
    if value.is_empty() || value.len() > LONGEST_TEXT || value.chars().any(char::is_control) {
        let why = format!("must be text of 1 to {LONGEST_TEXT} bytes without control characters");
        return Err(Error::invalid("value", why));
    }
    Ok(value.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(json: &str) -> Result<NewRecord, Error> {
        let domain = DomainName::parse("agent-seven.dev").expect("a domain");
        parse(&domain, &serde_json::from_str(json).expect("a body"))
    }

    #[test]
    fn each_type_is_read_by_its_own_rules() {
        for (json, name, value) in [
            (r#"{"type":"A","name":"@","value":"185.150.0.42"}"#, "", "185.150.0.42"),
            (r#"{"type":"A","value":"185.150.0.42"}"#, "", "185.150.0.42"),
            (r#"{"type":"A","name":"*.x.agent-seven.dev.","value":"1.2.3.4"}"#, "*.x", "1.2.3.4"),
            (r#"{"type":"AAAA","name":"www","value":"2001:DB8::42"}"#, "www", "2001:db8::42"),
            (r#"{"type":"CNAME","name":"WWW","value":"Agent-Seven.dev."}"#, "www", "agent-seven.dev"),
            (r#"{"type":"MX","value":"10 mail.example.com."}"#, "", "10 mail.example.com"),
            (r#"{"type":"MX","value":"mail.example.com","priority":0}"#, "", "0 mail.example.com"),
            (r#"{"type":"TXT","name":"_acme-challenge","value":"a b=c"}"#, "_acme-challenge", "a b=c"),
            (r#"{"type":"NS","name":"sub","value":"ns1.example.com"}"#, "sub", "ns1.example.com"),
            (
                r#"{"type":"SRV","name":"_sip._tcp","value":"1 2 5060 sip.example.com"}"#,
                "_sip._tcp",
                "1 2 5060 sip.example.com",
            ),
            (
                r#"{"type":"SRV","name":"_sip._tcp.x","priority":1,"weight":2,"port":3,"target":"sip.example.com"}"#,
                "_sip._tcp.x",
                "1 2 3 sip.example.com",
            ),
        ] {
            let record = read(json).expect(json);
            assert_eq!((record.name.as_str(), record.data.text().as_str()), (name, value), "{json}");
        }
    }

    #[test]
    fn what_breaks_a_types_rules_is_refused() {
        let long = "x".repeat(2049);
        let text = format!(r#"{{"type":"TXT","value":"{long}"}}"#);
        for json in [
            r#"{"type":"A","value":"2001:db8::1"}"#,
            r#"{"type":"A","value":"1.2.3.256"}"#,
            r#"{"type":"A","value":"example.com"}"#,
            r#"{"type":"AAAA","value":"1.2.3.4"}"#,
            r#"{"type":"CNAME","name":"@","value":"example.com"}"#,
            r#"{"type":"CNAME","name":"agent-seven.dev","value":"example.com"}"#,
            r#"{"type":"CNAME","name":"www","value":"1.2.3.4"}"#,
            r#"{"type":"CNAME","name":"www","value":"a..b"}"#,
            r#"{"type":"CNAME","name":"www","value":"a.b.."}"#,
            r#"{"type":"A","name":".","value":"1.2.3.4"}"#,
            r#"{"type":"A","name":"..","value":"1.2.3.4"}"#,
            r#"{"type":"A","name":"www..","value":"1.2.3.4"}"#,
            r#"{"type":"MX","value":"mail.example.com"}"#,
            r#"{"type":"MX","value":"70000 mail.example.com"}"#,
            r#"{"type":"TXT","value":""}"#,
            r#"{"type":"TXT","value":"a\u0000b"}"#,
            text.as_str(),
            r#"{"type":"NS","name":"","value":"ns1.example.com"}"#,
            r#"{"type":"SRV","name":"sip","value":"1 2 3 sip.example.com"}"#,
            r#"{"type":"SRV","name":"_sip._tcp","value":"1 2 sip.example.com"}"#,
            r#"{"type":"CAA","value":"0 issue x"}"#,
            r#"{"type":"a","value":"1.2.3.4"}"#,
            r#"{"type":"A","value":"1.2.3.4","ttl":59}"#,
            r#"{"type":"A","value":"1.2.3.4","ttl":2147483648}"#,
            r#"{"type":"A","name":"a b","value":"1.2.3.4"}"#,
            r#"{"type":"A","name":"a.*","value":"1.2.3.4"}"#,
            r#"{"type":"A","name":"../x","value":"1.2.3.4"}"#,
        ] {
            assert!(read(json).is_err(), "{json}");
        }
    }
}
