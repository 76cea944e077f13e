//! Headers: their names, their base64, and what a request presents.

use std::fmt;

use base64::Engine as _;
use base64::alphabet;
use base64::engine::{DecodePaddingMode, GeneralPurpose, GeneralPurposeConfig, general_purpose};
use serde::Serialize;
use serde::de::DeserializeOwned;

use super::payload::{OrderProof, PaymentV1, PaymentV2};

/// Version 2 asks.
pub const PAYMENT_REQUIRED: &str = "payment-required";
/// Version 2 pays.
pub const PAYMENT_SIGNATURE: &str = "payment-signature";
/// Version 2 answers.
pub const PAYMENT_RESPONSE: &str = "payment-response";
/// This platform's order fields.
pub const X_PAYMENT_REQUIRED: &str = "x-payment-required";
/// Version 1 pays; so do orders.
pub const X_PAYMENT: &str = "x-payment";
/// Version 1 answers.
pub const X_PAYMENT_RESPONSE: &str = "x-payment-response";

/// Longest header value read, bytes.
pub const MAX_HEADER: usize = 64 * 1024;

/// Any of the four variants: either alphabet (told apart by its characters), padded or not.
const TOLERANT: GeneralPurposeConfig = GeneralPurposeConfig::new()
    .with_decode_padding_mode(DecodePaddingMode::Indifferent)
    .with_decode_allow_trailing_bits(true);
const STANDARD_IN: GeneralPurpose = GeneralPurpose::new(&alphabet::STANDARD, TOLERANT);
const URL_SAFE_IN: GeneralPurpose = GeneralPurpose::new(&alphabet::URL_SAFE, TOLERANT);

/// Why a payment header cannot be read.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum BadHeader {
    /// Both payment headers in one request.
    #[error("a request carries at most one of PAYMENT-SIGNATURE and X-PAYMENT")]
    Both,
    /// Too long.
    #[error("{0} is longer than {MAX_HEADER} bytes")]
    TooLong(&'static str),
    /// Not base64 of JSON.
    #[error("{0} must be base64 of a JSON object")]
    NotJson(&'static str),
    /// JSON of another shape.
    #[error("{name}: {why}")]
    Shape {
        /// The header.
        name: &'static str,
        /// What is wrong with it.
        why: String,
    },
}

/// What a request presents as payment.
#[derive(Debug, Clone, PartialEq)]
pub enum Presented {
    /// `exact` in version 1.
    V1(Box<PaymentV1>),
    /// `exact` in version 2.
    V2(Box<PaymentV2>),
    /// A transfer's hash for an order.
    Order(OrderProof),
}

impl Presented {
    /// Reads the payment headers of a request; `None` when there is neither.
    ///
    /// # Errors
    /// [`BadHeader`] when both are there or one cannot be read.
    pub fn read(signature: Option<&str>, x_payment: Option<&str>) -> Result<Option<Self>, BadHeader> {
        match (signature, x_payment) {
            (Some(_), Some(_)) => Err(BadHeader::Both),
            (None, None) => Ok(None),
            (Some(text), None) => Self::version_2(text).map(Some),
            (None, Some(text)) => Self::version_1(text).map(Some),
        }
    }

    fn version_2(text: &str) -> Result<Self, BadHeader> {
        const NAME: &str = "PAYMENT-SIGNATURE";
        let payment: PaymentV2 = read_json(NAME, &decode(NAME, text)?)?;
        if payment.x402_version != 2 {
            return Err(BadHeader::Shape { name: NAME, why: "x402Version must be 2".to_owned() });
        }
        Ok(Self::V2(Box::new(payment)))
    }

    /// A payment of version 1, or the proof of an order: told apart by its fields.
    fn version_1(text: &str) -> Result<Self, BadHeader> {
        const NAME: &str = "X-PAYMENT";
        let json = decode(NAME, text)?;
        let fields: serde_json::Map<String, serde_json::Value> =
            serde_json::from_slice(&json).map_err(|_| BadHeader::NotJson(NAME))?;
        if fields.contains_key("orderId") && !fields.contains_key("payload") {
            return read_json(NAME, &json).map(Self::Order);
        }
        let payment: PaymentV1 = read_json(NAME, &json)?;
        if payment.x402_version != 1 {
            return Err(BadHeader::Shape { name: NAME, why: "x402Version must be 1".to_owned() });
        }
        Ok(Self::V1(Box::new(payment)))
    }
}

impl fmt::Display for Presented {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::V1(_) => "exact (v1)",
            Self::V2(_) => "exact (v2)",
            Self::Order(_) => "order",
        })
    }
}

/// JSON of a header's value.
///
/// # Errors
/// [`BadHeader`] when it is too long, no base64, or other JSON.
pub fn read<T: DeserializeOwned>(name: &'static str, text: &str) -> Result<T, BadHeader> {
    read_json(name, &decode(name, text)?)
}

/// The bytes in a header's value: base64 in either alphabet, padded or not.
///
/// # Errors
/// [`BadHeader`] when it is too long or no base64.
pub fn decode(name: &'static str, text: &str) -> Result<Vec<u8>, BadHeader> {
    let text = text.trim();
    if text.len() > MAX_HEADER {
        return Err(BadHeader::TooLong(name));
    }
    let engine = if text.contains(['-', '_']) { &URL_SAFE_IN } else { &STANDARD_IN };
    engine.decode(text).map_err(|_| BadHeader::NotJson(name))
}

/// A value as a header: base64 in the standard alphabet, padded, which every published reader takes.
pub fn write<T: Serialize>(value: &T) -> String {
    write_json(&serde_json::to_vec(value).expect("the types of this module are plain data"))
}

/// A JSON text as a header.
pub fn write_json(json: &[u8]) -> String {
    general_purpose::STANDARD.encode(json)
}

fn read_json<T: DeserializeOwned>(name: &'static str, json: &[u8]) -> Result<T, BadHeader> {
    // Anything but an object would be read by position.
    if json.iter().find(|byte| !byte.is_ascii_whitespace()) != Some(&b'{') {
        return Err(BadHeader::NotJson(name));
    }
    serde_json::from_slice(json).map_err(|error| {
        if error.is_data() {
            BadHeader::Shape { name, why: error.to_string() }
        } else {
            BadHeader::NotJson(name)
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use base64::engine::general_purpose::{STANDARD, STANDARD_NO_PAD, URL_SAFE, URL_SAFE_NO_PAD};

    /// As `x402-fetch` 1.2.0 sent it.
    const X_PAYMENT_SEEN: &str = "eyJ4NDAyVmVyc2lvbiI6MSwic2NoZW1lIjoiZXhhY3QiLCJuZXR3b3JrIjoiYmFzZSIsInBheWxvYWQiOnsic2lnbmF0dXJlIjoiMHhmYjg5M2E0NjhiMDNhZDI1ZjE0OTQwODE4NWNjYWFkYzRiOGJiNzYzMTE2OTBhNDVlOTkzNDQ4OGY3Yzc2YWE3MjE2MjBlM2RmZTdhYmQ5NTc0MzYyMjc0NmM3M2JmNGQwNDM3NWYwYmNkOGQxMGU4ODVmY2IwYjQzNTg2ODczYzFjIiwiYXV0aG9yaXphdGlvbiI6eyJmcm9tIjoiMHg5MEY3OWJmNkVCMmM0Zjg3MDM2NUU3ODU5ODJFMWYxMDFFOTNiOTA2IiwidG8iOiIweDNDNDRDZERkQjZhOTAwZmEyYjU4NWRkMjk5ZTAzZDEyRkE0MjkzQkMiLCJ2YWx1ZSI6IjEwMDAwIiwidmFsaWRBZnRlciI6IjE3OTUzMjUyODciLCJ2YWxpZEJlZm9yZSI6IjE3OTUzMjYwMDciLCJub25jZSI6IjB4N2Y1MDkzZGNlZGJiOWQ2NDI3MTVkMmYwYTA4ZjhiYmQ2OTdjN2Y3MTk2OTk5MzYyNjFlODA4ZGE0MjU5MzY3YiJ9fX0=";

    #[test]
    fn a_header_as_the_official_client_sends_it_reads_and_writes_back() {
        let Ok(Some(Presented::V1(payment))) = Presented::read(None, Some(X_PAYMENT_SEEN)) else {
            panic!("not version 1");
        };
        assert_eq!(payment.network, "base");
        assert_eq!(write(&payment), X_PAYMENT_SEEN);
    }

    #[test]
    fn all_four_kinds_of_base64_read() {
        let proof = OrderProof {
            order_id: "~~~???>>>ü".to_owned(),
            tx_hash: "0x1".to_owned(),
            payer: "0x2".to_owned(),
            signature: None,
        };
        let json = serde_json::to_vec(&proof).expect("json");
        for text in [
            STANDARD.encode(&json),
            STANDARD_NO_PAD.encode(&json),
            URL_SAFE.encode(&json),
            URL_SAFE_NO_PAD.encode(&json),
            format!("  {}", STANDARD.encode(&json)),
        ] {
            assert_eq!(
                Presented::read(None, Some(&text)),
                Ok(Some(Presented::Order(proof.clone()))),
                "{text}"
            );
        }
    }

    #[test]
    fn what_is_no_payment_is_refused() {
        assert_eq!(Presented::read(None, None), Ok(None));
        assert_eq!(Presented::read(Some(X_PAYMENT_SEEN), Some(X_PAYMENT_SEEN)), Err(BadHeader::Both));
        let json = |text: &str| STANDARD.encode(text);
        for bad in ["", "%%%", &json("[]"), &json("1"), &json("{"), &json("{}"), &json(r#"{"orderId":1}"#)] {
            assert!(Presented::read(None, Some(bad)).is_err(), "{bad}");
            assert!(Presented::read(Some(bad), None).is_err(), "{bad}");
        }
        let other = String::from_utf8(decode("X-PAYMENT", X_PAYMENT_SEEN).expect("base64")).expect("text");
        let other = json(&other.replace("\"x402Version\":1", "\"x402Version\":3"));
        assert!(matches!(Presented::read(None, Some(&other)), Err(BadHeader::Shape { .. })));
        assert_eq!(
            Presented::read(None, Some(&"A".repeat(MAX_HEADER + 1))),
            Err(BadHeader::TooLong("X-PAYMENT"))
        );
    }
}
