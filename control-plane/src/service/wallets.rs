//! Whether a wallet address was shown to be its sender's.

use otonix_sdk::api::agents::WalletProof;
use otonix_sdk::error::ErrorCode;
use otonix_sdk::wallet::{parse_address, verify_wallet_proof};

use crate::app::App;
use crate::error::Error;

/// Checks a proof over any of some names, at any URL under which this server is known.
///
/// # Errors
/// 400 `invalid_field` for what is no address, 400 `invalid_wallet_proof`.
pub(crate) fn check_proof<'a>(
    app: &App,
    address: &str,
    names: impl Iterator<Item = &'a str>,
    proof: &WalletProof,
) -> Result<(), Error> {
    parse_address(address).map_err(|why| Error::invalid("walletAddress", why.to_string()))?;
    let now = app.clock.now();
    let urls = app.settings.proof_urls();
    let mut why = None;
    for name in names {
        for url in &urls {
            match verify_wallet_proof(address, name, url, proof, now) {
                Ok(()) => return Ok(()),
                Err(error) => why = why.or(Some(error.to_string())),
            }
        }
    }
    let why = why.unwrap_or_else(|| "does not hold".to_owned());
    Err(Error::Invalid { code: ErrorCode::InvalidWalletProof, field: "walletProof".to_owned(), why })
}
