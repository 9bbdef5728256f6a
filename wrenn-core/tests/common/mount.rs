//! A file system of a test's own, gone with it.

use std::path::Path;
use std::process::Command;

use tempfile::TempDir;

pub(crate) struct Mount {
    at: TempDir,
    /// Where the file is that it is in.
    _image: Option<TempDir>,
}

impl Mount {
    pub(crate) fn tmpfs(options: &str) -> Self {
        Self::made(Command::new("mount").args(["-t", "tmpfs", "-o", options, "none"]), None).unwrap()
    }

    /// Another way to a directory, past those above it.
    pub(crate) fn of(directory: &Path) -> Self {
        Self::made(Command::new("mount").arg("--bind").arg(directory), None).unwrap()
    }

    /// An XFS of 4 GiB, of which what is written takes room. What keeps this machine from having one is the error.
    pub(crate) fn xfs() -> Result<Self, String> {
        Self::of_kind("xfs", "xfsprogs")
    }

    /// The same with btrfs.
    pub(crate) fn btrfs() -> Result<Self, String> {
        Self::of_kind("btrfs", "btrfs-progs")
    }

    fn of_kind(kind: &str, package: &str) -> Result<Self, String> {
        let directory = tempfile::tempdir().unwrap();
        let image = directory.path().join(kind);
        std::fs::File::create(&image).unwrap().set_len(4 << 30).unwrap();
        let made = Command::new(format!("mkfs.{kind}")).arg("-q").arg(&image).status();
        let made = made.map_err(|error| format!("no mkfs.{kind} ({error}): install {package}"))?;
        assert!(made.success(), "{made:?}");
        let mounted = Self::made(Command::new("mount").args(["-o", "loop"]).arg(&image), Some(directory));
        mounted.map_err(|error| format!("this kernel mounts no {kind}: {error}"))
    }

    /// An overlay in memory over an empty directory, as a container has it as its root.
    pub(crate) fn overlay() -> Result<Self, String> {
        let memory = Self::tmpfs("size=1G");
        let [lower, upper, work] = ["lower", "upper", "work"].map(|name| memory.path().join(name));
        for directory in [&lower, &upper, &work] {
            std::fs::create_dir(directory).unwrap();
        }
        let options = format!("lowerdir={},upperdir={},workdir={}", lower.display(), upper.display(), work.display());
        // The overlay keeps what it lies on, which is unmounted lazily.
        Self::made(Command::new("mount").args(["-t", "overlay", "-o", &options, "none"]), None)
    }

    fn made(mount: &mut Command, image: Option<TempDir>) -> Result<Self, String> {
        let at = tempfile::tempdir().unwrap();
        let output = mount.arg(at.path()).output().unwrap();
        match output.status.success() {
            true => Ok(Self { at, _image: image }),
            false => Err(String::from_utf8_lossy(&output.stderr).into_owned()),
        }
    }

    pub(crate) fn path(&self) -> &Path {
        self.at.path()
    }
}

impl Drop for Mount {
    fn drop(&mut self) {
        // Lazily: what a sandbox that has just ended had open may be closed a moment later.
        let status = Command::new("umount").arg("-l").arg(self.path()).status();
        assert!(status.is_ok_and(|status| status.success()));
    }
}
