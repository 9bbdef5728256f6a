//! A generation's memory as one file, which all of its clones map.

use std::fs::{File, Permissions};
use std::io;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::sync::Arc;

use wrenn_snapshot::{Generation, Space};

use crate::error::{Error, Result};
use crate::runtime::blocking;
use crate::site::Site;

/// Opens the file, making it first if nobody has. It is beside the files of its generation, and gone with them.
///
/// Each page is checked once, when the file is made; from then on it is the page cache's.
pub(crate) async fn memory(site: &Arc<Site>, generation: &Generation) -> Result<File> {
    let (generation, directory) = (generation.clone(), site.store.root().join(generation.id().to_string()));
    blocking("write the memory of all clones", move || open_or_make(&generation, &directory)).await?
}

fn open_or_make(generation: &Generation, directory: &Path) -> Result<File> {
    let path = directory.join(NAME);
    match File::open(&path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        opened => return opened.map_err(Error::io("open", &path)),
    }
    let temporary = tempfile::NamedTempFile::new_in(directory).map_err(Error::io("write", &path))?;
    generation.reader(Space::Memory)?.copy_into(temporary.as_file(), &path)?;
    // The VMM runs as another user, and maps it privately.
    let finished = temporary.as_file().set_permissions(Permissions::from_mode(0o444));
    // Durable before it has its name: a file with a name is whole.
    finished.and_then(|()| temporary.as_file().sync_all()).map_err(Error::io("write", &path))?;
    match temporary.persist_noclobber(&path) {
        Ok(_) => {}
        Err(error) if error.error.kind() == io::ErrorKind::AlreadyExists => {}
        Err(error) => return Err(Error::io("write", &path)(error.error)),
    }
    File::open(&path).map_err(Error::io("open", &path))
}

const NAME: &str = "flat-memory";
