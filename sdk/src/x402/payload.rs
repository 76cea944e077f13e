//! What a payer presents and what a seller answers after settling.

use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::base_units;
use super::requirement::{Requirements, Resource};

/// EIP-3009's `TransferWithAuthorization` as it is sent: numbers as decimal texts.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Authorization {
    /// Who pays.
    pub from: String,
    /// Who is paid.
    pub to: String,
    /// Base units.
    pub value: String,
    /// Not valid until after this Unix time, seconds.
    pub valid_after: String,
    /// Not valid at or after this Unix time, seconds.
    pub valid_before: String,
    /// `0x` and 32 bytes.
    pub nonce: String,
}

impl Authorization {
    /// The value in base units; `None` when it is no number or above `u128`.
    pub fn amount(&self) -> Option<u128> {
        base_units(&self.value)
    }
}

/// The payload of `exact` on EVM chains by EIP-3009.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ExactPayload {
    /// `0x` and 65 bytes; contracts as payers have other lengths.
    pub signature: String,
    /// What is signed.
    pub authorization: Authorization,
}

/// Version 1: the content of `X-PAYMENT`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct PaymentV1 {
    /// 1.
    pub x402_version: u8,
    /// Of the offer that is accepted.
    pub scheme: String,
    /// Of the offer that is accepted.
    pub network: String,
    /// The signed transfer.
    pub payload: ExactPayload,
}

/// Version 2: the content of `PAYMENT-SIGNATURE`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct PaymentV2 {
    /// 2.
    pub x402_version: u8,
    /// What is bought, as the seller named it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub resource: Option<Resource>,
    /// The offer that is accepted.
    pub accepted: Requirements,
    /// The signed transfer.
    pub payload: ExactPayload,
    /// What extensions say, by name.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub extensions: Option<Value>,
}

/// This platform's proof in `X-PAYMENT`: a transfer that is on the chain already.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct OrderProof {
    /// Of the 402.
    pub order_id: String,
    /// The transfer.
    pub tx_hash: String,
    /// Its sender.
    pub payer: String,
    /// EIP-191 by the payer over [`order_message`]; not needed when the calldata names the order.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub signature: Option<String>,
}

/// The text by which a payer ties a transfer to an order.
pub fn order_message(order_id: &str, tx_hash: &str, chain_id: u64) -> String {
    format!("Otonix order {order_id} paid by {tx_hash} on eip155:{chain_id}")
}

/// The content of `PAYMENT-RESPONSE` (v2) and `X-PAYMENT-RESPONSE` (v1), and a facilitator's answer to `/settle`.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct SettlementResponse {
    /// Whether money moved.
    pub success: bool,
    /// The transaction's hash; empty when there is none.
    #[serde(default, deserialize_with = "null_is_default")]
    pub transaction: String,
    /// As in the offer.
    #[serde(default, deserialize_with = "null_is_default")]
    pub network: String,
    /// Who paid.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub payer: Option<String>,
    /// A slug; opaque to clients.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub error_reason: Option<String>,
    /// For people.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub error_message: Option<String>,
    /// What extensions say, by name.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub extensions: Option<Value>,
}

fn null_is_default<'de, D: serde::Deserializer<'de>>(deserializer: D) -> Result<String, D::Error> {
    Option::<String>::deserialize(deserializer).map(Option::unwrap_or_default)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_payment_of_the_official_client_reads_and_writes_back() {
        let v2 = r#"{"x402Version":2,"payload":{"authorization":{"from":"0x90F79bf6EB2c4f870365E785982E1f101E93b906","to":"0x3C44CdDdB6a900fa2b585dd299e03d12FA4293BC","value":"10000","validAfter":"0","validBefore":"1795326006","nonce":"0xf116796e52d37aaf26c1c5434691fdaed4865a2870fb3311efc50639f0e9984e"},"signature":"0xaf451c57c7f89a7572a02165a646ff029f66b15f89dcaf36efb736dc175f287e2b729dfc1544bca83b7153dead58239bfff97cffb532c1b919a502c4b1e513791b"},"resource":{"url":"http://merchant.test/v2/paid","description":"interop v2","mimeType":"application/json"},"accepted":{"scheme":"exact","network":"eip155:8453","amount":"10000","asset":"0x833589fCD6eDb6E08f4c7C32D4f71b54bdA02913","payTo":"0x3C44CdDdB6a900fa2b585dd299e03d12FA4293BC","maxTimeoutSeconds":120,"extra":{"name":"USD Coin","version":"2"}}}"#;
        let read: PaymentV2 = serde_json::from_str(v2).expect("version 2");
        assert_eq!(read.payload.authorization.amount(), Some(10_000));
        let again = serde_json::to_value(&read).expect("json");
        assert_eq!(again, serde_json::from_str::<Value>(v2).expect("json"));
        let sparse = v2.replace(
            r#""resource":{"url":"http://merchant.test/v2/paid","description":"interop v2","mimeType":"application/json"}"#,
            r#""resource":null,"extensions":null"#,
        );
        assert!(serde_json::from_str::<PaymentV2>(&sparse).expect("nulls are fine").resource.is_none());
    }

    #[test]
    fn a_settlement_answer_reads_with_gaps() {
        let full: SettlementResponse = serde_json::from_str(
            r#"{"success":true,"payer":"0x90F7","transaction":"0xc3bc","network":"eip155:8453"}"#,
        )
        .expect("reads");
        assert!(full.success && full.transaction == "0xc3bc");
        let refused: SettlementResponse = serde_json::from_str(
            r#"{"success":false,"transaction":null,"errorReason":"settlement_pending","network":null}"#,
        )
        .expect("reads");
        assert_eq!(
            (refused.transaction.as_str(), refused.error_reason.as_deref()),
            ("", Some("settlement_pending"))
        );
    }

    #[test]
    fn the_order_message_is_the_contracts() {
        assert_eq!(order_message("o1", "0xab", 8453), "Otonix order o1 paid by 0xab on eip155:8453");
    }
}
