//! Vercel as the one that answers for zones.

use async_trait::async_trait;
use reqwest::Method;
use serde::Deserialize;
use serde_json::{Value, json};

use crate::upstream::deadline::Deadline;
use crate::upstream::http::Ask;
use crate::upstream::names::{DomainName, Slug};
use crate::upstream::providers::{DnsZone, Refusal, VendorError};
use crate::upstream::registrar::{NewRecord, RecordData, ZoneRecord};
use crate::upstream::vercel::{Vercel, read};

fn record(value: &Value) -> Option<ZoneRecord> {
    let text = |name: &str| value.get(name).and_then(Value::as_str);
    let number = |name: &str| value.get(name).and_then(Value::as_u64);
    let kind = text("type")?.to_owned();
    let mut shown = text("value").unwrap_or_default().to_owned();
    let fields = shown.split_whitespace().count();
    // The priority stands in the value, beside it, or in both.
    let beside = match kind.as_str() {
        "MX" if fields == 1 => number("mxPriority"),
        "SRV" if fields == 3 => number("priority"),
        _ => None,
    };
    if let Some(priority) = beside {
        shown = format!("{priority} {shown}");
    }
    Some(ZoneRecord {
        id: Slug::parse(text("id")?)?,
        name: text("name").unwrap_or_default().to_owned(),
        kind,
        value: shown,
        ttl: number("ttl").and_then(|ttl| u32::try_from(ttl).ok()),
        system: text("creator") == Some("system"),
    })
}

fn record_body(record: &NewRecord) -> Value {
    let (name, ttl, kind) = (record.name.as_str(), record.ttl, record.data.kind());
    match &record.data {
        RecordData::Mx { priority, host } => {
            json!({ "type": kind, "name": name, "ttl": ttl, "value": host, "mxPriority": priority })
        }
        RecordData::Srv { priority, weight, port, target } => {
            let srv = json!({ "priority": priority, "weight": weight, "port": port, "target": target });
            json!({ "type": kind, "name": name, "ttl": ttl, "srv": srv })
        }
        RecordData::A(_)
        | RecordData::Aaaa(_)
        | RecordData::Cname(_)
        | RecordData::Txt(_)
        | RecordData::Ns(_) => {
            json!({ "type": kind, "name": name, "ttl": ttl, "value": record.data.text() })
        }
    }
}

#[async_trait]
impl DnsZone for Vercel {
    async fn records(&self, domain: &DomainName) -> Result<Option<Vec<ZoneRecord>>, VendorError> {
        match self.pages(&["v4", "domains", domain.as_str(), "records"], "records").await {
            Ok(rows) => Ok(Some(rows.iter().filter_map(record).collect())),
            Err(error) if error.refusal() == Some(Refusal::NotFound) => Ok(None),
            Err(error) => Err(error),
        }
    }

    async fn create_record(
        &self,
        domain: &DomainName,
        record: &NewRecord,
        until: Deadline,
    ) -> Result<Slug, VendorError> {
        #[derive(Deserialize)]
        struct Made {
            uid: String,
        }
        let path = ["v2", "domains", domain.as_str(), "records"];
        let answer =
            self.send(Method::POST, &path, record_body(record).to_string().into_bytes(), &[], until).await?;
        let made: Option<Made> = read(&answer.body).ok();
        let id = made.and_then(|made| Slug::parse(&made.uid));
        id.ok_or_else(|| VendorError::unknown("vercel accepted it with an answer that cannot be read"))
    }

    async fn change_record(&self, id: &Slug, record: &NewRecord, until: Deadline) -> Result<(), VendorError> {
        let path = ["v1", "domains", "records", id.as_str()];
        let body = record_body(record).to_string().into_bytes();
        self.send(Method::PATCH, &path, body, &[], until).await?;
        Ok(())
    }

    async fn delete_record(
        &self,
        domain: &DomainName,
        id: &Slug,
        until: Deadline,
    ) -> Result<(), VendorError> {
        let path = ["v2", "domains", domain.as_str(), "records", id.as_str()];
        let ask = Ask { method: Method::DELETE, ..Ask::get(&path) };
        match self.http.write(&ask, until).await {
            Err(error) if error.refusal() != Some(Refusal::NotFound) => Err(error),
            Ok(_) | Err(_) => Ok(()),
        }
    }
}
