//! A JSON body read so that whoever wrote it can correct it: every error names the field, none a type of ours.

use serde::de::DeserializeOwned;

/// Levels that a body may nest. Fields that nobody reads count too: they are skipped, but not for ever.
const MAX_DEPTH: usize = 128;

/// Why a body cannot be read.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Unreadable {
    /// It is no JSON object.
    #[error("{0}")]
    NoObject(String),
    /// A field is missing, twice there, or not what it must be.
    #[error("`{field}` {why}")]
    Field {
        /// As it is written in the body, with the path to it.
        field: String,
        /// What it must be.
        why: String,
    },
}

/// Reads a JSON object.
///
/// # Errors
/// [`Unreadable`].
pub fn read<T: DeserializeOwned>(body: &[u8]) -> Result<T, Unreadable> {
    let none = |why: String| Unreadable::NoObject(why);
    match body.iter().find(|byte| !byte.is_ascii_whitespace()) {
        None => return Err(none("a JSON object is needed".to_owned())),
        Some(b'{') => {}
        Some(_) => {
            let is_json = serde_json::from_slice::<serde::de::IgnoredAny>(body).is_ok();
            let what = if is_json { "the body must be a JSON object" } else { "the body is not JSON" };
            return Err(none(what.to_owned()));
        }
    }
    if is_too_deep(body) {
        return Err(none(format!("the body nests more than {MAX_DEPTH} levels")));
    }
    let mut reader = serde_json::Deserializer::from_slice(body);
    let value = serde_path_to_error::deserialize(&mut reader).map_err(|error| {
        let field = error.path().to_string();
        let why = error.into_inner();
        if why.is_data() {
            of_field(&field, &why.to_string())
        } else {
            none(format!("the body is not JSON: {why}"))
        }
    })?;
    reader.end().map_err(|why| none(format!("the body is not JSON: {why}")))?;
    Ok(value)
}

/// Reads the object in a field that was first taken as it came.
///
/// # Errors
/// [`Unreadable`], the field's name in front.
pub fn read_field<T: DeserializeOwned>(field: &str, value: &serde_json::Value) -> Result<T, Unreadable> {
    read(value.to_string().as_bytes()).map_err(|why| match why {
        Unreadable::NoObject(_) => {
            Unreadable::Field { field: field.to_owned(), why: "must be an object".to_owned() }
        }
        Unreadable::Field { field: inner, why } => {
            Unreadable::Field { field: format!("{field}.{inner}"), why }
        }
    })
}

fn is_too_deep(body: &[u8]) -> bool {
    let mut depth = 0_usize;
    let mut in_text = false;
    let mut bytes = body.iter();
    while let Some(byte) = bytes.next() {
        match byte {
            b'"' => in_text = !in_text,
            b'\\' if in_text => _ = bytes.next(),
            b'[' | b'{' if !in_text => {
                depth += 1;
                if depth > MAX_DEPTH {
                    return true;
                }
            }
            b']' | b'}' if !in_text => depth = depth.saturating_sub(1),
            _ => {}
        }
    }
    false
}

fn of_field(path: &str, why: &str) -> Unreadable {
    // serde ends its messages with the position in the text.
    let why = why.split(" at line ").next().unwrap_or(why);
    let quoted = |start: &str| why.strip_prefix(start).and_then(|rest| rest.split('`').next());
    let field = |field: &str, why: &str| Unreadable::Field { field: field.to_owned(), why: why.to_owned() };
    if let Some(twice) = quoted("duplicate field `") {
        return field(&beside(path, twice), "is there twice");
    }
    match quoted("missing field `") {
        Some(missing) => field(&beside(path, missing), "is needed"),
        None => Unreadable::Field { field: path.to_owned(), why: in_words(why) },
    }
}

/// A field of the object at a path; serde names some of them in the path already.
fn beside(path: &str, field: &str) -> String {
    if path == "." || path == field || path.ends_with(&format!(".{field}")) {
        return if path == "." { field.to_owned() } else { path.to_owned() };
    }
    format!("{path}.{field}")
}

/// What a value must be, in the words of JSON instead of those of the program that reads it.
fn in_words(why: &str) -> String {
    let Some((given, expected)) = why.split_once(", expected ") else { return why.to_owned() };
    if given.starts_with("invalid length") && expected.starts_with("struct ") {
        return "must be an object, not a list".to_owned();
    }
    let given = given.strip_prefix("invalid type: ").or_else(|| given.strip_prefix("invalid value: "));
    let Some(given) = given else { return why.to_owned() };
    let wanted = match expected {
        "i8" | "i16" | "i32" | "i64" | "u8" | "u16" | "u32" | "u64" | "usize" => {
            "a whole number in its range"
        }
        "f32" | "f64" => "a number",
        "a string" | "a borrowed string" | "str" => "a text",
        "a boolean" => "true or false",
        "a sequence" => "a list",
        "a map" => "an object",
        "string or map" => "one of its values",
        kind if kind.starts_with("struct ") => "an object",
        kind if kind.starts_with("enum ") => "one of its values",
        kind if kind.contains("struct ") || kind.contains("variant ") => "of another form",
        other => other,
    };
    match given.split(' ').next().unwrap_or(given) {
        "map" => format!("must be {wanted}, not an object"),
        "sequence" => format!("must be {wanted}, not a list"),
        "string" => format!("must be {wanted}, not a text"),
        "boolean" => format!("must be {wanted}, not true or false"),
        "null" => format!("must be {wanted}, not null"),
        _ => format!("must be {wanted}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::api::agents::{Grant, RegisterAgent};
    use crate::api::events::Event;

    fn field_of<T: DeserializeOwned + std::fmt::Debug>(body: &str) -> (String, String) {
        match read::<T>(body.as_bytes()) {
            Err(Unreadable::Field { field, why }) => (field, why),
            other => panic!("{body}: {other:?}"),
        }
    }

    #[test]
    fn a_wrong_field_is_named() {
        for (body, field) in [
            (r#"{"reason": "x"}"#, "amount"),
            (r#"{"amount": 0, "reason": "x"}"#, "amount"),
            (r#"{"amount": 1e400, "reason": "x"}"#, "amount"),
            (r#"{"amount": 1, "reason": 5}"#, "reason"),
            (r#"{"amount": 1, "reason": "x", "amount": 2}"#, "amount"),
        ] {
            assert_eq!(field_of::<Grant>(body).0, field, "{body}");
        }
        let id = "0197a000-0000-7000-8000-000000000001";
        let event = format!(r#"{{"seq": 1, "id": "{id}", "action": {{"action": "x"}}}}"#);
        assert_eq!(field_of::<Event>(&event), ("action.category".to_owned(), "is needed".to_owned()));
    }

    #[test]
    fn no_type_of_ours_is_named() {
        for (body, field, why) in [
            (r#"{"name": "a", "walletProof": "x"}"#, "walletProof", "must be an object, not a text"),
            (r#"{"name": "a", "walletProof": []}"#, "walletProof", "must be an object, not a list"),
            (r#"{"name": 5}"#, "name", "must be a text"),
            (r#"{"name": {}}"#, "name", "must be a text, not an object"),
            (
                r#"{"name": "a", "heartbeatInterval": "x"}"#,
                "heartbeatInterval",
                "must be a whole number in its range, not a text",
            ),
        ] {
            assert_eq!(field_of::<RegisterAgent>(body), (field.to_owned(), why.to_owned()));
        }
        for (value, field, why) in [
            (serde_json::json!("x"), "server", "must be an object"),
            (serde_json::json!({"amount": 1}), "server.reason", "is needed"),
            (serde_json::json!({"amount": 1, "reason": 5}), "server.reason", "must be a text"),
        ] {
            let unread = read_field::<Grant>("server", &value);
            let expected = Unreadable::Field { field: field.to_owned(), why: why.to_owned() };
            assert_eq!(unread.expect_err("it is none"), expected);
        }
        let (field, why) = field_of::<Event>(r#"{"seq": 1, "id": "x", "tierEffect": {"tier": 5}}"#);
        assert!(field == "id" && !why.contains("struct"), "{field} {why}");
    }

    #[test]
    fn what_is_no_object_is_refused() {
        let deep = format!("{{\"metadata\":{}{}}}", "[".repeat(5000), "]".repeat(5000));
        for body in ["", "[]", "[1,\"x\"]", "nonsense", "{", "{}}", "\u{0}", &deep] {
            let unread = read::<Grant>(body.as_bytes());
            assert!(unread.is_err(), "{body:.20}");
        }
        assert!(read::<Grant>(b"{\"amount\": 1, \"reason\": \"\xff\"}").is_err());
    }

    #[test]
    fn depth_is_counted_outside_of_texts() {
        let nested = |levels: usize| format!("{}{}", "[".repeat(levels), "]".repeat(levels));
        assert!(!is_too_deep(nested(MAX_DEPTH).as_bytes()));
        assert!(is_too_deep(nested(MAX_DEPTH + 1).as_bytes()));
        let text = format!(r#"{{"a":"{}\"{}"}}"#, "[".repeat(500), "{".repeat(500));
        assert!(!is_too_deep(text.as_bytes()));
        assert!(!is_too_deep("[]".repeat(500).as_bytes()));
    }
}
