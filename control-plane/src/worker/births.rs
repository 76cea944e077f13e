//! Gives back the budgets of children whose machines never enrolled, or whose servers could not be bought.

use crate::app::App;
use crate::error::Error;
use crate::service::children;
use crate::store::births;
use crate::store::writer::Target;

/// Births of one pass.
const PAGE: i64 = 100;

/// Ends the births whose time is over. Any replica may: the birth's row decides, once.
///
/// # Errors
/// 503 without database.
pub async fn run_once(app: &App) -> Result<(), Error> {
    let now = app.clock.now();
    let due =
        app.db.read(move |conn| Box::pin(async move { births::overdue(conn, now, PAGE).await })).await?;
    for child in due {
        app.writer
            .apply(Target::Alone, move |tx| {
                Box::pin(async move {
                    // A new token may have given it more time since it was read.
                    if births::is_overdue(tx, child).await? {
                        children::undo(tx, child, "a child did not come to life: no machine of its enrolled")
                            .await?;
                    }
                    Ok(())
                })
            })
            .await?;
    }
    Ok(())
}
