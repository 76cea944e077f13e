//! JSON-RPC to one or several nodes of one chain, tried one after the other.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::time::Duration;

use serde_json::{Value, json};
use tokio::time::Instant;

use super::http::{BadUrl, JsonPost, PostError, Posted};
use super::{Block, CALL_TIMEOUT, ChainError, EvmAddress, Hash, Log, Receipt, Transaction, answers};

/// Largest answer read.
const MAX_ANSWER: usize = 16 * 1024 * 1024;
/// Logs of one question.
const MAX_LOGS: usize = 200_000;
/// What is said of an answer that is longer than [`MAX_ANSWER`].
const TOO_LONG: &str = "an answer is too long";
/// Longest message of a node that is kept.
const MAX_MESSAGE: usize = 300;

/// Which block a question is about.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum At {
    /// The newest.
    Latest,
    /// The newest and what waits.
    Pending,
    /// The newest that can never leave the chain.
    Finalized,
    /// By height.
    Number(u64),
}

impl At {
    fn json(self) -> Value {
        match self {
            Self::Latest => json!("latest"),
            Self::Pending => json!("pending"),
            Self::Finalized => json!("finalized"),
            Self::Number(number) => json!(format!("{number:#x}")),
        }
    }
}

/// What gas costs now, wei.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Fees {
    /// Burnt with the newest block.
    pub base_fee: u128,
    /// What the node advises for whoever makes the block.
    pub priority_fee: u128,
}

impl Fees {
    /// What to offer at most, and for whoever makes the block: enough for some full blocks in between.
    pub const fn offer(self) -> (u128, u128) {
        (self.base_fee.saturating_mul(2).saturating_add(self.priority_fee), self.priority_fee)
    }
}

/// Which logs.
#[derive(Debug, Clone)]
pub struct LogFilter {
    /// The contract.
    pub address: EvmAddress,
    /// By place; `None` for any.
    pub topics: Vec<Option<Hash>>,
    /// From this block.
    pub from: u64,
    /// To this block.
    pub to: u64,
}

/// The nodes of one chain; cheap to clone.
#[derive(Debug, Clone)]
pub struct Rpc {
    nodes: Arc<[JsonPost]>,
    /// Which node answered last.
    good: Arc<AtomicUsize>,
    calls: Arc<AtomicU64>,
    /// Microseconds.
    waited: Arc<AtomicU64>,
}

/// A wait for a node; it counts also when it is given up.
struct Waiting<'a> {
    since: Instant,
    total: &'a AtomicU64,
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        let waited = u64::try_from(self.since.elapsed().as_micros()).unwrap_or(u64::MAX);
        self.total.fetch_add(waited, Ordering::Relaxed);
    }
}

/// What nodes were asked for so far.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Usage {
    /// Calls made.
    pub calls: u64,
    /// The time of all of them together, each from its sending to its answer, or until it was given up.
    pub waited: Duration,
}

impl Rpc {
    /// A client of some nodes of one chain.
    ///
    /// # Errors
    /// [`BadUrl`] when there is none, or one is no http or https URL.
    pub fn new(urls: &[String]) -> Result<Self, BadUrl> {
        Self::with_timeout(urls, CALL_TIMEOUT)
    }

    /// The same with another time that one node may take for one answer.
    ///
    /// # Errors
    /// As [`Self::new`].
    pub fn with_timeout(urls: &[String], timeout: Duration) -> Result<Self, BadUrl> {
        let nodes: Vec<_> =
            urls.iter().map(|url| JsonPost::new(url, timeout, MAX_ANSWER)).collect::<Result<_, _>>()?;
        if nodes.is_empty() {
            return Err(BadUrl);
        }
        let (good, calls, waited) = (Arc::default(), Arc::default(), Arc::default());
        Ok(Self { nodes: nodes.into(), good, calls, waited })
    }

    /// What was asked so far.
    pub fn usage(&self) -> Usage {
        Usage {
            calls: self.calls.load(Ordering::Relaxed),
            waited: Duration::from_micros(self.waited.load(Ordering::Relaxed)),
        }
    }

    /// One call, to the node that answered last, else to the others.
    ///
    /// # Errors
    /// [`ChainError`]; of several nodes, what the last one tried said.
    pub async fn call_method(&self, method: &str, params: Value) -> Result<Value, ChainError> {
        let id = self.calls.fetch_add(1, Ordering::Relaxed);
        let body = json!({ "jsonrpc": "2.0", "id": id, "method": method, "params": params });
        let body = serde_json::to_vec(&body).map_err(|why| ChainError::Garbage(why.to_string()))?;
        let first = self.good.load(Ordering::Relaxed) % self.nodes.len();
        let mut last = None;
        for step in 0..self.nodes.len() {
            let at = (first + step) % self.nodes.len();
            let Some(node) = self.nodes.get(at) else { continue };
            let waiting = Waiting { since: Instant::now(), total: &self.waited };
            let posted = node.post(body.clone()).await;
            drop(waiting);
            match read(node, posted) {
                Ok(answer) => {
                    self.good.store(at, Ordering::Relaxed);
                    return Ok(answer);
                }
                Err(error) if is_about_the_node(&error) => last = Some(error),
                Err(error) => {
                    self.good.store(at, Ordering::Relaxed);
                    return Err(error);
                }
            }
        }
        Err(last.unwrap_or_else(|| ChainError::Unreachable("no node".to_owned())))
    }

    /// The chain's id.
    ///
    /// # Errors
    /// [`ChainError`].
    pub async fn chain_id(&self) -> Result<u64, ChainError> {
        answers::small(&self.call_method("eth_chainId", json!([])).await?)
    }

    /// The height of the newest block.
    ///
    /// # Errors
    /// [`ChainError`].
    pub async fn block_number(&self) -> Result<u64, ChainError> {
        answers::small(&self.call_method("eth_blockNumber", json!([])).await?)
    }

    /// A block; `None` when there is no such one (yet).
    ///
    /// # Errors
    /// [`ChainError`].
    pub async fn block(&self, at: At) -> Result<Option<Block>, ChainError> {
        let answer = self.call_method("eth_getBlockByNumber", json!([at.json(), false])).await?;
        let Some(block) = present(answer, answers::block)? else { return Ok(None) };
        match at {
            At::Number(number) if block.number != number => {
                Err(ChainError::Garbage("another block than was asked for".to_owned()))
            }
            _ => Ok(Some(block)),
        }
    }

    /// A block by its hash.
    ///
    /// # Errors
    /// [`ChainError`].
    pub async fn block_by_hash(&self, hash: Hash) -> Result<Option<Block>, ChainError> {
        let answer = self.call_method("eth_getBlockByHash", json!([hash, false])).await?;
        present(answer, answers::block)
    }

    /// A transaction, in a block or waiting.
    ///
    /// # Errors
    /// [`ChainError`], also when the node answers with another one.
    pub async fn transaction(&self, hash: Hash) -> Result<Option<Transaction>, ChainError> {
        let answer = self.call_method("eth_getTransactionByHash", json!([hash])).await?;
        let found = present(answer, answers::transaction)?;
        match found {
            Some(tx) if tx.hash != hash => Err(ChainError::Garbage("another transaction".to_owned())),
            found => Ok(found),
        }
    }

    /// What became of a transaction; `None` while it is in no block.
    ///
    /// # Errors
    /// [`ChainError`], also when the node answers for another one.
    pub async fn receipt(&self, hash: Hash) -> Result<Option<Receipt>, ChainError> {
        let answer = self.call_method("eth_getTransactionReceipt", json!([hash])).await?;
        let found = match answer {
            // Some nodes answer for a transaction that waits, without a block.
            Value::Object(ref map) if map.get("blockNumber").is_some_and(Value::is_null) => None,
            answer => present(answer, answers::receipt)?,
        };
        let consistent = |receipt: &Receipt| {
            let of_it = |log: &Log| log.tx_hash == hash && log.block_number == receipt.block_number;
            receipt.tx_hash == hash && receipt.logs.iter().all(of_it)
        };
        match found {
            Some(receipt) if !consistent(&receipt) => {
                Err(ChainError::Garbage("the receipt of another transaction".to_owned()))
            }
            found => Ok(found),
        }
    }

    /// Logs, in order. Nodes refuse what is too much for them, and anyone can make many logs for nothing: then the same
    /// is asked in halves.
    ///
    /// # Errors
    /// [`ChainError`], also when a log is none that was asked for.
    pub async fn logs(&self, filter: &LogFilter) -> Result<Vec<Log>, ChainError> {
        let mut found = Vec::new();
        let mut open = vec![(filter.from, filter.to)];
        while let Some((from, to)) = open.pop() {
            match self.logs_at_once(&LogFilter { from, to, ..filter.clone() }).await {
                Ok(logs) if found.len() + logs.len() > MAX_LOGS => {
                    return Err(ChainError::Garbage("there are too many logs".to_owned()));
                }
                Ok(logs) => found.extend(logs),
                Err(error) if from < to && is_too_much(&error) => {
                    let middle = from + (to - from) / 2;
                    open.extend([(middle + 1, to), (from, middle)]);
                }
                Err(error) => return Err(error),
            }
        }
        Ok(found)
    }

    async fn logs_at_once(&self, filter: &LogFilter) -> Result<Vec<Log>, ChainError> {
        let params = json!([{
            "address": filter.address,
            "topics": filter.topics,
            "fromBlock": At::Number(filter.from).json(),
            "toBlock": At::Number(filter.to).json(),
        }]);
        let answer = self.call_method("eth_getLogs", params).await?;
        let rows = answer.as_array().ok_or_else(|| ChainError::Garbage("logs".to_owned()))?;
        let logs: Vec<Log> = rows.iter().map(answers::log).collect::<Result<_, _>>()?;
        let wanted = |log: &Log| {
            let topics = filter.topics.iter().enumerate();
            log.address == filter.address
                && (filter.from..=filter.to).contains(&log.block_number)
                && topics.into_iter().all(|(at, want)| want.is_none() || log.topics.get(at) == want.as_ref())
        };
        if logs.iter().all(wanted) { Ok(logs) } else { Err(ChainError::Garbage("other logs".to_owned())) }
    }

    /// Calls a contract without changing anything, with at most so much gas.
    ///
    /// # Errors
    /// [`ChainError`]; [`ChainError::is_revert`] when the call itself fails.
    pub async fn call(
        &self,
        from: Option<EvmAddress>,
        to: EvmAddress,
        data: &[u8],
        gas: Option<u64>,
        at: At,
    ) -> Result<Vec<u8>, ChainError> {
        let mut call = json!({ "to": to, "data": format!("0x{}", hex::encode(data)) });
        if let Some(from) = from {
            call["from"] = json!(from);
        }
        if let Some(gas) = gas {
            call["gas"] = json!(format!("{gas:#x}"));
        }
        answers::bytes(&self.call_method("eth_call", json!([call, at.json()])).await?)
    }

    /// The code at an address; empty for an account without.
    ///
    /// # Errors
    /// [`ChainError`].
    pub async fn code(&self, of: EvmAddress) -> Result<Vec<u8>, ChainError> {
        answers::bytes(&self.call_method("eth_getCode", json!([of, "latest"])).await?)
    }

    /// An account's coins, wei.
    ///
    /// # Errors
    /// [`ChainError`].
    pub async fn balance(&self, of: EvmAddress) -> Result<u128, ChainError> {
        answers::quantity(&self.call_method("eth_getBalance", json!([of, "latest"])).await?)
    }

    /// How many transactions an account has sent: the number of its next one.
    ///
    /// # Errors
    /// [`ChainError`].
    pub async fn transaction_count(&self, of: EvmAddress, at: At) -> Result<u64, ChainError> {
        answers::small(&self.call_method("eth_getTransactionCount", json!([of, at.json()])).await?)
    }

    /// How much gas a call would take.
    ///
    /// # Errors
    /// [`ChainError`]; [`ChainError::is_revert`] when the call itself fails.
    pub async fn estimate_gas(
        &self,
        from: EvmAddress,
        to: EvmAddress,
        data: &[u8],
    ) -> Result<u64, ChainError> {
        let call = json!({ "from": from, "to": to, "data": format!("0x{}", hex::encode(data)) });
        answers::small(&self.call_method("eth_estimateGas", json!([call])).await?)
    }

    /// What gas costs now.
    ///
    /// # Errors
    /// [`ChainError`].
    pub async fn fees(&self) -> Result<Fees, ChainError> {
        let head = self.block(At::Latest).await?;
        let head = head.ok_or_else(|| ChainError::Garbage("no newest block".to_owned()))?;
        let advised = self.call_method("eth_maxPriorityFeePerGas", json!([])).await;
        let priority_fee = match advised {
            Ok(fee) => answers::quantity(&fee)?,
            // Not every node has this method.
            Err(ChainError::Rpc { .. }) => 1_000_000,
            Err(error) => return Err(error),
        };
        Ok(Fees { base_fee: head.base_fee, priority_fee })
    }

    /// Sends a signed transaction. A node that has it already is as good as one that takes it.
    ///
    /// # Errors
    /// [`ChainError`]; [`ChainError::Unreachable`] leaves open whether it was taken.
    pub async fn send_raw(&self, raw: &[u8]) -> Result<(), ChainError> {
        let params = json!([format!("0x{}", hex::encode(raw))]);
        match self.call_method("eth_sendRawTransaction", params).await {
            Ok(_) => Ok(()),
            Err(error) if error.is_already_known() => Ok(()),
            Err(error) => Err(error),
        }
    }
}

fn present<T>(
    answer: Value,
    read: impl FnOnce(&Value) -> Result<T, ChainError>,
) -> Result<Option<T>, ChainError> {
    if answer.is_null() { Ok(None) } else { read(&answer).map(Some) }
}

/// Whether less may be answered: nodes say in many ways that a question is too large for them.
fn is_too_much(error: &ChainError) -> bool {
    match error {
        ChainError::Rpc { .. } => true,
        ChainError::Garbage(why) => why == TOO_LONG,
        ChainError::Unreachable(_) => false,
    }
}

/// Whether another node may do better.
fn is_about_the_node(error: &ChainError) -> bool {
    match error {
        ChainError::Unreachable(_) | ChainError::Garbage(_) => true,
        // Limits, missing methods and pruned state.
        ChainError::Rpc { code, message, .. } => {
            matches!(code, -32005 | -32601 | -32016 | 429)
                || message.to_ascii_lowercase().contains("missing trie")
        }
    }
}

fn read(node: &JsonPost, posted: Result<Posted, PostError>) -> Result<Value, ChainError> {
    let posted = posted.map_err(|error| match error {
        PostError::NotSent => ChainError::Unreachable(format!("cannot connect to {}", node.host())),
        PostError::NoAnswer(why) => ChainError::Unreachable(format!("{}: {why}", node.host())),
        PostError::TooLong => ChainError::Garbage(TOO_LONG.to_owned()),
    })?;
    let refused = posted.status >= 400;
    let answer: Value = match serde_json::from_slice(&posted.body) {
        Ok(answer) => answer,
        Err(_) if refused => return Err(ChainError::Unreachable(format!("HTTP {}", posted.status))),
        Err(_) => return Err(ChainError::Garbage("an answer is no JSON".to_owned())),
    };
    if let Some(error) = answer.get("error").filter(|error| !error.is_null()) {
        let message = error.get("message").and_then(Value::as_str).unwrap_or("").to_owned();
        let data = error.get("data").and_then(Value::as_str).map(|text| text.chars().take(1024).collect());
        return Err(ChainError::Rpc {
            code: error.get("code").and_then(Value::as_i64).unwrap_or(0),
            message: message.chars().take(MAX_MESSAGE).collect(),
            data,
        });
    }
    if refused {
        return Err(ChainError::Unreachable(format!("HTTP {}", posted.status)));
    }
    match answer {
        Value::Object(mut map) => {
            map.remove("result").ok_or_else(|| ChainError::Garbage("an answer without result".to_owned()))
        }
        _ => Err(ChainError::Garbage("an answer is no object".to_owned())),
    }
}
