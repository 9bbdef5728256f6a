use std::{io, path::Path};

use connectrpc::ConnectError;

/// Why a call on the file system failed.
#[derive(Debug, thiserror::Error)]
pub(crate) enum FileError {
    #[error("{0}")]
    Invalid(String),
    #[error("the directory {0} exists")]
    Exists(String),
    #[error("{0}")]
    TooMany(String),
    #[error("{0}: {1}")]
    Io(String, #[source] io::Error),
}

impl FileError {
    /// Says what a failure was about; for `map_err`.
    pub(super) fn at(path: &Path) -> impl Fn(io::Error) -> Self + '_ {
        |error| Self::Io(path.display().to_string(), error)
    }
}

impl From<io::Error> for FileError {
    fn from(error: io::Error) -> Self {
        Self::Io("the call as the user".to_owned(), error)
    }
}

impl From<FileError> for ConnectError {
    fn from(error: FileError) -> Self {
        let message = error.to_string();
        let source = match error {
            FileError::Invalid(_) => return Self::invalid_argument(message),
            FileError::Exists(_) => return Self::already_exists(message),
            FileError::TooMany(_) => return Self::resource_exhausted(message),
            FileError::Io(_, source) => source,
        };
        match source.kind() {
            io::ErrorKind::NotFound => Self::not_found(message),
            io::ErrorKind::AlreadyExists => Self::already_exists(message),
            io::ErrorKind::PermissionDenied | io::ErrorKind::ReadOnlyFilesystem => Self::permission_denied(message),
            io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => Self::resource_exhausted(message),
            io::ErrorKind::NotADirectory
            | io::ErrorKind::IsADirectory
            | io::ErrorKind::InvalidFilename
            | io::ErrorKind::InvalidInput
            | io::ErrorKind::DirectoryNotEmpty => Self::invalid_argument(message),
            // `std` has no stable name for it.
            _ if source.raw_os_error() == Some(libc::ELOOP) => Self::invalid_argument(message),
            io::ErrorKind::TimedOut => Self::unavailable(message),
            io::ErrorKind::ResourceBusy | io::ErrorKind::CrossesDevices => Self::failed_precondition(message),
            _ => Self::internal(message),
        }
    }
}
