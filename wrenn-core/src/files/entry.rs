use std::collections::BTreeMap;
use std::time::{Duration, SystemTime};

use wrenn_envd::proto::filesystem::{EntryInfo, FileType};

/// A file, a directory, or anything else that lies at a path of the guest.
///
/// ```no_run
/// # async fn demo(sandbox: &wrenn_core::Sandbox) -> wrenn_core::Result<()> {
/// let entry = sandbox.files().stat("/etc/passwd").await?;
/// println!("{} has {} bytes, mode {:o}, and belongs to {}", entry.path, entry.len, entry.mode, entry.owner);
/// # Ok(()) }
/// ```
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct FileEntry {
    /// The last part of the path.
    pub name: String,
    /// The whole path.
    pub path: String,
    /// The kind of the file. For a symbolic link, it is the kind of what the link leads to.
    pub kind: FileKind,
    /// The length, in bytes; that of a symbolic link is the link's own.
    pub len: u64,
    /// The nine permission bits, as in chmod(2). For a symbolic link, they are those of what the link leads to.
    pub mode: u32,
    /// The name of the owner, or the owner's number where the guest has no name for it.
    pub owner: String,
    /// The name of the group, or the group's number where the guest has no name for it.
    pub group: String,
    /// When the contents were last changed, by the guest's clock; `None` where that is before 1970.
    pub modified: Option<SystemTime>,
    /// The path that a symbolic link leads to in the end; `None` for everything else.
    pub symlink_target: Option<String>,
    /// The notes that were written with the file: see [`Files::metadata`](crate::Files::metadata).
    pub metadata: BTreeMap<String, String>,
}

/// The kind of a file.
///
/// ```no_run
/// # async fn demo(sandbox: &wrenn_core::Sandbox) -> wrenn_core::Result<()> {
/// use wrenn_core::FileKind;
///
/// let entries = sandbox.files().list("/home/user").await?;
/// let directories = entries.iter().filter(|entry| entry.kind == FileKind::Directory).count();
/// # Ok(()) }
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum FileKind {
    /// A regular file.
    File,
    /// A directory.
    Directory,
    /// A symbolic link that leads nowhere.
    Symlink,
    /// A pipe, a socket, or a device.
    Other,
}

impl From<EntryInfo> for FileEntry {
    fn from(info: EntryInfo) -> Self {
        let kind = match info.r#type.as_known() {
            Some(FileType::FILE_TYPE_FILE) => FileKind::File,
            Some(FileType::FILE_TYPE_DIRECTORY) => FileKind::Directory,
            Some(FileType::FILE_TYPE_SYMLINK) => FileKind::Symlink,
            Some(FileType::FILE_TYPE_UNSPECIFIED) | None => FileKind::Other,
        };
        let modified = info.modified_time.into_option().and_then(|time| since_1970(time.seconds, time.nanos));
        Self {
            name: info.name,
            path: info.path,
            kind,
            len: u64::try_from(info.size).unwrap_or(0),
            mode: info.mode,
            owner: info.owner,
            group: info.group,
            modified,
            symlink_target: info.symlink_target,
            metadata: info.metadata.into_iter().collect(),
        }
    }
}

fn since_1970(seconds: i64, nanos: i32) -> Option<SystemTime> {
    let since = Duration::new(u64::try_from(seconds).ok()?, u32::try_from(nanos).ok()?);
    SystemTime::UNIX_EPOCH.checked_add(since)
}
