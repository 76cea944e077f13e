//! Prism, a stock mock server, answering from the vendors' documents; and a wire between client and mock that asks for
//! a given answer to one operation and listens for violations.

use std::net::SocketAddr;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};

use crate::fake::schema::Document;
use crate::support::port;

const HERE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../tests/vendors");
/// Longest that a start may take on a busy machine.
const START: Duration = Duration::from_secs(90);

/// A running mock of one vendor.
pub struct Prism {
    program: Child,
    pub addr: SocketAddr,
}

impl Prism {
    /// Starts it; its packages are installed when they are not there.
    pub async fn start(document: &str) -> Self {
        let done = Command::new(Path::new(HERE).join("setup")).stdin(Stdio::null()).status();
        assert!(done.expect("tests/vendors/setup").success(), "Prism cannot be installed");
        let addr = SocketAddr::from(([127, 0, 0, 1], port::lasting()));
        let program = Command::new("node")
            .arg(Path::new(HERE).join("node_modules/@stoplight/prism-cli/dist/index.js"))
            .args(["mock", "-h", "127.0.0.1", "-p", &addr.port().to_string(), "--errors"])
            .args(["--multiprocess", "false"])
            .arg(Path::new(HERE).join(document))
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .expect("node is installed");
        let mut prism = Self { program, addr };
        let deadline = Instant::now() + START;
        while TcpStream::connect(addr).await.is_err() {
            assert!(Instant::now() < deadline, "Prism did not start");
            assert!(prism.program.try_wait().expect("a child").is_none(), "Prism has ended");
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        assert!(
            prism.program.try_wait().expect("a child").is_none(),
            "something else listens at Prism's port"
        );
        prism
    }
}

impl Drop for Prism {
    fn drop(&mut self) {
        let _ = self.program.kill();
        let _ = self.program.wait();
    }
}

/// Which answer is wanted to which operation.
#[derive(Debug, Clone)]
pub struct Wanted {
    pub operation: String,
    pub status: u16,
    pub example: Option<String>,
}

/// What went over a wire.
#[derive(Debug, Default, Clone)]
pub struct Heard {
    /// Requests that met the wanted operation.
    pub met: usize,
    pub violations: Vec<String>,
}

/// A wire to the mock.
pub struct Wire {
    pub url: String,
    heard: Arc<Mutex<Heard>>,
}

impl Wire {
    /// Lays one.
    pub async fn lay(to: SocketAddr, document: Arc<Document>, wanted: Wanted) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let url = format!("http://{}", listener.local_addr().expect("a port"));
        let heard: Arc<Mutex<Heard>> = Arc::default();
        let shared = Arc::clone(&heard);
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let (document, wanted, heard) = (Arc::clone(&document), wanted.clone(), Arc::clone(&shared));
                tokio::spawn(async move { carry(stream, to, &document, &wanted, &heard).await });
            }
        });
        Self { url, heard }
    }

    /// What went over it so far.
    pub fn heard(&self) -> Heard {
        self.heard.lock().clone()
    }
}

/// Carries one request and its answer; the connection ends with it.
async fn carry(
    mut from: TcpStream,
    to: SocketAddr,
    document: &Document,
    wanted: &Wanted,
    heard: &Mutex<Heard>,
) {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        match from.read_u8().await {
            Ok(byte) => head.push(byte),
            Err(_) => return,
        }
    }
    let text = String::from_utf8(head).expect("a head is text");
    let mut lines: Vec<String> = text.trim_end().split("\r\n").map(str::to_owned).collect();
    let length = lines.iter().find_map(|line| {
        line.to_ascii_lowercase()
            .strip_prefix("content-length:")
            .and_then(|length| length.trim().parse().ok())
    });
    let mut body = vec![0; length.unwrap_or(0_usize)];
    from.read_exact(&mut body).await.expect("a body");
    let first: Vec<&str> = lines[0].split(' ').collect();
    let path = first[1].split('?').next().unwrap_or_default().to_owned();
    let what = format!("{} {}", first[0], first[1]);
    let found = document.operation(first[0], &path);
    if found.is_some_and(|operation| operation.id == wanted.operation) {
        heard.lock().met += 1;
        let example = wanted.example.as_ref().map_or_else(String::new, |name| format!(", example={name}"));
        lines.push(format!("Prefer: code={}{example}", wanted.status));
    }
    lines.retain(|line| !line.to_ascii_lowercase().starts_with("connection:"));
    lines.push("Connection: close".to_owned());
    let Ok(mut mock) = TcpStream::connect(to).await else {
        heard.lock().violations.push(format!("{what}: the mock is gone"));
        let _ = from
            .write_all(b"HTTP/1.1 403 Forbidden\r\nConnection: close\r\nContent-Length: 2\r\n\r\n{}")
            .await;
        return;
    };
    let request = [format!("{}\r\n\r\n", lines.join("\r\n")).into_bytes(), body].concat();
    mock.write_all(&request).await.expect("the mock listens");
    let mut answer = Vec::new();
    mock.read_to_end(&mut answer).await.expect("an answer");
    let shown = String::from_utf8_lossy(&answer);
    let head = shown.split("\r\n\r\n").next().unwrap_or_default();
    let violation = head.lines().find(|line| line.to_ascii_lowercase().starts_with("sl-violations:"));
    heard.lock().violations.extend(violation.map(|line| format!("{what}: {line}")));
    let _ = from.write_all(&answer).await;
}
