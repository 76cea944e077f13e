//! What a seller asks for: the bodies and headers of a 402, in the exact shapes of versions 1 and 2.
//!
//! These are the types that a seller writes, and reads back out of a payment. A payer reads a stranger's 402
//! through [`super::offer`], which is more tolerant and keeps each offer verbatim.

use serde::{Deserialize, Deserializer, Serialize};
use serde_json::Value;

/// Version 2: the content of the header `PAYMENT-REQUIRED`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct PaymentRequired {
    /// 2.
    pub x402_version: u8,
    /// Why payment is asked, for people.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
    /// What is sold.
    pub resource: Resource,
    /// The ways to pay, at least one.
    pub accepts: Vec<Requirements>,
    /// What extensions say, by name.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub extensions: Option<Value>,
}

/// Version 2: what is sold.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Resource {
    /// Where.
    pub url: String,
    /// For people.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub description: Option<String>,
    /// Of the answer that is paid for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mime_type: Option<String>,
}

/// Version 2: one way to pay. Comes back in the payment as `accepted`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Requirements {
    /// [`super::EXACT`], or a scheme that is not spoken here.
    pub scheme: String,
    /// CAIP-2.
    pub network: String,
    /// Base units, decimal digits.
    pub amount: String,
    /// The token's contract.
    pub asset: String,
    /// Who is paid.
    pub pay_to: String,
    /// How long a payment may be valid, seconds.
    #[serde(deserialize_with = "whole_seconds")]
    pub max_timeout_seconds: u64,
    /// For `exact`: the token's EIP-712 `name` and `version`, and what the seller adds.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub extra: Option<Value>,
}

/// Version 1: the body of a 402.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct RequiredV1 {
    /// 1.
    pub x402_version: u8,
    /// Why payment is asked, for people.
    #[serde(default)]
    pub error: String,
    /// The ways to pay.
    pub accepts: Vec<RequirementsV1>,
}

/// Version 1: one way to pay. Optional fields are left out, never `null`: published clients refuse `null`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct RequirementsV1 {
    /// [`super::EXACT`].
    pub scheme: String,
    /// A name of version 1, such as `base`.
    pub network: String,
    /// Base units, decimal digits.
    pub max_amount_required: String,
    /// What is sold: its URL.
    pub resource: String,
    /// For people.
    #[serde(default)]
    pub description: String,
    /// Of the answer that is paid for.
    #[serde(default)]
    pub mime_type: String,
    /// What the route takes and gives.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub output_schema: Option<Value>,
    /// Who is paid.
    pub pay_to: String,
    /// How long a payment may be valid, seconds.
    #[serde(deserialize_with = "whole_seconds")]
    pub max_timeout_seconds: u64,
    /// The token's contract.
    pub asset: String,
    /// For `exact`: the token's EIP-712 `name` and `version`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub extra: Option<Value>,
}

/// Name and version of the token's EIP-712 domain, as a seller claims them. The chain has the last word.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct TokenDomain {
    /// `USD Coin` on Base, `USDC` on some test networks.
    pub name: String,
    /// `2`.
    pub version: String,
}

impl Requirements {
    /// The token's domain, as claimed in `extra`.
    pub fn domain(&self) -> Option<TokenDomain> {
        self.extra.as_ref().and_then(|extra| TokenDomain::deserialize(extra).ok())
    }

    /// Whether `other`, from a payment, is this offer: every field the same, addresses in any case, `extra` with at
    /// least what was offered (a client may add to it, by the specification).
    pub fn is_accepted_by(&self, other: &Self) -> bool {
        let added = match (&self.extra, &other.extra) {
            (None | Some(Value::Null), _) => true,
            (Some(Value::Object(offered)), Some(Value::Object(sent))) => {
                offered.iter().all(|(name, value)| sent.get(name) == Some(value))
            }
            (offered, sent) => offered == sent,
        };
        self.scheme == other.scheme
            && self.network == other.network
            && self.amount == other.amount
            && self.asset.eq_ignore_ascii_case(&other.asset)
            && self.pay_to.eq_ignore_ascii_case(&other.pay_to)
            && self.max_timeout_seconds == other.max_timeout_seconds
            && added
    }
}

/// Whole seconds of a JSON number that others write as `120` or `120.0`.
fn whole_seconds<'de, D: Deserializer<'de>>(deserializer: D) -> Result<u64, D::Error> {
    let number = serde_json::Number::deserialize(deserializer)?;
    seconds_of(&number).ok_or_else(|| serde::de::Error::custom("must be a positive number of seconds"))
}

pub(super) fn seconds_of(number: &serde_json::Number) -> Option<u64> {
    if let Some(seconds) = number.as_u64() {
        return Some(seconds);
    }
    let seconds = number.as_f64().filter(|seconds| (0.0..4e9).contains(seconds))?;
    // In range by the line above, so the cast only cuts the fraction.
    Some(seconds as u64)
}

#[cfg(test)]
mod tests {
    use super::*;

    const V1: &str = r#"{"x402Version":1,"error":"X-PAYMENT header is required","accepts":[{"scheme":"exact","network":"base","maxAmountRequired":"10000","resource":"http://merchant.test/v1/paid","description":"interop v1","mimeType":"application/json","payTo":"0x3C44CdDdB6a900fa2b585dd299e03d12FA4293BC","maxTimeoutSeconds":120,"asset":"0x833589fCD6eDb6E08f4c7C32D4f71b54bdA02913","outputSchema":{"input":{"type":"http","method":"POST","discoverable":true}},"extra":{"name":"USD Coin","version":"2"}}]}"#;
    const V2: &str = r#"{"x402Version":2,"error":"Payment required","resource":{"url":"http://merchant.test/v2/paid","description":"interop v2","mimeType":"application/json"},"accepts":[{"scheme":"exact","network":"eip155:8453","amount":"10000","asset":"0x833589fCD6eDb6E08f4c7C32D4f71b54bdA02913","payTo":"0x3C44CdDdB6a900fa2b585dd299e03d12FA4293BC","maxTimeoutSeconds":120,"extra":{"name":"USD Coin","version":"2"}}]}"#;

    #[test]
    fn the_official_packages_402_reads_and_writes_back() {
        let v2: PaymentRequired = serde_json::from_str(V2).expect("version 2");
        assert_eq!(v2.accepts[0].domain().map(|domain| domain.name), Some("USD Coin".to_owned()));
        let again = serde_json::to_value(&v2).expect("json");
        assert_eq!(again, serde_json::from_str::<Value>(V2).expect("json"));
        let v1: RequiredV1 = serde_json::from_str(V1).expect("version 1");
        let again = serde_json::to_value(&v1).expect("json");
        assert_eq!(again, serde_json::from_str::<Value>(V1).expect("json"));
        assert!(!again.to_string().contains("null"));
    }

    #[test]
    fn seconds_may_be_written_as_a_fraction_but_not_as_nonsense() {
        let with = |text: &str| {
            let json = V2.replace("\"maxTimeoutSeconds\":120", &format!("\"maxTimeoutSeconds\":{text}"));
            serde_json::from_str::<PaymentRequired>(&json)
                .ok()
                .map(|asked| asked.accepts[0].max_timeout_seconds)
        };
        assert_eq!((with("60.9"), with("0")), (Some(60), Some(0)));
        assert_eq!((with("-1"), with("1e300"), with("\"60\""), with("null")), (None, None, None, None));
    }

    #[test]
    fn an_offer_is_accepted_only_as_it_was_made() {
        let offered = serde_json::from_str::<PaymentRequired>(V2).expect("version 2").accepts.remove(0);
        assert!(offered.is_accepted_by(&offered));
        let mut lower = offered.clone();
        lower.pay_to.make_ascii_lowercase();
        if let Some(Value::Object(extra)) = &mut lower.extra {
            extra.insert("note".to_owned(), Value::Bool(true));
        }
        assert!(offered.is_accepted_by(&lower));
        type Change = fn(&mut Requirements);
        let changes: [Change; 7] = [
            |r| r.amount = "9999".to_owned(),
            |r| r.network = "base".to_owned(),
            |r| r.scheme = "upto".to_owned(),
            |r| r.pay_to.replace_range(40..42, "00"),
            |r| r.asset.replace_range(40..42, "00"),
            |r| r.max_timeout_seconds = 121,
            |r| r.extra = None,
        ];
        for change in changes {
            let mut other = offered.clone();
            change(&mut other);
            assert!(!offered.is_accepted_by(&other), "{other:?}");
        }
    }
}
