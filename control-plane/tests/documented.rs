//! What is written about the options is what the program knows: `deploy/control-plane.toml` and the table in
//! `docs/operations.md` are generated from it.
//!
//! After a change of the options: `OTONIX_UPDATE_DOCS=1 cargo test -p otonix-control-plane --test documented`.

use std::fmt::Write as _;
use std::fs;
use std::path::{Path, PathBuf};

use clap::{CommandFactory as _, Parser as _};
use otonix_control_plane::config::Cli;

/// Every option as it stands in the example: its value, and whether that is the default.
const EXAMPLE: &[(&str, &str, bool)] = &[
    ("listen", "\"127.0.0.1:8402\"", true),
    ("database", "\"postgres://otonix@db.example/otonix\"", false),
    ("database-file", "\"/etc/otonix/database-url\"", false),
    ("data-dir", "\"/var/lib/otonix-control-plane\"", false),
    ("mode", "\"guarded\"", false),
    ("operator-token", "\"at least sixteen characters\"", false),
    ("operator-token-file", "\"/etc/otonix/operator-token\"", false),
    ("public-url", "\"https://otonix.example\"", false),
    ("trusted-proxies", "\"\"", true),
    ("tls-cert", "\"/etc/otonix/tls/fullchain.pem\"", false),
    ("tls-key", "\"/etc/otonix/tls/key.pem\"", false),
    ("tiers", "\"50/10/1\"", true),
    ("funding-grace", "86400", true),
    ("price-table", "\"/etc/otonix/prices.toml\"", false),
    ("max-children", "8", true),
    ("max-depth", "3", true),
    ("laws-file", "\"/etc/otonix/laws.txt\"", false),
    ("retention-days", "0", true),
    ("rate-limit", "200", true),
    ("log", "\"info\"", true),
    ("log-format", "\"json\"", false),
    ("chain-rpc", "[\"https://mainnet.base.org\"]", false),
    ("chain-rpc-file", "\"/etc/otonix/chain-rpc\"", false),
    ("chain-id", "8453", true),
    ("asset", "\"0x833589fCD6eDb6E08f4c7C32D4f71b54bdA02913\"", true),
    ("treasury", "\"0x70997970C51812dc3A010C7d01b50e0d17dc79C8\"", false),
    ("chain-start-block", "0", false),
    ("settle-key-file", "\"/etc/otonix/settle-key\"", false),
    ("facilitator", "\"https://facilitator.example\"", false),
    ("facilitator-file", "\"/etc/otonix/facilitator\"", false),
    ("confirmations", "\"auto\"", true),
    ("order-ttl", "900", true),
    ("min-exact", "\"0.05\"", true),
    ("registrant-contact", "\"/etc/otonix/registrant.toml\"", false),
    ("agent-package-url", "\"https://example.org/otonix-agent.tar.gz\"", false),
    ("agent-package-sha256", "\"0000000000000000000000000000000000000000000000000000000000000000\"", false),
    ("vercel-url", "\"https://api.vercel.com\"", true),
    ("vercel-token", "\"a token of Vercel\"", false),
    ("vercel-token-file", "\"/etc/otonix/vercel-token\"", false),
    ("vercel-team", "\"team_1a2b3c4d\"", false),
    ("cherry-url", "\"https://api.cherryservers.com\"", true),
    ("cherry-token", "\"a token of Cherry Servers\"", false),
    ("cherry-token-file", "\"/etc/otonix/cherry-token\"", false),
    ("cherry-team", "123", false),
    ("cherry-project", "321", false),
    ("eur-usd", "\"1.08\"", false),
    ("eur-usd-date", "\"2026-11-20\"", false),
    ("eur-usd-days", "30", true),
];

struct Opt {
    key: String,
    variable: String,
    help: String,
}

/// What the command line knows, but for what is no key of the file.
fn options() -> Vec<Opt> {
    let command = Cli::command();
    let arguments = command.get_arguments().filter_map(|argument| {
        let key =
            argument.get_long().filter(|key| !matches!(*key, "config" | "help" | "version"))?.to_owned();
        let variable =
            argument.get_env().expect("every option has its variable").to_str().expect("ASCII").to_owned();
        let help = argument.get_help().expect("every option says what it is").to_string();
        Some(Opt { key, variable, help })
    });
    arguments.collect()
}

fn example_of(key: &str) -> (&'static str, bool) {
    let found = EXAMPLE.iter().find(|(known, ..)| *known == key);
    found.map(|(_, value, default)| (*value, *default)).unwrap_or_else(|| panic!("EXAMPLE has no {key}"))
}

fn wrapped(text: &str) -> String {
    let mut lines = String::from("#");
    let mut width = 1;
    for word in text.split_whitespace() {
        if width + word.len() + 1 > 100 {
            lines.push_str("\n#");
            width = 1;
        }
        write!(lines, " {word}").expect("a String takes everything");
        width += word.len() + 1;
    }
    lines
}

fn example() -> String {
    let mut text = String::from(
        "# All options of otonix-control-plane. Generated from the program; nothing here is in force as it stands.\n\
         # Use it by --config FILE or OTONIX_CONFIG. A flag wins over the environment, the environment over this file.\n\
         # An unknown key is an error.\n",
    );
    for option in options() {
        let (value, default) = example_of(&option.key);
        let note = if default { "" } else { " For example:" };
        writeln!(text, "\n{}\n#{} = {value}", wrapped(&format!("{}.{note}", option.help)), option.key)
            .expect("a String takes everything");
    }
    text
}

fn table() -> String {
    let mut text = String::from("| flag | environment | what it is |\n| --- | --- | --- |\n");
    for option in options() {
        let help = option.help.replace('|', "\\|");
        writeln!(text, "| `--{}` | `{}` | {help} |", option.key, option.variable)
            .expect("a String takes everything");
    }
    text
}

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("the package is in a workspace").to_owned()
}

#[track_caller]
fn assert_written(file: &str, expected: &str) {
    let path = root().join(file);
    if std::env::var_os("OTONIX_UPDATE_DOCS").is_some() {
        fs::write(&path, expected).expect("the file can be written");
    }
    let found = fs::read_to_string(&path).expect("the file is there");
    assert_eq!(found, expected, "{file} has drifted; see the head of this test");
}

#[test]
fn the_example_configuration_is_the_program_s() {
    assert_written("deploy/control-plane.toml", &example());
}

#[test]
fn the_table_of_options_is_the_program_s() {
    let (begin, end) =
        ("<!-- options of otonix-control-plane: generated -->\n", "<!-- end of the options -->");
    let text = fs::read_to_string(root().join("docs/operations.md")).expect("the file is there");
    let (before, rest) = text.split_once(begin).expect("the table begins");
    let (_, after) = rest.split_once(end).expect("the table ends");
    assert_written("docs/operations.md", &format!("{before}{begin}{}{end}{after}", table()));
}

/// What a configuration file comes to.
fn settings(text: &str) -> Result<String, String> {
    let dir = tempfile::tempdir().expect("a directory");
    let path = dir.path().join("control-plane.toml");
    fs::write(&path, text).expect("our directory");
    let cli = Cli::try_parse_from(["otonix-control-plane".as_ref(), "--config".as_ref(), path.as_os_str()]);
    let settings = cli.map_err(|error| error.to_string())?.options.settings();
    settings.map(|settings| format!("{settings:?}")).map_err(|error| format!("{error:#}"))
}

#[test]
fn the_example_changes_nothing_and_every_line_of_it_is_understood() {
    let text = example();
    let defaults = settings("").expect("no option is needed");
    assert_eq!(settings(&text).as_ref(), Ok(&defaults));
    let uncommented: String = text
        .lines()
        .filter_map(|line| line.strip_prefix('#').filter(|line| !line.starts_with(' ')))
        .map(|line| format!("{line}\n"))
        .collect();
    assert_eq!(uncommented.lines().count(), options().len());
    settings(&uncommented).expect("every key and value is understood");
    for (key, value, _) in EXAMPLE.iter().filter(|(.., default)| *default) {
        assert_eq!(
            settings(&format!("{key} = {value}")).as_ref(),
            Ok(&defaults),
            "{value} is not the default of {key}"
        );
    }
    assert!(settings("no-such-key = 1").is_err());
}

#[test]
fn every_error_code_is_documented() {
    let text = fs::read_to_string(root().join("docs/http-status.md")).expect("the file is there");
    for code in otonix_sdk::error::ErrorCode::ALL {
        assert!(
            text.contains(&format!("`{}`", code.as_str())),
            "docs/http-status.md says nothing of {}",
            code.as_str()
        );
    }
}

#[test]
fn every_metric_is_documented() {
    let text = fs::read_to_string(root().join("docs/operations.md")).expect("the file is there");
    let metrics = otonix_control_plane::metrics::Metrics::default().render(&[]);
    for line in metrics.lines().filter_map(|line| line.strip_prefix("# TYPE ")) {
        let name = line.split(' ').next().unwrap_or_default();
        assert!(text.contains(&format!("`{name}")), "docs/operations.md says nothing of {name}");
    }
}

#[test]
fn a_flag_for_a_secret_or_its_file_wins_over_the_environment_and_both_over_the_file() {
    let dir = tempfile::tempdir().expect("a directory");
    let (good, toml) = (dir.path().join("token"), dir.path().join("c.toml"));
    std::fs::write(&good, "a-token-that-is-long-enough").expect("our directory");
    std::fs::write(&toml, "operator-token = 'short'").expect("our directory");
    let check = |flags: &[&std::path::Path], variables: &[(&str, &std::path::Path)]| {
        std::process::Command::new(env!("CARGO_BIN_EXE_otonix-control-plane"))
            .arg("check-config")
            .arg("--data-dir")
            .arg(dir.path())
            .args(flags)
            .env_clear()
            .envs(variables.iter().copied())
            .output()
            .expect("our program")
            .status
            .success()
    };
    let [file, config, short] = ["--operator-token-file", "--config", "short"].map(std::path::Path::new);
    assert!(!check(&[], &[("OTONIX_OPERATOR_TOKEN", short)]), "what is too short is refused");
    assert!(check(&[file, &good], &[("OTONIX_OPERATOR_TOKEN", short)]), "the flag's file counts");
    assert!(!check(&[config, &toml], &[]));
    assert!(
        check(&[config, &toml], &[("OTONIX_OPERATOR_TOKEN_FILE", &good)]),
        "the environment's file counts"
    );
}
