//! Full houses and closing time.

use std::sync::atomic::Ordering;

use otonix_control_plane::net::Limits;
use tokio::net::TcpStream;
use tokio::time::{Instant, sleep, timeout};

use super::site::{GET_HELLO, LONG, http, ms, site};

#[tokio::test]
async fn a_connection_too_many_is_told_when_to_come_back() {
    let site = site(Limits { max_connections: 2, ..Limits::default() });
    let mut held = [site.connect().await, site.connect().await];
    for client in &mut held {
        client.send(GET_HELLO).await;
        assert_eq!(client.answer().await.expect("an answer").status, 200);
    }
    let mut third = site.connect().await;
    third.send(GET_HELLO).await;
    let answer = third.answer().await.expect("an answer");
    assert_eq!(answer.status, 503);
    assert!(answer.head.contains("retry-after: "));
    assert_eq!(answer.problem()["code"], "overloaded");
    third.closed().await;

    let [first, mut second] = held;
    drop(first);
    assert!(site.reaches(&site.stats.open, |open| open == 1).await);
    assert!(site.is_healthy().await);
    second.send(GET_HELLO).await;
    assert_eq!(second.answer().await.expect("an answer").status, 200);
    assert_eq!(site.stats.refused.load(Ordering::SeqCst), 1);
}

#[tokio::test]
async fn a_stop_finishes_what_runs_and_closes_what_rests() {
    let site = site(Limits::default());
    let mut idle = site.connect().await;
    idle.send(GET_HELLO).await;
    assert_eq!(idle.answer().await.expect("an answer").status, 200);
    let mut silent = site.connect().await;
    let mut running = site.connect().await;
    running.send(b"GET /slow HTTP/1.1\r\nhost: a\r\n\r\n").await;
    let mut halfway = site.connect().await;
    halfway.send(&GET_HELLO[..10]).await;
    let h2 = http().http2_prior_knowledge().build().expect("a client");
    let url = format!("http://{}/slow", site.addr);
    let stream = tokio::spawn(async move { h2.get(url).send().await?.text().await });
    assert!(site.reaches(&site.stats.open, |open| open == 5).await);
    sleep(ms(100)).await;

    let began = Instant::now();
    site.stop.cancel();
    assert!(idle.closed().await < ms(300));
    assert!(silent.closed().await < ms(300));
    halfway.send(&GET_HELLO[10..]).await;
    let answer = halfway.answer().await.expect("an answer");
    assert_eq!(answer.body, b"hello");
    let answer = running.answer().await.expect("an answer");
    assert_eq!(answer.body, b"slow");
    assert!(answer.head.contains("connection: close"), "{}", answer.head);
    assert_eq!(stream.await.expect("no panic").expect("an answer"), "slow");
    drop((idle, silent, halfway, running));
    timeout(LONG, site.serving).await.expect("in time").expect("no panic").expect("no error");
    assert!(began.elapsed() < ms(3000), "{:?}", began.elapsed());
    assert!(TcpStream::connect(site.addr).await.is_err(), "nobody listens any more");
}

#[tokio::test]
async fn what_never_ends_is_cut_off_at_the_deadline() {
    let site = site(Limits { drain_time: ms(300), ..Limits::default() });
    let mut running = site.connect().await;
    running.send(b"GET /never HTTP/1.1\r\nhost: a\r\n\r\n").await;
    let h2 = http().http2_prior_knowledge().build().expect("a client");
    let url = format!("http://{}/never", site.addr);
    let stream = tokio::spawn(async move { h2.get(url).send().await });
    assert!(site.reaches(&site.stats.open, |open| open == 2).await);
    sleep(ms(100)).await;
    let began = Instant::now();
    site.stop.cancel();
    timeout(LONG, site.serving).await.expect("in time").expect("no panic").expect("no error");
    assert!(began.elapsed() >= ms(290) && began.elapsed() < ms(2000), "{:?}", began.elapsed());
    assert!(running.answer().await.is_none());
    assert!(stream.await.expect("no panic").is_err());
}
