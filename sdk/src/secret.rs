//! Texts that must not be seen: keys, tokens, passphrases. Redacted in every output, wiped from memory when dropped,
//! never serialised.

use std::convert::Infallible;
use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Deserializer};
use zeroize::Zeroize as _;

/// A secret text.
#[derive(Clone)]
pub struct Secret(String);

impl Secret {
    /// Takes a text over.
    pub fn new(text: impl Into<String>) -> Self {
        Self(text.into())
    }

    /// The text itself; for the place that uses it, never for output.
    pub fn expose(&self) -> &str {
        &self.0
    }

    /// No text at all.
    pub const fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Takes the content of a secret's file over: without the line end that editors add.
    pub fn from_file_text(mut text: String) -> Self {
        let kept = text.trim_end_matches(['\r', '\n']).to_owned();
        text.zeroize();
        Self(kept)
    }
}

impl Drop for Secret {
    fn drop(&mut self) {
        self.0.zeroize();
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Secret(redacted)")
    }
}

impl From<String> for Secret {
    fn from(text: String) -> Self {
        Self(text)
    }
}

impl From<&str> for Secret {
    fn from(text: &str) -> Self {
        Self(text.to_owned())
    }
}

impl FromStr for Secret {
    type Err = Infallible;

    fn from_str(text: &str) -> Result<Self, Infallible> {
        Ok(Self(text.to_owned()))
    }
}

impl<'de> Deserialize<'de> for Secret {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer).map(Self)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_secret_is_never_shown_by_debug() {
        let secret = Secret::from("otonix_123");
        assert_eq!(format!("{secret:?} {:?}", Some(&secret)), "Secret(redacted) Some(Secret(redacted))");
        assert_eq!(secret.expose(), "otonix_123");
    }

    #[test]
    fn the_line_end_of_a_file_is_no_part_of_its_secret() {
        assert_eq!(Secret::from_file_text("abc \r\n".to_owned()).expose(), "abc ");
    }
}
