//! The server's price table as last fetched, kept on disk; the built-in one until then.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{PoisonError, RwLock};

use serde_json::value::RawValue;

use crate::api::usage::LogUsage;
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
    /// The table is the server's, as far as is known.
    heard: AtomicBool,
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
        let kept: Option<PriceTable> =
            std::fs::read(&path).ok().and_then(|bytes| serde_json::from_slice(&bytes).ok());
        let heard = AtomicBool::new(kept.is_some());
        Self { path, table: RwLock::new(kept.unwrap_or_default()), heard }
    }

    /// The server's table is of this version; false when that is another one, which is to be fetched.
    pub(crate) fn is_current(&self, version: &str) -> bool {
        let current = self.version() == version;
        self.heard.store(current, Ordering::Release);
        current
    }

    /// Whether the server's table is known and has no cost for a call, so that the server will never take the call
    /// without one.
    pub(crate) fn lacks(&self, usage: &LogUsage) -> bool {
        let cached = usage.tokens_cached.unwrap_or(0);
        usage.cost.is_none()
            && self.heard.load(Ordering::Acquire)
            && self.cost(&usage.model, usage.tokens_in, usage.tokens_out, cached).is_none()
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
        self.heard.store(true, Ordering::Release);
        if let Err(error) = kept.and_then(|bytes| files::replace(&self.path, &bytes)) {
            tracing::warn!(%error, "failed to keep the price table");
        }
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

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

    #[test]
    fn a_model_is_unknown_only_where_the_servers_table_is_known() {
        let dir = tempfile::tempdir().expect("a directory");
        let usage = |body: Value| serde_json::from_value::<LogUsage>(body).expect("usage");
        let unpriced = usage(json!({"model": "own", "tokensIn": 1, "tokensOut": 1}));
        let priced = usage(json!({"model": "own", "tokensIn": 1, "tokensOut": 1, "cost": 1}));
        let prices = Prices::open(dir.path());
        assert!(!prices.lacks(&unpriced), "nothing was heard");
        assert!(prices.is_current(&prices.version()) && prices.lacks(&unpriced) && !prices.lacks(&priced));
        assert!(!prices.is_current("another") && !prices.lacks(&unpriced), "it changes");
        assert!(prices.take(&json!({"own": {"input": 1, "output": 1}}).to_string()));
        assert!(!prices.lacks(&unpriced));
        assert!(prices.take(&json!({"other": {"input": 1, "output": 1}}).to_string()));
        assert!(prices.lacks(&unpriced) && Prices::open(dir.path()).lacks(&unpriced));
    }
}
