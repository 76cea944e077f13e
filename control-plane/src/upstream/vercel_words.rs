//! How Vercel says no.

use std::time::Duration;

use serde::Deserialize;
use serde_json::Value;

use crate::upstream::http::{Refused, Tongue};
use crate::upstream::providers::Refusal;

/// The two shapes of Vercel's errors: `{status, code, message}` (or `{issues, message}`) and `{error: {…}}`.
pub struct Words;

#[derive(Deserialize)]
struct Said {
    #[serde(default)]
    code: Option<String>,
    #[serde(default)]
    message: Option<String>,
    #[serde(default)]
    issues: Option<Vec<Issue>>,
    #[serde(default)]
    error: Option<Box<Said>>,
    #[serde(default, rename = "retryAfter")]
    retry_after: Option<RetryAfter>,
}

#[derive(Deserialize)]
struct Issue {
    #[serde(default)]
    path: Vec<Value>,
    #[serde(default)]
    message: String,
}

#[derive(Deserialize)]
struct RetryAfter {
    value: f64,
}

impl Tongue for Words {
    fn reason(&self, refused: &Refused<'_>) -> Option<(Refusal, String)> {
        let said: Said = serde_json::from_slice(refused.body).ok()?;
        if let Some(issues) = &said.issues {
            let of_contact = |issue: &Issue| issue.path.first() == Some(&Value::from("contactInformation"));
            let is_contact = issues.iter().any(of_contact);
            let reason = if is_contact { Refusal::ContactRefused } else { Refusal::Invalid };
            let each = |issue: &Issue| {
                let path: Vec<&str> = issue.path.iter().filter_map(Value::as_str).collect();
                format!("{} {}", path.join("."), issue.message)
            };
            return Some((reason, issues.iter().map(each).collect::<Vec<_>>().join("; ")));
        }
        let said = said.error.map_or_else(|| Said { error: None, ..said }, |inner| *inner);
        let code = said.code?;
        Some((of_code(&code, refused.status), said.message.unwrap_or(code)))
    }

    fn pause(&self, body: &[u8]) -> Option<Duration> {
        let said: Said = serde_json::from_slice(body).ok()?;
        let seconds = said.retry_after?.value;
        Duration::try_from_secs_f64(seconds).ok().filter(|pause| *pause < Duration::from_secs(3600))
    }
}

fn of_code(code: &str, status: u16) -> Refusal {
    match code {
        "expected_price_mismatch" => Refusal::PriceMoved,
        "domain_not_available" | "domain_too_short" | "domain_not_renewable" => Refusal::DomainNotAvailable,
        "tld_not_supported" => Refusal::TldNotSupported,
        "order_too_expensive" => Refusal::TooExpensive,
        "additional_contact_info_required" | "invalid_additional_contact_info" => Refusal::ContactRefused,
        "language_code_required" => Refusal::LanguageCodeRequired,
        "domain_not_registered" => Refusal::NotRegistered,
        "record_already_exists" | "domain_already_renewing" => Refusal::AlreadyThere,
        "bought_too_recently" => Refusal::TooEarly,
        "too_many_requests" | "rate_limited" => Refusal::RateLimited,
        _ => match status {
            402 => Refusal::NoCredit,
            404 => Refusal::NotFound,
            409 => Refusal::AlreadyThere,
            400 | 422 => Refusal::Invalid,
            _ => Refusal::Other,
        },
    }
}
