//! The server's price table as last fetched, kept on disk; the built-in one until then.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::{PoisonError, RwLock};

use serde_json::value::RawValue;

use crate::link::files;
use crate::money::MicroUsd;
use crate::prices::PriceTable;

/// The file in the state directory.
pub(crate) const FILE: &str = "price-table.json";

/// The table in use.
#[derive(Debug)]
pub(crate) struct Prices {
    path: PathBuf,
    table: RwLock<PriceTable>,
}

/// The table in an answer of `GET /api/price-table`: by itself, or beside its version.
fn table_in(answer: &str) -> Option<PriceTable> {
    let parts: BTreeMap<String, &RawValue> = serde_json::from_str(answer).ok()?;
    let beside = ["prices", "models", "table"].into_iter().filter_map(|name| parts.get(name));
    beside
        .map(|part| part.get())
        .chain([answer])
        .find_map(|text| serde_json::from_str::<PriceTable>(text).ok())
}

impl Prices {
    /// Goes on from disk.
    pub(crate) fn open(state_dir: &Path) -> Self {
        let path = state_dir.join(FILE);
        let kept = std::fs::read(&path).ok().and_then(|bytes| serde_json::from_slice(&bytes).ok());
        Self { path, table: RwLock::new(kept.unwrap_or_default()) }
    }

    /// The version of the table in use.
    pub(crate) fn version(&self) -> String {
        self.table.read().unwrap_or_else(PoisonError::into_inner).version()
    }

    /// The list cost of a call; `None` for an unknown model.
    pub(crate) fn cost(&self, model: &str, input: i64, output: i64, cached: i64) -> Option<MicroUsd> {
        self.table.read().unwrap_or_else(PoisonError::into_inner).cost(model, input, output, cached)
    }

    /// Takes what the server answered; false when it is no table.
    pub(crate) fn take(&self, answer: &str) -> bool {
        let Some(table) = table_in(answer) else { return false };
        let kept = serde_json::to_vec(&table).map_err(std::io::Error::from);
        *self.table.write().unwrap_or_else(PoisonError::into_inner) = table;
        if let Err(error) = kept.and_then(|bytes| files::replace(&self.path, &bytes)) {
            tracing::warn!(%error, "failed to keep the price table");
        }
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn a_fetched_table_is_used_and_kept() {
        let dir = tempfile::tempdir().expect("a directory");
        let prices = Prices::open(dir.path());
        let before = prices.version();
        let table = json!({"own": {"input": 1.5, "output": 3}});
        for answer in [table.clone(), json!({"version": "1", "prices": table})] {
            assert!(prices.take(&answer.to_string()), "{answer}");
            assert_eq!(prices.cost("own", 1_000_000, 0, 0), Some(MicroUsd::from_micros(1_500_000)));
        }
        assert!(!prices.take(r#"{"error": "no"}"#));
        assert_ne!(prices.version(), before);
        assert_eq!(Prices::open(dir.path()).version(), prices.version());
    }
}
