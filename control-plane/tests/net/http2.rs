//! HTTP/2 frame by frame: idle, silent and hostile clients.

use otonix_control_plane::net::Limits;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::time::{Instant, timeout};

use super::site::{LONG, Site, ms, site};

const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
const DATA: u8 = 0;
const HEADERS: u8 = 1;
const RST_STREAM: u8 = 3;
const SETTINGS: u8 = 4;
const PING: u8 = 6;
const GOAWAY: u8 = 7;
const CONTINUATION: u8 = 9;
const END_HEADERS: u8 = 4;
const END_STREAM: u8 = 1;

fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let length = u32::try_from(payload.len()).expect("small").to_be_bytes();
    let mut frame = vec![length[1], length[2], length[3], kind, flags];
    frame.extend_from_slice(&stream.to_be_bytes());
    frame.extend_from_slice(payload);
    frame
}

/// `GET` of a path, in literal headers without a table.
fn get(path: &str) -> Vec<u8> {
    let mut block = Vec::new();
    for (name, value) in [(":method", "GET"), (":scheme", "http"), (":path", path), (":authority", "a")] {
        block.extend([0, u8::try_from(name.len()).expect("short")]);
        block.extend(name.bytes());
        block.push(u8::try_from(value.len()).expect("short"));
        block.extend(value.bytes());
    }
    block
}

struct Frames {
    tcp: TcpStream,
}

impl Frames {
    async fn connect(site: &Site) -> Self {
        let mut tcp = TcpStream::connect(site.addr).await.expect("a connection");
        tcp.write_all(&[PREFACE, &frame(SETTINGS, 0, 0, &[])].concat()).await.expect("written");
        Self { tcp }
    }

    async fn send(&mut self, bytes: &[u8]) -> bool {
        matches!(timeout(LONG, self.tcp.write_all(bytes)).await, Ok(Ok(())))
    }

    async fn next(&mut self) -> Option<(u8, Vec<u8>)> {
        let mut head = [0; 9];
        timeout(LONG, self.tcp.read_exact(&mut head)).await.expect("a frame or an end in time").ok()?;
        let length = u32::from_be_bytes([0, head[0], head[1], head[2]]);
        let mut payload = vec![0; usize::try_from(length).expect("small")];
        self.tcp.read_exact(&mut payload).await.ok()?;
        Some((head[3], payload))
    }

    /// Everything until the end, as kinds of frames.
    async fn rest(&mut self) -> Vec<u8> {
        let mut kinds = Vec::new();
        while let Some((kind, _)) = self.next().await {
            kinds.push(kind);
        }
        kinds
    }

    async fn until(&mut self, wanted: u8) -> Option<Vec<u8>> {
        while let Some((kind, payload)) = self.next().await {
            if kind == wanted {
                return Some(payload);
            }
        }
        None
    }
}

fn short() -> Limits {
    Limits { header_time: ms(300), idle_time: ms(500), linger_time: ms(200), ..Limits::default() }
}

#[tokio::test]
async fn a_connection_without_a_stream_is_closed() {
    let site = site(short());
    let began = Instant::now();
    let mut silent = Frames::connect(&site).await;
    silent.rest().await;
    assert!(began.elapsed() > ms(250) && began.elapsed() < ms(1500), "{:?}", began.elapsed());
    let mut preface_only = TcpStream::connect(site.addr).await.expect("a connection");
    preface_only.write_all(&PREFACE[..20]).await.expect("written");
    let mut rest = Vec::new();
    timeout(LONG, preface_only.read_to_end(&mut rest)).await.expect("an end").expect("no reset");
    assert!(site.all_closed().await);
}

#[tokio::test]
async fn an_idle_connection_is_told_to_go_and_goes() {
    let site = site(short());
    let mut frames = Frames::connect(&site).await;
    for stream in [1, 3] {
        frames.send(&frame(HEADERS, END_HEADERS | END_STREAM, stream, &get("/hello"))).await;
        assert_eq!(frames.until(DATA).await.expect("a body"), b"hello");
    }
    let began = Instant::now();
    assert!(frames.rest().await.contains(&GOAWAY));
    assert!(began.elapsed() > ms(400) && began.elapsed() < ms(2000), "{:?}", began.elapsed());
    assert!(site.all_closed().await);
}

#[tokio::test]
async fn a_running_stream_keeps_its_connection() {
    let site = site(Limits { idle_time: ms(100), ..short() });
    let mut frames = Frames::connect(&site).await;
    frames.send(&frame(HEADERS, END_HEADERS | END_STREAM, 1, &get("/slow"))).await;
    assert_eq!(frames.until(DATA).await.expect("a body"), b"slow");
}

#[tokio::test]
async fn a_client_that_does_not_answer_pings_is_given_up() {
    let limits =
        Limits { h2_keepalive_interval: Some(ms(200)), h2_keepalive_timeout: ms(200), ..Limits::default() };
    let site = site(limits);
    let mut frames = Frames::connect(&site).await;
    frames.send(&frame(HEADERS, END_HEADERS | END_STREAM, 1, &get("/never"))).await;
    assert!(frames.until(PING).await.is_some());
    frames.rest().await;
    assert!(site.all_closed().await);
}

#[tokio::test]
async fn rapid_resets_end_the_connection() {
    let site = site(Limits::default());
    let mut frames = Frames::connect(&site).await;
    let mut flood = Vec::new();
    for n in 0..2000 {
        flood.extend(frame(HEADERS, END_HEADERS | END_STREAM, n * 2 + 1, &get("/never")));
        flood.extend(frame(RST_STREAM, 0, n * 2 + 1, &[0, 0, 0, 8]));
    }
    frames.send(&flood).await;
    assert!(frames.rest().await.contains(&GOAWAY));
    assert!(site.all_closed().await);
    assert!(site.is_healthy().await);
}

#[tokio::test]
async fn endless_continuations_end_the_connection() {
    let site = site(Limits::default());
    let mut frames = Frames::connect(&site).await;
    frames.send(&frame(HEADERS, 0, 1, &get("/hello"))).await;
    let mut header = vec![0, 1, b'x', 127, 0xa1, 0x1e];
    header.resize(header.len() + 127 + 0xf21, b'y');
    for _ in 0..1000 {
        if !frames.send(&frame(CONTINUATION, 0, 1, &header[..4000])).await {
            break;
        }
    }
    frames.rest().await;
    assert!(site.all_closed().await);
    assert!(site.is_healthy().await);
}

#[tokio::test]
async fn a_flood_of_pings_nobody_reads_is_cut_off() {
    let site = site(Limits { write_time: ms(300), ..Limits::default() });
    let mut frames = Frames::connect(&site).await;
    let pings = frame(PING, 0, 0, &[7; 8]).repeat(10_000);
    let began = Instant::now();
    while timeout(ms(500), frames.tcp.write_all(&pings)).await.is_ok_and(|sent| sent.is_ok()) {
        assert!(began.elapsed() < LONG, "the flood goes on");
    }
    assert!(site.all_closed().await);
}

#[tokio::test]
async fn streams_beyond_the_limit_are_refused_and_the_others_served() {
    let site = site(Limits { h2_max_streams: 10, ..Limits::default() });
    let mut frames = Frames::connect(&site).await;
    assert!(frames.until(SETTINGS).await.is_some());
    frames.send(&frame(SETTINGS, 1, 0, &[])).await;
    for n in 0..20 {
        frames.send(&frame(HEADERS, END_HEADERS | END_STREAM, n * 2 + 1, &get("/slow"))).await;
    }
    let (mut refused, mut served) = (0, 0);
    while refused + served < 20 {
        match frames.next().await.expect("the connection stays") {
            (RST_STREAM, reason) if reason == [0, 0, 0, 7] => refused += 1,
            (DATA, body) if body == b"slow" => served += 1,
            _ => {}
        }
    }
    assert_eq!((refused, served), (10, 10));
}
