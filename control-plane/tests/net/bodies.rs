//! Bodies that are slow, too large, unread or read too late; answers that nobody reads.

use std::sync::atomic::Ordering;

use otonix_control_plane::net::Limits;
use tokio::io::AsyncWriteExt as _;
use tokio::time::{Instant, sleep};

use super::site::{BODY_TIME, GET_HELLO, MAX_BODY, ms, site};

#[tokio::test(flavor = "multi_thread")]
async fn slow_bodies_are_answered_and_closed_in_time() {
    let site = site(Limits { linger_time: ms(200), ..Limits::default() });
    let began = Instant::now();
    let mut slow = tokio::task::JoinSet::new();
    for _ in 0..100 {
        let mut client = site.connect().await;
        slow.spawn(async move {
            client.send(b"POST /echo HTTP/1.1\r\nhost: a\r\ncontent-length: 1000\r\n\r\n").await;
            loop {
                tokio::select! {
                    answer = client.answer() => {
                        client.closed().await;
                        return answer.map(|answer| answer.status);
                    }
                    () = sleep(ms(30)) => if client.tcp.write_all(b"x").await.is_err() { return None },
                }
            }
        });
    }
    assert!(site.is_healthy().await);
    while let Some(status) = slow.join_next().await {
        assert_eq!(status.expect("no panic"), Some(408));
    }
    assert!(began.elapsed() < BODY_TIME + ms(2000), "{:?}", began.elapsed());
    assert!(site.all_closed().await);
}

#[tokio::test]
async fn a_large_body_is_refused_by_its_announcement_and_the_client_hears_of_it() {
    let site = site(Limits::default());
    for request in [
        "POST /echo HTTP/1.1\r\nhost: a\r\ncontent-length: 700000\r\n\r\n",
        "POST /echo HTTP/1.1\r\nhost: a\r\ntransfer-encoding: chunked\r\n\r\naae60\r\n",
    ] {
        let mut client = site.connect().await;
        client.send(request.as_bytes()).await;
        // All of it is sent, so what the server does not read is there when it closes.
        client.send(&vec![b'x'; 700_000]).await;
        assert_eq!(client.answer().await.expect("the answer survives").status, 413);
        client.closed().await;
    }
    assert!(site.all_closed().await);
}

#[tokio::test]
async fn a_body_up_to_the_bound_arrives_whole() {
    let site = site(Limits::default());
    let mut client = site.connect().await;
    for _ in 0..3 {
        client
            .send(format!("POST /echo HTTP/1.1\r\nhost: a\r\ncontent-length: {MAX_BODY}\r\n\r\n").as_bytes())
            .await;
        client.send(&vec![b'x'; MAX_BODY]).await;
        assert_eq!(client.answer().await.expect("an answer").body.len(), MAX_BODY);
    }
}

#[tokio::test]
async fn an_answer_before_the_body_was_read_arrives_and_ends_the_connection() {
    let site = site(Limits::default());
    let mut client = site.connect().await;
    client.send(b"POST /refuse HTTP/1.1\r\nhost: a\r\ncontent-length: 100000\r\n\r\n").await;
    client.send(&vec![b'x'; 50_000]).await;
    assert_eq!(client.answer().await.expect("an answer").status, 401);
    client.closed().await;
}

#[tokio::test]
async fn a_small_unread_body_does_not_cost_the_connection() {
    // Nothing but rest lasts longer than this header time.
    let site = site(Limits { header_time: ms(200), ..Limits::default() });
    for request in [
        "POST /refuse HTTP/1.1\r\nhost: a\r\ncontent-length: 4\r\n\r\nbody",
        "POST /refuse HTTP/1.1\r\nhost: a\r\ntransfer-encoding: chunked\r\n\r\n4\r\nbody\r\n0\r\n\r\n",
    ] {
        let mut client = site.connect().await;
        for gap in [0, 0, 600, 0, 600] {
            client.send(request.as_bytes()).await;
            assert_eq!(client.answer().await.expect("an answer").status, 401);
            sleep(ms(gap)).await;
            client.send(GET_HELLO).await;
            assert_eq!(client.answer().await.expect("an answer").body, b"hello");
        }
    }
}

#[tokio::test]
async fn an_unread_body_that_is_not_there_does_not_delay_the_answer() {
    let site = site(Limits::default());
    for header in
        ["content-length: 100", "content-length: 100\r\nexpect: 100-continue", "transfer-encoding: chunked"]
    {
        let mut client = site.connect().await;
        let began = Instant::now();
        client.send(format!("POST /refuse HTTP/1.1\r\nhost: a\r\n{header}\r\n\r\n").as_bytes()).await;
        assert_eq!(client.answer().await.expect("an answer").status, 401);
        assert!(began.elapsed() < ms(500), "{:?}", began.elapsed());
        drop(client);
    }
    assert!(site.all_closed().await);
}

#[tokio::test]
async fn the_rest_of_a_body_is_never_taken_for_a_request() {
    let site = site(Limits::default());
    for gap in [0, 300] {
        let mut client = site.connect().await;
        let length = GET_HELLO.len() + 4;
        client
            .send(
                format!("POST /forget HTTP/1.1\r\nhost: a\r\ncontent-length: {length}\r\n\r\nbody")
                    .as_bytes(),
            )
            .await;
        assert_eq!(client.answer().await.expect("an answer").body, b"forgotten");
        sleep(ms(gap)).await;
        client.send(GET_HELLO).await;
        client.send(b"GET /peer HTTP/1.1\r\nhost: a\r\n\r\n").await;
        let answer = client.answer().await.expect("an answer");
        assert!(answer.body.starts_with(b"["), "the body's bytes were served: {answer:?}");
    }
}

#[tokio::test]
async fn an_answer_that_nobody_reads_is_given_up() {
    let site = site(Limits { write_time: ms(300), ..Limits::default() });
    let mut client = site.connect().await;
    client.send(b"GET /big HTTP/1.1\r\nhost: a\r\n\r\n").await;
    assert!(site.reaches(&site.stats.timed_out, |n| n == 1).await);
    assert!(site.all_closed().await);
    assert_eq!(site.stats.timed_out.load(Ordering::SeqCst), 1);
}

#[tokio::test]
async fn a_slow_reader_gets_its_whole_answer() {
    use tokio::io::AsyncReadExt as _;
    let site = site(Limits { write_time: ms(400), ..Limits::default() });
    let mut client = site.connect().await;
    client.send(b"GET /big HTTP/1.1\r\nhost: a\r\nconnection: close\r\n\r\n").await;
    let mut read = 0;
    let mut buf = vec![0; 8 << 20];
    loop {
        match client.tcp.read(&mut buf).await.expect("no reset") {
            0 => break,
            n => read += n,
        }
        if read % 5 == 0 {
            sleep(ms(20)).await;
        }
    }
    assert!(read > 64 << 20);
}
