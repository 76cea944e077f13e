//! The local chain for tests in Rust: starts `chain.mjs` (the real USDC at its Base address, chain id 8453) and steers
//! it over JSON-RPC. Included with `#[path]`; blocking, and nothing but the standard library and `serde_json`.
//!
//! ```ignore
//! #[path = "../../../tests/interop/chain.rs"]
//! mod chain;
//!
//! let chain = chain::Chain::start();
//! chain.mint(&chain.accounts[1].address, 5_000_000);
//! assert_eq!(chain.balance(&chain.accounts[1].address), 5_000_000);
//! ```
//!
//! The packages it needs are installed by `tests/interop/setup`, which is run when they are not there. The chain ends
//! with the value, and with the test process in any case. In async tests call it from `spawn_blocking` where a wait
//! of some milliseconds matters.
#![allow(clippy::allow_attributes, dead_code, reason = "each test program uses a part of it")]

use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::Once;
use std::thread;
use std::time::{Duration, Instant};

use serde_json::{Value, json};

/// Where `chain.mjs` and `setup` are, seen from any package of the workspace.
const HERE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../tests/interop");

/// How long one call may take.
const CALL_DEADLINE: Duration = Duration::from_secs(20);

/// One of anvil's ten accounts: 10,000 ETH each, and no USDC until it is minted.
#[derive(Debug, Clone)]
pub struct Account {
    /// With the checksum's capitals, `0x…`.
    pub address: String,
    /// The private key, `0x` and 64 hex digits. Public for ever.
    pub key: String,
}

/// An error that the node answered.
#[derive(Debug, Clone)]
pub struct RpcError {
    pub code: i64,
    pub message: String,
}

/// How a chain is started.
#[derive(Debug, Clone, Copy, Default)]
pub struct Options {
    /// Seconds between blocks; 0: every transaction is mined at once.
    pub block_time_secs: u32,
    /// `finalized` is twice this many blocks behind the head; 0: one slot, that is two blocks.
    pub slots: u32,
    /// So many seconds the chain's clock is behind this machine's.
    pub behind_secs: u32,
}

/// A running chain.
#[derive(Debug)]
pub struct Chain {
    program: Child,
    /// The chain ends when this closes.
    input: Option<ChildStdin>,
    address: SocketAddr,
    /// `http://127.0.0.1:…`
    pub rpc: String,
    /// USDC.
    pub asset: String,
    /// May mint; it is `accounts[0]`.
    pub minter: String,
    pub accounts: Vec<Account>,
}

impl Chain {
    /// A chain that mines every transaction at once.
    ///
    /// # Panics
    /// When the packages cannot be installed or the chain does not start.
    pub fn start() -> Self {
        Self::with(Options::default())
    }

    /// A chain as told.
    ///
    /// # Panics
    /// As [`Chain::start`].
    pub fn with(options: Options) -> Self {
        set_up();
        let mut program = Command::new("node")
            .arg(format!("{HERE}/chain.mjs"))
            .args(["--block-time", &options.block_time_secs.to_string()])
            .args(["--slots", &options.slots.max(1).to_string()])
            .args(["--behind", &options.behind_secs.to_string()])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .expect("node runs");
        let input = program.stdin.take();
        let mut line = String::new();
        let output = program.stdout.take().expect("it is piped");
        BufReader::new(output).read_line(&mut line).expect("the chain's output is text");
        let ready: Value = serde_json::from_str(&line).expect("the chain starts and prints one line of JSON");
        let text = |name: &str| ready[name].as_str().expect("as chain.mjs prints it").to_owned();
        let rpc = text("rpc");
        let address = rpc.trim_start_matches("http://").parse().expect("an address and a port");
        let account = |each: &Value| Account {
            address: each["address"].as_str().expect("a text").to_owned(),
            key: each["key"].as_str().expect("a text").to_owned(),
        };
        let accounts = ready["accounts"].as_array().expect("a list").iter().map(account).collect();
        Self { program, input, address, rpc, asset: text("asset"), minter: text("minter"), accounts }
    }

    /// Where it listens.
    pub const fn address(&self) -> SocketAddr {
        self.address
    }

    /// One JSON-RPC call.
    ///
    /// # Errors
    /// What the node answered.
    ///
    /// # Panics
    /// When the chain does not answer.
    pub fn call(&self, method: &str, params: Value) -> Result<Value, RpcError> {
        let body = json!({"jsonrpc": "2.0", "id": 1, "method": method, "params": params}).to_string();
        let mut stream = TcpStream::connect(self.address).expect("the chain listens");
        stream.set_read_timeout(Some(CALL_DEADLINE)).expect("not zero");
        write!(
            stream,
            "POST / HTTP/1.0\r\nHost: {}\r\nContent-Type: application/json\r\nContent-Length: {}\r\n\r\n{body}",
            self.address,
            body.len()
        )
        .expect("the chain reads");
        let mut answer = Vec::new();
        stream.read_to_end(&mut answer).expect("the chain answers");
        let start = answer.windows(4).position(|four| four == b"\r\n\r\n").expect("an HTTP answer") + 4;
        let mut answer: Value = serde_json::from_slice(&answer[start..]).expect("JSON");
        if answer["error"].is_object() {
            let message = answer["error"]["message"].as_str().unwrap_or_default().to_owned();
            return Err(RpcError { code: answer["error"]["code"].as_i64().unwrap_or_default(), message });
        }
        Ok(answer["result"].take())
    }

    /// One JSON-RPC call that must succeed.
    ///
    /// # Panics
    /// When it does not.
    pub fn rpc(&self, method: &str, params: Value) -> Value {
        self.call(method, params).unwrap_or_else(|error| panic!("{method}: {error:?}"))
    }

    /// Gives `to` new USDC (micro-USDC) and returns the transaction's hash. Mined when it returns: a chain that does
    /// not mine at once gets a block for it.
    pub fn mint(&self, to: &str, micros: u64) -> String {
        let data = format!("0x40c10f19{}{micros:064x}", padded(to));
        let hash = self.send(&self.minter, &self.asset, &data);
        if self.receipt(&hash).is_none() {
            self.mine(1);
        }
        self.mined(&hash);
        hash
    }

    /// Moves USDC (micro-USDC) from any address to another, as its owner would; `suffix` (hex without `0x`) follows
    /// the arguments in the calldata. Returns the hash; not mined yet, see [`Chain::send`].
    pub fn transfer(&self, from: &str, to: &str, micros: u64, suffix: &str) -> String {
        let data = format!("0xa9059cbb{}{micros:064x}{suffix}", padded(to));
        self.send(from, &self.asset, &data)
    }

    /// Sends a transaction as `from`, whoever that is. Returns its hash. A chain that mines at once does so a moment
    /// later: see [`Chain::mined`].
    pub fn send(&self, from: &str, to: &str, data: &str) -> String {
        self.rpc("anvil_impersonateAccount", json!([from]));
        let transaction = json!({"from": from, "to": to, "data": data, "gas": "0x7a120"});
        let hash = self.rpc("eth_sendTransaction", json!([transaction]));
        hash.as_str().expect("a hash").to_owned()
    }

    /// USDC of an address, micro-USDC.
    pub fn balance(&self, address: &str) -> u64 {
        let data = format!("0x70a08231{}", padded(address));
        let word = self.rpc("eth_call", json!([{"to": self.asset, "data": data}, "latest"]));
        number(&word)
    }

    /// Sets an address's ETH, in wei.
    pub fn set_ether(&self, address: &str, wei: u128) {
        self.rpc("anvil_setBalance", json!([address, format!("0x{wei:x}")]));
    }

    /// Mines so many blocks now.
    pub fn mine(&self, blocks: u64) {
        self.rpc("anvil_mine", json!([format!("0x{blocks:x}")]));
    }

    /// From now on a block every so many seconds; 0: every transaction at once.
    pub fn set_block_time(&self, secs: u64) {
        self.rpc("evm_setAutomine", json!([secs == 0]));
        self.rpc("evm_setIntervalMining", json!([secs]));
    }

    /// From now on blocks come only by [`Chain::mine`].
    pub fn hold(&self) {
        self.rpc("evm_setAutomine", json!([false]));
        self.rpc("evm_setIntervalMining", json!([0]));
    }

    /// Moves the chain's clock forward and mines one block there.
    pub fn advance(&self, secs: u64) {
        self.rpc("evm_increaseTime", json!([secs]));
        self.mine(1);
    }

    /// Number of the newest block.
    pub fn head(&self) -> u64 {
        number(&self.rpc("eth_blockNumber", json!([])))
    }

    /// Unix time of the newest block, seconds.
    pub fn time(&self) -> u64 {
        number(&self.rpc("eth_getBlockByNumber", json!(["latest", false]))["timestamp"])
    }

    /// Replaces the newest `depth` blocks with empty ones: what was in them is gone from the chain.
    pub fn reorg(&self, depth: u64) {
        self.rpc("anvil_reorg", json!([depth, []]));
    }

    /// Remembers the chain as it is; returns what [`Chain::revert`] takes, once.
    pub fn snapshot(&self) -> String {
        self.rpc("evm_snapshot", json!([])).as_str().expect("an id").to_owned()
    }

    /// Back to a snapshot.
    pub fn revert(&self, snapshot: &str) {
        assert_eq!(self.rpc("evm_revert", json!([snapshot])), json!(true), "the snapshot is there");
    }

    /// A transaction's receipt, when it is mined.
    pub fn receipt(&self, hash: &str) -> Option<Value> {
        Some(self.rpc("eth_getTransactionReceipt", json!([hash]))).filter(Value::is_object)
    }

    /// Waits for the receipt of a transaction that must succeed, and returns it.
    ///
    /// # Panics
    /// When the transaction failed, or is not mined within 30 s.
    pub fn mined(&self, hash: &str) -> Value {
        let receipt = self.outcome(hash);
        assert_eq!(receipt["status"], "0x1", "transaction {hash} failed: {receipt}");
        receipt
    }

    /// Waits for the receipt of a transaction, whatever became of it.
    ///
    /// # Panics
    /// When it is not mined within 30 s.
    pub fn outcome(&self, hash: &str) -> Value {
        let deadline = Instant::now() + Duration::from_secs(30);
        loop {
            if let Some(receipt) = self.receipt(hash) {
                return receipt;
            }
            assert!(Instant::now() < deadline, "transaction {hash} is not mined");
            thread::sleep(Duration::from_millis(20));
        }
    }

    /// Every USDC transfer from `from` to `to` so far (either may be left open): hash and micro-USDC, oldest first.
    pub fn transfers(&self, from: Option<&str>, to: Option<&str>) -> Vec<(String, u64)> {
        const TRANSFER: &str = "0xddf252ad1be2c89b69c2b068fc378daa952ba7f163c4a11628f55a4df523b3ef";
        let topic = |address: Option<&str>| address.map(|address| format!("0x{}", padded(address)));
        let filter = json!({
            "fromBlock": "0x0", "toBlock": "latest", "address": self.asset,
            "topics": [TRANSFER, topic(from), topic(to)],
        });
        let logs = self.rpc("eth_getLogs", json!([filter]));
        let one =
            |log: &Value| (log["transactionHash"].as_str().expect("a hash").to_owned(), number(&log["data"]));
        logs.as_array().expect("a list").iter().map(one).collect()
    }

    /// Ends the chain now, as a machine that is switched off.
    pub fn stop(&mut self) {
        drop(self.input.take());
        self.program.wait().ok();
    }
}

impl Drop for Chain {
    fn drop(&mut self) {
        self.stop();
    }
}

/// Installs the packages when they are not there.
fn set_up() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        let done =
            Command::new(format!("{HERE}/setup")).arg("chain").status().expect("tests/interop/setup runs");
        assert!(done.success(), "tests/interop/setup failed");
    });
}

/// An address as a word without `0x`.
fn padded(address: &str) -> String {
    format!("{:0>64}", address.trim_start_matches("0x").to_lowercase())
}

/// A hex quantity or word.
fn number(value: &Value) -> u64 {
    let digits = value.as_str().expect("a hex text").trim_start_matches("0x").trim_start_matches('0');
    if digits.is_empty() { 0 } else { u64::from_str_radix(digits, 16).expect("it fits 64 bits") }
}
