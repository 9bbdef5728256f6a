use std::{
    fs::{self, FileType, Metadata},
    io,
    os::unix::fs::{FileTypeExt as _, MetadataExt as _},
    path::{Path, PathBuf},
};

use buffa_types::google::protobuf::Timestamp;

use super::names::Names;
use crate::{
    agent::disk::metadata,
    proto::filesystem::{self as wire, EntryInfo},
};

/// Describes what lies at `path`; a symbolic link is told of itself.
pub(super) fn describe(path: &Path, names: &Names) -> io::Result<EntryInfo> {
    let found = fs::symlink_metadata(path)?;
    let is_symlink = found.is_symlink();
    let target = if is_symlink { fs::metadata(path).ok() } else { None };
    let told = target.as_ref().unwrap_or(&found);
    let name = path.file_name().unwrap_or(path.as_os_str());
    Ok(EntryInfo {
        name: name.to_string_lossy().into_owned(),
        r#type: kind(told.file_type()).into(),
        path: path.to_string_lossy().into_owned(),
        size: i64::try_from(found.len()).unwrap_or(i64::MAX),
        mode: told.mode() & 0o777,
        permissions: permissions(&found),
        owner: names.user(found.uid()),
        group: names.group(found.gid()),
        modified_time: modified(&found).into(),
        symlink_target: is_symlink.then(|| target_of(path).to_string_lossy().into_owned()),
        metadata: metadata::read(path).into_iter().collect(),
        is_symlink,
        ..Default::default()
    })
}

fn kind(file_type: FileType) -> wire::FileType {
    if file_type.is_file() {
        wire::FileType::FILE_TYPE_FILE
    } else if file_type.is_dir() {
        wire::FileType::FILE_TYPE_DIRECTORY
    } else if file_type.is_symlink() {
        wire::FileType::FILE_TYPE_SYMLINK
    } else {
        wire::FileType::FILE_TYPE_UNSPECIFIED
    }
}

/// Where a symbolic link leads in the end, or in one step when it leads nowhere.
fn target_of(link: &Path) -> PathBuf {
    fs::canonicalize(link).unwrap_or_else(|_| match (fs::read_link(link), link.parent()) {
        (Ok(target), Some(parent)) => parent.join(target),
        _ => link.to_owned(),
    })
}

fn modified(found: &Metadata) -> Timestamp {
    let nanos = i32::try_from(found.mtime_nsec()).unwrap_or(0);
    Timestamp { seconds: found.mtime(), nanos, ..Default::default() }
}

/// As Go writes a mode, which is what E2B's clients know: letters of the kind and the special bits, then three times "rwx".
fn permissions(found: &Metadata) -> String {
    let (kind, mode) = (found.file_type(), found.mode());
    let letters = [
        ('d', kind.is_dir()),
        ('L', kind.is_symlink()),
        ('D', kind.is_block_device() || kind.is_char_device()),
        ('p', kind.is_fifo()),
        ('S', kind.is_socket()),
        ('u', mode & 0o4000 != 0),
        ('g', mode & 0o2000 != 0),
        ('c', kind.is_char_device()),
        ('t', mode & 0o1000 != 0),
    ];
    let mut text: String = letters.iter().filter(|(_, holds)| *holds).map(|(letter, _)| *letter).collect();
    if text.is_empty() {
        text.push('-');
    }
    let bits = (0..9).map(|at| if mode & (0o400 >> at) == 0 { '-' } else { char::from(b"rwx"[at % 3]) });
    text.extend(bits);
    text
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::{PermissionsExt as _, symlink};

    use super::*;

    #[test]
    fn permissions_read_as_e2b_writes_them() {
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("file");
        fs::write(&file, "four").unwrap();
        symlink("file", directory.path().join("link")).unwrap();
        let told = |name: &str| describe(&directory.path().join(name), &Names::default()).unwrap().permissions;
        for (mode, text) in [(0o640, "-rw-r-----"), (0o4755, "urwxr-xr-x"), (0o000, "----------")] {
            fs::set_permissions(&file, fs::Permissions::from_mode(mode)).unwrap();
            assert_eq!(told("file"), text);
        }
        assert_eq!(told("link"), "Lrwxrwxrwx");
        assert_eq!(describe(Path::new("/tmp"), &Names::default()).unwrap().permissions, "dtrwxrwxrwx");
        assert_eq!(describe(Path::new("/dev/null"), &Names::default()).unwrap().permissions, "Dcrw-rw-rw-");
    }

    #[test]
    fn a_link_has_its_targets_type_and_its_own_size() {
        let directory = tempfile::tempdir().unwrap();
        let at = |name: &str| directory.path().join(name);
        fs::write(at("file"), "four").unwrap();
        symlink("file", at("link")).unwrap();
        symlink("nowhere", at("dangling")).unwrap();
        let link = describe(&at("link"), &Names::default()).unwrap();
        assert!(link.is_symlink);
        assert_eq!((link.r#type.to_i32(), link.size), (1, 4));
        assert_eq!(link.symlink_target.as_deref(), at("file").canonicalize().unwrap().to_str());
        let dangling = describe(&at("dangling"), &Names::default()).unwrap();
        assert_eq!(dangling.r#type, wire::FileType::FILE_TYPE_SYMLINK);
        assert_eq!(dangling.symlink_target.as_deref(), at("nowhere").to_str());
    }
}
