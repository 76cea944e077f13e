//! New servers until the vendor has installed them. One that it could not install, does not know any more or never
//! finishes is no delivered purchase: its money is kept again, and a person decides.

use chrono::{DateTime, TimeDelta, Utc};
use otonix_sdk::error::ErrorCode;

use crate::app::App;
use crate::error::Error;
use crate::service::purchases::book;
use crate::store::purchases;
use crate::store::sandboxes::{self, Deploying};
use crate::store::writer::Tx;
use crate::upstream::providers::{Server, ServerStatus};
use crate::worker::Held;

/// Servers looked at in one pass.
const BATCH: i64 = 50;
/// So long must looks show that the vendor does not know a new server: what it has just made may be shown late.
const MISSING_FOR: TimeDelta = TimeDelta::minutes(10);
/// A server is installed by then, or never: bare metal takes half an hour.
const INSTALLED_WITHIN: TimeDelta = TimeDelta::hours(2);
/// An installed server has its address by then.
const ADDRESS_WITHIN: TimeDelta = TimeDelta::minutes(30);
/// So long a vendor is asked that does not answer.
const ANSWERED_WITHIN: TimeDelta = TimeDelta::hours(24);

/// What a look has shown.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Seen {
    Installed,
    /// The same, and its address is not known yet.
    Addressless,
    Failed,
    Installing,
    Missing,
    Nothing,
}

/// What is done about a server.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Verdict {
    Runs,
    Wait { missing_since: Option<DateTime<Utc>> },
    GiveUp(&'static str),
}

fn verdict(seen: Seen, row: &Deploying, now: DateTime<Utc>) -> Verdict {
    let age = now - row.created_at;
    match seen {
        Seen::Installed => Verdict::Runs,
        Seen::Addressless if age >= ADDRESS_WITHIN => Verdict::Runs,
        Seen::Addressless => Verdict::Wait { missing_since: None },
        Seen::Failed => Verdict::GiveUp("the vendor could not install the server"),
        Seen::Missing => {
            let since = row.missing_since.unwrap_or(now);
            if now - since >= MISSING_FOR {
                return Verdict::GiveUp("the vendor does not know the server any more");
            }
            Verdict::Wait { missing_since: Some(since) }
        }
        Seen::Installing if age >= INSTALLED_WITHIN => {
            Verdict::GiveUp("the vendor does not come to an end with installing the server")
        }
        Seen::Installing => Verdict::Wait { missing_since: None },
        Seen::Nothing if age >= ANSWERED_WITHIN => {
            Verdict::GiveUp("the vendor does not say whether it has installed the server")
        }
        Seen::Nothing => Verdict::Wait { missing_since: row.missing_since },
    }
}

/// One pass over servers that are not running yet; none while another goes on, so that a slow vendor is not asked more
/// and more.
///
/// # Errors
/// 503 without database.
pub async fn look(app: &App, held: Held) -> Result<(), Error> {
    let Some(compute) = &app.vendors.compute else { return Ok(()) };
    let Ok(_alone) = app.shared.deployments.try_lock() else { return Ok(()) };
    let waiting = app.db.read(move |conn| Box::pin(async move { sandboxes::deploying(conn, BATCH).await }));
    for row in waiting.await? {
        let asked = match row.at.vendor_id.parse() {
            Ok(id) => compute.server(id).await,
            Err(_) => Ok(None),
        };
        let (seen, server) = match asked {
            Ok(Some(server)) => (seen(&server), Some(server)),
            Ok(None) => (Seen::Missing, None),
            Err(why) => {
                tracing::debug!(server.id = row.at.vendor_id, error = %why, "a new server could not be looked at");
                (Seen::Nothing, None)
            }
        };
        let address = server.and_then(|server| server.address).map(|address| address.to_string());
        let verdict = verdict(seen, &row, app.clock.now());
        if verdict == (Verdict::Wait { missing_since: row.missing_since }) {
            continue;
        }
        held.write(app, move |tx| Box::pin(async move { note(tx, &row, verdict, address.as_deref()).await }))
            .await?;
    }
    Ok(())
}

const fn seen(server: &Server) -> Seen {
    match server.status {
        ServerStatus::Deployed if server.address.is_none() => Seen::Addressless,
        ServerStatus::Deployed => Seen::Installed,
        ServerStatus::Failed => Seen::Failed,
        ServerStatus::Deploying | ServerStatus::Rescue | ServerStatus::Other(_) => Seen::Installing,
    }
}

async fn note(tx: &mut Tx, row: &Deploying, verdict: Verdict, address: Option<&str>) -> Result<(), Error> {
    let why = match verdict {
        Verdict::Runs => {
            sandboxes::deployed(tx, row.sandbox, "running", address).await?;
            return Ok(());
        }
        Verdict::Wait { missing_since } => {
            return Ok(sandboxes::note_missing(tx, row.sandbox, missing_since).await?);
        }
        Verdict::GiveUp(why) => why,
    };
    if !sandboxes::deployed(tx, row.sandbox, "error", address).await? {
        return Ok(());
    }
    // It may be billed and does not run: a person ends it and gives the money back, or has it mended.
    let found = purchases::by_id(&mut tx.conn, row.at.purchase).await?;
    if let Some(purchase) = found.filter(|purchase| purchase.status == "delivered") {
        book::escalate_in(tx, &purchase, ErrorCode::PurchaseFailed, why).await?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use uuid::Uuid;

    use super::*;
    use crate::store::sandboxes::AtVendor;

    fn at(minutes: i64) -> DateTime<Utc> {
        DateTime::UNIX_EPOCH + TimeDelta::minutes(minutes)
    }

    fn row(missing_since: Option<i64>) -> Deploying {
        let text = String::new;
        Deploying {
            sandbox: Uuid::nil(),
            at: AtVendor {
                purchase: Uuid::nil(),
                vendor_id: text(),
                project_id: text(),
                plan: text(),
                cycle: text(),
            },
            missing_since: missing_since.map(at),
            created_at: at(0),
        }
    }

    #[test]
    fn every_new_server_ends_as_one_that_runs_or_with_a_person() {
        let day = 24 * 60;
        for (seen, from) in [(Seen::Failed, 0), (Seen::Installing, 120), (Seen::Nothing, day)] {
            assert!(matches!(verdict(seen, &row(None), at(from)), Verdict::GiveUp(_)), "{seen:?}");
            if from > 0 {
                assert!(matches!(verdict(seen, &row(None), at(from - 1)), Verdict::Wait { .. }), "{seen:?}");
            }
        }
        // Nobody could reach it, and no domain could point at it.
        assert_eq!(verdict(Seen::Addressless, &row(None), at(29)), Verdict::Wait { missing_since: None });
        assert_eq!(verdict(Seen::Addressless, &row(None), at(30)), Verdict::Runs);
        assert_eq!(verdict(Seen::Missing, &row(None), at(9)), Verdict::Wait { missing_since: Some(at(9)) });
        assert!(matches!(verdict(Seen::Missing, &row(Some(9)), at(18)), Verdict::Wait { .. }));
        assert!(matches!(verdict(Seen::Missing, &row(Some(9)), at(19)), Verdict::GiveUp(_)));
        // One that shows again was only late; a look that was not answered says nothing.
        assert_eq!(verdict(Seen::Installing, &row(Some(9)), at(18)), Verdict::Wait { missing_since: None });
        assert_eq!(
            verdict(Seen::Nothing, &row(Some(9)), at(18)),
            Verdict::Wait { missing_since: Some(at(9)) }
        );
        assert_eq!(verdict(Seen::Installed, &row(Some(9)), at(2 * day)), Verdict::Runs);
    }
}
