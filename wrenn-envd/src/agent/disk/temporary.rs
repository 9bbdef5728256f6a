use std::{
    ffi::OsStr,
    path::{Path, PathBuf},
    sync::atomic::{AtomicU64, Ordering},
};

/// What an upload does to the name that it is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::agent) enum Upload {
    New,
    Replacement,
}

/// What the upload does that is being written to a file called `name`; `None` for every other file.
pub(in crate::agent) fn upload_of(name: &OsStr) -> Option<Upload> {
    let name = name.to_str()?;
    let starts = |prefix: &str| name.starts_with(prefix);
    if starts(NEW_PREFIX) { Some(Upload::New) } else { starts(REPLACEMENT_PREFIX).then_some(Upload::Replacement) }
}

/// A file that goes unless it is kept: an upload that breaks off, or whose client leaves, leaves nothing.
#[derive(Debug)]
pub(in crate::agent) struct Temporary {
    pub(in crate::agent) path: PathBuf,
    is_kept: bool,
}

impl Temporary {
    /// A name in `parent` that nothing has.
    pub(in crate::agent) fn beside(parent: &Path, upload: Upload) -> Self {
        static NEXT: AtomicU64 = AtomicU64::new(0);
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let prefix = match upload {
            Upload::New => NEW_PREFIX,
            Upload::Replacement => REPLACEMENT_PREFIX,
        };
        Self { path: parent.join(format!("{prefix}{}-{number}", std::process::id())), is_kept: false }
    }

    pub(in crate::agent) fn keep(mut self) {
        self.is_kept = true;
    }
}

impl Drop for Temporary {
    fn drop(&mut self) {
        if !self.is_kept {
            let _ = std::fs::remove_file(&self.path);
        }
    }
}

const NEW_PREFIX: &str = ".wrenn-upload-new-";
const REPLACEMENT_PREFIX: &str = ".wrenn-upload-replacement-";
