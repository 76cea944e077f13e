//! Requests as they should be.

use otonix_control_plane::net::Limits;
use tokio::io::AsyncWriteExt as _;
use tokio::time::sleep;

use super::site::{GET_HELLO, http, ms, site};

#[tokio::test]
async fn http1_and_http2_share_one_port() {
    let site = site(Limits::default());
    let url = format!("http://{}/echo", site.addr);
    let h1 = http().http1_only().build().expect("a client");
    let h2 = http().http2_prior_knowledge().build().expect("a client");
    for (client, version) in [(h1, reqwest::Version::HTTP_11), (h2, reqwest::Version::HTTP_2)] {
        for _ in 0..3 {
            let answer = client.post(&url).body("text").send().await.expect("an answer");
            assert_eq!(answer.version(), version);
            assert_eq!(answer.text().await.expect("a body"), "text");
        }
    }
    assert_eq!(
        site.stats.accepted.load(std::sync::atomic::Ordering::SeqCst),
        2,
        "connections are used again"
    );
}

#[tokio::test]
async fn a_connection_serves_request_after_request_lively_or_not() {
    let site = site(Limits::default());
    let mut client = site.connect().await;
    for gap in [0, 0, 0, 150, 0, 150, 1200, 0] {
        sleep(ms(gap)).await;
        client.send(GET_HELLO).await;
        assert_eq!(client.answer().await.expect("an answer").body, b"hello");
        client.send(b"POST /echo HTTP/1.1\r\nhost: a\r\ntransfer-encoding: chunked\r\n\r\n2\r\nab\r\n1\r\nc\r\n0\r\n\r\n").await;
        assert_eq!(client.answer().await.expect("an answer").body, b"abc");
    }
}

#[tokio::test]
async fn pipelined_requests_are_answered_in_order() {
    let site = site(Limits::default());
    let mut client = site.connect().await;
    let mut all = Vec::new();
    for n in 0..100 {
        let body = format!("body {n}");
        all.extend(
            format!("POST /echo HTTP/1.1\r\nhost: a\r\ncontent-length: {}\r\n\r\n{body}", body.len()).bytes(),
        );
    }
    client.send(&all).await;
    for n in 0..100 {
        assert_eq!(client.answer().await.expect("an answer").body, format!("body {n}").as_bytes());
    }
}

#[tokio::test]
async fn a_request_may_be_cut_anywhere() {
    let site = site(Limits::default());
    let request = b"POST /echo HTTP/1.1\r\nhost: a\r\ncontent-length: 4\r\n\r\nbody";
    let twice = [request.as_slice(), request].concat();
    let mut client = site.connect().await;
    client.tcp.set_nodelay(true).expect("set");
    for cut in 1..twice.len() {
        client.send(&twice[..cut]).await;
        sleep(ms(1)).await;
        client.send(&twice[cut..]).await;
        for _ in 0..2 {
            assert_eq!(client.answer().await.expect("an answer").body, b"body", "cut at {cut}");
        }
    }
}

#[tokio::test]
async fn a_client_that_has_said_all_it_wants_is_still_answered() {
    let site = site(Limits::default());
    let mut client = site.connect().await;
    client.send(b"GET /slow HTTP/1.1\r\nhost: a\r\n\r\n").await;
    client.tcp.shutdown().await.expect("half closed");
    assert_eq!(client.answer().await.expect("an answer").body, b"slow");
    client.closed().await;
    assert!(site.all_closed().await);
}

#[tokio::test]
async fn old_and_closing_clients_see_the_connection_end() {
    let site = site(Limits::default());
    for request in
        ["GET /hello HTTP/1.0\r\n\r\n", "GET /hello HTTP/1.1\r\nhost: a\r\nconnection: close\r\n\r\n"]
    {
        let mut client = site.connect().await;
        client.send(request.as_bytes()).await;
        assert_eq!(client.answer().await.expect("an answer").body, b"hello");
        assert!(client.closed().await < ms(1000));
    }
}

#[tokio::test]
async fn a_request_knows_where_it_came_from() {
    let site = site(Limits::default());
    let mut client = site.connect().await;
    client.send(b"GET /peer HTTP/1.1\r\nhost: a\r\n\r\n").await;
    let peer: (std::net::SocketAddr, std::net::SocketAddr, bool) =
        serde_json::from_slice(&client.answer().await.expect("an answer").body).expect("a peer");
    assert_eq!(peer, (client.tcp.local_addr().expect("an address"), site.addr, false));
}

#[tokio::test]
async fn a_cautious_client_is_told_to_go_on() {
    let site = site(Limits::default());
    let mut client = site.connect().await;
    client.send(b"POST /echo HTTP/1.1\r\nhost: a\r\nexpect: 100-continue\r\ncontent-length: 2\r\n\r\n").await;
    assert_eq!(client.answer().await.expect("an answer").status, 100);
    client.send(b"ok").await;
    assert_eq!(client.answer().await.expect("an answer").body, b"ok");
}

#[tokio::test]
async fn a_bad_request_right_behind_a_good_one_is_refused_in_form() {
    let site = site(Limits::default());
    let mut client = site.connect().await;
    client.send(&[GET_HELLO, b"no request\r\n\r\n"].concat()).await;
    assert_eq!(client.answer().await.expect("an answer").body, b"hello");
    let answer = client.answer().await.expect("an answer");
    assert_eq!((answer.status, answer.problem()["code"].as_str()), (400, Some("bad_request")));
}
