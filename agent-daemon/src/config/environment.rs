//! `OTONIX_<SECTION>_<KEY>`: the keys of `agent.toml` as environment variables.

use anyhow::bail;
use figment::providers::Serialized;
use figment::value::{Dict, Value};

/// Sections and their keys; a key with `true` is always a text, also when it looks like a number.
const KEYS: &[(&str, &[(&str, bool)])] = &[
    (
        "agent",
        &[
            ("id", true),
            ("name", true),
            ("model", true),
            ("wallet_address", true),
            ("command", false),
            ("dir", true),
            ("user", true),
            ("env", false),
            ("restart", true),
            ("stop_grace", false),
            ("progress_timeout", false),
            ("output", true),
            ("output_file", true),
            ("output_max_bytes", false),
            ("output_keep", false),
        ],
    ),
    (
        "link",
        &[
            ("server", true),
            ("transport", true),
            ("heartbeat_interval", false),
            ("spool_max_bytes", false),
            ("vps_ip", true),
        ],
    ),
    ("tier.full", TIER),
    ("tier.conservation", TIER),
    ("tier.critical", TIER),
    ("tier.terminated", TIER),
    (
        "pay",
        &[
            ("max_payment", true),
            ("max_hour", true),
            ("max_day", true),
            ("reserve", true),
            ("hosts", false),
            ("essential", false),
            ("allow_private_addresses", false),
            ("allow_shared_uid", false),
            ("paused", false),
        ],
    ),
    ("chain", &[("rpc", true), ("id", false), ("asset", true)]),
    ("topup", &[("below", true), ("amount", true), ("max_day", true)]),
];

const TIER: &[(&str, bool)] = &[("interval", false), ("model", true), ("optional_work", false)];

/// Options of the control plane that begin with the same words.
const OF_THE_CONTROL_PLANE: &[&str] =
    &["OTONIX_CHAIN_START_BLOCK", "OTONIX_AGENT_PACKAGE_URL", "OTONIX_AGENT_PACKAGE_SHA256"];

/// The values that the environment sets. A variable that looks like a key of a section but is none is an error.
pub(super) fn provider(variables: &[(String, String)]) -> anyhow::Result<Serialized<Dict>> {
    let mut root = Dict::new();
    for (variable, text) in variables {
        let Some(name) = variable.strip_prefix("OTONIX_") else { continue };
        // The contract's short name of it.
        let name = if name == "ASSET" { "chain_asset".to_owned() } else { name.to_ascii_lowercase() };
        let Some((section, keys, key)) = split(&name) else { continue };
        let Some((key, is_text)) = keys.iter().find(|(known, _)| *known == key) else {
            if OF_THE_CONTROL_PLANE.contains(&variable.as_str()) {
                continue;
            }
            bail!("{variable} names no key of [{section}]");
        };
        let value = if *is_text { Value::from(text.clone()) } else { parse(text) };
        insert(&mut root, section, key, value);
    }
    Ok(Serialized::defaults(root))
}

type Keys = &'static [(&'static str, bool)];

fn split(name: &str) -> Option<(&'static str, Keys, &str)> {
    KEYS.iter().find_map(|(section, keys)| {
        let key = name.strip_prefix(&section.replace('.', "_"))?.strip_prefix('_')?;
        Some((*section, *keys, key))
    })
}

fn parse(text: &str) -> Value {
    text.parse().unwrap_or_else(|never: std::convert::Infallible| match never {})
}

fn insert(root: &mut Dict, section: &str, key: &str, value: Value) {
    let mut dict = root;
    for part in section.split('.') {
        let entry = dict.entry(part.to_owned()).or_insert_with(|| Value::from(Dict::new()));
        let Value::Dict(_, inner) = entry else { return };
        dict = inner;
    }
    dict.insert(key.to_owned(), value);
}

#[cfg(test)]
mod tests {
    use crate::config::Config;

    fn load(variables: &[(&str, &str)]) -> anyhow::Result<Config> {
        let variables: Vec<_> =
            variables.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect();
        Config::parse("[pay]\nmax_day = '3'\n[agent]\nname = 'file'", &variables)
    }

    #[test]
    fn the_environment_wins_over_the_file() {
        let config = load(&[
            ("OTONIX_PAY_MAX_DAY", "7"),
            ("OTONIX_AGENT_NAME", "007"),
            ("OTONIX_AGENT_COMMAND", "sleep 1"),
            ("OTONIX_TIER_CRITICAL_MODEL", "small"),
            ("OTONIX_PAY_HOSTS", "[\"a.example\"]"),
            ("OTONIX_LINK_HEARTBEAT_INTERVAL", "30"),
            ("OTONIX_PAY_ALLOW_SHARED_UID", "true"),
            ("OTONIX_CHAIN_RPC", "http://127.0.0.1:1, https://b.example"),
            ("OTONIX_CHAIN_ID", "84532"),
            ("OTONIX_CHAIN_START_BLOCK", "7"),
            ("OTONIX_ASSET", "0x036CbD53842c5426634e7929541eC2318f3dCF7e"),
        ])
        .expect("loads");
        assert_eq!(config.pay.max_day.to_string(), "7");
        assert_eq!(config.agent.name, "007");
        assert_eq!(config.agent.command.expect("a command").words(), ["/bin/sh", "-c", "sleep 1"]);
        assert_eq!(config.tier.critical.model.as_deref(), Some("small"));
        assert_eq!(config.pay.hosts.0, ["a.example"]);
        let lists = load(&[("OTONIX_PAY_HOSTS", "*"), ("OTONIX_PAY_ESSENTIAL", "a.example, b.example:8402")]);
        let lists = lists.expect("texts with commas");
        assert_eq!(lists.pay.hosts.0, ["*"]);
        assert_eq!(lists.pay.essential.0, ["a.example", "b.example:8402"]);
        assert_eq!(config.link.heartbeat_interval, 30);
        assert!(config.pay.allow_shared_uid);
        assert_eq!(config.chain.rpc.0, ["http://127.0.0.1:1", "https://b.example"]);
        let asset = config.chain.token().map(|asset| asset.to_string());
        assert_eq!(
            (config.chain.id, asset.ok().as_deref()),
            (84532, Some("0x036CbD53842c5426634e7929541eC2318f3dCF7e"))
        );
    }

    #[test]
    fn a_misspelt_key_is_an_error_and_other_variables_are_not() {
        assert!(load(&[("OTONIX_PAY_MAX_DYA", "7")]).is_err());
        assert!(load(&[("OTONIX_SURVIVAL_TIER", "full"), ("OTONIX_SOCKET", "/x"), ("PATH", "/bin")]).is_ok());
    }
}
