use std::collections::BTreeMap;
use std::time::{Duration, SystemTime};

use wrenn_envd::proto::filesystem::{EntryInfo, FileType};

/// What lies at a path of the guest.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct FileEntry {
    /// The last part of the path.
    pub name: String,
    /// The whole path.
    pub path: String,
    /// What it is; of a symbolic link, what it leads to.
    pub kind: FileKind,
    /// Its length, in bytes.
    pub len: u64,
    /// The nine permission bits.
    pub mode: u32,
    /// Its owner, by name where there is one, else by number.
    pub owner: String,
    /// Its group, likewise.
    pub group: String,
    /// When its contents were changed, by the guest's clock; `None` where that is before 1970.
    pub modified: Option<SystemTime>,
    /// Where a symbolic link leads in the end; `None` for everything else.
    pub symlink_target: Option<String>,
    /// What was noted with it: see [`Files::metadata`](crate::Files::metadata).
    pub metadata: BTreeMap<String, String>,
}

/// The kind of a file.
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
