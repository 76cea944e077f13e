//! Certificates, keys, handshakes.

use std::path::Path;
use std::sync::Arc;

use otonix_control_plane::net::tls::TlsError;
use otonix_control_plane::net::{Limits, Tls};
use tokio::io::AsyncReadExt as _;
use tokio::net::TcpStream;
use tokio::time::{Instant, timeout};

use super::site::{LONG, Site, http, ms, site_with};

/// Writes a fresh certificate and its key; returns the certificate.
fn write_identity(dir: &Path) -> String {
    let made = rcgen::generate_simple_self_signed(["localhost".to_owned()]).expect("a certificate");
    let cert = made.cert.pem();
    std::fs::write(dir.join("cert.pem"), &cert).expect("written");
    std::fs::write(dir.join("key.pem"), made.signing_key.serialize_pem()).expect("written");
    cert
}

fn client(cert: &str) -> reqwest::ClientBuilder {
    let root = reqwest::Certificate::from_pem(cert.as_bytes()).expect("a certificate");
    http().tls_certs_only([root])
}

fn url(site: &Site, path: &str) -> String {
    format!("https://localhost:{}{path}", site.addr.port())
}

#[tokio::test]
async fn both_protocols_are_offered_in_the_handshake() {
    let dir = tempfile::tempdir().expect("a directory");
    let cert = write_identity(dir.path());
    let tls = Tls::load(dir.path().join("cert.pem"), dir.path().join("key.pem")).expect("loaded");
    let site = site_with(Limits::default(), Some(Arc::new(tls)));
    for (client, version) in [
        (client(&cert).build().expect("a client"), reqwest::Version::HTTP_2),
        (client(&cert).http1_only().build().expect("a client"), reqwest::Version::HTTP_11),
    ] {
        for _ in 0..3 {
            let answer = client.post(url(&site, "/echo")).body("text").send().await.expect("an answer");
            assert_eq!(answer.version(), version);
            assert_eq!(answer.text().await.expect("a body"), "text");
            tokio::time::sleep(ms(120)).await;
        }
        let peer: serde_json::Value =
            client.get(url(&site, "/peer")).send().await.expect("an answer").json().await.expect("a peer");
        assert_eq!(peer[2], true);
        let big =
            client.get(url(&site, "/big")).send().await.expect("an answer").bytes().await.expect("a body");
        assert_eq!(big.len(), 64 << 20);
    }
}

#[tokio::test]
async fn a_new_certificate_is_used_after_a_reload_and_a_broken_one_is_not() {
    let dir = tempfile::tempdir().expect("a directory");
    let old = write_identity(dir.path());
    let tls = Arc::new(Tls::load(dir.path().join("cert.pem"), dir.path().join("key.pem")).expect("loaded"));
    let site = site_with(Limits::default(), Some(Arc::clone(&tls)));
    let new = write_identity(dir.path());
    let reaches = async |cert: &str| {
        client(cert).build().expect("a client").get(url(&site, "/hello")).send().await.is_ok()
    };
    assert!(reaches(&old).await);
    tls.reload().expect("reloaded");
    assert!(reaches(&new).await && !reaches(&old).await);
    std::fs::write(dir.path().join("key.pem"), "garbage").expect("written");
    assert!(tls.reload().is_err());
    assert!(reaches(&new).await);
}

#[tokio::test]
async fn a_handshake_has_its_time() {
    let dir = tempfile::tempdir().expect("a directory");
    write_identity(dir.path());
    let tls = Tls::load(dir.path().join("cert.pem"), dir.path().join("key.pem")).expect("loaded");
    let limits = Limits { tls_handshake_time: ms(300), ..Limits::default() };
    let site = site_with(limits, Some(Arc::new(tls)));
    let began = Instant::now();
    let mut silent = TcpStream::connect(site.addr).await.expect("a connection");
    let mut rest = Vec::new();
    timeout(LONG, silent.read_to_end(&mut rest)).await.expect("an end").expect("no reset");
    assert!(began.elapsed() > ms(250) && began.elapsed() < ms(1500), "{:?}", began.elapsed());
    assert!(site.all_closed().await);
}

#[test]
fn errors_name_the_file() {
    let dir = tempfile::tempdir().expect("a directory");
    write_identity(dir.path());
    let (cert, key, empty) =
        (dir.path().join("cert.pem"), dir.path().join("key.pem"), dir.path().join("empty.pem"));
    std::fs::write(&empty, "").expect("written");
    let missing = dir.path().join("missing.pem");
    let fails = |cert: &Path, key: &Path| Tls::load(cert, key).expect_err("unusable");
    assert!(matches!(fails(&missing, &key), TlsError::Read { path, .. } if path == missing));
    assert!(matches!(fails(&cert, &missing), TlsError::Read { path, .. } if path == missing));
    assert!(matches!(fails(&empty, &key), TlsError::NoCertificate { path } if path == empty));
    assert!(matches!(fails(&cert, &empty), TlsError::NoKey { path } if path == empty));
    assert!(fails(&cert, &cert).to_string().contains("cert.pem"));
    let other = tempfile::tempdir().expect("a directory");
    write_identity(other.path());
    assert!(matches!(fails(&cert, &other.path().join("key.pem")), TlsError::Unusable { .. }));
}
