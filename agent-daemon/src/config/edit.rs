//! Writing who the agent is into `agent.toml` without touching what people wrote there.

use anyhow::ensure;
use otonix_sdk::ids::AgentId;

use super::Config;

/// What `init` writes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Identity {
    /// The control plane.
    pub server: String,
    /// As registered.
    pub id: AgentId,
    /// As registered.
    pub name: String,
    /// The model.
    pub model: String,
    /// The wallet.
    pub wallet_address: String,
}

const TEMPLATE: &str = "\
# Written by `otonix-agent init`. Keys can also be set by OTONIX_<SECTION>_<KEY>.

[agent]
# The supervised process: program and arguments, or one text for the shell.
# command = [\"python3\", \"/opt/agent/agent.py\"]
# Run it as another user (needs root), so that it cannot read the wallet.
# user = \"otonix-work\"
# More variables for it.
# env = [\"NAME=value\"]
# Seconds without POST /v1/progress after which it is started again; 0: never.
# progress_timeout = 0

[link]

# What each tier means here.
# [tier.conservation]
# model = \"claude-haiku-4-5\"
";

/// The text of `agent.toml` with an identity written into it; without a text, a new one.
///
/// # Errors
/// When the text cannot be read afterwards as what was meant.
pub fn with_identity(text: Option<&str>, identity: &Identity) -> anyhow::Result<String> {
    let mut text = text.unwrap_or(TEMPLATE).to_owned();
    for (section, key, value) in [
        ("agent", "wallet_address", &identity.wallet_address),
        ("agent", "model", &identity.model),
        ("agent", "name", &identity.name),
        ("agent", "id", &identity.id.to_string()),
        ("link", "server", &identity.server),
    ] {
        text = with_key(&text, section, key, value);
    }
    let read = Config::parse(&text, &[])?;
    ensure!(
        read.agent.id == Some(identity.id)
            && read.agent.name == identity.name
            && read.agent.model == identity.model
            && read.agent.wallet_address.as_deref() == Some(&*identity.wallet_address)
            && read.link.server == identity.server,
        "the file is written in a way that cannot be edited here; set [agent] id, name, model, wallet_address \
         and [link] server by hand"
    );
    Ok(text)
}

/// The text with another wallet.
///
/// # Errors
/// When the text cannot be read afterwards as what was meant.
pub fn with_wallet(text: &str, address: &str) -> anyhow::Result<String> {
    let text = with_key(text, "agent", "wallet_address", address);
    let read = Config::parse(&text, &[])?;
    ensure!(
        read.agent.wallet_address.as_deref() == Some(address),
        "the file is written in a way that cannot be edited here; set [agent] wallet_address by hand"
    );
    Ok(text)
}

fn with_key(text: &str, section: &str, key: &str, value: &str) -> String {
    let entry = format!("{key} = {}", toml::Value::String(value.to_owned()));
    let mut lines: Vec<String> = text.lines().map(str::to_owned).collect();
    let header = format!("[{section}]");
    let begin = match lines.iter().position(|line| without_comment(line) == header) {
        Some(begin) => begin + 1,
        None => {
            lines.extend([String::new(), header]);
            lines.len()
        }
    };
    let end = lines
        .iter()
        .skip(begin)
        .position(|line| line.trim_start().starts_with('['))
        .map_or(lines.len(), |length| begin + length);
    let is_key = |line: &String| {
        line.split_once('=').is_some_and(|(name, _)| name.trim().trim_matches(['"', '\'']) == key)
    };
    let known = lines.iter().take(end).skip(begin).position(is_key);
    match known.and_then(|offset| lines.get_mut(begin + offset)) {
        Some(line) => *line = entry,
        None => lines.insert(begin, entry),
    }
    lines.push(String::new());
    lines.join("\n")
}

fn without_comment(line: &str) -> &str {
    line.split('#').next().unwrap_or_default().trim()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn identity(name: &str) -> Identity {
        Identity {
            server: "https://otonix.example".to_owned(),
            id: AgentId::new(uuid::Uuid::from_u128(7)),
            name: name.to_owned(),
            model: "claude-opus-4-6".to_owned(),
            wallet_address: "0xabc".to_owned(),
        }
    }

    #[test]
    fn a_new_file_holds_the_identity_and_repeats_change_nothing() {
        let first = with_identity(None, &identity("Al \"pha\"")).expect("new");
        let second = with_identity(Some(&first), &identity("Al \"pha\"")).expect("again");
        assert_eq!(first.trim_end(), second.trim_end());
    }

    #[test]
    fn what_people_wrote_stays() {
        let text =
            "# mine\n[tier.critical]\nmodel = 'small' # cheap\n\n[agent] # me\nname = 'old'\nuser='bot'\n";
        let text = with_identity(Some(text), &identity("new")).expect("edits");
        assert!(
            text.contains("# mine")
                && text.contains("model = 'small' # cheap")
                && text.contains("user='bot'")
        );
        assert!(!text.contains("'old'"), "{text}");
    }

    #[test]
    fn a_file_that_cannot_be_edited_is_left_alone() {
        assert!(with_identity(Some("agent = { name = 'x' }"), &identity("y")).is_err());
    }
}
