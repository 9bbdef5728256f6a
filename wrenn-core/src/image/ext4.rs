//! The image's two ext4 file systems: the base, full and read-only, and the template of the writable drive, empty.

use std::collections::HashSet;
use std::fs::{DirBuilder, File};
use std::os::unix::fs::DirBuilderExt as _;
use std::path::Path;

use crate::image::error::ImageError;
use crate::image::tools::Tool;

/// Writes the tree under `root` to `image`, as tight as an estimate of its size allows.
pub(super) async fn write_base(root: &Path, image: &Path) -> Result<(), ImageError> {
    let usage = Usage::of(root).await?;
    let format = Format {
        options: "num_backup_sb=0,root_owner=0:0",
        features: FEATURES,
        inodes: Some(usage.inodes + SPARE_INODES),
        flex_groups: 16,
    };
    format.write(root, image, usage.blocks() * BLOCK_BYTES).await
}

/// Writes the template of a sandbox's writable drive: sparse, with `upper` and `work` for an overlay.
///
/// What a pause keeps is what the guest wrote, so the file system is laid out to write little by itself: no journal, no
/// checksums of metadata, all metadata side by side, and inode tables that are marked as zeroed, which stops the
/// kernel's own background zeroing.
pub(super) async fn write_drive(scratch: &Path, image: &Path, size_bytes: u64) -> Result<(), ImageError> {
    let root = scratch.join("drive");
    for directory in [root.clone(), root.join("upper"), root.join("work")] {
        DirBuilder::new().mode(0o755).create(&directory).map_err(ImageError::io("create", &directory))?;
    }
    let format = Format {
        options: "num_backup_sb=0,root_owner=0:0,packed_meta_blocks=1,lazy_itable_init=1",
        features: FEATURES_OF_DRIVE,
        inodes: None,
        flex_groups: 4096,
    };
    format.write(&root, image, size_bytes).await
}

/// How one file system is made. Everything is spelt out: the defaults of `mke2fs` differ from host to host.
struct Format {
    options: &'static str,
    features: &'static str,
    inodes: Option<u64>,
    flex_groups: u32,
}

impl Format {
    async fn write(&self, root: &Path, image: &Path, size_bytes: u64) -> Result<(), ImageError> {
        File::create_new(image).and_then(|file| file.set_len(size_bytes)).map_err(ImageError::io("create", image))?;
        let inodes = match self.inodes {
            Some(count) => ["-N".to_owned(), count.to_string()],
            None => ["-i".to_owned(), BYTES_PER_INODE.to_string()],
        };
        Tool::as_root("mke2fs")
            .args(["-q", "-F", "-t", "ext4", "-m", "0", "-I", "256"])
            .args(["-b".to_owned(), BLOCK_BYTES.to_string()])
            .args(["-O", self.features, "-E", self.options])
            .args(["-G".to_owned(), self.flex_groups.to_string()])
            .args(inodes)
            .arg("-d")
            .arg(root)
            .arg(image)
            .run(|_| {})
            .await
    }
}

/// What a tree takes in an ext4 of 4 KiB blocks.
#[derive(Debug, Default, PartialEq, Eq)]
struct Usage {
    data_blocks: u64,
    inodes: u64,
}

impl Usage {
    /// Measures as root does, whom no directory of the tree is closed to.
    async fn of(root: &Path) -> Result<Self, ImageError> {
        let list = Tool::as_root("find").arg(root).args(["-printf", "%i %y %s\\n"]).output().await?;
        Ok(Self::of_list(&list))
    }

    /// Of files by their number, kind and bytes, a line for each name.
    fn of_list(list: &str) -> Self {
        let (mut usage, mut seen) = (Self::default(), HashSet::new());
        for line in list.lines() {
            let mut words = line.split(' ');
            let (Some(number), Some(kind), Some(Ok(bytes))) =
                (words.next(), words.next(), words.next().map(str::parse))
            else {
                continue;
            };
            if seen.insert(number) {
                usage.inodes += 1;
                usage.data_blocks += data_blocks(kind, bytes);
            }
        }
        usage
    }

    /// Data, the inode table, and room for bitmaps, extent blocks and directories that grow past the host's.
    fn blocks(&self) -> u64 {
        let inode_table = (self.inodes + SPARE_INODES).div_ceil(BLOCK_BYTES / 256);
        let used = self.data_blocks + inode_table;
        used + used / 64 + 512
    }
}

fn data_blocks(kind: &str, bytes: u64) -> u64 {
    let blocks = bytes.div_ceil(BLOCK_BYTES);
    match kind {
        "d" => blocks.max(1),
        "l" if bytes < SYMLINK_INLINE_MAX => 0,
        _ => blocks,
    }
}

const BLOCK_BYTES: u64 = 4096;
/// A shorter link's target is in its inode.
const SYMLINK_INLINE_MAX: u64 = 60;
const SPARE_INODES: u64 = 64;
const BYTES_PER_INODE: u64 = 16384;
/// `none` clears the host's defaults. Checksums of metadata would cost a guest under software emulation dearly.
const FEATURES: &str =
    "none,filetype,sparse_super2,large_file,huge_file,extent,flex_bg,dir_index,ext_attr,extra_isize,dir_nlink";
/// With `uninit_bg`, groups that were never used need neither bitmaps nor tables on disk.
const FEATURES_OF_DRIVE: &str = "none,filetype,sparse_super2,large_file,huge_file,extent,flex_bg,dir_index,ext_attr,extra_isize,dir_nlink,uninit_bg";

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::symlink;

    use super::*;

    #[tokio::test]
    async fn usage_counts_hard_links_once_and_short_links_as_nothing() -> Result<(), Box<dyn std::error::Error>> {
        let root = tempfile::tempdir()?;
        fs::write(root.path().join("file"), vec![1; 4097])?;
        fs::hard_link(root.path().join("file"), root.path().join("same"))?;
        symlink("file", root.path().join("short"))?;
        symlink("x".repeat(100), root.path().join("long"))?;
        let usage = Usage::of(root.path()).await?;
        assert_eq!((usage.inodes, usage.data_blocks), (4, 4));
        Ok(())
    }
}
