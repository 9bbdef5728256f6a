use std::{
    ffi::OsStr,
    fs, io,
    os::{fd::BorrowedFd, unix::ffi::OsStringExt as _},
    path::{Path, PathBuf},
};

use buffa_types::google::protobuf::Timestamp;
use rustix::fs::{AtFlags, CWD, FileType, Stat, readlinkat, statat};

use super::names::Names;
use crate::{
    agent::disk::{metadata, opened::path_of, spelling::told},
    proto::filesystem::{self as wire, EntryInfo},
};

/// Describes what lies at `path`; a symbolic link is told of itself.
pub(super) fn describe(path: &Path, names: &Names) -> io::Result<EntryInfo> {
    let mut entry = describe_at(CWD, path.as_os_str(), path, names)?;
    entry.metadata = metadata::read(path).into_iter().collect();
    Ok(entry)
}

/// Describes `name` of an open directory, which clients know as `path`. It may be longer than paths can be.
pub(super) fn describe_in(
    directory: BorrowedFd<'_>,
    name: &OsStr,
    path: &Path,
    names: &Names,
) -> io::Result<EntryInfo> {
    let mut entry = describe_at(directory, name, path, names)?;
    entry.metadata = metadata::read(&path_of(directory).join(name)).into_iter().collect();
    Ok(entry)
}

/// All there is to say of an entry that cannot be looked at.
pub(super) fn describe_unreadable(path: &Path, file_type: FileType, error: &io::Error) -> EntryInfo {
    EntryInfo {
        name: name_of(path),
        r#type: kind(file_type).into(),
        path: told(path),
        unreadable: Some(error.to_string()),
        ..Default::default()
    }
}

/// How many bytes of text an entry holds.
pub(super) fn text_bytes(entry: &EntryInfo) -> usize {
    let texts = [&entry.name, &entry.path, &entry.permissions, &entry.owner, &entry.group];
    let optional = [&entry.symlink_target, &entry.unreadable];
    texts.map(String::len).iter().sum::<usize>()
        + optional.map(|text| text.as_ref().map_or(0, String::len)).iter().sum::<usize>()
        + entry.metadata.iter().map(|(key, value)| key.len() + value.len()).sum::<usize>()
}

fn describe_at(directory: BorrowedFd<'_>, name: &OsStr, path: &Path, names: &Names) -> io::Result<EntryInfo> {
    let found = statat(directory, name, AtFlags::SYMLINK_NOFOLLOW)?;
    let is_symlink = FileType::from_raw_mode(found.st_mode) == FileType::Symlink;
    let target = if is_symlink { statat(directory, name, AtFlags::empty()).ok() } else { None };
    let shown = target.as_ref().unwrap_or(&found);
    Ok(EntryInfo {
        name: name_of(path),
        r#type: kind(FileType::from_raw_mode(shown.st_mode)).into(),
        path: told(path),
        size: found.st_size,
        mode: shown.st_mode & 0o777,
        permissions: permissions(&found),
        owner: names.user(found.st_uid),
        group: names.group(found.st_gid),
        modified_time: modified(&found).into(),
        symlink_target: is_symlink.then(|| told(target_of(directory, name, path))),
        is_symlink,
        ..Default::default()
    })
}

fn name_of(path: &Path) -> String {
    told(path.file_name().unwrap_or(path.as_os_str()))
}

fn kind(file_type: FileType) -> wire::FileType {
    match file_type {
        FileType::RegularFile => wire::FileType::FILE_TYPE_FILE,
        FileType::Directory => wire::FileType::FILE_TYPE_DIRECTORY,
        FileType::Symlink => wire::FileType::FILE_TYPE_SYMLINK,
        _ => wire::FileType::FILE_TYPE_UNSPECIFIED,
    }
}

/// Where a symbolic link leads in the end, or in one step when it leads nowhere.
fn target_of(directory: BorrowedFd<'_>, name: &OsStr, path: &Path) -> PathBuf {
    fs::canonicalize(path).unwrap_or_else(|_| match (readlinkat(directory, name, Vec::new()), path.parent()) {
        (Ok(target), Some(parent)) => parent.join(std::ffi::OsString::from_vec(target.into_bytes())),
        _ => path.to_owned(),
    })
}

fn modified(found: &Stat) -> Timestamp {
    let nanos = i32::try_from(found.st_mtime_nsec).unwrap_or(0);
    Timestamp { seconds: found.st_mtime, nanos, ..Default::default() }
}

/// As Go writes a mode, which is what E2B's clients know: letters of the kind and the special bits, then three times "rwx".
fn permissions(found: &Stat) -> String {
    let (kind, mode) = (FileType::from_raw_mode(found.st_mode), found.st_mode);
    let letters = [
        ('d', kind == FileType::Directory),
        ('L', kind == FileType::Symlink),
        ('D', matches!(kind, FileType::BlockDevice | FileType::CharacterDevice)),
        ('p', kind == FileType::Fifo),
        ('S', kind == FileType::Socket),
        ('u', mode & 0o4000 != 0),
        ('g', mode & 0o2000 != 0),
        ('c', kind == FileType::CharacterDevice),
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
