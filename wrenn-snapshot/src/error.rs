//! What a caller can act on.

use std::{
    any::Any,
    io,
    path::{Path, PathBuf},
};

use crate::{damage::Damage, id::GenerationId, page::PageIndex};

/// The result of everything here.
pub type Result<T> = std::result::Result<T, Error>;

/// Why an operation failed. Nothing that was stored before has changed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The file system is full, or a quota is used up. Free some space and try again.
    #[error("no space left to write {}", path.display())]
    NoSpace {
        /// What was being written.
        path: PathBuf,
        /// What the kernel said.
        source: io::Error,
    },
    /// A stored file is not what was written. It is never going to be readable.
    #[error("{file} of generation {generation}: {damage}")]
    Corrupt {
        /// The file's name inside the generation.
        file: String,
        /// The generation that owns the file.
        generation: GenerationId,
        /// What is wrong with it.
        damage: Damage,
    },
    /// The store has no such generation.
    #[error("generation {0} is not in the store")]
    NotFound(GenerationId),
    /// The generation has no space or blob of that name.
    #[error("generation {generation} has no {what}")]
    Missing {
        /// The generation that was asked.
        generation: GenerationId,
        /// What it does not have.
        what: String,
    },
    /// The caller asked for something that cannot be done.
    #[error("{0}")]
    Invalid(String),
    /// A [`PageSource`](crate::PageSource) of the caller's own could not read a page, and may if it is asked again. One that
    /// will never be able to returns [`Invalid`](Self::Invalid).
    #[error("the source of pages failed")]
    Source(#[source] Box<dyn std::error::Error + Send + Sync>),
    /// A [`PageSource`](crate::PageSource) broke its contract.
    #[error("the source of pages answered {answer} where page {first} and at most {pages_max} in all were asked for")]
    BadSource {
        /// The page that was asked for.
        first: PageIndex,
        /// How many pages it could have answered.
        pages_max: u32,
        /// What it answered.
        answer: String,
    },
    /// Something panicked while pages were served, such as a [`PageSource`](crate::PageSource).
    #[error("the page server panicked: {0}")]
    Panicked(String),
    /// A file operation failed.
    #[error("cannot {action} {}", path.display())]
    Io {
        /// What was tried.
        action: &'static str,
        /// On which file.
        path: PathBuf,
        /// What the kernel said.
        source: io::Error,
    },
    /// A system call on another process's memory failed.
    #[error("{call} failed")]
    Kernel {
        /// The call.
        call: &'static str,
        /// What the kernel said.
        source: io::Error,
    },
}

impl Error {
    /// Whether it failed for want of disk space.
    #[must_use]
    pub fn is_no_space(&self) -> bool {
        matches!(self, Self::NoSpace { .. })
    }

    /// Whether the same call can succeed if tried again with nothing changed.
    #[must_use]
    pub fn is_retryable(&self) -> bool {
        matches!(self, Self::Io { .. } | Self::Source(_))
    }

    /// What kept a [`PageSource`](crate::PageSource) of the caller's own from reading a page, this time.
    #[must_use]
    pub fn of_source(error: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> Self {
        Self::Source(error.into())
    }

    pub(crate) fn panicked(panic: &(dyn Any + Send)) -> Self {
        let said = panic.downcast_ref::<&str>().map(ToString::to_string);
        let said = said.or_else(|| panic.downcast_ref::<String>().cloned());
        Self::Panicked(said.unwrap_or_else(|| "it does not say why".to_owned()))
    }

    pub(crate) fn io(action: &'static str, path: &Path, source: io::Error) -> Self {
        let path = path.to_owned();
        match source.kind() {
            io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => Self::NoSpace { path, source },
            _ => Self::Io { action, path, source },
        }
    }

    pub(crate) fn kernel(call: &'static str, source: impl Into<io::Error>) -> Self {
        Self::Kernel { call, source: source.into() }
    }

    pub(crate) fn corrupt(file: impl Into<String>, generation: GenerationId, damage: Damage) -> Self {
        Self::Corrupt { file: file.into(), generation, damage }
    }

    pub(crate) fn invalid(what: impl Into<String>) -> Self {
        Self::Invalid(what.into())
    }
}
