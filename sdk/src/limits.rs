//! The bounds of the contract's texts and numbers, and the checks for them. Shared by server and daemon,
//! so that what the daemon accepts the server stores.

use std::ops::RangeInclusive;

use crate::money::{Cost, MicroUsd};

/// Characters of a name.
pub const NAME: RangeInclusive<usize> = 1..=128;
/// Characters of an action's description.
pub const ACTION: RangeInclusive<usize> = 1..=4096;
/// Characters of an action's details.
pub const DETAILS: RangeInclusive<usize> = 0..=16_384;
/// Characters of a model's name.
pub const MODEL: RangeInclusive<usize> = 1..=128;
/// Characters of a genesis prompt.
pub const GENESIS_PROMPT: RangeInclusive<usize> = 0..=65_536;
/// Characters of a tag.
pub const TAG: RangeInclusive<usize> = 1..=64;
/// Seconds that an enrolment token may be used.
pub const ENROLMENT_TTL: RangeInclusive<u32> = 60..=2_592_000;
/// Machines that may enrol by one token.
pub const ENROLMENT_USES: RangeInclusive<u32> = 1..=1000;
/// Bytes of the operator's laws.
pub const MAX_LAWS_BYTES: usize = 256 * 1024;
/// Seconds between heartbeats.
pub const HEARTBEAT_INTERVAL: RangeInclusive<u32> = 5..=86_400;
/// The model of an agent that names none.
pub const DEFAULT_MODEL: &str = "claude-opus-4-6";
/// Heartbeat interval of an agent that names none, seconds.
pub const DEFAULT_HEARTBEAT_INTERVAL: u32 = 60;
/// Most tokens in one usage record.
pub const MAX_TOKENS: i64 = 2_000_000_000;
/// Most events in one request or frame.
pub const MAX_EVENTS: usize = 1000;
/// Longest encoded event, bytes. Larger ones are refused where they are made.
pub const MAX_EVENT_BYTES: usize = 64 * 1024;
/// How long a wallet proof is good for, seconds.
pub const WALLET_PROOF_MAX_AGE_SECS: i64 = 600;

/// A value breaks a bound of the contract.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("`{field}` {why}")]
pub struct Invalid {
    /// The field, as it is written in requests.
    pub field: &'static str,
    /// What it must be.
    pub why: String,
}

impl Invalid {
    /// A broken bound of a field.
    pub fn new(field: &'static str, why: impl Into<String>) -> Self {
        Self { field, why: why.into() }
    }
}

/// Checks a free text: length in characters, no NUL (which databases cannot hold).
///
/// # Errors
/// [`Invalid`] naming the field.
pub fn check_text(field: &'static str, text: &str, chars: RangeInclusive<usize>) -> Result<(), Invalid> {
    if text.contains('\0') {
        return Err(Invalid::new(field, "must not contain a NUL character"));
    }
    // Bytes bound characters from above, so most texts need no count.
    let fits = text.len() <= *chars.end() || text.chars().count() <= *chars.end();
    if !fits || text.chars().count() < *chars.start() {
        return Err(Invalid::new(
            field,
            format!("must have {} to {} characters", chars.start(), chars.end()),
        ));
    }
    Ok(())
}

/// Checks a name: like a text, not blank, without control characters.
///
/// # Errors
/// [`Invalid`] naming the field.
pub fn check_name(field: &'static str, text: &str, chars: RangeInclusive<usize>) -> Result<(), Invalid> {
    check_text(field, text, chars)?;
    if text.trim().is_empty() || text.chars().any(char::is_control) {
        return Err(Invalid::new(field, "must not be blank or contain control characters"));
    }
    Ok(())
}

/// Checks a slug of 1 to 64 characters: letters, digits, `-`, `_`, `.`, `:`.
///
/// # Errors
/// [`Invalid`] naming the field.
pub fn check_slug(field: &'static str, text: &str) -> Result<(), Invalid> {
    let fine = (1..=64).contains(&text.len())
        && text.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_' | b'.' | b':'));
    if fine {
        Ok(())
    } else {
        Err(Invalid::new(field, "must be a slug of 1 to 64 characters (a-z, 0-9, - _ . :)"))
    }
}

/// Checks a count of tokens.
///
/// # Errors
/// [`Invalid`] naming the field.
pub fn check_tokens(field: &'static str, tokens: i64) -> Result<(), Invalid> {
    if (0..=MAX_TOKENS).contains(&tokens) {
        Ok(())
    } else {
        Err(Invalid::new(field, format!("must be 0 to {MAX_TOKENS}")))
    }
}

/// Checks an action's fields.
///
/// # Errors
/// [`Invalid`] naming the first field that breaks a bound.
pub fn check_action(action: &str, category: &str, details: &str, status: &str) -> Result<(), Invalid> {
    check_text("action", action, ACTION)?;
    check_slug("category", category)?;
    check_text("details", details, DETAILS)?;
    if matches!(status, "completed" | "failed" | "pending") {
        Ok(())
    } else {
        Err(Invalid::new("status", "must be completed, failed or pending"))
    }
}

/// Checks a usage record's fields.
///
/// # Errors
/// [`Invalid`] naming the first field that breaks a bound.
pub fn check_usage(
    model: &str,
    tokens_in: i64,
    tokens_out: i64,
    tokens_cached: i64,
    cost: Option<MicroUsd>,
) -> Result<(), Invalid> {
    check_name("model", model, MODEL)?;
    check_tokens("tokensIn", tokens_in)?;
    check_tokens("tokensOut", tokens_out)?;
    check_tokens("tokensCached", tokens_cached)?;
    if let Some(cost) = cost {
        Cost::new(cost).map_err(|why| Invalid::new("cost", why.to_string()))?;
    }
    Ok(())
}
