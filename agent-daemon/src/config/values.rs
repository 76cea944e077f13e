//! Values of `agent.toml` that can be written in more than one way.

use std::collections::BTreeMap;
use std::fmt;

use otonix_sdk::money::MicroUsd;
use serde::Deserialize;
use serde::de::{Deserializer, Error, MapAccess, SeqAccess, Visitor};

/// An amount: a decimal text, or a whole number. A number with a fraction is refused: it is a binary float.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Usdc(MicroUsd);

impl Usdc {
    /// Whole USDC.
    pub const fn whole(usdc: i32) -> Self {
        Self(MicroUsd::from_usdc(usdc))
    }

    /// The exact amount.
    pub const fn get(self) -> MicroUsd {
        self.0
    }
}

impl fmt::Display for Usdc {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl<'de> Deserialize<'de> for Usdc {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Amount;
        impl Visitor<'_> for Amount {
            type Value = Usdc;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an amount of USDC as a text, like \"2.5\"")
            }
            fn visit_str<E: Error>(self, text: &str) -> Result<Usdc, E> {
                let amount = MicroUsd::parse(text).map_err(E::custom)?;
                if amount.is_negative() {
                    return Err(E::custom("must not be negative"));
                }
                Ok(Usdc(amount))
            }
            fn visit_i64<E: Error>(self, number: i64) -> Result<Usdc, E> {
                self.visit_str(&number.to_string())
            }
            fn visit_u64<E: Error>(self, number: u64) -> Result<Usdc, E> {
                self.visit_str(&number.to_string())
            }
        }
        deserializer.deserialize_any(Amount)
    }
}

/// Texts: a list, or one text with commas.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct List(pub Vec<String>);

impl<'de> Deserialize<'de> for List {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Texts;
        impl<'de> Visitor<'de> for Texts {
            type Value = List;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a list of texts, or a text with commas")
            }
            fn visit_str<E: Error>(self, text: &str) -> Result<List, E> {
                let parts = text.split(',').map(str::trim).filter(|part| !part.is_empty());
                Ok(List(parts.map(str::to_owned).collect()))
            }
            fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<List, A::Error> {
                let mut texts = Vec::new();
                while let Some(text) = seq.next_element()? {
                    texts.push(text);
                }
                Ok(List(texts))
            }
        }
        deserializer.deserialize_any(Texts)
    }
}

/// A program and its arguments.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CommandLine(Vec<String>);

impl CommandLine {
    /// Program and arguments as they are.
    pub const fn new(words: Vec<String>) -> Self {
        Self(words)
    }

    /// There is no program.
    pub fn is_empty(&self) -> bool {
        self.0.first().is_none_or(String::is_empty)
    }

    /// Program and arguments.
    pub fn words(&self) -> &[String] {
        &self.0
    }
}

impl<'de> Deserialize<'de> for CommandLine {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Words;
        impl<'de> Visitor<'de> for Words {
            type Value = CommandLine;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a list of program and arguments, or a text for the shell")
            }
            fn visit_str<E: Error>(self, text: &str) -> Result<CommandLine, E> {
                if text.trim().is_empty() {
                    return Ok(CommandLine(Vec::new()));
                }
                Ok(CommandLine(vec!["/bin/sh".to_owned(), "-c".to_owned(), text.to_owned()]))
            }
            fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<CommandLine, A::Error> {
                let mut words = Vec::new();
                while let Some(word) = seq.next_element()? {
                    words.push(word);
                }
                Ok(CommandLine(words))
            }
        }
        deserializer.deserialize_any(Words)
    }
}

/// Variables for the agent's process; `None` as a value: taken from the daemon's environment.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Variables(BTreeMap<String, Option<String>>);

/// Never given to the agent's process, whatever is configured.
const WITHHELD: [&str; 9] = [
    "NOTIFY_SOCKET",
    "CREDENTIALS_DIRECTORY",
    "WATCHDOG_PID",
    "WATCHDOG_USEC",
    "LISTEN_FDS",
    "LISTEN_PID",
    "LISTEN_FDNAMES",
    "OTONIX_API_KEY",
    "OTONIX_OPERATOR_TOKEN",
];

impl Variables {
    fn add(&mut self, name: &str, value: Option<String>) -> Result<(), String> {
        let fine = !name.is_empty()
            && name.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'_')
            && !name.as_bytes().first().is_some_and(u8::is_ascii_digit);
        if !fine {
            return Err(format!("`{name}` is not a variable's name"));
        }
        if WITHHELD.contains(&name) {
            return Err(format!("`{name}` is never given to the agent's process"));
        }
        if value.as_ref().is_some_and(|value| value.contains('\0')) {
            return Err(format!("the value of `{name}` contains a NUL character"));
        }
        self.0.insert(name.to_owned(), value);
        Ok(())
    }

    /// Names and values; those to be taken over are looked up.
    pub fn resolve(&self, own: &[(String, String)]) -> Vec<(String, String)> {
        let inherited = |name: &str| own.iter().find(|(own, _)| own == name).map(|(_, value)| value.clone());
        self.0
            .iter()
            .filter_map(|(name, value)| Some((name.clone(), value.clone().or_else(|| inherited(name))?)))
            .collect()
    }
}

impl<'de> Deserialize<'de> for Variables {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Entries;
        impl<'de> Visitor<'de> for Entries {
            type Value = Variables;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a table of texts, or a list of NAME=value and NAME")
            }
            fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Variables, A::Error> {
                let mut variables = Variables::default();
                while let Some(entry) = seq.next_element::<String>()? {
                    let (name, value) = match entry.split_once('=') {
                        Some((name, value)) => (name, Some(value.to_owned())),
                        None => (entry.as_str(), None),
                    };
                    variables.add(name, value).map_err(A::Error::custom)?;
                }
                Ok(variables)
            }
            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Variables, A::Error> {
                let mut variables = Variables::default();
                while let Some((name, value)) = map.next_entry::<String, String>()? {
                    variables.add(&name, Some(value)).map_err(A::Error::custom)?;
                }
                Ok(variables)
            }
        }
        deserializer.deserialize_any(Entries)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Deserialize)]
    struct Holder<T> {
        v: T,
    }

    fn read<T: for<'de> Deserialize<'de>>(text: &str) -> Result<T, String> {
        toml::from_str::<Holder<T>>(text).map(|holder| holder.v).map_err(|error| error.to_string())
    }

    #[test]
    fn a_command_is_a_list_or_a_text_for_the_shell() {
        let words = |text| read::<CommandLine>(text).expect("reads").words().to_vec();
        assert_eq!(words("v = ['a', 'b c']"), ["a", "b c"]);
        assert_eq!(words("v = 'a | b'"), ["/bin/sh", "-c", "a | b"]);
        assert!(read::<CommandLine>("v = ' '").expect("reads").is_empty());
    }

    #[test]
    fn variables_are_a_table_or_a_list_and_secrets_are_refused() {
        let own = [("KEPT".to_owned(), "own".to_owned())];
        let list = read::<Variables>("v = ['A=1=2', 'KEPT', 'MISSING']").expect("reads");
        let expected = [("A".to_owned(), "1=2".to_owned()), ("KEPT".to_owned(), "own".to_owned())];
        assert_eq!(list.resolve(&own), expected);
        let table = read::<Variables>("v = { B = 'x' }").expect("reads");
        assert_eq!(table.resolve(&[]), [("B".to_owned(), "x".to_owned())]);
        for refused in [
            "v = ['NOTIFY_SOCKET']",
            "v = ['OTONIX_API_KEY=x']",
            "v = { CREDENTIALS_DIRECTORY = '/x' }",
            "v = ['=x']",
            "v = ['A B=x']",
        ] {
            assert!(read::<Variables>(refused).is_err(), "{refused}");
        }
    }
}
