//! A chain, a wallet with money, and a paying client with short waiting times.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use otonix_sdk::clock::SystemClock;
use otonix_sdk::money::MicroUsd;
use otonix_sdk::pay::{Asker, Client, Fetch, Fetched, PayConfig, PayError, Request, Rules, State, Tuning};
use otonix_sdk::standing::SurvivalTier;
use otonix_sdk::wallet::{Wallet, parse_address};

use crate::chain::Chain;

/// The payee of most tests: an account of the local chain.
pub const PAYEE: usize = 5;

pub struct World {
    pub chain: Arc<Chain>,
    pub dir: tempfile::TempDir,
    pub key: String,
    pub address: String,
    pub tuning: Tuning,
    pub rules: Rules,
}

pub fn usdc(text: &str) -> MicroUsd {
    MicroUsd::parse(text).expect("an amount")
}

impl World {
    /// A wallet with so many micro-USDC and no coins for gas.
    pub async fn with(micros: u64) -> Self {
        let chain = Arc::new(tokio::task::spawn_blocking(Chain::start).await.expect("a chain"));
        let wallet = Wallet::generate();
        let address = wallet.address().to_string();
        if micros > 0 {
            chain.mint(&address, micros);
        }
        let rules = Rules {
            max_payment: usdc("1"),
            max_hour: usdc("5"),
            max_day: usdc("20"),
            reserve: usdc("0"),
            hosts: vec!["127.0.0.1".to_owned()],
            essential: Vec::new(),
            topup_max_day: usdc("20"),
            server: "http://127.0.0.1:1".to_owned(),
            topup_path: "/topup".to_owned(),
            chain_id: 8453,
            asset: parse_address(&chain.asset).expect("an address"),
        };
        let tuning = Tuning {
            patience: Duration::from_secs(10),
            undelivered: Duration::from_secs(2),
            poll: Duration::from_millis(100),
            backoff: Duration::from_millis(30),
            after_rollback: Duration::from_millis(300),
            bump: Duration::from_millis(400),
            void_before: Duration::from_secs(60),
        };
        let dir = tempfile::tempdir().expect("a folder");
        let key = wallet.private_key_hex().to_string();
        Self { chain, dir, key, address, tuning, rules }
    }

    pub fn folder(&self) -> PathBuf {
        self.dir.path().join("pay")
    }

    pub fn wallet(&self) -> Wallet {
        Wallet::from_hex(&self.key).expect("our key")
    }

    pub fn try_client(&self) -> Result<Client, PayError> {
        let config = PayConfig {
            dir: self.folder(),
            rules: self.rules.clone(),
            allow_private: true,
            rpc: vec![self.chain.rpc.clone()],
            api_key: None,
            tuning: self.tuning,
        };
        Client::open(config, self.wallet(), Arc::new(SystemClock))
    }

    /// A client; waits for an earlier one to let go of the journal.
    pub async fn client(&self) -> Client {
        let began = Instant::now();
        loop {
            match self.try_client() {
                Ok(client) => return client,
                Err(error) => assert!(began.elapsed() < Duration::from_secs(20), "{error}"),
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }

    pub fn balance(&self, of: &str) -> u64 {
        self.chain.balance(of)
    }

    pub fn payee(&self) -> &str {
        &self.chain.accounts[PAYEE].address
    }

    /// Transfers out of the wallet.
    pub fn moved(&self) -> Vec<(String, u64)> {
        self.chain.transfers(Some(&self.address), None)
    }
}

pub fn post(url: &str, body: &str) -> Fetch {
    Fetch {
        request: Request {
            method: "POST".to_owned(),
            url: url.to_owned(),
            headers: vec![("content-type".to_owned(), "application/json".to_owned())],
            body: body.as_bytes().to_vec(),
        },
        max_amount: usdc("1"),
        key: None,
        asker: Asker::Agent,
        tier: SurvivalTier::Full,
    }
}

pub fn state(fetched: &Fetched) -> State {
    fetched.payment.as_ref().expect("a payment").state
}

/// Waits until a payment is over.
pub async fn over(client: &Client, id: uuid::Uuid) -> State {
    let began = Instant::now();
    loop {
        let (payment, _) = client.payment(id).expect("it is known");
        if payment.state.is_terminal() {
            return payment.state;
        }
        assert!(began.elapsed() < Duration::from_secs(20), "{payment:?}");
        tokio::time::sleep(Duration::from_millis(30)).await;
    }
}
