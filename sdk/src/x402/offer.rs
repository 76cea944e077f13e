//! A stranger's 402 as a payer reads it: every offer in one shape, whatever version it came in, none trusted.
//!
//! An entry that cannot be read is left out; it never hides the others. Each offer keeps its source text, because
//! version 2 wants the accepted offer back verbatim.

use serde::Deserialize;
use serde_json::Number;
use serde_json::value::RawValue;

use super::requirement::{TokenDomain, seconds_of};
use super::{EXACT, base_units, headers, network};

/// More offers than this are not looked at.
const MAX_OFFERS: usize = 64;
/// Longest order id, by the contract.
const MAX_ORDER_ID: usize = 512;

/// In which dialect an offer is paid.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Protocol {
    /// `X-PAYMENT`.
    V1,
    /// `PAYMENT-SIGNATURE`.
    V2,
}

/// One way to pay.
#[derive(Debug, Clone)]
pub struct Offer {
    /// How it is paid.
    pub protocol: Protocol,
    /// [`EXACT`] or a scheme that is not spoken here.
    pub scheme: String,
    /// As written.
    pub network: String,
    /// The chain, when it is an EVM chain.
    pub chain_id: Option<u64>,
    /// Base units.
    pub amount: u128,
    /// The token's contract.
    pub asset: String,
    /// Who is paid.
    pub pay_to: String,
    /// How long the payment may be valid, seconds.
    pub max_timeout_secs: u64,
    /// The token's domain as claimed.
    pub domain: Option<TokenDomain>,
    /// How the token moves, when it is said; EIP-3009 otherwise.
    pub transfer_method: Option<String>,
    /// When the seller settles, when it is not the usual way.
    pub payment_flow: Option<String>,
    /// The source text.
    pub verbatim: String,
}

impl Offer {
    /// Whether it is a plain signed transfer: `exact` by EIP-3009 in the usual flow.
    pub fn is_plain_exact(&self) -> bool {
        let usual = |field: &Option<String>, value: &str| field.as_deref().is_none_or(|text| text == value);
        self.scheme == EXACT
            && usual(&self.transfer_method, "eip3009")
            && usual(&self.payment_flow, "authorization")
    }
}

/// This platform's offer: a transfer on the chain, proved by its hash.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OrderOffer {
    /// Opaque.
    pub order_id: String,
    /// Base units.
    pub amount: u128,
    /// Who is paid.
    pub treasury: String,
    /// The token's contract.
    pub asset: String,
    /// The chain.
    pub chain_id: u64,
    /// RFC 3339; a payment mined until then is honoured later.
    pub expires_at: String,
}

impl OrderOffer {
    /// When it expires, Unix seconds; `None` when it does not say.
    pub fn expires_unix(&self) -> Option<u64> {
        let at = chrono::DateTime::parse_from_rfc3339(&self.expires_at).ok()?;
        u64::try_from(at.timestamp()).ok()
    }
}

/// Everything a 402 offers.
#[derive(Debug, Clone, Default)]
pub struct Required {
    /// Both versions.
    pub offers: Vec<Offer>,
    /// This platform's order.
    pub order: Option<OrderOffer>,
    /// Version 2's resource, verbatim.
    pub resource: Option<String>,
    /// Version 2's extensions, verbatim; sent back as they came.
    pub extensions: Option<String>,
    /// Why, in the seller's words.
    pub error: Option<String>,
}

#[derive(Deserialize)]
struct AskedV2 {
    #[serde(rename = "x402Version")]
    version: Number,
    #[serde(default)]
    error: Option<String>,
    #[serde(default)]
    resource: Option<Box<RawValue>>,
    #[serde(default)]
    accepts: Vec<Box<RawValue>>,
    #[serde(default)]
    extensions: Option<Box<RawValue>>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Entry {
    scheme: String,
    network: String,
    amount: Option<String>,
    max_amount_required: Option<String>,
    asset: String,
    pay_to: String,
    max_timeout_seconds: Number,
    extra: Option<Extra>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Extra {
    name: Option<String>,
    version: Option<String>,
    asset_transfer_method: Option<String>,
    payment_flow: Option<String>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct OrderFields {
    order_id: String,
    max_amount_required: String,
    treasury: String,
    asset: String,
    chain_id: u64,
    #[serde(default)]
    expires_at: String,
}

impl Required {
    /// Reads a 402: the headers `PAYMENT-REQUIRED` and `X-Payment-Required`, and the body.
    pub fn read(payment_required: Option<&str>, x_payment_required: Option<&str>, body: &[u8]) -> Self {
        let mut required = Self::default();
        if let Some(text) = payment_required
            && let Ok(json) = headers::decode("PAYMENT-REQUIRED", text)
        {
            required.take(&json, Protocol::V2);
        }
        required.take(body, Protocol::V1);
        let header = x_payment_required.and_then(|text| headers::decode("X-Payment-Required", text).ok());
        if let Some(json) = &header {
            // The dialect of others: version 1's body in this header.
            required.take(json, Protocol::V1);
        }
        required.order = header.as_deref().and_then(read_order).or_else(|| read_order(body));
        required
    }

    /// Takes the offers of one place. Without the header, version 2 may also come in the body.
    fn take(&mut self, json: &[u8], expected: Protocol) {
        let Ok(asked) = serde_json::from_slice::<AskedV2>(json) else { return };
        let protocol = match (asked.version.as_u64(), expected) {
            (Some(2), _) => Protocol::V2,
            (Some(1), Protocol::V1) => Protocol::V1,
            _ => return,
        };
        if self.offers.iter().any(|offer| offer.protocol == protocol) {
            return;
        }
        let offers = asked.accepts.iter().take(MAX_OFFERS).filter_map(|entry| read_entry(entry, protocol));
        self.offers.extend(offers);
        self.error = self.error.take().or(asked.error);
        if protocol == Protocol::V2 {
            self.resource = asked.resource.map(|raw| raw.get().to_owned());
            self.extensions = asked.extensions.map(|raw| raw.get().to_owned());
        }
    }
}

fn read_entry(raw: &RawValue, protocol: Protocol) -> Option<Offer> {
    let entry: Entry = serde_json::from_str(raw.get()).ok()?;
    let amount = match protocol {
        Protocol::V1 => entry.max_amount_required?,
        Protocol::V2 => entry.amount?,
    };
    let (domain, transfer_method, payment_flow) = match entry.extra {
        Some(Extra { name, version, asset_transfer_method, payment_flow }) => {
            let domain = name.zip(version).map(|(name, version)| TokenDomain { name, version });
            (domain, asset_transfer_method, payment_flow)
        }
        None => (None, None, None),
    };
    Some(Offer {
        protocol,
        scheme: entry.scheme,
        chain_id: network::chain_id(&entry.network),
        network: entry.network,
        amount: base_units(&amount)?,
        asset: entry.asset,
        pay_to: entry.pay_to,
        max_timeout_secs: seconds_of(&entry.max_timeout_seconds)?,
        domain,
        transfer_method,
        payment_flow,
        verbatim: raw.get().to_owned(),
    })
}

fn read_order(json: &[u8]) -> Option<OrderOffer> {
    let fields: OrderFields = serde_json::from_slice(json).ok()?;
    if fields.order_id.is_empty() || fields.order_id.len() > MAX_ORDER_ID {
        return None;
    }
    Some(OrderOffer {
        order_id: fields.order_id,
        amount: base_units(&fields.max_amount_required)?,
        treasury: fields.treasury,
        asset: fields.asset,
        chain_id: fields.chain_id,
        expires_at: fields.expires_at,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// As `@x402/express` 2.27.0 sent it.
    const SEEN_V2: &str = "eyJ4NDAyVmVyc2lvbiI6MiwiZXJyb3IiOiJQYXltZW50IHJlcXVpcmVkIiwicmVzb3VyY2UiOnsidXJsIjoiaHR0cDovLzEyNy4wLjAuMTozMjc5Ny9kdWFsL3BhaWQiLCJkZXNjcmlwdGlvbiI6ImludGVyb3AgdjIiLCJtaW1lVHlwZSI6ImFwcGxpY2F0aW9uL2pzb24ifSwiYWNjZXB0cyI6W3sic2NoZW1lIjoiZXhhY3QiLCJuZXR3b3JrIjoiZWlwMTU1Ojg0NTMiLCJhbW91bnQiOiIxMDAwMCIsImFzc2V0IjoiMHg4MzM1ODlmQ0Q2ZURiNkUwOGY0YzdDMzJENGY3MWI1NGJkQTAyOTEzIiwicGF5VG8iOiIweDNDNDRDZERkQjZhOTAwZmEyYjU4NWRkMjk5ZTAzZDEyRkE0MjkzQkMiLCJtYXhUaW1lb3V0U2Vjb25kcyI6MTIwLCJleHRyYSI6eyJuYW1lIjoiVVNEIENvaW4iLCJ2ZXJzaW9uIjoiMiJ9fV19";
    const SEEN_V1: &str = r#"{"x402Version":1,"error":"X-PAYMENT header is required","accepts":[{"scheme":"exact","network":"base","maxAmountRequired":"10000","resource":"http://merchant.test/dual/paid","description":"interop dual","mimeType":"application/json","payTo":"0x3C44CdDdB6a900fa2b585dd299e03d12FA4293BC","maxTimeoutSeconds":120,"asset":"0x833589fCD6eDb6E08f4c7C32D4f71b54bdA02913","extra":{"name":"USD Coin","version":"2"}}]}"#;

    #[test]
    fn both_versions_of_one_402_are_read() {
        let required = Required::read(Some(SEEN_V2), None, SEEN_V1.as_bytes());
        let [two, one] = &required.offers[..] else { panic!("{required:?}") };
        assert_eq!((two.protocol, one.protocol), (Protocol::V2, Protocol::V1));
        for offer in [two, one] {
            assert_eq!((offer.chain_id, offer.amount, offer.max_timeout_secs), (Some(8453), 10_000, 120));
            assert_eq!(offer.domain.as_ref().map(|domain| domain.name.as_str()), Some("USD Coin"));
            assert!(offer.is_plain_exact());
        }
        assert!(two.verbatim.starts_with(r#"{"scheme":"exact","network":"eip155:8453","amount":"10000""#));
        assert!(required.resource.is_some_and(|text| text.contains("/dual/paid")));
        assert_eq!(required.order, None);
    }

    #[test]
    fn an_unreadable_offer_hides_no_other() {
        let strange = SEEN_V1.replace(
            r#""accepts":["#,
            r#""accepts":[1,{"scheme":"exact"},{"scheme":"upto","network":"solana","maxAmountRequired":"-1","payTo":"x","maxTimeoutSeconds":1,"asset":"y"},{"scheme":"exact","network":"solana","maxAmountRequired":"1","payTo":"x","maxTimeoutSeconds":1,"asset":"y","extra":null},"#,
        );
        let required = Required::read(Some("%%%"), Some("%%%"), strange.as_bytes());
        let chains: Vec<_> = required.offers.iter().map(|offer| offer.chain_id).collect();
        assert_eq!(chains, [None, Some(8453)]);
    }

    #[test]
    fn other_ways_to_move_a_token_are_not_plain_exact() {
        for extra in [r#""assetTransferMethod":"permit2""#, r#""paymentFlow":"upfront""#] {
            let json = SEEN_V1.replace(r#""name":"USD Coin""#, &format!(r#""name":"USD Coin",{extra}"#));
            let required = Required::read(None, None, json.as_bytes());
            assert!(!required.offers[0].is_plain_exact(), "{extra}");
        }
    }

    #[test]
    fn an_order_comes_in_the_header_or_the_body() {
        let order = r#"{"orderId":"o1","amountUSDC":"0.01","maxAmountRequired":"10000","treasury":"0xT","asset":"0xA","network":"eip155:8453","chainId":8453,"expiresAt":"2026-11-22T12:00:00Z"}"#;
        let header = headers::write_json(order.as_bytes());
        let expected = OrderOffer {
            order_id: "o1".to_owned(),
            amount: 10_000,
            treasury: "0xT".to_owned(),
            asset: "0xA".to_owned(),
            chain_id: 8453,
            expires_at: "2026-11-22T12:00:00Z".to_owned(),
        };
        assert_eq!(Required::read(None, Some(&header), b"").order.as_ref(), Some(&expected));
        assert_eq!(Required::read(None, None, order.as_bytes()).order.as_ref(), Some(&expected));
        let long = order.replace("o1", &"o".repeat(MAX_ORDER_ID + 1));
        assert_eq!(Required::read(None, None, long.as_bytes()).order, None);
        assert!(Required::read(None, None, b"not json at all").offers.is_empty());
    }
}
