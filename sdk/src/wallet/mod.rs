//! The agent's wallet: one EVM key that signs a closed set of shapes and never leaves this module.
//!
//! [`Wallet`] holds the key, [`keystore`] keeps it encrypted on disk, [`EvmAddress`] and [`verify_wallet_proof`]
//! are what a server needs to check another's proof. Nothing here signs a text or a transaction of the caller's
//! choice: each shape that may be signed has its own method.

mod evm;
pub mod keystore;
#[cfg(feature = "client")]
mod transaction;

pub use evm::{BadAddress, BadKey, BadProof, EvmAddress, Wallet, parse_address, verify_wallet_proof};
pub use keystore::{KeystoreError, random_passphrase};
#[cfg(feature = "client")]
pub use transaction::{Gas, Signed};
