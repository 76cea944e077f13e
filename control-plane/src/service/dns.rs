//! The zones of managed domains: seven types of record, each held to its own rules before the vendor is asked.

use std::net::{Ipv4Addr, Ipv6Addr};

use otonix_sdk::api::records::DnsRecord;
use otonix_sdk::api::vendors::{NewZoneRecord, ShownRecord};

use crate::app::App;
use crate::auth::{Caller, Principal};
use crate::error::Error;
use crate::service::vendors::{WRITE_TIME, failed, zones};
use crate::store::writer::{IdemFor, Target, Tx, Written};
use crate::store::{StoreError, domains};
use crate::upstream::providers::{
    Deadline, DomainName, NewRecord, RecordData, Slug, VendorError, ZoneRecord,
};

/// Seconds, when nobody says otherwise.
const USUAL_TTL: u32 = 300;
const LEAST_TTL: u32 = 60;
const LONGEST_TTL: u32 = 2_147_483_647;
/// Records of a zone that its domain's row has a copy of.
const MOST_COPIED: usize = 1000;
/// Longest name, without the root's dot (RFC 1035).
const LONGEST_NAME: usize = 253;
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
    let name = at_apex(record.name);
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
            // A look that fails, or shows nothing yet, leaves it unknown.
            let there = vendor.records(domain).await.ok().flatten().unwrap_or_default();
            let found = there.into_iter().find(|one| record.is(one));
            found.map(shown).ok_or_else(|| failed(unknown))?
        }
        Err(why) => return Err(failed(why)),
    };
    let name = domain.as_str().to_owned();
    let noted = app.writer.run(Target::Shared, idem, move |tx| {
        Box::pin(async move {
            copy_in(tx, &name, &[], &[copy_of(&made)]).await?;
            Ok(made)
        })
    });
    noted.await
}

/// Copies a change of a zone into the domain's own row.
///
/// # Errors
/// Store errors.
pub async fn copy_in(
    tx: &mut Tx,
    name: &str,
    gone: &[DnsRecord],
    there: &[DnsRecord],
) -> Result<(), StoreError> {
    domains::change_records(tx, name, |records| {
        records.retain(|one| !gone.iter().any(|other| is_same(one, other)));
        for new in there {
            match records.iter_mut().find(|one| is_same(one, new)) {
                Some(known) => known.ttl = new.ttl,
                None => records.push(new.clone()),
            }
        }
        records.truncate(MOST_COPIED);
    })
    .await
}

/// A record that was added, as the domain's own row has it.
pub fn copy_of_new(record: &NewRecord) -> DnsRecord {
    let (kind, name) = (record.data.kind().to_owned(), at_apex(record.name.clone()));
    DnsRecord { kind, name, value: record.data.text(), ttl: Some(record.ttl) }
}

fn at_apex(name: String) -> String {
    if name.is_empty() { "@".to_owned() } else { name }
}

fn copy_of(record: &ShownRecord) -> DnsRecord {
    let (kind, name, value) = (record.kind.clone(), record.name.clone(), record.value.clone());
    DnsRecord { kind, name, value, ttl: record.ttl }
}

fn is_same(one: &DnsRecord, other: &DnsRecord) -> bool {
    one.kind == other.kind && one.name == other.name && one.value == other.value
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
    let Some(record) = there.into_iter().find(|record| record.id == id) else { return Err(missing()) };
    let copy = copy_of(&shown(record));
    let until = Deadline::after(WRITE_TIME);
    match vendor.delete_record(domain, &id, until).await {
        // Taking away is the same however often it is done.
        Err(VendorError::Unknown { .. }) => {
            vendor.delete_record(domain, &id, until).await.map_err(failed)?;
        }
        done => done.map_err(failed)?,
    }
    let name = domain.as_str().to_owned();
    let noted = app.writer.apply(Target::Shared, move |tx| {
        Box::pin(async move { Ok(copy_in(tx, &name, &[copy], &[]).await?) })
    });
    noted.await
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
            let target = alias("value", value)?;
            if target == format!("{name}.{domain}") {
                return Err(Error::invalid("value", "must be another name than the record's own"));
            }
            RecordData::Cname(target)
        }
        "NS" => {
            below_only(&name, "NS")?;
            if name.starts_with('*') {
                return Err(Error::invalid("name", "of an NS record must not begin with `*`"));
            }
            RecordData::Ns(host("value", value)?)
        }
        "MX" => mail(body, value)?,
        "TXT" => RecordData::Txt(text(body.value.as_deref().unwrap_or(""))?),
        "SRV" => {
            let mut labels = name.split('.');
            let has_prefix =
                |label: Option<&str>| label.is_some_and(|label| label.len() > 1 && label.starts_with('_'));
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
    let name = without_root(name.trim()).to_ascii_lowercase();
    let name = if name == "@" || name == domain.as_str() {
        ""
    } else {
        name.strip_suffix(&format!(".{domain}")).unwrap_or(&name)
    };
    let fits = |(index, label): (usize, &str)| {
        let wild = index == 0 && label == "*";
        let plain = label.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-_".contains(&byte));
        wild || (plain && (1..=63).contains(&label.len()) && !label.starts_with('-') && !label.ends_with('-'))
    };
    let is_name = name.is_empty() || name.split('.').enumerate().all(fits);
    let above = if name.is_empty() { 0 } else { name.len() + 1 };
    if !is_name || above + domain.as_str().len() > LONGEST_NAME {
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

/// A name without the dot that stands for the root.
fn without_root(name: &str) -> &str {
    name.strip_suffix('.').filter(|rest| !rest.is_empty()).unwrap_or(name)
}

/// A name that an alias may lead to; one with an underscore is one too, an address is not.
fn alias(field: &str, value: &str) -> Result<String, Error> {
    let name = without_root(value).to_ascii_lowercase();
    let fits = |label: &str| {
        let plain = label.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-_".contains(&byte));
        plain && (1..=63).contains(&label.len()) && !label.starts_with('-') && !label.ends_with('-')
    };
    let last = name.rsplit('.').next().unwrap_or_default();
    let is_name = name.len() <= LONGEST_NAME
        && name.split('.').count() >= 2
        && name.split('.').all(fits)
        && !last.bytes().all(|byte| byte.is_ascii_digit());
    if is_name { Ok(name) } else { Err(Error::invalid(field, "must be the name of a machine")) }
}

/// The name of another machine (RFC 1123): no underscores.
fn host(field: &str, value: &str) -> Result<String, Error> {
    let name = alias(field, value)?;
    if name.contains('_') { Err(Error::invalid(field, "must be the name of a machine")) } else { Ok(name) }
}

/// A number that is given as a field, or in the text, or in both and then the same.
fn number(field: &str, given: Option<u16>, text: Option<&str>) -> Result<u16, Error> {
    let wrong = || Error::invalid(field, "must be 0 to 65535, and be said once");
    let is_plain = |text: &&str| text.bytes().all(|byte| byte.is_ascii_digit());
    let said = match text {
        Some(text) => Some(Some(text).filter(is_plain).and_then(|text| text.parse().ok()).ok_or_else(wrong)?),
        None => None,
    };
    match (given, said) {
        (Some(given), Some(said)) if given != said => Err(wrong()),
        (given, said) => given.or(said).ok_or_else(wrong),
    }
}

/// `10 mail.example.com`, or the parts as fields.
fn mail(body: &NewZoneRecord, value: &str) -> Result<RecordData, Error> {
    let (first, rest) = value.split_once(' ').map_or((None, value), |(first, rest)| (Some(first), rest));
    let given = match (body.priority, body.mx_priority) {
        (Some(one), Some(other)) if one != other => {
            return Err(Error::invalid("priority", "differs from mxPriority"));
        }
        (one, other) => one.or(other),
    };
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
    let target = match (body.target.as_deref(), last) {
        (Some(one), Some(other)) if without_root(one) != without_root(other) => {
            return Err(Error::invalid("target", "differs from the one in value"));
        }
        (one, other) => one.or(other).unwrap_or(""),
    };
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

    /// A record with one value in the place of `@`, and whether it is taken.
    fn taken(template: &str, value: &str) -> bool {
        let value = serde_json::to_string(value).expect("text");
        read(&template.replace("\"@\"", &value)).is_ok()
    }

    #[test]
    fn both_sides_of_every_limit() {
        let label = |n: usize| "a".repeat(n);
        let long = |n: usize| {
            let whole = format!("{}.{}.{}.", label(63), label(63), label(63));
            format!("{whole}{}", label(n - whole.len()))
        };
        // The domain has 15 letters and a dot before it.
        let (name, host) = (long(253 - 16), long(249) + ".com");
        let a = r#"{"type":"A","name":"@","value":"1.2.3.4"}"#;
        let cname = r#"{"type":"CNAME","name":"www","value":"@"}"#;
        let ns = r#"{"type":"NS","name":"sub","value":"@"}"#;
        let mx = r#"{"type":"MX","value":"@"}"#;
        let mx_host = r#"{"type":"MX","value":"@","priority":10}"#;
        let txt = r#"{"type":"TXT","value":"@"}"#;
        let srv = r#"{"type":"SRV","name":"_sip._tcp","value":"@"}"#;
        let srv_name = r#"{"type":"SRV","name":"@","value":"1 2 3 sip.example.com"}"#;
        for (template, well, wrong) in [
            (a, label(63), label(64)),
            (a, name.clone(), name + "a"),
            (a, "*".to_owned(), "**".to_owned()),
            (a, "*.x".to_owned(), "x*".to_owned()),
            (a, "_x".to_owned(), "x y".to_owned()),
            (a, "a-b".to_owned(), "-a".to_owned()),
            (a, "xn--bcher-kva".to_owned(), "b\u{fc}cher".to_owned()),
            (a, "www.".to_owned(), "www..".to_owned()),
            (a, "a".to_owned(), "a\r\nb".to_owned()),
            (cname, host.clone(), format!("a{host}")),
            (cname, format!("{}.com", label(63)), format!("{}.com", label(64))),
            (cname, "_x.example.com".to_owned(), "x_.example.com\0".to_owned()),
            (cname, "a.example.com.".to_owned(), "a.example.com..".to_owned()),
            (cname, "agent-seven.dev".to_owned(), "www.agent-seven.dev".to_owned()),
            (cname, "1.2.3.4x".to_owned(), "1.2.3.256".to_owned()),
            (cname, "xn--bcher-kva.de".to_owned(), "b\u{fc}cher.de".to_owned()),
            (ns, "ns1.example.com".to_owned(), "ns_1.example.com".to_owned()),
            (ns, "ns1.example.com.".to_owned(), "ns1".to_owned()),
            (mx, "0 m.example.com".to_owned(), "-1 m.example.com".to_owned()),
            (mx, "65535 m.example.com".to_owned(), "65536 m.example.com".to_owned()),
            (mx, "1 m.example.com".to_owned(), "+1 m.example.com".to_owned()),
            (mx, "1 m.example.com".to_owned(), "1 m_.example.com".to_owned()),
            (mx, "1 m.example.com".to_owned(), "1 1.2.3.4".to_owned()),
            (mx_host, "m.example.com".to_owned(), "20 m.example.com".to_owned()),
            (mx_host, "10 m.example.com".to_owned(), "x m.example.com".to_owned()),
            (txt, "x".repeat(2048), "x".repeat(2049)),
            (txt, "x".to_owned(), String::new()),
            (txt, " ".to_owned(), "a\nb".to_owned()),
            (txt, "\u{fc}".to_owned(), "\u{7f}".to_owned()),
            (txt, "\u{fc}".repeat(1024), "\u{fc}".repeat(1025)),
            (srv, "0 0 0 a.example.com".to_owned(), "0 0 a.example.com".to_owned()),
            (srv, "65535 1 1 a.example.com".to_owned(), "65536 1 1 a.example.com".to_owned()),
            (srv, "1 65535 1 a.example.com".to_owned(), "1 65536 1 a.example.com".to_owned()),
            (srv, "1 1 65535 a.example.com".to_owned(), "1 1 65536 a.example.com".to_owned()),
            (srv, "1 1 1 a.example.com.".to_owned(), "1 1 1 _a.example.com".to_owned()),
            (srv_name, "_sip._tcp".to_owned(), "_._tcp".to_owned()),
            (srv_name, "_sip._tcp.x".to_owned(), "*._tcp".to_owned()),
            (srv_name, "_sip._udp".to_owned(), "_sip".to_owned()),
        ] {
            assert!(taken(template, &well), "{template}: {well}");
            assert!(!taken(template, &wrong), "{template}: {wrong}");
        }
        for (json, well) in [
            (r#"{"type":"A","value":"1.2.3.4","ttl":60}"#, true),
            (r#"{"type":"A","value":"1.2.3.4","ttl":2147483647}"#, true),
            (r#"{"type":"A","value":"01.2.3.4"}"#, false),
            (r#"{"type":"A","value":"1.2.3"}"#, false),
            (r#"{"type":"AAAA","value":"::"}"#, true),
            (r#"{"type":"AAAA","value":"fe80::1%eth0"}"#, false),
            (r#"{"type":"AAAA","value":"1::2::3"}"#, false),
            (r#"{"type":"NS","name":"*","value":"ns1.example.com"}"#, false),
            (r#"{"type":"CNAME","name":"*","value":"example.com"}"#, true),
            (r#"{"type":"MX","value":"m.example.com","priority":1,"mxPriority":2}"#, false),
            (r#"{"type":"SRV","name":"_a._b","value":"1 2 3 x.example.com","port":4}"#, false),
            (
                r#"{"type":"SRV","name":"_a._b","value":"x.example.com","target":"y.example.com","priority":1,"weight":1,"port":1}"#,
                false,
            ),
        ] {
            assert_eq!(read(json).is_ok(), well, "{json}");
        }
    }
}
