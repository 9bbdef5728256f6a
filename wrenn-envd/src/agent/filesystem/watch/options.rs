use std::path::PathBuf;

use nix::sys::statfs::statfs;

use crate::agent::filesystem::error::FileError;

/// What is to be watched, and how.
#[derive(Clone, Debug)]
pub(in crate::agent::filesystem) struct WatchOptions {
    pub(in crate::agent::filesystem) path: PathBuf,
    pub(in crate::agent::filesystem) recursive: bool,
    pub(in crate::agent::filesystem) include_entry: bool,
    pub(in crate::agent::filesystem) allow_network_mounts: bool,
}

impl WatchOptions {
    /// Refuses what is no directory, or is on a network file system.
    pub(super) fn check(&self) -> Result<(), FileError> {
        let path = &self.path;
        let found = std::fs::metadata(path).map_err(FileError::at(path))?;
        if !found.is_dir() {
            return Err(FileError::Invalid(format!("{} is no directory", path.display())));
        }
        let kind = statfs(path).map_err(|errno| FileError::at(path)(errno.into()))?.filesystem_type();
        // The type's width is the platform's.
        #[expect(clippy::cast_sign_loss, reason = "a magic number is 32 bits, whatever it is kept in")]
        let magic = kind.0 as u64 & 0xffff_ffff;
        if !self.allow_network_mounts && is_network(magic) {
            let message = format!(
                "{} is on a network file system, which tells of few changes or none; set allow_network_mounts to watch it",
                path.display()
            );
            return Err(FileError::Invalid(message));
        }
        Ok(())
    }
}

/// Whether a file system is one where others write, too, of whom the kernel does not hear.
fn is_network(magic: u64) -> bool {
    NETWORK_FILE_SYSTEMS.contains(&magic)
}

/// NFS, SMB, CIFS, SMB2, FUSE, 9P, AFS, Ceph and Lustre: `linux/magic.h` and the file systems' own sources.
const NETWORK_FILE_SYSTEMS: [u64; 9] =
    [0x6969, 0x517b, 0xff53_4d42, 0xfe53_4d42, 0x6573_5546, 0x0102_1997, 0x5346_414f, 0x00c3_6400, 0x0bd0_0bd0];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_others_write_to_is_a_network_file_system() {
        use nix::libc;
        for magic in [libc::NFS_SUPER_MAGIC, libc::SMB_SUPER_MAGIC, libc::FUSE_SUPER_MAGIC, libc::AFS_SUPER_MAGIC] {
            assert!(is_network(u64::try_from(magic).unwrap()), "{magic:#x}");
        }
        for magic in [
            libc::EXT4_SUPER_MAGIC,
            libc::OVERLAYFS_SUPER_MAGIC,
            libc::TMPFS_MAGIC,
            libc::XFS_SUPER_MAGIC,
            libc::PROC_SUPER_MAGIC,
        ] {
            assert!(!is_network(u64::try_from(magic).unwrap()), "{magic:#x}");
        }
    }
}
