//! Buying at vendors: settled first, then bought, each payment at most once, and every payment ends with its goods or
//! with its money.
//!
//! [`machine`] holds the states, [`open`] begins a purchase with a payment's transaction or an agent's credits,
//! [`act`] and [`find`] ask the vendor, [`book`] writes what became of it, and the worker of the same name drives it.

use crate::error::Error;
use crate::service::purchases::machine::{Progress, Status};
use crate::store::purchases::Purchase;

pub mod act;
pub mod book;
pub mod bootstrap;
pub mod bring;
pub mod contact;
pub mod find;
pub mod item;
pub mod lists;
pub mod machine;
pub mod money;
pub mod offers;
pub mod open;
pub mod resolve;
pub mod reversal;
pub mod secrets;

/// A purchase as the state machine sees it, for who holds the lease in an epoch.
///
/// # Errors
/// [`Error::Internal`] when the row cannot be read.
pub fn progress(purchase: &Purchase, epoch: i64) -> Result<Progress, Error> {
    let status = Status::parse(&purchase.status);
    let status = status.ok_or_else(|| Error::internal("a purchase's status is not known"))?;
    let has_order = purchase.vendor_ref.is_some() && matches!(purchase.kind.as_str(), "domain" | "renewal");
    Ok(Progress {
        status,
        attempts: purchase.attempts,
        deadline: purchase.deadline,
        has_order,
        absent_since: purchase.absent_since,
        since: purchase.since,
        // A second renewal would buy another year.
        may_repeat: matches!(purchase.kind.as_str(), "domain" | "server"),
        is_ours: purchase.epoch == epoch,
    })
}
