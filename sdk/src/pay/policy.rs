//! Whether to pay, and which offer: a pure function of rules, request and knowledge. What is not allowed is refused.

use reqwest::Url;
use serde::{Deserialize, Serialize};

use super::address::{is_listed, origin_of};
use crate::money::MicroUsd;
use crate::standing::SurvivalTier;
use crate::wallet::{EvmAddress, parse_address};
use crate::x402::{Offer, OrderOffer, Protocol, Required, TokenDomain};

/// The longest that a signed payment is valid, seconds.
pub const MAX_VALIDITY_SECS: u64 = 300;
/// A payment that could be valid for less would expire on its way.
const MIN_VALIDITY_SECS: u64 = 10;

/// For whom a payment is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Asker {
    /// The agent's own process.
    Agent,
    /// The machine's owner, on the command line: the list of hosts does not bind.
    Owner,
    /// Credits for the agent itself.
    Topup,
}

/// What may be paid.
#[derive(Debug, Clone)]
pub struct Rules {
    /// Most for one payment.
    pub max_payment: MicroUsd,
    /// Most in any hour.
    pub max_hour: MicroUsd,
    /// Most in any day.
    pub max_day: MicroUsd,
    /// Never spent.
    pub reserve: MicroUsd,
    /// Hosts that may be paid.
    pub hosts: Vec<String>,
    /// Hosts that may be paid in the tier `critical`.
    pub essential: Vec<String>,
    /// Most credits bought in any day.
    pub topup_max_day: MicroUsd,
    /// The control plane's origin; always allowed.
    pub server: String,
    /// The agent's own top-up: the one thing bought in the tier `terminated`.
    pub topup_path: String,
    /// The one chain.
    pub chain_id: u64,
    /// The one token.
    pub asset: EvmAddress,
}

/// What is asked for.
#[derive(Debug, Clone)]
pub struct Ask {
    /// For whom.
    pub asker: Asker,
    /// Where.
    pub url: Url,
    /// The caller's own bound.
    pub max_amount: MicroUsd,
    /// How the agent stands.
    pub tier: SurvivalTier,
}

/// What is known when an offer is chosen.
#[derive(Debug, Clone)]
pub struct Knowledge {
    /// The token's domain, from the chain.
    pub token: TokenDomain,
    /// What the wallet holds, from the chain.
    pub balance: MicroUsd,
    /// Signed and not yet known to have moved, or to never move.
    pub outstanding: MicroUsd,
    /// By payments, in the last hour.
    pub spent_hour: MicroUsd,
    /// By payments, in the last day.
    pub spent_day: MicroUsd,
    /// By top-ups, in the last day.
    pub topups_day: MicroUsd,
    /// Who was paid at this origin before.
    pub pin: Option<EvmAddress>,
    /// The wallet can pay the gas of an order's transfer.
    pub has_gas: bool,
    /// Unix time, seconds.
    pub now: u64,
}

/// The offer that is paid.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Choice {
    /// How much.
    pub amount: MicroUsd,
    /// To whom.
    pub pay_to: EvmAddress,
    /// How.
    pub way: Way,
}

/// How an offer is paid.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Way {
    /// A signed transfer: the offer by its place among all, and how long it is valid, seconds.
    Exact {
        /// Place in [`Required::offers`].
        offer: usize,
        /// Seconds.
        validity: u64,
    },
    /// A transfer on the chain.
    Order,
}

/// Why nothing is paid. Nothing was signed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Denied {
    /// Not on the list.
    #[error("{0} is not in `[pay] hosts`")]
    Host(String),
    /// The tier allows less.
    #[error("in the tier {0} only {1} is paid")]
    Tier(SurvivalTier, &'static str),
    /// Plain http to another machine.
    #[error("payments need https")]
    PlainHttp,
    /// None of the offers is one that may be taken.
    #[error("no offer can be taken: {0}")]
    NoOffer(String),
    /// The payee is another than before.
    #[error(
        "{origin} asks to pay {asked}, before it was {pinned}; `otonix-agent pins remove {origin}` if that is right"
    )]
    Payee {
        /// Of the seller.
        origin: String,
        /// As asked now.
        asked: EvmAddress,
        /// As paid before.
        pinned: EvmAddress,
    },
    /// Above a bound.
    #[error("{amount} USDC is more than {left} USDC, {bound}")]
    Above {
        /// The price.
        amount: MicroUsd,
        /// What the bound leaves.
        left: MicroUsd,
        /// Which.
        bound: Bound,
    },
}

/// A bound on what is paid.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Bound {
    /// By the caller.
    Asked,
    /// `max_payment`.
    Payment,
    /// `max_hour`.
    Hour,
    /// `max_day`.
    Day,
    /// `[topup] max_day`.
    TopupDay,
    /// Balance less reserve.
    Balance,
}

impl std::fmt::Display for Bound {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Asked => "the most that this request may cost",
            Self::Payment => "`[pay] max_payment`",
            Self::Hour => "what `[pay] max_hour` leaves",
            Self::Day => "what `[pay] max_day` leaves",
            Self::TopupDay => "what `[topup] max_day` leaves",
            Self::Balance => "what the wallet holds beyond `[pay] reserve`",
        })
    }
}

impl Denied {
    /// A stable slug.
    pub const fn code(&self) -> &'static str {
        match self {
            Self::Host(_) => "host_not_allowed",
            Self::Tier(..) => "tier_not_allowed",
            Self::PlainHttp => "plain_http",
            Self::NoOffer(_) => "no_acceptable_offer",
            Self::Payee { .. } => "payee_changed",
            Self::Above { bound, .. } => match bound {
                Bound::Asked => "above_max_amount",
                Bound::Payment => "above_max_payment",
                Bound::Hour => "above_max_hour",
                Bound::Day => "above_max_day",
                Bound::TopupDay => "above_topup_max_day",
                Bound::Balance => "insufficient_funds",
            },
        }
    }
}

impl Rules {
    /// Whether a URL is of the configured control plane.
    pub fn is_server(&self, url: &Url) -> bool {
        origin_of(url) == self.server
    }

    /// Whether a request may be made at all with the wallet behind it. Asked before anything is sent.
    ///
    /// # Errors
    /// [`Denied::Host`].
    pub fn may_ask(&self, ask: &Ask) -> Result<(), Denied> {
        let host = ask.url.host_str().unwrap_or_default();
        let listed =
            self.is_server(&ask.url) || ask.asker == Asker::Owner || is_listed(&self.hosts, &ask.url);
        if listed { Ok(()) } else { Err(Denied::Host(host.to_owned())) }
    }

    /// Whether anything may be paid there. Asked when payment is: what is free is for every tier.
    ///
    /// # Errors
    /// [`Denied::Host`] or [`Denied::Tier`].
    pub fn may_pay(&self, ask: &Ask) -> Result<(), Denied> {
        self.may_ask(ask)?;
        let is_server = self.is_server(&ask.url);
        match ask.tier {
            SurvivalTier::Full | SurvivalTier::Conservation => Ok(()),
            SurvivalTier::Critical if is_server || is_listed(&self.essential, &ask.url) => Ok(()),
            SurvivalTier::Critical => Err(Denied::Tier(ask.tier, "the control plane and `[pay] essential`")),
            SurvivalTier::Terminated if is_server && ask.url.path() == self.topup_path => Ok(()),
            SurvivalTier::Terminated => Err(Denied::Tier(ask.tier, "a top-up of the agent itself")),
        }
    }

    /// Chooses the cheapest offer that may be taken, and checks it against every bound.
    ///
    /// # Errors
    /// [`Denied`] saying which rule it breaks.
    pub fn choose(&self, ask: &Ask, required: &Required, known: &Knowledge) -> Result<Choice, Denied> {
        self.may_pay(ask)?;
        let choice = self.cheapest(required, known)?;
        if let Some(pinned) = known.pin
            && pinned != choice.pay_to
        {
            return Err(Denied::Payee { origin: origin_of(&ask.url), asked: choice.pay_to, pinned });
        }
        self.check_bounds(ask, choice.amount, known)?;
        Ok(choice)
    }

    fn cheapest(&self, required: &Required, known: &Knowledge) -> Result<Choice, Denied> {
        let mut reasons = Vec::new();
        let mut best: Option<(u8, Choice)> = None;
        let mut consider = |rank: u8, found: Result<Choice, String>| match found {
            Ok(choice) => {
                let better =
                    best.as_ref().is_none_or(|(other, known)| (choice.amount, rank) < (known.amount, *other));
                if better {
                    best = Some((rank, choice));
                }
            }
            Err(why) if reasons.contains(&why) => {}
            Err(why) => reasons.push(why),
        };
        for (place, offer) in required.offers.iter().enumerate() {
            let rank = if offer.protocol == Protocol::V2 { 0 } else { 1 };
            consider(rank, self.exact(place, offer, known));
        }
        if let Some(order) = &required.order {
            consider(2, self.order(order, known));
        }
        if reasons.is_empty() {
            reasons.push("the answer 402 has no offer that can be read".to_owned());
        }
        best.map(|(_, choice)| choice).ok_or_else(|| Denied::NoOffer(reasons.join("; ")))
    }

    fn exact(&self, place: usize, offer: &Offer, known: &Knowledge) -> Result<Choice, String> {
        if !offer.is_plain_exact() {
            return Err(format!("the scheme {} in that way is not spoken", short(&offer.scheme)));
        }
        if offer.chain_id != Some(self.chain_id) {
            return Err(format!("{} is not the configured chain", short(&offer.network)));
        }
        self.check_asset(&offer.asset)?;
        if let Some(claimed) = &offer.domain
            && *claimed != known.token
        {
            return Err(format!("the token is not named {} on the chain", short(&claimed.name)));
        }
        if offer.max_timeout_secs < MIN_VALIDITY_SECS {
            return Err("the payment would expire at once".to_owned());
        }
        let validity = offer.max_timeout_secs.min(MAX_VALIDITY_SECS);
        let way = Way::Exact { offer: place, validity };
        Ok(Choice { amount: amount(offer.amount)?, pay_to: payee(&offer.pay_to)?, way })
    }

    fn order(&self, order: &OrderOffer, known: &Knowledge) -> Result<Choice, String> {
        if order.chain_id != self.chain_id {
            return Err(format!("eip155:{} is not the configured chain", order.chain_id));
        }
        self.check_asset(&order.asset)?;
        if !known.has_gas {
            return Err("the wallet has no coins for the gas of an order's transfer".to_owned());
        }
        let left = order.expires_unix().unwrap_or_default().saturating_sub(known.now);
        if left < MIN_ORDER_SECS {
            return Err("the order expires too soon".to_owned());
        }
        Ok(Choice { amount: amount(order.amount)?, pay_to: payee(&order.treasury)?, way: Way::Order })
    }

    fn check_asset(&self, asset: &str) -> Result<(), String> {
        if parse_address(&asset.to_ascii_lowercase()) == Ok(self.asset) {
            return Ok(());
        }
        Err(format!("{} is not the configured token", short(asset)))
    }

    fn check_bounds(&self, ask: &Ask, amount: MicroUsd, known: &Knowledge) -> Result<(), Denied> {
        let spendable = known.balance.saturating_sub(known.outstanding).saturating_sub(self.reserve);
        let mut bounds = vec![(Bound::Asked, ask.max_amount)];
        match ask.asker {
            Asker::Agent | Asker::Owner => bounds.extend([
                (Bound::Payment, self.max_payment),
                (Bound::Hour, self.max_hour.saturating_sub(known.spent_hour)),
                (Bound::Day, self.max_day.saturating_sub(known.spent_day)),
            ]),
            Asker::Topup => {
                bounds.push((Bound::TopupDay, self.topup_max_day.saturating_sub(known.topups_day)))
            }
        }
        bounds.push((Bound::Balance, spendable));
        match bounds.into_iter().find(|(_, left)| amount > *left) {
            Some((bound, left)) => Err(Denied::Above { amount, left: left.max(MicroUsd::ZERO), bound }),
            None => Ok(()),
        }
    }
}

/// An order is not begun when it expires sooner: its transfer must be mined in its time, seconds.
const MIN_ORDER_SECS: u64 = 120;

fn amount(base_units: u128) -> Result<MicroUsd, String> {
    let micros = i64::try_from(base_units).ok().filter(|micros| *micros > 0);
    micros.map(MicroUsd::from_micros).ok_or_else(|| "the price is no amount".to_owned())
}

fn payee(text: &str) -> Result<EvmAddress, String> {
    let payee = parse_address(text).map_err(|why| format!("the payee {why}"))?;
    if payee.bytes() == [0; 20] { Err("the payee is nobody".to_owned()) } else { Ok(payee) }
}

/// A stranger's text, cut for a message.
fn short(text: &str) -> String {
    text.chars().take(64).collect()
}

#[cfg(test)]
mod tests;
