//! Files of the state directory: private, replaced whole, locked by one daemon at a time.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write as _};
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};

use rustix::fs::FlockOperation;
use serde::Serialize;
use serde::de::DeserializeOwned;

/// Replaces a file whole, readable by its owner only: after a crash it holds the old content or the new one.
///
/// # Errors
/// What the file system says; the old content is still there.
pub fn write_private(path: &Path, content: &[u8]) -> io::Result<()> {
    write_with(path, content, 0o600)
}

/// The same for what the agent's user reads too.
///
/// # Errors
/// What the file system says; the old content is still there.
pub fn write_readable(path: &Path, content: &[u8]) -> io::Result<()> {
    write_with(path, content, 0o644)
}

fn write_with(path: &Path, content: &[u8], mode: u32) -> io::Result<()> {
    let dir = path.parent().filter(|dir| !dir.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let mut part = path.as_os_str().to_owned();
    part.push(format!(".{}.part", std::process::id()));
    let part = PathBuf::from(part);
    let written = write_new(&part, content, mode).and_then(|()| fs::rename(&part, path));
    if written.is_err() {
        // Nothing else knows this name; a leftover would only lie around.
        let _ = fs::remove_file(&part);
    }
    written?;
    File::open(dir)?.sync_all()
}

fn write_new(path: &Path, content: &[u8], mode: u32) -> io::Result<()> {
    let _ = fs::remove_file(path);
    let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(path)?;
    // Whatever the umask is.
    file.set_permissions(fs::Permissions::from_mode(mode))?;
    file.write_all(content)?;
    file.sync_all()
}

/// Replaces a JSON file whole; see [`write_private`].
///
/// # Errors
/// What the file system says.
pub fn write_json<T: Serialize>(path: &Path, value: &T) -> io::Result<()> {
    let mut text = serde_json::to_vec_pretty(value).map_err(io::Error::other)?;
    text.push(b'\n');
    write_private(path, &text)
}

/// Reads a JSON file; `None` when it does not exist.
///
/// # Errors
/// What the file system says, or that the content is not what it should be.
pub fn read_json<T: DeserializeOwned>(path: &Path) -> io::Result<Option<T>> {
    match fs::read(path) {
        Ok(text) => serde_json::from_slice(&text).map(Some).map_err(io::Error::other),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error),
    }
}

/// Reads a text; `None` when the file does not exist.
///
/// # Errors
/// What the file system says.
pub fn read_text(path: &Path) -> io::Result<Option<String>> {
    match fs::read_to_string(path) {
        Ok(text) => Ok(Some(text)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error),
    }
}

/// Makes a directory that only its owner may enter, unless it exists; returns its absolute path.
///
/// # Errors
/// What the file system says.
pub fn make_state_dir(path: &Path) -> io::Result<PathBuf> {
    fs::DirBuilder::new().recursive(true).mode(0o700).create(path)?;
    path.canonicalize()
}

/// Lets everybody pass through a directory (not list it), so that the agent's user reaches the socket inside.
///
/// # Errors
/// What the file system says.
pub fn make_passable(path: &Path) -> io::Result<()> {
    let mode = fs::metadata(path)?.permissions().mode() & 0o7777;
    if mode & 0o001 == 0 {
        fs::set_permissions(path, fs::Permissions::from_mode(mode | 0o011))?;
    }
    Ok(())
}

/// Held as long as it lives; the kernel lets go when the process ends, however it ends.
#[derive(Debug)]
pub struct Lock(#[expect(dead_code, reason = "the open file is the lock")] File);

impl Lock {
    /// Whether a process has it. Nothing is made by asking.
    ///
    /// # Errors
    /// What the file system says.
    pub fn is_held(path: &Path) -> io::Result<bool> {
        let file = match OpenOptions::new().write(true).open(path) {
            Ok(file) => file,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(false),
            Err(error) => return Err(error),
        };
        match rustix::fs::flock(&file, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => Ok(false),
            Err(rustix::io::Errno::WOULDBLOCK) => Ok(true),
            Err(error) => Err(error.into()),
        }
    }

    /// Takes a lock; `None` when another process has it.
    ///
    /// # Errors
    /// What the file system says.
    pub fn take(path: &Path) -> io::Result<Option<Self>> {
        let file = OpenOptions::new().create(true).truncate(false).write(true).mode(0o600).open(path)?;
        match rustix::fs::flock(&file, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => Ok(Some(Self(file))),
            Err(rustix::io::Errno::WOULDBLOCK) => Ok(None),
            Err(error) => Err(error.into()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_is_replaced_whole_and_private() {
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join("api-key");
        write_private(&path, b"one").expect("write");
        write_private(&path, b"two").expect("write again");
        assert_eq!(read_text(&path).expect("read").as_deref(), Some("two"));
        let mode = fs::metadata(&path).expect("metadata").permissions().mode() & 0o777;
        assert_eq!(mode, 0o600);
        assert_eq!(fs::read_dir(dir.path()).expect("list").count(), 1);
    }

    #[test]
    fn a_lock_has_one_holder_until_it_is_dropped() {
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join("lock");
        assert!(!Lock::is_held(&path).expect("asked") && !path.exists());
        let held = Lock::take(&path).expect("take").expect("free");
        assert!(Lock::take(&path).expect("take").is_none());
        assert!(Lock::is_held(&path).expect("asked"));
        drop(held);
        assert!(!Lock::is_held(&path).expect("asked"));
        assert!(Lock::take(&path).expect("take").is_some());
    }
}
