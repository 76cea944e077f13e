//! A node that lacks what some nodes lack: JSON-RPC passed on to another, but for questions it does not understand.

use std::net::SocketAddr;

use serde_json::{Value, json};
use tokio::io::{AsyncBufReadExt as _, AsyncReadExt as _, AsyncWriteExt as _, BufReader};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinHandle;

/// A node without one word.
#[derive(Debug)]
pub struct Node {
    pub addr: SocketAddr,
    accepting: JoinHandle<()>,
}

impl Node {
    /// Starts one in front of another that answers every call with an error in which this word is.
    pub async fn without(word: &'static str, upstream: SocketAddr) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
        let addr = listener.local_addr().expect("it is bound");
        let accepting = tokio::spawn(async move {
            while let Ok((client, _)) = listener.accept().await {
                tokio::spawn(serve(client, word, upstream));
            }
        });
        Self { addr, accepting }
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        self.accepting.abort();
    }
}

/// Answers the calls of one connection.
async fn serve(client: TcpStream, word: &'static str, upstream: SocketAddr) -> Option<()> {
    let mut client = BufReader::new(client);
    loop {
        let asked = read(&mut client).await?;
        let answer = if asked.windows(word.len()).any(|part| part == word.as_bytes()) {
            let call: Value = serde_json::from_slice(&asked).ok()?;
            let error = json!({ "code": -32602, "message": "unknown block" });
            json!({ "jsonrpc": "2.0", "id": call["id"], "error": error }).to_string().into_bytes()
        } else {
            let mut node = BufReader::new(TcpStream::connect(upstream).await.ok()?);
            let head = format!(
                "POST / HTTP/1.1\r\nHost: node\r\nContent-Type: application/json\r\nConnection: close\r\n\
                 Content-Length: {}\r\n\r\n",
                asked.len()
            );
            node.write_all(&[head.as_bytes(), &asked].concat()).await.ok()?;
            read(&mut node).await?
        };
        let head = format!(
            "HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: {}\r\n\r\n",
            answer.len()
        );
        client.write_all(&[head.as_bytes(), &answer].concat()).await.ok()?;
    }
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
