//! Resident memory of a server per idle connection: `conn_memory [connections]`.
//!
//! Starts itself as a server in a second process, opens REST keep-alive connections (one request each), then gRPC
//! streams (one message each), and prints what each added to the server's resident set.
use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::TcpStream;
use std::pin::Pin;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use axum::Router;
use axum::routing::post;
use otonix_control_plane::net::{self, Front, Limits};
use otonix_proto::v1::agent_link_server::{AgentLink, AgentLinkServer};
use otonix_proto::v1::{Down, Up};
use tokio_stream::StreamExt as _;
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tonic::{Request, Response, Status, Streaming};

struct Link;

#[tonic::async_trait]
impl AgentLink for Link {
    type SessionStream = Pin<Box<dyn futures_util::Stream<Item = Result<Down, Status>> + Send>>;

    async fn session(
        &self,
        request: Request<Streaming<Up>>,
    ) -> Result<Response<Self::SessionStream>, Status> {
        let mut up = request.into_inner();
        // A tokio channel allocates 32 places at once: of frames they would be 8 KB for every stream.
        let (tx, rx) = tokio::sync::mpsc::channel(4);
        tokio::spawn(async move {
            while let Ok(Some(_)) = up.message().await {
                if tx.send(()).await.is_err() {
                    return;
                }
            }
        });
        Ok(Response::new(Box::pin(ReceiverStream::new(rx).map(|()| Ok(Down::default())))))
    }
}

async fn serve() -> std::io::Result<()> {
    net::raise_nofile();
    let listener = net::bind(([127, 0, 0, 1], 0).into())?;
    writeln!(std::io::stdout(), "{}", listener.local_addr()?.port())?;
    let rest = Router::new().route("/echo", post(|body: String| async move { body }));
    let router = rest.merge(tonic::service::Routes::new(AgentLinkServer::new(Link)).into_axum_router());
    Front::new(listener, Limits::default(), CancellationToken::new(), TaskTracker::new()).serve(router).await
}

fn resident_bytes(server: &Child) -> i64 {
    let status = std::fs::read_to_string(format!("/proc/{}/status", server.id())).unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap_or_default();
    line.trim().trim_end_matches(" kB").parse::<i64>().unwrap_or_default() * 1024
}

fn rest(port: u16) -> std::io::Result<TcpStream> {
    let mut tcp = TcpStream::connect(("127.0.0.1", port))?;
    tcp.write_all(
        b"POST /echo HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nX-API-Key: otonix_00000000000000000000\r\nUser-Agent: memory\r\nContent-Length: 12\r\n\r\n{\"load\": 10}",
    )?;
    let mut buf = [0; 1024];
    let n = tcp.read(&mut buf)?;
    assert!(buf[..n].starts_with(b"HTTP/1.1 200"), "{}", String::from_utf8_lossy(&buf[..n]));
    Ok(tcp)
}

fn frame(kind: u8, flags: u8, stream: u8, payload: &[u8]) -> Vec<u8> {
    let len = u32::try_from(payload.len()).expect("small").to_be_bytes();
    let mut frame = vec![len[1], len[2], len[3], kind, flags, 0, 0, 0, stream];
    frame.extend_from_slice(payload);
    frame
}

fn literal(name: &str, value: &str) -> Vec<u8> {
    let mut out = vec![0, u8::try_from(name.len()).expect("short")];
    out.extend_from_slice(name.as_bytes());
    out.push(u8::try_from(value.len()).expect("short"));
    out.extend_from_slice(value.as_bytes());
    out
}

fn stream(port: u16) -> std::io::Result<TcpStream> {
    let mut tcp = TcpStream::connect(("127.0.0.1", port))?;
    let mut headers = Vec::new();
    for (name, value) in [
        (":method", "POST"),
        (":scheme", "http"),
        (":path", "/otonix.v1.AgentLink/Session"),
        (":authority", "localhost"),
        ("content-type", "application/grpc"),
        ("te", "trailers"),
        ("user-agent", "memory"),
        ("x-api-key", "otonix_000000000000000000000000000000000000000000000000"),
    ] {
        headers.extend(literal(name, value));
    }
    let mut out = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".to_vec();
    out.extend(frame(4, 0, 0, &[]));
    out.extend(frame(1, 4, 1, &headers));
    out.extend(frame(0, 0, 1, &[0, 0, 0, 0, 0]));
    tcp.write_all(&out)?;
    // Until the first message has come back: a DATA frame on stream 1.
    let mut read = BufReader::with_capacity(512, tcp.try_clone()?);
    loop {
        let mut head = [0; 9];
        read.read_exact(&mut head)?;
        let len = usize::from(head[1]) << 8 | usize::from(head[2]);
        let mut payload = vec![0; len];
        read.read_exact(&mut payload)?;
        match head[3] {
            0 => break,
            4 if head[4] == 0 => tcp.write_all(&frame(4, 1, 0, &[]))?,
            _ => {}
        }
    }
    for _ in 0..3 {
        tcp.write_all(&frame(0, 0, 1, &[0, 0, 0, 0, 0]))?;
    }
    Ok(tcp)
}

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let first = std::env::args().nth(1);
    if first.as_deref() == Some("serve") {
        return Ok(tokio::runtime::Builder::new_multi_thread().enable_all().build()?.block_on(serve())?);
    }
    net::raise_nofile();
    let count: usize = first.map_or(Ok(2000), |n| n.parse())?;
    let mut server = Command::new(std::env::current_exe()?).arg("serve").stdout(Stdio::piped()).spawn()?;
    let mut line = String::new();
    BufReader::new(server.stdout.take().ok_or("no stdout")?).read_line(&mut line)?;
    let port: u16 = line.trim().parse()?;
    for (what, open) in [("REST", rest as fn(u16) -> _), ("stream", stream)] {
        let warm_up: Vec<TcpStream> = (0..20).map(|_| open(port)).collect::<Result<_, _>>()?;
        std::thread::sleep(Duration::from_millis(1500));
        let before = resident_bytes(&server);
        let held: Vec<TcpStream> = (0..count).map(|_| open(port)).collect::<Result<_, _>>()?;
        std::thread::sleep(Duration::from_millis(1500));
        let after = resident_bytes(&server);
        let count = i64::try_from(count)?;
        writeln!(
            std::io::stdout(),
            "{what}: {} bytes each, {count} of them, {before} before",
            (after - before) / count
        )?;
        drop((warm_up, held));
        std::thread::sleep(Duration::from_millis(500));
    }
    server.kill()?;
    server.wait()?;
    Ok(())
}
