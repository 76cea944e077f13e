//! Prices as vendors write them: exact decimals in the vendor's currency, read from the source text.

use std::fmt;

use otonix_sdk::money::MicroUsd;
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use serde_json::value::RawValue;

/// Decimal places that are kept; a vendor's float noise beyond them is rounded up.
const PLACES: i32 = 12;
const ONE: i128 = 1_000_000_000_000;
/// Largest price read: a billion of anything.
const MAX: i128 = 1_000_000_000 * ONE;

/// A decimal amount of no currency, not negative, exact to twelve places.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Decimal(i128);

impl Decimal {
    /// Nothing.
    pub const ZERO: Self = Self(0);

    /// Reads a number as it stands in JSON, or a plain decimal text; `None` when it is neither, negative or absurd.
    pub fn parse(text: &str) -> Option<Self> {
        let text = text.trim();
        let (mantissa, exponent) = match text.split_once(['e', 'E']) {
            Some((mantissa, exponent)) => (mantissa, exponent.parse::<i32>().ok()?),
            None => (text, 0),
        };
        let (whole, fraction) = mantissa.split_once('.').unwrap_or((mantissa, "0"));
        let digits = format!("{whole}{fraction}");
        let plain = !whole.is_empty() && !fraction.is_empty() && digits.len() <= 64;
        if !plain || !digits.bytes().all(|byte| byte.is_ascii_digit()) || !(-400..=400).contains(&exponent) {
            return None;
        }
        // The value is `digits * 10^(exponent - fraction.len())`.
        let shift = exponent - i32::try_from(fraction.len()).ok()? + PLACES;
        let digits = digits.trim_start_matches('0');
        if digits.is_empty() {
            return Some(Self::ZERO);
        }
        let value = if shift >= 0 {
            let factor = 10_i128.checked_pow(u32::try_from(shift).ok()?)?;
            digits.parse::<i128>().ok()?.checked_mul(factor)?
        } else {
            let kept = digits.len().saturating_sub(usize::try_from(-shift).ok()?);
            let (kept, dropped) = digits.split_at(kept);
            let floor = if kept.is_empty() { 0 } else { kept.parse::<i128>().ok()? };
            floor + i128::from(dropped.bytes().any(|byte| byte != b'0'))
        };
        (value <= MAX).then_some(Self(value))
    }

    /// The sum.
    pub fn checked_add(self, other: Self) -> Option<Self> {
        self.0.checked_add(other.0).filter(|sum| *sum <= MAX).map(Self)
    }

    /// So many times this.
    pub fn checked_mul(self, times: u32) -> Option<Self> {
        self.0.checked_mul(i128::from(times)).filter(|product| *product <= MAX).map(Self)
    }

    /// This times another decimal, rounded up to the twelfth place.
    pub fn times(self, factor: Self) -> Option<Self> {
        let product = self.0.checked_mul(factor.0)?;
        let rounded = product.checked_add(ONE - 1)? / ONE;
        (rounded <= MAX).then_some(Self(rounded))
    }

    /// This with so many percent on top, rounded up to the twelfth place.
    pub fn plus_percent(self, percent: Self) -> Option<Self> {
        let more = self.0.checked_mul(percent.0)?.checked_add(100 * ONE - 1)? / (100 * ONE);
        self.checked_add(Self(more))
    }

    /// As USDC when this is in dollars, rounded up to the micro-unit; `None` when it does not fit.
    pub fn to_micro_usd(self) -> Option<MicroUsd> {
        i64::try_from((self.0 + 999_999) / 1_000_000).ok().map(MicroUsd::from_micros)
    }

    /// The dollars of an amount; `None` when it is negative.
    pub fn from_micro_usd(amount: MicroUsd) -> Option<Self> {
        (!amount.is_negative()).then(|| Self(i128::from(amount.micros()) * 1_000_000))
    }
}

impl fmt::Display for Decimal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (whole, fraction) = (self.0 / ONE, self.0 % ONE);
        if fraction == 0 {
            return write!(f, "{whole}");
        }
        let padded = format!("{fraction:012}");
        write!(f, "{whole}.{}", padded.trim_end_matches('0'))
    }
}

impl Serialize for Decimal {
    /// Written to JSON as an exact number.
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        use serde::ser::Error as _;
        RawValue::from_string(self.to_string()).map_err(S::Error::custom)?.serialize(serializer)
    }
}

impl<'de> Deserialize<'de> for Decimal {
    /// Read from the source text of a number, or from a text with one.
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        use serde::de::Error as _;
        let raw = Box::<RawValue>::deserialize(deserializer)?;
        let text = raw.get().trim().trim_matches('"');
        Self::parse(text).ok_or_else(|| D::Error::custom("not a price"))
    }
}

/// A currency that a vendor bills in.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(from = "String", into = "String")]
pub enum Currency {
    /// US dollars: one USDC each.
    Usd,
    /// Euros: by the configured rate.
    Eur,
    /// Any other: nothing is quoted in it.
    Other(String),
}

impl From<String> for Currency {
    fn from(text: String) -> Self {
        match text.as_str() {
            "USD" => Self::Usd,
            "EUR" => Self::Eur,
            _ => Self::Other(text),
        }
    }
}

impl From<Currency> for String {
    fn from(currency: Currency) -> Self {
        match currency {
            Currency::Usd => "USD".to_owned(),
            Currency::Eur => "EUR".to_owned(),
            Currency::Other(text) => text,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn prices_are_read_exactly_and_noise_is_rounded_up() {
        for (text, written) in [
            ("11.25", "11.25"),
            ("0.015", "0.015"),
            ("1e-2", "0.01"),
            ("2499.0", "2499"),
            ("0", "0"),
            ("0.018150000000000002", "0.018150000001"),
            ("1E3", "1000"),
            ("0.0000000000000001", "0.000000000001"),
        ] {
            assert_eq!(Decimal::parse(text).expect(text).to_string(), written, "{text}");
        }
        for bad in ["", "-1", "NaN", "1e400000", "1e30", "0x10", "1,5", ".5", "5.", "null", "1 2"] {
            assert_eq!(Decimal::parse(bad), None, "{bad}");
        }
    }

    #[test]
    fn amounts_become_usdc_rounded_up() {
        let of = |text: &str| Decimal::parse(text).expect("a decimal");
        assert_eq!(of("11.25").to_micro_usd(), Some(MicroUsd::from_micros(11_250_000)));
        assert_eq!(of("0.0000001").to_micro_usd(), Some(MicroUsd::from_micros(1)));
        assert_eq!(of("0.015").plus_percent(of("21")), Some(of("0.01815")));
        assert_eq!(of("0.01815").times(of("1.1")), Some(of("0.019965")));
        assert_eq!(of("0.015").checked_mul(24), Some(of("0.36")));
    }

    #[test]
    fn a_price_may_be_a_number_or_a_text() {
        for json in ["11.25", "\"11.25\"", "1.125e1"] {
            assert_eq!(serde_json::from_str::<Decimal>(json).expect(json).to_string(), "11.25");
        }
        for json in ["null", "\"x\"", "{}", "-1", "true"] {
            assert!(serde_json::from_str::<Decimal>(json).is_err(), "{json}");
        }
    }
}
