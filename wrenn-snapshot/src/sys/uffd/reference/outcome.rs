//! What calls came to and what was heard, in words that wrenn and the crate both have.

use crate::{
    error::{Error, Result},
    sys::uffd::{Access, Copied, Event},
};

/// What a call came to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Outcome {
    Done,
    /// So many bytes are in place.
    Bytes(u64),
    /// The number of the kernel's error.
    Refused(i32),
}

/// An event. Addresses count from where the memory starts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Heard {
    Missing { at: u64, access: Access },
    Protected { at: u64 },
    Removed { start: u64, end: u64 },
    Other,
}

impl Heard {
    pub(super) fn of(event: Event, start: u64) -> Self {
        match event {
            Event::Missing { addr, access, .. } => Self::Missing { at: addr - start, access },
            Event::Protected { addr } => Self::Protected { at: addr - start },
            Event::Removed { start: first, end } => Self::Removed { start: first - start, end: end - start },
            Event::Other => Self::Other,
        }
    }

    pub(super) fn of_crate(event: &userfaultfd::Event, start: u64) -> Self {
        use userfaultfd::{Event, FaultKind, ReadWrite};
        let at = |addr: *mut libc::c_void| addr as u64 - start;
        match event {
            Event::Pagefault { kind: FaultKind::WriteProtected, addr, .. } => Self::Protected { at: at(*addr) },
            Event::Pagefault { rw, addr, .. } => {
                let access = if matches!(rw, ReadWrite::Write) { Access::Write } else { Access::Read };
                Self::Missing { at: at(*addr), access }
            }
            Event::Remove { start, end } | Event::Unmap { start, end } => {
                Self::Removed { start: at(*start), end: at(*end) }
            }
            Event::Fork { .. } | Event::Remap { .. } => Self::Other,
        }
    }
}

impl From<Result<()>> for Outcome {
    fn from(result: Result<()>) -> Self {
        result.map_or_else(|error| Self::Refused(number(&error)), |()| Self::Done)
    }
}

impl From<Result<Copied>> for Outcome {
    fn from(result: Result<Copied>) -> Self {
        match result {
            Ok(Copied::Bytes(bytes)) => Self::Bytes(bytes),
            Ok(Copied::Exists) => Self::Refused(libc::EEXIST),
            Ok(Copied::Again) => Self::Refused(libc::EAGAIN),
            Ok(Copied::Unmapped) => Self::Refused(libc::ENOENT),
            Ok(Copied::Gone) => Self::Refused(libc::ESRCH),
            Err(error) => Self::Refused(number(&error)),
        }
    }
}

impl From<userfaultfd::Result<usize>> for Outcome {
    fn from(result: userfaultfd::Result<usize>) -> Self {
        use userfaultfd::Error;
        match result {
            Ok(bytes) => Self::Bytes(bytes as u64),
            // The crate gives a negative error number as a length.
            Err(Error::PartiallyCopied(bytes)) if bytes > isize::MAX.unsigned_abs() => {
                Self::Refused(i32::try_from(bytes.wrapping_neg()).expect("an error number"))
            }
            // Older kernels leave the length as it was.
            Err(Error::PartiallyCopied(0)) => Self::Refused(libc::EAGAIN),
            Err(Error::PartiallyCopied(bytes)) => Self::Bytes(bytes as u64),
            Err(Error::CopyFailed(errno) | Error::ZeropageFailed(errno) | Error::SystemError(errno)) => {
                Self::Refused(errno as i32)
            }
            Err(other) => panic!("{other:?} has no word of wrenn's"),
        }
    }
}

impl From<userfaultfd::Result<()>> for Outcome {
    fn from(result: userfaultfd::Result<()>) -> Self {
        match Self::from(result.map(|()| 0)) {
            Self::Bytes(_) => Self::Done,
            other => other,
        }
    }
}

fn number(error: &Error) -> i32 {
    let Error::Kernel { source, .. } = error else { panic!("{error:?} is not the kernel's") };
    source.raw_os_error().expect("the kernel gives a number")
}
