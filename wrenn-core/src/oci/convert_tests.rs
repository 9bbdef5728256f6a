use std::fs;
use std::io::Read as _;
use std::process::Command;

use tar::EntryType;

use crate::oci::convert::convert;
use crate::oci::digest::Digest;
use crate::oci::entry::{Entry, EntryKind, Place};
use crate::oci::error::{EntryFault, OciError};
use crate::oci::index;
use crate::oci::layer_writer::LayerWriter;
use crate::oci::limits::{Budget, Limits};
use crate::oci::testing::{Archive, gzip};

struct Layer {
    entries: Vec<Entry>,
    totals: index::Totals,
    data: Vec<u8>,
    small: Vec<u8>,
}

impl Layer {
    fn content(&self, path: &str) -> Vec<u8> {
        let entry = self.entries.iter().find(|entry| entry.path == path.as_bytes()).unwrap();
        let EntryKind::File(stored) = entry.kind else { panic!("no file") };
        let (from, offset) = match stored.place {
            Place::Data(offset) => (&self.data, offset),
            Place::Small(offset) => (&self.small, offset),
        };
        let start = usize::try_from(offset).unwrap();
        from[start..start + usize::try_from(stored.size).unwrap()].to_vec()
    }
}

fn take(blob: &[u8], limits: Limits) -> Result<Layer, OciError> {
    let directory = tempfile::tempdir().unwrap();
    let mut writer = LayerWriter::create(directory.path()).unwrap();
    let converted = convert(blob, &mut writer, &Budget::new(limits), "the layer")?;
    assert_eq!((converted.blob, converted.blob_bytes), (Digest::of(blob), blob.len() as u64));
    writer.finish(converted.blob, converted.diff_id, converted.unpacked_bytes).unwrap();
    let read = |name: &str| fs::read(directory.path().join(name)).unwrap();
    let (entries, totals) = index::decode(&read("index")).unwrap();
    Ok(Layer { entries, totals, data: read("data"), small: read("small") })
}

fn fails(blob: &[u8]) -> OciError {
    take(blob, Limits::default()).err().unwrap()
}

#[test]
fn every_kind_of_entry_comes_through() {
    let long = vec![7; 10_000];
    let archive = Archive::new()
        .directory("./")
        .file("/abs//./name", b"short")
        .file("long", &long)
        .symlink("link", "../../out")
        .link("hard", "./long")
        .entry(EntryType::Fifo, "fifo", "", b"")
        .entry(EntryType::Char, "null", "", b"")
        .file("d/.wh.gone", b"")
        .file("e/.wh..wh..opq", b"")
        .file(".wh..wh.plnk/1", b"x")
        .bytes();
    let (mut bzip2, mut xz) = (Vec::new(), Vec::new());
    bzip2::read::BzEncoder::new(archive.as_slice(), bzip2::Compression::fast()).read_to_end(&mut bzip2).unwrap();
    liblzma::read::XzEncoder::new(archive.as_slice(), 1).read_to_end(&mut xz).unwrap();
    for blob in [archive.clone(), gzip(&archive), bzip2, xz, zstd::encode_all(archive.as_slice(), 1).unwrap()] {
        let layer = take(&blob, Limits::default()).unwrap();
        assert_eq!(layer.totals.diff_id, Digest::of(&archive));
        let names: Vec<_> =
            layer.entries.iter().map(|entry| String::from_utf8_lossy(&entry.path).into_owned()).collect();
        assert_eq!(names, ["", "abs/name", "long", "link", "hard", "fifo", "null", "d/gone", "e"]);
        assert_eq!((layer.content("abs/name"), layer.content("long")), (b"short".to_vec(), long.clone()));
        assert_eq!(layer.entries[3].kind, EntryKind::Symlink(b"../../out".to_vec()));
        assert_eq!(layer.entries[4].kind, EntryKind::Link(b"long".to_vec()));
        assert_eq!((&layer.entries[7].kind, &layer.entries[8].kind), (&EntryKind::Whiteout, &EntryKind::Opaque));
        let meta = &layer.entries[1].meta;
        assert_eq!((meta.mode, meta.uid, meta.gid, meta.mtime.seconds), (0o640, 7, 8, 1_700_000_000));
    }
}

#[test]
fn records_of_pax_are_understood_byte_by_byte() {
    let capability = b"\x01\n\0=\n2 a=b\n";
    let name = "n".repeat(200);
    let archive = Archive::new()
        .pax(&[
            ("SCHILY.xattr.security.capability", capability),
            ("SCHILY.xattr.system.nfs4_acl", b"x"),
            ("SCHILY.xattr.trusted.overlay.opaque", b"y"),
            ("path", name.as_bytes()),
            ("mtime", b"-1.25"),
            ("uid", b"4294967294"),
        ])
        .file("ignored", b"content")
        .bytes();
    let layer = take(&archive, Limits::default()).unwrap();
    let meta = &layer.entries[0].meta;
    assert_eq!(layer.entries[0].path, name.as_bytes());
    assert_eq!(meta.xattrs.iter().collect::<Vec<_>>(), [(&b"security.capability".to_vec(), &capability.to_vec())]);
    assert_eq!((meta.mtime.seconds, meta.mtime.nanos, meta.uid), (-2, 750_000_000, 4_294_967_294));
}

#[test]
fn sparse_files_of_every_format_are_read() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("sparse");
    let mut expected = vec![0; 3 << 20];
    for number in 0..40 {
        let at = number * 70_000 + 11;
        expected[at..at + 500].fill(u8::try_from(number).unwrap() + 1);
    }
    let file = fs::File::create(&path).unwrap();
    file.set_len(expected.len() as u64).unwrap();
    for (number, chunk) in expected.chunks(4096).enumerate().filter(|(_, chunk)| chunk.iter().any(|byte| *byte != 0)) {
        std::os::unix::fs::FileExt::write_all_at(&file, chunk, number as u64 * 4096).unwrap();
    }
    for format in [
        &["--format=gnu"][..],
        &["--format=pax", "--sparse-version=0.0"],
        &["--format=pax", "--sparse-version=0.1"],
        &["--format=pax", "--sparse-version=1.0"],
    ] {
        let made = Command::new("tar")
            .arg("-C")
            .arg(directory.path())
            .args(["--sparse", "-cf", "-"])
            .args(format)
            .arg("sparse")
            .output();
        let made = match made {
            Ok(made) => made,
            Err(error) => return println!("skipped: sparse_files_of_every_format_are_read: tar: {error}"),
        };
        assert!(made.stdout.len() < expected.len() / 2, "{format:?} is not sparse");
        let layer = take(&made.stdout, Limits::default()).unwrap();
        assert!(layer.content("sparse") == expected, "{format:?}");
    }
}

#[test]
fn entries_that_lead_out_or_nowhere_are_refused() {
    for (archive, expected) in [
        (Archive::new().file("../x", b""), EntryFault::Upward),
        (Archive::new().file("a/../../x", b""), EntryFault::Upward),
        (Archive::new().link("x", "../etc/shadow"), EntryFault::Upward),
        (Archive::new().symlink("x", ""), EntryFault::Target),
        (Archive::new().file("a/.wh.", b""), EntryFault::Whiteout),
        (Archive::new().file("a/.wh...", b""), EntryFault::Whiteout),
        (Archive::new().symlink("./", "x"), EntryFault::Root),
        (Archive::new().file(".", b"x"), EntryFault::Root),
        (Archive::new().pax(&[("path", "n".repeat(256).as_bytes())]).file("x", b""), EntryFault::NameLength),
        (Archive::new().pax(&[("path", "n/".repeat(1025).as_bytes())]).directory("x"), EntryFault::Depth),
        (Archive::new().pax(&[("uid", b"4294967296")]).file("x", b""), EntryFault::Number),
    ] {
        let error = fails(&archive.bytes());
        assert!(matches!(&error, OciError::Entry { reason, .. } if *reason == expected), "{error:?}");
    }
}

#[test]
fn archives_that_are_damaged_are_refused() {
    let archive = Archive::new().file("x", &[1; 5000]).bytes();
    let zipped = gzip(&archive);
    let mut wrong = archive.clone();
    wrong[0] ^= 1;
    let mut flipped = zipped.clone();
    let middle = flipped.len() / 2;
    flipped[middle] ^= 0xff;
    let blobs = [
        &zipped[..zipped.len() - 9],
        &zipped[..30],
        &archive[..700],
        &archive[..100],
        &wrong,
        &flipped,
        &[zipped.as_slice(), b"trailing"].concat(),
        b"<html>not found</html>",
        &Archive::new().entry(EntryType::new(b'Q'), "x", "", b"").bytes(),
        &Archive::new().pax(&[("size", b"99999")]).file("x", b"1").bytes(),
        &Archive::new().pax(&[("GNU.sparse.map", b"0,1,0,1"), ("GNU.sparse.size", b"9")]).file("x", b"12").bytes(),
    ];
    for (number, blob) in blobs.into_iter().enumerate() {
        let error = fails(blob);
        assert!(matches!(error, OciError::Malformed { .. }), "{number}: {error:?}");
        assert!(!error.is_retryable());
    }
}

#[test]
fn what_would_fill_the_disk_is_refused() {
    let limits = Limits { unpacked_bytes: 1 << 20, entries: 10, ..Limits::default() };
    let bomb = gzip(&Archive::new().file("x", &vec![0; 2 << 20]).bytes());
    assert!(bomb.len() < 100_000);
    let hole: &[(&str, &[u8])] = &[("GNU.sparse.map", b"0,1"), ("GNU.sparse.size", b"99999999999")];
    let sparse = Archive::new().pax(hole).file("x", b"1").bytes();
    let many = (0..11).fold(Archive::new(), |archive, number| archive.file(&number.to_string(), b"")).bytes();
    for blob in [bomb, sparse, many] {
        let error = take(&blob, limits).err().unwrap();
        assert!(matches!(error, OciError::Limit { .. }), "{error:?}");
    }
}
