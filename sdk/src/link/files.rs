//! Small files that are replaced whole.

use std::fs::{self, File};
use std::io::{self, Write as _};
use std::path::Path;

use crate::link::spool::sync_dir;

/// Replaces a file so that a reader sees the old or the new content, also after a power cut.
pub(crate) fn replace(path: &Path, content: &[u8]) -> io::Result<()> {
    let draft = path.with_extension("tmp");
    let mut file = File::create(&draft)?;
    file.write_all(content).and_then(|()| file.sync_all()).inspect_err(|_| drop(fs::remove_file(&draft)))?;
    fs::rename(&draft, path)?;
    path.parent().map_or(Ok(()), sync_dir)
}
