//! The guest's files, in the manner of `tokio::fs`.

use crate::files::entry::FileEntry;
use crate::files::stream::FileReader;
use crate::files::stream::FileWriter;
use crate::patience::patient;
use std::collections::BTreeMap;
use std::path::Path;
use std::time::Duration;

use bytes::Bytes;
use futures::{FutureExt as _, TryFutureExt as _};
use tokio::io::{AsyncRead, AsyncWriteExt as _, BufReader};

use crate::agent::files::PIECE_BYTES_MAX;

use crate::agent::error::AgentError;
use crate::agent::files::{FileRequest, Resource};
use crate::error::{Error, Result};
use crate::sandbox::handle::Sandbox;

/// The files of one sandbox, as one of its users sees them. Clones are cheap, and each keeps the sandbox alive.
///
/// A relative path is relative to the user's home. The guest's kernel checks every call against the rights of the user.
/// A path has to be UTF-8: for others, run a command.
///
/// ```no_run
/// # async fn demo(sandbox: &wrenn_core::Sandbox) -> wrenn_core::Result<()> {
/// let files = sandbox.files();
/// files.write("data/in.csv", "a,b\n1,2\n").await?;
/// for entry in files.list("data").await? {
///     println!("{} {} {:?}", entry.path, entry.len, entry.kind);
/// }
///
/// // Any size, in constant memory.
/// let source = tokio::fs::File::open("/tmp/big.tar").await.expect("it is there");
/// files.write_from("big.tar", source).await?;
/// let mut big = files.open("big.tar").await?;
/// let copied = tokio::io::copy(&mut big, &mut tokio::io::sink()).await;
/// # Ok(()) }
/// ```
///
/// # Errors
/// Every call fails with [`Error::NotFound`] where the path leads nowhere, with [`Error::InvalidInput`] for a malformed
/// path and for a user that the guest does not have, and with [`Error::InvalidState`] where the sandbox does not run.
/// For every other reason of the guest, such as missing rights or a full disk, a call fails with [`Error::Agent`]. That
/// error has [`AgentError::Unresponsive`] inside where the guest takes longer than [`timeout`](Files::timeout).
#[derive(Debug, Clone)]
pub struct Files {
    sandbox: Sandbox,
    user: Option<String>,
    metadata: BTreeMap<String, String>,
    timeout: Option<Duration>,
}

impl Sandbox {
    /// The guest's files, as the user `user`; [`Files::as_user`] names another.
    #[must_use]
    pub fn files(&self) -> Files {
        Files::new(self.clone())
    }

    /// Writes a file in the guest, whole or not at all, as the user `user`; missing directories are made. Short for
    /// [`Files::write`].
    ///
    /// # Errors
    /// As [`Files::write`].
    ///
    /// # Cancel-Safety
    /// Cancelling leaves the file as it was, or written.
    pub async fn write_file(&self, path: impl AsRef<Path>, contents: impl Into<Bytes>) -> Result<()> {
        self.files().write(path, contents).await
    }

    /// Reads a file of the guest, of at most 256 MiB, as the user `user`. Short for [`Files::read`].
    ///
    /// # Errors
    /// As [`Files::read`].
    ///
    /// # Cancel-Safety
    /// Cancelling changes nothing.
    pub async fn read_file(&self, path: impl AsRef<Path>) -> Result<Bytes> {
        self.files().read(path).await
    }
}

impl Files {
    pub(crate) fn new(sandbox: Sandbox) -> Self {
        Self { sandbox, user: None, metadata: BTreeMap::new(), timeout: None }
    }

    /// The user of the guest whose rights and home the calls have. Default: `user`.
    #[must_use]
    pub fn as_user(mut self, name: impl Into<String>) -> Self {
        self.user = Some(name.into());
        self
    }

    /// How long the guest may take for each call. For a file that is read or written in pieces, it is the time for each
    /// piece. Default: one minute, and ten minutes for [`list`](Self::list), [`list_levels`](Self::list_levels),
    /// [`rename`](Self::rename) and [`remove`](Self::remove), whose time grows with the number of files. A call that
    /// failed after this time may still have its effect in the guest.
    ///
    /// A call to a guest that answers nothing at all fails after half a minute, even if this time is longer.
    #[must_use]
    pub fn timeout(mut self, timeout: Duration) -> Self {
        self.timeout = Some(timeout);
        self
    }

    /// Adds a note to each file that is written through this handle; [`FileEntry::metadata`] shows it. A key consists
    /// of lower-case letters, digits, `-` and `_`, and a value of printable ASCII. Default: no notes.
    #[must_use]
    pub fn metadata(mut self, key: impl Into<String>, value: impl Into<String>) -> Self {
        self.metadata.insert(key.into(), value.into());
        self
    }

    /// Reads a regular file, of at most 256 MiB; [`open`](Self::open) has no such limit.
    ///
    /// # Errors
    /// See [`Files`]; [`Error::Agent`] with [`AgentError::TooLong`] for a longer file.
    ///
    /// # Cancel-Safety
    /// Cancelling changes nothing.
    pub async fn read(&self, path: impl AsRef<Path>) -> Result<Bytes> {
        let request = self.request(path.as_ref())?;
        let read = self.sandbox.agent().read_file(&request, self.patience());
        self.running("read a file", read).await
    }

    /// Writes a file, whole or not at all. Missing directories are made. A process that has the former file open keeps
    /// reading the former contents.
    ///
    /// # Errors
    /// See [`Files`].
    ///
    /// # Cancel-Safety
    /// Cancelling leaves the file as it was, or written.
    pub async fn write(&self, path: impl AsRef<Path>, contents: impl Into<Bytes>) -> Result<()> {
        let request = self.request(path.as_ref())?;
        let write = self.sandbox.agent().write_file(&request, contents.into(), self.patience());
        self.running("write a file", write).await
    }

    /// Opens a regular file for reading. The reader takes 128 KiB of memory, however long the file is.
    ///
    /// # Errors
    /// See [`Files`].
    ///
    /// # Cancel-Safety
    /// Cancelling changes nothing.
    pub async fn open(&self, path: impl AsRef<Path>) -> Result<FileReader> {
        self.open_at(path, 0).await
    }

    /// As [`open`](Self::open), but reading begins at the byte `offset`.
    ///
    /// # Errors
    /// See [`Files`]; [`Error::InvalidInput`] where the file is shorter.
    ///
    /// # Cancel-Safety
    /// Cancelling changes nothing.
    pub async fn open_at(&self, path: impl AsRef<Path>, offset: u64) -> Result<FileReader> {
        let request = self.request(path.as_ref())?;
        let open = self.sandbox.agent().open_file(&request, offset, self.patience());
        let file = self.running("read a file", open).await?;
        Ok(FileReader::new(file, self.sandbox.clone(), self.patience()))
    }

    /// Begins to write a file. The file is in its place once the [`FileWriter`] was shut down, and not before.
    ///
    /// # Errors
    /// [`Error::InvalidState`] where the sandbox does not run, [`Error::InvalidInput`] for a path that is not UTF-8. An
    /// error of the guest comes from a write or from the shut-down.
    ///
    /// # Cancel-Safety
    /// Cancelling leaves the file as it was.
    pub async fn create(&self, path: impl AsRef<Path>) -> Result<FileWriter> {
        let request = self.request(path.as_ref())?;
        self.sandbox.while_running("write a file", async { Ok(()) }).await?;
        Ok(FileWriter::new(request, self.sandbox.clone(), self.patience()))
    }

    /// Writes all that `source` gives to a file, whole or not at all, in constant memory. Returns the length in bytes.
    ///
    /// # Errors
    /// See [`Files`]; [`Error::Failed`] where the source cannot be read.
    ///
    /// # Cancel-Safety
    /// Cancelling leaves the file as it was.
    pub async fn write_from(&self, path: impl AsRef<Path>, source: impl AsyncRead) -> Result<u64> {
        // In large pieces: each costs the guest a call.
        let mut source = std::pin::pin!(BufReader::with_capacity(PIECE_BYTES_MAX, source));
        let mut writer = self.create(path).await?;
        let copied = async {
            let bytes = tokio::io::copy_buf(&mut source, &mut writer).await?;
            writer.shutdown().await?;
            Ok(bytes)
        };
        self.sandbox.while_running("write a file", async { copied.await.map_err(failed_write) }).await
    }

    /// Opens what lies at a path as a tar archive: all that is in a directory, or a file.
    pub(crate) async fn pack(&self, path: impl AsRef<Path>) -> Result<FileReader> {
        let request = FileRequest { resource: Resource::Packed, ..self.request(path.as_ref())? };
        let open = self.sandbox.agent().open_file(&request, 0, self.patience());
        let archive = self.running("pack files", open).await?;
        Ok(FileReader::new(archive, self.sandbox.clone(), self.patience()))
    }

    /// Begins to unpack a tar archive below a directory. What was written is there before the writer is shut down, but for the
    /// rights and times of directories.
    pub(crate) async fn unpack(&self, directory: impl AsRef<Path>) -> Result<FileWriter> {
        let request = FileRequest { resource: Resource::Unpacked, ..self.request(directory.as_ref())? };
        self.sandbox.while_running("unpack files", async { Ok(()) }).await?;
        Ok(FileWriter::new(request, self.sandbox.clone(), self.patience()))
    }

    /// Looks at what lies at a path. For a symbolic link, the kind and the mode are those
    /// of what the link leads to, and all else is the link's own.
    ///
    /// # Errors
    /// See [`Files`].
    ///
    /// # Cancel-Safety
    /// Cancelling changes nothing.
    pub async fn stat(&self, path: impl AsRef<Path>) -> Result<FileEntry> {
        let entry = self.call("look at a file", self.sandbox.agent().stat(text(path.as_ref())?, self.user())).await?;
        Ok(entry.into())
    }

    /// Whether anything lies at a path.
    ///
    /// # Errors
    /// See [`Files`], except [`Error::NotFound`].
    ///
    /// # Cancel-Safety
    /// Cancelling changes nothing.
    pub async fn exists(&self, path: impl AsRef<Path>) -> Result<bool> {
        match self.stat(path).await {
            Ok(_) => Ok(true),
            Err(Error::NotFound { .. }) => Ok(false),
            Err(error) => Err(error),
        }
    }

    /// Lists what is in a directory, at most 100,000 entries.
    ///
    /// # Errors
    /// See [`Files`].
    ///
    /// # Cancel-Safety
    /// Cancelling changes nothing.
    pub async fn list(&self, path: impl AsRef<Path>) -> Result<Vec<FileEntry>> {
        self.list_levels(path, 1).await
    }

    /// Lists what is in a directory and in the directories below it, `levels` levels in all, at most 100,000 entries.
    /// Symbolic links are not followed.
    ///
    /// # Errors
    /// See [`Files`].
    ///
    /// # Cancel-Safety
    /// Cancelling changes nothing.
    pub async fn list_levels(&self, path: impl AsRef<Path>, levels: u32) -> Result<Vec<FileEntry>> {
        let list = self.sandbox.agent().list_dir(text(path.as_ref())?, levels, self.user());
        Ok(self.long_call("list a directory", list).await?.into_iter().map(FileEntry::from).collect())
    }

    /// Makes a directory, and the missing directories above it.
    ///
    /// # Errors
    /// See [`Files`]; [`Error::Agent`] where the directory exists already.
    ///
    /// # Cancel-Safety
    /// Cancelling may leave the directory, or some of those above it, made.
    pub async fn make_dir(&self, path: impl AsRef<Path>) -> Result<()> {
        self.call("make a directory", self.sandbox.agent().make_dir(text(path.as_ref())?, self.user())).await
    }

    /// Renames a file or a directory, and makes the missing directories above the new name.
    ///
    /// # Errors
    /// See [`Files`].
    ///
    /// # Cancel-Safety
    /// Cancelling leaves the old name, or the new one.
    pub async fn rename(&self, from: impl AsRef<Path>, to: impl AsRef<Path>) -> Result<()> {
        let (from, to) = (text(from.as_ref())?, text(to.as_ref())?);
        self.long_call("rename a file", self.sandbox.agent().rename(from, to, self.user())).await
    }

    /// Removes a file, or a directory with all that is in it. It succeeds where nothing lies at the path.
    ///
    /// # Errors
    /// See [`Files`], except [`Error::NotFound`].
    ///
    /// # Cancel-Safety
    /// Cancelling may leave a directory with some of its files removed.
    pub async fn remove(&self, path: impl AsRef<Path>) -> Result<()> {
        let path = text(path.as_ref())?;
        self.long_call("remove a file", self.sandbox.agent().remove(path, self.user())).await
    }

    fn call<'a, T: 'a>(&'a self, what: &'static str, call: impl AgentCall<'a, T>) -> impl Future<Output = Result<T>> {
        self.running(what, self.sandbox.agent().bounded(Some(self.patience()), call))
    }

    /// A call whose time grows with the number of files.
    fn long_call<'a, T: 'a>(
        &'a self,
        what: &'static str,
        call: impl AgentCall<'a, T>,
    ) -> impl Future<Output = Result<T>> {
        let limit = self.timeout.unwrap_or_else(|| patient(LONG_CALL_MAX));
        self.running(what, self.sandbox.agent().bounded(Some(limit), call))
    }

    fn running<'a, T: 'a>(
        &'a self,
        what: &'static str,
        call: impl AgentCall<'a, T>,
    ) -> impl Future<Output = Result<T>> {
        let call = call.map_err(Error::file(what)).boxed();
        self.sandbox.while_running(what, call)
    }

    fn patience(&self) -> Duration {
        self.timeout.unwrap_or_else(|| patient(CALL_MAX))
    }

    fn request(&self, path: &Path) -> Result<FileRequest> {
        let path = text(path)?.to_owned();
        Ok(FileRequest { path, user: self.user.clone(), metadata: self.metadata.clone(), ..FileRequest::default() })
    }

    fn user(&self) -> Option<&str> {
        self.user.as_deref()
    }
}

/// The path as text, since the agent takes nothing else.
fn text(path: &Path) -> Result<&str> {
    path.to_str().ok_or_else(|| {
        Error::invalid(format!("{path:?} is not UTF-8, and the guest's agent takes no other path: use a command"))
    })
}

/// A call of the agent's.
trait AgentCall<'a, T>: Future<Output = Result<T, AgentError>> + Send + 'a {}

impl<'a, T, F: Future<Output = Result<T, AgentError>> + Send + 'a> AgentCall<'a, T> for F {}

/// Takes the library's own error out where there is one inside; every other error comes from the source.
fn failed_write(error: std::io::Error) -> Error {
    match error.downcast::<Error>() {
        Ok(error) => error,
        Err(error) => Error::failed("copy into a file of the guest")(error.into()),
    }
}

const CALL_MAX: Duration = Duration::from_secs(60);
const LONG_CALL_MAX: Duration = Duration::from_secs(600);

#[cfg(test)]
mod tests {
    use std::os::unix::ffi::OsStrExt as _;

    use super::*;
    use crate::agent::fake::{FakeAgent, done, plain};
    use crate::sandbox::fake;

    const STAT: &str = "/filesystem.Filesystem/Stat";
    const REMOVE: &str = "/filesystem.Filesystem/Remove";

    #[tokio::test]
    async fn a_path_that_cannot_be_told_is_refused_and_nothing_is_asked() {
        let missing = r#"{"code":"not_found","message":"no such file"}"#;
        let (agent, client) = FakeAgent::start(move |route, _| match route {
            STAT => plain(404, "application/json", missing),
            _ => done(),
        })
        .await;
        let fake = fake::sandbox(client).await;
        let files = fake.sandbox.files();
        let bytes = Path::new(std::ffi::OsStr::from_bytes(b"caf\xe9"));
        for refused in [files.remove(bytes).await, files.write(bytes, "").await, files.rename("a", bytes).await] {
            assert!(matches!(refused, Err(Error::InvalidInput { .. })), "{refused:?}");
        }
        assert_eq!(agent.count(REMOVE), 0);
    }
}
