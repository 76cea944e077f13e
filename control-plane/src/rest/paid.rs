//! The gate of everything that is paid: reads what a request presents, asks for a payment with a 402 that every kind
//! of client understands, and answers who has paid, a second time with the same bytes.

use std::sync::Arc;

use axum::body::Body;
use axum::response::IntoResponse as _;
use chrono::SecondsFormat;
use http::header::{CACHE_CONTROL, HOST};
use http::{HeaderMap, HeaderName, HeaderValue};
use otonix_sdk::error::ErrorCode;
use otonix_sdk::x402::network::{caip2, v1_name};
use otonix_sdk::x402::{
    EXACT, PaymentRequired, Presented, Requirements, RequirementsV1, Resource, SettlementResponse, headers,
};
use serde_json::{Map, Value, json};
use tokio::time::Instant;

use crate::app::App;
use crate::demand::Demand;
use crate::error::Error;
use crate::rest::Answered;
use crate::rest::answer::{kept, kept_as, replay};
use crate::rest::call::Call;
use crate::rest::handed::Handed;
use crate::rest::problem;
use crate::service::payments::{self, Asked, Paid, Sale, order_id};
use crate::service::purchases::secrets;

/// Runs a route that is paid. `offer` checks everything but the payment and says what is sold.
///
/// # Errors
/// 402 with what is asked; whatever `offer` and the payment come to.
pub async fn gate<F, H>(call: Call, offer: H) -> Answered
where
    H: FnOnce(Arc<Call>) -> F,
    F: Future<Output = Result<Sale, Error>>,
{
    gate_of(call, "", offer).await
}

/// The same for a route that belongs to its key's owner: what one owner has paid answers no other.
///
/// # Errors
/// 401 without a key; as [`gate`].
pub async fn gate_of_owner<F, H>(call: Call, offer: H) -> Answered
where
    H: FnOnce(Arc<Call>) -> F,
    F: Future<Output = Result<Sale, Error>>,
{
    let owner = format!("owner {}", call.caller.key()?.owner);
    gate_of(call, &owner, offer).await
}

async fn gate_of<F, H>(call: Call, principal: &str, offer: H) -> Answered
where
    H: FnOnce(Arc<Call>) -> F,
    F: Future<Output = Result<Sale, Error>>,
{
    payments::parts(&call.app)?;
    let presented = presented(&call.headers)?;
    let asked = asked(&call, principal);
    let call = Arc::new(call);
    if let Some(presented) = &presented
        && let Some(paid) = payments::repeat(&call.app, &asked, presented).await?
    {
        return answer(&call.app, paid).await;
    }
    if let Some(idem) = asked.idem {
        // A refusal that was kept says nothing of a payment that comes now.
        if let Some(stored) = payments::kept(&call.app, idem).await?
            && (presented.is_none() || stored.status < 400)
        {
            return Ok(replay(Some(idem), stored));
        }
        if let Some(paid) = payments::under_way(&call.app, &asked, idem).await? {
            return answer(&call.app, paid).await;
        }
    }
    let sale = match offer(Arc::clone(&call)).await {
        Ok(sale) => sale,
        Err(error) => {
            if let Some(presented) = presented.as_ref().filter(|_| problem::is_refusal(&error)) {
                // The same payment, presented twice at once, may be what stands in its own way.
                let found = match payments::repeat(&call.app, &asked, presented).await? {
                    Some(paid) => Some(paid),
                    None => payments::give_back(&call.app, &asked, presented, &error).await?,
                };
                if let Some(paid) = found {
                    return answer(&call.app, paid).await;
                }
            }
            return Err(error);
        }
    };
    let paid = payments::sell(&call.app, &asked, &sale, presented.as_ref()).await?;
    answer(&call.app, paid).await
}

fn presented(from: &HeaderMap) -> Result<Option<Presented>, Error> {
    let bad = |detail: String| Error::Malformed { code: ErrorCode::InvalidPayment, detail };
    let header = |name: &'static str| -> Result<Option<&str>, Error> {
        let mut values = from.get_all(name).iter();
        let (first, more) = (values.next(), values.next());
        if more.is_some() {
            return Err(bad(format!("{name} must be sent once")));
        }
        let text = first.map(|value| value.to_str().map_err(|_| bad(format!("{name} must be ASCII"))));
        text.transpose()
    };
    let (signature, x_payment) = (header(headers::PAYMENT_SIGNATURE)?, header(headers::X_PAYMENT)?);
    Presented::read(signature, x_payment).map_err(|why| bad(why.to_string()))
}

/// The request as payments are tied to it. Routes that belong to somebody name whom.
fn asked(call: &Call, principal: &str) -> Asked {
    let target = call.uri.path_and_query().map_or("/", |target| target.as_str());
    let base = match &call.app.settings.public_url {
        Some(url) => url.clone(),
        None => {
            let scheme = if call.app.settings.tls.is_some() { "https" } else { "http" };
            let host = call.headers.get(HOST).and_then(|host| host.to_str().ok());
            let host = host.or_else(|| call.uri.authority().map(|authority| authority.as_str()));
            let sane = |host: &&str| {
                host.len() <= 256 && host.bytes().all(|b| b.is_ascii_alphanumeric() || b".-:[]_".contains(&b))
            };
            match host.filter(sane) {
                Some(host) => format!("{scheme}://{host}"),
                None => format!("{scheme}://{}", call.app.settings.listen),
            }
        }
    };
    Asked {
        binding: order_id::binding(principal, call.method.as_str(), target, &call.body),
        resource: format!("{} {}", call.method, call.uri.path()),
        url: format!("{base}{target}"),
        idem: call.idem(),
        caller: call.caller,
        since: Instant::now(),
    }
}

/// The answer to who has paid: the kept body, and the receipt as each version reads it.
async fn answer(app: &Arc<App>, paid: Paid) -> Answered {
    let chain = paid.chain_id;
    if !(200..300).contains(&paid.answer.status) {
        // It was paid and could not be delivered: what is kept says why, whatever was answered before it was paid.
        let kept: Value = serde_json::from_str(&paid.answer.body).unwrap_or_default();
        let text = |name: &str| kept.get(name).and_then(Value::as_str).unwrap_or_default().to_owned();
        let code = ErrorCode::parse(&text("code")).unwrap_or(ErrorCode::Conflict);
        return Ok(Error::conflict(code, text("detail")).into_response());
    }
    let settlement = |network: String| SettlementResponse {
        success: true,
        transaction: paid.tx_hash.clone(),
        network,
        payer: Some(paid.payer.clone()),
        ..SettlementResponse::default()
    };
    let revealed = secrets::reveal(app, paid.sale, paid.answer.body).await;
    let mut response = match revealed.right {
        None => kept(paid.answer.status, revealed.body),
        Some(right) => {
            let app = Arc::clone(app);
            let body = Handed::new(revealed.body.into(), move |sent| {
                drop(tokio::spawn(secrets::end(app, right, sent)));
            });
            kept_as(paid.answer.status, Body::new(body))
        }
    };
    let to = response.headers_mut();
    to.insert(CACHE_CONTROL, HeaderValue::from_static("private"));
    let v1 = headers::write(&settlement(v1_name(chain).map_or_else(|| caip2(chain), str::to_owned)));
    let v2 = headers::write(&settlement(caip2(chain)));
    match paid.version {
        Some(2) => put(to, headers::PAYMENT_RESPONSE, &v2),
        Some(_) => put(to, headers::X_PAYMENT_RESPONSE, &v1),
        None => {
            put(to, headers::PAYMENT_RESPONSE, &v2);
            put(to, headers::X_PAYMENT_RESPONSE, &v1);
        }
    }
    Ok(response)
}

fn put(headers: &mut HeaderMap, name: &'static str, value: &str) {
    if let Ok(value) = HeaderValue::from_str(value) {
        headers.insert(HeaderName::from_static(name), value);
    }
}

/// The fields that a 402 has beside those of an error.
pub fn fields(demand: &Demand) -> Map<String, Value> {
    let mut fields = order_fields(demand);
    fields.insert("x402Version".to_owned(), Value::from(1));
    let accepts: Vec<Value> =
        version_1(demand).and_then(|offer| serde_json::to_value(offer).ok()).into_iter().collect();
    fields.insert("accepts".to_owned(), Value::from(accepts));
    fields
}

fn order_fields(demand: &Demand) -> Map<String, Value> {
    let expires_at = demand.expires_at.to_rfc3339_opts(SecondsFormat::AutoSi, true);
    let fields = [
        ("orderId", Value::from(demand.order_id.as_str())),
        ("amountUSDC", Value::from(demand.price.to_string())),
        ("maxAmountRequired", Value::from(demand.price.micros().to_string())),
        ("treasury", Value::from(demand.treasury.as_str())),
        ("asset", Value::from(demand.asset.as_str())),
        ("network", Value::from(caip2(demand.chain_id))),
        ("chainId", Value::from(demand.chain_id)),
        ("expiresAt", Value::from(expires_at)),
    ];
    fields.into_iter().map(|(name, value)| (name.to_owned(), value)).collect()
}

/// The offer of version 1; `None` when signed payments are not taken or version 1 has no name for the chain: one
/// unknown name would make its clients refuse the whole answer.
fn version_1(demand: &Demand) -> Option<RequirementsV1> {
    let exact = demand.exact.as_ref()?;
    Some(RequirementsV1 {
        scheme: EXACT.to_owned(),
        network: v1_name(demand.chain_id)?.to_owned(),
        max_amount_required: demand.price.micros().to_string(),
        resource: demand.url.clone(),
        description: demand.description.clone(),
        mime_type: "application/json".to_owned(),
        output_schema: None,
        pay_to: demand.treasury.clone(),
        max_timeout_seconds: exact.max_timeout_secs,
        asset: demand.asset.clone(),
        extra: Some(json!({ "name": exact.name, "version": exact.version })),
    })
}

fn version_2(demand: &Demand) -> Option<PaymentRequired> {
    let exact = demand.exact.as_ref()?;
    Some(PaymentRequired {
        x402_version: 2,
        error: Some(demand.detail.clone()),
        resource: Resource {
            url: demand.url.clone(),
            description: Some(demand.description.clone()),
            mime_type: Some("application/json".to_owned()),
        },
        accepts: vec![Requirements {
            scheme: EXACT.to_owned(),
            network: caip2(demand.chain_id),
            amount: demand.price.micros().to_string(),
            asset: demand.asset.clone(),
            pay_to: demand.treasury.clone(),
            max_timeout_seconds: exact.max_timeout_secs,
            extra: Some(json!({ "name": exact.name, "version": exact.version, "orderId": demand.order_id })),
        }],
        extensions: None,
    })
}

/// The headers of a 402.
pub fn head(demand: &Demand, to: &mut HeaderMap) {
    put(to, headers::X_PAYMENT_REQUIRED, &headers::write(&order_fields(demand)));
    if let Some(required) = version_2(demand) {
        put(to, headers::PAYMENT_REQUIRED, &headers::write(&required));
    }
}
