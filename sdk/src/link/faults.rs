//! What is wrong with the files of an agent that nobody runs. Nothing is changed by looking.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use serde::de::{DeserializeOwned, IgnoredAny};

use crate::link::cursor::StateFile;
use crate::link::{commands, core, prices, spool, standing};

/// Something wrong with a file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Fault {
    /// The file or folder.
    pub path: PathBuf,
    /// What is wrong with it.
    pub what: String,
    /// What follows from it.
    pub effect: &'static str,
    /// The agent cannot start.
    pub stops: bool,
}

const CANNOT_START: &str = "the agent cannot start";

fn stops(path: &Path, what: impl ToString) -> Fault {
    Fault { path: path.to_owned(), what: what.to_string(), effect: CANNOT_START, stops: true }
}

fn hurt(path: &Path, what: impl ToString, effect: &'static str) -> Fault {
    Fault { path: path.to_owned(), what: what.to_string(), effect, stops: false }
}

/// Looks at every file that [`crate::agent::Agent`] keeps in its state directory.
pub fn faults(state_dir: &Path) -> Vec<Fault> {
    let mut found = Vec::new();
    of_spool(&state_dir.join(core::SPOOL), &mut found);
    found.extend(of_json::<standing::Heard>(
        &state_dir.join(standing::FILE),
        "tier and balance are not known until the server is heard",
    ));
    found.extend(of_json::<crate::prices::PriceTable>(
        &state_dir.join(prices::FILE),
        "the built-in prices are used until the server is heard",
    ));
    let commands = state_dir.join(core::COMMANDS);
    found.extend(of_lines::<commands::Line>(
        &commands,
        true,
        "a command that was carried out may be carried out again",
    ));
    for name in [core::REJECTS.to_owned(), format!("{}.old", core::REJECTS)] {
        let effect = "what the server refused cannot be read there";
        found.extend(of_lines::<IgnoredAny>(&state_dir.join(name), false, effect));
    }
    found
}

fn is_missing(error: &io::Error) -> bool {
    error.kind() == io::ErrorKind::NotFound
}

fn of_spool(dir: &Path, found: &mut Vec<Fault>) {
    match fs::metadata(dir) {
        Err(error) if is_missing(&error) => return,
        Err(error) => return found.push(stops(dir, error)),
        Ok(metadata) if !metadata.is_dir() => return found.push(stops(dir, "is not a directory")),
        Ok(_) => {}
    }
    let lock = dir.join("lock");
    match fs::File::options().write(true).open(&lock) {
        Err(error) if !is_missing(&error) => found.push(stops(&lock, error)),
        Err(_) | Ok(_) => {}
    }
    let state = dir.join("state");
    let kept = fs::read(&state).and_then(|bytes| Ok((bytes.len(), StateFile::look(&state)?)));
    match kept {
        Err(error) if is_missing(&error) => {}
        Err(error) => found.push(stops(&state, error)),
        Ok((1.., None)) => {
            let effect = "what was acknowledged is sent again, and the server tells it from what is new";
            found.push(hurt(&state, "is damaged", effect));
        }
        Ok(_) => {}
    }
    match spool::inspect(dir) {
        Ok(status) if status.damaged > 0 => {
            let what = format!("{} records are damaged", status.damaged);
            found.push(hurt(dir, what, "they are set aside, and the server is told what is lost"));
        }
        Ok(_) => {}
        Err(error) => found.push(stops(dir, error)),
    }
}

fn of_json<T: DeserializeOwned>(path: &Path, effect: &'static str) -> Option<Fault> {
    match fs::read(path) {
        Ok(text) => serde_json::from_slice::<T>(&text)
            .err()
            .map(|error| hurt(path, format!("is damaged: {error}"), effect)),
        Err(error) if is_missing(&error) => None,
        Err(error) => Some(hurt(path, error, effect)),
    }
}

/// A line that was not finished was never relied on.
fn of_lines<T: DeserializeOwned>(path: &Path, needed: bool, effect: &'static str) -> Option<Fault> {
    let text = match fs::read(path) {
        Ok(text) => text,
        Err(error) if is_missing(&error) => return None,
        Err(error) if needed => return Some(stops(path, error)),
        Err(error) => return Some(hurt(path, error, effect)),
    };
    let damaged = damaged_lines::<T>(&text);
    (damaged > 0).then(|| hurt(path, format!("{damaged} lines are damaged"), effect))
}

/// Whole lines that are not what they should be.
pub(crate) fn damaged_lines<T: DeserializeOwned>(text: &[u8]) -> usize {
    let whole = text.split_inclusive(|byte| *byte == b'\n').filter(|line| line.ends_with(b"\n"));
    whole.filter(|line| serde_json::from_slice::<T>(line).is_err()).count()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What is said of a directory with one file of this content.
    fn said_of(name: &str, content: &[u8]) -> Vec<(String, bool)> {
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join(name);
        fs::create_dir_all(path.parent().expect("a parent")).expect("made");
        fs::write(&path, content).expect("written");
        let name_of = |path: &Path| path.strip_prefix(dir.path()).expect("inside").display().to_string();
        let seen = faults(dir.path());
        assert_eq!(fs::read(&path).expect("read"), content, "nothing is changed");
        seen.iter().map(|fault| (name_of(&fault.path), fault.stops)).collect()
    }

    #[test]
    fn damage_is_named_and_told_from_what_stops_the_agent() {
        let damaged = [
            ("spool/state", vec![7_u8; 1024]),
            ("standing.json", b"{\"standing\": 5".to_vec()),
            ("price-table.json", b"[]".to_vec()),
            ("commands.jsonl", b"{\"id\":\nnonsense\n".to_vec()),
            ("rejects.jsonl", b"\0\0\0\n".to_vec()),
            ("rejects.jsonl.old", b"}\n".to_vec()),
        ];
        for (name, content) in damaged {
            assert_eq!(said_of(name, &content), [(name.to_owned(), false)]);
        }
        assert_eq!(said_of("spool", b"a file"), [("spool".to_owned(), true)]);
        assert_eq!(said_of("commands.jsonl/x", b""), [("commands.jsonl".to_owned(), true)]);
        assert_eq!(said_of("spool/lock/x", b""), [("spool/lock".to_owned(), true)]);
    }

    #[test]
    fn what_is_new_empty_or_torn_is_fine() {
        let dir = tempfile::tempdir().expect("a directory");
        assert_eq!(faults(dir.path()), []);
        assert_eq!(said_of("rejects.jsonl", b"{\"at\":1}\n{\"at"), []);
        assert_eq!(said_of("spool/state", b""), []);
    }
}
