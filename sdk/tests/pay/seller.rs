//! A seller that carries authorizations out on the local chain, and misbehaves as it is told.

use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

use axum::Router;
use axum::body::Bytes;
use axum::extract::State;
use axum::http::{HeaderMap, StatusCode};
use axum::response::{IntoResponse, Response};
use otonix_sdk::chain::usdc::{self, TransferAuthorization};
use otonix_sdk::x402::eip3009::{self, Transfer};
use otonix_sdk::x402::{Authorization, ExactPayload, Presented, SettlementResponse, headers};
use serde_json::{Value, json};

use crate::chain::Chain;

/// What a seller does once it has a payment.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Manner {
    /// Settles and delivers.
    Honest,
    /// Settles, then answers this; later tries get the same.
    SettlesThen(u16),
    /// Settles, then answers this once; later tries are delivered.
    SettlesThenOnce(u16),
    /// Settles and closes the connection; later tries are told 402.
    Drops,
    /// Does not settle, answers this.
    Refuses(u16),
    /// Closes the connection without settling, once; then it is honest.
    DropsOnce,
    /// Delivers to whoever shows the proof of an order.
    Orders,
}

pub struct Inner {
    chain: Arc<Chain>,
    /// The 402's offers, as JSON; `{version}` 2 unless the manner says otherwise.
    pub offers: Mutex<Vec<Value>>,
    pub version: u8,
    pub manner: Mutex<Manner>,
    pub asked: AtomicUsize,
    pub paid: Mutex<Vec<String>>,
    pub nonces: Mutex<Vec<String>>,
    pub settled: AtomicUsize,
    once: AtomicBool,
    pub order: Mutex<Option<Value>>,
}

#[derive(Clone)]
pub struct Seller {
    pub inner: Arc<Inner>,
    pub address: SocketAddr,
}

/// The usual offer of version 2.
pub fn offer(chain: &Chain, pay_to: &str, amount: &str) -> Value {
    json!({
        "scheme": "exact", "network": "eip155:8453", "amount": amount, "asset": chain.asset, "payTo": pay_to,
        "maxTimeoutSeconds": 60, "extra": {"name": "USD Coin", "version": "2"},
    })
}

/// The usual offer of version 1.
pub fn offer_v1(chain: &Chain, pay_to: &str, amount: &str) -> Value {
    json!({
        "scheme": "exact", "network": "base", "maxAmountRequired": amount, "asset": chain.asset, "payTo": pay_to,
        "maxTimeoutSeconds": 60, "extra": {"name": "USD Coin", "version": "2"}, "resource": "http://x/",
        "description": "", "mimeType": "application/json",
    })
}

impl Seller {
    pub async fn start(chain: &Arc<Chain>, version: u8, offers: Vec<Value>, manner: Manner) -> Self {
        let inner = Arc::new(Inner {
            chain: Arc::clone(chain),
            offers: Mutex::new(offers),
            version,
            manner: Mutex::new(manner),
            asked: AtomicUsize::default(),
            paid: Mutex::default(),
            nonces: Mutex::default(),
            settled: AtomicUsize::default(),
            once: AtomicBool::default(),
            order: Mutex::default(),
        });
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("binds");
        let address = listener.local_addr().expect("an address");
        let app = Router::new().fallback(answer).with_state(Arc::clone(&inner));
        tokio::spawn(async move { axum::serve(listener, app).await.expect("serves") });
        Self { inner, address }
    }

    pub fn url(&self) -> String {
        format!("http://{}/work", self.address)
    }

    pub fn be(&self, manner: Manner) {
        *self.inner.manner.lock().expect("lock") = manner;
    }

    pub fn settled(&self) -> usize {
        self.inner.settled.load(Ordering::SeqCst)
    }

    /// Different authorizations seen.
    pub fn authorizations(&self) -> usize {
        let mut nonces = self.inner.nonces.lock().expect("lock").clone();
        nonces.sort();
        nonces.dedup();
        nonces.len()
    }

    pub fn payments(&self) -> Vec<String> {
        self.inner.paid.lock().expect("lock").clone()
    }
}

async fn answer(State(inner): State<Arc<Inner>>, headers: HeaderMap, body: Bytes) -> Response {
    let text = |name: &str| headers.get(name).map(|value| value.to_str().expect("ASCII").to_owned());
    let (v2, v1) = (text(headers::PAYMENT_SIGNATURE), text(headers::X_PAYMENT));
    let presented = Presented::read(v2.as_deref(), v1.as_deref()).expect("a payment that can be read");
    let manner = *inner.manner.lock().expect("lock");
    let Some(presented) = presented else {
        inner.asked.fetch_add(1, Ordering::SeqCst);
        return required(&inner);
    };
    inner.paid.lock().expect("lock").push(v2.or(v1).expect("one of them"));
    let payload = match presented {
        Presented::V1(payment) => payment.payload,
        Presented::V2(payment) => payment.payload,
        Presented::Order(proof) => {
            let chain = Arc::clone(&inner.chain);
            let receipt =
                tokio::task::spawn_blocking(move || chain.receipt(&proof.tx_hash)).await.expect("runs");
            return match (manner, receipt) {
                (Manner::Orders, Some(receipt)) if receipt["status"] == "0x1" => delivered(&body, "0x"),
                _ => required(&inner),
            };
        }
    };
    inner.nonces.lock().expect("lock").push(payload.authorization.nonce.clone());
    let again = inner.once.swap(true, Ordering::SeqCst);
    match manner {
        Manner::Refuses(status) => return plain(status),
        Manner::DropsOnce if !again => panic!("the connection is cut on purpose"),
        _ => {}
    }
    let tx_hash = settle(&inner, &payload).await;
    match (manner, tx_hash) {
        (Manner::SettlesThen(status), _) => plain(status),
        (Manner::SettlesThenOnce(status), _) if !again => plain(status),
        (Manner::Drops, Some(_)) => panic!("the connection is cut on purpose"),
        (Manner::SettlesThenOnce(_), _) => delivered(&body, "0x"),
        (_, Some(tx_hash)) => delivered(&body, &tx_hash),
        (_, None) => required(&inner),
    }
}

fn plain(status: u16) -> Response {
    let status = StatusCode::from_u16(status).expect("a status");
    (status, [("location", "http://127.0.0.1:1/elsewhere")], "{}").into_response()
}

fn delivered(body: &Bytes, tx_hash: &str) -> Response {
    let receipt = SettlementResponse {
        success: true,
        transaction: tx_hash.to_owned(),
        network: "eip155:8453".to_owned(),
        ..SettlementResponse::default()
    };
    let body = json!({"ok": true, "echo": String::from_utf8_lossy(body)}).to_string();
    ([("payment-response", headers::write(&receipt))], body).into_response()
}

fn required(inner: &Inner) -> Response {
    let offers = inner.offers.lock().expect("lock").clone();
    if let Some(order) = inner.order.lock().expect("lock").clone() {
        return (StatusCode::PAYMENT_REQUIRED, order.to_string()).into_response();
    }
    if inner.version == 1 {
        let body = json!({"x402Version": 1, "error": "pay", "accepts": offers}).to_string();
        return (StatusCode::PAYMENT_REQUIRED, body).into_response();
    }
    let asked =
        json!({"x402Version": 2, "error": "pay", "resource": {"url": "http://x/"}, "accepts": offers});
    (StatusCode::PAYMENT_REQUIRED, [("payment-required", headers::write(&asked))], "{}").into_response()
}

/// Carries an authorization out, and waits for its block; `None` when it was before.
async fn settle(inner: &Arc<Inner>, payload: &ExactPayload) -> Option<String> {
    let signature = eip3009::read_signature(&payload.signature).expect("a signature");
    let call = usdc::transfer_with_authorization(&numbers(&payload.authorization), &signature);
    let data = format!("0x{}", hex_of(&call));
    let inner = Arc::clone(inner);
    tokio::task::spawn_blocking(move || {
        let chain = &inner.chain;
        let minter = chain.minter.clone();
        let dry = json!([{"from": minter, "to": chain.asset, "data": data}, "latest"]);
        chain.call("eth_call", dry).ok()?;
        let hash = chain.send(&minter, &chain.asset, &data);
        if chain.outcome(&hash)["status"] != "0x1" {
            return None;
        }
        inner.settled.fetch_add(1, Ordering::SeqCst);
        Some(hash)
    })
    .await
    .expect("runs")
}

fn hex_of(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn numbers(sent: &Authorization) -> TransferAuthorization {
    let read = Transfer::read(sent).expect("an authorization");
    TransferAuthorization {
        from: read.from,
        to: read.to,
        value: read.value,
        valid_after: read.valid_after,
        valid_before: read.valid_before,
        nonce: read.nonce,
    }
}
