//! Answers of a node, read strictly: what does not fit is garbage, never a guess.

use serde_json::Value;

use super::{ChainError, EvmAddress, Hash};

/// The head of a block.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Block {
    /// Its height.
    pub number: u64,
    /// Its hash.
    pub hash: Hash,
    /// The hash of the block before.
    pub parent: Hash,
    /// Seconds since 1970.
    pub timestamp: u64,
    /// Wei of each unit of gas that are burnt; 0 where the chain has no such fee.
    pub base_fee: u128,
}

/// A transaction as it was sent.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Transaction {
    /// Its hash.
    pub hash: Hash,
    /// The account that signed it.
    pub from: EvmAddress,
    /// The account it calls; `None` when it makes a contract.
    pub to: Option<EvmAddress>,
    /// What it calls.
    pub input: Vec<u8>,
    /// The account's number of it.
    pub nonce: u64,
    /// The chain it was signed for, where the node says.
    pub chain_id: Option<u64>,
    /// The block it is in; `None` while it waits.
    pub block_number: Option<u64>,
}

/// What a contract noted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Log {
    /// The contract.
    pub address: EvmAddress,
    /// What, and its indexed values.
    pub topics: Vec<Hash>,
    /// The other values.
    pub data: Vec<u8>,
    /// The block.
    pub block_number: u64,
    /// The block's hash.
    pub block_hash: Hash,
    /// The transaction.
    pub tx_hash: Hash,
    /// Its place among all logs of the block.
    pub log_index: u64,
}

/// What became of a transaction.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Receipt {
    /// The transaction.
    pub tx_hash: Hash,
    /// Whether it did what it called.
    pub success: bool,
    /// The account that signed it.
    pub from: EvmAddress,
    /// The account it called.
    pub to: Option<EvmAddress>,
    /// The block.
    pub block_number: u64,
    /// The block's hash.
    pub block_hash: Hash,
    /// Units of gas it used.
    pub gas_used: u64,
    /// What contracts noted.
    pub logs: Vec<Log>,
}

fn garbage(what: &str) -> ChainError {
    ChainError::Garbage(what.to_owned())
}

fn field<'v>(value: &'v Value, name: &str) -> Result<&'v str, ChainError> {
    value.get(name).and_then(Value::as_str).ok_or_else(|| garbage(name))
}

fn text_of<T: std::str::FromStr>(value: &Value, name: &str) -> Result<T, ChainError> {
    field(value, name)?.parse().map_err(|_| garbage(name))
}

/// Addresses come in lower case or with their checksum; some nodes write neither, so case is no matter here.
fn address_text(text: &str) -> Option<EvmAddress> {
    text.to_ascii_lowercase().parse().ok()
}

fn address(value: &Value, name: &str) -> Result<EvmAddress, ChainError> {
    address_text(field(value, name)?).ok_or_else(|| garbage(name))
}

fn optional_address(value: &Value, name: &str) -> Result<Option<EvmAddress>, ChainError> {
    match value.get(name) {
        None | Some(Value::Null) => Ok(None),
        Some(_) => address(value, name).map(Some),
    }
}

/// A quantity of JSON-RPC, `0x…`.
pub(super) fn quantity(value: &Value) -> Result<u128, ChainError> {
    let text =
        value.as_str().and_then(|text| text.strip_prefix("0x")).ok_or_else(|| garbage("a quantity"))?;
    if text.is_empty() || text.starts_with('+') {
        return Err(garbage("a quantity"));
    }
    u128::from_str_radix(text, 16).map_err(|_| garbage("a quantity"))
}

pub(super) fn small(value: &Value) -> Result<u64, ChainError> {
    u64::try_from(quantity(value)?).map_err(|_| garbage("a quantity"))
}

fn number(value: &Value, name: &str) -> Result<u64, ChainError> {
    small(value.get(name).ok_or_else(|| garbage(name))?)
}

/// Bytes as `0x…`.
pub(super) fn bytes(value: &Value) -> Result<Vec<u8>, ChainError> {
    let text = value.as_str().and_then(|text| text.strip_prefix("0x")).ok_or_else(|| garbage("bytes"))?;
    hex::decode(text).map_err(|_| garbage("bytes"))
}

pub(super) fn block(value: &Value) -> Result<Block, ChainError> {
    let base_fee = match value.get("baseFeePerGas") {
        None | Some(Value::Null) => 0,
        Some(fee) => quantity(fee)?,
    };
    Ok(Block {
        number: number(value, "number")?,
        hash: text_of(value, "hash")?,
        parent: text_of(value, "parentHash")?,
        timestamp: number(value, "timestamp")?,
        base_fee,
    })
}

pub(super) fn transaction(value: &Value) -> Result<Transaction, ChainError> {
    let optional = |name: &str| match value.get(name) {
        None | Some(Value::Null) => Ok(None),
        Some(number) => small(number).map(Some),
    };
    Ok(Transaction {
        hash: text_of(value, "hash")?,
        from: address(value, "from")?,
        to: optional_address(value, "to")?,
        input: bytes(value.get("input").or_else(|| value.get("data")).unwrap_or(&Value::Null))?,
        nonce: number(value, "nonce")?,
        chain_id: optional("chainId")?,
        block_number: optional("blockNumber")?,
    })
}

pub(super) fn log(value: &Value) -> Result<Log, ChainError> {
    let topics = value.get("topics").and_then(Value::as_array).ok_or_else(|| garbage("topics"))?;
    let topics = topics.iter().map(|topic| topic.as_str().and_then(|text| text.parse().ok()));
    Ok(Log {
        address: address(value, "address")?,
        topics: topics.collect::<Option<_>>().ok_or_else(|| garbage("topics"))?,
        data: bytes(value.get("data").unwrap_or(&Value::Null))?,
        block_number: number(value, "blockNumber")?,
        block_hash: text_of(value, "blockHash")?,
        tx_hash: text_of(value, "transactionHash")?,
        log_index: number(value, "logIndex")?,
    })
}

pub(super) fn receipt(value: &Value) -> Result<Receipt, ChainError> {
    let logs = value.get("logs").and_then(Value::as_array).ok_or_else(|| garbage("logs"))?;
    Ok(Receipt {
        tx_hash: text_of(value, "transactionHash")?,
        success: match number(value, "status")? {
            0 => false,
            1 => true,
            _ => return Err(garbage("status")),
        },
        from: address(value, "from")?,
        to: optional_address(value, "to")?,
        block_number: number(value, "blockNumber")?,
        block_hash: text_of(value, "blockHash")?,
        gas_used: number(value, "gasUsed")?,
        logs: logs.iter().map(log).collect::<Result<_, _>>()?,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn quantities_are_read_exactly_or_not_at_all() {
        for (text, value) in [("0x0", 0), ("0x1f", 31), ("0xffffffffffffffff", u128::from(u64::MAX))] {
            assert_eq!(quantity(&json!(text)), Ok(value), "{text}");
        }
        for bad in [json!("1f"), json!("0x"), json!("0x+1"), json!("0xg"), json!(31), json!(null)] {
            assert!(quantity(&bad).is_err(), "{bad}");
        }
        assert!(small(&json!("0x10000000000000000")).is_err());
        assert!(quantity(&json!(format!("0x{}", "f".repeat(33)))).is_err());
    }

    #[test]
    fn a_receipt_must_be_whole() {
        let hash = format!("0x{}", "ab".repeat(32));
        let account = format!("0x{}", "Cd".repeat(20));
        let whole = json!({
            "transactionHash": hash, "status": "0x1", "from": account, "to": null, "blockNumber": "0x5",
            "blockHash": hash, "gasUsed": "0x5208", "logs": [],
        });
        let read = receipt(&whole).expect("a receipt");
        assert!(read.success && read.to.is_none() && read.block_number == 5);
        for name in ["transactionHash", "status", "from", "blockNumber", "blockHash", "gasUsed", "logs"] {
            let mut broken = whole.clone();
            broken[name] = json!("nonsense");
            assert!(receipt(&broken).is_err(), "{name}");
            broken.as_object_mut().expect("an object").remove(name);
            assert!(receipt(&broken).is_err(), "{name}");
        }
    }
}
