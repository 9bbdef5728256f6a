//! What becomes of archives, those of strangers too.

use std::{
    fs,
    os::unix::fs::{MetadataExt as _, PermissionsExt as _, symlink},
    path::Path,
};

use rustix::fs::{XattrFlags, getxattr, setxattr};
use tar::{Builder, EntryType, Header};
use tempfile::TempDir;

use super::{packer::Packer, unpacker::unpack};
use crate::agent::api_error::ApiError;

/// A directory to unpack to, in one that has a file beside it.
struct Place(TempDir);

impl Place {
    fn new() -> Self {
        let place = Self(tempfile::tempdir().unwrap());
        fs::create_dir(place.top()).unwrap();
        fs::write(place.outside(), "outside").unwrap();
        place
    }

    fn top(&self) -> std::path::PathBuf {
        self.0.path().join("top")
    }

    fn outside(&self) -> std::path::PathBuf {
        self.0.path().join("outside")
    }

    fn unpack(&self, archive: Archive) -> Result<(), ApiError> {
        unpack(&self.top(), &*archive.0.into_inner().unwrap())
    }

    /// Nothing but the top has changed.
    fn assert_confined(&self) {
        assert_eq!(fs::read_to_string(self.outside()).unwrap(), "outside");
        assert_eq!(fs::read_dir(self.0.path()).unwrap().count(), 2);
    }
}

struct Archive(Builder<Vec<u8>>);

impl Archive {
    fn new() -> Self {
        Self(Builder::new(Vec::new()))
    }

    /// The crate's own setters refuse what a hostile archive has.
    fn entry(mut self, kind: EntryType, name: &str, target: &str, content: &[u8]) -> Self {
        let mut header = Header::new_ustar();
        header.as_old_mut().name[..name.len()].copy_from_slice(name.as_bytes());
        header.as_old_mut().linkname[..target.len()].copy_from_slice(target.as_bytes());
        header.set_entry_type(kind);
        header.set_mode(0o754);
        header.set_uid(rustix::process::geteuid().as_raw().into());
        header.set_gid(rustix::process::getegid().as_raw().into());
        header.set_mtime(1_700_000_000);
        header.set_size(content.len() as u64);
        header.set_cksum();
        self.0.append(&header, content).unwrap();
        self
    }

    fn file(self, name: &str, content: &[u8]) -> Self {
        self.entry(EntryType::Regular, name, "", content)
    }

    fn link(self, kind: EntryType, name: &str, target: &str) -> Self {
        self.entry(kind, name, target, b"")
    }

    fn pax(mut self, records: &[(&str, &[u8])]) -> Self {
        self.0.append_pax_extensions(records.iter().copied()).unwrap();
        self
    }
}

#[test]
fn what_is_in_an_archive_is_there_afterwards() {
    let place = Place::new();
    fs::write(place.top().join("replaced"), "a longer text").unwrap();
    fs::create_dir(place.top().join("kept")).unwrap();
    fs::write(place.top().join("kept/inside"), "").unwrap();
    let hole = [vec![0; 200_000], b"end".to_vec()].concat();
    let long = format!("{}/{}", "d".repeat(120), "f".repeat(120));
    let archive = Archive::new()
        .entry(EntryType::Directory, "kept", "", b"")
        .file("replaced", b"new")
        .file("deep/er/file", b"x")
        .file("hole", &hole)
        .link(EntryType::Symlink, "link", "kept/inside")
        .link(EntryType::Link, "other", "replaced")
        .entry(EntryType::Fifo, "pipe", "", b"")
        .pax(&[("path", long.as_bytes()), ("SCHILY.xattr.user.note", b"a\nb"), ("mtime", b"1600000000.5")])
        .file("short", b"long");
    place.unpack(archive).unwrap();
    let look = |name: &str| fs::symlink_metadata(place.top().join(name)).unwrap();
    assert_eq!(fs::read(place.top().join("replaced")).unwrap(), b"new");
    assert_eq!((look("replaced").mode() & 0o7777, look("replaced").mtime()), (0o754, 1_700_000_000));
    assert_eq!((look("kept").mode() & 0o7777, look("kept").mtime()), (0o754, 1_700_000_000));
    assert!(place.top().join("kept/inside").exists());
    assert_eq!(look("deep/er").mode() & 0o7777, 0o755);
    assert!(fs::read(place.top().join("hole")).unwrap() == hole && look("hole").blocks() * 512 < 100_000);
    assert_eq!(
        (fs::read_link(place.top().join("link")).unwrap(), look("link").mtime()),
        ("kept/inside".into(), 1_700_000_000)
    );
    assert_eq!((look("other").ino(), look("replaced").nlink()), (look("replaced").ino(), 2));
    assert_eq!(look(&long).mtime(), 1_600_000_000);
    let mut value = [0; 8];
    if let Ok(length) = getxattr(place.top().join(&long), "user.note", &mut value) {
        assert_eq!(&value[..length], b"a\nb");
    }
    place.assert_confined();
}

#[test]
fn no_name_and_no_link_leads_out() {
    let outside = |place: &Place| place.outside().display().to_string();
    let place = Place::new();
    for name in ["../outside", "a/../../outside", ".."] {
        let error = place.unpack(Archive::new().file(name, b"evil")).unwrap_err();
        assert!(error.status == 400 && error.message.contains("`..` in a name"), "{error}");
    }
    let error = place.unpack(Archive::new().link(EntryType::Link, "a", "../outside")).unwrap_err();
    assert!(error.message.contains("`..` in a name"), "{error}");
    // An absolute name is one below the top.
    place.unpack(Archive::new().file("/absolute", b"x")).unwrap();
    assert!(place.top().join("absolute").exists());
    // A link upwards ends at the top, and an absolute one begins there.
    let archive = Archive::new().link(EntryType::Symlink, "up", "../../..").file("up/outside", b"evil");
    place.unpack(archive).unwrap();
    assert_eq!(fs::read(place.top().join("outside")).unwrap(), b"evil");
    let parent = place.0.path().display().to_string();
    let archive = Archive::new().link(EntryType::Symlink, "out", &parent).file("out/outside", b"evil");
    place.unpack(archive).unwrap_err();
    place.unpack(Archive::new().link(EntryType::Link, "hard", "out/outside")).unwrap_err();
    // A link in a file's place is replaced, and not followed.
    symlink(outside(&place), place.top().join("at")).unwrap();
    place.unpack(Archive::new().file("at", b"evil")).unwrap();
    assert_eq!(fs::read(place.top().join("at")).unwrap(), b"evil");
    let archive = Archive::new().link(EntryType::Symlink, "to", &outside(&place)).file("to", b"evil");
    place.unpack(archive).unwrap();
    // Nor are the rights of what a link leads to changed.
    let before = fs::metadata(place.outside()).unwrap().mode();
    place.unpack(Archive::new().link(EntryType::Symlink, "rights", &outside(&place))).unwrap();
    place.unpack(Archive::new().link(EntryType::Link, "name", "rights")).unwrap();
    assert_eq!(fs::metadata(place.outside()).unwrap().mode(), before);
    place.assert_confined();
}

#[test]
fn a_link_to_a_directory_stays_and_what_it_leads_to_keeps_its_rights() {
    let place = Place::new();
    fs::create_dir_all(place.top().join("usr/lib")).unwrap();
    fs::set_permissions(place.top().join("usr/lib"), fs::Permissions::from_mode(0o711)).unwrap();
    symlink("usr/lib", place.top().join("lib")).unwrap();
    place.unpack(Archive::new().entry(EntryType::Directory, "lib/", "", b"").file("lib/a", b"a")).unwrap();
    assert!(place.top().join("lib").is_symlink() && place.top().join("usr/lib/a").exists());
    assert_eq!(fs::metadata(place.top().join("usr/lib")).unwrap().mode() & 0o777, 0o711);
    // One that leads nowhere makes room for the directory.
    symlink("nowhere", place.top().join("gone")).unwrap();
    place.unpack(Archive::new().entry(EntryType::Directory, "gone", "", b"").file("gone/a", b"a")).unwrap();
    assert!(place.top().join("gone").symlink_metadata().unwrap().is_dir());
    let error = place.unpack(Archive::new().file("usr", b"")).unwrap_err();
    assert_eq!(error.status, 400, "{error}");
    assert!(place.top().join("usr/lib/a").exists(), "a directory is not replaced by a file");
}

#[test]
fn what_cannot_be_unpacked_is_refused_by_name() {
    let place = Place::new();
    let refused = |archive: Archive, said: &str| {
        let error = place.unpack(archive).unwrap_err();
        assert!(error.status == 400 && error.message.contains(said), "{error}");
    };
    refused(
        Archive::new().pax(&[("SCHILY.xattr.trusted.overlay.opaque", b"y")]).file("a", b""),
        "trusted.overlay.opaque",
    );
    refused(Archive::new().pax(&[("size", b"9")]).file("a", b"x"), "pax record alone");
    refused(Archive::new().pax(&[("GNU.sparse.major", b"1")]).file("a", b"x"), "sparse");
    refused(Archive::new().pax(&[("path", &[b'x'; 300_000])]).file("a", b"x"), "an extension has 300");
    refused(Archive::new().entry(EntryType::new(b'M'), "a", "", b""), "type 'M'");
    refused(Archive::new().link(EntryType::Link, "a", "/"), "link to a directory");
    let mut cut = Archive::new().file("cut", b"content").0.into_inner().unwrap();
    cut.truncate(515);
    unpack(&place.top(), &*cut).unwrap_err();
    unpack(&place.top(), &b"no archive at all, but a text that is quite long".repeat(20)[..]).unwrap_err();
    assert_eq!(unpack(&place.0.path().join("nowhere"), &b""[..]).unwrap_err().status, 404);
    place.assert_confined();
}

#[test]
fn what_was_packed_is_unpacked_as_it_was() {
    let (from, to) = (tempfile::tempdir().unwrap(), Place::new());
    let at = |name: &str| from.path().join(name);
    fs::create_dir_all(at("d/e")).unwrap();
    fs::write(at("d/e/file"), "content").unwrap();
    fs::set_permissions(at("d/e/file"), fs::Permissions::from_mode(0o640)).unwrap();
    fs::hard_link(at("d/e/file"), at("d/second")).unwrap();
    symlink("../outside", at("d/link")).unwrap();
    fs::write(at(&"n".repeat(200)), vec![7; 300_000]).unwrap();
    let has_attributes = setxattr(at("d"), "user.note", b"a\nb", XattrFlags::empty()).is_ok();
    fs::set_permissions(at("d"), fs::Permissions::from_mode(0o555)).unwrap();
    let pack = |path: &Path| {
        let mut archive = Vec::new();
        Packer::open(path).unwrap().pack(&mut archive).unwrap();
        archive
    };
    unpack(&to.top(), &*pack(from.path())).unwrap();
    let there = |name: &str| to.top().join(name);
    assert_eq!(fs::read_to_string(there("d/e/file")).unwrap(), "content");
    assert_eq!(fs::metadata(there("d/e/file")).unwrap().mode() & 0o777, 0o640);
    assert_eq!(fs::metadata(there("d/second")).unwrap().ino(), fs::metadata(there("d/e/file")).unwrap().ino());
    assert_eq!(fs::read_link(there("d/link")).unwrap(), Path::new("../outside"));
    assert_eq!(fs::metadata(there("d")).unwrap().mode() & 0o777, 0o555);
    assert_eq!(fs::read(there(&"n".repeat(200))).unwrap().len(), 300_000);
    if has_attributes {
        assert_eq!(getxattr(there("d"), "user.note", &mut [0; 8]), Ok(3));
    }
    unpack(&to.top(), &*pack(&at("d/e/file"))).unwrap();
    assert_eq!(fs::read_to_string(there("file")).unwrap(), "content");
    assert!(Packer::open(&at("none")).is_err_and(|error| error.status == 404));
    fs::set_permissions(there("d"), fs::Permissions::from_mode(0o755)).unwrap();
    fs::set_permissions(at("d"), fs::Permissions::from_mode(0o755)).unwrap();
}
