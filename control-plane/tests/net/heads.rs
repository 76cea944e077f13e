//! Heads that are slow, too large, or none at all.

use std::sync::atomic::Ordering;

use otonix_control_plane::net::Limits;
use tokio::io::AsyncWriteExt as _;
use tokio::time::{Instant, sleep};

use super::site::{Client, GET_HELLO, ms, site};

fn short() -> Limits {
    Limits { header_time: ms(500), idle_time: ms(300), linger_time: ms(200), ..Limits::default() }
}

/// Sends a byte now and then until the server has had enough; tells its answer.
async fn drip(mut client: Client) -> Option<u16> {
    let mut head = b"GET /hello HTTP/1.1\r\nx-drip: ".iter().chain(std::iter::repeat(&b'a'));
    loop {
        let byte = *head.next().expect("endless");
        tokio::select! {
            answer = client.answer() => return answer.map(|answer| answer.status),
            () = sleep(ms(20)) => if client.tcp.write_all(&[byte]).await.is_err() { return None },
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn hundreds_of_dripping_heads_are_closed_in_time_and_disturb_nobody() {
    let site = site(short());
    let began = Instant::now();
    let mut drips = tokio::task::JoinSet::new();
    for _ in 0..400 {
        drips.spawn(drip(site.connect().await));
    }
    assert!(began.elapsed() < ms(400), "the machine is too slow for this test");
    assert!(site.is_healthy().await);
    while let Some(status) = drips.join_next().await {
        assert_eq!(status.expect("no panic"), Some(408));
    }
    assert!(began.elapsed() < ms(2500), "{:?}", began.elapsed());
    assert!(site.all_closed().await);
    assert!(site.stats.timed_out.load(Ordering::SeqCst) >= 400);
    assert!(site.is_healthy().await);
}

#[tokio::test]
async fn a_silent_connection_is_closed_without_a_word() {
    let site = site(short());
    let mut client = site.connect().await;
    let took = client.closed().await;
    assert!(took > ms(400) && took < ms(1500), "{took:?}");
    assert!(client.answer().await.is_none());
}

#[tokio::test]
async fn blank_lines_are_no_head() {
    let site = site(short());
    let mut client = site.connect().await;
    let began = Instant::now();
    while client.tcp.write_all(b"\r\n").await.is_ok() && began.elapsed() < ms(3000) {
        sleep(ms(50)).await;
    }
    assert!(began.elapsed() < ms(1500));
}

#[tokio::test]
async fn an_idle_connection_is_closed_after_its_time_and_not_before() {
    let site = site(short());
    let mut client = site.connect().await;
    for _ in 0..4 {
        client.send(GET_HELLO).await;
        assert_eq!(client.answer().await.expect("an answer").status, 200);
        sleep(ms(200)).await;
    }
    let took = client.closed().await;
    assert!(took < ms(1000), "{took:?}");
}

#[tokio::test]
async fn the_second_head_has_its_time_limit_too() {
    let site = site(short());
    let mut client = site.connect().await;
    // Closely following requests keep hyper's state; the beginning of a third one is left in its buffer.
    client.send(GET_HELLO).await;
    assert_eq!(client.answer().await.expect("an answer").status, 200);
    client.send(&[GET_HELLO, b"GET /hel"].concat()).await;
    assert_eq!(client.answer().await.expect("an answer").status, 200);
    assert_eq!(client.answer().await.expect("an answer").status, 408);
    client.closed().await;
}

#[tokio::test]
async fn a_head_that_is_no_head_is_answered_in_the_contracts_form() {
    let site = site(Limits::default());
    let long_header = format!("GET /hello HTTP/1.1\r\nhost: a\r\nx: {}\r\n\r\n", "a".repeat(40 * 1024));
    let long_uri = format!("GET /{} HTTP/1.1\r\nhost: a\r\n\r\n", "a".repeat(40 * 1024));
    let endless = format!("GET / HTTP/1.1\r\nx: {}", "a".repeat(100 * 1024));
    let many = format!("GET / HTTP/1.1\r\n{}\r\n", "x: y\r\n".repeat(500));
    for (head, status, code) in [
        (long_header.as_bytes(), 431, "payload_too_large"),
        (long_uri.as_bytes(), 431, "payload_too_large"),
        (endless.as_bytes(), 431, "payload_too_large"),
        (many.as_bytes(), 431, "payload_too_large"),
        (b"GET /\0 HTTP/1.1\r\n\r\n", 400, "bad_request"),
        (b"GET /hello HTTP/1.1\r\nx\0y: z\r\n\r\n", 400, "bad_request"),
        (b"GET /hello HTTP/1.1\r\nno colon\r\n\r\n", 400, "bad_request"),
        (b"POST /echo HTTP/1.1\r\ncontent-length: -1\r\n\r\n", 400, "bad_request"),
        (b"POST /echo HTTP/1.1\r\ncontent-length: 99999999999999999999999\r\n\r\n", 400, "bad_request"),
        (b"POST /echo HTTP/1.1\r\ncontent-length: 1\r\ncontent-length: 2\r\n\r\n", 400, "bad_request"),
        (b"GET / HTTP/9.9\r\n\r\n", 400, "bad_request"),
        (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03", 400, "bad_request"),
        (b"hello there\r\n", 400, "bad_request"),
        (b"\xff\xfe\xfd", 400, "bad_request"),
    ] {
        let name = String::from_utf8_lossy(&head[..head.len().min(60)]).into_owned();
        // As the first request, after another one, and closely behind another one.
        for before in [None, Some(150), Some(0)] {
            let mut client = site.connect().await;
            if let Some(gap) = before {
                for _ in 0..2 {
                    client.send(GET_HELLO).await;
                    assert_eq!(client.answer().await.expect("an answer").status, 200);
                    sleep(ms(gap)).await;
                }
            }
            client.send(head).await;
            let answer = client.answer().await.unwrap_or_else(|| panic!("no answer to {name}, {before:?}"));
            assert_eq!(answer.status, status, "{name}");
            let problem = answer.problem();
            assert_eq!(problem["code"], code, "{name}");
            assert_eq!(problem["status"], status, "{name}");
            drop(client.tcp);
        }
    }
    assert!(site.is_healthy().await);
}
