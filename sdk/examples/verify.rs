//! What verifying a signed payment costs without a chain: reads a `PAYMENT-SIGNATURE` header from the standard input and
//! checks it again and again, from the header's text to the signer's address. Prints one line of JSON.

use std::error::Error;
use std::io::Read as _;
use std::time::Instant;

use otonix_sdk::x402::eip3009::{Domain, Transfer, read_signature, recover};
use otonix_sdk::x402::headers::Presented;
use otonix_sdk::x402::network;
use serde_json::json;

const WARM_UP: usize = 200;
const ROUNDS: usize = 2_000;

fn main() -> Result<(), Box<dyn Error>> {
    let mut header = String::new();
    std::io::stdin().read_to_string(&mut header)?;
    let header = header.trim();
    let mut micros = Vec::with_capacity(ROUNDS);
    for round in 0..WARM_UP + ROUNDS {
        let began = Instant::now();
        verify(header)?;
        if round >= WARM_UP {
            micros.push(began.elapsed().as_secs_f64() * 1e6);
        }
    }
    micros.sort_by(f64::total_cmp);
    print(&json!({ "p50_us": micros[ROUNDS / 2], "p99_us": micros[ROUNDS * 99 / 100] }));
    Ok(())
}

#[expect(clippy::print_stdout, reason = "the one line that this program is for")]
fn print(report: &serde_json::Value) {
    println!("{report}");
}

fn verify(header: &str) -> Result<(), Box<dyn Error>> {
    let Some(Presented::V2(payment)) = Presented::read(Some(header), None)? else {
        return Err("the header is none of version 2".into());
    };
    let accepted = &payment.accepted;
    let token = accepted.domain().ok_or("the token has no domain")?;
    let domain = Domain {
        name: token.name,
        version: token.version,
        chain_id: network::chain_id(&accepted.network).ok_or("an unknown network")?,
        asset: accepted.asset.parse()?,
    };
    let exact = &payment.payload;
    let transfer = Transfer::read(&exact.authorization).ok_or("no authorization")?;
    let signer = recover(&transfer.digest(&domain), &read_signature(&exact.signature)?)?;
    if signer == transfer.from { Ok(()) } else { Err("signed by someone else".into()) }
}
