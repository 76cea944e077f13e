//! Names of chains: `eip155:8453` (CAIP-2, x402 v2) and `base` (x402 v1) are the same number.

/// Base.
pub const BASE: u64 = 8453;
/// Circle's USDC on Base.
pub const USDC_ON_BASE: &str = "0x833589fCD6eDb6E08f4c7C32D4f71b54bdA02913";

/// The names that version 1 knows (packages `x402` 1.2.0), EVM chains only.
const V1_NAMES: &[(&str, u64)] = &[
    ("base", 8453),
    ("base-sepolia", 84532),
    ("avalanche", 43114),
    ("avalanche-fuji", 43113),
    ("polygon", 137),
    ("polygon-amoy", 80002),
    ("sei", 1329),
    ("sei-testnet", 1328),
    ("iotex", 4689),
    ("abstract", 2741),
    ("abstract-testnet", 11124),
    ("peaq", 3338),
    ("story", 1514),
    ("educhain", 41923),
    ("skale-base-sepolia", 324_705_682),
];

/// The chain's CAIP-2 name, as version 2 and the contract write it.
pub fn caip2(chain_id: u64) -> String {
    format!("eip155:{chain_id}")
}

/// The chain's name in version 1; `None` when it has none there.
pub fn v1_name(chain_id: u64) -> Option<&'static str> {
    V1_NAMES.iter().find(|(_, id)| *id == chain_id).map(|(name, _)| *name)
}

/// The number of a chain named in either way; `None` for anything else, such as another kind of chain.
pub fn chain_id(name: &str) -> Option<u64> {
    let Some(number) = name.strip_prefix("eip155:") else {
        return V1_NAMES.iter().find(|(known, _)| *known == name).map(|(_, id)| *id);
    };
    let canonical = number.bytes().all(|byte| byte.is_ascii_digit()) && !number.starts_with('0');
    if canonical { number.parse().ok() } else { None }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_kinds_of_names_mean_the_same_chain() {
        assert_eq!(chain_id("eip155:8453"), Some(8453));
        assert_eq!(chain_id("base"), Some(8453));
        assert_eq!(v1_name(84532), Some("base-sepolia"));
        assert_eq!(caip2(8453), "eip155:8453");
        for (name, id) in V1_NAMES {
            assert_eq!((chain_id(name), v1_name(*id)), (Some(*id), Some(*name)));
            assert_eq!(chain_id(&caip2(*id)), Some(*id));
        }
    }

    #[test]
    fn what_names_no_evm_chain_is_none() {
        for name in
            ["", "solana", "eip155:", "eip155:0", "eip155:08453", "eip155:-1", "eip155:+1", "eip155:8453 "]
        {
            assert_eq!(chain_id(name), None, "{name}");
        }
        assert_eq!(chain_id("eip155:99999999999999999999"), None);
        assert_eq!(v1_name(31337), None);
    }
}
