//! Exact money: USDC in whole micro-units. No float ever holds an amount.

use std::fmt;

use serde::de::Error as _;
use serde::ser::Error as _;
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use serde_json::value::RawValue;

/// The largest amount that a request may carry: 10,000,000 USDC.
pub const MAX_AMOUNT: MicroUsd = MicroUsd(10_000_000_000_000);
/// The largest cost of one usage record: 10,000 USDC.
pub const MAX_COST: MicroUsd = MicroUsd(10_000_000_000);
/// Longest text read as an amount; a longer one cannot be an amount in range written sanely.
const MAX_TEXT: usize = 64;
const DECIMALS: i32 = 6;

/// USDC in micro-units (1 USDC = 1,000,000), signed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Default)]
pub struct MicroUsd(i64);

/// Why a text is not an amount.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum BadAmount {
    /// Not a decimal number.
    #[error("must be a decimal number")]
    Malformed,
    /// More than six decimals.
    #[error("must have at most 6 decimals")]
    TooPrecise,
    /// Below zero where only amounts are meant.
    #[error("must not be negative")]
    Negative,
    /// Zero where something must move.
    #[error("must be more than 0")]
    Zero,
    /// Beyond what the ledger takes.
    #[error("is above the largest amount allowed")]
    TooLarge,
}

/// What to do with decimals beyond the sixth.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Excess {
    Refuse,
    RoundUp,
}

impl MicroUsd {
    /// Nothing.
    pub const ZERO: Self = Self(0);

    /// From micro-units.
    pub const fn from_micros(micros: i64) -> Self {
        Self(micros)
    }

    /// From whole USDC.
    pub const fn from_usdc(usdc: i32) -> Self {
        Self(usdc as i64 * 1_000_000)
    }

    /// In micro-units.
    pub const fn micros(self) -> i64 {
        self.0
    }

    /// The sum, unless it overflows.
    pub const fn checked_add(self, other: Self) -> Option<Self> {
        match self.0.checked_add(other.0) {
            Some(sum) => Some(Self(sum)),
            None => None,
        }
    }

    /// The difference, unless it overflows.
    pub const fn checked_sub(self, other: Self) -> Option<Self> {
        match self.0.checked_sub(other.0) {
            Some(rest) => Some(Self(rest)),
            None => None,
        }
    }

    /// The sum, stopping at the ends of the range.
    pub const fn saturating_add(self, other: Self) -> Self {
        Self(self.0.saturating_add(other.0))
    }

    /// The difference, stopping at the ends of the range.
    pub const fn saturating_sub(self, other: Self) -> Self {
        Self(self.0.saturating_sub(other.0))
    }

    /// Below zero.
    pub const fn is_negative(self) -> bool {
        self.0 < 0
    }

    /// Reads a plain decimal (`12.5`, `-0.000001`), without exponent.
    ///
    /// # Errors
    /// [`BadAmount`] when it is anything else, has more than six decimals or does not fit.
    pub fn parse(text: &str) -> Result<Self, BadAmount> {
        if text.contains(['e', 'E']) {
            return Err(BadAmount::Malformed);
        }
        read_decimal(text, Excess::Refuse)
    }

    /// Reads the source text of a JSON value: a number (an exponent is fine when exact) or a plain decimal string.
    ///
    /// # Errors
    /// [`BadAmount`] when it is anything else, has more than six decimals or does not fit.
    pub fn from_json_text(json: &str) -> Result<Self, BadAmount> {
        match string_inside(json)? {
            Some(text) => Self::parse(&text),
            None => read_decimal(json.trim(), Excess::Refuse),
        }
    }
}

fn string_inside(json: &str) -> Result<Option<String>, BadAmount> {
    let json = json.trim();
    if !json.starts_with('"') {
        return Ok(None);
    }
    if json.len() > MAX_TEXT {
        return Err(BadAmount::Malformed);
    }
    serde_json::from_str(json).map(Some).map_err(|_| BadAmount::Malformed)
}

fn read_decimal(text: &str, excess: Excess) -> Result<MicroUsd, BadAmount> {
    let (negative, rest) = match text.strip_prefix('-') {
        Some(rest) => (true, rest),
        None => (false, text),
    };
    let (mantissa, exponent) = match rest.split_once(['e', 'E']) {
        Some((mantissa, exponent)) => (mantissa, read_exponent(exponent)?),
        None => (rest, 0),
    };
    let (whole, fraction) = mantissa.split_once('.').unwrap_or((mantissa, ""));
    let dot_needs_digits = mantissa.contains('.') && fraction.is_empty();
    let all_digits = whole.bytes().chain(fraction.bytes()).all(|b| b.is_ascii_digit());
    if whole.is_empty() || dot_needs_digits || !all_digits || mantissa.len() > 4096 {
        return Err(BadAmount::Malformed);
    }
    // The value is `digits * 10^(exponent - fraction.len())`; the micro-unit shifts it by six.
    let digits = format!("{whole}{fraction}");
    let digits = digits.trim_start_matches('0');
    let significant = digits.trim_end_matches('0');
    if significant.is_empty() {
        return Ok(MicroUsd::ZERO);
    }
    let trailing = i32::try_from(digits.len() - significant.len()).map_err(|_| BadAmount::Malformed)?;
    let fraction_len = i32::try_from(fraction.len()).map_err(|_| BadAmount::Malformed)?;
    let shift = exponent - fraction_len + trailing + DECIMALS;
    let micros = if shift >= 0 {
        scale_up(significant, shift)?
    } else {
        match excess {
            Excess::Refuse => return Err(BadAmount::TooPrecise),
            Excess::RoundUp => cut_up(significant, shift)?,
        }
    };
    Ok(MicroUsd(if negative { -micros } else { micros }))
}

fn read_exponent(text: &str) -> Result<i32, BadAmount> {
    let digits = text.strip_prefix(['+', '-']).unwrap_or(text);
    if digits.is_empty() || !digits.bytes().all(|b| b.is_ascii_digit()) {
        return Err(BadAmount::Malformed);
    }
    // An exponent beyond this is either far too large or far too precise; the sign decides which.
    let value = digits.parse::<i32>().unwrap_or(100_000).min(100_000);
    Ok(if text.starts_with('-') { -value } else { value })
}

fn scale_up(digits: &str, shift: i32) -> Result<i64, BadAmount> {
    let places = u32::try_from(shift).map_err(|_| BadAmount::TooLarge)?;
    let factor = 10_i64.checked_pow(places).ok_or(BadAmount::TooLarge)?;
    let value = digits.parse::<i64>().map_err(|_| BadAmount::TooLarge)?;
    value.checked_mul(factor).ok_or(BadAmount::TooLarge)
}

fn cut_up(digits: &str, shift: i32) -> Result<i64, BadAmount> {
    let dropped = usize::try_from(-shift).map_err(|_| BadAmount::Malformed)?;
    let Some(kept) = digits.len().checked_sub(dropped) else { return Ok(1) };
    let value = match digits.get(..kept) {
        Some("") | None => 0,
        Some(kept) => kept.parse::<i64>().map_err(|_| BadAmount::TooLarge)?,
    };
    // `digits` ends in a non-zero digit, so something was dropped.
    value.checked_add(1).ok_or(BadAmount::TooLarge)
}

impl fmt::Display for MicroUsd {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let sign = if self.0 < 0 { "-" } else { "" };
        let micros = self.0.unsigned_abs();
        let (whole, fraction) = (micros / 1_000_000, micros % 1_000_000);
        if fraction == 0 {
            return write!(f, "{sign}{whole}");
        }
        let padded = format!("{fraction:06}");
        write!(f, "{sign}{whole}.{}", padded.trim_end_matches('0'))
    }
}

impl Serialize for MicroUsd {
    /// Written to JSON as an exact number.
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        RawValue::from_string(self.to_string()).map_err(S::Error::custom)?.serialize(serializer)
    }
}

impl<'de> Deserialize<'de> for MicroUsd {
    /// Read from the source text of a JSON number or string, never through a float.
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let raw = Box::<RawValue>::deserialize(deserializer)?;
        Self::from_json_text(raw.get()).map_err(D::Error::custom)
    }
}

/// An amount in a request: more than 0, at most [`MAX_AMOUNT`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Amount(MicroUsd);

impl Amount {
    /// Checks the range.
    ///
    /// # Errors
    /// [`BadAmount`] when it is 0, negative or too large.
    pub fn new(value: MicroUsd) -> Result<Self, BadAmount> {
        if value.is_negative() {
            return Err(BadAmount::Negative);
        }
        if value == MicroUsd::ZERO {
            return Err(BadAmount::Zero);
        }
        if value > MAX_AMOUNT {
            return Err(BadAmount::TooLarge);
        }
        Ok(Self(value))
    }

    /// The amount.
    pub const fn get(self) -> MicroUsd {
        self.0
    }
}

impl Serialize for Amount {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        self.0.serialize(serializer)
    }
}

impl<'de> Deserialize<'de> for Amount {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        Self::new(MicroUsd::deserialize(deserializer)?).map_err(D::Error::custom)
    }
}

/// The cost of one usage record: 0 to [`MAX_COST`]. A JSON number with more than six decimals
/// (float noise) is rounded up to the micro-unit.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Cost(MicroUsd);

impl Cost {
    /// Checks the range.
    ///
    /// # Errors
    /// [`BadAmount`] when it is negative or above [`MAX_COST`].
    pub fn new(value: MicroUsd) -> Result<Self, BadAmount> {
        if value.is_negative() {
            return Err(BadAmount::Negative);
        }
        if value > MAX_COST {
            return Err(BadAmount::TooLarge);
        }
        Ok(Self(value))
    }

    /// Reads the source text of a JSON value.
    ///
    /// # Errors
    /// [`BadAmount`] when it is no amount or out of range.
    pub fn from_json_text(json: &str) -> Result<Self, BadAmount> {
        let value = match string_inside(json)? {
            Some(text) => MicroUsd::parse(&text)?,
            None => read_decimal(json.trim(), Excess::RoundUp)?,
        };
        if json.trim_start().starts_with('-') && value != MicroUsd::ZERO {
            return Err(BadAmount::Negative);
        }
        Self::new(value)
    }

    /// The cost.
    pub const fn get(self) -> MicroUsd {
        self.0
    }
}

impl Serialize for Cost {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        self.0.serialize(serializer)
    }
}

impl<'de> Deserialize<'de> for Cost {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let raw = Box::<RawValue>::deserialize(deserializer)?;
        Self::from_json_text(raw.get()).map_err(D::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn amounts_are_read_exactly() {
        for (text, micros) in [
            ("0", 0),
            ("1", 1_000_000),
            ("0.000001", 1),
            ("1e-06", 1),
            ("1E-6", 1),
            ("12.5", 12_500_000),
            ("-3.25", -3_250_000),
            ("1e1", 10_000_000),
            ("0.10", 100_000),
            ("1.0000000", 1_000_000),
            ("10000000", 10_000_000_000_000),
            ("0e99999999999", 0),
            ("\"7.5\"", 7_500_000),
        ] {
            assert_eq!(MicroUsd::from_json_text(text), Ok(MicroUsd(micros)), "{text}");
        }
    }

    #[test]
    fn what_is_not_an_amount_is_refused() {
        for (text, why) in [
            ("0.0000001", BadAmount::TooPrecise),
            ("1e-7", BadAmount::TooPrecise),
            ("1e400", BadAmount::TooLarge),
            ("99999999999999999999", BadAmount::TooLarge),
            ("NaN", BadAmount::Malformed),
            ("\"1e2\"", BadAmount::Malformed),
            ("\"\"", BadAmount::Malformed),
            ("\".5\"", BadAmount::Malformed),
            ("\"5.\"", BadAmount::Malformed),
            ("\"+5\"", BadAmount::Malformed),
            ("\"0x10\"", BadAmount::Malformed),
            ("\" 5\"", BadAmount::Malformed),
            ("true", BadAmount::Malformed),
            ("{}", BadAmount::Malformed),
        ] {
            assert_eq!(MicroUsd::from_json_text(text), Err(why), "{text}");
        }
    }

    #[test]
    fn a_cost_with_float_noise_is_rounded_up_and_a_string_is_not() {
        for (text, micros) in
            [("0.30000000000000004", 300_001), ("1e-9", 1), ("0.0000005", 1), ("2", 2_000_000)]
        {
            assert_eq!(Cost::from_json_text(text), Ok(Cost(MicroUsd(micros))), "{text}");
        }
        assert_eq!(Cost::from_json_text("\"0.30000000000000004\""), Err(BadAmount::TooPrecise));
        assert_eq!(Cost::from_json_text("-1e-9"), Err(BadAmount::Negative));
        assert_eq!(Cost::from_json_text("-1"), Err(BadAmount::Negative));
        assert_eq!(Cost::from_json_text("10000"), Ok(Cost(MAX_COST)));
        assert_eq!(Cost::from_json_text("10000.000001"), Err(BadAmount::TooLarge));
    }

    #[test]
    fn an_amount_is_more_than_nothing_and_within_bounds() {
        assert_eq!(Amount::new(MicroUsd::ZERO), Err(BadAmount::Zero));
        assert_eq!(Amount::new(MicroUsd(-1)), Err(BadAmount::Negative));
        assert!(Amount::new(MicroUsd(1)).is_ok());
        assert!(Amount::new(MAX_AMOUNT).is_ok());
        assert_eq!(Amount::new(MicroUsd(MAX_AMOUNT.0 + 1)), Err(BadAmount::TooLarge));
    }

    #[test]
    fn json_numbers_come_out_exact() {
        let text = serde_json::to_string(&vec![MicroUsd(1), MicroUsd(-40_000_000), MicroUsd(12_340_000)]);
        assert_eq!(text.expect("serialises"), "[0.000001,-40,12.34]");
    }

    proptest! {
        #[test]
        fn what_is_printed_reads_back(micros in any::<i64>()) {
            prop_assume!(micros != i64::MIN);
            let value = MicroUsd(micros);
            prop_assert_eq!(MicroUsd::parse(&value.to_string()), Ok(value));
        }

        #[test]
        fn no_text_panics(text in ".{0,80}") {
            let _ = MicroUsd::from_json_text(&text);
            let _ = Cost::from_json_text(&text);
        }
    }
}
