//! The example that the documentation names, run as it is.

use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use crate::seller::{Manner, Seller, offer};
use crate::world::World;

/// Beside the tests; built when it is not there or older than its text.
fn program() -> PathBuf {
    let tests = std::env::current_exe().expect("this test");
    let target = tests.parent().and_then(|deps| deps.parent()).expect("the folder of the build");
    let path = target.join("examples/pay_invoice");
    let source = concat!(env!("CARGO_MANIFEST_DIR"), "/examples/pay_invoice.rs");
    let changed = |path: &Path| std::fs::metadata(path).and_then(|metadata| metadata.modified()).ok();
    if changed(&path) < changed(Path::new(source)) {
        let build = ["build", "--locked", "-p", "otonix-sdk", "--example", "pay_invoice"];
        let built = Command::new(env!("CARGO")).args(build).current_dir(env!("CARGO_MANIFEST_DIR")).status();
        assert!(built.is_ok_and(|status| status.success()), "the example does not build");
    }
    path
}

fn pay(world: &World, url: &str, max_amount: &str) -> Output {
    let mut command = Command::new(program());
    command.env_clear().env("OTONIX_WALLET_KEY", &world.key).current_dir(world.dir.path());
    command.args([url, "--max-amount", max_amount, "--key", "invoice-7", "--allow-private"]);
    command.args(["--rpc", &world.chain.rpc, "--asset", &world.chain.asset]);
    command.output().expect("it runs")
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn pay_invoice_pays_once_for_a_key() {
    let world = World::with(1_000_000).await;
    let offers = vec![offer(&world.chain, world.payee(), "10000")];
    let seller = Seller::start(&world.chain, 2, offers, Manner::Honest).await;
    let url = seller.url();
    let (dear, first, again) = tokio::task::block_in_place(|| {
        (pay(&world, &url, "0.001"), pay(&world, &url, "0.05"), pay(&world, &url, "0.05"))
    });
    assert!(!dear.status.success() && dear.stdout.is_empty(), "{dear:?}");
    assert!(first.status.success() && !first.stdout.is_empty(), "{first:?}");
    assert!(String::from_utf8_lossy(&first.stderr).starts_with("0.01 USDC: settled 0x"), "{first:?}");
    assert_eq!(again.stdout, first.stdout, "the answer that was paid for comes again");
    assert_eq!((seller.settled(), world.moved().len()), (1, 1));
}
