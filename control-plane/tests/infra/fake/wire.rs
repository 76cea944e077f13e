//! A small HTTP/1.1 server that can do what no library lets one do: answer twice, half, with noise, or not at all.

use std::time::Duration;

use serde_json::Value;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _, BufReader};
use tokio::net::TcpStream;

/// Largest head and body read.
const MOST: usize = 1024 * 1024;

/// A request.
#[derive(Debug, Clone)]
pub struct Request {
    pub method: String,
    pub path: String,
    pub query: Vec<(String, String)>,
    pub headers: Vec<(String, String)>,
    pub body: Option<Value>,
}

impl Request {
    /// A header, by its name in lower case.
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.iter().find(|(known, _)| known == name).map(|(_, value)| value.as_str())
    }

    /// A parameter of the query.
    pub fn query(&self, name: &str) -> Option<&str> {
        self.query.iter().find(|(known, _)| known == name).map(|(_, value)| value.as_str())
    }
}

/// An answer.
#[derive(Debug, Clone, Default)]
pub struct Reply {
    pub status: u16,
    pub headers: Vec<(&'static str, String)>,
    pub body: Vec<u8>,
}

impl Reply {
    /// A JSON body.
    pub fn json(status: u16, body: &Value) -> Self {
        Self { status, headers: Vec::new(), body: body.to_string().into_bytes() }
    }

    fn bytes(&self) -> Vec<u8> {
        let mut head = format!("HTTP/1.1 {} Fake\r\ncontent-length: {}\r\n", self.status, self.body.len());
        if self.status == 204 {
            head = format!("HTTP/1.1 {} Fake\r\n", self.status);
        } else {
            head.push_str("content-type: application/json\r\n");
        }
        for (name, value) in &self.headers {
            head.push_str(&format!("{name}: {value}\r\n"));
        }
        head.push_str("\r\n");
        let mut bytes = head.into_bytes();
        bytes.extend_from_slice(&self.body);
        bytes
    }
}

/// How an answer is sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Delivery {
    Whole,
    /// After so long.
    Late(Duration),
    /// The connection ends without an answer.
    Never,
    /// The same bytes twice.
    Twice,
    /// Half of the bytes, then the end of the connection.
    Half,
    /// Something that is no HTTP.
    Noise,
}

/// Serves one connection; `answer` is asked for each request.
pub async fn serve(stream: TcpStream, answer: impl AsyncFn(Request) -> (Reply, Delivery)) {
    let _ = stream.set_nodelay(true);
    let mut stream = BufReader::new(stream);
    while let Some(request) = read(&mut stream).await {
        let (reply, delivery) = answer(request).await;
        let bytes = reply.bytes();
        let out = stream.get_mut();
        let sent = match delivery {
            Delivery::Whole => out.write_all(&bytes).await,
            Delivery::Late(time) => {
                tokio::time::sleep(time).await;
                out.write_all(&bytes).await
            }
            Delivery::Twice => out.write_all(&[bytes.clone(), bytes].concat()).await,
            Delivery::Never => return,
            Delivery::Half => {
                let _ = out.write_all(&bytes[..bytes.len() - reply.body.len().div_ceil(2)]).await;
                return;
            }
            Delivery::Noise => {
                let _ = out.write_all(b"\x16\x03\x01\x00 this is no answer \r\n\r\n").await;
                return;
            }
        };
        if sent.is_err() {
            return;
        }
    }
}

async fn read(stream: &mut BufReader<TcpStream>) -> Option<Request> {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        head.push(stream.read_u8().await.ok()?);
        if head.len() > MOST {
            return None;
        }
    }
    let head = String::from_utf8(head).ok()?;
    let mut lines = head.lines();
    let mut first = lines.next()?.split(' ');
    let (method, target) = (first.next()?.to_owned(), first.next()?);
    let headers: Vec<(String, String)> = lines
        .filter_map(|line| line.split_once(':'))
        .map(|(name, value)| (name.to_ascii_lowercase(), value.trim().to_owned()))
        .collect();
    let (path, query) = target.split_once('?').unwrap_or((target, ""));
    let query = query.split('&').filter(|pair| !pair.is_empty());
    let query = query.map(|pair| pair.split_once('=').unwrap_or((pair, "")));
    let query = query.map(|(name, value)| (name.replace("%5B%5D", "[]"), value.to_owned())).collect();
    let length = headers.iter().find(|(name, _)| name == "content-length");
    let length: usize = length.map_or(Ok(0), |(_, value)| value.parse()).ok()?;
    let mut body = vec![0; length.min(MOST)];
    stream.read_exact(&mut body).await.ok()?;
    let body =
        if body.is_empty() { None } else { Some(serde_json::from_slice(&body).unwrap_or(Value::Null)) };
    Some(Request { method, path: path.to_owned(), query, headers, body })
}
