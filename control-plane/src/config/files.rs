//! Files that options name: the options themselves, prices, laws, whom domains are registered to.

use std::collections::BTreeMap;
use std::path::Path;

use anyhow::{Context as _, bail};
use otonix_sdk::api::enrolment::Laws;
use otonix_sdk::api::purchases::Contact;
use otonix_sdk::limits;
use otonix_sdk::money::MicroUsd;
use otonix_sdk::prices::{ModelPrice, PriceTable};

use super::{Options, Settings};
use crate::service::purchases::contact;

impl Settings {
    /// The laws in the file that is configured.
    ///
    /// # Errors
    /// When the file cannot be read, is empty or too long.
    pub fn read_laws(&self) -> anyhow::Result<Option<Laws>> {
        let Some(path) = &self.laws_file else { return Ok(None) };
        let name = format!("laws-file {}", path.display());
        let text = std::fs::read_to_string(path).with_context(|| name.clone())?;
        if text.trim().is_empty() || text.contains('\0') || text.len() > limits::MAX_LAWS_BYTES {
            bail!("{name} must be a text of at most {} bytes", limits::MAX_LAWS_BYTES);
        }
        Ok(Some(Laws::new(text)))
    }

    /// The prices in force.
    ///
    /// # Errors
    /// When the file cannot be read.
    pub fn prices(&self) -> anyhow::Result<PriceTable> {
        let Some(path) = &self.price_table else { return Ok(PriceTable::default()) };
        read_prices(path).with_context(|| format!("price-table {}", path.display()))
    }

    /// Who domains are registered to when a request names nobody.
    ///
    /// # Errors
    /// When the file cannot be read, or something is missing in it.
    pub fn registrant(&self) -> anyhow::Result<Option<Contact>> {
        self.registrant_contact.as_deref().map(read_contact).transpose()
    }
}

pub(super) fn read_options(path: &Path) -> anyhow::Result<Options> {
    let text = std::fs::read_to_string(path).with_context(|| format!("config {}", path.display()))?;
    let table: toml::Table = text.parse().with_context(|| format!("config {}", path.display()))?;
    // Both spellings of a key are fine, as in the environment.
    let table: toml::Table = table.into_iter().map(|(key, value)| (key.replace('_', "-"), value)).collect();
    table.try_into().with_context(|| format!("config {}", path.display()))
}

fn read_contact(path: &Path) -> anyhow::Result<Contact> {
    let read = || -> anyhow::Result<Contact> {
        let text = std::fs::read_to_string(path)?;
        let is_json = path.extension().is_some_and(|extension| extension == "json");
        let contact: Contact = if is_json { serde_json::from_str(&text)? } else { toml::from_str(&text)? };
        contact::check(&contact)?;
        Ok(contact)
    };
    read().with_context(|| format!("registrant-contact {}", path.display()))
}

fn read_prices(path: &Path) -> anyhow::Result<PriceTable> {
    let text = std::fs::read_to_string(path)?;
    if path.extension().is_some_and(|extension| extension == "json") {
        return Ok(serde_json::from_str(&text)?);
    }
    let table: BTreeMap<String, BTreeMap<String, toml::Value>> = toml::from_str(&text)?;
    let mut prices = BTreeMap::new();
    for (model, mut parts) in table {
        let mut part = |name: &str| -> anyhow::Result<Option<MicroUsd>> {
            let Some(value) = parts.remove(name) else { return Ok(None) };
            let text = value.as_str().map_or_else(|| value.to_string(), str::to_owned);
            let price = MicroUsd::parse(&text).with_context(|| format!("{model}.{name}"))?;
            if price.is_negative() {
                bail!("{model}.{name} must not be negative");
            }
            Ok(Some(price))
        };
        let input = part("input")?.with_context(|| format!("{model}.input is missing"))?;
        let output = part("output")?.with_context(|| format!("{model}.output is missing"))?;
        let cached = part("cached")?;
        if let Some(unknown) = parts.keys().next() {
            bail!("{model}.{unknown} is not known");
        }
        prices.insert(model, ModelPrice { input, output, cached });
    }
    Ok(PriceTable::new(prices))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn prices_are_read_exactly_from_toml() {
        let dir = tempfile::tempdir().expect("temp dir");
        let path = dir.path().join("p.toml");
        std::fs::write(&path, "m = { input = 0.1, output = \"2.000001\", cached = 0 }").expect("writes");
        let table = read_prices(&path).expect("reads");
        assert_eq!(table.cost("m", 1_000_000, 0, 0), Some(MicroUsd::from_micros(100_000)));
        assert_eq!(table.cost("m", 0, 1_000_000, 0), Some(MicroUsd::from_micros(2_000_001)));
    }
}
