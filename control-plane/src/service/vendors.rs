//! What is asked of vendors beyond purchases: whose managed things these are, what may be done to them, and vendors'
//! errors in our words.

use std::sync::Arc;
use std::time::Duration;

use chrono::{DateTime, Utc};
use otonix_sdk::clock::to_micros;
use otonix_sdk::error::ErrorCode;
use uuid::Uuid;

use crate::app::App;
use crate::error::Error;
use crate::store::list::{Cursor, Page, Query};
use crate::upstream::providers::{ComputeProvider, DnsZone, Refusal, Registrar, VendorError};

/// How long a write to a vendor may take.
pub const WRITE_TIME: Duration = Duration::from_secs(30);
/// When to ask again after a vendor could not be asked.
const RETRY: Duration = Duration::from_secs(5);
/// When to ask again after an outcome was not known.
const LOOK_AGAIN: Duration = Duration::from_secs(30);

fn not_configured() -> Error {
    Error::NotConfigured {
        code: ErrorCode::UpstreamNotConfigured,
        detail: "this vendor is not configured on this server",
    }
}

/// Who sells servers.
///
/// # Errors
/// 503 `upstream_not_configured`.
pub fn compute(app: &App) -> Result<&Arc<dyn ComputeProvider>, Error> {
    app.vendors.compute.as_ref().ok_or_else(not_configured)
}

/// Who registers domains.
///
/// # Errors
/// 503 `upstream_not_configured`.
pub fn registrar(app: &App) -> Result<&Arc<dyn Registrar>, Error> {
    app.vendors.registrar.as_ref().ok_or_else(not_configured)
}

/// Who answers for zones.
///
/// # Errors
/// 503 `upstream_not_configured`.
pub fn zones(app: &App) -> Result<&Arc<dyn DnsZone>, Error> {
    app.vendors.dns.as_ref().ok_or_else(not_configured)
}

/// A page of what a vendor has told whole, newest first: by the time of each row and what tells rows of one time apart.
pub fn page_of<T>(
    rows: impl IntoIterator<Item = T>,
    query: &Query,
    place: impl Fn(&T) -> (Option<DateTime<Utc>>, u128),
) -> Page<T> {
    let cursor = |row: &T| {
        let (at, id) = place(row);
        Cursor { created_at: to_micros(at.unwrap_or(DateTime::UNIX_EPOCH)), id: Uuid::from_u128(id) }
    };
    let mut rows: Vec<(Cursor, T)> = rows.into_iter().map(|row| (cursor(&row), row)).collect();
    rows.retain(|(at, _)| {
        query.after.is_none_or(|after| (at.created_at, at.id) < (after.created_at, after.id))
    });
    rows.sort_by_key(|(at, _)| std::cmp::Reverse((at.created_at, at.id)));
    let limit = usize::try_from(query.limit).unwrap_or(0);
    let more = rows.len() > limit;
    rows.truncate(limit);
    let next = rows.last().filter(|_| more).map(|(at, _)| *at);
    Page { rows: rows.into_iter().map(|(_, row)| row).collect(), next }
}

/// A vendor's error as the caller hears it. What only the operator can mend is logged here.
pub fn failed(why: VendorError) -> Error {
    let (reason, retry_after, detail) = match why {
        VendorError::NotDone { reason, retry_after, detail } => (reason, retry_after, detail),
        VendorError::Unknown { detail } => {
            tracing::warn!(error = %detail, "a vendor's outcome is not known");
            return Error::Busy {
                code: ErrorCode::UpstreamPending,
                retry_after: LOOK_AGAIN,
                detail: "the vendor did not say whether it was done; look before asking again",
            };
        }
    };
    let code = reason.code();
    let busy = |detail| Error::Busy { code, retry_after: retry_after.unwrap_or(RETRY), detail };
    match reason {
        Refusal::PriceMoved
        | Refusal::OutOfStock
        | Refusal::DomainNotAvailable
        | Refusal::TldNotSupported
        | Refusal::TooExpensive
        | Refusal::AlreadyThere => Error::conflict(code, detail),
        Refusal::ContactRefused | Refusal::LanguageCodeRequired | Refusal::Invalid => {
            Error::Malformed { code, detail }
        }
        Refusal::NotRegistered | Refusal::NotFound => Error::not_found("thing at the vendor", "asked for"),
        Refusal::TooEarly => busy("the vendor does not know it yet; ask again later"),
        Refusal::RateLimited => busy("too much is asked of this vendor; try again"),
        Refusal::Unauthorised | Refusal::NoCredit => {
            tracing::error!(error = %detail, "a vendor refuses this server's account");
            busy("the vendor does not take this server's account now; the operator was told")
        }
        Refusal::Unavailable | Refusal::Late | Refusal::Other => {
            tracing::warn!(error = %detail, "a vendor cannot be asked");
            busy("the vendor cannot be asked now; try again")
        }
    }
}
