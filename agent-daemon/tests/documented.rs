//! What is written about the configuration is what the program knows: every key of `deploy/agent.toml` is one, every
//! key is in it with its default, and the table in `docs/operations.md` is made from it.
//!
//! After a change of the keys, change `deploy/agent.toml`, then
//! `OTONIX_UPDATE_DOCS=1 cargo test -p otonix-agent-daemon --test documented`.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

use otonix_agent_daemon::config::Config;
use otonix_sdk::standing::SurvivalTier;

/// The first are the keys outside of all sections.
const SECTIONS: &[&str] = &[
    "",
    "agent",
    "link",
    "tier.full",
    "tier.conservation",
    "tier.critical",
    "tier.terminated",
    "chain",
    "pay",
    "topup",
];
const FOR_EXAMPLE: &str = "For example:";

/// One key of the example.
struct Key {
    section: String,
    name: String,
    value: String,
    comment: String,
    is_default: bool,
}

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("the package is in a workspace").to_owned()
}

fn text() -> String {
    fs::read_to_string(root().join("deploy/agent.toml")).expect("the example is there")
}

/// The keys of the example, with the comment above each.
fn keys() -> Vec<Key> {
    let (mut section, mut comment) = (String::new(), Vec::new());
    let mut keys = Vec::new();
    for line in text().lines() {
        if let Some(name) = line.strip_prefix('[') {
            section = name.trim_end_matches(']').to_owned();
            comment.clear();
        } else if let Some(words) = line.strip_prefix("# ") {
            comment.push(words.to_owned());
        } else if let Some((name, value)) = line.strip_prefix('#').and_then(|entry| entry.split_once(" = ")) {
            let whole = comment.join(" ");
            keys.push(Key {
                section: section.clone(),
                name: name.to_owned(),
                value: value.to_owned(),
                is_default: !whole.ends_with(FOR_EXAMPLE),
                comment: whole.trim_end_matches(FOR_EXAMPLE).trim().to_owned(),
            });
            comment.clear();
        } else {
            assert!(line.is_empty(), "what is `{line}`?");
            comment.clear();
        }
    }
    keys
}

fn config(text: &str) -> String {
    format!("{:?}", Config::parse(text, &[]).unwrap_or_else(|error| panic!("{text}: {error:#}")))
}

/// The keys that the program takes in a section: it names them when it is given another.
fn known(section: &str) -> BTreeSet<String> {
    let head = head(section);
    let refused = Config::parse(&format!("{head}no_such_key = 1"), &[]).expect_err("an unknown key");
    let text = format!("{refused:#}");
    let (_, expected) = text.split_once("expected").unwrap_or_else(|| panic!("{text} names no keys"));
    let is_name = |part: &&str| !part.is_empty() && part.bytes().all(|b| b == b'_' || b.is_ascii_lowercase());
    let names = expected.split('`').filter(is_name).map(str::to_owned);
    names.filter(|name| !section.is_empty() || !SECTIONS.iter().any(|known| is_of(known, name))).collect()
}

/// Whether a section is this one or of it: `tier.full` is of `tier`.
fn is_of(section: &str, name: &str) -> bool {
    section.split('.').next() == Some(name)
}

/// The line before the keys of a section.
fn head(section: &str) -> String {
    if section.is_empty() { String::new() } else { format!("[{section}]\n") }
}

#[test]
fn every_key_is_in_the_example_and_no_other() {
    let keys = keys();
    let sections: BTreeSet<&str> = keys.iter().map(|key| &*key.section).collect();
    assert_eq!(sections, SECTIONS.iter().copied().collect());
    for section in SECTIONS {
        let documented: BTreeSet<String> =
            keys.iter().filter(|key| key.section == *section).map(|key| key.name.clone()).collect();
        assert_eq!(documented, known(section), "[{section}]");
    }
}

#[test]
fn the_example_changes_nothing_and_its_defaults_are_the_program_s() {
    let defaults = config("");
    assert_eq!(config(&text()), defaults);
    let mut everything = String::new();
    for section in SECTIONS {
        everything.push_str(&head(section));
        for key in keys().iter().filter(|key| key.section == *section) {
            everything.push_str(&format!("{} = {}\n", key.name, key.value));
        }
    }
    config(&everything);
    for key in keys().iter().filter(|key| key.is_default && !key.section.starts_with("tier.")) {
        let alone = config(&format!("{}{} = {}", head(&key.section), key.name, key.value));
        assert_eq!(alone, defaults, "{} is not the default of {}.{}", key.value, key.section, key.name);
    }
    for tier in
        [SurvivalTier::Full, SurvivalTier::Conservation, SurvivalTier::Critical, SurvivalTier::Terminated]
    {
        let shown = keys()
            .into_iter()
            .find(|key| key.section == format!("tier.{tier}") && key.name == "optional_work");
        let defaults = Config::default().tier.optional_work(tier);
        assert_eq!(shown.expect("every tier has it").value, defaults.to_string(), "{tier}");
    }
}

#[test]
fn every_key_is_an_environment_variable() {
    // Those outside of all sections are options of the command line with variables of their own.
    for key in keys().into_iter().filter(|key| !key.section.is_empty()) {
        let name = format!("OTONIX_{}_{}", key.section.replace('.', "_"), key.name).to_uppercase();
        let value = key.value.trim_matches('"').to_owned();
        assert!(Config::parse("", &[(name.clone(), value)]).is_ok(), "{name}");
        let wrong = (format!("{name}X"), String::new());
        assert!(Config::parse("", &[wrong]).is_err(), "{name}X");
    }
}

#[test]
fn the_table_of_keys_is_made_from_the_example() {
    let mut table = String::from("| key | default | what it is |\n| --- | --- | --- |\n");
    for key in keys().iter().filter(|key| !key.section.starts_with("tier.") || key.section == "tier.full") {
        let section = if key.section == "tier.full" { "tier.<tier>" } else { &key.section };
        let default = match (key.section.as_str(), key.is_default) {
            ("tier.full", true) => "true in full, else false".to_owned(),
            (_, true) => format!("`{}`", key.value),
            (_, false) => "none".to_owned(),
        };
        let comment = match (key.section.as_str(), key.name.as_str()) {
            ("tier.full", "interval") => {
                "The longest time between heartbeats, seconds; the server's when absent."
            }
            ("tier.full", "model") => "The model to use; chosen by tier and budget when absent.",
            ("tier.full", "optional_work") => "Whether the agent is told to do work that can wait.",
            _ => &key.comment,
        };
        let name = if section.is_empty() { key.name.clone() } else { format!("{section}.{}", key.name) };
        table.push_str(&format!("| `{name}` | {default} | {} |\n", comment.replace('|', "\\|")));
    }
    let (begin, end) = ("<!-- keys of agent.toml: generated -->\n", "<!-- end of the keys -->");
    let path = root().join("docs/operations.md");
    let text = fs::read_to_string(&path).expect("the file is there");
    let (before, rest) = text.split_once(begin).expect("the table begins");
    let (_, after) = rest.split_once(end).expect("the table ends");
    let expected = format!("{before}{begin}{table}{end}{after}");
    if std::env::var_os("OTONIX_UPDATE_DOCS").is_some() {
        fs::write(&path, &expected).expect("the file can be written");
    }
    let found = fs::read_to_string(&path).expect("the file is there");
    assert_eq!(found, expected, "docs/operations.md has drifted; see the head of this test");
}
