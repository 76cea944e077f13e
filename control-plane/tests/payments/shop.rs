//! A server that sells on a chain of its own, and its customers.

use std::net::SocketAddr;
use std::time::{SystemTime, UNIX_EPOCH};

use alloy::primitives::{B256, U256, keccak256};
use alloy::signers::SignerSync as _;
use alloy::signers::local::PrivateKeySigner;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use otonix_sdk::x402::eip3009::{Domain, Transfer};
use serde_json::{Map, Value, json};
use sha2::{Digest as _, Sha256};

use crate::chain::{Account, Chain, Options};
use crate::chaos::Proxy;
use crate::peer::{Peer, settlement};
use crate::support::{Agent, Answer, Call, Server, Store};

/// Seconds since 1970.
pub fn now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).expect("after 1970").as_secs()
}

/// A server, its chain, and who is who on it.
pub struct Shop {
    pub server: Server,
    pub chain: Chain,
    pub treasury: Account,
    pub settler: Account,
    pub customer: Account,
    pub thief: Account,
    /// Between the server and its node, if one was asked for.
    pub proxy: Option<Proxy>,
    /// The node that the server asks, if it is not the chain's own.
    pub node: Option<Peer>,
    /// Who settles, if it is not the server's own key.
    pub facilitator: Option<Peer>,
}

fn text(value: &Value) -> String {
    value.as_str().unwrap_or_else(|| panic!("no text: {value}")).to_owned()
}

impl Shop {
    /// One that settles with its own key.
    pub async fn open(store: Store) -> Self {
        Self::open_with(store, &[]).await
    }

    /// The same with flags more.
    pub async fn open_with(store: Store, args: &[(&str, &str)]) -> Self {
        Self::open_on(store, Chain::start(), args).await
    }

    /// One on a chain as told.
    pub async fn open_over(store: Store, options: Options) -> Self {
        Self::open_on(store, Chain::with(options), &[]).await
    }

    /// One that reaches its node through a proxy.
    pub async fn open_behind_proxy(store: Store) -> Self {
        let chain = Chain::start();
        let proxy = Proxy::start(chain.address()).await;
        let addr = proxy.addr;
        let mut shop = Self::open_at(store, chain, addr, &[]).await;
        shop.proxy = Some(proxy);
        shop
    }

    /// One whose node does not know of finality.
    pub async fn open_without_finality(store: Store) -> Self {
        let chain = Chain::start();
        let node = Peer::without("finalized", chain.address()).await;
        let addr = node.addr;
        let mut shop = Self::open_at(store, chain, addr, &[]).await;
        shop.node = Some(node);
        shop
    }

    /// One whose node does what the test says, and so does its facilitator, if it has one.
    pub async fn open_among_peers(store: Store, with_facilitator: bool) -> Self {
        let chain = Chain::start();
        let node = Peer::node(chain.address()).await;
        let facilitator = match with_facilitator {
            true => Some(Peer::facilitator(chain.address(), &chain.accounts[4].address).await),
            false => None,
        };
        let url = facilitator.as_ref().map(Peer::url);
        let args: Vec<_> = url.iter().map(|url| ("--facilitator", url.as_str())).collect();
        let addr = node.addr;
        let mut shop = Self::open_at(store, chain, addr, &args).await;
        (shop.node, shop.facilitator) = (Some(node), facilitator);
        shop
    }

    async fn open_on(store: Store, chain: Chain, args: &[(&str, &str)]) -> Self {
        let addr = chain.address();
        Self::open_at(store, chain, addr, args).await
    }

    async fn open_at(store: Store, chain: Chain, node: SocketAddr, args: &[(&str, &str)]) -> Self {
        let rpc = format!("http://{node}");
        let account = |at: usize| chain.accounts[at].clone();
        let (treasury, settler, customer, thief) = (account(5), account(6), account(7), account(8));
        chain.mint(&customer.address, 1_000_000_000);
        chain.mint(&thief.address, 1_000_000_000);
        let dir = tempfile::tempdir().expect("a directory").keep();
        let key_file = dir.join("settle-key");
        std::fs::write(&key_file, &settler.key).expect("our directory");
        let mut options = Server::with(store)
            .await
            .arg("--mode", "open")
            .arg("--chain-rpc", &rpc)
            .arg("--treasury", &treasury.address);
        if !args.iter().any(|(flag, _)| *flag == "--facilitator" || *flag == "--no-settler") {
            options = options.arg("--settle-key-file", key_file.to_str().expect("a text"));
        }
        for (flag, value) in args.iter().filter(|(flag, _)| *flag != "--no-settler") {
            options = options.arg(flag, value);
        }
        let server = options.start().await;
        Self { server, chain, treasury, settler, customer, thief, proxy: None, node: None, facilitator: None }
    }

    /// A top-up without payment.
    pub fn topup(&self, agent: &Agent, amount: &str) -> Call {
        self.topup_at(&self.server, agent, amount)
    }

    /// The same at a replica.
    pub fn topup_at(&self, server: &Server, agent: &Agent, amount: &str) -> Call {
        server.post(&agent.path("topup")).json(json!({ "amount": amount }))
    }

    /// What is asked for a top-up.
    pub async fn quote(&self, agent: &Agent, amount: &str) -> Quote {
        Quote::of(&self.topup(agent, amount).await)
    }

    /// Pays an order on chain, naming it in the calldata; returns the transaction.
    pub fn pay_order(&self, payer: &Account, quote: &Quote, micros: u64) -> String {
        let named = hex::encode(Sha256::digest(quote.order_id.as_bytes()));
        self.transfer(payer, micros, &named)
    }

    /// Moves money to the treasury.
    pub fn transfer(&self, payer: &Account, micros: u64, suffix: &str) -> String {
        let hash = self.chain.transfer(&payer.address, &self.treasury.address, micros, suffix);
        self.chain.mined(&hash);
        hash
    }

    /// Carries a signed payment out without the server, whoever sends it, before all others that wait.
    pub fn carry_out(&self, by: &Account, payment: &str) -> String {
        let transaction = settlement(&by.address, &json!(self.chain.asset), &decoded(payment)["payload"]);
        self.chain.rpc("anvil_impersonateAccount", json!([by.address]));
        let sent = self.chain.rpc("eth_sendTransaction", json!([transaction]));
        text(&sent)
    }

    /// A transaction that has left the chain comes again, in another block.
    pub fn send_again(&self, sent: &Value) {
        let fields = ["from", "to", "gas", "nonce", "input", "value", "maxFeePerGas", "maxPriorityFeePerGas"];
        let same: Map<String, Value> =
            fields.map(|name| (name.to_owned(), sent[name].clone())).into_iter().collect();
        self.chain.rpc("anvil_impersonateAccount", json!([sent["from"]]));
        assert_eq!(self.chain.rpc("eth_sendTransaction", json!([same])), sent["hash"]);
        self.chain.mined(&text(&sent["hash"]));
    }

    /// Ends a signed payment by its payer's own word: `cancelAuthorization(authorizer, nonce, v, r, s)`.
    pub fn cancel(&self, payer: &Account, payment: &str) -> String {
        let nonce = text(&decoded(payment)["payload"]["authorization"]["nonce"]);
        let kind = keccak256("CancelAuthorization(address authorizer,bytes32 nonce)");
        let word = |address: &str| hex::decode(format!("{:0>64}", &address[2..])).expect("hex");
        let nonce = hex::decode(&nonce[2..]).expect("hex");
        let content = keccak256([&kind[..], &word(&payer.address), &nonce].concat());
        let digest = keccak256([&[0x19, 1], &usdc_domain().separator()[..], &content[..]].concat());
        let signature = signer(payer).sign_hash_sync(&digest).expect("signs").as_bytes();
        let mut data = hex::decode("5a049a70").expect("hex");
        data.extend(word(&payer.address));
        data.extend(&nonce);
        data.extend([&[0; 31], &signature[64..]].concat());
        data.extend(&signature[..64]);
        text(&self.chain.rpc(
            "eth_sendTransaction",
            json!([{
                "from": payer.address, "to": self.chain.asset, "data": format!("0x{}", hex::encode(data)),
                "gas": "0x493e0", "maxPriorityFeePerGas": "0x174876e800", "maxFeePerGas": "0x2e90edd000",
            }]),
        ))
    }

    /// Lets the time pass after which a transfer is nobody's order any more.
    pub fn pass_time(&self) {
        self.chain.advance(900 + 600 + 60);
        self.chain.mine(12);
    }

    /// An agent whose wallet is the customer's, proven.
    pub async fn own_wallet(&self) -> Agent {
        let key = self.server.key("owner").await;
        let wallet = otonix_sdk::wallet::Wallet::from_hex(&self.customer.key).expect("a key");
        let url = format!("http://{}", self.server.addr);
        let proof = wallet.wallet_proof("own", &url, i64::try_from(now()).expect("fits"));
        let body = json!({
            "name": "own", "walletAddress": self.customer.address,
            "walletProof": { "signature": proof.signature, "unixTime": proof.unix_time },
        });
        self.server.register_with(&key, body).await
    }

    /// Micro-USDC that the treasury has.
    pub fn till(&self) -> u64 {
        self.chain.balance(&self.treasury.address)
    }

    /// An agent's credits as they are shown.
    pub async fn credits(&self, agent: &Agent) -> String {
        self.server.look(agent).await["credits"].to_string()
    }

    /// The books hold and agree with the chain.
    pub fn audit(&self) {
        let (ended_well, said) = self.audited();
        assert!(ended_well && said.contains("sum 0 USDC"), "audit: {said}");
    }

    /// Runs `audit`: whether it ended well, and what it said.
    pub fn audited(&self) -> (bool, String) {
        let chain = ["audit", "--chain-rpc", &self.chain.rpc, "--treasury", &self.treasury.address];
        let output = self.server.run_with(&chain);
        let said = [output.stdout, output.stderr].map(|part| String::from_utf8_lossy(&part).into_owned());
        (output.status.success(), said.concat())
    }
}

/// What a 402 asks.
#[derive(Debug, Clone)]
pub struct Quote {
    pub body: Value,
    pub order_id: String,
    /// The content of `PAYMENT-REQUIRED`.
    pub v2: Option<Value>,
}

impl Quote {
    /// Reads a 402.
    pub fn of(answer: &Answer) -> Self {
        let body = answer.ok(402);
        let v2 = answer.header("payment-required").map(decoded);
        Self { order_id: text(&body["orderId"]), body, v2 }
    }

    /// A proof by hash.
    pub fn proof(&self, tx_hash: &str, payer: &str, signature: Option<&str>) -> String {
        let mut proof = json!({ "orderId": self.order_id, "txHash": tx_hash, "payer": payer });
        if let Some(signature) = signature {
            proof["signature"] = json!(signature);
        }
        encoded(&proof)
    }

    /// The payer's signature that ties a transfer to this order.
    pub fn signature(&self, payer: &Account, tx_hash: &str) -> String {
        let message = format!("Otonix order {} paid by {tx_hash} on eip155:8453", self.order_id);
        let signature = signer(payer).sign_message_sync(message.as_bytes()).expect("signs");
        format!("0x{}", hex::encode(signature.as_bytes()))
    }

    fn transfer(&self, payer: &Account) -> Transfer {
        let offer = &self.v2.as_ref().expect("signed payments are taken")["accepts"][0];
        Transfer {
            from: payer.address.parse().expect("an address"),
            to: text(&offer["payTo"]).parse().expect("an address"),
            value: text(&offer["amount"]).parse().expect("a number"),
            valid_after: 0,
            valid_before: now() + 110,
            nonce: rand::random(),
        }
    }

    /// A signed payment of version 2, its header's value.
    pub fn pay_v2(&self, payer: &Account) -> String {
        self.pay_v2_with(payer, |_| {})
    }

    /// The same, changed before it is signed.
    pub fn pay_v2_with(&self, payer: &Account, change: impl FnOnce(&mut Transfer)) -> String {
        let mut transfer = self.transfer(payer);
        change(&mut transfer);
        let required = self.v2.as_ref().expect("signed payments are taken");
        encoded(&json!({
            "x402Version": 2,
            "resource": required["resource"],
            "accepted": required["accepts"][0],
            "payload": { "signature": signed(payer, &transfer), "authorization": transfer.authorization() },
        }))
    }

    /// A signed payment of version 1, its header's value.
    pub fn pay_v1(&self, payer: &Account) -> String {
        let transfer = self.transfer(payer);
        encoded(&json!({
            "x402Version": 1,
            "scheme": "exact",
            "network": self.body["accepts"][0]["network"],
            "payload": { "signature": signed(payer, &transfer), "authorization": transfer.authorization() },
        }))
    }
}

fn signer(account: &Account) -> PrivateKeySigner {
    account.key.parse().expect("a key")
}

/// USDC's domain on Base.
fn usdc_domain() -> Domain {
    Domain {
        name: "USD Coin".to_owned(),
        version: "2".to_owned(),
        chain_id: 8453,
        asset: "0x833589fCD6eDb6E08f4c7C32D4f71b54bdA02913".parse().expect("an address"),
    }
}

/// A signature over a transfer in USDC's domain on Base.
pub fn signed(payer: &Account, transfer: &Transfer) -> String {
    let digest = B256::from(transfer.digest(&usdc_domain()));
    let signature = signer(payer).sign_hash_sync(&digest).expect("signs");
    format!("0x{}", hex::encode(signature.as_bytes()))
}

/// JSON as a header's value.
pub fn encoded(json: &Value) -> String {
    STANDARD.encode(json.to_string())
}

/// A header's value as JSON.
pub fn decoded(header: &str) -> Value {
    serde_json::from_slice(&STANDARD.decode(header).expect("base64")).expect("JSON")
}

/// The other signature that is valid for the same message: its s is the curve's order less the first one's.
pub fn with_high_s(signature: &str) -> String {
    let order = "0xfffffffffffffffffffffffffffffffebaaedce6af48a03bbfd25e8cd0364141";
    let order: U256 = order.parse().expect("a number");
    let mut bytes = hex::decode(&signature[2..]).expect("hex");
    let s = order - U256::from_be_slice(&bytes[32..64]);
    bytes[32..64].copy_from_slice(&s.to_be_bytes::<32>());
    bytes[64] = 27 + 28 - bytes[64];
    format!("0x{}", hex::encode(bytes))
}
