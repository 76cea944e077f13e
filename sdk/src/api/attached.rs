//! A JSON object that somebody attached to a record: kept as it was written, since its numbers may have more digits
//! than any type for numbers has.

use serde::{Deserialize, Deserializer, Serialize};
use serde_json::value::RawValue;
use serde_json::{Map, Value};

use crate::limits::Invalid;

/// Bytes that an attached object may have.
pub const MAX_ATTACHED: usize = 16_384;
/// Digits of a number in it, and the largest power of ten: what every database can hold.
const MAX_DIGITS: usize = 1000;

/// A JSON object as text, without white space between its parts.
#[derive(Debug, Clone, Serialize)]
#[serde(transparent)]
pub struct Attached(Box<RawValue>);

impl From<Map<String, Value>> for Attached {
    fn from(object: Map<String, Value>) -> Self {
        Self(
            serde_json::value::to_raw_value(&object)
                .expect("texts, numbers and lists of them always make JSON"),
        )
    }
}

impl Default for Attached {
    fn default() -> Self {
        Self::from(Map::new())
    }
}

impl<'de> Deserialize<'de> for Attached {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = Box::<RawValue>::deserialize(deserializer)?;
        if !text.get().starts_with('{') {
            return Err(serde::de::Error::custom("must be an object"));
        }
        let compact = parts(text.get()).collect::<String>();
        RawValue::from_string(compact).map(Self).map_err(serde::de::Error::custom)
    }
}

impl Attached {
    /// The object as it is kept.
    pub fn text(&self) -> &str {
        self.0.get()
    }

    /// Its fields, for those who look for one of them.
    pub fn fields(&self) -> Map<String, Value> {
        serde_json::from_str(self.text()).unwrap_or_default()
    }

    /// Checks its size, and that every database can hold what is in it.
    ///
    /// # Errors
    /// [`Invalid`] naming the field.
    pub fn check(&self, field: &'static str) -> Result<(), Invalid> {
        if self.text().len() > MAX_ATTACHED {
            return Err(Invalid::new(field, format!("must have at most {MAX_ATTACHED} bytes")));
        }
        for part in parts(self.text()) {
            if part.starts_with('"') {
                let text: String = serde_json::from_str(part)
                    .map_err(|_| Invalid::new(field, "must hold no half of a character"))?;
                if text.contains('\0') {
                    return Err(Invalid::new(field, "must not contain a NUL character"));
                }
            } else if !is_sane_number(part) {
                return Err(Invalid::new(field, "must not hold a number of such a size"));
            }
        }
        Ok(())
    }
}

/// True also of what is no number.
fn is_sane_number(part: &str) -> bool {
    let power =
        part.split_once(['e', 'E']).filter(|_| part.starts_with(|c: char| c == '-' || c.is_ascii_digit()));
    let fits =
        |power: &str| power.parse::<i32>().is_ok_and(|power| power.unsigned_abs() as usize <= MAX_DIGITS);
    part.len() <= MAX_DIGITS && power.is_none_or(|(_, power)| fits(power))
}

/// The parts of a JSON text: a string, a number or word, or one sign each.
fn parts(json: &str) -> impl Iterator<Item = &str> {
    let mut rest = json;
    std::iter::from_fn(move || {
        rest = rest.trim_ascii_start();
        let first = rest.chars().next()?;
        let is_sign = |c: char| "{}[],:\"".contains(c) || c.is_ascii_whitespace();
        let end = match first {
            '"' => string_end(rest),
            sign if is_sign(sign) => 1,
            _ => rest.find(is_sign).unwrap_or(rest.len()),
        };
        let (part, after) = rest.split_at_checked(end)?;
        rest = after;
        Some(part)
    })
}

fn string_end(text: &str) -> usize {
    let mut escaped = false;
    for (at, byte) in text.bytes().enumerate().skip(1) {
        match byte {
            _ if escaped => escaped = false,
            b'\\' => escaped = true,
            b'"' => return at + 1,
            _ => {}
        }
    }
    text.len()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str) -> Result<Attached, serde_json::Error> {
        serde_json::from_str(text)
    }

    #[test]
    fn an_object_keeps_its_numbers_and_loses_its_white_space() {
        let text = "{ \"wei\" : 123456789012345678901234567890.000000000000000001 ,\n \"a b\": [1e3, -0.10, \"\\\" {\"] }";
        let kept = read(text).expect("an object");
        let expected =
            "{\"wei\":123456789012345678901234567890.000000000000000001,\"a b\":[1e3,-0.10,\"\\\" {\"]}";
        assert_eq!(kept.text(), expected);
        assert_eq!(kept.check("metadata"), Ok(()));
        assert_eq!(serde_json::to_string(&kept).expect("written"), expected);
    }

    #[test]
    fn what_a_database_cannot_hold_is_refused() {
        for other in ["[]", "5", "\"{}\"", "null", "{", "{\"a\":01}"] {
            assert!(read(other).is_err(), "{other}");
        }
        let long = format!("{{\"a\":{}}}", "1".repeat(1001));
        let big = format!("{{\"a\":\"{}\"}}", "x".repeat(MAX_ATTACHED));
        for bad in [
            "{\"a\":1e1001}",
            "{\"a\":[1E-99999999999]}",
            "{\"a\":\"\\u0000\"}",
            "{\"\\ud800\":1}",
            &long,
            &big,
        ] {
            assert!(read(bad).expect("JSON").check("metadata").is_err(), "{bad:.30}");
        }
        for fine in ["{}", "{\"a\":1e400,\"e9999\":true}", "{\"a\":\"\\ud83d\\ude00 1e9999\"}"] {
            assert_eq!(read(fine).expect("JSON").check("metadata"), Ok(()), "{fine}");
        }
    }
}
