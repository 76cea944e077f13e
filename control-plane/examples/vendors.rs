//! Both vendors as a program, for trying the control plane without an account: `vendors [PORT]` prints the options to
//! start the server with. Its switches are under `/admin` (see `tests/infra/fake/admin.rs`).

#![expect(clippy::print_stdout, clippy::disallowed_methods, reason = "a program for people and tests")]

#[expect(dead_code, reason = "tests use more of its switches")]
#[path = "../tests/infra/fake/mod.rs"]
mod fake;

fn main() {
    let port = std::env::args().nth(1).and_then(|port| port.parse().ok()).unwrap_or(0);
    let fake = fake::Fake::on(port);
    for (flag, value) in fake.options() {
        println!("{flag} {value}");
    }
    loop {
        std::thread::park();
    }
}
