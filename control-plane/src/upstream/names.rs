//! Names that vendors are asked about. Parsed once, they can be written into a path without leaving it.

use std::fmt;

use crate::error::Error;

/// Longest id or slug of a vendor.
const MAX_SLUG: usize = 128;

/// A vendor's id or slug in text: a letter or digit, then letters, digits, `.`, `_` and `-`.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Slug(String);

impl Slug {
    /// Reads a slug; `None` when it is none.
    pub fn parse(text: &str) -> Option<Self> {
        let fits = (1..=MAX_SLUG).contains(&text.len());
        let starts = text.as_bytes().first().is_some_and(u8::is_ascii_alphanumeric);
        let plain = text.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"._-".contains(&byte));
        (fits && starts && plain).then(|| Self(text.to_owned()))
    }

    /// Reads a slug from a field of a request.
    ///
    /// # Errors
    /// [`Error::Invalid`] naming the field.
    pub fn of_field(field: &str, text: &str) -> Result<Self, Error> {
        let why = "must be letters, digits, `.`, `_` and `-`, beginning with a letter or digit";
        Self::parse(text).ok_or_else(|| Error::invalid(field, why))
    }

    /// The text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for Slug {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// A domain name in its ASCII form: lower case, at least two labels, no dot at its end.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct DomainName(String);

impl DomainName {
    /// Reads a name and brings it into its ASCII form (UTS 46).
    ///
    /// # Errors
    /// [`Error::Invalid`] naming the field when it is no domain name.
    pub fn of_field(field: &str, name: &str) -> Result<Self, Error> {
        Self::parse(name).ok_or_else(|| Error::invalid(field, "must be a domain name"))
    }

    /// Reads a name and brings it into its ASCII form (UTS 46); `None` when it is none.
    pub fn parse(name: &str) -> Option<Self> {
        if name.len() > 1024 {
            return None;
        }
        let name = name.trim();
        let ascii = idna::domain_to_ascii_strict(name.strip_suffix('.').unwrap_or(name)).ok()?;
        let label_fits = |label: &str| {
            let plain = label.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'-');
            plain && (1..=63).contains(&label.len()) && !label.starts_with('-') && !label.ends_with('-')
        };
        let numeric_end = ascii.rsplit('.').next().is_none_or(|tld| tld.bytes().all(|b| b.is_ascii_digit()));
        let is_name = ascii.len() <= 253
            && ascii.split('.').count() >= 2
            && !numeric_end
            && ascii.split('.').all(label_fits);
        is_name.then_some(Self(ascii))
    }

    /// The text.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// What follows the first label.
    pub fn tld(&self) -> &str {
        self.0.split_once('.').map_or("", |(_, tld)| tld)
    }

    /// Whether a label is written in punycode.
    pub fn is_international(&self) -> bool {
        self.0.split('.').any(|label| label.starts_with("xn--"))
    }
}

impl fmt::Display for DomainName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_normalised() {
        for (name, ascii) in [
            ("Example.COM", "example.com"),
            ("example.com.", "example.com"),
            ("münchen.de", "xn--mnchen-3ya.de"),
            ("a.b.c.example.org", "a.b.c.example.org"),
        ] {
            assert_eq!(DomainName::parse(name).expect(name).as_str(), ascii);
        }
        for bad in [
            "", "com", "-a.com", "a_b.com", "a b.com", "1.2.3.4", "a..com", "a.com..", "../x.com", "a.com/x",
            "a\0.com",
        ] {
            assert!(DomainName::parse(bad).is_none(), "{bad}");
        }
    }

    #[test]
    fn nothing_that_leaves_a_path_is_a_slug() {
        for good in
            ["B1-1-1gb-20s-shared", "LT-Siauliai", "ubuntu_24_04_64bit", "rec_V0fra8", "383531", "a..b"]
        {
            assert!(Slug::parse(good).is_some(), "{good}");
        }
        let long = "a".repeat(129);
        for bad in [
            "",
            ".",
            "..",
            "../../user",
            "%2e%2e",
            "a?x=",
            "a/b",
            "a#b",
            "a\r\nHost: x",
            "a b",
            "é",
            "-a",
            &long,
        ] {
            assert!(Slug::parse(bad).is_none(), "{bad}");
        }
    }
}
