//! A certificate renewed while the server runs.

use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};

struct Running(Child);

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Writes a fresh certificate and its key; gives back a client that trusts nothing else.
fn write_identity(dir: &Path) -> reqwest::Client {
    let made = rcgen::generate_simple_self_signed(["localhost".to_owned()]).expect("a certificate");
    std::fs::write(dir.join("cert.pem"), made.cert.pem()).expect("written");
    std::fs::write(dir.join("key.pem"), made.signing_key.serialize_pem()).expect("written");
    let root = reqwest::Certificate::from_pem(made.cert.pem().as_bytes()).expect("a certificate");
    let builder = reqwest::Client::builder().tls_certs_only([root]).pool_max_idle_per_host(0);
    builder.build().expect("a client")
}

async fn until(what: &str, mut holds: impl AsyncFnMut() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(20);
    while !holds().await {
        assert!(Instant::now() < deadline, "{what}: not within 20 s");
        tokio::time::sleep(Duration::from_millis(30)).await;
    }
}

async fn is_healthy(client: &reqwest::Client, port: &str) -> bool {
    let answer = client.get(format!("https://localhost:{port}/healthz")).send().await;
    answer.is_ok_and(|answer| answer.status() == 200)
}

#[tokio::test(flavor = "multi_thread")]
async fn sqlite_sighup_reads_the_certificate_again() {
    let _ = rustls::crypto::ring::default_provider().install_default();
    let dir = tempfile::tempdir().expect("a directory");
    let old = write_identity(dir.path());
    let mut command = Command::new(env!("CARGO_BIN_EXE_otonix-control-plane"));
    command.args(["serve", "--listen", "127.0.0.1:0", "--log", "warn", "--data-dir"]).arg(dir.path());
    command
        .arg("--tls-cert")
        .arg(dir.path().join("cert.pem"))
        .arg("--tls-key")
        .arg(dir.path().join("key.pem"));
    command.env_clear().stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    let server = Running(command.spawn().expect("the server starts"));
    let mut port = String::new();
    until("the server listens", async || {
        let address = std::fs::read_to_string(dir.path().join("listen")).unwrap_or_default();
        port = address.rsplit(':').next().unwrap_or_default().to_owned();
        !port.is_empty() && is_healthy(&old, &port).await
    })
    .await;
    let pid = Pid::from_child(&server.0);
    let new = write_identity(dir.path());
    assert!(!is_healthy(&new, &port).await, "it serves a certificate that it has not read");
    kill_process(pid, Signal::HUP).expect("it lives");
    until("the new certificate is served", async || is_healthy(&new, &port).await).await;
    assert!(!is_healthy(&old, &port).await);
    // A broken file changes nothing.
    std::fs::write(dir.path().join("cert.pem"), "nonsense").expect("written");
    kill_process(pid, Signal::HUP).expect("it lives");
    tokio::time::sleep(Duration::from_millis(300)).await;
    assert!(is_healthy(&new, &port).await);
}
