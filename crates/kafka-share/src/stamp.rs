//! Whether a file has changed since it was read: secrets and certificates are rotated while programs run.
//!
//! Compares what the file system knows; reads no content. Called by [`tls`](super::tls) and [`login`](super::login).

use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::time::SystemTime;

/// Another value after each write or replacement of a file. Follows symbolic links, so it also changes with the mounted
/// secrets of Kubernetes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Stamp {
    modified: SystemTime,
    length: u64,
    inode: u64,
}

impl Stamp {
    /// `None`: the file cannot be found.
    pub fn of(path: &Path) -> Option<Self> {
        let metadata = std::fs::metadata(path).ok()?;
        Some(Self { modified: metadata.modified().ok()?, length: metadata.len(), inode: metadata.ino() })
    }
}
