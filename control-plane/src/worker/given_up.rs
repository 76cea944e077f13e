//! Claims that were given up, until the chain can turn them no more: one that is carried out after all (its block left
//! the chain, and another has it) is served at once; of one that stays dead the private part is forgotten.

use crate::app::App;
use crate::error::Error;
use crate::service::payments::Payments;
use crate::service::payments::settlement::{
    Found, authorization, away, block_of, chain_column, grant, search_for_good,
};
use crate::store::payments::{self, Payment, Place};
use crate::store::writer::Target;
use crate::worker::{Held, hold};

const LEASE: &str = "given-up";
/// Claims of one pass.
const BATCH: i64 = 64;

/// Where the last pass ended, so that all claims have their turn.
#[derive(Debug, Default)]
pub struct GivenUp {
    turn: Option<Place>,
}

impl GivenUp {
    /// One pass.
    ///
    /// # Errors
    /// 503 without database or chain.
    pub async fn run_once(&mut self, app: &App) -> Result<(), Error> {
        let Some(parts) = &app.payments else { return Ok(()) };
        let Some(held) = hold(app, LEASE).await? else { return Ok(()) };
        let (chain, after) = (chain_column(parts), self.turn);
        let found = app
            .db
            .read(move |conn| Box::pin(async move { payments::given_up(conn, chain, after, BATCH).await }));
        let claims = found.await?;
        let last = claims.last().filter(|_| claims.len() as i64 >= BATCH);
        self.turn = last.map(|claim| (claim.created_at, claim.id));
        for claim in &claims {
            if let Err(error) = look(app, parts, held, claim).await {
                tracing::debug!(payment.id = %claim.id, %error, "a claim that was given up is looked at again");
            }
        }
        Ok(())
    }
}

async fn look(app: &App, parts: &Payments, held: Held, claim: &Payment) -> Result<(), Error> {
    let from = block_of(claim.from_block);
    let found = search_for_good(parts, &authorization(claim)?, from).await.map_err(away)?;
    match found {
        Found::Open | Found::Reverted => return Ok(()),
        Found::Settled(arrived) => {
            tracing::warn!(payment.id = %claim.id, "a payment that was given up was carried out after all");
            grant(app, parts, claim, &arrived).await?;
        }
        Found::Dead(_) => {}
    }
    let (id, replica) = (claim.id, app.replica);
    let done = app.writer.apply(Target::Shared, move |tx| {
        Box::pin(async move {
            held.check(tx, replica).await?;
            Ok(payments::close(tx, id).await?)
        })
    });
    done.await?;
    Ok(())
}
