//! The kind of file system that the data directory is on.

use std::path::Path;

use rustix::fs::statfs;

/// The name of a file system that another machine or another program serves; `None` for a local one, and where the kernel
/// does not tell.
pub(super) fn remote(path: &Path) -> Option<&'static str> {
    let found = statfs(path).ok()?.f_type;
    named(found)
}

fn named(magic: i64) -> Option<&'static str> {
    REMOTE.iter().find(|(known, _)| *known == magic).map(|(_, name)| *name)
}

/// From include/uapi/linux/magic.h, and the kernel's fs/smb.
const REMOTE: [(i64, &str); 7] = [
    (0x6969, "NFS"),
    (0xff53_4d42, "SMB"),
    (0xfe53_4d42, "SMB"),
    (0x00c3_6400, "Ceph"),
    (0x0102_1997, "9p"),
    (0x6573_5546, "FUSE"),
    (0x6a65_6a63, "virtiofs"),
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_another_serves_is_told_from_what_is_local() {
        assert_eq!(named(0x6969), Some("NFS"));
        for local in [0xef53, 0x5846_5342, 0x9123_683e, 0x0102_1994, 0x794c_7630] {
            assert_eq!(named(local), None, "{local:x}");
        }
        assert_eq!(remote(Path::new("/proc")), None);
        assert_eq!(remote(Path::new("/nonexistent")), None);
    }
}
