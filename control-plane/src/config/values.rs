//! The forms in which values may be written in the file.

use serde::Deserialize;

/// A list, or one text with commas, as in the environment.
pub(super) fn one_or_more<'de, D: serde::Deserializer<'de>>(
    deserializer: D,
) -> Result<Option<Vec<String>>, D::Error> {
    #[derive(Deserialize)]
    #[serde(untagged)]
    enum Either {
        One(String),
        More(Vec<String>),
    }
    Ok(Some(match Either::deserialize(deserializer)? {
        Either::One(text) => text.split(',').map(|part| part.trim().to_owned()).collect(),
        Either::More(parts) => parts,
    }))
}

/// A text, or a number without quotes.
pub(super) fn text_or_number<'de, D: serde::Deserializer<'de>>(
    deserializer: D,
) -> Result<Option<String>, D::Error> {
    let value = toml::Value::deserialize(deserializer)?;
    Ok(Some(value.as_str().map_or_else(|| value.to_string(), str::to_owned)))
}
