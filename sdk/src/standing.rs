//! The survival tier as a pure function of what is known: the same in server, daemon and SDK.

use std::fmt;
use std::str::FromStr;

use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};

use crate::money::MicroUsd;

/// How well an agent lives.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum SurvivalTier {
    /// Out of money: the agent's process is stopped.
    Terminated,
    /// Only what keeps it alive.
    Critical,
    /// Cheap models, no optional work.
    Conservation,
    /// No restrictions.
    Full,
}

/// Whether an agent is heard.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum AgentStatus {
    /// Beats arrive.
    Active,
    /// Silent for three effective intervals, or not heard since it was revived.
    Inactive,
    /// Out of money, or killed.
    Terminated,
}

/// The text names no tier or status.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("unknown name")]
pub struct UnknownName;

impl SurvivalTier {
    /// The word used everywhere.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Full => "full",
            Self::Conservation => "conservation",
            Self::Critical => "critical",
            Self::Terminated => "terminated",
        }
    }
}

impl FromStr for SurvivalTier {
    type Err = UnknownName;

    fn from_str(text: &str) -> Result<Self, UnknownName> {
        match text {
            "full" => Ok(Self::Full),
            "conservation" => Ok(Self::Conservation),
            "critical" => Ok(Self::Critical),
            "terminated" => Ok(Self::Terminated),
            _ => Err(UnknownName),
        }
    }
}

impl fmt::Display for SurvivalTier {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl AgentStatus {
    /// The word used everywhere.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Active => "active",
            Self::Inactive => "inactive",
            Self::Terminated => "terminated",
        }
    }
}

impl FromStr for AgentStatus {
    type Err = UnknownName;

    fn from_str(text: &str) -> Result<Self, UnknownName> {
        match text {
            "active" => Ok(Self::Active),
            "inactive" => Ok(Self::Inactive),
            "terminated" => Ok(Self::Terminated),
            _ => Err(UnknownName),
        }
    }
}

/// Where the tiers begin.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Thresholds {
    /// `full` above this balance.
    pub full_above: MicroUsd,
    /// `conservation` from this balance on.
    pub conservation_from: MicroUsd,
    /// `critical` from this balance on; below it `terminated`.
    pub critical_from: MicroUsd,
}

impl Default for Thresholds {
    fn default() -> Self {
        Self {
            full_above: MicroUsd::from_usdc(50),
            conservation_from: MicroUsd::from_usdc(10),
            critical_from: MicroUsd::from_usdc(1),
        }
    }
}

impl FromStr for Thresholds {
    type Err = String;

    /// Reads `50/10/1`: amounts in USDC, each below the one before.
    fn from_str(text: &str) -> Result<Self, String> {
        let parts: Vec<MicroUsd> = text
            .split('/')
            .map(|part| MicroUsd::parse(part.trim()).map_err(|why| format!("`{part}` {why}")))
            .collect::<Result<_, _>>()?;
        let [full_above, conservation_from, critical_from] = parts[..] else {
            return Err("needs three amounts, like 50/10/1".to_owned());
        };
        if !(full_above > conservation_from
            && conservation_from > critical_from
            && critical_from >= MicroUsd::ZERO)
        {
            return Err("each amount must be below the one before, the last not negative".to_owned());
        }
        Ok(Self { full_above, conservation_from, critical_from })
    }
}

impl Thresholds {
    /// The tier of a funded balance. A boundary belongs to the lower tier at `full_above`, to the upper one elsewhere.
    pub fn tier_of(&self, credits: MicroUsd) -> SurvivalTier {
        if credits.is_negative() || credits < self.critical_from {
            SurvivalTier::Terminated
        } else if credits < self.conservation_from {
            SurvivalTier::Critical
        } else if credits <= self.full_above {
            SurvivalTier::Conservation
        } else {
            SurvivalTier::Full
        }
    }
}

/// The tier an agent stands at. A negative balance is always terminated; an agent that was never funded
/// is critical until its grace ends; otherwise the balance decides.
pub fn standing(
    credits: MicroUsd,
    funded: bool,
    grace_until: Option<DateTime<Utc>>,
    now: DateTime<Utc>,
    thresholds: &Thresholds,
) -> SurvivalTier {
    let by_balance = thresholds.tier_of(credits);
    let in_grace = !funded && !credits.is_negative() && grace_until.is_some_and(|until| now < until);
    if in_grace { by_balance.max(SurvivalTier::Critical) } else { by_balance }
}

#[cfg(test)]
mod tests {
    use super::*;
    use chrono::TimeDelta;
    use proptest::prelude::*;

    const NOW: DateTime<Utc> = DateTime::UNIX_EPOCH;

    #[test]
    fn boundaries_are_exact() {
        let tiers = Thresholds::default();
        for (micros, tier) in [
            (50_000_001, SurvivalTier::Full),
            (50_000_000, SurvivalTier::Conservation),
            (10_000_000, SurvivalTier::Conservation),
            (9_999_999, SurvivalTier::Critical),
            (1_000_000, SurvivalTier::Critical),
            (999_999, SurvivalTier::Terminated),
            (0, SurvivalTier::Terminated),
            (-1, SurvivalTier::Terminated),
        ] {
            assert_eq!(standing(MicroUsd::from_micros(micros), true, None, NOW, &tiers), tier, "{micros}");
        }
    }

    #[test]
    fn grace_keeps_the_unfunded_alive_until_it_ends() {
        let tiers = Thresholds::default();
        let until = NOW + TimeDelta::seconds(10);
        let at = |secs, micros, funded| {
            standing(
                MicroUsd::from_micros(micros),
                funded,
                Some(until),
                NOW + TimeDelta::seconds(secs),
                &tiers,
            )
        };
        assert_eq!(at(9, 0, false), SurvivalTier::Critical);
        assert_eq!(at(10, 0, false), SurvivalTier::Terminated);
        assert_eq!(at(9, -1, false), SurvivalTier::Terminated);
        assert_eq!(at(9, 0, true), SurvivalTier::Terminated);
    }

    #[test]
    fn thresholds_are_read_and_checked() {
        assert_eq!("50/10/1".parse(), Ok(Thresholds::default()));
        for bad in ["", "50/10", "10/50/1", "50/10/10", "50/10/-1", "a/b/c", "50/10/1/0"] {
            assert!(bad.parse::<Thresholds>().is_err(), "{bad}");
        }
    }

    proptest! {
        #[test]
        fn more_credits_never_mean_a_lower_tier(a in any::<i32>(), b in any::<i32>(), funded in any::<bool>()) {
            let tiers = Thresholds::default();
            let of = |m: i32| standing(MicroUsd::from_micros(i64::from(m)), funded, None, NOW, &tiers);
            prop_assert!(of(a.max(b)) >= of(a.min(b)));
        }
    }
}
