//! What the server asks beside its database: a node of the chain, and a facilitator. Each is a real one behind a proxy
//! that does with a request what a test says: passes it on, holds it before or after it is carried out, loses it, or
//! answers otherwise.

use std::fmt;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use otonix_sdk::chain::usdc;
use otonix_sdk::x402::eip3009::Transfer;
use serde_json::{Value, json};
use tokio::io::{AsyncBufReadExt as _, AsyncReadExt as _, AsyncWriteExt as _, BufReader};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::task::JoinHandle;

/// What becomes of a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Does {
    /// It is carried out and answered.
    Passes,
    /// It is neither carried out nor answered, until there is another rule; then the connection is cut.
    HeldBefore,
    /// It is carried out and not answered, until there is another rule; then the connection is cut.
    HeldAfter,
    /// The connection is cut, nothing is carried out.
    Cut,
    /// It is carried out, and the connection is cut.
    Lost,
    /// It is carried out, and answered so much later.
    Late(Duration),
    /// It is answered with what is no JSON.
    Garbage,
    /// It is answered with an error.
    Fails(i64, &'static str),
    /// It is carried out, and answered with an error all the same.
    FailsAfter(i64, &'static str),
    /// It is answered with this.
    Says(&'static str),
}

/// What is done with a request, by its method and its parameters as JSON.
type Rule = Box<dyn FnMut(&str, &str) -> Does + Send>;

/// What carries requests out.
#[derive(Debug, Clone)]
enum Behind {
    Node(SocketAddr),
    /// Settles on the chain of a node, with an account that the node signs for.
    Facilitator(SocketAddr, String),
}

struct Shared {
    behind: Behind,
    rule: Mutex<Rule>,
    /// Rises with every rule.
    rules: watch::Sender<u64>,
    /// By which rule something is held.
    held_by: AtomicU64,
}

impl fmt::Debug for Shared {
    fn fmt(&self, to: &mut fmt::Formatter<'_>) -> fmt::Result {
        to.debug_struct("Shared").field("behind", &self.behind).finish_non_exhaustive()
    }
}

/// A node or a facilitator.
#[derive(Debug)]
pub struct Peer {
    pub addr: SocketAddr,
    shared: Arc<Shared>,
    accepting: JoinHandle<()>,
}

impl Peer {
    /// A node in front of another.
    pub async fn node(upstream: SocketAddr) -> Self {
        Self::start(Behind::Node(upstream)).await
    }

    /// A node that answers every call in which a word is with an error.
    pub async fn without(word: &'static str, upstream: SocketAddr) -> Self {
        let node = Self::node(upstream).await;
        node.obey(
            move |_, params| {
                if params.contains(word) { Does::Fails(-32602, "unknown block") } else { Does::Passes }
            },
        );
        node
    }

    /// A facilitator on the chain of a node.
    pub async fn facilitator(node: SocketAddr, by: &str) -> Self {
        Self::start(Behind::Facilitator(node, by.to_owned())).await
    }

    async fn start(behind: Behind) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
        let addr = listener.local_addr().expect("it is bound");
        let rule: Rule = Box::new(|_, _| Does::Passes);
        let shared = Arc::new(Shared {
            behind,
            rule: Mutex::new(rule),
            rules: watch::Sender::new(0),
            held_by: AtomicU64::new(u64::MAX),
        });
        let serving = Arc::clone(&shared);
        let accepting = tokio::spawn(async move {
            while let Ok((client, _)) = listener.accept().await {
                tokio::spawn(serve(client, Arc::clone(&serving)));
            }
        });
        Self { addr, shared, accepting }
    }

    /// Its URL.
    pub fn url(&self) -> String {
        format!("http://{}", self.addr)
    }

    /// From now on this rule; what is held is cut.
    pub fn obey(&self, rule: impl FnMut(&str, &str) -> Does + Send + 'static) {
        *self.shared.rule.lock().expect("lock") = Box::new(rule);
        self.shared.rules.send_modify(|rules| *rules += 1);
    }

    /// From now on everything passes.
    pub fn mend(&self) {
        self.obey(|_, _| Does::Passes);
    }

    /// Whether a request is held.
    pub fn is_holding(&self) -> bool {
        self.shared.held_by.load(Ordering::SeqCst) == *self.shared.rules.borrow()
    }
}

impl Drop for Peer {
    fn drop(&mut self) {
        self.accepting.abort();
    }
}

/// Answers the requests of one connection.
async fn serve(client: TcpStream, shared: Arc<Shared>) -> Option<()> {
    let mut client = BufReader::new(client);
    loop {
        let asked = read(&mut client).await?;
        let call: Value = serde_json::from_slice(&asked).ok()?;
        let method = call["method"].as_str().unwrap_or("settle");
        let mut rules = shared.rules.subscribe();
        let rule = *rules.borrow_and_update();
        let does = (*shared.rule.lock().expect("lock"))(method, &call["params"].to_string());
        let error = |code: i64, message: &str| {
            json!({ "jsonrpc": "2.0", "id": call["id"], "error": { "code": code, "message": message } })
                .to_string()
                .into_bytes()
        };
        let answer = match does {
            Does::Passes => carried_out(&shared, &call, &asked).await?,
            Does::HeldBefore | Does::HeldAfter => {
                if does == Does::HeldAfter {
                    carried_out(&shared, &call, &asked).await?;
                }
                shared.held_by.store(rule, Ordering::SeqCst);
                let _another_rule = rules.changed().await;
                return None;
            }
            Does::Cut => return None,
            Does::Lost => {
                carried_out(&shared, &call, &asked).await?;
                return None;
            }
            Does::Late(by) => {
                let answer = carried_out(&shared, &call, &asked).await?;
                tokio::time::sleep(by).await;
                answer
            }
            Does::Garbage => b"<html>gateway</html>".to_vec(),
            Does::Fails(code, message) => error(code, message),
            Does::FailsAfter(code, message) => {
                carried_out(&shared, &call, &asked).await?;
                error(code, message)
            }
            Does::Says(result) => {
                json!({ "jsonrpc": "2.0", "id": call["id"], "result": result }).to_string().into_bytes()
            }
        };
        let head = format!(
            "HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: {}\r\n\r\n",
            answer.len()
        );
        client.write_all(&[head.as_bytes(), &answer].concat()).await.ok()?;
    }
}

async fn carried_out(shared: &Shared, call: &Value, asked: &[u8]) -> Option<Vec<u8>> {
    match &shared.behind {
        Behind::Node(upstream) => passed_on(*upstream, asked).await,
        Behind::Facilitator(node, by) => settled(*node, by, call).await,
    }
}

async fn passed_on(upstream: SocketAddr, asked: &[u8]) -> Option<Vec<u8>> {
    let mut node = BufReader::new(TcpStream::connect(upstream).await.ok()?);
    let head = format!(
        "POST / HTTP/1.1\r\nHost: node\r\nContent-Type: application/json\r\nConnection: close\r\n\
         Content-Length: {}\r\n\r\n",
        asked.len()
    );
    node.write_all(&[head.as_bytes(), asked].concat()).await.ok()?;
    read(&mut node).await
}

async fn rpc(node: SocketAddr, method: &str, params: Value) -> Option<Value> {
    let call = json!({ "jsonrpc": "2.0", "id": 1, "method": method, "params": params }).to_string();
    let mut answer: Value = serde_json::from_slice(&passed_on(node, call.as_bytes()).await?).ok()?;
    answer.get_mut("result").map(Value::take)
}

/// Carries a payment out and waits for its block, as facilitators do; refuses what the chain would.
async fn settled(node: SocketAddr, by: &str, call: &Value) -> Option<Vec<u8>> {
    let payload = &call["paymentPayload"]["payload"];
    let transaction = settlement(by, &call["paymentRequirements"]["asset"], payload);
    let answer = if rpc(node, "eth_call", json!([transaction, "latest"])).await.is_none() {
        json!({ "success": false, "errorReason": "invalid_transaction_state", "transaction": "", "network": "base" })
    } else {
        let hash = rpc(node, "eth_sendTransaction", json!([transaction])).await?;
        while rpc(node, "eth_getTransactionReceipt", json!([hash])).await?.is_null() {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        json!({
            "success": true, "transaction": hash, "network": "base", "payer": payload["authorization"]["from"],
        })
    };
    Some(answer.to_string().into_bytes())
}

/// The transaction that carries a signed payment out, before all others that wait.
pub fn settlement(by: &str, asset: &Value, payload: &Value) -> Value {
    let authorization = serde_json::from_value(payload["authorization"].clone()).expect("as it was made");
    let transfer = Transfer::read(&authorization).expect("as it was made");
    let signature = payload["signature"].as_str().and_then(|text| hex::decode(&text[2..]).ok()).expect("hex");
    let data = hex::encode(usdc::transfer_with_authorization(&transfer, &signature));
    json!({
        "from": by, "to": asset, "data": format!("0x{data}"), "gas": "0x493e0",
        "maxPriorityFeePerGas": "0x174876e800", "maxFeePerGas": "0x2e90edd000",
    })
}

/// The body of the next message that tells its length.
async fn read(from: &mut BufReader<TcpStream>) -> Option<Vec<u8>> {
    let mut length = None;
    loop {
        let mut line = String::new();
        if from.read_line(&mut line).await.ok()? == 0 {
            return None;
        }
        let line = line.trim().to_ascii_lowercase();
        if line.is_empty() {
            break;
        }
        if let Some(value) = line.strip_prefix("content-length:") {
            length = value.trim().parse().ok();
        }
    }
    let mut body = vec![0; length?];
    from.read_exact(&mut body).await.ok()?;
    Some(body)
}
