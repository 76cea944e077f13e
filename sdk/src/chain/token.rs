//! What a token is asked, USDC above all: balances, the state of authorizations, what it says of itself; and contracts,
//! whether a signature is theirs.

use super::usdc::{
    AUTHORIZATION_STATE, BALANCE_OF, DECIMALS, DOMAIN_SEPARATOR, IS_VALID_SIGNATURE, NAME, VERSION, call,
    number, number_in, tail, word,
};
use super::{At, ChainError, EvmAddress, Rpc};

/// Longest text read of a contract.
const MAX_TEXT: usize = 256;
/// Gas that a contract may use to check its own signature.
const SIGNATURE_GAS: u64 = 150_000;

/// What a token says of itself; what its signatures are made over.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Facts {
    /// The EIP-712 domain's name.
    pub name: String,
    /// The EIP-712 domain's version.
    pub version: String,
    /// Decimals of a unit.
    pub decimals: u64,
    /// The EIP-712 domain's hash.
    pub domain_separator: [u8; 32],
}

fn text(answer: &[u8]) -> Option<String> {
    let offset = usize::try_from(number_in(answer.get(..32)?)?).ok()?;
    let rest = answer.get(offset..)?;
    let len = usize::try_from(number_in(rest.get(..32)?)?).ok()?;
    if len > MAX_TEXT {
        return None;
    }
    String::from_utf8(rest.get(32..)?.get(..len)?.to_vec()).ok()
}

impl Rpc {
    /// Base units of a token that an account has.
    ///
    /// # Errors
    /// [`ChainError`].
    pub async fn token_balance(&self, asset: EvmAddress, of: EvmAddress) -> Result<u128, ChainError> {
        let answer = self.call(None, asset, &call(BALANCE_OF, &[word(of)]), None, At::Latest).await?;
        number_in(&answer).ok_or_else(|| ChainError::Garbage("a balance".to_owned()))
    }

    /// Whether a payer's nonce was used (or cancelled).
    ///
    /// # Errors
    /// [`ChainError`].
    pub async fn authorization_state(
        &self,
        asset: EvmAddress,
        from: EvmAddress,
        nonce: [u8; 32],
        at: At,
    ) -> Result<bool, ChainError> {
        let data = call(AUTHORIZATION_STATE, &[word(from), nonce]);
        match number_in(&self.call(None, asset, &data, None, at).await?) {
            Some(0) => Ok(false),
            Some(1) => Ok(true),
            _ => Err(ChainError::Garbage("the state of an authorization".to_owned())),
        }
    }

    /// What a token says of itself.
    ///
    /// # Errors
    /// [`ChainError`]; garbage when there is no such token.
    pub async fn token_facts(&self, asset: EvmAddress) -> Result<Facts, ChainError> {
        let no = |what: &str| ChainError::Garbage(format!("{asset} is no USDC: it has no {what}"));
        if self.code(asset).await?.is_empty() {
            return Err(no("code"));
        }
        let name = self.call(None, asset, &NAME, None, At::Latest).await?;
        let version = self.call(None, asset, &VERSION, None, At::Latest).await?;
        let decimals = self.call(None, asset, &DECIMALS, None, At::Latest).await?;
        let domain = self.call(None, asset, &DOMAIN_SEPARATOR, None, At::Latest).await?;
        Ok(Facts {
            name: text(&name).ok_or_else(|| no("name"))?,
            version: text(&version).ok_or_else(|| no("version"))?,
            decimals: number_in(&decimals)
                .and_then(|n| u64::try_from(n).ok())
                .ok_or_else(|| no("decimals"))?,
            domain_separator: domain.as_slice().try_into().map_err(|_| no("domain separator"))?,
        })
    }

    /// Whether a contract says that a signature over a hash is its own (ERC-1271).
    ///
    /// # Errors
    /// [`ChainError`]; a contract that fails has not said so.
    pub async fn is_valid_signature(
        &self,
        contract: EvmAddress,
        hash: [u8; 32],
        signature: &[u8],
    ) -> Result<bool, ChainError> {
        let mut data = call(IS_VALID_SIGNATURE, &[hash, number(64)]);
        data.extend(tail(signature));
        match self.call(None, contract, &data, Some(SIGNATURE_GAS), At::Latest).await {
            Ok(answer) => Ok(answer.len() == 32
                && answer.starts_with(&IS_VALID_SIGNATURE)
                && answer.iter().skip(4).all(|byte| *byte == 0)),
            Err(error) if error.is_revert() => Ok(false),
            Err(error) => Err(error),
        }
    }
}
