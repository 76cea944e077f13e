//! Answers that were paid for, kept for a caller that asks again. Bounded: the oldest go first.

use std::fs::{self, DirBuilder};
use std::io;
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde::{Deserialize, Serialize};
use uuid::Uuid;

use super::http::HttpAnswer;

/// Most answers kept, and bytes of them.
const MAX_FILES: usize = 500;
const MAX_BYTES: u64 = 64 * 1024 * 1024;

#[derive(Serialize, Deserialize)]
struct Stored {
    status: u16,
    headers: Vec<(String, String)>,
    body: String,
}

fn path_of(dir: &Path, id: Uuid) -> PathBuf {
    dir.join("answers").join(format!("{id}.json"))
}

/// Keeps an answer.
///
/// # Errors
/// What the disk says.
pub(super) fn save(dir: &Path, id: Uuid, answer: &HttpAnswer) -> io::Result<()> {
    let folder = dir.join("answers");
    DirBuilder::new().recursive(true).mode(0o700).create(&folder)?;
    prune(&folder)?;
    let stored = Stored {
        status: answer.status,
        headers: answer.headers.clone(),
        body: STANDARD.encode(&answer.body),
    };
    let draft = folder.join(format!("{id}.tmp"));
    let file = fs::OpenOptions::new().create(true).truncate(true).write(true).mode(0o600).open(&draft)?;
    serde_json::to_writer(io::BufWriter::new(file), &stored)?;
    fs::rename(draft, path_of(dir, id))
}

/// The answer of an intent, when it is still there.
pub(super) fn load(dir: &Path, id: Uuid) -> Option<HttpAnswer> {
    let stored: Stored = serde_json::from_slice(&fs::read(path_of(dir, id)).ok()?).ok()?;
    let body = STANDARD.decode(stored.body).ok()?;
    Some(HttpAnswer { status: stored.status, headers: stored.headers, body })
}

fn prune(folder: &Path) -> io::Result<()> {
    let mut files: Vec<(PathBuf, u64)> = Vec::new();
    for entry in fs::read_dir(folder)? {
        let entry = entry?;
        files.push((entry.path(), entry.metadata()?.len()));
    }
    // Names are ids, which are ordered by time.
    files.sort();
    let mut bytes: u64 = files.iter().map(|(_, len)| len).sum();
    let mut count = files.len();
    for (path, len) in files {
        if count < MAX_FILES && bytes < MAX_BYTES {
            break;
        }
        fs::remove_file(path)?;
        count -= 1;
        bytes = bytes.saturating_sub(len);
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::clock::new_id;

    #[test]
    fn an_answer_is_kept_whole_and_the_oldest_go_first() {
        let dir = tempfile::tempdir().expect("a folder");
        let answer = |n: usize| HttpAnswer {
            status: 200,
            headers: vec![("a".to_owned(), "b".to_owned())],
            body: n.to_string().into_bytes(),
        };
        let ids: Vec<Uuid> = (0..MAX_FILES + 3).map(|_| new_id()).collect();
        for (n, id) in ids.iter().enumerate() {
            save(dir.path(), *id, &answer(n)).expect("saves");
        }
        assert_eq!(load(dir.path(), ids[0]), None);
        let last = ids.len() - 1;
        assert_eq!(load(dir.path(), ids[last]), Some(answer(last)));
    }
}
