//! Asks at a URL and pays what is asked for, at most so much; again with the same key, it is paid once.
//!
//! `OTONIX_WALLET_KEY=0x… cargo run -p otonix-sdk --example pay_invoice -- https://… --max-amount 0.05 --key invoice-7`
use std::io::Write as _;
use std::sync::Arc;

use clap::Parser;
use otonix_sdk::clock::SystemClock;
use otonix_sdk::money::MicroUsd;
use otonix_sdk::pay::{Asker, Client, Fetch, PayConfig, Request, Rules, Tuning};
use otonix_sdk::standing::SurvivalTier;
use otonix_sdk::wallet::{Wallet, parse_address};
use otonix_sdk::x402::network;

#[derive(Parser)]
struct Args {
    url: String,
    #[arg(long, value_parser = |text: &str| MicroUsd::parse(text))]
    max_amount: MicroUsd,
    #[arg(long)]
    key: String,
    #[arg(long, env = "OTONIX_WALLET_KEY", hide_env_values = true)]
    wallet_key: String,
    #[arg(long, env = "OTONIX_CHAIN_RPC", default_value = "https://mainnet.base.org")]
    rpc: String,
    /// The token's contract
    #[arg(long, env = "OTONIX_ASSET", default_value = network::USDC_ON_BASE)]
    asset: String,
    #[arg(long, default_value = ".otonix-pay")]
    journal: String,
    /// Sellers on this machine or its network
    #[arg(long)]
    allow_private: bool,
}

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let args = Args::parse();
    let most = args.max_amount;
    let rules = Rules {
        max_payment: most,
        max_hour: most.saturating_add(most),
        max_day: most.saturating_add(most),
        reserve: MicroUsd::ZERO,
        hosts: vec!["*".to_owned()],
        essential: Vec::new(),
        topup_max_day: MicroUsd::ZERO,
        server: String::new(),
        topup_path: String::new(),
        chain_id: network::BASE,
        asset: parse_address(&args.asset)?,
    };
    let config = PayConfig {
        dir: args.journal.into(),
        rules,
        allow_private: args.allow_private,
        rpc: vec![args.rpc],
        api_key: None,
        tuning: Tuning::default(),
    };
    let client = Client::open(config, Wallet::from_hex(&args.wallet_key)?, Arc::new(SystemClock))?;
    // What an earlier run has signed goes on first.
    client.resume();
    let request = Request { method: "GET".to_owned(), url: args.url, headers: Vec::new(), body: Vec::new() };
    let fetch = Fetch {
        request,
        max_amount: most,
        key: Some(args.key),
        asker: Asker::Agent,
        tier: SurvivalTier::Full,
    };
    // An error means that nothing was signed.
    let fetched = client.fetch(fetch).await?;
    if let Some(payment) = fetched.payment {
        eprintln!(
            "{} USDC: {} {}",
            payment.amount,
            payment.state.as_str(),
            payment.tx_hash.unwrap_or_default()
        );
    }
    if let Some(answer) = fetched.answer {
        std::io::stdout().write_all(&answer.body)?;
    }
    Ok(())
}
