//! What the agent's process prints, kept in a file that never grows beyond its bound.

use std::fs::{File, OpenOptions};
use std::io::{self, PipeReader, Write as _};
use std::os::fd::OwnedFd;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};

use tokio::io::AsyncReadExt as _;
use tokio::net::unix::pipe;

/// Bytes read at a time.
const MAX_READ: usize = 8 * 1024;

/// A file and its older parts: `agent.log`, `agent.log.1` …
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RotatedFile {
    /// The newest part.
    pub path: PathBuf,
    /// Bytes after which a new part is begun.
    pub max_bytes: u64,
    /// How many older parts are kept.
    pub keep: u32,
}

impl RotatedFile {
    /// Copies everything from a pipe into the file until its other end is closed. Output that the disk refuses
    /// is dropped: the agent's process is never blocked by its log.
    pub async fn copy(self, from: PipeReader) -> io::Result<()> {
        let mut pipe = pipe::Receiver::from_owned_fd(OwnedFd::from(from))?;
        // One read fits into one part.
        let size = usize::try_from(self.max_bytes).unwrap_or(MAX_READ).min(MAX_READ);
        let mut buffer = vec![0_u8; size];
        let mut part: Option<(File, u64)> = None;
        loop {
            let read = pipe.read(&mut buffer).await?;
            let Some(text) = buffer.get(..read).filter(|text| !text.is_empty()) else { return Ok(()) };
            part = self.append(part, text);
        }
    }

    fn append(&self, part: Option<(File, u64)>, text: &[u8]) -> Option<(File, u64)> {
        let (mut file, mut size) = match part {
            Some(part) => part,
            None => open(&self.path).ok()?,
        };
        if size > 0 && size + text.len() as u64 > self.max_bytes {
            self.rotate();
            (file, size) = open(&self.path).ok()?;
        }
        file.write_all(text).ok()?;
        Some((file, size + text.len() as u64))
    }

    fn rotate(&self) {
        let part = |number: u32| {
            let mut name = self.path.as_os_str().to_owned();
            if number > 0 {
                name.push(format!(".{number}"));
            }
            PathBuf::from(name)
        };
        if self.keep == 0 {
            let _ = std::fs::remove_file(&self.path);
        }
        for number in (0..self.keep).rev() {
            // A part that is missing leaves nothing to move.
            let _ = std::fs::rename(part(number), part(number + 1));
        }
    }
}

fn open(path: &Path) -> io::Result<(File, u64)> {
    let file = OpenOptions::new().create(true).append(true).mode(0o600).open(path)?;
    let size = file.metadata()?.len();
    Ok((file, size))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn the_file_stays_within_its_bound() {
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join("agent.log");
        let file = RotatedFile { path: path.clone(), max_bytes: 100, keep: 2 };
        let (reader, mut writer) = io::pipe().expect("a pipe");
        let copy = tokio::spawn(file.copy(reader));
        for line in 0..50 {
            writeln!(writer, "line {line:04} ......").expect("write");
            tokio::task::yield_now().await;
        }
        drop(writer);
        copy.await.expect("no panic").expect("copied");
        let newest = std::fs::read_to_string(&path).expect("the newest part");
        assert!(newest.ends_with("line 0049 ......\n"), "{newest}");
        let mut sizes = Vec::new();
        for entry in std::fs::read_dir(dir.path()).expect("list") {
            sizes.push(entry.expect("entry").metadata().expect("metadata").len());
        }
        assert!(sizes.len() <= 3 && sizes.iter().all(|size| *size <= 100), "{sizes:?}");
    }
}
