//! From a chosen offer to signed bytes, and the headers that carry them.

use rand::TryRngCore as _;
use rand::rngs::OsRng;
use serde_json::json;
use serde_json::value::RawValue;

use super::policy::{Choice, Way};
use super::record::{Raw, Signature, Token};
use crate::chain::Hash;
use crate::wallet::{EvmAddress, Gas, Wallet};
use crate::x402::eip3009::{self, Domain, Transfer};
use crate::x402::{ExactPayload, Offer, OrderOffer, OrderProof, Protocol, Required, headers};

/// Signs what was chosen; `None` when the choice names no offer of these.
pub(super) fn sign(
    wallet: &Wallet,
    token: &Token,
    required: &Required,
    choice: &Choice,
    now: u64,
    gas: Option<&Gas>,
) -> Option<Signature> {
    let value = u128::try_from(choice.amount.micros()).ok()?;
    match choice.way {
        Way::Exact { offer, validity } => {
            let offer = required.offers.get(offer)?;
            let transfer = Transfer {
                from: wallet.address(),
                to: choice.pay_to,
                value,
                valid_after: 0,
                valid_before: now.checked_add(validity)?,
                nonce: random_word(),
            };
            Some(exact(wallet, token, required, offer, &transfer))
        }
        Way::Order => {
            let order = required.order.as_ref()?;
            let transaction = transfer(wallet, token.asset, gas?, choice.pay_to, value, order);
            Some(Signature::Order {
                order_id: order.order_id.clone(),
                expires: order.expires_unix()?,
                nonce: gas?.nonce,
                transactions: vec![transaction],
            })
        }
    }
}

fn exact(
    wallet: &Wallet,
    token: &Token,
    required: &Required,
    offer: &Offer,
    transfer: &Transfer,
) -> Signature {
    let domain = Domain {
        name: token.name.clone(),
        version: token.version.clone(),
        chain_id: token.chain_id,
        asset: token.asset,
    };
    let payload = ExactPayload {
        signature: eip3009::write_hex(&wallet.sign_authorization(&domain, transfer)),
        authorization: transfer.authorization(),
    };
    let (header, value) = match offer.protocol {
        Protocol::V1 => (headers::X_PAYMENT, version_1(offer, &payload)),
        Protocol::V2 => (headers::PAYMENT_SIGNATURE, version_2(required, offer, &payload)),
    };
    Signature::Exact {
        header: header.to_owned(),
        value,
        nonce: Hash(transfer.nonce),
        valid_before: transfer.valid_before,
    }
}

fn version_1(offer: &Offer, payload: &ExactPayload) -> String {
    headers::write(&json!({
        "x402Version": 1,
        "scheme": offer.scheme,
        "network": offer.network,
        "payload": payload,
    }))
}

/// The accepted offer, the resource and the extensions go back as they came, to the letter.
fn version_2(required: &Required, offer: &Offer, payload: &ExactPayload) -> String {
    #[derive(serde::Serialize)]
    struct Sent<'a> {
        #[serde(rename = "x402Version")]
        version: u8,
        payload: &'a ExactPayload,
        #[serde(skip_serializing_if = "Option::is_none")]
        resource: Option<Box<RawValue>>,
        accepted: Option<Box<RawValue>>,
        #[serde(skip_serializing_if = "Option::is_none")]
        extensions: Option<Box<RawValue>>,
    }
    let raw = |text: &String| RawValue::from_string(text.clone()).ok().filter(|raw| raw.get() != "null");
    headers::write(&Sent {
        version: 2,
        payload,
        resource: required.resource.as_ref().and_then(raw),
        accepted: raw(&offer.verbatim),
        extensions: required.extensions.as_ref().and_then(raw),
    })
}

fn transfer(
    wallet: &Wallet,
    asset: EvmAddress,
    gas: &Gas,
    to: EvmAddress,
    value: u128,
    order: &OrderOffer,
) -> Raw {
    let signed = wallet.sign_transfer(gas, asset, to, value, Some(eip3009::order_tag(&order.order_id)));
    raw_of(&signed.raw, signed.hash, gas, false)
}

/// A signed transaction as it is journaled.
pub(super) fn raw_of(raw: &[u8], hash: Hash, gas: &Gas, void: bool) -> Raw {
    Raw {
        hash,
        raw: hex::encode(raw),
        gas_limit: gas.limit,
        max_fee: gas.max_fee,
        priority_fee: gas.priority_fee,
        void,
    }
}

/// The header that proves an order. Of a wallet that is no longer here the calldata has to do.
pub(super) fn proof(
    wallet: &Wallet,
    payer: EvmAddress,
    order_id: &str,
    tx_hash: Hash,
    chain_id: u64,
) -> (String, String) {
    let tx_hash = tx_hash.to_string();
    let own = wallet.address() == payer;
    let signature = own.then(|| wallet.sign_order_proof(order_id, &tx_hash, chain_id));
    let proof = OrderProof { order_id: order_id.to_owned(), tx_hash, payer: payer.to_string(), signature };
    (headers::X_PAYMENT.to_owned(), headers::write(&proof))
}

fn random_word() -> [u8; 32] {
    let mut word = [0; 32];
    OsRng.try_fill_bytes(&mut word).expect("the system always has random bytes");
    word
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::money::MicroUsd;
    use crate::wallet::parse_address;
    use crate::x402::Presented;

    const PAYEE: &str = "0x3C44CdDdB6a900fa2b585dd299e03d12FA4293BC";
    const ASSET: &str = "0x833589fCD6eDb6E08f4c7C32D4f71b54bdA02913";

    fn address(text: &str) -> EvmAddress {
        parse_address(text).expect("an address")
    }

    fn token() -> Token {
        Token { chain_id: 8453, asset: address(ASSET), name: "USD Coin".to_owned(), version: "2".to_owned() }
    }

    fn signed(required: &Required, way: Way) -> (EvmAddress, String, String, u64) {
        let wallet = Wallet::generate();
        let choice = Choice { amount: MicroUsd::from_micros(10_000), pay_to: address(PAYEE), way };
        let signature = sign(&wallet, &token(), required, &choice, 1_000, None).expect("signs");
        let Signature::Exact { header, value, valid_before, .. } = signature else { panic!("an order") };
        (wallet.address(), header, value, valid_before)
    }

    fn check(payer: EvmAddress, payload: &ExactPayload) {
        let transfer = Transfer::read(&payload.authorization).expect("an authorization");
        assert_eq!((transfer.from, transfer.to, transfer.value), (payer, address(PAYEE), 10_000));
        assert_eq!((transfer.valid_after, transfer.valid_before), (0, 1_060));
        let token = token();
        let domain = Domain { name: token.name, version: token.version, chain_id: 8453, asset: token.asset };
        let signature = eip3009::read_signature(&payload.signature).expect("low s");
        assert_eq!(eip3009::recover(&transfer.digest(&domain), &signature), Ok(payer));
    }

    #[test]
    fn a_payment_of_version_2_sends_the_offer_back_to_the_letter() {
        let offer = format!(
            r#"{{"network":"eip155:8453","scheme":"exact","amount":"10000","asset":"{ASSET}","payTo":"{PAYEE}","maxTimeoutSeconds":60.0,"extra":{{"version":"2","name":"USD Coin","x":1e2}}}}"#
        );
        let json = format!(
            r#"{{"x402Version":2,"resource":{{"url":"http://m.test/a","z":null}},"extensions":null,"accepts":[{offer}]}}"#
        );
        let required = Required::read(Some(&headers::write_json(json.as_bytes())), None, b"{}");
        let (payer, header, value, _) = signed(&required, Way::Exact { offer: 0, validity: 60 });
        assert_eq!(header, headers::PAYMENT_SIGNATURE);
        let text = String::from_utf8(headers::decode("x", &value).expect("base64")).expect("text");
        assert!(text.contains(&format!(r#""accepted":{offer}"#)), "{text}");
        assert!(
            text.contains(r#""resource":{"url":"http://m.test/a","z":null}"#) && !text.contains("extensions")
        );
        let Ok(Some(Presented::V2(payment))) = Presented::read(Some(&value), None) else { panic!("{text}") };
        check(payer, &payment.payload);
    }

    #[test]
    fn a_payment_of_version_1_names_scheme_and_network() {
        let json = format!(
            r#"{{"x402Version":1,"accepts":[{{"scheme":"exact","network":"base","maxAmountRequired":"10000","resource":"r","payTo":"{PAYEE}","maxTimeoutSeconds":60,"asset":"{ASSET}"}}]}}"#
        );
        let required = Required::read(None, None, json.as_bytes());
        let (payer, header, value, _) = signed(&required, Way::Exact { offer: 0, validity: 60 });
        assert_eq!(header, headers::X_PAYMENT);
        let Ok(Some(Presented::V1(payment))) = Presented::read(None, Some(&value)) else { panic!("{value}") };
        assert_eq!((payment.scheme.as_str(), payment.network.as_str()), ("exact", "base"));
        check(payer, &payment.payload);
    }
}
